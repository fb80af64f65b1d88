"""`metarl evaluate RUN`: the adaptation curve of a run.

`metarl evaluate MODEL.zip FAMILY` measures a model of Stable-Baselines3 in the same way.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from metarl.errors import UsageError
from metarl.experiments.options import choose_family, parse, parse_parts
from metarl.experiments.printing import print_json, print_table

if TYPE_CHECKING:
    from metarl.adaptation import AdaptationCurve
    from metarl.envs.bayes_optimal import Reference
    from metarl.experiments.evaluation import Protocol
    from metarl.tasks import Family


@dataclass(frozen=True, kw_only=True)
class Measuring:
    """How to measure, whatever is measured."""

    tasks: int = 100
    """number of tasks"""
    episodes: int = 0
    """episodes per trial; 0 takes the family's"""
    split: Literal["train", "held-out", "out-of-range", "nominal"] = "held-out"
    """where the tasks are from"""
    seed: int = 0
    """decides on the tasks and on the luck of the worlds"""
    stochastic: bool = False
    """draw actions instead of taking the most likely ones"""
    worlds_per_task: int = 0
    """worlds in which a task is tried at once; 0 takes the agent's own number, usually 1"""
    device: str = "cpu"
    """cpu, cuda or cuda:N"""
    threads: int = 0
    """threads for physics and torch; 0 is one for each processor, and one for torch"""
    json: bool = False
    """print one JSON object as the last line"""

    def how(self) -> Protocol:
        """The same as the evaluation takes it."""
        from metarl.experiments.evaluation import Protocol

        return Protocol(
            self.tasks,
            self.episodes,
            self.split,
            self.seed,
            self.stochastic,
            self.worlds_per_task,
        )


@dataclass(frozen=True, kw_only=True)
class Options(Measuring):
    """Evaluate a run on tasks that it has never seen, episode by episode.

    A model of Stable-Baselines3 is evaluated by metarl evaluate MODEL.zip FAMILY; see
    metarl evaluate MODEL.zip FAMILY --help.
    """

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """folder of the run"""
    ablations: bool = False
    """evaluate once more for each part of the memory that can be taken away"""
    protocol: Literal["none", "metaworld"] = "none"
    """metaworld: its reference protocol, 10 episodes to adapt and 3 that count in each of 40 goals
    of every test skill, or with --split train of every train skill"""


@dataclass(frozen=True, kw_only=True)
class ArchiveOptions(Measuring):
    """What more there is to say about a model of Stable-Baselines3."""

    sees_task: bool = False
    """the model was trained with the task in its observation"""
    trust: bool = False
    """let Stable-Baselines3 load it, which executes code from the file"""


def main(args: list[str]) -> int:
    """Run `metarl evaluate`."""
    if args and Path(args[0]).suffix == ".zip":
        return _evaluate_archive(args)
    options = parse(Options, args, "metarl evaluate")
    if options.protocol != "none":
        return _follow_protocol(options, args)
    from metarl.experiments.evaluation import ablations_of, evaluate_run, save_curve
    from metarl.experiments.loading import open_run, use_threads

    threads = use_threads(options.threads)
    protocol = options.how()
    run = open_run(options.run, options.device, protocol.episodes)
    agent, family = run.config.agent, run.config.family
    names = ["none", *(ablations_of(run) if options.ablations else ())]
    curves: dict[str, AdaptationCurve] = {}
    files = []
    for name in names:
        curve = evaluate_run(run, protocol, ablation=name, device=options.device, threads=threads)
        curves[agent if name == "none" else name] = curve
        files.append(save_curve(run, curve))
    reference = _reference(run.family, curves[agent])
    _show(options, agent, family, curves, files[0], reference)
    if options.json:
        ablations = {label: _figures(curve) for label, curve in list(curves.items())[1:]}
        more = {"ablations": ablations, **_context(options, reference), "run": str(options.run)}
        print_json({**_figures(curves[agent]), **more})
    return 0


def _follow_protocol(options: Options, args: list[str]) -> int:
    """Evaluate a run by a published protocol.

    Raises:
        UsageError: for options that say what the protocol says itself.
    """
    given = {word.partition("=")[0].replace("_", "-") for word in args}
    for flag in ("--tasks", "--episodes", "--worlds-per-task", "--ablations"):
        if flag in given:
            raise UsageError(
                f"evaluate: --protocol {options.protocol} decides itself on tasks, episodes and "
                f"worlds: leave out {flag}, or the protocol"
            )
    from metarl.experiments import protocol
    from metarl.experiments.figures import Series, save
    from metarl.experiments.loading import use_threads
    from metarl.experiments.metaworld import conditions
    from metarl.experiments.protocol_figures import protocol_figure

    curve = protocol.measure(
        options.run,
        split=options.split,
        seed=options.seed,
        stochastic=options.stochastic,
        device=options.device,
        threads=use_threads(options.threads),
    )
    file = protocol.save(options.run, curve)
    result, agent, family = protocol.result_of([curve]), curve.info["agent"], curve.info["family"]
    split = curve.info["split"]
    print(f"{agent} on {split} tasks of {family}: {protocol.ABOUT}")
    print_table(protocol.rows_of(result))
    print_table(
        [{"episode": k + 1, **one.plain("success")} for k, one in enumerate(result.episodes)]
    )
    print(conditions(curve.info))
    title = f"{agent} on {split} tasks of {family}, Meta-World's protocol"
    save(protocol_figure([Series(agent, [curve])], title), file.with_suffix(".png"))
    print(f"saved {file} and {file.with_suffix('.png')}")
    if options.json:
        print_json({**protocol.plain(curve), "run": str(options.run)})
    return 0


def _evaluate_archive(args: list[str]) -> int:
    """Evaluate a model that `model.save` of Stable-Baselines3 wrote."""
    from metarl.envs.registry import listed, make_family

    path = Path(args[0])
    if len(args) < 2 or args[1].startswith("-"):
        raise UsageError(
            f"evaluate {path}: name the family after the model, one of {', '.join(listed())}"
        )
    name = choose_family(args[1])
    prog = f"metarl evaluate {path} {name}"
    summary = f"Evaluate a model of Stable-Baselines3 on tasks of {name}, episode by episode."
    defaults = {"options": ArchiveOptions(), "family": make_family(name)}
    parsed = parse_parts(prog, summary, defaults, args[2:])
    options: ArchiveOptions = parsed.options
    from metarl.agents.archives import read_archive
    from metarl.experiments.evaluation import evaluate_policy, name_of, write_curve
    from metarl.experiments.loading import check_device, use_threads
    from metarl.experiments.metaworld import describe
    from metarl.oracle import TaskInObservation

    family = TaskInObservation.of(parsed.family) if options.sees_task else parsed.family
    device, threads = check_device(options.device, family), use_threads(options.threads)
    name = family.name
    archive = read_archive(path, trust=options.trust, device=device)
    policy = archive.policy_on(
        family.spec(), name, deterministic=not options.stochastic, device=device
    )
    about = {"agent": path.stem, "family": name, "trained_steps": archive.steps, "ablation": "none"}
    about |= describe(family)
    curve = evaluate_policy(
        policy, family, options.how(), info=about, device=device, threads=threads
    )
    file = write_curve(path.with_name(f"{path.stem}-{name}-{name_of(curve)}"), curve)
    reference = _reference(family, curve)
    _show(options, path.stem, name, {path.stem: curve}, file, reference)
    if options.json:
        print_json({**_figures(curve), **_context(options, reference), "model": str(path)})
    return 0


def _reference(family: Family, curve: AdaptationCurve) -> Reference | None:
    """What the best possible policy reaches in one world a task, where it is quick to tell."""
    from metarl.envs.bayes_optimal import bayes_optimal

    return None if curve.worlds_per_task > 1 else bayes_optimal(family, curve.episodes, quick=True)


def _show(
    options: Measuring,
    agent: str,
    family: str,
    curves: dict[str, AdaptationCurve],
    file: Path,
    reference: Reference | None,
) -> None:
    """Print the curves, and draw them beside the `file` that holds the first."""
    from metarl.experiments.figures import Series, adaptation_figure, save
    from metarl.experiments.metaworld import KEY, conditions

    for label, curve in curves.items():
        print(f"{label} on {options.tasks} {options.split} tasks of {family}")
        print_table(_rows(curve, reference))
        for name, value in curve.figures.items():
            print(f"{name} {value:.3f}")
        if KEY in curve.info:
            print(conditions(curve.info))
    title = f"{agent} on {options.tasks} {options.split} tasks of {family}"
    figure = file.with_suffix(".png")
    series = [Series(label, [curve]) for label, curve in curves.items()]
    save(adaptation_figure(series, title, reference), figure)
    print(f"saved {file} and {figure}")


def _rows(curve: AdaptationCurve, reference: Reference | None) -> list[dict[str, Any]]:
    """One row for each episode of the trial."""
    summary, success = curve.summary(), curve.success_summary()
    rows: list[dict[str, Any]] = []
    for k in range(curve.episodes):
        row: dict[str, Any] = {
            "episode": k + 1,
            **({"seen before": curve.seen[k]} if curve.worlds_per_task > 1 else {}),
            "mean": summary.mean[k],
            "IQM": summary.iqm[k],
            "low": summary.mean_low[k],
            "high": summary.mean_high[k],
        }
        if success is not None:
            row["success"] = success.mean[k]
        if reference is not None:
            row[reference.name] = reference.returns[k]
        rows.append(row)
    return rows


def _figures(curve: AdaptationCurve) -> dict[str, Any]:
    """The contract of `--json`; `low` and `high` bound the mean."""
    summary, success = curve.summary(), curve.success_summary()
    return {
        "mean": summary.mean,
        "iqm": summary.iqm,
        "low": summary.mean_low,
        "high": summary.mean_high,
        "iqm_low": summary.iqm_low,
        "iqm_high": summary.iqm_high,
        "success": None if success is None else success.mean,
        "seen": curve.seen,
        "figures": curve.figures,
    }


def _context(options: Measuring, reference: Reference | None) -> dict[str, Any]:
    return {
        "tasks": options.tasks,
        "split": options.split,
        "seed": options.seed,
        "reference": None if reference is None else reference.plain(),
    }

"""`metarl evaluate RUN`: the adaptation curve of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from metarl.experiments.options import parse
from metarl.experiments.printing import print_json, print_table

if TYPE_CHECKING:
    from metarl.adaptation import AdaptationCurve


@dataclass(frozen=True)
class Options:
    """Evaluate a run on tasks that it has never seen, episode by episode."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """folder of the run"""
    tasks: int = 100
    """number of tasks"""
    episodes: int = 0
    """episodes per trial; 0 takes the family's"""
    split: Literal["train", "held-out", "out-of-range"] = "held-out"
    """where the tasks are from"""
    seed: int = 0
    """decides on the tasks and on the luck of the worlds"""
    stochastic: bool = False
    """draw actions instead of taking the most likely ones"""
    ablations: bool = False
    """evaluate once more for each part of the memory that can be taken away"""
    device: str = "cpu"
    """cpu, cuda or cuda:N"""
    threads: int = 0
    """threads for physics and torch; 0 is one for each processor, and one for torch"""
    json: bool = False
    """print one JSON object as the last line"""


def main(args: list[str]) -> int:
    """Run `metarl evaluate`."""
    options = parse(Options, args, "metarl evaluate")
    from metarl.experiments.evaluation import Protocol, ablations_of, evaluate_run, save_curve
    from metarl.experiments.figures import Series, adaptation_figure, save
    from metarl.experiments.loading import open_run, use_threads

    threads = use_threads(options.threads)
    protocol = Protocol(
        options.tasks, options.episodes, options.split, options.seed, options.stochastic
    )
    run = open_run(options.run, options.device)
    agent, family = run.config.agent, run.config.family
    names = ["none", *(ablations_of(run) if options.ablations else ())]
    curves: dict[str, AdaptationCurve] = {}
    files = []
    for name in names:
        curve = evaluate_run(run, protocol, ablation=name, device=options.device, threads=threads)
        curves[agent if name == "none" else name] = curve
        files.append(save_curve(run, curve))
    for label, curve in curves.items():
        print(f"{label} on {options.tasks} {options.split} tasks of {family}")
        print_table(_rows(curve))
    title = f"{agent} on {options.tasks} {options.split} tasks of {family}"
    series = [Series(label, [curve]) for label, curve in curves.items()]
    figure = files[0].with_suffix(".png")
    save(adaptation_figure(series, title), figure)
    print(f"saved {files[0]} and {figure}")
    if options.json:
        ablations = {label: _figures(curve) for label, curve in list(curves.items())[1:]}
        print_json({**_figures(curves[agent]), "ablations": ablations, **_context(options)})
    return 0


def _rows(curve: AdaptationCurve) -> list[dict[str, Any]]:
    """One row for each episode of the trial."""
    summary, success = curve.summary(), curve.success_summary()
    rows: list[dict[str, Any]] = []
    for k in range(curve.episodes):
        row = {
            "episode": k + 1,
            "mean": summary.mean[k],
            "IQM": summary.iqm[k],
            "low": summary.mean_low[k],
            "high": summary.mean_high[k],
        }
        rows.append(row if success is None else {**row, "success": success.mean[k]})
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
    }


def _context(options: Options) -> dict[str, Any]:
    return {
        "tasks": options.tasks,
        "split": options.split,
        "seed": options.seed,
        "run": str(options.run),
    }

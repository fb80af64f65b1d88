"""`metarl bench`: how fast worlds step, or agents and learners update, beside a named peer."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from metarl.envs.registry import FAMILIES, listed
from metarl.errors import UsageError
from metarl.experiments.fewshot import DATASETS
from metarl.experiments.options import choose, choose_family, parse, parse_parts
from metarl.experiments.printing import print_json, print_table

USAGE = """usage: metarl bench rollout FAMILY [OPTIONS]
       metarl bench update AGENT [OPTIONS]
       metarl bench fewshot DATASET [OPTIONS]

rollout measures how many steps a second the worlds of a family make under random actions:
observation, task reward and autoreset included. update measures how fast an agent learns in its
published configuration: gradient steps a second of pearl, sampling from replay included; those of
varibad's auto-encoder in the sizes of its presets; outer steps of maml and promp, the adaptation
included that they pass through. fewshot measures how many iterations of second-order MAML in its
published sizes: drawing the tasks included.

FAMILY is one of
{families}

AGENT is one of
{agents}

DATASET is one of
{datasets}

metarl bench rollout FAMILY --help, and so on, list the options."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure."""

    num_worlds: int = 256
    """worlds that are stepped together"""
    threads: int = 0
    """threads of the physics, on both sides; 0 is one for each processor"""
    device: str = "cpu"
    """cpu, cuda or cuda:N"""
    peer: Literal["none", "bare", "gymnasium", "envpool", "shared-model", "metaworld"] = "none"
    """what to compare with, in the same run"""
    randomize: bool = False
    """give every world its own masses, inertias, damping and friction"""
    windows: int = 15
    """timed windows per side, which take turns"""
    seconds: float = 0.5
    """length of a window"""
    json: bool = False
    """print one JSON object as the last line"""


@dataclasses.dataclass(frozen=True)
class FewShotOptions:
    """What to measure."""

    inner_steps: int = 1
    """gradient steps on each support set"""
    shots: int = 0
    """support points, of each class for images; 0 is 10 for curves and 1 for images"""
    executor: Literal["auto", "vectorised", "loop"] = "auto"
    """all tasks at once, one after the other, or whichever is measured to be faster"""
    compile: bool = False
    """let torch compile the meta-gradient, which takes up to a minute"""
    threads: int = 1
    """threads of torch, on both sides"""
    device: str = "cpu"
    """cpu, cuda or cuda:N"""
    peer: Literal["none", "loop"] = "none"
    """the same in torch's own layers, one task after the other"""
    windows: int = 15
    """timed windows per side, which take turns"""
    seconds: float = 0.5
    """length of a window"""
    json: bool = False
    """print one JSON object as the last line"""


@dataclasses.dataclass(frozen=True)
class PearlOptions:
    """What to measure."""

    variant: Literal["paper", "modern"] = "paper"
    """of SAC, as `metarl train pearl` has them"""
    threads: int = 1
    """threads of torch, on both sides"""
    device: str = "cpu"
    """cpu, cuda or cuda:N"""
    peer: Literal["none", "plain", "floor", "onednn-floor"] = "none"
    """the update as one writes it down from the paper, or its matrix products alone"""
    windows: int = 15
    """timed windows per side, which take turns"""
    seconds: float = 0.5
    """length of a window"""
    json: bool = False
    """print one JSON object as the last line"""


@dataclasses.dataclass(frozen=True)
class VariBADOptions:
    """What to measure."""

    family: Literal["gridnavi", "half-cheetah-vel"] = "gridnavi"
    """whose preset: short trials and all pairs of a belief and a step, or long ones and some"""
    whole: bool = False
    """whole iterations, too, simulation and PPO included, and what takes which share of them"""
    threads: int = 1
    """threads of torch, on both sides, and of the physics"""
    device: str = "cpu"
    """cpu, cuda or cuda:N"""
    peer: Literal["none", "loop"] = "none"
    """the same as one writes it down: one belief after the other"""
    windows: int = 5
    """timed windows per side, which take turns"""
    seconds: float = 0.5
    """length of a window, which holds one update at least"""
    json: bool = False
    """print one JSON object as the last line"""


@dataclasses.dataclass(frozen=True)
class GradientOptions:
    """What to measure."""

    meta_batch: int = 40
    """tasks of an iteration"""
    rollouts: int = 20
    """episodes of each task, before its gradient step and after"""
    whole: bool = False
    """whole meta-iterations, too, simulation included, and what takes which share of them"""
    threads: int = 1
    """threads of torch, on both sides, and of the physics"""
    device: str = "cpu"
    """cpu, cuda or cuda:N"""
    peer: Literal["none", "loop"] = "none"
    """the same as one writes it down from the paper, one task after the other"""
    windows: int = 5
    """timed windows per side, which take turns"""
    seconds: float = 0.5
    """length of a window, which holds one iteration at least"""
    json: bool = False
    """print one JSON object as the last line"""


UPDATED: dict[str, type[PearlOptions | VariBADOptions | GradientOptions]] = {
    "pearl": PearlOptions,
    "varibad": VariBADOptions,
    "maml": GradientOptions,
    "promp": GradientOptions,
}
"""agents whose update can be measured, with what may be said of it"""
SUBJECTS: dict[str, tuple[str, Sequence[str]]] = {
    "rollout": ("family", tuple(FAMILIES)),
    "update": ("agent", tuple(UPDATED)),
    "fewshot": ("data set", tuple(DATASETS)),
}
"""what can be measured: of what, and of which of these"""


def main(args: list[str]) -> int:
    """Run `metarl bench`."""
    words = [word for word in args[:2] if not word.startswith("-")]
    if words:
        choose("benchmark", words[0], SUBJECTS)
    if len(words) < 2:
        if {"-h", "--help"} & set(args):
            named: dict[str, Iterable[str]]
            named = {"families": listed(), "agents": UPDATED, "datasets": DATASETS}
            print(USAGE.format(**{k: "\n".join(f"  {n}" for n in v) for k, v in named.items()}))
            return 0
        raise UsageError(
            "bench: name a benchmark and what to measure, as in: "
            "metarl bench rollout half-cheetah-vel, or: metarl bench update pearl, or: "
            "metarl bench fewshot sinusoid"
        )
    kind, allowed = SUBJECTS[words[0]]
    name = choose_family(words[1]) if kind == "family" else choose(kind, words[1], allowed)
    commands = {"rollout": _rollout, "update": _update, "fewshot": _fewshot}
    return commands[words[0]](name, args[2:])


def _rollout(name: str, args: list[str]) -> int:
    from metarl.envs.registry import make_family
    from metarl.experiments.bench import bench_rollout
    from metarl.experiments.loading import check_device, use_threads

    summary = f"Measure how fast worlds of {name} step."
    parts = {"run": Options(), "family": make_family(name)}
    parsed: Any = parse_parts(f"metarl bench rollout {name}", summary, parts, args)
    options: Options = parsed.run
    result = bench_rollout(
        parsed.family,
        options.num_worlds,
        use_threads(options.threads),
        check_device(options.device),
        options.peer,
        randomize=options.randomize,
        windows=options.windows,
        seconds=options.seconds,
    )
    _show(result, options.json)
    return 0


def _update(name: str, args: list[str]) -> int:
    from metarl.experiments.bench_update import bench_update
    from metarl.experiments.loading import check_device

    options = parse(UPDATED[name], args, f"metarl bench update {name}")
    values = {**dataclasses.asdict(options), "device": check_device(options.device)}
    del values["json"]
    result = bench_update(name, **values)
    _show(result, options.json)
    return 0


def _fewshot(name: str, args: list[str]) -> int:
    from metarl.experiments.bench_fewshot import bench_fewshot
    from metarl.experiments.loading import check_device

    summary = f"Measure how fast MAML learns from {name}."
    parts = {"run": FewShotOptions(), "data": DATASETS[name].data_class()()}
    parsed: Any = parse_parts(f"metarl bench fewshot {name}", summary, parts, args)
    options: FewShotOptions = parsed.run
    result = bench_fewshot(
        parsed.data,
        inner_steps=options.inner_steps,
        shots=options.shots,
        executor=options.executor,
        compiled=options.compile,
        threads=options.threads,
        device=check_device(options.device),
        peer=options.peer,
        windows=options.windows,
        seconds=options.seconds,
    )
    _show(result, options.json)
    return 0


def _show(result: Mapping[str, Any], as_json: bool) -> None:
    """Print the rates of both sides, their ratio, and which shares were measured."""
    names = {"": "metarl", "peer_": result.get("peer_mode") or result["peer"]}
    sides = []
    for prefix, name in names.items():
        if result[f"{prefix}value"] is not None:
            side = {"side": name, result["unit"]: _rounded(result[f"{prefix}value"])}
            if f"{prefix}seconds" in result:
                side["seconds each"] = _rounded(result[f"{prefix}seconds"])
            sides.append(side)
    print_table(sides)
    if result["ratio"] is not None:
        print(f"ratio {result['ratio']:.2f}")
    if "sampling_share" in result:
        print(f"sampling {result['sampling_share']:.1%} of the time")
    if "whole_seconds" in result:
        ending = "_share"
        shares = {n.removesuffix(ending): x for n, x in result.items() if n.endswith(ending)}
        shares.pop("sampling", None)
        rate = f" ({result['whole_rate']:.0f} steps/s)" if "whole_rate" in result else ""
        print(
            f"a whole iteration takes {result['whole_seconds']:.2f} s{rate}: "
            + ", ".join(f"{name} {share:.1%}" for name, share in shares.items())
        )
    if as_json:
        print_json(result)


def _rounded(rate: float) -> float:
    return round(rate) if rate >= 1000 else float(f"{rate:.3g}")

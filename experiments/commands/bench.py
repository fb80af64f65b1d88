"""`metarl bench rollout FAMILY`: how fast worlds step, beside a named peer."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

import tyro

from metarl.envs.registry import FAMILIES
from metarl.errors import UsageError
from metarl.experiments.options import FLAT, choose, parse
from metarl.experiments.printing import print_json, print_table

SUBJECTS = ("rollout",)
USAGE = """usage: metarl bench rollout FAMILY [OPTIONS]

Measure how many steps a second the worlds of a family make under random actions: observation, task
reward and autoreset included.

FAMILY is one of
{families}

metarl bench rollout FAMILY --help lists the options."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure."""

    num_worlds: int = 256
    """worlds that are stepped together"""
    threads: int = 0
    """threads of the physics, on both sides; 0 is one for each processor"""
    device: str = "cpu"
    """cpu, cuda or cuda:N"""
    peer: Literal["none", "bare", "gymnasium", "envpool", "shared-model"] = "none"
    """what to compare with, in the same run"""
    randomize: bool = False
    """give every world its own masses, inertias, damping and friction"""
    windows: int = 15
    """timed windows per side, which take turns"""
    seconds: float = 0.5
    """length of a window"""
    json: bool = False
    """print one JSON object as the last line"""


def main(args: list[str]) -> int:
    """Run `metarl bench`."""
    words = [word for word in args[:2] if not word.startswith("-")]
    if len(words) < 2:
        if words:
            choose("benchmark", words[0], SUBJECTS)
        if {"-h", "--help"} & set(args):
            print(USAGE.format(families="\n".join(f"  {name}" for name in FAMILIES)))
            return 0
        raise UsageError(
            "bench: name a benchmark and a family, as in: metarl bench rollout half-cheetah-vel"
        )
    choose("benchmark", words[0], SUBJECTS)
    return _rollout(choose("family", words[1], FAMILIES), args[2:])


def _rollout(name: str, args: list[str]) -> int:
    from metarl.envs.registry import make_family
    from metarl.experiments.bench import bench_rollout
    from metarl.experiments.loading import check_device, use_threads

    default: Any = make_family(name)
    parts = [
        ("run", Annotated[Options, tyro.conf.arg(name="")], dataclasses.field(metadata=FLAT)),
        ("family", Annotated[type(default), tyro.conf.arg(help="")], dataclasses.field()),
    ]
    container = dataclasses.make_dataclass("BenchOptions", parts, frozen=True)
    container.__doc__ = f"Measure how fast worlds of {name} step."
    parsed: Any = parse(
        container, args, f"metarl bench rollout {name}", default=container(Options(), default)
    )
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
    sides = [{"side": "metarl", result["unit"]: round(result["value"])}]
    if result["peer_value"] is not None:
        sides.append({"side": result["peer_mode"], result["unit"]: round(result["peer_value"])})
    print_table(sides)
    if result["ratio"] is not None:
        print(f"ratio {result['ratio']:.2f}")
    if options.json:
        print_json(result)
    return 0

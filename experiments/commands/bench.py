"""`metarl bench`: how fast worlds step, or agents and learners update, beside a named peer."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from metarl.envs.registry import FAMILIES, listed
from metarl.errors import UsageError
from metarl.experiments.bench_options import (
    FewShotOptions,
    GradientOptions,
    MemoryOptions,
    Options,
    PearlOptions,
    VariBADOptions,
)
from metarl.experiments.bench_tables import show_account, show_memory, show_rows, show_sides
from metarl.experiments.fewshot import DATASETS
from metarl.experiments.options import choose, choose_family, parse, parse_parts
from metarl.experiments.printing import print_json

USAGE = """usage: metarl bench rollout FAMILY [OPTIONS]
       metarl bench update AGENT [OPTIONS]
       metarl bench fewshot DATASET [OPTIONS]
       metarl bench memory [FAMILY ...] [OPTIONS]

rollout measures how many steps a second the worlds of a family make, under random actions or a
policy: observation, task reward and autoreset included. It tries several numbers of worlds if they
are given, and says with --account where the time of a step goes. update measures how fast an agent
learns in its published configuration: gradient steps a second of pearl, sampling from replay
included; those of varibad's auto-encoder in the sizes of its presets; outer steps of maml and
promp, the adaptation included that they pass through. fewshot measures how many iterations of
second-order MAML in its published sizes: drawing the tasks included. memory computes how much
memory of a GPU the worlds of robots take; it needs no GPU.

FAMILY is one of
{families}

AGENT is one of
{agents}

DATASET is one of
{datasets}

metarl bench rollout FAMILY --help, and so on, list the options."""


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
        choose("benchmark", words[0], (*SUBJECTS, "memory"))
    if words[:1] == ["memory"]:
        return _memory(args[1:])
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
        check_device(options.device, parsed.family),
        options.peer,
        randomize=options.randomize,
        policy=options.policy,
        account=options.account,
        windows=options.windows,
        seconds=options.seconds,
    )
    if len(options.num_worlds) > 1 or result["memory"] is not None:
        show_rows(result)
    else:
        show_sides(result)
    if result["account"] is not None:
        show_account(result["account"])
    if options.json:
        print_json(result)
    return 0


def _update(name: str, args: list[str]) -> int:
    from metarl.experiments.bench_update import bench_update
    from metarl.experiments.loading import check_device

    options = parse(UPDATED[name], args, f"metarl bench update {name}")
    values = {**dataclasses.asdict(options), "device": check_device(options.device)}
    del values["json"]
    result = bench_update(name, **values)
    show_sides(result)
    if options.json:
        print_json(result)
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
    show_sides(result)
    if options.json:
        print_json(result)
    return 0


def _memory(args: list[str]) -> int:
    from metarl.experiments.bench_memory import bench_memory

    first = next((k for k, word in enumerate(args) if word.startswith("-")), len(args))
    options = parse(MemoryOptions, args[first:], "metarl bench memory")
    rows = bench_memory([choose_family(name) for name in args[:first]], options.num_worlds)
    show_memory(rows)
    if options.json:
        print_json({"num_worlds": options.num_worlds, "unit": "bytes", "rows": rows})
    return 0

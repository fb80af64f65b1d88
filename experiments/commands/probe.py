"""`metarl probe RUN [RUN ...]`: what of the task can be read off what agents remember."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from metarl.errors import UsageError
from metarl.experiments.options import parse
from metarl.experiments.printing import print_json, print_table


@dataclass(frozen=True)
class Options:
    """Read the task off what agents remember, by a linear map, and draw it beside their returns."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """folders of runs on one family, of rl2, varibad or pearl"""
    tasks: int = 200
    """held-out tasks that are judged; twice as many training tasks are fitted"""
    seed: int = 0
    """decides on the tasks and on the luck of the worlds"""
    out: str = ""
    """file to draw into, .png, .svg or .pdf; empty is one in the folder of the first run"""
    json: bool = False
    """print one JSON object as the last line"""


def main(args: list[str]) -> int:
    """Run `metarl probe`."""
    options = parse(Options, args, "metarl probe")
    if not options.runs:
        raise UsageError("probe: name at least one run folder")
    if options.tasks < 10:
        raise UsageError(f"probe: --tasks must be at least 10, got {options.tasks}")
    from metarl.experiments.figures import save
    from metarl.experiments.loading import use_threads
    from metarl.experiments.probe import probe, probe_figure
    from metarl.experiments.records import RunRecord, compare

    use_threads(0)
    comparisons = compare([RunRecord.load(path) for path in dict.fromkeys(options.runs)])
    if len(comparisons) > 1:
        raise UsageError(
            "probe: the runs must be on one family with the same options, got "
            + ", ".join(comparison.family for comparison in comparisons)
        )
    probes = probe(comparisons[0], options.tasks, options.seed)
    print_table(
        [
            {"number": name, **{one.label: float(one.r2[-1, index]) for one in probes}}
            for index, name in enumerate(probes[0].names)
        ]
    )
    path = Path(options.out or options.runs[0] / "evaluation" / f"probe-seed{options.seed}.png")
    save(probe_figure(comparisons[0], probes), path)
    print(f"saved {path}")
    if options.json:
        figures = {one.label: one.r2.tolist() for one in probes}
        print_json({"out": str(path), "names": list(probes[0].names), "r2": figures})
    return 0

"""`metarl report RUN [RUN ...]`: curves and tables on one HTML page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from metarl.experiments.options import parse
from metarl.experiments.printing import print_json, print_table


@dataclass(frozen=True)
class Options:
    """Write curves and tables of runs and seeds to one HTML page that needs no other file."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN [RUN ...]")]
    """run folders; the seeds of an agent are put together"""
    out: Path = Path("report.html")
    """file to write"""
    json: bool = False
    """print one JSON object as the last line"""


def main(args: list[str]) -> int:
    """Run `metarl report`."""
    options = parse(Options, args, "metarl report")
    from metarl.experiments.loading import use_threads
    from metarl.experiments.report import write_report

    use_threads(0)
    rows = write_report(options.runs, options.out)
    print_table(_lines(rows))
    print(f"saved {options.out}")
    if options.json:
        print_json({"out": str(options.out), "agents": rows})
    return 0


def _lines(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A line for each agent, then one for the best that is possible, where that is known."""
    lines = [_line(row["family"], row["agent"], row["runs"], row["mean"]) for row in rows]
    for row in rows:
        if (best := row["reference"]) is not None:
            line = _line(row["family"], best["name"], "", best["returns"])
            lines += [line] * (line not in lines)
    return lines


def _line(family: str, agent: str, runs: object, returns: list[float]) -> dict[str, Any]:
    return {
        "family": family,
        "agent": agent,
        "runs": runs,
        "first episode": returns[0],
        "last episode": returns[-1],
    }

"""`metarl report RUN [RUN ...]`: curves and tables on one HTML page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

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
    print_table(
        [
            {
                "family": row["family"],
                "agent": row["agent"],
                "runs": row["runs"],
                "first episode": row["mean"][0],
                "last episode": row["mean"][-1],
            }
            for row in rows
        ]
    )
    print(f"saved {options.out}")
    if options.json:
        print_json({"out": str(options.out), "agents": rows})
    return 0

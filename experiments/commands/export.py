"""`metarl export RUN OUT`: a policy for a robot."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from metarl.experiments.options import parse
from metarl.experiments.printing import print_json, print_table


@dataclass(frozen=True)
class Options:
    """Write the policy of a run as files that need no simulator, and verify them.

    OUT gets policy.onnx and policy.pt2 (torch.export), a recorded trial, and control_loop.py, an
    example that runs on that recording. Each file is run through the recording: its actions must be
    the trained policy's. Agents that take gradient steps (maml, promp) are written as .pt2 only,
    as ONNX has no operators for their regression and their gradient.
    """

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """folder of the run"""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """folder to write; an earlier export is replaced"""
    formats: tuple[Literal["onnx", "pt2"], ...] = ()
    """what to write; by default all that the agent and this machine can"""
    episodes: int = 0
    """episodes of the recorded trial; 0 takes the family's, or one after the last gradient step"""
    split: Literal["train", "held-out", "out-of-range"] = "held-out"
    """where the task of the recorded trial is from"""
    seed: int = 0
    """decides on the task and on the luck of the world"""
    json: bool = False
    """print one JSON object as the last line"""


def main(args: list[str]) -> int:
    """Run `metarl export`."""
    options = parse(Options, args, "metarl export")
    from metarl.experiments.export import export, open_for_export, require_free
    from metarl.experiments.loading import use_threads

    require_free(options.out)
    use_threads(1)
    run = open_for_export(options.run, options.episodes)
    agent, family = run.config.agent, run.config.family
    result = export(run, options.out, options.formats, split=options.split, seed=options.seed)
    print(f"exported {agent} on {family}, trained for {run.step} steps, to {options.out}")
    rows = [
        {
            "policy": f"policy.{name}",
            "largest difference": f"{x.difference:.1e}",
            "act and observe": f"{x.microseconds:.0f} µs",
            "size": f"{x.bytes / 1024:.0f} KiB",
        }
        for name, x in result.checked.items()
    ]
    trained = f"{result.eager_microseconds:.0f} µs"
    rows.append(
        {"policy": "trained", "largest difference": "", "act and observe": trained, "size": ""}
    )
    print_table(rows)
    print(f"compared on a recorded trial of {result.steps} steps, timed on one core")
    for sentence in result.missing:
        print(f"policy.onnx is not there: {sentence}")
    print(f"next: python {options.out}/control_loop.py")
    if options.json:
        formats = {name: asdict(x) for name, x in result.checked.items()}
        facts = {"agent": agent, "family": family, "steps": result.steps}
        times = {"trained_microseconds": result.eager_microseconds}
        print_json({"out": str(options.out), **facts, "formats": formats, **times})
    return 0

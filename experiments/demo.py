"""`make demo`: meta-train on simulated half-cheetahs, and draw how the policy adapts.

Three agents learn `half-cheetah-vel` with the same PPO: RL², which has a memory; a policy that has
none and cannot adapt; and an oracle that is told the speed to run at. All are then judged on speeds
that none has seen in training.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from tqdm import tqdm

from metarl.errors import UsageError
from metarl.experiments.agents import AGENTS
from metarl.experiments.evaluation import Protocol, evaluate_run, save_curve
from metarl.experiments.figures import Series, adaptation_figure, save
from metarl.experiments.loading import open_run
from metarl.experiments.printing import print_table

FAMILY = "half-cheetah-vel"
BUDGETS = {"rl2": 3_000_000, "non-adaptive": 3_000_000, "oracle": 4_000_000}
"""environment steps; about five minutes on two cores"""


@dataclass(frozen=True)
class Options:
    """Train RL² and its two references on half-cheetah-vel, and draw how they adapt."""

    out: Path = Path("runs/demo")
    """where runs and the figure go; an older demo there is replaced"""
    seed: int = 1
    """seed of all three"""
    tasks: int = 128
    """held-out speeds to judge on"""
    share: float = 1.0
    """share of the full budget to train for"""


@dataclass
class Job:
    """One agent's training in a process of its own."""

    agent: str
    """name of the agent"""
    steps: int
    """its budget"""
    folder: Path
    """its run folder"""
    bar: tqdm[Any]
    """shows how far it is"""
    process: subprocess.Popen[bytes] | None = None
    """running, once started"""

    def start(self, seed: int) -> None:
        """Run `metarl train` on one thread, its messages kept beside the run."""
        options = {
            "--total-steps": self.steps,
            "--evaluate-every": 0,
            "--seed": seed,
            "--threads": 1,
            "--run-dir": self.folder,
        }
        words = [str(word) for pair in options.items() for word in pair]
        command = [sys.executable, "-m", "metarl.experiments.cli", "train", self.agent, FAMILY]
        with self.folder.with_suffix(".log").open("wb") as log:
            self.process = subprocess.Popen(
                command + words,
                stdout=log,
                stderr=log,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )

    def refresh(self) -> bool:
        """Show the latest figures; True once the training has ended.

        Raises:
            UsageError: if it ended badly.
        """
        assert self.process is not None
        code = self.process.poll()
        rows = _rows(self.folder / "metrics.jsonl")
        if rows:
            first, last = rows[-1]["return_first"], rows[-1]["return_last"]
            self.bar.set_postfix_str(f"return {first:.0f} -> {last:.0f}", refresh=False)
            self.bar.update(min(rows[-1]["step"], self.steps) - self.bar.n)
        if code:
            log = self.folder.with_suffix(".log")
            raise UsageError(f"training {self.agent} failed with exit code {code}; see {log}")
        return code == 0


def _rows(path: Path) -> list[dict[str, float]]:
    """The complete lines of a metrics file that is being written."""
    if not path.is_file():
        return []
    lines = path.read_text().split("\n")[:-1]
    return [json.loads(lines[-1])] if lines else []


def train_all(options: Options) -> dict[str, Path]:
    """Train the agents side by side, one process to a core; return their run folders."""
    options.out.mkdir(parents=True, exist_ok=True)
    quiet = not sys.stderr.isatty()
    jobs = []
    for position, (agent, budget) in enumerate(BUDGETS.items()):
        steps, folder = max(1, int(budget * options.share)), options.out / agent
        shutil.rmtree(folder, ignore_errors=True)
        bar: tqdm[Any] = tqdm(
            total=steps,
            desc=f"{agent:<13}",
            unit="step",
            unit_scale=True,
            position=position,
            mininterval=30.0 if quiet else 0.1,
        )
        jobs.append(Job(agent, steps, folder, bar))
    waiting, running = list(jobs), list[Job]()
    try:
        while waiting or running:
            while waiting and len(running) < max(1, os.cpu_count() or 1):
                running.append(waiting.pop(0))
                running[-1].start(options.seed)
            time.sleep(0.5)
            running = [job for job in running if not job.refresh()]
    finally:
        for job in jobs:
            job.bar.close()
            if job.process is not None and job.process.poll() is None:
                job.process.terminate()
                job.process.wait()
    return {job.agent: job.folder for job in jobs}


def judge_all(folders: dict[str, Path], options: Options) -> Path:
    """Evaluate the runs on held-out speeds, print the returns and draw the figure."""
    series, table = [], []
    for agent, folder in folders.items():
        run = open_run(folder)
        curve = evaluate_run(run, Protocol(tasks=options.tasks), threads=os.cpu_count() or 1)
        save_curve(run, curve)
        series.append(Series(agent, [curve]))
        summary = curve.summary()
        for k in range(curve.episodes):
            interval = f"[{summary.mean_low[k]:.1f}, {summary.mean_high[k]:.1f}]"
            table.append(
                {"agent": agent, "episode": k + 1, "mean": summary.mean[k], "95 %": interval}
            )
    print_table(table)
    path = options.out / "demo.png"
    title = f"{FAMILY}: {options.tasks} speeds never seen in training"
    save(adaptation_figure(series, title), path)
    return path


def main(args: Sequence[str] | None = None) -> int:
    """Run the demo."""
    options = tyro.cli(Options, args=args)
    print(f"Meta-training on {FAMILY}: a robot must run at a speed that it is not told.")
    for agent in BUDGETS:
        print(f"  {agent:<13} {AGENTS[agent].summary}")
    try:
        started = time.monotonic()
        path = judge_all(train_all(options), options)
    except UsageError as error:
        print(f"metarl: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    print(f"figure: {path}   ({(time.monotonic() - started) / 60:.1f} minutes)")
    print(f"look closer: metarl report {' '.join(str(options.out / agent) for agent in BUDGETS)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

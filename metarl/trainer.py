"""The loop around whatever is trained: schedule, logs, checkpoints, signals and the progress bar.

An iteration is the unit: a run killed at any moment goes on from the last one that was saved, and
then gives the same bits as a run that was never interrupted (CPU, same versions, same number of
threads). What is trained, and how it is judged, a `Trainee` knows; `metarl.training` has one for
agents in worlds and `metarl.fewshot.training` one for few-shot learners.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Protocol

from tqdm import tqdm

from metarl.checkpoint import (
    Checkpoint,
    CheckpointWarning,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
)
from metarl.configs import first_difference
from metarl.errors import TrainingError, UsageError
from metarl.generators import global_generators, seed_global_generators, set_global_generators
from metarl.interruption import Interrupted, catch_signals
from metarl.logs import RunLog
from metarl.runs import RunFolder
from metarl.states import State, Stream
from metarl.versions import software_versions


class Trainee(Protocol):
    """What is trained; its budget is counted in steps, whatever a step is to it."""

    unit: ClassVar[str]
    """what a step is called"""

    def iterate(self, done: int) -> dict[str, float]:
        """One iteration after `done` steps.

        The figures that it returns are logged, but for `steps`, how many it took, and `iterations`,
        how many they count as (1 unless it says so).

        Raises:
            TrainingError: a loss or gradient is not finite.
        """

    def evaluate(self, done: int) -> Mapping[str, Any]:
        """Judge it after `done` steps, which must not change it; returns figures to log."""

    def describe(self, figures: Mapping[str, float]) -> str:
        """What the progress bar says of the figures of an iteration."""

    def states(self) -> dict[str, State]:
        """Everything that changes, by the name of its file."""

    def load_states(self, states: Mapping[str, State]) -> None:
        """Go on exactly from what `states` returned."""

    def streams(self) -> Mapping[str, Stream]:
        """Memories too large to be copied, which write themselves."""


@dataclass(frozen=True)
class Schedule:
    """When a run ends, is judged and is saved."""

    total: int
    """budget in steps"""
    seed: int
    """of the global generators"""
    evaluate_every: int = 0
    """steps between evaluations; 0 for none"""
    checkpoint_every: int = 1
    """iterations between checkpoints"""
    save_first: bool = False
    """save after the first iteration, too: for what is decided there by a measurement"""


@dataclass
class Counters:
    """How far training has come; saved with every checkpoint."""

    steps: int = 0
    """steps taken"""
    iterations: int = 0
    """iterations made"""
    evaluated_at: int = 0
    """steps at the last evaluation"""
    metrics_bytes: int = 0
    """size of `metrics.jsonl`"""


class Trainer:
    """One session of training."""

    def __init__(self, trainee: Trainee, run: RunFolder, schedule: Schedule) -> None:
        """Prepare to train `trainee`, to log and save in `run`."""
        self.trainee, self.run, self.schedule = trainee, run, schedule
        self.counters = Counters()
        self.figures: dict[str, float] = {}
        self.saved: Counters | None = None

    def run_all(self, resume: bool) -> None:
        """Start or go on, and iterate until the budget is spent.

        Raises:
            Interrupted: SIGINT or SIGTERM arrived; everything is saved.
            TrainingError: a loss or gradient is not finite; the last checkpoint is from before.
            UsageError: the disk is full, or no checkpoint is good or fits.
        """
        if resume and list_checkpoints(self.run.checkpoints):
            self._restore()
        else:
            seed_global_generators(self.schedule.seed)
        counters, total = self.counters, self.schedule.total
        with (
            self.run.open_log(counters.metrics_bytes, counters.steps) as log,
            _progress_bar(total, counters.steps, self.trainee.unit) as bar,
            catch_signals() as received,
        ):
            while True:
                self._evaluate_if_due(log)
                if received:
                    self._save(log)
                    raise Interrupted(
                        f"{received[0]}: everything is saved in {self.run.path} at "
                        f"{self.trainee.unit} {counters.steps}; go on with --resume"
                    )
                if counters.steps >= total:
                    break
                if self._iterate(log, bar):
                    self._save(log)
            self._save(log)

    def _iterate(self, log: RunLog, bar: tqdm[Any]) -> bool:
        """One iteration, logged; returns whether it is time to save."""
        counters, started = self.counters, time.perf_counter()
        before = counters.iterations
        try:
            figures = dict(self.trainee.iterate(counters.steps))
        except TrainingError as error:
            saved = list_checkpoints(self.run.checkpoints)
            where = f"the last checkpoint is {saved[0]}" if saved else "nothing was saved yet"
            raise TrainingError(
                f"{error}; training stopped after {self.trainee.unit} {counters.steps}, {where}"
            ) from error
        seconds = time.perf_counter() - started
        steps = int(figures.pop("steps"))
        counters.steps += steps
        counters.iterations += int(figures.pop("iterations", 1))
        self.figures = figures
        log.record(counters.steps, {"iteration": counters.iterations, **figures})
        log.record_timing(
            counters.steps, {"seconds": seconds, "steps_per_second": steps / max(seconds, 1e-9)}
        )
        bar.update(steps)
        bar.set_postfix_str(self.trainee.describe(figures), refresh=False)
        every = self.schedule.checkpoint_every
        first = self.schedule.save_first and before == 0
        return first or counters.iterations // every > before // every

    def _evaluate_if_due(self, log: RunLog) -> None:
        """Evaluate when the schedule or the end of the budget says so."""
        counters, every = self.counters, self.schedule.evaluate_every
        if every == 0 or counters.steps == counters.evaluated_at:
            return
        passed = counters.steps // every > counters.evaluated_at // every
        if passed or counters.steps >= self.schedule.total:
            figures = self.trainee.evaluate(counters.steps)
            counters.evaluated_at = counters.steps
            log.record(counters.steps, figures)

    def _save(self, log: RunLog) -> None:
        """Save a checkpoint, unless nothing happened since the last one."""
        counters = self.counters
        counters.metrics_bytes = log.sync()
        if counters == self.saved:
            return
        states = {
            **self.trainee.states(),
            "trainer": {**asdict(counters), "generators": global_generators()},
        }
        save_checkpoint(
            self.run.checkpoints,
            counters.steps,
            states,
            streams=self.trainee.streams(),
            labels=self.run.labels,
        )
        self.saved = replace(counters)

    def _restore(self) -> None:
        """Take over the last good checkpoint of the run."""
        checkpoint = load_checkpoint(self.run.checkpoints)
        self.run.require_own(checkpoint.labels, checkpoint.path)
        _warn_of_other_versions(checkpoint)
        try:
            trainer = checkpoint.states.pop("trainer")
            set_global_generators(trainer.pop("generators"))
            self.counters = Counters(**trainer)
            self.trainee.load_states(checkpoint.states)
            checkpoint.read_streams(self.trainee.streams())
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise UsageError(f"checkpoint {checkpoint.path} does not fit: {reason}") from error
        self.saved = replace(self.counters)


def _warn_of_other_versions(checkpoint: Checkpoint) -> None:
    """Exactness is promised for the versions that wrote the checkpoint only."""
    difference = first_difference(checkpoint.versions, software_versions())
    if difference:
        name, then, now = difference
        warnings.warn(
            f"{checkpoint.path} was written with {name} {then} and goes on with {now}: the "
            "figures may differ from those of a run without interruption",
            CheckpointWarning,
            stacklevel=2,
        )


def _progress_bar(total: int, initial: int, unit: str) -> tqdm[Any]:
    """A bar with steps/s and ETA on standard error, a line now and then where it is a file."""
    interval = 0.2 if sys.stderr.isatty() else 30.0
    return tqdm(total=total, initial=initial, unit=unit, unit_scale=True, mininterval=interval)

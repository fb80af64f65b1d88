"""The trainer: everything around an agent's iterations.

It owns the budget in environment steps, the schedule of evaluations, logs, checkpoints, signals and
the progress bar. An iteration is the unit: a run killed at any moment goes on from the last one
that was saved, and then gives the same bits as a run that was never interrupted (CPU, same
versions, same number of threads).
"""

from __future__ import annotations

import sys
import time
import warnings
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from tqdm import tqdm

from metarl.adaptation import AdaptationCurve, evaluate
from metarl.checkpoint import (
    Checkpoint,
    CheckpointWarning,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
)
from metarl.configs import first_difference
from metarl.errors import TrainingError, UsageError, require_between, require_positive
from metarl.generators import (
    global_generators,
    seed_global_generators,
    set_global_generators,
    untouched_global_generators,
)
from metarl.interruption import Interrupted, catch_signals
from metarl.logs import RunLog
from metarl.policy import Agent
from metarl.runs import RunFolder
from metarl.tasks import Family, Split
from metarl.versions import software_versions

_SEED_OF_EVALUATION = 1_000_003
"""Added to the seed, so that evaluations draw other tasks and other noise than training."""


@dataclass(frozen=True)
class TrainingConfig:
    """What the trainer needs to know; the agent has a config of its own."""

    total_steps: int = 1_000_000
    """budget in environment steps; all of them count"""
    num_worlds: int = 256
    """worlds that are stepped together"""
    seed: int = 1
    """seed of everything random"""
    evaluate_every: int = 0
    """environment steps between evaluations on held-out tasks; 0 for none"""
    evaluation_tasks: int = 64
    """held-out tasks of an evaluation, the same each time"""
    checkpoint_every: int = 1
    """iterations between checkpoints"""

    def __post_init__(self) -> None:
        """Raise `UsageError` for values that cannot train."""
        counts = ("total_steps", "num_worlds", "evaluation_tasks", "checkpoint_every")
        require_positive(self, counts, "training")
        require_between(self, ("seed", "evaluate_every"), "training", 0)


@dataclass
class Counters:
    """How far training has come; saved with every checkpoint."""

    steps: int = 0
    """environment steps taken"""
    iterations: int = 0
    """calls of `train_step`"""
    evaluated_at: int = 0
    """environment steps at the last evaluation"""
    metrics_bytes: int = 0
    """size of `metrics.jsonl`"""


@dataclass
class Training:
    """What `train` leaves behind."""

    counters: Counters = field(default_factory=Counters)
    """how far it came"""
    figures: dict[str, float] = field(default_factory=dict)
    """what the last iteration reported"""
    curve: AdaptationCurve | None = None
    """the last evaluation that was made"""


def train(
    agent: Agent,
    family: Family,
    run: RunFolder,
    config: TrainingConfig,
    *,
    resume: bool = False,
    device: torch.device | str = "cpu",
    threads: int = 1,
) -> Training:
    """Meta-train `agent` on `family` until the budget is spent.

    Args:
        agent: freshly built, on `device`; it is loaded from the run's checkpoint when resuming.
        family: the tasks and their worlds.
        run: where to log and save.
        config: budget, schedule and seed.
        resume: go on from the last good checkpoint of `run`, from the start if there is none yet.
        device: where the worlds live.
        threads: threads for physics.

    Raises:
        Interrupted: SIGINT or SIGTERM arrived; everything is saved.
        TrainingError: a loss or gradient is not finite; the last checkpoint is from before.
        UsageError: the disk is full, or no checkpoint is good or fits.
    """
    trainer = _Trainer(agent, family, run, config, torch.device(device), threads)
    try:
        return trainer.run_all(resume)
    finally:
        trainer.env.close()


class _Trainer:
    """One session of training."""

    def __init__(
        self,
        agent: Agent,
        family: Family,
        run: RunFolder,
        config: TrainingConfig,
        device: torch.device,
        threads: int,
    ) -> None:
        self.agent, self.family, self.run, self.config = agent, family, run, config
        self.device, self.threads = device, threads
        self.env = family.make_worlds(
            config.num_worlds, device=device, seed=config.seed, threads=threads
        )
        self.env.dump_unstable_to(run.path / "unstable")
        self.done = Training()
        self.saved: Counters | None = None

    def run_all(self, resume: bool) -> Training:
        """Start or go on, and iterate until the budget is spent."""
        if resume and list_checkpoints(self.run.checkpoints):
            self._restore()
        else:
            seed_global_generators(self.config.seed)
        counters = self.done.counters
        with (
            self.run.open_log(counters.metrics_bytes, counters.steps) as log,
            _progress_bar(self.config.total_steps, counters.steps) as bar,
            catch_signals() as received,
        ):
            while True:
                self._evaluate_if_due(log)
                if received:
                    self._save(log)
                    raise Interrupted(
                        f"{received[0]}: everything is saved in {self.run.path} at step "
                        f"{counters.steps}; go on with --resume"
                    )
                if counters.steps >= self.config.total_steps:
                    break
                self._iterate(log, bar)
                if counters.iterations % self.config.checkpoint_every == 0:
                    self._save(log)
            self._save(log)
        return self.done

    def _iterate(self, log: RunLog, bar: tqdm[Any]) -> None:
        """One iteration of the agent, logged."""
        counters, started = self.done.counters, time.perf_counter()
        try:
            progress = counters.steps / self.config.total_steps
            figures = dict(self.agent.train_step(self.env, progress))
        except TrainingError as error:
            saved = list_checkpoints(self.run.checkpoints)
            where = f"the last checkpoint is {saved[0]}" if saved else "nothing was saved yet"
            raise TrainingError(
                f"{error}; training stopped after step {counters.steps}, {where}"
            ) from error
        seconds = time.perf_counter() - started
        steps = int(figures.pop("steps"))
        counters.steps += steps
        counters.iterations += 1
        self.done.figures = figures
        log.record(counters.steps, {"iteration": counters.iterations, **figures})
        log.record_timing(
            counters.steps, {"seconds": seconds, "steps_per_second": steps / max(seconds, 1e-9)}
        )
        bar.update(steps)
        first, last = (figures.get(f"return_{which}", float("nan")) for which in ("first", "last"))
        bar.set_postfix_str(f"return {first:.2f} -> {last:.2f}", refresh=False)

    def _evaluate_if_due(self, log: RunLog) -> None:
        """Evaluate on held-out tasks when the schedule or the end of the budget says so."""
        counters, every = self.done.counters, self.config.evaluate_every
        if every == 0 or counters.steps == counters.evaluated_at:
            return
        passed = counters.steps // every > counters.evaluated_at // every
        if passed or counters.steps >= self.config.total_steps:
            self.done.curve = curve = self._evaluate()
            counters.evaluated_at = counters.steps
            log.record(counters.steps, _evaluation_figures(curve))

    def _evaluate(self) -> AdaptationCurve:
        """Run trials in worlds made anew, so that every evaluation meets the same luck."""
        config, steps = self.config, self.done.counters.steps
        seed = config.seed + _SEED_OF_EVALUATION
        split: Split = "held-out" if "held-out" in self.family.splits else "train"
        info = {**self.run.labels, "split": split, "seed": seed, "steps": steps}
        generator = torch.Generator().manual_seed(seed)
        tasks = self.family.sample_tasks(config.evaluation_tasks, split, generator)
        with untouched_global_generators():
            env = self.family.make_worlds(
                len(tasks), device=self.device, seed=seed, threads=self.threads
            )
            try:
                episodes = self.family.episodes
                curve = evaluate(self.agent.policy(), env, tasks, episodes, seed=seed, info=info)
            finally:
                env.close()
        path = self.run.evaluation / f"step-{steps:09d}.json"
        try:
            curve.save(path)
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error.strerror}") from error
        return curve

    def _save(self, log: RunLog) -> None:
        """Save a checkpoint, unless nothing happened since the last one."""
        counters = self.done.counters
        counters.metrics_bytes = log.sync()
        if counters == self.saved:
            return
        states = {
            "agent": self.agent.state_dict(),
            "env": self.env.state_dict(),
            "trainer": {**asdict(counters), "generators": global_generators()},
        }
        save_checkpoint(
            self.run.checkpoints,
            counters.steps,
            states,
            streams=self.agent.buffers(),
            labels=self.run.labels,
        )
        self.saved = replace(counters)

    def _restore(self) -> None:
        """Take over the last good checkpoint of the run."""
        checkpoint = load_checkpoint(self.run.checkpoints)
        self.run.require_own(checkpoint.labels, checkpoint.path)
        _warn_of_other_versions(checkpoint)
        try:
            agent, env, trainer = (checkpoint.states[name] for name in ("agent", "env", "trainer"))
            set_global_generators(trainer.pop("generators"))
            self.done.counters = Counters(**trainer)
            self.agent.load_state_dict(agent)
            self.env.load_state_dict(env)
            checkpoint.read_streams(self.agent.buffers())
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise UsageError(f"checkpoint {checkpoint.path} does not fit: {reason}") from error
        self.saved = replace(self.done.counters)


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


def _evaluation_figures(curve: AdaptationCurve) -> dict[str, list[float]]:
    """The curve by episode, under names that do not mix with those of training."""
    summary = asdict(curve.summary())
    success = curve.success_summary()
    if success is not None:
        summary["success"] = success.mean
    return {f"evaluation/{name}": values for name, values in summary.items()}


def _progress_bar(total: int, initial: int) -> tqdm[Any]:
    """A bar with steps/s and ETA on standard error, a line now and then where it is a file."""
    interval = 0.2 if sys.stderr.isatty() else 30.0
    return tqdm(total=total, initial=initial, unit="step", unit_scale=True, mininterval=interval)

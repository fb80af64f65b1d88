"""The trainer of few-shot learners; the loop itself is `metarl.trainer`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from metarl.errors import UsageError, require_between, require_positive
from metarl.fewshot.episodes import Data, Protocol
from metarl.fewshot.evaluation import Scores, evaluate
from metarl.fewshot.learner import Learner
from metarl.generators import untouched_global_generators
from metarl.runs import RunFolder
from metarl.states import State, Stream
from metarl.trainer import Counters, Schedule, Trainer

SEED_OF_EVALUATION = 1_000_003
"""of the tasks that are judged while training, whatever the seed of training"""


@dataclass(frozen=True)
class FewShotTraining:
    """How long to train, on which tasks, and how often to look."""

    iterations: int = 10_000
    """steps of the outer loop"""
    seed: int = 1
    """seed of everything random"""
    ways: int = 5
    """classes of a task; without meaning for regression"""
    shots: int = 1
    """support points of each class, or of a regression task"""
    queries: int = 15
    """query points of each class, or of a regression task"""
    train_ways: int = 0
    """the same in training; 0 takes the number above"""
    train_shots: int = 0
    """the same in training; 0 takes the number above"""
    train_queries: int = 0
    """the same in training; 0 takes the number above"""
    evaluate_every: int = 0
    """iterations between evaluations on held-out tasks; 0 for none before the end"""
    evaluation_tasks: int = 100
    """held-out tasks of an evaluation while training, the same each time"""
    checkpoint_every: int = 500
    """iterations between checkpoints"""
    log_every: int = 10
    """iterations that are averaged to one line of metrics.jsonl"""

    def __post_init__(self) -> None:
        """Raise `UsageError` for values that cannot train."""
        counts = ("iterations", "evaluation_tasks", "checkpoint_every", "log_every")
        require_positive(self, counts, "fewshot")
        others = ("seed", "evaluate_every", "train_ways", "train_shots", "train_queries")
        require_between(self, others, "fewshot", 0)
        _ = self.protocol, self.train_protocol

    @property
    def protocol(self) -> Protocol:
        """How many points the tasks have that it is judged by."""
        return Protocol(self.ways, self.shots, self.queries)

    @property
    def train_protocol(self) -> Protocol:
        """How many points the tasks have that it learns from."""
        return Protocol(
            self.train_ways or self.ways,
            self.train_shots or self.shots,
            self.train_queries or self.queries,
        )


@dataclass(frozen=True)
class Learned:
    """What `train_learner` leaves behind."""

    counters: Counters = field(default_factory=Counters)
    """how far it came"""
    figures: Mapping[str, float] = field(default_factory=dict)
    """what the last iterations reported"""


def check_fits(learner: Learner, data: Data, config: FewShotTraining) -> None:
    """Raise `UsageError` unless `learner` can be trained and judged on such tasks of `data`."""
    if learner.spec.kind != "classification":
        return
    ways, train_ways = config.protocol.ways, config.train_protocol.ways
    if learner.fixed_ways and train_ways != ways:
        raise UsageError(
            f"fewshot: {type(learner).__name__} has an output for each way and cannot be trained "
            f"on {train_ways} ways to be judged on {ways}; give it no --train-ways"
        )
    data.spec(config.train_protocol)


def train_learner(
    learner: Learner,
    data: Data,
    run: RunFolder,
    config: FewShotTraining,
    *,
    resume: bool = False,
) -> Learned:
    """Meta-train `learner` on `data` for all iterations.

    Args:
        learner: freshly built; it is loaded from the run's checkpoint when resuming.
        data: where the tasks are drawn from.
        run: where to log and save.
        config: iterations, tasks, schedule and seed.
        resume: go on from the last good checkpoint of `run`, from the start if there is none yet.

    Raises:
        Interrupted: SIGINT or SIGTERM arrived; everything is saved.
        TrainingError: a gradient is not finite; the last checkpoint is from before.
        UsageError: the learner does not fit the tasks, the disk is full, or no checkpoint is good.
    """
    check_fits(learner, data, config)
    # The first save keeps which executor was measured to be faster: the two round differently.
    schedule = Schedule(
        config.iterations,
        config.seed,
        config.evaluate_every,
        config.checkpoint_every,
        save_first=True,
    )
    trainer = Trainer(_LearnerOnData(learner, data, run, config), run, schedule)
    trainer.run_all(resume)
    return Learned(trainer.counters, trainer.figures)


class _LearnerOnData:
    """A learner as the loop trains it: some iterations at a time."""

    unit: ClassVar[str] = "iteration"

    def __init__(
        self, learner: Learner, data: Data, run: RunFolder, config: FewShotTraining
    ) -> None:
        self.learner, self.data, self.run, self.config = learner, data, run, config

    def iterate(self, done: int) -> dict[str, float]:
        """Iterations up to the next line of the log; their mean figures."""
        config = self.config
        count = min(config.log_every - done % config.log_every, config.iterations - done)
        rows = [
            self.learner.train_step(self.data, config.train_protocol, k / config.iterations)
            for k in range(done, done + count)
        ]
        means = {name: sum(row[name] for row in rows) / count for name in rows[0]}
        return {"steps": count, "iterations": count, **means}

    def describe(self, figures: Mapping[str, float]) -> str:
        """The loss."""
        return f"loss {figures.get('loss', float('nan')):.3f}"

    def evaluate(self, done: int) -> dict[str, list[float]]:
        """Scores on held-out tasks by step of adaptation."""
        with untouched_global_generators():
            scores = judge(self.learner, self.data, self.config, self.config.evaluation_tasks)
        scores.save(self.run.evaluation / f"step-{done:09d}.json")
        return {f"evaluation/{name}": x.mean for name, x in scores.summary().items()}

    def states(self) -> dict[str, State]:
        """The learner's."""
        return {"learner": self.learner.state_dict()}

    def load_states(self, states: Mapping[str, State]) -> None:
        """Go on from what was saved."""
        self.learner.load_state_dict(states["learner"])

    def streams(self) -> Mapping[str, Stream]:
        """None."""
        return {}


def judge(learner: Learner, data: Data, config: FewShotTraining, tasks: int, **info: Any) -> Scores:
    """Evaluate on held-out tasks that depend on nothing but the data and the protocol."""
    return evaluate(learner, data, config.protocol, tasks, SEED_OF_EVALUATION, info=info)

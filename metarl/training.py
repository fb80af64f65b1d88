"""The trainer of agents in worlds: a budget in environment steps, evaluations on held-out tasks.

The loop itself, with logs, checkpoints and exact resumption, is `metarl.trainer`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import ClassVar

import torch

from metarl.acceleration import (
    Acceleration,
    Precision,
    deterministic_kernels,
    require_allowed,
)
from metarl.adaptation import AdaptationCurve, evaluate
from metarl.checkpoint import list_checkpoints
from metarl.configs import NEWER
from metarl.devices import OutOfMemory, Room
from metarl.errors import UsageError, require_between, require_positive
from metarl.generators import untouched_global_generators
from metarl.policy import Agent, worlds_per_task
from metarl.runs import RunFolder
from metarl.states import State, Stream
from metarl.tasks import Family, Split
from metarl.trainer import Counters, Schedule, Trainer

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
    compile: bool = field(default=False, metadata=NEWER)
    """let torch compile what the agent acts and learns by, for a GPU as CUDA graphs; it is checked
    against what is not compiled, takes up to some minutes at first, and on a CPU gains nothing"""
    precision: Precision = field(default="float32", metadata=NEWER)
    """how products of matrices are rounded while training: tf32 rounds their factors on a GPU that
    can; bfloat16 rounds more, but only while learning, neither in memories nor in actions"""
    deterministic_kernels: bool = field(default=False, metadata=NEWER)
    """use slower kernels of torch, which on a GPU give the same bits every time, as a CPU does
    anyway; robots that MuJoCo Warp simulates there differ all the same, by roundings at first"""

    def __post_init__(self) -> None:
        """Raise `UsageError` for values that cannot train."""
        counts = ("total_steps", "num_worlds", "evaluation_tasks", "checkpoint_every")
        require_positive(self, counts, "training")
        require_between(self, ("seed", "evaluate_every"), "training", 0)


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
        UsageError: the disk or a memory is full, no checkpoint is good or fits, or the agent cannot
            be compiled or trained with the precision that is asked for.
    """
    require_allowed(agent, config.compile, config.precision)
    schedule = Schedule(
        config.total_steps, config.seed, config.evaluate_every, config.checkpoint_every
    )
    room = Room(device, config.num_worlds, 1, "--num-worlds")
    with deterministic_kernels(config.deterministic_kernels), _resumable(run), room.watched():
        trainee = _AgentInWorlds(agent, family, run, config, torch.device(device), threads)
        trainer = Trainer(trainee, run, schedule)
        try:
            trainer.run_all(resume)
        finally:
            trainee.env.close()
    return Training(trainer.counters, trainer.figures, trainee.curve)


@contextmanager
def _resumable(run: RunFolder) -> Iterator[None]:
    """Within the context, whoever hears that a memory is full also hears what is saved."""
    try:
        yield
    except OutOfMemory as error:
        saved = list_checkpoints(run.checkpoints)
        then = "nothing was saved yet"
        if saved:
            then = f"where more is free, --resume goes on from {saved[0]}"
        raise OutOfMemory(f"{error}; {then}") from error


class _AgentInWorlds:
    """An agent as the loop trains it."""

    unit: ClassVar[str] = "step"

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
        self.acceleration = Acceleration(config.compile, config.precision, device)
        self.env = family.make_worlds(
            config.num_worlds, device=device, seed=config.seed, threads=threads
        )
        self.env.dump_unstable_to(run.path / "unstable")
        self.curve: AdaptationCurve | None = None

    def iterate(self, done: int) -> dict[str, float]:
        """One iteration of the agent."""
        with self.acceleration.in_force():
            return self.agent.train_step(self.env, done / self.config.total_steps)

    def describe(self, figures: Mapping[str, float]) -> str:
        """The returns of the first and the last episode."""
        first, last = (figures.get(f"return_{which}", float("nan")) for which in ("first", "last"))
        return f"return {first:.2f} -> {last:.2f}"

    def evaluate(self, done: int) -> dict[str, list[float]]:
        """Evaluate on held-out tasks; the curve by episode."""
        self.curve = self._evaluate(done)
        summary = asdict(self.curve.summary())
        success = self.curve.success_summary()
        if success is not None:
            summary["success"] = success.mean
        # Under names that do not mix with those of training.
        return {f"evaluation/{name}": values for name, values in summary.items()}

    def _evaluate(self, steps: int) -> AdaptationCurve:
        """Run trials in worlds made anew, so that every evaluation meets the same luck."""
        config = self.config
        seed = config.seed + _SEED_OF_EVALUATION
        split: Split = "held-out" if "held-out" in self.family.splits else "train"
        info = {**self.run.labels, "split": split, "seed": seed, "steps": steps}
        each = info["worlds_per_task"] = worlds_per_task(self.agent)
        generator = torch.Generator().manual_seed(seed)
        tasks = self.family.sample_tasks(config.evaluation_tasks, split, generator)
        room = Room(self.device, len(tasks), each, "--evaluation-tasks")
        with untouched_global_generators(), room.watched():
            env = self.family.make_worlds(
                len(tasks) * each, device=self.device, seed=seed, threads=self.threads
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

    def states(self) -> dict[str, State]:
        """The agent and its worlds."""
        return {"agent": self.agent.state_dict(), "env": self.env.state_dict()}

    def load_states(self, states: Mapping[str, State]) -> None:
        """Go on from what was saved."""
        agent, env = states["agent"], states["env"]
        self.agent.load_state_dict(agent)
        self.env.load_state_dict(env)

    def streams(self) -> Mapping[str, Stream]:
        """Replay."""
        return self.agent.buffers()

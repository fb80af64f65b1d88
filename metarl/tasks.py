"""Tasks, batches of tasks, and families: distributions over tasks with the worlds that run them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, ClassVar, Literal, Self, get_args

import gymnasium as gym
import torch
from torch import Tensor

from metarl.errors import UsageError
from metarl.vector import VectorEnv

if TYPE_CHECKING:
    from metarl.rollout import Rollout

Split = Literal["train", "held-out", "out-of-range", "nominal"]
SPLITS: tuple[Split, ...] = get_args(Split)
TaskKind = Literal["continuous", "one-hot", "unknown"]
RewardSite = Literal["none", "next-obs", "action"]

STRIPES = 1000
"""Into how many stripes `striped` cuts an interval."""
HELD_OUT_EVERY = 5
"""Every fifth stripe is held out."""


@dataclass(frozen=True)
class TaskBatch:
    """The parameters of N tasks; subclasses declare tensors `[N, ...]` and name their units."""

    def tensors(self) -> dict[str, Tensor]:
        """The fields by name, each `[N, ...]`."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def _map(self, **changed: Tensor) -> Self:
        return type(self)(**changed)

    def __len__(self) -> int:
        """N, the number of tasks."""
        return len(next(iter(self.tensors().values())))

    def __getitem__(self, index: Tensor | slice | Sequence[int]) -> Self:
        """The tasks that `index` selects, still with a leading task dimension."""
        return self._map(**{name: x[index] for name, x in self.tensors().items()})

    def to(self, device: torch.device | str) -> Self:
        """The same tasks on `device`."""
        return self._map(**{name: x.to(device) for name, x in self.tensors().items()})

    def repeat_interleave(self, repeats: int) -> Self:
        """Each task `repeats` times in a row: task-major, as vector envs lay out their worlds."""
        return self._map(
            **{name: x.repeat_interleave(repeats, dim=0) for name, x in self.tensors().items()}
        )

    def replace_where(self, mask: Tensor, other: Self) -> Self:
        """Take `other`'s task wherever `mask` `[N]` is true."""
        mine, theirs = self.tensors(), other.tensors()
        return self._map(
            **{
                name: torch.where(mask.view(-1, *[1] * (x.dim() - 1)), theirs[name], x)
                for name, x in mine.items()
            }
        )

    @classmethod
    def concatenate(cls, batches: Sequence[Self]) -> Self:
        """One batch with the tasks of all `batches`, in order."""
        parts = [batch.tensors() for batch in batches]
        return cls(**{name: torch.cat([part[name] for part in parts]) for name in parts[0]})

    def features(self) -> Tensor:
        """What an oracle is told: all fields flattened, float32 `[N, F]`."""
        parts = [x.unsqueeze(-1).flatten(1).float() for x in self.tensors().values()]
        return torch.cat(parts, dim=-1)


def striped(u: Tensor, split: Split) -> Tensor:
    """Map uniform numbers into the stripes of [0, 1) that belong to `split`.

    [0, 1) is cut into 1000 stripes of which every fifth is held out, so that continuous train and
    held-out tasks are disjoint by construction while both stay uniform to within a stripe.

    Args:
        u: float64 `[N]` in [0, 1).
        split: "train" or "held-out".

    Returns:
        float64 `[N]` in [0, 1), inside the stripes of the split.
    """
    per_group = 1 if split == "held-out" else HELD_OUT_EVERY - 1
    scaled = u * (STRIPES // HELD_OUT_EVERY * per_group)
    index = scaled.floor()
    group, within_group = (index / per_group).floor(), index % per_group
    offset = HELD_OUT_EVERY - 1 if split == "held-out" else 0
    # Keep off the stripe's edges, where rounding to float32 would reach the neighbour.
    within_stripe = 1e-3 + (1.0 - 2e-3) * (scaled - index)
    return (group * HELD_OUT_EVERY + within_group + offset + within_stripe) / STRIPES


@dataclass(frozen=True)
class Spec:
    """What an agent needs to know of a family, with or without a simulator."""

    observation_space: gym.spaces.Box
    action_space: gym.spaces.Box | gym.spaces.Discrete
    task_dim: int
    """F, features that describe a task to a privileged critic"""
    episodes: int
    """K, episodes per trial"""
    horizon: int
    """H, steps per episode"""
    task_kind: TaskKind = "unknown"
    """what the features of a task are, for those who predict them"""
    reward_site: RewardSite = "none"
    """which one-hot vector alone decides, in a given task, about a reward with two values"""

    @property
    def obs_dim(self) -> int:
        """O, the length of an observation."""
        return int(self.observation_space.low.size)


@dataclass(frozen=True)
class Family(ABC):
    """A distribution over tasks and the worlds that can run them; the fields are its options."""

    name: ClassVar[str]
    splits: ClassVar[tuple[Split, ...]] = ("train", "held-out")
    shared_splits: ClassVar[bool] = False
    """True where the published protocol tests on the very tasks that it trains on."""
    task_kind: ClassVar[TaskKind] = "unknown"
    """What the features of a task are: numbers, one choice of several, or something else."""
    episodes: int
    """episodes per trial, K"""
    horizon: int
    """steps after which an episode is truncated, H"""

    def __post_init__(self) -> None:
        """Check the options; subclasses with more of them extend this."""
        self.require_count("episodes", self.episodes)
        self.require_count("horizon", self.horizon)

    @property
    @abstractmethod
    def observation_space(self) -> gym.spaces.Box:
        """What one world shows: a float32 vector `[O]`."""

    @property
    @abstractmethod
    def action_space(self) -> gym.spaces.Box | gym.spaces.Discrete:
        """What one world takes: a float32 vector `[A]`, or an integer."""

    @abstractmethod
    def sample_tasks(self, n: int, split: Split, generator: torch.Generator) -> TaskBatch:
        """Draw `n` tasks of `split`; the same generator state gives the same tasks."""

    @abstractmethod
    def make_worlds(
        self,
        num_worlds: int,
        *,
        device: torch.device | str = "cpu",
        seed: int = 0,
        threads: int = 1,
    ) -> VectorEnv:
        """Build `num_worlds` worlds that step together; `threads` is for families with physics."""

    def require_device(self, device: torch.device) -> None:  # noqa: B027  most need nothing
        """Raise `UsageError` if the worlds need more of `device` than torch does."""

    @property
    def reward_site(self) -> RewardSite:
        """Which one-hot vector decides, in a given task, whether a reward is high or low.

        The reward has two values, the high one above 0; `none` where it is not so.
        """
        return "none"

    def figures(self, rollout: Rollout) -> dict[str, float]:
        """Further figures of trials, by name, that are of interest for this family alone."""
        return {}

    @property
    def task_dim(self) -> int:
        """F, the number of features that describe a task to an oracle."""
        return self.sample_tasks(1, "train", torch.Generator()).features().shape[-1]

    def spec(self) -> Spec:
        """The spaces and sizes that an agent is built from."""
        return Spec(
            self.observation_space,
            self.action_space,
            self.task_dim,
            self.episodes,
            self.horizon,
            self.task_kind,
            self.reward_site,
        )

    def require_count(self, option: str, value: object, least: int = 1) -> None:
        """Raise `UsageError` unless the option `value` is a whole number of at least `least`."""
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise UsageError(
                f"family {self.name}: {option} must be a whole number of at least {least}, "
                f"got {value!r}"
            )

    def check_split(self, split: str) -> None:
        """Raise `UsageError` unless this family has `split`."""
        if split not in self.splits:
            raise UsageError(
                f"family {self.name} has no split {split!r}; choose from {', '.join(self.splits)}"
            )

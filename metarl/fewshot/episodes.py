"""Few-shot tasks as tensors: support and query points, and where they are drawn from.

Shapes: `B` tasks, `M` points of a task (`S` support, `Q` query), `X...` one input, `D` outputs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from metarl.errors import UsageError, require_positive

Kind = Literal["classification", "regression"]
Split = Literal["train", "held-out"]


@dataclass(frozen=True)
class Points:
    """Labelled inputs of B tasks."""

    x: Tensor
    """float `[B, M, X...]`"""
    y: Tensor
    """int64 `[B, M]` classes 0..ways-1, or float `[B, M, D]` values"""

    @property
    def tasks(self) -> int:
        """B."""
        return len(self.x)

    @property
    def ways(self) -> int:
        """How many classes the labels name; every one of them is in a support set."""
        return int(self.y.max()) + 1

    def __getitem__(self, index: slice | Tensor) -> Points:
        """Some of the tasks."""
        return Points(self.x[index], self.y[index])

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Points:
        """On another device, or with other floats; labels stay integers."""
        y = self.y.to(device, dtype if self.y.is_floating_point() else None)
        return Points(self.x.to(device, dtype), y)

    def split(self, first: int) -> tuple[Points, Points]:
        """The first points of every task, and the rest."""
        return Points(self.x[:, :first], self.y[:, :first]), Points(
            self.x[:, first:], self.y[:, first:]
        )

    def permuted(self, generator: torch.Generator) -> Points:
        """In a new random order within each task, for learners that read them as a sequence."""
        order = torch.rand(self.x.shape[:2], generator=generator).argsort(1).to(self.x.device)
        rows = torch.arange(self.tasks, device=self.x.device).unsqueeze(1)
        return Points(self.x[rows, order], self.y[rows, order])


@dataclass(frozen=True)
class Episodes:
    """B tasks, each with points to adapt to and points to be judged by."""

    support: Points
    query: Points
    tasks: Mapping[str, Tensor] = field(default_factory=dict)
    """what defines each task, `[B, ...]`, where the data know it: amplitude, phase, class names"""

    def __len__(self) -> int:
        """B."""
        return self.support.tasks

    def __getitem__(self, index: slice | Tensor) -> Episodes:
        """Some of the tasks."""
        tasks = {name: value[index] for name, value in self.tasks.items()}
        return Episodes(self.support[index], self.query[index], tasks)

    def chunks(self, size: int) -> Iterator[Episodes]:
        """The tasks in order, at most `size` at a time."""
        for start in range(0, len(self), size):
            yield self[start : start + size]

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Episodes:
        """On another device, or with other floats."""
        tasks = {name: value.to(device) for name, value in self.tasks.items()}
        return Episodes(self.support.to(device, dtype), self.query.to(device, dtype), tasks)


@dataclass(frozen=True)
class Protocol:
    """How many points a task has."""

    ways: int = 5
    """classes of a task; without meaning for regression"""
    shots: int = 1
    """support points of each class, or of a regression task"""
    queries: int = 15
    """query points of each class, or of a regression task"""

    def __post_init__(self) -> None:
        """Raise `UsageError` for counts that make no task."""
        require_positive(self, ("ways", "shots", "queries"), "fewshot")
        if self.ways < 2:
            raise UsageError(f"fewshot: ways must be at least 2, got {self.ways}")


@dataclass(frozen=True)
class TaskSpec:
    """What a learner has to know before it sees a task."""

    kind: Kind
    input_shape: tuple[int, ...]
    """X: `(1,)` for curves, `(channels, height, width)` for images"""
    outputs: int
    """D of a regression, or the number of ways"""


class Data(ABC):
    """A distribution over few-shot tasks; a frozen dataclass, whose fields are its options."""

    name: ClassVar[str]
    kind: ClassVar[Kind]

    @abstractmethod
    def spec(self, protocol: Protocol) -> TaskSpec:
        """Shapes of the tasks.

        Raises:
            UsageError: if there are fewer classes, or images of a class, than `protocol` asks for.
        """

    @abstractmethod
    def episodes(
        self, protocol: Protocol, tasks: int, split: Split, generator: torch.Generator
    ) -> Episodes:
        """Draw `tasks` tasks with support and query points, on the CPU.

        Pure: the same generator state gives the same episodes. Train and held-out classes, or
        functions, are disjoint. Classification labels are 0..ways-1, grouped by class, in an order
        of the classes that is random for each task.
        """


class ImageData(Data):
    """Classes of images, for classification."""

    kind: ClassVar[Kind] = "classification"

    @abstractmethod
    def classes(self, split: Split) -> int:
        """How many classes `split` has, rotations among them where they count as classes."""

    @abstractmethod
    def batch(self, size: int, split: Split, generator: torch.Generator) -> Points:
        """Images of random classes for plain training: x `[1, size, X...]`, y `[1, size]`.

        The labels are those of the whole split, 0..`classes(split)`-1.
        """


class CurveData(Data):
    """Random functions, for regression."""

    kind: ClassVar[Kind] = "regression"

    @abstractmethod
    def truth(self, tasks: Mapping[str, Tensor], x: Tensor) -> Tensor | None:
        """The values of the functions `tasks` at `x` `[B, M, X...]`: `[B, M, D]`.

        None where only the points that were drawn are known.
        """

"""Classes of images held in memory as tensors, from which episodes are drawn by indexing.

A whole batch of episodes is drawn at once: a few random numbers pick classes and images, one
indexing operation fetches them. Images are kept as bytes and become floats when they are drawn.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from metarl.errors import UsageError
from metarl.fewshot.episodes import Episodes, ImageData, Points, Protocol, Split, TaskSpec

SPLITS: tuple[Split, Split] = ("train", "held-out")
QUARTERS = 4
"""rotations by 90 degrees that count as classes of their own"""


@dataclass(frozen=True)
class LabelledImages:
    """The images of some classes; classes may have unequal numbers of them."""

    images: Tensor
    """uint8 `[images, C, H, W]`, class after class"""
    counts: Tensor
    """int64 `[classes]`, how many images each class has"""
    names: Sequence[str]
    """one for each class"""

    @cached_property
    def first(self) -> Tensor:
        """int64 `[classes]`, where the images of each class begin."""
        return self.counts.cumsum(0) - self.counts

    @classmethod
    def stacked(cls, images: Tensor, names: Sequence[str]) -> LabelledImages:
        """From classes of equal size, uint8 `[classes, samples, C, H, W]`."""
        counts = torch.full((len(images),), images.shape[1], dtype=torch.int64)
        return cls(images.flatten(0, 1), counts, names)

    def subset(self, classes: Tensor) -> LabelledImages:
        """Some of the classes, by their indices `[n]`, in that order."""
        each, chosen = self.images.split(self.counts.tolist()), classes.tolist()
        return LabelledImages(
            torch.cat([each[k] for k in chosen]),
            self.counts[classes],
            [self.names[k] for k in chosen],
        )

    def __len__(self) -> int:
        """How many classes there are, rotations not counted."""
        return len(self.counts)


def shuffled_split(
    everything: LabelledImages, train: int, seed: int, name: str
) -> dict[Split, LabelledImages]:
    """`train` classes to learn from and all others to be judged by, in an order that `seed` gives.

    Raises:
        UsageError: if nothing would be left to be judged by.
    """
    if train >= len(everything):
        raise UsageError(
            f"{name}: {train} classes to learn from leave none of the {len(everything)} to be held "
            "out"
        )
    order = torch.randperm(len(everything), generator=torch.Generator().manual_seed(seed))
    return {"train": everything.subset(order[:train]), "held-out": everything.subset(order[train:])}


class InMemoryImages(ImageData):
    """Image data that keep the images of both splits in memory.

    A subclass is a frozen dataclass of options that says how to `load` them; that happens once,
    when they are first asked for.
    """

    rotations: bool
    """whether every class, turned by 90, 180 and 270 degrees, makes three more classes"""

    @abstractmethod
    def load(self) -> Mapping[Split, LabelledImages]:
        """The images of both splits, all of one shape; square ones where they are turned.

        Raises:
            UsageError: if they cannot be had.
        """

    @cached_property
    def splits(self) -> Mapping[Split, LabelledImages]:
        """What `load` gave.

        Raises:
            UsageError: if images that are not square are to be turned.
        """
        splits = self.load()
        height, width = splits["train"].images.shape[-2:]
        if self.rotations and height != width:
            raise UsageError(
                f"{self.name}: only square images can be turned, these are {height} high and "
                f"{width} wide; ask for no rotations"
            )
        return splits

    def classes(self, split: Split) -> int:
        """How many classes `split` has, rotations among them where they count as classes."""
        return len(self.splits[split]) * (QUARTERS if self.rotations else 1)

    def spec(self, protocol: Protocol) -> TaskSpec:
        """The shape of the images, and the number of ways."""
        for split in SPLITS:
            self._check(protocol, split)
        return TaskSpec(self.kind, tuple(self.splits["train"].images.shape[1:]), protocol.ways)

    def episodes(
        self, protocol: Protocol, tasks: int, split: Split, generator: torch.Generator
    ) -> Episodes:
        """Draw classes without replacement, and images of each without replacement.

        Images are floats in [0, 1]. `tasks["classes"]` `[B, ways]` says which classes of the split
        the labels stand for.

        Raises:
            UsageError: if there are fewer classes, or images of a class, than `protocol` asks for.
        """
        self._check(protocol, split)
        each = protocol.shots + protocol.queries
        order = torch.rand(tasks, self.classes(split), generator=generator)
        chosen = order.topk(protocol.ways).indices
        counts = self.splits[split].counts
        size = counts[chosen % len(counts)].unsqueeze(-1)
        order = torch.rand(tasks, protocol.ways, int(counts.max()), generator=generator)
        beyond = torch.arange(order.shape[-1]) >= size
        sample = order.masked_fill(beyond, -1.0).topk(each).indices
        x = self._images(split, chosen.unsqueeze(-1).expand_as(sample), sample)
        y = torch.arange(protocol.ways).unsqueeze(-1).expand_as(sample)
        shots = protocol.shots
        support = Points(x[:, :, :shots].flatten(1, 2), y[:, :, :shots].flatten(1))
        query = Points(x[:, :, shots:].flatten(1, 2), y[:, :, shots:].flatten(1))
        return Episodes(support, query, {"classes": chosen})

    def batch(self, size: int, split: Split, generator: torch.Generator) -> Points:
        """Images of random classes for plain training: x `[1, size, X...]`, y `[1, size]`."""
        y = torch.randint(self.classes(split), (size,), generator=generator)
        counts = self.splits[split].counts[y % len(self.splits[split])]
        # Below 1 in float64, so that no product rounds up to the count.
        place = torch.rand(size, generator=generator, dtype=torch.float64)
        x = self._images(split, y, (place * counts).long())
        return Points(x.unsqueeze(0), y.unsqueeze(0))

    def _images(self, split: Split, classes: Tensor, samples: Tensor) -> Tensor:
        """Images by class and place in the class `[...]`: float `[..., C, H, W]` in [0, 1]."""
        source = self.splits[split]
        base = classes % len(source)
        x = source.images[source.first[base] + samples]
        quarters = classes // len(source)
        for k in range(1, QUARTERS if self.rotations else 1):
            turned = quarters == k
            x[turned] = x[turned].rot90(k, (-2, -1))
        return x.float() / 255.0

    def _check(self, protocol: Protocol, split: Split) -> None:
        """Raise `UsageError` unless `split` has the classes and images `protocol` asks for."""
        source, classes = self.splits[split], self.classes(split)
        if classes < protocol.ways:
            raise UsageError(
                f"{self.name}: the {split} split has {classes} classes, and tasks of "
                f"{protocol.ways} ways need as many"
            )
        each = protocol.shots + protocol.queries
        fewest = int(source.counts.argmin())
        if source.counts[fewest] < each:
            raise UsageError(
                f"{self.name}: the class {source.names[fewest]!r} of the {split} split has "
                f"{int(source.counts[fewest])} images, and {protocol.shots} shots with "
                f"{protocol.queries} queries need {each}"
            )

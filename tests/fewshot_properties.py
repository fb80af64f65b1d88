"""Small tasks, and what must hold of every learner that maps a support set to predictions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from metarl.fewshot.episodes import Data, Episodes, Points, TaskSpec

SIZE = 8


@dataclass(frozen=True)
class Blobs(Data):
    """Classes are points in space, drawn anew for each task, with noise around them."""

    name: ClassVar[str] = "blobs"
    kind: ClassVar[str] = "classification"

    noise: float = 0.4
    shape: tuple[int, ...] = (SIZE,)

    def spec(self, protocol):
        return TaskSpec("classification", self.shape, protocol.ways)

    def episodes(self, protocol, tasks, split, generator):
        each = protocol.shots + protocol.queries
        centre = torch.randn(tasks, protocol.ways, 1, *self.shape, generator=generator)
        around = torch.randn(tasks, protocol.ways, each, *self.shape, generator=generator)
        x = centre + self.noise * around
        y = torch.arange(protocol.ways).view(1, -1, 1).expand(x.shape[:3])
        shots = protocol.shots
        return Episodes(
            Points(x[:, :, :shots].flatten(1, 2), y[:, :, :shots].flatten(1)),
            Points(x[:, :, shots:].flatten(1, 2), y[:, :, shots:].flatten(1)),
        )


@dataclass(frozen=True)
class Levels(Data):
    """Functions that are constant, with variance 1; what is not adapted has an error of 1."""

    name: ClassVar[str] = "levels"
    kind: ClassVar[str] = "regression"

    shape: tuple[int, ...] = (1,)

    def spec(self, protocol):
        return TaskSpec("regression", self.shape, 1)

    def episodes(self, protocol, tasks, split, generator):
        count = protocol.shots + protocol.queries
        x = torch.randn(tasks, count, *self.shape, generator=generator)
        y = torch.randn(tasks, 1, 1, generator=generator).expand(tasks, count, 1)
        return Episodes(*Points(x, y).split(protocol.shots))


def drawn(data, protocol, tasks, seed=0):
    """Held-out episodes in float64."""
    generator = torch.Generator().manual_seed(seed)
    return data.episodes(protocol, tasks, "held-out", generator).to(dtype=torch.float64)


def shaken(learner, scale=0.1):
    """The learner in float64 with no weight left at a neutral start, and as it is in use."""
    generator = torch.Generator().manual_seed(1)
    learner.network.double().eval()
    with torch.no_grad():
        for parameter in learner.network.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(scale * noise)
    return learner


def assert_tasks_are_independent(learner, episodes):
    """What a task gets depends on that task only."""
    together = learner.predict(episodes).value
    for k in range(len(episodes)):
        alone = learner.predict(episodes[k : k + 1]).value
        torch.testing.assert_close(together[k : k + 1], alone, rtol=1e-9, atol=1e-10)
    assert not torch.allclose(together[0], together[1])


def assert_queries_are_independent(learner, episodes):
    """What a query gets depends on the support set and on that query only."""
    together = learner.predict(episodes).value
    for k in range(episodes.query.x.shape[1]):
        query = Points(episodes.query.x[:, k : k + 1], episodes.query.y[:, k : k + 1])
        alone = learner.predict(Episodes(episodes.support, query)).value
        torch.testing.assert_close(together[:, k : k + 1], alone, rtol=1e-9, atol=1e-10)
    assert not torch.allclose(together[:, 0], together[:, -1])


def assert_goes_on_from_its_state(make, data, protocol):
    """A learner restored from a state continues bit for bit as the one it was taken from."""
    first = make(0)
    first.train_step(data, protocol, 0.0)
    second = make(7)
    second.load_state_dict(first.state_dict())
    for _ in range(2):
        expected = first.train_step(data, protocol, 0.5)
        assert second.train_step(data, protocol, 0.5) == expected
    for a, b in zip(first.network.parameters(), second.network.parameters(), strict=True):
        assert torch.equal(a, b)


def train(learner, data, protocol, iterations):
    """Meta-train, and return the accuracy, or the squared error, on held-out tasks."""
    for k in range(iterations):
        learner.train_step(data, protocol, k / iterations)
    generator = torch.Generator().manual_seed(3)
    episodes = data.episodes(protocol, 200, "held-out", generator)
    value, y = learner.predict(episodes).value, episodes.query.y
    if y.is_floating_point():
        return float((value - y).square().mean())
    return float((value.argmax(-1) == y).float().mean())

"""How well a learner does on tasks that it has never seen, by step of adaptation."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metarl.errors import UsageError
from metarl.fewshot.episodes import Data, Episodes, Kind, Protocol, TaskSpec
from metarl.fewshot.learner import Learner, Prediction, gaussian_log_likelihood
from metarl.logs import json_value
from metarl.statistics import stratified_bootstrap

Array = NDArray[np.float64]

_NUMBERS_AT_ONCE = 2**20
"""inputs of the tasks that are adapted to together, so that memory stays bounded"""
_TASKS_AT_ONCE = 250


@dataclass(frozen=True)
class Interval:
    """Means over tasks with their 95 % intervals, by step of adaptation."""

    mean: list[float]
    low: list[float]
    high: list[float]

    @classmethod
    def of(cls, strata: Array) -> Self:
        """Of scores `[seeds, tasks, ...]`, resampling the tasks of each seed."""
        low, high = stratified_bootstrap(strata)
        return cls(strata.mean(axis=(0, 1)).tolist(), low.tolist(), high.tolist())


@dataclass(frozen=True)
class Scores:
    """What came of each task."""

    kind: Kind
    """what the tasks are"""
    steps: tuple[int, ...]
    """after how many steps of adaptation; the last one counts"""
    values: Mapping[str, list[list[float]]]
    """`accuracy`, or `mse` and where there is a spread `log_likelihood`: `[tasks, steps]`"""
    oracle: Mapping[str, list[float]] = field(default_factory=dict)
    """the same `[tasks]` of the exact posterior, where the data have one"""
    info: Mapping[str, Any] = field(default_factory=dict)
    """how it was measured: ways, shots, queries, split, seed, ..."""

    @property
    def metric(self) -> str:
        """What counts: `accuracy`, where more is better, or `mse`, where less is."""
        return "accuracy" if self.kind == "classification" else "mse"

    def summary(self) -> dict[str, Interval]:
        """Means and intervals by the name of the score."""
        return summarize([self])

    def oracle_means(self) -> dict[str, float]:
        """What the exact posterior reaches, where there is one."""
        return {name: float(np.mean(values)) for name, values in self.oracle.items()}

    def figures(self) -> dict[str, Any]:
        """Everything that the command line reports, as plain values."""
        summary = {name: vars(interval) for name, interval in self.summary().items()}
        oracle = {"oracle": self.oracle_means()} if self.oracle else {}
        return {**self.info, "steps": list(self.steps), **summary, **oracle}

    def save(self, path: Path) -> None:
        """Write everything to `path` as JSON.

        Raises:
            UsageError: if it cannot be written.
        """
        plain = {**vars(self), "summary": self.figures()}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(json_value(plain), allow_nan=False) + "\n", encoding="utf-8")
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error.strerror}") from error

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            UsageError: if it cannot be read or is something else.
        """
        try:
            plain = json.loads(path.read_text(encoding="utf-8"))
            values = {name: _numbers(rows) for name, rows in plain["values"].items()}
            oracle = {name: _numbers(row) for name, row in plain["oracle"].items()}
            return cls(plain["kind"], tuple(plain["steps"]), values, oracle, plain["info"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = " ".join(str(error).split())
            raise UsageError(f"{path} does not hold scores: {reason}") from error


def summarize(seeds: Sequence[Scores]) -> dict[str, Interval]:
    """Means and intervals over the tasks of several training seeds, each of them a stratum."""
    names = seeds[0].values
    return {name: Interval.of(np.asarray([s.values[name] for s in seeds])) for name in names}


def evaluate(
    learner: Learner,
    data: Data,
    protocol: Protocol,
    tasks: int,
    seed: int,
    *,
    steps: Sequence[int] = (),
    info: Mapping[str, Any] | None = None,
) -> Scores:
    """Adapt to held-out tasks and judge the predictions for their query points.

    The same seed gives the same tasks to every learner. The learner is left as it was.

    Args:
        learner: what adapts, after 0, 1, ... steps as its `steps_shown` says.
        data: where the tasks are from.
        protocol: how many points they have.
        tasks: how many.
        seed: of the tasks, and of the learner's own luck.
        steps: after how many steps to judge, in place of the learner's `steps_shown`.
        info: what else to note beside the scores.
    """
    judged = tuple(steps) or learner.steps_shown
    generator = torch.Generator().manual_seed(seed)
    size = tasks_at_once(data.spec(protocol), protocol)
    rows: dict[str, list[Tensor]] = {}
    oracle: dict[str, list[Tensor]] = {}
    with own_luck(learner, seed):
        for start in range(0, tasks, size):
            count = min(size, tasks - start)
            episodes = data.episodes(protocol, count, "held-out", generator)
            for name, found in _oracle_scores(data, episodes).items():
                oracle.setdefault(name, []).append(found)
            for name, found in _scores_by_step(learner, episodes, judged).items():
                rows.setdefault(name, []).append(found)
    return Scores(
        data.kind,
        tuple(judged),
        {name: torch.cat(parts).tolist() for name, parts in rows.items()},
        {name: torch.cat(parts).tolist() for name, parts in oracle.items()},
        {**vars(protocol), "split": "held-out", "tasks": tasks, "seed": seed, **(info or {})},
    )


def tasks_at_once(spec: TaskSpec, protocol: Protocol) -> int:
    """How many tasks are adapted to together; it depends on nothing but their size."""
    ways = protocol.ways if spec.kind == "classification" else 1
    numbers = ways * (protocol.shots + protocol.queries) * math.prod(spec.input_shape)
    return max(1, min(_TASKS_AT_ONCE, _NUMBERS_AT_ONCE // numbers))


def scores(prediction: Prediction, y: Tensor) -> dict[str, Tensor]:
    """Accuracy for labels `[B, Q]`; squared error and log-likelihood for values: `[B]` each."""
    if not y.is_floating_point():
        return {"accuracy": (prediction.value.argmax(-1) == y).double().mean(-1)}
    found = {"mse": (prediction.value - y).double().square().flatten(1).mean(1)}
    if prediction.std is not None:
        found["log_likelihood"] = gaussian_log_likelihood(prediction, y).double().mean(-1)
    return found


def _scores_by_step(
    learner: Learner, episodes: Episodes, steps: Sequence[int]
) -> dict[str, Tensor]:
    """The scores of each task after each number of steps: `[B, steps]`."""
    there = episodes.to(learner.device)
    rows = [scores(learner.predict(there, count), there.query.y) for count in steps]
    return {name: torch.stack([row[name] for row in rows], 1).cpu() for name in rows[0]}


def _oracle_scores(data: Data, episodes: Episodes) -> dict[str, Tensor]:
    """The scores of the exact posterior, where the data have one."""
    posterior = getattr(data, "posterior", None)
    if posterior is None:
        return {}
    best = posterior(episodes.tasks, episodes.support, episodes.query.x)
    return scores(best, episodes.query.y)


@contextmanager
def own_luck(learner: Learner, seed: int) -> Iterator[None]:
    """Let the learner draw from `seed` inside, and go on as if nothing had been drawn after."""
    state = learner.generator.get_state()
    learner.generator.manual_seed(seed)
    try:
        yield
    finally:
        learner.generator.set_state(state)


def _numbers(value: Any) -> Any:
    """Put NaN back where JSON says null."""
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    return math.nan if value is None else float(value)

"""Two things timed beside each other, so that what slows the machine slows them both.

A machine's speed drifts by more than the differences of interest, so ours and the peer are timed in
turn, window by window. The ratio is the median of the ratios of neighbouring windows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from time import perf_counter
from typing import Any

import torch

from metarl.errors import UsageError


@dataclass
class Side:
    """One of the things that are compared."""

    step: Callable[[Any], object]
    """what is timed, with one of `actions`"""
    actions: Sequence[Any] = (None,)
    """what `step` is given, one after the other, over and over"""
    begin: Callable[[], None] = lambda: None
    """runs before every window, not timed"""
    close: Callable[[], None] = lambda: None
    name: str = ""
    """what exactly is compared, where the peer has several modes"""
    steps: int = 0
    """steps per window"""
    rates: list[float] = field(default_factory=list)
    """what a step counts, per second; one number per window"""

    def seconds(self, steps: int) -> float:
        """How long `steps` steps take."""
        _synchronize()
        start = perf_counter()
        for k in range(steps):
            self.step(self.actions[k % len(self.actions)])
        _synchronize()
        return perf_counter() - start


@dataclass(frozen=True)
class Workload:
    """Something to time, with what to compare it with."""

    run: Callable[[], object]
    """what is timed"""
    unit: str
    """runs a second, in words"""
    peers: Mapping[str, Callable[[], Callable[[], object]]]
    """by name, what builds a peer that does the same once for each call"""
    facts: Mapping[str, Any]
    """what it is, for those who read the result"""
    parts: Mapping[str, Callable[[], object]] = field(default_factory=dict)
    """by name, parts of a run whose share of its time is of interest"""
    further: Callable[[int], dict[str, Any]] = lambda windows: {}
    """measures more, as often as there are windows"""


class Stopwatch:
    """Adds up the seconds that are spent in some methods of an object."""

    def __init__(self, owner: object, *methods: str) -> None:
        """Watch `methods` of `owner` from now on."""
        self.seconds = 0.0
        for name in methods:
            setattr(owner, name, self._watched(getattr(owner, name)))

    def _watched(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **options: Any) -> Any:
            _synchronize()
            start = perf_counter()
            result = method(*args, **options)
            _synchronize()
            self.seconds += perf_counter() - start
            return result

        return watched


def _synchronize() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def measure(sides: Sequence[Side], windows: int, seconds: float, per_step: int = 1) -> None:
    """Fill in the rates of `sides`, whose windows alternate; the first windows are not counted.

    Args:
        sides: what is timed.
        windows: how many windows each has.
        seconds: about how long a window is.
        per_step: what a step counts, such as the worlds that it advances.
    """
    for side in sides:
        side.begin()
        side.steps = _steps_for(side, seconds)
    for _ in range(windows):
        for side in sides:
            side.begin()
            side.rates.append(per_step * side.steps / side.seconds(side.steps))


def _steps_for(side: Side, seconds: float) -> int:
    """How many steps take about `seconds`, found by doubling; warms the side up, too."""
    side.seconds(1)
    steps = 1
    while (elapsed := side.seconds(steps)) < seconds / 4:
        steps *= 2
    return max(1, round(steps * seconds / elapsed))


def median_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median of the ratios of neighbouring windows."""
    return median(a / b for a, b in zip(ours, theirs, strict=True))


def check_windows(subject: str, windows: int, seconds: float) -> None:
    """Raise `UsageError` unless these can be measured; `subject` is the benchmark's name."""
    if windows < 1:
        raise UsageError(f"bench {subject}: --windows must be at least 1, got {windows}")
    if not 0 < seconds <= 60:
        raise UsageError(f"bench {subject}: --seconds must lie in (0, 60], got {seconds}")


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Let torch have `threads` threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)

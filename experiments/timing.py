"""Two things timed beside each other, so that what slows the machine slows them both.

A machine's speed drifts by more than the differences of interest, so ours and the peer are timed in
turn, window by window. The ratio is the median of the ratios of neighbouring windows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
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
    per_step: int = 1
    """what a step counts, such as the worlds that it advances"""
    steps: int = 0
    """steps per window"""
    rates: list[float] = field(default_factory=list)
    """what a step counts, per second; one number per window"""

    def seconds(self, steps: int) -> float:
        """How long `steps` steps take."""
        synchronize()
        start = perf_counter()
        for k in range(steps):
            self.step(self.actions[k % len(self.actions)])
        synchronize()
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


class Mark:
    """A moment in the work of the device: of the GPU, if torch has one in use, else of the CPU."""

    def __init__(self) -> None:
        """Mark the end of all that is under way; waits for nothing."""
        self._event: torch.cuda.Event | None = None
        self._now = 0.0
        if torch.cuda.is_initialized():
            self._event = torch.cuda.Event(enable_timing=True)
            self._event.record()
        else:
            self._now = perf_counter()

    def until(self, later: Mark) -> float:
        """Seconds from here to a later mark; `synchronize` comes before."""
        if self._event is None or later._event is None:
            return later._now - self._now
        milliseconds: float = self._event.elapsed_time(later._event)
        return 1e-3 * milliseconds


class Stopwatch:
    """Adds up the seconds that are spent in some methods of an object."""

    def __init__(self, owner: object, *methods: str) -> None:
        """Watch `methods` of `owner` from now on."""
        self._marks: list[tuple[Mark, Mark]] = []
        for name in methods:
            setattr(owner, name, self._watched(getattr(owner, name)))

    @property
    def seconds(self) -> float:
        """The sum since `clear`; waits for the device."""
        synchronize()
        return sum((start.until(end) for start, end in self._marks), 0.0)

    def clear(self) -> None:
        """Begin anew."""
        self._marks.clear()

    def _watched(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **options: Any) -> Any:
            start = Mark()
            result = method(*args, **options)
            self._marks.append((start, Mark()))
            return result

        return watched


def synchronize() -> None:
    """Wait until the GPU has done what was launched, if torch has one in use."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def on_device(device: torch.device) -> AbstractContextManager[object]:
    """Within the context, `device` is the one of several GPUs that is waited for."""
    return torch.cuda.device(device) if device.index else nullcontext()


def measure(sides: Sequence[Side], windows: int, seconds: float) -> None:
    """Fill in the rates of `sides`, whose windows alternate; the first windows are not counted.

    Args:
        sides: what is timed.
        windows: how many windows each has.
        seconds: about how long a window is.
    """
    for side in sides:
        side.begin()
        side.steps = steps_for(side, seconds)
    for _ in range(windows):
        for side in sides:
            side.begin()
            side.rates.append(side.per_step * side.steps / side.seconds(side.steps))


def steps_for(side: Side, seconds: float) -> int:
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

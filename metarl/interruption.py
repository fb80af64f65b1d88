"""Signals that end training politely: finish the iteration, save, and say so."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """A signal ended training after an iteration, and everything was saved."""


@contextmanager
def catch_signals() -> Iterator[list[str]]:
    """Collect the names of SIGINT and SIGTERM that arrive, in the list that is yielded.

    Only the first one is caught; a second one ends the process at once. Outside the main thread,
    where Python does not allow handlers, nothing is caught.
    """
    received: list[str] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def note(number: int, _frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        received.append(name)
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        # Not print: a handler may run in the middle of another write to the same stream.
        os.write(2, f"\n{name}: finishing the iteration; once more stops at once\n".encode())

    previous = {number: signal.signal(number, note) for number in _SIGNALS}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)

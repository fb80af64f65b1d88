"""The logs of a run: `metrics.jsonl`, `timing.jsonl` and TensorBoard events.

Everything is written by the thread that trains, so that a full disk is an error of the training
with one sentence, not of a background thread.
"""

from __future__ import annotations

import fcntl
import io
import json
import math
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from metarl.errors import UsageError


class RunLog:
    """The logs of a run that is being trained; a context manager."""

    def __init__(self, path: Path, metrics_bytes: int = 0, step: int = 0) -> None:
        """Open the logs in the run folder `path` and drop what was written after a checkpoint.

        Args:
            path: The run folder.
            metrics_bytes: How much of `metrics.jsonl` the checkpoint vouches for.
            step: Environment steps at the checkpoint; TensorBoard hides what came later.

        Raises:
            UsageError: The folder cannot be written, another process trains the run, or
                `metrics.jsonl` was shortened.
        """
        file = path / "metrics.jsonl"
        self._folder, self._step = path, step
        self._events: EventFile | None = None
        try:
            self._metrics: BinaryIO = file.open("ab", buffering=0)
            self._timing: BinaryIO = (path / "timing.jsonl").open("ab", buffering=0)
        except OSError as error:
            raise UsageError(f"cannot write to {error.filename}: {error.strerror}") from error
        self._lock()
        size = file.stat().st_size
        if size < metrics_bytes:
            self.close()
            raise UsageError(
                f"{file} has {size} bytes where the checkpoint expects {metrics_bytes}; "
                "put the file back as it was, or start a new run"
            )
        self._metrics.truncate(metrics_bytes)
        self._metrics.seek(0, os.SEEK_END)

    def _lock(self) -> None:
        """Keep a second trainer out; the lock dies with the process, however it ends."""
        try:
            fcntl.flock(self._metrics, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise UsageError(
                f"run folder {self._folder} is being trained by another process; wait for it, or "
                "end it"
            ) from None
        except OSError:
            pass  # a file system without locks

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def record(self, step: int, values: Mapping[str, Any]) -> None:
        """Append deterministic figures to `metrics.jsonl` and TensorBoard.

        Args:
            step: Environment steps so far.
            values: Names to numbers or flat lists of numbers (one for each episode).
        """
        row = {name: json_value(value) for name, value in values.items()}
        self._append(self._metrics, _line({"step": step, **row}))
        self._add_event(step, values)

    def record_timing(self, step: int, values: Mapping[str, float]) -> None:
        """Append figures that depend on the machine to `timing.jsonl` and TensorBoard."""
        self._append(self._timing, _line({"step": step, **values}))
        self._add_event(step, {f"timing/{name}": value for name, value in values.items()})

    def sync(self) -> int:
        """Bring `metrics.jsonl` safely to the disk; return its size in bytes."""
        try:
            os.fsync(self._metrics.fileno())
        except OSError as error:
            raise UsageError(f"cannot write to {self._metrics.name}: {error.strerror}") from error
        return self._metrics.tell()

    def close(self) -> None:
        """Close all files."""
        self._metrics.close()
        self._timing.close()
        if self._events is not None:
            self._events.file.close()

    def _add_event(self, step: int, values: Mapping[str, Any]) -> None:
        if self._events is None:
            try:
                self._events = EventFile(self._folder)
            except OSError as error:
                raise UsageError(f"cannot write to {self._folder}: {error.strerror}") from error
            self._append(self._events.file, self._events.head(self._step))
        self._append(self._events.file, self._events.scalars(step, values))

    def _append(self, file: BinaryIO, data: bytes) -> None:
        rest = data
        try:
            while rest:  # a disk that is nearly full takes a part and refuses the rest
                rest = rest[file.write(rest) :]
        except OSError as error:
            raise UsageError(
                f"cannot write {len(data)} bytes to {file.name}: {error.strerror}; checkpoints "
                "saved before are intact"
            ) from error


class EventFile:
    """A file that TensorBoard reads; it makes the bytes and leaves the writing to its owner."""

    def __init__(self, folder: Path) -> None:
        """Open a new file in `folder`."""
        # Importing TensorBoard takes longer than opening a run to look at it.
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._session = event_pb2.Event, event_pb2.SessionLog
        self._summary, self._record_writer = summary_pb2.Summary, RecordWriter
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        self.file: BinaryIO = (folder / name).open("ab", buffering=0)

    def head(self, step: int) -> bytes:
        """The records that open a file; events of earlier files after `step` are to be hidden."""
        version = self._event(wall_time=time.time(), file_version="brain.Event:2")
        if not step:
            return self._frame(version)
        start = self._session(status=self._session.START)
        restart = self._event(wall_time=time.time(), step=step + 1, session_log=start)
        return self._frame(version) + self._frame(restart)

    def scalars(self, step: int, values: Mapping[str, Any]) -> bytes:
        """A record with all `values`; the items of a list are numbered from 1."""
        summary = self._summary()
        for name, value in values.items():
            numbered = enumerate(value, 1) if isinstance(value, list | tuple) else [("", value)]
            for number, item in numbered:
                summary.value.add(tag=f"{name}_{number}" if number else name, simple_value=item)
        return self._frame(self._event(wall_time=time.time(), step=step, summary=summary))

    def _frame(self, event: Any) -> bytes:
        """Pack an event with its length and checksums."""
        frame = io.BytesIO()
        self._record_writer(frame).write(event.SerializeToString())
        return frame.getvalue()


def _line(row: Mapping[str, Any]) -> bytes:
    return (json.dumps(row, allow_nan=False) + "\n").encode()


def json_value(value: Any) -> Any:
    """Replace what JSON cannot say (NaN, infinities) by null, in lists and mappings too."""
    if isinstance(value, Mapping):
        return {str(key): json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value

"""Launching the kernels of Warp on the device that torch uses, many of them as one graph."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


class Launcher:
    """Launches in the order of torch's own work; what is launched again and again is recorded."""

    def __init__(self, warp: Any, device: torch.device) -> None:
        """Launch on a CUDA device, or on Warp's CPU device, which records just the same."""
        self._warp, self._device = warp, device
        self._where = warp.device_from_torch(device)
        self._graphs: dict[Hashable, Any] = {}
        self._streams: dict[int, Any] = {}

    def _stream(self) -> Any:
        """The stream that torch launches on at present, as Warp knows it; None on a CPU."""
        if self._device.type == "cpu":
            return None
        stream = torch.cuda.current_stream(self._device)
        if stream.cuda_stream not in self._streams:
            self._streams[stream.cuda_stream] = self._warp.stream_from_torch(stream)
        return self._streams[stream.cuda_stream]

    @contextmanager
    def in_order(self) -> Iterator[None]:
        """What Warp launches inside comes after what torch launched before, and before the rest."""
        with self._warp.ScopedDevice(self._where), self._warp.ScopedStream(self._stream()):
            yield

    def launch(
        self, name: Hashable, launches: Callable[[], None], undo: Callable[[], None]
    ) -> None:
        """Launch what `launches` does: recorded at the first time, then all at once.

        Recording needs kernels that are compiled and memory that is allocated. So `launches` is
        called once before it is recorded, and `undo` puts back what it did.
        """
        if name not in self._graphs:
            with self.in_order():
                launches()
                undo()
                self._graphs[name] = self._record(launches)
        # The default streams of all GPUs look alike: CUDA takes that of the present device.
        with self._warp.ScopedDevice(self._where):
            self._warp.capture_launch(self._graphs[name], stream=self._stream())

    def _record(self, launches: Callable[[], None]) -> Any:
        """A graph of launches, none of which takes place."""
        if self._device.type == "cpu":
            with self._warp.ScopedCapture(self._where) as capture:
                launches()
            return capture.graph
        # CUDA refuses to record on the stream that torch uses by default.
        torch.cuda.synchronize(self._device)
        stream = self._warp.Stream(self._where)
        with self._warp.ScopedStream(stream), self._warp.ScopedCapture(self._where) as capture:
            launches()
        torch.cuda.synchronize(self._device)
        return capture.graph

    def forget(self) -> None:
        """Record anew: graphs know the addresses of arrays, and some of them moved."""
        self._graphs.clear()

"""Launches of MuJoCo Warp on a GPU that is not torch's present one, and in what order it sums."""

from contextlib import contextmanager
from types import SimpleNamespace

import torch

from metarl.envs.physics.warp_launch import Launcher


class Warp:
    """A Warp that is made up. It notes which device and which stream every launch finds."""

    def __init__(self):
        self.device, self.stream, self.log = "cuda:0", None, []

    def device_from_torch(self, device):
        return f"cuda:{device.index}"

    def stream_from_torch(self, stream):
        return f"torch's, {stream.cuda_stream}"

    def Stream(self, device):
        return "its own"

    @contextmanager
    def _scope(self, name, value):
        before = getattr(self, name)
        setattr(self, name, value)
        yield SimpleNamespace(graph="graph")
        setattr(self, name, before)

    def ScopedDevice(self, device):
        return self._scope("device", device)

    def ScopedStream(self, stream):
        return self._scope("stream", stream)

    def ScopedCapture(self, device):
        return self._scope("device", device)

    def note(self, what):
        self.log.append((what, self.device, self.stream))

    def capture_launch(self, graph, stream):
        # CUDA takes the default stream to be that of the present device.
        self.log.append((graph, self.device, stream))


def test_what_is_recorded_is_launched_on_the_device_that_it_is_for(monkeypatch):
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    stream = SimpleNamespace(cuda_stream=0)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    warp = Warp()
    launcher = Launcher(warp, torch.device("cuda", 1))
    for _ in range(2):
        launcher.launch("step", lambda: warp.note("kernels"), lambda: warp.note("undo"))
    launched = ("graph", "cuda:1", "torch's, 0")
    assert warp.log == [
        ("kernels", "cuda:1", "torch's, 0"),
        ("undo", "cuda:1", "torch's, 0"),
        ("kernels", "cuda:1", "its own"),
        launched,
        launched,
    ]
    assert warp.device == "cuda:0"

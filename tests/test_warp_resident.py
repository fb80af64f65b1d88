"""Robots on a pretended GPU: a step of their worlds leaves everything where it is."""

from contextlib import contextmanager

import pytest
import torch
import torch.distributed.tensor  # torch imports it when it is first asked for, and needs Generator
from pretend_gpu import CUDA, PretendTensor, pretend_gpu

from metarl.envs.physics import warp as physics
from metarl.envs.physics.warp_launch import Launcher
from metarl.envs.randomization import Randomization, Vary
from metarl.envs.registry import make_family

warp = pytest.importorskip("warp", reason="MuJoCo Warp is not installed")

WORLDS, STEPS = 4, 6
DISTURBED = Randomization(
    (
        Vary("body_mass", 0.5, 2.0),
        Vary("action_delay", 0.0, 2.0),
        Vary("action_dropout", 0.0, 0.5),
        Vary("observation_delay", 0.0, 1.0),
        Vary("observation_noise", 0.0, 0.1),
        Vary("push_force", 0.0, 50.0),
        Vary("initial_state", 0.5, 2.0),
    )
)


@contextmanager
def pretend_warp(monkeypatch):
    """A pretended GPU on which Warp computes, too: its CPU device, under another name."""
    made, to_torch = Launcher.__init__, warp.to_torch
    with pretend_gpu() as gpu, monkeypatch.context() as patch:
        patch.setattr(warp, "to_torch", lambda array: PretendTensor(to_torch(array), gpu))
        patch.setattr(physics, "require_warp", lambda device: CUDA)
        patch.setattr(physics, "require_memory", lambda *args: None)
        patch.setattr(
            Launcher, "__init__", lambda self, warp, device: made(self, warp, torch.device("cpu"))
        )
        yield gpu


def episodes(family, device, gpu=None):
    """What some steps in worlds on a device show and earn, and their state in the end."""
    env = family.make_worlds(WORLDS, device=device, seed=3)
    generator = torch.Generator().manual_seed(1)
    env.set_tasks(family.sample_tasks(WORLDS, "train", generator))
    seen = [env.reset()[0].cpu()]
    size = family.action_space.shape[0]
    actions = [2 * torch.rand(WORLDS, size, generator=generator) - 1 for _ in range(STEPS)]
    env.step(actions[0].to(device))  # kernels are compiled and launches recorded
    for action in actions[1:]:
        there = action.to(device)
        if gpu is None:
            step = env.step(there)
        else:
            uploads = len(gpu.uploads)
            with gpu.no_waiting():
                step = env.step(there)
            assert len(gpu.uploads) == uploads
        seen += [step[0].cpu(), step[1].cpu(), step[2].cpu(), step[4]["final_obs"].cpu()]
    env.check()
    env.load_state_dict(env.state_dict())
    return seen


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("half-cheetah-vel", {}),
        ("half-cheetah-dir", {}),
        ("half-cheetah-vel", {"randomize": DISTURBED}),
        ("ant-dir", {"preset": "promp", "horizon": 4}),
        ("ant-crippled", {"horizon": 3}),
        ("humanoid-dir", {}),
        ("reacher-goal", {"horizon": 2}),
        ("hopper-rand-params", {"horizon": 3}),
    ],
)
def test_a_step_of_robots_waits_for_nothing(name, options, monkeypatch):
    plain = episodes(make_family(name, backend="warp", **options), "cpu")
    with pretend_warp(monkeypatch) as gpu:
        there = episodes(make_family(name, **options), "cuda", gpu)
    for mine, other in zip(there, plain, strict=True):
        assert torch.equal(mine, other)

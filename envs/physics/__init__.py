"""Physics: one small interface under every MuJoCo family, and its implementation on a CPU."""

from metarl.envs.physics.cpu import CpuPhysics
from metarl.envs.physics.dump import Replay, replay, save_dump
from metarl.envs.physics.interface import Physics, Snapshot
from metarl.envs.physics.model import Model, check_controllable, load_model
from metarl.envs.physics.worlds import PhysicsWorlds

__all__ = [
    "CpuPhysics",
    "Model",
    "Physics",
    "PhysicsWorlds",
    "Replay",
    "Snapshot",
    "check_controllable",
    "load_model",
    "replay",
    "save_dump",
]

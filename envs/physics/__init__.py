"""Physics: one small interface under every MuJoCo family, and its implementation on a CPU."""

from metarl.envs.physics.cpu import CpuPhysics
from metarl.envs.physics.dump import Replay, replay, save_dump
from metarl.envs.physics.interface import Physics, Snapshot, Troubles
from metarl.envs.physics.making import make_physics
from metarl.envs.physics.model import Model, check_controllable, load_model
from metarl.envs.physics.warp_model import Limits
from metarl.envs.physics.worlds import PhysicsWorlds

__all__ = [
    "CpuPhysics",
    "Limits",
    "Model",
    "Physics",
    "PhysicsWorlds",
    "Replay",
    "Snapshot",
    "Troubles",
    "check_controllable",
    "load_model",
    "make_physics",
    "replay",
    "save_dump",
]

"""A crane that must hold its load over a mark that it cannot see, whatever the load weighs.

| observation | meaning | unit | range |
|---|---|---|---|
| 0 | position of the trolley | m | [-1.8, 1.8] |
| 1, 2 | sine and cosine of the cable's angle | - | [-1, 1] |
| 3 | velocity of the trolley | m/s | unbounded |
| 4 | angular velocity of the cable | rad/s | unbounded |

| action | meaning | unit | range |
|---|---|---|---|
| 0 | drive of the trolley: 1 is 25 N | - | [-1, 1] |

| task | meaning | unit | range |
|---|---|---|---|
| 0 | mass of the load | x | [0.5, 2] log-uniform |
| 1 | strength of the drive | x | [0.7, 1.3] |
| 2 | where the mark is | m | [-1, 1], out-of-range (1, 1.4] |

The reward is minus the horizontal distance from the load to the mark.
"""

from typing import Any

import torch

from metarl.envs import from_mjcf
from metarl.envs.randomization import Randomization, Vary
from metarl.envs.robot import State


def observation(state: State) -> torch.Tensor:
    """Where the trolley is, how the cable hangs, and how they move."""
    place, angle = state["qpos"].unbind(-1)
    return torch.stack([place, angle.sin(), angle.cos(), *state["qvel"].unbind(-1)], -1)


def reward(before: State, after: State, command: torch.Tensor, task: Any) -> torch.Tensor:
    """How near the load is to the mark."""
    distance: torch.Tensor = (after["site_xpos"][:, 0, 0] - task.mark).abs()
    return -distance


Crane = from_mjcf(
    "crane.xml",
    name="crane",
    observation=observation,
    reward=reward,
    goals={"mark": (-1.0, 1.0)},
    out_of_range={"mark": (1.0, 1.4)},
    randomize=Randomization(
        (
            Vary("density", 0.5, 2.0, "log-uniform", of=("load",)),
            Vary("actuator_strength", 0.7, 1.3),
        )
    ),
    frame_skip=4,
    horizon=50,
    reset_noise=0.05,
    reads=("qpos", "qvel", "site_xpos"),
    doc=__doc__,
)

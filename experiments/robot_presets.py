"""Settings for the locomotion suite beyond the half-cheetahs of the papers, by family.

Robots that fall learn from long futures (gamma 0.99), and their memory needs smaller, larger steps:
twice the worlds, half the learning rate and wider networks. Without memory the usual settings are
the better ones there.
"""

from __future__ import annotations

from typing import Any

Options = dict[str, Any]

BODIES = ("half-cheetah-rand-params", "walker2d-rand-params", "hopper-rand-params")
"""whose tasks differ in what actions do"""
FALLING = ("walker2d-rand-params", "hopper-rand-params", "walker2d-vel", "hopper-vel")
"""planar robots whose episodes end early"""
OTHERS = (
    "half-cheetah-rand-params",
    "half-cheetah-crippled",
    "ant-dir",
    "ant-goal",
    "ant-crippled",
    "humanoid-dir",
    "reacher-goal",
)
SUITE = (*OTHERS, *FALLING)

_WIDE: Options = {
    "gamma": 0.99,
    "learning_rate": 1e-3,
    "embedding": 64,
    "hidden": 64,
    "layers": (128, 128),
    "minibatches": 32,
}
_FAR: Options = {"gamma": 0.99}
ON_POLICY: dict[str, Options] = {
    **dict.fromkeys((*FALLING, "ant-dir", "ant-crippled", "humanoid-dir"), _FAR),
}
"""of the agents without memory, and of RL² unless it has its own"""
RL2: dict[str, Options] = {**ON_POLICY, **dict.fromkeys(FALLING, _WIDE)}

_TRAINED: Options = {"total_steps": 3_000_000, "num_worlds": 64, "evaluate_every": 250_000}
TRAINING: dict[str, Options] = dict.fromkeys(SUITE, _TRAINED)
_MORE_WORLDS: Options = {**_TRAINED, "num_worlds": 128}
RL2_TRAINING: dict[str, Options] = {**TRAINING, **dict.fromkeys(FALLING, _MORE_WORLDS)}

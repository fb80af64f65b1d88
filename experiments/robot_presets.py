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
FREE = ("ant-dir", "ant-goal", "ant-crippled", "humanoid-dir")
"""robots with a free body"""
OTHERS = (
    "half-cheetah-rand-params",
    "half-cheetah-crippled",
    "reacher-goal",
)
SUITE = (*OTHERS, *FREE, *FALLING)

_WIDE: Options = {
    "gamma": 0.99,
    "learning_rate": 1e-3,
    "embedding": 64,
    "hidden": 64,
    "layers": (128, 128),
    "minibatches": 32,
}
_FAR: Options = {"gamma": 0.99}
# Ants stand still for half a million steps: noise costs them more than speed brings, until a gait
# is found. Little noise and many gradient steps a trial find it.
_SMALL_STEPS: Options = {"layers": (128, 128), "log_std": -1.0, "epochs": 8}
ON_POLICY: dict[str, Options] = {
    **dict.fromkeys(FALLING, _FAR),
    **dict.fromkeys(FREE, _SMALL_STEPS),
}
"""of the agents without memory, and of RL² unless it has its own"""
RL2: dict[str, Options] = {**ON_POLICY, **dict.fromkeys(FALLING, _WIDE)}

_TRAINED: Options = {"total_steps": 3_000_000, "num_worlds": 64, "evaluate_every": 250_000}
_FEWER_WORLDS: Options = {**_TRAINED, "num_worlds": 32, "total_steps": 2_000_000}
TRAINING: dict[str, Options] = {
    **dict.fromkeys(SUITE, _TRAINED),
    **dict.fromkeys(FREE, _FEWER_WORLDS),
}
_MORE_WORLDS: Options = {**_TRAINED, "num_worlds": 128}
RL2_TRAINING: dict[str, Options] = {**TRAINING, **dict.fromkeys(FALLING, _MORE_WORLDS)}

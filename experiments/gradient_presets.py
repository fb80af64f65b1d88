"""Settings that work for the agents that adapt by gradient steps, MAML and ProMP, by family.

The defaults of their configs are the published ones (Rothfuss et al. 2019), which the agents
`maml-paper` and `promp-paper` take: 40 tasks with 20 episodes each, before the step and after it.
"""

from __future__ import annotations

from typing import Any

Options = dict[str, Any]

ROBOTS = ("half-cheetah-vel", "half-cheetah-dir")
PUBLISHED_STEPS = 160_000_000
"""environment steps of 1000 iterations on episodes of 100 steps"""

# With fewer tasks and episodes than published, lambda below 1, a wider policy at first and
# normalised observations the robots learn several times as much from a step; without the last, one
# seed of two got stuck.
_ROBOT: Options = {
    "meta_batch": 10,
    "rollouts": 10,
    "lam": 0.95,
    "log_std": 0.5,
    "normalize": True,
}
# Points drift away from the start for a hundred steps unless the mean starts near zero.
_POINT: Options = {"meta_batch": 20, "rollouts": 20, "lam": 0.95, "last_layer": 0.01}
# A trial is one game as RL² plays it, half of it before the step and half after. A few pulls, or a
# few short episodes, are no basis for a regression.
_GAME: Options = {"meta_batch": 1000, "rollouts": 5, "layers": (32,), "worlds_per_task": 1}
MAML: dict[str, Options] = {
    "bandit": {**_GAME, "baseline": "none", "inner_rate": 10.0},
    "tabular-mdp": {**_GAME, "baseline": "value", "gamma": 0.95, "inner_rate": 2.0},
    "point-dense": _POINT,
    "point-sparse": _POINT,
    "navigation-2d": _POINT,
    **dict.fromkeys(ROBOTS, _ROBOT),
}
PROMP: dict[str, Options] = {
    **MAML,
    "bandit": {**MAML["bandit"], "learning_rate": 3e-3},
    **{name: {**_ROBOT, "final_learning_rate": 1e-4} for name in ROBOTS},
}

_POINT_TRAINING: Options = {
    "total_steps": 3_000_000,
    "num_worlds": 400,
    "evaluate_every": 300_000,
    "evaluation_tasks": 32,
    "checkpoint_every": 5,
}
_GAME_TRAINING: Options = {
    "total_steps": 2_000_000,
    "num_worlds": 5000,
    "evaluate_every": 500_000,
    "evaluation_tasks": 1000,
    "checkpoint_every": 20,
}
_ROBOT_TRAINING: Options = {
    "total_steps": 20_000_000,
    "num_worlds": 100,
    "evaluate_every": 1_000_000,
    "evaluation_tasks": 16,
    "checkpoint_every": 10,
}
TRAINING: dict[str, Options] = {
    "bandit": _GAME_TRAINING,
    "tabular-mdp": {**_GAME_TRAINING, "total_steps": 20_000_000, "evaluate_every": 2_000_000},
    "point-dense": _POINT_TRAINING,
    "point-sparse": _POINT_TRAINING,
    "navigation-2d": _POINT_TRAINING,
    **dict.fromkeys(ROBOTS, _ROBOT_TRAINING),
}
PAPER_TRAINING: dict[str, Options] = {
    name: {**training, "num_worlds": 800, "total_steps": PUBLISHED_STEPS}
    for name, training in TRAINING.items()
}

# Four rounds: before adapting, and after one, two and three gradient steps.
_ROUNDS: Options = {"episodes": 4}
FAMILY: dict[str, Options] = {
    "point-dense": _ROUNDS,
    "point-sparse": _ROUNDS,
    "navigation-2d": _ROUNDS,
    **{name: {**_ROUNDS, "preset": "promp"} for name in ROBOTS},
}

"""Settings for Meta-World's families; what they reached is in `experiments/RESULTS.md`.

In benchmarks of one skill observations are left as they are, in metres. Where the object lies tells
the 50 training tasks of a skill apart; normalised to unit size, it is what memories learn the goals
by heart from, and tasks held out profit from nothing.

Episodes of training are shorter than the benchmark's 500 steps: what comes after success teaches
little. The protocol's are whole.
"""

from __future__ import annotations

from typing import Any

from metarl.envs.metaworld.names import SEVERAL, SKILLS

Options = dict[str, Any]

ONE = tuple(f"metaworld-{kind}-{skill}" for kind in ("ml1", "mt1") for skill in SKILLS)
"""families of one skill"""
MANY = tuple(f"metaworld-{name}" for name in SEVERAL)
"""families of several skills"""
REACHING = tuple(name for name in ONE if name.endswith(("-reach", "-reach-wall")))
"""families that ask for nothing but a place of the hand"""


def _each(of_one: Options, of_many: Options, reaching: Options | None = None) -> dict[str, Options]:
    """Options by family."""
    return {
        **dict.fromkeys(ONE, of_one),
        **dict.fromkeys(MANY, of_many),
        **dict.fromkeys(REACHING, of_one if reaching is None else reaching),
    }


_PPO: Options = {"normalize": False, "layers": (128, 128), "gamma": 0.98}
_REACHING: Options = {"normalize": False}
# Rewards lie between 0 and 10, and a centimetre changes them by a tenth.
_MEMORY: Options = {"reward_norm": True, "embedding": 64}
# Over several skills large steps and short futures got stuck.
_SEVERAL: Options = {"layers": (128, 128), "gamma": 0.99, "lam": 0.95, "learning_rate": 1e-3}
ON_POLICY = _each(_PPO, _SEVERAL, _REACHING)
"""of the agents without memory"""
RL2 = _each(
    {**_PPO, **_MEMORY, "hidden": 128},
    {**_SEVERAL, **_MEMORY, "hidden": 128},
    {**_REACHING, **_MEMORY, "hidden": 64},
)
VARIBAD = {name: {"normalize": False, "beliefs": 25, "decodes": 25} for name in (*ONE, *MANY)}

_TRAINED: Options = {"evaluate_every": 500_000, "evaluation_tasks": 50, "checkpoint_every": 10}
TRAINING = _each(
    {**_TRAINED, "num_worlds": 64, "total_steps": 6_000_000},
    {**_TRAINED, "num_worlds": 80, "total_steps": 8_000_000, "evaluate_every": 1_000_000},
    {**_TRAINED, "num_worlds": 64, "total_steps": 2_000_000, "evaluate_every": 250_000},
)

# Twenty worlds, two for each of the ten tasks of a visit.
_REPLAY: Options = {
    "encoder_layers": (128, 128),
    "layers": (128, 128),
    "batch": 32,
    "learning_rate": 1e-3,
    "final_learning_rate": 1e-4,
    "reward_scale": 0.2,
    "collect_tasks": 10,
    "initial_episodes": 2,
    "kl_weight": 1e-3,
}
PEARL = _each({**_REPLAY, "train_tasks": 50}, {**_REPLAY, "train_tasks": 200, "latent": 10})
PEARL_TRAINING = _each(
    {**_TRAINED, "num_worlds": 20, "total_steps": 1_000_000, "evaluate_every": 100_000},
    {**_TRAINED, "num_worlds": 20, "total_steps": 3_000_000},
)

# The package's own reference takes 20 tasks (ML1: 10) with 10 episodes each.
_STEPS: Options = {"rollouts": 10, "lam": 0.95, "layers": (128, 128)}
GRADIENT = _each({**_STEPS, "meta_batch": 10}, {**_STEPS, "meta_batch": 20})
GRADIENT_TRAINING = _each(
    {**_TRAINED, "num_worlds": 100, "total_steps": 6_000_000, "evaluate_every": 1_000_000},
    {**_TRAINED, "num_worlds": 200, "total_steps": 20_000_000, "evaluate_every": 2_000_000},
)

_SB3: Options = {"num_worlds": 20, "total_steps": 1_000_000, "evaluate_every": 100_000}
SB3_TRAINING = {name: {**_SB3, "checkpoint_every": 20} for name in (*ONE, *MANY)}

FAMILY = _each({"horizon": 200}, {"horizon": 200}, {"horizon": 150})
"""of the families themselves, whatever the agent"""

"""Settings that work, by agent and family: the defaults of `metarl train AGENT FAMILY`.

Where a paper states its settings and they differ, the comment says so; what each preset reached is
in `experiments/RESULTS.md`.
"""

from __future__ import annotations

from typing import Any

Options = dict[str, Any]

# Small discrete families: trials are short enough for full back-propagation, and entropy keeps the
# policy exploring until it has found out how to explore.
_DISCRETE: Options = {
    "embedding": 64,
    "hidden": 64,
    "layers": (64,),
    "epochs": 4,
    "minibatches": 4,
    "chunk": 0,
    "entropy": 0.01,
    "learning_rate": 2e-3,
    "final_learning_rate": 1e-4,
}

_AGENT: dict[str, Options] = {
    # gamma 0.99 is the paper's (Duan et al. 2016); with its lambda of 0.3 exploring stops early.
    "bandit": {**_DISCRETE, "minibatches": 8, "gamma": 0.99, "lam": 0.9, "entropy": 0.05},
    "tabular-mdp": {
        **_DISCRETE,
        "embedding": 128,
        "layers": (128,),
        "minibatches": 16,
        "entropy": 0.03,
        "learning_rate": 6e-3,
        "gamma": 0.99,
        "lam": 0.6,
    },
    # Much entropy at first: a sweep of episode 1 that leaves a detour for episode 2 is hard to
    # unlearn later.
    "gridnavi": {**_DISCRETE, "gamma": 0.99, "lam": 0.95, "entropy": 0.1},
    "maze": {
        **_DISCRETE,
        "layers": (64, 64),
        "chunk": 50,
        "epochs": 5,
        "minibatches": 8,
        "gamma": 0.98,
        "lam": 0.95,
    },
    "point-dense": {"gamma": 0.95},
    "point-sparse": {"gamma": 0.95, "entropy": 0.001},
    "navigation-2d": {"gamma": 0.95},
    "half-cheetah-vel": {},
    "half-cheetah-dir": {},
}

_TRAINING: dict[str, Options] = {
    "bandit": {"total_steps": 3_000_000, "num_worlds": 1024, "evaluate_every": 300_000},
    "tabular-mdp": {"total_steps": 22_000_000, "num_worlds": 1024, "evaluate_every": 2_000_000},
    "gridnavi": {"total_steps": 8_000_000, "num_worlds": 512, "evaluate_every": 500_000},
    "maze": {"total_steps": 3_000_000, "num_worlds": 64, "evaluate_every": 300_000},
    "point-dense": {"total_steps": 1_000_000, "num_worlds": 128, "evaluate_every": 100_000},
    "point-sparse": {"total_steps": 3_000_000, "num_worlds": 128, "evaluate_every": 300_000},
    "navigation-2d": {"total_steps": 2_000_000, "num_worlds": 64, "evaluate_every": 200_000},
    "half-cheetah-vel": {"total_steps": 8_000_000, "num_worlds": 64, "evaluate_every": 500_000},
    "half-cheetah-dir": {"total_steps": 8_000_000, "num_worlds": 64, "evaluate_every": 500_000},
}


# Small networks, small batches and one update per some twenty steps, for one processor core. The
# published settings (Rakelly et al. 2019) are those of `PEARL_PAPER`; they are for a GPU.
_PEARL: dict[str, Options] = {
    "half-cheetah-vel": {
        "layers": (128, 128),
        "encoder_layers": (64, 64),
        "collect_tasks": 10,
        "initial_episodes": 2,
        "batch": 32,
        "learning_rate": 1e-3,
        "final_learning_rate": 1e-4,
        "reward_scale": 1.0,
        "kl_weight": 0.01,
    },
}

_PEARL_TRAINING: dict[str, Options] = {
    "half-cheetah-vel": {
        "total_steps": 1_000_000,
        "num_worlds": 20,
        "evaluate_every": 100_000,
        "checkpoint_every": 10,
    },
}

def preset(agent: str, family: str) -> dict[str, Options]:
    """Defaults for training `agent` on `family`: options of the agent, the family, the trainer.

    The three on-policy agents share one PPO and so one preset per family.
    """
    if agent == "pearl":
        return {
            "agent": dict(_PEARL.get(family, {})),
            "family": {"episodes": 3} if family == "half-cheetah-vel" else {},
            "training": dict(_PEARL_TRAINING.get(family, {})),
        }
    return {
        "agent": dict(_AGENT.get(family, {})) if agent in ON_POLICY else {},
        "family": {},
        "training": dict(_TRAINING.get(family, {})),
    }


ON_POLICY = ("rl2", "non-adaptive", "oracle")
"""agents that are configured by the fields of `RL2Config`"""

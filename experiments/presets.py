"""Settings that work, by agent and family: the defaults of `metarl train AGENT FAMILY`.

Where a paper states its settings and they differ, the comment says so; what each preset reached is
in `experiments/RESULTS.md`.
"""

from __future__ import annotations

from metarl.experiments import (
    gradient_presets,
    metaworld_presets,
    robot_presets,
    varibad_presets,
)
from metarl.experiments.gradient_presets import ROBOTS, Options

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
    "crane": {"gamma": 0.95, "minibatches": 8},
    "half-cheetah-vel": {},
    "half-cheetah-dir": {},
    **robot_presets.ON_POLICY,
    **metaworld_presets.ON_POLICY,
}

_TRAINING: dict[str, Options] = {
    "bandit": {"total_steps": 3_000_000, "num_worlds": 1024, "evaluate_every": 300_000},
    "tabular-mdp": {"total_steps": 22_000_000, "num_worlds": 1024, "evaluate_every": 2_000_000},
    "gridnavi": {"total_steps": 8_000_000, "num_worlds": 512, "evaluate_every": 500_000},
    "maze": {"total_steps": 3_000_000, "num_worlds": 64, "evaluate_every": 300_000},
    "point-dense": {"total_steps": 1_000_000, "num_worlds": 128, "evaluate_every": 100_000},
    "point-sparse": {"total_steps": 3_000_000, "num_worlds": 128, "evaluate_every": 300_000},
    "navigation-2d": {"total_steps": 2_000_000, "num_worlds": 64, "evaluate_every": 200_000},
    "crane": {"total_steps": 500_000, "num_worlds": 64, "evaluate_every": 100_000},
    "half-cheetah-vel": {"total_steps": 8_000_000, "num_worlds": 64, "evaluate_every": 500_000},
    "half-cheetah-dir": {"total_steps": 8_000_000, "num_worlds": 64, "evaluate_every": 500_000},
    **robot_presets.TRAINING,
    **metaworld_presets.TRAINING,
}

# Published settings (Rakelly et al. 2019 and their code), by family; they are for a GPU.
_PEARL_PUBLISHED: Options = {
    "variant": "paper",
    "encoder": "product",
    "layers": (300, 300, 300),
    "encoder_layers": (200, 200, 200),
    "initial_episodes": 10,
    "updates": 2000,
    "capacity": 1_000_000,
}
_POINTS_PUBLISHED: Options = {
    **_PEARL_PUBLISHED,
    "train_tasks": 80,
    "updates": 1000,
    "reward_scale": 100.0,
}
_PEARL_PAPER: dict[str, Options] = {
    "half-cheetah-vel": _PEARL_PUBLISHED,
    "half-cheetah-dir": {
        **_PEARL_PUBLISHED,
        "context": 256,
        "meta_batch": 4,
        "prior_episodes": 5,
        "posterior_episodes": 5,
    },
    "point-dense": {
        **_POINTS_PUBLISHED,
        "context": 64,
        "prior_episodes": 10,
        "posterior_episodes": 10,
    },
    "point-sparse": {
        **_POINTS_PUBLISHED,
        "collect_tasks": 10,
        "prior_episodes": 5,
        "posterior_episodes": 45,
        "posterior_in_context": True,
        "context": 1024,
        "gamma": 0.9,
        "kl_weight": 1.0,
    },
}
_PEARL_PAPER_TRAINING: dict[str, Options] = {
    "half-cheetah-vel": {"total_steps": 2_700_000, "num_worlds": 5, "evaluate_every": 100_000},
    "half-cheetah-dir": {"total_steps": 5_000_000, "num_worlds": 5, "evaluate_every": 100_000},
    "point-dense": {"total_steps": 1_000_000, "num_worlds": 5, "evaluate_every": 50_000},
    "point-sparse": {"total_steps": 5_000_000, "num_worlds": 10, "evaluate_every": 250_000},
}

# Small networks and batches for one processor core, and a reward scale of 1, to which the weight of
# the KL is fitted.
_PEARL_SMALL: Options = {
    "encoder_layers": (64, 64),
    "batch": 32,
    "learning_rate": 1e-3,
    "final_learning_rate": 1e-4,
    "reward_scale": 1.0,
    "collect_tasks": 10,
}
# Contexts as they come when adapting: episode after episode, from policies that draw and from
# policies that do not.
_PEARL_POINTS: Options = {
    **_PEARL_SMALL,
    "encoder": "likelihood",
    "prior_episodes": 1,
    "deterministic": 0.5,
    "posterior_in_context": True,
    "gamma": 0.9,
}
_PEARL: dict[str, Options] = {
    "half-cheetah-vel": {
        **_PEARL_SMALL,
        "layers": (128, 128),
        "initial_episodes": 2,
        "kl_weight": 0.01,
    },
    # Bodies differ in what actions do, so that the next observation tells more than the reward.
    **{
        name: {
            **_PEARL_SMALL,
            "layers": (128, 128),
            "next_obs_in_context": True,
            "initial_episodes": 2,
            "kl_weight": 0.01,
        }
        for name in robot_presets.BODIES
    },
    "half-cheetah-dir": {
        **_PEARL_SMALL,
        "layers": (128, 128),
        "train_tasks": 20,
        "initial_episodes": 5,
        "kl_weight": 0.01,
    },
    "point-dense": {
        **_PEARL_POINTS,
        "final_learning_rate": 2e-5,
        "encoder_layers": (64, 64, 64),
        "latent": 8,
        "train_tasks": 400,
        "collect_tasks": 20,
        "initial_episodes": 5,
        "posterior_episodes": 3,
        "independent": 0.0,
        "context_episodes": 4,
        "meta_batch": 32,
        "batch": 16,
        "kl_weight": 1e-4,
    },
    "navigation-2d": {
        **_PEARL_POINTS,
        "encoder_layers": (64, 64, 64),
        "latent": 8,
        "initial_episodes": 2,
        "posterior_episodes": 2,
        "independent": 0.5,
        "context_episodes": 2,
        "kl_weight": 1e-4,
    },
    # Random actions, each repeated for an episode, find some of the goals; from then on it is z
    # drawn from the prior that does.
    "point-sparse": {
        **_PEARL_POINTS,
        "final_learning_rate": 5e-5,
        "layers": (64, 64),
        "encoder_layers": (128, 128),
        "train_tasks": 80,
        "initial_actions": "repeated",
        "initial_episodes": 25,
        "posterior_episodes": 9,
        "context": 200,
        "independent": 0.5,
        "context_episodes": 10,
        "kl_weight": 0.002,
    },
}
_CHEETAH_TRAINING: Options = {
    "total_steps": 1_000_000,
    "num_worlds": 20,
    "evaluate_every": 50_000,
    "checkpoint_every": 10,
}
_PEARL_TRAINING: dict[str, Options] = {
    **{name: _CHEETAH_TRAINING for name in (*ROBOTS, *robot_presets.BODIES)},
    "point-dense": {
        "total_steps": 670_000,
        "num_worlds": 80,
        "evaluate_every": 32_000,
        "checkpoint_every": 5,
    },
    "navigation-2d": {
        "total_steps": 500_000,
        "num_worlds": 20,
        "evaluate_every": 50_000,
        "checkpoint_every": 5,
    },
    "point-sparse": {
        "total_steps": 960_000,
        "num_worlds": 40,
        "evaluate_every": 80_000,
        "checkpoint_every": 5,
    },
}

# Stable-Baselines3 on the robots: smaller networks than its own, and many worlds.
_SB3_REPLAY: Options = {"layers": (128, 128), "learning_rate": 1e-3, "learning_starts": 3200}
_SB3_PPO: Options = {
    "learning_rate": 1e-3,
    "epochs": 5,
    "minibatches": 16,
    "gamma": 0.97,
    "lam": 0.9,
}
_SB3_REPLAY_TRAINING: Options = {
    "total_steps": 600_000,
    "num_worlds": 16,
    "evaluate_every": 50_000,
    "checkpoint_every": 20,
}
_SB3_PPO_TRAINING: Options = {
    "total_steps": 3_000_000,
    "num_worlds": 64,
    "evaluate_every": 250_000,
    "checkpoint_every": 5,
}

# Return after adapting counts from the third episode on; with a sparse reward it takes longer.
_PEARL_FAMILY: dict[str, Options] = {
    **{name: {"episodes": 3} for name in (*ROBOTS, *robot_presets.BODIES)},
    "navigation-2d": {"episodes": 3},
    "point-dense": {"episodes": 4},
    "point-sparse": {"episodes": 10},
}


_PRESETS: dict[str, tuple[dict[str, Options], dict[str, Options]]] = {
    "rl2": (
        {**_AGENT, **robot_presets.RL2, **metaworld_presets.RL2},
        {**_TRAINING, **robot_presets.RL2_TRAINING},
    ),
    **dict.fromkeys(("non-adaptive", "oracle"), (_AGENT, _TRAINING)),
    "varibad": (
        {**varibad_presets.AGENT, **metaworld_presets.VARIBAD},
        {**varibad_presets.TRAINING, **metaworld_presets.TRAINING},
    ),
    "pearl": (
        {**_PEARL, **metaworld_presets.PEARL},
        {**_PEARL_TRAINING, **metaworld_presets.PEARL_TRAINING},
    ),
    "pearl-paper": (_PEARL_PAPER, _PEARL_PAPER_TRAINING),
    **{
        name: (
            {**own, **metaworld_presets.GRADIENT},
            {**gradient_presets.TRAINING, **metaworld_presets.GRADIENT_TRAINING},
        )
        for name, own in (("maml", gradient_presets.MAML), ("promp", gradient_presets.PROMP))
    },
    **dict.fromkeys(("maml-paper", "promp-paper"), ({}, gradient_presets.PAPER_TRAINING)),
    "sb3-ppo": (
        dict.fromkeys(ROBOTS, _SB3_PPO),
        {**dict.fromkeys(ROBOTS, _SB3_PPO_TRAINING), **metaworld_presets.TRAINING},
    ),
    **dict.fromkeys(
        ("sb3-sac", "sb3-td3"),
        (
            dict.fromkeys(ROBOTS, _SB3_REPLAY),
            {
                **dict.fromkeys(ROBOTS, _SB3_REPLAY_TRAINING),
                **metaworld_presets.SB3_TRAINING,
            },
        ),
    ),
}
"""settings of the agent and of the trainer, by agent and family"""


def preset(agent: str, family: str) -> dict[str, Options]:
    """Defaults for training `agent` on `family`: options of the agent, the family, the trainer.

    The three on-policy agents share one PPO and so, except for robots that fall, one preset.
    """
    settings, training = _PRESETS[agent]
    pearl, gradient = agent.startswith("pearl"), agent.startswith(("maml", "promp"))
    options = _PEARL_FAMILY if pearl else gradient_presets.FAMILY if gradient else {}
    # Learning from replay takes few worlds: four for each of the five tasks of a visit.
    usual = {"num_worlds": 20} if pearl else _TRAINING.get(family, {})
    # And gradient steps take one for each rollout of each of their 40 tasks.
    usual = {**usual, "num_worlds": 800} if gradient else usual
    return {
        "agent": dict(settings.get(family, {})),
        "family": {**metaworld_presets.FAMILY.get(family, {}), **options.get(family, {})},
        "training": dict(training.get(family, usual)),
    }

"""What families say of their tasks and rewards, for those who predict them."""

import gymnasium as gym
import pytest
import torch
from registered import NAMES

from metarl.envs.registry import make_family
from metarl.oracle import TaskInObservation

VARIANTS = {"gridnavi-xy": ("gridnavi", {"observation": "xy"}), "pulls": ("bandit", {"horizon": 9})}
CASES = {name: (name, {}) for name in NAMES} | VARIANTS
WORLDS = 40


def rollout(family, steps):
    """Features `[W, F]`, and of every step: action, true next observation and reward."""
    tasks = family.sample_tasks(WORLDS, "train", torch.Generator().manual_seed(0))
    env, generator = family.make_worlds(WORLDS), torch.Generator().manual_seed(1)
    env.set_tasks(tasks)
    env.reset()
    actions, following, rewards = [], [], []
    for _ in range(steps):
        action = torch.randint(int(family.action_space.n), (WORLDS,), generator=generator)
        _, reward, _, _, info = env.step(action)
        actions.append(action)
        following.append(info["final_obs"])
        rewards.append(reward)
    return tasks.features(), *map(torch.stack, (actions, following, rewards))


@pytest.mark.parametrize("name", CASES)
def test_kinds_are_what_features_are(name):
    kind, options = CASES[name]
    family = make_family(kind, **options)
    features = family.sample_tasks(60, "train", torch.Generator().manual_seed(0)).features()
    spec = family.spec()
    assert (spec.task_kind, spec.reward_site) == (family.task_kind, family.reward_site)
    one_hot = bool(((features == 0) | (features == 1)).all() and (features.sum(-1) == 1).all())
    assert one_hot == (family.task_kind == "one-hot")
    # A maze is its walls, and places in it: neither numbers nor one choice.
    assert (family.task_kind == "unknown") == (kind == "maze")


def test_the_site_decides_about_the_reward():
    found = set()
    for kind, options in CASES.values():
        family = make_family(kind, **options)
        if family.reward_site == "none":
            continue
        found.add(family.reward_site)
        features, action, following, reward = rollout(family, 60)
        low, high = reward.unique().tolist()
        assert low <= 0 < high
        if family.reward_site == "next-obs":
            assert bool(((following == 0) | (following == 1)).all())
            assert bool((following.sum(-1) == 1).all())
            assert torch.equal(reward > 0, following.argmax(-1) == features.argmax(-1))
        else:
            assert isinstance(family.action_space, gym.spaces.Discrete)
            chance = features.gather(1, action.T).T
            often = chance > 0.8
            assert float((reward[often] > 0).float().mean()) > 0.8
            assert float((reward[chance < 0.2] > 0).float().mean()) < 0.2
    assert found == {"next-obs", "action"}


def test_who_sees_the_task_has_the_same_kind_but_no_cells():
    seen = TaskInObservation.of(make_family("gridnavi")).spec()
    assert (seen.task_kind, seen.reward_site) == ("one-hot", "none")

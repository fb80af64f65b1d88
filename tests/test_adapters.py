"""Families as other libraries see them: checked by their own checkers, and against our worlds."""

import warnings
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from registered import NAMES
from stable_baselines3 import PPO
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from metarl.adapters import Bridge, FamilyEnv, FamilyVecEnv
from metarl.envs.registry import make_family
from metarl.errors import UsageError
from metarl.generators import global_generators
from metarl.oracle import TaskInObservation
from metarl.vector import VectorEnv, box

ALL = [
    *(make_family(name) for name in NAMES),
    make_family("half-cheetah-vel", preset="promp"),
    TaskInObservation.of(make_family("point-dense")),
]


def check(env):
    """Both checkers, with nothing skipped and no warning let through."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env)
        sb3_check_env(env, skip_render_check=False)


@pytest.mark.parametrize("family", ALL, ids=lambda family: family.name)
def test_the_checkers_have_nothing_to_say(family):
    check(FamilyEnv(family))


@pytest.mark.parametrize("which", ["observation_space", "action_space"])
def test_the_checkers_would_complain_of_the_familys_own_spaces(which):
    family = make_family("half-cheetah-vel", preset="promp")
    env = FamilyEnv(family)
    setattr(env, which, getattr(family, which))
    with pytest.raises(Warning):
        check(env)


def play(env, seed, steps=12):
    """What a seeded env shows and pays when seeded actions are taken."""
    rng, (obs, _) = np.random.default_rng(0), env.reset(seed=seed)
    shown, task = [obs], env.tasks.features().clone()
    for _ in range(steps):
        low, high = env.action_space.low, env.action_space.high
        obs, reward, terminated, truncated, _ = env.step(rng.uniform(low, high).astype("f"))
        shown.append(np.append(obs, reward))
        if terminated or truncated:
            obs, _ = env.reset()
            shown.append(obs)
    return np.concatenate(shown), task, env.tasks.features().clone()


def test_a_seed_decides_on_tasks_and_luck():
    one = FamilyEnv(make_family("point-dense", horizon=5))
    first = play(one, 1)
    other = play(FamilyEnv(one.family), 1)
    again, different = play(one, 1), play(one, 2)
    for a, b in ((first, other), (first, again)):
        assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
    assert not np.array_equal(first[0], different[0])
    assert not torch.equal(first[1], first[2])  # a reset draws a new task


def test_a_fixed_task_stays_and_a_split_is_kept():
    family = make_family("half-cheetah-vel")
    task = family.sample_tasks(1, "train", torch.Generator())
    env = FamilyEnv(family, tasks=task)
    env.reset(seed=3)
    env.reset()
    assert torch.equal(env.tasks.speed, task.speed)
    out = FamilyEnv(family, split="out-of-range")
    speeds = [float((out.reset(), out.tasks.speed)[1]) for _ in range(5)]
    assert min(speeds) > 3.0 and len(set(speeds)) == 5
    for bad in (
        {"split": "nowhere"},
        {"tasks": family.sample_tasks(2, "train", torch.Generator())},
    ):
        with pytest.raises(UsageError):
            FamilyEnv(family, **bad)


def test_an_episode_ends_by_its_time_limit_and_shows_its_last_state():
    family = make_family("point-dense", horizon=3)
    env = FamilyEnv(family)
    start, _ = env.reset(seed=0)
    for step in range(3):
        obs, _, terminated, truncated, info = env.step(np.ones(2, dtype=np.float32))
        assert (terminated, truncated) == (False, step == 2)
        assert isinstance(info["is_success"], bool)
    np.testing.assert_allclose(obs, start + 0.3, atol=1e-6)


def test_an_episode_of_one_step_terminates():
    env = FamilyEnv(make_family("bandit"))
    env.reset(seed=0)
    assert env.step(1)[2:4] == (True, False)


def test_actions_fill_the_familys_bounds():
    space = box(np.array([-10.0, 0.0], dtype="f"), np.array([10.0, 1.0], dtype="f"))
    bridge = Bridge(box(-1.0, 1.0, 1), space)
    actions = np.array([[-1.0, -1.0], [0.0, 0.0], [1.0, 1.0]])
    expected = torch.tensor([[-10.0, 0.0], [0.0, 0.5], [10.0, 1.0]])
    assert torch.equal(bridge.actions(actions), expected)
    assert bridge.action_space == box(-1.0, 1.0, 2)
    discrete = replace(bridge, inner_action_space=gym.spaces.Discrete(3))
    assert torch.equal(discrete.actions(np.array([2, 0])), torch.tensor([2, 0]))


# --- the vector env ----------------------------------------------------------------------------


def random_actions(rng, venv):
    """Actions of all worlds."""
    if isinstance(venv.action_space, gym.spaces.Discrete):
        return rng.integers(venv.action_space.n, size=venv.num_envs)
    shape = (venv.num_envs, venv.action_space.shape[0])
    return rng.uniform(-1.0, 1.0, shape).astype(np.float32)


@pytest.mark.parametrize("name", ["half-cheetah-vel", "navigation-2d", "gridnavi"])
def test_worlds_do_what_they_do_without_the_adapter(name):
    family = make_family(name, **({} if "cheetah" in name else {"horizon": 7}))
    venv, plain = FamilyVecEnv(family.make_worlds(3), seed=5), family.make_worlds(3)
    generator = torch.Generator().manual_seed(5)
    plain.set_tasks(family.sample_tasks(3, "train", generator))
    assert np.array_equal(venv.reset(), plain.reset()[0].numpy())
    rng = np.random.default_rng(0)
    for step in range(1, 15):
        actions = random_actions(rng, venv)
        obs, reward, done, infos = venv.step(actions)
        tensor = torch.as_tensor(actions)
        expected, paid, terminated, truncated, info = plain.step(tensor)
        assert np.array_equal(reward, paid.numpy())
        assert np.array_equal(done, (terminated | truncated).numpy())
        for world in range(3):
            assert ("terminal_observation" in infos[world]) == bool(done[world])
            if done[world]:
                final = info["final_obs"][world].numpy()
                assert np.array_equal(infos[world]["terminal_observation"], final)
                assert infos[world]["TimeLimit.truncated"] == bool(truncated[world])
        if step % family.horizon == 0:
            plain.set_tasks(family.sample_tasks(3, "train", generator))
            expected, _ = plain.reset()
        assert np.array_equal(obs, expected.numpy())


def test_all_tasks_are_exchanged_every_so_many_episodes_by_a_generator_of_its_own():
    family = make_family("point-dense", horizon=4)
    venv = FamilyVecEnv(family.make_worlds(2), "out-of-range", seed=1, episodes_per_task=2)
    venv.reset()
    before, seen = global_generators(), []
    for _ in range(24):
        seen.append(venv.env.tasks.goal.tolist())
        venv.step(np.zeros((2, 2), dtype=np.float32))
    assert all(seen[8 * i : 8 * i + 8] == [seen[8 * i]] * 8 for i in range(3))
    goals = torch.tensor([seen[0], seen[8], seen[16]]).flatten(0, 1)
    assert len(goals.unique(dim=0)) == 6
    assert float(goals.abs().amax(-1).min()) > 1.0  # as they are out of range
    assert torch.equal(before["torch"], global_generators()["torch"])
    again = FamilyVecEnv(family.make_worlds(2), "out-of-range", seed=1)
    again.reset()
    assert again.env.tasks.goal.tolist() == seen[0]


def test_seeding_restarts_tasks_and_luck():
    family = make_family("point-dense")
    starts = []
    for seed in (0, 1):
        venv = FamilyVecEnv(family.make_worlds(2, seed=seed), seed=seed)
        venv.seed(77)
        starts.append((venv.reset(), venv.env.tasks.goal))
    assert np.array_equal(starts[0][0], starts[1][0])
    assert torch.equal(starts[0][1], starts[1][1])


class ShortWorlds(VectorEnv):
    """World i terminates its episodes after 2 + i steps; the last one blows up once, at step 1."""

    def _apply_tasks(self, tasks):
        self._clock = torch.zeros(self.num_envs)

    def _reset_worlds(self, mask):
        self._clock = self._clock.masked_fill(mask, 0.0)

    def _advance(self, actions):
        self._clock = self._clock + 1.0
        unstable = torch.zeros(self.num_envs, dtype=torch.bool)
        if not hasattr(self, "blown"):
            self.blown = unstable[-1] = True
        limit = 2.0 + torch.arange(self.num_envs)
        return torch.ones(self.num_envs), self._clock >= limit, {"unstable": unstable}

    def _observe(self):
        return torch.stack([self._clock, self._clock], -1)

    def _world_state(self):
        return {"clock": self._clock.clone()}


def test_an_exchange_cuts_off_episodes_that_are_not_over_and_says_so():
    family = make_family("point-dense", horizon=5)
    venv = FamilyVecEnv(ShortWorlds(family, 3))
    venv.reset()
    steps = [venv.step(np.zeros((3, 2), dtype=np.float32)) for _ in range(5)]
    obs, _, done, infos = steps[-1]
    # The first world is in step 1 of its third episode, the second in step 2 of its second, and
    # the third, which blew up after step 1, ends by itself.
    assert done.tolist() == [True, True, True]
    assert [info["TimeLimit.truncated"] for info in infos] == [True, True, False]
    assert ["episode" in info for info in infos] == [False, False, True]
    assert [info["terminal_observation"][0] for info in infos] == [1.0, 2.0, 4.0]
    assert obs.tolist() == [[0.0, 0.0]] * 3
    assert venv.finished == [1.0, 2.0, 3.0, 2.0, 4.0]


def test_a_step_that_blew_up_leads_nowhere():
    venv = FamilyVecEnv(ShortWorlds(make_family("point-dense", horizon=5), 3))
    venv.reset()
    _, _, done, infos = venv.step(np.zeros((3, 2), dtype=np.float32))
    assert done.tolist() == [False, False, True]
    assert infos[2]["terminal_observation"].tolist() == [0.0, 0.0]
    assert infos[2]["TimeLimit.truncated"] is True


def test_it_goes_on_exactly_from_a_saved_state():
    family = make_family("navigation-2d", horizon=6)
    one, other = (FamilyVecEnv(family.make_worlds(3, seed=s), seed=s) for s in (0, 1))
    rng = np.random.default_rng(0)
    one.reset()
    for _ in range(4):
        one.step(random_actions(rng, one))
    other.env.load_state_dict(one.env.state_dict())
    other.load_state_dict(one.state_dict())
    one.finished.clear()
    for _ in range(12):
        actions = random_actions(rng, one)
        for a, b in zip(one.step(actions), other.step(actions), strict=True):
            assert np.array_equal(a, b) if isinstance(a, np.ndarray) else str(a) == str(b)
    assert one.finished == other.finished


def test_the_library_trains_on_it_and_reports_episodes():
    family = make_family("point-dense", horizon=5)
    venv = FamilyVecEnv(family.make_worlds(4))
    model = PPO("MlpPolicy", venv, n_steps=10, batch_size=20, n_epochs=1, seed=0, device="cpu")
    model.learn(80)
    assert len(model.ep_info_buffer) == 16
    assert {info["l"] for info in model.ep_info_buffer} == {5}
    assert len(model.ep_success_buffer) == 16
    assert venv.get_attr("horizon", [0, 1]) == [5, 5]
    assert venv.env_is_wrapped(gym.Wrapper) == [False] * 4
    assert not venv.has_attr("nothing")
    for refused in (lambda: venv.set_attr("horizon", 3), lambda: venv.env_method("jump")):
        with pytest.raises(AttributeError, match="stepped together"):
            refused()
    venv.close()


def test_unfit_settings_are_refused():
    worlds = make_family("point-dense").make_worlds(2)
    with pytest.raises(UsageError, match="episodes_per_task"):
        FamilyVecEnv(worlds, episodes_per_task=0)
    with pytest.raises(UsageError, match="no split"):
        FamilyVecEnv(worlds, "nowhere")

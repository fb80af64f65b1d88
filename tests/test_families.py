"""The contract that every family keeps, whatever it simulates."""

import copy
import io
import subprocess
import sys

import gymnasium as gym
import pytest
import torch
from gymnasium.vector import AutoresetMode
from registered import NAMES, SHORT

from metarl.envs.metaworld.families import MetaWorld
from metarl.envs.registry import family_class, make_family
from metarl.envs.robot import Robot
from metarl.errors import UsageError

VARIANTS = {
    "gridnavi-xy": ("gridnavi", {"observation": "xy"}),
    "maze-key-door": ("maze", {"variant": "key-door", "size": 7}),
    "maze-small": ("maze", {"size": 7, "horizon": 20}),
    "bandit-long": ("bandit", {"arms": 7, "horizon": 3}),
    "half-cheetah-vel-promp": ("half-cheetah-vel", {"preset": "promp"}),
}
CASES = {name: (name, {}) for name in NAMES} | SHORT | VARIANTS
WORLDS = 4


@pytest.fixture(params=CASES)
def family(request):
    name, options = CASES[request.param]
    return make_family(name, **options)


def sample(family, n, split="train", seed=0):
    return family.sample_tasks(n, split, torch.Generator().manual_seed(seed))


def random_actions(family, steps, worlds=WORLDS, seed=0):
    """A list of action tensors, one a step."""
    generator = torch.Generator().manual_seed(seed)
    space = family.action_space
    if isinstance(space, gym.spaces.Discrete):
        return list(torch.randint(int(space.n), (steps, worlds), generator=generator))
    low, high = torch.as_tensor(space.low), torch.as_tensor(space.high)
    return list(low + (high - low) * torch.rand(steps, worlds, *space.shape, generator=generator))


def started(family, tasks, worlds=WORLDS, seed=7):
    env = family.make_worlds(worlds, seed=seed)
    env.set_tasks(tasks)
    return env, env.reset()[0]


def play(env, actions):
    """Step through `actions`; every output of every step, as a list of dicts of tensors."""
    record = []
    for action in actions:
        obs, reward, terminated, truncated, info = env.step(action)
        record.append(
            {"obs": obs, "reward": reward, "terminated": terminated, "truncated": truncated, **info}
        )
    return record


def assert_same(left, right, world=slice(None)):
    """Both records hold the same bits in `world`."""
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            torch.testing.assert_close(a[name][world], b[name][world], rtol=0, atol=0)


def mid_episode(family):
    """A number of steps that crosses an episode's end and stops inside an episode, if it can."""
    return min(family.horizon + max(family.horizon // 2, 1), 250)


# --- what a family says about itself -----------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_docstring_has_tables_of_observation_action_and_task(name):
    doc = family_class(name).__doc__
    for table in ("observation", "action", "task"):
        assert f"| {table} | meaning | unit | range |" in doc


@pytest.mark.parametrize("name", NAMES)
def test_registry_knows_the_family_by_its_own_name(name):
    assert make_family(name).name == name


def test_space_and_sizes_are_as_declared(family):
    assert isinstance(family.observation_space, gym.spaces.Box)
    assert family.observation_space.dtype == "float32"
    assert isinstance(family.action_space, gym.spaces.Box | gym.spaces.Discrete)
    env = family.make_worlds(WORLDS)
    assert env.num_envs == WORLDS
    assert env.single_observation_space == family.observation_space
    assert env.single_action_space == family.action_space
    assert env.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP


# --- tasks -------------------------------------------------------------------------------------


def test_sampling_is_pure(family):
    for split in family.splits:
        before = torch.get_rng_state()
        first, again, other = (sample(family, 40, split, seed) for seed in (1, 1, 2))
        assert torch.equal(torch.get_rng_state(), before)
        for name, tensor in first.tensors().items():
            assert len(tensor) == 40
            assert torch.equal(tensor, again.tensors()[name])
        one = split != "train" and len(first.features().unique(dim=0)) == 1
        if not one:  # there may be only one task to hold out, such as an ant's fourth leg
            assert not torch.equal(first.features(), other.features())


def test_a_generator_moves_on(family):
    generator = torch.Generator().manual_seed(0)
    first, second = (family.sample_tasks(40, "train", generator) for _ in range(2))
    assert not torch.equal(first.features(), second.features())


def test_features_are_finite_rows(family):
    for split in family.splits:
        features = sample(family, 9, split).features()
        assert features.dtype == torch.float32
        assert features.shape == (9, family.task_dim)
        assert features.isfinite().all()


def test_splits_share_no_task(family):
    rows = {s: set(map(tuple, sample(family, 500, s).features().tolist())) for s in family.splits}
    for one in rows:
        for two in rows:
            if one == two or (family.shared_splits and "out-of-range" not in (one, two)):
                continue
            assert not rows[one] & rows[two], (one, two)
    if family.shared_splits:
        assert rows["train"] == rows["held-out"]


def test_unknown_split_is_refused(family):
    with pytest.raises(UsageError, match="has no split 'test'; choose from train"):
        sample(family, 3, "test")


# --- worlds ------------------------------------------------------------------------------------


def test_tensors_have_the_promised_shape_type_and_device(family):
    env, obs = started(family, sample(family, 2))
    width = family.observation_space.shape[0]
    low = torch.as_tensor(family.observation_space.low)
    high = torch.as_tensor(family.observation_space.high)
    expected = {
        "obs": ((WORLDS, width), torch.float32),
        "final_obs": ((WORLDS, width), torch.float32),
        "reward": ((WORLDS,), torch.float32),
        "terminated": ((WORLDS,), torch.bool),
        "truncated": ((WORLDS,), torch.bool),
        "success": ((WORLDS,), torch.float32),
        "unstable": ((WORLDS,), torch.bool),
    }
    assert (obs.shape, obs.dtype) == expected["obs"]
    for step in play(env, random_actions(family, mid_episode(family))):
        for name, tensor in step.items():
            if name in expected:
                assert (tuple(tensor.shape), tensor.dtype) == expected[name], name
            assert tensor.device == env.device
        for seen in (step["obs"], step["final_obs"]):
            assert (seen >= low).all() and (seen <= high).all()
        assert not (step["terminated"] & step["truncated"]).any()


def test_outputs_are_fresh_tensors(family):
    env, obs = started(family, sample(family, WORLDS))
    first_obs = obs.clone()
    actions = random_actions(family, mid_episode(family))
    record = play(env, actions[:3])
    kept = copy.deepcopy(record)
    play(env, actions[3:])
    env.reset()
    assert torch.equal(obs, first_obs)
    assert_same(record, kept)


def test_same_seed_and_tasks_give_the_same_bits(family):
    actions = random_actions(family, mid_episode(family))
    records = []
    for _ in range(2):
        env, obs = started(family, sample(family, WORLDS))
        records.append([{"obs": obs}, *play(env, actions)])
    assert_same(*records)


def test_reset_with_a_seed_restarts_the_random_streams(family):
    actions = random_actions(family, mid_episode(family))
    env, _ = started(family, sample(family, WORLDS), seed=11)
    first = [{"obs": env.reset(seed=5)[0]}, *play(env, actions)]
    second = [{"obs": env.reset(seed=5)[0]}, *play(env, actions)]
    assert_same(first, second)


def test_tasks_matter(family):
    actions = random_actions(family, min(2 * family.horizon, 100), worlds=32)
    rewards = []
    for seed in (1, 2):
        env, _ = started(family, sample(family, 32, seed=seed), worlds=32)
        rewards.append(torch.stack([step["reward"] for step in play(env, actions)]))
    assert not torch.equal(*rewards)


def test_layout_is_task_major(family):
    actions = random_actions(family, mid_episode(family))
    tasks = sample(family, 2)
    shared, _ = started(family, tasks)
    spread, _ = started(family, tasks[[0, 0, 1, 1]])
    assert shared.num_tasks == 2
    assert_same(play(shared, actions), play(spread, actions))


def test_worlds_do_not_disturb_each_other(family):
    steps = mid_episode(family)
    mine, theirs = random_actions(family, steps), random_actions(family, steps, seed=9)
    for other in theirs:
        other[0] = mine[0][0]
    theirs = [torch.cat([a[:1], b[1:]]) for a, b in zip(mine, theirs, strict=True)]
    tasks, strangers = sample(family, WORLDS, seed=1), sample(family, WORLDS, seed=2)
    env, _ = started(family, tasks)
    neighbours, _ = started(family, type(tasks).concatenate([tasks[:1], strangers[1:]]))
    assert_same(play(env, mine), play(neighbours, theirs), world=0)


def test_save_and_restore_are_exact(family):
    actions = random_actions(family, 2 * mid_episode(family))
    half = len(actions) // 2
    env, _ = started(family, sample(family, WORLDS))
    play(env, actions[:half])
    saved = env.state_dict()
    buffer = io.BytesIO()
    torch.save(saved, buffer)
    rest = play(env, actions[half:])
    buffer.seek(0)
    # What was saved before the rest was played must not have moved along with the env.
    for state in (saved, torch.load(buffer, weights_only=True)):
        restored = family.make_worlds(WORLDS, seed=99)
        restored.load_state_dict(state)
        assert_same(rest, play(restored, actions[half:]))


def test_restoring_into_a_running_env_is_exact(family):
    actions = random_actions(family, mid_episode(family))
    env, _ = started(family, sample(family, WORLDS))
    play(env, actions[:2])
    saved = env.state_dict()
    rest = play(env, actions[2:])
    env.set_tasks(sample(family, 2, seed=5))
    env.reset()
    env.load_state_dict(saved)
    assert_same(rest, play(env, actions[2:]))


def on_a_device_of_its_own(case):
    """MuJoCo simulates on the processor, wherever the tensors are."""
    return not issubclass(family_class(CASES[case][0]), Robot | MetaWorld)


@pytest.mark.parametrize("case", [case for case in CASES if on_a_device_of_its_own(case)])
def test_a_step_never_leaves_the_device(case):
    """Tensors on the device "meta" have no values: mixing devices or looking at a value fails."""
    name, options = CASES[case]
    family = make_family(name, **options)
    env = family.make_worlds(WORLDS, device="meta")
    env.set_tasks(sample(family, WORLDS))
    env.reset()
    for step in play(env, [action.to("meta") for action in random_actions(family, 2)]):
        assert {tensor.device.type for tensor in step.values()} == {"meta"}


# --- episodes, against one slow world at a time --------------------------------------------------


def play_slowly(family, tasks, index, actions, seed):
    """World `index` of an env, alone, in an episode loop that everybody would write.

    Returns the first observation, and every output of every step, `[T, ...]` by name.
    """
    env, _ = started(family, tasks[index : index + 1], worlds=1, seed=seed)
    env._keys = family.make_worlds(WORLDS, seed=seed)._keys[index : index + 1]
    env._draws.zero_()
    everything = torch.ones(1, dtype=torch.bool)
    env._reset_worlds(everything)
    first_obs, elapsed = env._observe()[0], 0
    rows = []
    for action in actions:
        reward, terminated, _ = env._advance(action[index : index + 1])
        elapsed += 1
        truncated = ~terminated & (elapsed == family.horizon)
        obs = final_obs = env._observe()
        if terminated or truncated:
            env._reset_worlds(everything)
            obs, elapsed = env._observe(), 0
        rows.append((obs, reward, terminated, truncated, final_obs))
    names = ("obs", "reward", "terminated", "truncated", "final_obs")
    columns = (torch.cat(column) for column in zip(*rows, strict=True))
    return first_obs, dict(zip(names, columns, strict=True))


def test_autoreset_agrees_with_one_slow_world_at_a_time(family):
    steps = 3 * family.horizon if isinstance(family, MetaWorld) else 10_000 // WORLDS
    tasks, actions = sample(family, WORLDS), random_actions(family, steps)
    env, first_obs = started(family, tasks, seed=7)
    record = play(env, actions)
    # One world alone may round differently in the last bit.
    close = {"rtol": 1e-4, "atol": 1e-4}
    for i in range(WORLDS):
        expected_obs, expected = play_slowly(family, tasks, i, actions, seed=7)
        torch.testing.assert_close(first_obs[i], expected_obs, **close)
        for name, column in expected.items():
            mine = torch.stack([step[name][i] for step in record])
            torch.testing.assert_close(mine, column, **close)
        ends = expected["terminated"] | expected["truncated"]
        assert ends.sum() >= len(actions) // family.horizon


# --- bad input -----------------------------------------------------------------------------------


def test_bad_actions_are_refused(family):
    env, _ = started(family, sample(family, WORLDS))
    good = random_actions(family, 1)[0]
    with pytest.raises(UsageError, match="shape"):
        env.step(good[:-1])
    with pytest.raises(UsageError, match="shape"):
        env.step(good.unsqueeze(-1))
    if isinstance(family.action_space, gym.spaces.Discrete):
        with pytest.raises(UsageError, match="must lie in 0"):
            env.step(torch.full_like(good, int(family.action_space.n)))
        with pytest.raises(UsageError, match="must lie in 0"):
            env.step(torch.full_like(good, -1))
        with pytest.raises(UsageError, match="int64"):
            env.step(torch.full((WORLDS,), float("nan")))
    else:
        for wrong in (float("nan"), float("inf")):
            bad = good.clone()
            bad[2, 0] = wrong
            with pytest.raises(UsageError, match="world 2 is not finite"):
                env.step(bad)
        with pytest.raises(UsageError, match="float32"):
            env.step(good.double())


def test_refused_actions_change_nothing(family):
    actions = random_actions(family, 5)
    env, _ = started(family, sample(family, WORLDS))
    reference, _ = started(family, sample(family, WORLDS))
    with pytest.raises(UsageError):
        env.step(actions[0][:-1])
    assert_same(play(env, actions), play(reference, actions))


def test_calls_out_of_order_are_refused(family):
    env = family.make_worlds(WORLDS)
    action = random_actions(family, 1)[0]
    with pytest.raises(UsageError, match="set_tasks before reset"):
        env.reset()
    with pytest.raises(UsageError, match="call reset"):
        env.step(action)
    env.set_tasks(sample(family, 2))
    with pytest.raises(UsageError, match="call reset"):
        env.step(action)


def test_counts_that_do_not_fit_are_refused(family):
    with pytest.raises(UsageError, match="num_worlds must be at least 1"):
        family.make_worlds(0)
    env, _ = started(family, sample(family, 2))
    with pytest.raises(UsageError, match="shared evenly"):
        env.set_tasks(sample(family, 3))
    with pytest.raises(UsageError, match="one integer seed"):
        env.reset(seed=[1, 2, 3, 4])
    with pytest.raises(UsageError, match="4 worlds"):
        family.make_worlds(2).load_state_dict(env.state_dict())


# --- the table of families -----------------------------------------------------------------------


def test_unknown_names_are_refused_with_the_closest_one():
    with pytest.raises(UsageError, match=r"did you mean gridnavi\?.*choose from ant-crippled"):
        make_family("gridnavy")
    with pytest.raises(UsageError, match=r"did you mean arms\?.*choose from episodes"):
        make_family("bandit", arm=3)


@pytest.mark.parametrize("value", [0, -1, 2.5, True, "4", float("nan")])
def test_options_out_of_range_are_refused(value):
    for name in NAMES:
        with pytest.raises(UsageError, match=f"family {name}: episodes must be a whole number"):
            make_family(name, episodes=value)


def test_the_table_imports_nothing_heavy():
    code = "import sys, metarl.envs.registry; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

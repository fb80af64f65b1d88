"""The half-cheetah families against gymnasium's robot and the published definitions."""

import gymnasium as gym
import numpy as np
import pytest
import torch

from metarl.envs.half_cheetah import (
    Direction,
    HalfCheetahDir,
    HalfCheetahVel,
    TargetSpeed,
    control_cost,
)
from metarl.envs.physics import CpuPhysics
from metarl.errors import UsageError

FAMILIES = [
    HalfCheetahVel(),
    HalfCheetahDir(),
    HalfCheetahVel(preset="promp"),
    HalfCheetahDir(preset="promp"),
]
every_family = pytest.mark.parametrize("family", FAMILIES, ids=str)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def started(family, num_worlds=6, seed=0, threads=1):
    env = family.make_worlds(num_worlds, seed=seed, threads=threads)
    env.set_tasks(family.sample_tasks(num_worlds, "train", generator()))
    return env, env.reset()[0]


def random_actions(family, steps, num_worlds=6):
    bound = float(family.action_space.high[0])
    return bound * (2 * torch.rand(steps, num_worlds, 6, generator=generator(1)) - 1)


@every_family
def test_equals_gymnasium(family):
    """A whole episode: observation bit for bit, reward to 1e-6."""
    env, _ = started(family, num_worlds=2)
    robots = [gym.make("HalfCheetah-v5").unwrapped for _ in range(2)]
    for world, robot in enumerate(robots):
        robot.reset()
        robot.set_state(*(env.physics.field(name)[world].numpy() for name in ("qpos", "qvel")))
    scale = float(family.action_space.high[0])
    tasks = env.tasks.features()[:, 0].double().numpy()
    for action in random_actions(family, family.horizon, num_worlds=2):
        _, reward, _, _, info = env.step(action)
        ours = info["final_obs"].numpy()
        for world, robot in enumerate(robots):
            command = action[world].numpy() / scale
            theirs, _, _, _, figures = robot.step(command)
            np.testing.assert_array_equal(ours[world, :17], theirs.astype(np.float32))
            if family.observations == 20:
                torso = robot.data.body("torso").xpos.astype(np.float32)
                np.testing.assert_array_equal(ours[world, 17:], torso)
            speed, task = figures["x_velocity"], tasks[world]
            run = -abs(speed - task) if family.name == "half-cheetah-vel" else task * speed
            expected = run - 0.05 * np.square(command.astype(np.float64)).sum()
            assert float(reward[world]) == pytest.approx(expected, abs=1e-6)


def test_published_sizes():
    sizes = [(f.observation_space.shape[0], f.action_space.high[0], f.horizon) for f in FAMILIES]
    assert sizes == [(17, 1, 200), (20, 1, 200), (17, 10, 100), (17, 10, 100)]
    assert all(f.episodes == 2 and f.action_space.shape == (6,) for f in FAMILIES)


def test_reward_by_hand():
    velocity = torch.tensor([1.0, -2.0], dtype=torch.float64)
    command = torch.tensor([[1.0, 0, 0, 0, 0, -1.0], [0.5, 0, 0, 0, 0, 0]])
    speed = TargetSpeed(torch.tensor([3.0, 0.0], dtype=torch.float64))
    np.testing.assert_allclose(HalfCheetahVel().run_reward(velocity, speed), [-2, -2])
    direction = Direction(torch.tensor([1.0, -1.0], dtype=torch.float64))
    np.testing.assert_allclose(HalfCheetahDir().run_reward(velocity, direction), [1, 2])
    np.testing.assert_allclose(control_cost(command), [0.1, 0.0125])


def test_actions_beyond_the_bounds_are_clipped():
    for family in (HalfCheetahVel(), HalfCheetahVel(preset="promp")):
        bound = float(family.action_space.high[0])
        (within, _), (beyond, _) = started(family), started(family)
        action = bound * random_actions(family, 1)[0].sign()
        assert torch.equal(within.step(action)[1], beyond.step(1e12 * action)[1])


def test_speeds_of_the_splits():
    family = HalfCheetahVel()
    speeds = {
        split: family.sample_tasks(20_000, split, generator()).speed for split in family.splits
    }
    for split, low, high in (("train", 0, 3), ("held-out", 0, 3), ("out-of-range", 3, 4)):
        assert speeds[split].min() > low and speeds[split].max() <= high
        assert speeds[split].mean() == pytest.approx((low + high) / 2, abs=0.02)
    # Stripes of 3 mm/s, every fifth held out.
    stripes = {split: set((speeds[split] / 0.003).long().tolist()) for split in speeds}
    assert not stripes["train"] & stripes["held-out"]
    assert len(stripes["train"]) == 800 and len(stripes["held-out"]) == 200


def test_directions_are_balanced_and_in_random_order():
    family = HalfCheetahDir()
    first = {float(family.sample_tasks(3, "train", generator(s)).direction[0]) for s in range(20)}
    assert first == {-1.0, 1.0}
    sums = {float(family.sample_tasks(3, "train", generator(s)).direction.sum()) for s in range(20)}
    assert sums == {-1.0, 1.0}
    many = family.sample_tasks(1000, "held-out", generator()).direction
    assert many.sum() == 0 and set(many.tolist()) == {-1.0, 1.0}
    assert family.shared_splits and family.splits == ("train", "held-out")
    with pytest.raises(UsageError, match="no split 'out-of-range'"):
        family.sample_tasks(1, "out-of-range", generator())


def test_tasks_reach_their_worlds():
    family = HalfCheetahVel()
    env = family.make_worlds(6)
    env.set_tasks(TargetSpeed(torch.tensor([0.0, 2.0], dtype=torch.float64)))
    env.reset()
    speed = env.physics.field("qpos")[:, 0].clone()
    _, reward, *_ = env.step(torch.zeros(6, 6))
    speed = (env.physics.field("qpos")[:, 0] - speed) / 0.05
    target = torch.tensor([0.0, 0, 0, 2, 2, 2], dtype=torch.float64)
    np.testing.assert_allclose(reward, -(speed - target).abs(), atol=1e-6)


@every_family
def test_episodes_are_cut_at_the_horizon(family):
    env, _ = started(family)
    for step, action in enumerate(random_actions(family, family.horizon)):
        obs, _, terminated, truncated, info = env.step(action)
        last = step == family.horizon - 1
        assert not terminated.any() and truncated.tolist() == [last] * 6
        assert torch.equal(obs, info["final_obs"]) == (not last)
    assert (env.physics.field("time") == 0).all()


def test_start_states_are_gymnasiums():
    env, _ = started(HalfCheetahVel(), num_worlds=4000)
    qpos, qvel = env.physics.field("qpos"), env.physics.field("qvel")
    assert qpos.abs().max() < 0.1 and qpos.abs().max() > 0.0999
    np.testing.assert_allclose(qpos.mean(0), 0, atol=0.005)
    np.testing.assert_allclose(qpos.std(0), 0.1 / 3**0.5, rtol=0.05)
    np.testing.assert_allclose(qvel.mean(0), 0, atol=0.01)
    np.testing.assert_allclose(qvel.std(0), 0.1, rtol=0.05)
    correlations = np.corrcoef(torch.cat([qpos, qvel], 1).T) - np.eye(18)
    assert np.abs(correlations).max() < 0.08


@every_family
def test_saved_worlds_go_on_bit_for_bit(family):
    env, _ = started(family)
    actions = random_actions(family, family.horizon + 30)
    for action in actions[:20]:
        env.step(action)
    saved = env.state_dict()

    def finish(env):
        return [torch.cat([x[0].flatten(), x[1]]) for x in map(env.step, actions[20:])]

    expected = finish(env)
    other = family.make_worlds(6, seed=5, threads=2)
    other.load_state_dict(saved)
    assert all(map(torch.equal, finish(other), expected))


def test_number_of_threads_and_of_other_worlds_does_not_matter():
    family = HalfCheetahVel()
    few, _ = started(family, num_worlds=4)
    many = family.make_worlds(8, threads=2)
    many.set_tasks(TargetSpeed(few.tasks.speed.repeat(2)))
    many.reset()
    for action in random_actions(family, 210, num_worlds=4):
        obs, reward, *_ = few.step(action)
        more_obs, more_reward, *_ = many.step(action.repeat(2, 1))
        assert torch.equal(more_obs[:4], obs) and torch.equal(more_reward[:4], reward)


def test_bad_options():
    with pytest.raises(UsageError, match="preset 'maml'; choose from pearl, promp"):
        HalfCheetahVel(preset="maml")
    with pytest.raises(UsageError, match="episodes"):
        HalfCheetahDir(episodes=0)
    with pytest.raises(UsageError, match="threads must be at least 1"):
        HalfCheetahVel().make_worlds(2, threads=0)


def test_physics_is_simulated_in_steps_of_a_hundredth_of_a_second():
    env, _ = started(HalfCheetahVel())
    assert isinstance(env.physics, CpuPhysics)
    for action in random_actions(env.family, 3):
        env.step(action)
    np.testing.assert_allclose(env.physics.field("time"), 0.15)

"""Point robots: the published starts, goals and rewards, and what knowing the goal earns."""

import math

import pytest
import torch

from metarl.envs.registry import make_family
from metarl.exploration import RepeatedActions
from metarl.oracle import TaskInObservation
from metarl.rollout import run_trials

NAMES = ("point-dense", "point-sparse", "navigation-2d")


def goals(name, split, n=4000):
    return make_family(name).sample_tasks(n, split, torch.Generator().manual_seed(3)).goal


def is_held_out_stripe(u):
    """Whether numbers in [0, 1) lie in a held-out stripe: every fifth of 1000."""
    return (u.double() * 1000).floor() % 5 == 4


@pytest.mark.parametrize(
    ("name", "expected", "error"),
    [("point-dense", -5.187, 0.05), ("point-sparse", 13.38, 0.01), ("navigation-2d", -0.506, 0.01)],
)
def test_going_straight_for_a_known_goal_earns_the_oracle_return(name, expected, error):
    family, worlds = make_family(name), 100_000
    tasks = family.sample_tasks(worlds, "train", torch.Generator().manual_seed(0))
    env = family.make_worlds(worlds)
    env.set_tasks(tasks)
    obs, _ = env.reset()
    total, running = torch.zeros(worlds), torch.ones(worlds, dtype=torch.bool)
    success = torch.zeros(worlds)
    for _ in range(family.horizon):
        action = ((tasks.goal - obs) / 0.1).clamp(-1.0, 1.0)
        obs, reward, terminated, truncated, info = env.step(action)
        total += reward * running
        success = torch.where(running, info["success"], success)
        running &= ~(terminated | truncated)
    assert not running.any()
    assert float(total.mean()) == pytest.approx(expected, abs=error)
    assert success.mean() > 0.99


def test_goals_lie_where_the_papers_put_them():
    assert goals("point-dense", "train").abs().max() <= 1.0
    assert goals("navigation-2d", "train").abs().max() <= 0.5
    circle = goals("point-sparse", "train")
    torch.testing.assert_close(circle.norm(dim=-1), torch.ones(len(circle)))
    assert (circle[:, 1] > -1e-6).all()
    for name, half in (("point-dense", 1.0), ("navigation-2d", 0.5)):
        spread = goals(name, "train").double()
        assert spread.mean(0).abs().max() < 0.05 * half
        torch.testing.assert_close(
            spread.std(0),
            torch.full((2,), half / math.sqrt(3), dtype=torch.float64),
            rtol=0.05,
            atol=0,
        )


@pytest.mark.parametrize("split", ["train", "held-out"])
def test_the_coordinate_that_tells_the_split_does(split):
    for name, half in (("point-dense", 1.0), ("navigation-2d", 0.5)):
        u = (goals(name, split)[:, 0].double() + half) / (2 * half)
        assert (is_held_out_stripe(u) == (split == "held-out")).all()
    x, y = goals("point-sparse", split).double().unbind(-1)
    # Where the circle is flat in x, y tells the angle better.
    angle = torch.atan2(y, x)
    assert (is_held_out_stripe(angle / math.pi) == (split == "held-out")).all()


def test_out_of_range_goals_lie_outside_and_all_around():
    for name, half, outer in (("point-dense", 1.0, 1.5), ("navigation-2d", 0.5, 0.75)):
        away = goals(name, "out-of-range")
        largest = away.abs().amax(-1)
        assert largest.min() >= half
        assert largest.max() <= outer
        assert away.mean(0).abs().max() < 0.06
        # Uniform over the frame: the share of the four corners is that of their area.
        corners = (away.abs() > half).all(-1).float().mean()
        area = 4 * (outer - half) ** 2 / (4 * outer**2 - 4 * half**2)
        assert float(corners) == pytest.approx(area, abs=0.03)
    below = goals("point-sparse", "out-of-range")
    assert (below[:, 1] < 1e-6).all()
    torch.testing.assert_close(below.norm(dim=-1), torch.ones(len(below)))


def placed(name, position, goal):
    """One robot at `position` with its goal at `goal`."""
    family = make_family(name)
    env = family.make_worlds(1)
    task = family.sample_tasks(1, "train", torch.Generator())
    env.set_tasks(type(task)(goal=torch.tensor([goal])))
    env.reset()
    env._position = torch.tensor([position])
    return env


def test_moves_are_cut_to_a_tenth_of_a_metre():
    for name in NAMES:
        env = placed(name, [0.0, 0.0], [0.4, 0.4])
        obs, *_ = env.step(torch.tensor([[5.0, -0.5]]))
        torch.testing.assert_close(obs, torch.tensor([[0.1, -0.05]]))


@pytest.mark.parametrize(
    ("name", "offset", "reward", "success", "terminated"),
    [
        ("point-dense", [0.3, 0.4], -0.5, 0.0, False),
        ("point-dense", [0.0, 0.09], -0.09, 1.0, False),
        ("point-sparse", [0.15, 0.1], 1 - math.hypot(0.15, 0.1), 1.0, False),
        ("point-sparse", [0.15, 0.14], 0.0, 0.0, False),
        ("navigation-2d", [0.3, -0.4], -0.5, 0.0, False),
        ("navigation-2d", [0.011, 0.0], -0.011, 0.0, False),
        ("navigation-2d", [0.009, -0.009], -math.hypot(0.009, 0.009), 1.0, True),
    ],
)
def test_rewards_by_hand(name, offset, reward, success, terminated):
    env = placed(name, [0.3 + offset[0], 0.2 + offset[1]], [0.3, 0.2])
    _, got, ended, truncated, info = env.step(torch.zeros(1, 2))
    assert float(got) == pytest.approx(reward, abs=1e-6)
    assert float(info["success"]) == success
    assert bool(ended) == terminated
    assert not truncated


def test_starts():
    for name in NAMES:
        family = make_family(name)
        env = family.make_worlds(4000)
        env.set_tasks(family.sample_tasks(1, "train", torch.Generator()))
        first, second = env.reset()[0], env.reset()[0]
        if name == "point-dense":
            assert first.abs().max() <= 1.0
            assert float(first.std()) == pytest.approx(1 / math.sqrt(3), abs=0.02)
            assert not torch.equal(first, second)
        else:
            assert not first.any() and not second.any()


def test_only_a_sparse_reward_has_a_dense_one_beside_it():
    for name in NAMES:
        env = placed(name, [0.5, 0.2], [0.3, 0.1])
        info = env.step(torch.zeros(1, 2))[-1]
        assert ("dense_reward" in info) == (name == "point-sparse")


@pytest.mark.parametrize("near", [False, True])
def test_the_dense_reward_is_minus_the_distance_after_the_move(near):
    offset = [0.05, -0.1] if near else [0.5, 0.2]
    env = placed("point-sparse", [0.3 + offset[0], 0.1 + offset[1]], [0.3, 0.1])
    _, reward, _, _, info = env.step(torch.tensor([[1.0, 0.0]]))
    distance = math.hypot(offset[0] + 0.1, offset[1])
    assert float(info["dense_reward"]) == pytest.approx(-distance, abs=1e-6)
    assert bool(reward > 0) == near


def rollout_on(name, tasks=5, worlds=3):
    """A trial of random moves; the tasks, the family and what was recorded."""
    family = make_family(name)
    batch = family.sample_tasks(tasks, "train", torch.Generator().manual_seed(1))
    env = family.make_worlds(tasks * worlds)
    env.set_tasks(batch)
    low, high = (torch.full((2,), x) for x in (-1.0, 1.0))
    explorer = RepeatedActions(low, high, torch.Generator().manual_seed(2))
    return batch, family, run_trials(explorer, env, 10)


def test_a_rollout_keeps_both_rewards_and_the_sparse_one_counts():
    tasks, family, rollout = rollout_on("point-sparse")
    offset = rollout.final_obs - tasks.goal.view(1, -1, 1, 2)
    distance = offset.norm(dim=-1)
    torch.testing.assert_close(rollout.dense_reward, -distance)
    sparse = torch.where(distance <= 0.2, 1.0 - distance, 0.0)
    torch.testing.assert_close(rollout.reward, sparse)
    assert (sparse > 0).any() and (sparse == 0).any()
    returns = rollout.per_episode(rollout.reward, 10)
    assert float(returns.sum()) == pytest.approx(float(sparse.sum()), rel=1e-5)
    assert rollout.flat()["dense_reward"].shape == (10 * family.horizon, 15)


@pytest.mark.parametrize("name", ["point-dense", "navigation-2d"])
def test_without_a_dense_reward_a_rollout_has_the_reward_in_its_place(name):
    rollout = rollout_on(name)[-1]
    assert torch.equal(rollout.dense_reward, rollout.reward)


def test_who_is_told_the_task_gets_the_dense_reward_too():
    family = TaskInObservation.of(make_family("point-sparse"))
    env = family.make_worlds(4)
    env.set_tasks(family.sample_tasks(2, "train", torch.Generator()))
    env.reset()
    *_, info = env.step(torch.zeros(4, 2))
    torch.testing.assert_close(info["dense_reward"], torch.full((4,), -1.0))

"""Trials, the adaptation curve and its statistics against direct computations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from metarl.adaptation import AdaptationCurve, evaluate, pool
from metarl.envs.registry import make_family
from metarl.errors import UsageError
from metarl.experiments.agents import AGENTS
from metarl.oracle import TaskInObservation
from metarl.policy import Step
from metarl.rollout import run_trials
from metarl.statistics import iqm, mean, stratified_bootstrap


class RandomPolicy:
    """Acts at random and remembers what it was shown."""

    def __init__(self, actions: int) -> None:
        self.actions, self.seen = actions, list[Step]()

    def begin(self, num_tasks: int, worlds_per_task: int) -> None:
        """Start over."""
        self.generator = torch.Generator().manual_seed(0)
        self.seen.clear()

    def act(self, obs: Tensor) -> Tensor:
        """Any action."""
        return torch.randint(self.actions, (len(obs),), generator=self.generator)

    def observe(self, step: Step) -> None:
        """Keep the step."""
        self.seen.append(step)


def maze_curve(episodes: int = 3) -> tuple[AdaptationCurve, RandomPolicy]:
    family = make_family("maze", size=7, horizon=30)
    policy = RandomPolicy(int(family.action_space.n))  # type: ignore[union-attr]
    tasks = family.sample_tasks(8, "held-out", torch.Generator().manual_seed(0))
    env = family.make_worlds(24)
    return evaluate(policy, env, tasks, episodes, info={"family": "maze"}), policy


def test_curve_equals_a_walk_through_every_world() -> None:
    curve, policy = maze_curve()
    returns, lengths, success = (np.zeros((24, 3)) for _ in range(3))
    for world in range(24):
        episode = 0
        for step in policy.seen:
            if episode == 3:
                break
            returns[world, episode] += float(step.reward[world])
            lengths[world, episode] += 1
            success[world, episode] = max(success[world, episode], float(step.terminated[world]))
            episode += int(step.terminated[world] | step.truncated[world])
    assert lengths.max() == 30
    assert lengths.min() < 30, "some world must end early for this test to mean anything"
    for mine, slow in (
        (curve.returns, returns),
        (curve.lengths, lengths),
        (curve.success, success),
    ):
        np.testing.assert_allclose(mine, slow.reshape(8, 3, 3).mean(1), atol=1e-5)


def test_equal_evaluations_are_equal_and_survive_the_disk(tmp_path: Path) -> None:
    curve, again = maze_curve()[0], maze_curve()[0]
    assert curve == again
    curve.save(tmp_path / "deep" / "curve.json")
    assert AdaptationCurve.load(tmp_path / "deep" / "curve.json") == curve
    for text in ("", "{}", "[1]", '{"returns": 1}'):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(UsageError, match=r"bad\.json"):
            AdaptationCurve.load(tmp_path / "bad.json")


def test_inactive_steps_count_nowhere() -> None:
    family = make_family("maze", size=7, horizon=30)
    env = family.make_worlds(16)
    env.set_tasks(family.sample_tasks(16, "train", torch.Generator().manual_seed(3)))
    rollout = run_trials(RandomPolicy(int(family.action_space.n)), env, 2)  # type: ignore[union-attr]
    lengths = rollout.per_episode(torch.ones_like(rollout.reward), 2)
    assert rollout.steps == int(lengths.sum()) == int(rollout.active.sum())
    assert not bool((rollout.active & (rollout.episode >= 2)).any())
    # Each trial is one run of active steps from the start.
    assert bool((rollout.active.int().diff(dim=0) <= 0).all())


def test_summary_is_mean_and_iqm_over_tasks() -> None:
    curve = maze_curve()[0]
    summary, scores = curve.summary(), np.asarray(curve.returns)
    np.testing.assert_allclose(summary.mean, scores.mean(0))
    np.testing.assert_allclose(summary.iqm, stats.trim_mean(scores, 0.25, axis=0))
    np.testing.assert_allclose(pool([curve, curve]).mean, scores.mean(0))
    for low, centre, high in zip(summary.mean_low, summary.mean, summary.mean_high, strict=True):
        assert low < centre < high


def test_bootstrap_agrees_with_the_normal_interval_and_respects_strata() -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(1, 400))
    low, high = stratified_bootstrap(scores, mean)
    half = 1.96 * scores.std() / 20
    assert float(low) == pytest.approx(scores.mean() - half, abs=0.015)
    assert float(high) == pytest.approx(scores.mean() + half, abs=0.015)
    # Two strata without any spread inside: nothing can vary, however far apart they are.
    apart = np.array([[0.0] * 10, [100.0] * 10])
    assert [float(x) for x in stratified_bootstrap(apart, mean)] == [50.0, 50.0]
    values = np.arange(8.0)
    assert float(iqm(values)) == np.mean([2, 3, 4, 5])


def test_oracle_family_shows_the_task_and_changes_nothing_else() -> None:
    family = make_family("gridnavi")
    shown = TaskInObservation.of(family)
    tasks = family.sample_tasks(4, "train", torch.Generator().manual_seed(0))
    plain, told = family.make_worlds(8, seed=1), shown.make_worlds(8, seed=1)
    for env in (plain, told):
        env.set_tasks(tasks)
    obs, obs_told = plain.reset(seed=5)[0], told.reset(seed=5)[0]
    features = tasks.features().repeat_interleave(2, 0)
    assert shown.observation_space.shape == (obs.shape[1] + shown.task_dim,)
    assert (shown.name, shown.shared_splits) == ("gridnavi", True)
    for t in range(20):
        assert torch.equal(obs_told, torch.cat([obs, features], -1))
        action = torch.full((8,), t % 5)
        obs, *rest, info = plain.step(action)
        obs_told, *rest_told, info_told = told.step(action)
        assert all(torch.equal(a, b) for a, b in zip(rest, rest_told, strict=True))
        assert torch.equal(info_told["final_obs"][:, : obs.shape[1]], info["final_obs"])
    other = shown.make_worlds(8, seed=2)
    other.load_state_dict(told.state_dict())
    assert torch.equal(other.step(action)[0], told.step(action)[0])


@pytest.mark.parametrize("name", ["maml", "rl2"])
def test_what_draws_the_tasks_does_not_draw_the_actions(name: str) -> None:
    """With equal streams the first arm that is pulled would tell of the arms' probabilities."""
    family = make_family("bandit", episodes=1)
    kind, config = AGENTS[name].agent_class(), AGENTS[name].config_class()
    agent = kind(config(**({"baseline": "none"} if name == "maml" else {})), family.spec())
    for seed in range(3):
        tasks = family.sample_tasks(4000, "held-out", torch.Generator().manual_seed(seed))
        env = family.make_worlds(4000, seed=seed)
        curve = evaluate(agent.policy(deterministic=False), env, tasks, 1, seed=seed)
        assert abs(curve.summary().mean[0] - 0.5) < 0.04  # five standard errors

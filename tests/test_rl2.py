"""RL²: what reaches the network, where credit flows, and that it learns to learn."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from counting import CountingFamily
from torch import Tensor

from metarl.adaptation import evaluate
from metarl.agents.rl2 import ABLATIONS, RL2, NonAdaptiveConfig, RL2Config, RL2Policy
from metarl.envs.registry import make_family
from metarl.errors import TrainingError, UsageError
from metarl.memory import Carry
from metarl.oracle import TaskInObservation
from metarl.rollout import run_trials
from metarl.tasks import Family

SMALL = RL2Config(embedding=8, hidden=8, layers=(16,), epochs=2, minibatches=2, chunk=4)


def collect(family: CountingFamily, config: RL2Config = SMALL) -> tuple[RL2, Any, Any]:
    agent, env = RL2(config, family.spec(), seed=0), family.make_worlds(3)
    env.set_tasks(family.sample_tasks(3, "train", torch.Generator()))
    policy = RL2Policy(agent.network, False, torch.Generator().manual_seed(0), family.horizon)
    rollout = run_trials(policy, env, family.episodes)
    return agent, rollout, agent.prepare(rollout, env.tasks.features())


def test_last_reward_boundary_flag_and_reset_observation_arrive_together() -> None:
    _, rollout, batch = collect(CountingFamily())
    # World 0: episodes of 4 steps; input 4 is the first of the second episode.
    obs, action, reward, done = batch.x[:, 0].unbind(-1)
    assert obs.tolist() == pytest.approx([e + t / 10 for e in range(3) for t in range(4)])
    assert reward.tolist() == [0, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2]
    assert done.tolist() == [0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0]
    assert torch.equal(action[1:], rollout.action[:-1, 0, 0, 0])
    # World 1 terminates after 2 steps: the flag does not tell a true end from a time limit.
    assert batch.x[:6, 1, 3].tolist() == [0, 0, 1, 0, 1, 0]


def test_steps_beyond_the_trial_have_no_weight_and_take_no_credit() -> None:
    _, rollout, batch = collect(CountingFamily())
    assert rollout.active[:, 1, 0].tolist() == [True] * 6 + [False] * 6
    assert rollout.steps == 12 + 6 + 12
    assert batch.weight[:, 1].tolist() == [1.0] * 6 + [0.0] * 6


def test_values_run_across_episodes_and_stop_at_the_end_of_the_trial() -> None:
    # With lambda = 1 and gamma = 1 the target is the undiscounted return to the end of the trial.
    config = replace(SMALL, gamma=1.0, lam=1.0)
    agent, _, batch = collect(CountingFamily(), config)
    scale = float((agent.ppo.return_norm.var + 1e-8).sqrt())
    per_episode = 0 + 1 + 2 + 3
    assert float(batch.target[0, 0]) * scale == pytest.approx(3 * per_episode, rel=1e-4)
    assert float(batch.target[4, 0]) * scale == pytest.approx(2 * per_episode, rel=1e-4)
    assert float(batch.target[11, 0]) * scale == pytest.approx(3, rel=1e-4)


def test_an_unstable_step_ends_the_episode_and_is_never_learned_from() -> None:
    broken = CountingFamily(broken_step=2, bad_value=1e6)
    _, rollout, batch = collect(broken)
    assert rollout.truncated[2, 0, 0]
    assert not rollout.valid[2, 0, 0]
    assert rollout.episode[3, 0, 0] == 1
    assert float(batch.weight[2, 0]) == 0.0
    # Nothing depends on what the broken step returned.
    assert float(batch.target[:, 0].abs().max()) < 1e4


@pytest.mark.parametrize("reward_norm", [False, True])
def test_hidden_states_recomputed_for_learning_are_those_of_acting(reward_norm: bool) -> None:
    family = make_family("gridnavi", episodes=2)
    config = RL2Config(embedding=8, hidden=8, layers=(16,), reward_norm=reward_norm)
    agent = RL2(config, family.spec(), seed=3)
    if agent.network.reward_norm is not None:
        agent.network.reward_norm.update(3.0 + torch.randn(50, 1))
    env = family.make_worlds(6)
    env.set_tasks(family.sample_tasks(6, "train", torch.Generator().manual_seed(0)))

    class Recording(RL2Policy):
        """Keeps the hidden states."""

        def act(self, obs: Tensor) -> Tensor:
            action = super().act(obs)
            states.append(self.hidden)
            return action

    states: list[Tensor] = []
    policy = Recording(agent.network, False, torch.Generator().manual_seed(0), family.horizon)
    rollout = run_trials(policy, env, 2)
    batch = agent.prepare(rollout, env.tasks.features())
    torch.testing.assert_close(batch.hidden[1:], torch.stack(states)[:-1], atol=1e-5, rtol=1e-4)
    assert not batch.hidden[0].any()


def test_rewards_are_shown_less_their_mean_over_their_deviation() -> None:
    family = make_family("half-cheetah-vel", episodes=1, preset="promp")
    agent = RL2(RL2Config(reward_norm=True), family.spec(), seed=0)
    env = family.make_worlds(4, seed=0)
    agent.train_step(env, 0.0)
    norm = agent.network.reward_norm
    assert norm is not None and norm.count == 4 * family.horizon
    flag = torch.zeros(2, dtype=torch.bool)
    shown = agent.network.feedback(torch.zeros(2, 6), torch.tensor([-1.0, -2.0]), flag)
    expected = (torch.tensor([-1.0, -2.0]) - norm.mean) / norm.var.sqrt()
    torch.testing.assert_close(shown[:, -2].double(), expected.double(), atol=1e-4, rtol=1e-4)


def test_observations_are_left_as_they_are_on_request() -> None:
    family = make_family("half-cheetah-vel", episodes=1, preset="promp")
    obs = torch.randn(3, family.spec().obs_dim)
    for normalize in (True, False):
        agent = RL2(RL2Config(normalize=normalize), family.spec(), seed=0)
        agent.train_step(family.make_worlds(2, seed=0), 0.0)
        shown = agent.network.actor_critic.obs_norm(obs)
        assert torch.allclose(shown, obs, atol=1e-6) is not normalize


def test_memories_outlast_an_episode_as_they_were_after_the_steps_of_training() -> None:
    carry = Carry(2, torch.zeros(2, 1))
    states = torch.arange(1.0, 6.0).view(5, 1, 1).expand(5, 2, 1)
    ends = torch.tensor([[0, 0], [0, 1], [0, 0], [1, 0], [0, 1]], dtype=torch.bool)
    carried = torch.stack([carry.over(x, done) for x, done in zip(states, ends, strict=True)])
    # The first world's episode has 4 steps, two more than in training; the second's 2, then 3.
    assert carried[:, 0, 0].tolist() == [1.0, 2.0, 3.0, 2.0, 5.0]
    assert carried[:, 1, 0].tolist() == [1.0, 2.0, 3.0, 4.0, 4.0]


def test_chunks_hold_every_step_once() -> None:
    _, _, batch = collect(CountingFamily())
    chunks = batch.chunks(5)  # 12 steps: three chunks a world, the last padded with 3
    assert chunks.obs.shape[:2] == (5, 3 * 3 - 1)  # world 1's last chunk is empty
    assert float(chunks.weight.sum()) == float(batch.weight.sum())
    starts = {tuple(h.tolist()) for h in chunks.hidden[0]}
    assert starts <= {tuple(h.tolist()) for h in batch.hidden[[0, 5, 10]].flatten(0, 1)}


def test_a_gradient_that_is_not_finite_stops_training_before_the_parameters_change() -> None:
    family = CountingFamily(broken_step=99)
    agent, _, batch = collect(family)
    before = {name: x.clone() for name, x in agent.network.state_dict().items()}
    with pytest.raises(TrainingError, match="not finite"):
        agent.update(replace(batch, advantage=batch.advantage * float("nan")), 0.0)
    after = agent.network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_state_goes_on_exactly() -> None:
    family = make_family("bandit", episodes=5)
    agents = [RL2(SMALL, family.spec(), seed=s) for s in (0, 1)]
    envs = [family.make_worlds(16, seed=s) for s in (0, 1)]
    agents[0].train_step(envs[0], 0.0)
    agents[1].load_state_dict(agents[0].state_dict())
    envs[1].load_state_dict(envs[0].state_dict())
    figures = [agent.train_step(env, 0.5) for agent, env in zip(agents, envs, strict=True)]
    assert figures[0] == figures[1]
    for a, b in zip(*(agent.network.state_dict().values() for agent in agents), strict=True):
        assert torch.equal(a, b)


def mean_returns(agent: RL2, family: Family, ablation: Any = "none") -> list[float]:
    env = family.make_worlds(200)
    tasks = family.sample_tasks(200, "held-out", torch.Generator().manual_seed(1))
    return evaluate(agent.policy(ablation=ablation), env, tasks, family.episodes).summary().mean


def test_it_learns_to_learn_where_the_others_cannot_or_need_not() -> None:
    # Two arms, 8 pulls: random play earns 0.5 a pull, knowing the better arm 2/3.
    family = make_family("bandit", arms=2, episodes=8)
    config = {"embedding": 16, "hidden": 16, "layers": (16,), "epochs": 4, "minibatches": 2}
    config |= {"chunk": 0, "entropy": 0.01, "gamma": 0.99, "lam": 0.3, "learning_rate": 1e-2}
    late: dict[str, float] = {}
    for name in ("rl2", "non-adaptive", "oracle"):
        seen = TaskInObservation.of(family) if name == "oracle" else family
        settings = RL2Config(**config) if name == "rl2" else NonAdaptiveConfig(**config)
        agent = RL2(settings, seen.spec(), seed=0)
        env = seen.make_worlds(256, seed=0)
        for i in range(60):
            agent.train_step(env, i / 60)
        late[name] = sum(mean_returns(agent, seen)[4:]) / 4
        if name == "rl2":
            forgetful = mean_returns(agent, seen, "hidden-reset-every-step")
            blind = mean_returns(agent, seen, "inputs-zeroed")
    assert late["rl2"] > 0.59
    assert late["non-adaptive"] < 0.56
    assert late["oracle"] > 0.62
    assert sum(blind[4:]) / 4 < 0.56
    assert sum(forgetful[4:]) / 4 < late["rl2"]


def test_every_ablation_runs_and_unfit_settings_are_refused() -> None:
    family = make_family("gridnavi", episodes=2)
    agent = RL2(SMALL, family.spec(), seed=0)
    for ablation in ABLATIONS:
        assert len(mean_returns(agent, family, ablation)) == 2
    for bad in ({"gamma": 1.5}, {"hidden": 0}, {"learning_rate": -1.0}, {"entropy": float("nan")}):
        with pytest.raises(UsageError, match=next(iter(bad))):
            RL2Config(**bad)  # type: ignore[arg-type]

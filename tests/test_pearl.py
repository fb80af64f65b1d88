"""PEARL: its losses by hand, what goes into replay and contexts, when z is drawn, and learning."""

from __future__ import annotations

import contextlib
import io
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor

from metarl.adaptation import evaluate
from metarl.agents.pearl import Batch, Pearl, PearlConfig, PearlNetworks, PearlPolicy, losses
from metarl.context import ENCODERS
from metarl.envs.registry import make_family
from metarl.errors import TrainingError, UsageError
from metarl.experiments.cli import main
from metarl.exploration import RepeatedActions
from metarl.policy import Step
from metarl.rollout import run_trials
from metarl.tasks import Family, Split, TaskBatch
from metarl.vector import Info, VectorEnv, box

VARIANTS = ("modern", "paper")
ENCODER_NAMES = tuple(ENCODERS)

SMALL: dict[str, Any] = {
    "variant": "modern",
    "encoder": "product",
    "latent": 2,
    "layers": (8, 8),
    "encoder_layers": (8, 8),
    "next_obs_in_context": False,
    "train_tasks": 5,
    "collect_tasks": 2,
    "initial_actions": "policy",
    "initial_episodes": 2,
    "prior_episodes": 2,
    "posterior_episodes": 1,
    "deterministic": 0.0,
    "posterior_in_context": False,
    "context": 6,
    "independent": 1.0,
    "context_episodes": 2,
    "context_capacity": 100,
    "capacity": 100,
    "updates": 2,
    "meta_batch": 4,
    "batch": 8,
    "learning_rate": 1e-3,
    "final_learning_rate": 1e-3,
    "gamma": 0.9,
    "tau": 0.1,
    "reward_scale": 5.0,
    "kl_weight": 0.1,
}


def settings(**changes: Any) -> PearlConfig:
    return PearlConfig(**{**SMALL, **changes})


# --- a family in which every transition says where it is from ----------------------------------


@dataclass(frozen=True)
class Numbers(TaskBatch):
    """Tasks 0, 1, 2, ..."""

    number: Tensor
    """float32 `[N]`"""


@dataclass(frozen=True)
class Marked(Family):
    """Observation: task, episode, step. Tasks 1 and 3 terminate after three steps of four."""

    name: ClassVar[str] = "marked"
    episodes: int = 3
    horizon: int = 4
    unstable_step: int = -1
    """step of the second episode at which world 0 is unstable"""
    ends_early: bool = True
    """whether tasks 1 and 3 do"""

    @property
    def observation_space(self) -> gym.spaces.Box:
        """Task, episode, step."""
        return box(-math.inf, math.inf, 3)

    @property
    def action_space(self) -> gym.spaces.Box:
        """Two numbers that are ignored, in ranges of their own."""
        return box(np.array([0.0, -4.0], np.float32), np.array([2.0, 4.0], np.float32))

    def sample_tasks(self, n: int, split: Split, generator: torch.Generator) -> Numbers:
        """Tasks 0 to n - 1."""
        return Numbers(torch.arange(n).float())

    def make_worlds(
        self, num_worlds: int, *, device: Any = "cpu", seed: int = 0, threads: int = 1
    ) -> VectorEnv:
        """Build the worlds."""
        return MarkedEnv(self, num_worlds, device=device, seed=seed)


class MarkedEnv(VectorEnv):
    """Rewards: 10 * task + step, and its negative where a dense one is asked for."""

    family: Marked

    def _apply_tasks(self, tasks: Any) -> None:
        self._number = tasks.number
        self._episode = torch.full((self.num_envs,), -1)

    def _reset_worlds(self, mask: Tensor) -> None:
        self._episode += mask

    def _advance(self, actions: Tensor) -> tuple[Tensor, Tensor, Info]:
        reward = 10.0 * self._number + self._elapsed
        early = self.family.ends_early & (self._number % 2 == 1) & (self._elapsed == 2)
        unstable = torch.zeros(self.num_envs, dtype=torch.bool)
        step = (self._elapsed[0] == self.family.unstable_step) & (self._episode[0] == 1)
        unstable[0] = bool(step)
        info = {"dense_reward": -reward, "unstable": unstable}
        return torch.where(unstable, 1e6, reward), early & ~unstable, info

    def _observe(self) -> Tensor:
        return torch.stack([self._number, self._episode.float(), self._elapsed.float()], -1)

    def _world_state(self) -> dict[str, Tensor]:
        return {"episode": self._episode}


def number(values: Tensor) -> list[list[float]]:
    """Rows of a tensor as lists, for comparisons by eye."""
    return [[float(x) for x in row] for row in values]


def agent_on(family: Family, seed: int = 0, **changes: Any) -> Pearl:
    return Pearl(settings(**changes), family.spec(), seed=seed)


def visit(agent: Pearl, family: Family, ids: list[int], worlds: int = 4, **how: Any) -> Any:
    """Let the agent act and remember in the training tasks `ids`."""
    env = family.make_worlds(worlds)
    if agent.train_tasks is None:
        agent.train_tasks = family.sample_tasks(5, "train", torch.Generator())
    explorer = PearlPolicy(
        agent.networks, agent.config.prior_episodes, 0.0, torch.Generator().manual_seed(0)
    )
    order = {"episodes": 3, "every": False, **how}
    return agent.collect(env, torch.tensor(ids), explorer, **order)


def held(memory: Any, task: int) -> dict[str, Tensor]:
    """All that a replay holds of a task, in order."""
    found = memory.recent(torch.tensor([task]), int(memory.size[task]))
    return {name: x[0] for name, x in found.items()}


# --- losses by hand ----------------------------------------------------------------------------


def dense(x: Tensor, layers: list[tuple[Tensor, Tensor]]) -> Tensor:
    """An MLP with ReLU, written out; weights `[in, out]`."""
    for k, (weight, bias) in enumerate(layers):
        x = (x.clamp(min=0.0) if k else x) @ weight + bias
    return x


def layers_of(module: Any, head: int | None = None) -> list[tuple[Tensor, Tensor]]:
    if head is None:
        return [(layer.weight.T, layer.bias) for layer in module if hasattr(layer, "weight")]
    pairs = zip(module.weights, module.biases, strict=True)
    return [(weight[head], bias[head, 0]) for weight, bias in pairs]


def lesser(values: list[Tensor], wins: set[int]) -> Tensor:
    """The lesser of two values; which one it was is noted."""
    wins.add(int(values[1] < values[0]))
    return min(values)


def by_hand(
    networks: PearlNetworks, batch: Batch, config: PearlConfig, generator: torch.Generator
) -> dict[str, Tensor]:
    """The recipe task by task and transition by transition; noise is drawn in the same order."""
    sac, latent = networks.sac, config.latent
    tasks, rows, actions = batch.action.shape
    noise = torch.randn(tasks, latent, generator=generator)
    shape = (tasks, rows, actions)
    next_noise = torch.randn(shape, generator=generator) if config.variant == "modern" else None
    new_noise = torch.randn(shape, generator=generator)

    def policy(state: Tensor, eps: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        features = dense(state, layers_of(sac.actor)).clamp(min=0.0)
        out = dense(features, layers_of(sac.head.body))
        mean, log_std = out[:actions], out[actions:].clamp(-20.0, 2.0)
        u = mean + log_std.exp() * eps
        log_prob = torch.distributions.Normal(mean, log_std.exp()).log_prob(u).sum()
        return u.tanh(), log_prob - (1.0 - u.tanh() ** 2).log().sum(), mean, log_std

    def q(module: Any, state: Tensor, action: Tensor) -> list[Tensor]:
        return [dense(torch.cat([state, action]), layers_of(module, e))[0] for e in range(2)]

    wins: tuple[set[int], set[int]] = set(), set()
    terms: dict[str, list[Tensor]] = {name: [] for name in ("bellman", "kl", "policy", "extra")}
    for m in range(tasks):
        precision, shift = torch.zeros(latent).double(), torch.zeros(latent).double()
        for c in range(batch.context.shape[1]):
            if batch.mask is None or bool(batch.mask[m, c]):
                out = dense(batch.context[m, c], layers_of(networks.encoder.body))
                var = (1.0 + out[latent:].exp()).log()
                precision, shift = precision + 1.0 / var, shift + out[:latent] / var
        mean, var = shift / precision, 1.0 / precision
        z = mean + var.sqrt() * noise[m]
        terms["kl"].append(0.5 * (var + mean**2 - 1.0 - var.log()).sum())
        for b in range(rows):
            state, next_state = (
                torch.cat([batch.obs[m, b], z]),
                torch.cat([batch.next_obs[m, b], z]),
            )
            if next_noise is None:
                value = dense(next_state, layers_of(sac.target, 0))[0]
            else:
                next_action, log_prob, *_ = policy(next_state, next_noise[m, b])
                value = lesser(q(sac.target, next_state, next_action), wins[0])
                value = value - sac.log_alpha.exp() * log_prob
            alive = 0.0 if bool(batch.terminated[m, b]) else 1.0
            y = config.reward_scale * batch.reward[m, b] + config.gamma * alive * value
            for prediction in q(sac.critics, state, batch.action[m, b]):
                terms["bellman"].append((prediction - y.detach()) ** 2)
            blind = state.detach()
            action, log_prob, centre, log_std = policy(blind, new_noise[m, b])
            best = lesser(q(sac.critics, blind, action), wins[1])
            if config.variant == "paper":
                v = dense(blind, layers_of(sac.value, 0))[0]
                terms["extra"].append((v - (best - log_prob).detach()) ** 2)
                penalty = 1e-3 * (centre**2).mean() + 1e-3 * (log_std**2).mean()
                terms["policy"].append(log_prob - best + penalty)
            else:
                terms["policy"].append(sac.log_alpha.detach().exp() * log_prob - best)
                terms["extra"].append(-sac.log_alpha * (log_prob.detach() - actions))
    # Were one critic always the lesser, taking it alone would pass for taking the minimum.
    assert wins[1] == {0, 1} and wins[0] == (set() if next_noise is None else {0, 1})
    mean_of = {name: torch.stack(values).mean() for name, values in terms.items()}
    return {
        "bellman": 2.0 * mean_of["bellman"],  # a mean over transitions, a sum over both critics
        "kl": config.kl_weight * torch.stack(terms["kl"]).sum(),
        "policy": mean_of["policy"],
        "value" if config.variant == "paper" else "temperature": mean_of["extra"],
    }


def problem(masked: bool = False, **changes: Any) -> tuple[PearlNetworks, Batch, PearlConfig]:
    """Networks in float64 with weights of some size, and a batch of 3 tasks x 4 transitions."""
    config = settings(**changes)
    torch.manual_seed(3)
    networks = PearlNetworks(Marked().spec(), config).double()
    with torch.no_grad():
        for parameter in networks.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    obs, next_obs = torch.randn(2, 3, 4, 3, dtype=torch.float64)
    action = torch.rand(3, 4, 2, dtype=torch.float64) * 2 - 1
    for critics in (networks.sac.critics, networks.sac.target):
        if len(critics.weights[0]) == 2:  # both are the lesser one now and then
            x = torch.cat([obs, torch.zeros(3, 4, config.latent), action], -1)
            with torch.no_grad():
                critics.biases[-1].sub_(critics(x).flatten(1).median(1).values.view(2, 1, 1))
    batch = Batch(
        obs=obs,
        action=action,
        reward=torch.randn(3, 4, dtype=torch.float64),
        next_obs=next_obs,
        terminated=torch.tensor([[True, False, False, True]] * 3),
        context=torch.randn(3, 5, networks.context_dim, dtype=torch.float64),
        mask=torch.rand(3, 5) < 0.6 if masked else None,
    )
    return networks, batch, config


def owners(networks: PearlNetworks) -> dict[str, list[Tensor]]:
    """Trained parameters by the network they belong to."""
    sac = networks.sac
    found = {
        "encoder": list(networks.encoder.parameters()),
        "critics": list(sac.critics.parameters()),
        "policy": [*sac.actor.parameters(), *sac.head.parameters()],
    }
    if sac.variant == "paper":
        return {**found, "value": list(sac.value.parameters())}
    return {**found, "temperature": [sac.log_alpha]}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_losses_and_gradients_are_those_of_the_recipe(variant: str, masked: bool) -> None:
    networks, batch, config = problem(masked, variant=variant, reward_scale=3.0, kl_weight=0.7)
    if batch.mask is not None:
        batch.mask[0, 0] = True
        batch.mask[1:, 1] = True
    found = losses(networks, batch, config, torch.Generator().manual_seed(5))
    expected = by_hand(networks, batch, config, torch.Generator().manual_seed(5))
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-7, atol=1e-9)
    torch.stack(list(found.values())).sum().backward()
    # As published, every network steps down its own loss; here one backward pass serves all.
    own = {"encoder": ("bellman", "kl"), "critics": ("bellman",)}
    for owner, parameters in owners(networks).items():
        loss = torch.stack([expected[name] for name in own.get(owner, (owner,))]).sum()
        by_own = torch.autograd.grad(loss, parameters, retain_graph=True)
        for parameter, gradient in zip(parameters, by_own, strict=True):
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-5, atol=1e-8)


ALLOWED = {
    "bellman": {"encoder", "critics"},
    "kl": {"encoder"},
    "policy": {"policy"},
    "value": {"value"},
    "temperature": {"temperature"},
}


@pytest.mark.parametrize("encoder", ENCODER_NAMES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_encoder_learns_from_the_bellman_loss_and_the_kl_alone(
    variant: str, encoder: str
) -> None:
    networks, batch, config = problem(True, variant=variant, encoder=encoder)
    terms = losses(networks, batch, config, torch.Generator().manual_seed(5))
    assert set().union(*(ALLOWED[name] for name in terms)) == owners(networks).keys()
    for name, loss in terms.items():
        for owner, parameters in owners(networks).items():
            gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
            hit = [g is not None and bool((g != 0).any()) for g in gradients]
            if owner not in ALLOWED[name]:
                assert not any(hit), f"{name} reaches {owner}"
            # The recurrent bias of a GRU's gates may stay out of one batch; most may not.
            assert owner not in ALLOWED[name] or sum(hit) > len(hit) / 2, f"{name} misses {owner}"


def test_the_target_has_no_gradient_and_follows_after_the_step() -> None:
    agent = agent_on(Marked(), tau=0.25)
    sac = agent.networks.sac
    visit(agent, Marked(), [0, 1, 2, 3], worlds=4)
    visit(agent, Marked(), [4])
    before = [p.clone() for p in sac.target.parameters()]
    agent.update(agent.sample())
    assert all(p.grad is None for p in sac.target.parameters())
    for old, now, critic in zip(
        before, sac.target.parameters(), sac.critics.parameters(), strict=True
    ):
        assert not torch.equal(old, critic)
        torch.testing.assert_close(now, 0.75 * old + 0.25 * critic.detach())


def test_numbers_that_are_not_finite_stop_training_before_anything_changes() -> None:
    agent = agent_on(Marked())
    visit(agent, Marked(), [0, 1, 2, 3], worlds=4)
    visit(agent, Marked(), [4])
    before = {name: x.clone() for name, x in agent.networks.state_dict().items()}
    batch = agent.sample()
    with pytest.raises(TrainingError, match="pearl: the gradient is not finite"):
        agent.update(replace(batch, reward=batch.reward * math.nan))
    after = agent.networks.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_step_size_is_annealed() -> None:
    family = Marked()
    agent = agent_on(family, learning_rate=1e-3, final_learning_rate=1e-4)
    for progress, expected in ((0.0, 1e-3), (0.5, 5.5e-4), (1.0, 1e-4), (1.5, 1e-4)):
        agent.train_step(family.make_worlds(4), progress)
        assert agent.optimizer.param_groups[0]["lr"] == pytest.approx(expected)


# --- what is remembered ------------------------------------------------------------------------


def test_replay_holds_every_transition_with_its_own_next_observation() -> None:
    family = Marked()
    agent = agent_on(family)
    rollout = visit(agent, family, [3, 2], worlds=4)
    assert agent.replay.size.tolist() == [0, 0, 2 * 3 * 4, 2 * 3 * 3, 0]
    for task, lasts in ((2, 4), (3, 3)):
        rows = held(agent.replay, task)
        trial = [[task, e, t] for e in range(3) for t in range(lasts)]
        after = [[task, e, t + 1] for e in range(3) for t in range(lasts)]
        # Two worlds, one after the other; the next observation is never that of a new episode.
        assert number(rows["obs"]) == trial * 2
        assert number(rows["next_obs"]) == after * 2
        # Only tasks that end do so: the time limit, after step 3, is no end.
        ends = [task == 3 and t == 2 for _, _, t in trial]
        assert rows["terminated"].tolist() == ends * 2
    assert rollout.steps == 2 * 3 * 4 + 2 * 3 * 3


def test_replay_is_dense_where_contexts_are_sparse_and_neither_is_scaled() -> None:
    family = Marked()
    agent = agent_on(family, reward_scale=100.0)
    rollout = visit(agent, family, [1, 2], every=True)
    for task in (1, 2):
        rows, context = held(agent.replay, task), held(agent.contexts, task)["x"]
        reward = 10.0 * task + rows["obs"][:, 2]
        assert torch.equal(rows["reward"], -reward)
        assert torch.equal(context[:, -1], reward)
        assert torch.equal(context[:, :3], rows["obs"])
        # Actions of the family lie in [0, 2] x [-4, 4]; inside they are in [-1, 1].
        assert torch.equal(context[:, 3:5], rows["action"])
        taken = rollout.action[:, [1, 2].index(task)].transpose(0, 1)
        taken = taken[rollout.active[:, [1, 2].index(task)].transpose(0, 1)]
        expected = taken / torch.tensor([1.0, 4.0]) - torch.tensor([1.0, 0.0])
        torch.testing.assert_close(rows["action"], expected)


@pytest.mark.parametrize(("every", "episodes"), [(False, {0, 1}), (True, {0, 1, 2})])
def test_contexts_are_of_the_episodes_with_z_from_the_prior(
    every: bool, episodes: set[int]
) -> None:
    family = Marked()
    agent = agent_on(family, prior_episodes=2)
    visit(agent, family, [1, 2], every=every)
    for task in (1, 2):
        context = held(agent.contexts, task)["x"]
        assert set(context[:, 0].tolist()) == {task}
        assert set(context[:, 1].tolist()) == episodes
        lasts = 3 if task == 1 else 4
        assert len(context) == 2 * len(episodes) * lasts


def test_training_shows_further_episodes_to_the_encoder_only_if_asked_to() -> None:
    family = Marked(ends_early=False)
    for asked, most in ((False, 1), (True, 2)):
        agent = agent_on(family, train_tasks=2, posterior_in_context=asked, initial_episodes=1)
        agent.train_step(family.make_worlds(2), 0.0)
        assert float(held(agent.contexts, 0)["x"][:, 1].max()) == most
        assert int(agent.replay.size[0]) == 4 * (1 + 3)


def test_contexts_begin_anew_with_every_visit_and_replay_does_not() -> None:
    family = Marked()
    agent = agent_on(family)
    visit(agent, family, [1, 2])
    first = held(agent.contexts, 2)["x"]
    visit(agent, family, [2], worlds=1)
    assert int(agent.contexts.size[2]) == 2 * 4
    assert int(agent.contexts.size[1]) == 2 * 2 * 3
    assert int(agent.replay.size[2]) == 2 * 3 * 4 + 3 * 4
    assert not torch.equal(held(agent.contexts, 2)["x"], first[:8])


def test_nothing_of_an_unstable_step_is_remembered() -> None:
    family = Marked(unstable_step=1)
    agent = agent_on(family)
    rollout = visit(agent, family, [2, 4], worlds=2, every=True)
    assert rollout.steps == 4 + 2 + 4 + 3 * 4
    rows = held(agent.replay, 2)
    assert int(agent.replay.size[2]) == 4 + 1 + 4
    assert [2, 1, 1] not in number(rows["obs"])
    assert float(rows["reward"].abs().max()) < 100
    assert float(held(agent.contexts, 2)["x"].abs().max()) < 100
    assert not rows["terminated"].any()


def test_the_next_observation_is_shown_only_where_asked_for() -> None:
    family = Marked()
    plain, more = agent_on(family), agent_on(family, next_obs_in_context=True)
    assert (plain.networks.context_dim, more.networks.context_dim) == (3 + 2 + 1, 3 + 2 + 1 + 3)
    visit(more, family, [1, 2])
    for task in (1, 2):
        context = held(more.contexts, task)["x"]
        after = context[:, :3] + torch.tensor([0.0, 0.0, 1.0])
        assert torch.equal(context[:, 6:], after)
    fresh = agent_on(family, next_obs_in_context=True)
    figures = fresh.train_step(family.make_worlds(2), 0.0)
    assert all(math.isfinite(x) for x in figures.values())


# --- what is drawn -----------------------------------------------------------------------------


def filled(**changes: Any) -> Pearl:
    """An agent that has visited all five tasks, whose episodes all last four steps."""
    family = Marked(ends_early=False)
    agent = agent_on(family, **changes)
    for task in range(5):
        visit(agent, family, [task], worlds=3, every=True)
    return agent


def test_independent_contexts_are_of_their_task_and_of_all_that_is_held() -> None:
    agent = filled(context=60)
    tasks = torch.tensor([3, 0, 3])
    context, mask = agent.sample_context(tasks)
    assert mask is None and context.shape == (3, 60, 6)
    assert (context[..., 0] == tasks.unsqueeze(-1)).all()
    seen = {(e, t) for e, t in number(context[0, :, 1:3])}
    assert len(seen) == 3 * 4
    assert not torch.equal(context[0], context[2])


def test_contexts_as_when_adapting_are_whole_episodes_from_the_start_of_a_trial() -> None:
    agent = filled(independent=0.0, context_episodes=2)
    lengths = []
    tasks = torch.arange(5).repeat(20)
    context, mask = agent.sample_context(tasks)
    assert mask is not None
    for task, x, known in zip(tasks.tolist(), context, mask, strict=True):
        steps = number(x[known][:, :3])
        lengths.append(len(steps) / 4)
        assert steps == [[task, k // 4, k % 4] for k in range(len(steps))]
        # One world's, not pieces of several: its actions and rewards are in this order in replay.
        rows = held(agent.contexts, task)["x"]
        starts = [k for k in range(len(rows)) if torch.equal(rows[k], x[0])]
        assert any(torch.equal(rows[k : k + len(steps)], x[known]) for k in starts)
    assert set(lengths) == {1.0, 2.0}
    _, mask = agent.sample_context(torch.arange(5).repeat(200))
    assert mask is not None
    assert float((mask.sum(-1) == 4).float().mean()) == pytest.approx(0.5, abs=0.06)


def test_a_context_can_have_no_more_episodes_than_were_shown() -> None:
    family = Marked(ends_early=False)
    agent = agent_on(family, independent=0.0, context_episodes=4)
    visit(agent, family, [2], worlds=2)  # shows two
    _, mask = agent.sample_context(torch.full((50,), 2))
    assert mask is not None
    assert set(mask.sum(-1).tolist()) == {4, 8}


@pytest.mark.parametrize(("share", "alone"), [(1.0, 8), (0.5, 4), (0.0, 0)])
def test_the_share_of_independent_contexts(share: float, alone: int) -> None:
    agent = filled(independent=share, context_episodes=2, context=30)
    tasks = torch.arange(8) % 5
    context, mask = agent.sample_context(tasks)
    known = torch.ones(context.shape[:2], dtype=torch.bool) if mask is None else mask
    assert [int(n) == 30 for n in known.sum(-1)] == [True] * alone + [False] * (8 - alone)
    for task, x, there in zip(tasks.tolist(), context, known, strict=True):
        assert set(x[there][:, 0].tolist()) == {task}


def test_a_batch_belongs_to_the_tasks_of_its_contexts() -> None:
    agent = filled(meta_batch=16, batch=10, independent=0.5)
    batch = agent.sample()
    assert batch.obs.shape == (16, 10, 3) and batch.action.shape == (16, 10, 2)
    assert batch.reward.shape == batch.terminated.shape == (16, 10)
    assert batch.mask is not None and len(batch.context) == 16
    for m in range(16):
        known = batch.context[m][batch.mask[m]]
        assert set(known[:, 0].tolist()) == set(batch.obs[m, :, 0].tolist())
    tasks = torch.cat([agent.sample().obs[:, 0, 0] for _ in range(20)])
    assert set(tasks.tolist()) == set(range(5))


# --- acting ------------------------------------------------------------------------------------


def policy_on(
    encoder: str = "product",
    prior_episodes: int = 2,
    sure: bool = False,
    deterministic: float = 0.0,
) -> PearlPolicy:
    """A policy with an untrained encoder, or one that believes in 100 whatever it sees."""
    config = settings(encoder=encoder, latent=3)
    torch.manual_seed(0)
    networks = PearlNetworks(Marked().spec(), config)
    if sure:
        last = networks.encoder.head if encoder == "recurrent" else networks.encoder.body[-1]
        with torch.no_grad():
            last.bias.copy_(torch.tensor([100.0] * 3 + [-10.0] * 3))
            if encoder == "likelihood":  # the mean is a / (1 + b)
                last.bias.copy_(torch.tensor([100.0 * math.exp(8.0)] * 3 + [12.0] * 3))
    return PearlPolicy(networks, prior_episodes, deterministic, torch.Generator().manual_seed(1))


def step_of(
    policy: PearlPolicy, done: list[bool], reward: list[float] | None = None, limit: bool = True
) -> Tensor:
    """One step of the worlds; the latent that was acted upon."""
    worlds, ended = len(done), torch.tensor(done)
    latent = policy.z.clone()
    policy.act(torch.zeros(worlds, 3))
    never = torch.zeros_like(ended)
    policy.observe(
        Step(
            next_obs=torch.zeros(worlds, 3),
            reward=torch.tensor(reward or [0.0] * worlds),
            terminated=never if limit else ended,
            truncated=ended if limit else never,
        )
    )
    return latent


@pytest.mark.parametrize("limit", [True, False])
def test_z_is_kept_for_an_episode_and_drawn_anew_at_its_end(limit: bool) -> None:
    policy = policy_on()
    policy.begin(1, 3)
    ends = [[False] * 3, [True, False, False], [False] * 3, [False, True, False], [True] * 3]
    latents = [step_of(policy, done, limit=limit) for done in ends] + [policy.z]
    assert len({tuple(z.tolist()) for z in latents[0]}) == 3
    for done, now, after in zip(ends, latents, latents[1:], strict=False):
        for world in range(3):
            assert torch.equal(now[world], after[world]) != done[world]
    policy.begin(1, 3)
    assert not policy.episode.any() and not policy.state.any()


@pytest.mark.parametrize("encoder", ENCODER_NAMES)
@pytest.mark.parametrize("prior_episodes", [1, 2, 3])
def test_z_is_from_the_prior_first_and_from_the_belief_then(
    encoder: str, prior_episodes: int
) -> None:
    policy = policy_on(encoder, prior_episodes, sure=True)
    policy.begin(1, 400)
    for episode in range(prior_episodes + 2):
        z = step_of(policy, [True] * 400).detach()
        if episode < prior_episodes:
            assert float(z.mean()) == pytest.approx(0.0, abs=0.15)
            assert float(z.std()) == pytest.approx(1.0, abs=0.1)
        else:
            assert float((z - 100.0).abs().max()) < 10.0


def test_worlds_count_their_own_episodes() -> None:
    policy = policy_on(prior_episodes=1, sure=True)
    policy.begin(3, 1)
    step_of(policy, [False, True, False])
    assert (policy.z > 50).all(-1).tolist() == [False, True, False]
    step_of(policy, [False, False, True])
    assert (policy.z > 50).all(-1).tolist() == [False, True, True]


@pytest.mark.parametrize("encoder", ENCODER_NAMES)
def test_what_one_world_sees_changes_nothing_for_the_others(encoder: str) -> None:
    ends = [[False] * 3, [True] * 3, [False, True, False], [True] * 3]
    seen = []
    for reward in (0.0, 50.0):
        policy = policy_on(encoder, prior_episodes=1)
        policy.begin(1, 3)
        for done in ends:
            step_of(policy, done, reward=[1.0, reward, 2.0])
        seen.append((policy.state, policy.z, policy.act(torch.zeros(3, 3))))
    for one, other in zip(*seen, strict=True):
        assert torch.equal(one[[0, 2]], other[[0, 2]])
        assert not torch.equal(one[1], other[1])


@pytest.mark.parametrize("more", [False, True])
@pytest.mark.parametrize("encoder", ENCODER_NAMES)
def test_the_belief_is_that_of_all_transitions_of_the_trial(encoder: str, more: bool) -> None:
    family = Marked(ends_early=False)
    agent = agent_on(family, encoder=encoder, next_obs_in_context=more)
    env = family.make_worlds(4)
    env.set_tasks(family.sample_tasks(2, "train", torch.Generator()))
    policy = agent.policy()
    rollout = run_trials(policy, env, 3)
    networks = agent.networks
    x = networks.transition(rollout.obs, rollout.action, rollout.reward, rollout.final_obs).flatten(
        1, 2
    )
    with torch.no_grad():
        expected = networks.encoder(x.transpose(0, 1))
        found = networks.encoder.belief(policy.state)
    torch.testing.assert_close(found.mean, expected.mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.var, expected.var, rtol=1e-4, atol=1e-6)


def test_actions_are_those_of_sac_at_the_observation_with_z() -> None:
    policy = policy_on(deterministic=1.0)
    policy.begin(1, 5)
    obs = torch.randn(5, 3)
    with torch.no_grad():
        mean, _ = policy.networks.sac.policy(torch.cat([obs, policy.z], -1))
    expected = (mean.tanh() + 1.0) * torch.tensor([1.0, 4.0]) - torch.tensor([0.0, 4.0])
    torch.testing.assert_close(policy.act(obs), expected)
    assert torch.equal(policy.act(obs), policy.act(obs))


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_a_share_of_the_worlds_of_every_task_acts_by_the_mean(share: float) -> None:
    policy = policy_on(deterministic=share)
    policy.begin(3, 4)
    obs = torch.randn(12, 3)
    same = (policy.act(obs) == policy.act(obs)).all(-1)
    expected = torch.arange(4) < 4 * share
    assert torch.equal(same, expected.repeat(3))


def test_a_policy_that_is_asked_for_twice_gives_the_same_trial() -> None:
    family = Marked()
    agent = agent_on(family)
    trials = []
    for deterministic in (True, True, False):
        env = family.make_worlds(4)
        env.set_tasks(family.sample_tasks(4, "train", torch.Generator()))
        trials.append(run_trials(agent.policy(deterministic), env, 3).action)
    assert torch.equal(trials[0], trials[1])
    assert not torch.equal(trials[0], trials[2])


def test_repeated_actions_last_for_an_episode_and_fill_the_space() -> None:
    low, high = torch.tensor([0.0, -4.0]), torch.tensor([2.0, 4.0])
    explorer = RepeatedActions(low, high, torch.Generator().manual_seed(0))
    explorer.begin(500, 2)
    obs, no, some = torch.zeros(1000, 3), torch.zeros(1000).bool(), torch.arange(1000) % 3 == 0
    taken = []
    for done in (no, some, no):
        taken.append(explorer.act(obs))
        explorer.observe(Step(obs, torch.zeros(1000), no, done))
    assert torch.equal(taken[0], taken[1])
    changed = (taken[1] != taken[2]).any(-1)
    assert torch.equal(changed, some)
    for action in (taken[0], taken[2]):
        assert (action >= low).all() and (action <= high).all()
        torch.testing.assert_close(action.mean(0), (low + high) / 2, rtol=0.0, atol=0.3)
        torch.testing.assert_close(action.std(0), (high - low) / math.sqrt(12), rtol=0.1, atol=0.0)
    explorer.observe(Step(obs, torch.zeros(1000), some, no))
    assert torch.equal((explorer.act(obs) != taken[2]).any(-1), some)


# --- iterations --------------------------------------------------------------------------------


@pytest.mark.parametrize("initial_actions", ["policy", "repeated"])
def test_every_task_is_visited_before_the_first_update(initial_actions: str) -> None:
    family = Marked()
    agent = agent_on(family, initial_actions=initial_actions, posterior_in_context=True)
    env = family.make_worlds(4)
    agent.train_tasks = family.sample_tasks(5, "train", torch.Generator())
    steps = agent.begin(env)
    # Five tasks in groups of two: the last group is filled up with task 0 once more.
    visits, lasts = torch.tensor([2, 1, 1, 1, 1]), torch.tensor([4, 3, 4, 3, 4])
    assert agent.replay.size.tolist() == (visits * lasts * 2 * 2).tolist()
    assert agent.contexts.size.tolist() == (lasts * 2 * 2).tolist()
    assert steps == int(agent.replay.size.sum())
    repeated = [
        bool((rows[e * 4 : e * 4 + 4] == rows[e * 4]).all())
        for rows in (held(agent.replay, 2)["action"],)
        for e in range(4)
    ]
    assert repeated == [initial_actions == "repeated"] * 4


def test_an_iteration_counts_all_its_steps_and_reports_sparse_returns() -> None:
    family = Marked(ends_early=False)
    agent = agent_on(family, train_tasks=2, initial_episodes=2)
    env = family.make_worlds(4)
    initial, trial = 2 * 2 * 2 * 4, 4 * 3 * 4
    figures = [agent.train_step(env, 0.0) for _ in range(2)]
    assert [f["steps"] for f in figures] == [initial + trial, trial]
    # Task 0 earns 0 + 1 + 2 + 3, task 1 earns 10 a step more.
    for f in figures:
        assert f["return_first"] == f["return_last"] == pytest.approx((6.0 + 46.0) / 2)
        assert {"loss/bellman", "loss/kl", "loss/policy", "loss/temperature"} <= f.keys()


def test_training_tasks_depend_on_the_seed_alone() -> None:
    family = make_family("point-dense")
    goals = []
    for seed, draws in ((1, 0), (1, 3), (2, 0)):
        torch.manual_seed(draws)
        agent = agent_on(family, seed=seed, initial_episodes=1, updates=1, capacity=200)
        for _ in range(1 + draws):
            agent.train_step(family.make_worlds(2, seed=draws), 0.0)
        assert agent.train_tasks is not None
        goals.append(agent.train_tasks.features())
    assert torch.equal(goals[0], goals[1])
    assert not torch.equal(goals[0], goals[2])


def test_weights_and_training_leave_the_global_generator_alone() -> None:
    family = Marked()
    before = torch.get_rng_state()
    agents = [agent_on(family, seed=seed) for seed in (0, 0, 1)]
    agents[0].train_step(family.make_worlds(2), 0.0)
    assert torch.equal(torch.get_rng_state(), before)
    weights = [agent.networks.sac.critics.weights[0] for agent in agents[1:]]
    assert not torch.equal(*weights)


def transfer(old: Pearl, new: Pearl) -> None:
    """Carry state and memories over, as a checkpoint does."""
    new.load_state_dict(old.state_dict())
    assert old.buffers().keys() == new.buffers().keys()
    for name, memory in old.buffers().items():
        file = io.BytesIO()
        memory.write(file)
        file.seek(0)
        new.buffers()[name].read(file)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("encoder", ENCODER_NAMES)
def test_state_and_memories_go_on_exactly(variant: str, encoder: str) -> None:
    family = make_family("point-sparse", horizon=5)
    changes = {"variant": variant, "encoder": encoder, "independent": 0.5}
    # The seed of the second is wrong: all that matters has to come with the state.
    agents = [agent_on(family, seed=seed, **changes) for seed in (0, 9)]
    envs = [family.make_worlds(4, seed=seed) for seed in (0, 9)]
    agents[0].train_step(envs[0], 0.0)
    transfer(*agents)
    envs[1].load_state_dict(envs[0].state_dict())
    for progress in (0.3, 0.6):
        figures = [a.train_step(env, progress) for a, env in zip(agents, envs, strict=True)]
        assert figures[0] == figures[1]
    one, other = (agent.networks.state_dict() for agent in agents)
    assert all(torch.equal(one[name], other[name]) for name in one)
    tasks = [agent.train_tasks.features() for agent in agents if agent.train_tasks is not None]
    assert torch.equal(*tasks)
    for task in range(5):
        for mine, theirs in zip(
            agents[0].buffers().values(), agents[1].buffers().values(), strict=True
        ):
            a, b = held(mine, task), held(theirs, task)
            assert all(torch.equal(a[name], b[name]) for name in a)


def test_loading_takes_nothing_away_from_the_state() -> None:
    family = Marked()
    first, second = agent_on(family), agent_on(family, seed=1)
    first.train_step(family.make_worlds(2), 0.0)
    state = first.state_dict()
    kept = {name: x.clone() for name, x in state["networks"].items()}
    transfer(first, second)
    second.train_step(family.make_worlds(2), 0.0)
    assert all(torch.equal(kept[name], x) for name, x in first.networks.state_dict().items())
    steps = [float(s["step"]) for s in first.optimizer.state_dict()["state"].values()]
    assert set(steps) == {2.0}


# --- learning ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Targets(TaskBatch):
    """N positions of a dial."""

    target: Tensor
    """float32 `[N]`"""


@dataclass(frozen=True)
class Dial(Family):
    """Turn a dial to a position that only the reward tells; the observation is the time."""

    name: ClassVar[str] = "dial"
    episodes: int = 3
    horizon: int = 4

    @property
    def observation_space(self) -> gym.spaces.Box:
        """Share of the episode that is over."""
        return box(0.0, 1.0, 1)

    @property
    def action_space(self) -> gym.spaces.Box:
        """The position."""
        return box(-1.0, 1.0, 1)

    def sample_tasks(self, n: int, split: Split, generator: torch.Generator) -> Targets:
        """Positions at equal distances."""
        end = 0.9 if split == "train" else 0.7
        return Targets(torch.linspace(-end, end, n))

    def make_worlds(
        self, num_worlds: int, *, device: Any = "cpu", seed: int = 0, threads: int = 1
    ) -> VectorEnv:
        """Build the worlds."""
        return DialEnv(self, num_worlds, device=device, seed=seed)


class DialEnv(VectorEnv):
    """The reward is minus the distance."""

    def _apply_tasks(self, tasks: Any) -> None:
        self._target = tasks.target

    def _reset_worlds(self, mask: Tensor) -> None:
        """Nothing is drawn."""

    def _advance(self, actions: Tensor) -> tuple[Tensor, Tensor, Info]:
        reward = -(actions.squeeze(-1) - self._target).abs()
        return reward, torch.zeros_like(reward, dtype=torch.bool), {}

    def _observe(self) -> Tensor:
        return (self._elapsed / self.horizon).unsqueeze(-1)

    def _world_state(self) -> dict[str, Tensor]:
        return {}


LEARNING = {
    "latent": 1,
    "layers": (32, 32),
    "encoder_layers": (32, 32),
    "train_tasks": 16,
    "collect_tasks": 8,
    "initial_actions": "repeated",
    "initial_episodes": 8,
    "context": 8,
    "independent": 0.5,
    "context_capacity": 1000,
    "capacity": 10_000,
    "updates": 40,
    "meta_batch": 8,
    "batch": 32,
    "learning_rate": 3e-3,
    "gamma": 0.5,
    "tau": 0.05,
    "kl_weight": 0.01,
}


@pytest.mark.parametrize(
    ("variant", "encoder", "scale"),
    [("modern", "product", 5.0), ("modern", "recurrent", 5.0), ("paper", "product", 20.0)],
)
def test_it_learns_to_find_out(variant: str, encoder: str, scale: float) -> None:
    family = Dial()
    config = {**LEARNING, "variant": variant, "encoder": encoder, "reward_scale": scale}
    agent = agent_on(family, **config)
    tasks = family.sample_tasks(41, "held-out", torch.Generator()).repeat_interleave(5)
    # Who does not adapt can do no better than to stay in the middle.
    blind = -4.0 * float(tasks.target.abs().mean())
    env = family.make_worlds(32)

    def returns() -> list[float]:
        worlds = family.make_worlds(len(tasks))
        return evaluate(agent.policy(), worlds, tasks, 4).summary().mean

    assert max(returns()) < 0.99 * blind
    for i in range(20):
        agent.train_step(env, i / 20)
    first, second, third, fourth = returns()
    # Two episodes try out hypotheses from the prior; from the third on the target is known.
    assert max(first, second) < blind
    assert min(third, fourth) > 0.75 * blind


# --- bad input ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"context": 0}, "context must be a finite number of at least 1, got 0"),
        ({"meta_batch": 0}, "meta_batch must be a finite number of at least 1, got 0"),
        ({"latent": 0}, "latent must be a finite number of at least 1, got 0"),
        ({"initial_episodes": 0}, "initial_episodes must be a finite number of at least 1, got 0"),
        ({"prior_episodes": 0}, "prior_episodes must be a finite number of at least 1, got 0"),
        ({"posterior_episodes": -1}, "posterior_episodes must be a finite number of at least 0"),
        ({"kl_weight": math.nan}, "kl_weight must be a finite number of at least 0, got nan"),
        ({"independent": 1.5}, "independent must be a finite number in [0, 1], got 1.5"),
        ({"collect_tasks": 6}, "collect_tasks must be a finite number in [1, 5], got 6"),
        ({"collect_tasks": 0}, "collect_tasks must be a finite number in [1, 5], got 0"),
        ({"capacity": 7}, "capacity must be at least one batch (8), got 7"),
        ({"encoder_layers": (8, 0)}, "encoder_layers must be one or more widths above 0"),
    ],
)
def test_settings_that_cannot_train_are_refused(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(UsageError) as caught:
        settings(**changes)
    assert str(caught.value).startswith(f"pearl: {expected}")


def test_settings_at_their_limits_do_train() -> None:
    family = Marked()
    least = dict.fromkeys(("latent", "context", "meta_batch", "batch", "context_episodes"), 1)
    least |= dict.fromkeys(("updates", "initial_episodes", "prior_episodes", "train_tasks"), 1)
    for independent in (0.0, 1.0):
        changes = {**least, "collect_tasks": 1, "posterior_episodes": 0, "capacity": 8}
        changes |= {"independent": independent, "context_capacity": 8, "kl_weight": 0.0}
        agent = agent_on(family, layers=(1,), encoder_layers=(1,), **changes)
        for _ in range(3):
            figures = agent.train_step(family.make_worlds(2), 0.0)
            assert all(math.isfinite(x) for x in figures.values())


def test_more_than_a_memory_holds_is_refused_and_not_cut() -> None:
    family = Marked()
    for changes in ({"capacity": 8}, {"context_capacity": 8}):
        agent = agent_on(family, **changes)
        with pytest.raises(UsageError, match=r"12 transitions for task 1.*capacity is 8"):
            visit(agent, family, [1], worlds=2, every=True, episodes=2)


def metarl(*words: object) -> tuple[int, str]:
    """Exit code and standard error of a command."""
    err = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err):
        code = main([str(word) for word in words])
    return code, err.getvalue()


TINY = "--layers 4 --encoder-layers 4 --updates 1 --batch 4 --meta-batch 2 --num-worlds 4"
TINY += " --train-tasks 4 --collect-tasks 2 --initial-episodes 1 --total-steps 1 --threads 1"


@pytest.mark.parametrize(
    ("family", "words", "expected"),
    [
        ("point-dense", "--context 0", ["pearl: context must", "at least 1", "got 0"]),
        ("point-dense", "--batch 50 --capacity 40", ["capacity must", "one batch (50)", "got 40"]),
        ("point-dense", "--collect-tasks 5", ["collect_tasks must", "[1, 4]", "got 5"]),
        (
            "point-dense",
            "--num-worlds 5",
            ["worlds must be a multiple", "collect_tasks (2)", "got 5"],
        ),
        ("point-dense", "--encoder lstm", ["--encoder", "lstm", "product", "recurrent"]),
        ("point-dense", "--variant new", ["--variant", "'new'", "modern", "paper"]),
        ("point-dense", "--kl-weight nan", ["kl_weight must be a finite number of", "got nan"]),
        ("point-dense", "--context-capacity 30", ["40 transitions for task 0", "capacity is 30"]),
        ("bandit", "", ["actions must be continuous and bounded", "Discrete(5)"]),
        ("gridnavi", "", ["actions must be continuous and bounded", "Discrete(5)"]),
    ],
)
def test_bad_input_gets_one_sentence(
    family: str, words: str, expected: list[str], tmp_path: Path
) -> None:
    order = [*TINY.split(), *words.split()]
    code, said = metarl("train", "pearl", family, "--run-dir", tmp_path / "run", *order)
    lines = [line for line in said.splitlines() if line.startswith("metarl: ")]
    assert code == 2 and len(lines) == 1 and "Traceback" not in said, said
    assert not (tmp_path / "run").exists()
    for word in expected:
        assert word in lines[0]


def test_a_trained_agent_is_evaluated_with_more_episodes_than_it_trained_with(
    tmp_path: Path,
) -> None:
    path = tmp_path / "run"
    order = ["--run-dir", path, "--latent", 3, *TINY.split()]
    code, said = metarl("train", "pearl", "point-sparse", *order)
    assert code == 0, said
    code, said = metarl("evaluate", path, "--tasks", 3, "--episodes", 7)
    assert code == 0, said
    (file,) = (path / "evaluation").glob("held-out-*.json")
    assert len(json.loads(file.read_text())["returns"][0]) == 7
    config = path / "config.yaml"
    config.write_text(config.read_text().replace("latent: 3", "latent: 4"))
    code, said = metarl("evaluate", path, "--tasks", 3)
    assert code == 2 and "checkpoint" in said and said.count("\n") == 1

"""VariBAD: what the belief is made of, where gradients flow, what is remembered, that it learns."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from counting import CountingFamily
from ragged import Ragged
from torch import Tensor, nn

from metarl.adaptation import evaluate
from metarl.agents.task_inference import elbo
from metarl.agents.varibad import ABLATIONS, VariBAD, VariBADConfig, VariBADPolicy
from metarl.envs.registry import make_family
from metarl.errors import TrainingError, UsageError
from metarl.experiments.cli import main
from metarl.memory import GRUMemory
from metarl.ppo import loss
from metarl.rollout import Rollout, run_trials
from metarl.tasks import Family

SMALL: dict[str, Any] = {
    "embedding": 8,
    "hidden": 8,
    "latent": 2,
    "layers": (16,),
    "decoder_layers": (8, 6),
    "epochs": 2,
    "minibatches": 2,
    "chunk": 4,
    "beliefs": 0,
    "decodes": 0,
    "vae_updates": 2,
    "vae_batch": 5,
    "capacity": 50,
}


def agent_on(family: Family, seed: int = 0, **changes: Any) -> VariBAD:
    return VariBAD(VariBADConfig(**{**SMALL, **changes}), family.spec(), seed=seed)


class Recording(VariBADPolicy):
    """Keeps the belief before each action, and what it saw of the last step."""

    def begin(self, num_tasks: int, worlds_per_task: int) -> None:
        super().begin(num_tasks, worlds_per_task)
        self.beliefs: list[Tensor] = []

    def act(self, obs: Tensor) -> Tensor:
        self.beliefs.append(torch.cat([self.belief.mean, self.belief.log_std], -1))
        return super().act(obs)


def trial(
    agent: VariBAD, family: Family, worlds: int = 3, ablation: Any = "none"
) -> tuple[Rollout, Any, Tensor]:
    """A rollout, the features of its tasks, and the beliefs `[T, B, 2 Z]` of acting."""
    env = family.make_worlds(worlds)
    env.set_tasks(family.sample_tasks(worlds, "train", torch.Generator().manual_seed(0)))
    policy = Recording(agent.network, False, torch.Generator().manual_seed(0), ablation)
    rollout = run_trials(policy, env, family.episodes)
    assert env.tasks is not None
    return rollout, env.tasks.features(), torch.stack(policy.beliefs)


def prior(agent: VariBAD) -> Tensor:
    """What the agent believes before it has seen anything, `[2 Z]`."""
    vae = agent.network.vae
    return vae.head.bias.detach().clone()


def scrambled(agent: VariBAD) -> VariBAD:
    """The agent with normalisers that do something."""
    g = torch.Generator().manual_seed(4)
    for norm in (agent.network.actor_critic.obs_norm, agent.network.belief_norm):
        norm.update(torch.randn(50, len(norm.mean), generator=g) * 0.7 + 0.2)
    return agent


# --- the belief ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["counting", "gridnavi", "ragged"])
def test_beliefs_recomputed_for_learning_are_those_of_acting(name: str) -> None:
    families = {"counting": CountingFamily(), "ragged": Ragged(episodes=3)}
    family = families.get(name) or make_family("gridnavi", episodes=2)
    agent = scrambled(agent_on(family, seed=3))
    rollout, features, beliefs = trial(agent, family, 6)
    batch, belief = agent.prepare(rollout, features)
    found = torch.cat([belief.mean, belief.log_std], -1)
    torch.testing.assert_close(found, beliefs, atol=1e-5, rtol=1e-4)
    # Worlds and steps do differ, so that none is taken for another.
    assert float(beliefs[1:].std(0).min()) > 1e-4 and float(beliefs[1:].std(1).max()) > 1e-3
    torch.testing.assert_close(
        batch.known, agent.network.belief_norm(beliefs), atol=1e-4, rtol=1e-4
    )
    chances = agent.network.actor_critic.distribution(batch.obs, batch.known)
    torch.testing.assert_close(chances.log_prob(rollout.flat()["action"]), batch.log_prob)


def test_a_trial_begins_with_the_learned_prior_and_the_next_one_forgets() -> None:
    family = CountingFamily()
    agent = agent_on(family)
    with torch.no_grad():
        agent.network.vae.head.bias.copy_(torch.tensor([1.0, -2.0, 0.5, -0.7]))
    policy = Recording(agent.network, True, torch.Generator())
    env = family.make_worlds(3)
    env.set_tasks(family.sample_tasks(3, "train", torch.Generator()))
    for _ in range(2):
        run_trials(policy, env, family.episodes)
        first, last = policy.beliefs[0], policy.beliefs[-1]
        torch.testing.assert_close(first, prior(agent).expand_as(first))
        assert not torch.allclose(last, first, atol=1e-3)


def test_the_belief_lives_on_when_an_episode_ends() -> None:
    """Only the ablation forgets there, and only in the world whose episode ended."""
    family = CountingFamily()
    agent = agent_on(family)
    done = trial(agent, family)[0].flat()
    done = done["terminated"] | done["truncated"]
    kept, reset = (trial(agent, family, ablation=a)[2] for a in ("none", ABLATIONS[2]))
    anew = torch.cat([torch.ones_like(done[:1]), done[:-1]])
    assert anew[:5].tolist() == [[True] * 3, [False] * 3, [False, True, False], [False] * 3,
                                 [True] * 3]  # fmt: skip
    is_prior = torch.isclose(reset, prior(agent), atol=1e-6).all(-1)
    assert torch.equal(is_prior, anew)
    assert torch.isclose(kept, prior(agent), atol=1e-6).all(-1).sum() == 3
    # Until then nothing differs.
    assert torch.equal(kept[:2], reset[:2]) and torch.equal(kept[:4, ::2], reset[:4, ::2])


def test_a_fixed_belief_stays_the_prior() -> None:
    family = CountingFamily()
    agent = agent_on(family)
    beliefs = trial(agent, family, ablation="belief-fixed")[2]
    torch.testing.assert_close(beliefs, prior(agent).expand_as(beliefs))


def test_what_the_encoder_is_told_of_a_step() -> None:
    """[s', a, r, d]: the true next observation, also where an episode ends, and that it ends."""
    family = CountingFamily()
    agent = agent_on(family, encoder_gradients=True)
    seen: list[Tensor] = []
    forward = agent.network.vae.memory.forward

    def spied(x: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(x)
        return forward(x, hidden)

    agent.network.vae.memory.forward = spied  # type: ignore[method-assign]
    rollout, features, _ = trial(agent, family)
    acting = torch.cat(seen)
    batch, _ = agent.prepare(rollout, features)
    for x in (acting, batch.x, seen[-1]):
        obs, action, reward, done = x[:, 0].unbind(-1)
        assert obs.tolist() == pytest.approx([e + t / 10 for e in range(3) for t in (1, 2, 3, 4)])
        assert torch.equal(action, rollout.action[:, 0, 0, 0])
        assert reward.tolist() == [0, 1, 2, 3] * 3
        assert done.tolist() == [0, 0, 0, 1] * 3
        # World 1 terminates after 2 steps: the flag does not tell a true end from a time limit.
        assert x[:4, 1, 0].tolist() == pytest.approx([0.1, 0.2, 1.1, 1.2])
        assert x[:4, 1, 3].tolist() == [0, 1, 0, 1]
        assert x[:3, 2, 2].tolist() == [200, 201, 202]


def test_observations_are_normalised_for_the_encoder_and_rewards_are_not() -> None:
    family = CountingFamily()
    agent = scrambled(agent_on(family))
    norm = agent.network.actor_critic.obs_norm
    obs, action = torch.tensor([[0.7]]), torch.tensor([[0.3]])
    x = agent.network.inputs(obs, action, torch.tensor([42.0]), torch.tensor([True]))
    assert x.tolist() == [pytest.approx([float(norm(obs)), 0.3, 42.0, 1.0])]
    assert float(norm(obs)) != pytest.approx(0.7, abs=0.01)


# --- PPO -----------------------------------------------------------------------------------------


def updated(agent: VariBAD, rollout: Rollout, features: Tensor) -> Any:
    """The batch after one gradient step of PPO on all of it; gradients are left in place."""
    batch, _ = agent.prepare(rollout, features)
    agent.update(batch, 0.0)
    return batch


ONE_STEP = {"epochs": 1, "minibatches": 1, "max_grad_norm": 1e9, "entropy": 0.01}


def grads(agent: VariBAD) -> dict[str, Tensor | None]:
    return {name: p.grad for name, p in agent.network.named_parameters()}


def test_no_gradient_of_the_policy_reaches_the_encoder_unless_asked_for() -> None:
    family = CountingFamily()
    for through in (False, True):
        agent = agent_on(family, encoder_gradients=through, **ONE_STEP)
        rollout, features, _ = trial(agent, family)
        before = {n: p.clone() for n, p in agent.network.vae.named_parameters()}
        learned = [id(p) for p in agent.ppo.optimizer.param_groups[0]["params"]]
        assert (id(agent.network.vae.head.bias) in learned) == through
        updated(agent, rollout, features)
        for name, p in agent.network.vae.named_parameters():
            encoder = name.startswith(("memory", "head"))
            assert torch.equal(p, before[name]) != (through and encoder), name
            assert (p.grad is not None) == (through and encoder), name


@pytest.mark.parametrize("chunk", [0, 4, 5])
def test_gradients_are_those_of_the_plain_formula(chunk: int) -> None:
    """Over whole trials, or cut off where a chunk begins; with the worlds' ends masked."""
    family = CountingFamily()
    settings = {**ONE_STEP, "chunk": chunk, "encoder_gradients": True}
    agent, plain = (scrambled(agent_on(family, **settings)) for _ in range(2))
    rollout, features, _ = trial(agent, family)
    batch = updated(agent, rollout, features)
    network = plain.network
    gru, head, state = network.vae.memory, network.vae.head, torch.zeros(3, 8)
    known = []
    for t in range(len(batch.obs)):
        if chunk and t % chunk == 0:
            state = state.detach()
        mean, log_std = head(state).chunk(2, -1)
        known.append(network.belief_norm(torch.cat([mean, log_std], -1)))
        flat = rollout.flat()
        done = (flat["terminated"] | flat["truncated"])[t].float()
        obs = network.actor_critic.obs_norm(flat["final_obs"][t])
        x = torch.cat([obs, flat["action"][t], torch.stack([flat["reward"][t], done], -1)], -1)
        state = gru.gru(gru.embed(x).unsqueeze(0), state.unsqueeze(0))[1].squeeze(0)
    config = plain.config
    total = loss(network.actor_critic, batch, torch.stack(known), config, config.entropy)["total"]
    total.backward()  # type: ignore[no-untyped-call]
    ours, theirs = grads(agent), grads(plain)
    assert sum(g is not None for g in theirs.values()) > 15
    for name, expected in theirs.items():
        found = ours[name]
        if expected is None:
            assert found is None, name
            continue
        assert found is not None and bool(expected.any()), name
        size = float(expected.abs().max())
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * size, msg=name)


@pytest.mark.parametrize(("chunk", "episodes"), [(1, 3), (0, 1)])
def test_chunks_of_a_single_step_teach_the_encoder_nothing(chunk: int, episodes: int) -> None:
    """What was known before the first step of a chunk has no past within it but the head."""
    family = make_family("bandit", episodes=episodes)
    settings = {**ONE_STEP, "chunk": chunk, "encoder_gradients": True}
    agent = agent_on(family, reward_decoder="heads", **settings)
    updated(agent, *trial(agent, family, 8)[:2])
    vae = agent.network.vae
    assert all(p.grad is None or not p.grad.any() for p in vae.memory.parameters())
    assert vae.head.bias.grad is not None and bool(vae.head.bias.grad.any())


def test_the_policy_learns_the_same_whether_or_not_the_encoder_does() -> None:
    family = CountingFamily()
    found = []
    for through in (False, True):
        agent = agent_on(family, encoder_gradients=through, **ONE_STEP)
        rollout, features, _ = trial(agent, family)
        updated(agent, rollout, features)
        found.append({n: g for n, g in grads(agent).items() if n.startswith("actor_critic")})
    assert found[0].keys() == found[1].keys()
    for name, expected in found[1].items():
        torch.testing.assert_close(found[0][name], expected, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize(("through", "length"), [(False, 1), (True, 4)])
def test_steps_stand_alone_unless_gradients_pass_through_the_encoder(
    monkeypatch: pytest.MonkeyPatch, through: bool, length: int
) -> None:
    family, lengths = CountingFamily(), set()
    agent = agent_on(family, encoder_gradients=through)
    recall = agent.recall
    monkeypatch.setattr(agent, "recall", lambda part: (lengths.add(len(part.obs)), recall(part))[1])
    updated(agent, *trial(agent, family)[:2])
    assert lengths == {length}


def test_steps_beyond_a_trial_and_broken_ones_teach_nothing() -> None:
    family = CountingFamily(broken_step=2, bad_value=1e4)
    agent = agent_on(family)
    rollout, features, _ = trial(agent, family)
    batch, _ = agent.prepare(rollout, features)
    # World 0 is broken at the third step of every episode, which ends it there.
    assert batch.weight[:, 0].tolist() == [1, 1, 0] * 3 + [0] * 3
    assert batch.weight[:, 1].tolist() == [1] * 6 + [0] * 6
    agent.remember(rollout, features)
    stored = agent.trials.storage
    assert stored["sound"][0, 0].tolist() == [True, True, False] * 3 + [False] * 3
    assert stored["active"][0, 0].tolist() == [True] * 9 + [False] * 3
    trials = agent.sample()
    assert torch.equal(trials.valid, trials.active & (trials.reward < 1e4))


# --- the buffer ----------------------------------------------------------------------------------


def entries(agent: VariBAD) -> dict[str, Tensor]:
    return {name: x[0, : int(agent.trials.size)] for name, x in agent.trials.storage.items()}


def test_trials_are_kept_whole_and_short_ones_are_padded() -> None:
    family = Ragged(episodes=3)
    agent = agent_on(family)
    rollout, features, _ = trial(agent, family, 4)
    length = len(rollout.obs)
    assert length < 15  # no trial lasts for three episodes of five steps
    agent.remember(rollout, features)
    held, flat = entries(agent), rollout.flat()
    flat["sound"] = flat["valid"]
    for name in ("obs", "final_obs", "action", "reward", "terminated", "truncated", "active",
                 "sound"):  # fmt: skip
        assert held[name].shape[:2] == (4, 15)
        assert torch.equal(held[name][:, :length], flat[name].transpose(0, 1)), name
        assert not held[name][:, length:].any()
    assert torch.equal(held["features"], features)


def test_the_newest_trials_are_kept() -> None:
    family = CountingFamily()
    agent = agent_on(family, capacity=5)
    rollout, features, _ = trial(agent, family, 3)
    ids = [features + 1000 * k for k in range(3)]
    for mine in ids:
        agent.remember(rollout, mine)
    newest = torch.cat(ids).flatten()[-5:]
    assert sorted(entries(agent)["features"].flatten().tolist()) == sorted(newest.tolist())


def test_more_worlds_than_fit() -> None:
    family = CountingFamily()
    agent = agent_on(family, capacity=4)
    rollout, features, _ = trial(agent, family, 7)
    for _ in range(2):
        agent.remember(rollout, features)
        held = entries(agent)
        assert held["features"].flatten().tolist() == [300, 400, 500, 600]
        assert held["reward"][:, 1].tolist() == [301, 401, 501, 601]
    figures = agent.train_step(family.make_worlds(7), 0.0)
    assert figures["steps"] == 6 * 12 + 6 and int(agent.trials.size) == 4


def test_a_sampled_trial_is_one_that_happened() -> None:
    family = CountingFamily()
    agent = scrambled(agent_on(family, task_weight=0.0, vae_batch=40))
    rollout, features, _ = trial(agent, family)
    network = agent.network
    network.actor_critic.task_norm.update(features)
    agent.remember(rollout, features)
    trials = agent.sample()
    flat, norm = rollout.flat(), network.actor_critic.obs_norm
    world = (trials.reward[0] / 100).long()
    assert set(world.tolist()) == {0, 1, 2}
    assert torch.equal(trials.reward, flat["reward"][:, world])
    assert torch.equal(trials.active, flat["active"][:, world])
    assert torch.equal(trials.task, network.actor_critic.task_norm(features)[world])
    parts = norm(flat["obs"]), flat["action"], norm(flat["final_obs"])
    assert torch.equal(trials.step, torch.cat(parts, -1)[:, world])
    done = flat["terminated"] | flat["truncated"]
    x = network.inputs(flat["final_obs"], flat["action"], flat["reward"], done)
    assert torch.equal(trials.x, x[:, world])
    assert not trials.site.any()


def test_rewards_are_of_the_cell_stepped_on_and_of_the_arm_pulled() -> None:
    grid, bandit = make_family("gridnavi", episodes=1), make_family("bandit", episodes=4)
    found = {}
    for family in (grid, bandit):
        agent = agent_on(family, reward_decoder="heads")
        rollout, features, _ = trial(agent, family, 30)
        agent.network.actor_critic.task_norm.update(features)
        agent.remember(rollout, features)
        held = {name: x.unsqueeze(0) for name, x in entries(agent).items()}
        steps = {n: x[0].transpose(0, 1) for n, x in held.items() if n not in ("features", "place")}
        found[family.name] = (
            rollout,
            features,
            agent.network.trials({**steps, "features": features}),
        )
    rollout, features, trials = found["gridnavi"]
    goal = features.argmax(-1)
    assert torch.equal(trials.task, features)  # one choice of several is not normalised
    assert torch.equal(trials.reward > 0, trials.site == goal)
    assert bool((trials.reward > 0).any())
    rollout, _, trials = found["bandit"]
    assert torch.equal(trials.site, rollout.flat()["action"])
    assert trials.step.shape[-1] == 1 + 5 + 1
    assert torch.equal(trials.step[..., 1:6].argmax(-1), trials.site)


# --- training ------------------------------------------------------------------------------------


def test_a_step_of_training_updates_all_that_learns() -> None:
    family = make_family("point-dense", horizon=6, episodes=2)
    agent = agent_on(family, state_weight=0.1, task_weight=0.1)
    network = agent.network
    before = {name: x.clone() for name, x in network.state_dict().items()}
    figures = agent.train_step(family.make_worlds(4), 0.0)
    assert figures["steps"] == 4 * 12
    names = {f"elbo/{n}" for n in ("reward", "state", "task", "kl", "total")}
    assert names <= figures.keys() and {"return_first", "return_last"} <= figures.keys()
    expected = 0.1 * (figures["elbo/state"] + figures["elbo/task"]) + figures["elbo/reward"]
    expected -= agent.config.kl_weight * figures["elbo/kl"]
    assert figures["elbo/total"] == pytest.approx(expected, rel=1e-4)
    after = network.state_dict()
    assert [name for name in before if torch.equal(before[name], after[name])] == []
    assert int(network.belief_norm.count) == int(network.actor_critic.obs_norm.count) == 48
    assert int(network.actor_critic.task_norm.count) == 4


def test_only_sound_steps_of_trials_are_counted_by_the_normalisers() -> None:
    agent = agent_on(CountingFamily(broken_step=2))
    agent.train_step(CountingFamily(broken_step=2).make_worlds(3), 0.0)
    network = agent.network
    assert int(network.belief_norm.count) == int(network.actor_critic.obs_norm.count) == 6 + 6 + 12


def test_the_auto_encoder_learns_what_it_sees() -> None:
    """Rewards of a family that is all predictable, from beliefs that tell the task."""
    family = CountingFamily()

    class Small(CountingFamily):
        """Offsets that networks can learn."""

        def sample_tasks(self, n: int, split: Any, generator: torch.Generator) -> Any:
            tasks = CountingFamily.sample_tasks(family, n, split, generator)
            return replace(tasks, offset=tasks.offset % 400 / 100 - 2)

    settings = {"embedding": 16, "hidden": 16, "decoder_layers": (16, 16), "kl_weight": 0.01}
    settings |= {"vae_updates": 100, "vae_batch": 16, "vae_learning_rate": 1e-2}
    agent = agent_on(Small(), **settings)
    rollout, features, _ = trial(agent, Small(), 8)
    agent.remember(rollout, features)
    figures = [agent.infer() for _ in range(4)]
    # Offsets have a variance of 1.25, and a trial has 156 pairs of a belief and a step, or 42 in
    # world 1: who does not know the task is wrong by 177 on average.
    assert figures[-1]["elbo/reward"] > -120
    assert figures[-1]["elbo/kl"] > 1


def test_steps_of_the_auto_encoder_follow_the_mean_bound_are_annealed_and_may_be_cut() -> None:
    family = CountingFamily()
    settings = {"vae_learning_rate": 1e-2, "vae_final_learning_rate": 2e-3, "vae_updates": 1}
    agent, plain = (agent_on(family, **settings) for _ in range(2))
    rollout, features, _ = trial(agent, family)
    for one in (agent, plain):
        one.remember(rollout, features)
    agent.infer(0.25)
    assert agent.vae_optimizer.param_groups[0]["lr"] == pytest.approx(8e-3)
    bound = elbo(plain.network.vae, plain.sample(), plain.config, plain.generator)["total"].mean()
    (-bound).backward()  # type: ignore[no-untyped-call]
    for ours, theirs in zip(
        agent.network.vae.parameters(), plain.network.vae.parameters(), strict=True
    ):
        assert ours.grad is not None and theirs.grad is not None
        torch.testing.assert_close(ours.grad, theirs.grad)
    norm = float(nn.utils.get_total_norm([p.grad for p in agent.network.vae.parameters()]))
    agent = agent_on(family, **settings, vae_max_grad_norm=norm / 2)
    agent.remember(rollout, features)
    agent.infer()
    cut = nn.utils.get_total_norm([p.grad for p in agent.network.vae.parameters()])
    assert float(cut) == pytest.approx(norm / 2, rel=1e-3)


def test_state_and_trials_go_on_exactly() -> None:
    family = make_family("bandit", episodes=5)
    settings = {"reward_decoder": "heads", "capacity": 20, "beliefs": 3, "decodes": 2}
    # The seed of the second is wrong: all that matters has to come with the state.
    agents = [agent_on(family, seed=seed, **settings) for seed in (0, 9)]
    envs = [family.make_worlds(16, seed=seed) for seed in (0, 9)]
    agents[0].train_step(envs[0], 0.0)
    agents[1].load_state_dict(agents[0].state_dict())
    envs[1].load_state_dict(envs[0].state_dict())
    assert agents[0].buffers().keys() == {"trials"}
    file = io.BytesIO()
    agents[0].buffers()["trials"].write(file)
    file.seek(0)
    agents[1].buffers()["trials"].read(file)
    for progress in (0.3, 0.6):
        figures = [a.train_step(env, progress) for a, env in zip(agents, envs, strict=True)]
        assert figures[0] == figures[1]
    one, other = (agent.network.state_dict() for agent in agents)
    assert all(torch.equal(one[name], other[name]) for name in one)
    one, other = (entries(agent) for agent in agents)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_weights_and_training_leave_the_global_generator_alone() -> None:
    family = CountingFamily()
    before = torch.get_rng_state()
    agent_on(family).train_step(family.make_worlds(3), 0.0)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_gradient_that_is_not_finite_stops_training_before_the_parameters_change() -> None:
    family = CountingFamily()
    agent = agent_on(family)
    rollout, features, _ = trial(agent, family)
    agent.remember(rollout, features)
    before = {name: x.clone() for name, x in agent.network.state_dict().items()}
    agent.trials.storage["reward"][0, :3] = float("nan")
    with pytest.raises(TrainingError, match="varibad: the gradient is not finite"):
        agent.infer()
    agent.trials.clear(torch.tensor([0]))
    batch, _ = agent.prepare(rollout, features)
    with pytest.raises(TrainingError, match="varibad: the gradient is not finite"):
        agent.update(replace(batch, advantage=batch.advantage * float("nan")), 0.0)
    with pytest.raises(TrainingError, match="no step"):
        agent.update(replace(batch, weight=batch.weight * 0), 0.0)
    after = agent.network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def mean_returns(agent: VariBAD, family: Family, ablation: Any = "none") -> list[float]:
    env = family.make_worlds(200)
    tasks = family.sample_tasks(200, "held-out", torch.Generator().manual_seed(1))
    return evaluate(agent.policy(ablation=ablation), env, tasks, family.episodes).summary().mean


def test_it_learns_to_use_its_belief() -> None:
    # Two arms, 8 pulls: random play earns 0.5 a pull, knowing the better arm 2/3.
    family = make_family("bandit", arms=2, episodes=8)
    config = {**SMALL, "reward_decoder": "heads", "embedding": 16, "hidden": 16, "epochs": 4}
    config |= {"minibatches": 4, "gamma": 0.9, "lam": 0.3, "entropy": 0.03, "learning_rate": 5e-3}
    config |= {"kl_weight": 0.01, "capacity": 1000, "vae_updates": 5, "vae_batch": 64}
    agent = VariBAD(VariBADConfig(**config, vae_learning_rate=5e-3), family.spec(), seed=2)
    env = family.make_worlds(256, seed=2)
    for i in range(50):
        agent.train_step(env, i / 50)
    late = {a: sum(mean_returns(agent, family, a)[4:]) / 4 for a in ABLATIONS}
    assert late["none"] > 0.57
    assert late["belief-fixed"] < 0.55
    # Episodes of bandits are single pulls: all that is learned is forgotten again.
    assert late["belief-reset-every-episode"] == late["belief-fixed"]


def test_every_ablation_runs_and_equal_policies_act_alike() -> None:
    family = make_family("gridnavi", episodes=2)
    agent = agent_on(family)
    for ablation in ABLATIONS:
        assert len(mean_returns(agent, family, ablation)) == 2
    rollouts = []
    for policy in (agent.policy(False), agent.policy(False)):
        env = family.make_worlds(4, seed=0)
        env.set_tasks(family.sample_tasks(4, "train", torch.Generator().manual_seed(0)))
        rollouts.append(run_trials(policy, env, 2))
    assert torch.equal(rollouts[0].action, rollouts[1].action)


@pytest.mark.parametrize(
    "bad",
    [
        {"vae_updates": 0},
        {"vae_batch": 0},
        {"capacity": 0},
        {"vae_learning_rate": 0.0},
        {"vae_final_learning_rate": -1.0},
        {"vae_max_grad_norm": -1.0},
        {"gamma": 1.5},
        {"latent": 0},
        {"kl_weight": float("nan")},
        {"chunk": -1},
    ],
)
def test_settings_that_cannot_train_are_refused(bad: dict[str, Any]) -> None:
    (name,) = bad
    with pytest.raises(UsageError, match=f"varibad: {name} must be"):
        VariBADConfig(**bad)


def test_settings_that_do_not_fit_are_refused_before_anything_is_built(monkeypatch: Any) -> None:
    monkeypatch.setattr(GRUMemory, "of", lambda *_: pytest.fail("a network was built"))
    with pytest.raises(UsageError, match="fewer beliefs than 14; choose 0"):
        agent_on(CountingFamily(), beliefs=14)
    with pytest.raises(UsageError, match="reward_decoder heads"):
        agent_on(CountingFamily(), reward_decoder="heads")
    with pytest.raises(UsageError, match="task_weight must be 0"):
        agent_on(CountingFamily(), task_weight=0.5)


def test_a_trained_policy_is_judged_on_trials_shorter_than_its_training_drew_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(tmp_path / "run")
    small = ["--num-worlds", "4", "--evaluation-tasks", "4", "--threads", "1", "--vae-batch", "4"]
    sizes = ["--beliefs", "40", "--decodes", "40", "--vae-updates", "1", "--total-steps", "240"]
    assert main(["train", "varibad", "gridnavi", *small, *sizes, "--run-dir", run]) == 0
    assert main(["evaluate", run, "--tasks", "4", "--episodes", "1", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out.splitlines()[-1])["mean"]) == 1

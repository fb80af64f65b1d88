"""PPO over trials: what it makes of a batch, what it maximises, when it stops."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from counting import CountingFamily
from ragged import Ragged
from torch import Tensor

from metarl import ppo
from metarl.errors import TrainingError, UsageError
from metarl.policy import Step
from metarl.ppo import PPO, ActorCritic, Batch, PPOConfig, loss
from metarl.rollout import Rollout, run_trials
from metarl.tasks import Family

KNOWN = 2
SMALL: dict[str, Any] = {"layers": (8,), "gamma": 0.9, "lam": 0.7, "epochs": 3, "minibatches": 2}


class Wandering:
    """Acts by the network, on knowledge that is noise."""

    def __init__(self, network: ActorCritic) -> None:
        self.network, self.generator = network, torch.Generator().manual_seed(0)
        self.known: list[Tensor] = []

    def begin(self, num_tasks: int, worlds_per_task: int) -> None:
        self.known.clear()

    def act(self, obs: Tensor) -> Tensor:
        self.known.append(torch.randn(len(obs), KNOWN, generator=self.generator))
        chances = self.network.distribution(self.network.obs_norm(obs), self.known[-1])
        return chances.sample(self.generator)

    def observe(self, step: Step) -> None:
        pass


def learner(family: Family, **changes: Any) -> PPO:
    config, spec = PPOConfig(**{**SMALL, **changes}), family.spec()
    torch.manual_seed(1)
    network = ActorCritic(spec, config, KNOWN)
    g = torch.Generator().manual_seed(4)
    for norm in (network.obs_norm, network.task_norm):
        norm.update(torch.randn(50, len(norm.mean), generator=g) * 3.0 + 1.0)
    return PPO(config, spec, network, network.parameters(), g)


@torch.no_grad()
def collect(learns: PPO, family: Family, worlds: int = 5) -> tuple[Rollout, Tensor, Tensor]:
    """A rollout, the features of its tasks `[N, F]` and what was known `[T, B, K]`."""
    env = family.make_worlds(worlds)
    env.set_tasks(family.sample_tasks(worlds, "train", torch.Generator().manual_seed(0)))
    policy = Wandering(learns.network)
    rollout = run_trials(policy, env, family.episodes)
    assert env.tasks is not None
    return rollout, env.tasks.features(), torch.stack(policy.known)


def prepared(learns: PPO, family: Family, **options: Any) -> tuple[Batch, Rollout]:
    rollout, features, known = collect(learns, family, **options)
    nothing = known[..., :0]
    return learns.prepare(rollout, features, nothing, nothing, known), rollout


def recall(part: Batch) -> Tensor:
    return part.known


FAMILIES = {
    "counting": CountingFamily(),
    "broken": CountingFamily(broken_step=2, bad_value=50.0),
    "ragged": Ragged(episodes=3),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_batch_is_what_one_step_after_the_other_would_be(name: str) -> None:
    """Values and advantages run to the end of the trial, in units of the returns' spread."""
    family = FAMILIES[name]
    learns = learner(family)
    batch, rollout = prepared(learns, family)
    network, flat, gamma, lam = learns.network, rollout.flat(), 0.9, 0.7
    features = network.task_norm(collect(learns, family)[1])
    steps, worlds = flat["reward"].shape
    values, pasts, deltas = torch.zeros(steps + 1, worlds), [], torch.zeros(steps, worlds)
    for b in range(worlds):
        past = 0.0
        for t in range(steps):
            alive = bool(flat["active"][t, b])
            past = gamma * past + float(flat["reward"][t, b]) * alive
            if flat["valid"][t, b]:
                pasts.append(past)
            clock = float(flat["elapsed"][t, b]) / family.horizon
            told = [*features[b], clock, float(flat["episode"][t, b]) / family.episodes]
            assert batch.privileged[t, b].tolist() == pytest.approx([float(x) for x in told])
            seen = network.obs_norm(flat["obs"][t, b]), batch.known[t, b], batch.privileged[t, b]
            if alive:
                values[t, b] = network.critic(torch.cat(seen)).detach()
            chances = network.head(network.policy(torch.cat(seen[:2])))
            expected = chances.log_prob(flat["action"][t, b])
            torch.testing.assert_close(batch.log_prob[t, b], expected.detach())
    spread = float(torch.tensor(pasts).double().var(correction=0).sqrt())
    assert float(learns.return_norm.count) == len(pasts)
    advantages = torch.zeros(steps, worlds)
    for b in range(worlds):
        following = 0.0
        for t in reversed(range(steps)):
            deltas[t, b] = flat["reward"][t, b] / spread + gamma * values[t + 1, b] - values[t, b]
            following = float(deltas[t, b]) + gamma * lam * following
            following *= float(flat["valid"][t, b])
            advantages[t, b] = following
    valid = flat["valid"]
    torch.testing.assert_close(
        batch.target[valid], (values[:-1] + advantages)[valid], rtol=1e-3, atol=1e-4
    )
    wanted = advantages[valid]
    wanted = (wanted - wanted.mean()) / wanted.std(correction=0)
    torch.testing.assert_close(batch.advantage[valid], wanted, rtol=1e-3, atol=1e-3)
    assert torch.equal(batch.weight, valid.float())
    assert torch.equal(batch.action, flat["action"])
    assert torch.equal(batch.obs, network.obs_norm(flat["obs"]))


def shifted(learns: PPO, size: float = 0.3) -> None:
    """Move the policy, so that ratios are not one."""
    g = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for p in learns.network.parameters():
            p += size * torch.randn(p.shape, generator=g)


@torch.no_grad()
def test_the_loss_is_the_published_one() -> None:
    family = FAMILIES["broken"]
    learns = learner(family, value_weight=0.7)
    batch, _ = prepared(learns, family)
    shifted(learns)
    terms = loss(learns.network, batch, batch.known, learns.config, 0.2)
    network, sums, count = learns.network, dict.fromkeys(("policy", "critic", "entropy"), 0.0), 0
    clipped = 0
    for t in range(len(batch.obs)):
        for b in range(batch.obs.shape[1]):
            if not batch.weight[t, b]:
                continue
            count += 1
            seen = torch.cat([batch.obs[t, b], batch.known[t, b]])
            mean, std = network.head.mean(network.policy(seen)), network.head.log_std.exp()
            chances = torch.distributions.Normal(mean, std)
            ratio = (chances.log_prob(batch.action[t, b]).sum() - batch.log_prob[t, b]).exp()
            a, cut = batch.advantage[t, b], ratio.clamp(0.8, 1.2)
            clipped += int(ratio * a > cut * a)
            sums["policy"] += -float(torch.min(ratio * a, cut * a))
            value = network.critic(torch.cat([seen, batch.privileged[t, b]]))
            sums["critic"] += float(F.huber_loss(value[0], batch.target[t, b]))
            sums["entropy"] += float(chances.entropy().sum())
    assert 0 < clipped < count == int(batch.weight.sum())
    for name, total in sums.items():
        assert float(terms[name]) == pytest.approx(total / count, rel=1e-4)
    expected = (sums["policy"] + 0.7 * sums["critic"] - 0.2 * sums["entropy"]) / count
    assert float(terms["total"]) == pytest.approx(expected, rel=1e-4)


def spied(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Batch, float]]:
    """The chunks of every gradient step, with the weight of the entropy."""
    seen: list[tuple[Batch, float]] = []

    def watched(network: Any, part: Batch, known: Tensor, config: Any, weight: float) -> Any:
        seen.append((part, weight))
        return loss(network, part, known, config, weight)

    monkeypatch.setattr(ppo, "loss", watched)
    return seen


@pytest.mark.parametrize(("progress", "rate", "entropy"), [(0.0, 1e-2, 0.4), (0.75, 4e-3, 0.1)])
def test_step_size_and_entropy_are_annealed(
    monkeypatch: pytest.MonkeyPatch, progress: float, rate: float, entropy: float
) -> None:
    family, seen = FAMILIES["counting"], spied(monkeypatch)
    rates = {"learning_rate": 1e-2, "final_learning_rate": 2e-3, "entropy": 0.4}
    learns = learner(family, **rates)
    learns.update(prepared(learns, family)[0], recall, 1, progress)
    assert learns.optimizer.param_groups[0]["lr"] == pytest.approx(rate)
    assert seen and [weight for _, weight in seen] == pytest.approx([entropy] * len(seen))


@pytest.mark.parametrize("length", [0, 1, 5])
def test_every_pass_has_every_step_once(monkeypatch: pytest.MonkeyPatch, length: int) -> None:
    family, seen = FAMILIES["broken"], spied(monkeypatch)
    learns = learner(family, target_kl=1e9, minibatches=3)
    batch, rollout = prepared(learns, family)
    figures = learns.update(batch, recall, length, 0.0)
    assert len(seen) == 3 * 3 and len({id(part) for part, _ in seen}) == 9
    wanted = sorted(batch.log_prob[rollout.flat()["valid"]].tolist())
    orders = []
    for first in range(0, 9, 3):
        parts = [part for part, _ in seen[first : first + 3]]
        found = torch.cat([part.log_prob[part.weight > 0] for part in parts])
        orders.append(found)
        assert sorted(found.tolist()) == wanted
        assert all(len(part.obs) == (length or len(batch.obs)) for part in parts)
        assert all(bool(part.weight.any(0).all()) for part in parts)
    assert not torch.equal(orders[0], orders[1])
    assert figures.keys() == {f"loss/{n}" for n in ("total", "policy", "critic", "entropy", "kl")}


def test_there_are_no_more_parts_than_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    family, seen = FAMILIES["counting"], spied(monkeypatch)
    learns = learner(family, minibatches=50, epochs=1)
    learns.update(prepared(learns, family, worlds=4)[0], recall, 0, 0.0)
    assert [part.obs.shape[1] for part, _ in seen] == [1] * 4


def test_passes_end_when_the_policy_has_moved_far_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    family, seen = FAMILIES["counting"], spied(monkeypatch)
    counts = []
    for target, rate in ((1e-3, 0.1), (1e9, 0.1), (1e-3, 1e-7)):
        learns = learner(family, epochs=6, target_kl=target, learning_rate=rate)
        seen.clear()
        learns.update(prepared(learns, family)[0], recall, 1, 0.0)
        counts.append(len(seen))
    assert counts[0] in (2, 4) and counts[1:] == [12, 12]


def test_what_is_better_than_expected_becomes_likelier() -> None:
    family = FAMILIES["counting"]
    learns = learner(family, epochs=20, target_kl=1e9, learning_rate=3e-3)
    batch, _ = prepared(learns, family)
    # Actions above the mean are good, others bad; the value is 3.
    good = torch.where(batch.action[..., 0] > 0, 1.0, -1.0)
    batch = replace(batch, advantage=good, target=torch.full_like(good, 3.0))

    def judged() -> tuple[float, float]:
        with torch.no_grad():
            chances = learns.network.distribution(batch.obs, batch.known)
            change = chances.log_prob(batch.action) - batch.log_prob
            value = learns.network.value(batch.obs, batch.known, batch.privileged)
        return float((change * good).mean()), float((value - 3.0).abs().mean())

    before = judged()
    learns.update(batch, recall, 1, 0.0)
    assert before[0] == pytest.approx(0.0, abs=1e-5)
    assert judged()[0] > 0.02 and judged()[1] < 0.8 * before[1]


def test_it_goes_on_exactly() -> None:
    family = FAMILIES["ragged"]
    one, other = learner(family), learner(family)
    batch, _ = prepared(one, family)
    one.update(batch, recall, 1, 0.0)
    other.network.load_state_dict(one.network.state_dict())
    other.load_state_dict(one.state_dict())
    other.generator.set_state(one.generator.get_state())
    figures = []
    for learns in (one, other):
        again, _ = prepared(learns, family)
        figures.append(learns.update(again, recall, 1, 0.5))
    assert figures[0] == figures[1]
    assert float(one.return_norm.count) == float(other.return_norm.count) > 50


def test_nothing_to_learn_from_and_gradients_that_are_not_finite_are_said() -> None:
    family = FAMILIES["counting"]
    learns = learner(family)
    batch, _ = prepared(learns, family)
    before = [p.clone() for p in learns.network.parameters()]
    with pytest.raises(TrainingError, match="ppo: no step of the batch is of a sound simulation"):
        learns.update(replace(batch, weight=batch.weight * 0), recall, 1, 0.0)
    with pytest.raises(TrainingError, match="ppo: the gradient is not finite"):
        learns.update(replace(batch, target=batch.target * float("nan")), recall, 1, 0.0)
    assert all(map(torch.equal, before, learns.network.parameters()))


@pytest.mark.parametrize(
    "bad",
    [
        {"layers": ()},
        {"gamma": 1.01},
        {"lam": -0.1},
        {"learning_rate": 0.0},
        {"final_learning_rate": -1.0},
        {"epochs": 0},
        {"minibatches": 0},
        {"chunk": -1},
        {"clip": 0.0},
        {"target_kl": 0.0},
        {"entropy": -0.1},
        {"value_weight": float("nan")},
        {"max_grad_norm": float("inf")},
    ],
)
def test_settings_that_cannot_train_are_refused(bad: dict[str, Any]) -> None:
    (name,) = bad
    with pytest.raises(UsageError, match=f"ppo: {name} must be"):
        PPOConfig(**bad)

"""The adaptive policy of MAML and ProMP, watched by one that keeps lists for every world."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from ragged import Ragged

from metarl.agents.gradient_adaptation import (
    AdaptationConfig,
    AdaptingPolicy,
    Episodes,
    no_baseline,
    prepare,
)
from metarl.agents.gradient_policy import GradientPolicy
from metarl.agents.maml import MAML, MAMLConfig
from metarl.agents.promp import ProMP, ProMPConfig
from metarl.distributions import Gaussian
from metarl.envs.registry import make_family
from metarl.linear_baseline import fit_predict
from metarl.policy import Step
from metarl.rollout import run_trials

SMALL = {"layers": (8,), "inner_rate": 0.3, "baseline": "none", "gamma": 0.9, "last_layer": 0.5}


def by_hand(network, params, worlds, baseline):
    """The parameters of one task after a step on `worlds`: for each a list of its steps."""
    longest = max(len(steps) for steps in worlds)

    def stacked(name):
        rows = [[step[name] for step in steps] for steps in worlds]
        padded = [torch.stack(row + [row[0]] * (longest - len(row))) for row in rows]
        return torch.stack(padded, 1).unsqueeze(1)  # [T, 1, W, ...]

    valid = torch.tensor([[t < len(steps) for steps in worlds] for t in range(longest)])
    names = "obs", "action", "reward", "done", "elapsed"
    episodes = Episodes(**{n: stacked(n) for n in names}, valid=valid.unsqueeze(1))
    batch = prepare(episodes, lambda obs: network.chances(params, obs), network.config, baseline)
    return network.adapted([batch], second_order=False, params=params)


class World:
    """What one world did since its task last learned."""

    def __init__(self, version):
        self.steps, self.finished, self.elapsed = [], 0, 0
        self.version = version
        """how many gradient steps lie behind the parameters that the present episode began with"""


class Watched(GradientPolicy):
    """Compares every action and every parameter with what the plain bookkeeping expects."""

    def begin(self, num_tasks, worlds_per_task):
        super().begin(num_tasks, worlds_per_task)
        start = {n: p.detach().unsqueeze(0).clone() for n, p in self.network.start().items()}
        self.versions = [[start] for _ in range(num_tasks)]
        self.world = [[World(0) for _ in range(worlds_per_task)] for _ in range(num_tasks)]
        self.late, self.adapted_alone = 0, 0

    def everywhere(self):
        """Task, world, its number among all, and what is known of it."""
        for n, worlds in enumerate(self.world):
            for w, world in enumerate(worlds):
                yield n, w, n * len(worlds) + w, world

    def act(self, obs):
        state = self.generator.get_state()
        action = super().act(obs)
        again = torch.Generator()
        again.set_state(state)
        draws = [torch.randn(*self.shape, 1, generator=again).flatten(0, 1) for _ in range(2)]
        for n, _, i, world in self.everywhere():
            old = world.version < len(self.versions[n]) - 1
            self.late += old
            params = self.versions[n][world.version]
            chances = self.network.chances(params, obs[i].view(1, 1, -1))
            assert isinstance(chances, Gaussian)
            expected = chances.mean + chances.log_std.exp() * draws[old][i]
            if self.deterministic and len(self.versions[n]) - 1 >= self.last_step:
                expected = chances.mean
            torch.testing.assert_close(action[i], expected.flatten(), rtol=1e-4, atol=1e-5)
        self.seen = obs, action
        return action

    def observe(self, step: Step):
        super().observe(step)
        done = step.terminated | step.truncated
        for n, _, i, world in self.everywhere():
            now = len(self.versions[n]) - 1
            if world.version == now < self.last_step and world.finished < self.episodes:
                parts = {"obs": self.seen[0], "action": self.seen[1], "reward": step.reward}
                clock = torch.tensor(world.elapsed)
                taken = {name: x[i].clone() for name, x in {**parts, "done": done}.items()}
                world.steps.append({**taken, "elapsed": clock})
                world.finished += bool(done[i])
            world.elapsed = 0 if done[i] else world.elapsed + 1
        learned = [self.learn(n) for n in range(len(self.world))]
        self.adapted_alone += sum(learned) == 1
        for _, _, i, world in self.everywhere():
            if done[i]:  # the next episode begins by what its task knows now
                world.version = len(self.versions[i // self.shape[1]]) - 1
        for name, p in self.params.items():
            now = torch.cat([versions[-1][name] for versions in self.versions])
            torch.testing.assert_close(p, now, rtol=1e-4, atol=1e-6)

    def learn(self, n):
        """Take a step if every world of task `n` has finished its share."""
        worlds = self.world[n]
        if not all(world.finished == self.episodes for world in worlds):
            return False
        steps = [world.steps for world in worlds]
        present = self.versions[n][-1]
        self.versions[n].append(by_hand(self.network, present, steps, self.baseline))
        for world in worlds:
            world.steps, world.finished = [], 0
        return True


def watched(family, rollouts, **options):
    return Watched(*watched_parts(family, rollouts, **options))


def watched_parts(family, rollouts, *, deterministic=False, baseline=no_baseline, **options):
    """What a policy is made of."""
    config = AdaptationConfig(**{**SMALL, "rollouts": rollouts, **options})
    torch.manual_seed(1)
    network = AdaptingPolicy(family.spec(), config)
    generator = torch.Generator().manual_seed(3)
    return network, family.spec(), baseline, deterministic, generator


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize(("worlds", "rollouts"), [(3, 6), (4, 4), (1, 3), (3, 4)])
def test_episodes_that_end_at_different_times_are_learned_from_as_the_lists_say(
    worlds, rollouts, deterministic
):
    family, tasks = Ragged(episodes=9), 4
    policy = watched(family, rollouts, deterministic=deterministic)
    env = family.make_worlds(tasks * worlds, seed=2)
    env.set_tasks(family.sample_tasks(tasks, "train", torch.Generator().manual_seed(0)))
    run_trials(policy, env, family.episodes)
    share = -(-rollouts // worlds)
    assert policy.last_step == 8 // share
    taken = [len(v) - 1 for v in policy.versions]
    assert min(taken) > 0
    assert max(taken) <= policy.last_step
    assert worlds > 1 or min(taken) == policy.last_step
    # Otherwise nothing of this was seen: tasks apart from each other, episodes cut in two.
    assert policy.adapted_alone > 0
    assert (policy.late > 0) == (worlds > 1)


@pytest.mark.parametrize("baseline", [no_baseline, fit_predict])
@pytest.mark.parametrize("inner", ["sgd", "meta-sgd", "cavia"])
@pytest.mark.parametrize("name", ["point-dense", "navigation-2d"])
def test_families_whose_episodes_end_together(name, inner, baseline):
    family = make_family(name, horizon=6, episodes=5)
    policy = watched(family, 6, inner=inner, baseline=baseline)

    def act(obs):  # the check of actions is for those of one number
        policy.seen = obs, super(Watched, policy).act(obs)
        return policy.seen[1]

    policy.act = act
    env = family.make_worlds(6, seed=2)
    env.set_tasks(family.sample_tasks(2, "train", torch.Generator().manual_seed(0)))
    run_trials(policy, env, family.episodes)
    assert policy.last_step == 2
    assert [len(v) - 1 for v in policy.versions] == [2, 2]


@pytest.mark.parametrize("agent_of", [(MAML, MAMLConfig), (ProMP, ProMPConfig)])
@pytest.mark.parametrize(("name", "worlds"), [("bandit", 8), ("bandit", 4), ("navigation-2d", 4)])
def test_it_adapts_as_the_agent_does_when_it_collects(name, worlds, agent_of):
    """From the same random numbers: these families draw none at a reset."""
    kind, settings = agent_of
    share = 8 // worlds
    options = {"episodes": 1 + 3 * share, **({"horizon": 7} if name != "bandit" else {})}
    family = make_family(name, **options)
    config = settings(**SMALL, meta_batch=5, rollouts=8, inner_steps=3)
    agent = kind(config, family.spec(), seed=4)
    tasks = family.sample_tasks(5, "train", torch.Generator().manual_seed(0))
    used = []

    def spied(rollout, params, final):
        used.append(params)
        return type(agent).batch(agent, rollout, params, final)

    agent.batch = spied
    policy = agent.policy(deterministic=False)
    policy.generator.set_state(agent.generator.get_state())
    env = family.make_worlds(5 * worlds, seed=6)
    env.set_tasks(tasks)
    agent.collect(env, share)

    env = family.make_worlds(5 * worlds, seed=6)
    env.set_tasks(tasks)
    reached = [policy_params(policy, 5, worlds)]

    def note(step):
        if int(policy.steps[0]) == len(reached):
            reached.append({n: p.clone() for n, p in policy.params.items()})

    run_trials(policy, env, family.episodes, note)
    assert len(used) == len(reached) == 4
    for one, other in zip(used, reached, strict=True):
        for key in one:
            torch.testing.assert_close(other[key], one[key], rtol=1e-5, atol=1e-6)
    moved = [float((used[k]["last.bias"] - used[0]["last.bias"]).norm()) for k in range(4)]
    assert moved[0] == 0.0
    assert len(set(moved)) == 4


def policy_params(policy, tasks, worlds):
    policy.begin(tasks, worlds)
    return {n: p.clone() for n, p in policy.params.items()}


def test_tasks_do_not_disturb_each_other():
    """What a task becomes does not depend on what happens in the others, nor on when."""
    family, worlds = Ragged(episodes=5, horizon=12), slice(2, 4)
    g = torch.Generator().manual_seed(1)
    script = {
        "obs": torch.randn(12, 6, 2, generator=g),
        "action": torch.randn(12, 6, 1, generator=g),
        "reward": torch.randn(12, 6, generator=g),
        "done": torch.rand(12, 6, generator=g) < 0.4,
    }
    other = {name: x.flip(0) for name, x in script.items()}
    for name, x in other.items():
        x[:, worlds] = script[name][:, worlds]
    reached = []
    for told in (script, other):
        policy = GradientPolicy(*watched_parts(family, 2))
        policy.begin(3, 2)
        for t in range(12):
            policy.act(told["obs"][t])
            policy.action = told["action"][t]
            flags = told["done"][t], torch.zeros(6, dtype=torch.bool)
            policy.observe(Step(told["obs"][t], told["reward"][t], *flags))
        reached.append((policy.steps.tolist(), {n: p[1] for n, p in policy.params.items()}))
    assert reached[0][0][1] == reached[1][0][1] > 1
    for name, p in reached[0][1].items():
        torch.testing.assert_close(p, reached[1][1][name])


def test_begin_forgets_everything():
    family = Ragged(episodes=4)
    policy = watched(family, 4)
    curves = []
    for _ in range(2):
        policy.generator.manual_seed(0)
        env = family.make_worlds(6, seed=2)
        env.set_tasks(family.sample_tasks(3, "train", torch.Generator().manual_seed(0)))
        curves.append(run_trials(policy, env, 4))
        assert int(policy.steps.sum()) > 0
    assert torch.equal(curves[0].action, curves[1].action)
    assert torch.equal(curves[0].reward, curves[1].reward)
    # Even after a trial of other sizes, broken off in the middle of an episode.
    policy.begin(5, 1)
    policy.act(torch.zeros(5, 2))
    policy.begin(2, 3)
    start = policy.network.start()
    for name, p in policy.params.items():
        assert torch.equal(p, start[name].detach().expand(2, *start[name].shape))
    assert not policy.steps.any()
    assert not policy.finished.any()
    assert not policy.stale.any()
    assert policy.memory == {}


def test_it_leaves_the_meta_parameters_alone():
    family = Ragged(episodes=4)
    policy = watched(family, 4, inner="meta-sgd")
    before = {n: x.clone() for n, x in policy.network.state_dict().items()}
    env = family.make_worlds(4, seed=2)
    env.set_tasks(family.sample_tasks(2, "train", torch.Generator().manual_seed(0)))
    run_trials(policy, env, 4)
    assert policy.steps.tolist() == [1, 1]
    assert all(torch.equal(before[n], x) for n, x in policy.network.state_dict().items())
    assert not any(p.grad is not None for p in policy.network.parameters())


def test_the_most_likely_actions_are_taken_after_the_last_possible_step_only():
    family = make_family("bandit", episodes=5)
    policy = watched(family, 4, deterministic=True)
    policy.begin(3, 2)  # two pulls in each world, then a step: after pulls 2 and 4
    observed = Step(torch.zeros(6, 1), torch.rand(6), *(torch.zeros(6).bool() for _ in range(2)))
    done = replace(observed, truncated=torch.ones(6).bool())
    plain = super(Watched, policy)
    for pull in range(5):
        actions = torch.stack([plain.act(torch.zeros(6, 1)).clone() for _ in range(40)])
        drawn = bool((actions != actions[0]).any())
        assert drawn == (pull < 4)
        plain.observe(done)
    assert policy.last_step == 2
    assert policy.steps.tolist() == [2, 2, 2]


def test_without_a_chance_to_learn_it_takes_the_most_likely_action_at_once():
    family = make_family("bandit", episodes=2)
    policy = watched(family, 4, deterministic=True)
    policy.begin(3, 1)  # four pulls would be needed
    plain = super(Watched, policy)
    actions = torch.stack([plain.act(torch.zeros(3, 1)).clone() for _ in range(20)])
    assert not bool((actions != actions[0]).any())

"""The bench of updates of MAML and ProMP: a loop that takes the same steps, equal work, shares."""

import json

import pytest
import torch

from metarl.agents.gradient_agent import GradientAgent
from metarl.agents.maml import MAML, MAMLConfig
from metarl.agents.promp import ProMP, ProMPConfig
from metarl.envs.registry import make_family
from metarl.experiments import bench_gradient as bench
from metarl.experiments.cli import main
from metarl.experiments.plain_policy_gradient import PlainMAML, PlainProMP
from metarl.experiments.timing import Stopwatch
from metarl.trust_region import flatten

FAMILY = make_family("half-cheetah-dir", preset="promp")
CPU = torch.device("cpu")
SIZES = {"layers": (9, 7), "meta_batch": 3, "rollouts": 2}
PAIRS = {
    # So wide a trust region that the line search has to come back.
    "maml": (MAML, PlainMAML, MAMLConfig(**SIZES, max_kl=0.5)),
    # Steps so large that ratios are clipped, and a KL that counts.
    "promp": (ProMP, PlainProMP, ProMPConfig(**SIZES, learning_rate=0.05, kl_weight=0.5)),
}


def pair(name, dtype):
    """An agent, its peer, rounds of noise, and the parameters that both start from."""
    kind, plain, config = PAIRS[name]
    agent = kind(config, FAMILY.spec())
    agent.network.to(dtype)
    rounds = bench.random_rounds(agent, torch.Generator().manual_seed(3))
    return agent, plain(agent), rounds, flatten(agent.meta_parameters).detach().clone()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-8), (torch.float32, 1e-4)])
@pytest.mark.parametrize("name", PAIRS)
def test_the_loop_takes_the_same_step(name, dtype, tolerance):
    agent, loop, rounds, start = pair(name, dtype)
    figures = agent.learn(rounds, 0.0)
    loop.learn(rounds)
    after = agent.meta_parameters, loop.parameters
    ours, theirs = (flatten(parameters).detach() - start for parameters in after)
    assert ours.dtype == dtype and float(ours.norm()) > 0.1
    assert float((ours - theirs).norm() / ours.norm()) < tolerance
    if name == "maml":
        assert 0 < figures["loss/step"] < 1


@pytest.mark.parametrize("name", PAIRS)
def test_the_rounds_are_drawn_by_the_policy_as_it_adapts(name):
    agent, _, rounds, _ = pair(name, torch.float32)
    assert len(rounds) == 2
    before, after = rounds
    assert before.obs.shape == after.obs.shape == (3, 200, 17)
    assert before.action.shape == (3, 200, 6) and bool((before.weight == 1).all())
    assert torch.equal(before.elapsed[0], torch.arange(100).repeat(2))
    adapted = agent.network.adapted([before])
    for batch, params in ((before, {}), (after, adapted)):
        chances = agent.network.chances(params, batch.obs)
        torch.testing.assert_close(chances.log_prob(batch.action), batch.log_prob)
        for found, expected in zip(chances.parameters, batch.old, strict=True):
            torch.testing.assert_close(found.expand_as(expected), expected)
        z = (batch.action - batch.old[0]) / batch.old[1].exp()
        assert abs(float(z.mean())) < 0.1 and abs(float(z.std()) - 1) < 0.1


@pytest.mark.parametrize(
    ("build", "kind", "plain"), [(bench.maml, MAML, PlainMAML), (bench.promp, ProMP, PlainProMP)]
)
def test_every_update_does_the_same_work(monkeypatch, build, kind, plain):
    """Ours and the loop's, however often and in whichever order: from the same parameters."""
    begun, made = [], []
    learn, init = kind.learn, plain.__init__

    def spied_learn(agent, rounds, progress):
        begun.append(flatten(agent.meta_parameters).detach().clone())
        result = learn(agent, rounds, progress)
        made.append((result, flatten(agent.meta_parameters).detach().clone()))
        return result

    def spied_init(loop, agent):
        init(loop, agent)
        begun.append(flatten(loop.parameters).detach().clone())

    monkeypatch.setattr(kind, "learn", spied_learn)
    monkeypatch.setattr(plain, "__init__", spied_init)
    work = build(CPU, meta_batch=2, rollouts=1)
    loop = work.peers["loop"]()
    for run in (work.run, loop, work.run, loop):
        run()
    assert len(begun) == 4 and all(torch.equal(x, begun[0]) for x in begun)
    (first, after), (second, again) = made
    assert first == second and torch.equal(after, again)
    assert not torch.equal(after, begun[0])


def test_the_sizes_are_the_published_ones(monkeypatch):
    monkeypatch.setattr(bench, "workload", lambda kind, plain, config, *_: (kind, plain, config))
    sizes = {"meta_batch": 40, "rollouts": 20, "layers": (64, 64), "inner_steps": 1}
    for build, *expected, special in (
        (bench.maml, MAML, PlainMAML, {"outer": "trpo", "cg_iterations": 10, "max_kl": 0.01}),
        (bench.promp, ProMP, PlainProMP, {"epochs": 5, "clip": 0.3, "learning_rate": 1e-3}),
    ):
        *found, config = build(CPU)
        assert found == expected
        assert {name: getattr(config, name) for name in sizes | special} == sizes | special


def test_a_stopwatch_adds_up_the_seconds_of_its_methods(monkeypatch):
    class Worker:
        def work(self, x, *, y):
            return x + y

        def rest(self):
            return "rested"

        def idle(self):
            return None

    now = iter([10.0, 13.0, 20.0, 20.5])
    monkeypatch.setattr("metarl.experiments.timing.perf_counter", lambda: next(now))
    worker = Worker()
    watch = Stopwatch(worker, "work", "rest")
    assert worker.work(1, y=2) == 3
    assert worker.rest() == "rested"
    worker.idle()
    assert watch.seconds == 3.5


def test_a_whole_iteration_has_two_rounds_of_physics(monkeypatch):
    counts = []
    step = GradientAgent.train_step

    def spied(agent, env, progress):
        figures = step(agent, env, progress)
        counts.append((env.num_envs, figures["steps"]))
        return figures

    monkeypatch.setattr(GradientAgent, "train_step", spied)
    result = bench.maml(CPU, meta_batch=2, rollouts=2, whole=True).further(1)
    assert counts == [(4, 800.0)] * 2
    assert result.keys() == {"whole_seconds", "learning_share", "physics_share"}
    shares = result["learning_share"], result["physics_share"]
    assert min(shares) > 0 and sum(shares) < 1
    assert bench.maml(CPU, meta_batch=2, rollouts=2).further(1) == {}


@pytest.mark.parametrize("agent", ["maml", "promp"])
def test_the_command_prints_seconds_ratio_and_shares(agent, capsys):
    words = f"bench update {agent} --meta-batch 2 --rollouts 1 --whole --peer loop"
    assert main([*words.split(), "--windows", "2", "--seconds", "0.01", "--json"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    figures = json.loads(last)
    assert figures["unit"] == "iterations/s" and figures["peer"] == "loop"
    assert (figures["meta_batch"], figures["rollouts"], figures["horizon"]) == (2, 1, 100)
    ratios = [a / b for a, b in zip(figures["windows"], figures["peer_windows"], strict=True)]
    assert min(ratios) <= figures["ratio"] <= max(ratios)
    assert figures["seconds"] == pytest.approx(1 / figures["value"])
    assert figures["whole_seconds"] > 0
    assert lines[0].split() == ["side", "iterations/s", "seconds", "each"]
    assert [line.split()[0] for line in lines[1:3]] == ["metarl", "loop"]
    assert f"learning {figures['learning_share']:.1%}" in lines[-1]
    assert f"physics {figures['physics_share']:.1%}" in lines[-1]

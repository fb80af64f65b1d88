"""The bench of VariBAD's inference: a loop that learns the same, published sizes, honest shares."""

import json
from dataclasses import fields, replace

import pytest
import torch

from metarl.agents.task_inference import Trials, elbo
from metarl.agents.varibad import VariBAD, VariBADConfig
from metarl.envs.registry import make_family
from metarl.errors import UsageError
from metarl.experiments import bench_varibad as bench
from metarl.experiments.bench_update import bench_update
from metarl.experiments.cli import main
from metarl.experiments.plain_varibad import PlainVAE
from metarl.experiments.presets import preset

CPU = torch.device("cpu")
SMALL = {
    "embedding": 6,
    "hidden": 5,
    "latent": 3,
    "layers": (8,),
    "decoder_layers": (7, 6),
    "vae_batch": 4,
    "minibatches": 1,
    "epochs": 1,
}
PAIRS = {
    "all terms of a grid": ("gridnavi", {"reward_decoder": "heads", "beliefs": 0, "decodes": 0}),
    "some terms of a grid": ("gridnavi", {"reward_decoder": "heads", "beliefs": 9, "decodes": 7}),
    "all terms of a bandit": ("bandit", {"reward_decoder": "heads", "beliefs": 0, "decodes": 0}),
    "some terms of a robot": ("half-cheetah-vel", {"beliefs": 5, "decodes": 6}),
}


def pair(name, **changes):
    """An agent with some trials, and its peer."""
    family, settings = PAIRS[name]
    made = make_family(family, **({"episodes": 1} if family == "half-cheetah-vel" else {}))
    agent = VariBAD(VariBADConfig(**{**SMALL, **settings, **changes}), made.spec())
    bench._fill(agent, made)
    return agent


def in_double(trials):
    parts = {f.name: getattr(trials, f.name) for f in fields(trials)}
    return Trials(**{n: x.double() if x.is_floating_point() else x for n, x in parts.items()})


@pytest.mark.parametrize("name", PAIRS)
def test_the_loop_has_the_same_bound_and_gradient(name):
    agent = pair(name)
    vae, trials = agent.network.vae.double(), in_double(agent.sample())
    # Trials of different lengths, with a step that is not sound.
    trials.active[-3:, 0] = trials.valid[-3:, 0] = trials.valid[2, 1] = False
    plain = PlainVAE(agent)
    ours = elbo(vae, trials, agent.config, agent.generator)["total"]
    theirs = plain.bound(trials)
    torch.testing.assert_close(theirs, ours, rtol=1e-10, atol=1e-10)
    parameters = list(vae.parameters()), list(plain.network.parameters())
    found = [
        torch.autograd.grad(bound.mean(), own)
        for bound, own in zip((ours, theirs), parameters, strict=True)
    ]
    for expected, gradient in zip(*found, strict=True):
        size = float(expected.abs().max())
        assert size > 0
        torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-6 * size)


@pytest.mark.parametrize("cut", [0.0, 1.0])
def test_the_loop_takes_the_same_steps(cut):
    agent = pair("some terms of a grid", vae_max_grad_norm=cut, vae_updates=1)
    plain = PlainVAE(agent)
    start = [p.detach().clone() for p in plain.network.parameters()]
    for _ in range(3):
        # Both draw their trials first, and then their terms.
        agent.generator.set_state(plain.generator.get_state())
        trials = agent.sample()
        plain.generator.set_state(agent.generator.get_state())
        agent.sample, kept = (lambda trials=trials: trials), agent.sample
        agent.infer()
        agent.sample = kept
        plain.update(trials)
    for ours, theirs, before in zip(
        agent.network.vae.parameters(), plain.network.parameters(), start, strict=True
    ):
        # Adam goes by the sign of a gradient at first, which rounding may decide where it is tiny.
        assert float(((ours - theirs).abs() > 1e-4).float().mean()) < 0.02
        assert not torch.equal(ours, before)


def test_the_loop_refuses_what_it_cannot_decode():
    agent = pair("some terms of a robot", state_weight=1.0)
    with pytest.raises(UsageError, match="the loop decodes rewards only"):
        PlainVAE(agent)


@pytest.mark.parametrize("family", ["gridnavi", "half-cheetah-vel"])
def test_the_sizes_are_those_of_the_preset(monkeypatch, family):
    built = []

    class Spied(VariBAD):
        def __init__(self, config, spec, **options):
            built.append(config)
            super().__init__(config, spec, **options)

    monkeypatch.setattr(bench, "VariBAD", Spied)
    monkeypatch.setattr(bench, "_fill", lambda *_: None)
    work = bench.varibad(CPU, family=family)
    (config,) = built
    assert config == replace(VariBADConfig(**preset("varibad", family)["agent"]), vae_updates=1)
    steps = 60 if family == "gridnavi" else 400
    assert work.facts["steps"] == steps and work.facts["trials"] == config.vae_batch
    assert work.facts["beliefs"] == (config.beliefs or steps + 1)
    assert work.facts["decodes"] == (config.decodes or steps)


@pytest.fixture
def small(monkeypatch):
    """Presets of two iterations a second."""
    settings = {**SMALL, "reward_decoder": "heads", "beliefs": 0, "decodes": 0, "vae_updates": 3}
    plan = {"agent": settings, "family": {"episodes": 2}, "training": {"num_worlds": 6}}
    monkeypatch.setattr(bench, "preset", lambda *_: plan)


def test_an_update_is_one_gradient_step_on_trials_that_happened(monkeypatch, small):
    seen = []

    def spied(vae, trials, config, generator):
        seen.append((trials, config))
        return elbo(vae, trials, config, generator)

    monkeypatch.setattr("metarl.agents.varibad.elbo", spied)
    bench.varibad(CPU).run()
    ((trials, config),) = seen
    assert trials.reward.shape == (30, 4) and bool(trials.valid.all())
    assert set(trials.reward.flatten().tolist()) <= set(torch.tensor([1.0, -0.1]).tolist())
    assert config.vae_batch == 4


def test_a_whole_iteration_is_one_of_training(monkeypatch, small):
    counts = []
    step = VariBAD.train_step

    def spied(agent, env, progress):
        figures = step(agent, env, progress)
        counts.append((env.num_envs, figures["steps"], agent.config.vae_updates))
        return figures

    monkeypatch.setattr(VariBAD, "train_step", spied)
    result = bench.varibad(CPU, whole=True).further(2)
    assert counts == [(6, 180, 3)] * 3
    shares = [result[f"{name}_share"] for name in ("simulation", "policy", "ppo", "vae")]
    assert len(result) == 6 and min(shares) > 0
    assert bench.varibad(CPU).further(2) == {}


def test_shares_are_those_of_the_stopwatches(monkeypatch, small):
    """Simulated seconds: each watched part takes as long as it says."""
    clock = [0.0]
    monkeypatch.setattr("metarl.experiments.timing.perf_counter", lambda: clock[0])
    monkeypatch.setattr(bench, "perf_counter", lambda: clock[0])

    class Agent:
        trials = type("Trials", (), {"device": CPU})

        def train_step(self, env, progress):
            env.reset()
            for _ in range(4):
                clock[0] += 0.5  # acting
                env.step()
            self.prepare()
            self.update()
            self.infer()
            return {"steps": 80}

        def _take(seconds):
            def taking(self):
                clock[0] += seconds

            return taking

        prepare, update, infer = _take(0.25), _take(0.75), _take(4.0)
        step, reset = _take(0.2), _take(0.2)

    family = type("Family", (), {"make_worlds": lambda *_, **__: Agent()})()
    result = bench.whole_iterations(Agent(), family, 6, 3)
    expected = {"whole_seconds": 8.0, "whole_rate": 10.0, "simulation_share": 0.125}
    expected |= {"policy_share": 0.25, "ppo_share": 0.125, "vae_share": 0.5}
    assert result == pytest.approx(expected)


def test_the_command_prints_seconds_ratio_and_shares(capsys, small):
    words = "bench update varibad --peer loop --whole --windows 2 --seconds 0.01 --json"
    assert main(words.split()) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    figures = json.loads(last)
    assert figures["unit"] == "updates/s" and figures["peer"] == "loop"
    assert (figures["family"], figures["beliefs"], figures["decodes"]) == ("gridnavi", 31, 30)
    ratios = [a / b for a, b in zip(figures["windows"], figures["peer_windows"], strict=True)]
    assert min(ratios) <= figures["ratio"] <= max(ratios)
    assert [line.split()[0] for line in lines[1:3]] == ["metarl", "loop"]
    assert f"sampling {figures['sampling_share']:.1%}" in lines[-2]
    for name in ("simulation", "policy", "ppo", "vae"):
        assert f"{name} {figures[f'{name}_share']:.1%}" in lines[-1]
    assert f"({figures['whole_rate']:.0f} steps/s)" in lines[-1]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--family half-cheetah-dir", "'half-cheetah-dir'"),
        ("--peer plain", "'plain'"),
        ("--meta-batch 3", "unknown option --meta-batch"),
        ("--windows 0", "--windows must be at least 1"),
        ("--threads 0", "--threads must be at least 1"),
    ],
)
def test_bad_words_get_one_sentence(words, sentence, capsys):
    assert main(["bench", "update", "varibad", *words.split()]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert sentence in line


def test_an_unknown_peer_is_refused(small):
    with pytest.raises(UsageError, match="choose from none, loop"):
        bench_update("varibad", peer="plain", windows=1, seconds=0.01)

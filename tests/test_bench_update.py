"""The bench of updates of PEARL: a peer that learns the same, an honest floor, complete figures."""

import json

import pytest
import torch
from pretend_gpu import pretend_gpu
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from metarl.agents.pearl import Pearl, PearlConfig
from metarl.envs.half_cheetah import HalfCheetahVel
from metarl.errors import UsageError
from metarl.experiments import bench_pearl
from metarl.experiments.bench_update import WORKLOADS, bench_update
from metarl.experiments.cli import main
from metarl.experiments.commands.bench import UPDATED
from metarl.experiments.plain_pearl import PlainPearl, linears
from metarl.experiments.timing import Side, Stopwatch

SPEC = HalfCheetahVel().spec()
TASKS = 5
SMALL = {
    "layers": (32, 24),
    "encoder_layers": (16, 12),
    "train_tasks": TASKS,
    "meta_batch": 4,
    "batch": 8,
    "context": 7,
}
FIELDS = ("obs", "action", "reward", "next_obs", "terminated")


def small(variant, **options):
    """An agent with small nets and some random transitions, and the config it was built from."""
    config = PearlConfig(variant=variant, **SMALL, **options)
    agent = Pearl(config, SPEC)
    g = torch.Generator().manual_seed(1)
    shape = (50, TASKS)
    obs, next_obs = torch.randn(2, *shape, SPEC.obs_dim, generator=g)
    action, reward = 2 * torch.rand(*shape, 6, generator=g) - 1, torch.randn(shape, generator=g)
    tasks, terminated = torch.arange(TASKS), torch.rand(shape, generator=g) < 0.1
    parts = {"obs": obs, "action": action, "reward": reward, "next_obs": next_obs}
    agent.replay.add(tasks, **parts, terminated=terminated)
    agent.contexts.add(tasks, x=agent.networks.transition(*parts.values()))
    return agent


def same_rows(batch):
    """Our batch in the plain one's form."""
    return {name: getattr(batch, name).flatten(0, 1) for name in FIELDS} | {"x": batch.context}


def momentum(optimizer, parameter):
    """A tenth of the gradient of Adam's first step."""
    return optimizer.state[parameter]["exp_avg"]


@pytest.mark.parametrize("variant", ["paper", "modern"])
def test_the_plain_update_has_the_same_losses_and_gradients(variant):
    """With steps of no size, so that it does not matter which network makes its step first."""
    agent = small(variant)
    plain = PlainPearl(agent)
    for optimizer in (agent.optimizer, *plain.optimizers.values()):
        optimizer.param_groups[0]["lr"] = 0.0
    batch = agent.sample()
    plain.generator.set_state(agent.generator.get_state())
    ours, theirs = agent.update(batch), plain.update(same_rows(batch))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    expected = linears(agent.networks, lambda parameter: momentum(agent.optimizer, parameter))
    assert expected.keys() == plain.nets.keys()
    for name, layers in expected.items():
        modules = [module for module in plain.nets[name] if isinstance(module, nn.Linear)]
        for module, gradients in zip(modules, layers, strict=True):
            for parameter, gradient in zip(module.parameters(), gradients, strict=True):
                found = momentum(plain.optimizers[name], parameter)
                size = float(gradient.abs().max())
                assert size > 0
                torch.testing.assert_close(found, gradient, rtol=1e-4, atol=1e-5 * size)
    if variant == "modern":
        found = momentum(plain.optimizers["temperature"], plain.log_alpha)
        expected = momentum(agent.optimizer, agent.networks.sac.log_alpha)
        assert float(expected) != 0
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("variant", ["paper", "modern"])
def test_the_plain_update_takes_the_same_steps(variant):
    """What differs is that its policy sees critics after their step, a small one here."""
    agent = small(variant, learning_rate=1e-6, tau=0.5)
    before = {name: x.clone() for name, x in agent.networks.state_dict().items()}
    plain = PlainPearl(agent)
    batch = agent.sample()
    plain.generator.set_state(agent.generator.get_state())
    agent.update(batch)
    plain.update(same_rows(batch))
    differences = []
    for name, layers in linears(agent.networks).items():
        modules = [module for module in plain.nets[name] if isinstance(module, nn.Linear)]
        for module, values in zip(modules, layers, strict=True):
            for parameter, value in zip(module.parameters(), values, strict=True):
                differences.append((parameter - value).abs().flatten())
    # Adam's first step goes by the sign of a gradient, which rounding may decide where it is tiny.
    assert (torch.cat(differences) > 2e-7).float().mean() < 0.01
    after = agent.networks.state_dict()
    assert sum(int((value != before[name]).sum()) for name, value in after.items()) > 1000
    heads = {"q1": 0, "q2": 1, "value": 0}
    for name, target in plain.targets.items():
        for k, module in enumerate(m for m in target if isinstance(m, nn.Linear)):
            value = agent.networks.sac.target.weights[k][heads[name]].T
            torch.testing.assert_close(module.weight, value, rtol=0.0, atol=2e-7)


def test_the_plain_memory_draws_each_task_from_its_own():
    agent = small("paper")
    ids = torch.arange(TASKS, dtype=torch.float32).unsqueeze(-1)
    agent.replay.storage["reward"].copy_(ids.expand_as(agent.replay.storage["reward"]))
    x = agent.contexts.storage["x"]
    x.copy_(ids.unsqueeze(-1).expand_as(x))
    rows = PlainPearl(agent).sample()
    assert rows["x"].shape == (4, 7, x.shape[-1]) and rows["obs"].shape == (4 * 8, SPEC.obs_dim)
    tasks = rows["x"][:, 0, 0]
    assert torch.equal(rows["x"], tasks.view(4, 1, 1).expand_as(rows["x"]))
    assert torch.equal(rows["reward"].view(4, 8), tasks.view(4, 1).expand(4, 8))


@pytest.mark.parametrize("variant", ["paper", "modern"])
def test_the_floor_counts_the_products_of_an_update(monkeypatch, variant):
    """All that the update really multiplies, less the gradients of inputs that need none."""
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)  # is not counted
    agent = small(variant)
    config, batch = agent.config, agent.sample()
    with FlopCounterMode(display=False) as counter:
        agent.update(batch)
    products = bench_pearl.pearl_products(config, SPEC)
    rows, inputs = config.meta_batch * config.batch, SPEC.obs_dim + config.latent + 6
    unneeded = 2 * (inputs - config.latent) + 2 * (inputs - 6)
    needed = 2 * sum(m * n * k for m, n, k in products)
    assert counter.get_total_flops() == needed + 2 * rows * config.layers[0] * unneeded


def test_the_floor_makes_every_product(monkeypatch):
    seen = []
    linear = torch.nn.functional.linear
    monkeypatch.setattr(
        bench_pearl.F,
        "linear",
        lambda a, b: seen.append((len(a), len(b), a.shape[1])) or linear(a, b),
    )
    products = ((4, 3, 2), (4, 3, 2), (5, 1, 6))
    bench_pearl.floor(products, torch.device("cpu"))()
    assert tuple(seen) == products


@pytest.mark.parametrize("peer", ["none", "plain", "floor", "onednn-floor"])
def test_figures(monkeypatch, peer):
    if peer == "onednn-floor" and not torch.backends.mkldnn.is_available():
        pytest.skip("torch was built without oneDNN")
    monkeypatch.setattr(bench_pearl, "preset", lambda *_: {"agent": SMALL})
    result = bench_update("pearl", peer=peer, windows=2, seconds=0.01, variant="modern")
    assert result["unit"] == "updates/s" and result["peer"] == peer
    assert result["variant"] == "modern"
    assert min(result["windows"]) <= result["value"] <= max(result["windows"])
    assert result["seconds"] == 1 / result["value"]
    assert result["sampling_share"] > 0 and result["gflop"] > 0
    if peer == "none":
        assert result["peer_value"] is result["ratio"] is result["peer_windows"] is None
        assert result["peer_seconds"] is None
    else:
        ratios = [a / b for a, b in zip(result["windows"], result["peer_windows"], strict=True)]
        assert 0 < min(ratios) <= result["ratio"] <= max(ratios)
        assert result["peer_seconds"] == 1 / result["peer_value"]


def test_the_command_measures_the_published_configuration(monkeypatch, capsys):
    built = []

    class Spied(Pearl):
        def __init__(self, config, *args, **options):
            built.append((config, self))
            super().__init__(config, *args, **options)

    monkeypatch.setattr(bench_pearl, "Pearl", Spied)
    assert main("bench update pearl --windows 1 --seconds 0.01 --json".split()) == 0
    out = capsys.readouterr().out
    figures = json.loads(out.splitlines()[-1])
    assert figures["value"] > 0 and figures["unit"] == "updates/s"
    assert {"peer", "peer_value", "ratio"} <= figures.keys()
    assert figures["variant"] == "paper" and 25 < figures["gflop"] < 28
    ((config, agent),) = built
    assert (config.meta_batch, config.batch, config.context, config.latent) == (16, 256, 100, 5)
    assert (config.layers, config.encoder_layers) == ((300,) * 3, (200,) * 3)
    assert agent.replay.size.tolist() == agent.contexts.size.tolist() == [2000] * 100


def test_the_command_knows_what_can_be_measured():
    assert tuple(WORKLOADS) == tuple(UPDATED)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"agent": "perl"}, "unknown agent 'perl'; choose from pearl, varibad, maml, promp"),
        ({"threads": 0}, "--threads must be at least 1, got 0"),
        ({"windows": 0}, "--windows must be at least 1, got 0"),
        ({"seconds": 61}, "--seconds must lie in"),
        ({"peer": "jax"}, "unknown peer 'jax'; choose from none, plain, floor, onednn-floor"),
        ({"peer": "onednn-floor"}, "no oneDNN here"),
    ],
)
def test_bad_settings(monkeypatch, wrong, sentence):
    monkeypatch.setattr(bench_pearl, "preset", lambda *_: {"agent": SMALL})
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    with pytest.raises(UsageError, match=sentence):
        bench_update(**{"agent": "pearl", **wrong})


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("update", "name a benchmark and what to measure"),
        ("update perl", "unknown agent 'perl', did you mean 'pearl'"),
        ("update pearl --peer jax", "'jax'"),
        ("update pearl --threads 0", "--threads must be at least 1"),
        ("update pearl --meta-batch 4", "unknown option --meta-batch"),
        ("update maml --variant modern", "unknown option --variant"),
        ("update promp --peer plain", "'plain'"),
        ("update maml --meta-batch 0", "meta_batch"),
        ("update promp --rollouts 0", "rollouts"),
    ],
)
def test_bad_words_get_one_sentence(words, sentence, capsys):
    assert main(["bench", *words.split()]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert sentence in line


SIZES = {"maml": {"meta_batch": 2, "rollouts": 2}, "promp": {"meta_batch": 2, "rollouts": 2}}


@pytest.mark.parametrize("agent", WORKLOADS)
def test_on_a_gpu_nothing_is_brought_there_for_an_update(agent):
    """On a pretended one: what an update needs is there, and figures are told at its end."""
    with pretend_gpu() as gpu:
        work = WORKLOADS[agent](torch.device("cuda"), **SIZES.get(agent, {}))
        parameters = gpu.uploads.copy()
        work.run()
        gpu.uploads.clear()
        gpu.waits.clear()
        work.run()
    assert parameters and not gpu.uploads
    assert len(gpu.waits) < 10


def test_a_gpu_is_waited_for_at_the_ends_of_windows_only(monkeypatch):
    events = []
    monkeypatch.setattr("metarl.experiments.timing.synchronize", lambda: events.append("wait"))
    side = Side(events.append, ["step"])
    side.seconds(3)
    watch = Stopwatch(side, "step")
    side.seconds(2)
    assert events == ["wait", *3 * ["step"], "wait", "wait", *2 * ["step"], "wait"]
    assert watch.seconds > 0 and events[-1] == "wait" and len(events) == 10
    watch.clear()
    assert watch.seconds == 0

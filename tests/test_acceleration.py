"""Training that is compiled, takes fewer bits or keeps one order of sums is still the training."""

import os
import shutil
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from metarl import acceleration, ppo
from metarl.acceleration import (
    Acceleration,
    deterministic_kernels,
    for_acting,
    for_learning,
    require_allowed,
)
from metarl.agents.pearl import losses as pearl_losses
from metarl.agents.task_inference import elbo
from metarl.configs import from_plain, to_plain
from metarl.errors import UsageError
from metarl.experiments.cli import main
from metarl.experiments.commands.train import parse_pair
from metarl.experiments.loading import as_seen_by, build_agent
from metarl.memory import GRUMemory
from metarl.training import TrainingConfig

SMALL = {
    "rl2": ("gridnavi", "--layers 8 --embedding 8 --hidden 8 --num-worlds 12 --minibatches 2"),
    "varibad": (
        "gridnavi",
        "--layers 8 --embedding 8 --hidden 8 --num-worlds 12 --minibatches 2 --vae-batch 4",
    ),
    "pearl": (
        "point-dense",
        "--layers 8 8 --encoder-layers 8 --train-tasks 4 --collect-tasks 2 --num-worlds 4 "
        "--initial-episodes 2 --updates 3 --batch 8 --context 10 --meta-batch 2",
    ),
    "promp": ("navigation-2d", "--layers 8 8 --meta-batch 2 --rollouts 4 --num-worlds 8"),
    "maml": (
        "navigation-2d",
        "--layers 8 8 --meta-batch 2 --rollouts 4 --num-worlds 8 --outer vpg",
    ),
}
"""An agent, a family that it learns on, and options that make it small."""


def build(name, more="", seed=1):
    family, words = SMALL[name]
    options = parse_pair(name, family, f"{words} {more}".split())
    seen = as_seen_by(name, options.family, options.agent)
    agent = build_agent(name, options.agent, seen, seed=seed, device="cpu")
    return agent, seen.make_worlds(options.training.num_worlds, device="cpu", seed=seed, threads=1)


def trained(name, force=nullcontext, steps=2):
    """The agent and its last figures after some iterations within `force()`."""
    agent, env = build(name)
    for _ in range(steps):
        with force():
            figures = agent.train_step(env, 0.0)
    return agent, figures


def parameters(agent):
    network = agent.networks if hasattr(agent, "networks") else agent.network
    return dict(network.named_parameters())


def vector(tensors):
    return torch.cat([x.detach().flatten() for x in tensors])


def in_force(compile, precision="float32"):
    return Acceleration(compile, precision).in_force


@for_learning
def product(x, y):
    return {"sum": (x @ y).sum(), "kept": [x, "word"]}


# --- what is in force ---------------------------------------------------------------------------


def test_nothing_is_compiled_or_rounded_outside_training():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        x, y = torch.randn(9, 9), torch.randn(9, 9)
    exact = (x @ y).sum()
    assert torch.equal(product(x, y)["sum"], exact)
    with in_force(False, "bfloat16")():
        assert not torch.equal(product(x, y)["sum"], exact)
    assert torch.equal(product(x, y)["sum"], exact)


@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
def test_what_torch_was_set_to_comes_back(precision):
    def settings():
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32

    torch.set_float32_matmul_precision("medium")
    try:
        before = settings()
        with pytest.raises(KeyError), in_force(False, precision)():
            assert settings() == (("high", True) if precision == "tf32" else ("highest", False))
            raise KeyError
        assert settings() == before
        assert acceleration._now is None
    finally:
        torch.set_float32_matmul_precision("highest")


def test_older_runs_say_nothing_of_it_and_are_as_they_were():
    plain = to_plain(TrainingConfig())
    assert not {"compile", "precision", "deterministic_kernels"} & plain.keys()
    assert from_plain(TrainingConfig, plain, "here") == TrainingConfig()
    other = TrainingConfig(compile=True, precision="tf32", deterministic_kernels=True)
    assert from_plain(TrainingConfig, to_plain(other), "here") == other
    with pytest.raises(UsageError, match="precision must be one of float32, tf32, bfloat16"):
        from_plain(TrainingConfig, {**plain, "precision": "float16"}, "here")


def test_a_gpu_that_knows_no_bfloat16_is_told_in_a_sentence(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    with pytest.raises(UsageError, match="allowed here: float32, tf32"):
        Acceleration(False, "bfloat16", "cuda")


@pytest.mark.parametrize(
    ("agent", "family", "words", "sentence"),
    [
        ("maml", "navigation-2d", "--compile", "compile is for outer vpg, got trpo"),
        ("maml", "navigation-2d", "--precision bfloat16", "maml: precision bfloat16 is not for"),
        ("promp", "navigation-2d", "--precision bfloat16", "promp: precision bfloat16 is not for"),
        ("pearl", "point-dense", "--compile --encoder recurrent", "not for encoder recurrent"),
        ("sb3-ppo", "point-dense", "--compile", "sb3: compile is not for"),
        ("sb3-sac", "point-dense", "--precision bfloat16", "sb3: precision bfloat16 is not for"),
    ],
)
def test_what_an_agent_cannot_is_refused_at_once(agent, family, words, sentence):
    options = parse_pair(agent, family, words.split())
    seen = as_seen_by(agent, options.family, options.agent)
    built = build_agent(agent, options.agent, seen, seed=1, device="cpu")
    asked = options.training.compile, options.training.precision
    with pytest.raises(UsageError, match=sentence):
        require_allowed(built, *asked)
    require_allowed(built, False, "tf32")


def test_the_command_line_refuses_and_leaves_no_folder(tmp_path, capsys):
    words = ["train", "maml", "navigation-2d", "--compile", "--run-dir", str(tmp_path / "run")]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert said == "metarl: maml: compile is for outer vpg, got trpo; train without it\n"
    assert not (tmp_path / "run").exists()


# --- bfloat16 -----------------------------------------------------------------------------------


def test_the_policy_that_acts_keeps_all_bits():
    """So the first returns are the same, bit for bit; what is learned from them is not."""
    with_all, with_few = (trained("rl2", force, 1) for force in (nullcontext, in_bfloat16()))
    assert with_all[1]["return_first"] == with_few[1]["return_first"]
    assert with_all[1]["return_last"] == with_few[1]["return_last"]
    assert with_all[1]["loss/total"] != with_few[1]["loss/total"]


def in_bfloat16():
    return in_force(False, "bfloat16")


@pytest.mark.parametrize("name", ["rl2", "varibad"])
def test_old_and_new_probabilities_are_computed_with_the_same_bits(monkeypatch, name):
    """PPO's ratio is 1 before the first gradient step: that of chunks is that of whole trials."""
    agent, env = build(name)
    compared = []

    def watched(network, part, known, config, weight):
        if not compared:
            chances = network.distribution(part.obs, known)
            full = chances.log_prob(part.action)
            with acceleration.mixed():
                few = network.distribution(part.obs, known).log_prob(part.action)
            compared.append((few - part.log_prob, full - part.log_prob))
        return loss(network, part, known, config, weight)

    loss = ppo.loss
    monkeypatch.setattr(ppo, "loss", watched)
    # Larger weights than those of the start, with which all actions are about as probable.
    for head in agent.network.modules():
        if hasattr(head, "logits"):
            head.logits.weight.data *= 300.0
    with in_bfloat16()():
        agent.train_step(env, 0.0)
    few, full = compared[0]
    assert full.abs().max() > 1e-3  # had the old ones been computed with all bits
    # Products of other numbers of rows may be rounded another way, here and there.
    assert few.abs().median() < 1e-6
    assert few.abs().max() < 0.2 * full.abs().max() + 1e-5


def rl2_loss(agent, env):
    """PPO's loss on the first batch, as a function of the weights alone."""
    batches = []
    agent.ppo.update = lambda batch, *args: batches.append(batch) or {}
    agent.train_step(env, 0.0)
    part, network = batches[0], agent.network

    def loss():
        known = network.remember(part.x, part.hidden[0])[0]
        weight = torch.tensor(0.1)
        return ppo.loss(network.actor_critic, part, known, agent.config, weight)["total"]

    return loss


def varibad_loss(agent, env):
    """The evidence bound of some trials, as a function of the weights alone."""
    agent.train_step(env, 0.0)
    trials, vae = agent.sample(), agent.network.vae

    def loss():
        g = torch.Generator().manual_seed(0)
        return -elbo(vae, trials, agent.config, g)["total"].mean()

    return loss


def pearl_loss(agent, env):
    """PEARL's losses on a batch, as a function of the weights alone."""
    agent.train_step(env, 0.0)
    batch = agent.sample()

    def loss():
        g = torch.Generator().manual_seed(0)
        terms = pearl_losses(agent.networks, batch, agent.config, g)
        return torch.stack(list(terms.values())).sum()

    return loss


@pytest.mark.parametrize(
    ("name", "loss_of"), [("rl2", rl2_loss), ("varibad", varibad_loss), ("pearl", pearl_loss)]
)
def test_gradients_in_bfloat16_reach_the_same_parameters_and_point_the_same_way(name, loss_of):
    agent, env = build(name)
    loss = loss_of(agent, env)
    own = [p for p in parameters(agent).values() if p.requires_grad]
    found = []
    for precision in ("float32", "bfloat16"):
        with in_force(False, precision)():
            found.append(torch.autograd.grad(loss(), own, allow_unused=True))
    for a, b in zip(*found, strict=True):
        assert (a is None) == (b is None)
        assert a is None or b.dtype == torch.float32
        assert a is None or a.norm() < 1e-6 or b.norm() > 0.0
    exact, rounded = (vector(g for g in grads if g is not None) for grads in found)
    assert not torch.equal(exact, rounded)
    assert torch.cosine_similarity(exact, rounded, dim=0) > 0.99


def test_a_memory_keeps_all_bits():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        memory = GRUMemory.of(5, 8, 8)
        x, start = torch.randn(30, 4, 5), torch.zeros(4, 8)
    exact = memory(x, start)[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(memory(x, start)[0], exact)


# --- compiled -----------------------------------------------------------------------------------


def assert_same_training(name, rtol=2e-3):
    """Compiled and eager training: the same actions, and parameters that moved the same way."""
    (ours, figures), (theirs, expected) = trained(name, in_force(True)), trained(name)
    assert figures["steps"] == expected["steps"]
    start = vector(parameters(build(name)[0]).values())
    mine, other = (vector(parameters(agent).values()) - start for agent in (ours, theirs))
    assert (mine - other).norm() < rtol * other.norm() + 1e-6
    assert other.norm() > 1e-3


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch needs a C++ compiler to compile")
def test_compiled_training_is_eager_training():
    assert_same_training("rl2")


@pytest.mark.parametrize("name", ["varibad", "pearl", "maml"])
def test_what_is_traced_of_every_agent_is_its_training(monkeypatch, name):
    """Everything of the compiler but the machine code, which takes the most of its time."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    assert_same_training(name)


def fake(monkeypatch, compiled):
    """Let `compiled(function)` be what torch makes of a function."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: compiled(function))


def test_a_wrong_result_is_found_out(monkeypatch):
    fake(monkeypatch, lambda f: lambda x, y: {**f(x, y), "sum": 1.01 * f(x, y)["sum"]})
    with (
        in_force(True)(),
        pytest.raises(UsageError, match=r"results of product are off by .*; train without --comp"),
    ):
        product(torch.eye(3), torch.eye(3))


def test_a_wrong_gradient_is_found_out(monkeypatch):
    def wrong(f):
        def function(x, y):
            right = f(x, y)
            return {**right, "sum": 1.1 * right["sum"] - 0.1 * right["sum"].detach()}

        return function

    fake(monkeypatch, wrong)
    x = torch.eye(3).requires_grad_()
    with in_force(True)(), pytest.raises(UsageError, match="compiled gradients of product are off"):
        product(x, torch.eye(3))


def test_it_is_held_against_the_eager_one_at_first_only(monkeypatch):
    calls = []

    @for_acting
    def double(x):
        calls.append("eager")
        return 2.0 * x

    fake(monkeypatch, lambda f: lambda x: calls.append("compiled") or 2.0 * x)
    with in_force(True)():
        for _ in range(3):
            assert torch.equal(double(torch.ones(2)), torch.full((2,), 2.0))
    assert "eager" in calls[:4]
    assert calls[-2:] == ["compiled", "compiled"]


def test_a_parameter_that_is_handed_on_asks_for_no_gradient_while_acting(monkeypatch):
    spread = torch.zeros(2, requires_grad=True)

    @for_acting
    def gaussian(x, spread):
        return 2.0 * x, spread

    fake(monkeypatch, lambda f: f)
    with in_force(True)(), torch.no_grad():
        assert gaussian(torch.ones(2), spread)[1] is spread


def test_in_bfloat16_it_may_be_as_far_off_as_the_eager_one(monkeypatch):
    @for_learning
    def times(x, y):
        return (x @ y).float()

    fake(monkeypatch, lambda f: f)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        x, y = torch.randn(30, 30), torch.randn(30, 30)
    with in_force(True, "bfloat16")():
        apart = times(x, y) - x @ y
    assert apart.norm() > acceleration.TOLERANCE * (x @ y).norm()


def test_what_cannot_be_compiled_is_said_in_a_sentence(monkeypatch):
    def broken(_function):
        def function(*_args):
            raise RuntimeError("no compiler found\nand a long trace")

        return function

    fake(monkeypatch, broken)
    with in_force(True)(), pytest.raises(UsageError, match=r"--compile: no compiler found$"):
        product(torch.eye(3), torch.eye(3))


def test_on_a_gpu_results_outlive_the_next_replay_of_a_graph(monkeypatch):
    """A graph writes into the same buffers every time it is replayed."""
    buffer, begun = torch.zeros(2), []

    def replayed(_function):
        def function(x):
            buffer.copy_(2.0 * x)
            return {"twice": buffer}

        return function

    fake(monkeypatch, replayed)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: begun.append(1))
    run = acceleration._Compiled(lambda x: {"twice": 2.0 * x}, torch.device("cuda"))
    kept = [run(torch.full((2,), float(k)))["twice"] for k in range(3)]
    assert [x.tolist() for x in kept] == [[0.0, 0.0], [2.0, 2.0], [4.0, 4.0]]
    assert len(begun) == 4  # one of them to compare


# --- deterministic ------------------------------------------------------------------------------


def test_deterministic_kernels_are_asked_for_and_given_back(monkeypatch):
    monkeypatch.delenv(acceleration.CUBLAS, raising=False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    with pytest.raises(KeyError), deterministic_kernels(True):
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.backends.cudnn.benchmark
        assert os.environ[acceleration.CUBLAS] == ":4096:8"
        raise KeyError
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cudnn.benchmark
    with deterministic_kernels(False):
        assert not torch.are_deterministic_algorithms_enabled()
    monkeypatch.setenv(acceleration.CUBLAS, ":0:0")
    with pytest.raises(UsageError, match="to be :4096:8 or :16:8, got ':0:0'"):
        deterministic_kernels(True).__enter__()


@pytest.mark.parametrize("name", sorted(SMALL))
def test_on_a_cpu_they_change_no_bit(monkeypatch, name):
    monkeypatch.setenv(acceleration.CUBLAS, ":16:8")
    (ours, _), (theirs, _) = trained(name, partial(deterministic_kernels, True)), trained(name)
    for n, p in parameters(ours).items():
        assert torch.equal(p, parameters(theirs)[n]), n


class Watch(TorchDispatchMode):
    """Notes operations that torch refuses on a GPU if kernels have to be deterministic.

    From the list of `torch.use_deterministic_algorithms`, without those of images.
    """

    REFUSED = ("put", "histc", "kthvalue", "nll_loss", "_ctc_loss", "_embedding_bag", "median")

    def __init__(self):
        super().__init__()
        self.seen, self.found = set(), set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__.rstrip("_")
        self.seen.add(name)
        floating = bool(args) and isinstance(args[0], torch.Tensor) and args[0].is_floating_point()
        if (
            name in self.REFUSED
            or (name in ("cumsum", "cumprod") and floating)
            or (name == "bincount" and len(args) > 1 and args[1] is not None)
            or (name == "scatter_reduce" and args[-1] not in ("sum", "mean"))
        ):
            self.found.add(name)
        return func(*args, **(kwargs or {}))


def test_the_watch_sees_what_torch_refuses():
    with Watch() as watch:
        torch.ones(3).cumsum(0)
        torch.ones(3, dtype=torch.int64).cumsum(0)
        torch.ones(3).put_(torch.zeros(1, dtype=torch.int64), torch.ones(1))
        torch.ones(3).median(0)
    assert watch.found == {"cumsum", "put", "median"}


@pytest.mark.parametrize("name", sorted(SMALL))
def test_no_agent_needs_what_has_no_deterministic_kernel(name):
    with Watch() as watch:
        trained(name, steps=1)
    assert watch.found == set()
    assert "addmm" in watch.seen or "baddbmm" in watch.seen

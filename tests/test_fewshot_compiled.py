"""The compiled meta-gradient is used only where it is right."""

import shutil

import pytest
import torch

from metarl.errors import UsageError
from metarl.fewshot.compiled import CompiledGradient, CompileWarning
from metarl.fewshot.episodes import Protocol
from metarl.fewshot.maml import MAML, MAMLConfig
from metarl.fewshot.networks import NetworkConfig
from metarl.fewshot.sinusoids import Sinusoids

PROTOCOL = Protocol(shots=3, queries=4)


def learner(**options):
    config = MAMLConfig(network=NetworkConfig(layers=(5,)), meta_batch=3, **options)
    return MAML(config, Sinusoids().spec(PROTOCOL), seed=1)


def draw(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Sinusoids().episodes(PROTOCOL, 3, "train", generator)


def with_function(function):
    """A compiled gradient whose compiler has made `function`."""
    made = learner()
    gradient = CompiledGradient(made.network, lambda e: made.adapted_loss(e, 0.0))
    gradient._function = function(gradient)
    return made, gradient


def eager(made, episodes):
    made.network.zero_grad()
    loss = made.adapted_loss(episodes, 0.0).mean()
    loss.backward()
    return loss.detach(), [p.grad.clone() for p in made.network.parameters()]


def exact(gradient):
    return torch.func.grad_and_value(gradient._pure)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch needs a C++ compiler to compile")
def test_compiled_training_is_eager_training():
    compiled, plain = learner(compile=True), learner(executor="vectorised")
    for _ in range(3):
        ours, theirs = (m.train_step(Sinusoids(), PROTOCOL, 0.0) for m in (compiled, plain))
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
    assert compiled.compiled._function is not None
    for a, b in zip(compiled.network.parameters(), plain.network.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_what_is_compiled_is_the_gradient_of_the_loss():
    made, gradient = with_function(exact)
    for seed in (0, 1):
        loss, expected = eager(made, draw(seed))
        made.network.zero_grad()
        assert gradient.backward(draw(seed)) == pytest.approx(float(loss))
        for parameter, grad in zip(made.network.parameters(), expected, strict=True):
            torch.testing.assert_close(parameter.grad, grad)


def test_a_wrong_gradient_is_found_out_and_not_used():
    def wrong(gradient):
        def function(params, *tensors):
            grads, loss = exact(gradient)(params, *tensors)
            return {n: 1.01 * g for n, g in grads.items()}, loss

        return function

    made, gradient = with_function(wrong)
    with pytest.warns(CompileWarning, match=r"differs from the eager one by 1\.0e-02"):
        gradient.backward(draw())
    for seed in (0, 1):
        _, expected = eager(made, draw(seed))
        made.network.zero_grad()
        gradient.backward(draw(seed))
        for parameter, grad in zip(made.network.parameters(), expected, strict=True):
            torch.testing.assert_close(parameter.grad, grad)


def test_what_cannot_be_compiled_is_said_in_a_sentence():
    def broken(_gradient):
        def function(*_args):
            raise RuntimeError("no compiler found\nand a long trace")

        return function

    _, gradient = with_function(broken)
    with pytest.raises(UsageError, match=r"train without compile: no compiler found$"):
        gradient.backward(draw())

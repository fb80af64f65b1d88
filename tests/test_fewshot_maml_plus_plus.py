"""MAML++: its meta-gradient by a plain loop, and each of the things it adds to MAML."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from fewshot_oracles import (
    assert_finite_differences,
    assert_same,
    classification,
    gradients,
    regression,
    shaken,
    task_loss,
)

from metarl.errors import UsageError
from metarl.fewshot.episodes import Episodes, Points, Protocol, TaskSpec
from metarl.fewshot.maml import MAML, MAMLConfig
from metarl.fewshot.maml_plus_plus import MAMLPlusPlus, MAMLPlusPlusConfig, StepBatchNorm
from metarl.fewshot.networks import NetworkConfig
from metarl.fewshot.sinusoids import Sinusoids

CURVES, IMAGES = regression(), classification()
NETWORKS = {
    "vectors": NetworkConfig(layers=(6, 5)),
    "stride batch": NetworkConfig(filters=(4, 3)),
    "max batch": NetworkConfig(filters=(4, 3), pooling="max"),
    "stride layer": NetworkConfig(filters=(4, 3), norm="layer"),
    "max none": NetworkConfig(filters=(4, 3), pooling="max", norm="none"),
}
STEPS = 3


def learner_of(network, **options):
    """The learner in float64 with shaken parameters, and tasks for it."""
    vectors = network == "vectors"
    spec = TaskSpec("regression", (2,), 2) if vectors else TaskSpec("classification", (2, 9, 9), 3)
    chosen = {"inner_rate": 0.2, "inner_steps": STEPS, "executor": "vectorised", **options}
    learner = MAMLPlusPlus(MAMLPlusPlusConfig(NETWORKS[network], **chosen), spec)
    shaken(learner.network, 0.05)
    return learner, CURVES if vectors else IMAGES


def single(network, **options):
    """A learner as it is built, in float32, and tasks of images for it."""
    config = MAMLPlusPlusConfig(NETWORKS[network], inner_steps=STEPS, **options)
    episodes = Episodes(*(Points(p.x.float(), p.y) for p in (IMAGES.support, IMAGES.query)))
    return MAMLPlusPlus(config, TaskSpec("classification", (2, 9, 9), 3)), episodes


# --- the meta-gradient -------------------------------------------------------------------------


def plain_forward(p, config, x, step):
    """Predictions for `x` `[M, X...]` of one task, from tensors by name alone."""
    for i in range(len(config.layers if x.dim() == 2 else config.filters)):
        weight, bias = p[f"body.blocks.{i}.layer.weight"], p[f"body.blocks.{i}.layer.bias"]
        if weight.dim() == 2:
            x = F.relu(F.linear(x, weight, bias))
            continue
        x = F.conv2d(x, weight, bias, 2 if config.pooling == "stride" else 1, 1)
        if config.norm != "none":
            scale, shift = p[f"body.blocks.{i}.norm.weight"], p[f"body.blocks.{i}.norm.bias"]
            if config.norm == "batch":
                x = F.batch_norm(x, None, None, scale[step], shift[step], training=True)
            else:
                x = F.group_norm(x, 1, scale, shift)
        x = F.relu(x)
        if config.pooling == "max":
            x = F.max_pool2d(x, 2)
    return F.linear(x.flatten(1), p["head.weight"], p["head.bias"])


def plain_losses(leaves, config, episodes, weights, second_order):
    """Σ_k w_k L(θ_k; query) of each task, with the loop written out."""
    names = [n for n in leaves if not n.startswith("rates.")]
    moving = [n for n in names if not (config.network.norm == "batch" and ".norm." in n)]
    out = []
    for b in range(len(episodes)):
        s, q = episodes.support, episodes.query
        params, total = {n: leaves[n] for n in names}, 0.0
        for k in range(config.inner_steps):
            support = task_loss(plain_forward(params, config.network, s.x[b], k), s.y[b])
            now = [params[n] for n in moving]
            grads = torch.autograd.grad(support, now, create_graph=second_order)
            for i, (n, g) in enumerate(zip(moving, grads, strict=True)):
                params[n] = params[n] - leaves[f"rates.{i}"][k] * g
            query = task_loss(plain_forward(params, config.network, q.x[b], k + 1), q.y[b])
            total = total + weights[k] * query
        out.append(total)
    return torch.stack(out)


STAGES = {
    # progress, options, the weights of the steps, whether second derivatives count
    "multi-step, first order": (0.05, {}, [1 / 6, 1 / 6, 4 / 6], False),
    "last step, first order": (0.2, {}, [0.0, 0.0, 1.0], False),
    "last step, second order": (0.3, {}, [0.0, 0.0, 1.0], True),
    "multi-step, second order": (
        0.5,
        {"multi_step_until": 1.0, "first_order_until": 0.0},
        [1 / 6, 1 / 6, 4 / 6],
        True,
    ),
    "never second order": (0.9, {"second_order": False}, [0.0, 0.0, 1.0], False),
}


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("stage", STAGES)
def test_the_meta_gradient_is_that_of_the_loop(stage, network):
    progress, options, weights, second_order = STAGES[stage]
    learner, episodes = learner_of(network, **options)
    named = dict(learner.network.named_parameters())
    leaves = {n: p.detach().clone().requires_grad_() for n, p in named.items()}
    theirs = plain_losses(leaves, learner.config, episodes, weights, second_order)
    expected = gradients(theirs.mean(), leaves.values())
    for learner.executor in ("vectorised", "loop"):
        ours = learner.loss(episodes, progress)
        assert_same([ours], [theirs])
        assert_same(gradients(ours.mean(), named.values()), expected)


@pytest.mark.parametrize("network", NETWORKS)
def test_the_meta_gradient_is_that_of_finite_differences(network):
    learner, episodes = learner_of(network, multi_step_until=1.0, first_order_until=0.0)
    parameters = list(learner.network.parameters())
    found = gradients(learner.loss(episodes, 0.4).mean(), parameters)
    assert_finite_differences(lambda: learner.loss(episodes, 0.4).mean(), parameters, found)


def test_first_and_second_order_differ():
    learner, episodes = learner_of("stride batch", multi_step_until=0.0)
    parameters = list(learner.network.parameters())
    first, second = (
        torch.cat([g.flatten() for g in gradients(learner.loss(episodes, at).mean(), parameters)])
        for at in (0.29, 0.31)
    )
    assert (first - second).norm() > 1e-2 * first.norm()


# --- what it adds ------------------------------------------------------------------------------


def test_with_nothing_annealed_and_equal_rates_it_is_maml():
    for network in ("vectors", "stride batch"):
        episodes = CURVES if network == "vectors" else IMAGES
        learner, _ = learner_of(network, multi_step_until=0.0, first_order_until=0.0)
        fresh = MAMLPlusPlus(learner.config, learner.spec)
        maml = MAML(MAMLConfig(NETWORKS[network], inner_rate=0.2, inner_steps=1), learner.spec)
        fresh.network.double(), maml.network.double()
        # After one step, for MAML also steps along the scale and shift of batch norm.
        steps = 1 if network == "vectors" else 0
        ours, theirs = (x.predict(episodes, steps).value for x in (fresh, maml))
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8)


def test_the_weights_of_the_steps_shift_to_the_last():
    learner, _ = learner_of("vectors", multi_step_until=0.4)
    third = 1.0 / 3.0
    for progress, early in ((0.0, third), (0.1, 0.75 * third), (0.3, 0.25 * third), (0.4, 0.0)):
        weights = learner.step_weights(progress)
        assert weights == pytest.approx([0.0, early, early, 1.0 - 2.0 * early])
    assert learner.step_weights(1.0) == [0.0, 0.0, 0.0, 1.0]


def test_the_step_size_falls_along_a_cosine():
    learner, episodes = learner_of("vectors", learning_rate=1e-2, final_learning_rate=1e-4)
    for progress in (0.0, 0.25, 0.5, 1.0):
        learner.update(episodes, progress)
        wanted = 1e-4 + 0.5 * (1e-2 - 1e-4) * (1.0 + math.cos(math.pi * progress))
        assert learner.optimizer.param_groups[0]["lr"] == pytest.approx(wanted)


def test_each_tensor_and_step_has_a_rate_and_the_last_one_repeats():
    learner, episodes = learner_of("stride batch")
    net = learner.network
    assert len(net.rates) == len(learner.start()) == 6  # two convolutions and the head
    assert all(r.shape == (STEPS,) for r in net.rates)
    with torch.no_grad():
        for rates in net.rates:
            rates[-1] = 0.0  # what would come after does not move
    predicted = {k: learner.predict(episodes, k).value for k in (1, STEPS - 1, STEPS, 9)}
    assert not torch.allclose(predicted[1], predicted[STEPS - 1])
    # The norm of the last step still differs from that of the step before.
    torch.testing.assert_close(predicted[STEPS], predicted[9])


def test_the_rates_of_a_layer_are_its_own():
    learner, episodes = single("max none")  # with batch norm no bias before it would matter
    rates = list(learner.network.rates)
    assert len({r.data_ptr() for r in rates}) == len(rates)
    for k in range(3):
        learner.update(episodes, k / 3)
    for i, one in enumerate(rates):
        assert not any(torch.equal(one, other) for other in rates[:i])


def test_each_step_has_norms_of_its_own():
    norm = StepBatchNorm(2, steps=2, running=True).double()
    generator = torch.Generator().manual_seed(0)
    x = [torch.randn(3, 4, 2, 5, 5, dtype=torch.float64, generator=generator) + k for k in range(3)]
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]))
        for norm.step in (0, 1, 2):
            y = norm(x[norm.step])
            torch.testing.assert_close(
                y.std((1, 3, 4), correction=0).mean(0), norm.weight[norm.step], rtol=1e-3, atol=0.0
            )
    share = 1.0 - 0.9**3  # three tasks count as three batches
    for k in range(3):
        means, variances = x[k].mean((1, 3, 4)), x[k].var((1, 3, 4), correction=0)
        torch.testing.assert_close(norm.mean[k], share * means.mean(0))
        torch.testing.assert_close(norm.var[k], 1.0 - share + share * variances.mean(0))
    norm.eval()
    before = norm.mean.clone()
    norm.step = 5  # beyond the last: the last
    wanted = F.batch_norm(x[0][0], norm.mean[2], norm.var[2], norm.weight[2], norm.bias[2])
    torch.testing.assert_close(norm(x[0])[0], wanted)
    assert torch.equal(norm.mean, before)


@pytest.mark.parametrize("statistics", ["batch", "running"])
def test_query_points_depend_on_each_other_only_by_batch_statistics(statistics):
    learner, episodes = learner_of("stride batch", statistics=statistics)
    learner.loss(episodes, 0.5)
    support, query = episodes.support, episodes.query
    whole = learner.predict(episodes).value
    part = learner.predict(Episodes(support, query.split(2)[0])).value
    apart = float((whole[:, :2] - part).abs().max())
    assert apart < 1e-12 if statistics == "running" else apart > 1e-3


@pytest.mark.parametrize("statistics", ["batch", "running"])
def test_tasks_do_not_touch_one_another(statistics):
    learner, episodes = learner_of("max batch", statistics=statistics)
    together = learner.predict(episodes).value
    alone = torch.cat([learner.predict(e).value for e in episodes.chunks(1)])
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-11)
    assert not together.requires_grad


def test_predicting_changes_nothing():
    learner, episodes = learner_of("stride batch")
    before = copy.deepcopy(learner.state_dict())
    learner.predict(episodes)
    after = learner.state_dict()
    assert all(torch.equal(before["network"][n], v) for n, v in after["network"].items())
    assert torch.equal(before["generator"], after["generator"])


# --- training ----------------------------------------------------------------------------------


def test_training_goes_on_exactly():
    spec = TaskSpec("classification", (2, 9, 9), 3)
    config = MAMLPlusPlusConfig(NETWORKS["stride batch"], inner_steps=2, executor="loop")
    episodes = Episodes(*(Points(p.x.float(), p.y) for p in (IMAGES.support, IMAGES.query)))
    one, other = (MAMLPlusPlus(config, spec, seed=seed) for seed in (0, 1))
    for k in range(3):
        one.update(episodes, k / 6)
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    logs = [[x.update(episodes, k / 6) for k in range(3, 6)] for x in (one, other)]
    assert logs[0] == logs[1]
    theirs = other.network.state_dict()
    assert all(torch.equal(v, theirs[n]) for n, v in one.network.state_dict().items())
    assert float(one.network.body.blocks[0].norm.mean.abs().sum()) > 0.0


def test_measuring_the_executor_changes_no_statistics():
    auto, episodes = single("stride batch")
    log = auto.update(episodes, 0.0)
    plain, _ = single("stride batch", executor=auto.executor)
    assert log == plain.update(episodes, 0.0)
    theirs = plain.network.state_dict()
    assert all(torch.equal(v, theirs[n]) for n, v in auto.network.state_dict().items())


def test_it_learns_to_adapt():
    data, protocol = Sinusoids(), Protocol(shots=10, queries=10)
    config = MAMLPlusPlusConfig(
        meta_batch=10, inner_rate=0.01, learning_rate=3e-3, inner_steps=3, executor="vectorised"
    )
    learner = MAMLPlusPlus(config, data.spec(protocol))
    held_out = data.episodes(protocol, 200, "held-out", torch.Generator().manual_seed(0))

    def error():
        value = learner.predict(held_out).value
        return float((value - held_out.query.y).square().mean())

    before, rates = error(), [r.detach().clone() for r in learner.network.rates]
    for k in range(150):
        learner.train_step(data, protocol, k / 150)
    assert error() < 0.8 * before
    assert all((r != old).all() for r, old in zip(learner.network.rates, rates, strict=True))


def test_nonsense_is_refused():
    for wrong in ({"multi_step_until": 1.5}, {"first_order_until": -0.1}, {"inner_steps": 0}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            MAMLPlusPlusConfig(**wrong)
    with pytest.raises(UsageError, match="cannot be compiled"):
        MAMLPlusPlusConfig(compile=True)

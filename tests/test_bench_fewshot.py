"""The benchmark of few-shot learning compares like with like."""

import json
from dataclasses import replace

import pytest
import torch

from metarl.errors import UsageError
from metarl.experiments.bench_fewshot import bench_fewshot
from metarl.experiments.cli import main
from metarl.experiments.plain_maml import PlainMAML
from metarl.fewshot.characters import Characters
from metarl.fewshot.episodes import Protocol
from metarl.fewshot.maml import MAML, MAMLConfig
from metarl.fewshot.networks import NetworkConfig
from metarl.fewshot.sinusoids import Sinusoids

CHARACTERS = Characters(train_classes=10, held_out_classes=5, drawers=6, size=28, rotations=False)
SMALL = NetworkConfig(layers=(8, 8), filters=(4, 4))


@pytest.mark.parametrize("data", [Sinusoids(), CHARACTERS], ids=lambda data: data.name)
@pytest.mark.parametrize("inner_steps", [1, 3])
@pytest.mark.parametrize("second_order", [True, False])
def test_the_loop_learns_what_maml_learns(data, inner_steps, second_order):
    config = MAMLConfig(
        network=SMALL,
        inner_rate=0.1,
        inner_steps=inner_steps,
        second_order=second_order,
        executor="vectorised",
        meta_batch=3,
    )
    protocol = Protocol(ways=3, shots=2, queries=2)
    learner = MAML(config, data.spec(protocol))
    learner.network.double()
    peer = PlainMAML(learner)
    episodes = data.episodes(protocol, 3, "train", torch.Generator()).to(dtype=torch.float64)
    learner.backward(episodes, 0.0)
    peer.loss(episodes).backward()
    ours, theirs = (list(n.parameters()) for n in (learner.network, peer.network))
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-10, atol=1e-12)
        assert a.grad.abs().sum() > 0 or a.dim() == 1  # a bias before a batch norm has no effect


def test_the_loop_has_the_published_networks_only():
    config = MAMLConfig(network=replace(SMALL, norm="layer"))
    spec = CHARACTERS.spec(Protocol(3, 1, 1))
    with pytest.raises(UsageError, match="strided convolutions with batch norm only"):
        PlainMAML(MAML(config, spec))


def test_both_sides_are_timed_in_turn():
    result = bench_fewshot(Sinusoids(), peer="loop", windows=2, seconds=0.02)
    assert result["unit"] == "iterations/s"
    assert len(result["windows"]) == len(result["peer_windows"]) == 2
    assert result["meta_batch"] == 25
    assert result["shots"] == 10
    assert result["executor"] in {"vectorised", "loop"}
    assert min(result["value"], result["peer_value"], result["ratio"]) > 0.0


def test_alone_there_is_no_ratio():
    result = bench_fewshot(CHARACTERS, executor="loop", windows=1, seconds=0.01)
    assert result["executor"] == "loop"
    assert result["ratio"] is None
    assert result["peer_value"] is None
    assert (result["shots"], result["meta_batch"]) == (1, 16)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"windows": 0}, "--windows must be at least 1"),
        ({"seconds": 0.0}, "--seconds must lie in"),
        ({"threads": 0}, "--threads must be at least 1"),
        ({"inner_steps": 0}, "inner_steps must be"),
    ],
)
def test_what_cannot_be_measured_is_refused(options, sentence):
    with pytest.raises(UsageError, match=sentence):
        bench_fewshot(Sinusoids(), **options)


def test_the_command_ends_with_one_json_object(capsys):
    words = "bench fewshot sinusoid --peer loop --windows 1 --seconds 0.01 --executor loop --json"
    assert main(words.split()) == 0
    shown = capsys.readouterr().out.splitlines()
    figures = json.loads(shown[-1])
    assert {"value", "unit", "peer", "peer_value", "ratio"} <= figures.keys()
    assert figures["executor"] == "loop"
    assert shown[-2].startswith("ratio ")

"""The throughput bench: fair comparisons, complete figures, plain refusals."""

import sys

import pytest
import torch
from mujoco.batch import Batch

from metarl.envs.gridnavi import GridNavi
from metarl.envs.half_cheetah import HalfCheetahDir, HalfCheetahVel
from metarl.errors import UsageError
from metarl.experiments import bench_peers, bench_worlds
from metarl.experiments.bench import bench_rollout
from metarl.experiments.timing import Side

QUICK = {"num_worlds": 3, "windows": 2, "seconds": 0.01}


def check(result, peer):
    assert result["unit"] == "steps/s" and result["peer"] == peer
    assert result["num_worlds"] == 3 and len(result["windows"]) == 2
    assert min(result["windows"]) <= result["value"] <= max(result["windows"])
    if peer == "none":
        assert result["peer_value"] is result["ratio"] is result["peer_windows"] is None
    else:
        ratios = [a / b for a, b in zip(result["windows"], result["peer_windows"], strict=True)]
        assert min(ratios) <= result["ratio"] <= max(ratios)
        assert min(ratios) > 0 and result["peer_value"] > 0


@pytest.mark.parametrize("peer", ["none", "bare", "shared-model"])
def test_figures_of_our_own_peers(peer):
    result = bench_rollout(HalfCheetahVel(), peer=peer, **QUICK)
    check(result, peer)
    assert result["family"] == "half-cheetah-vel"
    assert result["randomized"] == (peer == "shared-model")


def test_figures_against_gymnasium():
    result = bench_rollout(HalfCheetahDir(), peer="gymnasium", **QUICK)
    check(result, "gymnasium")
    assert result["peer_mode"] in ("gymnasium sync", "gymnasium async")


def test_gridworlds_have_no_peer():
    check(bench_rollout(GridNavi(), **QUICK), "none")
    for peer in ("gymnasium", "envpool", "bare", "shared-model"):
        with pytest.raises(UsageError, match="gridnavi"):
            bench_rollout(GridNavi(), peer=peer, **QUICK)
    with pytest.raises(UsageError, match="--randomize needs physics"):
        bench_rollout(GridNavi(), randomize=True, **QUICK)


@pytest.mark.parametrize("randomize", [False, True])
@pytest.mark.parametrize("preset", ["pearl", "promp"])
def test_bare_peer_simulates_the_same_as_we_do(monkeypatch, randomize, preset):
    """From the same states, under the same commands, the two sides end in the same states."""
    family = HalfCheetahVel(preset=preset)
    env = bench_worlds.started(family, 3, 1, torch.device("cpu"))
    if randomize:
        env.physics.randomise(bench_worlds.random_fields(env))
    ours = Side(env.step, bench_worlds.random_actions(family, 3, torch.device("cpu")))
    ours.seconds(7)
    batches = []
    keep = lambda *args: batches.append(Batch(*args)) or batches[0]  # noqa: E731
    monkeypatch.setattr(bench_peers, "Batch", keep)
    bare = bench_peers._bare(ours, env, threads=2)
    ours.begin()
    start = env.physics.state_dict()["rows"]
    ours.seconds(40)
    bare.begin()
    bare.seconds(40)
    end = env.physics.state_dict()["rows"]
    assert not torch.equal(start, end)
    assert torch.equal(torch.from_numpy(batches[0].state), end)


def test_randomised_worlds_differ_from_each_other():
    env = bench_worlds.started(HalfCheetahVel(), 4, 1, torch.device("cpu"))
    fields = bench_worlds.random_fields(env)
    assert set(fields) == set(bench_worlds.RANDOMISED_FIELDS)
    model = env.physics.model.compiled
    for name, values in fields.items():
        assert len({tuple(row.flatten().tolist()) for row in values}) == 4
        nominal = torch.from_numpy(getattr(model, name))
        moving = nominal.expand_as(values) != 0
        scale = (values / nominal)[moving]
        assert scale.min() >= 1 / 1.2 and scale.max() <= 1.2


def test_actions_fill_the_action_space():
    actions = torch.stack(bench_worlds.random_actions(HalfCheetahVel(preset="promp"), 50, "cpu"))
    assert actions.shape == (bench_worlds.ACTION_BATCHES, 50, 6)
    assert actions.abs().max() <= 10 and actions.abs().mean() == pytest.approx(5, abs=0.2)
    choices = torch.stack(bench_worlds.random_actions(GridNavi(), 50, "cpu"))
    assert choices.unique().tolist() == [0, 1, 2, 3, 4]


def test_torch_threads_come_back():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        bench_rollout(GridNavi(), **QUICK)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_missing_envpool_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "envpool", None)
    with pytest.raises(UsageError, match=r"pip install 'metarl\[bench\]'"):
        bench_rollout(HalfCheetahVel(), peer="envpool", **QUICK)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"num_worlds": 0}, "--num-worlds must be at least 1, got 0"),
        ({"threads": -1}, "--threads must be at least 1, got -1"),
        ({"windows": 0}, "--windows must be at least 1"),
        ({"seconds": float("nan")}, "--seconds must lie in"),
        ({"peer": "isaac"}, "unknown peer 'isaac'; choose from none, cpu, bare, gymnasium"),
    ],
)
def test_bad_settings(wrong, sentence):
    with pytest.raises(UsageError, match=sentence):
        bench_rollout(HalfCheetahVel(), **{**QUICK, **wrong})

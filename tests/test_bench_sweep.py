"""Sweeps over numbers of worlds, what acts in them, and the same on the CPU beside them."""

import json

import pytest
import torch
from pretend_gpu import pretend_gpu

from metarl.agents.rl2 import RL2Policy
from metarl.devices import OutOfMemory
from metarl.envs.gridnavi import GridNavi
from metarl.envs.physics import CpuPhysics
from metarl.envs.registry import make_family
from metarl.errors import UsageError
from metarl.experiments import bench
from metarl.experiments.bench import bench_rollout
from metarl.experiments.bench_worlds import Player, Setting, acting
from metarl.experiments.cli import main

CPU = torch.device("cpu")
QUICK = {"windows": 2, "seconds": 0.002}
FULL = {
    4: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    5: RuntimeError("Failed to allocate 3000000000 bytes on device 'cuda:0'"),
    6: OutOfMemory("6 worlds take 7.00 GB, and cuda has 1.00 GB free"),
    7: MemoryError("Unable to allocate"),
}


@pytest.fixture
def small(monkeypatch):
    """A memory in which 4 to 7 worlds do not fit."""
    worlds = Setting.worlds

    def made(setting, num_worlds):
        if num_worlds in FULL:
            raise FULL[num_worlds]
        return worlds(setting, num_worlds)

    monkeypatch.setattr(Setting, "worlds", made)


def test_one_number_of_worlds_is_a_sweep_of_one_row():
    result = bench_rollout(GridNavi(), 3, **QUICK)
    (row,) = result["rows"]
    assert row["num_worlds"] == 3 and row["full"] is None
    assert all(result[name] == value for name, value in row.items() if name != "full")


def test_the_best_number_of_worlds_is_found():
    result = bench_rollout(GridNavi(), (2, 400, 3), peer="cpu", **QUICK)
    rows = result["rows"]
    assert [row["num_worlds"] for row in rows] == [2, 400, 3]
    assert result["num_worlds"] == 400  # of so few, more are always faster
    assert result["value"] == max(row["value"] for row in rows)
    assert [row["peer_worlds"] for row in rows] == [2, 400, 3]


def test_what_does_not_fit_is_said_and_the_sweep_goes_on(small):
    result = bench_rollout(GridNavi(), (4, 2, 5, 6, 7, 3), **QUICK)
    rows = {row["num_worlds"]: row for row in result["rows"]}
    assert list(rows) == [4, 2, 5, 6, 7, 3]
    assert all((row["value"] is None) == (n in FULL) for n, row in rows.items())
    assert rows[4].keys() == rows[2].keys()
    assert "2.15 GB" in rows[4]["full"] and rows[6]["full"] == str(FULL[6])
    assert result["num_worlds"] in (2, 3)


def test_if_nothing_fits_there_is_one_sentence(small, capsys):
    with pytest.raises(OutOfMemory, match="--num-worlds 4: the memory is full"):
        bench_rollout(GridNavi(), (4, 5), **QUICK)
    assert main("bench rollout gridnavi --num-worlds 6".split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(FULL[6]) in line


def test_other_errors_are_not_taken_for_a_full_memory(monkeypatch):
    def broken(*_):
        raise RuntimeError("illegal instruction")

    monkeypatch.setattr(Setting, "worlds", broken)
    with pytest.raises(RuntimeError, match="illegal instruction"):
        bench_rollout(GridNavi(), (2, 3), **QUICK)


def test_the_peer_on_the_cpu_has_the_physics_of_mujoco(monkeypatch):
    monkeypatch.setattr(bench, "MOST_ON_CPU", 2)
    made, worlds = [], Setting.worlds

    def spied(setting, num_worlds):
        made.append(worlds(setting, num_worlds))
        return made[-1]

    monkeypatch.setattr(Setting, "worlds", spied)
    family = make_family("half-cheetah-vel", backend="warp")
    result = bench_rollout(family, 3, peer="cpu", randomize=True, **QUICK)
    ours, theirs = made
    assert (ours.num_envs, theirs.num_envs) == (3, 2) and result["peer_worlds"] == 2
    assert not isinstance(ours.physics, CpuPhysics) and isinstance(theirs.physics, CpuPhysics)
    assert any(name.startswith("model.") for name in theirs.physics.state_dict())
    with pytest.raises(UsageError, match="simulated by MuJoCo Warp; choose --peer cpu"):
        bench_rollout(family, 3, peer="bare", **QUICK)


@pytest.mark.parametrize("policy", ["mlp", "gru"])
def test_a_policy_acts_on_what_it_sees(monkeypatch, policy):
    seen, act = [], RL2Policy.act

    def spied(self, obs):
        seen.append(obs.clone())
        return act(self, obs)

    monkeypatch.setattr(RL2Policy, "act", spied)
    setting = Setting(make_family("half-cheetah-vel"), 1, CPU, policy=policy)
    runs = []
    for _ in range(2):
        env = setting.worlds(3)
        setting.side(env).seconds(4)
        runs.append(torch.stack(seen[-4:]))
    assert torch.equal(*runs) and not torch.equal(runs[0][2], runs[0][3])
    widths = {p.shape for p in acting(policy, env).network.parameters()}
    assert ((256, 256) if policy == "mlp" else (384, 128)) in widths


def test_a_policy_learns_that_episodes_end():
    env = Setting(GridNavi(horizon=2), 1, CPU).worlds(3)
    player = Player(env, acting("gru", env))
    for end in (0.0, 1.0, 0.0):
        player.step()
        assert player.policy.feedback[:, -1].tolist() == [end] * 3


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"policy": "gru", "peer": "bare"}, "--peer bare is given random actions"),
        ({"policy": "cnn"}, "unknown policy 'cnn'; choose from none, mlp, gru"),
        ({"num_worlds": ()}, "--num-worlds needs at least one number"),
        ({"num_worlds": (3, 0)}, "--num-worlds must be at least 1, got 0"),
    ],
)
def test_bad_settings(wrong, sentence):
    with pytest.raises(UsageError, match=sentence):
        bench_rollout(GridNavi(), **{**QUICK, **wrong})


def test_a_gpu_is_never_waited_for_within_a_window(monkeypatch, capsys):
    """On a pretended one, which also says how much memory is in use."""
    free = iter([9 * 10**9, 8 * 10**9, 7 * 10**9, 5 * 10**9] + 9 * [5 * 10**9])
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (next(free), 10**10))
    seconds = bench.Side.seconds

    def strict(side, steps):
        with gpu.no_waiting():
            return seconds(side, steps)

    monkeypatch.setattr(bench.Side, "seconds", strict)
    monkeypatch.setattr("metarl.experiments.loading.find_device", torch.device)
    words = "bench rollout gridnavi --num-worlds 4 8 --policy gru --windows 1 --seconds 0.001"
    with pretend_gpu() as gpu:
        assert main([*words.split(), "--device", "cuda", "--peer", "cpu", "--json"]) == 0
    header, *rows, best, last = capsys.readouterr().out.splitlines()
    assert header.split() == "worlds steps/s cpu ratio GB in use kB a world".split()
    assert [row.split()[-2:] for row in rows] == [["2.00", "250000.00"], ["5.00", "250000.00"]]
    result = json.loads(last)
    assert result["device"] == "cuda" and f"with {result['num_worlds']} worlds" in best


def test_the_table_shows_what_did_not_fit(small, capsys):
    words = "bench rollout gridnavi --num-worlds 2 4 5 --windows 1 --seconds 0.001 --peer cpu"
    assert main(words.split()) == 0
    _, two, four, five, *notes = capsys.readouterr().out.splitlines()
    assert two.split()[0] == "2" and "-" not in two
    assert four.split() == ["4", "-", "-", "-"] and five.split() == ["5", "-", "-", "-"]
    assert notes[0].startswith("4 worlds do not fit: the memory is full, where 2.15 GB more")
    assert notes[-1].startswith("most with 2 worlds: ")

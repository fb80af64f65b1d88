"""The account of a step: parts that add up, bytes and launches as counted by hand, bounds."""

import json
from types import SimpleNamespace

import pytest
import torch
import warp
from torch import nn

from metarl.envs.registry import make_family
from metarl.experiments import bench_account
from metarl.experiments.bench_account import account_of
from metarl.experiments.bench_traffic import Parts, Traffic
from metarl.experiments.bench_worlds import Setting
from metarl.experiments.cli import main

CPU = torch.device("cpu")
BASE = ["observation", "flags, checks"]
ROBOT = ["physics", "around physics", "command, reward", *BASE]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """What the device can do is measured carelessly."""
    monkeypatch.setattr(bench_account, "_PROBE_SECONDS", 1e-4)
    monkeypatch.setattr(bench_account, "_COPIED", {"cpu": 2**12})
    monkeypatch.setattr(bench_account, "_SQUARE", {"cpu": 16})


def watched(**methods):
    """An object with these methods, each a part of its own name."""
    owner, parts = SimpleNamespace(**methods), Parts()
    for name in methods:
        parts.watch(owner, name, name)
    return owner, parts


def test_a_part_within_another_stands_for_itself(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("metarl.experiments.timing.perf_counter", lambda: clock[0])

    def wait(seconds):
        clock[0] += seconds

    def outer():
        wait(1.0)
        owner.inner()
        wait(2.0)
        owner.inner()

    owner, parts = watched(outer=outer, inner=lambda: wait(0.25))
    owner.outer()
    wait(10.0)  # no part at all
    owner.inner()
    assert parts.seconds() == {"outer": 3.0, "inner": 0.75}
    parts.clear()
    assert parts.seconds() == {}


def test_a_part_may_count_within_another_one_only():
    def step():
        called.append(list(parts.stack))
        owner.launch()

    called, owner = [], SimpleNamespace(launch=lambda: called.append(list(parts.stack)))
    parts, owner.step, owner.reset = Parts(), step, owner.launch
    parts.watch(owner, "launch", "physics", within="step")
    parts.watch(owner, "step", "step")
    owner.step()
    with parts.part("reset"):
        owner.launch()
    assert called == [["step"], ["step", "physics"], ["reset"]]


def test_bytes_are_those_that_a_part_cannot_avoid():
    a, b, c = torch.ones(10, 3), torch.ones(10, 3, dtype=torch.float64), torch.ones(3)

    def inner(x):
        return (x + 1.0).exp()  # 120 in, 120 out, though the sum is moved, too

    def outer():
        kept = (a * 2.0 + a).view(30)  # reads 120, makes 120 that are never let go
        kept.add_(1.0)
        b.zero_()  # 240
        c.add_(kept.sum())  # 12 and 12
        return owner.inner(a)

    owner, parts = watched(outer=outer, inner=inner)
    with Traffic(parts) as traffic:
        result = owner.outer()
        a.mul(3.0)  # in no part
    assert torch.equal(result, a.add(1.0).exp())
    assert traffic.bytes == {"inner": 240, "outer": 120 + 240 + 24}
    assert traffic.launches == {"inner": 2, "outer": 6}
    with Traffic(parts) as traffic:
        owner.inner(c.expand(10, 3))  # three numbers in, however often they are used
    assert traffic.bytes == {"inner": 12 + 120}
    owner.outer()
    assert traffic.launches == {"inner": 2}


@pytest.mark.parametrize("policy", ["none", "mlp", "gru"])
def test_the_account_of_a_robot(policy):
    setting = Setting(make_family("half-cheetah-vel"), 1, CPU, policy=policy)
    account = account_of(setting, 5, windows=2, seconds=0.01)
    parts = {part["part"]: part for part in account["parts"]}
    assert [name for name in parts if name != "reset"] == ROBOT + ["policy"] * (policy != "none")
    assert sum(part["share"] for part in account["parts"]) == pytest.approx(1.0)
    assert sum(part["seconds"] for part in account["parts"]) == pytest.approx(account["seconds"])
    for part in account["parts"]:
        assert part["reached"] * part["seconds"] == pytest.approx(part["bound"])
    assert parts["physics"]["bytes"] == 2 * 5 * 91 * 8  # states of 91 numbers, in and out
    # Positions but the first, velocities; and 17 numbers that are shown.
    assert parts["observation"]["bytes"] == pytest.approx(5 * (18 * 8 + 17 * 8 + 17 * 4), rel=0.5)
    if policy != "none":
        inputs, width = 17 + 8, 128
        memory = inputs * width + 6 * width * width + (17 + width) * 64 + 64 * 64 + 64 * 6
        plain = 17 * 256 + 256 * 256 + 256 * 6
        assert parts["policy"]["flops"] == 2 * 5 * (memory if policy == "gru" else plain)


def test_models_of_their_own_have_to_be_read():
    setting = Setting(make_family("hopper-vel"), 1, CPU)
    shared, own = (
        account_of(s, 3, windows=1, seconds=0.01)["parts"][0]["bytes"]
        for s in (setting, Setting(setting.family, 1, CPU, randomize=True))
    )
    compiled = setting.family.model().compiled
    numbers = 4 * compiled.nbody + compiled.nv + 3 * compiled.ngeom
    assert own - shared == 3 * 8 * numbers


def test_kernels_of_warp_are_counted_and_the_simulation_goes_on():
    def nothing():
        pass

    kernel = warp.kernel(nothing)
    with bench_account._counted(warp) as launched:
        for _ in range(3):
            warp.launch(kernel, dim=1, device="cpu")
    warp.launch(kernel, dim=1, device="cpu")
    assert len(launched) == 3
    family = make_family("half-cheetah-vel", backend="warp")
    account = account_of(Setting(family, 1, CPU), 2, windows=1, seconds=0.01)
    physics = account["parts"][0]
    assert physics["part"] == "physics" and physics["launches"] > 5 * 20
    assert physics["bytes"] == 2 * 2 * 91 * 4
    assert account["device"]["kernel_seconds"] < account["device"]["launch_seconds"]


def test_worlds_without_physics_have_an_account(capsys):
    words = "bench rollout gridnavi --num-worlds 4 6 --windows 1 --seconds 0.01 --account --json"
    assert main(words.split()) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    result = json.loads(last)
    account = result["account"]
    assert account["num_worlds"] == result["num_worlds"]
    names = [part["part"] for part in account["parts"]]
    assert [name for name in names if name != "reset"] == ["moves, reward", *BASE]
    table = lines[lines.index("") + 2 :]
    assert table[0].split()[:3] == ["part", "us", "share"]
    assert [line[: len(name)] for line, name in zip(table[1:], names, strict=False)] == names
    assert max(map(len, lines)) <= 80


def test_a_network_without_a_memory_counts_no_critic():
    linear = nn.Linear(3, 2)

    class Policy:
        def __init__(self, network, deterministic, generator, horizon):
            self.network, self.horizon = network, horizon

        def begin(self, tasks, worlds):
            assert tasks == worlds == 1

        def act(self, obs):
            return self.network(obs)

    flops = bench_account._policy_flops(Policy(linear, False, None, 9), torch.zeros(7, 3))
    assert flops == 7 * 2 * 3 * 2

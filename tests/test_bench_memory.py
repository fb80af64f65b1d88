"""How much memory worlds take on a GPU: what MuJoCo Warp allocates, robot by robot."""

import json
import re

import pytest
import warp

from metarl.envs.physics import Limits
from metarl.envs.physics.warp_memory import _STATES, allocate, bytes_per_world
from metarl.envs.physics.warp_model import WarpModel
from metarl.envs.registry import make_family
from metarl.experiments.bench_memory import bench_memory, randomised_fields
from metarl.experiments.cli import main

UNITS = {"B": 1, "KB": 2**10, "MB": 2**20}


def allocated(model, limits, fields, num_worlds):
    """What Warp says that it allocated for so many worlds, to three digits."""
    told = []
    with warp.ScopedMemoryTracker(report_func=told.append), warp.ScopedDevice("cpu"):
        constants = WarpModel(model, num_worlds)
        constants.expand(fields)
        data = allocate(constants.compiled, num_worlds, limits)
        tracker = warp.ScopedMemoryTracker(report_func=told.append)
        tracker.report()
        del constants, data
    live = re.search(r"Live allocations:\s+cpu\s+\d+ \(([\d.]+) (\w+)\)", told[0])
    return float(live[1]) * UNITS[live[2]]


@pytest.mark.parametrize("limits", [Limits(), Limits(5, 30)])
def test_the_bytes_are_those_that_warp_allocates(limits):
    model, fields = make_family("half-cheetah-vel").model(), ("geom_rgba", "jnt_range")
    each, shared = bytes_per_world(model, limits, fields)
    kept = 4 * _STATES * 91 + 8 * 3  # torch's own: states of 91 numbers, three counters
    for num_worlds in (1, 300):
        expected = (each - kept) * num_worlds + shared
        found = allocated(model, limits, fields, num_worlds)
        assert found == pytest.approx(expected, rel=6e-3)


def test_fields_of_its_own_cost_a_world_their_rows():
    model, limits = make_family("hopper-vel").model(), Limits(6, 30)
    masses = bytes_per_world(model, limits, ["body_mass"])
    damped = bytes_per_world(model, limits, ["body_mass", "dof_damping"])
    row = 4 * model.compiled.nv
    assert (damped[0] - masses[0], masses[1] - damped[1]) == (row, row)
    # Constants that follow from masses become a world's own, those of damping there are none.
    alone = bytes_per_world(model, limits)[0]
    assert bytes_per_world(model, limits, ["dof_damping"])[0] - alone == row
    assert masses[0] - alone > 4 * model.compiled.nbody


def test_room_for_contacts_costs_memory():
    model = make_family("ant-goal").model()
    few, many, most = (bytes_per_world(model, Limits(n, 60)) for n in (8, 16, 24))
    assert most[0] - many[0] == many[0] - few[0] > 0
    assert few[1] == many[1]


def test_robots_fit():
    (row,) = bench_memory(["half-cheetah-rand-params"])
    assert row["num_worlds"] == 16384 and row["all"] < 20e9
    assert row["own_model"] > row["shared_model"]
    assert row["all"] == pytest.approx(16384 * row["own_model"], rel=1e-3)


def test_all_that_tasks_and_randomisation_change_is_a_worlds_own():
    fields = randomised_fields(make_family("half-cheetah-vel"))
    assert {"body_mass", "geom_friction", "dof_damping", "opt.gravity", "body_ipos"} <= set(fields)
    assert "geom_size" not in fields and len(set(fields)) == len(fields)
    crippled = randomised_fields(make_family("ant-crippled"))
    assert {"geom_size", "geom_pos", "actuator_gear"} <= set(crippled)


def test_the_command_prints_a_row_for_each_robot(capsys):
    assert main("bench memory hopper-vel crane --num-worlds 1000 --json".split()) == 0
    header, *rows, last = capsys.readouterr().out.splitlines()
    assert header.split("  ")[-1].strip() == "GB for 1000"
    assert [row.split()[0] for row in rows] == ["hopper-vel", "crane"]
    result = json.loads(last)
    for row, found in zip(rows, result["rows"], strict=True):
        assert len(row) <= 80
        assert float(row.split()[-1]) == pytest.approx(found["all"] / 1e9, abs=0.005)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("gridnavi", "worlds of gridnavi are not simulated by MuJoCo Warp; choose from half-"),
        ("half-cheetah-vle", "did you mean 'half-cheetah-vel'"),
        ("crane --num-worlds 0", "--num-worlds must be at least 1, got 0"),
        ("crane --worlds 3", "unknown option --worlds"),
    ],
)
def test_bad_words_get_one_sentence(words, sentence, capsys):
    assert main(["bench", "memory", *words.split()]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert sentence in line

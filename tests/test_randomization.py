"""What domain randomisation draws, what files say of it, and what it refuses."""

import json
import math
import shlex
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from test_house import ROOT

from metarl.configs import from_plain, to_plain
from metarl.envs.planar import PUBLISHED_DYNAMICS
from metarl.envs.quantities import element_names
from metarl.envs.randomization import NOTHING, QUANTITIES, Randomization, Vary, load_randomization
from metarl.envs.registry import make_family
from metarl.errors import UsageError
from metarl.experiments.cli import main
from metarl.experiments.commands.train import command_of, parse_pair, run_config
from metarl.experiments.loading import open_run
from metarl.runs import RunFolder

EXAMPLE = ROOT / "docs" / "randomization.yaml"
FEW = ("--evaluation-tasks", "4")
HELP = "what varies from task to task besides the goal: a YAML file of ranges, or none"
FIRST_OF_WALKER = (3.1377845236892266, 1.655679307795164, 0.9039824037440249)
"""masses of the first task of a seeded draw"""
FACTORS = [name for name, quantity in QUANTITIES.items() if quantity.unit == "x"]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def cheetah(*vary):
    return make_family("half-cheetah-vel", randomize=Randomization(vary))


def drawn(family, split, n=2000, seed=0):
    return family.sample_tasks(n, split, generator(seed)).dynamics


# --- distributions -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("distribution", "reference"),
    [
        ("uniform", stats.uniform(0.5, 1.5)),
        ("log-uniform", stats.loguniform(0.5, 2.0)),
        ("gaussian", stats.truncnorm(-2, 2, loc=1.25, scale=0.375)),
    ],
)
def test_quantiles_are_those_of_the_distribution(distribution, reference):
    vary = Vary("density", 0.5, 2.0, distribution)
    u = torch.linspace(0, 1, 101, dtype=torch.float64)
    np.testing.assert_allclose(vary.inside(u), reference.ppf(u), rtol=1e-6)
    family = cheetah(replace(vary, each=True, of=("torso", "bfoot")))
    for split, seed in (("train", 1), ("held-out", 2)):
        values = drawn(family, split, seed=seed)
        assert stats.kstest(values.flatten(), reference.cdf).pvalue > 1e-3
        assert abs(np.corrcoef(values.T)[0, 1]) < 0.1
        assert values.shape == (2000, 2)


@pytest.mark.parametrize("distribution", ["uniform", "log-uniform", "gaussian"])
def test_delays_are_whole_and_none_is_rarer_than_its_distribution_says(distribution):
    vary = Vary("action_delay", 1.0, 4.0, distribution)
    u = (torch.arange(6000, dtype=torch.float64) + 0.5) / 6000
    values, counts = vary.inside(u).unique(return_counts=True)
    assert values.tolist() == [1, 2, 3, 4]
    edges = {
        "uniform": stats.uniform(1, 4),
        "log-uniform": stats.loguniform(1, 5),
        "gaussian": stats.truncnorm(-2, 2, loc=3, scale=1),
    }[distribution].cdf([1, 2, 3, 4, 5])
    np.testing.assert_allclose(counts / 6000, np.diff(edges), atol=2e-3)
    assert float(vary.inside(torch.ones(1, dtype=torch.float64))) == 4
    seen = drawn(cheetah(vary), "train")
    assert set(seen.flatten().tolist()) == {1, 2, 3, 4}


@pytest.mark.parametrize(
    ("low", "high", "beyond", "expected"),
    [
        (0.0, 1.0, 0.5, {2}),
        (2.0, 4.0, 0.5, {1, 5}),
        (2.0, 4.0, 1.0, {0, 1, 5, 6}),
        (3.0, 3.0, 0.5, {2, 4}),
        (2.0, 4.0, 0.0, set()),
    ],
)
def test_delays_out_of_range_are_other_whole_numbers(low, high, beyond, expected):
    vary = Vary("observation_delay", low, high, beyond=beyond)
    assert vary.has_outside == bool(expected)
    if expected:
        u = torch.rand(2000, dtype=torch.float64, generator=generator())
        values, counts = vary.outside(u).unique(return_counts=True)
        assert set(values.tolist()) == expected
        assert counts.min() > 0.8 * 2000 / len(expected)


# --- regions -------------------------------------------------------------------------------------


@st.composite
def ranges(draw):
    """A `Vary` of any quantity with a range that it can have."""
    name = draw(st.sampled_from(sorted(QUANTITIES)))
    quantity = QUANTITIES[name]
    least, most = max(quantity.least, -5.0), min(quantity.most, 5.0)
    if quantity.whole:
        low, high = sorted(draw(st.tuples(st.integers(0, 5), st.integers(0, 5))))
    else:
        low, high = sorted(draw(st.tuples(st.floats(least, most), st.floats(least, most))))
    kinds = ["uniform", "gaussian"] + ["log-uniform"] * (low >= 1e-3)
    beyond = draw(st.floats(0.0, 2.0))
    return Vary(name, float(low), float(high), draw(st.sampled_from(kinds)), beyond=beyond)


@given(ranges())
def test_values_are_inside_and_values_out_of_range_outside(vary):
    u = torch.linspace(0, 1 - 1e-6, 200, dtype=torch.float64)
    inside, quantity = vary.inside(u), QUANTITIES[vary.quantity]
    slack = 1e-6 * max(abs(vary.low), abs(vary.high))
    assert inside.min() >= vary.low - slack and inside.max() <= vary.high + slack
    assert (inside.diff() >= 0).all()
    if vary.has_outside and vary.high - vary.low > 1e-3 and vary.beyond > 1e-3:
        outside = vary.outside(u)
        assert ((outside < vary.low) | (outside > vary.high) | (outside == vary.low)).all()
        assert ((outside < vary.low + slack) | (outside > vary.high - slack)).all()
        assert outside.min() >= quantity.least - slack and outside.max() <= quantity.most + slack
        low, high = vary.limits()
        both = low < vary.low and high > vary.high
        share = float((outside < vary.low + slack).double().mean())
        assert share == (pytest.approx(0.5, abs=0.02) if both else float(low < vary.low))


THREE = (
    Vary("density", 0.5, 2.0, "log-uniform", each=True),
    Vary("friction", 0.5, 1.5),
    Vary("push_force", 0.0, 10.0),
)


def test_train_and_held_out_tasks_fill_the_range_in_stripes_of_their_own():
    family = cheetah(*THREE)
    stripes = []
    for split in ("train", "held-out"):
        values = drawn(family, split)
        assert (values[:, :7] > 0.5).all() and (values[:, :7] < 2.0).all()
        shares = torch.cat([(values[:, :7] / 0.5).log() / math.log(4.0), values[:, 8:] / 10], 1)
        stripes.append((shares * 1000).long() % 5)
        assert shares.min() < 0.01 and shares.max() > 0.99
    assert (stripes[0] < 4).all() and (stripes[1] == 4).all()


def test_out_of_range_tasks_are_outside_in_exactly_one_entry():
    family = cheetah(*THREE)
    assert family.splits == ("train", "held-out", "out-of-range", "nominal")
    values = drawn(family, "out-of-range")
    out = torch.stack(
        [
            ((values[:, :7] < 0.5) | (values[:, :7] > 2.0)).sum(1),
            7 * ((values[:, 7] < 0.5) | (values[:, 7] > 1.5)),
            7 * (values[:, 8] > 10.0),
        ]
    )
    assert set(out.flatten().tolist()) == {0, 7}  # all numbers of an entry, or none
    assert (out.sum(0) == 7).all()
    np.testing.assert_allclose((out > 0).double().mean(1), 1 / 3, atol=0.05)
    assert values[:, :7].min() > 0.25 and values[:, :7].max() < 4.0
    assert values[:, 7].min() >= 0.0 and values[:, 7].max() <= 2.0
    assert values[:, 8].min() >= 0.0 and values[:, 8].max() <= 15.0


def test_the_nominal_task_is_the_model_file():
    names = [Vary(name, 1.0, 1.0, beyond=0.0) for name in QUANTITIES]
    family = cheetah(*names)
    values = drawn(family, "nominal", 3)
    assert (values == values[0]).all()
    for name, value in zip(family.parameters.names, values[0].tolist(), strict=True):
        assert value == (1.0 if name.split()[0] in FACTORS else 0.0), name


def test_entries_that_cannot_be_left_are_not_chosen_for_it():
    fixed, all_of_it = Vary("density", 2.0, 2.0), Vary("action_dropout", 0.0, 1.0)
    family = cheetah(fixed, all_of_it, Vary("friction", 0.5, 1.5))
    values = drawn(family, "out-of-range", 300)
    assert (values[:, 0] == 2.0).all() and (values[:, 1] <= 1.0).all()
    assert ((values[:, 2] < 0.5) | (values[:, 2] > 1.5)).all()
    hopper = make_family("hopper-rand-params", randomize=Randomization((fixed, all_of_it)))
    assert hopper.splits == ("train", "held-out", "nominal")
    values = drawn(cheetah(fixed, all_of_it), "out-of-range", 300)  # its speeds can be
    assert (values[:, 0] == 2.0).all() and (values[:, 1] <= 1.0).all()


def test_where_so_few_tasks_differ_that_splits_share_them_the_family_says_so():
    def shares(name, *vary):
        return make_family(name, randomize=Randomization(vary)).shared_splits

    delay, mass = Vary("action_delay", 0.0, 3.0), Vary("density", 0.5, 2.0)
    assert shares("hopper-rand-params", delay) and shares("hopper-rand-params")
    assert not shares("hopper-rand-params", delay, mass)
    assert not shares("half-cheetah-vel", delay)


def test_the_published_draw_stays_what_it_is():
    """Trained runs depend on it."""
    family = make_family("walker2d-rand-params")
    values = drawn(family, "train", 4)
    assert family.randomize == PUBLISHED_DYNAMICS and values.shape == (4, 58)
    np.testing.assert_allclose(values[0, :3], FIRST_OF_WALKER, rtol=1e-12)
    logs = drawn(family, "train").log()
    spread = torch.tensor([3 * math.log(1.5)] * 28 + [3 * math.log(1.3)] * 6)
    assert ((logs[:, :34].abs() / spread).amax(0) - 1).abs().max() < 0.01
    beyond = drawn(family, "out-of-range").log()
    assert float(beyond[:, :7].max()) == pytest.approx(4 * math.log(1.5), rel=0.01)


def test_sampling_takes_nothing_from_the_global_generator():
    before = torch.get_rng_state()
    for split in ("train", "held-out", "out-of-range", "nominal"):
        drawn(cheetah(*THREE), split, 5)
    assert torch.equal(before, torch.get_rng_state())


# --- words ---------------------------------------------------------------------------------------


def test_columns_are_named():
    family = cheetah(
        Vary("density", 0.5, 2.0),
        Vary("com_offset", -0.1, 0.1, of=("torso",)),
        Vary("friction", 0.5, 1.5, each=True, of=("floor",)),
        Vary("damping", 0.5, 1.5, each=True, of=("bfoot", "bthigh")),
        Vary("observation_bias", -0.1, 0.1, of=("3",)),
        Vary("payload", 0.0, 1.0, of=("bfoot", "ffoot")),
        Vary("gravity", 0.5, 1.5),
    )
    assert family.parameters.names == (
        "density",
        *(f"com_offset torso.{axis}" for axis in range(3)),
        *(f"friction floor.{axis}" for axis in range(3)),
        "damping bfoot",
        "damping bthigh",
        "observation_bias 3",
        "payload bfoot ffoot",
        "gravity",
    )
    assert family.task_dim == 13  # and the speed
    pushed = cheetah(Vary("push_force", 0.0, 1.0)).parameters.columns[0]
    assert (pushed.ids, pushed.names) == ((1,), ("push_force",))


def test_tasks_are_described_by_what_is_farthest_from_nominal():
    family = cheetah(
        Vary("density", 0.5, 2.0, "log-uniform"),
        Vary("push_force", 0.0, 10.0),
        Vary("action_delay", 0.0, 2.0),
        Vary("observation_noise", 0.0, 0.1, of=("3",)),
    )
    words = family.parameters.describe
    values = torch.tensor([2.0, 9.0, 1.0, 0.01], dtype=torch.float64)
    assert words(values) == "push_force = 9 N, density = 2x, action_delay = 1 steps"
    assert words(values, most=1) == "push_force = 9 N"
    only = torch.tensor([1.0, 0.0, 0.0, 0.05], dtype=torch.float64)
    assert words(only) == "observation_noise 3 = 0.05"
    assert words(family.parameters.nominal(1)[0]) == ""


def test_the_readme_has_every_quantity_with_its_unit():
    _, _, section = (ROOT / "README.md").read_text().partition("## Domain randomisation")
    rows = [
        tuple(cell.strip() for cell in line.strip("|").split("|"))
        for line in section.partition("\n## ")[0].splitlines()
        if line.startswith("| `")
    ]
    expected = [
        (f"`{name}`", q.unit or "-", q.elements, q.meaning) for name, q in QUANTITIES.items()
    ]
    assert rows == expected


# --- what cannot be ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (("density", 2.0, 0.5), "of density: the range is reversed: low 2 is above high 0.5"),
        (("density", 0.0, 2.0), "of density: low must be at least 0.001, got 0"),
        (("friction", -0.1, 2.0), "of friction: low must be at least 0, got -0.1"),
        (("payload", -1.0, 2.0), "of payload: low must be at least 0, got -1"),
        (("action_delay", -1.0, 2.0), "of action_delay: low must be at least 0, got -1"),
        (("action_delay", 0.0, 1.5), "must be whole numbers of control steps, got 0 and 1.5"),
        (("observation_delay", 0.5, 2.0), "must be whole numbers of control steps, got 0.5 and 2"),
        (("density", math.nan, 2.0), "of density: low, high and beyond must be finite, got (nan"),
        (("density", 0.5, math.inf), "must be finite, got (0.5, inf"),
        (("density", 0.5, 2.0, "uniform", (), False, math.nan), "must be finite"),
        (("density", 0.5, 2.0, "uniform", (), False, -0.1), "beyond must be at least 0, got -0.1"),
        (("friction", 0.0, 2.0, "log-uniform"), "log-uniform range must be above 0, got 0"),
        (("com_offset", -1.0, 2.0, "log-uniform"), "log-uniform range must be above 0, got -1"),
        (("action_dropout", 0.0, 1.1), "of action_dropout: high must be at most 1, got 1.1"),
        (("action_dropout", -0.1, 1.0), "of action_dropout: low must be at least 0, got -0.1"),
        (("weight", 0.5, 2.0), "unknown quantity 'weight'; choose from body_mass, body_inertia"),
        (("density", 0.5, 2.0, "normal"), "must be one of uniform, log-uniform, gaussian, got"),
        (("density", 0.5, 2.0, "uniform", "torso"), "of must be a list of names, got 'torso'"),
    ],
)
def test_ranges_that_cannot_be_are_refused(entry, message):
    with pytest.raises(UsageError, match=r"^randomisation") as refusal:
        Vary(*entry)
    assert message in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", QUANTITIES)
def test_every_quantity_has_its_least(name):
    least = QUANTITIES[name].least
    if least == -math.inf:
        assert Vary(name, -1e3, 1e3).low == -1e3
    else:
        assert Vary(name, least, 1.0).low == least
        with pytest.raises(UsageError, match=f"of {name}: low must be at least {least:g}"):
            Vary(name, least - 1.0, 1.0)


@pytest.mark.parametrize(
    ("quantity", "of", "message"),
    [
        (
            "density",
            ("tors",),
            "has no body 'tors'; choose from world, torso, bthigh, bshin, bfoot",
        ),
        ("friction", ("torso", "sole"), "has no geom 'sole'; choose from floor, torso, head"),
        ("damping", ("hip",), "has no joint 'hip'; choose from rootx, rootz, rooty, bthigh"),
        ("actuator_strength", ("hip",), "has no actuator 'hip'; choose from bthigh, bshin"),
        ("observation_noise", ("17",), "has no observation '17'; choose from 0, 1, 2"),
        ("payload", ("world",), "body 'world' cannot move"),
        ("push_force", ("world",), "body 'world' cannot move"),
        ("push_force", ("torso", "bfoot"), "of must name one body, got torso, bfoot"),
        ("damping", ("rootx",), "joint 'rootx' has no damping that could be varied"),
        ("gravity", ("torso",), "it belongs to the whole robot, so that of must be empty"),
        ("density", ("torso", "torso"), "of names an element twice: torso, torso"),
    ],
)
def test_names_that_do_not_fit_the_robot_are_refused(quantity, of, message):
    with pytest.raises(UsageError, match=f"^randomisation of {quantity}: ") as refusal:
        cheetah(Vary(quantity, 0.5, 1.0, of=of))
    assert message in str(refusal.value) and "\n" not in str(refusal.value)


def test_what_the_robot_has_none_of_is_refused():
    with pytest.raises(UsageError, match=r"armature: .*crane.xml has no joint that has it"):
        make_family("crane", randomize=Randomization((Vary("armature", 0.5, 2.0),)))


def test_only_one_body_is_pushed():
    with pytest.raises(UsageError, match="push_force: only one body can be pushed"):
        cheetah(*(Vary("push_force", 0.0, 1.0, of=(name,)) for name in ("torso", "bfoot")))


def test_a_file_name_is_no_randomisation():
    with pytest.raises(UsageError, match="what load_randomization reads from a file"):
        make_family("half-cheetah-vel", randomize="a.yaml")


def test_elements_without_names_have_numbers():
    model = make_family("ant-dir").model()
    assert element_names(model, "body")[:3] == ["world", "torso", "front_left_leg"]
    unnamed = [name for name in element_names(model, "body") if name.isdigit()]
    assert unnamed == ["4", "7", "10", "13"]
    family = make_family("ant-dir", randomize=Randomization((Vary("density", 1, 2, of=("4",)),)))
    assert family.parameters.columns[0].ids == (4,)


# --- files ---------------------------------------------------------------------------------------

FILES = {
    "reversed": (
        "[{quantity: density, low: 2, high: 1}]",
        "entry 1: randomisation of density: the",
    ),
    "second": (
        "[{quantity: density, low: 1, high: 2}, {quantity: friction, low: -1, high: 1}]",
        "entry 2: randomisation of friction: low must be at least 0, got -1",
    ),
    "unknown": ("[{quantity: weight, low: 1, high: 2}]", "unknown quantity 'weight'; choose from"),
    "nan": ("[{quantity: density, low: .nan, high: 2}]", "entry 1.low must be a number, got nan"),
    "infinite": ("[{quantity: density, low: 1, high: .inf}]", "must be finite"),
    "text": ("[{quantity: density, low: one, high: 2}]", "entry 1.low must be float, got 'one'"),
    "key": (
        "[{quantity: density, lo: 1, high: 2}]",
        "entry 1: unknown key 'lo'; allowed: quantity, low, high, distribution, of, each, beyond",
    ),
    "missing": ("[{quantity: density, low: 1}]", "entry 1: key 'high' is missing"),
    "word": ("density", "must be a list of quantities with their ranges"),
    "number": ("3", "must be a list of quantities with their ranges"),
    "empty": ("", "must be a list of quantities with their ranges"),
    "words": ("[density]", "entry 1 must be a mapping such as {quantity: friction, low: 0.5"),
    "one name": ("[{quantity: density, low: 1, high: 2, of: torso}]", "of must be a list, got"),
    "distribution": (
        "[{quantity: density, low: 1, high: 2, distribution: normal}]",
        "entry 1.distribution must be one of uniform, log-uniform, gaussian, got 'normal'",
    ),
    "body": (
        "[{quantity: payload, low: 1, high: 2, of: [tors]}]",
        "has no body 'tors'; choose from world, torso, bthigh",
    ),
    "no YAML": ("[{quantity: density, low", "cannot be read: while parsing a flow mapping"),
    "deep": ("[" * 600, "cannot be read: "),
    "code": ("!!python/object/apply:os.system [echo]", "cannot be read: could not determine"),
}


@pytest.mark.parametrize("case", FILES)
def test_a_bad_file_is_refused_in_one_sentence(case, tmp_path, capsys, monkeypatch):
    content, message = FILES[case]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.yaml").write_text(content)
    words = ["train", "rl2", "half-cheetah-vel", "--family.randomize", "bad.yaml"]
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert err.startswith("metarl: train rl2 half-cheetah-vel: ") and err.count("\n") == 1
    assert message in err
    assert "bad.yaml" in err or case == "body"
    assert out == "" and not (tmp_path / "runs").exists()


def test_files_that_are_none_are_refused(tmp_path, capsys):
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    for path, reason in (
        (tmp_path / "nowhere.yaml", "No such file or directory"),
        (tmp_path, "Is a directory"),
        (binary, "it is not UTF-8 text"),
    ):
        with pytest.raises(UsageError, match=f"{path} cannot be read: {reason}"):
            load_randomization(path)
        assert main(["train", "rl2", "crane", "--family.randomize", str(path)]) == 2
        assert f"randomisation {path} cannot be read: {reason}\n" in capsys.readouterr().err


def test_files_take_what_people_write(tmp_path):
    path = tmp_path / "some.yaml"
    path.write_text("- {quantity: observation_noise, low: 0, high: 1e-3, of: [0, 3]}\n")
    assert load_randomization(path).vary == (Vary("observation_noise", 0.0, 1e-3, of=("0", "3")),)
    path.write_text("[]")
    assert load_randomization(path) == NOTHING == Randomization.from_file("none")


@given(st.lists(ranges(), max_size=3))
def test_a_randomisation_survives_config_yaml(vary):
    whole = Randomization(tuple(vary))
    text = yaml.safe_dump(to_plain(whole))
    assert from_plain(Randomization, yaml.safe_load(text), "config.yaml") == whole
    assert Randomization.from_file(json.dumps(to_plain(whole))) == whole


def test_the_help_says_what_the_option_takes(capsys):
    for name, usual in (("half-cheetah-vel", "nothing"), ("half-cheetah-rand-params", "density,")):
        assert main(["train", "rl2", name, "--help"]) == 0
        shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
        assert f"--family.randomize FILE|none {HELP} (default: {usual}" in shown


def test_the_example_is_trained_on_resumed_evaluated_and_told(tmp_path, capsys):
    """From the command line; the run keeps its ranges, whatever becomes of the file."""
    run, file = tmp_path / "run", tmp_path / "copy.yaml"
    file.write_text(EXAMPLE.read_text())
    assert len({vary.quantity for vary in load_randomization(file).vary}) >= 8
    words = "--family.preset promp --num-worlds 4 --epochs 1 --minibatches 1 --threads 1".split()
    train = ["train", "rl2", "half-cheetah-vel", "--run-dir", str(run)]
    assert main([*train, "--family.randomize", str(file), "--total-steps", "1", *words, *FEW]) == 0
    file.unlink()
    assert main([*train, "--resume"]) == 0
    config = yaml.safe_load((run / "config.yaml").read_text())["family_options"]
    assert config["randomize"]["vary"][1] == {
        "quantity": "payload",
        "low": 0.0,
        "high": 3.0,
        "distribution": "uniform",
        "of": ["torso"],
        "each": False,
        "beyond": 0.5,
    }
    assert open_run(run).family.randomize == load_randomization(EXAMPLE)
    means = {}
    for split in ("held-out", "out-of-range", "nominal"):
        capsys.readouterr()
        evaluate = ["evaluate", str(run), "--tasks", "4", "--split", split, "--threads", "1"]
        assert main([*evaluate, "--json"]) == 0
        means[split] = json.loads(capsys.readouterr().out.splitlines()[-1])["mean"]
    assert len({tuple(mean) for mean in means.values()}) == 3
    assert all(math.isfinite(x) for mean in means.values() for x in mean)


def test_the_command_of_a_run_says_its_ranges(tmp_path):
    path = tmp_path / "crane.yaml"
    path.write_text("- {quantity: damping, low: 0.5, high: 2, each: true}\n")
    damped = Randomization((Vary("damping", 0.5, 2.0, each=True),))
    for file, expected in ((str(path), damped), ("none", NOTHING)):
        options = parse_pair("rl2", "crane", ["--family.randomize", file])
        config = run_config("rl2", "crane", options)
        words = shlex.split(command_of(RunFolder.create(tmp_path / file[-4:], config)))
        again = parse_pair("rl2", "crane", words[words.index("--run-dir") + 2 :])
        assert again.family.randomize == expected
        assert run_config("rl2", "crane", again) == config

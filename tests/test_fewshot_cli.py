"""`metarl fewshot`: trains, judges, draws, compares; one sentence for every mistake."""

import contextlib
import io
import json
import subprocess
import sys

import pytest
import yaml

from metarl.experiments.cli import main
from metarl.experiments.commands.fewshot import pair_defaults, parse_pair
from metarl.experiments.fewshot import DATASETS, METHODS
from metarl.experiments.options import leaves

TINY = ("--iterations", 4, "--network.layers", 6, "--meta-batch", 2, "--queries", 3)
PNG = b"\x89PNG"


def call(*args):
    """Exit code, standard output and standard error of a command."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(word) for word in args])
    return code, out.getvalue(), err.getvalue()


def last_json(out):
    """The object on the last line of standard output."""
    return json.loads(out.splitlines()[-1])


def fewshot(path, *args, method="maml", dataset="sinusoid", size=TINY):
    """Train a little and judge by five tasks."""
    return call("fewshot", method, dataset, "--run-dir", path, "--tasks", 5, *size, *args)


def refused(*args):
    """The sentence of a command that must refuse."""
    code, out, err = call(*args)
    assert code == 2, (out, err)
    assert err.startswith("metarl: ") and err.count("\n") == 1 and "Traceback" not in err
    return err


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run with its output."""
    path = tmp_path_factory.mktemp("runs") / "maml"
    code, out, err = fewshot(path, "--json")
    assert code == 0, err
    return path, out


# --- one run -----------------------------------------------------------------------------------


def test_help_lists_methods_and_data_and_loads_nothing_heavy():
    program = (
        "import sys\n"
        "from metarl.experiments.cli import main\n"
        "code = main(['fewshot', '--help']) + main(['fewshot', '--compare', '--help'])\n"
        "heavy = {'torch', 'matplotlib', 'gymnasium'} & sys.modules.keys()\n"
        "sys.exit(f'{code} {heavy}' if heavy or code else 0)\n"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert [name for name in (*METHODS, *DATASETS) if f"  {name} " not in found.stdout] == []
    assert "--seeds" in found.stdout


def test_the_options_of_a_pair_are_those_of_method_network_data_and_trainer():
    code, out, _ = call("fewshot", "cavia", "gp", "--help")
    assert code == 0
    for option in ("--context", "--network.layers", "--data.kernel", "--train-shots", "--resume"):
        assert option in out


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("method", METHODS)
def test_every_pair_has_settings_and_no_option_twice(method, dataset):
    defaults = pair_defaults(method, dataset)
    flat = [name for part in ("run", "training", "learner") for name, _ in leaves(defaults[part])]
    assert len(flat) == len(set(flat))
    assert not [name for name in flat if name.startswith("data.")]
    assert defaults["run"].run_dir == f"runs/fewshot-{method}-{dataset}-{{seed}}"


def test_a_run_reports_what_it_reached_on_held_out_tasks(run):
    path, out = run
    found = last_json(out)
    assert (found["run"], found["method"], found["dataset"]) == (str(path), "maml", "sinusoid")
    assert found["iterations"] == 4
    assert found["parameters"] == (1 * 6 + 6) + (6 * 1 + 1)
    held_out = found["held_out"]
    assert held_out["steps"] == [0, 1, 5, 10]
    assert (held_out["tasks"], held_out["shots"], held_out["split"]) == (5, 10, "held-out")
    mse = held_out["mse"]
    for low, mean, high in zip(mse["low"], mse["mean"], mse["high"], strict=True):
        assert 0.0 < low < mean < high
    assert f"{mse['mean'][-1]:.4f}" in out


def test_a_run_leaves_its_config_scores_and_figures(run):
    path, out = run
    config = yaml.safe_load((path / "config.yaml").read_text())
    assert (config["agent"], config["family"]) == ("fewshot-maml", "sinusoid")
    assert config["agent_config"]["network"]["layers"] == [6]
    assert config["training"]["iterations"] == 4
    kept = json.loads((path / "evaluation" / "held-out-5-10s.json").read_text())
    assert kept["summary"] == last_json(out)["held_out"]
    for name in ("fits", "steps", "shots"):
        assert (path / "evaluation" / f"{name}.png").read_bytes()[:4] == PNG


def test_images_have_pictures_and_accuracies(tmp_path):
    words = [
        *("--network.filters", 4, 4, "--iterations", 1, "--meta-batch", 2, "--queries", 2),
        *("--data.train-classes", 5, "--data.held-out-classes", 5, "--data.drawers", 5),
    ]
    code, out, err = fewshot(tmp_path / "run", "--json", dataset="characters", size=words)
    assert code == 0, err
    found = last_json(out)["held_out"]
    assert found["ways"] == 5
    assert all(0.0 <= x <= 1.0 for x in found["accuracy"]["mean"])
    for name in ("images", "steps", "shots"):
        assert (tmp_path / "run" / "evaluation" / f"{name}.png").read_bytes()[:4] == PNG


def test_the_exact_posterior_stands_beside_the_scores(tmp_path):
    code, out, err = fewshot(tmp_path, "--no-figures", "--json", dataset="gp")
    assert code == 0, err
    found = last_json(out)["held_out"]
    assert found["oracle"]["mse"] < min(found["mse"]["mean"])
    assert "exact posterior: log_likelihood" in out
    assert not list((tmp_path / "evaluation").glob("*.png"))


def test_resume_takes_the_options_of_the_run_and_gives_the_same(run):
    path, out = run
    code, again, err = call(
        *("fewshot", "maml", "sinusoid", "--run-dir", path, "--resume", "--tasks", 5),
        *("--no-figures", "--json"),
    )
    assert code == 0, err
    assert last_json(again)["held_out"] == last_json(out)["held_out"]


def test_the_preset_is_what_differs_from_the_method_itself():
    options = parse_pair("maml", "characters", ["--seed", "7", "--network.filters", "8"])
    assert options.run.run_dir == "runs/fewshot-maml-characters-7"
    assert options.learner.inner_rate == 0.4
    assert options.learner.network.filters == (8,)
    assert options.training.train_queries < options.training.queries


# --- what such a run is to other commands ------------------------------------------------------


@pytest.mark.parametrize("verb", ["evaluate", "report", "video", "beliefs"])
def test_commands_for_agents_say_what_such_a_run_is(run, verb):
    path, _ = run
    assert f"metarl fewshot maml sinusoid --run-dir {path} --resume" in refused(verb, path)


def test_training_refuses_to_go_on_with_something_else(run):
    path, _ = run
    where = ("--run-dir", path)
    assert "was trained with fewshot-maml on sinusoid" in refused(
        "train", "rl2", "gridnavi", *where, "--resume"
    )
    assert "was trained with fewshot-maml on sinusoid, asked for fewshot-cavia" in refused(
        "fewshot", "cavia", "sinusoid", *where, "--resume"
    )
    assert "training.shots = 10" in refused(
        "fewshot", "maml", "sinusoid", *where, "--resume", "--shots", 3
    )
    assert "already holds a run; add --resume" in refused("fewshot", "maml", "sinusoid", *where)


# --- comparisons -------------------------------------------------------------------------------


def compare(root, *args):
    """Compare on a few tasks."""
    return call("fewshot", "--compare", *args, "--run-dir", root, "--tasks", 4, "--json")


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    root = tmp_path_factory.mktemp("compared")
    words = ("maml", "cavia", "sinusoid", "--seeds", 1, 2, "--iterations", 3, "--shots", 4)
    code, out, err = compare(root, *words)
    assert code == 0, err
    return root, words, out


def test_a_comparison_trains_every_method_with_every_seed(compared):
    root, _, out = compared
    folders = {p.name for p in root.iterdir() if p.is_dir()}
    assert folders == {f"fewshot-{m}-sinusoid-{seed}" for m in ("maml", "cavia") for seed in (1, 2)}
    found = last_json(out)
    assert [row["method"] for row in found["rows"]] == ["maml", "cavia"]
    assert found["protocol"]["shots"] == 4 and found["seeds"] == [1, 2]
    for row in found["rows"]:
        assert row["low"] < row["mean"] < row["high"]
        assert (row["metric"], row["seeds"], row["iterations"]) == ("mse", 2, 3)
        assert row["seconds"] > 0 and row["parameters"] > 1000
        kept = [
            json.loads(file.read_text())["values"]["mse"]
            for file in sorted(
                root.glob(f"fewshot-{row['method']}-*/evaluation/held-out-4-4s.json")
            )
        ]
        last = [task[-1] for seed in kept for task in seed]
        assert len(last) == 2 * 4 and row["mean"] == pytest.approx(sum(last) / len(last))


def test_a_comparison_leaves_a_table_and_a_figure(compared):
    root, _, out = compared
    assert json.loads((root / "compare-sinusoid-4s.json").read_text()) == last_json(out)
    table = (root / "compare-sinusoid-4s.md").read_text().splitlines()
    rows = [line.split("|")[1].strip() for line in table if line.startswith("| ")]
    best = sorted(last_json(out)["rows"], key=lambda row: row["mean"])
    assert rows == ["method", *(row["method"] for row in best)]
    assert (root / "compare-sinusoid-4s-mse.png").read_bytes()[:4] == PNG


def test_what_is_trained_is_not_trained_again(compared):
    root, words, out = compared
    before = {p: p.read_bytes() for p in root.glob("*/timing.jsonl")}
    code, again, err = compare(root, *words)
    assert code == 0, err
    assert last_json(again)["rows"] == last_json(out)["rows"]
    assert {p: p.read_bytes() for p in root.glob("*/timing.jsonl")} == before


def test_a_comparison_takes_the_runs_that_are_there(compared):
    root, _, _ = compared
    code, out, err = compare(root, "maml", "sinusoid", "--shots", 4)
    assert code == 0, err
    assert last_json(out)["rows"][0]["iterations"] == 3


def test_a_comparison_refuses_runs_on_other_tasks(compared):
    root, words, _ = compared
    asked = (*words[:-1], 5)
    code, _, err = compare(root, *asked)
    assert code == 2
    assert "training.shots = 4, asked for 5" in err and err.count("\n") == 1
    code, _, err = compare(root, "maml", "anil", "sinusoid")
    assert code == 2
    assert "tasks of 4 shots" in err and "for 10" in err
    assert not (root / "fewshot-anil-sinusoid-1").exists()


# --- bad input ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ("", ["name a method", "maml", "scratch"]),
        ("mamml sinusoid", ["unknown method 'mamml'", "'maml'", "prototypical"]),
        ("maml", ["name a data set", "sinusoid", "omniglot"]),
        ("maml sinus", ["unknown data set 'sinus'", "'sinusoid'"]),
        ("maml --seed 1 sinusoid", ["name a data set"]),
        ("maml sinusoid stray", ["unexpected argument 'stray'"]),
        ("maml sinusoid --inner-rat 1", ["--inner-rat", "did you mean --inner-rate"]),
        ("maml sinusoid --data.kernel rbf", ["unknown option --data.kernel"]),
        ("maml gp --data.kernel linear", ["'linear'", "rbf"]),
        ("maml sinusoid --iterations 0", ["iterations", "0"]),
        ("maml sinusoid --shots -1", ["shots", "-1"]),
        ("maml sinusoid --inner-rate nan", ["inner_rate must be a finite number above 0, got nan"]),
        ("maml sinusoid --tasks 0", ["--tasks must be at least 1"]),
        ("maml sinusoid --device gpu", ["unknown device", "'gpu'"]),
        ("maml characters --train-ways 20", ["MAML", "20 ways", "--train-ways"]),
        ("maml characters --ways 1", ["ways must be at least 2"]),
        ("maml omniglot --data.path {tmp}/nowhere", ["{tmp}/nowhere"]),
        ("maml images --data.path {tmp}/nowhere", ["{tmp}/nowhere"]),
        ("relation sinusoid", ["Relation does classification, not regression"]),
        ("--compare", ["name the methods and then the data set"]),
        ("--compare maml", ["name the methods and then the data set"]),
        ("--compare maml prototypical", ["unknown data set 'prototypical'"]),
        ("--compare maml protos characters", ["unknown method 'protos'"]),
        ("--compare maml maml sinusoid", ["each method once"]),
        ("--compare maml sinusoid --seeds 1 1", ["--seeds", "different"]),
        ("--compare maml sinusoid --inner-rate 1", ["unknown option --inner-rate"]),
        ("--compare maml siamese sinusoid", ["Siamese does classification"]),
    ],
)
def test_bad_input_gets_one_sentence_and_leaves_nothing(args, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sentence = refused("fewshot", *args.format(tmp=tmp_path).split())
    for word in words:
        assert word.format(tmp=tmp_path) in sentence
    assert list(tmp_path.iterdir()) == []

"""The command line: a contract that scripts rely on, and one sentence for every mistake."""

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from metarl.envs.metaworld.names import SKILLS
from metarl.envs.registry import FAMILIES
from metarl.errors import TrainingError
from metarl.experiments import load_run
from metarl.experiments.cli import VERBS, main
from metarl.experiments.commands.train import command_of, parse_pair, run_config
from metarl.experiments.options import leaves
from metarl.interruption import Interrupted
from metarl.runs import RunFolder

TINY = ("--num-worlds", 8, "--epochs", 1, "--minibatches", 1, "--hidden", 4, "--layers", 4)


def call(*args):
    """Exit code, standard output and standard error of a command."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(word) for word in args])
    return code, out.getvalue(), err.getvalue()


def last_json(out):
    """The object on the last line of standard output."""
    return json.loads(out.splitlines()[-1])


def train(path, *args, agent="rl2", family="gridnavi"):
    """Train for one iteration."""
    return call("train", agent, family, "--run-dir", path, "--total-steps", 1, *TINY, *args)


def refused(*args):
    """The sentence of a command that must refuse."""
    code, out, err = call(*args)
    assert code == 2, (out, err)
    assert err.startswith("metarl: ") and err.count("\n") == 1 and "Traceback" not in err
    return err


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of one iteration, with its exit code and output."""
    path = tmp_path_factory.mktemp("runs") / "rl2"
    code, out, _ = train(path, "--evaluate-every", 100, "--evaluation-tasks", 3, "--json")
    assert code == 0
    return path, out


# --- what works --------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", VERBS)
def test_every_command_has_help(verb):
    code, out, err = call(verb, "--help")
    assert code == 0
    assert f"metarl {verb}" in out
    assert err == ""


def test_help_names_every_command_and_no_other():
    code, out, _ = call("--help")
    listed = [line.split()[0] for line in out.splitlines() if line.startswith("  ")]
    assert (code, listed) == (0, list(VERBS))


def test_help_of_a_pair_shows_the_fields_of_agent_family_and_trainer():
    code, out, _ = call("train", "rl2", "half-cheetah-vel", "--help")
    assert code == 0
    for option in (
        "--learning-rate",
        "--family.episodes",
        "--total-steps",
        "--run-dir",
        "--resume",
    ):
        assert option in out


def test_families_lists_all(capsys):
    code, out, _ = call("families", "--json")
    rows = last_json(out)["families"]
    assert code == 0
    assert rows[0].keys() == {"family", "observation", "action", "horizon", "episodes", "splits"}
    by_name = {row["family"]: row for row in rows}
    assert by_name["half-cheetah-vel"]["splits"] == "train, held-out, out-of-range"
    assert by_name["gridnavi"]["action"] == "one of 5"
    assert by_name["point-dense"]["action"] == "2 numbers in [-1, 1]"
    assert set(by_name) == set(FAMILIES)
    # In the table one line stands for all single skills of Meta-World; their names are below.
    assert out.count("metaworld-ml1-SKILL") == out.count("metaworld-mt1-SKILL") == 1
    table = out[: out.index('{"families"')]
    assert "metaworld-ml1-reach" not in table
    assert all(skill in table for skill in SKILLS)


def test_train_reports_its_run(run):
    path, out = run
    figures = last_json(out)
    assert figures["run"] == str(path)
    assert figures["steps"] == 8 * 4 * 15
    assert isinstance(figures["return_first"], float)
    assert yaml.safe_load((path / "config.yaml").read_text())["agent_config"]["hidden"] == 4


def test_evaluate_keeps_the_contract_of_json(run):
    path, _ = run
    code, out, _ = call("evaluate", path, "--tasks", 5, "--ablations", "--json")
    figures = last_json(out)
    assert code == 0
    for name in ("mean", "iqm", "low", "high"):
        assert len(figures[name]) == 4
    assert all(
        a <= b <= c for a, b, c in zip(*map(figures.get, ("low", "mean", "high")), strict=True)
    )
    assert (figures["tasks"], figures["split"], figures["seed"]) == (5, "held-out", 0)
    assert "inputs-zeroed" in figures["ablations"]
    assert (path / "evaluation" / "held-out-5x4-seed0.json").is_file()
    assert (path / "evaluation" / "held-out-5x4-seed0.png").read_bytes()[:4] == b"\x89PNG"


def test_evaluations_with_equal_seeds_are_equal_and_others_are_not(run):
    path, _ = run
    figures = [
        last_json(call("evaluate", path, "--tasks", 5, "--seed", seed, "--stochastic", "--json")[1])
        for seed in (3, 3, 4)
    ]
    assert figures[0] == figures[1]
    assert figures[0]["mean"] != figures[2]["mean"]


def test_evaluate_for_more_episodes_than_trained(run):
    path, _ = run
    _, out, _ = call("evaluate", path, "--tasks", 2, "--episodes", 6, "--json")
    assert len(last_json(out)["mean"]) == 6


def test_bench_keeps_the_contract_of_json():
    words = "bench rollout gridnavi --num-worlds 4 --windows 1 --seconds 0.01 --threads 1 --json"
    code, out, _ = call(*words.split())
    figures = last_json(out)
    assert code == 0
    assert figures["value"] > 0
    assert figures["unit"] == "steps/s"
    assert {"peer", "peer_value", "ratio"} <= figures.keys()


def test_every_agent_trains_and_is_evaluated(tmp_path):
    for agent in ("non-adaptive", "oracle"):
        assert train(tmp_path / agent, agent=agent)[0] == 0
        code, out, _ = call("evaluate", tmp_path / agent, "--tasks", 2, "--json")
        assert code == 0
        assert len(last_json(out)["mean"]) == 4


def test_load_run_gives_the_trained_agent(run):
    path, _ = run
    agent, family, config = load_run(path)
    assert (family.name, config.agent) == ("gridnavi", "rl2")
    assert agent.config.hidden == 4
    assert agent.state_dict()["return_norm"]["count"] > 0


def test_the_seed_names_the_default_folder():
    options = parse_pair("rl2", "gridnavi", ["--seed", "7"])
    assert options.run.run_dir == "runs/rl2-gridnavi-7"


def test_the_command_of_a_run_gives_the_same_run(tmp_path):
    words = "--seed 5 --no-memory --layers 8 8 --learning-rate 0.01 --family.observation xy"
    options = parse_pair("rl2", "gridnavi", words.split())
    config = run_config("rl2", "gridnavi", options)
    command = command_of(RunFolder.create(tmp_path / "a run", config)).split()
    assert command[:4] == ["metarl", "train", "rl2", "gridnavi"]
    again = parse_pair("rl2", "gridnavi", command[command.index("--seed") :])
    assert run_config("rl2", "gridnavi", again) == config


# --- resume ------------------------------------------------------------------------------------


def test_resume_takes_the_options_of_the_run(tmp_path):
    assert train(tmp_path / "run", "--seed", 9)[0] == 0
    code, out, err = call("train", "rl2", "gridnavi", "--run-dir", tmp_path / "run", "--resume")
    assert code == 0, err
    assert "for 480 steps" in out


def test_resume_refuses_other_options_and_other_agents(run):
    path, _ = run
    where = ("gridnavi", "--run-dir", path, "--resume")
    assert "training.num_worlds = 8" in refused("train", "rl2", *where, "--num-worlds", 16)
    assert "was trained with rl2 on gridnavi" in refused("train", "oracle", *where)


def test_a_run_is_not_overwritten(run):
    path, _ = run
    assert "already holds a run; add --resume" in refused(
        "train", "rl2", "gridnavi", "--run-dir", path, *TINY
    )


# --- bad input ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ("", ["name a command", "families", "train"]),
        ("trian rl2", ["unknown command 'trian'", "'train'", "evaluate"]),
        ("--seed 1", ["unknown command '--seed'"]),
        ("train", ["name an agent", "rl2", "oracle"]),
        ("train rl3 gridnavi", ["unknown agent 'rl3'", "'rl2'", "non-adaptive"]),
        ("train rl2", ["name a family", "half-cheetah-vel"]),
        ("train rl2 half-cheetah", ["unknown family", "did you mean", "gridnavi"]),
        ("train rl2 --seed 1 gridnavi", ["name a family"]),
        ("train rl2 gridnavi --learnin-rate 1", ["--learnin-rate", "did you mean --learning-rate"]),
        ("train rl2 gridnavi --family.bogus 1", ["unknown option --family.bogus"]),
        ("train rl2 gridnavi stray", ["unexpected argument 'stray'"]),
        ("train rl2 gridnavi --learning-rate fast", ["--learning-rate: 'fast' is not a number"]),
        ("train rl2 gridnavi --total-steps 1.5", ["--total-steps: '1.5' is not a whole number"]),
        ("train rl2 gridnavi --learning-rate -1", ["learning_rate", "-1"]),
        ("train rl2 gridnavi --log-std nan", ["--log-std must be a finite number, got nan"]),
        ("train rl2 gridnavi --num-worlds -3", ["num_worlds", "-3"]),
        ("train rl2 gridnavi --layers 8 -8", ["-8"]),
        ("train rl2 gridnavi --layers", ["layers"]),
        ("train rl2 gridnavi --family.episodes 0", ["episodes", "at least 1"]),
        ("train rl2 gridnavi --family.observation all", ["'all'", "one-hot"]),
        ("train rl2 gridnavi --device gpu", ["unknown device", "'gpu'", "cpu"]),
        ("train rl2 gridnavi --threads -1", ["--threads", "-1"]),
        ("evaluate", ["RUN", "required"]),
        ("evaluate {tmp}", ["is not a run folder"]),
        ("evaluate {tmp}/nowhere", ["nowhere is not a run folder"]),
        ("evaluate {run} --tasks 0", ["tasks", "0"]),
        ("evaluate {run} --tasks -1", ["--tasks", "-1"]),
        ("evaluate {run} --split new", ["'new'", "held-out"]),
        ("evaluate {run} --split out-of-range", ["no split 'out-of-range'", "held-out"]),
        ("evaluate {run} --device gpu", ["unknown device"]),
        ("report", ["name at least one run folder"]),
        ("report {tmp}", ["is not a run folder"]),
        ("report {run} --out {tmp}", ["cannot write", "{tmp}"]),
        ("video {run} --tasks 0", ["--tasks must be 1 to 6"]),
        ("video {run} --out film.avi", ["film.avi", ".mp4 or .gif"]),
        ("beliefs {run}", ["was trained with rl2, which has no belief to draw", "varibad"]),
        ("beliefs {run} --tasks -1", ["--tasks", "-1"]),
        ("bench", ["bench rollout half-cheetah-vel"]),
        ("bench rollin gridnavi", ["unknown benchmark 'rollin'"]),
        ("bench rollout gridnavy", ["unknown family 'gridnavy'", "'gridnavi'"]),
        ("bench rollout gridnavi --seconds inf", ["--seconds must be a finite number"]),
        ("bench rollout gridnavi --peer nobody", ["'nobody'", "gymnasium"]),
        ("families --all", ["unknown option --all"]),
    ],
)
def test_bad_input_gets_one_sentence(args, words, run, tmp_path):
    places = {"run": run[0], "tmp": tmp_path}
    sentence = refused(*args.format(**places).split())
    for word in words:
        assert word.format(**places) in sentence


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_a_mistake_reads_the_same_in_every_encoding(encoding):
    command = [sys.executable, "-m", "metarl.experiments.cli", "evaluate", ".", "--tasks", "x"]
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    found = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert found.returncode == 2
    assert found.stderr == (
        "metarl: evaluate: --tasks: 'x' is not a whole number; "
        "the option is --tasks INT number of tasks (default: 100)\n"
    )


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "junk", "-1e400"])
def test_no_number_of_any_option_may_be_nonsense(value):
    options = parse_pair("rl2", "half-cheetah-vel", [])
    numbers = [
        name
        for name, default in leaves(options)
        if isinstance(default, int | float) and not isinstance(default, bool)
    ]
    assert len(numbers) > 15
    for name in numbers:
        refused("train", "rl2", "half-cheetah-vel", f"--{name}", value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("agent: [", "cannot be read"),
        ("just text", "mapping"),
        ("{agent: rl9, agent_config: {}, family: maze, family_options: {}, training: {}}", "'rl9'"),
        (
            "{agent: rl2, agent_config: {}, family: moon, family_options: {}, training: {}}",
            "'moon'",
        ),
        (
            "{agent: rl2, agent_config: {}, family: maze, family_options: {a: 1}, training: {}}",
            "'a'",
        ),
        ("{agent: rl2}", "missing"),
        ("!!python/object/apply:os.system ['touch pwned']", "cannot be read"),
    ],
)
def test_a_config_that_no_run_wrote_is_refused(content, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(content)
    assert words in refused("evaluate", tmp_path)
    assert not (tmp_path / "pwned").exists()


def test_a_config_that_does_not_fit_the_checkpoint_is_refused(tmp_path):
    assert train(tmp_path / "run")[0] == 0
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace("hidden: 4", "hidden: 5"))
    assert "checkpoint" in refused("evaluate", tmp_path / "run")


def test_a_damaged_checkpoint_is_refused(tmp_path):
    assert train(tmp_path / "run")[0] == 0
    for file in (tmp_path / "run" / "checkpoints").glob("*/agent.pt"):
        file.write_bytes(file.read_bytes()[:-100])
    assert "no checkpoint" in refused("evaluate", tmp_path / "run")


def test_a_damaged_checkpoint_is_passed_over_with_a_warning(tmp_path):
    code, _, err = train(tmp_path / "run", "--total-steps", 500)
    assert code == 0
    newest, older = sorted((tmp_path / "run" / "checkpoints").glob("step-*"), reverse=True)
    (newest / "agent.pt").write_bytes(b"")
    code, _, err = call("evaluate", tmp_path / "run", "--tasks", 2)
    assert code == 0
    assert err.startswith("metarl: warning: ")
    assert older.name in err


# --- how commands end --------------------------------------------------------------------------


def ending(monkeypatch, error):
    """What a command prints and returns when its work raises `error`."""

    def work(_args):
        raise error

    monkeypatch.setattr("metarl.experiments.commands.families.main", work)
    return call("families")


def test_an_interrupt_that_saved_gives_130(monkeypatch):
    code, _, err = ending(monkeypatch, Interrupted("SIGINT: everything is saved"))
    assert (code, err) == (130, "metarl: SIGINT: everything is saved\n")
    assert ending(monkeypatch, KeyboardInterrupt())[0] == 130


def test_diverged_training_gives_1_and_a_sentence(monkeypatch):
    assert ending(monkeypatch, TrainingError("loss is not finite")) == (
        1,
        "",
        "metarl: loss is not finite\n",
    )


def test_a_bug_keeps_its_traceback(monkeypatch):
    with pytest.raises(ZeroDivisionError):
        ending(monkeypatch, ZeroDivisionError())


def test_a_reader_that_goes_away_is_no_error():
    command = [sys.executable, "-m", "metarl.experiments.cli", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_mistakes_and_help_texts_load_nothing_heavy():
    program = (
        "import sys\n"
        "from metarl.experiments.cli import main\n"
        "for line in sys.argv[1:]:\n"
        "    print(main(line.split()), file=sys.stderr)\n"
        "heavy = {'torch', 'gymnasium', 'mujoco', 'matplotlib'} & sys.modules.keys()\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    helps = [f"{verb} --help" for verb in VERBS]
    lines = ["--help", "--version", *helps, "train rl2 nowhere", "nonsense"]
    found = subprocess.run(
        [sys.executable, "-c", program, *lines], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    codes = [int(line) for line in found.stderr.splitlines() if line.isdigit()]
    assert codes == [0] * (len(lines) - 2) + [2, 2]


def test_the_installed_command_is_this_one(tmp_path):
    program = Path(sys.executable).with_name("metarl")
    if not program.is_file():
        pytest.skip("metarl is not installed as a command here")
    environment = {**os.environ, "PYTHONPATH": ""}
    found = subprocess.run(
        [program, "trian"], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert found.returncode == 2
    assert "did you mean 'train'?" in found.stderr

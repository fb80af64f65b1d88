"""`metarl train` ended at random moments and resumed equals the run that was never interrupted."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from metarl.checkpoint import load_checkpoint

SMALL = [
    *["--hidden", "8", "--embedding", "8", "--layers", "8", "--epochs", "2", "--minibatches", "2"],
    *["--num-worlds", "4", "--evaluation-tasks", "4", "--seed", "3", "--threads", "1"],
]
BANDIT = ["rl2", "bandit", *SMALL, "--total-steps", "480", "--evaluate-every", "160"]
CHEETAH = [
    *["rl2", "half-cheetah-vel", *SMALL, "--family.episodes", "1"],
    *["--total-steps", "3200", "--evaluate-every", "1600"],
]
# Small enough for replay and contexts to overflow. The first iteration visits all tasks.
PEARL = [
    *["pearl", "point-sparse", "--num-worlds", "4", "--evaluation-tasks", "4", "--seed", "3"],
    *["--threads", "1", "--layers", "8", "--encoder-layers", "8", "--family.horizon", "5"],
    *["--family.episodes", "3", "--train-tasks", "4", "--collect-tasks", "2"],
    *["--initial-episodes", "1", "--prior-episodes", "1", "--posterior-episodes", "1"],
    *["--updates", "3", "--batch", "8", "--meta-batch", "4", "--context", "6"],
    *["--capacity", "50", "--context-capacity", "30"],
    *["--total-steps", "480", "--evaluate-every", "160"],
]
PEARL_AS_PUBLISHED = [
    *["pearl", "point-dense", *PEARL[2:], "--variant", "paper", "--encoder", "recurrent"],
    *["--independent", "0.5", "--context-episodes", "2", "--initial-actions", "repeated"],
]
# The buffer of trials overflows in the third iteration.
VARIBAD = [
    *["varibad", "gridnavi", *SMALL, "--family.episodes", "2", "--latent", "3", "--capacity", "9"],
    *["--vae-updates", "2", "--vae-batch", "4", "--beliefs", "5", "--decodes", "6"],
    *["--total-steps", "1440", "--evaluate-every", "480"],
]
# "auto" would measure which executor is faster, and the whole run may have measured otherwise.
FEWSHOT = [
    *["fewshot", "maml", "sinusoid", "--executor", "vectorised", "--seed", "3", "--iterations"],
    *["120", "--checkpoint-every", "10", "--evaluate-every", "40", "--evaluation-tasks", "4"],
    *["--tasks", "4", "--no-figures"],
]
ROWS = {
    "bandit": 12 + 3,
    "half-cheetah-vel": 4 + 2,
    "point-sparse": 11 + 3,
    "point-dense": 11 + 3,
    "gridnavi": 12 + 3,
    "maml": 12 + 3,
}
"""lines of metrics.jsonl: iterations and evaluations"""
GENERATORS = ("optimizer", "generator", "task_generator")
PARTS = {
    "rl2": ("network", "return_norm", *GENERATORS),
    "pearl": ("networks", *GENERATORS),
    "varibad": ("network", "return_norm", "vae_optimizer", *GENERATORS),
    "fewshot-maml": ("network", "optimizer", "generator", "executor"),
}
"""what has to be among the saved state of an agent"""
STREAMS = {
    "rl2": set(),
    "pearl": {"replay", "contexts"},
    "varibad": {"trials"},
    "fewshot-maml": set(),
}
"""the memories that are saved beside it"""


class Server:
    """The process of `forked_cli.py`."""

    def __init__(self):
        script = Path(__file__).with_name("forked_cli.py")
        self.process = subprocess.Popen(
            [sys.executable, str(script)],
            cwd=script.parent.parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def train(self, path, words, *, resume=False, **order):
        """Run `metarl train`, or another verb, to its end or to a signal; return its exit code."""
        verb = [] if words[0] == "fewshot" else ["train"]
        argv = [*verb, *words, "--run-dir", str(path), *(["--resume"] if resume else [])]
        self.log = path.with_suffix(".log")
        order = {"argv": argv, "log": str(self.log), "watch": str(path / "metrics.jsonl"), **order}
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())


@pytest.fixture(scope="module")
def server():
    server = Server()
    yield server
    server.process.stdin.close()
    server.process.wait()


@pytest.fixture(scope="module")
def whole(server, tmp_path_factory):
    """Runs that were never interrupted, by family."""
    made = {}
    for words in (BANDIT, CHEETAH, PEARL, PEARL_AS_PUBLISHED, VARIBAD, FEWSHOT):
        path = tmp_path_factory.mktemp("whole") / "run"
        assert server.train(path, words) == 0, server.log.read_text()
        assert len((path / "metrics.jsonl").read_text().splitlines()) == ROWS[words[1]]
        made[words[1]] = path
    return made


def flat(state, prefix=""):
    """A nested state as a dict from path to the bytes of the value."""
    if isinstance(state, dict):
        items = state.items()
    elif isinstance(state, list | tuple):
        items = enumerate(state)
    elif isinstance(state, torch.Tensor):
        return {prefix: (str(state.dtype), tuple(state.shape), state.numpy().tobytes())}
    else:
        return {prefix: (type(state).__name__, repr(state))}
    return {k: v for key, item in items for k, v in flat(item, f"{prefix}/{key}").items()}


def assert_same(path, whole):
    """States, memories and metrics are equal, byte for byte."""
    one, other = (load_checkpoint(p / "checkpoints") for p in (path, whole))
    assert one.step == other.step and one.labels == other.labels
    mine, expected = flat(one.states), flat(other.states)
    for part in PARTS[one.labels["agent"]]:
        assert any(key.startswith((f"/agent/{part}", f"/learner/{part}")) for key in expected)
    assert [key for key in expected if mine.get(key) != expected[key]] == []
    assert mine.keys() == expected.keys()
    assert one.streams.keys() == other.streams.keys() == STREAMS[one.labels["agent"]]
    for name, stream in other.streams.items():
        assert one.streams[name].read_bytes() == stream.read_bytes()
        assert stream.suffix == ".bin" and stream.stat().st_size > 1_000
    assert (path / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    curves = sorted(file.name for file in (whole / "evaluation").iterdir())
    assert sorted(file.name for file in (path / "evaluation").iterdir()) == curves
    for name in curves:
        assert (path / "evaluation" / name).read_bytes() == (
            whole / "evaluation" / name
        ).read_bytes()


def interrupt(server, folder, words, number, count, seed):
    """Interrupt `count` runs at random moments; yield the folder of each and its exit code.

    A run that came to its end before the signal does not count and is repeated.
    """
    dice = random.Random(seed)
    for attempt in range(5 * count):
        path = folder / f"run-{attempt}"
        # Any moment of an iteration takes part: they last some hundredths of a second.
        moment = {"lines": dice.randrange(1, ROWS[words[1]] - 1), "delay": dice.uniform(0, 0.06)}
        code = server.train(path, words, signal=number, **moment)
        if code != 0:
            yield path, code
            count -= 1
        if count == 0:
            return
    pytest.fail("the signals always came too late")


@pytest.mark.parametrize(
    ("words", "count"),
    [
        (BANDIT, 20),
        (CHEETAH, 2),
        (PEARL, 10),
        (PEARL_AS_PUBLISHED, 3),
        (VARIBAD, 6),
        (FEWSHOT, 6),
    ],
    ids=["bandit", "cheetah", "pearl", "pearl-as-published", "varibad", "fewshot"],
)
def test_killed_at_random_moments(server, whole, tmp_path, words, count):
    for path, code in interrupt(server, tmp_path, words, signal.SIGKILL, count, seed=1):
        assert code == -signal.SIGKILL
        assert server.train(path, words, resume=True) == 0, server.log.read_text()
        assert_same(path, whole[words[1]])


def test_killed_again_and_again(server, whole, tmp_path):
    """One run that gets no further than a line or two before it is killed the next time."""
    path, dice, kills = tmp_path / "run", random.Random(2), 0
    for attempt in range(40):
        lines = len((path / "metrics.jsonl").read_text().splitlines()) if attempt else 0
        moment = {"lines": lines + 1, "delay": dice.uniform(0, 0.03)}
        code = server.train(path, BANDIT, resume=attempt > 0, signal=signal.SIGKILL, **moment)
        if code == 0:
            break
        assert code == -signal.SIGKILL, server.log.read_text()
        kills += 1
    assert kills >= 3
    assert server.train(path, BANDIT, resume=True) == 0
    assert_same(path, whole["bandit"])


@pytest.mark.parametrize("words", [BANDIT, FEWSHOT], ids=["bandit", "fewshot"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_polite_signal_saves_and_exits_with_130(server, whole, tmp_path, number, words):
    for path, code in interrupt(server, tmp_path, words, number, 3, seed=number):
        said = server.log.read_text()
        assert code == 130, said
        assert "everything is saved in" in said and "Traceback" not in said
        assert server.train(path, words, resume=True) == 0, server.log.read_text()
        assert_same(path, whole[words[1]])


def wait_for_lines(path, lines, process):
    while process.poll() is None:
        if path.exists() and path.read_bytes().count(b"\n") >= lines:
            return
        time.sleep(0.002)


def test_real_processes_killed_terminated_and_resumed(whole, tmp_path):
    """The same without any short cut: a new interpreter each time."""
    path = tmp_path / "run"
    program = [sys.executable, "-m", "metarl.experiments.cli", "train", *BANDIT]
    program += ["--run-dir", str(path)]
    root = Path(__file__).parent.parent
    codes = []
    for number, lines in ((signal.SIGKILL, 3), (signal.SIGTERM, 8), (None, 0)):
        with (tmp_path / "log").open("ab") as log:
            resume = ["--resume"] if codes else []
            process = subprocess.Popen([*program, *resume], cwd=root, stdout=log, stderr=log)
            if number is not None:
                wait_for_lines(path / "metrics.jsonl", lines, process)
                process.send_signal(number)
            codes.append(process.wait())
    assert codes == [-signal.SIGKILL, 130, 0], (tmp_path / "log").read_text()
    assert_same(path, whole["bandit"])


def test_other_options_or_another_agent_are_refused(server, whole, tmp_path):
    path = whole["bandit"]
    for words, expected in (
        ([*BANDIT, "--hidden", "16"], "agent_config.hidden = 8"),
        (["non-adaptive", "bandit"], "was trained with rl2 on bandit"),
        (CHEETAH, "was trained with rl2 on bandit"),
    ):
        server.log = path.with_suffix(".log")
        server.log.write_text("")
        assert server.train(path, words, resume=True) == 2
        said = server.log.read_text()
        assert expected in said and "Traceback" not in said and len(said.splitlines()) == 1


def test_a_run_is_not_trained_over(server, whole):
    server.log = whole["bandit"].with_suffix(".log")
    server.log.write_text("")
    assert server.train(whole["bandit"], BANDIT) == 2
    assert "already holds a run; add --resume" in server.log.read_text()

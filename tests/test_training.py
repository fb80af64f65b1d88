"""The trainer: budget, schedule, logs, exact resume, signals, failures."""

import dataclasses
import json
import os
import random
import resource
import shutil
import signal
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import nn

from metarl import trainer, training
from metarl.checkpoint import CheckpointWarning, list_checkpoints, load_checkpoint
from metarl.configs import to_plain
from metarl.envs.gridnavi import GridNavi
from metarl.errors import TrainingError, UsageError
from metarl.interruption import Interrupted, catch_signals
from metarl.networks import RunningNorm
from metarl.replay import MultiTaskReplay
from metarl.rollout import run_trials
from metarl.runs import RunConfig, RunFolder
from metarl.training import TrainingConfig, train

FAMILY = GridNavi(episodes=2, horizon=5)
STEPS = 4 * 2 * 5
"""environment steps of one iteration: worlds, episodes, horizon"""
CONFIG = TrainingConfig(
    total_steps=6 * STEPS, num_worlds=4, seed=3, evaluate_every=4 * STEPS, evaluation_tasks=5
)


class Killed(BaseException):
    """Stands for a SIGKILL: nothing catches it."""


class SmallPolicy:
    """Actions of a linear layer, by chance or the most likely."""

    def __init__(self, layer, norm, generator):
        self.layer, self.norm, self.generator = layer, norm, generator

    def begin(self, num_tasks, worlds_per_task):
        pass

    def act(self, obs):
        probabilities = torch.softmax(self.layer(self.norm(obs)), -1)
        if self.generator is None:
            return probabilities.argmax(-1)
        return torch.multinomial(probabilities, 1, generator=self.generator).squeeze(-1)

    def observe(self, step):
        # A careless policy: it uses a generator that belongs to everybody.
        torch.rand(1)


class SmallAgent:
    """Has all that a real agent has: parameters, Adam, a normaliser, generators, replay.

    What it learns is nonsense.

    It also draws from the global generators, as a library that it calls might.
    """

    def __init__(self, seed=0, width=5, capacity=25, on_iteration=lambda number: None):
        torch.manual_seed(seed)
        space = FAMILY.observation_space
        self.norm = RunningNorm(space.shape[0])
        self.layer = nn.Linear(space.shape[0], width)
        self.optimizer = torch.optim.Adam(self.layer.parameters(), 1e-2)
        self.generator = torch.Generator().manual_seed(seed)
        self.on_iteration, self.iterations, self.progress = on_iteration, 0, []
        self.replay = MultiTaskReplay(4, capacity, {"reward": ((), torch.float32)})

    def train_step(self, env, progress):
        self.iterations += 1
        self.progress.append(progress)
        env.set_tasks(env.family.sample_tasks(env.num_envs, "train", self.generator))
        rollout = run_trials(SmallPolicy(self.layer, self.norm, self.generator), env, 2)
        tasks, new = torch.arange(env.num_envs), rollout.flat()
        self.replay.add(tasks, new["valid"], reward=new["reward"])
        old = self.replay.sample(tasks, 3, self.generator)["reward"].mean()
        noise = torch.rand(1) + random.random() + float(np.random.rand()) + old
        loss = torch.softmax(self.layer(self.norm(rollout.obs)), -1)[..., 0].mean() * noise
        self.optimizer.zero_grad()
        loss.sum().backward()
        self.optimizer.step()
        self.norm.update(rollout.obs.flatten(0, -2))
        self.on_iteration(self.iterations)
        returns = rollout.per_episode(rollout.reward, 2).mean((0, 1)).tolist()
        return {
            "steps": rollout.steps,
            "return_first": returns[0],
            "return_last": returns[1],
            "loss": float(loss.detach()),
            "undefined": float("nan"),
        }

    def policy(self, deterministic=True):
        return SmallPolicy(self.layer, self.norm, None if deterministic else self.generator)

    def buffers(self):
        return {"replay": self.replay}

    def state_dict(self):
        return {
            "layer": self.layer.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "norm": self.norm.state_dict(),
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state):
        self.layer.load_state_dict(state["layer"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.norm.load_state_dict(state["norm"])
        self.generator.set_state(state["generator"])


def run_config(config, agent="small"):
    return RunConfig(agent, {}, FAMILY.name, to_plain(FAMILY), to_plain(config))


def start(path, config=CONFIG, **agent):
    """Train from the start in a new run folder."""
    run = RunFolder.create(path, run_config(config))
    return train(SmallAgent(**agent), FAMILY, run, config)


def go_on(path, config=CONFIG, **agent):
    """Resume with an agent of other initial weights and disturbed global generators."""
    torch.manual_seed(99), random.seed(99), np.random.seed(99)
    run = RunFolder.open(path)
    return train(SmallAgent(**{"seed": 99, **agent}), FAMILY, run, config, resume=True)


def rows(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def final(path):
    """All that must be equal: states and replay of the last checkpoint, and metrics.jsonl."""
    checkpoint = load_checkpoint(path / "checkpoints")
    files = [checkpoint.streams["replay"], path / "metrics.jsonl"]
    return checkpoint.step, flat(checkpoint.states), [file.read_bytes() for file in files]


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


def raise_at(number, error):
    def call(iteration):
        if iteration == number:
            raise error

    return call


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    path = tmp_path_factory.mktemp("uninterrupted") / "run"
    start(path)
    return path


def test_the_budget_counts_all_steps(tmp_path):
    agent = SmallAgent()
    config = dataclasses.replace(CONFIG, total_steps=5 * STEPS + 1)
    run = RunFolder.create(tmp_path, run_config(config))
    done = train(agent, FAMILY, run, config)
    assert agent.iterations == done.counters.iterations == 6
    assert done.counters.steps == 6 * STEPS
    assert agent.progress == [i * STEPS / config.total_steps for i in range(6)]
    assert load_checkpoint(run.checkpoints).step == 6 * STEPS


def test_metrics_hold_each_iteration_and_each_evaluation(uninterrupted):
    found = rows(uninterrupted)
    iterations = [row for row in found if "iteration" in row]
    assert [row["iteration"] for row in iterations] == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in iterations] == [STEPS * i for i in range(1, 7)]
    names = {"step", "iteration", "return_first", "return_last", "loss", "undefined"}
    assert all(row.keys() == names and row["undefined"] is None for row in iterations)
    evaluations = [row for row in found if "iteration" not in row]
    assert [row["step"] for row in evaluations] == [4 * STEPS, 6 * STEPS]
    assert all(len(row["evaluation/mean"]) == FAMILY.episodes for row in evaluations)
    names = [path.name for path in sorted((uninterrupted / "evaluation").iterdir())]
    assert names == [f"step-{STEPS * i:09d}.json" for i in (4, 6)]


def test_times_are_kept_apart_from_what_is_deterministic(uninterrupted):
    timing = [json.loads(x) for x in (uninterrupted / "timing.jsonl").read_text().splitlines()]
    assert [row["step"] for row in timing] == [STEPS * i for i in range(1, 7)]
    assert all(row["seconds"] > 0 and row["steps_per_second"] > 0 for row in timing)
    assert list(uninterrupted.glob("events.out.tfevents*"))


def test_the_same_seed_gives_the_same_bits(uninterrupted, tmp_path):
    start(tmp_path)
    assert final(tmp_path) == final(uninterrupted)
    other = tmp_path / "other"
    start(other, seed=1)
    assert final(other) != final(uninterrupted)


def test_evaluation_does_not_change_training(uninterrupted, tmp_path):
    start(tmp_path, dataclasses.replace(CONFIG, evaluate_every=0))
    assert rows(tmp_path) == [row for row in rows(uninterrupted) if "iteration" in row]
    assert not (tmp_path / "evaluation").exists()


def test_the_end_is_evaluated_even_if_the_schedule_does_not_fall_on_it(tmp_path):
    start(tmp_path, dataclasses.replace(CONFIG, evaluate_every=5 * STEPS))
    steps = [row["step"] for row in rows(tmp_path) if "iteration" not in row]
    assert steps == [5 * STEPS, 6 * STEPS]


@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize("at", range(1, 7))
def test_killed_in_an_iteration_the_run_goes_on_to_the_same_bits(
    uninterrupted, tmp_path, every, at
):
    config = dataclasses.replace(CONFIG, checkpoint_every=every)
    with pytest.raises(Killed):
        start(tmp_path, config, on_iteration=raise_at(at, Killed()))
    saved = list_checkpoints(tmp_path / "checkpoints")
    assert len(saved) == min((at - 1) // every, 2)
    # Without a checkpoint the run starts anew, and so must the agent.
    go_on(tmp_path, config, seed=99 if saved else 0)
    assert final(tmp_path) == final(uninterrupted)


@pytest.mark.parametrize(("module", "name"), [(trainer, "save_checkpoint"), (training, "evaluate")])
@pytest.mark.parametrize("at", [1, 2])
def test_killed_before_saving_or_in_an_evaluation_likewise(
    uninterrupted, tmp_path, monkeypatch, module, name, at
):
    calls = []

    def killing(*args, **kwargs):
        calls.append(0)
        if len(calls) == at:
            raise Killed
        return original(*args, **kwargs)

    original = getattr(module, name)
    monkeypatch.setattr(module, name, killing)
    with pytest.raises(Killed):
        start(tmp_path)
    go_on(tmp_path, seed=0 if (name, at) == ("save_checkpoint", 1) else 99)
    assert final(tmp_path) == final(uninterrupted)


@pytest.mark.parametrize("name", ["agent.pt", "replay.bin"])
def test_damage_to_the_newest_checkpoint_costs_an_iteration_and_no_bit(
    uninterrupted, tmp_path, name
):
    with pytest.raises(Killed):
        start(tmp_path, on_iteration=raise_at(5, Killed()))
    (list_checkpoints(tmp_path / "checkpoints")[0] / name).write_bytes(b"damaged")
    with pytest.warns(CheckpointWarning, match=f"going on from step-{3 * STEPS:09d}"):
        go_on(tmp_path)
    assert final(tmp_path) == final(uninterrupted)


def test_resuming_a_finished_run_changes_nothing(uninterrupted, tmp_path):
    shutil.copytree(uninterrupted, tmp_path / "run")
    done = go_on(tmp_path / "run", on_iteration=raise_at(1, AssertionError()))
    assert done.counters.iterations == 6
    assert final(tmp_path / "run") == final(uninterrupted)


@pytest.mark.parametrize(("number", "at"), [(signal.SIGTERM, 1), (signal.SIGINT, 6)])
def test_a_signal_finishes_the_iteration_and_saves(tmp_path, number, at):
    handlers = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]

    def send(iteration):
        if iteration == at:
            os.kill(os.getpid(), number)

    with pytest.raises(Interrupted, match=rf"{number.name}: .*; go on with --resume"):
        start(tmp_path, dataclasses.replace(CONFIG, checkpoint_every=100), on_iteration=send)
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == handlers
    # The signal came in the iteration `at`, and that is what was saved.
    assert load_checkpoint(tmp_path / "checkpoints").step == at * STEPS


@pytest.mark.parametrize("at", [1, 2, 6])
def test_a_run_ended_by_a_signal_goes_on_to_the_same_bits(uninterrupted, tmp_path, at):
    with pytest.raises(Interrupted):
        start(tmp_path, on_iteration=lambda i: i == at and os.kill(os.getpid(), signal.SIGTERM))
    go_on(tmp_path)
    assert final(tmp_path) == final(uninterrupted)


def test_a_second_signal_is_not_caught():
    with catch_signals() as received:
        os.kill(os.getpid(), signal.SIGINT)
        assert received == ["SIGINT"]
        assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_divergence_stops_training_with_the_last_checkpoint_intact(uninterrupted, tmp_path):
    error = TrainingError("small: the gradient is not finite")
    with pytest.raises(TrainingError, match="gradient is not finite; training stopped") as caught:
        start(tmp_path, on_iteration=raise_at(3, error))
    assert f"step-{2 * STEPS:09d}" in str(caught.value)
    go_on(tmp_path)
    assert final(tmp_path) == final(uninterrupted)
    with pytest.raises(TrainingError, match="nothing was saved yet"):
        start(tmp_path / "other", on_iteration=raise_at(1, error))


@contextmanager
def file_size_limit(limit):
    """Let every write beyond `limit` bytes of a file fail, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("limit", [300, 3000])
def test_a_full_disk_stops_training_and_nothing_saved_is_lost(uninterrupted, tmp_path, limit):
    """With 300 bytes the log cannot be written, with 3000 the checkpoint."""
    with pytest.raises(Killed):
        start(tmp_path, on_iteration=raise_at(2, Killed()))
    with file_size_limit(limit), pytest.raises(UsageError, match=r"cannot (save|write)") as caught:
        go_on(tmp_path)
    assert str(tmp_path) in str(caught.value) and "bytes" in str(caught.value)
    assert load_checkpoint(tmp_path / "checkpoints").step == STEPS
    go_on(tmp_path)
    assert final(tmp_path) == final(uninterrupted)


def test_a_checkpoint_of_another_agent_is_refused(uninterrupted, tmp_path):
    run = RunFolder.create(tmp_path, run_config(CONFIG, agent="other"))
    shutil.copytree(uninterrupted / "checkpoints", run.checkpoints)
    with pytest.raises(UsageError, match=r"its agent is 'small', that of run folder .* is 'other'"):
        go_on(tmp_path)


@pytest.mark.parametrize(
    ("agent", "reason"),
    [
        ({"width": 4}, r"size mismatch"),
        ({"capacity": 24}, r"replay: the saved memory has capacity 25, this one has 24"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_in_one_sentence(
    uninterrupted, tmp_path, agent, reason
):
    shutil.copytree(uninterrupted, tmp_path / "run")
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    with pytest.raises(UsageError, match=rf"does not fit: .*{reason}") as caught:
        go_on(tmp_path / "run", **agent)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_other_versions_are_warned_of(uninterrupted, tmp_path, monkeypatch):
    shutil.copytree(uninterrupted, tmp_path / "run")
    now = {**trainer.software_versions(), "torch": "99.0"}
    monkeypatch.setattr(trainer, "software_versions", lambda: now)
    with pytest.warns(CheckpointWarning, match=r"with torch .* and goes on with 99\.0"):
        go_on(tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"total_steps": 0}, "total_steps must be a finite number above 0, got 0"),
        ({"num_worlds": -1}, "num_worlds must be"),
        ({"checkpoint_every": 0}, "checkpoint_every must be"),
        ({"evaluation_tasks": 0}, "evaluation_tasks must be"),
        ({"evaluate_every": -1}, "evaluate_every must be a finite number of at least 0, got -1"),
        ({"seed": -1}, "seed must be a finite number of at least 0, got -1"),
    ],
)
def test_options_are_checked(change, message):
    with pytest.raises(UsageError, match=message):
        dataclasses.replace(CONFIG, **change)

"""What can be read off a memory: the regression, the moments it is taken at, and the command."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from metarl.envs.registry import make_family
from metarl.experiments.cli import main
from metarl.experiments.probe import last_steps, names_of, probe_run, read_off


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def test_reads_what_is_there_and_nothing_else():
    memory, others = normal(4000, 6), normal(3000, 6, seed=1)
    mix = normal(6, 2, seed=2)
    known, known_other = 3.0 + memory @ mix, 3.0 + others @ mix
    task = torch.cat([known, normal(4000, 1, seed=3)], 1)
    truth = torch.cat([known_other, normal(3000, 1, seed=4)], 1)
    r2 = read_off(memory, task, others, truth)
    assert (r2[:2] > 0.999).all()
    assert abs(r2[2]) < 0.01


def test_noise_costs_its_share_of_the_variance():
    memory, others = normal(20_000, 1), normal(20_000, 1, seed=1)
    noisy = [x + 0.5 * normal(20_000, 1, seed=s) for s, x in ((2, memory), (3, others))]
    r2 = read_off(memory, noisy[0], others, noisy[1])
    assert r2[0] == pytest.approx(1.0 / 1.25, abs=0.01)


def test_the_penalty_is_that_of_ridge_regression():
    """Against the minimum of the penalised squares, found by a least-squares solver."""
    memory, task = normal(50, 3), normal(50, 2, seed=1)
    others, truth = normal(40, 3, seed=2), normal(40, 2, seed=3)
    mean, std = memory.mean(0), memory.std(0)
    x = ((memory - mean) / std).numpy()
    rows = np.vstack([x, np.sqrt(1e-2 * 50) * np.eye(3)])
    centre = task.mean(0).numpy()
    targets = np.vstack([task.numpy() - centre, np.zeros((3, 2))])
    weights = np.linalg.lstsq(rows, targets, rcond=None)[0]
    guess = ((others - mean) / std).numpy() @ weights + centre
    error = np.square(guess - truth.numpy()).mean(0)
    expected = 1.0 - error / truth.numpy().var(0)
    np.testing.assert_allclose(read_off(memory, task, others, truth), expected, atol=1e-10)


def test_memories_are_taken_where_episodes_end():
    episode = torch.tensor([[0, 0], [0, 1], [1, 1], [1, 2], [2, 2]]).unsqueeze(-1)
    active = episode < 2
    rollout = SimpleNamespace(episode=episode, active=active)
    assert last_steps(rollout, 2).tolist() == [[1, 0], [3, 2]]


@pytest.mark.parametrize(
    ("name", "first", "count"),
    [("half-cheetah-vel", "speed", 1), ("point-dense", "goal 0", 2), ("gridnavi", "task 0", 25)],
)
def test_every_number_of_a_task_has_a_name(name, first, count):
    family = make_family(name)
    tasks = family.sample_tasks(3, "train", torch.Generator().manual_seed(0))
    names = names_of(SimpleNamespace(family=family), tasks)
    assert names[0] == first
    assert len(set(names)) == len(names) == tasks.features().shape[1] == count


def test_what_is_the_same_in_all_tasks_is_left_out(monkeypatch):
    def remembered(run, tasks, split, seed):
        numbers = normal(tasks, 3, seed=seed)
        numbers[:, 1] = 0.1 if split == "held-out" else numbers[:, 1]
        return numbers.expand(2, -1, -1), numbers, ("a", "b", "c")

    monkeypatch.setattr("metarl.experiments.probe.remembered", remembered)
    names, r2 = probe_run(None, 200, seed=0)
    assert names == ("a", "c")
    assert r2.shape == (2, 2)
    assert (r2 > 0.99).all()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("probe") / "run"
    command = f"train rl2 half-cheetah-vel --total-steps 3000 --num-worlds 4 --run-dir {folder}"
    assert main([*command.split(), "--family.preset", "promp", "--evaluation-tasks", "2"]) == 0
    return folder


def test_command(run, tmp_path, capsys):
    picture = tmp_path / "probe.png"
    assert main(["evaluate", str(run), "--tasks", "4"]) == 0
    command = ["probe", str(run), "--tasks", "10", "--out", str(picture), "--json"]
    assert main(command) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["names"] == ["speed"]
    assert np.shape(figures["r2"]["rl2"]) == (2, 1)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_bad_input(run, tmp_path, capsys):
    assert main(["probe", str(run), "--tasks", "3"]) == 2
    assert "at least 10" in capsys.readouterr().err
    assert main(["probe", str(tmp_path)]) == 2
    other = tmp_path / "other"
    command = f"train non-adaptive gridnavi --total-steps 500 --num-worlds 4 --run-dir {other}"
    assert main(command.split()) == 0
    capsys.readouterr()
    assert main(["probe", str(other), "--tasks", "10"]) == 2
    assert "only the agents rl2, varibad and pearl" in capsys.readouterr().err
    assert main(["probe", str(other), str(run), "--tasks", "10"]) == 2
    assert "on one family" in capsys.readouterr().err

"""What the documents show works: the code in them runs, the links lead somewhere."""

import importlib.util
import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from metarl.adaptation import evaluate
from metarl.agents.rl2 import RL2, RL2Config
from metarl.envs.metaworld.names import SKILLS, pattern_of
from metarl.envs.metaworld.package import metaworld
from metarl.envs.registry import FAMILIES
from metarl.experiments.agents import AGENTS
from metarl.experiments.cli import VERBS, main
from metarl.experiments.fewshot import DATASETS, METHODS
from metarl.experiments.loading import load_run

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "docs/gpu.md", "docs/meta-world.md")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`(metarl [a-z][^`]*)`")
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)[^)]*\)")


def blocks(document: str, language: str) -> list[str]:
    """The fenced blocks of `language` in a document at the root."""
    found = FENCE.findall((ROOT / document).read_text())
    return [text for name, text in found if name == language]


def as_module(source: str, path: Path):
    """Save `source` at `path` and import it from there."""
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def boat(tmp_path_factory):
    """The family of CONTRIBUTING.md as a module."""
    source, _, _ = blocks("CONTRIBUTING.md", "python")
    yield as_module(source, tmp_path_factory.mktemp("contributing") / "boat.py")
    del sys.modules["boat"]


@pytest.fixture(scope="module")
def pendulums(tmp_path_factory):
    """The gymnasium env of CONTRIBUTING.md as a module."""
    _, source, _ = blocks("CONTRIBUTING.md", "python")
    yield as_module(source, tmp_path_factory.mktemp("contributing") / "pendulums.py")
    del sys.modules["pendulums"]


@pytest.mark.parametrize("name", ["boat", "pendulums"])
def test_the_worked_families_have_the_style_they_teach(name, request):
    file = request.getfixturevalue(name).__file__
    found = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--config", ROOT / "pyproject.toml", file],
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stdout + found.stderr


def test_the_worked_family_splits_its_tasks(boat):
    family = boat.Boat()
    train, held_out = (
        family.sample_tasks(2000, split, torch.Generator().manual_seed(seed)).current
        for seed, split in enumerate(("train", "held-out"))
    )
    assert train.min() < -0.9
    assert train.max() > 0.9
    assert not torch.isin(held_out, train).any()
    again = family.sample_tasks(2000, "train", torch.Generator().manual_seed(0)).current
    assert torch.equal(train, again)


def test_the_worked_family_steps_saves_and_restores(boat):
    family = boat.Boat(horizon=3)
    env = family.make_worlds(4, seed=1)
    env.set_tasks(boat.BoatTasks(current=torch.tensor([0.5, -0.5])))
    start, _ = env.reset()
    # Full speed against the current: 0.05 s at 1 m/s minus half of it.
    actions = torch.tensor([[-1.0], [-9.0], [1.0], [1.0]])
    obs, reward, _, _, _ = env.step(actions)
    expected = start + 0.05 * torch.tensor([[-0.5], [-0.5], [0.5], [0.5]])
    torch.testing.assert_close(obs, expected)
    torch.testing.assert_close(reward, -expected.abs().squeeze(-1))

    other = family.make_worlds(4, seed=2)
    other.load_state_dict(env.state_dict())
    for _ in range(5):
        ours, theirs = env.step(actions), other.step(actions)
        assert all(torch.equal(a, b) for a, b in zip(ours[:4], theirs[:4], strict=True))
    assert ours[3].all()  # the sixth step in all ends the second episode of three


def test_an_agent_trains_on_the_worked_family(boat):
    family = boat.Boat(horizon=10)
    env = family.make_worlds(64, seed=1)
    agent = RL2(RL2Config(chunk=0, epochs=3, minibatches=4), family.spec(), seed=1)
    returns = [agent.train_step(env, i / 15)["return_last"] for i in range(15)]
    assert sum(returns[-4:]) / 4 > sum(returns[:4]) / 4 + 0.7
    tasks = family.sample_tasks(64, "held-out", torch.Generator().manual_seed(0))
    curve = evaluate(agent.policy(), env, tasks, episodes=2)
    assert curve.episodes == 2


def test_the_worked_gymnasium_env_gives_its_tasks_to_its_worlds(pendulums):
    family = pendulums.Pendulums()
    env = family.make_worlds(4)
    for split in family.splits:
        tasks = family.sample_tasks(2, split, torch.Generator().manual_seed(0))
        env.set_tasks(tasks)
        worlds = [world.env.unwrapped for world in env._vector.envs]
        for name, letter in (("length", "l"), ("mass", "m")):
            drawn = tasks.tensors()[name].repeat_interleave(2)
            assert [getattr(world, letter) for world in worlds] == drawn.tolist()
        assert 0.5 <= drawn.min() <= drawn.max() <= 1.5


def test_the_training_of_the_worked_gymnasium_env_runs(pendulums, tmp_path, monkeypatch, capsys):
    """With fewer worlds, steps and tasks, and nothing else changed."""
    _, _, source = blocks("CONTRIBUTING.md", "python")
    for large, small in (("300_000", "1_500"), ("num_worlds=32", "num_worlds=4"), ("64", "2")):
        assert large in source
        source = source.replace(large, small)
    monkeypatch.chdir(tmp_path)
    exec(compile(source, "CONTRIBUTING.md", "exec"), {})
    assert "Summary(mean=[" in capsys.readouterr().out
    run = load_run(tmp_path / "runs" / "pendulums")
    assert run[1] == pendulums.Pendulums()


def test_the_ten_lines_of_the_readme_run(capsys):
    """With fewer worlds, iterations and tasks, and nothing else changed."""
    source, *_ = blocks("README.md", "python")
    for large, small in (
        ("make_worlds(64", "make_worlds(8"),
        ("300", "2"),
        ("tasks(64", "tasks(4"),
    ):
        assert large in source
        source = source.replace(large, small)
    exec(compile(source, "README.md", "exec"), {})
    first, second, summary = capsys.readouterr().out.splitlines()
    assert float(first) < 0.0
    assert float(second) < 0.0
    assert "iqm" in summary


def commands() -> list[str]:
    """The lines of the README that call `metarl`."""
    lines = "\n".join(blocks("README.md", "")).splitlines()
    return [line for line in lines if line.startswith("metarl ")]


def on_a_gpu() -> list[str]:
    """The commands of the page on GPUs, in its tables too."""
    document = "docs/gpu.md"
    lines = "\n".join(blocks(document, "")).splitlines()
    fenced = [line for line in lines if line.startswith("metarl ")]
    text = FENCE.sub("", (ROOT / document).read_text())
    inline = [" ".join(command.split()) for command in INLINE.findall(text)]
    return fenced + [line for line in inline if " --" in line and "FAMILY" not in line]


@pytest.mark.parametrize("line", [*commands(), *on_a_gpu()])
def test_the_command_lines_of_the_documents_are_understood(line, capsys):
    _, verb, *words = line.split()
    options = [word for word in words if word.startswith("--")]
    # What decides which options there are comes first: the agent and family, or what to compare.
    comparing = words[:1] if words[:1] == ["--compare"] else []
    rest = words[len(comparing) :]
    chosen = comparing + list(itertools.takewhile(lambda word: not word.startswith("--"), rest))
    options = [word for word in options if word not in comparing]
    if verb == "study":
        chosen = chosen[:1]
    elif verb not in {"train", "bench", "fewshot"}:
        chosen = []
    assert main([verb, *chosen, "--help"]) == 0
    shown = capsys.readouterr().out
    assert [option for option in options if option not in shown] == []


def test_the_readme_shows_every_command():
    assert {line.split()[1] for line in commands()} == set(VERBS)


@pytest.mark.parametrize("name", [*AGENTS, *dict.fromkeys(map(pattern_of, FAMILIES))])
def test_the_tables_of_the_readme_name_every_agent_and_family(name):
    rows = [line for line in (ROOT / "README.md").read_text().splitlines() if line[:2] == "| "]
    assert any(f"`{name}`" in row.split("|")[1] for row in rows)


def cells(heading: str) -> list[list[str]]:
    """The rows of the page on Meta-World below the row that begins with `heading`."""
    _, _, rest = (ROOT / "docs/meta-world.md").read_text().partition(f"| {heading} |")
    rows = rest.partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def test_the_page_on_meta_world_has_all_its_families_and_skills():
    listed = " ".join(row[0] for row in cells("family"))
    ours = {pattern_of(name) for name in FAMILIES if name.startswith("metaworld-")}
    assert set(re.findall("`(.*?)`", listed)) == ours
    assert [row[0].strip("`") for row in cells("skill")] == list(SKILLS)
    assert all(len(row) == 3 and all(row) for row in cells("skill"))


def test_the_page_on_meta_world_has_the_skills_of_its_benchmarks():
    package = metaworld().env_dict

    def names(environments):
        return ", ".join(name.removesuffix("-v3") for name in environments)

    train, held_out = ({row[0]: row[i] for row in cells("benchmark")} for i in (1, 2))
    assert train["ML10"] == names(package.ML10_V3["train"])
    assert train["MT10"] == names(package.MT10_V3)
    more = train["MT25"].removeprefix("those of MT10 and ")
    assert f"{train['MT10']}, {more}" == names(package.MT25_V3)
    assert set(package.MT25_V3) == set(package.ML25_V3["train"])
    assert set(package.MT50_V3) == {f"{skill}-v3" for skill in SKILLS}
    for name in ("ML10", "ML25", "ML45"):
        assert held_out[name] == names(getattr(package, f"{name}_V3")["test"])
    everything = [*package.ML45_V3["train"], *package.ML45_V3["test"]]
    assert sorted(everything) == sorted(package.MT50_V3)


@pytest.mark.parametrize("name", [*METHODS, *DATASETS])
def test_the_readme_names_every_few_shot_method_and_data_set(name):
    _, _, section = (ROOT / "README.md").read_text().partition("## The supervised few-shot core")
    assert f"`{name}`" in section.partition("\n## ")[0]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document):
    targets = LINK.findall((ROOT / document).read_text())
    folder = (ROOT / document).parent
    missing = [t for t in targets if "://" not in t and not (folder / t).exists()]
    assert missing == []

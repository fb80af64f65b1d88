"""The house keeps its shape: floors, packages, lengths, linters, light imports."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLOORS = {
    "metarl": {"metarl"},
    "envs": {"metarl", "envs"},
    "agents": {"metarl", "agents"},
    "experiments": {"metarl", "envs", "agents", "experiments"},
}
"""Which folders the modules of a folder may import from."""
UPPER = FLOORS.keys() - {"metarl"}
MAX_MODULE_LINES = 350
IMPORT_PATH = re.compile(r"metarl(\.\w+)+(:\w+)?")


def modules(folder: str) -> list[Path]:
    """The Python files of a top-level folder."""
    return sorted((ROOT / folder).rglob("*.py"))


def imported_names(source: str) -> Iterator[str]:
    """Every dotted name that `source` imports, by a statement or by a string such as a registry's.

    Relative imports come out with their leading dots.
    """
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)
        elif (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and IMPORT_PATH.fullmatch(node.value)
        ):
            yield node.value.partition(":")[0]


def wrong_imports(folder: str, source: str) -> list[str]:
    """The names that a module in `folder` must not import."""
    wrong = []
    for name in imported_names(source):
        top, _, rest = name.partition(".")
        below = rest.partition(".")[0]
        floor = below if below in UPPER else "metarl"
        bare = name.startswith(".") or top in {*UPPER, "tests"}
        if bare or (top == "metarl" and floor not in FLOORS[folder]):
            wrong.append(name)
    return wrong


@pytest.mark.parametrize("folder", FLOORS)
def test_imports_go_down_only(folder):
    files = modules(folder)
    assert files
    wrong = {str(f.relative_to(ROOT)): wrong_imports(folder, f.read_text()) for f in files}
    assert {path: names for path, names in wrong.items() if names} == {}


@pytest.mark.parametrize(
    ("folder", "source"),
    [
        ("metarl", "import metarl.envs"),
        ("metarl", "from metarl import agents"),
        ("metarl", "def f():\n    from metarl.experiments.cli import main"),
        ("metarl", "table = {'bandit': 'metarl.envs.bandits:Bandit'}"),
        ("envs", "from metarl.agents.rl2 import RL2"),
        ("agents", "import_module('metarl.envs.bandits')"),
        ("envs", "import envs"),
        ("experiments", "from agents.rl2 import RL2"),
        ("metarl", "from . import tasks"),
        ("agents", "from ..envs import bandits"),
        ("experiments", "import tests.conftest"),
    ],
)
def test_the_floor_check_sees_wrong_imports(folder, source):
    assert wrong_imports(folder, source)


@pytest.mark.parametrize(
    ("folder", "source"),
    [
        ("metarl", "from metarl.tasks import Family"),
        ("envs", "from metarl.envs.robots import Robot\nfrom metarl import random"),
        ("experiments", "import metarl.envs.bandits\nimport_module('metarl.agents.rl2')"),
        ("agents", "import torch\nname = 'metarl'"),
    ],
)
def test_the_floor_check_allows_the_right_imports(folder, source):
    assert wrong_imports(folder, source) == []


def test_the_package_list_equals_the_packages_on_disk():
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    on_disk = set()
    for name, folder in setup["package-dir"].items():
        for init in (ROOT / folder).rglob("__init__.py"):
            inside = init.parent.relative_to(ROOT / folder).parts
            on_disk.add(".".join([name, *inside]))
    assert set(setup["packages"]) == on_disk
    assert set(setup["package-dir"].values()) == set(FLOORS)


def test_every_folder_with_modules_is_a_package():
    folders = {file.parent for folder in FLOORS for file in modules(folder)}
    assert [str(f) for f in folders if not (f / "__init__.py").is_file()] == []


@pytest.mark.parametrize("folder", FLOORS)
def test_modules_stay_short(folder):
    lengths = {f.relative_to(ROOT): len(f.read_text().splitlines()) for f in modules(folder)}
    assert {str(path): n for path, n in lengths.items() if n > MAX_MODULE_LINES} == {}


def test_type_checkers_find_the_folders_under_the_import_name():
    for folder in UPPER:
        assert (ROOT / "typings" / "metarl" / folder).resolve() == ROOT / folder


def test_ruff_is_clean():
    """Docstrings (D) and annotations (ANN) of every public callable are among the rules."""
    found = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "."], cwd=ROOT, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stdout + found.stderr


def test_mypy_strict_is_clean():
    found = subprocess.run([sys.executable, "-m", "mypy"], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr
    checked = int(re.search(r"in (\d+) source files", found.stdout).group(1))
    assert checked == sum(len(modules(folder)) for folder in FLOORS)


@pytest.mark.parametrize("folder", sorted(UPPER))
def test_folders_refuse_to_be_imported_bare(folder):
    found = subprocess.run(
        [sys.executable, "-c", f"import {folder}"], cwd=ROOT, capture_output=True, text=True
    )
    assert found.returncode == 1
    assert f"import metarl.{folder}" in found.stderr.splitlines()[-1]


def test_the_command_line_answers_without_heavy_imports():
    program = (
        "import sys\n"
        "from metarl.experiments.cli import main\n"
        "try:\n"
        "    code = main()\n"
        "except SystemExit as end:\n"
        "    code = end.code\n"
        "heavy = {'torch', 'numpy', 'scipy', 'gymnasium', 'mujoco', 'matplotlib', 'tensorboard'}\n"
        "sys.exit(f'imported {sorted(heavy & sys.modules.keys())}' if heavy & sys.modules.keys()\n"
        "         else code)\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", program, "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr
    assert "families" in found.stdout

"""The set-up: pinned versions fit the stated ranges, and `make` says what it lacks."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("metarl", "envs", "agents", "experiments")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
INSTALLED_EXTRAS = ("dev", "video", "onnx")
"""The extras that `make` installs."""


def pins() -> dict[str, str]:
    """Versions in constraints.txt by canonical name."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


def wanted() -> list[Requirement]:
    """All that `make` asks for by name."""
    extras = PROJECT["optional-dependencies"]
    texts = PROJECT["dependencies"] + [text for e in INSTALLED_EXTRAS for text in extras[e]]
    return [Requirement(text) for text in texts]


@pytest.mark.parametrize("requirement", wanted(), ids=lambda r: r.name)
def test_every_dependency_is_pinned_within_its_range(requirement):
    assert requirement.specifier.contains(pins()[canonicalize_name(requirement.name)])


def imported_modules() -> set[str]:
    """The top-level modules from elsewhere that the packages import."""
    files = [file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py")]
    names = set()
    for node in (node for file in files for node in ast.walk(ast.parse(file.read_text()))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").partition(".")[0])
    return names - sys.stdlib_module_names - {"metarl"}


def test_every_import_is_a_stated_dependency():
    texts = chain(PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())
    stated = {canonicalize_name(Requirement(text).name) for text in texts}
    installed_as = packages_distributions()
    unstated = {
        module
        for module in imported_modules()
        if stated.isdisjoint(map(canonicalize_name, installed_as.get(module, [module])))
    }
    assert unstated == set()
    assert {"torch", "yaml"} <= imported_modules()


def test_make_installs_the_extras_that_are_pinned():
    (extras,) = re.findall(r"^EXTRAS \?= (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert tuple(extras.split(",")) == INSTALLED_EXTRAS


@pytest.fixture
def checkout(tmp_path):
    """A checkout in which nothing is installed."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


@pytest.mark.parametrize("goal", ["demo", "test"])
def test_make_says_that_there_is_no_python(checkout, goal):
    found = subprocess.run(
        ["make", goal, "CANDIDATES=no-such-python"], cwd=checkout, capture_output=True, text=True
    )
    assert found.returncode != 0
    assert "metarl needs Python 3.11 or newer" in found.stderr
    assert not (checkout / ".venv").exists()


def test_make_passes_over_a_python_that_is_too_old(checkout):
    old = checkout / "old-python"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    new = checkout / "new-python"
    new.write_text('#!/bin/sh\ncase "$1" in -c) ;; *) echo "new-python $@" >log;; esac\n')
    new.chmod(0o755)
    subprocess.run(
        ["make", ".venv/bin/python", "CANDIDATES=./old-python ./new-python"],
        cwd=checkout,
        capture_output=True,
    )
    assert (checkout / "log").read_text() == "new-python -m venv .venv\n"


@pytest.mark.parametrize("name", [".ci/run", "docker/Dockerfile", "docker/Dockerfile.gpu"])
def test_whoever_sets_up_uses_make(name):
    """There is one way to install, so that it is the tested one."""
    lines = (ROOT / name).read_text().splitlines()
    commands = "\n".join(line for line in lines if not line.startswith("#"))
    assert re.search(r"\bmake (install|test)\b", commands)
    assert "pip install" not in commands

"""What users install: the wheel, in a clean environment, away from the checkout."""

import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("metarl", "envs", "agents", "experiments")
DATA = {".py", ".typed", ".xml", ".json", ".yaml", ".html", ".css", ".js", ".npz"}
"""Endings of the files that a package needs when it runs."""


def run(*command: str | Path, cwd: Path) -> str:
    """The output of a command that has to succeed."""
    found = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from the source distribution of a copy of the checkout."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for name in FOLDERS:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", copy / "dist", copy, cwd=copy)
    (built,) = (copy / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def clean(wheel, tmp_path_factory):
    """The Python of an environment that holds the wheel and borrows only the dependencies."""
    folder = tmp_path_factory.mktemp("clean")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    run(
        *(sys.executable, "-m", "pip", "--python", python, "install"),
        *("--no-deps", "--no-index", "--disable-pip-version-check", wheel),
        cwd=folder,
    )
    (site,) = folder.glob("lib/python*/site-packages")
    # A folder named in a .pth file is searched, but its own .pth files are not obeyed: an editable
    # install of the checkout stays out.
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def test_the_wheel_holds_every_file_that_runs(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = set()
    for folder in FOLDERS:
        prefix = "metarl" if folder == "metarl" else f"metarl/{folder}"
        for file in (ROOT / folder).rglob("*"):
            if file.suffix in DATA and "__pycache__" not in file.parts:
                expected.add(f"{prefix}/{file.relative_to(ROOT / folder).as_posix()}")
    assert expected <= names, sorted(expected - names)
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"metarl"}


def test_every_module_imports_away_from_the_checkout(clean, tmp_path):
    program = (
        "import importlib, pkgutil, sys\n"
        "import metarl\n"
        "for module in pkgutil.walk_packages(metarl.__path__, 'metarl.'):\n"
        "    if not module.name.endswith('.__main__'):\n"
        "        print(importlib.import_module(module.name).__file__)\n"
    )
    files = [Path(line) for line in run(clean, "-c", program, cwd=tmp_path).splitlines()]
    assert [f for f in files if not f.is_relative_to(clean.parent.parent)] == []
    there = {file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py")}
    left_out = {file for file in there if file.name == "__main__.py"} | {
        ROOT / "metarl/__init__.py"
    }
    assert len(files) == len(there - left_out)


def test_the_command_is_installed(clean, tmp_path):
    assert "families" in run(clean.parent / "metarl", "--help", cwd=tmp_path)

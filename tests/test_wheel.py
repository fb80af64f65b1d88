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
def checkout(tmp_path_factory):
    """A copy of what the packages are built from."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for name in FOLDERS:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


@pytest.fixture(scope="module")
def wheel(checkout, tmp_path_factory):
    """The wheel, built from the source distribution."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, checkout, cwd=out)
    (built,) = out.glob("*.whl")
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


def test_the_wheel_holds_every_file_that_runs(checkout, wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = set()
    for folder in FOLDERS:
        prefix = "metarl" if folder == "metarl" else f"metarl/{folder}"
        for file in (checkout / folder).rglob("*"):
            if file.suffix in DATA:
                expected.add(f"{prefix}/{file.relative_to(checkout / folder).as_posix()}")
    assert expected <= names, sorted(expected - names)
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"metarl"}


def test_every_module_imports_away_from_the_checkout(checkout, clean, tmp_path):
    program = (
        "import importlib, pkgutil, sys\n"
        "import metarl\n"
        "for module in pkgutil.walk_packages(metarl.__path__, 'metarl.'):\n"
        "    if not module.name.endswith('.__main__'):\n"
        "        print(importlib.import_module(module.name).__file__)\n"
    )
    files = [Path(line) for line in run(clean, "-c", program, cwd=tmp_path).splitlines()]
    assert [f for f in files if not f.is_relative_to(clean.parent.parent)] == []
    there = {file for folder in FOLDERS for file in (checkout / folder).rglob("*.py")}
    left_out = {file for file in there if file.name == "__main__.py"}
    assert len(files) == len(there - left_out - {checkout / "metarl" / "__init__.py"})


def test_the_command_is_installed(clean, tmp_path):
    assert "families" in run(clean.parent / "metarl", "--help", cwd=tmp_path)

"""Families that are not of this package, on the command line: `module:Class`."""

import json
import sys

import pytest

from metarl.envs.registry import make_family
from metarl.errors import UsageError
from metarl.experiments.cli import main
from metarl.experiments.loading import open_run

SOURCE = '''
from dataclasses import dataclass
from typing import ClassVar

import torch
from gymnasium.envs.classic_control import CartPoleEnv
from metarl.gymnasium_family import GymnasiumFamily
from metarl.tasks import Family, striped

number = 3

@dataclass(frozen=True)
class Poles(GymnasiumFamily):
    """Poles on carts."""
    name: ClassVar[str] = "poles"
    episodes: int = 2
    horizon: int = 9
    longest: float = 1.0

    def sample(self, n, split, generator):
        u = torch.rand(n, dtype=torch.float64, generator=generator)
        return {"length": self.longest * striped(u, split)}

    def make(self, task):
        env = CartPoleEnv()
        env.length = task["length"]
        return env
'''
TRAIN = (
    "--total-steps 100 --num-worlds 4 --threads 1 --hidden 8 --layers 8 --family.longest 2".split()
)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A folder with the module `poles_of_mine`, in which the command line is called."""
    (tmp_path / "poles_of_mine.py").write_text(SOURCE)
    (tmp_path / "unfinished.py").write_text("import something_that_is_missing")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("poles_of_mine", None)


def test_a_family_in_the_present_folder_is_trained_resumed_and_evaluated(folder, capsys):
    assert main(["train", "rl2", "poles_of_mine:Poles", *TRAIN]) == 0
    again = ["--resume", "--total-steps", "100", "--run-dir", "runs/rl2-poles-1"]
    assert main(["train", "rl2", "poles_of_mine:Poles", *again, "--threads", "1"]) == 0
    assert open_run("runs/rl2-poles-1").family.longest == 2.0
    capsys.readouterr()

    del sys.modules["poles_of_mine"]
    evaluate = ["evaluate", "runs/rl2-poles-1", "--tasks", "2", "--threads", "1", "--json"]
    assert main(evaluate) == 2
    assert "with metarl --import poles_of_mine COMMAND" in capsys.readouterr().err
    assert "poles_of_mine" not in sys.modules

    assert main(["--import", "poles_of_mine", *evaluate]) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert len(last["mean"]) == 2 and 1.0 <= last["mean"][0] <= 9.0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere:Poles", "no module 'nowhere' is installed or in the folder "),
        ("poles_of_mine.inner:Poles", "no module 'poles_of_mine.inner' is installed"),
        (":Poles", "no module '' is installed"),
        ("..:Poles", "no module '..' is installed"),
        ("poles_of_mine:", "module poles_of_mine has no ''"),
        ("poles_of_mine:Pole", "module poles_of_mine has no 'Pole'"),
        ("poles_of_mine:number", "number must be a complete subclass of Family"),
        ("poles_of_mine:Family", "Family must be a complete subclass of Family"),
    ],
)
def test_what_is_no_family_is_refused_in_one_sentence(name, message, capsys):
    assert main(["train", "rl2", name]) == 2
    assert message in capsys.readouterr().err
    with pytest.raises(UsageError):
        make_family(name)


def test_a_module_that_cannot_import_what_it_needs_says_so_itself():
    with pytest.raises(ModuleNotFoundError, match="something_that_is_missing"):
        make_family("unfinished:Poles")


@pytest.mark.parametrize("words", [[], ["poles_of_mine"]])
def test_import_needs_a_module_and_a_command(words, capsys):
    assert main(["--import", *words]) == 2
    assert "--import takes a module, and a command after it" in capsys.readouterr().err

"""Export the policy of a run: its files, a recorded trial, and the proof that both agree."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

import gymnasium as gym
import numpy as np

from metarl import __version__
from metarl.agents.deployable import Deployable
from metarl.deployment import Description
from metarl.errors import UsageError
from metarl.experiments.agents import AGENTS
from metarl.experiments.export_files import has_onnx, onnx_bytes, programs, pt2_bytes
from metarl.experiments.export_trials import Checked, check, eager_microseconds, record
from metarl.experiments.loading import LoadedRun, open_run
from metarl.tasks import Split

Format = Literal["onnx", "pt2"]
LOOP = "control_loop.py"
TRIAL = "trial.npz"
FILES = {"policy.onnx", "policy.pt2", TRIAL, LOOP}

CONTROL_LOOP = '''"""A control loop; here a recorded trial plays the robot."""

from pathlib import Path

import numpy as np

from metarl.deployment import load

here = Path(__file__).parent
trial = np.load(here / "trial.npz")
policy = load(here / "policy.{ending}")
policy.begin()  # a new, unknown task
largest = 0.0
for t, obs in enumerate(trial["obs"]):  # read your sensors instead
    policy.act(obs, noise=trial["noise"][t])  # send what it returns to the motors; leave noise out
    largest = max(largest, float(np.abs(policy.chosen - trial["action"][t]).max()))
    told = (trial[name][t] for name in ("next_obs", "reward", "terminated", "truncated"))
    policy.observe(*told)  # what the action brought, reward included: it learns from that
print(f"{{len(trial['obs'])}} actions, at most {{largest:.1e}} from the recorded ones")
'''


@dataclass(frozen=True)
class Exported:
    """What an export left."""

    checked: dict[Format, Checked]
    """by format"""
    steps: int
    """of the recorded trial"""
    eager_microseconds: float
    """median time of one act and observe of the trained policy, on one core"""
    missing: list[str]
    """a sentence for each format that was not written though nobody left it out"""


def open_for_export(path: Path, episodes: int = 0) -> LoadedRun:
    """Open a run whose policy shall leave; see `metarl.experiments.loading.open_run`.

    Args:
        path: the run folder.
        episodes: of a trial; by default the family's or, where the policy takes gradient steps, one
            after the last step that it was trained for: a robot tries one episode at a time.

    Raises:
        UsageError: if it cannot be opened, or there are too few episodes for a gradient step.
    """
    run = open_run(path, episodes=episodes)
    if not AGENTS[run.config.agent].plans:
        family = replace(run.family, episodes=episodes or run.family.episodes)
        return replace(run, family=family)
    config: Any = getattr(run.agent, "config")  # noqa: B009
    if episodes and episodes <= config.rollouts:
        raise UsageError(
            f"export: {run.config.agent} takes a gradient step after {config.rollouts} episodes; "
            f"--episodes must be 0 or more than that, got {episodes}"
        )
    least = config.rollouts * config.inner_steps + 1
    return run if episodes else open_run(path, episodes=least)


def deployable_of(run: LoadedRun) -> Deployable:
    """The policy of a run as programs.

    Raises:
        UsageError: if its agent cannot be exported.
    """
    entry = AGENTS[run.config.agent]
    able = ", ".join(name for name, other in AGENTS.items() if other.deployable)
    if not entry.deployable:
        raise UsageError(
            f"export: {run.config.agent} cannot be exported; agents that can are {able}"
        )
    found: Deployable = entry.deploy(run.agent)
    return found


def choose_formats(
    asked: Sequence[Format], deployable: Deployable
) -> tuple[list[Format], list[str]]:
    """The formats to write, by default all that are possible, and why others are not.

    Raises:
        UsageError: if one that was asked for is not possible.
    """
    obstacles: dict[Format, str] = {}
    if deployable.rollouts:
        obstacles["onnx"] = (
            "agents that take gradient steps cannot be written as ONNX, which has no operators for "
            "their regression and gradient; --formats pt2 is what there is"
        )
    elif not has_onnx():
        obstacles["onnx"] = "ONNX is not installed: pip install 'metarl[onnx]'"
    for name in asked:
        if name in obstacles:
            raise UsageError(f"export: {obstacles[name]}")
    formats = [f for f in get_args(Format) if f not in obstacles and (f in asked or not asked)]
    return formats, list(obstacles.values()) if not asked else []


def describe(run: LoadedRun, deployable: Deployable) -> Description:
    """What the exported files say of the policy."""
    spec = run.family.spec()
    space = spec.action_space
    bounds = [space.low, space.high] if isinstance(space, gym.spaces.Box) else [np.zeros(0)] * 2
    low, high = (bound.astype(float).tolist() for bound in bounds)
    return Description(
        agent=run.config.agent,
        family=run.config.family,
        trained_steps=run.step,
        version=__version__,
        episodes=spec.episodes,
        horizon=spec.horizon,
        obs_dim=spec.obs_dim,
        choices=int(space.n) if isinstance(space, gym.spaces.Discrete) else 0,
        low=low,
        high=high,
        noise=deployable.noise,
        noise_dim=deployable.noise_dim,
        inputs=deployable.inputs,
        state={name: list(x.shape) for name, x in deployable.state.items()},
        whole=[name for name, x in deployable.state.items() if not x.is_floating_point()],
        rollouts=deployable.rollouts,
        gradient_steps=deployable.gradient_steps,
    )


def export(
    run: LoadedRun, out: Path, formats: Sequence[Format], *, split: Split, seed: int
) -> Exported:
    """Write the folder `out`; it is there as a whole or not at all.

    Raises:
        UsageError: if the agent or the format is not possible, or the folder cannot be written.
        TrainingError: if a written policy does not act as the trained one.
    """
    require_free(out)
    run.family.check_split(split)
    deployable = deployable_of(run)
    chosen, missing = choose_formats(formats, deployable)
    write = {"onnx": onnx_bytes, "pt2": pt2_bytes}
    with replaced(out) as folder:
        description, trial = describe(run, deployable), record(run, deployable, split, seed)
        exported, arrays = programs(deployable, description), cast("dict[str, Any]", trial)
        np.savez_compressed(folder / TRIAL, **arrays)
        (folder / LOOP).write_text(CONTROL_LOOP.format(ending=chosen[0]))
        for name in chosen:
            (folder / f"policy.{name}").write_bytes(write[name](exported, description))
        checked = {name: check(folder / f"policy.{name}", trial) for name in chosen}
    microseconds = eager_microseconds(run.agent.policy(), trial)
    return Exported(checked, len(trial["obs"]), microseconds, missing)


def require_free(out: Path) -> None:
    """Raise `UsageError` unless `out` can be made, is empty, or holds an earlier export."""
    if out.is_dir():
        others = sorted(entry.name for entry in out.iterdir() if entry.name not in FILES)
        if others:
            raise UsageError(
                f"export: {out} is not an earlier export (it holds {others[0]}); choose another "
                "folder"
            )
    elif out.exists() or out.is_symlink():
        raise UsageError(f"export: {out} is not a folder; choose another")


@contextmanager
def replaced(out: Path) -> Iterator[Path]:
    """A folder to write to, which takes the place of `out` if nothing goes wrong.

    Raises:
        UsageError: if it cannot be written.
    """
    out = out.resolve()
    new, old = (out.with_name(f"{out.name}.{ending}") for ending in ("new.tmp", "old.tmp"))

    def clean_up() -> None:
        if old.exists() and not out.exists():  # stopped just between the two renames below
            old.rename(out)
        for folder in (new, old):
            shutil.rmtree(folder, ignore_errors=True)

    try:
        clean_up()
        new.mkdir(parents=True)
        yield new
        if out.exists():
            out.rename(old)
        new.rename(out)
    except OSError as error:
        raise UsageError(f"export: cannot write {out}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            clean_up()

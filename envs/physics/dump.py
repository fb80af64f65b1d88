"""Files that hold the last step of an unstable world, and their replay."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import mujoco
import numpy as np
import torch

from metarl.envs.physics.cpu import MODEL, MOVED, CpuPhysics
from metarl.envs.physics.interface import Snapshot
from metarl.envs.physics.model import Model, load_model
from metarl.errors import UsageError


@dataclass(frozen=True)
class Replay:
    """What happened when a dumped step was taken again."""

    unstable: bool
    reason: str
    """MuJoCo's warning counters that rose, or the check that failed"""
    world: int
    step: int
    """control steps of the episode before the one that failed"""
    task: np.ndarray
    """float32 `[F]`: features of the task that the world ran"""


def save_dump(
    path: Path, model: Model, snapshot: Snapshot, *, world: int, step: int, task: np.ndarray
) -> None:
    """Write an .npz file that `replay` reads; plain arrays and text only, nothing pickled."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        path,
        allow_pickle=False,
        state=snapshot.state,
        substeps=snapshot.substeps,
        reason=snapshot.reason,
        model_file=model.path,
        xml=model.xml,
        mujoco_version=mujoco.__version__,
        world=world,
        step=step,
        task=task,
        **snapshot.fields,
    )


def _load_dumped_model(path: str, xml: str, folder: str | Path | None) -> Model:
    """The model file itself if it is still the same, since it may refer to meshes beside it."""
    file = Path(path)
    if file.is_file() and file.read_text(encoding="utf-8") == xml:
        return load_model(file, folder=folder)
    return load_model(path, xml=xml, folder=folder)


def replay(path: str | Path, *, folder: str | Path | None = None) -> Replay:
    """Take the dumped step again, in one fresh world, and say what happens.

    Args:
        path: of the dump.
        folder: that the model's files may be in, see `load_model`; a dump cannot say so itself.

    Raises:
        UsageError: if the file is missing or is not such a dump.
    """
    try:
        with np.load(path, allow_pickle=False) as dump:
            content = {name: dump[name] for name in dump.files}
        model = _load_dumped_model(str(content["model_file"]), str(content["xml"]), folder)
        physics = CpuPhysics(model, 1)
        fields = {k: v for k, v in content.items() if k.startswith((MODEL, MOVED))}
        own = {k: torch.from_numpy(v[None]) for k, v in fields.items()}
        physics.load_state_dict({"rows": torch.from_numpy(content["state"][None]), **own})
        unstable = physics.step(physics.field("ctrl").clone(), int(content["substeps"]))
        return Replay(
            unstable is not None,
            physics.snapshot(0).reason,
            int(content["world"]),
            int(content["step"]),
            content["task"],
        )
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise UsageError(f"{path} is not a dump of an unstable world: {error}") from None

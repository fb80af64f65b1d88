"""The part that every family of simulated robots shares: stepping, instability, saved state."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metarl.envs.physics.dump import save_dump
from metarl.envs.physics.interface import Physics, Snapshot
from metarl.tasks import Family
from metarl.vector import VectorEnv

_log = logging.getLogger("metarl.physics")


class PhysicsWorlds(VectorEnv):
    """A vector env on `Physics`; a robot adds its reset, its reward and its observation."""

    max_dumps = 20
    """files in a folder at most, so that a run that blows up at every step cannot fill a disk"""

    def __init__(
        self,
        family: Family,
        physics: Physics,
        n_substeps: int,
        *,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ) -> None:
        """Lay the worlds of `physics` out with tensors on `device`, `n_substeps` a control step."""
        super().__init__(family, physics.num_worlds, device=device, seed=seed)
        self.physics = physics
        self.n_substeps = n_substeps
        self.dump_dir: Path | None = None
        """folder for dumps of unstable worlds; None: they are only reported"""

    def _apply_tasks(self, tasks: Any) -> None:
        """Tasks that change only the reward need nothing more than to be kept."""

    def _simulate(self, ctrl: Tensor) -> Tensor | None:
        """One control step; what `Physics.step` returns, after a report of unstable worlds."""
        awake = None if self._resting is None else ~self._resting
        unstable = self.physics.step(ctrl, self.n_substeps, awake)
        if unstable is None:
            return None
        if bool(unstable.any()):
            self._report(unstable)
        return unstable.to(self.device)

    def dump_unstable_to(self, folder: Path) -> None:
        """Write a dump of every unstable world into `folder`, which is made when needed."""
        self.dump_dir = folder

    def _report(self, unstable: Tensor) -> None:
        """Log each unstable world and write its dump."""
        assert self._world_tasks is not None
        features = self._world_tasks.features().cpu()
        for world in unstable.nonzero()[:, 0].tolist():
            snapshot = self.physics.snapshot(world)
            step, task = int(self._elapsed[world]), features[world].numpy()
            _log.warning(
                "%s: the simulation of world %d, task %s, became unstable at step %d (%s); "
                "its episode ends%s",
                self.family.name,
                world,
                task.tolist(),
                step,
                snapshot.reason,
                self._dump(snapshot, world, step, task),
            )

    def _dump(self, snapshot: Snapshot, world: int, step: int, task: np.ndarray) -> str:
        """Write a dump if there is a folder for it; the words that end the report."""
        if self.dump_dir is None:
            return ""
        dumps = len(list(self.dump_dir.glob("unstable-*.npz")))
        if dumps >= self.max_dumps:
            return f"; {self.dump_dir} has {dumps} dumps already"
        path = self.dump_dir / f"unstable-{dumps:03d}-world{world}-step{step}.npz"
        try:
            save_dump(path, self.physics.model, snapshot, world=world, step=step, task=task)
        except OSError as error:
            return f"; {path} cannot be written: {error.strerror or error}"
        return f"; replay it from {path}"

    def _world_state(self) -> dict[str, Tensor]:
        return self.physics.state_dict()

    def _load_world_state(self, state: dict[str, Tensor]) -> None:
        self.physics.load_state_dict(state)

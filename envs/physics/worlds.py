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
from metarl.tasks import Family, TaskBatch
from metarl.vector import Info, VectorEnv

_log = logging.getLogger("metarl.physics")


class UnstableReports:
    """What is told of worlds that blow up: a line in the log, and a file to replay them from."""

    max_dumps = 20
    """files in a folder at most, so that a run that blows up at every step cannot fill a disk"""
    max_lines = 20
    """worlds told of one by one, of those that became unstable together"""

    def __init__(self, family: str) -> None:
        """Report on worlds of the family of this name."""
        self.family = family
        self.folder: Path | None = None
        """folder for dumps of unstable worlds; None: they are only reported"""

    def report(
        self, physics: Physics, unstable: Tensor, worlds: Tensor, tasks: TaskBatch, elapsed: Tensor
    ) -> None:
        """Log each unstable world and write its dump.

        Args:
            physics: of C simulations.
            unstable: bool `[C]`.
            worlds: int64 `[C]`, which of all worlds each simulation is.
            tasks: of all worlds.
            elapsed: steps of their episodes before this one.
        """
        features = tasks.features().cpu()
        indices = unstable.nonzero()[:, 0].tolist()
        for index in indices[: self.max_lines]:
            world = int(worlds[index])
            snapshot = physics.snapshot(index)
            step, task = int(elapsed[world]), features[world].numpy()
            _log.warning(
                "%s: the simulation of world %d, task %s, became unstable at step %d (%s); "
                "its episode ends%s",
                self.family,
                world,
                task.tolist(),
                step,
                snapshot.reason,
                self._dump(physics, snapshot, world, step, task),
            )
        if len(indices) > self.max_lines:
            more = len(indices) - self.max_lines
            _log.warning("%s: %d more worlds became unstable with them", self.family, more)

    def no_room(self, limit: str, steps: Tensor) -> None:
        """Log that worlds had more contacts or constraints than there is room for.

        Args:
            limit: `contacts` or `constraints`.
            steps: int64 `[W]`, in how many control steps.
        """
        _log.warning(
            "%s: in %d of %d worlds (%d control steps in all) there was no room for all %s, and "
            "some were left out, so that bodies may have passed through each other; raise the "
            "family's option max-%s",
            self.family,
            int((steps > 0).sum()),
            len(steps),
            int(steps.sum()),
            limit,
            limit,
        )

    def _dump(
        self, physics: Physics, snapshot: Snapshot, world: int, step: int, task: np.ndarray
    ) -> str:
        """Write a dump if there is a folder for it; the words that end the report."""
        if self.folder is None:
            return ""
        dumps = len(list(self.folder.glob("unstable-*.npz")))
        if dumps >= self.max_dumps:
            return f"; {self.folder} has {dumps} dumps already"
        path = self.folder / f"unstable-{dumps:03d}-world{world}-step{step}.npz"
        try:
            save_dump(path, physics.model, snapshot, world=world, step=step, task=task)
        except OSError as error:
            return f"; {path} cannot be written: {error.strerror or error}"
        return f"; replay it from {path}"


class PhysicsWorlds(VectorEnv):
    """A vector env on `Physics`; a robot adds its reset, its reward and its observation."""

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
        self._dumps = UnstableReports(family.name)
        self._unstable_at = torch.zeros_like(self._elapsed)

    def _apply_tasks(self, tasks: Any) -> None:
        """Tasks that change only the reward need nothing more than to be kept."""

    def set_tasks(self, tasks: TaskBatch) -> None:
        """See `VectorEnv.set_tasks`."""
        self.check()
        super().set_tasks(tasks)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Tensor, Info]:
        """See `VectorEnv.reset`."""
        self.check()
        return super().reset(seed=seed, options=options)

    def check(self) -> None:
        """See `VectorEnv.check`: simulations that blew up, and contacts that found no room."""
        if not self.physics.deferred or self._world_tasks is None:
            return
        troubles = self.physics.troubles()
        unstable = troubles.unstable > 0
        if bool(unstable.any()):
            worlds, elapsed = torch.arange(self.num_envs), self._unstable_at.cpu()
            self._dumps.report(self.physics, unstable, worlds, self._world_tasks, elapsed)
        for limit, steps in troubles.overflow.items():
            if bool(steps.any()):
                self._dumps.no_room(limit, steps)

    def _simulate(self, ctrl: Tensor) -> Tensor | None:
        """One control step; what `Physics.step` returns, after a report of unstable worlds."""
        awake = None if self._resting is None else ~self._resting
        unstable = self.physics.step(ctrl, self.n_substeps, awake)
        if unstable is None:
            return None
        if self.physics.deferred:
            unstable = unstable.to(self.device)
            self._unstable_at = torch.where(unstable, self._elapsed, self._unstable_at)
        elif bool(unstable.any()):
            assert self._world_tasks is not None
            worlds = torch.arange(self.num_envs)
            self._dumps.report(self.physics, unstable, worlds, self._world_tasks, self._elapsed)
        return unstable.to(self.device)

    def dump_unstable_to(self, folder: Path) -> None:
        """Write a dump of every unstable world into `folder`, which is made when needed."""
        self._dumps.folder = folder

    def positions(self) -> Tensor:
        """MuJoCo's `qpos` of all worlds `[W, nq]`, live."""
        return self.physics.field("qpos")

    def _world_state(self) -> dict[str, Tensor]:
        return self.physics.state_dict()

    def _load_world_state(self, state: dict[str, Tensor]) -> None:
        self.physics.load_state_dict(state)

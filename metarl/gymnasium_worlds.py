"""The worlds of a `GymnasiumFamily`: gymnasium steps them, in turn or in processes of their own.

What an env is in the middle of an episode cannot be asked for. A saved state therefore holds the
seed with which the episode began and the actions since; an env goes on from there by living through
them again, and it is checked that it arrives where the saved one was.
"""

from __future__ import annotations

import logging
from collections import deque
from contextlib import suppress
from functools import partial
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from torch import Tensor

from metarl.errors import UsageError
from metarl.gymnasium_env import World, one_by_one
from metarl.tasks import TaskBatch
from metarl.vector import Info, VectorEnv

if TYPE_CHECKING:
    from metarl.gymnasium_family import GymnasiumFamily

_log = logging.getLogger("metarl.gymnasium")


class WorkerError(RuntimeError):
    """An env failed in a process of its own; the message ends with the traceback from there."""


def reset_seeds(numbers: Tensor) -> Tensor:
    """Seeds below 2^31, int64 `[W]`, from uniform `numbers` `[W, 2]` of 23 random bits each."""
    bits = (numbers.double() * 2.0**23).long()
    return (bits[:, 0] << 8) | (bits[:, 1] >> 15)


class GymnasiumWorlds(VectorEnv):
    """Gymnasium envs stepped together, each with its own task; `close` ends their processes."""

    family: GymnasiumFamily
    # Of the class, so that `close` works on worlds whose construction failed.
    _vector: gym.vector.VectorEnv[Any, Any, Any] | None = None

    def __init__(
        self,
        family: GymnasiumFamily,
        num_worlds: int,
        *,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ) -> None:
        """Lay out `num_worlds` worlds; their envs are made when there are tasks."""
        super().__init__(family, num_worlds, device=device, seed=seed)
        self._observation = torch.zeros(num_worlds, family.spec().obs_dim, device=self.device)
        self._seeds = torch.zeros(num_worlds, dtype=torch.int64)
        # Of every step that an episode still running has seen, the actions of all worlds.
        self._history: deque[Tensor] = deque(maxlen=family.horizon)
        self._behind = False
        """The envs have yet to live through what was restored."""

    def close_extras(self, **kwargs: Any) -> None:
        """Close all envs, and end their processes where they have any."""
        vector, self._vector = self._vector, None
        if vector is not None:
            try:
                vector.close()
            except (EOFError, OSError):  # a process has gone already
                _end(vector)

    def _open(self) -> None:
        """Let gymnasium set up its vector env, whose worlds still have no task."""
        isolated = self.family.vectorization == "async"
        makers = [partial(World, self.family, isolated)] * self.num_envs
        kind = AsyncVectorEnv if isolated else SyncVectorEnv
        self._vector = kind(makers, autoreset_mode=AutoresetMode.DISABLED)
        self.closed = False

    def _ask(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method of the vector env; nothing of it is left when that fails.

        Raises:
            WorkerError: if it failed in another process.
        """
        vector = self._vector
        if vector is None:
            raise UsageError(f"{self.family.name}: the worlds are closed; call set_tasks and reset")
        try:
            answer = getattr(vector, method)(*args, **kwargs)
            if method == "set_attr" or "failed" in answer[-1]:
                self._raise_noted(vector.get_attr("error"))  # type: ignore[attr-defined]
        except BaseException as error:
            self._vector = None
            dead = isinstance(error, EOFError | ConnectionError) and _exit_codes(vector)
            _end(vector)
            if dead:
                raise WorkerError(
                    f"{self.family.name}: the process of an env ended by itself, with exit code "
                    f"{', '.join(map(str, dead))}"
                ) from error
            raise
        return answer

    def _raise_noted(self, errors: tuple[tuple[bool, str] | None, ...]) -> None:
        """Raise the first error that a world in another process has noted, if there is one."""
        for world, error in enumerate(errors):
            if error is not None:
                foreseen, text = error
                if foreseen:
                    raise UsageError(text)
                raise WorkerError(f"{self.family.name}: the env of world {world} failed\n{text}")

    # --- the hooks -------------------------------------------------------------------------

    def _apply_tasks(self, tasks: TaskBatch) -> None:
        if self._vector is None:
            self._open()
        self._behind = False
        self._ask("set_attr", "task", one_by_one(tasks))

    def _reset_worlds(self, mask: Tensor) -> None:
        if not bool(mask.any()):
            return
        seeds = reset_seeds(self._reset_noise(mask, 2)).cpu()
        self._seeds = torch.where(mask.cpu(), seeds, self._seeds)
        options = None if bool(mask.all()) else {"reset_mask": mask.cpu().numpy()}
        obs, _ = self._ask("reset", seed=self._seeds.tolist(), options=options)
        self._observation = torch.from_numpy(obs).to(self.device)
        self._behind = False

    def _advance(self, actions: Tensor) -> tuple[Tensor, Tensor, Info]:
        if self._behind:
            self._catch_up()
        taken = actions.detach().cpu().clone()
        answer = self._ask("step", taken.numpy())
        self._history.append(taken)
        obs, reward, terminated, truncated = (
            torch.from_numpy(x).to(self.device) for x in answer[:4]
        )
        reward = reward.float()
        sound = obs.isfinite().all(-1) & reward.isfinite()
        if not bool(sound.all()):
            self._report(~sound)
        self._observation = obs.masked_fill(~sound.unsqueeze(-1), 0.0)
        info = {"truncated": truncated, "unstable": ~sound, **self._success(answer[4])}
        return reward.masked_fill(~sound, 0.0), terminated & sound, info

    def _success(self, info: Info) -> Info:
        """The worlds' success, NaN where an env says nothing; empty if none does."""
        if "success" not in info:
            return {}
        given = np.where(info["_success"], info["success"], np.nan)
        return {"success": torch.from_numpy(given).float().to(self.device)}

    def _report(self, unsound: Tensor) -> None:
        """Log the worlds that gave numbers that are not finite."""
        assert self._world_tasks is not None
        features = self._world_tasks.features()
        for world in unsound.nonzero()[:, 0].tolist():
            _log.warning(
                "%s: world %d, task %s, gave an observation or reward that is not finite at step "
                "%d; its episode ends, and the step is not learned from",
                self.family.name,
                world,
                features[world].tolist(),
                int(self._elapsed[world]),
            )

    def _observe(self) -> Tensor:
        return self._observation.clone()

    # --- saving and going on ---------------------------------------------------------------

    def _world_state(self) -> dict[str, Tensor]:
        if not self._was_reset:
            return {}
        steps = int(self._elapsed.max())
        recent = list(self._history)[len(self._history) - steps :]
        return {
            "observation": self._observation.clone(),
            "seeds": self._seeds.clone(),
            "actions": torch.stack(recent) if recent else torch.zeros(0, self.num_envs),
        }

    def _load_world_state(self, state: dict[str, Tensor]) -> None:
        if not state:
            return
        self._observation = state["observation"].to(self.device).clone()
        self._seeds = state["seeds"].cpu().clone()
        self._history.clear()
        self._history.extend(state["actions"].cpu().clone())
        # Only who steps on needs the envs; agents set new tasks when they are resumed.
        self._behind = True

    def _catch_up(self) -> None:
        """Let the envs live through what was restored."""
        self._behind = False
        seen, seeds, lengths = self._observation.cpu().numpy(), self._seeds, self._elapsed.tolist()
        actions = [a.numpy() for a in self._history]
        past = [
            (int(seeds[w]), [a[w] for a in actions[len(actions) - n :]], seen[w])
            for w, n in enumerate(lengths)
        ]
        self._ask("set_attr", "past", past)


def _exit_codes(vector: gym.vector.VectorEnv[Any, Any, Any]) -> list[int]:
    """The exit codes of the processes that have ended; empty where there are none."""
    if not isinstance(vector, AsyncVectorEnv):
        return []
    # A pipe breaks a moment before its process has ended.
    ended = wait([process.sentinel for process in vector.processes], timeout=5.0)
    for process in vector.processes:
        if process.sentinel in ended:
            process.join()
    return [code for process in vector.processes if (code := process.exitcode) is not None]


def _end(vector: gym.vector.VectorEnv[Any, Any, Any]) -> None:
    """Close a vector env in which something went wrong."""
    if isinstance(vector, AsyncVectorEnv):
        for process in vector.processes:
            process.kill()
            process.join()
        vector.closed = True
    else:
        with suppress(Exception):  # what went wrong first is what has to be told
            vector.close()

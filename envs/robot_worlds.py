"""Robots in worlds that are stepped together: what is the same for all of them.

Resets, autoreset, unstable simulations, domain randomisation; `Robot` says what differs.

Shapes: `W` worlds, `O` observation, `U` actuators.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from metarl import random
from metarl.envs.disturbances import Disturbances, Settings, model_fields
from metarl.envs.physics import Physics, PhysicsWorlds
from metarl.envs.randomization import Randomization
from metarl.vector import Info

if TYPE_CHECKING:
    from metarl.envs.robot import Robot, RobotTask

_DISTURBANCES = "disturbances."
_SALTS = (0x5851F42D4C957F2D, 0x14057B7EF767814F)


class RobotWorlds(PhysicsWorlds):
    """Robots stepped together, each with its own task and, if they are randomised, its own body."""

    family: Robot

    def __init__(
        self,
        family: Robot,
        physics: Physics,
        *,
        device: torch.device | str = "cpu",
        seed: int = 0,
        hidden: Randomization | None = None,
    ) -> None:
        """Put the worlds of `physics`, of the family's model or one like it, behind the contract.

        Args:
            family: the robot.
            physics: its simulations; a control step takes as long as the family's.
            device: of observations and rewards.
            seed: of the worlds' randomness.
            hidden: what else is unlike the model file, and unknown to all: constants and
                disturbances at the middle of their ranges.
        """
        n_substeps = max(round(family.dt / physics.timestep), 1)
        super().__init__(family, physics, n_substeps, device=device, seed=seed)
        self._state = {name: physics.field(name) for name in family.reads}
        compiled = physics.model.compiled
        ranges = torch.from_numpy(compiled.actuator_ctrlrange.copy())
        ranges[~torch.from_numpy(compiled.actuator_ctrllimited.astype(bool))] = torch.tensor(
            [-1.0, 1.0], dtype=ranges.dtype
        )
        centre, half = ranges.mean(1), 0.5 * (ranges[:, 1] - ranges[:, 0])
        self._plain = not bool((centre != 0).any() or (half != 1).any())
        self._centre, self._half = centre.to(physics.device), half.to(physics.device)
        self._bound = float(family.action_space.high[0])
        self._hidden = None if hidden is None else hidden.bind(physics.model, family.observations)
        self._disturbances: Disturbances | None = None
        self._spread = torch.ones(self.num_envs, 1, dtype=torch.float64, device=physics.device)

    def _apply_tasks(self, tasks: Any) -> None:
        self._task: RobotTask = tasks.to(self.physics.device)
        drawn = [(self.family.parameters, self._task.dynamics)]
        if self._hidden is not None:
            middle = self._hidden.middle(self.num_envs).to(self.physics.device)
            drawn.append((self._hidden, middle))
        shared = self.physics.shared
        fields = model_fields(drawn, self.physics.model, shared)

        def current(name: str) -> Tensor:
            return fields[name] if name in fields else shared(name)

        fields |= self.family.task_fields(self._task, current)
        if fields:
            self.physics.randomise(fields)
        if not any(len(parameters) for parameters, _ in drawn):
            return
        settings = Settings.of(drawn, self.num_envs, self.family.observations)
        self._spread = settings.initial_state.unsqueeze(-1)
        self._disturbances = None
        if settings.any:
            actuators = self.physics.model.compiled.nu
            self._disturbances = Disturbances(settings, actuators, self.family.dt)

    def _reset_worlds(self, mask: Tensor) -> None:
        nq, nv = (self.physics.field(name).shape[1] for name in ("qpos", "qvel"))
        centred = 2.0 * self._reset_noise(mask, nq + nv) - 1.0
        noise = self.family.reset_noise
        dq, dv = noise * centred[:, :nq], noise * centred[:, nq:]
        if self.family.normal_velocities:
            # Normal numbers from uniform ones on (-1, 1).
            dv = noise * 2.0**0.5 * torch.erfinv(centred[:, nq:])
        where = self.physics.device
        spread = self._spread
        qpos, qvel = self.family.initial_state(
            self._task, spread * dq.to(where), spread * dv.to(where)
        )
        self.physics.reset(mask, qpos, qvel)
        if self._disturbances is not None:
            first = self._readings(self._disturbances, step=-1)
            self._disturbances.reset(mask.to(where), *first)

    def _advance(self, actions: Tensor) -> tuple[Tensor, Tensor, Info]:
        family, command = self.family, self.commands(actions)
        before = {name: self._state[name].clone() for name in family.remembers}
        unstable = self._simulate(self._executed(command))
        reward = family.reward(before, self._state, command, self._task)
        fallen = family.terminated(self._state)
        if self._disturbances is not None:
            self._disturbances.sense(*self._readings(self._disturbances, self._elapsed))
        terminated = torch.zeros_like(reward, dtype=torch.bool) if fallen is None else fallen
        reward, terminated = reward.float().to(self.device), terminated.to(self.device)
        if unstable is None:
            return reward, terminated, {"unstable": torch.zeros_like(terminated)}
        # A world that blew up has moved by anything, even by NaN.
        reward = reward.masked_fill(unstable, 0.0)
        return reward, terminated & ~unstable, {"unstable": unstable}

    def commands(self, actions: Tensor) -> Tensor:
        """What actions `[W, U]` ask of the actuators, in their units, on the physics' device."""
        command = actions.to(self.physics.device).clamp(-self._bound, self._bound)
        if self._bound != 1.0:
            command = command / self._bound
        return command if self._plain else self._centre + self._half * command

    def _executed(self, command: Tensor) -> Tensor:
        """What the actuators get."""
        disturbances = self._disturbances
        if disturbances is None:
            return command
        u = self._noise(random.uniform, disturbances.draws, self._elapsed)
        executed = disturbances.command(command, u)
        if disturbances.pushes:
            self.physics.field("xfrc_applied")[:, disturbances.settings.pushed] = disturbances.force
        return executed

    def _noise(
        self, draw: Callable[[Tensor, Tensor, int], Tensor], k: int, step: Tensor | int
    ) -> Tensor:
        """`k` numbers for every world at a step, of a stream that resets do not draw from.

        So a robot that is not disturbed begins its episodes as one that is.
        """
        draws = (self._draws << 20) + step
        salt = _SALTS[draw is random.normal]
        return draw(self._keys ^ salt, draws, k).to(self.physics.device)

    def _readings(
        self, disturbances: Disturbances, step: Tensor | int
    ) -> tuple[Tensor, Tensor | None]:
        """What there is to see, and standard normal numbers for the noise on it."""
        obs = self.family.observe(self._state).float()
        return obs, self._noise(random.normal, obs.shape[1], step) if disturbances.noisy else None

    def _observe(self) -> Tensor:
        if self._disturbances is not None:
            return self._disturbances.observation().to(self.device)
        return self.family.observe(self._state).float().to(self.device)

    def _world_state(self) -> dict[str, Tensor]:
        under_way = {} if self._disturbances is None else self._disturbances.state_dict()
        return super()._world_state() | {_DISTURBANCES + k: x for k, x in under_way.items()}

    def _load_world_state(self, state: dict[str, Tensor]) -> None:
        mine = {k: v for k, v in state.items() if k.startswith(_DISTURBANCES)}
        super()._load_world_state({k: v for k, v in state.items() if k not in mine})
        if self._disturbances is not None:
            self._disturbances.load_state_dict(
                {k.removeprefix(_DISTURBANCES): v for k, v in mine.items()}
            )

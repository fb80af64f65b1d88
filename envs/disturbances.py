"""What domain randomisation does to worlds: their models, and what lies between policy and robot.

`model_fields` turns drawn numbers into fields of MuJoCo's model. `Disturbances` delays and drops
actions, delays observations and makes them noisy, and pushes the robot.

Shapes: `W` worlds, `P` numbers of a randomisation, `O` observation, `U` actuators, `D` delay.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from metarl.envs.physics.model import Model
from metarl.envs.randomization import Columns, Parameters

Drawn = Sequence[tuple[Parameters, Tensor]]
"""Randomisations with the numbers `[W, P]` that were drawn; they act one after the other."""

PUSH_SECONDS, PUSHES_PER_SECOND = 0.1, 1.0
"""how long a push lasts, and how many begin on average"""

_SCALED: dict[str, tuple[str, ...]] = {
    "body_mass": ("body_mass",),
    "body_inertia": ("body_inertia",),
    "density": ("body_mass", "body_inertia"),
    "friction": ("geom_friction",),
    "damping": ("dof_damping", "dof_dampingpoly"),
    "armature": ("dof_armature",),
    "actuator_strength": ("actuator_gear",),
    "actuator_gain": ("actuator_gainprm", "actuator_biasprm"),
    "gravity": ("opt.gravity",),
}
"""the model fields that a factor multiplies"""
_ADDED = {"com_offset": "body_ipos", "payload": "body_mass"}
"""the model field that a number is added to"""
MODEL_FIELDS = tuple(dict.fromkeys([*chain(*_SCALED.values()), *_ADDED.values()]))
"""the model fields that randomisation can give each world of its own"""


def model_fields(drawn: Drawn, model: Model, shared: Callable[[str], Tensor]) -> dict[str, Tensor]:
    """The model fields of each world, as `Physics.randomise` takes them.

    Args:
        drawn: what was drawn for the worlds.
        model: the robot.
        shared: the model's own values of a field, repeated for every world `[W, ...]`.

    Returns:
        Field name to values `[W, ...]`, for the fields that something acts on.
    """
    fields: dict[str, Tensor] = {}
    for parameters, values in drawn:
        for quantity, names in _SCALED.items():
            for _, columns, numbers in parameters.of(quantity, values):
                for name in names:
                    field = fields[name] if name in fields else shared(name).clone()
                    if bool(field.any()):
                        fields[name] = _multiply(field, name, columns, numbers, model)
        for quantity, name in _ADDED.items():
            for _, columns, numbers in parameters.of(quantity, values):
                field = fields[name] if name in fields else shared(name).clone()
                ids = list(columns.ids)
                field[:, ids] += numbers.view(len(numbers), -1, *field.shape[2:])
                fields[name] = field
    return fields


def _multiply(field: Tensor, name: str, columns: Columns, numbers: Tensor, model: Model) -> Tensor:
    """A field `[W, E, ...]` with factors on the rows of the columns' elements."""
    if name.startswith("opt."):
        return field * numbers
    ids = list(columns.ids)
    if name.startswith("dof_"):
        joints = model.compiled.dof_jntid.tolist()
        ids = [dof for joint in ids for dof, of in enumerate(joints) if of == joint]
    if numbers.shape[1] == len(ids) * math.prod(field.shape[2:]):
        factors = numbers.view(len(numbers), len(ids), *field.shape[2:])  # one for every number
    else:  # one for every element, or one for all of them
        factors = numbers.view(len(numbers), -1, *[1] * (field.dim() - 2))
    field[:, ids] *= factors
    return field


@dataclass(frozen=True)
class Settings:
    """How strongly each world is disturbed."""

    action_delay: Tensor
    """int64 `[W]`, control steps"""
    action_dropout: Tensor
    """`[W]`: chance that an action is lost and the one before it goes on"""
    observation_delay: Tensor
    """int64 `[W]`, control steps"""
    observation_noise: Tensor
    """`[W, O]`: standard deviations"""
    observation_bias: Tensor
    """`[W, O]`"""
    push_force: Tensor
    """`[W]`, N"""
    pushed: int
    """id of the body that is pushed"""
    initial_state: Tensor
    """`[W]`: factor on the spread of initial states"""
    noisy: bool
    """whether observation noise is varied at all"""
    pushes: bool
    """whether pushes are"""
    any: bool
    """whether anything but the initial state is: by name, not by what was drawn, so that no world
    depends on what the others are like"""

    @classmethod
    def of(cls, drawn: Drawn, worlds: int, observations: int) -> Settings:
        """Add up what was drawn; factors multiply."""
        zeros = drawn[0][1].new_zeros(worlds, observations)
        totals = {
            name: zeros.new_zeros(worlds)
            for name in ("action_delay", "action_dropout", "observation_delay", "push_force")
        }
        shown = {name: zeros.clone() for name in ("observation_noise", "observation_bias")}
        varied = {vary.quantity for parameters, _ in drawn for vary in parameters.vary}
        spread, pushed = zeros.new_ones(worlds), 1
        for parameters, values in drawn:
            for name in totals:
                for _, columns, numbers in parameters.of(name, values):
                    totals[name] = totals[name] + numbers[:, 0]
                    pushed = columns.ids[0] if name == "push_force" else pushed
            for name in shown:
                for _, columns, numbers in parameters.of(name, values):
                    shown[name][:, list(columns.ids)] += numbers
            for _, _, numbers in parameters.of("initial_state", values):
                spread = spread * numbers[:, 0]
        return cls(
            action_delay=totals["action_delay"].round().long(),
            action_dropout=totals["action_dropout"].clamp(max=1.0),
            observation_delay=totals["observation_delay"].round().long(),
            observation_noise=shown["observation_noise"],
            observation_bias=shown["observation_bias"],
            push_force=totals["push_force"],
            pushed=pushed,
            initial_state=spread,
            noisy="observation_noise" in varied,
            pushes="push_force" in varied,
            any=any(name in varied for name in (*totals, *shown)),
        )


class Disturbances:
    """Delays, losses, noise and pushes of W worlds."""

    def __init__(self, settings: Settings, actuators: int, dt: float) -> None:
        """Disturb as `settings` say; `dt` is the duration of a control step, s."""
        self.settings, self.dt = settings, dt
        worlds, observations = settings.observation_bias.shape
        delays = [int(x.max()) + 1 for x in (settings.action_delay, settings.observation_delay)]
        like = settings.observation_bias
        self.commands = like.new_zeros(delays[0], worlds, actuators)
        self.executed = like.new_zeros(worlds, actuators)
        self.shown = like.new_zeros(delays[1], worlds, observations, dtype=torch.float32)
        self.force = like.new_zeros(worlds, 6)
        self.push_left = like.new_zeros(worlds, dtype=torch.int64)
        self._worlds = torch.arange(worlds, device=like.device)
        self.noisy, self.pushes = settings.noisy, settings.pushes
        self.draws = 3
        """uniform numbers that `command` takes a world"""

    def command(self, command: Tensor, u: Tensor) -> Tensor:
        """What the actuators get, `[W, U]`, when the policy wants `command`; `u` is `[W, 3]`."""
        self.commands = torch.cat([command.double().unsqueeze(0), self.commands[:-1]])
        arrived = self.commands[self.settings.action_delay, self._worlds]
        lost = u[:, 0] < self.settings.action_dropout
        self.executed = torch.where(lost.unsqueeze(-1), self.executed, arrived)
        if self.pushes:
            self._push(u[:, 1], u[:, 2])
        return self.executed

    def _push(self, start: Tensor, direction: Tensor) -> None:
        """Begin and end pushes in a random horizontal direction."""
        self.push_left = (self.push_left - 1).clamp(min=0)
        begins = (self.push_left == 0) & (start < PUSHES_PER_SECOND * self.dt)
        angle = 2.0 * math.pi * direction.double()
        self.push_left.masked_fill_(begins, max(round(PUSH_SECONDS / self.dt), 1))
        strength = self.settings.push_force
        self.force[:, 0] = torch.where(begins, strength * angle.cos(), self.force[:, 0])
        self.force[:, 1] = torch.where(begins, strength * angle.sin(), self.force[:, 1])
        self.force *= (self.push_left > 0).unsqueeze(-1)

    def sense(self, obs: Tensor, normal: Tensor | None) -> None:
        """Take in what the sensors saw, `[W, O]`, with standard normal numbers for their noise."""
        self.shown = torch.cat([self._reading(obs, normal).unsqueeze(0), self.shown[:-1]])

    def _reading(self, obs: Tensor, normal: Tensor | None) -> Tensor:
        seen = obs + self.settings.observation_bias.float()
        return seen if normal is None else seen + self.settings.observation_noise.float() * normal

    def observation(self) -> Tensor:
        """What the policy is shown, `[W, O]`."""
        return self.shown[self.settings.observation_delay, self._worlds]

    def reset(self, mask: Tensor, obs: Tensor, normal: Tensor | None) -> None:
        """Begin anew where `mask` `[W]`: nothing is under way.

        Until later readings arrive, the one of `obs` `[W, O]` with its noise is all that is shown;
        until commands arrive, the actuators get 0.
        """
        rows = mask.unsqueeze(-1)
        self.commands.masked_fill_(rows, 0.0)
        self.executed.masked_fill_(rows, 0.0)
        self.shown = torch.where(rows, self._reading(obs, normal), self.shown)
        self.push_left.masked_fill_(mask, 0)

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of everything that is under way."""
        return {name: getattr(self, name).clone() for name in _STATE}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from `state`."""
        for name in _STATE:
            getattr(self, name).copy_(state[name])


_STATE = ("commands", "executed", "shown", "force", "push_left")

"""A trained policy where it is used: on a robot, without simulator, families or training.

    policy = load("exported/policy.onnx")
    policy.begin()                      # a new, unknown task
    while True:
        action = policy.act(obs)        # [O] to [A], or to an integer
        policy.observe(next_obs, reward, terminated, truncated)

The files are those of `metarl export`. A .onnx file needs numpy and onnxruntime, a .pt2 file torch.
Importing this module imports none of them but numpy.

Shapes: `O` observation, `A` action, `Z` noise; one robot, no batch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metarl.errors import UsageError

Array = NDArray[Any]
Program = Callable[[Sequence[Array]], Sequence[Array]]
"""a pure function of arrays"""
Noise = Literal["none", "normal", "exponential"]
"""what a policy's randomness is made of: standard normal numbers, or exponential ones of mean 1"""

FORMAT = 1
"""version of the description"""


@dataclass(frozen=True)
class Description:
    """What a file says of its policy; all that is needed to run it beside its programs."""

    agent: str
    """name of the agent"""
    family: str
    """name of the family that it was trained on"""
    trained_steps: int
    """environment steps of training"""
    version: str
    """of metarl"""
    episodes: int
    """K, episodes of a trial"""
    horizon: int
    """H, most steps of an episode"""
    obs_dim: int
    """O"""
    choices: int
    """number of actions if they are discrete, else 0"""
    low: list[float]
    """`[A]`, what actions are cut to; empty if they are discrete"""
    high: list[float]
    """`[A]`, likewise"""
    noise: Noise
    """what `act` draws"""
    noise_dim: int
    """Z, how many numbers of it"""
    inputs: list[str]
    """of the program `act`, in order; it returns the action and the state"""
    state: dict[str, list[int]]
    """what the policy carries from call to call, by name, and its shape; zeros at first"""
    whole: list[str]
    """names in `state` of whole numbers; the others are float32"""
    rollouts: int = 0
    """episodes that a gradient step learns from; 0 for policies without"""
    gradient_steps: int = 0
    """gradient steps of a trial"""
    format: int = FORMAT
    """version of this description"""

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes, where: Path) -> Description:
        """Read what `to_json` wrote.

        Raises:
            UsageError: if it is something else, or of another version.
        """
        try:
            values = json.loads(text)
            if values.get("format") != FORMAT:
                raise UsageError(
                    f"{where} is of format {values.get('format')}, this metarl reads {FORMAT}; "
                    "export the run again"
                )
            found = cls(**values)
            for field in fields(cls):
                _check_kind(field.name, str(field.type), getattr(found, field.name))
        except (ValueError, TypeError, AttributeError) as error:
            if isinstance(error, UsageError):
                raise
            raise UsageError(f"{where} is damaged: its description is wrong ({error})") from error
        return found


def _check_kind(name: str, kind: str, value: object) -> None:
    """Raise `TypeError` unless `value` is of the annotated `kind`."""
    if kind == "Noise":
        right = value in get_args(Noise)
    elif kind in ("str", "int"):
        right = type(value).__name__ == kind and (kind == "str" or int(str(value)) >= 0)
    else:
        right = type(value).__name__ == kind.partition("[")[0]
    if not right:
        raise TypeError(f"{name} is {value!r}")


class ExportedPolicy:
    """A policy that adapts to one task at a time; it takes the most likely actions."""

    def __init__(
        self, description: Description, programs: Mapping[str, Program], seed: int = 0
    ) -> None:
        """Run `programs`; `seed` decides on what the policy draws, where it draws."""
        self.description = description
        self._programs, self._random = dict(programs), np.random.default_rng(seed)
        self._low = np.asarray(description.low, dtype=np.float32)
        self._high = np.asarray(description.high, dtype=np.float32)
        self._needs_feedback = not {"reward", "next_obs"}.isdisjoint(description.inputs)
        self._values: dict[str, Array] = {}
        self._waiting = False

    @property
    def chosen(self) -> Array:
        """The last action as the policy chose and remembers it, `[A]` or `[]`, not yet cut."""
        chosen: Array = self._values["action"][0]
        return chosen

    def begin(self) -> None:
        """Forget everything: a trial in a new, unknown task begins."""
        d = self.description
        width, action = d.obs_dim, len(d.low)
        numbers = {"obs": width, "last_obs": width, "next_obs": width, "noise": d.noise_dim}
        self._values = {n: np.zeros((1, size), np.float32) for n, size in numbers.items()}
        self._values |= {
            "action": np.zeros((1, action), np.float32) if action else np.zeros(1, np.int64),
            "reward": np.zeros(1, np.float32),
            "done": np.zeros(1, np.bool_),
            "first": np.ones(1, np.bool_),
        }
        for name, shape in d.state.items():
            kind = np.int64 if name in d.whole else np.float32
            self._values[name] = np.zeros(shape, kind)
        self._waiting = False

    def act(self, obs: ArrayLike, noise: ArrayLike | None = None) -> Array | int:
        """Learn from what the last action brought, then choose the next.

        Args:
            obs: `[O]`.
            noise: `[Z]`, to repeat what was recorded; by default it is drawn.

        Returns:
            float32 `[A]`, cut to the bounds as simulated worlds cut it, or an integer.

        Raises:
            UsageError: before `begin`, before the last action's `observe`, or for an observation
                that has another length or is not finite.
        """
        self._check_turn()
        values, d = self._values, self.description
        values["last_obs"], values["obs"] = values["obs"], self._vector("obs", obs, d.obs_dim)
        if d.noise_dim:
            drawn = self._draw() if noise is None else noise
            values["noise"] = self._vector("noise", drawn, d.noise_dim)
        action, *state = self._programs["act"]([values[name] for name in d.inputs])
        values["action"] = action
        values.update(zip(d.state, state, strict=False))
        values["first"] = np.zeros(1, np.bool_)
        self._waiting = self._needs_feedback
        if d.choices:
            return int(action[0])
        if not np.isfinite(action).all():
            raise UsageError("act: the policy's action is not finite; is the observation sound?")
        cut: Array = np.clip(action[0], self._low, self._high)
        return cut

    def observe(
        self, next_obs: ArrayLike, reward: float, terminated: bool, truncated: bool = False
    ) -> None:
        """Take in what the last action brought.

        Args:
            next_obs: `[O]`, the true next observation, also at the end of an episode.
            reward: as the family defines it.
            terminated: whether the task ended the episode.
            truncated: whether a time limit did.

        Raises:
            UsageError: before `act`, or for numbers of another length or that are not finite.
        """
        if not self._values or self._values["first"][0]:
            raise UsageError("observe: call act first")
        values = self._values
        values["next_obs"] = self._vector("next_obs", next_obs, self.description.obs_dim)
        values["reward"] = self._vector("reward", [reward], 1)[0]
        values["done"] = np.array([bool(terminated or truncated)])
        self._waiting = False
        self._learn()

    def _learn(self) -> None:
        """What there is to do after a step, beside keeping what was told."""

    def _check_turn(self) -> None:
        if not self._values:
            raise UsageError("act: call begin first, which starts a trial in a new task")
        if self._waiting:
            raise UsageError("act: call observe first, and tell what the last action brought")

    def _draw(self) -> Array:
        size = self.description.noise_dim
        if self.description.noise == "normal":
            return self._random.standard_normal(size, np.float32)
        return self._random.standard_exponential(size, np.float32)

    @staticmethod
    def _vector(name: str, x: ArrayLike, size: int) -> Array:
        """`x` as float32 `[1, size]`."""
        try:
            row = np.array(x, np.float32)
        except (TypeError, ValueError) as error:
            raise UsageError(f"{name} must be {size} numbers: {error}") from error
        if row.shape != (size,):
            raise UsageError(f"{name} must have shape ({size},), got {row.shape}")
        finite = np.isfinite(row)
        if not finite.all():
            worst = int(finite.argmin())
            raise UsageError(f"{name} must be finite, but number {worst} is {row[worst]}")
        return row[None]


class GradientPolicy(ExportedPolicy):
    """A policy that takes a gradient step whenever it has seen enough episodes.

    Until its last step it draws its actions, because it learns from those that it drew; `noise`
    holds the numbers. A step is taken in the `observe` that ends an episode.
    """

    def begin(self) -> None:
        """Forget everything: the parameters are the meta-learned ones, and no episode is over."""
        super().begin()
        d, values = self.description, self._values
        values.update(zip(d.state, self._programs["start"]([]), strict=True))
        self._steps = 0
        self._clear()

    def _clear(self) -> None:
        d, room = self.description, (self.description.rollouts, self.description.horizon)
        kind = np.int64 if d.choices else np.float32
        self._memory = [
            np.zeros((*room, d.obs_dim), np.float32),
            np.zeros((*room, *([] if d.choices else [len(d.low)])), kind),
            np.zeros(room, np.float32),
            np.zeros(room, np.bool_),
        ]
        self._finished = self._elapsed = 0
        self._values["explore"] = np.array([self._steps < d.gradient_steps])

    def _learn(self) -> None:
        """Store the step; take a gradient step where enough episodes are over."""
        values, d = self._values, self.description
        if not values["explore"][0]:
            return
        if self._elapsed == d.horizon:
            raise UsageError(
                f"observe: this policy was trained on episodes of at most {d.horizon} steps; "
                "tell it that the last one was truncated"
            )
        for memory, name in zip(self._memory, ("obs", "action", "reward"), strict=False):
            memory[self._finished, self._elapsed] = values[name][0]
        self._memory[-1][self._finished, self._elapsed] = True
        self._elapsed += 1
        if values["done"][0]:
            self._finished, self._elapsed = self._finished + 1, 0
        if self._finished == d.rollouts:
            params = self._programs["adapt"]([*self._memory, *(values[n] for n in d.state)])
            values.update(zip(d.state, params, strict=True))
            self._steps += 1
            self._clear()


def load(path: Path | str, seed: int = 0) -> ExportedPolicy:
    """Read a policy that `metarl export` wrote.

    The file is verified before it is used: the checksum of a .onnx file, those within a .pt2 file.
    They guard against accidents, not against an attacker. Against one stands that a .onnx file
    holds a graph and numbers, no code, and that a .pt2 file is looked through before torch may read
    it, as torch by itself would unpickle, call and evaluate what a file tells it to: there must be
    no pickle in it, no library, no symbolic expression, and no operator but ATen's on tensors.

    Args:
        path: the file, .onnx or .pt2.
        seed: decides on what the policy draws, where it draws.

    Raises:
        UsageError: if it is no such file, or damaged, or what runs it is not installed.
    """
    from metarl.deployment_formats import READERS

    path = Path(path)
    if path.suffix not in READERS:
        raise UsageError(f"{path}: a policy is a file that ends in {' or '.join(READERS)}")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from error
    description, programs = READERS[path.suffix](content, path)
    kind = GradientPolicy if description.rollouts else ExportedPolicy
    return kind(description, programs, seed)

"""Meta-World's benchmarks as families: ML1, ML10, ML25 and ML45, MT1, MT10, MT25 and MT50.

A family's tasks are those of the package's own benchmark objects: 50 for each skill, drawn with the
benchmark's seed. Meta-learning benchmarks (ML) hide the goal and hold out other goals (ML1) or
other skills; multi-task ones (MT) show the goal and test on the tasks of training.
"""

from __future__ import annotations

from dataclasses import dataclass
from inspect import getdoc
from typing import ClassVar, Literal

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from metarl.envs.metaworld import package
from metarl.envs.metaworld.names import SEVERAL, SKILLS, skills_of
from metarl.envs.metaworld.python_worlds import PackageWorlds
from metarl.envs.metaworld.skills import skills
from metarl.envs.metaworld.starts import FRAME, Sawyer, Start, sawyer
from metarl.envs.metaworld.worlds import HAND_HIGH, HAND_LOW, SawyerWorlds
from metarl.errors import UsageError
from metarl.tasks import Family, Split, TaskBatch, TaskKind
from metarl.vector import VectorEnv, box

VECTOR = 6
"""numbers that place the objects and the goal of a task, at most"""
HORIZON = 500
"""steps of an episode of the package"""


@dataclass(frozen=True)
class Placement(TaskBatch):
    """Tasks of Meta-World: which skill, and where its objects and its goal are."""

    which: Tensor
    """float32 `[N, E]`: one-hot, the skill among those of the family"""
    vector: Tensor
    """float64 `[N, 6]`: the package's vector of the task, m; zeros after its end"""
    scaled: Tensor
    """float32 `[N, 6]`: the same within its range, from -1 to 1"""

    def features(self) -> Tensor:
        """What an oracle is told: the skill, and the vector within its range."""
        which = [self.which] if self.which.shape[1] > 1 else []
        return torch.cat([*which, self.scaled], -1)


@dataclass(frozen=True)
class MetaWorld(Family):
    """What the benchmarks share.

    | observation | meaning | unit | range |
    |---|---|---|---|
    | 0, 1, 2 | place of the hand | m | [-0.525, 0.525], [0.348, 1.025], [-0.0525, 0.7] |
    | 3 | how far the gripper is open | - | [0, 1] |
    | 4 to 6 | place of the first object | m | unbounded |
    | 7 to 10 | its orientation, a quaternion | - | [-1, 1] |
    | 11 to 17 | place and orientation of the second object, or zeros | m, - | unbounded |
    | 18 to 35 | 0 to 17 as they were a step ago | as above | as above |
    | 36, 37, 38 | place of the goal; zeros in meta-learning benchmarks | m | unbounded |
    | 39 on | benchmarks of several multi-task skills: which skill, one-hot | - | 0 or 1 |

    | action | meaning | unit | range |
    |---|---|---|---|
    | 0, 1, 2 | where the hand is pulled: 1 is 1 cm further | - | [-1, 1] |
    | 3 | force that closes (1) or opens (-1) the gripper | - | [-1, 1] |

    | task | meaning | unit | range |
    |---|---|---|---|
    | first E | benchmarks of several skills: which one, one-hot | - | 0 or 1 |
    | last 6 | places of object and goal within their range | - | [-1, 1] |

    The reward is version 2 of Meta-World's, from 0 to 10; success is the skill's own measure.
    Episodes have 500 steps and never terminate.
    """

    benchmark: ClassVar[str]
    """`ml1`, `ml10`, ..., `mt50`"""
    skill: ClassVar[str | None] = None
    """the one skill of `ml1` and `mt1`"""
    task_kind: ClassVar[TaskKind] = "continuous"
    episodes: int = 2
    horizon: int = HORIZON
    benchmark_seed: int = 1
    """seed of the package's benchmark object, which draws the 50 goals of every skill"""
    backend: Literal["batch", "python"] = "batch"
    """batch: simulations in C++, rewards as tensors; python: the package's own environments"""
    reward_version: Literal["v1", "v2"] = "v2"
    """of Meta-World's reward functions; v1 is there with backend python only"""

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        self.require_count("benchmark_seed", self.benchmark_seed, least=0)
        for name, allowed in (("backend", ("batch", "python")), ("reward_version", ("v1", "v2"))):
            if getattr(self, name) not in allowed:
                raise UsageError(
                    f"family {self.name}: {name} must be one of {', '.join(allowed)}, "
                    f"got {getattr(self, name)!r}"
                )
        if self.reward_version == "v1" and self.backend == "batch":
            raise UsageError(
                f"family {self.name}: the v1 rewards are those of the package's own environments: "
                "add backend python, or take reward_version v2"
            )
        if self.horizon > HORIZON:
            raise UsageError(
                f"family {self.name}: horizon must be at most {HORIZON}, where Meta-World's "
                f"episodes end, got {self.horizon}"
            )

    @property
    def goal_hidden(self) -> bool:
        """Meta-learning benchmarks hide the goal."""
        return self.benchmark.startswith("ml")

    @property
    def shows_skill(self) -> bool:
        """Multi-task benchmarks of several skills show which one it is."""
        return not self.goal_hidden and self.skill is None

    @property
    def skills(self) -> tuple[str, ...]:
        """The family's skills, E of them."""
        return (self.skill,) if self.skill is not None else skills_of(self.benchmark)

    @property
    def observation_space(self) -> gym.spaces.Box:
        """39 numbers, and the skill where it is shown; the box of the hand, the rest unbounded."""
        extent = np.full(FRAME - 4, np.inf)
        low = np.concatenate([HAND_LOW, [0.0], -extent])
        high = np.concatenate([HAND_HIGH, [1.0], extent])
        goal = np.zeros(3) if self.goal_hidden else np.full(3, np.inf)
        label = np.ones(len(self.skills) if self.shows_skill else 0)
        return box(
            np.concatenate([low, low, -goal, 0.0 * label]).astype(np.float32),
            np.concatenate([high, high, goal, label]).astype(np.float32),
        )

    @property
    def action_space(self) -> gym.spaces.Box:
        """Three numbers that move the hand, one that closes the gripper."""
        return box(-1.0, 1.0, 4)

    def vectors(self, split: Split) -> dict[str, np.ndarray]:
        """The package's tasks of `split`: skill to float64 `[50, V]`."""
        self.check_split(split)
        train, test = package.benchmark(self.benchmark, self.skill, self.benchmark_seed)
        return test if split == "held-out" and test else train

    def sample_tasks(self, n: int, split: Split, generator: torch.Generator) -> Placement:
        """Draw tasks of the package, as many of each skill as of the others (to within one).

        A skill's goals come in random order, and again only after all 50 have been drawn.
        """
        vectors = self.vectors(split)
        names = list(vectors)
        chosen = _in_turn(n, len(names), generator)
        counts = torch.bincount(chosen, minlength=len(names)).tolist()
        goals = {
            name: _in_turn(count, len(vectors[name]), generator)
            for name, count in zip(names, counts, strict=True)
        }
        used = dict.fromkeys(names, 0)
        rows = []
        for index in chosen.tolist():
            name = names[index]
            rows.append((name, vectors[name][int(goals[name][used[name]])]))
            used[name] += 1
        return self.placement(rows)

    def placement(self, tasks: list[tuple[str, np.ndarray]]) -> Placement:
        """Tasks given as skills and the package's vectors."""
        which = torch.zeros(len(tasks), len(self.skills))
        vector = torch.zeros(len(tasks), VECTOR, dtype=torch.float64)
        scaled = torch.zeros(len(tasks), VECTOR)
        for row, (name, values) in enumerate(tasks):
            which[row, self.skills.index(name)] = 1.0
            place, size = torch.from_numpy(values), len(values)
            vector[row, :size] = place
            loaded = self._sawyer(name)
            low, high = loaded.vector_low, loaded.vector_high
            extent = (high - low).clamp_min(1e-9)
            scaled[row, :size] = (2.0 * (place - low) / extent - 1.0) * (high > low)
        return Placement(which, vector, scaled)

    def start(self, name: str, vector: np.ndarray) -> Start:
        """How episodes of a task begin; `vector` may have zeros after its end."""
        loaded = self._sawyer(name)
        return loaded.start(np.ascontiguousarray(vector[: len(loaded.vector_low)]))

    @staticmethod
    def _sawyer(name: str) -> Sawyer:
        return sawyer(name, skills()[name].constants)

    def make_worlds(
        self,
        num_worlds: int,
        *,
        device: torch.device | str = "cpu",
        seed: int = 0,
        threads: int = 1,
    ) -> VectorEnv:
        """Build `num_worlds` arms, simulated on the CPU by `threads` threads.

        With backend python one thread steps one world after the other.
        """
        if self.backend == "python":
            return PackageWorlds(self, num_worlds, device=device, seed=seed)
        return SawyerWorlds(self, num_worlds, device=device, seed=seed, threads=threads)

    def describe(self, tasks: TaskBatch, index: int) -> str:
        """The skill, and where its objects and its goal are."""
        assert isinstance(tasks, Placement)
        name = self.skills[int(tasks.which[index].argmax())]
        values = tasks.vector[index][: len(self._sawyer(name).vector_low)]
        return f"{name} at {', '.join(f'{value:.2f}' for value in values.tolist())} m"

    def marker(self, tasks: TaskBatch, index: int) -> tuple[float, float, float] | None:
        """Where a task's goal is, m."""
        assert isinstance(tasks, Placement)
        name = self.skills[int(tasks.which[index].argmax())]
        start = self.start(name, tasks.vector[index].numpy())
        x, y, z = start.constants["_target_pos"].tolist()
        return x, y, z


def _in_turn(n: int, choices: int, generator: torch.Generator) -> Tensor:
    """`n` of `choices` numbers, int64 `[n]`: one permutation of all of them after the other."""
    rounds = [torch.randperm(choices, generator=generator) for _ in range(-(-n // choices))]
    return torch.cat([*rounds, torch.empty(0, dtype=torch.int64)])[:n]


@dataclass(frozen=True)
class MetaLearning(MetaWorld):
    """A benchmark that hides the goal and holds out goals (ML1) or skills (ML10, ML25, ML45).

    ML25 has basketball among its train skills and among its test skills, with other goals: this is
    how the package defines it.
    """


@dataclass(frozen=True)
class MultiTask(MetaWorld):
    """A benchmark that shows the goal, and the skill; its tasks are both trained on and tested."""

    shared_splits: ClassVar[bool] = True


_, _, _TABLES = (getdoc(MetaWorld) or "").partition("\n\n")


def _family(benchmark: str, skill: str | None = None) -> type[MetaWorld]:
    """The family of a benchmark."""
    base = MetaLearning if benchmark.startswith("ml") else MultiTask
    name = "-".join(["metaworld", benchmark, *([] if skill is None else [skill])])
    title = "".join(part.capitalize() for part in name.split("-"))
    members = {
        "name": name,
        "benchmark": benchmark,
        "skill": skill,
        "__doc__": f"{getdoc(base)}\n\n{_TABLES}",
        "__module__": __name__,
        "__qualname__": title,
    }
    return dataclass(frozen=True)(type(title, (base,), members))


FAMILIES: dict[str, type[MetaWorld]] = {
    kind.name: kind
    for kind in (
        *(_family(benchmark, skill) for benchmark in ("ml1", "mt1") for skill in SKILLS),
        *(_family(benchmark) for benchmark in SEVERAL),
    )
}
"""All families by name."""


def __getattr__(name: str) -> type[MetaWorld]:
    """Let the registry find a family by its name."""
    try:
        return FAMILIES[name]
    except KeyError:
        raise AttributeError(name) from None

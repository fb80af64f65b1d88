"""Worlds of Meta-World: a batch of simulations for each skill, one vector env over all of them.

Worlds of different skills have different models and cannot share a batch. They are kept sorted by
skill; what all skills share (moving the hand, what is observed of it, the frames) is computed for
all worlds at once, and only what is a skill's own on its part of them.

Shapes: `W` worlds, `C` of them of one skill, all tensors sorted by skill unless said otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad

from metarl.envs.metaworld.scene import Scene, Skill
from metarl.envs.metaworld.skills import skills
from metarl.envs.metaworld.starts import FRAME, MODEL_FIELDS, Sawyer, Start, sawyer
from metarl.envs.physics import CpuPhysics, Physics
from metarl.envs.physics.worlds import UnstableReports
from metarl.vector import Info, VectorEnv

if TYPE_CHECKING:
    from metarl.envs.metaworld.families import MetaWorld, Placement

HAND_LOW, HAND_HIGH = (-0.525, 0.348, -0.0525), (0.525, 1.025, 0.7)
"""what is observed of the hand is clipped to this box, m"""
OPEN = 0.1
"""distance of the claws that counts as fully open, m"""
_BODIES = ("hand", "rightclaw", "leftclaw", "leftpad", "rightpad")
_FINGERS = ("rightEndEffector", "leftEndEffector")
_GROUP = "group."


@dataclass
class Group:
    """The worlds of one skill."""

    skill: Skill
    sawyer: Sawyer
    physics: Physics
    scene: Scene
    part: slice
    """which of the sorted worlds they are"""
    bodies: Tensor
    """int64, the arm's bodies of `_BODIES`"""
    fingers: Tensor
    """int64, the sites of `_FINGERS`"""
    starts: Tensor
    """`[C, nstate]`: MuJoCo's state at the beginning of an episode"""

    def begin(self, starts: list[Start]) -> None:
        """Take over how the episodes of the C worlds begin."""
        fields = {k: torch.stack([start.fields[k] for start in starts]) for k in MODEL_FIELDS}
        # Meta-World moves things about without telling MuJoCo, which derives nothing from it.
        self.physics.randomise(fields, derive=False)
        self.starts = torch.stack([start.state for start in starts])
        names = starts[0].constants
        self.scene.begin({k: torch.stack([s.constants[k] for s in starts]) for k in names})


def make_group(name: str, part: slice, threads: int) -> Group:
    """The simulations of the worlds in `part`, all of the skill called `name`."""
    skill = skills()[name]
    loaded = sawyer(name, skill.constants)
    physics = CpuPhysics(loaded.model, part.stop - part.start, threads)
    compiled = loaded.model.compiled
    bodies = torch.tensor([compiled.body(name).id for name in _BODIES])
    fingers = torch.tensor([compiled.site(name).id for name in _FINGERS])
    return Group(skill, loaded, physics, Scene(physics), part, bodies, fingers, torch.empty(0))


class SawyerWorlds(VectorEnv):
    """Sawyer arms stepped together, each at its own task, and of any skills of the family."""

    family: MetaWorld

    def __init__(
        self,
        family: MetaWorld,
        num_worlds: int,
        *,
        device: torch.device | str = "cpu",
        seed: int = 0,
        threads: int = 1,
    ) -> None:
        """Lay out worlds; their simulations are made when it is known what skills they have."""
        super().__init__(family, num_worlds, device=device, seed=seed)
        self._threads = threads
        self._dumps = UnstableReports(family.name)
        self._groups: list[Group] = []
        self._hand_low, self._hand_high = (
            torch.tensor(bound, dtype=torch.float64) for bound in (HAND_LOW, HAND_HIGH)
        )

    def dump_unstable_to(self, folder: Path) -> None:
        """Write a dump of every unstable world into `folder`, which is made when needed."""
        self._dumps.folder = folder

    def positions(self) -> Tensor:
        """MuJoCo's `qpos` of all worlds `[W, nq]`; those of smaller models end with zeros."""
        own = [group.physics.field("qpos") for group in self._groups]
        widest = max(qpos.shape[1] for qpos in own)
        return self._unsorted(torch.cat([pad(x, (0, widest - x.shape[1])) for x in own]))

    # --- tasks ------------------------------------------------------------------------------

    def _apply_tasks(self, tasks: Placement) -> None:
        which = tasks.which.argmax(-1).cpu()
        order = which.argsort(stable=True)
        self._order = None if bool((which.diff() >= 0).all()) else order
        self._inverse = order.argsort()
        vectors = tasks.vector.cpu().numpy()[order.numpy()]
        names = [self.family.skills[int(index)] for index in which[order]]
        starts = [self.family.start(*pair) for pair in zip(names, vectors, strict=True)]
        self._make_groups(names)
        for group in self._groups:
            group.begin(starts[group.part])
        goals = [(group.sawyer.goal_low, group.sawyer.goal_high) for group in self._groups]
        counts = torch.tensor([group.part.stop - group.part.start for group in self._groups])
        shown = 0.0 if self.family.goal_hidden else 1.0
        self._goal_low, self._goal_high = (
            shown * torch.stack(bound).repeat_interleave(counts, dim=0)
            for bound in zip(*goals, strict=True)
        )
        observations = torch.stack([start.observation for start in starts])
        self._first = observations[:, :FRAME]
        self._first_goal = shown * observations[:, 2 * FRAME :]
        self._target = shown * torch.cat([group.scene.target for group in self._groups])
        self._frame, self._previous = self._first.clone(), self._first.clone()
        self._goal = self._first_goal.clone()
        self._label = tasks.which.to("cpu", torch.float64) if self.family.shows_skill else None
        places = torch.zeros(self.num_envs, len(_BODIES) + len(_FINGERS), 3, dtype=torch.float64)
        self._places, self._seen = places, torch.zeros(self.num_envs, FRAME - 4).double()

    def _make_groups(self, names: list[str]) -> None:
        """Simulations for the skills of the sorted worlds; those that fit are kept."""
        edges = [0, *(i for i in range(1, len(names)) if names[i] != names[i - 1]), len(names)]
        old = {(g.skill.name, g.part.start, g.part.stop): g for g in self._groups}
        self._groups = []
        for start, stop in pairwise(edges):
            name, part = names[start], slice(start, stop)
            group = old.get((name, start, stop)) or make_group(name, part, self._threads)
            self._groups.append(group)

    # --- steps ------------------------------------------------------------------------------

    def _sorted(self, x: Tensor) -> Tensor:
        return x if self._order is None else x[self._order]

    def _unsorted(self, x: Tensor) -> Tensor:
        return x if self._order is None else x[self._inverse]

    def _reset_worlds(self, mask: Tensor) -> None:
        sorted_mask = self._sorted(mask.cpu())
        for group in self._groups:
            group.physics.put(sorted_mask[group.part], group.starts)
        column = sorted_mask.unsqueeze(-1)
        self._frame = torch.where(column, self._first, self._frame)
        self._previous = torch.where(column, self._first, self._previous)
        self._goal = torch.where(column, self._first_goal, self._goal)

    def _advance(self, actions: Tensor) -> tuple[Tensor, Tensor, Info]:
        asked = self._sorted(actions.cpu())
        unstable = self._simulate(asked)
        self._look()
        asked = asked.double()
        rewards, successes = [], []
        for group in self._groups:
            self._show(group, asked)
            reward, success = group.skill.reward(group.scene)
            rewards.append(reward)
            successes.append(success)
        reward = self._unsorted(torch.cat(rewards)).float().to(self.device)
        success = self._unsorted(torch.cat(successes)).float().to(self.device)
        ended = torch.zeros_like(reward, dtype=torch.bool)
        blown = ended if unstable is None else self._unsorted(unstable).to(self.device)
        if unstable is not None:
            reward, success = reward.masked_fill(blown, 0.0), success.masked_fill(blown, 0.0)
        return reward, ended, {"success": success, "unstable": blown}

    def _simulate(self, actions: Tensor) -> Tensor | None:
        """One control step; where worlds became unstable, bool `[W]`, or None if nowhere."""
        unstable = torch.zeros(self.num_envs, dtype=torch.bool)
        # As the package does: the grip is not clipped, and steps are rounded to float32.
        moves = actions[:, :3].clamp(-1.0, 1.0)
        grip = actions[:, 3:].double()
        ctrl = torch.cat([grip, -grip], -1)
        resting = None if self._resting is None else self._sorted(self._resting.cpu())
        for group in self._groups:
            own = group.sawyer
            mocap = group.physics.field("mocap_pos")[:, 0]
            moved = mocap + moves[group.part] * own.action_scale
            mocap.copy_(moved.clamp(own.mocap_low, own.mocap_high))
            awake = None if resting is None else ~resting[group.part]
            blown = group.physics.step(ctrl[group.part], own.frame_skip, awake, current=True)
            if blown is not None and bool(blown.any()):
                self._report(group, blown)
                unstable[group.part] = blown
        return unstable if bool(unstable.any()) else None

    def _report(self, group: Group, blown: Tensor) -> None:
        assert self._world_tasks is not None
        worlds = torch.arange(self.num_envs) if self._order is None else self._order
        tasks, elapsed = self._world_tasks, self._elapsed
        self._dumps.report(group.physics, blown, worlds[group.part], tasks, elapsed)

    def _look(self) -> None:
        """Gather what all skills look at, and make the new frame of it."""
        bodies = len(_BODIES)
        for group in self._groups:
            places, physics = self._places[group.part], group.physics
            places[:, :bodies] = physics.field("xpos").index_select(1, group.bodies)
            places[:, bodies:] = physics.field("site_xpos").index_select(1, group.fingers)
            seen = group.skill.see(group.scene)
            self._seen[group.part, : seen.shape[1]] = seen
        hand, right, left = self._places[:, 0], self._places[:, 1], self._places[:, 2]
        apart = torch.linalg.vector_norm(right - left, dim=-1, keepdim=True)
        opened = (apart / OPEN).clamp(0.0, 1.0)
        self._tcp = (self._places[:, bodies] + self._places[:, bodies + 1]) / 2.0
        self._previous = self._frame
        hand = hand.clamp(self._hand_low, self._hand_high)
        self._frame = torch.cat([hand, opened, self._seen], -1)
        self._goal = self._target.clamp(self._goal_low, self._goal_high)

    def _show(self, group: Group, actions: Tensor) -> None:
        """Let the skill's reward see its part of the worlds."""
        scene, part = group.scene, group.part
        frame = self._frame[part]
        scene.action, scene.tcp = actions[part], self._tcp[part]
        scene.hand, scene.opened, scene.obj = frame[:, :3], frame[:, 3], frame[:, 4:7]
        scene.seen = frame[:, 4:]
        scene.left_pad, scene.right_pad = self._places[part, 3], self._places[part, 4]

    def _observe(self) -> Tensor:
        obs = self._unsorted(torch.cat([self._frame, self._previous, self._goal], -1))
        if self._label is not None:
            obs = torch.cat([obs, self._label], -1)
        return obs.float().to(self.device)

    # --- saved state ------------------------------------------------------------------------

    def _world_state(self) -> dict[str, Tensor]:
        state = {"frame": self._frame, "previous": self._previous, "goal": self._goal}
        for index, group in enumerate(self._groups):
            own = group.physics.state_dict()
            state |= {f"{_GROUP}{index}.{name}": x for name, x in own.items()}
        return {name: x.clone() for name, x in state.items()}

    def _load_world_state(self, state: dict[str, Tensor]) -> None:
        for index, group in enumerate(self._groups):
            prefix = f"{_GROUP}{index}."
            own = {k.removeprefix(prefix): x for k, x in state.items() if k.startswith(prefix)}
            group.physics.load_state_dict(own)
        mine = {name: x for name, x in state.items() if not name.startswith(_GROUP)}
        super()._load_world_state(mine)

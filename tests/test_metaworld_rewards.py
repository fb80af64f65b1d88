"""Meta-World's rewards on made-up scenes, against the package's own; what they are made of.

Short rollouts seldom come to where rewards branch: things lifted, carried, at the goal's edge,
hooked or unhooked. Here the states of an expert's episode are taken apart instead: objects are put
around goals and starts, joints anywhere in their range, and the arm, moved as a whole, around them.
"""

import mujoco
import numpy as np
import pytest
import torch
from metaworld.utils import reward_utils
from scipy.spatial.transform import Rotation

from metarl.envs.metaworld import package, shaping
from metarl.envs.metaworld.experts import expert
from metarl.envs.metaworld.families import FAMILIES
from metarl.envs.metaworld.names import SKILLS
from metarl.envs.metaworld.scene import quaternions
from metarl.envs.metaworld.skills.pegs import outside_block

TASKS, SCENES, STEPS = 2, 150, 90
"""of each skill; scenes of each task; the most steps of the expert's"""
NARROW = ("assembly", "bin-picking", "peg-insert-side", "shelf-place", "stick-pull")
"""skills of which few scenes come where it is narrow, so that they get three times as many"""
STATE = mujoco.mjtState.mjSTATE_INTEGRATION
FREE = mujoco.mjtJoint.mjJNT_FREE
SLIDE = mujoco.mjtJoint.mjJNT_SLIDE
FINGERS = ("r_close", "l_close")


class Stage:
    """One of the package's environments, whose simulation gives way to made-up scenes."""

    def __init__(self, skill):
        self.rng = np.random.default_rng(SKILLS.index(skill))
        self.env, self.expert = package.make_env(skill), expert(skill)
        self.model, self.data = self.env.model, self.env.data
        self.base = self.model.body_rootid[self.model.body("hand").id]
        self.base_at = self.model.body_pos[self.base].copy()
        joints = [self.model.joint(index) for index in range(self.model.njnt)]
        self.fingers = [j for j in joints if j.name in FINGERS]
        self.arm = [j for j in joints if self.root(j) == self.base and j not in self.fingers]
        # The second object first: the first may be put there.
        self.things = [j for j in reversed(joints) if self.root(j) != self.base]

    def root(self, joint):
        return self.model.body_rootid[self.model.jnt_bodyid[joint.id]]

    def begin(self, vector):
        """Keep an episode of the expert's, until a while after it has solved its task."""
        package.set_task(self.env, vector, goal_hidden=False)
        self.env.reset()
        self.start, self.goal = self.seen()[0], np.array(self.env._target_pos)
        # Some constants are noted at the first step.
        obs = self.env.step(np.zeros(4))[0]
        self.states, left = [], STEPS
        while left > 0:
            self.states.append(self.state())
            obs, _, _, _, info = self.env.step(self.expert.get_action(obs))
            left = min(left - 1, 10) if info["success"] else left - 1

    def state(self):
        state = np.empty(mujoco.mj_stateSize(self.model, STATE))
        mujoco.mj_getState(self.model, self.data, state, STATE)
        return state

    def load(self, state):
        mujoco.mj_setState(self.model, self.data, state, STATE)
        self.place()

    def place(self):
        mujoco.mj_kinematics(self.model, self.data)

    def seen(self):
        """Places of the observed objects, `[1 or 2, 3]`."""
        return self.env._get_pos_objects().reshape(-1, 3)

    # --- scenes ---------------------------------------------------------------------------

    def off(self, most):
        """As much as `most` in some direction: any, in a plane or along an axis."""
        way = self.rng.normal(size=3) * self.rng.integers(0, 2, size=3) + 1e-9
        return way / np.linalg.norm(way) * self.rng.uniform(0.0, most)

    def points(self, joint):
        """Places on what a joint moves, and on what hangs together with it."""
        body, roots = self.model.jnt_bodyid[joint.id], self.model.body_rootid
        sites = self.data.site_xpos[roots[self.model.site_bodyid] == roots[body]]
        return np.concatenate([self.data.xpos[[body]], sites])

    def somewhere(self):
        """A place around the goal, the start, another object ..."""
        rng, seen = self.rng, self.seen()
        between = self.start + rng.random() * (self.goal - self.start)
        marks = [self.goal, self.start, between, seen[-1], rng.choice(self.data.site_xpos)]
        mark = marks[rng.choice(5, p=[0.4, 0.05, 0.1, 0.25, 0.2])]
        return mark + self.off(rng.choice([0.03, 0.08, 0.15]))

    def move(self, joint):
        """Put what a joint moves somewhere else, or leave it."""
        rng, qpos, at, kind = self.rng, self.data.qpos, joint.qposadr[0], joint.type[0]
        if rng.random() < 0.25:
            return
        if kind == FREE and rng.random() < 0.4:
            turned = qpos[at + 3 : at + 7] + rng.choice([0.02, 0.1, 1.0]) * rng.normal(size=4)
            qpos[at + 3 : at + 7] = turned / np.linalg.norm(turned)
            self.place()
        if kind == FREE:
            points = self.seen()[:1] if rng.random() < 0.3 else self.points(joint)
            qpos[at : at + 3] += self.somewhere() - rng.choice(points)
        elif kind == SLIDE and rng.random() < 0.7:
            qpos[at] += self.data.xaxis[joint.id] @ (self.somewhere() - self.seen()[-1])
        else:
            # Some are moved beyond their range, which gives way.
            been = [state[1 + at] for state in self.states]
            low, high = min(joint.range[0], *been), max(joint.range[1], *been)
            middle = rng.choice([low, high, rng.uniform(low, high)])
            qpos[at] = middle + (high - low) * rng.choice([0.02, 0.1]) * rng.normal()
        self.place()

    def reach(self, carried):
        """How far to move the arm, when the object has moved by `carried`."""
        kind = self.rng.random()
        if kind < 0.3:
            return carried + self.off(0.005)
        if kind < 0.4:
            return self.off(0.1)
        marks = [self.goal, self.rng.choice(self.points(self.rng.choice(self.things)))]
        mark = marks[self.rng.integers(2)] if kind < 0.6 else self.rng.choice(self.seen())
        return mark + self.off(self.rng.choice([0.01, 0.1])) - self.env.tcp_center

    def scene(self):
        """A state, and by how much the arm's base is moved."""
        rng, qpos = self.rng, self.data.qpos
        self.load(self.states[rng.integers(len(self.states))])
        for joint in self.arm if rng.random() < 0.3 else ():
            qpos[joint.qposadr[0]] += 0.02 * rng.normal()
        for joint in self.fingers if rng.random() < 0.3 else ():
            qpos[joint.qposadr[0]] = rng.uniform(*joint.range)
        self.place()
        before = self.seen()[0]
        for joint in self.things:
            self.move(joint)
        return self.state(), self.reach(self.seen()[0] - before)

    def judge(self, state, shift, action):
        """What the package observes, rewards and calls solved; it steps, but for the physics."""
        self.env.do_simulation = lambda *_, **__: self.load(state)
        self.env.curr_path_length = 0
        self.model.body_pos[self.base] = self.base_at + shift
        seen, reward, _, _, info = self.env.step(action)
        self.model.body_pos[self.base] = self.base_at
        del self.env.do_simulation
        return seen, reward, bool(info["success"])


def ours(skill, vectors, base, states, shifts, actions):
    """What is observed, rewarded and solved here in the same scenes, `[C, ...]`."""
    family = FAMILIES[f"metaworld-mt1-{skill}"]()
    env = family.make_worlds(len(vectors))
    env.set_tasks(family.placement([(skill, vector) for vector in vectors]))
    env.reset()
    group = env._groups[0]
    places = torch.stack([family.start(skill, vector).fields["body_pos"] for vector in vectors])
    places[:, base] += torch.from_numpy(shifts)
    group.physics.randomise({"body_pos": places}, derive=False)
    group.physics.put(torch.ones(len(vectors), dtype=torch.bool), torch.from_numpy(states))
    group.physics._refresh(np.arange(len(vectors)))
    env._look()
    env._show(group, torch.from_numpy(actions))
    reward, success = group.skill.reward(group.scene)
    assert reward.dtype == torch.float64 and success.dtype == torch.bool
    return torch.cat([env._frame, env._goal], -1).numpy(), reward.numpy(), success.numpy()


@pytest.mark.filterwarnings("ignore:Constant.s. may be too high")
@pytest.mark.parametrize("skill", SKILLS)
def test_made_up_scenes(skill):
    stage, vectors = Stage(skill), package.benchmark("mt1", skill, 4)[0][skill][:TASKS]
    count = SCENES * (3 if skill in NARROW else 1)
    actions = stage.rng.uniform(-1.3, 1.3, (TASKS * count, 4))
    scenes, theirs = [], []
    for task, vector in enumerate(vectors):
        stage.begin(vector)
        # Float64 actions, or else the package rounds what it multiplies by them.
        for action in actions[task * count :][:count]:
            scenes.append(stage.scene())
            theirs.append(stage.judge(*scenes[-1], action))
    states, shifts = map(np.array, zip(*scenes, strict=True))
    seen, rewards, solved = map(np.array, zip(*theirs, strict=True))
    vectors = np.repeat(vectors, count, axis=0)
    observed, reward, success = ours(skill, vectors, stage.base, states, shifts, actions)
    now = np.delete(seen, slice(18, 36), axis=1)
    np.testing.assert_allclose(observed, now, rtol=0.0, atol=1e-12)
    assert (np.abs(reward - rewards) <= 1e-9 * np.maximum(1.0, np.abs(rewards))).all()
    assert np.array_equal(success, solved)
    # The scenes are worth something.
    assert solved.any() and not solved.all() and (rewards > 1.0).any()
    # The faucet's handle is nowhere far from its goal.
    assert (rewards < 1.0).any() or skill == "faucet-close"


# --- what rewards are made of -----------------------------------------------------------------

NUMBERS = torch.tensor(
    [-0.3, -1e-9, 0.0, 1e-9, 0.02, 0.05, 0.05 + 1e-9, 0.1, 0.7, 3.0], dtype=torch.float64
)


@pytest.mark.parametrize("kind", ["long_tail", "gaussian"])
@pytest.mark.parametrize("margin", [0.0, 1e-9, 0.04, 2.0])
@pytest.mark.parametrize("bounds", [(0.0, 0.05), (0.02, 0.05), (0.05, 0.05), (-np.inf, 0.05)])
def test_tolerances(kind, margin, bounds):
    here = {"long_tail": shaping.tolerance, "gaussian": shaping.gaussian_tolerance}[kind]
    lower, upper = bounds
    lower = None if lower == -np.inf else lower
    expected = [reward_utils.tolerance(x, bounds, margin, kind) for x in NUMBERS.tolist()]
    same = torch.full_like(NUMBERS, 1.0)
    for numbers in (
        here(NUMBERS, upper, margin, lower),
        here(NUMBERS, upper * same, margin * same, None if lower is None else lower * same),
    ):
        np.testing.assert_allclose(numbers, expected, rtol=1e-12, atol=1e-15)
    assert 0.0 < sum(expected) < len(NUMBERS)


def test_products():
    shares = torch.tensor([0.0, 1e-12, 0.1, 0.5, 0.97, 1.0 - 1e-9, 1.0], dtype=torch.float64)
    a, b = torch.cartesian_prod(shares, shares).T
    expected = [
        reward_utils.hamacher_product(*pair) for pair in zip(a.tolist(), b.tolist(), strict=True)
    ]
    np.testing.assert_allclose(shaping.both(a, b), expected, rtol=1e-12, atol=0.0)
    where = torch.tensor([True, False])
    assert shaping.share(where, 0.1).tolist() == [0.1, 0.0]


def test_blocks():
    """Corners in any order, places inside, outside and on the faces."""
    rng = np.random.default_rng(0)
    zero, one, at = rng.integers(-2, 3, size=(3, 4000, 3)) / 4.0
    one = np.where(one == zero, one + 0.25, one)
    at[::2] += rng.normal(size=(2000, 3)) / 10.0
    expected = [reward_utils.rect_prism_tolerance(*x) for x in zip(at, zero, one, strict=True)]
    found = outside_block(*(torch.from_numpy(x) for x in (at, zero, one)))
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-15)
    assert 0.0 < np.mean(np.array(expected) < 1.0) < 1.0


def test_quaternions_are_those_of_scipy():
    generator = np.random.default_rng(0)
    straight = Rotation.create_group("O")
    tilts = Rotation.from_rotvec(1e-7 * generator.normal(size=(24, 3)))
    halves = Rotation.from_rotvec(np.pi * Rotation.random(50, generator).apply([0.0, 0.0, 1.0]))
    several = [straight, straight * tilts, halves, Rotation.random(1000, generator)]
    matrices = np.concatenate([rotation.as_matrix() for rotation in several])
    expected = Rotation.from_matrix(matrices).as_quat()
    found = quaternions(torch.from_numpy(matrices.reshape(-1, 9))).numpy()
    np.testing.assert_allclose(found, expected, rtol=0.0, atol=1e-12)
    identity = quaternions(torch.eye(3, dtype=torch.float64).reshape(1, 9))
    assert identity.tolist() == [[0.0, 0.0, 0.0, 1.0]]

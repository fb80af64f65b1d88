"""MuJoCo Warp moves every robot as MuJoCo does, as far as single precision goes.

Both begin each control step in the same state, so that differences do not grow: what is compared is
a step, not chaos. How they grow otherwise is compared with how far MuJoCo's own trajectories part
that begin a millionth apart.
"""

from dataclasses import replace
from functools import cache

import mujoco
import pytest
import torch

from metarl.envs.disturbances import _ADDED, _SCALED
from metarl.envs.physics import CpuPhysics
from metarl.envs.physics.warp import WarpPhysics
from metarl.envs.physics.warp_model import for_warp
from metarl.envs.quantities import QUANTITIES as ALL_QUANTITIES
from metarl.envs.randomization import Randomization, Vary
from metarl.envs.registry import FAMILIES, family_class, make_family
from metarl.envs.robot import Robot
from metarl.envs.robot_worlds import RobotWorlds

pytest.importorskip("mujoco_warp")

WORLDS, WARM_UP, STEPS = 8, 20, 10
EVERY = torch.ones(WORLDS, dtype=torch.bool)
DEVICES = ["cpu"] + ["cuda"] * torch.cuda.is_available()
ROBOTS = [
    name
    for name in FAMILIES
    if not name.startswith("metaworld") and issubclass(family_class(name), Robot)
]
STEP = {
    "half-cheetah": 1e-3,
    "ant": 2e-4,
    "humanoid": 1e-3,
    "walker2d": 4e-4,
    "hopper": 3e-5,
    "reacher": 3e-5,
    "crane": 3e-6,
}
"""How far any number that a robot shows may be from MuJoCo's after a control step, relative to the
number if that is above 1: some eight times the most that was seen on a CPU. Single precision has
6e-8; five substeps, a solver that stops at 1e-8 of another scale, and contacts that begin within a
substep make more of it, the more the stiffer the robot."""
TYPICAL = 2e-5
"""and how far it typically is: the median over worlds and steps"""
REWARD = 1e-4


def robot_of(name):
    return next(robot for robot in STEP if name.startswith(robot))


def on_cpu(family, worlds=WORLDS):
    """MuJoCo's own physics, with the solver that MuJoCo Warp has."""
    model = family.model()
    same = replace(model, compiled=for_warp(model))
    return RobotWorlds(family, CpuPhysics(same, worlds))


def on_warp(family, device, worlds=WORLDS):
    physics = WarpPhysics(family.model(), worlds, device, family.limits)
    return RobotWorlds(family, physics, device=device)


class Actions:
    """Uniform actions."""

    def __init__(self, family):
        self.space = family.action_space
        self.generator = torch.Generator().manual_seed(1)

    def draw(self, worlds=WORLDS):
        u = torch.rand(worlds, *self.space.shape, generator=self.generator)
        return float(self.space.high[0]) * (2 * u - 1)


def rows(env):
    return env.physics.state_dict()["rows"]


def relative(ours, expected):
    """The largest difference in each world, relative to numbers above 1."""
    ours, expected = ours.cpu().double(), expected.cpu().double()
    return ((ours - expected).abs() / expected.abs().clamp(min=1)).reshape(len(ours), -1).amax(1)


@cache
def begun(name, device):
    """A robot in the midst of things, on both."""
    family = make_family(name)
    cpu, warp, actions = on_cpu(family), on_warp(family, device), Actions(family)
    tasks = family.sample_tasks(WORLDS, "train", torch.Generator().manual_seed(0))
    for env in (cpu, warp):
        env.set_tasks(tasks)
    torch.testing.assert_close(warp.reset()[0].cpu(), cpu.reset()[0], rtol=1e-5, atol=1e-5)
    for _ in range(WARM_UP):
        cpu.step(actions.draw())
    warp.load_state_dict(cpu.state_dict())
    return cpu, warp, actions


def together(cpu, other, actions):
    """Step both, begun anew in the same state at every step."""
    for _ in range(STEPS):
        other.physics.put(EVERY, rows(cpu))
        action = actions.draw()
        yield cpu.step(action), other.step(action.to(other.device))


def compare(cpu, warp, actions):
    """Differences `[STEPS, W]` of what is shown, and of what is earned."""
    shown, earned = [], []
    for expected, ours in together(cpu, warp, actions):
        shown.append(relative(ours[-1]["final_obs"], expected[-1]["final_obs"]))
        earned.append(relative(ours[1], expected[1]))
        assert torch.equal(ours[2].cpu(), expected[2]) and torch.equal(ours[3].cpu(), expected[3])
    troubles = warp.physics.troubles()
    assert troubles.unstable.sum() == 0
    assert all(counts.sum() == 0 for counts in troubles.overflow.values())
    return torch.stack(shown), torch.stack(earned)


def assert_near(name, shown, earned):
    assert shown.max() < STEP[robot_of(name)]
    assert shown.median() < TYPICAL
    assert earned.max() < REWARD


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ROBOTS)
def test_every_robot_steps_as_in_mujoco(name, device):
    assert_near(name, *compare(*begun(name, device)))


def final(env, commands):
    for command in commands:
        env.physics.step(command.to(env.physics.device), env.n_substeps)
    state = [env.physics.field(name).cpu().double() for name in ("qpos", "qvel")]
    return torch.cat(state, -1)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ROBOTS)
def test_trajectories_part_no_faster_than_mujocos_own(name, device):
    cpu, warp, actions = begun(name, device)
    start = cpu.physics.state_dict()
    warp.physics.load_state_dict(start)
    commands = [cpu.commands(actions.draw()) for _ in range(STEPS)]
    reference = final(cpu, commands)
    apart = relative(final(warp, commands), reference)
    yardstick = []
    for seed in range(8):
        generator = torch.Generator().manual_seed(seed)
        cpu.physics.load_state_dict(start)
        qpos = cpu.physics.field("qpos")
        qpos += 1e-6 * torch.randn(qpos.shape, generator=generator, dtype=torch.float64)
        yardstick.append(relative(final(cpu, commands), reference))
    cpu.physics.load_state_dict(start)
    own = torch.stack(yardstick)
    assert apart.median() < 3e-4
    # Rounding at every substep adds up to about what a millionth at the beginning does.
    assert apart.median() < 3 * own.median() and apart.max() < 3 * own.max()


QUANTITIES = {
    "body_mass": ("half-cheetah-vel", 0.6, 1.6),
    "body_inertia": ("walker2d-vel", 0.6, 1.6),
    "density": ("humanoid-dir", 0.6, 1.6),
    "com_offset": ("ant-dir", -0.05, 0.05),
    "payload": ("half-cheetah-vel", 1.0, 4.0),
    "friction": ("ant-dir", 0.2, 0.8),
    "damping": ("half-cheetah-vel", 0.3, 0.9),
    "armature": ("ant-goal", 0.3, 0.9),
    "actuator_strength": ("hopper-vel", 0.3, 0.9),
    "actuator_gain": ("half-cheetah-vel", 0.3, 0.9),
    "gravity": ("ant-dir", 0.4, 0.9),
}
"""A robot and a range for everything that changes the model."""


def test_all_quantities_of_a_model_are_compared():
    assert QUANTITIES.keys() == _SCALED.keys() | _ADDED.keys()


def assert_differing_robots_are_near(family, tasks, nominal, device):
    """Compare robots that differ, and look whether it matters that they do."""
    cpu, other, warp = on_cpu(family), on_cpu(family), on_warp(family, device)
    actions = Actions(family)
    for env, given in ((cpu, tasks), (warp, tasks), (other, nominal)):
        env.set_tasks(given)
        env.reset()
    for _ in range(WARM_UP):
        cpu.step(actions.draw())
    begin = cpu.state_dict()
    warp.load_state_dict(begin)
    assert_near(family.name, *compare(cpu, warp, actions))
    cpu.load_state_dict(begin)
    changed = torch.zeros(WORLDS, dtype=torch.float64)
    for expected, without in together(cpu, other, actions):
        changed = changed.maximum(relative(without[-1]["final_obs"], expected[-1]["final_obs"]))
    assert changed.min() > 3 * STEP[robot_of(family.name)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("quantity", QUANTITIES)
def test_robots_that_differ_step_as_in_mujoco(quantity, device):
    name, low, high = QUANTITIES[quantity]
    each = ALL_QUANTITIES[quantity].elements not in ("robot", "geom")
    family = make_family(name, randomize=Randomization((Vary(quantity, low, high, each=each),)))
    tasks = family.sample_tasks(WORLDS, "train", torch.Generator().manual_seed(0))
    assert len(torch.unique(tasks.dynamics[:, 0])) == WORLDS
    nominal = replace(tasks, dynamics=family.parameters.nominal(WORLDS))
    assert_differing_robots_are_near(family, tasks, nominal, device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["half-cheetah-crippled", "ant-crippled"])
def test_crippled_robots_step_as_in_mujoco(name, device):
    family = make_family(name)
    tasks = family.sample_tasks(WORLDS, "train", torch.Generator().manual_seed(0))
    whole = replace(tasks, powerless=torch.zeros_like(tasks.powerless))
    assert_differing_robots_are_near(family, tasks, whole, device)


DISTURBED = Randomization(
    (
        Vary("action_delay", 0, 3),
        Vary("action_dropout", 0.1, 0.6),
        Vary("observation_noise", 0.0, 0.5),
        Vary("observation_bias", -0.5, 0.5),
        Vary("observation_delay", 0, 2),
        Vary("push_force", 20.0, 200.0),
        Vary("initial_state", 0.5, 2.0),
    )
)


def test_all_quantities_are_compared():
    varied = {vary.quantity for vary in DISTURBED.vary}
    assert varied.isdisjoint(QUANTITIES) and varied | QUANTITIES.keys() == {*ALL_QUANTITIES}


@pytest.mark.parametrize("device", DEVICES)
def test_disturbances_are_the_same(device):
    family = make_family("ant-dir", randomize=DISTURBED, horizon=12)
    tasks = family.sample_tasks(WORLDS, "train", torch.Generator().manual_seed(0))
    cpu, warp, actions = on_cpu(family), on_warp(family, device), Actions(family)
    for env in (cpu, warp):
        env.set_tasks(tasks)
    torch.testing.assert_close(warp.reset()[0].cpu(), cpu.reset()[0], rtol=1e-6, atol=1e-6)
    pushes = 0
    for _ in range(3):
        for expected, ours in together(cpu, warp, actions):
            torch.testing.assert_close(ours[0].cpu(), expected[0], rtol=1e-3, atol=1e-3)
            assert torch.equal(ours[3].cpu(), expected[3])
            mine, theirs = (env._disturbances.state_dict() for env in (warp, cpu))
            for name in ("commands", "executed", "force", "push_left"):
                torch.testing.assert_close(mine[name].cpu(), theirs[name], rtol=1e-6, atol=1e-6)
            pushed = warp.physics.field("xfrc_applied").abs().sum((1, 2)) > 0
            pushes += int(pushed.sum())
    assert pushes > 0


def fallen(family, worlds, generator):
    """Robots near the floor, turned any way."""
    compiled = family.model().compiled
    qpos = torch.from_numpy(compiled.qpos0).repeat(worlds, 1)
    if compiled.jnt_type[0] == mujoco.mjtJoint.mjJNT_FREE:
        turned = torch.randn(worlds, 4, generator=generator, dtype=torch.float64)
        qpos[:, 3:7] = turned / turned.norm(dim=1, keepdim=True)
        qpos[:, 2] = 0.6
    elif compiled.nq > 5:
        qpos[:, 1] *= 0.5
        qpos[:, 2] = 2 * torch.pi * torch.rand(worlds, generator=generator)
    return qpos


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "name",
    ["half-cheetah-vel", "ant-goal", "humanoid-dir", "walker2d-vel", "hopper-vel", "reacher-goal"],
)
def test_fallen_robots_find_room_for_their_contacts(name, device):
    """Full strength at random, seen by MuJoCo Warp one substep in fifty."""
    worlds, generator = 32, torch.Generator().manual_seed(0)
    family = make_family(name)
    cpu, warp = on_cpu(family, worlds).physics, on_warp(family, device, worlds).physics
    assert family.limits.contacts and family.limits.constraints
    every = torch.ones(worlds, dtype=torch.bool)
    qpos = fallen(family, worlds, generator)
    cpu.reset(every, qpos, 0.1 * torch.randn(worlds, cpu.field("qvel").shape[1]))
    contacts, rows = cpu.field("ncon"), cpu.field("nefc")
    strongest = torch.from_numpy(family.model().compiled.actuator_ctrlrange[:, 1].copy())
    most = 0
    for step in range(100):
        u = torch.rand(worlds, len(strongest), generator=generator) - 0.5
        cpu.step(u.sign() * strongest, family.frame_skip)
        most = max(most, int(rows.max()))
        assert contacts.double().mean() <= family.limits.contacts / 2
        if step % 10 == 0:
            warp.put(every, cpu.state_dict()["rows"])
            warp.step((u.sign() * strongest).to(warp.device), 1)
    assert 0 < most <= family.limits.constraints
    assert all(counts.sum() == 0 for counts in warp.troubles().overflow.values())


def test_every_robot_but_a_users_own_says_how_much_room_it_needs():
    without = [name for name in ROBOTS if make_family(name).limits.contacts is None]
    assert without == ["crane"]

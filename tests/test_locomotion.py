"""The robots against gymnasium's, and against the published definitions, one world at a time."""

import copy
import re
from pathlib import Path

import gymnasium as gym
import mujoco
import numpy as np
import pytest
import torch

from metarl.envs.ant import AntDir, AntGoal
from metarl.envs.crippled import AntCrippled, HalfCheetahCrippled, PowerlessJoint, PowerlessLeg
from metarl.envs.forces import with_contact_forces
from metarl.envs.goals import Direction, Heading, Place, TargetSpeed
from metarl.envs.humanoid import HumanoidDir
from metarl.envs.planar import HopperRandParams, HopperVel, Walker2dRandParams, Walker2dVel
from metarl.envs.randomization import Randomization, Vary
from metarl.envs.reacher import ReacherGoal
from metarl.envs.registry import FAMILIES, make_family
from metarl.envs.robot import Robot, gymnasium_model
from metarl.errors import UsageError

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "robots.md"


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def started(family, worlds=2, split="train", seed=0):
    env = family.make_worlds(worlds, seed=seed)
    env.set_tasks(family.sample_tasks(worlds, split, generator(seed)))
    return env, env.reset()[0]


def random_actions(family, steps, worlds=2):
    size = family.action_space.shape[0]
    return 2 * torch.rand(steps, worlds, size, generator=generator(1)) - 1


def state_of(env, world):
    return [env.physics.field(name)[world].numpy().copy() for name in ("qpos", "qvel")]


def put(model, data, qpos, qvel):
    """Begin an episode: what is derived from the state is known, and the solver starts afresh."""
    mujoco.mj_resetData(model, data)
    data.qpos[:], data.qvel[:] = qpos, qvel
    warm = data.qacc_warmstart.copy()
    mujoco.mj_forward(model, data)
    data.qacc_warmstart[:] = warm


# --- observations are gymnasium's ---------------------------------------------------------------


def everything(robot, obs):
    return obs


def all_but_forces(robot, obs):
    return obs[: 348 - 78]


def all_of_pearl(robot, obs):
    data = robot.data
    fields = (data.qpos[2:], data.qvel, data.cinert, data.cvel, data.qfrc_actuator)
    return np.concatenate([field.ravel() for field in fields])


def reacher_without_goal(robot, obs):
    return np.concatenate([obs[:4], obs[6:8], robot.data.body("fingertip").xpos[:2]])


OBSERVATIONS = {
    "walker": (Walker2dRandParams(randomize=Randomization()), everything),
    "walker-promp": (Walker2dVel(preset="promp"), everything),
    "hopper": (HopperVel(), everything),
    "ant": (AntDir(), everything),
    "ant-forces": (AntDir(preset="promp"), everything),
    "humanoid": (HumanoidDir(observation="gymnasium"), all_but_forces),
    "humanoid-pearl": (HumanoidDir(), all_of_pearl),
    "reacher": (ReacherGoal(), reacher_without_goal),
}


@pytest.mark.parametrize("case", OBSERVATIONS)
def test_observations_equal_gymnasiums(case):
    """Bit for bit in float32, over a whole episode and the resets within."""
    family, shown = OBSERVATIONS[case]
    env, obs = started(family)
    robots = [gym.make(family.gymnasium_id, **family.gymnasium_options).unwrapped for _ in range(2)]
    for robot in robots:
        robot.reset()
    begun, ends, width = [True, True], 0, None
    for action in random_actions(family, family.horizon):
        for world, robot in enumerate(robots):
            if begun[world]:
                put(robot.model, robot.data, *state_of(env, world))
                theirs = shown(robot, robot._get_obs())
                width = len(theirs)
                np.testing.assert_array_equal(obs[world, :width], theirs.astype(np.float32))
        obs, _, terminated, truncated, info = env.step(action)
        for world, robot in enumerate(robots):
            command = env.commands(action)[world].numpy()
            theirs = shown(robot, robot.step(command)[0])
            ours = info["final_obs"][world, :width]
            np.testing.assert_array_equal(ours, theirs.astype(np.float32))
        begun = (terminated | truncated).tolist()
        ends += sum(begun)
    assert ends >= 2
    forces = {"ant-forces": 84, "humanoid": 78, "humanoid-pearl": 84}
    assert width == family.observations - forces.get(case, 0)
    if case == "humanoid":
        assert robots[0].observation_space.shape == (family.observations,)


# --- rewards and ends are the published ones ----------------------------------------------------


def walker_fell(data):
    height, lean = data.qpos[1], data.qpos[2]
    return not (0.8 < height < 2.0 and -1.0 < lean < 1.0)


def hopper_fell(data):
    height, lean = data.qpos[1], data.qpos[2]
    rest = np.concatenate([data.qpos[2:], data.qvel])
    return not (height > 0.7 and -0.2 < lean < 0.2 and (abs(rest) < 100).all())


def legs_run(fell):
    def definition(before, data, u, task, dt, forces):
        speed = (data.qpos[0] - before.qpos[0]) / dt
        return speed + 1.0 - 1e-3 * (u**2).sum(), fell(data)

    return definition


def legs_at_speed(fell, bonus):
    def definition(before, data, u, task, dt, forces):
        speed = (data.qpos[0] - before.qpos[0]) / dt
        return -abs(speed - task["speed"]) + bonus - 1e-3 * (u**2).sum(), fell(data)

    return definition


def ant_direction(lowest, contact_weight):
    def definition(before, data, u, task, dt, forces):
        velocity = (data.body("torso").xpos - before.body("torso").xpos) / dt
        forward = velocity[0] * task["heading"][0] + velocity[1] * task["heading"][1]
        contact = contact_weight * (np.clip(forces, -1, 1) ** 2).sum()
        reward = forward - 0.5 * (u**2).sum() - contact + 1.0
        return reward, not lowest <= data.qpos[2] <= 1.0

    return definition


def ant_place(before, data, u, task, dt, forces):
    away = abs(data.body("torso").xpos[:2] - task["place"]).sum()
    contact = 0.5e-3 * (np.clip(forces, -1, 1) ** 2).sum()
    return -away - 0.1 * (u**2).sum() - contact, False


def ant_crippled(before, data, u, task, dt, forces):
    speed = (data.body("torso").subtree_com[0] - before.body("torso").subtree_com[0]) / dt
    return speed + 0.05, False


def cheetah_crippled(before, data, u, task, dt, forces):
    speed = (data.body("torso").subtree_com[0] - before.body("torso").subtree_com[0]) / dt
    mask = 1.0 - task["powerless"]
    return speed - 0.05 * ((mask * u) ** 2).sum(), False


def mass_centre(model, data):
    return (model.body_mass[:, None] * data.xipos).sum(0) / model.body_mass.sum()


def humanoid_direction(before, data, u, task, dt, forces):
    model = gymnasium_model("humanoid.xml").compiled
    moved = (mass_centre(model, data) - mass_centre(model, before))[:2]
    run = 0.25 * (task["heading"] * moved).sum() / model.opt.timestep
    impact = min(0.5e-6 * (forces**2).sum(), 10)
    fell = data.qpos[2] < 1.0 or data.qpos[2] > 2.0
    return run - 0.1 * (data.ctrl**2).sum() - impact + 5.0, fell


def reacher_place(before, data, u, task, dt, forces):
    away = data.body("fingertip").xpos - data.body("target").xpos
    return -np.sqrt((away**2).sum()) - (u**2).sum(), False


def as_it_is(model, task):
    pass


def other_body(moving):
    """Masses, inertias, dampings and frictions times the numbers of the task, in this order."""

    def edit(model, task):
        numbers = iter(task["dynamics"].tolist())
        for body in range(1, moving + 1):
            model.body_mass[body] *= next(numbers)
        for body in range(1, moving + 1):
            for axis in range(3):
                model.body_inertia[body, axis] *= next(numbers)
        for joint in range(3, model.njnt):
            model.dof_damping[joint] *= next(numbers)
        for geom in range(model.ngeom):
            for kind in range(3):
                model.geom_friction[geom, kind] *= next(numbers)
        assert next(numbers, None) is None

    return edit


def powerless_joint(model, task):
    model.actuator_gear[int(task["powerless"].argmax())] = 0.0


def powerless_leg(model, task):
    """What the paper's code does to the model, leg by leg."""
    leg = int(task["powerless"].argmax())
    hip, ankle = [("hip_1", "ankle_1"), ("hip_2", "ankle_2"), ("hip_3", "ankle_3")][leg % 3]
    upper, lower = (3, 4) if leg == 0 else (6, 7) if leg == 1 else (9, 10)
    if leg == 3:
        hip, ankle, upper, lower = "hip_4", "ankle_4", 12, 13
    for actuator in range(model.nu):
        if model.joint(model.actuator_trnid[actuator, 0]).name in (hip, ankle):
            model.actuator_gear[actuator] = 0.0
    for geom in (upper, lower):
        model.geom_size[geom, :2] /= 2
    model.geom_pos[lower] = model.geom_pos[upper]


MODELS = {
    "Walker2d-v5": "walker2d_v5.xml",
    "Hopper-v5": "hopper.xml",
    "Ant-v5": "ant.xml",
    "HalfCheetah-v5": "half_cheetah.xml",
    "Humanoid-v5": "humanoid.xml",
    "Reacher-v5": "reacher.xml",
}
DEFINITIONS = {
    "walker-rand": (Walker2dRandParams(), "train", other_body(7), legs_run(walker_fell)),
    "walker-rand-far": (
        Walker2dRandParams(),
        "out-of-range",
        other_body(7),
        legs_run(walker_fell),
    ),
    "hopper-rand": (HopperRandParams(), "held-out", other_body(4), legs_run(hopper_fell)),
    "walker-vel": (Walker2dVel(), "out-of-range", as_it_is, legs_at_speed(walker_fell, 2.0)),
    "walker-promp": (
        Walker2dVel(preset="promp"),
        "train",
        as_it_is,
        legs_at_speed(walker_fell, 15.0),
    ),
    "hopper-vel": (HopperVel(), "held-out", as_it_is, legs_at_speed(hopper_fell, 2.0)),
    "ant-dir": (AntDir(), "train", as_it_is, ant_direction(0.2, 0.0)),
    "ant-all": (AntDir(directions="all"), "train", as_it_is, ant_direction(0.2, 0.0)),
    "ant-promp": (AntDir(preset="promp"), "train", as_it_is, ant_direction(0.0, 0.5e-3)),
    "ant-goal": (AntGoal(), "train", as_it_is, ant_place),
    "ant-crippled": (AntCrippled(), "train", powerless_leg, ant_crippled),
    "ant-crippled-4": (AntCrippled(), "held-out", powerless_leg, ant_crippled),
    "cheetah-crippled": (HalfCheetahCrippled(), "train", powerless_joint, cheetah_crippled),
    "humanoid": (HumanoidDir(), "train", as_it_is, humanoid_direction),
    "reacher": (ReacherGoal(), "train", as_it_is, reacher_place),
}


def advance(model, data, u, substeps):
    """One control step; the forces on the bodies at the beginning of its last substep."""
    data.ctrl[:] = u
    mujoco.mj_step(model, data, nstep=substeps - 1)
    twin = copy.copy(data)
    mujoco.mj_forward(model, twin)
    mujoco.mj_rnePostConstraint(model, twin)
    mujoco.mj_step(model, data)
    return twin.cfrc_ext.copy()


@pytest.mark.parametrize("case", DEFINITIONS)
def test_rewards_and_ends_are_the_published_ones(case):
    """Over steps of random actions and resets, with bodies edited by hand where they differ."""
    family, split, edit, definition = DEFINITIONS[case]
    env, _ = started(family, split=split, seed=3)
    tasks = [
        {name: x[world].numpy() for name, x in env.tasks.tensors().items()} for world in range(2)
    ]
    models = [copy.copy(gymnasium_model(MODELS[family.gymnasium_id]).compiled) for _ in tasks]
    substeps, dt, begun, ends = env.n_substeps, family.dt, [True, True], 0
    datas = [mujoco.MjData(model) for model in models]
    for model, data, task in zip(models, datas, tasks, strict=True):
        edit(model, task)
        mujoco.mj_setConst(model, data)
    for action in random_actions(family, 80):
        for world in np.flatnonzero(begun):
            put(models[world], datas[world], *state_of(env, world))
        _, reward, terminated, truncated, info = env.step(action)
        for world, (model, data, task) in enumerate(zip(models, datas, tasks, strict=True)):
            u = env.commands(action)[world].double().numpy()
            before = copy.copy(data)
            forces = advance(model, data, u, substeps)
            expected, fell = definition(before, data, u, task, dt, forces)
            assert float(reward[world]) == pytest.approx(expected, rel=1e-6, abs=1e-6)
            assert bool(terminated[world]) == bool(fell)
        begun = (terminated | truncated).tolist()
        ends += int(terminated.sum())
        assert not info["unstable"].any()
    if case.startswith(("walker", "hopper", "humanoid")):
        assert ends > 0


def at(family, **changed):
    """Default states of worlds, apart from numbers such as `qpos_2`: one list for each."""
    compiled = family.model().compiled
    worlds = len(next(iter(changed.values())))
    state = {
        "qpos": torch.from_numpy(compiled.qpos0).repeat(worlds, 1),
        "qvel": torch.zeros(worlds, compiled.nv, dtype=torch.float64),
    }
    for place, values in changed.items():
        name, index = place.split("_")
        state[name][:, int(index)] = torch.tensor(values, dtype=torch.float64)
    return state


def around(limit):
    """A number just below a limit, the limit, and one just above it."""
    return [np.nextafter(limit, -np.inf), limit, np.nextafter(limit, np.inf)]


NO, YES, NAN = False, True, float("nan")
EDGES = {
    "walker-low": (Walker2dVel(), {"qpos_1": [*around(0.8), NAN]}, [YES, YES, NO, YES]),
    "walker-high": (Walker2dVel(), {"qpos_1": around(2.0)}, [NO, YES, YES]),
    "walker-lean": (Walker2dRandParams(), {"qpos_2": around(1.0)}, [NO, YES, YES]),
    "walker-back": (Walker2dRandParams(), {"qpos_2": around(-1.0)}, [YES, YES, NO]),
    "hopper-low": (HopperVel(), {"qpos_1": [*around(0.7), NAN]}, [YES, YES, NO, YES]),
    "hopper-high": (HopperVel(), {"qpos_1": [200.0]}, [NO]),
    "hopper-lean": (HopperVel(), {"qpos_2": around(0.2)}, [NO, YES, YES]),
    "hopper-joint": (HopperRandParams(), {"qpos_4": around(-100.0)}, [YES, YES, NO]),
    "hopper-fast": (HopperRandParams(), {"qvel_0": around(100.0)}, [NO, YES, YES]),
    "ant-low": (AntDir(), {"qpos_2": [*around(0.2), NAN]}, [YES, NO, NO, YES]),
    "ant-high": (AntDir(), {"qpos_2": around(1.0)}, [NO, NO, YES]),
    "ant-promp": (AntDir(preset="promp"), {"qpos_2": around(0.0)}, [YES, NO, NO]),
    "humanoid-low": (HumanoidDir(), {"qpos_2": [*around(1.0), NAN]}, [YES, NO, NO, YES]),
    "humanoid-high": (HumanoidDir(), {"qpos_2": around(2.0)}, [NO, NO, YES]),
}


@pytest.mark.parametrize("case", EDGES)
def test_episodes_end_at_the_published_edges(case):
    family, changed, expected = EDGES[case]
    assert family.terminated(at(family, **changed)).tolist() == expected


@pytest.mark.parametrize(
    "family", [AntGoal(), AntCrippled(), HalfCheetahCrippled(), ReacherGoal()], ids=str
)
def test_the_others_never_end(family):
    assert family.terminated({}) is None


# --- contact forces -----------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["ant.xml", "humanoid.xml"])
def test_models_with_forces_are_otherwise_the_same_to_the_last_bit(file):
    plain = gymnasium_model(file)
    feeling = with_contact_forces(plain)
    assert with_contact_forces(plain) is feeling
    compared = 0
    for name in dir(plain.compiled):
        value = getattr(plain.compiled, name)
        about_it = name.startswith(("_", "site_", "sensor_", "name", "nsite", "nsensor"))
        if isinstance(value, np.ndarray) and not about_it:
            np.testing.assert_array_equal(getattr(feeling.compiled, name), value, err_msg=name)
            compared += value.size > 0
    assert compared > 100
    assert (plain.compiled.nsensor, feeling.compiled.nsensor) == (0, 1)
    assert feeling.compiled.opt.timestep == plain.compiled.opt.timestep


@pytest.mark.parametrize("family", [AntGoal(), HumanoidDir(observation="gymnasium")], ids=str)
def test_forces_are_those_at_the_beginning_of_the_last_substep(family):
    """Bit for bit, on all bodies; after the step, as gymnasium has them, they are others."""
    env, _ = started(family, worlds=1)
    model = gymnasium_model(MODELS[family.gymnasium_id]).compiled
    data = mujoco.MjData(model)
    put(model, data, *state_of(env, 0))
    touched, unlike = 0, 0
    for action in random_actions(family, 60, worlds=1):
        *_, terminated, _, _ = env.step(action)
        if terminated:
            break
        forces = advance(model, data, env.commands(action)[0].double().numpy(), env.n_substeps)
        np.testing.assert_array_equal(env.physics.field("cfrc_ext")[0], forces)
        mujoco.mj_rnePostConstraint(model, data)
        touched += bool(forces.any())
        unlike += not np.allclose(forces, data.cfrc_ext)
    assert touched > 5
    assert unlike > 5


def test_forces_are_shown_cut():
    env, obs = started(AntGoal())
    forces, strongest = env.physics.field("cfrc_ext"), 0.0
    assert not obs[:, 29:].any()  # in the air
    for action in random_actions(env.family, 40):
        obs, *_ = env.step(action)
        np.testing.assert_array_equal(obs[:, 29:], forces.flatten(1).clamp(-1, 1).float())
        strongest = max(strongest, float(forces.abs().max()))
    assert strongest > 1


def test_impacts_cost_at_most_10():
    family = HumanoidDir()
    state = {"subtree_com": torch.zeros(2, 14, 3), "cfrc_ext": torch.zeros(2, 14, 6)}
    state["cfrc_ext"][0, 3, 5], state["cfrc_ext"][1, 3, 5] = 1e3, 1e6
    heading = Heading(torch.tensor([[1.0, 0.0]] * 2))
    reward = family.reward(state, state, torch.zeros(2, 17), heading)
    np.testing.assert_allclose(reward, [5 - 0.5, 5 - 10])


# --- humanoid -----------------------------------------------------------------------------------


def test_the_centre_of_mass_is_that_of_each_worlds_own_body():
    masses = Vary("body_mass", 0.3, 3.0, "log-uniform", each=True)
    family = HumanoidDir(randomize=Randomization((masses,)))
    env, _ = started(family, worlds=3)
    xipos, centre = env.physics.field("xipos"), env.physics.field("subtree_com")
    mass = torch.from_numpy(family.model().compiled.body_mass.copy()).repeat(3, 1)
    mass[:, 1:] *= env.tasks.dynamics
    for action in random_actions(family, 10, worlds=3):
        env.step(action)
        expected = (mass.unsqueeze(-1) * xipos).sum(1) / mass.sum(1, keepdim=True)
        np.testing.assert_allclose(centre[:, 0], expected, rtol=1e-12, atol=1e-14)
    assert env.physics.field("qpos").isfinite().all()


def test_humanoids_command_in_the_units_of_their_motors():
    env, _ = started(HumanoidDir())
    np.testing.assert_allclose(env.commands(torch.full((2, 17), -0.5)), -0.2)
    env.step(torch.full((2, 17), 7.0))
    np.testing.assert_allclose(env.physics.field("ctrl"), 0.4)


# --- crippled robots ----------------------------------------------------------------------------


def torques(env):
    """Torques of the motors on the joints that they drive, `[W, U]`."""
    compiled = env.physics.model.compiled
    dofs = compiled.jnt_dofadr[compiled.actuator_trnid[:, 0]]
    return env.physics.field("qfrc_actuator")[:, dofs.tolist()]


@pytest.mark.parametrize("family", [HalfCheetahCrippled(), AntCrippled()], ids=str)
def test_motors_without_power_do_nothing_and_get_it_back(family):
    motors = {"half-cheetah-crippled": [[j] for j in range(6)]}.get(
        family.name, [[2, 3], [4, 5], [6, 7], [0, 1]]
    )
    parts = len(motors)
    env = family.make_worlds(parts)
    for shift in (0, 1):
        env.set_tasks(family.task_class(powerless=torch.eye(parts).double().roll(shift, 1)))
        env.reset()
        for action in random_actions(family, 5, worlds=parts):
            env.step(action)
            off = torques(env) == 0
            for world in range(parts):
                assert off[world].nonzero()[:, 0].tolist() == motors[(world + shift) % parts]


def test_crippled_robots_are_split_as_published():
    for family, trained, held_out in (
        (HalfCheetahCrippled(), {1, 2, 3, 4, 5}, {0}),
        (AntCrippled(), {0, 1, 2}, {3}),
    ):
        for split, expected in (("train", trained), ("held-out", held_out)):
            tasks = family.sample_tasks(200, split, generator())
            assert set(tasks.powerless.argmax(1).tolist()) == expected
            assert (tasks.powerless.sum(1) == 1).all()
            assert torch.equal(tasks.features(), tasks.powerless.float())
        assert family.task_kind == "one-hot"


def test_crippled_robots_may_be_randomised_too():
    vary = (Vary("actuator_strength", 0.5, 0.9, each=True), Vary("body_mass", 0.5, 0.9))
    family = HalfCheetahCrippled(randomize=Randomization(vary))
    env, _ = started(family, worlds=4)
    gear = env.physics.state_dict()["model.actuator_gear"][:, :, 0]
    strength = env.tasks.dynamics[:, :6] * (1 - env.tasks.powerless)
    nominal = torch.from_numpy(family.model().compiled.actuator_gear[:, 0].copy())
    np.testing.assert_allclose(gear, nominal * strength)
    assert family.task_kind == "continuous"
    assert family.splits == ("train", "held-out", "out-of-range", "nominal")
    words = family.describe(env.tasks, 1)
    assert re.fullmatch(r"no power: (back|front) \w+, \w.*", words)


# --- reacher ------------------------------------------------------------------------------------


def test_the_reachers_goal_is_in_the_world_but_not_shown():
    family = ReacherGoal()
    goals = torch.tensor([[0.1, 0.05], [-0.15, 0.0]], dtype=torch.float64)
    seen, earned = [], []
    for goal in goals:
        env = family.make_worlds(1, seed=4)
        env.set_tasks(Place(goal.unsqueeze(0)))
        obs, _ = env.reset()
        steps = [env.step(action) for action in random_actions(family, 30, worlds=1)]
        seen.append(torch.stack([obs, *(step[0] for step in steps)]))
        earned.append(torch.stack([step[1] for step in steps]))
        target = env.physics.model.compiled.body("target").id
        place = env.physics.field("xpos")[0, target, :2]
        np.testing.assert_allclose(place, goal, rtol=1e-15)
        np.testing.assert_array_equal(env.physics.field("qpos")[0, 2:], goal)
        assert family.marker(env.tasks, 0) == (*goal.tolist(), 0.01)
    assert torch.equal(*seen)
    assert not torch.isclose(*earned).any()


def test_reachers_begin_as_gymnasiums():
    env, _ = started(ReacherGoal(), worlds=4000)
    qpos, qvel = env.physics.field("qpos"), env.physics.field("qvel")
    for values, most in ((qpos[:, :2], 0.1), (qvel[:, :2], 0.005)):
        assert 0.99 * most < values.abs().max() <= most
        np.testing.assert_allclose(values.std(0), most / 3**0.5, rtol=0.05)
    assert not qvel[:, 2:].any()
    radius = env.tasks.place.norm(dim=1)
    assert radius.max() <= 0.2
    assert radius.square().mean() == pytest.approx(0.02, rel=0.03)  # uniform by area


# --- tasks --------------------------------------------------------------------------------------


def test_speeds_of_the_splits():
    for family, most, beyond in (
        (HopperVel(), 2.0, 3.0),
        (Walker2dVel(), 2.0, 3.0),
        (Walker2dVel(preset="promp"), 10.0, 12.0),
    ):
        for split, low, high in (("train", 0, most), ("out-of-range", most, beyond)):
            speed = family.sample_tasks(5000, split, generator()).speed
            assert low <= speed.min() and speed.max() <= high
            assert speed.mean() == pytest.approx((low + high) / 2, rel=0.03)


def test_headings_fill_the_circle_and_are_split():
    for family in (AntDir(directions="all"), HumanoidDir()):
        assert not family.shared_splits
        rows = {}
        for split in ("train", "held-out"):
            heading = family.sample_tasks(2000, split, generator()).heading
            np.testing.assert_allclose(heading.norm(dim=1), 1)
            np.testing.assert_allclose(heading.mean(0), 0, atol=0.05)
            # Arcs of the circle, every fifth of a thousand held out.
            turns = torch.atan2(heading[:, 1], heading[:, 0]) / (2 * torch.pi) % 1
            rows[split] = set((turns * 1000).floor().int().tolist())
        assert not rows["train"] & rows["held-out"]
        assert {arc % 5 for arc in rows["held-out"]} == {4}


def test_standing_still_is_never_punished_by_the_default():
    for family in (HopperVel(), Walker2dVel()):
        speed = family.sample_tasks(1000, "train", generator()).speed
        still = family.earned(torch.zeros(1000).double(), TargetSpeed(speed))
        assert 0 <= still.min() < 0.01


def test_tasks_in_words():
    def tensor(*values):
        return torch.tensor(values, dtype=torch.float64)

    heading = Heading(tensor([1.0, 0.0], [-(0.5**0.5), 0.5**0.5], [0.0, -1.0]))
    assert [AntDir().describe(heading, i) for i in range(3)] == [
        "heading 0 deg",
        "heading 135 deg",
        "heading 270 deg",
    ]
    assert HopperVel().describe(TargetSpeed(tensor(0.5, 1.2)), 1) == "speed 1.20 m/s"
    ways = Direction(tensor(-1.0, 1.0))
    cheetah = make_family("half-cheetah-dir")
    assert [cheetah.describe(ways, i) for i in (0, 1)] == ["backward", "forward"]
    place = Place(tensor([1.2, -0.311]))
    assert AntGoal().describe(place, 0) == "goal (1.20, -0.31) m"
    assert AntGoal().marker(place, 0) == (1.2, -0.311, 0.0)
    assert HumanoidDir().marker(heading, 0) is None
    joint, leg = torch.eye(6).double()[2:3], torch.eye(4).double()[3:]
    assert HalfCheetahCrippled().describe(PowerlessJoint(joint), 0) == "no power: back foot"
    assert AntCrippled().describe(PowerlessLeg(leg), 0) == "no power: front right leg"


def test_names_of_legs_are_where_they_are():
    """Seen from above, with x forward and y to the left."""
    family = AntCrippled()
    compiled = family.model().compiled
    for index, (x, y) in enumerate(((1, 1), (-1, 1), (-1, -1), (1, -1))):
        words = family.describe(PowerlessLeg(torch.eye(4).double()), index)
        assert (
            words == f"no power: {'front' if x > 0 else 'back'} {'left' if y > 0 else 'right'} leg"
        )
        foot = compiled.body(int(compiled.geom_bodyid[4 + 3 * index]))
        hip = compiled.body(int(compiled.body_parentid[foot.id]))
        assert np.sign(hip.pos[:2]).tolist() == [x, y]


def test_bad_options():
    for family, option in ((Walker2dVel, "preset"), (HumanoidDir, "observation")):
        with pytest.raises(UsageError, match=f"unknown {option} 'maml'; choose from"):
            family(**{option: "maml"})


# --- the document -------------------------------------------------------------------------------


def rows():
    """Family, options, observation, steps, substeps, ms of the document's first table."""
    table = DOCUMENT.read_text().partition("| family | options |")[2].partition("\n\n")[0]
    name = ""
    for line in table.splitlines()[2:]:
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        name = cells[0].strip("`") or name
        options = dict(part.split("=") for part in re.findall(r"`(.*?)`", cells[1]))
        yield name, options, int(cells[2]), int(cells[5]), cells[6]


@pytest.mark.parametrize("row", list(rows()), ids=str)
def test_the_table_of_definitions_is_right(row):
    name, options, observations, steps, duration = row
    family = make_family(name, **options)
    assert family.observation_space.shape == (observations,)
    assert family.horizon == steps
    timestep = 1000 * family.dt / family.frame_skip
    assert duration == f"{family.frame_skip} x {timestep:g} ms"
    assert len(started(family)[1][0]) == observations


def test_the_table_of_definitions_names_every_robot():
    """Those that are published somewhere, on models that gymnasium ships."""
    families = [make_family(name) for name in FAMILIES]
    robots = [f.name for f in families if isinstance(f, Robot) and hasattr(f, "gymnasium_id")]
    assert len(robots) >= 13
    assert set(robots) == {row[0] for row in rows()}

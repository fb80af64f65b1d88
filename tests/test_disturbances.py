"""What domain randomisation does to worlds, against plain MuJoCo and lists of what was sent."""

import copy
import math
from dataclasses import replace

import mujoco
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from test_families import assert_same, play
from test_house import ROOT

from metarl.adapters import FamilyEnv
from metarl.envs import from_mjcf
from metarl.envs.disturbances import Disturbances, Settings
from metarl.envs.randomization import NOTHING, QUANTITIES, Randomization, Vary, load_randomization
from metarl.envs.registry import make_family
from metarl.errors import UsageError
from metarl.oracle import TaskInObservation

ARM = """
<mujoco>
  <option timestep="0.01" gravity="0 0 -9.81"/>
  <worldbody>
    <body name="ball" pos="0 0 1">
      <joint name="ball" type="ball" damping="0.4" armature="0.02"/>
      <geom name="big" type="capsule" fromto="0 0 0 0.3 0 0" size="0.05"/>
      <body name="tip" pos="0.3 0 0">
        <joint name="tip" axis="0 1 0" damping="0.1 0.3" armature="0.01"/>
        <geom name="small" type="box" size="0.1 0.05 0.02" pos="0.1 0 0"/>
      </body>
    </body>
    <body name="frame" pos="3 0 0"><joint/><geom size="0.1" pos="0.2 0 0"/>
      <body name="massless" pos="0.4 0 0"><site name="tool"/></body></body>
    <body name="free" pos="1 0 1"><freejoint/><geom name="puck" size="0.1"/></body>
    <body name="slider" pos="2 0 1"><joint name="slide" type="slide"/><geom size="0.1"/></body>
  </worldbody>
  <actuator><position name="servo" joint="tip" kp="3" kv="0.2" ctrlrange="-2 2"/></actuator>
</mujoco>
"""
"""Joints of all kinds, a servo, damping that grows with the speed, and a body that floats alone."""


@pytest.fixture(scope="module")
def arm(tmp_path_factory):
    """The class of a robot with joints of all kinds."""
    path = tmp_path_factory.mktemp("robots") / "arm.xml"
    path.write_text(ARM)
    return from_mjcf(
        path,
        name="arm",
        observation=lambda state: torch.cat([state["qpos"], state["qvel"]], -1),
        reward=lambda before, after, command, task: after["qpos"][:, 0],
        reset_noise=0.01,
        horizon=30,
    )


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def varied(name, *vary, **options):
    return make_family(name, randomize=Randomization(vary), **options)


def started(family, worlds=3, split="train", seed=5, tasks=None):
    """Worlds with a task each, after their reset; and the first observation."""
    env = family.make_worlds(worlds, seed=seed)
    env.set_tasks(family.sample_tasks(worlds, split, generator()) if tasks is None else tasks)
    return env, env.reset()[0]


def random_actions(env, steps, seed=0):
    shape = (steps, env.num_envs, *env.single_action_space.shape)
    return 2.0 * torch.rand(shape, generator=generator(seed)) - 1.0


# --- models, against one that is edited by hand --------------------------------------------------


def scale(**fields):
    """Multiply rows of fields of a model: field to (rows, a function from numbers to factors)."""

    def edit(model, x):
        for name, (rows, factors) in fields.items():
            values = getattr(model, name)
            for row in rows(model) if callable(rows) else rows:
                values[row] *= factors(x, row)

    return edit


def first(x, row):
    return x[0]


MOVING = range(1, 8)
ALL_GEOMS, HINGES, MOTORS = range(9), range(3, 9), range(6)
CHEETAH = {
    "mass": (Vary("body_mass", 0.5, 2.0), scale(body_mass=(MOVING, first))),
    "mass each": (
        Vary("body_mass", 0.5, 2.0, each=True),
        scale(body_mass=(MOVING, lambda x, i: x[i - 1])),
    ),
    "mass of two in their own order": (
        Vary("body_mass", 0.5, 2.0, each=True, of=("ffoot", "torso")),
        scale(body_mass=((7, 1), lambda x, i: x[0] if i == 7 else x[1])),
    ),
    "one mass of two": (
        Vary("body_mass", 0.5, 2.0, of=("ffoot", "torso")),
        scale(body_mass=((1, 7), first)),
    ),
    "inertia": (Vary("body_inertia", 0.5, 2.0), scale(body_inertia=(MOVING, first))),
    "inertia each": (
        Vary("body_inertia", 0.8, 1.2, each=True),
        scale(body_inertia=(MOVING, lambda x, i: x[3 * i - 3 : 3 * i])),
    ),
    "density": (
        Vary("density", 0.5, 2.0, "log-uniform"),
        scale(body_mass=(MOVING, first), body_inertia=(MOVING, first)),
    ),
    "density each": (
        Vary("density", 0.5, 2.0, each=True, of=("torso", "bfoot")),
        scale(
            body_mass=((1, 4), lambda x, i: x[i // 4]),
            body_inertia=((1, 4), lambda x, i: x[i // 4]),
        ),
    ),
    "friction": (Vary("friction", 0.2, 2.0), scale(geom_friction=(ALL_GEOMS, first))),
    "friction each": (
        Vary("friction", 0.2, 2.0, each=True),
        scale(geom_friction=(ALL_GEOMS, lambda x, i: x[3 * i : 3 * i + 3])),
    ),
    "damping": (Vary("damping", 0.2, 2.0), scale(dof_damping=(HINGES, first))),
    "damping each": (
        Vary("damping", 0.2, 2.0, each=True),
        scale(dof_damping=(HINGES, lambda x, i: x[i - 3])),
    ),
    "damping of one": (
        Vary("damping", 0.2, 2.0, of=("fshin",)),
        scale(dof_damping=((7,), first)),
    ),
    "armature": (Vary("armature", 0.2, 2.0), scale(dof_armature=(HINGES, first))),
    "armature each": (
        Vary("armature", 0.2, 2.0, each=True),
        scale(dof_armature=(HINGES, lambda x, i: x[i - 3])),
    ),
    "strength": (Vary("actuator_strength", 0.2, 1.2), scale(actuator_gear=(MOTORS, first))),
    "strength each": (
        Vary("actuator_strength", 0.0, 1.2, each=True),
        scale(actuator_gear=(MOTORS, lambda x, i: x[i])),
    ),
    "gain": (Vary("actuator_gain", 0.2, 1.2), scale(actuator_gainprm=(MOTORS, first))),
    "gravity": (
        Vary("gravity", 0.5, 1.5),
        lambda model, x: np.multiply.at(model.opt.gravity, slice(None), x[0]),
    ),
    "payload": (
        Vary("payload", 1.0, 3.0),
        lambda model, x: np.add.at(model.body_mass, 1, x[0]),
    ),
    "payload of two": (
        Vary("payload", 1.0, 3.0, of=("bfoot", "ffoot"), each=True),
        lambda model, x: (
            model.body_mass[[4, 7]].__iadd__(x)
            is model.body_mass.__setitem__([4, 7], model.body_mass[[4, 7]] + x)
        ),
    ),
}
ARMS = {
    "servo": (
        Vary("actuator_gain", 0.2, 2.0),
        scale(actuator_gainprm=((0,), first), actuator_biasprm=((0,), first)),
    ),
    "damping": (
        Vary("damping", 0.2, 2.0),
        scale(dof_damping=(range(4), first), dof_dampingpoly=(range(4), first)),
    ),
    "damping of every degree of freedom": (
        Vary("damping", 0.2, 2.0, each=True),
        scale(dof_damping=(range(4), lambda x, i: x[i]), dof_dampingpoly=((3,), lambda x, i: x[3])),
    ),
    "armature of a ball": (
        Vary("armature", 0.2, 2.0, each=True, of=("ball",)),
        scale(dof_armature=(range(3), lambda x, i: x[i])),
    ),
}


def assert_moves_as_edited(family, edit, steps=25):
    """Each world moves, to the last bit, as a plain simulation of a model edited by hand."""
    env, _ = started(family)
    qpos, qvel = (env.physics.field(name) for name in ("qpos", "qvel"))
    plain = []
    for world in range(env.num_envs):
        model = copy.deepcopy(family.model().compiled)
        edit(model, env.tasks.dynamics[world].numpy())
        data = mujoco.MjData(model)
        mujoco.mj_setConst(model, data)
        mujoco.mj_resetData(model, data)
        data.qpos[:], data.qvel[:] = qpos[world], qvel[world]
        plain.append((model, data))
    for action in random_actions(env, steps):
        env.step(action)
        for (model, data), command in zip(plain, env.commands(action), strict=True):
            data.ctrl[:] = command
            mujoco.mj_step(model, data, family.frame_skip)
    np.testing.assert_array_equal(qpos, [data.qpos for _, data in plain])
    np.testing.assert_array_equal(qvel, [data.qvel for _, data in plain])
    unvaried = replace(family, randomize=NOTHING)
    same = started(unvaried, tasks=replace(env.tasks, dynamics=torch.zeros(3, 0)))[0]
    for action in random_actions(env, steps):
        same.step(action)
    assert not torch.equal(same.physics.field("qpos"), qpos)


@pytest.mark.parametrize("case", CHEETAH)
def test_a_varied_cheetah_moves_as_a_model_edited_by_hand(case):
    vary, edit = CHEETAH[case]
    assert_moves_as_edited(varied("half-cheetah-vel", vary), edit)


@pytest.mark.parametrize("case", ARMS)
def test_a_varied_arm_moves_as_a_model_edited_by_hand(arm, case):
    vary, edit = ARMS[case]
    assert_moves_as_edited(arm(randomize=Randomization((vary,))), edit)


def test_every_quantity_of_the_model_was_tried():
    tried = {vary.quantity for vary, _ in (*CHEETAH.values(), *ARMS.values())}
    between = {name for name in QUANTITIES if QUANTITIES[name].unit in ("steps", "", "N")}
    assert tried | between | {"com_offset", "initial_state"} == set(QUANTITIES)


@pytest.mark.parametrize(
    ("name", "bodies"), [("half-cheetah-vel", ("bthigh", "torso")), ("ant-dir", ("torso",))]
)
def test_a_shifted_centre_of_mass_is_that_of_a_model_compiled_so(name, bodies):
    """Geoms stay where they are, which MuJoCo's shortcuts would have moved along."""
    family = varied(name, Vary("com_offset", -0.1, 0.1, of=bodies), Vary("density", 2.0, 2.0))
    env, _ = started(family)
    original = family.model().compiled
    for world in range(env.num_envs):
        spec = mujoco.MjSpec.from_string(family.model().xml)
        spec.compiler.inertiafromgeom, spec.compiler.settotalmass = 0, -1
        offsets = env.tasks.dynamics[world, :-1].view(-1, 3).numpy()
        for index, own in enumerate(spec.bodies[1:], start=1):
            own.explicitinertial = True
            own.mass = 2.0 * original.body_mass[index]
            own.inertia = 2.0 * original.body_inertia[index]
            own.ipos, own.iquat = original.body_ipos[index].copy(), original.body_iquat[index]
            if own.name in bodies:
                own.ipos = own.ipos + offsets[bodies.index(own.name)]
        model = spec.compile()
        data = mujoco.MjData(model)
        data.qpos[:], data.qvel[:] = (env.physics.field(field)[world] for field in ("qpos", "qvel"))
        mujoco.mj_forward(model, data)
        for field in ("xipos", "geom_xpos"):
            ours = env.physics.field(field)[world]
            np.testing.assert_allclose(ours, getattr(data, field), atol=1e-12)
        plain, start = mujoco.MjData(original), data.geom_xpos.copy()
        plain.qpos[:] = data.qpos
        mujoco.mj_forward(original, plain)
        np.testing.assert_allclose(start, plain.geom_xpos, atol=1e-12)
        assert np.abs(data.xipos - plain.xipos).max() > 0.01
        for action in random_actions(env, 4, seed=world):
            data.ctrl[:] = env.commands(action)[world]
            mujoco.mj_step(model, data, family.frame_skip)
        other, _ = started(family)
        for action in random_actions(env, 4, seed=world):
            other.step(action)
        np.testing.assert_allclose(other.physics.field("qpos")[world], data.qpos, atol=1e-7)


def test_a_body_whose_centre_mujoco_takes_as_fixed_is_not_shifted(arm):
    shift = Randomization((Vary("com_offset", -0.1, 0.1),))
    columns = arm(randomize=shift).parameters.columns[0]
    names = [arm().model().compiled.body(i).name for i in columns.ids]
    assert names == ["ball", "tip", "frame"]
    started(arm(randomize=shift))
    with pytest.raises(UsageError, match="of body 'free' as fixed; give the body simple='false'"):
        arm(randomize=Randomization((Vary("com_offset", -0.1, 0.1, of=("free",)),)))


def test_bodies_without_mass_are_left_alone(arm):
    """Frames that are fixed to a robot have none, and nothing to multiply."""
    for name in ("body_mass", "body_inertia", "density", "com_offset"):
        family = arm(randomize=Randomization((Vary(name, 0.5, 0.9),)))
        env, _ = started(family)
        massless = family.model().compiled.body("massless").id
        assert massless not in family.parameters.columns[0].ids
        env.step(torch.zeros(3, 1))
        with pytest.raises(UsageError, match="body 'massless' has no mass that could be varied"):
            arm(randomize=Randomization((Vary(name, 0.5, 0.9, of=("massless",)),)))
    loaded = arm(randomize=Randomization((Vary("payload", 1.0, 2.0, of=("massless",)),)))
    env, _ = started(loaded)
    mass = env.physics.state_dict()["model.body_mass"][:, massless]
    assert torch.equal(mass, env.tasks.dynamics[:, 0])


def test_the_same_quantity_twice_acts_twice():
    two = (Vary("density", 2.0, 2.0), Vary("density", 1.5, 1.5, of=("torso",)))
    env, _ = started(varied("half-cheetah-vel", *two, Vary("payload", 1.0, 1.0)))
    mass = env.physics.state_dict()["model.body_mass"][0].numpy()
    expected = 2.0 * env.physics.model.compiled.body_mass
    expected[1] = 1.5 * expected[1] + 1.0
    np.testing.assert_allclose(mass, expected)


def test_a_new_task_leaves_nothing_of_the_one_before():
    family = varied("half-cheetah-vel", Vary("density", 0.5, 2.0), Vary("com_offset", -0.1, 0.1))
    env, _ = started(family)
    env.set_tasks(family.sample_tasks(3, "train", generator(7)))
    fresh, _ = started(family, tasks=env.tasks)
    for name, values in fresh.physics.state_dict().items():
        if name.startswith("model."):
            assert torch.equal(values, env.physics.state_dict()[name]), name


@pytest.mark.parametrize("name", ["half-cheetah-vel", "ant-dir"])
def test_nominal_tasks_of_the_example_move_as_if_nothing_varied(name):
    """Bit for bit, with every disturbance of the file set up and none acting."""
    entries = load_randomization(ROOT / "docs" / "randomization.yaml").vary
    fitting = [replace(v, of=("torso",) if v.of == ("torso",) else ()) for v in entries]
    options = {"preset": "promp"} if name == "half-cheetah-vel" else {"horizon": 30}
    family = varied(name, *fitting, Vary("observation_delay", 0.0, 3.0), **options)
    env, obs = started(family, split="nominal")
    plain = replace(family, randomize=NOTHING)
    tasks = replace(env.tasks, dynamics=torch.zeros(3, 0))
    other, other_obs = started(plain, tasks=tasks)
    assert torch.equal(obs, other_obs)
    actions = float(env.single_action_space.high[0]) * random_actions(env, family.horizon + 15)
    assert_same(play(env, actions), play(other, actions))


# --- between the policy and the robot ------------------------------------------------------------


def crane(*vary, horizon=7):
    """The crane without any randomisation but this."""
    return varied("crane", *vary, horizon=horizon)


def twins(family, worlds=6, seed=5):
    """Worlds of a family, and those of the same robot that nothing disturbs."""
    env, obs = started(family, worlds, seed=seed)
    tasks = replace(env.tasks, dynamics=torch.zeros(worlds, 0))
    other, true = started(replace(family, randomize=NOTHING), worlds, seed=seed, tasks=tasks)
    return env, obs, other, true


def executed_by(env, actions):
    """What the actuators got at each step, `[T, W, U]`, and where the last step ended episodes."""
    got = []
    simulate = env._simulate
    env._simulate = lambda ctrl, *more: (got.append(ctrl.clone()), simulate(ctrl, *more))[1]
    for action in actions:
        _, _, _, truncated, _ = env.step(action)
    env._simulate = simulate
    return torch.stack(got).double(), truncated


@settings(max_examples=10)
@given(st.integers(0, 3), st.integers(0, 3), st.integers(0, 100))
def test_commands_are_late_as_in_a_list(low, more, seed):
    """Through ends of episodes, after which nothing of the old one arrives."""
    family = crane(Vary("action_delay", float(low), float(low + more)))
    env, _ = started(family, 6, seed=seed)
    delays = env.tasks.dynamics[:, 0].int().tolist()
    assert min(delays) >= low and max(delays) <= low + more
    sent = [[] for _ in delays]
    for action in random_actions(env, 17, seed):
        executed = []
        for world, delay in enumerate(delays):
            sent[world].append(float(action[world]))
            executed.append(sent[world][-1 - delay] if len(sent[world]) > delay else 0.0)
        got, truncated = executed_by(env, [action])
        assert got[0, :, 0].tolist() == executed
        for world in truncated.nonzero()[:, 0].tolist():
            sent[world] = []
    assert len(sent[0]) == 17 % 7


@settings(max_examples=10)
@given(st.integers(0, 4), st.integers(0, 100))
def test_observations_are_late_as_in_a_list(most, seed):
    """The last of an episode, too; the next begins with nothing but its own first."""
    env, obs, other, true = twins(crane(Vary("observation_delay", 0.0, float(most))), seed=seed)
    delays = env.tasks.dynamics[:, 0].int().tolist()
    history = [[row] * (d + 1) for row, d in zip(true, delays, strict=True)]
    assert torch.equal(obs, true)
    for action in random_actions(env, 17, seed):
        obs, _, _, truncated, info = env.step(action)
        true, _, _, _, true_info = other.step(action)
        for world, delay in enumerate(delays):
            history[world].append(true_info["final_obs"][world])
            assert torch.equal(info["final_obs"][world], history[world][-1 - delay])
            if truncated[world]:
                history[world] = [true[world]] * (delay + 1)
            assert torch.equal(obs[world], history[world][-1 - delay])


def test_lost_actions_leave_the_last_one_going_on():
    env, _ = started(crane(Vary("action_dropout", 0.3, 0.3), horizon=1000), 50)
    actions = random_actions(env, 200)
    executed, _ = executed_by(env, actions)
    lost = executed[:, :, 0] != actions[:, :, 0].double()
    before = torch.cat([torch.zeros(1, 50, 1), executed[:-1]])
    assert torch.equal(torch.where(lost.unsqueeze(-1), before, actions.double()), executed)
    # Five standard deviations of 10000 trials.
    assert float(lost.double().mean()) == pytest.approx(0.3, abs=5 * math.sqrt(0.21 / 10_000))
    # Whether one is lost says nothing about the next, nor about other worlds.
    correlations = np.corrcoef(lost.T.numpy())
    assert np.abs(correlations - np.eye(50)).max() < 0.4
    again = np.corrcoef(lost[:-1].flatten(), lost[1:].flatten())[0, 1]
    assert abs(again) < 0.05


@pytest.mark.parametrize(("chance", "gone"), [(1.0, True), (0.0, False)])
def test_all_or_no_actions_are_lost(chance, gone):
    family = crane(Vary("action_dropout", 0.0, 1.0))
    env = family.make_worlds(4)
    tasks = family.sample_tasks(4, "train", generator())
    env.set_tasks(replace(tasks, dynamics=torch.full((4, 1), chance, dtype=torch.float64)))
    env.reset()
    actions = random_actions(env, 20)
    executed, _ = executed_by(env, actions)
    assert torch.equal(executed, torch.zeros_like(executed) if gone else actions.double())


def test_an_action_lost_at_the_start_of_an_episode_leaves_none_going_on():
    env, _ = started(crane(Vary("action_dropout", 0.5, 0.5), horizon=2), 20)
    for _ in range(4):
        actions = random_actions(env, 2)
        executed, truncated = executed_by(env, actions)
        lost = executed[0] != actions[0].double()
        assert truncated.all() and 0 < lost.sum() < 20
        assert (executed[0][lost] == 0).all()


def test_what_is_lost_says_nothing_of_the_noise():
    """Each has numbers of its own from a world's stream."""
    half, noise = Vary("action_dropout", 0.5, 0.5), Vary("observation_noise", 1.0, 1.0)
    env, _ = started(crane(half, noise, horizon=999), 100)
    quiet, _ = started(crane(half, horizon=999), 100, tasks=None)
    quiet.set_tasks(replace(env.tasks, dynamics=env.tasks.dynamics[:, :1]))
    quiet.reset(seed=5)
    env.reset(seed=5)
    actions, lost, errors = random_actions(env, 50), [], []
    for action in actions:
        executed, _ = executed_by(env, [action])
        quiet.step(action)
        lost.append(executed[0, :, 0] != action[:, 0].double())
        errors.append(env._observe() - quiet._observe())
    lost, errors = torch.stack(lost).flatten(), torch.stack(errors).flatten(0, 1)
    for column in errors.T:
        assert abs(np.corrcoef(lost, column)[0, 1]) < 5 / math.sqrt(5000)


def test_a_late_action_is_lost_when_it_would_arrive():
    """Then the one that arrived before goes on."""
    env, _ = started(
        crane(Vary("action_dropout", 0.5, 0.5), Vary("action_delay", 2, 2), horizon=99), 20
    )
    actions = random_actions(env, 60).double()
    executed, _ = executed_by(env, actions.float())
    arrived = torch.cat([torch.zeros(2, 20, 1), actions[:-2]])
    before = torch.cat([torch.zeros(1, 20, 1), executed[:-1]])
    assert bool(((executed == arrived) | (executed == before)).all())
    assert 0.4 < float((executed != arrived).double().mean()) < 0.6


def test_noise_is_normal_independent_and_where_it_should_be():
    family = crane(Vary("observation_noise", 0.1, 0.3, of=("0", "4")), horizon=25)
    env, obs, other, true = twins(family, worlds=100)
    found = [obs - true]
    for action in random_actions(env, 60):
        obs, _, _, _, info = env.step(action)
        true, _, _, _, true_info = other.step(action)
        found += [info["final_obs"] - true_info["final_obs"], obs - true]
    errors = torch.stack(found)
    assert (errors[:, :, 1:4] == 0).all()
    scaled = errors[:, :, [0, 4]].double() / env.tasks.dynamics
    readings = torch.cat([scaled[:1], scaled[1::2]])  # every step; the first of an episode apart
    assert stats.kstest(readings.flatten(), "norm").pvalue > 1e-3
    starts = torch.stack([scaled[0], scaled[2 * 25], scaled[2 * 50]])
    assert stats.kstest(starts.flatten(), "norm").pvalue > 1e-3
    for one, two in ((0, 1), (2 * 25, 2 * 25 + 1), (0, 2 * 25), (2 * 25, 2 * 50)):
        assert (scaled[one] != scaled[two]).all()
    for one, two in (
        (readings[:-1], readings[1:]),
        (readings[..., 0], readings[..., 1]),
        (readings[:, :-1], readings[:, 1:]),
    ):
        assert abs(np.corrcoef(one.flatten(), two.flatten())[0, 1]) < 0.05
    assert errors[:, :, 0].unique().numel() > 5000  # never the same twice


def test_bias_stays_and_is_told_by_number():
    env, obs, other, true = twins(crane(Vary("observation_bias", -0.5, 0.5, of=("1", "3"))))
    expected = torch.zeros(6, 5)
    expected[:, [1, 3]] = env.tasks.dynamics.float()
    assert torch.equal(obs, true + expected)
    for action in random_actions(env, 17):
        obs, true = env.step(action)[0], other.step(action)[0]
        torch.testing.assert_close(obs, true + expected)


def test_noise_and_bias_are_as_late_as_what_they_disturb():
    """The reading is disturbed when it is taken, not when it is shown."""
    vary = (Vary("observation_noise", 1.0, 1.0), Vary("observation_bias", 0.1, 0.5))
    prompt, _ = started(crane(*vary, horizon=50), 4)
    late, _ = started(crane(*vary, Vary("observation_delay", 2.0, 2.0), horizon=50), 4)
    late.set_tasks(
        replace(late.tasks, dynamics=torch.cat([prompt.tasks.dynamics, torch.full((4, 1), 2.0)], 1))
    )
    shown = [[prompt.reset(seed=3)[0]], [late.reset(seed=3)[0]]]
    for action in random_actions(prompt, 12):
        for record, env in zip(shown, (prompt, late), strict=True):
            record.append(env.step(action)[0])
    assert torch.equal(torch.stack(shown[0][:-2]), torch.stack(shown[1][2:]))


def pushes_of(env, steps):
    """The forces on all bodies at each step, `[T, W, bodies, 6]`."""
    forces = []
    for action in random_actions(env, steps):
        env.step(0.0 * action)
        forces.append(env.physics.field("xfrc_applied").clone())
    return torch.stack(forces)


def test_pushes_come_once_a_second_for_a_tenth_from_all_sides():
    env, _ = started(crane(Vary("push_force", 1.0, 9.0, of=("load",)), horizon=10_000), 100)
    forces = pushes_of(env, 400)
    assert (forces[:, :, [0, 1]] == 0).all() and (forces[..., 2:] == 0).all()
    force = forces[:, :, 2, :2]
    pushed = force.norm(dim=-1) > 0
    strength = env.tasks.dynamics[:, 0].expand(400, 100)
    torch.testing.assert_close(force.norm(dim=-1)[pushed], strength[pushed])
    begins = pushed & ~torch.cat([torch.zeros(1, 100, dtype=torch.bool), pushed[:-1]])
    # A step is 0.05 s, so that a push is two steps; where two follow each other the side changes.
    lengths = pushed[:-3] & begins[:-3]
    assert bool((pushed[1:-2] | ~lengths).all())
    same = (force[1:] == force[:-1]).all(-1) & pushed[1:] & pushed[:-1]
    fresh = pushed & ~torch.cat([torch.zeros(1, 100, dtype=torch.bool), same])
    assert bool((same[:, :] | ~fresh[:-1]).all())
    assert not bool((same[1:] & same[:-1]).any())
    free = ~torch.cat([torch.zeros(1, 100, dtype=torch.bool), fresh[:-1]])
    rate = float(fresh.sum() / free.sum())
    assert rate == pytest.approx(0.05, abs=5 * math.sqrt(0.05 / 40_000))
    angles = torch.atan2(force[fresh][:, 1], force[fresh][:, 0])
    assert stats.kstest(angles, "uniform", (-math.pi, 2 * math.pi)).pvalue > 1e-3


@pytest.mark.parametrize("name", ["half-cheetah-vel", "ant-dir"])
def test_pushed_robots_move_as_plain_ones_with_the_same_forces(name):
    family = varied(name, Vary("push_force", 20.0, 50.0))
    env, _ = started(family, 4, seed=2)
    model = family.model().compiled
    plain = [mujoco.MjData(model) for _ in range(4)]
    for world, data in enumerate(plain):
        data.qpos[:], data.qvel[:] = (env.physics.field(f)[world] for f in ("qpos", "qvel"))
    total, ended = torch.zeros(4), torch.zeros(4, dtype=torch.bool)
    for action in random_actions(env, 15):
        ended |= env.step(action)[2]
        forces = env.physics.field("xfrc_applied")
        total += forces.abs().sum((1, 2))
        for world, data in enumerate(plain):
            data.ctrl[:], data.xfrc_applied[:] = action[world], forces[world]
            mujoco.mj_step(model, data, family.frame_skip)
    assert ((total > 0) & ~ended).sum() >= 2
    ours, theirs = env.physics.field("qpos"), np.array([data.qpos for data in plain])
    np.testing.assert_array_equal(ours[~ended], theirs[~ended.numpy()])


def test_a_push_ends_with_its_episode():
    env, _ = started(crane(Vary("push_force", 5.0, 5.0), horizon=3), 200)
    for action in random_actions(env, 9):
        _, _, _, truncated, _ = env.step(action)
        if truncated.any():
            assert (env.physics.field("xfrc_applied") == 0).all()
            assert (env._disturbances.push_left == 0).all()


def test_the_spread_of_initial_states_is_a_factor():
    family = crane(Vary("initial_state", 0.5, 3.0))
    env, _, other, _ = twins(family)
    for _ in range(3):
        for name in ("qpos", "qvel"):
            wide, usual = (world.physics.field(name) for world in (env, other))
            torch.testing.assert_close(wide, env.tasks.dynamics * usual)
        assert wide.abs().max() > 0
        for action in random_actions(env, 7):
            env.step(action)
            other.step(action)


# --- all of it together --------------------------------------------------------------------------


def everything(name="half-cheetah-vel", **options):
    """A robot that is disturbed in every way."""
    entries = load_randomization(ROOT / "docs" / "randomization.yaml").vary
    more = (
        Vary("observation_delay", 0.0, 3.0),
        Vary("initial_state", 0.5, 2.0),
        Vary("armature", 0.5, 2.0),
        Vary("body_mass", 0.9, 1.1),
        Vary("body_inertia", 0.9, 1.1),
        Vary("actuator_gain", 0.9, 1.1),
    )
    return varied(name, *entries, *more, **options)


def test_everything_is_everything():
    assert {v.quantity for v in everything().randomize.vary} == set(QUANTITIES)


def test_saved_in_mid_episode_everything_goes_on_bit_for_bit():
    family = everything(preset="promp")
    env, _ = started(family, 8)
    actions = 10.0 * random_actions(env, 260)
    play(env, actions[:120])
    while not (env._disturbances.push_left > 1).any():  # a push is under way
        play(env, actions[120:121])
    saved = copy.deepcopy(env.state_dict())
    expected = play(env, actions[121:])
    other, _ = started(family, 8, seed=99)
    play(other, actions[:7])
    other.load_state_dict(saved)
    assert_same(expected, play(other, actions[121:]))


def test_what_the_other_worlds_are_like_does_not_matter():
    family = everything(preset="promp")
    tasks = family.sample_tasks(4, "train", generator(1))
    strangers = family.sample_tasks(4, "out-of-range", generator(2))
    nominal = family.sample_tasks(4, "nominal", generator(2))
    records = []
    for others in (tasks, strangers, nominal):
        mixed = type(tasks).concatenate([tasks[:1], others[1:]])
        env, _ = started(family, 4, tasks=mixed)
        actions = 10.0 * random_actions(env, 130)
        if others is not tasks:
            actions[:, 1:] *= -1.0
        records.append(play(env, actions))
    assert_same(records[0], records[1], world=0)
    assert_same(records[0], records[2], world=0)


def test_an_oracle_sees_the_disturbed_robot_and_its_task():
    family = everything(preset="promp")
    oracle = TaskInObservation.of(family)
    env, obs = started(family, 4)
    seen, seen_obs = started(oracle, 4, tasks=env.tasks)
    features = env.tasks.features()
    assert torch.equal(seen_obs, torch.cat([obs, features], -1))
    for action in 10.0 * random_actions(env, 110):
        ours, theirs = env.step(action), seen.step(action)
        assert torch.equal(theirs[0], torch.cat([ours[0], features], -1))
        assert torch.equal(theirs[1], ours[1])


def test_other_libraries_see_a_disturbed_robot():
    from test_adapters import check

    check(FamilyEnv(everything(preset="promp")))


def test_disturbances_stay_on_the_device_of_their_settings():
    """A device without values: what mixes devices fails."""
    family = everything()
    tasks = family.sample_tasks(4, "train", generator())
    drawn = [(family.parameters, tasks.dynamics.to("meta"))]
    of = Settings.of(drawn, 4, family.observations)
    assert {x.device.type for x in vars(of).values() if isinstance(x, torch.Tensor)} == {"meta"}
    here = replace(of, action_delay=torch.ones(4).long(), observation_delay=torch.ones(4).long())
    assert Disturbances(here, 6, 0.05).force.device.type == "meta"

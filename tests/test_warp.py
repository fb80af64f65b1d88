"""Physics of MuJoCo Warp: all that `Physics` promises, on a CPU, and on a GPU where there is one.

How near it is to MuJoCo's own, robot by robot, is in `test_warp_parity.py`.
"""

import copy
import logging
import sys

import mujoco
import numpy as np
import pytest
import torch
from bad_requests import refuse_bad_requests

from metarl.envs.half_cheetah import HalfCheetahVel
from metarl.envs.physics import CpuPhysics, Limits, load_model, replay, save_dump
from metarl.envs.physics.warp import WarpPhysics
from metarl.envs.registry import make_family
from metarl.envs.robot import gymnasium_model
from metarl.envs.robot_worlds import RobotWorlds
from metarl.errors import UsageError
from metarl.experiments.agents import AGENTS
from metarl.experiments.loading import as_seen_by, build_agent

pytest.importorskip("mujoco_warp")

WORLDS = 6
SUBSTEPS = 5
EVERY = torch.ones(WORLDS, dtype=torch.bool)
THIRD = torch.arange(WORLDS) == 3
DERIVED = ("xpos", "xmat", "subtree_com", "cvel", "qfrc_actuator")
"""some of what follows from the state: from positions, from velocities, from controls"""
SERVO = """
<mujoco>
  <option timestep="0.01"/>
  <worldbody>
    <body name="hand" mocap="true"><geom size="0.05" contype="0" conaffinity="0"/></body>
    <body><joint name="hinge" axis="0 1 0"/><geom type="capsule" size="0.05 0.2" pos="0 0 -0.3"/>
    </body>
  </worldbody>
  <actuator><general joint="hinge" dyntype="filter" dynprm="0.1" gainprm="2"/></actuator>
</mujoco>
"""
"""a motor with a state of its own, and a body that is moved from outside"""


@pytest.fixture(params=["cpu"] + ["cuda"] * torch.cuda.is_available())
def device(request):
    return request.param


@pytest.fixture
def make(device):
    def made(model=None, worlds=WORLDS, limits=None):
        return WarpPhysics(model or gymnasium_model("half_cheetah.xml"), worlds, device, limits)

    return made


def random_state(seed=0, worlds=WORLDS):
    generator = torch.Generator().manual_seed(seed)
    qpos = 0.2 * torch.rand(worlds, 9, generator=generator) - 0.1
    return qpos, 0.1 * torch.randn(worlds, 9, generator=generator)


def random_controls(steps, seed=1, worlds=WORLDS):
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.rand(steps, worlds, 6, generator=generator) - 1


@pytest.fixture
def started(make):
    def begun(worlds=WORLDS, **options):
        physics = make(worlds=worlds, **options)
        physics.reset(torch.ones(worlds, dtype=torch.bool), *random_state(worlds=worlds))
        return physics

    return begun


def run(physics, controls, **options):
    for ctrl in controls:
        physics.step(ctrl.to(physics.device), SUBSTEPS, **options)


def scaled(values, seed=3, worlds=WORLDS):
    """Every world with its own values."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.from_numpy(np.array(values, dtype=np.float64))
    return values * (0.7 + 0.6 * torch.rand(worlds, *values.shape, generator=generator))


def random_fields(seed=3):
    model = gymnasium_model("half_cheetah.xml").compiled
    names = ("body_mass", "body_inertia", "dof_damping", "geom_friction")
    return {name: scaled(getattr(model, name), seed + i) for i, name in enumerate(names)}


def alike(first, second):
    """Whether two computations of the same gave the same bits; on a GPU sums have no order."""
    if first.device.type == "cpu":
        return torch.equal(first, second)
    return torch.allclose(first, second, rtol=0.02, atol=0.02)


def same(first, second):
    """Whether two physics are in the same state."""
    one, other = first.state_dict(), second.state_dict()
    assert one.keys() == other.keys()
    return all(alike(one[name], other[name]) for name in one)


# --- fields ------------------------------------------------------------------------------


def test_fields_are_live_views_of_warps_memory(started):
    physics = started()
    names = ("qpos", "qvel", "ctrl", *DERIVED)
    views = {name: physics.field(name) for name in names}
    run(physics, random_controls(3))
    physics.reset(THIRD, *random_state(seed=1))
    physics.put(THIRD, physics.state_dict()["rows"])
    physics.randomise(random_fields())
    physics.load_state_dict(physics.state_dict())
    for name, view in views.items():
        assert view.data_ptr() == getattr(physics._data, name).ptr, name
        assert view.data_ptr() == physics.field(name).data_ptr(), name
        assert view.dtype == torch.float32
        assert view.device == physics.device
    assert views["qpos"].abs().max() > 0
    np.testing.assert_array_equal(views["qpos"].cpu().numpy(), physics._data.qpos.numpy())


def test_states_may_be_written_in_place(started):
    written, reset = started(), started()
    qpos, qvel = random_state(seed=4)
    reset.reset(EVERY, qpos, qvel)
    written.field("qpos").copy_(qpos)
    written.field("qvel").copy_(qvel)
    for physics in (written, reset):
        run(physics, random_controls(3))
    assert same(written, reset)


@pytest.mark.parametrize("name", ["humanoid-dir", "half-cheetah-dir"])
def test_fields_are_shaped_as_mujocos(make, name):
    family = make_family(name)
    cpu, warp = CpuPhysics(family.model(), 2), make(family.model(), 2)
    names = {*family.reads, *DERIVED, "ximat", "geom_xmat", "site_xmat", "site_xpos", "sensordata"}
    for field in names:
        assert warp.field(field).shape == cpu.field(field).shape, field


# --- stepping ----------------------------------------------------------------------------


def test_worlds_that_are_not_stepped_stay_as_they_are(started):
    physics, twin = started(), started()
    for both in (physics, twin):
        for name in DERIVED:
            both.field(name)
        run(both, random_controls(20))
    names = ("time", "qpos", "qvel", "qacc_warmstart", *DERIVED)
    before = {name: physics.field(name).clone() for name in names}
    controls = random_controls(5, seed=2)
    mask = torch.tensor([True, False, True, False, False, True])
    run(physics, controls, worlds=mask.to(physics.device))
    run(twin, controls)
    for name in names:
        after, expected = physics.field(name), twin.field(name)
        assert torch.equal(after[~mask], before[name][~mask]), name
        assert alike(after[mask], expected[mask]), name
        assert (after[mask] != before[name][mask]).any(), name


def test_current_positions_are_those_of_the_new_state(started):
    lagging, current = started(), started()
    for physics in (lagging, current):
        physics.field("xpos")
        physics.field("cvel")
    run(lagging, random_controls(5))
    run(current, random_controls(5), current=True)
    assert alike(lagging.field("qpos"), current.field("qpos"))
    assert alike(lagging.field("cvel"), current.field("cvel"))
    for world in range(WORLDS):
        _, data = current.look(world)
        expected = torch.from_numpy(data.xpos).float()
        torch.testing.assert_close(current.field("xpos")[world].cpu(), expected)
        assert (lagging.field("xpos")[world].cpu() - expected).abs().max() > 1e-4


def test_current_positions_of_some_worlds(started):
    physics = started()
    xpos = physics.field("xpos")
    run(physics, random_controls(5))
    before = xpos.clone()
    run(physics, random_controls(1), worlds=THIRD.to(physics.device), current=True)
    assert torch.equal(xpos[~THIRD], before[~THIRD])
    expected = torch.from_numpy(physics.look(3)[1].xpos).float()
    torch.testing.assert_close(xpos[3].cpu(), expected)


def test_recorded_launches_do_what_plain_ones_do(started, monkeypatch):
    recorded, plain = started(), started()

    def at_once(name, launches, undo):
        with plain._launcher.in_order():
            launches()

    monkeypatch.setattr(plain._launcher, "launch", at_once)
    for physics in (recorded, plain):
        physics.field("xpos")
        run(physics, random_controls(10))
        physics.reset(THIRD, *random_state(seed=8))
        run(physics, random_controls(10), current=True)
        physics.randomise(random_fields())
        run(physics, random_controls(10))
    assert same(recorded, plain)
    assert recorded._launcher._graphs and not plain._launcher._graphs


def test_the_same_twice(started):
    runs = []
    for _ in range(2):
        physics = started()
        physics.field("cvel")
        physics.randomise(random_fields())
        run(physics, random_controls(40))
        runs.append(physics)
    assert same(*runs)


# --- resets ------------------------------------------------------------------------------


def test_masked_reset_touches_only_its_worlds(started):
    physics, fresh = started(), started()
    for both in (physics, fresh):
        for name in DERIVED:
            both.field(name)
    run(physics, random_controls(20))
    before = physics.state_dict()
    mask = torch.tensor([False, True, False, False, True, False])
    start = random_state(seed=9)
    physics.reset(mask.to(physics.device), *start)
    after = physics.state_dict()
    fresh.reset(EVERY, *start)
    expected = fresh.state_dict()
    for name in after:
        assert torch.equal(after[name][~mask], before[name][~mask]), name
        # A world that was reset is in the state of one that never ran.
        assert alike(after[name][mask], expected[name][mask]), name
    torch.testing.assert_close(physics.field("xpos")[mask][:, 1, 0].cpu(), start[0][mask][:, 0])


def test_a_reset_forgets_all_of_the_state(make):
    model = load_model("<servo>", xml=SERVO)
    physics = make(model)
    default = physics.state_dict()["rows"]
    names = ("time", "act", "qacc_warmstart", "qfrc_applied", "xfrc_applied", "mocap_pos")
    for name in ("qfrc_applied", "xfrc_applied", "mocap_pos"):
        physics.field(name).add_(0.5)
    physics.step(torch.ones(WORLDS, 1), 3)
    for name in names:
        assert physics.field(name).abs().max() > 0, name
    physics.reset(THIRD, torch.zeros(WORLDS, 1), torch.zeros(WORLDS, 1))
    rows = physics.state_dict()["rows"]
    assert torch.equal(rows[3], default[3])
    assert (rows[~THIRD] != default[~THIRD]).any(1).all()


def test_motors_with_a_state_and_bodies_moved_from_outside_act_as_in_mujoco(make):
    model = load_model("<servo>", xml=SERVO)
    cpu, warp = CpuPhysics(model, WORLDS), make(model)
    for physics in (cpu, warp):
        physics.field("xpos")
        physics.field("mocap_pos")[:, 0, 2] = torch.linspace(0, 1, WORLDS).to(physics.device)
        for push in (1.0, -0.5, 0.2):
            physics.step(torch.full((WORLDS, 1), push), 4)
    for name in ("qpos", "qvel", "act", "time", "xpos"):
        ours = warp.field(name).cpu().double()
        torch.testing.assert_close(ours, cpu.field(name), rtol=1e-5, atol=1e-6)


def test_put_worlds_go_on_from_the_states_they_were_put_into(started):
    physics, controls = started(), random_controls(40)
    run(physics, controls[:20])
    states = physics.state_dict()["rows"]
    run(physics, controls[20:])
    end = physics.field("qpos").clone()
    half = torch.arange(WORLDS, device=physics.device) % 2 == 0
    physics.put(half, states)
    run(physics, controls[20:])
    again = physics.field("qpos")
    assert alike(again[half], end[half])
    assert not torch.equal(again[~half], end[~half])


# --- models ------------------------------------------------------------------------------


def test_recorded_launches_see_every_change_of_the_model(started):
    """By new arrays, which recorded launches do not know, and by new values in those there are."""
    physics = started()
    run(physics, random_controls(3))
    mass = gymnasium_model("half_cheetah.xml").compiled.body_mass
    fields = {}
    for change in (
        {"body_mass": scaled(mass, 1)},
        {"body_mass": scaled(mass, 2)},
        random_fields(),
        {"opt.gravity": scaled([0.5, 0.0, -9.81])},
    ):
        before = physics.state_dict()
        run(physics, random_controls(1))
        unchanged = physics.state_dict()["rows"]
        physics.load_state_dict(before)
        physics.randomise(change)
        run(physics, random_controls(1))
        fields |= change
        other = started()
        other.randomise(fields)
        other.put(EVERY, before["rows"])
        run(other, random_controls(1))
        assert same(physics, other)
        assert (physics.state_dict()["rows"] != unchanged).any(1).all()


def expected_constants(model, fields, world):
    own = copy.copy(model.compiled)
    for name, values in fields.items():
        field = getattr(own, name)
        field[...] = values[world].numpy().reshape(field.shape)
    mujoco.mj_setConst(own, mujoco.MjData(own))
    return own


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("half-cheetah-vel", ("body_mass", "body_inertia", "dof_armature")),
        ("ant-goal", ("body_mass", "body_ipos", "actuator_gear", "geom_size")),
    ],
)
def test_derived_constants_are_mujocos(make, name, fields):
    model = make_family(name).model()
    own = {field: scaled(getattr(model.compiled, field)) for field in fields}
    physics = make(model)
    physics.randomise(own)
    constants = (
        "body_subtreemass",
        "body_invweight0",
        "dof_invweight0",
        "actuator_acc0",
        "geom_rbound",
    )
    for world in range(WORLDS):
        expected = expected_constants(model, own, world)
        for constant in constants:
            ours = physics._model.values(constant)[world].cpu().numpy()
            np.testing.assert_allclose(ours, getattr(expected, constant), rtol=2e-4, atol=1e-7)
    weights = physics._model.values("body_invweight0")
    assert len(torch.unique(weights[:, 1, 0])) == WORLDS


def test_moved_bodies_derive_nothing_and_are_saved_as_such(started):
    physics, other = started(), started()
    place = physics.shared("body_pos").clone().cpu()
    place[:, 2] += torch.rand(WORLDS, 3, generator=torch.Generator().manual_seed(0))
    physics.randomise({"body_pos": place}, derive=False)
    assert physics.state_dict().keys() == {"rows", "moved.body_pos"}
    assert "body_invweight0" not in physics._model._own
    other.load_state_dict(physics.state_dict())
    for both in (physics, other):
        run(both, random_controls(10))
    assert same(physics, other)
    other.randomise({"body_pos": place})
    run(physics, random_controls(10))
    run(other, random_controls(10))
    assert not torch.equal(physics.field("qpos"), other.field("qpos"))


def test_shared_values_are_those_of_the_model(started):
    physics, compiled = started(), gymnasium_model("half_cheetah.xml").compiled
    physics.randomise(random_fields())
    for name in ("body_mass", "actuator_gear", "opt.gravity", "opt.timestep"):
        holder = compiled.opt if name.startswith("opt.") else compiled
        expected = np.array(getattr(holder, name.removeprefix("opt.")))
        values = physics.shared(name)
        assert values.shape == (WORLDS, *expected.shape)
        np.testing.assert_array_equal(values[2].cpu().numpy(), expected)


def test_a_look_at_a_world_is_the_one_that_mujoco_has(started):
    warp, cpu = started(), CpuPhysics(gymnasium_model("half_cheetah.xml"), WORLDS)
    fields = {**random_fields(), "opt.gravity": scaled([0.0, 0.0, -9.81])}
    fields = {name: values.float().double() for name, values in fields.items()}
    for physics in (warp, cpu):
        physics.randomise(fields)
    run(warp, random_controls(30))
    cpu.put(EVERY, warp.state_dict()["rows"].cpu())
    pressed = 0
    for world in (2, 4, 2):
        model, data = warp.look(world)
        other, expected = cpu.look(world)
        np.testing.assert_array_equal(model.body_mass, other.body_mass)
        np.testing.assert_array_equal(data.contact.geom, expected.contact.geom)
        np.testing.assert_allclose(data.xpos, expected.xpos)
        np.testing.assert_allclose(data.efc_force, expected.efc_force, rtol=1e-6, atol=1e-9)
        pressed += int((data.efc_force > 0).sum())
    assert pressed > 0
    assert (gymnasium_model("half_cheetah.xml").compiled.opt.gravity == (0, 0, -9.81)).all()


# --- what is saved and restored -----------------------------------------------------------


@pytest.mark.parametrize("own_models", [False, True])
def test_restored_state_goes_on_bit_for_bit(started, own_models):
    physics = started()
    physics.field("xpos")
    if own_models:
        physics.randomise(random_fields())
    controls = random_controls(60)
    run(physics, controls[:30])
    saved = physics.state_dict()
    run(physics, controls[30:])
    # Into other physics that has been somewhere else, with other models.
    other = started()
    other.randomise(
        {"dof_damping": 3 * random_fields()["dof_damping"], "opt.gravity": scaled([0, 0, -5])}
    )
    run(other, controls[:1])
    other.load_state_dict(saved)
    assert torch.equal(other.field("xpos"), saved["derived.xpos"])
    run(other, controls[30:])
    assert same(physics, other)


def test_states_go_to_the_cpus_physics_and_back(make, started):
    warp = started()
    warp.field("xmat")
    warp.randomise(random_fields())
    warp.randomise({"body_pos": warp.shared("body_pos").cpu() + 0.01}, derive=False)
    run(warp, random_controls(20))
    cpu = CpuPhysics(warp.model, WORLDS)
    cpu.load_state_dict({name: x.cpu() for name, x in warp.state_dict().items()})
    again = make()
    again.load_state_dict(cpu.state_dict())
    assert same(warp, again)
    controls = random_controls(3, seed=5)
    for physics in (warp, cpu, again):
        run(physics, controls)
    assert same(warp, again)
    ours = warp.field("qpos").cpu().double()
    torch.testing.assert_close(ours, cpu.field("qpos"), rtol=0, atol=1e-4)


# --- what goes wrong ---------------------------------------------------------------------


def inject_nan(physics, ctrl):
    physics.field("qpos")[3, 2] = float("nan")


def inject_infinity(physics, ctrl):
    physics.field("qvel")[3, 0] = float("inf")


def inject_huge_velocity(physics, ctrl):
    physics.field("qvel")[3, 4] = 1e12


def inject_bad_control(physics, ctrl):
    ctrl[3, 0] = float("nan")


FAULTS = [inject_nan, inject_infinity, inject_huge_velocity, inject_bad_control]


@pytest.fixture
def disturbed(started):
    """Physics, and the same where worlds are not disturbed; made once for all faults of a test."""
    pair = started(), started()
    for physics in pair:
        for name in DERIVED:
            physics.field(name)
        run(physics, random_controls(5))
    return pair


def test_unstable_worlds_go_to_the_default_state_and_others_do_not_notice(disturbed):
    physics, twin = disturbed
    begin = physics.state_dict()
    default = physics._default[0]
    for fault in FAULTS:
        for both in disturbed:
            both.load_state_dict(begin)
        before = physics.state_dict()["rows"][3]
        ctrl = random_controls(1)[0].to(physics.device)
        fault(physics, ctrl)
        unstable = physics.step(ctrl, SUBSTEPS)
        assert unstable.tolist() == THIRD.tolist(), fault
        assert twin.step(random_controls(1)[0].to(twin.device), SUBSTEPS).sum() == 0
        after, expected = physics.state_dict(), twin.state_dict()
        assert torch.equal(after["rows"][3], default)
        for name in after:
            assert torch.isfinite(after[name]).all(), (fault, name)
            assert alike(after[name][~THIRD], expected[name][~THIRD]), (fault, name)
        assert physics.troubles().unstable.tolist() == THIRD.long().tolist()
        assert physics.troubles().unstable.sum() == 0
        begun = physics.snapshot(3).state
        if fault is inject_bad_control:
            known = ~np.isnan(begun)
            np.testing.assert_array_equal(begun[known][:19], before.cpu().double().numpy()[:19])
        assert not np.isfinite(begun).all() or np.abs(begun).max() > 1e10


@pytest.fixture
def worlds(device, tmp_path):
    """Half-cheetahs on MuJoCo Warp, with a folder for dumps."""

    def made(family=None, count=WORLDS):
        family = family or HalfCheetahVel()
        physics = WarpPhysics(family.model(), count, device, family.limits)
        env = RobotWorlds(family, physics, device=device)
        env.set_tasks(family.sample_tasks(count, "train", torch.Generator().manual_seed(0)))
        env.dump_unstable_to(tmp_path / "dumps")
        env.reset()
        return env

    return made


@pytest.mark.parametrize("own_models", [False, True])
def test_unstable_worlds_end_their_episode_and_are_told_of_later(worlds, caplog, own_models):
    env = worlds(make_family("half-cheetah-rand-params") if own_models else None)
    controls = random_controls(7).to(env.device)
    for ctrl in controls[:6]:
        env.step(ctrl)
    inject_huge_velocity(env.physics, None)
    with caplog.at_level(logging.WARNING):
        obs, reward, terminated, truncated, info = env.step(controls[6])
    assert info["unstable"].tolist() == truncated.tolist() == THIRD.tolist()
    assert not terminated.any()
    assert torch.isfinite(obs).all() and torch.isfinite(info["final_obs"]).all()
    assert reward[3] == 0 and torch.isfinite(reward).all()
    assert not caplog.messages
    with caplog.at_level(logging.WARNING):
        env.step(controls[0])
        env.check()
        env.check()
    (message,) = caplog.messages
    assert "world 3" in message and "step 6" in message and "not finite" in message
    (dump,) = env._dumps.folder.iterdir()
    assert str(dump) in message
    again = replay(dump)
    assert again.unstable and (again.world, again.step) == (3, 6)
    np.testing.assert_allclose(again.task, env.tasks.features()[3].cpu().numpy(), rtol=1e-6)


def test_a_snapshot_holds_the_worlds_own_model(started, tmp_path):
    physics, fields = started(), random_fields()
    physics.randomise(fields)
    run(physics, random_controls(2))
    inject_nan(physics, None)
    run(physics, random_controls(1))
    snapshot = physics.snapshot(3)
    assert snapshot.substeps == SUBSTEPS and snapshot.reason
    assert snapshot.fields.keys() == {f"model.{name}" for name in fields}
    for name, values in fields.items():
        np.testing.assert_allclose(snapshot.fields[f"model.{name}"], values[3].numpy(), rtol=1e-6)
    path = tmp_path / "one.npz"
    save_dump(path, physics.model, snapshot, world=3, step=2, task=np.zeros(1))
    assert "BADQPOS" in replay(path).reason


@pytest.fixture
def lying(worlds):
    """Half-cheetahs that press all of their limbs into the floor."""

    def made(**options):
        env = worlds(HalfCheetahVel(**options), 48)
        env.physics.field("qpos")[:, 1] = -0.3
        return env

    return made


@pytest.mark.parametrize("limit", ["constraints", "contacts"])
def test_contacts_without_room_are_told_of_once_a_rollout(lying, caplog, limit):
    env = lying(**{f"max_{limit}": 2 if limit == "constraints" else 1})
    with caplog.at_level(logging.WARNING):
        for ctrl in random_controls(2, worlds=48).to(env.device):
            env.step(ctrl)
        assert not caplog.messages
        env.reset()
        env.reset()
    (message,) = caplog.messages
    assert f"no room for all {limit}" in message and f"max-{limit}" in message


@pytest.mark.parametrize("agent", ["oracle", "sb3-ppo"])
def test_every_agent_is_told_of_contacts_without_room(agent, caplog):
    family = make_family("hopper-vel", backend="warp", horizon=20, max_constraints=1)
    options = {"n_steps": 20, "minibatches": 1} if agent == "sb3-ppo" else {"layers": (4,)}
    config = AGENTS[agent].config_class()(**options)
    seen = as_seen_by(agent, family, config)
    with caplog.at_level(logging.WARNING):
        trained = build_agent(agent, config, seen, seed=0, device="cpu")
        trained.train_step(seen.make_worlds(2), 0.0)
    assert any("no room for all constraints" in message for message in caplog.messages)


def test_contacts_with_room_are_not_told_of(lying, caplog):
    env = lying()
    controls = random_controls(3, worlds=48).to(env.device)
    env.physics.step(controls[0], 1)
    assert int(env.physics._data.nacon.numpy()[0]) >= 5 * 48
    with caplog.at_level(logging.WARNING):
        for ctrl in controls[1:]:
            env.step(ctrl)
        env.check()
    assert not caplog.messages


def test_worlds_that_are_not_stepped_are_not_counted(started):
    physics = started(limits=Limits(constraints=1))
    physics.field("qpos")[:, 1] = -0.3
    stepped = (~THIRD).to(physics.device)
    run(physics, random_controls(2), worlds=stepped)
    counts = physics.troubles().overflow
    assert counts["constraints"].tolist() == (2 * (~THIRD)).tolist()
    assert counts["contacts"].sum() == 0
    assert physics.troubles().overflow["constraints"].sum() == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="only a GPU can be waited for")
def test_steps_and_resets_wait_for_nothing(worlds):
    env = worlds(make_family("half-cheetah-rand-params"))
    controls = random_controls(6).to(env.device)
    env.step(controls[0])
    env.reset()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for ctrl in controls:
            env.step(ctrl)
    finally:
        torch.cuda.set_sync_debug_mode("default")


# --- bad input ---------------------------------------------------------------------------


def test_bad_requests(started, make):
    physics = started()
    refuse_bad_requests(physics, make(worlds=2), random_fields()["dof_damping"])
    with pytest.raises(UsageError, match="no field named 'nworld'"):
        physics.field("nworld")
    with pytest.raises(UsageError, match="MuJoCo Warp cannot give every world its own geom_type"):
        physics.randomise({"geom_type": physics.shared("geom_type")})
    with pytest.raises(UsageError, match="num_worlds must be at least 1, got 0"):
        make(worlds=0)
    with pytest.raises(UsageError, match="max_contacts must be at least 1, got 0"):
        Limits(contacts=0)


def test_a_model_that_warp_cannot_run_is_refused_in_one_sentence(make):
    text = SERVO.replace("<option", "<option><flag fwdinv='enable'/></option><option")
    with pytest.raises(UsageError, match=r"<servo> cannot run on a GPU.*FWDINV not supported"):
        make(load_model("<servo>", xml=text))


def test_without_warp_one_is_told_what_to_install(make, monkeypatch):
    monkeypatch.setitem(sys.modules, "mujoco_warp", None)
    with pytest.raises(UsageError, match=r"pip install 'metarl\[gpu\]'"):
        make()

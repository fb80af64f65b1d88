"""Physics on a CPU: exact, isolated, restorable, and loud when a simulation blows up."""

import copy
import logging

import mujoco
import numpy as np
import pytest
import torch
from bad_requests import refuse_bad_requests
from mujoco.batch import SimulationError

from metarl.envs.half_cheetah import HalfCheetahVel, TargetSpeed
from metarl.envs.physics import CpuPhysics, load_model, replay
from metarl.envs.robot import gymnasium_model
from metarl.errors import UsageError
from metarl.oracle import TaskInObservation

WORLDS = 6
SUBSTEPS = 5


def random_state(seed=0, worlds=WORLDS):
    generator = torch.Generator().manual_seed(seed)
    qpos = 0.2 * torch.rand(worlds, 9, generator=generator, dtype=torch.float64) - 0.1
    qvel = 0.1 * torch.randn(worlds, 9, generator=generator, dtype=torch.float64)
    return qpos, qvel


def random_controls(steps, seed=1, worlds=WORLDS):
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.rand(steps, worlds, 6, generator=generator) - 1


def started(threads=1, worlds=WORLDS):
    physics = CpuPhysics(gymnasium_model("half_cheetah.xml"), worlds, threads)
    physics.reset(torch.ones(worlds, dtype=torch.bool), *random_state(worlds=worlds))
    return physics


def random_fields(worlds=WORLDS):
    """Every world with its own masses, inertias, damping and friction."""
    model = gymnasium_model("half_cheetah.xml").compiled
    generator = torch.Generator().manual_seed(3)

    def scaled(values):
        values = torch.from_numpy(values.copy())
        shape = (worlds, *values.shape)
        return values * (0.7 + 0.6 * torch.rand(shape, generator=generator, dtype=torch.float64))

    names = ("body_mass", "body_inertia", "dof_damping", "geom_friction")
    return {name: scaled(getattr(model, name)) for name in names}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("own_models", [False, True])
def test_equals_a_plain_loop_bit_for_bit(threads, own_models):
    physics = started(threads)
    xpos = physics.field("xpos")
    fields = random_fields() if own_models else {}
    physics.randomise(fields)
    controls = random_controls(200)
    models, datas = [], []
    qpos, qvel = random_state()
    for world in range(WORLDS):
        model = copy.copy(gymnasium_model("half_cheetah.xml").compiled)
        for name, values in fields.items():
            getattr(model, name)[...] = values[world].numpy()
        data = mujoco.MjData(model)
        mujoco.mj_setConst(model, data)
        data = mujoco.MjData(model)
        data.qpos, data.qvel = qpos[world].numpy(), qvel[world].numpy()
        models.append(model)
        datas.append(data)
    for ctrl in controls:
        assert physics.step(ctrl, SUBSTEPS) is None
        for world, (model, data) in enumerate(zip(models, datas, strict=True)):
            data.ctrl[:] = ctrl[world].numpy()
            mujoco.mj_step(model, data, nstep=SUBSTEPS)
    for name, live in (("qpos", None), ("qvel", None), ("xpos", xpos)):
        values = physics.field(name) if live is None else live
        expected = np.stack([getattr(data, name) for data in datas])
        np.testing.assert_array_equal(values.numpy(), expected)


def test_own_models_make_a_difference():
    shared, own = started(), started()
    own.randomise(random_fields())
    for ctrl in random_controls(5):
        shared.step(ctrl, SUBSTEPS)
        own.step(ctrl, SUBSTEPS)
    assert (shared.field("qpos") != own.field("qpos")).any(dim=1).all()


def test_derived_constants_follow_a_mass():
    physics = started()
    mass = physics.shared("body_mass").clone()
    mass[1] *= 2
    physics.randomise({"body_mass": mass})
    weights = physics._batch.expanded("body_invweight0")
    assert weights[1, 1, 0] < 0.75 * weights[0, 1, 0]


def test_moved_bodies_derive_nothing_and_are_saved_as_such():
    physics, model = started(), gymnasium_model("half_cheetah.xml").compiled
    place = physics.shared("body_pos").clone()
    place[:, 2] += torch.rand(WORLDS, 3, generator=torch.Generator().manual_seed(0))
    physics.randomise({"body_pos": place}, derive=False)
    weights = physics._batch.expand("body_invweight0")
    assert (weights == model.body_invweight0).all()
    other = started()
    other.load_state_dict(physics.state_dict())
    assert (other._batch.expand("body_invweight0") == model.body_invweight0).all()
    for ctrl in random_controls(20):
        physics.step(ctrl, SUBSTEPS)
        other.step(ctrl, SUBSTEPS)
    assert torch.equal(physics.field("qpos"), other.field("qpos"))
    other.randomise({"body_pos": place})
    assert (other._batch.expand("body_invweight0") != model.body_invweight0).any()


def test_current_positions_are_those_of_the_new_state():
    lagging, current = started(), started()
    for physics in (lagging, current):
        physics.field("xpos")
    for ctrl in random_controls(10):
        lagging.step(ctrl, SUBSTEPS)
        current.step(ctrl, SUBSTEPS, current=True)
    assert torch.equal(lagging.field("qpos"), current.field("qpos"))
    assert not torch.equal(lagging.field("xpos"), current.field("xpos"))
    lagging._batch.forward()
    assert torch.equal(lagging.field("xpos"), current.field("xpos"))


def test_a_look_at_a_world_shows_the_forces_of_its_contacts():
    physics, model = started(), gymnasium_model("half_cheetah.xml").compiled
    gravity = physics.shared("opt.gravity").clone()
    gravity[:, 2] *= torch.linspace(0.5, 1.0, WORLDS)
    physics.randomise({"opt.gravity": gravity})
    for ctrl in random_controls(30):
        physics.step(ctrl, SUBSTEPS)
    pressed = 0
    for world in (2, 4, 2):
        own, data = copy.copy(model), mujoco.MjData(model)
        own.opt.gravity[:] = gravity[world].numpy()
        mujoco.mj_setState(
            own, data, physics._batch.state[world], mujoco.mjtState.mjSTATE_INTEGRATION
        )
        mujoco.mj_forward(own, data)
        _, seen = physics.look(world)
        assert (seen.contact.geom == data.contact.geom).all()
        assert (seen.efc_force == data.efc_force).all()
        pressed += int((data.efc_force > 0).sum())
    assert pressed > 0


def test_put_worlds_go_on_from_the_states_they_were_put_into():
    physics, controls = started(), random_controls(40)
    for ctrl in controls[:20]:
        physics.step(ctrl, SUBSTEPS)
    states = physics.state_dict()["rows"]
    for ctrl in controls[20:]:
        physics.step(ctrl, SUBSTEPS)
    end = physics.field("qpos").clone()
    half = torch.arange(WORLDS) % 2 == 0
    physics.put(half, states)
    for ctrl in controls[20:]:
        physics.step(ctrl, SUBSTEPS)
    again = physics.field("qpos")
    assert torch.equal(again[half], end[half])
    assert not torch.equal(again[~half], end[~half])


@pytest.mark.parametrize("own_models", [False, True])
def test_restored_state_goes_on_bit_for_bit(own_models):
    physics = started()
    physics.field("xpos")
    if own_models:
        physics.randomise(random_fields())
    controls = random_controls(60)
    for ctrl in controls[:30]:
        physics.step(ctrl, SUBSTEPS)
    saved = physics.state_dict()
    xpos = physics.field("xpos").clone()

    def finish(physics):
        for ctrl in controls[30:]:
            physics.step(ctrl, SUBSTEPS)
        return physics.state_dict()

    expected = finish(physics)
    # Into other physics that has been somewhere else, with other models.
    other = started(threads=2)
    other.randomise({"dof_damping": 3 * random_fields()["dof_damping"]})
    other.step(controls[0], SUBSTEPS)
    other.load_state_dict(saved)
    assert torch.equal(other.field("xpos"), xpos)
    resumed = finish(other)
    assert resumed.keys() == expected.keys()
    for name in expected:
        assert torch.equal(resumed[name], expected[name]), name


def test_masked_reset_touches_only_its_worlds():
    physics, twin = started(), started()
    for ctrl in random_controls(20):
        physics.step(ctrl, SUBSTEPS)
        twin.step(ctrl, SUBSTEPS)
    mask = torch.tensor([False, True, False, False, True, False])
    qpos, qvel = random_state(seed=9)
    physics.reset(mask, qpos, qvel)
    rows, untouched = physics.state_dict()["rows"], twin.state_dict()["rows"]
    assert torch.equal(rows[~mask], untouched[~mask])
    # A world that was reset is in the state of one that never ran.
    fresh = CpuPhysics(gymnasium_model("half_cheetah.xml"), WORLDS)
    fresh.reset(torch.ones(WORLDS, dtype=torch.bool), qpos, qvel)
    assert torch.equal(rows[mask], fresh.state_dict()["rows"][mask])
    assert (fresh.field("time") == 0).all() and (fresh.field("qacc_warmstart") == 0).all()


def test_derived_fields_are_fresh_after_a_reset():
    physics = started()
    xpos = physics.field("xpos")
    qpos, qvel = random_state(seed=5)
    physics.reset(torch.ones(WORLDS, dtype=torch.bool), qpos, qvel)
    np.testing.assert_allclose(xpos[:, 1, 0], qpos[:, 0], atol=1e-15)
    np.testing.assert_allclose(xpos[:, 1, 2], qpos[:, 1] + 0.7, atol=1e-15)


@pytest.fixture
def worlds(tmp_path):
    env = HalfCheetahVel().make_worlds(WORLDS)
    env.set_tasks(TargetSpeed(torch.linspace(0, 3, WORLDS, dtype=torch.float64)))
    env.dump_unstable_to(tmp_path / "dumps")
    env.reset()
    return env


def inject_nan(env):
    env.physics.field("qpos")[3, 2] = float("nan")


def inject_infinity(env):
    env.physics.field("qvel")[3, 0] = float("inf")


def inject_huge_velocity(env):
    env.physics.field("qvel")[3, 4] = 1e12


def inject_bad_control(env):
    env.physics._ctrl = BadControl(env.physics.field("ctrl"))


class BadControl:
    """Writes a NaN into world 3's control, as a broken family would."""

    def __init__(self, view):
        self.view = view

    def copy_(self, ctrl):
        self.view.copy_(ctrl)
        self.view[3, 0] = float("nan")


FAULTS = {
    inject_nan: "BADQPOS",
    inject_infinity: "BADQVEL",
    inject_huge_velocity: "BADQVEL",
    inject_bad_control: "BADCTRL",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("own_models", [False, True])
def test_unstable_world_is_reported_ended_and_replayable(worlds, caplog, fault, own_models):
    if own_models:
        worlds.physics.randomise(random_fields())
    controls = random_controls(7)
    for ctrl in controls[:6]:
        worlds.step(ctrl)
    fault(worlds)
    with caplog.at_level(logging.WARNING):
        obs, reward, terminated, truncated, info = worlds.step(controls[6])
    only_third = [world == 3 for world in range(WORLDS)]
    assert info["unstable"].tolist() == truncated.tolist() == only_third
    assert not terminated.any()
    assert torch.isfinite(obs).all() and torch.isfinite(info["final_obs"]).all()
    assert reward[3] == 0 and torch.isfinite(reward).all()
    (message,) = caplog.messages
    assert "world 3" in message and "step 6" in message and FAULTS[fault] in message
    (dump,) = worlds._dumps.folder.iterdir()
    assert str(dump) in message
    again = replay(dump)
    assert again.unstable and FAULTS[fault] in again.reason
    assert (again.world, again.step) == (3, 6)
    np.testing.assert_allclose(again.task, [1.8])


def test_an_error_inside_mujoco_counts_as_unstable(worlds, monkeypatch, caplog):
    def fail(ids, **options):
        raise SimulationError(np.array([1]), "out of memory")

    monkeypatch.setattr(worlds.physics._batch, "step", fail)
    monkeypatch.setattr(worlds.physics._batch, "error", lambda world: f"no memory for {world}")
    with caplog.at_level(logging.WARNING):
        info = worlds.step(random_controls(1)[0])[-1]
    assert info["unstable"].tolist() == [world == 1 for world in range(WORLDS)]
    assert "no memory for 1" in caplog.text


def test_other_worlds_do_not_notice(worlds):
    twin = HalfCheetahVel().make_worlds(WORLDS)
    twin.set_tasks(worlds.tasks)
    twin.reset()
    inject_huge_velocity(worlds)
    others = torch.arange(WORLDS) != 3
    for ctrl in random_controls(10):
        obs, reward, *_ = worlds.step(ctrl)
        twin_obs, twin_reward, *_ = twin.step(ctrl)
        assert torch.equal(obs[others], twin_obs[others])
        assert torch.equal(reward[others], twin_reward[others])


def test_without_a_folder_it_only_warns(worlds, caplog):
    worlds._dumps.folder = None
    inject_nan(worlds)
    with caplog.at_level(logging.WARNING):
        worlds.step(random_controls(1)[0])
    assert len(caplog.messages) == 1 and "replay" not in caplog.text


def test_number_of_dumps_is_bounded(worlds):
    worlds._dumps.max_dumps = 3
    for ctrl in random_controls(8):
        inject_nan(worlds)
        worlds.step(ctrl)
    assert len(list(worlds._dumps.folder.iterdir())) == 3


def test_a_dump_that_cannot_be_written_does_not_stop_the_run(worlds, tmp_path, caplog):
    (tmp_path / "dumps").write_text("a file where the folder should be")
    inject_nan(worlds)
    with caplog.at_level(logging.WARNING):
        assert worlds.step(random_controls(1)[0])[-1]["unstable"].any()
    assert "cannot be written" in caplog.text


def test_an_oracles_worlds_dump_too(tmp_path):
    family = TaskInObservation.of(HalfCheetahVel())
    env = family.make_worlds(WORLDS)
    env.set_tasks(family.sample_tasks(WORLDS, "train", torch.Generator()))
    env.reset()
    env.dump_unstable_to(tmp_path)
    inject_nan(env.inner)
    env.step(random_controls(1)[0])
    assert replay(next(tmp_path.iterdir())).unstable


def test_no_false_alarm_and_no_log_file(worlds, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    alarms = 0
    for ctrl in random_controls(400):
        alarms += int(worlds.step(ctrl.sign())[-1]["unstable"].sum())
    assert alarms == 0 and not caplog.messages
    inject_nan(worlds)
    assert worlds.step(ctrl)[-1]["unstable"].any()
    assert not (tmp_path / "MUJOCO_LOG.TXT").exists()


def test_a_state_that_overflows_in_the_last_substep_is_seen():
    physics = started()
    # Too slow for MuJoCo's check of velocities, fast enough to leave its range of positions.
    physics.field("qvel")[2, 0] = 9e9
    physics.field("qpos")[2, 0] = 9.95e9
    assert physics.step(random_controls(1)[0], 1).tolist() == [w == 2 for w in range(WORLDS)]
    assert "not finite" in physics.snapshot(2).reason or "BAD" in physics.snapshot(2).reason


BAD_MODELS = {
    "tag": ("<mujoco>\n<worldbody>\n<bdy/></worldbody></mujoco>", "line 3"),
    "xml": ("<mujoco><worldbody></mujoco>", "line 1 does not parse"),
    "empty": ("", "empty"),
    "mesh": ("<mujoco><asset><mesh file='absent.stl'/></asset></mujoco>", "absent.stl"),
    "mass": (
        "<mujoco><worldbody><body><joint/><geom size='1'/>"
        "<inertial pos='0 0 0' mass='nan' diaginertia='1 1 1'/></body></worldbody></mujoco>",
        "mass='nan'",
    ),
    "damping": (
        "<mujoco><worldbody><body><joint damping='nan'/><geom size='1'/></body>"
        "</worldbody></mujoco>",
        "damping='nan'",
    ),
}


@pytest.mark.parametrize("case", BAD_MODELS)
def test_model_that_does_not_parse(tmp_path, case):
    text, reason = BAD_MODELS[case]
    path = tmp_path / "robot.xml"
    path.write_text(text)
    with pytest.raises(UsageError) as error:
        load_model(path)
    assert str(path) in str(error.value) and reason in str(error.value)
    assert "\n" not in str(error.value)


def test_model_that_cannot_be_read(tmp_path):
    for path in (tmp_path / "absent.xml", tmp_path):
        with pytest.raises(UsageError, match=str(path)):
            load_model(path)
    binary = tmp_path / "binary.xml"
    binary.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(UsageError, match="not UTF-8"):
        load_model(binary)


def test_bad_requests():
    refuse_bad_requests(started(), started(worlds=2), random_fields()["dof_damping"])
    for numbers in ((0, 1), (1, 0)):
        with pytest.raises(UsageError, match="at least 1"):
            CpuPhysics(gymnasium_model("half_cheetah.xml"), *numbers)


def test_replay_of_something_else(tmp_path):
    path = tmp_path / "other.npz"
    for content in (b"", b"not a dump", None):
        if content is None:
            np.savez(path, allow_pickle=False, state=np.zeros(3))
        else:
            path.write_bytes(content)
        with pytest.raises(UsageError, match="not a dump"):
            replay(path)
    with pytest.raises(UsageError, match="not a dump"):
        replay(tmp_path / "absent.npz")

"""Robots from model files: the example that ships with the package, and those of users."""

import json
import math
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import mujoco
import numpy as np
import pytest
import torch
from test_docs import blocks
from test_families import play, random_actions, started

import metarl.envs
from metarl.adaptation import evaluate
from metarl.agents.rl2 import RL2, RL2Config
from metarl.envs import from_mjcf
from metarl.envs.randomization import Randomization, Vary
from metarl.envs.registry import make_family
from metarl.envs.robot import Robot, RobotTask
from metarl.envs.robots import crane
from metarl.envs.robots.crane import Crane
from metarl.errors import UsageError
from metarl.experiments.cli import main
from metarl.experiments.loading import open_run

CART = """
<mujoco model="cart">
  <option timestep="0.02"/>
  <worldbody>
    <body name="cart">
      <joint name="x" type="slide" axis="1 0 0" damping="1"/>
      <joint name="y" type="slide" axis="0 1 0" damping="1"/>
      <geom size="0.1" mass="1"/>
    </body>
  </worldbody>
  <actuator>
    <motor joint="x" gear="2" ctrlrange="-1 1"/><motor joint="y" ctrlrange="0 3"/>
  </actuator>
</mujoco>
"""
MODULE = """
import torch
from metarl.envs import from_mjcf

Cart = from_mjcf(
    "models/cart.xml",
    name="my-cart",
    observation=lambda state: torch.cat([state["qpos"], state["qvel"]], -1),
    reward=lambda before, after, command, task: after["qpos"][:, 0] * task.side,
    goals={"side": (-1.0, 1.0)},
    horizon=9,
    reset_noise=0.1,
)
"""


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def path(tmp_path):
    """The file of a cart that two motors pull over a plane."""
    file = tmp_path / "cart.xml"
    file.write_text(CART)
    return file


def see(state):
    return torch.cat([state["qpos"], state["qvel"]], -1)


def earn(before, after, command, task):
    return (after["qpos"] - before["qpos"])[:, 0]


def cart(path, **changes):
    return from_mjcf(path, **{"name": "cart", "observation": see, "reward": earn, **changes})


# --- the example ---------------------------------------------------------------------------------


def test_a_crane_is_meta_trained_to_find_its_mark():
    """Within seconds it beats what a policy could do that does not adapt, whatever it were."""
    family = Crane()
    env = family.make_worlds(32, seed=1)
    config = RL2Config(gamma=0.95, minibatches=4, learning_rate=4e-3)
    agent = RL2(config, family.spec(), seed=1)
    tasks = family.sample_tasks(32, "held-out", generator(3))
    for i in range(30):
        agent.train_step(env, i / 30)
    first, second = evaluate(agent.policy(), env, tasks, episodes=2).summary().mean
    # At best the load hangs where it is least far from all marks: in their median.
    away = (tasks.mark - tasks.mark.median()).abs().mean()
    alone = -family.horizon * float(away)
    assert alone == pytest.approx(-25.0, abs=4.0)
    assert second > 0.6 * alone
    assert second > first + 1.0


def test_a_crane_moves_and_earns_as_a_plain_simulation_says():
    family = make_family("crane")
    assert isinstance(family, Crane) and isinstance(family, Robot)
    tasks = family.sample_tasks(3, "train", generator())
    env, obs = started(family, tasks, worlds=3)
    density, strength = tasks.dynamics.T.tolist()
    plain = []
    for world in range(3):
        model = mujoco.MjModel.from_xml_string(family.model().xml)
        load = model.body("load").id
        model.body_mass[load] *= density[world]
        model.body_inertia[load] *= density[world]
        model.actuator_gear[0] *= strength[world]
        data = mujoco.MjData(model)
        mujoco.mj_setConst(model, data)
        mujoco.mj_resetData(model, data)
        data.qpos[:], data.qvel[:] = (env.physics.field(f)[world] for f in ("qpos", "qvel"))
        assert max(abs(data.qpos)) <= 0.05 and max(abs(data.qvel)) <= 0.05
        plain.append((model, data))
    for action in random_actions(family, 40, worlds=3):
        obs, reward, terminated, _, _ = env.step(action)
        for world, (model, data) in enumerate(plain):
            data.ctrl[0] = action[world]
            mujoco.mj_step(model, data, 4)
            x, angle = data.qpos
            expected = [x, math.sin(angle), math.cos(angle), *data.qvel]
            np.testing.assert_allclose(obs[world], expected, rtol=1e-6, atol=1e-6)
            away = abs(data.site("load").xpos[0] - float(tasks.mark[world]))
            assert float(reward[world]) == pytest.approx(-away, abs=1e-6)
        assert not terminated.any()
    assert family.dt == pytest.approx(0.05)


def test_marks_of_the_splits():
    family = Crane()
    marks = {s: family.sample_tasks(4000, s, generator()).mark for s in family.splits}
    stripes = {s: ((marks[s] + 1.0) * 500).long() for s in ("train", "held-out", "nominal")}
    assert (stripes["train"] % 5 < 4).all() and (stripes["held-out"] % 5 == 4).all()
    assert (stripes["nominal"] % 5 == 4).all()
    for split in ("train", "held-out"):
        assert -1 < marks[split].min() < -0.99 and 0.99 < marks[split].max() < 1
    away = marks["out-of-range"]
    assert away.min() >= 1.0 and away.max() <= 1.4 and away.max() > 1.39
    assert family.sample_tasks(2, "nominal", generator()).dynamics.tolist() == [[1, 1], [1, 1]]


def test_tasks_in_words():
    tasks = Crane().sample_tasks(1, "train", generator())
    mark = f"mark = {float(tasks.mark):.3g}"
    words = Crane().describe(tasks, 0)
    assert words.startswith(mark) and "density load = " in words


def test_the_readme_shows_the_crane_as_it_is():
    (source,) = (text for text in blocks("README.md", "python") if "from_mjcf" in text)
    _, _, code = Path(crane.__file__).read_text().removeprefix('"""').partition('"""\n')
    assert source.strip() == code.strip()


# --- what users write ----------------------------------------------------------------------------


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module of the user's with its model in a folder beside it, and another present folder."""
    (tmp_path / "mine" / "models").mkdir(parents=True)
    (tmp_path / "mine" / "models" / "cart.xml").write_text(CART)
    (tmp_path / "mine" / "carts_of_mine.py").write_text(MODULE)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "mine")])
    yield tmp_path
    sys.modules.pop("carts_of_mine", None)


def test_a_users_robot_is_trained_resumed_and_evaluated(module, capsys):
    words = "--num-worlds 4 --hidden 8 --layers 8 --minibatches 1 --evaluation-tasks 2".split()
    options = ["--family.horizon", "7", "--total-steps", "30", "--threads", "1", *words]
    (module / "some.yaml").write_text("- {quantity: body_mass, low: 0.5, high: 2}\n")
    varied = ["--family.randomize", str(module / "some.yaml")]
    assert main(["train", "rl2", "carts_of_mine:Cart", *options, *varied]) == 0
    again = ["--resume", "--run-dir", "runs/rl2-my-cart-1", "--threads", "1"]
    assert main(["train", "rl2", "carts_of_mine:Cart", *again]) == 0
    family = open_run("runs/rl2-my-cart-1").family
    assert (family.horizon, family.name) == (7, "my-cart")
    assert family.randomize == Randomization((Vary("body_mass", 0.5, 2.0),))
    del sys.modules["carts_of_mine"]
    evaluating = ["evaluate", "runs/rl2-my-cart-1", "--tasks", "2", "--threads", "1", "--json"]
    assert main(evaluating) == 2
    capsys.readouterr()
    assert main(["--import", "carts_of_mine", *evaluating, "--split", "out-of-range"]) == 0
    assert len(json.loads(capsys.readouterr().out.splitlines()[-1])["mean"]) == 2


def test_the_class_belongs_to_the_module_that_made_it(module):
    from carts_of_mine import Cart

    assert (Cart.__module__, Cart.__name__, Cart.name) == ("carts_of_mine", "MyCart", "my-cart")
    assert Cart.__doc__ == "The robot of models/cart.xml."
    on_a_gpu = {"backend", "max_contacts", "max_constraints"}
    assert {f.name for f in fields(Cart)} == {"episodes", "horizon", "randomize"} | on_a_gpu
    assert Cart() == Cart(horizon=9) != Cart(horizon=10)
    assert "MyCart(episodes=2, horizon=9" in repr(Cart())
    assert Cart().sample_tasks(1, "train", generator()).__class__.__name__ == "MyCartTask"


def test_a_subclass_may_say_more(path):
    class Started(cart(path, reset_noise=0.1)):
        """A cart that begins at 1 m."""

        def initial_state(self, task, dq, dv):
            return 1.0 + dq, dv

    _, obs = started(Started(), Started().sample_tasks(4, "train", generator()))
    assert (obs[:, :2] >= 0.9).all() and (obs[:, 2:].abs() <= 0.1).all()


def test_actions_fill_the_range_of_each_actuator(path):
    family = cart(path, frame_skip=3)()
    env, _ = started(family, family.sample_tasks(4, "train", generator()))
    command = env.commands(torch.tensor([[-1.0, -1.0], [0.0, 0.0], [1.0, 1.0], [7.0, 0.5]]))
    assert command.tolist() == [[-1, 0], [0, 1.5], [1, 3], [1, 2.25]]
    env.step(torch.ones(4, 2))
    assert env.physics.field("time").tolist() == pytest.approx([0.06] * 4)


def test_before_and_command_are_what_they_are_called(path):
    """The reward is given positions before and after the step, and commands in their units."""

    def reward(before, after, command, task):
        return before["qpos"][:, 1] + 10.0 * after["qpos"][:, 1] + 100.0 * command[:, 1]

    family = cart(path, reward=reward, remembers=("qpos", "qvel"), reads=("qvel", "qpos"))()
    env, obs = started(family, family.sample_tasks(4, "train", generator()))
    for action in random_actions(family, 5):
        y = obs[:, 1]
        obs, earned, *_ = env.step(action)
        expected = y + 10.0 * obs[:, 1] + 150.0 * (1.0 + action[:, 1])
        torch.testing.assert_close(earned, expected)


def test_episodes_end_where_the_function_says(path):
    family = cart(path, terminated=lambda state: state["qpos"][:, 0] > 0.05, horizon=40)()
    env, _ = started(family, family.sample_tasks(4, "train", generator()))
    ends = 0
    for step in play(env, [torch.ones(4, 2)] * 60):
        assert torch.equal(step["terminated"], step["final_obs"][:, 0].double() > 0.05)
        ends += int(step["terminated"].sum())
    assert ends >= 4


def test_goals_become_tasks_of_any_shape(path):
    def heading(goals):
        angle = goals["angle"]
        return {"heading": torch.stack([angle.cos(), angle.sin()], -1), "far": goals["far"]}

    def reward(before, after, command, task):
        moved = (after["qpos"] - before["qpos"]) * task.heading
        return moved.sum(-1) * task.far

    goals = {"angle": (0.0, 2.0 * math.pi), "far": (1.0, 2.0)}
    kind = cart(path, reward=reward, goals=goals, as_task=heading, out_of_range={"far": (2.0, 3.0)})
    family = kind()
    assert family.splits == ("train", "held-out", "out-of-range")
    tasks = family.sample_tasks(500, "out-of-range", generator())
    assert isinstance(tasks, RobotTask) and family.task_dim == 3
    torch.testing.assert_close(tasks.heading.norm(dim=-1), torch.ones(500).double())
    assert (tasks.far >= 2.0).all() and (tasks.far <= 3.0).all()
    angle = torch.atan2(tasks.heading[:, 1], tasks.heading[:, 0])
    stripes = ((angle % (2 * math.pi)) / (2 * math.pi) * 1000).long() % 5
    assert len(stripes.unique()) == 5  # goals that stay in their range fill all of it
    assert " 0." in family.describe(tasks[[0]], 0) and "far = 2" in family.describe(tasks[[0]], 0)
    env, _ = started(family, tasks[:4])
    env.step(torch.ones(4, 2))


def test_left_and_right_are_shared_by_the_splits_if_the_user_says_so(path):
    def side(goals):
        return {"side": goals["side"].sign()}

    goals = {"goals": {"side": (-1.0, 1.0)}, "as_task": side}
    family = cart(path, **goals, shared_splits=True)()
    assert family.shared_splits
    assert family.sample_tasks(9, "train", generator()).side.abs().tolist() == [1.0] * 9
    with pytest.raises(UsageError, match="as_task gives train and held-out tasks that are"):
        cart(path, **goals)


def test_without_goals_only_bodies_differ(path):
    assert cart(path)().shared_splits
    family = cart(path, randomize=Randomization((Vary("body_mass", 0.5, 2.0),)))()
    assert not family.shared_splits
    assert family.splits == ("train", "held-out", "out-of-range", "nominal")
    assert family.task_dim == 1


def test_whoever_looks_at_the_names_of_families_imports_nothing_heavy():
    code = "import sys, metarl.envs; sys.exit('torch' in sys.modules or 'mujoco' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    with pytest.raises(AttributeError, match="has no attribute 'from_urdf'"):
        metarl.envs.from_urdf  # noqa: B018


# --- what cannot be ------------------------------------------------------------------------------


def write(state):
    state["qpos"][:, 0] += 1.0
    return state["qpos"].clone()


def both(low, high):
    return {"goals": {"speed": (low, high)}}


BAD = {
    "name": ({"name": "my cart"}, "name must be letters, digits, - and _, got 'my cart'"),
    "no name": ({"name": ""}, "name must be letters, digits, - and _, got ''"),
    "path as name": ({"name": "../cart"}, "name must be letters, digits, - and _"),
    "frame skip": ({"frame_skip": 0}, "frame_skip must be a whole number of at least 1, got 0"),
    "part of a frame": ({"frame_skip": 2.5}, "frame_skip must be a whole number of at least 1"),
    "truth": ({"frame_skip": True}, "frame_skip must be a whole number of at least 1, got True"),
    "noise": ({"reset_noise": -0.1}, "reset_noise must be a finite number of at least 0, got -0.1"),
    "NaN": ({"reset_noise": math.nan}, "reset_noise must be a finite number of at least 0"),
    "horizon": ({"horizon": 0}, "horizon must be a whole number of at least 1, got 0"),
    "episodes": ({"episodes": 1.5}, "episodes must be a whole number of at least 1, got 1.5"),
    "field": (
        {"reads": ("qpos", "qvle")},
        "reads names 'qvle', which is no array of MuJoCo's data; there are qvel",
    ),
    "no field": ({"reads": ("qpos", "zzz")}, "there are qpos, qvel, xpos, site_xpos, sensordata"),
    "model field": ({"reads": ("qpos", "body_mass")}, "reads names 'body_mass', which is no array"),
    "remembers": (
        {"remembers": ("qpos", "xpos")},
        "remembers names 'xpos', which is not in reads (qpos, qvel)",
    ),
    "unread": (
        {"observation": lambda state: state["xpos"]},
        "observation uses the field 'xpos', which is not in reads (qpos, qvel)",
    ),
    "not remembered": (
        {"reward": lambda before, after, command, task: before["qvel"][:, 0]},
        "reward uses the field 'qvel', which is not in remembers (qpos)",
    ),
    "flat observation": (
        {"observation": lambda state: state["qpos"][:, 0]},
        "observation must return a tensor [W, O], which for 9 worlds is (9, O), got float64 (9,)",
    ),
    "observation of all": (
        {"observation": lambda state: state["qpos"].sum(0)},
        "observation must return a tensor [W, O], which for 9 worlds is (9, O), got float64 (2,)",
    ),
    "turned observation": (
        {"observation": lambda state: state["qpos"].T},
        "observation must return a tensor [W, O], which for 9 worlds is (9, O), got float64 (2, 9)",
    ),
    "empty observation": (
        {"observation": lambda state: state["qpos"][:, :0]},
        "got float64 (9, 0)",
    ),
    "no observation": ({"observation": lambda state: None}, "got None"),
    "arrays": ({"observation": lambda state: np.zeros((9, 2))}, "must return a tensor [W, O]"),
    "whole observation": (
        {"observation": lambda state: state["qpos"].long()},
        "observation must return floating-point numbers, got int64 (9, 2)",
    ),
    "infinite observation": (
        {"observation": lambda state: 1.0 / state["qpos"]},
        "observation is not finite in the model's default state",
    ),
    "observation in place": ({"observation": write}, "changes the field 'qpos' in place; clone it"),
    "reward of all": (
        {"reward": lambda before, after, command, task: after["qpos"].sum()},
        "reward must return a tensor [W], which for 9 worlds is (9,), got float64 ()",
    ),
    "reward of many": (
        {"reward": lambda before, after, command, task: after["qpos"]},
        "reward must return a tensor [W], which for 9 worlds is (9,), got float64 (9, 2)",
    ),
    "reward of none": (
        {"reward": lambda before, after, command, task: 0.0},
        "reward must return a tensor [W], which for 9 worlds is (9,), got 0.0",
    ),
    "NaN reward": (
        {"reward": lambda before, after, command, task: after["qpos"][:, 0].log()},
        "reward is not finite in the model's default state",
    ),
    "end of all": (
        {"terminated": lambda state: (state["qpos"] > 1).any()},
        "terminated must return a tensor [W], which for 9 worlds is (9,), got bool ()",
    ),
    "number for an end": (
        {"terminated": lambda state: state["qpos"][:, 0]},
        "terminated must return booleans, got float64 (9,)",
    ),
    "reversed goals": (both(2.0, 1.0), "goals 'speed' must be an interval (low, high) of finite"),
    "one goal": (both(1.0, 1.0), "low below high, got (1.0, 1.0)"),
    "infinite goals": (
        both(0.0, math.inf),
        "of finite numbers with low below high, got (0.0, inf)",
    ),
    "NaN goals": (both(math.nan, 1.0), "of finite numbers with low below high, got (nan, 1.0)"),
    "a number of goals": ({"goals": {"speed": 2.0}}, "must be an interval (low, high)"),
    "goal name": (
        {"goals": {"my speed": (0.0, 1.0)}},
        "must have names that Python takes, got 'my",
    ),
    "taken name": ({"goals": {"dynamics": (0.0, 1.0)}}, "names that Python takes, got 'dynamics'"),
    "overlap": (
        {**both(0.0, 2.0), "out_of_range": {"speed": (1.9, 3.0)}},
        "out_of_range 'speed' must not overlap with its goals (0.0, 2.0), got (1.9, 3.0)",
    ),
    "other goal": (
        {**both(0.0, 2.0), "out_of_range": {"sped": (2.0, 3.0)}},
        "out_of_range names 'sped', which is no goal; goals are speed",
    ),
    "no task": (
        {**both(0.0, 2.0), "as_task": lambda goals: 3},
        "must return tensors by name, got 3",
    ),
    "one task": (
        {**both(0.0, 2.0), "as_task": lambda goals: {"speed": goals["speed"][:1]}},
        "as_task must return tensors [N, ...], which for 400 tasks is (400, ...), got speed = ",
    ),
    "infinite task": (
        {**both(0.0, 2.0), "as_task": lambda goals: {"speed": goals["speed"] / 0.0}},
        "as_task is not finite",
    ),
    "same tasks": (
        {**both(0.0, 2.0), "as_task": lambda goals: {"speed": goals["speed"].round()}},
        "as_task gives train and held-out tasks that are the same; keep apart",
    ),
    "randomised": (
        {"randomize": Randomization((Vary("density", 0.5, 2.0, of=("torso",)),))},
        "has no body 'torso'; choose from world, cart",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_is_refused_in_one_sentence(case, path, monkeypatch):
    changes, message = BAD[case]
    with pytest.raises(UsageError) as refusal:
        cart(path, **changes)
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert "cart" in str(refusal.value) or "name" in case


def test_goals_out_of_range_may_not_be_those_of_training_after_all(path):
    goals = {"goals": {"speed": (0.0, 2.0)}, "out_of_range": {"speed": (2.0, 3.0)}}

    def rounded(goals):
        return {"speed": goals["speed"].round()}

    with pytest.raises(UsageError, match="as_task gives train and out-of-range tasks that are"):
        cart(path, **goals, as_task=rounded, shared_splits=True)


def test_the_users_own_mistakes_keep_their_traceback(path):
    with pytest.raises(IndexError) as error:
        cart(path, reward=lambda before, after, command, task: after["qpos"][:, 5])
    (note,) = error.value.__notes__
    assert note == "in the function reward of robot cart, called for 9 worlds"
    with pytest.raises(AttributeError, match="has no attribute 'speed'"):
        cart(path, reward=lambda before, after, command, task: task.speed)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file or directory"),
        (CART.replace("<mujoco model", "<mujoco"), "does not parse"),
        (CART[: CART.index("<actuator>")] + "</mujoco>", "has no actuator: add an <actuator>"),
        (CART.replace('mass="1"', 'mass="nan"'), "cart.xml"),
    ],
)
def test_files_that_are_no_robot_are_refused(content, message, tmp_path):
    if content is not None:
        (tmp_path / "cart.xml").write_text(content.replace("<mujoco=", "<mujoco ="))
    with pytest.raises(UsageError) as refusal:
        cart(tmp_path / "cart.xml")
    assert message in str(refusal.value)
    assert str(tmp_path / "cart.xml") in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_relative_path_is_beside_the_module(module, capsys):
    (module / "mine" / "models" / "cart.xml").rename(module / "elsewhere" / "cart.xml")
    assert main(["train", "rl2", "carts_of_mine:Cart"]) == 2
    expected = module / "mine" / "models" / "cart.xml"
    assert f"model file {expected} cannot be read" in capsys.readouterr().err

"""Videos: every frame shows where the world is, and files are what their names say."""

import contextlib
import functools
import importlib.util
import io
import itertools
import json
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from types import SimpleNamespace

import mujoco
import numpy as np
import pytest
import torch
from PIL import Image

from metarl.envs.metaworld.names import family_names
from metarl.envs.metaworld.skills import skills
from metarl.envs.metaworld.starts import sawyer
from metarl.envs.physics import load_model
from metarl.envs.registry import FAMILIES, family_class, make_family
from metarl.errors import UsageError
from metarl.experiments import arms, robots, video
from metarl.experiments.cli import main
from metarl.experiments.evaluation import Protocol, evaluate_run
from metarl.experiments.loading import open_run
from metarl.experiments.scenes import (
    AGENT,
    DOOR,
    GOAL,
    KEY,
    SCENES,
    SIDE,
    WALL,
    Moment,
    RingScene,
    numbers_in_words,
)
from metarl.experiments.side_by_side import (
    CAPTION,
    HEAD,
    HEIGHT,
    SIDES,
    STRIP,
    TITLE,
    WIDTH,
    EpisodePanel,
    chosen_episodes,
    film,
    picture_side,
    shortened,
)
from metarl.experiments.video import GAP, Panel, frames, record, write_video
from metarl.tasks import TaskBatch

NOTHING = np.zeros(0)


def untrained(path, family, *options):
    """A run of one iteration with tiny networks."""
    words = ["--total-steps", "1", "--num-worlds", "2", "--hidden", "4", "--layers", "4"]
    words += ["--epochs", "1", "--minibatches", "1", "--threads", "1", *options]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        assert main(["train", "rl2", family, "--run-dir", str(path), *words]) == 0
    return open_run(path)


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    """A run on gridnavi."""
    return untrained(tmp_path_factory.mktemp("runs") / "grid", "gridnavi")


BALL = '<mujoco><worldbody><geom size="1"/></worldbody></mujoco>'


@functools.cache
def has_gl():
    """Whether robots can be rendered here."""
    try:
        robots.open_renderer(mujoco.MjModel.from_xml_string(BALL))
    except UsageError:
        return False
    return True


@pytest.fixture
def gl():
    """Skip a test where robots cannot be rendered."""
    if not has_gl():
        pytest.skip("no OpenGL here that works without a screen")


def colour(picture, x, y):
    """The colour at a share of the picture's width and height, the latter from below."""
    pixel = picture.getpixel((round(x * (SIDE - 1)), round((1.0 - y) * (SIDE - 1))))
    return "#" + "".join(f"{value:02x}" for value in pixel)


def moment(*path, actions=(), rewards=()):
    """A moment at the end of a path of observations."""
    return Moment(
        np.asarray(path, dtype=np.float32), np.asarray(actions), np.asarray(rewards), NOTHING
    )


def scene(name, tasks=3, **options):
    """A scene of held-out tasks, and the tasks."""
    family = make_family(name, **options)
    batch = family.sample_tasks(tasks, "held-out", torch.Generator().manual_seed(0))
    return SCENES[name](family, batch), batch


# --- scenes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("observation", ["xy", "one-hot"])
def test_a_grid_shows_goal_and_agent(observation):
    drawn, tasks = scene("gridnavi", observation=observation)
    cell = next(c for c in (3, 9) if c != int(tasks.goal[0]))
    x, y = divmod(cell, 5)
    obs = np.eye(25)[cell] if observation == "one-hot" else (x, y)
    picture = drawn.draw(0, moment(obs))
    goal_x, goal_y = divmod(int(tasks.goal[0]), 5)
    assert colour(picture, (x + 0.55) / 5.1, (y + 0.55) / 5.1) == AGENT
    assert colour(picture, (goal_x + 0.55) / 5.1, (goal_y + 0.55) / 5.1) == GOAL


def test_a_maze_shows_walls_goal_key_door_and_agent():
    drawn, tasks = scene("maze", variant="key-door")
    size = tasks.walls.shape[-1]

    def place(at):
        return (int(at[1]) + 0.5) / size, (size - 0.5 - int(at[0])) / size

    obs = np.zeros(103)
    obs[50:52] = tasks.start[0]
    picture = drawn.draw(0, moment(obs))
    expected = {tasks.start: AGENT, tasks.goal: GOAL, tasks.key: KEY, tasks.door: DOOR}
    for where, shade in expected.items():
        assert colour(picture, *place(where[0])) == shade
    assert colour(picture, *place((0, 0))) == WALL
    obs[102] = 1.0
    with_key = drawn.draw(0, moment(obs))
    assert colour(with_key, *place(tasks.start[0])) == KEY
    assert colour(with_key, *place(tasks.key[0])) not in (KEY, AGENT)


def test_a_plane_shows_goal_and_robot():
    drawn, tasks = scene("point-dense")
    half = 1.25 * max(float(tasks.goal.abs().max()), 0.5)
    x, y = (0.5 + tasks.goal[0].numpy() / (2 * half)).tolist()
    corner = -0.8 * half
    picture = drawn.draw(0, moment((corner, corner), (corner, corner)))
    assert colour(picture, x, y) == GOAL
    assert colour(picture, 0.1, 0.1) == AGENT
    assert drawn.caption(0).startswith("task: goal (")


def test_a_bandit_lights_the_arm_that_paid():
    drawn, _ = scene("bandit")
    idle = drawn.draw(0, moment((0.0,)))
    paid = drawn.draw(0, moment((0.0,), actions=[3], rewards=[1.0]))
    middle = (0.08 + (3 + 0.3) / 5) / 1.16, 0.19
    assert colour(idle, *middle) != GOAL
    assert colour(paid, *middle) == GOAL


def test_a_ring_puts_the_agent_on_its_state():
    drawn, _ = scene("tabular-mdp")
    picture = drawn.draw(0, moment(np.eye(10)[2], np.eye(10)[0]))
    assert colour(picture, 0.5, 2.3 / 2.6) == AGENT


def test_every_family_can_be_drawn():
    robots_only = {name for name in FAMILIES if hasattr(family_class(name), "model")}
    assert {"half-cheetah-vel", "ant-goal", "reacher-goal"} <= robots_only
    assert set(FAMILIES) == set(SCENES) | robots_only | set(family_names())


def test_tasks_in_words():
    assert numbers_in_words("speed", np.float64(1.234)) == "speed 1.23"
    assert numbers_in_words("goal", np.array([1.2, -0.31])) == "goal (1.20, -0.31)"
    assert numbers_in_words("nothing", np.zeros(0)) == ""
    multipliers = np.ones(58)
    multipliers[[3, 20, 57]] = 0.2, 3.0, 1.5
    words = "mass[3] 0.20, mass[20] 3.00, mass[57] 1.50"
    assert numbers_in_words("mass", multipliers) == words


@dataclass(frozen=True)
class Mixed(TaskBatch):
    speed: torch.Tensor
    goal: torch.Tensor
    arm: torch.Tensor


def test_a_caption_is_the_familys_or_made_of_its_numbers():
    tasks = Mixed(torch.ones(2).double(), torch.ones(2, 2).double(), torch.ones(2).long())
    family = make_family("tabular-mdp")
    assert RingScene(family, tasks).caption(0) == "task: speed 1.00, goal (1.00, 1.00)"

    class Describing:
        def describe(self, batch, index):
            assert batch is tasks
            return f"number {index}" if index else ""

    assert RingScene(Describing(), tasks).caption(1) == "task: number 1"
    assert RingScene(Describing(), tasks).caption(0) == ""


# --- recordings --------------------------------------------------------------------------------


def test_a_recording_is_what_the_evaluation_sees(grid):
    recording, _ = record(grid, 4, "held-out", 7)
    curve = evaluate_run(grid, Protocol(tasks=4, seed=7))
    returns = recording.rollout.per_episode(recording.rollout.reward, 4).mean(1)
    assert returns.tolist() == pytest.approx(np.asarray(curve.returns))


def test_frames_cover_every_step_and_every_end_of_an_episode(grid):
    recording, drawn = record(grid, 1, "train", 0)
    pictures = list(frames(recording, drawn, "title"))
    assert len(pictures) == 4 * 15 + 4
    assert {picture.shape for picture in pictures} == {(36 + 68 + SIDE + 92, SIDE + 16, 3)}
    assert len({picture.tobytes() for picture in pictures}) == len(pictures)


def test_a_world_that_is_done_waits_for_the_others(grid):
    recording, drawn = record(grid, 1, "held-out", 0)
    recording.rollout.active[5:, 0] = False
    recording.rollout.truncated[4, 0] = True
    panel = Panel(recording, drawn, 0)
    before, last, later = (np.asarray(panel.draw(index)) for index in (4, 5, 60))
    assert (before != last).any()
    assert (later == last).all()


# --- episodes side by side -----------------------------------------------------------------------


def test_episodes_run_side_by_side_from_their_beginning(grid):
    recording, drawn = record(grid, 2, "held-out", 0)
    pictures = list(film(recording, drawn, "title", (2, 4)))
    assert len(pictures) == 15 + 1
    side = drawn.side
    height = CAPTION + HEAD + side + STRIP
    assert {x.shape for x in pictures} == {(TITLE + 2 * height, 2 * (side + GAP) + GAP, 3)}
    trial = Panel(recording, drawn, 1)
    for column, episode in enumerate((1, 3)):
        panel = EpisodePanel(trial, episode, side)
        begin, end = 15 * episode, 15 * episode + 15
        assert [step for step, _ in panel.moments] == [*range(begin, end), end - 1]
        top, left = TITLE + height + CAPTION, GAP + column * (side + GAP)
        for index in (0, 7, 15):
            shown = pictures[index][top : top + height - CAPTION, left : left + side]
            assert (shown == np.asarray(panel.draw(index))).all()


def test_the_return_below_a_panel_is_the_episodes_in_the_end(grid, monkeypatch):
    recording, drawn = record(grid, 1, "held-out", 0)
    panel = EpisodePanel(Panel(recording, drawn, 0), 2, 200)
    written = []
    monkeypatch.setattr(
        "PIL.ImageDraw.ImageDraw.text", lambda self, at, words, *a, **k: written.append(words)
    )
    panel.draw(len(panel.moments) - 1)
    total = float(recording.rollout.per_episode(recording.rollout.reward, 4)[0, 0, 2])
    assert {"episode 3 of 4", "step 15", f"{total:.2f}"} <= set(written)


def test_an_episode_is_marked_from_where_it_was_solved(grid, monkeypatch):
    recording, drawn = record(grid, 1, "held-out", 0)
    recording.rollout.success[:] = 0.0
    recording.rollout.success[15 + 3] = 1.0
    trial, written = Panel(recording, drawn, 0), []
    monkeypatch.setattr(
        "PIL.ImageDraw.ImageDraw.text", lambda self, at, words, *a, **k: written.append(words)
    )
    for episode, index, solved in ((0, 15, 0), (1, 3, 0), (1, 4, 1), (1, 15, 1), (2, 0, 0)):
        written.clear()
        EpisodePanel(trial, episode, 200).draw(index)
        assert written.count("solved") == solved


def test_an_episode_that_ends_early_stands_still_in_grey(tmp_path, monkeypatch):
    run = untrained(tmp_path / "run", "navigation-2d", "--family.episodes", "2")
    recording, drawn = record(run, 1, "held-out", 0)
    rollout = recording.rollout
    # As if the first episode had ended after 5 steps and the trial had gone on at once.
    rollout.truncated[4, 0] = True
    rollout.episode[5:100, 0] = 1
    rollout.elapsed[5:100, 0] = torch.arange(95)[:, None]
    rollout.truncated[99, 0] = True
    rollout.active[100:, 0] = False
    side = 200
    panel = EpisodePanel(Panel(recording, drawn, 0), 0, side)
    before, last, ended, later = (np.asarray(panel.draw(index)) for index in (4, 5, 6, 95))
    assert (last != before).any()
    assert (ended == later).all()
    picture = np.s_[HEAD : HEAD + side - 30]
    assert ended[picture].std() < 0.6 * last[picture].std()
    assert (ended[HEAD + side :] == last[HEAD + side :]).all()
    assert len(EpisodePanel(Panel(recording, drawn, 0), 1, side).moments) == 95 + 1
    written = []
    monkeypatch.setattr(
        "PIL.ImageDraw.ImageDraw.text", lambda self, at, words, *a, **k: written.append(words)
    )
    EpisodePanel(Panel(recording, drawn, 0), 0, side).draw(6)
    assert "ended after 5 steps" in written


def test_long_episodes_are_shown_every_few_steps(grid, monkeypatch):
    recording, drawn = record(grid, 1, "train", 0)
    everything = list(film(recording, drawn, "title", (3,)))
    monkeypatch.setattr("metarl.experiments.side_by_side.MOST_FRAMES", 5)
    few = list(film(recording, drawn, "title", (3,)))
    assert len(few) == 5
    for picture, at in zip(few, (0, 4, 8, 12, 15), strict=True):
        assert (picture == everything[at]).all()


def test_which_episodes_are_shown():
    assert chosen_episodes(1) == [0]
    assert chosen_episodes(5) == [0, 1, 2, 3, 4]
    assert chosen_episodes(10) == [0, 1, 4, 9]
    assert chosen_episodes(100) == [0, 1, 49, 99]
    assert chosen_episodes(10, (10, 1, 1)) == [0, 9]
    with pytest.raises(UsageError, match="must be of 1 to 10, got 11"):
        chosen_episodes(10, (1, 11))


def test_pictures_fit_where_they_can():
    for rows in range(1, 7):
        for columns in range(1, 6):
            side = picture_side(rows, columns, 400_000)
            assert side in SIDES and side % 2 == 0
            if side > SIDES[-1]:
                assert columns * (side + GAP) <= WIDTH
                assert rows * (side + CAPTION + HEAD + STRIP) <= HEIGHT
                assert rows * columns * side**2 <= 400_000
    assert picture_side(1, 2, 400_000) == SIDES[0]
    assert picture_side(1, 1, 10) == SIDES[-1]


def test_words_that_are_too_long_for_a_line():
    assert shortened("short", 13, 300) == "short"
    cut = shortened("mass 1.00, " * 30, 13, 300)
    assert cut.endswith("1.00…") or cut.endswith("…")
    assert 20 < len(cut) < 60


def test_a_bandits_trial_runs_on_in_time(tmp_path):
    run = untrained(tmp_path / "run", "bandit", "--family.episodes", "3")
    recording, drawn = record(run, 2, "held-out", 0)
    ours = [*film(recording, drawn, "title")]
    assert len(ours) == 2 * 3
    assert all((a == b).all() for a, b in zip(ours, frames(recording, drawn, "title"), strict=True))


# --- robots --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("gl")
def test_robots_are_rendered_at_their_recorded_state(tmp_path):
    run = untrained(tmp_path / "run", "half-cheetah-vel", "--family.episodes", "1")
    recording, drawn = record(run, 2, "held-out", 0)
    assert recording.states.shape == (200, 2, 9)
    heights = recording.rollout.obs[:, :, 0, 0].numpy()
    assert recording.states[:, :, 1] == pytest.approx(heights, abs=1e-6)
    pictures = list(itertools.islice(film(recording, drawn, "title"), 3))
    assert (pictures[2] != pictures[0]).any()
    top = TITLE + CAPTION + HEAD
    assert pictures[0][top : top + drawn.side, GAP : GAP + drawn.side].std() > 20.0
    assert drawn.caption(0).startswith("task: speed ")


def pictured(name, state=None, **options):
    """The scene of one task of a family of robots, and a picture of its first pose."""
    family = make_family(name, **options)
    tasks = family.sample_tasks(1, "held-out", torch.Generator().manual_seed(0))
    compiled = family.model().compiled
    drawn = robots.RobotScene(family, tasks, compiled)
    drawn.side = 200
    qpos = compiled.qpos0 if state is None else state
    return drawn, np.asarray(drawn.draw(0, Moment(NOTHING, NOTHING, NOTHING, qpos)))


def green(picture):
    """How many pixels have the colour of a goal."""
    red, green, blue = np.asarray(picture).astype(int).transpose(2, 0, 1)
    return ((green > red + 40) & (green > blue + 15)).sum()


@pytest.mark.usefixtures("gl")
def test_a_goal_is_in_the_picture():
    drawn, picture = pictured("ant-goal")
    assert picture.shape == (200, 200, 3)
    assert green(picture) > 10
    drawn.markers[0] = None
    moment = Moment(NOTHING, NOTHING, NOTHING, drawn.model.qpos0)
    assert green(np.asarray(drawn.draw(0, moment))) == 0


@pytest.mark.usefixtures("gl")
@pytest.mark.parametrize("name", ["ant-dir", "hopper-vel"])
def test_the_camera_stays_with_the_robot(name):
    drawn, first = pictured(name)
    far = drawn.model.qpos0.copy()
    far[0] += 8.0  # the floor's pattern repeats
    moved = np.asarray(drawn.draw(0, Moment(NOTHING, NOTHING, NOTHING, far)))
    middle = np.s_[50:150, 60:140]
    assert first[middle].std() > 10.0
    assert np.abs(moved[middle].astype(int) - first[middle]).mean() < 12.0


@pytest.mark.usefixtures("gl")
def test_arms_of_several_skills_are_rendered_at_their_states_with_objects_where_tasks_put_them():
    names = ("door-open", "reach")
    family = make_family("metaworld-mt10")
    loaded = [sawyer(name, skills()[name].constants) for name in names]
    vectors = [(0.5 * (own.vector_low + own.vector_high)).numpy() for own in loaded]
    tasks = family.placement(list(zip(names, vectors, strict=True)))
    env = family.make_worlds(2)
    env.set_tasks(tasks[[1, 0]])
    env.reset()
    states = env.positions().numpy()[::-1]
    drawn = arms.ArmScene(family, tasks)
    drawn.side = 120
    for state, start in zip(states, map(family.start, names, vectors), strict=True):
        # MuJoCo's integration state begins with the time and the positions.
        size = len(state) if state[-1] else drawn.stages["door-open"].model.nq
        assert (state[:size] == start.state.numpy()[1 : 1 + size]).all()
        assert not state[size:].any()
    moments = [Moment(NOTHING, NOTHING, NOTHING, state) for state in states]
    pictures = [np.asarray(drawn.draw(w, m)).astype(int) for w, m in enumerate(moments)]
    assert all(picture.std() > 20.0 for picture in pictures)
    assert green(pictures[1]) > 5
    drawn.markers[1] = None
    assert green(drawn.draw(1, moments[1])) == 0
    # The door as the model file has it stands somewhere else.
    plain = torch.tensor(loaded[0].model.compiled.body_pos)
    drawn.starts[0] = replace(drawn.starts[0], fields={"body_pos": plain})
    elsewhere = np.asarray(drawn.draw(0, moments[0])).astype(int)
    assert np.abs(elsewhere - pictures[0]).mean() > 1.0


def test_worlds_without_states_of_mujoco_cannot_be_drawn():
    family = make_family("metaworld-mt1-reach", backend="python")
    run = SimpleNamespace(family=family, config=SimpleNamespace(family=family.name))
    with pytest.raises(UsageError, match="no pictures of metaworld-mt1-reach with backend python"):
        video._scene(run, None, object())


FREE = """<mujoco><worldbody>{camera}<body pos="{x} 0 2"><freejoint/><geom size="0.5"/></body>
<geom type="plane" size="50 50 1"/></worldbody></mujoco>"""
ARM = """<mujoco><worldbody>{camera}<body pos="{x} 0 2"><joint/>
<geom type="capsule" size="0.1" fromto="0 0 0 1 0 0"/></body></worldbody></mujoco>"""


def seen(text, marker=None, **values):
    """The view of a model given as text, and its camera."""
    values = {"camera": "", "x": 0.0} | values
    compiled = load_model("<robot>", xml=text.format(**values)).compiled
    data = mujoco.MjData(compiled)
    mujoco.mj_forward(compiled, data)
    view = robots.View(compiled, data)
    return view, view.camera(data, marker)


def test_models_without_cameras_are_looked_at_from_their_size():
    view, camera = seen(FREE, x=3.0)
    assert view.radius == pytest.approx(0.5)
    assert camera.lookat == pytest.approx([3.0, 0.0, 2.0])
    assert camera.distance == pytest.approx(1.6)
    view, camera = seen(ARM, x=3.0)
    assert view.radius == pytest.approx(0.5 + 0.6, abs=0.05)
    assert camera.lookat == pytest.approx([3.0, 0.0, 2.0])
    _, camera = seen(FREE, marker=np.array([4.0, 0.0, 2.0]))
    assert camera.lookat == pytest.approx([2.0, 0.0, 2.0])
    assert camera.distance == pytest.approx(1.6 + 4.0)


def test_which_of_a_models_cameras_is_taken():
    on_the_head = '<camera name="fixed" pos="0 -3 2"/>'
    follows = '<body name="rig"><camera name="a" mode="trackcom"/></body>'
    free, fixed = mujoco.mjtCamera.mjCAMERA_FREE, mujoco.mjtCamera.mjCAMERA_FIXED
    assert seen(FREE, camera=on_the_head)[1].type == free
    assert seen(ARM, camera=on_the_head)[1].type == fixed
    camera = seen(FREE, camera=on_the_head + follows)[1]
    assert (camera.type, camera.fixedcamid) == (fixed, 1)
    assert seen(FREE, camera=follows, marker=np.zeros(3))[1].type == free


def test_without_opengl_a_sentence_says_what_to_install(monkeypatch):
    def missing(name):
        raise ImportError(f"no {name}")

    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(robots, "_probe", missing)
    with pytest.raises(UsageError, match=r"cannot render without a screen.*libegl1") as error:
        robots.open_renderer(mujoco.MjModel.from_xml_string(BALL))
    assert "egl: no egl; osmesa: no osmesa" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_library_that_does_not_work_is_found_out_in_another_process():
    with pytest.raises(RuntimeError, match="MUJOCO_GL: nothing"):
        robots._probe("nothing")


@pytest.mark.parametrize("library", ["glfw", "nothing"])
def test_a_setting_of_mujoco_gl_that_cannot_work(library):
    script = (
        "from metarl.envs.registry import family_class; family_class('half-cheetah-vel');"
        "import mujoco; from metarl.experiments.robots import open_renderer;"
        f"open_renderer(mujoco.MjModel.from_xml_string('{BALL}'))"
    )
    hidden = ("DISPLAY", "WAYLAND_DISPLAY")
    environment = {k: v for k, v in os.environ.items() if k not in hidden}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment | {"MUJOCO_GL": library},
        capture_output=True,
        text=True,
        check=False,
    )
    sentence = done.stderr.strip().splitlines()[-1]
    assert sentence.startswith("metarl.errors.UsageError: ")
    assert f"MUJOCO_GL={library}" in sentence
    assert "libegl1 or libosmesa6" in sentence


# --- files -------------------------------------------------------------------------------------


def test_a_gif_has_all_frames(grid, tmp_path):
    recording, drawn = record(grid, 1, "train", 0)
    pictures = list(frames(recording, drawn, "title"))[:10]
    write_video(pictures, tmp_path / "film.gif", 5)
    with Image.open(tmp_path / "film.gif") as film:
        assert film.size == pictures[0].shape[1::-1]
        shown = []
        for index in range(film.n_frames):
            film.seek(index)
            shown.append(film.info["duration"])
    # Equal frames in a row are one frame that stays longer: the last one waits for a second.
    assert sum(shown) == 15 * 200


def test_an_mp4_has_all_frames(grid, tmp_path):
    ffmpeg = pytest.importorskip("imageio_ffmpeg")
    recording, drawn = record(grid, 1, "train", 0)
    pictures = list(frames(recording, drawn, "title"))[:10]
    write_video(pictures, tmp_path / "film.mp4", 5)
    count, seconds = ffmpeg.count_frames_and_secs(str(tmp_path / "film.mp4"))
    assert (count, seconds) == (15, pytest.approx(3.0, abs=0.2))


def film_command(*args):
    """Exit code, standard output and standard error of `metarl video`."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(["video", *map(str, args)])
    return code, out.getvalue(), err.getvalue()


def test_the_command_writes_where_it_says(grid, tmp_path):
    path = tmp_path / "films" / "one.gif"
    code, out, _ = film_command(grid.folder.path, "--tasks", 1, "--out", path, "--json")
    assert code == 0
    assert path.is_file()
    assert json.loads(out.splitlines()[-1]) == {"out": str(path), "frames": 16, "tasks": 1}


def test_without_ffmpeg_there_is_a_gif_and_a_sentence(grid, monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    code, out, _ = film_command(grid.folder.path, "--tasks", 1)
    assert code == 0
    assert "metarl[video]" in out
    assert (grid.folder.evaluation / "trials-held-out-seed0.gif").is_file()
    code, _, err = film_command(grid.folder.path, "--out", "film.mp4")
    assert code == 2
    assert "film.mp4: .mp4 needs imageio-ffmpeg" in err


def test_episodes_that_are_asked_for(grid, tmp_path):
    path = tmp_path / "film.gif"
    assert film_command(grid.folder.path, "--tasks", 1, "--episodes", 1, 4, "--out", path)[0] == 0
    with Image.open(path) as shown:
        assert shown.width == 2 * (SIDE + GAP) + GAP
    code, _, err = film_command(grid.folder.path, "--episodes", 5)
    assert (code, err.count("\n")) == (2, 1)
    assert "--episodes must be of 1 to 4, got 5" in err


def test_a_split_that_is_not_there_is_refused(grid):
    code, _, err = film_command(grid.folder.path, "--split", "out-of-range")
    assert (code, err.count("\n")) == (2, 1)
    assert "no split 'out-of-range'" in err


def test_a_family_without_pictures_says_so(grid, monkeypatch):
    monkeypatch.delitem(SCENES, "gridnavi")
    code, _, err = film_command(grid.folder.path)
    assert code == 2
    assert "no pictures of gridnavi" in err


def test_ffmpeg_is_what_decides():
    from metarl.experiments.video import can_write_mp4

    assert can_write_mp4() == (importlib.util.find_spec("imageio_ffmpeg") is not None)

"""Videos: every frame shows where the world is, and files are what their names say."""

import contextlib
import importlib.util
import io
import itertools
import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from metarl.envs.registry import FAMILIES, make_family
from metarl.errors import UsageError
from metarl.experiments import robots
from metarl.experiments.cli import main
from metarl.experiments.evaluation import Protocol, evaluate_run
from metarl.experiments.loading import open_run
from metarl.experiments.scenes import AGENT, DOOR, GOAL, KEY, SCENES, SIDE, WALL, Moment
from metarl.experiments.video import frames, record, write_video

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


def has_gl():
    """Whether robots can be rendered here."""
    try:
        robots._gl_context()
    except UsageError:
        return False
    return True


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
    robots_only = {name for name in FAMILIES if name.startswith("half-cheetah")}
    assert set(FAMILIES) == set(SCENES) | robots_only


# --- recordings --------------------------------------------------------------------------------


def test_a_recording_is_what_the_evaluation_sees(grid):
    recording, _ = record(grid, 4, "held-out", 7)
    curve = evaluate_run(grid, Protocol(tasks=4, seed=7))
    returns = recording.rollout.per_episode(recording.rollout.reward, 4).mean(1)
    assert returns.tolist() == pytest.approx(np.asarray(curve.returns))


def test_frames_cover_every_step_and_every_end_of_an_episode(grid):
    recording, drawn = record(grid, 2, "train", 0)
    pictures = list(frames(recording, drawn, "title"))
    assert len(pictures) == 4 * 15 + 4
    assert {picture.shape for picture in pictures} == {(36 + 68 + SIDE + 92, 2 * (SIDE + 8) + 8, 3)}
    assert len({picture.tobytes() for picture in pictures}) == len(pictures)


def test_a_world_that_is_done_waits_for_the_others(tmp_path):
    run = untrained(tmp_path / "run", "navigation-2d", "--family.episodes", "1")
    recording, drawn = record(run, 2, "held-out", 0)
    recording.rollout.active[5:, 0] = False
    recording.rollout.truncated[4, 0] = True
    pictures = list(frames(recording, drawn, "title"))
    assert len(pictures) == 101
    left = [picture[:, : SIDE + 8] for picture in pictures]
    assert (left[6] == left[5]).all()
    assert (left[100] == left[5]).all()
    assert (left[5] != left[4]).any()


def test_robots_are_rendered_at_their_recorded_state(tmp_path):
    if not has_gl():
        pytest.skip("no OpenGL here that works without a screen")
    run = untrained(tmp_path / "run", "half-cheetah-vel", "--family.episodes", "1")
    recording, drawn = record(run, 2, "held-out", 0)
    assert recording.states.shape == (200, 2, 9)
    heights = recording.rollout.obs[:, :, 0, 0].numpy()
    assert recording.states[:, :, 1] == pytest.approx(heights, abs=1e-6)
    pictures = list(itertools.islice(frames(recording, drawn, "title"), 3))
    assert (pictures[2] != pictures[0]).any()
    assert pictures[0][104 : 104 + SIDE, 8 : 8 + SIDE].std() > 20.0
    assert drawn.caption(0).startswith("task: speed ")


def test_without_opengl_a_sentence_says_what_to_install(monkeypatch):
    def missing(name):
        raise ImportError(f"no {name}")

    monkeypatch.setattr(robots, "import_module", missing)
    with pytest.raises(UsageError, match=r"cannot render without a screen.*libegl1"):
        robots._gl_context()


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


def film(*args):
    """Exit code, standard output and standard error of `metarl video`."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(["video", *map(str, args)])
    return code, out.getvalue(), err.getvalue()


def test_the_command_writes_where_it_says(grid, tmp_path):
    path = tmp_path / "films" / "one.gif"
    code, out, _ = film(grid.folder.path, "--tasks", 1, "--out", path, "--json")
    assert code == 0
    assert path.is_file()
    assert json.loads(out.splitlines()[-1]) == {"out": str(path), "frames": 64, "tasks": 1}


def test_without_ffmpeg_there_is_a_gif_and_a_sentence(grid, monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    code, out, _ = film(grid.folder.path, "--tasks", 1)
    assert code == 0
    assert "metarl[video]" in out
    assert (grid.folder.evaluation / "trials-held-out-seed0.gif").is_file()
    code, _, err = film(grid.folder.path, "--out", "film.mp4")
    assert code == 2
    assert "film.mp4: .mp4 needs imageio-ffmpeg" in err


def test_a_split_that_is_not_there_is_refused(grid):
    code, _, err = film(grid.folder.path, "--split", "out-of-range")
    assert (code, err.count("\n")) == (2, 1)
    assert "no split 'out-of-range'" in err


def test_a_family_without_pictures_says_so(grid, monkeypatch):
    monkeypatch.delitem(SCENES, "gridnavi")
    code, _, err = film(grid.folder.path)
    assert code == 2
    assert "no pictures of gridnavi" in err


def test_ffmpeg_is_what_decides():
    from metarl.experiments.video import can_write_mp4

    assert can_write_mp4() == (importlib.util.find_spec("imageio_ffmpeg") is not None)

"""Pictures of beliefs: what they show is what is believed, and what should be is exact."""

import contextlib
import io
import itertools
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from metarl.distributions import Gaussian
from metarl.envs.gridnavi import CELLS, GOALS
from metarl.envs.registry import make_family
from metarl.experiments import beliefs as module
from metarl.experiments.belief_arms import ArmBeliefs, arm_figure
from metarl.experiments.belief_grids import HEAT, GridBeliefs, grid_frames, heat_map, shown_times
from metarl.experiments.belief_latents import latent_figure, parameters, plane
from metarl.experiments.belief_rewards import RewardBeliefs, reward_figure, spread_out
from metarl.experiments.beliefs import (
    arm_posterior,
    decoded_rewards,
    goal_posterior,
    pay_chances,
    record_beliefs,
    reward_decoder,
    total_variation,
)
from metarl.experiments.cli import main
from metarl.experiments.evaluation import Protocol, evaluate_run
from metarl.experiments.loading import open_run
from metarl.experiments.scenes import AGENT, GOAL, PAPER, SIDE

TINY = "--total-steps 1 --num-worlds 4 --layers 4 --embedding 4 --hidden 6 --latent 3 --epochs 1"
TINY += " --minibatches 1 --vae-updates 1 --vae-batch 2 --decoder-layers 5 --threads 1"


def call(*words):
    """Exit code, standard output and standard error of a command."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(word) for word in words])
    return code, out.getvalue(), err.getvalue()


def untrained(path, family, *options):
    """A run of one iteration with tiny networks."""
    words = ["train", "varibad", family, "--run-dir", path, *TINY.split(), *options]
    code, _, err = call(*words)
    assert code == 0, err
    return open_run(path)


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    """A run on gridnavi."""
    return untrained(tmp_path_factory.mktemp("runs") / "grid", "gridnavi")


@pytest.fixture(scope="module")
def bandit(tmp_path_factory):
    """A run on bandits of more arms than are drawn."""
    words = ("--family.arms", 8, "--family.episodes", 12)
    return untrained(tmp_path_factory.mktemp("runs") / "bandit", "bandit", *words)


@pytest.fixture(scope="module")
def point(tmp_path_factory):
    """A run on a robot whose rewards are regressed."""
    words = ("--beliefs", 5, "--decodes", 5)
    return untrained(tmp_path_factory.mktemp("runs") / "point", "point-dense", *words)


def random_belief(*shape):
    """Beliefs that differ everywhere."""
    return Gaussian(torch.randn(*shape), 0.3 * torch.randn(*shape))


# --- what should be believed -------------------------------------------------------------------


def test_the_goal_is_in_one_of_the_cells_left():
    candidates = torch.tensor([False, True, True, True, True])
    entered = torch.tensor([[0], [2], [2], [4], [3]])
    paid = torch.tensor([[False], [False], [False], [True], [False]])
    third = 1 / 3
    expected = [
        [0, 0.25, 0.25, 0.25, 0.25],
        [0, 0.25, 0.25, 0.25, 0.25],  # no candidate was entered
        [0, third, 0, third, third],
        [0, third, 0, third, third],  # the same cell again
        [0, 0, 0, 0, 1],
        [0, 0, 0, 0, 1],
    ]
    posterior = goal_posterior(entered, paid, candidates)
    torch.testing.assert_close(posterior[:, 0], torch.tensor(expected))


def test_the_posterior_over_goals_is_that_of_bayes_rule():
    """By weighing every goal with the likelihood of what was seen, one step after the other."""
    family = make_family("gridnavi")
    tasks = family.sample_tasks(5, "train", torch.Generator().manual_seed(1))
    entered = torch.randint(0, CELLS, (40, 5))
    paid = entered == tasks.goal
    candidates = torch.zeros(CELLS, dtype=torch.bool)
    candidates[list(GOALS)] = True
    posterior = goal_posterior(entered, paid, candidates)
    for task in range(5):
        chance = [cell in GOALS for cell in range(CELLS)]
        for t in range(41):
            total = sum(chance)
            assert posterior[t, task].tolist() == pytest.approx([c / total for c in chance])
            if t < 40:
                where, won = int(entered[t, task]), bool(paid[t, task])
                chance = [
                    c * ((cell == where) == won or (cell != where and not won))
                    for cell, c in enumerate(chance)
                ]


def test_the_posterior_of_an_arm_is_that_of_the_integral():
    pulled = torch.tensor([[0, 1], [0, 1], [2, 1], [0, 0]])
    paid = torch.tensor([[True, False], [False, False], [True, True], [True, False]])
    posterior = arm_posterior(pulled, paid, 3)
    chances = (np.arange(20_000) + 0.5) / 20_000
    for t, task, arm in itertools.product(range(5), range(2), range(3)):
        weight = np.ones_like(chances)
        for step in range(t):
            if pulled[step, task] == arm:
                weight *= chances if paid[step, task] else 1.0 - chances
        mean = float((weight * chances).sum() / weight.sum())
        assert float(posterior[t, task, arm]) == pytest.approx(mean, abs=1e-6)


def test_total_variation_compares_shares():
    exact = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    chances = torch.tensor([[0.9, 0.9, 0.0], [0.2, 0.3, 0.5], [0.0, 0.0, 0.0]])
    assert total_variation(chances, exact).tolist() == pytest.approx([0.0, 0.8, 0.5])


# --- what is believed --------------------------------------------------------------------------


def test_a_trial_is_what_the_evaluation_sees_with_the_beliefs_of_its_steps(grid):
    trials = record_beliefs(grid, 4, "held-out", 7)
    curve = evaluate_run(grid, Protocol(tasks=4, seed=7))
    returns = trials.rollout.per_episode(trials.rollout.reward, 4).mean(1)
    assert returns.tolist() == pytest.approx(np.asarray(curve.returns))
    flat = trials.rollout.flat()
    network = grid.agent.network
    x = network.inputs(
        flat["final_obs"], flat["action"], flat["reward"], trials.rollout.done[..., 0]
    )
    again = network.vae.belief(network.vae.states(x))
    for mine, theirs in zip(trials.belief.parameters, again.parameters, strict=True):
        torch.testing.assert_close(mine, theirs.detach(), rtol=1e-4, atol=1e-5)
    assert (trials.steps, trials.lengths) == (60, [60] * 4)


def test_chances_are_those_of_every_draw_alone(grid, monkeypatch):
    monkeypatch.setattr(module, "DRAWS", 4)
    heads, belief = reward_decoder(grid), random_belief(3, 2, 3)
    found = pay_chances(heads, belief, torch.Generator().manual_seed(3))
    assert found.shape == (4, 3, 2, CELLS)
    generator = torch.Generator().manual_seed(3)
    for draw in range(4):
        noise = torch.randn(3, 2, 3, generator=generator)
        for t, task in itertools.product(range(3), range(2)):
            z = belief.mean[t, task] + belief.log_std[t, task].exp() * noise[t, task]
            for cell, logit in enumerate(heads.body(z).tolist()):
                chance = 1.0 / (1.0 + math.exp(-logit))
                assert float(found[draw, t, task, cell]) == pytest.approx(chance, abs=1e-5)


def test_rewards_are_decoded_from_every_draw_alone(point, monkeypatch):
    monkeypatch.setattr(module, "DRAWS", 3)
    trials = record_beliefs(point, 2, "held-out", 0)
    trials.there[31:, 1] = False  # as if the second trial had ended after 30 steps
    found = decoded_rewards(trials, [0, 50])
    assert found.shape == (2, 3, 60, 2)
    network, rollout = point.agent.network, trials.rollout
    norm, body = network.actor_critic.obs_norm, network.vae.decoders["reward"].body.body
    noise = torch.randn(3, 2, 2, 3, generator=trials.generator())
    for (c, t), draw, task, step in itertools.product(
        enumerate((0, 50)), range(3), range(2), (0, 17, 59)
    ):
        at = min(t, 30) if task else t
        std = trials.belief.log_std[at, task].exp()
        z = trials.belief.mean[at, task] + std * noise[draw, c, task]
        obs, after = (norm(x[step, task, 0]) for x in (rollout.obs, rollout.final_obs))
        action = network.actor_critic.head.encode(rollout.action[step, task, 0])
        reward = body(torch.cat([z, obs, action, after])).item()
        assert float(found[c, draw, step, task]) == pytest.approx(reward, abs=1e-4)


def test_means_leave_out_what_was_after_the_trial(point):
    trials = record_beliefs(point, 2, "held-out", 0)
    trials.there[31:, 1] = False
    values = torch.arange(61.0).unsqueeze(1).expand(61, 2)
    expected = (sum(range(61)) + sum(range(31))) / (61 + 31)
    assert trials.mean(values) == pytest.approx(expected)
    assert trials.lengths == [60, 30]


def test_figures_of_grids_are_means_of_slow_loops(grid):
    trials = record_beliefs(grid, 3, "held-out", 0)
    beliefs = GridBeliefs.of(trials)
    uniform = [(cell in GOALS) / len(GOALS) for cell in range(CELLS)]
    apart, idle = [], []
    for t, task in itertools.product(range(61), range(3)):
        exact = beliefs.exact[t, task].tolist()
        share = beliefs.shares[t, task].tolist()
        assert sum(share) == pytest.approx(1.0, abs=1e-5)
        apart.append(0.5 * sum(abs(a - b) for a, b in zip(share, exact, strict=True)))
        idle.append(0.5 * sum(abs(a - b) for a, b in zip(uniform, exact, strict=True)))
    assert beliefs.figures["total_variation"] == pytest.approx(np.mean(apart), abs=1e-5)
    assert beliefs.figures["without_learning"] == pytest.approx(np.mean(idle), abs=1e-5)
    chances = pay_chances(reward_decoder(grid), trials.belief, trials.generator())
    assert beliefs.figures["goals_believed"] == pytest.approx(float(chances.sum(-1).mean()), 1e-5)


# --- what is drawn -----------------------------------------------------------------------------


def test_the_plane_shows_the_two_widest_directions():
    """Of beliefs that lie on a plane it shows all, up to turns and mirrors."""
    flat = torch.randn(6, 4, 2) * torch.tensor([5.0, 1.0])
    axes = torch.linalg.qr(torch.randn(5, 2)).Q
    mean = flat @ axes.T + torch.randn(5)
    there = torch.ones(6, 4, dtype=torch.bool)
    points, names = plane(mean, there)
    mine, theirs = (torch.pdist(torch.as_tensor(x).reshape(24, 2).double()) for x in (points, flat))
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    assert points[..., 0].var() > points[..., 1].var()
    shares = [float(name.split("(")[1].split(" %")[0]) for name in names]
    assert sum(shares) == pytest.approx(100.0, abs=0.11)
    assert shares[0] > shares[1]


def test_the_plane_is_chosen_by_what_belongs_to_trials():
    mean = torch.zeros(3, 2, 3)
    mean[:, 0, 1] = torch.tensor([-1.0, 0.0, 1.0])
    mean[2, 1, 2] = 1e3
    there = torch.ones(3, 2, dtype=torch.bool)
    there[2, 1] = False
    points, names = plane(mean, there)
    assert points[:, 0, 0].tolist() == pytest.approx([-1.0, 0.0, 1.0])
    assert "100.0 %" in names[0]


def test_one_or_two_dimensions_are_shown_as_they_are():
    there = torch.ones(4, 2, dtype=torch.bool)
    mean = torch.randn(4, 2, 2)
    assert plane(mean, there)[0] == pytest.approx(mean.numpy())
    points, names = plane(mean[..., :1], there)
    assert points[..., 0] == pytest.approx(np.arange(4.0)[:, None].repeat(2, 1))
    assert points[..., 1] == pytest.approx(mean[..., 0].numpy())
    assert names[0] == "step of the trial"


def batch(name, count):
    """Held-out tasks of a family."""
    return make_family(name).sample_tasks(count, "held-out", torch.Generator().manual_seed(0))


def test_parameters_are_what_the_tasks_differ_in():
    (speed,) = parameters(batch("half-cheetah-vel", 9))
    assert (speed.label, speed.few) == ("target speed, m/s", [])
    assert speed.words(0.5) == "target speed 0.5 m/s"
    (direction,) = parameters(batch("half-cheetah-dir", 9))
    assert direction.few == [-1.0, 1.0]
    assert len(set(direction.colours())) == 2
    goals = batch("point-dense", 9)
    for axis, parameter in enumerate(parameters(goals)):
        assert parameter.values == pytest.approx(goals.goal[:, axis].numpy())
    assert parameters(batch("gridnavi", 9)) == []


def test_tasks_are_spread_over_their_parameter():
    tasks = batch("half-cheetah-vel", 9)
    order = tasks.speed.argsort().tolist()
    assert spread_out(tasks, 3) == [order[0], order[4], order[8]]
    directions = batch("half-cheetah-dir", 9)
    assert directions.direction[spread_out(directions, 3)].tolist() == [-1.0, 1.0]
    assert spread_out(batch("gridnavi", 2), 3) == [0, 1]


def has_colour(picture, x, y, colour):
    """Whether that is the colour at a place of the grid, in cells, but for smoothing."""
    at = (x + 0.55) / 5.1, 1.0 - (y + 0.55) / 5.1
    pixel = picture.getpixel(tuple(round(share * (SIDE - 1)) for share in at))
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return max(abs(a - b) for a, b in zip(pixel, wanted, strict=True)) <= 12


def test_a_heat_map_shows_shares_goal_and_agent():
    shares = np.zeros(CELLS)
    shares[5 * 3 + 4] = 1.0
    picture = heat_map(shares, 5 * 2 + 3, [(0.0, 0.0), (1.0, 0.0), (1.0, 2.0)])
    assert has_colour(picture, 3.3, 3.8, HEAT)
    assert has_colour(picture, 4, 1, PAPER)
    assert has_colour(picture, 2, 2.57, GOAL)
    assert has_colour(picture, 1, 1.84, AGENT)
    assert has_colour(picture, 0.5, -0.16, AGENT)  # on its way
    half = heat_map(shares / 2, 0, [(0.0, 0.0)])
    assert not any(has_colour(half, 3.3, 3.8, colour) for colour in (HEAT, PAPER))


def test_the_picture_shows_the_first_episode_and_the_end_of_each():
    times = [time for time, _ in shown_times(4, 15)]
    assert times == [0, 3, 6, 9, 12, 15, 30, 45, 60]
    assert shown_times(4, 15)[1::4] == [(3, "after 3 steps"), (15, "after episode 1")]
    for episodes, horizon in itertools.product((1, 2, 40), (1, 2, 7, 100)):
        times = [time for time, _ in shown_times(episodes, horizon)]
        assert times == sorted(set(times))
        assert times[0] == 0 and times[-1] <= episodes * horizon and len(times) <= 10


def test_the_video_shows_every_moment_of_one_trial_after_the_other(grid):
    beliefs = GridBeliefs.of(record_beliefs(grid, 2, "held-out", 0))
    pictures = list(grid_frames(beliefs, 2))
    assert len(pictures) == 2 * (60 + 4)
    assert len({picture.tobytes() for picture in pictures}) == len(pictures)
    (height, width, _) = pictures[0].shape
    assert height % 2 == width % 2 == 0


def test_the_arms_drawn_are_those_pulled_most(bandit):
    trials = record_beliefs(bandit, 3, "held-out", 0)
    pulls = torch.tensor([6, 6, 6, 7, 7, 7, 0, 1, 2, 3, 4, 4])
    trials.rollout.action[:, 0, 0] = pulls
    beliefs = ArmBeliefs.of(trials)
    figure = arm_figure(beliefs, 2)
    titles = [ax.get_title(loc="left") for ax in figure.axes[:6]]
    assert titles[-2:] == ["arm 7: pulled 3x", "arm 8: pulled 3x"]
    assert "arm 5: pulled 2x" in titles
    believed, exact = (figure.axes[5].lines[i].get_ydata() for i in (1, 2))
    assert believed == pytest.approx(beliefs.draws[..., 0, 7].mean(0).numpy())
    assert exact == pytest.approx(beliefs.exact[:, 0, 7].numpy())
    truth = figure.axes[5].lines[0].get_ydata()
    assert list(truth) == [float(trials.tasks.probability[0, 7])] * 2


def test_latents_and_rewards_are_drawn_as_they_are(point):
    trials = record_beliefs(point, 5, "held-out", 0)
    trials.there[31:, 1] = False
    figure = latent_figure(trials)
    first, second, spread = figure.axes[:3]
    for ax in (first, second):
        assert [len(line.get_xdata()) for line in ax.lines[:5]] == [61, 31, 61, 61, 61]
    std = trials.belief.log_std.exp()[:31, :, 0].quantile(0.5, dim=1)
    assert spread.lines[0].get_ydata()[:31] == pytest.approx(std.numpy())
    beliefs = RewardBeliefs.of(trials)
    assert beliefs.figures["decoded_after"] == [0, 10, 60]
    (task,) = spread_out(trials.tasks, 1)
    axes = reward_figure(beliefs, 1).axes
    true, decoded = (axes[2].lines[i].get_ydata() for i in (0, 1))
    length = trials.lengths[task]
    assert true == pytest.approx(trials.reward[:length, task].numpy())
    assert decoded == pytest.approx(beliefs.decoded[2].mean(0)[:length, task].numpy())
    there = trials.there[1:]
    error = (beliefs.decoded[1].mean(0) - trials.reward)[there].square().mean().sqrt()
    assert beliefs.figures["reward_error"][1] == pytest.approx(float(error))


# --- the command -------------------------------------------------------------------------------


def draw(run, *words):
    """The JSON object of `metarl beliefs`."""
    code, out, err = call("beliefs", run.folder.path, *words, "--json")
    assert code == 0, err
    return json.loads(out.splitlines()[-1])


def check_pictures(paths):
    """Files that are there and show something."""
    for path in paths:
        if path.endswith(".png"):
            with Image.open(path) as picture:
                assert picture.size > (600, 300)
                assert np.asarray(picture.convert("L")).std() > 15.0


def test_the_command_draws_grids(grid, tmp_path):
    found = draw(grid, "--tasks", 1, "--out", tmp_path / "new", "--seed", 3)
    picture, film = found["out"]
    assert picture == str(tmp_path / "new" / "beliefs-held-out-seed3.png")
    assert film.startswith(str(tmp_path / "new" / "beliefs-held-out-seed3."))
    assert (tmp_path / "new" / film).stat().st_size > 10_000
    check_pictures(found["out"])
    assert (found["tasks"], found["measured_tasks"]) == (1, 21)
    assert 0.0 < found["total_variation"] < 1.0


def test_the_command_draws_bandits(bandit):
    found = draw(bandit)
    assert found["out"] == [str(bandit.folder.evaluation / "beliefs-held-out-seed0.png")]
    check_pictures(found["out"])
    assert 0.0 < found["from_exact"] < 0.5


def test_the_command_draws_latents_and_rewards(point, tmp_path):
    found = draw(point, "--tasks", 3, "--split", "out-of-range", "--out", tmp_path)
    names = [f"beliefs-out-of-range-seed0-{what}.png" for what in ("latent", "reward")]
    assert found["out"] == [str(tmp_path / name) for name in names]
    check_pictures(found["out"])
    assert len(found["reward_error"]) == len(found["decoded_after"]) == 3


def test_without_a_decoder_of_rewards_there_is_the_latent(tmp_path):
    words = "--reward-decoder none --task-weight 1 --latent 1 --beliefs 5 --decodes 5".split()
    run = untrained(tmp_path / "run", "point-sparse", *words)
    found = draw(run, "--tasks", 2)
    assert [path.rpartition("-")[2] for path in found["out"]] == ["latent.png"]
    assert "reward_error" not in found


def refused(*words):
    """The sentence of a command that must refuse."""
    code, _, err = call("beliefs", *words)
    assert (code, err.count("\n")) == (2, 1)
    return err


def test_bad_input_gets_one_sentence(grid, point, tmp_path):
    path = grid.folder.path
    assert "--tasks must be 0 to 6 for this run, got 7" in refused(path, "--tasks", 7)
    assert "--tasks must be 0 to 100" in refused(point.folder.path, "--tasks", 101)
    assert "no split 'out-of-range'" in refused(path, "--split", "out-of-range")
    (tmp_path / "file").write_text("")
    assert "cannot write" in refused(path, "--tasks", 1, "--out", tmp_path / "file")
    assert "is not a run folder" in refused(tmp_path)

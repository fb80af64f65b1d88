"""Sim-to-real studies: the surrogate, sweeps, the search for failures, the page, bad input."""

import dataclasses
import json
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import mujoco
import numpy as np
import pytest
import torch
import yaml

from metarl.adaptation import AdaptationCurve
from metarl.checkpoint import save_checkpoint
from metarl.configs import from_plain, to_plain
from metarl.envs.half_cheetah import HalfCheetahRandParams, HalfCheetahVel
from metarl.envs.planar import HopperRandParams
from metarl.envs.randomization import Randomization, Vary, load_randomization
from metarl.envs.robot import Robot
from metarl.envs.surrogate import Surrogate
from metarl.errors import UsageError
from metarl.experiments import sim2real
from metarl.experiments.cli import main
from metarl.experiments.commands.train import parse_pair, run_config
from metarl.experiments.loading import as_seen_by, build_agent, open_run
from metarl.experiments.sim2real_agents import Plan, choose_pair, open_contenders
from metarl.experiments.sim2real_findings import Difference, headline, verdicts
from metarl.experiments.sim2real_measure import (
    BelievedNominal,
    axes_of,
    axis_of,
    latency_of,
    returns_at,
    robots_across,
    robots_along,
    split_curve,
    worlds_of,
)
from metarl.experiments.sim2real_search import (
    Space,
    apart,
    inside_training_range,
    search,
    worst_apart,
)
from metarl.runs import RunFolder

CHEETAH = HalfCheetahRandParams()
SAME = Surrogate(
    contact_time=1.0,
    contact_width=1.0,
    elliptic=False,
    impratio=1.0,
    friction_loss=0.0,
    density=1.0,
    action_delay=0,
    sensor_noise=0.0,
    sensor_bias=0.0,
)
"""Differs in numerics alone."""
TINY = ("--hidden", "4", "--layers", "4", "--embedding", "4")
SMALL = ("--tasks", "4", "--worlds", "2", "--grid", "3", "--budget", "8", "--threads", "1")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def run_folder(path, agent="rl2", family="hopper-rand-params", options=()):
    """A run folder with an untrained agent on short episodes."""
    sizes = {"rl2": TINY, "sb3-sac": ()}.get(agent, TINY[:2])
    horizon = ("--family.horizon", "8") if family.startswith("hopper") else ()
    parsed = parse_pair(agent, family, [*sizes, *horizon, *options])
    folder = RunFolder.create(path, run_config(agent, family, parsed))
    seen = as_seen_by(agent, parsed.family, parsed.agent)
    built = build_agent(agent, parsed.agent, seen, seed=1, device="cpu")
    save_checkpoint(folder.checkpoints, 0, {"agent": built.state_dict()}, labels=folder.labels)
    return path


# --- the surrogate -----------------------------------------------------------------------------


def rolled(worlds, actions, tasks):
    """Positions and velocities `[T, W, nq + nv]` under actions `[T, U]`."""
    worlds.set_tasks(tasks)
    worlds.reset(seed=3)
    states = []
    for action in actions:
        worlds.step(action.expand(worlds.num_envs, -1))
        fields = [worlds.physics.field(name) for name in ("qpos", "qvel")]
        states.append(torch.cat([x.clone() for x in fields], -1))
    return torch.stack(states)


@pytest.mark.parametrize("family", [CHEETAH, HopperRandParams()])
def test_the_surrogate_keeps_the_control_period_and_halves_the_time_step(family):
    worlds = Surrogate().worlds(family, 2)
    worlds.set_tasks(family.sample_tasks(2, "nominal", seeded()))
    worlds.reset()
    nominal = family.model().compiled.opt.timestep
    assert worlds.physics.timestep == pytest.approx(nominal / 2)
    for _ in range(3):
        worlds.step(torch.zeros(2, *family.action_space.shape))
    assert worlds.physics.field("time").flatten().tolist() == pytest.approx([3 * family.dt] * 2)


@pytest.mark.parametrize("family", [CHEETAH, HopperRandParams()])
def test_the_integrator_of_the_surrogate_is_another_one_and_tells(family):
    own = family.model().compiled.opt
    surrogate = dataclasses.replace(SAME, time_step=1.0)
    model = surrogate.model(family).compiled
    assert model.opt.integrator != own.integrator
    assert model.opt.timestep == own.timestep
    actions = 0.3 * torch.rand(6, *family.action_space.shape, generator=seeded())
    tasks = family.sample_tasks(1, "nominal", seeded())
    plain = rolled(family.make_worlds(1), actions, tasks)
    other = rolled(surrogate.worlds(family, 1), actions, tasks)
    difference = (plain - other).abs().amax((1, 2))
    assert 1e-6 < difference[0] < 0.1


def test_a_model_that_has_the_integrator_already_gets_another():
    hopper = HopperRandParams()
    assert hopper.model().compiled.opt.integrator == mujoco.mjtIntegrator.mjINT_RK4
    taken = Surrogate(integrator="rk4").model(hopper).compiled.opt.integrator
    assert taken == mujoco.mjtIntegrator.mjINT_IMPLICIT


def test_the_surrogate_leaves_the_model_of_the_family_alone():
    before = CHEETAH.model().compiled.geom_solimp.copy()
    model = Surrogate().model(CHEETAH).compiled
    np.testing.assert_array_equal(CHEETAH.model().compiled.geom_solimp, before)
    assert not np.array_equal(model.geom_solimp, before)
    np.testing.assert_allclose(
        model.geom_solref[:, 0], 1.5 * CHEETAH.model().compiled.geom_solref[:, 0]
    )
    assert (model.opt.cone, model.opt.impratio) == (mujoco.mjtCone.mjCONE_ELLIPTIC, 3.0)


def test_dry_friction_is_a_share_of_each_motors_largest_torque():
    loss = Surrogate(friction_loss=0.1).model(CHEETAH).compiled.dof_frictionloss
    assert loss.tolist() == pytest.approx([0, 0, 0, 12, 9, 6, 12, 6, 3])


def test_actions_of_the_surrogate_come_a_step_late():
    actions = torch.rand(5, 6, generator=seeded()) - 0.5
    shifted = torch.cat([torch.zeros(1, 6), actions[:-1]])
    tasks = CHEETAH.sample_tasks(1, "nominal", seeded())
    late = rolled(dataclasses.replace(SAME, action_delay=1).worlds(CHEETAH, 1), actions, tasks)
    assert torch.equal(late, rolled(SAME.worlds(CHEETAH, 1), shifted, tasks))
    assert not torch.equal(late, rolled(SAME.worlds(CHEETAH, 1), actions, tasks))


def test_the_hidden_delay_and_mass_come_on_top_of_the_task():
    tasks = CHEETAH.sample_tasks(1, "nominal", seeded())
    delayed = tasks.dynamics.clone()
    delayed[:, -1] = 1.0
    tasks = dataclasses.replace(tasks, dynamics=delayed)
    worlds = Surrogate().worlds(CHEETAH, 1)
    worlds.set_tasks(tasks)
    assert worlds._disturbances.settings.action_delay.tolist() == [2]
    mass = worlds.physics.state_dict()["model.body_mass"]
    np.testing.assert_allclose(mass[0], 1.05 * CHEETAH.model().compiled.body_mass)


def test_sensors_of_the_surrogate_have_noise_and_a_bias():
    tasks = CHEETAH.sample_tasks(1, "nominal", seeded())
    surrogate = dataclasses.replace(SAME, sensor_noise=0.1, sensor_bias=0.5)
    errors = []
    worlds, plain = (s.worlds(CHEETAH, 200) for s in (surrogate, SAME))
    seen = []
    for env in (worlds, plain):
        env.set_tasks(tasks)
        env.reset(seed=1)
        env.step(torch.zeros(200, 6))
        truth = CHEETAH.observe({n: env.physics.field(n) for n in ("qpos", "qvel")}).float()
        seen.append(env._observe() - truth)
    assert seen[1].abs().max() == 0
    errors = seen[0]
    drawn = 0.5 * torch.randn(17, dtype=torch.float64, generator=seeded())
    torch.testing.assert_close(errors.mean(0), drawn.float(), rtol=0, atol=0.04)
    torch.testing.assert_close(errors.std(0), torch.full((17,), 0.1), rtol=0, atol=0.03)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"integrator": "leapfrog"}, "one of euler, rk4, implicit, implicitfast, got 'leapfrog'"),
        ({"time_step": 0.0}, "time_step must be above 0"),
        ({"sensor_noise": -1.0}, "sensor_noise must be at least 0"),
    ],
)
def test_a_surrogate_that_cannot_be_is_refused(options, words):
    with pytest.raises(UsageError, match=re.escape(words)):
        Surrogate(**options)


# --- measuring ---------------------------------------------------------------------------------


def test_an_oracle_takes_the_surrogate_for_nominal(tmp_path):
    run = open_run(run_folder(tmp_path / "oracle", "oracle"))
    robot = run.family.family
    tasks = robot.sample_tasks(3, "held-out", seeded())
    told = worlds_of(run, 3, Surrogate(), seed=0, threads=1)
    assert isinstance(told, BelievedNominal)
    told.set_tasks(tasks)
    obs, _ = told.reset()
    nominal = robot.parameters.nominal(3).float()
    assert torch.equal(obs[:, robot.observations :], nominal)
    assert torch.equal(told.inner.tasks.dynamics, tasks.dynamics)
    plain = worlds_of(run, 3, None, seed=0, threads=1)
    plain.set_tasks(tasks)
    obs, _ = plain.reset()
    assert torch.equal(obs[:, robot.observations :], tasks.features())


def test_axes_lead_from_below_the_training_range_to_beyond_it():
    parameters = CHEETAH.parameters
    axes = axes_of(parameters, 5)
    assert [a.label for a in axes] == [
        "density",
        "friction",
        "damping",
        "actuator strength",
        "action delay",
    ]
    density, friction, _, strength, delay = axes
    assert density.values == pytest.approx((0.25, 0.5, 1, 2, 4))
    assert (density.low, density.high, density.nominal, density.log) == (0.5, 2.0, 1.0, True)
    assert friction.values == pytest.approx(np.linspace(0.0, 2.1, 5))
    assert strength.values == pytest.approx(np.linspace(0.0, 1.7, 5))
    assert delay.values == (0, 1, 2)


def test_ranges_of_one_value_have_no_axis():
    randomize = Randomization((Vary("density", 2.0, 2.0), Vary("damping", 0.5, 2.0)))
    parameters = randomize.bind(CHEETAH.model(), 17)
    assert [axis.label for axis in axes_of(parameters, 5)] == ["damping"]


def test_elements_of_a_quantity_move_together_and_all_else_stays_nominal():
    parameters = CHEETAH.parameters
    axes = axes_of(parameters, 3)
    robots = robots_along(parameters, axes[3])
    nominal = parameters.nominal(3)
    values = torch.tensor(axes[3].values).double()
    assert torch.equal(robots[:, 3:9], values.unsqueeze(-1).expand(3, 6))
    assert torch.equal(robots[:, :3], nominal[:, :3])
    assert torch.equal(robots[:, 9:], nominal[:, 9:])
    both = robots_across(parameters, axes[3], axes[0])
    pairs = [(s, d) for s in axes[3].values for d in axes[0].values]
    assert both[:, [3, 0]].tolist() == [list(pair) for pair in pairs]


def test_points_of_a_sweep_return_what_each_returns_alone(tmp_path, monkeypatch):
    # Without noise on initial states nothing depends on which world a robot is in.
    monkeypatch.setattr(HopperRandParams, "reset_noise", 0.0)
    run = open_run(run_folder(tmp_path / "run"))
    robots = robots_along(run.family.parameters, axis_of(run.family.parameters, 0, 4))
    same = {"episodes": 2, "seed": 0, "threads": 1}
    together = returns_at(run, run.family, robots, 3, **same)
    assert together.shape == (4, 3, 2)
    for i, robot in enumerate(robots):
        alone = returns_at(run, run.family, robot[None], 2, **same)
        np.testing.assert_allclose(together[i, :2], alone[0], rtol=1e-4)
    assert np.ptp(together[:, 0, 0]) > 1e-3


def test_batches_do_not_change_which_task_a_return_belongs_to(tmp_path, monkeypatch):
    monkeypatch.setattr(HopperRandParams, "reset_noise", 0.0)
    run = open_run(run_folder(tmp_path / "run"))
    robots = robots_along(run.family.parameters, axis_of(run.family.parameters, 0, 5))
    same = {"episodes": 1, "seed": 0, "threads": 1}
    whole = returns_at(run, run.family, robots, 2, **same)
    monkeypatch.setattr("metarl.experiments.sim2real_measure.MOST_WORLDS", 4)
    np.testing.assert_allclose(returns_at(run, run.family, robots, 2, **same), whole, rtol=1e-4)


def test_curves_measured_together_come_apart_by_task():
    rows = np.arange(12.0).reshape(6, 2).tolist()
    curve = AdaptationCurve(rows, rows, None, rows, [], [], [])
    parts = split_curve(curve, 3)
    assert [part.returns for part in parts] == [rows[:2], rows[2:4], rows[4:]]
    assert [part.tasks for part in parts] == [part.returns for part in parts]


def test_latency_is_of_act_and_observe_alone(tmp_path, monkeypatch):
    run = open_run(run_folder(tmp_path / "run"))
    clock = SimpleNamespace(now=0.0)
    policy = run.agent.policy()

    class Slow:
        begin = policy.begin

        def act(self, obs):
            clock.now += 0.25
            return policy.act(obs)

        def observe(self, step):
            clock.now += 0.5
            policy.observe(step)

    monkeypatch.setattr(run.agent, "policy", Slow)
    monkeypatch.setattr("time.perf_counter", lambda: clock.now)
    monkeypatch.setattr("time.thread_time", lambda: clock.now / 2)
    step = HopperRandParams.make_worlds

    def slow_worlds(*args, **kwargs):
        env = step(*args, **kwargs)
        inner = env.step
        env.step = lambda actions: (setattr(clock, "now", clock.now + 9.0), inner(actions))[1]
        return env

    monkeypatch.setattr(HopperRandParams, "make_worlds", slow_worlds)
    found = latency_of(run, 2, steps=30, seed=0)
    assert dataclasses.astuple(found) == (0.75, 0.75, 0.375, 30)


# --- the search --------------------------------------------------------------------------------

PARTS = [slice(i, i + 1) for i in range(5)]


@pytest.mark.parametrize("seed", range(4))
def test_the_search_finds_a_planted_failure(seed):
    trap = torch.tensor([0.8, 0.2, 0.6, 0.3, 0.7], dtype=torch.float64)
    judged = []

    def judge(points):
        judged.append(len(points))
        # A wide slope towards a side that is bad, and a narrow hole that is worse.
        hole = 10.0 * torch.exp(-(points - trap).square().sum(-1) / (2 * 0.2**2))
        return 5.0 * points[:, 0] - hole

    points, returns = search(judge, PARTS, budget=600, count=5, generator=seeded(seed))
    assert sum(judged) == len(points) == len(returns) == 600
    assert bool(((points >= 0) & (points <= 1)).all())
    best = worst_apart(points, returns, 5, PARTS)
    assert (points[best[0]] - trap).abs().max() < 0.2
    assert returns[best[0]] < -4.5
    # Without the steps of refinement as many points come less near.
    cover = torch.quasirandom.SobolEngine(5, scramble=True, seed=seed).draw(600).double()
    assert returns[best[0]] < judge(cover).min() - 1.0


def test_the_worst_tasks_are_chosen_in_order_and_lie_apart():
    generator = seeded(1)
    points = torch.rand(200, 5, dtype=torch.float64, generator=generator)
    returns = torch.rand(200, generator=generator)
    parts = [slice(0, 1), slice(1, 5)]
    chosen, wanted = worst_apart(points, returns, 6, parts, 0.3).tolist(), []
    for i in returns.argsort().tolist():
        near = [
            ((points[i, 0] - points[j, 0]) ** 2 + ((points[i, 1:] - points[j, 1:]) ** 2).mean()) / 2
            < 0.3**2
            for j in wanted
        ]
        if not any(near) and len(wanted) < 6:
            wanted.append(i)
    assert chosen == wanted
    assert chosen[0] == int(returns.argmin())
    assert float(apart(points[:1], points[1], parts)) > 0


@pytest.mark.parametrize("beyond", [False, True])
def test_the_space_of_the_search_is_the_training_range_or_all_within_the_limits(beyond):
    parameters = CHEETAH.parameters
    space = Space(parameters, beyond)
    corners = torch.tensor([[0.0] * 10, [1.0] * 10, [0.5] * 10], dtype=torch.float64)
    low, high, middle = space.values(corners)
    for vary, part in zip(parameters.vary, parameters.slices, strict=True):
        ends = vary.limits() if beyond else (vary.low, vary.high)
        assert low[part].tolist() == pytest.approx([ends[0]] * len(low[part]))
        assert high[part].tolist() == pytest.approx([ends[1]] * len(low[part]))
    assert float(middle[0]) == pytest.approx(1.0)  # the middle of a log-uniform range
    delays = space.values(torch.rand(60, 10, generator=seeded()))[:, 9].unique().tolist()
    assert delays == ([0, 1, 2] if beyond else [0, 1])
    inside = inside_training_range(parameters, torch.stack([low, high, middle]))
    assert inside.tolist() == [not beyond, not beyond, True]


# --- feeding failures back ---------------------------------------------------------------------


EXTRA = Randomization((Vary("density", 0.5, 2.0), Vary("damping", 0.5, 2.0)), ((9.0, 0.1),), 0.25)


def test_extra_tasks_are_drawn_in_training_alone_and_with_their_share():
    parameters = EXTRA.bind(CHEETAH.model(), 17)
    drawn = parameters.sample(2000, "train", seeded())
    extra = (drawn == torch.tensor([9.0, 0.1], dtype=torch.float64)).all(-1)
    assert 0.2 < float(extra.double().mean()) < 0.3
    assert bool(inside_training_range(parameters, drawn[~extra]).all())
    plain = dataclasses.replace(EXTRA, extra=(), extra_share=0.0).bind(CHEETAH.model(), 17)
    assert torch.equal(drawn[~extra], plain.sample(2000, "train", seeded())[~extra])
    for split in ("held-out", "out-of-range", "nominal"):
        assert torch.equal(
            parameters.sample(50, split, seeded()), plain.sample(50, split, seeded())
        )


def test_configs_without_extra_tasks_are_as_they_were():
    plain = dataclasses.replace(EXTRA, extra=(), extra_share=0.0)
    assert set(to_plain(plain)) == {"vary"}
    assert from_plain(Randomization, to_plain(plain), "x") == plain
    assert from_plain(Randomization, to_plain(EXTRA), "x") == EXTRA


@pytest.mark.parametrize(
    ("extra", "share", "words"),
    [
        (((1.0,),), 0.5, "an extra task must have 2 numbers, got 1"),
        (((-1.0, 1.0),), 0.5, "the density of an extra task must be at least 0.001, got -1"),
        (((1.0, float("inf")),), 0.5, "the damping of an extra task must be at least 0"),
        (((1.0, 1.0),), 1.5, "extra_share must lie between 0 and 1 with 1 extra tasks, got 1.5"),
        ((), 0.1, "extra_share must lie between 0 and 0 with 0 extra tasks, got 0.1"),
    ],
)
def test_extra_tasks_that_cannot_be_are_refused(extra, share, words):
    with pytest.raises(UsageError, match=re.escape(words)):
        Randomization(EXTRA.vary, extra, share).bind(CHEETAH.model(), 17)


def test_training_draws_the_failures_of_a_study(tmp_path, monkeypatch):
    file = tmp_path / "failures.json"
    vary = to_plain(HopperRandParams().randomize)["vary"]
    extra = HopperRandParams().parameters.nominal(2)[:, :].tolist()
    extra[1][0] = 7.0
    file.write_text(json.dumps({"vary": vary, "extra": extra, "extra_share": 0.5, "notes": 1}))
    tasks, draw = [], Robot.sample_tasks

    def noted(self, n, split, generator):
        drawn = draw(self, n, split, generator)
        tasks.extend(drawn.dynamics.tolist() if split == "train" else [])
        return drawn

    monkeypatch.setattr(Robot, "sample_tasks", noted)
    options = ("--num-worlds", "8", "--total-steps", "100", "--evaluate-every", "0")
    where = ("--family.randomize", str(file), "--family.horizon", "5", "--run-dir")
    args = ["train", "rl2", "hopper-rand-params", *TINY, *options, *where, str(tmp_path / "run")]
    assert main(args) == 0
    found = sum(task in extra for task in tasks)
    assert 0 < found < len(tasks)
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["family_options"]["randomize"]["extra"] == extra
    assert config["family_options"]["randomize"]["extra_share"] == 0.5


# --- the page ----------------------------------------------------------------------------------


class Page(HTMLParser):
    """What a browser would find."""

    def __init__(self, source):
        super().__init__()
        self.tags, self.words = [], []
        self.feed(source)

    def handle_starttag(self, name, attributes):
        self.tags.append((name, dict(attributes)))

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    agents = ("rl2", "non-adaptive", "oracle")
    return [run_folder(folder / agent, agent) for agent in agents]


def test_one_command_leaves_a_page_its_figures_and_failures(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sim2real, "LATENCY_STEPS", 20)
    out = tmp_path / "study.html"
    words = [str(run) for run in runs]
    args = ["study", "sim2real", *words, *SMALL, "--episodes", "3", "--out", str(out), "--json"]
    assert main([*args, "--pair", "damping", "body_mass"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    page = Page(out.read_text())
    text = " ".join(page.words)
    for agent in ("rl2", "non-adaptive", "oracle"):
        assert agent in text
        assert len(found["settings"]["surrogate, drawn"][agent]["mean"]) == 3
    assert found["headline"] in text
    assert sum(name == "img" for name, _ in page.tags) == 4
    sources = [a["src"] for name, a in page.tags if name == "img"]
    assert all(source.startswith("data:image/svg+xml;base64,") for source in sources)
    assert json.loads((tmp_path / "study" / "figures.json").read_text())["plan"]["grid"] == 3
    assert (found["heat_map"]["a"]["label"], found["heat_map"]["b"]["label"]) == (
        "damping",
        "body mass",
    )
    assert np.shape(found["heat_map"]["returns"]["oracle"]) == (3, 3, 3)
    assert [np.shape(s["returns"]["rl2"]["low"]) for s in found["sweeps"]] == [(3, 3)] * 4
    places = [failure["inside_training_range"] for failure in found["failures"]]
    assert True in places
    again = load_randomization(tmp_path / "study" / "failures.json")
    assert again.vary == HopperRandParams().randomize.vary
    assert len(again.extra) == len(found["failures"])
    assert len(again.bind(HopperRandParams().model(), 11)) == 34


def test_equal_studies_find_the_same(runs, monkeypatch):
    monkeypatch.setattr(sim2real, "LATENCY_STEPS", 20)
    plan = Plan(tasks=2, worlds=2, grid=3, budget=8, failures=1)
    contenders, robot = open_contenders(runs[:1])
    one, two = (sim2real.find_failures(contenders, robot, plan) for _ in range(2))
    assert one[0][0].dynamics == two[0][0].dynamics
    np.testing.assert_array_equal(one[0][0].returns[0], two[0][0].returns[0])


def fake_study(levels, gains):
    """A study whose agents return `levels` in their first episode and `gains` more in the last."""
    noise = np.linspace(-1.0, 1.0, 20)
    curves = []
    for level, more in zip(levels, gains, strict=True):
        rows = np.stack([level + noise, level + more + noise[::-1]], -1).tolist()
        curves.append([AdaptationCurve(rows, rows, None, rows, [], [], [])])
    names = [SimpleNamespace(label=f"agent{i}") for i in range(len(levels))]
    return SimpleNamespace(
        contenders=names,
        robot=SimpleNamespace(episodes=2),
        settings={"surrogate, nominal": curves, "surrogate, drawn": curves},
    )


@pytest.mark.parametrize(
    ("levels", "gains", "words"),
    [
        (
            (10, 0, 30),
            (5, 0, 0),
            "agent0 is better than agent1, is worse than agent2, and improves from its first to",
        ),
        ((0, 10), (-5, 0), "agent0 is worse than agent1, and gets worse from its first"),
        ((0, 0), (0, 0), "agent0 cannot be told from agent1, and does not measurably change"),
    ],
)
def test_the_verdict_follows_the_numbers(levels, gains, words):
    study = fake_study(levels, gains)
    assert words in headline(study)
    line = verdicts(study)[0]
    best = f"{levels[0] + gains[0]:.2f}".replace("-", "\N{MINUS SIGN}")
    assert f"agent0 returns {best}" in line


def test_differences_are_said_with_side_and_interval():
    rising = Difference(2.0, 1.0, 3.0)
    assert rising.certain and rising.words("x") == "2.00 more than x (1.00 to 3.00)"
    falling = Difference(-2.0, -3.0, -1.0)
    assert falling.words("x") == "2.00 less than x (1.00 to 3.00)"
    unsure = Difference(0.5, -1.0, 2.0)
    assert not unsure.certain
    assert unsure.words("x").startswith("the same as x as far as these tasks can tell")


# --- bad input ---------------------------------------------------------------------------------


def refused(capsys, *args):
    assert main(["study", *map(str, args)]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and message.startswith("metarl: study")
    return message


def test_what_cannot_be_studied_is_refused_in_one_sentence(runs, tmp_path, capsys):
    assert "one of sim2real" in refused(capsys)
    assert "unknown study 'sim2reel'" in str(_usage(["study", "sim2reel"], capsys))
    rl2 = runs[0]
    assert "choose two of body mass" in refused(
        capsys, "sim2real", rl2, "--pair", "weight", "damping"
    ).replace("'", "")
    assert "two different" in refused(capsys, "sim2real", rl2, "--pair", "damping", "damping")
    assert "takes two parameters, got 1" in refused(capsys, "sim2real", rl2, "--pair", "damping")
    assert "grid must be" in refused(capsys, "sim2real", rl2, "--grid", "2")
    assert "ends with .html" in refused(capsys, "sim2real", rl2, "--out", tmp_path / "x.json")
    assert "no config.yaml" in str(_usage(["study", "sim2real", str(tmp_path)], capsys))


def _usage(args, capsys):
    assert main(args) == 2
    return capsys.readouterr().err


def test_runs_that_cannot_be_compared_are_refused(runs, tmp_path, capsys):
    other = run_folder(tmp_path / "walker", family="walker2d-rand-params")
    assert "all runs must be of one family" in refused(capsys, "sim2real", runs[0], other)
    file = tmp_path / "density.yaml"
    file.write_text("- {quantity: density, low: 0.5, high: 2}\n")
    density = run_folder(tmp_path / "density", options=("--family.randomize", str(file)))
    message = refused(capsys, "sim2real", runs[0], density)
    assert "different randomisations" in message and "density 0.5 to 2" in message
    plain = run_folder(tmp_path / "plain", family=HalfCheetahVel.name)
    assert "--family.randomize FILE" in refused(capsys, "sim2real", plain)
    bandit = run_folder(tmp_path / "bandit", family="bandit")
    assert "bandit is no simulated robot" in refused(capsys, "sim2real", bandit)
    scratch = run_folder(tmp_path / "scratch", "sb3-sac", options=("--from-scratch",))
    assert "learns each task from scratch" in refused(capsys, "sim2real", scratch)


def test_pairs_are_named_with_spaces_or_underscores():
    parameters = CHEETAH.parameters
    assert choose_pair(parameters, ["actuator_strength", "action delay"]) == [3, 4]

"""Stable-Baselines3's algorithms as agents: they learn, go on exactly, and know their limits."""

import contextlib
import io
import json
import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from metarl.adaptation import evaluate
from metarl.adapters import FamilyVecEnv
from metarl.agents.baselines import PPOConfig, ReplayStream, SACConfig, SB3Agent, TD3Config
from metarl.agents.sb3_models import build_model
from metarl.agents.scratch import ScratchPolicy
from metarl.envs.registry import make_family
from metarl.errors import TrainingError, UsageError
from metarl.experiments.agents import AGENTS
from metarl.experiments.cli import main
from metarl.experiments.loading import as_seen_by, open_run
from metarl.generators import PrivateGenerators, global_generators
from metarl.oracle import TaskInObservation
from metarl.rollout import run_trials
from metarl.states import DamagedError, require_plain

NETWORK = {"layers": (8,)}
OFF_POLICY = {**NETWORK, "learning_starts": 16, "iteration_steps": 30, "batch_size": 8}
SMALL = {
    "sb3-ppo": PPOConfig(**NETWORK, n_steps=30, minibatches=4, epochs=2),
    # The replay is smaller than what comes in: its ring is full and has turned.
    "sb3-sac": SACConfig(**OFF_POLICY, buffer_size=260),
    "sb3-td3": TD3Config(**OFF_POLICY, buffer_size=260),
}
FAMILY = make_family("navigation-2d", horizon=12)


def mean_returns(agent, family, tasks=200, episodes=None):
    """Mean return by episode on held-out tasks."""
    env = family.make_worlds(tasks)
    drawn = family.sample_tasks(tasks, "held-out", torch.Generator().manual_seed(1))
    policy = agent.policy()
    return evaluate(policy, env, drawn, episodes or family.episodes).summary().mean


def trained(config, family, worlds, iterations):
    """An agent after some iterations."""
    agent, env = SB3Agent(config, family.spec(), seed=0), family.make_worlds(worlds)
    for i in range(iterations):
        agent.train_step(env, i / iterations)
    return agent


# --- going on exactly --------------------------------------------------------------------------


def assert_equal(one, other, where="state"):
    """Two nested states hold the same bits."""
    assert type(one) is type(other), where
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_equal(one[key], other[key], f"{where}[{key!r}]")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_equal(a, b, f"{where}[{i}]")
    elif isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype and torch.equal(one, other), where
    else:
        assert one == other or one != one, where


def through_a_file(state):
    """`state` as it comes back from a checkpoint."""
    require_plain("state", state)
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("name", SMALL)
def test_a_resumed_agent_takes_the_same_steps_to_the_bit(name):
    (one, env), (other, env2) = (
        (SB3Agent(SMALL[name], FAMILY.spec(), seed=seed), FAMILY.make_worlds(4, seed=seed))
        for seed in (0, 7)
    )
    for _ in range(3):
        one.train_step(env, 0.0)
    state, worlds = through_a_file(one.state_dict()), through_a_file(env.state_dict())
    files = {key: io.BytesIO() for key in one.buffers()}
    assert list(files) == ([] if name == "sb3-ppo" else ["replay"])
    for key, stream in one.buffers().items():
        stream.write(files[key])
        files[key].seek(0)
    other.load_state_dict(state)
    env2.load_state_dict(worlds)
    for key, stream in other.buffers().items():
        stream.read(files[key])
    for _ in range(3):
        figures = one.train_step(env, 0.0)
        for generator in (random.random, np.random.rand, lambda: torch.rand(3)):
            generator()
        assert_equal(figures, other.train_step(env2, 0.0), "figures")
    assert_equal(one.state_dict(), other.state_dict())
    assert_equal(env.state_dict(), env2.state_dict())


def test_learning_from_scratch_goes_on_exactly_too():
    config = PPOConfig(**NETWORK, n_steps=6, minibatches=1, epochs=1, from_scratch=True)
    one, other = (SB3Agent(config, FAMILY.spec(), seed=seed) for seed in (0, 7))
    env, env2 = (FAMILY.make_worlds(2, seed=seed) for seed in (0, 7))
    one.train_step(env, 0.0)
    other.load_state_dict(through_a_file(one.state_dict()))
    env2.load_state_dict(env.state_dict())
    assert_equal(one.train_step(env, 0.0), other.train_step(env2, 0.0))
    assert_equal(one.state_dict(), other.state_dict())
    assert one.buffers() == {}


def test_global_generators_are_left_alone():
    before = global_generators()
    agent = trained(SMALL["sb3-sac"], FAMILY, 4, 2)
    agent.policy(deterministic=False).act(torch.zeros(2, 2))
    assert_equal(global_generators(), before)


def cli(*words):
    """Exit code and everything a command says."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = main([str(word) for word in words])
    return code, said.getvalue()


TRAIN = ["--num-worlds", 4, "--total-steps", 480, "--seed", 2, "--threads", 1, "--layers", 8]
TRAIN += ["--iteration-steps", 20, "--learning-starts", 20, "--batch-size", 8]
TRAIN += ["--buffer-size", 200, "--family.horizon", 10, "--evaluate-every", 160]
TRAIN += ["--evaluation-tasks", 3]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs of SAC: on all tasks, told the task, and one that was killed and resumed."""
    root = tmp_path_factory.mktemp("sb3")
    train_step, calls = SB3Agent.train_step, []

    def dying(self, env, progress):
        calls.append(progress)
        if len(calls) == 4:
            raise SystemError("died")
        return train_step(self, env, progress)

    words = ["train", "sb3-sac", "point-dense", *TRAIN, "--run-dir"]
    for name, more in (("all", []), ("told", ["--sees-task"])):
        code, said = cli(*words, root / name, *more)
        assert code == 0, said
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SB3Agent, "train_step", dying)
        with pytest.raises(SystemError, match="died"):
            cli(*words, root / "killed")
    code, said = cli(*words, root / "killed", "--resume")
    assert code == 0, said
    return root


def test_a_killed_run_resumes_to_the_same_bits(runs):
    whole, killed = (open_run(runs / name).agent.state_dict() for name in ("all", "killed"))
    assert_equal(whole, killed)
    for file in ("metrics.jsonl", "evaluation/step-000000480.json"):
        assert (runs / "all" / file).read_bytes() == (runs / "killed" / file).read_bytes()
    replays = [runs / name / "checkpoints/step-000000480/replay.bin" for name in ("all", "killed")]
    assert replays[0].read_bytes() == replays[1].read_bytes()


def test_runs_are_evaluated_and_reported_beside_each_other(runs, tmp_path):
    for name in ("all", "told"):
        code, said = cli("evaluate", runs / name, "--tasks", 3, "--threads", 1, "--json")
        assert code == 0, said
        assert len(json.loads(said.splitlines()[-1])["mean"]) == 3
    page = tmp_path / "report.html"
    code, said = cli("report", runs / "all", runs / "told", "--out", page, "--json")
    assert code == 0, said
    rows = json.loads(said.splitlines()[-1])["agents"]
    assert [row["agent"] for row in rows] == ["sb3-sac", "sb3-sac, sees task"]
    assert "--sees-task" in page.read_text()


# --- learning ----------------------------------------------------------------------------------


def test_ppo_told_the_task_does_what_the_randomised_one_cannot():
    # Two arms: random play earns 0.5 a pull, knowing the better arm 2/3.
    family, earned = make_family("bandit", arms=2, episodes=4), {}
    config = {"layers": (16,), "n_steps": 16, "minibatches": 4, "epochs": 4, "gamma": 0.0}
    for sees_task in (False, True):
        settings = PPOConfig(**config, learning_rate=1e-2, sees_task=sees_task)
        seen = as_seen_by("sb3-ppo", family, settings)
        assert isinstance(seen, TaskInObservation) == sees_task
        earned[sees_task] = np.mean(mean_returns(trained(settings, seen, 128, 15), seen, 400))
    assert earned[True] > 0.62
    assert earned[False] < 0.56


@pytest.mark.parametrize("kind", [SACConfig, TD3Config])
def test_off_policy_told_the_task_does_what_the_randomised_one_cannot(kind):
    # Standing still earns -10, a robot that knows the goal -4.7.
    family, earned = make_family("point-dense", horizon=10), {}
    config = {"layers": (32, 32), "iteration_steps": 100, "learning_starts": 200, "tau": 0.05}
    config |= {"batch_size": 128, "buffer_size": 20_000, "gamma": 0.5, "learning_rate": 1e-2}
    for sees_task in (False, True):
        settings = kind(**config, sees_task=sees_task)
        seen = as_seen_by("sb3-sac", family, settings)
        earned[sees_task] = mean_returns(trained(settings, seen, 16, 5), seen, 200, 1)[0]
    assert earned[True] > -5.8
    assert earned[False] < -7.0


@pytest.mark.parametrize("name", SMALL)
def test_learning_within_a_trial_is_the_librarys_own_loop(name):
    """One world: the library's `learn` and our policy in a trial end with the same bits."""
    config, episodes = replace(SMALL[name], from_scratch=True), 6
    family = make_family("navigation-2d", horizon=15, episodes=episodes)
    venv = FamilyVecEnv(family.make_worlds(1), seed=1, episodes_per_task=2 * episodes)
    with PrivateGenerators(3).in_use():
        model = build_model(config, family.spec())
        model.set_env(venv)
        model.learn(episodes * 15, log_interval=None)
    policy = ScratchPolicy(config, family.spec(), PrivateGenerators(3), "cpu")
    env = family.make_worlds(1)
    tasks = torch.Generator().manual_seed(1)
    env.set_tasks(family.sample_tasks(1, "train", tasks))
    rollout = run_trials(policy, env, episodes)
    assert rollout.steps == model.num_timesteps
    mine = policy.learners[0].model
    assert mine._n_updates == model._n_updates > 0
    assert_equal(mine.get_parameters(), model.get_parameters())


def test_ppo_learns_a_task_from_scratch_within_the_trial_and_keeps_nothing():
    family = make_family("bandit", arms=2, episodes=100)
    config = PPOConfig(layers=(8,), n_steps=10, minibatches=1, epochs=4, gamma=0.0)
    agent = SB3Agent(replace(config, learning_rate=5e-2, from_scratch=True), family.spec())
    before = agent.state_dict()
    earned = mean_returns(agent, family, tasks=24)
    arms = family.sample_tasks(24, "held-out", torch.Generator().manual_seed(1)).probability
    at_random, best = float(arms.mean()), float(arms.amax(-1).mean())
    early, late = (
        (np.mean(part) - at_random) / (best - at_random) for part in (earned[:10], earned[-40:])
    )
    assert early < 0.5
    assert late > 0.6
    assert_equal(agent.state_dict(), before)


def test_td3_learns_a_task_from_scratch_within_the_trial():
    family = make_family("point-dense", horizon=10, episodes=28)
    config = {**OFF_POLICY, "layers": (32, 32), "batch_size": 32, "learning_starts": 20}
    config |= {"tau": 0.05, "gamma": 0.5, "learning_rate": 1e-2, "buffer_size": 2000, "noise": 0.3}
    late = mean_returns(SB3Agent(TD3Config(**config, from_scratch=True), family.spec()), family, 6)

    class Still:
        """Stands still, from the very same starts."""

        def policy(self):
            return self

        def begin(self, num_tasks, worlds_per_task):
            pass

        def act(self, obs):
            return torch.zeros_like(obs)

        def observe(self, step):
            pass

    assert np.mean(late[-8:]) > np.mean(mean_returns(Still(), family, 6)[-8:]) + 1.0


def test_every_trial_begins_with_new_models_of_its_own():
    config = SACConfig(**OFF_POLICY, buffer_size=100, from_scratch=True)
    policy = SB3Agent(config, FAMILY.spec()).policy()
    assert isinstance(policy, ScratchPolicy)
    policy.begin(2, 2)
    weights = [one.model.policy.state_dict() for one in policy.learners]
    first = [w["actor.mu.weight"].flatten()[0].item() for w in weights]
    assert len(set(first)) == 4
    policy.begin(2, 2)
    again = [one.model.actor.mu.weight.flatten()[0].item() for one in policy.learners]
    assert not set(first) & set(again)


def test_an_iteration_from_scratch_is_a_trial():
    config = PPOConfig(**NETWORK, n_steps=6, minibatches=1, epochs=1, from_scratch=True)
    family = make_family("point-dense", episodes=2, horizon=5)
    figures = SB3Agent(config, family.spec()).train_step(family.make_worlds(3), 0.0)
    assert figures["steps"] == 3 * 2 * 5
    assert figures["return_first"] != figures["return_last"]


# --- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sb3-sac", "sb3-td3"])
def test_discrete_actions_are_for_ppo(name, tmp_path):
    code, said = cli("train", name, "gridnavi", "--run-dir", tmp_path / "run")
    assert (code, said.count("\n")) == (2, 1)
    assert "needs continuous actions" in said and "choose sb3-ppo" in said
    assert not (tmp_path / "run").exists()
    SB3Agent(SMALL["sb3-ppo"], make_family("gridnavi").spec())


def test_worlds_of_another_shape_are_refused():
    agent = SB3Agent(SMALL["sb3-ppo"], FAMILY.spec())
    told = TaskInObservation.of(FAMILY)
    for family in (told, make_family("gridnavi"), make_family("half-cheetah-vel")):
        with pytest.raises(UsageError, match=f"the worlds of {family.name} have"):
            agent.train_step(family.make_worlds(2), 0.0)


@pytest.mark.parametrize("name", SMALL)
def test_numbers_that_are_not_finite_stop_training(name):
    agent, env = SB3Agent(SMALL[name], FAMILY.spec()), FAMILY.make_worlds(4)
    agent.train_step(env, 0.0)
    with torch.no_grad():
        next(agent.model.policy.parameters())[0] = float("nan")
    with pytest.raises(TrainingError, match="not finite"):
        agent.train_step(env, 0.0)


@pytest.mark.parametrize(
    ("kind", "bad"),
    [
        (PPOConfig, {"n_steps": 1}),
        (PPOConfig, {"clip": 0.0}),
        (SACConfig, {"tau": 2.0}),
        (SACConfig, {"gamma": -0.1}),
        (SACConfig, {"layers": ()}),
        (TD3Config, {"noise": -1.0}),
        (TD3Config, {"sees_task": True, "from_scratch": True}),
    ],
)
def test_settings_that_cannot_train_are_refused(kind, bad):
    with pytest.raises(UsageError, match=next(iter(bad))):
        kind(**bad)


def test_a_saved_replay_that_is_damaged_or_of_another_size_is_refused():
    agent = trained(SMALL["sb3-sac"], FAMILY, 4, 1)
    file = io.BytesIO()
    stream = agent.buffers()["replay"]
    stream.write(file)
    raw = file.getvalue()
    head, _, body = raw.partition(b"\n")
    for bad in (b"", raw[:-1], raw + b"x", head.replace(b'"pos": ', b'"pos": 1e9') + b"\n" + body):
        with pytest.raises(DamagedError):
            stream.read(io.BytesIO(bad))
        assert stream.replay.size() == 0
    stream.read(io.BytesIO(raw))
    again = io.BytesIO()
    stream.write(again)
    assert again.getvalue() == raw
    other = trained(SACConfig(**OFF_POLICY, buffer_size=100), FAMILY, 4, 1)
    with pytest.raises(UsageError, match="saved memory has"):
        ReplayStream(other.model.replay_buffer).read(io.BytesIO(raw))


def test_another_number_of_worlds_starts_with_an_empty_memory():
    agent = trained(SMALL["sb3-sac"], FAMILY, 4, 1)
    figures = agent.train_step(FAMILY.make_worlds(2), 0.0)
    assert figures["steps"] == 2 * 30
    assert agent.model.replay_buffer.size() == 30


def test_the_table_names_them():
    for name, config in SMALL.items():
        assert AGENTS[name].config_class() is type(config)
        assert AGENTS[name].agent_class() is SB3Agent

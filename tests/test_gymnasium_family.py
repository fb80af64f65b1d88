"""Gymnasium envs as families: against plain envs, the contract, resume, and what goes wrong."""

import copy
import importlib.util
import io
import multiprocessing
import os
import signal
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.envs.classic_control import CartPoleEnv, PendulumEnv

from metarl import random
from metarl.adaptation import evaluate
from metarl.agents.rl2 import RL2, NonAdaptiveConfig, RL2Config
from metarl.checkpoint import load_checkpoint
from metarl.configs import from_plain, to_plain
from metarl.errors import UsageError
from metarl.gymnasium_family import GymnasiumFamily
from metarl.gymnasium_worlds import WorkerError, reset_seeds
from metarl.oracle import TaskInObservation
from metarl.runs import RunConfig, RunFolder
from metarl.tasks import striped
from metarl.training import TrainingConfig, train

_SPEC = importlib.util.spec_from_file_location(
    "contract_of_families", Path(__file__).with_name("test_families.py")
)
contract = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(contract)
CHECKS = [
    "test_space_and_sizes_are_as_declared",
    "test_sampling_is_pure",
    "test_a_generator_moves_on",
    "test_features_are_finite_rows",
    "test_splits_share_no_task",
    "test_unknown_split_is_refused",
    "test_tensors_have_the_promised_shape_type_and_device",
    "test_outputs_are_fresh_tensors",
    "test_same_seed_and_tasks_give_the_same_bits",
    "test_reset_with_a_seed_restarts_the_random_streams",
    "test_layout_is_task_major",
    "test_worlds_do_not_disturb_each_other",
    "test_save_and_restore_are_exact",
    "test_restoring_into_a_running_env_is_exact",
    "test_bad_actions_are_refused",
    "test_refused_actions_change_nothing",
    "test_calls_out_of_order_are_refused",
    "test_counts_that_do_not_fit_are_refused",
]
"""Of the contract, what is not said more sharply below, by plain envs."""


PLACE, CHOICE = spaces.Box(-1.0, 1.0, (2,)), spaces.Discrete(2)


def uniform(n, split, generator, low, high):
    u = torch.rand(n, dtype=torch.float64, generator=generator)
    return (low + (high - low) * striped(u, split)).float()


@dataclass(frozen=True)
class Pendulum(GymnasiumFamily):
    """Continuous actions; the time limit alone ends episodes."""

    name: ClassVar[str] = "pendulum"
    episodes: int = 2
    horizon: int = 20
    strongest: float = 20.0

    def sample(self, n, split, generator):
        return {
            "gravity": uniform(n, split, generator, 1.0, self.strongest),
            "body": torch.stack([uniform(n, split, generator, 0.5, 1.5) for _ in range(2)], -1),
        }

    def make(self, task):
        env = gym.make("Pendulum-v1", g=task["gravity"])
        env.unwrapped.m, env.unwrapped.l = task["body"].tolist()
        return env


@dataclass(frozen=True)
class CartPole(GymnasiumFamily):
    """Discrete actions, and episodes that terminate; an env is told its next task."""

    name: ClassVar[str] = "cart-pole"
    episodes: int = 2
    horizon: int = 30

    def sample(self, n, split, generator):
        return {"length": uniform(n, split, generator, 0.1, 1.0)}

    def make(self, task):
        return self.change_task(gym.make("CartPole-v1"), task)

    def change_task(self, env, task):
        env.unwrapped.length = task["length"]
        return env


class Puzzle(gym.Env):
    """Has what is unusual: parts, odd types, a shaped action, own time limit, success."""

    observation_space = spaces.Dict(
        {
            "place": spaces.Box(-np.inf, np.inf, (2, 2), np.float64),
            "colour": spaces.Discrete(3, start=4),
            "pair": spaces.Tuple((spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(2))),
            "pixel": spaces.Box(0, 255, (2,), np.uint8),
        }
    )
    action_space = spaces.Box(-1.0, np.array([[2.0, 3.0, 4.0]] * 2), (2, 3), np.float64)

    def __init__(self, limit):
        self.limit, self.taken = limit, []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        assert options is None
        self.time, self.place = 0, self.np_random.normal(size=(2, 2))
        return self.show(), {"a": "string"}

    def show(self):
        return {
            "place": self.place,
            "colour": 4 + self.time % 3,
            "pair": (np.array([self.time % 2, self.time % 3]), np.array([0, 1], np.int8)),
            "pixel": np.array([self.time, 255], np.uint8),
        }

    def step(self, action):
        assert action.dtype == np.float64 and action.shape == (2, 3)
        self.taken.append(action)
        self.time += 1
        self.place = self.place + action[:, :2]
        terminated, truncated = self.place[0, 0] > 2.0, self.time >= self.limit
        info = {"is_success": np.bool_(terminated), "path": np.zeros(self.time)}
        return self.show(), np.float32(action.sum()), terminated, truncated, info


@dataclass(frozen=True)
class Puzzles(GymnasiumFamily):
    """Dict observations; envs truncate before the horizon does."""

    name: ClassVar[str] = "puzzles"
    episodes: int = 2
    horizon: int = 9

    def sample(self, n, split, generator):
        first = {"train": 3, "held-out": 6}[split]
        return {"limit": torch.randint(first, first + 3, (n,), generator=generator)}

    def make(self, task):
        return Puzzle(task["limit"])


FAMILIES = {"pendulum": Pendulum(), "cart-pole": CartPole()}


@pytest.fixture(autouse=True)
def no_warnings_and_no_processes():
    """Whatever is done here, nothing warns and no process is left."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
    assert multiprocessing.active_children() == []


@pytest.fixture(params=FAMILIES)
def family(request):
    return FAMILIES[request.param]


@pytest.mark.parametrize("check", CHECKS)
def test_the_contract_of_families_holds(family, check):
    getattr(contract, check)(family)


@pytest.mark.parametrize(
    "check",
    [
        "test_tensors_have_the_promised_shape_type_and_device",
        "test_save_and_restore_are_exact",
        "test_calls_out_of_order_are_refused",
    ],
)
def test_the_contract_holds_in_processes_too(check):
    getattr(contract, check)(CartPole(vectorization="async", horizon=8))


def started(family, tasks, worlds=4, seed=7):
    env = family.make_worlds(worlds, seed=seed)
    env.set_tasks(tasks)
    return env, env.reset()[0]


# --- against plain envs ------------------------------------------------------------------------


def plain_env(name, tasks, i):
    """What a person would build for task `i` without this package."""
    task = {name: x[i] for name, x in tasks.tensors().items()}
    if name == "pendulum":
        env = PendulumEnv(g=float(task["gravity"]))
        env.m, env.l = (float(x) for x in task["body"])
    elif name == "puzzles":
        env = Puzzle(int(task["limit"]))
    else:
        env = CartPoleEnv()
        env.length = float(task["length"])
    return env


def play_plainly(env, horizon, seeds, actions):
    """One plain env, episode by episode: what every step returned."""
    seeds = iter(seeds)
    flat = lambda obs: np.float32(spaces.flatten(env.observation_space, obs))  # noqa: E731
    first, elapsed, rows = flat(env.reset(seed=next(seeds))[0]), 0, []
    for action in actions:
        obs, reward, terminated, truncated, info = env.step(action)
        elapsed += 1
        truncated = not terminated and (truncated or elapsed == horizon)
        obs = final_obs = flat(obs)
        if terminated or truncated:
            obs, elapsed = flat(env.reset(seed=next(seeds))[0]), 0
        rows.append((obs, np.float32(reward), terminated, truncated, final_obs, info))
    return first, rows


@pytest.mark.parametrize("vectorization", ["sync", "async"])
@pytest.mark.parametrize("kind", [Pendulum, CartPole, Puzzles])
def test_worlds_are_plain_envs_stepped_together(kind, vectorization):
    family, worlds, steps = kind(vectorization=vectorization), 4, 70
    tasks = family.sample_tasks(2, "train", torch.Generator().manual_seed(0))
    env, first = started(family, tasks, worlds, seed=3)
    actions = contract.random_actions(family, steps, worlds)
    record = contract.play(env, actions)
    env.close()
    keys = random.world_keys(3, worlds)
    seeds = [reset_seeds(random.uniform(keys, torch.full((worlds,), i), 2)) for i in range(steps)]
    ended = 0
    for w in range(worlds):
        plain = plain_env(kind.name, tasks, w // 2)
        own = [
            a[w].numpy().astype(plain.action_space.dtype).reshape(plain.action_space.shape)
            for a in actions
        ]
        obs, rows = play_plainly(plain, family.horizon, (int(s[w]) for s in seeds), own)
        assert np.array_equal(first[w], obs)
        for step, row in zip(record, rows, strict=True):
            for name, expected in zip(
                ("obs", "reward", "terminated", "truncated", "final_obs"), row, strict=False
            ):
                assert np.array_equal(step[name][w], expected), name
            if kind is Puzzles:
                assert step["success"][w] == row[-1]["is_success"]
            else:
                assert "success" not in step
            assert not step["unstable"][w]
        ended += sum(row[2] for row in rows)
    assert (ended > 0) == (kind is not Pendulum)
    assert any(step["truncated"].any() for step in record)


def test_observations_and_actions_are_translated():
    family = Puzzles()
    assert family.observation_space.shape == (4 + 3 + 5 + 2 + 2,)
    assert family.observation_space.dtype == np.float32
    assert family.action_space == spaces.Box(-1.0, np.float32([2, 3, 4, 2, 3, 4]), dtype=np.float32)
    env, obs = started(family, family.sample_tasks(1, "train", torch.Generator()), worlds=1)
    # By the order of the names: colour, pair, pixel, place.
    assert obs[0, :12].tolist() == [1, 0, 0, 1, 0, 1, 0, 0, 0, 1, 0, 255]
    env.step(torch.tensor([[-9.0, 0.5, 9.0, 9.0, 9.0, -9.0]]))
    assert env._vector.envs[0].env.taken[0].tolist() == [[-1.0, 0.5, 4.0], [2.0, 3.0, -1.0]]


def worlds_of(make, kind=CartPole, tasks=2, worlds=4, **options):
    """Worlds of a family like `kind`, whose envs come from the function `make`."""
    family = type("Family", (kind,), {"make": lambda self, task: make(task)})(**options)
    drawn = family.sample_tasks(tasks, "train", torch.Generator().manual_seed(0))
    return started(family, drawn, worlds)[0]


def test_discrete_actions_start_where_the_env_starts():
    taken = []

    class Shifted(CartPoleEnv):
        def __init__(self):
            super().__init__()
            self.action_space = spaces.Discrete(2, start=5)

        def step(self, action):
            taken.append(action)
            return super().step(action - 5)

    env = worlds_of(lambda task: Shifted())
    assert env.single_action_space == spaces.Discrete(2)
    with pytest.raises(AssertionError):  # CartPole itself asks whether 0 is in its space
        env.step(torch.tensor([0, 1, 1, 0]))
    assert taken == [5]


class Scripted(gym.Env):
    """Does at each step what a function of the time says: obs, reward, terminated, info."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float64)
    action_space = spaces.Box(-np.inf, np.inf, (1,))

    def __init__(self, script):
        self.script = script

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return np.zeros(1), {}

    def step(self, action):
        self.time += 1
        obs, reward, terminated, info = self.script(self.time)
        return np.array([obs], np.float64), reward, terminated, False, info


def test_a_world_that_blows_up_ends_its_episode_and_is_not_learned_from(caplog):
    env = worlds_of(
        lambda task: Scripted(
            lambda t: (1e300 if t == 2 else 0.5, np.nan if t == 3 else 1.0, 0, {})
        ),
        worlds=2,
    )
    action = torch.zeros(2, 1)
    sound, broken, again = (env.step(action) for _ in range(3))
    assert not sound[4]["unstable"].any() and not sound[3].any()
    assert broken[4]["unstable"].all() and broken[3].all() and not broken[2].any()
    assert broken[4]["final_obs"].tolist() == [[0.0], [0.0]] and broken[1].tolist() == [0.0, 0.0]
    assert not again[3].any()
    assert "world 1, task [" in caplog.text and "is not finite at step 1" in caplog.text


def test_success_is_undefined_where_an_env_says_nothing():
    scripts = {
        "success": lambda t: (0.0, 0.0, False, {"success": True} if t > 1 else {}),
        "is_success": lambda t: (0.0, 0.0, False, {"is_success": None if t == 1 else 0.0}),
    }
    for expected, script in zip((1.0, 0.0), scripts.values(), strict=True):
        env = worlds_of(lambda task, script=script: Scripted(script), tasks=1, worlds=1)
        first, second = (env.step(torch.zeros(1, 1))[4] for _ in range(2))
        assert "success" not in first
        assert second["success"].tolist() == [expected]


def test_tasks_are_handed_over_as_numbers_and_arrays():
    seen = []

    class Family(Pendulum):
        def make(self, task):
            seen.append(task)
            return super().make(task)

    started(Family(), Family().sample_tasks(2, "train", torch.Generator()))
    assert all(type(task["gravity"]) is float for task in seen)
    assert all(task["body"].shape == (2,) and type(task["body"]) is np.ndarray for task in seen)
    assert len(seen) == 1 + 4  # one for the spaces


def test_an_env_is_made_anew_or_told_its_task():
    made, closed = [], []

    class Noting(PendulumEnv):
        def close(self):
            closed.append(self)

    class Anew(Pendulum):
        def make(self, task):
            made.append(Noting(g=task["gravity"]))
            return made[-1]

    class Told(Anew):
        def change_task(self, env, task):
            env.g = task["gravity"]
            return env

    for kind, number in ((Anew, 8), (Told, 4)):
        family = kind()
        assert family.spec().obs_dim == 3
        made.clear(), closed.clear()
        tasks = [family.sample_tasks(4, split, torch.Generator()) for split in family.splits]
        env, _ = started(family, tasks[0])
        env.set_tasks(tasks[1])
        assert [each.g for each in made[-4:]] == tasks[1].tensors()["gravity"].tolist()
        assert len(made) == number and closed == made[:-4]
        env.close()
        assert closed == made


# --- learning ----------------------------------------------------------------------------------


def train_in(path, family, steps, resume=False, kill_at=0, agent="rl2"):
    """Train as a person would from Python; `kill_at` an iteration, nothing catches."""
    config = TrainingConfig(
        total_steps=steps, num_worlds=4, seed=3, evaluate_every=100, evaluation_tasks=2
    )
    small = {"hidden": 8, "embedding": 8, "layers": (8,), "epochs": 1, "minibatches": 2}
    kind = {"rl2": RL2Config, "oracle": NonAdaptiveConfig}[agent]
    settings = kind(**small)
    plain = RunConfig(agent, to_plain(settings), family.name, to_plain(family), to_plain(config))
    run = RunFolder.open(path) if resume else RunFolder.create(path, plain)
    seen = TaskInObservation.of(family) if agent == "oracle" else family
    built = RL2(settings, seen.spec(), seed=99 if resume else 1)
    step, calls = built.train_step, []

    def killed_step(env, progress):
        calls.append(0)
        if len(calls) == kill_at:
            raise KeyboardInterrupt
        return step(env, progress)

    built.train_step = killed_step
    return train(built, seen, run, config, resume=resume)


def final(path):
    """What must be equal: the agent's state, and the metrics."""
    buffer = io.BytesIO()
    torch.save(load_checkpoint(path / "checkpoints").states["agent"], buffer)
    return buffer.getvalue(), (path / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("family", "agent"),
    [
        (Pendulum(horizon=10), "rl2"),
        (CartPole(horizon=20), "rl2"),
        (CartPole(horizon=20, vectorization="async"), "oracle"),
    ],
    ids=["pendulum", "cart-pole", "cart-pole-async-oracle"],
)
def test_a_killed_run_goes_on_to_the_same_bits(tmp_path, family, agent):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train_in(whole, family, 300, agent=agent)
    with pytest.raises(KeyboardInterrupt):
        train_in(broken, family, 300, kill_at=3, agent=agent)
    train_in(broken, family, 300, resume=True, agent=agent)
    assert final(broken) == final(whole)


def test_an_agent_learns_on_a_gymnasium_env():
    family = CartPole(horizon=50)
    env = family.make_worlds(16, seed=1)
    agent = RL2(RL2Config(chunk=0, epochs=4, minibatches=4), family.spec(), seed=1)
    returns = [agent.train_step(env, i / 10)["return_last"] for i in range(10)]
    assert sum(returns[-3:]) / 3 > sum(returns[:3]) / 3 + 10.0


def test_the_options_of_a_family_are_plain():
    family = Pendulum(strongest=3.0, vectorization="async")
    assert from_plain(Pendulum, to_plain(family), "here") == family
    assert family.sample_tasks(99, "train", torch.Generator()).tensors()["gravity"].max() < 3.0


def test_vectorization_changes_no_bit():
    figures = []
    for vectorization in ("sync", "async"):
        family = CartPole(vectorization=vectorization, horizon=8)
        env = family.make_worlds(4, seed=1)
        agent = RL2(RL2Config(minibatches=2, epochs=1), family.spec(), seed=1)
        figures.append(agent.train_step(env, 0.0))
        tasks = family.sample_tasks(2, "held-out", torch.Generator().manual_seed(0))
        figures[-1]["returns"] = evaluate(agent.policy(), env, tasks, 2).returns
        env.close()
    assert figures[0] == figures[1]


def test_batches_of_tasks_are_not_confused():
    one, two = (Pendulum().sample_tasks(2, "train", torch.Generator()) for _ in range(2))
    assert one == one and one != two and len({one, two}) == 2


# --- saved in the middle of an episode -----------------------------------------------------------


def test_an_episode_that_cannot_be_lived_again_is_refused_and_reset_goes_on():
    class Forgetful(PendulumEnv):
        def reset(self, *, seed=None, options=None):
            return super().reset()  # never the same

    class Family(Pendulum):
        def make(self, task):
            return Forgetful()

    family = Family()
    tasks, action = family.sample_tasks(2, "train", torch.Generator()), torch.zeros(4, 1)
    env, _ = started(family, tasks)
    env.step(action)
    saved = copy.deepcopy(env.state_dict())
    other = family.make_worlds(4)
    other.load_state_dict(saved)
    with pytest.raises(UsageError, match="pendulum: a saved episode cannot be gone on with"):
        other.step(action)
    other.load_state_dict(saved)
    other.reset()
    other.step(action)


def test_a_state_saved_before_reset_is_restored():
    family = Pendulum()
    env = family.make_worlds(2)
    env.set_tasks(family.sample_tasks(2, "train", torch.Generator()))
    other = family.make_worlds(2, seed=5)
    other.load_state_dict(env.state_dict())
    assert torch.equal(env.reset()[0], other.reset()[0])


def test_saving_again_before_stepping_on_keeps_the_past():
    family, action = Pendulum(), torch.full((4, 1), 0.5)
    env, _ = started(family, family.sample_tasks(4, "train", torch.Generator()))
    env.step(action)
    second, third = family.make_worlds(4), family.make_worlds(4)
    second.load_state_dict(env.state_dict())
    third.load_state_dict(second.state_dict())
    assert torch.equal(env.step(action)[0], third.step(action)[0])


# --- what goes wrong -----------------------------------------------------------------------------


def with_spaces(shown=PLACE, taken=CHOICE):
    """A family whose envs have these spaces."""

    class Env(gym.Env):
        observation_space, action_space = shown, taken

    class Family(CartPole):
        def make(self, task):
            return Env()

    return Family()


@pytest.mark.parametrize(
    ("shown", "named"),
    [
        (spaces.Text(5), "Text"),
        (spaces.Graph(spaces.Box(0, 1, (2,)), None), "Graph"),
        (spaces.Sequence(spaces.Discrete(2)), "Sequence"),
        (spaces.Dict(a=spaces.Tuple([spaces.Discrete(2), spaces.Text(3)])), "Text"),
        (spaces.OneOf([spaces.Discrete(2)]), "OneOf"),
    ],
    ids=["text", "graph", "sequence", "nested", "one-of"],
)
def test_observations_that_are_no_vector_are_refused(shown, named):
    with pytest.raises(UsageError, match=rf"cart-pole: observations must be of .* got {named}\("):
        with_spaces(shown=shown).spec()


@pytest.mark.parametrize(
    "taken",
    [spaces.MultiDiscrete([2, 2]), spaces.Box(0, 9, (2,), np.int32), spaces.Dict()],
    ids=["multi", "integers", "dict"],
)
def test_actions_that_are_neither_continuous_nor_discrete_are_refused(taken):
    with pytest.raises(UsageError, match="actions must be a Box of floats or Discrete, got "):
        with_spaces(taken=taken).spec()


def test_a_factory_that_makes_no_env_is_refused():
    with pytest.raises(UsageError, match=r"cart-pole: make .* must return a gymnasium.Env, got No"):
        worlds_of(lambda task: None)


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_spaces_that_differ_between_tasks_are_refused(vectorization):
    def make(task):
        env = CartPoleEnv()
        if task["length"] < 0.5:
            env.observation_space = spaces.Box(0.0, 1.0, (5,))
        return env

    message = r"all tasks must have the same observation space, one has Box\(.* and another Box"
    with pytest.raises(UsageError, match=message):
        worlds_of(make, tasks=4, vectorization=vectorization)


def test_an_observation_outside_of_the_space_is_refused():
    class Longer(Scripted):
        def reset(self, *, seed=None, options=None):
            return np.zeros(3), {}

    with pytest.raises(UsageError, match="an observation of 3 numbers, its space has 1"):
        worlds_of(lambda task: Longer(None))

    class Undefined(Scripted):
        def reset(self, *, seed=None, options=None):
            return np.full(1, np.nan), {}

    with pytest.raises(UsageError, match="began with an observation that is not finite"):
        worlds_of(lambda task: Undefined(None))


@pytest.mark.parametrize(
    ("drawn", "message"),
    [
        ({"length": torch.ones(2)}, "was asked for 3 tasks and returned 2 of 'length'"),
        ({"length": [0.1, 0.2, 0.3]}, r"must return tensors \[n, ...\], got 'length' as list"),
        ({"length": torch.tensor(1.0)}, r"must return tensors \[n, ...\]"),
        ({}, "must return a dict of tensors by name, got {}"),
        (torch.ones(3), "must return a dict of tensors"),
    ],
    ids=["short", "list", "number", "empty", "tensor"],
)
def test_samplers_that_draw_something_else_are_refused(drawn, message):
    class Family(CartPole):
        def sample(self, n, split, generator):
            return drawn

    with pytest.raises(UsageError, match=f"family cart-pole: sample {message}"):
        Family().sample_tasks(3, "train", torch.Generator())


def test_an_unknown_vectorization_is_refused():
    with pytest.raises(UsageError, match="must be one of sync, async, got 'threads'"):
        CartPole(vectorization="threads")


class OddError(Exception):
    """Cannot be pickled back: it takes two arguments."""

    def __init__(self, left, right):
        super().__init__(left)
        self.lock = multiprocessing.Lock()


def break_at(when):
    """An env that fails when it is made, reset or stepped."""

    def fail():
        raise OddError("100 % broken", 2)

    class Broken(PendulumEnv):
        def reset(self, *, seed=None, options=None):
            return fail() if when == "reset" else super().reset(seed=seed)

        def step(self, action):
            return fail() if when == "step" else super().step(action)

    return lambda task: fail() if when == "make" and task["body"][0] < 1.4 else Broken()


@pytest.mark.parametrize("when", ["make", "reset", "step"])
def test_an_error_in_a_process_comes_out_with_its_traceback(when):
    class Family(Pendulum):
        def make(self, task):
            return break_at(when)(task)

        def sample(self, n, split, generator):
            drawn = super().sample(n, split, generator)
            return {**drawn, "body": torch.full((n, 2), 1.5 if n == 1 else 1.0)}

    family = Family(vectorization="async")
    env = family.make_worlds(2)
    with pytest.raises(WorkerError, match="pendulum: the env of world 0 failed") as caught:
        env.set_tasks(family.sample_tasks(2, "train", torch.Generator()))
        env.reset()
        env.step(torch.zeros(2, 1))
    assert "in fail" in str(caught.value) and "OddError: 100 % broken" in str(caught.value)
    assert multiprocessing.active_children() == []
    env.close()


def test_an_error_without_processes_is_the_env_s_own():
    with pytest.raises(OddError):
        worlds_of(break_at("reset"), kind=Pendulum)


def test_a_process_that_dies_is_reported_and_the_worlds_can_be_set_up_again():
    family = CartPole(vectorization="async")
    tasks = family.sample_tasks(2, "train", torch.Generator())
    env, first = started(family, tasks)
    os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
    with pytest.raises(WorkerError, match=r"the process of an env ended by itself.* exit code -9"):
        for _ in range(3):
            env.step(torch.zeros(4, dtype=torch.int64))
    assert multiprocessing.active_children() == []
    with pytest.raises(UsageError, match="the worlds are closed; call set_tasks and reset"):
        env.reset()
    env.set_tasks(tasks)
    assert torch.equal(env.reset(seed=7)[0], first)
    env.close()
    env.close()


def test_processes_leave_signals_to_the_one_in_charge():
    family = CartPole(vectorization="async")
    env, _ = started(family, family.sample_tasks(2, "train", torch.Generator()))
    before = [process.pid for process in multiprocessing.active_children()]
    for pid in before:
        os.kill(pid, signal.SIGINT)
    env.step(torch.zeros(4, dtype=torch.int64))
    assert [process.pid for process in multiprocessing.active_children()] == before
    env.close()

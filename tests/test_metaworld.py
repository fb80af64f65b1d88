"""Meta-World's batched worlds against the package's own environments, and both kinds of worlds."""

import copy
import importlib.util
import pickle
from types import SimpleNamespace

import mujoco
import numpy as np
import pytest
import torch

from metarl.envs.metaworld import package, python_worlds, starts
from metarl.envs.metaworld.experts import Experts, expert
from metarl.envs.metaworld.families import FAMILIES
from metarl.envs.metaworld.names import SEVERAL, SKILLS, TEST_SKILLS, TRAIN_SKILLS
from metarl.envs.metaworld.skills import skills
from metarl.envs.metaworld.starts import sawyer
from metarl.errors import UsageError

MIXED = ("reach", "door-open", "peg-insert-side", "push")
"""four of MT10 and of ML10's for training"""


def seeded(number):
    return torch.Generator().manual_seed(number)


def random_actions(steps, worlds, seed=0, widest=1.3):
    """Actions that reach beyond their range."""
    return widest * (2.0 * torch.rand(steps, worlds, 4, generator=seeded(seed)) - 1.0)


def mixed_tasks(family, names, goal=0):
    """One task of each of the named skills, of a benchmark that has them."""
    vectors = family.vectors("train")
    return family.placement([(name, vectors[name][goal]) for name in names])


def started(family, tasks, worlds=None, **options):
    env = family.make_worlds(worlds or len(tasks), **options)
    env.set_tasks(tasks)
    return env, env.reset()[0]


def trace(env, actions):
    """Everything that comes out of some steps."""
    out = []
    for action in actions:
        obs, reward, terminated, truncated, info = env.step(action)
        out.append([obs, info["final_obs"], reward, terminated, truncated, info["success"]])
    return [torch.stack(x) for x in zip(*out, strict=True)]


def same(left, right):
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def package_env(skill, vector, goal_hidden=False, reward_version="v2"):
    env = package.make_env(skill, reward_version)
    package.set_task(env, vector, goal_hidden=goal_hidden)
    return env, env.reset()[0]


def model_arrays(model):
    """All fields of a model that are arrays."""
    fields = {name: getattr(model, name) for name in dir(model) if name[0] != "_"}
    return {name: x.copy() for name, x in fields.items() if isinstance(x, np.ndarray)}


def own_attributes(env):
    """What an environment holds, except for MuJoCo's memory."""
    plain = (bool, int, float, str, type(None), np.number, np.bool_)
    return {
        name: copy.deepcopy(x)
        for name, x in vars(env).items()
        if isinstance(x, plain) or (isinstance(x, np.ndarray) and x.flags.owndata)
    }


def changed(before, after):
    names = before.keys() | after.keys()
    nothing = object()
    return {n for n in names if not np.array_equal(before.get(n, nothing), after.get(n, nothing))}


# --- every skill ------------------------------------------------------------------------------


@pytest.mark.parametrize("skill", SKILLS)
def test_a_skill_does_what_the_package_does(skill):
    """Under random actions and under the expert's: what is observed, earned and solved."""
    family = FAMILIES[f"metaworld-mt1-{skill}"](benchmark_seed=3)
    tasks = family.sample_tasks(1, "train", seeded(0))
    ours, first = started(family, tasks, worlds=2)
    vector = tasks.vector[0, : len(sawyer(skill, skills()[skill].constants).vector_low)].numpy()
    envs, seen = zip(*(package_env(skill, vector) for _ in range(2)), strict=True)
    assert np.abs(np.stack(seen) - first.numpy()).max() <= 1e-6
    model, attributes = model_arrays(envs[0].model), own_attributes(envs[0])
    compiled = model_arrays(ours._groups[0].sawyer.model.compiled)
    for action in random_actions(120, 1):
        asked = np.stack([action[0].numpy(), expert(skill).get_action(seen[1])]).astype("float32")
        _, reward, _, _, info = ours.step(torch.from_numpy(asked))
        seen, rewards, _, _, infos = zip(
            *(env.step(a) for env, a in zip(envs, asked, strict=True)), strict=True
        )
        assert np.abs(np.stack(seen) - info["final_obs"].numpy()).max() <= 1e-6
        # Where it reckons with an action, the package itself rounds to float32.
        np.testing.assert_allclose(reward.numpy(), rewards, rtol=3e-7, atol=1e-6)
        assert [bool(x["success"]) for x in infos] == info["success"].bool().tolist()
    assert changed(compiled, model) <= set(starts.MODEL_FIELDS)
    kept = {*python_worlds.CHANGED, "_prev_obs", "_last_stable_obs"}
    assert changed(attributes, own_attributes(envs[0])) <= kept
    assert not changed(model, model_arrays(envs[0].model))


def test_names_are_those_of_the_package():
    table = package.metaworld().env_dict
    assert [f"{skill}-v3" for skill in SKILLS] == list(package.metaworld().ALL_V3_ENVIRONMENTS)
    assert set(skills()) == set(SKILLS)
    for name in SEVERAL:
        family, count = FAMILIES[f"metaworld-{name}"](), int(name[2:])
        listed = getattr(table, f"{name.upper()}_V3")
        train = list(listed["train"] if name.startswith("ml") else listed)
        test = list(listed["test"]) if name.startswith("ml") else []
        # ML25 holds out a skill that it also trains on.
        once = {*train, *test}
        assert {f"{skill}-v3" for skill in TRAIN_SKILLS[name]} == set(train)
        assert {f"{skill}-v3" for skill in TEST_SKILLS.get(name, ())} == set(test)
        assert {f"{skill}-v3" for skill in family.skills} == once
        assert len(family.skills) == len(once)
        assert len(train) + len(test) - len(once) == (name == "ml25")
        assert (len(train), len(test)) == (count, 5 if name.startswith("ml") else 0)


@pytest.mark.parametrize("skill", ["pick-place", "peg-insert-side", "stick-pull", "lever-pull"])
def test_tasks_are_those_of_the_package(skill):
    """The benchmark's objects draw the same where the hand is simulated at every reset."""
    drawn = package.metaworld().MT1(f"{skill}-v3", seed=2).train_tasks
    vectors = np.array([pickle.loads(task.data)["rand_vec"] for task in drawn])
    train, test = package.benchmark("mt1", skill, 2)
    assert list(train) == [skill] and not test
    assert np.array_equal(train[skill], vectors) and len(vectors) == 50
    # The held-out goals of ML1 are those of the next seed.
    train, test = package.benchmark("ml1", skill, 1)
    assert np.array_equal(test[skill], vectors) and not np.array_equal(train[skill], vectors)


def test_welds_are_set_as_the_package_sets_them():
    package.metaworld()
    path = importlib.util.find_spec("metaworld.sawyer_xyz_env").origin
    spec = importlib.util.spec_from_file_location("unchanged_metaworld", path)
    unchanged = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(unchanged)
    original = unchanged.SawyerMocapBase.reset_mocap_welds
    kinds = mujoco.mjtEq
    eq_type = np.array([kinds.mjEQ_WELD, kinds.mjEQ_CONNECT, kinds.mjEQ_WELD])
    numbers = np.random.default_rng(0).normal(size=(3, 12))
    theirs, ours, wide = (
        SimpleNamespace(model=SimpleNamespace(nmocap=1, eq_type=eq_type, eq_data=data.copy()))
        for data in (numbers[:, :11], numbers[:, :11], numbers)
    )
    original(theirs)
    package.reset_mocap_welds(ours)
    package.reset_mocap_welds(wide)
    assert np.array_equal(theirs.model.eq_data, ours.model.eq_data)
    assert np.array_equal(wide.model.eq_data[:, :11], theirs.model.eq_data)
    assert np.array_equal(wide.model.eq_data[:, 11], numbers[:, 11])
    assert not np.array_equal(ours.model.eq_data, numbers[:, :11])
    with pytest.raises(ValueError, match="could not broadcast"):
        original(wide)


# --- many worlds ------------------------------------------------------------------------------


@pytest.mark.parametrize("benchmark", ["mt10", "ml10"])
def test_both_backends_agree(benchmark):
    """Over ends of episodes, under actions out of range, with the skill and the goal or without."""
    name = f"metaworld-{benchmark}"
    both = [FAMILIES[name](horizon=9, backend=kind) for kind in ("batch", "python")]
    tasks = mixed_tasks(both[0], reversed(MIXED))
    (ours, first), (theirs, package_first) = (started(f, tasks, 8) for f in both)
    assert torch.equal(first, package_first)
    assert tuple(first.shape) == (8, 39 + 10 * (benchmark == "mt10"))
    actions = random_actions(20, 8, widest=3.0)
    left, right = trace(ours, actions), trace(theirs, actions)
    for a, b in zip(left, right, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=0.0, atol=1e-6)
    assert left[4].any(-1).nonzero()[:, 0].tolist() == [8, 17]
    hidden = first[:, 36:39] == 0.0
    assert bool(hidden.all()) == (benchmark == "ml10")


def test_order_and_company_do_not_matter():
    """A world does the same whatever the order of tasks, alone or among other skills."""
    family = FAMILIES["metaworld-mt10"](horizon=9)
    names = [*MIXED, *reversed(MIXED)]
    tasks = family.placement([(n, family.vectors("train")[n][k % 3]) for k, n in enumerate(names)])
    actions, order = random_actions(12, 8), torch.randperm(8, generator=seeded(1))
    env, _ = started(family, tasks)
    whole = trace(env, actions)
    env, _ = started(family, tasks[order])
    assert same(trace(env, actions[:, order]), [x[:, order] for x in whole])
    for skill in MIXED:
        alone = FAMILIES[f"metaworld-mt1-{skill}"](horizon=9)
        own = torch.tensor([name == skill for name in names])
        rows = [(skill, tasks.vector[k].numpy()) for k in own.nonzero()[:, 0].tolist()]
        size = len(sawyer(skill, skills()[skill].constants).vector_low)
        env, _ = started(alone, alone.placement([(n, v[:size]) for n, v in rows]))
        among = [x[:, own, :39] if x.dim() == 3 else x[:, own] for x in whole]
        for a, b in zip(trace(env, actions[:, own]), among, strict=True):
            torch.testing.assert_close(a, b, rtol=0.0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mt10", {}),
        ("mt10", {"backend": "python"}),
        ("mt1-bin-picking", {}),
        ("mt1-bin-picking", {"backend": "python"}),
        ("mt1-assembly", {"backend": "python", "reward_version": "v1"}),
        ("mt1-disassemble", {"backend": "python", "reward_version": "v1"}),
    ],
)
def test_goes_on_bit_for_bit(name, options):
    """In mid-episode, and over its end; the tasks come in any order."""
    family = FAMILIES[f"metaworld-{name}"](horizon=60, **options)
    tasks = (
        mixed_tasks(family, reversed(MIXED))
        if name == "mt10"
        else family.sample_tasks(2, "train", seeded(0))
    )
    env, obs = started(family, tasks)
    experts = Experts(family)
    for _ in range(50):
        obs = env.step(experts.act(obs))[0]
    saved = pickle.loads(pickle.dumps(env.state_dict()))
    actions = random_actions(15, len(tasks))
    other = family.make_worlds(len(tasks), seed=5)
    other.load_state_dict(saved)
    assert torch.equal(other._observe(), obs)
    whole = trace(env, actions)
    assert same(trace(other, actions), whole)
    # What was lived through in between leaves no trace.
    env.load_state_dict(saved)
    assert same(trace(env, actions), whole)


@pytest.mark.parametrize("backend", ["batch", "python"])
def test_a_state_before_the_first_reset(backend):
    family = FAMILIES["metaworld-mt10"](backend=backend)
    tasks = mixed_tasks(family, MIXED)
    env, other = (family.make_worlds(4) for _ in range(2))
    env.set_tasks(tasks)
    other.load_state_dict(env.state_dict())
    with pytest.raises(UsageError, match="call reset"):
        other.step(torch.zeros(4, 4))
    assert torch.equal(other.reset()[0], env.reset()[0])


@pytest.mark.parametrize("backend", ["batch", "python"])
def test_resting_worlds_change_nothing_for_others(backend):
    family = FAMILIES["metaworld-mt10"](horizon=9, backend=backend)
    tasks, actions = mixed_tasks(family, MIXED), random_actions(12, 4)
    env, first = started(family, tasks)
    whole = trace(env, actions)
    assert torch.equal(env.reset()[0], first)
    awake = torch.tensor([True, False, True, False])
    env.rest(~awake)
    assert same([x[:, awake] for x in trace(env, actions)], [x[:, awake] for x in whole])
    assert torch.equal(env.reset()[0], first)
    assert same(trace(env, actions), whole)


@pytest.mark.parametrize("backend", ["batch", "python"])
def test_an_unstable_world_ends_its_episode(backend, caplog):
    family = FAMILIES["metaworld-mt1-reach"](backend=backend)
    tasks = family.sample_tasks(3, "train", seeded(0))
    env, first = started(family, tasks)
    twin, _ = started(family, tasks)
    zero = torch.zeros(3, 4)
    if backend == "batch":
        env._groups[0].physics.field("qvel")[1] = 1e12
    else:
        env._envs[1].data.qvel[:] = 1e12
    obs, reward, terminated, truncated, info = env.step(zero)
    expected = twin.step(zero)
    assert truncated.tolist() == info["unstable"].tolist() == [False, True, False]
    assert not terminated.any() and reward[1] == 0.0 and torch.equal(obs[1], first[1])
    assert torch.equal(obs[::2], expected[0][::2]) and torch.equal(reward[::2], expected[1][::2])
    assert "world 1" in caplog.text and "became unstable" in caplog.text
    assert not env.step(zero)[3].any()


def test_version_1_of_the_rewards():
    family = FAMILIES["metaworld-ml1-push"](backend="python", reward_version="v1")
    tasks = family.sample_tasks(1, "held-out", seeded(0))
    env, first = started(family, tasks)
    theirs, seen = package_env("push", tasks.vector[0].numpy(), True, "v1")
    modern, _ = package_env("push", tasks.vector[0].numpy(), True, "v2")
    assert np.array_equal(first[0].numpy(), seen.astype(np.float32))
    differs = False
    for action in random_actions(10, 1):
        obs, reward, *_ = env.step(action)
        seen, expected, *_ = theirs.step(action[0].numpy())
        assert reward.item() == np.float32(expected)
        assert np.array_equal(obs[0].numpy(), seen.astype(np.float32))
        differs |= reward.item() != np.float32(modern.step(action[0].numpy())[1])
    assert differs
    with pytest.raises(UsageError, match="add backend python"):
        FAMILIES["metaworld-ml1-push"](reward_version="v1")


def test_experts_are_told_the_skill_by_the_label():
    family = FAMILIES["metaworld-mt10"]()
    tasks = mixed_tasks(family, MIXED)
    env, obs = started(family, tasks)
    policy = Experts(family)
    policy.begin(4, 1)
    actions = policy.act(obs)
    assert actions.dtype == torch.float32 and actions.shape == (4, 4)
    for row, skill, action in zip(obs.double().numpy(), MIXED, actions, strict=True):
        assert np.array_equal(expert(skill).get_action(row[:39]).astype(np.float32), action.numpy())
    solved = torch.zeros(4)
    for _ in range(150):
        obs, _, _, _, info = env.step(policy.act(obs))
        solved = torch.maximum(solved, info["success"])
    assert solved.tolist() == [1.0, 1.0, 1.0, 1.0]
    with pytest.raises(UsageError, match="hides the goal"):
        Experts(FAMILIES["metaworld-ml10"]())

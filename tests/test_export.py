"""A policy leaves for a robot: its files act as it did, and nothing else is let in."""

import contextlib
import importlib.util
import io
import itertools
import json
import pickle
import re
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ragged import Ragged

from metarl import deployment
from metarl.deployment import load
from metarl.deployment_formats import sealed
from metarl.envs.registry import make_family
from metarl.errors import TrainingError, UsageError
from metarl.experiments import export as exporting
from metarl.experiments import export_trials
from metarl.experiments.agents import AGENTS
from metarl.experiments.cli import main
from metarl.experiments.export import FILES, export, open_for_export
from metarl.experiments.export_files import has_onnx
from metarl.experiments.export_trials import check, eager_microseconds, replay
from metarl.experiments.loading import LoadedRun, as_seen_by, build_agent
from metarl.networks import RunningNorm
from metarl.policy import Step
from metarl.runs import RunConfig, RunFolder

ROOT = Path(__file__).resolve().parent.parent
needs_onnx = pytest.mark.skipif(not has_onnx(), reason="onnx, onnxruntime or onnxscript is missing")

PPO = {"layers": (8, 8)}
RL2 = {**PPO, "embedding": 5, "hidden": 6}
VARIBAD = {**PPO, "embedding": 5, "hidden": 6, "latent": 2, "beliefs": 0, "decodes": 0}
PEARL = {"layers": (8, 8), "encoder_layers": (7, 7), "latent": 3, "prior_episodes": 2}
STEPS = {"layers": (8,), "rollouts": 3, "inner_steps": 2, "inner_rate": 0.5, "log_std": -1.0}
RAGGED = Ragged(episodes=7, horizon=5)
MDP = make_family("tabular-mdp", episodes=7, horizon=6)
POINT = make_family("point-dense", episodes=3, horizon=7)
CASES = {
    "rl2": ("rl2", RL2, RAGGED),
    "rl2-bandit": ("rl2", RL2, make_family("bandit", episodes=8)),
    "rl2-cheetah": ("rl2", RL2, make_family("half-cheetah-vel", episodes=1)),
    "non-adaptive": ("non-adaptive", PPO, POINT),
    "oracle": ("oracle", PPO, POINT),
    "varibad": ("varibad", VARIBAD, RAGGED),
    "varibad-choices": ("varibad", VARIBAD, MDP),
    "pearl": ("pearl", PEARL, RAGGED),
    "pearl-next-obs": ("pearl", {**PEARL, "next_obs_in_context": True, "variant": "paper"}, RAGGED),
    "pearl-likelihood": ("pearl", {**PEARL, "encoder": "likelihood"}, RAGGED),
    "rl2-reward-norm": ("rl2", {"reward_norm": True}, RAGGED),
    "pearl-recurrent": ("pearl", {**PEARL, "encoder": "recurrent"}, RAGGED),
    "maml": ("maml", {**STEPS, "normalize": True}, RAGGED),
    "maml-choices": ("maml", {**STEPS, "baseline": "none", "inner": "meta-sgd"}, MDP),
    "promp": ("promp", {**STEPS, "baseline": "value", "lam": 0.9, "inner": "cavia"}, RAGGED),
    "sb3-ppo": ("sb3-ppo", {}, RAGGED),
    "sb3-ppo-choices": ("sb3-ppo", {}, MDP),
    "sb3-sac": ("sb3-sac", {"buffer_size": 1000}, POINT),
    "sb3-td3": ("sb3-td3", {"buffer_size": 1000}, POINT),
}
WITHOUT_ONNX = {
    "oracle",
    "sb3-ppo",
    "sb3-sac",
    "varibad-choices",
    "rl2-reward-norm",
    "pearl-next-obs",
    "sb3-ppo-choices",
    "sb3-td3",
}
"""Cases that would be a second to write as ONNX, and hold nothing that the others do not."""
STEPPING = [name for name, (agent, _, _) in CASES.items() if agent in ("maml", "promp")]
REMEMBERING = [n for n in CASES if n.startswith(("rl2", "varibad", "pearl"))]


def modules_of(agent):
    """The networks of any agent."""
    names = ("network", "networks", "value")
    found = [getattr(agent, name) for name in names if hasattr(agent, name)]
    return found or [agent.model.policy]


def untrained(name):
    """A run with random networks whose outputs vary, and normalisers that have seen something."""
    agent_name, options, family = CASES[name]
    config = AGENTS[agent_name].config_class()(**options)
    family = as_seen_by(agent_name, family, config)
    agent = build_agent(agent_name, config, family, seed=3, device="cpu")
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for module in (m for root in modules_of(agent) for m in root.modules()):
            if isinstance(module, RunningNorm):
                numbers = torch.randn(50, len(module.mean), generator=generator)
                module.update(0.5 + 0.7 * numbers)
            # The last layer of a policy begins near zero, where all policies are alike.
            elif isinstance(module, torch.nn.Linear) and module.weight.abs().max() < 0.05:
                module.weight.normal_(0.0, 0.5, generator=generator)
    run = RunConfig(agent_name, {}, family.name, {})
    return LoadedRun(RunFolder(Path("nowhere"), run), agent, family, 123)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The folder of an export and its run, by the name of the case; each is made once."""
    made = {}

    def make(name):
        if name not in made:
            run, out = untrained(name), tmp_path_factory.mktemp(name) / "out"
            formats = ("pt2",) if name in WITHOUT_ONNX else ()
            export(run, out, formats, split="train", seed=3)
            made[name] = run, out
        return made[name]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export_trials, "TIMED_STEPS", 1)
        yield make


def files_of(out):
    """The policies in a folder."""
    return sorted(path for path in out.iterdir() if path.stem == "policy")


def trial_of(out):
    """The recorded trial in a folder."""
    with np.load(out / "trial.npz", allow_pickle=False) as arrays:
        return dict(arrays)


# --- the files act as the trained policy did ---------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_every_action_of_a_recorded_trial_is_repeated(exported, name):
    run, out = exported(name)
    trial, files = trial_of(out), files_of(out)
    endings = {path.suffix for path in files}
    no_onnx = name in STEPPING or name in WITHOUT_ONNX or not has_onnx()
    assert endings == ({".pt2"} if no_onnx else {".onnx", ".pt2"})
    ends = trial["terminated"] | trial["truncated"]
    assert ends.sum() == run.family.episodes
    for path in files:
        policy = load(path)
        for _ in range(2):  # a second trial begins anew
            largest, _ = replay(policy, trial)
            assert largest <= 1e-5
    # Nothing of this would mean anything for a policy that always does the same.
    action = trial["action"].reshape(len(ends), -1)
    assert len(np.unique(action, axis=0)) > 1


@pytest.mark.parametrize("name", REMEMBERING)
def test_what_an_action_brought_changes_the_next(exported, name):
    _, out = exported(name)
    trial = trial_of(out)
    for path in files_of(out):
        before = state_after(load(path), trial)
        for field in ("reward", "terminated"):
            other = {**trial, field: trial[field] + 1 if field == "reward" else ~trial[field]}
            after = state_after(load(path), other)
            assert any(not np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def state_after(policy, trial, steps=4):
    """What a policy carries after the first steps of a trial."""
    part = {name: x[:steps] for name, x in trial.items()}
    part["truncated"] = np.zeros_like(part["truncated"])
    replay(policy, part)
    policy.act(part["obs"][0], part["noise"][0])
    return [policy._values[name] for name in policy.description.state]


@pytest.mark.parametrize("name", STEPPING)
def test_gradient_steps_are_taken_on_the_robot(exported, name):
    _, out = exported(name)
    policy, trial = load(out / "policy.pt2"), trial_of(out)
    assert policy.description.gradient_steps == 2
    policy.begin()
    start = [policy._values[n] for n in policy.description.state]
    changes, previous = [], start
    for t, obs in enumerate(trial["obs"]):
        policy.act(obs, trial["noise"][t])
        told = [trial[n][t] for n in ("next_obs", "reward", "terminated", "truncated")]
        policy.observe(*told)
        now = [policy._values[n] for n in policy.description.state]
        if any(not np.array_equal(a, b) for a, b in zip(now, previous, strict=True)):
            changes.append(t)
        previous = now
    ends = np.flatnonzero(trial["terminated"] | trial["truncated"])
    assert changes == [ends[2], ends[5]]
    policy.begin()
    now = [policy._values[n] for n in policy.description.state]
    assert all(np.array_equal(a, b) for a, b in zip(now, start, strict=True))


@pytest.mark.parametrize("name", ["pearl", "maml-choices"])
def test_without_noise_a_policy_draws_by_its_seed(exported, name):
    _, out = exported(name)
    trial = {k: x[:10] for k, x in trial_of(out).items()}

    def actions(seed):
        policy = load(out / "policy.pt2", seed=seed)
        policy.begin()
        found = []
        for t, obs in enumerate(trial["obs"]):
            found.append(np.asarray(policy.act(obs)).tolist())
            told = [trial[n][t] for n in ("next_obs", "reward", "terminated", "truncated")]
            policy.observe(*told)
        return found

    assert actions(1) == actions(1)
    assert actions(1) != actions(2)


def test_actions_are_cut_where_the_worlds_cut_them(exported):
    _, out = exported("rl2")
    trial = trial_of(out)
    for path in files_of(out):
        policy = load(path)
        policy._low, policy._high = np.float32([-0.01]), np.float32([0.01])
        policy.begin()
        action = policy.act(trial["obs"][0])
        assert abs(trial["action"][0, 0]) > 0.01
        assert abs(action[0]) == np.float32(0.01)
        assert policy.chosen == pytest.approx(trial["action"][0])


def test_choices_are_integers(exported):
    _, out = exported("rl2-bandit")
    for path in files_of(out):
        policy = load(path)
        policy.begin()
        action = policy.act(trial_of(out)["obs"][0])
        assert type(action) is int and 0 <= action < policy.description.choices


def test_a_description_says_what_the_policy_is(exported):
    _, out = exported("pearl")
    for path in files_of(out):
        d = load(path).description
        assert (d.agent, d.family, d.trained_steps) == ("pearl", "ragged", 123)
        assert (d.episodes, d.horizon, d.obs_dim, d.low, d.high) == (7, 5, 2, [-1.0], [1.0])
        assert (d.noise, d.noise_dim) == ("normal", 3)


def test_only_what_acts_leaves(exported):
    """The critic was told the task, and decoders are for training."""
    run, out = exported("varibad")
    kept = load_tensors(out / "policy.pt2")
    assert kept == sum(p.numel() for p in exporting.deployable_of(run).act.state_dict().values())
    network = run.agent.network
    left_out = [network.vae.decoders, network.actor_critic.critic]
    assert kept < sum(p.numel() for p in network.parameters())
    assert all(sum(p.numel() for p in part.parameters()) > 0 for part in left_out)


def load_tensors(path):
    """How many numbers a .pt2 file holds."""
    exported = torch.export.load(path)
    return sum(x.numel() for x in {**exported.state_dict, **exported.constants}.values())


@pytest.mark.parametrize("name", ["rl2", "promp"])
def test_files_say_nothing_of_the_machine_that_wrote_them(exported, name):
    _, out = exported(name)
    for path in files_of(out):
        assert str(ROOT).encode() not in path.read_bytes()


def test_the_trained_policy_is_timed_in_the_same_steps(exported, monkeypatch):
    monkeypatch.setattr(export_trials, "TIMED_STEPS", 100)
    run, out = exported("rl2")
    trial, seen = trial_of(out), []
    policy = run.agent.policy()

    class Watched:
        begin = policy.begin
        act = policy.act

        @staticmethod
        def observe(step):
            seen.append(step)
            policy.observe(step)

    assert eager_microseconds(Watched(), trial) > 0.0
    assert len(seen) >= 100
    assert isinstance(seen[0], Step)
    assert float(seen[0].reward) == trial["reward"][0]


# --- alone on the robot ------------------------------------------------------------------------

REFUSE = """
import importlib.abc, runpy, sys
class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in {REFUSED}:
            raise ImportError('refused: ' + name)
sys.meta_path.insert(0, Refuse())
runpy.run_path(sys.argv[1], run_name='__main__')
"""


def without(refused, script):
    """Run a script where some packages cannot be imported."""
    program = REFUSE.replace("{REFUSED}", repr(set(refused)))
    return subprocess.run(
        [sys.executable, "-c", program, str(script)], capture_output=True, text=True, cwd=ROOT
    )


HEAVY = ("torch", "mujoco", "gymnasium", "scipy", "stable_baselines3", "onnx", "onnxscript")


@needs_onnx
def test_onnx_needs_numpy_and_onnxruntime_alone(exported):
    _, out = exported("rl2")
    found = without(HEAVY, out / "control_loop.py")
    assert found.returncode == 0, found.stderr
    assert re.fullmatch(r"\d+ actions, at most [\d.e+-]+ from the recorded ones\n", found.stdout)


def test_pt2_needs_torch_and_no_simulator(exported, tmp_path):
    _, out = exported("maml")
    found = without(("mujoco", "gymnasium", "stable_baselines3"), out / "control_loop.py")
    assert found.returncode == 0, found.stderr
    assert float(found.stdout.split()[4]) <= 1e-5


def test_the_loader_imports_numpy_alone(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import metarl.deployment, metarl.deployment_formats\n")
    found = without((*HEAVY, "onnxruntime"), script)
    assert found.returncode == 0, found.stderr


def test_the_control_loop_is_short():
    assert len(exporting.CONTROL_LOOP.strip().splitlines()) <= 22


@needs_onnx
def test_the_control_loop_of_the_readme_runs(exported, monkeypatch, tmp_path):
    fence = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    loops = [x for x in fence.findall((ROOT / "README.md").read_text()) if "deployment" in x]
    assert len(loops) == 1
    _, out = exported("rl2")
    trial = trial_of(out)
    (tmp_path / "exported").symlink_to(out)
    monkeypatch.chdir(tmp_path)

    class Robot:
        steps = itertools.count()

        def reset(self):
            return trial["obs"][0]

        def step(self, action):
            assert action.shape == (1,)
            t = next(self.steps)
            return trial["next_obs"][t], trial["reward"][t], t % 3 == 2, False

    robot = Robot()
    exec(compile(loops[0], "README.md", "exec"), {"robot": robot})
    assert next(robot.steps) == 6


# --- bad input on the robot --------------------------------------------------------------------


def refused(call, *words):
    """The sentence of a call that must refuse."""
    with pytest.raises(UsageError) as caught:
        call()
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_calls_in_a_wrong_order_are_refused(exported):
    _, out = exported("rl2")
    policy, obs = load(out / "policy.pt2"), np.zeros(2)
    refused(lambda: policy.act(obs), "act: call begin first")
    refused(lambda: policy.observe(obs, 0.0, False), "observe: call act first")
    policy.begin()
    refused(lambda: policy.observe(obs, 0.0, False), "observe: call act first")
    policy.act(obs)
    refused(lambda: policy.act(obs), "act: call observe first")
    policy.observe(obs, 0.0, False)
    policy.act(obs)
    policy.begin()
    policy.act(obs)


def test_a_policy_that_does_not_adapt_needs_not_be_told_anything(exported):
    _, out = exported("non-adaptive")
    policy = load(out / "policy.pt2")
    policy.begin()
    assert np.array_equal(policy.act(np.zeros(2)), policy.act(np.zeros(2)))


@pytest.mark.parametrize(
    ("obs", "words"),
    [
        (np.zeros(3), ["obs must have shape (2,), got (3,)"]),
        (np.zeros((1, 2)), ["(2,), got (1, 2)"]),
        (0.0, ["got ()"]),
        ([0.0, float("nan")], ["obs must be finite, but number 1 is nan"]),
        ([float("inf"), 0.0], ["number 0 is inf"]),
        ([1e300, 0.0], ["number 0 is inf"]),
        (["a", "b"], ["obs must be 2 numbers"]),
        (None, ["obs must"]),
        ([[1.0], [1.0, 2.0]], ["obs must be 2 numbers"]),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow")
def test_a_wrong_observation_is_refused(exported, obs, words):
    for path in files_of(exported("rl2")[1]):
        policy = load(path)
        policy.begin()
        refused(lambda policy=policy: policy.act(obs), *words)
        policy.act(np.zeros(2))
        refused(
            lambda policy=policy: policy.observe(obs, 0.0, False), words[0].replace("obs m", "m")
        )


def test_wrong_rewards_and_noise_are_refused(exported):
    policy = load(exported("pearl")[1] / "policy.pt2")
    policy.begin()
    refused(lambda: policy.act(np.zeros(2), np.zeros(2)), "noise must have shape (3,), got (2,)")
    policy.act(np.zeros(2), np.zeros(3))
    refused(lambda: policy.observe(np.zeros(2), float("nan"), False), "reward must be finite")
    refused(lambda: policy.observe(np.zeros(2), None, False), "reward must be")


def test_an_episode_that_goes_on_too_long_is_refused(exported):
    policy = load(exported("maml")[1] / "policy.pt2")
    policy.begin()
    for _ in range(5):
        policy.act(np.zeros(2))
        policy.observe(np.zeros(2), 0.0, False)
    policy.act(np.zeros(2))
    refused(lambda: policy.observe(np.zeros(2), 0.0, False), "at most 5 steps", "truncated")


def test_an_action_that_is_not_finite_is_refused(exported):
    policy = load(exported("rl2")[1] / "policy.pt2")
    policy._programs["act"] = lambda values: [np.full((1, 1), np.nan, np.float32), np.zeros((1, 6))]
    policy.begin()
    refused(lambda: policy.act(np.zeros(2)), "act: the policy's action is not finite")


# --- damaged and hostile files -----------------------------------------------------------------


@pytest.mark.parametrize("ending", [pytest.param("onnx", marks=needs_onnx), "pt2"])
def test_a_damaged_file_is_refused(exported, tmp_path, ending):
    content = (exported("rl2")[1] / f"policy.{ending}").read_bytes()
    path, size = tmp_path / f"policy.{ending}", len(content)
    wrong = [b"", b"no policy", content[: size // 2], content[:-1], content[1:], content * 2]
    for place in range(7, size, size // 40):
        flipped = bytearray(content)
        flipped[place] ^= 0x10
        wrong.append(bytes(flipped))
    survived = 0
    for broken in wrong:
        path.write_bytes(broken)
        try:
            policy = load(path)
        except UsageError as error:
            assert "\n" not in str(error)
            assert str(path) in str(error)
        else:
            # Padding between the parts of an archive means nothing.
            largest, _ = replay(policy, trial_of(exported("rl2")[1]))
            assert largest <= 1e-5
            survived += 1
    assert survived <= (len(wrong) // 3 if ending == "pt2" else 0)


def test_files_that_are_none_are_refused(tmp_path):
    refused(lambda: load(tmp_path / "policy.onnx"), "policy.onnx cannot be read")
    refused(lambda: load(tmp_path / "policy.pt"), "ends in .onnx or .pt2")
    refused(lambda: load(tmp_path), "ends in .onnx or .pt2")


@needs_onnx
def test_another_onnx_file_is_refused(exported, tmp_path):
    import onnx

    content = (exported("rl2")[1] / "policy.onnx").read_bytes()
    path = tmp_path / "policy.onnx"
    model = onnx.load_from_string(content)
    assert [entry.key for entry in model.metadata_props] == ["metarl", "metarl.sha256"]
    path.write_bytes(sealed(b"garbage"))
    refused(lambda: load(path), "cannot be run by onnxruntime")
    del model.metadata_props[:]
    path.write_bytes(model.SerializeToString())
    refused(lambda: load(path), "its checksum fails")
    path.write_bytes(sealed(model.SerializeToString()))
    refused(lambda: load(path), "is of format None, this metarl reads 1; export the run again")
    description = json.loads(onnx.load_from_string(content).metadata_props[0].value)
    for change, words in (
        ({"format": 2}, "is of format 2"),
        ({"obs_dim": "3"}, "its description is wrong (obs_dim is '3')"),
        ({"episodes": -1}, "episodes is -1"),
        ({"noise": "red"}, "noise is 'red'"),
        ({"low": 3}, "low is 3"),
        ({"more": 3}, "more"),
        ({"inputs": ["obs"]}, "its inputs are"),
    ):
        del model.metadata_props[:]
        model.metadata_props.add(key="metarl", value=json.dumps({**description, **change}))
        path.write_bytes(sealed(model.SerializeToString()))
        refused(lambda: load(path), words)


class Bomb:
    """Unpickling it writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


def rewritten(source, target, change):
    """A copy of an archive; `change(name, content)` gives the new content of a part, or None."""
    with zipfile.ZipFile(source) as archive, zipfile.ZipFile(target, "w") as copy:
        for entry in archive.infolist():
            content = archive.read(entry)
            name = entry.filename.partition("/")[2]
            new = change(name, content)
            copy.writestr(entry.filename, content if new is None else new)


def in_model(old, new):
    """Replace the first `old` in the program's graph."""

    def change(name, content):
        if name != "models/model.json":
            return None
        assert old in content
        return content.replace(old, new, 1)

    return change


def pickled_sample(path):
    def change(name, content):
        bomb = io.BytesIO()
        torch.save({"x": Bomb(path)}, bomb)
        return bomb.getvalue() if name == "data/sample_inputs/model.pt" else None

    return change


def pickled_weight(path):
    def change(name, content):
        bomb = io.BytesIO()
        torch.save(Bomb(path), bomb)
        if name == "data/weights/weight_0":
            return bomb.getvalue()
        if name == "data/weights/model_weights_config.json":
            return content.replace(b'"use_pickle": false', b'"use_pickle": true', 1)
        return None

    return change


NAME = b'"name": "reward"'


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (pickled_sample, ["sample_inputs/model.pt may hold a pickle"]),
        (pickled_weight, ["says that there is a pickle"]),
        (in_model(b"torch.ops.aten.cat.default", b"torch.os.system"), ["calls torch.os.system"]),
        (in_model(b"torch.ops.aten.cat.default", b"_operator.setitem"), ["calls _operator"]),
        (in_model(b"torch.ops.aten.cat.default", b"torch.ops.aten.from_file.default"), ["calls"]),
        (in_model(NAME, b'"name": "a, b=print(1)"'), ["holds the name 'a, b=print(1)'"]),
        (in_model(b'"range_constraints": {', b'"range_constraints": {"s0": {}'), ["range_con"]),
        (in_model(b'"as_int"', b'"as_expr"'), ["holds as_expr"]),
    ],
)
def test_a_file_that_would_execute_code_is_refused(exported, tmp_path, change, words):
    _, out = exported("rl2")
    bomb, target = tmp_path / "bomb", tmp_path / "policy.pt2"
    change = change(bomb) if change in (pickled_sample, pickled_weight) else change
    rewritten(out / "policy.pt2", target, change)
    refused(lambda: load(target), *words)
    assert not bomb.exists()


def test_torch_by_itself_would_have_executed_it(exported, tmp_path):
    """What the checks are for; should this fail one day, some of them may go."""
    _, out = exported("rl2")
    bomb, target = tmp_path / "bomb", tmp_path / "policy.pt2"
    rewritten(out / "policy.pt2", target, pickled_weight(bomb))
    with contextlib.suppress(Exception):
        torch.export.load(target)
    assert bomb.exists()
    assert pickle.loads(pickle.dumps(1)) == 1


@pytest.mark.parametrize("name", ["data/aotinductor/model/x.so", "data/weights/model.pt", "../x"])
def test_a_file_with_more_in_it_is_refused(exported, tmp_path, name):
    target = tmp_path / "policy.pt2"
    rewritten(exported("rl2")[1] / "policy.pt2", target, lambda *_: None)
    with zipfile.ZipFile(target, "a") as archive:
        root = archive.namelist()[0].partition("/")[0]
        archive.writestr(f"{root}/{name}", b"")
    refused(lambda: load(target), f"it holds {name}, which no exported policy does")


def test_a_file_without_description_or_program_is_refused(exported, tmp_path):
    target = tmp_path / "policy.pt2"
    for part in ("extra/metarl.json", "models/model.json", "data/weights/weight_0"):
        with (
            zipfile.ZipFile(exported("rl2")[1] / "policy.pt2") as archive,
            zipfile.ZipFile(target, "w") as copy,
        ):
            for entry in archive.infolist():
                if not entry.filename.endswith(part):
                    copy.writestr(entry.filename, archive.read(entry))
        refused(lambda: load(target), str(target))


# --- the folder and the command ----------------------------------------------------------------


def call(*words):
    """Exit code, standard output and standard error of a command."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(word) for word in words])
    return code, out.getvalue(), err.getvalue()


def trained(path, agent, family, *options):
    """The folder of a run of one iteration."""
    words = ["--total-steps", "1", "--threads", "1", "--evaluation-tasks", "2", *options]
    code, _, err = call("train", agent, family, "--run-dir", path, *words)
    assert code == 0, err
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of RL² on gridnavi."""
    tiny = ("--num-worlds", "4", "--hidden", "4", "--layers", "4", "--epochs", "1")
    return trained(tmp_path_factory.mktemp("runs") / "rl2", "rl2", "gridnavi", *tiny)


@pytest.fixture(scope="module")
def stepping(tmp_path_factory):
    """A run of MAML with two gradient steps."""
    tiny = "--num-worlds 4 --meta-batch 2 --rollouts 2 --inner-steps 2 --layers 4".split()
    family = "--family.horizon 6 --baseline none".split()
    path = tmp_path_factory.mktemp("runs") / "maml"
    return trained(path, "maml", "point-dense", *tiny, *family)


def test_the_command_exports_verifies_and_tells(run, tmp_path):
    code, out, err = call("export", run, tmp_path / "out", "--json")
    assert code == 0, err
    figures = json.loads(out.splitlines()[-1])
    wanted = {"onnx", "pt2"} if has_onnx() else {"pt2"}
    assert figures["formats"].keys() == wanted
    assert (figures["agent"], figures["family"], figures["steps"]) == ("rl2", "gridnavi", 60)
    for name, found in figures["formats"].items():
        assert found["difference"] <= 1e-5
        assert found["microseconds"] > 0
        assert found["bytes"] == (tmp_path / "out" / f"policy.{name}").stat().st_size
    assert "trained for 240 steps" in out
    assert "control_loop.py" in out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


def test_an_export_replaces_an_export(run, tmp_path):
    out = tmp_path / "deep" / "out"
    for formats in (("pt2",), ("pt2",)):
        code, _, err = call("export", run, out, "--formats", *formats, "--seed", 4)
        assert code == 0, err
        names = {p.name for p in out.iterdir()}
        assert names == {"policy.pt2", "trial.npz", "control_loop.py"}
        assert names <= FILES
    assert "policy.pt2" in (out / "control_loop.py").read_text()


def test_gradient_steps_leave_as_pt2_with_a_sentence(stepping, tmp_path):
    code, out, err = call("export", stepping, tmp_path / "out", "--json")
    assert code == 0, err
    assert "policy.onnx is not there: agents that take gradient steps" in out
    figures = json.loads(out.splitlines()[-1])
    assert figures["formats"].keys() == {"pt2"}
    assert figures["steps"] == 5 * 6  # two episodes before each of two steps, one after
    assert load(tmp_path / "out" / "policy.pt2").description.gradient_steps == 2


def test_a_trial_may_have_other_episodes(run, stepping, tmp_path):
    _, out, _ = call("export", run, tmp_path / "a", "--episodes", 1, "--formats", "pt2", "--json")
    assert json.loads(out.splitlines()[-1])["steps"] == 15
    run = open_for_export(stepping, episodes=3)
    assert exporting.deployable_of(run).gradient_steps == 1


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("", "RUN"),
        ("{run}", "OUT"),
        ("{tmp} {tmp}/out", "is not a run folder"),
        ("{tmp}/nowhere {tmp}/out", "nowhere is not a run folder"),
        ("{run} {run}", "is not an earlier export (it holds checkpoints); choose another folder"),
        ("{run} {tmp}/file", "file is not a folder; choose another"),
        ("{run} {tmp}/file/out", "cannot write"),
        ("{run} {tmp}/out --formats tflite", "tflite"),
        ("{run} {tmp}/out --format pt2", "unknown option --format, did you mean --formats?"),
        ("{run} {tmp}/out --seed -1", "--seed must be a whole number of at least 0, got -1"),
        ("{run} {tmp}/out --split new", "'new'"),
        ("{run} {tmp}/out --split out-of-range", "no split 'out-of-range'"),
        ("{run} {tmp}/out --episodes -2", "--episodes"),
        ("{stepping} {tmp}/out --formats onnx", "cannot be written as ONNX"),
        ("{stepping} {tmp}/out --formats pt2 onnx", "cannot be written as ONNX"),
        ("{stepping} {tmp}/out --episodes 2", "after 2 episodes; --episodes must be 0 or more"),
    ],
)
def test_bad_input_gets_one_sentence(run, stepping, tmp_path, words, sentence):
    (tmp_path / "file").write_text("")
    places = {"run": run, "stepping": stepping, "tmp": tmp_path}
    code, out, err = call("export", *words.format(**places).split())
    assert (code, out) == (2, "")
    assert err.startswith("metarl: ") and err.count("\n") == 1 and "Traceback" not in err
    assert sentence in err
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_agents_without_a_policy_are_refused(monkeypatch, tmp_path):
    agent = "sb3-ppo"
    run = untrained("sb3-ppo")
    object.__setattr__(run.agent, "config", replace(run.agent.config, from_scratch=True))
    refused(lambda: export(run, tmp_path / "o", (), split="train", seed=0), "learns from scratch")
    monkeypatch.setitem(AGENTS, agent, replace(AGENTS[agent], deployable=""))
    refused(
        lambda: export(run, tmp_path / "o", (), split="train", seed=0),
        "export: sb3-ppo cannot be exported; agents that can are rl2, pearl",
    )


def test_without_onnx_there_is_pt2_and_a_sentence(run, tmp_path, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        "metarl.experiments.export_files.find_spec",
        lambda name: None if name.startswith("onnx") else real(name),
    )
    code, out, err = call("export", run, tmp_path / "a")
    assert code == 0, err
    assert "policy.onnx is not there: ONNX is not installed: pip install 'metarl[onnx]'" in out
    assert not (tmp_path / "a" / "policy.onnx").exists()
    code, out, err = call("export", run, tmp_path / "b", "--formats", "onnx")
    assert (code, out) == (2, "")
    assert "pip install 'metarl[onnx]'" in err


@needs_onnx
def test_the_loader_says_what_it_needs(exported, monkeypatch):
    _, out = exported("rl2")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    refused(lambda: load(out / "policy.onnx"), "needs onnxruntime: pip install onnxruntime")
    monkeypatch.setitem(sys.modules, "torch.export.pt2_archive._package", None)
    refused(lambda: load(out / "policy.pt2"), "needs torch: pip install torch")


def test_a_file_that_acts_otherwise_is_not_written(tmp_path, monkeypatch):
    run, out = untrained("rl2"), tmp_path / "out"
    export(run, out, ("pt2",), split="train", seed=1)
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    recorded = exporting.record

    def wrong(*args):
        trial = recorded(*args)
        trial["action"][5] += 2e-5
        return trial

    monkeypatch.setattr(exporting, "record", wrong)
    with pytest.raises(TrainingError, match=r"from the trained policy's, more than 1e-05"):
        export(run, out, ("pt2",), split="train", seed=1)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_check_tells_how_far_apart_actions_are(exported, tmp_path):
    _, out = exported("rl2")
    trial = trial_of(out)
    trial["action"][3] += 4e-6
    found = check(out / "policy.pt2", trial)
    assert 3e-6 < found.difference < 5e-6


def test_a_kill_before_the_end_leaves_the_old_export(run, tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    for name in FILES:
        (out / name).write_text(name)

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(exporting, "check", killed)
    assert call("export", run, out, "--formats", "pt2", "--seed", 9)[0] == 130
    assert {p.name: p.read_text() for p in out.iterdir()} == {name: name for name in FILES}
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_an_export_survives_a_replacement_that_fails(tmp_path, monkeypatch):
    out = tmp_path / "out"
    for left_over in ("out.old.tmp", "out.new.tmp"):  # a kill between two renames left these
        (tmp_path / left_over).mkdir()
        (tmp_path / left_over / "x").write_text(left_over)
    rename, calls = Path.rename, []

    def failing(self, target):
        calls.append(self.name)
        if calls.count("out.new.tmp") == 1 and self.name == "out.new.tmp":
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)

    def attempt():
        with exporting.replaced(out) as folder:
            assert (out / "x").read_text() == "out.old.tmp"
            (folder / "x").write_text("new")

    refused(attempt, f"cannot write {out}: No space left on device")
    assert calls == ["out.old.tmp", "out", "out.new.tmp", "out.old.tmp"]
    assert (out / "x").read_text() == "out.old.tmp"
    attempt()
    assert (out / "x").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_robot_tries_one_episode_at_a_time(stepping):
    run = open_for_export(stepping)
    assert run.family.episodes == run.agent.spec.episodes == 5
    assert deployment.FORMAT == 1

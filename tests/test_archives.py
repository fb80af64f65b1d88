"""Models that Stable-Baselines3 saved: read without unpickling, refused in one sentence."""

import contextlib
import io
import json
import os
import pickle
import zipfile
from base64 import b64encode
from copy import deepcopy

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from torch import nn

from metarl.adapters import FamilyEnv, FamilyVecEnv
from metarl.agents.archives import read_archive
from metarl.envs.registry import make_family
from metarl.errors import UsageError
from metarl.experiments.cli import main
from metarl.oracle import TaskInObservation

POINT = make_family("point-dense")
GRID = make_family("gridnavi")
SMALL = {"net_arch": [8, 4]}
MODELS = {
    "ppo": (PPO, SMALL),
    "ppo-linear": (PPO, {"net_arch": []}),
    "ppo-elu": (PPO, {"net_arch": {"pi": [8], "vf": [4, 4]}, "activation_fn": nn.ELU}),
    "a2c": (A2C, SMALL),
    "sac": (SAC, SMALL),
    "sac-tanh": (
        SAC,
        {"net_arch": {"pi": [8], "qf": [4, 6]}, "activation_fn": nn.Tanh, "n_critics": 3},
    ),
    "td3": (TD3, SMALL),
    "ddpg": (DDPG, SMALL),
    "discrete": (PPO, SMALL),
}


def make(kind, env, settings=SMALL, **options):
    """A model with weights that are always the same; the library changes the settings it gets."""
    if kind in (SAC, TD3, DDPG, DQN):
        options["buffer_size"] = 1
    kwargs = deepcopy(settings)
    return kind("MlpPolicy", env, policy_kwargs=kwargs, seed=1, device="cpu", **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Archives of all kinds by the name of their model."""
    root = tmp_path_factory.mktemp("archives")
    for name, (kind, settings) in MODELS.items():
        env = FamilyEnv(GRID if name == "discrete" else POINT)
        make(kind, env, settings).save(root / f"{name}.zip")
    make(SAC, FamilyEnv(POINT), use_sde=True).save(root / "sde.zip")
    make(DQN, FamilyEnv(GRID)).save(root / "dqn.zip")
    return root


@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_a_model_acts_as_it_did_before_it_was_saved(folder, name, trust):
    family = GRID if name == "discrete" else POINT
    kind, settings = MODELS[name]
    model = make(kind, FamilyEnv(family), settings)
    archive = read_archive(folder / f"{name}.zip", trust=trust)
    obs = torch.randn(20, family.spec().obs_dim)
    policy = archive.policy_on(family.spec(), family.name, deterministic=True)
    expected, _ = model.predict(obs.numpy(), deterministic=True)
    assert len(np.unique(expected)) > 1 or name == "discrete"
    np.testing.assert_allclose(policy.act(obs).numpy(), expected, atol=1e-6)


def test_a_model_loads_with_trust_only_where_weights_do_not_tell_all(folder):
    with pytest.raises(UsageError, match=r"use_sde = True; --trust .* executes code"):
        read_archive(folder / "sde.zip")
    read_archive(folder / "sde.zip", trust=True).policy_on(POINT.spec(), "", deterministic=True)


class Pendulum(gym.Env):
    """Acts in other units than the family's."""

    observation_space = gym.spaces.Box(-1.0, 1.0, (17,), np.float32)

    def __init__(self, bound):
        self.action_space = gym.spaces.Box(-bound, bound, (6,), np.float32)


def test_actions_in_the_familys_own_units_pass_as_they_are(tmp_path):
    family = make_family("half-cheetah-vel", preset="promp")
    for bound in (10.0, 3.0):
        model = make(TD3, Pendulum(bound))
        model.save(tmp_path / "model.zip")
        archive = read_archive(tmp_path / "model.zip")
        if bound == 3.0:
            with pytest.raises(UsageError, match="the model acts in"):
                archive.policy_on(family.spec(), family.name, deterministic=True)
            continue
        policy = archive.policy_on(family.spec(), family.name, deterministic=True)
        obs = torch.randn(5, 17)
        expected, _ = model.predict(obs.numpy())
        np.testing.assert_allclose(policy.act(obs).numpy(), expected, atol=1e-5)


# --- attacks -----------------------------------------------------------------------------------


class Payload:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def changed(source, target, **entries):
    """A copy of the archive `source` with other entries; `data` is given as changes to it."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            raw = old.read(name)
            if name == "data" and "data" in entries:
                raw = json.dumps({**json.loads(raw), **entries["data"]}).encode()
            elif name.partition(".")[0] in entries:
                raw = entries[name.partition(".")[0]]
            if raw is not None:
                new.writestr(name, raw)
    return target


def test_code_in_an_archive_runs_with_trust_only(folder, tmp_path):
    mark = tmp_path / "executed"
    evil = {":type:": "dict", ":serialized:": b64encode(pickle.dumps(Payload(mark))).decode()}
    data = {"policy_kwargs": {**SMALL, **evil}, "lr_schedule": evil, "anything": evil}
    path = changed(folder / "sac.zip", tmp_path / "evil.zip", data=data)
    read_archive(path).policy_on(POINT.spec(), "", deterministic=True).act(torch.zeros(1, 2))
    assert not mark.exists()
    with contextlib.suppress(UsageError):
        read_archive(path, trust=True)
    assert mark.exists()  # the payload is real


@pytest.mark.parametrize("trust", [False, True])
def test_code_in_the_weights_never_runs(folder, tmp_path, trust):
    mark, file = tmp_path / "executed", io.BytesIO()
    torch.save({"actor.mu.0.weight": Payload(mark)}, file)
    path = changed(folder / "td3.zip", tmp_path / "evil.zip", policy=file.getvalue())
    with pytest.raises(UsageError, match="damaged or unsafe"):
        read_archive(path, trust=trust)
    assert not mark.exists()


def saved(weights):
    file = io.BytesIO()
    torch.save(weights, file)
    return file.getvalue()


def test_small_files_that_claim_to_be_large_are_refused(folder, tmp_path):
    bomb = tmp_path / "bomb.zip"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("policy.pth", bytes(10**7))
        file.writestr("data", "{}")
    wide = torch.zeros(1).expand(10**6, 10**6)
    huge = saved({"action_net.weight": wide})
    # Each layer is small, but they do not fit each other: between them would be one of 4 GB.
    thin = {"mlp_extractor.policy_net.0.weight": torch.zeros(30_000, 1)}
    thin |= {"mlp_extractor.policy_net.2.weight": torch.zeros(30_000, 1)}
    thin |= {"action_net.weight": torch.zeros(2, 30_000)}
    paths = [
        bomb,
        changed(folder / "ppo.zip", tmp_path / "huge.zip", policy=huge),
        changed(folder / "ppo.zip", tmp_path / "thin.zip", policy=saved(thin)),
    ]
    for path, reason in zip(paths, ("unsafe", "unsafe", "not an MlpPolicy"), strict=True):
        with pytest.raises(UsageError, match=reason):
            read_archive(path)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ({"policy_class": {"__module__": "own.policies"}}, "own.policies"),
        ({"policy_class": None}, "not one of the library's"),
        ({"policy_kwargs": {"activation_fn": "<class 'own.Sine'>"}}, "own.Sine"),
        ({"policy_kwargs": {"features_extractor_class": "x"}}, "features_extractor_class"),
        ({"policy_kwargs": "gAWV"}, "not readable"),
        ({"action_space": {":type:": "Box", "low": "?"}}, "spaces are not readable"),
        ({"observation_space": {":type:": "<spaces.discrete.Discrete'>"}}, "spaces are not"),
    ],
)
def test_what_the_notes_do_not_tell_needs_trust(folder, tmp_path, data, reason):
    path = changed(folder / "ppo.zip", tmp_path / "odd.zip", data=data)
    with pytest.raises(UsageError, match=reason) as caught:
        read_archive(path)
    assert "--trust" in str(caught.value)


@pytest.mark.parametrize("cut", [0.0, 0.3, 0.9])
def test_a_damaged_archive_is_refused(folder, tmp_path, cut):
    raw = (folder / "ppo.zip").read_bytes()
    path = tmp_path / "cut.zip"
    path.write_bytes(raw[: int(cut * len(raw))])
    with pytest.raises(UsageError):
        read_archive(path)


def test_weights_that_do_not_fit_are_refused(folder, tmp_path):
    with zipfile.ZipFile(folder / "sac.zip") as file:
        weights = torch.load(io.BytesIO(file.read("policy.pth")), weights_only=True)
    for change in ({"critic.qf0.0.weight": None}, {"critic.qf0.0.weight": torch.zeros(8, 9)}):
        kept = {k: x for k, x in {**weights, **change}.items() if x is not None}
        path = changed(folder / "sac.zip", tmp_path / "odd.zip", policy=saved(kept))
        with pytest.raises(UsageError, match="not an MlpPolicy"):
            read_archive(path)


# --- the command line --------------------------------------------------------------------------


def call(*words):
    """Exit code, output and errors of `metarl evaluate`."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(["evaluate", *map(str, words)])
    return code, out.getvalue(), err.getvalue()


def test_a_model_is_evaluated_like_a_run(folder):
    code, out, err = call(
        folder / "sac.zip", "point-dense", "--tasks", 3, "--family.horizon", 5, "--json"
    )
    assert code == 0, err
    figures = json.loads(out.splitlines()[-1])
    assert len(figures["mean"]) == 3 and figures["model"] == str(folder / "sac.zip")
    curve = folder / "sac-point-dense-held-out-3x3-seed0.json"
    assert json.loads(curve.read_text())["lengths"] == [[5.0] * 3] * 3
    assert curve.with_suffix(".png").is_file()


def test_a_model_that_was_told_the_task_says_so(tmp_path):
    told, path = TaskInObservation.of(POINT), tmp_path / "told.zip"
    make(PPO, FamilyVecEnv(told.make_worlds(2)), n_steps=4, batch_size=8).save(path)
    _, _, err = call(path, "point-dense", "--tasks", 2)
    assert "takes observations of 4 numbers, point-dense shows 2" in err
    assert "add --sees-task" in err
    assert call(path, "point-dense", "--tasks", 2, "--sees-task")[0] == 0


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["missing.zip", "point-dense"], "cannot read"),
        (["text.zip", "point-dense"], "not a zip archive"),
        (["other.zip", "point-dense"], "lacks policy.pth or data"),
        (["dqn.zip", "gridnavi"], "none of PPO, A2C, SAC, TD3 and DDPG"),
        (["dqn.zip", "gridnavi", "--trust"], "none of PPO, A2C, SAC, TD3 and DDPG"),
        (["sac.zip", "half-cheetah-vel"], "takes observations of 2 numbers"),
        (["sde.zip", "point-dense"], "only for files whose maker you trust"),
        (["sac.zip"], "name the family after the model"),
        (["sac.zip", "nowhere"], "unknown family"),
        (["sac.zip", "point-dense", "--split", "moon"], "split"),
        (["sac.zip", "point-dense", "--trusted"], "did you mean --trust?"),
    ],
)
def test_every_mistake_gets_one_sentence(folder, words, reason):
    (folder / "text.zip").write_text("no archive")
    with zipfile.ZipFile(folder / "other.zip", "w") as file:
        file.writestr("readme", "nothing")
    code, _, err = call(folder / words[0], *words[1:])
    assert code == 2
    assert reason in err and err.count("\n") == 1 and "Traceback" not in err

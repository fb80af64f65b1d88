"""Meta-World's reference protocol: what it measures, prints and keeps, and what it refuses."""

import json
import shutil
import sys
import warnings

import numpy as np
import pytest
import torch

from metarl.adaptation import AdaptationCurve, _reward_by_step, join
from metarl.agents.gradient_policy import GradientPolicy
from metarl.envs.metaworld import package
from metarl.envs.metaworld.families import FAMILIES as METAWORLD
from metarl.envs.metaworld.worlds import SawyerWorlds
from metarl.envs.registry import make_family
from metarl.errors import UsageError
from metarl.experiments import protocol
from metarl.experiments.cli import main
from metarl.experiments.evaluation import policy_of
from metarl.experiments.figures import Series
from metarl.experiments.loading import open_run
from metarl.experiments.metaworld import check_version
from metarl.experiments.protocol_figures import protocol_figure
from metarl.experiments.protocol_report import check_comparable
from metarl.experiments.records import RunRecord, compare
from metarl.policy import Step
from metarl.rollout import Rollout
from metarl.runs import RunFolder

HORIZON, WHOLE = 4, 5
TINY = ["--total-steps", "32", "--family.horizon", str(HORIZON), "--threads", "1"]
EVALUATE = ["--protocol", "metaworld", "--threads", "1"]


def call(capsys, *words):
    """Exit code, standard output and standard error of a command."""
    code = main([str(word) for word in words])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture(scope="module", autouse=True)
def short_episodes():
    """Episodes are judged over five steps instead of 500."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(protocol, "USUAL_HORIZON", WHOLE)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Runs of a few steps on reach."""
    root = tmp_path_factory.mktemp("runs")
    for seed in (1, 2):
        run = ["--run-dir", str(root / f"rl2-{seed}"), "--seed", str(seed)]
        small = ["--num-worlds", "4", "--minibatches", "1", "--chunk", "0"]
        assert main(["train", "rl2", "metaworld-ml1-reach", *TINY, *run, *small]) == 0
    run = ["--run-dir", str(root / "maml"), "--num-worlds", "3", "--meta-batch", "1"]
    small = ["--rollouts", "3", "--baseline", "none"]
    assert main(["train", "maml", "metaworld-ml1-reach", *TINY, *run, *small]) == 0
    assert (
        main(["train", "rl2", "bandit", "--total-steps", "10", "--run-dir", str(root / "b")]) == 0
    )
    return root


@pytest.fixture(scope="module")
def measured(folder):
    """Both seeds of RL², measured from the command line."""
    for seed in (1, 2):
        assert main(["evaluate", str(folder / f"rl2-{seed}"), *EVALUATE]) == 0
    return folder


@pytest.fixture
def early_success(monkeypatch):
    """Rewards above a bound count as successes: in five steps nothing else would."""
    advance = SawyerWorlds._advance

    def lucky(self, actions):
        reward, ended, info = advance(self, actions)
        return reward, ended, {**info, "success": (reward > 1.5).float()}

    monkeypatch.setattr(SawyerWorlds, "_advance", lucky)


# --- what is measured ----------------------------------------------------------------------------


def alone(run, task):
    """Success in each of 13 episodes of one goal, alone in one world, written down plainly."""
    env = run.family.make_worlds(1)
    env.set_tasks(task)
    policy = policy_of(run)
    policy.begin(1, 1)
    obs, _ = env.reset()
    episodes = []
    for _ in range(13):
        solved = False
        for _ in range(WHOLE):
            obs, reward, terminated, truncated, info = env.step(policy.act(obs))
            policy.observe(Step(info["final_obs"], reward, terminated, truncated))
            solved |= bool(info["success"])
        assert bool(truncated)
        episodes.append(float(solved))
    return episodes


def test_goals_are_tried_as_if_each_were_alone(folder, early_success, monkeypatch):
    curve = protocol.measure(folder / "rl2-1", seed=3)
    run = open_run(folder / "rl2-1", horizon=WHOLE)
    tasks = run.family.sample_tasks(40, "held-out", torch.Generator().manual_seed(3))
    assert len(tasks.vector.unique(dim=0)) == 40
    np.testing.assert_allclose(curve.tasks, tasks.features().tolist())
    assert [curve.success[i] for i in range(0, 40, 5)] == [
        alone(run, tasks[[i]]) for i in range(0, 40, 5)
    ]
    assert 0.0 < np.mean(curve.success) < 1.0
    result = protocol.result_of([curve])
    assert result.success.mean == pytest.approx(np.mean([row[10:] for row in curve.success]))
    assert [e.mean for e in result.episodes] == pytest.approx(np.mean(curve.success, 0).tolist())
    assert result.skills["reach"].success == result.success
    # Few goals at a time give what all of them give.
    monkeypatch.setattr(protocol, "AT_ONCE", 16)
    parts = protocol.measure(folder / "rl2-1", seed=3)
    assert parts.success == curve.success
    np.testing.assert_allclose(parts.step_reward, curve.step_reward, rtol=1e-5)


def test_the_tasks_of_training_can_be_asked_for(folder):
    run = folder / "rl2-1"
    held_out, train = (protocol.measure(run, split=split) for split in ("held-out", "train"))
    family = make_family("metaworld-ml1-reach")
    known = family.placement([("reach", v) for v in family.vectors("train")["reach"]])
    known = {tuple(row) for row in known.features().tolist()}
    assert {tuple(row) for row in train.tasks} <= known
    assert known.isdisjoint({tuple(row) for row in held_out.tasks})
    assert protocol.save(run, train).name == "protocol-metaworld-train-seed0.json"
    protocol.save(run, held_out)
    (comparison,) = compare([RunRecord.load(run)])
    assert comparison.published.split == "held-out"


def test_multi_task_benchmarks_are_tested_on_their_tasks_and_oracles_are_told(tmp_path):
    small = ["--num-worlds", "4", "--minibatches", "1", "--run-dir", str(tmp_path / "run")]
    assert main(["train", "oracle", "metaworld-mt1-reach", *TINY, *small]) == 0
    curve = protocol.measure(tmp_path / "run")
    assert curve.info["split"] == "train"
    train = make_family("metaworld-mt1-reach").vectors("train")["reach"]
    family = make_family("metaworld-mt1-reach")
    scaled = family.placement([("reach", vector) for vector in train]).features().tolist()
    assert len(curve.tasks) == 40
    assert all(task in scaled for task in curve.tasks)


def test_a_gradient_step_is_taken_after_ten_episodes_and_never_again(folder, monkeypatch):
    seen, steps = [], []
    adapt, observe = GradientPolicy._adapt, GradientPolicy.observe

    def spied_adapt(self, tasks):
        seen.append((len(tasks), steps[-1], self.finished.unique().tolist()))
        adapt(self, tasks)

    def spied_observe(self, step):
        steps.append(len(steps) + 1)
        observe(self, step)

    monkeypatch.setattr(GradientPolicy, "_adapt", spied_adapt)
    monkeypatch.setattr(GradientPolicy, "observe", spied_observe)
    assert open_run(folder / "maml").config.agent_config["rollouts"] == 3
    curve = protocol.measure(folder / "maml")
    assert seen == [(40, 10 * WHOLE, [10])]
    assert len(steps) == 13 * WHOLE
    # It has drawn its actions so far, and then takes the most likely: equal goals, equal episodes.
    counted = np.asarray(curve.returns)[:, 10:]
    np.testing.assert_allclose(counted, counted[:, :1].repeat(3, 1), rtol=1e-4)
    before = np.asarray(curve.returns)[:, :10]
    assert before.std(1).min() > 1e-3


# --- figures -------------------------------------------------------------------------------------


def made_up(success, skills, **info):
    """A curve of goals `[G, 13]` of `skills`."""
    success = np.asarray(success, dtype=np.float64)
    about = {"skills": list(skills), "seed": 0, **info}
    returns, tasks = (100.0 * success).tolist(), [[float(i)] for i in range(len(success))]
    return AdaptationCurve(
        returns, success.tolist(), success.tolist(), tasks, [0.0], [0.0], [0.0], about
    )


def test_the_last_three_episodes_count_and_skills_count_alike():
    success = np.zeros((80, 13))
    success[:40, 10:12] = 1.0
    success[40:, :10] = 1.0
    result = protocol.result_of([made_up(success, ["push"] * 40 + ["reach"] * 40)])
    assert result.skills["push"].success.mean == pytest.approx(2 / 3)
    assert result.skills["reach"].success.mean == 0.0
    assert result.success.mean == pytest.approx(1 / 3)
    # Goals are drawn again within skills, in which all went alike.
    assert result.success.low == pytest.approx(1 / 3)
    assert result.success.high == pytest.approx(1 / 3)
    assert result.returns.mean == pytest.approx(100 / 3)
    episodes = [e.mean for e in result.episodes]
    assert episodes == pytest.approx([0.5] * 12 + [0.0])


def test_intervals_are_of_the_right_width_and_shrink_with_seeds():
    rng = np.random.default_rng(0)
    curves = [
        made_up(np.repeat(rng.random((40, 1)) < 0.5, 13, axis=1), ["reach"] * 40) for _ in range(4)
    ]
    one, four = protocol.result_of(curves[:1]).success, protocol.result_of(curves).success
    # The bootstrap of a share is the binomial's: 1.96 standard deviations to each side.
    for found, goals in ((one, 40), (four, 160)):
        half = 1.96 * np.sqrt(found.mean * (1 - found.mean) / goals)
        assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.12)


def test_curves_of_parts_are_joined_to_that_of_the_whole():
    tasks, steps = 7, 6
    reward = torch.randn(steps, tasks, 1)
    flags = torch.ones(steps, tasks, 1, dtype=torch.bool)

    def curve(part):
        own = {name: reward[:, part] for name in Rollout.__dataclass_fields__}
        rollout = Rollout(**{**own, "active": flags[:, part]})
        by_step = (x.tolist() for x in _reward_by_step(rollout))
        rows = [[float(i)] for i in range(tasks)[part]]
        return AdaptationCurve(rows, rows, rows, rows, *by_step, {"seed": 1, "figures": {"a": 1}})

    whole = curve(slice(0, 7))
    joined = join([curve(slice(0, 4)), curve(slice(4, 5)), curve(slice(5, 7))])
    for name in ("returns", "lengths", "success", "tasks"):
        assert getattr(joined, name) == getattr(whole, name)
    for name in ("step_reward", "step_low", "step_high"):
        # Rewards are float32.
        np.testing.assert_allclose(getattr(joined, name), getattr(whole, name), atol=1e-6)
    assert joined.info == {"seed": 1}


@pytest.mark.parametrize("skills", [1, 5, 50])
def test_bars_name_every_skill_and_the_mean(skills):
    names = [f"skill-{i}" for i in range(skills)]
    success = np.repeat(np.linspace(0, 1, skills), 4)[:, None] * np.ones(13)
    curve = made_up(success, np.repeat(names, 4))
    figure = protocol_figure([Series("rl2", [curve]), Series("maml", [curve])], "a title")
    shown = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert shown == (["mean over skills", *names] if skills > 1 else names)
    lengths = [bar.get_width() for bar in figure.axes[0].patches]
    expected = np.linspace(0, 1, skills).tolist()
    assert lengths == pytest.approx((([0.5] if skills > 1 else []) + expected) * 2)
    assert len(figure.axes) == (1 if skills == 50 else 2)
    # A name keeps its place on the page: none is drawn over another.
    places = [figure.axes[0].transData.transform((0, y))[1] for y in (0, 1)]
    assert abs(places[1] - places[0]) / figure.dpi * 72 > 9


# --- the command ---------------------------------------------------------------------------------


def test_the_command_prints_and_keeps_what_a_figure_depends_on(folder, capsys):
    code, out, err = call(capsys, "evaluate", folder / "rl2-1", *EVALUATE, "--json")
    assert (code, err) == (0, "")
    said = json.loads(out.splitlines()[-1])
    versions = {"metaworld": package.version(), "mujoco": sys.modules["mujoco"].__version__}
    expected = {
        "versions": versions,
        "reward_version": "v2",
        "benchmark": "ml1-reach",
        "benchmark_seed": 1,
        "horizon": WHOLE,
        "trained_horizon": HORIZON,
        "steps": 32,
        "trained_seed": 1,
        "seed": 0,
        "goals": 40,
        "adaptation_episodes": 10,
        "evaluation_episodes": 3,
    }
    assert {name: said[name] for name in expected} == expected
    assert said["skills"].keys() == {"reach"}
    assert said["low"] <= said["success"] <= said["high"]
    assert {"success", "low", "high"} <= said["skills"]["reach"].keys()
    assert len(said["episodes"]) == 13
    for part in (
        *versions.values(),
        "rewards v2",
        "ml1-reach of seed 1",
        f"32 steps in episodes of {HORIZON}",
    ):
        assert part in out
    file = folder / "rl2-1" / "evaluation" / "protocol-metaworld-seed0.json"
    curve = AdaptationCurve.load(file)
    assert protocol.plain(curve) == {k: x for k, x in said.items() if k != "run"}
    assert file.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"


def test_usual_evaluations_say_it_too(folder, capsys):
    code, out, _ = call(capsys, "evaluate", folder / "rl2-2", "--tasks", 2, "--threads", 1)
    assert code == 0
    assert f"Meta-World {package.version()} on MuJoCo" in out


def test_reports_pool_seeds_by_skill(measured, tmp_path, capsys):
    runs = [measured / "rl2-1", measured / "rl2-2"]
    code, out, _ = call(capsys, "report", *runs, "--out", tmp_path / "r.html", "--json")
    assert code == 0
    (row,) = json.loads(out.splitlines()[-1])["agents"]
    curves = [
        AdaptationCurve.load(run / "evaluation" / "protocol-metaworld-seed0.json") for run in runs
    ]
    pooled = protocol.result_of(curves).plain()
    assert row["published"]["runs"] == 2
    assert {name: row["published"][name] for name in pooled} == json.loads(json.dumps(pooled))
    text = (tmp_path / "r.html").read_text()
    assert "Success by Meta-World&#x27;s protocol" in text
    assert f"Meta-World {package.version()} on MuJoCo" in text
    # What the protocol measured is all there is: nothing else was measured for the page.
    assert {p.name for p in (runs[1] / "evaluation").glob("protocol-*")} >= {
        "protocol-metaworld-seed0.json"
    }
    assert row["tasks"] == 40


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    ["--tasks 100", "--episodes=4", "--worlds-per-task 2", "--ablations"],
)
def test_what_the_protocol_decides_itself_cannot_be_asked_for(folder, capsys, options):
    words = options.split()
    code, _, err = call(capsys, "evaluate", folder / "rl2-1", *EVALUATE, *words)
    assert code == 2
    assert err.count("\n") == 1
    assert f"leave out {words[0].partition('=')[0]}, or the protocol" in err


def test_other_families_have_no_such_protocol(folder, capsys):
    code, _, err = call(capsys, "evaluate", folder / "b", *EVALUATE)
    assert code == 2
    assert err == (
        "metarl: --protocol metaworld is for runs on families of Meta-World, and "
        f"{folder / 'b'} was trained on bandit\n"
    )


@pytest.mark.parametrize("command", ["train rl2", "bench rollout", "evaluate model.zip"])
@pytest.mark.parametrize(
    ("name", "close"),
    [
        ("metaworld-ml1-pick-plac", "'metaworld-ml1-pick-place' or"),
        ("metaworld-mt1-faucet-opn", "'metaworld-mt1-faucet-open' or"),
        ("metaworld-ml7", "'metaworld-ml45' or 'metaworld-ml25' or 'metaworld-ml10'"),
    ],
)
def test_the_nearest_of_many_names_are_offered(capsys, command, name, close):
    code, _, err = call(capsys, *command.split(), name)
    assert code == 2
    assert f"unknown family {name!r}, did you mean {close}" in err
    assert err.endswith(
        "choose from metaworld-ml1-SKILL, metaworld-mt1-SKILL, metaworld-ml10, metaworld-ml25, "
        "metaworld-ml45, metaworld-mt10, metaworld-mt25, metaworld-mt50\n"
    )
    assert err.count("\n") == 1
    with pytest.raises(UsageError, match=f"unknown family {name!r}") as caught:
        make_family(name)
    assert close.replace("'", "") in str(caught.value)


def test_lists_of_families_name_single_skills_once(capsys):
    for words in (["families"], ["train", "--help"], ["bench", "--help"]):
        code, out, _ = call(capsys, *words)
        assert code == 0
        assert out.count("metaworld-ml1-") == 1
        assert "metaworld-ml1-SKILL" in out
    code, _, err = call(capsys, "train", "rl2", "half-cheetah")
    assert code == 2
    assert "gridnavi" in err
    assert err.count("metaworld-") == 8


@pytest.fixture
def fresh_package(monkeypatch):
    """The package is looked for again, and found as usual afterwards."""
    package.metaworld.cache_clear()
    yield monkeypatch
    monkeypatch.undo()
    package.metaworld.cache_clear()


def test_a_missing_package_is_named(folder, capsys, fresh_package):
    fresh_package.setitem(sys.modules, "metaworld", None)
    code, _, err = call(capsys, "evaluate", folder / "rl2-1", *EVALUATE)
    assert code == 2
    assert err.startswith("metarl: Meta-World cannot be imported")
    assert "pip install" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("installed", ["2.0.0", "3.1.1", "4.0"])
def test_an_unknown_version_is_named(folder, capsys, fresh_package, installed):
    fresh_package.setattr(package, "version", lambda: installed)
    code, _, err = call(capsys, "evaluate", folder / "rl2-1", *EVALUATE)
    assert code == 2
    assert err.startswith(f"metarl: Meta-World {installed} is installed, but")
    assert err.count("\n") == 1


@pytest.fixture
def copied(measured, tmp_path):
    """A copy of a measured run, to be spoilt."""
    return shutil.copytree(measured / "rl2-2", tmp_path / "copy")


def test_versions_of_the_package_are_kept_with_the_run(folder):
    kept = json.loads((folder / "rl2-1" / "versions.json").read_text())
    assert kept["metaworld"] == package.version()


@pytest.mark.parametrize("options", [EVALUATE, ["--tasks", "2"]])
def test_runs_of_another_version_are_refused(copied, capsys, options):
    kept = json.loads((copied / "versions.json").read_text())
    (copied / "versions.json").write_text(json.dumps({**kept, "metaworld": "2.0.0"}))
    code, _, err = call(capsys, "evaluate", copied, *options)
    assert code == 2
    assert f"run {copied} was trained on Meta-World 2.0.0, and {package.version()} is" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("kept", ['{"metaworld": "3.0.7"}', "{}", "[", '{"metaworld": "no"}', "1"])
def test_versions_that_agree_or_are_not_told_are_let_through(copied, kept):
    (copied / "versions.json").write_text(kept)
    check_version(RunFolder.open(copied), "3.0.0")


def test_older_rewards_are_warned_of(folder, monkeypatch):
    def older(run):
        found = real(run)
        return {**found, "metaworld": {**found["metaworld"], "reward_version": "v1"}}

    real = protocol.origin
    monkeypatch.setattr(protocol, "origin", older)
    with pytest.warns(protocol.VersionWarning, match="learned from rewards v1"):
        protocol.measure(folder / "rl2-1")
    monkeypatch.undo()
    with warnings.catch_warnings():
        warnings.simplefilter("error", protocol.VersionWarning)
        protocol.measure(folder / "rl2-1")


def test_a_run_is_not_evaluated_with_other_rewards_than_its_own(copied, capsys):
    config = (copied / "config.yaml").read_text()
    config = config.replace("reward_version: v2", "reward_version: v1")
    (copied / "config.yaml").write_text(config.replace("backend: batch", "backend: python"))
    code, _, err = call(capsys, "evaluate", copied, *EVALUATE)
    assert code == 2
    assert "is of another run: its config is" in err
    assert err.count("\n") == 1


def test_reports_refuse_runs_of_other_rewards(measured, copied, tmp_path, capsys):
    config = (copied / "config.yaml").read_text()
    (copied / "config.yaml").write_text(config.replace("reward_version: v2", "reward_version: v1"))
    code, _, err = call(capsys, "report", measured / "rl2-1", copied, "--out", tmp_path / "r.html")
    assert code == 2
    assert err == (
        "metarl: report: runs were trained on different rewards of Meta-World, v2 "
        f"({measured / 'rl2-1'}) and v1 ({copied}): report them apart\n"
    )
    check_comparable([RunRecord.load(copied)])


def test_reports_refuse_curves_of_other_versions(measured, copied, tmp_path, capsys):
    file = copied / "evaluation" / "protocol-metaworld-seed0.json"
    curve = json.loads(file.read_text())
    curve["info"]["metaworld"]["versions"]["metaworld"] = "2.9.9"
    file.write_text(json.dumps(curve))
    code, _, err = call(capsys, "report", measured / "rl2-1", copied, "--out", tmp_path / "r.html")
    assert code == 2
    assert "runs were measured on different versions of Meta-World" in err
    assert "2.9.9" in err
    assert err.count("\n") == 1


def test_families_keep_the_names_that_lists_shorten():
    assert sum(name.startswith("metaworld-ml1-") for name in METAWORLD) == 50

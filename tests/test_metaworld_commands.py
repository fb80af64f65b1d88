"""What compares Meta-World's worlds on the command line: the study, and the bench's peers."""

import dataclasses
import json

import pytest
import torch

from metarl.envs.metaworld.families import FAMILIES
from metarl.envs.metaworld.skills import skills
from metarl.errors import UsageError
from metarl.experiments import bench_metaworld, metaworld_study
from metarl.experiments.bench import bench_rollout
from metarl.experiments.cli import main

QUICK = {"num_worlds": 2, "windows": 2, "seconds": 0.01}


def test_study_of_skills(capsys):
    words = ["study", "metaworld", "--skills", "reach", "drawer-close", "--goals", "2"]
    assert main([*words, "--steps", "90", "--json"]) == 0
    *table, headline, line = capsys.readouterr().out.splitlines()
    assert headline == "2 of 2 skills agree to 1e-6; experts solve 100 %"
    assert [row.split()[0] for row in table] == ["skill", "reach", "drawer-close"]
    found = json.loads(line)
    assert found["agree"] == found["compared"] == 2 and found["goals"] == 2
    for kinds in found["skills"].values():
        assert kinds["expert"]["solved"] == kinds["expert"]["solved_package"] == 1.0
        assert all(kind["agrees"] and kind["success"] == 0 for kind in kinds.values())


@pytest.mark.parametrize(
    ("wrong", "part"),
    [
        (lambda reward, success: (reward + 1e-4, success), "reward"),
        (lambda reward, success: (reward, ~success), "success"),
        (lambda reward, success: (reward * float("nan"), success), "reward"),
    ],
)
def test_study_finds_what_differs(monkeypatch, wrong, part):
    reach = skills()["reach"]
    broken = dataclasses.replace(reach, reward=lambda scene: wrong(*reach.reward(scene)))
    monkeypatch.setitem(skills(), "reach", broken)
    found = {"reach": metaworld_study.study_skill("reach", 2, 5, 0)}
    for agreement in found["reach"].values():
        assert not agreement.agrees and getattr(agreement, part) > 9e-6
        assert agreement.observation == 0.0
    headline = metaworld_study.headline(metaworld_study.figures(found))
    assert headline.startswith("0 of 1 skills agree")
    assert ("in the package's own environments)" in headline) == (part == "success")


def test_random_actions_get_about():
    act = metaworld_study.wandering(torch.Generator().manual_seed(0))
    actions = torch.stack([act(torch.zeros(3, 39)) for _ in range(200)])
    assert actions.shape == (200, 3, 4) and actions.abs().max() == pytest.approx(1.3)
    drifts = actions.unflatten(0, (10, 20)).mean(1)
    assert drifts.std(0).min() > 0.3


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--skills", "reech"], "did you mean 'reach'"),
        (["--goals", "0"], "--goals must be at least 1, got 0"),
        (["--steps", "0"], "--steps must be at least 1, got 0"),
    ],
)
def test_study_refuses(words, sentence, capsys):
    assert main(["study", "metaworld", *words]) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("peer", ["metaworld", "gymnasium", "envpool"])
def test_bench_of_one_skill(peer):
    if peer == "envpool":
        pytest.importorskip("envpool")
    result = bench_rollout(FAMILIES["metaworld-ml1-reach"](), peer=peer, **QUICK)
    assert result["peer_value"] > 0 and result["ratio"] > 0
    assert result["peer_mode"].startswith(peer)


def test_what_gymnasium_is_asked_for():
    """Worlds of a benchmark share its goals evenly; the package knows no other way."""
    meta = FAMILIES["metaworld-ml10"]()
    asked = bench_metaworld._meta_learning(meta, 200)
    assert asked == {
        "id": "Meta-World/ML10-train",
        "meta_batch_size": 200,
        "total_tasks_per_cls": 40,
    }
    single = bench_metaworld._meta_learning(FAMILIES["metaworld-ml1-reach"](), 3)
    assert (single["env_name"], single["total_tasks_per_cls"]) == ("reach-v3", 48)
    for worlds in (15, 510):
        with pytest.raises(UsageError, match=f"a multiple of 10 up to 500, got {worlds}"):
            bench_metaworld._meta_learning(meta, worlds)
    multi = FAMILIES["metaworld-mt10"]()
    assert bench_metaworld._multi_task(multi, 10)["id"] == "Meta-World/MT10"
    with pytest.raises(UsageError, match="one world of each, not 20"):
        bench_metaworld._multi_task(multi, 20)


def test_peers_that_there_are_not():
    for name, peer, sentence in (
        ("metaworld-mt10", "envpool", "one skill"),
        ("metaworld-mt1-reach", "gymnasium", "choose --peer metaworld"),
        ("metaworld-mt1-reach", "bare", "needs physics of one model"),
    ):
        with pytest.raises(UsageError, match=sentence):
            bench_rollout(FAMILIES[name](), peer=peer, **QUICK)


def test_envpool_is_asked_for_every_skill():
    envpool = pytest.importorskip("envpool")
    families = [family for name, family in FAMILIES.items() if "-ml1-" in name]
    asked = {bench_metaworld.envpool_task(family())[0] for family in families}
    assert len(asked) == 50 and asked <= set(envpool.list_all_envs())
    _, options = bench_metaworld.envpool_task(FAMILIES["metaworld-mt1-reach"]())
    assert options == {"partially_observable": False}

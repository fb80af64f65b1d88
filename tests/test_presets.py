"""Presets name options that exist, with values that the configs take."""

import pytest

from metarl.envs.registry import FAMILIES, make_family
from metarl.experiments import robot_presets
from metarl.experiments.agents import AGENTS
from metarl.experiments.presets import preset
from metarl.training import TrainingConfig


@pytest.mark.parametrize("agent", AGENTS)
def test_every_preset_can_be_built(agent):
    for family in FAMILIES:
        options = preset(agent, family)
        AGENTS[agent].config_class()(**options["agent"])
        TrainingConfig(**{"total_steps": 1, "num_worlds": 1, **options["training"]})
        built = make_family(family, **options["family"])
        assert all(getattr(built, name) == value for name, value in options["family"].items())


def test_robots_with_presets_exist():
    assert set(robot_presets.SUITE) <= set(FAMILIES)


def test_memory_has_settings_of_its_own_where_robots_fall():
    rl2, plain = (preset(agent, "walker2d-rand-params") for agent in ("rl2", "non-adaptive"))
    assert rl2["agent"] != plain["agent"]
    assert rl2["training"]["total_steps"] == plain["training"]["total_steps"]
    assert preset("rl2", "ant-dir") == preset("non-adaptive", "ant-dir")

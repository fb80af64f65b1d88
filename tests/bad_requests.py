"""Requests that physics of any kind refuses in a sentence."""

import pytest
import torch

from metarl.errors import UsageError


def refuse_bad_requests(physics, smaller, damping):
    """Physics of half-cheetahs, and of fewer of them, with damping `[num_worlds, 9]`."""
    with pytest.raises(UsageError, match="no field named 'position'"):
        physics.field("position")
    with pytest.raises(UsageError, match="'weight'"):
        physics.randomise({"weight": damping})
    with pytest.raises(UsageError, match="shape"):
        physics.randomise({"dof_damping": damping[:2]})
    with pytest.raises(UsageError, match="finite"):
        physics.randomise({"dof_damping": damping * float("nan")})
    with pytest.raises(UsageError, match="above 0"):
        physics.randomise({"body_mass": torch.zeros(len(damping), 8)})
    with pytest.raises(UsageError, match="shape"):
        physics.load_state_dict(smaller.state_dict())

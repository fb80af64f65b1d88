"""What all tests share: one thread, fixed seeds, no screen."""

import os

# Before torch and matplotlib are imported, and inherited by the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import random

import hypothesis
import numpy as np
import pytest
import torch

torch.set_num_threads(1)
# Nothing here judges how long something takes: the machine may be busy with other work.
hypothesis.settings.register_profile(
    "metarl",
    deadline=None,
    derandomize=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("metarl")


@pytest.fixture(autouse=True)
def fixed_seeds():
    """Every test starts from the same random state, in whatever order the tests run."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)

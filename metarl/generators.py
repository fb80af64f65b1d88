"""The global generators of Python, NumPy and torch, saved and restored, and those of agents.

Agents and worlds draw from generators of their own; the global ones are for libraries that do not.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

_POLICY_SEED = 6_700_417_274_177
_STATE_BYTES = 5056, 16
"""of a generator of torch: on a CPU, and on a CUDA device"""


def seed_global_generators(seed: int) -> None:
    """Start all global generators from `seed`."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def global_generators() -> dict[str, Any]:
    """Return the state of all global generators as tensors and plain numbers."""
    version, numbers, gauss = random.getstate()
    numpy_state = dict(np.random.get_state(legacy=False))
    key, pos = numpy_state["state"]["key"], int(numpy_state["state"]["pos"])
    numpy_state["state"] = {"key": torch.from_numpy(key.copy()), "pos": pos}
    return {
        # A tensor is read and written much faster than hundreds of separate numbers.
        "python": [version, torch.tensor(numbers), gauss],
        "numpy": numpy_state,
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_global_generators(state: dict[str, Any]) -> None:
    """Bring all global generators into a state that `global_generators` returned."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers.tolist()), gauss))
    inner = state["numpy"]["state"]
    np.random.set_state({**state["numpy"], "state": {**inner, "key": inner["key"].numpy()}})
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        # It may have been saved where there are more GPUs.
        torch.cuda.set_rng_state_all(state["cuda"][: torch.cuda.device_count()])


@contextmanager
def untouched_global_generators() -> Iterator[None]:
    """Put the global generators back to where they were, afterwards."""
    state = global_generators()
    try:
        yield
    finally:
        set_global_generators(state)


class PrivateGenerators:
    """A state of the global generators of its own, for libraries that draw from those only."""

    def __init__(self, seed: int) -> None:
        """Start from `seed`."""
        with untouched_global_generators():
            seed_global_generators(seed)
            self.state = global_generators()

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Draw from these inside; the global generators are then back where they were."""
        with untouched_global_generators():
            set_global_generators(self.state)
            try:
                yield
            finally:
                self.state = global_generators()


def policy_generator(device: torch.device | str) -> torch.Generator:
    """What a policy draws from when it is judged: the same numbers each time.

    Its seed is one that nobody chooses for tasks. With an equal seed the numbers that make the
    tasks would be those that choose the actions, and a policy would seem to know its task.
    """
    return torch.Generator(device).manual_seed(_POLICY_SEED)


def restore_generator(generator: torch.Generator, state: torch.Tensor) -> None:
    """Bring `generator` into a state that `get_state` returned.

    Generators of CPUs and of GPUs are different algorithms. One of the other kind is started from
    what the bytes of the state give: its numbers are others, but always the same.
    """
    state = state.cpu()
    if len(state) == len(generator.get_state()) or len(state) not in _STATE_BYTES:
        generator.set_state(state)
        return
    digest = hashlib.sha256(bytes(state.tolist())).digest()
    generator.manual_seed(int.from_bytes(digest[:8], "little"))

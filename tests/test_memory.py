"""The recurrent memory, and what it is fed."""

from __future__ import annotations

import gymnasium as gym
import torch
from torch import Tensor

from metarl.memory import GRUMemory, feedback
from metarl.networks import action_head
from metarl.vector import box


def memory_of(inputs: int, hidden: int, dtype: torch.dtype = torch.float64) -> GRUMemory:
    torch.manual_seed(1)
    memory = GRUMemory.of(inputs, 5, hidden).to(dtype)
    with torch.no_grad():
        for p in memory.gru.parameters():
            p.mul_(3.0)  # far enough for gates to close
    return memory


def normal(*shape: int, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def test_one_step_after_the_other_is_the_same_as_all_together() -> None:
    memory = memory_of(5, 6)
    x, state = normal(7, 4, 5), memory.start(4)
    assert state.shape == (4, 6) and state.dtype == x.dtype and not state.any()
    states, last = memory(x, state)
    for t in range(7):
        one, state = memory(x[t : t + 1], state)
        assert one.shape == (1, 4, 6) and torch.equal(one[0], state)
        torch.testing.assert_close(state, states[t], rtol=1e-12, atol=1e-12)
    # And from the middle on.
    again, end = memory(x[3:], states[2])
    torch.testing.assert_close(again, states[3:], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(end, last, rtol=1e-12, atol=1e-12)


def test_what_an_action_brought() -> None:
    reward, done = torch.tensor([3.0, -1.0]), torch.tensor([False, True])
    numbers = action_head(box(-1.0, 1.0, 2), 4, 0.0)
    x = feedback(numbers, torch.tensor([[0.5, 0.25], [1.0, 2.0]]), reward, done)
    assert x.tolist() == [[0.5, 0.25, 3.0, 0.0], [1.0, 2.0, -1.0, 1.0]]
    choices = action_head(gym.spaces.Discrete(3), 4, 0.0)
    x = feedback(choices, torch.tensor([2, 0]), reward, done)
    assert x.tolist() == [[0, 0, 1, 3.0, 0.0], [1, 0, 0, -1.0, 1.0]]

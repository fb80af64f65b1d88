"""Returns, advantages and boundaries against a slow, obvious version that walks one world."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from metarl.returns import (
    discounted_returns,
    episode_boundaries,
    gae,
    running_returns,
    trial_boundaries,
)

GAMMA, LAM = 0.9, 0.8


def slow_episode_gae(
    reward: list[float],
    value: list[float],
    final_value: list[float],
    terminated: list[bool],
    truncated: list[bool],
) -> list[float]:
    """Sum discounted TD errors step by step until the episode of each start step ends."""
    advantages = []
    for start in range(len(reward)):
        total, weight = 0.0, 1.0
        for t in range(start, len(reward)):
            follows = 0.0 if terminated[t] else final_value[t]
            total += weight * (reward[t] + GAMMA * follows - value[t])
            weight *= GAMMA * LAM
            if terminated[t] or truncated[t]:
                break
        advantages.append(total)
    return advantages


def random_case(seed: int, steps: int = 40, worlds: int = 5) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    draw = lambda: torch.randn(steps, worlds, generator=g, dtype=torch.float64)  # noqa: E731
    terminated = torch.rand(steps, worlds, generator=g) < 0.1
    truncated = (torch.rand(steps, worlds, generator=g) < 0.1) & ~terminated
    return {
        "reward": draw(),
        "value": draw(),
        "final_value": draw(),
        "terminated": terminated,
        "truncated": truncated,
    }


@pytest.mark.parametrize("seed", range(5))
def test_gae_of_single_episodes_equals_the_sum_of_td_errors(seed: int) -> None:
    case = random_case(seed)
    next_value, carry = episode_boundaries(
        case["final_value"], case["terminated"], case["truncated"]
    )
    # Within an episode the value of the next observation is the next step's value.
    ends = case["terminated"] | case["truncated"]
    inner = torch.cat([case["value"][1:], case["final_value"][-1:]])
    final_value = torch.where(ends, case["final_value"], inner)
    next_value = torch.where(carry, inner, next_value)
    valid = torch.ones_like(ends)
    fast = gae(case["reward"], case["value"], next_value, carry, valid, GAMMA, LAM)
    for world in range(fast.shape[1]):
        column = {name: x[:, world].tolist() for name, x in case.items()}
        column["final_value"] = final_value[:, world].tolist()
        assert fast[:, world].tolist() == pytest.approx(slow_episode_gae(**column), abs=1e-12)


def test_a_time_limit_is_bootstrapped_and_a_true_end_is_not() -> None:
    # One step each: A = r + gamma V(final) - V = 1 + 0.9 * 10 - 2 = 8; a true end gives 1 - 2 = -1.
    final_value, flags = torch.full((1, 2), 10.0), torch.tensor([[True, False]])
    next_value, carry = episode_boundaries(final_value, flags, ~flags)
    value, reward = torch.full((1, 2), 2.0), torch.ones(1, 2)
    advantage = gae(reward, value, next_value, carry, torch.ones(1, 2, dtype=torch.bool), 0.9, 1.0)
    assert advantage[0].tolist() == pytest.approx([-1.0, 8.0])


def test_trial_advantages_run_across_episodes_and_end_with_the_trial() -> None:
    case = random_case(7)
    steps = len(case["reward"])
    last = torch.tensor([10, 20, 30, 39, 40])  # number of active steps of each world
    active = torch.arange(steps).unsqueeze(1) < last
    next_value, carry = trial_boundaries(case["value"], active)
    fast = gae(case["reward"], case["value"], next_value, carry, active, GAMMA, LAM)
    for world, n in enumerate(last.tolist()):
        reward, value = case["reward"][:n, world].tolist(), case["value"][:n, world].tolist()
        ends = [False] * (n - 1) + [True]
        slow = slow_episode_gae(reward, value, [*value[1:], 0.0], ends, [False] * n)
        assert fast[:n, world].tolist() == pytest.approx(slow, abs=1e-12)
        assert not fast[n:, world].any()


def test_nothing_flows_through_an_invalid_step() -> None:
    case = random_case(3)
    valid = torch.ones_like(case["terminated"])
    valid[20] = False
    active = torch.ones_like(valid)
    next_value, carry = trial_boundaries(case["value"], active)
    before = gae(case["reward"], case["value"], next_value, carry, valid, GAMMA, LAM)
    case["reward"][20] = 1e9
    after = gae(case["reward"], case["value"], next_value, carry, valid, GAMMA, LAM)
    assert torch.equal(before, after)
    assert not before[20].any()


def test_returns_equal_their_definitions() -> None:
    reward = torch.tensor([[1.0], [2.0], [3.0]])
    carry = torch.tensor([[True], [False], [True]])
    # G_2 = 3, G_1 = 2 (stops), G_0 = 1 + 0.5 * 2
    assert discounted_returns(reward, carry, 0.5).squeeze(1).tolist() == [2.0, 2.0, 3.0]
    # R_0 = 1, R_1 = 0.5 + 2, R_2 = 1.25 + 3
    assert running_returns(reward, 0.5).squeeze(1).tolist() == [1.0, 2.5, 4.25]

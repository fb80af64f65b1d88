"""Ways to explore that need no training."""

from __future__ import annotations

import torch
from torch import Tensor

from metarl.policy import Step


class RepeatedActions:
    """One random action for a whole episode, and then another.

    Independent actions at every step mostly undo each other; repeated ones lead far from where
    episodes start, in all directions.
    """

    def __init__(self, low: Tensor, high: Tensor, generator: torch.Generator) -> None:
        """Draw actions uniformly between `low` and `high` `[A]`, on the generator's device."""
        self.low, self.high, self.generator = low, high, generator

    def _draw(self, worlds: int) -> Tensor:
        device = self.generator.device
        u = torch.rand(worlds, len(self.low), generator=self.generator, device=device)
        return self.low + (self.high - self.low) * u

    def begin(self, num_tasks: int, worlds_per_task: int) -> None:
        """Draw an action for every world."""
        self.action = self._draw(num_tasks * worlds_per_task)

    def act(self, obs: Tensor) -> Tensor:
        """The same actions `[B, A]` again."""
        return self.action

    def observe(self, step: Step) -> None:
        """Draw another action where an episode ended."""
        done = (step.terminated | step.truncated).unsqueeze(-1)
        self.action = torch.where(done, self._draw(len(done)), self.action)

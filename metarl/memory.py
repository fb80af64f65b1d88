"""The recurrent memory of agents that learn within a trial, and what it is fed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from metarl.acceleration import unmixed
from metarl.networks import CategoricalHead, GaussianHead, mlp


class GRUMemory(nn.Module):
    """A GRU over embedded inputs: of RL², of VariBAD's encoder and of PEARL's recurrent one.

    `L` steps, `C` sequences, `X` numbers of an input, `H` of a state.
    """

    def __init__(self, embed: nn.Module, width: int, hidden: int) -> None:
        """Remember in `hidden` numbers what `embed` makes of inputs, `[..., X] -> [..., width]`."""
        super().__init__()
        self.embed, self.gru = embed, nn.GRU(width, hidden)

    @classmethod
    def of(cls, inputs: int, width: int, hidden: int) -> GRUMemory:
        """A memory of inputs with `inputs` numbers, embedded by one layer."""
        return cls(mlp([inputs, width], nn.ReLU), width, hidden)

    @property
    def hidden(self) -> int:
        """H."""
        return self.gru.hidden_size

    def start(self, sequences: int) -> Tensor:
        """Nothing seen: the state `[sequences, H]` is zero."""
        return next(self.gru.parameters()).new_zeros(sequences, self.hidden)

    def forward(self, x: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """States `[L, C, H]` after each input `x` `[L, C, X]`, from `[C, H]`, and the last one."""
        if len(x) == 0:
            return hidden.new_zeros(0, *hidden.shape), hidden
        with unmixed(x.device):
            states, last = self.gru(self.embed(x), hidden.unsqueeze(0))
        return states, last.squeeze(0)


class Carry:
    """What of a memory outlasts an episode: its state after as many steps as those of training.

    In episodes that go on for longer, a memory sees what it has never seen, drifts, and would spoil
    the episodes that follow. In those of training nothing changes.
    """

    def __init__(self, horizon: int, hidden: Tensor) -> None:
        """Begin with states `hidden` `[B, H]`; training had episodes of `horizon` steps."""
        self.horizon, self.kept = horizon, hidden
        self.elapsed = torch.zeros(len(hidden), 1, dtype=torch.int64, device=hidden.device)

    def over(self, hidden: Tensor, done: Tensor) -> Tensor:
        """The states `[B, H]` to go on with, after a step that ended episodes where `done`."""
        self.elapsed += 1
        self.kept = torch.where(self.elapsed <= self.horizon, hidden, self.kept)
        ended = done.unsqueeze(-1)
        self.elapsed = self.elapsed.masked_fill(ended, 0)
        return torch.where(ended, self.kept, hidden)


def feedback(
    head: GaussianHead | CategoricalHead, action: Tensor, reward: Tensor, done: Tensor
) -> Tensor:
    """What an action brought, as inputs of a memory: [a, r, d], `[..., A + 2]`."""
    return torch.cat([head.encode(action), torch.stack([reward, done.float()], -1)], -1)

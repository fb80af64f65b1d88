"""The meta-gradient as one compiled function.

`torch.compile` makes one graph of the inner loop, the loss for the query points and the gradient of
all of it. What it makes is not always right: with convolutions and batch norm in float32 it was
seen to be off by several per cent (torch 2.13). So its gradient is held against the eager one on
the first batch, and the eager one is used from then on where they differ.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value

from metarl.errors import UsageError
from metarl.fewshot.episodes import Episodes, Points
from metarl.layers import Params

TOLERANCE = 1e-3
"""largest distance between the compiled and the eager gradient, relative to the latter's norm"""

EpisodeLoss = Callable[[Episodes], Tensor]
"""episodes to one loss for each task, `[B]`"""


class CompileWarning(UserWarning):
    """The compiled gradient is wrong and not used."""


class CompiledGradient:
    """The gradient of a mean loss over tasks, compiled for the shapes of the first batch."""

    def __init__(self, network: nn.Module, loss: EpisodeLoss) -> None:
        """Compile `loss` of the parameters of `network` when it is first used.

        It must be pure: no random numbers, no buffers that change, no annealing.
        """
        self.loss = loss
        self._holder = _Holder(network, loss)
        # The same objects as long as the network lives; walking through it takes its time.
        self._params = dict(self._holder.named_parameters())
        self._values = {name: p.detach() for name, p in self._params.items()}
        self._function: Callable[..., tuple[Params, Tensor]] | None = torch.compile(
            # A C++ wrapper calls these many small kernels without Python in between.
            grad_and_value(self._pure),
            fullgraph=True,
            options={"cpp_wrapper": True},
        )
        self._checked = False

    def _pure(self, params: Params, *tensors: Tensor) -> Tensor:
        """The mean loss as a function of the parameters."""
        value: Tensor = functional_call(self._holder, params, tensors)
        return value

    def backward(self, episodes: Episodes) -> Tensor:
        """Put the gradient into the parameters, and return the mean loss.

        Raises:
            UsageError: if the loss cannot be compiled here.
        """
        from torch._dynamo.exc import TorchDynamoException  # takes seconds to import

        if self._function is None:
            return self._eager(episodes)
        support, query = episodes.support, episodes.query
        points = support.x, support.y, query.x, query.y
        try:
            grads, loss = self._function(self._values, *points)
        except (TorchDynamoException, RuntimeError) as error:
            if self._checked:  # it was compiled and has run
                raise
            reason = str(error).strip().partition("\n")[0]
            raise UsageError(
                f"this learner cannot be compiled here, train without compile: {reason}"
            ) from error
        if not self._checked:
            self._checked = True
            loss_eager = self._eager(episodes)
            if not self._agrees(grads):
                self._function = None
                return loss_eager
        for name, parameter in self._params.items():
            parameter.grad = grads[name]
        return loss

    def _eager(self, episodes: Episodes) -> Tensor:
        loss = self.loss(episodes).mean()
        loss.backward()
        return loss.detach()

    def _agrees(self, grads: Params) -> bool:
        """Whether `grads` are close to the eager gradient, which the parameters hold."""
        pairs = [(grads[n], p.grad) for n, p in self._params.items() if p.grad is not None]
        apart = torch.cat([(a - b).flatten() for a, b in pairs]).norm()
        size = torch.cat([b.flatten() for _, b in pairs]).norm()
        error = float(apart / size.clamp_min(1e-30))
        if error <= TOLERANCE:
            return True
        warnings.warn(
            f"the compiled gradient differs from the eager one by {error:.1e} of its norm "
            f"(allowed: {TOLERANCE:.0e}); training goes on without compiling",
            CompileWarning,
            stacklevel=4,
        )
        return False


class _Holder(nn.Module):
    """Makes a loss of `network` a module, so that `functional_call` can exchange the weights."""

    def __init__(self, network: nn.Module, loss: EpisodeLoss) -> None:
        super().__init__()
        self.network, self._loss = network, loss

    def forward(self, *tensors: Tensor) -> Tensor:
        x, y, query_x, query_y = tensors
        return self._loss(Episodes(Points(x, y), Points(query_x, query_y))).mean()

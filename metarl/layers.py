"""Layers that take one set of weights for all tasks, or one for each task.

Inputs are `[B, M, ...]`: B tasks with M inputs each. A parameter of a layer may be replaced, by
`torch.func.functional_call`, by one with a leading dimension B: then every task is computed with
its own weights, all of them in one call. There is no `vmap` inside, which is slower here and whose
second derivatives through batch, layer and instance norm are wrong (pytorch/functorch#534).
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap

Params = dict[str, Tensor]
"""parameters by name; `[B, ...]` where every task has its own"""


def per_task(parameter: Tensor, dims: int) -> bool:
    """Whether `parameter`, of `dims` dimensions in the layer, has one more for the tasks."""
    return parameter.dim() == dims + 1


def _over_features(parameter: Tensor, x: Tensor) -> Tensor:
    """View a parameter `[C]` or `[B, C]` so that it broadcasts over `x` `[B, M, C, ...]`."""
    trailing = (1,) * (x.dim() - 3)
    if per_task(parameter, 1):
        return parameter.view(parameter.shape[0], 1, -1, *trailing)
    return parameter.view(-1, *trailing)


class Linear(nn.Linear):
    """`x` `[B, M, I]` to `[B, M, O]`; the weight is `[O, I]`, or `[B, O, I]` with bias `[B, O]`."""

    def forward(self, input: Tensor) -> Tensor:
        """Multiply, in one batched product where every task has its own weight."""
        if not per_task(self.weight, 2):
            if self.bias is not None and per_task(self.bias, 1):
                return F.linear(input, self.weight) + self.bias.unsqueeze(1)
            return F.linear(input, self.weight, self.bias)
        weight = self.weight.transpose(1, 2)
        if self.bias is None:
            return torch.bmm(input, weight)
        bias = self.bias if per_task(self.bias, 1) else self.bias.expand(len(weight), -1)
        return torch.baddbmm(bias.unsqueeze(1), input, weight)


class _NarrowProduct(torch.autograd.Function):
    """x wᵀ + b, with gᵀ x for the gradient of w where autograd by itself would take (xᵀ g)ᵀ."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.baddbmm(bias.unsqueeze(1), x, weight.mT)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x, weight), (for_x, for_weight, for_bias) = ctx.saved_tensors, ctx.needs_input_grad
        return (
            torch.bmm(grad, weight) if for_x else None,
            torch.bmm(grad.mT, x) if for_weight else None,
            grad.sum(1) if for_bias else None,
        )


class NarrowLinear(Linear):
    """The same for many inputs M and few outputs O: its gradients are several times as fast."""

    def forward(self, input: Tensor) -> Tensor:
        """Multiply; the order of the factors matters only where tasks have their own weights."""
        own = per_task(self.weight, 2) and per_task(self.bias, 1)
        # What torch compiles of a function with its own gradient has wrong second derivatives.
        if not own or torch.compiler.is_compiling():
            return super().forward(input)
        y: Tensor = _NarrowProduct.apply(input, self.weight, self.bias)  # type: ignore[no-untyped-call]
        return y


class _Tanh(torch.autograd.Function):
    """2 σ(2x) - 1; torch knows how to differentiate its derivative."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.mul(2.0).sigmoid_().mul_(2.0).sub_(1.0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        slope: Tensor = torch.ops.aten.tanh_backward(grad, y)
        return slope


def tanh(x: Tensor) -> Tensor:
    """Hyperbolic tangent of any shape, to within the rounding of 1: 2e-7 for float32.

    On a CPU it is 2 σ(2x) - 1. Torch's own comes from MKL, which was four times as slow on an AMD
    processor: a sixth of all the time that small policies took to learn.
    """
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return x.tanh()
    y: Tensor = _Tanh.apply(x)  # type: ignore[no-untyped-call]
    return y


class Conv2d(nn.Module):
    """`x` `[B, M, I, H, W]` to `[B, M, O, H', W']`; weight `[O, I, k, k]` or `[B, O, I, k, k]`."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> None:
        """Pad so that a stride of 1 keeps height and width."""
        super().__init__()
        plain = nn.Conv2d(inputs, outputs, kernel)
        self.weight, self.bias = plain.weight, nn.Parameter(torch.zeros(outputs))
        self.stride, self.padding = stride, kernel // 2

    def forward(self, x: Tensor) -> Tensor:
        """Convolve; weights of their own make one convolution with a group for each task."""
        tasks, m = x.shape[:2]
        weight: Tensor = self.weight
        bias: Tensor = self.bias
        how = self.stride, self.padding
        if not per_task(weight, 4):
            own = per_task(bias, 1)
            rows = F.conv2d(x.flatten(0, 1), weight, None if own else bias, *how)
            y = rows.view(tasks, m, *rows.shape[1:])
            return y + _over_features(bias, y) if own else y
        bias = bias if per_task(bias, 1) else bias.expand(tasks, -1)
        grouped = x.transpose(0, 1).flatten(1, 2)
        y = F.conv2d(grouped, weight.flatten(0, 1), bias.reshape(-1), *how, groups=tasks)
        return y.view(m, tasks, -1, *y.shape[2:]).transpose(0, 1)


class _Affine(nn.Module):
    """A normalisation with a learned scale and shift of each feature."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(features))
        self.bias = nn.Parameter(torch.zeros(features))

    def affine(self, x: Tensor) -> Tensor:
        """Scale and shift the normalised `x`."""
        return x * _over_features(self.weight, x) + _over_features(self.bias, x)


class BatchNorm(_Affine):
    """Normalise each feature over the inputs of a task, `[B, M, C, ...]` (transductive).

    The statistics are those of the M inputs that are passed together, in training as in use, and
    never mix tasks: what MAML's published code does.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise over M and, for images, over the plane."""
        tasks, _, features = x.shape[:3]
        rows = x.transpose(0, 1).flatten(1, 2)
        if rows.shape[0] * rows[0, 0].numel() == 1:
            raise ValueError("batch norm needs more than one input for each task")
        # Scale and shift within the norm: apart they would be two more passes over the features,
        # and several more in the second derivative.
        weight, bias = (
            p.flatten() if per_task(p, 1) else p.repeat(tasks) for p in (self.weight, self.bias)
        )
        flat = F.batch_norm(rows, None, None, weight, bias, training=True)
        y: Tensor = flat.unflatten(1, (tasks, features))
        return y.transpose(0, 1)


class RunningBatchNorm(_Affine):
    """Batch norm over all inputs of all tasks, with running statistics in use.

    It is for networks that all tasks share, such as embeddings: what one input becomes then does
    not depend on which others it is judged with.
    """

    mean: Tensor
    var: Tensor

    def __init__(self, features: int, momentum: float = 0.1) -> None:
        """Start from mean 0 and variance 1."""
        super().__init__(features)
        self.momentum = momentum
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("var", torch.ones(features))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `[B, M, C, ...]`; `train()` and `eval()` choose the statistics."""
        rows = x.flatten(0, 1)
        y = F.batch_norm(rows, self.mean, self.var, training=self.training, momentum=self.momentum)
        return self.affine(y.view_as(x))


class LayerNorm(_Affine):
    """Normalise each input over its features, and over the plane for images."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `[B, M, C, ...]`."""
        return self.affine(F.layer_norm(x, x.shape[2:]))


class InstanceNorm(_Affine):
    """Normalise each feature of each image over its plane."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `[B, M, C, H, W]`."""
        return self.affine(F.layer_norm(x, x.shape[3:]))


class GroupNorm(_Affine):
    """Normalise groups of features of each input."""

    def __init__(self, features: int, groups: int = 8) -> None:
        """`groups` is lowered to the next divisor of `features`."""
        super().__init__(features)
        self.groups = next(g for g in range(min(groups, features), 0, -1) if features % g == 0)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `[B, M, C, ...]`."""
        return self.affine(F.group_norm(x.flatten(0, 1), self.groups).view_as(x))


Norm = Literal["batch", "running", "layer", "group", "instance", "none"]

NORMS: dict[Norm, type[nn.Module]] = {
    "batch": BatchNorm,
    "running": RunningBatchNorm,
    "layer": LayerNorm,
    "group": GroupNorm,
    "instance": InstanceNorm,
}
"""The normalisations by the name that a config gives them."""


class PerTask(nn.Module):
    """Any module of torch, called with the weights of each task, by `vmap`.

    Slower than the layers above. Modules that hold batch, layer or instance norm are refused: their
    second derivatives under `vmap` are wrong.
    """

    def __init__(self, module: nn.Module) -> None:
        """Wrap `module`, which maps `[M, ...]` to `[M, ...]`.

        Raises:
            TypeError: if the module holds a normalisation that `vmap` cannot differentiate twice.
        """
        super().__init__()
        wrong = (nn.modules.batchnorm._NormBase, nn.LayerNorm)
        for name, layer in module.named_modules():
            if isinstance(layer, wrong):
                raise TypeError(
                    f"{name or 'the module'} is a {type(layer).__name__}, whose second derivatives "
                    "under vmap are wrong; use the layer of metarl.layers instead"
                )
        self.module = module
        self._dims = {name: p.dim() for name, p in module.named_parameters()}

    def forward(self, x: Tensor) -> Tensor:
        """Call the module on `x` `[B, M, ...]`, each task with its own weights if it has some."""
        params: Params = dict(self.module.named_parameters())
        own = {n: 0 if per_task(p, self._dims[n]) else None for n, p in params.items()}

        def one(weights: Params, inputs: Tensor) -> Tensor:
            y: Tensor = functional_call(self.module, weights, (inputs,))
            return y

        y: Tensor = vmap(one, in_dims=(own, 0))(params, x)
        return y

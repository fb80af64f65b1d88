"""Arithmetic of training: compiled or not, with how many bits, and in the same order every time.

`Acceleration` is put in force around an iteration of training, like torch's own autocast, and two
decorators say what of an agent it reaches: the functions it acts by and those it learns by. Where
nothing is asked for, and outside training, they are called as they are.

What is compiled must be a pure function of its arguments: parameters, tensors, configs, but neither
generators nor anything that changes. On a CUDA device it is replayed as a CUDA graph. What torch
compiles is not always right, so it is held against the eager function when it is first used.

In bfloat16 products of matrices are taken while learning, and nothing else: actions, memories,
losses, returns, parameters and their optimiser keep 32 bits.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import wraps
from typing import Any, Literal, TypeVar, TypeVarTuple, cast

import torch
from torch import Tensor, nn

from metarl.errors import UsageError

Ts = TypeVarTuple("Ts")
R = TypeVar("R")

Precision = Literal["float32", "tf32", "bfloat16"]

TOLERANCE = 1e-3
"""largest distance of what is compiled from what is exact, relative to the latter's norm; twice the
distance of what is not compiled is allowed beside it, which in float32 is none"""
CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
ORDERED = ":4096:8", ":16:8"
"""values of that variable with which cuBLAS gives the same bits every time"""


class Acceleration:
    """How an agent's functions are computed while it trains."""

    def __init__(
        self, compile: bool, precision: Precision, device: torch.device | str = "cpu"
    ) -> None:
        """Compile them or not, and take products with so many bits, on `device`.

        Raises:
            UsageError: if the device knows no bfloat16.
        """
        self.compile, self.precision, self.device = compile, precision, torch.device(device)
        self._compiled: dict[Callable[..., Any], _Compiled] = {}
        on_cuda = self.device.type == "cuda"
        if precision == "bfloat16" and on_cuda and not torch.cuda.is_bf16_supported():
            raise UsageError(
                f"precision bfloat16 is not for {self.device}, which cannot compute with it; "
                "allowed here: float32, tf32"
            )

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """Compute so within the context; what torch was set to before comes back after it."""
        global _now
        cudnn, tf32 = torch.backends.cudnn, self.precision == "tf32"
        before = _now, cudnn.allow_tf32, torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        _now, cudnn.allow_tf32 = self, tf32
        # A memory that is compiled is unrolled: policies take one step of it at a time.
        rnn = torch._dynamo.config.patch(allow_rnn=True) if self.compile else nullcontext()
        try:
            with rnn:
                yield
        finally:
            _now, cudnn.allow_tf32 = before[:2]
            torch.set_float32_matmul_precision(before[2])

    def mixed(self) -> AbstractContextManager[object]:
        """Take products of matrices in bfloat16 within the context, if that is asked for."""
        if self.precision != "bfloat16":
            return nullcontext()
        # Without its cache, which would keep copies that were made where gradients are off.
        return torch.autocast(self.device.type, torch.bfloat16, cache_enabled=False)

    def call(self, function: Callable[..., R], *args: Any) -> R:
        """What `function` gives, compiled if that is asked for."""
        if not self.compile:
            return function(*args)
        if function not in self._compiled:
            self._compiled[function] = _Compiled(function, self.device)
        return cast("R", self._compiled[function](*args))


_now: Acceleration | None = None


def for_acting(function: Callable[[*Ts], R]) -> Callable[[*Ts], R]:
    """A function that a policy acts by: pure, and compiled where that is in force."""

    @wraps(function)
    def run(*args: *Ts) -> R:
        if _now is None:
            return function(*args)
        return _now.call(function, *args)

    return run


def for_learning(function: Callable[[*Ts], R]) -> Callable[[*Ts], R]:
    """A function that gradients are taken of: pure, and compiled or in bfloat16, as is in force."""

    @wraps(function)
    def run(*args: *Ts) -> R:
        if _now is None:
            return function(*args)
        with _now.mixed():
            return _now.call(function, *args)

    return run


def mixed() -> AbstractContextManager[object]:
    """Where old and new probabilities are compared, both are to be computed with the same bits."""
    return nullcontext() if _now is None else _now.mixed()


def whole(x: Tensor) -> Tensor:
    """What a network made of bfloat16 products, as float32; all else as it is."""
    return x.float() if x.dtype == torch.bfloat16 else x


def unmixed(device: torch.device) -> AbstractContextManager[object]:
    """Take products with all bits within the context: of memories, whose errors would add up."""
    if not torch.is_autocast_enabled(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def require_allowed(agent: object, compile: bool, precision: Precision) -> None:
    """Raise `UsageError` if `agent` refuses what is asked for.

    An agent may have a property `refuses`: `compile` or a precision, and a sentence that says why.
    """
    refused: Mapping[str, str] = getattr(agent, "refuses", {})
    for asked in ("compile" if compile else "", precision):
        if asked in refused:
            raise UsageError(refused[asked])


@contextmanager
def deterministic_kernels(wanted: bool, device: torch.device | str = "cpu") -> Iterator[None]:
    """Within the context the same computation gives the same bits, on a GPU too, if it is `wanted`.

    On a CPU it does so anyway. The GPU must not have multiplied any matrices before.

    Raises:
        UsageError: if cuBLAS was told otherwise.
    """
    if not wanted:
        yield
        return
    if os.environ.setdefault(CUBLAS, ORDERED[0]) not in ORDERED:
        raise UsageError(
            f"deterministic kernels need the environment variable {CUBLAS} to be "
            f"{' or '.join(ORDERED)}, got {os.environ[CUBLAS]!r}"
        )
    cudnn = torch.backends.cudnn
    before = torch.are_deterministic_algorithms_enabled(), cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        cudnn.benchmark = before[1]


class _Compiled:
    """A pure function as torch compiles it, held against the function itself at first."""

    def __init__(self, function: Callable[..., Any], device: torch.device) -> None:
        self.function, self.graphs, self.checked = function, device.type == "cuda", False
        mode = "reduce-overhead" if self.graphs else None
        self.compiled = torch.compile(function, fullgraph=True, mode=mode)

    def __call__(self, *args: Any) -> Any:
        if not self.checked:
            self._check(args)
            self.checked = True
        return self._run(*args)

    def _run(self, *args: Any) -> Any:
        if not self.graphs:
            return self.compiled(*args)
        # The next replay writes into the same buffers: what is kept has to be copied out of them.
        torch.compiler.cudagraph_mark_step_begin()
        return _each(Tensor.clone, self.compiled(*args))

    def _check(self, args: tuple[Any, ...]) -> None:
        """Raise `UsageError` if it cannot be compiled, or is wrong."""
        from torch._dynamo.exc import TorchDynamoException  # takes seconds to import

        name, args = self.function.__name__, _each(_leaf, args)
        try:
            found = _outcome(self._run, args)
        except torch.OutOfMemoryError:
            raise
        except (TorchDynamoException, RuntimeError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise UsageError(
                f"this agent cannot be compiled here ({name}), train without --compile: {reason}"
            ) from error
        eager = _outcome(self.function, args)
        with _exactly(args):
            exact = _outcome(self.function, args)
        for what, a, b, c in zip(("results", "gradients"), found, eager, exact, strict=True):
            apart, allowed = (a - c).norm(), TOLERANCE * c.norm() + 2.0 * (b - c).norm()
            if not bool(apart <= allowed):
                raise UsageError(
                    f"the compiled {what} of {name} are off by {float(apart):.1e}, allowed are "
                    f"{float(allowed):.1e}; train without --compile"
                )


@contextmanager
def _exactly(args: tuple[Any, ...]) -> Iterator[None]:
    """Take products with all bits within the context."""
    device = next(tensors(args)).device
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with unmixed(device):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def _outcome(function: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
    """The results of a function and the gradients of their sum, each as one float64 vector."""
    results = [x for x in tensors(function(*args)) if x.is_floating_point()]
    sources = [x for x in tensors(args) if x.requires_grad]
    roots = [x for x in results if x.requires_grad]
    grads: tuple[Tensor, ...] = ()
    if roots and sources and torch.is_grad_enabled():
        total = torch.stack([x.sum() for x in roots]).sum()
        grads = torch.autograd.grad(total, sources, materialize_grads=True, allow_unused=True)
    return _vector(results), _vector(grads)


def _vector(parts: Any) -> Tensor:
    flat = [x.detach().double().flatten() for x in parts]
    return torch.cat(flat) if flat else torch.zeros(1, dtype=torch.float64)


def tensors(x: Any) -> Iterator[Tensor]:
    """Tensors in nested dataclasses, mappings, lists and tuples; of a network its parameters."""
    if isinstance(x, Tensor):
        yield x
    elif isinstance(x, nn.Module):
        yield from x.parameters()
    elif isinstance(x, Mapping):
        for item in x.values():
            yield from tensors(item)
    elif isinstance(x, list | tuple):
        for item in x:
            yield from tensors(item)
    elif dataclasses.is_dataclass(x):
        for field in dataclasses.fields(x):
            yield from tensors(getattr(x, field.name))


def _each(f: Callable[[Tensor], Tensor], x: Any) -> Any:
    """The same with `f` of every tensor; networks stay as they are."""
    if isinstance(x, Tensor):
        return f(x)
    if isinstance(x, nn.Module):
        return x
    if isinstance(x, Mapping):
        return {name: _each(f, item) for name, item in x.items()}
    if isinstance(x, list | tuple):
        return type(x)(_each(f, item) for item in x)
    if dataclasses.is_dataclass(x) and not isinstance(x, type):
        parts = {field.name: _each(f, getattr(x, field.name)) for field in dataclasses.fields(x)}
        return dataclasses.replace(x, **parts)
    return x


def _leaf(x: Tensor) -> Tensor:
    """The same as a leaf, so that no gradient goes on to what it came from."""
    return x.detach().requires_grad_(x.requires_grad)

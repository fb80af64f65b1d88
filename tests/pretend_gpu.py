"""A pretended GPU: code runs as if on `torch.device("cuda")`, its values in CPU tensors inside.

    with pretend_gpu() as gpu:
        x = torch.zeros(3, device="cuda")     # says that it is on cuda:0
        x + torch.zeros(3)                    # raises, as CUDA would
        float(x.sum())                        # counted in gpu.waits
        with gpu.no_waiting():
            float(x.sum())                    # raises WaitingError

The kernels are those of the CPU, so results are too, bit for bit, wherever the code is the same.

A tensor says "meta" to torch's own C++, which then leaves autograd to the CPU's thread and takes no
path that only a GPU has; Python is told "cuda". What is pretended is where values are, not how
fast: a copy of pageable memory to the device makes the host wait, as in torch, and is an upload.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _foreach_utils as foreach
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map

CUDA, META, CPU = torch.device("cuda", 0), torch.device("meta"), torch.device("cpu")
HERE = Path(__file__).resolve()
ROOT = HERE.parent.parent
aten = torch.ops.aten

WAITING = {
    aten._local_scalar_dense: "item",
    aten.nonzero: "nonzero",
    aten.masked_select: "masked_select",
    aten._unique2: "unique",
    aten.unique_dim: "unique",
    aten.unique_consecutive: "unique_consecutive",
    aten.bincount: "bincount",
    aten.equal: "equal",
    aten._linalg_check_errors: "a check of linear algebra",
}
"""operators whose result, or whose size, the host has to know"""
_Generator = torch.Generator


class Wait(NamedTuple):
    """The host waited for the device."""

    what: str
    where: str
    """file, line and function of this repository"""
    callers: tuple[str, ...]
    """the functions that it happened in, from the innermost"""


class WaitingError(Exception):
    """The host waits for the device where it must not."""


class PretendGenerator(_Generator):
    """A generator that says it is on the device; its numbers are those of the CPU."""

    @property
    def device(self) -> torch.device:
        return CUDA


class _Generators(type):
    """What stands for `torch.Generator`: it makes one for the device that is asked for."""

    def __call__(cls, device: torch.device | str = "cpu") -> torch.Generator:
        return PretendGenerator() if torch.device(device).type == "cuda" else _Generator()

    def __instancecheck__(cls, x: object) -> bool:
        return isinstance(x, _Generator)


class AnyGenerator(metaclass=_Generators):
    """Stands for `torch.Generator`."""


class PretendTensor(Tensor):
    """A tensor that says it is on the device."""

    inner: Tensor
    gpu: PretendGpu

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor, gpu: PretendGpu) -> PretendTensor:
        self = Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=META,
        )
        self.inner, self.gpu = inner, gpu
        return self

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        (gpu, *_) = (x.gpu for x in tree_iter((args, kwargs)) if isinstance(x, PretendTensor))
        return gpu.run(func, args, kwargs or {})

    @property
    def device(self) -> torch.device:
        return CUDA

    is_cuda = property(lambda self: True)
    is_cpu = is_meta = property(lambda self: False)

    def tolist(self) -> Any:
        self.gpu.wait("tolist")
        return self.inner.tolist()

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("a tensor on the device cannot become an array; copy it to the CPU first")

    def __array__(self, *args: Any) -> Any:
        return self.numpy()

    def __repr__(self, **kwargs: Any) -> str:
        return f"PretendTensor({self.inner})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        copy = PretendTensor(self.inner.clone(), self.gpu).requires_grad_(self.requires_grad)
        if isinstance(self, torch.nn.Parameter):
            copy = torch.nn.Parameter(copy, self.requires_grad)
        return memo.setdefault(id(self), copy)

    def __reduce_ex__(self, protocol: int) -> Any:
        return self.detach().cpu().__reduce_ex__(protocol)


class PretendGpu:
    """What happens on the device, and what of it the host waits for."""

    def __init__(self) -> None:
        self.waits: list[Wait] = []
        """what the host waited for, in the order of the program"""
        self.uploads: list[Wait] = []
        """when memory of the host was copied to the device while the host waited"""
        self._strict = 0

    @contextmanager
    def no_waiting(self) -> Iterator[None]:
        """Inside, whatever makes the host wait raises a `WaitingError`."""
        self._strict += 1
        try:
            yield
        finally:
            self._strict -= 1

    def wait(self, what: str) -> None:
        """The host waits."""
        self._note(self.waits, what)

    def _note(self, log: list[Wait], what: str) -> None:
        frame, places, callers = sys._getframe(1), [], []
        while frame is not None:
            callers.append(frame.f_code.co_name)
            path = Path(frame.f_code.co_filename)
            if path != HERE and path.is_relative_to(ROOT) and "site-packages" not in path.parts:
                places.append(f"{path.relative_to(ROOT)}:{frame.f_lineno} in {callers[-1]}")
            frame = frame.f_back
        log.append(Wait(what, places[0] if places else "?", tuple(callers)))
        if self._strict:
            raise WaitingError(f"{what} at {log[-1].where}")

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """One operator: checked, noted, carried out on the values inside, and wrapped again."""
        tensors = [x for x in tree_iter((args, kwargs)) if isinstance(x, Tensor)]
        mine = [x for x in tensors if isinstance(x, PretendTensor)]
        target, packet = kwargs.get("device"), func.overloadpacket
        if packet is aten._to_copy:
            self._copied(mine, target or tensors[0].device, kwargs.get("non_blocking"))
            there = (target or tensors[0].device).type != "cpu"
        elif packet is aten.copy_:
            into, source = args[0], args[1]
            source_mine = [source] if isinstance(source, PretendTensor) else []
            blocking = args[2] if len(args) > 2 else kwargs.get("non_blocking")
            if source.dim() or source_mine:  # a plain number is an argument of a kernel
                self._copied(source_mine, into.device, blocking)
            there = isinstance(into, PretendTensor)
        else:
            there = bool(mine) if target is None else target.type != "cpu"
            if mine:
                self._check(func, tensors, args)
                self._waits_for(packet, args, kwargs)
        wrappers = {id(x.inner): x for x in mine}
        plain, options = tree_map(_inside, (args, kwargs))
        if target is not None:
            options["device"] = CPU
        return tree_map(lambda x: self._wrapped(x, wrappers, there), func(*plain, **options))

    def _wrapped(self, x: Any, wrappers: dict[int, PretendTensor], there: bool) -> Any:
        if not isinstance(x, Tensor) or not there:
            return x
        known = wrappers.get(id(x))
        if known is None:
            return PretendTensor(x, self)
        assert known.shape == x.shape, "operators that change a shape in place are not pretended"
        return known

    def _copied(self, mine: list[Any], target: torch.device, non_blocking: bool | None) -> None:
        if mine and target.type == "cpu" and not non_blocking:
            self.wait("copy to the CPU")
        elif not mine and target.type != "cpu" and not non_blocking:
            self._note(self.uploads, "upload")

    def _check(self, func: Any, tensors: list[Tensor], args: Any) -> None:
        """Raise as CUDA does where tensors of both sides meet; plain numbers may."""
        for x in tensors:
            if not isinstance(x, PretendTensor) and x.dim():
                raise RuntimeError(
                    "Expected all tensors to be on the same device, but found at least two "
                    f"devices, cuda:0 and cpu! ({func}, {list(x.shape)} on the CPU)"
                )
        changed = func._schema.arguments and func._schema.arguments[0].alias_info
        written = args[0] if changed and changed.is_write else None
        if isinstance(written, Tensor) and not isinstance(written, PretendTensor):
            raise RuntimeError(f"{func} would write what is on cuda:0 to the CPU")

    def _waits_for(self, packet: Any, args: Any, kwargs: Any) -> None:
        if packet in WAITING:
            self.wait(WAITING[packet])
        elif packet is aten.repeat_interleave and kwargs.get("output_size") is None:
            self.wait("repeat_interleave by a tensor")
        elif packet in (aten.linalg_cholesky_ex, aten.linalg_inv_ex) and kwargs.get("check_errors"):
            self.wait("a check of linear algebra")
        elif packet in (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_):
            masks = [i for i in args[1] if i is not None and i.dtype in (torch.bool, torch.uint8)]
            # One mask and one number make a masked_fill.
            filled = packet is not aten.index and len(args[1]) == 1 and args[2].numel() == 1
            if masks and not filled:
                self.wait("indexing by a mask")


def _inside(x: Any) -> Any:
    return x.inner if isinstance(x, PretendTensor) else x


class _Operators(TorchDispatchMode):
    """Catches what makes tensors out of nothing, or moves them."""

    def __init__(self, gpu: PretendGpu) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return self.gpu.run(func, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """Tells torch's C++ "meta" wherever Python says "cuda", and checks generators."""

    def __init__(self, gpu: PretendGpu) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor):
            return self._from_data(func, args, kwargs)
        if func is torch._VF.gru and isinstance(args[0], PretendTensor):
            return _gru(*args)
        if func in (Tensor.__getitem__, Tensor.__setitem__) and isinstance(args[0], PretendTensor):
            args = args[0], self._uploaded(args[1]), *args[2:]
        if func is Tensor.to:
            args = tuple(_renamed(x) for x in args)
        if func is Tensor.cuda:
            return args[0].to(META)
        if kwargs.get("device") is not None:
            kwargs["device"] = _renamed(kwargs["device"])
        made = func(*args, **kwargs)
        generator = kwargs.get("generator")
        if generator is not None and isinstance(made, Tensor):
            device = generator.device
            if device.type != made.device.type:
                raise RuntimeError(
                    f"Expected a '{made.device.type}' device type for generator but found "
                    f"'{device.type}'"
                )
        return made

    def _uploaded(self, index: Any) -> Any:
        """An index whose lists of numbers are on the device."""
        parts = index if isinstance(index, tuple) else (index,)
        made = tuple(torch.tensor(x).to(META) if isinstance(x, list) else x for x in parts)
        return made if isinstance(index, tuple) else made[0]

    def _from_data(self, func, args, kwargs):
        device = kwargs.pop("device", None)
        start, data = args[:-1], args[-1]
        if device is None and start:  # new_tensor
            device = start[0].device
        if isinstance(data, PretendTensor):
            device = device or CUDA
            kept = data if func is not torch.tensor else data.detach().clone()
            return kept.to(_renamed(device), **kwargs)
        make = torch.tensor if start else func
        made = make(data, **kwargs)
        return made if device is None else made.to(_renamed(device))


def _gru(x: Tensor, hx: Tensor, weights: list[Tensor], *layout: Any) -> tuple[Tensor, Tensor]:
    """A GRU as the CPU computes it, all inputs in one product; torch's C++ would elsewhere not."""
    assert len(weights) == 4, "one layer in one direction, with biases"
    w_ih, w_hh, b_ih, b_hh = weights
    hidden, states = hx[0], []
    for gates in F.linear(x, w_ih, b_ih).unbind(0):
        i_r, i_z, i_n = gates.unsafe_chunk(3, 1)
        h_r, h_z, h_n = F.linear(hidden, w_hh, b_hh).unsafe_chunk(3, 1)
        reset, update = h_r.add_(i_r).sigmoid_(), h_z.add_(i_z).sigmoid_()
        new = i_n.add(h_n.mul_(reset)).tanh_()
        hidden = (hidden - new).mul_(update).add_(new)
        states.append(hidden)
    return torch.stack(states), hidden.unsqueeze(0)


def _renamed(device: Any) -> Any:
    if isinstance(device, str) and device.partition(":")[0] == "cuda":
        return META
    return META if isinstance(device, torch.device) and device.type == "cuda" else device


def _keep_parameters(apply: Any) -> Any:
    """A module that moves keeps its parameters, which an optimiser may hold already."""

    def kept(self: torch.nn.Module, *args: Any) -> torch.nn.Module:
        with patch.object(torch.__future__, "_swap_module_params_on_conversion", True):
            return apply(self, *args)

    return kept


@contextmanager
def pretend_gpu() -> Iterator[PretendGpu]:
    """Inside, `torch.device("cuda")` can be computed on; `torch.cuda` itself stays as it is."""
    gpu, kinds = PretendGpu(), foreach._get_foreach_kernels_supported_devices
    with ExitStack() as stack:
        enter = stack.enter_context
        enter(patch.object(torch, "Generator", AnyGenerator))
        enter(patch.object(torch.cuda, "_lazy_init", lambda: None))
        enter(patch.object(torch.backends.cudnn, "is_acceptable", lambda tensor: False))
        enter(patch.object(torch.nn.Module, "_apply", _keep_parameters(torch.nn.Module._apply)))
        more = [*kinds(), META.type]
        enter(patch.object(foreach, "_get_foreach_kernels_supported_devices", lambda: more))
        enter(_Functions(gpu))
        enter(_Operators(gpu))
        yield gpu

"""What the parts of a program take, and what they must at least do: move memory, launch operators.

A part is a stretch of the program with a name. A part within another one stands for itself.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from metarl.experiments.timing import Mark, synchronize

ALLOCATING = ("empty", "new_empty")
"""operators that only ask for memory"""
FILLING = ("copy_", "fill_", "zero_")
"""operators that write a tensor and do not read it"""


class Parts:
    """Which part of a program is under way, and how long each took."""

    def __init__(self) -> None:
        """Begin outside of all parts."""
        self.stack: list[str] = []
        self.traffic: Traffic | None = None
        """what looks on, at present"""
        self._marks: list[tuple[Mark, str]] = []

    def watch(self, owner: object, method: str, part: str, within: str | None = None) -> None:
        """Calls of a method are `part` from now on; if they are made from `within`, where given."""
        inner = getattr(owner, method)

        def watched(*args: Any, **options: Any) -> Any:
            if within is not None and self.stack[-1:] != [within]:
                return inner(*args, **options)
            with self.part(part):
                result = inner(*args, **options)
                if self.traffic is not None:
                    self.traffic.returned(result)
            return result

        setattr(owner, method, watched)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """What happens in the context is the part called `name`."""
        self._mark()
        self.stack.append(name)
        if self.traffic is not None:
            self.traffic.enter(name)
        try:
            yield
        finally:
            if self.traffic is not None:
                self.traffic.leave()
            self._mark()
            self.stack.pop()

    def _mark(self) -> None:
        """The innermost part ends here, for good or for one within it."""
        self._marks.append((Mark(), self.stack[-1] if self.stack else ""))

    def clear(self) -> None:
        """Forget the times."""
        self._marks.clear()

    def seconds(self) -> dict[str, float]:
        """How long each part took, less what it took within others; waits for the device."""
        synchronize()
        spent: dict[str, float] = defaultdict(float)
        for (start, _), (end, name) in zip(self._marks, self._marks[1:], strict=False):
            if name:
                spent[name] += start.until(end)
        return dict(spent)


class _Stay:
    """One stay in a part: which memory it touched, and how much of it."""

    def __init__(self, part: str) -> None:
        self.part = part
        self.read: dict[int, int] = {}
        self.written: dict[int, int] = {}
        self.made: dict[int, Tensor] = {}

    def bytes(self) -> int:
        """What was moved."""
        outside = [n for at, n in self.read.items() if at not in self.made]
        return sum(outside) + sum(self.written.values())


class Traffic(TorchDispatchMode):
    """Counts what each part of a program moves and launches.

    A part moves each tensor from outside that it reads or writes, and each of its own that it
    returns: once, however often it is used. The rest of what it makes need not leave the processor.
    So this is the least that it moves, not what it does move. Launches are those that take place.
    """

    def __init__(self, parts: Parts) -> None:
        """Count for the parts of a program, while this mode is in force."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes: dict[str, int] = defaultdict(int)
        self.launches: dict[str, int] = defaultdict(int)
        self._parts, self._stays = parts, list[_Stay]()

    def __enter__(self) -> Any:
        """Look on, from outside of all parts."""
        self._parts.traffic = self
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *error: Any) -> None:
        """Look away."""
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._parts.traffic = None

    def enter(self, part: str) -> None:
        """A part begins."""
        self._stays.append(_Stay(part))

    def returned(self, result: Any) -> None:
        """The innermost part returns `result`, which it may have made."""
        stay = self._stays[-1]
        for x in _tensors(result):
            if _place(x) in stay.made:
                _touch(stay.written, x)

    def leave(self) -> None:
        """The innermost part ends."""
        stay = self._stays.pop()
        self.bytes[stay.part] += stay.bytes()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """One operator."""
        result = func(*args, **(kwargs or {}))
        if self._stays and not _makes_view(func):
            self._launched(func, args, kwargs or {}, result)
        return result

    def _launched(self, func: Any, args: Any, kwargs: dict[str, Any], result: Any) -> None:
        stay, name, schema = self._stays[-1], func.overloadpacket.__name__, func._schema
        if all(x.alias_info is None for x in schema.returns):
            # Tensors are kept, so that nothing else takes their place before the part is over.
            stay.made |= {_place(x): x for x in _tensors(result)}
        if name.startswith(ALLOCATING):
            return
        self.launches[stay.part] += 1
        given = dict(zip((a.name for a in schema.arguments), args, strict=False)) | kwargs
        for argument in schema.arguments:
            writes = argument.alias_info is not None and argument.alias_info.is_write
            for x in _tensors(given.get(argument.name)):
                if writes and _place(x) not in stay.made:
                    _touch(stay.written, x)
                if not (writes and name in FILLING):
                    _touch(stay.read, x)


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (x for x in tree_iter(tree) if isinstance(x, Tensor))


def _makes_view(func: Any) -> bool:
    """Whether an operator only looks at memory in another way."""
    infos = [x.alias_info for x in func._schema.returns]
    return any(info is not None and not info.is_write for info in infos)


def _place(x: Tensor) -> int:
    """Where the memory of a tensor is."""
    return x.untyped_storage().data_ptr()


def _touch(touched: dict[int, int], x: Tensor) -> None:
    """Note how much of a memory was used, at most at once."""
    size = min(x.numel() * x.element_size(), x.untyped_storage().nbytes())
    touched[_place(x)] = max(touched.get(_place(x), 0), size)

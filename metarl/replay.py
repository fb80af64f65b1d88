"""Replay for many tasks: a ring buffer for each, kept together in one tensor per field.

The transitions of a task fill its ring from slot 0; when it is full the oldest are overwritten. So
the used slots of a task are always the first `size`, a uniform sample needs a single table of slots
for all tasks, and a checkpoint is a plain copy of the used bytes, streamed from and to the storage.

Transitions arrive as sequences, such as the episodes of a world. Beside each, its place within its
sequence is kept: that is all it takes to find the start of a sequence again without a search.

Shapes: `N` tasks, `C` capacity of a ring, `T` time, `B` sequences, `M` chosen tasks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from metarl.errors import UsageError
from metarl.states import DamagedError
from metarl.storage import Field, allocate, read_header, read_tensor, write_header, write_tensor

_PLACE = "place"
_RESERVED = {"tasks", "valid", "start", "mask", _PLACE}
_ANY = 1 << 62
"""Draws are uniform below this, modulo a size: no size is so large that it would matter."""


class MultiTaskReplay:
    """Ring buffers of transitions, one for each of `N` tasks.

    How full the rings are is known on the CPU, so that no check has to wait for a GPU.
    """

    def __init__(
        self,
        num_tasks: int,
        capacity: int,
        fields: Mapping[str, Field],
        *,
        device: torch.device | str = "cpu",
        folder: Path | None = None,
    ) -> None:
        """Make room for `capacity` transitions of each task; memory is taken as it fills.

        Args:
            num_tasks: N.
            capacity: C, transitions of a task before the oldest are overwritten.
            fields: name to shape and type of a transition's entry.
            device: where the storage lives and samples come out.
            folder: for storage larger than the memory: keep it on the disk there, in files that
                vanish with the process.

        Raises:
            UsageError: if a number or name is not allowed, or there is not enough room.
        """
        if num_tasks < 1 or capacity < 1:
            raise UsageError(
                "replay: tasks and capacity must be at least 1, "
                f"got {num_tasks} tasks and capacity {capacity}"
            )
        for name in fields:
            if not name.isidentifier() or name in _RESERVED:
                raise UsageError(
                    f"replay: {name!r} cannot be the name of a field; allowed are identifiers "
                    f"other than {', '.join(sorted(_RESERVED))}"
                )
        self.num_tasks, self.capacity, self.device = num_tasks, capacity, torch.device(device)
        self.fields = dict(fields)
        self.storage = allocate(
            {**self.fields, _PLACE: ((), torch.int32)}, (num_tasks, capacity), self.device, folder
        )
        """name to tensor `[N, C, *shape]`; `place` is int32: steps since the sequence's start"""
        self.size = torch.zeros(num_tasks, dtype=torch.int64)
        """int64 `[N]`: transitions held, on the CPU"""
        self._cursor = torch.zeros(num_tasks, dtype=torch.int64)

    @torch.no_grad()
    def add(
        self,
        tasks: Tensor,
        valid: Tensor | None = None,
        start: Tensor | None = None,
        **values: Tensor,
    ) -> None:
        """Append `B` sequences of up to `T` steps, in the order of `B` where they share a task.

        Args:
            tasks: int64 `[B]`: where each goes.
            valid: bool `[T, B]`: steps to keep, by default all; the others leave no gap.
            start: bool `[T, B]`: where another sequence begins within; the first always does. A
                start that is not valid passes on to the next step that is.
            values: `[T, B, *shape]` for every field.

        Raises:
            UsageError: if names, shapes, types or tasks do not fit the buffer, or there is more for
                one task than it can hold.
        """
        tasks = self._check_tasks(tasks)
        shape = self._check_values(values, len(tasks)), len(tasks)
        keep, begins = _check_mask(valid, shape, True), _check_mask(start, shape, False)
        slots, place, total = self._lay_out(tasks, keep, begins)
        rows = keep.flatten().nonzero().squeeze(-1)
        slots, source = slots.flatten()[rows].to(self.device), rows.to(self.device)
        everything = len(rows) == keep.numel()
        for name, value in {**values, _PLACE: place}.items():
            flat = value.to(self.device).flatten(0, 1)
            flat = flat if everything else flat.index_select(0, source)
            self.storage[name].flatten(0, 1).index_copy_(0, slots, flat)
        self._cursor = (self._cursor + total) % self.capacity
        self.size = (self.size + total).clamp(max=self.capacity)

    def _lay_out(
        self, tasks: Tensor, keep: Tensor, begins: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Where kept steps go: slots `[T, B]`, places in their sequence, how many by task `[N]`."""
        kept = keep.long().cumsum(0)
        before = kept - keep.long()
        count = keep.sum(0)
        total = torch.zeros(self.num_tasks, dtype=torch.int64).index_add_(0, tasks, count)
        if int(total.max()) > self.capacity:
            task = int(total.argmax())
            raise UsageError(
                f"replay: {int(total[task])} transitions for task {task} at once, "
                f"but its capacity is {self.capacity}"
            )
        # Sequences of one task follow each other: sorted by task, what is before a sequence less
        # what is before its task.
        order = tasks.argsort(stable=True)
        ends, firsts = count[order].cumsum(0), total.cumsum(0) - total
        offset = torch.empty_like(count)
        offset[order] = ends - count[order] - firsts[tasks[order]]
        ring = (self._cursor[tasks] + offset + before) % self.capacity
        place = before - (before * begins).cummax(0).values if len(keep) else before
        return tasks * self.capacity + ring, place.int(), total

    def sample(self, tasks: Tensor, batch: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw `batch` transitions of each task, uniformly and with replacement.

        Args:
            tasks: int64 `[M]`.
            batch: transitions for each.
            generator: source of the draws, on any device.

        Returns:
            `[M, batch, *shape]` for every field.

        Raises:
            UsageError: if a task holds nothing.
        """
        tasks = self._require(tasks, 1)
        slots, base = self._draw(tasks, batch, generator), (tasks * self.capacity).to(self.device)
        return self._take(slots + base.unsqueeze(-1))

    def recent(self, tasks: Tensor, length: int) -> dict[str, Tensor]:
        """The last `length` transitions of each task in the order they came.

        Args:
            tasks: int64 `[M]`.
            length: transitions of each.

        Returns:
            `[M, length, *shape]` for every field.

        Raises:
            UsageError: if a task holds fewer.
        """
        tasks = self._require(tasks.cpu(), length)
        slots = self._cursor[tasks].unsqueeze(-1) + torch.arange(-length, 0)
        return self._take(slots % self.capacity + tasks.unsqueeze(-1) * self.capacity)

    def sample_sequences(
        self, tasks: Tensor, count: int, length: int, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Draw sequences from their start, each found by a transition that is drawn uniformly.

        So a long sequence is drawn more often than a short one. If its start is overwritten, it
        begins with the oldest step that is left.

        Args:
            tasks: int64 `[M]`.
            count: sequences of each.
            length: steps after which a sequence is cut.
            generator: source of the draws, on any device.

        Returns:
            `[M, count, length, *shape]` for every field, zero after the end of the sequence, and
            bool `mask` `[M, count, length]`, true up to there.

        Raises:
            UsageError: if a task holds nothing.
        """
        tasks = self._require(tasks, 1)
        drawn = self._draw(tasks, count, generator)
        begins = (self._cursor - self.size) % self.capacity
        size, oldest = (_of(tasks, x).to(self.device).unsqueeze(-1) for x in (self.size, begins))
        base = (tasks * self.capacity).to(self.device).unsqueeze(-1)
        places = self.storage[_PLACE].flatten()
        age = (drawn - oldest) % self.capacity
        first = (age - places[drawn + base]).clamp(min=0).unsqueeze(-1)
        steps = torch.arange(length, device=self.device)
        ages = first + steps
        slots = (ages + oldest.unsqueeze(-1)) % self.capacity + base.unsqueeze(-1)
        found = places[slots]
        # Places count up within a sequence and start again from 0 in the next.
        mask = (ages < size.unsqueeze(-1)) & (found == found[..., :1] + steps)
        taken = self._take(slots)
        for value in taken.values():
            value.masked_fill_(~mask[(..., *[None] * (value.dim() - mask.dim()))], 0)
        return {**taken, "mask": mask}

    def clear(self, tasks: Tensor) -> None:
        """Forget all transitions of `tasks`, int64 `[M]`."""
        tasks = self._check_tasks(tasks)
        self.size[tasks] = self._cursor[tasks] = 0

    def write(self, file: BinaryIO) -> None:
        """Write a header, a line of JSON, and the used bytes of every field, task by task."""
        rings = {"size": self.size.tolist(), "cursor": self._cursor.tolist()}
        write_header(file, {**self._layout(), **rings})
        for part in self._used():
            write_tensor(file, part)

    def read(self, file: BinaryIO) -> None:
        """Take over what `write` wrote, bit for bit; the buffer is left empty if that fails.

        Raises:
            DamagedError: if the file is not complete or not a saved replay.
            UsageError: if it is one of other tasks, capacity or fields.
        """
        self.clear(torch.arange(self.num_tasks))
        header = read_header(file, self._layout(), 50 * self.num_tasks)
        size, cursor = self._check_rings(header.get("size"), header.get("cursor"))
        self.size = size
        try:
            for part in self._used():
                read_tensor(file, part)
            if file.read(1):
                raise DamagedError("the replay goes on after its end")
        except BaseException:
            self.size = torch.zeros_like(size)
            raise
        self._cursor = cursor

    def _check_rings(self, *saved: object) -> tuple[Tensor, Tensor]:
        """Sizes and cursors `[N]` from a header; raise `DamagedError` if no buffer has them."""
        for ring in saved:
            numbers = ring if isinstance(ring, list) else []
            good = [x for x in numbers if type(x) is int and 0 <= x <= self.capacity]
            if len(good) != len(numbers) or len(good) != self.num_tasks:
                raise DamagedError("the header of the replay is damaged")
        size, cursor = torch.tensor(saved)
        # A ring that is not full has been filled from slot 0 up to its cursor.
        if bool(((cursor != size) & (size < self.capacity) | (cursor == self.capacity)).any()):
            raise DamagedError("the header of the replay is damaged")
        return size, cursor

    def _layout(self) -> dict[str, Any]:
        """What has to be the same in a buffer that is read back."""
        fields = {n: [list(shape), str(dtype)] for n, (shape, dtype) in self.fields.items()}
        sizes = {"num_tasks": self.num_tasks, "capacity": self.capacity}
        return {"format": "metarl-replay-1", **sizes, "fields": fields}

    def _used(self) -> Iterator[Tensor]:
        """The used part of every field and task, as views of the storage."""
        sizes = self.size.tolist()
        for _, whole in sorted(self.storage.items()):
            for task, size in enumerate(sizes):
                yield whole[task, :size]

    def _draw(self, tasks: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """Used slots within the ring of each task, `[M, count]`."""
        where = generator.device
        draws = torch.randint(_ANY, (len(tasks), count), generator=generator, device=where)
        return (draws % _of(tasks, self.size).to(where).unsqueeze(-1)).to(self.device)

    def _take(self, slots: Tensor) -> dict[str, Tensor]:
        """Entries `[*slots.shape, *shape]` of every field."""
        index = slots.to(self.device).flatten()
        return {
            name: self.storage[name].flatten(0, 1).index_select(0, index).view(*slots.shape, *shape)
            for name, (shape, _) in self.fields.items()
        }

    def _require(self, tasks: Tensor, count: int) -> Tensor:
        """Return `tasks`, on the CPU or unseen; raise `UsageError` unless each holds `count`."""
        if tasks.device.type != "cpu" and not bool((self.size < count).any()):
            return tasks  # to look at them would wait for the device
        tasks = self._check_tasks(tasks)
        few = self.size[tasks] < count
        if bool(few.any()):
            task = int(tasks[few][0])
            raise UsageError(
                f"replay: task {task} holds {int(self.size[task])} transitions, {count} are needed"
            )
        return tasks

    def _check_tasks(self, tasks: Tensor) -> Tensor:
        """Return `tasks` on the CPU; raise `UsageError` unless they are indices of tasks."""
        if tasks.dtype != torch.int64 or tasks.dim() != 1:
            raise UsageError(
                f"replay: tasks must be int64 of one dimension, got {tasks.dtype} "
                f"with shape {list(tasks.shape)}"
            )
        tasks = tasks.cpu()
        wrong = (tasks < 0) | (tasks >= self.num_tasks)
        if bool(wrong.any()):
            raise UsageError(
                f"replay: there is no task {int(tasks[wrong][0])}; "
                f"allowed are 0 to {self.num_tasks - 1}"
            )
        return tasks

    def _check_values(self, values: Mapping[str, Tensor], sequences: int) -> int:
        """Return T; raise `UsageError` unless there is a `[T, B, *shape]` for each field."""
        if values.keys() != self.fields.keys():
            raise UsageError(
                f"replay: got the fields {', '.join(sorted(values)) or 'none'}; "
                f"needed are {', '.join(sorted(self.fields))}"
            )
        time = next(iter(values.values())).shape[:1] if values else (0,)
        for name, value in values.items():
            shape, dtype = self.fields[name]
            if value.dtype != dtype or value.shape != (*time, sequences, *shape):
                raise UsageError(
                    f"replay: {name} must be {dtype} with shape "
                    f"{[*(time or ['T']), sequences, *shape]}, "
                    f"got {value.dtype} with shape {list(value.shape)}"
                )
        return int(time[0])


def _of(tasks: Tensor, numbers: Tensor) -> Tensor:
    """Of `numbers` `[N]`, on the CPU, those of `tasks` `[M]`, where these are."""
    return numbers.to(tasks.device, non_blocking=True)[tasks]


def _check_mask(mask: Tensor | None, shape: tuple[int, int], default: bool) -> Tensor:
    """Return a mask `[T, B]` on the CPU, `default` everywhere if there is none."""
    if mask is None:
        return torch.full(shape, default)
    if mask.dtype != torch.bool or mask.shape != shape:
        raise UsageError(
            f"replay: valid and start must be torch.bool with shape {list(shape)}, "
            f"got {mask.dtype} with shape {list(mask.shape)}"
        )
    return mask.cpu()

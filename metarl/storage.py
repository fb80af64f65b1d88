"""Room for large memories, on a device or on the disk, and their way into files and back.

Tensors pass through files as they lie, piece by piece: saving a memory takes no second one.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from metarl.errors import UsageError
from metarl.states import DamagedError

Field = tuple[tuple[int, ...], torch.dtype]
"""shape of an entry, and its type"""

_PIECE_BYTES = 1 << 22
_HEADER_BYTES = 1 << 16


def allocate(
    fields: Mapping[str, Field],
    slots: tuple[int, int],
    device: torch.device,
    folder: Path | None,
) -> dict[str, Tensor]:
    """Uninitialised storage `[*slots, *shape]` for every field, in memory or in `folder`.

    Raises:
        UsageError: if there is not enough room.
    """
    shapes = {name: (*slots, *shape) for name, (shape, _) in fields.items()}
    needed = sum(math.prod(shapes[name]) * dtype.itemsize for name, (_, dtype) in fields.items())
    if folder is not None:
        if device.type != "cpu":
            raise UsageError(f"replay: storage on the disk is for device cpu, not {device}")
        return _map_files(fields, shapes, needed, folder)
    try:
        return {
            name: torch.empty(shapes[name], dtype=dtype, device=device)
            for name, (_, dtype) in fields.items()
        }
    except RuntimeError as error:
        raise UsageError(
            f"replay: {needed} bytes are not to be had on {device}; lower the capacity"
        ) from error


def _map_files(
    fields: Mapping[str, Field], shapes: Mapping[str, tuple[int, ...]], needed: int, folder: Path
) -> dict[str, Tensor]:
    """Storage in sparse files of `folder` that have no name any more: they go with the process."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if free < needed:
            raise UsageError(f"replay: {needed} bytes needed in {folder}, {free} bytes are free")
        storage = {}
        for name, (_, dtype) in fields.items():
            with tempfile.NamedTemporaryFile(dir=folder, prefix=f"{name}-") as file:
                storage[name] = torch.from_file(
                    file.name, shared=True, size=math.prod(shapes[name]), dtype=dtype
                ).view(shapes[name])
    except OSError as error:
        raise UsageError(f"replay: cannot keep storage in {folder}: {error.strerror}") from error
    return storage


def write_header(file: BinaryIO, header: Mapping[str, Any]) -> None:
    """Write `header` as a line of JSON."""
    file.write((json.dumps(header) + "\n").encode())


def read_header(file: BinaryIO, layout: Mapping[str, Any], further_bytes: int) -> dict[str, Any]:
    """Read a line of JSON that has to agree with `layout`.

    Args:
        file: where it comes next.
        layout: the entries that have to be the same; the first says what kind of file it is.
        further_bytes: room for entries beyond those; a header that is larger is not read.

    Raises:
        DamagedError: if there is no such line, or it is of another kind of file.
        UsageError: if another entry differs.
    """
    line = file.readline(_HEADER_BYTES + further_bytes)
    try:
        header = json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        header = None
    kind, *others = layout
    if not isinstance(header, dict) or header.get(kind) != layout[kind]:
        raise DamagedError(f"the file does not begin with a header of {layout[kind]}")
    for name in others:
        if header.get(name) != layout[name]:
            raise UsageError(
                f"the saved memory has {name} {header.get(name)}, this one has {layout[name]}"
            )
    return header


def write_tensor(file: BinaryIO, tensor: Tensor) -> None:
    """Write the bytes of a contiguous `tensor`, on whatever device, piece by piece."""
    for piece in _pieces(tensor):
        file.write(piece.cpu().numpy().data)


def read_tensor(file: BinaryIO, tensor: Tensor) -> None:
    """Fill a contiguous `tensor`, on whatever device, with bytes from `file`, piece by piece.

    Raises:
        DamagedError: if the file has too few of them.
    """
    for piece in _pieces(tensor):
        target = piece.cpu()  # the piece itself, if it is there already
        view, done = target.numpy().data, 0
        while done < len(view):
            got = file.readinto(view[done:])  # type: ignore[attr-defined]
            if not got:
                raise DamagedError("the file ends too early")
            done += got
        if target is not piece:
            piece.copy_(target)


def _pieces(tensor: Tensor) -> tuple[Tensor, ...]:
    """The bytes of a contiguous tensor in pieces that are views of it."""
    pieces: tuple[Tensor, ...] = tensor.view(-1).view(torch.uint8).split(_PIECE_BYTES)
    return pieces

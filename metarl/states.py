"""Named states and streams in a folder with a manifest: written synced, verified, then read.

`manifest.json` holds the size and sha256 of every file, and of its own content. It guards against
accidents (truncation, bit flips, exchanged files), not against an attacker, who could write a
manifest that fits. What stands between an attacker and the machine is that loading never executes
code: states are read with ``weights_only=True``, streams are bare numbers behind a line of JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

import torch

from metarl.versions import software_versions

FORMAT = 1
MANIFEST = "manifest.json"

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_FILE_NAME = re.compile(rf"{_NAME.pattern}\.(pt|bin)")
_PLAIN = (torch.Tensor, torch.nn.Parameter, str, bytes, bool, int, float, type(None))

State = dict[str, Any]


class DamagedError(Exception):
    """A folder of states cannot be used; the message says why."""


class Stream(Protocol):
    """A large memory that is saved as it lies, without a copy of the whole."""

    def write(self, file: BinaryIO) -> None:
        """Write everything to `file`, piece by piece."""

    def read(self, file: BinaryIO) -> None:
        """Take over what `write` wrote, bit for bit.

        Raises:
            DamagedError: if the file is not what `write` writes.
            UsageError: if it was written by something of another layout.
        """


class HashingFile:
    """A binary file for torch and streams, which knows the digest of what went through it."""

    def __init__(self, file: BinaryIO | None) -> None:
        """Write to `file`, or only count and hash when it is None."""
        self.file = file
        self.digest = hashlib.sha256()
        self.bytes = 0
        self.error: OSError | None = None

    def write(self, data: bytes | memoryview) -> int:
        """Write all of `data`; keeps the OSError, which torch would turn into something else."""
        self.digest.update(data)
        self.bytes += len(data)
        if self.file is not None and self.error is None:
            try:
                self.file.write(data)
            except OSError as error:
                self.error = error
        return len(data)

    def flush(self) -> None:
        """Do nothing; the owner of the file flushes it once, at the end."""


Writer = Callable[[BinaryIO], None]
"""writes the content of a file"""


def writers(states: Mapping[str, State], streams: Mapping[str, Stream]) -> dict[str, Writer]:
    """The files of a folder, by name, and how to write each."""
    saved: dict[str, Writer] = {f"{n}.pt": partial(torch.save, x) for n, x in states.items()}
    return saved | {f"{name}.bin": stream.write for name, stream in streams.items()}


def _write_file(path: Path, write: Writer) -> dict[str, int | str]:
    """Let `write` fill `path`, synced; return its size in bytes and sha256."""
    with path.open("wb") as file:
        sink = HashingFile(file)
        write(cast(BinaryIO, sink))
        if sink.error is not None:
            raise sink.error
        _sync(file)
    return {"bytes": sink.bytes, "sha256": sink.digest.hexdigest()}


def write_states(
    folder: Path, step: int, files: Mapping[str, Writer], labels: Mapping[str, str]
) -> bytes:
    """Write `files` and the manifest into the new `folder`; return the manifest's bytes."""
    folder.mkdir()
    content = {
        "format": FORMAT,
        "step": step,
        "versions": software_versions(),
        "labels": dict(labels),
        "files": {name: _write_file(folder / name, write) for name, write in files.items()},
    }
    raw = encode_manifest(content)
    write_bytes(folder / MANIFEST, raw)
    sync_folder(folder)
    return raw


def encode_manifest(content: Mapping[str, Any]) -> bytes:
    """Serialise a manifest with its own digest; equal content gives equal bytes."""
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    signed = {"content": content, "sha256": digest}
    return (json.dumps(signed, sort_keys=True, indent=1) + "\n").encode()


def read_manifest(folder: Path, step: int) -> dict[str, Any]:
    """Return the content of the manifest in `folder` if it is of `step` and every byte is intact.

    Raises:
        DamagedError: It is not.
    """
    try:
        raw = (folder / MANIFEST).read_bytes()
        content: dict[str, Any] = json.loads(raw)["content"]
        good = encode_manifest(content) == raw and _is_manifest(content, step)
    except OSError as error:
        raise DamagedError(f"{MANIFEST} cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedError(f"{MANIFEST} is not a manifest") from error
    if not good:
        raise DamagedError(f"{MANIFEST} is damaged or of another checkpoint")
    return content


def _is_manifest(content: dict[str, Any], step: int) -> bool:
    """Whether `content` is what `write_states` writes for `step`; file names stay in the folder."""
    return (
        (content["format"], content["step"]) == (FORMAT, step)
        and isinstance(content["labels"], dict)
        and isinstance(content["versions"], dict)
        and all(_FILE_NAME.fullmatch(name) for name in content["files"])
        and all(entry.keys() == {"bytes", "sha256"} for entry in content["files"].values())
    )


def verify_file(path: Path, entry: Mapping[str, int | str]) -> None:
    """Raise `DamagedError` unless size and sha256 of `path` are those of `entry`."""
    try:
        size = path.stat().st_size
        if size != entry["bytes"]:
            raise DamagedError(f"{path.name} has {size} bytes, not {entry['bytes']}")
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DamagedError(f"{path.name} cannot be read ({error.strerror})") from error
    if digest != entry["sha256"]:
        raise DamagedError(f"{path.name} is damaged (sha256 differs)")


def load_state(path: Path) -> State:
    """Load one verified file without executing code or unpacking more than its size."""
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(record.file_size for record in archive.infolist())
        if unpacked > path.stat().st_size:
            raise DamagedError(f"{path.name} unpacks to {unpacked} bytes")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except DamagedError:
        raise
    except Exception as error:  # a crafted file can make the readers raise anything
        raise DamagedError(f"{path.name} is not a safe torch file") from error
    if not isinstance(state, dict):
        raise DamagedError(f"{path.name} does not hold a dict")
    return state


def require_name(name: str) -> None:
    """Raise TypeError when a state or stream could not be stored under `name`."""
    if not _NAME.fullmatch(name):
        raise TypeError(f"state name {name!r} must be lower-case letters, digits and _")


def require_plain(name: str, state: State) -> None:
    """Raise TypeError when `state` could not be stored under `name` and read back safely."""
    require_name(name)
    _require_plain_value(state, name)


def _require_plain_value(value: object, where: str) -> None:
    """Raise TypeError when `value` holds something that ``weights_only=True`` would refuse."""
    if type(value) in (dict, OrderedDict):
        for key, item in cast("dict[object, object]", value).items():
            _require_plain_value(key, f"{where} (key)")
            _require_plain_value(item, f"{where}[{key!r}]")
    elif type(value) in (list, tuple, torch.Size):
        for index, item in enumerate(cast("list[object]", value)):
            _require_plain_value(item, f"{where}[{index}]")
    elif type(value) not in _PLAIN:
        raise TypeError(
            f"{where} is a {type(value).__name__}; a checkpoint holds tensors, numbers, strings, "
            "None, dict, list and tuple only"
        )


def written_bytes(write: Writer) -> int:
    """Return how many bytes a file takes on the disk."""
    sink = HashingFile(None)
    write(cast(BinaryIO, sink))
    return sink.bytes


def write_bytes(path: Path, data: bytes) -> None:
    """Write a small file and bring it safely to the disk."""
    with path.open("wb") as file:
        file.write(data)
        _sync(file)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Bring the names in a folder safely to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

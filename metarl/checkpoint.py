"""Checkpoints that survive a kill at any moment and are verified before they are read.

Layout of a folder of checkpoints::

    latest                     "step-000000123 SHA256-OF-ITS-MANIFEST", replaced atomically
    step-000000123/agent.pt    one file per named state, read with ``weights_only=True``
    step-000000123/manifest.json   size and sha256 of every file, versions, labels

A checkpoint is written into ``step-….tmp``, synced file by file, renamed, and only then named by
``latest``; the newest `KEEP_CHECKPOINTS` stay. The manifest guards against accidents (truncation,
bit flips, exchanged files), not against an attacker, who could write a manifest that fits. What
stands between an attacker and the machine is that loading never executes code.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import torch

from metarl.errors import UsageError

KEEP_CHECKPOINTS = 2
FORMAT = 1

_LATEST = "latest"
_MANIFEST = "manifest.json"
_TEMPORARY = ".tmp"
_STEP_NAME = re.compile(r"step-(\d{9,})")
_POINTER = re.compile(rb"(step-\d{9,}) ([0-9a-f]{64})\n")
_STATE_NAME = re.compile(r"[a-z][a-z0-9_]*")
_PACKAGES = ("metarl", "torch", "numpy", "scipy", "gymnasium", "mujoco")
_PLAIN = (torch.Tensor, str, bytes, bool, int, float, type(None))

State = dict[str, Any]


class CheckpointWarning(UserWarning):
    """A damaged checkpoint was passed over and an older one is used."""


class DamagedCheckpointError(Exception):
    """One checkpoint cannot be used; the message says why. `load_checkpoint` handles it."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files agreed with their manifest."""

    path: Path
    """Its folder."""
    step: int
    """Environment steps taken when it was saved."""
    states: dict[str, State]
    """The named states, tensors on the CPU."""
    labels: dict[str, str]
    """What the writer noted about the run, such as its agent and the hash of its config."""
    versions: dict[str, str]
    """Versions of Python and the packages that wrote it."""


@cache
def software_versions() -> dict[str, str]:
    """Return the versions of Python, the platform and the packages that decide on results."""
    versions = {"python": platform.python_version(), "platform": platform.platform()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def list_checkpoints(root: Path) -> list[Path]:
    """Return the checkpoint folders in `root`, newest first, without looking inside them."""
    if not root.is_dir():
        return []
    paths = [p for p in root.iterdir() if _STEP_NAME.fullmatch(p.name) and p.is_dir()]
    return sorted(paths, key=_step_of, reverse=True)


def save_checkpoint(
    root: Path,
    step: int,
    states: Mapping[str, State],
    *,
    labels: Mapping[str, str] | None = None,
    keep: int = KEEP_CHECKPOINTS,
) -> Path:
    """Save the named `states` so that a kill or power cut at any moment leaves a good checkpoint.

    Args:
        root: Folder of all checkpoints of a run; it is created.
        step: Environment steps so far; names the checkpoint. One of the same step is replaced.
        states: Name to nested dict/list/tuple of tensors, numbers and strings; nothing else, so
            that it can be read back without executing code.
        labels: Short notes that `load_checkpoint` returns, such as the name of the agent.
        keep: How many of the newest checkpoints stay.

    Returns:
        The folder of the new checkpoint.

    Raises:
        UsageError: The disk is full or read-only. Older checkpoints are intact.
        TypeError: A state holds an object that could not be loaded safely (a bug of the caller).
    """
    for name, state in states.items():
        if not _STATE_NAME.fullmatch(name):
            raise TypeError(f"state name {name!r} must be lower-case letters, digits and _")
        _require_plain(state, name)
    target = root / f"step-{step:09d}"
    temporary = root / (target.name + _TEMPORARY)
    try:
        root.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(root)
        manifest = _write_files(temporary, step, states, labels or {})
        _publish(temporary, target, hashlib.sha256(manifest).hexdigest())
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise UsageError(_explain_failure(target, states, error)) from error
    _rotate(root, step, keep)
    return target


def load_checkpoint(root: Path, names: Iterable[str] | None = None) -> Checkpoint:
    """Load the newest good checkpoint in `root`; warn about every newer one that is damaged.

    Args:
        root: Folder of all checkpoints of a run. Nothing in it is written.
        names: The states to load, all by default. Every file is verified in any case.

    Raises:
        UsageError: There is no checkpoint, or none of them is good.
    """
    wanted = None if names is None else tuple(names)
    candidates, problems = _candidates(root)
    if not candidates:
        raise UsageError(f"{root} holds no checkpoint; train the run first")
    for path in candidates:
        try:
            checkpoint = _read(path, wanted)
        except DamagedCheckpointError as error:
            problems.append(f"{path.name}: {error}")
            continue
        if problems:
            message = f"{root}: damage found, going on from {path.name} ({'; '.join(problems)})"
            warnings.warn(message, CheckpointWarning, stacklevel=2)
        return checkpoint
    raise UsageError(f"no checkpoint in {root} is good ({'; '.join(problems)})")


class _HashingFile:
    """A binary file that torch can write to, which knows the digest of what went through it."""

    def __init__(self, file: BinaryIO | None) -> None:
        """Write to `file`, or only count and hash when it is None."""
        self.file = file
        self.digest = hashlib.sha256()
        self.bytes = 0
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
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
        """Do nothing; `_write_synced` flushes once at the end."""


def _write_state(path: Path, state: State) -> dict[str, int | str]:
    """Serialise `state` to `path`, synced; return its size in bytes and sha256."""
    with path.open("wb") as file:
        sink = _HashingFile(file)
        torch.save(state, cast("IO[bytes]", sink))
        if sink.error is not None:
            raise sink.error
        _sync(file)
    return {"bytes": sink.bytes, "sha256": sink.digest.hexdigest()}


def _write_files(
    folder: Path, step: int, states: Mapping[str, State], labels: Mapping[str, str]
) -> bytes:
    """Write all states and the manifest into the new `folder`; return the manifest's bytes."""
    folder.mkdir()
    content = {
        "format": FORMAT,
        "step": step,
        "versions": software_versions(),
        "labels": dict(labels),
        "files": {f"{n}.pt": _write_state(folder / f"{n}.pt", s) for n, s in states.items()},
    }
    raw = _encode_manifest(content)
    _write_bytes(folder / _MANIFEST, raw)
    _sync_folder(folder)
    return raw


def _encode_manifest(content: Mapping[str, Any]) -> bytes:
    """Serialise a manifest with its own digest; equal content gives equal bytes."""
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    signed = {"content": content, "sha256": digest}
    return (json.dumps(signed, sort_keys=True, indent=1) + "\n").encode()


def _publish(temporary: Path, target: Path, manifest_digest: str) -> None:
    """Give a complete checkpoint its name, then make `latest` point at it."""
    root = target.parent
    if target.exists():
        # A folder cannot be replaced in one rename; between the two the older ones are used.
        target.rename(root / (target.name + ".old" + _TEMPORARY))
    temporary.rename(target)
    _sync_folder(root)
    pointer = root / (_LATEST + _TEMPORARY)
    _write_bytes(pointer, f"{target.name} {manifest_digest}\n".encode())
    pointer.replace(root / _LATEST)
    _sync_folder(root)


def _rotate(root: Path, step: int, keep: int) -> None:
    """Remove all but the newest `keep`, and all of a future that was given up for `step`."""
    past = [path for path in list_checkpoints(root) if _step_of(path) <= step]
    kept = set(past[: max(keep, 1)])
    for path in list_checkpoints(root):
        if path not in kept:
            shutil.rmtree(path, ignore_errors=True)
    _remove_leftovers(root)


def _remove_leftovers(root: Path) -> None:
    """Remove what a killed save left behind."""
    for path in root.glob("*" + _TEMPORARY):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _candidates(root: Path) -> tuple[list[Path], list[str]]:
    """Return the checkpoints in the order to try them, and what is wrong with `latest`."""
    paths = list_checkpoints(root)
    try:
        pointer = _POINTER.fullmatch((root / _LATEST).read_bytes())
        name = pointer[1].decode() if pointer else ""
        manifest = (root / name / _MANIFEST).read_bytes()
    except OSError:
        pointer = None
    if pointer is None:
        return paths, ["latest: does not name a checkpoint"] if paths else []
    if hashlib.sha256(manifest).hexdigest() != pointer[2].decode():
        return paths, ["latest: does not agree with the manifest that it names"]
    first = root / name
    return [first, *(path for path in paths if path != first)], []


def _read(path: Path, names: tuple[str, ...] | None) -> Checkpoint:
    """Verify every file of the checkpoint at `path`, then load the named states."""
    content = _read_manifest(path)
    for file_name, entry in content["files"].items():
        _verify_file(path / file_name, entry)
    available = [name.removesuffix(".pt") for name in content["files"]]
    missing = set(names or ()) - set(available)
    if missing:
        raise DamagedCheckpointError(f"has no state {sorted(missing)[0]!r}")
    chosen = available if names is None else names
    return Checkpoint(
        path=path,
        step=content["step"],
        states={name: _load_state(path / f"{name}.pt") for name in chosen},
        labels=content["labels"],
        versions=content["versions"],
    )


def _read_manifest(path: Path) -> dict[str, Any]:
    """Return the manifest's content if every byte of it is as it was written."""
    try:
        raw = (path / _MANIFEST).read_bytes()
        content: dict[str, Any] = json.loads(raw)["content"]
        intact = _encode_manifest(content) == raw
        names = [name.removesuffix(".pt") for name in content["files"]]
        fits = content["format"] == FORMAT and content["step"] == _step_of(path)
    except OSError as error:
        raise DamagedCheckpointError(f"{_MANIFEST} cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedCheckpointError(f"{_MANIFEST} is not a manifest") from error
    if not (intact and fits and all(map(_STATE_NAME.fullmatch, names))):
        raise DamagedCheckpointError(f"{_MANIFEST} is damaged or of another checkpoint")
    return content


def _verify_file(path: Path, entry: Mapping[str, int | str]) -> None:
    """Raise `DamagedCheckpointError` unless size and sha256 of `path` are those of `entry`."""
    try:
        size = path.stat().st_size
        if size != entry["bytes"]:
            raise DamagedCheckpointError(f"{path.name} has {size} bytes, not {entry['bytes']}")
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DamagedCheckpointError(f"{path.name} cannot be read ({error.strerror})") from error
    if digest != entry["sha256"]:
        raise DamagedCheckpointError(f"{path.name} is damaged (sha256 differs)")


def _load_state(path: Path) -> State:
    """Load one verified file without executing code or unpacking more than its size."""
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(record.file_size for record in archive.infolist())
        if unpacked > path.stat().st_size:
            raise DamagedCheckpointError(f"{path.name} unpacks to {unpacked} bytes")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except DamagedCheckpointError:
        raise
    except Exception as error:  # a crafted file can make the readers raise anything
        raise DamagedCheckpointError(f"{path.name} is not a safe torch file") from error
    if not isinstance(state, dict):
        raise DamagedCheckpointError(f"{path.name} does not hold a dict")
    return state


def _require_plain(value: object, where: str) -> None:
    """Raise TypeError when `value` holds something that `weights_only=True` would refuse."""
    if isinstance(value, dict):
        for key, item in value.items():
            _require_plain(key, f"{where} (key)")
            _require_plain(item, f"{where}[{key!r}]")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _require_plain(item, f"{where}[{index}]")
    elif type(value) not in _PLAIN and not isinstance(value, torch.Tensor):
        raise TypeError(
            f"{where} is a {type(value).__name__}; a checkpoint holds tensors, numbers, strings, "
            "None, dict, list and tuple only"
        )


def _explain_failure(target: Path, states: Mapping[str, State], error: OSError) -> str:
    """Say in one sentence what could not be saved, how large it is and what is still good."""
    sink = _HashingFile(None)
    for state in states.values():
        torch.save(state, cast("IO[bytes]", sink))
    existing = next(path for path in (target.parent, *target.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    good = [path for path in list_checkpoints(target.parent) if path != target]
    last = f"the last checkpoint, {good[0].name}, is intact" if good else "none was saved before"
    return (
        f"cannot save checkpoint {target}: {error.strerror or error} "
        f"({sink.bytes} bytes needed, {free} bytes free); {last}"
    )


def _step_of(path: Path) -> int:
    match = _STEP_NAME.fullmatch(path.name)
    return int(match.group(1)) if match else -1


def _write_bytes(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        _sync(file)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

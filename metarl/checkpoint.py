"""Checkpoints that survive a kill at any moment and are verified before they are read.

Layout of a folder of checkpoints::

    latest                     "step-000000123 SHA256-OF-ITS-MANIFEST", replaced atomically
    step-000000123/agent.pt    one file per named state, read with ``weights_only=True``
    step-000000123/replay.bin  one file per stream: a memory too large to be copied
    step-000000123/manifest.json   size and sha256 of every file, versions, labels

A checkpoint is written into ``step-….tmp``, synced file by file, renamed, and only then named by
``latest``; the newest `KEEP_CHECKPOINTS` stay. What the manifest can and cannot do is said in
`metarl.states`.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from metarl.errors import UsageError
from metarl.states import (
    MANIFEST,
    DamagedError,
    State,
    Stream,
    Writer,
    load_state,
    read_manifest,
    require_name,
    require_plain,
    sync_folder,
    verify_file,
    write_bytes,
    write_states,
    writers,
    written_bytes,
)

KEEP_CHECKPOINTS = 2

_LATEST = "latest"
_TEMPORARY = ".tmp"
_STEP_NAME = re.compile(r"step-(\d{9,})")
_POINTER = re.compile(rb"(step-\d{9,}) ([0-9a-f]{64})\n")


class CheckpointWarning(UserWarning):
    """A damaged checkpoint was passed over and an older one is used."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files agreed with their manifest."""

    path: Path
    """Its folder."""
    step: int
    """Environment steps taken when it was saved."""
    states: dict[str, State]
    """The named states, tensors on the CPU."""
    streams: dict[str, Path]
    """The files of the named streams, which `read_streams` reads."""
    labels: dict[str, str]
    """What the writer noted about the run, such as its agent and the hash of its config."""
    versions: dict[str, str]
    """Versions of Python and the packages that wrote it."""

    def read_streams(self, streams: Mapping[str, Stream]) -> None:
        """Let every stream take over what was saved under its name.

        Raises:
            UsageError: Names or layouts are not those that were saved.
        """
        if streams.keys() != self.streams.keys():
            saved, wanted = (", ".join(sorted(x)) or "none" for x in (self.streams, streams))
            raise UsageError(f"it holds the memories {saved}, not {wanted}")
        for name, stream in streams.items():
            try:
                with self.streams[name].open("rb") as file:
                    stream.read(file)
            except (DamagedError, UsageError) as error:
                raise UsageError(f"{name}: {error}") from error
            except OSError as error:
                raise UsageError(f"{name} cannot be read ({error.strerror})") from error


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
    streams: Mapping[str, Stream] | None = None,
    labels: Mapping[str, str] | None = None,
    keep: int = KEEP_CHECKPOINTS,
) -> Path:
    """Save states and streams so that a kill or power cut at any moment leaves a good checkpoint.

    Args:
        root: Folder of all checkpoints of a run; it is created.
        step: Environment steps so far; names the checkpoint. One of the same step is replaced.
        states: Name to nested dict/list/tuple of tensors, numbers and strings; nothing else, so
            that it can be read back without executing code.
        streams: Name to memory that writes itself, such as replay.
        labels: Short notes that `load_checkpoint` returns, such as the name of the agent.
        keep: How many of the newest checkpoints stay.

    Returns:
        The folder of the new checkpoint.

    Raises:
        UsageError: The disk is full or read-only. Older checkpoints are intact.
        TypeError: A state holds an object that could not be loaded safely (a bug of the caller).
    """
    for name, state in states.items():
        require_plain(name, state)
    for name in streams or {}:
        require_name(name)
    files = writers(states, streams or {})
    target = root / f"step-{step:09d}"
    temporary = root / (target.name + _TEMPORARY)
    try:
        root.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(root)
        manifest = write_states(temporary, step, files, labels or {})
        _publish(temporary, target, hashlib.sha256(manifest).hexdigest())
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise UsageError(_explain_failure(target, files, error)) from error
    _rotate(root, step, keep)
    return target


def load_checkpoint(root: Path, names: Iterable[str] | None = None) -> Checkpoint:
    """Load the newest good checkpoint in `root`; warn about every newer one that is damaged.

    Args:
        root: Folder of all checkpoints of a run. Nothing in it is written.
        names: The states to load, all by default. Every file is verified in any case; streams
            are read by `Checkpoint.read_streams`.

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
        except DamagedError as error:
            problems.append(f"{path.name}: {error}")
            continue
        if problems:
            message = f"{root}: damage found, going on from {path.name} ({'; '.join(problems)})"
            warnings.warn(message, CheckpointWarning, stacklevel=2)
        return checkpoint
    raise UsageError(f"no checkpoint in {root} is good ({'; '.join(problems)})")


def _publish(temporary: Path, target: Path, manifest_digest: str) -> None:
    """Give a complete checkpoint its name, then make `latest` point at it."""
    root = target.parent
    if target.exists():
        # A folder cannot be replaced in one rename; between the two the older ones are used.
        target.rename(root / (target.name + ".old" + _TEMPORARY))
    temporary.rename(target)
    sync_folder(root)
    pointer = root / (_LATEST + _TEMPORARY)
    write_bytes(pointer, f"{target.name} {manifest_digest}\n".encode())
    pointer.replace(root / _LATEST)
    sync_folder(root)


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
        manifest = (root / name / MANIFEST).read_bytes()
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
    content = read_manifest(path, _step_of(path))
    for file_name, entry in content["files"].items():
        verify_file(path / file_name, entry)
    available = _stems(content["files"], ".pt")
    missing = set(names or ()) - set(available)
    if missing:
        raise DamagedError(f"has no state {sorted(missing)[0]!r}")
    chosen = available if names is None else names
    return Checkpoint(
        path=path,
        step=content["step"],
        states={name: load_state(path / f"{name}.pt") for name in chosen},
        streams={name: path / f"{name}.bin" for name in _stems(content["files"], ".bin")},
        labels=content["labels"],
        versions=content["versions"],
    )


def _stems(names: Iterable[str], suffix: str) -> list[str]:
    """The names with `suffix`, without it."""
    return [name.removesuffix(suffix) for name in names if name.endswith(suffix)]


def _explain_failure(target: Path, files: Mapping[str, Writer], error: OSError) -> str:
    """Say in one sentence what could not be saved, how large it is and what is still good."""
    needed = sum(map(written_bytes, files.values()))
    existing = next(path for path in (target.parent, *target.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    good = [path for path in list_checkpoints(target.parent) if path != target]
    last = f"the last checkpoint, {good[0].name}, is intact" if good else "none was saved before"
    return (
        f"cannot save checkpoint {target}: {error.strerror or error} "
        f"({needed} bytes needed, {free} bytes free); {last}"
    )


def _step_of(path: Path) -> int:
    match = _STEP_NAME.fullmatch(path.name)
    return int(match.group(1)) if match else -1

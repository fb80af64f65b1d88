"""The run folder: everything about one training run, readable without this package.

Layout::

    config.yaml      every value, resolved: agent, family, training
    versions.json    Python, packages, platform
    metrics.jsonl    figures that depend on the config alone; a resumed run gives the same bytes
    timing.jsonl     steps per second and seconds, which no two runs share
    events.out.*     the same figures for TensorBoard
    checkpoints/     see `metarl.checkpoint`
    evaluation/      adaptation curves, figures, videos
"""

from __future__ import annotations

import fcntl
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Self

import yaml

from metarl.checkpoint import software_versions
from metarl.configs import config_hash, first_difference, require_keys
from metarl.errors import UsageError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_CONFIG = "config.yaml"
_VERSIONS = "versions.json"
_TEMPORARY = ".tmp"


@dataclass(frozen=True)
class RunConfig:
    """What was trained, as plain values: numbers, strings, lists and dicts."""

    agent: str
    """name of the agent, as the command line knows it"""
    agent_config: dict[str, Any]
    """every field of the agent's config dataclass"""
    family: str
    """name of the family, as the command line knows it"""
    family_options: dict[str, Any]
    """every field of the family"""
    training: dict[str, Any] = field(default_factory=dict)
    """every field of `metarl.training.TrainingConfig`, the seed among them"""

    def plain(self) -> dict[str, Any]:
        """Return the nested dict that `config.yaml` holds."""
        return {
            "agent": self.agent,
            "agent_config": self.agent_config,
            "family": self.family,
            "family_options": self.family_options,
            "training": self.training,
        }

    @property
    def digest(self) -> str:
        """The sha256 of all values."""
        return config_hash(self.plain())


@dataclass(frozen=True)
class RunFolder:
    """A folder that holds one training run; made by `create` or `open`."""

    path: Path
    """the folder"""
    config: RunConfig
    """what `config.yaml` says"""

    @property
    def checkpoints(self) -> Path:
        """Where `metarl.checkpoint` keeps the states."""
        return self.path / "checkpoints"

    @property
    def evaluation(self) -> Path:
        """Where adaptation curves go."""
        return self.path / "evaluation"

    @property
    def metrics(self) -> Path:
        """One JSON object a line: the figures of each iteration and each evaluation."""
        return self.path / "metrics.jsonl"

    @classmethod
    def create(cls, path: Path, config: RunConfig) -> Self:
        """Make the folder of a new run.

        Raises:
            UsageError: `path` holds a run or anything else already, or cannot be written.
        """
        try:
            path.mkdir(parents=True, exist_ok=True)
            _require_free(path)
            _write_atomically(path / _VERSIONS, json.dumps(software_versions(), indent=1) + "\n")
            text = yaml.safe_dump(config.plain(), sort_keys=False)
            # The config comes last: with it the folder is a run, complete from the start.
            _write_atomically(path / _CONFIG, text)
        except OSError as error:
            raise UsageError(f"cannot make run folder {path}: {error.strerror or error}") from error
        return cls(path, config)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open the folder of an existing run; reading it executes nothing.

        Raises:
            UsageError: `path` is not a run folder, or its `config.yaml` is not what a run wrote.
        """
        file = path / _CONFIG
        if not file.is_file():
            raise UsageError(f"{path} is not a run folder: it has no {_CONFIG}")
        try:
            values = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
            reason = " ".join(str(error).split())
            raise UsageError(f"{file} cannot be read: {reason}") from error
        return cls(path, _parse_config(values, str(file)))

    def require_same(self, config: RunConfig) -> None:
        """Raise `UsageError` naming the first value in which `config` differs from the run's."""
        difference = first_difference(self.config.plain(), config.plain())
        if difference:
            name, trained, asked = difference
            raise UsageError(
                f"run folder {self.path} was trained with {name} = {trained!r}, asked for "
                f"{asked!r}; go on with the same options or choose another --run-dir"
            )

    @property
    def labels(self) -> dict[str, str]:
        """What each checkpoint notes about its run."""
        return {
            "agent": self.config.agent,
            "family": self.config.family,
            "config": self.config.digest,
        }

    def require_own(self, labels: Mapping[str, str], checkpoint: Path) -> None:
        """Raise `UsageError` unless a checkpoint with these labels belongs to this run."""
        for key, own in self.labels.items():
            other = labels.get(key)
            if other != own:
                raise UsageError(
                    f"checkpoint {checkpoint} is of another run: its {key} is {other!r}, that of "
                    f"run folder {self.path} is {own!r}"
                )

    def open_log(self, metrics_bytes: int = 0, step: int = 0) -> RunLog:
        """Open the run's logs for writing after `step`; see `RunLog`."""
        return RunLog(self.path, metrics_bytes, step)


class RunLog:
    """The logs of a run that is being trained; a context manager."""

    def __init__(self, path: Path, metrics_bytes: int = 0, step: int = 0) -> None:
        """Open the logs in the run folder `path` and drop what was written after a checkpoint.

        Args:
            path: The run folder.
            metrics_bytes: How much of `metrics.jsonl` the checkpoint vouches for.
            step: Environment steps at the checkpoint; TensorBoard hides what came later.

        Raises:
            UsageError: The folder cannot be written, or `metrics.jsonl` was shortened.
        """
        file = path / "metrics.jsonl"
        self._path = path
        self._purge_step = step + 1 if step else None
        self._board: SummaryWriter | None = None
        try:
            self._metrics: BinaryIO = file.open("ab")
            self._timing: BinaryIO = (path / "timing.jsonl").open("ab")
        except OSError as error:
            raise UsageError(f"cannot write to {error.filename}: {error.strerror}") from error
        self._lock(path)
        size = file.stat().st_size
        if size < metrics_bytes:
            self.close()
            raise UsageError(
                f"{file} has {size} bytes where the checkpoint expects {metrics_bytes}; "
                "put the file back as it was, or start a new run"
            )
        self._metrics.truncate(metrics_bytes)
        self._metrics.seek(0, os.SEEK_END)

    def _lock(self, path: Path) -> None:
        """Keep a second trainer out; the lock dies with the process, however it ends."""
        try:
            fcntl.flock(self._metrics, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise UsageError(
                f"run folder {path} is being trained by another process; wait for it, or end it"
            ) from None
        except OSError:
            pass  # a file system without locks

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def record(self, step: int, values: Mapping[str, Any]) -> None:
        """Append deterministic figures to `metrics.jsonl` and TensorBoard.

        Args:
            step: Environment steps so far.
            values: Names to numbers or flat lists of numbers (one for each episode).
        """
        row = {name: _json_value(value) for name, value in values.items()}
        self._append(self._metrics, {"step": step, **row})
        self._to_board(step, values)

    def record_timing(self, step: int, values: Mapping[str, float]) -> None:
        """Append figures that depend on the machine to `timing.jsonl` and TensorBoard."""
        self._append(self._timing, {"step": step, **values})
        self._to_board(step, {f"timing/{name}": value for name, value in values.items()})

    def sync(self) -> int:
        """Bring `metrics.jsonl` safely to the disk; return its size in bytes."""
        try:
            os.fsync(self._metrics.fileno())
        except OSError as error:
            raise UsageError(f"cannot write to {self._metrics.name}: {error.strerror}") from error
        return self._metrics.tell()

    def close(self) -> None:
        """Close all files."""
        self._metrics.close()
        self._timing.close()
        if self._board is not None:
            self._board.close()

    def _append(self, file: BinaryIO, row: Mapping[str, Any]) -> None:
        line = json.dumps(row, allow_nan=False) + "\n"
        try:
            file.write(line.encode())
            file.flush()
        except OSError as error:
            raise UsageError(
                f"cannot write {len(line)} bytes to {file.name}: {error.strerror}; "
                "the last checkpoint is intact"
            ) from error

    def _to_board(self, step: int, values: Mapping[str, Any]) -> None:
        if self._board is None:
            # Importing TensorBoard takes longer than a short run.
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(self._path), purge_step=self._purge_step)
        for name, value in values.items():
            if isinstance(value, list | tuple):
                for index, item in enumerate(value, start=1):
                    self._board.add_scalar(f"{name}_{index}", item, step)
            elif isinstance(value, int | float):
                self._board.add_scalar(name, value, step)


def _json_value(value: Any) -> Any:
    """Replace what JSON cannot say (NaN, infinities) by null, in lists too."""
    if isinstance(value, list | tuple):
        return [_json_value(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _parse_config(values: Any, where: str) -> RunConfig:
    """Check the content of `config.yaml` key by key."""
    if not isinstance(values, dict):
        raise UsageError(f"{where} must hold a mapping, got {type(values).__name__}")
    kinds = {
        "agent": str,
        "agent_config": dict,
        "family": str,
        "family_options": dict,
        "training": dict,
    }
    require_keys(values, kinds, where)
    for name, kind in kinds.items():
        if not isinstance(values[name], kind):
            expected = "a name" if kind is str else "a mapping of option to value"
            raise UsageError(f"{where}: {name} must be {expected}, got {values[name]!r}")
    return RunConfig(**values)


def _require_free(path: Path) -> None:
    """Raise `UsageError` unless `path` is empty but for what a killed `create` left behind."""
    if (path / _CONFIG).exists():
        raise UsageError(
            f"run folder {path} already holds a run; add --resume to go on with it or choose "
            "another --run-dir"
        )
    own = {_VERSIONS, _VERSIONS + _TEMPORARY, _CONFIG + _TEMPORARY}
    others = sorted(entry.name for entry in path.iterdir() if entry.name not in own)
    if others:
        raise UsageError(
            f"{path} is not empty (it holds {others[0]}) and is not a run folder; choose another "
            "--run-dir"
        )


def _write_atomically(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + _TEMPORARY)
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)

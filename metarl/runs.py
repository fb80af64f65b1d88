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

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import yaml

from metarl.configs import config_hash, first_difference, require_keys
from metarl.errors import UsageError
from metarl.logs import RunLog
from metarl.versions import software_versions

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

    def remove_if_unused(self) -> None:
        """Remove the folder if nothing was trained in it, so that its name is free again."""
        if not self.metrics.is_file() or self.metrics.stat().st_size == 0:
            shutil.rmtree(self.path, ignore_errors=True)

    def open_log(self, metrics_bytes: int = 0, step: int = 0) -> RunLog:
        """Open the run's logs for writing after `step`; see `metarl.logs.RunLog`."""
        return RunLog(self.path, metrics_bytes, step)


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

"""Collect runs for a report: by family, by agent, seeds together, all measured in the same way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from metarl.adaptation import AdaptationCurve
from metarl.checkpoint import list_checkpoints
from metarl.configs import config_hash
from metarl.envs.bayes_optimal import Reference, bayes_optimal
from metarl.envs.registry import FAMILIES
from metarl.errors import UsageError
from metarl.experiments.evaluation import Protocol, evaluate_run, save_curve, saved_curves
from metarl.experiments.loading import family_of, open_agent_folder, open_run
from metarl.experiments.metrics import Metrics
from metarl.runs import RunFolder


def protocol_of(curve: AdaptationCurve) -> Protocol:
    """How `curve` was measured."""
    info = curve.info
    return Protocol(
        len(curve.tasks),
        curve.episodes,
        info["split"],
        info["seed"],
        info["stochastic"],
        info.get("worlds_asked", 0),  # older curves: one world a task
        info.get("protocol", ""),
    )


@dataclass
class RunRecord:
    """What a report needs to know about one run."""

    folder: RunFolder
    """where it is"""
    step: int
    """environment steps at its newest checkpoint"""
    curves: list[AdaptationCurve] = field(default_factory=list)
    """of the agent at that checkpoint, the oldest first"""

    @classmethod
    def load(cls, path: Path) -> RunRecord:
        """Read a run folder.

        Raises:
            UsageError: if it is not one, or holds a damaged curve.
        """
        folder = open_agent_folder(path)
        newest = [int(p.name.partition("-")[2]) for p in list_checkpoints(folder.checkpoints)]
        step = max(newest, default=0)
        curves = saved_curves(folder.evaluation)
        return cls(folder, step, [c for c in curves if c.info.get("trained_steps") == step])

    @cached_property
    def metrics(self) -> Metrics:
        """What was logged while training."""
        return Metrics.load(self.folder.metrics)

    @cached_property
    def timing(self) -> Metrics:
        """How long training took."""
        return Metrics.load(self.folder.path / "timing.jsonl")

    def curve(self, protocol: Protocol, ablation: str = "none") -> AdaptationCurve | None:
        """The newest curve that was measured in this way."""
        found = (
            c
            for c in reversed(self.curves)
            if c.info["ablation"] == ablation and protocol_of(c) == protocol
        )
        return next(found, None)

    def measure(self, protocol: Protocol) -> None:
        """Evaluate the run and keep the curve in its folder."""
        run = open_run(self.folder.path, episodes=protocol.episodes)
        curve = evaluate_run(run, protocol)
        save_curve(run, curve)
        self.curves.append(curve)


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but their seed."""

    label: str
    """name of the agent, with the settings that tell groups of one agent apart"""
    runs: tuple[RunRecord, ...]
    """one for each seed"""

    def curves(self, protocol: Protocol, ablation: str = "none") -> list[AdaptationCurve]:
        """The curves that were measured in this way, one for each run that has it."""
        found = (run.curve(protocol, ablation) for run in self.runs)
        return [curve for curve in found if curve is not None]


@dataclass(frozen=True)
class Comparison:
    """All groups on one family, and how they were measured."""

    family: str
    """name of the family"""
    groups: tuple[Group, ...]
    """in the order in which their runs were given"""
    protocol: Protocol
    """what every run has a curve of"""

    @cached_property
    def reference(self) -> Reference | None:
        """What the best possible policy reaches, where that is known and quick to tell."""
        folder = self.groups[0].runs[0].folder
        if folder.config.family not in FAMILIES:
            return None
        try:
            family = family_of(folder.config, str(folder.path))
        except UsageError:  # curves can be shown of a family whose options have changed since
            return None
        episodes = self.groups[0].curves(self.protocol)[0].episodes
        return bayes_optimal(family, episodes, quick=True)

    @cached_property
    def published(self) -> Protocol | None:
        """The published protocol that most runs were measured by, where any was."""
        counts = Counter(
            protocol
            for group in self.groups
            for run in group.runs
            for protocol in {protocol_of(curve) for curve in run.curves}
            if protocol.name
        )

        def order(p: Protocol) -> tuple[object, ...]:
            return counts[p], p.split == "held-out", not p.stochastic, -p.seed

        return max(counts, key=order, default=None)

    def others(self) -> list[tuple[Group, Protocol, str]]:
        """What else some runs have a curve of: other ablations, splits, numbers of episodes.

        Published protocols have a section of their own.
        """
        found = []
        for group in self.groups:
            keys = {(protocol_of(c), c.info["ablation"]) for run in group.runs for c in run.curves}
            keys = {key for key in keys if not key[0].name} - {(self.protocol, "none")}
            found += [(group, *key) for key in sorted(keys, key=lambda key: (key[1], str(key[0])))]
        return found


def compare(runs: Sequence[RunRecord]) -> list[Comparison]:
    """Group runs and evaluate those that lack the curve that most of their family have."""
    families = _by(runs, lambda run: [run.folder.config.family, _same_tasks(run)])
    comparisons = []
    for members in families:
        protocol = _common_protocol(members)
        for run in members:
            if run.curve(protocol) is None:
                run.measure(protocol)
        family = members[0].folder.config.family
        comparisons.append(Comparison(family, tuple(grouped(members)), protocol))
    return comparisons


def grouped(runs: Sequence[RunRecord]) -> list[Group]:
    """Runs that differ in nothing but their seed together."""
    return _labelled(_by(runs, lambda run: [run.folder.config.agent, _settings(run)]))


def _same_tasks(run: RunRecord) -> dict[str, Any]:
    """The family's options but for the length of a trial, which the evaluation decides on."""
    options = run.folder.config.family_options
    return {name: value for name, value in options.items() if name != "episodes"}


def _common_protocol(runs: Sequence[RunRecord]) -> Protocol:
    """What most runs have a curve of, held-out tasks first; the usual one if none has any.

    A published protocol that all have comes before everything else, and one that some lack is left
    out: it takes too long to be measured unasked.
    """
    counts = Counter(
        protocol
        for run in runs
        for protocol in {protocol_of(c) for c in run.curves if c.info["ablation"] == "none"}
    )
    counts = Counter({p: n for p, n in counts.items() if not p.name or n == len(runs)})
    if not counts:
        return Protocol(episodes=runs[0].folder.config.family_options["episodes"])
    return max(
        counts,
        key=lambda p: (
            bool(p.name),
            p.split == "held-out",
            not p.stochastic,
            counts[p],
            p.tasks,
        ),
    )


def _settings(run: RunRecord) -> dict[str, Any]:
    """Every setting of a run that decides on what is learned, but its seed, by name."""
    config = run.folder.config
    training = {name: config.training.get(name) for name in ("total_steps", "num_worlds")}
    return {**config.agent_config, **training}


def _by(runs: Iterable[RunRecord], key: Any) -> list[list[RunRecord]]:
    """Runs with the same key together, in the order of the first of each."""
    groups: dict[str, list[RunRecord]] = {}
    for run in runs:
        groups.setdefault(config_hash({"key": key(run)}), []).append(run)
    return list(groups.values())


def _labelled(groups: Sequence[Sequence[RunRecord]]) -> list[Group]:
    """Name each group by its agent and by what sets it apart from others of that agent."""
    labelled = []
    for group in groups:
        agent, mine = group[0].folder.config.agent, _settings(group[0])
        rivals = [_settings(other[0]) for other in groups if other[0].folder.config.agent == agent]
        apart = [
            _words(name, value)
            for name, value in mine.items()
            if value is not False and _differs(name, value, rivals)
        ]
        labelled.append(Group(", ".join([agent, *apart]), tuple(group)))
    return labelled


def _words(name: str, value: Any) -> str:
    """A setting as a person would write it."""
    if value is True:
        return name.replace("_", " ")
    if isinstance(value, list):
        value = " ".join(map(str, value))
    elif isinstance(value, int):
        value = f"{value:,}"
    return f"{name.replace('_', ' ')} {value}"


def _differs(name: str, value: Any, rivals: Sequence[Mapping[str, Any]]) -> bool:
    return any(rival.get(name) != value for rival in rivals)

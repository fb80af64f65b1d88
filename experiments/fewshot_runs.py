"""Train a few-shot learner in a run folder, open it again, judge it and draw what it does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from metarl.configs import to_plain
from metarl.errors import UsageError
from metarl.experiments.fewshot import METHODS, PREFIX
from metarl.experiments.figures import save
from metarl.experiments.metrics import Metrics
from metarl.fewshot.episodes import Data, Protocol
from metarl.fewshot.evaluation import Interval, Scores, evaluate
from metarl.fewshot.learner import Learner
from metarl.fewshot.training import (
    SEED_OF_EVALUATION,
    FewShotTraining,
    check_fits,
    judge,
    train_learner,
)
from metarl.runs import RunConfig, RunFolder

SHOTS = (1, 2, 3, 5, 10)
"""of the figure of scores against shots"""
TASKS_BY_SHOTS = 100
"""held-out tasks for each point of that figure"""


@dataclass(frozen=True)
class Trained:
    """A learner at the end of its training, and where it is kept."""

    method: str
    """as the command line knows it"""
    dataset: str
    """as the command line knows it"""
    folder: RunFolder
    """everything about the run"""
    learner: Learner
    """as it was saved last"""
    data: Data
    """what it was trained on"""
    training: FewShotTraining
    """how it was trained"""
    iterations: int
    """how far it came"""

    @property
    def parameters(self) -> int:
        """How many numbers are learned."""
        return sum(p.numel() for p in self.learner.network.parameters())

    @property
    def seconds(self) -> float:
        """How long training took, without evaluations; a part that was repeated counts once."""
        timing = Metrics.load(self.folder.path / "timing.jsonl")
        return float(sum(dict(zip(*timing.column("seconds"), strict=True)).values()))


def run_config(method: str, dataset: str, options: Any) -> RunConfig:
    """What `config.yaml` says about a run with the parsed `options` of a pair."""
    plain = {name: to_plain(getattr(options, name)) for name in ("learner", "data", "training")}
    return RunConfig(PREFIX + method, plain["learner"], dataset, plain["data"], plain["training"])


def build(method: str, options: Any, device: torch.device | str) -> Learner:
    """The learner of the parsed `options` of a pair, as it is before training.

    Raises:
        UsageError: the method does not do such tasks, or the data do not have them.
    """
    training: FewShotTraining = options.training
    spec = options.data.spec(training.protocol)
    kind = METHODS[method].learner_class()
    learner: Learner = kind(options.learner, spec, seed=training.seed, device=device)
    check_fits(learner, options.data, training)
    return learner


def train_run(
    method: str, dataset: str, options: Any, path: Path, resume: bool, device: torch.device
) -> Trained:
    """Train in the run folder `path`, or go on with what is there.

    Raises:
        UsageError: the method does not do such tasks, or the folder holds another run.
    """
    training: FewShotTraining = options.training
    # First of all: a method that refuses the tasks leaves no run folder behind.
    learner = build(method, options, device)
    config = run_config(method, dataset, options)
    if resume and (path / "config.yaml").is_file():
        folder = RunFolder.open(path)
        folder.require_same(config)
    else:
        folder = RunFolder.create(path, config)
    try:
        done = train_learner(learner, options.data, folder, training, resume=resume)
    except UsageError:
        folder.remove_if_unused()
        raise
    return Trained(
        method, dataset, folder, learner, options.data, training, done.counters.iterations
    )


def judge_run(trained: Trained, tasks: int) -> tuple[Scores, Path]:
    """Scores on held-out tasks, and the file in the run's folder that keeps them."""
    protocol = trained.training.protocol
    scores = judge(
        trained.learner,
        trained.data,
        trained.training,
        tasks,
        method=trained.method,
        dataset=trained.dataset,
        training_seed=trained.training.seed,
        iterations=trained.iterations,
    )
    path = trained.folder.evaluation / f"held-out-{tasks}-{_name(trained.data, protocol)}.json"
    scores.save(path)
    return scores, path


def _name(data: Data, protocol: Protocol) -> str:
    """A protocol in a file name."""
    ways = f"{protocol.ways}w" if data.kind == "classification" else ""
    return f"{ways}{protocol.shots}s"


def draw(trained: Trained, scores: Scores) -> list[Path]:
    """Draw what the learner does on held-out tasks; returns the files."""
    from metarl.experiments import fewshot_figures as figures

    arguments = trained.learner, trained.data, trained.training.protocol, SEED_OF_EVALUATION
    drawn = {}
    if trained.data.kind == "regression":
        drawn["fits"] = figures.fits_figure(*arguments)
    else:
        drawn["images"] = figures.images_figure(*arguments)
    if len(scores.steps) > 1:
        drawn["steps"] = figures.steps_figure({trained.method: scores})
    by_shots = scores_by_shots(trained)
    if len(by_shots) > 1:
        drawn["shots"] = figures.shots_figure({trained.method: by_shots}, scores.metric)
    paths = [trained.folder.evaluation / f"{name}.png" for name in drawn]
    for path, figure in zip(paths, drawn.values(), strict=True):
        save(figure, path)
    return paths


def scores_by_shots(trained: Trained) -> Mapping[int, tuple[float, float, float]]:
    """Accuracy or squared error against shots: mean, low and high after the last step.

    Shots for which the data have too few images, or that the method cannot take, are left out.
    """
    found = {}
    for shots in sorted({*SHOTS, trained.training.shots}):
        protocol = replace(trained.training.protocol, shots=shots)
        try:
            scores = evaluate(
                trained.learner,
                trained.data,
                protocol,
                TASKS_BY_SHOTS,
                SEED_OF_EVALUATION,
                steps=trained.learner.steps_shown[-1:],
            )
        except UsageError:
            continue
        interval: Interval = scores.summary()[scores.metric]
        found[shots] = interval.mean[-1], interval.low[-1], interval.high[-1]
    return found

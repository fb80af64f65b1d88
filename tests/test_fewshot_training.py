"""The trainer of few-shot learners, and how they are judged."""

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from metarl.checkpoint import list_checkpoints, load_checkpoint
from metarl.errors import TrainingError, UsageError
from metarl.experiments.fewshot import METHODS, configured
from metarl.fewshot.characters import Characters
from metarl.fewshot.episodes import CurveData, Data, Episodes, Points, Protocol, TaskSpec
from metarl.fewshot.evaluation import Interval, Scores, evaluate, summarize, tasks_at_once
from metarl.fewshot.learner import Learner, LearnerConfig, Prediction
from metarl.fewshot.maml import MAML, MAMLConfig
from metarl.fewshot.networks import NetworkConfig
from metarl.fewshot.sinusoids import Sinusoids
from metarl.fewshot.training import FewShotTraining, train_learner
from metarl.runs import RunConfig, RunFolder
from metarl.statistics import stratified_bootstrap

SMALL = NetworkConfig(layers=(6,))
CONFIG = FewShotTraining(
    iterations=60,
    seed=3,
    shots=4,
    queries=3,
    train_shots=5,
    evaluate_every=20,
    evaluation_tasks=4,
    checkpoint_every=10,
    log_every=5,
)
LINES = 60 // 5
"""of metrics.jsonl, evaluations not counted"""


class Killed(BaseException):
    """Stands for a SIGKILL: nothing catches it."""


class Observed(MAML):
    """MAML that calls a function before each iteration, and draws in use as some learners do."""

    on_iteration = staticmethod(lambda number: None)
    protocols = ()
    progress = ()

    def train_step(self, data, protocol, progress):
        self.protocols += (protocol,)
        self.progress += (progress,)
        self.on_iteration(len(self.progress))
        # A careless learner: it draws from a generator that belongs to everybody, too.
        torch.rand(1)
        return super().train_step(data, protocol, progress)

    def predict(self, episodes, steps=None):
        torch.rand(1)
        noise = torch.rand(1, generator=self.generator)
        return Prediction(super().predict(episodes, steps).value + noise)


def learner(seed=0, executor="vectorised", on_iteration=lambda number: None, **config):
    config = MAMLConfig(network=SMALL, meta_batch=3, executor=executor, test_steps=2, **config)
    made = Observed(config, Sinusoids().spec(Protocol()), seed=seed)
    made.on_iteration = on_iteration
    return made


def start(path, config=CONFIG, **options):
    run = RunFolder.create(path, RunConfig("fewshot-maml", {}, "sinusoid", {}, vars(config)))
    made = learner(**options)
    return made, train_learner(made, Sinusoids(), run, config)


def go_on(path, config=CONFIG, **options):
    torch.manual_seed(99)
    made = learner(**{"seed": 99, **options})
    return made, train_learner(made, Sinusoids(), RunFolder.open(path), config, resume=True)


def rows(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def flat(state, prefix=""):
    """A nested state as a dict from path to the bytes of the value."""
    if isinstance(state, dict):
        items = state.items()
    elif isinstance(state, list | tuple):
        items = enumerate(state)
    elif isinstance(state, torch.Tensor):
        return {prefix: (str(state.dtype), tuple(state.shape), state.numpy().tobytes())}
    else:
        return {prefix: (type(state).__name__, repr(state))}
    return {k: v for key, item in items for k, v in flat(item, f"{prefix}/{key}").items()}


def final(path):
    """All that must be equal: states of the last checkpoint, metrics and evaluations."""
    checkpoint = load_checkpoint(path / "checkpoints")
    files = [path / "metrics.jsonl", *sorted((path / "evaluation").iterdir())]
    return checkpoint.step, flat(checkpoint.states), [file.read_bytes() for file in files]


def raise_at(number, error):
    def call(iteration):
        if iteration == number:
            raise error

    return call


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    path = tmp_path_factory.mktemp("uninterrupted") / "run"
    start(path)
    return path


# --- training ----------------------------------------------------------------------------------


def test_every_iteration_is_made_once_on_the_tasks_of_training(tmp_path):
    made, done = start(tmp_path)
    assert done.counters.iterations == done.counters.steps == 60
    assert made.progress == tuple(k / 60 for k in range(60))
    assert set(made.protocols) == {Protocol(5, 5, 3)}


def test_a_line_of_the_log_is_the_mean_of_its_iterations(tmp_path):
    path = tmp_path / "run"
    start(path, dataclasses.replace(CONFIG, log_every=1, iterations=10, evaluate_every=0))
    losses = [row["loss"] for row in rows(path)]
    start(tmp_path / "other", dataclasses.replace(CONFIG, log_every=4, iterations=10))
    found = [row for row in rows(tmp_path / "other") if "loss" in row]
    assert [(row["step"], row["iteration"]) for row in found] == [(4, 4), (8, 8), (10, 10)]
    means = [np.mean(losses[:4]), np.mean(losses[4:8]), np.mean(losses[8:])]
    assert len(losses) == 10 and [row["loss"] for row in found] == pytest.approx(means)


def test_evaluations_are_logged_and_kept(uninterrupted):
    found = rows(uninterrupted)
    assert len([row for row in found if "loss" in row]) == LINES
    evaluations = [row for row in found if "evaluation/mse" in row]
    assert [row["step"] for row in evaluations] == [20, 40, 60]
    assert all(len(row["evaluation/mse"]) == 3 for row in evaluations)  # 0, 1 and 2 steps
    names = [file.name for file in sorted((uninterrupted / "evaluation").iterdir())]
    assert names == [f"step-{k:09d}.json" for k in (20, 40, 60)]
    kept = Scores.load(uninterrupted / "evaluation" / names[-1])
    assert kept.summary()["mse"].mean == evaluations[-1]["evaluation/mse"]


def test_evaluation_does_not_change_training(uninterrupted, tmp_path):
    start(tmp_path, dataclasses.replace(CONFIG, evaluate_every=0))
    assert rows(tmp_path) == [row for row in rows(uninterrupted) if "loss" in row]
    one, other = (load_checkpoint(p / "checkpoints").states for p in (tmp_path, uninterrupted))
    assert flat(one["learner"]) == flat(other["learner"])


@pytest.mark.parametrize("at", [1, 5, 6, 14, 31, 60])
def test_killed_at_any_iteration_it_goes_on_to_the_same_bits(uninterrupted, tmp_path, at):
    with pytest.raises(Killed):
        start(tmp_path, on_iteration=raise_at(at, Killed()))
    saved = list_checkpoints(tmp_path / "checkpoints")
    # The first line of the log is saved, and every second one from then on.
    assert [int(p.name.partition("-")[2]) for p in saved[:1]] == (
        [] if at <= 5 else [5] if at <= 10 else [(at - 1) // 10 * 10]
    )
    go_on(tmp_path, seed=99 if saved else 0)
    assert final(tmp_path) == final(uninterrupted)


@pytest.mark.parametrize("measured", ["loop", "vectorised"])
def test_what_was_measured_to_be_faster_is_kept(tmp_path, monkeypatch, measured):
    """The two round differently, so a resumed run must not measure again."""
    monkeypatch.setattr("metarl.fewshot.maml.faster_executor", lambda *ways: measured)
    start(tmp_path / "whole", executor="auto")
    with pytest.raises(Killed):
        start(tmp_path / "run", executor="auto", on_iteration=raise_at(7, Killed()))

    def never(*ways):
        raise AssertionError("measured again")

    monkeypatch.setattr("metarl.fewshot.maml.faster_executor", never)
    made, _ = go_on(tmp_path / "run", executor="auto")
    assert made.executor == measured
    assert final(tmp_path / "run") == final(tmp_path / "whole")


SMALL_OPTIONS = {
    "network": {"layers": (6,), "filters": (4, 4)},
    **{"meta_batch": 2, "learning_rate": 0.01, "final_learning_rate": 0.001},
    **{"executor": "vectorised", "inner_steps": 2, "test_steps": 2, "hidden": 4, "latent": 4},
    **{"heads": 2, "rows": 8, "controller": 6, "relation_filters": (4, 4), "batch": 6},
    **{"embedding": 8, "filters": 8, "dense_layers": 2},
}
"""of every method that has them"""


def small(method):
    """A learner of characters, and how to train it."""
    entry = METHODS[method]
    kind = entry.config_class()
    names = {field.name for field in dataclasses.fields(kind)}
    config = configured(kind, {k: v for k, v in SMALL_OPTIONS.items() if k in names})
    data = Characters(train_classes=6, held_out_classes=6, drawers=6, size=8)
    training = FewShotTraining(
        iterations=6, seed=3, ways=3, shots=2, queries=3, log_every=1, checkpoint_every=2
    )

    def build(seed):
        return entry.learner_class()(config, data.spec(training.protocol), seed=seed)

    return build, data, training


def kill_in_iteration(made, number):
    """Let the learner die as its iteration `number` begins."""
    step, count = made.train_step, itertools.count(1)

    def counted(*args):
        if next(count) == number:
            raise Killed
        return step(*args)

    made.train_step = counted


@pytest.mark.parametrize("method", METHODS)
def test_every_method_goes_on_to_the_same_bits(tmp_path, method):
    build, data, training = small(method)
    whole, killed = (
        RunFolder.create(tmp_path / name, RunConfig("a", {}, "b", {}, vars(training)))
        for name in ("whole", "killed")
    )
    uninterrupted, dying, resumed = build(3), build(3), build(99)
    train_learner(uninterrupted, data, whole, training)
    kill_in_iteration(dying, 6)
    with pytest.raises(Killed):
        train_learner(dying, data, killed, training)
    assert train_learner(resumed, data, killed, training, resume=True).counters.steps == 6
    one, other = (load_checkpoint(run.checkpoints).states for run in (whole, killed))
    assert flat(one) == flat(other)
    assert whole.metrics.read_bytes() == killed.metrics.read_bytes()
    one, other = (
        evaluate(made, data, training.protocol, 3, 0) for made in (uninterrupted, resumed)
    )
    assert one == other


def test_divergence_stops_training_with_the_last_checkpoint_intact(uninterrupted, tmp_path):
    with pytest.raises(TrainingError, match="training stopped after iteration 20, the last") as it:
        start(tmp_path, on_iteration=raise_at(22, TrainingError("MAML: not finite")))
    assert "step-000000020" in str(it.value)
    go_on(tmp_path)
    assert final(tmp_path) == final(uninterrupted)


def test_a_checkpoint_that_does_not_fit_is_refused(uninterrupted, tmp_path):
    config = RunConfig("fewshot-maml", {}, "sinusoid", {}, vars(CONFIG))
    made = MAML(MAMLConfig(network=NetworkConfig(layers=(7,))), Sinusoids().spec(Protocol()))
    run = RunFolder.open(uninterrupted)
    assert run.config == config
    with pytest.raises(UsageError, match=r"does not fit: .*size mismatch"):
        train_learner(made, Sinusoids(), run, CONFIG, resume=True)


class Classes(Data):
    """Two-dimensional points around centres; the held-out classes are other centres."""

    name, kind = "classes", "classification"

    def spec(self, protocol):
        if protocol.ways > 7:
            raise UsageError(f"classes: the train split has 7 classes, asked for {protocol.ways}")
        return TaskSpec("classification", (2,), protocol.ways)

    def episodes(self, protocol, tasks, split, generator):
        y = torch.arange(protocol.ways).repeat_interleave(protocol.shots + protocol.queries)
        y = y.view(protocol.ways, -1)
        centres = torch.randn(tasks, protocol.ways, 1, 2, generator=generator)
        x = centres + torch.randn(tasks, *y.shape, 2, generator=generator)
        y = y.expand(tasks, *y.shape)
        parts = [
            Points(x[:, :, k].flatten(1, 2), y[:, :, k].flatten(1))
            for k in (slice(protocol.shots), slice(protocol.shots, None))
        ]
        return Episodes(*parts)


class NearestMean(Learner):
    """Knows what it needs without learning; takes any number of ways."""

    fixed_ways = False

    def build(self):
        return nn.Linear(1, 1)

    def adapt(self, support, steps=None):
        hot = nn.functional.one_hot(support.y).to(support.x.dtype)
        means = hot.mT @ support.x / hot.sum(1).unsqueeze(-1)
        return lambda x: Prediction(-torch.cdist(x, means))

    def train_step(self, data, protocol, progress):
        return {"loss": float(protocol.ways)}


def test_other_ways_in_training_are_for_learners_that_take_any(tmp_path):
    data, config = Classes(), dataclasses.replace(CONFIG, train_ways=7)
    run = RunFolder.create(tmp_path, RunConfig("a", {}, "b", {}))
    spec = data.spec(config.protocol)
    with pytest.raises(UsageError, match=r"MAML has an output for each way .* 7 ways .* on 5"):
        train_learner(MAML(MAMLConfig(), spec), data, run, config)
    train_learner(NearestMean(LearnerConfig(), spec), data, run, config)
    assert {row["loss"] for row in rows(tmp_path) if "loss" in row} == {7.0}
    few = dataclasses.replace(config, train_ways=8)
    with pytest.raises(UsageError, match="has 7 classes, asked for 8"):
        train_learner(NearestMean(LearnerConfig(), spec), data, run, few)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("iterations", 0),
        ("ways", 1),
        ("train_ways", 1),
        ("shots", 0),
        ("queries", -1),
        ("train_shots", -1),
        ("log_every", 0),
        ("checkpoint_every", 0),
        ("evaluate_every", -1),
    ],
)
def test_a_training_that_cannot_be_is_refused(field, value):
    name = field.removeprefix("train_")
    with pytest.raises(UsageError, match=rf"fewshot: (train_)?{name} must be .*{value}"):
        FewShotTraining(**{field: value})


# --- evaluation --------------------------------------------------------------------------------


def classes_by_hand(protocol, tasks, seed):
    """Accuracy of the nearest mean, one task and one point after the other."""
    data, generator = Classes(), torch.Generator().manual_seed(seed)
    found = []
    episodes = data.episodes(protocol, tasks, "held-out", generator)
    for task in range(tasks):
        (x, y), (qx, qy) = ((p.x[task], p.y[task]) for p in (episodes.support, episodes.query))
        means = [x[y == way].mean(0) for way in range(protocol.ways)]
        nearest = [min(range(len(means)), key=lambda w: float((q - means[w]).norm())) for q in qx]
        found.append(sum(n == int(t) for n, t in zip(nearest, qy, strict=True)) / len(qy))
    return found


def test_accuracy_is_that_of_each_task_by_hand():
    protocol, data = Protocol(4, 2, 5), Classes()
    made = NearestMean(LearnerConfig(), data.spec(protocol))
    scores = evaluate(made, data, protocol, 12, 5, info={"method": "nearest"})
    expected = classes_by_hand(protocol, 12, 5)
    assert [row[0] for row in scores.values["accuracy"]] == pytest.approx(expected)
    assert 0.3 < np.mean(expected) < 0.95
    assert (scores.metric, scores.steps) == ("accuracy", (1,))
    noted = {"ways": 4, "shots": 2, "queries": 5, "split": "held-out", "tasks": 12, "seed": 5}
    assert scores.info == {**noted, "method": "nearest"}


class Flat(Learner):
    """Predicts the mean of the support set, plus one for each step short of two, and its spread."""

    steps_shown = (0, 2)
    batches = ()

    def build(self):
        return nn.Linear(1, 1)

    def adapt(self, support, steps=None):
        self.batches += (support.tasks,)
        mean = support.y.mean(1, keepdim=True) + 2 - steps
        return lambda x: Prediction(mean.expand_as(x), torch.full_like(x, 2.0))


@dataclasses.dataclass(frozen=True)
class Lines(CurveData):
    """y = slope, with the truth as posterior."""

    name = "lines"

    def spec(self, protocol):
        return TaskSpec("regression", (1,), 1)

    def episodes(self, protocol, tasks, split, generator):
        assert split == "held-out"
        slope = torch.randn(tasks, 1, 1, generator=generator)
        x = torch.rand(tasks, protocol.shots + protocol.queries, 1, generator=generator)
        support, query = Points(x, slope.expand_as(x)).split(protocol.shots)
        return Episodes(support, query, {"slope": slope})

    def truth(self, tasks, x):
        return tasks["slope"].expand_as(x)

    def posterior(self, tasks, support, x):
        return Prediction(self.truth(tasks, x), torch.ones_like(x))


def test_regression_is_judged_by_error_likelihood_and_the_exact_posterior():
    data, protocol = Lines(), Protocol(shots=3, queries=4)
    made = Flat(LearnerConfig(), data.spec(protocol))
    scores = evaluate(made, data, protocol, 6, 0)
    assert scores.steps == (0, 2)
    assert np.allclose(scores.values["mse"], [[4.0, 0.0]] * 6, atol=1e-6)
    constant = -math.log(2.0) - 0.5 * math.log(2 * math.pi)
    assert np.allclose(scores.values["log_likelihood"], [[constant - 0.5, constant]] * 6, atol=1e-6)
    assert scores.oracle_means() == pytest.approx(
        {"mse": 0.0, "log_likelihood": -0.5 * math.log(2 * math.pi)}, abs=1e-6
    )
    assert "oracle" in scores.figures()


def test_tasks_come_in_chunks_and_are_all_counted(monkeypatch):
    data, protocol = Lines(), Protocol(shots=3, queries=4)
    monkeypatch.setattr("metarl.fewshot.evaluation._NUMBERS_AT_ONCE", 7 * 4)
    made = Flat(LearnerConfig(), data.spec(protocol))
    assert len(evaluate(made, data, protocol, 10, 0).values["mse"]) == 10
    assert made.batches == (4, 4, 4, 4, 2, 2)


def test_large_tasks_are_adapted_to_one_by_one():
    images = TaskSpec("classification", (3, 84, 84), 20)
    assert tasks_at_once(images, Protocol(20, 5, 15)) == 1
    assert tasks_at_once(TaskSpec("regression", (1,), 1), Protocol(shots=10, queries=10)) == 250


def test_the_same_seed_gives_the_same_tasks_and_leaves_the_learner_as_it_was():
    protocol, data = Protocol(shots=4, queries=3), Sinusoids()
    made = learner()
    before = made.generator.get_state()
    one, again, other = (evaluate(made, data, protocol, 5, seed) for seed in (1, 1, 2))
    assert one == again != other
    assert torch.equal(made.generator.get_state(), before)


def test_intervals_hold_the_mean_and_narrow_with_tasks():
    scores = np.random.default_rng(0).normal(size=(1, 400, 2))
    wide, narrow = Interval.of(scores[:, :40]), Interval.of(scores)
    for found in (wide, narrow):
        assert all(a < b < c for a, b, c in zip(found.low, found.mean, found.high, strict=True))
    assert narrow.high[0] - narrow.low[0] < 0.5 * (wide.high[0] - wide.low[0])


def test_seeds_are_pooled_as_strata():
    rng = np.random.default_rng(0)
    seeds = [
        Scores("regression", (1,), {"mse": (10.0 * k + rng.random((30, 1))).tolist()})
        for k in range(3)
    ]
    pooled = summarize(seeds)["mse"]
    assert pooled.mean[0] == pytest.approx(np.mean([s.summary()["mse"].mean[0] for s in seeds]))
    # The distance between the seeds must not widen the interval, as it would without strata.
    assert pooled.high[0] - pooled.low[0] < 0.5
    strata = np.asarray([s.values["mse"] for s in seeds])
    assert (pooled.low, pooled.high) == tuple(x.tolist() for x in stratified_bootstrap(strata))


def test_scores_come_back_from_their_file(tmp_path):
    scores = Scores(
        "regression", (0, 1), {"mse": [[1.0, math.nan], [2.0, 0.5]]}, {"mse": [0.0, 1.0]}, {"a": 1}
    )
    path = tmp_path / "evaluation" / "scores.json"
    scores.save(path)
    json.loads(path.read_text(), parse_constant=pytest.fail)
    found = Scores.load(path)
    assert np.array_equal(found.values["mse"], scores.values["mse"], equal_nan=True)
    assert (found.kind, found.steps, found.oracle, found.info) == (
        scores.kind,
        scores.steps,
        scores.oracle,
        scores.info,
    )


@pytest.mark.parametrize("content", ["", "[1]", "{}", '{"values": {}, "kind": "regression"}'])
def test_a_file_that_holds_no_scores_is_refused(tmp_path, content):
    (tmp_path / "scores.json").write_text(content)
    with pytest.raises(UsageError, match="does not hold scores"):
        Scores.load(tmp_path / "scores.json")

"""Figures of few-shot learners say what the numbers say."""

from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
import pytest
import torch

from metarl.errors import UsageError
from metarl.experiments.fewshot import METHODS
from metarl.experiments.fewshot_figures import (
    GROUPS,
    MARKERS,
    Row,
    colour_of,
    comparison_figure,
    fits_figure,
    group_of,
    images_figure,
    shots_figure,
    steps_figure,
)
from metarl.experiments.figures import render
from metarl.fewshot.episodes import Data, Episodes, Points, Protocol, TaskSpec
from metarl.fewshot.evaluation import Scores
from metarl.fewshot.gaussian_processes import GPCurves
from metarl.fewshot.learner import Learner, LearnerConfig, Prediction
from metarl.fewshot.sinusoids import Sinusoids


class Fake(Learner):
    """Predicts `steps` everywhere, with a standard deviation of 1; notes what it saw."""

    def build(self):
        self.spread = True
        return torch.nn.Linear(1, 1)

    @property
    def steps_shown(self):
        return (0, 1, 5, 10)

    def adapt(self, support, steps=None):
        def predict(x):
            value = torch.full((*x.shape[:2], 1), float(steps))
            noise = torch.rand((), generator=self.generator) * 0.0
            return Prediction(value + noise, torch.ones_like(value) if self.spread else None)

        return predict


@dataclass(frozen=True)
class Squares(Data):
    """Class k is an image with a bright pixel number k; one query image of class 0 looks like 1."""

    name = "squares"
    kind = "classification"
    channels: int = 1
    confused: bool = field(default=True)

    def spec(self, protocol):
        return TaskSpec("classification", (self.channels, 4, 8), protocol.ways)

    def episodes(self, protocol, tasks, split, generator):
        def points(each):
            y = torch.arange(protocol.ways).repeat_interleave(each).expand(tasks, -1)
            x = torch.zeros(tasks, y.shape[1], self.channels, 32)
            x.scatter_(-1, y[..., None, None].expand(-1, -1, self.channels, 1), 1.0)
            return Points(x.unflatten(-1, (4, 8)), y)

        query = points(protocol.queries)
        if self.confused:
            query.x[:, 0] = query.x[:, protocol.queries]
        return Episodes(points(protocol.shots), query)


class Reader(Learner):
    """Reads the bright pixel, and is sure of it by odds of 3 to 1 for each other class."""

    def build(self):
        return torch.nn.Linear(1, 1)

    def adapt(self, support, steps=None):
        ways = self.spec.outputs
        return lambda x: Prediction(np.log(3.0) * x[:, :, 0].flatten(2)[..., :ways])


def texts(figure):
    return [t.get_text() for ax in figure.axes for t in ax.texts]


def legend(figure):
    return [t.get_text() for t in figure.legends[0].get_texts()]


def lines(ax, colour):
    return [line for line in ax.lines if line.get_color() == colour]


def scores(means, steps, kind="classification", tasks=50):
    name = "accuracy" if kind == "classification" else "mse"
    wobble = np.linspace(-0.01, 0.01, tasks)[:, None]
    return Scores(kind, steps, {name: (np.asarray(means) + wobble).tolist()})


# Colours


def test_every_method_of_the_command_line_has_a_colour_and_a_kind():
    assert {m for colours in GROUPS.values() for m in colours} == set(METHODS)
    assert set(MARKERS) == set(GROUPS)
    assert len({colour_of(m) for m in METHODS}) == len(METHODS)
    assert group_of("anil") == "gradient"
    assert group_of("nothing") == ""
    assert colour_of("nothing") not in {colour_of(m) for m in METHODS}


def lab(colour, blindness):
    """CIELAB of a colour as a dichromat sees it (Machado et al. 2009, severity 1)."""
    srgb = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    light = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    light = np.clip(np.array(blindness) @ light, 0.0, 1.0)
    xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    ratio = np.array(xyz) @ light / np.array([0.9505, 1.0, 1.089])
    f = np.where(ratio > 0.008856, np.cbrt(ratio), 7.787 * ratio + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize(
    "blindness",
    [
        np.eye(3),
        [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
        [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    ],
    ids=["normal", "deuteranopia", "protanopia"],
)
def test_colours_of_a_kind_are_told_apart(group, blindness):
    """Kinds have markers of their own, so only methods of one kind depend on the colour."""
    seen = {method: lab(colour, blindness) for method, colour in GROUPS[group].items()}
    near = [(a, b) for a, b in combinations(seen, 2) if np.linalg.norm(seen[a] - seen[b]) < 15.0]
    assert near == []


# Scores


def test_steps_are_drawn_in_per_cent_with_their_band():
    figure = steps_figure({"maml": scores([0.2, 0.8, 0.9], (0, 1, 5))})
    (ax,) = figure.axes
    (line,) = lines(ax, colour_of("maml"))
    assert line.get_xdata() == pytest.approx([0, 1, 5])
    assert line.get_ydata() == pytest.approx([20, 80, 90])
    band = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert 19.0 < band.min() < 20.0
    assert 90.0 < band.max() < 91.0
    assert ax.get_ylabel() == "accuracy, %"


def test_a_method_without_steps_is_a_dashed_level():
    figure = steps_figure(
        {"maml": scores([0.2, 0.9], (0, 5)), "prototypical": scores([0.95], (1,))}, "title"
    )
    (line,) = lines(figure.axes[0], colour_of("prototypical"))
    assert line.get_xdata() == pytest.approx([0, 5])
    assert line.get_ydata() == pytest.approx([95, 95])
    assert line.get_linestyle() == "--"
    assert [handle.get_linestyle() for handle in figure.legends[0].get_lines()] == ["-", "--"]
    assert legend(figure) == ["maml", "prototypical"]
    assert figure.get_suptitle() == "title"


@pytest.mark.parametrize(("means", "scale"), [([3.0, 0.1], "log"), ([0.3, 0.1], "linear")])
def test_squared_errors_far_apart_take_a_logarithmic_axis(means, scale):
    ax = steps_figure({"maml": scores(means, (0, 1), "regression")}).axes[0]
    assert ax.get_yscale() == scale
    assert ax.get_ylabel() == "mean squared error"
    (line,) = lines(ax, colour_of("maml"))
    assert line.get_ydata() == pytest.approx(means)


def test_shots_are_drawn_in_order_whatever_the_order_of_the_mapping():
    curves = {"maml": {5: (0.9, 0.88, 0.92), 1: (0.7, 0.68, 0.72)}, "siamese": {2: (0.5, 0.4, 0.6)}}
    figure = shots_figure(curves)
    (ax,) = figure.axes
    (line,) = lines(ax, colour_of("maml"))
    assert line.get_xdata() == pytest.approx([1, 5])
    assert line.get_ydata() == pytest.approx([70, 90])
    assert [label.get_text() for label in ax.get_xticklabels()] == ["1", "2", "5"]
    assert ax.get_xlabel() == "support points of each class"
    assert legend(figure) == ["maml", "siamese"]


def test_shots_of_curves_are_named_and_scaled_as_such():
    ax = shots_figure({"cnp": {1: (2.0, 1.9, 2.1), 10: (0.1, 0.09, 0.11)}}, "mse").axes[0]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("support points", "mean squared error")
    assert lines(ax, colour_of("cnp"))[0].get_ydata() == pytest.approx([2.0, 0.1])


ROWS = [
    Row("scratch", 0.6, 0.59, 0.61),
    Row("reptile", 0.9, 0.89, 0.91),
    Row("prototypical", 0.97, 0.96, 0.98),
    Row("maml", 0.95, 0.94, 0.96),
    Row("fine-tune", 0.8, 0.78, 0.82),
    Row("mine", 0.85, 0.84, 0.86),
]


def names(figure):
    return [label.get_text() for label in figure.axes[0].get_yticklabels()]


def test_methods_are_sorted_within_their_kind_the_best_on_top():
    figure = comparison_figure(ROWS)
    assert names(figure) == [
        *("gradient", "maml", "reptile", "metric", "prototypical"),
        *("baseline", "fine-tune", "scratch", "other", "mine"),
    ]
    bottom, top = figure.axes[0].get_ylim()
    assert bottom > top
    assert "95.0 ± 1.0" in texts(figure)


def test_the_least_squared_error_is_on_top():
    rows = [Row("maml", 0.3, 0.2, 0.4), Row("anil", 0.1, 0.05, 0.15), Row("leo", 0.2, 0.1, 0.3)]
    figure = comparison_figure(rows, "mse")
    assert names(figure) == ["gradient", "anil", "leo", "maml"]
    assert figure.axes[0].get_xlabel() == "mean squared error (lower is better)"


def test_a_row_may_name_its_kind():
    rows = [Row("mine", 0.9, 0.8, 1.0, "metric"), Row("siamese", 0.8, 0.7, 0.9)]
    assert names(comparison_figure(rows)) == ["metric", "mine", "siamese"]


def test_points_and_intervals_are_where_the_numbers_are():
    figure = comparison_figure(ROWS)
    ax = figure.axes[0]
    place = names(figure).index("maml")
    found = [c.lines for c in ax.containers if c.lines[0].get_ydata()[0] == place]
    ((point, _, (bar,)),) = found
    assert point.get_xdata() == pytest.approx([95])
    assert bar.get_segments()[0][:, 0] == pytest.approx([94, 96])
    assert ax.get_xlim()[1] <= 100.5


def test_baselines_and_further_references_are_lines_from_top_to_bottom():
    ax = comparison_figure(ROWS, references={"exact posterior": 0.99}).axes[0]
    marked = {line.get_xdata()[0] for line in ax.lines if list(line.get_ydata()) == [0, 1]}
    assert sorted(marked) == pytest.approx([60, 80, 99])
    labels = {a.get_text(): a.xyann[1] for a in ax.texts if hasattr(a, "xyann")}
    assert set(labels) == {"scratch", "fine-tune", "exact posterior"}


def test_names_of_lines_close_to_each_other_do_not_collide():
    close = [*ROWS[1:4], Row("scratch", 0.80, 0.79, 0.81), ROWS[4]]
    ax = comparison_figure(close).axes[0]
    heights = [a.xyann[1] for a in ax.texts if hasattr(a, "xyann")]
    assert len(set(heights)) == 2


# What a learner does


def test_fits_are_drawn_on_the_grid_after_each_number_of_steps():
    data, protocol = Sinusoids(), Protocol(shots=3, queries=4)
    learner = Fake(LearnerConfig(), data.spec(protocol))
    figure = fits_figure(learner, data, protocol, seed=3, tasks=3)
    assert legend(figure) == [
        *("support", "true function", "after 0 steps", "after 1 step", "after 5 steps"),
        *("after 10 steps", "its ± 2 std"),
    ]
    episodes = data.episodes(protocol, 3, "held-out", torch.Generator().manual_seed(3))
    shown = [ax for ax in figure.axes if ax.axison]
    assert len(shown) == 3
    for task, ax in enumerate(shown):
        truth, *fits = ax.lines
        x = torch.as_tensor(truth.get_xdata()).view(1, -1, 1)
        exact = data.truth(episodes[task : task + 1].tasks, x)
        assert truth.get_ydata() == pytest.approx(exact.flatten().numpy(), abs=1e-5)
        assert [line.get_ydata()[0] for line in fits] == [0, 1, 5, 10]
        assert all((line.get_ydata() == line.get_ydata()[0]).all() for line in fits)
        support = ax.collections[-1].get_offsets()
        wanted = torch.cat([episodes.support.x[task], episodes.support.y[task]], -1)
        assert np.asarray(support) == pytest.approx(wanted.numpy())
        band = ax.collections[0].get_paths()[0].vertices[:, 1]
        assert (band.min(), band.max()) == pytest.approx((8, 12))
        error = (episodes.query.y[task] - 10.0).square().mean()
        assert ax.get_title(loc="left").endswith(f"→ {error:.2f}")


def test_no_band_without_a_standard_deviation():
    data, protocol = Sinusoids(), Protocol(shots=3, queries=4)
    learner = Fake(LearnerConfig(), data.spec(protocol))
    learner.spread = False
    figure = fits_figure(learner, data, protocol, tasks=1)
    assert "its ± 2 std" not in legend(figure)
    assert len(figure.axes[0].collections) == 1


def test_the_exact_posterior_and_the_query_points_stand_in_for_a_truth_that_is_not_known():
    data, protocol = GPCurves(), Protocol(shots=5, queries=6)
    learner = Fake(LearnerConfig(), data.spec(protocol))
    figure = fits_figure(learner, data, protocol, seed=1, tasks=2)
    assert legend(figure)[:3] == ["support", "query", "exact posterior ± 2 std"]
    episodes = data.episodes(protocol, 2, "held-out", torch.Generator().manual_seed(1))
    mean, low, high = figure.axes[1].lines[:3]
    x = torch.as_tensor(mean.get_xdata()).view(1, -1, 1).float().expand(2, -1, -1)
    best = data.posterior(episodes.tasks, episodes.support, x)
    assert mean.get_ydata() == pytest.approx(best.value[1, :, 0].numpy(), abs=1e-4)
    spread = 4.0 * best.std[1, :, 0].numpy()
    assert high.get_ydata() - low.get_ydata() == pytest.approx(spread, abs=1e-4)


@pytest.mark.parametrize("tasks", [1, 3])
@pytest.mark.parametrize("data", [Sinusoids(), GPCurves()], ids=["sinusoid", "gp"])
def test_the_legend_of_many_fits_stays_inside_the_figure(data, tasks):
    class Patient(Fake):
        steps_shown = (0, 1, 5, 10, 20, 50)

    protocol = Protocol(shots=3, queries=4)
    learner = Patient(LearnerConfig(), data.spec(protocol))
    figure = fits_figure(learner, data, protocol, tasks=tasks)
    assert "after 50 steps" in legend(figure)
    figure.draw_without_rendering()
    box, whole = figure.legends[0].get_window_extent(), figure.bbox
    assert whole.x0 <= box.x0 < box.x1 <= whole.x1
    assert whole.y0 <= box.y0 < box.y1 <= whole.y1


def test_a_learner_without_steps_has_one_fit():
    class Once(Fake):
        steps_shown = (1,)

    data, protocol = Sinusoids(), Protocol(shots=3, queries=4)
    figure = fits_figure(Once(LearnerConfig(), data.spec(protocol)), data, protocol, tasks=2)
    assert legend(figure) == ["support", "true function", "prediction", "its ± 2 std"]
    assert "→" not in figure.axes[0].get_title(loc="left")


def test_fits_of_more_than_one_number_are_refused():
    @dataclass(frozen=True)
    class Planes(Sinusoids):
        def spec(self, protocol):
            return TaskSpec("regression", (2,), 1)

    data, protocol = Planes(), Protocol()
    with pytest.raises(UsageError, match="one number"):
        fits_figure(Fake(LearnerConfig(), data.spec(protocol)), data, protocol)


def test_the_same_seed_draws_the_same_and_leaves_the_learner_as_it_was():
    data, protocol = Sinusoids(), Protocol(shots=3, queries=4)
    learner = Fake(LearnerConfig(), data.spec(protocol))
    before = learner.generator.get_state()
    one, same, other = (fits_figure(learner, data, protocol, s, tasks=1) for s in (1, 1, 2))
    assert torch.equal(before, learner.generator.get_state())
    assert render(one) == render(same) != render(other)


def images(protocol, tasks=2, **options):
    data = Squares(**options)
    learner = Reader(LearnerConfig(), data.spec(protocol))
    return images_figure(learner, data, protocol, tasks=tasks)


def test_query_images_say_what_they_are_taken_for():
    figure = images(Protocol(ways=3, shots=1, queries=2))
    assert len(figure.axes) == 2
    for ax in figure.axes:
        found = [t.get_text() for t in ax.texts]
        # Odds of 3 : 1 : 1.
        wanted = ["✗ B 60%", "✓ A 60%", "✓ B 60%", "✓ B 60%", "✓ C 60%", "✓ C 60%"]
        assert [t for t in found if "%" in t] == wanted
        assert [t for t in found if len(t) == 1] == ["A", "B", "C"]
        assert "5 of 6 right" in found
        assert len(ax.images) == 9


def test_what_is_wrong_has_a_dashed_frame_in_the_colour_of_the_class_it_was_taken_for():
    ax = images(Protocol(ways=3, shots=1, queries=2)).axes[0]
    dashed = [p for p in ax.patches if p.get_linestyle() != "solid" and p.get_linestyle() != "-"]
    assert len(dashed) == 1
    solid = {p.get_edgecolor() for p in ax.patches if p is not dashed[0]}
    assert len(solid) == 3
    assert dashed[0].get_edgecolor() == ax.patches[3].get_edgecolor()  # support image of class B
    assert not any(
        "✗" in t for t in texts(images(Protocol(ways=3, shots=1, queries=2), confused=False))
    )


def test_an_image_is_what_the_data_gave():
    ax = images(Protocol(ways=3, shots=1, queries=1), confused=False).axes[0]
    brightest = [int(np.asarray(image.get_array()).argmax()) for image in ax.images]
    assert brightest == [0, 0, 1, 1, 2, 2]  # a column of support and query for each class
    colour = images(Protocol(ways=3, shots=1, queries=1), channels=3).axes[0].images[0]
    assert colour.get_array().shape == (4, 8, 3)


def test_many_classes_are_laid_out_one_task_below_the_other():
    figure = images(Protocol(ways=30, shots=5, queries=5), tasks=2)
    assert [len(ax.images) for ax in figure.axes] == [20 * (2 + 3)] * 2
    width, height = figure.get_size_inches()
    assert width < 13.0
    assert height < 15.0
    assert [ax.get_subplotspec().rowspan.start for ax in figure.axes] == [0, 1]

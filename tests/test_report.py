"""Reports and figures: the right numbers, on one page that stands alone."""

import contextlib
import dataclasses
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from metarl.adaptation import AdaptationCurve, pool
from metarl.checkpoint import save_checkpoint
from metarl.envs.bayes_optimal import Reference
from metarl.experiments import figures
from metarl.experiments.cli import main
from metarl.experiments.commands.train import parse_pair, run_config
from metarl.experiments.evaluation import saved_curves
from metarl.experiments.figures import COLOURS, Series, adaptation_figure, coloured, layout, render
from metarl.experiments.loading import as_seen_by, build_agent
from metarl.experiments.metrics import Metrics
from metarl.experiments.page import Html, table, tag
from metarl.experiments.records import RunRecord, compare
from metarl.experiments.report import write_report
from metarl.runs import RunFolder

NETWORK = ("--hidden", "4", "--layers", "4", "--embedding", "4")


def curve(level, *, tasks=5, episodes=4, horizon=15, features=25, ablation="none", **info):
    """An adaptation curve whose returns rise by 1 from episode to episode."""
    returns = level + np.arange(episodes) + np.linspace(-1.0, 1.0, tasks)[:, None]
    steps = np.linspace(0.0, 1.0, episodes * horizon)
    return AdaptationCurve(
        returns=returns.tolist(),
        lengths=[[float(horizon)] * episodes] * tasks,
        success=None,
        tasks=np.linspace(0.0, 1.0, tasks * features).reshape(tasks, features).tolist(),
        step_reward=steps.tolist(),
        step_low=(steps - 0.1).tolist(),
        step_high=(steps + 0.1).tolist(),
        info={
            "agent": "rl2",
            "family": "gridnavi",
            "trained_steps": 0,
            "split": "held-out",
            "seed": 0,
            "stochastic": False,
            "ablation": ablation,
            **info,
        },
    )


def make_run(path, agent="rl2", seed=1, curves=(), family="gridnavi", options=()):
    """A run folder with an untrained agent, these curves and a few rows of metrics."""
    parsed = parse_pair(agent, family, ["--seed", str(seed), *NETWORK, *options])
    folder = RunFolder.create(path, run_config(agent, family, parsed))
    seen = as_seen_by(agent, parsed.family)
    built = build_agent(agent, parsed.agent, seen, seed=seed, device="cpu")
    save_checkpoint(folder.checkpoints, 0, {"agent": built.state_dict()}, labels=folder.labels)
    for index, one in enumerate(curves):
        one.save(folder.evaluation / f"curve-{index}.json")
    rows = [{"step": 10 * i, "return_last": float(i), "return_first": 0.0} for i in range(5)]
    rows.append({"step": 50, "evaluation/mean": [1.0, 2.0, 3.0, 4.0]})
    folder.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


class Page(HTMLParser):
    """What a browser would find: elements with their attributes, and the text."""

    def __init__(self, source):
        super().__init__()
        self.elements, self.words = [], []
        self.feed(source)

    def handle_starttag(self, name, attributes):
        self.elements.append((name, dict(attributes)))

    def handle_data(self, words):
        self.words.append(words)

    @property
    def text(self):
        """The visible text without line breaks."""
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A report on two seeds of RL², another width, and a reference; one name is nasty."""
    root = tmp_path_factory.mktemp("runs")
    ablated = curve(1.0, ablation="inputs-zeroed")
    paths = [
        make_run(root / "first", seed=1, curves=[curve(10.0), ablated]),
        make_run(root / 'a <b>"bold"</b> & run', seed=2, curves=[curve(12.0)]),
        make_run(root / "wide", options=["--hidden", "8"], curves=[curve(20.0)]),
        make_run(root / "plain", agent="non-adaptive", curves=[curve(-5.0)]),
    ]
    rows = write_report(paths, root / "report.html")
    return (root / "report.html").read_text(), rows, paths


# --- the page ----------------------------------------------------------------------------------


def test_the_page_needs_nothing_from_outside(report):
    source, _, _ = report
    page = Page(source)
    assert not re.search(r"https?:|//[a-z]|url\(|@import", source)
    assert {name for name, _ in page.elements}.isdisjoint({"script", "link", "iframe", "a", "base"})
    images = [attributes for name, attributes in page.elements if name == "img"]
    assert len(images) == 2
    for attributes in images:
        assert attributes["src"].startswith("data:image/svg+xml;base64,")
        assert attributes["alt"]


def test_names_are_escaped(report):
    source, _, _ = report
    assert '<b>"bold"' not in source
    assert 'a <b>"bold"</b> & run' in Page(source).text


def test_seeds_are_put_together_and_settings_tell_agents_apart(report):
    _, rows, _ = report
    assert [(row["agent"], row["runs"]) for row in rows] == [
        ("rl2, hidden 4", 2),
        ("rl2, hidden 8", 1),
        ("non-adaptive", 1),
    ]
    assert rows[0]["mean"] == pytest.approx([11.0, 12.0, 13.0, 14.0])
    assert rows[0]["low"][0] < 11.0 < rows[0]["high"][0]


def test_the_page_shows_what_was_measured(report):
    text = Page(report[0]).text
    assert "5 held-out tasks drawn with seed 0" in text
    assert "11.00" in text
    assert "54.0" not in text
    assert "inputs zeroed" in text
    assert "50.00" in text  # the whole trial of the first agent: 11 + 12 + 13 + 14
    assert "\N{MINUS SIGN}5.00" in text
    for part in ("metarl train rl2 gridnavi", "--hidden 8", "torch", "learning_rate: 0.002"):
        assert part in text
    assert text.count("metarl report") == 2


def test_the_best_that_is_possible_stands_beside_the_agents(report):
    source, rows, _ = report
    best = rows[0]["reference"]
    assert best["total"] == pytest.approx(37.214, abs=1e-3)
    assert all(row["reference"] == best for row in rows)
    table = Page(source).text.partition("Return by episode")[2].partition("Learning")[0]
    assert "Bayes-optimal 4.00 11.07 11.07 11.07 37.21" in table
    assert "Bayes-optimal, dashed" in table


def test_a_run_without_a_curve_is_measured_like_the_others(tmp_path):
    paths = [
        make_run(tmp_path / "measured", curves=[curve(1.0, tasks=7)]),
        make_run(tmp_path / "not yet", seed=2),
    ]
    (rows,) = write_report(paths, tmp_path / "report.html")
    assert (rows["runs"], rows["tasks"]) == (2, 7)
    (added,) = saved_curves(tmp_path / "not yet" / "evaluation")
    assert len(added.tasks) == 7


def test_curves_of_an_older_agent_do_not_count(tmp_path):
    path = make_run(tmp_path / "run", curves=[curve(1.0, trained_steps=99), curve(2.0)])
    assert [one.returns[2][0] for one in RunRecord.load(path).curves] == [2.0]


def test_the_protocol_that_most_runs_share_is_the_one(tmp_path):
    common = {"tasks": 5}
    paths = [
        make_run(tmp_path / "a", seed=1, curves=[curve(1.0, **common), curve(1.0, split="train")]),
        make_run(tmp_path / "b", seed=2, curves=[curve(1.0, **common), curve(1.0, tasks=9)]),
    ]
    (comparison,) = compare([RunRecord.load(path) for path in paths])
    assert (comparison.protocol.split, comparison.protocol.tasks) == ("held-out", 5)
    others = {(protocol.split, protocol.tasks) for _, protocol, _ in comparison.others()}
    assert others == {("train", 5), ("held-out", 9)}


def test_other_evaluations_show_their_first_and_last_episode(tmp_path):
    more = curve(70.0, episodes=6, tasks=3, ablation="inputs-zeroed")
    write_report([make_run(tmp_path / "run", curves=[curve(0.0), more])], tmp_path / "report.html")
    text = Page((tmp_path / "report.html").read_text()).text
    found = text.partition("Other evaluations")[2].partition("Learning")[0]
    assert "trials of 6 episodes" in found
    assert "Taken away: inputs zeroed." in found
    assert re.findall(r"(\d+\.\d+) \d+\.\d+ to", found) == ["70.00", "75.00"]


def test_many_episodes_are_shown_in_part(tmp_path):
    long = curve(0.0, episodes=20, horizon=1, family="bandit", features=5)
    options = ["--family.episodes", "20"]
    path = make_run(tmp_path / "run", family="bandit", options=options, curves=[long])
    write_report([path], tmp_path / "report.html")
    text = Page((tmp_path / "report.html").read_text()).text
    assert "episode 20" in text
    assert "episode 13" not in text
    assert "190.0" in text  # the whole trial: 0 + 1 + ... + 19
    assert "Bayes-optimal 0.50" in text  # the first of 20 pulls


def test_a_family_of_other_options_has_no_reference(tmp_path):
    path = make_run(tmp_path / "run", curves=[curve(0.0)])
    config = path / "config.yaml"
    config.write_text(config.read_text().replace("observation: one-hot", "observation: smell"))
    (row,) = write_report([path], tmp_path / "report.html")
    assert row["reference"] is None
    assert "Bayes-optimal" not in (tmp_path / "report.html").read_text()


def test_success_and_steps_are_shown_where_they_vary(tmp_path):
    lengths = [[9.0, 7.0, 5.0, 3.0]] * 5
    success = [[0.0, 0.0, 1.0, 1.0]] * 5
    found = dataclasses.replace(curve(0.0), lengths=lengths, success=success)
    (row,) = write_report([make_run(tmp_path / "run", curves=[found])], tmp_path / "report.html")
    text = Page((tmp_path / "report.html").read_text()).text
    assert row["success"] == [0.0, 0.0, 1.0, 1.0]
    for part in ("steps, last", "3.00", "solved, last", "100%"):
        assert part in text


def test_the_command_prints_a_table_and_json(tmp_path):
    path = make_run(tmp_path / "run", curves=[curve(3.0)])
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main(["report", str(path), "--out", str(tmp_path / "r.html"), "--json"]) == 0
    figures = json.loads(out.getvalue().splitlines()[-1])
    assert figures["out"] == str(tmp_path / "r.html")
    assert figures["agents"][0]["mean"] == pytest.approx([3.0, 4.0, 5.0, 6.0])
    assert re.search(r"\ngridnavi +Bayes-optimal +4.00 +11.07\n", out.getvalue())


def test_html_is_escaped_unless_it_is_html():
    assert tag("td", "<a> & b") == "<td>&lt;a&gt; &amp; b</td>"
    assert tag("td", Html("<b>x</b>")) == "<td><b>x</b></td>"
    assert "&lt;script&gt;" in table(["<script>"], [["x"]])


# --- figures -----------------------------------------------------------------------------------


def test_figures_are_pictures_and_reproducible():
    series = [Series("rl2", [curve(1.0), curve(2.0)]), Series("oracle", [curve(5.0)])]
    assert render(adaptation_figure(series, "title"), "png")[:4] == b"\x89PNG"
    vector = [render(layout(series, [figures.returns_by_task]), "svg") for _ in range(2)]
    assert b"<svg" in vector[0]
    assert b"<dc:date>" not in vector[0]


def test_the_line_through_the_episodes_is_their_mean():
    series = [Series("rl2", [curve(1.0), curve(2.0)])]
    ax = adaptation_figure(series).axes[0]
    drawn = ax.containers[0].lines[0].get_ydata()
    assert drawn == pytest.approx(pool(series[0].curves).mean)
    assert drawn == pytest.approx([1.5, 2.5, 3.5, 4.5])


@pytest.mark.parametrize("worlds", [1, 3])
def test_the_best_that_is_possible_is_dashed(worlds):
    best = Reference("the best", [1.0, 2.0, 4.0, 8.0], True, 0.0, lambda: None)
    figure = adaptation_figure([Series("rl2", [curve(1.0, worlds_per_task=worlds)])], "", best)
    (line,) = [line for line in figure.axes[0].lines if line.get_linestyle() == "--"]
    assert line.get_ydata() == pytest.approx(best.returns)
    # At how many episodes came before, or at the number of the episode.
    assert list(line.get_xdata()) == ([1, 2, 3, 4] if worlds == 1 else [0, 1, 2, 3])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["rl2", "the best"]


def test_a_single_episode_is_compared_by_a_line_across():
    best = Reference("the best", [1.0], True, 0.0, lambda: None)
    figure = adaptation_figure([Series("rl2", [curve(1.0, episodes=1)])], "", best)
    (line,) = [line for line in figure.axes[0].lines if line.get_linestyle() == "--"]
    assert list(line.get_ydata()) == [1.0, 1.0]


def test_the_reward_panel_parts_the_episodes():
    ax = adaptation_figure([Series("rl2", [curve(1.0)])]).axes[1]
    dotted = [line.get_xdata()[0] for line in ax.lines if line.get_linestyle() == ":"]
    assert dotted == [15.5, 30.5, 45.5]
    low, high = ax.collections[0].get_paths()[0].get_extents().intervaly
    assert (low, high) == pytest.approx((-0.1, 1.1))


def test_seeds_narrow_the_band_of_the_reward():
    ax = adaptation_figure([Series("rl2", [curve(1.0)] * 4)]).axes[1]
    low, high = ax.collections[0].get_paths()[0].get_extents().intervaly
    assert (low, high) == pytest.approx((-0.05, 1.05))


def test_panels_follow_from_the_episodes():
    one_step = adaptation_figure([Series("rl2", [curve(0.0, horizon=1)])])
    varied = dataclasses.replace(curve(0.0), lengths=[[9.0, 7.0, 5.0, 3.0]] * 5)
    titles = [ax.get_title("left") for ax in adaptation_figure([Series("rl2", [varied])]).axes]
    assert len(one_step.axes) == 1
    assert titles == ["Return per episode", "Steps per episode"]


def test_each_agent_has_its_own_colour():
    names = ["rl2", "non-adaptive", "oracle", "rl2, hidden 8", "another"]
    shown = [one.colour for one in coloured([Series(name, []) for name in names])]
    assert shown[:3] == [COLOURS[name] for name in names[:3]]
    assert len(set(shown)) == 5


def test_a_line_of_metrics_that_was_cut_off_is_passed_over(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "a": 2.0}\n{"step": 3, "a": null}\n{"step": 5, "a": 4.0}\n{"st')
    metrics = Metrics.load(path)
    assert metrics.column("a") == ([1, 5], [2.0, 4.0])
    assert metrics.total("a") == 6.0
    assert Metrics.load(tmp_path / "none").rows == ()


def test_smoothing_keeps_the_mean():
    metrics = Metrics(tuple({"step": i, "a": float(i % 2)} for i in range(1000)))
    steps, values = metrics.smoothed("a")
    assert len(steps) == len(values) == 200
    assert values.mean() == pytest.approx(0.5)
    assert np.all(np.diff(steps) > 0)
    assert len(metrics.smoothed("b")[0]) == 0

"""The page of a sim-to-real study, and the files beside it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from metarl.adaptation import Summary, pool, summarize
from metarl.experiments.commands.train import command_of
from metarl.experiments.page import Html, details, dot, image, page, table, tag
from metarl.experiments.printing import write_file
from metarl.experiments.sim2real import CANDIDATE_WORLDS, SETTINGS, Study
from metarl.experiments.sim2real_figures import (
    failures_figure,
    heat_map_figure,
    series_of,
    settings_figure,
    sweeps_figure,
)
from metarl.experiments.sim2real_findings import (
    EXTRA_SHARE,
    Difference,
    against,
    failures_file,
    figures,
    gain,
    headline,
    in_words,
    number,
    verdicts,
)
from metarl.logs import json_value

MOST_EPISODES = 6
"""With more episodes than this, tables show some of them."""


@dataclass(frozen=True)
class Files:
    """What a study leaves behind."""

    page: Path
    figures: Path
    failures: Path


def write_study(study: Study, out: Path, command: str) -> Files:
    """Write the page to `out`, and the JSON files into a folder of the same name.

    Raises:
        UsageError: if they cannot be written.
    """
    folder = out.with_suffix("")
    files = Files(out, folder / "figures.json", folder / "failures.json")
    for path, values in (
        (files.figures, figures(study)),
        (files.failures, failures_file(study)),
    ):
        text = json.dumps(json_value(values), indent=1, allow_nan=False)
        write_file(path, (text + "\n").encode())
    write_file(out, document(study, files, command).encode())
    return files


def document(study: Study, files: Files, command: str) -> str:
    """The whole page."""
    name, plan = study.robot.name, study.plan
    about = (
        f"{name}: {', '.join(c.label for c in study.contenders)}, "
        f"trials of {study.robot.episodes} episodes, the most likely actions, the same tasks, "
        f"worlds and luck for all. Intervals are 95 % bootstrap intervals over tasks or worlds."
    )
    return page(
        f"Sim-to-real study: {name}",
        tag("h1", f"Sim-to-real study: {name}"),
        tag("p", about, css="soft"),
        tag("p", tag("b", headline(study))),
        Html("<ul>" + "".join(tag("li", line) for line in verdicts(study)) + "</ul>"),
        *_settings(study),
        *_sweeps(study),
        *_heat_map(study),
        *_failures(study, files),
        *_latency(study),
        *_surrogate(study),
        tag("h2", "How to get the same"),
        tag(
            "p",
            f"Measured in {sum(study.seconds.values()):.0f} s; seed {plan.seed}; every number of "
            f"this page is in {files.figures}. Simulations that blew up: {study.unstable} (their "
            "episodes end, and earn nothing in that step).",
        ),
        *_settings_of_runs(study, command),
    )


def _settings(study: Study) -> list[Html]:
    """The agents side by side."""
    meanings = "; ".join(f"{s.name}: {s.meaning}" for s in SETTINGS if s.name in study.settings)
    episodes = _shown(study.robot.episodes)
    several = study.robot.episodes > 1
    head = ["setting", "agent", *(f"episode {k + 1}" for k in episodes)]
    head += ["last less first"] * several
    head += [f"{study.contenders[0].label} less this agent"] * (len(study.contenders) > 1)
    rows: list[list[object]] = []
    for name, curves in study.settings.items():
        for index, one in enumerate(series_of(study)):
            summary = pool(curves[index])
            row: list[object] = [
                name if index == 0 else "",
                Html(dot(one.colour) + tag("b", one.label)),
                *(_cell(summary, k) for k in episodes),
            ]
            row += [_difference(gain(study, name, index))] * several
            if len(study.contenders) > 1:
                row.append(_difference(against(study, name, index)) if index else "")
            rows.append(row)
    return [
        tag("h2", "Adaptive, non-adaptive, oracle"),
        tag("p", f"{study.plan.tasks} tasks in each setting. {meanings}.", css="soft"),
        image(
            settings_figure(study),
            "return by episode in every setting",
            "Mean return of episode 1, 2, ... of a trial with its interval, on one scale.",
        ),
        table(head, rows, left=[1]),
        tag(
            "p",
            "Differences are taken task by task, in the last episode; bold where the interval "
            "excludes 0. On the surrogate an oracle is told that the robot is nominal, which is "
            "what an engineer would believe.",
            css="soft note",
        ),
    ]


def _sweeps(study: Study) -> list[Html]:
    plan = study.plan
    return [
        tag("h2", "One quantity at a time"),
        tag(
            "p",
            f"All other quantities are nominal; where a quantity has a number for each of several "
            f"elements, these move together. {plan.worlds} worlds at each point.",
            css="soft",
        ),
        image(
            sweeps_figure(study),
            "return in the first and the last episode along each quantity",
            "Mean return with its interval. The training range is shaded, the nominal value "
            "dotted. What a policy learns within the first episode shows there already; what it "
            "takes along into others, in the last.",
        ),
    ]


def _heat_map(study: Study) -> list[Html]:
    heat_map = study.heat_map
    if heat_map is None:
        return []
    how = "as asked for" if study.plan.pair else "the two that change the return most above"
    a, b = heat_map.a.label, heat_map.b.label
    return [
        tag("h2", f"Two quantities at once: {a} and {b}"),
        tag("p", f"All others are nominal. The pair: {how}.", css="soft"),
        image(
            heat_map_figure(study, heat_map),
            f"return over {a} and {b} for every agent",
            "Mean return, all maps on one scale, which ends at the 2nd and 98th percentile. The "
            "rectangle is the training range, the cross the nominal robot. "
            f"{max(2, study.plan.worlds // 4)} worlds a cell.",
        ),
    ]


def _failures(study: Study, files: Files) -> list[Html]:
    first, parameters = study.contenders[0], study.robot.parameters
    head = ["failure", "robot", "training range", *(c.label for c in study.contenders)]
    rows = []
    for index, failure in enumerate(study.failures, 1):
        cells = [_cell(summarize(returns), -1) for returns in failure.returns]
        place = "inside" if failure.inside else "beyond"
        rows.append([index, in_words(parameters, failure.dynamics), place, *cells])
    words = ["metarl", "train", first.runs[0].config.agent, study.robot.name]
    words += ["--family.randomize", str(files.failures)]
    return [
        tag("h2", f"Where {first.label} fails"),
        tag(
            "p",
            f"The worst tasks apart from each other among {study.candidates} that a search judged "
            f"in {CANDIDATE_WORLDS} worlds each by the return of the last episode, half of them "
            "within the training range, half up to the limits of each quantity. They were chosen "
            "on fresh seeds, and measured on others again, so that no bad luck of the search is "
            "left in these figures. A task in which an oracle fails too may be beyond any policy.",
            css="soft",
        ),
        table(head, rows, left=[1, 2]),
        image(
            failures_figure(study),
            "return of the last episode in each failure",
            "Return of the last episode in each failure with its interval; dashed, what is usual "
            "on held-out tasks.",
        ),
        tag(
            "p",
            f"To train on them too, as {EXTRA_SHARE:.0%} of all training tasks (extra_share in the "
            "file):",
        ),
        tag("pre", shlex.join(words)),
    ]


def _latency(study: Study) -> list[Html]:
    period = study.robot.dt
    rows = [
        [
            Html(dot(one.colour) + tag("b", one.label)),
            *(f"{1e6 * x:,.0f}" for x in (found.median, found.p99, found.processor_p99)),
            f"{found.p99 / period:.2%}",
            f"{found.steps:,}",
        ]
        for one, found in zip(series_of(study), study.latencies, strict=True)
    ]
    head = [
        "agent",
        "median, µs",
        "99th percentile, µs",
        "of processor time, µs",
        "share of period",
        "steps",
    ]
    return [
        tag("h2", "How long a step takes"),
        tag(
            "p",
            f"act and observe together, for one robot on one core of this machine; the control "
            f"period is {1e3 * period:g} ms, and the share that of the 99th percentile. That of "
            "processor time leaves out what other programs of this machine held up.",
            css="soft",
        ),
        table(head, rows),
    ]


def _surrogate(study: Study) -> list[Html]:
    rows = list(study.surrogate.differences(study.robot).items())
    return [
        tag("h2", "The surrogate of the real robot"),
        tag(
            "p",
            "The same robot in another simulation. No policy was trained on any of this, and none "
            "is told of it; it comes on top of the dynamics of each task.",
            css="soft",
        ),
        table(["what", "how"], rows, left=[1]),
    ]


def _settings_of_runs(study: Study, command: str) -> list[Html]:
    runs = [run for c in study.contenders for run in c.runs]
    commands = [*(command_of(run.folder) for run in runs), command]
    boxes = [details("Commands", "\n".join(commands), opened=True)]
    for run in runs:
        text = yaml.safe_dump(run.config.plain(), sort_keys=False).strip()
        boxes.append(details(f"Settings of {run.folder.path}, {run.step:,} steps", text))
    return boxes


def _shown(episodes: int) -> Sequence[int]:
    """The episodes that a table shows."""
    if episodes <= MOST_EPISODES:
        return range(episodes)
    return [0, 1, 2, episodes // 2, episodes - 1]


def _cell(summary: Summary, k: int) -> Html:
    low, high = summary.mean_low[k], summary.mean_high[k]
    interval = f"{number(low)} to {number(high)}"
    return Html(tag("b", number(summary.mean[k])) + tag("small", interval))


def _difference(found: Difference) -> Html:
    text = number(found.mean)
    interval = tag("small", f"{number(found.low)} to {number(found.high)}")
    return Html((tag("b", text) if found.certain else tag("span", text)) + interval)

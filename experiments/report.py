"""One HTML page about several runs: how the agents adapt, how they learned, with which settings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from metarl.adaptation import AdaptationCurve, Summary, pool, summarize
from metarl.envs.bayes_optimal import Reference
from metarl.errors import UsageError
from metarl.experiments.commands.train import command_of
from metarl.experiments.evaluation import Protocol
from metarl.experiments.figures import (
    Series,
    adaptation_figure,
    coloured,
    layout,
    learning_curves,
    lengths_vary,
    pool_lengths,
    returns_by_task,
)
from metarl.experiments.page import Html, details, dot, image, page, table, tag
from metarl.experiments.printing import write_file
from metarl.experiments.protocol_report import check_comparable, results
from metarl.experiments.protocol_report import section as protocol_section
from metarl.experiments.records import Comparison, Group, RunRecord, compare

SHOWN_EPISODES = 4
"""With more episodes than this, tables show some of them and the sum."""
INTERVALS = (
    "Mean over tasks, its 95 % bootstrap interval (tasks are resampled within each run), and the "
    "interquartile mean (IQM)."
)


def write_report(paths: Sequence[Path], out: Path) -> list[dict[str, Any]]:
    """Write a report on the runs in `paths` to the file `out`.

    Runs without an evaluation are evaluated first.

    Returns:
        One row of figures for each agent on each family, for scripts.

    Raises:
        UsageError: if a path is not a run folder, runs were trained or measured on benchmarks that
            cannot be compared, or `out` cannot be written.
    """
    if not paths:
        raise UsageError("report: name at least one run folder")
    runs = [RunRecord.load(path) for path in dict.fromkeys(paths)]
    check_comparable(runs)
    comparisons = compare(runs)
    families = ", ".join(dict.fromkeys(c.family for c in comparisons))
    body = [
        tag("h1", f"How policies adapt: {families}"),
        tag("p", _overview(runs, comparisons), css="soft"),
        *(piece for comparison in comparisons for piece in section(comparison)),
        *appendix(runs),
    ]
    write_file(out, page(f"metarl report: {families}", *body).encode())
    return [row for comparison in comparisons for row in figures_of(comparison)]


def figures_of(comparison: Comparison) -> list[dict[str, Any]]:
    """The summary of each agent as plain values."""
    rows, reference = [], comparison.reference
    published = results(comparison)
    for group in comparison.groups:
        curves = group.curves(comparison.protocol)
        summary, success = pool(curves), pool_success(curves)
        rows.append(
            {
                "family": comparison.family,
                "agent": group.label,
                "runs": len(group.runs),
                "mean": summary.mean,
                "iqm": summary.iqm,
                "low": summary.mean_low,
                "high": summary.mean_high,
                "success": None if success is None else success.mean,
                "tasks": comparison.protocol.tasks,
                "split": comparison.protocol.split,
                "seed": comparison.protocol.seed,
                "reference": None if reference is None else reference.plain(),
                "published": published.get(group.label),
            }
        )
    return rows


def pool_success(curves: Sequence[AdaptationCurve]) -> Summary | None:
    """Success by episode over several runs; None where it is not defined."""
    rows = [curve.success for curve in curves if curve.success is not None]
    return summarize(np.asarray(rows)) if rows and len(rows) == len(curves) else None


# --- a family ----------------------------------------------------------------------------------


def section(comparison: Comparison) -> list[Html]:
    """Everything about one family."""
    protocol, groups, reference = comparison.protocol, comparison.groups, comparison.reference
    series = coloured(
        [Series(g.label, g.curves(protocol), [run.metrics for run in g.runs]) for g in groups]
    )
    names = ", ".join(one.label for one in series)
    rows: list[list[object]] = [
        [
            Html(dot(one.colour) + tag("b", one.label)),
            len(group.runs),
            _steps(group),
            *_cells(one.curves),
        ]
        for one, group in zip(series, groups, strict=True)
    ]
    if reference is not None:
        rows.append(_reference_row(reference, len(rows[0])))
    return [
        tag("h2", comparison.family),
        tag("p", _describe(protocol), css="soft"),
        tag("h3", "Return by episode"),
        table(["agent", "runs", "training", *_heads(series[0].curves[0])], rows),
        tag("p", INTERVALS + _shared(series) + _about(reference), css="soft note"),
        image(
            adaptation_figure(series, reference=reference),
            f"return by episode and reward by step of {names}",
            "Along a trial, means over tasks with 95 % intervals. A policy that adapts gets better "
            "from step to step and from episode to episode; dotted lines part the episodes.",
        ),
        *protocol_section(comparison),
        *_other_curves(comparison),
        tag("h3", "Learning, and task by task"),
        image(
            layout(series, [learning_curves, returns_by_task]),
            f"learning curves and returns task by task of {names}",
            "Left: return of the last episode during training, thin on training tasks, points on "
            "held-out tasks; dashed is the first episode of these. Right: every evaluated task, "
            "one point a task and run.",
        ),
        tag("h3", "Runs"),
        _runs_table(groups, series, protocol),
    ]


def _describe(protocol: Protocol) -> str:
    actions = "sampled" if protocol.stochastic else "the most likely"
    return (
        f"{protocol.tasks} {protocol.split} tasks drawn with seed {protocol.seed}, the same for "
        f"every run; trials of {_count(protocol.episodes, 'episode')}; actions: {actions}."
    )


def _shared(series: Sequence[Series]) -> str:
    """Who tries a task in several worlds at once, and what its episodes then mean."""
    return "".join(
        f" {one.label} tries a task in {worlds} worlds at once: before its episode 2 it has seen "
        f"{worlds} episodes."
        for one in series
        if (worlds := one.curves[0].worlds_per_task) > 1
    )


def _about(reference: Reference | None) -> str:
    """What the dashed line means."""
    if reference is None:
        return ""
    how = (
        "computed exactly"
        if reference.exact
        else f"nearly so, valued by simulation with a standard error of {reference.error:.2g}"
    )
    return (
        f" {reference.name}, dashed: the expected return of the policy that is best over the whole "
        f"trial for all who do not know the task, {how}."
    )


def _reference_row(reference: Reference, width: int) -> list[object]:
    """The best possible policy, in a table whose other rows are those of agents."""
    returns = reference.returns
    numbers = [returns[k] for k in _shown(len(returns))] + [sum(returns)] * (len(returns) > 1)
    cells = [tag("b", reference.name), "", "", *(tag("b", _number(x)) for x in numbers)]
    return [*cells, *[""] * (width - len(cells))]


def _other_curves(comparison: Comparison) -> list[Html]:
    """Tables of ablations and of other ways to measure, where there are any."""
    ablations, others = [], []
    for group, protocol, ablation in comparison.others():
        curves = group.curves(protocol, ablation)
        first = [tag("b", group.label), ablation.replace("-", " "), len(curves)]
        if ablation != "none" and protocol == comparison.protocol:
            ablations.append([*first, *_cells(curves)])
        else:
            taken = "" if ablation == "none" else f" Taken away: {first[1]}."
            first[1] = _describe(protocol) + taken
            summary = pool(curves)
            others.append([*first, _cell(summary, 0), _cell(summary, -1)])
    pieces = []
    if ablations:
        heads = _heads(comparison.groups[0].curves(comparison.protocol)[0])
        pieces += [
            tag("h3", "What the memory does"),
            tag("p", "The same policies with parts of their memory taken away.", css="soft"),
            table(["agent", "taken away", "runs", *heads], ablations, left=[1]),
        ]
    if others:
        pieces += [
            tag("h3", "Other evaluations"),
            table(["agent", "how", "runs", "first episode", "last episode"], others, left=[1]),
        ]
    return pieces


def _runs_table(groups: Sequence[Group], series: Sequence[Series], protocol: Protocol) -> Html:
    rows = []
    for group, one in zip(groups, series, strict=True):
        for run in group.runs:
            curve = run.curve(protocol)
            assert curve is not None
            summary = curve.summary()
            seconds = run.timing.total("seconds")
            rows.append(
                [
                    Html(dot(one.colour) + tag("span", run.folder.path)),
                    group.label,
                    run.folder.config.training.get("seed", ""),
                    f"{run.step:,}",
                    _duration(seconds),
                    _number(summary.mean[0]),
                    _number(summary.mean[-1]),
                ]
            )
    head = ["run", "agent", "seed", "steps", "time", "first episode", "last episode"]
    return table(head, rows, left=[1])


# --- cells -------------------------------------------------------------------------------------


def _shown(episodes: int) -> list[int]:
    """Indices of the episodes that a table shows."""
    if episodes <= SHOWN_EPISODES:
        return list(range(episodes))
    return [0, 1, episodes // 2 - 1, episodes - 1] if episodes > 5 else [0, 1, 2, episodes - 1]


def _heads(curve: AdaptationCurve) -> list[str]:
    heads = [f"episode {k + 1}" for k in _shown(curve.episodes)]
    heads += ["whole trial"] * (curve.episodes > 1)
    heads += ["steps, first", "steps, last"] * lengths_vary([curve])
    return heads + ["solved, first", "solved, last"] * (curve.success is not None)


def _cells(curves: Sequence[AdaptationCurve]) -> list[Html]:
    """Summaries of the shown episodes, of the whole trial, and of success."""
    summary, episodes = pool(curves), curves[0].episodes
    cells = [_cell(summary, k) for k in _shown(episodes)]
    if episodes > 1:
        totals = np.stack([np.sum(curve.returns, axis=1, keepdims=True) for curve in curves])
        cells.append(_cell(summarize(totals), 0))
    if lengths_vary(curves[:1]):
        cells += [_cell(pool_lengths(curves), k) for k in (0, episodes - 1)]
    success = pool_success(curves)
    return cells if success is None else cells + [_share(success, k) for k in (0, episodes - 1)]


def _cell(summary: Summary, k: int) -> Html:
    mean, low, high = summary.mean[k], summary.mean_low[k], summary.mean_high[k]
    show = [_number(x) for x in (mean, low, high, summary.iqm[k])]
    return Html(
        tag("b", show[0]) + tag("small", f"{show[1]} to {show[2]}") + tag("small", f"IQM {show[3]}")
    )


def _share(summary: Summary, k: int) -> Html:
    interval = tag("small", f"{summary.mean_low[k]:.0%} to {summary.mean_high[k]:.0%}")
    return Html(tag("b", f"{summary.mean[k]:.0%}") + interval)


def _number(value: float) -> str:
    digits = 1 if abs(value) >= 100 else 2
    return f"{value:,.{digits}f}".replace("-", "\N{MINUS SIGN}")


def _steps(group: Group) -> str:
    steps = sorted({run.step for run in group.runs})
    shown = [f"{n / 1e6:.3g} M" if n >= 1e6 else f"{n:,}" for n in steps]
    return shown[0] if len(set(shown)) == 1 else f"{shown[0]} to {shown[-1]}"


def _duration(seconds: float) -> str:
    if seconds >= 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.0f} s"


def _count(n: int, what: str) -> str:
    return f"{n} {what}" + "s" * (n != 1)


def _overview(runs: Sequence[RunRecord], comparisons: Sequence[Comparison]) -> str:
    groups = sum(len(comparison.groups) for comparison in comparisons)
    steps = sum(run.step for run in runs)
    return (
        f"{_count(len(runs), 'run')} of {_count(groups, 'agent')}, {steps:,} environment steps of "
        "training in all. A trial is a number of consecutive episodes in one task: what a policy "
        "learns in one episode it may use in the next."
    )


# --- settings ----------------------------------------------------------------------------------


def appendix(runs: Sequence[RunRecord]) -> list[Html]:
    """Commands, versions and resolved settings."""
    commands = [command_of(run.folder) for run in runs]
    commands.append("metarl report " + " ".join(str(run.folder.path) for run in runs))
    pieces = [
        tag("h2", "How to get the same"),
        details("Commands", "\n".join(commands), opened=True),
    ]
    seen: dict[str, list[str]] = {}
    for run in runs:
        seen.setdefault(_versions(run), []).append(str(run.folder.path))
    for versions, paths in seen.items():
        title = "Versions" if len(seen) == 1 else f"Versions of {', '.join(paths)}"
        pieces.append(details(title, versions))
    for run in runs:
        settings = yaml.safe_dump(run.folder.config.plain(), sort_keys=False).strip()
        pieces.append(details(f"Settings of {run.folder.path}", settings))
    return pieces


def _versions(run: RunRecord) -> str:
    try:
        versions = json.loads((run.folder.path / "versions.json").read_text(encoding="utf-8"))
        return "\n".join(f"{name:<20}{version}" for name, version in versions.items())
    except (OSError, ValueError, AttributeError):
        return "not recorded"

"""What a report says of Meta-World's protocol: bars, numbers, and what they depend on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from metarl.adaptation import AdaptationCurve
from metarl.errors import UsageError
from metarl.experiments.figures import Series, coloured
from metarl.experiments.metaworld import KEY, conditions, is_metaworld
from metarl.experiments.page import Html, dot, image, table, tag
from metarl.experiments.protocol import ABOUT, Estimate, Result, result_of
from metarl.experiments.protocol_figures import protocol_figure
from metarl.experiments.records import Comparison, RunRecord

INTERVALS = (
    "Share of episodes that succeed, with the 95 % bootstrap interval: goals are resampled within "
    "each skill and run. An interval without width says that no goal went unlike another."
)


def check_comparable(runs: Sequence[RunRecord]) -> None:
    """Raise `UsageError` if figures of these runs on Meta-World must not be put side by side."""
    rewards: dict[str, str] = {}
    versions: dict[str, str] = {}
    for run in runs:
        config, path = run.folder.config, str(run.folder.path)
        if is_metaworld(config.family):
            rewards.setdefault(str(config.family_options.get("reward_version")), path)
        for curve in run.curves:
            if KEY in curve.info:
                versions.setdefault(curve.info[KEY]["versions"]["metaworld"], path)
    _require_one("were trained on different rewards of Meta-World", rewards)
    _require_one("were measured on different versions of Meta-World", versions)


def _require_one(what: str, found: dict[str, str]) -> None:
    if len(found) > 1:
        listed = " and ".join(f"{value} ({path})" for value, path in found.items())
        raise UsageError(f"report: runs {what}, {listed}: report them apart")


def measured(comparison: Comparison) -> list[tuple[Series, list[AdaptationCurve]]]:
    """The agents that were measured by the protocol, with a curve for each run that was."""
    protocol = comparison.published
    if protocol is None:
        return []
    found = [Series(g.label, g.curves(protocol)) for g in comparison.groups]
    return [(one, list(one.curves)) for one in coloured(found) if one.curves]


def results(comparison: Comparison) -> dict[str, Any]:
    """The protocol's figures of each agent that was measured, for scripts."""
    return {
        one.label: {"runs": len(curves), **curves[0].info[KEY], **result_of(curves).plain()}
        for one, curves in measured(comparison)
    }


def section(comparison: Comparison) -> list[Html]:
    """The protocol on one family; empty where no run was measured by it."""
    found = measured(comparison)
    if not found:
        return []
    series = [one for one, _ in found]
    pooled = [result_of(curves) for _, curves in found]
    names = ", ".join(one.label for one in series)
    seeds = {curve.info["seed"]: None for _, curves in found for curve in curves}
    about = f"{ABOUT}; goals of seed {', '.join(map(str, seeds))}."
    notes = [f"{one.label}: {conditions(c.info)}." for one, curves in found for c in curves]
    return [
        tag("h3", "Success by Meta-World's protocol"),
        tag("p", about, css="soft"),
        image(
            protocol_figure(series),
            f"success by skill of {names}",
            "Bars with 95 % intervals for each skill, pooled over an agent's seeds. An episode "
            "succeeds if the skill's own measure is true at any of its steps.",
        ),
        _table(series, pooled),
        tag("p", INTERVALS, css="soft note"),
        *(tag("p", note, css="soft note") for note in notes),
    ]


def _table(series: Sequence[Series], pooled: Sequence[Result]) -> Html:
    """A row for each skill, a column for each agent."""
    heads = [Html(dot(one.colour) + tag("b", _head(one))) for one in series]
    rows: list[list[object]] = []
    if len(pooled[0].skills) > 1:
        rows.append([tag("b", "mean over skills"), *(_cell(result.success) for result in pooled)])
    rows += [
        [name, *(_cell(result.skills[name].success) for result in pooled)]
        for name in pooled[0].skills
    ]
    return table(["skill", *heads], rows)


def _head(one: Series) -> str:
    runs = len(one.curves)
    return f"{one.label}, {runs} run" + "s" * (runs != 1)


def _cell(success: Estimate) -> Html:
    interval = tag("small", f"{success.low:.0%} to {success.high:.0%}")
    return Html(tag("b", f"{success.mean:.0%}") + interval)

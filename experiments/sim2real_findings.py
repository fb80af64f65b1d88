"""What a sim-to-real study found, as plain numbers and as sentences made from them alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from metarl.adaptation import AdaptationCurve, Summary, pool, summarize
from metarl.configs import to_plain
from metarl.envs.quantities import QUANTITIES
from metarl.envs.randomization import Parameters
from metarl.experiments.sim2real import Failure, Study
from metarl.experiments.sim2real_measure import Array, label_of
from metarl.statistics import stratified_bootstrap

EXTRA_SHARE = 0.2
"""share of training tasks that `failures.json` asks for from the failures"""


_HEADLINE = {
    "surrogate, nominal": "On the surrogate of the real robot",
    "surrogate, drawn": "With dynamics drawn from the training range besides,",
}
"""Settings that decide, and how a sentence about them begins."""


@dataclass(frozen=True)
class Difference:
    """Mean over tasks of a difference, and its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, differences: Array) -> Difference:
        """Summarise differences `[N]`, one a task."""
        low, high = stratified_bootstrap(differences[None])
        return cls(float(differences.mean()), float(low), float(high))

    @property
    def certain(self) -> bool:
        """Whether the interval excludes that there is no difference."""
        return self.low > 0 or self.high < 0

    def words(self, other: str) -> str:
        """Which way and by how much it differs from `other`."""
        if not self.certain:
            span = f"{number(self.low)} to {number(self.high)}"
            return (
                f"the same as {other} as far as these tasks can tell (difference "
                f"{number(self.mean)}, {span})"
            )
        side = "more" if self.mean > 0 else "less"
        low, high = sorted((abs(self.low), abs(self.high)))
        return f"{number(abs(self.mean))} {side} than {other} ({number(low)} to {number(high)})"


def last_of(curves: Sequence[AdaptationCurve], episode: int = -1) -> Array:
    """Return `[N]` of an episode in every task, mean over runs."""
    returns = np.asarray([curve.returns for curve in curves])
    return np.asarray(returns[..., episode].mean(axis=0))


def against(study: Study, setting: str, other: int) -> Difference:
    """How much more the first agent returns in its last episode than another, task by task."""
    curves = study.settings[setting]
    return Difference.of(last_of(curves[0]) - last_of(curves[other]))


def gain(study: Study, setting: str, agent: int = 0) -> Difference:
    """How much more an agent returns in its last episode than in its first."""
    curves = study.settings[setting][agent]
    return Difference.of(last_of(curves) - last_of(curves, 0))


def verdicts(study: Study) -> list[str]:
    """A sentence for each setting: what the first agent returns, and how the others compare."""
    first, sentences = study.contenders[0], []
    for name, curves in study.settings.items():
        summary = pool(curves[0])
        parts = []
        if study.robot.episodes > 1:
            parts.append(gain(study, name).words("in its first"))
        parts += [
            against(study, name, index).words(other.label)
            for index, other in enumerate(study.contenders[1:], 1)
        ]
        sentence = f"{name.capitalize()}: {first.label} returns {_estimate(summary, -1)}"
        sentence += " in its last episode"
        sentences.append(f"{sentence}: {'; '.join(parts)}." if parts else f"{sentence}.")
    return sentences


def headline(study: Study) -> str:
    """What counts: the first agent on the surrogate, against the others and its own beginning."""
    first = study.contenders[0].label
    sentences = []
    for name, where in _HEADLINE.items():
        words = []
        for index, other in enumerate(study.contenders[1:], 1):
            found = against(study, name, index)
            which = "better" if found.mean > 0 else "worse"
            words.append(
                f"is {which} than {other.label}"
                if found.certain
                else f"cannot be told from {other.label}"
            )
        if study.robot.episodes > 1:
            adapts = gain(study, name)
            which = "improves" if adapts.mean > 0 else "gets worse"
            change = which if adapts.certain else "does not measurably change"
            words.append(f"{change} from its first to its last episode")
        if words:
            sentences.append(f"{where} {first} {_listed(words)}.")
    return " ".join(sentences) or f"{first} was measured alone, in trials of one episode."


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])}, and {words[-1]}"


def _estimate(summary: Summary, k: int) -> str:
    return (
        f"{number(summary.mean[k])} ({number(summary.mean_low[k])} to "
        f"{number(summary.mean_high[k])})"
    )


def number(value: float) -> str:
    """A return in a sentence or a table."""
    digits = 0 if abs(value) >= 1000 else 1 if abs(value) >= 100 else 2
    # Rounded first, so that what is nearly 0 has no sign.
    return f"{round(value, digits) + 0.0:,.{digits}f}".replace("-", "\N{MINUS SIGN}")


def in_words(parameters: Parameters, values: Sequence[float]) -> str:
    """A robot in words, a phrase for each quantity; where elements differ, their span."""
    words = []
    for vary, part in zip(parameters.vary, parameters.slices, strict=True):
        own, unit = values[part], QUANTITIES[vary.quantity].unit
        unit = "step" if unit == "steps" and max(own) == 1.0 else unit
        low, high = (f"{x:.3g}" for x in (min(own), max(own)))
        span = low if low == high else f"{low} to {high}"
        words.append(f"{label_of(vary)} {span}" + {"x": "x", "": ""}.get(unit, f" {unit}"))
    return ", ".join(words)


# --- plain values ------------------------------------------------------------------------------


def failures_file(study: Study) -> dict[str, Any]:
    """The failures as a randomisation that training reads, with all that is known in its notes."""
    randomize = to_plain(study.robot.randomize)
    return {
        "vary": randomize["vary"],
        "extra": [list(failure.dynamics) for failure in study.failures],
        "extra_share": EXTRA_SHARE,
        "notes": {
            "family": study.robot.name,
            "names": list(study.robot.parameters.names),
            "failures": [_failure(study, failure) for failure in study.failures],
        },
    }


def _failure(study: Study, failure: Failure) -> dict[str, Any]:
    parameters = study.robot.parameters
    return {
        "parameters": dict(zip(parameters.names, failure.dynamics, strict=True)),
        "words": in_words(parameters, failure.dynamics),
        "inside_training_range": failure.inside,
        "returns": {
            c.label: asdict(summarize(returns))
            for c, returns in zip(study.contenders, failure.returns, strict=True)
        },
    }


def figures(study: Study) -> dict[str, Any]:
    """Everything that was measured, as JSON takes it."""
    labels = [c.label for c in study.contenders]

    def by_agent(values: Sequence[Any]) -> dict[str, Any]:
        return dict(zip(labels, values, strict=True))

    heat_map = study.heat_map
    return {
        "family": study.robot.name,
        "episodes": study.robot.episodes,
        "headline": headline(study),
        "verdicts": verdicts(study),
        "plan": to_plain(study.plan),
        "surrogate": to_plain(study.surrogate),
        "agents": [
            {"agent": c.label, "kind": c.kind, "runs": [str(r.folder.path) for r in c.runs]}
            for c in study.contenders
        ],
        "settings": {
            name: by_agent([asdict(pool(of_runs)) for of_runs in curves])
            for name, curves in study.settings.items()
        },
        "first_agent_more_than": {
            name: {
                label: asdict(against(study, name, index))
                for index, label in enumerate(labels)
                if index
            }
            for name in study.settings
        },
        "sweeps": [
            {**asdict(sweep.axis), "returns": by_agent([_along(r) for r in sweep.returns])}
            for sweep in study.sweeps
        ],
        "heat_map": heat_map
        and {
            "a": asdict(heat_map.a),
            "b": asdict(heat_map.b),
            "returns": by_agent([r.tolist() for r in heat_map.returns]),
        },
        "failures": [_failure(study, failure) for failure in study.failures],
        "candidates": study.candidates,
        "latency": {
            "control_period": study.robot.dt,
            **by_agent([asdict(latency) for latency in study.latencies]),
        },
        "unstable": study.unstable,
        "seconds": study.seconds,
    }


def _along(returns: Array) -> dict[str, Any]:
    """Means and intervals `[G, K]` of `[runs, G, W, K]`."""
    low, high = stratified_bootstrap(np.moveaxis(returns, 2, 1))
    return {
        "mean": returns.mean(axis=(0, 2)).tolist(),
        "low": low.tolist(),
        "high": high.tolist(),
    }

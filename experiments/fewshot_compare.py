"""Several few-shot methods on the same held-out tasks: one table and one figure."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from matplotlib.figure import Figure

from metarl.configs import first_difference, to_plain
from metarl.errors import UsageError
from metarl.experiments.commands.fewshot import pair_defaults, run_defaults
from metarl.experiments.fewshot import PREFIX
from metarl.experiments.fewshot_figures import Row, comparison_figure
from metarl.experiments.fewshot_runs import Trained, build, judge_run, train_run
from metarl.experiments.figures import save
from metarl.experiments.loading import check_device, use_threads
from metarl.experiments.printing import write_file
from metarl.fewshot.episodes import Data, Protocol
from metarl.fewshot.evaluation import Scores, summarize
from metarl.logs import json_value

if TYPE_CHECKING:
    from metarl.experiments.commands.fewshot import CompareOptions


@dataclass(frozen=True)
class Pair:
    """What one method shall be trained with, for one seed."""

    method: str
    """as the command line knows it"""
    path: Path
    """its run folder"""
    options: Any
    """`learner`, `data` and `training`"""


@dataclass(frozen=True)
class Comparison:
    """What came of the methods, each with all seeds."""

    dataset: str
    """as the command line knows it"""
    kind: str
    """classification or regression"""
    protocol: Protocol
    """how all were judged"""
    tasks: int
    """held-out tasks, the same for all"""
    seeds: tuple[int, ...]
    """of training"""
    rows: tuple[dict[str, Any], ...]
    """one for each method: method, metric, mean, low, high, seconds (of one seed), parameters,
    iterations, and log_likelihood with its bounds where the method has one"""
    oracle: dict[str, float]
    """what the exact posterior reaches, where there is one"""

    def plain(self) -> dict[str, Any]:
        """Everything, as JSON takes it."""
        return {**dataclasses.asdict(self), "protocol": vars(self.protocol)}

    def table(self) -> list[dict[str, Any]]:
        """Rows for people, the best method first."""
        best = sorted(self.rows, key=lambda row: row["mean"], reverse=self.kind != "regression")
        spread = any("log_likelihood" in row for row in best)
        shown = []
        for row in best:
            metric = row["metric"]
            cells = {
                "method": row["method"],
                metric: f"{row['mean']:.4f}",
                "95 %": f"{row['low']:.4f} to {row['high']:.4f}",
                "seconds": round(row["seconds"]),
                "parameters": row["parameters"],
                "iterations": row["iterations"],
            }
            if spread:
                value = row.get("log_likelihood")
                cells["log-likelihood"] = "" if value is None else f"{value['mean']:.3f}"
            shown.append(cells)
        return shown

    def markdown(self) -> str:
        """The table as a text that a README can show."""
        rows = self.table()
        lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
        lines += ["| " + " | ".join(map(str, row.values())) + " |" for row in rows]
        lines += [f"\nExact posterior: {name} {x:.4f}." for name, x in self.oracle.items()]
        return "\n".join([self._title(), "", *lines]) + "\n"

    def heading(self) -> str:
        """The data and the protocol in a few words."""
        ways = f"{self.protocol.ways}-way " if self.kind == "classification" else ""
        return f"{self.dataset}, {ways}{self.protocol.shots}-shot"

    def figures(self) -> dict[str, Figure]:
        """One for each score, by its name."""
        scores: dict[str, Sequence[dict[str, Any]]] = {str(self.rows[0]["metric"]): self.rows}
        spread = [{**row, **row["log_likelihood"]} for row in self.rows if "log_likelihood" in row]
        if spread:
            scores["log_likelihood"] = spread
        drawn = {}
        for name, rows in scores.items():
            points = [Row(r["method"], r["mean"], r["low"], r["high"]) for r in rows]
            best = {"exact posterior": self.oracle[name]} if name in self.oracle else {}
            drawn[name] = comparison_figure(points, name, self.heading(), best)
        return drawn

    def _title(self) -> str:
        seeds = ", ".join(map(str, self.seeds))
        return (
            f"{self.heading()}: {self.tasks} held-out tasks, training seeds "
            f"{seeds}; intervals are 95 % over the tasks of all seeds, seconds those of one seed."
        )


def compare(
    methods: Sequence[str], dataset: str, data: Data, options: CompareOptions
) -> Comparison:
    """Train what is not trained yet, and judge every method by the same tasks.

    Raises:
        UsageError: a run folder holds a run on other tasks, or a method does not do such tasks.
    """
    use_threads(options.threads)
    device = check_device(options.device)
    pairs = [
        [_prepare(method, dataset, data, seed, options) for seed in options.seeds]
        for method in methods
    ]
    protocol = _same_protocol([pair for row in pairs for pair in row])
    for row in pairs:  # before anything is trained
        build(row[0].method, row[0].options, device)
    rows, oracle = [], {}
    for method, row in zip(methods, pairs, strict=True):
        trained = [_train(pair, dataset, device) for pair in row]
        scores = [judge_run(one, options.tasks)[0] for one in trained]
        oracle = scores[0].oracle_means()
        rows.append(_row(method, trained, scores))
    kind, seeds = data.kind, tuple(options.seeds)
    return Comparison(dataset, kind, protocol, options.tasks, seeds, tuple(rows), oracle)


def _prepare(method: str, dataset: str, data: Data, seed: int, options: CompareOptions) -> Pair:
    """The options of the run that is there, else the preset's with what was asked for.

    Raises:
        UsageError: if the run that is there has other options than were asked for.
    """
    path = Path(options.run_dir) / f"{PREFIX}{method}-{dataset}-{seed}"
    asked = {
        name: getattr(options, name)
        for name in ("iterations", "ways", "shots", "queries")
        if getattr(options, name)
    }
    there = (path / "config.yaml").is_file()
    parts = run_defaults(method, dataset, path) if there else pair_defaults(method, dataset)
    parts.pop("run", None)
    training = dataclasses.replace(parts["training"], seed=seed, **asked)
    if there:
        wanted = {"training": to_plain(training), "data": to_plain(data)}
        found = {"training": to_plain(parts["training"]), "data": to_plain(parts["data"])}
        difference = first_difference(found, wanted)
        if difference:
            name, trained, wish = difference
            raise UsageError(
                f"run folder {path} was trained with {name} = {trained!r}, asked for {wish!r}; "
                "choose another --run-dir"
            )
    kind = dataclasses.make_dataclass("Options", ["learner", "data", "training"])
    return Pair(method, path, kind(parts["learner"], data, training))


def _same_protocol(pairs: Sequence[Pair]) -> Protocol:
    """How all are judged.

    Raises:
        UsageError: if runs that are there were trained for different tasks.
    """
    first = pairs[0].options.training.protocol
    for pair in pairs:
        protocol = pair.options.training.protocol
        difference = first_difference(vars(first), vars(protocol))
        if difference:
            name, one, other = difference
            raise UsageError(
                f"{pairs[0].path} is for tasks of {one} {name} and {pair.path} for {other}; "
                f"give --{name}, with a --run-dir that holds no runs for other tasks"
            )
    return Protocol(**vars(first))


def _train(pair: Pair, dataset: str, device: torch.device) -> Trained:
    """Train to the end, from wherever the run folder has come to."""
    resume = (pair.path / "config.yaml").is_file()
    return train_run(pair.method, dataset, pair.options, pair.path, resume, device)


def _row(method: str, trained: Sequence[Trained], scores: Sequence[Scores]) -> dict[str, Any]:
    """What a method reached after its last step of adaptation, over all seeds."""
    summary = summarize(scores)
    last = {
        name: {"mean": x.mean[-1], "low": x.low[-1], "high": x.high[-1]}
        for name, x in summary.items()
    }
    metric = scores[0].metric
    spread = {"log_likelihood": last["log_likelihood"]} if "log_likelihood" in last else {}
    return {
        "method": method,
        "metric": metric,
        **last[metric],
        "seconds": sum(one.seconds for one in trained) / len(trained),
        "parameters": trained[0].parameters,
        "iterations": trained[0].iterations,
        "seeds": len(trained),
        **spread,
    }


def save_comparison(comparison: Comparison, root: str | Path) -> list[Path]:
    """Write the comparison as JSON, as a table in Markdown and as figures; returns the files."""
    p = comparison.protocol
    ways = f"{p.ways}w" if comparison.kind == "classification" else ""
    base = f"{root}/compare-{comparison.dataset}-{ways}{p.shots}s"
    text = json.dumps(json_value(comparison.plain()), indent=1, allow_nan=False) + "\n"
    paths = [Path(f"{base}.json"), Path(f"{base}.md")]
    write_file(paths[0], text.encode())
    write_file(paths[1], comparison.markdown().encode())
    for name, figure in comparison.figures().items():
        paths.append(Path(f"{base}-{name.replace('_', '-')}.png"))
        save(figure, paths[-1])
    return paths

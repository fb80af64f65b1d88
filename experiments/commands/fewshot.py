"""`metarl fewshot METHOD DATASET`: train a few-shot learner and judge it on held-out tasks.

The words METHOD and DATASET decide which options there are: the fields of the method's config,
those of the data as `--data.X`, and those of the trainer. Their defaults are the pair's preset.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from metarl.errors import UsageError
from metarl.experiments.fewshot import DATASETS, METHODS, PREFIX, configured, preset
from metarl.experiments.options import choose, parse, parse_parts
from metarl.experiments.printing import print_json, print_table

USAGE = """usage: metarl fewshot METHOD DATASET [OPTIONS]
       metarl fewshot --compare METHOD METHOD ... DATASET [OPTIONS]

Train a few-shot learner, evaluate it on classes or functions that it has never seen, and draw what
it does; or train several and make one table and figure of them.

METHOD is one of
{methods}

DATASET is one of
{datasets}

metarl fewshot METHOD DATASET --help and metarl fewshot --compare --help list the options."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judging:
    """How to measure, whatever is trained."""

    tasks: int = 1000
    """held-out tasks that each learner is judged by"""
    device: str = "cpu"
    """cpu, cuda or cuda:N"""
    threads: int = 1
    """threads of torch"""
    json: bool = False
    """print one JSON object as the last line"""

    def __post_init__(self) -> None:
        """Raise `UsageError` for counts that measure nothing."""
        for name in ("tasks", "threads"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name} must be at least 1, got {getattr(self, name)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunOptions(Judging):
    """Where to train, and how to judge."""

    run_dir: str = ""
    """folder of the run; {seed} stands for the seed"""
    resume: bool = False
    """go on from the last good checkpoint in --run-dir, with the options of that run"""
    figures: bool = True
    """draw what it does on held-out tasks"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareOptions(Judging):
    """Train every method with every seed, unless its run folder says that this is done."""

    run_dir: str = "runs"
    """folder of the run folders, and of the table and the figure"""
    seeds: tuple[int, ...] = (1,)
    """training seeds of each method"""
    iterations: int = 0
    """of each method; 0 takes its preset"""
    ways: int = 0
    """classes of a task; 0 takes the preset"""
    shots: int = 0
    """support points of each class, or of a regression task; 0 takes the preset"""
    queries: int = 0
    """query points of each class, or of a regression task; 0 takes the preset"""

    def __post_init__(self) -> None:
        """Raise `UsageError` for counts that measure nothing."""
        super().__post_init__()
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise UsageError("--seeds must be one or more numbers, all different")


def main(args: list[str]) -> int:
    """Run `metarl fewshot`."""
    if "--compare" in args:
        return _compare([word for word in args if word != "--compare"])
    names = _leading_words(args)
    if len(names) < 2 and {"-h", "--help"} & set(args):
        print(_usage())
        return 0
    if not names:
        raise UsageError(f"fewshot: name a method, one of {', '.join(METHODS)}, and a data set")
    method = choose("method", names[0], METHODS)
    if len(names) == 1:
        raise UsageError(f"fewshot {method}: name a data set, one of {', '.join(DATASETS)}")
    return _train(method, choose("data set", names[1], DATASETS), args[2:])


def _leading_words(args: list[str]) -> list[str]:
    return args[: next((i for i, word in enumerate(args) if word.startswith("-")), len(args))]


def _usage() -> str:
    methods = "\n".join(f"  {name:<14}{entry.summary}" for name, entry in METHODS.items())
    datasets = "\n".join(f"  {name:<14}{entry.summary}" for name, entry in DATASETS.items())
    return USAGE.format(methods=methods, datasets=datasets)


def _train(method: str, dataset: str, args: list[str]) -> int:
    """Parse the options of the pair, train and judge."""
    from metarl.experiments.fewshot_runs import draw, judge_run, train_run
    from metarl.experiments.loading import check_device, use_threads

    options = parse_pair(method, dataset, args)
    run: RunOptions = options.run
    use_threads(run.threads)
    device = check_device(run.device)
    trained = train_run(method, dataset, options, Path(run.run_dir), run.resume, device)
    scores, file = judge_run(trained, run.tasks)
    print(f"trained {method} on {dataset}: {trained.folder.path}")
    print_table(_rows(scores))
    for name, value in scores.oracle_means().items():
        print(f"exact posterior: {name} {value:.4f}")
    figures = draw(trained, scores) if run.figures else []
    print("saved " + " and ".join(map(str, [file, *figures])))
    if run.json:
        print_json(
            {
                "run": str(trained.folder.path),
                "method": method,
                "dataset": dataset,
                "iterations": trained.iterations,
                "parameters": trained.parameters,
                "seconds": trained.seconds,
                "held_out": scores.figures(),
            }
        )
    return 0


def _rows(scores: Any) -> list[dict[str, Any]]:
    """One row for each number of adaptation steps, with the interval of each score."""
    rows = []
    for k, steps in enumerate(scores.steps):
        row: dict[str, Any] = {"steps": steps}
        for name, found in scores.summary().items():
            row[name] = f"{found.mean[k]:.4f}"
            row[f"{name} 95 %"] = f"{found.low[k]:.4f} to {found.high[k]:.4f}"
        rows.append(row)
    return rows


def parse_pair(method: str, dataset: str, args: list[str]) -> Any:
    """Parse the options of a pair into an object with `learner`, `data`, `training` and `run`.

    With `--resume` the defaults are what the run in `--run-dir` was trained with.

    Raises:
        UsageError: for options that the pair does not have or take.
    """
    options = _parse_with(method, dataset, pair_defaults(method, dataset), args)
    if options.run.resume and (Path(options.run.run_dir) / "config.yaml").is_file():
        defaults = {"run": options.run, **run_defaults(method, dataset, Path(options.run.run_dir))}
        options = _parse_with(method, dataset, defaults, args)
    return options


def _parse_with(method: str, dataset: str, defaults: dict[str, Any], args: list[str]) -> Any:
    """Parse `args` over `defaults`, dataclass instances by the name of their part."""
    prog = f"metarl fewshot {method} {dataset}"
    options = parse_parts(prog, f"Train {method} on {dataset}.", defaults, args)
    seed = str(options.training.seed)
    run = dataclasses.replace(options.run, run_dir=options.run.run_dir.replace("{seed}", seed))
    return dataclasses.replace(options, run=run)


def pair_defaults(method: str, dataset: str) -> dict[str, Any]:
    """Settings that work for the pair."""
    from metarl.fewshot.training import FewShotTraining

    settings = preset(method, dataset)
    return {
        "run": RunOptions(run_dir=f"runs/{PREFIX}{method}-{dataset}-{{seed}}"),
        "training": FewShotTraining(**settings["training"]),
        "learner": configured(METHODS[method].config_class(), settings["learner"]),
        "data": DATASETS[dataset].data_class()(),
    }


def run_defaults(method: str, dataset: str, path: Path) -> dict[str, Any]:
    """What the run in `path`, which shall go on, was trained with.

    Raises:
        UsageError: if that was another method or other data.
    """
    from metarl.configs import from_plain
    from metarl.fewshot.training import FewShotTraining
    from metarl.runs import RunFolder

    config, where = RunFolder.open(path).config, f"{path}/config.yaml"
    if (config.agent, config.family) != (PREFIX + method, dataset):
        raise UsageError(
            f"run folder {path} was trained with {config.agent} on {config.family}, asked for "
            f"{PREFIX}{method} on {dataset}; choose another --run-dir"
        )
    kind, data = METHODS[method].config_class(), DATASETS[dataset].data_class()
    return {
        "training": from_plain(FewShotTraining, config.training, f"{where}: training"),
        "learner": from_plain(kind, config.agent_config, f"{where}: agent_config"),
        "data": from_plain(data, config.family_options, f"{where}: family_options"),
    }


def _compare(args: list[str]) -> int:
    """Make one table and one figure of several methods."""
    names = _leading_words(args)
    if {"-h", "--help"} & set(args) and not names:
        parse(CompareOptions, ["--help"], "metarl fewshot --compare METHOD ... DATASET")
    if len(names) < 2:
        raise UsageError(
            "fewshot --compare: name the methods and then the data set, as in: "
            "metarl fewshot --compare maml prototypical characters"
        )
    dataset = choose("data set", names[-1], DATASETS)
    methods = [choose("method", name, METHODS) for name in names[:-1]]
    if len(set(methods)) < len(methods):
        raise UsageError("fewshot --compare: name each method once")
    prog = f"metarl fewshot --compare {' '.join(names)}"
    defaults = {"options": CompareOptions(), "data": DATASETS[dataset].data_class()()}
    summary = CompareOptions.__doc__ or ""
    parsed = parse_parts(prog, summary, defaults, args[len(names) :])
    from metarl.experiments.fewshot_compare import compare, save_comparison

    comparison = compare(methods, dataset, parsed.data, parsed.options)
    print_table(comparison.table())
    print("saved " + " and ".join(map(str, save_comparison(comparison, parsed.options.run_dir))))
    if parsed.options.json:
        print_json(comparison.plain())
    return 0

"""`metarl train AGENT FAMILY`: meta-train an agent.

The words AGENT and FAMILY decide which options there are: the fields of the agent's config, those
of the family as `--family.X`, and those of the trainer. Their defaults are the pair's preset.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metarl.envs.metaworld.names import SKILLS
from metarl.envs.registry import listed
from metarl.errors import UsageError
from metarl.experiments.agents import AGENTS
from metarl.experiments.options import choose, choose_family, parse_parts
from metarl.experiments.printing import print_json

if TYPE_CHECKING:
    from metarl.runs import RunConfig, RunFolder

USAGE = """usage: metarl train AGENT FAMILY [OPTIONS]

Meta-train an agent on a family of tasks.

AGENT is one of
{agents}

FAMILY is one of
{families}
or your own, as module:Class

SKILL is one of Meta-World's
{skills}

metarl train AGENT FAMILY --help lists the options of the pair; metarl families says more."""


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """Where to train."""

    run_dir: str = ""
    """folder of the run; {seed} stands for the seed"""
    resume: bool = False
    """go on from the last good checkpoint in --run-dir, with the options of that run"""
    device: str = "cpu"
    """cpu, cuda or cuda:N, of the agent and of worlds that can live there; those of Meta-World and
    of gymnasium are simulated on the CPU, and their tensors copied"""
    threads: int = 0
    """threads for physics and torch; 0 is one for each processor, and one for torch"""
    json: bool = False
    """print one JSON object as the last line"""


def main(args: list[str]) -> int:
    """Run `metarl train`."""
    names = args[: next((i for i, word in enumerate(args) if word.startswith("-")), len(args))]
    if len(names) < 2 and {"-h", "--help"} & set(args):
        print(_usage())
        return 0
    if not names:
        raise UsageError(f"train: name an agent, one of {', '.join(AGENTS)}, and a family")
    agent = choose("agent", names[0], AGENTS)
    if len(names) == 1:
        raise UsageError(f"train {agent}: name a family, one of {', '.join(listed())}")
    return _train(agent, choose_family(names[1]), args[2:])


def _usage() -> str:
    agents = "\n".join(f"  {name:<14}{entry.summary}" for name, entry in AGENTS.items())
    families = "\n".join(f"  {name}" for name in listed())
    skills = textwrap.fill(", ".join(SKILLS), 80, break_on_hyphens=False)
    return USAGE.format(agents=agents, families=families, skills=skills)


def _train(agent: str, family: str, args: list[str]) -> int:
    """Parse the options of the pair and train."""
    from metarl.experiments.loading import as_seen_by, build_agent, check_device, use_threads
    from metarl.runs import RunFolder
    from metarl.training import train

    options = parse_pair(agent, family, args)
    run, training = options.run, options.training
    seen = as_seen_by(agent, options.family, options.agent)
    device, threads = check_device(run.device, seen), use_threads(run.threads)
    # First of all: an agent that refuses the family leaves no run folder behind.
    built = build_agent(agent, options.agent, seen, seed=training.seed, device=device)
    config = run_config(agent, family, options)
    path = Path(run.run_dir)
    if run.resume and (path / "config.yaml").is_file():
        folder = RunFolder.open(path)
        folder.require_same(config)
    else:
        folder = RunFolder.create(path, config)
    try:
        done = train(
            built, seen, folder, training, resume=run.resume, device=device, threads=threads
        )
    except UsageError:
        folder.remove_if_unused()
        raise
    first, last = (done.figures.get(f"return_{which}") for which in ("first", "last"))
    print(f"trained {agent} on {family} for {done.counters.steps} steps: {path}")
    print(f"next: metarl evaluate {shlex.quote(str(path))}")
    if run.json:
        figures = {"run": str(path), "steps": done.counters.steps}
        print_json({**figures, "return_first": first, "return_last": last})
    return 0


def run_config(agent: str, family: str, options: Any) -> RunConfig:
    """What `config.yaml` says about a run with the parsed `options` of a pair."""
    from metarl.configs import to_plain
    from metarl.runs import RunConfig

    plain = {name: to_plain(getattr(options, name)) for name in ("agent", "family", "training")}
    return RunConfig(agent, plain["agent"], family, plain["family"], plain["training"])


def parse_pair(agent: str, family: str, args: list[str]) -> Any:
    """Parse the options of a pair into an object with `agent`, `family`, `training` and `run`.

    With `--resume` the defaults are what the run in `--run-dir` was trained with.

    Raises:
        UsageError: for options that the pair does not have or take.
    """
    prog = f"metarl train {agent} {family}"
    options = _parse_with(prog, preset_defaults(agent, family), args)
    if options.run.resume and (Path(options.run.run_dir) / "config.yaml").is_file():
        options = _parse_with(prog, _run_defaults(agent, family, options.run), args)
    return options


def _parse_with(prog: str, defaults: dict[str, Any], args: list[str]) -> Any:
    """Parse `args` over `defaults`, dataclass instances by the name of their part."""
    pair = prog.removeprefix("metarl train ").replace(" ", " on ", 1)
    options = parse_parts(prog, f"Meta-train {pair}.", defaults, args)
    seed = str(options.training.seed)
    run = dataclasses.replace(options.run, run_dir=options.run.run_dir.replace("{seed}", seed))
    return dataclasses.replace(options, run=run)


def preset_defaults(agent: str, family: str) -> dict[str, Any]:
    """The published settings of the pair."""
    from metarl.envs.registry import make_family
    from metarl.experiments.presets import preset
    from metarl.training import TrainingConfig

    settings = preset(agent, family)
    made = make_family(family, **settings["family"])
    return {
        "run": RunOptions(run_dir=f"runs/{agent}-{made.name}-{{seed}}"),
        "training": TrainingConfig(**settings["training"]),
        "agent": AGENTS[agent].config_class()(**settings["agent"]),
        "family": made,
    }


def _run_defaults(agent: str, family: str, run: RunOptions) -> dict[str, Any]:
    """What the run that shall go on was trained with."""
    from metarl.configs import from_plain
    from metarl.experiments.loading import family_of
    from metarl.runs import RunFolder
    from metarl.training import TrainingConfig

    config = RunFolder.open(Path(run.run_dir)).config
    where = f"{run.run_dir}/config.yaml"
    if (config.agent, config.family) != (agent, family):
        raise UsageError(
            f"run folder {run.run_dir} was trained with {config.agent} on {config.family}, asked "
            f"for {agent} on {family}; choose another --run-dir"
        )
    kind = AGENTS[agent].config_class()
    return {
        "run": dataclasses.replace(run, run_dir=run.run_dir),
        "training": from_plain(TrainingConfig, config.training, f"{where}: training"),
        "agent": from_plain(kind, config.agent_config, f"{where}: agent_config"),
        "family": family_of(config, where),
    }


def command_of(folder: RunFolder) -> str:
    """The command that trains the run in `folder` again: what differs from the preset."""
    config = folder.config
    words = ["metarl", "train", config.agent, config.family, "--run-dir", str(folder.path)]
    options = dataclasses.make_dataclass("Preset", ["agent", "family", "training"])
    defaults = preset_defaults(config.agent, config.family)
    del defaults["run"]
    usual = run_config(config.agent, config.family, options(**defaults))
    for prefix, own, other in (
        ("", config.training, usual.training),
        ("", config.agent_config, usual.agent_config),
        ("family.", config.family_options, usual.family_options),
    ):
        for name, value in own.items():
            if name == "seed" or value != other.get(name):
                words += _as_words(prefix + name.replace("_", "-"), value)
    return shlex.join(words)


def _as_words(name: str, value: Any) -> Iterator[str]:
    """An option on the command line."""
    if isinstance(value, bool):
        group, dot, last = name.rpartition(".")
        yield f"--{name}" if value else f"--{group}{dot}no-{last}"
        return
    yield f"--{name}"
    if isinstance(value, dict):  # the content of a file
        value = json.dumps(value)
    yield from map(str, value if isinstance(value, list) else [value])

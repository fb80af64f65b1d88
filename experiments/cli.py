"""The command `metarl`: find the verb, run its module, turn errors into one sentence.

Nothing that reaches torch is imported here, so that help texts and most mistakes answer at once.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import TextIO

from metarl.errors import TrainingError, UsageError

VERBS = {
    "families": "list the task families: observation, action, horizon, episodes, splits",
    "train": "meta-train an agent on a family",
    "evaluate": "adaptation curve of a run on tasks that it has never seen",
    "report": "curves and tables of several runs on one HTML page",
    "video": "what a policy does in the episodes of a trial",
    "export": "a policy for a robot: one file that needs no simulator, verified on a trial",
    "probe": "what of the task can be read off what agents remember",
    "beliefs": "what an agent that infers the task believes in the course of a trial",
    "study": "ready studies: what policies would do on a robot unlike their simulator",
    "fewshot": "supervised few-shot learning: train, evaluate, draw and compare methods",
    "bench": "throughput of simulated worlds, and of an agent's updates",
}
"""Each verb is a module of metarl.experiments.commands with a function main(args)."""

EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED, EXIT_PIPE = 0, 1, 2, 130, 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code.

    0 on success, 2 on bad input with one sentence on standard error, 130 after an interrupt, 1 if
    training diverged. Exceptions that nobody raised on purpose keep their traceback.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            code = _run(args)
        sys.stdout.flush()
        return code
    except SystemExit as stop:  # a help text was printed
        return stop.code if isinstance(stop.code, int) else EXIT_OK
    except UsageError as error:
        return _complain(str(error), EXIT_USAGE)
    except TrainingError as error:
        return _complain(str(error), EXIT_FAILED)
    except (RuntimeError, MemoryError) as error:
        return _complain(_if_memory_is_full(error), EXIT_USAGE)
    except BrokenPipeError:
        # The reader of a pipe, such as `head`, has gone; keep Python from complaining at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_PIPE
    except KeyboardInterrupt as interrupt:
        return _complain(str(interrupt) or "interrupted", EXIT_INTERRUPTED)


def _run(args: list[str]) -> int:
    if not args:
        raise UsageError(f"name a command, one of {', '.join(VERBS)}; see metarl --help")
    if args[0] in ("-h", "--help", "help"):
        print(_help())
        return EXIT_OK
    if args[0] == "--import":
        if len(args) < 3:
            raise UsageError("--import takes a module, and a command after it; see metarl --help")
        from metarl.envs.registry import import_own

        import_own(args[1])
        return _run(args[2:])
    if args[0] == "--version":
        print(import_module("metarl").__version__)
        return EXIT_OK
    from metarl.experiments.options import choose

    verb = choose("command", args[0], VERBS)
    command: Callable[[list[str]], int] = import_module(f"metarl.experiments.commands.{verb}").main
    return command(args[1:])


def _help() -> str:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {verb:<{width}}  {summary}" for verb, summary in VERBS.items())
    return (
        "usage: metarl COMMAND [OPTIONS]\n\n"
        "Meta-reinforcement learning: train policies that adapt to tasks never seen before.\n\n"
        f"commands:\n{verbs}\n\n"
        "metarl COMMAND --help lists the options of a command; --version prints the version.\n"
        "metarl --import MODULE COMMAND opens runs on families of your own, which live in MODULE.\n"
        "Exit code: 0 success, 2 bad input, 130 after an interrupt that saved."
    )


def _warn(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print what metarl warns of as a sentence, and other warnings with their place."""
    if category.__module__.startswith("metarl."):
        text = f"metarl: warning: {message}\n"
    else:
        text = warnings.formatwarning(message, category, filename, lineno, line)
    print(text, end="", file=sys.stderr)


def _if_memory_is_full(error: Exception) -> str:
    """What to say if that is the matter; all else is raised again."""
    from metarl.devices import describe_full, is_out_of_memory

    if not is_out_of_memory(error):
        raise error
    return f"{describe_full(error)}: fewer worlds or tasks, or smaller batches or replay, take less"


def _complain(sentence: str, code: int) -> int:
    print(f"metarl: {sentence}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())

"""Parse options of a command into a dataclass, with one plain sentence for every mistake."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import math
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, TypeVar, cast

import tyro

from metarl.envs.registry import FAMILIES, instead_of
from metarl.errors import UsageError

OptionsT = TypeVar("OptionsT")

FLAT: dict[str, bool] = {"flat": True}
"""Metadata of a dataclass field whose own fields are options without a prefix."""


_FROM_FILES = tyro.constructors.ConstructorRegistry()
"""Options whose type has a class method `from_file` are given as a file."""


@_FROM_FILES.primitive_rule
def _from_file(info: Any) -> Any:
    kind = info.type
    if not hasattr(kind, "from_file"):
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="FILE|none",
        instance_from_str=lambda words: kind.from_file(words[0]),
        is_instance=lambda value: isinstance(value, kind),
        str_from_instance=lambda value: [str(value)],
    )


def choose(kind: str, name: str, allowed: Iterable[str]) -> str:
    """Return `name` if it is one of `allowed`.

    Raises:
        UsageError: otherwise, with the closest match and the allowed names.
    """
    names = list(allowed)
    if name in names:
        return name
    raise _no_such(kind, name, difflib.get_close_matches(name, names, n=1), names)


def choose_family(name: str, kind: str = "family") -> str:
    """Return `name` if it is a family's, or `module:Class`, which may be the user's own.

    Raises:
        UsageError: otherwise, with the closest names and what there is.
    """
    if ":" in name or name in FAMILIES:
        return name
    raise _no_such(kind, name, *instead_of(name))


def _no_such(kind: str, name: str, close: Sequence[str], shown: Iterable[str]) -> UsageError:
    hint = f", did you mean {' or '.join(map(repr, close))}?" if close else ";"
    return UsageError(f"unknown {kind} {name!r}{hint} choose from {', '.join(shown)}")


def parse(options: type[OptionsT], args: Sequence[str], prog: str, default: Any = None) -> OptionsT:
    """Parse `args` into the dataclass `options`; `--help` prints its fields and exits with 0.

    Args:
        options: a dataclass; a field annotated with an empty name adds its own fields.
        args: the words after the command.
        prog: the command as the user typed it, for the help text.
        default: an instance whose values are the defaults.

    Raises:
        UsageError: for an unknown option, a value of the wrong type, or a number that is negative
            or not finite.
    """
    extra = {} if default is None else {"default": default}
    complaint, command = io.StringIO(), prog.removeprefix("metarl ")
    try:
        with contextlib.redirect_stderr(complaint):
            parsed, unknown = tyro.cli(
                options,
                args=list(args),
                prog=prog,
                description=(options.__doc__ or "").strip(),
                return_unknown_args=True,
                registry=_FROM_FILES,
                **extra,
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        sentence = _refusal(stop) or _sentence(complaint.getvalue())
        raise UsageError(f"{command}: {sentence}") from None
    sys.stderr.write(complaint.getvalue())
    if unknown:
        flags = [f"--{name}" for name, _ in leaves(parsed)]
        raise UsageError(f"{command}: {_unknown(unknown[0], flags)}; see {prog} --help")
    for name, value in leaves(parsed):
        _check_numbers(value, f"{command}: --{name}")
    return cast("OptionsT", parsed)


def parse_parts(prog: str, summary: str, defaults: Mapping[str, Any], args: Sequence[str]) -> Any:
    """Parse `args` over `defaults`, dataclass instances by the name of their part.

    The fields of the parts `family` and `data` are options with that name before them, as
    `--family.horizon`; those of the others have no prefix.

    Raises:
        UsageError: as `parse` does.
    """
    parts: list[tuple[str, Any, Any]] = []
    for name, default in defaults.items():
        kind: Any = type(default)
        if name in ("family", "data"):
            # The tables of the docstring are for its readers, not for a list of options.
            helptext = tyro.conf.arg(help=(kind.__doc__ or "").partition("\n")[0])
            parts.append((name, Annotated[kind, helptext], dataclasses.field()))
        else:
            flat = Annotated[kind, tyro.conf.arg(name="")]
            parts.append((name, flat, dataclasses.field(metadata=FLAT)))
    container = dataclasses.make_dataclass("Options", parts, frozen=True)
    container.__doc__ = summary
    return parse(container, args, prog, default=container(**defaults))


def leaves(options: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The option names of a parsed dataclass, as on the command line, with their values."""
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        name = prefix + field.name.replace("_", "-")
        if dataclasses.is_dataclass(value) and not hasattr(value, "from_file"):
            yield from leaves(value, prefix if "flat" in field.metadata else f"{name}.")
        else:
            yield name, value


def _check_numbers(value: Any, where: str) -> None:
    """Refuse numbers that no option takes; what else a value must be, its owner checks."""
    if isinstance(value, tuple | list):
        for item in value:
            _check_numbers(item, where)
    elif isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"{where} must be a finite number, got {value}")
    elif isinstance(value, int) and value < 0:
        raise UsageError(f"{where} must be a whole number of at least 0, got {value}")


def _refusal(stop: BaseException) -> str:
    """What the owner of an option said about its value, if that was what stopped the parser."""
    cause = stop.__context__
    while cause is not None and not isinstance(cause, UsageError):
        cause = cause.__context__
    return "" if cause is None else str(cause)


def _unknown(word: str, flags: list[str]) -> str:
    """A sentence about a word that the command does not take."""
    if not word.startswith("-"):
        return f"unexpected argument {word!r}"
    typed = word.split("=")[0].replace("_", "-")
    close = difflib.get_close_matches(typed, flags, n=1)
    return f"unknown option {word}" + (f", did you mean {close[0]}?" if close else "")


def _sentence(complaint: str) -> str:
    """The message of a framed complaint, as one line, with what the option takes.

    The frame is a title, then paragraphs under rules; it is drawn with lines or, where the output
    is not UTF-8, with dashes.
    """
    paragraphs: list[str] = [""]
    for line in complaint.splitlines():
        text = line.strip("│ \t")
        if not text.strip("─-╭╮╰╯ ") or text.startswith("╭"):
            paragraphs.append("")
        else:
            paragraphs[-1] = f"{paragraphs[-1]} {text}".strip()
    titled = "╭" not in complaint
    message, takes = [*(p for p in paragraphs if p), "", ""][titled : titled + 2]
    message = message.removeprefix("Error parsing ").rstrip(".")
    message = re.sub(r"^Missing from [^:]*: ", "missing: ", message)
    message = re.sub(r"could not convert string to float: ('.*')", r"\1 is not a number", message)
    message = re.sub(r"invalid literal for int.*: ('.*')", r"\1 is not a whole number", message)
    if takes.startswith("Argument helptext: "):
        message += "; the option is " + takes.removeprefix("Argument helptext: ")
    return message

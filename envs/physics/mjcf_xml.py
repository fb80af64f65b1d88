"""Reading one XML file of a model, which may come from anywhere: bounded, and nothing expanded."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from xml.parsers import expat

from metarl.errors import UsageError

MAX_BYTES = 2**25
"""of one XML file"""
MAX_DEPTH = 400
"""of elements within elements; MuJoCo's own parser ends at 500"""

# Longest first: what looks like a comment inside a quoted attribute is none. What is never closed
# reaches to the end, so that the text is passed over once.
_COMMENTS = re.compile(
    r"<!--(?P<comment>.*?)(?:-->|\Z)|<!\[CDATA\[.*?(?:\]\]>|\Z)|<\?.*?(?:\?>|\Z)"
    r"|<(?:[^<>\"']|\"[^\"]*\"|'[^']*')*>",
    re.DOTALL,
)


@dataclass(frozen=True)
class Element:
    """An element of an XML file."""

    tag: str
    attributes: dict[str, str]
    line: int
    """from 1"""
    depth: int
    """0 for the outermost"""
    copies: int
    """how many times the `<replicate>`s around it repeat it"""


def read_text(path: Path, where: str) -> str:
    """The text of an XML file.

    Args:
        path: of the file.
        where: what messages begin with.

    Raises:
        UsageError: if there is no such file, it is too large, or not UTF-8.
    """
    try:
        # Only plain files: reading a pipe could wait for ever, a device never end.
        if path.exists() and not path.is_file():
            kind = "a folder" if path.is_dir() else "no regular file"
            raise UsageError(f"{where} cannot be read: it is {kind}")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise UsageError(f"{where} is too large: at most {MAX_BYTES >> 20} MiB of XML are read")
        return content.decode("utf-8")
    except OSError as error:
        raise UsageError(f"{where} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{where} cannot be read: it is not UTF-8 text") from None


def parse(text: str, where: str) -> list[Element]:
    """The elements of an XML text in their order, of which the first holds all others.

    Raises:
        UsageError: naming the line, if it is not well-formed, is nested too deeply or has a
            DOCTYPE, which could define entities.
    """
    if not text.strip("\ufeff \t\r\n"):
        raise UsageError(f"{where} does not parse: it is empty")
    parser = expat.ParserCreate("utf-8")
    elements: list[Element] = []
    copies = [1]

    def start(tag: str, attributes: dict[str, str]) -> None:
        depth, line = len(copies) - 1, parser.CurrentLineNumber
        if depth >= MAX_DEPTH:
            raise UsageError(f"{where}, line {line}: elements are nested deeper than {MAX_DEPTH}")
        elements.append(Element(tag, attributes, line, depth, copies[-1]))
        repeats = whole_number(attributes.get("count", "")) if tag == "replicate" else 1
        copies.append(copies[-1] * max(repeats, 1))

    def end(tag: str) -> None:
        copies.pop()

    def doctype(name: str, *_: object) -> None:
        line = parser.CurrentLineNumber
        if name.lower() == "html":
            raise UsageError(f"{where}, line {line}: it is an HTML page, not MJCF or URDF")
        raise UsageError(f"{where}, line {line}: a model must not have a DOCTYPE or entities")

    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.StartDoctypeDeclHandler = doctype
    try:
        parser.Parse(_without_comments(text), True)
    except expat.ExpatError as error:
        reason = expat.ErrorString(error.code)
        raise UsageError(f"{where}, line {error.lineno} does not parse: {reason}") from None
    return elements


def _without_comments(text: str) -> str:
    """Leave out comments, in which MuJoCo allows `--`, and keep the numbers of the lines."""

    def lines(match: re.Match[str]) -> str:
        comment = match["comment"]
        return match[0] if comment is None else "\n" * comment.count("\n")

    text = _COMMENTS.sub(lines, text.removeprefix("\ufeff"))
    body = text.lstrip()
    lead = text[: len(text) - len(body)]
    if not body.startswith("<?xml"):
        return lead + body
    # An XML declaration must come first, which MuJoCo does not insist on.
    declaration, _, rest = body.partition("?>")
    return lead + "\n" * declaration.count("\n") + rest


def whole_number(words: str) -> int:
    """A whole number, or 0 for anything else: MuJoCo then says what is wrong."""
    try:
        return int(words)
    except ValueError:
        return 0

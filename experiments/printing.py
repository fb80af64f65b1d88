"""What commands put out: tables for people, one JSON line for scripts, files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metarl.errors import UsageError
from metarl.logs import json_value


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows with the same keys as columns, numbers to the right; None is a dash."""
    if not rows:
        return
    names = list(rows[0])
    cells = [[_cell(row[name]) for name in names] for row in rows]
    widths = [max(map(len, column)) for column in zip(names, *cells, strict=True)]
    right = [all(isinstance(row[name], int | float | None) for row in rows) for name in names]
    for line in (names, *cells):
        padded = (
            text.rjust(width) if to_right else text.ljust(width)
            for text, width, to_right in zip(line, widths, right, strict=True)
        )
        print("  ".join(padded).rstrip())


def print_json(values: Mapping[str, Any]) -> None:
    """Print one JSON object on one line; what is not a number becomes null."""
    print(json.dumps(json_value(values), allow_nan=False))


def write_file(path: Path, content: bytes) -> None:
    """Write `content` to `path`, making its folder.

    Raises:
        UsageError: if it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    except OSError as error:
        raise UsageError(
            f"cannot write {len(content)} bytes to {path}: {error.strerror}"
        ) from error


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if isinstance(value, float) else str(value)

"""Frozen config dataclasses to plain values and back, for `config.yaml` and its hash."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import types
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from metarl.errors import UsageError

C = TypeVar("C")
Plain = dict[str, Any]

NEWER = {"newer": True}
"""Metadata of fields younger than runs that may still be opened: plain values leave such a field
out while it has its default, so that configs of before and their hashes stay good."""


def to_plain(config: object) -> Plain:
    """Return the fields of a dataclass as a dict that YAML and JSON can hold.

    Nested dataclasses become dicts and tuples lists.

    Raises:
        TypeError: A value is neither a number, string, bool, None, list, tuple, dict or dataclass.
    """
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        raise TypeError(f"{config!r} is not a dataclass instance")
    plain = {f.name: _plain_value(getattr(config, f.name)) for f in dataclasses.fields(config)}
    for f in dataclasses.fields(config):
        if "newer" in f.metadata and getattr(config, f.name) == f.default:
            del plain[f.name]
    return plain


def from_plain(kind: type[C], values: Mapping[str, Any], where: str) -> C:
    """Build the dataclass `kind` from plain values, the inverse of `to_plain`.

    Args:
        kind: A dataclass whose field types are numbers, strings, bools, Literals, tuples, lists,
            unions and dataclasses of these.
        values: One value for each field that `kind` takes.
        where: What an error message calls these values, for example "runs/a/config.yaml: agent".

    Raises:
        UsageError: A key is unknown or missing, or a value has the wrong type.
    """
    if not isinstance(values, Mapping):
        raise UsageError(f"{where} must be a mapping of option to value, got {values!r}")
    fields = {
        f.name: f
        for f in dataclasses.fields(kind)  # type: ignore[arg-type]
        if f.init and (f.name in values or "newer" not in f.metadata)
    }
    require_keys(values, fields, where)
    hints = get_type_hints(kind)
    return kind(
        **{name: _from_plain_value(hints[name], values[name], f"{where}.{name}") for name in fields}
    )


def require_keys(
    values: Mapping[str, Any], expected: Mapping[str, Any] | set[str], where: str
) -> None:
    """Raise `UsageError` unless the keys of `values` are exactly the expected ones."""
    unknown = [str(key) for key in values if key not in expected]
    if unknown:
        raise UsageError(f"{where}: unknown key {unknown[0]!r}; allowed: {', '.join(expected)}")
    missing = [name for name in expected if name not in values]
    if missing:
        raise UsageError(f"{where}: key {missing[0]!r} is missing")


def first_difference(a: Any, b: Any, where: str = "") -> tuple[str, Any, Any] | None:
    """Return the dotted name of the first value in which two plain values differ, and both."""
    if not (isinstance(a, Mapping) and isinstance(b, Mapping)):
        return None if a == b else (where, a, b)
    for key in {**a, **b}:
        found = first_difference(a.get(key), b.get(key), f"{where}.{key}" if where else str(key))
        if found:
            return found
    return None


def config_hash(values: Mapping[str, Any]) -> str:
    """Return the sha256 of plain values, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _plain_value(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_plain(value)
    if isinstance(value, Mapping):
        return {str(key): _plain_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_value(item) for item in value]
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise TypeError(f"a config cannot hold {value!r}")


def _from_plain_value(kind: Any, value: Any, where: str) -> Any:
    """Convert one value to the annotated type `kind`."""
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        return from_plain(kind, value, where)  # type: ignore[arg-type]
    if origin in (Union, types.UnionType):
        return _from_union(arguments, value, where)
    if origin is Literal:
        if value not in arguments:
            allowed = ", ".join(map(str, arguments))
            raise UsageError(f"{where} must be one of {allowed}, got {value!r}")
        return value
    if origin in (tuple, list):
        return _from_sequence(origin, arguments, value, where)
    return _from_scalar(origin or kind, value, where)


def _from_union(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    for kind in kinds:
        try:
            return _from_plain_value(kind, value, where)
        except UsageError:
            continue
    names = " or ".join(getattr(kind, "__name__", str(kind)) for kind in kinds)
    raise UsageError(f"{where} must be {names}, got {value!r}")


def _from_sequence(origin: Any, kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    if not isinstance(value, list | tuple):
        raise UsageError(f"{where} must be a list, got {value!r}")
    if origin is tuple and kinds[-1:] != (...,):
        if len(value) != len(kinds):
            raise UsageError(f"{where} must have {len(kinds)} values, got {len(value)}")
    else:
        kinds = kinds[:1] * len(value)
    return origin(
        _from_plain_value(kind, item, f"{where}[{i}]")
        for i, (kind, item) in enumerate(zip(kinds, value, strict=True))
    )


def _from_scalar(kind: Any, value: Any, where: str) -> Any:
    """Accept a value of exactly the type `kind`; an int also stands for a float."""
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise UsageError(f"{where} must be {kind.__name__}, got {value!r}")
    if kind is float and math.isnan(value):
        raise UsageError(f"{where} must be a number, got nan")
    return value

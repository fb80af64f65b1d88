"""The errors that metarl raises on purpose, each with one sentence a person can act on."""

from __future__ import annotations


class UsageError(ValueError):
    """Bad input: the message names what is wrong, where, and the allowed values."""


class TrainingError(RuntimeError):
    """Training cannot go on: a loss, a gradient or a parameter is no longer finite."""

"""Published settings, the command line, benchmarks and studies."""

if __name__ != "metarl.experiments":
    raise ImportError("import metarl.experiments: experiments/ alone is no package")

from typing import Any


def __getattr__(name: str) -> Any:
    """Import `load_run` when it is first asked for: it brings torch along."""
    if name == "load_run":
        from metarl.experiments.loading import load_run

        return load_run
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

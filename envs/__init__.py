"""Task families and the worlds that run them."""

from typing import TYPE_CHECKING, Any

if __name__ != "metarl.envs":
    raise ImportError("import metarl.envs: envs/ alone is no package")

if TYPE_CHECKING:
    from metarl.envs.mjcf import from_mjcf as from_mjcf


def __getattr__(name: str) -> Any:
    """Import what is asked for; a look at the names of families stays cheap."""
    if name == "from_mjcf":
        from metarl.envs.mjcf import from_mjcf

        return from_mjcf
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

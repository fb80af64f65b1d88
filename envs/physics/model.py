"""Loading MuJoCo models, with errors a person can act on."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import mujoco
import numpy as np

from metarl.errors import UsageError

_log = logging.getLogger("metarl.physics")


@dataclass(frozen=True)
class Model:
    """A compiled model and the text it came from."""

    compiled: mujoco.MjModel
    path: str
    """the file, or a name in angle brackets for a model given as text"""
    xml: str
    """the text of the file"""


def _forward_warning(message: str) -> None:
    """Pass MuJoCo's warnings to logging."""
    _log.debug("MuJoCo: %s", message)


def capture_warnings() -> None:
    """Send MuJoCo's warnings to logging instead of a file MUJOCO_LOG.TXT in the current folder.

    Instabilities are detected from the warning counters, not from these messages. A handler that
    the user installed stays.
    """
    if mujoco.get_mju_user_warning() is None:
        mujoco.set_mju_user_warning(_forward_warning)


def load_model(source: str | Path, *, xml: str | None = None) -> Model:
    """Compile a model.

    Args:
        source: path of an MJCF or URDF file.
        xml: the text to compile instead of the file's; `source` is then only its name.

    Raises:
        UsageError: naming the file and MuJoCo's reason, with the line where there is one.
    """
    capture_warnings()
    try:
        if xml is None:
            text = Path(source).read_text(encoding="utf-8")
            compiled = mujoco.MjModel.from_xml_path(str(source))
        else:
            text, compiled = xml, mujoco.MjModel.from_xml_string(xml)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UsageError(f"model file {source} cannot be read: {reason}") from None
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"model file {source} does not parse: {reason}") from None
    for name in ("body_mass", "body_inertia", "body_pos", "dof_damping", "actuator_gear"):
        if not np.isfinite(getattr(compiled, name)).all():
            raise UsageError(f"model file {source} does not parse: {name} is not finite")
    return Model(compiled, str(source), text)

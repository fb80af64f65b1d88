"""Loading MuJoCo models, which users bring along, with errors a person can act on."""

from __future__ import annotations

import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path

import mujoco
import numpy as np

from metarl.envs.physics.mjcf_files import ModelFiles
from metarl.errors import UsageError

_log = logging.getLogger("metarl.physics")

_MAY_BE_INFINITE = ("range",)
"""endings of names of a model's fields that hold limits"""


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


def load_model(
    source: str | Path, *, xml: str | None = None, folder: str | Path | None = None
) -> Model:
    """Compile a model, after everything that it refers to has been judged.

    Its meshes, textures, includes and attached models must lie in one folder or below. Plugins
    are those that MuJoCo brings along: a model cannot load a library.

    Args:
        source: path of an MJCF or URDF file.
        xml: the text to compile instead of the file's. Files that it refers to are beside
            `source`, or in the current folder if `source` is a name in angle brackets.
        folder: the folder that no file may be outside of; the one of `source` unless given.

    Raises:
        UsageError: naming the file, the line where there is one, and what is wrong.
    """
    capture_warnings()
    # MuJoCo resolves some files against the current folder unless the main file's is absolute.
    name = str(source)
    main = Path(os.path.abspath("<text>" if xml is not None and name.startswith("<") else name))
    limit = None if folder is None else Path(os.path.abspath(folder))
    texts = ModelFiles(main, name, xml, limit).check()
    try:
        compiled = _compile(main, xml)
    except (ValueError, RuntimeError, mujoco.FatalError, mujoco.UnexpectedError) as error:
        raise UsageError(_sentence(name, str(error), single=len(texts) == 1)) from None
    model = Model(compiled, name, texts[main])
    _check_compiled(model)
    _check_start(model)
    return model


def check_controllable(model: Model) -> None:
    """Raise `UsageError` unless the model has something to act with."""
    if model.compiled.nu == 0:
        raise UsageError(
            f"model file {model.path} has no actuator: add an <actuator> element, "
            "such as <motor joint=.../>, for each joint that is to be controlled"
        )


def _compile(main: Path, text: str | None) -> mujoco.MjModel:
    """Compile a file, or a text as if it were a file in the same folder."""
    if text is None:
        return mujoco.MjModel.from_xml_path(str(main))
    files = mujoco.MjVfs()
    # A name of its own: MuJoCo takes it for any file that is called so, in whatever folder.
    path = str(main.with_name(".given-as-text.xml"))
    try:
        files[path] = text.encode("utf-8")
        return mujoco.MjModel.from_xml_path(path, vfs=files)
    finally:
        files.close()


def _sentence(name: str, message: str, *, single: bool) -> str:
    """One sentence of what MuJoCo says, with the line where it gives one."""
    message = " ".join(message.split())
    reason = re.sub(r"^((XML )?Error|engine error|XML parse error \d+): ?", "", message)
    place = re.search(r" ?Element (?:name )?'(.*?)'(?:, id -?\d+)?(?:, line (\d+))?$", reason)
    where = f"model file {name}"
    if place is None:
        return f"{where} does not parse: {reason}"
    reason = reason[: place.start()] + (f" ({place[1]!r})" if place[1] else "")
    if place[2] and place[2] != "0":
        where += f", line {place[2]}" if single else f", or one that it includes, line {place[2]}"
    return f"{where} does not parse: {reason}"


def _check_compiled(model: Model) -> None:
    """Refuse what the compiler let pass: it checks few numbers for being finite."""
    for holder in (model.compiled, model.compiled.opt, model.compiled.stat):
        for name in dir(holder):
            values = None if name.startswith("_") else getattr(holder, name)
            if not isinstance(values, float | np.ndarray) or np.asarray(values).dtype.kind != "f":
                continue
            limits = name.endswith(_MAY_BE_INFINITE)
            if np.isnan(values).any() if limits else not np.isfinite(values).all():
                raise UsageError(f"model file {model.path} does not parse: {name} is not finite")


def _check_start(model: Model) -> None:
    """Refuse a model that cannot even take a step from where it begins."""
    data = mujoco.MjData(model.compiled)
    try:
        mujoco.mj_forward(model.compiled, data)
        sound = bool(np.isfinite(data.qacc).all() and np.isfinite(data.xpos).all())
        mujoco.mj_step(model.compiled, data)
    except (mujoco.FatalError, mujoco.UnexpectedError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"model file {model.path} cannot be simulated: {reason}") from None
    bad = slice(mujoco.mjtWarning.mjWARN_BADQPOS, mujoco.mjtWarning.mjWARN_BADCTRL + 1)
    if not sound or any(counter.number for counter in list(data.warning)[bad]):
        raise UsageError(
            f"model file {model.path} is unstable: its accelerations where it begins are not "
            "finite, or larger than 1e10"
        )

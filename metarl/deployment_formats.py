"""The two kinds of files that `metarl.deployment` loads: ONNX and torch.export's .pt2.

What they need to run, onnxruntime or torch, is imported when a file is opened.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from metarl.deployment import Array, Description, Program
from metarl.errors import UsageError

DESCRIPTION = "metarl"
"""the key of the description in the metadata of a .onnx file"""
DESCRIPTION_FILE = "metarl.json"
"""the description's name within a .pt2 file"""
ACT = "model"
"""the name of the program `act` within a .pt2 file: the one that `torch.export.load` looks for"""
SUM_KEY = b"metarl.sha256"
# One more entry of the metadata, in the encoding of protocol buffers: field 14 of the model, and in
# it the key (field 1) and a value of 64 characters (field 2).
SUM_PREFIX = b"\x72\x51\x0a\x0d" + SUM_KEY + b"\x12\x40"
PLAIN_FILES = re.compile(
    r"models/\w+\.json|data/(weights|constants)/(\w+_config\.json|(weight|tensor)_\d+)|"
    r"data/sample_inputs/\w+\.pt|extra/metarl\.json|archive_format|archive_version|byteorder|"
    r"\.data/(version|serialization_id)|\.format_version|\.storage_alignment|version"
)
"""what a .pt2 file may hold: neither pickles nor libraries"""
OPERATORS = re.compile(r"torch\.ops\.aten\.(?!from_file)\w+\.\w+")
"""what a program in it may call"""
NAMES = re.compile(r"\w*", re.ASCII)
"""how it may call anything"""
NEVER_THERE = {
    *("as_expr", "as_graph", "as_operator", "as_custom_obj", "as_opaque_obj"),
    *("range_constraints", "guards_code", "metadata"),
}
"""what would be evaluated, or looked up beyond the operators"""

Opened = tuple[Description, dict[str, Program]]


def sealed(model: bytes) -> bytes:
    """The serialised ONNX `model` with its SHA-256 as the last entry of its metadata."""
    return model + SUM_PREFIX + hashlib.sha256(model).hexdigest().encode()


def open_onnx(content: bytes, path: Path) -> Opened:
    """The programs of a .onnx file with one thread; see `metarl.deployment.load`."""
    model, tail = content[:-64], content[-64:]
    body = model[: -len(SUM_PREFIX)]
    whole = model.endswith(SUM_PREFIX) and hashlib.sha256(body).hexdigest().encode() == tail
    if not whole:
        raise UsageError(f"{path} is damaged, or not written by metarl export: its checksum fails")
    try:
        import onnxruntime
    except ImportError as error:
        raise UsageError(f"{path} needs onnxruntime: pip install onnxruntime") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(content, options, ["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own exceptions share no other class
        reason = " ".join(str(error).split())
        raise UsageError(f"{path} cannot be run by onnxruntime: {reason}") from error
    kept = session.get_modelmeta().custom_metadata_map
    description = Description.from_json(kept.get(DESCRIPTION, "{}"), path)
    names = [node.name for node in session.get_inputs()]
    if names != description.inputs:
        raise UsageError(f"{path} is damaged: its inputs are {names}, not {description.inputs}")

    def act(values: Sequence[Array]) -> Sequence[Array]:
        found: Sequence[Array] = session.run(None, dict(zip(names, values, strict=True)))
        return found

    return description, {"act": act}


def open_pt2(content: bytes, path: Path) -> Opened:
    """The programs of a .pt2 file; see `metarl.deployment.load`."""
    try:
        text, checked = _look_through(content)
        description = Description.from_json(text, path)
    except (zipfile.BadZipFile, KeyError, ValueError, RecursionError) as error:
        if isinstance(error, UsageError):
            raise
        reason = " ".join(str(error).split())
        raise UsageError(f"{path} is damaged, or not written by metarl export: {reason}") from error
    try:
        import torch
        from torch.export.pt2_archive._package import load_pt2
    except ImportError as error:
        raise UsageError(f"{path} needs torch: pip install torch") from error
    try:
        found = load_pt2(checked).exported_programs
        programs = {n: _flat(torch, p) for n, p in found.items()}
        programs["act"] = programs.pop(ACT)
    except Exception as error:  # of many kinds, all of them about a file that torch cannot read
        reason = " ".join(str(error).split())[:200]
        raise UsageError(f"{path} cannot be read by torch {torch.__version__}: {reason}") from error
    return description, programs


def _look_through(content: bytes) -> tuple[bytes, io.BytesIO]:
    """The description in a .pt2 file, and an archive of what was looked at and nothing else.

    Raises:
        BadZipFile, ValueError, KeyError: if something is damaged, missing or not allowed.
    """
    checked = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(checked, "w") as copy:
        (root,) = {name.partition("/")[0] for name in archive.namelist()}
        for entry in archive.infolist():
            name, part = entry.filename.removeprefix(f"{root}/"), archive.read(entry)
            if not PLAIN_FILES.fullmatch(name):
                raise ValueError(f"it holds {name}, which no exported policy does")
            if name.startswith("data/sample_inputs/") and part:
                raise ValueError(f"{name} may hold a pickle")
            if name.endswith(".json") and name != f"extra/{DESCRIPTION_FILE}":
                _refuse_code(json.loads(part), name)
            copy.writestr(entry.filename, part)
        description = archive.read(f"{root}/extra/{DESCRIPTION_FILE}")
    checked.seek(0)
    return description, checked


def _refuse_code(record: Any, where: str) -> None:
    """Raise `ValueError` if a part of a .pt2 file would make torch execute what it says."""
    for key, value in _pairs(record):
        if key == "use_pickle" and value is not False:
            raise ValueError(f"{where} says that there is a pickle")
        if key == "target" and not OPERATORS.fullmatch(str(value)):
            raise ValueError(f"{where} calls {value}, which is no operator on tensors")
        # Torch makes Python of the names in a graph, and runs it.
        if key == "name" and not NAMES.fullmatch(str(value)):
            raise ValueError(f"{where} holds the name {value!r}")
        if key in NEVER_THERE and value:
            raise ValueError(f"{where} holds {key}, which no exported policy does")


def _pairs(record: Any) -> Iterator[tuple[str, Any]]:
    """All keys and values of nested mappings and lists."""
    if isinstance(record, dict):
        yield from record.items()
    for value in record.values() if isinstance(record, dict) else record:
        if isinstance(value, dict | list):
            yield from _pairs(value)


def _flat(torch: Any, program: Any) -> Program:
    """A program of torch.export as one function, called without the wrapping of its module.

    `program.module()` flattens and checks its arguments at every call, which takes longer than what
    it computes. Its graph is a function of parameters and inputs.
    """
    values = {**program.state_dict, **program.constants}
    specs = program.graph_signature.input_specs
    own = [values[spec.target] for spec in specs if spec.kind.name != "USER_INPUT"]
    run, as_tensor = program.graph_module.forward, torch.from_numpy

    def call(arguments: Sequence[Array]) -> Sequence[Array]:
        with torch.inference_mode():
            return [x.numpy() for x in run(*own, *map(as_tensor, arguments))]

    return call


READERS: dict[str, Callable[[bytes, Path], Opened]] = {".onnx": open_onnx, ".pt2": open_pt2}
"""what opens a file, by its ending"""

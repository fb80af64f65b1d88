"""Write a policy's programs as ONNX and as torch.export's .pt2; `metarl.deployment` reads them."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from metarl.agents.deployable import Deployable
from metarl.deployment import Description
from metarl.deployment_formats import ACT, DESCRIPTION, DESCRIPTION_FILE, sealed

ONNX_PACKAGES = ("onnx", "onnxruntime", "onnxscript")


def has_onnx() -> bool:
    """Whether what writes and runs ONNX is installed."""
    return all(find_spec(name) is not None for name in ONNX_PACKAGES)


def examples(deployable: Deployable, description: Description) -> tuple[Tensor, ...]:
    """What the program `act` takes, in order: zeros, at the first call of a trial."""
    width, actions = description.obs_dim, len(description.low)
    shapes = {"obs": width, "last_obs": width, "next_obs": width, "noise": description.noise_dim}
    values = {name: torch.zeros(1, size) for name, size in shapes.items()}
    values |= {name: torch.zeros(1, dtype=torch.bool) for name in ("done", "explore")}
    values |= {"first": torch.ones(1, dtype=torch.bool), "reward": torch.zeros(1)}
    values["action"] = torch.zeros(1, actions) if actions else torch.zeros(1, dtype=torch.int64)
    values |= deployable.state
    return tuple(values[name] for name in description.inputs)


def programs(deployable: Deployable, description: Description) -> dict[str, Any]:
    """All programs of a policy by name, exported by torch."""
    taken = {"act": (deployable.act, examples(deployable, description)), **deployable.others}
    gradient = bool(deployable.rollouts)
    return {n: _exported(module, given, gradient) for n, (module, given) in taken.items()}


@torch.no_grad()
def _exported(module: nn.Module, given: tuple[Tensor, ...], gradient: bool) -> Any:
    """One program; one with a `gradient` inside is traced first, backward pass included."""
    with _quiet():
        traced = make_fx(module)(*given) if gradient else module
        program = torch.export.export(traced, given, strict=False)
    # No pickle of what it was traced with, and no word of where its source lay on this machine.
    program.example_inputs = None
    for node in program.graph.nodes:
        node.meta = {key: value for key, value in node.meta.items() if key == "val"}
    return program


def pt2_bytes(exported: dict[str, Any], description: Description) -> bytes:
    """A .pt2 file with `exported` programs."""
    from torch.export.pt2_archive._package import package_pt2

    file = io.BytesIO()
    named = {ACT if name == "act" else name: program for name, program in exported.items()}
    with _quiet():
        package_pt2(
            file, exported_programs=named, extra_files={DESCRIPTION_FILE: description.to_json()}
        )
    return file.getvalue()


def onnx_bytes(exported: dict[str, Any], description: Description) -> bytes:
    """A .onnx file with the program `act`, complete in itself."""
    import onnx

    outputs = ["action_out", *(f"{name}_out" for name in description.state)]
    with _quiet():
        program = torch.onnx.export(
            exported["act"],
            input_names=description.inputs,
            output_names=outputs,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    model: Any = program.model_proto
    del model.metadata_props[:]
    for part in (model.graph, *model.graph.node, *model.graph.input, *model.graph.output):
        del part.metadata_props[:]
        part.doc_string = ""
    onnx.checker.check_model(model, full_check=True)
    model.metadata_props.add(key=DESCRIPTION, value=description.to_json())
    return sealed(model.SerializeToString())


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep to itself what torch has to say of its own exporters."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)

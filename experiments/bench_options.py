"""What can be said to `metarl bench`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Options:
    """What to measure."""

    num_worlds: tuple[int, ...] = (256,)
    """worlds that are stepped together; several numbers are tried one after the other"""
    threads: int = 0
    """threads of the physics on a CPU, on both sides; 0 is one for each processor"""
    device: str = "cpu"
    """cpu, cuda or cuda:N"""
    peer: Literal["none", "cpu", "bare", "gymnasium", "envpool", "shared-model", "metaworld"] = (
        "none"
    )
    """what to compare with, in the same run"""
    randomize: bool = False
    """give every world its own masses, inertias, damping and friction"""
    policy: Literal["none", "mlp", "gru"] = "none"
    """what acts: random actions, or a policy of two layers of 256 or with a GRU of 128"""
    account: bool = False
    """find out where the time of a step goes, and what bounds it"""
    windows: int = 15
    """timed windows per side, which take turns"""
    seconds: float = 0.5
    """length of a window"""
    json: bool = False
    """print one JSON object as the last line"""


@dataclass(frozen=True)
class FewShotOptions:
    """What to measure."""

    inner_steps: int = 1
    """gradient steps on each support set"""
    shots: int = 0
    """support points, of each class for images; 0 is 10 for curves and 1 for images"""
    executor: Literal["auto", "vectorised", "loop"] = "auto"
    """all tasks at once, one after the other, or whichever is measured to be faster"""
    compile: bool = False
    """let torch compile the meta-gradient, which takes up to a minute"""
    threads: int = 1
    """threads of torch, on both sides"""
    device: str = "cpu"
    """cpu, cuda or cuda:N"""
    peer: Literal["none", "loop"] = "none"
    """the same in torch's own layers, one task after the other"""
    windows: int = 15
    """timed windows per side, which take turns"""
    seconds: float = 0.5
    """length of a window"""
    json: bool = False
    """print one JSON object as the last line"""


@dataclass(frozen=True)
class PearlOptions:
    """What to measure."""

    variant: Literal["paper", "modern"] = "paper"
    """of SAC, as `metarl train pearl` has them"""
    threads: int = 1
    """threads of torch, on both sides"""
    device: str = "cpu"
    """cpu, cuda or cuda:N"""
    peer: Literal["none", "plain", "floor", "onednn-floor"] = "none"
    """the update as one writes it down from the paper, or its matrix products alone"""
    windows: int = 15
    """timed windows per side, which take turns"""
    seconds: float = 0.5
    """length of a window"""
    json: bool = False
    """print one JSON object as the last line"""


@dataclass(frozen=True)
class VariBADOptions:
    """What to measure."""

    family: Literal["gridnavi", "half-cheetah-vel"] = "gridnavi"
    """whose preset: short trials and all pairs of a belief and a step, or long ones and some"""
    whole: bool = False
    """whole iterations, too, simulation and PPO included, and what takes which share of them"""
    threads: int = 1
    """threads of torch, on both sides, and of the physics"""
    device: str = "cpu"
    """cpu, cuda or cuda:N"""
    peer: Literal["none", "loop"] = "none"
    """the same as one writes it down: one belief after the other"""
    windows: int = 5
    """timed windows per side, which take turns"""
    seconds: float = 0.5
    """length of a window, which holds one update at least"""
    json: bool = False
    """print one JSON object as the last line"""


@dataclass(frozen=True)
class GradientOptions:
    """What to measure."""

    meta_batch: int = 40
    """tasks of an iteration"""
    rollouts: int = 20
    """episodes of each task, before its gradient step and after"""
    whole: bool = False
    """whole meta-iterations, too, simulation included, and what takes which share of them"""
    threads: int = 1
    """threads of torch, on both sides, and of the physics"""
    device: str = "cpu"
    """cpu, cuda or cuda:N"""
    peer: Literal["none", "loop"] = "none"
    """the same as one writes it down from the paper, one task after the other"""
    windows: int = 5
    """timed windows per side, which take turns"""
    seconds: float = 0.5
    """length of a window, which holds one iteration at least"""
    json: bool = False
    """print one JSON object as the last line"""


@dataclass(frozen=True)
class MemoryOptions:
    """How much memory of a GPU the worlds of each robot take."""

    num_worlds: int = 16384
    """how many worlds shall fit"""
    json: bool = False
    """print one JSON object as the last line"""

"""Characters of invented alphabets, drawn by invented hands: a stand-in for Omniglot made of code.

A character is a few strokes, each a pen's path through a handful of control points: a line, an
arc, a zigzag, a wave or a loop, most of them joined to an earlier stroke. The idea of characters
as strokes and relations between them is that of Lake, Salakhutdinov and Tenenbaum 2015,
"Human-level concept learning through probabilistic program induction". Every copy of a character
is drawn by another hand, which shakes, slants, squeezes, shifts and presses in its own way.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from metarl.errors import UsageError, require_between, require_positive
from metarl.fewshot.episodes import Split
from metarl.fewshot.images import InMemoryImages, LabelledImages

STROKES = 4
"""at most, in a character"""
CONTROLS = 6
"""points that a stroke goes through, or is drawn to"""
DENSITY = 32
"""points along a stroke at which ink is put down"""
CHUNK = 2048
"""images that are rendered together, so that they fit into the processor's cache"""


@dataclass(frozen=True)
class Characters(InMemoryImages):
    """Invented handwritten characters, in any number, without a download."""

    name: ClassVar[str] = "characters"

    train_classes: int = 1000
    """characters to learn from"""
    held_out_classes: int = 400
    """characters to be judged by"""
    drawers: int = 20
    """copies of each character, each by another hand"""
    size: int = 28
    """side of the images in pixels"""
    rotations: bool = True
    """every character, turned by 90, 180 and 270 degrees, makes three more classes"""
    seed: int = 0
    """another seed gives other alphabets"""

    def __post_init__(self) -> None:
        """Raise `UsageError` for sizes that make no characters."""
        require_positive(self, ("train_classes", "held_out_classes", "drawers"), self.name)
        require_between(self, ("size",), self.name, 8, 256)
        require_between(self, ("seed",), self.name, 0)
        if self.seed >= 2**62:
            raise UsageError(f"{self.name}: seed must be below 2^62, got {self.seed}")

    def load(self) -> Mapping[Split, LabelledImages]:
        """Draw all characters."""
        return {
            "train": _alphabet(self.train_classes, self.drawers, self.size, 2 * self.seed),
            "held-out": _alphabet(
                self.held_out_classes, self.drawers, self.size, 2 * self.seed + 1
            ),
        }


@dataclass(frozen=True)
class Strokes:
    """What a pen does, for N drawings; lengths are in sides of the paper, its middle is 0."""

    control: Tensor
    """`[N, STROKES, CONTROLS, 2]`, the points that each stroke passes, across and down"""
    smooth: Tensor
    """bool `[N, STROKES]`, whether the pen rounds the corners"""
    present: Tensor
    """bool `[N, STROKES]`, which strokes there are"""

    def __getitem__(self, index: slice) -> Strokes:
        """Some of the drawings."""
        return Strokes(self.control[index], self.smooth[index], self.present[index])


@lru_cache(maxsize=4)
def _alphabet(classes: int, drawers: int, size: int, seed: int) -> LabelledImages:
    """`classes` characters by `drawers` hands each; they depend on nothing but the arguments."""
    generator = torch.Generator().manual_seed(seed)
    copies, width = by_hands(invent(classes, generator), drawers, generator)
    images = [
        render(copies[start : start + CHUNK], width[start : start + CHUNK], size)
        for start in range(0, len(width), CHUNK)
    ]
    stacked = torch.cat(images).view(classes, drawers, 1, size, size)
    return LabelledImages.stacked(stacked, [f"character {k}" for k in range(classes)])


def invent(classes: int, generator: torch.Generator) -> Strokes:
    """Characters as an alphabet has them: STROKES strokes at most, of five kinds."""
    number = 1 + _choice((0.12, 0.34, 0.34, 0.2), (classes, 1), generator)
    present = torch.arange(STROKES) < number
    # Line, zigzag, arc, wave, loop. A lone line would look the same when it is turned.
    kind = _choice((0.35, 0.2, 0.2, 0.15, 0.1), (classes, STROKES), generator)
    lone = (number == 1) & (kind == 0)
    kind = torch.where(lone, 1, kind)
    control = _paths(kind, generator)
    for k in range(1, STROKES):
        control[:, k] += _joint(control[:, : k + 1], present[:, : k + 1], generator)
    low = control.masked_fill(~present[..., None, None], math.inf).amin((1, 2), keepdim=True)
    high = control.masked_fill(~present[..., None, None], -math.inf).amax((1, 2), keepdim=True)
    side = 0.5 + 0.25 * torch.rand(classes, 1, 1, 1, generator=generator)
    control = (control - (low + high) / 2) * side / (high - low).amax(-1, keepdim=True)
    return Strokes(control, kind >= 2, present)


def _choice(weights: tuple[float, ...], shape: tuple[int, ...], g: torch.Generator) -> Tensor:
    """Independent draws of 0..len(weights)-1, int64 `shape`."""
    drawn = torch.multinomial(torch.tensor(weights), math.prod(shape), True, generator=g)
    return drawn.view(shape)


def _paths(kind: Tensor, generator: torch.Generator) -> Tensor:
    """Control points of strokes of each kind `[N, STROKES]`, around 0: a walk that turns."""
    shape = (*kind.shape, CONTROLS - 2)
    noise = torch.randn(shape, generator=generator)
    spread = torch.rand(kind.shape, generator=generator).unsqueeze(-1)
    side = torch.randint(2, kind.shape, generator=generator).unsqueeze(-1) * 2 - 1
    corner = torch.rand(shape, generator=generator) < 0.3
    corner[..., 1] |= ~corner.any(-1)
    turns = torch.stack(
        [
            0.03 * noise,
            corner * (side * 1.8 + 0.4 * noise) * torch.where(noise > 0.3, -1, 1),
            side * (0.35 + 0.65 * spread) + 0.1 * noise,
            1.1 * noise,
            side * (1.2 + 0.2 * spread) + 0.05 * noise,
        ]
    )
    turn = turns.gather(0, kind[None, ..., None].expand(1, *shape)).squeeze(0)
    # No two strokes of a character set out along the same of four axes.
    axis = torch.rand(kind.shape, generator=generator).argsort(-1)
    compass = (axis + 4 * torch.randint(2, kind.shape, generator=generator)) * (math.pi / 4)
    start = (compass + 0.15 * torch.randn(kind.shape, generator=generator)).unsqueeze(-1)
    heading = start + torch.cat([torch.zeros_like(start), turn.cumsum(-1)], -1)
    length = (0.3 * torch.randn(heading.shape, generator=generator)).exp()
    length = length * (0.4 * torch.randn(start.shape, generator=generator)).exp()
    step = torch.stack([heading.cos(), heading.sin()], -1) * length.unsqueeze(-1)
    path = torch.cat([torch.zeros_like(step[..., :1, :]), step.cumsum(-2)], -2)
    return path - path.mean(-2, keepdim=True)


def _joint(control: Tensor, present: Tensor, generator: torch.Generator) -> Tensor:
    """How far the last of the strokes `[N, k, CONTROLS, 2]` moves to meet another: `[N, 1, 2]`.

    Most strokes start, or cross, somewhere on an earlier one; the others stay near it.
    """
    count, strokes = present.shape
    rows = torch.arange(count)
    other = (torch.rand(count, strokes - 1, generator=generator) * present[:, :-1]).argmax(1)
    there = torch.randint(CONTROLS, (count,), generator=generator)
    start = torch.rand(count, generator=generator) < 0.6
    here = torch.where(start, 0, torch.randint(CONTROLS, (count,), generator=generator))
    move = control[rows, other, there] - control[rows, -1, here]
    loose = torch.rand(count, 1, generator=generator) < 0.25
    move = move + loose * 2.0 * torch.randn(count, 2, generator=generator)
    return move.unsqueeze(1)


def by_hands(
    characters: Strokes, drawers: int, generator: torch.Generator
) -> tuple[Strokes, Tensor]:
    """`drawers` copies of each character, one after the other, and how wide their lines are.

    The widths `[N * drawers]` are those of a line on paper of 28 pixels.
    """
    control = characters.control.repeat_interleave(drawers, 0)
    count = len(control)

    def normal(*shape: int) -> Tensor:
        return torch.randn(count, *shape, generator=generator)

    time = torch.linspace(-1, 1, CONTROLS).unsqueeze(-1)
    drift = 0.025 * normal(STROKES, 1, 2) + 0.025 * normal(STROKES, 1, 2) * time
    shaken = control + drift + 0.012 * normal(STROKES, CONTROLS, 2)
    angle, slant = 0.12 * normal(1, 1), 0.1 * normal(1, 1)
    x, y = shaken.unbind(-1)
    x, y = x + slant * y, y
    x, y = angle.cos() * x - angle.sin() * y, angle.sin() * x + angle.cos() * y
    stretch = (0.1 * normal(1, 1, 1) + 0.1 * normal(1, 1, 2)).exp()
    placed = torch.stack([x, y], -1) * stretch + 0.03 * normal(1, 1, 2)
    width = 1.5 * (0.12 * normal()).exp()
    smooth, present = (
        t.repeat_interleave(drawers, 0) for t in (characters.smooth, characters.present)
    )
    return Strokes(placed, smooth, present), width


def _pen(rounding: float) -> Tensor:
    """Where the pen is at DENSITY + 1 moments, as weights of the control points.

    It is at the mean of the polygon over the times less than `rounding` away, in control points.
    """
    time = torch.linspace(0, CONTROLS - 1, DENSITY + 1)[:, None]
    near = (time + rounding * torch.linspace(-1, 1, 15)).clamp(0, CONTROLS - 1)
    return (1 - (near.unsqueeze(-1) - torch.arange(CONTROLS)).abs()).clamp(min=0).mean(1)


def render(strokes: Strokes, width: Tensor, size: int) -> Tensor:
    """Ink on paper, uint8 `[N, size, size]`: 255 inside a line, 0 on the paper, smooth edges.

    Ink flows along the path and spreads as a Gaussian, whose integral along the path is separable:
    Σ_p ds_p g(row - row_p) g(column - column_p) is a product of two matrices for each image. A
    straight line has 1 along its middle, and a threshold at a half makes it as wide as it should
    be, √(8 ln 2) standard deviations.
    """
    smooth = strokes.smooth[..., None, None]
    path = torch.where(smooth, _pen(0.9) @ strokes.control, _pen(0.2) @ strokes.control)
    path = (path + 0.5) * size
    length = path.diff(dim=2).norm(dim=-1) * strokes.present.unsqueeze(-1)
    x, y = ((path[:, :, 1:] + path[:, :, :-1]) / 2).flatten(1, 2).unbind(-1)
    sigma = (width * (size / 28 / math.sqrt(8 * math.log(2)))).view(-1, 1, 1)
    pixel = torch.arange(size) + 0.5
    scale = 0.5 / sigma.square()
    across = (pixel - x.unsqueeze(-1)).square_().mul_(-scale).exp_()
    down = (pixel - y.unsqueeze(-1)).square_().mul_(-scale).exp_()
    weight = length.flatten(1).unsqueeze(-1) / (math.sqrt(2 * math.pi) * sigma)
    ink = (down * weight).mT @ across
    image: Tensor = ((ink - 0.5) * 1.6 + 0.5).clamp(0, 1).mul(255).round().byte()
    return image

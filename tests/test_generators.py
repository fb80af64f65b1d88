"""The global generators: exact save and restore."""

import random

import numpy as np
import torch

from metarl.checkpoint import load_checkpoint, save_checkpoint
from metarl.generators import (
    global_generators,
    seed_global_generators,
    set_global_generators,
    untouched_global_generators,
)


def draw():
    """Numbers of each kind; an odd count of normal ones leaves half a pair behind."""
    python = [random.random(), random.gauss(0.0, 1.0), random.getrandbits(70)]
    numpy = [*np.random.rand(3), np.random.randn(), np.random.randint(100)]
    return [*python, *numpy, *torch.rand(3).tolist(), *torch.randn(3).tolist()]


def test_a_state_that_went_through_a_checkpoint_gives_the_same_numbers(tmp_path):
    seed_global_generators(7)
    draw()
    save_checkpoint(tmp_path, 1, {"trainer": global_generators()})
    expected = [draw(), draw()]
    seed_global_generators(8)
    assert draw() != expected[0]
    set_global_generators(load_checkpoint(tmp_path).states["trainer"])
    assert [draw(), draw()] == expected


def test_seeds_decide(tmp_path):
    seed_global_generators(7)
    first = draw()
    seed_global_generators(2**40 + 7)
    assert draw() != first
    seed_global_generators(7)
    assert draw() == first


def test_what_happens_inside_leaves_no_trace():
    seed_global_generators(7)
    draw()
    expected = global_generators()
    with untouched_global_generators():
        draw()
        seed_global_generators(1)
    found = global_generators()
    assert str(found) == str(expected)
    assert torch.equal(found["torch"], expected["torch"])
    assert torch.equal(found["python"][1], expected["python"][1])
    assert torch.equal(found["numpy"]["state"]["key"], expected["numpy"]["state"]["key"])

"""The global generators: exact save and restore."""

import random

import numpy as np
import pytest
import torch

from metarl.checkpoint import load_checkpoint, save_checkpoint
from metarl.generators import (
    global_generators,
    restore_generator,
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


def test_generators_go_on_from_their_state_and_start_from_that_of_a_gpu():
    generator = torch.Generator().manual_seed(7)
    torch.rand(5, generator=generator)
    state = generator.get_state()
    expected = torch.rand(5, generator=generator)
    other = torch.Generator()
    restore_generator(other, state)
    assert torch.equal(torch.rand(5, generator=other), expected)

    # Those of CUDA devices have a seed and an offset.
    draws = []
    for seed in (7, 8, 7):
        restore_generator(other, torch.tensor([seed, 12]).view(torch.uint8))
        draws.append(torch.rand(5, generator=other))
    assert torch.equal(draws[0], draws[2]) and not torch.equal(draws[0], draws[1])
    with pytest.raises(RuntimeError, match="state"):
        restore_generator(other, torch.zeros(17, dtype=torch.uint8))


def test_a_state_from_where_there_were_more_gpus_fits(monkeypatch):
    given = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", given.extend)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: [])
    set_global_generators({**global_generators(), "cuda": ["a", "b", "c"]})
    assert given == ["a", "b"]

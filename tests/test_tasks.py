"""Batches of tasks, and the stripes that keep train and held-out tasks apart."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from metarl.tasks import TaskBatch, striped


@dataclass(frozen=True)
class Pairs(TaskBatch):
    """Two tensors of different rank."""

    speed: Tensor
    place: Tensor


def pairs(*speeds):
    speed = torch.tensor(speeds, dtype=torch.float64)
    return Pairs(speed=speed, place=torch.stack([speed + 10, speed + 20], dim=-1).long())


def test_tasks_are_picked_joined_and_repeated_in_order():
    tasks = Pairs.concatenate([pairs(1, 2), pairs(3)])
    assert len(tasks) == 3
    assert tasks[[2, 0]].speed.tolist() == [3, 1]
    assert tasks[1:].place.tolist() == [[12, 22], [13, 23]]
    assert tasks[tasks.speed > 1.5].speed.tolist() == [2, 3]
    assert tasks.repeat_interleave(2).speed.tolist() == [1, 1, 2, 2, 3, 3]
    assert tasks.repeat_interleave(2).place[:, 0].tolist() == [11, 11, 12, 12, 13, 13]
    assert tasks.to("meta").place.device.type == "meta"


def test_features_are_all_fields_side_by_side():
    features = pairs(1, 2).features()
    assert features.dtype == torch.float32
    assert features.tolist() == [[1, 11, 21], [2, 12, 22]]


@given(st.floats(0.0, 1.0, exclude_max=True), st.sampled_from(["train", "held-out"]))
def test_a_number_lands_in_a_stripe_of_its_split_even_as_float32(u, split):
    mapped = striped(torch.tensor([u], dtype=torch.float64), split)
    for x in (mapped, mapped.float().double()):
        assert 0.0 <= float(x) < 1.0
        assert (int(float(x) * 1000) % 5 == 4) == (split == "held-out")


@pytest.mark.parametrize("split", ["train", "held-out"])
def test_stripes_keep_order_and_spread(split):
    u = torch.linspace(0, 1, 20_001, dtype=torch.float64)[:-1]
    x = striped(u, split)
    assert (x.diff() > 0).all()
    # A number moves by less than one group of five stripes.
    assert (x - u).abs().max() < 5 / 1000

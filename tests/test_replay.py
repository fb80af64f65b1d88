"""Replay of many tasks: against a slow and obvious one, saved and restored, on the disk."""

import io
import json
import os
import random
from collections import deque

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from metarl import storage
from metarl.errors import UsageError
from metarl.replay import MultiTaskReplay
from metarl.states import DamagedError

FIELDS = {
    "number": ((), torch.int64),
    "obs": ((2, 3), torch.float32),
    "half": ((1,), torch.bfloat16),
    "odd": ((), torch.bool),
}
DEVICES = ["cpu"] + ["cuda"] * torch.cuda.is_available()


def entries(number):
    """A transition for each number, from which it can be told, `[*number.shape, *shape]`."""
    return {
        "number": number,
        "obs": number[..., None, None] + torch.arange(6.0).view(2, 3) / 8,
        "half": (number % 256).to(torch.bfloat16).unsqueeze(-1),
        "odd": number % 2 == 1,
    }


class SlowReplay:
    """A deque of (number, number of its sequence) for each task, and a loop over everything."""

    def __init__(self, num_tasks, capacity):
        self.rings = [deque(maxlen=capacity) for _ in range(num_tasks)]
        self.sequences = 0

    def add(self, tasks, valid, start, number):
        for b, task in enumerate(tasks):
            self.sequences += 1
            for t in range(len(number)):
                self.sequences += start[t][b]
                if valid[t][b]:
                    self.rings[task].append((number[t][b], self.sequences))

    def clear(self, tasks):
        for task in tasks:
            self.rings[task].clear()

    def numbers(self, task):
        return [number for number, _ in self.rings[task]]

    def parts(self, task):
        """What is left of each sequence, in order."""
        parts = {}
        for number, sequence in self.rings[task]:
            parts.setdefault(sequence, []).append(number)
        return list(parts.values())


class Pair:
    """Both kinds of replay, which are told the same."""

    def __init__(self, num_tasks, capacity, seed, **where):
        self.fast = MultiTaskReplay(num_tasks, capacity, FIELDS, **where)
        self.slow = SlowReplay(num_tasks, capacity)
        self.dice, self.next = random.Random(seed), 1
        self.generator = torch.Generator(self.fast.device).manual_seed(seed)

    def add(self, sequences=None, time=None):
        """Some sequences of random tasks and lengths, with gaps and starts within."""
        dice, fast = self.dice, self.fast
        count = dice.randrange(5) if sequences is None else sequences
        time = dice.randrange(1 + fast.capacity // max(count, 1)) if time is None else time
        tasks = torch.tensor([dice.randrange(fast.num_tasks) for _ in range(count)]).long()
        draws = torch.rand(2, time, count, generator=torch.Generator().manual_seed(self.next))
        valid, start = draws[0] < dice.choice([0.2, 0.8, 1.0]), draws[1] < dice.choice([0.0, 0.3])
        number = torch.arange(self.next, self.next + time * count).view(time, count)
        self.next += time * count
        masks = {"valid": valid, "start": start}
        if bool(valid.all()) and dice.random() < 0.5:
            del masks["valid"]
        values = {k: v.to(fast.device) for k, v in {**entries(number), **masks}.items()}
        fast.add(tasks, **values)
        self.slow.add(*(x.tolist() for x in (tasks, valid, start, number)))

    def clear(self):
        tasks = [task for task in range(self.fast.num_tasks) if self.dice.random() < 0.3]
        self.fast.clear(torch.tensor(tasks).long())
        self.slow.clear(tasks)

    def change(self, times):
        for _ in range(times):
            self.dice.choice([self.add, self.add, self.add, self.clear])()

    def check(self):
        """Everything that can be asked gives what the slow one holds."""
        fast, slow = self.fast, self.slow
        assert fast.size.tolist() == [len(ring) for ring in slow.rings]
        for task, size in enumerate(fast.size.tolist()):
            for length in {size, size // 2}:
                recent = fast.recent(torch.tensor([task]), length)
                assert_entries(recent, [slow.numbers(task)[size - length :]])
        held = fast.size.nonzero().squeeze(-1).flip(0)
        sample = fast.sample(held, 9, self.generator)
        assert_entries(sample, sample["number"])
        for task, numbers in zip(held.tolist(), sample["number"].tolist(), strict=True):
            assert set(numbers) <= set(slow.numbers(task))
        self.check_sequences(held, length=4)

    def check_sequences(self, held, length):
        drawn = self.fast.sample_sequences(held, 7, length, self.generator)
        mask = drawn.pop("mask")
        assert mask.dtype == torch.bool and mask.shape == (len(held), 7, length)
        for value in drawn.values():
            assert not value[~mask].any()
        for i, task in enumerate(held.tolist()):
            allowed = [part[:length] for part in self.slow.parts(task)]
            for j in range(7):
                count = int(mask[i, j].sum())
                assert mask[i, j, :count].all()
                found = {name: value[i, j, :count] for name, value in drawn.items()}
                assert found["number"].tolist() in allowed
                assert_entries(found, found["number"])


def assert_entries(found, number):
    expected = entries(torch.as_tensor(number).long().cpu())
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and torch.equal(found[name].cpu(), value), name


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=120)
@given(st.integers(0, 2**32), st.integers(1, 5), st.integers(1, 12), st.integers(0, 12))
def test_it_holds_what_the_slow_one_holds(device, seed, num_tasks, capacity, changes):
    pair = Pair(num_tasks, capacity, seed, device=device)
    pair.change(changes)
    pair.check()


def test_many_sequences_and_many_rounds():
    pair = Pair(3, 40, seed=1)
    for _ in range(60):
        pair.add(sequences=8, time=5)
        pair.check()
    assert pair.fast.size.tolist() == [40, 40, 40]


def test_several_sequences_of_a_task_follow_each_other_and_gaps_close():
    replay = MultiTaskReplay(2, 6, {"number": ((), torch.int64)})
    number = torch.tensor([[1, 10, 100], [2, 20, 200], [3, 30, 300]])
    valid = torch.tensor([[True, True, False], [False, True, True], [True, False, True]])
    replay.add(torch.tensor([1, 0, 1]), valid, number=number)
    assert replay.recent(torch.tensor([1]), 4)["number"].tolist() == [[1, 3, 200, 300]]
    assert replay.recent(torch.tensor([0]), 2)["number"].tolist() == [[10, 20]]


def test_a_start_that_is_not_valid_passes_on():
    replay = MultiTaskReplay(1, 6, {"number": ((), torch.int64)})
    valid = torch.tensor([True, True, False, True, True]).unsqueeze(-1)
    start = torch.tensor([False, False, True, False, False]).unsqueeze(-1)
    number = torch.tensor([1, 2, 3, 4, 5]).unsqueeze(-1)
    replay.add(torch.tensor([0]), valid, start, number=number)
    drawn = replay.sample_sequences(torch.tensor([0]), 50, 3, torch.Generator().manual_seed(0))
    assert {tuple(x) for x in drawn["number"][0].tolist()} == {(1, 2, 0), (4, 5, 0)}


def test_what_was_added_can_be_changed_without_harm():
    replay = MultiTaskReplay(1, 2, {"x": ((2,), torch.float32)})
    value = torch.ones(1, 1, 2, requires_grad=True)
    replay.add(torch.tensor([0]), x=value)
    sample = replay.recent(torch.tensor([0]), 1)["x"]
    assert not sample.requires_grad
    sample.zero_()
    assert replay.recent(torch.tensor([0]), 1)["x"].tolist() == [[[1.0, 1.0]]]


def full_ring(capacity):
    """One task whose ring has wrapped: it holds `capacity` numbers, the lowest is returned too."""
    replay = MultiTaskReplay(3, capacity, {"number": ((), torch.int64)})
    for first in (0, capacity - 3):
        number = torch.arange(first, first + capacity - 3).unsqueeze(-1)
        replay.add(torch.tensor([1]), number=number)
    return replay, capacity - 6


def test_samples_are_uniform_and_independent():
    replay, lowest = full_ring(20)
    generator = torch.Generator().manual_seed(4)
    drawn = replay.sample(torch.tensor([1, 1]), 20_000, generator)["number"] - lowest
    assert chisquare(drawn.flatten().bincount(minlength=20).numpy()).pvalue > 0.01
    pairs = drawn[0] * 20 + drawn[1]
    neighbours = drawn[:, :-1] * 20 + drawn[:, 1:]
    for both in (pairs, neighbours.flatten()):
        assert chisquare(both.bincount(minlength=400).numpy()).pvalue > 0.01
    again = replay.sample(torch.tensor([1, 1]), 20_000, torch.Generator().manual_seed(4))
    assert torch.equal(again["number"] - lowest, drawn)


def test_sequences_are_drawn_in_proportion_to_what_is_left_of_them():
    replay = MultiTaskReplay(1, 10, {"number": ((), torch.int64)})
    for first, length in ((0, 5), (5, 1), (6, 4), (10, 2)):  # 0 and 1 are overwritten
        number = torch.arange(first, first + length).unsqueeze(-1)
        replay.add(torch.tensor([0]), number=number)
    drawn = replay.sample_sequences(torch.tensor([0]), 20_000, 1, torch.Generator().manual_seed(1))
    firsts = drawn["number"].flatten().bincount(minlength=12)
    assert firsts.nonzero().flatten().tolist() == [2, 5, 6, 10]
    expected = np.array([3, 1, 4, 2]) * 2_000
    assert chisquare(firsts[[2, 5, 6, 10]].numpy(), expected).pvalue > 0.01


def saved(replay):
    file = io.BytesIO()
    replay.write(file)
    return file.getvalue()


@settings(max_examples=40)
@given(st.integers(0, 2**32), st.integers(1, 4), st.integers(1, 12), st.integers(0, 10))
def test_a_restored_one_goes_on_bit_for_bit(seed, num_tasks, capacity, changes):
    pair = Pair(num_tasks, capacity, seed)
    pair.change(changes)
    content = saved(pair.fast)
    other = MultiTaskReplay(num_tasks, capacity, FIELDS)
    other.add(torch.zeros(1).long(), **entries(torch.full((capacity, 1), 77)))
    other.read(io.BytesIO(content))
    assert saved(other) == content
    first, dice, number = pair.fast, pair.dice.getstate(), pair.next
    for replay in (first, other):
        pair.fast, pair.next = replay, number
        pair.dice.setstate(dice)
        pair.change(6)
    assert saved(other) == saved(first)
    held = other.size.nonzero().squeeze(-1)
    for draw in (lambda r, g: r.sample(held, 9, g), lambda r, g: r.sample_sequences(held, 9, 4, g)):
        mine, twins = (draw(r, torch.Generator().manual_seed(5)) for r in (first, other))
        assert mine.keys() == twins.keys()
        assert all(torch.equal(mine[name], twins[name]) for name in mine)


def test_on_the_disk_it_is_the_same(tmp_path):
    folder = tmp_path / "new" / "replay"
    pairs = [Pair(4, 30, seed=2), Pair(4, 30, seed=2, folder=folder)]
    for pair in pairs:
        pair.change(40)
        pair.check()
    assert saved(pairs[0].fast) == saved(pairs[1].fast)
    other = MultiTaskReplay(4, 30, FIELDS, folder=folder)
    other.read(io.BytesIO(saved(pairs[0].fast)))
    assert saved(other) == saved(pairs[0].fast)
    # The files have no names: nothing is left behind, even by a process that is killed.
    assert list(folder.iterdir()) == []
    with open("/proc/self/maps") as maps:
        assert str(folder) in maps.read()


def test_on_the_disk_only_what_is_used_takes_room(tmp_path):
    free = os.statvfs(tmp_path)
    large = (free.f_bavail * free.f_frsize // 2) // (8 + 4)
    replay = MultiTaskReplay(1, large, {"number": ((), torch.int64)}, folder=tmp_path)
    replay.add(torch.tensor([0]), number=torch.arange(1000).unsqueeze(-1))
    assert replay.recent(torch.tensor([0]), 2)["number"].tolist() == [[998, 999]]
    assert replay.storage["number"].shape == (1, large)


def test_no_room_is_said_in_advance(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match=r"\d+ bytes needed in .*, \d+ bytes are free"):
        MultiTaskReplay(10**6, 10**6, FIELDS, folder=tmp_path)
    with pytest.raises(UsageError, match=r"\d+ bytes are not to be had on cpu; lower the cap"):
        MultiTaskReplay(10**6, 10**9, FIELDS)
    with pytest.raises(UsageError, match="for device cpu, not cuda"):
        MultiTaskReplay(2, 2, FIELDS, device="cuda", folder=tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"cannot keep storage in .*file: File exists"):
        MultiTaskReplay(2, 2, FIELDS, folder=tmp_path / "file")


class Watching(io.BytesIO):
    """A file that remembers the size of every piece and where in memory it came from."""

    def __init__(self, content=b""):
        super().__init__(content)
        self.pieces, self.seen = [], []

    def note(self, data):
        self.pieces.append(len(data))
        if isinstance(data, memoryview) and len(data):
            self.seen.append(np.frombuffer(data, dtype=np.uint8).ctypes.data)

    def write(self, data):
        self.note(data)
        return super().write(data)

    def readinto(self, data):
        self.note(data)
        return super().readinto(data)


def test_saving_and_reading_copy_nothing_in_memory(monkeypatch):
    monkeypatch.setattr(storage, "_PIECE_BYTES", 1000)
    pair = Pair(3, 500, seed=3)
    pair.add(sequences=4, time=120)
    written = Watching()
    pair.fast.write(written)
    other = MultiTaskReplay(3, 500, FIELDS)
    read = Watching(written.getvalue())
    other.read(read)
    for replay, file in ((pair.fast, written), (other, read)):
        assert max(file.pieces) <= 1000 and sum(file.pieces) > 10_000
        spans = [(x.data_ptr(), x.data_ptr() + x.nbytes) for x in replay.storage.values()]
        assert len(file.seen) > 10
        assert all(any(a <= where <= b for a, b in spans) for where in file.seen)


class Dribbling(io.BytesIO):
    """A file that gives a few bytes at a time."""

    def readinto(self, data):
        return super().readinto(data[:7])


def test_a_file_may_come_in_small_pieces():
    pair = Pair(3, 20, seed=3)
    pair.change(10)
    other = MultiTaskReplay(3, 20, FIELDS)
    other.read(Dribbling(saved(pair.fast)))
    assert saved(other) == saved(pair.fast)


@pytest.fixture
def small():
    pair = Pair(2, 4, seed=1)
    pair.add(sequences=1, time=4)
    pair.add(sequences=2, time=2)
    return saved(pair.fast)


def read_back(content):
    """Read `content`; if that fails, what it says, and nothing half read is left."""
    replay = MultiTaskReplay(2, 4, FIELDS)
    replay.add(torch.tensor([0]), **entries(torch.tensor([[1]])))
    try:
        replay.read(io.BytesIO(content))
    except (DamagedError, UsageError) as error:
        assert "\n" not in str(error) and len(str(error)) < 400
        assert replay.size.tolist() == [0, 0]
        replay.add(torch.tensor([0]), **entries(torch.tensor([[8]])))
        assert_entries(replay.recent(torch.tensor([0]), 1), [[8]])
        return str(error)
    return None


def test_a_file_that_is_cut_anywhere_or_too_long_is_refused(small):
    assert read_back(small) is None
    for length in range(len(small)):
        assert read_back(small[:length])
    assert "goes on after its end" in read_back(small + b"\0")


def test_bit_flips_in_the_header_do_no_harm(small):
    """Most are found at once; the rest, as in the numbers, are for the manifest to find."""
    header = small.index(b"\n") + 1
    found = 0
    for place in range(header):
        for bit in range(8):
            content = bytearray(small)
            content[place] ^= 1 << bit
            found += read_back(bytes(content)) is not None
    assert found > 0.98 * 8 * header


def with_header(content, **changes):
    line, _, rest = content.partition(b"\n")
    return json.dumps({**json.loads(line), **changes}).encode() + b"\n" + rest


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"format": "metarl-replay-9"}, "does not begin with a header of metarl-replay-1"),
        ({"capacity": 5}, "saved memory has capacity 5, this one has 4"),
        ({"num_tasks": 3}, "saved memory has num_tasks 3, this one has 2"),
        ({"fields": {"x": [[], "torch.int64"]}}, "saved memory has fields"),
        ({"size": [9, 0]}, "header of the replay is damaged"),
        ({"size": [-1, 0]}, "header of the replay is damaged"),
        ({"size": [1.0, 0]}, "header of the replay is damaged"),
        ({"size": [True, 0]}, "header of the replay is damaged"),
        ({"size": [10**30, 0]}, "header of the replay is damaged"),
        ({"size": [1]}, "header of the replay is damaged"),
        ({"size": None}, "header of the replay is damaged"),
        ({"size": [1, 1], "cursor": [1, 2]}, "header of the replay is damaged"),
        ({"size": [4, 4], "cursor": [0, 4]}, "header of the replay is damaged"),
        ({"size": [4, 4], "cursor": [0, 0]}, "ends too early"),
    ],
)
def test_a_header_of_another_replay_is_refused(small, changes, expected):
    assert expected in read_back(with_header(small, **changes))


@pytest.mark.parametrize(
    "line", [b"", b"\n", b"[" * 10_000 + b"\n", b"3\n", b"\xff\n", b" " * 10**7 + b"{}\n"]
)
def test_what_is_no_header_is_refused(small, line):
    assert "does not begin with a header" in read_back(line + small.partition(b"\n")[2])


def test_an_endless_header_is_not_read():
    """Only as much is read as a header can have."""

    class Endless(io.BytesIO):
        asked = 0

        def readline(self, size=-1):
            self.asked = size
            return b"{" * size

    file = Endless()
    with pytest.raises(DamagedError):
        MultiTaskReplay(2, 4, FIELDS).read(file)
    assert 0 < file.asked < 100_000


def test_places_that_lie_lead_nowhere_else(small):
    """Numbers that a forger chose can spoil a sample, but are never used as an address."""
    replay = MultiTaskReplay(2, 4, FIELDS)
    replay.read(io.BytesIO(small))
    held = replay.size.nonzero().squeeze(-1)
    for place in (-(2**31), -1, 5, 2**31 - 1):
        replay.storage["place"].fill_(place)
        drawn = replay.sample_sequences(held, 20, 6, torch.Generator().manual_seed(0))
        numbers = set(drawn["number"][drawn["mask"]].tolist())
        assert numbers <= set(replay.storage["number"].flatten().tolist())


def add(replay, tasks=(0,), time=1, **changes):
    number = torch.arange(time * len(tasks)).view(time, len(tasks))
    values = {**entries(number), **changes}
    values = {name: value for name, value in values.items() if value is not None}
    replay.add(torch.tensor(tasks), **values)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda r: add(r, tasks=(0, 3)), "there is no task 3; allowed are 0 to 2"),
        (lambda r: add(r, tasks=(-1,)), "there is no task -1; allowed are 0 to 2"),
        (lambda r: add(r, tasks=(0.0,)), "tasks must be int64 of one dimension, got torch.float32"),
        (lambda r: add(r, odd=None), "got the fields half, number, obs; needed are half, number, "),
        (lambda r: add(r, more=torch.zeros(1)), "got the fields half, more, number, obs, odd; nee"),
        (lambda r: add(r, obs=torch.zeros(1, 1, 3, 2)), "obs must be torch.float32 with shape [1,"),
        (lambda r: add(r, obs=torch.zeros(1, 2, 2, 3)), "[1, 1, 2, 3], got torch.float32 with sh"),
        (lambda r: add(r, odd=torch.zeros(1, 1)), "odd must be torch.bool with shape [1, 1], got"),
        (lambda r: add(r, odd=torch.tensor(True)), "odd must be torch.bool with shape [1, 1], go"),
        (lambda r: add(r, number=torch.tensor(1)), "number must be torch.int64 with shape ['T', 1"),
        (lambda r: add(r, valid=torch.ones(1, 1)), "valid and start must be torch.bool with shape"),
        (lambda r: add(r, start=torch.ones(2, 1).bool()), "with shape [1, 1], got torch.bool wit"),
        (lambda r: add(r, (0, 1, 1), time=3), "6 transitions for task 1 at once, but its capacity"),
        (lambda r: r.sample(torch.tensor([0, 2]), 5, GENERATOR), "task 0 holds 0 transitions, 1 a"),
        (lambda r: r.recent(torch.tensor([1]), 4), "task 1 holds 3 transitions, 4 are needed"),
        (lambda r: r.sample_sequences(torch.tensor([2]), 1, 1, GENERATOR), "task 2 holds 0 trans"),
        (lambda r: r.sample(torch.tensor(1), 5, GENERATOR), "tasks must be int64 of one dimensio"),
        (lambda r: r.clear(torch.tensor([3])), "there is no task 3; allowed are 0 to 2"),
        (lambda r: MultiTaskReplay(0, 1, FIELDS), "must be at least 1, got 0 tasks and capacity 1"),
        (lambda r: MultiTaskReplay(1, 0, FIELDS), "must be at least 1, got 1 tasks and capacity 0"),
        (lambda r: MultiTaskReplay(1, 1, {"mask": ((), torch.bool)}), "'mask' cannot be the name"),
        (lambda r: MultiTaskReplay(1, 1, {"a/b": ((), torch.bool)}), "'a/b' cannot be the name of"),
    ],
)
def test_bad_input_is_one_sentence_and_changes_nothing(call, expected):
    replay = MultiTaskReplay(3, 5, FIELDS)
    add(replay, tasks=(1,), time=3)
    before = saved(replay)
    with pytest.raises(UsageError) as caught:
        call(replay)
    assert expected in str(caught.value) and "\n" not in str(caught.value)
    assert saved(replay) == before


GENERATOR = torch.Generator()

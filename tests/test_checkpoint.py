"""Checkpoints: exact round trip, atomic publication, detection of damage, safe loading."""

import hashlib
import json
import os
import pickle
import random
import resource
import shutil
import tempfile
import tracemalloc
import warnings
import zipfile
from collections import namedtuple
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from metarl.checkpoint import (
    CheckpointWarning,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
)
from metarl.errors import UsageError
from metarl.states import DamagedError, encode_manifest

Pair = namedtuple("Pair", "a b")


def states_of(step):
    """States as an agent and an env have them; they differ from step to step."""
    generator = torch.Generator().manual_seed(step)
    layer = nn.Linear(8, 4)
    optimizer = torch.optim.Adam(layer.parameters())
    layer(torch.ones(8)).sum().backward()
    optimizer.step()
    return {
        "agent": {
            "network": layer.state_dict(),
            "optimizer": optimizer.state_dict(),
            "generator": generator.get_state(),
            "number": [1, 2.5, True, None, "name"],
        },
        "env": {"qpos": torch.randn(5, 3, generator=generator, dtype=torch.float64), "tasks": None},
        "trainer": {"steps": step, "python": random.getstate()},
    }


class Memory:
    """A stream: bytes that follow from the step, written in small pieces."""

    def __init__(self, step=0, pieces=50):
        self.content = bytes([step % 256]) * 1000
        self.pieces = pieces

    def write(self, file):
        for _ in range(self.pieces):
            file.write(memoryview(self.content))

    def read(self, file):
        self.content = file.read(1000)
        if len(self.content) + len(file.read()) != 1000 * self.pieces:
            raise DamagedError("the memory is of another size")


def equal(a, b):
    """Whether two states are equal bit for bit, types included."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and a == b


def files_in(path):
    return sorted(file for file in path.rglob("*") if file.is_file())


@contextmanager
def file_size_limit(limit):
    """Let every write beyond `limit` bytes of a file fail, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def two(tmp_path):
    """A folder with good checkpoints of steps 10 and 20, and their states."""
    states = {step: states_of(step) for step in (10, 20)}
    for step, named in states.items():
        memories = {"memory": Memory(step)}
        save_checkpoint(tmp_path, step, named, streams=memories, labels={"agent": "rl2"})
    return tmp_path, states


def rewrite(path, name, data):
    """Replace a file of a checkpoint and forge manifest and pointer so that they agree with it."""
    (path / name).write_bytes(data)
    content = json.loads((path / "manifest.json").read_text())["content"]
    content["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    raw = encode_manifest(content)
    (path / "manifest.json").write_bytes(raw)
    (path.parent / "latest").write_text(f"{path.name} {hashlib.sha256(raw).hexdigest()}\n")


def test_what_is_saved_comes_back_bit_for_bit(two):
    root, states = two
    with warnings.catch_warnings(action="error"):
        loaded = load_checkpoint(root)
    assert loaded.step == 20 and loaded.path == root / "step-000000020"
    assert loaded.labels == {"agent": "rl2"}
    assert loaded.versions["torch"].startswith(torch.__version__.split("+")[0])
    assert equal(loaded.states, states[20])
    assert not equal(loaded.states, states[10])


def test_only_the_named_states_are_loaded(two):
    root, states = two
    loaded = load_checkpoint(root, names=["agent"])
    assert loaded.states.keys() == {"agent"} and equal(loaded.states["agent"], states[20]["agent"])
    with pytest.raises(UsageError, match="has no state 'replay'"):
        load_checkpoint(root, names=["replay"])


def test_streams_are_read_when_asked_for(two):
    loaded, memory = load_checkpoint(two[0]), Memory()
    assert loaded.states.keys() == {"agent", "env", "trainer"}
    assert loaded.streams == {"memory": two[0] / "step-000000020" / "memory.bin"}
    loaded.read_streams({"memory": memory})
    assert memory.content == Memory(20).content


@pytest.mark.parametrize(
    ("streams", "expected"),
    [
        ({}, "it holds the memories memory, not none"),
        ({"memory": Memory(), "more": Memory()}, "it holds the memories memory, not memory, more"),
        ({"memory": Memory(pieces=49)}, "memory: the memory is of another size"),
    ],
)
def test_streams_that_do_not_fit_are_refused(two, streams, expected):
    with pytest.raises(UsageError) as caught:
        load_checkpoint(two[0]).read_streams(streams)
    assert str(caught.value) == expected


def test_a_stream_that_vanishes_is_named(two):
    loaded = load_checkpoint(two[0])
    (two[0] / "step-000000020" / "memory.bin").unlink()
    with pytest.raises(UsageError, match=r"memory cannot be read \(No such file"):
        loaded.read_streams({"memory": Memory()})


def test_a_stream_is_never_whole_in_memory(tmp_path):
    tracemalloc.start()
    try:
        save_checkpoint(tmp_path, 1, {}, streams={"memory": Memory(pieces=50_000)})
        load_checkpoint(tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (tmp_path / "step-000000001" / "memory.bin").stat().st_size == 50_000_000
    assert peak < 4_000_000


def test_the_newest_two_are_kept_and_leftovers_of_a_kill_removed(two):
    root, _ = two
    (root / "step-000000025.tmp").mkdir()
    (root / "step-000000025.tmp" / "agent.pt").write_bytes(b"half")
    (root / "latest.tmp").write_bytes(b"half")
    save_checkpoint(root, 30, states_of(30))
    names = sorted(path.name for path in root.iterdir())
    assert names == ["latest", "step-000000020", "step-000000030"]
    save_checkpoint(root, 40, states_of(40), keep=1)
    assert [path.name for path in list_checkpoints(root)] == ["step-000000040"]


def test_leftovers_of_a_kill_do_not_disturb_loading(two):
    root, states = two
    (root / "step-000000030.tmp").mkdir()
    (root / "latest.tmp").write_bytes(b"half")
    with warnings.catch_warnings(action="error"):
        assert equal(load_checkpoint(root).states, states[20])


def test_the_same_step_can_be_saved_again(two):
    root, _ = two
    again = states_of(21)
    save_checkpoint(root, 20, again)
    assert equal(load_checkpoint(root).states, again)
    assert len(list_checkpoints(root)) == 2


def test_a_future_that_was_given_up_is_removed(two):
    """After falling back from 20 to 10, saving 15 must not leave 20 as the newest."""
    root, _ = two
    fresh = states_of(15)
    save_checkpoint(root, 15, fresh)
    assert [path.name for path in list_checkpoints(root)] == ["step-000000015", "step-000000010"]
    assert equal(load_checkpoint(root).states, fresh)


def test_a_kill_before_latest_is_replaced_loses_nothing(two):
    """A complete checkpoint that `latest` does not name yet: the one it names is loaded."""
    root, states = two
    pointer = (root / "latest").read_bytes()
    save_checkpoint(root, 30, states_of(30), keep=3)
    (root / "latest").write_bytes(pointer)
    with warnings.catch_warnings(action="error"):
        assert equal(load_checkpoint(root).states, states[20])


def test_every_bit_flip_is_detected(two):
    """400 random flips over all files: never the damaged numbers, always a warning."""
    root, states = two
    newest = root / "step-000000020"
    targets = [*files_in(newest), root / "latest"]
    dice = random.Random(1)
    for _ in range(400):
        # By file first: the small manifest and pointer would be hit too rarely by size.
        file = dice.choice(targets)
        intact = file.read_bytes()
        damaged = bytearray(intact)
        damaged[dice.randrange(len(damaged))] ^= 1 << dice.randrange(8)
        file.write_bytes(damaged)
        with pytest.warns(CheckpointWarning, match="damage found"):
            loaded = load_checkpoint(root)
        if file.name == "latest":
            assert equal(loaded.states, states[loaded.step])
        else:
            assert loaded.step == 10 and equal(loaded.states, states[10])
        file.write_bytes(intact)
    assert load_checkpoint(root).step == 20


def damage_truncate(newest):
    with (newest / "agent.pt").open("r+b") as file:
        file.truncate(100)


def damage_empty(newest):
    (newest / "env.pt").write_bytes(b"")


def damage_missing(newest):
    (newest / "trainer.pt").unlink()


def damage_stream_truncated(newest):
    with (newest / "memory.bin").open("r+b") as file:
        file.truncate(100)


def damage_stream_missing(newest):
    (newest / "memory.bin").unlink()


def damage_stream_of_another_step(newest):
    shutil.copy(newest.parent / "step-000000010" / "memory.bin", newest / "memory.bin")


def damage_swap(newest):
    (newest / "agent.pt").rename(newest / "a")
    (newest / "env.pt").rename(newest / "agent.pt")
    (newest / "a").rename(newest / "env.pt")


def damage_file_of_another_step(newest):
    shutil.copy(newest.parent / "step-000000010" / "agent.pt", newest / "agent.pt")


def damage_folder_of_another_step(newest):
    shutil.rmtree(newest)
    shutil.copytree(newest.parent / "step-000000010", newest)


def damage_no_manifest(newest):
    (newest / "manifest.json").unlink()


def damage_empty_folder(newest):
    shutil.rmtree(newest)
    newest.mkdir()


def damage_manifest_is_a_list(newest):
    (newest / "manifest.json").write_text("[1]")


def damage_manifest_with_odd_entries(newest):
    content = json.loads((newest / "manifest.json").read_text())["content"]
    content["files"]["agent.pt"] = 3
    (newest / "manifest.json").write_bytes(encode_manifest(content))


def damage_manifest_with_odd_labels(newest):
    content = json.loads((newest / "manifest.json").read_text())["content"]
    content["labels"] = 3
    (newest / "manifest.json").write_bytes(encode_manifest(content))


def damage_manifest_names_a_file_outside(newest):
    content = json.loads((newest / "manifest.json").read_text())["content"]
    content["files"]["../step-000000010/agent.pt"] = content["files"].pop("agent.pt")
    (newest / "manifest.json").write_bytes(encode_manifest(content))


def damage_manifest_names_a_file_of_another_kind(newest):
    content = json.loads((newest / "manifest.json").read_text())["content"]
    content["files"]["memory.exe"] = content["files"].pop("memory.bin")
    (newest / "memory.bin").rename(newest / "memory.exe")
    (newest / "manifest.json").write_bytes(encode_manifest(content))


def damage_manifest_is_nested_without_end(newest):
    (newest / "manifest.json").write_text("[" * 100_000)


DAMAGE = {name[7:]: value for name, value in globals().items() if name.startswith("damage_")}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_falls_back_to_the_previous_checkpoint_with_a_warning(two, name):
    root, states = two
    DAMAGE[name](root / "step-000000020")
    with pytest.warns(CheckpointWarning, match="going on from step-000000010"):
        loaded = load_checkpoint(root)
    assert equal(loaded.states, states[10])
    memory = Memory()
    loaded.read_streams({"memory": memory})
    assert memory.content == Memory(10).content


def test_no_good_checkpoint_is_one_sentence(two):
    root, _ = two
    for path in list_checkpoints(root):
        damage_truncate(path)
    with pytest.raises(UsageError) as caught:
        load_checkpoint(root)
    message = str(caught.value)
    assert str(root) in message and "\n" not in message
    assert "step-000000020: agent.pt has 100 bytes" in message
    assert "step-000000010: agent.pt has 100 bytes" in message


def test_a_folder_without_checkpoints_says_so(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UsageError, match="holds no checkpoint"):
            load_checkpoint(folder)


class Attack:
    """A pickle that makes a folder when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def attack_zip(proof, path):
    torch.save({"network": Attack(proof)}, path)


def attack_legacy(proof, path):
    torch.save({"network": Attack(proof)}, path, _use_new_zipfile_serialization=False)


def attack_pickle(proof, path):
    path.write_bytes(pickle.dumps({"network": Attack(proof)}))


def attack_array(proof, path):
    array = np.array([Attack(proof)], dtype=object)
    torch.save({"network": array}, path)


def attack_script(proof, path):
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), path)


def attack_bomb(proof, path):
    """A small file that unpacks to a gigabyte of zeros."""
    torch.save({"x": torch.zeros(10)}, path)
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, data in records.items():
            archive.writestr(name, bytes(2**27) if name.endswith("data/0") else data)


def attack_list(proof, path):
    torch.save([1, 2, 3], path)


ATTACKS = {name[7:]: value for name, value in globals().items() if name.startswith("attack_")}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*TorchScript")
@pytest.mark.parametrize("name", ATTACKS)
def test_a_crafted_file_runs_nothing_even_under_a_forged_manifest(two, tmp_path_factory, name):
    root, states = two
    made = tmp_path_factory.mktemp("attack")
    proof = str(made / "proof")
    ATTACKS[name](proof, made / "file")
    rewrite(root / "step-000000020", "agent.pt", (made / "file").read_bytes())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.warns(CheckpointWarning, match=r"step-000000020: agent\.pt (is not|does not|unp)"):
        loaded = load_checkpoint(root)
    assert not os.path.exists(proof)
    assert equal(loaded.states, states[10])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024  # KiB


def test_the_attacks_would_work_without_protection(tmp_path):
    """The test above can fail: torch runs the crafted file when it is told to trust it."""
    attack_zip(str(tmp_path / "proof"), tmp_path / "file")
    torch.load(tmp_path / "file", weights_only=False)
    assert (tmp_path / "proof").is_dir()


@pytest.mark.parametrize("limit", [0, 100, 2000, 70_000, 100_000])
@pytest.mark.parametrize("streams", [{}, {"memory": Memory(30, pieces=150)}])
def test_a_write_that_fails_leaves_the_last_checkpoint_intact(two, limit, streams):
    root, states = two
    large = {**states_of(30), "x": {} if streams else {"x": torch.zeros(50_000)}}
    before = {file: file.read_bytes() for file in files_in(root)}
    with file_size_limit(limit), pytest.raises(UsageError) as caught:
        save_checkpoint(root, 30, large, streams=streams)
    message = str(caught.value)
    assert str(root / "step-000000030") in message and "step-000000020, is intact" in message
    assert int(message.split("(")[1].split(" bytes needed")[0]) > 150_000
    assert {file: file.read_bytes() for file in files_in(root)} == before
    assert equal(load_checkpoint(root).states, states[20])


@pytest.mark.filterwarnings("ignore:.*latest:")
def test_a_failure_of_any_system_call_leaves_a_good_checkpoint(two, monkeypatch):
    """Let the first, second, ... call of fsync, mkdir or rename fail, until none does."""
    root, states = two
    calls = {"left": 0}

    def failing(function):
        def call(*args, **kwargs):
            calls["left"] -= 1
            if calls["left"] == 0:
                raise OSError(28, "No space left on device")
            return function(*args, **kwargs)

        return call

    for name in ("fsync", "mkdir", "rename", "replace"):
        monkeypatch.setattr(os, name, failing(getattr(os, name)))
    for fail_at in range(1, 100):
        calls["left"] = fail_at
        try:
            save_checkpoint(root, 30, states_of(30))
        except UsageError as error:
            assert "No space left on device" in str(error)
        else:
            if calls["left"] > 0:
                break
        loaded = load_checkpoint(root)
        assert loaded.step == 30 or equal(loaded.states, states[20])
    assert 8 < fail_at < 30
    assert load_checkpoint(root).step == 30


def test_a_read_only_folder_is_named(two):
    states, user = two[1], os.geteuid()
    # Root may write to read-only folders, so act as nobody, who must be able to get there.
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        root = Path(shutil.copytree(two[0], Path(folder) / "checkpoints"))
        root.chmod(0o555)
        os.seteuid(65534 if user == 0 else user)
        try:
            with pytest.raises(UsageError, match="Permission denied"):
                save_checkpoint(root, 30, states_of(30))
        finally:
            os.seteuid(user)
            root.chmod(0o755)
        assert equal(load_checkpoint(root).states, states[20])


@pytest.mark.parametrize(
    "value", [np.zeros(3), np.float64(1.0), {1, 2}, object(), nn.Linear(1, 1), Pair(1, 2)]
)
def test_what_could_not_be_loaded_safely_is_not_saved(tmp_path, value):
    with pytest.raises(TypeError, match=r"agent\['x'\]\[1\] is a "):
        save_checkpoint(tmp_path, 1, {"agent": {"x": [0, value]}})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../agent", "Agent", "", "a b"])
def test_state_names_are_plain(tmp_path, name):
    with pytest.raises(TypeError, match="must be lower-case"):
        save_checkpoint(tmp_path, 1, {name: {}})
    with pytest.raises(TypeError, match="must be lower-case"):
        save_checkpoint(tmp_path, 1, {}, streams={name: Memory()})

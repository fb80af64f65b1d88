"""The run folder: config round trip, refusals in one sentence, safe reading, logs."""

import dataclasses
import json
import os
from typing import Any, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from metarl.configs import config_hash, first_difference, from_plain, to_plain
from metarl.errors import UsageError
from metarl.runs import RunConfig, RunFolder

CONFIG = RunConfig(
    agent="rl2",
    agent_config={"learning_rate": 1e-3, "layers": [64, 64], "memory": True},
    family="bandit",
    family_options={"arms": 5, "episodes": 10},
    training={"total_steps": 1000, "seed": 1},
)


@dataclasses.dataclass(frozen=True)
class Inner:
    rate: float = 0.5
    name: str = "a"


@dataclasses.dataclass(frozen=True)
class Outer:
    count: int = 1
    rate: float = 0.1
    on: bool = False
    kind: Literal["a", "b"] = "a"
    layers: tuple[int, ...] = (1, 2)
    pair: tuple[int, float] = (1, 2.0)
    maybe: float | None = None
    inner: Inner = Inner()


class TestConfigs:
    @given(
        st.builds(
            Outer,
            rate=st.floats(allow_nan=False),
            layers=st.lists(st.integers(), max_size=4).map(tuple),
            pair=st.tuples(st.integers(), st.floats(allow_nan=False)),
            maybe=st.none() | st.floats(allow_nan=False),
            inner=st.builds(Inner, rate=st.floats(allow_nan=False)),
        )
    )
    def test_yaml_gives_back_the_same_values(self, config):
        text = yaml.safe_dump(to_plain(config))
        assert from_plain(Outer, yaml.safe_load(text), "file") == config

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"count": 1.5}, "file.count must be int, got 1.5"),
            ({"count": True}, "file.count must be int, got True"),
            ({"on": 1}, "file.on must be bool, got 1"),
            ({"rate": "fast"}, "file.rate must be float, got 'fast'"),
            ({"rate": float("nan")}, "file.rate must be a number, got nan"),
            ({"kind": "c"}, "file.kind must be one of a, b, got 'c'"),
            ({"kind": []}, r"file.kind must be one of a, b, got \[\]"),
            ({"layers": 3}, "file.layers must be a list, got 3"),
            ({"layers": [1, "2"]}, r"file.layers\[1\] must be int, got '2'"),
            ({"pair": [1]}, "file.pair must have 2 values, got 1"),
            ({"maybe": "x"}, "file.maybe must be float or NoneType, got 'x'"),
            ({"inner": {"rate": 1.0}}, "file.inner: key 'name' is missing"),
            ({"inner": 3}, "file.inner must be a mapping"),
            ({"other": 3}, "file: unknown key 'other'; allowed: count, rate, on"),
        ],
    )
    def test_a_wrong_value_is_named(self, change, message):
        with pytest.raises(UsageError, match=message):
            from_plain(Outer, {**to_plain(Outer()), **change}, "file")

    def test_a_missing_key_is_named(self):
        values = to_plain(Outer())
        del values["count"]
        with pytest.raises(UsageError, match="file: key 'count' is missing"):
            from_plain(Outer, values, "file")

    def test_a_config_holds_plain_values_only(self):
        @dataclasses.dataclass
        class Odd:
            value: Any

        with pytest.raises(TypeError, match="cannot hold"):
            to_plain(Odd(object()))
        with pytest.raises(TypeError, match="is not a dataclass"):
            to_plain({"a": 1})

    def test_the_hash_sees_values_and_not_their_order(self):
        assert config_hash({"a": 1, "b": 2}) == config_hash({"b": 2, "a": 1})
        assert config_hash({"a": 1}) != config_hash({"a": 2})

    def test_the_first_difference_is_named(self):
        assert first_difference({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}) == ("a.c", 2, 3)
        assert first_difference({"a": 1}, {"a": 1, "b": 2}) == ("b", None, 2)
        assert first_difference({"a": 1}, {"a": 1}) is None


class TestRunFolder:
    def test_opens_what_was_created(self, tmp_path):
        made = RunFolder.create(tmp_path / "a" / "run", CONFIG)
        opened = RunFolder.open(made.path)
        assert opened == made and opened.config == CONFIG
        assert opened.config.digest == CONFIG.digest
        assert "torch" in json.loads((made.path / "versions.json").read_text())

    def test_an_existing_run_is_not_overwritten(self, tmp_path):
        RunFolder.create(tmp_path, CONFIG)
        with pytest.raises(UsageError, match="already holds a run; add --resume"):
            RunFolder.create(tmp_path, CONFIG)

    def test_a_folder_with_something_else_is_not_used(self, tmp_path):
        (tmp_path / "thesis.tex").write_text("years of work")
        with pytest.raises(UsageError, match=r"is not empty \(it holds thesis.tex\)"):
            RunFolder.create(tmp_path, CONFIG)
        assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]

    def test_a_killed_create_can_be_repeated(self, tmp_path):
        for name in ("versions.json", "versions.json.tmp", "config.yaml.tmp"):
            (tmp_path / name).write_text("half")
        RunFolder.create(tmp_path, CONFIG)
        assert RunFolder.open(tmp_path).config == CONFIG

    def test_a_path_that_is_a_file_is_named(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(UsageError, match=r"cannot make run folder .*file/run: Not a directory"):
            RunFolder.create(tmp_path / "file" / "run", CONFIG)

    @pytest.mark.parametrize("name", ["", "nowhere"])
    def test_a_folder_that_is_not_a_run_says_so(self, tmp_path, name):
        with pytest.raises(UsageError, match=r"is not a run folder: it has no config\.yaml"):
            RunFolder.open(tmp_path / name)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "must hold a mapping, got NoneType"),
            ("- 1", "must hold a mapping, got list"),
            ("a: [", "cannot be read: while parsing"),
            ("\x00", "cannot be read: unacceptable character"),
            (b"\xff\xfe\xff", "cannot be read: .*decode"),
            ("[" * 3000, "cannot be read"),
            ("agent: rl2", "key 'agent_config' is missing"),
            (yaml.safe_dump({**CONFIG.plain(), "more": 1}), "unknown key 'more'; allowed: agent,"),
            (yaml.safe_dump({**CONFIG.plain(), "agent": 3}), "agent must be a name, got 3"),
            (yaml.safe_dump({**CONFIG.plain(), "training": 3}), "training must be a mapping"),
        ],
    )
    def test_a_broken_config_is_named(self, tmp_path, text, message):
        run = RunFolder.create(tmp_path, CONFIG)
        (tmp_path / "config.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(UsageError, match=message) as caught:
            RunFolder.open(run.path)
        assert str(tmp_path / "config.yaml") in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_a_config_runs_no_code(self, tmp_path):
        RunFolder.create(tmp_path, CONFIG)
        proof = tmp_path / "proof"
        text = f"agent: !!python/object/apply:os.mkdir ['{proof}']"
        (tmp_path / "config.yaml").write_text(text)
        with pytest.raises(UsageError, match="could not determine a constructor"):
            RunFolder.open(tmp_path)
        assert not proof.exists()
        yaml.unsafe_load(text)
        assert proof.exists(), "the attack must work on a reader that trusts the file"

    def test_other_options_are_named(self, tmp_path):
        run = RunFolder.create(tmp_path, CONFIG)
        run.require_same(CONFIG)
        other = dataclasses.replace(CONFIG, agent="pearl")
        with pytest.raises(UsageError, match="was trained with agent = 'rl2', asked for 'pearl'"):
            run.require_same(other)
        other = dataclasses.replace(CONFIG, training={"total_steps": 1000, "seed": 2})
        with pytest.raises(UsageError, match=r"training\.seed = 1, asked for 2"):
            run.require_same(other)

    def test_a_checkpoint_of_another_run_is_refused(self, tmp_path):
        run = RunFolder.create(tmp_path, CONFIG)
        run.require_own(run.labels, tmp_path)
        with pytest.raises(UsageError, match="its agent is 'pearl', that of run folder"):
            run.require_own({**run.labels, "agent": "pearl"}, tmp_path)
        with pytest.raises(UsageError, match="its agent is None"):
            run.require_own({}, tmp_path)


class TestRunLog:
    def test_rows_come_back_exactly(self, tmp_path):
        run = RunFolder.create(tmp_path, CONFIG)
        values = {"a": 0.1 + 0.2, "b": 1e-310, "c": [1.5, float("nan")], "d": float("inf"), "e": 3}
        with run.open_log() as log:
            log.record(10, values)
            size = log.sync()
        (line,) = run.metrics.read_text().splitlines()
        expected = {"step": 10, "a": 0.1 + 0.2, "b": 1e-310, "c": [1.5, None], "d": None, "e": 3}
        assert json.loads(line) == expected
        assert size == run.metrics.stat().st_size

    def test_what_came_after_the_checkpoint_is_dropped(self, tmp_path):
        run = RunFolder.create(tmp_path, CONFIG)
        with run.open_log() as log:
            log.record(1, {"a": 1})
            size = log.sync()
            log.record(2, {"a": 2})
        with run.open_log(size, 1) as log:
            assert log.sync() == size
            log.record(3, {"a": 3})
            assert log.sync() == run.metrics.stat().st_size
        steps = [json.loads(line)["step"] for line in run.metrics.read_text().splitlines()]
        assert steps == [1, 3]

    def test_tensorboard_can_read_the_events(self, tmp_path):
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        run = RunFolder.create(tmp_path, CONFIG)
        with run.open_log() as log:
            log.record(1, {"loss": 0.5, "evaluation/mean": [1.0, 2.0]})
            log.record_timing(1, {"steps_per_second": 100.0})
        events = EventAccumulator(str(tmp_path)).Reload()
        found = {tag: events.Scalars(tag)[0].value for tag in events.Tags()["scalars"]}
        assert found == {
            "loss": 0.5,
            "evaluation/mean_1": 1.0,
            "evaluation/mean_2": 2.0,
            "timing/steps_per_second": 100.0,
        }

    def test_a_shortened_log_is_named(self, tmp_path):
        run = RunFolder.create(tmp_path, CONFIG)
        run.metrics.write_text("{}\n")
        with pytest.raises(UsageError, match="has 3 bytes where the checkpoint expects 100"):
            run.open_log(100, 1)
        assert run.metrics.read_text() == "{}\n"

    def test_a_second_trainer_is_kept_out(self, tmp_path):
        run = RunFolder.create(tmp_path, CONFIG)
        with run.open_log() as log:
            log.record(1, {"a": 1})
            size = log.sync()
            with pytest.raises(UsageError, match="is being trained by another process"):
                run.open_log()
            assert run.metrics.stat().st_size == size
        run.open_log(size, 1).close()

    def test_a_folder_that_cannot_be_written_is_named(self, tmp_path):
        run = RunFolder.create(tmp_path, CONFIG)
        os.mkdir(run.metrics)
        with pytest.raises(UsageError, match=r"cannot write to .*metrics\.jsonl: Is a directory"):
            run.open_log()

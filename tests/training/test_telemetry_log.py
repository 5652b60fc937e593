"""The logs of a run: whole records, each step once."""

from __future__ import annotations

import json
import math

import pytest

from slmctl.training.telemetry import Log, read_log


def test_a_log_is_cut_back_to_the_step_that_is_resumed_from(tmp_path):
    with Log(tmp_path / "m.jsonl", 0) as log:
        for step in range(1, 6):
            log.write({"step": step, "value": step / 3})
    with Log(tmp_path / "m.jsonl", 3) as log:
        log.write({"step": 4, "value": -1.0})
    assert [(r["step"], r["value"]) for r in read_log(tmp_path / "m.jsonl")] == [(1, 1 / 3), (2, 2 / 3), (3, 1.0), (4, -1.0)]


def test_a_last_line_cut_by_a_kill_is_left_out(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3, "lo')
    assert [r["step"] for r in read_log(path)] == [1, 2]
    with Log(path, 2):
        pass
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_a_figure_that_does_not_exist_is_null_in_the_json(tmp_path):
    with Log(tmp_path / "m.jsonl", 0) as log:
        log.write({"step": 1, "a": math.nan, "b": {"c": math.inf, "d": 1.5}})
    text = (tmp_path / "m.jsonl").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {"step": 1, "a": None, "b": {"c": None, "d": 1.5}}


def test_of_several_ranks_only_the_one_that_writes_makes_a_file(tmp_path):
    with Log(tmp_path / "made" / "m.jsonl", 0, on=False) as log:
        log.write({"step": 1})
    assert not list(tmp_path.iterdir())


def test_a_log_closes_its_file_even_after_an_error(tmp_path):
    logs = []

    def fails():
        with Log(tmp_path / "m.jsonl", 0) as log:
            logs.append(log)
            log.write({"step": 1})
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fails()
    assert logs[0].file.closed
    assert read_log(tmp_path / "m.jsonl") == [{"step": 1}]

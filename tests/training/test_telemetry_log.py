"""The logs of a run: whole records, each step once."""

from __future__ import annotations

import json
import math
import sys
from types import SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from slmctl.config.training import TrackingConfig
from slmctl.training.telemetry import Log, Trackers, not_finite, read_log


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


# --- what trackers are told of a run ---

FACTS = {"pipeline": "p", "lr": 0.01, "selection": {"criterion": "all", "ratio": 0.6}, "compile": False, "betas": [0.9, 0.95]}


def test_tensorboard_has_hparams_in_the_runs_own_events_with_the_losses_by_which_runs_are_compared(tmp_path):
    for step, failed in ((0, True), (3, False)):  # stopped, then gone on with
        trackers = Trackers(TrackingConfig(), tmp_path, "slm", step, FACTS)
        trackers.scalars(step, {"target": 2.0 - step / 10}, "heldout")
        trackers.describe(["target", "general"])
        trackers.describe(["target"])
        trackers.close(failed=failed)
    board = tmp_path / "tensorboard"
    assert all(f.is_file() for f in board.iterdir()), "a folder would be a further run"
    events = EventAccumulator(str(board)).Reload()
    found = {tag: HParamsPluginData.FromString(data) for tag, data in events.PluginTagToContent("hparams").items()}
    assert set(found) == {"_hparams_/experiment", "_hparams_/session_start_info", "_hparams_/session_end_info"}
    metrics = [m.name.tag for m in found["_hparams_/experiment"].experiment.metric_infos]
    assert metrics == ["heldout/target", "heldout/general"], "the tags of the curves, whose last value is what is shown"
    assert [e.value for e in events.Scalars(metrics[0])] == pytest.approx([2.0, 1.7])
    values = {
        k: getattr(v, v.WhichOneof("kind")) for k, v in found["_hparams_/session_start_info"].session_start_info.hparams.items()
    }
    wanted = {"pipeline": "p", "lr": 0.01, "selection.criterion": "all", "selection.ratio": 0.6, "compile": False}
    assert values == wanted


def test_wandb_is_told_what_the_run_is_and_goes_on_in_the_same(tmp_path, monkeypatch):
    calls, logged, ends = [], [], []

    class Started:
        def log(self, values, step):
            logged.append((step, values))

        def finish(self, exit_code):
            ends.append(exit_code)

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **given: calls.append(given) or Started()))
    for step in (0, 3):
        trackers = Trackers(TrackingConfig(tensorboard=False, wandb_project="w"), tmp_path, "slm", step, FACTS)
        trackers.describe(["target"])
        trackers.scalars(step, {"loss": 1.5, "grad_norm": math.nan, "skipped": "nonfinite", "heldout": {"a": 2}}, "train")
        trackers.close(failed=False)
    assert [c["config"] for c in calls] == [FACTS, FACTS]
    assert (calls[0]["id"], calls[0]["project"], calls[0]["name"]) == (calls[1]["id"], "w", "slm")
    assert all(c["resume"] == "allow" and c["allow_val_change"] for c in calls), "a resumed run may have another hang_timeout"
    assert logged[0] == (0, {"train/loss": 1.5, "train/heldout/a": 2.0})
    assert ends == [0, 0]


def test_what_is_not_finite_is_spelled():
    assert not_finite({"loss": math.nan, "grad_norm": -math.inf, "x": 1.0, "y": math.inf}) == {
        **{"loss": "nan", "grad_norm": "-inf", "y": "inf"}
    }
    assert not_finite({"loss": 1.0}) is None

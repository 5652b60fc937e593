"""The logs of a run: whole records, each step once, and figures that are what they are called."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from slmctl.store.reader import Rows
from slmctl.training.batches import StepBatch
from slmctl.training.selective import MicroResult
from slmctl.training.telemetry import Log, loss_metrics, read_log


def test_a_log_is_cut_back_to_the_step_that_is_resumed_from(tmp_path):
    log = Log(tmp_path / "m.jsonl", 0)
    for step in range(1, 6):
        log.write({"step": step, "value": step / 3})
    log.close()
    log = Log(tmp_path / "m.jsonl", 3)
    log.write({"step": 4, "value": -1.0})
    log.close()
    assert [(r["step"], r["value"]) for r in read_log(tmp_path / "m.jsonl")] == [(1, 1 / 3), (2, 2 / 3), (3, 1.0), (4, -1.0)]


def test_a_last_line_cut_by_a_kill_is_left_out(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3, "lo')
    assert [r["step"] for r in read_log(path)] == [1, 2]
    Log(path, 2).close()
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_a_figure_that_does_not_exist_is_null_in_the_json(tmp_path):
    log = Log(tmp_path / "m.jsonl", 0)
    log.write({"step": 1, "a": math.nan, "b": {"c": math.inf, "d": 1.5}})
    log.close()
    text = (tmp_path / "m.jsonl").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {"step": 1, "a": None, "b": {"c": None, "d": 1.5}}


def make_step(ref=True):
    rng = np.random.default_rng(0)
    live = rng.gamma(2.0, 1.0, (4, 10)).astype(np.float32)
    target = np.ones((4, 10), dtype=bool)
    target[:, 0] = False
    target[3, 5:] = False
    live[~target] = np.nan
    selected = target & (rng.random((4, 10)) < 0.5)
    ref_BT = np.where(target, live * 0.8 + 0.1 * rng.random((4, 10)), -1.0).astype(np.float32) if ref else None
    threshold = np.array([0.25, np.nan], np.float32)
    rows = Rows(np.ones((4, 10), np.int32), np.zeros((4, 10), np.int64), ref_BT)
    ref_loss = torch.from_numpy(ref_BT) if ref_BT is not None else None
    batch = StepBatch(rows, torch.from_numpy(rows.ids_BT), ref_loss, torch.from_numpy(target), np.array([3, 4]), 35)
    parts = [slice(0, 2), slice(2, 4)]
    results = [
        MicroResult(
            torch.tensor(0.0), torch.from_numpy(live[p]), torch.from_numpy(selected[p]), torch.from_numpy(threshold[i : i + 1])
        )
        for i, p in enumerate(parts)
    ]
    return batch, results, live, selected, target, ref_BT


def test_figures_of_a_step_equal_plain_sums():
    batch, results, live, selected, target, ref = make_step()
    metrics, shifted = loss_metrics(batch, results)
    chosen = [float(live[b, t]) for b in range(4) for t in range(10) if selected[b, t]]
    rest = [float(live[b, t]) for b in range(4) for t in range(10) if target[b, t] and not selected[b, t]]
    assert metrics["loss_selected"] == pytest.approx(sum(chosen) / len(chosen))
    assert metrics["loss_unselected"] == pytest.approx(sum(rest) / len(rest))
    assert metrics["live_mean"] == pytest.approx((sum(chosen) + sum(rest)) / (len(chosen) + len(rest)))
    assert metrics["ref_mean"] == pytest.approx(float(ref[target].astype(np.float64).mean()))
    assert metrics["threshold"] == 0.25
    excess = sorted(float(live[b, t]) - float(ref[b, t]) for b in range(4) for t in range(10) if target[b, t])
    assert metrics["excess_quantiles"]["q50"] == pytest.approx(excess[len(excess) // 2], abs=0.5)
    assert list(metrics["excess_quantiles"]) == ["q05", "q25", "q50", "q75", "q95"]
    assert sorted(metrics["excess_quantiles"].values()) == list(metrics["excess_quantiles"].values())
    assert metrics["correlation"] == pytest.approx(np.corrcoef(live[target], ref[target])[0, 1], abs=1e-6)
    assert shifted[0] == metrics["correlation"]


def test_without_scores_there_is_no_correlation_to_judge():
    batch, results, *_ = make_step(ref=False)
    metrics, shifted = loss_metrics(batch, results)
    assert shifted is None
    assert metrics["ref_mean"] is metrics["correlation"] is metrics["excess_quantiles"] is None

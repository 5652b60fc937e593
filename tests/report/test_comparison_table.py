"""The comparison as text: every model, every held-out set, and arms that never, or at once, reach the control."""

from __future__ import annotations

import copy

import pytest

from slmctl.config_file import check
from slmctl.report.table import comparison
from slmctl.stages.evaluate import compare_with_control
from slmctl.stages.workspace import Workspace


def heldout(loss):
    return {"loss": loss, "perplexity": 2.0, "bits_per_byte": loss / 2, "predicted_tokens": 10}


def arm(criterion, losses, selected=0.6, ratio=0.6):
    evals = [
        {
            "step": i,
            "tokens_seen": 1000 * i,
            "tokens_selected": int(1000 * i * selected),
            "heldout": {"target": x, "general": x + 1},
        }
        for i, x in enumerate(losses)
    ]
    last = evals[-1]
    return {
        "selection": {"criterion": criterion, "ratio": ratio},
        "steps": last["step"],
        "tokens_seen": last["tokens_seen"],
        "tokens_selected": last["tokens_selected"],
        "training_seconds": 1.0,
        "evals": evals,
    }


@pytest.fixture
def workspace(tmp_path):
    data = {
        "name": "table",
        "output_dir": str(tmp_path / "run"),
        "model": {"path": "somewhere"},
        "data": {"seq_len": 32, "curated": {"path": "a"}, "corpus": {"path": "b"}, "heldout": {"target": {"path": "c"}}},
        "reference": {"batch_tokens": 64},
        "pretrain": {"steps": 1, "batch_tokens": 512, "arms": {"slm": {}}},
    }
    return Workspace(check(data, "table"))


def results_of(arms, workspace, task=None):
    arms = copy.deepcopy(arms)
    compare_with_control(arms, workspace)
    tasks = {"sums": task} if task else {}
    models = {"base": {"heldout": {"target": heldout(4.0), "general": heldout(5.0)}, "tasks": tasks}}
    for name, facts in arms.items():
        last = facts["evals"][-1]["heldout"]
        models[name] = {"heldout": {s: heldout(x) for s, x in last.items()}, "tasks": tasks}
    return {"models": models, "arms": arms}


def cells(results):
    """{row label: {model: cell}}"""
    header, rows = comparison(results)
    assert all(len(row) == len(header) for row in rows)
    assert all(isinstance(cell, str) for row in rows for cell in row)
    return {row[0]: dict(zip(header[1:], row[1:], strict=True)) for row in rows}


def test_every_model_and_set_is_in_it_with_its_numbers(workspace):
    task = {"accuracy": 0.25, "standard_error": 0.125, "items": 12}
    results = results_of({"slm": arm("excess_loss", [4.0, 3.0, 2.0]), "clm": arm("all", [4.0, 3.5, 2.5], 1.0)}, workspace, task)
    found = cells(results)
    assert list(found["target loss"]) == ["base", "slm", "clm"]
    assert found["target loss"] == {"base": "4.0000", "slm": "2.0000", "clm": "2.5000"}
    assert found["general bits/byte"] == {"base": "2.5000", "slm": "1.5000", "clm": "1.7500"}
    assert found["selection"] == {"base": "-", "slm": "excess_loss 60%", "clm": "all"}
    assert found["tokens seen"] == {"base": "-", "slm": "2,000", "clm": "2,000"}
    assert found["tokens trained on"] == {"base": "-", "slm": "1,200", "clm": "2,000"}
    assert found["sums accuracy"]["slm"] == "0.250 ± 0.125"


def test_tokens_to_the_controls_final_loss_are_interpolated(workspace):
    results = results_of({"slm": arm("excess_loss", [4.0, 3.0, 2.0]), "clm": arm("all", [4.0, 3.5, 2.5], 1.0)}, workspace)
    control = results["arms"]["slm"]["control"]
    assert control["target_loss"] == 2.5
    assert control["tokens_to_reach"] == pytest.approx(1500)
    assert control["selected_tokens_to_reach"] == pytest.approx(900)
    assert control["times_fewer_tokens"] == pytest.approx(2000 / 1500)
    assert results["arms"]["clm"]["control"]["tokens_to_reach"] == pytest.approx(2000)
    assert results["arms"]["clm"]["control"]["times_fewer_tokens"] == pytest.approx(1.0)
    text = str(comparison(results))
    assert "1,500" in text
    assert "1.33x" in text


def test_an_arm_that_never_gets_there_says_so(workspace):
    results = results_of({"slm": arm("excess_loss", [4.0, 3.9, 3.8]), "clm": arm("all", [4.0, 3.5, 2.5], 1.0)}, workspace)
    assert results["arms"]["slm"]["control"]["tokens_to_reach"] is None
    assert "not reached" in str(comparison(results))


def test_a_control_that_got_worse_is_reached_with_no_token_and_breaks_nothing(workspace):
    results = results_of({"slm": arm("excess_loss", [4.0, 3.0, 2.0]), "clm": arm("all", [4.0, 4.1, 4.2], 1.0)}, workspace)
    control = results["arms"]["slm"]["control"]
    assert control["tokens_to_reach"] == 0.0
    assert control["times_fewer_tokens"] is None
    cells(results)


def test_without_an_all_tokens_arm_there_is_no_comparison(workspace):
    results = results_of({"slm": arm("excess_loss", [4.0, 3.0])}, workspace)
    assert "control" not in results["arms"]["slm"]
    cells(results)


def test_a_ratio_is_shown_as_what_it_is(workspace):
    results = results_of({"slm": arm("excess_loss", [4.0, 3.0], ratio=0.625)}, workspace)
    assert "62.5%" in cells(results)["selection"]["slm"], "a ratio rounded to whole percents makes two arms look the same"

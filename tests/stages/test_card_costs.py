"""The cost of training on each model's card, before the evaluation and after it."""

from __future__ import annotations

import re

import pytest
from evaluated_pipeline import ARMS, results_of

from slmctl.report.model_cards import write_card
from slmctl.training.telemetry import read_log


def costs(place):
    """{what: [tokens, FLOPs, seconds]} of a card, as text."""
    rows = re.findall(
        r"^\| ([^|]+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", (place / "README.md").read_text(encoding="utf-8"), re.M
    )
    return {what: found for what, *found in rows if what.startswith(("training", "scoring"))}


def seconds(run):
    return f"{sum(m['seconds'] for m in read_log(run / 'metrics.jsonl')):,.0f}"


@pytest.mark.parametrize("evaluated_yet", [False, True])
def test_each_card_has_the_operations_and_seconds_of_its_training(own_copy, evaluated_yet):
    workspace = own_copy.open()
    results = results_of(workspace)
    reference = workspace.reference / "training"
    for name in ("reference", *ARMS):
        write_card(workspace.places, workspace.config, name, workspace.bos(), results if evaluated_yet else None)
    flops = {"reference": results["costs"]["reference_flops"], **{a: results["arms"][a]["flops"] for a in ARMS}}
    own = costs(workspace.reference)["training this model"]
    assert own[1:] == [f"{flops['reference']:.3g}", seconds(reference)]
    for arm in ARMS:
        found = costs(workspace.arm(arm) / "model")
        assert found["training this model"][1:] == [f"{flops[arm]:.3g}", seconds(workspace.arm(arm))]
    if evaluated_yet:
        assert costs(workspace.arm("slm") / "model")["training the reference model"][2] == seconds(reference)


def test_without_a_log_a_card_has_no_cost(own_copy):
    workspace = own_copy.open()
    (workspace.reference / "training" / "metrics.jsonl").unlink()
    write_card(workspace.places, workspace.config, "reference", workspace.bos())
    assert costs(workspace.reference) == {}

"""eval with the suite of general tasks, from local JSON Lines: figures, outputs and differences of a whole tiny pipeline."""

from __future__ import annotations

import json

import pytest
from evaluated_pipeline import ARMS, results_of
from tiny_pipeline import write_jsonl

from slmctl.stages.evaluate import evaluate

ITEMS = 6


@pytest.fixture
def folder(tmp_path):
    """Two of the suite's tasks, with the fields of their Hub datasets."""
    pairs = [{"goal": f"one two {i}", "sol1": "red cat", "sol2": "dog runs there", "label": i % 2} for i in range(ITEMS)]
    asked = [{"question": f"is it {i}", "passage": "a bird sees", "label": i % 2} for i in range(ITEMS)]
    write_jsonl(tmp_path / "general" / "piqa.jsonl", pairs)
    write_jsonl(tmp_path / "general" / "boolq.jsonl", asked)
    return tmp_path / "general"


def test_the_general_suite_from_local_files(own_copy, folder):
    pytest.importorskip("lm_eval")
    workspace = own_copy.open(lambda s: s["eval"].update(tasks=[{"suite": "rho-general", "data": str(folder)}]))
    evaluate(workspace)
    results = results_of(workspace)
    for name, model in results["models"].items():
        assert set(model["tasks"]) == {"piqa", "boolq"}
        for task, found in model["tasks"].items():
            lines = (workspace.evaluation / "tasks" / task / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
            correct = [json.loads(line)["correct"] for line in lines]
            assert (found["items"], found["shots"], len(correct)) == (ITEMS, 0, ITEMS)
            assert found["accuracy"] == pytest.approx(sum(correct) / ITEMS)
    compared = {(d["task"], d["a"], d["b"]) for d in results["task_differences"]}
    assert compared == {(t, *p) for t in ("piqa", "boolq") for p in (("slm", "clm"), ("slm", "random"), ("random", "clm"))}
    assert sum("is left out" in note for note in results["notes"]) == 13
    assert set(ARMS) <= set(results["models"])

"""The pipeline to its end: what eval and report say, against the models themselves."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM

from slmctl.stages.evaluate import evaluate
from slmctl.stages.run import run
from slmctl.system.files import read_json
from slmctl.training.telemetry import read_log

SEQ_LEN = 32


@pytest.fixture
def finished(pipeline):
    return lambda name="finished", over=None: _run(pipeline(name, over))


def _run(workspace):
    page = run(workspace)
    return workspace, page, read_json(workspace.evaluation / "results.json")


def plain_heldout(model_directory, tokens_directory):
    """Mean float64 loss of every predicted token, whole logits, rows read with pyarrow alone."""
    table = [pq.read_table(f) for f in sorted(tokens_directory.path.glob("shard-*.parquet"))]
    ids, document = (
        np.concatenate([t.column(n).to_numpy() for t in table]).reshape(-1, SEQ_LEN) for n in ("input_id", "document")
    )
    model = AutoModelForCausalLM.from_pretrained(model_directory).double().eval()
    ids = torch.from_numpy(ids.astype(np.int64))
    with torch.no_grad():
        log_p = torch.log_softmax(model(ids).logits, dim=-1)
    loss = -log_p[:, :-1].gather(2, ids[:, 1:, None])[..., 0].numpy()
    return float(loss[document[:, 1:] >= 0].mean()), int((document >= 0).sum())


def test_results_equal_the_models_own_whole_logits_losses(finished):
    workspace, page, results = finished()
    places = {"base": workspace.base, "reference": workspace.reference}
    places |= {arm: workspace.arm(arm) / "model" for arm in ("slm", "clm", "random")}
    assert list(results["models"]) == list(places)
    for name, place in places.items():
        for heldout, found in results["models"][name]["heldout"].items():
            loss, tokens = plain_heldout(place, workspace.tokens(f"heldout/{heldout}"))
            assert found["loss"] == pytest.approx(loss, rel=1e-6)
            assert found["perplexity"] == pytest.approx(math.exp(loss), rel=1e-5)
            lines = Path(workspace.config.data.heldout[heldout][0].path[0]).read_text(encoding="utf-8").splitlines()
            text_bytes = sum(len(json.loads(x)["text"].encode()) for x in lines)
            assert found["bits_per_byte"] == pytest.approx(loss / math.log(2) * tokens / text_bytes, rel=1e-6)
    for arm in ("slm", "clm", "random"):
        facts, last = results["arms"][arm], read_log(workspace.arm(arm) / "metrics.jsonl")[-1]
        assert (facts["tokens_seen"], facts["tokens_selected"]) == (last["tokens_seen"], last["tokens_selected"])
        assert facts["control"]["arm"] == "clm"
        assert facts["control"]["target_loss"] == results["models"]["clm"]["heldout"]["target"]["loss"]
    assert results["costs"]["reference_tokens"] > 0
    assert results["costs"]["scored_tokens"]["curated"] > 0
    assert page.is_file()
    text = page.read_text(encoding="utf-8")
    assert all(f"<bdi>{name}</bdi></th>" in text for name in places)


def test_a_second_run_skips_everything(finished, capsys):
    workspace, _, _ = finished()
    before = {f: f.stat().st_mtime_ns for f in workspace.root.rglob("*.safetensors")}
    capsys.readouterr()
    run(workspace)
    told = capsys.readouterr().err
    assert all(
        f"{stage}: complete, skipped" in told for stage in ("train-base", "train-ref", "score curated", "pretrain slm", "eval")
    )
    assert {f: f.stat().st_mtime_ns for f in workspace.root.rglob("*.safetensors")} == before


def test_arms_whose_control_ended_no_better_than_it_began_still_get_a_report(finished):
    """Training on a noisy corpus may raise the target loss: the goal is then reached with no token at all."""
    over = {"pretrain": {"steps": 2, "lr": 0.3, "warmup": 0, "schedule": "constant", "alignment_check": "warn"}}
    _, page, results = finished("worse", over)
    curve = [e["heldout"]["target"] for e in results["arms"]["clm"]["evals"]]
    assert curve[-1] > curve[0], "the control got better: the test shows nothing"
    assert page.is_file()


def test_a_task_is_evaluated_for_every_model_and_repeats_exactly(pipeline, tmp_path):
    items = [{"q": f"the sum of {a} and 3 is", "a": f"#### {a + 3}"} for a in range(3)]
    (tmp_path / "task.jsonl").write_text("".join(json.dumps(x) + "\n" for x in items), encoding="utf-8")
    (tmp_path / "curated.jsonl").write_text("".join(json.dumps(x) + "\n" for x in items * 40), encoding="utf-8")
    task = {
        "name": "sums",
        "path": str(tmp_path / "task.jsonl"),
        "prompt": "{q}",
        "answer": "{a}",
        "shots": 0,
        "max_new_tokens": 4,
    }
    workspace = pipeline("tasks", {"eval": {"tasks": [task]}})
    _, _, results = _run(workspace)
    for name, found in results["models"].items():
        outputs = read_log(workspace.evaluation / "tasks" / "sums" / f"{name}.jsonl")
        assert [o["target"] for o in outputs] == ["3", "4", "5"]
        assert found["tasks"]["sums"]["accuracy"] == sum(o["correct"] for o in outputs) / 3
        assert found["tasks"]["sums"]["unread"] == sum(o["found"] is None for o in outputs)
    (workspace.evaluation / "results.json").unlink()
    evaluate(workspace)
    again = read_json(workspace.evaluation / "results.json")
    assert again == results

"""results.json: what it holds, that its figures agree with each other and with the files they were made from."""

from __future__ import annotations

import itertools
import json
import math
import platform
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from evaluated_pipeline import ARMS, SEQ_LEN, STEPS, results_of, set_rows
from transformers import AutoModelForCausalLM

from slmctl import __version__
from slmctl.comparison.crossings import resampled
from slmctl.config.selection import SelectionConfig
from slmctl.evaluation.intervals import mean_interval
from slmctl.model.loading import load_model
from slmctl.model.source import ModelSource
from slmctl.model.split import SplitModel
from slmctl.store.order import mix_seed
from slmctl.training.checkpoint_files import load_weights
from slmctl.training.telemetry import read_log

SETS = {"target", "general"}


@pytest.fixture(scope="module")
def workspace(evaluated):
    return evaluated.open()


@pytest.fixture(scope="module")
def results(workspace):
    return results_of(workspace)


def places(workspace):
    return {
        **{"base": workspace.base, "reference": workspace.reference},
        **{a: workspace.arm(a) / "model" for a in ARMS},
    }


def plain_losses(workspace, model, name):
    """Document to its float64 losses, whole logits, rows read with pyarrow alone."""
    ids, document = set_rows(workspace, f"heldout/{name}"), set_rows(workspace, f"heldout/{name}", "document")
    with torch.no_grad():
        log_p = torch.log_softmax(model.double()(torch.from_numpy(ids.astype(np.int64))).logits, dim=-1).numpy()
    found = {}
    for b, t in np.argwhere(document >= 0):
        if t > 0:
            found.setdefault(int(document[b, t]), []).append(-log_p[b, t - 1, ids[b, t]])
    return found


def rolling_nats(workspace, model, name, window):
    """Nats of each text's tokens, each text by itself after EOS, read from its file, in windows that begin with one token."""
    tokenizer, lines = workspace.tokenizer(), (workspace.root.parent / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    nats = 0.0
    for line in lines:
        ids = tokenizer.hf(json.loads(line)["text"], add_special_tokens=False)["input_ids"]
        for at in range(0, len(ids), window):
            end = min(at + window, len(ids))
            read = [tokenizer.eos_id, *ids][max(0, end - window) : end]
            with torch.no_grad():
                log_p = torch.log_softmax(model.double()(torch.tensor([read])).logits[0], dim=-1)
            nats -= sum(float(log_p[i - end, ids[i]]) for i in range(at, end))
    return nats


def test_every_key_is_there_and_no_other(results):
    assert set(results) == {
        *("schema", "pipeline", "seed", "target", "notes", "versions", "level", "models", "arms", "differences"),
        *("task_differences", "costs", "diagnostics", "sweeps", "seeds", "alarms", "contamination", "precisions", "threads"),
        *("sets", "made_on"),
    }
    assert (results["schema"], results["pipeline"], results["target"], results["level"]) == (2, "tiny", "target", 0.95)
    assert {n: m["kind"] for n, m in results["models"].items()} == {"base": "base", "reference": "reference"} | dict.fromkeys(
        ARMS, "arm"
    )
    assert list(results["models"]) == ["base", "reference", *ARMS]
    figures = {"loss", "perplexity", "bits_per_byte", "predicted_tokens", "documents", "interval", "bits_per_byte_interval"}
    figures |= {"effective_documents", "rows", "precision"}
    for model in results["models"].values():
        assert set(model) == {"kind", "parameters", "trained", "heldout", "rolling", "tasks"}
        assert set(model["rolling"]) == SETS
        assert set(model["heldout"]) == SETS
        assert all(set(f) == figures for f in model["heldout"].values())
    for arm in results["arms"].values():
        assert set(arm) == {
            *("selection", "seed", "settings", "steps", "tokens_seen", "tokens_selected", "training_seconds", "flops", "evals"),
            *("checkpoints", "selected", "control", "kinds", "epochs", "own_reference", "gradient", "made_on"),
        }
        assert set(arm["selection"]) == set(SelectionConfig.model_fields)
        assert set(arm["selected"]) == {
            *("ratio", "overlap_with_random", "expected_overlap", "mean_excess_selected", "mean_excess_unselected"),
            *("correlation_first", "correlation_last", "correlation_by_shift", "median_excess", "skipped_steps"),
        }
        assert set(arm["kinds"]) == {"by_kind", "by_frequency", "by_position"}
        assert not {"seed", "selection", "micro_batch", "save_every"} & set(arm["settings"])
    assert all(set(a) >= {"name", "level", "text"} for a in results["alarms"])
    assert (results["sweeps"], results["seeds"], results["task_differences"], results["notes"]) == ([], [], [], [])


def test_it_says_how_large_where_by_what_and_from_how_much_each_model_was_made(workspace, results):
    for name, place in places(workspace).items():
        model = AutoModelForCausalLM.from_pretrained(place)
        assert results["models"][name]["parameters"] == sum(p.numel() for p in model.parameters())
    own = {"base": workspace.base_training, "reference": workspace.reference / "training"}
    for name, model in results["models"].items():
        log = read_log(own[name] / "metrics.jsonl") if name in own else []
        if not log:
            assert model["trained"] is None
            continue
        assert (model["trained"]["steps"], model["trained"]["tokens_seen"]) == (log[-1]["step"], log[-1]["tokens_seen"])
        assert model["trained"]["made_on"]["hosts"] == [platform.node()]
    assert results["models"]["reference"]["trained"]["steps"] > 0
    corpus = workspace.open_tokens("corpus")
    for arm, facts in results["arms"].items():
        assert facts["epochs"] == pytest.approx(facts["steps"] * 256 / 32 / corpus.rows)
        assert facts["own_reference"] == (True if arm == "slm" else None)
        assert facts["made_on"]["hosts"] == [platform.node()]
        assert facts["made_on"]["device"].startswith("CPU")
        assert (facts["made_on"]["command"], facts["made_on"]["version"]) == (sys.argv, __version__)
        log = read_log(workspace.arm(arm) / "metrics.jsonl")
        norms = [m["grad_norm"] for m in log]
        assert facts["gradient"]["clipped_share"] == sum(n > 1.0 for n in norms) / len(norms)
        assert facts["gradient"]["median_norm"] == pytest.approx(float(np.median(norms)))
        last = facts["selected"]["correlation_by_shift"]
        assert last == pytest.approx({s: np.mean([m["correlation_by_shift"][s] for m in log[-3:]]) for s in last})
        assert set(last) == {"-2", "-1", "+0", "+1", "+2"}
    assert results["made_on"]["hosts"] == [platform.node()]
    assert {n: s["content"] for n, s in results["sets"].items()} == workspace.heldout_hashes()
    kept = pq.read_table(workspace.evaluation / "documents" / "target" / "slm.parquet")["predicted"].to_numpy()
    effective = results["models"]["slm"]["heldout"]["target"]["effective_documents"]
    assert effective == pytest.approx(kept.sum() ** 2 / (kept.astype(float) ** 2).sum())


def test_heldout_figures_equal_whole_logits_of_the_models(workspace, results):
    for name, place in places(workspace).items():
        model = AutoModelForCausalLM.from_pretrained(place)
        for heldout in SETS:
            found, losses = results["models"][name]["heldout"][heldout], plain_losses(workspace, model, heldout)
            every = [x for document in losses.values() for x in document]
            loss = float(np.mean(every))
            assert found["loss"] == pytest.approx(loss, rel=1e-6)
            assert found["perplexity"] == pytest.approx(math.exp(loss), rel=1e-5)
            assert (found["predicted_tokens"], found["documents"]) == (len(every), len(losses))
            text = (workspace.root.parent / f"{heldout}.jsonl").read_text(encoding="utf-8")
            size = sum(len(json.loads(line)["text"].encode()) for line in text.splitlines())
            tokens = int((set_rows(workspace, f"heldout/{heldout}", "document") >= 0).sum())
            assert found["bits_per_byte"] == pytest.approx(loss / math.log(2) * tokens / size, rel=1e-6)
            rolling = results["models"][name]["rolling"][heldout]
            nats = rolling_nats(workspace, model, heldout, rolling["window"])
            assert rolling["bits_per_byte"] == pytest.approx(nats / math.log(2) / size, rel=1e-5)
            low, high = found["interval"]
            assert low < loss < high
            sizes = [len(json.loads(line)["text"].encode()) for line in text.splitlines()]  # one shard: numbered in order
            assert sorted(losses) == list(range(len(sizes)))
            bits = [sum(losses[d]) / math.log(2) * tokens / len(every) for d in sorted(losses)]
            assert found["bits_per_byte"] == pytest.approx(sum(bits) / sum(sizes), rel=1e-6)
            wanted = mean_interval(bits, sizes, 0.95, mix_seed("intervals", workspace.config.seed))
            assert found["bits_per_byte_interval"] == pytest.approx(list(wanted), rel=1e-5)
            kept = pq.read_table(workspace.evaluation / "documents" / heldout / f"{name}.parquet").to_pydict()
            assert kept["document"] == sorted(losses)
            np.testing.assert_allclose(kept["nats"], [sum(losses[d]) for d in kept["document"]], rtol=1e-6)
            assert kept["predicted"] == [len(losses[d]) for d in kept["document"]]


def test_each_kept_checkpoint_is_evaluated(workspace, results):
    model = SplitModel(load_model(ModelSource(str(workspace.base))), False)
    for arm in ARMS:
        facts, kept = results["arms"][arm], results["arms"][arm]["checkpoints"]
        assert [c["step"] for c in kept] == list(STEPS)
        log = {m["step"]: m for m in read_log(workspace.arm(arm) / "metrics.jsonl")}
        evals = {e["step"]: e for e in facts["evals"]}
        assert sorted(evals) == [0, *STEPS]
        for one in kept:
            for key in ("tokens_seen", "tokens_selected"):
                assert one[key] == log[one["step"]][key] == evals[one["step"]][key]
            load_weights(workspace.arm(arm) / "checkpoints" / f"step-{one['step']:08d}", model)
            for heldout in SETS:
                losses = [x for d in plain_losses(workspace, model.model, heldout).values() for x in d]
                assert one["heldout"][heldout]["loss"] == pytest.approx(np.mean(losses), rel=1e-6)
                assert evals[one["step"]]["heldout"][heldout] == pytest.approx(np.mean(losses), rel=1e-5), "as while training"
            model.model.float()
        assert kept[-1]["heldout"] == results["models"][arm]["heldout"], "the last checkpoint is the model"
        assert kept[0]["heldout"] != kept[-1]["heldout"]
        assert (facts["steps"], facts["tokens_seen"]) == (STEPS[-1], log[STEPS[-1]]["tokens_seen"])


def test_differences_are_of_the_losses_and_lie_in_their_intervals(results):
    found = results["differences"]
    pairs = {("slm", "clm"), ("slm", "random"), ("random", "clm"), *((a, "base") for a in (*ARMS, "reference"))}
    assert {(d["set"], frozenset((d["a"], d["b"]))) for d in found} == {(s, frozenset(p)) for s in SETS for p in pairs}
    assert len(found) == len(SETS) * len(pairs)
    for one in found:
        a, b = (results["models"][m]["heldout"][one["set"]] for m in (one["a"], one["b"]))
        assert one["difference"] == pytest.approx(a["loss"] - b["loss"], abs=1e-12)
        assert one["documents"] == a["documents"]
        low, high = one["interval"]
        assert low < one["difference"] < high
        assert high - low < (a["interval"][1] - a["interval"][0]) * 2
    assert any(abs(d["difference"]) > 0.01 for d in found)


def test_arms_are_what_they_were_trained_as(workspace, results):
    for arm in ARMS:
        facts = results["arms"][arm]
        log = read_log(workspace.arm(arm) / "metrics.jsonl")
        counts = pq.read_table(workspace.arm(arm) / "token_counts.parquet").to_pydict()
        assert facts["selected"]["ratio"] == sum(counts["selected"]) / sum(counts["seen"])
        assert sum(counts["selected"]) == facts["tokens_selected"]
        assert facts["training_seconds"] == pytest.approx(sum(m["seconds"] for m in log))
        assert facts["seed"] == 0
        for key, logged in {"mean_excess_selected": "excess_selected", "correlation_last": "correlation"}.items():
            assert facts["selected"][key] == log[-1][logged], "the last tenth of six steps is the last one"
        assert facts["selected"]["correlation_first"] == log[0]["correlation"]
        for by in ("by_kind", "by_frequency"):
            assert sum(r["seen"] for r in facts["kinds"][by]) == sum(counts["seen"])
            assert sum(r["selected"] for r in facts["kinds"][by]) == sum(counts["selected"])
    assert results["arms"]["clm"]["selected"]["ratio"] == 1
    assert 0.6 <= results["arms"]["slm"]["selected"]["ratio"] < 0.62


def test_costs_by_hand(workspace, results):
    """The tiny Llama has one block of width 16 with two heads of 8, 32 wide inside, and 300 ids."""
    trunk = 2 * (4 * 16 * 16 + 3 * 16 * 32) + 4 * SEQ_LEN * 16
    head = 2 * 300 * 16
    for arm, facts in results["arms"].items():
        live = facts["tokens_seen"] if arm == "slm" else 0
        assert facts["flops"] == 3 * trunk * facts["tokens_seen"] + head * (live + 3 * facts["tokens_selected"])
    costs, last = results["costs"], read_log(workspace.reference / "training" / "metrics.jsonl")[-1]
    assert costs["reference_tokens"] == last["tokens_seen"]
    assert costs["reference_flops"] == 3 * trunk * last["tokens_seen"] + 3 * head * last["tokens_selected"]
    scored = int((set_rows(workspace, "curated", "ref_loss", "scores") >= 0).sum())
    assert costs["scored_tokens"] == {"curated": scored}
    assert costs["scoring_flops"] == {"curated": (trunk + head) * scored}
    control = results["arms"]["clm"]["control"]
    assert control["target_loss"] == results["models"]["clm"]["heldout"]["target"]["loss"]
    assert all(f["control"]["arm"] == "clm" for f in results["arms"].values())
    assert control["flops_to_reach"] == control["flops_to_reach_all"] == pytest.approx(results["arms"]["clm"]["flops"])


def test_what_it_took_to_reach_the_control_follows_from_the_losses_of_the_documents(workspace, results):
    """Read with pyarrow alone: the curves at base, kept checkpoints and end, and resamples of the documents one by one."""

    def losses(name, draw=None):
        own = "documents/target" if "@" not in name else "on_the_way"
        table = pq.read_table(workspace.evaluation / own / f"{name}.parquet").to_pydict()
        draw = range(len(table["nats"])) if draw is None else draw
        return sum(table["nats"][d] for d in draw) / sum(table["predicted"][d] for d in draw)

    def reached(arm, goal, draw=None):
        facts = results["arms"][arm]
        points = [(0, "base"), *((c["tokens_seen"], f"{arm}@{c['step']}") for c in facts["checkpoints"][:-1])]
        points.append((facts["tokens_seen"], arm))
        curve = [(tokens, losses(name, draw)) for tokens, name in points]
        for (t0, l0), (t1, l1) in itertools.pairwise(curve):
            if l1 <= goal < l0:
                return t0 + (l0 - goal) / (l0 - l1) * (t1 - t0)
        return math.inf

    tokens = [0, *(c["tokens_seen"] for c in results["arms"]["clm"]["checkpoints"])]
    counts = resampled(8, mix_seed("intervals", workspace.config.seed))
    draws = [[d for d, n in enumerate(row) for _ in range(int(n))] for row in counts[:40]]
    for arm in ARMS:
        found = results["arms"][arm]["control"]
        assert (found["why"], found["points"]) == (None, tokens)
        at = reached(arm, losses("clm"))
        assert found["tokens_to_reach"] == (pytest.approx(at) if math.isfinite(at) else None)
        assert found["control_tokens"] == pytest.approx(reached("clm", losses("clm")))
        if arm != "clm" and math.isfinite(at):
            assert found["times_fewer_tokens"] == pytest.approx(found["control_tokens"] / at)
        low, high = found["interval"]["tokens_to_reach"]
        inside = [(low or math.inf) <= reached(arm, losses("clm", d), d) <= (high or math.inf) for d in draws]
        assert sum(inside) >= 34, "19 of 20 are in it"
        assert found["interval"]["open"] == (None in [low, high])
    assert results["arms"]["clm"]["control"]["interval"]["times_fewer_tokens"] == [1.0, 1.0]
    kept = sorted(f.name for f in (workspace.evaluation / "on_the_way").iterdir())
    assert kept == sorted(f"{a}@{s}.parquet" for a in ARMS for s in STEPS)

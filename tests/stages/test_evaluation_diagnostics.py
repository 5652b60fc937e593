"""Diagnostics and highlights against obvious implementations on the Parquet files of per-token losses."""

from __future__ import annotations

import json
import math
import re
from fractions import Fraction

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from evaluated_pipeline import ARMS, SEQ_LEN, STEPS, results_of, set_rows
from transformers import AutoModelForCausalLM

from slmctl.comparison.diagnose import Diagnosis, random_mask
from slmctl.comparison.token_losses import TokenLosses
from slmctl.evaluation.dynamics import CATEGORIES
from slmctl.stages.evaluate import resolve

GROUP_ROWS, RATIO = 4, 0.6
CHECKPOINTS = (0, *STEPS)


@pytest.fixture(scope="module")
def workspace(evaluated):
    return evaluated.open()


@pytest.fixture(scope="module")
def results(workspace):
    return results_of(workspace)


@pytest.fixture(scope="module")
def highlights(workspace):
    return json.loads((workspace.evaluation / "highlights.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def tokens(workspace):
    """Arm to the columns of its Parquet file."""
    found = {a: pq.read_table(workspace.evaluation / "tokens" / f"{a}.parquet").to_pandas() for a in ARMS}
    return {a: {c: t[c].to_numpy() for c in t.columns} for a, t in found.items()}


def diagnosis_of(workspace):
    compared = resolve(workspace)
    return Diagnosis(compared, TokenLosses(compared.conditions))


def losses_of(columns):
    return np.stack([columns[f"loss_{s:08d}"] for s in CHECKPOINTS]).astype(np.float64)


def top_excess(columns, step, ratio=RATIO):
    """Of each group of rows the ceil(ratio x tokens) with the highest excess loss, one after the other."""
    rows = sorted(set(columns["row"].tolist()))
    chosen = np.zeros(len(columns["row"]), bool)
    for at in range(0, len(rows), GROUP_ROWS):
        group = [i for i, r in enumerate(columns["row"]) if r in rows[at : at + GROUP_ROWS]]
        excess = {i: columns[f"loss_{step:08d}"][i] - columns["ref_loss"][i] for i in group}
        for i in sorted(group, key=lambda i: (-excess[i], i))[: math.ceil(Fraction(str(ratio)) * len(group))]:
            chosen[i] = True
    return chosen


def test_the_files_hold_the_corpus_and_the_models_losses(workspace, results, tokens):
    ids, document = set_rows(workspace, "corpus"), set_rows(workspace, "corpus", "document")
    ref = set_rows(workspace, "curated", "ref_loss", "scores")
    wanted_rows = sorted(set(np.linspace(0, len(ids) - 1, min(1024 // SEQ_LEN, len(ids))).astype(int).tolist()))
    places = [(r, t) for r in wanted_rows for t in range(1, SEQ_LEN) if document[r, t] >= 0]
    assert results["diagnostics"]["rows"] == len(wanted_rows)
    assert results["diagnostics"]["tokens"] == len(places)
    for arm in ARMS:
        found = tokens[arm]
        assert list(zip(found["row"].tolist(), found["position"].tolist(), strict=True)) == places
        assert found["input_id"].tolist() == [ids[p] for p in places]
        assert found["document"].tolist() == [document[p] for p in places]
        np.testing.assert_array_equal(found["ref_loss"], [ref[p] for p in places])
        for step, place in ((0, workspace.base), (STEPS[-1], workspace.arm(arm) / "model")):
            model = AutoModelForCausalLM.from_pretrained(place).double()
            with torch.no_grad():
                log_p = torch.log_softmax(model(torch.from_numpy(ids[wanted_rows].astype(np.int64))).logits, -1).numpy()
            at = {r: i for i, r in enumerate(wanted_rows)}
            np.testing.assert_allclose(
                found[f"loss_{step:08d}"], [-log_p[at[r], t - 1, ids[r, t]] for r, t in places], rtol=1e-4, atol=1e-5
            )
        assert [c for c in found if c.startswith("loss_")] == [f"loss_{s:08d}" for s in CHECKPOINTS]


def test_the_fixed_mask_is_the_first_arms_choice_under_the_base(results, tokens):
    mask = top_excess(tokens["slm"], 0)
    found = results["diagnostics"]["fixed_mask"]
    assert found["share"] == pytest.approx(mask.mean())
    assert set(found["arms"]) == set(ARMS)
    for arm in ARMS:
        losses = losses_of(tokens[arm])
        assert found["arms"][arm]["steps"] == list(CHECKPOINTS)
        assert found["arms"][arm]["tokens_seen"][1:] == [c["tokens_seen"] for c in results["arms"][arm]["checkpoints"]]
        assert found["arms"][arm]["selected"] == pytest.approx([x[mask].mean() for x in losses])
        assert found["arms"][arm]["unselected"] == pytest.approx([x[~mask].mean() for x in losses])


def test_the_fit_is_of_target_losses_on_the_masks(results):
    for arm in ARMS:
        fit, curves = results["diagnostics"]["fit"][arm], results["diagnostics"]["fixed_mask"]["arms"][arm]
        assert fit["x"] == curves["selected"][1:]
        assert fit["x_unselected"] == curves["unselected"][1:]
        assert fit["y"] == [c["heldout"]["target"]["loss"] for c in results["arms"][arm]["checkpoints"]]
        slope, intercept = np.polyfit(fit["x"], fit["y"], 1)
        assert (fit["slope"], fit["intercept"]) == (pytest.approx(slope, rel=1e-6), pytest.approx(intercept, rel=1e-6))
        assert fit["r2"] == pytest.approx(np.corrcoef(fit["x"], fit["y"])[0, 1] ** 2, abs=1e-9)
        assert fit["slope_unselected"] == pytest.approx(np.polyfit(fit["x_unselected"], fit["y"], 1)[0], rel=1e-6)


def test_the_matrix_holds_what_each_checkpoint_would_choose(results, tokens):
    assert set(results["diagnostics"]["matrix"]) == {"slm"}, "arms that look at no loss choose the same at every checkpoint"
    found, losses = results["diagnostics"]["matrix"]["slm"], losses_of(tokens["slm"])
    masks = [top_excess(tokens["slm"], s) for s in CHECKPOINTS]
    assert any((masks[0] != m).any() for m in masks[1:])
    wanted = [[math.exp(x[m].mean()) for x in losses] for m in masks]
    np.testing.assert_allclose(found["perplexity"], wanted, rtol=1e-6)


def test_dynamics_are_of_all_tokens(results, tokens):
    for arm in ARMS:
        found, losses = results["diagnostics"]["dynamics"][arm], losses_of(tokens[arm])
        assert found["steps"] == list(CHECKPOINTS)
        categories = found["categories"]
        assert tuple(categories) == CATEGORIES
        assert sum(c["tokens"] for c in categories.values()) == losses.shape[1] == results["diagnostics"]["tokens"]
        assert sum(c["share"] for c in categories.values()) == pytest.approx(1)
        lines = [np.polyfit(range(len(CHECKPOINTS)), token, 1) for token in losses.T]
        falls = np.array([slope * (len(CHECKPOINTS) - 1) < -0.2 for slope, _ in lines])
        assert categories["H→L"]["tokens"] == falls.sum() > 0
        assert categories["H→L"]["mean"] == pytest.approx([x[falls].mean() for x in losses])
        weighted = [np.array(c["mean"]) * c["tokens"] for c in categories.values() if c["tokens"]]
        np.testing.assert_allclose(np.sum(weighted, axis=0) / losses.shape[1], losses.mean(axis=1), rtol=1e-6)


def test_fluctuating_tokens_are_shown_where_they_stand(workspace, tokens):
    columns = tokens["slm"]
    losses = np.random.default_rng(0).uniform(1, 3, (len(CHECKPOINTS), len(columns["row"]))).astype(np.float32)
    tokenizer, diagnosis = workspace.tokenizer().hf, diagnosis_of(workspace)
    shown = diagnosis._dynamics(losses, list(CHECKPOINTS), list(CHECKPOINTS))["fluctuating"]
    assert len(shown) == 8
    for one in shown:
        assert one["category"] in ("L→L", "H→H")
        (i,) = [i for i in np.flatnonzero(columns["position"] == one["position"]) if one["losses"] == losses[:, i].tolist()]
        row = set_rows(workspace, "corpus")[columns["row"][i]]
        assert one["text"] == tokenizer.decode([row[one["position"]]])
        assert one["before"] == tokenizer.decode(row[max(0, one["position"] - 12) : one["position"]])


def test_the_files_say_what_each_arm_would_choose_at_the_end(tokens):
    assert (tokens["slm"]["selected"] == top_excess(tokens["slm"], STEPS[-1])).all()
    assert (tokens["slm"]["selected"] != top_excess(tokens["slm"], 0)).any()
    assert tokens["clm"]["selected"].all()
    assert tokens["random"]["selected"].dtype == bool
    assert tokens["random"]["selected"].mean() == pytest.approx(RATIO, abs=0.02)


def test_losses_are_not_kept_in_memory(evaluated, monkeypatch):
    """What is held are one arm's checkpoints, in float32."""
    workspace = evaluated.open()
    diagnosis = diagnosis_of(workspace)
    held, dynamics = [], diagnosis._dynamics

    def look(losses_CN, steps, seen):
        held.append((losses_CN.dtype, losses_CN.shape))
        return dynamics(losses_CN, steps, seen)

    monkeypatch.setattr(diagnosis, "_dynamics", look)
    monkeypatch.setattr(diagnosis, "_write", lambda *_: None)
    tokens = int(diagnosis.sample.target_BT.sum())
    results = results_of(workspace)
    diagnosis.results({a: results["arms"][a] for a in ARMS}, "target")
    assert held == [(np.float32, (len(CHECKPOINTS), tokens))] * len(ARMS)
    assert not [a for a in vars(diagnosis.sample).values() if isinstance(a, dict)]


def test_tokens_by_position_are_the_arms_choice_under_its_last_checkpoint(results, tokens):
    document_rows = sorted(set(tokens["slm"]["row"].tolist()))
    place = (np.array([document_rows.index(r) for r in tokens["slm"]["row"]]), tokens["slm"]["position"])
    target = np.zeros((len(document_rows), SEQ_LEN), bool)
    target[place] = True
    masks = {"clm": target[place], "slm": top_excess(tokens["slm"], STEPS[-1])}
    masks["random"] = random_mask(target, RATIO, GROUP_ROWS, 0)[place]
    bins = [(1, 2), (2, 4), (4, 8), (8, 16), (16, 32)]
    for arm, mask in masks.items():
        found = results["arms"][arm]["kinds"]["by_position"]
        within = [(tokens["slm"]["position"] >= low) & (tokens["slm"]["position"] < high) for low, high in bins]
        assert [r["seen"] for r in found] == [w.sum() for w in within]
        assert [r["selected"] for r in found] == [(w & mask).sum() for w in within]


def test_a_blind_mask_is_as_large_as_selection_and_even():
    target = np.random.default_rng(0).random((400, SEQ_LEN)) < 0.8
    mask = random_mask(target, RATIO, GROUP_ROWS, 3)
    assert not (mask & ~target).any()
    for at in range(0, 400, GROUP_ROWS):
        part = slice(at, at + GROUP_ROWS)
        assert mask[part].sum() == math.ceil(Fraction("0.6") * int(target[part].sum()))
    assert mask[target].mean() == pytest.approx(0.6, abs=0.01)
    other = random_mask(target, RATIO, GROUP_ROWS, 4)
    assert (mask & other).sum() / mask.sum() == pytest.approx(0.6, abs=0.02), "two seeds are independent"
    assert [mask[:, t].sum() / target[:, t].sum() for t in range(SEQ_LEN)] == pytest.approx([0.6] * SEQ_LEN, abs=0.12)


def test_highlights_are_documents_of_the_corpus_with_the_arms_masks(workspace, highlights, tokens):
    ids, document = set_rows(workspace, "corpus"), set_rows(workspace, "corpus", "document")
    masks = {"slm": top_excess(tokens["slm"], STEPS[-1])}
    assert highlights["arms"] == list(ARMS)
    assert highlights["step"] == dict.fromkeys(ARMS, STEPS[-1])
    assert len(highlights["documents"]) == 3
    for shown in highlights["documents"]:
        found, (shard, record) = shown["tokens"], map(int, re.findall(r"\d+", shown["title"]))
        number = shard * 2**32 + record
        (row,) = [r for r in set(tokens["slm"]["row"].tolist()) if self_contained(document, r, number, found["position"])]
        part = ids[row, found["position"]]
        assert "".join(found["text"]) == workspace.tokenizer().hf.decode(part)
        assert len(found["text"]) == len(part)
        assert (document[row] == number).sum() == max(np.unique(document[row][document[row] >= 0], return_counts=True)[1])
        for arm in ARMS:
            columns = tokens[arm]
            at = {int(t): i for i, t in enumerate(columns["position"]) if columns["row"][i] == row}
            for i, position in enumerate(found["position"]):
                predicted = at.get(position)
                if predicted is None:
                    assert position == 0
                    assert found["live"][arm][i] is found["ref"][i] is None
                    assert found["selected"][arm][i] == 0
                    continue
                assert found["live"][arm][i] == pytest.approx(columns[f"loss_{STEPS[-1]:08d}"][predicted], abs=1e-3)
                assert found["ref"][i] == pytest.approx(columns["ref_loss"][predicted], abs=1e-3)
                if arm in masks:
                    assert found["selected"][arm][i] == int(masks[arm][predicted])
        assert found["selected"]["clm"] == [int(p > 0) for p in found["position"]]
        assert 0 < sum(found["selected"]["random"]) < len(part)


def self_contained(document, row, number, positions):
    """Whether a document's part of a row is at just these positions."""
    return np.flatnonzero(document[row] == number).tolist() == positions


def test_an_arms_choice_is_by_the_seed_and_settings_it_was_trained_with(own_copy):
    workspace = own_copy.open(lambda s: s["pretrain"]["arms"]["random"].update(seed=9, selection={"criterion": "random"}))
    file = workspace.arm("random") / "inputs.json"
    made = json.loads(file.read_text(encoding="utf-8"))
    made["settings"] |= {"seed": 3, "selection": {**made["settings"]["selection"], "ratio": 0.2, "group_rows": 2}}
    file.write_text(json.dumps(made), encoding="utf-8")
    diagnosis = diagnosis_of(workspace)
    target = diagnosis.sample.target_BT
    np.testing.assert_array_equal(diagnosis.chosen("random", target), random_mask(target, 0.2, 2, 3))

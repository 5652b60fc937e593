"""Ranks train the same model as one process: the same steps, figures, weights and counts, in every layout and scope."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from launch import Left, SlowSave, saved_steps, succeed, temporaries
from ranked_pipeline import ARMS, Pipeline
from transformers import AutoModelForCausalLM

EXACT = ("step", "tokens_seen", "tokens_selected", "lr", "skipped")
FIGURES = ("loss", "grad_norm", "live_mean", "ref_mean", "loss_selected", "loss_unselected", "correlation")
LAYOUTS = {"full": 2, "replicate": 2, "hybrid": 4}


def assert_same_to_rounding(found: Left, wanted: Left, figures: float = 1e-6, weights: float = 5e-6) -> None:
    assert found.counts == wanted.counts
    assert len(found.metrics) == len(wanted.metrics)
    for ours, theirs in zip(found.metrics, wanted.metrics, strict=True):
        assert ours.keys() == theirs.keys()
        assert [ours[k] for k in EXACT] == [theirs[k] for k in EXACT]
        for key in FIGURES:
            close = ours[key] == theirs[key] if theirs[key] is None else ours[key] == pytest.approx(theirs[key], rel=figures)
            assert close, (ours["step"], key, ours[key], theirs[key])
    assert [e["step"] for e in found.evals] == [e["step"] for e in wanted.evals]
    for ours, theirs in zip(found.evals, wanted.evals, strict=True):
        assert ours["heldout"] == pytest.approx(theirs["heldout"], rel=figures)
    assert found.weights.keys() == wanted.weights.keys()
    for name, weight in wanted.weights.items():
        torch.testing.assert_close(found.weights[name], weight, rtol=0, atol=weights, msg=name)


def losses_of(model_directory: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(model_directory)
    with torch.no_grad():
        return model(torch.arange(40)[None] * 7 % 300).logits


@pytest.fixture(scope="module", params=LAYOUTS)
def layout(request: pytest.FixtureRequest, tied: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """All arms, trained by ranks in one layout."""
    name, size = request.param, LAYOUTS[request.param]
    arms = {"global": {"micro_batch": 8 // size}}  # of this scope, what competes is a micro-batch on all ranks
    root = tmp_path_factory.mktemp(name)
    made = tied.copy(root / "made", {"pretrain": {"sharding": name, "arms": arms}})
    said = succeed(root, size, ["pretrain", made.config], local=2)
    assert f"sharding: {name} over {size} ranks" in said[0].said
    assert [e.said for e in said[1:]] == [""] * (size - 1), "of several ranks one speaks"
    return made


@pytest.mark.parametrize("arm", [a for a in ARMS if a != "bf16"])
def test_ranks_make_the_steps_of_one_process(layout: Pipeline, arm: str, alone: dict[str, Left]) -> None:
    assert_same_to_rounding(layout.left(arm), alone[arm])


def test_with_bfloat16_arithmetic_ranks_stay_near_one_process(layout: Pipeline, alone: dict[str, Left]) -> None:
    found, wanted = layout.left("bf16"), alone["bf16"]
    assert found.counts["seen"] == wanted.counts["seen"]
    for ours, theirs in zip(found.metrics, wanted.metrics, strict=True):
        assert ours["tokens_selected"] == theirs["tokens_selected"]
        assert ours["live_mean"] == pytest.approx(theirs["live_mean"], rel=1e-3)
        assert ours["ref_mean"] == pytest.approx(theirs["ref_mean"])
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=0.2)
    for ours, theirs in zip(found.evals, wanted.evals, strict=True):
        assert ours["heldout"] == pytest.approx(theirs["heldout"], rel=1e-2)


@pytest.mark.parametrize("layout_of_two", ["full", "replicate"])
def test_a_micro_batch_that_ranks_find_by_themselves_makes_the_same_steps(
    layout_of_two: str, tied: Pipeline, alone: dict[str, Left], tmp_path: Path
) -> None:
    made = tied.copy(tmp_path / "made", {"pretrain": {"sharding": layout_of_two, "micro_batch": "auto"}})
    said = succeed(tmp_path, 2, ["pretrain", made.config, "--arm", "slm"])
    assert "micro_batch auto is" in said[0].said
    assert_same_to_rounding(made.left("slm"), alone["slm"])


def test_the_exported_model_is_an_ordinary_one(layout: Pipeline, tied: Pipeline) -> None:
    logits = losses_of(layout.arm("slm") / "model")
    assert logits.isfinite().all()
    assert not torch.allclose(logits, losses_of(tied.root / "base"), atol=1e-2)
    assert not temporaries(layout.root)
    assert saved_steps(layout.arm("slm")) == [6]


def test_two_ranks_train_the_reference_of_one_process(untied: Pipeline, tmp_path: Path) -> None:
    """With corpus rows among the curated ones, untied embeddings, attention within documents, and the best weights kept."""
    made = untied.copy(tmp_path / "made", {"reference": {"sharding": "full"}})
    old = made.root / "reference"
    wanted = [f.name for f in sorted(old.iterdir())]
    old.rename(tmp_path / "alone")
    succeed(tmp_path, 2, ["train-ref", made.config])
    assert [f.name for f in sorted(old.iterdir())] == wanted
    ours, theirs = (AutoModelForCausalLM.from_pretrained(d) for d in (old, tmp_path / "alone"))
    assert not ours.config.tie_word_embeddings
    for (name, weight), (_, other) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        torch.testing.assert_close(weight, other, rtol=0, atol=5e-6, msg=name)


def test_untied_embeddings_and_attention_within_documents(untied: Pipeline, tmp_path: Path) -> None:
    found = []
    for size in (1, 2):
        made = untied.copy(tmp_path / f"of{size}", {"pretrain": {"sharding": "full"}})
        succeed(tmp_path, size, ["pretrain", made.config, "--arm", "slm"])
        found.append(made.left("slm"))
    assert "lm_head.weight" in found[0].weights
    assert_same_to_rounding(found[1], found[0])


def test_the_best_weights_are_kept_while_a_checkpoint_is_written(untied: Pipeline, tmp_path: Path) -> None:
    """The ranks' agreement on the best weights is not mixed up with that on a checkpoint, which goes on beside training."""
    made = untied.copy(tmp_path / "made", {"reference": {"eval_every": 1, "save_every": 1}})
    (made.root / "reference").rename(tmp_path / "alone")
    succeed(tmp_path, 2, ["train-ref", made.config], before=[SlowSave(0.3, rank=1)])


def test_with_dropout_ranks_make_the_steps_of_one_process(tied: Pipeline, tmp_path: Path) -> None:
    """Masks follow from a row's place in the step, wherever it is computed."""
    over = {"accept_mismatch": ["reference:base.config.json"], "pretrain": {"steps": 3, "sharding": "full"}}
    left = []
    for size in (1, 2):
        made = tied.copy(tmp_path / f"of{size}", over)
        config = made.root / "base" / "config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), "attention_dropout": 0.3}))
        succeed(tmp_path, size, ["pretrain", made.config, "--arm", "clm"])
        left.append(made.left("clm"))
    assert_same_to_rounding(left[1], left[0])

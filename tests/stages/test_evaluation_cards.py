"""Model cards: where they lie, before and after the evaluation, and that they change nothing."""

from __future__ import annotations

import pytest
import torch
from evaluated_pipeline import ARMS, results_of
from transformers import AutoModelForCausalLM, AutoTokenizer

from slmctl.model.source import ModelSource, model_fingerprint
from slmctl.stages import evaluate as evaluating
from slmctl.stages.evaluate import evaluate
from slmctl.stages.pretrain import pretrain
from slmctl.system.hashes import HashCache


def places(workspace):
    return {
        **{"base": workspace.base, "reference": workspace.reference},
        **{a: workspace.arm(a) / "model" for a in ARMS},
    }


def shown(loss):
    """As the Hub is told it."""
    return f"value: {loss}\n"


def test_every_model_has_a_card_with_its_figures(evaluated):
    workspace = evaluated.open()
    results = results_of(workspace)
    for name, place in places(workspace).items():
        card = (place / "README.md").read_text(encoding="utf-8")
        assert card.startswith("---\nlibrary_name: transformers\n")
        for heldout in ("target", "general"):
            assert shown(results["models"][name]["heldout"][heldout]["loss"]) in card
    assert "NaN" not in card


def test_a_card_has_no_figures_before_the_evaluation(own_copy):
    workspace = own_copy.open()
    pretrain(workspace, ["slm"], resume=False)
    card = (workspace.arm("slm") / "model" / "README.md").read_text(encoding="utf-8")
    loss = shown(results_of(workspace)["models"]["slm"]["heldout"]["target"]["loss"])
    assert loss not in card
    assert f"{results_of(workspace)['arms']['slm']['tokens_seen']:,}" in card, "but what it was trained with"
    (workspace.evaluation / "results.json").unlink()
    evaluate(workspace)
    assert loss in (workspace.arm("slm") / "model" / "README.md").read_text(encoding="utf-8"), "trained again to the bit"


def test_a_card_changes_no_fingerprint_and_an_arm_still_loads(own_copy, tmp_path):
    workspace = own_copy.open()
    for place in places(workspace).values():
        with_card = model_fingerprint(ModelSource(str(place)), HashCache(tmp_path / "hashes.json"))
        (place / "README.md").unlink()
        assert model_fingerprint(ModelSource(str(place)), HashCache(tmp_path / "hashes.json")) == with_card
    (workspace.evaluation / "results.json").unlink()
    evaluate(workspace)
    place = workspace.arm("slm") / "model"
    assert (place / "README.md").is_file()
    model, tokenizer = AutoModelForCausalLM.from_pretrained(place), AutoTokenizer.from_pretrained(place)
    ids = torch.tensor([tokenizer("one two three")["input_ids"]])
    assert torch.isfinite(model(ids, labels=ids).loss)


def test_a_stop_while_cards_are_written_leaves_the_evaluation_to_be_gone_on_with(own_copy, monkeypatch):
    """results.json is the last file: with it, the cards have their figures."""
    workspace = own_copy.open()
    (workspace.evaluation / "results.json").unlink()
    for place in places(workspace).values():
        (place / "README.md").write_text("old", encoding="utf-8")

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(evaluating, "write_cards", stop)
        with pytest.raises(KeyboardInterrupt):
            evaluate(workspace)
    evaluate(workspace)
    assert all((place / "README.md").read_text(encoding="utf-8") != "old" for place in places(workspace).values())

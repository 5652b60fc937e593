"""accept_mismatch: what it lets through, what it never does, and what is kept of it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tiny_store import Store, content, make_model, make_tokenizer, with_reference

from slmctl.stages.prepare import prepare
from slmctl.stages.pretrain import pretrain
from slmctl.stages.score import score
from slmctl.system.errors import MismatchError
from slmctl.system.files import read_json
from slmctl.workspace.workspace import Workspace


def accepting(store: Store, *fields: str) -> Workspace:
    store.settings["accept_mismatch"] = list(fields)
    return store.open()


def test_a_named_mismatch_is_let_through_and_recorded(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    store.copy()
    store.settings["seed"] = 3
    with pytest.raises(MismatchError, match=r"tokens/corpus:seed: found 0, wanted 3(.|\n)*-o 'accept_mismatch=\[") as e:
        pretrain(store.open())
    offered = json.loads(str(e.value).partition("accept_mismatch=")[2].rstrip("'."))
    assert offered == ["tokens/corpus:seed"]
    with pytest.raises(MismatchError, match="tokens/heldout/target:seed") as e:
        pretrain(accepting(store, *offered))
    offered = json.loads(str(e.value).partition("accept_mismatch=")[2].rstrip("'."))
    assert offered == ["tokens/corpus:seed", "tokens/heldout/target:seed"], "the advice repeats what was accepted already"
    capsys.readouterr()
    workspace = accepting(store, *offered)
    pretrain(workspace)
    warned = " ".join(capsys.readouterr().err.split())
    assert "warning: accept_mismatch lets through tokens/corpus:seed: found 0, wanted 3" in warned
    recorded = read_json(workspace.arm("slm") / "inputs.json")["accepted_mismatches"]
    assert "tokens/corpus:seed: found 0, wanted 3" in recorded
    assert content(store.store) == store.wanted


def test_only_the_named_field_is_let_through(store: Store) -> None:
    store.copy()
    store.settings["seed"] = 3
    store.settings["data"]["shard_bytes"] = 2048
    with pytest.raises(MismatchError, match="tokens/corpus:shard_bytes: found 1024, wanted 2048") as e:
        pretrain(accepting(store, "tokens/corpus:seed", "tokens/curated:shard_bytes"))
    assert "tokens/corpus:seed: found" not in str(e.value)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda s: s["data"].update(seq_len=64), "tokens/corpus:seq_len"),
        (lambda s: s["data"].update(intra_document_mask=True), "scores/curated:intra_document_mask"),
    ],
)
def test_what_would_train_on_losses_of_other_predictions_is_never_let_through(store: Store, change: Any, field: str) -> None:
    store.copy()
    change(store.settings)
    with pytest.raises(MismatchError, match=f"{field}: found") as e:
        pretrain(accepting(store, field))
    assert "accept_mismatch" not in str(e.value), "it offers what does not help"


def test_losses_of_other_tokens_are_never_let_through(store: Store) -> None:
    store.copy()
    store.settings["seed"] = 3
    prepare(store.open())
    fields = ["tokens/corpus:tokens", "scores/curated:tokens", "scores/curated/manifest.json:tokens"]
    with pytest.raises(MismatchError, match=r"(?s)tokens: found .*These scores belong to other inputs"):
        pretrain(accepting(store, *fields))


def test_going_on_as_it_is_makes_nothing_anew(store: Store) -> None:
    """Neither the scores that took days nor an arm that is half trained."""
    store.copy()
    workspace = store.open()
    pretrain(workspace)
    weights = (workspace.arm("slm") / "model" / "model.safetensors").stat().st_mtime_ns
    before = store.stamps()
    store.settings["data"]["shard_bytes"] = 2048
    workspace = accepting(store, "tokens/corpus:shard_bytes", "tokens/heldout/target:shard_bytes")
    score(workspace)
    pretrain(workspace)
    assert (workspace.arm("slm") / "model" / "model.safetensors").stat().st_mtime_ns == weights
    assert store.stamps() == before
    assert not (store.store / "stale").exists()
    recorded = read_json(workspace.arm("slm") / "inputs.json")["accepted_mismatches"]
    assert recorded[0] == "tokens/corpus:shard_bytes: found 1024, wanted 2048"


def test_what_one_arm_lets_through_is_not_recorded_of_the_next(store: Store) -> None:
    store.copy()
    store.settings["pretrain"]["arms"] = {"slm": {}, "late": {"selection": {"reference": "second"}}}
    store.settings["pretrain"]["alignment_check"] = "warn"  # the second reference has learnt nothing: chance decides
    with_reference(store, make_model(make_tokenizer(store.root / "second"), seed=7), "second")
    score(store.open(), ["second"])
    store.settings["score"]["references"]["curated"] = store.settings["score"]["references"]["second"]
    plain = "scores/curated:reference.model.safetensors"
    workspace = accepting(store, plain)
    pretrain(workspace)
    assert plain in str(read_json(workspace.arm("slm") / "inputs.json"))
    assert "accepted_mismatches" not in read_json(workspace.arm("late") / "inputs.json")

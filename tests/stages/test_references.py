"""What score refuses of a reference, what it accepts, and references that are added later."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import tiny_store
from tiny_store import SCORES, Store, content, make_model, make_tokenizer, shards, with_reference

from slmctl.model import scoring
from slmctl.model.loading import load_model
from slmctl.stages import score as score_stage
from slmctl.stages.pretrain import pretrain
from slmctl.stages.score import score
from slmctl.store.build import PLAN
from slmctl.store.reader import ShardSet
from slmctl.system.errors import InputError, MismatchError, TrainingError
from slmctl.system.files import read_json
from slmctl.system.hashes import sha256_file


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, "2 values of ref_loss that are not finite"),
        (np.inf, "2 values of ref_loss that are not finite"),
        (-0.25, "a ref_loss of -0.25"),
    ],
)
def test_losses_that_no_model_gives_are_not_written(
    store: Store, monkeypatch: pytest.MonkeyPatch, value: float, message: str
) -> None:
    store.copy(scored=False)
    real = scoring.row_losses

    def broken(*args: Any) -> Any:
        losses, entropy, target = real(*args)
        losses[np.unravel_index(np.flatnonzero(target)[[3, 5]], target.shape)] = value
        return losses, entropy, target

    monkeypatch.setattr(scoring, "row_losses", broken)
    with pytest.raises(TrainingError, match=rf"{message} in shard-00000\.parquet, row group 0; that shard was not written"):
        score(store.open())
    assert [p.name for p in store.path(SCORES).iterdir()] == [PLAN]
    monkeypatch.undo()
    score(store.open())
    assert content(store.store) == store.wanted


def test_a_loss_that_rounding_took_below_zero_is_zero(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.copy(scored=False)
    real = scoring.row_losses

    def rounded(*args: Any) -> Any:
        losses, entropy, target = real(*args)
        losses[np.unravel_index(np.flatnonzero(target)[0], target.shape)] = -1e-6
        return losses, entropy, target

    monkeypatch.setattr(scoring, "row_losses", rounded)
    score(store.open())
    assert ShardSet(store.path(SCORES), "scores").read_group(0, ["ref_loss"])["ref_loss"].ravel()[1] == 0.0
    assert store.run("score", "--verify")[0] == 0


def test_a_reference_in_training_mode_is_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.copy(scored=False)
    monkeypatch.setattr(score_stage, "load_model", lambda *a: load_model(*a).train())
    with pytest.raises(ValueError, match="eval mode"):
        score(store.open())
    assert not shards(store.path(SCORES))


def test_a_reference_with_fewer_ids_than_the_tokens_hold_is_refused(store: Store) -> None:
    small = make_model(make_tokenizer(store.root / "small"), vocab_size=270)
    with pytest.raises(MismatchError, match=rf"the tokens hold id \d+, beyond the vocabulary of 270 of {small}"):
        score(with_reference(store.copy(scored=False), small).open())
    assert not shards(store.path(SCORES))


def test_a_reference_of_another_vocabulary_is_refused_naming_an_id(store: Store) -> None:
    other = store.root / "other"
    tiny_store.train_tokenizer((f"zebra quagga okapi {i}" for i in range(99)), 300, other)
    make_model(other)
    with pytest.raises(MismatchError, match=r"\d+ of 300 ids mean other tokens \(id \d+ is '.+' in the corpus, '.+' there\)"):
        score(with_reference(store.copy(scored=False), other).open())
    assert not shards(store.path(SCORES))


@pytest.mark.parametrize(("hidden", "layers", "vocab_size"), [(8, 1, 300), (48, 3, 320)], ids=["smaller", "larger"])
def test_a_reference_of_another_size_and_end_of_text_is_accepted(store: Store, hidden: int, layers: int, vocab_size: int) -> None:
    """Weak to strong, and strong to weak: all that must be shared is what the ids mean."""
    other = make_model(make_tokenizer(store.root / "other"), vocab_size, hidden, layers, seed=5, bos_token_id=5, eos_token_id=5)
    described = json.loads((other / "tokenizer_config.json").read_text())
    described.update(eos_token="e", pad_token="e", bos_token="e")
    (other / "tokenizer_config.json").write_text(json.dumps(described))
    workspace = with_reference(store.copy(scored=False), other).open()
    assert tiny_store.load_tokenizer(str(other)).eos_id != workspace.tokenizer().eos_id
    score(workspace)
    assert store.run("score", "--verify")[0] == 0
    assert shards(store.path(SCORES)).keys() == store.wanted[SCORES][1].keys()
    assert shards(store.path(SCORES)) != store.wanted[SCORES][1]


def test_a_reference_added_later_leaves_all_else_as_it_was(store: Store) -> None:
    """… and an arm that names it is trained with its losses."""
    before = store.copy().stamps()
    second = make_model(make_tokenizer(store.root / "second"), hidden=8, seed=7)
    store.settings["pretrain"]["arms"]["weak"] = {"selection": {"reference": "second"}}
    with_reference(store, second, "second")
    with pytest.raises(InputError, match=r"scores/second is absent or not complete. Run `slmctl score` first"):
        pretrain(store.open(), ["weak"])
    code, said = store.run("score", "--reference", "second")
    assert (code, "score curated" in said) == (0, False), said
    after = store.stamps()
    assert {k: after[k] for k in before} == before
    found = content(store.store)
    assert {k: v for k, v in found.items() if k != "scores/second"} == store.wanted
    assert found["scores/second"][1].keys() == found[SCORES][1].keys()
    assert not set(found["scores/second"][1].values()) & set(found[SCORES][1].values())
    code, said = store.run("score", "--reference", "third")
    assert code == 2
    assert "--reference third: there is no such one. score.references has: curated, second" in said

    workspace = store.open()
    pretrain(workspace)
    for arm, reference in (("slm", "curated"), ("weak", "second")):
        assert read_json(workspace.arm(arm) / "inputs.json")["scores"] == found[f"scores/{reference}"][0]
    weights = {a: sha256_file(workspace.arm(a) / "model" / "model.safetensors") for a in ("slm", "weak")}
    assert weights["slm"] != weights["weak"], "other losses select other tokens"

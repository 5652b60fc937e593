"""One end-of-sequence token a document, counted in every shard and every set before it is published."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from tokenizer_kinds import SPECIAL, unigram
from tokenizers import AddedToken, Tokenizer, models
from tokenizers import pre_tokenizers as P  # noqa: N812
from transformers import LlamaConfig, PreTrainedTokenizerFast

from slmctl.config.file import check
from slmctl.corpus import make_shard
from slmctl.corpus.special_names import SpecialNames
from slmctl.stages.prepare import prepare
from slmctl.store.manifest import exists, load_manifest
from slmctl.system.errors import InputError, MismatchError
from slmctl.workspace import token_sets
from slmctl.workspace.workspace import Workspace

EOS = 2
STRUCK = [f"the price <s>{i} stones</s> is 12" for i in range(30)]


@pytest.fixture
def pipeline_of(tmp_path: Path, jsonl: Callable[[Path, list[str]], Path]) -> Callable[..., Workspace]:
    """A workspace around a tokenizer of one's own and a model's configuration; all sets have the same texts."""

    def make(backend: Tokenizer, texts: list[str], parse: bool = False, **named: str) -> Workspace:
        hf = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", **named)
        hf.save_pretrained(tmp_path / "model")
        tiny = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}
        LlamaConfig(vocab_size=len(hf), **tiny).save_pretrained(tmp_path / "model")
        source = {"path": str(jsonl(tmp_path / "t.jsonl", texts)), "parse_special_tokens": parse}
        config: dict[str, Any] = {
            "name": "test",
            "output_dir": str(tmp_path / "out"),
            "model": {"path": str(tmp_path / "model")},
            "data": {
                **{"seq_len": 32, "shard_bytes": 1024, "curated": source, "corpus": source},
                "heldout": {"target": source},
            },
            "reference": {"batch_tokens": 1024},
            "pretrain": {"steps": 1, "batch_tokens": 1024, "arms": {"slm": None}},
        }
        return Workspace(check(config, "test")).open()

    return make


def marked() -> Tokenizer:
    backend = unigram(P.Metaspace())
    backend.add_special_tokens([AddedToken(t, normalized=False) for t in SPECIAL])
    return backend


def ends_of(workspace: Workspace) -> int:
    tables = [pq.read_table(f) for f in sorted(workspace.tokens("corpus").path.glob("shard-*.parquet"))]
    pairs = [zip(t["input_id"].to_pylist(), t["document"].to_pylist(), strict=True) for t in tables]
    return sum(i == EOS and d >= 0 for pair in pairs for i, d in pair)


@pytest.mark.parametrize("parse", [False, True])
def test_ends_are_the_documents_and_those_that_were_asked_for(pipeline_of: Callable[..., Workspace], parse: bool) -> None:
    workspace = pipeline_of(marked(), STRUCK, parse, bos_token="<s>", unk_token="<unk>", pad_token="<pad>")
    prepare(workspace)
    counts = load_manifest(workspace.tokens("corpus"), "tokens").counts
    in_texts = len(STRUCK) if parse else 0
    assert (counts["documents"], counts["eos_in_texts"]) == (len(STRUCK), in_texts)
    assert ends_of(workspace) == counts["eos_tokens"] == len(STRUCK) + in_texts


def test_texts_that_become_ends_are_not_published(pipeline_of: Callable[..., Workspace], monkeypatch: pytest.MonkeyPatch) -> None:
    """Should the guard of names ever fail, the count does not."""
    monkeypatch.setattr(SpecialNames, "suspect", lambda *_: False)
    workspace = pipeline_of(marked(), STRUCK, bos_token="<s>")
    with pytest.raises(MismatchError, match=r"shard \d+ of .*t\.jsonl would hold \d+ end-of-sequence tokens for \d+ documents"):
        prepare(workspace)
    assert not list(workspace.tokens("corpus").path.glob("shard-*"))
    monkeypatch.setattr(make_shard, "refuse_other_ends", lambda *_: None)
    with pytest.raises(MismatchError, match=r"tokens/curated would hold 60 end-of-sequence tokens for 30 documents"):
        prepare(workspace)
    assert not exists(workspace.tokens("curated"))
    monkeypatch.setattr(token_sets, "refuse_other_ends", lambda *_: None)
    prepare(workspace)


def test_a_shard_made_before_ends_were_counted_is_taken(
    pipeline_of: Callable[..., Workspace], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_sets, "ENDS", ("not counted then",))
    workspace = pipeline_of(marked(), STRUCK[:3], bos_token="<s>")
    prepare(workspace)
    assert "eos_tokens" not in load_manifest(workspace.tokens("corpus"), "tokens").counts


def test_unknown_words_that_would_end_documents_are_refused(pipeline_of: Callable[..., Workspace]) -> None:
    backend = Tokenizer(models.WordLevel({"</s>": 0, "the": 1, "price": 2}, unk_token="</s>"))
    backend.pre_tokenizer = P.WhitespaceSplit()
    with pytest.raises(InputError, match=r"becomes the special token '</s>'"):
        prepare(pipeline_of(backend, ["the price", "the price is"], unk_token="</s>"))


def test_a_tokenizer_of_a_larger_vocabulary_than_the_models_is_refused_before_anything_is_encoded(
    pipeline_of: Callable[..., Workspace], tmp_path: Path
) -> None:
    workspace = pipeline_of(marked(), STRUCK[:2])
    LlamaConfig(vocab_size=20, hidden_size=8, num_attention_heads=2, num_hidden_layers=1).save_pretrained(tmp_path / "model")
    with pytest.raises(MismatchError, match=r"the tokenizer has \d+ entries, beyond the model's vocabulary of 20"):
        prepare(workspace)


def test_more_and_fewer_ends_are_both_refused() -> None:
    make_shard.refuse_other_ends("x", 5, 3, 2)
    for found in (4, 6):
        with pytest.raises(MismatchError, match="and 2 that stood in texts"):
            make_shard.refuse_other_ends("x", found, 3, 2)

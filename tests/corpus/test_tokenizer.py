"""The tokenizer: special names stay text, wrong ones are refused, the fingerprint follows what decides the ids."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer as Backend

from slmctl.corpus import long_texts as module
from slmctl.corpus.encoder import Encoder
from slmctl.corpus.tokenizer import Tokenizer, load_tokenizer
from slmctl.corpus.train_tokenizer import train_tokenizer, up_to_bytes
from slmctl.system.errors import InputError, MismatchError

TEXTS = ["the fox and the stone", "12 apples and 7 pears", "naïve 漢字 🦊", "", " \n\t"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(TEXTS * 5, 300, path)
    return path


@pytest.fixture(scope="module")
def tokenizer(directory: Path) -> Tokenizer:
    return load_tokenizer(str(directory))


def test_every_text_comes_back_from_its_ids(tokenizer: Tokenizer) -> None:
    texts = [*TEXTS, "never seen: Ωß\x00\u2028", "<|endoftext|>", "a<|endoftext|>b"]
    assert [tokenizer.hf.decode(ids) for ids in tokenizer.encode(texts)] == texts


def test_encode_equals_the_plain_backend_one_text_at_a_time(tokenizer: Tokenizer, directory: Path) -> None:
    backend = Backend.from_file(str(directory / "tokenizer.json"))
    want = [backend.encode(t, add_special_tokens=False).ids for t in TEXTS]
    assert [ids.tolist() for ids in tokenizer.encode(TEXTS)] == want


def test_a_special_tokens_name_is_text_unless_asked(tokenizer: Tokenizer) -> None:
    text = "a<|endoftext|>b"
    assert tokenizer.eos_id not in tokenizer.encode([text])[0]
    parsed = tokenizer.encode([text], parse_special_tokens=True)[0]
    assert (parsed == tokenizer.eos_id).sum() == 1
    assert tokenizer.eos_id not in tokenizer.encode([text])[0], "the setting outlived its call"


def test_a_long_text_is_not_truncated_by_the_tokenizers_own_settings(tokenizer: Tokenizer) -> None:
    tokenizer.backend.enable_truncation(4)
    tokenizer.backend.enable_padding(length=50)
    short, long = tokenizer.encode(["fox", "1 2 3 4 5 6 7 8"])
    assert len(short) < 50
    assert len(long) > 4


def test_a_tokenizer_without_eos_is_refused(directory: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    hf = PreTrainedTokenizerFast(tokenizer_file=str(directory / "tokenizer.json"))
    assert hf.eos_token_id is None
    with pytest.raises(InputError, match=r"no end-of-sequence token.*model\.tokenizer"):
        Tokenizer(hf, "x")


def test_a_folder_without_a_tokenizer_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot load a tokenizer") as e:
        load_tokenizer(str(tmp_path))
    assert "\n" not in str(e.value)


def test_ids_beyond_the_vocabulary_are_refused(tokenizer: Tokenizer) -> None:
    tokenizer.check_ids(np.array([0, 9]), 10)
    tokenizer.check_ids(np.array([], dtype=np.int64), 10)
    with pytest.raises(MismatchError, match=r"token id 10 .* beyond the model's vocabulary of 10"):
        tokenizer.check_ids(np.array([0, 10, 3]), 10)


def test_an_encoder_of_the_tokenizers_json_gives_the_same_ids(tokenizer: Tokenizer) -> None:
    """What other processes are given: the text of tokenizer.json and the end-of-sequence id."""
    encoder = Encoder.from_json(tokenizer.backend.to_str(), tokenizer.eos_id)
    texts = [*TEXTS, "a<|endoftext|>b"]
    for parse in (False, True):
        got, want = (e.encode(texts, parse_special_tokens=parse) for e in (encoder, tokenizer))
        assert [g.tolist() for g in got] == [w.tolist() for w in want]
    with pytest.raises(MismatchError, match=r"token id 10 .* beyond the model's vocabulary of 10"):
        encoder.check_ids(np.array([10]), 10)


LONG = "one fox, two stones\n" * 4


def batches_of_texts() -> list[list[str]]:
    return [["the fox", "a<|endoftext|>b"], [], [LONG], ["", "12", "apples " * 20], TEXTS, ["last"]]


@pytest.mark.parametrize("parse", [False, True])
def test_batches_come_in_order_with_the_ids_that_encode_gives(
    tokenizer: Tokenizer, parse: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WINDOW_CHARS", 30)
    assert len(LONG) > 30
    numbered = list(enumerate(batches_of_texts()))
    got = list(tokenizer.encode_batches(numbered, lambda batch: batch[1], parse))
    assert [batch for batch, _ in got] == numbered
    for (_, texts), ids in got:
        assert [i.tolist() for i in ids] == [tokenizer.encode([t], parse)[0].tolist() for t in texts]
        assert all(i.dtype == np.int64 for i in ids)
    assert not tokenizer.backend.encode_special_tokens, "the setting outlived its call"


def test_no_batches_make_none(tokenizer: Tokenizer) -> None:
    assert list(tokenizer.encode_batches([], lambda batch: batch)) == []


def test_the_next_batch_is_asked_for_before_one_is_used_and_no_more(tokenizer: Tokenizer) -> None:
    asked = []

    def batches() -> Iterator[list[str]]:
        for n in range(5):
            asked.append(n)
            yield [str(n)]

    for n, (batch, _) in enumerate(tokenizer.encode_batches(batches(), lambda batch: batch)):
        assert batch == [str(n)]
        assert asked == list(range(min(n + 2, 5)))


def test_an_error_among_the_batches_comes_through_and_leaves_the_tokenizer_usable(tokenizer: Tokenizer) -> None:
    def batches() -> Iterator[list[str]]:
        yield ["first"]
        yield ["second"]
        raise OSError("the file is gone")

    got = []
    with pytest.raises(OSError, match="the file is gone"):
        got.extend(b for b, _ in tokenizer.encode_batches(batches(), lambda batch: batch, parse_special_tokens=True))
    assert got == [["first"]]
    assert tokenizer.eos_id not in tokenizer.encode(["a<|endoftext|>b"])[0]


def test_a_batch_whose_texts_cannot_be_had_comes_through_too(tokenizer: Tokenizer) -> None:
    def texts_of(batch: int) -> list[str]:
        if batch == 2:
            raise ValueError("batch 2")
        return [str(batch)]

    with pytest.raises(ValueError, match="batch 2"):
        list(tokenizer.encode_batches(range(4), texts_of))
    assert tokenizer.encode(["12"])[0].tolist() == [tokenizer.backend.token_to_id(c) for c in "12"]


def test_who_stops_early_leaves_no_thread_and_no_setting_behind(tokenizer: Tokenizer) -> None:
    before = threading.active_count()
    source = (["a<|endoftext|>b"] for _ in range(100))
    found = tokenizer.encode_batches(source, lambda batch: batch, parse_special_tokens=True)
    _, [ids] = next(found)
    assert tokenizer.eos_id in ids
    found.close()
    assert threading.active_count() == before
    assert sum(1 for _ in source) == 98, "more than one batch ahead was read"
    assert tokenizer.eos_id not in tokenizer.encode(["a<|endoftext|>b"])[0]


def test_the_fingerprint_survives_saving_and_differs_by_training(tokenizer: Tokenizer, directory: Path, tmp_path: Path) -> None:
    assert load_tokenizer(str(directory)).fingerprint() == tokenizer.fingerprint()
    train_tokenizer(["other words altogether"] * 5, 300, tmp_path)
    assert load_tokenizer(str(tmp_path)).fingerprint() != tokenizer.fingerprint()


def test_the_fingerprint_is_not_changed_by_encoding(directory: Path) -> None:
    fresh = load_tokenizer(str(directory))
    before = fresh.fingerprint()
    fresh.encode(["a"], parse_special_tokens=True)
    assert fresh.fingerprint() == before


def test_the_fingerprint_knows_another_eos(directory: Path) -> None:
    other: Any = load_tokenizer(str(directory))
    before = other.fingerprint()
    other.eos_id += 1
    assert other.fingerprint() != before


def test_the_sample_ends_at_its_budget_and_never_within_a_character() -> None:
    assert list(up_to_bytes(iter(["abc", "defg", "h"]), 5)) == ["abc", "de"]
    assert list(up_to_bytes(iter(["漢字"]), 4)) == ["漢"]
    assert list(up_to_bytes(iter(["a", "b"]), 100)) == ["a", "b"]

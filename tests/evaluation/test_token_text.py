"""Texts of single tokens put together are the text, whether a tokenizer marks words by bytes or by a sign of its own."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from slmctl.comparison.token_text import token_texts

TEXT = "the sum of 12 and 30 is 42, and so it goes  on"


def test_byte_level(tokenizer):
    ids = tokenizer(TEXT)["input_ids"]
    texts = token_texts(tokenizer, ids)
    assert "".join(texts) == TEXT
    assert " sum" in texts, "no token begins a word: the test shows nothing"


def test_bytes_that_are_no_character(tokenizer):
    ids = tokenizer("né")["input_ids"]
    assert len(ids) == 3
    assert token_texts(tokenizer, ids) == ["n", "\ufffd", "\ufffd"]


def test_words_marked_as_sentencepiece_does():
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    raw.decoder = decoders.Metaspace()
    raw.train_from_iterator([TEXT] * 3, trainers.BpeTrainer(vocab_size=80, show_progress=False))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw)
    ids = tokenizer(TEXT)["input_ids"]
    assert tokenizer.decode([ids[1]])[:1] != " ", "a token alone keeps its space: the test shows nothing"
    assert "".join(token_texts(tokenizer, ids)) == " " + TEXT
    assert "".join(token_texts(tokenizer, ids[1:])) == " " + TEXT.partition(" ")[2]

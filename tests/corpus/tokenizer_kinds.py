"""Tokenizers of many kinds, tiny, trained on the same few words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tokenizers import Regex, Tokenizer, models, trainers
from tokenizers import normalizers as N  # noqa: N812
from tokenizers import pre_tokenizers as P  # noqa: N812

SPECIAL = ["<unk>", "<s>", "</s>", "<pad>"]
WORDS = "def return count the seven stones 12 total 4 apples 2024 don't naïve 漢字 we'll ### --- x=1".split()
LINES = [" ".join(WORDS[(i * 7 + k * k) % len(WORDS)] for k in range(2 + i % 7)) for i in range(120)]
TEXTS = [*LINES, "    return 12 # apple\n", "\n\n\tcount  the\r\n", "aaaaaaaa aaaa", "< s > / p a d u n k strike e x"]
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
FROM_THE_RIGHT = r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))|[^\p{N}]+"
QUOTED = r'(?m)"[^"]*"|.'


def bpe(pre: Any = None, normalizer: Any = None, **options: Any) -> Tokenizer:
    made = Tokenizer(models.BPE(unk_token="<unk>", **options))
    made.pre_tokenizer = pre
    if normalizer is not None:
        made.normalizer = normalizer
    alphabet = P.ByteLevel.alphabet() if pre is not None and "ByteLevel" in str(pre) else []
    made.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=500, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False)
    )
    return made


def unigram(pre: Any = None, normalizer: Any = None) -> Tokenizer:
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = P.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=200, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)
    made.train_from_iterator(TEXTS, trainer)
    made.pre_tokenizer = pre
    if normalizer is not None:
        made.normalizer = normalizer
    return made


def word_level(pre: Any) -> Tokenizer:
    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate([*SPECIAL, *dict.fromkeys(WORDS)])}, unk_token="<unk>"))
    made.pre_tokenizer = pre
    return made


def word_piece(pre: Any) -> Tokenizer:
    made = Tokenizer(models.WordPiece(unk_token="<unk>"))
    made.pre_tokenizer = pre
    made.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=300, special_tokens=SPECIAL, show_progress=False))
    return made


def split_then_bytes(pattern: str) -> Any:
    return P.Sequence([P.Split(Regex(pattern), "isolated"), P.ByteLevel(add_prefix_space=False, use_regex=False)])


def as_llama2() -> Tokenizer:
    return bpe(None, N.Sequence([N.Prepend("▁"), N.Replace(" ", "▁")]))


def quoted() -> Tokenizer:
    """Merges across words, which are only used within quotation marks."""
    made = bpe(split_then_bytes(r"[^\n]+|\n"))
    made.pre_tokenizer = split_then_bytes(QUOTED)
    return made


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "gpt2": lambda: bpe(P.ByteLevel(add_prefix_space=False)),
    "gpt2, space before": lambda: bpe(P.ByteLevel(add_prefix_space=True)),
    "digits, gpt2": lambda: bpe(P.Sequence([P.Digits(individual_digits=True), P.ByteLevel(add_prefix_space=False)])),
    "llama3": lambda: bpe(split_then_bytes(LLAMA3), ignore_merges=True),
    "qwen2": lambda: bpe(split_then_bytes(LLAMA3.replace("{1,3}", "")), N.NFC()),
    "digits from the right": lambda: bpe(split_then_bytes(FROM_THE_RIGHT)),
    "quoted": quoted,
    "llama2, no words": as_llama2,
    "metaspace first, no words": lambda: bpe(P.Metaspace(prepend_scheme="first", split=False)),
    "metaspace always": lambda: bpe(P.Metaspace(prepend_scheme="always")),
    "strip": lambda: bpe(P.ByteLevel(add_prefix_space=False), N.Strip()),
    "runs of spaces replaced": lambda: bpe(None, N.Sequence([N.NFKC(), N.Replace(Regex(" {2,}"), "▁")])),
    "unigram": lambda: unigram(P.Metaspace()),
    "unigram, no words": lambda: unigram(None, N.Sequence([N.Prepend("▁"), N.Replace(" ", "▁")])),
    "word level": lambda: word_level(P.WhitespaceSplit()),
    "word piece": lambda: word_piece(P.BertPreTokenizer()),
    "word piece, words by spaces": lambda: word_piece(P.WhitespaceSplit()),
    "lengths": lambda: bpe(P.FixedLength(5)),
}

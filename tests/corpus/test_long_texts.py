"""Long texts: the ids that one encoding gives, whatever the tokenizer; windows where they agree, else the text at once."""

from __future__ import annotations

import random

import pytest
from tokenizer_kinds import KINDS, LINES, TEXTS, bpe, split_then_bytes
from tokenizers import Tokenizer

from slmctl.corpus import long_texts
from slmctl.corpus.encoder import Encoder
from slmctl.corpus.long_texts import Windows, is_local


def long_text(rng: random.Random, kind: int) -> str:
    lines = "".join(rng.choice(TEXTS) + rng.choice([" ", "\n", "  ", "\r\n", "\n\n", ""]) for _ in range(rng.randint(20, 120)))
    at = rng.randrange(len(lines))
    run = rng.choice([" ", "\n", "a", "7", "é", "\u0301", " \n", "==", "漢"]) * rng.randint(20, 700)
    return [
        lines,
        lines[:at] + run + lines[at:],
        "a" * rng.randint(401, 3000),
        " " * rng.randint(401, 3000),
        "".join(rng.choice("0123456789") for _ in range(rng.randint(401, 2500))),
        "ab" * rng.randint(201, 1500) + "a" * rng.randint(0, 1),
        '"'.join("".join(rng.choice(LINES) for _ in range(rng.randint(1, 40))) for _ in range(5)),
        "".join(rng.choice("ab \n12é漢😀'.") for _ in range(rng.randint(401, 2500))),
        " " * rng.randint(0, 50) + "    return 12 # apple\n" * 60 + " " * rng.randint(0, 9),
    ][kind]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_texts, "WINDOW_CHARS", 400)
    monkeypatch.setattr(long_texts, "MARGIN_CHARS", 60)
    monkeypatch.setattr(long_texts, "ENOUGH_TOKENS", 6)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("kind", KINDS)
def test_a_long_text_has_the_ids_of_one_encoding(kind: str) -> None:
    backend = KINDS[kind]()
    encoder = Encoder(Tokenizer.from_str(backend.to_str()), 2)
    rng = random.Random(kind)
    texts = [long_text(rng, i % 9) for i in range(27)]
    backend.encode_special_tokens = True
    want = [backend.encode(t, add_special_tokens=False).ids for t in texts]
    assert [ids.tolist() for ids in encoder.encode(texts)] == want


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("kind", ["gpt2", "llama3", "qwen2", "llama2, no words", "metaspace always", "unigram", "word piece"])
def test_ordinary_long_texts_are_encoded_in_windows(kind: str) -> None:
    backend = KINDS[kind]()
    asked = []

    class Watched:
        def encode(self, text: str, **options: bool) -> object:
            asked.append(len(text))
            return backend.encode(text, **options)

    text = "\n".join(LINES)
    assert Windows(backend.to_str()).encode(Watched(), text) == backend.encode(text, add_special_tokens=False).ids
    assert max(asked) <= 400 < len(text)


@pytest.mark.usefixtures("small")
def test_windows_that_only_seem_to_agree_are_not_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    """Quoted text is one word however long: a window that does not see its end cuts it, and so does the next."""
    backend = KINDS["quoted"]()
    text = 'a "' + "the seven stones " * 100 + '" b'
    assert Windows(backend.to_str()).encode(backend, text) is None
    monkeypatch.setattr(long_texts, "is_local", lambda _: True)
    assert Windows(backend.to_str()).encode(backend, text) != backend.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize(
    ("pattern", "local"),
    [
        (r"'s|'t| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+", True),
        (r"▁*[^▁]+|▁+", True),
        (r"\p{N}{1,3}", True),
        (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}]*[\p{Ll}\p{M}]+(?i:'s|'t)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+", True),
        (r"\S+\s", False),
        (r"\S+", True),
        (r"<[^>]*>|\w+", False),
        (r"[^\n]*\n", False),
        (r".*x|y", False),
        (r"\.+|a", True),
        (r"(a)\1", False),
        (r"(?<=a)b+", False),
        (r"\P{L}+\p{L}", False),
        (r"(?:[^a]+b)?c", False),
    ],
)
def test_a_rule_that_may_look_ahead_over_anything_is_not_local(pattern: str, local: bool) -> None:
    assert is_local(bpe(split_then_bytes(r"\p{L}+")).to_str().replace(r"\\p{L}+", pattern.replace("\\", "\\\\"))) == local


def test_truncation_and_padding_of_the_file_do_not_reach_long_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = KINDS["gpt2"]()
    text = "\n".join(LINES)
    want = backend.encode(text, add_special_tokens=False).ids
    backend.enable_truncation(8)
    backend.enable_padding(length=50)
    monkeypatch.setattr(long_texts, "WINDOW_CHARS", 400)
    monkeypatch.setattr(long_texts, "MARGIN_CHARS", 60)
    assert Encoder(backend, 2).encode([text])[0].tolist() == want

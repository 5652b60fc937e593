"""Kinds of token by example, and counts against plain loops."""

from __future__ import annotations

import string
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmctl.comparison.token_kinds import KINDS, by_frequency, by_kind, by_position, kind_of

EXAMPLES = {
    "words": [" the", " Word", "\nThe", "▁the", " don't", " über", " дом", " co-", " नमस्ते", "\tx"],
    "word pieces": ["ing", "The", "'s", "’ll", "ß", "数学", "e", "-like"],
    "digits": ["7", " 2024", "3.14", "1,000", "50%", "-5", "$5", "½", "²", "٣"],
    "punctuation": [".", ",", " ...", "=", "$", "(", ")", '"', "—", " +", "'", "-", "##", "_", "^", "&", "❤️"],
    "markup": [
        "<",
        "</",
        "<p>",
        "}",
        " {",
        "[",
        "]]",
        "\\",
        "\\frac",
        "}{",
        "=\\",
        "&nbsp;",
        "&amp",
        "&#",
        "&#39;",
        "[1]",
        "()}",
    ],
    "whitespace": [" ", "    ", "\n", "\n\n", "\t", "▁", "\u00a0"],
    "other": ["", "\ufffd", " \ufffd", "x2", "3rd", ".com", "http://", "R&D", "\x00", "a_b"],
}


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, texts in EXAMPLES.items() for text in texts])
def test_kinds_by_example(kind, text):
    assert kind_of(text) == kind


@given(st.text(max_size=8))
@settings(max_examples=200, deadline=None)
def test_every_text_has_a_kind(text):
    assert kind_of(text) in KINDS


@given(st.text(string.ascii_letters + string.digits + string.punctuation + " \n", min_size=1, max_size=5))
@settings(max_examples=300, deadline=None)
def test_kinds_of_ascii_against_plain_rules(text):
    core = text.strip()
    rules = {
        "whitespace": not core,
        "markup": any(c in core for c in "{}[]<>\\")
        or (core[:1] == "&" and len(core) > 1 and (core[1] == "#" and core[2:].rstrip(";").replace("_", "").isalnum()))
        or (core[:1] == "&" and (core in ("&#", "&#;") or core[1:].removesuffix(";").isalpha())),
        "digits": any(c in string.digits for c in core) and not any(c in string.ascii_letters for c in core),
        "words": all(c in string.ascii_letters + "'-" for c in core) and any(c.isalpha() for c in core) and text[0].isspace(),
        "word pieces": all(c in string.ascii_letters + "'-" for c in core) and any(c.isalpha() for c in core),
        "punctuation": all(c in string.punctuation for c in core),
        "other": True,
    }
    wanted = next(kind for kind, fits in rules.items() if fits)
    if core[:2] != "&#":  # of which some tails are odd: the examples have those that matter
        assert kind_of(text) == wanted


def counts(seed: int, vocabulary: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    seen = rng.zipf(1.3, vocabulary).clip(max=10_000) - 1
    return seen, rng.binomial(seen, 0.6)


def test_counts_by_kind():
    texts = [text for some in EXAMPLES.values() for text in some]
    seen, selected = counts(0, len(texts))
    wanted: dict[str, Counter[str]] = {"seen": Counter(), "selected": Counter()}
    for text, a, b in zip(texts, seen, selected, strict=True):
        wanted["seen"][kind_of(text)] += int(a)
        wanted["selected"][kind_of(text)] += int(b)
    found = by_kind(texts, seen, selected)
    assert [f["label"] for f in found] == [k for k in KINDS if wanted["seen"][k]]
    for f in found:
        assert (f["seen"], f["selected"]) == (wanted["seen"][f["label"]], wanted["selected"][f["label"]])


def test_kinds_that_were_not_seen_are_left_out():
    assert by_kind([" a", "b", "1"], [0, 5, 2], [0, 5, 0]) == [
        {"label": "word pieces", "seen": 5, "selected": 5},
        {"label": "digits", "seen": 2, "selected": 0},
    ]


@pytest.mark.parametrize("vocabulary", [3, 10, 11, 100, 257, 1000, 2500])
def test_counts_by_frequency(vocabulary):
    seen, selected = counts(vocabulary, vocabulary)
    order = sorted(range(vocabulary), key=lambda v: (-seen[v], v))
    wanted = []
    for label, low, high in [
        ("10 most frequent ids", 0, 10),
        ("11–100", 10, 100),
        ("101–1,000", 100, 1000),
        ("1,001–10,000", 1000, 10_000),
    ]:
        ids = order[low:high]
        if sum(seen[ids]):
            wanted.append({"label": label, "seen": int(sum(seen[ids])), "selected": int(sum(selected[ids]))})
    found = by_frequency(seen, selected)
    assert found == wanted
    assert sum(f["seen"] for f in found) == seen.sum()


@pytest.mark.parametrize(
    ("seq_len", "labels"),
    [
        (1, ["0"]),
        (2, ["0", "1"]),
        (3, ["0", "1", "2"]),
        (8, ["0", "1", "2–3", "4–7"]),
        (9, ["0", "1", "2–3", "4–7", "8"]),
        (11, ["0", "1", "2–3", "4–7", "8–10"]),
    ],
)
def test_counts_by_position(seq_len, labels):
    rng = np.random.default_rng(seq_len)
    position = np.tile(np.arange(seq_len), 50)
    valid, selected = rng.random(len(position)) < 0.9, rng.random(len(position)) < 0.5
    found = by_position(position, valid, selected, seq_len)
    assert [f["label"] for f in found] == labels
    for f in found:
        ends = [int(end) for end in f["label"].split("–")]
        inside = [ends[0] <= p <= ends[-1] and v for p, v in zip(position, valid, strict=True)]
        assert f["seen"] == sum(inside)
        assert f["selected"] == sum(i and s for i, s in zip(inside, selected, strict=True))


def test_the_first_token_of_a_row_is_never_predicted_and_has_no_bin():
    valid = np.arange(8) > 0
    assert [f["label"] for f in by_position(np.arange(8), valid, valid, 8)] == ["1", "2–3", "4–7"]
    assert by_position([], [], [], 8) == []


def test_counts_that_do_not_belong_together_are_refused():
    with pytest.raises(ValueError, match="token texts"):
        by_kind(["a"], [1, 2], [1, 1])
    with pytest.raises(ValueError, match="selected than were seen"):
        by_frequency([1, 2], [2, 1])
    with pytest.raises(ValueError, match="positions from 0 to 9"):
        by_position([0, 9], [True, True], [True, False], 8)

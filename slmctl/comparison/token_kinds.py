"""Which kinds of token an arm trained on: by what they look like, how frequent they are, where in the row they stand.

Shapes: V ids of the vocabulary, N tokens. Counts are of tokens that the arm saw (may be selected) and of those it selected.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

KINDS = ("words", "word pieces", "digits", "punctuation", "markup", "whitespace", "other")
_MARKUP = re.compile(r"[{}\[\]<>\\]|^&(#\w*|[a-zA-Z]+);?$")
_INNER = "'’-"
"""What a word may have inside it or before it: don't, 's, co-."""


def kind_of(text: str) -> str:
    """What a token's text looks like, one of `KINDS`. The first rule that fits decides:

    - whitespace: spaces, tabs and line ends alone.
    - other: no text at all (give special tokens none), or bytes that are no whole character (U+FFFD).
    - markup: holds a brace, a bracket, an angle bracket or a backslash (tags, LaTeX commands, code), or is an HTML entity or
      the beginning of one (`&nbsp;`, `&amp`, `&#`). Parentheses are punctuation.
    - digits: a digit or another numeral of Unicode's, and no letter: `7`, `3.14`, `1,000`, `50%`, `½`.
    - words: letters (with their marks, and `'`, `’` or `-` among them) after a space or line end, which is how tokenizers
      mark that a word begins; `▁` counts as a space.
    - word pieces: the same without one: the rest of a word, the first word of a text, and scripts without spaces.
    - punctuation: punctuation marks and symbols alone, `=` and `$` as well as `.`
    - other: what is left, such as letters mixed with digits or punctuation (`x2`, `.com`) and control characters.
    """
    text = text.replace("▁", " ")
    core = text.strip()
    if not core:
        return "whitespace" if text else "other"
    if "\ufffd" in core:
        return "other"
    if _MARKUP.search(core):
        return "markup"
    classes = {unicodedata.category(c)[0] for c in core}
    if "N" in classes and "L" not in classes:
        return "digits"
    if "L" in classes and {unicodedata.category(c)[0] for c in core if c not in _INNER} <= {"L", "M"}:
        return "words" if text[0].isspace() else "word pieces"
    return "punctuation" if classes <= {"P", "S", "M"} else "other"


def by_kind(token_texts: list[str], seen_V: ArrayLike, selected_V: ArrayLike) -> list[dict[str, Any]]:
    """[{label, seen, selected}] for each of `KINDS` that was seen. Raises `ValueError` for another number of texts."""
    seen_V, selected_V = _counts(seen_V, selected_V)
    if len(token_texts) != len(seen_V):
        raise ValueError(f"{len(token_texts)} token texts for counts of {len(seen_V)} ids")
    kind_V = np.array([KINDS.index(kind_of(text)) for text in token_texts], np.int64)
    return _binned(kind_V, KINDS, seen_V, selected_V)


def by_frequency(seen_V: ArrayLike, selected_V: ArrayLike) -> list[dict[str, Any]]:
    """[{label, seen, selected}] of ids ranked by how often they were seen (ties: the lower id first), in decades of rank."""
    seen_V, selected_V = _counts(seen_V, selected_V)
    rank_V = np.empty(len(seen_V), np.int64)
    rank_V[np.argsort(-seen_V, kind="stable")] = np.arange(len(seen_V))
    ends = [10**power for power in range(1, len(str(len(seen_V))) + 1)]  # the last is above the number of ids
    labels = ["10 most frequent ids", *(f"{low + 1:,}–{low * 10:,}" for low in ends[:-1])]
    return _binned(np.searchsorted(ends, rank_V, side="right"), labels, seen_V, selected_V)


def by_position(position_N: ArrayLike, valid_N: ArrayLike, selected_N: ArrayLike, seq_len: int) -> list[dict[str, Any]]:
    """[{label, seen, selected}] of valid tokens by position in their row, in bins from a power of two to the next: 0, 1, 2–3,
    4–7, … Raises `ValueError` for a position that no row of `seq_len` tokens has."""
    valid_N, selected_N = np.asarray(valid_N, bool), np.asarray(selected_N, bool)
    position_K = np.asarray(position_N, np.int64)[valid_N]
    if len(position_K) and not 0 <= position_K.min() <= position_K.max() < seq_len:
        raise ValueError(f"positions from {position_K.min()} to {position_K.max()} in rows of {seq_len} tokens")
    starts = [0, *(2**power for power in range((seq_len - 1).bit_length()))]
    last = [*(start - 1 for start in starts[1:]), seq_len - 1]
    labels = [f"{low:,}" if low == high else f"{low:,}–{high:,}" for low, high in zip(starts, last, strict=True)]
    bin_K = np.searchsorted(starts, position_K, side="right") - 1
    return _binned(bin_K, labels, np.ones(len(bin_K), np.int64), selected_N[valid_N].astype(np.int64))


def _counts(seen_V: ArrayLike, selected_V: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    seen, selected = np.asarray(seen_V, np.int64), np.asarray(selected_V, np.int64)
    if seen.shape != selected.shape or (selected > seen).any():
        raise ValueError("of each id no more tokens can be selected than were seen; the two counts are of other things")
    return seen, selected


def _binned(
    bin_N: NDArray[np.int64], labels: tuple[str, ...] | list[str], seen_N: NDArray[np.int64], selected_N: NDArray[np.int64]
) -> list[dict[str, Any]]:
    """Sums a bin, in the order of their labels; bins in which nothing was seen are left out."""
    seen, selected = (np.zeros(len(labels), np.int64) for _ in range(2))
    np.add.at(seen, bin_N, seen_N)
    np.add.at(selected, bin_N, selected_N)
    return [{"label": x, "seen": int(a), "selected": int(b)} for x, a, b in zip(labels, seen, selected, strict=True) if a]

"""Texts too long to encode at once in little memory, window by window: the ids are those of one encoding, or none are given.

Windows overlap. Two are joined in the middle of what they share, and only where all tokens for thousands of characters around
agree, in place and id. Why that is enough:

- A pre-tokenizer cuts a text from left to right, so from a cut that two windows share they cut alike, but for what they see of
  their ends. What a rule sees ahead is a run of some kind of character; a run that reaches over the whole margin leaves no cut
  in it to join at. Rules that may look ahead over anything (`is_local`) are not encoded in windows at all.
- Without a pre-tokenizer the text is one word. BPE's merges within two neighbouring tokens depend on these tokens' characters
  alone, and no merge crossed the border between them in either window; so none does in the whole text. Unigram's best path
  depends on all of a word, so it is joined between words only.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from typing import Any

import numpy as np

WINDOW_CHARS = 2**20
"""Characters encoded at once: an encoding takes about a hundred bytes a character while it is made."""
MARGIN_CHARS = 2**13
"""On each side of a join both windows see so much."""
ENOUGH_TOKENS = 16
"""Tokens that must agree around a join."""
TRIES = 4
"""Places at the end of a window where a join is tried."""

_LOCAL_NORMALIZERS = {
    *("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Prepend", "Strip", "StripAccents", "Nmt", "Precompiled"),
    *("BertNormalizer", "ByteLevel"),
}
_LOCAL_PRE_TOKENIZERS = {
    *("ByteLevel", "Metaspace", "Whitespace", "WhitespaceSplit", "Digits", "Punctuation", "BertPreTokenizer"),
    *("CharDelimiterSplit", "UnicodeScripts"),
}
_CLASS = r"\[(?:\\.|[^\\\]])*\]"
_WIDE = re.compile(r"(?:\[\^(?:\\.|[^\\\]])*\]|\\[SDWP](?:\{[^}]*\})?)(?:[*+]|\{\d+,\})")
"""What may run over nearly anything."""
_OPTIONAL_REST = re.compile(rf"[?+]?(?:(?:{_CLASS}|\\.|[^\\\[\]().?*+|{{}}])[*?])*(?:[|)]|$)")
"""What may follow it without being looked for ahead: nothing that must be there."""


class Windows:
    """How a tokenizer, given as JSON, may be used on long texts."""

    def __init__(self, backend_json: str) -> None:
        self.local = is_local(backend_json)
        parts = json.loads(backend_json)
        cutter = parts["pre_tokenizer"]
        uncut = cutter is None or (cutter["type"] == "Metaspace" and not cutter.get("split", True))
        self.whole_words = not (uncut and parts["model"]["type"] == "BPE")

    def encode(self, backend: Any, text: str) -> list[int] | None:
        """Ids of a text by `backend`; None where it has to be encoded at once."""
        if not self.local:
            return None
        return encode_long(lambda part: backend.encode(part, add_special_tokens=False), text, self.whole_words)


def is_local(backend_json: str) -> bool:
    """Whether a cut of this tokenizer depends on no more than the runs of characters around it."""
    parts = json.loads(backend_json)
    normalizers, cutters = _steps(parts["normalizer"], "normalizers"), _steps(parts["pre_tokenizer"], "pretokenizers")
    return all(s["type"] in _LOCAL_NORMALIZERS or (s["type"] == "Replace" and _local_pattern(s)) for s in normalizers) and all(
        s["type"] in _LOCAL_PRE_TOKENIZERS or (s["type"] == "Split" and _local_pattern(s)) for s in cutters
    )


def _steps(part: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    if part is None:
        return []
    return [s for step in part[key] for s in _steps(step, key)] if part["type"] == "Sequence" else [part]


def _local_pattern(step: dict[str, Any]) -> bool:
    """Whether what a pattern matches is decided by a run of characters. Judged for the worse where it is not plain."""
    pattern = step["pattern"].get("Regex")
    if pattern is None:
        return True
    bare = re.sub(_CLASS, "x", re.sub(r"\\[pP]\{[^}]*\}", "x", pattern))
    if re.search(r"\(\?<|\\[1-9kgGKXRO]|(?<!\\)(?:\\\\)*\.|\(\?[a-zA-Z-]*[msx]|&&", bare) or "&&" in pattern:
        return False
    return all(_OPTIONAL_REST.match(pattern, found.end()) for found in _WIDE.finditer(pattern))


def encode_long(encode: Callable[[str], Any], text: str, whole_words: bool) -> list[int] | None:
    """Ids of `text`, or None where windows do not agree and it has to be encoded whole. `encode` gives an encoding with offsets
    and words; with `whole_words` joins lie between words."""
    ids: list[np.ndarray] = []
    at = 0
    window = _Window(encode, text, 0)
    while window.end < len(text):
        found = _next(encode, text, window, whole_words)
        if found is None:
            return None
        following, upto, start = found
        ids.append(window.ids[at:upto])
        window, at = following, start
    ids.append(window.ids[at:])
    joined: list[int] = np.concatenate(ids).tolist()
    return joined


class _Window:
    """A part of the text, encoded. Places of tokens are asked for where windows meet alone: all of them take longer to list, and
    more memory, than the encoding."""

    def __init__(self, encode: Callable[[str], Any], text: str, start: int) -> None:
        self.start, self.end = start, min(len(text), start + WINDOW_CHARS)
        self._found = encode(text[self.start : self.end])
        self.ids = np.array(self._found.ids, dtype=np.int64)

    def _place(self, token: int) -> tuple[int, int]:
        first, last = self._found.token_to_chars(token)
        return self.start + first, self.start + last

    def within(self, low: int, high: int) -> range:
        """The tokens that lie wholly between two places of the text."""
        tokens = range(len(self.ids))
        start = bisect_left(tokens, low, key=lambda i: self._place(i)[0])
        return range(start, max(start, bisect_right(tokens, high, key=lambda i: self._place(i)[1])))

    def places(self, tokens: range) -> list[tuple[int, int, int]]:
        """Start and end in the text, and id, of some tokens."""
        return [(*self._place(i), int(self.ids[i])) for i in tokens]

    def words(self, tokens: range) -> np.ndarray:
        """The number within the window of each token's word."""
        found = [self._found.token_to_word(i) for i in tokens]
        return np.array([-1 if w is None else w for w in found], dtype=np.int64)


def _next(encode: Callable[[str], Any], text: str, window: _Window, whole_words: bool) -> tuple[_Window, int, int] | None:
    """The window after this one, how many of this one's tokens come before the join, and how many of the next one's."""
    step = max(1, (WINDOW_CHARS - 4 * MARGIN_CHARS) // TRIES)
    for centre in range(window.end - MARGIN_CHARS, window.start + 2 * MARGIN_CHARS, -step):
        low, high = centre - MARGIN_CHARS // 2, centre + MARGIN_CHARS // 2
        ours = window.within(low, high)
        words = window.words(ours)
        if words.size < ENOUGH_TOKENS or (whole_words and words[0] == words[-1]):
            continue  # no place to join at, whatever the next window makes of it
        following = _Window(encode, text, centre - MARGIN_CHARS)
        theirs = following.within(low, high)
        place = _join(window, ours, following, theirs, whole_words)
        if place is not None:
            return following, ours.start + place, theirs.start + place
    return None


def _join(left: _Window, ours: range, right: _Window, theirs: range, whole_words: bool) -> int | None:
    """The place in the middle of the tokens that two windows share where one may end and the other go on."""
    n = len(ours)
    if n < ENOUGH_TOKENS or n != len(theirs) or left.places(ours) != right.places(theirs):
        return None
    border = np.ones(n - 1, dtype=bool)
    if whole_words:
        for words in (left.words(ours), right.words(theirs)):
            border &= words[1:] != words[:-1]
    places = np.flatnonzero(border) + 1
    # the outermost words may reach beyond what was compared
    places = places[(places > places[0]) & (places < places[-1])] if places.size else places
    return int(places[np.argmin(np.abs(places - n // 2))]) if places.size else None

"""Texts as hashes: of every run of 13 words, and of a whole text, whatever its white space, case and punctuation.

All of a batch at once, since `prepare` does it to every byte that it tokenises: a table gives each character a code (0 for
what only separates words), a word's hash is a polynomial in the codes of its characters, and a run's is one in the hashes
of its words. Both come from sums over the batch, divided by the power that each begins with: odd numbers have an inverse
modulo 2^64.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

RULE = 1
"""Version of what counts as a word, and of the hashes: what was matched under another is matched again."""
RUN = 13
"""Words of a run: GPT-3's choice (arXiv 2005.14165, appendix C), and lm-evaluation-harness's. Shorter ones are common in
texts that have nothing to do with each other."""

_SOLO, _COMPLEX, _DROP, _UNKNOWN = (np.uint32(1 << n) for n in (24, 25, 26, 27))
_AS_IT_IS = ~_COMPLEX
_UNSPACED = (
    *((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x1950, 0x19DF), (0x1A20, 0x1AAF), (0x3005, 0x3007)),
    *((0x3021, 0x3029), (0x3040, 0x30FF), (0x31F0, 0x31FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xA9E0, 0xA9FE)),
    *((0xAA60, 0xAA7F), (0xF900, 0xFAFF), (0x1AFF0, 0x1B16F), (0x20000, 0x323AF)),
)
"""Blocks of scripts that are written without spaces: Thai, Lao, Burmese, Khmer, Tai, kana and Chinese characters."""
_PIECE = 2**15
"""Characters whose sums are made at once, so that they stay in a core's cache."""


def normal_form(text: str) -> str:
    """One of all spellings of a text that differ in case, in how Unicode composes its characters, or in its fonts."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


def is_part_of_word(char: str) -> bool:
    """Letters and digits, and the marks on them."""
    return char.isalnum() or (unicodedata.category(char)[0] == "M" and not is_dropped(char))


def is_dropped(char: str) -> bool:
    """What is not to be seen within a word, such as a soft hyphen, and what only chooses how a character looks."""
    invisible = unicodedata.category(char) == "Cf" and char != "\u200b"
    return invisible or 0xFE00 <= ord(char) <= 0xFE0F or 0xE0100 <= ord(char) <= 0xE01EF


def is_word_alone(char: str) -> bool:
    """A character of a script without spaces between words."""
    return any(first <= ord(char) <= last for first, last in _UNSPACED)


@dataclass(frozen=True)
class Hashed:
    """A batch of D documents with W words in all."""

    words_D: np.ndarray
    """Words of each document."""
    run_W: np.ndarray
    """Hash of the run that begins with each word (uint64); of those that would leave their document, or the batch, of no use."""
    text_D: np.ndarray
    """Hash of each whole document (uint64)."""

    def first(self) -> np.ndarray:
        """The first word of each document."""
        before_D: np.ndarray = np.cumsum(self.words_D) - self.words_D
        return before_D

    def document_of(self, words: np.ndarray) -> np.ndarray:
        """The document that each word is of."""
        return np.searchsorted(np.cumsum(self.words_D), words, side="right")

    def whole(self, words: np.ndarray) -> np.ndarray:
        """Of these words, those that a run within one document begins with."""
        ends_D = np.cumsum(self.words_D)
        within: np.ndarray = words[words + RUN <= ends_D[self.document_of(words)]]
        return within


def hash_texts(texts: list[str]) -> Hashed:
    """The hashes of each text's words."""
    code_N, start_D = _codes(texts)
    hash_W, at_W = _word_hashes(code_N)
    first_D = np.searchsorted(at_W, np.append(start_D, len(code_N)))
    words_D = np.diff(first_D)
    power_W, inverse_W = _RUNS.up_to(len(hash_W))
    sum_W = np.zeros(len(hash_W) + 1, dtype=np.uint64)
    np.cumsum(hash_W * power_W, out=sum_W[1:])
    run_W = np.zeros(len(hash_W), dtype=np.uint64)
    if len(hash_W) >= RUN:
        run_W[: 1 - RUN] = (sum_W[RUN:] - sum_W[:-RUN]) * inverse_W[: 1 - RUN]
    begins_D = np.minimum(first_D[:-1], max(0, len(hash_W) - 1))
    text_D = (sum_W[first_D[1:]] - sum_W[first_D[:-1]]) * (inverse_W[begins_D] if len(hash_W) else np.uint64(0))
    return Hashed(words_D, run_W, _mixed(text_D + words_D.astype(np.uint64)))


class _Powers:
    """Powers of an odd number and of its inverse, modulo 2^64."""

    def __init__(self, base: int) -> None:
        self.base, self.inverse = base, pow(base, -1, 2**64)
        self._tables = (np.zeros(0, dtype=np.uint64),) * 2

    def up_to(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        if len(self._tables[0]) < n:
            self._tables = (_powers(self.base, max(n, _PIECE)), _powers(self.inverse, max(n, _PIECE)))
        return self._tables[0][:n], self._tables[1][:n]


def _powers(base: int, n: int) -> np.ndarray:
    steps = np.full(n, base, dtype=np.uint64)
    steps[0] = 1
    return np.cumprod(steps, dtype=np.uint64)


_CHARACTERS, _RUNS = _Powers(0x9E3779B97F4A7C15), _Powers(0xD1342543DE82EF95)


def _mixed(hash_X: np.ndarray) -> np.ndarray:
    """Takes from sums what is linear in them."""
    hash_X = hash_X ^ (hash_X >> np.uint64(32))
    hash_X *= np.uint64(0xD6E8FEB86659FD93)
    hash_X ^= hash_X >> np.uint64(32)
    return hash_X


def _word_hashes(code_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The hash of each word and where it begins, in pieces that end between words."""
    cuts = [0]
    while len(code_N) - cuts[-1] > _PIECE:
        cuts.append(_between_words(code_N, cuts[-1] + _PIECE))
    found = [_hashes_of_piece(code_N[a:b], a) for a, b in pairwise([*cuts, len(code_N)]) if b > a]
    if not found:
        return np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.int64)
    return np.concatenate([h for h, _ in found]), np.concatenate([at for _, at in found])


def _between_words(code_N: np.ndarray, at: int) -> int:
    """The next place from `at` on where no word is cut."""
    step = 256
    while at < len(code_N):
        gaps = np.flatnonzero(code_N[at : at + step] == 0)
        if len(gaps):
            return at + int(gaps[0])
        at, step = at + step, 2 * step
    return len(code_N)


def _hashes_of_piece(code_N: np.ndarray, offset: int) -> tuple[np.ndarray, np.ndarray]:
    within_N = code_N != 0
    begins_N = within_N.copy()
    begins_N[1:] &= ~within_N[:-1]
    if code_N.dtype != np.uint8 and int(code_N.max()) >= _SOLO:
        solo_N = code_N >= _SOLO
        begins_N |= solo_N
        begins_N[1:] |= within_N[1:] & solo_N[:-1]
    at_W = np.flatnonzero(begins_N)
    if not len(at_W):
        return np.zeros(0, dtype=np.uint64), at_W
    power_N, inverse_N = _CHARACTERS.up_to(len(code_N))
    hash_W = np.add.reduceat(code_N * power_N, at_W)  # what follows a word is 0, or begins the next
    return _mixed(hash_W * inverse_N[at_W]), at_W + offset


# --- characters ---

_code_of = np.full(0x110000, _UNKNOWN, dtype=np.uint32)
"""By character: the code of its normal form; filled with those that are met."""
_ASCII = bytes(ord(c.lower()) if c.isalnum() else 0 for c in map(chr, range(128))) + bytes(128)


def _codes(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Codes of all characters of the texts in their normal form, with a 0 after each text; and where each text begins."""
    joined = "\n".join(texts) + "\n"
    start_D = np.cumsum([0, *(len(t) + 1 for t in texts)])[:-1]
    if joined.isascii():
        return np.frombuffer(joined.encode("ascii").translate(_ASCII), dtype=np.uint8), start_D
    code_N = _look_up(joined)
    if int(code_N.max()) < _COMPLEX:
        return code_N, start_D
    odd = np.flatnonzero(code_N & _COMPLEX)
    if len(odd):
        texts = list(texts)
        for d in np.unique(np.searchsorted(start_D, odd, side="right") - 1).tolist():
            texts[d] = normal_form(texts[d])
        code_N = _look_up("\n".join(texts) + "\n") & _AS_IT_IS
        start_D = np.cumsum([0, *(len(t) + 1 for t in texts)])[:-1]
    dropped = np.flatnonzero(code_N == _DROP)
    return np.delete(code_N, dropped), start_D - np.searchsorted(dropped, start_D)


def _look_up(text: str) -> np.ndarray:
    char_N = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    code_N = _code_of[char_N]
    if int(code_N.max()) >= _UNKNOWN:
        for char in np.unique(char_N[code_N == _UNKNOWN]).tolist():
            _code_of[char] = _classify(chr(char))
        code_N = _code_of[char_N]
    return code_N


def _classify(char: str) -> int:
    """A character's code. What has to be seen with its neighbours, or becomes several, is marked, with the code that it has
    where it is met in a text that is in its normal form."""
    if is_dropped(char):
        return int(_DROP)
    normal = normal_form(char)
    if not any(is_part_of_word(c) or is_dropped(c) for c in normal):
        return 0
    if len(normal) == 1 and not _joins(char) and not _joins(normal):
        return _own_code(normal)
    return int(_COMPLEX) | _own_code(char)


def _own_code(char: str) -> int:
    return (ord(char) | (int(_SOLO) if is_word_alone(char) else 0)) if is_part_of_word(char) else 0


def _joins(char: str) -> bool:
    """Whether a character may be composed with the one before it, or change places with it."""
    return unicodedata.category(char)[0] == "M" or 0x1160 <= ord(char) <= 0x11FF or 0xD7B0 <= ord(char) <= 0xD7FB

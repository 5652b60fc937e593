"""Held-out documents that also stand in other text: word for word, or by the share of their runs of 13 words.

What a share means is applied at the end: a slice of text is remembered by which of the held-out runs it holds, whatever
makes a document count as contaminated.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from slmctl.corpus.bounded_batches import bounded_batches
from slmctl.corpus.ngram_hashes import RUN, hash_texts

BATCH = 2**16
"""Characters that are looked at together."""
SHOWN = 80
"""Characters of a document that a message shows."""


@dataclass(frozen=True)
class HeldOut:
    """The D documents of all held-out sets: their R distinct runs and T distinct texts, each a number in order of appearance."""

    documents: dict[str, int]
    """Documents of each set, in the order in which they are numbered."""
    hash_R: np.ndarray
    """Runs' hashes, sorted (uint64)."""
    number_R: np.ndarray
    """The number of each run in `hash_R`."""
    of_document: np.ndarray
    """Numbers of the distinct runs of each document, one document after the other (int32)."""
    first_D: np.ndarray
    """Where each document's begin in `of_document`, and where the last one's end [D + 1]."""
    hash_T: np.ndarray
    """Whole texts' hashes, sorted (uint64)."""
    text_D: np.ndarray
    """Each document's place in `hash_T`; -1 where it has no words."""
    shown_D: list[str]
    """The beginning of each document."""

    @cached_property
    def _may_be(self) -> np.ndarray:
        """By a hash's first bits, whether a run has such: most words of other text are done with here."""
        bits = min(26, max(16, (32 * max(1, len(self.hash_R)) - 1).bit_length()))
        found = np.zeros(2**bits, dtype=bool)
        found[(self.hash_R >> np.uint64(64 - bits)).view(np.int64)] = True
        return found

    def candidates(self, run_W: np.ndarray) -> np.ndarray:
        """Words at which a held-out run may begin."""
        shift = np.uint64(64 - (len(self._may_be) - 1).bit_length())
        return np.flatnonzero(self._may_be[(run_W >> shift).view(np.int64)])

    def save(self, path: Path) -> None:
        """Writes an .npz file to `path`."""
        about = json.dumps([self.documents, self.shown_D]).encode()
        arrays = {k: getattr(self, k) for k in ("hash_R", "number_R", "of_document", "first_D", "hash_T", "text_D")}
        with open(path, "wb") as file:
            np.savez(file, about=np.frombuffer(about, dtype=np.uint8), **arrays)

    @staticmethod
    def load(path: Path) -> HeldOut:
        with np.load(path) as arrays:
            documents, shown = json.loads(arrays["about"].tobytes())
            return HeldOut(documents, shown_D=shown, **{k: arrays[k] for k in arrays.files if k != "about"})


def index_heldout(sets: Mapping[str, Iterable[str]]) -> HeldOut:
    """The held-out sets by the hashes of their documents. A text that is there twice is two documents."""
    documents, shown = dict.fromkeys(sets, 0), []
    parts: list[np.ndarray] = [np.zeros(0, dtype=np.uint64)]
    counts, whole, words = [0], [], []
    for name, texts in sets.items():
        for batch in batched(texts):
            hashed = hash_texts(batch)
            documents[name] += len(batch)
            shown += [_beginning(t) for t in batch]
            for first, n in zip(hashed.first().tolist(), hashed.words_D.tolist(), strict=True):
                runs = hashed.run_W[first : first + max(0, n - RUN + 1)]
                parts.append(runs[np.sort(np.unique(runs, return_index=True)[1])])
                counts.append(len(parts[-1]))
            whole.append(hashed.text_D)
            words.append(hashed.words_D)
    hash_R, first_R, of_document = np.unique(np.concatenate(parts), return_index=True, return_inverse=True)
    number_R = np.empty(len(hash_R), dtype=np.int32)
    number_R[np.argsort(first_R)] = np.arange(len(hash_R), dtype=np.int32)
    hash_D = np.concatenate([np.zeros(0, dtype=np.uint64), *whole])
    worded_D = np.concatenate([np.zeros(0, dtype=np.int64), *words]) > 0
    hash_T = np.unique(hash_D[worded_D])
    text_D = np.where(worded_D, np.searchsorted(hash_T, hash_D), -1)
    return HeldOut(documents, hash_R, number_R, number_R[of_document], np.cumsum(counts), hash_T, text_D, shown)


def _beginning(text: str) -> str:
    line = " ".join(text[: 4 * SHOWN].split())
    return line if len(line) <= SHOWN else f"{line[: SHOWN - 1]}…"


def batched(texts: Iterable[str]) -> Iterator[list[str]]:
    """Texts in lists of about `BATCH` characters, a longer one in a list of its own."""
    return bounded_batches(texts, len, BATCH)


Found = dict[str, list[list[int]]]
"""What a slice of text holds: `runs`, spans of held-out runs by number, [first, one past the last, where]; `texts`, whole ones,
[place in `hash_T`, where]. `where` is the ordinal of the first document of the slice that holds it."""


class Watch:
    """Looks at the documents of one slice as they go by, for what is held out."""

    def __init__(self, heldout: HeldOut) -> None:
        self.heldout = heldout
        self._runs: dict[int, int] = {}
        self._texts: dict[int, int] = {}

    def passing(self, documents: Iterable[tuple[int, str]]) -> Iterator[tuple[int, str]]:
        """The same (ordinal, text) in the same order; all of them have been looked at when it ends."""
        for held in bounded_batches(documents, lambda document: len(document[1]), BATCH):
            self.look(held)
            yield from held

    def look(self, documents: list[tuple[int, str]]) -> None:
        """Takes note of what (ordinal, text) hold."""
        if not documents:
            return
        heldout, hashed = self.heldout, hash_texts([text for _, text in documents])
        ordinal_D = np.array([ordinal for ordinal, _ in documents], dtype=np.int64)
        found_D, text_D = _places(heldout.hash_T, hashed.text_D)
        found_D = found_D[hashed.words_D[found_D] > 0]
        for text, ordinal in zip(text_D[found_D].tolist(), ordinal_D[found_D].tolist(), strict=True):
            self._texts.setdefault(text, ordinal)
        words = heldout.candidates(hashed.run_W)
        if not len(words):
            return
        found, place = _places(heldout.hash_R, hashed.run_W[words])
        whole = hashed.whole(words[found])
        number = heldout.number_R[place[np.isin(words, whole)]]
        for run, ordinal in zip(number.tolist(), ordinal_D[hashed.document_of(whole)].tolist(), strict=True):
            self._runs.setdefault(run, ordinal)

    @property
    def found(self) -> Found:
        spans: list[list[int]] = []
        for run, where in sorted(self._runs.items()):
            if spans and spans[-1][1:] == [run, where]:
                spans[-1][1] += 1
            else:
                spans.append([run, run + 1, where])
        return {"runs": spans, "texts": [[t, where] for t, where in sorted(self._texts.items())]}


def _places(sorted_X: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which of `wanted` are in `sorted_X`; and the place there that each of all would have."""
    place = np.minimum(np.searchsorted(sorted_X, wanted), max(0, len(sorted_X) - 1))
    return np.flatnonzero(sorted_X[place] == wanted) if len(sorted_X) else np.zeros(0, dtype=np.int64), place


@dataclass(frozen=True)
class Contamination:
    """The documents of one held-out set that stand in other text."""

    documents: int
    exact: np.ndarray
    """Numbers, within their set, of those that are there word for word, as a whole document."""
    overlapping: np.ndarray
    """Numbers of the others whose share of runs is at or above the limit."""
    share_D: np.ndarray
    """Of each document's distinct runs, the share that is there; 0 where it has none."""
    where_D: list[list[int]]
    """[slice, ordinal] of a document that holds some of it; empty where none does."""

    def examples(self, shown_D: list[str], most: int) -> list[dict[str, Any]]:
        """The first few, by number, with how they begin (`shown_D`, of the set's documents), and where they were found."""
        kinds = dict.fromkeys(self.exact.tolist(), "exact") | dict.fromkeys(self.overlapping.tolist(), "overlap")
        return [
            {"document": d, "begins": shown_D[d], "kind": kind, "share": round(float(self.share_D[d]), 4), "in": self.where_D[d]}
            for d, kind in sorted(kinds.items())[:most]
        ]


def contamination(heldout: HeldOut, slices: Iterable[Found], least: float) -> dict[str, Contamination]:
    """By held-out set: which documents are there word for word, or with a share of at least `least` of their runs, in the
    slices together. Documents of fewer than 13 words have no runs and are found whole only."""
    there_R = np.zeros(len(heldout.hash_R), dtype=bool)
    at_R = np.full((len(heldout.hash_R), 2), -1, dtype=np.int64)
    at_T = np.full((len(heldout.hash_T), 2), -1, dtype=np.int64)
    for i, found in enumerate(slices):
        for first, stop, where in found["runs"]:
            new = np.arange(first, stop)[~there_R[first:stop]]
            there_R[new] = True
            at_R[new] = i, where
        for text, where in found["texts"]:
            if at_T[text, 0] < 0:
                at_T[text] = i, where
    sums = np.concatenate([[0], np.cumsum(there_R[heldout.of_document])])
    runs_D = np.diff(heldout.first_D)
    share_D = np.diff(sums[heldout.first_D]) / np.maximum(1, runs_D)
    exact_D = (heldout.text_D >= 0) & (at_T[heldout.text_D, 0] >= 0) if len(at_T) else np.zeros(len(runs_D), dtype=bool)
    overlap_D = ~exact_D & (runs_D > 0) & (share_D > 0) & (share_D >= least)
    results, first = {}, 0
    for name, n in heldout.documents.items():
        part = slice(first, first + n)
        where_D: list[list[int]] = []
        for d in range(first, first + n):
            own = heldout.of_document[heldout.first_D[d] : heldout.first_D[d + 1]]
            held = own[there_R[own]]
            where_D.append(at_T[heldout.text_D[d]].tolist() if exact_D[d] else at_R[held[0]].tolist() if len(held) else [])
        exact, overlapping = np.flatnonzero(exact_D[part]), np.flatnonzero(overlap_D[part])
        results[name] = Contamination(n, exact, overlapping, share_D[part], where_D)
        first += n
    return results

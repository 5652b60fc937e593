"""highlights.json: documents of the diagnostic rows, each token with its losses and what each arm selects (App. G)."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from slmctl.comparison.diagnose import Diagnosis
from slmctl.comparison.token_text import token_texts
from slmctl.corpus.packing import PADDING, bos_mask

LONGEST = 400
"""Tokens of a document that the report shows."""


def highlights(diagnosis: Diagnosis, last: dict[str, str], steps: dict[str, int]) -> dict[str, Any]:
    """`last` names each arm's losses under its last checkpoint, `steps` says which that is."""
    documents: list[dict[str, Any]] = []
    if diagnosis.on:
        live = {a: diagnosis.losses(n) for a, n in last.items()}
        masks = {a: diagnosis.chosen(a, losses) for a, losses in live.items()}
        for row, start, stop in _longest_documents(diagnosis):
            documents.append(_shown(diagnosis, row, slice(start, stop), live, masks))
    return {"arms": list(last), "step": steps, "documents": documents}


def _longest_documents(diagnosis: Diagnosis) -> list[tuple[int, int, int]]:
    """(row, first, last + 1) of a document in each of so many rows, spread over them; the longest of its row."""
    wanted = diagnosis.conditions.settings.highlighted
    document = diagnosis.sample.rows.document_BT
    begins = bos_mask(document, diagnosis.conditions.corpus.manifest.format.get("bos_at"))  # BOS is none of a document's tokens
    found = []
    for row in np.unique(np.linspace(0, len(document) - 1, min(wanted, len(document))).astype(int)) if wanted else []:
        edges = np.flatnonzero(np.diff(document[row], prepend=document[row][0] - 1, append=document[row][-1] + 1))
        parts = [(a + begins[row][a], b) for a, b in itertools.pairwise(edges) if document[row][a] != PADDING]
        pieces = [(b - a, a, b) for a, b in parts if a < b]
        if pieces:
            _, a, b = max(pieces)
            found.append((int(row), int(a), int(min(b, a + LONGEST))))
    return found


def _shown(
    diagnosis: Diagnosis, row: int, part: slice, live: dict[str, np.ndarray], masks: dict[str, np.ndarray | None]
) -> dict[str, Any]:
    sample, ref = diagnosis.sample, diagnosis.shown_ref_BT
    ids, document = sample.rows.ids_BT[row, part].tolist(), int(sample.rows.document_BT[row, part.start])
    return {
        "set": "corpus",
        "title": f"corpus, shard {document >> 32}, record {document & 0xFFFFFFFF}",
        "tokens": {
            "text": token_texts(diagnosis.conditions.tokenizer.hf, ids),
            "position": list(range(part.start, part.stop)),
            "ref": _rounded(ref[row, part]) if ref is not None else [None] * len(ids),
            "live": {a: _rounded(losses[row, part]) for a, losses in live.items()},
            "selected": {a: m[row, part].astype(int).tolist() for a, m in masks.items() if m is not None},
        },
    }


def _rounded(losses: np.ndarray) -> list[float | None]:
    return [round(float(x), 3) if np.isfinite(x) else None for x in losses]

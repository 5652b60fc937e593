"""What a held-out loss was measured on, so that only like is compared with like.

A record of evals.jsonl has it beside its losses: `measured: {set: {tokens, rows, precision}}`. Records of before this was written
down have none, which is not known, and equal to nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Measure = dict[str, Any]
"""`tokens` predicted, `rows` (a hash of the set and of which of its rows were read) and `precision` of the arithmetic."""
KEYS = ("tokens", "rows", "precision")


def measure_of(record: dict[str, Any], heldout: str) -> Measure | None:
    """What a record's loss on a set was measured on; None where that is not known."""
    measured = record.get("measured")
    found = measured.get(heldout) if isinstance(measured, dict) else None
    return found if isinstance(found, dict) and all(found.get(k) is not None for k in KEYS) else None


def why_not_comparable(a: Measure | None, b: Measure | None) -> str | None:
    """Why a loss measured as `a` says nothing beside one measured as `b`, as the end of a sentence; None where it does."""
    if a is None or b is None:
        return "it is not known on which tokens, and in what precision, both were measured"
    told = []
    if a["tokens"] != b["tokens"]:
        told.append(f"one was measured on {a['tokens']:,} tokens, the other on {b['tokens']:,}")
    elif a["rows"] != b["rows"]:
        told.append(f"both were measured on {a['tokens']:,} tokens, but not on the same ones")
    if a["precision"] != b["precision"]:
        told.append(f"one was computed in {a['precision']}, the other in {b['precision']}")
    return " and ".join(told) or None


def words(measure: Measure | None) -> str:
    """`8,190 tokens in float32`."""
    return "tokens that are not known" if measure is None else f"{measure['tokens']:,} tokens in {measure['precision']}"


def kinds(records: Sequence[dict[str, Any]], heldout: str) -> list[Measure | None]:
    """All that the records' losses on a set were measured on, each once, as they come."""
    found: list[Measure | None] = []
    for record in records:
        measure = measure_of(record, heldout)
        if measure not in found and heldout in record.get("heldout", {}):
            found.append(measure)
    return found

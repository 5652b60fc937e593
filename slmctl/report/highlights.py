"""Text with its selected tokens (App. G of the paper): what the page writes, and the numbers its script reads.

Token texts stand in the page once, as text; losses and selections go into one JSON block as plain arrays, a number a token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from slmctl.report import numbers as n
from slmctl.report.facts import items_of, rows_of
from slmctl.report.safe_text import shortened, visible


@dataclass(frozen=True)
class Document:
    """One text: `tokens[i]` as shown, and whether the first arm keeps it."""

    title: str
    tokens: list[tuple[str, bool]]


@dataclass(frozen=True)
class Highlights:
    arms: list[tuple[str, str]]
    """Each arm's name, and the step of its checkpoint or an empty text."""
    documents: list[Document]
    data: dict[str, Any]
    """arms: names as shown; documents: position, ref (N each), live and selected (a list of N for each arm)."""


def _losses(values: Any, length: int) -> list[float | None]:
    found = [None if v is None else round(v, 3) for v in n.numbers(values)][:length]
    return found + [None] * (length - len(found))


def _chosen(values: Any, length: int) -> list[int]:
    found = [int(bool(v)) for v in values][:length] if isinstance(values, list) else []
    return found + [0] * (length - len(found))


def highlights(found: dict[str, Any] | None, first: str | None = None) -> Highlights | None:
    """The highlighted documents of highlights.json, as arm `first` selects to begin with; None where there are none."""
    known = {a for d in rows_of(found, "documents") for a in items_of(d, "tokens", "selected")}
    arms = [a for a in map(str, (found or {}).get("arms") or []) if a in known]  # without a mask there is nothing to show
    arms.sort(key=lambda a: a != first)
    documents: list[Document] = []
    data: list[dict[str, Any]] = []
    for d in rows_of(found, "documents"):
        tokens = items_of(d, "tokens")
        texts = tokens.get("text") if isinstance(tokens.get("text"), list) else []
        if not texts or not arms:
            continue
        size = len(texts)
        live = [_losses(items_of(tokens, "live").get(a), size) for a in arms]
        selected = [_chosen(items_of(tokens, "selected").get(a), size) for a in arms]
        positions = [None if p is None else int(p) for p in _losses(tokens.get("position"), size)]
        shown = [(visible(t, breaks=True), bool(s)) for t, s in zip(texts, selected[0], strict=True)]
        title = visible(d.get("title") or f"Document {len(documents) + 1}", 120)
        where = visible(d.get("set", ""), 60)
        documents.append(Document(f"{title} ({where})" if where and where not in title else title, shown))
        data.append({"position": positions, "ref": _losses(tokens.get("ref"), size), "live": live, "selected": selected})
    if not documents:
        return None
    steps = items_of(found, "step")
    names = [(shortened(a, 40), n.count(steps[a]) if n.number(steps.get(a)) is not None else "") for a in arms]
    return Highlights(names, documents, {"arms": [a for a, _ in names], "documents": data})

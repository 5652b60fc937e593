"""The table of criteria as a document: `python -m slmctl.config.strategies docs/strategies.md`."""

from __future__ import annotations

import sys
from pathlib import Path

from slmctl.selection.criterion import Choice, Criterion
from slmctl.selection.table import CRITERIA

BEGIN, END = "<!-- table of criteria: begin (make docs) -->", "<!-- table of criteria: end -->"
_FEATURES = {"position": "place in the document", "log_odds": "counts of ids in curated text and corpus"}


def markdown() -> str:
    """One row a criterion, and their options."""
    rows = [
        "| criterion | keeps | score (the highest are kept) | source | reads of the model in training | reads of score sets "
        "| scoring passes | FLOPs a token |",
        "|---|---|---|---|---|---|---|---|",
    ]
    told = ["| criterion | when | what is known against it | options |", "|---|---|---|---|"]
    for entry in CRITERIA.values():
        rows.append(f"| `{entry.name}` | {entry.says} | {_cell(entry.formula)} | {_cell(entry.source)} | {_read(entry)} |")
        told.append(f"| `{entry.name}` | {entry.use} | {entry.against or '–'} | {_options(entry)} |")
    return "\n".join([*rows, "", *told])


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _read(entry: Criterion) -> str:
    """Cells of what it reads and what that costs."""
    if entry.composed:
        return "what its parts read | what its parts read | those of its parts | 3T + 3kH, and H where a part reads the live loss"
    live = entry.live(Choice(entry.name)) if callable(entry.live) else entry.live
    by_role = f"{', '.join(entry.reads)} of {' and '.join(entry.roles)}" if entry.roles else ""
    stored = f"{', '.join(entry.reads)} of each" if entry.several else by_role
    reads = "; ".join([*([stored] if stored else []), *(_FEATURES[f] for f in entry.features)]) or "–"
    passes = "one each" if entry.several else str(len(entry.roles) if entry.reads else 0)
    flops = "3(T + H)" if entry.name == "all" else "3T + (1 + 3k)H" if live else "3T + 3kH"
    return f"{', '.join(live) or '–'} | {reads} | {passes} | {flops}"


def _options(entry: Criterion) -> str:
    found = []
    for name, option in entry.options.items():
        default = "null" if option.default is None else option.default
        among = f": {' or '.join(option.among)}" if option.among else ""
        found.append(f"`{name}` (`{default}`{among}): {option.doc}")
    return " ".join(found) or "–"


def update(text: str) -> str:
    """`text` with the part between the two marks replaced."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n\n{markdown()}\n\n{END}{after}"


if __name__ == "__main__":
    document = Path(sys.argv[1])
    document.write_text(update(document.read_text(encoding="utf-8")), encoding="utf-8")

"""contamination.json: how it is read, what is said of it, and when it stops a stage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from slmctl.corpus.ngram_hashes import RUN
from slmctl.system.console import say, warn
from slmctl.system.errors import InputError, SlmError
from slmctl.system.files import read_json

FILE = "contamination.json"
SIDES = ("curated", "corpus")
EXAMPLES = 5
"""Documents of each held-out set that are named, for curated and corpus each."""


def read_report(root: Path) -> dict[str, Any] | None:
    """contamination.json of an output_dir; None where it is absent or not what this version writes."""
    with suppress(SlmError):
        found = read_json(root / FILE)
        if isinstance(found, dict) and found.get("schema") == 1:
            return found
    return None


def contaminated(found: dict[str, Any]) -> Iterator[tuple[str, str, int, dict[str, Any]]]:
    """(held-out set, side, documents of the set, figures) wherever something was found."""
    for name, figures in found["heldout"].items():
        for side in SIDES:
            if side in figures and figures[side]["exact"] + figures[side]["overlap"]:
                yield name, side, figures["documents"], figures[side]


def _line(name: str, side: str, documents: int, figures: dict[str, Any], overlap: float) -> str:
    both = figures["exact"] + figures["overlap"]
    return (
        f"heldout/{name}: {both:,} of {documents:,} documents also {'stand' if both > 1 else 'stands'} in {side} "
        f"({figures['exact']:,} word for word, {figures['overlap']:,} by {RUN}-gram overlap >= {100 * overlap:.4g}%)"
    )


def tell(root: Path, found: dict[str, Any], again: bool) -> None:
    """One line that it was checked, and one for each held-out set and side where something was found; one
    line with the numbers where it was said before (`again`)."""
    lines = [_line(*of, found["overlap"]) for of in contaminated(found)]
    place = root / FILE
    if again and lines:
        each = (f"{name}: {f['exact'] + f['overlap']:,} of {n:,} in {side}" for name, side, n, f in contaminated(found))
        also = f"held-out documents also stand in what models learn from ({', '.join(each)})"
        say(f"contamination: as before, {also}; {place} names some")
        return
    for line in lines:
        warn(line)
    for name, why in found["not_checked"].items():
        warn(f"contamination: {name} is not checked: {why}")
    sides = [s for s in SIDES if s not in found["not_checked"]]
    if sides and found["heldout"]:
        documents = sum(f["documents"] for f in found["heldout"].values())
        say(
            f"contamination: {documents:,} held-out documents checked against {' and '.join(sides)}: "
            + (f"{place} names some of those found" if lines else "none stands there")
        )


def refuse(root: Path, found: dict[str, Any]) -> None:
    """Raises `InputError` where something was found: for who is told to stop then."""
    if not (every := list(contaminated(found))):
        return
    lines = []
    for of in every:
        lines.append(f"  {_line(*of, found['overlap'])}")
        for e in of[3]["examples"][:2]:
            how = "word for word" if e["kind"] == "exact" else f"{100 * e['share']:.3g}% of its {RUN}-grams"
            place = f"{e['in'].get('file', of[1])}, shard {e['in']['shard']}, record {e['in']['record']}"
            lines.append(f"    document {e['document']} ({e['begins']!r}): {how}, first in {place}")
    raise InputError(
        "\n".join(["held-out documents stand in the text that models learn from (eval.contamination: stop):", *lines])
        + f"\nTake them out of {' and '.join(dict.fromkeys(of[1] for of in every))} or out of the held-out sets and run again "
        f"({root / FILE} has more of them), or go on with a warning: -o eval.contamination=warn."
    )

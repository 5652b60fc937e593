"""What results.json says of reaching the control's loss, in words: its figures, their intervals, and whether there are any."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

Ends = Sequence[float | None]
FEW_SEEDS = 3
"""Seeds up to which an interval over them is called rough."""
OUTDATED = "the results were made by an slmctl that read it from losses while training; run `slmctl eval` again"
_NOT_FIGURES = ("arm", "target_loss", "why")


def headline_of(control: dict[str, Any] | None) -> dict[str, Any]:
    """`control` of an arm or of its seeds; empty where there is none. Figures of an slmctl that held curves of training against
    each other, whatever each was measured on, are left out, with the reason."""
    if not control:
        return {}
    if "points" in control:
        return control
    return {
        **{k: control.get(k) if k in _NOT_FIGURES else None for k in (*control, "why")},
        "why": control.get("why") or OUTDATED,
    }


def seeds_headline(results: dict[str, Any], arm: str) -> dict[str, Any]:
    """`control` of the entry of `seeds` that an arm is of, where its figures were read off; else empty."""
    for entry in results.get("seeds") or []:
        found = headline_of(entry.get("control"))
        if arm in (entry.get("arm"), *(entry.get("arms") or [])) and found and not found.get("why"):
            return found
    return {}


def ends_of(control: dict[str, Any], key: str) -> Ends | None:
    """A figure's interval, in which None is an open end; None where there is no interval."""
    found = (control.get("interval") or {}).get(key)
    return found if isinstance(found, list | tuple) and len(found) == 2 else None


def above_one(control: dict[str, Any], key: str) -> bool:
    """Whether the interval of a `times_fewer_…` figure lies above 1 as a whole."""
    ends = ends_of(control, key)
    return ends is not None and ends[0] is not None and ends[0] > 1


def span(ends: Ends | None, write: Callable[[float], str]) -> str:
    """`220k to 290k`; of an interval with an open end, that it has none there; nothing where there is no interval."""
    if ends is None:
        return ""
    low, high = ends
    if low is None and high is None:
        return "open at both ends"
    if high is None:
        return f"from {write(low)} on, with no upper end"  # type: ignore[arg-type]
    return f"up to {write(high)}, with no lower end" if low is None else f"{write(low)} to {write(high)}"


def span_of_times(ends: Ends | None) -> str:
    """Of a `times_fewer_…` figure: `1.70 to 2.30`, as its figure is called fewer or more; `1.10 times more to 1.25 times fewer`
    of an interval around 1."""
    known = [e for e in ends or () if e is not None and e > 0]
    if ends is not None and None not in ends and known and all(round(e, 2) >= 1 for e in known):
        return span(ends, "{:.2f}".format)
    if ends is not None and None not in ends and len(known) == 2 and all(round(e, 2) <= 1 for e in known):
        return span([1 / known[1], 1 / known[0]], "{:.2f}".format)
    if ends is not None and ends[0] is None and known and round(known[0], 2) <= 1:
        return span([1 / known[0], None], times_more)  # no lower end of times fewer is no upper end of times more
    if ends is not None and ends[1] is None and known and round(known[0], 2) < 1:
        return f"from {times(known[0])} to any number of times fewer"
    return span(ends, times)


def span_and_side(ends: Ends | None) -> str:
    """`span_of_times` that stands without its figure: `1.70 to 2.30 times fewer`, `2.11 to 2.13 times more`."""
    words = span_of_times(ends)
    if ends is None or None in ends or "times" in words or "beyond" in words:
        return words
    return f"{words} times {'fewer' if round(ends[0] or 0, 2) >= 1 else 'more'}"


def times_more(value: float) -> str:
    return f"{value:.2f} times more"


def times(value: float) -> str:
    """`1.25 times fewer`; below one its inverse, `1.25 times more`."""
    if value <= 0 or not math.isfinite(value):
        return "beyond measure"
    far = f"{max(value, 1 / value):.2f}"
    return "as many" if far == "1.00" else f"{far} times {'fewer' if value > 1 else 'more'}"


def of_seeds(control: dict[str, Any]) -> str:
    """`3 seeds`, and that these are few."""
    number = len(control.get("seeds") or [])
    return f"{number} seeds" + (", too few for more than a rough interval" if number <= FEW_SEEDS else "")

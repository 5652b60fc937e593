"""Numbers as people read them. A number that does not exist (null, NaN, absent) is a dash."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

NONE = "–"
MINUS = "−"
"""The sign itself (U+2212), as wide as a plus; a hyphen is no sign."""
_NUMBER = re.compile(r"(?<![\w.)\]-])-?\.?\d[\d.,]*(?:e[+-]\d+)?")
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def signs(text: str) -> str:
    """`text` with the sign of each negative number in it; hyphens within words stay."""
    return _NUMBER.sub(lambda m: m[0].replace("-", MINUS), text)


def number(value: Any) -> float | None:
    """`value` where it is a finite number."""
    ok = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if ok else None


def numbers(values: Any) -> list[float | None]:
    return [number(v) for v in values] if isinstance(values, list | tuple) else []


def pair(value: Any) -> tuple[float, float] | None:
    """An interval [low, high] where both ends are numbers."""
    if not isinstance(value, list | tuple) or len(value) != 2:
        return None
    low, high = number(value[0]), number(value[1])
    return None if low is None or high is None else (low, high)


def fixed(value: Any, digits: int = 4) -> str:
    x = number(value)
    if x is None:
        return NONE
    if abs(x) >= 1e6:  # no model says this on purpose
        return signs(f"{x:.3g}")
    return signs(f"{x:.{digits}f}")


def general(value: Any, digits: int = 4) -> str:
    x = number(value)
    return NONE if x is None else signs(f"{x:.{digits}g}")


def significant(value: Any, digits: int = 4) -> str:
    """So many digits that count, zeros at the end too: 17.00 beside 17.41."""
    x = number(value)
    if x is None:
        return NONE
    return signs(f"{x:.{digits}g}" if abs(x) >= 10**digits else f"{x:#.{digits}g}".rstrip("."))


def signed(value: Any, digits: int = 4) -> str:
    x = number(value)
    return NONE if x is None else signs(f"{x:+.{digits}f}")


def interval(value: Any, digits: int = 4, sign: bool = False) -> str:
    """`[low, high]`, or nothing where there is none."""
    ends = pair(value)
    form = signed if sign else fixed
    return "" if ends is None else f"[{form(ends[0], digits)}, {form(ends[1], digits)}]"


def open_interval(ends: Any, show: Callable[[float], str] = "{:#.3g}".format) -> str:
    """`[1.20, 2.10]`; `(…, 2.10]` and `[1.20, …)` of one that is open on a side; nothing where there is none."""
    if not isinstance(ends, list | tuple) or len(ends) != 2:
        return ""
    low, high = number(ends[0]), number(ends[1])
    left = "(…" if low is None else f"[{show(low)}"
    return f"{left}, " + ("…)" if high is None else f"{show(high)}]")


NO_INTERVAL = "no interval"
NEEDS = "an interval takes at least two documents, and finite losses"


def interval_or_why(value: Any, of: Any, digits: int = 4) -> str:
    """`[low, high]` of the figure `of`, or that there is none; nothing where there is no figure."""
    return interval(value, digits) or ("" if number(of) is None else NO_INTERVAL)


def count(value: Any) -> str:
    x = number(value)
    return NONE if x is None else signs(f"{x:,.0f}")


def short(value: Any) -> str:
    """381k, 1.2M, 20B: three digits that count."""
    x = number(value)
    if x is None:
        return NONE
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(x) >= size * 0.9995:
            return f"{signs(f'{x / size:.3g}')}{letter}"
    return signs(f"{x:.0f}")


def flops(value: Any) -> str:
    """3.12 × 10¹³."""
    x = number(value)
    if x is None:
        return NONE
    if x == 0:
        return "0"
    digits, exponent = f"{x:.2e}".split("e")
    return f"{signs(digits)}\u00a0×\u00a010{str(int(exponent)).translate(_SUPERSCRIPT)}"


def percent(value: Any, digits: int = 1) -> str:
    x = number(value)
    return NONE if x is None else f"{signs(f'{100 * x:.{digits}f}')}%"


def ratio(value: Any) -> str:
    """A setting, shown as what it is: 60%, 62.5%."""
    x = number(value)
    return NONE if x is None else f"{signs(f'{100 * x:g}')}%"


def fewer(value: Any, times: str = "×") -> str:
    """`times fewer` as words: 1.32× fewer; below one, its inverse: 1.25× more. In a sentence `times` is a word of its own."""
    x = number(value)
    if x is None or x <= 0:
        return NONE
    far = f"{max(x, 1 / x):.2f}"
    return "as many" if far == "1.00" else f"{far}{times} {'fewer' if x > 1 else 'more'}"


def fewer_interval(value: Any, ends: Any) -> str:
    """The interval of a figure that `fewer` writes, in the same direction: `[1.20, 1.47]` of 1.32× fewer, `[2.11, 2.13]` of
    2.12× more. Where its ends are not all on the side of the figure, each says its own: `[1.10× more, 1.25× fewer]`."""
    if not isinstance(ends, list | tuple) or len(ends) != 2:
        return ""
    low, high, x = number(ends[0]), number(ends[1]), number(value)
    words = fewer(x)
    if words.endswith("fewer") and low is not None and round(low, 2) >= 1:
        return open_interval([low, high], "{:.2f}".format)
    if words.endswith("more") and high is not None and high > 0 and round(high, 2) <= 1:
        return open_interval([1 / high, 1 / low if low else None], "{:.2f}".format)
    return open_interval([low, high], fewer)


def probability(value: Any) -> str:
    x = number(value)
    if x is None:
        return NONE
    return "< 0.001" if x < 0.001 else f"{x:.3f}"


def hours(seconds: Any) -> str:
    x = number(seconds)
    if x is None:
        return NONE
    if x < 120:
        return f"{x:.0f} s"
    return f"{x / 60:.0f} min" if x < 7200 else f"{x / 3600:.1f} h"

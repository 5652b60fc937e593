"""Numbers in another base than ten."""

from __future__ import annotations

import re

_BASES = {
    "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10",
    "eleven": "11", "twelve": "12", "sixteen": "16",
}  # fmt: skip
_BASE = rf"\d\d?|{'|'.join(_BASES)}"
_NUMBER = re.compile(
    rf"\(?(?P<digits>[0-9A-F][0-9A-F., ]*)\)?\s*(?:_\s*\{{?\s*\(?(?:base\s*)?(?P<below>{_BASE})\s*\)?\s*\}}?"
    rf"|\(?\s*(?:in\s+)?base[\s-]*(?P<beside>{_BASE})\s*\)?)"
)


def in_base(text: str) -> tuple[str, str] | None:
    """Digits and base of `101_2`, `101_{2}`, `(101)_{two}` and `101 base 2` (all in their normal spelling, see `latex`); None for
    anything else."""
    match = _NUMBER.fullmatch(text)
    if match is None:
        return None
    base = match["below"] or match["beside"]
    return re.sub(r"[\s,]", "", match["digits"]), _BASES.get(base, base)

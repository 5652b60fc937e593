"""Text of unknown origin, made fit to be seen: nothing in it hides, reorders or breaks what stands around it."""

from __future__ import annotations

import re
import unicodedata

LONGEST = 200
"""Characters of one token or label that are shown."""
_KEPT = "\u200c\u200d"
"""Joiners of scripts and emoji, which have no look of their own."""


def _one(c: str) -> str:
    hidden = unicodedata.category(c) in {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"} and c not in _KEPT
    return f"⟨U+{ord(c):04X}⟩" if hidden or ord(c) & 0xFFFE == 0xFFFE else c


def visible(text: object, longest: int = LONGEST, breaks: bool = False) -> str:
    """`text` with line ends and tabs as symbols, each other control, format and lone surrogate character as its code point,
    cut after `longest` characters with the number left out. With `breaks`, a line end also ends the line."""
    whole = str(text)
    symbols = {"\n": "↵\n" if breaks else "↵", "\t": "⇥"}
    out = "".join(symbols.get(c) or _one(c) for c in whole[:longest])
    if out and unicodedata.combining(out[0]):
        out = "\u25cc" + out  # a mark of its own, or it would sit on the character before
    left = len(whole) - longest
    return f"{out}… ({left:,} more character{'s' if left > 1 else ''})" if left > 0 else out


def shortened(text: object, longest: int = 22) -> str:
    """A name on one short line, cut in its middle: names of arms differ at both ends."""
    name = visible(text, 10_000)
    if len(name) <= longest:
        return name
    head = (longest - 1) // 2
    return f"{name[:head]}…{name[head + 1 - longest :]}"


def slug(text: object) -> str:
    """Letters, digits and dashes for ids and file names; may be empty, and differs not for all names."""
    return re.sub(r"[^A-Za-z0-9_]+", "-", str(text)).strip("-")[:40]


class Names:
    """Ids that are unique within one page."""

    def __init__(self) -> None:
        self.taken: set[str] = set()

    def unique(self, text: object) -> str:
        base = slug(text) or "x"
        name, i = base, 2
        while name.lower() in self.taken:  # some disks do not tell the case of file names
            name, i = f"{base}-{i}", i + 1
        self.taken.add(name.lower())
        return name

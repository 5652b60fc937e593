"""Whether a short answer in words is that of a word problem: its number, ratio, time, name, or yes and no."""

from __future__ import annotations

import re

from slmctl.evaluation.tasks.equivalence import bare_text, same_text
from slmctl.evaluation.tasks.numbers import numbers, same_number, stated_number

_MORE = re.compile(r"\s*(?:,\s*)?(?:and|or|to|per|but|&|/|-|\d)(?![a-z])|\s*/")
_REASON = re.compile(
    r"\s*(?:$|[;:]|\((?!\s*(?:and|or)\b)|,?\s*(?:[-–—]\s+)?(?:"
    r"because|since|as(?!\s+well)|who|which|that|so|not|with\s+(?:\d|an?\b|the\b|more|most)|by|has|had|have|is|was|are|were|"
    r"does|did|will|can|he|she|it|they|there)\b)"
)


class Chosen(str):
    """One of a question's options that are the same numbers, `5` and `5%`: it is the same as no other of them."""

    __slots__ = ()


def same_short(found: str, target: str) -> bool:
    """Whether a stated answer in words gives the target of a word problem: its number, ratio, time, name or yes and no."""
    if isinstance(found, Chosen):
        return same_text(found, target)
    if numeric(target):
        number = stated_number(found)
        return number is not None and same_number(number, numbers(target)[0])
    if same_text(found, target):
        return True
    a, b = (re.sub(r"\s*(?::|\bto\b)\s*", ":", bare_text(t)) for t in (found, target))
    return a.startswith(b) and not re.match(r"[\w:]", a[len(b) :]) and _ends(b, a[len(b) :])


def _ends(target: str, rest: str) -> bool:
    """Whether an answer ends where the target does, or goes on with a reason, and not with more of an answer: "Tom, who has
    12" is Tom, "Tom and Ann" is not, nor "2 hours 30 minutes" 2 hours, nor "no one" no."""
    if target[:1].isdigit():
        return not goes_on(rest)
    return _REASON.match(rest) is not None or (target in ("yes", "no") and rest.startswith((",", ";", ":")))


def goes_on(rest: str) -> bool:
    """Whether what follows a quantity is more of it: "and 45 minutes"."""
    return _MORE.match(rest) is not None


def numeric(text: str) -> bool:
    """Whether a target is one number, with at most a currency or percent sign."""
    return re.fullmatch(r"[-(]*[$€£]?[\d,./()\s-]*\d\)?\s*%?", text.strip()) is not None and len(numbers(text)) == 1

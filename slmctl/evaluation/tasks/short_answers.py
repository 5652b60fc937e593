"""Answers of word problems that need not be numbers: names, times, ratios and options."""

from __future__ import annotations

import re

from slmctl.evaluation.answer_marks import mark
from slmctl.evaluation.tasks.answers import LONGEST_STATEMENT, boxed, own_part, statements, tidy
from slmctl.evaluation.tasks.equivalence import bare_text
from slmctl.evaluation.tasks.numbers import final_answer
from slmctl.evaluation.tasks.short_equivalence import Chosen, goes_on, same_short
from slmctl.evaluation.tasks.units import UNIT_WORDS

_DENIES = re.compile(r"(?:not|neither|anything but|any but|all but|everything but|all except|everything except|never)\s", re.I)
_DENIED = re.compile(
    r"\b(?:not|\w+n't|nor|neither|never|except|excluding|besides|unlike|without|instead\s+of|rather\s+than|(?:other|more|less|fewer|longer|shorter|greater)\s+than|"
    r"(?:all|any|anything|everything)\s+but)\s+(?:for\s+|the\s+|an?\s+)*$"
)
_WITH = re.compile(
    r"\s*(?:,\s*)?(?:and|or|nor|plus|&|as\s+well\s+as)\s+(?!not\b|nothing\b)(?:the\s+|an?\s+)?[^\s,]+(?:\s+[^\s,]+)?\s*"
)
_JOINED_TO = re.compile(rf"\d\s*(?:{'|'.join(sorted(UNIT_WORDS))})?s?\s*(?:,\s*)?(?:and\s+)?$|[-+*/x×]\s*$")
_GOES_ON = re.compile(r"\s*(?:[-+*×=^:%/]|x\s*\d|per\s?cent\b)")


def short_answer(text: str, choices: tuple[str, ...] = ()) -> str | None:
    """What is marked by `####`, stated, or in the last box; the option meant where there are options; else the last number."""
    text = own_part(text)
    if choices:
        text = _without_letters(text, choices)
    marked = mark(text, words=True)
    line = [tidy(marked.line[:LONGEST_STATEMENT])] if marked else []
    first, last = (line, []) if marked and marked.sure else ([], line)
    for candidate in (*first, *statements(text), *reversed(boxed(text)), *last):
        if candidate and not (choices and _DENIES.match(candidate)):
            return option(candidate, choices) or candidate
    if choices and text.strip() and (found := option(text.strip().splitlines()[-1][-LONGEST_STATEMENT:], choices)):
        return found
    return final_answer(text)


def _without_letters(text: str, choices: tuple[str, ...]) -> str:
    """With the letters gone that stand before an option's own text: "C. Pottery" is Pottery."""
    texts = "|".join(re.escape(c.strip()) for c in sorted(choices, key=len, reverse=True) if c.strip())
    return re.sub(rf"(?<![\w.])(?:(?:option|choice)\s+)?\(?[A-J]\s?[).:]+\s*(?=(?:{texts})(?!\w))", "", text) if texts else text


def option(text: str, choices: tuple[str, ...]) -> str | None:
    """The one option that a text is, or that it names while naming no other, nor more than an option: "2 hours and 45 minutes"
    names no "2 hours", "not swimming" no swimming."""
    bare = _bare(text)
    equal = [c for c in choices if _bare(c) == bare]
    found = {c: _places(bare, _bare(c)) for c in choices if _bare(c)}
    named = [c for c, places in found.items() if places]
    longest = [c for c in named if not any(c != d and _bare(c) in _bare(d) for d in named)]
    alone = [c for c in longest if any(_WITH.fullmatch(bare[end:]) is None for end in found[c])]
    one = equal[0] if len(equal) == 1 else alone[0] if len(longest) == len(alone) == 1 else None
    return Chosen(one) if one is not None and any(_but_for_percent(one, c) for c in choices) else one


def _but_for_percent(a: str, b: str) -> bool:
    """Whether one of two options is a number and the other as much in percent: `5` and `5%`."""
    return a.strip().endswith("%") != b.strip().endswith("%") and (same_short(a, b) or same_short(b, a))


def _bare(text: str) -> str:
    return re.sub(r"(?<=\d)\s*(?:%|per\s?cent(?!\w))", "%", bare_text(text))


def _places(text: str, option: str) -> list[int]:
    """Where an option's text ends within another, as far as it is neither denied nor part of another quantity."""
    places = re.finditer(rf"(?<![\w.])(?<!non-){re.escape(option)}(?![\w])", text)
    return [m.end() for m in places if not _is_part(text[: m.start()], option, text[m.end() :])]


def _is_part(before: str, option: str, after: str) -> bool:
    """Whether an option's text within another is denied, or part of another quantity."""
    if _DENIED.search(before[-60:]):
        return True
    return option[:1].isdigit() and bool(goes_on(after) or _GOES_ON.match(after) or _JOINED_TO.search(before[-40:]))

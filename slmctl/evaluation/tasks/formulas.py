"""The answer of a competition problem: a formula that an output states, boxes, or ends with."""

from __future__ import annotations

import re

from slmctl.evaluation.tasks.answers import (
    LONGEST_STATEMENT,
    SAYS_WHAT,
    affirmed,
    boxed,
    formulas,
    own_part,
    span,
    statements,
    tidy,
)
from slmctl.evaluation.tasks.numbers import numbers

_CALLED = re.compile(  # what an equation or an inequality is the answer to, before it
    r"\b(?:line|equation|inequality|circle|parabola|ellipse|hyperbola|plane|curve|graph|function|asymptote|axis|directrix|"
    r"locus|relation|solutions?|range|domain|interval|form|expression)\b[^.\n$]{0,80}\s(?:is|are|:|becomes|as)\s*[:\s]*$",
    re.I,
)
_CALLED_BARE = re.compile(
    r"\b(?:line|equation|inequality|circle|parabola|ellipse|hyperbola|plane|curve|solutions?)\b[^.\n$=<>]{0,80}?\s(?:is|are)\s*:?\s*"
    r"(?=[^.\n]*[=<>≤≥])",
    re.I,
)
_NOT = re.compile(r"\bnot\s+\Z")
_EQUALS = re.compile(r"(?<![<>!=:\\])=(?![=<>])")
_IS = re.compile(r"\s(?:is|are|equals|must be|was|be)(?:\s+(?:equal to|exactly|therefore|then|just))?:?\s+")
_BEGINS_VALUE = re.compile(r"[-−+]?\s*(?:[$\\(\[]|\.?\d)")


def formula(text: str, choices: tuple[str, ...] = ()) -> str | None:  # noqa: ARG001 - readers have one form
    """The answer of a competition problem, as LaTeX: a stated final answer, else the last box, else another statement,
    else the last formula or number that stands alone. Of "the largest $n$ is 34" it is 34."""
    text = own_part(text)
    final = re.split(r"final\s+answer", text, maxsplit=1, flags=re.I)
    if len(final) == 2 and (found := next(statements("final answer" + final[1]), None)):
        return said(found)
    if boxes := boxed(text):
        return boxes[-1]
    if found := next(statements(text), None):
        return said(found)
    return _last_formula(text)


def _last_formula(text: str) -> str | None:
    """The last formula: of an equation its last side, but all of one that is said to be a line, a solution and so on."""
    if found := formulas(text):
        affirmative = [f for f in found if not _NOT.search(text, max(0, f[1] - 20), f[1])]
        if not affirmative:
            return None
        inside, begins, ends = affirmative[-1]
        says = SAYS_WHAT.match(text, ends)
        if says and not re.search(r"\d", inside) and (value := said(span(text[says.end() :]))):
            return value
        before = text[:begins].rsplit("\n\n", 1)[-1][-200:]
        whole = _CALLED.search(before) is not None and len(_EQUALS.findall(inside)) == 1
        return tidy((inside if whole else _EQUALS.split(inside)[-1])[:LONGEST_STATEMENT]) or None
    if called := list(_CALLED_BARE.finditer(text)):
        return span(text[called[-1].end() :]) or None
    found_numbers = numbers(text)
    return found_numbers[-1] if found_numbers else None


def said(statement: str) -> str:
    """What a sentence says that something is: "34" of "The largest $n$ is 34". A statement that is no such sentence stays."""
    if not re.match(r"[,\s]*(?:that\b|the\b|[A-Z][a-z]*[\s,])", statement):
        return statement
    for match in _IS.finditer(statement):
        rest = statement[match.end() :]
        if _BEGINS_VALUE.match(rest):
            return affirmed(span(rest)) or statement
    return statement

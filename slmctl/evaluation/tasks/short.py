"""Answers that need not be numbers: formulas of competition problems; names, times, ratios and options of word problems."""

from __future__ import annotations

import re

from slmctl.evaluation.tasks.answers import LONGEST_STATEMENT, boxed, own_part, statements, tidy
from slmctl.evaluation.tasks.equivalence import bare_text
from slmctl.evaluation.tasks.numbers import final_answer, numbers


def formula(text: str, choices: tuple[str, ...] = ()) -> str | None:  # noqa: ARG001 - readers have one form
    """The answer of a competition problem, as LaTeX: a stated final answer, else the last box, else another statement,
    else the last formula or number that stands alone."""
    text = own_part(text)
    final = re.split(r"final\s+answer", text, maxsplit=1, flags=re.I)
    if len(final) == 2 and (found := next(statements("final answer" + final[1]), None)):
        return found
    if boxes := boxed(text):
        return boxes[-1]
    if found := next(statements(text), None):
        return found
    formulas = re.findall(r"(?<!\\)\$((?:[^$\\]|\\.)+)\$", text)
    if formulas:
        return tidy(formulas[-1].rsplit("=", 1)[-1][:LONGEST_STATEMENT]) or None
    found_numbers = numbers(text)
    return found_numbers[-1] if found_numbers else None


def short_answer(text: str, choices: tuple[str, ...] = ()) -> str | None:
    """What is stated, after `####`, or in the last box; the option meant where there are options; else the last number."""
    text = own_part(text)
    stated = [tidy(text.split("####", 1)[1].split("\n", 1)[0][:LONGEST_STATEMENT])] if "####" in text else []
    for candidate in (*stated, *statements(text), *reversed(boxed(text))):
        if candidate:
            return option(candidate, choices) or candidate
    if choices and text.strip() and (found := option(text.strip().splitlines()[-1][-LONGEST_STATEMENT:], choices)):
        return found
    return final_answer(text)


def option(text: str, choices: tuple[str, ...]) -> str | None:
    """The one option that a text is, or that it names while naming no other."""
    bare = bare_text(text)
    equal = [c for c in choices if bare_text(c) == bare]
    named = [c for c in choices if bare_text(c) and re.search(rf"(?<![\w.]){re.escape(bare_text(c))}(?![\w])", bare)]
    longest = [c for c in named if not any(c != d and bare_text(c) in bare_text(d) for d in named)]
    return equal[0] if len(equal) == 1 else longest[0] if len(longest) == 1 else None

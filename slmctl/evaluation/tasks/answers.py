"""The part of an output that states its answer.

Models go on writing after an answer, begin the next question, or state several. The rules, in order of trust: text from
the next question on does not count; of the paragraphs, the first that states an answer ("the answer is …") gives it, by
its last such statement (a correction follows what it corrects; what comes after an empty line is mostly another
problem); else the last `\\boxed{}`; else what the task falls back on. "Not 5 but 6" states 6, and "not 5" states nothing.

An output may be as long and as monotonous as a model likes: what is judged of it is bounded by the constants below.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_NEXT = re.compile(r"\n[ \t]*(?:#+[ \t]*)?(?:question|problem|exercise|example|q)\s*(?:\d+\s*)?[:.]", re.I)
_STATES = re.compile(
    r"\b(?:answer|ans)\b(?:\s+(?:to|for|of)\s[^.\n:=]{0,80}?)?[*_]*\s*"
    r"(?:(?:\bis|\bwould be|\bmust be|\bshould be)\b[ \t]*:?|[:=])\s*[*_]*\s*"
    r"(?:(?:equal to|equals|therefore|thus|simply|just|exactly|approximately|about|clearly|given by)\b[ \t]*)*",
    re.I,
)
_BOXED = re.compile(r"\\f?box(?:ed)?\s*")
_BARE = re.compile(r"[^\s$.,;{}]+")
_BRACE = re.compile(r"\\.|[{}]", re.S)
_SENTENCE_END = re.compile(r"(?<!\bMr)(?<!\bMrs)(?<!\bMs)(?<!\bDr)(?<!\bSt)(?<!\b[ap]\.m)\.(?=\s|$)|\n|[;!?](?=\s|$)")
_NOT_BUT = re.compile(r"not\s+(?!only\b).{1,80}?(?:,?\s+but\s+(?:rather\s+|instead\s+)?|,\s+it(?:'s|\s+is)\s+)", re.I | re.S)
_NOT = re.compile(r"[Nn]ot\s+(?:the\s+)?(?:option\s+|choice\s+)?[\\$([]*-?(?:\d|[A-J]\b|frac)")
LONGEST_OUTPUT = 16_000
"""Characters of an output that are judged: of a longer one its beginning and its end, half and half."""
LONGEST_STATEMENT = 2000
"""Characters that an answer is looked for in."""
MOST_BOXES = 50
"""Boxes that are looked at, the last ones."""
_PART = re.compile(r"[ \t]*(?:\\?%|[/*+=-]|,?[ \t]*(?:and|or)[ \t]+(?:\$|\\\())")
"""What says that a formula is a part only: "$3$% of", "$a$ = $b$", "$3$ and $4$"."""
_MATHS = (("$$", "$$"), ("\\[", "\\]"), ("\\(", "\\)"), ("$", "$"))


def own_part(text: str) -> str:
    """An output up to where it begins another question; at most `LONGEST_OUTPUT` characters of that."""
    match = _NEXT.search(text)
    text = text[: match.start()] if match else text
    half = LONGEST_OUTPUT // 2 - 1
    return text if len(text) <= LONGEST_OUTPUT else f"{text[:half]}\n\n{text[-half:]}"


def boxed(text: str) -> list[str]:
    """Contents of the last `MOST_BOXES` `\\boxed{…}` in order, braces matched; one that is not closed is none, nor one longer
    than `LONGEST_STATEMENT`. `\\boxed 5` is 5."""
    closed = _closed(text)
    found = []
    for match in _BOXED.finditer(text):
        at = match.end()
        if text[at : at + 1] == "{":
            end = closed.get(at, len(text))
            if end - at < LONGEST_STATEMENT and end < len(text):
                found.append(text[at + 1 : end].strip())
        elif bare := _BARE.match(text, at, at + LONGEST_STATEMENT):
            found.append(bare.group())
    return [b for b in found if b][-MOST_BOXES:]


def _closed(text: str) -> dict[int, int]:
    """Where each brace that is closed is closed, by where it opens. Escaped braces do not count."""
    opened, closed = [], {}
    for match in _BRACE.finditer(text):
        if match.group() == "{":
            opened.append(match.start())
        elif match.group() == "}" and opened:
            closed[opened.pop()] = match.start()
    return closed


def closing(text: str, at: int) -> int | None:
    """Where the brace that opens at `at` is closed; None where it is not. Escaped braces do not count."""
    depth = 0
    while at < len(text):
        if text[at] == "\\":
            at += 1
        elif text[at] == "{":
            depth += 1
        elif text[at] == "}":
            depth -= 1
            if depth == 0:
                return at
        at += 1
    return None


def statements(text: str) -> Iterator[str]:
    """What follows "the answer is" and its like, the most trusted first. One ends where the next but one begins
    ("Final Answer: The final answer is …" are two), so that all of them together are no longer than twice the text."""
    for paragraph in re.split(r"\n[ \t]*\n", own_part(text)):
        following = end = len(paragraph)
        for match in reversed(list(_STATES.finditer(paragraph))):
            if after := affirmed(span(paragraph[match.end() : min(end, match.end() + LONGEST_STATEMENT)])):
                yield after
            following, end = match.start(), following


def affirmed(text: str) -> str:
    """What a statement affirms: of "not 5 but 6" 6, of "not 5" nothing."""
    if match := _NOT_BUT.match(text):
        return text[match.end() :]
    return "" if _NOT.match(text) else text


def span(text: str) -> str:
    """The answer at the beginning of `text`: a formula in dollars or brackets, or the rest of the sentence."""
    text = text.lstrip(" \t\n*_:")
    for opening, end in _MATHS:
        if text.startswith(opening):
            close = _unescaped(text, end, len(opening))
            inside = text[len(opening) : close]
            currency = opening == "$" and re.match(r"\s*\d[\d,.]*\s+[A-Za-z]", inside) and text[close + 1 : close + 2].isdigit()
            if close > 0 and inside.strip() and not currency:
                if _PART.match(text[close + len(end) :]):
                    break
                return tidy((boxed(inside) or [inside])[0])
            break
    sentence = _SENTENCE_END.split(text, maxsplit=1)[0]
    if _BOXED.search(sentence):
        return tidy((boxed(text) or [""])[0])
    return tidy(sentence)


def _unescaped(text: str, sign: str, at: int) -> int:
    """Where `sign` next stands without a backslash of its own before it; -1 where it does not. `\\$` is money."""
    while (at := text.find(sign, at)) > 0 and sign[0] == "$" and text[at - 1] == "\\":
        at += 1
    return at


def tidy(text: str) -> str:
    """Without what stands around an answer: spaces, markdown, trailing full stops and commas."""
    text = text.strip(" \t\n*_`").rstrip(".,;: \t\n").strip()
    if len(text) > 1 and text[0] in "\"'“‘" and text[-1] in "\"'”’":
        text = text[1:-1].strip()
    return text

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

from slmctl.evaluation.answer_marks import titles_joined

_NEXT = re.compile(r"\n[ \t]*(?:#+[ \t]*)?(?:question|problem|exercise|example|q)\s*(?:\d+\s*)?[:.]", re.I)
_STATES = re.compile(
    r"(?<!each )(?<!every )(?<!any )(?<!possible )(?<!following )"  # "let us look at each answer: …" states none
    r"\b(?:answer|ans)\b(?:\s*\([^()\n]{0,60}\))?"  # (in dollars)
    r"(?:\s+(?:to|for|of)\s[^.\n:=]{0,80}?"
    r"|,?\s+(?:in|as|here|then|thus|therefore|again|we)\b[^.\n:=]{0,60}?(?=\s(?:is|must|would|should)\b))?[*_]*\s*"
    r"(?:(?:\bis|\bwould be|\bmust be|\bshould be)\b[ \t]*:?|[:=])\s*[*_]*\s*"
    r"(?:(?:equal to|equals|therefore|thus|simply|just|exactly|approximately|about|clearly|given by)\b[ \t]*)*",
    re.I,
)
_BOXED = re.compile(r"\\f?box(?:ed)?\s*")
_BARE = re.compile(r"[^\s$.,;{}]+")
_BRACE = re.compile(r"\\.|[{}]", re.S)
_SENTENCE_END = re.compile(
    r"(?<!\bMr)(?<!\bMrs)(?<!\bMs)(?<!\bDr)(?<!\bSt)(?<!\b[ap]\.m)\.(?!(?<=\bRs\.)\s*\d)(?=\s|$)|\n|[;!?](?=\s|$)"
)
_NOT_BUT = re.compile(
    r"not\s+(?!only\b).{1,80}?(?:,?\s+but\s+(?:rather\s+|instead\s+)?|,\s+(?:so\s+)?it(?:'s|\s+is)\s+)", re.I | re.S
)
_NOT = re.compile(r"[Nn]ot\s+(?:the\s+)?(?:option\s+|choice\s+)?[\\$([]*-?(?:\d|[A-J]\b|frac)")
LONGEST_OUTPUT = 16_000
"""Characters of an output that are judged: of a longer one its beginning and its end, half and half."""
LONGEST_STATEMENT = 2000
"""Characters that an answer is looked for in."""
MOST_BOXES = 50
"""Boxes that are looked at, the last ones."""
_PART = re.compile(r"[ \t]*(?:\\?%|[/*+=-]|,?[ \t]*(?:and|or)[ \t]+(?:\$|\\\()|,[ \t]*\$[ \t]*[A-Za-z]\w*[ \t]*=)")
"""What says that a formula is a part only: "$3$% of", "$a$ = $b$", "$3$ and $4$", "$a=3$, $b=4$"."""
_NAMES = re.compile(r"[^\d]*[A-Za-z].*", re.S)
SAYS_WHAT = re.compile(
    r"[ \t]+(?:is|are|equals|must be)\b(?:[ \t]+(?:equal to|exactly|just|then|therefore))?[ \t]*:?[ \t]*(?=[-−$\\(\[\d])", re.I
)
"""What follows a formula that is only named: "$n$ is 34"."""
_PROSE = re.compile(r"-?[\d,.]*\d(?:[.,;:]?\s+[A-Za-z]{2,}|[.,;:]\s).*\s$", re.S)
_OPEN_END = re.compile(r"(?:[-+*/=<>,;:(&–—]|\b(?:and|or|to|plus|minus|times)|\\(?:times|cdot|div|le|ge|leq|geq))\s*$")
_CALCULATES = re.compile(r"\d[^\d=]{0,30}?(?:[+*×÷]|\s[-−–x/]\s|\b(?:plus|minus|times)\b)[^\d=]{0,10}\d")
_MATHS = (("$$", "$$"), ("\\[", "\\]"), ("\\(", "\\)"), ("$", "$"))


def own_part(text: str) -> str:
    """An output up to where it begins another question; at most `LONGEST_OUTPUT` characters of that. An answer that stands below
    its heading is put beside it."""
    match = _NEXT.search(text)
    text = text[: match.start()] if match else text
    half = LONGEST_OUTPUT // 2 - 1
    return titles_joined(text if len(text) <= LONGEST_OUTPUT else f"{text[:half]}\n\n{text[-half:]}")


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
            if close > 0 and inside.strip() and not (opening == "$" and is_money(text, 0, close)):
                after = text[close + len(end) :]
                if _NAMES.match(inside) and (says := SAYS_WHAT.match(after)):
                    return span(after[says.end() :])
                if _PART.match(after):
                    break
                return tidy((boxed(inside) or [inside])[0])
            break
    sentence = _SENTENCE_END.split(_that_is(text), maxsplit=1)[0]
    if _BOXED.search(sentence):
        return tidy((boxed(text) or [""])[0])
    return tidy(sentence)


def _that_is(text: str) -> str:
    """ "80 + 48, i.e. 128" as "80 + 48, which is 128", so that no sentence ends there; an "i.e." after anything else stays."""
    at = text.find("i.e.", 0, 120)
    worked = at > 0 and text[at - 1].isspace() and _CALCULATES.search(text, 0, at) and not _SENTENCE_END.search(text[:at])
    return f"{text[:at]}which is {text[at + 4 :].lstrip(' ,')}" if worked and "=" not in text[:at] else text


def is_money(text: str, opens: int, closes: int) -> bool:
    """Whether the dollar signs at two places are those of two amounts, "$80 + $48", and hold no formula between them."""
    inside = text[opens + 1 : closes]
    if re.match(r"\(\s*\.?\d", inside) and inside.rstrip().endswith("=") and re.match(r"\.?\d", text[closes + 1 : closes + 3]):
        return True  # $(20-5) = $15
    if not re.match(r"\s*[-+−]?\s*\.?\d", inside):
        return False
    if _PROSE.match(inside):
        return True
    following = re.match(r"\s*[-−]?\.?\d", text[closes + 1 : closes + 12])
    return following is not None and (not following.group()[0].isspace() or _OPEN_END.search(inside[-20:]) is not None)


def formulas(text: str) -> list[tuple[str, int, int]]:
    """What stands in single or double dollars, and where it begins and ends; amounts of money are none."""
    found, at = [], 0
    while (at := _unescaped(text, "$", at)) >= 0:
        sign = "$$" if text.startswith("$$", at) else "$"
        close = _unescaped(text, sign, at + len(sign))
        if close < 0:
            at += len(sign)
        elif sign == "$" and is_money(text, at, close):
            at = at + 1 if _PROSE.match(text[at + 1 : close]) else close + 1
        else:
            if inside := text[at + len(sign) : close].strip():
                found.append((inside, at, close + len(sign)))
            at = close + len(sign)
    return found


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

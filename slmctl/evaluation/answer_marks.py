"""The answer after four hashes, as GSM8K writes it, told from a markdown heading of as many.

A mark within a line is never a heading, nor is one whose line is an answer: `#### 42`, `#### $1,234 in all`,
`#### Total cost: 42`. Headings are passed over: `#### Step 1: count the apples`, `#### 2. Cost`, `#### Solution`, and
whatever has five hashes.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_MARK = re.compile(r"(?<!#)####(?!#)")
MOST_MARKS = 100
"""Marks that are looked at, the first ones."""
_LONGEST_LINE = 400
_NUMBERED = (
    "answer attempt calculation case chapter day equation example exercise figure hint hour item iteration level line method "
    "month note option page part person phase point problem question round scenario section situation solution stage step "
    "sub-problem sub-question subproblem subquestion table task trial try week year"
)
_DOING = (
    "add analy[sz]e? break calculat check combin comput consider convert count deduct determin divid estimat express figure find "
    "first given identif let list multipl next now reason recall second set simplif solv start subtract sum then third "
    "understand verif work write"
)
_HEADING = re.compile(
    rf"(?:the\s+)?(?:{'|'.join(_NUMBERED.split())})s?\s*#?\s*\(?(?:\d+|[ivx]+|[a-j])\b(?!\s*=)"  # Step 1, Case II, Part a
    r"|\(?\d{1,2}(?:\.\d{1,2})*\s*[.):]\)?\s*[*_]*[A-Za-z(]"  # 1. Cost, 2) Total, 1.2: Sum
    rf"|(?:to\s+)?(?:{'|'.join(_DOING.split())})(?:e|es|s|y|ing|ation|ting|ying)?\b",
    re.I,
)
_LINKED = re.compile(r"(?:now|then)\s+[$€£¥₹]?\d[\d,.]*[.*_]*", re.I)  # #### Now 42
_SECTION = re.compile(r"\d{1,2}\.\d{1,2}\.?\s+[A-Z][a-z]{2}")  # 1.2 Cost, or 1.2 Dollars
_TITLES = re.compile(
    r"(?:the\s+)?(?:full\s+|detailed\s+|step[- ]by[- ]step\s+|final\s+|short\s+)?(?:solution|answer|workings?|explanation|"
    r"reasoning|summary|conclusion|calculations?|computations?|steps|analysis|approach|set-?up|overview|verification|introduction|details|method|"
    r"notes?|formulas?|equations?|result|breakdown|problem|question)\b[^\n]{0,40}",
    re.I,
)
_WORKING = re.compile(r"=|\d\s*[-+*/×÷]\s*\$?\d")
_STATED = re.compile(
    r"(?:^|(?:\b(?:is|are|was|answer|equals|has|have|gets?|makes?|needs?|costs?|pays?|takes?|total)\b|[=:≈→])[\s*_]*)[\\$€£¥₹(\[*_=≈\s-]*\.?\d",
    re.I,
)
_REFUSED = re.compile(r"(?:none|unknown|undefined|no\s+(?:answer|solution)|not?\b|n/?a\b|cannot\b|impossible\b)", re.I)
_VALUE = (
    r"(?:[*_]*\\boxed|\$\$|\\\[|[*_]*\$[^$\n]+\$[^\n$]{0,30}$|[*_]*\\\([^\n]{1,200}$"
    r"|[*_]*\(?[A-J](?:[).:][^\n]{0,120})?[*_]*$(?!\n\s*[*_]*\(?[B-J][).:])"  # not the first line of a list
    r"|[*_]*[-+−$€£¥₹\\]*\.?\d[\d,.%/:\\$]*(?:[ \t]*[A-Za-z'°²³%]++\.?){0,4}[*_.]*[ \t]*$)"
)
_TITLE = re.compile(
    r"^[ \t]*(?:#{1,6}[ \t]*)?[*_]*(?:the[ \t]+)?(?:final[ \t]+|correct[ \t]+)?answer[*_]*[ \t]*:?[*_]*[ \t]*\n\s*+"
    rf"(?={_VALUE})",
    re.I | re.M,
)
_CUT_OFF = re.compile(
    r"(?P<lead>\b(?:answer|option|choice)\b[^\n.:=]{0,60}?\b(?:is|would be|must be|should be)[*_]*[ \t]*:?[*_]*)[ \t]*\n\s*+"
    rf"(?={_VALUE})",
    re.I | re.M,
)

_CUT_OFF_BULLET = re.compile(  # the only line of its list
    r"(?P<lead>\b(?:answer|option|choice)\b[^\n.:=]{0,60}?\b(?:is|would be|must be|should be)[*_]*[ \t]*:?[*_]*)[ \t]*"
    r"\n\s*+[-•+][ \t]+"
    r"(?=[*_]*\(?[A-J](?:[).:][^\n]{0,120})?[*_]*$(?!\n\s*(?:[-•+*][ \t]+)?[*_]*\(?[A-J][).:]))",
    re.I | re.M,
)
_CUT_OFF_WORDS = re.compile(
    r"(?P<lead>\b(?:answer|option|choice)\b[^\n.:=]{0,60}?\b(?:is|would be|must be|should be)[*_]*[ \t]*:?[*_]*)[ \t]*\n\s*+"
    r"(?=(?!(?:let|first|we|to|since|so|the following|step|given|if|now|then|because|for|in|it|this|there|i)\b)"
    r"[*_]*[A-Za-z][^\n.:=]{0,40}[.*_]*[ \t]*(?:\n[ \t]*\n|\s*\Z))",
    re.I,
)
_LABELLED = re.compile(r"(?!.*\b(?:answer|ans|total|result|sum)\b)[A-Za-z' ]+:\s*[\\$€£¥₹*]*\d", re.I)


class Mark(NamedTuple):
    line: str
    """What follows the hashes on their line."""
    rest: str
    """All that follows them."""
    sure: bool
    """Whether the line is an answer plainly; else it is words, with or without a number among them, that may be a heading."""


def mark(text: str, words: bool = False) -> Mark | None:
    """The mark that gives the answer: the first sure one, else the first of the others; None where there is none. `words`: the
    answer need not be a number."""
    doubtful, listed = None, False
    for number, match in enumerate(_MARK.finditer(text)):
        if number == MOST_MARKS:
            break
        end = text.find("\n", match.end())
        end = len(text) if end < 0 else end
        line, after = text[match.end() : end].strip(), text[end : end + _LONGEST_LINE]
        begins = not text[text.rfind("\n", 0, match.start()) + 1 : match.start()].strip(" \t>*_-")
        if begins and _LABELLED.match(line.strip(" *_")) and (listed or "\n####" in after):  # one of several: "Monday: 3"
            listed = True
            continue
        kind = _kind(line, after, words) if begins else _ANSWER
        if kind == _ANSWER:
            return Mark(line, text[match.end() :], True)
        if kind == _DOUBTFUL and doubtful is None:
            doubtful = Mark(line, text[match.end() :], False)
    return doubtful


_ANSWER, _DOUBTFUL, _TITLE_LINE = range(3)


def _kind(line: str, after: str, words: bool) -> int:
    """What a line is that begins with a mark: an answer, a heading, or what may be either. `after`: what follows the line."""
    content = line[:_LONGEST_LINE].strip(" \t*_#")
    if not content or _REFUSED.match(content):
        return _ANSWER
    if words and not after.strip() and not content.endswith(":") and not _TITLES.fullmatch(content):
        return _DOUBTFUL if _HEADING.match(content) or any(c.isdigit() for c in content) else _ANSWER
    if _LINKED.fullmatch(content):
        return _ANSWER
    if content.endswith(":") or _HEADING.match(content):
        return _TITLE_LINE
    if not any(c.isdigit() for c in content):
        heads = not words or _TITLES.fullmatch(content) or _WORKING.search(after)
        return _TITLE_LINE if heads else _DOUBTFUL if after.strip() else _ANSWER
    if _STATED.search(content) and not _SECTION.match(content):
        return _ANSWER
    return _TITLE_LINE if any(c.isdigit() for c in after) else _DOUBTFUL


def titles_joined(text: str) -> str:
    """With answers that stand on a line of their own put behind what announces them: `#### Answer`, `**Final Answer**` and "The
    answer is:" before a line that is a number, a formula, an option or a few words."""
    text = _TITLE.sub("Answer: ", text)
    for pattern in (_CUT_OFF, _CUT_OFF_BULLET, _CUT_OFF_WORDS):
        text = pattern.sub(lambda m: f"{m['lead']} ", text)
    return text


def headings_marked(text: str) -> str:
    """With the heading `#### Answer` of a number, formula or option as a mark: `#### 42`."""
    return _TITLE.sub(lambda m: "#### " if m.group().lstrip().startswith("#") else m.group(), text)

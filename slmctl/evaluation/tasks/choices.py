"""The option that an output chooses."""

from __future__ import annotations

import re

from slmctl.evaluation.tasks.answers import boxed, own_part, statements
from slmctl.evaluation.tasks.equivalence import same_formula

LETTERS = "ABCDEFGHIJ"
_WRAP = r"(?:[\s$*_(\[{]|\\(?:text|textbf|mathrm|mathbf|boxed|fbox)\s*\{|\\[(\[])*"
_LEAD = re.compile(
    rf"(?:(?:[Tt]he\s+)?(?:correct\s+|right\s+)?(?:[Oo]ption|[Cc]hoice|[Ll]etter)\s+)?(?P<wrap>{_WRAP})(?P<letter>[A-Ja-j])(?P<after>\s?[)\]}}$*.:,;]|\s|$)(?P<rest>.*)",
    re.S,
)
_IS_RIGHT = re.compile(
    r"(?<![\w(])(?:option\s+|choice\s+)?\(?(?P<letter>[A-J])\)?\s+is\s+(?:therefore\s+|thus\s+|clearly\s+)?"
    r"(?:the\s+)?(?:correct|right|only correct)\b(?!\s+that)"
)
_ANOTHER = re.compile(  # after a letter: "and (B)", "or C", ", (B)"
    rf"(?:,?\s*(?:and/or|and|or|&|/)\s*(?:[Oo]ption\s+|[Cc]hoice\s+)?(?:\(\s*[A-Ja-j]\s*\)|{_WRAP}[A-J](?!\w|'))"
    rf"|,\s*{_WRAP}[A-J][)\]}}$]*\s*(?:$|[.,]|and\b|or\b))"
)
_NOT_THAT = re.compile(  # letters that are named to be left out
    r"\b(?:not|nor|neither|except(?:ing|\s+for)?|besides|excluding|other\s+than|rather\s+than|instead\s+of|unlike|without|"
    r"(?:all|any|anything|everything|every\s+\w+|any\s+\w+)\s+but|(?:eliminat|exclud|reject|discard)(?:e|es|ed|ing)?|"
    r"rul(?:e|es|ed|ing)\s+out)\s+(?:the\s+)?(?:options?\s+|choices?\s+|answers?\s+)?\([A-J]\)"
    r"|\([A-J]\)\s+(?:is|are|was|must\s+be|can)\s*(?:clearly\s+|also\s+|therefore\s+|thus\s+)?"
    r"(?:(?:not|n't)\s+(?:be\s+)?(?:the\s+)?(?:correct|right|true|possible|answer|one\b|it\b)|wrong|incorrect|false|impossible|ruled\s+out|out\b)",
    re.I,
)
_DENIED = re.compile(r"\b(?:not|never|don't|doesn't|isn't|neither|nor|no|if|whether|why|when|unless)\b[^.\n;,]{0,40}$", re.I)
_SURE = re.compile(r"(?:because|since|as|for|and|which|with|by|from|\(|-|–|—)")
_LETTERED = re.compile(r"\([A-J]\)(?:\s*(?:,\s*)?(?:(?:and/or|and|or|&|/)\s*)?\([A-J]\))+\s*(?:$|[.,;])")
_RATHER = re.compile(r",?\s+(?:(?:and\s+)?not|rather\s+than|instead\s+of)\s+")
_BOLD = re.compile(r"([*_]{1,3})\(?([A-J])[).:]?\1\.?")
_LISTED_WITHIN = re.compile(r"(?:^|[\s,;])[*_]*\(?([A-J])[).:](?=\s)")
_LISTED = re.compile(r"^[ \t*_]*\(?([A-J])[.):]", re.M)
MOST_COMPARED = 20
"""Statements and boxes that are compared with the options' texts."""
_CHOICE = re.compile(
    r"(?<!each )(?<!every )(?<!all )(?<!any )(?<!following )(?<!other )(?<!possible )(?<!per )(?<!by )(?<!first )(?<!next )"
    r"\b(?:choice|option)\b[*_]*\s*(?:(?:is|would be|must be|should be)\b\s*:?\s*|[:=][*_]*(?![ \t]*\n)[ \t]*)",
    re.I,
)
"""What states an option; "Let us look at each option:" does not, nor what ends its line before a list."""


def choice(text: str, choices: tuple[str, ...] = ()) -> str | None:
    """The letter chosen, upper case: of a statement ("the answer is (B)"), a box, "(B) is correct", an option's text that is
    stated, the output's first line, or the only letter in brackets of its last line. None where none of these tells it;
    nothing is guessed, and "(A) and (B)" tells nothing."""
    text = own_part(text)
    letters = LETTERS[: len(choices)] if choices else LETTERS[:5]
    stated = list(statements(_CHOICE.sub("answer is ", text)))
    boxes = boxed(text)[::-1]
    for candidate in (*stated, *boxes):
        several = names_several(candidate) or names_several_texts(candidate, choices)
        if not several and (letter := leading_letter(candidate, letters)):
            return letter
        if several:
            number = option_of(candidate, choices)  # "both (A) and (B)" may be an option
            return None if number is None else LETTERS[number]
    right = [m for m in _IS_RIGHT.finditer(text) if m["letter"] in letters]
    if affirmed := [m["letter"] for m in right if not _DENIED.search(text[max(0, m.start() - 50) : m.start()])]:
        return affirmed[-1]
    for candidate in (*stated, *boxes)[:MOST_COMPARED]:
        if (number := option_of(candidate, choices)) is not None:
            return LETTERS[number]
    return _bare(text, letters)


def leading_letter(text: str, letters: str) -> str | None:
    """The letter that a stated answer begins with: `(B)`, `B.`, `b`, `option B`, `B because …`; not the word "a", nor one of
    two, as in "B or C"."""
    match = _LEAD.match(text.strip())
    if not match or names_several(text):
        return None
    letter, rest = match["letter"], match["rest"].strip()
    bracketed = bool(re.search(r"[(\[{]", match["wrap"])) or match["after"].strip() != ""
    if letter.upper() not in letters:
        return None
    if bracketed or not rest:
        return letter.upper()
    sure = _SURE.match(rest) is not None
    return letter if letter.isupper() and (sure or letter not in "AI") else None


def names_several(text: str) -> bool:
    """Whether a stated answer begins with two letters or more, or is a list of options: "A) 12, B) 16, C) 18"."""
    match = _LEAD.match(text.strip())
    if match and not _SURE.match(match["rest"].strip()):
        first = LETTERS.index(match["letter"].upper())
        if "".join(_LISTED_WITHIN.findall(text.upper())[:3]) == LETTERS[first : first + 3]:
            return True
    return match is not None and _ANOTHER.match(text.strip(), match.end("letter") + len(_closing(match["after"]))) is not None


def names_several_texts(text: str, choices: tuple[str, ...]) -> bool:
    """Whether a stated answer is two options with their texts: "(A) One or (B) Two"."""
    for letter, option in zip(LETTERS, choices, strict=False):
        if option.strip():
            own = rf"(?<!\w)(?:[Oo]ption\s+|[Cc]hoice\s+)?\(?{letter}[).:]+\s*{re.escape(option.strip())}(?!\w)"
            text = re.sub(own, f"({letter})", text)
    match = _LETTERED.match(text.strip())
    return match is not None and len(set(re.findall("[A-J]", match.group()))) > 1


def _closing(after: str) -> str:
    """What closes a letter's brackets."""
    return after if after.strip() in (")", "]", "}", "$", "*") else ""


def option_of(text: str, choices: tuple[str, ...]) -> int | None:
    """The one option whose text a stated answer is, or is instead of another option's ("Three, not Two"); None where none or
    several are."""
    found = _options(text, choices)
    if not found and (rather := _RATHER.search(text)):
        this, other = (_options(part, choices) for part in (text[: rather.start()], text[rather.end() :]))
        found = this if len(other) == 1 and this != other else []
    return found[0] if len(found) == 1 else None


def _options(text: str, choices: tuple[str, ...]) -> list[int]:
    return [i for i, option in enumerate(choices) if option.strip() and same_formula(text, option)]


def _bare(text: str, letters: str) -> str | None:
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    if not lines:
        return None
    bold = [m[2] for line in lines if (m := _BOLD.fullmatch(line))]
    if len(set(bold)) == 1 and bold[0] in letters and _BOLD.fullmatch(lines[0]):
        return bold[0]
    first = re.match(rf"\(?([{letters}])(?:\)|[.:](?=\s|$)|$)", _NOT_THAT.sub(" ", lines[0]).strip())
    if first and not names_several(lines[0]) and _LISTED.findall(text)[:2] != ["A", "B"]:  # all options, one after the other
        return str(first[1])
    bracketed = set(re.findall(rf"(?<!\w)\(([{letters}])\)", _NOT_THAT.sub(" ", lines[-1])))
    if len(bracketed) == 1:
        return str(bracketed.pop())
    return None

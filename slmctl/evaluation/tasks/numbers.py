"""Numbers in text, and when two are the same."""

from __future__ import annotations

import re
from fractions import Fraction

from slmctl.evaluation.tasks.answers import boxed, own_part, statements

TOLERANCE = Fraction(1, 10**6)
"""Relative difference below which two values, not both whole, are the same."""

LONGEST = 400
"""Characters of a number or formula that is worked with; a longer one is compared as text."""

_EXACT = re.compile(r"-?(?:\d+(?:\.\d+)?|\d+/\d+)")
_PLAIN = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_NUMBER = re.compile(
    rf"(?P<sign>(?<![\w)\]}}.])-)?(?:[$€£¥](?P<inner>-)?)?(?:(?P<whole>\d+)\s+(?=\d+\s*/))?(?P<number>{_PLAIN})"
    rf"(?:\s*(?:x|×|\*|\\times|\\cdot)\s*10\s*\^\s*\{{?(?P<power>[+-]?\d{{1,3}})\}}?|[eE](?P<e>[+-]?\d{{1,3}})(?!\w))?"
    rf"(?:\s*/\s*(?P<under>{_PLAIN}))?(?P<percent>\s*(?:\\?%|percent\b|per cent\b))?",
)
_UNITS = (
    "zero one two three four five six seven eight nine ten "
    "eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"
)
_WORDS = {w: i for i, w in enumerate(_UNITS.split())}
_TENS = {w: 10 * i for i, w in enumerate("twenty thirty forty fifty sixty seventy eighty ninety".split(), 2)}
_WORD = re.compile(rf"\b(?:({'|'.join(_TENS)})(?:[- ]({'|'.join(_UNITS.split()[1:10])}))?|({'|'.join(_WORDS)}))\b", re.I)


def plain(text: str) -> str:
    """LaTeX and Unicode spellings of numbers as plain text: `\\frac{1}{2}` is 1/2, `1{,}000` is 1000, `−3` is -3."""
    text = re.sub("[−–—‐‑]", "-", text)
    text = text.replace("{,}", "").replace("\\!", "").replace("\\,", "").replace("\\$", "$").replace("\\%", "%")
    text = re.sub(r"-\s*\((\d+/\d+)\)", r"-\1", text)
    text = re.sub(r"(\d)\s*\\[dtc]?frac\s*\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}", r"\1 \2/\3", text)
    text = re.sub(r"\\[dtc]?frac\s*\{\s*([\d.,]+)\s*\}\s*\{\s*([\d.,]+)\s*\}", r"\1/\2", text)
    return re.sub(r"\\[dtc]?frac\s*(\d)\s*(\d)", r"\1/\2", text)


def numbers(text: str) -> list[str]:
    """The numbers of a text in order, each as `-12.5`, `3/4` or `50%`. Currency signs and thousands commas are dropped,
    `1 1/2` is 3/2, and a minus after a number or a letter is an operation, not a sign."""
    found = []
    for match in _NUMBER.finditer(plain(text)):
        value = _digits(match["number"])
        if power := match["power"] or match["e"]:
            exact = Fraction(value) * Fraction(10) ** int(power)
            value = str(exact) if exact.denominator == 1 or not _finite(exact) else _decimal(exact)
        if match["under"]:
            under = Fraction(_digits(match["under"]))
            if under == 0:
                continue
            value = str((Fraction(value) / under) + int(match["whole"] or 0))
        sign = "-" if bool(match["sign"]) != bool(match["inner"]) else ""
        found.append(f"{sign}{value}{'%' if match['percent'] else ''}")
    return found


def _digits(text: str) -> str:
    text = text.replace(",", "")
    return f"0{text}" if text.startswith(".") else text


def _finite(value: Fraction) -> bool:
    """Whether a fraction has a finite decimal form."""
    under = value.denominator
    for prime in (2, 5):
        while under % prime == 0:
            under //= prime
    return under == 1


def _decimal(value: Fraction) -> str:
    places = 0
    while (value * 10**places).denominator != 1:
        places += 1
    digits = f"{abs(value.numerator) * 10**places // value.denominator:0{places + 1}d}"
    return f"{'-' if value < 0 else ''}{digits[:-places]}.{digits[-places:]}"


def stated_number(text: str) -> str | None:
    """The number that a stated answer gives: the result of a calculation, else its first; a number in words where there
    are no digits."""
    shorter = re.sub(r"\([^()]*\)\s*$", "", text)
    text = shorter if numbers(shorter) else text
    text = re.sub(r"^(\D*)(\d{1,3}(?: \d{3})+)(?![\d.,%]| *[-+*/=%])", lambda m: m[1] + m[2].replace(" ", ""), text)  # 9 500
    parts = [found for part in text.split("=") if (found := numbers(part))]
    if parts:
        return parts[-1][0] if len(parts) > 1 else parts[0][0]
    if word := _WORD.search(text):
        tens, unit, small = word.groups()
        return str(_TENS[tens.lower()] + _WORDS.get((unit or "zero").lower(), 0) if tens else _WORDS[small.lower()])
    return None


def final_answer(text: str, choices: tuple[str, ...] = ()) -> str | None:  # noqa: ARG001 - readers have one form
    """The number of a word problem's answer: after `####`, else stated, else boxed, else the last number."""
    text = own_part(text)
    if "####" in text and (found := numbers(text.split("####", 1)[1].split("\n", 1)[0])):
        return found[0]
    for statement in statements(text):
        if number := stated_number(statement):
            return number
    for box in reversed(boxed(text)):
        if number := stated_number(box):
            return number
    found = numbers(text)
    return found[-1] if found else None


def values(number: str) -> set[Fraction]:
    """What a number of `numbers` may mean: `50%` is 50 and 1/2. Empty where the text is no number."""
    bare = number.strip().removesuffix("%").strip()
    if not _EXACT.fullmatch(bare) or len(bare) > LONGEST:
        return set()
    try:
        value = Fraction(bare)
    except ZeroDivisionError:
        return set()
    return {value, value / 100} if number.strip().endswith("%") else {value}


def same_number(found: str, target: str) -> bool:
    """Whether two numbers are equal: exactly where both are whole, else to a relative `TOLERANCE`, or where the found one
    rounds to the target at the decimals that the target is written with (33.333 for 33.33, not the reverse)."""
    if found.endswith("%") and target.endswith("%"):
        found, target = found[:-1], target[:-1]
    places = len(target.rstrip("%").split(".")[1]) if "." in target else 0
    return any(close(f, t) or (places > 0 and _rounds(f, t, places)) for f in values(found) for t in values(target))


def close(a: Fraction, b: Fraction) -> bool:
    if a.denominator == b.denominator == 1:
        return a == b
    return abs(a - b) <= TOLERANCE * max(abs(a), abs(b))


def _rounds(found: Fraction, target: Fraction, places: int) -> bool:
    """Half a unit of the target's last place, for targets with two decimals or more."""
    return places > 1 and abs(found - target) <= Fraction(1, 2 * 10**places)

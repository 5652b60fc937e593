"""Numbers in text, and when two are the same."""

from __future__ import annotations

import re
from decimal import Decimal
from fractions import Fraction

from slmctl.evaluation.answer_marks import mark
from slmctl.evaluation.tasks.answers import boxed, own_part, statements

TOLERANCE = Fraction(1, 10**6)
"""Relative difference below which two values, not both whole, are the same."""

LONGEST = 400
"""Characters of a number or formula that is worked with; a longer one is compared as text."""

_EXACT = re.compile(r"-?(?:\d+(?:\.\d+)?|\d+/\d+)")
_PLAIN = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_NUMBER = re.compile(
    rf"(?P<clock>\d+(?::\d+)+)|(?P<sign>(?<![\w)\]}}.])-)?(?:[$€£¥₹₩](?P<inner>-)?)?(?:(?P<whole>\d+)\s+(?=\d+\s*/))?(?P<number>{_PLAIN})"
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


_EITHER = re.compile(r"^(?:either|both)\s+", re.I)
_ALONE = re.compile(r"-?[$€£¥₹₩]?-?[\d,.]*\d(?:\s*/\s*\d+)?\s*%?[$]?")
_BETWEEN = re.compile(r"\bbetween\s+[$€£¥₹₩-]{0,3}\d[\d,.]*[$%]?\s+and\s+[$€£¥₹₩-]{0,3}\d(?:[\d,.]*\d)?[$%]?", re.I)
_SHARE = re.compile(
    r"\D*\d[\d.,]*\s*(?:\\?%|percent\b|per cent\b|/\s*\d+)\s+of\s+\D{0,40}\d.*?"
    r"\b(?:so|thus|hence|therefore|or|which\s+(?:is|equals|gives|makes)|that\s+is)\b(?P<result>.*)",
    re.S | re.I,
)
_LINK = re.compile(
    r"[,;]?\s+(?:(?:which|that|this|it)\s+)?(?:is|are|equals?|gives|makes|leaves|comes\s+to)\s+|,?\s+(?:so|thus|hence|therefore)\s+|,\s+or\s+"
    r"|,?\s+(?:leaving|giving|making|yielding|for\s+a\s+total\s+of)\s+|\s*(?:→|⇒|\\to\b|\\Rightarrow\b|\\implies\b)\s*",
    re.I,
)
_OPERATOR = re.compile(r"\s[-x/]\s|[+*×÷]|\\(?:times|cdot|div)(?![a-z])|\b(?:plus|minus|times|divided\s+by)\b", re.I)
_MORE_THAN = re.compile(r"\D{0,20}\d[\d,.]*%?\s*(?:more|less|fewer|greater|times|of\b|and\b|or\b)", re.I)

_COMPARED = re.compile(
    r"[^\w]*(?P<by>[\d,.]*\d)(?:\s+[A-Za-z]+)?\s+(?P<how>more|less|fewer)(?:\s+[A-Za-z]+)?\s+than\s+[$€£¥₹₩]?(?P<what>[\d,.]*\d)"
    r"(?:\s+[A-Za-z]+)?"
)
"""5 more than 20"""
_LONGEST_COMPARED = 120


def plain(text: str) -> str:
    """LaTeX and Unicode spellings of numbers as plain text: `\\frac{1}{2}` is 1/2, `1{,}000` is 1000, `−3` is -3."""
    text = re.sub("[−–—‐‑]", "-", text)
    text = text.replace("{,}", "").replace("\\!", "").replace("\\,", "").replace("\\$", "$").replace("\\%", "%")
    text = re.sub(r"\b([Rr]s)\.(?=\d)", r"\1 ", text)
    text = re.sub(r"-\s*\((\d+/\d+)\)", r"-\1", text)
    text = re.sub(r"(\d)\s*\\[dtc]?frac\s*\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}", r"\1 \2/\3", text)
    text = re.sub(r"\\[dtc]?frac\s*\{\s*([\d.,]+)\s*\}\s*\{\s*([\d.,]+)\s*\}", r"\1/\2", text)
    return re.sub(r"\\[dtc]?frac\s*(\d)\s*(\d)", r"\1/\2", text)


def numbers(text: str) -> list[str]:
    """The numbers of a text in order, each as `-12.5`, `3/4` or `50%`. Currency signs and thousands commas are dropped,
    `1 1/2` is 3/2, and a minus after a number or a letter is an operation, not a sign. A time or ratio, `4:30`, is one of them
    as it stands (it equals no number), a full hour, `4:00`, is its hour."""
    found = []
    for match in _NUMBER.finditer(plain(text)):
        if match["clock"]:
            hour, *rest = match["clock"].split(":")
            found.append(hour if rest == ["00"] else match["clock"])
            continue
        value = _digits(match["number"])
        if power := match["power"] or match["e"]:
            value = _shifted(value, int(power))
        if match["under"] and len(match.group()) <= LONGEST:
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


def _shifted(value: str, power: int) -> str:
    """A decimal times a power of ten, written out."""
    sign, digits, exponent = Decimal(value).as_tuple()
    text = f"{Decimal((sign, digits, int(exponent) + power)):f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def several(text: str) -> bool:
    """Whether a text is two numbers or more that are not the same, joined by "and", "or" or commas, or "between" two."""
    parts = re.split(r"\s*,\s+(?:and\s+|or\s+)?|\s+(?:and|or)\s+", _EITHER.sub("", plain(text.strip())).rstrip(" ."))
    if len(parts) < 2 or not all(_ALONE.fullmatch(p) for p in parts) or "/" in parts[-1]:  # "2 and 1/2"
        return False
    return not all(same_number(numbers(p)[0], numbers(parts[0])[0]) for p in parts)


def without_ranges(text: str) -> str:
    """Without "between 3 and 4": what an answer lies between is none."""
    return _BETWEEN.sub(" ", text)


def stated_number(text: str) -> str | None:
    """The number that a stated answer gives: the result of a calculation, else its first; a number in words where there
    are no digits. Of "20% of 50, so 10" and "15 - 5, which is 10" it is 10; "5 or 6" and "between 5 and 6" give none."""
    text = without_ranges(text)
    if several(text):
        return None
    if (share := _SHARE.match(text)) and numbers(share["result"]):
        text = share["result"]
    text = _result(text)
    shorter = re.sub(r"\([^()]*\)\s*$", "", text)
    text = shorter if numbers(shorter) else text
    text = re.sub(r"^(\D*)(\d{1,3}(?: \d{3})+)(?![\d.,%]| *[-+*/=%])", lambda m: m[1] + m[2].replace(" ", ""), text)  # 9 500
    sides = [side for side in text.split("=") if numbers(side)]
    if sides:
        turned = len(sides) > 1 and _is_calculation(sides[-1]) and len(numbers(sides[0])) == 1 and _begins_with_number(sides[0])
        return numbers(sides[0 if turned else -1])[0]  # turned: 128 = 80 + 48
    if word := _WORD.search(text):
        tens, unit, small = word.groups()
        return str(_TENS[tens.lower()] + _WORDS.get((unit or "zero").lower(), 0) if tens else _WORDS[small.lower()])
    return None


def _result(text: str) -> str:
    """What a calculation at the beginning of `text` comes to, with what follows: "452" of "676 - 224, which is 452". `text` where
    there is no such thing: "5, which is 3 more than 2"."""
    plainly = plain(text)
    link = _LINK.search(plainly)
    if link is None or _MORE_THAN.match(plainly, link.end()):
        return text
    before, result = plainly[: link.start()], numbers(plainly[link.end() : link.end() + LONGEST])
    if not result or "=" in before or not re.match(r"\D{0,25}\d", plainly[link.end() :]):
        return text
    if len(before) < _LONGEST_COMPARED and (compared := _COMPARED.fullmatch(before)) and _comes_to(compared, result[0]):
        return plainly[link.end() :]
    tight = re.fullmatch(r"\W*([\d,.]+)-\W*([\d,.]+)[^\d]*", before)  # 676-224, but not the range 10-12
    if tight and values(result[0]) & {x - y for x in values(_digits(tight[1])) for y in values(_digits(tight[2].rstrip(".,")))}:
        return plainly[link.end() :]
    return plainly[link.end() :] if _is_calculation(before) else text


def _comes_to(compared: re.Match[str], result: str) -> bool:
    """Whether a number is what "5 more than 20" comes to."""
    by, what = (values(_digits(compared[part])) for part in ("by", "what"))
    return bool(values(result) & {y + x if compared["how"] == "more" else y - x for x in by for y in what})


def _is_calculation(text: str) -> bool:
    """Whether a text is numbers with signs of arithmetic between them, each with at most four words: "80 dollars + 48"."""
    parts = _OPERATOR.split(text)
    return (
        len(parts) > 1
        and _begins_with_number(text)
        and all(len(numbers(p)) == 1 and len(re.findall(r"[A-Za-z]+", p)) <= 4 for p in parts)
    )


def _begins_with_number(text: str) -> bool:
    return re.match(r"[^\w]{0,8}\d", text) is not None


def final_answer(text: str, choices: tuple[str, ...] = ()) -> str | None:  # noqa: ARG001 - readers have one form
    """The number of a word problem's answer: after a mark, `####`, else stated, else boxed, else the last number. Where two are
    stated, "5 or 6", they are the answer as they stand, and equal no number."""
    text = without_ranges(own_part(text))
    marked = mark(text)
    if marked and marked.sure and (number := _marked_number(marked.line)):
        return number
    for statement in statements(text):
        if number := stated_number(statement):
            return number
        if several(statement):
            return statement
    for box in reversed(boxed(text)):
        if number := stated_number(box):
            return number
    if marked and (number := _marked_number(marked.line)):
        return number
    found = numbers(text)
    return found[-1] if found else None


def _marked_number(line: str) -> str | None:
    found = numbers(line)
    return (stated_number(line) or found[0]) if found else None


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

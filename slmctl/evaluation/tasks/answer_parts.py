"""LaTeX answers taken apart: sides of a relation, parts of a list or set, rows of a matrix, a value and its unit."""

from __future__ import annotations

import re

_BRACKETS = {"(": ")", "[": "]", "{": "}", "⦃": "⦄"}
RELATION = re.compile(r"<=|>=|!=|=>|->|=|<|>")
_MATRIX = re.compile(r"\\begin\{([pbvBV]?matrix|array)\}(?:\{[^{}]*\})?(.*?)\\end\{\1\}", re.S)
_UNIT = re.compile(
    r"(?P<value>.*[\d)}\]%])\s*(?P<unit>(?:(?:\s+|(?<=[\d)}%])(?=[a-zA-Z]{2}))(?!and\b|or\b|am\b|pm\b|a\.m|p\.m)[a-zA-Z]+\.?(?:\s*\^\s*\{?-?\d\}?)?(?:\s*/\s*[a-zA-Z]+)?)+)"
)


def squeezed(text: str) -> str:
    """Without spaces, but for those between two digits: `1 1` is not 11."""
    return re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", text)


def sides_of(text: str) -> tuple[list[str], list[str]]:
    """The sides of a relation, and its signs: those outside of brackets, as in `P(X=3) = 1/8`, or all where none is."""
    sides, signs, depth, start = [], [], 0, 0
    at = 0
    while at < len(text):
        depth += (text[at] in "([{⦃") - (text[at] in ")]}⦄")
        match = RELATION.match(text, at) if depth <= 0 else None
        if match:
            sides.append(text[start:at])
            signs.append(match.group())
            start = match.end()
        at = match.end() if match else at + 1
    if signs:
        return [*sides, text[start:]], signs
    return RELATION.split(text), RELATION.findall(text)


def matrix_rows(text: str) -> list[list[str]] | None:
    """The entries of the first matrix in a text, row by row; None where there is none."""
    match = _MATRIX.search(text)
    if not match:
        return None
    return [row.split("&") for row in re.split(r"\\\\(?:\[[^\]]*\])?", match[2].strip()) if row.strip()]


def elements_of(text: str) -> tuple[str, list[str]]:
    """The opening bracket around the whole (empty: none) and the parts between commas of the first level."""
    text = text.strip()
    opening = text[0] if text and text[0] in _BRACKETS else ""
    if opening and not _encloses(text):
        opening = ""
    parts = comma_parts(text[1:-1] if opening else text)
    return ("" if opening == "{" else opening), parts


def _encloses(text: str) -> bool:
    """Whether the first bracket is closed by the last sign; intervals may close with either kind."""
    if text[-1] not in ")]}⦄" or (text[0] in "{⦃") != (text[-1] in "}⦄"):
        return False
    return is_one_group(text, "([{⦃", ")]}⦄")


def is_one_group(text: str, opening: str, closing: str) -> bool:
    """Whether brackets, of whatever kinds, are all closed by the last sign and not before."""
    depth = 0
    for i, sign in enumerate(text):
        depth += (sign in opening) - (sign in closing)
        if depth == 0:
            return i == len(text) - 1
    return False


def comma_parts(text: str) -> list[str]:
    """Parts between commas, semicolons, "and" and "or" of the first level."""
    text = re.sub(r"\s*,?\s*(?:\band\b|\bor\b)\s*", ",", text)
    parts, depth, start = [], 0, 0
    for i, sign in enumerate(text):
        depth += (sign in "([{⦃") - (sign in ")]}⦄")
        if sign in ",;" and depth == 0:
            parts.append(text[start:i])
            start = i + 1
    return [p.strip() for p in [*parts, text[start:]] if p.strip()]


def percent_readings(text: str) -> list[str]:
    text = text.strip()
    if not text.endswith("%"):
        return [text]
    bare = text.rstrip("% ")
    return [bare, f"({bare})/100"]


def value_and_unit(text: str) -> tuple[str, str]:
    """A quantity's value, and its unit or the noun it counts; empty where it has none."""
    match = _UNIT.fullmatch(text)
    return (match["value"].strip(), match["unit"].strip()) if match else (text, "")

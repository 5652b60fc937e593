"""LaTeX answers in one spelling, before they are compared."""

from __future__ import annotations

import re

from slmctl.evaluation.tasks.answers import closing

_DROPPED = re.compile(
    r"\\(?:left|right|[bB]igg?[lrm]?|displaystyle|textstyle|limits|quad|qquad|,|!|;|:|>|/|\(|\)|\[|\]|hspace\{[^{}]*\}|phantom\{[^{}]*\})(?![A-Za-z])"
)
_SAME = {
    "−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "×": "*", "·": "*", "⋅": "*", "÷": "/", "π": r"\pi ", "∞": r"\infty ",
    "≤": "<=", "≥": ">=", "≠": "!=", "∪": "∪", "±": "±", "°": "", "²": "^2", "³": "^3", "½": r"\frac{1}{2}",
    "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}", "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}", "√": r"\sqrt ", "θ": r"\theta ",
    "“": '"', "”": '"', "’": "'", "‘": "'", "\u00a0": " ", "{,}": ",", "~": " ", r"\$": "$",
}  # fmt: skip
_COMMANDS = {
    "cdot": "*", "times": "*", "ast": "*", "div": "/", "le": "<=", "leq": "<=", "leqslant": "<=", "ge": ">=", "geq": ">=",
    "geqslant": ">=", "lt": "<", "gt": ">", "ne": "!=", "neq": "!=", "cup": "∪", "pm": "±", "infinity": r"\infty ",
    "dfrac": r"\frac", "tfrac": r"\frac", "cfrac": r"\frac", "dbinom": r"\binom", "tbinom": r"\binom", "degree": "",
    "lbrace": "⦃", "rbrace": "⦄", "lvert": "|", "rvert": "|", "vert": "|", "mid": "|", "emptyset": "⦃⦄", "varnothing": "⦃⦄",
    "implies": "=>", "Rightarrow": "=>", "approx": "=", "to": "->", "rightarrow": "->", "circ": "", "prime": "'",
}  # fmt: skip
_WORDS = re.compile(r"\\(?:text|textbf|textit|textrm|textnormal|mbox|hbox|mathrm|mathbf|mathit|mathsf|operatorname|rm|bf)\s*\{")
_THOUSANDS = re.compile(r"(?<![\d.,])(?<!\d )(\d{1,3}(?:,\d{3}|(?<!,\d{3}) \d{3})+)(?![\d,]| \d)")


def normal(text: str) -> str:
    """One spelling of an answer: no layout commands, `\\frac` for all its kinds, text out of `\\text{}`, ⦃⦄ for the braces of
    sets, `*`, `/`, `<=`, `±`, `∪` for their commands, single spaces. Meaning is left to `equivalence`."""
    text = re.sub(r"\\\\(?=[A-Za-z]{2,})", r"\\", text.strip())  # doubled as in source code; a matrix row goes on after a space
    text = re.sub(r"\^\s*\{?\s*\\(?:circ|degree)\s*\}?", "", text)
    text = text.replace(r"\!", "").replace(r"\{", "⦃").replace(r"\}", "⦄").replace(r"\%", "%")
    text = re.sub(r"(?<!\\)\\ ", " ", text)
    for old, new in _SAME.items():
        text = text.replace(old, new)
    text = re.sub(r"\\frac(?![A-Za-z])|\\([A-Za-z]+)(?![A-Za-z])", lambda m: _COMMANDS.get(m[1] or "", m[0]), text)
    text = _DROPPED.sub(" ", text)
    text = _unwrap(text)
    text = text.replace("$", "")
    return re.sub(r"\s+", " ", text).rstrip(" .,;:").lstrip(" ,;:")


def _unwrap(text: str) -> str:
    """`\\text{ apples}` as plain words."""
    while match := _WORDS.search(text):
        end = closing(text, match.end() - 1)
        inside = text[match.end() : end] if end is not None else text[match.end() :]
        text = f"{text[: match.start()]} {inside} {text[end + 1 :] if end is not None else ''}"
    return text


def without_thousands(text: str) -> str:
    """`1,234` and `1 234` as 1234."""
    return _THOUSANDS.sub(lambda m: re.sub("[, ]", "", m[1]), text)

"""Left sides of equations that say of what the right side is the value: `f(3) = 7`, `P(A) = 1/2`, `(x,y) = (3,2)`, `a+b = 7`.

An equation that is still to be solved, `2x = 10`, says no such thing, nor does one that is an answer itself, as a line's
`3x + 4y = 5`. All texts here are normal (see `latex`).
"""

from __future__ import annotations

import re

from slmctl.evaluation.tasks import expressions
from slmctl.evaluation.tasks.answer_parts import is_one_group
from slmctl.evaluation.tasks.expressions import FormulaError

_NAME = r"\\?[A-Za-z]+(?:_(?:\{[^{}]*\}|\w+))?'*"
_LONE = re.compile(rf"{_NAME}(?:\s*\(\s*\\?[a-z]+(?:\s*,\s*[a-z]+)*\s*\))?")
_TUPLE = re.compile(rf"[(\[⦃]?\s*{_NAME}(?:\s*,\s*{_NAME})+\s*[)\]⦄]?")
_CALL = re.compile(rf"(?P<name>{_NAME})\s*(?:\^\s*\{{?\s*-?\d\s*\}}?)?'*\s*(?P<argument>[(\[].*[)\]])")
_COMPOSED = re.compile(r"\(\s*[fghFGH](?:[\s+\-*/]*[fghFGH])+\s*\)\s*\([^()]*\)")
_TRIGONOMETRIC = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)\s*(?:\^\s*\{?\s*\d\s*\}?)?\s*[^=<>]*[A-Za-z\d][^=<>]*")
_WORKED = re.compile(r"\\(?:sum|prod|int|lim|max|min|det|gcd|inf|sup)(?![A-Za-z])")
_MEASURED = re.compile(
    r"\\(?:m?angle|measuredangle|triangle|overline|overrightarrow|vec|hat|widehat|bar|mathbb|mathcal|boldsymbol|bm)(?![A-Za-z])"
)
_WORDS = re.compile(r"(?!.*\b(?:and|or)\b)(?=.*[a-z]{3})[A-Za-z][A-Za-z' ]*")
_POWER = re.compile(rf"{_NAME}\s*\^\s*(?:\{{\s*(?:-\s*1|T)\s*\}}|T)")
_MATRIX = re.compile(r"\\begin\{\w+\}(?:\{[^{}]*\})?(?P<inside>.*)\\end\{\w+\}", re.S)
_RATIO = re.compile(r"[A-Za-z]{1,2}(?:\s*:\s*[A-Za-z]{1,2})+")
_VALUES = re.compile(r"(?:\d+\s*)?[fghpqPQ]\s*\(\s*-?\d+\s*\)(?:\s*[-+*/]?\s*(?:\d+\s*)?[fghpqPQ]\s*\(\s*-?\d+\s*\))+")
"""f(1) + 2f(2)"""
_UNKNOWNS = frozenset("xyz")
_NO_FUNCTIONS = frozenset("xzn")
"""Names before a bracket that are factors rather than functions: `x(x+1)`."""
_CLOSING = {"(": ")", "[": "]"}


def names_a_value(side: str) -> bool:
    """Whether a left side is the name of something: a variable, a tuple, a function's value, a length, a set's size, or words."""
    side = side.strip()
    if _LONE.fullmatch(side) or _TUPLE.fullmatch(side) or _COMPOSED.fullmatch(side) or _POWER.fullmatch(side):
        return True
    if _RATIO.fullmatch(side) or _VALUES.fullmatch(side):
        return True
    if _TRIGONOMETRIC.fullmatch(side) or _WORKED.match(side) or _WORDS.fullmatch(side):
        return True
    if _is_call(side) or _is_size(side):
        return True
    if matrix := _MATRIX.fullmatch(side):
        return all(_LONE.fullmatch(entry.strip()) for entry in re.split(r"&|\\\\", matrix["inside"]) if entry.strip())
    return (
        _MEASURED.search(side) is not None
        and re.fullmatch(r"[A-Za-z\s]+", _MEASURED.sub("", side).translate(_NO_BRACES)) is not None
    )


_NO_BRACES = str.maketrans("{}", "  ")


def is_of_several(side: str, value: str = "") -> bool:
    """Whether a left side is an expression of two unknowns or more, whose value may be what is asked for: `a+b`, `xy`, `100a+b`;
    but not `3x+4y`, with coefficients or powers, nor `x-y` equal to 0, which are halves of a line's or a circle's equation."""
    try:
        names = expressions.names(expressions.parse(side))
    except FormulaError:
        return False
    of_a_curve = names <= _UNKNOWNS and (any(c.isdigit() for c in side) or value.strip() == "0")
    return len(names) > 1 and not of_a_curve


def _is_call(side: str) -> bool:
    """`f(-2)`, `P(A)`, `E[X]`, `f^{-1}(3)`, `\\gcd(12, 18)`, but not a product as in `x(x+1)`, nor `f(2)g(3)`."""
    match = _CALL.fullmatch(side)
    if match is None or not is_one_group(match["argument"], "([{", ")]}"):
        return False
    if match["name"] in _NO_FUNCTIONS and not re.search("[A-Z]", match["argument"]):  # but n(A) is the size of a set
        return False
    return re.search(rf"(?<![A-Za-z]){re.escape(match['name'])}(?![A-Za-z(])", match["argument"]) is None


def _is_size(side: str) -> bool:
    """`|A|`, `|z|`, `|a-b|`, `[ABC]` (an area); not `|x|`, which is an equation to be solved."""
    bare = re.sub(r"\\\|", "|", side)
    if re.fullmatch(r"\[\s*[A-Z]{3,}\s*\]", bare):
        return True
    inside = bare.strip("| ")
    return (
        bare.startswith("|")
        and bare.endswith("|")
        and "|" not in inside
        and re.search("[A-Za-z]", inside) is not None
        and (inside not in ("x", "y", "n") and (len(inside) == 1 or _LONE.fullmatch(inside) is not None or is_of_several(inside)))
    )

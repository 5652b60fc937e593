"""Values of parsed formulas: enough to tell whether two answers are the same number or function.

Nothing is evaluated but what the grammar of `expressions` knows, in bounded time: whole numbers have a largest size. Two
functions are the same if they agree at a few points, which two different short formulas practically never do.
"""

from __future__ import annotations

import cmath
import math
import zlib
from fractions import Fraction

from slmctl.evaluation.tasks.expressions import FUNCTIONS, FormulaError, Node

LARGEST_BITS = 20_000
"""Of a whole number that is worked with exactly; beyond it values are complex floats, and too large ones none."""

Value = Fraction | complex


def value(node: Node, at: int = 0) -> Value:
    """The value, with variables at their point number `at`: exact for whole numbers and fractions, else a complex float.
    Raises `FormulaError` where there is none."""
    try:
        found = _value(node, at)
    except (OverflowError, ZeroDivisionError, ValueError) as e:
        raise FormulaError(str(e)) from None
    if isinstance(found, complex) and not cmath.isfinite(found):
        raise FormulaError("not finite")
    return found


def _point(name: str, at: int) -> complex:
    """A variable's value: positive, but at every fourth point negative."""
    size = 0.4 + (zlib.crc32(f"{name} {at}".encode()) % 100_003) / 50_000
    return complex(-size if at % 4 == 3 else size)


def _value(node: Node, at: int) -> Value:
    kind = node[0]
    if kind == "number":
        number: Fraction = node[1]
        return number
    if kind in ("pi", "e", "i"):
        return {"pi": complex(math.pi), "e": complex(math.e), "i": 1j}[kind]
    if kind == "name":
        return _point(node[1], at)
    if kind == "infty":
        raise FormulaError("infinite")
    if kind == "call":
        return FUNCTIONS[node[1]](_float(_value(node[2], at)))
    if kind == "log":
        base = _float(_value(node[2], at)) if node[2] else complex(10)
        return cmath.log(_float(_value(node[1], at))) / cmath.log(base)
    if kind in ("neg", "abs", "!"):
        return _unary(kind, _value(node[1], at))
    return _binary(kind, _value(node[1], at), _value(node[2], at))


def _unary(kind: str, a: Value) -> Value:
    if kind == "neg":
        return -a
    if kind == "abs":
        return abs(a) if isinstance(a, Fraction) else complex(abs(a))
    if not isinstance(a, Fraction) or a.denominator != 1 or not 0 <= a <= 500:
        raise FormulaError("no factorial")
    return Fraction(math.factorial(int(a)))


def _binary(kind: str, a: Value, b: Value) -> Value:
    if kind == "root":
        return _power(a, 1 / b)
    if kind == "^":
        return _power(a, b)
    if kind == "binom":
        if not (
            isinstance(a, Fraction) and isinstance(b, Fraction) and a.denominator == b.denominator == 1 and 0 <= b <= a <= 1000
        ):
            raise FormulaError("no binomial coefficient")
        return Fraction(math.comb(int(a), int(b)))
    if not (isinstance(a, Fraction) and isinstance(b, Fraction)) or max(_bits(a), _bits(b)) > LARGEST_BITS:
        a, b = _float(a), _float(b)
    if kind == "+":
        return a + b
    if kind == "-":
        return a - b
    if kind == "*":
        return a * b
    return a / b


def _power(a: Value, b: Value) -> Value:
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        if b.denominator == 1 and abs(b) * _bits(a) <= LARGEST_BITS:
            return a ** int(b)
        if a < 0 and b.denominator % 2 == 1 and b.denominator < 100:  # the real root
            root = complex(abs(float(a)) ** float(b))
            return -root if b.numerator % 2 else root
    return _float(a) ** _float(b)


def _bits(a: Fraction) -> int:
    return max(a.numerator.bit_length(), a.denominator.bit_length())


def _float(a: Value) -> complex:
    return complex(float(a)) if isinstance(a, Fraction) else a

"""Whether two answers are the same: as text, as numbers, as formulas, and part by part as lists, sets, intervals,
matrices and equations."""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction

from slmctl.evaluation.tasks import expressions
from slmctl.evaluation.tasks.answer_parts import (
    RELATION,
    comma_parts,
    elements_of,
    matrix_rows,
    percent_readings,
    sides_of,
    squeezed,
    value_and_unit,
)
from slmctl.evaluation.tasks.expression_values import Value, value
from slmctl.evaluation.tasks.expressions import FormulaError
from slmctl.evaluation.tasks.latex import normal, without_thousands
from slmctl.evaluation.tasks.number_bases import in_base
from slmctl.evaluation.tasks.numbers import LONGEST, close
from slmctl.evaluation.tasks.quantities import is_of_several, names_a_value
from slmctl.evaluation.tasks.units import same_unit

Same = Callable[[str, str], bool]
"""Whether a found answer is the same as the target."""
_IN = re.compile(r"\\in(?![a-z])")
_FLIPPED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "=": "=", "!=": "!="}
_FACTORIAL = re.compile(r"(?:\d|[\d+*/-][^()]*\)|(?<![A-Za-z])[a-z])\s*!$")
_PARTS = 40
"""Longest list that is compared without order."""


def same_text(a: str, b: str) -> bool:
    """Equal but for case, spaces, quotes, full stops, a leading article and brackets around the whole."""
    return bare_text(a) == bare_text(b) != ""


def bare_text(text: str) -> str:
    text = re.sub(r"\.(?!\d)", "", normal(text).lower()).replace('"', "").replace("’", "'")
    text = re.sub(r"^(?:the|a|an)\s+", "", text.strip())
    text = re.sub(r"^\(([a-z])\)$", r"\1", text)
    return re.sub(r"\s+", " ", text).strip(" '!?,;:")


def same_formula(found: str, target: str) -> bool:
    """Whether two LaTeX answers are the same.

    Numbers are compared as `numbers.close` does, formulas by their values at several points; lists and sets without
    order, tuples and intervals with order and (both having them) the kind of bracket; `x = 5` and `f(3) = 5` are 5, `5 cm`
    is 5 but not `5 m`, 50% is 50 and 0.5. A number in another base, `10_2`, is the same as the same digits in that base alone.
    A found `a+b = 7` is 7, but a found 7 is not the equation `x+y = 7`.
    """
    if max(len(found), len(target)) > 2 * LONGEST:
        return same_text(found, target)
    a, b = normal(found), normal(target)
    if not a or not b:
        return False
    if squeezed(a) == squeezed(b):
        return True
    readings = {(a, b), (without_thousands(a), without_thousands(b))}
    return any(_same(x, y, 0) for x, y in readings)


def _same(a: str, b: str, depth: int) -> bool:
    a, b = a.strip(), b.strip()
    if depth > 4 or not a or not b:
        return False
    if squeezed(a) == squeezed(b) or (same_text(a, b) and bool(_FACTORIAL.search(a)) == bool(_FACTORIAL.search(b))):
        return True
    if (base_a := in_base(a)) and (base_b := in_base(b)):
        return base_a == base_b
    if bool(RELATION.search(a)) or bool(RELATION.search(b)) or _IN.search(a + b):
        return _same_relation(a, b, depth)
    if "±" in a or "±" in b:
        a, b = (", ".join((t.replace("±", "+"), t.replace("±", "-"))) if "±" in t else t for t in (a, b))
    for split in (_matrix, _union, _list):
        if (verdict := split(a, b, depth)) is not None:
            return verdict
    if _same_value(a, b):
        return True
    (bare_a, unit_a), (bare_b, unit_b) = value_and_unit(a), value_and_unit(b)
    return (bare_a, bare_b) != (a, b) and same_unit(unit_a, unit_b) and _same_value(bare_a, bare_b)


def _same_relation(a: str, b: str, depth: int) -> bool:
    """Equations and inequalities, and `x = 5` beside a bare 5."""
    a, b = (re.sub(r"^\s*\\?[A-Za-z]+\s*\\in(?![a-z])", "", t) for t in (a, b))
    (parts_a, signs_a), (parts_b, signs_b) = sides_of(a), sides_of(b)
    parts, signs = [parts_a, parts_b], [signs_a, signs_b]
    if not signs[0] and not signs[1]:
        return _same(a, b, depth + 1)
    for one, other in ((0, 1), (1, 0)):
        if signs[one] and not signs[other]:
            return _same_as_bare(parts[one], signs[one], (a, b)[other], depth, found=one == 0)
    if "," in a and "," in b and (verdict := _list(a, b, depth)) is not None:  # x = 1, y = 2
        return verdict
    if signs[0] != signs[1] and [_FLIPPED.get(s) for s in reversed(signs[0])] == signs[1]:
        parts[0], signs[0] = parts[0][::-1], signs[1]
    if signs[0] != signs[1]:
        return False
    if all(_same(x, y, depth + 1) for x, y in zip(*parts, strict=True)):
        return True
    if signs[0] == ["="]:
        swapped = _same(parts[0][0], parts[1][1], depth + 1) and _same(parts[0][1], parts[1][0], depth + 1)
        return swapped or _proportional(parts[0], parts[1])
    return False


def _same_as_bare(sides: list[str], signs: list[str], bare: str, depth: int, found: bool) -> bool:
    """`x = 5`, `f(x) = 2x` and `3 + 5 = 8` beside their last side alone; `x = 1, x = 2` beside 1, 2. `found`: the equation is
    the found answer, and may say of what it gives the value, `a+b = 7`."""
    whole = "".join(s + sign for s, sign in zip(sides, [*signs, ""], strict=True))
    if "," in whole or " or " in whole or " and " in whole:
        pieces = comma_parts(whole)
        if len(pieces) > 1 and all("=" in p for p in pieces):
            return _same(", ".join(p.rsplit("=", 1)[1] for p in pieces), bare, depth + 1)
    if set(signs) != {"="}:
        return False
    named = names_a_value(sides[0]) or (found and is_of_several(sides[0], sides[-1]))
    if not named and not _same_value(sides[0], sides[-1]):
        return False
    return _same(sides[-1], bare, depth + 1) if found else _same(bare, sides[-1], depth + 1)


def _proportional(a: list[str], b: list[str]) -> bool:
    """Whether two equations say the same: left minus right are the same function up to a factor."""
    try:
        sides = [expressions.parse(t) for t in (*a, *b)]
        ratios = []
        for at in range(3 if any(expressions.has_root(s) for s in sides) else 4):  # the fourth tells |x| from x
            a0, a1, b0, b1 = (complex(value(s, at)) for s in sides)
            ratios.append((a0 - a1) / (b0 - b1))
    except (FormulaError, ZeroDivisionError, OverflowError):
        return False
    has_names = any(expressions.names(s) for s in sides)
    return has_names and abs(ratios[0]) > 1e-9 and all(abs(r - ratios[0]) <= 1e-9 * abs(ratios[0]) for r in ratios)


def _matrix(a: str, b: str, depth: int) -> bool | None:
    rows_a, rows_b = matrix_rows(a), matrix_rows(b)
    if rows_a is None or rows_b is None:
        return None
    if [len(r) for r in rows_a] != [len(r) for r in rows_b]:
        return False
    return all(_same(x, y, depth + 1) for r, s in zip(rows_a, rows_b, strict=True) for x, y in zip(r, s, strict=True))


def _union(a: str, b: str, depth: int) -> bool | None:
    if "∪" not in a and "∪" not in b:
        return None
    return _same_unordered(a.split("∪"), b.split("∪"), depth)


def _list(a: str, b: str, depth: int) -> bool | None:
    """Lists, sets, tuples and intervals; None where neither is one."""
    (open_a, parts_a), (open_b, parts_b) = elements_of(a), elements_of(b)
    sets = {"⦃", ""}
    if len(parts_a) == len(parts_b) == 1 and not {open_a, open_b} & {"⦃"}:
        return None if (open_a, open_b) == ("", "") else _same_single(a, b, open_a, open_b, parts_a[0], parts_b[0], depth)
    if len(parts_a) != len(parts_b):
        return False
    if open_b in sets and open_a in {*sets, "("}:
        return _same_unordered(parts_a, parts_b, depth)
    if open_a and open_b and a[0] + a[-1] != b[0] + b[-1]:
        return False
    return all(_same(x, y, depth + 1) for x, y in zip(parts_a, parts_b, strict=True))


def _same_single(a: str, b: str, open_a: str, open_b: str, in_a: str, in_b: str, depth: int) -> bool:
    """Brackets around one value do not matter."""
    return _same_value(a, b) or _same(in_a if open_a else a, in_b if open_b else b, depth + 1)


def _same_unordered(a: list[str], b: list[str], depth: int) -> bool:
    if len(a) != len(b) or len(a) > _PARTS:
        return False
    rest = list(b)
    for part in a:
        match = next((other for other in rest if _same(part, other, depth + 1)), None)
        if match is None:
            return False
        rest.remove(match)
    return True


def _same_value(a: str, b: str) -> bool:
    """Two formulas without relations: by value. A word is no formula, so that `no` is not `on`."""
    return any(_same_formula_value(x, y) for x in percent_readings(a) for y in percent_readings(b))


def _same_formula_value(a: str, b: str) -> bool:
    if any(not re.search(r"[^A-Za-z\s]", t) and len(squeezed(t)) > 1 for t in (a, b)):
        return False
    infinite = [re.fullmatch(r"([+-]?)\s*(?:\\infty|infinity|inf|oo)", t.strip()) for t in (a, b)]
    if infinite[0] and infinite[1]:
        return infinite[0][1].strip("+") == infinite[1][1].strip("+")
    try:
        x, y = expressions.parse(a), expressions.parse(b)
        points = (
            1
            if not expressions.names(x) | expressions.names(y)
            else 3
            if expressions.has_root(x) or expressions.has_root(y)
            else 4
        )
        return all(_equal(value(x, at), value(y, at), points > 1) for at in range(points))
    except FormulaError:
        return False


def _equal(x: Value, y: Value, function: bool) -> bool:
    if isinstance(x, Fraction) and isinstance(y, Fraction):
        return close(x, y)
    x, y = complex(x), complex(y)
    return abs(x - y) <= (1e-9 if function else 1e-6) * max(abs(x), abs(y), 1e-9)

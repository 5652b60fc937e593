"""Units of quantities: whether two name the same one."""

from __future__ import annotations

import re

_SPELLINGS = {
    "s": "s sec second", "min": "min minute", "h": "h hr hour", "d": "day", "wk": "wk week", "mo": "month", "y": "yr year",
    "mm": "mm millimeter millimetre", "cm": "cm centimeter centimetre", "m": "m meter metre", "km": "km kilometer kilometre",
    "in": "in inch inche", "ft": "ft foot feet", "yd": "yd yard", "mi": "mi mile",
    "mg": "mg milligram", "g": "g gram", "kg": "kg kilogram kilo", "oz": "oz ounce", "lb": "lb pound", "t": "ton tonne",
    "ml": "ml milliliter millilitre", "l": "l liter litre", "gal": "gal gallon", "qt": "qt quart", "pt": "pt pint",
    "$": "dollar usd buck", "c": "cent penny pennie", "%": "percent", "deg": "degree deg", "rad": "radian rad",
    "^2": "sq square squared", "^3": "cu cubic cubed", "/": "per",
}  # fmt: skip
_MEASURE = {spelling: unit for unit, spellings in _SPELLINGS.items() for spelling in spellings.split()}
UNIT_WORDS = frozenset(word for word in _MEASURE if word.isalpha())
_PART = re.compile(r"[a-z]+|\^\s*\{?-?\d|/")
_ANY = frozenset({"unit"})


def same_unit(a: str, b: str) -> bool:
    """Whether two units, or counted nouns, do not contradict each other: `5 cm` and `5 centimeters`, `3 apples` and `3 red
    apples`, and any beside none ("5") or beside "units"; not `5 hours` and `5 minutes`, nor `3 apples` and `3 pears`."""
    words_a, words_b = _words(a), _words(b)
    if not words_a or not words_b or _ANY & (words_a | words_b):
        return True
    measures_a, measures_b = words_a & set(_SPELLINGS), words_b & set(_SPELLINGS)
    if measures_a and measures_b:
        return measures_a == measures_b
    return bool(words_a & words_b)


def _words(unit: str) -> set[str]:
    """A unit's words, each measure in one spelling and nouns without the plural's s."""
    found = set()
    for part in _PART.findall(unit.lower()):
        word = re.sub(r"[\s{]", "", part)
        single = word[:-1] if len(word) > 2 and word.endswith("s") else word
        found.add(_MEASURE.get(word, _MEASURE.get(single, word if word in _SPELLINGS else single)))
    return found

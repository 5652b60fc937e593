"""Text templates over a record's fields: `"{question}\\n{answer}"`, `"{meta.title}"`."""

from __future__ import annotations

import math
import string
import unicodedata
from collections.abc import Mapping
from decimal import Decimal
from numbers import Real
from typing import Any

_UNSEEN = ("Cc", "Cf", "Zs", "Zl", "Zp")
"""Unicode's categories of what leaves no mark: control and format characters, spaces."""


class TemplateError(ValueError):
    """The text is no template."""


class FieldError(Exception):
    """A record lacks a field of the template, or holds there what is no text. Carries only the reason."""


class Repeated:
    """Stands in a record for the value of a key that it has more than once."""


def is_blank(text: str) -> bool:
    """Whether nothing of a text can be seen: spaces, NULs, zero-width characters, or nothing at all."""
    return not any(unicodedata.category(c) not in _UNSEEN for c in text.strip())


class Template:
    """A parsed template. Raises `TemplateError` where `text` is not one.

    Called with a record, it gives the text, in which numbers may stand alone (a task's answer); `document` asks for more.
    NaN, infinities and booleans are no text in either.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        try:
            parts = list(string.Formatter().parse(text))
        except ValueError as e:
            raise TemplateError(f"text template {text!r}: {e}. Write a literal brace as {{{{ or }}}}.") from None
        self.parts: list[tuple[str, tuple[str, ...] | None]] = []
        for literal, field, spec, conversion in parts:
            if field is not None and (not field or spec or conversion):
                raise TemplateError(f"text template {text!r}: want plain field names in braces, such as {{text}}.")
            self.parts.append((literal, tuple(field.split(".")) if field is not None else None))
        if not any(field for _, field in self.parts):
            raise TemplateError(f"text template {text!r} names no field; want for example {{text}}.")
        self.says_something = not all(is_blank(literal) for literal, _ in self.parts)
        """Whether there is text in the template itself."""

    def __call__(self, record: Mapping[str, Any]) -> str:
        """The text of one record. Raises `FieldError`."""
        return "".join(literal + (str(_value(record, field)) if field else "") for literal, field in self.parts)

    def document(self, record: Mapping[str, Any]) -> str:
        """The document of one record; empty where all its fields are blank, whatever the template puts around them.

        Raises `FieldError` also for a number with no text beside it: a column of numbers is not what was meant by text.
        """
        values = [_value(record, field) if field else "" for _, field in self.parts]
        if not any(isinstance(v, str) and not is_blank(v) for v in values):
            number = next((i for i, v in enumerate(values) if not isinstance(v, str)), None)
            if number is None:
                return ""
            if not self.says_something:
                name = ".".join(self.parts[number][1] or ())
                raise FieldError(f"field {name!r} is a number ({_short(values[number])}) with no text beside it; want text")
        return "".join(literal + str(value) for (literal, _), value in zip(self.parts, values, strict=True))


def _value(record: Mapping[str, Any], field: tuple[str, ...]) -> str | Real | Decimal:
    here: Any = record
    name = ".".join(field)
    for part in field:
        if not isinstance(here, Mapping) or part not in here:
            have = ", ".join(map(str, here)) if isinstance(here, Mapping) else _kind(here)
            raise FieldError(f"field {name!r} is absent (the record has: {have})")
        here = here[part]
    if isinstance(here, str):
        return here
    if isinstance(here, Repeated):
        raise FieldError(f"field {name!r} stands there more than once; want one value")
    if isinstance(here, Real | Decimal) and not isinstance(here, bool):
        if math.isfinite(here):
            return here
        what = "NaN, a missing value" if math.isnan(here) else "infinite"
        raise FieldError(f"field {name!r} is {what}; want text or a number")
    raise FieldError(f"field {name!r} is {_kind(here)}; want text or a number")


def _kind(value: Any) -> str:
    """What a value is, in the words of files."""
    if isinstance(value, bool):
        return f"a boolean ({str(value).lower()})"
    return "null" if value is None else type(value).__name__


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 24 else f"{text[:23]}…"

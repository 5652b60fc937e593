"""Text templates over a record's fields: `"{question}\\n{answer}"`, `"{meta.title}"`."""

from __future__ import annotations

import string
from collections.abc import Mapping
from typing import Any


class TemplateError(ValueError):
    """The text is no template."""


class FieldError(Exception):
    """A record lacks a field of the template, or holds null or a non-scalar there. Carries only the reason."""


class Template:
    """A parsed template. Raises `TemplateError` where `text` is not one."""

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

    def __call__(self, record: Mapping[str, Any]) -> str:
        """The document of one record. Raises `FieldError`."""
        return "".join(literal + (self._value(record, field) if field else "") for literal, field in self.parts)

    @staticmethod
    def _value(record: Mapping[str, Any], field: tuple[str, ...]) -> str:
        here: Any = record
        for part in field:
            if not isinstance(here, Mapping) or part not in here:
                have = ", ".join(map(str, here)) if isinstance(here, Mapping) else type(here).__name__
                raise FieldError(f"field {'.'.join(field)!r} is absent (the record has: {have})")
            here = here[part]
        if isinstance(here, str):
            return here
        if isinstance(here, bool | int | float):
            return str(here)
        kind = "null" if here is None else type(here).__name__
        raise FieldError(f"field {'.'.join(field)!r} is {kind}; want text or a number")

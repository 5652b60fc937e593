"""The documents of a slice: its records through the source's template, and what becomes of those that are broken or empty."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from slmctl.config.data import SourceConfig
from slmctl.config.template import FieldError, Template
from slmctl.corpus.records import Place, Slice, records
from slmctl.corpus.text_files import BLOCK, open_text
from slmctl.system import repair_hints
from slmctl.system.errors import InputError


@dataclass
class Tally:
    """What reading a slice met."""

    documents: int = 0
    text_bytes: int = 0
    empty: int = 0
    skipped: int = 0


def documents(source: SourceConfig, piece: Slice, tally: Tally) -> Iterator[tuple[int, str]]:
    """Yields (ordinal within the slice, text) of each document that is not empty, counting into `tally`.

    Raises `InputError` with file and place for a broken record, unless the source says to skip those.
    """
    template = Template(source.text)
    for ordinal, (place, record, problem) in enumerate(records(source, piece)):
        if piece.limit is not None and ordinal >= piece.limit:
            return
        text = ""
        if problem is None:
            try:
                text = template.document(record)
                text.encode("utf-8")
            except FieldError as e:
                problem = f"{e}, which the source asks for (text is {source.text!r})"
            except UnicodeEncodeError:
                problem = "text holds a lone surrogate, which is not valid Unicode"
        if problem is not None:
            if source.on_bad == "stop":
                raise InputError(f"{_spell(place)}: {problem}. {repair_hints.for_record(place[0], problem)}")
            tally.skipped += 1
            continue
        if not text:
            tally.empty += 1
            continue
        tally.documents += 1
        tally.text_bytes += len(text.encode("utf-8"))
        yield ordinal, text


def whole_records(source: SourceConfig, piece: Slice) -> Iterator[dict[str, Any]]:
    """The records of a slice that can be read, before any template."""
    for n, (_, record, problem) in enumerate(records(source, piece)):
        if piece.limit is not None and n >= piece.limit:
            return
        if problem is None:
            yield record


def _spell(place: Place) -> str:
    file, unit, position = place
    if unit != "byte":
        return f"{file}, {unit} {position}"
    line, seen = 1, 0
    with open_text(file) as stream:
        while seen < position and (block := stream.read(min(BLOCK, position - seen))):
            line += block.count(b"\n")
            seen += len(block)
    return f"{file}, line {line}"

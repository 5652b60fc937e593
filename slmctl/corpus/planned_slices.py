"""Slices of text as a set's plan.json holds them: by the place of a file among its source's, never by its name."""

from __future__ import annotations

from typing import Any

from slmctl.config.data import SourceConfig
from slmctl.corpus.records import Slice
from slmctl.corpus.source_files import files_of


def as_planned(sources: list[SourceConfig], pieces: list[Slice]) -> list[list[Any]]:
    """Slices of `sources` for a plan."""
    places = [{f: i for i, f in enumerate(files)} for files in _files(sources)]
    return [[p.source, places[p.source][p.file], p.start, p.stop, p.limit] for p in pieces]


def pieces_of(sources: list[SourceConfig], planned: dict[str, Any]) -> list[Slice]:
    """The slices of a set's plan. Raises `InputError` where its files are not here."""
    files = _files(sources)
    return [Slice(s, files[s][f], start, stop, limit) for s, f, start, stop, limit in planned["slices"]]


def piece_of(sources: list[SourceConfig], planned: dict[str, Any], index: int) -> Slice:
    """One of them, for which the files of other sources need not be here."""
    s, f, start, stop, limit = planned["slices"][index]
    return Slice(s, _files([sources[s]])[0][f], start, stop, limit)


def _files(sources: list[SourceConfig]) -> list[list[str]]:
    return [files_of(s) if s.hub is None else [s.hub] for s in sources]

"""The first records of every text source, read as `prepare` will read them: which field is absent, which file is cut off."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from slmctl.config.data import SourceConfig
from slmctl.corpus.documents import Tally, documents
from slmctl.corpus.records import TO_THE_END, Slice
from slmctl.corpus.slices import plan_slices
from slmctl.corpus.source_files import files_of
from slmctl.corpus.text_files import BLOCK, COMPRESSED, kind_of, open_text, reading, stored_size
from slmctl.corpus.unreadable import wrong_signatures
from slmctl.system.errors import SlmError
from slmctl.system.storage import is_url

RECORDS = 100
"""Of a file, that are read."""
FILES = 50
"""Of a source, that are looked into; of URLs the first one alone."""
SMALL = 2**23
"""Bytes of a compressed file up to which it is read to its end."""


def wrong_records(sources: Iterator[tuple[str, SourceConfig]]) -> list[str]:
    """A line on each source, by its key, whose first records do not give the text that is asked of them."""
    return [f"{key}: {problem}" for key, source in sources for problem in _problems(source)]


def empty_sets(sets: Mapping[str, Sequence[SourceConfig]]) -> list[str]:
    """A line on each set, by its key, that is known to hold no document: all of its files are small, and read to their ends."""
    return [
        f"{key} is empty: there is no document with text in its files. Name others, or correct `text` of its sources."
        for key, sources in sets.items()
        if all(map(_is_empty, sources))
    ]


def _is_empty(source: SourceConfig) -> bool:
    if source.hub is not None or any(map(is_url, source.path or [])):
        return False
    try:
        files = files_of(source)
        if len(files) > FILES or any(stored_size(f) > SMALL for f in files):
            return False
        tally = Tally()
        found = any(True for piece in plan_slices([source], SMALL) for _ in documents(source, piece, tally))
        return not found and not tally.skipped  # what is left out is told with what it lacks
    except SlmError:  # which is told of the file
        return False


def _problems(source: SourceConfig) -> list[str]:
    if source.hub is not None:
        found = _in_file(source, source.hub, source.hub) if Path(source.hub).is_dir() else None
        return [found] if found else []
    try:
        files = files_of(source)
    except SlmError:  # which is told as an absent input
        return []
    for file in files[: 1 if any(map(is_url, files)) else FILES]:
        if not list(wrong_signatures([file])) and (found := _in_file(source, file, kind_of(file))):
            return [found]  # the others are likely to have the same, and one is mended at a time
    return []


def _in_file(source: SourceConfig, file: str, kind: str) -> str | None:
    """What is wrong with a file's first records, or with its end where it is small and compressed."""
    stop = {"parquet": 1, file: 0}.get(kind, TO_THE_END)  # row groups, a dataset's shards, bytes
    tally = Tally()
    try:
        for _ in documents(source, Slice(0, file, 0, stop, min(source.max_documents or RECORDS, RECORDS)), tally):
            pass
        if file.endswith(COMPRESSED) and not is_url(file) and stored_size(file) <= SMALL:
            with reading(file), open_text(file) as stream:
                while stream.read(BLOCK):
                    pass
        if tally.skipped and not tally.documents:  # on_bad: skip leaves them out, and says what they lack to nobody
            stopping = source.model_copy(update={"on_bad": "stop"})
            for _ in documents(stopping, Slice(0, file, 0, stop, RECORDS), Tally()):
                pass
    except SlmError as e:
        skipped = f"all of the first {tally.skipped} records would be left out (on_bad: skip): " if tally.skipped else ""
        return f"{skipped}{e}"
    return None

"""What `slmctl init` finds out about texts: which fields of their records are the text, and about how many tokens they hold."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pyarrow.parquet as pq

from slmctl.config.data import SourceConfig
from slmctl.config.template import FieldError, Template
from slmctl.corpus.documents import Tally, documents, whole_records
from slmctl.corpus.records import TO_THE_END, Slice
from slmctl.corpus.source_files import files_of
from slmctl.corpus.text_files import COMPRESSED, kind_of, open_raw, reading, stored_size, text_size
from slmctl.corpus.unreadable import one_message, wrong_signatures
from slmctl.system.errors import InputError

LOOKED_AT = 100
"""Records, from the beginning of a source's first file with any."""
SINGLE = ("text", "content", "document", "body")
PAIRS = (
    ("question", "answer"),
    ("problem", "solution"),
    ("instruction", "output"),
    ("instruction", "response"),
    ("prompt", "completion"),
    ("prompt", "response"),
    ("input", "output"),
)
BYTES_A_TOKEN = 4.0
"""Of ordinary text under a large vocabulary."""


@dataclass(frozen=True)
class SourceProfile:
    """A source as it was found."""

    path: str
    text: str
    """Template."""
    why: str
    """How the template was come by."""
    files: int
    bytes: int
    """Of text, estimated."""

    @property
    def tokens(self) -> int:
        return max(1, round(self.bytes / BYTES_A_TOKEN))


def profile_source(path: str) -> SourceProfile:
    """Raises `InputError` where there is no file, one cannot be read, or the records hold no text."""
    files = files_of(SourceConfig(path=[path]))
    if wrong := list(wrong_signatures(files[:LOOKED_AT])):
        raise InputError(one_message(wrong, "Mend these files, or leave them out."))
    for file in files:
        if records := _first_records(path, file):
            break
    else:
        for file in files:
            _raise_what_is_wrong(path, file)
        raise InputError(f"{path}: there is no record in {'any of its files' if len(files) > 1 else 'it'}.")
    text, why = ("{text}", "a .txt file is text") if kind_of(file) == "txt" else guess_template(records, file)
    template = Template(text)
    stored, plain = sum(map(stored_size, files)), _plain_share(file)
    return SourceProfile(path, text, why, len(files), round(stored * plain * _text_share(records, template)))


def _first_records(path: str, file: str) -> list[dict[str, Any]]:
    kind = kind_of(file)
    if kind == "parquet":
        with reading(file), open_raw(file) as raw, pq.ParquetFile(raw) as parquet:
            if not parquet.num_row_groups:
                return []
            batch = next(parquet.iter_batches(batch_size=LOOKED_AT), None)
            found: list[dict[str, Any]] = batch.to_pylist() if batch is not None else []
            return found
    source = SourceConfig(path=[path], on_bad="skip", txt_split="line" if kind == "txt" else "file")
    return list(islice(whole_records(source, Slice(0, file, 0, TO_THE_END)), LOOKED_AT))


def _raise_what_is_wrong(path: str, file: str) -> None:
    """Raises `InputError` with the first record that is none, and what mends it."""
    if (kind := kind_of(file)) != "parquet":
        source = SourceConfig(path=[path], txt_split="line" if kind == "txt" else "file")
        next(documents(source, Slice(0, file, 0, TO_THE_END), Tally()), None)


def guess_template(records: list[dict[str, Any]], file: str) -> tuple[str, str]:
    """The template of a document over these records, and how it was come by: a field that is usual for texts, a usual pair, the
    same within another field, the only field of text, else the longest. Raises `InputError` where no field is text in all of
    them."""
    flat = [_with_inner(r) for r in records]
    texts = [f for f in flat[0] if all(isinstance(r.get(f), str) for r in flat)]
    plain = [f for f in flat[0] if all(isinstance(r.get(f), str | int | float) and not isinstance(r[f], bool) for r in flat)]
    for within in ("", *(f"{f}." for f, value in records[0].items() if isinstance(value, dict))):
        for name in SINGLE:
            if f"{within}{name}" in texts:
                return f"{{{within}{name}}}", f"field {within}{name}"
        for first, second in PAIRS:
            if f"{within}{first}" in texts and f"{within}{second}" in plain:  # a number is text beside text
                return f"{{{within}{first}}}\n{{{within}{second}}}", f"fields {within}{first} and {within}{second}"
    fields = texts
    if not fields:
        have = ", ".join(map(str, records[0])) or "none"
        raise InputError(
            f"{file}: no field holds text in each of the first {len(records)} records (fields: {have}). Mend those that lack it, "
            "or leave this text out here and name it in the file that is written, with a `text` template of its own "
            "(`on_bad: skip` leaves out records without text)."
        )
    longest = max(fields, key=lambda f: sum(len(r[f]) for r in flat))
    how = "the only field of text" if len(fields) == 1 else f"the longest of the fields of text ({', '.join(fields)})"
    return f"{{{longest}}}", f"field {longest}, {how}"


def _with_inner(record: dict[str, Any]) -> dict[str, Any]:
    """A record's fields by their names in a template, and those that its fields hold in turn."""
    found = {f: value for f, value in record.items() if _is_plain(f)}
    inner = {f: value for f, value in found.items() if isinstance(value, dict)}
    return found | {f"{f}.{name}": v for f, value in inner.items() for name, v in value.items() if _is_plain(name)}


def _is_plain(field: str) -> bool:
    """Whether a template names the field by its name."""
    return bool(field) and not set(field) & set(".{}[]!:")


def _plain_share(file: str) -> float:
    """Uncompressed bytes for one that is stored, by one file."""
    if kind_of(file) == "parquet":
        with reading(file), open_raw(file) as raw, pq.ParquetFile(raw) as parquet:
            groups = [parquet.metadata.row_group(g).total_byte_size for g in range(parquet.num_row_groups)]
        return float(sum(groups)) / max(1, stored_size(file))
    return text_size(file)[0] / max(1, stored_size(file)) if file.endswith(COMPRESSED) else 1.0


def _text_share(records: list[dict[str, Any]], template: Template) -> float:
    """Bytes of text for one of a record."""
    whole = texts = 0
    for record in records:
        whole += len(json.dumps(record, ensure_ascii=False, default=str).encode())
        try:
            texts += len(template.document(record).encode("utf-8", "ignore"))
        except FieldError:
            continue
    return min(1.0, texts / max(1, whole))

"""What mends a text file that is not what its name says, or not as slmctl reads it: a command, with the file's name in it."""

from __future__ import annotations

import re
import shlex

INVALID_UTF8, NO_JSON, NO_OBJECT = "invalid UTF-8", "not valid JSON", "want a JSON object"
"""How what is wrong with a line of JSON begins."""
GZIP, ZSTD, PARQUET = "gzip (.gz)", "Zstandard (.zst)", "Parquet"
_ENDING = {GZIP: ".gz", ZSTD: ".zst"}
_UNPACK = {GZIP: "gzip", ZSTD: "zstd", "xz": "xz", "bzip2": "bzip2", "lz4": "lz4"}
"""Commands that unpack with -d, and to stdout with -dc."""
_ARCHIVES = {"a zip archive": "unzip", "a tar archive": "tar -xf"}
_READS = re.compile(r"\.(jsonl|json|ndjson|txt|parquet|pq)$")


def rename(kind: str, file: str) -> str:
    """How a file that holds `kind` is made readable."""
    plain, here = _plain(file), shlex.quote(file)
    if kind == PARQUET:
        return f"rename it: `mv {here} {_new(file, '', '.parquet')}`"
    if kind in _ENDING:
        packed = f"{plain}{_ENDING[kind]}"
        if packed != file:
            return f"rename it: `mv {here} {shlex.quote(packed)}`"
        how = f"{_UNPACK[kind]} -dc"
        return f"it is packed twice; unpack it: `{how} {here} | {how} > {shlex.quote(plain)}`"
    if kind in _UNPACK:
        ending = {"bzip2": ".bz2"}.get(kind, f".{kind}")
        if plain != file:
            return f"unpack it: `{_UNPACK[kind]} -dc {here} > {shlex.quote(plain)}`"
        packed = shlex.quote(f"{file}{ending}")
        return f"unpack it: `mv {here} {packed} && {_UNPACK[kind]} -d {packed}`"
    if kind in _ARCHIVES:
        return f"unpack it (`{_ARCHIVES[kind]} {here}`) and name the files in it"
    return "write it as Parquet or JSON Lines"


def rename_plain_text(file: str, head: bytes) -> str:
    """How a file of plain text is named that is called compressed, or Parquet."""
    ending = ".jsonl" if head.lstrip().startswith(b"{") else ".txt"
    new = shlex.quote(_plain(file)) if _plain(file) != file else _new(file, "", ending)
    return f"rename it (`mv {shlex.quote(file)} {new}`), or fetch it again"


def convert(encoding: str, file: str) -> str:
    """The command that turns a file of another encoding into a new one of UTF-8."""
    return f"`{_piped(file, f'iconv -f {encoding} -t UTF-8', _new(file, '-utf8'))}`"


def to_json_lines(file: str, array: bool = False) -> str:
    """The command that makes JSON Lines of an array, or of objects over several lines."""
    command = f"jq -c {shlex.quote('.[]') if array else '.'}"
    return f"`{_piped(file, command, _new(file, '-lines', '.jsonl'), repack=False)}`"


def to_parquet(file: str, tabs: bool = False) -> str:
    """How CSV (or TSV) becomes Parquet, with what slmctl brings along."""
    delimiter = "delimiter='\\t', " if tabs or file.endswith((".tsv", ".tab")) else ""
    code = (
        "from pyarrow import csv, parquet; parquet.write_table(csv.read_csv("
        f"{file!r}, parse_options=csv.ParseOptions({delimiter}newlines_in_values=True)), {_stem(file) + '.parquet'!r})"
    )
    return f'`python -c "{code}"` turns it into Parquet'


SKIP = "leave such records out with `on_bad: skip`"


def for_record(file: str, problem: str) -> str:
    """What can be done about a record's `problem`."""
    lines = file.removesuffix(".gz").removesuffix(".zst").endswith((".jsonl", ".json", ".ndjson"))
    if problem.startswith(INVALID_UTF8):
        whole = "If the whole file is in another encoding, convert it: Windows-1252 or Latin-1 with "
        whole = "" if file.endswith((".parquet", ".pq")) or not _READS.search(_plain(file)) else whole
        command = f"{convert('WINDOWS-1252', file)}. " if whole else ""
        return f"{whole}{command}If this record alone is broken, mend it, or {SKIP}."
    if problem.startswith(NO_OBJECT) and lines:
        made = f"{to_json_lines(file, array=True)} makes them of an array"
        return f"JSON Lines have one object a line: {made}. Else mend the line, or {SKIP}."
    if problem.startswith(NO_JSON):
        kind = next((k for k in ("CSV", "TSV") if f"a line of {k}" in problem), None)
        table = f"If the whole file is {kind}, {to_parquet(file, kind == 'TSV')}. " if kind else ""
        return f"{table}Mend the line, or {SKIP}."
    return f"If the field's name is wrong, correct `text` of this source; if the record is bad, mend it, or {SKIP}."


def _plain(file: str) -> str:
    return file.removesuffix(".gz").removesuffix(".zst")


def _stem(file: str) -> str:
    return re.sub(r"\.\w{1,8}$", "", _plain(file))


def _new(file: str, suffix: str, ending: str | None = None) -> str:
    """A name beside the file's, quoted for a shell; with `ending` in place of all of its own."""
    stem = _stem(file)
    return shlex.quote(f"{stem}{suffix}{ending if ending is not None else file.removeprefix(stem)}")


def _piped(file: str, command: str, new: str, repack: bool = True) -> str:
    here = shlex.quote(file)
    packed = next((c for e, c in ((".gz", "gzip"), (".zst", "zstd")) if file.endswith(e)), None)
    if packed is None:
        return f"{command} {here} > {new}"
    return f"{packed} -dc {here} | {command}{f' | {packed} -c' if repack else ''} > {new}"

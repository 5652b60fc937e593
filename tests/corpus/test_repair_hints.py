"""What a message tells the user to do about a file does mend it: the commands are run."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from slmctl.config.data import SourceConfig
from slmctl.corpus.documents import Tally, documents
from slmctl.corpus.slices import plan_slices
from slmctl.system.errors import InputError

TEXTS = ["naïve café", "the second, with a comma", "third"]
RECORDS = [{"text": t} for t in TEXTS]
LINES = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in RECORDS)
TABLE = "text,n\n" + "".join(f'"{t}",1\n' for t in TEXTS)


def read(path: Path) -> list[str]:
    source = SourceConfig(path=str(path))
    return [text for piece in plan_slices([source], 10**6) for _, text in documents(source, piece, Tally())]


def parquet(path: Path) -> None:
    pq.write_table(pa.table({"text": TEXTS}), path)


def write(data: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(data)


MISTAKES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "gzip named jsonl": ("a b.jsonl", write(gzip.compress(LINES.encode())), "gzip"),
    "zstd named jsonl": ("a.jsonl", write(zstandard.compress(LINES.encode())), "Zstandard"),
    "gzip named zst": ("a.jsonl.zst", write(gzip.compress(LINES.encode())), "gzip"),
    "gzip in gzip": ("a.jsonl.gz", write(gzip.compress(gzip.compress(LINES.encode()))), "gzip"),
    "bzip2 named jsonl": ("a.jsonl", write(bz2.compress(LINES.encode())), "bzip2"),
    "xz in a .gz": ("a.jsonl.gz", write(lzma.compress(LINES.encode())), "xz"),
    "plain named gz": ("a.jsonl.gz", write(LINES.encode() * 20), "plain text"),
    "plain named parquet": ("a.parquet", write(LINES.encode() * 20), "plain text"),
    "Parquet named jsonl": ("a.jsonl", parquet, "Parquet"),
    "UTF-16": ("a.jsonl", write(LINES.encode("utf-16")), "UTF-16"),
    "UTF-16, no mark": ("a.jsonl", write(LINES.encode("utf-16-le")), "UTF-16"),
    "UTF-16, big-endian": ("a.jsonl", write(LINES.encode("utf-16-be")), "UTF-16"),
    "UTF-16 within gzip": ("a.jsonl.gz", write(gzip.compress(LINES.encode("utf-16"))), "UTF-16"),
    "Windows-1252": ("a.jsonl", write(LINES.encode("cp1252")), "line 1: invalid UTF-8 .*Windows-1252"),
    "Windows-1252 within gzip": ("a.jsonl.gz", write(gzip.compress(LINES.encode("cp1252"))), "line 1: invalid UTF-8"),
    "Windows-1252 txt": ("a.txt", write("\n".join(TEXTS).encode("cp1252")), "line 1: invalid UTF-8"),
    "an array": ("a.json", write(json.dumps(RECORDS).encode()), "is a JSON array"),
    "an array over lines": ("a.jsonl", write(json.dumps(RECORDS, indent=1).encode()), "array"),
    "objects over lines": ("a.jsonl", write(json.dumps({"text": "x"}, indent=1).encode()), "JSON over several lines"),
    "CSV": ("a.csv", write(TABLE.encode()), "unknown kind of file"),
    "CSV named jsonl": ("a.jsonl", write(TABLE.encode()), "line 1: not valid JSON .*CSV"),
    "TSV named jsonl": ("a.jsonl", write(TABLE.replace(",1", "\t1").replace(",n", "\tn").encode()), "TSV"),
}  # fmt: skip


@pytest.mark.parametrize("what", MISTAKES)
def test_the_command_that_a_message_gives_mends_the_file(tmp_path: Path, what: str) -> None:
    name, make, said = MISTAKES[what]
    make(tmp_path / name)
    with pytest.raises(InputError, match=said) as e:
        read(tmp_path / name)
    command = re.findall("`([^`]+)`", str(e.value))[0]
    if any(shutil.which(tool) is None for tool in re.findall(r"(?:^|[|&] )(\w+)", command) if tool != "python"):
        assert command.split()[0] in ("jq", "zstd", "gzip", "mv", "xz"), "a tool that this machine lacks"
        return
    before = set(tmp_path.iterdir())
    subprocess.run(re.sub("^python ", f"{sys.executable} ", command), shell=True, check=True)
    (new,) = {f for f in tmp_path.iterdir() if f not in before} or before
    found = read(new)
    if what == "objects over lines":
        assert found == ["x"]
    elif name.endswith(".txt"):
        assert found == ["\n".join(TEXTS)]
    else:
        assert found[:3] == TEXTS


def test_an_odd_line_of_json_lines_is_told_as_one(tmp_path: Path) -> None:
    """A first line that is an array is one bad record, which may be left out."""
    path = tmp_path / "a.jsonl"
    path.write_text('[{"text": "x"}]\n{"text": "y"}\n')
    with pytest.raises(InputError, match=r"line 1: want a JSON object, found list\. .*jq -c"):
        read(path)
    source = SourceConfig(path=str(path), on_bad="skip")
    assert [t for piece in plan_slices([source], 10**6) for _, t in documents(source, piece, Tally())] == ["y"]


def test_advice_on_a_field_names_the_setting_apart_from_the_sentence(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"body": "x"}\n')
    with pytest.raises(InputError) as e:
        read(path)
    assert str(e.value).endswith(
        "(the record has: body), which the source asks for (text is '{text}'). If the field's name is wrong, correct `text` of "
        "this source; if the record is bad, mend it, or leave such records out with `on_bad: skip`."
    )

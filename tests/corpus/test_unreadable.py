"""Files that are there and cannot be read: named, all of them, never passed over."""

from __future__ import annotations

import gzip
import os
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from slmctl.config.data import SourceConfig
from slmctl.corpus.documents import Tally, documents
from slmctl.corpus.file_patterns import place_problems
from slmctl.corpus.slices import plan_slices
from slmctl.corpus.source_files import files_of
from slmctl.corpus.source_identity import input_fingerprint
from slmctl.system.errors import InputError
from slmctl.system.hashes import HashCache

GOOD = b'{"text": "fine"}\n'
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d7a" * 16 + b"\nsize 12345\n"
ANNEX = b"/annex/objects/SHA256E-s123--" + b"4d7a" * 16 + b".jsonl\n"
PAGE = b"<!DOCTYPE html>\n<html><head><title>404</title></head><body>Not found</body></html>\n" * 20
PARQUET = "parquet"


def read(*paths: Path, **settings: str) -> list[str]:
    source = SourceConfig(path=[str(p) for p in paths], on_bad="skip", **settings)
    return [text for piece in plan_slices([source], 10**6) for _, text in documents(source, piece, Tally())]


def link(target: str) -> Callable[[Path], object]:
    return lambda path: path.symlink_to(target)


def write(data: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(data)


def listening(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's path is short
    socket.socket(socket.AF_UNIX).bind(path.name)
    os.chdir(here)


ENDINGS = (".jsonl", ".txt", ".parquet", ".jsonl.gz", ".txt.zst")
AT_A_GLANCE: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "dangling link": ("x.jsonl", link("/no/such/disk/x.jsonl"), "is a link to /no/such/disk/x.jsonl, which does not exist"),
    "annexed link": ("x.txt", link("../.git/annex/objects/aa/bb/k/k"), "is a link to .*which does not exist .*annex get"),
    "link loop": ("x.jsonl", link("x.jsonl"), "is a link to x.jsonl, which cannot be followed"),
    "link to a folder": ("x.jsonl", lambda path: ((path.parent / "sub").mkdir(), path.symlink_to("sub")), "is a folder"),
    "folder": ("x.jsonl", Path.mkdir, r"is a folder, not a file: give a pattern such as .*x\.jsonl/\*\.jsonl"),
    "Spark's folder": ("x.parquet", Path.mkdir, r"is a folder.*x\.parquet/\*\.parquet"),
    "pipe": ("x.jsonl", lambda path: os.mkfifo(path), "is a named pipe"),
    "socket": ("x.jsonl", listening, "is a socket"),
    "empty gzip": ("x.jsonl.gz", write(b""), "has no bytes"),
    "empty zstd": ("x.txt.zst", write(b""), "has no bytes"),
    "empty parquet": ("x.parquet", write(b""), "has no bytes"),
    **{f"LFS {e}": (f"x{e}", write(LFS), "is a Git LFS pointer") for e in ENDINGS},
    "LFS with CRLF": ("x.txt", write(LFS.replace(b"\n", b"\r\n")), "is a Git LFS pointer"),
    "LFS with extensions": ("x.txt", write(LFS.replace(b"oid", b"ext-0-a sha256:ab\next-1-b sha256:cd\noid")), "is a Git LFS"),
    "older LFS": ("x.txt", write(LFS.replace(b"git-lfs.github", b"hawser.github")), "is a Git LFS pointer"),
    "annex pointer": ("x.jsonl", write(ANNEX), "is a git-annex pointer"),
    "annex link as a file": ("x.txt", write(b"../.git/annex/objects/Gk/9x/k/k"), "is a git-annex pointer"),
}


@pytest.mark.parametrize("what", AT_A_GLANCE)
def test_what_a_glob_matches_and_cannot_be_read_is_named(tmp_path: Path, what: str) -> None:
    name, make, why = AT_A_GLANCE[what]
    (tmp_path / f"a{''.join(Path(name).suffixes)}").write_bytes(GOOD)
    make(tmp_path / name)
    ending = "".join(Path(name).suffixes)
    for pattern in (tmp_path / f"*{ending}", tmp_path / "**" / f"*{ending}", tmp_path / name):
        with pytest.raises(InputError, match=rf"/x\S* {why}"):
            files_of(SourceConfig(path=str(pattern)))
    if not what.startswith(("folder", "link to a folder", "Spark")):
        assert place_problems(str(tmp_path / name)), "of a task too"


def test_all_of_them_are_named_at_once(tmp_path: Path) -> None:
    for k in range(10):
        path = tmp_path / f"part-{k}.jsonl"
        path.symlink_to("/no/such/disk") if k in (3, 6) else path.write_bytes(LFS if k == 9 else GOOD)
    with pytest.raises(InputError) as e:
        files_of(SourceConfig(path=[str(tmp_path / "*.jsonl"), str(tmp_path / "none-*.txt"), str(tmp_path / "a.csv")]))
    assert str(e.value).startswith("5 inputs cannot be read:\n")
    for line in ("3.jsonl is a link", "6.jsonl is a link", "9.jsonl is a Git LFS", "none-*.txt matches", "a.csv does"):
        assert line in str(e.value)
    assert "part-2" not in str(e.value)


def test_a_folder_whose_files_are_matched_too_is_no_mistake(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").mkdir()
    pq.write_table(pa.table({"text": ["within"]}), tmp_path / "x.parquet" / "part-0.parquet")
    assert read(tmp_path / "**" / "*.parquet") == ["within"]
    (tmp_path / "sub").mkdir()
    assert read(tmp_path / "*" / "*.parquet") == ["within"], "a folder that is not named like a file is passed over"
    with pytest.raises(InputError, match=r"x\.parquet is a folder"):
        read(tmp_path / "*.parquet")


def test_a_name_that_looks_like_a_pattern(tmp_path: Path) -> None:
    (tmp_path / "x[1].jsonl").symlink_to("/no/such/disk")
    (tmp_path / "x1.jsonl").write_bytes(GOOD)
    with pytest.raises(InputError, match=r"x\[1\]\.jsonl is a link"):
        read(tmp_path / "x[1].jsonl")


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As another user than the tests' own would find it, who may read all."""
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.jsonl").write_bytes(GOOD)
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: not str(path).endswith(("b.jsonl", "c.jsonl")) and access(path, mode))
    with pytest.raises(InputError, match=r"(?s)b\.jsonl may not be read by this user.*c\.jsonl may not be read"):
        read(tmp_path / "*.jsonl")
    assert place_problems(str(tmp_path))


@pytest.mark.parametrize("pattern", ["closed/*.jsonl", "*/*.jsonl", "**/*.jsonl", "clos?d/a.jsonl", "closed/a.jsonl"])
def test_a_folder_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str) -> None:
    """A glob finds nothing in it, and says nothing."""
    for folder in ("closed", "open"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.jsonl").write_bytes(GOOD)
    assert read(tmp_path / pattern)
    access, scandir = os.access, os.scandir

    def closed(path: object) -> bool:
        return "closed" in Path(os.fspath(path) if not isinstance(path, int) else "").name  # type: ignore[call-overload]

    def scan(path: object = ".") -> object:
        if closed(path):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)  # type: ignore[call-overload]

    monkeypatch.setattr(os, "access", lambda path, mode: not closed(path) and access(path, mode))
    monkeypatch.setattr(os, "scandir", scan)
    with pytest.raises(InputError, match=r"/closed is a folder that may not be read"):
        read(tmp_path / pattern)


@pytest.mark.parametrize("pattern", ["*/*.jsonl", "**/*.jsonl", "**", "w?b/*.jsonl", "*/a.jsonl"])
def test_a_link_to_a_folder_that_is_not_there(tmp_path: Path, pattern: str) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_bytes(GOOD)
    (tmp_path / "notes").write_bytes(b"a file among folders")
    (tmp_path / "web").symlink_to("in")
    assert read(tmp_path / pattern.replace("**", "**/*.jsonl" if pattern == "**" else "**"))
    (tmp_path / "web").unlink()
    (tmp_path / "web").symlink_to("/no/such/disk")
    with pytest.raises(InputError, match=r"/web is a link to /no/such/disk, which does not exist"):
        read(tmp_path / pattern)


TEXT = 'line "one"\nline two\n' * 40
BY_THEIR_BYTES: dict[str, tuple[str, bytes, str]] = {
    "plain named gz": ("x.jsonl.gz", GOOD * 99, "is plain text, not .gz"),
    "zstd named gz": ("x.jsonl.gz", zstandard.compress(GOOD * 999), r"holds Zstandard \(\.zst\)"),
    "gzip named zst": ("x.jsonl.zst", gzip.compress(GOOD), r"holds gzip \(\.gz\)"),
    "gzip named jsonl": ("x.jsonl", gzip.compress(GOOD), r"holds gzip \(\.gz\)"),
    "zstd named txt": ("x.txt", zstandard.compress(GOOD), "holds Zstandard"),
    "parquet named jsonl": ("x.jsonl", b"PAR1\x15\x04\x15\x20" + b"\0" * 99, "holds Parquet"),
    "jsonl named parquet": ("x.parquet", GOOD * 99, "is plain text, not .parquet"),
    "page named gz": ("x.jsonl.gz", PAGE, "is an HTML or XML page"),
    "page named jsonl": ("x.jsonl", PAGE, "is an HTML or XML page"),
    "page within gz": ("x.jsonl.gz", gzip.compress(PAGE), "is an HTML or XML page"),
    "gzip twice": ("x.jsonl.gz", gzip.compress(gzip.compress(GOOD)), "holds gzip"),
    "zstd within zstd": ("x.txt.zst", zstandard.compress(zstandard.compress(GOOD)), "holds Zstandard"),
    "tar within gz": ("x.jsonl.gz", gzip.compress(b"x.jsonl" + b"\0" * 250 + b"ustar\x0000" + GOOD * 99), "holds a tar archive"),
    "zip": ("x.txt", b"PK\x03\x04" + b"\0" * 99, "holds a zip archive"),
    "xz": ("x.jsonl", b"\xfd7zXZ\x00" + b"\0" * 99, "holds xz"),
    **{f"{code} txt": ("x.txt", TEXT.encode(code), f"is {code[:6].upper()} text") for code in ("utf-16", "utf-32", "utf-16-le")},
    "utf-16-be": ("x.txt", b"\xfe\xff" + TEXT.encode("utf-16-be"), "is UTF-16 text: convert it to UTF-8"),
    "utf-16 jsonl": ("x.jsonl", (GOOD * 9).decode().encode("utf-16"), "is UTF-16"),
    "utf-16 within gz": ("x.jsonl.gz", gzip.compress((GOOD * 9).decode().encode("utf-16")), "is UTF-16"),
    "utf-16 within zst": ("x.txt.zst", zstandard.compress(TEXT.encode("utf-16")), "is UTF-16"),
}


@pytest.mark.parametrize("what", BY_THEIR_BYTES)
def test_a_file_whose_bytes_are_not_what_its_name_says(tmp_path: Path, what: str) -> None:
    name, data, why = BY_THEIR_BYTES[what]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=rf"/{name} {why}"):
        read(tmp_path / name)


def test_texts_that_only_look_odd_are_read(tmp_path: Path) -> None:
    texts = [
        "<html> is how a page begins",
        "PAR1 is a name",
        "BZh as well",
        "naïve 漢字 🦊",
        "a\0b\0c",
        "version 1 of it",
        "version https://git-lfs.github.com/spec/v1 is how a pointer begins",
        "version https://git-lfs.github.com/spec/v1\nis how a pointer begins",
    ]
    for k, text in enumerate(texts):
        (tmp_path / f"{k}.txt").write_text(text, encoding="utf-8")
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / "nothing.txt.gz").write_bytes(gzip.compress(b""))
    (tmp_path / "frames.txt.zst").write_bytes(
        b"\x50\x2a\x4d\x18" + struct.pack("<I", 4) + b"skip" + zstandard.compress(b"framed")
    )
    assert read(tmp_path / "*.txt*") == [*texts, "framed"]


def test_a_gzip_file_that_is_cut_off_or_followed_by_something_else(tmp_path: Path) -> None:
    two = gzip.compress(GOOD * 999) + gzip.compress(GOOD * 999)
    for k, data in enumerate((two[:-9], two[: len(two) // 2 + 15], two + b"garbage after it", two + b"\x1f\x8bgarbage")):
        (tmp_path / f"{k}.jsonl.gz").write_bytes(data)
        with pytest.raises(InputError, match=rf"{k}\.jsonl\.gz is broken or cut off"):
            read(tmp_path / f"{k}.jsonl.gz")
    (tmp_path / "padded.jsonl.gz").write_bytes(two + b"\0" * 512)
    assert len(read(tmp_path / "padded.jsonl.gz")) == 2 * 999, "zeros after it are how tapes and blocks are filled"


def test_a_dataset_in_a_folder_is_whole(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(GOOD)
    source = SourceConfig(hub=str(tmp_path))
    input_fingerprint([source], HashCache(tmp_path.parent / "hashes.json"))
    (tmp_path / "b.parquet").write_bytes(LFS)
    (tmp_path / "c.jsonl").symlink_to("/no/such/disk")
    for look in (lambda: input_fingerprint([source], HashCache(tmp_path.parent / "hashes.json")), lambda: files_of(source)):
        with pytest.raises(InputError, match=r"(?s)b\.parquet is a Git LFS pointer.*c\.jsonl is a link"):
            look()


def test_a_local_file_by_its_url(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(GOOD)
    assert read(f"file://{tmp_path}/*.jsonl") == ["fine"]  # type: ignore[arg-type]
    (tmp_path / "b.jsonl").symlink_to("/no/such/disk")
    with pytest.raises(InputError, match=r"b\.jsonl is a link"):
        read(f"file://{tmp_path}/*.jsonl")  # type: ignore[arg-type]


def test_a_name_that_cannot_be_looked_up(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(GOOD)
    for name, why in (("x" * 300 + ".jsonl", "cannot be looked at"), ("file/x.jsonl", "does not exist|cannot be looked at")):
        with pytest.raises(InputError, match=why):
            read(tmp_path / name)


def test_objects_in_a_store() -> None:
    fs = fsspec.filesystem("memory")
    root = f"/unreadable-{time.time_ns()}"
    for name, data in {"a.jsonl.gz": gzip.compress(GOOD), "b.jsonl.gz": b"", "c.jsonl.gz": LFS, "d.jsonl.gz/part": b"x"}.items():
        fs.pipe_file(f"{root}/{name}", data)
    with pytest.raises(InputError) as e:
        files_of(SourceConfig(path=f"memory:/{root}/*.jsonl.gz"))
    for line in ("b.jsonl.gz has no bytes", "c.jsonl.gz is a Git LFS pointer", "d.jsonl.gz is a folder"):
        assert line in str(e.value)
    fs.pipe_file(f"{root}/e.txt", TEXT.encode("utf-16"))
    fs.pipe_file(f"{root}/f.txt", TEXT.encode())
    with pytest.raises(InputError, match=r"e\.txt is UTF-16 text"):
        read(f"memory:/{root}/e.txt")  # type: ignore[arg-type]
    assert read(f"memory:/{root}/f.txt") == [TEXT]  # type: ignore[arg-type]


def test_the_smallest_files_alone_are_opened_and_each_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "large.txt").write_bytes(b"text " * 1000)
    (tmp_path / "small.txt").write_bytes(b"text")
    opened: list[str] = []
    from slmctl.corpus import unreadable

    head = unreadable._head
    monkeypatch.setattr(unreadable, "_head", lambda file: (opened.append(Path(file).name), head(file))[1])
    for _ in range(3):
        files_of(SourceConfig(path=str(tmp_path / "*.txt")))
    assert opened == ["small.txt"]
    (tmp_path / "small.txt").write_bytes(LFS)
    with pytest.raises(InputError, match="LFS"):
        files_of(SourceConfig(path=str(tmp_path / "*.txt")))

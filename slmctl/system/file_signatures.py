"""What a file's first bytes say of it: compressed, Parquet, a pointer to a file that is elsewhere, text that is not UTF-8."""

from __future__ import annotations

import re
import zlib

from slmctl.system.repair_hints import GZIP, PARQUET, ZSTD, convert, rename, rename_plain_text, to_json_lines

HEAD = 512
"""First bytes that are looked at."""

_MAGIC = {
    b"\x1f\x8b": GZIP,
    b"\x28\xb5\x2f\xfd": ZSTD,
    b"\xfd7zXZ\x00": "xz",
    b"PK\x03\x04": "a zip archive",
    b"ARROW1\x00\x00": "an Arrow file",
    b"\x04\x22\x4d\x18": "lz4",
}
_PARQUET = re.compile(rb"PAR[1E][\x00-\x1f]")
_BZIP2 = re.compile(rb"BZh[1-9]1AY&SY")
_SKIPPABLE = re.compile(rb"[\x50-\x5f]\x2a\x4d\x18")
"""A Zstandard frame of no data, with which a file may begin."""
_LFS = re.compile(rb"version https://(git-lfs\.github|hawser\.github)\.com/spec/v\S+\s*\n(ext-.*\n)*oid \S+:")
_ANNEX = re.compile(rb"[\w./\\-]*annex[/\\]objects[/\\]\S+\s*$", re.MULTILINE)
_PAGE = re.compile(rb"\s*<(!doctype html|html|\?xml|head|body)\b", re.IGNORECASE)


def pointer(head: bytes) -> str | None:
    """What a file is that only points to the one that is meant; None where it is none."""
    if _LFS.match(head):
        return "is a Git LFS pointer, not the file itself: `git lfs pull` fetches it"
    if _ANNEX.match(head):
        return "is a git-annex pointer, not the file itself: `git annex get` fetches it"
    return None


def not_stored_as(head: bytes, file: str) -> str | None:
    """Why a file's first bytes (not none) are not those of a .gz, .zst or .parquet file, where its name says that."""
    ending = next((e for e in (".gz", ".zst", ".parquet", ".pq") if file.endswith(e)), None)
    if ending is None:
        return None
    fits = {
        ".gz": head.startswith(b"\x1f\x8b"),
        ".zst": head.startswith(b"\x28\xb5\x2f\xfd") or _SKIPPABLE.match(head),
    }.get(ending, _PARQUET.match(head) or head[:4] == b"PAR1")
    if fits:
        return None
    is_text = not re.search(rb"[\x00-\x08\x0e-\x1f]", head)
    what = pointer(head) or _page(head) or _kind(head, file)
    if what is not None:
        return what
    return f"is plain text, not {ending}: {rename_plain_text(file, head)}" if is_text else f"is not {ending}: fetch it again"


def not_text(head: bytes, file: str) -> str | None:
    """Why the first bytes of a file, uncompressed where it is compressed, are not those of UTF-8 text."""
    if head[:4] in (b"\xff\xfe\x00\x00", b"\x00\x00\xfe\xff"):
        return _encoded("UTF-32", "UTF-32", file)
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return _encoded("UTF-16", "UTF-16", file)
    if (order := _alternates(head)) is not None:
        return _encoded("UTF-16", f"UTF-16{order}", file)
    lines = ".json" in file or ".ndjson" in file
    return pointer(head) or _kind(head, file) or (_page(head) or _no_lines(head, file) if lines else None)


def unpacked(head: bytes, file: str) -> bytes:
    """The first bytes of the text, as far as a file's stored ones tell them."""
    if file.endswith((".zst", ".parquet", ".pq")):
        return b""
    if not file.endswith(".gz"):
        return head
    try:
        return zlib.decompressobj(31).decompress(head, HEAD)
    except zlib.error:  # which reading it says better
        return b""


def _kind(head: bytes, file: str) -> str | None:
    """What is known of bytes that are no text."""
    found = next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), None)
    found = "a tar archive" if head[257:262] == b"ustar" else found
    found = found or (PARQUET if _PARQUET.match(head) else "bzip2" if _BZIP2.match(head) else None)
    return f"holds {found}: {rename(found, file)}" if found else None


def _no_lines(head: bytes, file: str) -> str | None:
    """What JSON is that is not one object a line: an array, or an object written over several lines."""
    first, _, rest = head.removeprefix(b"\xef\xbb\xbf").lstrip().partition(b"\n")
    first = first.strip()
    if re.match(rb"\[\s*(\{|$)", first) and not (first.endswith(b"]") and rest.strip()):
        return f"is a JSON array, not JSON Lines (an object a line): {to_json_lines(file, array=True)} turns it into them"
    if first == b"{":
        return f"is JSON over several lines, not JSON Lines (an object a line): {to_json_lines(file)} turns it into them"
    return None


def _page(head: bytes) -> str | None:
    return "is an HTML or XML page, as a server sends with an error: fetch the file again" if _PAGE.match(head) else None


def _encoded(how: str, exactly: str, file: str) -> str:
    return f"is {how} text: convert it to UTF-8 ({convert(exactly, file)}) and name the new file"


def _alternates(head: bytes) -> str | None:
    """LE or BE where every second byte is NUL, nearly: UTF-16 without its mark."""
    if len(head) < 8:
        return None
    shares = [half.count(0) / len(half) for half in (head[at::2] for at in (0, 1))]
    return ("BE" if shares[0] > shares[1] else "LE") if max(shares) > 0.9 and min(shares) < 0.1 else None

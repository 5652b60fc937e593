"""Text of others in a model card: made one line, without this machine's folders, and escaped for Markdown."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path, PureWindowsPath
from typing import Any
from urllib.parse import urlsplit, urlunsplit

_INLINE = re.compile(r"[\\`*_\[\]<>&|~$]")
_LEADING = re.compile(r"^([#+=-]|\d+(?=[.)](?:\s|$)))")
_PLACES = re.compile(
    r"(?P<url>[A-Za-z][A-Za-z0-9+.-]*://[^\s'\",\]})]*)"
    r"|(?P<before>^|[\s=,'\"\[({:])(?P<path>(?:~[^/\\\s]*|[A-Za-z]:|\.\.)?[\\/][^'\",=\]})]*)"
)


class Markdown(str):
    """Text that is Markdown already, and is not escaped again."""

    __slots__ = ()


def one_line(text: object) -> str:
    """`text` without line breaks, control characters, direction marks and what UTF-8 cannot hold."""
    kept = (" " if unicodedata.category(c) in ("Cc", "Zl", "Zp") else c for c in str(text))
    return " ".join("".join(c for c in kept if unicodedata.category(c) not in ("Cf", "Cs", "Cn")).split())


def markdown(value: Any) -> str:
    """`value` as Markdown that shows it as it is, in a sentence, a list item or a table's cell."""
    if isinstance(value, Markdown):
        return value
    names = {"<": "&lt;", ">": "&gt;", "&": "&amp;"}
    text = _INLINE.sub(lambda m: names.get(m[0], "\\" + m[0]), one_line(value))
    return _LEADING.sub(lambda m: m[1] + "\\" if m[1][0].isdigit() else "\\" + m[1], text)


def fenced(text: str, language: str = "") -> Markdown:
    """`text` as a block of code, whatever backticks are in it."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return Markdown(f"{fence}{language}\n{text}\n{fence}")


def place_name(place: str) -> str:
    """What may be told of where something is: a URL without its credentials and query, a Hub id or a relative path as it is,
    and of an absolute path the last name alone."""
    place = one_line(place)
    if "://" in place:
        return _shown_url(place)
    windows = re.match(r"^([A-Za-z]:|\\)", place) is not None
    outside = place.startswith(("/", "~")) or ".." in re.split(r"[\\/]", place)
    return _last_name(place) if windows or outside else place


def argument(text: str) -> str:
    """An argument of a command line, with only the names of the absolute paths in it."""

    def shown(match: re.Match[str]) -> str:
        return _shown_url(match["url"]) if match["url"] is not None else match["before"] + _last_name(match["path"])

    return _PLACES.sub(shown, one_line(text))


def _last_name(path: str) -> str:
    return PureWindowsPath(path.strip()).name or "."  # which takes both kinds of slash


def _shown_url(url: str) -> str:
    try:
        parts = urlsplit(url)
    except ValueError:
        return _last_name(url)
    if parts.scheme.lower() in ("file", "local"):
        return _last_name(parts.path)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def hub_id(place: str | None) -> str | None:
    """`place` where it can be the id of a model or data set on the Hub; None for a local path, as libraries tell them apart."""
    from huggingface_hub.utils import validate_repo_id

    if not place or "://" in place or not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", place, re.ASCII) or Path(place).exists():
        return None
    try:
        validate_repo_id(place)
    except ValueError:
        return None
    return place

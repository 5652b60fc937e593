"""One line of JSON Lines to a record."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

from slmctl.config.template import Repeated
from slmctl.system.repair_hints import INVALID_UTF8, NO_JSON, NO_OBJECT


def parse(line: bytes) -> tuple[Any, str | None]:
    """(record, None), or (None, why the line is no object). A key that an object has more than once is `Repeated` there:
    which of its values was meant is not known, and a template that asks for it says so."""
    try:
        record = decode(line)
    except UnicodeDecodeError as e:
        return None, f"{INVALID_UTF8} at column {e.start + 1} ({e.reason})"
    except json.JSONDecodeError as e:
        return None, f"{NO_JSON} ({e.msg}, column {e.colno}{_table(line)})"
    except RecursionError:
        return None, "not JSON that can be read (nested too deep)"
    except ValueError as e:  # a number of thousands of digits
        return None, f"not JSON that can be read ({e})"
    if not isinstance(record, dict):
        return None, f"{NO_OBJECT}, found {type(record).__name__}"
    return record, None


def _table(line: bytes) -> str:
    """What is added where a line is perhaps one of a table."""
    if line.lstrip()[:1] in b"{[" or not re.search(rb"[,\t]", line):
        return ""
    kind = "TSV" if b"\t" in line else "CSV"
    return f"; it looks like a line of {kind}"


def decode(line: bytes) -> Any:
    """What stands on the line, an object or not. Raises `ValueError` or `RecursionError`."""
    line = line.removeprefix(b"\xef\xbb\xbf")  # a byte order mark, as some editors write at a file's start
    return _JSON.decode(line.decode("utf-8"))


def _fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        found |= {k: Repeated() for k, n in Counter(k for k, _ in pairs).items() if n > 1}
    return found


_JSON = json.JSONDecoder(object_pairs_hook=_fields)

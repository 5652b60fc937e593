"""What has changed between two records of what something was made from, in words."""

from __future__ import annotations

import json
import re
from typing import Any

FEW, LONGEST = 6, 48
"""Changes that are listed, and characters of a value that are shown."""


def few(changed: list[str]) -> list[str]:
    """The first of many, and how many more there are."""
    return changed if len(changed) <= FEW else [*changed[:FEW], f"and {len(changed) - FEW} more"]


def changes(was: Any, now: Any, path: str = "") -> list[str]:
    """`key.path: was X, is now Y` for each value in which two JSON-like values differ; what is absent is as good as null."""
    if isinstance(was, dict) and isinstance(now, dict):
        keys = [*now, *[k for k in was if k not in now]]
        return [c for k in keys for c in changes(was.get(k), now.get(k), f"{path}.{k}" if path else str(k))]
    if isinstance(was, list) and isinstance(now, list) and any(isinstance(x, dict | list) for x in (*was, *now)):
        both = min(len(was), len(now))
        found = [c for i in range(both) for c in changes(was[i], now[i], f"{path}[{i}]")]
        found += [f"{path}[{i}]: is no longer there ({_shown(was[i])})" for i in range(both, len(was))]
        return found + [f"{path}[{i}]: is new ({_shown(now[i])})" for i in range(both, len(now))]
    return [] if was == now else [f"{path}: was {_shown(was)}, is now {_shown(now)}"]


def _shown(value: Any) -> str:
    """A value on one short line; of a whole part its values alone, and of a hash its beginning."""
    if value is None:
        return "not set"
    if isinstance(value, dict):
        text = ", ".join(f"{k} {_shown(v)}" for k, v in value.items() if v is not None) or "empty"
    elif isinstance(value, list):
        text = f"[{', '.join(map(_shown, value))}]"
    elif isinstance(value, str) and re.fullmatch("[0-9a-f]{40,}", value):
        return f"{value[:12]}…"
    else:
        text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"

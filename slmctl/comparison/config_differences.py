"""In which keys the configurations of several runs differ."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_NOT_COMPARED = {("name",), ("output_dir",)}
"""Keys of the configuration that differ between any two runs, or change nothing."""
_ABSENT: Any = object()


def config_differences(configs: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Keys whose values differ, with each run's value; `present` says which runs have the key at all. A part that a run lacks
    as a whole is one key, and what every arm has from `pretrain` is told once."""
    known = {label: c for label, c in configs.items() if c}
    found = list(_differing((), known)) if len(known) > 1 else []
    by_path = dict(found)
    rows = []
    for path, values in found:
        inherited = path[:2] == ("pretrain", "arms") and by_path.get(("pretrain", *path[3:])) == values
        if path not in _NOT_COMPARED and not inherited:
            present = [label for label, v in values.items() if v is not _ABSENT]
            rows.append({"key": ".".join(map(str, path)), "present": present, "values": {p: values[p] for p in present}})
    return rows


def _differing(path: tuple[Any, ...], values: dict[str, Any]) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    parts = list(values.values())
    if all(p == parts[0] for p in parts[1:]):
        return
    if all(isinstance(p, dict) for p in parts):
        for key in dict.fromkeys(k for p in parts for k in p):
            yield from _differing((*path, key), {label: p.get(key, _ABSENT) for label, p in values.items()})
    elif all(isinstance(p, list) for p in parts) and len({len(p) for p in parts}) == 1:
        for i in range(len(parts[0])):
            yield from _differing((*path, i), {label: p[i] for label, p in values.items()})
    else:
        yield path, values

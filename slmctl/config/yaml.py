"""YAML as pipelines are written in: with the line of each key, and `-o key.path=value` laid over it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any

import yaml

from slmctl.config.training import BUDGET_KEYS
from slmctl.system.console import say
from slmctl.system.errors import ConfigError

Path_ = tuple[str | int, ...]
"""Keys from the top down, and places in lists."""


class _Loader(yaml.SafeLoader):
    """YAML in which `5e-5` is a number, and a key given twice is a mistake."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise ConfigError(f"line {key.start_mark.line + 1}: key {key.value!r} is given twice; keep one.")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*)(?:\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def parse_yaml(text: str, name: str) -> tuple[Any, dict[Path_, int]]:
    """The document, and the line of each key path in it."""
    try:
        node = yaml.compose(text, Loader=_Loader)
        loader = _Loader(text)
        data = loader.get_single_data()
    except yaml.YAMLError as e:
        raise ConfigError(f"{name} is not valid YAML: {e}") from None
    except ConfigError as e:
        raise ConfigError(f"{name}: {e}") from None
    return data, dict(_lines(node, ())) if node is not None else {}


def _lines(node: yaml.Node, path: Path_) -> Iterator[tuple[Path_, int]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield (*path, key.value), key.start_mark.line + 1
            yield from _lines(value, (*path, key.value))
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            yield (*path, i), value.start_mark.line + 1
            yield from _lines(value, (*path, i))


def apply_override(data: dict[str, Any], override: str) -> None:
    """Lays one `key.path=value` over `data`; the value is read as YAML."""
    key, sep, text = override.partition("=")
    if not sep or not key.strip():
        raise ConfigError(f"-o {override!r}: want key.path=value, for example -o pretrain.tokens=1000000")
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as e:
        raise ConfigError(f"-o {override!r}: the value is not valid YAML: {e}") from None
    *parents, last = key.strip().split(".")
    here: Any = data
    for i, part in enumerate(parents):
        if isinstance(here, list) and part.isdigit() and int(part) < len(here):
            here = here[int(part)]
            continue
        if not isinstance(here, dict):
            raise ConfigError(f"-o {override!r}: {'.'.join(parents[:i]) or 'the top'} is not a mapping")
        if here.get(part) is None:
            here[part] = {}
        here = here[part]
    if isinstance(here, list) and last.isdigit() and int(last) < len(here):
        here[int(last)] = value
    elif isinstance(here, dict):
        if last in BUDGET_KEYS and value is not None:  # a budget given on the command line replaces the file's, whatever its unit
            for k in BUDGET_KEYS:
                here.pop(k, None)
        here[last] = value
    else:
        raise ConfigError(f"-o {override!r}: {'.'.join(parents)} is not a mapping")


def apply_overrides(data: dict[str, Any], overrides: list[str]) -> None:
    """Lays overrides over `data` in turn. Raises `ConfigError` that names each one that cannot be, and where two of them give
    one run's budget in two units. One that takes the place of a budget in another unit is told of, by one rank."""
    budgets: dict[tuple[str, ...], str] = {}
    problems: list[str] = []
    for override in overrides:
        *where, last = override.partition("=")[0].strip().split(".")
        had = {k: value_at(data, *where, k) for k in BUDGET_KEYS if last in BUDGET_KEYS and k != last}
        try:
            apply_override(data, override)
        except ConfigError as e:
            problems.append(str(e))
            continue
        given = last in BUDGET_KEYS and value_at(data, *where, last) is not None
        if given and budgets.setdefault(tuple(where), last) != last:
            problems.append(f"-o {override}: {budgets[tuple(where)]} is given too; give one of them.")
            continue
        for key, value in had.items():
            if given and value is not None and os.environ.get("RANK", "0") == "0":
                say(f"note: -o {override} takes the place of {'.'.join([*where, key])}: {value} in the file")
    if problems:
        raise ConfigError("\n".join(problems))


def lay_over(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`base` with `over`'s keys laid over it, mappings merged; a budget in `over` replaces one in another unit."""
    merged = dict(base)
    if any(over.get(k) is not None for k in BUDGET_KEYS):
        for k in BUDGET_KEYS:
            merged.pop(k, None)
    for key, value in over.items():
        if key in BUDGET_KEYS and value is None:
            continue
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = lay_over(merged[key], value)
        else:
            merged[key] = value
    return merged


def value_at(data: Any, *path: str, default: Any = None) -> Any:
    """What a document holds at a key path; `default` where there is nothing, or null."""
    for part in path:
        data = data.get(part) if isinstance(data, dict) else None
    return default if data is None else data


def mapping_at(data: Any, *path: str) -> dict[Any, Any]:
    """The mapping there; an empty one where there is none."""
    found = value_at(data, *path)
    return found if isinstance(found, dict) else {}

"""The resolved configuration as the page shows it: without this machine's folders, and without credentials in URLs."""

from __future__ import annotations

import re
from typing import Any

import yaml

from slmctl.report.markdown_text import place_name

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\",\]})]+")
_PLACE = re.compile(r"~?[/\\]|[A-Za-z]:[/\\]|~[^/\\\s]+[/\\]|(.*[/\\])?\.\.([/\\]|$)")
"""Beginnings of paths that lead out of the folder that a run is started in."""


def shown_config(text: str) -> str:
    """YAML with the last name alone of each path that leads elsewhere, and URLs without user, password and query. What is no
    YAML is told so, and not shown: nobody knows what is in it."""
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError:
        return "The configuration is not valid YAML."
    if found is None:
        return ""
    return yaml.safe_dump(_shown(found), sort_keys=False, allow_unicode=True)


def _shown(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _shown(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_shown(v) for v in value]
    return _shown_text(value) if isinstance(value, str) else value


def _shown_text(text: str) -> str:
    """Prompts and templates are left as they are, but for the URLs in them."""
    if "://" in text:
        return _URL.sub(lambda m: place_name(m[0]), text)
    return place_name(text) if _PLACE.match(text) and "\n" not in text else text

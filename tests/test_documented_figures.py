"""What the documents say of a raw file is what the raw file says."""

from __future__ import annotations

import copy
import importlib.util
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = ("README.md", "benchmarks/README.md", *(f"docs/{f.name}" for f in sorted((ROOT / "docs").glob("*.md"))))
RESULTS = ROOT / "benchmarks" / "results"
FIGURE = re.compile(r"\d+\.\d+|\d+(?:\.\d+)?(?= ?(?:%|[kMGx]\b))")
"""A number with decimals or a unit; bare whole numbers are settings more often than not."""


def _figures() -> Any:
    spec = importlib.util.spec_from_file_location("figures", ROOT / "benchmarks" / "figures.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["figures"] = module
    spec.loader.exec_module(module)
    return module


figures = _figures()


def blocks(text: str) -> list[str]:
    """Paragraphs and bullets that name a raw file, each with the table that follows it and what is said below that."""
    parts = [p for p in re.split(r"\n\s*\n|\n(?=- )", text) if p.strip()]
    named = [i for i, p in enumerate(parts) if "results/" in p]
    found = []
    for i in named:
        after = next((j for j in range(i + 1, len(parts)) if "results/" in parts[j] or parts[j].startswith("#")), len(parts))
        table = next((j for j in range(i + 1, after) if parts[j].startswith("|")), None)
        found.append("\n\n".join(parts[i : i + 1] if table is None else parts[i : min(after, table + 2)]))
    return found


@pytest.mark.parametrize("claim", figures.CLAIMS, ids=str)
def test_a_document_says_what_its_raw_file_says(claim: Any) -> None:
    assert claim.said in figures.document(claim.document), (
        f"{claim.document} should say:\n{claim.words(figures.raw_file(claim.raw))}"
    )


@pytest.mark.parametrize("claim", figures.CLAIMS, ids=str)
def test_other_raw_figures_are_seen(claim: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    read = figures.raw_file
    monkeypatch.setattr(figures, "raw_file", lambda name: _half_as_much_again(read(name)))
    assert claim.said not in figures.document(claim.document)


def _half_as_much_again(value: Any) -> Any:
    if isinstance(value, dict):
        found = {k: _half_as_much_again(v) for k, v in value.items()}
        return {**found, "another": {"type": "another"}} if "apertus" in value else found  # cases are counted
    if isinstance(value, list):
        return [_half_as_much_again(v) for v in value]
    odd = isinstance(value, bool) or not isinstance(value, int | float)
    return copy.copy(value) if odd else type(value)(value * 1.5 + (0.4 if isinstance(value, float) else 1))


def test_every_raw_file_is_named_and_every_name_is_a_file() -> None:
    named = {
        name for d in DOCUMENTS for name in re.findall(r"results/([\w.-]+\.(?:json|md))", (ROOT / d).read_text(encoding="utf-8"))
    }
    assert named == {f.name for f in RESULTS.iterdir()}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_a_raw_file_that_is_named_stands_behind_what_is_said(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    named = set(re.findall(r"results/([\w.-]+)\.json", text))
    assert named <= {c.raw for c in figures.CLAIMS if c.document == document}


@pytest.mark.parametrize("document", [d for d in DOCUMENTS if not d.startswith("benchmarks")])
def test_no_figure_beside_a_raw_file_is_without_it(document: str) -> None:
    """A figure in a paragraph that names a raw file, or in the table below, stands in a claim of the document."""
    claimed = [c.said for c in figures.CLAIMS if c.document == document]
    loose = []
    for block in blocks((ROOT / document).read_text(encoding="utf-8")):
        left = figures.plain(block)
        for said in claimed:
            left = left.replace(said, "")
        loose += [(m.group(), left[max(0, m.start() - 40) : m.end() + 20]) for m in FIGURE.finditer(left)]
    assert not loose


def test_raw_files_name_their_command() -> None:
    without = [f.name for f in RESULTS.glob("*.json") if not json.loads(f.read_text(encoding="utf-8")).get("command")]
    assert not without

"""Findings, which CI does not run: each is listed, says in its head what was seen, pins what it installs, leaves slmctl out."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parents[1] / "findings"
SCRIPTS = sorted(HERE.glob("*.sh"))


def test_the_page_lists_every_script_once() -> None:
    rows = re.findall(r"^\| \[([a-z0-9-]+)\]\((.*?)\) \|", (HERE / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert rows == [(s.stem, s.name) for s in SCRIPTS]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda s: s.stem)
def test_a_finding_says_what_was_seen_with_which_versions_and_checks_it(script: Path) -> None:
    text = script.read_text(encoding="utf-8")
    head, _, body = text.partition("set -euo pipefail\n")
    assert head.startswith("#!/usr/bin/env bash\n# ")
    assert all(line.startswith("#") for line in head.splitlines())
    assert len(re.findall(r"\b\d+\.\d+\.\d+\b", head.splitlines()[1])) >= 1, "versions come first"
    assert "Seen" in head
    assert "slmctl" not in body
    assert "folder=$(mktemp -d); trap 'rm -rf \"$folder\"' EXIT" in body
    assert "assert " in body or "expect " in body
    assert body.endswith('echo "still so"\n')
    pins = re.findall(r"([a-z0-9_-]+)(?:\[\w+\])?==([\d.]+)", body)
    assert pins
    of = head.splitlines()[1]
    assert not [f"{name} {version}" for name, version in pins if name in of and version not in of]
    assert subprocess.run(["bash", "-n", script], capture_output=True, timeout=20).returncode == 0

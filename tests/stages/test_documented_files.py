"""docs/commands.md names what a finished pipeline leaves behind."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from evaluated_pipeline import Made

from slmctl.training.telemetry import read_log

DOCUMENT = Path(__file__).parents[2] / "docs" / "commands.md"


@pytest.fixture(scope="module")
def sections() -> dict[str, str]:
    parts = DOCUMENT.read_text(encoding="utf-8").split("\n## ")[1:]
    return {part.partition("\n")[0]: part.partition("\n")[2] for part in parts}


@pytest.mark.parametrize("arm", ["slm", "clm", "random"])
def test_every_figure_of_a_step_is_explained(evaluated: Made, sections: dict[str, str], arm: str) -> None:
    rows = re.findall(r"^\| (`[^|]*`) \|", sections["metrics.jsonl"], flags=re.M)
    explained = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert len(explained) == len(set(explained))
    for record in read_log(evaluated.open().arm(arm) / "metrics.jsonl"):
        assert set(record) == set(explained)


def test_every_file_of_the_first_two_levels_is_named(evaluated: Made, sections: dict[str, str]) -> None:
    tree = "\n".join(line for line in sections["Files"].splitlines() if line.startswith("    "))
    root = evaluated.open().root
    folders = [root, root / "eval", *(root / "pretrain" / arm for arm in ("slm", "clm", "random"))]
    found = {entry.name for folder in folders for entry in folder.iterdir()}
    assert {"tokens", "results.json", "metrics.jsonl", "token_counts.parquet"} <= found
    assert not [name for name in sorted(found) if not re.search(rf"(?<![\w.]){re.escape(name)}(?!\w)", tree)]

"""The tiny pipeline with kept checkpoints, two held-out sets and small diagnostics; and copies of it to work on."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from tiny_pipeline import sentences, tiny_settings, write_jsonl

from slmctl.config.file import check
from slmctl.system.files import read_json
from slmctl.workspace.workspace import Workspace

SEQ_LEN = 32
STEPS = (2, 4, 6)
"""Kept checkpoints of each arm."""
ARMS = ("slm", "clm", "random")
Change = Callable[[dict[str, Any]], Any]


def evaluated_settings(root: Path) -> dict[str, Any]:
    settings = tiny_settings(root)
    write_jsonl(root / "general.jsonl", sentences(4, 5, words=30))
    settings["data"]["heldout"]["general"] = {"path": str(root / "general.jsonl")}
    settings["pretrain"]["keep_every"] = 2
    settings["eval"] = {"dynamics_tokens": 1024, "highlighted": 3}
    return settings


class Made:
    """A finished pipeline's folder."""

    def __init__(self, root: Path, settings: dict[str, Any]) -> None:
        self.root, self.settings = root, settings

    def open(self, change: Change = lambda _: None) -> Workspace:
        changed = copy.deepcopy(self.settings)
        change(changed)
        return Workspace(check(changed, "tiny")).open()

    def copy_to(self, place: Path) -> Made:
        shutil.copytree(self.root, place, dirs_exist_ok=True)
        return Made(place, json.loads(json.dumps(self.settings).replace(str(self.root), str(place))))


def results_of(workspace: Workspace) -> dict[str, Any]:
    """results.json; NaN and Infinity, which are no JSON, are refused."""

    def refuse(name: str) -> None:
        raise ValueError(f"{name} in results.json")

    text = (workspace.evaluation / "results.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text, parse_constant=refuse)
    return found


def set_rows(workspace: Workspace, name: str, column: str = "input_id", kind: str = "tokens") -> np.ndarray:
    """A column of a whole set [rows, seq_len], read with pyarrow alone."""
    folder = (workspace.tokens if kind == "tokens" else workspace.scores)(name).path
    files = [folder / s["file"] for s in read_json(folder / "manifest.json")["shards"]]
    return np.concatenate([pq.read_table(f)[column].to_numpy() for f in files]).reshape(-1, SEQ_LEN)

"""The tiny pipelines that ranks are tried on."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch import SEQ_LEN, Left, left_by, settings, succeed, write_config, write_texts

from slmctl.config.yaml import lay_over

ROWS_16 = {"batch_tokens": 16 * SEQ_LEN}
ARMS: dict[str, Any] = {
    "slm": {**ROWS_16, "selection": {"group_rows": 2}},
    "global": {"micro_batch": 8, "selection": {"group_rows": 2, "scope": "global"}},
    "threshold": {**ROWS_16, "selection": {"group_rows": 2, "scope": "threshold"}},
    "clm": {**ROWS_16, "micro_batch": 4, "selection": {"criterion": "all", "group_rows": 1}},
    "random": {**ROWS_16, "selection": {"criterion": "random", "group_rows": 2}},
    "bf16": {
        **ROWS_16,
        "precision": "bf16_autocast",
        "selection": {"group_rows": 2},
        "lr": 2.0e-4,
    },  # so low that rounding stays small
}


@dataclass
class Pipeline:
    """A pipeline's settings and folder."""

    settings: dict[str, Any]
    root: Path

    def copy(self, to: Path, over: dict[str, Any] | None = None) -> Pipeline:
        shutil.copytree(self.root, to)
        return Pipeline(lay_over(self.settings, over or {}), to)

    @property
    def config(self) -> str:
        return str(write_config(self.root.parent, self.root, self.settings))

    def arm(self, name: str) -> Path:
        return self.root / "pretrain" / name

    def left(self, name: str) -> Left:
        return left_by(self.arm(name))


def prepared(root: Path, over: dict[str, Any]) -> Pipeline:
    write_texts(root / "texts")
    made = Pipeline(lay_over(settings(root / "texts", ARMS), over), root / "made")
    succeed(root, 1, *[[stage, made.config] for stage in ("prepare", "train-base", "train-ref", "score")])
    return made


STEPS = 8
STOPPED = {"pretrain": {"steps": STEPS, "save_every": 2, "keep_last": 8, "sharding": "full", "arms": {"slm": {"micro_batch": 4}}}}
"""What runs that are disturbed have in common."""

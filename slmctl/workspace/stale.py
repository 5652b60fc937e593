"""stale/: what was moved aside. What of it is what is wanted now is taken back, and not made again.

Nothing here moves anything: these functions say which of the folders in stale/ is the very result that is wanted.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from slmctl.store import manifest as manifests
from slmctl.store.build import names_in, read_plan
from slmctl.store.manifest import differences, is_complete
from slmctl.system.errors import SlmError
from slmctl.system.files import read_json
from slmctl.system.storage import Folder

STALE = "stale"
ACCEPTED = "accepted_mismatches"
"""Key of what `accept_mismatch` let through, in the record of what was made from it."""
INPUTS, DONE = "inputs.json", "done.json"
_WHEN = r"-\d{8}T\d{6}-\d{6}"
"""How a name in stale/ ends: when its folder was moved there."""


def strict(made_from: Any) -> Any:
    """What a result depends on, without what was let through on the way: to go on with it, nothing is made anew."""
    return {k: v for k, v in made_from.items() if k != ACCEPTED} if isinstance(made_from, dict) else made_from


def name_in_stale(label: str) -> str:
    """How the names of what `label` has been begin."""
    return label.replace(os.sep, "-")


def moved_aside(root: Path, label: str) -> list[Path]:
    """The folders in stale/ that `label` has been, the newest first."""
    named = re.compile(re.escape(name_in_stale(label)) + _WHEN)
    stale = root / STALE
    found = [d for d in stale.iterdir() if named.fullmatch(d.name) and d.is_dir()] if stale.is_dir() else []
    return sorted(found, key=lambda d: d.name, reverse=True)


def same_stage(root: Path, label: str, inputs: dict[str, Any], last: str) -> Path | None:
    """The folder in stale/ that `label` would be if it were made from `inputs`: a complete one, else one with the latest
    checkpoint to go on from; None where there is none. `last` is the file that says that a folder is complete."""
    best: tuple[int, Path] | None = None
    for folder in moved_aside(root, label):
        with suppress(SlmError):  # what cannot be read is made anew
            if differences(strict(read_json(folder / INPUTS)), inputs):
                continue
            if (folder / last).is_file():
                if holds_what_it_should(folder, label):
                    return folder
            elif (step := latest_step(folder)) and (best is None or step > best[0]):
                best = step, folder
    return best[1] if best is not None else None


def holds_what_it_should(folder: Path, label: str) -> bool:
    """Whether what a complete stage was made for is still in its folder: those in stale/ may have been thinned out."""
    if label == "tokenizer":
        return (folder / "tokenizer.json").is_file()
    model = folder / "model" if label.startswith("pretrain") or (folder / "model").is_dir() else folder  # a base of before
    return (model / "config.json").is_file() and any(f.suffix in (".safetensors", ".bin") for f in model.iterdir())


def latest_step(folder: Path) -> int:
    """The step of a run's newest checkpoint; 0 where it has none."""
    found = [*folder.glob("checkpoints/step-*/state.json"), *folder.glob("training/checkpoints/step-*/state.json")]
    return max((int(f.parent.name.removeprefix("step-")) for f in found), default=0)


def same_set(root: Path, label: str, made_from: dict[str, Any]) -> Path | None:
    """As `same_stage`, of a set of shards: a complete one, else the one with the most shards."""
    best: tuple[int, Path] | None = None
    for path in moved_aside(root, label):
        folder = Folder.at(path)
        with suppress(SlmError):
            plan = read_plan(folder)
            if plan is None or differences(strict(plan["made_from"]), strict(made_from)):
                continue
            if set_is_complete(folder, label):
                return path
            shards = len(names_in(folder, shards_of(plan)))
            if shards and (best is None or shards > best[0]):
                best = shards, path
    return best[1] if best is not None else None


def set_is_complete(folder: Folder, label: str) -> bool:
    return manifests.exists(folder) and is_complete(folder, label.partition("/")[0])


def shards_of(plan: dict[str, Any]) -> int:
    """How many shards a set's plan asks for."""
    return len(plan["slices"]) if "slices" in plan else int(plan["shards"])


def same_results(root: Path, inputs: dict[str, Any], last: str) -> Path | None:
    """The former results in stale/ that were made from `inputs`; None where there are none."""
    for folder in moved_aside(root, "eval"):
        with suppress(SlmError):
            if (folder / last).is_file() and not differences(strict(read_json(folder / INPUTS)), inputs):
                return folder
    return None

"""Evaluated runs as `slmctl compare` reads them: results.json and the resolved configuration of each output_dir."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from slmctl.comparison.results import SCHEMA
from slmctl.system.errors import ConfigError, CorruptError, InputError, MismatchError
from slmctl.system.files import read_json


@dataclass(frozen=True)
class RunResults:
    """What compare reads of one run: `label` is what it is called here."""

    label: str
    path: Path
    results: dict[str, Any]
    config: dict[str, Any]


def load_runs(paths: list[Path]) -> list[RunResults]:
    """The runs, each called by its folder's name, or by its whole path where two have the same."""
    resolved = [p.resolve() for p in paths]
    for path, given in zip(resolved, paths, strict=True):
        if resolved.count(path) > 1:
            raise ConfigError(f"{given} is given twice.")
    names = [p.name for p in resolved]
    labels = [n if names.count(n) == 1 else str(given) for n, given in zip(names, paths, strict=True)]
    return [_load(label, path) for label, path in zip(labels, paths, strict=True)]


def _load(label: str, path: Path) -> RunResults:
    if not path.is_dir():
        raise InputError(f"{path} is no folder. Give the output_dir of each run.")
    file = path / "eval" / "results.json"
    if not file.is_file():
        raise InputError(f"{file} does not exist. Run `slmctl eval` on this run's configuration first.")
    results = read_json(file)
    found = results.get("schema", 1) if isinstance(results, dict) else None
    if found != SCHEMA:
        newer = isinstance(found, int) and found > SCHEMA
        advice = "Use the newer slmctl that wrote it." if newer else "Run `slmctl eval` on this run's configuration again."
        raise MismatchError(f"{file}: found schema {found}, wanted {SCHEMA}. {advice}")
    resolved = path / "config.resolved.yaml"
    try:
        config = yaml.safe_load(resolved.read_text(encoding="utf-8")) if resolved.is_file() else {}
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise CorruptError(f"{resolved} is not valid YAML ({e}). Run any stage of this run again to write it anew.") from e
    return RunResults(label, path, results, config if isinstance(config, dict) else {})


def precisions_of(run: RunResults) -> dict[str, str]:
    """By what was made in it; of results that tell."""
    told = run.results.get("precisions") or {}
    arms = {f"arm {a}": (f.get("settings") or {}).get("precision") for a, f in run.results.get("arms", {}).items()}
    scores = {f"score set {n}": p for n, p in (told.get("scores") or {}).items()}
    models = {f"the {n}": told.get(n) for n in ("base", "reference")}
    return {what: p for what, p in {**models, **scores, **arms}.items() if isinstance(p, str)}


def seed_of(run: RunResults, arm: str) -> Any:
    return run.results["arms"][arm].get("seed", run.results["seed"])

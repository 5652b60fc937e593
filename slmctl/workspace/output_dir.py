"""Whose output_dir this is: one pipeline's, by the configuration that is kept in it."""

from __future__ import annotations

from pathlib import Path

import yaml

from slmctl.config.file import dump_config
from slmctl.config.pipeline import PipelineConfig
from slmctl.system.errors import ConfigError
from slmctl.system.files import publishing, why_no_folder
from slmctl.system.storage import is_url
from slmctl.system.temporaries import is_temporary
from slmctl.workspace.stale import STALE

RESOLVED = "config.resolved.yaml"

_OURS = {
    *("tokens", "scores", "tokenizer", "base", "reference", "pretrain", "eval", "report", STALE),
    *("contamination", "contamination.json", "sweeps.json"),
}
"""What stages make in output_dir."""


def refuse_others(root: Path, name: str) -> None:
    """Raises `ConfigError` where the files of another pipeline than `name`, or others, are in output_dir. Changes nothing."""
    others = _others(root)  # before the record, which whoever makes others publishes first
    if is_kept(root):
        refuse_other_name(root, name)
    elif others:
        raise ConfigError(f"output_dir {root} holds other files. Choose a new or empty folder (-o output_dir=...).")


def refuse_other_name(root: Path, name: str) -> None:
    """Raises `ConfigError` where the configuration that is kept is another pipeline's."""
    with open(root / RESOLVED, encoding="utf-8") as f:
        kept = yaml.safe_load(f)
    found = kept.get("name") if isinstance(kept, dict) else None
    if found != name:
        raise ConfigError(
            f"output_dir {root} belongs to pipeline {found!r}, this one is {name!r}. "
            "Choose another output_dir (-o output_dir=...)."
        )


def _others(root: Path) -> list[Path]:
    """Files in output_dir that no pipeline's first steps put there; where slmctl has worked, those that no stage makes."""
    known = {"data", ".cache", RESOLVED, *(_OURS if (root / ".cache" / "locks").is_dir() else ())}
    return [f for f in root.iterdir() if f.name not in known and not is_temporary(f)] if root.is_dir() else []


def is_kept(root: Path) -> bool:
    """Whether a configuration is kept: some stage was completed."""
    return (root / RESOLVED).is_file()


def keep(root: Path, config: PipelineConfig) -> None:
    """Keeps the configuration, in the place of what was kept."""
    with publishing(root / RESOLVED) as temporary:
        temporary.write_text(dump_config(config), encoding="utf-8")


def refuse_places(config: PipelineConfig) -> None:
    """Raises `ConfigError` that names output_dir and store_dir where these can be no folders."""
    places = {"output_dir": config.output_dir, "store_dir": config.store_dir or ""}
    found = {
        key: why_no_folder(Path(p.removeprefix("file://")))
        for key, p in places.items()
        if p and not is_url(p.removeprefix("file://"))
    }
    if wrong := [
        f"{k} {_short(places[k])} {why}. Choose another {k} (-o {k}=...)." for k, why in found.items() if why is not None
    ]:
        raise ConfigError("\n".join(wrong))


def _short(place: str) -> str:
    return place if len(place) <= 200 else f"{place[:80]}…{place[-40:]}"

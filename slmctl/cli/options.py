"""Options that several commands share, and what they come to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slmctl.system.console import waiting
from slmctl.system.errors import ConfigError

if TYPE_CHECKING:
    from slmctl.workspace.workspace import Workspace

LOADING = "loading PyTorch and transformers"
Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="The pipeline's YAML file.")]
Override = Annotated[
    list[str] | None,
    typer.Option("-o", "--override", metavar="KEY.PATH=VALUE", help="Lay a value over the configuration; repeatable."),
]
ShardIndex = Annotated[
    int | None, typer.Option("--shard-index", help="Which worker this is, from 0; default: Slurm's array task, torchrun's rank.")
]
ShardCount = Annotated[int | None, typer.Option("--shard-count", help="How many workers share the work.")]
Status = Annotated[bool, typer.Option("--status", help="Only show what is done, missing and orphaned, rate and time left.")]
Finalize = Annotated[bool, typer.Option("--finalize", help="Only write the manifest; fails where shards are missing.")]
Verify = Annotated[bool, typer.Option("--verify", help="Only re-read and re-hash every shard and look at every value.")]
Resume = Annotated[
    str,
    typer.Option("--resume", metavar="auto|never|STEP", help="Go on from the newest checkpoint, start over, or go back."),
]
NoResume = Annotated[bool, typer.Option("--no-resume", help="The same as --resume never.")]


def open_workspace(config: Path, override: list[str] | None) -> Workspace:
    """The workspace of a configuration, its output_dir opened."""
    from slmctl.config.file import load_config

    loaded = load_config(config, override)
    with waiting(LOADING):
        from slmctl.workspace.workspace import Workspace
    with waiting("opening the output_dir"):
        return Workspace(loaded).open()


def only_one(status: bool, finalize: bool, verify: bool) -> str | None:
    """Which of three options that exclude each other was given."""
    given = [n for n, on in {"status": status, "finalize": finalize, "verify": verify}.items() if on]
    if len(given) > 1:
        raise ConfigError(f"give one of {', '.join('--' + g for g in given)} at a time.")
    return given[0] if given else None


def resume_from(resume: str, no_resume: bool) -> bool | int:
    """Whether to go on from the newest checkpoint, or from which step."""
    if no_resume or resume == "never":
        return False
    if resume == "auto":
        return True
    if not resume.isdigit():
        raise ConfigError(f"--resume {resume}: want auto, never or the number of a saved step.")
    return int(resume)

"""On what, by what and how a run was made: written beside it at every start."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from slmctl import __version__
from slmctl.training.ranks import Ranks

PACKAGES = ("torch", "transformers", "numpy", "pyarrow", "tokenizers", "datasets")


def describe_environment(ranks: Ranks, device: str) -> dict[str, Any]:
    """Versions, machine, GPU, git commit and command of this process."""
    versions: dict[str, str | None] = {"slmctl": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    found: dict[str, Any] = {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv,
        "folder": os.getcwd(),
        "git": _git(),
        "host": platform.node(),
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "ranks": ranks.size,
        "versions": versions,
        "threads": torch.get_num_threads(),
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
    }
    if device.startswith("cuda"):
        gpu = torch.cuda.get_device_properties(torch.cuda.current_device())
        found["gpu"] = {
            "name": gpu.name,
            "memory_bytes": gpu.total_memory,
            "count": torch.cuda.device_count(),
            "cuda": torch.version.cuda,
            "capability": f"{gpu.major}.{gpu.minor}",
        }
    return found


def _git() -> dict[str, Any] | None:
    """The commit of slmctl's own checkout, where it runs from one."""
    here = Path(__file__).resolve().parent
    try:
        commit, changed = _output(here, "rev-parse", "HEAD"), _output(here, "status", "--porcelain")
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "changed": bool(changed)}


def _output(folder: Path, *command: str) -> str:
    asked = subprocess.run(["git", "-C", str(folder), *command], capture_output=True, text=True, timeout=10, check=True)
    return asked.stdout.strip()


def write_environment(path: Path, ranks: Ranks, device: str, precision: str) -> None:
    """Appends a line to `path`, one a start."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps({**describe_environment(ranks, device), "precision": precision}) + "\n")

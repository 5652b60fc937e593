"""By what, on what and from how much the models of a comparison were made: what results.json keeps of it for the report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slmctl.model.loading import empty_model
from slmctl.model.source import ModelSource
from slmctl.store.manifest import Manifest
from slmctl.system.errors import InputError
from slmctl.training.telemetry import read_log


def parameters(source: ModelSource) -> int | None:
    """Of a model, a shared matrix counted once; None where its shape cannot be told from here."""
    try:
        return sum(int(p.numel()) for p in empty_model(source).parameters())
    except InputError:
        return None


def epochs(corpus: Manifest, made: dict[str, Any], settings: dict[str, Any], steps: int) -> float | None:
    """Passes over the corpus in so many steps of an arm; None where the corpus is another now than that it was made from."""
    rows = int(settings.get("batch_tokens", 0)) // corpus.seq_len
    if corpus.content_hash != made.get("corpus") or not rows or not corpus.rows:
        return None
    return steps * rows / corpus.rows


def trained(training: Path | None) -> dict[str, Any] | None:
    """By the logs in `training`, how far base or reference was trained, and where and how; None where there are none, as of
    models that were not trained here, and of arms, which have facts of their own."""
    metrics = read_log(training / "metrics.jsonl") if training is not None else []
    if training is None or not metrics:
        return None
    last, environments = metrics[-1], read_log(training / "environment.jsonl")
    return {"steps": last["step"], "tokens_seen": last["tokens_seen"], "made_on": made_on(environments)}


def _cpu(threads: int, cores: int) -> str:
    return f"CPU, {threads} thread{'s' * (threads != 1)} of {cores} core{'s' * (cores != 1)}"


def made_on(environments: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Of a run's starts (environment.jsonl): where and how the last was made, and the hosts of all; None where there is none."""
    if not environments:
        return None
    last = environments[-1]
    gpu = last.get("gpu") or {}
    device = gpu.get("name") or (_cpu(last["threads"], last["cores"]) if last.get("threads") else "CPU")
    git = last.get("git") or {}
    return {
        "hosts": list(dict.fromkeys(e["host"] for e in environments if e.get("host"))),
        "device": device,
        "ranks": last.get("ranks"),
        "version": (last.get("versions") or {}).get("slmctl"),
        "commit": git.get("commit"),
        "changed": git.get("changed"),
        "command": last.get("command"),
        "starts": len(environments),
    }

"""By what, on what and from how much the models of a comparison were made: what results.json keeps of it for the report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from slmctl.model.loading import ModelSource, empty_model
from slmctl.store.manifest import load_manifest
from slmctl.system.errors import InputError
from slmctl.training.telemetry import read_log
from slmctl.workspace.workspace import Workspace


def parameters(source: ModelSource) -> int | None:
    """Of a model, a shared matrix counted once; None where its shape cannot be told from here."""
    try:
        return sum(int(p.numel()) for p in empty_model(source).parameters())
    except InputError:
        return None


def epochs(workspace: Workspace, made: dict[str, Any], settings: dict[str, Any], steps: int) -> float | None:
    """Passes over the corpus in so many steps of an arm; None where the corpus is another now than that it was made from."""
    manifest = load_manifest(workspace.tokens("corpus"), "tokens")
    rows = int(settings.get("batch_tokens", 0)) // manifest.seq_len
    if manifest.content_hash != made.get("corpus") or not rows or not manifest.rows:
        return None
    return steps * rows / manifest.rows


def trained(workspace: Workspace, model: str) -> dict[str, Any] | None:
    """By their own logs, how far base and reference were trained, and where and how; None of models that were not trained here,
    and of arms, which have facts of their own."""
    places = {"reference": workspace.reference / "training"}
    if workspace.config.model.scratch is not None:
        places["base"] = workspace.base_training
    metrics = read_log(places[model] / "metrics.jsonl") if model in places else []
    if not metrics:
        return None
    last, environments = metrics[-1], read_log(places[model] / "environment.jsonl")
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

"""What a run writes down: metrics.jsonl (the truth), TensorBoard events and, where asked for, Weights & Biases."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from slmctl.config import TrackingConfig
from slmctl.errors import ConfigError
from slmctl.files import disk_errors, publishing, sha256_json
from slmctl.training.alignment import correlations
from slmctl.training.batches import StepBatch
from slmctl.training.selective import MicroResult

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def finite(value: Any) -> Any:
    """JSON has no NaN: a figure that does not exist is null."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Log:
    """A JSON Lines file that is cut back to a step on resume, so that no step is in it twice."""

    def __init__(self, path: Path, last_step: int) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [r for r in read_log(path) if r["step"] <= last_step]
        with publishing(path) as temporary:
            temporary.write_text("".join(json.dumps(r) + "\n" for r in kept), encoding="utf-8")
        self.file = open(path, "a", encoding="utf-8")

    def write(self, record: dict[str, Any]) -> None:
        with disk_errors(self.path):
            self.file.write(json.dumps(finite(record)) + "\n")
            self.file.flush()

    def close(self) -> None:
        self.file.close()


def read_log(path: Path) -> list[dict[str, Any]]:
    """Records of a log; a last line that was cut off by a kill is left out."""
    records = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return records


class Trackers:
    """TensorBoard and W&B, fed with the same scalars."""

    def __init__(self, tracking: TrackingConfig, directory: Path, name: str, step: int) -> None:
        self.board: Any = None
        self.wandb: Any = None
        if tracking.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(directory / "tensorboard"), purge_step=step + 1)
        if tracking.wandb_project:
            try:
                import wandb
            except ImportError:
                raise ConfigError("tracking.wandb_project is set, but wandb is absent: pip install 'slmctl[wandb]'.") from None
            same = sha256_json(str(directory.resolve()))[:16]  # a resumed run goes on in the same W&B run
            self.wandb = wandb.init(project=tracking.wandb_project, name=name, id=same, dir=str(directory), resume="allow")

    def scalars(self, step: int, values: dict[str, Any], prefix: str) -> None:
        flat = {}
        for key, value in values.items():
            parts = {f"{key}/{k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value}
            flat.update({k: float(v) for k, v in parts.items() if isinstance(v, int | float) and math.isfinite(v)})
        flat.pop("step", None)
        if self.board is not None:
            for key, value in flat.items():
                self.board.add_scalar(f"{prefix}/{key}", value, step)
        if self.wandb is not None:
            self.wandb.log({f"{prefix}/{k}": v for k, v in flat.items()}, step=step)

    def close(self, failed: bool) -> None:
        if self.board is not None:
            self.board.close()
        if self.wandb is not None:
            self.wandb.finish(exit_code=int(failed))


def loss_metrics(batch: StepBatch, results: list[MicroResult]) -> tuple[dict[str, Any], dict[int, float] | None]:
    """Figures of one step (nats), and the live/reference correlations at each shift where a score set is joined."""
    live_BT = torch.cat([r.live_BT for r in results]).cpu().numpy()
    selected_BT = torch.cat([r.selected_BT for r in results]).cpu().numpy()
    threshold = torch.cat([r.threshold_G for r in results]).cpu().double().numpy()
    target_BT = batch.target_mask
    live = live_BT[target_BT].astype(np.float64)
    chosen = selected_BT[target_BT]
    metrics: dict[str, Any] = {
        "loss_selected": _mean(live[chosen]),
        "loss_unselected": _mean(live[~chosen]),
        "live_mean": _mean(live),
        "ref_mean": None,
        "excess_quantiles": None,
        "threshold": float(np.nanmean(threshold)) if np.isfinite(threshold).any() else None,
        "correlation": None,
    }
    ref_BT = batch.rows.ref_loss_BT
    if ref_BT is None:
        return metrics, None
    ref = ref_BT[target_BT].astype(np.float64)
    shifted = correlations(live_BT, ref_BT, target_BT)
    metrics["ref_mean"] = _mean(ref)
    if live.size:
        metrics["excess_quantiles"] = {
            f"q{q * 100:02.0f}": float(v) for q, v in zip(QUANTILES, np.quantile(live - ref, QUANTILES), strict=True)
        }
    metrics["correlation"] = shifted[0]
    return metrics, shifted


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if values.size else None

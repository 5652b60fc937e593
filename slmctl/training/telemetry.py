"""What a run writes down: metrics.jsonl (the truth), TensorBoard events and, where asked for, Weights & Biases."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from slmctl.config.training import TrackingConfig
from slmctl.system.errors import ConfigError
from slmctl.system.files import disk_errors, publishing
from slmctl.system.hashes import sha256_json


def finite(value: Any) -> Any:
    """JSON has no NaN: a figure that does not exist is null."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def not_finite(values: dict[str, float | None]) -> dict[str, str] | None:
    """`nan`, `inf` or `-inf` of each value that is not finite, which JSON has no number for; None where all are."""
    found = {k: str(float(v)) for k, v in values.items() if v is not None and not math.isfinite(v)}
    return found or None


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted key, as far as they are numbers, booleans or text."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
        elif isinstance(value, bool | int | float | str):
            found[f"{prefix}{key}"] = value
    return found


class Log:
    """A JSON Lines file that is cut back to a step on resume, so that no step is in it twice. Of several ranks one writes."""

    def __init__(self, path: Path, last_step: int, on: bool = True) -> None:
        self.path, self.on = path, on
        if not on:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [r for r in read_log(path) if r["step"] <= last_step]
        with publishing(path) as temporary:
            temporary.write_text("".join(json.dumps(r) + "\n" for r in kept), encoding="utf-8")
        self.file = open(path, "a", encoding="utf-8")

    def write(self, record: dict[str, Any]) -> None:
        if not self.on:
            return
        with disk_errors(self.path):
            self.file.write(json.dumps(finite(record)) + "\n")
            self.file.flush()

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        if self.on:
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
    """TensorBoard and W&B, fed with the same scalars, and with `facts`: what the run is."""

    def __init__(
        self, tracking: TrackingConfig, directory: Path, name: str, step: int, facts: dict[str, Any], on: bool = True
    ) -> None:
        self.facts = facts
        self.ended: Any = None
        """What says of TensorBoard's hparams that the run has ended."""
        self.board: Any = None
        self.wandb: Any = None
        if not on:
            return
        if tracking.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(directory / "tensorboard"), purge_step=step + 1)
        if tracking.wandb_project:
            try:
                import wandb
            except ImportError:
                raise ConfigError("tracking.wandb_project is set, but wandb is absent: pip install 'slmctl[wandb]'.") from None
            same = sha256_json(str(directory.resolve()))[:16]  # a resumed run goes on in the same W&B run
            self.wandb = wandb.init(
                project=tracking.wandb_project, name=name, id=same, dir=str(directory), resume="allow", config=facts,
                allow_val_change=True,
            )  # fmt: skip

    def describe(self, sets: Iterable[str]) -> None:
        """TensorBoard's hparams: the run's facts, and the held-out losses by which runs are compared, under the tags of their
        curves. Written among the run's own events, since `add_hparams` would make a further run of them."""
        if self.board is None or self.ended is not None:
            return
        from torch.utils.tensorboard.summary import hparams

        experiment, started, self.ended = hparams(flat(self.facts), {f"heldout/{name}": 0.0 for name in sets})  # type: ignore[no-untyped-call]
        for summary in (experiment, started):
            self.board.file_writer.add_summary(summary)

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
            if self.ended is not None and not failed:
                self.board.file_writer.add_summary(self.ended)
            self.board.close()
        if self.wandb is not None:
            self.wandb.finish(exit_code=int(failed))

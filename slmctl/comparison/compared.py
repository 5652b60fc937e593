"""What an evaluation compares, and under which conditions: opened once, at the head of the stage, and asked for nothing after."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from slmctl.config.data import DataConfig
from slmctl.config.evaluation import EvalConfig
from slmctl.config.pipeline import PipelineConfig
from slmctl.corpus.bos import Bos
from slmctl.corpus.tokenizer import Tokenizer
from slmctl.model.loading import pick_device
from slmctl.model.source import ModelSource
from slmctl.store.manifest import Manifest
from slmctl.store.reader import TokenSet
from slmctl.system.files import read_json
from slmctl.system.hashes import sha256_json
from slmctl.system.storage import Folder
from slmctl.training.checkpoint_files import all_checkpoints
from slmctl.training.telemetry import read_log
from slmctl.workspace.handles import StageFolder
from slmctl.workspace.places import Places
from slmctl.workspace.stale import INPUTS
from slmctl.workspace.start_checks import Checked


@dataclass(frozen=True)
class Conditions:
    """Under which every model is measured alike: on what, by which settings, in which arithmetic."""

    settings: EvalConfig
    data: DataConfig
    seed: int
    precision: str
    """Of weights and arithmetic: what `auto` was taken for."""
    device_asked: str
    heldout: dict[str, TokenSet]
    corpus: TokenSet
    tokenizer: Tokenizer
    bos: Bos | None
    """What rows and prompts begin with."""
    figures_from: dict[str, Any]
    """All that figures of a model depend on, but for the model."""
    folder: Path
    """eval/: where what is measured is kept."""
    checked: Checked

    @cached_property
    def device(self) -> str:
        """Looked for when a model is loaded: whoever only asks whether results are complete need not have it."""
        return pick_device(self.device_asked)

    @property
    def heldout_hashes(self) -> dict[str, str]:
        return {name: tokens.manifest.content_hash for name, tokens in self.heldout.items()}


@dataclass(frozen=True)
class Model:
    """A model that is measured."""

    source: ModelSource
    fingerprint: dict[str, Any]
    training: Path | None = None
    """Where the logs of its training lie; None of an arm, which has them itself, and of a base that was not trained here."""


@dataclass(frozen=True)
class Checkpoint:
    """A kept checkpoint of an arm."""

    arm: str
    step: int
    directory: Path

    @property
    def name(self) -> str:
        return f"{self.arm}@{self.step}"


@dataclass(frozen=True)
class Arm:
    """An arm as it was trained, whatever the configuration says of it now."""

    name: str
    folder: Path
    made_from: dict[str, Any]
    """As it was recorded when its training began."""
    evals: list[dict[str, Any]]
    """Its held-out losses while training, as logged."""
    checkpoints: list[Checkpoint]
    """By step."""

    @classmethod
    def read(cls, name: str, folder: Path) -> Arm:
        steps = all_checkpoints(folder / "checkpoints")
        kept = [Checkpoint(name, int(d.name.removeprefix("step-")), d) for d in steps]
        return cls(name, folder, read_json(folder / INPUTS), read_log(folder / "evals.jsonl"), kept)

    @property
    def seed(self) -> int:
        """Of its order and random selection."""
        own = self.made_from["settings"].get("seed")
        return int(self.made_from["seed"] if own is None else own)

    @property
    def run(self) -> list[Any]:
        """What tells one training of it from another: what it was made from, and its held-out curve."""
        return [self.made_from, sha256_json(self.evals)]

    def read_metrics(self) -> list[dict[str, Any]]:
        """The log of its steps: long, so not kept here."""
        return read_log(self.folder / "metrics.jsonl")


@dataclass(frozen=True)
class Scores:
    """A reference's score set, as it lies there."""

    folder: Folder
    manifest: Manifest


@dataclass(frozen=True)
class Compared:
    """All that one evaluation is of."""

    config: PipelineConfig
    places: Places
    stage: StageFolder
    """eval/, to be begun and completed."""
    conditions: Conditions
    models: dict[str, Model]
    """base, reference (where one was trained) and every arm that is trained to its end, in this order."""
    arms: dict[str, Arm]
    scores: dict[str, Scores]
    """By reference, of those that are here."""
    sweeps: list[dict[str, Any]]
    notes: list[str]
    """What whoever reads the results should know of the arms."""
    contamination: dict[str, Any]
    """Held-out documents that stand in the text that models learn from, as it is told in results.json."""
    inputs: dict[str, Any]
    """All that the results depend on."""

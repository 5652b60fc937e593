"""Where everything of a pipeline lies below its output_dir, and its sets of shards below its store_dir."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from slmctl.system.local_storage import LocalFolder
from slmctl.system.storage import Folder
from slmctl.system.threads import ThreadRecord


@dataclass(frozen=True)
class Places:
    """The folders of one pipeline by name. Nothing is made or read here."""

    root: Path
    """output_dir."""
    store: Folder
    """store_dir, or output_dir."""
    elsewhere: Mapping[str, Path] = field(default_factory=dict)
    """By label: where a result lies that is not in its own place."""

    def stage(self, label: str) -> Path:
        """The folder of a stage: `base`, `reference`, `pretrain/<arm>`, `tokenizer`, `eval`, `report`."""
        return self.elsewhere.get(label, self.root / label)

    def set(self, label: str) -> Folder:
        """The folder of a set of shards: `tokens/<set>` or `scores/<reference>`."""
        return LocalFolder(self.elsewhere[label]) if label in self.elsewhere else self.store / label

    def tokens(self, name: str) -> Folder:
        return self.set(f"tokens/{name}")

    def scores(self, name: str) -> Folder:
        return self.set(f"scores/{name}")

    def arm(self, name: str) -> Path:
        return self.stage(f"pretrain/{name}")

    @property
    def reference(self) -> Path:
        return self.stage("reference")

    @property
    def base(self) -> Path:
        return self.stage("base")

    @property
    def base_model(self) -> Path:
        """Where the weights of a base from scratch lie: base/ itself; of one that an older slmctl has made, base/model."""
        older = self.base / "model"
        return older if older.is_dir() else self.base

    @property
    def base_training(self) -> Path:
        """Where the logs and checkpoints of its training lie: base/training; an older slmctl put them into base/ itself."""
        older = (self.base / "model").is_dir() or (self.base / "checkpoints").is_dir()
        return self.base if older else self.base / "training"

    def model(self, name: str) -> Path:
        """Where the model of `base` (one from scratch), `reference` or an arm lies once it is complete."""
        if name == "base":
            return self.base_model
        return self.reference if name == "reference" else self.arm(name) / "model"

    def training(self, name: str) -> Path:
        """Where the logs and checkpoints of its training lie."""
        if name == "base":
            return self.base_training
        return self.reference / "training" if name == "reference" else self.arm(name)

    @property
    def own_tokenizer(self) -> Path:
        return self.stage("tokenizer")

    @property
    def evaluation(self) -> Path:
        return self.stage("eval")

    @property
    def report(self) -> Path:
        return self.stage("report")

    def threads(self, kind: str) -> ThreadRecord:
        """Where it is kept how many threads work of this kind takes on a CPU."""
        return ThreadRecord(self.root / ".cache" / "threads.json", kind)

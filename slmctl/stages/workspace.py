"""Where everything lies under `output_dir`, and whether what lies there still matches what would make it.

Each stage's folder holds `inputs.json` (all that the stage's result depends on, by content) from its start, and a last
file, written when it is complete. Same inputs and complete: skip. Same inputs and not complete: go on. Other inputs:
the old folder is moved aside, never deleted, and the stage says what changed.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from slmctl.config import PipelineConfig
from slmctl.config_file import dump_config
from slmctl.console import say
from slmctl.corpus.tokenizer import Tokenizer, load_tokenizer
from slmctl.errors import ConfigError, InputError
from slmctl.files import HashCache, publishing, read_json, sweep, write_json
from slmctl.model.loading import ModelSource, model_fingerprint, pick_device
from slmctl.store import manifest as manifests
from slmctl.store.manifest import differences, refuse_mismatch
from slmctl.store.reader import ScoreSet, TokenSet

RESOLVED = "config.resolved.yaml"
INPUTS = "inputs.json"
DONE = "done.json"


@dataclass
class Workspace:
    """Paths, hashes and checks of one pipeline's output_dir."""

    config: PipelineConfig

    def __post_init__(self) -> None:
        self.root = Path(self.config.output_dir)
        self.hashes = HashCache(self.root / ".cache" / "hashes.json")
        self._tokenizer: Tokenizer | None = None

    def open(self) -> Workspace:
        """Takes the output_dir for this pipeline. Raises `ConfigError` where another pipeline's files are in it."""
        resolved = self.root / RESOLVED
        if resolved.is_file():
            with open(resolved, encoding="utf-8") as f:
                found = yaml.safe_load(f)
            name = found.get("name") if isinstance(found, dict) else None
            if name != self.config.name:
                raise ConfigError(
                    f"output_dir {self.root} belongs to pipeline {name!r}, this one is {self.config.name!r}. "
                    "Choose another output_dir (-o output_dir=...)."
                )
        elif self.root.exists() and not self.root.is_dir():
            raise ConfigError(f"output_dir {self.root} is a file. Choose another output_dir (-o output_dir=...).")
        elif self.root.is_dir() and any(f.name not in {"data", ".cache"} for f in self.root.iterdir()):
            raise ConfigError(f"output_dir {self.root} holds other files. Choose a new or empty folder (-o output_dir=...).")
        with publishing(resolved) as temporary:
            temporary.write_text(dump_config(self.config), encoding="utf-8")
        return self

    # --- places ---

    def tokens(self, name: str) -> Path:
        return self.root / "tokens" / name

    def heldout(self, name: str) -> Path:
        return self.root / "tokens" / "heldout" / name

    def scores(self, name: str) -> Path:
        return self.root / "scores" / name

    def arm(self, name: str) -> Path:
        return self.root / "pretrain" / name

    @property
    def reference(self) -> Path:
        return self.root / "reference"

    @property
    def base(self) -> Path:
        return self.root / "base"

    @property
    def own_tokenizer(self) -> Path:
        return self.root / "tokenizer"

    @property
    def evaluation(self) -> Path:
        return self.root / "eval"

    @property
    def report(self) -> Path:
        return self.root / "report"

    @property
    def device(self) -> str:
        return pick_device(self.config.device)

    # --- models ---

    def base_source(self) -> ModelSource:
        """The base model: what the configuration names, or the one trained from scratch."""
        model = self.config.model
        if model.path is not None:
            return ModelSource(model.path, model.gguf_file, model.revision, model.attn_implementation)
        if not (self.base / "model" / "config.json").is_file():
            raise InputError(f"{self.base / 'model'} does not exist. Run `slmctl train-base` first.")
        return ModelSource(str(self.base / "model"), attn_implementation=model.attn_implementation)

    def reference_source(self, name: str) -> ModelSource:
        """The model behind a score set: the trained reference, or another that the configuration names."""
        path = self.config.score.references[name]
        if path == "reference":
            path = str(self.reference)
            if not (self.reference / DONE).is_file():
                raise InputError(f"{self.reference} is absent or not complete. Run `slmctl train-ref` first.")
        return ModelSource(path, attn_implementation=self.config.model.attn_implementation)

    def fingerprint(self, source: ModelSource) -> dict[str, Any]:
        return model_fingerprint(source, self.hashes)

    def tokenizer(self) -> Tokenizer:
        """The pipeline's one tokenizer."""
        if self._tokenizer is None:
            model = self.config.model
            if model.scratch is not None:
                if not self.own_tokenizer.is_dir():
                    raise InputError(f"{self.own_tokenizer} does not exist. Run `slmctl prepare` first.")
                self._tokenizer = load_tokenizer(str(self.own_tokenizer))
            elif model.tokenizer is not None:
                self._tokenizer = load_tokenizer(model.tokenizer)
            else:
                self._tokenizer = load_tokenizer(str(model.path), model.gguf_file, model.revision)
        return self._tokenizer

    # --- sets, opened with their bindings checked ---

    def open_tokens(self, directory: Path) -> TokenSet:
        """Raises `MismatchError` where the set was packed with another tokenizer, seq_len or seed."""
        found = TokenSet(directory)
        wanted = {"tokenizer": self.tokenizer().fingerprint(), "seq_len": self.config.data.seq_len, "seed": self.config.seed}
        made = {k: found.manifest.made_from.get(k) for k in wanted}
        refuse_mismatch(f"{directory}/{manifests.FILE}", made, wanted, "Run `slmctl prepare` again with this configuration.")
        return found

    def open_scores(self, name: str, tokens: TokenSet) -> ScoreSet:
        """Raises `MismatchError` where the scores are of other tokens, or by another reference than the present one."""
        wanted = {
            "reference": self.fingerprint(self.reference_source(name)),
            "intra_document_mask": self.config.data.intra_document_mask,
        }
        return ScoreSet(self.scores(name), tokens, wanted)

    def heldout_names(self) -> list[str]:
        return self.config.eval.heldout or list(self.config.data.heldout)

    def heldout_hashes(self) -> dict[str, str]:
        return {n: self.open_tokens(self.heldout(n)).manifest.content_hash for n in self.heldout_names()}

    # --- completeness ---

    def begin(self, directory: Path, inputs: dict[str, Any], last: str = DONE) -> bool:
        """Readies a stage's folder. Returns True where the stage is complete with these very inputs."""
        label = directory.relative_to(self.root)
        path = directory / INPUTS
        if path.is_file():
            found = read_json(path)
            changed = differences(found, inputs)
            if not changed:
                sweep(directory)
                return (directory / last).is_file()
            say(f"{label}: made from other inputs, so it is made anew. Changed:")
            for line in changed[:8]:
                say(f"  {line}")
            if len(changed) > 8:
                say(f"  and {len(changed) - 8} more")
            self.move_aside(directory)
        elif directory.is_dir() and any(directory.iterdir()):
            self.move_aside(directory)
        write_json(path, inputs)
        return False

    def move_aside(self, directory: Path) -> None:
        label = str(directory.relative_to(self.root)).replace(os.sep, "-")
        stale = self.root / "stale" / f"{label}-{time.strftime('%Y%m%dT%H%M%S')}-{time.time_ns() % 10**6:06d}"
        stale.parent.mkdir(parents=True, exist_ok=True)
        os.rename(directory, stale)
        say(f"{directory.relative_to(self.root)}: the old files are kept in {stale}; delete them when you no longer need them")

    def finish(self, directory: Path, facts: dict[str, Any] | None = None) -> None:
        """Marks a stage complete."""
        write_json(directory / DONE, {"completed": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **(facts or {})})

"""Where everything lies under `output_dir`, and whether what lies there still matches what would make it.

Each stage's folder holds `inputs.json` (all that the stage's result depends on, by content) from its start, and a last
file, written when it is complete. Same inputs and complete: skip. Same inputs and not complete: go on. Other inputs:
the old folder is moved aside, never deleted, and the stage says what changed. Sets of shards, which many workers make at
once, hold `plan.json` instead, and `manifest.json` when they are complete.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from slmctl.config import ArmConfig, PipelineConfig, ReferenceModel, SourceConfig, TrainingConfig
from slmctl.config_file import dump_config
from slmctl.console import say, warn
from slmctl.corpus.sources import input_fingerprint, unhashed_bytes
from slmctl.corpus.tokenizer import Tokenizer, load_tokenizer
from slmctl.errors import ConfigError, InputError, MismatchError, SlmError
from slmctl.files import HashCache, is_temporary, publishing, read_json, sweep, write_json
from slmctl.model.loading import ModelSource, local_copy, model_fingerprint, pick_device
from slmctl.stages.locks import Locks
from slmctl.storage import Folder, LocalFolder
from slmctl.store.build import PLAN, read_plan
from slmctl.store.manifest import differences, exists, load_manifest
from slmctl.store.reader import ScoreSet, TokenSet
from slmctl.sweeps import read_sweeps, with_sweeps

RESOLVED = "config.resolved.yaml"
INPUTS = "inputs.json"
DONE = "done.json"
ACCEPTED = "accepted_mismatches"
"""Key of what `accept_mismatch` let through, in the record of what was made from it."""

_NOT_THE_RESULT = {
    *("save_every", "keep_last", "keep_every", "log_every", "alignment_check", "eval_every", "eval_tokens"),
    *("micro_batch", "keep_best_on", "arms", "loader_threads", "sharding", "compile", "activation_checkpointing"),
    *("on_nonfinite", "hang_timeout", "profile"),
}

SETS = ("tokens/", "scores/")
"""How the labels of sets of shards begin."""

_NEVER_ACCEPTED = {"seq_len", "intra_document_mask"}
"""Where these differ, losses are of other predictions than those that are trained."""

HASHED_BY_READERS = 2**33
"""Bytes of texts, not hashed from here before, up to which a stage that only reads a set still compares them by content;
`prepare` always does."""


def result_settings(settings: TrainingConfig) -> dict[str, Any]:
    """The settings that decide the weights: not those of logs, checkpoints, evaluations and memory."""
    layout_decides = isinstance(settings, ArmConfig) and settings.selection.scope != "group"
    return settings.model_dump(mode="json", exclude=_NOT_THE_RESULT - ({"micro_batch"} if layout_decides else set()))


@dataclass
class Workspace:
    """Paths, hashes and checks of one pipeline's output_dir."""

    config: PipelineConfig

    def __post_init__(self) -> None:
        self.root = Path(self.config.output_dir)
        self.store = Folder.at(self.config.store_dir or self.root)
        self.locks = Locks(self.root, self.store, SETS)
        self.hashes = HashCache(self.root / ".cache" / "hashes.json")
        self.accepted: list[str] = []
        """What `accept_mismatch` let through since a stage began."""
        self._tokenizer: Tokenizer | None = None

    def open(self) -> Workspace:
        """Takes the output_dir for this pipeline.

        Raises `ConfigError` where another pipeline's files are in it.
        """
        resolved = self.root / RESOLVED
        self.config = with_sweeps(self.config, read_sweeps(self.root))
        sweep(self.root)
        sweep(self.root / ".cache")
        others = self._others()  # before the record, which whoever makes others publishes first
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
        elif others:
            raise ConfigError(f"output_dir {self.root} holds other files. Choose a new or empty folder (-o output_dir=...).")
        if not resolved.is_file():
            self.record()
        return self

    def _others(self) -> list[Path]:
        """Files in output_dir that no pipeline's first steps put there."""
        known = {"data", ".cache", RESOLVED}
        return [f for f in self.root.iterdir() if f.name not in known and not is_temporary(f)] if self.root.is_dir() else []

    def record(self) -> None:
        """Keeps the configuration that a stage is made with; a command that makes nothing leaves the old one."""
        with publishing(self.root / RESOLVED) as temporary:
            temporary.write_text(dump_config(self.config), encoding="utf-8")

    # --- places ---

    def tokens(self, name: str) -> Folder:
        return self.store / "tokens" / name

    def scores(self, name: str) -> Folder:
        return self.store / "scores" / name

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

    # --- what does not match ---

    def refuse(self, label: str, found: dict[str, Any], wanted: dict[str, Any], advice: str) -> None:
        """Raises `MismatchError` naming each differing field, what was found and what was wanted; a field that
        `accept_mismatch` names is let through with a warning, and kept in `accepted` for the run's record."""
        differ = {d: d.split(": found ", 1)[0] for d in (f"{label}:{d}" for d in differences(found, wanted))}
        never = _NEVER_ACCEPTED if label.startswith(SETS) else ()
        offered = {d: field for d, field in differ.items() if field.rpartition(":")[2] not in never}
        accepted = {d for d, field in offered.items() if field in self.config.accept_mismatch}
        for line in sorted(accepted):
            warn(f"accept_mismatch lets through {line}")
            if line not in self.accepted:
                self.accepted.append(line)
        if left := [d for d in differ if d not in accepted]:
            listing = "\n".join(f"  {d}" for d in left)
            names = json.dumps([*self.config.accept_mismatch, *[differ[d] for d in left]])
            offer = f" To go on with it as it is, give -o 'accept_mismatch={names}'." if set(left) <= set(offered) else ""
            raise MismatchError(f"{label} does not match:\n{listing}\n{advice}{offer}")

    # --- models ---

    def base_source(self) -> ModelSource:
        """The base model: what the configuration names, or the one trained from scratch.

        Raises `MismatchError` where the latter was made with other settings, or with another tokenizer than the present.
        """
        model = self.config.model
        if model.scratch is None:
            return local_copy(ModelSource(str(model.path), model.gguf_file, model.revision, model.attn_implementation))
        advice = "Run `slmctl train-base` again."
        if not (self.base / DONE).is_file():
            raise InputError(f"{self.base} is absent or not complete. Run `slmctl train-base` first.")
        wanted = self.base_inputs()
        made = read_json(self.base / INPUTS)
        path = str(self.base / "model")
        found = {**{k: made.get(k) for k in wanted}, "tokenizer": load_tokenizer(path).fingerprint()}
        self.refuse("base", found, {**wanted, "tokenizer": self.tokenizer().fingerprint()}, advice)
        return ModelSource(path, attn_implementation=model.attn_implementation)

    def common_inputs(self) -> dict[str, Any]:
        """What decides every trained model, besides its own settings, its start and its rows."""
        data = self.config.data
        return {
            "seed": self.config.seed,
            "seq_len": data.seq_len,
            "intra_document_mask": data.intra_document_mask,
            "attn_implementation": self.config.model.attn_implementation,
        }

    def base_inputs(self) -> dict[str, Any]:
        """What decides a base from scratch; its rows as far as they are here."""
        scratch = self.config.model.scratch
        assert scratch is not None
        train = result_settings(scratch.train) if scratch.train is not None else None
        made = {"model": scratch.model_dump(mode="json", exclude={"train"}), "settings": train}
        return {**self.common_inputs(), **made, **self._contents(corpus="corpus")}

    def reference_inputs(self) -> dict[str, Any]:
        """What decides the reference model; its base and rows as far as they are here."""
        settings = self.config.reference
        found = {**self.common_inputs(), "settings": result_settings(settings), **self._contents(curated="curated")}
        with suppress(InputError):  # a stage may run on a machine that has the reference alone
            found["base"] = self.fingerprint(self.base_source())
        if settings.mix > 0:
            found |= self._contents(corpus="corpus")
        if settings.keep_best_on is not None:
            kept_on = self._contents(heldout=f"heldout/{settings.keep_best_on}")
            how = {"eval_every": settings.eval_every, "eval_tokens": settings.eval_tokens}
            found |= {"kept_by": {**how, **kept_on}} if kept_on else {}
        return found

    def _contents(self, **sets: str) -> dict[str, str]:
        """Key to content hash of each token set that is here."""
        found = {k: self.tokens(name) for k, name in sets.items()}
        return {k: load_manifest(folder, "tokens").content_hash for k, folder in found.items() if exists(folder)}

    def reference_source(self, name: str) -> ModelSource:
        """The model behind a score set: the trained reference, or another that the configuration names.

        Raises `MismatchError` where the reference was trained with other settings than the configuration has now.
        """
        given = self.config.score.references[name]
        attention = self.config.model.attn_implementation
        if given == "reference":
            if not (self.reference / DONE).is_file():
                raise InputError(f"{self.reference} is absent or not complete. Run `slmctl train-ref` first.")
            wanted = self.reference_inputs()
            made = read_json(self.reference / INPUTS)
            self.refuse("reference", {k: made.get(k) for k in wanted}, wanted, "Run `slmctl train-ref` again.")
            return ModelSource(str(self.reference), attn_implementation=attention)
        model = ReferenceModel(path=given) if isinstance(given, str) else given
        return local_copy(ModelSource(model.path, model.gguf_file, model.revision, attention))

    def fingerprint(self, source: ModelSource) -> dict[str, Any]:
        return model_fingerprint(source, self.hashes)

    def tokenizer(self) -> Tokenizer:
        """The pipeline's one tokenizer."""
        if self._tokenizer is None:
            model = self.config.model
            if model.scratch is not None:
                if not (self.own_tokenizer / DONE).is_file():
                    raise InputError(f"{self.own_tokenizer} is absent or not complete. Run `slmctl prepare` first.")
                self.locks.hold(str(self.own_tokenizer.relative_to(self.root)))
                self._tokenizer = load_tokenizer(str(self.own_tokenizer))
            elif model.tokenizer is not None:
                self._tokenizer = load_tokenizer(model.tokenizer)
            else:
                self._tokenizer = load_tokenizer(str(model.path), model.gguf_file, model.revision)
        return self._tokenizer

    # --- sets, opened with their bindings checked ---

    def sources(self, name: str) -> list[SourceConfig]:
        """The text sources of `curated`, `corpus` or `heldout/<name>`."""
        data = self.config.data
        named = {"curated": data.curated, "corpus": data.corpus}
        return named[name] if name in named else data.heldout[name.removeprefix("heldout/")]

    def set_inputs(self, name: str) -> dict[str, Any]:
        """All that a token set depends on. Raises `InputError` where its texts cannot be read."""
        return {"texts": input_fingerprint(self.sources(name), self.hashes), **self.packing_inputs()}

    def packing_inputs(self) -> dict[str, Any]:
        data = self.config.data
        tokenizer = self.tokenizer().fingerprint()
        return {"tokenizer": tokenizer, "seq_len": data.seq_len, "seed": self.config.seed, "shard_bytes": data.shard_bytes}

    def open_tokens(self, name: str) -> TokenSet:
        """Opens `curated`, `corpus` or `heldout/<name>`.

        Raises `MismatchError` where it was made from other texts (where those can be read here), or packed with another
        tokenizer, seq_len or seed.
        """
        self.locks.hold(f"tokens/{name}")
        found = TokenSet(self.tokens(name))
        made = found.manifest.made_from
        wanted = self.packing_inputs()
        with suppress(InputError):  # a stage may run on a machine that has the shards alone
            if unhashed_bytes(self.sources(name), self.hashes) <= HASHED_BY_READERS:
                wanted = self.set_inputs(name)
        self.refuse(f"tokens/{name}", {k: made.get(k) for k in wanted}, wanted, "Run `slmctl prepare` again.")
        return found

    def score_inputs(self) -> dict[str, Any]:
        """What of the configuration decides a score set, given its tokens and its model."""
        score = self.config.score
        return {
            "intra_document_mask": self.config.data.intra_document_mask,
            "attn_implementation": self.config.model.attn_implementation,
            **score.model_dump(mode="json", include={"precision", "dtype", "entropy"}),
        }

    def open_scores(self, name: str, tokens: TokenSet) -> ScoreSet:
        """Raises `MismatchError` where the scores are of other tokens, by another reference than the one that is here, or
        were made with other settings."""
        wanted = self.score_inputs()
        if self.config.score.references[name] != "reference" or self.reference.is_dir():
            wanted["reference"] = self.fingerprint(self.reference_source(name))
        self.locks.hold(f"scores/{name}")
        found = ScoreSet(self.scores(name), tokens)
        made = found.manifest.made_from
        self.refuse(f"scores/{name}", {k: made.get(k) for k in wanted}, wanted, "Run `slmctl score` again.")
        return found

    def heldout_names(self) -> list[str]:
        return self.config.eval.heldout or list(self.config.data.heldout)

    def heldout_hashes(self) -> dict[str, str]:
        return {n: self.open_tokens(f"heldout/{n}").manifest.content_hash for n in self.heldout_names()}

    # --- completeness ---

    def is_complete(self, directory: Path, inputs: dict[str, Any], last: str = DONE) -> bool:
        """Whether a stage's folder was completed with these very inputs."""
        path = directory / INPUTS
        return (directory / last).is_file() and path.is_file() and not differences(_strict(read_json(path)), inputs)

    def begin(
        self,
        directory: Path,
        inputs: dict[str, Any],
        last: str = DONE,
        fresh: bool = False,
        lock: bool = True,
        keep: tuple[str, ...] = (),
    ) -> bool:
        """Readies a stage's folder. Returns True where the stage is complete with these very inputs.

        `fresh` moves aside whatever is there; folders named in `keep`, whose files know what they were made from, stay.
        Raises `SlmError` where another process works on the folder.
        """
        label = directory.relative_to(self.root)
        if lock:
            self.locks.lock(str(label))
        path = directory / INPUTS
        found = read_json(path) if path.is_file() else None
        if found is not None and not fresh and not self.changed(str(label), _strict(found), inputs):
            sweep(directory)
            if not set(self.accepted) <= set(found.get(ACCEPTED, [])):
                write_json(path, {**found, ACCEPTED: sorted({*self.accepted, *found.get(ACCEPTED, [])})})
            return (directory / last).is_file()
        if self.accepted:
            inputs = {**inputs, ACCEPTED: sorted(self.accepted)}
        if directory.is_dir() and any(directory.iterdir()):
            self.locks.lock(str(label))
            aside = self.move_aside(directory)
            for name in keep:
                if (aside / name).is_dir():
                    directory.mkdir(exist_ok=True)
                    os.replace(aside / name, directory / name)
        self.record()
        write_json(path, inputs)
        return False

    def refuse_change(self, directory: Path, inputs: dict[str, Any], advice: str) -> None:
        """Raises `MismatchError` where a stage's folder was made from other inputs, or is not there."""
        path = directory / INPUTS
        if not path.is_file():
            raise InputError(f"{directory} is not there yet. {advice}")
        if changed := _changes(_strict(read_json(path)), inputs):
            listing = "\n".join(f"  {line}" for line in _few(changed))
            raise MismatchError(f"{directory} was made from other inputs:\n{listing}\n{advice}")

    def changed(self, label: str, found: Any, inputs: Any) -> bool:
        """Whether a folder was made from other inputs; says which."""
        changed = _changes(found, inputs)
        if changed:
            say(f"{label}: made from other inputs, so it is made anew. Changed:")
            for line in _few(changed):
                say(f"  {line}")
        return bool(changed)

    def begin_set(
        self, folder: Folder, label: str, made_from: dict[str, Any], plan: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        """Readies the folder of a set of shards for any number of workers, and returns its plan: the one that was published
        first. To be called while `planning`.

        Raises `SlmError` where a set made from other inputs is there and others work on it, `MismatchError` where it is on
        an object store, which nothing is moved aside on.
        """
        files = [n for n in folder.listing() if not n.startswith(".")]  # before the plan, which another may publish meanwhile
        found = read_plan(folder)
        if found is None and files:
            say(f"{label}: its plan.json is missing (it was made by an older slmctl, or taken away), so it is made anew")
            self.clear_set(folder, label)
        elif found is not None and self.changed(label, _strict(found["made_from"]), _strict(made_from)):
            self.clear_set(folder, label)
            found = None
        if found is None:
            folder.put_json(PLAN, {"made_from": made_from, **plan()})
            found = read_plan(folder)
            assert found is not None
            if _strict(found["made_from"]) != _strict(made_from):
                raise SlmError(f"another slmctl has just begun {label} from other inputs. Give each its own output_dir.")
        folder.sweep()
        self.locks.hold(label)
        self.record()
        return found

    def claim_changed(self, folder: Folder, label: str, made_from: dict[str, Any]) -> None:
        """Raises `SlmError` where a set made from other inputs is there and others work on it."""
        found = read_plan(folder)
        if found is not None and differences(_strict(found["made_from"]), _strict(made_from)):
            self.locks.lock(label)

    def clear_set(self, folder: Folder, label: str) -> None:
        if not isinstance(folder, LocalFolder) or self.config.store_dir is not None:
            raise MismatchError(
                f"{folder} holds a set that was made from other inputs, perhaps by another pipeline. Give another store_dir, or "
                "delete that folder first."
            )
        self.locks.lock(label)
        self.move_aside(folder.path, label)

    @contextmanager
    def planning(self) -> Iterator[None]:
        """One worker plans at a time. Plans are published by whoever is first, so that two that plan at once do no harm."""
        with self.locks.planning() as beat:
            self.hashes.load()  # what those before this one have hashed
            self.hashes.beat = beat
            yield

    def move_aside(self, directory: Path, label: str | None = None) -> Path:
        stale = self.stale_place(label or str(directory.relative_to(self.root)))
        stale.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(directory, stale)  # a rename, where store_dir is on the same file system
        say(f"{directory}: the old files are kept in {stale}; delete them when you no longer need them")
        return stale

    def stale_place(self, label: str) -> Path:
        """A new name in stale/, for what `label` has been."""
        name = label.replace(os.sep, "-")
        return self.root / "stale" / f"{name}-{time.strftime('%Y%m%dT%H%M%S')}-{time.time_ns() % 10**6:06d}"

    def finish(self, directory: Path, facts: dict[str, Any] | None = None) -> None:
        """Marks a stage complete."""
        write_json(directory / DONE, {"completed": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **(facts or {})})


def _strict(made_from: Any) -> Any:
    """What a result depends on, without what was let through on the way: to go on with it, nothing is made anew."""
    return {k: v for k, v in made_from.items() if k != ACCEPTED} if isinstance(made_from, dict) else made_from


# --- what has changed, in words ---

_FEW, _LONGEST = 6, 48
"""Changes that are listed, and characters of a value that are shown."""


def _few(changed: list[str]) -> list[str]:
    return changed if len(changed) <= _FEW else [*changed[:_FEW], f"and {len(changed) - _FEW} more"]


def _changes(was: Any, now: Any, path: str = "") -> list[str]:
    """`key.path: was X, is now Y` for each value in which two JSON-like values differ; what is absent is as good as null."""
    if isinstance(was, dict) and isinstance(now, dict):
        keys = [*now, *[k for k in was if k not in now]]
        return [c for k in keys for c in _changes(was.get(k), now.get(k), f"{path}.{k}" if path else str(k))]
    if isinstance(was, list) and isinstance(now, list) and any(isinstance(x, dict | list) for x in (*was, *now)):
        both = min(len(was), len(now))
        found = [c for i in range(both) for c in _changes(was[i], now[i], f"{path}[{i}]")]
        found += [f"{path}[{i}]: is no longer there ({_shown(was[i])})" for i in range(both, len(was))]
        return found + [f"{path}[{i}]: is new ({_shown(now[i])})" for i in range(both, len(now))]
    return [] if was == now else [f"{path}: was {_shown(was)}, is now {_shown(now)}"]


def _shown(value: Any) -> str:
    """A value on one short line; of a whole part its values alone, and of a hash its beginning."""
    if value is None:
        return "not set"
    if isinstance(value, dict):
        text = ", ".join(f"{k} {_shown(v)}" for k, v in value.items() if v is not None) or "empty"
    elif isinstance(value, list):
        text = f"[{', '.join(map(_shown, value))}]"
    elif isinstance(value, str) and re.fullmatch("[0-9a-f]{40,}", value):
        return f"{value[:12]}…"
    else:
        text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"

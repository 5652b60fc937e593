"""A pipeline's workspace for those who only look: nothing is locked, kept, fetched or written, and no folder is made.

What a run would take back from stale/ is looked at where it lies; what it would make is taken as absent.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from slmctl.config.decides import result_settings
from slmctl.config.pipeline import PipelineConfig, ReferenceModel
from slmctl.config.sweeps import read_sweeps, with_sweeps
from slmctl.corpus.sources import input_fingerprint, unhashed_bytes
from slmctl.corpus.tokenizer import Tokenizer
from slmctl.model.source import ModelSource
from slmctl.store.build import names_in, read_plan
from slmctl.store.manifest import Manifest, load_manifest
from slmctl.system.errors import InputError
from slmctl.system.files import HashCache, read_json
from slmctl.system.storage import Folder, LocalFolder
from slmctl.workspace.folders import DONE, SETS
from slmctl.workspace.locks import Locks
from slmctl.workspace.places import Places
from slmctl.workspace.planned.decide import Found, differing, reference_of
from slmctl.workspace.precisions import as_recorded, chosen, chosen_for_scores, precision_in, with_precision
from slmctl.workspace.stale import INPUTS, latest_step, same_set, same_stage, set_is_complete, shards_of, strict
from slmctl.workspace.workspace import HASHED_BY_READERS, Workspace


class _NoLocks(Locks):
    def hold(self, label: str) -> None:
        """Who only looks is in nobody's way."""

    def lock(self, label: str) -> None:
        """As `hold`."""


class _NothingKept(HashCache):
    def save(self) -> None:
        """What is hashed on the way is forgotten."""


class Looking(Workspace):
    """The workspace of a pipeline as a run would find it. Raises `ConfigError` as `open` does."""

    def __init__(self, config: PipelineConfig) -> None:
        super().__init__(_with_local_models(with_sweeps(config, read_sweeps(Path(config.output_dir)))))
        self.refuse_others()
        self.locks = _NoLocks(self.root, self.store, SETS)
        self.hashes = _NothingKept(self.root / ".cache" / "hashes.json")
        self._at: dict[str, Path] = {}
        self.places = Places(self.root, self.store, self._at)

    # --- places ---

    def put(self, label: str, place: Path | None) -> None:
        """From now on `label` lies at `place`; None: it is not there."""
        self._at[label] = place or self.root / ".cache" / "not made yet" / label

    # --- models, of which nothing is fetched ---

    def base_source(self) -> ModelSource:
        _refuse_remote(self.config.model.path)
        return super().base_source()

    def reference_source(self, name: str) -> ModelSource:
        given = self.config.score.references[name]
        _refuse_remote(None if given == "reference" else given if isinstance(given, str) else given.path)
        return super().reference_source(name)

    def tokenizer(self) -> Tokenizer:
        _refuse_remote(self.config.model.tokenizer or self.config.model.path)
        return super().tokenizer()

    # --- what is there, and what is wanted ---

    def found(self, label: str) -> Found | None:
        """What lies in the place of a stage or a set; None where nothing does."""
        if label.startswith(SETS):
            return _set_found(self.store / label, label)
        return _stage_found(self.root / label)

    def in_stale(self, label: str, inputs: dict[str, Any]) -> Found | None:
        """What of stale/ a run would take back for `label`."""
        if not label.startswith(SETS):
            stage = same_stage(self.root, label, inputs, DONE)
            return _stage_found(stage) if stage is not None else None
        place = same_set(self.root, label, inputs) if self.config.store_dir is None else None
        return _set_found(LocalFolder(place), label) if place is not None else None

    def wanted(self, label: str) -> tuple[dict[str, Any], str]:
        """What a stage or a set should be made from, as far as that can be told now; and why not all of it can. Raises
        `InputError` where its texts cannot be read."""
        kind, _, name = label.partition("/")
        parts = getattr(self, f"_wanted_{kind}")(name)
        found: dict[str, Any] = {}
        unknown = ""
        for part in parts:
            try:
                found |= part()
            except InputError as e:  # such as a model that is not made yet, or lies on the Hub
                unknown = unknown or str(e)
        return found, unknown

    def settle(self, label: str, inputs: dict[str, Any], found: Found | None) -> dict[str, Any]:
        """`inputs` with the precision that a run would take for `auto`, as far as `inputs` are known."""
        if precision_in(inputs) != "auto":
            return inputs
        if found is not None and found.inputs is not None:
            kept = as_recorded(inputs, found.inputs)
            if not differing(found.inputs, kept, partly=True):
                return kept
        taken = chosen_for_scores(self.device) if label.startswith(SETS) else chosen(self.device, self._width)
        return with_precision(inputs, taken)

    def _width(self) -> int:
        from slmctl.model.loading import hidden_size

        scratch = self.config.model.scratch
        try:
            return scratch.hidden_size if scratch is not None else hidden_size(self.base_source())
        except InputError:  # it lies on the Hub
            return 0

    def _wanted_tokenizer(self, _: str) -> Iterator[Any]:
        yield self.tokenizer_inputs

    def _wanted_tokens(self, name: str) -> Iterator[Any]:
        sources = self.sources(name)
        if (size := unhashed_bytes(sources, self.hashes)) > HASHED_BY_READERS:
            yield lambda: _unread(f"its texts have {size / 1e9:.0f} GB that were not hashed yet, which a run does")
        elif any(s.hub and not Path(s.hub).is_dir() for s in sources):
            yield lambda: _unread("the Hub was not asked for its texts")
        else:
            texts = input_fingerprint(sources, self.hashes)  # which raises, where they cannot be read
            yield lambda: {"texts": texts}
        data = self.config.data
        yield lambda: {"seq_len": data.seq_len, "seed": self.config.seed, "shard_bytes": data.shard_bytes}
        yield self.packing_inputs

    def _wanted_base(self, _: str) -> Iterator[Any]:
        yield self.base_inputs

    def _wanted_reference(self, _: str) -> Iterator[Any]:
        yield self.reference_inputs
        yield lambda: {"base": self.fingerprint(self.base_source())}

    def _wanted_scores(self, name: str) -> Iterator[Any]:
        yield self.score_inputs
        yield lambda: {"reference": self.fingerprint(self.reference_source(name))}
        yield lambda: {k: v for k, v in self.scores_made_from(self._manifest("tokens/corpus"), {}).items() if k != "reference"}

    def _wanted_pretrain(self, name: str) -> Iterator[Any]:
        arm = self.config.pretrain.arms[name]
        yield self.common_inputs
        yield lambda: {"settings": result_settings(arm)}
        yield lambda: {"base": self.fingerprint(self.base_source())}
        yield lambda: {"corpus": self._manifest("tokens/corpus").content_hash}
        if arm.selection.needs_reference:
            yield lambda: {"scores": self._manifest(f"scores/{reference_of(self.config, arm)}").content_hash}

    def _manifest(self, label: str) -> Manifest:
        return load_manifest(self.places.set(label), label.partition("/")[0])


def _unread(why: str) -> dict[str, Any]:
    raise InputError(why)


def _set_found(folder: Folder, label: str) -> Found | None:
    plan = read_plan(folder)
    if plan is None:
        return Found(None, False, place=str(folder)) if any(not n.startswith(".") for n in folder.listing()) else None
    return Found(strict(plan["made_from"]), set_is_complete(folder, label), len(names_in(folder, shards_of(plan))), str(folder))


def _stage_found(folder: Path) -> Found | None:
    if not folder.is_dir() or not any(folder.iterdir()):
        return None
    record = folder / INPUTS
    inputs = strict(read_json(record)) if record.is_file() else None
    return Found(inputs, (folder / DONE).is_file(), latest_step(folder), str(folder))


def _refuse_remote(path: str | None) -> None:
    if path is not None and not Path(path).is_dir():
        raise InputError(f"{path} is no folder here, and the Hub was not asked")


def _with_local_models(config: PipelineConfig) -> PipelineConfig:
    """The configuration with models of the Hub by the folders in which they were kept when they were fetched."""
    found = config.model_copy(deep=True)
    model = found.model
    model.path, model.revision = _kept(model.path, model.revision)
    model.tokenizer, _ = _kept(model.tokenizer, None)
    for name, given in found.score.references.items():
        if given != "reference":
            one = ReferenceModel(path=given) if isinstance(given, str) else given
            path, revision = _kept(one.path, one.revision)
            found.score.references[name] = one.model_copy(update={"path": path, "revision": revision})
    return found


def _kept(path: str | None, revision: str | None) -> tuple[str | None, str | None]:
    if path is None or Path(path).is_dir() or path.startswith((".", "/", "~")) or path.count("/") > 1:
        return path, revision
    import huggingface_hub

    try:
        return huggingface_hub.snapshot_download(path, revision=revision, local_files_only=True), None
    except Exception:  # it was not fetched yet
        return path, revision

"""Token sets: planned for any number of workers, kept as they are where their texts are gone, and bound by a manifest at last."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from slmctl.config.data import SourceConfig
from slmctl.corpus.bos import Bos
from slmctl.corpus.make_shard import BOS_TOKENS, COUNTS, ENDS, Job, Packing, refuse_other_ends
from slmctl.corpus.packing import PADDING, bos_mask
from slmctl.corpus.planned_slices import as_planned, pieces_of
from slmctl.corpus.slices import plan_slices
from slmctl.corpus.text_files import stamp_of_hash
from slmctl.corpus.tokenizer import Tokenizer
from slmctl.store import manifest as manifests
from slmctl.store.build import Coverage, in_order, read_plan
from slmctl.store.manifest import Manifest, differences, is_complete, library_versions, load_manifest
from slmctl.store.reader import ShardSet
from slmctl.store.shard_format import rows_per_group
from slmctl.system.console import say, waiting
from slmctl.system.errors import InputError
from slmctl.system.hashes import HashCache, sha256_json
from slmctl.system.storage import Folder
from slmctl.workspace.build import Build
from slmctl.workspace.handles import SetFolder
from slmctl.workspace.identity import packing_found
from slmctl.workspace.missing_texts import Inputs, InputsAsRecorded


@dataclass(frozen=True)
class Recipe:
    """What every token set of a pipeline is made with."""

    tokenizer: Tokenizer
    bos: Bos | None
    vocab_size: int
    """Rows of the model's embedding."""
    positions: int | None
    """Of the base model, which its rows must not be longer than; None where there is no such limit."""
    seq_len: int
    seed: int
    shard_bytes: int
    inputs: Inputs
    """All of it that decides a set, as the set records it."""
    hashes: HashCache

    @property
    def columns(self) -> dict[str, str]:
        small = max(self.tokenizer.size, self.vocab_size) <= 2**16
        return {"input_id": "uint16" if small else "int32", "document": "int64"}

    @property
    def begun(self) -> dict[str, Any]:
        """Of the BOS that rows or documents begin with; nothing where they begin with none."""
        return {"bos_id": self.bos.id, "bos_at": self.bos.at} if self.bos is not None else {}


@dataclass(frozen=True)
class TextSet:
    """A set to be made: where, and of what."""

    name: str
    """`curated`, `corpus` or `heldout/<name>`."""
    folder: SetFolder
    sources: list[SourceConfig]
    made_from: Inputs | InputsAsRecorded
    """All that it depends on; as far as that is known where its texts are gone."""


def made_before(folder: Folder) -> Inputs | None:
    """What a set that is there, or was planned, is made from."""
    if (planned := read_plan(folder)) is not None:
        made: Inputs = planned["made_from"]
        return made
    return load_manifest(folder, "tokens").made_from if manifests.exists(folder) else None


def claim_sets(recipe: Recipe, sets: list[TextSet]) -> None:
    """Keeps others away from all that has changed before any of it is moved aside, so that either all or none of it is. Raises
    `SlmError` where others work on some of it, `InputError` for a set that is to be kept and is not as it is wanted."""
    for one in sets:
        if isinstance(one.made_from, InputsAsRecorded):
            keep_set(recipe, one, one.made_from)
    for one in sets:
        if not isinstance(one.made_from, InputsAsRecorded):
            one.folder.claim_changed(one.made_from)


def keep_set(recipe: Recipe, one: TextSet, made_from: InputsAsRecorded) -> Manifest:
    """The manifest of a set some of whose texts are gone. Raises `InputError` where the set is not complete, or not as the
    configuration wants it now."""
    folder = one.folder.folder
    kept = load_manifest(folder, "tokens") if manifests.exists(folder) else None
    wanted = {**recipe.inputs, **made_from.inputs}
    if kept is None or differences(packing_found(kept.made_from, wanted), wanted):
        raise InputError(f"tokens/{one.name} cannot be made as the configuration wants it now: {made_from.why}")
    return kept


def plan_set(recipe: Recipe, one: TextSet) -> Build | int:
    """Readies one token set, and says which shards make it up; where it is complete, only how many: a worker's share must
    not depend on what others have completed before it began. To be called while `planning`."""
    recipe.tokenizer.check_vocabulary(recipe.vocab_size)
    recipe.tokenizer.check_ids(np.array([recipe.bos.id] if recipe.bos is not None else []), recipe.vocab_size)
    if isinstance(one.made_from, InputsAsRecorded):
        kept = keep_set(recipe, one, one.made_from)
        say(f"prepare {one.name}: kept as it is")
        return len(kept.shards)
    with waiting(f"prepare {one.name}: planning its shards"):
        found = one.folder.begin(one.made_from, lambda: slices(recipe, one))
    folder = one.folder.folder
    if manifests.exists(folder) and is_complete(folder, "tokens"):
        complete = load_manifest(folder, "tokens")
        recipe.tokenizer.check_ids(np.array([complete.format["max_id"]]), recipe.vocab_size)
        say(f"prepare {one.name}: complete, skipped")
        return len(complete.shards)
    build = build_of(recipe, one.name, folder, found)
    build.jobs = jobs_of(recipe, one, found, build.binding)
    return build


def slices(recipe: Recipe, one: TextSet) -> dict[str, Any]:
    """What a set's plan holds besides what it is made from. Raises `InputError` where there is no text."""
    pieces = plan_slices(one.sources, recipe.shard_bytes, recipe.hashes.beat)
    if not pieces:
        key = f"data.{one.name.replace('/', '.')}"
        raise InputError(f"{one.name} is empty: its files hold no text. Check {key} in the configuration.")
    return {"slices": as_planned(one.sources, pieces)}


def jobs_of(recipe: Recipe, one: TextSet, planned: dict[str, Any], binding: str) -> list[Job]:
    """A planned set's shards to make, of texts as they were when they were hashed; `binding` is the hash of the plan."""
    packing = Packing(
        str(one.folder.folder), one.sources, recipe.columns, recipe.seq_len, recipe.seed, recipe.shard_bytes, recipe.vocab_size,
        {"binding": binding}, **recipe.begun,
    )  # fmt: skip
    pieces = pieces_of(one.sources, planned)
    stamps = {f: stamp_of_hash(f, recipe.hashes) for f in {p.file for p in pieces}}
    return [Job(packing, i, piece, stamps[piece.file]) for i, piece in enumerate(pieces)]


def build_of(recipe: Recipe, name: str, folder: Folder, planned: dict[str, Any]) -> Build:
    """A planned set in the making, for which its texts need not be here; without jobs."""
    bound = {"binding": sha256_json(planned)}

    def manifest(coverage: Coverage) -> Manifest:
        facts = [f for f in coverage.facts if f is not None]
        counts = counted(recipe, name, facts)
        described = {
            "columns": recipe.columns,
            "eos_id": recipe.tokenizer.eos_id,
            "padding_document": PADDING,
            **recipe.begun,
            "max_id": max(f["max_id"] for f in facts),
        }
        made = Manifest(
            "tokens", recipe.seq_len, rows_per_group(recipe.seq_len), in_order(coverage), planned["made_from"], described, counts,
            versions=library_versions(),
        )  # fmt: skip
        say(describe(name, counts, len(made.shards)))
        return made

    return Build(f"prepare {name}", folder, "tokens", len(planned["slices"]), bound["binding"], lambda _: bound, manifest)


def counted(recipe: Recipe, name: str, facts: list[dict[str, Any]]) -> dict[str, int]:
    """What the shards of a set hold together. Raises `InputError` where that is no token, `MismatchError` where documents do not
    end where they should."""
    keys = (*COUNTS, *([BOS_TOKENS] if recipe.bos is not None else []))
    counts = {k: sum(f["counts"][k] for f in facts) for k in keys}
    if all(k in f["counts"] for f in facts for k in ENDS):
        counts |= {k: sum(f["counts"][k] for f in facts) for k in ENDS}
        refuse_other_ends(f"tokens/{name}", counts["eos_tokens"], counts["documents"], counts["eos_in_texts"])
    if counts["tokens"] == 0:
        raise InputError(
            f"{name} is empty: no document with text in its files ({counts['empty_documents']} empty, "
            f"{counts['skipped_documents']} skipped). Check data.{name.replace('/', '.')} in the configuration."
        )
    return counts


def describe(name: str, counts: dict[str, int], shards: int) -> str:
    text = f"prepare {name}: {counts['documents']:,} documents, {counts['tokens']:,} tokens in {shards} shard{'s' * (shards > 1)}"
    notes = {"empty_documents": "empty", "skipped_documents": "skipped"}
    extra = [f"{counts[k]:,} {label}" for k, label in notes.items() if counts[k]]
    return text + (f" ({'; '.join(extra)})" if extra else "")


def impossible_tokens(tokens: ShardSet, group: int, columns: dict[str, np.ndarray]) -> str | None:
    """What is wrong with the values of a row group of tokens, if anything."""
    ids, document = columns["input_id"].ravel(), columns["document"].ravel()
    form = tokens.manifest.format
    if int(ids.min()) < 0 or int(ids.max()) > form["max_id"]:
        return f"input_id is not within 0 to {form['max_id']}"
    valid = tokens.valid_tokens(group)
    if (document[:valid] < 0).any() or (document[valid:] != form["padding_document"]).any():
        return "padding is not where the manifest says"
    shard, _ = tokens.place[group]
    if (document[:valid] >> 32 != shard).any():
        return "it holds documents of another shard"
    if (ids[valid:] != form["eos_id"]).any():
        return "padding does not hold the end-of-sequence token"
    begins = bos_mask(columns["document"].reshape(-1, tokens.seq_len), form.get("bos_at")).ravel()
    if (ids[begins] != form.get("bos_id")).any():
        return "a row or document does not begin with the beginning-of-sequence token"
    return None

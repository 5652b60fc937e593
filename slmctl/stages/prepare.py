"""prepare: text to token shards, for the curated set, the corpus and each held-out set; by one worker or by many."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from slmctl.config.pipeline import ScratchConfig
from slmctl.corpus.bos import contradiction, described
from slmctl.corpus.make_shard import BOS_TOKENS, COUNTS, ENDS, Job, Packing, make_shard, maker, refuse_other_ends
from slmctl.corpus.packing import PADDING
from slmctl.corpus.sources import Tally, documents, files_of, plan
from slmctl.corpus.text_files import stamp
from slmctl.corpus.tokenizer import Tokenizer, up_to_bytes
from slmctl.corpus.train_tokenizer import train_tokenizer
from slmctl.model.loading import load_model_config
from slmctl.store import manifest as manifests
from slmctl.store.build import Coverage, in_order, read_plan
from slmctl.store.manifest import Manifest, differences, is_complete, library_versions, load_manifest
from slmctl.store.shards import rows_per_group
from slmctl.system.console import progress, say, waiting, warn
from slmctl.system.errors import ConfigError, InputError
from slmctl.system.files import read_json, sha256_json
from slmctl.system.processes import spread
from slmctl.system.storage import is_private
from slmctl.workspace.build import Build
from slmctl.workspace.contamination import pieces_of, plan_check
from slmctl.workspace.folders import INPUTS
from slmctl.workspace.gone import Kept, inputs_here, refuse_unreadable
from slmctl.workspace.workers import Share, cores
from slmctl.workspace.workspace import Workspace, packing_found

THREADS_A_PROCESS = 4
"""The tokenizer's threads, which one process can keep busy."""
WORTH_A_PROCESS = 2**24
"""Bytes of text from which on a further process pays for its start."""

PROVEN_DOCUMENTS, PROVEN_CHARS = 32, 1024
"""The beginnings of each set's first documents, on which the tokenizer is compared with its files."""


def set_names(workspace: Workspace) -> list[str]:
    return ["curated", "corpus", *[f"heldout/{n}" for n in workspace.config.data.heldout]]


def prepare(workspace: Workspace, share: Share = Share()) -> None:  # noqa: B008 - frozen
    """Makes every token set that is absent or no longer matches its inputs; of many workers, this one's share of the shards.
    Whoever completes a set writes its manifest. Raises `InputError` where held-out documents stand in the texts and
    eval.contamination says to stop."""
    with workspace.planning():
        if workspace.config.missing_inputs == "stop":
            sets = {name: workspace.sources(name) for name in set_names(workspace)}
            refuse_unreadable(sets, lambda name: manifests.exists(workspace.tokens(name)))
        vocab_size = begin(workspace)
        tell_bos(workspace)
        here = {name: workspace.inputs_here(name, made_before(workspace, name)) for name in set_names(workspace)}
        for name, inputs in here.items():  # all first, so that either all or none of what has changed is moved aside
            if isinstance(inputs, Kept):
                keep_set(workspace, name, inputs)
        for name, inputs in here.items():
            if not isinstance(inputs, Kept):
                workspace.claim_changed(workspace.tokens(name), f"tokens/{name}", inputs)
        found = [plan_set(workspace, name, vocab_size) for name in set_names(workspace)]
        check = plan_check(workspace)
    if check is not None:
        for name, build in zip(set_names(workspace), found, strict=True):
            if isinstance(build, Build):
                build.jobs = check.watched(name, build.jobs)
    builds = [b for b in found if isinstance(b, Build)]
    jobs: list[Job | None] = [j for f in found for j in (f.jobs if isinstance(f, Build) else [None] * f)]
    mine = [j for j in share.of(jobs) if j is not None]
    with waiting("prepare: comparing the tokenizer with its files on the first documents"):
        prove_tokenizer(workspace, mine)
    make_shards(workspace, mine, share)
    made = [build.finish() for build in builds]
    if check is not None:
        check.finish(share)
    if all(made):
        workspace.record(bool(made))


def begin(workspace: Workspace) -> int:
    """Makes the tokenizer where the pipeline asks for one. Returns the rows of the model's embedding."""
    config = workspace.config
    if config.model.scratch is not None:
        make_tokenizer(workspace, config.model.scratch)
        return config.model.scratch.vocab_size
    model = load_model_config(workspace.base_source())
    room = getattr(model, "max_position_embeddings", None)
    if room is not None and 0 < room < config.data.seq_len:  # XLNet says -1: as many as there are
        raise ConfigError(
            f"data.seq_len: {config.data.seq_len} is beyond the {room} positions of the base model; use at most {room}."
        )
    return int(model.vocab_size)


def tell_bos(workspace: Workspace) -> None:
    """Says what rows begin with, and where the tokenizer would have it otherwise."""
    tokenizer, bos, setting = workspace.tokenizer(), workspace.bos(), workspace.config.data.bos
    for line in described(tokenizer, bos, setting):
        say(f"prepare: {line}")
    against = contradiction(tokenizer, workspace.config.model.revision) if setting == "auto" else None
    if against is not None:
        warn(against)


def prove_tokenizer(workspace: Workspace, jobs: list[Job]) -> None:
    """Compares the tokenizer's ids of each set's first documents with those that its files give by other means. Raises
    `InputError` where they differ."""
    first = {job.packing.folder: job for job in reversed(jobs)}
    for job in first.values():
        source = job.packing.sources[job.slice.source]
        if source.hub is None:  # of which a look would be a fetch
            texts = (text for _, text in documents(source, job.slice, Tally()))
            kept: list[str] = []
            with suppress(InputError):  # a broken record is reported by who makes its shard
                kept.extend(t[:PROVEN_CHARS] for t in islice(texts, PROVEN_DOCUMENTS))
            workspace.tokenizer().prove(kept)


def make_tokenizer(workspace: Workspace, scratch: ScratchConfig) -> None:
    """Trains the tokenizer of a model from scratch on curated and corpus text, half each."""
    data = workspace.config.data
    directory = workspace.own_tokenizer
    sizes: dict[str, Any] = {"vocab_size": scratch.vocab_size, "sample_mb": scratch.tokenizer_sample_mb}
    texts = {"curated": data.curated, "corpus": data.corpus}

    made = read_json(directory / INPUTS) if (directory / INPUTS).is_file() else None
    inputs = inputs_here(workspace, "tokenizer", made, workspace.tokenizer_inputs, texts)
    if isinstance(inputs, Kept):
        if not workspace.is_complete(directory, {**sizes, **inputs.inputs}):
            raise InputError(f"the tokenizer cannot be made as the configuration wants it now: {inputs.why}")
        return
    if workspace.begin(directory, inputs, lock=False):
        say("tokenizer: complete, skipped")
        return

    def sample() -> Iterator[str]:
        for sources in (data.curated, data.corpus):
            budget = scratch.tokenizer_sample_mb * 2**20 // 2
            pieces = plan(sources, data.shard_bytes, workspace.hashes.beat)
            for piece in pieces:
                texts = (text for _, text in documents(sources[piece.source], piece, Tally()))
                yield from up_to_bytes(texts, max(1, budget // len(pieces)))
                workspace.hashes.beat()

    training = waiting("tokenizer: training it on curated and corpus text")
    with training, tempfile.TemporaryDirectory(dir=directory) as made:  # whole or absent, should two workers make it at once
        entries = train_tokenizer(sample(), scratch.vocab_size, Path(made))
        for file in Path(made).iterdir():
            os.replace(file, directory / file.name)
    workspace.finish(directory, {"vocab_size": scratch.vocab_size, "entries": entries})
    fewer = f", fewer than vocab_size {scratch.vocab_size}" if entries < scratch.vocab_size else ""
    say(f"tokenizer: {entries} entries{fewer}, trained on curated and corpus text")


def made_before(workspace: Workspace, name: str) -> dict[str, Any] | None:
    """What a set that is there, or was planned, is made from."""
    folder = workspace.tokens(name)
    if (planned := read_plan(folder)) is not None:
        made: dict[str, Any] = planned["made_from"]
        return made
    return load_manifest(folder, "tokens").made_from if manifests.exists(folder) else None


def plan_set(workspace: Workspace, name: str, vocab_size: int) -> Build | int:
    """Readies one token set, and says which shards make it up; where it is complete, only how many: a worker's share must
    not depend on what others have completed before it began."""
    config, folder, sources = workspace.config, workspace.tokens(name), workspace.sources(name)
    tokenizer = workspace.tokenizer()
    bos = workspace.bos()
    tokenizer.check_vocabulary(vocab_size)
    tokenizer.check_ids(np.array([bos.id] if bos is not None else []), vocab_size)
    made_from = workspace.inputs_here(name, made_before(workspace, name))
    if isinstance(made_from, Kept):
        kept = keep_set(workspace, name, made_from)
        say(f"prepare {name}: kept as it is")
        return len(kept.shards)

    def slices() -> dict[str, Any]:
        pieces = plan(sources, config.data.shard_bytes, workspace.hashes.beat)
        if not pieces:
            raise InputError(
                f"{name} is empty: its files hold no text. Check data.{name.replace('/', '.')} in the configuration."
            )
        places = [{f: i for i, f in enumerate(files_of(s))} if s.hub is None else {s.hub: 0} for s in sources]
        return {"slices": [[p.source, places[p.source][p.file], p.start, p.stop, p.limit] for p in pieces]}

    with waiting(f"prepare {name}: planning its shards"):
        found = workspace.begin_set(folder, f"tokens/{name}", made_from, slices)
    if manifests.exists(folder) and is_complete(folder, "tokens"):
        complete = load_manifest(folder, "tokens")
        tokenizer.check_ids(np.array([complete.format["max_id"]]), vocab_size)
        say(f"prepare {name}: complete, skipped")
        return len(complete.shards)
    return _build(workspace, name, found, vocab_size)


def keep_set(workspace: Workspace, name: str, made_from: Kept) -> Manifest:
    """The manifest of a set some of whose texts are gone. Raises `InputError` where the set is not complete, or not as the
    configuration wants it now."""
    folder = workspace.tokens(name)
    kept = load_manifest(folder, "tokens") if manifests.exists(folder) else None
    wanted = {**workspace.packing_inputs(), **made_from.inputs}
    if kept is None or differences(packing_found(kept.made_from, wanted), wanted):
        raise InputError(f"tokens/{name} cannot be made as the configuration wants it now: {made_from.why}")
    return kept


def _build(workspace: Workspace, name: str, found: dict[str, Any], vocab_size: int, look: bool = False) -> Build:
    """A set in the making; with `look` without the jobs, for which its texts have to be here."""
    config, folder, sources = workspace.config, workspace.tokens(name), workspace.sources(name)
    tokenizer, data, bos = workspace.tokenizer(), config.data, workspace.bos()
    columns = columns_of(tokenizer, vocab_size)
    bound = {"binding": sha256_json(found)}
    begun: dict[str, Any] = {"bos_id": bos.id, "bos_at": bos.at} if bos is not None else {}
    packing = Packing(str(folder), sources, columns, data.seq_len, config.seed, data.shard_bytes, vocab_size, bound, **begun)

    def manifest(coverage: Coverage) -> Manifest:
        facts = [f for f in coverage.facts if f is not None]
        counted = (*COUNTS, *([BOS_TOKENS] if bos is not None else []))
        counts = {k: sum(f["counts"][k] for f in facts) for k in counted}
        if all(k in f["counts"] for f in facts for k in ENDS):
            counts |= {k: sum(f["counts"][k] for f in facts) for k in ENDS}
            refuse_other_ends(f"tokens/{name}", counts["eos_tokens"], counts["documents"], counts["eos_in_texts"])
        if counts["tokens"] == 0:
            raise InputError(
                f"{name} is empty: no document with text in its files ({counts['empty_documents']} empty, "
                f"{counts['skipped_documents']} skipped). Check data.{name.replace('/', '.')} in the configuration."
            )
        described = {
            "columns": columns,
            "eos_id": tokenizer.eos_id,
            "padding_document": PADDING,
            **begun,
            "max_id": max(f["max_id"] for f in facts),
        }
        made = Manifest(
            "tokens", data.seq_len, rows_per_group(data.seq_len), in_order(coverage), found["made_from"], described, counts,
            versions=library_versions(),
        )  # fmt: skip
        say(describe(name, counts, len(made.shards)))
        return made

    jobs = []
    if not look:
        pieces = pieces_of(sources, found)
        stamps = {f: stamp(f) for f in {p.file for p in pieces}}
        jobs = [Job(packing, i, piece, stamps[piece.file]) for i, piece in enumerate(pieces)]
    count = len(found["slices"])
    return Build(f"prepare {name}", folder, "tokens", count, bound["binding"], lambda _: bound, manifest, jobs)


def builds(workspace: Workspace) -> list[Build]:
    """The token sets as they were planned, for those who only look. Raises `InputError` where one was not planned yet,
    `MismatchError` where it was planned under other settings."""
    found = []
    config = workspace.config
    vocab_size = (
        config.model.scratch.vocab_size if config.model.scratch else load_model_config(workspace.base_source()).vocab_size
    )
    for name in set_names(workspace):
        planned = read_plan(workspace.tokens(name))
        if planned is None:
            raise InputError(f"{workspace.tokens(name)} was not planned yet. Run `slmctl prepare` first.")
        workspace.refuse_other_packing(name, planned["made_from"], workspace.packing_inputs())
        found.append(_build(workspace, name, planned, vocab_size, look=True))
    return found


def make_shards(workspace: Workspace, jobs: list[Job], share: Share) -> None:
    """Makes shards, in several processes where there is work and room for them."""
    if not jobs:
        return
    size = sum(j.text_bytes() for j in jobs)
    room = cores()
    processes = max(1, min(room // THREADS_A_PROCESS, len(jobs), size // WORTH_A_PROCESS))
    if any(is_private(p) for j in jobs for p in (j.packing.folder, j.slice.file)):
        processes = 1
    label = "prepare" if share.count == 1 else f"prepare, worker {share.index} of {share.count}"
    with progress(label, len(jobs), "shards") as ticker:
        if processes == 1:
            for job in jobs:
                make_shard(workspace.tokenizer(), job)
                ticker.advance(1)
            return
        tokenizer = workspace.tokenizer()
        # of a module that imports no model library, which each process would load
        setup = partial(maker, tokenizer.backend.to_str(), tokenizer.eos_id, tokenizer.named)
        for _ in spread(jobs, setup, processes, max(1, room // processes)):
            ticker.advance(1)


def describe(name: str, counts: dict[str, int], shards: int) -> str:
    text = f"prepare {name}: {counts['documents']:,} documents, {counts['tokens']:,} tokens in {shards} shard{'s' * (shards > 1)}"
    notes = {"empty_documents": "empty", "skipped_documents": "skipped"}
    extra = [f"{counts[k]:,} {label}" for k, label in notes.items() if counts[k]]
    return text + (f" ({'; '.join(extra)})" if extra else "")


def columns_of(tokenizer: Tokenizer, vocab_size: int) -> dict[str, str]:
    small = max(tokenizer.size, vocab_size) <= 2**16
    return {"input_id": "uint16" if small else "int32", "document": "int64"}

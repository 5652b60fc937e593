"""prepare: text to token shards, for the curated set, the corpus and each held-out set."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from slmctl.config import ScratchConfig, SourceConfig
from slmctl.console import progress, say
from slmctl.corpus.packing import PADDING, Packer
from slmctl.corpus.sources import Slice, Tally, documents, input_fingerprint, plan
from slmctl.corpus.tokenizer import Tokenizer, check_ids, train_tokenizer, up_to_bytes
from slmctl.errors import ConfigError, InputError
from slmctl.files import read_json, sha256_file, sha256_json
from slmctl.model.loading import load_model_config
from slmctl.stages.workspace import DONE, INPUTS, Workspace
from slmctl.store.manifest import FILE, Manifest, Shard, is_complete, library_versions, load_manifest
from slmctl.store.order import permutation
from slmctl.store.shards import ShardWriter, rows_per_group, whole_shard

BATCH_DOCUMENTS = 512
BATCH_BYTES = 2**20
COUNTS = ("documents", "text_bytes", "empty_documents", "skipped_documents", "split_documents", "tokens", "padding")


def prepare(workspace: Workspace) -> None:
    """Makes every token set that is absent or no longer matches its inputs."""
    config = workspace.config
    if config.model.scratch is not None:
        make_tokenizer(workspace, config.model.scratch)
        vocab_size = config.model.scratch.vocab_size
    else:
        model = load_model_config(workspace.base_source())
        vocab_size = model.vocab_size
        room = getattr(model, "max_position_embeddings", None)
        if room is not None and config.data.seq_len > room:
            raise ConfigError(
                f"data.seq_len: {config.data.seq_len} is beyond the {room} positions of the base model; use at most {room}."
            )
    for name in ("curated", "corpus", *[f"heldout/{n}" for n in config.data.heldout]):
        prepare_set(workspace, name, vocab_size)


def make_tokenizer(workspace: Workspace, scratch: ScratchConfig) -> None:
    """Trains the tokenizer of a model from scratch on curated and corpus text, half each."""
    data = workspace.config.data
    directory = workspace.own_tokenizer
    inputs: dict[str, Any] = {"vocab_size": scratch.vocab_size, "sample_mb": scratch.tokenizer_sample_mb}
    try:
        inputs["curated"] = input_fingerprint(data.curated, workspace.hashes)
        inputs["corpus"] = input_fingerprint(data.corpus, workspace.hashes)
    except InputError as e:
        if keeps(directory, inputs, DONE):
            say(f"tokenizer: its texts cannot be read here, so the one made from them is kept ({e})")
            return
        raise
    if workspace.begin(directory, inputs):
        say("tokenizer: complete, skipped")
        return

    def sample() -> Iterator[str]:
        for sources in (data.curated, data.corpus):
            budget = scratch.tokenizer_sample_mb * 2**20 // 2
            pieces = plan(sources, data.shard_bytes)
            for piece in pieces:
                texts = (text for _, text in documents(sources[piece.source], piece, Tally()))
                yield from up_to_bytes(texts, max(1, budget // len(pieces)))

    train_tokenizer(sample(), scratch.vocab_size, directory)
    workspace.finish(directory, {"vocab_size": scratch.vocab_size})
    say(f"tokenizer: {scratch.vocab_size} entries, trained on curated and corpus text")


def keeps(directory: Path, inputs: dict[str, Any], last: str) -> bool:
    """Whether a folder is complete, and made from `inputs` as far as these go."""
    if not (directory / last).is_file() or not (directory / INPUTS).is_file():
        return False
    made = read_json(directory / INPUTS)
    return all(made.get(k) == v for k, v in inputs.items())


def prepare_set(workspace: Workspace, name: str, vocab_size: int) -> None:
    """Makes one token set: `curated`, `corpus` or `heldout/<name>`."""
    config, directory, sources = workspace.config, workspace.tokens(name), workspace.sources(name)
    tokenizer = workspace.tokenizer()
    check_ids(np.array([tokenizer.eos_id]), vocab_size, tokenizer)
    try:
        made_from = workspace.set_inputs(name)
    except InputError as e:
        if keeps(directory, workspace.packing_inputs(), FILE):
            say(f"prepare {name}: its texts cannot be read here, so the set made from them is kept ({e})")
            return
        raise
    if workspace.begin(directory, made_from, FILE) and is_complete(directory, "tokens"):
        check_ids(np.array([load_manifest(directory, "tokens").format["max_id"]]), vocab_size, tokenizer)
        say(f"prepare {name}: complete, skipped")
        return
    pieces = plan(sources, config.data.shard_bytes)
    if not pieces:
        raise InputError(f"{name} is empty: its files hold no text. Check data.{name.replace('/', '.')} in the configuration.")
    binding = sha256_json(made_from)
    shards: list[Shard] = []
    counts = dict.fromkeys(COUNTS, 0)
    max_id = 0
    with progress(f"prepare {name}", len(pieces), "shards") as ticker:
        for index, piece in enumerate(pieces):
            path = directory / f"shard-{index:05d}.parquet"
            facts = whole_shard(path, {"binding": binding})
            if facts is None:
                facts = make_shard(path, sources[piece.source], piece, index, tokenizer, vocab_size, workspace, binding)
            for key in COUNTS:
                counts[key] += facts["counts"][key]
            max_id = max(max_id, facts["max_id"])
            first = shards[-1].first_row + shards[-1].rows if shards else 0
            tokens, size = facts["counts"]["tokens"], path.stat().st_size
            shards.append(Shard(path.name, first, facts["rows"], facts["groups"], tokens, size, sha256_file(path)))
            ticker.advance(1, f"{counts['tokens']:,} tokens")
    if counts["tokens"] == 0:
        raise InputError(
            f"{name} is empty: no document with text in its files ({counts['empty_documents']} empty, "
            f"{counts['skipped_documents']} skipped). Check data.{name.replace('/', '.')} in the configuration."
        )
    described = {
        "columns": columns_of(tokenizer, vocab_size),
        "eos_id": tokenizer.eos_id,
        "padding_document": PADDING,
        "max_id": max_id,
    }
    Manifest(
        "tokens", config.data.seq_len, rows_per_group(config.data.seq_len), shards, made_from, described, counts,
        versions=library_versions(),
    ).save(directory)  # fmt: skip
    say(describe(name, counts, len(shards)))


def describe(name: str, counts: dict[str, int], shards: int) -> str:
    text = f"prepare {name}: {counts['documents']:,} documents, {counts['tokens']:,} tokens in {shards} shards"
    notes = {
        "empty_documents": "empty",
        "skipped_documents": "skipped",
        "split_documents": "longer than what was left of a row, split",
    }
    extra = [f"{counts[k]:,} {label}" for k, label in notes.items() if counts[k]]
    return text + (f" ({'; '.join(extra)})" if extra else "")


def columns_of(tokenizer: Tokenizer, vocab_size: int) -> dict[str, str]:
    small = max(tokenizer.size, vocab_size) <= 2**16
    return {"input_id": "uint16" if small else "int32", "document": "int64"}


def make_shard(
    path: Path,
    source: SourceConfig,
    piece: Slice,
    index: int,
    tokenizer: Tokenizer,
    vocab_size: int,
    workspace: Workspace,
    binding: str,
) -> dict[str, Any]:
    """Tokenises, shuffles, packs and publishes one slice. Returns the facts in its footer."""
    data, seed = workspace.config.data, workspace.config.seed
    block_rows = rows_per_group(data.seq_len)
    packer = Packer(data.seq_len, tokenizer.eos_id, block_rows)
    tally, rows, groups, max_id = Tally(), 0, 0, 0
    with ShardWriter(path, columns_of(tokenizer, vocab_size), block_rows * data.seq_len) as writer:

        def put(blocks: Iterator[tuple[np.ndarray, np.ndarray]]) -> None:
            nonlocal rows, groups, max_id
            for ids, document in blocks:
                writer.write(input_id=ids, document=document)
                rows += len(ids) // data.seq_len
                groups += 1
                max_id = max(max_id, int(ids.max()))

        for number, window in enumerate(windows(documents(source, piece, tally), 2 * data.shard_bytes)):
            shuffled = [window[i] for i in permutation(len(window), seed, "documents", index, number)]
            for batch in batches(shuffled):
                encoded = tokenizer.encode([text for _, text in batch], source.parse_special_tokens)
                for (ordinal, _), ids in zip(batch, encoded, strict=True):
                    check_ids(ids, vocab_size, tokenizer)
                    put(packer.add(ids, (index << 32) | ordinal))
        put(packer.finish())
        counts = {
            **{"documents": tally.documents, "text_bytes": tally.text_bytes, "empty_documents": tally.empty},
            **{"skipped_documents": tally.skipped, "split_documents": packer.split, "tokens": packer.tokens},
            "padding": rows * data.seq_len - packer.tokens,
        }
        writer.facts = {
            "binding": binding,
            "max_id": max_id,
            "slice": index,
            "rows": rows,
            "counts": counts,
        }
    return {**writer.facts, "groups": groups}


def windows(pairs: Iterator[tuple[int, str]], max_chars: int) -> Iterator[list[tuple[int, str]]]:
    """Documents in lists of bounded size: what is shuffled together, so that a slice of any size fits in memory."""
    held: list[tuple[int, str]] = []
    size = 0
    for pair in pairs:
        held.append(pair)
        size += len(pair[1])
        if size >= max_chars:
            yield held
            held, size = [], 0
    if held:
        yield held


def batches(pairs: list[tuple[int, str]]) -> Iterator[list[tuple[int, str]]]:
    """Documents in batches that the tokenizer takes at once."""
    held: list[tuple[int, str]] = []
    size = 0
    for pair in pairs:
        held.append(pair)
        size += len(pair[1])
        if len(held) >= BATCH_DOCUMENTS or size >= BATCH_BYTES:
            yield held
            held, size = [], 0
    if held:
        yield held

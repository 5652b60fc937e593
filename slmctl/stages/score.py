"""score: the reference model's loss (and entropy) of every corpus token, into shards beside the token shards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from slmctl.config import ScoreConfig
from slmctl.console import progress, say
from slmctl.corpus.tokenizer import load_tokenizer
from slmctl.errors import ConfigError, MismatchError, TrainingError
from slmctl.files import sha256_file, sha256_json
from slmctl.model.loading import load_model
from slmctl.model.row_losses import row_losses
from slmctl.model.split import SplitModel, refuse_ids_beyond
from slmctl.stages.workspace import Workspace
from slmctl.store.manifest import FILE, Manifest, Shard, is_complete, library_versions
from slmctl.store.reader import TokenSet
from slmctl.store.shards import ShardWriter, whole_shard

SENTINEL = -1.0
"""Stored where nothing is predicted: padding and first tokens. A real loss is never negative."""


def score(workspace: Workspace, references: list[str] | None = None) -> None:
    """Makes each score set (or those named) that is absent or no longer matches its inputs."""
    known = workspace.config.score.references
    for name in references or []:
        if name not in known:
            raise ConfigError(f"--reference {name}: there is no such one. score.references has: {', '.join(known)}.")
    for name in references or known:
        score_set(workspace, name)


def score_set(workspace: Workspace, name: str) -> None:
    config = workspace.config
    settings = config.score
    source = workspace.reference_source(name)
    tokens = workspace.open_tokens("corpus")
    made_from = {
        "tokens": tokens.manifest.content_hash,
        "tokenizer": tokens.manifest.made_from["tokenizer"],
        "reference": workspace.fingerprint(source),
        **workspace.score_inputs(),
    }
    directory = workspace.scores(name)
    if workspace.begin(directory, made_from, FILE) and is_complete(directory, "scores"):
        say(f"score {name}: complete, skipped")
        return
    found = load_tokenizer(source.path).fingerprint()
    if found != made_from["tokenizer"]:
        raise MismatchError(
            f"score {name}: the tokenizer of {source.path} (fingerprint {found[:12]}…) is not the one that the corpus was "
            f"prepared with ({made_from['tokenizer'][:12]}…). Losses join by token, so both must share one vocabulary."
        )
    model = SplitModel(load_model(source, settings.precision, workspace.device), config.data.intra_document_mask)
    model.check(workspace.tokenizer().eos_id)
    refuse_ids_beyond(tokens.manifest.format["max_id"], model.vocab_size, source.path)
    binding = sha256_json(made_from)
    shards: list[Shard] = []
    predicted = 0
    with progress(f"score {name}", tokens.rows * tokens.seq_len, "tokens") as ticker:
        for index, info in enumerate(tokens.manifest.shards):
            path = directory / info.file
            bound = {"binding": binding, "token_shard": info.sha256}
            facts = whole_shard(path, bound)
            if facts is None:
                facts = score_shard(path, tokens, index, model, settings, workspace.device, bound, ticker)
            else:
                ticker.advance(info.rows * tokens.seq_len)
            predicted += facts["predicted"]
            sha = sha256_file(path)
            shards.append(Shard(info.file, info.first_row, info.rows, info.groups, info.tokens, path.stat().st_size, sha))
    described = {
        "columns": columns_of(settings),
        "unit": "nats",
        "shift": "value i is the loss of predicting token i from the tokens before it in its row",
        "sentinel": SENTINEL,
    }
    Manifest(
        "scores", tokens.seq_len, tokens.manifest.group_rows, shards, made_from, described, {"predicted": predicted},
        versions=library_versions(),
    ).save(directory)  # fmt: skip
    size = sum(s.bytes for s in shards)
    say(f"score {name}: {predicted:,} losses in {len(shards)} shards, {size / max(predicted, 1):.2f} bytes a token")


def columns_of(settings: ScoreConfig) -> dict[str, str]:
    return {"ref_loss": settings.dtype, **({"ref_entropy": settings.dtype} if settings.entropy else {})}


def score_shard(
    path: Path,
    tokens: TokenSet,
    index: int,
    model: SplitModel,
    settings: ScoreConfig,
    device: str,
    bound: dict[str, Any],
    ticker: Any,
) -> dict[str, Any]:
    """Scores and publishes one shard. Returns the facts in its footer."""
    info = tokens.manifest.shards[index]
    first_group = sum(s.groups for s in tokens.manifest.shards[:index])
    predicted = 0
    with ShardWriter(path, columns_of(settings), tokens.manifest.group_rows * tokens.seq_len) as writer:
        for group in range(first_group, first_group + info.groups):
            read = tokens.read_group(group, ["input_id", "document"])
            out: dict[str, list[np.ndarray]] = {n: [] for n in columns_of(settings)}
            for at in range(0, len(read["input_id"]), settings.batch_rows):
                rows = slice(at, at + settings.batch_rows)
                losses, entropy, target = row_losses(
                    model, read["input_id"][rows], read["document"][rows], device, settings.entropy
                )
                refuse_nonfinite(losses, target, f"{path.name}, rows {info.first_row} and on")
                for column, values in (("ref_loss", losses), ("ref_entropy", entropy)):
                    if values is not None:
                        out[column].append(np.where(target, np.maximum(values, 0.0), SENTINEL).astype(settings.dtype))
                predicted += int(target.sum())
                ticker.advance(target.size)
            writer.write(**{n: np.concatenate(parts).ravel() for n, parts in out.items()})
        writer.facts = {**bound, "rows": info.rows, "predicted": predicted}
    return {**writer.facts, "groups": info.groups}


def refuse_nonfinite(losses: np.ndarray, target: np.ndarray, place: str) -> None:
    bad = ~np.isfinite(losses[target])
    if bad.any():
        raise TrainingError(
            f"the reference model gives {int(bad.sum())} non-finite losses in {place}; that shard was not written. "
            "Use score.precision: float32, or check the reference model."
        )

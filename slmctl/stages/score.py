"""score: the reference model's loss (and entropy) of every corpus token, into shards beside the token shards; by one worker
or by many. They need no process group: each makes its own share of the shards."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from slmctl.config.pipeline import ScoreConfig
from slmctl.corpus.packing import target_mask
from slmctl.corpus.tokenizer import load_vocabulary
from slmctl.model.forward_threads import settle_forward
from slmctl.model.loading import ModelSource, hidden_size, load_model
from slmctl.model.precision import autocast, weights_of
from slmctl.model.row_losses import row_losses
from slmctl.model.split import SplitModel, refuse_ids_beyond, refuse_rows_beyond
from slmctl.selection.storage import COMPACT_BITS, keep_mantissa_bits
from slmctl.store import manifest as manifests
from slmctl.store.build import Coverage, in_order, make, read_plan
from slmctl.store.manifest import Manifest, is_complete, library_versions
from slmctl.store.read_ahead import ReadAhead
from slmctl.store.reader import RowReader, Rows, ShardSet, TokenSet
from slmctl.store.shards import ShardWriter, shard_name
from slmctl.system.console import progress, say
from slmctl.system.errors import ConfigError, InputError, MismatchError, TrainingError
from slmctl.system.files import sha256_json
from slmctl.system.threads import threads_of
from slmctl.workspace.build import Build
from slmctl.workspace.folders import ACCEPTED
from slmctl.workspace.precisions import as_recorded, chosen_for_scores, settled, tell
from slmctl.workspace.workers import Share
from slmctl.workspace.workspace import Workspace

SENTINEL = -1.0
"""Stored where nothing is predicted: padding and first tokens. A real loss is never negative."""
ROUNDING = 1e-3
"""How far below zero rounding can take a loss (nats); what is lower is not a loss."""


def score(workspace: Workspace, references: list[str] | None = None, share: Share = Share()) -> None:  # noqa: B008 - frozen
    """Makes each score set (or those named) that is absent or no longer matches its inputs; of many workers, this one's
    share of the shards."""
    for name in named(workspace, references):
        score_set(workspace, name, share)


def named(workspace: Workspace, references: list[str] | None) -> list[str]:
    """Raises `ConfigError` for a name that the configuration does not have."""
    known = workspace.config.score.references
    for name in references or []:
        if name not in known:
            raise ConfigError(f"--reference {name}: there is no such one. score.references has: {', '.join(known)}.")
    return references or list(known)


def score_set(workspace: Workspace, name: str, share: Share) -> None:
    config, settings = workspace.config, workspace.config.score
    workspace.accepted = []
    folder = workspace.scores(name)
    with workspace.planning():  # so that of workers that start together one hashes the model, and the others look it up
        tokens = workspace.open_tokens("corpus")
        source = workspace.reference_source(name)
        made_from = workspace.scores_made_from(tokens.manifest, workspace.fingerprint(source))
        if workspace.accepted:
            made_from[ACCEPTED] = sorted(workspace.accepted)
        width = partial(hidden_size, source)
        choose = partial(chosen_for_scores, workspace.device)
        plan = workspace.begin_set(
            folder,
            f"scores/{name}",
            made_from,
            lambda: {"shards": len(tokens.manifest.shards)},
            lambda wanted, made: settled(wanted, made, choose),
        )
    settings = settings.model_copy(update={"precision": plan["made_from"]["precision"]})
    if manifests.exists(folder) and is_complete(folder, "scores"):
        workspace.record(made=False)
        say(f"score {name}: complete, skipped")
        return
    build = _build(workspace, name, tokens, plan)
    mine = share.of(build.jobs)
    if mine:
        refuse_other_vocabulary(workspace, name, source)
        tell(f"score {name}", config.score.precision, settings.precision, workspace.device, width)
        weights = weights_of(settings.precision)
        model = SplitModel(load_model(source, weights, workspace.device), config.data.intra_document_mask)
        refuse_ids_beyond(tokens.manifest.format["max_id"], model.vocab_size, source.path)
        refuse_rows_beyond(tokens.seq_len, model, source.path)
        with autocast(workspace.device, bf16 := settings.precision == "bf16_autocast"):
            model.check(workspace.tokenizer().eos_id, tokens.seq_len, bf16)
            reader = RowReader(tokens, documents=model.intra_document_mask)
            kept = workspace.places.threads(f"score {name}")
            settle_forward(f"score {name}", model, reader, settings.batch_rows, workspace.device, kept)
        label = f"score {name}" + (f", worker {share.index} of {share.count}" if share.count > 1 else "")
        positions = sum(tokens.manifest.shards[i].rows for i in mine) * tokens.seq_len
        with progress(label, positions, "tokens") as ticker:
            for index in mine:
                before = ticker.done
                scorer = partial(score_shard, build, tokens, index, model, settings, workspace.device, ticker)
                make(folder, index, build.bound(index), scorer)
                ticker.advance(before + tokens.manifest.shards[index].rows * tokens.seq_len - ticker.done)
    if build.finish():
        workspace.record()


def _build(workspace: Workspace, name: str, tokens: TokenSet, plan: dict[str, Any]) -> Build:
    settings = workspace.config.score
    binding = sha256_json(plan)

    def bound(index: int) -> dict[str, Any]:
        return {"binding": binding, "token_shard": tokens.manifest.shards[index].footer_sha256}

    def manifest(coverage: Coverage) -> Manifest:
        predicted = sum(f["predicted"] for f in coverage.facts if f is not None)
        described = {
            "columns": columns_of(settings),
            "unit": "nats",
            "shift": "value i is the loss of predicting token i from the tokens before it in its row",
            "sentinel": SENTINEL,
            "mantissa_bits": {"float16": 10, "compact": COMPACT_BITS, "float32": 23}[settings.dtype],
        }
        shards = in_order(coverage)
        size = sum(s.bytes for s in shards)
        say(f"score {name}: {predicted:,} losses in {len(shards)} shards, {size / max(predicted, 1):.2f} bytes a token")
        return Manifest(
            "scores", tokens.seq_len, tokens.manifest.group_rows, shards, plan["made_from"], described, {"predicted": predicted},
            accepted_mismatches=sorted(set(workspace.accepted)), versions={**library_versions(), **threads_of(workspace.device)},
        )  # fmt: skip

    count = len(tokens.manifest.shards)
    return Build(f"score {name}", workspace.scores(name), "scores", count, binding, bound, manifest, list(range(count)))


def builds(workspace: Workspace, references: list[str] | None) -> list[Build]:
    """The score sets as they were planned, for those who only look; says which were not planned yet. Raises `InputError`
    where none was, `MismatchError` where it was planned for other tokens or under other settings."""
    found, unplanned = [], []
    tokens, wanted = TokenSet(workspace.tokens("corpus")), workspace.score_inputs()
    for name in named(workspace, references):
        plan = read_plan(workspace.scores(name))
        if plan is None:
            unplanned.append(f"{workspace.scores(name)} was not planned yet. Run `slmctl score` first.")
            continue
        if plan["made_from"]["tokens"] != tokens.manifest.content_hash:
            raise MismatchError(
                f"{workspace.scores(name)} belongs to other tokens than {tokens.folder}. Run `slmctl score` again."
            )
        made = plan["made_from"]
        here = as_recorded(wanted, made)
        workspace.refuse(f"scores/{name}", {k: made.get(k) for k in here}, here, "Run `slmctl score` again.")
        found.append(_build(workspace, name, tokens, plan))
    if not found:
        raise InputError("\n".join(unplanned))
    for line in unplanned:
        say(f"note: {line}")
    return found


def refuse_other_vocabulary(workspace: Workspace, name: str, source: ModelSource) -> None:
    """Raises `MismatchError` where the reference's tokenizer gives other tokens the same ids: losses join by token. What a
    tokenizer does besides (its end-of-sequence token, its chat template) does not matter to a model that is given ids."""
    ours = workspace.tokenizer().vocabulary()
    theirs = {i: t for t, i in load_vocabulary(source.path, source.gguf_file).items()}
    differ = sorted((i, t) for t, i in ours.items() if theirs.get(i) != t)
    if differ:
        i, token = differ[0]
        raise MismatchError(
            f"score {name}: the tokenizer of {source.path} is not the one that the corpus was prepared with: {len(differ)} of "
            f"{len(ours)} ids mean other tokens (id {i} is {token!r} in the corpus, {theirs.get(i)!r} there). Losses join by "
            "token, so both must share one vocabulary."
        )


def columns_of(settings: ScoreConfig) -> dict[str, str]:
    """Values of every precision lie in float32 columns, which every tool reads and whose empty bits compress to nothing."""
    return {"ref_loss": "float32", **({"ref_entropy": "float32"} if settings.entropy else {})}


def score_shard(
    build: Build, tokens: TokenSet, index: int, model: SplitModel, settings: ScoreConfig, device: str, ticker: Any
) -> bool:
    """Scores and publishes one shard. Returns whether this worker was the first."""
    info = tokens.manifest.shards[index]
    first_group = sum(s.groups for s in tokens.manifest.shards[:index])
    reader = RowReader(tokens, cache_groups=2, documents=model.intra_document_mask)
    ahead = ReadAhead(reader.group, first_group + info.groups - 1, threads=1)
    predicted = 0
    try:
        with ShardWriter(
            build.folder, shard_name(index), columns_of(settings), tokens.manifest.group_rows * tokens.seq_len
        ) as writer:
            for group in range(first_group, first_group + info.groups):
                columns, n = score_group(
                    ahead.get(group), model, settings, device, f"{info.file}, row group {group - first_group}", ticker
                )
                writer.write(**columns)
                predicted += n
            writer.facts = {**build.bound(index), "rows": info.rows, "tokens": info.tokens, "predicted": predicted}
        return writer.won
    finally:
        ahead.close()


def score_group(
    rows: Rows, model: SplitModel, settings: ScoreConfig, device: str, place: str, ticker: Any
) -> tuple[dict[str, np.ndarray], int]:
    """The columns of one row group, as they are stored, and how many tokens are predicted."""
    out = {n: np.full(rows.ids_BT.shape, SENTINEL, dtype=t) for n, t in columns_of(settings).items()}
    predicted = 0
    for at in range(0, len(rows.ids_BT), settings.batch_rows):
        part = slice(at, at + settings.batch_rows)
        with autocast(device, settings.precision == "bf16_autocast"):
            losses, entropy, target = row_losses(model, rows.ids_BT[part], rows.document_BT[part], device, settings.entropy)
        for column, values in (("ref_loss", losses), ("ref_entropy", entropy)):
            if values is not None:
                refuse_impossible(values[target], column, place, settings.precision)
                out[column][part][target] = stored(values[target], settings.dtype)
        predicted += int(target.sum())
        ticker.advance(target.size)
    return {n: c.ravel() for n, c in out.items()}, predicted


def stored(values: np.ndarray, dtype: str) -> np.ndarray:
    """Losses (nats, float32), rounded to what is stored. What rounding took below zero is zero; what float16 cannot hold is
    its largest number."""
    values = np.maximum(values, 0.0)
    if dtype == "float32":
        return values
    half = np.minimum(values, np.finfo(np.float16).max).astype(np.float16)
    return (keep_mantissa_bits(half, COMPACT_BITS) if dtype == "compact" else half).astype(np.float32)


def refuse_impossible(values: np.ndarray, column: str, place: str, precision: str) -> None:
    """Raises `TrainingError` for a value that no model gives: not finite, or negative beyond rounding."""
    bad = ~np.isfinite(values)
    negative = values < -ROUNDING
    if bad.any() or negative.any():
        what = f"{int(bad.sum())} values of {column} that are not finite" if bad.any() else f"a {column} of {values.min():.3g}"
        advice = "Check" if precision == "float32" else "Use score.precision: float32, or check"
        raise TrainingError(
            f"the reference model gives {what} in {place}; that shard was not written. {advice} the reference model."
        )


def impossible(_scores: ShardSet, group: int, columns: dict[str, np.ndarray], tokens: TokenSet, intra: bool) -> str | None:
    """What is wrong with the values of a row group of scores, if anything: for `--verify`."""
    document = tokens.read_group(group, ["document"])["document"]
    target = target_mask(document, intra)
    for name, values in columns.items():
        if not (values[~target] == SENTINEL).all():
            return f"{name} has a value where nothing is predicted"
        if not (np.isfinite(values[target]) & (values[target] >= 0)).all():
            return f"{name} has a value that is negative or not finite"
    return None

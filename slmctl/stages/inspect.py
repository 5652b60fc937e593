"""inspect: a shard by eye. What it says it is, what its values look like, and a document beside the text it came from."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from slmctl.comparison.storage_costs import LIVE, REFERENCE, Asked, compare_storage, if_there
from slmctl.config.data import SourceConfig
from slmctl.config.pipeline import PipelineConfig
from slmctl.corpus.documents import Tally, documents
from slmctl.corpus.packing import bos_mask
from slmctl.corpus.planned_slices import piece_of
from slmctl.corpus.tokenizer import Tokenizer
from slmctl.store import manifest as manifests
from slmctl.store.build import read_plan
from slmctl.store.reader import ScoreSet, ShardSet, TokenSet
from slmctl.store.scores import SENTINEL
from slmctl.system.console import out
from slmctl.system.errors import ConfigError, InputError
from slmctl.workspace.graph import score_sets, token_sets
from slmctl.workspace.workspace import Workspace

EDGES = (0.0, 0.01, 0.1, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, np.inf)
"""Bins of the loss histogram (nats)."""
CONTEXT = 24
"""Tokens shown before one of high loss."""


@dataclass(frozen=True)
class Opened:
    """A set to look into."""

    name: str
    """`tokens/<set>` or `scores/<reference>`."""
    tokens: TokenSet
    """The set, or the corpus that the scores belong to."""
    scores: ScoreSet | None
    sources: list[SourceConfig]
    """Texts that the tokens were made from."""
    tokenizer: Callable[[], Tokenizer]
    """Loads it: asked for once tokens are shown, so that all else can be looked at without."""

    def text(self, ids: list[int]) -> str:
        """Tokens as text on one line, whatever is in them."""
        return json.dumps(self.tokenizer().hf.decode(ids), ensure_ascii=False)


def inspect(workspace: Workspace, which: str, shard: int, document: int | None, top: int) -> None:
    """Prints a shard's manifest entry and statistics; for scores the tokens of highest loss in context; and, where
    `document` is given, the n-th document of the shard beside its source. Raises `ConfigError` for a set or shard that is
    not there."""
    opened = resolve(workspace, which)
    shown: ShardSet = opened.scores or opened.tokens
    if not 0 <= shard < len(shown.manifest.shards):
        raise ConfigError(f"--shard {shard}: {opened.name} has shards 0 to {len(shown.manifest.shards) - 1}.")
    print_manifest(shown, shard)
    ids, numbers, columns = read_shard(opened.tokens, opened.scores, shard)
    if not ids.size:
        line("the shard is empty: its slice of the text holds no document")
        return
    if opened.scores is None:
        print_tokens(opened, ids, numbers)
    else:
        print_losses(columns)
        if top:
            print_highest(opened, ids, columns["ref_loss"], top)
    if document is not None:
        own = bos_mask(numbers, opened.tokens.manifest.format.get("bos_at"))
        print_document(opened, shard, document, ids, np.where(own, -1, numbers), columns.get("ref_loss"))


def inspect_storage(workspace: Workspace, which: str, rows: int) -> None:
    """--storage: prints what each storage type and precision of losses costs, and does to an arm's selection, measured on so many
    rows. Raises `ConfigError` for a set that is none of scores, `InputError` where its reference and its scores are absent."""
    for text in compare_storage(resolve_storage(workspace, which), rows):
        line(text)


# --- resolve ---


def resolve(workspace: Workspace, which: str) -> Opened:
    """Opens `tokens/NAME` or `scores/NAME` (with the corpus it belongs to). Raises `ConfigError` for another name."""
    data, references = workspace.config.data, workspace.config.score.references
    which = full_name(workspace.config, which)
    kind, _, name = which.partition("/")
    if kind == "tokens" and name in ("curated", "corpus", *[f"heldout/{n}" for n in data.heldout]):
        return Opened(which, TokenSet(workspace.tokens(name)), None, workspace.sources(name), workspace.tokenizer)
    if kind == "scores" and name in references:
        tokens = TokenSet(workspace.tokens("corpus"))
        return Opened(which, tokens, ScoreSet(workspace.scores(name), tokens), workspace.sources("corpus"), workspace.tokenizer)
    known = ["tokens/curated", "tokens/corpus", *[f"tokens/heldout/{n}" for n in data.heldout]]
    known += [f"scores/{n}" for n in references]
    raise ConfigError(f"{which!r} is no set of this pipeline. It has: {', '.join(known)}.")


def resolve_storage(workspace: Workspace, which: str) -> Asked:
    """What --storage measures, and with which models; says which of these are absent."""
    config, references = workspace.config, workspace.config.score.references
    kind, _, name = full_name(config, which, ("scores",)).partition("/")
    if kind != "scores" or name not in references:
        raise ConfigError(f"--storage looks at scores; give one of {', '.join(f'scores/{n}' for n in references)}.")
    arm = next((a for a in config.pretrain.arms.values() if a.selection.needs_reference), None)
    if arm is None:
        raise ConfigError("no arm of this pipeline selects by a reference, so no storage of losses can change its selection.")
    tokens = workspace.open_tokens("corpus")
    return Asked(
        name=name,
        tokens=tokens,
        selection=arm.selection,
        settings=config.score,
        base=if_there(LIVE, workspace.base_source),
        reference=if_there(REFERENCE, partial(workspace.reference_source, name)),
        scores=lambda: workspace.open_scores(name, tokens) if manifests.exists(workspace.scores(name)) else None,
        eos_id=workspace.tokenizer().eos_id,
        device=workspace.device,
        intra_document_mask=config.data.intra_document_mask,
    )


def full_name(config: PipelineConfig, which: str, kinds: tuple[str, ...] = ("tokens", "scores")) -> str:
    """`tokens/corpus` for `corpus`, `scores/NAME` for a reference's name that no token set has; any other stays as it is."""
    names = {"tokens": token_sets(config), "scores": score_sets(config)}
    return next((f"{kind}/{which}" for kind in kinds if which in names[kind]), which)


# --- show ---


def line(text: str = "") -> None:
    out.print(text, soft_wrap=True, markup=False, emoji=False)


def print_manifest(shown: ShardSet, shard: int) -> None:
    manifest = shown.manifest
    info = manifest.shards[shard]
    tokens = sum(s.tokens for s in manifest.shards)
    size = sum(s.bytes for s in manifest.shards)
    line(f"{shown.folder}/manifest.json")
    line(f"  {manifest.kind}: {len(manifest.shards)} shards, {manifest.rows:,} rows of {manifest.seq_len}, {tokens:,} tokens")
    line(f"  {size:,} bytes, {size / max(1, tokens):.3f} a token; columns {manifest.format['columns']}")
    line(f"  content hash {manifest.content_hash}")
    for key, value in manifest.made_from.items():
        text = json.dumps(value, ensure_ascii=False)
        line(f"  made from {key}: {text if len(text) <= 100 else text[:97] + '...'}")
    file = shown.file(shard)
    file.verify()
    line(f"{file.name}")
    line(f"  rows {info.first_row:,} to {info.first_row + info.rows:,} in {info.groups} row groups")
    line(f"  {info.tokens:,} tokens, {info.bytes:,} bytes")
    line(f"  footer sha256 {info.footer_sha256}; every byte verified")


def read_shard(tokens: TokenSet, scores: ScoreSet | None, shard: int) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """(ids, document numbers, score columns) of a whole shard, each [rows, T]."""
    groups = [g for g, (s, _) in enumerate(tokens.place) if s == shard]
    read = [tokens.read_group(g, ["input_id", "document"]) for g in groups]
    blank = np.zeros((0, tokens.seq_len), np.int64)
    ids, document = (np.concatenate([blank, *[r[c] for r in read]]) for c in ("input_id", "document"))
    if scores is None:
        return ids, document, {}
    columns = list(scores.manifest.format["columns"])
    joined = [scores.read_group(g, columns) for g in groups]
    return ids, document, {c: np.concatenate([blank.astype(np.float32), *[j[c] for j in joined]]) for c in columns}


def print_tokens(opened: Opened, ids: np.ndarray, numbers: np.ndarray) -> None:
    form = opened.tokens.manifest.format
    bos = bos_mask(numbers, form.get("bos_at"))
    if form.get("bos_id") is not None:
        token, place = opened.text([form["bos_id"]]), form["bos_at"]
        line(f"  {bos.sum():,} beginning-of-sequence tokens {token}, one before each {place}")
    valid = (numbers >= 0) & ~bos
    _, lengths = np.unique(numbers[valid], return_counts=True)
    low, middle, high = np.quantile(lengths, (0.1, 0.5, 0.9))
    padding = int((numbers < 0).sum())
    line(f"  {len(lengths):,} documents of {low:.0f} / {middle:.0f} / {high:.0f} tokens (10%, half, 90%), padding {padding:,}")
    counts = np.bincount(ids[valid].astype(np.int64))
    common = np.argsort(-counts, kind="stable")[:12]
    line("  most frequent: " + ", ".join(f"{opened.text([int(i)])} {counts[i] / valid.sum():.1%}" for i in common if counts[i]))


def print_losses(columns: dict[str, np.ndarray]) -> None:
    for name, values in columns.items():
        given = values[values != SENTINEL].astype(np.float64)
        if not given.size:
            continue
        low, middle, high = np.quantile(given, (0.1, 0.5, 0.9))
        line(
            f"{name} (nats): mean {given.mean():.4f}, 10% {low:.4f}, half {middle:.4f}, 90% {high:.4f}, highest {given.max():.3f}"
        )
        counts, _ = np.histogram(given, EDGES)
        for i, n in enumerate(counts):
            bar = "█" * round(40 * n / counts.max())
            line(f"  {EDGES[i]:>5g} to {EDGES[i + 1]:<5g} {n / given.size:>6.1%} {bar}")


def print_highest(opened: Opened, ids: np.ndarray, losses: np.ndarray, top: int) -> None:
    line(f"highest losses, each token after up to {CONTEXT} before it in its row:")
    flat = losses.ravel()
    for at in np.argsort(-flat, kind="stable")[:top]:
        row, column = divmod(int(at), losses.shape[1])
        before = [int(i) for i in ids[row, max(0, column - CONTEXT) : column]]
        line(f"  {flat[at]:7.3f}  {opened.text(before)} -> {opened.text([int(ids[row, column])])}")


def print_document(
    opened: Opened,
    shard: int,
    n: int,
    ids: np.ndarray,
    numbers: np.ndarray,
    losses: np.ndarray | None,
) -> None:
    """The n-th document of a shard, as it is stored, beside the text that its source has for it."""
    known = np.unique(numbers[numbers >= 0])
    if not 0 <= n < len(known):
        raise ConfigError(f"--document {n}: the shard has documents 0 to {len(known) - 1}.")
    here = numbers == known[n]
    stored_ids = [int(i) for i in ids[here]]
    ordinal = int(known[n]) & 0xFFFFFFFF
    tokenizer = opened.tokenizer()
    line(f"document {n} of shard {shard} (record {ordinal} of its slice): {len(stored_ids)} tokens, the last of which ends it")
    line("  stored: " + opened.text(stored_ids))
    source_text, parse = source_of(opened, shard, ordinal)
    line("  source: " + json.dumps(source_text, ensure_ascii=False))
    wanted = [*[int(i) for i in tokenizer.encode([source_text], parse)[0]], tokenizer.eos_id]
    if wanted == stored_ids:
        line("  the same tokens, every one")
    else:
        first = next(
            (i for i, (a, b) in enumerate(zip(stored_ids, wanted, strict=False)) if a != b), min(len(stored_ids), len(wanted))
        )
        ours, theirs = stored_ids[first : first + 5], wanted[first : first + 5]
        line(f"  DIFFERENT from token {first} on: stored {ours}, the source gives {theirs}")
    if losses is not None:
        line("  loss of each token (nats; - where nothing is predicted):")
        pieces = [
            f"{opened.text([i])} {v:.2f}" if v != SENTINEL else f"{opened.text([i])} -"
            for i, v in zip(stored_ids, losses[here], strict=True)
        ]
        for at in range(0, len(pieces), 8):
            line("    " + "  ".join(pieces[at : at + 8]))


def source_of(opened: Opened, shard: int, ordinal: int) -> tuple[str, bool]:
    """The text of a record of a shard's slice, read again from its source. Raises `InputError` where it is not there."""
    plan = read_plan(opened.tokens.folder)
    if plan is None:
        raise InputError(f"{opened.tokens.folder} has no plan.json, so the document's source is not known.")
    piece = piece_of(opened.sources, plan, shard)
    source = opened.sources[piece.source]
    for found, text in documents(source, piece, Tally()):
        if found == ordinal:
            return text, source.parse_special_tokens
    raise InputError(f"record {ordinal} of {piece.file} is not there any more: the text has changed since it was prepared.")

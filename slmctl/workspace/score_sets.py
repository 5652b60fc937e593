"""Score sets: planned for any number of workers beside the token shards that they join, and bound by a manifest at last."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from slmctl.config.score import ScoreConfig
from slmctl.corpus.packing import target_mask
from slmctl.corpus.tokenizer import Tokenizer, load_vocabulary
from slmctl.model.source import ModelSource
from slmctl.store.build import Coverage, in_order
from slmctl.store.manifest import Manifest, library_versions
from slmctl.store.reader import ShardSet, TokenSet
from slmctl.store.scores import SENTINEL, format_of
from slmctl.system.console import say
from slmctl.system.errors import MismatchError
from slmctl.system.hashes import sha256_json
from slmctl.system.storage import Folder
from slmctl.system.threads import threads_of
from slmctl.workspace.build import Build


@dataclass(frozen=True)
class Scores:
    """A score set: where it lies, and what it is made of and with, but for the model."""

    name: str
    """Of its reference."""
    folder: Folder
    tokens: TokenSet
    settings: ScoreConfig
    accepted: tuple[str, ...]
    """What `accept_mismatch` let through for it."""
    device: Callable[[], str]
    """Where it is scored: who only looks need not have one."""


def build_of(scores: Scores, plan: dict[str, Any]) -> Build:
    """A planned set in the making; its jobs are the numbers of its shards."""
    tokens = scores.tokens
    binding = sha256_json(plan)

    def bound(index: int) -> dict[str, Any]:
        return {"binding": binding, "token_shard": tokens.manifest.shards[index].footer_sha256}

    def manifest(coverage: Coverage) -> Manifest:
        predicted = sum(f["predicted"] for f in coverage.facts if f is not None)
        shards = in_order(coverage)
        size = sum(s.bytes for s in shards)
        say(f"score {scores.name}: {predicted:,} losses in {len(shards)} shards, {size / max(predicted, 1):.2f} bytes a token")
        return Manifest(
            "scores", tokens.seq_len, tokens.manifest.group_rows, shards, plan["made_from"], format_of(scores.settings),
            {"predicted": predicted}, accepted_mismatches=sorted(set(scores.accepted)),
            versions={**library_versions(), **threads_of(scores.device())},
        )  # fmt: skip

    count = len(tokens.manifest.shards)
    return Build(f"score {scores.name}", scores.folder, "scores", count, binding, bound, manifest, list(range(count)))


def refuse_other_vocabulary(tokenizer: Tokenizer, name: str, source: ModelSource) -> None:
    """Raises `MismatchError` where the reference's tokenizer gives other tokens the same ids: losses join by token. What a
    tokenizer does besides (its end-of-sequence token, its chat template) does not matter to a model that is given ids."""
    ours = tokenizer.vocabulary()
    theirs = {i: t for t, i in load_vocabulary(source.path, source.gguf_file).items()}
    differ = sorted((i, t) for t, i in ours.items() if theirs.get(i) != t)
    if differ:
        i, token = differ[0]
        raise MismatchError(
            f"score {name}: the tokenizer of {source.path} is not the one that the corpus was prepared with: {len(differ)} of "
            f"{len(ours)} ids mean other tokens (id {i} is {token!r} in the corpus, {theirs.get(i)!r} there). Losses join by "
            "token, so both must share one vocabulary."
        )


def impossible_scores(_scores: ShardSet, group: int, columns: dict[str, np.ndarray], tokens: TokenSet, intra: bool) -> str | None:
    """What is wrong with the values of a row group of scores, if anything."""
    document = tokens.read_group(group, ["document"])["document"]
    target = target_mask(document, intra)
    for name, values in columns.items():
        if not (values[~target] == SENTINEL).all():
            return f"{name} has a value where nothing is predicted"
        if not (np.isfinite(values[target]) & (values[target] >= 0)).all():
            return f"{name} has a value that is negative or not finite"
    return None

"""--status, --finalize and --verify: looking at sets in the making, without making any shard."""

from __future__ import annotations

from functools import partial

import numpy as np

from slmctl.corpus.packing import bos_mask
from slmctl.stages import prepare, score
from slmctl.store.reader import ScoreSet, ShardSet, TokenSet
from slmctl.system.console import out
from slmctl.system.errors import CorruptError
from slmctl.workspace.build import Build, finalize, status, verify
from slmctl.workspace.workspace import Workspace


def look_at_tokens(workspace: Workspace, action: str) -> None:
    """`action` is status, finalize or verify. Raises `CorruptError` where verification finds something wrong."""
    builds = prepare.builds(workspace)
    if action == "verify":
        report([p for b in builds for p in verify(b.label.partition(" ")[2], TokenSet(b.folder), impossible_tokens)], builds)
    else:
        _status_or_finalize(workspace, action, builds)


def _status_or_finalize(workspace: Workspace, action: str, builds: list[Build]) -> None:
    if action == "status":
        status(builds)
    else:
        finalize(builds)
        workspace.record()


def look_at_scores(workspace: Workspace, action: str, references: list[str] | None) -> None:
    """`action` is status, finalize or verify. Raises `CorruptError` where verification finds something wrong."""
    builds = score.builds(workspace, references)
    if action == "verify":
        tokens = TokenSet(workspace.tokens("corpus"))
        check = partial(score.impossible, tokens=tokens, intra=workspace.config.data.intra_document_mask)
        report([p for b in builds for p in verify(b.label.partition(" ")[2], ScoreSet(b.folder, tokens), check)], builds)
    else:
        _status_or_finalize(workspace, action, builds)


def report(problems: list[str], builds: list[Build]) -> None:
    if problems:
        raise CorruptError("\n".join([f"{len(problems)} shards are not what they should be:", *problems]))
    out.print(f"verified: every byte of {sum(b.count for b in builds)} shards is what its manifest says", soft_wrap=True)


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

"""Commands that make and look into sets of shards: prepare, score, inspect."""

from __future__ import annotations

from typing import Annotated

import typer

from slmctl.cli.options import (
    LOADING,
    Config,
    Finalize,
    Override,
    ShardCount,
    ShardIndex,
    Status,
    Verify,
    only_one,
    open_workspace,
)
from slmctl.system.console import waiting


def prepare(
    config: Config,
    override: Override = None,
    shard_index: ShardIndex = None,
    shard_count: ShardCount = None,
    status: Status = False,
    finalize: Finalize = False,
    verify: Verify = False,
) -> None:
    """Text to token shards: the curated set, the corpus and each held-out set. By one worker, or by any number of them.

    Examples: `slmctl prepare pipelines/math-smollm2.yaml` · `slmctl prepare CONFIG --shard-index 3 --shard-count 64` ·
    `slmctl prepare CONFIG --status`
    """
    only = only_one(status, finalize, verify)
    workspace = open_workspace(config, override)
    with waiting(LOADING):
        from slmctl.stages.prepare import look
        from slmctl.stages.prepare import prepare as stage
        from slmctl.workspace.workers import find_share

    if only is not None:
        look(workspace, only)
    else:
        stage(workspace, find_share(shard_index, shard_count))


def score(
    config: Config,
    override: Override = None,
    reference: Annotated[list[str] | None, typer.Option("--reference", help="Only this score set; repeatable.")] = None,
    shard_index: ShardIndex = None,
    shard_count: ShardCount = None,
    status: Status = False,
    finalize: Finalize = False,
    verify: Verify = False,
) -> None:
    """The reference model's loss of every corpus token, into score shards. By one worker, or by any number of them.

    Examples: `slmctl score pipelines/math-smollm2.yaml` · `torchrun --nproc-per-node 8 -m slmctl score CONFIG` (eight GPUs) ·
    `slmctl score CONFIG --reference NAME --verify`
    """
    only = only_one(status, finalize, verify)
    workspace = open_workspace(config, override)
    with waiting(LOADING):
        from slmctl.stages.score import look
        from slmctl.stages.score import score as stage
        from slmctl.workspace.workers import find_share

    if only is not None:
        look(workspace, only, reference)
    else:
        stage(workspace, reference, find_share(shard_index, shard_count))


def inspect(
    config: Config,
    which: Annotated[
        str, typer.Argument(metavar="SET", help="`corpus`, `curated`, `heldout/NAME`, or `scores/NAME` of a reference.")
    ] = "tokens/corpus",
    override: Override = None,
    shard: Annotated[int, typer.Option("--shard", help="Which shard, by number.")] = 0,
    document: Annotated[
        int | None, typer.Option("--document", help="Show the n-th document of the shard beside its source.")
    ] = None,
    top: Annotated[int, typer.Option("--top", min=0, help="How many of the highest-loss tokens to show in context.")] = 10,
    storage: Annotated[
        bool, typer.Option("--storage", help="For scores: what each storage type and precision costs, and does to the selection.")
    ] = False,
    rows: Annotated[int, typer.Option("--rows", min=1, help="Rows that --storage measures on.")] = 64,
) -> None:
    """Look into a shard: its manifest, statistics, highest-loss tokens in context; and one document beside its source.

    Examples: `slmctl inspect CONFIG` · `slmctl inspect CONFIG scores/curated --shard 2 --document 17` ·
    `slmctl inspect CONFIG scores/curated --storage`
    """
    workspace = open_workspace(config, override)
    with waiting(LOADING):
        from slmctl.stages.inspect import inspect as stage
        from slmctl.stages.inspect import inspect_storage

    if storage:
        inspect_storage(workspace, which, rows)
    else:
        stage(workspace, which, shard, document, top)

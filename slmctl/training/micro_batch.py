"""How a run cuts its steps into micro-batches. `micro_batch: auto`: into as many rows as fit in memory, by what one selection
group keeps for its backward pass."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from slmctl.config.training import TrainingConfig, rows_per_step, total_steps
from slmctl.model.losses import head_memory
from slmctl.model.precision import autocast
from slmctl.selection.select import selected_count
from slmctl.system.console import say, warn
from slmctl.system.memory import memory_available, processes_here
from slmctl.training.batches import Batcher
from slmctl.training.parallel import reshard
from slmctl.training.ranks import machine
from slmctl.training.run import Run
from slmctl.training.selective import Objective
from slmctl.training.state import Progress

SHARE = 0.7
"""Of the free memory: the rest is for what the backward pass makes in passing, and for the allocator's holes."""
ENOUGH_TOKENS = 65_536
"""Beyond which a larger micro-batch makes no pass faster."""


def batcher_of(run: Run, objective: Objective, progress: Progress) -> Batcher:
    """Cuts steps; with `micro_batch: auto` into what memory holds, as the run found it when it began on this machine."""
    settings, ranks = run.settings, run.ranks
    before, progress.machine = progress.machine, machine(run.device, ranks)
    if before not in ({}, progress.machine):
        if run.selection.scope == "group":
            progress.micro_batch = None  # it may not fit here, and changes nothing
        elif before["ranks"] != ranks.size:
            warn(
                f"{run.name}: it was trained by {before['ranks']} ranks so far, and goes on with {ranks.size}: what "
                f"scope {run.selection.scope} selects depends on that."
            )
    rows, group_rows = rows_per_step(settings, run.seq_len), run.selection.group_rows
    given = settings.micro_batch if settings.micro_batch != "auto" else progress.micro_batch or group_rows
    batcher = Batcher(
        run.source, rows, given, run.selection, run.model.intra_document_mask, run.seed, run.device, ranks.rank, ranks.size,
        total_steps(settings, run.seq_len, run.source.rows), run.log_odds_V,
    )  # fmt: skip
    if settings.micro_batch == "auto" and progress.micro_batch is None:
        progress.micro_batch = fitting_rows(objective, batcher, settings, run.seq_len, run.device)
        batcher.micro_groups = progress.micro_batch // group_rows
        say(f"{run.name}: micro_batch auto is {progress.micro_batch} rows")
    return batcher


def kept_bytes(model: nn.Module, forward: Callable[[], object]) -> int:
    """Bytes that autograd keeps for the backward pass of `forward`, each storage counted once, parameters not at all."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters() if not hasattr(p, "_local_tensor")}
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        local = getattr(tensor, "_local_tensor", tensor)
        storage = local.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        kept = forward()  # held until the sizes are summed, so that no memory is used twice
        total = sum(sizes.values())
    del kept
    return total


def free_bytes(device: str) -> int:
    """Memory that may still be taken."""
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info()[0]
    return memory_available() // processes_here()


def rows_that_fit(group_rows: int, seq_len: int, group_bytes: int, free: int, fixed: int, most_rows: int) -> int:
    """Whole groups of rows whose activations fit in `SHARE` of the free memory besides `fixed` bytes; one at least."""
    groups = int((SHARE * free - fixed) // max(group_bytes, 1))
    groups = min(groups, most_rows // group_rows, max(1, ENOUGH_TOKENS // (group_rows * seq_len)))
    return max(1, groups) * group_rows


def fitting_rows(objective: Objective, batcher: Batcher, settings: TrainingConfig, seq_len: int, device: str) -> int:
    """The largest micro-batch, in rows, of those that every rank has room for; found by one forward pass over one group."""
    model, ranks, group_rows = objective.model, objective.ranks, batcher.selection.group_rows
    batch, given = batcher.step(1), batcher.micro_groups
    model.train()
    kept = []
    for groups in (1, min(2, len(batch.valid_G))):
        batcher.micro_groups = groups
        counts = [selected_count(v, batcher.selection.ratio) for v in ranks.sum(batcher.micro_valid(batch))]
        micro = next(batcher.micro_batches(1, batch, counts))
        with torch.random.fork_rng(), autocast(device, settings.precision == "bf16_autocast"):
            kept.append(kept_bytes(model, lambda m=micro: objective(m, 1.0)))  # type: ignore[misc]
        reshard(model)
    batcher.micro_groups = given
    one = kept[1] - kept[0] if len(batch.valid_G) > 1 else kept[0]  # what two keep beyond one: the rest does not grow
    trained = sum(getattr(p, "_local_tensor", p).nbytes for p in model.parameters() if p.requires_grad)
    hidden_size = model.head.weight.shape[1]
    fixed = (
        trained + max(0, kept[0] - one) + head_memory(model.vocab_size, hidden_size, device, batch.rows.ids_BT.size)
    )  # gradients first
    rows = rows_that_fit(group_rows, seq_len, one, free_bytes(device), fixed, len(batch.rows.ids_BT))
    return min(ranks.all_of(rows))

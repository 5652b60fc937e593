"""How many threads a run trains with on a CPU: found when it begins, and kept when it goes on, since sums round by it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch

from slmctl.config.selection import SelectionConfig
from slmctl.system.console import say
from slmctl.system.openmp import asked
from slmctl.system.threads import SMALL, ThreadRecord, most_threads, settle, use
from slmctl.training.batches import Batcher
from slmctl.training.selective import Objective
from slmctl.training.state import Progress

PLAIN = SelectionConfig(criterion="all", group_rows=1)
"""What is measured does not depend on an arm's selection: all arms take the same number."""


def settle_threads(
    name: str, progress: Progress, batcher: Batcher, record: ThreadRecord | None, work: Callable[[], Callable[[], None] | None]
) -> None:
    """Sets the number of threads of a run of one process, and notes it in `progress`. `work` makes what is measured."""
    if batcher.device != "cpu" or batcher.world_size > 1:
        return
    before, given = progress.threads, asked()
    if given is None and progress.step and (before is None or before <= most_threads()):
        use(before or most_threads())  # of checkpoints that do not tell it, the number that it had then
    elif given is None:
        if progress.step:
            say(f"{name}: it was trained with {before} threads so far, more than there are cores here: another number is taken")
        settle(name, batcher.device, work, record)
    progress.threads = torch.get_num_threads()
    if given is not None and progress.step and before not in (None, progress.threads):
        say(
            f"{name}: it was trained with {before} threads so far, and goes on with {progress.threads}, as {given} asks: sums "
            "round otherwise than in a run that was not stopped."
        )


def training_pass(
    objective: Objective, batcher: Batcher, precision: Callable[[], AbstractContextManager[Any]], row_flops: float
) -> Callable[[], None] | None:
    """A forward and a backward pass over rows of the first step, which leaves no trace: neither gradients nor random numbers
    drawn. As many rows of a micro-batch as measuring needs; None where one row takes far more operations (`row_flops`)."""
    rows = min(batcher.micro_groups * batcher.selection.group_rows, max(1, int(SMALL / row_flops)))
    if row_flops > 2 * SMALL:
        return None
    model = objective.model
    plain = Objective(model, PLAIN)
    own = Batcher(batcher.source, batcher.rows_per_step, rows, PLAIN, batcher.intra, batcher.seed, batcher.device)
    micro = next(own.micro_batches(1, own.step(1)))

    def once() -> None:
        was_training = model.training
        model.train()
        try:
            with torch.random.fork_rng(devices=[]), torch.compiler.set_stance("force_eager"):
                with precision():
                    loss = plain(micro, 1.0).loss
                loss.backward()  # type: ignore[no-untyped-call]
        finally:
            model.zero_grad(set_to_none=True)
            model.train(was_training)

    return once

"""How many threads scoring and evaluation compute with on a CPU: measured by forward passes over their first rows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from slmctl.model.flops import flops_per_token
from slmctl.model.row_losses import row_losses
from slmctl.model.split import SplitModel
from slmctl.store.reader import RowReader
from slmctl.system.threads import SMALL, ThreadRecord, settle


def settle_forward(
    label: str, model: SplitModel, reader: RowReader, batch_rows: int, device: str, record: ThreadRecord | None = None
) -> None:
    """Sets the number of threads for forward passes of `model`, which must be in eval mode, over batches of rows."""

    def work() -> Callable[[], object] | None:
        row_flops = flops_per_token(model.model, reader.tokens.seq_len) / 3 * reader.tokens.seq_len
        if row_flops > 2 * SMALL:
            return None
        found = reader.fetch(np.arange(min(batch_rows, reader.tokens.rows, max(1, int(SMALL / row_flops)))))
        return partial(row_losses, model, found.ids_BT, found.document_BT, device)

    settle(label, device, work, record)

"""A trained model as a Hugging Face directory, however it is laid out over ranks."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from slmctl.corpus.tokenizer import Tokenizer
from slmctl.model.loading import save_model
from slmctl.model.split import SplitModel
from slmctl.system.files import publishing
from slmctl.training.parallel import is_sharded
from slmctl.training.ranks import Ranks
from slmctl.training.run import Run


def export_model(model: SplitModel, tokenizer: Tokenizer, directory: Path, ranks: Ranks) -> None:
    """Publishes a directory that `AutoModelForCausalLM` loads; every rank must call it, the first one writes."""
    state: dict[str, Any] | None = None
    if is_sharded(model):
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        whole = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
        every, once = ({n for n, _ in model.named_parameters(remove_duplicate=d)} for d in (False, True))
        again = {n.replace("_checkpoint_wrapped_module.", "") for n in every - once}  # tied weights, which are written once
        state = {n.removeprefix("model."): t for n, t in whole.items() if n not in again}
    elif any("_checkpoint_wrapped_module" in n for n, _ in model.named_modules()):
        state = dict(model.model.state_dict())

    def write() -> None:
        with publishing(directory) as temporary:
            save_model(model.model, tokenizer, temporary, state)

    ranks.first(write)


def export_run(run: Run, keeps_best: bool, counts: Tensor) -> None:
    """Writes `model/`, an HF model directory, of the weights as they are or of the best, where the run keeps those; and
    token_counts.parquet, of `counts` [2, V]: tokens seen and selected by id, this rank's."""
    if keeps_best:
        run.ranks.first(lambda: _publish_best(run.directory))
    else:
        export_model(run.model, run.tokenizer, run.directory / "model", run.ranks)
    seen, selected = run.ranks.sum_(counts.clone()).cpu().numpy()
    if run.ranks.is_first:
        table = pa.table({"token_id": np.arange(len(seen), dtype=np.int32), "seen": seen, "selected": selected})
        with publishing(run.directory / "token_counts.parquet") as temporary:
            pq.write_table(table, temporary)
    run.ranks.barrier()


def _publish_best(directory: Path) -> None:
    with publishing(directory / "model") as temporary:
        shutil.copytree(directory / "best", temporary)

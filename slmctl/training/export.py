"""A trained model as a Hugging Face directory, however it is laid out over ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from slmctl.corpus.tokenizer import Tokenizer
from slmctl.model.loading import save_model
from slmctl.model.split import SplitModel
from slmctl.system.files import publishing
from slmctl.training.parallel import is_sharded
from slmctl.training.ranks import Ranks


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

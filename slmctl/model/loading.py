"""Loading and saving Hugging Face causal language models."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from slmctl.corpus.tokenizer import Tokenizer
from slmctl.model.attention import VARLEN, register
from slmctl.model.gguf_weights import read_header, refuse_gguf_unused
from slmctl.model.source import WEIGHT_PATTERNS
from slmctl.model.source import ModelSource as ModelSource
from slmctl.model.source import local_copy as local_copy
from slmctl.model.source import model_fingerprint as model_fingerprint
from slmctl.model.weight_files import Stored, stored_weights
from slmctl.model.weights import (
    refuse_bad_values,
    refuse_difference,
    refuse_other_names,
    refuse_other_rotary,
    refuse_ties_undone,
    watched,
)
from slmctl.system.console import waiting
from slmctl.system.errors import InputError, TrainingError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_model(source: ModelSource, dtype: str = "float32", device: str = "cpu") -> Any:
    """Loads a causal LM in eval mode. Raises `InputError` with the reason, also where its weights are not all and only those of
    its files."""
    from transformers import AutoModelForCausalLM

    stored = _stored(source)
    register()
    try:
        with waiting(f"loading the model {source.path}"), quiet_transformers(), watched() as found:
            model = AutoModelForCausalLM.from_pretrained(
                source.path,
                dtype=DTYPES[dtype],
                attn_implementation=source.attn_implementation,
                ignore_mismatched_sizes=True,  # they are refused below, by name
                **source.options(),
            )
    except Exception as e:  # the library raises many kinds
        if stored:
            check_source(source)  # which tells it by name, where the weights are why
        reason = str(e).strip().split("\n")[0]
        hint = " Install the extra: pip install 'slmctl[gguf]'." if source.gguf_file and "gguf" in reason.lower() else ""
        if reason == f"'{VARLEN}'" or "does not support an attention implementation" in reason:
            reason = f"its type has no {source.attn_implementation} attention in transformers"
            hint = ". Use model.attn_implementation: eager."
        raise InputError(f"cannot load a model from {source.path!r}: {reason}{hint}") from e
    refuse_difference(source.path, model, found, stored)
    refuse_ties_undone(source.path, model)
    refuse_other_rotary(source.path, model, stored)
    if source.gguf_file:
        refuse_gguf_unused(Path(source.path) / source.gguf_file, model)
        _forget_quantisation(model)
    model = model.to(device).eval()
    refuse_bad_values(source.path, model)
    return model


def _stored(source: ModelSource) -> dict[str, Stored]:
    """What a local model's files say they hold; nothing of a GGUF file, nor of one on the Hub."""
    folder = Path(source.path)
    if source.gguf_file:
        if (folder / source.gguf_file).is_file():
            read_header(folder / source.gguf_file)
        return {}
    if not folder.is_dir():
        return {}
    if not (folder / "config.json").is_file():
        raise InputError(f"{source.path} has no config.json: it is not a Hugging Face model directory.")
    return stored_weights(folder)


def check_source(source: ModelSource) -> None:
    """Raises `InputError` where a local model's files are not whole, or do not hold what its configuration describes, by names
    and shapes; reads no weights, and of a GGUF file no more than whether it is whole."""
    stored = _stored(source)
    if source.gguf_file:
        if not (file := Path(source.path) / source.gguf_file).is_file():
            raise InputError(f"{file} does not exist.")
        return
    if not stored:
        raise InputError(f"{source.path} holds no model weights ({', '.join(WEIGHT_PATTERNS[:2])}).")
    from transformers import AutoConfig

    register()
    try:
        with quiet_transformers():
            refuse_other_names(source.path, AutoConfig.from_pretrained(source.path), stored)
    except InputError:
        raise
    except Exception as e:  # the library raises many kinds
        reason = str(e).strip().splitlines()[0]
        if "Unrecognized configuration class" in reason:
            reason = "transformers has no causal language model of its type. Use another model."
        raise InputError(f"cannot make a model of {source.path!r}: {reason}") from e


def _forget_quantisation(model: Any) -> None:
    """A GGUF model is loaded dequantised, but still marked as quantised, for which `save_pretrained` refuses it."""
    for owner, name in [(model.config, "quantization_config"), (model, "hf_quantizer"), (model, "quantization_method")]:
        with contextlib.suppress(AttributeError):
            delattr(owner, name)
    model.is_quantized = False


def load_model_config(source: ModelSource) -> Any:
    """The text model's configuration, without its weights. Raises `InputError` with the reason."""
    from transformers import AutoConfig

    try:
        with quiet_transformers():
            return AutoConfig.from_pretrained(source.path, **source.options()).get_text_config()
    except Exception as e:  # the library raises many kinds
        reason = str(e).strip().split("\n")[0]
        raise InputError(f"cannot load a model configuration from {source.path!r}: {reason}") from e


def hidden_size(source: ModelSource) -> int:
    """The width of a model's residual stream; 0 where its configuration does not name it."""
    return int(getattr(load_model_config(source), "hidden_size", 0))


def empty_model(source: ModelSource) -> Any:
    """A model without weights (on the meta device), for what its shapes alone tell. Raises `InputError` with the reason."""
    from transformers import AutoModelForCausalLM

    config = load_model_config(source)
    with torch.device("meta"), quiet_transformers():
        return AutoModelForCausalLM.from_config(config)


def save_model(model: Any, tokenizer: Tokenizer, directory: Path, state: dict[str, Any] | None = None) -> None:
    """Writes a directory that `AutoModelForCausalLM` and `AutoTokenizer` load; `state` are the weights where the model itself
    holds only a part of them. Raises `TrainingError` where what was written is not the model that its configuration describes."""
    with quiet_transformers():
        model.save_pretrained(directory, **({"state_dict": state} if state is not None else {}))
        tokenizer.save(directory)
    try:
        check_source(ModelSource(str(directory)))
    except InputError as e:
        raise TrainingError(f"the model that was written is not whole, and is not published: {e}") from e


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keeps loading bars and advice of transformers off the terminal."""
    from transformers.utils import logging as hf_logging

    level, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity(logging.ERROR)
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)
        if bars:
            hf_logging.enable_progress_bar()


def pick_device(name: str) -> str:
    """`auto` is CUDA where there is any; of several processes that torchrun or srun starts on a machine, each takes its own GPU.

    Raises `InputError` where CUDA is asked for and absent.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("device is cuda, but torch sees no CUDA device. Use -o device=cpu or a CUDA build of torch.")
    if name == "cpu" or not torch.cuda.is_available():
        return "cpu"
    if (local_rank := os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID", "")).isdigit():
        torch.cuda.set_device(int(local_rank) % torch.cuda.device_count())
    return "cuda"

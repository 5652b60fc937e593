"""Whether a model's weights are those of its file: all of them, and nothing else.

transformers draws at random what a file does not hold, and drops what it holds besides; a few classes even list names not
to speak of. Here every such difference is a refusal, before those lists are applied.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from slmctl.model.weight_files import Stored, few, read_weight
from slmctl.model.weight_names import mend
from slmctl.system.errors import InputError

_CACHES = re.compile(
    r"(^|\.)(position_ids|(original_)?inv_freq|rotary_emb\.(cos|sin)_cached)$"  # computed from the configuration
)
_MASKS = re.compile(r"(^|\.)(cross)?att(n|ention)(\.attention)?\.(masked_)?bias$")  # causal masks of GPT-2's kin, once saved
_MORE_TOKENS = re.compile(r"(^|\.)mtp(_\w+)?\.")  # heads for several tokens ahead, beside the model
_LAYER = re.compile(r"(^|\.)layers\.(\d+)\.")
_EXPERT = re.compile(r"^(.*\bexperts\.)(\d+)(\..+)$")
_SHARED_KV = re.compile(r"\.self_attn\.(k_proj|v_proj|k_norm|v_norm)\.")


@dataclass
class Difference:
    """Between a file and the model that its configuration describes."""

    missing: set[str] = field(default_factory=set)
    unexpected: set[str] = field(default_factory=set)
    reshaped: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    """Name to shape in the file and in the model."""
    unmade: dict[str, str] = field(default_factory=dict)
    """Weights that are put together from several of the file's (experts), and why that failed."""

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.reshaped or self.unmade)

    def __str__(self) -> str:
        parts = [
            ("missing", ordered(self.missing)),
            ("that the model has no place for", ordered(self.unexpected)),
            ("of another shape", [f"{n}: {list(a)}, not {list(b)}" for n, (a, b) in sorted(self.reshaped.items())]),
            ("whose parts do not fit together", [f"{n}: {reason}" for n, reason in sorted(self.unmade.items())]),
        ]
        return "; ".join(f"{len(names)} {what} ({few(names)})" for what, names in parts if names)


def ordered(names: set[str]) -> list[str]:
    """Names with their numbers in the order of numbers."""
    return sorted(names, key=lambda n: [(p.isdigit(), int(p) if p.isdigit() else 0, p) for p in n.split(".")])


@contextmanager
def watched() -> Iterator[list[Difference]]:
    """Collects what each `from_pretrained` within finds to differ, before a class's list of names to ignore is applied."""
    from transformers import PreTrainedModel

    found: list[Difference] = []
    plain = PreTrainedModel._adjust_missing_and_unexpected_keys

    def record(model: Any, info: Any) -> None:
        shapes = {n: (tuple(a), tuple(b)) for n, a, b in info.mismatched_keys}
        unmade = {n: _reason(r) for n, r in info.conversion_errors.items()}
        found.append(Difference(set(info.missing_keys) - set(unmade), set(info.unexpected_keys), shapes, unmade))
        plain(model, info)

    PreTrainedModel._adjust_missing_and_unexpected_keys = record
    try:
        yield found
    finally:
        PreTrainedModel._adjust_missing_and_unexpected_keys = plain


def _reason(report: str) -> str:
    lines = [line for line in report.splitlines() if line.strip() and not line.startswith("Error: ")]
    return lines[-1].strip() if lines else report


def refuse_difference(where: str, model: Any, found: list[Difference], stored: dict[str, Stored]) -> None:
    """`found` is what `watched` collected while `model` was loaded from `stored`. Raises `InputError` where the weights are not
    those of the file."""
    if len(found) != 1:  # then nothing is known of what was loaded
        raise InputError(f"{where} was loaded in a way that does not tell which weights it filled. Save it with save_pretrained.")
    difference = found[0]
    difference.missing = {n for n in difference.missing if not _CACHES.search(n)}
    difference.unexpected = {n for n in difference.unexpected if not _is_harmless(n, model.config, stored.get(n))}
    refuse(where, model, difference, stored)
    _refuse_twins(where, model, stored)
    _refuse_gaps(where, stored)
    _refuse_whole_numbers(where, model, stored)


def refuse(where: str, model: Any, difference: Difference, stored: dict[str, Stored]) -> None:
    """Raises `InputError` for a difference that is none of those that say nothing."""
    if difference:
        raise InputError(
            f"the weights of {where} are not those of a {type(model).__name__} as its configuration describes it: {difference}. "
            f"Weights that are missing would be drawn at random, others dropped. {mend(difference, model, stored)}"
        )


def _is_harmless(name: str, config: Any, stored: Stored | None) -> bool:
    """Whether a name that the model has no place for is of what it computes itself, or of what is not the model's."""
    if _CACHES.search(name) or _MORE_TOKENS.search(name):
        return True
    if _MASKS.search(name):
        return stored is not None and (len(stored.shape) == 4 or stored.shape in ((), (1,)))
    layer = _LAYER.search(name)
    text = config.get_text_config()
    if layer is None or not hasattr(text, "num_hidden_layers"):
        return False
    number, layers = int(layer[2]), int(text.num_hidden_layers)
    ahead = getattr(text, "num_nextn_predict_layers", None) or 0
    shared = getattr(text, "num_kv_shared_layers", None) or 0
    return layers <= number < layers + ahead or (layers - shared <= number < layers and bool(_SHARED_KV.search(name)))


def _refuse_twins(where: str, model: Any, stored: dict[str, Stored]) -> None:
    """A name with the trunk's prefix and the same without it would be the same weight, of which one is dropped."""
    prefix = f"{model.base_model_prefix}."
    if twins := [n for n in stored if n.startswith(prefix) and n.removeprefix(prefix) in stored]:
        raise InputError(
            f"{where} holds {len(twins)} weights twice ({few(f'{n} and {n.removeprefix(prefix)}' for n in twins)}). "
            "Save the model again, into an empty directory."
        )


def _refuse_gaps(where: str, stored: dict[str, Stored]) -> None:
    """Experts are put into one tensor in the order of their numbers, whatever those are: after a gap each takes the place of
    another."""
    numbers: dict[tuple[str, str], set[int]] = {}
    for match in filter(None, map(_EXPERT.match, stored)):
        numbers.setdefault((match[1], match[3]), set()).add(int(match[2]))
    odd = {(a, b): found for (a, b), found in numbers.items() if max(found) >= len(found)}
    if odd:
        absent = [f"{a}{min(set(range(len(n))) - n)}{b}" for (a, b), n in odd.items()]
        beyond = [f"{a}{max(n)}{b}" for (a, b), n in odd.items()]
        raise InputError(
            f"the experts of {where} are not numbered without gaps: it holds {few(beyond, 1)}, and lacks {few(absent, 1)}. "
            "Experts would take each other's places. Save the whole model with `save_pretrained`."
        )


def _refuse_whole_numbers(where: str, model: Any, stored: dict[str, Stored]) -> None:
    """Whole numbers, and floats of 8 bits, are a quantised model's, and mean nothing without its scales."""
    buffers = {n.rpartition(".")[2] for n, _ in model.named_buffers()}
    whole = {n for n, s in stored.items() if not s.is_float and n.rpartition(".")[2] not in buffers}
    if odd := [f"{n}: {stored[n].dtype}" for n in ordered(whole) if not _MASKS.search(n) and not _CACHES.search(n)]:
        raise InputError(
            f"{where} holds {len(odd)} weights that are not floating point of 16, 32 or 64 bits ({few(odd)}): it is quantised, "
            "and its configuration does not say how. Use the original model."
        )


def refuse_other_rotary(where: str, model: Any, stored: dict[str, Stored]) -> None:
    """Raises `InputError` where a file of old tells of rotary frequencies that are not those of its configuration."""
    kept = {n: s for n, s in stored.items() if n.endswith("inv_freq") and len(s.shape) == 1}
    own = [b.float().cpu() for n, b in model.named_buffers() if n.endswith("inv_freq")]
    theta = (getattr(model.config.get_text_config(), "rope_parameters", None) or {}).get("rope_theta")
    for name, one in kept.items():
        length = one.shape[0]
        plain = [theta ** (-torch.arange(length) / length)] if theta else []  # files of old tell it before it is scaled
        found = read_weight(name, one.file).float()
        if own and not any(len(f) == length and torch.allclose(found, f, 1e-2, 1e-7) for f in [*own, *plain]):
            raise InputError(
                f"{where} was trained with rotary frequencies ({name}, from {found[0]:g} down to {found[-1]:g}) that its "
                f"config.json does not give (rope_theta {theta}). Use the config.json that the weights were saved with."
            )


def refuse_ties_undone(where: str, model: Any) -> None:
    """Raises `InputError` where the configuration says that weights are one and the same, and the file holds two."""
    for one, other in model.get_expanded_tied_weights_keys(all_submodels=True).items():
        if model.get_parameter(one) is not model.get_parameter(other):
            raise InputError(
                f"{where} holds both {one} and {other}, with other values, but its config.json says that they are one "
                "(tie_word_embeddings). Say `tie_word_embeddings: false` there if the model was trained with a head of its own, "
                "else remove the one that is not the model's."
            )


@torch.no_grad()
def refuse_bad_values(where: str, model: Any) -> None:
    """Raises `InputError` for weights that are not finite, and for an embedding or a head of zeros alone."""
    names, weights = zip(*model.named_parameters(), strict=True)
    sums = torch.stack([w.sum(dtype=torch.float32) for w in weights])  # one pass, a fifth of what isfinite takes
    suspects = [names[i] for i in (~sums.isfinite()).nonzero().flatten().tolist()]
    if bad := [n for n in suspects if not model.get_parameter(n).isfinite().all()]:  # finite values may sum to infinity
        raise InputError(f"{where} holds weights that are NaN or infinite as {model.dtype}: {few(bad)}. Use another checkpoint.")
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        weight: Tensor | None = getattr(module, "weight", None)
        if weight is not None and weight.numel() and not weight.any():
            name = next(n for n, p in model.named_parameters() if p is weight)
            raise InputError(f"{name} of {where} holds nothing but zeros: the file is not whole. Copy or download it again.")


def refuse_other_names(where: str, config: Any, stored: dict[str, Stored]) -> None:
    """Raises `InputError` where `stored` is not what a model of `config` consists of, by names and shapes; reads no weights."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    state = {n: torch.empty(s.shape, device="meta") for n, s in stored.items()}
    options = {"state_dict": state, "device_map": "meta", "ignore_mismatched_sizes": True}
    with watched() as found:
        try:
            type(model).from_pretrained(None, config=config, **options)
        except RuntimeError:  # parts that do not fit together, which were recorded
            if not found:
                raise
    refuse_difference(where, model, found, stored)

"""Mixtures of experts: which weights a token passes, and what training them asks for besides the tokens' loss."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from slmctl.system.errors import InputError

CHOSEN = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k", "moe_k", "top_k", "experts_per_token")
"""What configurations call the number of experts that a token passes."""


UNUSED = ("vision", "visual", "image", "audio", "multi_modal", "encoder_attn", "crossattention", "cross_attn")
"""Parts of names of modules that text alone does not pass."""


def matrices(model: Any) -> Iterator[tuple[nn.Parameter, float]]:
    """Each matrix that tokens are multiplied by, as often as it stands in the model, and the share of it that one token
    passes: of experts, that of the chosen ones. Embeddings are looked up, and are none; a head that is tied to one is. What
    takes images, sound or another sequence is left out."""
    listed: dict[str, float] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if any(part in name for part in UNUSED):
            continue
        if _is_list_of_experts(name, module):
            listed[f"{name}."] = min(1.0, (_chosen(model, name) or len(module)) / len(module))
        fused = None if isinstance(module, nn.Embedding) else _fused(name, module)
        for parameter in module.parameters(recurse=False) if not isinstance(module, nn.Embedding) else ():
            if fused is not None and parameter.ndim == 3:
                real, routed = fused
                yield parameter, min(1.0, (_chosen(model, name) or routed) / routed) * real / parameter.shape[0]
            elif fused is None and parameter.ndim >= 2:  # of fused experts, two dimensions are a bias of each
                yield parameter, next((share for prefix, share in listed.items() if name.startswith(prefix)), 1.0)


def has_experts(model: nn.Module) -> bool:
    """Whether a router sends each token to a few of many experts: rounding may then send it elsewhere."""
    return any(_fused(n, m) is not None or _is_list_of_experts(n, m) for n, m in model.named_modules())


def _is_list_of_experts(name: str, module: nn.Module) -> bool:
    return isinstance(module, nn.ModuleList) and name.rpartition(".")[2] == "experts" and len(module) > 1


def _fused(name: str, module: nn.Module) -> tuple[int, int] | None:
    """Of experts whose weights lie in one tensor: how many there are, and how many a router chooses from (which may hold some
    that do nothing). None for other modules."""
    if "Experts" not in type(module).__name__ or name.rpartition(".")[2].startswith("shared"):
        return None
    counts = [p.shape[0] for p in module.parameters(recurse=False) if p.ndim == 3]
    return (min(counts), max(counts)) if counts else None


def _chosen(model: Any, name: str) -> int | None:
    """How many experts a token passes: as the router beside them has it, or as the configuration says."""
    for module in model.get_submodule(name.rpartition(".")[0]).modules():
        if isinstance(found := vars(module).get("top_k"), int):
            return found
    named = (getattr(model.config.get_text_config(), n, None) for n in CHOSEN)
    return next((n for n in named if isinstance(n, int) and n > 0), None)


def refuse_auxiliary_loss(model: Any, path: str) -> None:
    """Raises `InputError` where a model is set to be trained with a loss besides that of its tokens, which slmctl does not
    add: one that spreads tokens over experts, or one that keeps logits small."""
    for config in (model.config, model.config.get_text_config()):
        if getattr(config, "output_router_logits", False) and has_experts(model):
            weight = getattr(config, "router_aux_loss_coef", None) or getattr(config, "aux_loss_coef", None)
            raise InputError(
                f"output_router_logits is true in the config.json of {path}: this model is to be trained with an auxiliary loss "
                f"that spreads tokens evenly over its experts{f' (weight {weight})' if weight else ''}, which slmctl does not "
                "add: it trains on the losses of the selected tokens alone. Set output_router_logits to false in that file to "
                "train without it; nothing then keeps the experts equally busy. Scoring and evaluation take the model as it is."
            )
        if getattr(config, "z_loss_coefficient", None):
            raise InputError(
                f"z_loss_coefficient is {config.z_loss_coefficient} in the config.json of {path}: this model is to be trained "
                "with an auxiliary loss that keeps its logits small, which slmctl does not add. Set it to 0 in that file to "
                "train without it."
            )

"""Why the names in a weight file are not a model's, and how to mend them."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slmctl.model.weight_files import Stored
    from slmctl.model.weights import Difference

WRAPPERS = {
    "_orig_mod.": ("torch.compile", "model._orig_mod"),
    "_checkpoint_wrapped_module.": ("activation checkpointing", "the module that it wraps"),
    "_fsdp_wrapped_module.": ("FSDP", "the state dict that FSDP gathers"),
    "_forward_module.": ("Lightning Fabric", "the module that it wraps"),
    "module.": ("DistributedDataParallel or DataParallel", "model.module"),
    "base_layer.": ("a PEFT adapter", ""),
    "base_model.model.": ("a PEFT adapter", ""),
}
"""What others put into names: by whom, and what to save in its place."""


def mend(difference: Difference, model: Any, stored: dict[str, Stored]) -> str:
    """What to do about a difference, as sentences."""
    missing, unexpected = difference.missing, difference.unexpected
    if any("lora_" in n for n in unexpected):
        return "The file holds a LoRA adapter: merge it (`model.merge_and_unload()`) and save the merged model."
    short = missing | {n.removeprefix(f"{model.base_model_prefix}.") for n in missing}
    if unexpected and missing:
        told = (f(names, unexpected, stored) for f in (_wrapped, _renamed) for names in (missing, short))
        if advice := next((t for t in told if t is not None), None):
            return advice
    heads = {n for n, p in model.named_parameters() if p is getattr(model.get_output_embeddings(), "weight", None)}
    if missing and missing <= heads and not unexpected:
        return (
            "config.json does not tie the head to the embedding, so it must be in the file: save the whole model with "
            "`save_pretrained`, or say `tie_word_embeddings: true` if the model was trained so."
        )
    if difference.reshaped or difference.unmade or _layers(missing | unexpected):
        return "Use the config.json that the weights were saved with."
    if not missing:
        return (
            "Use the config.json that the weights were saved with; or, where they are no part of a language model (a value head, "
            "or one for classes, that training put beside it), save the language model alone with `save_pretrained`."
        )
    return "Save the whole model with `save_pretrained`, and use the config.json that it writes."


def _layers(names: set[str]) -> bool:
    """Whether all are of numbered layers."""
    return all(re.search(r"\.\d+\.", n) for n in names)


def _wrapped(missing: set[str], unexpected: set[str], stored: dict[str, Stored]) -> str | None:
    """Parts of names that wrappers of the model have left."""
    parts = [p for p in WRAPPERS if any(n.startswith(p) or f".{p}" in n for n in unexpected)]
    if not parts or not _explains([_without(n, parts) for n in unexpected], missing):
        return None
    by = ", ".join(dict.fromkeys(WRAPPERS[p][0] for p in parts))
    instead = [WRAPPERS[p][1] for p in parts if WRAPPERS[p][1]]
    inner = instead[0] if len(instead) == 1 else "the innermost model"
    advice = f"Save {inner} in place of the wrapped model" if instead else "Save `model.merge_and_unload()`"
    shown = ", ".join(f"`{p}`" for p in parts)
    code = "re.sub(r'(^|\\.)(" + "|".join(re.escape(p) for p in parts) + r")+', r'\1', k)"
    return f"Names in the file hold {shown}, left by {by}. {advice}, or rename them: {_snippet(code, stored)}"


def _without(name: str, parts: list[str]) -> str:
    return re.sub(rf"(^|\.)({'|'.join(re.escape(p) for p in parts)})+", r"\1", name)


def _renamed(missing: set[str], unexpected: set[str], stored: dict[str, Stored]) -> str | None:
    """A beginning of names in place of another, or too much or too little of one."""
    votes: Counter[tuple[str, str]] = Counter()
    by_end: dict[str, list[str]] = {}
    for name in missing:
        by_end.setdefault(".".join(name.split(".")[-2:]), []).append(name)
    for name in sorted(unexpected)[:64]:
        pairs = [_heads(name, other) for other in by_end.get(".".join(name.split(".")[-2:]), [])]
        votes.update(sorted(pairs, key=lambda pair: len(pair[0]) + len(pair[1]))[:1])
    for (found, wanted), _ in votes.most_common(1):
        renamed = [wanted + n.removeprefix(found) for n in unexpected if n.startswith(found)]
        if len(renamed) > 1 and _explains(renamed, missing):
            what = f"begin with `{found}`" if found else f"lack `{wanted}`"
            what += f" where the model has `{wanted}`" if found and wanted else ""
            code = f"k.replace({found!r}, {wanted!r}, 1) if k.startswith({found!r}) else k" if found else f"{wanted!r} + k"
            return f"Names in the file {what}. Rename them: {_snippet(code, stored)}"
    return None


def _heads(one: str, other: str) -> tuple[str, str]:
    """The beginnings of two names before the end that they share, which is cut at dots."""
    a, b = one.split("."), other.split(".")
    while a and b and a[-1] == b[-1]:
        a.pop()
        b.pop()
    return ".".join([*a, ""]) if a else "", ".".join([*b, ""]) if b else ""


def _explains(renamed: list[str], missing: set[str]) -> bool:
    return 2 * len(missing.intersection(renamed)) >= len(renamed)


def _snippet(code: str, stored: dict[str, Stored]) -> str:
    """Python that renames by the expression `code` of `k`."""
    files = {s.file for s in stored.values()}
    if len(files) != 1 or (file := next(iter(files))).suffix != ".safetensors":
        return f"`k` becomes `{code}`, in each weight file and in the index."
    imports = ("import re; " if "re.sub" in code else "") + "from safetensors.torch import load_file, save_file"
    return f"`{imports}; f = {str(file)!r}; save_file({{{code}: v for k, v in load_file(f).items()}}, f, {{'format': 'pt'}})`"

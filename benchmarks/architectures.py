"""Is what slmctl makes of a model's losses right, or is the model refused? Tiny models of random weights, of as many causal
language models as transformers has, are checked as at the start of a run, and then scored in packed rows in float32. The
judge is the model itself in float64, one row (under `intra_document_mask`: one document) at a time, its whole logits, and a
plain loop; and whether any of its logits moves when later tokens change.

    python benchmarks/architectures.py                  # results/architectures.json and .md, some minutes on one core
    python benchmarks/architectures.py gpt2 'llama*'    # those alone, printed
"""

from __future__ import annotations

import contextlib
import fnmatch
import json
import platform
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from architecture_list import ACCEPTED, CASES, LENGTH, REFUSED, VOCAB, Case
from torch.utils.flop_counter import FlopCounterMode

from slmctl.corpus.packing import target_mask
from slmctl.model.attention import VARLEN, register
from slmctl.model.flops import flops_per_token
from slmctl.model.row_losses import row_losses
from slmctl.model.split import SplitModel, refuse_rows_beyond
from slmctl.system.errors import SlmError

RESULTS = Path(__file__).parent / "results"
EOS = 1
TOLERANCE = 2e-3
"""Nats by which float32 may differ from float64."""
SETTINGS = {"whole rows": (False, "sdpa"), "documents": (True, "sdpa"), "documents, varlen": (True, VARLEN)}


def packed_rows() -> tuple[np.ndarray, np.ndarray]:
    """Four rows [B, T] of ids and documents: one document, many of many lengths, two, and one that ends in padding."""
    lengths = [[64], [3, 1, 17, 2, 30, 11], [40, 24], [9, 20]]
    document_BT = np.full((len(lengths), LENGTH), -1, dtype=np.int64)
    ids_BT = np.random.default_rng(0).integers(2, VOCAB, document_BT.shape)
    number = 0
    for b, sizes in enumerate(lengths):
        at = 0
        for n in sizes:
            document_BT[b, at : at + n] = number
            ids_BT[b, at + n - 1] = EOS
            number, at = number + 1, at + n
        ids_BT[b, at:] = EOS
    return ids_BT, document_BT


def make(case: Case, attention: str) -> Any:
    """The model in float32, with logits of about 5."""
    config = case.config()
    torch.manual_seed(0)
    try:
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    except (ValueError, ImportError):
        if attention == VARLEN:
            raise
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    head = model.get_output_embeddings()
    if isinstance(head, torch.nn.Linear):
        with torch.no_grad():
            head.weight.mul_(5.0 / (head.weight.std() * head.in_features**0.5).clamp_min(1e-6))
            if head.bias is not None:
                head.bias.normal_()
    return model.float().eval()


@torch.no_grad()
def judge(model: Any, ids_BT: np.ndarray, document_BT: np.ndarray, documents: bool) -> np.ndarray:
    """Losses [B, T] of the model itself: whole logits of each row, or of each document, alone."""
    found = np.full(ids_BT.shape, np.nan)
    for b, row in enumerate(ids_BT):
        parts = [np.arange(LENGTH)]
        if documents:
            parts = [np.flatnonzero(document_BT[b] == d) for d in sorted(set(document_BT[b]) - {-1})]
        for part in parts:
            logits_TV = model(input_ids=torch.from_numpy(row[part])[None], use_cache=False).logits[0].double()
            for i in range(1, len(part)):
                found[b, part[i]] = -torch.log_softmax(logits_TV[i - 1], dim=-1)[row[part[i]]].item()
    return np.where(target_mask(document_BT.copy(), documents), found, np.nan)


@torch.no_grad()
def looks_ahead(model: Any, ids_BT: np.ndarray) -> float:
    """By how much the model's own logits move before a token from which on others stand."""
    row = torch.from_numpy(ids_BT[:1])
    own = model(input_ids=row, use_cache=False).logits[0].double()
    worst = 0.0
    for n in (LENGTH - 1, LENGTH // 2 + 1, 9):
        other = row.clone()
        other[:, n:] = (other[:, n:] + 1) % VOCAB
        moved = model(input_ids=other, use_cache=False).logits[0, :n].double()
        worst = max(worst, (moved - own[:n]).abs().max().item())
    return worst


@torch.no_grad()
def in_float64(model: Any) -> Any:
    """The model in float64, or as it is where it does not compute in that."""
    with contextlib.suppress(Exception):
        model.set_experts_implementation("eager")
    try:
        model.double()(input_ids=torch.arange(2, 34)[None], use_cache=False)
    except RuntimeError:
        return model.float()
    return model


def verdict(case: Case, intra: bool, attention: str) -> dict[str, Any]:
    """What slmctl does with the model, and how far it is from the judge."""
    ids_BT, document_BT = packed_rows()
    try:
        model = make(case, attention)
    except (ValueError, KeyError) as e:  # which slmctl's loading says
        return {"verdict": "refused", "why": f"transformers does not load it with {attention} attention ({e})"}
    exact = in_float64(make(case, "sdpa" if attention == VARLEN else attention))
    found: dict[str, Any] = {"attention": model.config._attn_implementation}
    try:
        split = SplitModel(model, intra)
        refuse_rows_beyond(LENGTH, split, case.name)
        split.check(EOS, LENGTH)
        losses, _, target = row_losses(split, ids_BT, document_BT, "cpu")
    except SlmError as e:
        return {**found, "verdict": "refused", "why": str(e).split(" is refused: ")[-1]}
    wanted = judge(exact, ids_BT, document_BT, intra)
    ahead = looks_ahead(exact, ids_BT)
    worst = float(np.abs(losses - wanted)[target].max())
    right = worst <= TOLERANCE and ahead <= 1e-6 and bool((np.isfinite(wanted) == target).all())
    return {**found, "verdict": "right" if right else "WRONG", "difference": worst, "looks_ahead": ahead}


def counted(case: Case) -> float | None:
    """Operations of a forward pass by slmctl's formula, over those that torch counts in matrix products."""
    try:
        model = make(case, "eager")
        with contextlib.suppress(Exception):
            model.set_experts_implementation("eager")
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(input_ids=torch.arange(2, 34)[None], use_cache=False)
    except Exception:  # it cannot be run so
        return None
    return flops_per_token(model, 32) / 3 * 32 / counter.get_total_flops()


def try_case(case: Case) -> dict[str, Any]:
    found: dict[str, Any] = {"type": case.model_type, "variant": case.variant}
    for name, (intra, attention) in SETTINGS.items():
        try:
            found[name] = verdict(case, intra, attention)
        except Exception as e:  # whatever slmctl does not say in a message of its own
            found[name] = {"verdict": "WRONG", "why": f"{type(e).__name__}: {str(e).splitlines()[0]}"}
    found["flops"] = counted(case)
    return found


def shown(found: dict[str, Any]) -> str:
    if found["verdict"] == "refused":
        return "refused"
    return f"**{found['verdict']}**" if found["verdict"] == "WRONG" else f"{found['difference']:.0e}"


def table(cases: dict[str, dict[str, Any]]) -> str:
    lines = ["| model | " + " | ".join(SETTINGS) + " | FLOPs | refused since |", "|---" * (len(SETTINGS) + 3) + "|"]
    for name, found in cases.items():
        reasons = dict.fromkeys(found[s]["why"].split(". ")[0] for s in SETTINGS if "why" in found[s])
        flops = f"{found['flops']:.2f}" if found["flops"] else ""
        lines.append(f"| {name} | " + " | ".join(shown(found[s]) for s in SETTINGS) + f" | {flops} | {'; '.join(reasons)} |")
    return "\n".join(lines)


def main() -> None:
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    register()
    patterns, began = sys.argv[1:], time.time()
    cases = {}
    for case in CASES:
        if patterns and not any(fnmatch.fnmatch(case.name, p) for p in patterns):
            continue
        cases[case.name] = found = try_case(case)
        print(case.name, *(f"{s}: {shown(found[s])}" for s in SETTINGS), f"flops {found['flops']}", sep="  ", flush=True)
        for s in SETTINGS if patterns else ():
            print("   ", s, found[s])
    wrong = [n for n, f in cases.items() if any(f[s]["verdict"] == "WRONG" for s in SETTINGS)]
    lost = [
        n for n, f in cases.items()
        if f["type"] in ACCEPTED and f["variant"] not in REFUSED and f["whole rows"]["verdict"] != "right"
    ]  # fmt: skip
    versions = {"python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__}
    types = len({f["type"] for f in cases.values()})
    counts = {s: {v: sum(f[s]["verdict"] == v for f in cases.values()) for v in ("right", "refused", "WRONG")} for s in SETTINGS}
    summary = f"{len(cases)} configurations of {types} model types; wrong: {wrong or 'none'}; refused wrongly: {lost or 'none'}"
    print(summary, counts, sep="\n")
    if not patterns:
        facts = {"command": "python benchmarks/architectures.py", "versions": versions, "seconds": time.time() - began}
        (RESULTS / "architectures.json").write_text(json.dumps({**facts, "counts": counts, "cases": cases}, indent=1) + "\n")
        named = ", ".join(f"{k} {v}" for k, v in versions.items())
        (RESULTS / "architectures.md").write_text(
            f"# Right or refused\n\n`python benchmarks/architectures.py` ({named}): {summary}. Rows of {LENGTH} tokens; largest "
            "difference in nats between slmctl's losses (float32) and the model's own (float64), each row or document alone. "
            "FLOPs: slmctl's count of a forward pass over the matrix products that torch counts.\n\n" + table(cases) + "\n"
        )
    sys.exit(bool(wrong or lost))


if __name__ == "__main__":
    main()

"""Mistakes of a pipeline that lie between its sections, read from the plain document so that they are found among others."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any

from slmctl.config.data import DataConfig
from slmctl.config.evaluation import SUITES, EvalConfig
from slmctl.config.score import ScoreConfig
from slmctl.config.training import ReferenceConfig, TrainingConfig
from slmctl.config.yaml import Path_, mapping_at, value_at
from slmctl.selection.table import CRITERIA


def _attention_mistakes(data: Any) -> Iterator[tuple[Path_, str]]:
    """What flash attention cannot do: float32, and restarting at the documents of a batch of rows."""
    if value_at(data, "model", "attn_implementation") != "flash_attention_2":
        return
    if value_at(data, "data", "intra_document_mask"):
        yield ("data", "intra_document_mask"), "is not kept by flash_attention_2; use sdpa or flex_attention"
    runs: list[tuple[Path_, str]] = [(("score",), "auto"), (("eval",), "float32"), (("reference",), "auto")]
    runs += [(("pretrain", "arms", a), "auto") for a in mapping_at(data, "pretrain", "arms") if isinstance(a, str)]
    for where, default in runs:
        if value_at(data, *map(str, where), "precision", default=default) == "float32":
            yield (*where, "precision"), "float32 does not work with flash_attention_2; use bfloat16 here, or attn sdpa"


def _selection_mistakes(data: Any, where: Path_, known: Any) -> Iterator[tuple[Path_, str]]:
    """Score sets and columns that a selection, or a part of it, reads and score does not make."""
    parts = value_at(data, *map(str, where), "parts", default=[])
    inner = [(*where, "parts", i) for i in range(len(parts))] if isinstance(parts, list) else []
    for place in (where, *inner):
        one = value_at(data, *map(str, where)) if place == where else parts[int(place[-1])]
        if not isinstance(one, dict):
            continue
        sets = one.get("sets")
        for role, name in (sets if isinstance(sets, dict) else {}).items():
            if isinstance(name, str) and name not in known:
                yield (*place, "sets", str(role)), f"{name!r} is not in score.references ({', '.join(known)})"
        entry = CRITERIA.get(str(one.get("criterion")))
        if entry is not None and "ref_entropy" in entry.reads and value_at(data, "score", "entropy", default=True) is False:
            yield (*place, "criterion"), f"{entry.name} reads entropies, which are not stored: set score.entropy: true"


def cross_mistakes(data: dict[str, Any]) -> Iterator[tuple[Path_, str]]:
    """Mistakes between sections, found even where a section has mistakes of its own."""
    sets = sorted(mapping_at(data, "data", "heldout"), key=str)
    target = value_at(data, "eval", "target", default=EvalConfig.model_fields["target"].default)
    chosen = value_at(data, "eval", "heldout", default=[])
    named: list[tuple[Path_, Any]] = [(("eval", "target"), target)]
    named.append((("reference", "keep_best_on"), value_at(data, "reference", "keep_best_on")))
    named += [(("eval", "heldout"), n) for n in (chosen if isinstance(chosen, list) else [])]
    best = named[1][1]
    if chosen and isinstance(chosen, list) and best is not None and best not in chosen:
        yield named[1][0], f"{best!r} is not in eval.heldout, so it is never evaluated"
    for path, name in named:
        if isinstance(name, str) and sets and name not in sets:
            yield path, f"{name!r} is not a set of data.heldout (there are: {', '.join(map(str, sets))})"
    if chosen and isinstance(chosen, list) and target not in chosen:
        yield ("eval", "heldout"), f"must contain eval.target ({target!r})"
    seq_len = value_at(data, "data", "seq_len", default=DataConfig.model_fields["seq_len"].default)
    runs: list[tuple[Path_, int, int]] = [
        (("reference",), 1, ReferenceConfig.model_fields["batch_tokens"].default),
        (("model", "scratch", "train"), 1, TrainingConfig.model_fields["batch_tokens"].default),
    ]
    known = mapping_at(data, "score", "references") or ScoreConfig.model_fields["references"].default
    for arm in (a for a in mapping_at(data, "pretrain", "arms") if isinstance(a, str)):
        where: Path_ = ("pretrain", "arms", arm)
        rows = value_at(data, *map(str, where), "selection", "group_rows", default=8)
        runs.append((where, rows, TrainingConfig.model_fields["batch_tokens"].default))
        reference = value_at(data, *map(str, where), "selection", "reference")
        if isinstance(reference, str) and reference not in known:
            yield (*where, "selection", "reference"), f"{reference!r} is not in score.references ({', '.join(known)})"
        yield from _selection_mistakes(data, (*where, "selection"), known)
    yield from _attention_mistakes(data)
    for arm in ("base", "reference"):
        if arm in mapping_at(data, "pretrain", "arms"):
            yield ("pretrain", "arms", arm), "an arm cannot have this name: it is the name of a model it is compared with"
    tasks = value_at(data, "eval", "tasks", default=[])
    given = tasks if isinstance(tasks, list) else []
    for i, task in enumerate(given):
        if isinstance(task, str) and task not in SUITES and (near := difflib.get_close_matches(task, SUITES, n=1, cutoff=0.8)):
            yield ("eval", "tasks", i), f"{task!r} is no suite; did you mean {near[0]!r}?"
    names = [t if isinstance(t, str) else value_at(t, "name") or value_at(t, "suite") or value_at(t, "harness") for t in given]
    for name in {n for n in names if isinstance(n, str) and names.count(n) > 1}:
        yield ("eval", "tasks"), f"two tasks are named {name!r}"
    if value_at(data, "model", "attn_implementation") == "varlen" and not value_at(data, "data", "intra_document_mask"):
        yield ("model", "attn_implementation"), "varlen wants data.intra_document_mask: true; without it use sdpa"
    if best is not None and not value_at(data, "reference", "eval_every"):
        yield named[1][0], "needs reference.eval_every: without evaluations on the way the last weights are the best"
    for where, rows, default in runs:
        if where[0] == "model" and value_at(data, *map(str, where)) is None:
            continue
        tokens = value_at(data, *map(str, where), "batch_tokens", default=default)
        known_keys = set(mapping_at(data, "data")) <= set(DataConfig.model_fields)  # else seq_len may be misspelt
        if not known_keys or not all(isinstance(v, int) and v > 0 for v in (tokens, seq_len, rows)):
            continue
        micro = value_at(data, *map(str, where), "micro_batch", default=8)
        if isinstance(micro, int) and 0 < micro < rows and value_at(data, *map(str, where), "selection", "criterion") != "all":
            yield (*where, "micro_batch"), f"{micro} is less than group_rows {rows}; a micro-batch holds whole groups"
        unit = seq_len * rows
        if tokens % unit:
            near = max(unit, round(tokens / unit) * unit)
            yield (
                (*where, "batch_tokens"),
                f"{tokens} is not a multiple of seq_len x group_rows = {unit}; the nearest is {near}",
            )

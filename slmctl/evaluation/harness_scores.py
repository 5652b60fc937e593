"""What lm-evaluation-harness logs of each item, as a task's accuracy and records that can be paired between models."""

from __future__ import annotations

import math
import numbers
from typing import Any

import numpy as np

from slmctl.system.errors import ConfigError

MAIN_METRICS = ("acc_norm", "acc", "exact_match", "pass@1", "pass_at_1", "f1")
METRIC_OF = {"tydiqa_goldp": "f1"}
"""Tasks, by the beginning of their names, of which the paper reports another metric than the first of MAIN_METRICS (App. E.2)."""


def scored(task: Any, name: str, samples: list[dict[str, Any]], shots: int, prompts_cut: int) -> dict[str, Any]:
    """A task's result from its logged samples (one an item and filter). Raises `ConfigError` where more is not better."""
    import lm_eval

    filters = list(dict.fromkeys(s["filter"] for s in samples))
    metric = main_metric(task, name, samples[0])
    mine = [s for s in samples if s["filter"] == filters[0]]
    outputs = [_record(task, s, metric) for s in mine]
    for other in filters[1:]:  # the same items under another way to find the answer
        rest = [s for s in samples if s["filter"] == other]
        for output, sample in zip(outputs, rest, strict=True):
            output["metrics"] |= {f"{m},{other}": v for m, v in _numbers(sample).items()}
    values = [float(o["correct"]) for o in outputs]
    return {
        "accuracy": math.fsum(values) / len(values),
        "metric": metric if len(filters) == 1 else f"{metric},{filters[0]}",
        "standard_error": float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else None,
        "items": len(values),
        "shots": shots,
        "version": f"{name} v{task.VERSION}, lm_eval {lm_eval.__version__}",
        "prompts_cut": prompts_cut,
        "outputs": outputs,
    }


def pooled(parts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """A group's result: the mean over all items of its tasks, taken as fixed strata for the standard error."""
    items = sum(p["items"] for p in parts.values())
    errors = [p["standard_error"] for p in parts.values()]
    known = all(e is not None for e in errors)
    return {
        "accuracy": math.fsum(p["accuracy"] * p["items"] for p in parts.values()) / items,
        "metric": _joined(p["metric"] for p in parts.values()),
        "standard_error": math.sqrt(math.fsum((p["standard_error"] * p["items"]) ** 2 for p in parts.values())) / items
        if known
        else None,
        "items": items,
        "shots": max(p["shots"] for p in parts.values()),
        "seed": next(iter(parts.values())).get("seed"),
        "version": f"tasks: {len(parts)}, {next(iter(parts.values()))['version'].rpartition(', ')[2]}",
        "prompts_cut": sum(p["prompts_cut"] for p in parts.values()),
        "tasks": list(parts),
        "outputs": [{**o, "id": f"{name}/{o['id']}"} for name, p in parts.items() for o in p["outputs"]],
    }


def main_metric(task: Any, name: str, sample: dict[str, Any]) -> str:
    """The metric that is reported. Raises `ConfigError` where the task has none that is a number an item, the more the better."""
    better = task.higher_is_better()
    measured = [m for m in _numbers(sample) if better.get(m, True)]
    special = [m for prefix, m in METRIC_OF.items() if name.startswith(prefix)]
    chosen = next((m for m in (*special, *MAIN_METRICS) if m in measured), None) or next(iter(measured), None)
    if chosen is None:
        raise ConfigError(
            f"task {name} measures {', '.join(sample['metrics'])}: no accuracy. Give its text as a held-out set instead, "
            "whose loss, perplexity and bits per byte are measured."
        )
    return chosen


def _joined(names: Any) -> str:
    return ", ".join(dict.fromkeys(names))


def _numbers(sample: dict[str, Any]) -> dict[str, float]:
    return {m: float(sample[m]) for m in sample["metrics"] if isinstance(sample[m], (numbers.Real, np.number, np.bool_))}


def _record(task: Any, sample: dict[str, Any], metric: str) -> dict[str, Any]:
    value = _numbers(sample)[metric]
    record = _choice(task, sample, metric) if task.OUTPUT_TYPE == "multiple_choice" else _generation(sample)
    correct: float = int(value) if value in (0.0, 1.0) else value
    return {"id": sample["doc_id"], **record, "correct": correct, "metrics": _numbers(sample)}


def _generation(sample: dict[str, Any]) -> dict[str, Any]:
    output, found = sample["resps"][0][0], sample["filtered_resps"][0]
    if not isinstance(output, str):  # one log-likelihood, and whether the text is what greedy search gives
        return {"output": output[0], "found": output[1], "target": sample["target"]}
    return {"output": output, "found": found if isinstance(found, str) else str(found), "target": _plain(sample["target"])}


def _choice(task: Any, sample: dict[str, Any], metric: str) -> dict[str, Any]:
    """Which option the metric takes as chosen: the likeliest, where the metric says so by its length."""
    options = [str(o) for o in task.doc_to_choice(sample["doc"])]
    logprobs = [float(r[0]) for r in sample["filtered_resps"]][: len(options)]
    sizes = {"acc_norm": [len(o) for o in options], "acc_bytes": [len(o.encode()) for o in options]}
    lengths = sizes.get(metric, [1] * len(options))
    chosen = int(np.argmax(np.array(logprobs) / np.array(lengths, float)))
    gold = task.doc_to_text(sample["doc"]) if task.multiple_input else sample["target"]
    golds = gold if isinstance(gold, list) else [gold]
    targets = [options[g] if isinstance(g, (int, np.integer)) and 0 <= g < len(options) else _plain(g) for g in golds]
    return {
        "output": options[chosen],
        "found": options[chosen],
        "target": targets[0] if len(targets) == 1 else targets,
        "logprobs": logprobs,
    }


def _plain(value: Any) -> Any:
    """A value that JSON has."""
    return value if isinstance(value, (str, int, float, list, bool)) or value is None else str(value)

"""The comparison as rows of text: one source for the terminal and the page."""

from __future__ import annotations

from typing import Any


def comparison(results: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: every model with its losses on each held-out set, and what each arm spent."""
    models, arms = results["models"], results.get("arms", {})
    sets = list(next(iter(models.values()))["heldout"])
    tasks = list(next(iter(models.values()))["tasks"])
    header = ["model", "selection", "tokens seen", "trained on"]
    for name in sets:
        header += [f"{name} loss", f"{name} bits/byte"]
    header += [f"{t} accuracy" for t in tasks] + ["tokens to reach control"]
    rows = []
    for name, found in models.items():
        arm = arms.get(name)
        row = [name, selection(arm), count(arm and arm["tokens_seen"]), count(arm and arm["tokens_selected"])]
        for s in sets:
            row += [f"{found['heldout'][s]['loss']:.4f}", f"{found['heldout'][s]['bits_per_byte']:.4f}"]
        for t in tasks:
            task = found["tasks"].get(t)
            row.append(f"{task['accuracy']:.3f} ± {task['standard_error']:.3f}" if task else "")
        row.append(reach(arm))
        rows.append(row)
    return header, rows


def selection(arm: dict[str, Any] | None) -> str:
    if arm is None:
        return "-"
    chosen = arm["selection"]
    return chosen["criterion"] if chosen["criterion"] == "all" else f"{chosen['criterion']} {chosen['ratio']:.0%}"


def count(n: int | None) -> str:
    return "-" if n is None else f"{n:,}"


def reach(arm: dict[str, Any] | None) -> str:
    if arm is None or "control" not in arm:
        return "-"
    found = arm["control"]
    if found["tokens_to_reach"] is None:
        return "not reached"
    return f"{found['tokens_to_reach']:,.0f} ({found['times_fewer_tokens']:.2f}x fewer)"

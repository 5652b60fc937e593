"""The comparison as rows of text, a column for each model: one source for the terminal and the page."""

from __future__ import annotations

from typing import Any


def comparison(results: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header (a label, then every model) and rows: losses on each held-out set, tasks, and what each arm spent."""
    models, arms = results["models"], results.get("arms", {})
    first = next(iter(models.values()))
    rows = [["selection", *[selection(arms.get(m)) for m in models]]]
    rows.append(["tokens seen", *[count(arms.get(m), "tokens_seen") for m in models]])
    rows.append(["tokens trained on", *[count(arms.get(m), "tokens_selected") for m in models]])
    for heldout in first["heldout"]:
        for key, label, form in (
            ("loss", "loss", ".4f"),
            ("perplexity", "perplexity", ".4g"),
            ("bits_per_byte", "bits/byte", ".4f"),
        ):
            rows.append([f"{heldout} {label}", *[figure(found["heldout"][heldout][key], form) for found in models.values()]])
    for task in first["tasks"]:
        rows.append([f"{task} accuracy", *[accuracy(found["tasks"][task]) for found in models.values()]])
    rows.append(["tokens to control's loss", *[reach(arms.get(m), "tokens_to_reach") for m in models]])
    rows.append(["times fewer tokens", *[times(arms.get(m)) for m in models]])
    return ["", *models], rows


def figure(value: float | None, form: str) -> str:
    return "not finite" if value is None else format(value, form)


def selection(arm: dict[str, Any] | None) -> str:
    if arm is None:
        return "-"
    chosen = arm["selection"]
    return chosen["criterion"] if chosen["criterion"] == "all" else f"{chosen['criterion']} {100 * chosen['ratio']:g}%"


def count(arm: dict[str, Any] | None, key: str) -> str:
    return "-" if arm is None else f"{arm[key]:,}"


def accuracy(task: dict[str, Any]) -> str:
    return f"{task['accuracy']:.3f} ± {task['standard_error']:.3f}"


def reach(arm: dict[str, Any] | None, key: str) -> str:
    """Tokens until the target loss first came down to the all-tokens arm's final one."""
    if arm is None or "control" not in arm:
        return "-"
    found = arm["control"][key]
    return "not reached" if found is None else f"{found:,.0f}"


def times(arm: dict[str, Any] | None) -> str:
    found = arm.get("control", {}).get("times_fewer_tokens") if arm else None
    return "-" if found is None else f"{found:.2f}x"

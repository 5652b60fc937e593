"""What `slmctl compare` prints, a block for each measure, so that each fits 80 columns."""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text


def show(comparison: dict[str, Any], console: Console) -> None:
    """Prints what `slmctl.comparison.side_by_side.compare_runs` returns."""
    runs = comparison["runs"]
    _print(console, "Runs", "run/pipeline/target", "seed", [[r["run"], r["pipeline"], r["target"], str(r["seed"])] for r in runs])
    for warning in comparison["warnings"]:
        console.print(f"note: {warning}", markup=False, style="yellow")
    level = runs[0].get("level")
    target = comparison["target"]
    for name in sorted(comparison["sets"], key=lambda n: n != target):  # the target first, the others as they come
        _print_set(console, comparison, name, level)
    _print_tokens(console, [m for m in comparison["models"] if m["kind"] == "arm"])
    _print_tasks(console, comparison["tasks"])
    _print_seeds(console, [g for g in comparison["seeds"] if g["n"] > 1])
    unknown = not all(r["configured"] for r in runs)
    _print_differences(console, comparison["differences"], [r["run"] for r in runs], unknown)


def _print_set(console: Console, comparison: dict[str, Any], name: str, level: float | None) -> None:
    rows = []
    for model in comparison["models"]:
        facts = model["heldout"].get(name)
        if facts is not None:
            losses = [figure(facts.get("loss")), interval(facts.get("interval")), figure(facts.get("bits_per_byte"))]
            rows.append([model["run"], model["model"], *losses])
    role = " (target)" if name == comparison["target"] else ""
    apart = "" if comparison["sets"][name]["loss"] else "; NOT comparable between runs"
    title = f"Held-out loss on {name}{role}, nats a token{apart}"
    _print(
        console, title, "run/model", f"loss/{100 * level:g}% interval/bits a byte" if level else "loss/interval/bits a byte", rows
    )


def _print_tokens(console: Console, arms: list[dict[str, Any]]) -> None:
    rows, sure = [], []
    for arm in arms:
        fewer = [times(arm["times_fewer_tokens"]), times(arm["times_fewer_flops_all"])]
        if arm["control"] is not None and arm["tokens_to_reach"] is None:
            fewer[0] = "?" if arm["why"] else "never"
        rows.append([arm["run"], arm["model"], short(arm["tokens_seen"]), short(arm["tokens_selected"]), *fewer])
        if arm["interval"] and arm["control"] != arm["model"]:
            sure.append([arm["run"], arm["model"], "documents", *_sure(arm)])
        if over := arm["over_seeds"]:
            number = f"{len(over['seeds'])} seeds"
            fewer = [times(over["times_fewer_tokens"]), times(over["times_fewer_flops_all"])]
            fewer[0] = "never" if over["tokens_to_reach"] is None else fewer[0]
            rows.append([arm["run"], f"{arm['model']}, {number}", "", "", *fewer])
            sure.append([arm["run"], f"{arm['model']}, {number}", "seeds, documents", *_sure(over)])
    title = "Tokens, and how many times fewer tokens (and FLOPs, with reference and scoring) reach the control's loss"
    _print(console, title, "run/arm", "seen/trained on/tokens/FLOPs", rows)
    if sure:
        title = "Intervals of how many times fewer (x) or more (x more); … is an open end"
        _print(console, title, "run/arm/over", "tokens/FLOPs", sure)


def _sure(figures: dict[str, Any]) -> list[str]:
    return [open_ends(figures["interval"].get(key)) for key in ("times_fewer_tokens", "times_fewer_flops_all")]


def _print_tasks(console: Console, tasks: list[dict[str, Any]]) -> None:
    rows = []
    for t in tasks:
        error = t.get("standard_error")
        accuracy = figure(t["accuracy"], ".3f") + (f" ± {error:.3f}" if error is not None else "")
        rows.append([t["task"], t["run"], t["arm"], accuracy, "best" if t["best"] else "" if t["comparable"] else "other items"])
    if rows:
        _print(
            console, "Tasks: each run's best arm (chosen on the same items: a little too good)", "task/run/arm", "accuracy/", rows
        )


def _print_seeds(console: Console, groups: list[dict[str, Any]]) -> None:
    rows = []
    for group in groups:
        for name, loss in group["heldout"].items():
            seeds = ", ".join(map(str, group["seeds"]))
            rows.append([group["arm"], seeds, name, f"{loss['mean']:.4f} ± {loss['sd']:.4f} ({loss['n']})"])
    if rows:
        _print(console, "The same settings with other seeds: loss, mean ± sd (n)", "arm/seeds/set", "loss", rows)


def _print_differences(console: Console, differences: list[dict[str, Any]], runs: list[str], unknown: bool) -> None:
    """`unknown`: some run's configuration is, so that nothing is said of it."""
    if len(runs) < 2:
        return
    if not differences:
        if not unknown:
            console.print("The configurations do not differ.")
        return
    rows = []
    for difference in differences:
        for i, run in enumerate(runs):
            value = short_value(difference["values"][run]) if run in difference["present"] else "(absent)"
            rows.append([difference["key"] if i == 0 else "", run, value])
    _print(console, "What differs in the configurations", "key/run/value", "", rows)


def _print(console: Console, title: str, left: str, right: str, rows: list[list[str]]) -> None:
    """A table; columns named in `left`, cut at slashes, give way, those in `right` never break a number."""
    table = Table()
    for name in left.split("/"):
        table.add_column(name, overflow="fold")
    for name in right.split("/") if right else ():
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*[Text(cell) for cell in row])
    console.print(Text(title, "bold"))
    console.print(table)


def figure(value: float | None, form: str = ".4f") -> str:
    return "-" if value is None else format(value, form)


def interval(ends: list[float] | None) -> str:
    return "-" if ends is None else f"{ends[0]:.4f} to {ends[1]:.4f}"


def open_ends(ends: list[float | None] | None) -> str:
    """Of `times`: `1.20x to 2.10x`; below one `2.11x to 2.13x more`; around it `1.11x more to 1.25x`. An open end is `…`."""
    if ends is None:
        return "-"
    if ends[1] is not None and ends[1] <= 1:  # the least of what is more comes first
        low, high = (times(e).removesuffix(" more") if e else "…" for e in reversed(ends))
        return f"{low} to {high} more" if high != "…" else f"{low} more to …"
    return " to ".join("…" if e is None else times(e) for e in ends)


def times(value: float | None) -> str:
    """`2.05x`; below one, where it is not fewer but more, `1.11x more`."""
    if value is None or value <= 0:
        return "-"
    return f"{value:.2f}x" if value >= 1 else f"{1 / value:.2f}x more"


def short(n: int | None) -> str:
    """1,234 or 12.3M: three digits of a large count."""
    if n is None:
        return "-"
    for unit, size in (("T", 10**12), ("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if n >= 10 * size:
            return f"{n / size:.1f}{unit}" if n < 100 * size else f"{n / size:,.0f}{unit}"
    return f"{n:,}"


def short_value(value: Any) -> str:
    """A setting as YAML would have it on one line; of a whole part only that it is there."""
    if isinstance(value, dict):
        return f"(present, {len(value)} keys)"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 200 else text[:199] + "…"

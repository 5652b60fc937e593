"""The comparison for a terminal of 80 columns: several small tables with a row for each model, so that no label wraps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from slmctl.comparison.crossings_in_words import ends_of, span, span_and_side
from slmctl.report import numbers as n
from slmctl.report.blocks import DataTable
from slmctl.report.facts import ROLLING, Facts, dig, extreme, has_rolling, items_of, rows_of
from slmctl.report.safe_text import shortened, visible
from slmctl.report.sections.summary import alarms, headline
from slmctl.report.seed_tables import seed_tables

WIDTH = 80
MOST = 8
"""Alarms that are shown; the others are less important."""
NAME = 16
"""Characters of a model's name that are shown."""
_SYMBOLS = {"bad": "✗", "warning": "!", "note": "i", "good": "✓"}
_STYLES = {"bad": "red", "warning": "yellow", "note": "", "good": "green"}


def sentences(results: dict[str, Any]) -> list[tuple[str, str]]:
    """(text, style) of each alarm, most important first, with its level as symbol and word; then what was found."""
    facts = Facts(results)
    found = [(f"{_SYMBOLS[a.level]} {a.word}: {visible(a.text, 500)}", _STYLES[a.level]) for a in alarms(facts)]
    return [*found, (" ".join(visible(s, 500) for s in headline(facts)), "")]


def print_results(results: dict[str, Any], console: Console) -> None:
    """The alarms in words, what was found, and the comparison as small tables."""
    console.print(f"{visible(results.get('pipeline', ''))}, seed {results.get('seed')}", style="bold", markup=False)
    *said, (summary, _) = sentences(results)
    console.print(summary, markup=False)
    for text, style in said[:MOST]:
        console.print(text, style=style or None, markup=False)
    if len(said) > MOST:
        console.print(f"… and {len(said) - MOST} more, in the report.")
    for found in small_tables(results):
        console.print()
        console.print(found.title, style="bold", markup=False, no_wrap=True)
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
        for i, head in enumerate(found.header):
            table.add_column(Text(head), justify="right" if i else "left", no_wrap=width(found) <= console.width)
        for row in found.rows:
            table.add_row(*[Text(str(cell)) for cell in row])
        console.print(table)
        if found.note:
            console.print(found.note, markup=False)
    console.print()
    if has_rolling(results.get("models")):
        console.print(ROLLING, markup=False)
    for note in Facts(results).notes:
        console.print(f"note: {visible(note, 1000)}", markup=False)


def width(table: DataTable) -> int:
    """Columns that a table takes when nothing in it wraps: three between columns."""
    columns = zip(*[table.header, *[[str(c) for c in row] for row in table.rows]], strict=True)
    return sum(max(map(len, column)) + 3 for column in columns) - 3


def small_tables(results: dict[str, Any]) -> list[DataTable]:
    """Losses on each held-out set, what each arm was and spent, what it took to reach the control, paired differences, tasks,
    means over seeds. All cells are text; each table fits `WIDTH`."""
    facts = Facts(results)
    found = [_heldout(facts, s) for s in facts.sets]
    found += [_training(facts), *_reached(facts), _differences(facts), *_tasks(facts), *seed_tables(facts)]
    return [t for t in found if t.rows]


def _name(text: object) -> str:
    return shortened(text, NAME)


def _heldout(facts: Facts, heldout: str) -> DataTable:
    rows, rolling = [], has_rolling(facts.models)
    for model in facts.models:
        h = items_of(facts.models, model, "heldout", heldout)
        if h:
            ends = n.interval(h.get("interval")) or n.NONE
            bits = [n.fixed(h.get("bits_per_byte"))]
            bits += [n.fixed(dig(facts.models, model, "rolling", heldout, "bits_per_byte"))] if rolling else []
            rows.append([_name(model), n.fixed(h.get("loss")), ends, *bits, n.significant(h.get("perplexity"))])
    target = ", the target" if heldout == facts.target else ""
    header = ["model", "loss", f"{facts.level} interval", "bits/byte", *(["rolling"] if rolling else []), "perplexity"]
    return DataTable(f"Held-out set {shortened(heldout, 40)}{target} (nats a token, lower is better)", header, rows)


def selection(arm: dict[str, Any]) -> str:
    """`excess loss 60%`, `all`."""
    chosen = items_of(arm, "selection")
    criterion = str(chosen.get("criterion", n.NONE)).replace("_", " ")
    share = "" if criterion == "all" or n.number(chosen.get("ratio")) is None else f" {n.ratio(chosen['ratio'])}"
    return shortened(criterion + share, 20)


def _training(facts: Facts) -> DataTable:
    rows = [
        [_name(m), selection(a), n.count(a.get("tokens_seen")), n.count(a.get("tokens_selected")), n.flops(a.get("flops"))]
        for m, a in facts.arms.items()
    ]
    return DataTable("Training", ["arm", "selected by", "tokens seen", "trained on", "FLOPs"], rows)


_REACHED = {"times_fewer_tokens": "in tokens", "times_fewer_flops": "in FLOPs", "times_fewer_flops_all": "with scoring"}


def _reached(facts: Facts) -> list[DataTable]:
    """What it took to reach the control, and how sure that is."""
    rows: list[list[str]] = []
    sure: list[list[str]] = []
    controls: dict[str, str] = {}
    seeded: list[str] = []
    for arm in facts.arms:
        c, over = facts.headline(arm), facts.headline_over_seeds(arm)
        if c:
            controls[str(c.get("arm"))] = n.fixed(c.get("target_loss"))
            rows.append([_name(arm), *_reached_cells(c)])
            sure += _intervals_of(_name(arm), arm, c)
        if over and over["arms"][0][0] not in seeded:
            seeded.append(over["arms"][0][0])
            name = shortened(f"{arm}, {len(over['seeds'])} seeds", NAME)
            rows.append([name, *_reached_cells(over)])
            sure += _intervals_of(name, arm, over)
    named = [f"{_name(control)} ({loss})" for control, loss in controls.items()]
    title = f"Until the final target loss of {named[0] if len(named) == 1 else 'the control'}"
    header = ["arm", "tokens", *_REACHED.values()]
    intervals = DataTable(f"… and their {facts.level} intervals", ["arm", "figure", "interval"], sure)
    return [DataTable(title, header, rows), intervals]


def _reached_cells(control: dict[str, Any]) -> list[str]:
    reached = n.number(control.get("tokens_to_reach")) is not None
    tokens = n.count(control.get("tokens_to_reach")) if reached else "not judged" if control.get("why") else "not reached"
    return [tokens, *[n.fewer(control.get(key)) for key in _REACHED]]


def _intervals_of(name: str, arm: str, control: dict[str, Any]) -> list[list[str]]:
    if not control.get("interval") or control.get("arm") == arm:
        return []
    tokens = ends_of(control, "tokens_to_reach")
    if n.number(control.get("tokens_to_reach")) is None and (tokens is None or tokens[0] is None):
        return []
    found = [("tokens", span(tokens, n.short))]
    found += [(words, span_and_side(ends_of(control, key))) for key, words in _REACHED.items()]
    return [[name, figure, ends] for figure, ends in found if ends]


def _differences(facts: Facts) -> DataTable:
    rows = []
    for d in rows_of(facts.results, "differences"):
        if d.get("a") not in facts.arms or d.get("b") not in facts.arms:
            continue
        pair = f"{shortened(d.get('a'), 14)} − {shortened(d.get('b'), 14)}"
        ends = n.interval(d.get("interval"), sign=True) or n.NONE
        rows.append([shortened(d.get("set"), 10), pair, n.signed(d.get("difference")), ends])
    return DataTable(
        "Paired differences of loss (negative: the first is better)", ["set", "arms", "loss", f"{facts.level} interval"], rows
    )


def _tasks(facts: Facts) -> list[DataTable]:
    """As many models beside each other as fit, the rest in tables of their own."""
    tables: list[DataTable] = []
    models = list(facts.models)
    while models and facts.tasks:
        take = len(models)
        while take > 1 and width(_accuracies(facts, models[:take])) > WIDTH:
            take -= 1
        tables.append(_accuracies(facts, models[:take]))
        models = models[take:]
    return tables


def _accuracies(facts: Facts, models: Sequence[str]) -> DataTable:
    rows = []
    for task in facts.tasks:
        cells = []
        for model in models:
            found = items_of(facts.models, model, "tasks", task)
            error = None if extreme(found) else n.number(found.get("standard_error"))
            none_or_all = f" {extreme(found).split()[0]}" if extreme(found) else ""
            cells.append(n.percent(found.get("accuracy")) + (f" ±{100 * error:.1f}" if error is not None else none_or_all))
        rows.append([shortened(task, 20), *cells])
    title, header = "Accuracy of tasks ± standard error", ["task", *[shortened(m, 12) for m in models]]
    return DataTable(title, header, rows, _unread(facts, models))


def _unread(facts: Facts, models: Sequence[str]) -> str:
    """The tasks and models of whose outputs no answer could be read, from any or from some, where none or all are right."""
    said: dict[tuple[str, str], list[str]] = {}
    for task in facts.tasks:
        for model in models:
            words = extreme(items_of(facts.models, model, "tasks", task))
            if "no answer could be read" in words:
                said.setdefault((task, words), []).append(_name(model))
    return "\n".join(f"{shortened(task, 20)}, {', '.join(names)}: {words}" for (task, words), names in said.items())

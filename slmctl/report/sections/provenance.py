"""What each model is and how it was made: size, passes over the corpus, where, by which slmctl and by which command."""

from __future__ import annotations

import shlex
from typing import Any

from slmctl.report import numbers as n
from slmctl.report.blocks import Block, Cell, DataTable, Row, Section
from slmctl.report.facts import Facts, dig, items_of
from slmctl.report.safe_text import visible

COMMIT = 12
"""Digits of a commit that are shown."""


def made(facts: Facts) -> Section | None:
    blocks: list[Block] = []
    rows: list[Row] = []
    for model in facts.columns:
        count, passes = dig(facts.models, model, "parameters"), n.number(dig(facts.arms, model, "epochs"))
        spent = items_of(facts.arms, model) or items_of(facts.models, model, "trained")
        if n.number(count) is None and passes is None and not spent:
            continue
        steps, seen = n.count(spent.get("steps")), n.count(spent.get("tokens_seen"))
        rows.append([model, n.count(count), steps, seen, n.general(passes, 3)])
    if any(cell != n.NONE for row in rows for cell in row[1:]):
        header = ["model", "parameters", "steps", "tokens seen", "epochs of the corpus"]
        dash = "not recorded, or not trained here; epochs of the corpus are told of arms alone"
        note = "Parameters that are shared count once; an epoch is one pass over all rows of the corpus."
        blocks.append(DataTable("What was trained", header, rows, note, dash=dash))
    found = {arm: items_of(facts.arms, arm, "made_on") for arm in facts.arms}
    found |= {m: items_of(facts.models, m, "trained", "made_on") for m in facts.columns if m not in facts.arms}
    alike: dict[str, list[str]] = {}
    for arm, where in found.items():
        if where:
            alike.setdefault(repr(where), []).append(arm)
    runs = {f"training of {', '.join(arms)}": found[arms[0]] for arms in alike.values()}
    if where := items_of(facts.results, "made_on"):
        runs["this evaluation"] = where
    if runs:
        header = ["what", "host", "device", "slmctl", "commit", "command"]
        dash = "not recorded; a commit is known where slmctl runs from a checkout"
        note = "Of a run that was started several times: the hosts of all starts, else the last."
        blocks.append(DataTable("Where and by what", header, [_run(name, w) for name, w in runs.items()], note, dash=dash))
    return Section("made", "How it was made", "", blocks) if blocks else None


def _run(name: str, where: dict[str, Any]) -> Row:
    ranks, starts = n.number(where.get("ranks")), n.number(where.get("starts"))
    device = visible(where.get("device") or "", 60)
    device = f"{ranks:.0f} × {device}" if ranks and ranks > 1 else device
    commit = visible(where.get("commit") or "", COMMIT).partition("…")[0]
    changed = "with changes of its own" if commit and where.get("changed") else ""
    command = [str(word) for word in where.get("command") or []]
    if command:
        command[0] = "slmctl" if command[0].rpartition("/")[2] in ("slmctl", "__main__.py") else command[0]
    hosts = ", ".join(visible(h, 60) for h in where.get("hosts") or [])
    return [
        Cell(name, f"started {starts:.0f} times" if starts and starts > 1 else ""),
        Cell(hosts, left=True),
        Cell(device, left=True),
        visible(where.get("version") or "", 30),
        Cell(commit, changed),
        Cell(visible(shlex.join(command), 300), left=True),
    ]

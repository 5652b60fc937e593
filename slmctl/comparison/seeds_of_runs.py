"""Arms of several runs that differ in their seed alone, summed up."""

from __future__ import annotations

import statistics
from typing import Any

from slmctl.comparison.runs import RunResults, precisions_of, seed_of
from slmctl.config.selection import reads_scores
from slmctl.system.hashes import sha256_json


def seed_groups(runs: list[RunResults], sets: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Arms of the same name, selection, settings and inputs and of other seeds, in one run (its `seeds`) or in several: mean,
    standard deviation (n - 1) and n of each held-out loss that can be compared. Of two with the same seed the first counts; n
    is 1 where there is no other."""
    groups: dict[str, list[tuple[RunResults, str]]] = {}
    for run in runs:
        first = {arm: entry["arm"] for entry in run.results.get("seeds") or [] for arm in entry["arms"]}
        for arm in run.results.get("arms", {}):
            members = groups.setdefault(sha256_json([first.get(arm, arm), _what_decides(run, arm)]), [])
            if all(seed_of(r, a) != seed_of(run, arm) for r, a in members):
                members.append((run, arm))
    return [_group_facts(members, sets) for members in groups.values()]


def _what_decides(run: RunResults, arm: str) -> dict[str, Any]:
    """All that an arm's result depends on, but for its seed."""
    facts, config = run.results["arms"][arm], run.config
    scored = reads_scores(facts["selection"])
    sections = ["model", "data", *(["reference", "score"] if scored else [])]
    settings = {k: v for k, v in (facts.get("settings") or {}).items() if k != "seed"}
    decide = ("the base", *(["the reference"] if scored else []))
    return {
        "selection": facts["selection"],
        "settings": settings,
        "target": run.results["target"],
        **{s: config.get(s) for s in sections},
        "precisions": {k: v for k, v in precisions_of(run).items() if k in decide or (scored and k.startswith("score set "))},
        "run": run.label if not config else None,  # nobody knows
    }


def _group_facts(members: list[tuple[RunResults, str]], sets: dict[str, dict[str, Any]]) -> dict[str, Any]:
    losses: dict[str, list[float]] = {}
    for run, arm in members:
        for name, facts in run.results["models"].get(arm, {"heldout": {}})["heldout"].items():
            if sets[name]["loss"] and facts.get("loss") is not None:
                losses.setdefault(name, []).append(facts["loss"])
    return {
        "arm": members[0][1],
        "runs": list(dict.fromkeys(r.label for r, _ in members)),
        "seeds": [seed_of(r, a) for r, a in members],
        "n": len(members),
        "heldout": {
            name: {"mean": statistics.fmean(v), "sd": statistics.stdev(v) if len(v) > 1 else None, "n": len(v)}
            for name, v in losses.items()
        },
    }

"""Several runs side by side: what of them can be compared, what differs between them, and what to be warned of."""

from __future__ import annotations

import json
from typing import Any

from slmctl.comparison.config_differences import config_differences
from slmctl.comparison.crossings_in_words import headline_of, seeds_headline
from slmctl.comparison.runs import RunResults, precisions_of
from slmctl.comparison.seeds_of_runs import seed_groups


def compare_runs(runs: list[RunResults]) -> dict[str, Any]:
    """All that is printed, as plain data: `runs`, `sets` (which held-out sets can be compared), `models` (a row for each model
    of each run), `tasks` (the best arm of each run), `seeds`, `differences` of the configurations and `warnings`.

    Losses are nats a token; intervals as results.json has them.
    """
    sets = compare_sets(runs)
    targets = {r.label: r.results["target"] for r in runs}
    warnings = [f"{name}: {s['reason']}" for name, s in sets.items() if s["reason"] is not None]
    if len(set(targets.values())) > 1:
        listing = ", ".join(f"{label}: {target}" for label, target in targets.items())
        warnings.insert(0, f"the runs are judged by different held-out sets ({listing}); their target losses cannot be compared")
    guessed = [name for name, s in sets.items() if len(s["runs"]) > 1 and s["loss"] and not s["by_content"]]
    if guessed:
        which = ", ".join(guessed)
        warnings.append(f"{which}: that the texts are the same in all runs is taken from how many documents and tokens they have")
    levels = {r.results.get("level") for r in runs}
    if len(levels) > 1:
        warnings.append(f"the intervals are of different levels ({', '.join(map(str, sorted(levels, key=str)))})")
    warnings += [f"{r.label} has no config.resolved.yaml: what its settings are is not known" for r in runs if not r.config]
    for run in runs:
        why = {arm: headline_of(facts.get("control")).get("why") for arm, facts in run.results.get("arms", {}).items()}
        warnings += [f"{run.label}: tokens to reach the control are not judged for {a}: {w}" for a, w in why.items() if w]
    warnings += [*_other_rows(runs, sets), *_other_points(runs), *_precisions_that_differ(runs)]
    seeds = seed_groups(runs, sets)
    if len(runs) > 1 and not any(g["n"] > 1 for g in seeds):
        warnings.append("each setting was run with one seed: a difference between runs may be the seed's")
    return {
        "runs": [_run_facts(r) for r in runs],
        "target": next(iter(targets.values())) if len(set(targets.values())) == 1 else None,
        "sets": sets,
        "models": [_model_facts(r, name) for r in runs for name in r.results["models"]],
        "tasks": best_tasks(runs),
        "seeds": seeds,
        "differences": config_differences({r.label: r.config for r in runs}),
        "warnings": warnings,
    }


def _other_rows(runs: list[RunResults], sets: dict[str, dict[str, Any]]) -> list[str]:
    """That a set which can be compared is packed otherwise, as it is with another seed."""
    said = (
        "is packed into other rows in each run, so that its documents have other text before them: a small difference may be that"
    )
    found = []
    for name in (n for n, s in sets.items() if s["loss"]):
        models = [next(iter(run.results["models"].values())) for run in runs]
        rows = {m["heldout"].get(name, {}).get("rows") for m in models} - {None}
        found += [f"{name} {said}"] if len(rows) > 1 else []
    return found


def _other_points(runs: list[RunResults]) -> list[str]:
    """That curves of one run have more points than another's: straight lines between few call every arm later."""
    points: dict[str, list[list[int]]] = {}
    for run in runs:
        found = [headline_of(facts.get("control")) for facts in run.results.get("arms", {}).values()]
        points[run.label] = [f["points"] for f in found if f and not f.get("why")]
    judged = {label: found for label, found in points.items() if found}
    if len(judged) < 2 or len({json.dumps(sorted(map(list, {tuple(p) for p in found}))) for found in judged.values()}) == 1:
        return []
    listing = ", ".join(f"{label}: {max(map(len, found))}" for label, found in judged.items())
    return [f"tokens to reach the control are read from other points of training in each run ({listing}): compare them roughly"]


def _precisions_that_differ(runs: list[RunResults]) -> list[str]:
    """What `precision: auto` was on the machine of each run, where that was not the same."""
    found: dict[str, dict[str, str]] = {}
    for run in runs:
        for what, precision in precisions_of(run).items():
            found.setdefault(what, {})[run.label] = precision
    return [
        f"{what} is in other precision ({', '.join(f'{label}: {p}' for label, p in by_run.items())}): a part of the differences "
        "may be the arithmetic's"
        for what, by_run in found.items()
        if len(set(by_run.values())) > 1
    ]


def _run_facts(run: RunResults) -> dict[str, Any]:
    results = run.results
    facts = {k: results.get(k) for k in ("pipeline", "seed", "target", "level", "notes", "costs", "precisions")}
    return {"run": run.label, "path": str(run.path), **facts, "configured": bool(run.config)}


def _model_facts(run: RunResults, name: str) -> dict[str, Any]:
    model, arm = run.results["models"][name], run.results.get("arms", {}).get(name, {})
    control = headline_of(arm.get("control"))
    return {
        "run": run.label,
        "model": name,
        "kind": model.get("kind", "arm"),
        "seed": arm.get("seed", run.results.get("seed")) if arm else None,
        "selection": arm.get("selection"),
        "heldout": model["heldout"],
        "tasks": model.get("tasks", {}),
        **{k: arm.get(k) for k in ("steps", "tokens_seen", "tokens_selected", "flops", "training_seconds")},
        "control": control.get("arm"),
        **{k: control.get(k) for k in ("tokens_to_reach", "times_fewer_tokens", "times_fewer_flops_all", "interval", "why")},
        "over_seeds": _over_seeds(run.results, name),
    }


def _over_seeds(results: dict[str, Any], arm: str) -> dict[str, Any] | None:
    """What it took an arm's seeds to reach their control, at the first of them."""
    found = seeds_headline(results, arm)
    if not found or found["arms"][0][0] != arm:
        return None
    return {k: found[k] for k in ("seeds", "tokens_to_reach", "times_fewer_tokens", "times_fewer_flops_all", "interval")}


# --- what can be compared ---


def compare_sets(runs: list[RunResults]) -> dict[str, dict[str, Any]]:
    """For each held-out set: `runs` that have it, whether their `loss`es and `bits_per_byte` can be compared, and the
    `reason` why not; `by_content`: whether their tokens are known to be the same. Where that is not known, or they are packed in
    another order (another seed), sets of equally many documents and predicted tokens, measured in one precision, are taken for
    the same."""
    found: dict[str, dict[str, tuple[Any, Any, Any, Any]]] = {}
    for run in runs:
        first, contents = next(iter(run.results["models"].values())), run.results.get("sets") or {}
        asked = run.config.get("eval")
        for name, facts in first["heldout"].items():
            content = (contents.get(name) or {}).get("content")
            precision = facts.get("precision") or (asked.get("precision") if isinstance(asked, dict) else None)
            sizes = (facts.get("documents"), facts.get("predicted_tokens"), content, precision)
            found.setdefault(name, {})[run.label] = sizes
    return {name: _set_facts(sizes) for name, sizes in found.items()}


def _set_facts(sizes: dict[str, tuple[Any, Any, Any, Any]]) -> dict[str, Any]:
    documents, tokens, contents, precisions = ({s[i] for s in sizes.values()} for i in range(4))
    listing = ", ".join(f"{label}: {_count(d)} documents, {_count(n)} tokens" for label, (d, n, *_) in sizes.items())
    reason = None
    if len(precisions - {None}) > 1:
        listing = ", ".join(f"{label}: {p or 'not known'}" for label, (*_, p) in sizes.items())
        reason = f"it was measured in other precisions ({listing}); its losses cannot be compared"
    elif len(documents) > 1:
        reason = f"its texts differ between the runs ({listing}); its losses cannot be compared"
    elif len(tokens) > 1:
        reason = (
            f"it is cut into other tokens or rows ({listing}); its losses cannot be compared, bits per byte can where its texts "
            "are the same"
        )
    return {
        "runs": list(sizes),
        "loss": reason is None,
        "bits_per_byte": len(documents) == 1 and len(precisions - {None}) < 2,
        "reason": reason,
        "by_content": contents != {None} and len(contents) == 1,
    }


def _count(n: Any) -> str:
    return format(n, ",") if isinstance(n, int) else "?"


def best_tasks(runs: list[RunResults]) -> list[dict[str, Any]]:
    """For each task and run the most accurate arm; `best` marks the highest of all runs, where they had the same items, shots
    and version."""
    rows: list[dict[str, Any]] = []
    names = dict.fromkeys(t for r in runs for m in r.results["models"].values() for t in m.get("tasks", {}))
    for task in names:
        here: list[dict[str, Any]] = []
        for run in runs:
            models = run.results["models"]
            arms = [(n, m["tasks"][task]) for n, m in models.items() if m.get("kind", "arm") == "arm" and task in m["tasks"]]
            arms = [(n, t) for n, t in arms if t.get("accuracy") is not None]
            if arms:
                name, facts = max(arms, key=lambda a: float(a[1]["accuracy"]))
                here.append({"task": task, "run": run.label, "arm": name, **facts})
        same = len({(r.get("items"), r.get("shots"), r.get("version"), r.get("metric")) for r in here}) == 1
        top = max((r["accuracy"] for r in here), default=None)
        rows += [{**r, "comparable": same, "best": same and r["accuracy"] == top} for r in here]
    return rows

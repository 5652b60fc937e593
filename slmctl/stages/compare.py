"""compare: several runs side by side, what differs between them, and what cannot be compared."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from slmctl.comparison.reaching_words import headline_of, seeds_headline
from slmctl.report.compare_tables import show
from slmctl.system.console import out
from slmctl.system.errors import ConfigError, CorruptError, InputError, MismatchError
from slmctl.system.files import read_json, sha256_json

SCHEMA = 2
"""Of results.json."""
_NOT_COMPARED = {("name",), ("output_dir",)}
"""Keys of the configuration that differ between any two runs, or change nothing."""
_ABSENT: Any = object()


@dataclass(frozen=True)
class RunResults:
    """What compare reads of one run: `label` is what it is called here."""

    label: str
    path: Path
    results: dict[str, Any]
    config: dict[str, Any]


def compare(paths: list[Path], as_json: bool = False) -> None:
    """Prints the runs whose output_dirs are `paths` side by side, or the same as JSON.

    Raises `InputError` where a run has no results, `MismatchError` where they are of another schema, `ConfigError` where a
    run is given twice.
    """
    comparison = compare_runs(load_runs(paths))
    if as_json:
        out.print(json.dumps(comparison, indent=2, ensure_ascii=False), soft_wrap=True, markup=False)
    else:
        show(comparison, out)


def load_runs(paths: list[Path]) -> list[RunResults]:
    """The runs, each called by its folder's name, or by its whole path where two have the same."""
    resolved = [p.resolve() for p in paths]
    for path, given in zip(resolved, paths, strict=True):
        if resolved.count(path) > 1:
            raise ConfigError(f"{given} is given twice.")
    names = [p.name for p in resolved]
    labels = [n if names.count(n) == 1 else str(given) for n, given in zip(names, paths, strict=True)]
    return [_load(label, path) for label, path in zip(labels, paths, strict=True)]


def _load(label: str, path: Path) -> RunResults:
    if not path.is_dir():
        raise InputError(f"{path} is no folder. Give the output_dir of each run.")
    file = path / "eval" / "results.json"
    if not file.is_file():
        raise InputError(f"{file} does not exist. Run `slmctl eval` on this run's configuration first.")
    results = read_json(file)
    found = results.get("schema", 1) if isinstance(results, dict) else None
    if found != SCHEMA:
        newer = isinstance(found, int) and found > SCHEMA
        advice = "Use the newer slmctl that wrote it." if newer else "Run `slmctl eval` on this run's configuration again."
        raise MismatchError(f"{file}: found schema {found}, wanted {SCHEMA}. {advice}")
    resolved = path / "config.resolved.yaml"
    try:
        config = yaml.safe_load(resolved.read_text(encoding="utf-8")) if resolved.is_file() else {}
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise CorruptError(f"{resolved} is not valid YAML ({e}). Run any stage of this run again to write it anew.") from e
    return RunResults(label, path, results, config if isinstance(config, dict) else {})


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
        for what, precision in _precisions(run).items():
            found.setdefault(what, {})[run.label] = precision
    return [
        f"{what} is in other precision ({', '.join(f'{label}: {p}' for label, p in by_run.items())}): a part of the differences "
        "may be the arithmetic's"
        for what, by_run in found.items()
        if len(set(by_run.values())) > 1
    ]


def _precisions(run: RunResults) -> dict[str, str]:
    """By what was made in it; of results that tell."""
    told = run.results.get("precisions") or {}
    arms = {f"arm {a}": (f.get("settings") or {}).get("precision") for a, f in run.results.get("arms", {}).items()}
    scores = {f"score set {n}": p for n, p in (told.get("scores") or {}).items()}
    models = {f"the {n}": told.get(n) for n in ("base", "reference")}
    return {what: p for what, p in {**models, **scores, **arms}.items() if isinstance(p, str)}


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


# --- seeds ---


def seed_groups(runs: list[RunResults], sets: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Arms of the same name, selection, settings and inputs and of other seeds, in one run (its `seeds`) or in several: mean,
    standard deviation (n - 1) and n of each held-out loss that can be compared. Of two with the same seed the first counts; n
    is 1 where there is no other."""
    groups: dict[str, list[tuple[RunResults, str]]] = {}
    for run in runs:
        first = {arm: entry["arm"] for entry in run.results.get("seeds") or [] for arm in entry["arms"]}
        for arm in run.results.get("arms", {}):
            members = groups.setdefault(sha256_json([first.get(arm, arm), _what_decides(run, arm)]), [])
            if all(_seed(r, a) != _seed(run, arm) for r, a in members):
                members.append((run, arm))
    return [_group_facts(members, sets) for members in groups.values()]


def _seed(run: RunResults, arm: str) -> Any:
    return run.results["arms"][arm].get("seed", run.results["seed"])


def _what_decides(run: RunResults, arm: str) -> dict[str, Any]:
    """All that an arm's result depends on, but for its seed."""
    facts, config = run.results["arms"][arm], run.config
    scored = facts["selection"].get("criterion") not in ("all", "random")
    sections = ["model", "data", *(["reference", "score"] if scored else [])]
    settings = {k: v for k, v in (facts.get("settings") or {}).items() if k != "seed"}
    decide = ("the base", *(["the reference"] if scored else []))
    return {
        "selection": facts["selection"],
        "settings": settings,
        "target": run.results["target"],
        **{s: config.get(s) for s in sections},
        "precisions": {k: v for k, v in _precisions(run).items() if k in decide or (scored and k.startswith("score set "))},
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
        "seeds": [_seed(r, a) for r, a in members],
        "n": len(members),
        "heldout": {
            name: {"mean": statistics.fmean(v), "sd": statistics.stdev(v) if len(v) > 1 else None, "n": len(v)}
            for name, v in losses.items()
        },
    }


# --- configurations ---


def config_differences(configs: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Keys whose values differ, with each run's value; `present` says which runs have the key at all. A part that a run lacks
    as a whole is one key, and what every arm has from `pretrain` is told once."""
    known = {label: c for label, c in configs.items() if c}
    found = list(_differing((), known)) if len(known) > 1 else []
    by_path = dict(found)
    rows = []
    for path, values in found:
        inherited = path[:2] == ("pretrain", "arms") and by_path.get(("pretrain", *path[3:])) == values
        if path not in _NOT_COMPARED and not inherited:
            present = [label for label, v in values.items() if v is not _ABSENT]
            rows.append({"key": ".".join(map(str, path)), "present": present, "values": {p: values[p] for p in present}})
    return rows


def _differing(path: tuple[Any, ...], values: dict[str, Any]) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    parts = list(values.values())
    if all(p == parts[0] for p in parts[1:]):
        return
    if all(isinstance(p, dict) for p in parts):
        for key in dict.fromkeys(k for p in parts for k in p):
            yield from _differing((*path, key), {label: p.get(key, _ABSENT) for label, p in values.items()})
    elif all(isinstance(p, list) for p in parts) and len({len(p) for p in parts}) == 1:
        for i in range(len(parts[0])):
            yield from _differing((*path, i), {label: p[i] for label, p in values.items()})
    else:
        yield path, values

"""Made-up results of schema 2 that agree with themselves: what the report is tested with, and a page to look at.

`python tests/report/made_results.py FOLDER` writes a page of them.
"""

from __future__ import annotations

import math
import random

ARMS = {
    "slm": {"criterion": "excess_loss", "ratio": 0.6},
    "clm": {"criterion": "all", "ratio": 1.0},
    "random": {"criterion": "random", "ratio": 0.6},
}
SETS = ("target", "general")
CATEGORIES = {"H→H": 0.14, "L→H": 0.09, "H→L": 0.29, "L→L": 0.48}
STEPS = 120
BATCH = 4096
MEASURED = {"tokens": 8128, "rows": "first 64", "precision": "float32"}
TASKS = ("gsm8k", "svamp", "asdiv", "mathqa")


def _end(name, criterion, heldout, rng):
    """Final loss: selection is better on the target and worse elsewhere."""
    gain = {"all": 0.0, "random": 0.012}.get(criterion, -0.03 if heldout == "target" else 0.12)
    return (1.054 if heldout == "target" else 0.861) + gain + rng.uniform(-0.004, 0.004) + (0.002 * len(name) % 0.004)


def _course(end, share):
    """Loss at a share of training, from 2.86 down to `end`."""
    return end + (2.86 - end) * math.exp(-4.5 * share) * (1 - share) if share < 1 else end


def _interval(x, half):
    return [x - half, x + half]


def _measured(loss):
    return {
        "loss": loss,
        "perplexity": math.exp(loss),
        "bits_per_byte": loss / math.log(2) / 3.7,
        "predicted_tokens": 25_344,
        "documents": 400,
        "effective_documents": 143.2,
        "interval": _interval(loss, 0.017),
        "bits_per_byte_interval": _interval(loss / math.log(2) / 3.7, 0.0066),
    }


def made_results(seed=0, arms=None, everything=True):
    """results.json of `arms` (name to {criterion, ratio}). Without `everything` only what must be there."""
    arms = ARMS if arms is None else arms
    rng = random.Random(seed)
    ends = {a: {s: _end(a, c["criterion"], s, rng) for s in SETS} for a, c in arms.items()}
    losses = {"base": {"target": 2.857, "general": 2.833}, "reference": {"target": 1.014, "general": 1.071}} | ends
    models = {}
    for name, found in losses.items():
        kind = name if name in ("base", "reference") else "arm"
        tasks = {t: _task(rng, 0.02 if name == "base" else 0.32 - 0.1 * found["target"] / 1.05) for t in TASKS}
        models[name] = {
            "kind": kind,
            "parameters": 134_515_008,
            "heldout": {s: _measured(x) for s, x in found.items()},
            "rolling": {s: {"bits_per_byte": x / math.log(2) / 3.6, "window": 1024} for s, x in found.items()}
            if everything
            else {},
            "tasks": tasks if everything else {},
        }
    results = {
        "pipeline": "math-smollm2",
        "seed": seed,
        "target": "target",
        "schema": 2,
        "level": 0.95,
        "notes": [],
        "versions": {"python": "3.12.4", "slmctl": "0.4.0", "torch": "2.13.0", "transformers": "5.23.0", "pyarrow": "26.0.1"},
        "models": models,
        "arms": {a: _arm(c, ends[a], rng, everything) for a, c in arms.items()},
        "differences": [],
        "task_differences": [],
        "costs": {},
        "alarms": [],
        "contamination": {"run": 13, "overlap": 0.5, "heldout": {s: _looked_for(s) for s in SETS}, "not_checked": {}},
        "made_on": MADE_ON | {"command": ["/home/ada/.venv/bin/slmctl", "eval", "math.yaml"]},
    }
    _compare(results, arms, ends, everything)
    if everything:
        _add_everything(results, arms, ends, rng)
    return results


MADE_ON = {
    "hosts": ["worker17.cluster.example"],
    "device": "NVIDIA H100 80GB HBM3",
    "ranks": 8,
    "version": "0.4.0",
    "commit": "9f1c2ab47d5e90b3c6a8f2d1e4b7091c3a5d6e8f",
    "changed": False,
    "command": ["/home/ada/.venv/bin/slmctl", "run", "math.yaml", "-o", "pretrain.tokens=500000"],
    "starts": 1,
}


def _looked_for(heldout):
    nothing = {"exact": 0, "overlap": 0}
    return {"documents": 400, "curated": nothing, "corpus": {"exact": 2, "overlap": 1} if heldout == "general" else nothing}


def _task(rng, accuracy):
    accuracy = round(200 * min(0.95, max(0.01, accuracy + rng.uniform(-0.05, 0.05)))) / 200
    error = math.sqrt(accuracy * (1 - accuracy) / 200)
    return {
        "accuracy": accuracy,
        "standard_error": error,
        "items": 200,
        "shots": 8,
        "version": "1",
        "metric": "accuracy",
        "prompts_cut": 0,
    }


def _arm(chosen, ends, rng, everything):
    share = 1.0 if chosen["criterion"] == "all" else chosen["ratio"]
    evals = []
    for step in range(0, STEPS + 1, 10):
        at = {s: _course(x, step / STEPS) for s, x in ends.items()}
        seen = {"step": step, "tokens_seen": step * BATCH, "tokens_selected": int(step * BATCH * share)}
        evals.append({**seen, "heldout": at, "measured": {s: dict(MEASURED) for s in SETS}})
    checkpoints = [
        {
            **{k: e[k] for k in ("step", "tokens_seen", "tokens_selected")},
            "heldout": {s: _measured(x) for s, x in e["heldout"].items()},
        }
        for e in evals
        if e["step"] % 30 == 0 and e["step"]
    ]
    aligned = chosen["criterion"] not in ("all", "random")
    found = {
        "selection": {"group_rows": 8, "scope": "group", "reference": "curated" if aligned else None, **chosen},
        "seed": 0,
        "settings": {"lr": 0.002},
        "steps": STEPS,
        "tokens_seen": STEPS * BATCH,
        "tokens_selected": int(STEPS * BATCH * share),
        "training_seconds": 410.0,
        "flops": 3.1e12 * (1.0 if aligned else 0.92),
        "epochs": 1.25,
        "own_reference": True if aligned else None,
        "gradient": {"clip": 1.0, "clipped_share": 0.42 if aligned else 0.21, "mean_factor": 0.9, "median_norm": 0.93},
        "made_on": MADE_ON,
        "evals": evals,
        "checkpoints": checkpoints if everything else [],
        "selected": {
            "ratio": share,
            "overlap_with_random": 0.613 if aligned else None,
            "expected_overlap": 0.6 if aligned else None,
            "mean_excess_selected": 0.41 if aligned else 0.1,
            "mean_excess_unselected": -0.36 if aligned else None,
            "median_excess": 0.12 if aligned else None,
            "correlation_first": 0.912,
            "correlation_last": 0.871,
            "skipped_steps": 0,
        },
    }
    if everything:
        found["kinds"] = _kinds(share, aligned, rng)
    return found


def _kinds(share, aligned, rng):
    labels = {
        "by_kind": ["words", "numbers", "punctuation", "white space", "capitals", "other"],
        "by_frequency": ["top 10", "11 to 100", "101 to 1,000", "rarer"],
        "by_position": ["1 to 16", "17 to 32", "33 to 64", "65 to 128"],
    }
    out = {}
    for key, names in labels.items():
        out[key] = []
        for label in names:
            seen = rng.randrange(20_000, 120_000)
            kept = min(1.0, share + (rng.uniform(-0.25, 0.25) if aligned else 0.0))
            out[key].append({"label": label, "seen": seen, "selected": int(seen * kept)})
    return out


def _compare(results, arms, ends, everything):
    control = next((a for a, c in arms.items() if c["criterion"] == "all"), None)
    controls = [a for a, c in arms.items() if c["criterion"] in ("all", "random")]
    for s in SETS:
        for a in arms:
            for b in controls:
                if a != b and not (a in controls and controls.index(a) > controls.index(b)):
                    d = ends[a][s] - ends[b][s]
                    results["differences"].append(
                        {"set": s, "a": a, "b": b, "difference": d, "interval": _interval(d, 0.009), "documents": 400}
                    )
        for a in arms:
            d = ends[a][s] - results["models"]["base"]["heldout"][s]["loss"]
            found = {"set": s, "a": a, "b": "base", "difference": d, "interval": _interval(d, 0.02), "documents": 400}
            results["differences"].append(found)
    if control is None:
        return
    goal = ends[control]["target"]
    flops = results["arms"][control]["flops"]
    for a, facts in results["arms"].items():
        seen = next((e["tokens_seen"] for e in facts["evals"] if e["heldout"]["target"] <= goal), None)
        share = None if seen is None else seen / facts["tokens_seen"]
        spent = None if share is None else share * facts["flops"]
        everything_ = None if spent is None else spent + (0.55e12 if a not in controls else 0.0)
        facts["control"] = {
            "arm": control,
            "target_loss": goal,
            "tokens_to_reach": seen,
            "selected_tokens_to_reach": None if seen is None else seen * facts["tokens_selected"] / facts["tokens_seen"],
            "times_fewer_tokens": None if share is None else 1 / share,
            "flops_to_reach": spent,
            "times_fewer_flops": None if spent is None else flops / spent,
            "flops_to_reach_all": everything_,
            "times_fewer_flops_all": None if everything_ is None else flops / everything_,
            "why": None,
            "points": [0, *(BATCH * step for step in range(30, STEPS + 1, 30))],
        }
        facts["control"]["interval"] = _sure(facts["control"])
    results["costs"] = {"reference_tokens": 98_304} if everything else {}


def _sure(control):
    """Ends a tenth to either side; none where it was never reached."""
    keys = ("tokens_to_reach", "times_fewer_tokens", "times_fewer_flops", "times_fewer_flops_all")
    found = {k: None if control[k] is None else [0.9 * control[k], 1.1 * control[k]] for k in keys}
    reached = control["tokens_to_reach"] is not None
    found["tokens_to_reach"] = found["tokens_to_reach"] or [None, None]
    return {"level": 0.95, "resamples": 1000, "reached": float(reached), "open": not reached, **found}


def _add_everything(results, arms, ends, rng):
    results["notes"] = ["clm was trained with another eval_every than the configuration has now"]
    results["alarms"] = [
        {"name": "cost", "level": "bad", "text": "With reference and scoring counted, slm costs more than clm saves."},
        {"name": "seeds", "level": "warning", "text": "There is one seed. Another seed may turn small differences round."},
        {"name": "forgetting", "level": "note", "text": "slm is 0.12 nats worse than clm on general: what it gives, it takes."},
        {"name": "alignment", "level": "good", "text": "Live and reference losses correlate well (0.91): the join is sound."},
    ]
    results["costs"] = {
        "reference_tokens": 98_304,
        "reference_flops": 0.31e12,
        "scored_tokens": {"curated": 1_204_000},
        "scoring_flops": {"curated": 0.24e12},
    }
    names = list(arms)
    for t in TASKS:
        for b in names[1:]:
            d = results["models"][names[0]]["tasks"][t]["accuracy"] - results["models"][b]["tasks"][t]["accuracy"]
            p = min(1.0, 2 * math.exp(-abs(d) * 40))
            results["task_differences"].append(
                {"task": t, "a": names[0], "b": b, "difference": d, "interval": _interval(d, 0.05), "p": p, "items": 200}
            )
    kept = [0, 30, 60, 90, 120]
    seen = [s * BATCH for s in kept]
    results["diagnostics"] = {
        "set": "corpus",
        "tokens": 65_536,
        "rows": 512,
        "dynamics": {a: _dynamics(kept, seen, rng) for a in arms},
        "fixed_mask": {
            "description": "the 60% of tokens with the highest excess loss under the base",
            "share": 0.6,
            "arms": {
                a: {
                    "steps": kept,
                    "tokens_seen": seen,
                    "selected": [_course(1.9 - 0.1 * (c["criterion"] == "excess_loss"), s / STEPS) for s in kept],
                    "unselected": [_course(1.2 + 0.2 * (c["criterion"] == "excess_loss"), s / STEPS) for s in kept],
                }
                for a, c in arms.items()
            },
        },
        "fit": {a: _fit(results["arms"][a]) for a in arms},
        "matrix": {
            a: {"steps": kept, "perplexity": [[40 * math.exp(-0.5 * j) + 2 + 0.4 * i for j in range(5)] for i in range(5)]}
            for a, c in arms.items()
            if c["criterion"] == "excess_loss"
        },
    }
    base = ends[names[0]]["target"]
    points = [
        {
            "value": r,
            "arm": f"slm-{round(100 * r)}",
            "target_loss": base + 0.4 * (r - 0.6) ** 2,
            "general": {"general": 0.95 + 0.2 * (1 - r)},
        }
        for r in (0.4, 0.5, 0.6, 0.7, 0.8)
    ]
    for p in points:
        p["interval"] = _interval(p["target_loss"], 0.017)
    results["sweeps"] = [{"arm": names[0], "key": "selection.ratio", "points": points}]
    results["seeds"] = [
        {
            "arm": names[0],
            "arms": [names[0], f"{names[0]}-seed-1", f"{names[0]}-seed-2"],
            "target_loss": {"mean": base, "sd": 0.0043, "n": 3},
        }
    ]


def _dynamics(kept, seen, rng):
    course = {"H→H": (4.6, 4.1), "L→H": (1.1, 2.3), "H→L": (3.9, 0.8), "L→L": (0.9, 0.25)}
    categories = {}
    for c, share in CATEGORIES.items():
        first, last = course[c]
        mean = [last + (first - last) * math.exp(-3 * s / STEPS) for s in kept]
        categories[c] = {"share": share, "tokens": int(65_536 * share), "mean": mean}
    fluctuating = [
        {
            "text": text,
            "before": before,
            "category": c,
            "losses": [max(0.05, 2.2 + 1.6 * math.sin(i * (1.3 + k)) + rng.uniform(-0.3, 0.3)) for i in range(len(kept))],
            "position": 40 + k,
        }
        for k, (text, before, c) in enumerate(
            [
                (" apples", "Mary buys 12", "H→H"),
                (" the", "and then he sat under", "L→L"),
                ("QZX", "noise follows: JKQ", "H→H"),
                (" because", "She was late", "L→H"),
                ("7", "the total is 4", "H→L"),
                ("\n", "end of the line.", "L→L"),
            ]
        )
    ]
    return {"steps": kept, "tokens_seen": seen, "categories": categories, "fluctuating": fluctuating}


def _fit(facts):
    target = [c["heldout"]["target"]["loss"] for c in facts["checkpoints"]]
    x = [1.1 * y + 0.3 + 0.01 * (-1) ** i for i, y in enumerate(target)]
    other = [1.6 + 0.05 * i + 0.1 * y for i, y in enumerate(target)]
    return {
        "x": x,
        "y": target,
        "slope": 1 / 1.1,
        "intercept": -0.3 / 1.1,
        "r2": 0.993,
        "x_unselected": other,
        "slope_unselected": -0.4,
        "intercept_unselected": 2.1,
        "r2_unselected": 0.41,
        "y_name": "target loss, nats a token",
    }


TEXT = (
    "Mary has 12 apples. She gives 5 of them to her brother and buys 9 more at the market. How many apples does she have now?\n"
    "She has 12 - 5 = 7 apples left, and after the market she has 7 + 9 = 16 apples. The answer is 16.\n"
)


def made_highlights(arms=("slm", "clm", "random"), documents=4, repeat=3, seed=0, texts=None):
    """highlights.json: `documents` texts, cut at spaces; or one document for each list of tokens in `texts`."""
    rng = random.Random(seed)
    if texts is None:
        words = TEXT.replace(" ", "\0 ").replace("\n", "\0\n\0").split("\0")
        texts = [[w for w in words if w] * repeat for _ in range(documents)]
    found = []
    for i, tokens in enumerate(texts):
        size = len(tokens)
        ref = [None if k == 0 else round(rng.expovariate(0.8), 4) for k in range(size)]
        live = {a: [None if r is None else round(max(0.0, r + rng.gauss(0.1, 0.6)), 4) for r in ref] for a in arms}
        selected = {a: [0 if r is None else int(a == "clm" or rng.random() < 0.6) for r in ref] for a in arms}
        inner = {"text": tokens, "position": list(range(size)), "ref": ref, "live": live, "selected": selected}
        found.append({"set": "corpus" if i % 2 else "target", "title": f"document {17 + 31 * i}", "tokens": inner})
    return {"arms": list(arms), "step": dict.fromkeys(arms, STEPS), "documents": found}


def made_logs(arms=ARMS, steps=400, seed=0):
    """metrics.jsonl of each arm, as records."""
    rng = random.Random(seed)
    logs = {}
    for arm, chosen in arms.items():
        plain = chosen["criterion"] == "all"
        logs[arm] = [
            {
                "step": s,
                "tokens_seen": s * BATCH,
                "loss_selected": _course(1.1 + (0 if plain else 0.3), s / steps) + rng.gauss(0, 0.03),
                "loss_unselected": None if plain else _course(1.7, s / steps / 2) + rng.gauss(0, 0.03),
                "correlation": 0.92 - 0.05 * s / steps + rng.gauss(0, 0.01),
                "grad_norm": 0.5 + 2 * math.exp(-s / 40) + abs(rng.gauss(0, 0.1)),
            }
            for s in range(1, steps + 1)
        ]
    return logs


CONFIG = "name: math-smollm2\noutput_dir: runs/math-smollm2\nseed: 0\ndata:\n  seq_len: 1024\n  curated: {path: curated.jsonl}\n"


def main():
    import sys
    from pathlib import Path

    from slmctl.report.page import make_page

    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    page = make_page(
        made_results(), made_highlights(), made_logs(), CONFIG * 6, ["slm trained on 44.9% of the known noise tokens"]
    )
    for name, text in {**page.figures, "index.html": page.html}.items():
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

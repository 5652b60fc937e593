"""Every alarm rings where it should and is silent where it should not, on one base of results that is modified."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from typing import Any

import pytest

from slmctl.comparison.alarms.alarms import RULES, alarms
from slmctl.comparison.comparing import count, holm, nats

Results = dict[str, Any]


def model(kind: str, target: float, general: float) -> dict[str, Any]:
    losses = {"target": (target, 200), "general": (general, 300)}
    heldout = {h: {"loss": loss, "documents": n, "interval": [loss - 0.05, loss + 0.05]} for h, (loss, n) in losses.items()}
    return {"kind": kind, "heldout": heldout, "tasks": {"sums": {"accuracy": 0.3, "items": 100, "prompts_cut": 0}}}


def arm(criterion: str, ratio: float) -> dict[str, Any]:
    return {
        "selection": {"criterion": criterion, "ratio": ratio, "group_rows": 8, "scope": "group", "reference": None},
        "seed": 0,
        "settings": {"lr": 1e-3, "seed": 0},
        "steps": 1000,
        "tokens_seen": 500_000,
        "tokens_selected": int(500_000 * ratio),
        "evals": [{"step": s, "heldout": {"target": 3 - s / 500, "general": 2.0}} for s in (0, 500, 1000)],
        "selected": {"ratio": ratio, "skipped_steps": 0},
    }


def difference(heldout: str, a: str, b: str, gap: float, reach: float) -> dict[str, Any]:
    return {"set": heldout, "a": a, "b": b, "difference": gap, "interval": [gap - reach, gap + reach], "documents": 200}


def leaked(exact: int, overlap: int, documents: int) -> dict[str, Any]:
    """As results.json has it: documents of the target that stand in the corpus."""
    clean = {"exact": 0, "overlap": 0}
    found = {"documents": documents, "curated": clean, "corpus": {"exact": exact, "overlap": overlap}}
    return {"run": 13, "overlap": 0.5, "heldout": {"target": found}, "not_checked": {}}


def clean() -> dict[str, Any]:
    """Both sets were looked for, and nothing was found."""
    sets = {h: leaked(0, 0, 200)["heldout"]["target"] for h in ("target", "general")}
    return leaked(0, 0, 200) | {"heldout": sets}


def shifted(by: float) -> dict[str, float]:
    """Correlations by shift of losses that belong to the token before."""
    return {"-2": 0.1, "-1": by, "+0": 0.1, "+1": 0.0, "+2": 0.0}


def seeded(name: str, mean: float, sd: float = 0.005) -> dict[str, Any]:
    return {"arm": name, "arms": [name], "target_loss": {"mean": mean, "sd": sd, "n": 3}}


@pytest.fixture
def results() -> Results:
    """Nothing to complain of: three arms, three seeds each, slm ahead everywhere."""
    arms = {"slm": arm("excess_loss", 0.6), "clm": arm("all", 1.0), "random": arm("random", 0.6)}
    arms["slm"]["selected"] |= {
        "overlap_with_random": 0.61,
        "expected_overlap": 0.6,
        "mean_excess_selected": 0.8,
        "mean_excess_unselected": -0.1,
        "median_excess": 0.2,
        "correlation_first": 0.71,
        "correlation_last": 0.88,
        "correlation_by_shift": {"-2": 0.0, "-1": 0.1, "+0": 0.88, "+1": 0.1, "+2": 0.0},
    }
    arms["slm"]["own_reference"] = True
    for facts in arms.values():
        facts["gradient"] = {"clip": 1.0, "clipped_share": 0.1, "mean_factor": 0.99, "median_norm": 0.6}
    arms["slm"]["control"] = {
        "arm": "clm",
        "target_loss": 1.05,
        "tokens_to_reach": 250_000.0,
        "times_fewer_tokens": 2.0,
        "times_fewer_flops": 1.8,
        "times_fewer_flops_all": 1.2,
        "points": [0, 125_000, 250_000, 375_000, 500_000],
        "interval": {
            **{"level": 0.95, "resamples": 1000, "reached": 1.0, "open": False, "tokens_to_reach": [220_000.0, 290_000.0]},
            **{"times_fewer_tokens": [1.7, 2.3], "times_fewer_flops": [1.5, 2.1], "times_fewer_flops_all": [1.05, 1.4]},
        },
    }
    return {
        "schema": 2,
        "level": 0.95,
        "target": "target",
        "models": {
            "base": model("base", 2.8, 2.5),
            "reference": model("reference", 0.9, 2.6),
            "slm": model("arm", 1.0, 0.8),
            "clm": model("arm", 1.05, 0.9),
            "random": model("arm", 1.1, 0.95),
        },
        "arms": arms,
        "differences": [
            difference("target", "slm", "clm", -0.05, 0.02),
            difference("target", "random", "slm", 0.1, 0.03),
            difference("general", "slm", "clm", -0.1, 0.04),
            difference("general", "slm", "base", -1.7, 0.1),
            difference("target", "reference", "base", -1.9, 0.1),
        ],
        "contamination": clean(),
        "task_differences": [{"task": "sums", "a": "slm", "b": "clm", "difference": 0.04, "p": 0.01, "items": 100}],
        "seeds": [seeded("slm", 1.0), seeded("clm", 1.05), seeded("random", 1.1)],
    }


def said(results: Results, name: str) -> list[dict[str, str]]:
    return [a for a in alarms(results) if a["name"] == name]


def put(path: str, value: Any) -> Callable[[Results], None]:
    """Sets results[a][b]… for `a.b…`; numbers index lists."""

    def change(results: Results) -> None:
        *way, last = path.split(".")
        at: Any = results
        for key in way:
            at = at[int(key) if key.isdigit() else key]
        at[int(last) if last.isdigit() else last] = value

    return change


def drop(*names: str) -> Callable[[Results], None]:
    """Without these arms."""

    def change(results: Results) -> None:
        for name in names:
            del results["arms"][name], results["models"][name]
            for key in ("differences", "task_differences"):
                results[key] = [d for d in results[key] if name not in (d["a"], d["b"])]
            results["seeds"] = [s for s in results["seeds"] if s["arm"] != name]

    return change


def both(*changes: Callable[[Results], None]) -> Callable[[Results], None]:
    def change(results: Results) -> None:
        for one in changes:
            one(results)

    return change


def on_tasks(*p_T: float) -> list[dict[str, Any]]:
    """Tests of slm with clm and random in turn, slm ahead in each."""
    return [{"task": f"t{i}", "a": "slm", "b": ("clm", "random")[i % 2], "difference": 0.04, "p": p} for i, p in enumerate(p_T)]


def many(results: Results) -> None:
    for i in range(4):
        results["arms"][f"slm{i}"] = arm("excess_loss", 0.6)
        results["models"][f"slm{i}"] = model("arm", 1.0, 0.8)


def drop_key(path: str, key: str) -> Callable[[Results], None]:
    def change(results: Results) -> None:
        at: Any = results
        for part in path.split("."):
            at = at[part]
        del at[key]

    return change


def over_seeds(number: int) -> dict[str, Any]:
    """What it took slm's seeds to reach clm's, as `seeds` has it."""
    return {
        **{"arm": "clm", "arms": [["slm", "clm"]] * number, "seeds": list(range(number)), "target_loss": 1.06, "why": None},
        **{"points": [0, 250_000, 375_000, 500_000], "tokens_to_reach": 240_000.0, "control_tokens": 490_000.0},
        **{"times_fewer_tokens": 2.04, "times_fewer_flops": 1.9, "times_fewer_flops_all": 1.3},
        "interval": {
            **{"level": 0.95, "resamples": 1000, "reached": 1.0, "open": False, "tokens_to_reach": [200_000.0, 300_000.0]},
            **{"times_fewer_tokens": [1.6, 2.5], "times_fewer_flops": [1.5, 2.3], "times_fewer_flops_all": [1.1, 1.5]},
        },
    }


def two_seeds() -> dict[str, Any]:
    found = seeded("slm", 1.0)
    found["target_loss"]["n"] = 2
    return {**found, "control": over_seeds(2)}


SELECTED, CONTROL = "arms.slm.selected", "arms.slm.control"
INTERVAL = "differences.0.interval"  # of slm - clm on target
WITH_BASE, LEARNT = "differences.3", "differences.4"  # slm - base on general, reference - base on target


RINGS = [
    # name, level, what is changed, what the sentence must say
    ("finite", "bad", put("models.clm.heldout.general.loss", None), "The loss of clm on general is not finite"),
    ("finite", "bad", put("models.slm.heldout.target.loss", math.inf), "The loss of slm on target"),
    ("finite", "warning", put("arms.slm.evals.1.heldout.target", None), "at step 500"),
    (
        "contamination",
        "bad",
        put("contamination", leaked(9, 3, 100)),
        "12 of the 100 documents of target (12%) also stand in corpus",
    ),
    (
        "contamination",
        "warning",
        put("contamination", leaked(0, 4, 100)),
        "0 word for word, 4 with at least 50% of their 13-grams",
    ),
    ("contamination", "good", lambda _: None, "Of 400 held-out documents none was found in curated or corpus text. What a"),
    ("contamination", "note", put("contamination", leaked(0, 0, 100)), "general: not checked for being in the text"),
    ("contamination", "note", lambda r: r["contamination"]["heldout"]["target"].pop("corpus"), "target: not checked for being"),
    (
        "contamination",
        "note",
        lambda r: r.pop("contamination"),
        "not checked for being in the text that models learn from: the res",
    ),
    ("contamination", "note", put("contamination", {"not_checked": {"all": "it is off"}}), "not checked for being in"),
    ("controls", "bad", drop("clm", "random"), "There is no control"),
    ("controls", "warning", drop("clm"), "No arm trains on all tokens"),
    ("controls", "warning", drop("random"), "No arm selects at random"),
    ("random_ratio", "note", put("arms.random.selection.ratio", 0.3), "slm (60%) has no random twin"),
    ("settings", "warning", put("arms.slm.settings.lr", 2e-3), "slm and clm differ in more than how they select (lr: 0.002"),
    (
        "selection",
        "bad",
        put(f"{SELECTED}.ratio", 1.0),
        "trained on 100% of the tokens where 60% are configured: its selection was not",
    ),
    ("selection", "bad", put("arms.random.selected.ratio", 1.0), "random trained on 100%"),
    ("selection", "warning", put(f"{SELECTED}.ratio", 0.5), "50% of the tokens where 60% are configured"),
    ("selection", "bad", put(f"{SELECTED}.overlap_with_random", 0.99), "99% of what slm selected in its first steps its own"),
    ("selection", "warning", put(f"{SELECTED}.overlap_with_random", 0.8), "where chance gives 60%"),
    ("selection", "warning", put(f"{SELECTED}.overlap_with_random", 0.2), "not independent"),
    ("selection", "bad", put(f"{SELECTED}.mean_excess_selected", -0.5), "inverted"),
    ("selection", "bad", put(f"{SELECTED}.mean_excess_selected", -0.1), "blind"),
    ("selection", "bad", put(f"{SELECTED}.mean_excess_selected", -0.14), "blind"),
    ("selection", "warning", put(f"{SELECTED}.mean_excess_selected", -0.06), "hardly to be told from a blind one"),
    ("selection", "note", put(f"{SELECTED}.mean_excess_selected", None), "are not recorded"),
    (
        "selection",
        "good",
        lambda _: None,
        "slm trained on 60% of the tokens (wanted: 60%), in its last tenth with a mean excess loss of 0.800 nats",
    ),
    (
        "selection",
        "warning",
        both(put("arms.slm.selection.ratio", 1.0), put(f"{SELECTED}.ratio", 1.0)),
        "selects nothing away",
    ),
    ("selection", "bad", both(put(f"{SELECTED}.ratio", 1.0), put(f"{SELECTED}.skipped_steps", 900)), "was not active"),
    ("selection", "note", put(f"{SELECTED}.median_excess", -0.2), "negative in the last tenth of slm (median -0.200 nats): the"),
    ("selection", "note", put(f"{SELECTED}.median_excess", -0.2), "Selection was active: slm"),
    (
        "selection",
        "warning",
        both(put(f"{SELECTED}.mean_excess_selected", 0.1), put(f"{SELECTED}.mean_excess_unselected", -1.0)),
        "On the corpus, in the last tenth of slm, the reference's loss was 0.340 nats a token above the arm's",
    ),
    (
        "selection",
        "warning",
        put("models.reference.heldout.target.loss", 1.3),
        "above slm's: the arm predicts the target better than the reference that it selects by. Train it on: more",
    ),
    (
        "alignment",
        "bad",
        both(put(f"{SELECTED}.correlation_last", 0.1), put(f"{SELECTED}.correlation_by_shift", shifted(0.8))),
        "0.71 in the first tenth and 0.10 in the last tenth of the run: as if the scores belonged to other tokens, since at "
        "another shift they correlate by 0.80. Make them anew",
    ),
    (
        "alignment",
        "warning",
        put(f"{SELECTED}.correlation_last", 0.1),
        "at no other shift they correlate strongly. Check that base",
    ),
    ("alignment", "warning", put(f"{SELECTED}.correlation_last", 0.5), "weak"),
    (
        "alignment",
        "warning",
        both(put(f"{SELECTED}.correlation_last", 0.19), put(f"{SELECTED}.correlation_first", 0.34)),
        "by 0.34 in the first tenth and 0.19 in the last tenth of the run: weak for aligned scores, though",
    ),
    (
        "alignment",
        "warning",
        both(put(f"{SELECTED}.correlation_last", 0.19), lambda r: r["arms"]["slm"]["selected"].pop("correlation_by_shift")),
        "at other shifts it was not recorded. Check",
    ),
    (
        "alignment",
        "warning",
        both(put(f"{SELECTED}.correlation_last", None), put(f"{SELECTED}.correlation_first", 0.2)),
        "by 0.20 in",
    ),
    ("alignment", "good", put(f"{SELECTED}.correlation_first", 0.05), "0.05 in the first tenth and 0.88"),
    ("alignment", "good", put(f"{SELECTED}.correlation_last", 0.6), "as expected where each score belongs to its token"),
    (
        "reference",
        "bad",
        both(put(f"{LEARNT}.difference", 0.2), put(f"{LEARNT}.interval", [0.1, 0.3])),
        "reference has a loss of 0.900 on target, base 2.800; it is higher by 0.200 nats a token (95% interval 0.100 to 0.300 "
        "higher): it has not learnt the target",
    ),
    ("reference", "bad", both(put(f"{LEARNT}.difference", 0.0001), put(f"{LEARNT}.interval", [-0.1, 0.3])), "has not learnt"),
    ("reference", "warning", put(f"{LEARNT}.interval", [-2.0, 0.1]), "whether it has learnt the target cannot be told"),
    ("reference", "warning", put(f"{LEARNT}.interval", None), "without an interval it is not known whether it has learnt"),
    ("reference", "warning", put("models.reference.heldout.general.loss", 4.0), "forgotten general: its loss is 1.500 nats"),
    ("reference", "good", lambda _: None, "(95% interval 1.800 to 2.000 lower): it has learnt the target."),
    (
        "reference",
        "warning",
        put("diagnostics", {"reference": {"mean_ref_loss": 3.0, "mean_base_loss": 2.8}}),
        "forgotten the corpus: its mean loss on rows of it is 3.000 nats a token, base's 2.800",
    ),
    (
        "target",
        "good",
        put("seeds", []),
        "slm beats clm on target: slm's loss is lower by 0.050 nats a token (95% interval 0.030 to 0.070 lower), at the same",
    ),
    ("target", "good", put("seeds.2.target_loss.n", 2), "slm beats random on target: slm's loss is lower by 0.100"),
    ("target", "bad", put(INTERVAL, [0.01, 0.05]), "slm does not beat clm"),
    ("target", "bad", put(INTERVAL, [0.01, 0.05]), "That is one seed of each; the means over seeds are compared by themselves."),
    ("target", "warning", put(INTERVAL, [-0.12, 0.02]), "(95% interval 0.020 higher to 0.120 lower), at the same tokens."),
    (
        "target",
        "warning",
        put(INTERVAL, None),
        "cannot be told apart on target: slm's loss is lower by 0.050 nats a token (no interval",
    ),
    ("target", "warning", put("differences", []), "(no interval is known)"),
    (
        "target",
        "warning",
        both(put("differences.0.difference", 0.0004), put(INTERVAL, [0.0002, 0.0006])),
        "slm and clm are the same on target to three digits: slm's loss is higher by 0.0004 nats a token (95% interval",
    ),
    (
        "clipped",
        "warning",
        put("arms.slm.gradient.clipped_share", 0.5),
        "grad_clip 1 shortened 50% of the steps of slm, 10% of those of clm (median norm 0.6 and 0.6): part of what tells them",
    ),
    ("target", "warning", put("arms.slm.tokens_seen", 900_000), "but not at the same tokens: slm saw 900k, clm 500k."),
    ("target", "good", both(put("seeds", []), put("arms.slm.tokens_seen", 100_000)), "but not at the same tokens"),
    ("target", "warning", both(put("arms.slm.tokens_seen", 100_000), put(INTERVAL, [0.01, 0.05])), "does not beat clm"),
    ("target", "bad", put("differences.1.interval", [-0.2, -0.1]), "slm does not beat random"),
    ("seeds", "warning", put("seeds", []), "Every arm was trained with fewer than 3 seeds. An interval over documents"),
    ("seeds", "warning", put("seeds.1.target_loss.n", 2), "clm was trained with fewer than 3 seeds"),
    ("seeds", "note", lambda _: None, "slm over 3 seeds: target loss 1.0000 ± 0.005 (mean ± sd)."),
    (
        "seeds",
        "good",
        lambda _: None,
        "Over 3 and 3 seeds slm beats clm: its mean target loss is 0.050 nats a token lower, give or take 0.018",
    ),
    ("seeds", "warning", put("seeds.0.target_loss.sd", 0.1), "slm cannot be told from clm"),
    (
        "seeds",
        "warning",
        lambda r: [s["target_loss"].update(mean=m, sd=1e-5) for s, m in zip(r["seeds"], (1.0, 1.0003, 1.1), strict=True)],
        "slm cannot be told from clm",
    ),
    ("seeds", "bad", put("seeds.0.target_loss.mean", 1.2), "slm does not beat random"),
    ("seeds", "warning", put("arms.slm.tokens_seen", 900_000), "slm saw 900k, clm 500k"),
    ("many_arms", "note", many, "5 arms"),
    (
        "target",
        "good",
        both(
            many,
            put("seeds", []),
            lambda r: [r["differences"].append(difference("target", f"slm{i}", "clm", -0.03, 0.01)) for i in range(4)],
        ),
        "5 arms beat clm on target, at the same tokens, in nats a token with 95% intervals: "
        "slm by −0.050 (−0.070 to −0.030), slm0 by −0.030 (−0.040 to −0.020), slm1",
    ),
    (
        "target",
        "warning",
        both(many, put("arms.slm.tokens_seen", 600_000)),
        "4 arms cannot be told from random on target, at the",
    ),
    (
        "settings",
        "warning",
        both(many, lambda r: [r["arms"][f"slm{i}"]["settings"].update(lr=i) for i in range(4)]),
        "4 arms differ from clm in more than how they select, which is mixed in: slm0 (lr: 0 against 0.001), slm1 (lr: 1",
    ),
    (
        "forgetting",
        "good",
        lambda _: None,
        "On general, which is not the target, slm's loss is better than clm's, lower by 0.100",
    ),
    ("forgetting", "good", lambda _: None, "and better than base's, lower by 1.700 nats a token (95% interval 1.600 to"),
    (
        "forgetting",
        "note",
        put(f"{WITH_BASE}.interval", None),
        "and not judged against base's, lower by 1.700 nats a token (no inte",
    ),
    ("forgetting", "warning", put("differences.2.interval", [0.01, 0.2]), "worse than clm's"),
    ("forgetting", "note", put("differences.2.interval", [-0.3, 0.1]), "not to be told from clm's"),
    (
        "forgetting",
        "bad",
        both(put(f"{WITH_BASE}.difference", 0.2), put(f"{WITH_BASE}.interval", [0.1, 0.3])),
        "worse than base's, higher by 0.200 nats",
    ),
    (
        "forgetting",
        "note",
        both(put(f"{WITH_BASE}.difference", 0.005), put(f"{WITH_BASE}.interval", [-0.1, 0.3])),
        "not to be told from base's",
    ),
    (
        "forgetting",
        "note",
        both(put(f"{WITH_BASE}.difference", 0.0002), put(f"{WITH_BASE}.interval", [0.0001, 0.0003])),
        "to three digits the same as base's",
    ),
    (
        "forgetting",
        "warning",
        both(drop("clm"), lambda r: r["differences"].append(difference("general", "slm", "random", 0.05, 0.01))),
        "worse than random's, higher by 0.050",
    ),
    (
        "cost",
        "good",
        lambda _: None,
        "after 250k tokens (95% interval 220k to 290k): 2.00 times fewer in tokens (1.70 to 2.30), 1.80 times fewer in FLOPs of "
        "training alone (1.50 to 2.10), 1.20 times fewer in FLOPs with reference and scoring (1.05 to 1.40).",
    ),
    (
        "cost",
        "warning",
        put(INTERVAL, [-0.12, 0.02]),
        "; but in the end slm cannot be said to be better than clm: its loss is lower",
    ),
    (
        "cost",
        "warning",
        put("arms.slm.tokens_seen", 900_000),
        "slm cannot be said to be better than clm: its loss is lower by 0.050",
    ),
    ("cost", "warning", put("arms.slm.tokens_seen", 900_000), "but not at the same tokens: slm saw 900k, clm 500k"),
    ("cost", "warning", put("differences", []), "(no interval is known), at the same tokens."),
    (
        "cost",
        "warning",
        put(f"{CONTROL}.interval", None),
        "but in tokens and in FLOPs of training alone and in FLOPs with reference",
    ),
    (
        "cost",
        "warning",
        put(f"{CONTROL}.interval.times_fewer_tokens", [0.8, 2.5]),
        "(1.25 times more to 2.50 times fewer), 1.80 times fewer in FLOPs of training alone (1.50 to 2.10), 1.20 times fewer in "
        "FLOPs with reference and scoring (1.05 to 1.40); but in tokens the interval is not above 1, so that a saving is",
    ),
    (
        "cost",
        "warning",
        put(f"{CONTROL}.interval.times_fewer_flops_all", [0.9, 1.4]),
        "but in FLOPs with reference and scoring the interval is not above 1",
    ),
    (
        "cost",
        "warning",
        both(
            put(f"{CONTROL}.interval.times_fewer_tokens", [None, 2.3]),
            put(f"{CONTROL}.interval.tokens_to_reach", [220_000.0, None]),
        ),
        "(95% interval from 220k on, with no upper end): 2.00 times fewer in tokens (up to 2.30 times fewer, with no lower end)",
    ),
    (
        "cost",
        "warning",
        both(
            put(f"{CONTROL}.tokens_to_reach", None),
            put(f"{CONTROL}.interval", {"level": 0.95, "reached": 0.3, "tokens_to_reach": [410_000.0, None]}),
        ),
        "it saw; on other documents it may: in 30% of the resamples it did, 95% interval from 410k on, with no upper end.",
    ),
    (
        "cost",
        "note",
        drop_key(CONTROL, "points"),
        "is not judged: the results were made by an slmctl that read it from losses while training; run `slmctl eval` again.",
    ),
    (
        "cost",
        "warning",
        put(f"{CONTROL}.times_fewer_flops_all", 0.7),
        "in FLOPs with reference and scoring selection saved nothing",
    ),
    ("cost", "warning", put(f"{CONTROL}.times_fewer_tokens", 0.8), "1.25 times more in tokens (1.70 to 2.30), 1.80 times"),
    ("cost", "warning", put(f"{CONTROL}.times_fewer_tokens", 0.8), "so that in tokens selection saved nothing"),
    ("cost", "note", put(f"{CONTROL}.times_fewer_flops_all", None), "what reference and scoring add is not known"),
    (
        "cost",
        "warning",
        put(f"{CONTROL}.tokens_to_reach", None),
        "slm never came down to clm's final target loss (1.0500) in the 500k",
    ),
    (
        "cost",
        "note",
        both(put(f"{CONTROL}.tokens_to_reach", None), put(f"{CONTROL}.why", "fewer than 5 evaluations while training")),
        "How soon slm came down to clm's final target loss (1.0500) is not judged: fewer than 5 evaluations while training.",
    ),
    (
        "cost",
        "note",
        both(
            *(put(f"{CONTROL}.{k}", None) for k in ("tokens_to_reach", "target_loss")),
            put(f"{CONTROL}.why", "it was another set"),
        ),
        "How soon slm came down to clm's final target loss is not judged: it was another set.",
    ),
    ("cost", "good", put(f"{CONTROL}.control_tokens", 480_000), "290k), clm itself first after 480k: 2.00 times fewer"),
    ("cost", "warning", put(INTERVAL, [0.01, 0.05]), "in the end slm's loss is lower by"),
    ("tasks", "good", lambda _: None, "slm against clm on 1 task, beyond chance: ahead on 1 (sums by 4.0 points, p = 0.01)."),
    ("tasks", "bad", put("task_differences.0.difference", -0.04), "behind on 1 (sums by 4.0 points"),
    (
        "tasks",
        "good",
        put("task_differences.0", {"task": "t", "a": "clm", "b": "slm", "difference": -0.1, "p": 0.01}),
        "ahead on 1 (t",
    ),
    ("tasks", "note", put("task_differences.0.p", 0.4), "no difference"),
    (
        "tasks",
        "note",
        put("task_differences", on_tasks(0.012, 0.03, 0.9, 0.02, 0.7)),
        "Holm's correction for 5 tests: no difference",
    ),
    (
        "tasks",
        "good",
        put("task_differences", on_tasks(0.009, 0.03, 0.9, 0.02, 0.7)),
        "beyond chance after Holm's correction for 5 tests: ahead on 1 (t0 by 4.0 points, p = 0.045).",
    ),
    ("documents", "warning", put("models.base.heldout.target.documents", 12), "target holds fewer than 30 documents, 12"),
    ("documents", "note", put("models.base.heldout.general.documents", 29), "general holds"),
    (
        "documents",
        "warning",
        put("models.base.heldout.target.effective_documents", 14.3),
        "Few long documents hold most of the tokens of target: its 200 count as 14 of equal length. Its intervals are the wider",
    ),
    (
        "documents",
        "note",
        put("models.base.heldout.general.effective_documents", 140.0),
        "tokens of general: its 300 count as 140",
    ),
    ("skipped", "warning", put("arms.clm.selected.skipped_steps", 4), "clm left out 4 of its 1000 steps"),
    ("prompts", "warning", put("models.slm.tasks.sums.prompts_cut", 7), "7 of 100 prompts of sums were too long for slm"),
]


OVER_SEEDS = [
    (
        "cost",
        "good",
        put("seeds.0.control", over_seeds(5)),
        "Over 5 seeds, slm reached clm's final target loss, on average (1.0600) after 240k tokens (95% interval 200k to 300k "
        "over seeds and documents), clm itself first after 490k: 2.04 times fewer in tokens (1.60 to 2.50)",
    ),
    ("cost", "good", put("seeds.0.control", over_seeds(3)), "Over 3 seeds, too few for more than a rough interval, slm reached"),
    ("cost", "warning", put("seeds.0", two_seeds()), "not compared over seeds, of which there are fewer than 3"),
    (
        "cost",
        "warning",
        both(put("seeds.0.control", over_seeds(3)), put("seeds.1.target_loss.mean", 1.001)),
        "slm cannot be said to be better than clm: its loss is lower by 0.001 nats a token, give or take",
    ),
    (
        "cost",
        "warning",
        both(put("seeds.0.control", over_seeds(3)), put("seeds.1.target_loss.mean", 0.9)),
        "but in the end slm's loss is higher by 0.100 nats a token, give or take 0.018, at the same tokens, so that nothing was",
    ),
    (
        "cost",
        "warning",
        both(put("seeds.0.control", over_seeds(3)), put("seeds.0.control.tokens_to_reach", None)),
        "Over 3 seeds, too few for more than a rough interval, slm never came down to clm's final target loss, on average",
    ),
]


@pytest.mark.parametrize(("name", "level", "change", "text"), [*RINGS, *OVER_SEEDS])
def test_it_rings(results, name, level, change, text):
    change(results)
    assert any(a["level"] == level and text in a["text"] for a in said(results, name)), said(results, name)


def test_nothing_is_wrong_with_the_base(results):
    assert {(a["name"], a["level"]) for a in alarms(results)} == {
        *((name, "good") for name in ("contamination", "selection", "alignment", "reference", "seeds", "forgetting", "cost")),
        ("tasks", "good"),
        ("seeds", "note"),
    }


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("finite", put("arms.slm.evals", [])),
        ("controls", drop("slm")),
        ("random_ratio", drop("random")),
        ("settings", put("arms.slm.settings.seed", 3)),
        ("selection", put("arms.slm.selected", {})),
        ("selection", put(f"{SELECTED}.ratio", None)),
        ("alignment", both(put(f"{SELECTED}.correlation_last", None), put(f"{SELECTED}.correlation_first", None))),
        ("alignment", drop("slm")),
        ("target", lambda _: None),  # the seeds' means are compared instead
        ("reference", lambda r: r["models"].pop("reference")),
        ("target", drop("slm")),
        ("target", drop("clm", "random")),
        ("target", both(put("differences", []), put("models.slm.heldout.target.loss", None))),
        ("seeds", drop("clm", "random")),
        ("many_arms", lambda r: (many(r), [r["arms"][f"slm{i}"].update(seed=i + 1) for i in range(4)])),
        ("forgetting", lambda r: [m["heldout"].pop("general") for m in r["models"].values()]),
        ("cost", put(CONTROL, None)),
        ("cost", lambda r: r["arms"]["slm"].pop("control")),
        ("tasks", put("task_differences", [])),
        ("documents", put("models.base.heldout.target.documents", 30)),
        ("documents", put("models.base.heldout.target.effective_documents", 110.0)),
        ("clipped", put("arms.slm.gradient.clipped_share", 0.3)),
        ("clipped", both(put("arms.slm.gradient.clipped_share", 0.9), put("arms.slm.gradient.clip", 0.5))),
        ("clipped", put("arms.slm.gradient", None)),
        ("skipped", put("arms.clm.selected", None)),
        ("prompts", put("models.slm.tasks", {})),
    ],
)
def test_it_is_silent(results, name, change):
    """Those that the base does not set off are silent there; here the others, and the brink of some."""
    change(results)
    if name == "seeds":  # what seeds there are is said even of one arm
        assert all(a["level"] == "note" for a in said(results, name))
    else:
        assert said(results, name) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [(f"{SELECTED}.ratio", 0.612), (f"{SELECTED}.overlap_with_random", 0.68), (f"{SELECTED}.mean_excess_selected", -0.04)],
)
def test_selection_that_is_a_little_off_is_active(results, path, value):
    put(path, value)(results)
    assert [a["level"] for a in said(results, "selection")] == ["good"]


def test_an_arm_that_is_to_take_everything_is_not_called_inactive(results):
    for path, value in (("selection.ratio", 1.0), ("selected.ratio", 1.0), ("selected.overlap_with_random", 1.0)):
        put(f"arms.slm.{path}", value)(results)
    put(f"{SELECTED}.expected_overlap", 1.0)(results)
    assert [a["level"] for a in said(results, "selection")] == ["warning"]


def test_skipped_steps_lower_the_realised_ratio(results):
    put(f"{SELECTED}.ratio", 0.5)(results)
    put(f"{SELECTED}.skipped_steps", 160)(results)
    assert [a["level"] for a in said(results, "selection")] == ["good"]


def test_an_overlap_near_chance_is_not_given_as_a_sign_of_soundness(results):
    assert not any("random" in a["text"] for a in said(results, "selection"))


def test_holm_is_the_definition():
    """The adjusted p is the largest, over the tests of at most this p, of p times the tests not yet rejected then."""
    p_T = [0.04, 0.001, 0.2, 0.04, 0.013, 0.9]
    wanted = [min(1.0, max(sum(x >= q for x in p_T) * q for q in p_T if q <= p)) for p in p_T]
    assert holm(p_T) == pytest.approx(wanted)
    assert holm([]) == []


def test_every_arm_is_held_against_the_controls_of_its_own_seed(results):
    put("seeds", [])(results)
    for name in ("slm", "clm", "random"):
        results["arms"][f"{name}-1"] = results["arms"][name] | {"seed": 1}
        results["models"][f"{name}-1"] = results["models"][name]
    pairs = {(a["text"].split()[0], word) for a in said(results, "target") for word in a["text"].split() if "clm" in word}
    assert ("slm-1", "clm-1") in pairs
    assert ("slm", "clm-1") not in pairs
    assert ("slm-1", "clm") not in pairs


def test_the_worst_comes_first(results):
    both(put("models.clm.heldout.general.loss", None), put(INTERVAL, [0.01, 0.05]), put("seeds", []))(results)
    found = alarms(results)
    order = [a["level"] for a in found]
    assert order == sorted(order, key=["bad", "warning", "note", "good"].index)
    assert [a["name"] for a in found if a["level"] == "bad"] == ["finite", "target"]


def test_results_are_left_as_they_were_and_alarms_go_into_json(results):
    before = copy.deepcopy(results)
    found = alarms(results)
    assert results == before
    assert json.loads(json.dumps(found)) == found
    assert all(set(a) == {"name", "level", "text"} and a["text"].endswith(".") for a in found)


def nulls(value: Any, path: str = "") -> list[str]:
    """Paths of every number in it."""
    if isinstance(value, dict):
        return [p for k, v in value.items() for p in nulls(v, f"{path}.{k}" if path else k)]
    if isinstance(value, list):
        return [p for i, v in enumerate(value) for p in nulls(v, f"{path}.{i}")]
    return [path] if isinstance(value, float) else []


def test_any_measured_figure_may_be_null(results):
    needed = ("level", "selection.ratio", "settings.lr")
    paths = [p for p in nulls(results) if not p.endswith(needed)]
    assert len(paths) > 40
    for path in paths:
        broken = copy.deepcopy(results)
        put(path, None)(broken)
        assert all("None" not in a["text"] and "nan" not in a["text"] for a in alarms(broken)), path
    for key in ("differences", "task_differences", "seeds", "level"):
        alarms({k: v for k, v in results.items() if k != key})


def test_results_with_a_base_alone():
    assert alarms({"target": "target", "models": {"base": model("base", 2.8, 2.5)}, "arms": {}}) == []
    assert alarms({"target": "target", "models": {}}) == []


def test_every_rule_rings_somewhere(results):
    """No rule is dead: each says something of some change in the table."""
    silent = set(RULES)
    for _, _, change, _ in RINGS:
        changed = copy.deepcopy(results)
        change(changed)
        silent -= {rule for rule in silent if list(rule(changed))}
    assert not silent


def test_figures_are_short():
    assert [count(n) for n in (999, 381_000, 2_100_000, 14e9, 2e12)] == ["999", "381k", "2.1M", "14B", "2T"]
    assert [nats(x) for x in (1.05, 0.0512, 0.0051, 0, 0.000012)] == ["1.050", "0.051", "0.0051", "0.000", "1.2e-05"]


# --- many arms ---


@pytest.fixture
def swept(results: Results) -> Results:
    """Ten more arms like slm, each a little better than the one before; and a control of its own for the last."""
    for i in range(10):
        name, own = f"slm{i}", copy.deepcopy(results["arms"]["slm"])
        own["selected"] |= {"ratio": 0.6 + i / 1000, "mean_excess_selected": 0.8 + i / 10, "correlation_last": 0.88 + i / 100}
        own["control"] |= {"tokens_to_reach": 240_000.0 - i * 10_000, "times_fewer_tokens": 2.1 + i / 10}
        results["arms"][name] = own
        results["models"][name] = model("arm", 1.0 - i / 100, 0.8 - i / 100)
        results["differences"].append(difference("general", name, "clm", -0.11 - i / 100, 0.04))
        results["differences"].append(difference("general", name, "base", -1.7 - i / 100, 0.04))
        results["differences"].append(difference("target", name, "clm2" if i == 9 else "clm", -0.06 - i / 100, 0.02))
    put("arms.slm9.control.arm", "clm2")(results)
    return results


NAMES = ("slm", *(f"slm{i}" for i in range(10)))
TOGETHER = [
    (
        "cost",
        "11 arms reached the final target loss of clm, clm2 (1.0500) after 150k to 250k tokens: 2.00 to 3.00 times "
        "fewer in tokens, 1.80 times fewer in FLOPs of training alone, 1.20 times fewer in FLOPs with reference and scoring; "
        "each interval lies above 1",
    ),
    (
        "forgetting",
        "On general, which is not the target, the loss of 11 arms is better than that of clm, by −0.200 to −0.100 nats a token "
        "and better than that of base, by −1.790 to −1.700 nats a token",
    ),
    (
        "selection",
        "Selection was active: 11 arms trained on the share of the tokens that each wants, 60% to 60.9%, in the last tenth with "
        "a mean excess loss of 0.800 to 1.700 nats, where those left out have −0.100",
    ),
    (
        "alignment",
        "Live and reference losses of 11 arms correlate by 0.88 to 0.97 at the end: as expected where each score "
        "belongs to its token",
    ),
]


@pytest.mark.parametrize(("name", "text"), TOGETHER)
def test_the_same_of_many_arms_is_one_alarm_with_their_names_and_the_range(swept, name, text):
    (one,) = said(swept, name)
    assert one["level"] == "good"
    assert one["text"].replace("-", "−") == f"{text} ({', '.join(NAMES)})."


def test_an_arm_of_which_another_thing_is_said_is_told_apart(swept):
    both(put("arms.slm3.selected.correlation_last", 0.1), put("arms.slm3.selected.correlation_by_shift", shifted(0.8)))(swept)
    put("arms.slm4.control.tokens_to_reach", None)(swept)
    put("arms.slm4.control.interval", None)(swept)
    bad, good = said(swept, "alignment")
    assert (bad["level"], good["level"]) == ("bad", "good")
    assert "losses of slm3 correlate by 0.71 in the first tenth and 0.10" in bad["text"]
    assert "slm3" not in good["text"]
    never, reached = said(swept, "cost")
    assert never["text"] == "slm4 never came down to clm's final target loss (1.0500) in the 500k tokens it saw."
    assert "slm4" not in reached["text"]


def as_many(results: Results) -> None:
    """Every arm that selects, with all that is said of it, four more times."""
    for arm in [a for a, facts in results["arms"].items() if facts["selection"]["criterion"] != "all"]:
        for i in range(4):
            name = f"{arm}-{i}"
            results["arms"][name], results["models"][name] = results["arms"][arm], results["models"][arm]
            for key in ("differences", "task_differences"):
                again = [{k: name if v == arm else v for k, v in d.items()} for d in results[key] if arm in (d["a"], d["b"])]
                results[key] += again


@pytest.mark.parametrize(
    ("name", "level", "change"),
    [(n, level, change) for n, level, change, _ in RINGS if n in ("cost", "forgetting", "selection", "alignment")],
)
def test_what_rings_for_one_arm_rings_once_for_many(results, name, level, change):
    change(results)
    before = [a["level"] for a in said(results, name)]
    as_many(results)
    after = said(results, name)
    assert [a["level"] for a in after] == before
    assert level in before
    for one in after:
        assert all(
            f"{arm}-{i}" in one["text"] for arm in (("random",) if "random-0" in one["text"] else ("slm",)) for i in range(4)
        )
        assert "{" not in one["text"]
        assert one["text"].endswith(".")


def test_to_beat_a_control_that_training_made_worse_than_base_is_not_good(results):
    for entry in (None, results.get("seeds")):
        found = copy.deepcopy(results) | {"seeds": entry or []}
        assert [a["level"] for a in alarms(found) if "slm beats clm" in a["text"]] == ["good"]
        found["differences"].append(difference("target", "clm", "base", 171.6, 5.0))
        those = [a for a in alarms(found) if "slm beats clm" in a["text"]]
        assert [a["level"] for a in those] == ["warning"]
        assert "training made clm worse than base" in those[0]["text"]
        found["differences"][-1] = difference("target", "clm", "base", 0.1, 0.2)
        assert [a["level"] for a in alarms(found) if "slm beats clm" in a["text"]] == ["good"], "within chance"

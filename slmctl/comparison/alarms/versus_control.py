"""Alarms of arms against their controls: in what they differ, and who is better on the target and on tasks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from slmctl.comparison.alarms.merged import APART
from slmctl.comparison.comparing import (
    Alarm,
    Gap,
    Results,
    alarm,
    arms_of,
    controls_of,
    count,
    gap_between,
    holm,
    known,
    nats,
    same_tokens,
    seed_gap,
    seeded,
    seeds_of,
    signed,
)


def pairs(results: Results) -> Iterator[tuple[str, str]]:
    """Each arm that selects with each of its controls, all-tokens ones first."""
    for arm in arms_of(results, "excess_loss"):
        for kind in ("all", "random"):
            yield from ((arm, control) for control in controls_of(results, arm, kind))


def settings(results: Results) -> Iterator[Alarm]:
    arms = results.get("arms", {})
    found: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for arm, control in pairs(results):
        mine, its = arms[arm].get("settings") or {}, arms[control].get("settings") or {}
        keys = [k for k in {**mine, **its} if k not in ("seed", "selection") and mine.get(k) != its.get(k)]
        if keys:
            found[control].append((arm, ", ".join(f"{k}: {mine.get(k)} against {its.get(k)}" for k in keys)))
    for control, those in found.items():
        if len(those) > APART:
            listed = ", ".join(f"{arm} ({what})" for arm, what in those)
            text = f"{len(those)} arms differ from {control} in more than how they select, which is mixed in: {listed}."
            yield alarm("settings", "warning", text)
        else:
            for arm, what in those:
                text = f"{arm} and {control} differ in more than how they select ({what}): what that does is mixed in."
                yield alarm("settings", "warning", text)


# --- target loss ---


def target_loss(results: Results) -> Iterator[Alarm]:
    """By the interval over documents; of pairs whose seeds' means are compared, only what is not in the arm's favour."""
    found: dict[tuple[str, str, str, bool], list[tuple[str, Gap]]] = defaultdict(list)
    for arm, control in pairs(results):
        gap = gap_between(results, results["target"], arm, control)
        if gap is None:
            continue
        share, _ = same_tokens(results, arm, control)
        verdict = gap.verdict if gap.verdict in ("better", "worse", "same") else "open"
        level = {"better": "good" if share <= 1 else "warning", "worse": "bad" if share >= 1 else "warning"}.get(
            verdict, "warning"
        )
        if level != "good" or not (seeds_of(results, arm) and seeds_of(results, control)):
            level = "warning" if level == "good" and worse_than_base(results, control) else level
            found[level, verdict, control, share == 1].append((arm, gap))
    for (level, verdict, control, same), those in found.items():
        if len(those) > APART:
            yield alarm("target", level, _of_many(results, verdict, control, same, those))
        else:
            yield from (alarm("target", level, _of_one(results, verdict, control, arm, gap)) for arm, gap in those)


def _of_one(results: Results, verdict: str, control: str, arm: str, gap: Gap) -> str:
    figures = f"{arm}'s loss is {gap.words}, {same_tokens(results, arm, control)[1]}.{worse_than_base(results, control)}"
    if seeds_of(results, arm) and seeds_of(results, control):
        figures += " That is one seed of each; the means over seeds are compared by themselves."
    if verdict == "same":
        return f"{arm} and {control} are the same on {results['target']} to three digits: {figures}"
    if verdict == "open":
        return f"{arm} and {control} cannot be told apart on {results['target']}: {figures}"
    return f"{arm} {'beats' if verdict == 'better' else 'does not beat'} {control} on {results['target']}: {figures}"


def _of_many(results: Results, verdict: str, control: str, same: bool, those: list[tuple[str, Gap]]) -> str:
    what = {"better": "beat", "worse": "do not beat", "same": "are to three digits the same as"}.get(
        verdict, "cannot be told from"
    )
    where = "at the same tokens" if same else "though not at the same tokens"
    level = f"{those[0][1].level:.3g}% intervals"
    listed = []
    for arm, gap in those:
        ends = "no interval" if gap.interval is None else f"{signed(gap.interval[0])} to {signed(gap.interval[1])}"
        seen = "" if same else f", saw {count(results['arms'][arm]['tokens_seen'])}"
        listed.append(f"{arm} by {signed(gap.difference)} ({ends}{seen})")
    text = f"{len(those)} arms {what} {control} on {results['target']}, {where}, in nats a token with {level}"
    return f"{text}: {', '.join(listed)}.{worse_than_base(results, control)}"


def worse_than_base(results: Results, control: str) -> str:
    """A sentence where a control ends above the base that it began from, beyond chance; else nothing."""
    gap = gap_between(results, results["target"], control, "base")
    if gap is None or gap.verdict != "worse":
        return ""
    return (
        f" But training made {control} worse than base: its loss is {gap.words}. To beat it shows little; see its curve and lr."
    )


def over_seeds(results: Results) -> Iterator[Alarm]:
    """Means over seeds against each other, by Welch's interval."""
    entries = seeded(results)
    by = {kind: [e for e in entries if e["arm"] in arms_of(results, kind)] for kind in ("excess_loss", "all", "random")}
    for mine in by["excess_loss"]:
        for its in (*by["all"], *by["random"]):
            gap = seed_gap(results, mine, its)
            side, verb = ("lower", "beats") if gap.difference < 0 else ("higher", "does not beat")
            verb = verb if gap.told else "cannot be told from"
            text = f"Over {gap.seeds[0]} and {gap.seeds[1]} seeds {mine['arm']} {verb} {its['arm']}: its mean target loss is "
            text += f"{nats(abs(gap.difference))} nats a token {side}, give or take {nats(gap.reach)} ({gap.level:.3g}% interval)"
            seen, tokens = same_tokens(results, mine["arm"], its["arm"])
            rank = "warning" if not gap.told or seen > 1 else "good" if gap.difference < 0 else "bad"
            doubt = worse_than_base(results, its["arm"])
            yield alarm("seeds", "warning" if doubt and rank == "good" else rank, f"{text}, {tokens}.{doubt}")


# --- tasks ---


def tasks(results: Results) -> Iterator[Alarm]:
    """By McNemar's test, corrected for all tasks and controls that an arm was tested on and with."""
    for arm in arms_of(results, "excess_loss"):
        rivals = [control for one, control in pairs(results) if one == arm]
        listed = [d for d in results.get("task_differences", []) if known(d["difference"])]
        of = {control: [d for d in listed if {d["a"], d["b"]} == {arm, control}] for control in rivals}
        tested = [d for found in of.values() for d in found if known(d["p"])]
        adjusted = {id(d): p for d, p in zip(tested, holm([d["p"] for d in tested]), strict=True)}
        yield from (_on_tasks(results, arm, control, found, adjusted) for control, found in of.items() if found)


def _on_tasks(results: Results, arm: str, control: str, found: list[dict[str, Any]], adjusted: dict[int, float]) -> Alarm:
    """`adjusted` has the corrected p value of each tested record of `found`, by its identity."""
    chance = 1 - float(results.get("level") or 0.95)
    ahead: list[str] = []
    behind: list[str] = []
    for d in found:
        points = 100 * (d["difference"] if d["a"] == arm else -d["difference"])
        p = adjusted.get(id(d))
        if p is not None and p < chance:
            (ahead if points > 0 else behind).append(f"{d['task']} by {abs(points):.1f} points, p = {p:.2g}")
    said = [f"{word} on {len(some)} ({'; '.join(some)})" for word, some in (("ahead", ahead), ("behind", behind)) if some]
    corrected = f" after Holm's correction for {len(adjusted)} tests" if len(adjusted) > 1 else ""
    text = f"{arm} against {control} on {len(found)} task{'s' * (len(found) > 1)}, beyond chance{corrected}: "
    level = "note" if not said else "good" if not behind else "warning" if ahead else "bad"
    return alarm("tasks", level, text + (" and ".join(said) or "no difference") + ".")

"""Alarms of what it took an arm to reach its control's final loss, and whether that is a saving beyond chance."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from slmctl.comparison.alarms.merged import ArmAlarm, Figure, together
from slmctl.comparison.comparing import (
    SEEDS,
    Alarm,
    Results,
    arms_of,
    count,
    gap_between,
    known,
    nats,
    percent,
    same_tokens,
    seed_gap,
    seeds_of,
)
from slmctl.comparison.crossings_in_words import (
    Ends,
    above_one,
    ends_of,
    headline_of,
    of_seeds,
    seeds_headline,
    span,
    span_of_times,
)

_COUNTED = {
    "times_fewer_tokens": "in tokens",
    "times_fewer_flops": "in FLOPs of training alone",
    "times_fewer_flops_all": "in FLOPs with reference and scoring",
}


def cost(results: Results) -> Iterator[Alarm]:
    yield from together("cost", (said for arm in arms_of(results, "excess_loss") for said in _cost(results, arm)))


def _cost(results: Results, arm: str) -> Iterator[ArmAlarm]:
    """Over seeds where that was worked out, once; else of the arm itself."""
    over = seeds_headline(results, arm)
    found = over or headline_of(results["arms"][arm].get("control"))
    first = next((e["arm"] for e in results.get("seeds") or [] if over and arm in (e["arm"], *e["arms"])), arm)
    if not found or (first != arm and first in results["arms"]):
        return
    said = _goal(arm, found)
    goal = said.text
    if said.figures and known(found.get("tokens_to_reach")):
        yield _reached(results, arm, found, said)
    elif found.get("why"):
        why = found["why"].rstrip(".").replace("{", "{{").replace("}", "}}")
        text = f"How soon {arm} came down to {goal} is not judged: {found['why'].rstrip('.')}."
        yield replace(said, text=text, of_many=f"How soon {{n}} arms came down to {said.of_many} is not judged: {why}")
    elif said.figures:
        yield _never(results, arm, found, said)


def _goal(arm: str, found: dict[str, Any]) -> ArmAlarm:
    """A note whose `text` is the goal in words, and `of_many` the same of many arms."""
    over = "seeds" in found
    goal, of_many = f"{found['arm']}'s final target loss", "the final target loss of {control}"
    goal, of_many = (f"{words}, on average" if over else words for words in (goal, of_many))
    figures: dict[str, Figure] = {}
    if known(found.get("target_loss")):
        goal, of_many = f"{goal} ({found['target_loss']:.4f})", of_many + " ({goal})"
        figures["goal"] = (found["target_loss"], "{:.4f}".format)
    return ArmAlarm(arm, "note", goal, of_many, figures, {"control": found["arm"]})


def _never(results: Results, arm: str, found: dict[str, Any], said: ArmAlarm) -> ArmAlarm:
    seen = results["arms"][arm]["tokens_seen"]
    over = f"Over {of_seeds(found)}, " if "seeds" in found else ""
    text = f"{over}{arm} never came down to {said.text} in the {count(seen)} tokens it saw"
    of_many = f"{{n}} arms never came down to {said.of_many} in the {{seen}} tokens they saw"
    ends, share = ends_of(found, "tokens_to_reach"), (found.get("interval") or {}).get("reached")
    if ends is not None and ends[0] is not None and known(share):
        text += f"; on other documents it may: in {percent(share)} of the resamples it did, {_interval(found, ends, count)}"
        of_many += "; on other documents they may"
    return replace(said, level="warning", text=f"{text}.", of_many=of_many, figures={**said.figures, "seen": (seen, count)})


def _interval(found: dict[str, Any], ends: Ends | None, write: Callable[[float], str]) -> str:
    """`95% interval 220k to 290k`."""
    level = 100 * float((found.get("interval") or {}).get("level") or 0.95)
    return f"{level:.3g}% interval {span(ends, write)}"


def _reached(results: Results, arm: str, found: dict[str, Any], said: ArmAlarm) -> ArmAlarm:
    """`said` has what is common to all that is said of costs: the goal in words, as of many."""
    times = {key: found[key] for key in _COUNTED if known(found.get(key))}
    figures: dict[str, Figure] = {**said.figures, "tokens": (found["tokens_to_reach"], count)}
    side = {key: "more" if value < 1 else "fewer" for key, value in times.items()}
    figures |= {key: (max(value, 1 / value), "{:.2f}".format) for key, value in times.items()}
    over = f"Over {of_seeds(found)}, " if "seeds" in found else ""
    text = f"{over}{arm} reached {said.text} after {count(found['tokens_to_reach'])} tokens"
    of_many = f"{{n}} arms reached {said.of_many} after {{tokens}} tokens"
    if (ends := ends_of(found, "tokens_to_reach")) is not None:
        text += f" ({_interval(found, ends, count)}{' over seeds and documents' if over else ''})"
    if known(found.get("control_tokens")):
        figures["its"] = (found["control_tokens"], count)
        text += f", {found['arm']} itself first after {count(found['control_tokens'])}"
        of_many += ", {control} first after {its}"
    if times:
        spans = {key: f" ({words})" if (words := span_of_times(ends_of(found, key))) else "" for key in times}
        text += ": " + ", ".join(f"{figures[key][0]:.2f} times {side[key]} {_COUNTED[key]}{spans[key]}" for key in times)
        of_many += ": " + ", ".join(f"{{{key}}} times {side[key]} {_COUNTED[key]}" for key in times)
    verdict = _verdict(results, arm, found, times)
    return ArmAlarm(
        arm, verdict.level, f"{text}{verdict.text}.", of_many + verdict.of_many, figures | verdict.figures, said.names
    )


def _verdict(results: Results, arm: str, found: dict[str, Any], times: dict[str, float]) -> ArmAlarm:
    """The level, and what follows the figures. Good is only what is beyond chance in every figure told, of an arm whose loss
    is lower in the end, beyond chance."""
    control = found["arm"]
    if losses := [_COUNTED[key] for key, value in times.items() if value < 1]:
        why = f", so that {' and '.join(losses)} selection saved nothing"
        return ArmAlarm(arm, "warning", why, why)
    better, words, figures = _target(results, arm, found)
    if better is False:
        one = f"; but in the end {arm}'s loss is {words}, so that nothing was saved"
        many = "; but in the end their losses are above {control}'s by {gap} nats a token, so that nothing was saved"
        return ArmAlarm(arm, "warning", one, many, figures)
    if better is None:
        one = f"; but in the end {arm} cannot be said to be better than {control}: its loss is {words}"
        return ArmAlarm(arm, "warning", one, "; but in the end they cannot be said to be better than {control}")
    if unsure := [_COUNTED[key] for key in times if not above_one(found, key)]:
        which = "the interval is not above 1" if found.get("interval") else "there is no interval"
        why = f"; but {' and '.join(unsure)} {which}, so that a saving is not shown"
        return ArmAlarm(arm, "warning", why, why)
    if "times_fewer_flops_all" not in times:
        why = "; what reference and scoring add is not known"
        return ArmAlarm(arm, "note", why, why)
    return ArmAlarm(arm, "good", "", "; each interval lies above 1")


def _same_tokens(results: Results, arm: str, control: str) -> tuple[float, str]:
    """As `same_tokens`; a control that is a repeat with another seed saw what the first of its seeds saw."""
    names = [control, *([group["arm"]] if (group := seeds_of(results, control)) else [])]
    there = next((str(c) for c in names if c in results["arms"]), None)
    return same_tokens(results, arm, there) if there is not None else (1.0, "as far as is known")


def _target(results: Results, arm: str, found: dict[str, Any]) -> tuple[bool | None, str, dict[str, Figure]]:
    """Whether an arm ends better than its control, beyond chance and not on more tokens; None where that is open."""
    control = found["arm"]
    share, tokens = _same_tokens(results, arm, control)
    if "seeds" in found:
        mine, its = seeds_of(results, arm), seeds_of(results, control)
        if mine is None or its is None:
            return None, f"not compared over seeds, of which there are fewer than {SEEDS}", {}
        over = seed_gap(results, mine, its)
        side = "lower" if over.difference < 0 else "higher"
        words = f"{side} by {nats(abs(over.difference))} nats a token, give or take {nats(over.reach)}, {tokens}"
        better = None if not over.told else over.difference < 0
        return (None if better and share > 1 else better), words, {"gap": (over.difference, nats)}
    gap = gap_between(results, results["target"], arm, control)
    if gap is None:
        return None, "not compared with it", {}
    better = {"better": share <= 1 or None, "worse": False}.get(gap.verdict)
    return better, gap.words if better is False else f"{gap.words}, {tokens}", {"gap": (gap.difference, nats)}

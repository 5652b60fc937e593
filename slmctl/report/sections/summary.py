"""What a reader needs in a minute: one paragraph, the alarms, and the figures behind it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from slmctl.comparison.comparing import ALIKE, nats
from slmctl.comparison.crossings_in_words import ends_of, of_seeds, span_of_times
from slmctl.report import numbers as n
from slmctl.report.facts import Facts, beyond_chance, rows_of

LEVELS = {"bad": "Problem", "warning": "Warning", "note": "Note", "good": "Good"}


@dataclass(frozen=True)
class Alarm:
    level: str
    word: str
    text: str


@dataclass(frozen=True)
class KeyFigure:
    label: str
    value: str
    unit: str
    detail: str


def alarms(facts: Facts) -> list[Alarm]:
    """In the order of the results, most important first; an unknown level is a note."""
    found = []
    for a in rows_of(facts.results, "alarms"):
        level = str(a.get("level")) if a.get("level") in LEVELS else "note"
        found.append(Alarm(level, LEVELS[level], n.signs(str(a.get("text", "")))))
    return found


def _against(facts: Facts, arm: str, control: str) -> str:
    loss, other = facts.loss(arm, facts.target), facts.loss(control, facts.target)
    found = facts.difference(facts.target, arm, control)
    if found is None and loss is not None and other is not None:
        found = (loss - other, None)
    if found is None:
        return f"not compared with {control}"
    value, ends = found
    if abs(value) < ALIKE:
        return f"the same as {control} to three digits"
    chance = {None: "no interval", True: "beyond chance", False: "within chance"}[beyond_chance(ends)]
    return f"{nats(abs(value))} {'lower' if value < 0 else 'higher'} than {control} ({chance})"


def _over_seeds(facts: Facts, arm: str, control: str) -> str:
    """Means over seeds against each other where both have enough of them, else the arms themselves."""
    gap = facts.seed_gap(arm, control)
    if gap is None:
        alone = f", {arm} alone" if facts.repeated(arm) else ""
        return f"{_against(facts, arm, control)}{alone}"
    ends = n.interval((gap.difference - gap.reach, gap.difference + gap.reach), 3, sign=True)
    if abs(gap.difference) < ALIKE:
        return f"the same as {control} to three digits over {gap.seeds[1]} seeds"
    chance = "beyond chance" if gap.told else "within chance"
    side = "lower" if gap.difference < 0 else "higher"
    difference = f"{nats(abs(gap.difference))} {side} than {control} over {gap.seeds[1]} seeds"
    return f"{difference} ({chance}, {facts.level} interval over seeds {ends})"


def headline(facts: Facts) -> list[str]:
    """Sentences on the first selecting arm against the controls of its own seed; by their means where there are enough seeds."""
    arm = facts.main
    if arm is None:
        return ["No arm selects tokens by a loss, so there is nothing to compare with the controls yet."]
    loss = facts.loss(arm, facts.target)
    where = "the target set" if facts.target == "target" else f"the target set {facts.target}"
    said = f"On {where}, {arm} ({facts.selection(arm)}) "
    said += "has no finite loss" if loss is None else f"ends at a loss of {n.fixed(loss, 3)} nats a token"
    if repeated := facts.repeated(arm):
        found = repeated["target_loss"]
        said = f"On {where}, {arm} ({facts.selection(arm)}) ends over {found['n']} seeds at a loss of "
        said += f"{n.fixed(found['mean'], 3)} ± {n.fixed(found['sd'], 3)} nats a token (mean ± sd)"
    rivals = facts.controls_of(arm)
    if not rivals:
        return [f"{said}. No control was trained, so this says nothing about what selection brought."]
    clauses = [_over_seeds(facts, arm, c) for c in rivals]
    sentences = [f"{said}: {', '.join(clauses[:-1])}{' and ' if clauses[:-1] else ''}{clauses[-1]}."]
    control = _control(facts, arm)
    if control.get("arm") is None or (_never(control) and any(a.get("name") == "cost" for a in rows_of(facts.results, "alarms"))):
        return sentences  # that it was never reached is an alarm already
    return [*sentences, _reached(facts, arm, control)]


def _control(facts: Facts, arm: str) -> dict[str, Any]:
    """What it took to reach the control: over seeds where that was worked out, else of the arm itself."""
    return facts.headline_over_seeds(arm) or facts.headline(arm)


def _never(control: dict[str, Any]) -> bool:
    return not control.get("why") and n.number(control.get("tokens_to_reach")) is None


def _reached(facts: Facts, arm: str, control: dict[str, Any]) -> str:
    name, over = control["arm"], "seeds" in control
    it = f"Over {of_seeds(control)}, it" if over else f"{arm} alone" if facts.repeated(arm) else "It"
    goal = f" ({n.fixed(x, 3)})" if (x := n.number(control.get("target_loss"))) is not None else ""
    final = f"the {'mean ' if over else ''}final loss of {name}{goal}"
    if control.get("why"):
        return f"How soon {'it' if it == 'It' else it} came down to {final} is not judged: {control['why']}."
    if _never(control):
        ends = ends_of(control, "tokens_to_reach")
        maybe = "; on other documents it may" if ends is not None and ends[0] is not None else ""
        return f"{it} never came down to {final} while training{maybe}."
    words = f"{it} came down to {final} after {n.short(control['tokens_to_reach'])} tokens"
    if n.number(control.get("control_tokens")) is not None:
        words += f" ({name} itself first after {n.short(control['control_tokens'])})"
    by = "seeds and documents" if over else "documents"
    times, alone, everything = (n.fewer(control.get(f"times_fewer_{key}"), " times") for key in ("tokens", "flops", "flops_all"))
    spans = [span_of_times(ends_of(control, f"times_fewer_{key}")) for key in ("tokens", "flops", "flops_all")]
    if times != n.NONE:
        words += f", {times}" + (f" ({facts.level} interval over {by}: {spans[0]})" if spans[0] else "")
    if alone != n.NONE:
        words += f", and {alone} FLOPs of training" + (f" ({spans[1]})" if spans[1] else "")
    if everything != n.NONE:
        words += f"; with the reference's training and scoring counted, {everything}" + (f" ({spans[2]})" if spans[2] else "")
    return f"{words}."


def key_figures(facts: Facts) -> list[KeyFigure]:
    """Target loss of the first selecting arm and of each control, then what it took to reach the control."""
    found = []
    for name in [facts.main, *facts.controls_of(facts.main)] if facts.main else list(facts.arms):
        found.append(_target_loss(facts, name))
    control = _control(facts, facts.main) if facts.main else {}
    if not control:
        return found
    over = f" ({len(control['seeds'])} seeds)" if "seeds" in control else ""
    alone = over or (f" ({facts.main} alone)" if facts.main and facts.repeated(facts.main) else "")
    for label, key, show, unit, times in (
        ("Tokens to reach", "tokens_to_reach", n.short, "tokens", "times_fewer_tokens"),
        ("Training FLOPs to reach", "flops_to_reach", n.flops, "FLOPs", "times_fewer_flops"),
        ("All FLOPs to reach", "flops_to_reach_all", n.flops, "FLOPs", "times_fewer_flops_all"),
    ):
        if key in control:
            reached = n.number(control[key]) is not None
            unknown = None if reached else _not_known(control)
            detail = n.fewer(control.get(times)) if reached else unknown or "while training"
            if reached and (ends := n.fewer_interval(control.get(times), ends_of(control, times))):
                detail += f", {facts.level} interval {ends}"
            if reached and key == "tokens_to_reach" and n.number(control.get("control_tokens")) is not None:
                detail += f"; {control.get('arm')} itself first after {n.short(control['control_tokens'])}"
            if key.endswith("_all"):
                detail += "; with reference and scoring" if reached else ""
            value = show(control[key]) if reached else "never" if unknown is None else "not judged"
            found.append(
                KeyFigure(
                    f"{label} {control.get('arm')}’s loss{alone}",
                    value,
                    unit if reached else "",
                    detail.replace(f"{n.NONE}; ", ""),
                )
            )
    return found


def _not_known(control: dict[str, Any]) -> str | None:
    """Why a figure of reaching the control is absent where that is not because it was never reached."""
    if control.get("why"):
        return str(control["why"])
    return "its cost is not known" if n.number(control.get("tokens_to_reach")) is not None else None


def _target_loss(facts: Facts, name: str) -> KeyFigure:
    """Of one arm, or of the mean of its seeds where the arm that it is held against has enough, too."""
    gap = facts.seed_gap(facts.main, name) if facts.main and name != facts.main else None
    repeated = facts.repeated(name) if name == facts.main else facts.seeds(name) if gap is not None else None
    if repeated is not None:
        found = repeated["target_loss"]
        detail = f"mean of {found['n']} seeds, sd {n.fixed(found['sd'], 3)}"
        if gap is not None:
            ends = n.interval((gap.difference - gap.reach, gap.difference + gap.reach), 3, sign=True)
            detail += f"; {facts.main} differs by {n.signed(gap.difference, 3)} {ends} over seeds"
        return KeyFigure(f"Target loss of {name}", n.fixed(found["mean"], 3), "nats a token", detail)
    loss, ends = facts.loss(name, facts.target), n.interval(facts.loss_interval(name, facts.target), 3)
    against = facts.difference(facts.target, facts.main, name) if facts.main and name != facts.main else None
    detail = f"{facts.level} interval {ends}" if ends else f"{n.NO_INTERVAL}: {n.NEEDS}"
    detail = "not measured, or no finite number" if loss is None else detail
    if against:
        alone = " alone" if facts.main and facts.repeated(facts.main) else ""
        detail += f"; {facts.main}{alone} differs by {n.signed(against[0], 3)} {n.interval(against[1], 3, sign=True)}".rstrip()
    return KeyFigure(f"Target loss of {name}", n.fixed(loss, 3), "nats a token", detail)

"""What a reader needs in a minute: the alarms, one sentence, and the figures behind it."""

from __future__ import annotations

from dataclasses import dataclass

from slmctl.report import numbers as n
from slmctl.report.facts import Facts, beyond_chance, dig, rows_of

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
        found.append(Alarm(level, LEVELS[level], str(a.get("text", ""))))
    return found


def _against(facts: Facts, arm: str, control: str) -> str:
    loss, other = facts.loss(arm, facts.target), facts.loss(control, facts.target)
    found = facts.difference(facts.target, arm, control)
    if found is None and loss is not None and other is not None:
        found = (loss - other, None)
    if found is None:
        return f"not compared with {control}"
    value, ends = found
    chance = {None: "no interval", True: "beyond chance", False: "within chance"}[beyond_chance(ends)]
    if f"{abs(value):.3f}" == "0.000":
        return f"the same as {control} to three digits ({chance})"
    return f"{abs(value):.3f} {'lower' if value < 0 else 'higher'} than {control} ({chance})"


def headline(facts: Facts) -> list[str]:
    """Sentences on the first selecting arm against its controls."""
    arm = facts.main
    if arm is None:
        return ["No arm selects tokens by a loss, so there is nothing to compare with the controls yet."]
    loss = facts.loss(arm, facts.target)
    where = "the target set" if facts.target == "target" else f"the target set {facts.target}"
    said = f"On {where}, {arm} ({facts.selection(arm)}) ends at a loss of {n.fixed(loss, 3)} nats a token"
    if not facts.controls:
        return [f"{said}. No control was trained, so this says nothing about what selection brought."]
    clauses = [_against(facts, arm, c) for c in facts.controls]
    sentences = [f"{said}: {', '.join(clauses[:-1])}{' and ' if clauses[:-1] else ''}{clauses[-1]}."]
    control = dig(facts.arms, arm, "control") or {}
    name = control.get("arm")
    if name is None:
        return sentences
    if n.number(control.get("tokens_to_reach")) is None:
        sentences.append(
            f"It never came down to the final loss of {name} ({n.fixed(control.get('target_loss'), 3)}) while training."
        )
        return sentences
    tokens, times = n.short(control.get("tokens_to_reach")), n.fewer(control.get("times_fewer_tokens"))
    words = f"It came down to the final loss of {name} after {tokens} tokens" + (f", {times}" if times != n.NONE else "")
    alone, everything = n.fewer(control.get("times_fewer_flops")), n.fewer(control.get("times_fewer_flops_all"))
    if alone != n.NONE:
        words += f", and {alone} FLOPs of training"
    if everything != n.NONE:
        words += f" ({everything} with the reference's training and scoring counted)"
    sentences.append(words + ".")
    return sentences


def key_figures(facts: Facts) -> list[KeyFigure]:
    """Target loss of the first selecting arm and of each control, then what it took to reach the control."""
    found = []
    for name in [facts.main, *facts.controls] if facts.main else list(facts.arms):
        if name is None:
            continue
        ends = n.interval(facts.loss_interval(name, facts.target), 3)
        against = facts.difference(facts.target, facts.main, name) if facts.main and name != facts.main else None
        detail = f"{facts.level} interval {ends}" if ends else "no interval"
        if against:
            detail += f"; {facts.main} differs by {n.signed(against[0], 3)} {n.interval(against[1], 3, sign=True)}".rstrip()
        found.append(KeyFigure(f"Target loss of {name}", n.fixed(facts.loss(name, facts.target), 3), "nats a token", detail))
    control = dig(facts.arms, facts.main, "control") if facts.main else None
    if not isinstance(control, dict):
        return found
    for label, key, show, unit, times in (
        ("Tokens to reach", "tokens_to_reach", n.short, "tokens", "times_fewer_tokens"),
        ("Training FLOPs to reach", "flops_to_reach", n.flops, "FLOPs", "times_fewer_flops"),
        ("All FLOPs to reach", "flops_to_reach_all", n.flops, "FLOPs", "times_fewer_flops_all"),
    ):
        if key in control:
            reached = n.number(control[key]) is not None
            detail = n.fewer(control.get(times)) if reached else "while training"
            if key.endswith("_all"):
                detail += "; with reference and scoring" if reached else ""
            value = show(control[key]) if reached else "never"
            found.append(
                KeyFigure(
                    f"{label} {control.get('arm')}’s loss", value, unit if reached else "", detail.replace(f"{n.NONE}; ", "")
                )
            )
    return found

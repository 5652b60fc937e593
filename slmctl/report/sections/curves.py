"""How losses came down: held-out sets while training and at kept checkpoints, and the training logs."""

from __future__ import annotations

from slmctl.evaluation.comparability import Measure, kinds, measure_of, words
from slmctl.report import numbers as n
from slmctl.report.blocks import Block, Section
from slmctl.report.facts import Facts, dig, rows_of
from slmctl.report.plots.lines import Series, curves, training_curve

LOGGED = {
    "loss_selected": (
        "Loss of the tokens trained on",
        "nats a token",
        "Lower is better only within one arm: each arm trains on other tokens, and selection keeps the hard ones.",
    ),
    "loss_unselected": (
        "Loss of the tokens left out",
        "nats a token",
        "Other tokens in each arm and at each step: those that it did not train on, of whatever kind they are.",
    ),
    "correlation": (
        "Correlation of live and reference loss",
        "correlation",
        "That of scores that belong to their tokens rises well above zero; while a model has learnt nothing yet it is near zero "
        "all the same. Of random arms it is over the tokens that they train on alone.",
    ),
    "grad_norm": (
        "Gradient norm",
        "norm before clipping",
        "Norms above grad_clip are cut to it: the share of such steps stands under Selection. Peaks that grow may mean that the "
        "learning rate is too high.",
    ),
}


def heldout_curves(facts: Facts) -> Section | None:
    blocks: list[Block] = []
    for heldout in facts.sets:
        blocks += _while_training(facts, heldout)
    for heldout in facts.sets:
        series = [s for arm in facts.arms if (s := _kept(facts, arm, heldout)).x]
        if series:
            name = facts.names.unique(f"checkpoints-{heldout}")
            title = f"Held-out loss on {heldout} by kept checkpoint"
            caption = f"Each kept checkpoint on the whole set; bars are {facts.level} intervals over its documents."
            blocks.append(curves(name, title, caption, series, "tokens seen", "nats a token"))
    return Section("curves", "Held-out loss over training", "", blocks) if blocks else None


def _while_training(facts: Facts, heldout: str) -> list[Block]:
    """A figure for all that was measured alike: losses on other tokens, or of other arithmetic, do not lie on one line, nor
    beside each other."""
    evals = {arm: rows_of(facts.arms, arm, "evals") for arm in facts.arms}
    found: list[Block] = []
    alike = kinds([e for records in evals.values() for e in records], heldout)
    for i, measure in enumerate(alike, 1):
        series = []
        for arm, records in evals.items():
            points = [
                (seen, loss)
                for e in records
                if measure_of(e, heldout) == measure
                and (seen := n.number(e.get("tokens_seen"))) is not None
                and (loss := n.number(dig(e, "heldout", heldout))) is not None
            ]
            if points:
                series.append(Series(arm, facts.look(arm), [x for x, _ in points], [y for _, y in points]))
        if series:
            name = facts.names.unique(f"heldout-{heldout}")
            part = f", {i} of {len(alike)}: on {words(measure)}" if len(alike) > 1 else ""
            title = f"Held-out loss on {heldout} while training{part}"
            caption = _measured_on(facts, heldout, measure, len(alike))
            found.append(curves(name, title, caption, series, "tokens seen", "nats a token"))
    return found


def _measured_on(facts: Facts, heldout: str, measure: Measure | None, kinds_of_measure: int) -> str:
    if measure is None:
        said = "On how many tokens, and in what precision, is not known, so that a curve below another says little. "
    else:
        part = f"{facts.part_of(heldout, measure['tokens'])} in {measure['precision']}"
        said = f"A curve that lies below another has the lower loss after as many tokens, as measured on {part}, without an "
        said += "interval. "
    if kinds_of_measure > 1:
        said += "The other figures of this set are of other tokens or another precision: not to be compared. "
    return said + "What it took to reach the control is read from kept checkpoints instead."


def _kept(facts: Facts, arm: str, heldout: str) -> Series:
    points = [
        (seen, loss, n.pair(dig(c, "heldout", heldout, "interval")))
        for c in rows_of(facts.arms, arm, "checkpoints")
        if (seen := n.number(c.get("tokens_seen"))) is not None
        and (loss := n.number(dig(c, "heldout", heldout, "loss"))) is not None
    ]
    return Series(arm, facts.look(arm), [x for x, _, _ in points], [y for _, y, _ in points], [i for _, _, i in points])


def training_curves(facts: Facts) -> Section | None:
    blocks: list[Block] = []
    for key, (title, unit, caption) in LOGGED.items():
        series = []
        for arm in facts.arms:
            x, y = training_curve(facts.logs.get(arm, []), key)
            if x:
                series.append(Series(arm, facts.look(arm), x, y))
        if series:
            blocks.append(curves(facts.names.unique(key), title, caption, series, "tokens seen", unit))
    intro = "From the training logs; each point is a mean over the steps since the one before."
    return Section("training", "Training", intro, blocks) if blocks else None

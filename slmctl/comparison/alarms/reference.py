"""Alarms of what selection goes by: do the scores belong to the tokens, has the reference learnt the target and kept the rest?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from slmctl.comparison.alarms.merged import ArmAlarm, Figure, together
from slmctl.comparison.comparing import Alarm, Results, alarm, arms_of, gap_between, known, loss_of, nats
from slmctl.training.alignment import elsewhere

ALIGNED = 0.6
"""Correlation of live and reference loss that aligned joins reach (0.84 to 0.95 of small models that have learnt something)."""
FORGOTTEN, FORGOTTEN_CORPUS = 0.5, 0.1
"""Nats a token that the reference may lose to base on another set than the target, and on the corpus it scores."""

_ALIGNMENT = {
    "good": "as expected where each score belongs to its token",
    "warning": "weak for aligned scores, though at no other shift they correlate strongly. Check that base and reference are "
    "models of this text's language, and have learnt (their held-out losses); a model that began from random weights may "
    "need more steps",
    "unknown": "weak for aligned scores; at other shifts it was not recorded. Check that base and reference are models of this "
    "text's language, and `slmctl score CONFIG --verify`",
    "bad": "as if the scores belonged to other tokens, since at another shift they correlate by {other}. Make them anew with "
    "`slmctl score`",
}


def alignment(results: Results) -> Iterator[Alarm]:
    """Judged by the end of the run: a model that has learnt nothing yet correlates with nothing. Nothing is said of controls,
    which choose by no scores."""
    yield from together("alignment", (said for arm in arms_of(results, "excess_loss") for said in _aligned(results, arm)))


def _aligned(results: Results, arm: str) -> Iterator[ArmAlarm]:
    found = results["arms"][arm].get("selected") or {}
    first, last = found.get("correlation_first"), found.get("correlation_last")
    judged = last if known(last) else first
    if not known(judged):
        return
    by_shift: dict[int, Any] = {int(s): r for s, r in (found.get("correlation_by_shift") or {}).items()}
    others = [r for s, r in by_shift.items() if s != 0 and known(r)]
    shifted = elsewhere({**by_shift, 0: judged})
    kind = "bad" if shifted else "good" if judged >= ALIGNED else "warning" if others else "unknown"
    both = ((first, "first"), (last, "last"))
    listed = " and ".join(f"{value:.2f} in the {when} tenth" for value, when in both if known(value))
    figures: dict[str, Figure] = {"judged": (judged, "{:.2f}".format)}
    if shifted:
        figures["other"] = (max(others), "{:.2f}".format)
    text = f"Live and reference losses of {arm} correlate by {listed} of the run: {_ALIGNMENT[kind]}."
    text = text.replace("{other}", f"{max(others):.2f}") if shifted else text
    of_many = f"Live and reference losses of {{n}} arms correlate by {{judged}} at the end: {_ALIGNMENT[kind]}"
    yield ArmAlarm(arm, "warning" if kind == "unknown" else kind, text, of_many, figures)


def reference(results: Results) -> Iterator[Alarm]:
    for model in (name for name, found in results["models"].items() if found["kind"] == "reference"):
        yield from _learnt(results, model)
        for heldout in (h for h in results["models"][model]["heldout"] if h != results["target"]):
            gap = gap_between(results, heldout, model, "base")
            if gap is not None and gap.difference > FORGOTTEN and gap.verdict != "open":
                text = f"{model} has forgotten {heldout}: its loss is {nats(gap.difference)} nats a token above base's. "
                yield alarm("reference", "warning", text + "It may select badly; see reference.mix.")
    corpus = (results.get("diagnostics") or {}).get("reference") or {}
    its, base = corpus.get("mean_ref_loss"), corpus.get("mean_base_loss")
    if known(its) and known(base) and its > base + FORGOTTEN_CORPUS:
        text = f"The reference has forgotten the corpus: its mean loss on rows of it is {nats(its)} nats a token, base's "
        yield alarm("reference", "warning", text + f"{nats(base)}. It may select badly; see reference.mix.")


_LEARNT = {
    "better": ("good", "it has learnt the target"),
    "worse": ("bad", "it has not learnt the target, so the excess loss does not point there"),
    "same": ("bad", "it has not learnt the target, so the excess loss does not point there"),
    "open": ("warning", "whether it has learnt the target cannot be told, nor whether the excess loss points there"),
    "unknown": ("warning", "without an interval it is not known whether it has learnt the target"),
}
"""By the paired difference with base."""


def _learnt(results: Results, model: str) -> Iterator[Alarm]:
    target = results["target"]
    mine, base, gap = (*(loss_of(results, m, target) for m in (model, "base")), gap_between(results, target, model, "base"))
    if mine is None or base is None or gap is None:
        return
    level, end = _LEARNT[gap.verdict]
    figures = f"{model} has a loss of {nats(mine)} on {target}, base {nats(base)}"
    yield alarm("reference", level, f"{figures}; it is {gap.words}: {end}.")

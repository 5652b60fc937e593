"""Alarms of selection itself: was it active, do the scores belong to the tokens, has the reference learnt the target?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from slmctl.evaluation.alarms_together import Figure, OfArm, together
from slmctl.evaluation.comparing import Alarm, Results, alarm, arms_of, gap_between, known, loss_of, nats, percent

RATIO_OFF = 0.02
"""Distance of the realised ratio from the configured one that is no rounding."""
LIKE_RANDOM, NOT_RANDOM = 0.9, 0.25
"""The way from chance to the very tokens of the random control that an overlap has gone: the scores are ignored, and
suspicious. A selection by scores knows nothing of the control's draws, so that a sound one stays near chance."""
EVERYTHING = 0.999
"""Ratio from which on a selection leaves nothing out."""
BLIND = 0.05
"""Nats a token by which the excess loss of tokens kept and left out differs where the selection does not look at it."""
ALIGNED, WEAK = 0.6, 0.3
"""Correlations of live and reference loss: aligned joins reach 0.84 to 0.95, shifted ones at most 0.13 (small models)."""
FORGOTTEN, FORGOTTEN_CORPUS = 0.5, 0.1
"""Nats a token that the reference may lose to base on another set than the target, and on the corpus it scores."""


def selection(results: Results) -> Iterator[Alarm]:
    yield from together("selection", (said for arm in arms_of(results, "excess_loss", "random") for said in _of(results, arm)))


def _of(results: Results, arm: str) -> Iterator[OfArm]:
    facts = results["arms"][arm]
    wanted, found, random = facts["selection"]["ratio"], facts.get("selected") or {}, arm in arms_of(results, "random")
    skipped = (found.get("skipped_steps") or 0) / max(facts.get("steps") or 1, 1)
    problems = [*_ratio(arm, wanted, found, skipped, random)]
    if not random:
        problems += [*_overlap(arm, wanted, found), *_sign(arm, found)]
    yield from problems
    if not problems and not random and known(found.get("ratio")):
        yield _active(arm, wanted, found)


def _active(arm: str, wanted: float, found: dict[str, Any]) -> OfArm:
    chosen, left = found.get("mean_excess_selected"), found.get("mean_excess_unselected")
    text = f"{arm} trained on {percent(found['ratio'])} of the tokens (wanted: {percent(wanted)})"
    of_many = "{n} arms trained on the share of the tokens that each wants, {ratio}"
    figures: dict[str, Figure] = {"ratio": (found["ratio"], percent)}
    if not known(chosen) or not known(left):
        text += "; the excess losses of those kept and left out are not recorded"
        of_many += "; the excess losses of those kept and left out are not recorded"
        return OfArm(arm, "note", f"{text}.", of_many, figures)
    text += f", with a mean excess loss of {nats(chosen)} nats, where those left out have {nats(left)}"
    of_many += ", with a mean excess loss of {chosen} nats, where those left out have {left}"
    figures |= {"chosen": (chosen, nats), "left": (left, nats)}
    return OfArm(arm, "good", f"Selection was active: {text}.", f"Selection was active: {of_many}", figures)


def _ratio(arm: str, wanted: float, found: dict[str, Any], skipped: float, random: bool) -> Iterator[OfArm]:
    """`skipped` is the share of steps that were left out, whose tokens were seen and not trained on."""
    ratio = found.get("ratio")
    if not known(ratio):
        return
    figures: dict[str, Figure] = {"ratio": (ratio, percent), "wanted": (wanted, percent)}
    if not random and wanted >= EVERYTHING and ratio >= EVERYTHING:
        said = f"trained on {percent(ratio)} of the tokens, as configured"
        text = f"{arm} {said}: it selects nothing away, as an all-tokens arm does."
        of_many = "{n} arms trained on {ratio} of the tokens, as configured: they select nothing away, as an all-tokens arm does"
        yield OfArm(arm, "warning", text, of_many, figures)
        return
    if wanted * (1 - skipped) - RATIO_OFF <= ratio <= wanted + RATIO_OFF:
        return
    everything = ratio > 1 - RATIO_OFF
    end = "selection was not active" if everything else "selection is not the configured one"
    text = f"{arm} trained on {percent(ratio)} of the tokens where {percent(wanted)} are configured: its {end}."
    of_many = f"{{n}} arms trained on {{ratio}} of the tokens where {{wanted}} are configured: their {end}"
    yield OfArm(arm, "bad" if everything else "warning", text, of_many, figures)


def _overlap(arm: str, wanted: float, found: dict[str, Any]) -> Iterator[OfArm]:
    overlap, chance = found.get("overlap_with_random"), found.get("expected_overlap")
    chance = chance if known(chance) else wanted
    if not known(overlap) or chance > 1 - RATIO_OFF:
        return
    way = (overlap - chance) / (1 - chance)
    one = f"{percent(overlap)} of what {arm} selects the random control selects too, where chance gives {percent(chance)}"
    many = "{overlap} of what {n} arms select the random control selects too, where chance gives {chance}"
    figures: dict[str, Figure] = {"overlap": (overlap, percent), "chance": (chance, percent)}
    if way >= LIKE_RANDOM:
        end = "selection is the random control's, and ignores its scores"
        yield OfArm(arm, "bad", f"{one}: its {end}.", f"{many}: their {end}", figures)
    elif abs(way) >= NOT_RANDOM:
        end = "the two are not independent as they should be"
        yield OfArm(arm, "warning", f"{one}: {end}.", f"{many}: {end}", figures)


def _sign(arm: str, found: dict[str, Any]) -> Iterator[OfArm]:
    chosen, left = found.get("mean_excess_selected"), found.get("mean_excess_unselected")
    if not known(chosen) or not known(left) or chosen > left + BLIND:
        return
    level, what = "bad", "Selection looks inverted" if chosen < left - BLIND else "Selection looks blind"
    if chosen > left:
        level, what = "warning", "Selection is hardly to be told from a blind one"
    one = f"the tokens that {arm} selects have a mean excess loss of {nats(chosen)} nats, those it leaves out {nats(left)}"
    many = "the tokens that {n} arms select have a mean excess loss of {chosen} nats, those they leave out {left}"
    yield OfArm(arm, level, f"{what}: {one}.", f"{what}: {many}", {"chosen": (chosen, nats), "left": (left, nats)})


_ALIGNMENT = {
    "good": "the scores belong to the tokens they are joined with",
    "warning": "weak for aligned scores; is the reference a model of this language?",
    "bad": "as if the scores belonged to other tokens; aligned ones reach 0.8 and more",
}


def alignment(results: Results) -> Iterator[Alarm]:
    """Judged by the end of the run: a model that has learnt nothing yet correlates with nothing."""
    yield from together("alignment", (said for arm in arms_of(results, "excess_loss") for said in _aligned(results, arm)))


def _aligned(results: Results, arm: str) -> Iterator[OfArm]:
    found = results["arms"][arm].get("selected") or {}
    first, last = found.get("correlation_first"), found.get("correlation_last")
    judged = last if known(last) else first
    if not known(judged):
        return
    both = ((first, "first"), (last, "last"))
    figures = " and ".join(f"{value:.2f} in the {when} tenth" for value, when in both if known(value))
    level = "good" if judged >= ALIGNED else "bad" if judged < WEAK else "warning"
    verdict = _ALIGNMENT[level]
    text = f"Live and reference losses of {arm} correlate by {figures} of the run: {verdict}"
    of_many = f"Live and reference losses of {{n}} arms correlate by {{judged}} at the end: {verdict.rstrip('?')}"
    yield OfArm(arm, level, text if text.endswith("?") else f"{text}.", of_many, {"judged": (judged, "{:.2f}".format)})


def reference(results: Results) -> Iterator[Alarm]:
    target = results["target"]
    for model in (name for name, found in results["models"].items() if found["kind"] == "reference"):
        mine, base = loss_of(results, model, target), loss_of(results, "base", target)
        if mine is not None and base is not None:
            figures = f"{model} has a loss of {nats(mine)} on {target}, base {nats(base)}"
            if mine >= base:
                text = f"{figures}: it has not learnt the target, so the excess loss does not point there."
                yield alarm("reference", "bad", text)
            else:
                yield alarm("reference", "good", f"{figures}: it has learnt the target.")
        for heldout in (h for h in results["models"][model]["heldout"] if h != target):
            gap = gap_between(results, heldout, model, "base")
            if gap is not None and gap.difference > FORGOTTEN:
                text = f"{model} has forgotten {heldout}: its loss is {nats(gap.difference)} nats a token above base's. "
                yield alarm("reference", "warning", text + "It may select badly; see reference.mix.")
    corpus = (results.get("diagnostics") or {}).get("reference") or {}
    its, base = corpus.get("mean_ref_loss"), corpus.get("mean_base_loss")
    if known(its) and known(base) and its > base + FORGOTTEN_CORPUS:
        text = f"The reference has forgotten the corpus: its mean loss on rows of it is {nats(its)} nats a token, base's "
        yield alarm("reference", "warning", text + f"{nats(base)}. It may select badly; see reference.mix.")

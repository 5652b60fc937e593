"""Alarms of selection itself: was it active, by the scores, and had the reference anything left to teach?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from slmctl.comparison.alarms.merged import ArmAlarm, Figure, together
from slmctl.comparison.comparing import ALIKE, Alarm, Results, arms_of, controls_of, gap_between, known, nats, percent

RATIO_OFF = 0.02
"""Distance of the realised ratio from the configured one that is no rounding."""
LIKE_RANDOM, NOT_RANDOM = 0.9, 0.25
"""The way from chance to the very tokens of the random control that an overlap has gone: the scores are ignored, and
suspicious. A selection by scores knows nothing of the control's draws, so that a sound one stays near chance."""
EVERYTHING = 0.999
"""Ratio from which on a selection leaves nothing out."""
BLIND = 0.05
"""Nats a token by which the excess loss of tokens kept and left out differs where the selection does not look at it."""
BEHIND = 0.1
"""Nats a token by which a reference's loss may lie above the arm's, on the target or the corpus, before it is far worse."""


def selection(results: Results) -> Iterator[Alarm]:
    yield from together("selection", (said for arm in arms_of(results, "excess_loss", "random") for said in _of(results, arm)))


def _of(results: Results, arm: str) -> Iterator[ArmAlarm]:
    facts = results["arms"][arm]
    wanted, found, random = facts["selection"]["ratio"], facts.get("selected") or {}, arm in arms_of(results, "random")
    skipped = (found.get("skipped_steps") or 0) / max(facts.get("steps") or 1, 1)
    problems = [*_ratio(arm, wanted, found, skipped, random)]
    if not random:
        problems += [*_overlap(arm, wanted, found), *_sign(arm, found)]
    doubts = [] if random or problems else [*_ahead(arm, found), *_behind(results, arm)]
    yield from (*problems, *doubts)
    if not problems and not random and known(found.get("ratio")):
        yield _active(arm, wanted, found, "note" if doubts else "good")


def _active(arm: str, wanted: float, found: dict[str, Any], level: str) -> ArmAlarm:
    """What was selected: `level` is note where there are doubts of what it was selected by."""
    chosen, left = found.get("mean_excess_selected"), found.get("mean_excess_unselected")
    text = f"{arm} trained on {percent(found['ratio'])} of the tokens (wanted: {percent(wanted)})"
    of_many = "{n} arms trained on the share of the tokens that each wants, {ratio}"
    figures: dict[str, Figure] = {"ratio": (found["ratio"], percent)}
    if not known(chosen) or not known(left):
        text += "; the excess losses of those kept and left out are not recorded"
        of_many += "; the excess losses of those kept and left out are not recorded"
        return ArmAlarm(arm, "note", f"{text}.", of_many, figures)
    text += f", in its last tenth with a mean excess loss of {nats(chosen)} nats, where those left out have {nats(left)}"
    of_many += ", in the last tenth with a mean excess loss of {chosen} nats, where those left out have {left}"
    figures |= {"chosen": (chosen, nats), "left": (left, nats)}
    return ArmAlarm(arm, level, f"Selection was active: {text}.", f"Selection was active: {of_many}", figures)


def _ahead(arm: str, found: dict[str, Any]) -> Iterator[ArmAlarm]:
    """Where most of the excess loss is negative, the reference is behind on most tokens, and selects by how far."""
    median = found.get("median_excess")
    if not known(median) or median >= 0:
        return
    end = "the arm predicts most tokens better than its reference does, and trains on those where it leads least or is behind"
    one = f"The excess loss of most tokens was negative in the last tenth of {arm} (median {nats(median)} nats): {end}."
    many = f"The excess loss of most tokens was negative in the last tenth of {{n}} arms (median {{median}} nats): {end}"
    yield ArmAlarm(arm, "note", one, many, {"median": (median, nats)})


def _behind(results: Results, arm: str) -> Iterator[ArmAlarm]:
    """A reference that predicts worse than the arm by much, on what it is to point at or on what it scores."""
    facts = results["arms"][arm]
    found = facts.get("selected") or {}
    chosen, left, share = (found.get(k) for k in ("mean_excess_selected", "mean_excess_unselected", "ratio"))
    if known(chosen) and known(left) and known(share) and (excess := share * chosen + (1 - share) * left) < -BEHIND:
        one = f"On the corpus, in the last tenth of {arm}, the reference's loss was {nats(-excess)} nats a token above the arm's"
        many = "On the corpus, in the last tenth of {n} arms, the reference's loss was {by} nats a token above the arms'"
        end = f": the reference predicts the text that it scores worse than what learns from it. {_advice(facts)}"
        yield ArmAlarm(arm, "warning", f"{one}{end}.", f"{many}{end}", {"by": (-excess, nats)})
    yield from _behind_on_target(results, arm)


def _advice(facts: dict[str, Any]) -> str:
    if facts.get("own_reference") is False:
        return "Select by another reference, one that has learnt such text"
    return "Train it on: more reference.epochs (or tokens), a higher reference.lr, or a share of corpus rows, reference.mix"


def _behind_on_target(results: Results, arm: str) -> Iterator[ArmAlarm]:
    """Of a reference that is far above the arm, or above it or a control that the arm does not beat."""
    facts, target = results["arms"][arm], results["target"]
    if not facts.get("own_reference"):
        return
    gap = gap_between(results, target, "reference", arm)
    if gap is not None and (gap.difference > BEHIND or (gap.difference >= ALIKE and next(_unbeaten(results, arm), None))):
        end = f"the arm predicts the target better than the reference that it selects by. {_advice(facts)}"
        one = f"In the end the reference's loss on {target} is {nats(gap.difference)} nats a token above {arm}'s: {end}."
        many = f"In the end the reference's loss on {target} is {{by}} nats a token above that of {{n}} arms: {end}"
        yield ArmAlarm(arm, "warning", one, many, {"by": (gap.difference, nats)})
        return
    for control in _unbeaten(results, arm):
        over = gap_between(results, target, "reference", control)
        if over is not None and over.difference >= ALIKE:
            end = f"what {arm} selects by predicts the target worse than a model that needs no reference. {_advice(facts)}"
            one = f"In the end the reference's loss on {target} is {nats(over.difference)} nats a token above that of {control}, "
            many = f"{{n}} arms do not beat {control}, and the reference's loss on {target} is {{by}} nats a token above its own"
            many = f"{many}. {_advice(facts)}"
            yield ArmAlarm(arm, "warning", f"{one}which {arm} does not beat: {end}.", many, {"by": (over.difference, nats)})
            return


def _unbeaten(results: Results, arm: str) -> Iterator[str]:
    """Controls than which the arm is not better on the target, beyond chance."""
    for control in controls_of(results, arm, "all", "random"):
        gap = gap_between(results, results["target"], arm, control)
        if gap is not None and gap.verdict != "better":
            yield control


def _ratio(arm: str, wanted: float, found: dict[str, Any], skipped: float, random: bool) -> Iterator[ArmAlarm]:
    """`skipped` is the share of steps that were left out, whose tokens were seen and not trained on."""
    ratio = found.get("ratio")
    if not known(ratio):
        return
    figures: dict[str, Figure] = {"ratio": (ratio, percent), "wanted": (wanted, percent)}
    if not random and wanted >= EVERYTHING and ratio >= EVERYTHING:
        said = f"trained on {percent(ratio)} of the tokens, as configured"
        text = f"{arm} {said}: it selects nothing away, as an all-tokens arm does."
        of_many = "{n} arms trained on {ratio} of the tokens, as configured: they select nothing away, as an all-tokens arm does"
        yield ArmAlarm(arm, "warning", text, of_many, figures)
        return
    if wanted * (1 - skipped) - RATIO_OFF <= ratio <= wanted + RATIO_OFF:
        return
    everything = ratio > 1 - RATIO_OFF
    end = "selection was not active" if everything else "selection is not the configured one"
    text = f"{arm} trained on {percent(ratio)} of the tokens where {percent(wanted)} are configured: its {end}."
    of_many = f"{{n}} arms trained on {{ratio}} of the tokens where {{wanted}} are configured: their {end}"
    yield ArmAlarm(arm, "bad" if everything else "warning", text, of_many, figures)


def _overlap(arm: str, wanted: float, found: dict[str, Any]) -> Iterator[ArmAlarm]:
    overlap, chance = found.get("overlap_with_random"), found.get("expected_overlap")
    chance = chance if known(chance) else wanted
    if not known(overlap) or chance > 1 - RATIO_OFF:
        return
    way = (overlap - chance) / (1 - chance)
    one = f"{percent(overlap)} of what {arm} selected in its first steps its own random draw takes too, where chance gives "
    one += percent(chance)
    many = "{overlap} of what {n} arms selected in their first steps their own random draws take too, where chance gives {chance}"
    figures: dict[str, Figure] = {"overlap": (overlap, percent), "chance": (chance, percent)}
    if way >= LIKE_RANDOM:
        end = "selection is random, and ignores its scores"
        yield ArmAlarm(arm, "bad", f"{one}: its {end}.", f"{many}: their {end}", figures)
    elif abs(way) >= NOT_RANDOM:
        end = "the two are not independent as they should be"
        yield ArmAlarm(arm, "warning", f"{one}: {end}.", f"{many}: {end}", figures)


def _sign(arm: str, found: dict[str, Any]) -> Iterator[ArmAlarm]:
    chosen, left = found.get("mean_excess_selected"), found.get("mean_excess_unselected")
    if not known(chosen) or not known(left) or chosen > left + BLIND:
        return
    level, what = "bad", "Selection looks inverted" if chosen < left - BLIND else "Selection looks blind"
    if chosen > left:
        level, what = "warning", "Selection is hardly to be told from a blind one"
    one = f"the tokens that {arm} selects have a mean excess loss of {nats(chosen)} nats, those it leaves out {nats(left)}"
    many = "the tokens that {n} arms select have a mean excess loss of {chosen} nats, those they leave out {left}"
    one, many = (f"{said} (in the last tenth)" for said in (one, many))
    yield ArmAlarm(arm, level, f"{what}: {one}.", f"{what}: {many}", {"chosen": (chosen, nats), "left": (left, nats)})

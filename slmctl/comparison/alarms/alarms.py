"""What a careful reader of results.json would say before believing it: in plain words, with the figures in the sentence.

Each rule looks at one thing and says nothing where there is nothing to say. Limits that are judgements have a name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from slmctl.comparison.alarms.contamination import contamination
from slmctl.comparison.alarms.cost import cost
from slmctl.comparison.alarms.merged import ArmAlarm, Figure, together
from slmctl.comparison.alarms.reference import alignment, reference
from slmctl.comparison.alarms.selection import selection
from slmctl.comparison.alarms.training import clipped
from slmctl.comparison.alarms.versus_control import over_seeds, settings, target_loss, tasks
from slmctl.comparison.comparing import (
    SEEDS,
    Alarm,
    Results,
    alarm,
    arms_of,
    controls_of,
    gap_between,
    known,
    nats,
    percent,
    seeded,
    signed,
)

LEVELS = ("bad", "warning", "note", "good")
DOCUMENTS, MANY_ARMS = 30, 5
UNEQUAL = 0.5
"""Share of its documents that a set counts as, below which it is said that few of them hold most of the tokens."""


def alarms(results: Results) -> list[Alarm]:
    """[{name, level: bad, warning, note or good, text}], the most important first. `results` is results.json (schema 2)."""
    once = _without_repeats(results)
    found = [said for rule in RULES for said in rule(results if rule in OF_ALL else once)]
    return sorted(found, key=lambda said: LEVELS.index(said["level"]))


def _without_repeats(results: Results) -> Results:
    """Of arms that were repeated with enough seeds, the first alone: what is said of their mean is said once."""
    repeats = {arm for entry in seeded(results) for arm in entry["arms"] if arm != entry["arm"]}
    return {**results, "arms": {a: facts for a, facts in results.get("arms", {}).items() if a not in repeats}}


# --- is it there at all ---


def finite(results: Results) -> Iterator[Alarm]:
    for model, found in results["models"].items():
        for heldout, figures in found["heldout"].items():
            if not known(figures["loss"]):
                yield alarm("finite", "bad", f"The loss of {model} on {heldout} is not finite: the model is broken there.")
    for arm, facts in results.get("arms", {}).items():
        steps = [e["step"] for e in facts.get("evals", []) if not all(known(loss) for loss in e["heldout"].values())]
        if steps:
            yield alarm("finite", "warning", f"{arm} had a held-out loss that is not finite while training, at step {steps[0]}.")


def controls(results: Results) -> Iterator[Alarm]:
    if not arms_of(results, "excess_loss"):
        return
    every, random = arms_of(results, "all"), arms_of(results, "random")
    if not every and not random:
        text = "There is no control: neither an arm that trains on all tokens nor one that selects at random. No claim follows."
        yield alarm("controls", "bad", text)
    elif not every:
        text = "No arm trains on all tokens: whether selecting is better than not selecting is not known."
        yield alarm("controls", "warning", text)
    elif not random:
        text = "No arm selects at random: whether it matters which tokens are chosen, or just how many, is not known."
        yield alarm("controls", "warning", text)


def ratios_of_random(results: Results) -> Iterator[Alarm]:
    ratio = {arm: facts["selection"]["ratio"] for arm, facts in results.get("arms", {}).items()}
    random = {ratio[arm] for arm in arms_of(results, "random")}
    alone = [f"{arm} ({percent(ratio[arm])})" for arm in arms_of(results, "excess_loss") if ratio[arm] not in random]
    if random and alone:
        others = " and ".join(percent(r) for r in sorted(random))
        text = f"The random arms train on {others} of the tokens: {', '.join(alone)} has no random twin of its own ratio."
        yield alarm("random_ratio", "note", text)


# --- who is better, and how sure that is ---


def seeds(results: Results) -> Iterator[Alarm]:
    compared = arms_of(results, "excess_loss", "all", "random")
    if len(compared) < 2:
        return
    entries = seeded(results)
    alone = [arm for arm in compared if not any(arm in e["arms"] or arm == e["arm"] for e in entries)]
    if alone:
        who = "Every arm" if len(alone) == len(compared) else ", ".join(alone)
        text = f"{who} was trained with fewer than {SEEDS} seeds. An interval over documents says how well the held-out set "
        yield alarm("seeds", "warning", text + "measures these models, and nothing of how another seed would turn out.")
    for entry in entries:
        found = entry["target_loss"]
        text = f"{entry['arm']} over {found['n']} seeds: target loss {found['mean']:.4f} ± {nats(found['sd'])} (mean ± sd)."
        yield alarm("seeds", "note", text)


def many_arms(results: Results) -> Iterator[Alarm]:
    arms = arms_of(results, "excess_loss")
    if len({results["arms"][a].get("seed") for a in arms}) < len(arms) >= MANY_ARMS:
        text = (
            f"{len(arms)} arms that select were compared on one held-out set: the best of them probably looks better than it is."
        )
        yield alarm("many_arms", "note", text)


_THAN = {
    "better": "better than",
    "worse": "worse than",
    "open": "not to be told from",
    "same": "to three digits the same as",
    "unknown": "not judged against",
}


def forgetting(results: Results) -> Iterator[Alarm]:
    sets = [h for h in results["models"].get("base", {}).get("heldout", {}) if h != results["target"]]
    both = ((arm, heldout) for arm in arms_of(results, "excess_loss") for heldout in sets)
    yield from together("forgetting", (said for arm, heldout in both for said in _forgotten(results, arm, heldout)))


def _forgotten(results: Results, arm: str, heldout: str) -> Iterator[ArmAlarm]:
    control = (controls_of(results, arm, "all") or controls_of(results, arm, "random"))[:1]
    rivals = {**dict.fromkeys(control, "control"), "base": "base"}
    told = {other: gap for other in rivals if (gap := gap_between(results, heldout, arm, other)) is not None}
    if not told:
        return
    verdicts = {o: gap.verdict for o, gap in told.items()}
    level = "bad" if verdicts.get("base") == "worse" else "warning" if "worse" in verdicts.values() else "note"
    level = "good" if set(verdicts.values()) == {"better"} else level
    where = f"On {heldout}, which is not the target"
    one = " and ".join(f"{_THAN[verdicts[o]]} {o}'s, {gap.words}" for o, gap in told.items())
    many = " and ".join(f"{_THAN[verdicts[o]]} that of {{{rivals[o]}}}, by {{by_{rivals[o]}}} nats a token" for o in told)
    figures: dict[str, Figure] = {f"by_{rivals[o]}": (gap.difference, signed) for o, gap in told.items()}
    names = {rivals[o]: o for o in told}
    yield ArmAlarm(arm, level, f"{where}, {arm}'s loss is {one}.", f"{where}, the loss of {{n}} arms is {many}", figures, names)


# --- what it was measured with ---


def documents(results: Results) -> Iterator[Alarm]:
    model: dict[str, Any] = next(iter(results["models"].values()), {})
    for heldout, figures in model.get("heldout", {}).items():
        number = figures.get("documents")
        if number is not None and number < DOCUMENTS:
            text = f"{heldout} holds fewer than {DOCUMENTS} documents, {number}: its figures and intervals are rough."
            yield alarm("documents", "warning" if heldout == results["target"] else "note", text)
        effective = figures.get("effective_documents")
        if number is not None and known(effective) and effective < UNEQUAL * number:
            text = f"Few long documents hold most of the tokens of {heldout}: its {number:,} count as {effective:.0f} of equal "
            text += "length. Its intervals are the wider for it, and hold the truth as often as they say where a document's loss "
            text += "does not depend on its length; where it does, less often (of 95% intervals 73 to 97% in simulations)."
            few = effective < DOCUMENTS and heldout == results["target"]
            yield alarm("documents", "warning" if few else "note", text)


def skipped_steps(results: Results) -> Iterator[Alarm]:
    for arm, facts in results.get("arms", {}).items():
        skipped = (facts.get("selected") or {}).get("skipped_steps")
        if skipped:
            text = f"{arm} left out {skipped} of its {facts['steps']} steps, whose loss or gradient was not finite or a spike."
            yield alarm("skipped", "warning", text)


def cut_prompts(results: Results) -> Iterator[Alarm]:
    for model, found in results["models"].items():
        for task, figures in found.get("tasks", {}).items():
            if figures.get("prompts_cut"):
                text = f"{figures['prompts_cut']} of {figures['items']} prompts of {task} were too long for {model} and were cut."
                yield alarm("prompts", "warning", text)


RULES: tuple[Callable[[Results], Iterator[Alarm]], ...] = (
    finite,
    contamination,
    controls,
    selection,
    alignment,
    reference,
    over_seeds,
    target_loss,
    seeds,
    forgetting,
    cost,
    tasks,
    settings,
    clipped,
    ratios_of_random,
    documents,
    skipped_steps,
    cut_prompts,
    many_arms,
)
"""In order of importance, where the level is the same."""
OF_ALL = (finite, controls, over_seeds, seeds, skipped_steps, cut_prompts)
"""Rules that look at every repetition of an arm with another seed, too."""

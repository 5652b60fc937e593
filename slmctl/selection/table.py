"""The table of criteria. A new one is a file in `criteria/`, its test, and a row here.

Importing this imports no torch, so that a configuration is checked without it.
"""

from __future__ import annotations

from slmctl.selection.criteria.all_tokens import CRITERION as ALL
from slmctl.selection.criteria.blend import CRITERION as BLEND
from slmctl.selection.criteria.excess_loss import CRITERION as EXCESS_LOSS
from slmctl.selection.criteria.excess_of_several import CRITERION as EXCESS_OF_SEVERAL
from slmctl.selection.criteria.frequency import CRITERION as FREQUENCY
from slmctl.selection.criteria.masks_of_parts import INTERSECTION, UNION
from slmctl.selection.criteria.middle import CRITERION as MIDDLE
from slmctl.selection.criteria.own_loss import CRITERION as OWN_LOSS
from slmctl.selection.criteria.position import CRITERION as POSITION
from slmctl.selection.criteria.random_tokens import CRITERION as RANDOM
from slmctl.selection.criteria.ref_entropy import CRITERION as REF_ENTROPY
from slmctl.selection.criteria.ref_loss import CRITERION as REF_LOSS
from slmctl.selection.criteria.stored_differences import BASE_MINUS_REF, CONTRAST, LEARNABILITY
from slmctl.selection.criteria.threshold import CRITERION as THRESHOLD
from slmctl.selection.criterion import Choice, Column, Criterion, Feature, Live

CRITERIA: dict[str, Criterion] = {
    c.name: c
    for c in (
        *(ALL, RANDOM, EXCESS_LOSS, OWN_LOSS, REF_LOSS, REF_ENTROPY, INTERSECTION, UNION, EXCESS_OF_SEVERAL),
        *(BASE_MINUS_REF, LEARNABILITY, CONTRAST, THRESHOLD, MIDDLE, POSITION, FREQUENCY, BLEND),
    )
}


def criterion_of(choice: Choice) -> Criterion:
    return CRITERIA[choice.criterion]


def _of_all(choice: Choice) -> list[Choice]:
    """A choice and, of one that is composed, whatever it is made of."""
    return [choice, *(inner for part in choice.parts for inner in _of_all(part))]


def live_of(choice: Choice) -> tuple[Live, ...]:
    """What a choice reads of the model in training; nothing where its mask is known before the forward pass."""
    found: list[Live] = []
    for one in _of_all(choice):
        live = criterion_of(one).live
        found += live(one) if callable(live) else live
    return tuple(dict.fromkeys(found))


def features_of(choice: Choice) -> tuple[Feature, ...]:
    """What a choice reads of tokens and places."""
    return tuple(dict.fromkeys(f for one in _of_all(choice) for f in criterion_of(one).features))


def stored_of(choice: Choice) -> tuple[tuple[str, Column], ...]:
    """The score sets that a choice reads, each with a column, by the sets' own names."""
    found = [(name, column) for one in _of_all(choice) for name in one.sets.values() for column in criterion_of(one).reads]
    return tuple(dict.fromkeys(found))


def has_known_count(choice: Choice) -> bool:
    """Whether exactly ceil(ratio x valid) of each group are selected, so that nobody has to ask how many there are."""
    return criterion_of(choice).mask is None or choice.criterion == "all"

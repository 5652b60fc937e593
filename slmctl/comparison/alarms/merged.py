"""One alarm for many arms of which the same is said, with their names and the range of each figure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from slmctl.comparison.comparing import Alarm, alarm, known

APART = 3
"""Arms of which the same is said each in a sentence of its own; of more, one sentence says it of all."""
Figure = tuple[float | None, Callable[[float], str]]
"""A value, and how it is written."""


@dataclass(frozen=True)
class ArmAlarm:
    """What is said of one arm, and how the same is said of many."""

    arm: str
    level: str
    text: str
    of_many: str
    """The sentence on many, without their names: `{n}` is how many, `{key}` the range of a figure, or of names. Arms that share
    it are told together."""
    figures: dict[str, Figure] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)


def together(name: str, found: Iterable[ArmAlarm]) -> Iterator[Alarm]:
    """The alarms, in the order in which the first of each kind was found."""
    groups: dict[tuple[str, str], list[ArmAlarm]] = {}
    for said in found:
        groups.setdefault((said.level, said.of_many), []).append(said)
    for (level, of_many), those in groups.items():
        if len(those) <= APART:
            yield from (alarm(name, level, said.text) for said in those)
            continue
        figures = {key: _range([s.figures[key] for s in those]) for key in those[0].figures}
        names = {key: ", ".join(dict.fromkeys(s.names[key] for s in those)) for key in those[0].names}
        text = of_many.format(n=len(those), **figures, **names)
        yield alarm(name, level, f"{text} ({', '.join(s.arm for s in those)}).")


def _range(figures: list[Figure]) -> str:
    """`0.61 to 0.88`, or the one value that all have."""
    write = figures[0][1]
    values = [value for value, _ in figures if known(value)]
    low, high = write(min(values)), write(max(values))
    return low if low == high else f"{low} to {high}"

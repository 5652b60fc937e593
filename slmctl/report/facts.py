"""Reading results.json: what most tables and figures ask of it, with nothing taken for granted."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from slmctl.comparison.comparing import SeedGap, controls_of, seed_gap, seeds_of
from slmctl.comparison.crossings_in_words import headline_of, seeds_headline
from slmctl.config.selection import is_control
from slmctl.report import numbers as n
from slmctl.report.safe_text import Names
from slmctl.report.theme import SERIES, SOFT, Look, looks

CRITERIA = {"excess_loss": "highest excess loss", "all": "all tokens", "random": "random tokens"}
"""Words of those that every page has; the others' names are theirs."""
PLAIN = ("all", "random")
"""Criteria of the controls: they look at no loss."""
_SCOPES = {
    "global": ("of each micro-batch", "all tokens of a micro-batch, on all ranks, compete"),
    "threshold": ("by a running threshold", "each token is held against a running quantile of the scores"),
}
"""Scopes in which tokens do not compete within groups of rows: as a share is followed by them, and as a sentence."""
ROLLING = (
    "Bits per byte are of rows: EOS counts as a token, and a row’s first token, which nothing precedes, does not; "
    "rolling ones are those of lm-evaluation-harness: each document by itself, its first token after BOS or EOS, without the "
    "EOS that ends it."
)
"""Why a set's two figures of bits per byte differ."""
_LEFT_OUT = re.compile(r"rho-(?:math|general): ([^\s:]+)(?: is|:) left out")


def dig(data: Any, *path: str) -> Any:
    """The value under the keys of `path`, or None where one is absent."""
    for key in path:
        if not isinstance(data, dict):
            return None
        data = data.get(key)
    return data


def has_rolling(models: Any) -> bool:
    """Whether any model was measured by the harness' definition, too."""
    sets = (dig(m, "rolling") for m in (models.values() if isinstance(models, dict) else ()))
    return any(n.number(dig(h, "bits_per_byte")) is not None for s in sets if isinstance(s, dict) for h in s.values())


def rows_of(data: Any, *path: str) -> list[dict[str, Any]]:
    """The records of a list under `path`; whatever else stands there is left out."""
    found = dig(data, *path)
    return [r for r in found if isinstance(r, dict)] if isinstance(found, list) else []


def items_of(data: Any, *path: str) -> dict[str, Any]:
    found = dig(data, *path) if path else data
    return found if isinstance(found, dict) else {}


@dataclass
class Facts:
    """The results of one pipeline and, for each arm, the records of its training log."""

    results: dict[str, Any]
    logs: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    names: Names = field(default_factory=Names)

    @cached_property
    def models(self) -> dict[str, dict[str, Any]]:
        return items_of(self.results, "models")

    @cached_property
    def arms(self) -> dict[str, dict[str, Any]]:
        return items_of(self.results, "arms")

    @cached_property
    def columns(self) -> list[str]:
        """Models in the order of columns: arms first, since these are compared; base and reference beside them."""
        return sorted(self.models, key=lambda m: m not in self.arms)

    @cached_property
    def target(self) -> str:
        return str(self.results.get("target", "target"))

    @cached_property
    def level(self) -> str:
        return n.ratio(self.results.get("level") or 0.95)

    @cached_property
    def looks(self) -> dict[str, Look]:
        """Of every name that may appear, arms first."""
        others = [name for name in self.models if name not in self.arms]
        plain = {name: Look(SOFT, (0, (1, 1.5)), "xp"[i % 2]) for i, name in enumerate(others)}
        return looks(self.arms) | plain

    def look(self, name: str) -> Look:
        return self.looks.get(name, Look(SERIES[-1]))

    @cached_property
    def sets(self) -> list[str]:
        """Held-out sets, the target first."""
        found: dict[str, None] = {}
        for model in self.models.values():
            found |= dict.fromkeys(items_of(model, "heldout"))
        return sorted(found, key=lambda s: s != self.target)

    @cached_property
    def tasks(self) -> list[str]:
        found: dict[str, None] = {}
        for model in self.models.values():
            found |= dict.fromkeys(items_of(model, "tasks"))
        return list(found)

    @cached_property
    def main(self) -> str | None:
        """The first arm that selects by a loss: the one that the page's first lines are about."""
        selecting = [a for a in self.arms if self.criterion(a) not in (None, *PLAIN)]
        scored = [a for a in selecting if not is_control(items_of(self.arms, a, "selection"))]
        return next(iter([*scored, *selecting]), None)

    @cached_property
    def controls(self) -> list[str]:
        """All-tokens arms, then random ones."""
        return [a for kind in PLAIN for a in self.arms if self.criterion(a) == kind]

    def controls_of(self, arm: str) -> list[str]:
        """The controls that an arm is held against: all-tokens arms, then random ones; of its own seed where there are such."""
        whole = {**self.results, "arms": {a: f for a, f in self.arms.items() if self.criterion(a) is not None}}
        if arm not in whole["arms"]:
            return []
        return [c for kind in PLAIN for c in controls_of(whole, arm, kind) if c != arm]

    def seeds(self, arm: str) -> dict[str, Any] | None:
        """The entry of `seeds` that an arm is of, where it has enough seeds to be judged by their mean."""
        return seeds_of({"seeds": [s for s in rows_of(self.results, "seeds") if items_of(s, "target_loss")]}, arm)

    def seed_gap(self, a: str, b: str) -> SeedGap | None:
        """Arm a against arm b over seeds, where both have enough."""
        mine, its = self.seeds(a), self.seeds(b)
        return None if mine is None or its is None or mine is its else seed_gap(self.results, mine, its)

    def repeated(self, arm: str) -> dict[str, Any] | None:
        """Of an arm's seeds, where one of its controls has enough for their means to be compared."""
        return self.seeds(arm) if any(self.seed_gap(arm, c) for c in self.controls_of(arm)) else None

    def headline(self, arm: str) -> dict[str, Any]:
        """What it took an arm to reach its control: `control` of the results; empty where there is none."""
        return headline_of(items_of(self.arms, arm, "control"))

    def headline_over_seeds(self, arm: str) -> dict[str, Any]:
        """The same over an arm's seeds; empty where that was not worked out."""
        entries = [s for s in rows_of(self.results, "seeds") if s.get("control")]
        return seeds_headline({"seeds": entries}, arm)

    @cached_property
    def notes(self) -> list[str]:
        """Notes of the results, each once; of a task that two suites had to leave out, the first."""
        found: dict[str, str] = {}
        for note in self.results.get("notes") or []:
            task = _LEFT_OUT.match(str(note))
            found.setdefault(f"left out: {task[1]}" if task else str(note), str(note))
        return list(found.values())

    def criterion(self, arm: str) -> str | None:
        found = dig(self.arms, arm, "selection", "criterion")
        return None if found is None else str(found)

    def selection(self, arm: str) -> str:
        """`highest excess loss, 60%`, and within what where that is no group of rows; a dash for models that are no arms."""
        criterion = self.criterion(arm)
        if criterion is None:
            return n.NONE
        words = CRITERIA.get(criterion, criterion.replace("_", " "))
        share = dig(self.arms, arm, "selection", "ratio")
        if criterion == "all" or n.number(share) is None:
            return words
        chosen = items_of(self.arms, arm, "selection")
        parts = [f"{p.get('criterion')} {n.ratio(p.get('ratio'))}" for p in chosen.get("parts") or []]
        if parts:
            return f"{words} of {' and '.join(parts)}"
        within = _SCOPES.get(str(chosen.get("scope")), ("",))[0]
        soft = f"{chosen['weighting'].get('soft')} weights" if chosen.get("weighting") else ""
        rest = f"others {n.ratio(chosen['unselected_weight'])}" if chosen.get("unselected_weight") else ""
        return ", ".join(x for x in (f"{words}, {n.ratio(share)} {within}".rstrip(), soft, rest) if x)

    def competition(self, arm: str) -> str:
        """Which tokens compete for being trained on: `groups of 8 rows`."""
        chosen = items_of(self.arms, arm, "selection")
        if chosen.get("criterion") == "all":
            return "none: all are kept"
        if chosen.get("scope") in _SCOPES:
            return f"{chosen['scope']}: {_SCOPES[chosen['scope']][1]}"
        return _groups(chosen)

    def stand_in(self, arms: Iterable[str]) -> str:
        """A sentence for what is shown of rows apart from training, where groups stand in for another scope; else nothing."""
        found = ""
        for arm in arms:
            chosen = items_of(self.arms, arm, "selection")
            if chosen.get("scope") in _SCOPES and chosen.get("criterion") not in PLAIN:
                found += f" In training {arm} had scope {chosen['scope']} ({_SCOPES[chosen['scope']][1]}); "
                found += f"here its tokens compete within {_groups(chosen)} instead."
        return found

    def part_of(self, heldout: str, tokens: float) -> str:
        """On what part of a set losses on so many of its predicted tokens were measured: `8,128 of the set's 25,344 tokens`."""
        whole = next(
            (x for m in self.models if (x := n.number(dig(self.models, m, "heldout", heldout, "predicted_tokens")))), None
        )
        if whole is None:
            return f"{n.count(tokens)} tokens"
        return (
            f"all {n.count(whole)} tokens of the set"
            if tokens >= whole
            else f"{n.count(tokens)} of the set's {n.count(whole)} tokens"
        )

    def leaks(self, heldout: str) -> str:
        """What is known of a set's documents standing in the text that models learn from, as a clause."""
        checked = items_of(self.results, "contamination", "heldout", heldout)
        sides = [s for s in ("curated", "corpus") if n.number(dig(checked, s, "exact")) is not None]
        if not sides or dig(self.results, "contamination", "not_checked", "all"):
            return "whether they stand in training text was not checked"
        found = {s: int(checked[s]["exact"]) + int(checked[s].get("overlap") or 0) for s in sides}
        told = [f"{number:,} found in {side} text" for side, number in found.items() if number]
        clear = [side for side, number in found.items() if not number]
        told += [f"none found in {' or '.join(clear)} text"] if clear else []
        return ", ".join(told) + (", nothing else checked" if len(sides) < 2 else "")

    def loss(self, model: str, heldout: str) -> float | None:
        return n.number(dig(self.models, model, "heldout", heldout, "loss"))

    def loss_interval(self, model: str, heldout: str) -> tuple[float, float] | None:
        return n.pair(dig(self.models, model, "heldout", heldout, "interval"))

    def difference(self, heldout: str, a: str, b: str) -> tuple[float, tuple[float, float] | None] | None:
        """Loss of a minus loss of b with its interval, whichever way round it is recorded; None where it is not."""
        for d in rows_of(self.results, "differences"):
            value, ends = n.number(d.get("difference")), n.pair(d.get("interval"))
            if d.get("set") != heldout or value is None:
                continue
            if (d.get("a"), d.get("b")) == (a, b):
                return value, ends
            if (d.get("a"), d.get("b")) == (b, a):
                return -value, (-ends[1], -ends[0]) if ends else None
        return None


def _groups(selection: dict[str, Any]) -> str:
    rows = n.count(selection.get("group_rows"))
    return "groups of rows" if rows == n.NONE else "each row" if rows == "1" else f"groups of {rows} rows"


def extreme(task: dict[str, Any]) -> str:
    """Of a task's result that none or all of the items are right: its standard error would be 0, however few they are."""
    accuracy, unread = n.number(task.get("accuracy")), n.number(task.get("unread"))
    if accuracy not in (0.0, 1.0):
        return ""
    if accuracy == 0 and unread and unread == n.number(task.get("items")):
        return "none right: no answer could be read from any output"
    words = "all right" if accuracy else "none right"
    return f"{words}; from {n.count(unread)} outputs no answer could be read" if unread else words


def beyond_chance(interval: Sequence[float] | None) -> bool | None:
    """Whether an interval of a difference leaves out zero; None where there is none."""
    return None if interval is None else interval[0] > 0 or interval[1] < 0

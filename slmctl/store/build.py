"""Making a set with many workers: what is there, what is missing, what does not belong; and the manifest at the end.

A set's plan is published once, before any shard, and says how many shards there will be; nothing depends on how many workers
make them. Each shard is made by whoever gets to it, is published whole, and the first one stays.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from slmctl.store.manifest import Shard
from slmctl.store.shard_file import ShardFile, whole_shard
from slmctl.store.shard_format import shard_name
from slmctl.system.console import say
from slmctl.system.errors import CorruptError, SlmError
from slmctl.system.storage import Entry, Folder

PLAN = "plan.json"
THREADS = 16
"""Footers read at once: waiting for a disk or a network, not computing."""

Bound = Callable[[int], dict[str, Any]]
"""By index of a shard: facts that it must hold to belong to the set."""


@dataclass
class Coverage:
    """The shards of a plan that are there, and the files that are there besides."""

    shards: list[Shard | None]
    """By index; None where the shard is missing or unusable."""
    facts: list[dict[str, Any] | None]
    broken: dict[str, str]
    """Files under a shard's name that are not usable, and why."""
    foreign: list[str]
    """Files that look like shards and are in no plan."""
    orphaned: list[str]
    """Temporaries whose writer is gone."""
    working: list[str]
    """Temporaries whose writer lives."""
    finished: list[float]
    """When each shard that is there was published (seconds since the epoch)."""

    @property
    def missing(self) -> list[int]:
        return [i for i, s in enumerate(self.shards) if s is None]

    @property
    def tokens(self) -> int:
        return sum(s.tokens for s in self.shards if s is not None)

    def rate(self) -> float | None:
        """Tokens a second over the last hour of publishing, all workers together; None where too little is known."""
        done = sorted((at, s.tokens) for at, s in zip(self.finished, [s for s in self.shards if s is not None], strict=True))
        recent = [d for d in done if d[0] > done[-1][0] - 3600]
        if len(recent) < 2 or recent[-1][0] <= recent[0][0]:
            return None
        return sum(n for _, n in recent[1:]) / (recent[-1][0] - recent[0][0])

    def seconds_left(self) -> float | None:
        """At the present rate; None where that is not known, or nothing was published for a while."""
        rate, there = self.rate(), len(self.shards) - len(self.missing)
        if not self.missing:
            return 0.0
        if rate is None or not there:
            return None
        return self.tokens / there * len(self.missing) / rate

    def idle(self) -> float:
        """Seconds since the last shard was published."""
        return time.time() - max(self.finished, default=time.time())


def read_plan(folder: Folder) -> dict[str, Any] | None:
    """A set's plan; None where there is none."""
    try:
        found: dict[str, Any] = folder.get_json(PLAN)
    except FileNotFoundError:
        return None
    return found


def names_in(folder: Folder, count: int) -> dict[str, Entry]:
    """The files of a plan's `count` shards that are there."""
    listing = folder.listing()
    return {n: listing[n] for i in range(count) if (n := shard_name(i)) in listing}


def survey(folder: Folder, count: int, bound: Bound) -> Coverage:
    """Reads the footer of every shard that is there."""
    listing = folder.listing()
    wanted = [shard_name(i) for i in range(count)]
    temporaries = folder.temporaries()

    def look(i: int) -> tuple[Shard, dict[str, Any]] | str | None:
        if wanted[i] not in listing:
            return None
        try:
            file = ShardFile(folder, wanted[i])
        except CorruptError as e:
            return str(e)
        try:
            other = [k for k, v in bound(i).items() if file.facts.get(k) != v]
            if other:
                return f"{file.name} was made from other inputs ({', '.join(other)} differ)"
            return file.described(), file.facts
        finally:
            file.close()

    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(look, range(count)))
    good = [f if isinstance(f, tuple) else None for f in found]
    return Coverage(
        [f[0] if f else None for f in good],
        [f[1] if f else None for f in good],
        {wanted[i]: f for i, f in enumerate(found) if isinstance(f, str)},
        sorted(n for n in listing if n.startswith("shard-") and n.endswith(".parquet") and n not in set(wanted)),
        sorted(n for n, gone in temporaries.items() if gone),
        sorted(n for n, gone in temporaries.items() if not gone),
        [listing[wanted[i]].modified for i, f in enumerate(good) if f],
    )


def in_order(coverage: Coverage) -> list[Shard]:
    """The manifest's entries of a complete set, each with its first row."""
    first, shards = 0, []
    for s in coverage.shards:
        assert s is not None
        shards.append(replace(s, first_row=first))
        first += s.rows
    return shards


def make(folder: Folder, index: int, bound: dict[str, Any], write: Callable[[], bool]) -> None:
    """Runs `write`, which tells whether it published its own, unless a whole shard that is bound to the same inputs is there.
    A broken one is set aside first; a temporary that was swept away while its writer hung is written again. Raises
    `InputError` where a shard cannot be read at all: that does not make it broken."""
    name = shard_name(index)
    for _ in range(3):
        if folder.exists(name):
            if whole_shard(folder, name, bound) is not None:
                return
            aside = folder.set_aside(name)
            say(
                f"{folder}/{name} is broken or was made from other inputs; it is made anew"
                + (f", the old one is {aside}" * bool(aside))
            )
            if aside is not None and whole_shard(folder, aside, bound) is not None:
                folder.put_back(aside, name)  # another worker had mended it in the meantime
                return
        try:
            published = write()
        except FileNotFoundError:
            continue
        if published:
            return
    raise SlmError(f"{folder}/{name} could not be published in three attempts. Is another program changing that folder?")

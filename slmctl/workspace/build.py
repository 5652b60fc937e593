"""What prepare and score share: a set that many workers make, its manifest, its status, its verification."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from slmctl.store import manifest as manifests
from slmctl.store.build import Bound, Coverage, names_in, read_plan, survey
from slmctl.store.manifest import Manifest, load_manifest
from slmctl.store.reader import ShardSet
from slmctl.system.console import out, progress, say
from slmctl.system.errors import CorruptError, InputError, SlmError
from slmctl.system.hashes import sha256_json
from slmctl.system.local_storage import LocalFolder
from slmctl.system.processes import cores
from slmctl.system.storage import Folder


@dataclass
class Build:
    """One set in the making."""

    label: str
    folder: Folder
    kind: Any
    count: int
    """Shards that make it up."""
    binding: str
    """Hash of its plan, which every shard holds."""
    bound: Bound
    manifest: Callable[[Coverage], Manifest]
    jobs: list[Any] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The set's own, without the command's."""
        return self.label.partition(" ")[2]

    def survey(self) -> Coverage:
        return survey(self.folder, self.count, self.bound)

    def finish(self) -> bool:
        """Writes the manifest where every shard is there, else says how many are. Only whoever finds all of them opens them.
        Returns whether it did."""
        there = len(names_in(self.folder, self.count))
        if there == self.count:
            coverage = self.survey()
            if not coverage.missing:
                self.write(coverage)
                return True
            there -= len(coverage.missing)
        say(f"{self.label}: {there} of {self.count} shards are there; the worker that completes them writes the manifest")
        return False

    def write(self, coverage: Coverage) -> None:
        """Publishes the manifest. One that is there and names other shards is replaced only once two looks in a row agree
        on what is there: whoever looked long ago must not undo what others have done since.

        Raises `SlmError` where the set's plan is gone or another one.
        """
        while True:
            plan = read_plan(self.folder)
            if plan is None or sha256_json(plan) != self.binding:
                raise SlmError(f"{self.folder}/plan.json was taken away or replaced while shards were made. Run the stage again.")
            made = self.manifest(coverage)
            if made.save(self.folder) or load_manifest(self.folder, self.kind).content_hash == made.content_hash:
                return
            again = self.survey()
            if again.missing:
                return
            if again.shards == coverage.shards:
                made.save(self.folder, replace=True)
                return
            coverage = again


def finalize(builds: list[Build]) -> None:
    """Writes each manifest whose shards are all there. Raises `InputError` where some set is not complete."""
    problems = []
    for build in builds:
        coverage = build.survey()
        if coverage.missing:
            problems.append(
                f"{build.label}: {len(coverage.missing)} of {build.count} shards are missing: {spans(coverage.missing)}"
            )
            problems += [f"  {why}" for why in coverage.broken.values()]
            continue
        build.write(coverage)
        say(f"{build.label}: all {build.count} shards are there; {build.folder}/{manifests.FILE} is written")
    if problems:
        raise InputError("\n".join(["not complete, so no manifest was written:", *problems, "Run the stage again to make them."]))


def spans(numbers: list[int], most: int = 12) -> str:
    """`0-3, 7, 9-10`: at most so many spans."""
    found: list[list[int]] = []
    for n in numbers:
        if found and n == found[-1][1] + 1:
            found[-1][1] = n
        else:
            found.append([n, n])
    text = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in found[:most])
    return text + (f" and {len(found) - most} more spans" if len(found) > most else "")


def status(builds: list[Build]) -> None:
    """Prints, for each set, what is done, missing and orphaned, how fast it goes and how long it will take."""
    table = Table(box=None, pad_edge=False)
    table.add_column("set")
    for column in ("done", "missing", "working", "orphaned", "tokens", "tokens/s", "time left"):
        table.add_column(column, justify="right")
    table.add_column("state")
    notes: list[str] = []
    for build in builds:
        c = build.survey()
        done = build.count - len(c.missing)
        going = bool(c.missing) and (bool(c.working) or c.idle() < 300)
        rate, left = (c.rate(), c.seconds_left()) if going else (None, None)
        complete = manifests.exists(build.folder) and not c.missing
        state = (
            "complete" if complete else "to be finalized" if not c.missing else "in the making" if c.working else "not complete"
        )
        table.add_row(
            build.name, f"{done}/{build.count}", str(len(c.missing)), seen(len(c.working), build.folder),
            str(len(c.orphaned) + len(c.foreign) + len(c.broken)), f"{c.tokens:,}", f"{rate:,.0f}" if rate else "-",
            "-" if left is None else duration(left), state,
        )  # fmt: skip
        notes += c.broken.values()
        notes += [f"{build.folder}/{name}: in no plan" for name in c.foreign]
        notes += [f"{build.folder}/{name}: its writer is gone; the next worker removes it" for name in c.orphaned]
        if c.missing and done and c.missing != list(range(build.count)):
            notes.append(f"{build.label}: missing {spans(c.missing)}; the last shard came {duration(c.idle())} ago")
    width = out.width if out.is_terminal else max(out.width, 160)  # in a log nothing is cut off
    Console(file=out.file, width=width, highlight=False).print(table)
    for note in notes:
        out.print(note, soft_wrap=True, markup=False)


def seen(working: int, folder: Folder) -> str:
    """On an object store nothing shows before it is whole."""
    return str(working) if isinstance(folder, LocalFolder) else "-"


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


Check = Callable[[ShardSet, int, dict[str, np.ndarray]], str | None]
"""(set, row group, columns) to what is wrong with the values, if anything."""


def verify_all(builds: list[Build], opened: Callable[[Folder], ShardSet], check: Check) -> None:
    """Re-reads every set, and says that it is whole. Raises `CorruptError` with all that is wrong."""
    if problems := [p for b in builds for p in verify(b.name, opened(b.folder), check)]:
        raise CorruptError("\n".join([f"{len(problems)} shards are not what they should be:", *problems]))
    out.print(f"verified: every byte of {sum(b.count for b in builds)} shards is what its manifest says", soft_wrap=True)


def verify(label: str, opened: ShardSet, check: Check) -> list[str]:
    """Re-reads and re-hashes every byte of a set and looks at every value, in parallel. Returns what is wrong."""
    manifest = opened.manifest
    columns = list(manifest.format["columns"])
    first_group = np.concatenate([[0], np.cumsum([s.groups for s in manifest.shards])])

    def one(shard: int) -> str | None:
        try:
            file = opened.file(shard)
            if file.facts["rows"] != manifest.shards[shard].rows or file.groups != manifest.shards[shard].groups:
                return f"{file.name}: its rows are not those of the manifest"
            for group in range(int(first_group[shard]), int(first_group[shard + 1])):
                wrong = check(opened, group, opened.read_group(group, columns))
                if wrong:
                    return f"{file.name}, row group {group - first_group[shard]}: {wrong}"
        except CorruptError as e:
            return str(e)
        return None

    problems = []
    with (
        progress(f"verify {label}", len(manifest.shards), "shards") as ticker,
        ThreadPoolExecutor(max(2, cores())) as pool,
    ):
        for found in pool.map(one, range(len(manifest.shards))):
            ticker.advance(1)
            problems += [found] if found else []
    return problems

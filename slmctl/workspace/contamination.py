"""Held-out documents that also stand in the text that models learn from: counted by `prepare`, in contamination.json.

The making of a shard looks at its text on the way. What is missing then (of sets made before, or where a held-out set is
another now) is looked at by itself, by each worker its share, and whoever finds all of it there writes the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from slmctl.config.data import SourceConfig
from slmctl.corpus.contamination import Contamination, HeldOut, contamination, index_heldout
from slmctl.corpus.contamination_scan import ScanJob, SliceFindings, scan_slice, scanner
from slmctl.corpus.documents import Tally, documents
from slmctl.corpus.make_shard import Job, document_number
from slmctl.corpus.ngram_hashes import RULE, RUN
from slmctl.corpus.planned_slices import pieces_of
from slmctl.corpus.source_identity import input_fingerprint
from slmctl.corpus.text_files import stamp
from slmctl.store.build import read_plan
from slmctl.system.console import progress, say
from slmctl.system.errors import InputError, SlmError
from slmctl.system.files import publishing, sweep, write_json
from slmctl.system.hashes import HashCache, sha256_json
from slmctl.system.processes import cores, spread
from slmctl.system.storage import Folder, is_private
from slmctl.workspace.contamination_report import EXAMPLES, FILE, SIDES, read_report, refuse, tell
from slmctl.workspace.graph import token_sets
from slmctl.workspace.workers import Share
from slmctl.workspace.workspace import Workspace

WORTH_A_PROCESS = 2**28
"""Bytes of text from which on a further process pays for its start."""
Plans = dict[str, dict[str, Any]]
"""By name of a token set: its plan."""


@dataclass(frozen=True)
class Search:
    """Of which sets held-out documents are looked for in which, how, and where what is found is kept."""

    root: Path
    """output_dir."""
    sources: Mapping[str, list[SourceConfig]]
    """By token set: `curated`, `corpus` and each `heldout/<name>`."""
    folders: Mapping[str, Folder]
    """Where these sets lie, with their plans once they have any."""
    action: Literal["warn", "stop", "off"]
    overlap: float
    """The share of a document's runs from which on it counts as found."""
    shard_bytes: int
    hashes: HashCache

    @property
    def heldout(self) -> list[str]:
        """The held-out sets, sorted: their numbers must not depend on how they are listed."""
        return sorted(n.removeprefix("heldout/") for n in self.sources if n not in SIDES)


def resolve(workspace: Workspace) -> Search:
    """What the configuration asks for; nothing is read for it."""
    config = workspace.config
    names = token_sets(config)
    sources, folders = {n: workspace.sources(n) for n in names}, {n: workspace.tokens(n) for n in names}
    how = config.eval.contamination, config.eval.contamination_overlap
    return Search(workspace.root, sources, folders, *how, config.data.shard_bytes, workspace.hashes)


@dataclass
class Check:
    """What of the held-out sets is looked for, and what is known of it."""

    search: Search
    plans: Plans
    made_from: dict[str, Any]
    """Hashes of all that the findings depend on."""
    index: Path
    heldout: HeldOut | None = None
    """None where it need not be loaded."""
    not_checked: dict[str, str] = field(default_factory=dict)
    """Token set to why it cannot be looked at."""

    # --- looking ---

    def part(self, side: str, slice_index: int) -> SliceFindings:
        return SliceFindings(str(self.index), str(self._folder(side) / f"{slice_index:05d}.json"))

    def _folder(self, side: str) -> Path:
        key = sha256_json({k: self.made_from[k] for k in ("rule", "heldout", side)})
        return self.search.root / "contamination" / f"{side}-{key[:16]}"

    def watched(self, name: str, jobs: list[Job]) -> list[Job]:
        """The jobs of a set, to look for held-out text on the way."""
        if name not in SIDES or not self.made_from["heldout"] or self.current() is not None:
            return jobs
        return [replace(j, held_out=self.part(name, j.index)) for j in jobs]

    def missing(self, slices: list[tuple[str, int]]) -> list[tuple[str, int]]:
        """Of these slices of curated and corpus, those that were not looked at yet."""
        folders = {side: self._folder(side) for side in SIDES}
        there = {side: {f.name for f in folder.iterdir()} if folder.is_dir() else set() for side, folder in folders.items()}
        return [(s, i) for s, i in slices if s in SIDES and Path(self.part(s, i).file).name not in there[s]]

    def finish(self, share: Share) -> None:
        """Looks at what is missing of this worker's share, and writes contamination.json where nothing is missing any more.
        Raises `InputError` where something was found and the configuration says to stop."""
        found = before = self.current()
        if found is None:
            everything = [(name, i) for name, plan in self.plans.items() for i in range(len(plan["slices"]))]
            for side in dict.fromkeys(side for side, _ in self.missing(everything)):
                if (problem := unreadable(self.search, side, self.plans[side])) is not None:
                    self.not_checked[side] = problem
            self._look(self.missing(share.of(everything)), share)  # a share of the same slices that it makes shards of
            left = [side for side, _ in self.missing(everything) if side not in self.not_checked]
            if left and self.made_from["heldout"]:
                say(f"contamination: {len(left)} slices are not looked at yet; the worker that completes them writes {FILE}")
                return
            found = self.conclude()
        tell(self.search.root, found, again=before is not None)
        if self.search.action == "stop":
            refuse(self.search.root, found)

    def _look(self, slices: list[tuple[str, int]], share: Share) -> None:
        jobs: list[ScanJob] = []
        for side in (s for s in SIDES if s not in self.not_checked):
            sources = self.search.sources[side]
            pieces = pieces_of(sources, self.plans[side])
            own = [i for s, i in slices if s == side]
            jobs += [ScanJob(sources[(p := pieces[i]).source], p, self.part(side, i), stamp(p.file)) for i in own]
        if not jobs or not self.made_from["heldout"]:
            return
        processes = max(1, min(cores(), len(jobs), len(jobs) * self.search.shard_bytes // WORTH_A_PROCESS))
        if any(is_private(j.slice.file) for j in jobs):
            processes = 1
        with progress(share.named("contamination"), len(jobs), "slices of text") as ticker:
            for _ in spread(jobs, scanner, processes, 1) if processes > 1 else map(scan_slice, jobs):
                ticker.advance(1)

    # --- results ---

    def current(self) -> dict[str, Any] | None:
        """What contamination.json says, where it is of these very texts, complete, and for the configuration's share."""
        found = read_report(self.search.root)
        if found is None or found["made_from"] != self.made_from or found["not_checked"]:
            return None
        return found if found["overlap"] == self.search.overlap else None

    def conclude(self) -> dict[str, Any]:
        """Writes contamination.json from what is kept of every slice."""
        overlap = self.search.overlap
        heldout = self.heldout if self.heldout is not None else HeldOut.load(self.index)
        sets: dict[str, Any] = {n: {"documents": d} for n, d in heldout.documents.items()}
        first_D = dict(zip(heldout.documents, _running(heldout.documents.values()), strict=True))
        for side in (s for s in SIDES if s not in self.not_checked):
            parts = (self.part(side, i).read() for i in range(len(self.plans[side]["slices"]) if sets else 0))
            for name, found in contamination(heldout, parts, overlap).items():
                shown = heldout.shown_D[first_D[name] : first_D[name] + found.documents]
                sets[name][side] = self._figures(side, found, shown)
        report = {
            **{"schema": 1, "made_from": self.made_from, "run": RUN, "overlap": overlap},
            **{"heldout": sets, "not_checked": dict(sorted(self.not_checked.items()))},
        }
        if read_report(self.search.root) != report:
            write_json(self.search.root / FILE, report)
        return report

    def _figures(self, side: str, found: Contamination, shown_D: list[str]) -> dict[str, Any]:
        examples = found.examples(shown_D, EXAMPLES)
        for example in examples:
            example["in"] = self._place(side, *example["in"])
        return {"exact": len(found.exact), "overlap": len(found.overlapping), "examples": examples}

    def _place(self, side: str, shard: int, ordinal: int) -> dict[str, Any]:
        """Where a document lies: the number that the token shard gives it, and its file where that is here."""
        found: dict[str, Any] = {"shard": shard, "record": ordinal, "document": document_number(shard, ordinal)}
        with suppress(SlmError):
            found["file"] = pieces_of(self.search.sources[side], self.plans[side])[shard].file
        return found


def _running(counts: Any) -> list[int]:
    found, total = [], 0
    for n in counts:
        found.append(total)
        total += n
    return found


def plan_check(search: Search) -> Check | None:
    """What is to be looked for, after every set was planned; None where the configuration does not ask for it. To be called
    while `planning`: the held-out sets are read here, unless they were before."""
    if search.action == "off":
        return None
    check = _identified(search)
    if check is None or check.current() is not None:
        return check
    for side in SIDES:
        sweep(check._folder(side))
    if check.index.is_file():
        return check
    texts: dict[str, Iterator[str]] = {}
    for name in list(check.made_from["heldout"]):
        label = f"heldout/{name}"
        if (problem := unreadable(search, label, check.plans[label])) is not None:
            check.not_checked[label] = problem
            del check.made_from["heldout"][name]
        else:
            texts[name] = _texts(search, label, check.plans[label])
    check.index = _index_file(search.root, check.made_from)
    if not check.index.is_file():
        check.heldout = index_heldout(texts)
        with publishing(check.index) as temporary:
            check.heldout.save(temporary)
    return check


def _identified(search: Search) -> Check | None:
    """By what the sets' plans say; None where a set was not planned here."""
    plans = {n: plan for n, folder in search.folders.items() if (plan := read_plan(folder)) is not None}
    if len(plans) < len(search.folders):
        return None
    made_from: dict[str, Any] = {"rule": RULE}
    made_from["heldout"] = {n: sha256_json(plans[f"heldout/{n}"]["made_from"]["texts"]) for n in search.heldout}
    made_from |= {s: sha256_json([plans[s]["made_from"]["texts"], plans[s]["slices"]]) for s in SIDES}
    return Check(search, plans, made_from, _index_file(search.root, made_from))


def _index_file(root: Path, made_from: dict[str, Any]) -> Path:
    key = sha256_json([made_from["rule"], made_from["heldout"]])
    return root / ".cache" / f"heldout-{key[:16]}.npz"


def _texts(search: Search, name: str, plan: dict[str, Any]) -> Iterator[str]:
    sources = search.sources[name]
    for piece in pieces_of(sources, plan):
        yield from (text for _, text in documents(sources[piece.source], piece, Tally()))
        search.hashes.beat()


def unreadable(search: Search, name: str, plan: dict[str, Any]) -> str | None:
    """Why the texts that a set was made from cannot be read here; None where they can."""
    try:
        found = input_fingerprint(search.sources[name], search.hashes)
    except InputError as e:
        return f"its texts cannot be read here ({e})"
    return None if found == plan["made_from"]["texts"] else "its texts are others now than those that it was made from"


def facts(search: Search) -> dict[str, Any]:
    """What results.json says of it: counts by held-out set, and what was not checked, with why. Raises `InputError` where
    the configuration says to stop."""
    if search.action == "off":
        return {"heldout": {}, "not_checked": {"all": "eval.contamination is off"}}
    check, found = _identified(search), read_report(search.root)
    if found is None:
        return {"heldout": {}, "not_checked": {"all": f"{FILE} is absent; run `slmctl prepare`"}}
    if check is not None:  # without the sets that the file itself says were not checked
        unchecked = [n.removeprefix("heldout/") for n in found["not_checked"]]
        check.made_from["heldout"] = {n: h for n, h in check.made_from["heldout"].items() if n not in unchecked}
    if check is None or found["made_from"] != check.made_from:
        return {"heldout": {}, "not_checked": {"all": f"{FILE} is of other texts; run `slmctl prepare`"}}
    if found["overlap"] != search.overlap:
        check.not_checked = dict(found["not_checked"])
        check.index = _index_file(search.root, check.made_from)
        if not check.index.is_file():
            return {"heldout": {}, "not_checked": {"all": f"{FILE} is of another contamination_overlap; run `slmctl prepare`"}}
        found = check.conclude()
    if search.action == "stop":
        refuse(search.root, found)
    counts = {
        n: {k: v if k == "documents" else {c: v[c] for c in ("exact", "overlap")} for k, v in figures.items()}
        for n, figures in found["heldout"].items()
    }
    not_checked = {n: why.partition(" (")[0] for n, why in found["not_checked"].items()}
    return {"run": found["run"], "overlap": found["overlap"], "heldout": counts, "not_checked": not_checked}

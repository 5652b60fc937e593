"""What a slice of text holds of what is held out, in a small file: found while its shard is made, or by a look of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from slmctl.config.data import SourceConfig
from slmctl.corpus.contamination import Found, HeldOut, Watch
from slmctl.corpus.documents import Tally, documents
from slmctl.corpus.records import Slice
from slmctl.corpus.text_files import stamp
from slmctl.system.errors import InputError
from slmctl.system.files import read_json, write_json


@dataclass(frozen=True)
class SliceFindings:
    """Where the findings of one slice are kept, and what was looked for."""

    index: str
    """File of the held-out index."""
    file: str

    def read(self) -> Found:
        """Raises `InputError` where it is absent, `CorruptError` where it is unusable."""
        found: Found = read_json(Path(self.file))
        return found

    def watch(self) -> Watch | None:
        """For what is not there yet."""
        return None if Path(self.file).is_file() else Watch(_index(self.index))

    def keep(self, watch: Watch) -> None:
        write_json(Path(self.file), watch.found)


@lru_cache(maxsize=1)
def _index(path: str) -> HeldOut:
    """Loaded once in each process."""
    return HeldOut.load(Path(path))


@dataclass(frozen=True)
class ScanJob:
    """One slice to look at, without making anything of it."""

    source: SourceConfig
    slice: Slice
    part: SliceFindings
    stamp: str
    """The file's, from when its content was compared with the plan."""


def scan_slice(job: ScanJob) -> None:
    """Looks at a slice unless its findings are there."""
    watch = job.part.watch()
    if watch is None:
        return
    for _ in watch.passing(documents(job.source, job.slice, Tally())):
        pass
    if job.stamp and stamp(job.slice.file) != job.stamp:
        raise InputError(f"{job.slice.file} was changed while it was looked at. Run `slmctl prepare` again.")
    job.part.keep(watch)


def scanner(_threads: int) -> Callable[[ScanJob], None]:
    """What looks at slices in a process of its own."""
    return scan_slice

"""One worker's token shards: the tokenizer compared with its files on the first documents, then every shard, in several processes
where there is work and room for them."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from itertools import islice

from slmctl.corpus.documents import Tally, documents
from slmctl.corpus.make_shard import Job, make_shard, maker
from slmctl.corpus.tokenizer import Tokenizer
from slmctl.system.console import progress
from slmctl.system.errors import InputError
from slmctl.system.processes import cores, spread
from slmctl.system.storage import is_private

THREADS_A_PROCESS = 4
"""The tokenizer's threads, which one process can keep busy."""
WORTH_A_PROCESS = 2**24
"""Bytes of text from which on a further process pays for its start."""

PROVEN_DOCUMENTS, PROVEN_CHARS = 32, 1024
"""The beginnings of each set's first documents, on which the tokenizer is compared with its files."""


def prove_tokenizer(tokenizer: Tokenizer, jobs: list[Job]) -> None:
    """Compares the tokenizer's ids of each set's first documents with those that its files give by other means. Raises
    `InputError` where they differ."""
    first = {job.packing.folder: job for job in reversed(jobs)}
    for job in first.values():
        source = job.packing.sources[job.slice.source]
        if source.hub is None:  # of which a look would be a fetch
            texts = (text for _, text in documents(source, job.slice, Tally()))
            kept: list[str] = []
            with suppress(InputError):  # a broken record is reported by who makes its shard
                kept.extend(t[:PROVEN_CHARS] for t in islice(texts, PROVEN_DOCUMENTS))
            tokenizer.prove(kept)


def make_shards(tokenizer: Tokenizer, jobs: list[Job], label: str) -> None:
    """Makes shards that are not there yet; `label` names the work in its progress."""
    if not jobs:
        return
    size = sum(j.text_bytes() for j in jobs)
    room = cores()
    processes = max(1, min(room // THREADS_A_PROCESS, len(jobs), size // WORTH_A_PROCESS))
    if any(is_private(p) for j in jobs for p in (j.packing.folder, j.slice.file)):
        processes = 1
    with progress(label, len(jobs), "shards") as ticker:
        if processes == 1:
            for job in jobs:
                make_shard(tokenizer, job)
                ticker.advance(1)
            return
        # of a module that imports no model library, which each process would load
        setup = partial(maker, tokenizer.backend.to_str(), tokenizer.eos_id, tokenizer.named)
        for _ in spread(jobs, setup, processes, max(1, room // processes)):
            ticker.advance(1)

"""What a set's documents are, by content: by this a set is known to be made from the same texts, wherever they lie."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from slmctl.config.data import SourceConfig
from slmctl.config.decides import Decides, decided
from slmctl.corpus.file_patterns import dataset_problems
from slmctl.corpus.source_files import MEND, files_of
from slmctl.corpus.text_files import content_id
from slmctl.corpus.unreadable import one_message
from slmctl.system.errors import InputError
from slmctl.system.hashes import HashCache
from slmctl.system.storage import is_url


def input_fingerprint(sources: list[SourceConfig], hashes: HashCache) -> list[dict[str, Any]]:
    """What the documents of a set are, by content: templates and hashes, in order; no name, no path and no time.

    A Hub source without a revision is pinned to the commit that is found, so that what is named is what is read.
    """
    found: list[dict[str, Any]] = []
    for source in sources:
        how = reading_of(source)
        if source.hub is not None:
            found.append({"hub": _hub_identity(source, hashes), **how})
        else:
            found.append({"content": [content_id(f, hashes) for f in files_of(source)], **how})
    hashes.save()
    return found


def reading_of(source: SourceConfig) -> dict[str, Any]:
    """What decides a source's documents, given its content."""
    return decided(source, Decides.TOKENS)


def unhashed_bytes(sources: list[SourceConfig], hashes: HashCache) -> int:
    """Bytes of local files that `input_fingerprint` would have to read."""
    local = [Path(f) for s in sources if s.hub is None for f in files_of(s) if not is_url(f)]
    return sum(f.stat().st_size for f in local if not hashes.knows(f))


def _hub_identity(source: SourceConfig, hashes: HashCache) -> dict[str, Any]:
    assert source.hub is not None
    identity: dict[str, Any] = {"config": source.hub_config, "split": source.split}
    if Path(source.hub).is_dir():
        if problems := dataset_problems(source.hub):
            raise InputError(one_message(problems, MEND))
        files = sorted(f for f in Path(source.hub).rglob("*") if f.is_file())
        return {**identity, "files": [hashes.sha256(f) for f in files]}
    if source.revision is not None and re.fullmatch("[0-9a-f]{40}", source.revision):
        return {**identity, "hub": source.hub, "commit": source.revision}  # what it names never changes
    try:
        import huggingface_hub

        commit = huggingface_hub.HfApi().dataset_info(source.hub, revision=source.revision).sha
    except Exception as e:  # offline, or no such dataset
        hint = "For a full commit as its revision, the Hub is asked only when its set is made."
        raise InputError(f"cannot reach dataset {source.hub!r} on the Hub: {e}. {hint}") from e
    source.revision = commit
    return {**identity, "hub": source.hub, "commit": commit}

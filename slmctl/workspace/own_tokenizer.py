"""The tokenizer of a pipeline from scratch: trained on the beginnings of its curated and corpus text, half each."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from slmctl.config.model import ScratchConfig
from slmctl.corpus.documents import Tally, documents
from slmctl.corpus.slices import plan_slices
from slmctl.corpus.train_tokenizer import train_tokenizer, up_to_bytes
from slmctl.system.console import say, waiting
from slmctl.system.errors import InputError
from slmctl.system.hashes import HashCache
from slmctl.workspace import identity
from slmctl.workspace.handles import StageFolder
from slmctl.workspace.missing_texts import Inputs, InputsAsRecorded, Texts


@dataclass(frozen=True)
class OwnTokenizer:
    """A tokenizer that is to be trained, or is there."""

    folder: StageFolder
    scratch: ScratchConfig
    texts: Texts
    """What it learns from: `curated` and `corpus`."""
    inputs: Inputs | InputsAsRecorded
    """All that it depends on."""
    shard_bytes: int
    """Of the slices whose beginnings it learns from."""
    hashes: HashCache


def make_tokenizer(wanted: OwnTokenizer) -> None:
    """Trains the tokenizer unless it is there. Raises `InputError` where texts are gone and it is not there as it is wanted."""
    folder, scratch, inputs = wanted.folder, wanted.scratch, wanted.inputs
    if isinstance(inputs, InputsAsRecorded):
        if not folder.is_complete(identity.tokenizer(scratch, **inputs.inputs)):
            raise InputError(f"the tokenizer cannot be made as the configuration wants it now: {inputs.why}")
        return
    if folder.begin(inputs, lock=False):
        say("tokenizer: complete, skipped")
        return
    training = waiting("tokenizer: training it on curated and corpus text")
    with training, tempfile.TemporaryDirectory(dir=folder.path) as made:  # whole or absent, should two workers make it at once
        entries = train_tokenizer(_sample(wanted), scratch.vocab_size, Path(made))
        for file in Path(made).iterdir():
            os.replace(file, folder.path / file.name)
    folder.complete({"vocab_size": scratch.vocab_size, "entries": entries})
    fewer = f", fewer than vocab_size {scratch.vocab_size}" if entries < scratch.vocab_size else ""
    say(f"tokenizer: {entries} entries{fewer}, trained on curated and corpus text")


def _sample(wanted: OwnTokenizer) -> Iterator[str]:
    """The first documents of every slice, of each of the texts as many bytes."""
    budget = wanted.scratch.tokenizer_sample_mb * 2**20 // len(wanted.texts)
    for sources in wanted.texts.values():
        pieces = plan_slices(sources, wanted.shard_bytes, wanted.hashes.beat)
        for piece in pieces:
            texts = (text for _, text in documents(sources[piece.source], piece, Tally()))
            yield from up_to_bytes(texts, max(1, budget // len(pieces)))
            wanted.hashes.beat()

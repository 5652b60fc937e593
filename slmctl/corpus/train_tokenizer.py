"""A tokenizer trained from scratch: BPE over characters with bytes for the rest, as SentencePiece knows it.

It is saved twice, as `tokenizer.json` for Hugging Face's tools and as `tokenizer.model` for those that read SentencePiece's
form (llama.cpp); both give the same ids. Nothing is normalised and nothing is put before a text, so every text comes back, but
that the character U+2581, which stands for a space there, becomes one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

EOS, UNKNOWN, SPACE = "<|endoftext|>", "<unk>", "\u2581"
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
LEARNT_FROM = r"\u2581?\p{L}+|\p{N}|\u2581?[^\s\u2581\p{L}\p{N}]+|\u2581+|\s+".replace(r"\u2581", SPACE)
"""What an entry may be part of: a word or signs with the space before it, one digit, spaces, other white space."""
NEVER_CROSSED = f"{SPACE}*[^{SPACE}]+|{SPACE}+"
"""Parts of a text that no entry reaches beyond: in none does a space follow anything but spaces."""
LONGEST = 64
"""Characters of an entry: SentencePiece refuses very long ones, and they serve nobody."""
Merge = tuple[str, str]


def train_tokenizer(texts: Iterable[str], vocab_size: int, directory: Path) -> int:
    """Trains a tokenizer of at most `vocab_size` entries, with `<|endoftext|>` as end of sequence, and saves it. Returns how
    many it has: fewer where the texts hold no more."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

    learning = Tokenizer(models.BPE())
    learning.normalizer = normalizers.Replace(" ", SPACE)
    learning.pre_tokenizer = pre_tokenizers.Split(Regex(LEARNT_FROM), "isolated")
    first = [EOS, UNKNOWN, *BYTES]
    room = vocab_size - len(first)
    trainer = trainers.BpeTrainer(vocab_size=room, initial_alphabet=[SPACE], max_token_length=LONGEST, show_progress=False)
    learning.train_from_iterator(_without_rare(list(texts), room // 2), trainer)
    vocabulary = learning.get_vocab()
    entries = [*first, *sorted(vocabulary.keys() - set(first), key=vocabulary.__getitem__)]
    _save_for_hugging_face(entries, directory)
    (directory / "tokenizer.model").write_bytes(_sentencepiece_model(entries))
    return len(entries)


def _without_rare(texts: list[str], most: int) -> Iterator[str]:
    """The texts, cut at all but their `most` frequent characters: those are spelt in bytes, so that there is room for words."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    ranked = sorted(counts, key=lambda c: (-counts[c], c))  # never by chance
    cut = dict.fromkeys((ord(c) for c in ranked[most:] if c != " "), "\0")
    for text in texts:
        yield from text.translate(cut).split("\0")


def merges_of(entries: list[str]) -> list[Merge]:
    """Every pair of entries that makes another, by the made one's place: the order in which SentencePiece merges."""
    place = {entry: i for i, entry in enumerate(entries)}
    merges: list[Merge] = []
    for made in entries[len(BYTES) + 2 :]:
        pairs = [(made[:cut], made[cut:]) for cut in range(1, len(made))]
        merges += sorted((p for p in pairs if p[0] in place and p[1] in place), key=lambda p: (place[p[0]], place[p[1]]))
    return merges


def _save_for_hugging_face(entries: list[str], directory: Path) -> None:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    model = models.BPE({e: i for i, e in enumerate(entries)}, merges_of(entries), unk_token=UNKNOWN, byte_fallback=True)
    backend = Tokenizer(model)
    backend.normalizer = normalizers.Replace(" ", SPACE)
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(NEVER_CROSSED), "isolated")
    backend.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.post_processor = processors.ByteLevel(trim_offsets=False)  # changes nothing: by it llama.cpp knows that no
    hf = PreTrainedTokenizerFast(  # token is put around a text, and by `add_prefix_space` that no space is
        tokenizer_object=backend, eos_token=EOS, bos_token=EOS, pad_token=EOS, unk_token=UNKNOWN, add_prefix_space=False
    )
    hf.save_pretrained(directory)


def _sentencepiece_model(entries: list[str]) -> bytes:
    from sentencepiece import sentencepiece_model_pb2

    form: Any = sentencepiece_model_pb2
    model = form.ModelProto()
    kinds = form.ModelProto.SentencePiece
    for place, entry in enumerate(entries):
        kind = kinds.BYTE if 2 <= place < 2 + len(BYTES) else kinds.NORMAL
        kind = {EOS: kinds.CONTROL, UNKNOWN: kinds.UNKNOWN}.get(entry, kind) if place < 2 else kind
        score = 0.0 if kind != kinds.NORMAL else float(-(place - 2 - len(BYTES)))
        model.pieces.add(piece=entry, score=score, type=kind)
    trained = model.trainer_spec
    trained.model_type, trained.vocab_size, trained.byte_fallback = form.TrainerSpec.BPE, len(entries), True
    trained.eos_id, trained.unk_id, trained.bos_id, trained.pad_id = 0, 1, -1, -1
    trained.eos_piece, trained.unk_piece = EOS, UNKNOWN
    as_given = model.normalizer_spec
    as_given.name, as_given.add_dummy_prefix = "identity", False
    as_given.remove_extra_whitespaces, as_given.escape_whitespaces = False, True
    found: bytes = model.SerializeToString()
    return found


def up_to_bytes(texts: Iterator[str], budget: int) -> Iterator[str]:
    """Texts until `budget` UTF-8 bytes are reached; the last one is cut."""
    for text in texts:
        size = len(text.encode("utf-8"))
        if size >= budget:
            yield text.encode("utf-8")[:budget].decode("utf-8", "ignore")
            return
        budget -= size
        yield text

"""The tokenizer: loaded, checked and fingerprinted; texts to ids."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from slmctl.console import warn
from slmctl.errors import InputError, MismatchError
from slmctl.files import sha256_json

PIECE_CHARS = 2**20
SENTENCEPIECE = "tokenizer.model"
B = TypeVar("B")


def pieces(text: str, after_lines: bool = True) -> Iterator[str]:
    """`text` in pieces of at most `PIECE_CHARS` characters, cut after the last newline, else the last space, of each; or,
    with `after_lines` false, before its last space."""
    at = 0
    while len(text) - at > PIECE_CHARS:
        end, half = at + PIECE_CHARS, at + PIECE_CHARS // 2
        if after_lines:
            stop = max(text.rfind("\n", half, end), 0) or max(text.rfind(" ", half, end), 0)
            stop = stop + 1 if stop else end
        else:
            stop = max(text.rfind(" ", half, end), 0) or end
        yield text[at:stop]
        at = stop
    yield text[at:]


class Encoder:
    """Documents to token ids: the part of a tokenizer that many processes share, given as `tokenizer.json` text."""

    def __init__(self, backend: Any, eos_id: int) -> None:
        self.backend, self.eos_id = backend, eos_id
        first = backend.encode("x", add_special_tokens=False).tokens
        self.prepends = bool(first) and first[0].startswith("\u2581")
        """Whether a text is encoded as if a space came before it, as Llama 2's and Mistral's tokenizers do."""

    @staticmethod
    def from_json(text: str, eos_id: int) -> Encoder:
        from tokenizers import Tokenizer as Backend

        return Encoder(Backend.from_str(text), eos_id)

    def encode(self, texts: list[str], parse_special_tokens: bool = False) -> list[np.ndarray]:
        """Token ids (int64) of each text, nothing added. A special token's name in a text is plain text by default.

        A text of more than `PIECE_CHARS` characters is encoded in pieces, cut after a line's or a word's end.
        """
        [(_, ids)] = self.encode_batches([texts], lambda batch: batch, parse_special_tokens)
        return ids

    def encode_batches(
        self, batches: Iterable[B], texts_of: Callable[[B], list[str]], parse_special_tokens: bool = False
    ) -> Iterator[tuple[B, list[np.ndarray]]]:
        """Each batch with the ids of its texts. While a batch's ids are used, the tokenizer's threads are at the next."""
        self.backend.no_truncation()
        self.backend.no_padding()
        self.backend.encode_special_tokens = not parse_special_tokens
        try:
            with ThreadPoolExecutor(1) as pool:
                ahead: deque[tuple[B, Future[list[Any]]]] = deque()
                for batch in batches:
                    short = [t if len(t) <= PIECE_CHARS else "" for t in texts_of(batch)]
                    ahead.append((batch, pool.submit(self._encode, short)))
                    if len(ahead) > 1:
                        yield self._ids(*ahead.popleft(), texts_of)
                while ahead:
                    yield self._ids(*ahead.popleft(), texts_of)
        finally:
            self.backend.encode_special_tokens = False

    def _encode(self, texts: list[str]) -> list[Any]:
        found: list[Any] = self.backend.encode_batch_fast(texts, add_special_tokens=False)
        return found

    def _ids(self, batch: B, found: Future[list[Any]], texts_of: Callable[[B], list[str]]) -> tuple[B, list[np.ndarray]]:
        pairs = zip(texts_of(batch), found.result(), strict=True)
        return batch, [np.array(e.ids, dtype=np.int64) if len(t) <= PIECE_CHARS else self._encode_long(t) for t, e in pairs]

    def _encode_long(self, text: str) -> np.ndarray:
        """A text of many megabytes, piece by piece: an encoding takes hundreds of bytes a token while it is made."""
        if not self.prepends:
            return np.concatenate([np.array(self._encode([p])[0].ids, dtype=np.int64) for p in pieces(text)])
        parts = list(pieces(text, after_lines=False))
        # a piece that would begin with the space that is put before every text leaves its own to it
        own = [p.removeprefix(" ") if i else p for i, p in enumerate(parts)]
        return np.concatenate([np.array(self._encode([p])[0].ids, dtype=np.int64) for p in own])

    def check_ids(self, ids: np.ndarray, vocab_size: int) -> None:
        """Raises `MismatchError` where an id has no row in the model's embedding of `vocab_size` rows."""
        if ids.size and int(ids.max()) >= vocab_size:
            bad = int(ids.max())
            raise MismatchError(
                f"token id {bad} ({self.backend.id_to_token(bad)!r}) is beyond the model's vocabulary of "
                f"{vocab_size}. Tokenizer and model do not belong together; give the right one with model.tokenizer."
            )


class Tokenizer(Encoder):
    """A fast Hugging Face tokenizer; `sentencepiece` is its SentencePiece form, where it has one.

    Raises `InputError` where it is not a fast one or has no end-of-sequence token.
    """

    def __init__(self, hf: Any, origin: str, sentencepiece: bytes | None = None) -> None:
        self.hf, self.sentencepiece = hf, sentencepiece
        if not getattr(hf, "is_fast", False):
            raise InputError(f"{origin}: the tokenizer has no fast (Rust) form. Convert it to tokenizer.json first.")
        if hf.eos_token_id is None:
            raise InputError(
                f"{origin}: the tokenizer has no end-of-sequence token, which separates documents. "
                "Set eos_token in its tokenizer_config.json, or give another with model.tokenizer."
            )
        super().__init__(hf.backend_tokenizer, hf.eos_token_id)
        self.size: int = len(hf)
        self.origin = origin
        """The directory or Hub id that it was loaded from."""

    @property
    def bos_id(self) -> int | None:
        """The id that it names as beginning of sequence, whether it puts that in front of texts or not."""
        found: int | None = self.hf.bos_token_id
        return found

    @property
    def bos_token(self) -> str | None:
        return self.name_of([self.bos_id]) if self.bos_id is not None else None

    def template_front(self) -> list[int]:
        """Ids that its template puts in front of a text, such as a beginning-of-sequence token's."""
        whole, bare = (list(self.hf("x", add_special_tokens=special)["input_ids"]) for special in (True, False))
        at = next((i for i in range(len(whole)) if bare and whole[i : i + len(bare)] == bare), 0)
        return whole[:at]

    def name_of(self, ids: list[int]) -> str:
        """Ids as their entries in the vocabulary, one after the other."""
        return "".join(map(str, self.hf.convert_ids_to_tokens(ids)))

    def fingerprint(self) -> str:
        """Hash of all that decides which ids a text becomes, and of the end-of-sequence id."""
        parts = json.loads(self.backend.to_str())
        kept = {k: parts.get(k) for k in ("added_tokens", "normalizer", "pre_tokenizer", "model")}
        return sha256_json({**kept, "eos_id": self.eos_id})

    def save(self, directory: Path) -> None:
        """As `AutoTokenizer` loads it, and in SentencePiece's form, which `save_pretrained` leaves out and llama.cpp reads."""
        self.hf.save_pretrained(directory)
        if self.sentencepiece is None:
            return
        if self._agrees(self.sentencepiece):
            (directory / SENTENCEPIECE).write_bytes(self.sentencepiece)
        else:
            warn(
                f"{directory}: left out {SENTENCEPIECE} of the tokenizer that was loaded: it gives other ids than tokenizer.json."
            )

    def _agrees(self, sentencepiece: bytes) -> bool:
        """Whether what is no special token has the same id in both forms."""
        from sentencepiece import SentencePieceProcessor

        try:
            form = SentencePieceProcessor(model_proto=sentencepiece)
        except RuntimeError:  # not SentencePiece's: other tokenizers use the name, too
            return False
        plain = (i for i in range(form.vocab_size()) if not (form.IsControl(i) or form.IsUnknown(i) or form.IsUnused(i)))
        return all(self.backend.id_to_token(i) == form.IdToPiece(i) for i in plain)

    def vocabulary(self) -> dict[str, int]:
        """Token to id, added tokens included: what two models must share for their losses to join."""
        found: dict[str, int] = self.backend.get_vocab(with_added_tokens=True)
        return found


def load_tokenizer(path: str, gguf_file: str | None = None, revision: str | None = None) -> Tokenizer:
    """Loads from a local directory or the Hub. Raises `InputError` with the reason."""
    from transformers import AutoTokenizer

    extra: dict[str, Any] = {"gguf_file": gguf_file} if gguf_file else {}
    if revision:
        extra["revision"] = revision
    try:
        hf = AutoTokenizer.from_pretrained(path, **extra)
    except Exception as e:  # the library raises many kinds
        raise InputError(f"cannot load a tokenizer from {path!r}: {_first_line(e)}") from e
    return Tokenizer(hf, path, _sentencepiece_of(path, revision))


def _sentencepiece_of(path: str, revision: str | None) -> bytes | None:
    """`tokenizer.model` of a local directory or of what was just fetched from the Hub; None where it has none."""
    if Path(path).is_dir():
        here = Path(path) / SENTENCEPIECE
        return here.read_bytes() if here.is_file() else None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return Path(hf_hub_download(path, SENTENCEPIECE, revision=revision)).read_bytes()
    except EntryNotFoundError:
        return None
    except Exception as e:  # the library raises many kinds, and nothing but a conversion needs the file
        warn(f"{path}: {SENTENCEPIECE} could not be fetched, so exported models will lack it ({_first_line(e)})")
        return None


def _first_line(e: BaseException) -> str:
    return str(e).strip().split("\n")[0] or type(e).__name__


def up_to_bytes(texts: Iterator[str], budget: int) -> Iterator[str]:
    """Texts until `budget` UTF-8 bytes are reached; the last one is cut."""
    for text in texts:
        size = len(text.encode("utf-8"))
        if size >= budget:
            yield text.encode("utf-8")[:budget].decode("utf-8", "ignore")
            return
        budget -= size
        yield text

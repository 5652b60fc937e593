"""Texts to token ids: all that processes which make shards need of a tokenizer. Needs no model library."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from typing import Any, TypeVar

import numpy as np

from slmctl.corpus import long_texts
from slmctl.corpus.long_texts import Windows
from slmctl.corpus.special_names import SpecialNames
from slmctl.system.errors import InputError, MismatchError

B = TypeVar("B")


class Encoder:
    """Documents to token ids: the part of a tokenizer that many processes share, given as `tokenizer.json` text."""

    def __init__(self, backend: Any, eos_id: int, named: Iterable[int] = ()) -> None:
        self.backend, self.eos_id = backend, eos_id
        self.named = frozenset({eos_id, *named})
        """Ids of the tokens that serve as special ones, whether or not `tokenizer.json` marks them so."""

    @staticmethod
    def from_json(text: str, eos_id: int, named: Iterable[int] = ()) -> Encoder:
        from tokenizers import Tokenizer as Backend

        return Encoder(Backend.from_str(text), eos_id, named)

    @cached_property
    def names(self) -> SpecialNames:
        return SpecialNames(self.backend, self.named)

    @cached_property
    def windows(self) -> Windows:
        return Windows(self.backend.to_str())

    def encode(self, texts: list[str], parse_special_tokens: bool = False) -> list[np.ndarray]:
        """Token ids (int64) of each text, nothing added. A special token's name in a text is plain text by default.

        A text of more than `WINDOW_CHARS` characters is encoded in windows where these agree, else at once. Raises
        `InputError` where a text would become a special token all the same.
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
                    short = [t if len(t) <= long_texts.WINDOW_CHARS else "" for t in texts_of(batch)]
                    ahead.append((batch, pool.submit(self._encode, short)))
                    if len(ahead) > 1:
                        yield self._ids(*ahead.popleft(), texts_of, parse_special_tokens)
                while ahead:
                    yield self._ids(*ahead.popleft(), texts_of, parse_special_tokens)
        finally:
            self.backend.encode_special_tokens = False

    def _encode(self, texts: list[str]) -> list[Any]:
        found: list[Any] = self.backend.encode_batch_fast(texts, add_special_tokens=False)
        return found

    def _ids(
        self, batch: B, found: Future[list[Any]], texts_of: Callable[[B], list[str]], parse_special_tokens: bool
    ) -> tuple[B, list[np.ndarray]]:
        made = []
        for text, encoding in zip(texts_of(batch), found.result(), strict=True):
            short = len(text) <= long_texts.WINDOW_CHARS
            ids = np.array(encoding.ids, dtype=np.int64) if short else self._encode_long(self.backend, text)
            if not parse_special_tokens and self.names.suspect(text, ids):
                ids = self.names.check(text, self._encode_long(self.names.backend, text))
            made.append(ids)
        return batch, made

    def _encode_long(self, backend: Any, text: str) -> np.ndarray:
        ids = self.windows.encode(backend, text) if len(text) > long_texts.WINDOW_CHARS else None
        if ids is None:
            try:
                ids = backend.encode_batch_fast([text], add_special_tokens=False)[0].ids
            except Exception as e:  # tokenizers raises plain `Exception`: a word-level model without an unknown token
                raise InputError(f"the tokenizer cannot encode a text that begins {text[:60]!r}: {e}") from e
        return np.array(ids, dtype=np.int64)

    def check_ids(self, ids: np.ndarray, vocab_size: int) -> None:
        """Raises `MismatchError` where an id has no row in the model's embedding of `vocab_size` rows."""
        if ids.size and int(ids.max()) >= vocab_size:
            bad = int(ids.max())
            raise MismatchError(
                f"token id {bad} ({self.backend.id_to_token(bad)!r}) is beyond the model's vocabulary of "
                f"{vocab_size}. Tokenizer and model do not belong together; give the right one with model.tokenizer."
            )

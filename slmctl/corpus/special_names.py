"""Names of special tokens in a text are text: they never become the special token's id.

The tokenizer's own setting (`encode_special_tokens`) keeps its splitter of added tokens from finding them, but a name that
is in the vocabulary is still found there by Unigram, by WordLevel, by WordPiece, and by BPE where merges make it or whole
words are looked up. So every text's ids are looked over, and a text in which a special id stands is encoded once more by the
same tokenizer with these names out of reach.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cached_property
from typing import Any

import numpy as np

from slmctl.system.errors import InputError

_END = "\U0010ffff"
"""No character of any text: Unicode keeps it free."""


def unknown_id(backend: Any) -> int | None:
    """The id that the tokenizer's model gives what it does not know; None where it has none."""
    model = backend.model
    if hasattr(model, "unk_token"):
        return None if model.unk_token is None else backend.token_to_id(model.unk_token)
    found = json.loads(backend.to_str())["model"].get("unk_id")  # Unigram's, which the library does not tell
    return None if found is None else int(found)


def out_of_reach(backend_json: str, ids: set[int]) -> str:
    """The tokenizer's JSON with the names of `ids` changed to what no text holds. Every id stays as it is."""
    parts = json.loads(backend_json)
    names = {t["content"]: t["id"] for t in parts["added_tokens"]} | _vocabulary(parts["model"])
    changed = {name: f"{_END}{i}{_END}" for name, i in names.items() if i in ids}
    for token in parts["added_tokens"]:
        token["content"] = changed.get(token["content"], token["content"])
        if token["id"] in ids:
            token.update(special=True, single_word=False, lstrip=False, rstrip=False, normalized=False)
    _rename(parts["model"], changed)
    parts |= {"post_processor": None, "truncation": None, "padding": None}
    return json.dumps(parts, ensure_ascii=False)


def _vocabulary(model: dict[str, Any]) -> dict[str, int]:
    if model["type"] == "Unigram":
        return {piece: i for i, (piece, _) in enumerate(model["vocab"])}
    found: dict[str, int] = model["vocab"]
    return found


def _rename(model: dict[str, Any], changed: dict[str, str]) -> None:
    if model["type"] == "Unigram":
        model["vocab"] = [[changed.get(piece, piece), score] for piece, score in model["vocab"]]
        return
    model["vocab"] = {changed.get(name, name): i for name, i in model["vocab"].items()}
    if model.get("unk_token") in changed:
        model["unk_token"] = changed[model["unk_token"]]
    if model["type"] == "BPE":
        prefix = model.get("continuing_subword_prefix") or ""
        pairs = [m.split(" ") if isinstance(m, str) else m for m in model["merges"]]
        model["merges"] = [[a, b] for a, b in pairs if not {a, b, a + b.removeprefix(prefix)} & changed.keys()]


class SpecialNames:
    """Looks over the ids of texts whose special tokens' names were to stay text, and mends what did not.

    `named` are ids that serve as special ones, whatever the tokenizer marks.
    """

    def __init__(self, backend: Any, named: Iterable[int]) -> None:
        marked = {i for i, token in backend.get_added_tokens_decoder().items() if token.special}
        self.unknown = unknown_id(backend)
        """What a character that is not known makes, and may make: but for its name it is no fault in a text."""
        self.names = marked | set(named) | ({self.unknown} if self.unknown is not None else set())
        self.never = (marked - {self.unknown}) | set(named)
        self.unknown_name = None if self.unknown is None else backend.id_to_token(self.unknown)
        self.table = np.zeros(max(self.names, default=0) + 2, dtype=bool)
        self.table[list(self.names)] = True
        self._plain = backend

    def suspect(self, text: str, ids: np.ndarray) -> bool:
        """Whether `ids` [tokens] hold a special token's id that may come of its name in `text`."""
        special = self.table.take(ids, mode="clip")
        if not special.any():
            return False
        only_unknown = self.unknown not in self.never and bool((ids[special] == self.unknown).all())
        return not only_unknown or str(self.unknown_name) in text

    @cached_property
    def backend(self) -> Any:
        """The same tokenizer with these names out of reach."""
        from tokenizers import Tokenizer

        found = Tokenizer.from_str(out_of_reach(self._plain.to_str(), self.names))
        found.encode_special_tokens = True
        return found

    def check(self, text: str, ids: np.ndarray) -> np.ndarray:
        """The ids as they are. Raises `InputError` where they still hold one that no text may make."""
        for i in sorted(set(ids.tolist()) & self.never):
            unknown = "it stands for what the tokenizer does not know, and for the end or the beginning of documents, too"
            raise InputError(
                f"a text becomes the special token {self._plain.id_to_token(i)!r} though parse_special_tokens is false"
                f"{': ' + unknown if i == self.unknown else ''}. The text begins {text[:60]!r}. Give a tokenizer that knows "
                "every character, or has an unknown token of its own, with model.tokenizer; or leave the text out."
            )
        return ids

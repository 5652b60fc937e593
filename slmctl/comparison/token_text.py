"""What single tokens say, so that their texts put together are the text they came from."""

from __future__ import annotations

from typing import Any


def token_texts(tokenizer: Any, ids: list[int]) -> list[str]:
    """The text of each id as it reads after another token; bytes that are no whole character are U+FFFD.

    Each is decoded behind a letter: alone, a tokenizer that marks the beginning of a word by a space drops that space.
    """
    letter = tokenizer("a", add_special_tokens=False)["input_ids"][-1:]
    before = len(_decoded(tokenizer, letter))
    known: dict[int, str] = {}
    for i in ids:
        if i not in known:
            known[i] = _decoded(tokenizer, [*letter, i])[before:]
    return [known[i] for i in ids]


def vocabulary_texts(tokenizer: Any) -> list[str]:
    """What each token id stands for; special ones for nothing."""
    special = set(tokenizer.all_special_ids)
    return ["" if i in special else text for i, text in enumerate(token_texts(tokenizer, list(range(len(tokenizer)))))]


def _decoded(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))

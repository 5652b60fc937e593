"""How often each id of the vocabulary stands in a token set."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from slmctl.store.reader import TokenSet

MOST = 2**26
"""Tokens that are counted; of a larger set, those of row groups spread evenly over it."""


def token_counts(tokens: TokenSet, vocab_size: int, most: int = MOST) -> NDArray[np.int64]:
    """Counts of ids [V] among the tokens of a set that are not padding."""
    groups = len(tokens.group_rows)
    per_group = int(tokens.group_rows[0]) * tokens.seq_len
    wanted = np.unique(np.linspace(0, groups - 1, min(groups, max(1, most // per_group))).astype(np.int64))
    found = np.zeros(vocab_size, np.int64)
    for group in wanted.tolist():
        ids = tokens.read_group(group, ["input_id"])["input_id"].reshape(-1)[: tokens.valid_tokens(group)]
        found += np.bincount(ids, minlength=vocab_size)[:vocab_size]
    return found

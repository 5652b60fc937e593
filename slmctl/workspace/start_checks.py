"""Start checks that a process need not make twice: of many arms on one base, or of many results of one architecture."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slmctl.model.split import SplitModel


class Checked:
    """What the start check has let through since this process began."""

    def __init__(self) -> None:
        self._passed: list[dict[str, Any]] = []

    def once(self, split: SplitModel, model: Any, seq_len: int, precision: str, check: Callable[[], None]) -> None:
        """`check()`, unless it has passed before for the same `model` (whatever tells it from others: hashes of its files, or its
        configuration), length of rows in tokens, precision, attention and mask. A check that raises is made again."""
        key = {
            "model": model,
            "class": type(split.model).__name__,
            "attention": split.model.config._attn_implementation,
            "intra_document_mask": split.intra_document_mask,
            "seq_len": seq_len,
            "precision": precision,
        }
        if key not in self._passed:  # compared, not hashed: configurations hold all kinds of values
            check()
            self._passed.append(key)


def kind_of(split: SplitModel) -> dict[str, Any]:
    """A model's configuration: the same for models that differ in weights alone."""
    return {k: v for k, v in split.model.config.to_dict().items() if not k.startswith("_")}

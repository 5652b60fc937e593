"""A tokenizer whose template puts tokens in front of a text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, processors

BOS = "<s>"


def begin_with(directory: Path, template: str = f"{BOS} $A", added: tuple[str, ...] = (BOS,), **settings: Any) -> Path:
    """Adds special tokens to the tokenizer in a folder, and the template; `settings` go into its tokenizer_config.json."""
    raw = Tokenizer.from_file(str(directory / "tokenizer.json"))
    raw.add_special_tokens(list(added))
    named = [(t, raw.token_to_id(t)) for t in {*added, "<|endoftext|>"}]
    raw.post_processor = processors.TemplateProcessing(single=template, special_tokens=named)
    raw.save(str(directory / "tokenizer.json"))
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "bos_token": BOS, **settings}))
    (directory / "tokenizer.model").unlink(missing_ok=True)
    return directory

"""The beginning-of-sequence token (BOS): whether rows and prompts begin with one, and with which.

A model that was trained behind a BOS (Llama, Gemma, Mistral, …) predicts worse without. What its makers put in front of a
text is what its tokenizer's template puts there, so that is what `data.bos: auto` does.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from slmctl.corpus.packing import BosPlace
from slmctl.corpus.tokenizer import Tokenizer
from slmctl.system.errors import ConfigError

BosSetting = Literal["auto", "always", "never"]
CONFIG = "tokenizer_config.json"


@dataclass(frozen=True)
class Bos:
    """A BOS that is put in front, and where."""

    id: int
    token: str
    at: BosPlace

    def inputs(self) -> dict[str, Any]:
        """What of it decides a token set."""
        return {"id": self.id, "at": self.at}


def bos_of(tokenizer: Tokenizer, setting: BosSetting, at: BosPlace) -> Bos | None:
    """The BOS that `data.bos` asks for; None where there is none. Raises `ConfigError` where it must be and the tokenizer has
    no such token."""
    front = tokenizer.template_front()
    auto = front[0] if len(front) == 1 else None
    if setting == "never" or (setting == "auto" and auto is None):
        return None
    found = auto if auto is not None else tokenizer.bos_id
    if found is None:
        raise ConfigError(
            "data.bos: always, but the tokenizer names no beginning-of-sequence token that has an id. Set bos_token in its "
            f"{CONFIG} to one of its vocabulary, or data.bos: never."
        )
    return Bos(found, tokenizer.name_of([found]), at)


def described(tokenizer: Tokenizer, bos: Bos | None, setting: BosSetting) -> list[str]:
    """What to tell about BOS, in lines; nothing where neither the tokenizer nor the configuration puts anything in front."""
    front = tokenizer.template_front()
    told = []
    if bos is not None:
        place = "each row begins" if bos.at == "row" else "each document, and what is left of it in a further row, begins"
        told.append(f"{place} with {bos.token} (data.bos: {setting})")
    if front and (bos is None or front != [bos.id]):
        puts = f"the tokenizer's template puts {tokenizer.name_of(front)} in front of a text"
        if len(front) == 1:
            told.append(f"{puts}; rows and prompts go without (data.bos: {setting})")
        else:
            done = f"puts {bos.token} alone" if bos is not None else "puts none of it"
            advice = "" if bos is not None or tokenizer.bos_id is None else f"; data.bos: always puts {tokenizer.bos_token}"
            told.append(f"{puts}, and slmctl {done}: it knows one beginning-of-sequence token{advice}")
    return told


def in_front(ids: list[int], bos_id: int | None) -> list[int]:
    """A prompt's ids with BOS in front, once."""
    return ids if bos_id is None or ids[:1] == [bos_id] else [bos_id, *ids]


def cut_left(ids: list[int], room: int, bos_id: int | None) -> list[int]:
    """The last `room` (at least 1) ids of a prompt; of one that begins with BOS, that and the last of the others."""
    if len(ids) <= room:
        return ids
    kept = [bos_id] if bos_id is not None and ids[:1] == [bos_id] else []
    return [*kept, *ids[len(ids) - (room - len(kept)) :]]


def contradiction(tokenizer: Tokenizer, revision: str | None = None) -> str | None:
    """What a tokenizer's own `add_bos_token` says against what it does once it is loaded; None where it says nothing against
    it. The library leaves the setting out where there is a tokenizer.json, and goes by the template in that."""
    path = _settings_file(tokenizer.origin, revision)
    try:
        said = json.loads(path.read_text(encoding="utf-8")).get("add_bos_token")
    except (OSError, ValueError, AttributeError):
        return None
    does = tokenizer.bos_id is not None and tokenizer.bos_id in tokenizer.template_front()
    if not isinstance(said, bool) or said == does or tokenizer.bos_id is None:
        return None
    token = tokenizer.bos_token
    if said:
        return (
            f"{path} says add_bos_token: true, but the template of its tokenizer.json puts no {token} in front, and goes before. "
            "Models of such tokenizers were mostly trained with it: data.bos: always puts it."
        )
    return (
        f"{path} says add_bos_token: false, but the template of its tokenizer.json puts {token} in front, and goes before: "
        "data.bos: never leaves it out."
    )


def _settings_file(origin: str, revision: str | None) -> Path:
    """Where the tokenizer_config.json of what was loaded is; a path that does not exist where that is not known."""
    if not Path(origin).is_dir():
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        try:
            found = try_to_load_from_cache(origin, CONFIG, revision=revision)
        except HFValidationError:
            found = None
        if isinstance(found, str):
            return Path(found)
    return Path(origin) / CONFIG

"""The tokenizer of a model: loaded, checked, fingerprinted and saved."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from slmctl.corpus.encoder import Encoder
from slmctl.corpus.tokenizer_files import TOKENIZER_JSON, Ids, first_difference, read_tokenizer_json
from slmctl.corpus.tokenizer_loading import NAMED, Found, find, load_as_named, refuse_difference, reloaded_parts
from slmctl.system.console import warn
from slmctl.system.errors import InputError, MismatchError
from slmctl.system.hashes import sha256_json

SENTENCEPIECE = "tokenizer.model"


class Tokenizer(Encoder):
    """A fast Hugging Face tokenizer; `sentencepiece` is its SentencePiece form, where it has one.

    Raises `InputError` where it is not a fast one or has no end-of-sequence token.
    """

    def __init__(self, hf: Any, origin: str, sentencepiece: bytes | None = None, found: Found | None = None) -> None:
        self.hf, self.sentencepiece, self.found = hf, sentencepiece, found
        self.origin = origin
        """The directory or Hub id that it was loaded from."""
        if not getattr(hf, "is_fast", False):
            raise InputError(f"{origin}: the tokenizer has no fast (Rust) form. Convert it to tokenizer.json first.")
        if hf.eos_token_id is None:
            raise InputError(
                f"{origin}: the tokenizer has no end-of-sequence token, which separates documents. "
                "Set eos_token in its tokenizer_config.json, or give another with model.tokenizer."
            )
        super().__init__(hf.backend_tokenizer, hf.eos_token_id, _serving(hf))
        self.size: int = len(hf)
        self._second_opinion: Ids | None = None
        self._fingerprints: dict[int, str] = {}
        self._reloaded: dict[str, list[str]] = {}
        """Parts that differ once saved and loaded again, by the type of the model beside."""

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
        if self.eos_id not in self._fingerprints:
            parts = json.loads(self.backend.to_str())
            kept = {k: parts.get(k) for k in ("added_tokens", "normalizer", "pre_tokenizer", "model")}
            self._fingerprints[self.eos_id] = sha256_json({**kept, "eos_id": self.eos_id})
        return self._fingerprints[self.eos_id]

    def save(self, directory: Path) -> None:
        """As `AutoTokenizer` loads it, and in SentencePiece's form, which `save_pretrained` leaves out and llama.cpp reads."""
        self.hf.save_pretrained(directory)
        self._warn_of_reload(directory)
        if self.sentencepiece is None:
            return
        if self._agrees(self.sentencepiece):
            (directory / SENTENCEPIECE).write_bytes(self.sentencepiece)
        else:
            warn(
                f"{directory}: left out {SENTENCEPIECE} of the tokenizer that was loaded: it gives other ids than tokenizer.json."
            )

    def _warn_of_reload(self, directory: Path) -> None:
        """Says so where `AutoTokenizer` would make another tokenizer of what was saved, for the type of the model beside it."""
        if not (directory / "config.json").is_file():
            return
        kind = str(json.loads((directory / "config.json").read_text(encoding="utf-8")).get("model_type"))
        if kind not in self._reloaded:
            self._reloaded[kind] = reloaded_parts(self.backend, directory)
        if differ := self._reloaded[kind]:
            warn(
                f"{directory}: its tokenizer.json is right, but AutoTokenizer replaces {', '.join(differ)} for models of type "
                f"{kind!r}. Load it with PreTrainedTokenizerFast.from_pretrained, as slmctl does."
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

    def prove(self, texts: list[str]) -> None:
        """Compares its ids of `texts` with those of its files, read by other means. Raises `InputError` where they differ."""
        if self.found is None or self.found.second_opinion is None:
            return
        if self._second_opinion is None:
            self._second_opinion = self.found.second_opinion()
        names = [t.content for t in self.backend.get_added_tokens_decoder().values()]
        plain = [t for t in texts if not any(n in t for n in names)]  # where such a name stands, both may differ and be right
        ids = {t: i.tolist() for t, i in zip(plain, self.encode(plain), strict=True)}
        found = first_difference(ids.__getitem__, self._second_opinion, plain)
        if found is not None:
            refuse_difference(self.origin, self.found.against, found)

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raises `MismatchError` where the model's embedding of `vocab_size` rows is too small for the vocabulary, less tokens
        that were added to it, or lacks the end-of-sequence token."""
        entries = self.backend.get_vocab_size(with_added_tokens=False)
        if entries > vocab_size:
            raise MismatchError(
                f"{self.origin}: the tokenizer has {entries} entries, beyond the model's vocabulary of {vocab_size}. Tokenizer "
                "and model do not belong together; give the right one with model.tokenizer."
            )
        self.check_ids(np.array([self.eos_id]), vocab_size)

    def vocabulary(self) -> dict[str, int]:
        """Token to id, added tokens included: what two models must share for their losses to join."""
        found: dict[str, int] = self.backend.get_vocab(with_added_tokens=True)
        return found


def _serving(hf: Any) -> set[int]:
    """Ids of tokens that no text may make: the named ones. An unknown character makes the unknown token, which may pad, too."""
    found = {n: hf.convert_tokens_to_ids(getattr(hf, n)) for n in NAMED if getattr(hf, n) is not None}
    unknown, pad = found.pop("unk_token", None), found.pop("pad_token", None)
    return {*found.values(), *([pad] if pad is not None and pad != unknown else [])}


def load_tokenizer(path: str, gguf_file: str | None = None, revision: str | None = None) -> Tokenizer:
    """Loads from a local directory or the Hub: the tokenizer that its files say. Raises `InputError` with the reason."""

    def file_of(name: str) -> Path | None:
        return _file_of(path, name, revision)

    found = find(path, gguf_file, revision, file_of)
    return Tokenizer(found.hf, path, _sentencepiece_of(path, file_of), found)


def load_vocabulary(path: str, gguf_file: str | None = None) -> dict[str, int]:
    """Token to id, of a model that is only ever given ids: how its tokenizer cuts texts, or ends them, does not matter."""
    try:
        found: dict[str, int] = load_as_named(path, None, **({"gguf_file": gguf_file} if gguf_file else {})).get_vocab()
    except InputError:  # the class that is named may be unfit for the file, which says it all the same
        json_file = None if gguf_file else _file_of(path, TOKENIZER_JSON, None)
        if json_file is None:
            raise
        found = read_tokenizer_json(json_file).get_vocab(with_added_tokens=True)
    return found


def _file_of(path: str, name: str, revision: str | None) -> Path | None:
    """A file of a local directory or the Hub; None where it has none. Raises `InputError` where it cannot be reached."""
    if Path(path).is_dir():
        return Path(path) / name if (Path(path) / name).is_file() else None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return Path(hf_hub_download(path, name, revision=revision))
    except EntryNotFoundError:
        return None
    except Exception as e:  # the library raises many kinds
        raise InputError(f"cannot load a tokenizer from {path!r}: {name} cannot be fetched ({_first_line(e)})") from e


def _sentencepiece_of(path: str, file_of: Callable[[str], Path | None]) -> bytes | None:
    try:
        here = file_of(SENTENCEPIECE)
        return here.read_bytes() if here is not None else None
    except InputError as e:  # nothing but a conversion needs the file
        warn(f"{path}: exported models will lack {SENTENCEPIECE} ({e})")
        return None


def _first_line(e: BaseException) -> str:
    return str(e).strip().split("\n")[0] or type(e).__name__

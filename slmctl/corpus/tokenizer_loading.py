"""Which backend a tokenizer's directory, Hub repository or GGUF file means, and the Hugging Face object around it."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slmctl.corpus import tokenizer_files as files
from slmctl.corpus.tokenizer_files import PROBE, Ids
from slmctl.system.console import say
from slmctl.system.errors import InputError

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_ADVICE = "Give a directory whose tokenizer.json is the model's with model.tokenizer."


@dataclass
class Found:
    """A tokenizer as its files say it is."""

    hf: Any
    second_opinion: Callable[[], Ids] | None = None
    """Makes another way from texts to ids, with which the tokenizer is compared on real texts."""
    against: str = ""
    """What that is."""


def find(path: str, gguf_file: str | None, revision: str | None, file_of: Callable[[str], Path | None]) -> Found:
    """`file_of` gives a file of the tokenizer by its name, None where there is none. Raises `InputError` with the reason."""
    with _quiet_transformers():
        if gguf_file:
            return _of_gguf(path, gguf_file, revision, file_of)
        json_file = file_of(files.TOKENIZER_JSON)
        if json_file is not None:
            return _of_json(path, revision, json_file)
        hf = load_as_named(path, revision)
        for name in files.SENTENCEPIECE_FILES:
            if (model := file_of(name)) is not None:
                return _of_sentencepiece(path, hf, model)
        _refuse_other_vocabulary(path, hf)
        return Found(hf)


def load_as_named(path: str, revision: str | None, **options: Any) -> Any:
    """The library's object, by the class that the files name. Raises `InputError` with the reason."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path, **({"revision": revision} if revision else {}), **options)
    except Exception as e:  # the library raises many kinds
        raise InputError(f"cannot load a tokenizer from {path!r}: {_first_line(e)}") from e


def reloaded_parts(backend: Any, directory: Path) -> list[str]:
    """The parts in which what `AutoTokenizer` makes of a saved directory differs from `backend`."""
    try:
        with _quiet_transformers():
            hf = load_as_named(str(directory), None)
    except InputError:
        return ["all"]
    return files.differing(backend, hf.backend_tokenizer) if getattr(hf, "is_fast", False) else ["all"]


def _of_json(path: str, revision: str | None, json_file: Path) -> Found:
    """The library's object where its backend is the file's; else one around the file's own backend."""
    from transformers import PreTrainedTokenizerFast

    own, folder = files.read_tokenizer_json(json_file), json_file.parent
    files.refuse_dropout(own, path)
    try:
        hf, differ = load_as_named(path, revision), ["class"]
        if getattr(hf, "is_fast", False):
            files.refuse_invented_ids(hf, own, files.claimed_ids(folder), path)
            differ = files.differing(own, hf.backend_tokenizer)
    except InputError as e:
        if "cannot load" not in str(e):
            raise
        hf, differ = None, ["class"]
        reason = e
    if differ:
        options = {"revision": revision} if revision else {}
        try:
            made = PreTrainedTokenizerFast.from_pretrained(path, **options)
        except Exception as e:  # the library raises many kinds
            raise InputError(f"cannot load a tokenizer from {path!r}: {_first_line(e)}") from e
        files.refuse_invented_ids(made, own, files.claimed_ids(folder), path)
        if left := files.differing(own, made.backend_tokenizer):
            raise InputError(f"{path}: transformers changes {', '.join(left)} of tokenizer.json, whatever its class. {_ADVICE}")
        for name in NAMED:
            given = getattr(hf, name, None)
            if getattr(made, name) is None and given is not None and own.token_to_id(given) is not None:
                setattr(made, name, given)
        say(f"{path}: tokenizer.json is used as it is; {_what_differs(hf, own, differ) if hf is not None else reason}")
        hf = made
    if hf.bos_token is not None and own.token_to_id(hf.bos_token) is None and hf.bos_token not in files.claimed_ids(folder):
        hf.bos_token = None  # the library gave it an id of its own, which the model never learnt
    return Found(hf, lambda: _plain_ids(files.read_tokenizer_json(json_file)), files.TOKENIZER_JSON)


def _plain_ids(backend: Any) -> Ids:
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    return lambda text: [int(i) for i in backend.encode(text, add_special_tokens=False).ids]


def _what_differs(hf: Any, own: Any, differ: list[str]) -> str:
    if differ == ["class"]:
        return f"transformers' {type(hf).__name__} would make no use of it"
    try:
        count, total = files.share_that_differs(_plain_ids(_copy(hf.backend_tokenizer)), _plain_ids(_copy(own)), PROBE)
        trial = f", and make other tokens of {count} of {total} in a text of trial" if count else ""
    except Exception:  # tokenizers raises plain `Exception`: with the replaced parts some texts have no tokens at all
        trial = ", and could not encode a text of trial"
    return f"transformers' {type(hf).__name__} would replace its {', '.join(differ)}{trial}"


def _copy(backend: Any) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_str(backend.to_str())


def _of_sentencepiece(path: str, hf: Any, model_file: Path) -> Found:
    """A conversion of a SentencePiece model that gives the ids which the sentencepiece package gives."""
    from slmctl.corpus.gguf_tokenizer import as_sentencepiece

    proto = model_file.read_bytes()
    ids = files.sentencepiece_ids(proto)
    if ids is None:
        pointer = proto.startswith(b"version https://git-lfs")
        what = (
            "is a Git LFS pointer: run `git lfs pull`"
            if pointer
            else "is not SentencePiece's, and does not say how it cuts texts"
        )
        raise InputError(f"{model_file} {what}. {_ADVICE}")
    if not getattr(hf, "is_fast", False):
        return Found(hf)
    if _offset(hf, model_file):
        ids = files.sentencepiece_ids(proto, hf.backend_tokenizer.token_to_id) or ids
    if (found := files.first_difference(_plain_ids(_copy(hf.backend_tokenizer)), ids, PROBE)) is not None:
        for prefix in (True, False):
            backend = as_sentencepiece(hf.backend_tokenizer, prefix, files.user_defined(proto))
            if files.first_difference(_plain_ids(_copy(backend)), ids, PROBE) is None:
                return Found(_around(backend, hf), lambda: ids, model_file.name)
        refuse_difference(path, model_file.name, found)
    return Found(hf, lambda: ids, model_file.name)


def _offset(hf: Any, model_file: Path) -> bool:
    """Whether a class counts its ids from elsewhere than the SentencePiece file by design, as fairseq's models do."""
    return model_file.name == "sentencepiece.bpe.model" and hf.backend_tokenizer.token_to_id("<s>") == 0


def refuse_difference(path: str, against: str, found: tuple[str, list[int], list[int]]) -> None:
    text, ours, theirs = found
    raise InputError(
        f"{path}: the tokenizer that transformers makes gives other ids than {against}: {ours} in place of {theirs} in "
        f"{text[:60]!r}. {_ADVICE}"
    )


def _refuse_other_vocabulary(path: str, hf: Any) -> None:
    """Where `vocab.json` and `merges.txt` are all there is, they are what the backend has."""
    given = files.vocabulary_files(Path(path))
    if given is None or not getattr(hf, "is_fast", False):
        return
    vocabulary, merges = given
    model = json.loads(hf.backend_tokenizer.to_str())["model"]
    made = [tuple(m.split(" ", 1) if isinstance(m, str) else m) for m in model.get("merges", [])]
    if model["vocab"] != vocabulary or made != merges:
        raise InputError(
            f"{path}: of vocab.json ({len(vocabulary)} entries) and merges.txt ({len(merges)}) transformers makes other ones "
            f"({len(model['vocab'])} and {len(made)}). {_ADVICE}"
        )


def _of_gguf(path: str, gguf_file: str, revision: str | None, file_of: Callable[[str], Path | None]) -> Found:
    """What the file describes; transformers' conversion where that is the same."""
    from slmctl.corpus import gguf_tokenizer

    hf = load_as_named(path, revision, gguf_file=gguf_file)
    local = file_of(gguf_file)
    if local is None:
        raise InputError(f"{path} has no {gguf_file}. Correct model.gguf_file.")
    if not getattr(hf, "is_fast", False):
        return Found(hf)
    own, ids = gguf_tokenizer.build(local, hf.backend_tokenizer)
    if ids is None:
        if differ := files.differing(own, hf.backend_tokenizer):
            say(f"{gguf_file}: its own rule is used; {_what_differs(hf, own, differ)}")
            hf = _around(own, hf)
        return Found(hf)
    first = files.first_difference(_plain_ids(_copy(hf.backend_tokenizer)), ids, PROBE)
    if first is not None:
        if files.first_difference(_plain_ids(_copy(own)), ids, PROBE) is not None:
            refuse_difference(gguf_file, "its scores under SentencePiece", first)
        hf = _around(own, hf)
    return Found(hf, lambda: ids, "its scores under SentencePiece")


def _around(backend: Any, hf: Any) -> Any:
    """A Hugging Face object around `backend`, with the special tokens and the rest of another."""
    from transformers import PreTrainedTokenizerFast

    named = {n: getattr(hf, n) for n in NAMED if getattr(hf, n) is not None and backend.token_to_id(getattr(hf, n)) is not None}
    made = PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=hf.model_max_length, **named)
    made.chat_template = hf.chat_template
    if left := files.differing(backend, made.backend_tokenizer):
        raise InputError(f"transformers changes {', '.join(left)} of a tokenizer that is given to it. {_ADVICE}")
    return made


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Keeps its advice on classes, which is not followed here, off the terminal."""
    from transformers.utils import logging as hf_logging

    level = hf_logging.get_verbosity()
    hf_logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)


def _first_line(e: BaseException) -> str:
    return str(e).strip().split("\n")[0] or type(e).__name__

"""What a tokenizer's files say: the file's own backend, whether the library's is the same, and a second opinion on ids.

transformers lets the class that a configuration names, or the model's type, put another normalizer and pre-tokenizer in the
place of those that `tokenizer.json` has. Texts are then cut otherwise than the model was trained with, and nothing says so.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from slmctl.system.errors import InputError

Ids = Callable[[str], list[int]]
"""Text to ids, by other means than the tokenizer's own."""

TOKENIZER_JSON = "tokenizer.json"
SENTENCEPIECE_FILES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "spm.model", "sentencepiece.model")
PROBE = (
    "The price didn't change: it's $1,234.50 in 2023, or 1234567 of 89 (they'll say 50%).",
    "  two spaces, then   three,\n\n\tdef f(x):\n        return x ** 2  # 4\n",
    "\r\n a line end first, \u00a0 and trailing space ",
    "naïve café Straße Ωμέγα привет 漢字かな交じり文 한국어 العربية हिन्दी",
    "e\u0301 A\u030a \ufb01 ½ ² ™ …«»“”‘’— 😀👍🏽👩‍👩‍👧 \u200b\ufeff",
    "x", " x", "\n", "    ", "I'M YOU'RE we've he'd", "a_b-c/d\\e|f <p>q</p> {r} [s] ==> !=",
    "1 12 123 1234 12345 0.001 1e-5 ٣٤ ²³",
)  # fmt: skip
_ADVICE = "Give a directory whose tokenizer.json is the model's with model.tokenizer."


def read_tokenizer_json(path: Path) -> Any:
    """The backend as the file has it. Raises `InputError` for a pointer, a truncated file, and what is no tokenizer's."""
    from tokenizers import Tokenizer

    try:
        text = path.read_bytes()
        if text.startswith(b"version https://git-lfs"):
            raise InputError(f"{path} is a Git LFS pointer, not the file it stands for. Run `git lfs pull` in its repository.")
        return Tokenizer.from_str(text.decode("utf-8"))
    except InputError:
        raise
    except Exception as e:  # tokenizers raises plain `Exception`
        try:
            json.loads(text)
            why = str(e).strip().split("\n")[0]
        except ValueError as broken:
            why = f"no whole JSON ({broken})"
        raise InputError(f"{path} cannot be read as a tokenizer: {why}. Fetch it anew. {_ADVICE}") from None


def differing(file: Any, used: Any) -> list[str]:
    """The parts in which the backend that would be used gives, or may give, other ids than the file's own."""
    (head, model), (used_head, used_model) = (_halves(b.to_str()) for b in (file, used))
    ours, theirs = _comparable(json.loads(head)), _comparable(json.loads(used_head))
    found = [part.replace("_", "-") for part in ("normalizer", "pre_tokenizer") if ours[part] != theirs[part]]
    if model != used_model and _model(json.loads(model), ours) != _model(json.loads(used_model), theirs):
        found.append("model")
    if any(theirs["added"].get(content) != token for content, token in ours["added"].items()):
        found.append("added tokens")
    return found


def _halves(text: str) -> tuple[str, str]:
    """The JSON of a backend without its model, and its model's, which is written last: large, and mostly the same."""
    at = text.index(',"model":{"type":')
    return text[:at] + "}", text[at + len(',"model":') : -1]


def _comparable(parts: dict[str, Any]) -> dict[str, Any]:
    """The parts that decide ids, without what makes no difference to them."""
    normalizer, cutter = _plain(parts["normalizer"]), _plain(parts["pre_tokenizer"])
    flags = ("id", "single_word", "lstrip", "rstrip", "normalized")
    added = {t["content"]: {k: t[k] for k in flags} for t in parts["added_tokens"]}
    for token in added.values():
        if normalizer is None:
            token["normalized"] = False
    return {"normalizer": normalizer, "pre_tokenizer": cutter, "added": added}


def _model(model: dict[str, Any], parts: dict[str, Any]) -> dict[str, Any]:
    if model["type"] == "BPE":
        for key in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
            model[key] = model.get(key) or None
        model["merges"] = [tuple(m.split(" ", 1) if isinstance(m, str) else m) for m in model["merges"]]
        if any(_knows_every_byte(parts[k], model["vocab"]) for k in ("normalizer", "pre_tokenizer")):
            model |= {"unk_token": None, "fuse_unk": None, "byte_fallback": None}  # for what never occurs
    return model


def _plain(part: dict[str, Any] | None) -> Any:
    """Without the settings of offsets, and without sequences of none and of one."""
    if part is None:
        return None
    if part["type"] == "Sequence":
        key = "normalizers" if "normalizers" in part else "pretokenizers"
        steps = [s for s in (_plain(step) for step in part[key]) if s is not None]
        return None if not steps else steps[0] if len(steps) == 1 else {"type": "Sequence", "steps": steps}
    return {k: v for k, v in part.items() if k != "trim_offsets"}


def _knows_every_byte(part: Any, vocabulary: dict[str, int]) -> bool:
    """Whether texts are spelt in bytes, each of which has an entry."""
    from tokenizers.pre_tokenizers import ByteLevel

    steps = part["steps"] if part and part["type"] == "Sequence" else [part] if part else []
    return any(s["type"] == "ByteLevel" for s in steps) and all(c in vocabulary for c in ByteLevel.alphabet())


def refuse_dropout(backend: Any, origin: str) -> None:
    """Raises `InputError` where the same text would become other ids each time."""
    model = backend.model
    if getattr(model, "dropout", None) or (getattr(model, "alpha", None) and getattr(model, "nbest_size", None)):
        raise InputError(
            f"{origin}: the tokenizer draws its merges by chance (dropout {model.dropout}), so the same text becomes other "
            f"tokens each time. Set dropout to null in {TOKENIZER_JSON}."
        )


def refuse_invented_ids(hf: Any, file: Any, claimed: dict[str, int], origin: str) -> None:
    """Tokens that the file lacks have the ids that the other files give them. Raises `InputError` where they have not, and
    where the end-of-sequence token has an id that no file gives it."""
    for content, i in claimed.items():
        got = hf.backend_tokenizer.token_to_id(content)
        if file.token_to_id(content) is None and got is not None and got != i:
            raise InputError(
                f"{origin}: {content!r} is not in {TOKENIZER_JSON}; the other files give it the id {i}, where it would become "
                f"{got}. Save the tokenizer anew with the library that made it. {_ADVICE}"
            )
    eos = hf.eos_token
    if eos is not None and file.token_to_id(eos) is None and eos not in claimed:
        raise InputError(
            f"{origin}: the end-of-sequence token {eos!r} has no id in {TOKENIZER_JSON} nor in added_tokens.json, so the model "
            f"never learnt it. Set eos_token in tokenizer_config.json to one that the file has. {_ADVICE}"
        )


def claimed_ids(folder: Path) -> dict[str, int]:
    """Tokens to ids as `added_tokens.json` and `tokenizer_config.json` give them, the latter before the former."""
    found: dict[str, int] = {}
    for name in ("added_tokens.json", "tokenizer_config.json"):
        try:
            data = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if name == "added_tokens.json":
            found |= {str(k): int(v) for k, v in data.items() if isinstance(v, int)}
        else:
            decoder = data.get("added_tokens_decoder") or {}
            found |= {str(t["content"] if isinstance(t, dict) else t): int(i) for i, t in decoder.items()}
    return found


def sentencepiece_ids(model: bytes, id_of: Callable[[str], int | None] | None = None) -> Ids | None:
    """Text to ids by the sentencepiece package; None where the file is not SentencePiece's. `id_of` gives a piece's id where
    that is not its place in the file."""
    from sentencepiece import SentencePieceProcessor

    try:
        form = SentencePieceProcessor(model_proto=model)
    except RuntimeError:
        return None
    if id_of is None:
        return lambda text: [int(i) for i in form.encode(text)]
    ids = [id_of(form.id_to_piece(i)) for i in range(form.vocab_size())]
    return lambda text: [-1 if ids[i] is None else int(ids[i]) for i in form.encode(text)]


def user_defined(model: bytes) -> list[str]:
    """The pieces that SentencePiece finds in a text before it merges anything, as Gemma's runs of spaces and lines."""
    from sentencepiece import sentencepiece_model_pb2

    form: Any = sentencepiece_model_pb2
    return [p.piece for p in form.ModelProto.FromString(model).pieces if p.type == form.ModelProto.SentencePiece.USER_DEFINED]


def first_difference(encode: Ids, other: Ids, texts: Iterable[str]) -> tuple[str, list[int], list[int]] | None:
    """The first text of which two ways make other ids, with both from the first difference on."""
    for text in texts:
        ours, theirs = encode(text), other(text)
        if ours != theirs:
            at = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
            return text, ours[at : at + 4], theirs[at : at + 4]
    return None


def share_that_differs(encode: Ids, other: Ids, texts: Iterable[str]) -> tuple[int, int]:
    """Of how many tokens of the second way the first makes something else, and how many there are."""
    from difflib import SequenceMatcher

    differ = total = 0
    for text in texts:
        ours, theirs = encode(text), other(text)
        total += len(theirs)
        if ours != theirs:
            same = SequenceMatcher(None, ours, theirs, autojunk=False).get_matching_blocks()
            differ += len(theirs) - sum(b.size for b in same)
    return differ, total


def vocabulary_files(folder: Path) -> tuple[dict[str, int], list[tuple[str, ...]]] | None:
    """`vocab.json` and `merges.txt` of a folder, as they are; None where it has not both."""
    vocab, merges = folder / "vocab.json", folder / "merges.txt"
    if not (vocab.is_file() and merges.is_file()):
        return None
    lines = merges.read_text(encoding="utf-8").split("\n")
    kept = [tuple(x.rstrip("\r").split(" ")) for x in lines if x.strip("\r") and not x.startswith("#version")]
    found: dict[str, int] = json.loads(vocab.read_text(encoding="utf-8"))
    return found, kept

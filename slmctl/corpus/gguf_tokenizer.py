"""The tokenizer of a GGUF file, built from what the file says.

The file has entries, merges or scores, and the *name* of the rule by which a text is cut (`tokenizer.ggml.pre`), not the rule.
Names whose rule is known here are built; a file that names another, or none, is refused: cut by some other rule, texts would
become other tokens than the model was trained with.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from slmctl.corpus.gguf_fields import read_fields
from slmctl.corpus.tokenizer_files import Ids, sentencepiece_ids
from slmctl.system.errors import InputError

_LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
RULES = {
    **dict.fromkeys(("gpt-2", "phi-2"), "gpt2"),
    **dict.fromkeys(("smollm", "starcoder", "refact"), "digits"),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3"), "llama3"),
    "qwen2": "qwen2",
}
"""`tokenizer.ggml.pre` to the rule: GPT-2's; each digit by itself, then GPT-2's; Llama 3's; Qwen2's."""
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
_ADVICE = "Give the directory or Hub id of the model's tokenizer with model.tokenizer."


def build(path: Path, converted: Any) -> tuple[Any, Ids | None]:
    """The backend that a file describes, and a second opinion on its ids where there is one. `converted` is transformers'
    conversion, of which a SentencePiece model's merges are taken.

    Raises `InputError` where the file names a rule, or a kind of tokenizer, that is not known here.
    """
    fields = read_fields(path, "tokenizer.ggml.")
    kind = fields.get("model")
    if kind == "gpt2":
        return byte_level(fields, path), None
    if kind == "llama":
        return sentencepiece_bpe(fields, path, converted)
    raise InputError(f"{path}: a GGUF tokenizer of kind {kind!r} cannot be built with certainty. {_ADVICE}")


def byte_level(fields: dict[str, Any], path: Path) -> Any:
    """Byte-level BPE by the rule that the file names."""
    from tokenizers import AddedToken, Tokenizer, decoders, models

    name = fields.get("pre")
    if name not in RULES or fields.get("add_space_prefix"):
        says = f"says {name!r}" if name else "is absent"
        what = "it puts a space before texts" if name in RULES else f"tokenizer.ggml.pre, by which texts are cut, {says}"
        raise InputError(f"{path}: {what}; the rules known here are {', '.join(sorted(RULES))}. {_ADVICE}")
    tokens, merges = fields.get("tokens") or [], fields.get("merges") or []
    vocabulary = {t: i for i, t in enumerate(tokens)}
    if len(vocabulary) != len(tokens) or not tokens:
        raise InputError(f"{path}: its {len(tokens)} tokens are only {len(vocabulary)} different ones. {_ADVICE}")
    rule = RULES[name]
    pairs = [tuple(m.split(" ")) for m in merges]
    try:
        backend = Tokenizer(models.BPE(vocabulary, pairs, ignore_merges=rule == "llama3"))
    except Exception as e:  # tokenizers raises plain `Exception`
        raise InputError(f"{path}: its tokens and merges do not belong together ({e}). {_ADVICE}") from None
    backend.normalizer, backend.pre_tokenizer = cutting(rule)
    backend.decoder = decoders.ByteLevel()
    types = fields.get("token_type") or [NORMAL] * len(tokens)
    for token, kind in zip(tokens, types, strict=True):
        if kind in (CONTROL, USER_DEFINED):
            added = AddedToken(token, normalized=False, special=kind == CONTROL)
            (backend.add_special_tokens if kind == CONTROL else backend.add_tokens)([added])
    return backend


def cutting(rule: str) -> tuple[Any, Any]:
    """Normalizer and pre-tokenizer of a rule."""
    from tokenizers import Regex, normalizers, pre_tokenizers

    if rule == "gpt2":
        return None, pre_tokenizers.ByteLevel(add_prefix_space=False)
    if rule == "digits":
        cut = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        return None, pre_tokenizers.Sequence(cut)
    split = pre_tokenizers.Split(Regex(_QWEN2 if rule == "qwen2" else _LLAMA3), "isolated")
    sequence = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    return (normalizers.NFC() if rule == "qwen2" else None), sequence


def sentencepiece_bpe(fields: dict[str, Any], path: Path, converted: Any) -> tuple[Any, Ids]:
    """SentencePiece's BPE, whose merges follow from the scores; and the ids that the sentencepiece package makes."""
    from sentencepiece import sentencepiece_model_pb2

    tokens, scores, types = (fields.get(k) or [] for k in ("tokens", "scores", "token_type"))
    if not tokens or not len(tokens) == len(scores) == len(types):
        raise InputError(f"{path}: {len(tokens)} tokens, {len(scores)} scores and {len(types)} types. {_ADVICE}")
    form: Any = sentencepiece_model_pb2
    model = form.ModelProto()
    for token, score, kind in zip(tokens, scores, types, strict=True):
        model.pieces.add(piece=token, score=score, type=kind)
    trained, as_given = model.trainer_spec, model.normalizer_spec
    trained.model_type, trained.vocab_size = form.TrainerSpec.BPE, len(tokens)
    trained.byte_fallback = BYTE in types
    trained.unk_id = types.index(UNKNOWN) if UNKNOWN in types else 0
    trained.unk_piece = tokens[trained.unk_id]
    trained.bos_id = trained.eos_id = trained.pad_id = -1
    as_given.name, as_given.escape_whitespaces = "identity", True
    as_given.add_dummy_prefix = bool(fields.get("add_space_prefix", True))
    as_given.remove_extra_whitespaces = bool(fields.get("remove_extra_whitespaces", False))
    ids = sentencepiece_ids(model.SerializeToString())
    if ids is None:
        raise InputError(f"{path}: its tokens make no SentencePiece model (one unknown token, and no two alike). {_ADVICE}")
    return as_sentencepiece(converted, as_given.add_dummy_prefix), ids


def as_sentencepiece(converted: Any, prefix: bool, defined: Iterable[str] = ()) -> Any:
    """A converted SentencePiece model that takes spaces as SentencePiece does: one is put before every text, whatever it
    begins with, or none; and a text is one word, but for the user-defined pieces that are found in it first."""
    from tokenizers import AddedToken, Tokenizer, normalizers

    backend = Tokenizer.from_str(converted.to_str())
    replaced = normalizers.Replace(" ", "\u2581")
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), replaced]) if prefix else replaced
    backend.pre_tokenizer = None
    backend.add_tokens([AddedToken(piece, normalized=True) for piece in defined])
    return backend

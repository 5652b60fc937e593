"""Whether all that a GGUF file holds is in the model that was loaded from it.

transformers looks up each tensor of the file by name, and passes over those that it has no name for; and of how a file scales its
rotary frequencies it reads nothing.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from slmctl.corpus.gguf_fields import ARRAY, NUMBERS, STRING, numbers, string
from slmctl.model.weight_files import few, refuse_pointer
from slmctl.system.errors import InputError

MAGIC = b"GGUF"
_F32 = 0
_FACTORS = "rope_freqs.weight"
_AS_ORIGINAL = "Use the original model in place of its GGUF file."


class Entry(NamedTuple):
    """A tensor of the file: its shape as in torch, its type by GGML's number, and the byte where it begins."""

    shape: tuple[int, ...]
    kind: int
    start: int


class Header(NamedTuple):
    """What a GGUF file says of itself, but for lists (vocabulary, merges, …)."""

    facts: dict[str, Any]
    tensors: dict[str, Entry]


def read_header(file: Path) -> Header:
    """Reads no tensor. Raises `InputError` for what is no whole GGUF file."""
    refuse_pointer(file)
    try:
        with file.open("rb") as stream:
            return _read(stream, file)
    except ImportError as e:
        raise InputError("GGUF files need the extra: pip install 'slmctl[gguf]'.") from e
    except (struct.error, ValueError, KeyError, TypeError, OverflowError, MemoryError, EOFError) as e:
        raise InputError(f"{file} is not a whole GGUF file ({e}). Copy or download it again.") from e


def _read(stream: BinaryIO, file: Path) -> Header:
    if stream.read(4) != MAGIC:
        raise ValueError("it does not begin with GGUF")
    _, tensors, facts = numbers(stream, "IQQ")
    found = {}
    for _ in range(facts):
        key = string(stream)
        value = _value(stream, numbers(stream, "I")[0])
        if value is not None:
            found[key] = value
    entries = {}
    for _ in range(tensors):
        name = string(stream)
        shape = numbers(stream, f"{numbers(stream, 'I')[0]}Q")
        kind, offset = numbers(stream, "IQ")
        entries[name] = Entry(tuple(reversed(shape)), kind, offset)
    alignment = int(found.get("general.alignment", 32))
    start = -(-stream.tell() // alignment) * alignment
    entries = {n: e._replace(start=start + e.start) for n, e in entries.items()}
    if max((e.start + _bytes(e) for e in entries.values()), default=0) > file.stat().st_size:
        raise ValueError(f"it is cut short at {file.stat().st_size:,} bytes")
    return Header(found, entries)


def _bytes(entry: Entry) -> int:
    """How long a tensor is in the file; 1 where its type is not known here."""
    from gguf.constants import GGML_QUANT_SIZES  # the extra

    sizes: Mapping[int, tuple[int, int]] = {int(k): s for k, s in GGML_QUANT_SIZES.items()}
    values, size = sizes.get(entry.kind, (0, 0))
    return math.prod(entry.shape) // values * size if values else 1


def _value(stream: BinaryIO, kind: int) -> Any:
    """A value, or None for a list, which is passed over."""
    if kind == STRING:
        return string(stream)
    if kind != ARRAY:
        return numbers(stream, NUMBERS[kind])[0]
    of, count = numbers(stream, "IQ")
    if of in NUMBERS:
        stream.seek(count * struct.calcsize(f"<{NUMBERS[of]}"), 1)
    else:
        for _ in range(count):
            _value(stream, of)
    return None


def refuse_gguf_unused(file: Path, model: Any) -> None:
    """Raises `InputError` where the file holds more than is in `model`, whose every parameter was filled from it, or scales
    rotary frequencies otherwise than the model does."""
    header = read_header(file)
    _refuse_other_rotary(file, header, model)
    every = {id(t): t for t in model.state_dict(keep_vars=True).values()}
    values = sum(t.numel() for t in every.values())
    layers = int(model.config.get_text_config().num_hidden_layers)
    ahead = header.facts.get(f"{header.facts.get('general.architecture')}.nextn_predict_layers", 0)
    aside = {_FACTORS, *(n for n in header.tensors if layers <= _layer(n) < layers + ahead)}  # heads for later tokens
    held = {n: math.prod(e.shape) for n, e in header.tensors.items() if n not in aside}
    if sum(held.values()) == values:  # each parameter is filled, so that what is over was not used
        return
    unknown = [n for n in held if _layer(n) >= layers] or _unknown(held, model)
    named = f", as {few(unknown)}" if unknown else ""
    raise InputError(
        f"{file} holds {sum(held.values()):,} values, and the {type(model).__name__} that transformers makes of it {values:,}: "
        f"some were passed over{named}. {_AS_ORIGINAL}"
    )


def _layer(name: str) -> int:
    """The number of the layer that a tensor is of; -1 for one of none."""
    parts = name.split(".")
    return int(parts[1]) if parts[0] == "blk" and len(parts) > 1 and parts[1].isdigit() else -1


def _unknown(names: dict[str, int], model: Any) -> list[str]:
    """Tensors that the format's own table has no name for in this model."""
    from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, get_tensor_name_map

    kind = model.config.model_type
    arch: MODEL_ARCH | None = next((a for a, n in MODEL_ARCH_NAMES.items() if n in (kind, kind.removesuffix("_text"))), None)
    if arch is None:
        return []
    table = get_tensor_name_map(arch, model.config.get_text_config().num_hidden_layers)
    leaves = {n.rpartition(".")[2] for n in model.state_dict()}
    used = {f"{found}.{n.rpartition('.')[2]}" for n in model.state_dict() if (found := table.get_name(n.rpartition(".")[0]))}
    return [n for n in names if n not in used and n.rpartition(".")[2] in leaves | {"weight", "bias"}]


def _refuse_other_rotary(file: Path, header: Header, model: Any) -> None:
    arch = header.facts.get("general.architecture", "")
    kind = header.facts.get(f"{arch}.rope.scaling.type", "none")
    factor = float(header.facts.get(f"{arch}.rope.scaling.factor", header.facts.get(f"{arch}.rope.scale_linear", 1.0)) or 1.0)
    entry = header.tensors.get(_FACTORS)
    factors = _floats(file, entry) if entry is not None else torch.ones(1)
    if bool((factors == 1.0).all()) and (kind == "none" or factor == 1.0):
        return
    theta = float(header.facts.get(f"{arch}.rope.freq_base", 10_000.0))
    frequencies = [b for n, b in model.named_buffers() if n.rpartition(".")[2] == "inv_freq"]
    scale = factors * (factor if kind == "linear" else 1.0)
    frequencies = [f for f in frequencies if len(scale) in (1, len(f))]
    wanted = [theta ** (-torch.arange(len(f)) / len(f)) / scale for f in frequencies]
    same = [torch.allclose(f.float().cpu(), w, rtol=1e-3) for f, w in zip(frequencies, wanted, strict=True)]
    if kind in ("none", "linear") and same and all(same):
        return
    how = f"by {_FACTORS}, up to {factors.max().item():g} times" if entry is not None else f"({kind}, factor {factor:g})"
    raise InputError(
        f"{file} scales its rotary frequencies {how}, and the {type(model).__name__} that transformers makes of it does not: it "
        f"would be another model. {_AS_ORIGINAL}"
    )


def _floats(file: Path, entry: Entry) -> Tensor:
    if entry.kind != _F32:
        raise InputError(f"{file}: {_FACTORS} is not of 32 bit floating point (GGML type {entry.kind}). {_AS_ORIGINAL}")
    return torch.from_numpy(np.fromfile(file, "<f4", math.prod(entry.shape), offset=entry.start))

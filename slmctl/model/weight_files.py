"""The files that hold a model's weights: which are read, and what they say they hold, without reading it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from slmctl.system.errors import InputError

POINTER = b"version https://git-lfs"
KINDS = {".safetensors": "model", ".bin": "pytorch_model"}
"""Ending to stem, in the order in which transformers looks for them."""
_LARGEST_HEADER = 100_000_000  # bytes, safetensors' own bound
_AGAIN = "Copy or download it again."


class Stored(NamedTuple):
    """A tensor as a file has it."""

    dtype: str
    """As safetensors says it: F32, BF16, I8, …"""
    shape: tuple[int, ...]
    file: Path

    @property
    def is_float(self) -> bool:
        return self.dtype in ("F64", "F32", "F16", "BF16")


def stored_weights(directory: Path) -> dict[str, Stored]:
    """Name to dtype and shape of all that transformers would load from a model directory.

    Raises `InputError` for a directory whose weights are another model's (an adapter), quantised, not whole, or not one
    set of files.
    """
    _refuse_adapters(directory)
    _refuse_quantised(directory)
    stored: dict[str, Stored] = {}
    for file in weight_files(directory):
        for name, one in contents(file).items():
            if name in stored:
                raise InputError(
                    f"{name} is in {stored[name].file.name} and in {file.name} of {directory}: the files are not of one model. "
                    "Save the model again, into an empty directory."
                )
            stored[name] = one
    return stored


def _refuse_adapters(directory: Path) -> None:
    if found := [f.name for f in sorted(directory.glob("adapter_*")) if f.suffix in (".json", ".safetensors", ".bin")]:
        raise InputError(
            f"{directory} holds an adapter ({', '.join(found)}), which is not a model by itself. Merge it into its base first "
            "(peft: `AutoPeftModelForCausalLM.from_pretrained(PATH).merge_and_unload().save_pretrained(NEW)`), or remove its "
            "files where it is merged."
        )


def _refuse_quantised(directory: Path) -> None:
    file = directory / "config.json"
    refuse_pointer(file)
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        configs = [config, *(v for v in config.values() if isinstance(v, dict))]
    except (ValueError, AttributeError) as e:
        raise InputError(f"{file} is not a JSON object ({e}). {_AGAIN}") from e
    for key in ("quantization_config", "compression_config"):
        if how := next((c[key] for c in configs if c.get(key)), None):
            method = how.get("quant_method", "an unnamed method") if isinstance(how, dict) else how
            raise InputError(
                f"{directory} is quantised ({key} of config.json: {method}), and quantised weights cannot be trained. Use the "
                "original model, or one that was dequantised (`model.dequantize()`, where its method has that, then "
                "`save_pretrained`)."
            )


def weight_files(directory: Path) -> list[Path]:
    """The files that transformers reads of a model directory; none where it has none that it knows.

    Raises `InputError` where they are not one whole set.
    """
    read: list[Path] = []
    for ending, stem in KINDS.items():
        whole, index = directory / f"{stem}{ending}", directory / f"{stem}{ending}.index.json"
        found = [whole] if whole.is_file() else _of_index(index) if index.is_file() else []
        shards = [f for f in sorted(directory.glob(f"{stem}-*-of-*{ending}")) if f not in found]
        if shards and not read:
            named = f"{index.name} does not name" if index.is_file() and not whole.is_file() else f"do not belong to {whole.name}"
            if not index.is_file() and not whole.is_file():
                named = f"no {index.name} names"
            raise InputError(
                f"{directory} holds shards that {named} ({few(f.name for f in shards)}): it is not clear which weights are the "
                "model's. Remove those that are not, or save the model again, into an empty directory."
            )
        read = read or found
    return read


def _of_index(index: Path) -> list[Path]:
    refuse_pointer(index)
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as e:
        raise InputError(f"{index} has no weight_map from names to files ({type(e).__name__}). {_AGAIN}") from e
    if absent := [n for n in names if not (index.parent / n).is_file()]:
        raise InputError(f"{index} names files that are not there: {few(absent)} of {len(names)}. Copy or download them as well.")
    return [index.parent / n for n in names]


def refuse_pointer(file: Path) -> None:
    """Raises `InputError` for what Git leaves in place of a large file that was not fetched, and for an empty file."""
    if not file.is_file():
        return
    with file.open("rb") as stream:
        start = stream.read(len(POINTER))
    if start == POINTER:
        raise InputError(
            f"{file} is a pointer of Git LFS, not the file itself. Fetch it: `git lfs install && git lfs pull` in its repository."
        )
    if not start:
        raise InputError(f"{file} is empty. {_AGAIN}")


def contents(file: Path) -> dict[str, Stored]:
    """What a weight file holds. Raises `InputError` for one that is cut short, or holds something else."""
    refuse_pointer(file)
    return _safetensors(file) if file.suffix == ".safetensors" else _pickled(file)


def _safetensors(file: Path) -> dict[str, Stored]:
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        head = stream.read(length) if length <= _LARGEST_HEADER else b""
    try:
        entries = json.loads(head)
        entries.pop("__metadata__", None)
        stored = {n: Stored(str(e["dtype"]), tuple(e["shape"]), file) for n, e in entries.items()}
        wanted = 8 + length + max((e["data_offsets"][1] for e in entries.values()), default=0)
    except (ValueError, KeyError, AttributeError, TypeError, IndexError) as e:
        cut = size - 8 < length <= _LARGEST_HEADER
        raise InputError(f"{file} {f'is cut short at {size:,} bytes' if cut else 'is no safetensors file'}. {_AGAIN}") from e
    if size != wanted:
        raise InputError(f"{file} has {size:,} bytes, and by its own header should have {wanted:,}. {_AGAIN}")
    return stored


_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
}


def _pickled(file: Path) -> dict[str, Stored]:
    try:
        held: Any = torch.load(file, map_location="meta", weights_only=True)
    except Exception as e:  # the library raises many kinds
        if "Unsupported global" in str(e):
            raise InputError(
                f"{file} holds Python objects, which could run anything, and not weights by name alone. Save the model with "
                "`save_pretrained`."
            ) from e
        raise InputError(f"{file} cannot be read ({str(e).strip().splitlines()[0]}). {_AGAIN}") from e
    other = [k for k, v in held.items() if not isinstance(v, torch.Tensor)] if isinstance(held, dict) else [type(held).__name__]
    if other:
        raise InputError(
            f"{file} is not a model's weights by name: it also holds {few(map(str, other))}. Save the model alone "
            "(`save_pretrained`)."
        )
    return {n: Stored(_NAMES.get(t.dtype, str(t.dtype)), tuple(t.shape), file) for n, t in held.items()}


def read_weight(name: str, file: Path) -> torch.Tensor:
    """One tensor of a weight file."""
    if file.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(file, "pt") as weights:
            return weights.get_tensor(name)  # type: ignore[no-any-return]
    weight: torch.Tensor = torch.load(file, map_location="cpu", weights_only=True)[name]
    return weight


def few(names: Iterable[str], shown: int = 3) -> str:
    """The first of some names, and how many there are besides."""
    every = list(names)
    rest = len(every) - shown
    return ", ".join(every[:shown]) + (f" and {rest} more" if rest > 0 else "")

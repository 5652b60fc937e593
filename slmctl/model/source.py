"""Where a model is, and what its files are by content; without loading it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from slmctl.system.errors import InputError
from slmctl.system.hashes import HashCache

WEIGHT_PATTERNS = ("*.safetensors", "*.bin", "*.gguf")


@dataclass(frozen=True)
class ModelSource:
    """Where a model is: a local directory or a Hub id, with a GGUF file's name where it has one."""

    path: str
    gguf_file: str | None = None
    revision: str | None = None
    attn_implementation: str = "sdpa"

    def options(self) -> dict[str, Any]:
        """Arguments of `from_pretrained` that say which files to load."""
        named = {"gguf_file": self.gguf_file, "revision": self.revision}
        return {k: v for k, v in named.items() if v}


def model_fingerprint(source: ModelSource, hashes: HashCache) -> dict[str, Any]:
    """Content hashes of a model's weight and configuration files."""
    root = Path(local_copy(source).path)
    if source.gguf_file:
        files = [root / source.gguf_file]
        if not files[0].is_file():
            raise InputError(f"{files[0]} does not exist. Correct model.gguf_file.")
    else:
        weights = next((found for p in WEIGHT_PATTERNS if (found := sorted(root.glob(p)))), [])
        if not weights:
            raise InputError(f"{root} holds no model weights ({', '.join(WEIGHT_PATTERNS)}).")
        files = [root / "config.json", *weights]
    return hashes.of(f for f in files if f.is_file())


def local_copy(source: ModelSource) -> ModelSource:
    """The same model as a local directory, fetched from the Hub where it is not one: what is fingerprinted is what is
    loaded. Raises `InputError` where it cannot be reached."""
    if Path(source.path).is_dir():
        return source
    import huggingface_hub

    try:
        patterns = ["*.json", "*.model", "*.txt", *([source.gguf_file] if source.gguf_file else ["*.safetensors"])]
        skipped = ["original/*", "consolidated*"]
        path = huggingface_hub.snapshot_download(
            source.path, revision=source.revision, allow_patterns=patterns, ignore_patterns=skipped
        )
        if not source.gguf_file and not any(Path(path).glob("*.safetensors")):
            path = huggingface_hub.snapshot_download(source.path, revision=source.revision, allow_patterns=["*.bin"])
    except Exception as e:  # the library raises many kinds
        reason = str(e).strip().split("\n")[0]
        raise InputError(f"{source.path!r} is neither a directory nor a reachable Hub model: {reason}") from e
    return replace(source, path=path, revision=None)

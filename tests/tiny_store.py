"""A store small enough to make in a second: a model folder with random weights, texts, and processes to make it with."""

from __future__ import annotations

import copy
import hashlib
import io
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
import yaml
from tiny_pipeline import WORDS, write_jsonl

from slmctl.cli.process import main
from slmctl.config.file import check
from slmctl.corpus.tokenizer import load_tokenizer
from slmctl.corpus.train_tokenizer import train_tokenizer
from slmctl.stages.prepare import prepare
from slmctl.stages.score import score
from slmctl.store.manifest import load_manifest
from slmctl.store.shard_format import shard_name
from slmctl.store.shard_writer import ShardWriter
from slmctl.system import console
from slmctl.workspace import locks
from slmctl.workspace.workers import Share
from slmctl.workspace.workspace import Workspace

__all__ = ["load_tokenizer", "train_tokenizer"]
torch.set_num_threads(1)  # processes are forked from this one, which a pool of threads would not survive


def texts(seed: int, n: int, words: int = 20) -> list[dict[str, Any]]:
    """Documents of different lengths."""
    rng = random.Random(seed)
    return [{"text": " ".join(rng.choices(WORDS, k=rng.randint(1, 2 * words))) + "."} for _ in range(n)]


def make_tokenizer(directory: Path, vocab_size: int = 300) -> Path:
    train_tokenizer((t["text"] for t in texts(0, 50)), vocab_size, directory)
    return directory


def make_model(directory: Path, vocab_size: int = 300, hidden: int = 16, layers: int = 1, seed: int = 0, **more: Any) -> Path:
    """Adds random weights to a folder that holds a tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from slmctl.model.loading import quiet_transformers

    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=256,
        **{"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None, **more},
    )
    with torch.random.fork_rng(), quiet_transformers():
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(directory)
    return directory


def store_settings(root: Path, documents: int = 80) -> dict[str, Any]:
    """Settings of a pipeline whose base and reference are one folder of random weights; its files are written to `root`."""
    make_model(make_tokenizer(root / "model"))
    write_jsonl(root / "curated.jsonl", texts(1, 20))
    write_jsonl(root / "corpus.jsonl", texts(2, documents))
    write_jsonl(root / "target.jsonl", texts(3, 8))
    train = {"steps": 2, "batch_tokens": 256, "micro_batch": 8, "precision": "float32"}
    return {
        "name": "tiny",
        "output_dir": str(root / "run"),
        "device": "cpu",
        "model": {"path": str(root / "model")},
        "data": {
            "seq_len": 32,
            "shard_bytes": 1024,
            "curated": {"path": str(root / "curated.jsonl")},
            "corpus": {"path": str(root / "corpus.jsonl")},
            "heldout": {"target": {"path": str(root / "target.jsonl")}},
        },
        "reference": train,
        "score": {"precision": "float32", "references": {"curated": str(root / "model")}},
        "pretrain": {**train, "selection": {"group_rows": 4}, "arms": {"slm": {}}},
        "tracking": {"tensorboard": False},
    }


def open_workspace(settings: dict[str, Any]) -> Workspace:
    """As a process of its own would: without the locks that this one held for an earlier command."""
    release_locks()
    return Workspace(check(settings, "tiny")).open()


def release_locks() -> None:
    locks._held.clear()


def shards(folder: Any) -> dict[str, str]:
    """Name to hash of the shards that are there."""
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(Path(str(folder)).glob("shard-*.parquet"))}


def content(store: Path) -> dict[str, Any]:
    """All shards of a store's sets by path, and what their manifests say but for library versions."""
    found: dict[str, Any] = {}
    for manifest in sorted(p for kind in ("tokens", "scores") for p in (store / kind).rglob("manifest.json")):
        folder = manifest.parent
        kind = folder.relative_to(store).parts[0]
        found[str(folder.relative_to(store))] = (load_manifest(folder, kind).content_hash, shards(folder))
    return found


def temporaries(root: Path) -> list[Path]:
    return sorted(p for p in root.rglob("*") if p.name.startswith(".tmp-"))


class Child:
    """A forked process that runs a function or a slmctl command; its output goes to a file."""

    def __init__(self, work: Callable[[], Any] | list[str], before: Callable[[], None] = lambda: None) -> None:
        self.file = tempfile.TemporaryFile()
        file = self.file.fileno()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            code = 70
            try:
                os.dup2(file, 1)
                os.dup2(file, 2)
                stream = io.TextIOWrapper(os.fdopen(1, "wb", 0, closefd=False), write_through=True)
                console.err.file = console.out.file = stream
                locks._held.clear()
                before()
                with redirect_stdout(stream), redirect_stderr(stream):
                    try:
                        main(work) if isinstance(work, list) else work()
                        code = 0
                    except SystemExit as e:
                        code = e.code if isinstance(e.code, int) else 0
                    except BaseException:
                        traceback.print_exc()
            finally:
                os._exit(code)
        self.code: int | None = None

    def wait_stopped(self) -> None:
        """Until it has stopped itself."""
        _, status = os.waitpid(self.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status), f"it ended instead ({status}):\n{self.text()}"

    def wait(self) -> int:
        """Its exit code; minus the signal that ended it."""
        if self.code is None:
            _, status = os.waitpid(self.pid, 0)
            self.code = os.waitstatus_to_exitcode(status)
        return self.code

    def send(self, signum: int) -> None:
        os.kill(self.pid, signum)

    def kill(self) -> None:
        if self.code is None:
            self.send(signal.SIGKILL)
            self.wait()

    def text(self) -> str:
        fd = self.file.fileno()
        return os.pread(fd, os.fstat(fd).st_size, 0).decode("utf-8")

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self.file.close()


def stop_at_write(number: int = 1) -> None:
    """Has this process stop itself (SIGSTOP) right after its n-th row group was written."""
    write, seen = ShardWriter.write, 0

    def stopping(self: ShardWriter, **columns: Any) -> None:
        nonlocal seen
        write(self, **columns)
        seen += 1
        if seen == number:
            os.kill(os.getpid(), signal.SIGSTOP)

    ShardWriter.write = stopping  # type: ignore[method-assign]


SETS = ("tokens/curated", "tokens/corpus", "tokens/heldout/target")
CORPUS, SCORES = "tokens/corpus", "scores/curated"


class Store:
    """A pipeline whose output_dir is `store`, beside texts and a model that many tests share."""

    def __init__(self, settings: dict[str, Any], root: Path, alone: Path) -> None:
        self.settings, self.root, self.alone = copy.deepcopy(settings), root, alone
        self.store = root / "run"
        self.settings["output_dir"] = str(self.store)
        self.wanted = content(alone)
        self.write()

    def write(self) -> Path:
        self.yaml = self.root / "tiny.yaml"
        self.yaml.write_text(yaml.safe_dump(self.settings, sort_keys=False), encoding="utf-8")
        return self.yaml

    def copy(self, scored: bool = True) -> Store:
        """Starts from the store that one worker made."""
        shutil.copytree(self.alone, self.store)
        if not scored:
            shutil.rmtree(self.store / "scores")
        return self

    def open(self) -> Workspace:
        return open_workspace(self.settings)

    def command(self, *words: str) -> list[str]:
        """A command line; the configuration goes after the command's name."""
        return [words[0], str(self.yaml), *words[1:]]

    def run(self, *words: str) -> tuple[int, str]:
        """Exit code and output of a slmctl command, run by another process."""
        with Child(self.command(*words)) as child:
            return child.wait(), child.text()

    def path(self, name: str, shard: int | None = None) -> Path:
        return self.store / name / shard_name(shard) if shard is not None else self.store / name

    def stamps(self) -> dict[str, int]:
        """When each file of the sets was written."""
        files = [p for kind in ("tokens", "scores") for p in (self.store / kind).rglob("*") if p.is_file()]
        return {str(p.relative_to(self.store)): p.stat().st_mtime_ns for p in files}


STAGES: dict[str, Callable[..., None]] = {"tokens": prepare, "scores": lambda w, share=Share(): score(w, None, share)}  # noqa: B008


def of(found: dict[str, Any], kind: str) -> dict[str, Any]:
    return {k: v for k, v in found.items() if k.startswith(kind)}


def until(true: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def orphan(store: Store, command: str = "prepare") -> Path:
    """The file that a worker left which was killed (-9) while it wrote a shard of the corpus."""
    with Child(store.command(command), lambda: stop_at_write(5)) as killed:
        killed.wait_stopped()
        killed.kill()
    (left,) = temporaries(store.store)
    return left


def with_reference(store: Store, model: Path, name: str = "curated") -> Store:
    store.settings["score"]["references"][name] = str(model)
    store.write()
    return store


def table(said: str) -> dict[str, list[str]]:
    """Rows of the status table by set."""
    rows = [line.split() for line in said.splitlines() if re.match(r"\S+ +\d+/\d+ ", line)]
    return {r[0]: r[1:] for r in rows}

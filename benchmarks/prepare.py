"""`prepare` beside the bare tokenizer on the same text and cores, and its peak resident memory by size of the corpus.

python benchmarks/prepare.py --gigabytes 1 --rounds 3 --output benchmarks/results/prepare-1gb.json
python benchmarks/prepare.py --gigabytes 10 --words --no-bare --output benchmarks/results/prepare-10gb-words.json

`--words` takes a tokenizer of whole words, ten times as fast, so that memory can be watched over many gigabytes in minutes.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil

PIPELINE = """
name: bench
output_dir: {root}/run
model: {{path: {root}/model, tokenizer: {root}/tokenizer}}
data:
  seq_len: 1024
  curated: {{path: {root}/small.jsonl}}
  corpus: {{path: {root}/corpus.jsonl}}
  heldout: {{target: {{path: {root}/small.jsonl}}}}
pretrain: {{steps: 1, arms: {{clm: {{selection: {{criterion: all}}}}}}}}
"""
BLOCK = 2**27
"""Bytes of distinct text; a larger corpus repeats them."""


def write_texts(root: Path, size: int) -> list[str]:
    """A corpus of `size` bytes: documents of 50 to 2,000 words from a Zipf-like vocabulary of made-up words."""
    rng = random.Random(0)
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    words = ["".join(rng.choices(letters, k=rng.randint(1, 10))) for _ in range(50_000)]
    pool = rng.choices(words, [1 / (i + 2) for i in range(len(words))], k=2_000_000)
    block, held = [], 0
    while held < min(size, BLOCK):
        at = rng.randrange(len(pool) - 2000)
        block.append(json.dumps({"text": " ".join(pool[at : at + rng.randint(50, 2000)])}) + "\n")
        held += len(block[-1])
    text = "".join(block)
    with open(root / "corpus.jsonl", "w", encoding="utf-8") as corpus:
        for _ in range(max(1, round(size / len(text)))):
            corpus.write(text)
    (root / "small.jsonl").write_text("".join(block[:200]), encoding="utf-8")
    return words


def copy_texts(root: Path, files: list[Path], size: int) -> None:
    """A corpus of about `size` bytes from JSON Lines files (also .gz) with a field `text`, repeated as often as it takes."""
    text = "".join((gzip.open if f.suffix == ".gz" else open)(f, "rt", encoding="utf-8").read() for f in files)
    lines = text.splitlines(keepends=True)
    random.Random(0).shuffle(lines)
    with open(root / "corpus.jsonl", "w", encoding="utf-8") as corpus:
        for _ in range(max(1, round(size / len(text)))):
            corpus.writelines(lines)
    (root / "small.jsonl").write_text("".join(lines[:20]), encoding="utf-8")


def make_model(root: Path, words: list[str] | None) -> None:
    """A directory with a tokenizer (byte-level BPE of 8,192 entries, or one of whole words) and a model's configuration."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, PreTrainedTokenizerFast

    from slmctl.corpus.train_tokenizer import train_tokenizer

    if words is None:
        texts = [json.loads(line)["text"] for line in (root / "small.jsonl").read_text().splitlines()]
        train_tokenizer(texts, 8192, root / "tokenizer")
    else:
        vocabulary = {w: i for i, w in enumerate(["<|endoftext|>", *dict.fromkeys(words)])}
        backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<|endoftext|>"))
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>").save_pretrained(root / "tokenizer")
    LlamaConfig(vocab_size=65_000, hidden_size=8, num_attention_heads=2, num_hidden_layers=1).save_pretrained(root / "model")


class Peak:
    """The largest sum of resident memory of a process and its children, looked at twice a second."""

    def __init__(self, pid: int) -> None:
        self.bytes, self.processes, self._stop = 0, 0, threading.Event()
        self._process = psutil.Process(pid)
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stop.wait(0.5):
            try:
                tree = [self._process, *self._process.children(recursive=True)]
                self.bytes = max(self.bytes, sum(p.memory_info().rss for p in tree))
                self.processes = max(self.processes, len(tree))
            except psutil.NoSuchProcess:
                continue

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


BARE = """
import json, sys, time
from slmctl.corpus.tokenizer import load_tokenizer
backend = load_tokenizer(sys.argv[1]).backend
texts, size = [], 0
with open(sys.argv[2], encoding="utf-8") as f:
    for line in f:
        texts.append(json.loads(line)["text"])
        size += len(texts[-1].encode())
        if size >= int(sys.argv[3]):
            break
tokens, started = 0, time.perf_counter()
for at in range(0, len(texts), 512):
    tokens += sum(len(e) for e in backend.encode_batch_fast(texts[at : at + 512], add_special_tokens=False))
print(json.dumps({"bytes": size, "tokens": tokens, "seconds": time.perf_counter() - started}))
"""


def bare_tokenizer(root: Path, sample_bytes: int) -> dict[str, Any]:
    """The tokenizer's batch encoder alone, with all its threads, on text that is in memory already."""
    command = [sys.executable, "-c", BARE, str(root / "tokenizer"), str(root / "corpus.jsonl"), str(sample_bytes)]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=1, help="of the bare tokenizer and prepare, in turns")
    parser.add_argument("--words", action="store_true", help="a tokenizer of whole words, for watching memory")
    parser.add_argument("--bare", action=argparse.BooleanOptionalAction, default=True, help="time the bare tokenizer beside it")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/prepare.json"))
    parser.add_argument("--text", type=Path, nargs="+", help="JSON Lines files with a field `text`, in place of made-up text")
    parser.add_argument("--tokenizer", help="directory of the tokenizer for --text")
    parser.add_argument("--gguf-file", help="name of the GGUF file in it that holds the tokenizer")
    args = parser.parse_args()
    from transformers import LlamaConfig

    from slmctl.corpus.tokenizer import load_tokenizer

    size = int(args.gigabytes * 1e9)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        if args.text:
            copy_texts(root, args.text, size)
            load_tokenizer(args.tokenizer, args.gguf_file).hf.save_pretrained(root / "tokenizer")
            LlamaConfig(vocab_size=2**16, hidden_size=8, num_attention_heads=2, num_hidden_layers=1).save_pretrained(
                root / "model"
            )
        else:
            words = write_texts(root, size)
            make_model(root, words if args.words else None)
        (root / "bench.yaml").write_text(PIPELINE.format(root=root))
        bare, seconds, peak_bytes, processes = [], [], 0, 0
        for _ in range(args.rounds):  # in turns, since the machine's speed wanders
            bare += [bare_tokenizer(root, min(size, BLOCK))] if args.bare else []
            shutil.rmtree(root / "run", ignore_errors=True)
            started = time.perf_counter()
            process = subprocess.Popen([sys.executable, "-m", "slmctl", "prepare", str(root / "bench.yaml")])
            peak = Peak(process.pid)
            code = process.wait()
            seconds.append(time.perf_counter() - started)
            peak.stop()
            if code:
                raise SystemExit(code)
            peak_bytes, processes = max(peak_bytes, peak.bytes), max(processes, peak.processes)
        bare += [bare_tokenizer(root, min(size, BLOCK))] if args.bare else []
        manifest = json.loads((root / "run/tokens/corpus/manifest.json").read_text())
    text_bytes, tokens = manifest["counts"]["text_bytes"], manifest["counts"]["tokens"]
    mean_s = sum(seconds) / len(seconds)
    figures: dict[str, Any] = {
        "command": " ".join(["python", *sys.argv]),
        "cores": len(os.sched_getaffinity(0)),
        "text_bytes": text_bytes,
        "tokens": tokens,
        "seconds": [round(s, 1) for s in seconds],
        "tokens_per_s": round(tokens / mean_s),
        "text_mb_per_s": round(text_bytes / mean_s / 1e6, 2),
        "peak_resident_bytes": peak_bytes,
        "processes": processes,
        "shard_bytes_per_token": round(sum(s["bytes"] for s in manifest["shards"]) / tokens, 3),
    }
    if bare:
        rate = sum(b["bytes"] for b in bare) / sum(b["seconds"] for b in bare)
        figures["bare_tokenizer"] = bare
        figures["bare_text_mb_per_s"] = round(rate / 1e6, 2)
        figures["ratio_to_bare_tokenizer"] = round(text_bytes / mean_s / rate, 3)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()

"""Peak resident memory and speed of `prepare` on a generated corpus, beside the bare tokenizer on a sample of the same text.

python benchmarks/prepare.py --gigabytes 2 --output benchmarks/results/prepare.json
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PIPELINE = """
name: bench
output_dir: {root}/run
model: {{scratch: {{vocab_size: 8192, tokenizer_sample_mb: 8}}}}
data:
  seq_len: 1024
  curated: {{path: {root}/small.jsonl}}
  corpus: {{path: {root}/corpus.jsonl}}
  heldout: {{target: {{path: {root}/small.jsonl}}}}
pretrain: {{steps: 1, arms: {{clm: {{selection: {{criterion: all}}}}}}}}
"""


def write_texts(root: Path, size: int) -> None:
    """A corpus of `size` bytes: documents of 50 to 2,000 words from a Zipf-like vocabulary of made-up words."""
    rng = random.Random(0)
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    words = ["".join(rng.choices(letters, k=rng.randint(1, 10))) for _ in range(50_000)]
    weights = [1 / (i + 2) for i in range(len(words))]
    pool = rng.choices(words, weights, k=2_000_000)
    written = 0
    with open(root / "corpus.jsonl", "w", encoding="utf-8") as corpus, open(root / "small.jsonl", "w", encoding="utf-8") as small:
        while written < size:
            at = rng.randrange(len(pool) - 2000)
            line = json.dumps({"text": " ".join(pool[at : at + rng.randint(50, 2000)])}) + "\n"
            corpus.write(line)
            if written < 2**20:
                small.write(line)
            written += len(line)


def bare_tokenizer(root: Path, sample_bytes: int) -> float:
    """Bytes of text a second through the tokenizer's batch encoder alone."""
    from slmctl.corpus.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(str(root / "run" / "tokenizer"))
    texts, size = [], 0
    with open(root / "corpus.jsonl", encoding="utf-8") as f:
        for line in f:
            texts.append(json.loads(line)["text"])
            size += len(texts[-1].encode())
            if size >= sample_bytes:
                break
    started = time.perf_counter()
    for at in range(0, len(texts), 512):
        tokenizer.backend.encode_batch_fast(texts[at : at + 512], add_special_tokens=False)
    return size / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/prepare.json"))
    args = parser.parse_args()
    size = int(args.gigabytes * 1e9)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_texts(root, size)
        (root / "bench.yaml").write_text(PIPELINE.format(root=root))
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "slmctl", "prepare", str(root / "bench.yaml")], check=True)
        seconds = time.perf_counter() - started
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        manifest = json.loads((root / "run/tokens/corpus/manifest.json").read_text())
        disk = sum(s["bytes"] for s in manifest["shards"])
        text_bytes, tokens = manifest["counts"]["text_bytes"], manifest["counts"]["tokens"]
        bare = bare_tokenizer(root, min(size, 100_000_000))
    figures = {
        "command": " ".join(["python", *sys.argv]),
        "text_bytes": text_bytes,
        "tokens": tokens,
        "seconds": round(seconds, 1),
        "peak_resident_bytes": peak,
        "text_mb_per_s": round(text_bytes / seconds / 1e6, 2),
        "bare_tokenizer_mb_per_s": round(bare / 1e6, 2),
        "ratio_to_bare_tokenizer": round(text_bytes / seconds / bare, 3),
        "shard_bytes_per_token": round(disk / tokens, 3),
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()

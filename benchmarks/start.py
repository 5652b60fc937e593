"""Start-up, `prepare` and the start of training beside those of another checkout of slmctl, in turns.

git worktree add /tmp/before COMMIT
python benchmarks/start.py --against /tmp/before --rounds 7     # results/start.json

Both run with this environment's Python and libraries. Each command is a whole process on fresh folders; figures are the
seconds of CPU and of wall time, and their ratio is taken pair by pair (its median).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from prepare import copy_texts, make_model, write_texts

PIPELINE = """
name: bench
output_dir: {root}/run
device: cpu
model: {{path: {root}/model}}
data:
  seq_len: 512
  curated: {{path: {root}/small.jsonl}}
  corpus: {{path: {root}/{corpus}.jsonl}}
  heldout: {{target: {{path: {root}/held.jsonl}}}}
reference: {{steps: 1, batch_tokens: 4096, precision: float32, compile: false}}
pretrain:
  {{steps: 1, batch_tokens: 4096, precision: float32, compile: false, arms: {{clm: {{selection: {{criterion: all}}}}}}}}
tracking: {{tensorboard: false}}
"""
COMMANDS = {
    "--help": ["--help"],
    "validate": ["validate", "small.yaml"],
    "prepare, 1 MB": ["prepare", "small.yaml"],
    "prepare": ["prepare", "large.yaml"],
    "train-ref, one step": ["train-ref", "small.yaml"],
}


def write_pipeline(root: Path, megabytes: int, text: list[Path]) -> None:
    """Texts, a tiny Llama with its tokenizer, and two configurations: with a small and with a large corpus."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    if text:
        copy_texts(root, text, megabytes * 10**6)
    else:
        write_texts(root, megabytes * 10**6)
    make_model(root, None)
    shutil.rmtree(root / "model")
    tokenizer = AutoTokenizer.from_pretrained(root / "tokenizer")
    shape = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape)).save_pretrained(root / "model")
    for file in (root / "tokenizer").iterdir():
        shutil.copy(file, root / "model")
    with open(root / "corpus.jsonl", encoding="utf-8") as corpus:
        lines = [next(corpus) for _ in range(250)]
    (root / "held.jsonl").write_text("".join(lines[:20]), encoding="utf-8")
    (root / "few.jsonl").write_text("".join(lines[20:]), encoding="utf-8")
    (root / "small.yaml").write_text(PIPELINE.format(root=root, corpus="few"), encoding="utf-8")
    (root / "large.yaml").write_text(PIPELINE.format(root=root, corpus="corpus"), encoding="utf-8")


def timed(root: Path, checkout: Path, arguments: list[str]) -> tuple[float, float]:
    """Seconds of wall time and of CPU of one command, on folders as `prepare` leaves them where it trains."""
    shutil.rmtree(root / "run", ignore_errors=True)
    environment = {**os.environ, "PYTHONPATH": str(checkout), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "slmctl"]

    def run(*given: str) -> None:
        done = subprocess.run([*command, *given], cwd=root, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{checkout}: {' '.join(given)} ended with {done.returncode}:\n{done.stderr}")

    if arguments[0] == "train-ref":
        run("prepare", *arguments[1:])
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    run(*arguments)
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, required=True, help="the other checkout")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--megabytes", type=int, default=20, help="of the larger corpus")
    parser.add_argument("--text", type=Path, nargs="+", help="JSON Lines files with a field `text`, in place of made-up text")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/start.json"))
    args = parser.parse_args()
    here = Path(__file__).resolve().parent.parent
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_pipeline(root, args.megabytes, args.text or [])
        for label, arguments in COMMANDS.items():
            pairs = []
            for number in range(args.rounds + 1):
                both = {"before": args.against.resolve(), "now": here}
                order = list(both) if number % 2 else list(both)[::-1]
                pair = {which: timed(root, both[which], arguments) for which in order}
                pairs += [pair] if number else []  # the first warms the disk
            figures[label] = {
                kind: {
                    "now / before": round(statistics.median(p["now"][i] / p["before"][i] for p in pairs), 3),
                    **{which: [round(p[which][i], 2) for p in pairs] for which in ("before", "now")},
                }
                for i, kind in enumerate(("wall_s", "cpu_s"))
            }
            print(label, {k: v["now / before"] for k, v in figures[label].items()}, flush=True)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=args.against, capture_output=True, text=True).stdout
    command = "python benchmarks/start.py --against CHECKOUT" + f" --rounds {args.rounds} --megabytes {args.megabytes}"
    command += " --text TEXTS" if args.text else ""
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps({"command": command, "before": commit.strip(), **figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()

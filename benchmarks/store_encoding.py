"""The store of two checkouts side by side: bytes a token, and tokens a second written, read, joined and delivered.

    git worktree add /tmp/before 68ff586
    python benchmarks/store_encoding.py --against /tmp/before --text peps.jsonl.gz gsm8k_train.jsonl.gz openstax.jsonl.gz

Both write the same values and read them back in processes of their own that take turns, round by round, so that a slow moment
of the machine falls on both. A ratio is this checkout's speed over the other's: of the medians, of the best rounds, the median
of the rounds' own ratios, and of the best rounds by processor time, which other programs disturb less. Made-up ids and losses
are those of `store.py`; `--text` adds real texts (JSON Lines, whose texts are all string values of a record), in a byte-level
BPE of each of `--vocabularies` that is trained on them.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import store

HERE = Path(__file__).resolve().parents[1]
COLUMNS = {"ids": "tokens/*:input_id", "documents": "tokens/*:document", "losses": "scores/*:ref_loss"}


# --- values ---


def texts_of(file: Path, limit: int) -> list[str]:
    """The texts of a file of JSON Lines, up to so many characters in all, each cut at 200,000."""
    found, n = [], 0
    opened = gzip.open(file, "rt", encoding="utf-8") if file.suffix == ".gz" else open(file, encoding="utf-8")
    with opened as lines:
        for line in lines:
            text = "\n".join(v for v in json.loads(line).values() if isinstance(v, str))[:200_000]
            found.append(text)
            n += len(text)
            if n > limit:
                break
    return found


def ids_of_texts(files: list[Path], vocabulary: int, tokens: int) -> dict[str, np.ndarray]:
    """By file: the ids of its texts, end to end, [tokens] of uint16; its first ones again where it has fewer."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    texts = {f.name.split(".")[0]: texts_of(f, 4_000_000) for f in files}
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=["<eos>"], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator((t for many in texts.values() for t in many), trainer)
    found = {}
    for name, many in texts.items():
        ids: list[int] = []
        for text in many:
            ids += [*tokenizer.encode(text).ids, 0]
            if len(ids) >= tokens:
                break
        found[name] = np.resize(np.array(ids, np.uint16), tokens)
    return found


def values_for(args: argparse.Namespace) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """By name: ids, documents and losses, each [rows, T]. The first two are also timed."""
    per_group = store.GROUP_ROWS * store.SEQ_LEN
    rows = args.million_tokens * 2**20 // per_group * store.GROUP_ROWS
    ids, document, losses = store.make_values(rows, args.losses)
    found = {"made-up": (ids, document, losses)}
    few = 4 * store.GROUP_ROWS
    for vocabulary in args.vocabularies if args.text else ():
        by_text = ids_of_texts(args.text, vocabulary, few * store.SEQ_LEN)
        mixed = np.concatenate([i.reshape(-1, store.GROUP_ROWS, store.SEQ_LEN) for i in by_text.values()])
        if vocabulary == max(args.vocabularies):
            mixed = np.resize(mixed, (rows // store.GROUP_ROWS, *mixed.shape[1:]))
            found = {"made-up": found["made-up"], "text": (mixed.reshape(rows, -1), document, losses), **found}
        for name, text_ids in by_text.items():
            found[f"{name}, {vocabulary}"] = (text_ids.reshape(few, -1), document[:few], losses[:few])
    return found


# --- one checkout, in a process of its own ---


def worker() -> None:
    """Does what each line of its input asks for, and answers in a line."""
    from slmctl.store.reader import RowReader, ScoreSet, TokenSet

    def read(root: Path, joined: bool, documents: bool) -> Callable[[], int]:
        tokens = TokenSet(root / "slmctl/tokens")
        scores = ScoreSet(root / "slmctl/scores", tokens)
        for opened in (tokens, scores):
            for i in range(len(opened.manifest.shards)):
                opened.file(i)  # which `store.py` times in none of its rounds but the first

        def work() -> int:
            reader = RowReader(tokens, scores if joined else None, cache_groups=2, documents=documents)
            return sum(reader.group(g).ids_BT.size for g in range(len(tokens.place)))

        return work

    def deliver(root: Path, cores: int) -> Callable[[], int]:
        rows = TokenSet(root / "slmctl/tokens").rows
        batches = store.arm_slmctl(root, rows, cores)
        return lambda: sum(ids.numel() for ids, _ in batches(np.arange(rows)))

    def write(root: Path, dtype: str) -> Callable[[], int]:
        ids, document, losses = (np.load(root / f"../{n}.npy", mmap_mode="r") for n in ("ids", "document", "losses"))
        shutil.rmtree(root / "slmctl", ignore_errors=True)

        def work() -> int:
            store.write_slmctl(root / "slmctl", ids, document, losses, dtype)
            return int(ids.size)

        return work

    asks: dict[str, Callable[..., Callable[[], int]]] = {"read": read, "deliver": deliver, "write": write}
    for line in sys.stdin:
        asked, cores, root, *rest = json.loads(line)
        os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(os.getppid()))[:cores]))
        work = asks[asked](Path(root), *rest)
        started, worked = time.perf_counter(), time.process_time()
        tokens = work()
        print(json.dumps([tokens, time.perf_counter() - started, time.process_time() - worked]), flush=True)


class Checkout:
    """A worker whose `slmctl` is that of a checkout."""

    def __init__(self, path: Path) -> None:
        environment = {**os.environ, "PYTHONPATH": str(path), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, __file__, "--worker"]
        self.process = subprocess.Popen(command, stdin=-1, stdout=-1, text=True, env=environment, cwd=path)
        where = [sys.executable, "-c", "import slmctl; print(slmctl.__file__)"]
        found = subprocess.run(where, check=True, capture_output=True, text=True, env=environment, cwd=path).stdout
        assert Path(found.strip()).resolve().is_relative_to(path.resolve()), f"{path} holds no slmctl: found {found}"

    def __call__(self, *asked: Any) -> tuple[float, float]:
        """Million tokens a second, and a second of processor time."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        tokens, seconds, worked = json.loads(self.process.stdout.readline())
        return tokens / seconds / 1e6, tokens / worked / 1e6


def bytes_a_token(root: Path) -> dict[str, float]:
    """Of each column's chunks, and of whole files."""
    import pyarrow.parquet as pq

    found: dict[str, float] = {}
    for label, place in COLUMNS.items():
        folder, column = place.split(":")
        total = values = 0
        for file in (root / "slmctl").glob(f"{folder}.parquet"):
            metadata = pq.read_metadata(file)
            at = metadata.schema.names.index(column)
            total += sum(metadata.row_group(g).column(at).total_compressed_size for g in range(metadata.num_row_groups))
            values += metadata.num_rows
        found[label] = round(total / values, 4)
    found["ids and losses"] = round(found["ids"] + found["losses"], 4)
    found["files"] = round(store.size_of(root / "slmctl") / values, 4)
    return found


TIMED: dict[str, list[Any]] = {
    "ids, verified": ["read", 1, False, False],
    "ids and losses, verified and joined": ["read", 1, True, False],
    "the same, with documents": ["read", 1, True, True],
    "delivered as batches, one core": ["deliver", 1, 1],
    "delivered as batches, two cores": ["deliver", 2, 2],
}


def compare(both: dict[str, Checkout], roots: dict[str, Path], rounds: int) -> dict[str, Any]:
    """Speeds of both, in turns; who is first changes with each round."""
    found: dict[str, Any] = {}
    for label, (what, cores, *rest) in TIMED.items():
        taken: dict[str, list[float]] = {n: [] for n in both}
        by_processor: dict[str, list[float]] = {n: [] for n in both}
        for i in range(-1, rounds):
            for name in sorted(both, reverse=bool(i % 2)):
                speed, worked = both[name](what, cores, str(roots[name]), *rest)
                if i >= 0:  # the first is to warm up
                    taken[name].append(round(speed, 2))
                    by_processor[name].append(round(worked, 2))
        new, old = taken["this"], taken["other"]
        ratios = {
            "of the medians": statistics.median(new) / statistics.median(old),
            "of the best": max(new) / max(old),
            "median of the rounds'": statistics.median(n / o for n, o in zip(new, old, strict=True)),
            "of the best by processor time": max(by_processor["this"]) / max(by_processor["other"]),
        }
        found[label] = {
            "this / other": {k: round(r, 3) for k, r in ratios.items()},
            "million_tokens_per_s": taken,
            "million_tokens_per_s_of_processor_time": by_processor,
        }
        print(" ", label, found[label]["this / other"], f"{statistics.median(new):.0f} M tokens/s", flush=True)
    return found


def command_of(args: argparse.Namespace) -> str:
    """The command, without the folders of the machine that it ran on, and with the other checkout's commit."""
    git = subprocess.run(["git", "-C", args.against, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    told = {
        "--against": git.stdout.strip() or args.against.name,
        "--million-tokens": args.million_tokens,
        "--rounds": args.rounds,
    }
    told |= {"--losses": Path(args.losses).name} if args.losses else {}
    told |= {"--text": " ".join(f.name for f in args.text)} if args.text else {}
    return " ".join(["python benchmarks/store_encoding.py", *(f"{k} {v}" for k, v in told.items())])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, help="the other checkout")
    parser.add_argument("--text", type=Path, nargs="*", default=[])
    parser.add_argument("--vocabularies", type=int, nargs="*", default=[4096, 32000, 49152])
    parser.add_argument("--losses", help="Parquet files with a column ref_loss: real losses in place of made-up ones")
    parser.add_argument("--million-tokens", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--output", type=Path, default=HERE / "benchmarks/results/store-encoding.json")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return worker()
    both = {"this": Checkout(HERE), "other": Checkout(args.against.resolve())}
    figures: dict[str, Any] = {"command": command_of(args), "bytes_per_token": {}, "written": {}, "read": {}}
    with tempfile.TemporaryDirectory(prefix="store-encoding-") as folder:
        for label, values in values_for(args).items():
            timed = label in ("made-up", "text")
            print(label, flush=True)
            for name, array in zip(("ids", "document", "losses"), values, strict=True):
                np.save(f"{folder}/{name}.npy", array)
            roots = {n: Path(folder) / n for n in both}
            for dtype in ("compact", "float16"):  # the last is the one that is read
                sizes = {}
                for name, root in roots.items():
                    root.mkdir(exist_ok=True)
                    speed, _ = both[name]("write", 1, str(root), dtype)
                    sizes[name] = bytes_a_token(root)
                    if timed and dtype == "float16":
                        figures["written"].setdefault(label, {})[name] = round(speed, 2)
                ratio = {k: round(v / sizes["other"][k], 3) for k, v in sizes["this"].items()}
                figures["bytes_per_token"].setdefault(label, {})[dtype] = {**sizes, "this / other": ratio}
                print(" ", dtype, "bytes, this / other:", ratio, flush=True)
            if timed:
                figures["read"][label] = compare(both, roots, args.rounds)
    args.output.write_text(json.dumps(figures, indent=1) + "\n")
    print(figures["written"])
    for checkout in both.values():
        checkout.process.kill()
    return None


if __name__ == "__main__":
    main()

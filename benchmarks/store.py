"""The store beside the alternatives, in one run: bytes a token, and tokens a second written, read, verified, joined and
delivered as torch batches, on one core and on two.

python benchmarks/store.py --output benchmarks/results/store.json
python benchmarks/store.py --losses 'runs/math-scratch/scores/curated/*.parquet'     # on real losses

Arms: `numpy.memmap` (no compression, no checks: the limit), slmctl, Hugging Face `datasets` over the very same Parquet, and
mosaicml `streaming` (in a folder that --streaming names: `pip install --no-deps --target FOLDER mosaicml-streaming zstd Brotli
python-snappy cramjam`; left out where it is absent). Every arm gives the same rows, in the same shuffled order, as torch
batches of ids and losses, and is checked to do so.
"""

from __future__ import annotations

import argparse
import glob
import importlib.machinery
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

SEQ_LEN, GROUP_ROWS, BATCH_ROWS = 2048, 128, 64
ROUNDS = 5


def make_values(rows: int, losses: str | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """ids [rows, T] uint16 of Zipf-like frequencies, documents of a few hundred tokens, losses float16 (real ones, repeated
    as often as needed, where files of them are named)."""
    rng = np.random.default_rng(0)
    n = rows * SEQ_LEN
    ids = np.minimum(rng.zipf(1.2, n) - 1, 49_151).astype(np.uint16)
    document = np.cumsum(rng.random(n) < 1 / 600).astype(np.int64)
    if losses:
        real = np.concatenate([pq.read_table(f, columns=["ref_loss"]).column(0).to_numpy() for f in sorted(glob.glob(losses))])
        values = np.resize(real, n)
    else:
        values = (rng.gamma(0.55, 3.6, n) + rng.exponential(0.02, n)).astype(np.float16)
        values[::SEQ_LEN] = -1.0
    return ids.reshape(rows, -1), document.reshape(rows, -1), values.reshape(rows, -1)


# --- writing ---


def write_slmctl(root: Path, ids: np.ndarray, document: np.ndarray, losses: np.ndarray, dtype: str) -> None:
    from slmctl.selection.storage_precision import stored
    from slmctl.store.manifest import Manifest, Shard
    from slmctl.store.shard_format import shard_name
    from slmctl.store.shard_writer import ShardWriter
    from slmctl.system.storage import Folder

    losses = np.where(losses < 0, np.float32(-1), stored(losses.astype(np.float32), dtype))
    per_shard, made = GROUP_ROWS * 16, {}
    for kind, columns in (("tokens", {"input_id": ids, "document": document}), ("scores", {"ref_loss": losses})):
        folder, shards = Folder.at(root / kind), []
        types = {n: str(c.dtype) for n, c in columns.items()}
        for index, first in enumerate(range(0, len(ids), per_shard)):
            with ShardWriter(folder, shard_name(index), types, GROUP_ROWS * SEQ_LEN) as writer:
                for at in range(first, min(first + per_shard, len(ids)), GROUP_ROWS):
                    writer.write(**{n: c[at : at + GROUP_ROWS].ravel() for n, c in columns.items()})
                n = min(per_shard, len(ids) - first)
                writer.facts = {"rows": n, "tokens": n * SEQ_LEN}
            s = writer.shard
            shards.append(Shard(s.file, first, s.rows, s.groups, s.tokens, s.bytes, s.footer_sha256))
        source = {"tokens": made["tokens"]} if kind == "scores" else {}
        manifest = Manifest(kind, SEQ_LEN, GROUP_ROWS, shards, source, {"columns": types}, {})  # type: ignore[arg-type]
        manifest.save(folder)
        made[kind] = manifest.content_hash


def write_memmap(root: Path, ids: np.ndarray, losses: np.ndarray) -> None:
    root.mkdir(parents=True)
    ids.tofile(root / "ids.bin")
    losses.tofile(root / "losses.bin")


def import_streaming(folder: str | None) -> Any:
    """mosaicml streaming, whose import asks for torchvision, which reading arrays does not need; None where it is absent."""
    if not folder:
        return None

    def stand_in(name: str, **attributes: Any) -> None:
        module = types.ModuleType(name)
        module.__spec__, module.__path__ = importlib.machinery.ModuleSpec(name, None), []  # type: ignore[attr-defined]
        for key, value in attributes.items():
            setattr(module, key, value)
        sys.modules[name] = module

    try:
        import torchvision  # noqa: F401
    except ImportError:
        stand_in("torchvision")
        stand_in("torchvision.datasets", VisionDataset=object)
        stand_in("torchvision.transforms")
        stand_in("torchvision.transforms.functional", to_tensor=None)
    sys.path.append(folder)
    import streaming

    return streaming


def write_streaming(root: Path, ids: np.ndarray, losses: np.ndarray, streaming: Any) -> None:
    columns = {"ids": f"ndarray:uint16:{SEQ_LEN}", "loss": f"ndarray:float16:{SEQ_LEN}"}
    with streaming.MDSWriter(out=str(root), columns=columns, hashes=["xxh64"]) as writer:
        for row in range(len(ids)):
            writer.write({"ids": ids[row], "loss": losses[row]})


def size_of(root: Path) -> int:
    return sum(f.stat().st_size for f in root.rglob("*") if f.is_file())


# --- reading: each arm yields (ids [B, T], losses [B, T]) as torch tensors, for the rows that are asked for ---

Batches = Callable[[np.ndarray], Iterator[tuple[Any, Any]]]


def slices(order: np.ndarray) -> Iterator[np.ndarray]:
    for at in range(0, len(order), BATCH_ROWS):
        yield order[at : at + BATCH_ROWS]


def arm_memmap(root: Path, rows: int, _threads: int) -> Batches:
    import torch

    ids = np.memmap(root / "memmap/ids.bin", np.uint16, "r", shape=(rows, SEQ_LEN))
    losses = np.memmap(root / "memmap/losses.bin", np.float16, "r", shape=(rows, SEQ_LEN))

    def batches(order: np.ndarray) -> Iterator[tuple[Any, Any]]:
        for part in slices(order):
            yield torch.from_numpy(ids[part].astype(np.int32)), torch.from_numpy(losses[part])

    return batches


def arm_slmctl(root: Path, rows: int, threads: int) -> Batches:
    import torch

    from slmctl.store.order import RowOrder
    from slmctl.store.reader import RowReader, ScoreSet, TokenSet
    from slmctl.store.windows import WindowReader

    tokens = TokenSet(root / "slmctl/tokens")
    scores = ScoreSet(root / "slmctl/scores", tokens)
    order = RowOrder(tokens.group_rows, seed=0)

    def batches(wanted: np.ndarray) -> Iterator[tuple[Any, Any]]:
        reader = WindowReader(RowReader(tokens, scores, documents=False), order, threads if threads > 1 else 0)
        for at in range(0, len(wanted), BATCH_ROWS):
            found = reader.fetch(at, min(at + BATCH_ROWS, rows))
            assert found.ref_loss_BT is not None
            yield torch.from_numpy(found.ids_BT), torch.from_numpy(found.ref_loss_BT)
        reader.close()

    return batches


def arm_datasets(root: Path, _rows: int, _threads: int) -> Batches:
    import datasets

    datasets.disable_progress_bars()
    files = {k: sorted(str(f) for f in (root / "slmctl" / k).glob("*.parquet")) for k in ("tokens", "scores")}
    cache = str(root / "hf-cache")
    tokens = datasets.Dataset.from_parquet(files["tokens"], columns=["input_id"], cache_dir=cache).with_format("numpy")
    scores = datasets.Dataset.from_parquet(files["scores"], columns=["ref_loss"], cache_dir=cache).with_format("numpy")
    import torch

    def batches(order: np.ndarray) -> Iterator[tuple[Any, Any]]:
        for part in slices(order):
            ids = [tokens[int(r) * SEQ_LEN : (int(r) + 1) * SEQ_LEN]["input_id"] for r in part]
            losses = [scores[int(r) * SEQ_LEN : (int(r) + 1) * SEQ_LEN]["ref_loss"] for r in part]
            yield torch.from_numpy(np.stack(ids).astype(np.int32)), torch.from_numpy(np.stack(losses))

    return batches


def arm_streaming(root: Path, _rows: int, _threads: int, streaming: Any) -> Batches:
    import torch

    data = streaming.StreamingDataset(local=str(root / "streaming"), shuffle=False, batch_size=BATCH_ROWS)

    def batches(order: np.ndarray) -> Iterator[tuple[Any, Any]]:
        for part in slices(order):
            found = [data[int(r)] for r in part]
            ids = np.stack([f["ids"] for f in found]).astype(np.int32)
            yield torch.from_numpy(ids), torch.from_numpy(np.stack([f["loss"] for f in found]))

    return batches


def arm_streaming_loader(root: Path, _rows: int, threads: int, streaming: Any) -> Batches:
    """As its documentation shows: a StreamingDataset in a DataLoader, which chooses the order itself."""
    import torch

    data = streaming.StreamingDataset(local=str(root / "streaming"), shuffle=True, batch_size=BATCH_ROWS)

    def batches(_order: np.ndarray) -> Iterator[tuple[Any, Any]]:
        loader = torch.utils.data.DataLoader(data, batch_size=BATCH_ROWS, num_workers=0 if threads == 1 else threads)
        for batch in loader:
            yield batch["ids"], batch["loss"]

    return batches


# --- one arm in a process of its own, on so many cores ---


def read_arm(root: Path, arm: str, cores: int, rows: int, streaming_folder: str | None) -> dict[str, Any]:
    os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[:cores]))
    os.environ["OMP_NUM_THREADS"] = str(cores)
    import torch

    torch.set_num_threads(cores)
    if arm == "slmctl: groups in file order":
        return groups_in_order(root)
    arms: dict[str, Callable[[], Batches]] = {
        "numpy.memmap": lambda: arm_memmap(root, rows, cores),
        "slmctl": lambda: arm_slmctl(root, rows, cores),
        "datasets": lambda: arm_datasets(root, rows, cores),
        "streaming": lambda: arm_streaming(root, rows, cores, import_streaming(streaming_folder)),
        "streaming, DataLoader": lambda: arm_streaming_loader(root, rows, cores, import_streaming(streaming_folder)),
    }
    batches = arms[arm]()
    from slmctl.store.order import RowOrder

    groups = np.full(rows // GROUP_ROWS, GROUP_ROWS)
    shuffled = RowOrder(groups, seed=0).at(0, rows)
    random = np.random.default_rng(1).permutation(rows)
    few = {"datasets": 512}.get(arm, rows)  # a slow arm is timed on fewer rows
    ids, losses = np.load(root / "ids.npy", mmap_mode="r"), np.load(root / "losses.npy", mmap_mode="r")
    if arm != "streaming, DataLoader":
        for order in (shuffled,) if arm == "slmctl" else (shuffled, random):
            got = next(batches(order[:BATCH_ROWS]))
            assert np.array_equal(got[0].numpy(), ids[order[:BATCH_ROWS]].astype(np.int32)), arm
            assert np.array_equal(got[1].numpy(), losses[order[:BATCH_ROWS]]), arm
    found: dict[str, Any] = {}
    for label, order in (("an epoch's order", shuffled), ("random rows", random)):
        if label == "random rows" and arm in ("slmctl", "streaming, DataLoader"):
            continue  # neither is meant for it: the order is what spares the reading
        taken = []
        for _ in range(ROUNDS):
            started, n = time.perf_counter(), 0
            for got_ids, got_losses in batches(order[:few]):
                n += got_ids.numel()
                assert got_losses.numel() == got_ids.numel()
            taken.append(n / (time.perf_counter() - started) / 1e6)
        found[label] = {"million_tokens_per_s": round(statistics.median(taken), 2), "rounds": [round(t, 2) for t in taken]}
    return found


def groups_in_order(root: Path) -> dict[str, Any]:
    """slmctl's own steps: verifying the bytes alone; ids alone; ids and losses, verified and joined by position."""
    from slmctl.store.reader import RowReader, ScoreSet, TokenSet

    found: dict[str, Any] = {}

    def timed(label: str, tokens: int, work: Callable[[], None]) -> None:
        taken = []
        for _ in range(ROUNDS):
            started = time.perf_counter()
            work()
            taken.append(tokens / (time.perf_counter() - started) / 1e6)
        found[label] = {"million_tokens_per_s": round(statistics.median(taken), 1), "rounds": [round(t, 1) for t in taken]}

    tokens = TokenSet(root / "slmctl/tokens")
    scores = ScoreSet(root / "slmctl/scores", tokens)
    total = tokens.rows * SEQ_LEN

    def read(joined: bool, documents: bool = False) -> Callable[[], None]:
        def work() -> None:
            reader = RowReader(tokens, scores if joined else None, cache_groups=2, documents=documents)
            for g in range(len(tokens.place)):
                reader.group(g)

        return work

    def hash_alone() -> None:
        for opened in (tokens, scores):
            for i in range(len(opened.manifest.shards)):
                opened.file(i).verify()

    timed("every byte re-read and hashed", total, hash_alone)
    timed("ids, verified", total, read(False))
    timed("ids and losses, verified and joined", total, read(True))
    timed("the same, with documents", total, read(True, documents=True))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--million-tokens", type=int, default=32)
    parser.add_argument("--losses", help="Parquet files with a column ref_loss: real losses in place of made-up ones")
    parser.add_argument("--streaming", help="folder that mosaicml-streaming is installed in")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/store.json"))
    parser.add_argument("--arm", help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--cores", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.arm:
        print("\n" + json.dumps(read_arm(args.root, args.arm, args.cores, args.rows, args.streaming)))
        return
    rows = args.million_tokens * 2**20 // SEQ_LEN // GROUP_ROWS * GROUP_ROWS
    tokens = rows * SEQ_LEN
    ids, document, losses = make_values(rows, args.losses)
    streaming = import_streaming(args.streaming)
    root = Path(tempfile.mkdtemp(prefix="store-bench-"))
    np.save(root / "ids.npy", ids)
    np.save(root / "losses.npy", losses)
    figures: dict[str, Any] = {"command": " ".join(["python", *sys.argv]), "tokens": tokens, "bytes_per_token": {}, "written": {}}

    def written(label: str, place: str, work: Callable[[], None]) -> None:
        started = time.perf_counter()
        work()
        figures["written"][label] = {"million_tokens_per_s": round(tokens / (time.perf_counter() - started) / 1e6, 1)}
        figures["bytes_per_token"][label] = round(size_of(root / place) / tokens, 3)

    try:
        written("slmctl", "slmctl", lambda: write_slmctl(root / "slmctl", ids, document, losses, "float16"))
        written("slmctl, compact", "compact", lambda: write_slmctl(root / "compact", ids, document, losses, "compact"))
        written("numpy.memmap", "memmap", lambda: write_memmap(root / "memmap", ids, losses))
        if streaming:
            written("streaming", "streaming", lambda: write_streaming(root / "streaming", ids, losses, streaming))
        figures["bytes_per_token"]["slmctl: losses"] = round(size_of(root / "slmctl/scores") / tokens, 3)
        figures["bytes_per_token"]["slmctl: losses, compact"] = round(size_of(root / "compact/scores") / tokens, 3)
        arms = ["numpy.memmap", "slmctl: groups in file order", "slmctl", "datasets"]
        arms += ["streaming", "streaming, DataLoader"] if streaming else []
        for cores in (1, 2):
            figures[f"{cores} core{'s' * (cores > 1)}"] = here = {}
            for arm in arms:
                command = [
                    sys.executable,
                    __file__,
                    "--arm",
                    arm,
                    "--root",
                    str(root),
                    "--cores",
                    str(cores),
                    "--rows",
                    str(rows),
                ]
                command += ["--streaming", args.streaming] if args.streaming else []
                out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                here[arm] = json.loads(out.strip().splitlines()[-1])
                print(cores, arm, {k: v["million_tokens_per_s"] for k, v in here[arm].items()}, flush=True)
            ours = here["slmctl"]["an epoch's order"]["million_tokens_per_s"]
            here["slmctl delivers, times"] = {
                f"{arm}, {label}": round(ours / v["million_tokens_per_s"], 2)
                for arm in arms
                if not arm.startswith("slmctl")
                for label, v in here[arm].items()
            }
            print(here["slmctl delivers, times"], flush=True)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps({k: figures[k] for k in ("bytes_per_token", "written")}, indent=1))


if __name__ == "__main__":
    main()

"""Soak: three workers prepare and score while random ones are killed (-9), stopped and woken, until N kills have happened.

    python tests/soak/soak_store.py --kills 100 --seed 0

What they leave must be, byte for byte, what one undisturbed worker makes, and hold every token of the corpus exactly once.
A round ends when the workers have finished; rounds go on, each in a new output_dir, until N kills have happened. Prints
one JSON object of counts. Exits 1 where anything is not as it should be.
"""

from __future__ import annotations

import os

os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}

import argparse
import gc
import hashlib
import json
import mmap
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import yaml
from tiny_pipeline import write_jsonl
from tiny_store import make_model, texts, train_tokenizer
from transformers.models.llama import modeling_llama  # noqa: F401 - so that no worker spends a second on it

from slmctl.cli.process import main
from slmctl.stages import prepare, score  # noqa: F401
from slmctl.system.local_storage import LocalFolder
from slmctl.workspace.workspace import Workspace

WORKERS = 3
SEQ_LEN = 64
STARTING, PLANNING, PREPARING, SCORING, PUBLISHING, CHECKING, IDLE, ENDED = range(8)
PHASES = ("starting", "planning", "preparing", "scoring", "publishing", "checking", "idle", "ended")
PATIENCE = 120
"""Seconds without a new shard after which the soak gives up: the workers are stuck."""


# --- a worker ---


class Phase:
    """What this worker is doing, where its parent sees it: a byte of shared memory."""

    def __init__(self, shared: mmap.mmap, worker: int) -> None:
        self.shared, self.worker = shared, worker

    def __call__(self, phase: int) -> int:
        before = self.shared[self.worker]
        self.shared[self.worker] = phase
        return before

    @contextmanager
    def of(self, phase: int) -> Iterator[None]:
        before = self(phase)
        yield
        self(before)

    def during(self, phase: int, function: Callable[..., Any]) -> Callable[..., Any]:
        def noting(*args: Any, **named: Any) -> Any:
            with self.of(phase):
                return function(*args, **named)

        return noting


def note_phases(phase: Phase) -> None:
    """Has slmctl's functions tell the phase; they are called as they would be."""
    from slmctl.corpus import make_shard
    from slmctl.workspace.build import Build

    planning = Workspace.planning

    @contextmanager
    def noted(self: Workspace) -> Iterator[None]:
        with phase.of(PLANNING), planning(self):
            yield

    Workspace.planning = noted  # type: ignore[method-assign]
    make_shard._write = phase.during(PREPARING, make_shard._write)
    score.score_shard = phase.during(SCORING, score.score_shard)
    LocalFolder.publish = phase.during(PUBLISHING, LocalFolder.publish)  # type: ignore[method-assign]
    Build.finish = phase.during(CHECKING, Build.finish)  # type: ignore[method-assign]


def command(*words: str) -> None:
    try:
        main(list(words))
    except SystemExit as e:
        if e.code:
            raise


def work(config: Path, store: Path, phase: Phase) -> None:
    """prepare, then, once the others have done theirs, score."""
    note_phases(phase)
    share = ("--shard-index", str(phase.worker), "--shard-count", str(WORKERS))
    command("prepare", str(config), *share)
    phase(IDLE)
    while not (store / "tokens" / "corpus" / "manifest.json").exists():
        time.sleep(0.02)
    phase(STARTING)
    command("score", str(config), *share)


def fork(function: Callable[[], None], log: Path) -> int:
    """Runs a function in a process of its own; its output is added to `log`. Returns the process number."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        function()
        code = 0
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# --- what there is to work on ---


def write_inputs(root: Path, shards: int, seed: int) -> dict[str, Any]:
    """Settings, with texts of about so many shards of the corpus, and a model folder."""
    rng = random.Random(seed)
    train_tokenizer((t["text"] for t in texts(0, 200)), 300, root / "model")
    make_model(root / "model", hidden=16)
    pool = [t["text"] for t in texts(seed + 1, 2000, 60)]
    write_jsonl(root / "curated.jsonl", [{"text": rng.choice(pool)} for _ in range(100)])
    write_jsonl(root / "target.jsonl", [{"text": rng.choice(pool)} for _ in range(20)])
    with open(root / "corpus.jsonl", "w", encoding="utf-8") as f:
        written = n = 0
        while written < shards * SHARD_BYTES:
            text = " ".join(rng.choices(pool, k=rng.randint(1, 40)))
            written += f.write(json.dumps({"text": f"document {n}: {text}"}) + "\n")
            n += 1
    train = {"steps": 1, "batch_tokens": SEQ_LEN * 8}
    return {
        "name": "soak",
        "output_dir": "",
        "device": "cpu",
        "model": {"path": str(root / "model")},
        "data": {
            "seq_len": SEQ_LEN,
            "shard_bytes": SHARD_BYTES,
            "curated": {"path": str(root / "curated.jsonl")},
            "corpus": {"path": str(root / "corpus.jsonl")},
            "heldout": {"target": {"path": str(root / "target.jsonl")}},
        },
        "reference": train,
        "score": {"precision": "float32", "references": {"curated": str(root / "model")}},
        "pretrain": {**train, "arms": {"slm": {}}},
        "tracking": {"tensorboard": False},
    }


SHARD_BYTES = 2**16


def write_config(root: Path, settings: dict[str, Any], name: str) -> tuple[Path, Path]:
    """The YAML of a round, and the store that it will fill."""
    store = root / name
    config = root / f"{name}.yaml"
    config.write_text(yaml.safe_dump({**settings, "output_dir": str(store)}), encoding="utf-8")
    return config, store


def files_of(store: Path) -> dict[str, str]:
    """Hash of each file of the sets but for when it was made: shards whole, of manifests and plans what they say."""
    found = {}
    for kind in ("tokens", "scores"):
        for file in sorted((store / kind).rglob("*")):
            if file.is_file():
                found[str(file.relative_to(store))] = hashlib.sha256(file.read_bytes()).hexdigest()
    return found


def count_tokens(corpus: Path, tokenizer: Path, store: Path) -> dict[str, int]:
    """Tokenises each document of the source by itself and compares all of them, as a multiset, with the documents that the
    shards hold. Raises `AssertionError` where they differ. Uses nothing of slmctl."""
    import pyarrow.parquet as pq
    from tokenizers import Tokenizer

    backend = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    eos = backend.token_to_id("<|endoftext|>")
    wanted: Counter[bytes] = Counter()
    tokens = 0
    with open(corpus, encoding="utf-8") as f:
        for line in f:
            ids = [*backend.encode(json.loads(line)["text"], add_special_tokens=False).ids, eos]
            tokens += len(ids)
            wanted[b"".join(i.to_bytes(2, "little") for i in ids)] += 1
    found: Counter[bytes] = Counter()
    there = padding = 0
    numbers: set[int] = set()
    for file in sorted((store / "tokens" / "corpus").glob("*.parquet")):
        documents: dict[int, bytearray] = {}
        table = pq.read_table(file)
        for i, d in zip(table["input_id"].to_pylist(), table["document"].to_pylist(), strict=True):
            if d < 0:
                padding += 1
                continue
            documents.setdefault(d, bytearray()).extend(i.to_bytes(2, "little"))
        assert not numbers & documents.keys(), f"{file} holds documents of another shard"
        numbers |= documents.keys()
        found.update(bytes(b) for b in documents.values())
        there += sum(len(b) for b in documents.values()) // 2
    assert found == wanted, f"{sum((wanted - found).values())} documents lost, {sum((found - wanted).values())} too many"
    assert there == tokens
    assert sum(wanted.values()) == len(numbers)
    return {"documents": len(numbers), "tokens": there, "padding": padding}


# --- a round ---


@dataclass
class Counts:
    """What happened, over all rounds."""

    kills: Counter[str] = field(default_factory=Counter)
    """By the phase of the worker."""
    stops: Counter[str] = field(default_factory=Counter)
    two_at_once: int = 0
    killed_while_stopped: int = 0
    started: int = 0
    rounds: int = 0
    orphans: set[str] = field(default_factory=set)
    """Paths of the files that killed workers left."""
    lost: Counter[str] = field(default_factory=Counter)
    """By shard: how often a worker was killed while it wrote it."""
    problems: list[str] = field(default_factory=list)


class Round:
    """Three workers on one store, and who kills them."""

    def __init__(self, config: Path, store: Path, rng: random.Random, counts: Counts, kills: int, pause: float) -> None:
        self.config, self.store, self.rng, self.counts, self.left, self.pause = config, store, rng, counts, kills, pause
        self.shared = mmap.mmap(-1, WORKERS)
        self.log = store.with_suffix(".log")
        self.alive: dict[int, int] = {}
        """Worker to process number."""
        self.stopped: dict[int, float] = {}
        """Worker to when it is woken."""

    def start(self, worker: int) -> None:
        self.shared[worker] = STARTING
        phase = Phase(self.shared, worker)
        self.alive[worker] = fork(lambda: work(self.config, self.store, phase), self.log)
        self.counts.started += 1

    def run(self) -> None:
        for worker in range(WORKERS):
            self.start(worker)
        next_blow, last_shard, shards = self.after(), time.monotonic(), -1
        while self.alive:
            time.sleep(0.002)
            now = time.monotonic()
            self.collect()
            for worker in [w for w, at in self.stopped.items() if at <= now]:
                self.wake(worker)
            if self.left > 0 and now >= next_blow and self.alive:
                self.strike()
                next_blow = self.after()
            if (there := len(list(self.store.glob("*/c*/shard-*.parquet")))) != shards:
                shards, last_shard = there, now
            if now - last_shard > PATIENCE:
                self.counts.problems.append(f"no new shard for {PATIENCE} s; phases {[PHASES[b] for b in self.shared]}")
                break
        for pid in self.alive.values():
            os.kill(pid, signal.SIGKILL)
            wait(pid)

    def after(self) -> float:
        return time.monotonic() + self.rng.expovariate(1 / self.pause)

    def collect(self) -> None:
        """Takes note of workers that have ended by themselves."""
        for worker, pid in list(self.alive.items()):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                del self.alive[worker]
                self.stopped.pop(worker, None)
                self.shared[worker] = ENDED
                if code := os.waitstatus_to_exitcode(status):
                    self.counts.problems.append(f"worker {worker} exited {code}: {self.log.read_text()[-2000:]}")

    def strike(self) -> None:
        worker = self.rng.choice(list(self.alive))
        kind = self.rng.random()
        if kind < 0.15 and worker not in self.stopped:
            self.counts.stops[PHASES[self.shared[worker]]] += 1
            os.kill(self.alive[worker], signal.SIGSTOP)
            self.stopped[worker] = time.monotonic() + self.rng.uniform(0.05, 1.5)
            return
        victims = [worker]
        if kind > 0.85 and len(self.alive) > 1 and self.left > 1:
            victims.append(self.rng.choice([w for w in self.alive if w != worker]))
            self.counts.two_at_once += 1
        for victim in victims:
            os.kill(self.alive[victim], signal.SIGKILL)
        for victim in victims:
            self.bury(victim)
            self.start(victim)

    def bury(self, worker: int) -> None:
        """Notes in what phase a worker was killed, and what it left."""
        pid = self.alive.pop(worker)
        code = wait(pid)
        if code != -signal.SIGKILL:  # it had just ended
            self.counts.problems += [f"worker {worker} exited {code}"] if code else []
            return
        self.left -= 1
        self.counts.kills[PHASES[self.shared[worker]]] += 1
        self.counts.killed_while_stopped += self.stopped.pop(worker, None) is not None
        for file in self.store.rglob(f".tmp-*.{pid}-*"):
            self.counts.orphans.add(str(file))
            if "shard-" in file.name:
                self.counts.lost[f"{file.parent}/{file.name.split('.')[1]}"] += 1

    def wake(self, worker: int) -> None:
        del self.stopped[worker]
        os.kill(self.alive[worker], signal.SIGCONT)


def soak(root: Path, kills: int, shards: int, seed: int, pause: float) -> tuple[dict[str, Any], list[str]]:
    """Counts, and what went wrong."""
    began = time.monotonic()
    rng, counts = random.Random(seed), Counts()
    settings = write_inputs(root, shards, seed)
    gc.freeze()
    config, alone = write_config(root, settings, "alone")
    for name in ("prepare", "score"):
        if code := wait(fork(lambda name=name: command(name, str(config)), root / "alone.log")):  # type: ignore[misc]
            return {}, [f"the undisturbed run exited {code}: {(root / 'alone.log').read_text()}"]
    undisturbed = time.monotonic() - began
    wanted = files_of(alone)

    while (left := kills - sum(counts.kills.values())) > 0 and not counts.problems:
        counts.rounds += 1
        config, store = write_config(root, settings, f"round{counts.rounds}")
        Round(config, store, rng, counts, left, pause).run()
        for words in (("prepare",), ("score",)) if not counts.problems else ():
            for action in ((), ("--finalize",), ("--verify",)):  # a last one, of all: it sweeps what is left
                line = (*words, str(config), *action)
                if code := wait(fork(lambda line=line: command(*line), root / "end.log")):  # type: ignore[misc]
                    counts.problems.append(f"{line} exited {code}: {(root / 'end.log').read_text()[-2000:]}")
        found = files_of(store)
        names = {k: ("more" if k in found else "missing") for k in wanted.keys() ^ found.keys()}
        counts.problems += [f"{store.name}/{k}: {what} than an undisturbed run made" for k, what in sorted(names.items())]
        counts.problems += [f"{store.name}/{k}: other bytes" for k in wanted.keys() & found.keys() if wanted[k] != found[k]]
        counts.problems += [f"{file}: was not swept" for file in store.rglob(".tmp-*")]
        if (store / "stale").exists():
            counts.problems.append(f"{store.name}: a set was moved aside")

    totals: dict[str, int] = {}
    result = root / "tokens.json"

    def count() -> None:
        result.write_text(json.dumps(count_tokens(root / "corpus.jsonl", root / "model", store)))

    if not counts.problems and (code := wait(fork(count, root / "count.log"))):
        counts.problems.append(f"counting tokens exited {code}: {(root / 'count.log').read_text()[-2000:]}")
    if result.exists():
        totals = json.loads(result.read_text())
    swept = [o for o in counts.orphans if not Path(o).exists()]
    in_work = sum(counts.kills[p] for p in ("planning", "preparing", "scoring", "publishing", "checking"))
    report = {
        "kills": sum(counts.kills.values()),
        "kills_by_phase": dict(counts.kills.most_common()),
        "kills_in_the_middle_of_work": in_work,
        "two_at_once": counts.two_at_once,
        "stops": sum(counts.stops.values()),
        "stops_by_phase": dict(counts.stops.most_common()),
        "killed_while_stopped": counts.killed_while_stopped,
        "workers_started": counts.started,
        "rounds": counts.rounds,
        "temporaries_orphaned": len(counts.orphans),
        "temporaries_swept": len(swept),
        "shards_lost_in_hand": sum(counts.lost.values()),
        "shards_lost_twice_or_more": sum(n > 1 for n in counts.lost.values()),
        "shards": {n: sum(k.startswith(n) and k.endswith(".parquet") for k in wanted) for n in ("tokens/corpus", "scores")},
        **totals,
        "identical_to_an_undisturbed_run": not counts.problems,
        "seconds_undisturbed": round(undisturbed, 1),
        "seconds": round(time.monotonic() - began, 1),
        "seed": seed,
    }
    return report, counts.problems


def run() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shards", type=int, default=300, help="of the corpus")
    parser.add_argument("--pause", type=float, default=0.6, help="mean seconds between blows")
    parser.add_argument("--keep", type=Path, help="folder to work in and to keep (default: a temporary one)")
    given = parser.parse_args()
    root = given.keep or Path(tempfile.mkdtemp(prefix="slmctl-soak-"))
    root.mkdir(parents=True, exist_ok=True)
    try:
        report, problems = soak(root, given.kills, given.shards, given.seed, given.pause)
        print(json.dumps(report, indent=1))
        for problem in problems:
            print(f"problem: {problem}", file=sys.stderr)
        return 1 if problems else 0
    finally:
        if given.keep is None:
            shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(run())

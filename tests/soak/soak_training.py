"""Soak: a small training run is killed (-9) at random moments, resumed, and killed again, until N kills have happened.

    python tests/soak/soak_training.py --kills 100 --seed 0 --ranks 2

Of two ranks, now one is killed (the other must then end by itself), now both. Most kills are aimed at a checkpoint that is
being written. What is left must be, to the bit, what an undisturbed run leaves: weights, figures but for timings, and token
counts. A round ends when all arms are trained; rounds go on, each in a new output_dir, until N kills have happened. Prints
one JSON object of counts. Exits 1 where anything is not as it should be.
"""

from __future__ import annotations

import os

os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}

import argparse
import json
import mmap
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "distributed"))

from launch import (
    SEQ_LEN,
    differences,
    left_by,
    settings,
    start_ranks,
    succeed,
    temporaries,
    this_rank,
    write_config,
    write_texts,
)

from slmctl.training import loop
from slmctl.training.checkpoint import Checkpoints
from slmctl.training.validation import Validation

STARTING, LOADING, TRAINING, EVALUATING, COPYING, EXPORTING = range(6)
PHASES = ("starting", "loading a checkpoint", "training", "evaluating", "copying what is saved", "exporting")
WRITING, PUBLISHING = 1, 2
BESIDE = ("", "writing a checkpoint", "publishing a checkpoint")
BYTES = 8
"""Of each rank: what it does, what it does beside training, checkpoints begun, whether it has met the others, and steps made
(4 bytes)."""
AGENT = 5
"""Seconds after which ranks that wait for one that died before it met them are ended, as torchrun would."""
PATIENCE = 60
"""Seconds after which a run that does not end is stuck."""
STEPS = 10
ARMS = {
    "slm": {"selection": {"group_rows": 2}},
    "threshold": {"selection": {"group_rows": 2, "scope": "threshold"}},
}


# --- what a rank tells ---


def shared(file: Path) -> mmap.mmap:
    with open(file, "r+b") as f:
        return mmap.mmap(f.fileno(), 0)


@dataclass
class Tell:
    """Has this rank tell what it is doing, in its bytes of a file that its parent looks at."""

    file: Path

    def __call__(self) -> None:
        self.bytes, self.at = shared(self.file), this_rank() * BYTES
        loop.Trainer.step = self.during(0, TRAINING, loop.Trainer.step, self.count_step)  # type: ignore[method-assign]
        Validation.evaluate = self.during(0, EVALUATING, Validation.evaluate)  # type: ignore[method-assign]
        loop.export_run = self.during(0, EXPORTING, loop.export_run)
        Checkpoints.load = self.during(0, LOADING, Checkpoints.load, self.count_met)  # type: ignore[method-assign]
        Checkpoints.save = self.during(0, COPYING, Checkpoints.save, self.count_save)  # type: ignore[method-assign]
        Checkpoints._write = self.during(1, WRITING, Checkpoints._write)  # type: ignore[method-assign]
        Checkpoints._publish = self.during(1, PUBLISHING, Checkpoints._publish)  # type: ignore[method-assign]

    def during(self, place: int, phase: int, function: Callable[..., Any], after: Callable[[], None] = lambda: None) -> Any:
        def told(*args: Any, **named: Any) -> Any:
            before, self.bytes[self.at + place] = self.bytes[self.at + place], phase
            try:
                return function(*args, **named)
            finally:
                self.bytes[self.at + place] = before
                after()

        return told

    def count_save(self) -> None:
        self.bytes[self.at + 2] = (self.bytes[self.at + 2] + 1) % 256

    def count_met(self) -> None:
        self.bytes[self.at + 3] = 1

    def count_step(self) -> None:
        steps = int.from_bytes(self.bytes[self.at + 4 : self.at + 8], "little") + 1
        self.bytes[self.at + 4 : self.at + 8] = steps.to_bytes(4, "little")


# --- a round ---


@dataclass
class Counts:
    """What happened, over all rounds."""

    kills: Counter[str] = field(default_factory=Counter)
    """By what the first victim did."""
    processes_killed: int = 0
    all_ranks_at_once: int = 0
    ended_waiting: int = 0
    """Ranks that still waited for one that was killed before it met them."""
    starts: int = 0
    rounds: int = 0
    resumes: int = 0
    fall_backs: int = 0
    steps_made: int = 0
    orphans: set[str] = field(default_factory=set)
    survivors: list[float] = field(default_factory=list)
    """Seconds that a rank went on after the other was killed."""
    problems: list[str] = field(default_factory=list)


class Round:
    """A run that is started until it has ended well, and who kills it."""

    def __init__(self, root: Path, store: Path, config: Path, size: int, rng: random.Random, counts: Counts, kills: int) -> None:
        self.root, self.store, self.config, self.size, self.rng = root, store, config, size, rng
        self.counts, self.left = counts, kills
        self.file = root / "phases"

    def run(self) -> None:
        ended = False
        while not ended and not self.counts.problems:
            ended = self.once()

    def once(self) -> bool:
        """Starts the ranks and perhaps kills them. Returns whether all arms are trained."""
        self.file.write_bytes(bytes(self.size * BYTES))
        self.view = shared(self.file)
        self.counts.starts += 1
        command = ["pretrain", str(self.config)]
        processes = start_ranks(self.root, self.size, command, before=[Tell(self.file)])
        try:
            victims = self.strike(processes) if self.left > 0 else []
            struck = time.monotonic()
            while any(p.is_alive() for p in processes) and time.monotonic() - struck < PATIENCE:
                time.sleep(0.002)
                if victims and time.monotonic() - struck > AGENT:
                    victims += self.end_waiting(processes)
            stuck = [r for r, p in enumerate(processes) if p.is_alive()]
        finally:
            for process in processes:
                if process.is_alive():
                    process.kill()
                process.join()
        if 0 < len(victims) < self.size and not stuck:
            self.counts.survivors.append(time.monotonic() - struck)
        return self.judge([p.exitcode for p in processes], victims, stuck)

    def end_waiting(self, processes: list[Any]) -> list[int]:
        waiting = [r for r, p in enumerate(processes) if p.is_alive() and not self.view[r * BYTES + 3]]
        for rank in waiting:
            processes[rank].kill()
            processes[rank].join()
        self.counts.ended_waiting += len(waiting)
        return waiting

    def strike(self, processes: list[Any]) -> list[int]:
        """Kills one rank or all at a random moment. Returns those that were killed, none where the run ended before."""
        rng, watched = self.rng, self.rng.randrange(self.size)
        aim, number = rng.random(), rng.randint(1, 5)
        if aim < 0.6:  # at a checkpoint that is being written

            def due() -> bool:
                at = watched * BYTES
                return self.view[at + 1] != 0 and self.view[at + 2] >= number - 1
        elif aim < 0.7:

            def due() -> bool:
                return self.view[1] == PUBLISHING and self.view[2] >= number - 1
        else:
            moment = time.monotonic() + rng.uniform(0.05, 2.0)

            def due() -> bool:
                return time.monotonic() >= moment

        began = time.monotonic()
        while not due():
            if not all(p.is_alive() for p in processes) or time.monotonic() - began > PATIENCE:
                return []
            time.sleep(0.0003)
        if aim < 0.6:
            time.sleep(rng.uniform(0, 0.02))
        victims = list(range(self.size)) if self.size == 1 or rng.random() < 0.5 else [rng.randrange(self.size)]
        at = victims[0] * BYTES
        doing = BESIDE[self.view[at + 1]] or PHASES[self.view[at]]
        for victim in victims:
            processes[victim].kill()
        for victim in victims:
            processes[victim].join()
        killed = [v for v in victims if processes[v].exitcode == -9]
        if killed:
            self.left -= 1
            self.counts.kills[doing] += 1
            self.counts.processes_killed += len(killed)
            self.counts.all_ranks_at_once += self.size > 1 and len(killed) == self.size
        return killed

    def judge(self, codes: list[int], victims: list[int], stuck: list[int]) -> bool:
        """Takes note of how the ranks ended and of what they left."""
        counts = self.counts
        said = "".join((self.root / f"rank-{r}.log").read_text() for r in range(self.size) if self.log(r).exists())
        counts.resumes += said.count("resuming after step")
        counts.fall_backs += said.count("falling back")
        counts.steps_made += int.from_bytes(self.view[4:8], "little")
        counts.orphans |= {str(f) for f in temporaries(self.store)}
        if stuck:
            counts.problems.append(f"ranks {stuck} were stuck for {PATIENCE} s: {said[-3000:]}")
        allowed = {0, 1} if victims else {0}
        bad = [c for r, c in enumerate(codes) if r not in victims and c not in allowed]
        if bad and not stuck:
            counts.problems.append(f"exit codes {codes} with {victims} killed: {said[-3000:]}")
        return codes == [0] * self.size

    def log(self, rank: int) -> Path:
        return self.root / f"rank-{rank}.log"


def soak(root: Path, kills: int, seed: int, size: int) -> tuple[dict[str, Any], list[str]]:
    """Counts, and what went wrong."""
    began = time.monotonic()
    rng, counts = random.Random(seed), Counts()
    write_texts(root / "texts")
    wanted = settings(root / "texts", ARMS)
    wanted["pretrain"] |= {"steps": STEPS, "eval_every": 4, "save_every": 1, "keep_last": 2, "sharding": "full"}
    wanted["pretrain"] |= {"batch_tokens": 8 * SEQ_LEN, "micro_batch": 4}
    prepared = root / "prepared"
    config = write_config(root, prepared, wanted)
    succeed(root, 1, *[[stage, str(config)] for stage in ("prepare", "train-base", "train-ref", "score")])

    def copy(name: str) -> tuple[Path, Path]:
        shutil.copytree(prepared, root / name)
        return root / name, write_config(root, root / name, wanted)

    alone, config = copy("alone")
    succeed(root, size, ["pretrain", str(config)])
    undisturbed = {arm: left_by(alone / "pretrain" / arm) for arm in ARMS}
    while (left := kills - sum(counts.kills.values())) > 0 and not counts.problems:
        counts.rounds += 1
        store, config = copy(f"round{counts.rounds}")
        Round(root, store, config, size, rng, counts, left).run()
        for arm in ARMS if not counts.problems else ():
            found = differences(left_by(store / "pretrain" / arm), undisturbed[arm])
            counts.problems += [f"{store.name}/{arm}: other {what} than an undisturbed run left" for what in found]
        if not counts.problems:
            counts.problems += [f"{file}: was not swept" for file in temporaries(store)]
    report = {
        "kills": sum(counts.kills.values()),
        "kills_by_phase": dict(counts.kills.most_common()),
        "kills_while_a_checkpoint_was_written": sum(counts.kills[b] for b in BESIDE[1:]),
        "processes_killed": counts.processes_killed,
        "all_ranks_at_once": counts.all_ranks_at_once,
        "ended_waiting": counts.ended_waiting,
        "starts": counts.starts,
        "resumes": counts.resumes,
        "fall_backs": counts.fall_backs,
        "rounds": counts.rounds,
        "temporaries_orphaned": len(counts.orphans),
        "temporaries_swept": sum(not Path(o).exists() for o in counts.orphans),
        "steps_wanted": counts.rounds * len(ARMS) * STEPS,
        "steps_repeated": counts.steps_made - counts.rounds * len(ARMS) * STEPS,
        "longest_survivor_seconds": round(max(counts.survivors, default=0.0), 1),
        "identical_to_an_undisturbed_run": not counts.problems,
        "ranks": size,
        "seconds": round(time.monotonic() - began, 1),
        "seed": seed,
    }
    return report, counts.problems


def run() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ranks", type=int, default=1, choices=(1, 2))
    parser.add_argument("--keep", type=Path, help="folder to work in and to keep (default: a temporary one)")
    given = parser.parse_args()
    root = given.keep or Path(tempfile.mkdtemp(prefix="slmctl-soak-"))
    root.mkdir(parents=True, exist_ok=True)
    try:
        report, problems = soak(root, given.kills, given.seed, given.ranks)
        print(json.dumps(report, indent=1))
        for problem in problems:
            print(f"problem: {problem}", file=sys.stderr)
        return 1 if problems else 0
    finally:
        if given.keep is None:
            shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(run())

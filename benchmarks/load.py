"""The demo alone and beside busy loops, in one sitting, as it is now and as PyTorch computes by itself.

python benchmarks/load.py --output benchmarks/results/load.json            # a short demo, some minutes
python benchmarks/load.py --whole --variants now                           # the demo as `slmctl demo` runs it

Variants set the environment of the demo's process and nothing else:
  now      nothing: slmctl chooses how many threads there are, and has them sleep while they wait
  before   a thread a core, which spin while they wait: what PyTorch does by itself
  asleep   a thread a core, which sleep
  one      one thread
Each is run alone and beside `--loops` processes of `sh -c 'while :; do :; done'`, in turns, `--repeats` times. A run that is not
done after `--limit` seconds is ended; its steps a second then tell what became of it. Run it on a machine that is idle.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from slmctl.store.manifest import library_versions
from slmctl.system.openmp import ASKED, WAITS
from slmctl.training.telemetry import read_log

CORES = len(os.sched_getaffinity(0))
SPINS = "300000"
"""GNU OpenMP's own number, where the environment names none."""
VARIANTS: dict[str, dict[str, str]] = {
    "now": {},
    "before": {"OMP_NUM_THREADS": str(CORES), "GOMP_SPINCOUNT": SPINS},
    "asleep": {"OMP_NUM_THREADS": str(CORES)},
    "one": {"OMP_NUM_THREADS": "1"},
}
SHORT = {
    "model.scratch.train.tokens": 81_920,
    "reference.epochs": 0.3,
    "pretrain.tokens": 122_880,
    "eval.dynamics_tokens": 8192,
}
"""A part of the demo: each stage, fewer steps."""


@contextlib.contextmanager
def busy(loops: int) -> Iterator[None]:
    running = [subprocess.Popen(["sh", "-c", "while :; do :; done"]) for _ in range(loops)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def run_demo(variant: str, whole: bool, limit: float) -> dict[str, Any]:
    """One demo in a process of its own. Seconds are those of the whole command; null where it was not done by `limit`."""
    environment = {k: v for k, v in os.environ.items() if k not in (*ASKED, *WAITS)}
    environment |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", **VARIANTS[variant]}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "demo"
        command = [sys.executable, "-m", "slmctl", "demo", "--output-dir", str(out)]
        for key, value in {}.items() if whole else SHORT.items():
            command += ["-o", f"{key}={value}"]
        load = os.getloadavg()[0]
        began = time.monotonic()
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        said, done = "", True
        try:
            _, said = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            _, said = process.communicate()
            done = False
        seconds = time.monotonic() - began
        if done and process.returncode:
            sys.exit(f"the demo failed:\n{said}")
        record = out / ".cache" / "threads.json"
        chosen = json.loads(record.read_text()) if record.is_file() else {}
        return {
            "seconds": seconds if done else None,
            "load_before": load,
            "threads": {kind: c["threads"] for kind, c in chosen.items()},
            "steps_per_second": rates(out),
            "said_why": "waited for a core" in said,
        }


def rates(out: Path) -> dict[str, float]:
    """Steps a second of each run that began, by the medians of its steps."""
    found = {}
    for log in sorted(out.rglob("metrics.jsonl")):
        if steps := read_log(log):
            found[str(log.parent.relative_to(out))] = 1 / statistics.median(r["seconds"] for r in steps)
    return found


def middle(runs: list[dict[str, Any]]) -> float | None:
    known = [r["seconds"] for r in runs]
    return None if None in known else statistics.median(known)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=["now", "before"])
    parser.add_argument("--loops", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--limit", type=float, default=1200.0, help="seconds")
    parser.add_argument("--whole", action="store_true", help="the demo as it is, rather than a part of it")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/load.json"))
    args = parser.parse_args()
    runs: dict[str, dict[str, list[dict[str, Any]]]] = {v: {"alone": [], "beside": []} for v in args.variants}
    for _ in range(args.repeats):
        for variant in args.variants:
            for where, loops in (("alone", 0), ("beside", args.loops)):
                with busy(loops):
                    found = run_demo(variant, args.whole, args.limit)
                runs[variant][where].append(found)
                took = f"{found['seconds']:.1f} s" if found["seconds"] is not None else f"not done after {args.limit:.0f} s"
                print(f"{variant} {where}: {took}, threads {found['threads'] or VARIANTS[variant]}", flush=True)
    summary = {}
    for variant, by in runs.items():
        alone, beside = middle(by["alone"]), middle(by["beside"])
        summary[variant] = {"alone": alone, "beside": beside, "ratio": beside / alone if alone and beside else None}
        print(variant, summary[variant])
    figures = {
        "command": sys.argv,
        "cores": CORES,
        "settings": {k: str(v) for k, v in vars(args).items()},
        "demo": "whole" if args.whole else SHORT,
        "versions": library_versions(),
        "summary": summary,
        "runs": runs,
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""The demo and its arms over further seeds: `slmctl demo`, then `slmctl sweep --over pretrain.seed=1,2`, and what came out.

    python benchmarks/demo.py [--seeds 1,2] [--output-dir runs/demo-seeds]

Writes `results/demo.json`: the results of `slmctl eval` without the figures of single documents and tokens, the noise that each
arm trained on, and the seconds that each command took. For a run that others can compare to the bit, set OMP_NUM_THREADS.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
KEPT = (
    "schema",
    "pipeline",
    "seed",
    "target",
    "level",
    "versions",
    "models",
    "costs",
    "differences",
    "seeds",
    "contamination",
    "alarms",
)
OF_AN_ARM = (
    *("selection", "seed", "steps", "tokens_seen", "tokens_selected", "training_seconds", "flops", "evals", "selected"),
    *("control", "clipped", "precision"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="1,2")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/demo-seeds"))
    parser.add_argument("--output", type=Path, default=RESULTS / "demo.json")
    given = parser.parse_args()
    seconds = {"demo": timed("demo", "--output-dir", str(given.output_dir))}
    config = str(given.output_dir / "config.resolved.yaml")
    seconds["sweep"] = timed("sweep", config, "--over", f"pretrain.seed={given.seeds}")
    seconds["noise"] = timed("demo", "--output-dir", str(given.output_dir))  # again: the noise of the swept arms, too
    results = json.loads((given.output_dir / "eval" / "results.json").read_text(encoding="utf-8"))
    found = {
        "command": f"python benchmarks/demo.py --seeds {given.seeds}",
        "machine": {"cpu": cpu(), "cores": os.cpu_count(), "threads": os.environ.get("OMP_NUM_THREADS")},
        "seconds": seconds,
        **{k: results[k] for k in KEPT if k in results},
        "arms": {name: {k: arm[k] for k in OF_AN_ARM if k in arm} for name, arm in results["arms"].items()},
        "noise": json.loads((given.output_dir / "noise.json").read_text(encoding="utf-8")),
    }
    for name, arm in found["arms"].items():
        arm["checkpoints"] = [checkpoint(c) for c in results["arms"][name]["checkpoints"]]
    given.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"written to {given.output}")


def timed(*arguments: str) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "slmctl", *arguments], check=True)
    return round(time.perf_counter() - started, 1)


def checkpoint(found: dict[str, Any]) -> dict[str, Any]:
    kept = {k: found[k] for k in ("step", "tokens_seen", "tokens_selected")}
    return {**kept, "heldout": {n: figures["loss"] for n, figures in found["heldout"].items()}}


def cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())


if __name__ == "__main__":
    main()

"""Whether two evaluated runs have the same figures, to the last bit: for a change that must change nothing.

python benchmarks/same_results.py runs/before runs/after

Compares eval/results.json, highlights.json, and each arm's evals.jsonl and metrics.jsonl, but for what says when, where and how
long (`IGNORED`). Run both with the same number of threads (OMP_NUM_THREADS): sums round otherwise. Exits 1 where they differ.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

IGNORED = {
    *("made_on", "versions", "seconds", "training_seconds", "tokens_per_s", "tokens_per_second", "mfu", "memory_bytes"),
    *("loader_share", "loader_seconds", "time", "evaluation_seconds", "git", "command"),
}
"""Keys whose values may differ."""


def differing(a: Any, b: Any, at: str = "") -> Iterator[str]:
    if isinstance(a, dict) and isinstance(b, dict):
        for key in sorted({*a, *b} - IGNORED):
            if key not in a or key not in b:
                yield f"{at}.{key}: only in {'the second' if key not in a else 'the first'}"
            else:
                yield from differing(a[key], b[key], f"{at}.{key}")
    elif isinstance(a, list) and isinstance(b, list):
        if len(a) != len(b):
            yield f"{at}: {len(a)} and {len(b)} entries"
        for i, (x, y) in enumerate(zip(a, b, strict=False)):
            yield from differing(x, y, f"{at}[{i}]")
    elif a != b and not (a != a and b != b):
        yield f"{at}: {a!r} and {b!r}"


def leaves(a: Any) -> int:
    if isinstance(a, dict):
        return sum(leaves(v) for k, v in a.items() if k not in IGNORED)
    return sum(map(leaves, a)) if isinstance(a, list) else 1


def read(file: Path) -> Any:
    text = file.read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()] if file.suffix == ".jsonl" else json.loads(text)


def main() -> None:
    one, other = (Path(p) for p in sys.argv[1:3])
    logs = [
        f.relative_to(one) for name in ("metrics.jsonl", "evals.jsonl") for f in sorted(one.rglob(name)) if "stale" not in f.parts
    ]
    found: list[str] = []
    for file in (Path("eval/results.json"), Path("eval/highlights.json"), *logs):
        a, b = read(one / file), read(other / file)
        print(f"{file}: {leaves(a):,} values")
        found += [f"{file}{line}" for line in differing(a, b)]
    print("\n".join(found[:40]) or "the same, every value")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()

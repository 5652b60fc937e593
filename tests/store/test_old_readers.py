"""The oldest DuckDB, Polars, pyarrow, pandas and `datasets` that docs/format.md names read a set as slmctl does.

They are installed from PyPI, once, into a folder of pytest's cache. Where PyPI is out of reach the tests are skipped, unless the
environment has `CI` or `SLMCTL_REQUIRE_OLD_READERS`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sets import write_set

from slmctl.store.reader import ScoreSet, TokenSet

DOCUMENT = Path(__file__).parents[2] / "docs" / "format.md"
READS = Path(__file__).parent / "read_with_old_tools.py"
TOOLS = {"duckdb": "1.0.0", "polars": "1.0.0", "pyarrow": "12.0.1", "pandas": "2.0.3", "datasets": "2.14.0"}
NEEDED = ["numpy==1.26.4", "dill==0.3.7", "multiprocess==0.70.15", "fsspec==2023.6.0", "huggingface-hub==0.17.3"]
"""What they need in a version of their time; the rest (pytz, requests, tqdm, …) is that of this environment."""

UNREACHABLE = re.compile(r"NewConnectionError|Max retries|name resolution|timed out|ProxyError|No route to host|SSLError")
GROUP = 2**18


@pytest.fixture(scope="module")
def old_tools(request: pytest.FixtureRequest) -> Path:
    """The folder that they are installed in."""
    if sys.version_info >= (3, 12):
        pytest.skip("pyarrow 12 has no wheel for Python 3.12 and newer")
    pins = [*(f"{n}=={v}" for n, v in TOOLS.items()), *NEEDED]
    name = hashlib.sha256(" ".join([sys.version, *pins]).encode()).hexdigest()[:16]
    folder = Path(request.config.cache.mkdir("old-readers")) / name  # type: ignore[union-attr]
    if folder.exists():
        return folder
    with tempfile.TemporaryDirectory(dir=folder.parent) as making:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-compile"]
        pip += ["--only-binary", ":all:", "--retries", "1", "--timeout", "20", "--target", f"{making}/tools", *pins]
        done = subprocess.run(pip, capture_output=True, text=True)
        if done.returncode:
            required = os.environ.get("CI") or os.environ.get("SLMCTL_REQUIRE_OLD_READERS")
            if UNREACHABLE.search(done.stderr) and not required:
                pytest.skip("PyPI cannot be reached, which the old versions come from")
            pytest.fail(f"pip could not install the old versions:\n{done.stderr[-2000:]}")
        for tests in Path(making).glob("tools/*/tests"):  # a quarter of them
            shutil.rmtree(tests)
        Path(making, "tools").replace(folder)
    return folder


def columns_of(rows: int, most: int, dtype: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Tokens and scores as a real set has them, [rows, 2048] each."""
    rng = np.random.default_rng(rows)
    shape = (rows, 2048)
    ids = np.minimum(rng.zipf(1.2, shape) - 1, most).astype(dtype)
    ids.reshape(-1)[:40] = most
    document = np.cumsum(rng.random(ids.size) < 1 / 600).reshape(shape) + rows * 2**32
    document.reshape(-1)[-100:] = -1
    losses = rng.gamma(0.55, 3.6, shape).astype(np.float16).astype(np.float32)
    losses[:, 0] = losses.reshape(-1)[-100:] = -1
    entropies = np.where(losses < 0, np.float32(-1), rng.random(shape, np.float32) * 9)
    return {"input_id": ids, "document": document}, {"ref_loss": losses, "ref_entropy": entropies}


def write_store(folder: Path, dtype: str, most: int) -> Path:
    """A finished store: a full row group and a part of one, a shard without rows, and another part."""
    tokens, scores = zip(*(columns_of(rows, most, dtype) for rows in (GROUP // 2048 + 3, 0, 2)), strict=True)
    counts = [max(0, t["input_id"].size - 100) for t in tokens]
    types = {"input_id": dtype, "document": "int64"}
    made = write_set(folder / "tokens", "tokens", list(tokens), counts, types, GROUP // 2048, {})
    types = {"ref_loss": "float32", "ref_entropy": "float32"}
    write_set(folder / "scores", "scores", list(scores), counts, types, GROUP // 2048, {"tokens": made.content_hash})
    return folder


def values(run: Path) -> dict[str, np.ndarray]:
    """By slmctl's own reader."""
    tokens = TokenSet(run / "tokens")
    scores = ScoreSet(run / "scores", tokens)
    return {
        c: np.concatenate([s.read_group(g, [c])[c].ravel() for g in range(len(s.group_rows))])
        for s, columns in ((tokens, ("input_id", "document")), (scores, ("ref_loss", "ref_entropy")))
        for c in columns
    }


def test_the_oldest_tools_read_and_join_every_value(old_tools: Path, tmp_path: Path) -> None:
    runs = [write_store(tmp_path / "uint16", "uint16", 49_151), write_store(tmp_path / "int32", "int32", 151_935)]
    for run in runs:
        ids, counts = np.unique(values(run)["input_id"], return_counts=True)
        before_gaps = ids[:-1][np.diff(ids) > 1]  # the dictionary repeats these
        asked = [0, ids[-1], ids[counts.argmax()], *before_gaps[:: len(before_gaps) // 5], before_gaps[-1] + 1]
        (run / "ask.json").write_text(json.dumps([int(i) for i in asked]))
    environment = {**os.environ, "PYTHONPATH": str(old_tools), "HF_HOME": str(tmp_path / "hf")}
    command = [sys.executable, str(READS), *map(str, runs)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    versions = json.loads(done.stdout.splitlines()[-1])
    assert versions == TOOLS
    for run in runs:
        wanted = values(run)
        found: dict[str, Any] = dict(np.load(run / "found.npz"))
        assert {key.split(":")[0] for key in found} == {*TOOLS, "polars, lazily"}
        for key, value in found.items():
            np.testing.assert_array_equal(value, wanted[key.split(":")[1]], err_msg=f"{run.name}: {key}")


def test_the_document_names_the_versions_that_are_tested() -> None:
    rows = re.findall(r"^\| ([^|]+) \| (\d+\.\d+\.\d+), (\d+\.\d+\.\d+) \|", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)
    named = {name.lower().strip("`").split()[0]: versions for name, *versions in rows}
    assert {n: oldest for n, (oldest, _) in named.items()} == TOOLS
    pins = dict(line.split("==") for line in (DOCUMENT.parents[1] / "constraints.txt").read_text().splitlines() if "==" in line)
    assert {n: newest for n, (_, newest) in named.items()} == {n: pins[n] for n in TOOLS}

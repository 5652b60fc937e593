"""Reads stores with what is on the path, without slmctl: `read_with_old_tools.py FOLDER…`. What each tool gave goes to found.npz
beside the sets. The ids that `ask.json` lists are looked for besides.

Run in a process of its own by `test_old_readers.py`, with old versions of the tools before all others on the path.
"""

import json
import sys
from pathlib import Path

import datasets
import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds

COLUMNS = ("input_id", "document", "ref_loss", "ref_entropy")


def shards(folder):
    return [f"{folder}/{s['file']}" for s in json.loads((folder / "manifest.json").read_bytes())["shards"]]


def read(run):
    tokens, scores = shards(run / "tokens"), shards(run / "scores")
    query = f"SELECT * FROM read_parquet({tokens}) AS a POSITIONAL JOIN read_parquet({scores}) AS b"
    found = {"duckdb": duckdb.connect().execute(query).fetchnumpy()}
    joined = pl.concat([pl.read_parquet(tokens), pl.read_parquet(scores)], how="horizontal")
    found["polars"] = {c: joined[c].to_numpy() for c in joined.columns}
    scanned = pl.concat([pl.scan_parquet(tokens), pl.scan_parquet(scores)], how="horizontal").collect()
    found["polars, lazily"] = {c: scanned[c].to_numpy() for c in scanned.columns}
    tables = [ds.dataset(files).to_table() for files in (tokens, scores)]
    found["pyarrow"] = {c: t[c].to_numpy() for t in tables for c in t.column_names}
    frames = [pd.concat([pd.read_parquet(f, engine="pyarrow") for f in files], ignore_index=True) for files in (tokens, scores)]
    frame = pd.concat(frames, axis=1)
    found["pandas"] = {c: frame[c].to_numpy() for c in frame.columns}
    datasets.disable_progress_bar()
    cache = str(run / "cache")
    parts = [datasets.Dataset.from_parquet(files, cache_dir=cache) for files in (tokens, scores)]
    whole = datasets.concatenate_datasets(parts, axis=1).with_format("numpy")
    found["datasets"] = {c: whole[:][c] for c in whole.column_names}
    np.savez(run / "found.npz", **{f"{tool}:{c}": columns[c] for tool, columns in found.items() for c in COLUMNS})
    ids = found["pyarrow"]["input_id"]
    for asked in json.loads((run / "ask.json").read_text()):  # filters may be pushed down to the dictionary
        number = duckdb.connect().execute(f"SELECT count(*) FROM read_parquet({tokens}) WHERE input_id = {asked}").fetchone()[0]
        lazily = pl.scan_parquet(tokens).filter(pl.col("input_id") == asked).select(pl.len()).collect().item()
        assert number == lazily == (ids == asked).sum(), (asked, number, lazily)


if __name__ == "__main__":
    for folder in sys.argv[1:]:
        read(Path(folder))
    print(json.dumps({t.__name__: t.__version__ for t in (duckdb, pl, pa, pd, datasets)}))

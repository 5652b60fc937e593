"""DuckDB, Polars, pyarrow, pandas and `datasets` read and join the shards, by the very code that docs/format.md gives."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow.parquet as pq
import pytest
from tiny_pipeline import sentences, tiny_settings, write_jsonl

from slmctl.config.file import check
from slmctl.stages.prepare import prepare
from slmctl.stages.score import score
from slmctl.stages.train_base import train_base
from slmctl.store import shard_format
from slmctl.store.reader import ScoreSet, TokenSet
from slmctl.store.shard_writer import ShardWriter
from slmctl.system.storage import Folder
from slmctl.workspace.workspace import Workspace

DOCUMENT = Path(__file__).parents[2] / "docs" / "format.md"
COLUMNS = ("input_id", "document", "ref_loss", "ref_entropy")
DTYPES = {"float16": 10, "compact": 6, "float32": 23}


def blocks() -> list[tuple[str, str]]:
    """(language, code) of each block of code of the document, in order."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", DOCUMENT.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


@dataclass
class Store:
    """A finished store, as `run` in a folder of its own."""

    folder: Path
    intra: bool

    def values(self) -> dict[str, np.ndarray]:
        """Every value of every column, in the set's order, by slmctl's own reader."""
        tokens = TokenSet(self.folder / "run" / "tokens" / "corpus")
        scores = ScoreSet(self.folder / "run" / "scores" / "curated", tokens)
        found = {
            c: np.concatenate([s.read_group(g, [c])[c].ravel() for g in range(len(s.group_rows))])
            for s, columns in ((tokens, COLUMNS[:2]), (scores, COLUMNS[2:]))
            for c in columns
        }
        assert len(tokens.group_rows) > len(tokens.manifest.shards) > 3
        assert [s.rows for s in tokens.manifest.shards].count(0) == 1
        return found


@pytest.fixture(scope="module", params=DTYPES)
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Four shards, one without rows, of several row groups each; one for each type of scores."""
    folder = tmp_path_factory.mktemp(request.param)
    settings = tiny_settings(folder)
    write_jsonl(folder / "blank.jsonl", [{"text": " "}])
    write_jsonl(folder / "more.jsonl", sentences(4, 30))
    corpus = [{"path": str(folder / name)} for name in ("corpus.jsonl", "blank.jsonl", "more.jsonl")]
    intra = request.param == "float32"
    settings["output_dir"] = str(folder / "run")
    settings["data"] |= {"corpus": corpus, "intra_document_mask": intra}
    settings["model"]["scratch"]["train"] = None
    settings["score"] = {**settings["score"], "dtype": request.param, "references": {"curated": str(folder / "run/base")}}
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(shard_format, "GROUP_TOKENS", 512)
        for stage in (prepare, train_base, score):
            stage(Workspace(check(settings, "tiny")).open())
    return Store(folder, intra)


@dataclass
class Ran:
    """What the document's code made."""

    python: dict[str, Any]
    sql: list[dict[str, np.ndarray]]
    """The result of each block of SQL that has one."""
    joined: dict[str, np.ndarray]
    """DuckDB's joined table."""


@pytest.fixture(scope="module")
def ran(store: Store) -> Iterator[Ran]:
    """Runs every block of the document's code, in order."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(store.folder)
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", store.folder / "cache")
        datasets.disable_progress_bars()
        python: dict[str, Any] = {}
        results = []
        connection = duckdb.connect()
        for language, code in blocks():
            if language == "python":
                exec(compile(code, str(DOCUMENT), "exec"), python)
            elif language == "sql":
                results.append(connection.execute(code).fetchnumpy())
        yield Ran(python, results, connection.execute("SELECT * FROM joined").fetchnumpy())
        connection.close()


def same(found: dict[str, Any], wanted: dict[str, np.ndarray]) -> None:
    assert tuple(found) == COLUMNS
    for name, column in wanted.items():
        assert not np.ma.is_masked(found[name]), "values are missing"
        np.testing.assert_array_equal(np.asarray(found[name]), column, err_msg=name)


def test_the_document_has_code_of_each_kind() -> None:
    languages = [language for language, _ in blocks()]
    assert languages.count("python") >= 5
    assert languages.count("sql") >= 3


def test_every_tool_reads_every_token_and_loss_that_slmctl_reads(store: Store, ran: Ran) -> None:
    wanted = store.values()
    assert len(set(wanted["ref_loss"])) > 5  # of losses near 5.6, compact has a value every sixteenth
    same(ran.joined, wanted)
    same({c: ran.python["in_polars"][c].to_numpy() for c in ran.python["in_polars"].columns}, wanted)
    same({c: ran.python["in_arrow"][c].to_numpy() for c in ran.python["in_arrow"].column_names}, wanted)
    same({c: ran.python["in_pandas"][c].to_numpy() for c in ran.python["in_pandas"].columns}, wanted)
    in_datasets = ran.python["in_datasets"].with_format("numpy")
    same({c: in_datasets[:][c] for c in in_datasets.column_names}, wanted)
    np.testing.assert_array_equal(ran.python["ids_BT"].ravel(), wanted["input_id"])
    np.testing.assert_array_equal(ran.python["ref_loss_BT"].ravel(), wanted["ref_loss"])
    assert ran.python["ids_BT"].shape[1] == 32


def test_the_examples_give_what_a_plain_loop_gives(store: Store, ran: Ran) -> None:
    values = store.values()
    by_token: dict[int, list[float]] = {}
    by_document: dict[int, list[float]] = {}
    for token, document, loss in zip(*(values[c].tolist() for c in COLUMNS[:3]), strict=True):
        if loss >= 0:
            by_token.setdefault(token, []).append(loss)
            by_document.setdefault(document, []).append(loss)
    hardest, documents = ran.sql[-2:]
    assert dict(zip(hardest["input_id"].tolist(), hardest["tokens"].tolist(), strict=True)) == {
        t: len(losses) for t, losses in by_token.items()
    }
    np.testing.assert_allclose(hardest["mean_loss"], [np.mean(by_token[t]) for t in hardest["input_id"].tolist()], rtol=1e-6)
    assert sorted(hardest["mean_loss"], reverse=True) == hardest["mean_loss"].tolist()
    assert documents["document"].tolist() == sorted(by_document)
    np.testing.assert_allclose(documents["mean_loss"], [np.mean(by_document[d]) for d in sorted(by_document)], rtol=1e-6)
    in_polars = ran.python["hardest"]
    assert dict(in_polars.select("input_id", "len").rows()) == {t: len(losses) for t, losses in by_token.items()}


def test_lazy_scans_join_too(store: Store) -> None:
    wanted = store.values()
    run = store.folder / "run"
    tokens, scores = (sorted(f.glob("*.parquet")) for f in (run / "tokens" / "corpus", run / "scores" / "curated"))
    joined = pl.concat([pl.scan_parquet(tokens), pl.scan_parquet(scores)], how="horizontal")
    found = joined.filter(pl.col.ref_loss >= 0).select("input_id", "ref_loss").collect()
    np.testing.assert_array_equal(found["ref_loss"].to_numpy(), wanted["ref_loss"][wanted["ref_loss"] >= 0])
    np.testing.assert_array_equal(found["input_id"].to_numpy(), wanted["input_id"][wanted["ref_loss"] >= 0])


# --- what the document says of the values ---


def test_the_sentinel_is_where_nothing_is_predicted_and_nowhere_else(store: Store, ran: Ran) -> None:
    values = store.values()
    document = values["document"].tolist()
    for name in ("ref_loss", "ref_entropy"):
        for i, value in enumerate(values[name].tolist()):
            begins = i % 32 == 0 or (store.intra and document[i] != document[i - 1])
            assert (value == -1.0) if begins or document[i] == -1 else (value >= 0)
    predicted = ran.python["scores"]["counts"]["predicted"]
    assert sum(v >= 0 for v in values["ref_loss"].tolist()) == predicted


def test_documents_and_padding_are_as_described(store: Store, ran: Ran) -> None:
    manifest, values = ran.python["tokens"], store.values()
    ids, document = values["input_id"], values["document"]
    eos = manifest["format"]["eos_id"]
    lengths = {}
    for at, shard in enumerate(manifest["shards"]):
        part = slice(shard["first_row"] * 32, (shard["first_row"] + shard["rows"]) * 32)
        valid = document[part] >= 0
        assert valid.tolist() == [True] * shard["tokens"] + [False] * (shard["rows"] * 32 - shard["tokens"])
        assert (document[part][~valid] == -1).all()
        assert (ids[part][~valid] == eos).all()
        for number in dict.fromkeys(document[part][valid].tolist()):
            assert number >> 32 == at
            mine = ids[part][document[part] == number]
            assert mine[-1] == eos
            assert (mine[:-1] != eos).all()
            lengths[number] = len(mine)
    assert len(lengths) == manifest["counts"]["documents"] == 110
    assert int(ids.max()) == manifest["format"]["max_id"]


def test_precision_is_as_named(store: Store, ran: Ran) -> None:
    bits = ran.python["scores"]["format"]["mantissa_bits"]
    losses = store.values()["ref_loss"]
    assert bits == DTYPES[ran.python["scores"]["made_from"]["dtype"]]
    assert losses.dtype == np.float32
    mantissa = losses[losses >= 2**-14].view(np.uint32) & (2**23 - 1)
    assert not (mantissa & (2 ** (23 - bits) - 1)).any()
    assert (mantissa & (2 ** (24 - bits) - 1)).any()


def test_the_files_are_as_described(store: Store, ran: Ran) -> None:
    types = {"input_id": "INT32", "document": "INT64", "ref_loss": "FLOAT", "ref_entropy": "FLOAT"}
    for kind, manifest in (("tokens/corpus", ran.python["tokens"]), ("scores/curated", ran.python["scores"])):
        folder = store.folder / "run" / kind
        plan = json.loads((folder / "plan.json").read_bytes())
        assert plan["made_from"] == manifest["made_from"]
        for at, shard in enumerate(manifest["shards"]):
            with pq.ParquetFile(folder / shard["file"]) as file:
                metadata = file.metadata
            for c in range(metadata.num_columns):
                column = metadata.schema.column(c)
                assert column.physical_type == types[column.name]
                assert column.max_definition_level == 0
                for g in range(metadata.num_row_groups):
                    chunk = metadata.row_group(g).column(c)
                    other = {"document": "DELTA_BINARY_PACKED", "input_id": "RLE_DICTIONARY"}
                    assert other.get(column.name, "BYTE_STREAM_SPLIT") in chunk.encodings
                    assert (chunk.compression, chunk.is_stats_set) == ("ZSTD", False)
                    assert chunk.has_dictionary_page == (column.name == "input_id")
            rows = [metadata.row_group(g).num_rows // 32 for g in range(metadata.num_row_groups)]
            assert set(rows[:-1]) <= {manifest["group_rows"]}
            assert (sum(rows), len(rows)) == (shard["rows"], shard["groups"])
            text = metadata.metadata[b"slmctl"].decode()
            facts = json.loads(text[len("slmctl-footer-sha256:") + 64 :])["facts"]
            canonical = json.dumps(plan, sort_keys=True, separators=(",", ":")).encode()
            assert facts["binding"] == hashlib.sha256(canonical).hexdigest()
            assert (facts["rows"], facts["tokens"]) == (shard["rows"], shard["tokens"])
            if kind == "scores/curated":
                assert facts["token_shard"] == ran.python["tokens"]["shards"][at]["footer_sha256"]
            raw = (folder / shard["file"]).read_bytes()
            footer = raw[-(int.from_bytes(raw[-8:-4], "little") + 8) :]
            digits = re.search(rb"slmctl-footer-sha256:([0-9a-f]{64})", footer)
            assert digits is not None
            zeros = footer[: digits.start(1)] + b"0" * 64 + footer[digits.end(1) :]
            assert hashlib.sha256(zeros).hexdigest().encode() == digits[1]


def test_the_document_names_every_key(ran: Ran) -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    for manifest in (ran.python["tokens"], ran.python["scores"]):
        named = [*manifest, *manifest["shards"][0], *manifest["made_from"], *manifest["format"], *manifest["counts"]]
        assert [key for key in named if f"`{key}`" not in text] == []


@pytest.mark.parametrize("damage", ["one bit of data", "one bit of the footer", "one file too many", "the manifest"])
def test_the_documents_verification_finds_damage(store: Store, ran: Ran, tmp_path: Path, damage: str) -> None:
    folder = shutil.copytree(store.folder / "run" / "scores" / "curated", tmp_path / "copy")
    ran.python["verify"](folder)
    first = folder / "shard-00000.parquet"
    if damage == "one file too many":
        shutil.copy(first, folder / "shard-00009.parquet")
    elif damage == "the manifest":
        manifest = (folder / "manifest.json").read_text(encoding="utf-8")
        (folder / "manifest.json").write_text(manifest.replace('"predicted": ', '"predicted": 1'), encoding="utf-8")
    else:
        raw = bytearray(first.read_bytes())
        raw[100 if "data" in damage else -100] ^= 1
        first.write_bytes(raw)
    with pytest.raises(AssertionError):
        ran.python["verify"](folder)


def test_large_vocabularies_are_read_as_well(tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(0, 2**18, 1000).astype(np.int32)
    with ShardWriter(Folder.at(tmp_path), "shard-00000.parquet", {"input_id": "int32"}, 256) as writer:
        for at in range(0, 1000, 256):
            writer.write(input_id=ids[at : at + 256])
        writer.facts = {"rows": 1, "tokens": 1000}
    file = tmp_path / "shard-00000.parquet"
    np.testing.assert_array_equal(duckdb.connect().execute(f"SELECT * FROM '{file}'").fetchnumpy()["input_id"], ids)
    np.testing.assert_array_equal(pl.read_parquet(file)["input_id"].to_numpy(), ids)


def test_which_tools_check_page_checksums_is_as_described(tmp_path: Path) -> None:
    """One flipped bit in the data of each column: pyarrow finds it when asked to, the others give another value."""
    rng = np.random.default_rng(0)
    columns = {"input_id": rng.integers(0, 2**16, 4096), "ref_loss": rng.random(4096, np.float32)}
    with ShardWriter(Folder.at(tmp_path), "x", {"input_id": "uint16", "ref_loss": "float32"}, 4096) as writer:
        writer.write(**columns)
        writer.facts = {"rows": 1, "tokens": 4096}
    raw = (tmp_path / "x").read_bytes()
    for at, name in enumerate(columns):
        chunk = pq.read_metadata(tmp_path / "x").row_group(0).column(at)
        damaged = bytearray(raw)
        damaged[chunk.data_page_offset + 3000] ^= 1
        file = tmp_path / f"{name}.parquet"
        file.write_bytes(damaged)
        found = {
            "DuckDB": duckdb.connect().execute(f"SELECT {name} FROM '{file}'").fetchnumpy()[name],
            "Polars": pl.read_parquet(file)[name].to_numpy(),
            "pyarrow": pq.read_table(file)[name].to_numpy(),
            "pandas": pd.read_parquet(file)[name].to_numpy(),
            "datasets": np.array(datasets.Dataset.from_parquet(str(file), cache_dir=str(tmp_path / "cache"))[name][:]),
        }
        for tool, values in found.items():
            assert (values != columns[name]).sum() == 1, tool
        for read in (lambda **k: pq.read_table(file, **k), lambda **k: pq.ParquetFile(file, **k).read()):  # noqa: B023
            with pytest.raises(OSError, match="CRC"):
                read(page_checksum_verification=True)

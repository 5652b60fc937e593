"""Column chunks: what is encoded is decoded, by slmctl as by pyarrow, and takes the room that it may."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmctl.store import chunks, thrift
from slmctl.store.chunks import MAX_ID, decode, encode
from slmctl.store.footer import footer
from slmctl.store.reader import RowReader, ScoreSet, TokenSet
from slmctl.store.shard_file import ShardFile
from slmctl.store.shard_writer import ShardWriter
from slmctl.system.local_storage import LocalFolder

GOLDEN = Path(__file__).parent / "golden"


def as_file(groups: list[np.ndarray]) -> pq.ParquetFile:
    """A file of one column `x`, one row group an array, opened by pyarrow."""
    data, described = b"PAR1", []
    for values in groups:
        pages, chunk = encode(values)
        described.append((len(data), [chunk]))
        data += pages
    data += footer({"x": groups[0].dtype}, described, {"key": b"value"})
    return pq.ParquetFile(io.BytesIO(data), page_checksum_verification=True)


def unpacked(values: np.ndarray) -> np.ndarray | None:
    """By slmctl's own decoder; None where it leaves that to pyarrow."""
    pages, chunk = encode(values)
    about = as_file([values]).metadata.row_group(0).column(0)
    out = np.full_like(values, 7)
    return out if decode(memoryview(pages), about.encodings, chunk.dictionary, out) else None


@settings(max_examples=80, deadline=None)
@given(st.data(), st.sampled_from([("uint16", 2**16 - 1), ("int32", MAX_ID), ("int32", 300)]))
def test_ids_come_back_from_both_decoders(data: st.DataObject, kind: tuple[str, int]) -> None:
    dtype, most = kind
    some = st.integers(0, most) | st.sampled_from([0, 1, 255, 256, most])
    values = np.array(data.draw(st.lists(some, min_size=1, max_size=40)), dtype)
    file = as_file([values])
    assert file.metadata.row_group(0).column(0).encodings == ("PLAIN", "RLE", "RLE_DICTIONARY")
    assert file.read()["x"].to_numpy().tolist() == values.tolist()
    ours = unpacked(values)
    assert ours is not None
    assert ours.tolist() == values.tolist()


@pytest.mark.parametrize("odd", [-1, MAX_ID + 1, 2**31 - 1, -(2**31)])
def test_ids_that_would_need_a_huge_dictionary_are_stored_plainly(odd: int) -> None:
    values = np.array([3, odd, 5], np.int32)
    about = as_file([values]).metadata.row_group(0).column(0)
    assert "PLAIN" in about.encodings
    assert not about.has_dictionary_page
    assert about.total_uncompressed_size < 200
    assert as_file([values]).read()["x"].to_pylist() == [3, odd, 5]
    assert unpacked(values) is None


def test_each_id_that_occurs_is_at_its_own_place_in_the_dictionary() -> None:
    ids = np.array([9, 3, 3, 4, 12], np.uint16)
    assert chunks._dictionary(ids).tolist() == [0, 0, 0, 3, 4, 4, 4, 4, 4, 9, 9, 9, 12]


@pytest.mark.parametrize("dtype", ["uint16", "int32", "float32"])
def test_split_bytes_as_older_sets_have_them_are_joined(dtype: str) -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 2**32, 1001, dtype=np.uint32).view(np.float32) if dtype == "float32" else None
    if values is None:
        values = rng.integers(0, np.iinfo(dtype).max, 1001, endpoint=True).astype(dtype)
    pages, _ = chunks._by_pyarrow(values, chunks.BYTE_STREAM_SPLIT)
    out = np.empty_like(values)
    assert decode(memoryview(pages), ("BYTE_STREAM_SPLIT", "RLE"), 0, out)
    assert out.tobytes() == values.tobytes()


def test_indices_of_another_width_or_number_are_refused() -> None:
    pages, chunk = encode(np.arange(16, dtype=np.uint16))
    for out in (np.empty(16, np.int32), np.empty(24, np.uint16), np.empty(2**20, np.uint16)):
        with pytest.raises(ValueError, match="wanted"):
            decode(memoryview(pages), ("RLE_DICTIONARY",), chunk.dictionary, out)


def test_ids_and_losses_take_no_more_than_a_tenth_more_than_split_bytes() -> None:
    """Of made-up ids, which nothing but their frequencies makes smaller: of real text both together take less."""
    rng = np.random.default_rng(0)
    n = 2**18
    ids = np.minimum(rng.zipf(1.2, n) - 1, 49_151).astype(np.uint16)
    losses = (rng.gamma(0.55, 3.6, n) + rng.exponential(0.02, n)).astype(np.float16).astype(np.float32)
    pages, _ = encode(ids)
    split, _ = chunks._by_pyarrow(ids, chunks.BYTE_STREAM_SPLIT)
    more, _ = encode(losses)
    assert len(pages) + len(more) <= 1.1 * (len(split) + len(more))


def test_thrifts_numbers_and_long_lists() -> None:
    assert [thrift.varint(n) for n in (0, 127, 128, 300, 2**32)] == [
        b"\0",
        b"\x7f",
        b"\x80\1",
        b"\xac\2",
        b"\x80\x80\x80\x80\x10",
    ]
    assert [thrift.i64(n)[1] for n in (0, -1, 1, -2, 2, -(2**31))] == [b"\0", b"\1", b"\2", b"\3", b"\4", b"\xff\xff\xff\xff\x0f"]
    assert thrift.i32s([1, 2]) == (9, b"\x25\2\4")
    groups = [np.arange(i + 1, dtype=np.int32) for i in range(40)]  # a list of 15 and more has another head
    file = as_file(groups)
    assert file.num_row_groups == 40
    assert [file.read_row_group(g)["x"].to_pylist() for g in range(40)] == [list(range(g + 1)) for g in range(40)]
    assert file.metadata.metadata == {b"key": b"value"}
    assert file.metadata.num_rows == sum(range(41))


def test_the_footers_sizes_are_those_of_the_pages(tmp_path: Path) -> None:
    """pyarrow finds its way by offsets alone; others by sizes."""
    n = 5000
    columns = {"input_id": np.arange(n) % 700, "document": np.zeros(n), "ref_loss": np.ones(n)}
    types = {"input_id": "uint16", "document": "int64", "ref_loss": "float32"}
    with ShardWriter(LocalFolder(tmp_path), "x", types, n) as writer:
        for _ in range(2):
            writer.write(**columns)
        writer.facts = {"rows": 1, "tokens": 1}
    metadata = pq.read_metadata(tmp_path / "x")
    at = 4
    for g in range(2):
        group = metadata.row_group(g)
        assert group.total_byte_size == sum(group.column(c).total_uncompressed_size for c in range(3))
        for c in range(3):
            chunk = group.column(c)
            assert (chunk.dictionary_page_offset or chunk.data_page_offset) == at
            assert (chunk.num_values, chunk.compression) == (n, "ZSTD")
            at += chunk.total_compressed_size
    assert at + metadata.serialized_size + 8 == (tmp_path / "x").stat().st_size
    ids = metadata.row_group(0).column(0)
    assert ids.total_uncompressed_size == pytest.approx(700 * 4 + n * 2, abs=100)


# --- sets of each schema version ---

IDS = [[0, 1, 2, 65535], [7, 7, 7, 7], [9, 300, 256, 1], [5, 0, 0, 0], [8, 9, 10, 11], [12, 3, 3, 3]]
DOCUMENTS = [[0, 0, 0, 1], [1, 1, 1, 1], [1, 1, 2, 2], [2, -1, -1, -1], [2**32] * 3 + [2**32 + 1], [2**32 + 1, -1, -1, -1]]
LOSSES = [[-1, 0.5, 1.25, 0], [-1, 2, 3, 4], [-1, 0.0625, 8, 1], [-1] * 4, [-1, 1, 1, 11.5], [-1] * 4]


@pytest.mark.parametrize(("version", "encoding"), [(2, "BYTE_STREAM_SPLIT"), (3, "RLE_DICTIONARY")])
def test_sets_of_each_schema_version_are_read(version: int, encoding: str) -> None:
    """As the builds that wrote them left them: two shards, of two row groups and one."""
    folder = GOLDEN / f"schema-{version}"
    assert json.loads((folder / "tokens/manifest.json").read_bytes())["schema_version"] == version
    assert encoding in pq.read_metadata(folder / "tokens/shard-00000.parquet").row_group(0).column(0).encodings
    tokens = TokenSet(folder / "tokens")
    scores = ScoreSet(folder / "scores", tokens)
    rows = RowReader(tokens, scores).fetch(np.arange(6))
    assert rows.ids_BT.dtype == np.uint16
    assert rows.ids_BT.tolist() == IDS
    assert rows.document_BT.tolist() == DOCUMENTS
    assert rows.ref_loss_BT is not None
    assert rows.ref_loss_BT.tolist() == LOSSES
    for opened in (tokens, scores):
        for shard in opened.manifest.shards:
            ShardFile(opened.folder, shard.file, shard).verify()

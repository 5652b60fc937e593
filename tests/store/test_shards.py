"""One shard on disk: what is written is read, and damage never passes for values."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from slmctl.errors import CorruptError
from slmctl.store import shards as module
from slmctl.store.shards import ShardFile, ShardWriter, rows_per_group, shard_facts, whole_shard

TYPES = {"input_id": "uint16", "document": "int64"}
Groups = list[dict[str, np.ndarray]]


def write(path: Path, groups: Groups, types: dict[str, str], facts: dict[str, object] | None = None) -> None:
    with ShardWriter(path, types, max((len(next(iter(g.values()))) for g in groups), default=1)) as writer:
        for group in groups:
            writer.write(**group)
        writer.facts = facts or {}


def read(path: Path, columns: list[str]) -> Groups:
    file = ShardFile(path)
    try:
        return [file.read(g, columns) for g in range(file.file.num_row_groups)]
    finally:
        file.close()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes, Groups]:
    """A shard of two row groups, its bytes and its values; ids reach above 2^15, where a sign would show."""
    rng = np.random.default_rng(0)
    groups = [
        {"input_id": rng.integers(0, 2**16, 48).astype(np.uint16), "document": np.repeat(np.arange(4), 12) + g * 2**33}
        for g in range(2)
    ]
    path = tmp_path_factory.mktemp("shard") / "shard.parquet"
    write(path, groups, TYPES, {"binding": "x"})
    return path, path.read_bytes(), groups


@settings(max_examples=40, deadline=None)
@given(st.data(), st.sampled_from(["uint16", "int32", "int64", "float16", "float32"]))
def test_every_value_comes_back_bit_for_bit(data: st.DataObject, kind: str) -> None:
    import tempfile

    sizes = data.draw(st.lists(st.integers(1, 50), max_size=4))
    groups = [{"x": data.draw(hnp.arrays(kind, n, elements=hnp.from_dtype(np.dtype(kind))))} for n in sizes]
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "s.parquet", groups, {"x": kind})
        got = read(Path(folder) / "s.parquet", ["x"])
    assert [g["x"].dtype for g in got] == [np.dtype(kind)] * len(groups)
    assert [g["x"].tobytes() for g in got] == [g["x"].tobytes() for g in groups]


def test_any_parquet_reader_sees_flat_required_columns_and_one_page_a_group(tmp_path: Path) -> None:
    n = 50_000  # beyond the 20,000 rows at which pyarrow cuts pages by default
    path = tmp_path / "s.parquet"
    write(path, [{"input_id": np.arange(n) % 7, "document": np.zeros(n)}] * 2, TYPES)
    with pq.ParquetFile(path) as file:
        assert [f.nullable for f in file.schema_arrow] == [False, False]
        assert file.num_row_groups == 2
        assert [file.metadata.row_group(g).num_rows for g in range(2)] == [n, n]
        assert file.metadata.row_group(0).column(0).compression == "ZSTD"
        assert not file.metadata.row_group(0).column(0).has_dictionary_page
    assert pq.read_table(path)["input_id"].to_pylist() == [i % 7 for i in range(n)] * 2


def test_facts_are_read_back_and_strangers_have_none(tmp_path: Path, small: tuple[Path, bytes, Groups]) -> None:
    path, raw, _ = small
    assert shard_facts(path) == {"binding": "x", "groups": 2}
    assert shard_facts(tmp_path / "absent.parquet") is None
    (tmp_path / "cut.parquet").write_bytes(raw[:-9])
    (tmp_path / "text.parquet").write_text("no parquet")
    pq.write_table(pq.read_table(path).replace_schema_metadata(None), tmp_path / "other.parquet")
    for name in ("cut", "text", "other"):
        assert shard_facts(tmp_path / f"{name}.parquet") is None


def test_rows_per_group_is_at_least_one_and_about_2_to_18_tokens() -> None:
    assert [rows_per_group(t) for t in (2, 128, 2048, 2**18, 2**20)] == [2**17, 2048, 128, 1, 1]


def values_or_refusal(path: Path, raw: bytes, want: Groups) -> str:
    """`refused`, or `equal`, or how the values differ."""
    path.write_bytes(raw)
    try:
        got = read(path, list(TYPES))
    except CorruptError as e:
        return "refused" if str(path) in str(e) else "refused without naming the file"
    except Exception as e:  # a traceback where a message is due
        return f"raised {type(e).__name__}"
    same = len(got) == len(want) and all(np.array_equal(a[n], b[n]) for a, b in zip(got, want, strict=True) for n in TYPES)
    return "equal" if same else "WRONG VALUES"


def test_a_flipped_byte_in_the_pages_is_never_read_as_values(tmp_path: Path, small: tuple[Path, bytes, Groups]) -> None:
    """Page checksums alone, without the manifest's hash."""
    _, raw, want = small
    footer = len(raw) - 8 - struct.unpack("<I", raw[-8:-4])[0]
    outcomes: dict[int, str] = {}
    for at in range(footer):
        flipped = bytearray(raw)
        flipped[at] ^= 1 << (at % 8)
        outcomes[at] = values_or_refusal(tmp_path / "s.parquet", bytes(flipped), want)
    assert {at: o for at, o in outcomes.items() if o not in ("equal", "refused")} == {}
    assert sum(o == "refused" for o in outcomes.values()) > footer / 2


@pytest.mark.parametrize("bit", [16, 32, 128])
def test_a_shard_with_a_flipped_byte_in_its_footer_is_never_adopted_with_wrong_values(
    tmp_path: Path, small: tuple[Path, bytes, Groups], bit: int
) -> None:
    """No page checksum covers the footer (types, names, row counts): adoption compares the values' own checksums."""
    _, raw, want = small
    footer = len(raw) - 8 - struct.unpack("<I", raw[-8:-4])[0]
    outcomes: dict[int, str] = {}
    for at in range(footer, len(raw)):
        flipped = bytearray(raw)
        flipped[at] ^= bit
        path = tmp_path / "s.parquet"
        path.write_bytes(bytes(flipped))
        facts = whole_shard(path, {"binding": "x"})
        refused = facts is None
        outcomes[at] = "refused" if refused else values_or_refusal(path, bytes(flipped), want)
        assert refused or facts == {"binding": "x", "groups": 2}
    assert {at: o for at, o in outcomes.items() if o not in ("equal", "refused")} == {}


def test_a_shard_cut_off_anywhere_is_refused(tmp_path: Path, small: tuple[Path, bytes, Groups]) -> None:
    _, raw, want = small
    path = tmp_path / "s.parquet"
    outcomes = {size: values_or_refusal(path, raw[:size], want) for size in range(0, len(raw), 3)}
    assert set(outcomes.values()) == {"refused"}, {k: v for k, v in outcomes.items() if v != "refused"}
    assert shard_facts(path) is None


def test_a_missing_shard_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(CorruptError, match=r"absent\.parquet cannot be read"):
        ShardFile(tmp_path / "absent.parquet")


def test_what_reads_back_otherwise_than_written_is_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    true = module._read

    def lying(*args: object) -> dict[str, np.ndarray]:
        group = {n: c.copy() for n, c in true(*args).items()}  # type: ignore[arg-type]
        group["input_id"][3] += 1
        return group

    monkeypatch.setattr(module, "_read", lying)
    with pytest.raises(CorruptError, match="read back differs"):
        write(tmp_path / "s.parquet", [{"input_id": np.arange(9), "document": np.arange(9)}], TYPES)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("before", [False, True])
def test_an_error_while_writing_leaves_no_file_and_an_older_one_as_it_was(
    tmp_path: Path, small: tuple[Path, bytes, Groups], error: type[BaseException], before: bool
) -> None:
    path = tmp_path / "s.parquet"
    if before:
        shutil.copy(small[0], path)

    def half() -> None:
        with ShardWriter(path, TYPES, 9) as writer:
            writer.write(input_id=np.arange(9), document=np.arange(9))
            raise error

    with pytest.raises(error):
        half()
    assert [f.read_bytes() for f in tmp_path.iterdir()] == ([small[1]] if before else [])

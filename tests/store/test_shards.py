"""One shard on disk: what is written is read, and damage never passes for values."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from damage import cuts, flips, insertions
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from slmctl.store import shard_file, shard_writer
from slmctl.store.manifest import Shard
from slmctl.store.shard_file import ShardFile, whole_shard
from slmctl.store.shard_format import rows_per_group, shard_name
from slmctl.store.shard_writer import ShardWriter
from slmctl.system.errors import CorruptError
from slmctl.system.local_storage import LocalFolder

TYPES = {"input_id": "uint16", "document": "int64"}
NAME = shard_name(0)
FACTS = {"rows": 4, "tokens": 96, "binding": "x", "counts": {"documents": 3, "漢": [1, None]}}
Groups = list[dict[str, np.ndarray]]


def write(directory: Path, groups: Groups, types: dict[str, str], facts: dict[str, Any] | None = None) -> ShardWriter:
    size = max((len(next(iter(g.values()))) for g in groups), default=1)
    with ShardWriter(LocalFolder(directory), NAME, types, size) as writer:
        for group in groups:
            writer.write(**group)
        writer.facts = facts or {"rows": 0, "tokens": 0}
    return writer


def read(directory: Path, columns: list[str], wanted: Shard | None = None) -> Groups:
    file = ShardFile(LocalFolder(directory), NAME, wanted)
    try:
        return [file.read(g, columns) for g in range(file.groups)]
    finally:
        file.close()


def equal(got: Groups, want: Groups) -> bool:
    return len(got) == len(want) and all(
        list(a) == list(b) and all(a[n].dtype == b[n].dtype and np.array_equal(a[n], b[n]) for n in b)
        for a, b in zip(got, want, strict=True)
    )


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Shard, bytes, Groups]:
    """The entry of a shard of two row groups, its bytes and its values; ids reach above 2^15, where a sign would show."""
    rng = np.random.default_rng(0)
    groups = [
        {"input_id": rng.integers(0, 2**16, 48).astype(np.uint16), "document": np.repeat(np.arange(4), 12) + g * 2**33}
        for g in range(2)
    ]
    directory = tmp_path_factory.mktemp("shard")
    writer = write(directory, groups, TYPES, FACTS)
    return writer.shard, (directory / NAME).read_bytes(), groups


@settings(max_examples=40, deadline=None)
@given(st.data(), st.sampled_from(["uint16", "int32", "int64", "float16", "float32"]))
def test_every_value_comes_back_bit_for_bit(data: st.DataObject, kind: str) -> None:
    sizes = data.draw(st.lists(st.integers(1, 50), max_size=4))
    groups = [{"x": data.draw(hnp.arrays(kind, n, elements=hnp.from_dtype(np.dtype(kind))))} for n in sizes]
    with tempfile.TemporaryDirectory() as folder:
        shard = write(Path(folder), groups, {"x": kind}).shard
        got = read(Path(folder), ["x"], shard)
    assert [g["x"].dtype for g in got] == [np.dtype(kind)] * len(groups)
    assert [g["x"].tobytes() for g in got] == [g["x"].tobytes() for g in groups]


def test_any_parquet_reader_sees_flat_required_columns_and_one_page_a_group(tmp_path: Path) -> None:
    n = 50_000  # beyond the 20,000 rows at which pyarrow cuts pages by default
    write(tmp_path, [{"input_id": np.arange(n) % 7, "document": np.zeros(n)}] * 2, TYPES)
    with pq.ParquetFile(tmp_path / NAME, page_checksum_verification=True) as file:
        assert [f.nullable for f in file.schema_arrow] == [False, False]
        assert file.num_row_groups == 2
        assert [file.metadata.row_group(g).num_rows for g in range(2)] == [n, n]
        assert file.metadata.row_group(0).column(0).compression == "ZSTD"
    assert pq.read_table(tmp_path / NAME)["input_id"].to_pylist() == [i % 7 for i in range(n)] * 2


def test_facts_survive_and_the_writer_describes_the_file(tmp_path: Path, small: tuple[Shard, bytes, Groups]) -> None:
    shard, raw, groups = small
    writer = write(tmp_path, groups, TYPES, FACTS)
    assert (tmp_path / NAME).read_bytes() == raw, "the same content makes other bytes"
    assert writer.won
    assert writer.shard == shard
    assert (shard.file, shard.rows, shard.groups, shard.tokens, shard.bytes) == (NAME, 4, 2, 96, len(raw))
    file = ShardFile(LocalFolder(tmp_path), NAME, shard)
    assert file.facts == FACTS
    assert file.columns == list(TYPES)
    assert file.described() == shard


def test_a_strangers_parquet_or_no_parquet_is_refused_and_never_adopted(
    tmp_path: Path, small: tuple[Shard, bytes, Groups]
) -> None:
    _, raw, _ = small
    folder = LocalFolder(tmp_path)
    (tmp_path / "cut").write_bytes(raw[:-9])
    (tmp_path / "text").write_text("no parquet, though long enough to hold a footer's length")
    (tmp_path / NAME).write_bytes(raw)
    table = pq.read_table(tmp_path / NAME)
    pq.write_table(table.replace_schema_metadata(None), tmp_path / "other")
    pq.write_table(table, tmp_path / "recompressed", use_dictionary=False)  # keeps the key in its footer
    for name in ("cut", "text", "other", "recompressed"):
        with pytest.raises(CorruptError, match=f"{tmp_path}/{name} is broken"):
            ShardFile(folder, name)
        assert whole_shard(folder, name, {}) is None
    assert whole_shard(folder, "absent", {}) is None
    assert whole_shard(folder, NAME, {}) is not None


def test_a_shard_is_adopted_only_where_its_facts_are_the_wanted_ones(tmp_path: Path, small: tuple[Shard, bytes, Groups]) -> None:
    shard, raw, _ = small
    folder = LocalFolder(tmp_path)
    (tmp_path / NAME).write_bytes(raw)
    assert whole_shard(folder, NAME, {"binding": "x", "rows": 4}) == shard
    for bound in ({"binding": "y"}, {"binding": "x", "rows": 5}, {"token_shard": None, "absent": 1}):
        assert whole_shard(folder, NAME, bound) is None


def test_rows_per_group_is_at_least_one_and_about_2_to_18_tokens() -> None:
    assert [rows_per_group(t) for t in (2, 128, 2048, 2**18, 2**20)] == [2**17, 2048, 128, 1, 1]


def test_a_missing_shard_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(CorruptError, match=r"shard-00000\.parquet does not exist"):
        ShardFile(LocalFolder(tmp_path), NAME)


def test_a_column_that_is_not_there_is_refused_by_name(tmp_path: Path, small: tuple[Shard, bytes, Groups]) -> None:
    (tmp_path / NAME).write_bytes(small[1])
    with pytest.raises(CorruptError, match=r"shard-00000\.parquet has no column ref_loss; it has input_id, document"):
        read(tmp_path, ["input_id", "ref_loss"])


def test_a_shard_of_another_version_of_pyarrow_is_read_and_adopted() -> None:
    """Written by pyarrow 23: what a footer says must not hang on how some version of pyarrow lists it."""
    folder = LocalFolder(Path(__file__).parent / "golden")
    name = "by-pyarrow-23.parquet"
    shard = whole_shard(folder, name, {"binding": "x"})
    assert shard == Shard(name, 0, 2, 2, 6, 2574, shard.footer_sha256 if shard else "")
    file = ShardFile(folder, name, shard)
    for g in range(2):
        values = file.read(g, file.columns)
        assert {n: (str(c.dtype), c.tolist()) for n, c in values.items()} == {
            "input_id": ("uint16", [g, g + 1, g + 2, 2**16 - 1]),
            "document": ("int64", [5, 5, 2**40, -1]),
            "ref_loss": ("float32", [0.0, 0.5, 1.0, -1.0]),
            "half": ("float16", [0.0, 0.25, 0.5, 65504.0]),
        }


# --- damage, without a manifest: a file vouches for itself ---


def is_adopted(directory: Path) -> bool:
    return whole_shard(LocalFolder(directory), NAME, {}) is not None


@pytest.mark.parametrize("groups", [2, 0])
def test_no_single_flipped_bit_is_adopted(tmp_path: Path, groups: int) -> None:
    """Anywhere: leading magic, values, footer, its length, trailing magic; of a shard without rows too."""
    values = {"input_id": np.arange(4), "document": np.array([5, 5, 6, -1])}
    shard = write(tmp_path, [values] * groups, TYPES, {"rows": groups, "tokens": 3 * groups}).shard
    raw = (tmp_path / NAME).read_bytes()
    assert whole_shard(LocalFolder(tmp_path), NAME, {}) == shard
    adopted = {where: is_adopted(tmp_path) for where in flips(tmp_path / NAME)}
    assert len(adopted) == 8 * len(raw)
    assert [where for where, is_so in adopted.items() if is_so] == []


@pytest.mark.parametrize("change", [cuts, insertions])
def test_a_shard_of_any_other_length_is_not_adopted(tmp_path: Path, small: tuple[Shard, bytes, Groups], change: Any) -> None:
    _, raw, _ = small
    (tmp_path / NAME).write_bytes(raw)
    assert is_adopted(tmp_path)
    assert [at for at in change(tmp_path / NAME) if is_adopted(tmp_path)] == []
    assert is_adopted(tmp_path)
    (tmp_path / NAME).write_bytes(raw + raw)
    assert not is_adopted(tmp_path)


def test_a_footer_is_verified_before_it_is_parsed(
    tmp_path: Path, small: tuple[Shard, bytes, Groups], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flipped bit in the code of a compression makes pyarrow abort the process, which no `except` stops."""
    parsed: list[object] = []
    true = pq.ParquetFile
    monkeypatch.setattr(shard_file.pq, "ParquetFile", lambda *a, **k: (parsed.append(a), true(*a, **k))[1])
    _, raw, _ = small
    (tmp_path / NAME).write_bytes(raw)
    assert is_adopted(tmp_path)
    footer = len(raw) - 8 - int.from_bytes(raw[-8:-4], "little")
    for at, _ in flips(tmp_path / NAME):
        parsed.clear()
        assert not is_adopted(tmp_path)
        assert bool(parsed) == (at < footer), at


# --- writing ---


def test_what_reads_back_otherwise_than_written_is_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    true = shard_writer.decode_group

    def lying(*args: Any) -> dict[str, np.ndarray]:
        group = {n: c.copy() for n, c in true(*args).items()}
        group["input_id"][3] += 1
        return group

    monkeypatch.setattr(shard_writer, "decode_group", lying)
    with pytest.raises(CorruptError, match=r"shard-00000\.parquet: what was read back is not what was written"):
        write(tmp_path, [{"input_id": np.arange(9), "document": np.arange(9)}], TYPES)
    assert list(tmp_path.iterdir()) == []


def test_bytes_that_change_before_they_are_read_back_are_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a disk that loses a bit: Parquet's own checksum of the page finds it."""
    true = ShardWriter._finish

    def losing_a_bit(self: ShardWriter) -> None:
        data = bytearray(self._temporary.read_bytes())
        data[40] ^= 1
        self._temporary.write_bytes(data)
        true(self)

    monkeypatch.setattr(ShardWriter, "_finish", losing_a_bit)
    with pytest.raises((CorruptError, OSError)):
        write(tmp_path, [{"input_id": np.arange(99), "document": np.arange(99)}], TYPES)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("before", [False, True])
def test_an_error_while_writing_leaves_no_file_and_an_older_one_as_it_was(
    tmp_path: Path, small: tuple[Shard, bytes, Groups], error: type[BaseException], before: bool
) -> None:
    if before:
        (tmp_path / NAME).write_bytes(small[1])

    def half() -> None:
        with ShardWriter(LocalFolder(tmp_path), NAME, TYPES, 9) as writer:
            writer.write(input_id=np.arange(9), document=np.arange(9))
            raise error

    with pytest.raises(error):
        half()
    assert [f.read_bytes() for f in tmp_path.iterdir()] == ([small[1]] if before else [])


def test_facts_that_lack_the_rows_are_an_error_that_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="rows"):
        write(tmp_path, [], TYPES, {"tokens": 1})
    assert list(tmp_path.iterdir()) == []


def test_the_first_to_publish_stays_and_the_second_is_told(tmp_path: Path, small: tuple[Shard, bytes, Groups]) -> None:
    shard, raw, groups = small
    with ShardWriter(LocalFolder(tmp_path), NAME, TYPES, 48) as second:
        first = write(tmp_path, groups, TYPES, FACTS)
        second.write(input_id=np.arange(48), document=np.arange(48))
        second.facts = {"rows": 1, "tokens": 1}
    assert first.won
    assert not second.won
    assert second.shard == first.shard == shard, "the one that is there is described"
    assert [f.read_bytes() for f in tmp_path.iterdir()] == [raw]

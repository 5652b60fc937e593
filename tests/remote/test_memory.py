"""The same on fsspec's memory://, and on file systems that know of no conditional put."""

from __future__ import annotations

import gzip
import io
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.spec import AbstractFileSystem

from slmctl.config.data import SourceConfig
from slmctl.corpus import shard_jobs
from slmctl.corpus.documents import Tally, documents
from slmctl.corpus.slices import plan_slices
from slmctl.corpus.source_files import files_of
from slmctl.stages.prepare import look as look_at_tokens
from slmctl.stages.prepare import prepare
from slmctl.stages.score import look as look_at_scores
from slmctl.stages.score import score
from slmctl.store import shard_writer
from slmctl.store.reader import RowReader, ScoreSet, TokenSet
from slmctl.store.shard_file import ShardFile
from slmctl.store.shard_writer import ShardWriter
from slmctl.system.errors import CorruptError, InputError, MismatchError, SlmError
from slmctl.system.local_storage import LocalFolder
from slmctl.system.storage import Folder
from slmctl.system.temporaries import temporary_beside
from slmctl.workspace.workers import Share

Files = dict[str, bytes]


class Memory:
    """What lies on memory://, by path."""

    fs = MemoryFileSystem()

    def put(self, path: str, body: bytes) -> None:
        self.fs.pipe_file(f"/{path}", body)

    def get(self, path: str) -> bytes:
        return self.fs.cat_file(f"/{path}")

    def delete(self, path: str) -> None:
        self.fs.rm_file(f"/{path}")

    def files(self, under: str = "") -> Files:
        found = self.fs.find(f"/{under}")
        return {p.removeprefix(f"/{under}").lstrip("/"): self.fs.cat_file(p) for p in found}

    def written(self, under: str) -> dict[str, Any]:
        return {p: info["created"] for p, info in self.fs.find(f"/{under}", detail=True).items()}


@pytest.fixture
def memory() -> Iterator[Memory]:
    yield Memory()
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


@pytest.fixture
def stored(memory: Memory, finished: Any) -> Memory:
    """memory://run holds a copy of the local run's sets."""
    for path, body in {**finished.files("tokens"), **finished.files("scores")}.items():
        memory.put(f"run/{path}", body)
    return memory


# --- texts ---

LINES = b"".join(json.dumps({"text": f"document {i} " * (i % 9 + 1)}).encode() + b"\n" for i in range(40))


def test_texts_are_read(memory: Memory) -> None:
    table = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([json.loads(line) for line in LINES.splitlines()]), table, row_group_size=9)
    wanted = [json.loads(line)["text"] for line in LINES.splitlines()]
    for name, body in {"a.jsonl": LINES, "a.jsonl.gz": gzip.compress(LINES), "a.parquet": table.getvalue()}.items():
        memory.put(f"texts/{name}", body)
        source = SourceConfig(path=[f"memory://texts/{name}"])
        pieces = plan_slices([source], 500)
        assert len(pieces) > 2
        assert [t for p in pieces for _, t in documents(source, p, Tally())] == wanted


def test_what_is_not_there_is_named(memory: Memory) -> None:
    memory.put("texts/a.jsonl", LINES)
    assert files_of(SourceConfig(path=["memory://texts/*.jsonl"])) == ["memory:///texts/a.jsonl"]
    for path, why in {"texts/b.jsonl": "does not exist", "*/b.jsonl": "matches no file", "texts": "is a folder"}.items():
        with pytest.raises(InputError) as e:
            files_of(SourceConfig(path=[f"memory://{path}"]))
        assert str(e.value).startswith(f"memory://{path} {why}")


# --- sets ---


@pytest.mark.parametrize("place", ["memory://run", "memory://"])
def test_the_shards_of_three_workers_are_those_of_a_local_run(memory: Memory, finished: Any, place: str) -> None:
    for index in (1, 0, 2):
        prepare(finished.opened(store_dir=place), Share(index, 3))
    for index in (2, 1, 0):
        score(finished.opened(store_dir=place), share=Share(index, 3))
    assert memory.files(place.removeprefix("memory://")) == {**finished.files("tokens"), **finished.files("scores")}
    tokens = TokenSet(Folder.at(place) / "tokens" / "corpus")
    near = TokenSet(finished.root / "run" / "tokens" / "corpus")
    losses = [
        RowReader(t, ScoreSet(p / "scores" / "curated", t)).fetch(np.arange(t.rows)).ref_loss_BT
        for t, p in ((tokens, Folder.at(place)), (near, finished.root / "run"))
    ]
    np.testing.assert_array_equal(*losses)


@pytest.mark.parametrize("where", ["store", "texts"])
def test_no_other_process_is_asked_for_what_is_in_this_one_s_memory(
    memory: Memory, finished: Any, where: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("other processes were started")

    monkeypatch.setattr(shard_jobs, "WORTH_A_PROCESS", 1)
    monkeypatch.setattr(shard_jobs, "cores", lambda: 4 * shard_jobs.THREADS_A_PROCESS)
    monkeypatch.setattr(shard_jobs, "spread", refuse)
    with pytest.raises(AssertionError):
        prepare(finished.opened(store_dir=str(tmp_path / "local")))
    if where == "store":
        workspace = finished.opened(store_dir="memory://run")
    else:
        memory.put("corpus.jsonl", (finished.root / "corpus.jsonl").read_bytes())
        workspace = finished.opened(data__corpus={"path": "memory://corpus.jsonl"}, output_dir=str(tmp_path / "run"))
    prepare(workspace)
    look_at_tokens(workspace, "verify")


def test_a_second_run_writes_nothing(stored: Memory, finished: Any, capsys: pytest.CaptureFixture[str]) -> None:
    before = stored.written("run")
    prepare(finished.opened(store_dir="memory://run"))
    score(finished.opened(store_dir="memory://run"))
    assert stored.written("run") == before
    said = capsys.readouterr().err
    assert "prepare corpus: complete, skipped" in said
    assert "score curated: complete, skipped" in said


def test_a_set_made_from_other_inputs_is_refused_and_left_alone(stored: Memory, finished: Any, tmp_path: Path) -> None:
    before = stored.written("run")
    with pytest.raises(MismatchError, match="memory://run/tokens/curated holds a set that was made from other inputs"):
        prepare(finished.opened(store_dir="memory://run", data__seq_len=16, output_dir=str(tmp_path)))
    assert stored.written("run") == before


def change(path: str, to: Callable[[bytes], bytes]) -> Callable[[Memory], None]:
    return lambda memory: memory.put(path, to(memory.get(path)))


FIRST, SECOND = "run/scores/curated/shard-00000.parquet", "run/scores/curated/shard-00001.parquet"


def swap(memory: Memory) -> None:
    first, second = memory.get(FIRST), memory.get(SECOND)
    memory.put(FIRST, second)
    memory.put(SECOND, first)


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (change(FIRST, lambda b: b[:300] + bytes([b[300] ^ 1]) + b[301:]), f"{FIRST} is broken: row group 0, column ref_loss"),
        (change(FIRST, lambda b: b[:-9]), f"{FIRST} is broken: it has"),
        (change(FIRST, lambda _: b""), f"{FIRST} is broken: it has 0 bytes"),
        (swap, f"{FIRST} is broken"),
        (lambda memory: memory.delete(SECOND), f"{SECOND}: missing"),
        (lambda memory: memory.put(FIRST.replace("00000", "00009"), b"?"), "shard-00009.parquet is not named"),
    ],
    ids=["altered", "cut off", "emptied", "swapped", "missing", "one too many"],
)
def test_damage_is_found_and_named(stored: Memory, finished: Any, damage: Callable[[Memory], None], why: str) -> None:
    workspace = finished.opened(store_dir="memory://run")
    look_at_scores(workspace, "verify", None)
    damage(stored)
    with pytest.raises(CorruptError, match=why):
        look_at_scores(workspace, "verify", None)


def test_what_is_missing_is_told_and_made_again(stored: Memory, finished: Any, capsys: pytest.CaptureFixture[str]) -> None:
    workspace = finished.opened(store_dir="memory://run")
    stored.delete(SECOND)
    look_at_scores(workspace, "status", None)
    assert "score curated: missing 1" in capsys.readouterr().out
    with pytest.raises(InputError, match="score curated: 1 of 3 shards are missing: 1"):
        look_at_scores(workspace, "finalize", None)
    stored.delete("run/scores/curated/manifest.json")
    score(workspace)
    assert stored.files("run") == {**finished.files("tokens"), **finished.files("scores")}


# --- publishing, on stores of several kinds ---


class Plain(AbstractFileSystem):
    """A store whose `pipe_file` knows nothing of conditions."""

    protocol = "plain"
    files: ClassVar[Files] = {}

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return path.partition("://")[2].rstrip("/") if "://" in path else path.rstrip("/")

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        path = self._strip_protocol(path)
        if path in self.files:
            return {"name": path, "type": "file", "size": len(self.files[path])}
        if any(f.startswith(f"{path}/") for f in self.files):
            return {"name": path, "type": "directory", "size": 0}
        raise FileNotFoundError(path)

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        path = self._strip_protocol(path)
        found = [self.info(f) for f in self.files if f.rpartition("/")[0] == path]
        if not found:
            raise FileNotFoundError(path)
        return found if detail else [f["name"] for f in found]

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        self.info(path)
        return self.files[self._strip_protocol(path)][start:end]

    def pipe_file(self, path: str, value: bytes) -> None:
        self.files[self._strip_protocol(path)] = bytes(value)

    def rm_file(self, path: str) -> None:
        del self.files[self._strip_protocol(path)]


class Careless(Plain):
    """One that takes any keyword, and ignores it."""

    protocol = "careless"
    files: ClassVar[Files] = {}

    def pipe_file(self, path: str, value: bytes, **_: Any) -> None:
        super().pipe_file(path, value)


fsspec.register_implementation("plain", Plain, clobber=True)
fsspec.register_implementation("careless", Careless, clobber=True)
STORES = ["memory", "plain", "careless"]


@pytest.mark.usefixtures("memory")
@pytest.mark.parametrize("protocol", STORES)
def test_the_first_to_publish_stays(protocol: str) -> None:
    folder = Folder.at(f"{protocol}://shards")
    with ShardWriter(folder, "shard-00000.parquet", {"input_id": "uint16"}, 4) as late:
        late.write(input_id=np.full(4, 7))
        late.facts = {"rows": 1, "tokens": 4}
        with ShardWriter(folder, "shard-00000.parquet", {"input_id": "uint16"}, 4) as early:
            early.write(input_id=np.arange(4))
            early.facts = {"rows": 1, "tokens": 4}
    assert (early.won, late.won) == (True, False)
    assert early.shard == late.shard
    assert ShardFile(folder, "shard-00000.parquet", late.shard).read(0, ["input_id"])["input_id"].tolist() == [0, 1, 2, 3]
    assert folder.put("plan.json", b"one")
    assert not folder.put("plan.json", b"two")
    assert folder.read("plan.json") == b"one"
    assert folder.put("plan.json", b"three", replace=True)
    assert folder.read("plan.json") == b"three"


@pytest.mark.parametrize("protocol", ["plain", "careless"])
def test_sets_are_made_and_verified_on_any_store(finished: Any, protocol: str) -> None:
    workspace = finished.opened(store_dir=f"{protocol}://run")
    prepare(workspace)
    score(workspace)
    look_at_tokens(workspace, "verify")
    look_at_scores(workspace, "verify", None)
    files = {p.removeprefix("run/"): body for p, body in fsspec.filesystem(protocol).files.items() if p.startswith("run/")}
    assert files == {**finished.files("tokens"), **finished.files("scores")}


def test_what_arrives_shorter_than_it_was_put_is_noticed(finished: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    put = Plain.pipe_file
    monkeypatch.setattr(
        Plain, "pipe_file", lambda self, path, value: put(self, path, value[:-1] if path.endswith(".parquet") else value)
    )
    with pytest.raises(CorruptError, match=r"plain://short/tokens/curated/shard-00000.parquet: \d+ bytes were put, \d+ arrived"):
        prepare(finished.opened(store_dir="plain://short"))


def test_a_file_url_is_a_local_folder(tmp_path: Path) -> None:
    folder = Folder.at(f"file://{tmp_path}/a")
    assert isinstance(folder, LocalFolder)
    assert folder.put("plan.json", b"one")
    assert not folder.put("plan.json", b"two")
    assert (tmp_path / "a" / "plan.json").read_bytes() == b"one"
    (tmp_path / "a.jsonl").write_bytes(LINES)
    source = SourceConfig(path=[f"file://{tmp_path}/*.jsonl"])
    assert len([t for p in plan_slices([source], 500) for t in documents(source, p, Tally())]) == 40


# --- what is not yet put ---


@pytest.fixture
def spool(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    place = tmp_path / "spool"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    return place


@pytest.mark.usefixtures("memory")
def test_a_full_disk_here_is_not_laid_at_the_store_s_door(spool: Path, finished: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_writer, "open", lambda *_: open("/dev/full", "wb"), raising=False)
    with pytest.raises(SlmError, match=f"no space left while writing {spool}/"):
        prepare(finished.opened(store_dir="memory://run"))
    assert not list(spool.iterdir())


@pytest.mark.usefixtures("memory")
def test_what_a_killed_worker_left_is_swept(spool: Path, finished: Any) -> None:
    mine = temporary_beside(spool / "slmctl-shard-00000.parquet")
    mine.write_bytes(b"a living process writes this")
    host, process = mine.name.split(".")[-3:-1]
    dead = spool / mine.name.replace(f"{host}.{process}", f"{host}.{process[:-1]}")
    dead.write_bytes(b"its writer was killed")
    other = spool / "not-ours.tmp"
    other.write_bytes(b"")
    prepare(finished.opened(store_dir="memory://run"))
    assert sorted(spool.iterdir()) == sorted([mine, other])

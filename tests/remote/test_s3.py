"""Sets of shards on S3: the same bytes as on a disk, first publish wins, and damage is named."""

from __future__ import annotations

import io
import json
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from slmctl.cli.process import main
from slmctl.config.file import check
from slmctl.corpus import shard_jobs
from slmctl.stages.prepare import look as look_at_tokens
from slmctl.stages.prepare import prepare
from slmctl.stages.run import run
from slmctl.stages.score import look as look_at_scores
from slmctl.stages.score import score
from slmctl.store.reader import RowReader, ScoreSet, TokenSet
from slmctl.store.shard_file import ShardFile
from slmctl.store.shard_writer import ShardWriter
from slmctl.system.errors import CorruptError, InputError, MismatchError, SlmError
from slmctl.system.files import read_json
from slmctl.system.storage import Folder
from slmctl.workspace.workers import Share
from slmctl.workspace.workspace import Workspace

Damage = Callable[[Any, str], None]
FIRST, SECOND = "scores/curated/shard-00000.parquet", "scores/curated/shard-00001.parquet"


@pytest.fixture(scope="module", autouse=True)
def bucket(s3: Any) -> str:
    return s3.bucket("store")


@pytest.fixture(scope="module")
def store(bucket: str, finished: Any) -> str:
    """Prefix of a store that three workers made, each its share, in an order that no plan foresees."""
    for index in (2, 0, 1):
        prepare(finished.opened(store_dir=f"s3://{bucket}/three"), Share(index, 3))
    for index in (1, 2, 0):
        score(finished.opened(store_dir=f"s3://{bucket}/three"), share=Share(index, 3))
    return "three/"


@pytest.fixture
def copied(s3: Any, store: str, request: pytest.FixtureRequest) -> str:
    """Name of a copy of that store, for a test to change."""
    name = request.node.name.partition("[")[0] + str(abs(hash(request.node.name)) % 10**6)
    s3.copy("store", store, f"{name}/")
    return name


def test_the_shards_of_three_workers_are_those_of_a_local_run(s3: Any, finished: Any, store: str) -> None:
    assert s3.objects("store", store) == {**finished.files("tokens"), **finished.files("scores")}


def test_processes_write_to_a_store_together(s3: Any, finished: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_jobs, "WORTH_A_PROCESS", 1)
    monkeypatch.setattr(shard_jobs, "cores", lambda: 2)
    prepare(finished.opened(store_dir="s3://store/processes"))
    assert s3.objects("store", "processes/") == finished.files("tokens")


@pytest.mark.usefixtures("store")
def test_rows_and_losses_are_read_back_joined(finished: Any) -> None:
    def rows(place: str) -> Any:
        tokens = TokenSet(f"{place}/tokens/corpus")
        return RowReader(tokens, ScoreSet(f"{place}/scores/curated", tokens)).fetch(np.arange(tokens.rows)[::-1])

    far, near = rows("s3://store/three"), rows(str(finished.root / "run"))
    for column in ("ids_BT", "document_BT", "ref_loss_BT"):
        np.testing.assert_array_equal(getattr(far, column), getattr(near, column))
    assert len({row.tobytes() for row in near.ids_BT}) > 90


def test_a_whole_pipeline_runs_on_s3_and_a_second_run_skips_it(
    s3: Any, finished: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bucket = s3.bucket("everything")
    for name in ("curated", "corpus", "target"):
        s3.put(bucket, f"texts/{name}.jsonl", (finished.root / f"{name}.jsonl").read_bytes())
    s3.put(bucket, "texts/sums.jsonl", b'{"question": "one and two", "answer": "3"}\n')
    settings = {
        **finished.settings,
        **{"output_dir": str(tmp_path / "out"), "store_dir": f"s3://{bucket}"},
        "data": {
            **{"root": f"s3://{bucket}/texts", "seq_len": 32, "shard_bytes": 4096, "curated": {"path": "cur*.jsonl"}},
            **{"corpus": {"path": "corpus.jsonl"}, "heldout": {"target": {"path": "target.jsonl"}}},
        },
        "eval": {"tasks": [{"name": "sums", "path": "sums.jsonl", "shots": 0, "max_new_tokens": 2}]},
    }
    run(Workspace(check(settings, "tiny")).open())
    results, local = (read_json(d / "eval" / "results.json") for d in (tmp_path / "out", finished.root / "run"))
    for found in (results, local):
        for model in found["models"].values():
            model["heldout"]["target"].pop("rows")  # names the set, and with it where its texts lie
    assert {n: m["heldout"] for n, m in results["models"].items()} == {n: m["heldout"] for n, m in local["models"].items()}
    assert set(results["models"]["slm"]["tasks"]) == {"sums"}
    assert not list((tmp_path / "out").rglob("shard-*"))

    there, asked = s3.keys(bucket), len(s3.log)
    capsys.readouterr()
    run(Workspace(check(settings, "tiny")).open())
    assert {r.method for r in s3.log[asked:]} == {"GET", "HEAD"}
    assert s3.keys(bucket) == there
    said = capsys.readouterr().err
    for stage in ("tokenizer", "prepare corpus", "train-base", "train-ref", "score curated", "pretrain slm", "eval"):
        assert f"{stage}: complete, skipped" in said


def test_another_machine_finds_the_same_sets(s3: Any, finished: Any, store: str, tmp_path: Path) -> None:
    there = s3.keys("store", store)
    prepare(finished.opened(store_dir="s3://store/three", output_dir=str(tmp_path / "elsewhere")))
    assert s3.keys("store", store) == there


@pytest.mark.parametrize(("change", "field"), [({"data__seq_len": 16}, "seq_len"), ({"seed": 1}, "seed")])
def test_a_set_made_from_other_inputs_is_refused_and_left_alone(
    s3: Any, finished: Any, store: str, change: Any, field: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = s3.keys("store", store)
    with pytest.raises(MismatchError, match="s3://store/three/tokens/curated holds a set that was made from other inputs"):
        prepare(finished.opened(store_dir="s3://store/three", output_dir=str(tmp_path / "out"), **change))
    assert f"  {field}: was " in capsys.readouterr().err
    assert s3.keys("store", store) == there


# --- publishing ---


def test_of_several_that_write_at_once_the_first_stays() -> None:
    folder = Folder.at("s3://store/race")
    start = threading.Barrier(4)
    writers: list[ShardWriter] = []

    def write(n: int) -> None:
        with ShardWriter(folder, "shard-00000.parquet", {"input_id": "uint16"}, 8) as writer:
            writer.write(input_id=np.full(8, n))
            writer.facts = {"who": n, "rows": 1, "tokens": 8}
            start.wait()
        writers.append(writer)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    (winner,) = [w for w in writers if w.won]
    assert len(writers) == 4
    assert {w.shard for w in writers} == {winner.shard}
    file = ShardFile(folder, "shard-00000.parquet", winner.shard)
    assert file.facts["who"] == winner.facts["who"]
    assert file.read(0, ["input_id"])["input_id"].tolist() == [winner.facts["who"]] * 8


def test_a_small_file_is_put_once_or_replaced_on_request(s3: Any) -> None:
    folder = Folder.at("s3://store/small")
    assert folder.put("plan.json", b"one")
    assert not folder.put("plan.json", b"two")
    assert s3.get("store", "small/plan.json") == b"one"
    assert folder.put("plan.json", b"three", replace=True)
    assert s3.get("store", "small/plan.json") == b"three"


def refuse(s3: Any, monkeypatch: pytest.MonkeyPatch, status: str, code: str, times: int = 10**9) -> list[str]:
    """The server answers conditional puts with an error, so many times. Returns the list of paths so refused."""
    refused: list[str] = []

    def interfere(request: Any, environ: dict[str, Any]) -> tuple[str, bytes] | None:
        if request.method != "PUT" or environ.get("HTTP_IF_NONE_MATCH") != "*" or len(refused) == times:
            return None
        refused.append(request.path)
        return status, f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>no</Message></Error>".encode()

    monkeypatch.setattr(s3.watched, "interfere", interfere)
    return refused


def test_a_failed_condition_is_understood_as_other_stores_tell_it(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """MinIO, Ceph and R2 do not say which condition failed."""
    refuse(s3, monkeypatch, "412 Precondition Failed", "PreconditionFailed")
    assert Folder.at("s3://store/other").put("plan.json", b"one") is False


def test_a_conflict_of_conditional_puts_is_asked_again(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = refuse(s3, monkeypatch, "409 Conflict", "ConditionalRequestConflict", times=2)
    assert Folder.at("s3://store/conflict").put("plan.json", b"one") is True
    assert refused == ["/store/conflict/plan.json"] * 2
    assert s3.get("store", "conflict/plan.json") == b"one"


def test_a_forbidden_put_is_one_clear_message(s3: Any, finished: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(s3, monkeypatch, "403 Forbidden", "AccessDenied")
    with pytest.raises(InputError, match=r"s3://store/new/tokens/curated/plan.json: access denied .* Check the credentials"):
        prepare(finished.opened(store_dir="s3://store/new"))


def test_an_absent_bucket_is_named(finished: Any) -> None:
    with pytest.raises(InputError, match=r"s3://nowhere/tokens/curated/plan.json cannot be written: .*bucket does not exist"):
        prepare(finished.opened(store_dir="s3://nowhere"))


def test_wrong_credentials_are_named(s3: Any, finished: Any) -> None:
    s3.ask_for_credentials(True)
    try:
        with pytest.raises(InputError, match=r"access denied .* Check the credentials"):
            prepare(finished.opened(store_dir="s3://store/three"))
    finally:
        s3.ask_for_credentials(False)


def test_a_store_may_be_a_whole_bucket_and_hold_folder_markers(s3: Any, finished: Any) -> None:
    bucket = s3.bucket("whole")
    for key in ("tokens/", "tokens/corpus/", "tokens/heldout/", "tokens/curated/"):
        s3.put(bucket, key, b"")
    prepare(finished.opened(store_dir=f"s3://{bucket}/"))
    assert {k: v for k, v in s3.objects(bucket).items() if v} == finished.files("tokens")


def test_a_server_that_goes_away_is_not_taken_for_a_broken_shard(dying_s3: Any) -> None:
    dying_s3.bucket("store")
    folder = Folder.at("s3://store/gone")
    with ShardWriter(folder, "shard-00000.parquet", {"input_id": "uint16"}, 2**16) as writer:
        for n in range(2):
            writer.write(input_id=np.random.default_rng(n).integers(0, 2**16, 2**16))
        writer.facts = {"rows": 2, "tokens": 2**17}
    file = ShardFile(folder, "shard-00000.parquet")
    dying_s3.server.stop()
    with pytest.raises(InputError, match=r"s3://store/gone/shard-00000.parquet cannot be reached"):
        file.read(0, ["input_id"])


# --- what is fetched ---


def test_a_row_group_fetches_its_own_ranges_alone(s3: Any) -> None:
    rng = np.random.default_rng(0)
    columns = {"ref_loss": "float32", "skipped": "float32", "ref_entropy": "float32"}
    values = {c: rng.random((12, 2**14)).astype(np.float32) for c in columns}
    with ShardWriter(Folder.at("s3://store/ranges"), "shard-00000.parquet", columns, 2**14) as writer:
        for group in range(12):
            writer.write(**{c: v[group] for c, v in values.items()})
        writer.facts = {"rows": 12, "tokens": 12 * 2**14}
    (size,) = [len(o) for o in s3.objects("store", "ranges/").values()]
    assert size > 2_000_000

    def asked(work: Callable[[], Any]) -> list[Any]:
        before = len(s3.log)
        work()
        return s3.log[before:]

    opened: list[ShardFile] = []
    wanted = writer.shard
    first = asked(lambda: opened.append(ShardFile(Folder.at("s3://store/ranges"), "shard-00000.parquet", wanted)))
    assert [(r.method, r.sent) for r in first] == [("HEAD", 0), ("GET", 2**16)]
    (file,) = opened
    group = pq.read_metadata(io.BytesIO(s3.get("store", "ranges/shard-00000.parquet"))).row_group(5)
    start = [group.column(c).data_page_offset for c in range(3)]
    length = [group.column(c).total_compressed_size for c in range(3)]

    one = asked(lambda: np.testing.assert_array_equal(file.read(5, ["ref_loss"])["ref_loss"], values["ref_loss"][5]))
    assert [(r.range, r.sent) for r in one] == [(f"bytes={start[0]}-{start[0] + length[0] - 1}", length[0])]
    apart = asked(lambda: file.read(5, ["ref_entropy", "ref_loss"]))
    assert sorted(r.sent for r in apart) == sorted([length[0], length[2]])
    together = asked(lambda: file.read(5, ["ref_loss", "skipped", "ref_entropy"]))
    assert [(r.range, r.sent) for r in together] == [(f"bytes={start[0]}-{start[0] + sum(length) - 1}", sum(length))]


# --- damage ---


def flip(body: bytes, at: int) -> bytes:
    return body[:at] + bytes([body[at] ^ 4]) + body[at + 1 :]


def change(key: str, to: Callable[[bytes], bytes]) -> Damage:
    return lambda s3, name: s3.put("store", f"{name}/{key}", to(s3.get("store", f"{name}/{key}")))


def swap(s3: Any, name: str) -> None:
    bodies = [s3.get("store", f"{name}/{key}") for key in (FIRST, SECOND)]
    for key, body in zip((SECOND, FIRST), bodies, strict=True):
        s3.put("store", f"{name}/{key}", body)


def other_tokens(s3: Any, name: str) -> None:
    """The scores of the corpus are put beside a corpus of other tokens, manifest and all."""
    for key in s3.keys("store", f"{name}/tokens/curated/"):
        s3.put("store", key.replace("/curated/", "/corpus/"), s3.get("store", key))
    s3.delete("store", f"{name}/tokens/corpus/shard-00002.parquet")


DAMAGE: dict[str, tuple[Damage, str]] = {
    "one bit of the losses": (change(FIRST, lambda b: flip(b, 200)), rf"{FIRST} is broken: row group 0, column ref_loss"),
    "one bit of the footer": (change(FIRST, lambda b: flip(b, len(b) - 100)), rf"{FIRST} is broken: its footer is not the one"),
    "cut off": (change(FIRST, lambda b: b[:-1]), rf"{FIRST} is broken: it has \d+ bytes, its manifest says \d+"),
    "emptied": (change(FIRST, lambda _: b""), rf"{FIRST} is broken: it has 0 bytes"),
    "grown": (change(FIRST, lambda b: b + b"\0"), rf"{FIRST} is broken: it has \d+ bytes"),
    "swapped with another": (swap, rf"{FIRST} is broken: (it has|its footer)"),
    "missing": (lambda s3, name: s3.delete("store", f"{name}/{SECOND}"), rf"{SECOND}: missing, though the manifest names it"),
    "one too many": (
        lambda s3, name: s3.put("store", f"{name}/scores/curated/shard-00003.parquet", b"?"),
        r"scores/curated/shard-00003.parquet is not named by the manifest",
    ),
    "an altered manifest": (
        change("scores/curated/manifest.json", lambda b: b.replace(b'"first_row": 0', b'"first_row": 1')),
        "scores/curated/manifest.json was altered",
    ),
    "tokens of another set": (other_tokens, "manifest.json does not match:\n  tokens: found"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_found_and_named(s3: Any, finished: Any, copied: str, what: str) -> None:
    damage, why = DAMAGE[what]

    def read() -> None:
        tokens = TokenSet(f"s3://store/{copied}/tokens/corpus")
        RowReader(tokens, ScoreSet(f"s3://store/{copied}/scores/curated", tokens)).fetch(np.arange(tokens.rows))

    workspace = finished.opened(store_dir=f"s3://store/{copied}")
    read()
    look_at_scores(workspace, "verify", None)
    damage(s3, copied)
    for look in (read, lambda: look_at_scores(workspace, "verify", None)):
        with pytest.raises((CorruptError, MismatchError), match=why if look is read or "tokens" not in what else "other tokens"):
            look()


def test_damage_to_tokens_is_found_and_named(s3: Any, finished: Any, copied: str) -> None:
    key = "tokens/corpus/shard-00001.parquet"
    change(key, lambda b: flip(b, 1000))(s3, copied)
    why = rf"s3://store/{copied}/{key} is broken: row group 0, column \w+ is not what was written"
    workspace = finished.opened(store_dir=f"s3://store/{copied}")
    with pytest.raises(CorruptError, match=f"1 shards are not what they should be:\n{why}"):
        look_at_tokens(workspace, "verify")
    tokens = TokenSet(f"s3://store/{copied}/tokens/corpus")
    with pytest.raises(CorruptError, match=why):
        RowReader(tokens).fetch(np.arange(tokens.rows))


def test_a_shard_that_is_deleted_while_it_is_read_is_named(s3: Any, copied: str) -> None:
    tokens = TokenSet(f"s3://store/{copied}/tokens/corpus")
    tokens.file(0)
    s3.delete("store", f"{copied}/tokens/corpus/shard-00000.parquet")
    with pytest.raises(CorruptError, match=r"tokens/corpus/shard-00000\.parquet was deleted while it was read"):
        tokens.read_group(0, ["input_id"])


@pytest.mark.parametrize("damage", ["missing", "cut off"])
def test_a_missing_or_broken_shard_alone_is_made_again(s3: Any, finished: Any, store: str, copied: str, damage: str) -> None:
    DAMAGE[damage][0](s3, copied)
    asked = len(s3.log)
    score(finished.opened(store_dir=f"s3://store/{copied}"))
    key = SECOND if damage == "missing" else FIRST
    changed = [r.path for r in s3.log[asked:] if r.method in ("PUT", "DELETE")]
    assert set(changed) - {f"/store/{copied}/scores/curated/manifest.json"} == {f"/store/{copied}/{key}"}
    assert s3.objects("store", f"{copied}/") == s3.objects("store", store)


# --- the command line ---


@pytest.fixture
def slmctl(finished: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Runs a command on a store of the bucket; returns its exit code and all that it printed."""
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(finished.settings), encoding="utf-8")

    def call(store: str, command: str, *argv: str) -> tuple[int, str]:
        capsys.readouterr()
        code: Any = 0
        try:
            main([command, str(path), "-o", f"store_dir=s3://store/{store}", *argv])
        except SystemExit as e:
            code = e.code or 0
        captured = capsys.readouterr()
        return int(code), captured.out + captured.err

    return call


def test_status_finalize_and_verify(s3: Any, slmctl: Any) -> None:
    def worker(index: int) -> tuple[int, str]:
        return slmctl("looked", "prepare", "--shard-index", str(index), "--shard-count", "3")

    code, text = slmctl("looked", "prepare", "--status")
    assert code == 1
    assert "s3://store/looked/tokens/curated was not planned yet" in text
    assert worker(0)[0] == 0
    code, text = slmctl("looked", "prepare", "--status")
    assert code == 0
    assert [line.split()[:3] for line in text.splitlines() if "/" in line][1:4] == [
        ["curated", "2/2", "0"],
        ["corpus", "0/3", "3"],
        ["heldout/target", "0/1", "1"],
    ]
    code, text = slmctl("looked", "prepare", "--finalize")
    assert code == 1
    assert "prepare corpus: 3 of 3 shards are missing: 0-2" in text
    assert [worker(i)[0] for i in (1, 2)] == [0, 0]
    manifest = s3.get("store", "looked/tokens/corpus/manifest.json")
    s3.delete("store", "looked/tokens/corpus/manifest.json")
    assert slmctl("looked", "prepare", "--verify")[0] == 1
    code, text = slmctl("looked", "prepare", "--status")
    assert "to be finalized" in text
    assert slmctl("looked", "prepare", "--finalize")[0] == 0
    assert s3.get("store", "looked/tokens/corpus/manifest.json") == manifest
    code, text = slmctl("looked", "prepare", "--verify")
    assert code == 0
    assert "verified: every byte of 6 shards" in text
    code, text = slmctl("looked", "inspect", "tokens/corpus", "--document", "3")
    assert code == 0
    assert "the same tokens, every one" in text


def test_status_tells_what_is_broken_or_in_no_plan(s3: Any, copied: str, slmctl: Any) -> None:
    s3.put("store", f"{copied}/{FIRST}", b"nothing")
    s3.put("store", f"{copied}/{SECOND}", s3.get("store", f"{copied}/tokens/corpus/shard-00001.parquet"))
    s3.put("store", f"{copied}/scores/curated/shard-00007.parquet", b"?")
    code, text = slmctl(copied, "score", "--status")
    assert code == 0
    assert "shard-00000.parquet is broken: it does not end as a Parquet file" in text
    assert re.search(r"shard-00001\.parquet:?\s.*made from other inputs \(binding, token_shard differ\)", text)
    assert "shard-00007.parquet: in no plan" in text
    code, text = slmctl(copied, "score", "--finalize")
    assert code == 1
    assert "2 of 3 shards are missing: 0-1" in text


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec.core

    def absent(*_: object, **__: object) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", absent)
    with pytest.raises(SlmError, match=r"pip install 'slmctl\[s3\]'"):
        Folder.at("s3://store/x")

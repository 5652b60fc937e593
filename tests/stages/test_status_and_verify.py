"""--status, --finalize and --verify: what they tell of a store in the making, or damaged."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_store import CORPUS, SCORES, Child, Store, content, of, orphan, stop_at_write, table

from slmctl.stages.prepare import prepare
from slmctl.store.manifest import FILE, Manifest, load_manifest
from slmctl.store.reader import ShardSet
from slmctl.store.shard_format import shard_name
from slmctl.store.shard_writer import ShardWriter
from slmctl.system.storage import Folder
from slmctl.workspace.workers import Share


def test_status_tells_done_missing_orphaned_foreign_and_broken(store: Store) -> None:
    left = orphan(store)
    finish = store.run("prepare", "--finalize")
    assert finish[0] == 1
    prepare(store.open(), Share(0, 1))
    left.touch()
    assert left.exists()
    code, said = store.run("prepare", "--status")
    assert code == 0
    assert table(said)["corpus"][:4] == ["9/9", "0", "0", "1"]
    assert table(said)["heldout/target"][-1] == "complete"
    (store.path(CORPUS) / FILE).unlink()
    assert "to be finalized" in store.run("prepare", "--status")[1]
    store.path(CORPUS, 3).unlink()
    store.path(CORPUS, 4).unlink()
    with open(store.path(CORPUS, 6), "r+b") as f:
        f.truncate(100)
    shutil.copy(store.path("tokens/curated", 1), store.path(CORPUS, 7))
    shutil.copy(store.path(CORPUS, 0), store.path(CORPUS, 77))
    code, said = store.run("prepare", "--status")
    assert code == 0
    done = sum(load_manifest(store.alone / CORPUS, "tokens").shards[i].tokens for i in (0, 1, 2, 5, 8))
    assert table(said)["corpus"][:5] == ["5/9", "4", "0", "4", f"{done:,}"]
    assert "not complete" in said
    assert "missing 3-4, 6-7" in said
    assert f"{store.path(CORPUS, 6)} is broken: it does not end as a Parquet file" in said
    assert f"{store.path(CORPUS, 7)} was made from other inputs (binding differ)" in said
    assert f"{store.path(CORPUS, 77)}: in no plan" in said
    assert table(said)["curated"][:4] == ["3/3", "0", "0", "0"]

    code, said = store.run("prepare", "--finalize")
    assert code == 1
    assert "prepare corpus: 4 of 9 shards are missing: 3-4, 6-7" in said
    assert f"{store.path(CORPUS, 7)} was made from other inputs" in said
    assert "Run the stage again to make them" in said
    assert not (store.path(CORPUS) / FILE).exists()
    store.path(CORPUS, 77).unlink()
    prepare(store.open())
    assert len(list(store.path(CORPUS).glob("*broken*"))) == 2, "what was broken is kept, out of the way"
    assert of(content(store.store), "tokens") == of(store.wanted, "tokens")


def test_status_counts_who_is_at_work(store: Store) -> None:
    with Child(store.command("prepare"), lambda: stop_at_write(5)) as hung:
        hung.wait_stopped()
        rows = table(store.run("prepare", "--status")[1])
        assert rows["corpus"][:4] == ["1/9", "8", "1", "0"]
        assert rows["heldout/target"][:4] == ["0/1", "1", "0", "0"]


def test_what_was_not_planned_has_no_status(store: Store) -> None:
    code, said = store.run("prepare", "--status")
    assert code == 1
    assert "was not planned yet. Run `slmctl prepare` first" in said
    assert not store.store.exists(), "who only looks makes no output_dir"
    store.copy(scored=False)
    code, said = store.run("score", "--verify")
    assert code == 1
    assert "was not planned yet. Run `slmctl score` first" in said


@pytest.mark.parametrize("kind", ["tokens", "scores"])
def test_finalize_writes_the_manifest_that_the_last_worker_would_have_written(store: Store, kind: str) -> None:
    store.copy()
    command, name = ("prepare", CORPUS) if kind == "tokens" else ("score", SCORES)
    (store.path(name) / FILE).unlink()
    code, said = store.run(command, "--finalize")
    assert code == 0, said
    assert f"all 9 shards are there; {store.path(name)}/manifest.json is written" in said
    assert content(store.store) == store.wanted
    before = store.stamps()
    assert store.run(command, "--finalize")[0] == 0
    assert store.stamps() == before


@pytest.mark.parametrize("kind", ["tokens", "scores"])
@pytest.mark.parametrize("action", ["--status", "--finalize", "--verify"])
def test_a_set_planned_under_other_settings_is_not_looked_at_as_if_it_were_this(store: Store, kind: str, action: str) -> None:
    """A manifest written with them would say of the shards what is not so."""
    store.copy()
    command, name = ("prepare", CORPUS) if kind == "tokens" else ("score", SCORES)
    (store.path(name) / FILE).unlink()
    override = "data.seq_len=64" if kind == "tokens" else "score.entropy=false"
    code, said = store.run(command, action, "-o", override)
    assert code == 1
    assert re.search(r"seq_len: found 32, wanted 64|entropy: found True, wanted False|manifest\.json does not exist", said)
    assert not (store.path(name) / FILE).exists()


@pytest.mark.parametrize("kind", ["tokens", "scores"])
@pytest.mark.parametrize("where", [0, 4, 0.3, 0.5, -1, -9])
def test_verify_finds_one_flipped_bit(store: Store, kind: str, where: float) -> None:
    store.copy()
    command, name = ("prepare", CORPUS) if kind == "tokens" else ("score", SCORES)
    flip(store.path(name, 5), where)
    code, said = store.run(command, "--verify")
    assert code == 1
    assert f"{store.path(name, 5)} is broken" in said
    assert "1 shards are not what they should be" in said


def flip(file: Path, where: float) -> None:
    """Flips one bit: at a share of the file where `where` is a fraction, else at that byte."""
    data = bytearray(file.read_bytes())
    data[int(where * len(data)) if 0 < where < 1 else int(where)] ^= 1
    file.write_bytes(bytes(data))


def test_verify_finds_nothing_wrong_with_what_is_whole(store: Store) -> None:
    """… and needs no texts."""
    store.copy()
    store.settings["data"]["corpus"]["path"] = str(store.root / "gone.jsonl")
    store.write()
    for command, count in (("prepare", 13), ("score", 9)):
        code, said = store.run(command, "--verify")
        assert (code, f"every byte of {count} shards" in said) == (0, True), said


def test_finalize_needs_no_texts(store: Store) -> None:
    store.copy()
    (store.path(CORPUS) / FILE).unlink()
    store.settings["data"]["corpus"]["path"] = str(store.root / "gone.jsonl")
    store.write()
    code, said = store.run("prepare", "--finalize")
    assert code == 0, said
    assert content(store.store) == store.wanted


def rewrite(folder: Path, kind: str, index: int, change: Callable[[dict[str, np.ndarray]], None]) -> None:
    """Makes shard `index` anew from changed values, with every hash, and the manifest, as if it had always been so."""
    opened = ShardSet(folder, kind)
    manifest = opened.manifest
    first = sum(s.groups for s in manifest.shards[:index])
    names = list(manifest.format["columns"])
    groups = [opened.read_group(g, names) for g in range(first, first + manifest.shards[index].groups)]
    facts = opened.file(index).facts
    (folder / shard_name(index)).unlink()
    group_tokens = manifest.group_rows * manifest.seq_len
    with ShardWriter(Folder.at(folder), shard_name(index), manifest.format["columns"], group_tokens) as writer:
        for group in groups:
            flat = {n: c.ravel().copy() for n, c in group.items()}
            change(flat)
            writer.write(**flat)
        writer.facts = facts
    listed = list(manifest.shards)
    listed[index] = type(listed[index])(**{**writer.shard.__dict__, "first_row": listed[index].first_row})
    Manifest(**{**manifest.__dict__, "shards": listed}).save(folder, replace=True)


def put(column: str, at: Any, value: float) -> Callable[[dict[str, np.ndarray]], None]:
    def change(columns: dict[str, np.ndarray]) -> None:
        columns[column][at] = value

    return change


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("tokens", put("input_id", 7, 60000), r"input_id is not within 0 to \d+"),
        ("tokens", put("document", 3, (4 << 32) | 1), "it holds documents of another shard"),
        ("tokens", put("document", 3, -1), "padding is not where the manifest says"),
        ("tokens", put("document", -1, 5 << 32), "padding is not where the manifest says"),
        ("tokens", put("input_id", -1, 9), "padding does not hold the end-of-sequence token"),
        ("scores", put("ref_loss", 7, np.nan), "ref_loss has a value that is negative or not finite"),
        ("scores", put("ref_loss", 7, np.inf), "ref_loss has a value that is negative or not finite"),
        ("scores", put("ref_loss", 7, -0.5), "ref_loss has a value that is negative or not finite"),
        ("scores", put("ref_loss", 7, -1.0), "ref_loss has a value that is negative or not finite"),
        ("scores", put("ref_loss", 32, 0.5), "ref_loss has a value where nothing is predicted"),
        ("scores", put("ref_loss", -1, 0.5), "ref_loss has a value where nothing is predicted"),
        ("scores", put("ref_entropy", 7, np.nan), "ref_entropy has a value that is negative or not finite"),
    ],
)
def test_verify_finds_values_that_cannot_be(store: Store, kind: str, change: Any, message: str) -> None:
    store.copy()
    folder = store.path(CORPUS if kind == "tokens" else SCORES)
    manifest = load_manifest(store.path(CORPUS), "tokens")
    index = next(i for i, s in enumerate(manifest.shards) if i and s.tokens % 32)  # one that ends in padding
    rewrite(folder, kind, index, change)
    code, said = store.run("prepare" if kind == "tokens" else "score", "--verify")
    assert code == 1
    assert re.search(rf"{re.escape(str(folder / shard_name(index)))}, row group 0: {message}", said), said


def test_a_rewritten_shard_without_a_change_is_found_right(store: Store) -> None:
    """The test above fails for its values, not for the way in which they came there."""
    store.copy()
    for kind, name in (("scores", SCORES), ("tokens", CORPUS)):
        rewrite(store.path(name), kind, 1, lambda _: None)
    assert content(store.store) == store.wanted
    assert store.run("score", "--verify")[0] == 0

"""prepare and score by many workers: shares, races, hung and killed processes, and what looks at their work."""

from __future__ import annotations

import copy
import errno
import json
import os
import random
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import tiny_store
import yaml
from tiny_pipeline import write_jsonl
from tiny_store import Child, content, make_model, make_tokenizer, open_workspace, shards, stop_at_write, temporaries, texts

from slmctl import processes
from slmctl.errors import ConfigError, InputError, MismatchError, SlmError, TrainingError
from slmctl.files import ABANDONED_AFTER, read_json, sha256_file
from slmctl.model.loading import load_model
from slmctl.stages import prepare as prepare_stage
from slmctl.stages import score as score_stage
from slmctl.stages import workspace as workspace_module
from slmctl.stages.prepare import prepare
from slmctl.stages.score import score
from slmctl.stages.train import pretrain
from slmctl.stages.workers import Share, find_share
from slmctl.stages.workspace import Workspace
from slmctl.storage import Folder, LocalFolder
from slmctl.store.build import PLAN
from slmctl.store.manifest import FILE, Manifest, load_manifest
from slmctl.store.reader import ShardSet
from slmctl.store.shards import ShardWriter, shard_name

SETS = ("tokens/curated", "tokens/corpus", "tokens/heldout/target")
CORPUS, SCORES = "tokens/corpus", "scores/curated"


class Store:
    """A pipeline whose output_dir is `store`, beside texts and a model that many tests share."""

    def __init__(self, settings: dict[str, Any], root: Path, alone: Path) -> None:
        self.settings, self.root, self.alone = copy.deepcopy(settings), root, alone
        self.store = root / "run"
        self.settings["output_dir"] = str(self.store)
        self.wanted = content(alone)
        self.write()

    def write(self) -> Path:
        self.yaml = self.root / "tiny.yaml"
        self.yaml.write_text(yaml.safe_dump(self.settings, sort_keys=False), encoding="utf-8")
        return self.yaml

    def copy(self, scored: bool = True) -> Store:
        """Starts from the store that one worker made."""
        shutil.copytree(self.alone, self.store)
        if not scored:
            shutil.rmtree(self.store / "scores")
        return self

    def open(self) -> Workspace:
        return open_workspace(self.settings)

    def command(self, *words: str) -> list[str]:
        """A command line; the configuration goes after the command's name."""
        return [words[0], str(self.yaml), *words[1:]]

    def run(self, *words: str) -> tuple[int, str]:
        """Exit code and output of a slmctl command, run by another process."""
        with Child(self.command(*words)) as child:
            return child.wait(), child.text()

    def path(self, name: str, shard: int | None = None) -> Path:
        return self.store / name / shard_name(shard) if shard is not None else self.store / name

    def stamps(self) -> dict[str, int]:
        """When each file of the sets was written."""
        files = [p for kind in ("tokens", "scores") for p in (self.store / kind).rglob("*") if p.is_file()]
        return {str(p.relative_to(self.store)): p.stat().st_mtime_ns for p in files}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """What one undisturbed worker makes."""
    root = tmp_path_factory.mktemp("alone")
    settings = tiny_store.store_settings(root)
    prepare(open_workspace(settings))
    score(open_workspace(settings))
    tiny_store.release_locks()
    return settings, root / "run"


@pytest.fixture
def store(alone: tuple[dict[str, Any], Path], tmp_path: Path) -> Iterator[Store]:
    yield Store(alone[0], tmp_path, alone[1])
    tiny_store.release_locks()


def made(store: Store, kind: str) -> list[tuple[str, int]]:
    """The shards that are there, in the order in which their sets are planned."""
    names = SETS if kind == "tokens" else (SCORES,)
    return [(n, int(f[6:11])) for n in names for f in shards(store.path(n))]


def of(found: dict[str, Any], kind: str) -> dict[str, Any]:
    return {k: v for k, v in found.items() if k.startswith(kind)}


STAGES: dict[str, Callable[..., None]] = {"tokens": prepare, "scores": lambda w, share=Share(): score(w, None, share)}  # noqa: B008


# --- shares ---


@pytest.mark.parametrize("kind", ["tokens", "scores"])
@pytest.mark.parametrize("workers", [1, 2, 3, 7])
def test_any_number_of_workers_makes_what_one_makes(store: Store, kind: str, workers: int) -> None:
    if kind == "scores":
        store.copy(scored=False)
    everything = [(n, i) for n in (SETS if kind == "tokens" else (SCORES,)) for i in range(len(store.wanted[n][1]))]
    order = list(range(workers))
    random.Random(workers).shuffle(order)
    done: list[tuple[str, int]] = []
    for index in order:
        STAGES[kind](store.open(), share=Share(index, workers))
        mine = [s for s in made(store, kind) if s not in done]
        start = everything.index(mine[0]) if mine else 0
        assert mine == everything[start : start + len(mine)], "a share is not contiguous"
        assert abs(len(mine) - len(everything) / workers) < 1, f"worker {index} of {workers} made {len(mine)} shards"
        done += mine
        for name in SETS if kind == "tokens" else (SCORES,):
            complete = {i for n, i in done if n == name} == set(range(len(store.wanted[name][1])))
            assert (store.path(name) / FILE).exists() == complete
    assert of(content(store.store), kind) == of(store.wanted, kind)
    assert not temporaries(store.store)


@pytest.mark.parametrize("kind", ["tokens", "scores"])
def test_lost_shards_are_made_again_by_another_number_of_workers(store: Store, kind: str) -> None:
    store.copy()
    lost = [f"{CORPUS}/{shard_name(i)}" for i in (0, 4, 8)] + [f"tokens/curated/{shard_name(1)}"]
    lost = lost if kind == "tokens" else [f"{SCORES}/{shard_name(i)}" for i in (2, 3)]
    for name in lost:
        (store.store / name).unlink()
    before = store.stamps()
    for index in range(4):
        STAGES[kind](store.open(), share=Share(index, 4))
    after = store.stamps()
    assert sorted(set(after) - set(before)) == sorted(lost)
    assert {k: after[k] for k in before} == before, "what was there was written again"
    assert content(store.store) == store.wanted


def test_a_share_does_not_depend_on_what_others_have_completed(store: Store) -> None:
    """Sets that another worker completes meanwhile must not shift this one's part of the rest."""
    prepare(store.open(), Share(0, 3))
    assert (store.path("tokens/curated") / FILE).exists()
    prepare(store.open(), Share(1, 3))
    prepare(store.open(), Share(2, 3))
    assert of(content(store.store), "tokens") == of(store.wanted, "tokens")


def test_several_processes_of_one_worker_make_the_same(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare_stage, "WORTH_A_PROCESS", 1)
    monkeypatch.setattr(prepare_stage, "cores", lambda: 2)
    prepare(store.open())
    assert of(content(store.store), "tokens") == of(store.wanted, "tokens")


def test_workers_that_start_at_once_make_one_store(store: Store) -> None:
    """Even the tokenizer is made once, by whoever plans first; the others wait."""
    store.settings["model"] = {"scratch": {"vocab_size": 300, "hidden_size": 16, "num_attention_heads": 2}}
    store.write()
    others = [Child(store.command("prepare", "--shard-index", str(i), "--shard-count", "3")) for i in range(3)]
    assert [c.wait() for c in others] == [0, 0, 0], "\n".join(c.text() for c in others)
    said = "\n".join(c.text() for c in others)
    assert said.count("trained on curated and corpus text") == 1
    assert not (store.store / "stale").exists()
    together = content(store.store)
    assert set(together) == set(SETS)
    store.settings["output_dir"] = str(store.root / "one")
    prepare(store.open())
    assert content(store.root / "one") == together


# --- which worker this is ---

ARRAY = {"SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_MAX": "3", "SLURM_ARRAY_TASK_STEP": "1"}


@pytest.mark.parametrize(
    ("env", "share"),
    [
        ({}, Share(0, 1)),
        ({**ARRAY, "SLURM_ARRAY_TASK_ID": "3"}, Share(3, 4)),
        ({"SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_TASK_MAX": "7"}, Share(2, 8)),  # no count
        ({"SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_TASK_COUNT": "5"}, Share(2, 5)),  # the count alone
        (
            {"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_MAX": "8", "SLURM_ARRAY_TASK_COUNT": "8"},
            Share(4, 8),
        ),
        (
            {
                **{"SLURM_ARRAY_TASK_ID": "30", "SLURM_ARRAY_TASK_MIN": "10", "SLURM_ARRAY_TASK_MAX": "40"},
                **{"SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_STEP": "10"},
            },
            Share(2, 4),
        ),
        ({"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_MIN": "5", "SLURM_ARRAY_TASK_MAX": "5"}, Share(0, 1)),
        ({"RANK": "1", "WORLD_SIZE": "8"}, Share(1, 8)),
        ({"RANK": "1", "WORLD_SIZE": "2", **ARRAY, "SLURM_ARRAY_TASK_ID": "3"}, Share(7, 8)),
        ({"RANK": "0", "WORLD_SIZE": "2", **ARRAY, "SLURM_ARRAY_TASK_ID": "0"}, Share(0, 8)),
        ({"SLURM_JOB_ID": "17", "SLURM_PROCID": "3", "SLURM_NTASKS": "4"}, Share(0, 1)),  # no array: every task is told by flags
        ({"RANK": "3"}, Share(0, 1)),
        ({"WORLD_SIZE": "3"}, Share(0, 1)),
    ],
)
def test_the_share_comes_from_the_environment(env: dict[str, str], share: Share) -> None:
    assert find_share(env=env) == share
    assert find_share(2, 9, env) == Share(2, 9), "flags come first"


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"SLURM_ARRAY_TASK_ID": "x"}, "SLURM_ARRAY_TASK_ID is 'x'; want a whole number"),
        ({"SLURM_ARRAY_TASK_ID": ""}, "SLURM_ARRAY_TASK_ID is ''; want a whole number"),
        ({"SLURM_ARRAY_TASK_ID": "1"}, "task 1 of 0 .* is not one of a regular array. Submit it as --array=0-N, or give"),
        ({**ARRAY, "SLURM_ARRAY_TASK_ID": "4"}, "task 4 of 4"),
        ({**ARRAY, "SLURM_ARRAY_TASK_ID": "-1"}, "task -1 of 4"),
        ({**ARRAY, "SLURM_ARRAY_TASK_COUNT": "1.5", "SLURM_ARRAY_TASK_ID": "0"}, "SLURM_ARRAY_TASK_COUNT is '1.5'"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK 2, WORLD_SIZE 2: want 0 <= RANK < WORLD_SIZE"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK -1"),
        ({"RANK": "zero", "WORLD_SIZE": "2"}, "RANK is 'zero'"),
        ({"RANK": "0", "WORLD_SIZE": ""}, "WORLD_SIZE is ''"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "WORLD_SIZE 0"),
    ],
)
def test_an_environment_that_makes_no_sense_is_refused(env: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find_share(env=env)


@pytest.mark.parametrize("task", ["1", "3", "7"])
def test_every_task_of_an_irregular_array_is_refused(task: str) -> None:
    """Of --array=1,3,7 task 3 would otherwise take the third share of three, and nobody the second."""
    env = {"SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_MAX": "7", "SLURM_ARRAY_TASK_STEP": "1", "SLURM_ARRAY_TASK_COUNT": "3"}
    with pytest.raises(ConfigError, match="not one of a regular array"):
        find_share(env={**env, "SLURM_ARRAY_TASK_ID": task})


@pytest.mark.parametrize(("index", "count"), [(0, None), (None, 3), (3, 3), (-1, 3), (0, 0), (0, -2)])
def test_flags_that_make_no_sense_are_refused(index: int | None, count: int | None) -> None:
    with pytest.raises(ConfigError, match="together" if index is None or count is None else "--shard-index"):
        find_share(index, count, {})


def test_shares_cover_any_work_once() -> None:
    for n in (0, 1, 2, 9, 100):
        for count in (1, 2, 3, 7, 101):
            assert [x for i in range(count) for x in Share(i, count).of(list(range(n)))] == list(range(n))


# --- two at once, hung, killed ---


@pytest.mark.parametrize("kind", ["tokens", "scores"])
def test_of_two_that_publish_one_shard_the_first_wins(store: Store, kind: str) -> None:
    """Both write the shard before either publishes it."""
    command = "prepare" if kind == "tokens" else "score"
    folder = store.path(CORPUS if kind == "tokens" else SCORES)
    if kind == "scores":
        store.copy(scored=False)
    outcomes = store.root / "outcomes"
    outcomes.mkdir()

    def meet() -> None:
        publish = LocalFolder.publish

        def waiting(self: LocalFolder, temporary: Path, name: str) -> bool:
            if self.path == folder and name == shard_name(2):
                (outcomes / f"here-{os.getpid()}").touch()
                until(lambda: len(list(outcomes.glob("here-*"))) == 2)
            won = publish(self, temporary, name)
            if self.path == folder and name == shard_name(2):
                (outcomes / f"{'won' if won else 'lost'}-{os.getpid()}").touch()
            return won

        LocalFolder.publish = waiting  # type: ignore[method-assign]

    both = [Child(store.command(command), meet) for _ in range(2)]
    assert [c.wait() for c in both] == [0, 0], "\n".join(c.text() for c in both)
    assert sorted(p.name.partition("-")[0] for p in outcomes.iterdir()) == ["here", "here", "lost", "won"]
    assert of(content(store.store), kind) == of(store.wanted, kind)
    assert not temporaries(store.store)


def until(true: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


@pytest.mark.parametrize("swept", [False, True], ids=["its file stays", "its file is swept"])
@pytest.mark.parametrize("kind", ["tokens", "scores"])
def test_a_hung_worker_stops_nobody_and_does_no_harm_when_it_wakes(store: Store, kind: str, swept: bool) -> None:
    command, name = ("prepare", CORPUS) if kind == "tokens" else ("score", SCORES)
    if kind == "scores":
        store.copy(scored=False)
    share = ("--shard-index", "1", "--shard-count", "3")
    with Child(store.command(command, *share), stop_at_write) as hung:
        hung.wait_stopped()
        (mine,) = temporaries(store.path(name))
        for index in (0, 2):
            STAGES[kind](store.open(), share=Share(index, 3))
        assert not (store.path(name) / FILE).exists()
        assert re.search(r"corpus|curated", store.run(command, "--status")[1])
        assert store.run(command, "--finalize")[0] == 1
        STAGES[kind](store.open())
        assert mine.exists(), "the file of a process that lives was swept away"
        assert of(content(store.store), kind) == of(store.wanted, kind)
        assert store.run(command, "--finalize")[0] == 0
        if swept:
            mine.unlink()
        before = store.stamps()
        hung.send(signal.SIGCONT)
        assert hung.wait() == 0, hung.text()
    after = {k: v for k, v in store.stamps().items() if ".tmp-" not in k}
    assert after == {k: v for k, v in before.items() if ".tmp-" not in k}
    assert of(content(store.store), kind) == of(store.wanted, kind)
    assert not temporaries(store.store)


def test_a_swept_file_is_written_again(store: Store) -> None:
    """A worker that hung for so long that its file was swept away, with nobody else to make the shard."""
    with Child(store.command("prepare"), stop_at_write) as hung:
        hung.wait_stopped()
        (mine,) = temporaries(store.store / "tokens")
        mine.unlink()
        hung.send(signal.SIGCONT)
        assert hung.wait() == 0, hung.text()
    assert of(content(store.store), "tokens") == of(store.wanted, "tokens")


def orphan(store: Store, command: str = "prepare") -> Path:
    """The file that a worker left which was killed (-9) while it wrote a shard of the corpus."""
    with Child(store.command(command), lambda: stop_at_write(5)) as killed:
        killed.wait_stopped()
        killed.kill()
    (left,) = temporaries(store.store)
    return left


@pytest.mark.parametrize("kind", ["tokens", "scores"])
def test_what_a_killed_writer_left_is_listed_and_swept(store: Store, kind: str) -> None:
    command, name = ("prepare", CORPUS) if kind == "tokens" else ("score", SCORES)
    if kind == "scores":
        store.copy(scored=False)
    left = orphan(store, command)
    assert left.parent == store.path(name)
    code, said = store.run(command, "--status")
    assert code == 0
    assert f"{left}: its writer is gone; the next worker removes it" in said
    assert left.exists(), "--status only looks"
    STAGES[kind](store.open(), share=Share(0, 1000))  # makes next to nothing
    assert not left.exists()
    STAGES[kind](store.open())
    assert of(content(store.store), kind) == of(store.wanted, kind)


def test_what_another_host_left_is_swept_only_when_it_is_old(store: Store) -> None:
    left = orphan(store)
    parts = left.name.split(".")
    foreign = left.rename(left.with_name(".".join([*parts[:-3], "0123abcd", *parts[-2:]])))
    assert "its writer is gone" not in store.run("prepare", "--status")[1]
    prepare(store.open())
    assert foreign.exists(), "another machine may still be writing it"
    assert of(content(store.store), "tokens") == of(store.wanted, "tokens")
    os.utime(foreign, (time.time() - ABANDONED_AFTER - 60,) * 2)
    assert f"{foreign}: its writer is gone" in store.run("prepare", "--status")[1]
    prepare(store.open())
    assert not foreign.exists()


def test_a_number_used_again_by_another_process_is_told_apart(store: Store) -> None:
    left = orphan(store)
    parts = left.name.split(".")
    again = left.rename(left.with_name(".".join([*parts[:-2], f"{os.getpid()}-1", parts[-1]])))
    prepare(store.open())
    assert not again.exists()


# --- status, finalize, verify ---


def table(said: str) -> dict[str, list[str]]:
    """Rows of the status table by set."""
    rows = [line.split() for line in said.splitlines() if re.match(r"\S+ +\d+/\d+ ", line)]
    return {r[0]: r[1:] for r in rows}


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
    shutil.rmtree(store.store)
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


# --- another configuration meanwhile ---


@pytest.mark.parametrize("command", ["prepare", "score"])
def test_a_set_that_another_process_works_on_is_not_moved_aside(store: Store, command: str) -> None:
    if command == "score":
        store.copy(scored=False)
    with Child(store.command(command), stop_at_write) as at_work:
        at_work.wait_stopped()
        before = store.stamps()
        code, said = store.run("prepare", "-o", "seed=3")
        assert code == 1
        assert "another slmctl is working on" in said
        assert not (store.store / "stale").exists()
        assert store.stamps() == before
        assert store.run("prepare")[0] == 0, "the same configuration is welcome"
    assert store.run("prepare", "-o", "seed=3")[0] == 0
    stale = sorted(p.name for p in (store.store / "stale").iterdir())
    assert [re.sub(r"-\d.*", "", n) for n in stale] == ["tokens-corpus", "tokens-curated", "tokens-heldout-target"]
    kept = next(p for p in (store.store / "stale").iterdir() if "corpus" in p.name)
    assert shards(kept) == store.wanted[CORPUS][1]
    assert shards(store.path(CORPUS)) != store.wanted[CORPUS][1]


def test_a_tokenizer_that_another_process_works_with_is_not_moved_aside(store: Store) -> None:
    store.settings["model"] = {"scratch": {"vocab_size": 300, "hidden_size": 16, "num_attention_heads": 2}}
    store.write()
    with Child(store.command("prepare"), stop_at_write) as at_work:
        at_work.wait_stopped()
        code, said = store.run("prepare", "-o", "model.scratch.vocab_size=310")
        assert code == 1
        assert f"another slmctl is working on {store.store}/tokenizer" in said
        assert not (store.store / "stale").exists()
        at_work.send(signal.SIGCONT)
        assert at_work.wait() == 0, at_work.text()
    assert store.run("prepare", "-o", "model.scratch.vocab_size=310")[0] == 0


@pytest.mark.parametrize(("seed", "code"), [(0, 0), (1, 1)])
def test_two_that_plan_at_once_agree_or_one_is_refused(store: Store, seed: int, code: int) -> None:
    """On a file system without locks: the plan that was published first stays."""

    def stop_before_planning() -> None:
        Workspace.planning = no_lock  # type: ignore[method-assign]
        put_json = Folder.put_json

        def stopping(self: Folder, name: str, data: Any, replace: bool = False) -> bool:
            if name == PLAN and str(self) == str(store.path(CORPUS)):
                os.kill(os.getpid(), signal.SIGSTOP)
            return put_json(self, name, data, replace)

        Folder.put_json = stopping  # type: ignore[method-assign]

    with Child(store.command("prepare", "-o", f"seed={seed}"), stop_before_planning) as late:
        late.wait_stopped()
        shutil.rmtree(store.path("tokens/curated"))  # else the first set would decide already
        first, said = store.run("prepare")
        assert first == 0, said
        late.send(signal.SIGCONT)
        assert late.wait() == code, late.text()
        assert ("another slmctl has just begun tokens/corpus from other inputs" in late.text()) == bool(code)
    assert of(content(store.store), "tokens") == of(store.wanted, "tokens")


def no_lock(_: Workspace) -> Any:
    from contextlib import nullcontext

    return nullcontext()


def test_a_store_that_two_pipelines_share_is_not_moved_aside_under_one_of_them(store: Store) -> None:
    shared = ("-o", f"store_dir={store.root}/shared", "-o")
    with Child(store.command("prepare", *shared, f"output_dir={store.root}/a"), stop_at_write) as at_work:
        at_work.wait_stopped()
        code, said = store.run("prepare", *shared, f"output_dir={store.root}/b", "-o", "seed=3")
        assert code == 1
        assert f"another slmctl is working on {store.root}/shared/tokens/c" in said
        code, said = store.run("prepare", *shared, f"output_dir={store.root}/b")
        assert code == 0, said
        at_work.send(signal.SIGCONT)
        assert at_work.wait() == 0, at_work.text()
    assert content(store.root / "shared") == of(store.wanted, "tokens")


def test_a_hung_planner_does_not_hold_up_the_others_for_ever(store: Store) -> None:
    def hang() -> None:
        prepare_stage.plan_set = lambda *_: os.kill(os.getpid(), signal.SIGSTOP)  # type: ignore[assignment]

    def wait_less() -> None:
        monotonic = time.monotonic
        workspace_module.time = SimpleNamespace(  # type: ignore[assignment]
            **{n: getattr(time, n) for n in ("time", "time_ns", "strftime", "sleep")}, monotonic=lambda: 50 * monotonic()
        )

    with Child(store.command("prepare"), hang) as hung:
        hung.wait_stopped()
        lock = store.store / ".cache" / "locks" / "planning.lock"
        patient = Child(store.command("prepare"), wait_less)
        time.sleep(0.7)
        assert os.waitpid(patient.pid, os.WNOHANG) == (0, 0), "it did not wait"
        os.utime(lock, (time.time() - workspace_module.PATIENCE - 1,) * 2)
        assert patient.wait() == 0, patient.text()
        assert "waiting for another worker to plan" in patient.text()
        assert "has shown no sign of life for 60" in patient.text()
    assert of(content(store.store), "tokens") == of(store.wanted, "tokens")


def test_a_file_system_without_locks_will_do(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(workspace_module.fcntl, "flock", refused)
    prepare(store.open())
    assert of(content(store.store), "tokens") == of(store.wanted, "tokens")
    store.settings["seed"] = 3
    prepare(store.open())
    assert of(content(store.store), "tokens") != of(store.wanted, "tokens")


# --- what score refuses and accepts ---


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, "2 values of ref_loss that are not finite"),
        (np.inf, "2 values of ref_loss that are not finite"),
        (-0.25, "a ref_loss of -0.25"),
    ],
)
def test_losses_that_no_model_gives_are_not_written(
    store: Store, monkeypatch: pytest.MonkeyPatch, value: float, message: str
) -> None:
    store.copy(scored=False)
    real = score_stage.row_losses

    def broken(*args: Any) -> Any:
        losses, entropy, target = real(*args)
        losses[np.unravel_index(np.flatnonzero(target)[[3, 5]], target.shape)] = value
        return losses, entropy, target

    monkeypatch.setattr(score_stage, "row_losses", broken)
    with pytest.raises(TrainingError, match=rf"{message} in shard-00000\.parquet, row group 0; that shard was not written"):
        score(store.open())
    assert [p.name for p in store.path(SCORES).iterdir()] == [PLAN]
    monkeypatch.undo()
    score(store.open())
    assert content(store.store) == store.wanted


def test_a_loss_that_rounding_took_below_zero_is_zero(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.copy(scored=False)
    real = score_stage.row_losses

    def rounded(*args: Any) -> Any:
        losses, entropy, target = real(*args)
        losses[np.unravel_index(np.flatnonzero(target)[0], target.shape)] = -1e-6
        return losses, entropy, target

    monkeypatch.setattr(score_stage, "row_losses", rounded)
    score(store.open())
    assert ShardSet(store.path(SCORES), "scores").read_group(0, ["ref_loss"])["ref_loss"].ravel()[1] == 0.0
    assert store.run("score", "--verify")[0] == 0


def test_a_reference_in_training_mode_is_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.copy(scored=False)
    monkeypatch.setattr(score_stage, "load_model", lambda *a: load_model(*a).train())
    with pytest.raises(ValueError, match="eval mode"):
        score(store.open())
    assert not shards(store.path(SCORES))


def with_reference(store: Store, model: Path, name: str = "curated") -> Store:
    store.settings["score"]["references"][name] = str(model)
    store.write()
    return store


def test_a_reference_with_fewer_ids_than_the_tokens_hold_is_refused(store: Store) -> None:
    small = make_model(make_tokenizer(store.root / "small"), vocab_size=270)
    with pytest.raises(MismatchError, match=rf"the tokens hold id \d+, beyond the vocabulary of 270 of {small}"):
        score(with_reference(store.copy(scored=False), small).open())
    assert not shards(store.path(SCORES))


def test_a_reference_of_another_vocabulary_is_refused_naming_an_id(store: Store) -> None:
    other = store.root / "other"
    tiny_store.train_tokenizer((f"zebra quagga okapi {i}" for i in range(99)), 300, other)
    make_model(other)
    with pytest.raises(MismatchError, match=r"\d+ of 300 ids mean other tokens \(id \d+ is '.+' in the corpus, '.+' there\)"):
        score(with_reference(store.copy(scored=False), other).open())
    assert not shards(store.path(SCORES))


@pytest.mark.parametrize(("hidden", "layers", "vocab_size"), [(8, 1, 300), (48, 3, 320)], ids=["smaller", "larger"])
def test_a_reference_of_another_size_and_end_of_text_is_accepted(store: Store, hidden: int, layers: int, vocab_size: int) -> None:
    """Weak to strong, and strong to weak: all that must be shared is what the ids mean."""
    other = make_model(make_tokenizer(store.root / "other"), vocab_size, hidden, layers, seed=5, bos_token_id=5, eos_token_id=5)
    described = json.loads((other / "tokenizer_config.json").read_text())
    described.update(eos_token="!", pad_token="!", bos_token="!")
    (other / "tokenizer_config.json").write_text(json.dumps(described))
    workspace = with_reference(store.copy(scored=False), other).open()
    assert tiny_store.load_tokenizer(str(other)).eos_id != workspace.tokenizer().eos_id
    score(workspace)
    assert store.run("score", "--verify")[0] == 0
    assert shards(store.path(SCORES)).keys() == store.wanted[SCORES][1].keys()
    assert shards(store.path(SCORES)) != store.wanted[SCORES][1]


def test_a_reference_added_later_leaves_all_else_as_it_was(store: Store) -> None:
    """… and an arm that names it is trained with its losses."""
    before = store.copy().stamps()
    second = make_model(make_tokenizer(store.root / "second"), hidden=8, seed=7)
    store.settings["pretrain"]["arms"]["weak"] = {"selection": {"reference": "second"}}
    with_reference(store, second, "second")
    with pytest.raises(InputError, match=r"scores/second is absent or not complete. Run `slmctl score` first"):
        pretrain(store.open(), ["weak"])
    code, said = store.run("score", "--reference", "second")
    assert (code, "score curated" in said) == (0, False), said
    after = store.stamps()
    assert {k: after[k] for k in before} == before
    found = content(store.store)
    assert {k: v for k, v in found.items() if k != "scores/second"} == store.wanted
    assert found["scores/second"][1].keys() == found[SCORES][1].keys()
    assert not set(found["scores/second"][1].values()) & set(found[SCORES][1].values())
    code, said = store.run("score", "--reference", "third")
    assert code == 2
    assert "--reference third: there is no such one. score.references has: curated, second" in said

    workspace = store.open()
    pretrain(workspace)
    for arm, reference in (("slm", "curated"), ("weak", "second")):
        assert read_json(workspace.arm(arm) / "inputs.json")["scores"] == found[f"scores/{reference}"][0]
    weights = {a: sha256_file(workspace.arm(a) / "model" / "model.safetensors") for a in ("slm", "weak")}
    assert weights["slm"] != weights["weak"], "other losses select other tokens"


# --- what is let through ---


def accepting(store: Store, *fields: str) -> Workspace:
    store.settings["accept_mismatch"] = list(fields)
    return store.open()


def test_a_named_mismatch_is_let_through_and_recorded(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    store.copy()
    store.settings["seed"] = 3
    with pytest.raises(MismatchError, match=r"tokens/corpus:seed: found 0, wanted 3(.|\n)*-o 'accept_mismatch=\[") as e:
        pretrain(store.open())
    offered = json.loads(str(e.value).partition("accept_mismatch=")[2].rstrip("'."))
    assert offered == ["tokens/corpus:seed"]
    with pytest.raises(MismatchError, match="tokens/heldout/target:seed") as e:
        pretrain(accepting(store, *offered))
    offered = json.loads(str(e.value).partition("accept_mismatch=")[2].rstrip("'."))
    assert offered == ["tokens/corpus:seed", "tokens/heldout/target:seed"], "the advice repeats what was accepted already"
    capsys.readouterr()
    workspace = accepting(store, *offered)
    pretrain(workspace)
    warned = " ".join(capsys.readouterr().err.split())
    assert "warning: accept_mismatch lets through tokens/corpus:seed: found 0, wanted 3" in warned
    recorded = read_json(workspace.arm("slm") / "inputs.json")["accepted_mismatches"]
    assert "tokens/corpus:seed: found 0, wanted 3" in recorded
    assert content(store.store) == store.wanted


def test_only_the_named_field_is_let_through(store: Store) -> None:
    store.copy()
    store.settings["seed"] = 3
    store.settings["data"]["shard_bytes"] = 2048
    with pytest.raises(MismatchError, match="tokens/corpus:shard_bytes: found 1024, wanted 2048") as e:
        pretrain(accepting(store, "tokens/corpus:seed", "tokens/curated:shard_bytes"))
    assert "tokens/corpus:seed: found" not in str(e.value)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda s: s["data"].update(seq_len=64), "tokens/corpus:seq_len"),
        (lambda s: s["data"].update(intra_document_mask=True), "scores/curated:intra_document_mask"),
    ],
)
def test_what_would_train_on_losses_of_other_predictions_is_never_let_through(store: Store, change: Any, field: str) -> None:
    store.copy()
    change(store.settings)
    with pytest.raises(MismatchError, match=f"{field}: found") as e:
        pretrain(accepting(store, field))
    assert "accept_mismatch" not in str(e.value), "it offers what does not help"


def test_losses_of_other_tokens_are_never_let_through(store: Store) -> None:
    store.copy()
    store.settings["seed"] = 3
    prepare(store.open())
    fields = ["tokens", "scores/curated:tokens", "scores/curated/manifest.json:tokens", f"{store.path(SCORES)}/{FILE}:tokens"]
    with pytest.raises(MismatchError, match=r"(?s)tokens: found .*These scores belong to other inputs"):
        pretrain(accepting(store, *fields))


def test_going_on_as_it_is_makes_nothing_anew(store: Store) -> None:
    """Neither the scores that took days nor an arm that is half trained."""
    store.copy()
    workspace = store.open()
    pretrain(workspace)
    weights = (workspace.arm("slm") / "model" / "model.safetensors").stat().st_mtime_ns
    before = store.stamps()
    store.settings["data"]["shard_bytes"] = 2048
    workspace = accepting(store, "tokens/corpus:shard_bytes", "tokens/heldout/target:shard_bytes")
    score(workspace)
    pretrain(workspace)
    assert (workspace.arm("slm") / "model" / "model.safetensors").stat().st_mtime_ns == weights
    assert store.stamps() == before
    assert not (store.store / "stale").exists()
    recorded = read_json(workspace.arm("slm") / "inputs.json")["accepted_mismatches"]
    assert recorded[0] == "tokens/corpus:shard_bytes: found 1024, wanted 2048"


def test_what_one_arm_lets_through_is_not_recorded_of_the_next(store: Store) -> None:
    store.copy()
    store.settings["pretrain"]["arms"] = {"slm": {}, "late": {"selection": {"reference": "second"}}}
    with_reference(store, make_model(make_tokenizer(store.root / "second"), seed=7), "second")
    score(store.open(), ["second"])
    store.settings["score"]["references"]["curated"] = store.settings["score"]["references"]["second"]
    plain = "scores/curated:reference.model.safetensors"
    workspace = accepting(store, plain)
    pretrain(workspace)
    assert plain in str(read_json(workspace.arm("slm") / "inputs.json"))
    assert "accepted_mismatches" not in read_json(workspace.arm("late") / "inputs.json")


# --- processes of one worker ---


def children(pid: int) -> list[psutil.Process]:
    try:
        return [p for p in psutil.Process(pid).children(recursive=True) if "resource_tracker" not in " ".join(p.cmdline())]
    except psutil.NoSuchProcess:
        return []


def in_hand(store: Store) -> list[Path]:
    """The shards of the corpus that are being written."""
    return sorted(store.path(CORPUS).glob(".tmp-shard-*"))


def gone(found: list[psutil.Process]) -> bool:
    return not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in found)


def several() -> Callable[[], None]:
    """Has a child prepare in two processes of its own."""

    def patch() -> None:
        prepare_stage.WORTH_A_PROCESS = 1
        prepare_stage.cores = lambda: 2  # type: ignore[assignment]

    return patch


@pytest.fixture
def large(store: Store) -> Store:
    """A corpus that takes some seconds to prepare."""
    pool = [t["text"] for t in texts(9, 400, 200)]
    rng = random.Random(9)
    write_jsonl(store.root / "large.jsonl", [{"text": rng.choice(pool) + " " + rng.choice(pool)} for _ in range(4000)])
    store.settings["data"].update(shard_bytes=2**18, corpus={"path": str(store.root / "large.jsonl")})
    store.write()
    return store


def test_a_killed_process_is_told_and_leaves_none(large: Store) -> None:
    with Child(large.command("prepare"), several()) as parent:
        files: list[Path] = []
        until(lambda: bool(files.extend(in_hand(large)) or files))
        found = children(parent.pid)
        assert len(found) == 2
        writer = int(files[0].name.split(".")[-2].partition("-")[0])
        os.kill(writer, signal.SIGKILL)
        assert parent.wait() == 1
        assert "a worker process died (exit code -9; -9 often means that memory ran out)" in parent.text()
        assert "Traceback" not in parent.text()
        until(lambda: gone(found), 5)
    left = temporaries(large.store)
    assert all(f".{writer}-" in p.name for p in left), "a process that was ended by its parent left a file"


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_to_the_parent_ends_all_and_keeps_what_is_finished(large: Store, signum: int, code: int) -> None:
    with Child(large.command("prepare"), several()) as parent:
        until(lambda: len(shards(large.path(CORPUS))) > 1 and bool(in_hand(large)))
        found = children(parent.pid)
        assert len(found) == 2
        parent.send(signum)
        assert parent.wait() == code, parent.text()
        until(lambda: gone(found), 5)
    assert not temporaries(large.store)
    assert shards(large.path(CORPUS))
    assert table(large.run("prepare", "--status")[1])["corpus"][3] == "0"


def test_processes_end_when_their_parent_is_killed(large: Store) -> None:
    with Child(large.command("prepare"), several()) as parent:
        until(lambda: bool(in_hand(large)))
        found = children(parent.pid)
        assert len(found) == 2
        parent.kill()
        until(lambda: gone(found), 15)


def test_what_a_process_raises_is_raised_by_its_parent(large: Store) -> None:
    file = large.root / "large.jsonl"
    file.write_text('{"words": "no text"}\n' + file.read_text(encoding="utf-8"), encoding="utf-8")
    with Child(large.command("prepare"), several()) as parent:
        assert parent.wait() == 1
        assert re.search(r"error: .*large\.jsonl, line 1: .*'?text'?", parent.text()), parent.text()
        assert "Traceback" not in parent.text()
    assert not temporaries(large.store)


@pytest.mark.parametrize(
    ("job", "message"),
    [
        ("refuse", "no such thing"),
        ("raise", "a worker process failed with OSError: .Errno 5. disk on fire"),
        ("kill", "a worker process died .exit code -9"),
        ("exit", "a worker process died .exit code 3"),
    ],
)
def test_however_a_job_ends_it_is_told(job: str, message: str) -> None:
    import spread_jobs

    with pytest.raises(SlmError, match=message):
        list(processes.spread(["fine", job, "fine"], spread_jobs.setup, 1, 1))


def test_a_process_that_cannot_be_set_up_is_told() -> None:
    import spread_jobs

    with pytest.raises(SlmError, match="cannot be set up"):
        list(processes.spread(["fine"], spread_jobs.broken_setup, 1, 1))


def test_a_hung_process_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    import spread_jobs

    monkeypatch.setattr(processes, "PATIENCE", 0.5)
    with pytest.raises(SlmError, match="no such thing"):
        list(processes.spread(["stop", "refuse late"], spread_jobs.setup, 2, 1))
    assert gone(children(os.getpid()))

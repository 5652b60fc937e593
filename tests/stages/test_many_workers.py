"""prepare and score by many workers: shares that make one whole, two at once, workers that hang or are killed."""

from __future__ import annotations

import os
import random
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from tiny_store import CORPUS, SCORES, SETS, STAGES, Child, Store, content, of, orphan, shards, stop_at_write, temporaries, until

from slmctl.corpus import shard_jobs
from slmctl.stages.prepare import prepare
from slmctl.store import build
from slmctl.store.manifest import FILE
from slmctl.store.shard_format import shard_name
from slmctl.system.local_storage import LocalFolder
from slmctl.system.temporaries import ABANDONED_AFTER
from slmctl.workspace.workers import Share


def made(store: Store, kind: str) -> list[tuple[str, int]]:
    """The shards that are there, in the order in which their sets are planned."""
    names = SETS if kind == "tokens" else (SCORES,)
    return [(n, int(f[6:11])) for n in names for f in shards(store.path(n))]


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
    monkeypatch.setattr(shard_jobs, "WORTH_A_PROCESS", 1)
    monkeypatch.setattr(shard_jobs, "cores", lambda: 2)
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


def test_a_shard_that_another_has_mended_meanwhile_stays(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker found it broken, hung, and goes on once another one has made it anew."""
    store.copy()
    (store.path(CORPUS) / FILE).unlink()
    before, looked = store.stamps(), build.whole_shard

    def long_ago(*_: Any) -> None:
        monkeypatch.setattr(build, "whole_shard", looked)

    monkeypatch.setattr(build, "whole_shard", long_ago)
    prepare(store.open())
    after = store.stamps()
    assert {k: after[k] for k in before} == before
    assert content(store.store) == store.wanted
    assert not list(store.path(CORPUS).glob("*broken*"))


def test_what_was_left_beside_the_sets_is_swept_too(store: Store) -> None:
    """A worker that was killed while it kept the hashes of the texts."""

    def die() -> None:
        replace = os.replace

        def dying(a: Any, b: Any) -> None:
            if Path(b).name == "hashes.json":
                os.kill(os.getpid(), signal.SIGKILL)
            replace(a, b)

        os.replace = dying  # type: ignore[assignment]

    with Child(store.command("prepare"), die) as killed:
        assert killed.wait() == -signal.SIGKILL
    assert [p.parent.name for p in temporaries(store.store)] == [".cache"]
    prepare(store.open())
    assert not temporaries(store.store)


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

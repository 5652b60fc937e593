"""The processes of one worker: killed, signalled, hung, or failing."""

from __future__ import annotations

import os
import random
import re
import signal
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from tiny_pipeline import write_jsonl
from tiny_store import CORPUS, Child, Store, shards, table, temporaries, texts, until

from slmctl.corpus import shard_jobs
from slmctl.system import processes
from slmctl.system.errors import SlmError


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
        shard_jobs.WORTH_A_PROCESS = 1
        shard_jobs.cores = lambda: 2 * shard_jobs.THREADS_A_PROCESS  # type: ignore[assignment]

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
    before = children(os.getpid())  # of other tests
    import spread_jobs

    monkeypatch.setattr(processes, "PATIENCE", 0.5)
    with pytest.raises(SlmError, match="no such thing"):
        list(processes.spread(["stop", "refuse late"], spread_jobs.setup, 2, 1))
    assert gone([p for p in children(os.getpid()) if p not in before])

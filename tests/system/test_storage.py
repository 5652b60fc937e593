"""A local folder of files: whole or absent, the first one wins, and what dead writers left is swept."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slmctl.system import local_storage
from slmctl.system.errors import CorruptError, SlmError
from slmctl.system.local_storage import LocalFolder
from slmctl.system.storage import Folder
from slmctl.system.temporaries import ABANDONED_AFTER


def names(directory: Path) -> list[str]:
    return sorted(f.name for f in directory.iterdir()) if directory.is_dir() else []


@pytest.fixture(params=["with hard links", "without hard links"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalFolder:
    if request.param == "without hard links":

        def refused(*_: Any, **__: Any) -> None:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))

        monkeypatch.setattr(local_storage.os, "link", refused)
    return LocalFolder(tmp_path / "set")


def written(folder: LocalFolder, name: str, data: bytes) -> Path:
    temporary = folder.temporary(name)
    temporary.write_bytes(data)
    return temporary


def test_what_is_put_is_there_and_the_first_stays(folder: LocalFolder) -> None:
    assert folder.put("a", b"first") is True
    assert folder.put("a", b"second") is False
    assert folder.read("a") == b"first"
    assert folder.put("a", b"third", replace=True) is True
    assert folder.read("a") == b"third"
    assert names(folder.path) == ["a"]


def test_of_two_finished_files_the_first_that_is_published_stays(folder: LocalFolder) -> None:
    one, two = written(folder, "a", b"one"), written(folder, "a", b"two")
    assert one != two
    assert folder.publish(two, "a") is True
    assert folder.publish(one, "a") is False
    for temporary in (one, two):
        temporary.unlink(missing_ok=True)
    assert folder.read("a") == b"two"
    assert names(folder.path) == ["a"]


def test_of_many_threads_one_wins(tmp_path: Path) -> None:
    folder, won, start = LocalFolder(tmp_path), [], threading.Barrier(8)

    def put(i: int) -> None:
        start.wait()
        if folder.put("a", str(i).encode() * 1000):
            won.append(i)

    threads = [threading.Thread(target=put, args=(i,)) for i in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(won) == 1
    assert folder.read("a") == str(won[0]).encode() * 1000
    assert names(tmp_path) == ["a"]


def test_a_swept_temporary_is_told(folder: LocalFolder) -> None:
    temporary = written(folder, "a", b"x")
    temporary.unlink()
    with pytest.raises(FileNotFoundError):
        folder.publish(temporary, "a")
    assert names(folder.path) == []


def test_a_temporary_that_vanishes_at_the_last_moment_is_told(folder: LocalFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between its fsync and its publication."""
    temporary = written(folder, "a", b"x")
    fsync = os.fsync

    def swept(fd: int) -> None:
        fsync(fd)
        temporary.unlink(missing_ok=True)

    monkeypatch.setattr(local_storage.os, "fsync", swept)
    with pytest.raises(FileNotFoundError):
        folder.publish(temporary, "a")
    assert names(folder.path) == []


def test_a_file_is_synced_before_it_is_published_and_its_folder_after(
    folder: LocalFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("needs /proc")
    events: list[str] = []

    def note(function: Callable[..., Any], what: Callable[..., str]) -> Callable[..., Any]:
        def noting(*args: Any) -> Any:
            found = function(*args)
            events.append(what(*args))
            return found

        return noting

    monkeypatch.setattr(os, "fsync", note(os.fsync, lambda fd: f"sync {Path(os.readlink(f'/proc/self/fd/{fd}')).name[:6]}"))
    for name in ("link", "rename", "replace"):
        monkeypatch.setattr(os, name, note(getattr(os, name), lambda *_: "publish"))
    folder.put("a", b"x")
    assert events == ["sync .tmp-a", "publish", "sync set"]
    events.clear()
    folder.put("a", b"y", replace=True)
    assert events == ["sync .tmp-a", "publish", "sync set"]


def test_an_error_while_putting_leaves_what_was_there(folder: LocalFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.put("a", b"old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    for replace in (False, True):
        with pytest.raises(SlmError, match=r"no space left while writing .*/set/a"):
            folder.put("a", b"new", replace)
    assert folder.read("a") == b"old"
    assert names(folder.path) == ["a"]


def test_a_refused_folder_is_one_clear_message(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(SlmError, match=r"cannot write .*Choose another output_dir"):
        LocalFolder(tmp_path / "file" / "set").put("a", b"x")


def test_json_goes_through(folder: LocalFolder) -> None:
    assert folder.put_json("a.json", {"é": [1, None, 0.1]})
    assert folder.get_json("a.json") == {"é": [1, None, 0.1]}
    with pytest.raises(ValueError, match="JSON compliant"):
        folder.put_json("b.json", float("nan"))
    folder.put("b.json", b"{")
    with pytest.raises(CorruptError, match=r"b\.json is not valid JSON"):
        folder.get_json("b.json")
    with pytest.raises(FileNotFoundError):
        folder.get_json("c.json")


# --- listing ---


def test_listing_and_reading(folder: LocalFolder) -> None:
    assert folder.listing() == {}
    assert not folder.exists("a")
    folder.put("a", b"0123456789")
    (folder.path / "below").mkdir()
    (folder.path / "dangling").symlink_to("nowhere")
    assert {n: e.size for n, e in folder.listing().items()} == {"a": 10}
    assert abs(folder.listing()["a"].modified - time.time()) < 60
    assert folder.exists("a")
    assert not folder.exists("below")
    assert not folder.exists("dangling")
    source = folder.open("a")
    assert (source.size, source.read_at(2, 3), source.read_at(8, 5), source.read_at(20, 1)) == (10, b"234", b"89", b"")
    source.close()
    source.close()
    for act in (folder.read, folder.open):
        with pytest.raises(FileNotFoundError):
            act("b")
    folder.remove("a")
    folder.remove("a")
    assert folder.listing() == {}
    assert Folder.at(folder) is folder
    assert str(Folder.at(str(folder.path)) / "b") == f"{folder.path}/b"


@pytest.mark.parametrize("when", ["while it is listed", "before its size is asked for"])
def test_files_may_vanish_while_they_are_listed(folder: LocalFolder, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    for i in range(4):
        folder.put(f"f{i}", b"x")
    scandir = os.scandir

    class Vanishing:
        def __init__(self, path: Any) -> None:
            self.entries = scandir(path)

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_: object) -> None:
            self.entries.close()

        def __iter__(self) -> Any:
            for e in self.entries:
                if when == "before its size is asked for":
                    e.is_file()
                if e.name == "f2":
                    os.unlink(e.path)
                yield e

    monkeypatch.setattr(local_storage.os, "scandir", Vanishing)
    assert sorted(folder.listing()) == ["f0", "f1", "f3"]


def test_a_folder_may_vanish_while_it_is_listed(tmp_path: Path) -> None:
    """Another process moves a set aside while this one looks at it."""
    folder, stop, problems = LocalFolder(tmp_path / "set"), threading.Event(), []

    def look() -> None:
        while not stop.is_set():
            try:
                folder.listing()
                folder.temporaries()
                folder.sweep()
            except Exception as e:
                problems.append(e)
                return

    thread = threading.Thread(target=look)
    thread.start()
    for i in range(300):
        folder.put("a", b"x")
        (tmp_path / "set").rename(tmp_path / f"stale-{i}")
    stop.set()
    thread.join()
    assert not problems


# --- what writers left ---


def killed_writer(folder: LocalFolder, name: str) -> Path:
    """What a process that was killed (-9) while it wrote `name` left."""
    there = set(folder.temporaries())
    pid = os.fork()
    if pid == 0:
        written(folder, name, b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    (left,) = set(folder.temporaries()) - there
    return folder.path / left


def test_sweep_takes_what_dead_writers_left_and_nothing_else(folder: LocalFolder) -> None:
    folder.put("a", b"whole")
    mine, dead = written(folder, "b", b"in the making"), killed_writer(folder, "b")
    assert folder.temporaries() == {mine.name: False, dead.name: True}
    assert folder.sweep() == [dead.name]
    assert names(folder.path) == sorted([mine.name, "a"])
    assert folder.sweep() == []
    assert folder.publish(mine, "b") is True


def test_a_writer_killed_right_after_publishing_leaves_a_second_name_that_is_swept(folder: LocalFolder) -> None:
    pid = os.fork()
    if pid == 0:
        folder.publish(written(folder, "a", b"whole"), "a")
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    folder.sweep()
    assert names(folder.path) == ["a"]
    assert folder.read("a") == b"whole"


def test_a_stopped_writer_is_not_dead(folder: LocalFolder) -> None:
    pid = os.fork()
    if pid == 0:
        written(folder, "a", b"half")
        os.kill(os.getpid(), signal.SIGSTOP)
        os._exit(0)
    os.waitpid(pid, os.WUNTRACED)
    try:
        assert list(folder.temporaries().values()) == [False]
        assert folder.sweep() == []
    finally:
        os.kill(pid, signal.SIGKILL)
    until_zombie(pid)
    assert list(folder.temporaries().values()) == [True], "dead, though nobody has waited for it yet"
    os.waitpid(pid, 0)
    assert len(folder.sweep()) == 1


def until_zombie(pid: int) -> None:
    end = time.monotonic() + 5
    while time.monotonic() < end and " Z " not in Path(f"/proc/{pid}/stat").read_text():
        time.sleep(0.01)


def test_what_another_machine_writes_is_swept_only_when_it_is_old(folder: LocalFolder) -> None:
    left = killed_writer(folder, "a")
    parts = left.name.split(".")
    foreign = left.rename(left.with_name(".".join([*parts[:-3], "89abcdef", *parts[-2:]])))
    odd = written(folder, "b", b"x").rename(folder.path / ".tmp-of an older version")
    assert folder.temporaries() == {foreign.name: False, odd.name: False}
    assert folder.sweep() == []
    for file in (foreign, odd):
        os.utime(file, (time.time() - ABANDONED_AFTER - 1,) * 2)
    assert sorted(folder.sweep()) == sorted([foreign.name, odd.name])


def test_sweeping_what_another_sweeps_is_no_error(folder: LocalFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    dead = killed_writer(folder, "a")
    found = folder.temporaries()
    dead.unlink()
    monkeypatch.setattr(folder, "temporaries", lambda: found)
    assert folder.sweep() == [dead.name]


def test_temporaries_that_vanish_meanwhile_are_no_error(folder: LocalFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    left = killed_writer(folder, "a")
    parts = left.name.split(".")
    foreign = left.rename(left.with_name(".".join([*parts[:-3], "89abcdef", *parts[-2:]])))
    iterdir = Path.iterdir

    def vanishing(path: Path) -> Any:
        for f in iterdir(path):
            f.unlink()
            yield f

    monkeypatch.setattr(Path, "iterdir", vanishing)
    assert folder.sweep() == []
    assert not foreign.exists()


def test_what_is_broken_is_set_aside_and_makes_room(folder: LocalFolder) -> None:
    folder.put("shard-00000.parquet", b"broken")
    folder.set_aside("shard-00000.parquet")
    assert not folder.exists("shard-00000.parquet")
    assert [p.read_bytes() for p in folder.path.iterdir()] == [b"broken"], "kept under another name"
    assert not list(folder.path.glob("*.parquet")), "a tool that reads the whole folder would take it in"
    assert folder.put("shard-00000.parquet", b"whole") is True
    folder.set_aside("never-there")

"""Files that are whole or absent: what a crash, a full disk or a rerun leaves behind."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from slmctl.system import files
from slmctl.system.errors import CorruptError, InputError, SlmError
from slmctl.system.files import publishing, read_json, sweep, write_json
from slmctl.system.hashes import HashCache, sha256_json
from slmctl.system.temporaries import ABANDONED_AFTER, is_abandoned, temporary_beside


def names(directory: Path) -> list[str]:
    return sorted(f.name for f in directory.iterdir())


def write_directory(final: Path, content: str) -> None:
    with publishing(final) as temporary:
        (temporary / "deep").mkdir(parents=True)
        (temporary / "a").write_text(content)
        (temporary / "deep" / "b").write_text(content)


@pytest.fixture(params=["file", "directory"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def half_write(final: Path, kind: str, error: BaseException) -> None:
    with publishing(final) as temporary:
        if kind == "file":
            temporary.write_text("half")
        else:
            temporary.mkdir()
            (temporary / "a").write_text("half")
        raise error


def content(path: Path) -> Any:
    return (
        path.read_text() if path.is_file() else {str(f.relative_to(path)): f.read_text() for f in path.rglob("*") if f.is_file()}
    )


def test_nothing_is_seen_at_the_final_place_before_the_end(tmp_path: Path) -> None:
    final = tmp_path / "new" / "folder" / "f"
    with publishing(final) as temporary:
        temporary.write_text("x")
        assert not final.exists()
        assert temporary.parent == final.parent, "a rename must not cross file systems"
    assert final.read_text() == "x"
    assert names(final.parent) == ["f"]


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), SystemExit(1)])
def test_an_error_leaves_nothing(tmp_path: Path, kind: str, error: BaseException) -> None:
    with pytest.raises(type(error)):
        half_write(tmp_path / "f", kind, error)
    assert names(tmp_path) == []


def test_an_error_leaves_the_old_one_as_it_was(tmp_path: Path, kind: str) -> None:
    final = tmp_path / "f"
    if kind == "file":
        final.write_text("old")
    else:
        write_directory(final, "old")
    before = content(final)
    with pytest.raises(ValueError, match="x"):
        half_write(final, kind, ValueError("x"))
    assert content(final) == before
    assert names(tmp_path) == ["f"]


def test_a_failed_check_is_not_published(tmp_path: Path) -> None:
    def check(temporary: Path) -> None:
        assert temporary.read_text() == "written"
        raise CorruptError("no")

    with pytest.raises(CorruptError), publishing(tmp_path / "f", check) as temporary:
        temporary.write_text("written")
    assert names(tmp_path) == []


def test_a_directory_replaces_the_old_one_whole(tmp_path: Path) -> None:
    final = tmp_path / "d"
    write_directory(final, "old")
    (final / "only in the old one").write_text("x")
    write_directory(final, "new")
    assert content(final) == {"a": "new", "deep/b": "new"}
    assert names(tmp_path) == ["d"]


@pytest.mark.parametrize("fails", [1, 2])
def test_the_old_directory_survives_a_replacement_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: int) -> None:
    """At whichever rename it fails, a whole directory, old or new, is at the final place."""
    final = tmp_path / "d"
    write_directory(final, "old")
    rename, calls = os.rename, 0

    def failing(a: Any, b: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == fails:
            raise OSError(errno.EIO, "input/output error")
        rename(a, b)

    monkeypatch.setattr(files.os, "rename", failing)
    with pytest.raises(OSError, match="input/output error"):
        write_directory(final, "new")
    assert final.is_dir(), f"nothing is left at the final place, only {names(tmp_path)}"
    assert set(content(final).values()) in ({"old"}, {"new"})
    assert names(tmp_path) == ["d"]


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (errno.ENOSPC, "no space left"),
        (errno.EDQUOT, "no space left"),
        (errno.EACCES, "cannot write"),
        (errno.EROFS, "cannot write"),
    ],
)
def test_a_full_or_refusing_disk_is_one_clear_message(tmp_path: Path, kind: str, code: int, said: str) -> None:
    with pytest.raises(SlmError, match=said) as e:
        half_write(tmp_path / "f", kind, OSError(code, os.strerror(code)))
    assert str(tmp_path / "f") in str(e.value)
    assert names(tmp_path) == []


def test_a_full_disk_at_the_very_last_moment_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(SlmError, match="no space left"):
        write_json(tmp_path / "f.json", {})
    assert names(tmp_path) == []


def test_a_folder_below_a_file_is_refused_clearly(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x")
    with pytest.raises(SlmError, match="cannot write"):
        write_json(tmp_path / "f" / "g.json", {})


def test_every_file_is_synced_before_it_is_published_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, replace, rename = os.fsync, os.replace, os.rename

    def note_sync(fd: int) -> None:
        events.append(Path(os.readlink(f"/proc/self/fd/{fd}")).name)
        fsync(fd)

    def note_replace(a: Any, b: Any) -> None:
        events.append("publish")
        replace(a, b)

    def note_rename(a: Any, b: Any) -> None:
        events.append("publish")
        rename(a, b)

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("needs /proc")
    for name, function in (("fsync", note_sync), ("replace", note_replace), ("rename", note_rename)):
        monkeypatch.setattr(files.os, name, function)
    write_directory(tmp_path / "d", "x")
    assert sorted(events[: events.index("publish")])[-2:] == ["a", "b"]
    assert events[-1] == tmp_path.name


def test_sweep_removes_what_a_killed_process_left_and_nothing_else(tmp_path: Path) -> None:
    pid = os.fork()
    if pid == 0:  # dies within the block, as under kill -9
        with publishing(tmp_path / "f") as temporary:
            temporary.write_text("half")
            os._exit(0)
    os.waitpid(pid, 0)
    pid = os.fork()
    if pid == 0:
        with publishing(tmp_path / "d") as temporary:
            temporary.mkdir()
            (temporary / "a").write_text("half")
            os._exit(0)
    os.waitpid(pid, 0)
    assert len(names(tmp_path)) == 2
    assert all(n.startswith(".tmp-") for n in names(tmp_path))
    (tmp_path / "keep").write_text("x")
    sweep(tmp_path)
    assert names(tmp_path) == ["keep"]
    sweep(tmp_path / "absent")


def test_sweep_leaves_what_a_living_process_writes_even_one_that_hangs(tmp_path: Path) -> None:
    pid = os.fork()
    if pid == 0:
        with publishing(tmp_path / "f") as temporary:
            temporary.write_text("half")
            os.kill(os.getpid(), signal.SIGSTOP)
        os._exit(0)
    try:
        assert os.WIFSTOPPED(os.waitpid(pid, os.WUNTRACED)[1])
        (left,) = tmp_path.iterdir()
        assert not is_abandoned(left)
        sweep(tmp_path)
        assert left.is_file()
    finally:
        os.kill(pid, signal.SIGCONT)
        os.waitpid(pid, 0)
    assert names(tmp_path) == ["f"]


def test_a_process_number_that_was_used_again_does_not_keep_a_temporary(tmp_path: Path) -> None:
    """Process 1 lives, but did not start when the writer did."""
    mine = temporary_beside(tmp_path / "f")
    *first, host, process, unique = mine.name.split(".")
    mine.write_text("half")
    assert not is_abandoned(mine)
    for other in (f"1-{process.partition('-')[2]}", f"{os.getpid()}-1", f"{2**22 + 1}-5"):
        assert is_abandoned(mine.with_name(".".join([*first, host, other, unique]))), other


def test_a_temporary_of_another_machine_is_left_until_nothing_was_written_for_hours(tmp_path: Path) -> None:
    left = tmp_path / ".tmp-shard-00000.parquet.0badcafe.77-5.abc"
    left.write_text("half")
    sweep(tmp_path)
    assert left.is_file()
    os.utime(left, times=(0, time.time() - ABANDONED_AFTER - 60))
    sweep(tmp_path)
    assert names(tmp_path) == []


# --- JSON and hashes ---


def test_json_comes_back_and_broken_or_absent_json_is_refused(tmp_path: Path) -> None:
    data = {"a": [1, 2.5, None, True], "é": "漢"}
    write_json(tmp_path / "a.json", data)
    assert read_json(tmp_path / "a.json") == data == json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    with pytest.raises(InputError, match="does not exist"):
        read_json(tmp_path / "b.json")
    for broken in (b"", b"{", b'{"a": 1', b"\xff"):
        (tmp_path / "b.json").write_bytes(broken)
        with pytest.raises(CorruptError, match="not valid JSON"):
            read_json(tmp_path / "b.json")


def test_json_with_nan_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "a.json", {"a": float("nan")})
    assert names(tmp_path) == []


def test_equal_content_has_equal_hashes() -> None:
    assert sha256_json({"a": 1, "b": [2]}) == sha256_json({"b": [2], "a": 1}) == sha256_json({"b": (2,), "a": 1})
    assert sha256_json({"a": 1}) != sha256_json({"a": 2})
    assert sha256_json([1, 2]) != sha256_json([2, 1])


def test_the_hash_cache_hashes_a_file_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "f"
    file.write_text("one")
    calls: list[str] = []
    true = HashCache.stream
    monkeypatch.setattr(HashCache, "stream", lambda self, stream: (calls.append(stream.name), true(self, stream))[1])
    one = hashlib.sha256(b"one").hexdigest()
    first = HashCache(tmp_path / "cache.json")
    assert [first.sha256(file), first.sha256(file)] == [one, one]
    first.save()
    assert HashCache(tmp_path / "cache.json").sha256(file) == one
    assert len(calls) == 1
    file.write_text("three")
    assert HashCache(tmp_path / "cache.json").sha256(file) == hashlib.sha256(b"three").hexdigest()
    os.utime(file, ns=(0, 0))
    file.write_text("seven")  # as long, but another time
    assert HashCache(tmp_path / "cache.json").sha256(file) == hashlib.sha256(b"seven").hexdigest()


@pytest.mark.parametrize("broken", ["", "{", "[]", "3", '{"x": 1}'])
def test_a_broken_hash_cache_is_as_good_as_none(tmp_path: Path, broken: str) -> None:
    (tmp_path / "f").write_text("one")
    (tmp_path / "cache.json").write_text(broken)
    assert HashCache(tmp_path / "cache.json").sha256(tmp_path / "f") == hashlib.sha256(b"one").hexdigest()


def test_hashes_of_several_files_go_by_name(tmp_path: Path) -> None:
    for n in "ba":
        (tmp_path / n).write_text(n)
    want = {n: hashlib.sha256(n.encode()).hexdigest() for n in "ab"}
    assert HashCache(tmp_path / "cache.json").of([tmp_path / "b", tmp_path / "a"]) == want

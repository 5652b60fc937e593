"""A disk that fills up at any moment: one clear message, nothing half-written, and a rerun that completes the work."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import tiny_store
import yaml
from tiny_store import content, of, temporaries

from slmctl.cli.process import main
from slmctl.stages.prepare import prepare
from slmctl.stages.score import score
from slmctl.store.shard_file import ShardFile
from slmctl.system.storage import Folder

PAGE = 4096
"""What a small disk gives out at once."""


class SmallDisk:
    """A file system of 4 MiB that is full but for `room` bytes."""

    def __init__(self, path: Path) -> None:
        self.path, self.filler = path, path / "filler"

    def leave(self, room: int) -> None:
        with open(self.filler, "ab", buffering=0) as f:
            with suppress(OSError):
                while f.write(b"\0" * PAGE):
                    pass
            f.truncate(max(0, f.tell() // PAGE * PAGE - room))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    path = tmp_path / "disk"
    path.mkdir()
    try:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=4m", "slmctl", path], capture_output=True, text=True, timeout=20
        )
    except OSError as e:
        pytest.skip(f"a small disk cannot be mounted here: {e}")
    if done.returncode:
        pytest.skip(f"a small disk cannot be mounted here (it takes root): {done.stderr.strip()}")
    try:
        yield SmallDisk(path)
    finally:
        tiny_store.release_locks()
        subprocess.run(["umount", "-l", path], check=True, timeout=20)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings, and what an undisturbed run makes of them."""
    root = tmp_path_factory.mktemp("alone")
    settings = tiny_store.store_settings(root, documents=1600)
    settings["data"]["shard_bytes"] = 2**16
    prepare(tiny_store.open_workspace(settings))
    score(tiny_store.open_workspace(settings))
    return settings, content(root / "run")


def run(config: Path, command: str) -> int:
    tiny_store.release_locks()
    with pytest.raises(SystemExit) as e:
        main([command, str(config)])
    return e.value.code if isinstance(e.value.code, int) else 0


def assert_nothing_half_written(root: Path) -> None:
    assert not temporaries(root), "the ended process left a temporary file"
    for file in root.rglob("*") if root.is_dir() else ():
        if file.name.startswith("shard-"):
            ShardFile(Folder.at(file.parent), file.name).verify()
        elif file.suffix == ".json":
            assert json.loads(file.read_bytes()), file
        elif file.suffix == ".yaml":
            assert yaml.safe_load(file.read_bytes())["name"] == "tiny", file


@pytest.mark.parametrize(("anew", "step"), [(False, PAGE), (True, 3 * PAGE)], ids=["reruns go on", "each run begins anew"])
def test_a_disk_that_is_full_at_any_moment_costs_only_a_rerun(
    undisturbed: tuple[dict[str, Any], dict[str, Any]],
    disk: SmallDisk,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    anew: bool,
    step: int,
) -> None:
    """Each run gets so much more room, so that it runs out at every file that is written, and within it."""
    settings, wanted = undisturbed
    output = disk.path / "run"
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump({**settings, "output_dir": str(output)}), encoding="utf-8")
    for command, kind in (("prepare", "tokens"), ("score", "scores")):
        mine = output if kind == "tokens" else output / "scores"
        runs = 0
        disk.leave(0)
        while (code := run(config, command)) != 0:
            runs += 1
            said = capfd.readouterr().err
            assert code == 1, said
            assert said.count("error: ") == 1, said
            assert "no space left" in said.partition("error: ")[2], said
            assert "unexpected" not in said, said
            assert "Traceback" not in said, said
            assert_nothing_half_written(output)
            if anew:
                subprocess.run(["rm", "-rf", mine], check=True)
            disk.leave(runs * step)
        assert runs > 5, "the disk was hardly ever full"
        assert_nothing_half_written(output)
        assert of(content(output), kind) == of(wanted, kind)


def test_a_full_disk_in_a_process_of_its_own_is_told_as_clearly(
    undisturbed: tuple[dict[str, Any], dict[str, Any]], disk: SmallDisk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, wanted = undisturbed
    output = disk.path / "run"
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump({**settings, "output_dir": str(output)}), encoding="utf-8")
    monkeypatch.setattr("slmctl.corpus.shard_jobs.WORTH_A_PROCESS", 1)
    monkeypatch.setattr("slmctl.corpus.shard_jobs.cores", lambda: 2)
    disk.leave(12 * PAGE)
    with tiny_store.Child(["prepare", str(config)]) as child:
        assert child.wait() == 1
        assert "no space left while writing" in child.text()
        assert child.text().count("error: ") == 1
    assert_nothing_half_written(output)
    disk.leave(2**20)
    assert run(config, "prepare") == 0
    assert content(output) == of(wanted, "tokens")

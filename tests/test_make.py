"""The Makefile, dry: what each stage's target would run, what it says without CONFIG, and its help."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import slow_tests
from typer.main import get_command

from slmctl.cli.application import app

HERE = Path(__file__).resolve().parent
STAGES = ("prepare", "train-base", "train-ref", "score", "pretrain", "eval", "report", "run")
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="no make")


def make(*words: str) -> subprocess.CompletedProcess[str]:
    env = {n: v for n, v in os.environ.items() if n not in ("CONFIG", "ARGS", "MAKEFLAGS", "MAKELEVEL")}
    return subprocess.run(["make", *words], cwd=HERE.parent, env=env, capture_output=True, text=True, timeout=60)


def test_the_stages_are_commands() -> None:
    assert set(STAGES) <= set(get_command(app).commands)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_the_command_of_its_name_after_install(stage: str) -> None:
    done = make("-n", "-W", "pyproject.toml", stage, "CONFIG=some where/a.yaml", "ARGS=-o seed=3 --debug")
    assert done.returncode == 0, done.stderr
    *before, last = done.stdout.splitlines()
    assert last == f".venv/bin/slmctl {stage} 'some where/a.yaml' -o seed=3 --debug"
    assert any("pip install" in line for line in before)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("given", [(), ("CONFIG=",)])
def test_without_a_configuration_nothing_is_run_or_installed(stage: str, given: tuple[str, ...]) -> None:
    done = make("-n", "-W", "pyproject.toml", stage, *given)
    assert done.returncode == 2
    assert done.stdout == ""
    assert f"CONFIG is not given. Name the pipeline: make {stage} CONFIG=pipelines/NAME.yaml" in done.stderr


def test_help_shows_every_target_in_two_columns_that_fit() -> None:
    lines = make().stdout.splitlines()
    assert lines == make("help").stdout.splitlines()
    assert "CONFIG=" in lines.pop()
    targets = re.findall(r"^([a-z-]+):", (HERE.parent / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert [line[:12].rstrip() for line in lines] == [t for t in targets if t != "configured"]
    assert {"install", "demo", "test", "check", *STAGES} <= set(targets)
    for line in lines:
        assert len(line) <= 80, line
        assert re.fullmatch(r"[a-z-]+ +", line[:12]), line
        assert line[12].isupper(), line


def test_check_leaves_out_what_test_alone_runs() -> None:
    wanted = {"check": True, "test": False}
    for target, fast in wanted.items():
        said = make("-n", target, "CONFIG=").stdout
        assert ("-m 'not slow'" in said.splitlines()[-1]) == fast
        for tool in ("ruff check", "ruff format --check", "mypy", "pytest"):
            assert f".venv/bin/{tool}" in said, target


def test_every_room_keeps_fast_tests() -> None:
    """A room whose tests are all slow would be changed without `make check` seeing it."""
    rooms = [p.name for p in (HERE.parent / "slmctl").iterdir() if (p / "__init__.py").is_file()]
    assert len(rooms) > 10
    for room in rooms:
        fast = [
            test
            for file in (HERE / room).rglob("test_*.py")
            for test in re.findall(r"^def (test_\w+)\(", file.read_text(encoding="utf-8"), re.MULTILINE)
            if not slow_tests.is_slow(file.relative_to(HERE), test)
        ]
        assert fast, room


def test_the_table_of_slow_tests_names_what_is_there(tmp_path: Path) -> None:
    slow_tests.check_entries([*slow_tests.SLOW, *slow_tests.FAST], HERE)
    (tmp_path / "test_a.py").write_text("def test_b(): pass\n")
    slow_tests.check_entries(["test_a.py", "test_a.py::test_b"], tmp_path)
    for entry in ("test_b.py", "test_a.py::test_c", "test_a.py::test", "stages"):
        with pytest.raises(ValueError, match=re.escape(entry)):
            slow_tests.check_entries([entry], tmp_path)


def test_the_nearest_entry_decides() -> None:
    slow, fast = ("a", "b.py", "c.py::test_x"), ("a/d.py", "b.py::test_y", "a/e.py::test_z")
    found = {
        (file, test)
        for file in ("a/d.py", "a/e.py", "b.py", "c.py", "d.py")
        for test in ("test_x", "test_y", "test_z")
        if slow_tests.is_slow(Path(file), test, slow, fast)
    }
    assert found == {("a/e.py", "test_x"), ("a/e.py", "test_y"), ("b.py", "test_x"), ("b.py", "test_z"), ("c.py", "test_x")}

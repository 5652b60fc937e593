"""Other settings meanwhile: what others work on is not moved aside; who plans, and who waits."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import time
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_store import CORPUS, Child, Store, content, of, shards, stop_at_write

from slmctl.stages import prepare as prepare_stage
from slmctl.stages.prepare import prepare
from slmctl.store.build import PLAN
from slmctl.system import console as console_module
from slmctl.system.storage import Folder
from slmctl.workspace import folders as folders_module
from slmctl.workspace import locks as locks_module
from slmctl.workspace.workspace import Workspace


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


@pytest.mark.parametrize("when", ["before it publishes", "after it has looked"])
@pytest.mark.parametrize(("seed", "code"), [(0, 0), (1, 1)])
def test_two_that_plan_at_once_agree_or_one_is_refused(store: Store, seed: int, code: int, when: str) -> None:
    """On a file system without locks: the plan that was published first stays, and nothing is moved aside."""
    corpus, seen = str(store.path(CORPUS)), 0

    def stop_while_planning() -> None:
        Workspace.planning = no_lock  # type: ignore[method-assign]
        put_json, read_plan = Folder.put_json, folders_module.read_plan

        def stopping_put(self: Folder, name: str, data: Any, replace: bool = False) -> bool:
            if name == PLAN and str(self) == corpus and when == "before it publishes":
                os.kill(os.getpid(), signal.SIGSTOP)
            return put_json(self, name, data, replace)

        def stopping_read(folder: Folder) -> Any:
            nonlocal seen
            found = read_plan(folder)
            seen += str(folder) == corpus
            if str(folder) == corpus and seen == 2 and when == "after it has looked":  # once to claim it, once to begin it
                os.kill(os.getpid(), signal.SIGSTOP)
            return found

        Folder.put_json = stopping_put  # type: ignore[method-assign]
        folders_module.read_plan = stopping_read

    with Child(store.command("prepare", "-o", f"seed={seed}"), stop_while_planning) as late:
        late.wait_stopped()
        shutil.rmtree(store.path("tokens/curated"))  # else the first set would decide already
        first, said = store.run("prepare")
        assert first == 0, said
        late.send(signal.SIGCONT)
        assert late.wait() == code, late.text()
        assert ("another slmctl has just begun tokens/corpus from other inputs" in late.text()) == bool(code)
    assert of(content(store.store), "tokens") == of(store.wanted, "tokens")
    assert not (store.store / "stale").exists()


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
        console_module.PATIENCE = 0.2
        locks_module.time = SimpleNamespace(  # type: ignore[assignment]
            **{n: getattr(time, n) for n in ("time", "time_ns", "strftime", "sleep")}, monotonic=lambda: 50 * monotonic()
        )

    with Child(store.command("prepare"), hang) as hung:
        hung.wait_stopped()
        lock = store.store / ".cache" / "locks" / "planning.lock"
        patient = Child(store.command("prepare"), wait_less)
        time.sleep(0.7)
        assert os.waitpid(patient.pid, os.WNOHANG) == (0, 0), "it did not wait"
        os.utime(lock, (time.time() - locks_module.PATIENCE - 1,) * 2)
        assert patient.wait() == 0, patient.text()
        assert "waiting for another worker to plan" in patient.text()
        assert "has shown no sign of life for 60" in patient.text()
    assert of(content(store.store), "tokens") == of(store.wanted, "tokens")


def test_a_file_system_without_locks_will_do(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(locks_module.fcntl, "flock", refused)
    prepare(store.open())
    assert of(content(store.store), "tokens") == of(store.wanted, "tokens")
    store.settings["seed"] = 3
    prepare(store.open())
    assert of(content(store.store), "tokens") != of(store.wanted, "tokens")

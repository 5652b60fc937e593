"""config.resolved.yaml keeps what the last complete stage was made with: a command that fails does not touch it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from evaluated_pipeline import Made
from tiny_pipeline import sentences, tiny_settings, write_jsonl

from slmctl.config.file import check
from slmctl.stages import evaluate as evaluating
from slmctl.stages.evaluate import evaluate
from slmctl.stages.prepare import prepare
from slmctl.stages.pretrain import pretrain
from slmctl.stages.run import run
from slmctl.stages.train_ref import train_reference
from slmctl.system.errors import ConfigError, InputError, Interrupted, SlmError
from slmctl.workspace.workspace import Workspace

Change = Callable[[dict[str, Any]], Any]


def kept(root: Path) -> tuple[str, int]:
    file = root / "config.resolved.yaml"
    return file.read_text(encoding="utf-8"), file.stat().st_mtime_ns


@pytest.mark.parametrize(
    ("stage", "change"),
    [
        (prepare, lambda s: s["data"]["corpus"].update(text="{txt}")),
        (prepare, lambda s: s["data"]["corpus"].update(path="absent.jsonl")),
        (run, lambda s: s["eval"].update(tasks=[{"name": "x", "path": "absent.jsonl"}])),
        (train_reference, lambda s: s["data"].update(intra_document_mask=True)),
        (pretrain, lambda s: s["reference"].update(lr=0.5)),
        (pretrain, lambda s: s["pretrain"]["arms"]["slm"].update(warmup=500)),
        (pretrain, lambda s: s["pretrain"]["arms"]["slm"].update(lr=1.0e38, warmup=0)),
        (lambda w: w.open(), lambda s: s.update(name="other")),
    ],
)
def test_a_command_that_fails_does_not_touch_it(own_copy: Made, stage: Any, change: Change) -> None:
    before = kept(own_copy.root / "run")
    with pytest.raises(SlmError):
        stage(own_copy.open(change))
    assert kept(own_copy.root / "run") == before


def test_an_evaluation_that_is_interrupted_does_not_touch_it(own_copy: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any) -> None:
        raise Interrupted(2, "SIGINT")

    before = kept(own_copy.root / "run")
    with monkeypatch.context() as patch:
        patch.setattr(evaluating.Measure, "model", stop)
        with pytest.raises(Interrupted):
            evaluate(own_copy.open(lambda s: s["eval"].update(level=0.9)))
    assert kept(own_copy.root / "run") == before
    evaluate(own_copy.open(lambda s: s["eval"].update(level=0.9, dynamics=False, checkpoints=False)))
    assert "level: 0.9" in kept(own_copy.root / "run")[0]


def test_a_first_command_that_fails_is_in_the_way_of_nothing(tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path)
    good = (tmp_path / "corpus.jsonl").read_text(encoding="utf-8")
    root = tmp_path / "run"

    def open_as(name: str, **more: Any) -> Workspace:
        return Workspace(check({**settings, "name": name, **more}, "tiny")).open()

    for text in (good + '{"text": 3\n', '{"txt": "a"}\n'):
        (tmp_path / "corpus.jsonl").write_text(text, encoding="utf-8")
        with pytest.raises(InputError):
            prepare(open_as("first"))
        assert not (root / "config.resolved.yaml").exists()
    write_jsonl(tmp_path / "corpus.jsonl", sentences(2, 20))
    prepare(open_as("second"))
    assert yaml.safe_load(kept(root)[0])["name"] == "second"
    before = kept(root)
    with pytest.raises(ConfigError, match="belongs to pipeline 'second'"):
        open_as("first")
    late = Workspace(check({**settings, "name": "first"}, "tiny"))  # that opened it before the other one was done
    with pytest.raises(ConfigError, match="belongs to pipeline 'second'"):
        late.record()
    prepare(open_as("second", tracking={"tensorboard": True}))
    assert kept(root) == before, "a command that makes nothing leaves it, too"


def test_a_first_command_that_fails_with_a_store_elsewhere_is_in_the_way_of_nothing(tmp_path: Path) -> None:
    settings = {**tiny_settings(tmp_path), "store_dir": str(tmp_path / "store")}
    (tmp_path / "corpus.jsonl").write_text('{"txt": "a"}\n', encoding="utf-8")
    with pytest.raises(InputError):
        prepare(Workspace(check(settings, "tiny")).open())
    write_jsonl(tmp_path / "corpus.jsonl", sentences(2, 20))
    prepare(Workspace(check(settings, "tiny")).open())
    assert (tmp_path / "run" / "config.resolved.yaml").is_file()


def test_files_of_others_are_refused_and_nothing_is_written_beside_them(tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path)
    theirs = tmp_path / "run" / "eval" / "mine.py"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("mine")
    with pytest.raises(ConfigError, match="holds other files"):
        Workspace(check(settings, "tiny")).open()
    assert [f.name for f in (tmp_path / "run").iterdir()] == ["eval"]

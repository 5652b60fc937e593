"""Texts that are gone while the set made from them is there: an error that names them, or kept where that is accepted."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_pipeline import sentences, tiny_settings, write_jsonl

from slmctl.config.data import SourceConfig
from slmctl.config.file import check
from slmctl.corpus import records, slices
from slmctl.corpus.source_identity import input_fingerprint
from slmctl.stages.prepare import prepare
from slmctl.system.errors import InputError, MismatchError
from slmctl.system.files import read_json
from slmctl.system.hashes import HashCache
from slmctl.workspace import workspace as workspaces
from slmctl.workspace.workspace import Workspace

Open = Callable[..., Workspace]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A pipeline with a corpus of four files, prepared once."""
    root = tmp_path_factory.mktemp("prepared")
    settings = tiny_settings(root)
    for k in range(4):
        write_jsonl(root / "web" / f"{k}.jsonl", sentences(10 + k, 6))
    settings["data"] |= {"root": str(root), "corpus": {"path": "web/*.jsonl"}}
    prepare(Workspace(check(settings, "tiny")).open())
    return root, settings


@pytest.fixture
def opened(prepared: tuple[Path, dict[str, Any]], tmp_path: Path) -> Open:
    """opened(corpus, key=value, …): the pipeline on a copy of the prepared one, of which nothing is in place any more."""
    root, settings = prepared
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)

    def make(corpus: Any = "web/*.jsonl", **top: Any) -> Workspace:
        changed = copy.deepcopy(settings) | top
        changed["output_dir"] = changed["data"]["root"] = str(tmp_path)
        changed["output_dir"] += "/run"
        for name in ("curated", "target"):
            place = {"path": f"{name}.jsonl"}
            changed["data"] |= {"curated": place} if name == "curated" else {"heldout": {"target": place}}
        changed["data"]["corpus"] = corpus if isinstance(corpus, dict) else {"path": corpus}
        return Workspace(check(changed, "tiny")).open()

    prepare(make())  # learns where the files are now
    return make


def state(workspace: Workspace) -> dict[str, int]:
    """Every file of the sets, and when it was written."""
    return {str(f): f.stat().st_mtime_ns for f in (workspace.root / "tokens").rglob("*") if f.is_file()}


def test_nothing_gone_changes_nothing(opened: Open) -> None:
    before = state(opened())
    prepare(opened())
    assert opened().open_tokens("corpus").rows > 0
    assert state(opened()) == before


def test_a_file_that_vanished_from_a_glob_makes_no_smaller_set(
    opened: Open, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = state(opened())
    (tmp_path / "web" / "1.jsonl").unlink()
    (tmp_path / "web" / "3.jsonl").unlink()
    for use in (prepare, lambda w: w.open_tokens("corpus")):
        with pytest.raises(InputError, match=r"2 of 4 files are not there any more: \S*/web/1.jsonl, \S*/web/3.jsonl") as e:
            use(opened())
        assert "was made from texts that are gone" in str(e.value)
        assert "-o missing_inputs=accept" in str(e.value)
        places = f"{opened().root}/tokenizer", f"{opened().root}/tokens/corpus"
        assert any(f"(To make it anew without them, move {place} away.)" in str(e.value) for place in places)
    capsys.readouterr()
    prepare(opened(missing_inputs="accept"))
    assert opened(missing_inputs="accept").open_tokens("corpus").rows > 0
    assert "note: tokens/corpus: texts that it was made from are gone" in capsys.readouterr().err
    assert state(opened()) == before
    assert not (tmp_path / "run" / "stale").exists()


@pytest.mark.parametrize("harm", ["unlink", "dangling", "pointer", "folder gone"])
def test_all_texts_gone_or_unreadable(opened: Open, tmp_path: Path, harm: str) -> None:
    before = state(opened())
    web = tmp_path / "web"
    for file in sorted(web.iterdir()):
        file.unlink()
        if harm == "dangling":
            file.symlink_to("/no/such/disk")
        elif harm == "pointer":
            file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 9\n")
    if harm == "folder gone":
        web.rmdir()
    path = "matches no file" if harm in ("unlink", "folder gone") else r"web/0\.jsonl is a "
    for use in (prepare, lambda w: w.open_tokens("corpus")):
        with pytest.raises(InputError, match=rf"(?s){path}.*missing_inputs=accept") as e:
            use(opened())
        assert "tokens/corpus was made from texts that are gone" in str(e.value)
    prepare(opened(missing_inputs="accept"))
    assert opened(missing_inputs="accept").open_tokens("corpus").rows > 0
    assert state(opened()) == before


def test_every_set_whose_texts_are_gone_is_told_of_at_once(opened: Open, tmp_path: Path) -> None:
    for name in ("curated", "target"):
        (tmp_path / f"{name}.jsonl").unlink()
    with pytest.raises(
        InputError, match=r"(?s)data\.curated: .*data\.heldout\.target: .*tokens/curated, tokens/heldout/target were"
    ):
        prepare(opened())


def test_texts_that_were_never_there_are_not_accepted(opened: Open, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "run" / "tokens" / "corpus")
    (tmp_path / "web" / "2.jsonl").rename(tmp_path / "web" / "2.elsewhere")
    shutil.rmtree(tmp_path / "web")
    for accept in ("stop", "accept"):
        with pytest.raises(InputError, match=r"web/\*\.jsonl matches no file"):
            prepare(opened(missing_inputs=accept))
    (tmp_path / "run" / "tokenizer" / "done.json").unlink()
    with pytest.raises(InputError, match=r"the tokenizer cannot be made as .* matches no file"):
        prepare(opened(missing_inputs="accept"))


def test_a_set_that_is_not_complete_cannot_be_completed_without_its_texts(opened: Open, tmp_path: Path) -> None:
    (tmp_path / "run" / "tokens" / "corpus" / "manifest.json").unlink()
    (tmp_path / "web" / "2.jsonl").unlink()
    with pytest.raises(InputError, match="missing_inputs=accept"):
        prepare(opened())
    with pytest.raises(InputError, match=r"tokens/corpus cannot be made as .*1 of 4 files is not there any more"):
        prepare(opened(missing_inputs="accept"))


def test_other_settings_are_still_noticed_where_texts_are_gone(opened: Open, tmp_path: Path) -> None:
    (tmp_path / "web" / "2.jsonl").unlink()
    other = {"path": "web/*.jsonl", "text": "{text}!"}
    with pytest.raises(MismatchError, match=r"texts\[0\]\.text: found '\{text\}', wanted '\{text\}!'"):
        opened(other, missing_inputs="accept").open_tokens("corpus")
    with pytest.raises(MismatchError, match="seed"):
        opened(missing_inputs="accept", seed=7).open_tokens("corpus")


def test_nothing_is_moved_aside_where_a_set_of_gone_texts_cannot_be_made(opened: Open, tmp_path: Path) -> None:
    (tmp_path / "web" / "2.jsonl").unlink()
    before = state(opened())
    with pytest.raises(InputError, match="tokens/corpus cannot be made as the configuration wants it now"):
        prepare(opened(missing_inputs="accept", seed=7))
    assert state(opened()) == before


def test_texts_that_changed_moved_or_are_not_asked_for_are_not_gone(opened: Open, tmp_path: Path) -> None:
    """A set is made anew where its texts are other ones, and kept where they only lie elsewhere."""
    before = state(opened())
    (tmp_path / "web").rename(tmp_path / "moved")
    prepare(opened("moved/*.jsonl"))
    assert state(opened("moved/*.jsonl")) == before
    prepare(opened("moved/[01].jsonl"))  # the others are there, and not wanted
    plan = read_json(tmp_path / "run" / "tokens" / "corpus" / "plan.json")
    assert len(plan["made_from"]["texts"][0]["content"]) == 2
    write_jsonl(tmp_path / "moved" / "1.jsonl", sentences(99, 6))
    prepare(opened("moved/[01].jsonl"))
    (tmp_path / "moved" / "0.jsonl").unlink()
    write_jsonl(tmp_path / "moved" / "1.jsonl", sentences(98, 6))  # what is found was not among those of the set
    prepare(opened("moved/[01].jsonl"))


def test_one_of_two_equal_files_is_missed(opened: Open, tmp_path: Path) -> None:
    shutil.copy(tmp_path / "web" / "0.jsonl", tmp_path / "web" / "9.jsonl")
    prepare(opened())
    (tmp_path / "web" / "9.jsonl").unlink()
    with pytest.raises(InputError, match=r"1 of 5 files is not there any more: \S*/web/9\.jsonl"):
        prepare(opened())


def test_readers_miss_files_of_a_large_corpus_without_hashing_it(
    opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workspaces, "HASHED_BY_READERS", -1)
    monkeypatch.setattr(HashCache, "sha256", lambda *_: pytest.fail("a reader hashed"))
    monkeypatch.setattr(Workspace, "packing_inputs", lambda _: {})  # which hashes the tokenizer
    assert opened().open_tokens("corpus").rows > 0
    (tmp_path / "web" / "2.jsonl").unlink()
    with pytest.raises(InputError, match=r"names 3 of the 4 files that it was made from"):
        opened().open_tokens("corpus")


def test_a_dataset_of_a_full_commit_needs_no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *_, **__: pytest.fail("asked the Hub"))
    hashes = HashCache(tmp_path / "hashes.json")
    commit = "0123456789abcdef0123456789abcdef01234567"
    found = input_fingerprint([SourceConfig(hub="some/dataset", revision=commit)], hashes)
    assert found[0]["hub"] == {"config": None, "split": "train", "hub": "some/dataset", "commit": commit}


def test_a_dataset_that_cannot_be_reached_is_gone(opened: Open, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its set was made while the Hub answered."""
    import huggingface_hub

    def info(*_: Any, **__: Any) -> Any:
        return type("Info", (), {"sha": "f" * 40})()

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", info)
    for reader in (slices, records):
        monkeypatch.setattr(reader, "load_hub", lambda _: FakeDataset(sentences(5, 30)))
    prepare(opened({"hub": "some/dataset"}))

    def unreachable(*_: Any, **__: Any) -> Any:
        raise ConnectionError("no network")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", unreachable)
    for use in (prepare, lambda w: w.open_tokens("corpus")):
        with pytest.raises(InputError, match=r"(?s)cannot reach dataset 'some/dataset'.*full commit.*missing_inputs=accept"):
            use(opened({"hub": "some/dataset"}))
    prepare(opened({"hub": "some/dataset"}, missing_inputs="accept"))
    prepare(opened({"hub": "some/dataset", "revision": "f" * 40}))
    assert not any((tmp_path / "run" / "tokens").glob("corpus.*"))


class FakeDataset(list[dict[str, Any]]):
    num_shards = 1

    def shard(self, **_: int) -> FakeDataset:
        return self

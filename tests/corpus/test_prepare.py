"""prepare, from text to shards and back, against the text itself."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer as Backend

from slmctl.corpus import make_shard as module
from slmctl.corpus.encoder import Encoder
from slmctl.corpus.shard_jobs import make_shards
from slmctl.corpus.tokenizer import Tokenizer
from slmctl.stages import prepare as preparing
from slmctl.stages.prepare import prepare, resolve
from slmctl.store.manifest import load_manifest
from slmctl.store.reader import RowReader, TokenSet
from slmctl.system.errors import InputError, MismatchError
from slmctl.system.hashes import sha256_file
from slmctl.workspace.build import Build
from slmctl.workspace.token_sets import plan_set
from slmctl.workspace.workspace import Workspace

Make = Callable[..., Workspace]
Read = Callable[[Path], list[list[int]]]


def texts_of(path: Path) -> list[str]:
    return [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]


def expected(workspace: Workspace, texts: list[str]) -> list[list[int]]:
    """Each text's ids and EOS, by the tokenizer file alone."""
    backend = Backend.from_file(str(workspace.own_tokenizer / "tokenizer.json"))
    backend.encode_special_tokens = True
    eos = backend.token_to_id("<|endoftext|>")
    return [[*backend.encode(t, add_special_tokens=False).ids, eos] for t in texts]


def hashes(directory: Path) -> dict[str, str]:
    return {f.name: sha256_file(f) for f in sorted(directory.glob("shard-*.parquet"))}


def order_of(directory: Path) -> list[int]:
    """Documents in the order in which the shards hold them."""
    found: list[int] = []
    for file in sorted(directory.glob("shard-*.parquet")):
        found += dict.fromkeys(d for d in pq.read_table(file)["document"].to_pylist() if d >= 0)
    return found


def test_every_documents_tokens_are_in_the_shards_exactly_once(pipeline: Make, documents_of: Read, tmp_path: Path) -> None:
    workspace = pipeline()
    prepare(workspace)
    for name, directory in {
        "curated": workspace.tokens("curated").path,
        "corpus": workspace.tokens("corpus").path,
        "target": workspace.tokens("heldout/target").path,
    }.items():
        want = expected(workspace, texts_of(tmp_path / f"{name}.jsonl"))
        assert documents_of(directory) == want, name
    assert len(hashes(workspace.tokens("corpus").path)) > 3, "the corpus is to be cut into several shards"


def test_the_manifest_counts_what_a_loop_counts(pipeline: Make, tmp_path: Path) -> None:
    workspace = pipeline()
    prepare(workspace)
    directory = workspace.tokens("corpus").path
    manifest = load_manifest(directory, "tokens")
    texts = texts_of(tmp_path / "corpus.jsonl")
    columns = [pq.read_table(f)["document"].to_pylist() for f in sorted(directory.glob("shard-*.parquet"))]
    split = 0
    for column in columns:
        rows = [set(column[at : at + 32]) for at in range(0, len(column), 32)]
        split += sum(sum(d in row for row in rows) > 1 for d in set(column) - {-1})
    assert manifest.counts == {
        "documents": len(texts),
        "eos_tokens": len(texts),
        "eos_in_texts": 0,
        "text_bytes": sum(len(t.encode()) for t in texts),
        "empty_documents": 0,
        "skipped_documents": 0,
        "split_documents": split,
        "tokens": sum(map(len, expected(workspace, texts))),
        "padding": sum(d == -1 for c in columns for d in c),
    }
    assert split > 0
    assert [s.rows * 32 for s in manifest.shards] == [len(c) for c in columns]
    assert [s.first_row * 32 for s in manifest.shards] == [sum(map(len, columns[:i])) for i in range(len(columns))]
    assert [s.tokens for s in manifest.shards] == [sum(d >= 0 for d in c) for c in columns]
    assert [s.bytes for s in manifest.shards] == [(directory / s.file).stat().st_size for s in manifest.shards]


def test_the_reader_returns_the_prepared_rows(pipeline: Make) -> None:
    workspace = pipeline()
    prepare(workspace)
    tokens = workspace.open_tokens("corpus")
    tables = [pq.read_table(f) for f in sorted(workspace.tokens("corpus").path.glob("shard-*.parquet"))]
    ids = np.concatenate([t["input_id"].to_numpy() for t in tables]).reshape(-1, 32)
    got = RowReader(tokens).fetch(np.arange(tokens.rows))
    assert got.ids_BT.tolist() == ids.tolist()


def test_documents_are_shuffled_within_their_shard_only(pipeline: Make) -> None:
    workspace = pipeline()
    prepare(workspace)
    order = order_of(workspace.tokens("corpus").path)
    assert order != sorted(order)
    assert [d >> 32 for d in order] == sorted(d >> 32 for d in order)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_another_order(pipeline: Make, documents_of: Read) -> None:
    runs = {name: pipeline(name, seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1))}
    for workspace in runs.values():
        prepare(workspace)
    corpora = {name: w.tokens("corpus").path for name, w in runs.items()}
    assert hashes(corpora["a"]) == hashes(corpora["b"])
    assert load_manifest(corpora["a"], "tokens").content_hash == load_manifest(corpora["b"], "tokens").content_hash
    assert order_of(corpora["a"]) != order_of(corpora["c"])
    assert documents_of(corpora["a"]) == documents_of(corpora["c"])


@pytest.mark.parametrize("parse", [False, True])
def test_the_name_of_a_special_token_in_a_text_stays_text_unless_asked(
    pipeline: Make, documents_of: Read, tmp_path: Path, jsonl: Callable[[Path, list[str]], Path], parse: bool
) -> None:
    jsonl(tmp_path / "corpus.jsonl", ["before<|endoftext|>after", "plain"])
    workspace = pipeline(corpus={"path": "corpus.jsonl", "parse_special_tokens": parse})
    prepare(workspace)
    eos = workspace.tokenizer().eos_id
    first, second = documents_of(workspace.tokens("corpus").path)
    assert (first.count(eos), second.count(eos)) == (2 if parse else 1, 1)
    assert Backend.from_file(str(workspace.own_tokenizer / "tokenizer.json")).decode(first[:-1], skip_special_tokens=False) == (
        "before<|endoftext|>after"
    )


@pytest.mark.parametrize("windows", [1, 200, 10**9])
def test_a_slice_shuffled_in_windows_still_holds_every_document(
    pipeline: Make, documents_of: Read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, windows: int
) -> None:
    whole = module.windows
    monkeypatch.setattr(module, "windows", lambda pairs, _: whole(pairs, windows))
    workspace = pipeline()
    prepare(workspace)
    assert documents_of(workspace.tokens("corpus").path) == expected(workspace, texts_of(tmp_path / "corpus.jsonl"))


def test_a_document_far_longer_than_a_slice_leaves_empty_shards_and_loses_nothing(
    pipeline: Make, documents_of: Read, tmp_path: Path, jsonl: Callable[[Path, list[str]], Path]
) -> None:
    texts = ["short", "long " * 2000, "漢" * 1500, "end"]
    jsonl(tmp_path / "corpus.jsonl", texts)
    workspace = pipeline()
    prepare(workspace)
    assert documents_of(workspace.tokens("corpus").path) == expected(workspace, texts)
    manifest = load_manifest(workspace.tokens("corpus").path, "tokens")
    assert 0 in [s.rows for s in manifest.shards]
    tokens = TokenSet(workspace.tokens("corpus").path)
    assert (RowReader(tokens).fetch(np.arange(tokens.rows)).document_BT >= 0).sum() == manifest.counts["tokens"]


def test_skipped_and_empty_records_are_counted(pipeline: Make, tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_text(path.read_text() + 'broken\n{"text": ""}\n{"body": "x"}\n{"text": "last"}\n')
    workspace = pipeline(corpus={"path": "corpus.jsonl", "on_bad": "skip"})
    prepare(workspace)
    counts = load_manifest(workspace.tokens("corpus").path, "tokens").counts
    assert (counts["documents"], counts["skipped_documents"], counts["empty_documents"]) == (61, 2, 1)


# --- run again ---


def test_prepare_again_skips_and_touches_nothing(pipeline: Make, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(pipeline())
    workspace = pipeline()
    before = {f: f.stat().st_mtime_ns for f in (workspace.root / "tokens").rglob("*") if f.is_file()}
    capsys.readouterr()
    prepare(workspace)
    assert {f: f.stat().st_mtime_ns for f in (workspace.root / "tokens").rglob("*") if f.is_file()} == before
    assert capsys.readouterr().err.count("complete, skipped") == 4


def test_a_deleted_shard_is_made_again_byte_for_byte_and_the_others_are_kept(pipeline: Make) -> None:
    workspace = pipeline()
    prepare(workspace)
    directory = workspace.tokens("corpus").path
    before, content = hashes(directory), load_manifest(directory, "tokens").content_hash
    kept = (directory / "shard-00000.parquet").stat().st_mtime_ns
    (directory / "shard-00001.parquet").unlink()
    (directory / "manifest.json").unlink()
    prepare(pipeline())
    assert hashes(directory) == before
    assert load_manifest(directory, "tokens").content_hash == content
    assert (directory / "shard-00000.parquet").stat().st_mtime_ns == kept


@pytest.mark.parametrize("damage", ["deleted", "flipped and deleted as the message says"])
def test_the_advice_for_a_damaged_shard_works(pipeline: Make, damage: str) -> None:
    workspace = pipeline()
    prepare(workspace)
    directory = workspace.tokens("corpus").path
    shard = directory / "shard-00001.parquet"
    if damage != "deleted":
        raw = bytearray(shard.read_bytes())
        raw[100] ^= 1
        shard.write_bytes(raw)
        tokens = TokenSet(directory)
        with pytest.raises(Exception, match=r"Delete it and run its stage again"):
            RowReader(tokens).fetch(np.arange(tokens.rows))
    shard.unlink()
    prepare(pipeline())
    tokens = TokenSet(directory)
    assert RowReader(tokens).fetch(np.arange(tokens.rows)).ids_BT.shape == (tokens.rows, 32)


def test_an_interrupted_run_leaves_whole_shards_only_and_goes_on_to_the_same_set(
    pipeline: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(pipeline("whole"))
    calls = 0

    def interrupting(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 70:
            raise KeyboardInterrupt

    workspace = pipeline("broken")
    with monkeypatch.context() as patch:
        patch.setattr(Encoder, "check_ids", interrupting)
        with pytest.raises(KeyboardInterrupt):
            prepare(workspace)
    directory = workspace.tokens("corpus").path
    found = {f.name for f in directory.iterdir()}
    assert "plan.json" in found
    assert "manifest.json" not in found
    assert not [n for n in found if n.startswith(".tmp")]
    assert 0 < len(hashes(directory)) < len(hashes(pipeline("whole").tokens("corpus").path))
    with pytest.raises(InputError, match="absent or not complete"):
        TokenSet(directory)
    prepare(pipeline("broken"))
    assert hashes(directory) == hashes(pipeline("whole").tokens("corpus").path)


def test_a_shard_cut_off_without_a_manifest_is_made_again(pipeline: Make) -> None:
    workspace = pipeline()
    prepare(workspace)
    directory = workspace.tokens("corpus").path
    before = hashes(directory)
    shard = directory / "shard-00002.parquet"
    shard.write_bytes(shard.read_bytes()[:-10])
    (directory / "manifest.json").unlink()
    cut = sha256_file(shard)
    prepare(pipeline())
    assert hashes(directory) == before
    assert [sha256_file(f) for f in directory.glob("shard-00002.parquet.broken-*")] == [cut], "what was there is not kept"
    assert sorted(f.name for f in directory.glob("*.parquet")) == list(before), "a tool that reads all of them takes it in"


@pytest.mark.parametrize("change", ["seq_len", "text", "seed"])
def test_a_changed_input_is_made_anew_says_what_changed_and_keeps_the_old(
    pipeline: Make, documents_of: Read, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: str
) -> None:
    old = pipeline()
    prepare(old)
    before = hashes(old.tokens("corpus").path)
    capsys.readouterr()
    if change == "seq_len":
        new = pipeline(seq_len=16)
    elif change == "seed":
        new = pipeline(seed=9)
    else:
        path = tmp_path / "corpus.jsonl"
        path.write_text(path.read_text() + '{"text": "one more"}\n')
        new = pipeline()
    prepare(new)
    said = capsys.readouterr().err
    what = {
        "seq_len": "seq_len: was 32, is now 16",
        "seed": "seed: was 0, is now 9",
        "text": "texts[0].content: was [",
    }
    assert what[change] in said
    kept = list((new.root / "stale").glob("tokens-corpus-*"))
    assert len(kept) == 1
    assert hashes(kept[0]) == before
    assert load_manifest(kept[0], "tokens")
    assert hashes(new.tokens("corpus").path) != before
    assert documents_of(new.tokens("corpus").path) == expected(new, texts_of(tmp_path / "corpus.jsonl"))


# --- refused ---


@pytest.mark.parametrize("content", ["", "\n\n", '{"text": "  "}\n{"text": ""}\n'])
def test_an_empty_corpus_is_refused_and_leaves_no_manifest(pipeline: Make, tmp_path: Path, content: str) -> None:
    (tmp_path / "corpus.jsonl").write_text(content)
    workspace = pipeline()
    with pytest.raises(InputError, match=r"corpus is empty.*data\.corpus"):
        prepare(workspace)
    assert not (workspace.tokens("corpus").path / "manifest.json").exists()


def test_a_broken_line_stops_without_a_half_written_shard(pipeline: Make, tmp_path: Path) -> None:
    prepare(pipeline())  # the tokenizer
    path = tmp_path / "target.jsonl"
    path.write_text(path.read_text() + "broken\n")
    workspace = pipeline()
    with pytest.raises(InputError, match=r"target\.jsonl, line 9"):
        prepare(workspace)
    found = [f.name for f in workspace.tokens("heldout/target").path.iterdir()]
    assert "manifest.json" not in found
    assert not [n for n in found if n.startswith(".tmp")]


def test_a_text_that_changes_once_it_was_hashed_is_refused(
    pipeline: Make, documents_of: Read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it is planned, while other texts are hashed: the plan would name another content than the shards hold."""
    claim_sets = preparing.claim_sets
    corpus = tmp_path / "corpus.jsonl"

    def meanwhile(*given: Any) -> None:
        corpus.write_text(json.dumps({"text": "one more"}) + "\n" + corpus.read_text(encoding="utf-8"), encoding="utf-8")
        claim_sets(*given)

    monkeypatch.setattr(preparing, "claim_sets", meanwhile)
    with pytest.raises(InputError, match=r"corpus\.jsonl was changed while it was prepared"):
        prepare(pipeline())
    monkeypatch.undo()
    workspace = pipeline()
    prepare(workspace)
    assert documents_of(workspace.tokens("corpus").path) == expected(workspace, texts_of(corpus))


def plan_corpus(workspace: Workspace, vocab_size: int) -> Build | int:
    """As for a model whose embedding has so many rows."""
    here = resolve(workspace)
    return plan_set(replace(here.recipe, vocab_size=vocab_size), here.sets[1])


def test_token_ids_beyond_the_models_vocabulary_are_refused(pipeline: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = pipeline()
    prepare(workspace)
    with pytest.raises(MismatchError, match="beyond the model's vocabulary of 200"):
        plan_corpus(workspace, vocab_size=200)
    shutil.rmtree(workspace.tokens("corpus").path)
    monkeypatch.setattr(Tokenizer, "check_vocabulary", lambda *_: None)  # nothing but the tokens themselves
    planned = plan_corpus(workspace, vocab_size=200)
    assert isinstance(planned, Build)
    with pytest.raises(MismatchError, match="beyond the model's vocabulary of 200"):
        make_shards(workspace.tokenizer(), planned.jobs, "prepare")
    assert not hashes(workspace.tokens("corpus").path)
    assert not (workspace.tokens("corpus").path / "manifest.json").exists()


def test_an_eos_beyond_the_models_vocabulary_is_refused(pipeline: Make) -> None:
    """As when an end-of-sequence token was added to the tokenizer but not to the model."""
    workspace = pipeline()
    prepare(workspace)
    tokenizer = workspace.tokenizer()
    tokenizer.eos_id = 300
    with pytest.raises(MismatchError, match="beyond the model's vocabulary of 300"):
        plan_corpus(workspace, vocab_size=300)


@pytest.mark.parametrize(("change", "field"), [({"seq_len": 16}, "seq_len"), ({"seed": 3}, "seed")])
def test_a_set_packed_with_other_settings_is_refused_when_it_is_opened(
    pipeline: Make, change: dict[str, int], field: str
) -> None:
    prepare(pipeline())
    other = pipeline(**change)
    with pytest.raises(MismatchError, match=rf"{field}: found .*, wanted .*(.|\n)*slmctl prepare"):
        other.open_tokens("corpus")


def test_a_set_made_with_another_tokenizer_is_refused_when_it_is_opened(pipeline: Make) -> None:
    from slmctl.corpus.train_tokenizer import train_tokenizer

    workspace = pipeline()
    prepare(workspace)
    train_tokenizer(["nothing alike"] * 9, 300, workspace.own_tokenizer)
    with pytest.raises(MismatchError, match="tokenizer: found"):
        pipeline().open_tokens("corpus")


def test_an_output_dir_of_another_pipeline_is_refused(pipeline: Make) -> None:
    from slmctl.system.errors import ConfigError

    workspace = pipeline()
    workspace.record()  # as a stage does that is complete
    workspace.config.name = "other"
    with pytest.raises(ConfigError, match=r"belongs to pipeline 'test'.*'other'"):
        Workspace(workspace.config).open()

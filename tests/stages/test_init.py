"""init: what it guesses of texts, the sizes it takes, and that what it writes is a pipeline that runs."""

from __future__ import annotations

import gzip
import json
import subprocess
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from tiny_pipeline import sentences, write_jsonl

from slmctl.cli.process import main
from slmctl.config.file import load_config
from slmctl.config.suggested_sizes import sizes
from slmctl.config.training import total_steps
from slmctl.corpus.source_profile import guess_template, profile_source
from slmctl.stages import run as running
from slmctl.stages.init import Given, configuration, init
from slmctl.system.errors import ConfigError, InputError


@pytest.fixture
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Questions in Parquet, a corpus in .gz and .zst, a held-out .txt and a general set; the working folder is theirs."""
    monkeypatch.chdir(tmp_path)
    plain = [r["text"] for r in sentences(1, 80)]
    pq.write_table(pa.table({"question": plain[:40], "answer": plain[40:], "n": range(40)}), "curated.parquet")
    Path("web").mkdir()
    for k in range(2):
        lines = "".join(json.dumps({"id": "x", "content": r["text"]}) + "\n" for r in sentences(2 + k, 60))
        Path(f"web/{k}.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    lines = "".join(json.dumps({"raw": r["text"]}) + "\n" for r in sentences(9, 40))
    Path("more.jsonl.zst").write_bytes(zstandard.compress(lines.encode()))
    Path("target.txt").write_text("\n\n".join(r["text"] for r in sentences(5, 12)))
    write_jsonl(Path("general.jsonl"), sentences(6, 8))
    corpus = ["web/*.jsonl.gz", "more.jsonl.zst"]
    return {"curated": ["curated.parquet"], "corpus": corpus, "target": ["target.txt"], "general": ["general.jsonl"]}


SMALL = ["vocab_size=300", "hidden_size=16", "num_hidden_layers=1", "num_attention_heads=2", "intermediate_size=32"]


def command(*argv: str) -> int:
    try:
        main(list(argv))
    except SystemExit as e:
        return int(e.code or 0)
    return 0


def test_what_it_writes_is_valid_and_runs(
    texts: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [x for name, paths in texts.items() for p in paths for x in (f"--{name}", p)]
    assert command("init", "my run.yaml", *given) == 0
    said = capsys.readouterr()
    assert "curated: curated.parquet: 1 file, roughly " in said.err
    assert "corpus: web/*.jsonl.gz: 2 files" in said.err
    assert "next: slmctl validate my run.yaml --inputs" in said.out
    assert "# Run it: slmctl run 'my run.yaml'; after a stop" in Path("my run.yaml").read_text()
    assert command("validate", "my run.yaml", "--inputs") == 0
    config = load_config("my run.yaml")
    assert [s.text for s in (*config.data.curated, *config.data.corpus)] == ["{question}\n{answer}", "{content}", "{raw}"]
    assert config.data.heldout["target"][0].txt_split == "paragraph"
    assert (config.name, config.output_dir) == ("my-run", "runs/my-run")
    over = [f"model.scratch.{s}" for s in [*SMALL, "train.steps=2"]] + ["pretrain.steps=2", "reference.steps=2"]
    over += ["data.seq_len=32", "pretrain.batch_tokens=256", "reference.batch_tokens=256", "eval.dynamics=false"]
    over += ["pretrain.save_every=2", "pretrain.keep_every=2", "pretrain.eval_every=0", "tracking.tensorboard=false"]
    over += ["model.scratch.train.batch_tokens=256", "device=cpu"]
    over += [f"{part}.precision=float32" for part in ("model.scratch.train", "reference", "score", "pretrain")]
    monkeypatch.setattr(running, "report", lambda workspace: workspace.report / "index.html")
    assert command("run", "my run.yaml", *[x for o in over for x in ("-o", o)]) == 0
    results = json.loads(Path("runs/my-run/eval/results.json").read_text())
    assert set(results["arms"]) == {"slm", "clm", "random"}
    assert [c["step"] for c in results["arms"]["slm"]["checkpoints"]] == [2]


def test_a_file_that_is_there_is_left_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("mine")
    assert command("init", str(file)) == 2
    assert "is there already" in capsys.readouterr().err
    assert file.read_text() == "mine"


def test_without_texts_placeholders_are_marked_and_it_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command("init", "mine.yaml") == 0
    text = Path("mine.yaml").read_text()
    assert text.count("CHANGE THIS") == 3
    said = capsys.readouterr().err
    assert "A held-out set is needed" in said
    assert "shuf curated.jsonl" in said
    assert command("validate", "mine.yaml") == 0
    assert command("validate", "mine.yaml", "--inputs") == 2
    keys = [line for line in text.splitlines() if ":" in line and not line.lstrip().startswith("#")]
    bare = [line for line in keys if "#" not in line]
    assert [line.strip() for line in bare] == ["eval:"], "every key has its comment"


def test_everything_that_cannot_be_read_is_named_at_once_and_nothing_is_written(tmp_path: Path) -> None:
    (tmp_path / "numbers.jsonl").write_text('{"n": 1}\n')
    given = {"curated": [f"{tmp_path}/no.jsonl"], "corpus": [f"{tmp_path}/numbers.jsonl"]}
    with pytest.raises(InputError, match=r"(?s)curated: .*no\.jsonl does not exist.*corpus: .*no field holds text .*fields: n"):
        init(tmp_path / "mine.yaml", Given(given))
    assert not (tmp_path / "mine.yaml").exists()


@pytest.mark.parametrize(
    ("record", "text"),
    [
        ({"text": "a", "question": "b", "answer": "c"}, "{text}"),
        ({"content": "a", "url": "b"}, "{content}"),
        ({"id": "1", "question": "b", "answer": "c"}, "{question}\n{answer}"),
        ({"id": 1, "prompt": "b", "completion": "c"}, "{prompt}\n{completion}"),
        ({"id": 1, "raw": "b"}, "{raw}"),
        ({"question": "b", "answer": 1}, "{question}\n{answer}"),
        ({"question": "b", "answer": True}, "{question}"),
        ({"id": "1", "data": {"text": "b", "n": 1}}, "{data.text}"),
        ({"id": "1", "row": {"question": "b", "answer": 0.5}}, "{row.question}\n{row.answer}"),
        ({"id": "1", "data": {"raw": "much longer"}}, "{data.raw}"),
        ({"id": "1", "story": "much longer", "a.b": "the longest, whose name is a path"}, "{story}"),
    ],
)
def test_the_fields_that_are_guessed(record: dict[str, Any], text: str) -> None:
    assert guess_template([record, record], "a.jsonl")[0] == text


def test_a_field_counts_where_every_record_has_it() -> None:
    assert guess_template([{"text": "a", "raw": "b"}, {"text": None, "raw": "b"}], "a.jsonl")[0] == "{raw}"
    with pytest.raises(InputError, match="no field holds text in each of the first 2 records"):
        guess_template([{"text": "a"}, {"raw": "b"}], "a.jsonl")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"text": "caf\u00e9"}\n'.encode("cp1252"), "iconv -f WINDOWS-1252"),
        (b'"a"\n"b"\n', "want a JSON object"),
        (b"\n\n", "there is no record in it"),
        (b'{"text": null}\n', "`text` template of its own"),
    ],
)
def test_what_is_wrong_with_a_text_and_what_mends_it_is_said(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(InputError, match=said):
        profile_source(str(tmp_path / "a.jsonl"))


@pytest.mark.parametrize(("n", "name"), [(12, "it's mine.jsonl"), (25, "a.jsonl"), (25, "a.jsonl.gz")])
def test_the_way_to_a_held_out_set_leaves_texts_to_train_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], n: int, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = write_jsonl(tmp_path / "plain", sentences(1, n)).read_bytes()
    Path(name).write_bytes(gzip.compress(lines) if name.endswith(".gz") else lines)
    init(Path("mine.yaml"), Given({"curated": [name]}))
    (way,) = [line for line in capsys.readouterr().err.splitlines() if "shuf " in line]
    subprocess.run(["bash", "-c", way], check=True)
    rest = Path(name.removesuffix(".gz").removesuffix(".jsonl") + "-train.jsonl").read_text().splitlines()
    held = Path("target.jsonl").read_text().splitlines()
    assert (len(rest), len(held)) == (n - (n + 9) // 10, (n + 9) // 10)
    assert sorted(rest + held) == sorted(lines.decode().splitlines())


@pytest.mark.usefixtures("texts")
def test_the_way_to_a_held_out_set_names_no_file_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    for k, paths in enumerate([["curated.parquet"], ["web/*.jsonl.gz"], ["general.jsonl", "more.jsonl.zst"]]):
        init(Path(f"{k}.yaml"), Given({"curated": paths}))
        said = capsys.readouterr().err
        assert "A held-out set is needed" in said
        assert "shuf" not in said


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet", "a.txt"])
def test_tokens_are_estimated_whatever_the_file(tmp_path: Path, name: str) -> None:
    plain = [r["text"] for r in sentences(3, 400, words=60)]
    lines = "".join(json.dumps({"text": t, "url": "http://example.org/" + "x" * 80}) + "\n" for t in plain).encode()
    path = tmp_path / name
    if name.endswith(".parquet"):
        pq.write_table(pa.table({"text": plain}), path)
    else:
        data = "\n\n".join(plain).encode() if name.endswith(".txt") else lines
        packed = {".gz": gzip.compress, ".zst": zstandard.compress}.get(path.suffix, bytes)
        path.write_bytes(packed(data))
    assert profile_source(str(path)).bytes == pytest.approx(sum(map(len, plain)), rel=0.15)


@pytest.mark.parametrize("scratch", [True, False])
@pytest.mark.parametrize("curated", [300, 50_000, 5_000_000])
@pytest.mark.parametrize("corpus", [1_000, 300_000, 8_000_000, 5_000_000_000])
def test_sizes_make_a_sensible_run_whatever_the_texts(tmp_path: Path, scratch: bool, curated: int, corpus: int) -> None:
    found = sizes(curated, corpus, scratch)
    (tmp_path / "p.yaml").write_text(configuration("p", {}, None if scratch else "some/base", found, "p.yaml"))
    config = load_config(tmp_path / "p.yaml")
    for arm in config.pretrain.arms.values():
        steps = total_steps(arm, config.data.seq_len, 0)
        assert steps == found.steps
        assert 48 <= steps <= 600
        assert steps // arm.keep_every >= 4, "checkpoints by which arms are compared"
        assert arm.keep_every == arm.save_every
        assert arm.keep_every % arm.eval_every == 0
    assert config.pretrain.tokens is not None
    assert config.pretrain.tokens <= 21_000_000
    assert found.passes == pytest.approx(config.pretrain.tokens / corpus)
    if curated >= 50_000:
        rows = curated // config.data.seq_len
        steps = total_steps(config.reference, config.data.seq_len, round(rows / (1 - config.reference.mix)))
        assert steps >= 80
        assert steps == pytest.approx(found.reference_steps, rel=0.05, abs=1)
        assert steps <= 125 or found.reference_batch > 60_000, "no more than it takes, but of what is large"


@pytest.mark.parametrize("scratch", [True, False])
@pytest.mark.parametrize("curated", [4_100, 6_000, 15_000, 40_000, 300_000, 3_000_000, 10**9])
def test_a_small_curated_set_has_small_steps_and_more_epochs(curated: int, scratch: bool) -> None:
    found = sizes(curated, 8_000_000, scratch)
    assert 3 <= found.reference_epochs <= 8
    assert found.reference_epochs == 3 or found.reference_batch == 4 * found.seq_len, "smaller steps come first"
    assert found.reference_steps >= 85
    assert found.reference_mix == (0.3 if scratch else 0.0)


def test_rows_fit_a_local_bases_context(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"max_position_embeddings": 256}))
    init(tmp_path / "p.yaml", Given({}, str(tmp_path)))
    assert load_config(tmp_path / "p.yaml").data.seq_len == 256


def test_no_folder_for_it_is_a_clear_message(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match=r"p\.yaml cannot be written: .*/file is a file\."):
        init(tmp_path / "file" / "p.yaml", Given({}))

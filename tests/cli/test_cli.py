"""The command line as a user meets it: exit codes, one clear message, nothing half-written taken for whole."""

from __future__ import annotations

import json
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slmctl import __version__
from slmctl.cli.process import main
from slmctl.corpus.train_tokenizer import train_tokenizer

Tiny = Callable[..., Path]


@pytest.fixture
def slmctl(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs a command in this process; returns (exit code, stdout, stderr)."""

    def call(*argv: object) -> tuple[int, str, str]:
        code: Any = 0
        try:
            main([str(a) for a in argv])
        except SystemExit as e:
            code = e.code or 0
        captured = capsys.readouterr()
        return int(code), captured.out, captured.err

    return call


def start(*argv: object, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "slmctl", *map(str, argv)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def test_version_and_help(slmctl: Any) -> None:
    assert slmctl("--version")[:2] == (0, f"slmctl {__version__}\n")
    code, out, _ = slmctl("pretrain", "--help")
    assert code == 0
    assert "Example" in out


def test_bad_usage_exits_2(slmctl: Any, tiny: Tiny) -> None:
    assert slmctl("frobnicate")[0] == 2
    assert slmctl("run")[0] == 2
    assert slmctl("run", "absent.yaml")[0] == 2
    assert slmctl("run", tiny(), "-o", "seed")[0] == 2
    code, _, err = slmctl("pretrain", tiny(), "--arm", "slmm")
    assert code == 2
    assert "slm, clm, random" in err


def test_every_shipped_pipeline_is_valid(slmctl: Any) -> None:
    pipelines = sorted((Path(__file__).parents[2] / "pipelines").glob("*.yaml"))
    assert len(pipelines) >= 5
    for pipeline in pipelines:
        assert slmctl("validate", pipeline)[0] == 0, pipeline
        for line in pipeline.read_text(encoding="utf-8").splitlines():
            place = line.find("  # ")
            code = line[:place].rstrip()
            assert place in (-1, 36) or len(code) > 36 or "{" in code, f"{pipeline.name}: a comment out of line: {line}"


def test_validate_inputs_names_absent_files(slmctl: Any, tiny: Tiny) -> None:
    path = tiny(lambda s: s["data"]["corpus"].update(path="absent.jsonl"))
    assert slmctl("validate", path)[0] == 0
    code, _, err = slmctl("validate", path, "--inputs")
    assert code == 2
    assert "data.corpus" in err
    assert "absent.jsonl" in err


def test_validate_inputs_tells_of_a_model_whose_files_are_not_it(slmctl: Any, tiny: Tiny, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    base, far = tmp_path / "base", tmp_path / "far"
    sizes = {"vocab_size": 300, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    for folder in (base, far):
        LlamaForCausalLM(LlamaConfig(**sizes)).save_pretrained(folder)
    train_tokenizer(["a text"], 300, base)
    path = tiny(lambda s: s.update(model={"path": str(base)}) or s["score"].update(references={"far": str(far)}))
    assert slmctl("validate", path, "--inputs")[0] == 0
    for folder in (base, far):
        file = folder / "model.safetensors"
        save_file({f"{folder.name}.{k}": v for k, v in load_file(file).items()}, file, {"format": "pt"})
    assert slmctl("validate", path)[0] == 0, "which looks at no model"
    code, _, err = slmctl("validate", path, "--inputs")
    assert code == 2
    assert re.search(r"model: the weights of .*begin with `base\.`(.|\n)*score\.references\.far: .*begin with `far\.`", err), err
    code, _, err = slmctl("run", path)
    assert code == 1
    assert "begin with `base.`" in err
    assert not (tmp_path / "run" / "tokens").exists(), "before anything is tokenised"
    (base / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    _, _, err = slmctl("validate", path, "--inputs")
    assert "tokenizer.json is a Git LFS pointer" in err


@pytest.mark.parametrize(
    ("name", "exits", "word"), [("./bsae", 2, "Correct the path"), ("bsae", 0, "not asked"), ("org/m", 0, "")]
)
def test_validate_tells_of_a_model_that_is_not_here(slmctl: Any, tiny: Tiny, name: str, exits: int, word: str) -> None:
    given = ["validate", tiny(lambda s: s.update(model={"path": name}))]
    code, out, err = slmctl(*given, "--inputs")
    assert code == exits
    assert word in out + err
    code, out, err = slmctl(*given)
    assert code == 0
    assert (name in out + err) == (name != "org/m")


def test_run_makes_everything_then_skips_then_remakes_what_a_change_touches(slmctl: Any, tiny: Tiny, tmp_path: Path) -> None:
    path = tiny()
    code, out, err = slmctl("run", path)
    assert code == 0, err
    run = tmp_path / "run"
    assert str((run / "report" / "index.html").resolve()) in out.replace("\n", "")
    results = json.loads((run / "eval" / "results.json").read_text())
    assert set(results["models"]) == {"base", "reference", "slm", "clm", "random"}
    assert results["arms"]["clm"]["tokens_selected"] > results["arms"]["slm"]["tokens_selected"]
    weights = (run / "pretrain" / "slm" / "model" / "model.safetensors").stat().st_mtime_ns

    code, _, err = slmctl("run", path)
    assert code == 0
    assert err.count("complete, skipped") >= 9
    assert "step" not in err

    code, _, err = slmctl("run", path, "-o", "pretrain.arms.random.lr=0.001")
    assert code == 0
    assert "settings.lr: was 0.01, is now 0.001" in err
    assert "pretrain slm: complete, skipped" in err
    assert (run / "pretrain" / "slm" / "model" / "model.safetensors").stat().st_mtime_ns == weights
    assert [d.name.startswith("pretrain-random") for d in (run / "stale").iterdir()].count(True) == 1

    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text(corpus.read_text() + json.dumps({"text": "one more document"}) + "\n")
    code, _, err = slmctl("pretrain", path)
    assert code == 1
    assert "texts[0].content[0]: found" in err
    assert "slmctl prepare" in err
    code, _, err = slmctl("run", path)
    assert code == 0, err
    for stage in ("tokenizer", "tokens/corpus", "scores/curated", "pretrain/slm", "pretrain/clm", "eval"):
        assert f"{stage}: made from other inputs" in err, stage


def test_stages_out_of_order_say_which_to_run(slmctl: Any, tiny: Tiny) -> None:
    path = tiny()
    for command, wanted in [("train-base", "prepare"), ("train-ref", "train-base"), ("report", "eval"), ("eval", "pretrain")]:
        code, _, err = slmctl(command, path)
        assert code == 1
        assert f"slmctl {wanted}" in err or "slmctl prepare" in err


def test_pretrain_refuses_tokens_of_another_seq_len(slmctl: Any, tiny: Tiny) -> None:
    path = tiny()
    assert slmctl("prepare", path)[0] == 0
    code, _, err = slmctl("train-base", path, "-o", "data.seq_len=64")
    assert code == 1
    assert "seq_len: found 32, wanted 64" in err
    code, _, err = slmctl("train-base", path, "-o", "seed=5")
    assert code == 1
    assert "seed: found 0, wanted 5" in err


def test_output_dir_of_another_pipeline_is_refused(slmctl: Any, tiny: Tiny, tmp_path: Path) -> None:
    assert slmctl("prepare", tiny())[0] == 0
    code, _, err = slmctl("prepare", tiny(lambda s: s.update(name="other")))
    assert code == 2
    assert "'tiny'" in err
    assert "'other'" in err
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("mine")
    code, _, err = slmctl("prepare", tiny(), "-o", f"output_dir={tmp_path / 'full'}")
    assert code == 2
    assert (tmp_path / "full" / "thesis.tex").read_text() == "mine"


BAD_TEXTS = {
    "empty file": (b"", "corpus is empty"),
    "only blank documents": (b'{"text": " "}\n', "corpus is empty"),
    "broken JSON": (b'{"text": "a"}\n{"text": "b"\n', "corpus.jsonl, line 2: not valid JSON"),
    "absent field": (b'{"text": "a"}\n{"txt": "b"}\n', "corpus.jsonl, line 2: field 'text' is absent (the record has: txt)"),
    "null field": (b'{"text": null}\n', "corpus.jsonl, line 1: field 'text' is null"),
    "invalid UTF-8": (b'{"text": "a"}\n{"text": "\xff\xfe"}\n', "corpus.jsonl, line 2: invalid UTF-8"),
    "not an object": (b"[1]\n", "corpus.jsonl, line 1: want a JSON object"),
}


@pytest.mark.parametrize("what", BAD_TEXTS)
def test_bad_text_is_named_with_its_place_and_leaves_no_manifest(slmctl: Any, tiny: Tiny, tmp_path: Path, what: str) -> None:
    path = tiny(lambda s: s["model"]["scratch"].update(vocab_size=261))
    content, message = BAD_TEXTS[what]
    (tmp_path / "corpus.jsonl").write_bytes(content)
    code, _, err = slmctl("prepare", path)
    assert code == 1
    assert message in err
    assert "Traceback" not in err
    assert not (tmp_path / "run" / "tokens" / "corpus" / "manifest.json").exists()


def test_missing_file_is_named(slmctl: Any, tiny: Tiny) -> None:
    code, _, err = slmctl("prepare", tiny(lambda s: s["data"]["corpus"].update(path="web/*.jsonl")))
    assert code == 1
    assert "web/*.jsonl matches no file" in err


@pytest.mark.parametrize(
    ("key", "value"), [("ratio", 0), ("ratio", 1.5), ("ratio", ".nan"), ("criterion", "exces_loss"), ("rato", 1)]
)
def test_bad_selection_is_refused_before_anything_runs(slmctl: Any, tiny: Tiny, tmp_path: Path, key: str, value: object) -> None:
    code, _, err = slmctl("run", tiny(), "-o", f"pretrain.arms.slm.selection.{key}={value}")
    assert code == 2
    assert f"pretrain.arms.slm.selection.{key}" in err
    assert not (tmp_path / "run").exists()


def test_long_documents_are_split_and_counted(slmctl: Any, tiny: Tiny, tmp_path: Path) -> None:
    path = tiny()
    with open(tmp_path / "corpus.jsonl", "a") as f:
        f.write(json.dumps({"text": "cat " * 2000}) + "\n")
    code, _, err = slmctl("prepare", path)
    assert code == 0
    assert re.search(r"prepare corpus: [\d,]+ documents, [\d,]+ tokens in \d+ shards?\n", err), "none is left out"
    manifest = json.loads((tmp_path / "run" / "tokens" / "corpus" / "manifest.json").read_text())
    assert 1 <= manifest["counts"]["split_documents"] <= manifest["counts"]["documents"]


def test_nan_loss_stops_with_the_step_and_keeps_the_last_checkpoint(slmctl: Any, tiny: Tiny, tmp_path: Path) -> None:
    path = tiny()
    assert slmctl("run", path)[0] == 0
    code, _, err = slmctl(
        "pretrain", path, "--arm", "clm", "-o", "pretrain.arms.clm.lr=1.0e+38", "-o", "pretrain.arms.clm.warmup=0"
    )
    assert code == 1
    assert "is not finite" in err
    assert "step 2" in err or "step 3" in err
    assert not (tmp_path / "run" / "pretrain" / "clm" / "done.json").exists()
    code, _, err = slmctl("eval", path)
    assert code == 0
    assert "arm clm is not trained to its end" in err


STAGES = ("prepare", "train-base", "train-ref", "score", "pretrain", "eval", "report")


def test_a_full_disk_at_any_stage_is_one_message_and_the_rerun_completes(slmctl: Any, tiny: Tiny, tmp_path: Path) -> None:
    """A limit on file size stands for the full disk: writes fail in the middle, whichever library makes them."""
    path = tiny()
    limit = 2000

    def no_large_files() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    for stage in STAGES:
        process = start(stage, path, preexec_fn=no_large_files)
        _, err = process.communicate(timeout=120)
        assert process.returncode == 1, (stage, err)
        assert "Traceback" not in err
        assert "error: " in err
        assert not [f for f in (tmp_path / "run").rglob(".tmp-*") if f.is_file()], stage
        code, _, err = slmctl(stage, path)
        assert code == 0, (stage, err)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_training_saves_and_goes_on(slmctl: Any, tiny: Tiny, tmp_path: Path, signum: signal.Signals) -> None:
    path = tiny()
    for stage in STAGES[:4]:
        assert slmctl(stage, path)[0] == 0
    process = start("pretrain", path, "--arm", "slm", "-o", "pretrain.steps=4000", "-o", "pretrain.save_every=0")
    metrics = tmp_path / "run" / "pretrain" / "slm" / "metrics.jsonl"
    wait_for(lambda: metrics.is_file() and metrics.read_text().count("\n") >= 3, process)
    process.send_signal(signum)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signum
    assert "saved" in err
    assert "error: " not in err, "it was asked to"
    steps = metrics.read_text().count("\n")
    process = start("pretrain", path, "--arm", "slm", "-o", "pretrain.steps=4000", "-o", "pretrain.save_every=0")
    wait_for(lambda: metrics.read_text().count("\n") > steps, process)
    process.send_signal(signum)
    _, err = process.communicate(timeout=60)
    assert f"resuming after step {steps} of 4000" in err


@pytest.mark.parametrize("stage", ["prepare", "score"])
def test_interrupted_making_of_shards_leaves_only_whole_ones(slmctl: Any, tiny: Tiny, tmp_path: Path, stage: str) -> None:
    path = tiny(lambda s: s["data"].update(shard_bytes=1024))
    with open(tmp_path / "corpus.jsonl", "w") as f:
        for i in range(3000):
            f.write(json.dumps({"text": f"document {i} " + "cat dog bird " * 12}) + "\n")
    folder = tmp_path / "run" / ("tokens/corpus" if stage == "prepare" else "scores/curated")
    if stage == "score":
        for before in STAGES[:3]:
            assert slmctl(before, path)[0] == 0
    process = start(stage, path)
    wait_for(lambda: len(list(folder.glob("shard-*.parquet"))) >= 3, process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert not (folder / "manifest.json").exists()
    kept = {f.name: f.stat().st_mtime_ns for f in folder.glob("shard-*.parquet")}
    assert slmctl(stage, path)[0] == 0
    manifest = json.loads((folder / "manifest.json").read_text())
    assert len(manifest["shards"]) > len(kept)
    assert all((folder / name).stat().st_mtime_ns == t for name, t in kept.items())
    if stage == "prepare":
        assert manifest["counts"]["documents"] == 3000


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return
        if process.poll() is not None:
            raise AssertionError(f"ended early: {process.communicate()[1]}")
        time.sleep(0.01)
    process.kill()
    raise AssertionError("waited in vain")


def test_a_generation_task_reads_few_shots_from_the_curated_set(slmctl: Any, tiny: Tiny, tmp_path: Path) -> None:
    items = [{"question": f"{a} + 1 =", "answer": f"{a} + 1 is {a + 1}.\n#### {a + 1}"} for a in range(6)]

    def change(settings: dict[str, Any]) -> None:
        for name in ("curated", "task"):
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(i) + "\n" for i in items))
        settings["data"]["curated"]["text"] = "{question}\n{answer}"
        task = {"name": "sums", "path": str(tmp_path / "task.jsonl"), "shots": 2, "limit": 4, "max_new_tokens": 8}
        settings["eval"] = {"tasks": [task]}
        settings["pretrain"]["arms"] = {"clm": {"selection": {"criterion": "all"}}}

    path = tiny(change)
    code, _, err = slmctl("run", path)
    assert code == 0, err
    assert "no arm needs a reference" in err
    task = json.loads((tmp_path / "run" / "eval" / "results.json").read_text())["models"]["clm"]["tasks"]["sums"]
    assert task["items"] == 4
    assert 0 <= task["accuracy"] <= 1
    assert len((tmp_path / "run" / "eval" / "tasks" / "sums" / "clm.jsonl").read_text().splitlines()) == 4


def test_the_process_leaves_no_signal_handler_behind(slmctl: Any) -> None:
    before = signal.getsignal(signal.SIGINT)
    slmctl("--version")
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("command", ["prepare", "validate", "report"])
@pytest.mark.parametrize("key", ["output_dir", "store_dir"])
@pytest.mark.parametrize(
    ("place", "why"),
    [
        ("file.txt/x/y", "lies below {root}/file.txt, which is a file"),
        ("file.txt", "is a file"),
        ("x" * 300, "is too long (300 bytes in its longest name"),
        ("/".join(["y" * 200] * 30), "is too long (200 bytes in its longest name, "),
        ("loop/x", "cannot be reached: {root}/loop: "),
    ],
)
def test_a_place_where_no_folder_can_be_is_a_mistake_of_the_configuration(
    slmctl: Any, tiny: Tiny, tmp_path: Path, command: str, key: str, place: str, why: str
) -> None:
    path = tiny()
    (tmp_path / "file.txt").write_text("x")
    (tmp_path / "loop").symlink_to("loop")
    code, _, err = slmctl(command, path, "-o", f"{key}={tmp_path / place}")
    assert code == 2
    assert why.format(root=tmp_path) in err
    assert f"Choose another {key} (-o {key}=...)." in err
    assert len(err) < 500
    assert "unexpected" not in err
    if key == "output_dir":
        code, _, err = slmctl("demo", "--output-dir", tmp_path / place)
        assert code == 2
        assert why.format(root=tmp_path) in err


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="a folder in which none can be made")
def test_a_place_where_nothing_can_be_written_is_named(slmctl: Any, tiny: Tiny) -> None:
    code, _, err = slmctl("prepare", tiny(), "-o", "output_dir=/proc/slmctl")
    assert code == 1
    assert re.search(r"error: cannot write /proc/slmctl/\S+: .*Choose another output_dir", err)


def test_a_configuration_in_another_encoding_names_its_cure(slmctl: Any, tiny: Tiny) -> None:
    path = tiny()
    text = path.read_text(encoding="utf-8")
    path.write_text(text, encoding="utf-8-sig")
    assert slmctl("validate", path)[0] == 0, "a mark that Notepad writes"
    path.write_text(text, encoding="utf-16")
    code, _, err = slmctl("validate", path)
    assert (code, f"`iconv -f UTF-16 -t UTF-8 {path} > {path.parent}/tiny-utf8.yaml`" in err) == (2, True)
    path.write_text(text.replace("name: tiny", "name: ti\xf1y"), encoding="latin-1")
    code, _, err = slmctl("validate", path)
    assert (code, "is not UTF-8 text (line 1); `iconv -f WINDOWS-1252" in err) == (2, True)

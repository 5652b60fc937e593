"""A pipeline whose tokenizer puts a beginning-of-sequence token in front: every stage by losses worked out from scratch."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bos_tokenizer import begin_with
from evaluated_pipeline import set_rows
from tiny_store import make_model, make_tokenizer, open_workspace, store_settings, texts, write_jsonl

from slmctl.evaluation.heldout import document_bytes
from slmctl.stages.evaluate import evaluate
from slmctl.stages.inspect import inspect
from slmctl.stages.prepare import look as look_at_tokens
from slmctl.stages.prepare import prepare
from slmctl.stages.pretrain import pretrain
from slmctl.stages.score import score
from slmctl.stages.train_ref import train_reference
from slmctl.store.reader import RowReader
from slmctl.system.errors import ConfigError, InputError, MismatchError
from slmctl.workspace.workspace import Workspace

T, VOCAB = 32, 304
Settings = dict[str, Any]


def bos_settings(root: Path, restart: bool) -> Settings:
    settings = store_settings(root, 40)
    make_model(begin_with(make_tokenizer(root / "model")), VOCAB)
    write_jsonl(root / "task.jsonl", [{"q": "one two", "a": "#### 3"}, {"q": "three " * 200, "a": "4"}])
    settings["data"]["intra_document_mask"] = restart
    settings["score"]["references"] = {"curated": "reference"}
    settings["pretrain"]["save_every"] = 1
    task = {"name": "sums", "path": str(root / "task.jsonl"), "prompt": "{q} =", "answer": "{a}", "shots": 0, "max_new_tokens": 4}
    settings["eval"] = {"dynamics_tokens": 512, "highlighted": 2, "tasks": [task]}
    return settings


@pytest.fixture(scope="module", params=[False, True], ids=["rows", "documents"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, Workspace]:
    settings = bos_settings(tmp_path_factory.mktemp("bos"), request.param)
    workspace = open_workspace(settings)
    prepare(workspace)
    train_reference(workspace)
    score(workspace)
    pretrain(workspace)
    return settings, workspace


def bos_id(workspace: Workspace) -> int:
    found: int = workspace.tokenizer().backend.token_to_id("<s>")
    return found


def losses_by_hand(model: Any, workspace: Workspace, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Losses [rows, T] in float64, each text's tokens behind a BOS as sequences of their own or as rows, NaN where there is
    none; and the rows' ids."""
    ids, documents = set_rows(workspace, name).astype(np.int64), set_rows(workspace, name, "document")
    bos, restart = bos_id(workspace), workspace.config.data.intra_document_mask
    found = np.full(ids.shape, np.nan)
    for row, (tokens, owners) in enumerate(zip(ids, documents, strict=True)):
        starts = [t for t in range(T) if t == 0 or (restart and owners[t] != owners[t - 1])]
        for a, b in zip(starts, [*starts[1:], T], strict=True):
            if owners[a] < 0:
                continue
            assert tokens[a] == bos, "a sequence begins with something else"
            with torch.no_grad():
                logits = model(torch.from_numpy(tokens[None, a:b])).logits[0].double()
            log_p = torch.log_softmax(logits, -1)
            for t in range(a + 1, b):
                if owners[t] >= 0:
                    found[row, t] = -log_p[t - 1 - a, tokens[t]]
    return found, ids


def test_every_token_of_the_texts_is_there_once_behind_its_bos(made: tuple[Settings, Workspace]) -> None:
    settings, workspace = made
    tokenizer, bos = workspace.tokenizer(), bos_id(workspace)
    ids, documents = (set_rows(workspace, "corpus", c) for c in ("input_id", "document"))
    lines = Path(settings["data"]["corpus"]["path"]).read_text().splitlines()
    wanted = sorted([*tokenizer.encode([json.loads(line)["text"]])[0].tolist(), tokenizer.eos_id] for line in lines)
    found: dict[int, list[int]] = {}
    for token, document in zip(ids.ravel().tolist(), documents.ravel().tolist(), strict=True):
        if document >= 0 and token != bos:
            found.setdefault(document, []).append(token)
    assert sorted(found.values()) == wanted
    assert (ids[:, 0] == bos).all()
    manifest = workspace.open_tokens("corpus").manifest
    at = "document" if workspace.config.data.intra_document_mask else "row"
    assert manifest.made_from["bos"] == {"id": bos, "at": at}
    assert (manifest.format["bos_id"], manifest.format["bos_at"]) == (bos, at)
    counts = manifest.counts
    assert counts["tokens"] == sum(map(len, wanted))
    assert counts["bos_tokens"] == (ids == bos).sum()
    assert counts["padding"] == (documents < 0).sum()
    assert sum(s.tokens for s in manifest.shards) == (documents >= 0).sum()


def test_score_shards_are_the_references_losses_behind_a_bos(made: tuple[Settings, Workspace]) -> None:
    import transformers as tf

    _, workspace = made
    model = tf.AutoModelForCausalLM.from_pretrained(workspace.reference, dtype=torch.float64).eval()
    wanted, _ = losses_by_hand(model, workspace, "corpus")
    found = set_rows(workspace, "curated", "ref_loss", "scores")
    assert ((found == -1) == np.isnan(wanted)).all()
    np.testing.assert_allclose(found[found != -1], wanted[found != -1], rtol=2e-3, atol=1e-4)


def test_an_evaluation_is_of_losses_behind_a_bos_and_prompts_begin_with_it(
    made: tuple[Settings, Workspace], monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers as tf

    _, workspace = made
    prompts: list[list[int]] = []
    own = tf.LlamaForCausalLM.generate

    def generate(self: Any, *args: Any, **options: Any) -> Any:
        rows = zip(options["input_ids"].tolist(), options["attention_mask"].tolist(), strict=True)
        prompts.extend([i for i, on in zip(ids, mask, strict=True) if on] for ids, mask in rows)
        return own(self, *args, **options)

    monkeypatch.setattr(tf.LlamaForCausalLM, "generate", generate)
    evaluate(workspace)
    bos, tokenizer = bos_id(workspace), workspace.tokenizer()
    short, long = sorted(prompts[:2], key=len)
    assert short == [bos, *tokenizer.encode(["one two ="])[0]]
    room = 256 - 4
    assert long == [bos, *tokenizer.encode(["three " * 200 + " ="])[0][-(room - 1) :]]
    assert all(p[0] == bos and bos not in p[1:] for p in prompts)

    results = json.loads((workspace.evaluation / "results.json").read_text())
    found = results["models"]["base"]["heldout"]["target"]
    model = tf.AutoModelForCausalLM.from_pretrained(workspace.config.model.path, dtype=torch.float64).eval()
    wanted, _ = losses_by_hand(model, workspace, "heldout/target")
    [target] = workspace.config.data.heldout["target"][0].path or []
    texts_ = [json.loads(line)["text"] for line in Path(target).read_text().splitlines()]
    tokens = sum(len(i) + 1 for i in tokenizer.encode(texts_))
    assert found["predicted_tokens"] == np.isfinite(wanted).sum() == tokens, "every token of a text is predicted"
    assert found["loss"] == pytest.approx(np.nanmean(wanted), rel=1e-5)
    size = sum(len(t.encode()) for t in texts_)
    assert found["bits_per_byte"] == pytest.approx(np.nansum(wanted) / math.log(2) / size, rel=1e-5)
    assert found["bits_per_byte_interval"] is not None
    sizes = document_bytes(RowReader(workspace.open_tokens("heldout/target")), tokenizer)
    assert sorted(sizes.values()) == sorted(len(t.encode()) for t in texts_)
    shown = json.loads((workspace.evaluation / "highlights.json").read_text())["documents"]
    assert shown
    assert all("<s>" not in document["tokens"]["text"] for document in shown)
    card = (workspace.arm("slm") / "model" / "README.md").read_text()
    assert "beginning-of-sequence token: &lt;s&gt; before each" in card


def test_a_run_goes_on_and_ends_as_if_it_had_not_stopped(made: tuple[Settings, Workspace]) -> None:
    settings, workspace = made
    weights = (workspace.arm("slm") / "model" / "model.safetensors").read_bytes()
    pretrain(open_workspace(settings))  # complete: skipped
    pretrain(open_workspace(settings), resume=1)
    assert (workspace.arm("slm") / "model" / "model.safetensors").read_bytes() == weights


def test_shards_are_verified_and_inspected_with_their_bos(
    made: tuple[Settings, Workspace], capsys: pytest.CaptureFixture[str]
) -> None:
    settings, _ = made
    workspace = open_workspace(settings)
    look_at_tokens(workspace, "verify")
    capsys.readouterr()
    inspect(workspace, "scores/curated", 0, 1, 2)
    assert "the same tokens, every one" in capsys.readouterr().out
    inspect(workspace, "tokens/corpus", 0, None, 0)
    assert '"<s>", one before each' in capsys.readouterr().out


@pytest.mark.parametrize(("setting", "found", "wanted"), [("never", "'id'", "None"), ("auto", "None", "'id'")])
def test_a_set_that_has_bos_where_none_is_wanted_is_refused_and_the_reverse(
    tmp_path: Path, setting: str, found: str, wanted: str
) -> None:
    settings = bos_settings(tmp_path, False)
    settings["data"]["bos"] = "auto" if setting == "never" else "never"
    workspace = open_workspace(settings)
    prepare(workspace)
    kept = workspace.open_tokens("corpus").manifest
    assert ("bos" in kept.made_from, "bos_id" in kept.format, "bos_tokens" in kept.counts) == (setting == "never",) * 3
    settings["data"]["bos"] = setting
    settings["accept_mismatch"] = ["tokens/corpus:bos"]
    with pytest.raises(MismatchError, match=f"tokens/corpus:bos: found .*{found}.*, wanted .*{wanted}") as refused:
        open_workspace(settings).open_tokens("corpus")
    assert "accept_mismatch" not in str(refused.value)
    with pytest.raises(MismatchError, match="tokens/curated:bos: found"):
        look_at_tokens(open_workspace(settings), "status")
    Path(settings["data"]["corpus"]["path"]).rename(tmp_path / "gone.jsonl")
    with pytest.raises(InputError, match=r"corpus\.jsonl"):  # a set whose texts are gone is kept only where it is what is wanted
        prepare(open_workspace(settings))
    (tmp_path / "gone.jsonl").rename(settings["data"]["corpus"]["path"])
    prepare(open_workspace(settings))
    assert open_workspace(settings).open_tokens("corpus").manifest.content_hash != kept.content_hash
    assert any((tmp_path / "run" / "stale").iterdir())


def test_where_bos_stands_is_part_of_a_set(tmp_path: Path) -> None:
    settings = bos_settings(tmp_path, False)
    prepare(open_workspace(settings))
    settings["data"]["intra_document_mask"] = True
    with pytest.raises(MismatchError, match=r"tokens/corpus:bos\.at: found 'row', wanted 'document'"):
        open_workspace(settings).open_tokens("corpus")


def test_without_bos_the_mask_changes_no_set(tmp_path: Path) -> None:
    settings = bos_settings(tmp_path, False)
    settings["data"]["bos"] = "never"
    prepare(open_workspace(settings))
    settings["data"]["intra_document_mask"] = True
    open_workspace(settings).open_tokens("corpus")


def test_always_wants_a_token(tmp_path: Path) -> None:
    settings = bos_settings(tmp_path, False)
    begin_with(tmp_path / "model", "$A", bos_token=None)
    settings["data"]["bos"] = "always"
    with pytest.raises(ConfigError, match=r"data\.bos: always, but the tokenizer names no"):
        prepare(open_workspace(settings))


def test_a_bos_beyond_the_models_vocabulary_is_refused(tmp_path: Path) -> None:
    settings = bos_settings(tmp_path, False)
    make_model(tmp_path / "model", workspace_size(settings) - 1)
    with pytest.raises(MismatchError, match="'<s>'"):
        prepare(open_workspace(settings))


def workspace_size(settings: Settings) -> int:
    return open_workspace(settings).tokenizer().size


def test_always_with_one_token_for_both_ends(tmp_path: Path) -> None:
    """As GPT-2's, whose `<|endoftext|>` is both."""
    settings = store_settings(tmp_path, 20)
    settings["data"]["bos"] = "always"
    write_jsonl(tmp_path / "corpus.jsonl", texts(5, 20))
    workspace = open_workspace(settings)
    prepare(workspace)
    manifest = workspace.open_tokens("corpus").manifest
    ids, documents = set_rows(workspace, "corpus"), set_rows(workspace, "corpus", "document")
    assert (ids[:, 0] == 0).all()
    ends = (ids == 0) & (documents >= 0)
    assert ends.sum() - manifest.counts["bos_tokens"] == manifest.counts["documents"]
    sizes = document_bytes(RowReader(workspace.open_tokens("heldout/target")), workspace.tokenizer())
    lines = (tmp_path / "target.jsonl").read_text().splitlines()
    assert sorted(sizes.values()) == sorted(len(json.loads(line)["text"].encode()) for line in lines)

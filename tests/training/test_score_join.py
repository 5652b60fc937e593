"""Reference losses: right to float16, bound to what they were made from, and never joined to other tokens."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from slmctl.model import scoring
from slmctl.model.row_losses import row_losses
from slmctl.stages import score as stage
from slmctl.stages.prepare import prepare
from slmctl.stages.pretrain import pretrain
from slmctl.stages.score import score
from slmctl.store.manifest import load_manifest
from slmctl.store.scores import SENTINEL
from slmctl.store.shard_file import ShardFile
from slmctl.store.shard_format import shard_name
from slmctl.store.shard_writer import ShardWriter
from slmctl.system.errors import CorruptError, InputError, MismatchError, TrainingError
from slmctl.training.telemetry import read_log
from slmctl.workspace.workspace import Workspace

SEQ_LEN = 32


def columns(directory):
    """Every column of a set's shards as rows, read with pyarrow alone, in file order."""
    table = [pq.read_table(f) for f in sorted(directory.path.glob("shard-*.parquet"))]
    names = table[0].column_names
    return {n: np.concatenate([t.column(n).to_numpy() for t in table]).reshape(-1, SEQ_LEN) for n in names}


def full_logits(model_directory, ids_BT):
    """Logits in float64, whole."""
    model = AutoModelForCausalLM.from_pretrained(model_directory).double().eval()
    with torch.no_grad():
        return torch.cat([model(torch.from_numpy(part.astype(np.int64))).logits for part in np.array_split(ids_BT, 20)])


def names(directory):
    """The shards of a set."""
    return sorted(f.name for f in directory.path.glob("shard-*.parquet"))


def rewrite(directory, change, publish):
    """Rewrites each score shard with `change`d losses; with `publish` also a manifest that is valid for them."""
    manifest = load_manifest(directory, "scores")
    shards = []
    for shard in manifest.shards:
        file = ShardFile(directory, shard.file)
        facts, groups = file.facts, file.groups
        file.close()
        table = pq.read_table(directory.path / shard.file)
        read = {n: table.column(n).to_numpy().copy() for n in table.column_names}
        read["ref_loss"] = change(read["ref_loss"])
        directory.remove(shard.file)
        per_group = manifest.group_rows * manifest.seq_len
        with ShardWriter(directory, shard.file, {n: str(c.dtype) for n, c in read.items()}, per_group) as writer:
            for at in range(0, groups * per_group, per_group):
                writer.write(**{n: c[at : at + per_group] for n, c in read.items()})
            writer.facts = facts
        assert writer.won
        shards.append(replace(writer.shard, first_row=shard.first_row))
    if publish:
        replace(manifest, shards=shards).save(directory, replace=True)


# --- what is stored ---


def test_scores_are_the_whole_logits_losses_to_float16_rounding(scored):
    tokens, scores = columns(scored.tokens("corpus")), columns(scored.scores("curated"))
    assert len(names(scored.scores("curated"))) > 2
    ids, document = tokens["input_id"].astype(np.int64), tokens["document"]
    logits_BTV = full_logits(scored.reference, ids)
    log_p = torch.log_softmax(logits_BTV, dim=-1)
    loss = -log_p[:, :-1].gather(2, torch.from_numpy(ids)[:, 1:, None])[..., 0].numpy()
    entropy = -(log_p.exp() * log_p).sum(-1)[:, :-1].numpy()
    target = document[:, 1:] >= 0
    for found, wanted in ((scores["ref_loss"], loss), (scores["ref_entropy"], entropy)):
        wanted, stored = wanted[target], found[:, 1:][target].astype(np.float16)
        assert (stored == found[:, 1:][target]).all(), "more is stored than float16 holds"
        half_step = np.spacing(np.maximum(stored, np.float16(1e-4))).astype(np.float64) / 2
        assert (np.abs(stored.astype(np.float64) - wanted) <= half_step + 1e-5).all()
    # one token further on, nearly all would be wrong
    assert np.mean(np.abs(scores["ref_loss"][:, 1:-1].astype(np.float64) - loss[:, 1:]) > 0.01) > 0.5


def test_first_tokens_and_padding_hold_the_sentinel_and_nothing_else_does(scored):
    document, scores = columns(scored.tokens("corpus"))["document"], columns(scored.scores("curated"))
    assert (document == -1).any(), "no padding: the test shows nothing"
    unpredicted = document < 0
    unpredicted[:, 0] = True
    for column in ("ref_loss", "ref_entropy"):
        assert ((scores[column] == SENTINEL) == unpredicted).all()
        assert (scores[column][~unpredicted] >= 0).all()
    manifest = load_manifest(scored.scores("curated"), "scores")
    assert manifest.format["sentinel"] == SENTINEL
    assert manifest.counts["predicted"] == (~unpredicted).sum()


def test_documents_under_the_mask_are_scored_alone(pipeline):
    accepted = [f"{model}:intra_document_mask" for model in ("base", "reference")]
    workspace = pipeline("masked", {"data": {"intra_document_mask": True}, "accept_mismatch": accepted})
    score(workspace)
    tokens, scores = columns(workspace.tokens("corpus")), columns(workspace.scores("curated"))
    model = AutoModelForCausalLM.from_pretrained(workspace.reference).double().eval()
    for row in range(0, len(tokens["document"]), 37):
        document = tokens["document"][row]
        for d in sorted(set(document) - {-1}):
            at = np.flatnonzero(document == d)
            assert scores["ref_loss"][row, at[0]] == SENTINEL
            ids = torch.from_numpy(tokens["input_id"][row, at].astype(np.int64))
            with torch.no_grad():
                log_p = torch.log_softmax(model(ids[None]).logits[0], dim=-1)
            wanted = [-float(log_p[i - 1, ids[i]]) for i in range(1, len(at))]
            assert scores["ref_loss"][row, at[1:]].tolist() == pytest.approx(wanted, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("over", [{"dtype": "float32"}, {"dtype": "compact"}, {"entropy": False}, {"precision": "bfloat16"}])
def test_changed_score_settings_make_the_scores_anew(over, pipeline):
    workspace = pipeline("other", {"score": over})
    before = columns(workspace.scores("curated"))["ref_loss"]
    score(workspace)
    found = columns(workspace.scores("curated"))
    assert ("ref_entropy" in found) == over.get("entropy", True)
    halves = found["ref_loss"].astype(np.float16)
    assert (halves == found["ref_loss"]).all() == (over.get("dtype") != "float32")
    assert ((halves.view(np.uint16) & 0xF) == 0).all() == (over.get("dtype") == "compact")
    rounding = 2**-7 if over.get("dtype") == "compact" else 0
    np.testing.assert_allclose(found["ref_loss"], before, rtol=rounding, atol=0.2 if "precision" in over else 5e-3)


def test_batch_rows_do_not_change_what_is_stored_beyond_rounding(pipeline, scored):
    workspace = pipeline("batched", {"score": {"batch_rows": 5}})
    shutil.rmtree(workspace.scores("curated").path)
    score(workspace)
    a, b = (columns(w.scores("curated"))["ref_loss"] for w in (workspace, scored))
    np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-5)


def test_a_stopped_scoring_keeps_its_whole_shards_and_goes_on_to_the_same_set(pipeline, scored, monkeypatch):
    workspace = pipeline()
    shutil.rmtree(workspace.scores("curated").path)
    original, made = stage.score_shard, []

    def score_shard(folder, bound, tokens, index, *rest):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(shard_name(index))
        return original(folder, bound, tokens, index, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(stage, "score_shard", score_shard)
        with pytest.raises(KeyboardInterrupt):
            score(workspace)
    first = {f.name: f.stat().st_mtime_ns for f in workspace.scores("curated").path.glob("shard-*.parquet")}
    assert sorted(first) == made
    assert not workspace.scores("curated").exists("manifest.json")
    with pytest.raises(InputError, match="slmctl score"):
        pretrain(workspace, ["slm"])
    score(workspace)
    for name, time in first.items():
        assert (workspace.scores("curated").path / name).stat().st_mtime_ns == time, "a done shard was made again"
    found, wanted = (load_manifest(w.scores("curated"), "scores") for w in (workspace, scored))
    assert found.content_hash == wanted.content_hash


# --- NaN ---


def test_nan_while_scoring_publishes_neither_that_shard_nor_a_manifest(pipeline, monkeypatch):
    workspace = pipeline()
    directory = workspace.scores("curated")
    shutil.rmtree(directory.path)
    files = [s.file for s in load_manifest(workspace.tokens("corpus"), "tokens").shards]
    calls = []

    def losses(model, ids_BT, document_BT, *rest):
        found = row_losses(model, ids_BT, document_BT, *rest)
        calls.append(len(ids_BT))
        if directory.exists(files[0]) and sum(calls) % 7:  # the first shard is done: break one of the second
            found[0][-1, 5] = np.nan
        return found

    monkeypatch.setattr(scoring, "row_losses", losses)
    with pytest.raises(TrainingError, match=f"1 values of ref_loss that are not finite in {files[1]}, row group 0"):
        score(workspace)
    assert sorted(f.name for f in directory.path.iterdir()) == ["plan.json", files[0]]


def test_a_reference_with_nan_in_one_embedding_is_stopped(pipeline):
    """The row of a token that only real text holds: what start-up checks on made-up ids could miss."""
    workspace = pipeline()
    poison_reference(workspace, nan=True)
    with pytest.raises((TrainingError, InputError)):
        score(workspace)
    directory = workspace.scores("curated")
    assert not directory.exists("manifest.json")
    assert not names(directory)


def poison_reference(workspace, nan=False):
    path = workspace.reference / "model.safetensors"
    weights = load_file(path)
    name = next(n for n in weights if n.endswith("embed_tokens.weight"))
    if nan:
        weights[name][ord("u") % len(weights[name])] = torch.nan
    else:
        weights[name][0, 0] += 0.125
    save_file(weights, path, metadata={"format": "pt"})


# --- alignment ---


@pytest.mark.parametrize("shift", [-1, 1])
@pytest.mark.parametrize("arm", ["slm", "random"])
def test_losses_shifted_by_a_token_under_a_valid_manifest_stop_the_run(shift, arm, pipeline):
    workspace = pipeline()
    rewrite(workspace.scores("curated"), lambda x: np.roll(x, shift), publish=True)
    with pytest.raises(MismatchError, match="misaligned"):
        pretrain(workspace, [arm])
    assert len(read_log(workspace.arm(arm) / "metrics.jsonl")) == 3
    assert not (workspace.arm(arm) / "model").exists()


def test_the_same_rewriting_without_a_shift_is_accepted(pipeline):
    """The test above fails for the shift alone, not for how it rewrites."""
    workspace = pipeline()
    rewrite(workspace.scores("curated"), lambda x: x, publish=True)
    pretrain(workspace, ["slm"])
    assert (workspace.arm("slm") / "done.json").is_file()


def test_alignment_check_warn_goes_on_but_says_so(pipeline, capsys):
    workspace = pipeline("warned", {"pretrain": {"alignment_check": "warn"}})
    rewrite(workspace.scores("curated"), lambda x: np.roll(x, 1), publish=True)
    pretrain(workspace, ["slm"])
    assert "misaligned" in capsys.readouterr().err
    assert (workspace.arm("slm") / "done.json").is_file()


def test_a_shifted_shard_without_a_new_manifest_is_caught_by_its_size_or_footer(pipeline):
    workspace = pipeline()
    rewrite(workspace.scores("curated"), lambda x: np.roll(x, 1), publish=False)
    with pytest.raises(CorruptError, match=r"shard-\d+\.parquet is broken: .* its manifest (names|says)"):
        pretrain(workspace, ["slm"])
    assert not read_log(workspace.arm("slm") / "metrics.jsonl")


def test_a_flipped_bit_in_the_losses_of_a_score_shard_is_caught(pipeline):
    workspace = pipeline()
    path = workspace.scores("curated").path / names(workspace.scores("curated"))[1]
    chunk = pq.read_metadata(path).row_group(0).column(0)
    assert chunk.path_in_schema == "ref_loss"
    data = bytearray(path.read_bytes())
    data[chunk.data_page_offset + chunk.total_compressed_size // 2] ^= 4
    path.write_bytes(data)
    with pytest.raises(CorruptError, match=path.name):
        pretrain(workspace, ["slm"])


def test_an_edited_manifest_is_caught(pipeline):
    workspace = pipeline()
    path = workspace.scores("curated").path / "manifest.json"
    path.write_text(path.read_text().replace('"sentinel": -1.0', '"sentinel": -2.0'))
    with pytest.raises(CorruptError, match="altered"):
        pretrain(workspace, ["slm"])


# --- bindings ---


def swap_two_ids(directory):
    """A tokenizer of the same size, in which two bytes have changed their ids."""
    path = directory / "tokenizer.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    vocab = data["model"]["vocab"]
    vocab["<0x71>"], vocab["<0x77>"] = vocab["<0x77>"], vocab["<0x71>"]
    path.write_text(json.dumps(data), encoding="utf-8")


def refused(workspace, field, arm="slm"):
    with pytest.raises(MismatchError, match=field):
        pretrain(workspace, [arm])
    assert not (workspace.arm(arm) / "metrics.jsonl").exists()


def test_scores_by_another_reference_are_refused(pipeline):
    workspace = pipeline()
    poison_reference(workspace)
    refused(workspace, r"reference.model.safetensors: found .*, wanted")


def test_another_seq_len_is_refused(pipeline):
    refused(pipeline("short", {"data": {"seq_len": 16}}), "seq_len: found 32, wanted 16")


def test_another_seed_of_packing_is_refused(pipeline):
    refused(pipeline("seeded", {"seed": 1}), "seed: found 0, wanted 1")


def test_another_tokenizer_is_refused(pipeline):
    workspace = pipeline()
    before = workspace.tokenizer().fingerprint()
    swap_two_ids(workspace.own_tokenizer)
    fresh = Workspace(workspace.config)
    assert fresh.tokenizer().fingerprint() != before
    refused(fresh, "tokenizer: found")


def test_scores_of_other_tokens_are_refused(pipeline):
    """Same lengths, same tokenizer, another packing: only the hash of the token set tells."""
    accepted = [f"{model}:{field}" for model in ("base", "reference") for field in ("seed", "corpus", "curated")]
    workspace = pipeline("packed", {"seed": 1, "accept_mismatch": accepted})
    prepare(workspace)
    base = Workspace(workspace.config)
    refused(base, "tokens: found")


def test_another_attention_mask_is_refused(pipeline):
    refused(pipeline("masked", {"data": {"intra_document_mask": True}}), "intra_document_mask: found False, wanted True")


def test_a_foreign_reference_with_another_tokenizer_is_refused_before_scoring(pipeline, tmp_path):
    workspace = pipeline("foreign", {"score": {"references": {"other": str(tmp_path / "other")}}})
    shutil.copytree(workspace.reference, tmp_path / "other")
    swap_two_ids(tmp_path / "other")
    with pytest.raises(MismatchError, match="tokenizer"):
        score(workspace)
    assert not names(workspace.scores("other"))

"""What an evaluation is of is opened once, at its head, and its identity is that of the evaluations of before."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from evaluated_pipeline import ARMS, STEPS, Made

from slmctl.stages.evaluate import evaluate, resolve
from slmctl.store.reader import TokenSet
from slmctl.system.errors import InputError
from slmctl.system.files import read_json
from slmctl.system.hashes import sha256_json
from slmctl.training.telemetry import read_log
from slmctl.workspace.workspace import Workspace


def test_each_set_is_opened_once(own_copy: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    real = Workspace.open_tokens

    def note(self: Workspace, name: str) -> TokenSet:
        opened.append(name)
        return real(self, name)

    monkeypatch.setattr(Workspace, "open_tokens", note)
    evaluate(own_copy.open(lambda s: s["eval"].update(level=0.9)))
    assert sorted(opened) == ["corpus", "curated", "heldout/general", "heldout/target"]


def test_the_inputs_are_what_was_recorded_and_where_each_comes_from(evaluated: Made) -> None:
    workspace = evaluated.open()
    compared = resolve(workspace)
    assert compared.inputs == read_json(workspace.evaluation / "inputs.json")
    assert list(compared.inputs) == [
        *("schema", "intervals", "corpus", "settings", "seed", "intra_document_mask", "attn_implementation", "heldout", "tasks"),
        *("curated", "models", "runs", "checkpoints", "scores", "sweeps", "notes", "contamination", "reaching"),
    ]
    figures = dict(list(compared.inputs.items())[:10])
    assert compared.conditions.figures_from == figures
    hashes = {n: read_json(workspace.tokens(f"heldout/{n}").path / "manifest.json")["content_hash"] for n in figures["heldout"]}
    assert figures["heldout"] == hashes
    for arm in ARMS:
        folder = workspace.arm(arm)
        run = [read_json(folder / "inputs.json"), sha256_json(read_log(folder / "evals.jsonl"))]
        assert compared.inputs["runs"][arm] == run
        assert compared.inputs["checkpoints"][arm] == list(STEPS)


def test_a_part_is_known_by_what_its_figures_depend_on(evaluated: Made) -> None:
    """As those of before were: what they hold is found again."""
    compared = resolve(evaluated.open())
    for name, model in compared.models.items():
        made = {"made_from": compared.conditions.figures_from, "model": model.fingerprint, "holds": 2}
        assert read_json(compared.stage.path / "parts" / f"{name}.json")["identity"] == sha256_json(made)


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_what_results_depend_on_is_known_where_the_device_is_not(evaluated: Made) -> None:
    def elsewhere(settings: dict[str, Any]) -> None:
        settings["device"] = "cuda"

    compared = resolve(evaluated.open(elsewhere))
    assert compared.inputs == resolve(evaluated.open()).inputs
    with pytest.raises(InputError, match="sees no CUDA device"):
        _ = compared.conditions.device


def test_base_and_reference_have_logs_of_their_own_and_an_arm_is_what_it_was_trained_as(evaluated: Made) -> None:
    workspace = evaluated.open(lambda s: s["pretrain"]["arms"]["random"].update(seed=7))
    compared = resolve(workspace)
    assert list(compared.models) == ["base", "reference", *ARMS]
    logs = {"base": workspace.base_training, "reference": workspace.reference / "training"}
    assert {n: m.training for n, m in compared.models.items()} == {**logs, **dict.fromkeys(ARMS)}
    assert compared.arms["random"].seed == 0
    (note,) = compared.notes
    assert note.startswith("arm random was trained with other settings than the configuration has now: seed")
    elsewhere = evaluated.open(lambda s: s.update(model={"path": str(workspace.base)}))
    assert resolve(elsewhere).models["base"].training is None, "a base that was not trained here"

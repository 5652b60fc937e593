"""Prompts begin with BOS once where rows do, and with nothing else, whatever the tokenizer's template does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from bos_tokenizer import begin_with

from slmctl.config.evaluation import HarnessConfig
from slmctl.corpus.tokenizer import Tokenizer, load_tokenizer
from slmctl.corpus.train_tokenizer import train_tokenizer
from slmctl.evaluation.generation import GenerationTask, Item, run_task
from slmctl.system.errors import ConfigError

POSITIONS = 64


@pytest.fixture(scope="module", params=["template adds it", "template adds none", "template adds two"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    directory = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(["the sum of 12 and 30 is 42, and so it goes on"] * 20, 300, directory)
    template = {"adds it": "<s> $A <|endoftext|>", "adds none": "$A", "adds two": "<|endoftext|> <s> $A"}
    return load_tokenizer(str(begin_with(directory, template[request.param.removeprefix("template ")]))).hf


@pytest.fixture
def model(make_llama: Callable[..., Any], tokenizer: Any) -> Any:
    model = make_llama(POSITIONS).model
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    return model


def bare(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def logprob(model: Any, ids: list[int], n: int) -> float:
    """Of the last n ids after the others, by one plain forward pass."""
    with torch.no_grad():
        logprobs = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return float(sum(logprobs[t - 1, ids[t]] for t in range(len(ids) - n, len(ids))))


@pytest.mark.parametrize("with_bos", [True, False])
def test_own_tasks(model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, with_bos: bool) -> None:
    bos = tokenizer.bos_token_id if with_bos else None
    seen: list[list[int]] = []
    own = type(model).generate

    def generate(self: Any, **options: Any) -> Any:
        rows = zip(options["input_ids"].tolist(), options["attention_mask"].tolist(), strict=True)
        seen.extend([i for i, on in zip(ids, mask, strict=True) if on] for ids, mask in rows)
        return own(self, **options)

    monkeypatch.setattr(type(model), "generate", generate)
    prompts = ["the sum", "<s>the sum of 12", "12 and " * 40]
    items = [Item(p, "", "0") for p in prompts]
    task = GenerationTask("t", items, "", 0, 6, 2, ("\n\n",), lambda _, __: None, lambda _, __: False)
    found = run_task(model, Tokenizer(tokenizer, "test"), task, "cpu", bos)
    named = [i for part in ("<", "s", ">") for i in bare(tokenizer, part)]  # of which no longer entry is made
    ids = [bare(tokenizer, prompts[0]), [*named, *bare(tokenizer, "the sum of 12")], bare(tokenizer, prompts[2])]
    assert tokenizer.bos_token_id not in ids[1], "its name in a prompt is text"
    room = POSITIONS - 6
    front = [bos] if with_bos else []
    wanted = [[*front, *ids[0]], [*front, *ids[1]], [*front, *ids[2][len(ids[2]) - (room - len(front)) :]]]
    assert sorted(seen) == sorted(wanted)
    assert found["prompts_cut"] == 1
    for item, prompt in zip(found["outputs"], wanted, strict=True):
        made: list[int] = []
        for _ in range(6):
            with torch.no_grad():
                made.append(int(model(torch.tensor([prompt + made])).logits[0, -1].argmax()))
            if made[-1] == tokenizer.eos_token_id:
                break
        assert item["output"] == tokenizer.decode(made, skip_special_tokens=True).split("\n\n")[0]


def test_a_generation_that_leaves_room_for_bos_alone_is_refused(model: Any, tokenizer: Any) -> None:
    items = [Item("12", "", "0")]
    task = GenerationTask("t", items, "", 0, POSITIONS - 1, 1, ("\n\n",), lambda _, __: None, lambda _, __: False)
    with pytest.raises(ConfigError, match="lower it"):
        run_task(model, Tokenizer(tokenizer, "test"), task, "cpu", tokenizer.bos_token_id)
    run_task(model, Tokenizer(tokenizer, "test"), task, "cpu")


@pytest.mark.parametrize("with_bos", [True, False])
def test_likelihoods_of_the_harness(model: Any, tokenizer: Any, tmp_path: Path, with_bos: bool) -> None:
    pytest.importorskip("lm_eval")
    from slmctl.evaluation.harness import run_harness

    rows = [
        {"goal": "the sum of 12", "sol1": "and 30", "sol2": "is", "label": 0},
        {"goal": "the sum of " * 20, "sol1": "goes on", "sol2": "42", "label": 1},
    ]
    path = tmp_path / "piqa.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    bos = tokenizer.bos_token_id if with_bos else None
    task = HarnessConfig(harness="piqa", data=str(path), batch_size=4)
    found = run_harness([task], model, tokenizer, "cpu", seed=7, bos_id=bos)["piqa"]
    front = [bos] if with_bos else []
    for row, output in zip(rows, found["outputs"], strict=True):
        context = bare(tokenizer, f"Question: {row['goal']}\nAnswer:")
        expected = []
        for option in (row["sol1"], row["sol2"]):
            answer = bare(tokenizer, f"Question: {row['goal']}\nAnswer: {option}")[len(context) :]
            room = POSITIONS + 1 - len(answer) - len(front)
            expected.append(logprob(model, [*front, *context[-room:], *answer], len(answer)))
        assert output["logprobs"] == pytest.approx(expected, abs=1e-3)
    assert found["prompts_cut"] == 1


@pytest.fixture
def lm(model: Any, tokenizer: Any) -> Any:
    pytest.importorskip("lm_eval")
    from slmctl.evaluation.harness_model import model_class, quiet

    with quiet():
        bos = tokenizer.bos_token_id
        made = model_class()(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=2, prefix_token_id=bos)
        made.bos_id = bos
        made.begin("t")
        yield made


def request_of(*args: Any) -> Any:
    return SimpleNamespace(args=args)


def test_an_empty_context_is_bos_alone_and_a_white_one_has_it_once(lm: Any, model: Any, tokenizer: Any) -> None:
    bos = tokenizer.bos_token_id
    found = lm.loglikelihood([request_of("", "the sum"), request_of(" ", "the sum"), request_of("<s>12", " and")])
    texts = [(bare(tokenizer, "the sum"), None), (bare(tokenizer, " the sum"), None), (bare(tokenizer, " and"), "12")]
    for (value, _), (answer, before) in zip(found, texts, strict=True):
        context = [bos, *(bare(tokenizer, before) if before else [])]
        assert value == pytest.approx(logprob(model, [*context, *answer], len(answer)), abs=1e-3)


def test_a_rolling_text_has_bos_once(lm: Any, model: Any, tokenizer: Any) -> None:
    ids = bare(tokenizer, "the sum of 12 and 30")
    [found] = lm.loglikelihood_rolling([request_of("the sum of 12 and 30")])
    assert found == pytest.approx(logprob(model, [tokenizer.bos_token_id, *ids], len(ids)), abs=1e-3)


def test_prompts_of_generations_keep_their_bos(lm: Any, tokenizer: Any) -> None:
    bos = tokenizer.bos_token_id
    ids, mask = lm.tok_batch_encode(["12", "the sum of 12 and 30 is", "<s>12"], left_truncate_len=5)
    rows = [[i for i, on in zip(row, m, strict=True) if on] for row, m in zip(ids.tolist(), mask.tolist(), strict=True)]
    long = bare(tokenizer, "the sum of 12 and 30 is")
    assert len(long) > 4
    assert rows == [[bos, *bare(tokenizer, "12")], [bos, *long[-4:]], [bos, *bare(tokenizer, "12")]]
    assert mask[0].tolist() == sorted(mask[0].tolist()), "padding is on the left"

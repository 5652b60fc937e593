"""The final number of an answer, worked examples, and greedy generation against a loop by hand."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
import torch

from slmctl.config.evaluation import TaskConfig
from slmctl.corpus.tokenizer import Tokenizer
from slmctl.evaluation.generation import (
    GenerationTask,
    Item,
    cut,
    few_shot_prefix,
    final_number,
    make_item,
    own_task,
    read_items,
)
from slmctl.evaluation.generation import run_task as run_generation_task
from slmctl.system.errors import ConfigError, InputError

# --- final number ---


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("#### 1,234", "1234"),
        ("#### $1,234,567.50", "1234567.50"),
        ("so 3 + 4 = 7.\n#### 7", "7"),
        ("#### 7\nand then 9 more", "7"),
        ("1 2 3 #### 4 #### 5", "4"),
        ("####7", "7"),
        ("#### none 5 given", "5"),
        ("7 apples #### none", None),
        ("it costs $5.50", "5.50"),
        ("it is $5.50.", "5.50"),
        ("-3", "-3"),
        ("a loss of -$3", "-3"),
        ("#### -12,000", "-12000"),
        ("12.", "12"),
        ("the answer is 12.", "12"),
        ("1/2", "2"),
        ("50%", "50"),
        (".5", "0.5"),
        ("-.25", "-0.25"),
        ("0", "0"),
        ("007", "7"),
        ("1,234,", "1234"),
        ("3, 4 and 5", "5"),
        ("x3y", "3"),
        ("2 * 30 = 60.00", "60"),
        ("no number", None),
        ("", None),
        ("$ , . -", None),
        ("####", None),
        ("####\n", None),
        ("ten", None),
        ("10-12", "12"),
        ("10 - 12", "12"),
        ("5-3", "3"),
        ("x-3", "3"),
        ("(5)-3", "3"),
        ("$5-$3", "3"),
        ("50%-3", "3"),
        ("5 or -3", "-3"),
        ("12,5", "5"),
        ("#### 12,5", "12"),
        ("1,000,5", "5"),
        ("1,2345", "2345"),
        ("1234,567", "567"),
    ],
)
def test_final_number_on_hard_cases(text, wanted):
    assert final_number(text) == (Decimal(wanted) if wanted is not None else None)


def test_equal_values_compare_equal_however_they_are_written():
    assert final_number("18.00") == final_number("#### 18") == final_number("$18.")
    assert final_number("18.01") != final_number("18")
    assert final_number("0.1") == final_number(".10")


# --- items and worked examples ---


def task(tmp_path, items=None, **over):
    path = tmp_path / "task.jsonl"
    if items is not None:
        path.write_text("".join(json.dumps(i) + "\n" for i in items), encoding="utf-8")
    return TaskConfig(**{"name": "t", "path": str(path), "prompt": "Q: {q} A:", "answer": "{a}", "max_new_tokens": 12, **over})


def test_items_are_read_up_to_the_limit(tmp_path):
    items = [{"q": str(i), "a": f"work\n#### {i}"} for i in range(5)]
    assert [i.target for i in read_items(task(tmp_path, items))] == [str(i) for i in range(5)]
    assert len(read_items(task(tmp_path, items, limit=2))) == 2
    assert read_items(task(tmp_path, items))[3] == Item("Q: 3 A:", "work\n#### 3", "3")


def test_a_broken_or_numberless_item_is_named_by_its_line(tmp_path):
    bad = task(tmp_path, [{"q": "1", "a": "1"}, {"q": "2", "a": "none"}])
    with pytest.raises(InputError, match=r"line 2.*no number"):
        read_items(bad)
    with pytest.raises(InputError, match="line 1"):
        read_items(task(tmp_path, [{"q": "1"}]))
    (tmp_path / "task.jsonl").write_text('{"q": "1", "a": "1"}\n\n{"q": \n')
    with pytest.raises(InputError, match="line 3"):
        read_items(task(tmp_path))
    (tmp_path / "task.jsonl").write_text("\n")
    with pytest.raises(InputError, match="no item"):
        read_items(task(tmp_path))


def test_few_shot_prefix_is_decided_by_its_seed():
    examples = [Item(f"Q: {i} A:", f"{i}", str(i)) for i in range(50)]
    prefix = few_shot_prefix(examples, 8, seed=3)
    assert prefix == few_shot_prefix(list(examples), 8, seed=3)
    assert prefix != few_shot_prefix(examples, 8, seed=4)
    shown = prefix.removesuffix("\n\n").split("\n\n")
    assert len(set(shown)) == 8
    assert set(shown) <= {f"{e.prompt} {e.answer}" for e in examples}
    assert prefix.startswith(few_shot_prefix(examples, 3, seed=3))
    assert few_shot_prefix(examples, 0, seed=3) == ""
    with pytest.raises(ConfigError, match="51"):
        few_shot_prefix(examples, 51, seed=3)


def test_an_output_ends_where_the_next_example_would_begin():
    assert cut("4 + 5 = 9\n\nQ: 10") == "4 + 5 = 9"
    assert cut("9\nstill mine") == "9\nstill mine"


# --- generation ---


def greedy(model, tokenizer, prompt, max_new_tokens, room=10**9):
    """One prompt alone, without cache or padding: the argmax of whole logits, a token at a time."""
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"][-room:]
    made = []
    while len(made) < max_new_tokens and "\n\n" not in tokenizer.decode(made):
        with torch.no_grad():
            token = int(model(torch.tensor([ids + made])).logits[0, -1].argmax())
        made.append(token)
        if token == tokenizer.eos_token_id:
            break
    return tokenizer.decode(made, skip_special_tokens=True).split("\n\n")[0]


PROMPTS = ["the sum of 1", "12", "and so it goes on and on and on and on", "the sum of 12 and 30 is", "0 0 0 0 0 0"]


def run_task(model, tokenizer, config, items, prefix, device):
    """A task of one's own on items made here."""
    path = Path(config.path)
    if not path.exists():
        path.write_text('{"q": "1", "a": "1"}\n', encoding="utf-8")
    return run_generation_task(model, Tokenizer(tokenizer, "test"), replace(own_task(config, prefix), items=items), device)


def items_for(prompts):
    return [Item(p, "", "0") for p in prompts]


@pytest.mark.parametrize("seed", range(4))
def test_greedy_generation_equals_an_argmax_loop_and_padding_changes_nothing(seed, make_llama, tokenizer, tmp_path):
    model = make_llama(seed=seed).model
    wanted = [greedy(model, tokenizer, "so " + p, 12) for p in PROMPTS]
    assert len(set(wanted)) > 1, "every prompt gives the same output: the test shows little"
    for batch_size in (1, 2, 5):
        found = run_task(model, tokenizer, task(tmp_path, batch_size=batch_size), items_for(PROMPTS), "so ", "cpu")
        assert [o["output"] for o in found["outputs"]] == wanted
        assert found["prompts_cut"] == 0


def test_generation_stops_at_eos_and_at_the_next_example(make_llama, tokenizer, tmp_path):
    split = make_llama()
    newline = tokenizer("\n", add_special_tokens=False)["input_ids"][0]
    for stopper, times in ((tokenizer.eos_token_id, 1), (newline, 2)):
        original, calls = split.model.forward, []

        def forward(*args, original=original, calls=calls, stopper=stopper, times=times, **kwargs):
            out = original(*args, **kwargs)
            calls.append(1)
            if 3 <= len(calls) < 3 + times:
                out.logits[:, -1, stopper] = 1e4
            return out

        split.model.forward = forward
        run_task(split.model, tokenizer, task(tmp_path, max_new_tokens=40), items_for(["12"]), "", "cpu")
        split.model.forward = original
        assert len(calls) == 2 + times


def test_accuracy_counts_the_items_whose_final_number_is_right(make_llama, tokenizer, tmp_path):
    model = make_llama().model
    digits = torch.tensor([tokenizer.convert_tokens_to_ids(d) for d in "0123456789"])
    with torch.no_grad():
        model.lm_head.weight[digits] *= 8
    outputs = [greedy(model, tokenizer, p, 12) for p in PROMPTS]
    numbers = [final_number(o) for o in outputs]
    assert any(n is not None for n in numbers)
    right = [str(n) if n is not None and i != 1 else "-1" for i, n in enumerate(numbers)]
    items = [Item(p, "", target) for p, target in zip(PROMPTS, right, strict=True)]
    found = run_task(model, tokenizer, task(tmp_path, shots=0), items, "", "cpu")
    wanted = [n is not None and n == Decimal(t) for n, t in zip(numbers, right, strict=True)]
    assert 0 < sum(wanted) < 5
    assert [o["correct"] for o in found["outputs"]] == wanted
    p = sum(wanted) / 5
    assert found["accuracy"] == p
    assert found["standard_error"] == pytest.approx((p * (1 - p) / 5) ** 0.5)
    assert found["items"] == 5


def test_a_prompt_beyond_the_context_keeps_its_end_and_is_counted(make_llama, tokenizer, tmp_path):
    model = make_llama(positions=24).model
    prompts = ["12 30 12 " * 10 + "the sum", "the sum"]
    found = run_task(model, tokenizer, task(tmp_path, max_new_tokens=10), items_for(prompts), "", "cpu")
    assert found["prompts_cut"] == 1
    assert [o["output"] for o in found["outputs"]] == [greedy(model, tokenizer, p, 10, room=14) for p in prompts]
    with pytest.raises(ConfigError, match="max_new_tokens"):
        run_task(model, tokenizer, task(tmp_path, max_new_tokens=24), items_for(prompts), "", "cpu")


@pytest.mark.parametrize(
    "habits",
    [
        {"repetition_penalty": 5.0},
        {"no_repeat_ngram_size": 1},
        {"do_sample": True, "temperature": 5.0, "top_k": 3},
        {"num_beams": 3},
        {"max_length": 5},
        {"min_new_tokens": 12},
        {"bad_words_ids": [[t] for t in range(32, 200)]},
    ],
    ids=lambda h: next(iter(h)),
)
def test_generation_is_greedy_whatever_the_models_own_generation_config_says(habits, make_llama, tokenizer, tmp_path):
    model = make_llama().model
    wanted = [greedy(model, tokenizer, p, 12) for p in PROMPTS]
    for key, value in habits.items():
        setattr(model.generation_config, key, value)
    found = run_task(model, tokenizer, task(tmp_path), items_for(PROMPTS), "", "cpu")
    assert [o["output"] for o in found["outputs"]] == wanted


def test_a_task_draws_no_random_number(make_llama, tokenizer, tmp_path):
    model = make_llama().model
    states = torch.get_rng_state(), np.random.get_state()[1].tobytes(), random.getstate()
    run_task(model, tokenizer, task(tmp_path), items_for(PROMPTS), "", "cpu")
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1].tobytes(), random.getstate()) == states[1:]


def test_a_special_tokens_name_in_a_prompt_is_text(make_llama, tokenizer, tmp_path, monkeypatch):
    prompt = "the sum <|endoftext|> of 12"
    assert tokenizer.eos_token_id in tokenizer(prompt)["input_ids"]
    model, seen = make_llama().model, []
    original = model.generate
    monkeypatch.setattr(model, "generate", lambda **kw: seen.append(kw["input_ids"]) or original(**kw))
    run_task(model, tokenizer, task(tmp_path), items_for([prompt]), "", "cpu")
    [ids] = seen[0].tolist()
    assert tokenizer.eos_token_id not in ids
    assert tokenizer.decode(ids) == prompt


def test_a_record_without_a_number_is_no_worked_example(tmp_path):
    assert make_item(task(tmp_path), {"q": "1", "a": "none"}) is None
    assert make_item(task(tmp_path), {"q": "1", "a": "#### 3"}).target == "3"


def any_task(items, **over):
    judging = {"read": lambda text, choices: choices[0] if choices else text[:2], "same": lambda found, target: found == target}
    sizes = {"prefix": "", "shots": 0, "max_new_tokens": 8, "batch_size": 2, "stop": ("\n\n",)}
    return GenerationTask(name="t", items=items, **{**sizes, **judging, **over})


def test_results_keep_the_order_of_the_items_and_say_how_they_were_judged(make_llama, tokenizer):
    model = make_llama().model
    items = [Item(p, "", "x", ("x",) if i % 2 else (), f"id-{i}") for i, p in enumerate(PROMPTS)]
    found = run_generation_task(model, Tokenizer(tokenizer, "test"), any_task(items, version="7"), "cpu")
    assert [o["output"] for o in found["outputs"]] == [greedy(model, tokenizer, p, 8) for p in PROMPTS]
    assert [(o["index"], o["id"], o["prompt"]) for o in found["outputs"]] == [(i, f"id-{i}", p) for i, p in enumerate(PROMPTS)]
    assert [o["found"] for o in found["outputs"]][1::2] == ["x", "x"]
    assert [o["correct"] for o in found["outputs"]] == [i % 2 == 1 for i in range(5)]
    assert (found["version"], found["metric"], found["accuracy"]) == ("7", "accuracy", 2 / 5)


def test_an_answer_that_is_not_found_is_wrong_and_never_judged(make_llama, tokenizer):
    def never(found, target):
        raise AssertionError((found, target))

    task = any_task(items_for(PROMPTS), read=lambda *_: None, same=never)
    found = run_generation_task(make_llama().model, Tokenizer(tokenizer, "test"), task, "cpu")
    assert [(o["found"], o["correct"]) for o in found["outputs"]] == [(None, False)] * 5
    with pytest.raises(InputError, match="no item"):
        run_generation_task(make_llama().model, Tokenizer(tokenizer, "test"), any_task([]), "cpu")


def test_a_generation_ends_before_the_first_of_several_strings():
    assert cut("7\nQuestion: 8\n\nProblem: 9", ("\n\nProblem:", "\nQuestion:")) == "7"
    assert cut("7\n\n8", ("\nQuestion:",)) == "7\n\n8"

"""Tasks of lm-evaluation-harness on local files and a tiny model: as plain transformers has it, and nothing left behind."""

from __future__ import annotations

import ast
import builtins
import inspect
import json
import logging
import random
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from slmctl.config.evaluation import HarnessConfig, SuiteConfig, TaskConfig
from slmctl.evaluation import harness_tasks
from slmctl.evaluation.general_suite import general_suite, result_names
from slmctl.evaluation.harness import run_harness
from slmctl.evaluation.harness_scores import pooled
from slmctl.system.errors import ConfigError, InputError

pytest.importorskip("lm_eval")
WORDS = "a man puts water in the cup and drinks it then leaves home with his dog to find some more food".split()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """A token a byte, and one that ends a text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE({"<|end|>": 0} | {c: i + 1 for i, c in enumerate(alphabet)}, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    return tf.PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|end|>", bos_token="<|end|>")


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    config = tf.LlamaConfig(
        vocab_size=257,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        bos_token_id=0,
        eos_token_id=0,
        initializer_range=0.4,
    )
    return tf.LlamaForCausalLM(config).eval()


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """No connection is made: whoever tries is refused and noted."""
    tried: list[Any] = []

    def refuse(*args: Any, **_: Any) -> Any:
        tried.append(args)
        raise OSError("no network in this test")

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return tried


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def text(rng: random.Random, words: int) -> str:
    return " ".join(rng.choices(WORDS, k=words))


def piqa(n: int, seed: int = 0) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    return [{"goal": f"{text(rng, 4)} {i}", "sol1": text(rng, 2 + i % 5), "sol2": text(rng, 6), "label": i % 2} for i in range(n)]


def arc(n: int) -> list[dict[str, Any]]:
    rng = random.Random(1)
    return [
        {
            "id": f"q{i}",
            "question": text(rng, 5),
            "choices": {"text": [text(rng, k + 1) for k in range(4)], "label": list("ABCD")},
            "answerKey": "ABCD"[i % 4],
        }
        for i in range(n)
    ]


def gsm8k(n: int, start: int = 0) -> list[dict[str, Any]]:
    return [{"question": f"What is {i} and {i}?", "answer": f"It is {2 * i}.\n#### {2 * i}"} for i in range(start, start + n)]


def logprob(model: Any, tokenizer: Any, context: str, answer: str) -> float:
    """log P(answer | context) by one plain forward pass."""
    whole = tokenizer(context + answer, return_tensors="pt", add_special_tokens=False)["input_ids"]
    n = len(tokenizer(context, add_special_tokens=False)["input_ids"])
    with torch.no_grad():
        logprobs = model(whole).logits[0].double().log_softmax(-1)
    return float(sum(logprobs[t - 1, whole[0, t]] for t in range(n, whole.shape[1])))


def run(model: Any, tokenizer: Any, *tasks: dict[str, Any], **options: Any) -> dict[str, dict[str, Any]]:
    return run_harness([HarnessConfig(**t) for t in tasks], model, tokenizer, "cpu", seed=7, **options)


@pytest.mark.parametrize("task", ["piqa", "arc_easy"])
def test_multiple_choice_agrees_with_plain_transformers(model: Any, tokenizer: Any, tmp_path: Path, task: str) -> None:
    rows = piqa(9) if task == "piqa" else arc(9)
    found = run(model, tokenizer, {"harness": task, "data": write(tmp_path / "x.jsonl", rows), "batch_size": 4})[task]
    assert (found["metric"], found["items"], found["shots"], found["prompts_cut"]) == ("acc_norm", 9, 0, 0)
    assert [o["id"] for o in found["outputs"]] == list(range(9))
    assert found["version"].startswith(f"{task} v1.0, lm_eval 0.")
    hits = []
    for row, output in zip(rows, found["outputs"], strict=True):
        options = [row["sol1"], row["sol2"]] if task == "piqa" else row["choices"]["text"]
        gold = row["label"] if task == "piqa" else "ABCD".index(row["answerKey"])
        context = f"Question: {row['goal' if task == 'piqa' else 'question']}\nAnswer:"
        expected = [logprob(model, tokenizer, context, f" {o}") for o in options]
        assert output["logprobs"] == pytest.approx(expected, abs=1e-3)
        by_length = int(np.argmax([e / len(o) for e, o in zip(expected, options, strict=True)]))
        assert (output["found"], output["target"]) == (options[by_length], options[gold])
        assert output["correct"] == int(by_length == gold) == output["metrics"]["acc_norm"]
        assert output["metrics"]["acc"] == int(np.argmax(expected) == gold)
        hits.append(output["correct"])
    assert 0 < sum(hits) < 9
    assert found["accuracy"] == pytest.approx(sum(hits) / 9)
    assert found["standard_error"] == pytest.approx(np.std(hits, ddof=1) / 3)


def test_generation_is_greedy_and_stops(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    data = write(tmp_path / "gsm8k.jsonl", gsm8k(5))
    [task], _ = general_suite(SuiteConfig(suite="rho-general", data=str(tmp_path), only=["gsm8k"], shots=2, max_new_tokens=12))
    model.generation_config.repetition_penalty = 5.0
    model.generation_config.max_new_tokens = 3
    found = run_harness([task.model_copy(update={"harness": "gsm8k", "data": data})], model, tokenizer, "cpu", 7)["gsm8k"]
    assert model.generation_config.repetition_penalty == 5.0
    model.generation_config = tf.GenerationConfig()
    assert (found["metric"], found["items"], found["shots"]) == ("exact_match,strict-match", 5, 2)
    assert set(found["outputs"][0]["metrics"]) == {"exact_match", "exact_match,flexible-extract"}
    assert found["outputs"][0]["target"] == gsm8k(1)[0]["answer"]
    longest = max(len(tokenizer(o["output"])["input_ids"]) for o in found["outputs"])
    assert 3 < longest <= 3 * 12  # a lone byte is shown as U+FFFD, which takes three


class Recorder:
    """Keeps the prompts that are given to the harness' model."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from slmctl.evaluation.harness_model import model_class

        self.prompts: list[str] = []
        original = model_class().generate_until

        def recorded(lm: Any, requests: Any, **options: Any) -> Any:
            self.prompts += [r.args[0] for r in requests]
            return original(lm, requests, **options)

        monkeypatch.setattr(model_class(), "generate_until", recorded)


def solve(prompt: str) -> str:
    """What a model that knows the answer would write."""
    number = int(prompt.rpartition("What is ")[2].split()[0])
    return f" It is {2 * number}.\n#### {2 * number if number % 3 else -1}"


@pytest.mark.parametrize("with_train", [True, False])
def test_examples_come_from_train_or_from_other_items(
    model: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_train: bool
) -> None:
    data = write(tmp_path / "gsm8k.jsonl", gsm8k(6))
    if with_train:
        write(tmp_path / "gsm8k.train.jsonl", gsm8k(5, start=100))
    from lm_eval.models.huggingface import HFLM

    monkeypatch.setattr(HFLM, "generate_until", lambda _, requests, **__: [solve(r.args[0]) for r in requests])
    recorder = Recorder(monkeypatch)
    task = {"harness": "gsm8k", "data": data, "shots": 5, "limit": 4}
    found = run(model, tokenizer, task)["gsm8k"]
    assert [o["correct"] for o in found["outputs"]] == [0, 1, 1, 0]
    assert [o["found"] for o in found["outputs"]] == ["-1", "2", "4", "-1"]
    assert found["accuracy"] == 0.5
    assert (found["items"], found["shots"]) == (4, 5)
    for i, prompt in enumerate(recorder.prompts):
        asked = [int(part.split()[0]) for part in prompt.split("What is ")[1:]]
        assert asked[-1] == i
        assert sorted(asked[:-1]) == ([100, 101, 102, 103, 104] if with_train else sorted({0, 1, 2, 3, 4, 5} - {i}))
    first = list(recorder.prompts)
    run(model, tokenizer, task)
    assert recorder.prompts[4:] == first  # drawn by seed


def test_examples_are_drawn_by_the_harness_own_seed_unless_told(
    model: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    monkeypatch.setattr(HFLM, "generate_until", lambda _, requests, **__: [solve(r.args[0]) for r in requests])
    task = {"harness": "gsm8k", "data": write(tmp_path / "gsm8k.jsonl", gsm8k(20)), "shots": 3, "limit": 4}

    recorder = Recorder(monkeypatch)

    def prompts(of_all: int | None, /, **settings: Any) -> tuple[int, list[str]]:
        recorder.prompts.clear()
        found = run_harness([HarnessConfig(**task, **settings)], model, tokenizer, "cpu", of_all)["gsm8k"]
        return found["seed"], list(recorder.prompts)

    own = inspect.signature(simple_evaluate).parameters["fewshot_random_seed"].default
    default = prompts(None)
    assert default == prompts(own)
    assert default[0] == own == 1234
    assert default == prompts(3, seed=own)
    assert prompts(None, seed=3) == prompts(3)
    assert prompts(3)[1] != default[1]


def test_group_pools_its_tasks(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    folder = tmp_path / "agieval"
    folder.mkdir()
    rows = [{"query": f"Q: {r['goal']}\nA:", "choices": [r["sol1"], r["sol2"]], "gold": [r["label"]]} for r in piqa(11)]
    write(folder / "agieval_lsat_ar.jsonl", rows[:7])
    write(folder / "sat_en.jsonl", rows[7:])  # without the group's name
    found = run(model, tokenizer, {"harness": "agieval", "data": str(folder)})
    group, ar, en = found["agieval"], found["agieval_lsat_ar"], found["agieval_sat_en"]
    assert set(found) == {"agieval", "agieval_lsat_ar", "agieval_sat_en"}
    assert (group["items"], group["tasks"], len(group["left_out"])) == (11, ["agieval_lsat_ar", "agieval_sat_en"], 19)
    correct = [o["correct"] for o in ar["outputs"] + en["outputs"]]
    assert group["accuracy"] == pytest.approx(np.mean(correct))
    assert [o["correct"] for o in group["outputs"]] == correct
    assert group["outputs"][7]["id"] == "agieval_sat_en/0"
    errors = [np.std(c, ddof=1) / len(c) ** 0.5 for c in (correct[:7], correct[7:])]
    assert group["standard_error"] == pytest.approx(np.hypot(7 * errors[0], 4 * errors[1]) / 11)
    assert ar["group"] == "agieval"


def test_one_file_for_a_group_names_the_task_of_each_row(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    rows = [{"query": r["goal"], "choices": [r["sol1"], r["sol2"]], "gold": [r["label"]]} for r in piqa(6)]
    names = ["agieval_sat_en", "agieval_lsat_ar"]
    data = write(tmp_path / "agieval.jsonl", [r | {"task": names[i % 2]} for i, r in enumerate(rows)])
    found = run(model, tokenizer, {"harness": "agieval", "data": data, "limit": 2})
    assert [found[n]["items"] for n in names] == [2, 2]
    plain = write(tmp_path / "plain.jsonl", rows)
    with pytest.raises(InputError, match=r"group of 21: .*plain.jsonl must say in each row"):
        run(model, tokenizer, {"harness": "agieval", "data": plain})


def test_pooled_standard_error_is_unknown_where_a_task_has_one_item() -> None:
    part = {"accuracy": 1.0, "metric": "acc", "shots": 0, "version": "x v1, lm_eval 0", "prompts_cut": 0, "outputs": []}
    parts = {"a": {**part, "items": 1, "standard_error": None}, "b": {**part, "items": 3, "standard_error": 0.1}}
    assert pooled(parts)["standard_error"] is None


def test_nothing_is_disturbed_fetched_or_left(
    model: Any,
    tokenizer: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    offline: list[Any],
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    data = write(tmp_path / "piqa.jsonl", piqa(8))
    here, cache = tmp_path / "here", tmp_path / "cache"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", cache)
    model.train()
    config, weights = model.generation_config, {n: p.clone() for n, p in model.named_parameters()}
    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    expected = random.random(), np.random.rand(), torch.rand(1)
    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    calls: list[tuple[str, int, int]] = []
    with caplog.at_level(logging.INFO):
        run(model, tokenizer, {"harness": "piqa", "data": data, "shots": 2}, progress=lambda *c: calls.append(c))
    assert (random.random(), np.random.rand(), torch.rand(1)) == expected
    assert model.training
    model.eval()
    assert model.generation_config is config
    assert all(torch.equal(weights[n], p) for n, p in model.named_parameters())
    assert tokenizer.pad_token_id is None
    assert calls[-1][0] == "piqa"
    assert 0 < calls[0][1] <= calls[-1][1] <= calls[-1][2] == 16
    assert not list(here.iterdir())
    assert not cache.exists()
    assert offline == []
    assert capfd.readouterr().err == ""
    assert not [r for r in caplog.records if r.name.startswith("lm_eval")]


def test_prompts_that_do_not_fit_are_counted(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    rows = piqa(3)
    rows[1]["goal"] = "long " * 300
    found = run(model, tokenizer, {"harness": "piqa", "data": write(tmp_path / "piqa.jsonl", rows)})["piqa"]
    assert found["prompts_cut"] == 1


def test_the_same_task_asked_for_twice(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    data = write(tmp_path / "piqa.jsonl", piqa(2))
    task = {"harness": "piqa", "data": data}
    assert set(run(model, tokenizer, task, task)) == {"piqa"}
    with pytest.raises(ConfigError, match="piqa is asked for twice"):
        run(model, tokenizer, task, {**task, "limit": 1})


@pytest.mark.parametrize(
    ("task", "kind", "message"),
    [
        ({"harness": "arc_eazy"}, ConfigError, r"no task or group named 'arc_eazy'\. Near: .*arc_easy"),
        ({"harness": "piqa"}, InputError, r"piqa: its dataset baber/piqa cannot be loaded.*data: FILE\.jsonl"),
        ({"harness": "piqa", "data": "absent.jsonl"}, InputError, "absent.jsonl does not exist"),
        ({"harness": "piqa", "data": "BAD"}, InputError, r"piqa: .*bad.jsonl does not have the form .*'goal' is undefined"),
        ({"harness": "piqa", "data": "BROKEN"}, InputError, "broken.jsonl, line 2: no JSON"),
        ({"harness": "piqa", "data": "GOOD", "shots": 9}, InputError, r"piqa cannot be run.*lower shots"),
        ({"harness": "gsm8k", "data": "SUMS"}, InputError, r"tokens, which fill the model's whole context of 200"),
        ({"harness": "humaneval"}, ConfigError, "executes programs.*HF_ALLOW_CODE_EVAL=1"),
        ({"harness": "wikitext", "data": "PAGES"}, ConfigError, r"wikitext measures .*held-out set"),
    ],
)
def test_errors_say_what_to_do(
    model: Any,
    tokenizer: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    task: dict[str, Any],
    kind: type[Exception],
    message: str,
) -> None:
    monkeypatch.delenv("HF_ALLOW_CODE_EVAL", raising=False)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    write(tmp_path / "bad.jsonl", [{"question": "x"}])
    write(tmp_path / "good.jsonl", piqa(4))
    write(tmp_path / "sums.jsonl", gsm8k(6))
    write(tmp_path / "pages.jsonl", [{"page": "some text of a page"}])
    (tmp_path / "broken.jsonl").write_text('{"goal": "x"}\n{"goal":\n')
    if task.get("data", "").isupper():
        task = {**task, "data": str(tmp_path / f"{task['data'].lower()}.jsonl")}
    monkeypatch.setattr(model.config, "max_position_embeddings", 200)
    with pytest.raises(kind, match=message):
        run(model, tokenizer, task)


def test_absent_harness_says_what_to_install(model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    original: Callable[..., Any] = builtins.__import__

    def refuse(name: str, *args: Any, **options: Any) -> Any:
        if name.partition(".")[0] == "lm_eval":
            raise ModuleNotFoundError(f"No module named {name!r}")
        return original(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ConfigError, match=r'pip install "slmctl\[harness\]"'):
        run(model, tokenizer, {"harness": "piqa"})


def test_importing_the_modules_does_not_import_the_harness() -> None:
    files = list(Path(harness_tasks.__file__).parent.glob("harness*.py"))
    assert len(files) > 3
    for file in files:
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            named = [a.name for a in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", None) or ""]
            assert not any(n.startswith(("lm_eval", "datasets")) for n in named), file


def test_general_suite_has_the_papers_tasks() -> None:
    from slmctl.evaluation.general_suite import GENERAL_TASKS

    assert len(GENERAL_TASKS) == 15
    tasks, notes = general_suite(SuiteConfig(suite="rho-general", limit=3))
    assert [t.harness for t in tasks if t.shots == 0] == [
        *("agieval", "arc_easy", "arc_challenge", "boolq", "piqa", "hellaswag", "winogrande", "openbookqa"),
    ]
    assert len(tasks) == 13
    assert all(t.limit == 3 for t in tasks)
    assert [n.split()[1] for n in notes] == ["humaneval", "mbpp"]
    known = harness_tasks._definitions()
    assert [t.harness for t in tasks if t.harness not in known] == ["tydiqa_goldp"]  # a tag
    assert harness_tasks._mentioned("tydiqa_goldp")


def test_general_suite_on_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "piqa.jsonl", piqa(1))
    write(tmp_path / "mbpp.jsonl", piqa(1))
    (tmp_path / "mmlu").mkdir()
    config = {"suite": "rho-general", "data": str(tmp_path)}
    tasks, notes = general_suite(SuiteConfig(**config, shots=2))
    assert [(t.harness, t.data, t.shots) for t in tasks] == [
        ("mmlu", str(tmp_path / "mmlu"), 2),
        ("piqa", str(tmp_path / "piqa.jsonl"), 2),
    ]
    assert len(notes) == 13
    monkeypatch.setenv("HF_ALLOW_CODE_EVAL", "1")
    assert [t.harness for t in general_suite(SuiteConfig(**config, only=["mbpp", "boolq"]))[0]] == ["mbpp"]
    with pytest.raises(ConfigError, match=r"no task 'pica'\. Near: piqa"):
        general_suite(SuiteConfig(**config, only=["pica"]))
    with pytest.raises(InputError, match="nothing of it can be run"):
        general_suite(SuiteConfig(**config, only=["boolq"]))
    with pytest.raises(ConfigError, match="is no folder"):
        general_suite(SuiteConfig(suite="rho-general", data=str(tmp_path / "absent")))


def test_results_of_the_suite_may_have_names_of_their_own(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    rows = [{"query": r["goal"], "choices": [r["sol1"], r["sol2"]], "gold": [r["label"]]} for r in piqa(3)]
    write(tmp_path / "agieval_sat_en.jsonl", rows)
    data = write(tmp_path / "piqa.jsonl", piqa(2))
    tasks, _ = general_suite(SuiteConfig(suite="rho-general", only=["math", "gsm8k"]))
    assert [(t.harness, t.result) for t in tasks] == [("minerva_math", "general-minerva_math"), ("gsm8k_cot", None)]
    named = {"data": str(tmp_path), "shots": 0}
    group = tasks[0].model_copy(update={"harness": "agieval", "result": "general-agieval", **named})
    single = tasks[0].model_copy(update={"harness": "piqa", "result": "general-piqa", "data": data, "shots": 0})
    found = run_harness([group, single, HarnessConfig(harness="agieval", **named)], model, tokenizer, "cpu", 7)
    assert list(found) == ["general-agieval", "agieval_sat_en", "general-piqa", "agieval"]
    assert found["agieval_sat_en"]["group"] == "general-agieval"
    assert found["general-agieval"]["tasks"] == ["agieval_sat_en"]
    assert found["general-agieval"] == found["agieval"]
    with pytest.raises(ConfigError, match="general-piqa is asked for twice"):
        run_harness([single, single.model_copy(update={"harness": "boolq"})], model, tokenizer, "cpu", 7)
    with pytest.raises(ConfigError, match="piqa is asked for twice"):
        run_harness([single, group.model_copy(update={"result": "general-piqa"})], model, tokenizer, "cpu", 7)


def test_result_names_meet_no_other() -> None:
    from slmctl.evaluation.tasks import NINE

    own = TaskConfig(name="sums", path="sums.jsonl")
    math, general = SuiteConfig(suite="rho-math"), SuiteConfig(suite="rho-general")
    piqa_task = HarnessConfig(harness="lambada_openai")
    names = result_names([own, math, general, piqa_task, piqa_task])
    assert names[:9] == ["sums", *(n for n in NINE if n != "tabmwp")]
    assert names[9:] == [t.result or t.harness for t in general_suite(general)[0]] + ["lambada_openai"]
    assert {"minerva_math", "general-minerva_math", "gsm8k", "gsm8k_cot"} <= set(names)
    for clash in (
        [own, own],
        [math, HarnessConfig(harness="gsm8k")],
        [general, HarnessConfig(harness="piqa")],
        [TaskConfig(name="svamp", path="x.jsonl"), math],
        [piqa_task, HarnessConfig(harness="lambada_openai", limit=3)],
    ):
        with pytest.raises(ConfigError, match="two entries give a result named"):
            result_names(list(clash))

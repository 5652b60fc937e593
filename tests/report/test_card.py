"""Model cards: valid for the Hub, true to their facts, whole whatever names are given, silent about this machine's folders."""

from __future__ import annotations

import copy
import importlib.util
import math
from typing import Any

import pytest
import torch
import transformers as tf
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results
from markdown_it import MarkdownIt

from slmctl.config.file import check
from slmctl.report.card import model_card, selection_words
from slmctl.report.card_facts import card_facts
from slmctl.report.markdown_text import argument, hub_id, markdown, one_line, place_name

SECRET = "/secret-home/me"
ENVIRONMENT = {
    "command": [f"{SECRET}/.venv/bin/slmctl", "run", f"{SECRET}/my docs/mine.yaml", "-o", f"data.root={SECRET}/texts"],
    "folder": f"{SECRET}/work",
    "host": "secret-host",
    "ranks": 8,
    "versions": {"slmctl": "0.4.0", "torch": "2.11.0", "datasets": None},
    "gpu": {"name": "NVIDIA H100"},
}
METRICS = [
    {"step": 1, "tokens_seen": 1000, "tokens_selected": 600, "seconds": 2.0},
    {"step": 2, "tokens_seen": 2000, "tokens_selected": 1200, "seconds": 3.0},
]
REFERENCE_METRICS = [{"seconds": 3.0}, {"seconds": None}, {"seconds": 4.0}]


def make_config(path: str = "HuggingFaceTB/SmolLM2-135M", **pretrain: Any) -> dict[str, Any]:
    arms = {"slm": {}, "clm": {"selection": {"criterion": "all"}}, "random": {"selection": {"criterion": "random"}}}
    data = {
        "seq_len": 512,
        "curated": {"path": f"{SECRET}/curated.jsonl"},
        "corpus": [{"path": f"{SECRET}/web/*.jsonl.gz"}, {"hub": "allenai/c4", "split": "train"}],
        "heldout": {"target": {"hub": "openai/gsm8k", "hub_config": "main", "split": "test"}, "general": {"path": "general.txt"}},
    }
    given = {"name": "mine", "output_dir": f"{SECRET}/runs/mine", "seed": 3, "model": {"path": path}, "data": data}
    common = {"steps": 2, "batch_tokens": 4096}
    config = check({**given, "reference": {"batch_tokens": 4096}, "pretrain": {**common, "arms": arms, **pretrain}}, "mine")
    return config.model_dump(mode="json")


def heldout(loss: float | None) -> dict[str, Any]:
    known = loss is not None
    return {
        "loss": loss,
        "perplexity": math.exp(loss) if known else None,
        "bits_per_byte": None,
        "predicted_tokens": 100,
        "documents": 10,
        "interval": [loss - 0.25, loss + 0.25] if known else None,
        "bits_per_byte_interval": None,
    }


def make_results() -> dict[str, Any]:
    losses = {"base": 4.0, "reference": 1.0, "slm": 2.0, "clm": 2.5, "random": 2.75}
    task = {"accuracy": 0.375, "standard_error": 0.0625, "items": 64, "shots": 8, "version": 1, "metric": "exact_match"}
    models = {
        name: {
            "kind": name if name in ("base", "reference") else "arm",
            "heldout": {"general": heldout(None), "target": heldout(loss)},
            "tasks": {"gsm8k": task},
        }
        for name, loss in losses.items()
    }
    selection = {"criterion": "excess_loss", "ratio": 0.6, "group_rows": 8, "scope": "group", "reference": None}
    criteria = {"slm": "excess_loss", "clm": "all", "random": "random"}
    arms = {
        name: {
            "selection": {**selection, "criterion": criterion},
            "seed": 3,
            "settings": {"lr": 3e-4},
            "steps": 500,
            "tokens_seen": 2_000_000,
            "tokens_selected": 1_200_000,
            "training_seconds": 360.0,
            "flops": 1.5e15,
            "control": {
                **{"arm": "clm", "target_loss": 2.5, "tokens_to_reach": 1_000_000, "times_fewer_tokens": 2.0},
                **{"times_fewer_flops_all": 0.8, "why": None, "points": [0, 500_000, 1_000_000, 2_000_000]},
                "interval": {"level": 0.95, "times_fewer_tokens": [1.7, 2.4], "times_fewer_flops_all": [0.7, None], "open": True},
            },
        }
        for name, criterion in criteria.items()
    }
    difference = {"set": "target", "a": "clm", "b": "slm", "difference": 0.5, "interval": [0.25, 0.75], "documents": 10}
    costs = {
        "reference_tokens": 300_000,
        "reference_flops": 2e14,
        "scored_tokens": {"curated": 9_000_000},
        "scoring_flops": {"curated": 3e15},
    }
    return {
        **{"pipeline": "mine", "seed": 3, "target": "target", "schema": 2, "level": 0.9, "models": models, "arms": arms},
        **{"differences": [difference], "costs": costs, "seeds": [], "versions": {}, "notes": []},
    }


def make_card(name: str = "slm", results: dict[str, Any] | None = None, config: dict[str, Any] | None = None) -> str:
    return model_card(card_facts(name, config or make_config(), METRICS, [ENVIRONMENT], results, REFERENCE_METRICS, 4.5e14))


def html(card: str) -> str:
    return str(MarkdownIt("commonmark").enable("table").render(ModelCard(card).text))


def texts_of(card: str) -> list[str]:
    """The text of each paragraph, item and cell as a reader sees it."""
    tokens = MarkdownIt("commonmark").enable("table").parse(ModelCard(card).text)
    return [
        "".join(c.content for c in t.children or [] if c.type in ("text", "code_inline")) for t in tokens if t.type == "inline"
    ]


def rows_of(card: str) -> list[list[str]]:
    cells = [x.split("<tr>")[1:] for x in html(card).split("</table>")]
    cut = [row.replace("<strong>", "").replace("</strong>", "") for table in cells for row in table]
    return [[c.split("</td>")[0] for c in row.split("<td>")[1:]] for row in cut if "<td>" in row]


# --- validity ---


def test_the_front_matter_is_what_the_hub_reads() -> None:
    card = ModelCard(make_card(results=make_results()))
    data = card.data.to_dict()
    assert data["library_name"] == "transformers"
    assert data["pipeline_tag"] == "text-generation"
    assert data["base_model"] == "HuggingFaceTB/SmolLM2-135M"
    assert {"selective-language-modeling", "slmctl", "excess-loss"} <= set(data["tags"])
    assert data["datasets"] == ["allenai/c4"]  # what is only on disk has no name there
    assert "language" not in data
    assert "license" not in data
    assert "No licence is given" in card.text


def test_results_are_in_the_hubs_schema() -> None:
    head = yaml.safe_load(make_card(results=make_results()).split("---")[1])
    name, found = model_index_to_eval_results(head["model-index"])
    assert name == "mine-slm"
    values = {(r.dataset_name, r.metric_type): r.metric_value for r in found}
    assert values == {
        ("target", "loss"): 2.0,
        ("target", "perplexity"): pytest.approx(math.exp(2)),
        ("gsm8k", "exact_match"): 0.375,
    }
    assert {(r.dataset_name, r.dataset_type, r.dataset_config, r.dataset_split) for r in found} == {
        ("target", "openai/gsm8k", "main", "test"),
        ("gsm8k", "gsm8k", None, None),
    }
    assert all(r.task_type == "text-generation" for r in found)
    assert "&id" not in make_card(results=make_results())  # no YAML aliases


@pytest.mark.parametrize("name", ["base", "reference", "slm", "clm", "random"])
@pytest.mark.parametrize("results", [None, make_results()])
def test_every_kind_of_model_has_a_card(name: str, results: Any) -> None:
    config = make_config()
    if name == "base":
        config["model"].update(path=None, scratch={"vocab_size": 300, "train": {**config["pretrain"]["arms"]["clm"]}})
    card = make_card(name, results, config)
    parsed = ModelCard(card)
    assert parsed.data.to_dict().get("base_model") == (None if name == "base" else "HuggingFaceTB/SmolLM2-135M")
    for heading in ("How it was trained", "Evaluation", "How to load it", "Limits", "How it was made"):
        assert f"\n## {heading}\n\n" in card
    assert "\n\n\n" not in card
    assert "None" not in card
    assert ("It has not been evaluated." in card) == (results is None)
    assert ("model-index" in card) == (results is not None)


def test_facts_alone_are_enough() -> None:
    card = model_card({"pipeline": "p", "name": "a", "kind": "arm"})
    assert ModelCard(card).data.to_dict()["tags"] == ["selective-language-modeling", "slmctl", "all"]
    assert "What it was trained with was not recorded." in card


# --- what it says ---


def test_the_tables_have_the_numbers_beside_the_controls() -> None:
    rows = rows_of(make_card(results=make_results()))
    assert ["target (target)", "slm", "2.0000", "1.7500 to 2.2500", "–", "7.389"] in rows
    assert ["target (target)", "clm (control)", "2.5000", "2.2500 to 2.7500", "–", "12.18"] in rows
    assert ["target (target)", "random (control)", "2.7500", "2.5000 to 3.0000", "–", "15.64"] in rows
    assert ["general", "slm", "–", "–", "–", "–"] in rows
    assert not any("reference" in r for r in rows if len(r) == 6)
    assert ["target", "clm", "−0.5000", "−0.7500 to −0.2500", "10"] in rows  # given as clm minus slm
    assert ["gsm8k", "slm", "0.375 ± 0.062", "64", "8"] in rows
    assert ["training this model", "2,000,000", "1.5e+15", "360"] in rows
    assert ["training the reference model", "300,000", "2e+14", "7"] in rows
    assert ["scoring the corpus", "9,000,000", "3e+15", "–"] in rows


@pytest.mark.parametrize("results", [None, make_results()])
def test_the_cost_of_the_reference_is_on_its_own_card(results: Any) -> None:
    assert ["training this model", "2,000", "4.5e+14", "5"] in rows_of(make_card("reference", results))


def test_a_cost_that_no_log_tells_is_a_dash_with_a_reason() -> None:
    card = model_card(card_facts("reference", make_config(), [{"step": 1, "tokens_seen": 9, "tokens_selected": 9}]))
    assert ["training this model", "9", "–", "–"] in rows_of(card)
    assert "A dash: not recorded, or not to be told from what is here." in card
    assert "A dash" not in make_card("reference")


def test_below_one_it_is_more_not_fewer() -> None:
    results = make_results()
    control = results["arms"]["slm"]["control"]
    control.update(times_fewer_tokens=0.46, times_fewer_flops_all=2.0)
    control["interval"].update(times_fewer_tokens=[0.4, 0.5], times_fewer_flops_all=[0.8, 2.5])
    text = make_card(results=results)
    assert "after 1,000,000 tokens, 2.17 times more (interval over documents: 2.00 to 2.50). With the reference's" in text
    assert "it took 2.00 times fewer FLOPs (interval over documents: 1.25 times more to 2.50 times fewer)." in text


def test_a_task_with_none_or_all_right_has_no_error() -> None:
    results = make_results()
    for name, accuracy, unread in (("slm", 0.0, 64), ("clm", 1.0, 0), ("random", 0.0, None)):
        task = {**results["models"][name]["tasks"]["gsm8k"], "accuracy": accuracy, "standard_error": 0.0, "unread": unread}
        results["models"][name]["tasks"] = {"gsm8k": task}
    rows = rows_of(make_card(results=results))
    assert ["gsm8k", "slm", "0.000 (none right: no answer could be read from any output)", "64", "8"] in rows
    assert ["gsm8k", "clm (control)", "1.000 (all right)", "64", "8"] in rows
    assert ["gsm8k", "random (control)", "0.000 (none right)", "64", "8"] in rows


def test_when_the_control_was_reached_and_why_that_is_not_judged() -> None:
    results = make_results()
    control = results["arms"]["slm"]["control"]
    control["control_tokens"] = 1_900_000
    text = make_card(results=results)
    assert "after 1,000,000 tokens (the control itself first after 1,900,000), 2.00 times fewer" in text
    assert "2.00 times fewer (interval over documents: 1.70 to 2.40)" in text
    assert "1.25 times more FLOPs (interval over documents: from 1.43 times more to any number of times fewer)." in text
    control.update(tokens_to_reach=None, why="fewer than 5 evaluations while training")
    assert "of the control clm is not judged: fewer than 5 evaluations while training." in make_card(results=results)
    control["why"] = None
    assert "It did not reach" in make_card(results=results)


def test_what_it_took_over_seeds() -> None:
    results = make_results()
    over = {**results["arms"]["slm"]["control"], "arms": [["slm", "clm"], ["slm-1", "clm-1"]], "seeds": [0, 1]}
    entry = {"arm": "slm", "arms": ["slm", "slm-1"], "target_loss": {"mean": 2.0, "sd": None, "n": 2}}
    results["seeds"] = [{**entry, "control": over}]
    text = make_card(results=results)
    assert "Over 2 seeds, too few for more than a rough interval, the mean loss reached the mean of the control's after " in text
    assert "1,000,000 tokens, 2.00 times fewer (interval over seeds and documents: 1.70 to 2.40)." in text
    over |= {"tokens_to_reach": None, "times_fewer_tokens": None}
    text = make_card(results=results)
    assert "the mean loss did not reach the mean of the control's." in text, "not silent where the one run got there"


def test_figures_of_curves_of_training_are_not_on_a_card() -> None:
    results = make_results()
    del results["arms"]["slm"]["control"]["points"]
    text = make_card(results=results)
    assert "is not judged: the results were made by an slmctl that read it from losses while training" in text
    assert "2.00 times" not in text


def test_a_control_needed_no_reference() -> None:
    rows = rows_of(make_card("clm", make_results()))
    assert [r[0] for r in rows if len(r) == 4] == ["training this model"]
    text = " ".join(make_card("clm", make_results()).split())
    assert "trained further on all tokens: plain language modelling" in text
    assert "to be compared with, not to be used" in text
    assert "It reached" not in text  # its own loss


def test_the_text_says_how_it_was_trained() -> None:
    found = texts_of(make_card(results=make_results()))
    for wanted in (
        "corpus: *.jsonl.gz, allenai/c4",
        "tokens: 2,000,000 seen, trained on 1,200,000 (60.0%)",
        "selection criterion: excess_loss",
        "peak learning rate: 0.0003",
        "seed: 3",
        "hardware: 8 x NVIDIA H100",
        "With slmctl 0.4.0, torch 2.11.0.",
    ):
        assert any(wanted in t for t in found), wanted
    assert any("with 90% intervals" in t for t in found)
    assert any("after 1,000,000 tokens, 2.00 times fewer" in t and "it took 1.25 times more FLOPs" in t for t in found)
    assert "tokens: 2,000 seen, trained on 1,200 (60.0%)" in texts_of(make_card())  # by the log, before it is evaluated


def test_a_pipeline_from_scratch_has_a_base_of_its_own() -> None:
    config = make_config()
    config["model"].update(path=None, scratch={"vocab_size": 300, "train": {**config["pretrain"]["arms"]["clm"]}})
    for name in ("slm", "reference"):
        assert "this pipeline's base model, which was made from random weights, trained further on" in make_card(
            name, None, config
        )
    base = make_card("base", None, config)
    assert "random weights, trained on all tokens" in base
    assert "of its base model" not in base


def test_one_seed_is_warned_of_and_several_are_summarised() -> None:
    results = make_results()
    assert "**One seed.**" in make_card(results=results)
    results["seeds"] = [{"arm": "slm", "arms": ["slm", "slm-1"], "target_loss": {"mean": 2.1, "sd": 0.05, "n": 2}}]
    card = make_card(results=results)
    assert "**One seed.**" not in card
    assert "2.1000 ± 0.0500 (standard deviation, 2 seeds)" in card
    assert "**One seed.**" in make_card("clm", results)


def test_selection_in_words() -> None:
    assert selection_words(None) == "all tokens: plain language modelling"
    assert selection_words({"criterion": "random", "ratio": 0.55}) == "a random 55% of the tokens"
    assert "the 60% of the tokens of each 8 rows whose excess loss" in selection_words(
        {"criterion": "excess_loss", "ratio": 0.6, "group_rows": 8, "scope": "group"}
    )
    assert "each micro-batch" in selection_words({"criterion": "excess_loss", "ratio": 0.6, "scope": "global"})
    assert "score by entropy" in selection_words({"criterion": "entropy", "ratio": 0.6})


# --- names of others ---

HOSTILE = [
    "a|b",
    "# heading",
    "1. item",
    "- item",
    "**bold** _it_ `code` ~~no~~ $x$",
    "<script>alert(1)</script> &amp;",
    "[link](http://x) ![image](http://y)",
    "---\nlicense: mit\n---",
    "{{ facts }} {% raw %}",
    "back\\slash `` ticks",
    "née 中文 😀",
    "\x00\x1b[31m\u202ered\u2028line",
    '\'"quotes": [yaml]',
    "\ud800surrogate",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_names_are_shown_as_they_are(name: str) -> None:
    config, results = make_config(), make_results()
    config["name"] = name
    config["pretrain"]["arms"][name] = config["pretrain"]["arms"]["slm"]
    config["data"]["heldout"] = {name: [{"path": [name], "hub": None}]}
    config["data"]["corpus"] = [{"path": ["folder/" + name.replace("/", "")], "hub": None}]
    results["target"] = name
    for models in (results["models"], results["arms"]):
        models[name] = copy.deepcopy(models["slm"])
    for model in results["models"].values():
        model["heldout"] = {name: heldout(2.0)}
        model["tasks"] = {name: model["tasks"]["gsm8k"]}
    card = make_card(name, results, config)
    card.encode("utf-8")
    parsed = ModelCard(card)
    assert "license" not in parsed.data.to_dict()
    shown = one_line(name)
    (result, *_) = parsed.data.eval_results
    assert result.dataset_name == shown
    found = texts_of(card)
    assert f"{shown}: {shown}" in found  # the title
    assert one_line("corpus: folder/" + name.replace("/", "")) in found
    assert found.count(f"{shown} (target)") == 4  # the model, two controls and the base
    tables = [r for r in rows_of(card) if len(r) == 6]
    assert len(tables) == 4
    page = html(card)
    assert "<script" not in page
    assert "<img" not in page
    assert "\x1b" not in card
    assert page.count("<a ") == 1  # the paper
    assert page.count("<h1>") == 1


@pytest.mark.parametrize("text", HOSTILE)
def test_escaped_text_reads_as_the_text(text: str) -> None:
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(markdown(text))
    assert [t.type for t in tokens] == ["paragraph_open", "inline", "paragraph_close"]
    assert all(c.type == "text" for c in tokens[1].children or [])
    assert "".join(c.content for c in tokens[1].children or []) == one_line(text)


# --- folders of this machine ---


def test_no_folder_of_this_machine_is_told() -> None:
    config = make_config(path=f"{SECRET}/models/base-1b")
    config["score"]["references"] = {"curated": {"path": f"{SECRET}/strong"}}
    for name in ("slm", "clm", "reference"):
        card = make_card(name, make_results(), config)
        assert "secret" not in card
        assert "base-1b" in card
        assert "base_model" not in card
    assert "The reference model was strong." in make_card("slm", None, config)
    assert "slmctl run mine.yaml -o data.root=texts" in make_card("slm")


@pytest.mark.parametrize(
    ("place", "shown"),
    [
        ("/a/b/c.jsonl", "c.jsonl"),
        ("/a/b/", "b"),
        ("~/x/y.txt", "y.txt"),
        ("~me/x/y.txt", "y.txt"),
        ("../../x/y", "y"),
        ("data/../../x/y", "y"),
        ("C:\\Users\\me\\t.txt", "t.txt"),
        ("\\\\server\\share\\t.txt", "t.txt"),
        ("data/web/*.jsonl", "data/web/*.jsonl"),
        ("s3://bucket/a/b", "s3://bucket/a/b"),
        ("https://me:password@host/a.txt?signature=abc#part", "https://host/a.txt"),
        ("file:///a/b/c.txt", "c.txt"),
        ("openai/gsm8k", "openai/gsm8k"),
    ],
)
def test_of_a_place_only_what_others_can_use_is_told(place: str, shown: str) -> None:
    assert place_name(place) == shown
    assert argument(f"key={place}") == f"key={shown if '..' not in place or place.startswith('..') else 'data/../../x/y'}"


def test_arguments_keep_what_is_no_path() -> None:
    for text in ("-o", "pretrain.lr=1e-4", "a/b", "text={question}\n{answer}".replace("\n", " "), "8/9"):
        assert argument(text) == text
    assert argument("data.corpus={path: ['/a/b c/d.txt', \"/e/f\"], x: 1}") == "data.corpus={path: ['d.txt', \"f\"], x: 1}"
    assert argument("-o=data.root=/a/b") == "-o=data.root=b"


def test_what_can_be_on_the_hub(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert hub_id("gpt2") == "gpt2"
    assert hub_id("HuggingFaceTB/SmolLM2-135M") == "HuggingFaceTB/SmolLM2-135M"
    for place in (None, "", "/a/b", "./a", "../a", "a/b/c", "s3://a/b", "a b", "a\\b", "~/a", "a--b/c", "a..b"):
        assert hub_id(place) is None, place
    (tmp_path / "gpt2").mkdir()
    assert hub_id("gpt2") is None


# --- a model directory with it ---


@pytest.fixture
def directory(tmp_path: Any) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers

    torch.manual_seed(0)
    sizes = {"vocab_size": 61, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    tf.LlamaForCausalLM(tf.LlamaConfig(**sizes, bos_token_id=1, eos_token_id=1)).save_pretrained(tmp_path)
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "<eos>": 1, "a": 2, "b": 3}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", unk_token="<unk>").save_pretrained(tmp_path)
    (tmp_path / "README.md").write_text(make_card(results=make_results()), encoding="utf-8")
    return tmp_path


def test_a_directory_with_a_card_loads_as_the_card_says(directory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(directory)
    code = ModelCard.load("README.md").text.split("```python\n")[1].split("```")[0]
    names: dict[str, Any] = {}
    exec(code, names)
    ids = names["tokenizer"]("a b", return_tensors="pt").input_ids
    with torch.no_grad():
        assert names["model"](ids).logits.shape == (1, 2, 61)


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm_eval is not installed")
def test_lm_eval_loads_a_directory_with_a_card(directory: Any) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    model = HFLM(pretrained=str(directory), device="cpu", batch_size=1)
    request = Instance("loglikelihood", {}, ("a", " b"), 0)
    ((loglikelihood, _),) = model.loglikelihood([request], disable_tqdm=True)
    assert loglikelihood < 0


def test_size_epochs_clipped_steps_and_what_is_known_of_training_text_are_told() -> None:
    results = make_results()
    results["models"]["slm"]["parameters"] = 134_515_008
    results["arms"]["slm"] |= {"epochs": 1.25, "gradient": {"clip": 1.0, "clipped_share": 0.423}}
    nothing = {"exact": 0, "overlap": 0}
    results["contamination"] = {"heldout": {"target": {"documents": 9, "curated": nothing, "corpus": nothing}}, "not_checked": {}}
    card = make_card(results=results)
    for said in ("parameters: 134,515,008", "epochs of the corpus: 1.25", "steps whose gradient was clipped: 42.3%"):
        assert f"- {said}" in card
    assert "- target: none found in curated or corpus text." in card
    assert "target: whether" not in card
    del results["contamination"]
    assert "- target: whether they stand in training text was not checked." in make_card(results=results)

"""No sentence of the page goes further than what was checked, and one pair is called one thing everywhere."""

from __future__ import annotations

import re

import pytest
from made_results import MADE_ON, made_results
from test_what_is_said import text_of, words

from slmctl.comparison.alarms.alarms import alarms
from slmctl.comparison.results import judged_anew
from slmctl.report.page import make_page

pytestmark = pytest.mark.usefixtures("undrawn")


def test_the_arms_columns_come_first_and_base_and_reference_last():
    html = make_page(made_results()).html
    for title in ("comparison-1", "tasks-1"):
        table = html[html.index(f'<table aria-labelledby="{title}-title">') :].partition("</table>")[0]
        assert words(table.partition("</thead>")[0]).removeprefix("task ").split() == [
            "slm",
            "clm",
            "random",
            "base",
            "reference",
        ]
    row = re.search(r"Loss, nats a token</bdi></th>(.*?)</tr>", html, re.DOTALL)[1]
    losses = re.findall(r"\d\.\d{4}", re.sub("<small>.*?</small>", "", row))
    results = made_results()["models"]
    for i, found in enumerate(results.values()):
        found["rolling"] = {"target": {"bits_per_byte": 0.1 * (i + 1)}}
    assert "Bits per byte, rolling 0.3000 0.4000 0.5000 0.1000 0.2000" in text_of(made_results() | {"models": results})
    wanted = [results[m]["heldout"]["target"]["loss"] for m in ("slm", "clm", "random", "base", "reference")]
    assert losses == [f"{x:.4f}" for x in wanted]


def test_a_curve_is_of_a_part_of_the_set_only_where_it_was():
    results = made_results()
    assert "as measured on 8,128 of the set's 25,344 tokens in float32" in text_of(results)
    for arm in results["arms"].values():
        for record in arm["evals"]:
            record["measured"]["target"]["tokens"] = 25_344
            del record["measured"]["general"]
    text = text_of(results)
    assert "as measured on all 25,344 tokens of the set in float32, without an interval." in text
    assert "On how many tokens, and in what precision, is not known" in text
    assert "part of the set" not in text
    assert "8,128" not in text


def test_of_losses_on_unlike_tokens_each_figure_says_on_what_its_own_were_measured():
    results = made_results()
    unlike = results["arms"]["clm"]["evals"]
    for record in unlike:
        record["measured"]["target"] |= {"tokens": 62, "rows": "others"}
    text = text_of(results)
    first, _, second = text.partition("Held-out loss on target while training, 2 of 2")
    assert "as measured on 8,128 of the set's 25,344 tokens in float32" in first
    assert "as measured on 62 of the set's 25,344 tokens in float32" in second
    assert "62 to 8,128" not in text
    assert "learnt more" not in text, "on few tokens, without an interval, nothing is learnt more"


def test_what_stands_in_training_text_is_said_only_where_it_was_looked_for():
    results = made_results()
    text = text_of(results)
    assert "worth 143 equal ones); none found in curated or corpus text" in text
    assert "equal ones); 3 found in corpus text, none found in curated text" in text
    del results["contamination"]["heldout"]["target"]["corpus"]
    del results["contamination"]["heldout"]["general"]
    text = text_of(results)
    assert "none found in curated text, nothing else checked" in text
    assert "whether they stand in training text was not checked" in text
    assert "none found in curated or corpus" not in text
    del results["contamination"]
    assert text_of(results).count("whether they stand in training text was not checked") == 2


def test_nothing_that_was_left_out_is_called_noise(monkeypatch):
    monkeypatch.undo()  # so that figures are drawn: they hold words, too
    results = made_results()
    results["diagnostics"]["dynamics"] = {}  # whose made-up text has the word
    logs = {
        "slm": [{"step": 1, "tokens_seen": 1, "loss_selected": 1.0, "loss_unselected": 1.0, "correlation": 0.1, "grad_norm": 1.0}]
    }
    text = text_of(results, logs=logs)
    assert "Loss of the tokens left out" in text
    assert "noise" not in text


@pytest.mark.parametrize(("difference", "same"), [(0.0004, True), (-0.0004, True), (0.0006, False)])
def test_a_pair_is_the_same_to_three_digits_or_a_problem_never_both(difference, same):
    results = made_results(everything=False)
    for d in results["differences"]:
        if (d["set"], d["a"], d["b"]) == ("target", "slm", "clm"):
            d.update(difference=difference, interval=sorted([0.5 * difference, 1.5 * difference]))
    results["alarms"] = alarms(results)
    text = text_of(results)
    assert ("the same as clm to three digits" in text) == same
    said = [a for a in results["alarms"] if a["name"] == "target" and " clm" in a["text"]]
    assert [a["level"] for a in said] == ["warning" if same else "bad"]
    assert ("are the same on target to three digits" in said[0]["text"]) == same
    assert ("0.0006 higher than clm (beyond chance)" in text) != same
    table = text[text.index("leaves out zero?") :]
    row = table[table.index("slm − clm") :][:90]
    assert ("the same to three digits" in row, "beyond chance" in row) == (same, not same), "the table of differences agrees"


def test_host_device_commit_command_parameters_and_epochs_are_told():
    results = made_results()
    results["arms"]["random"]["made_on"] = MADE_ON | {
        "device": "CPU, 1 thread of 2 cores",
        "ranks": 1,
        "commit": None,
        "starts": 3,
    }
    text = text_of(results)
    assert "slm 134,515,008 120 491,520 1.25" in text
    run = "slmctl run math.yaml -o pretrain.tokens=500000"
    assert f"training of slm, clm worker17.cluster.example 8 × NVIDIA H100 80GB HBM3 0.4.0 9f1c2ab47d5e {run}" in text
    assert f"training of random started 3 times worker17.cluster.example CPU, 1 thread of 2 cores 0.4.0 – {run}" in text
    assert "this evaluation worker17" in text
    assert "/home/ada" not in text


def test_clipped_steps_are_told_of_each_arm():
    results = made_results()
    results["arms"]["clm"]["gradient"] = {"clip": None, "clipped_share": None, "mean_factor": None, "median_norm": 0.9}
    text = text_of(results)
    assert "slm 120 0 42.0% 0.93 1 clm 120 0 no clip 0.9 – random 120 0 21.0% 0.93 1 Clipped are steps" in text


def test_a_saving_that_an_earlier_slmctl_read_from_curves_of_training_is_not_repeated():
    results = made_results()
    results["arms"]["slm"]["control"] = {"arm": "clm", "target_loss": 3.8, "tokens_to_reach": 100, "times_fewer_tokens": 3.63}
    results["alarms"] = [{"name": "cost", "level": "good", "text": "slm reached that after 100 tokens, 3.63 times fewer"}]
    text = text_of(judged_anew(results))
    assert "3.63" not in text
    assert "How soon slm came down to clm's final target loss (3.8000) is not judged" in text


def test_what_base_and_reference_were_trained_on_is_told_where_their_logs_say():
    results = made_results()
    assert re.search("base [0-9,]+ – – –", text_of(results)), "a base from elsewhere was not trained here"
    results["models"]["base"]["trained"] = {"steps": 40, "tokens_seen": 163_840, "made_on": MADE_ON | {"starts": 2}}
    results["models"]["reference"]["trained"] = {"steps": 30, "tokens_seen": 122_880, "made_on": None}
    text = text_of(results)
    assert re.search("base [0-9,]+ 40 163,840 –", text)
    assert re.search("reference [0-9,]+ 30 122,880 –", text)
    assert "training of base started 2 times worker17" in text
    assert "training of reference" not in text.partition("Where and by what")[2]

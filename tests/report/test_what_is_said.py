"""What tables, figures and captions say: signs, scopes, points of a fit, what is missing and why."""

from __future__ import annotations

import copy
import re
from html import unescape

import pytest
from made_results import ARMS, made_highlights, made_logs, made_results

from slmctl.report.page import make_page

HOSTILE = "<img src=x onerror=alert(1)>\u202e\x00$x$"


def words(html):
    return " ".join(unescape(re.sub(r"<(script|style|title|desc)\b.*?</\1>|<[^>]*>", " ", html, flags=re.DOTALL)).split())


def text_of(results, **more):
    return words(make_page(results, **more).html)


def svg_texts(figure):
    return [unescape(t) for t in re.findall(r"<text[^>]*>([^<]*)</text>", figure)]


# --- signs ---


def test_every_negative_number_has_the_sign_itself():
    results = made_results()
    results["alarms"][0]["text"] = "those left out have -0.138 nats (-1.2e-05 to -0.1), says slm-1e-4"
    for arm in results["arms"].values():
        arm["selected"].update(mean_excess_selected=-0.5, correlation_first=-0.2)
        for e in arm["evals"]:
            e["heldout"]["target"] -= 2
    for points in results["diagnostics"]["fit"].values():
        points.update(y=[y - 2 for y in points["y"]], intercept=-12.5)
    page = make_page(results, made_highlights(documents=1), made_logs(steps=20))
    found = words(page.html).replace("slm-1e-4", "")
    assert not re.search(r"(?<![\w-])-[\d.]|e-\d", found)
    assert "have −0.138 nats (−1.2e−05 to −0.1)" in found
    assert "y = 0.9091·x − 12.5" in found
    ticks = [t for name in ("heldout-target.svg", "fit-kept.svg") for t in svg_texts(page.figures[name])]
    assert any(t.startswith("−") for t in ticks)
    assert not any(re.match(r"-\d", t) for figure in page.figures.values() for t in svg_texts(figure))


def test_below_one_it_is_more_not_fewer():
    results = made_results()
    control = results["arms"]["slm"]["control"]
    control.update(times_fewer_tokens=0.46, times_fewer_flops=1.0, times_fewer_flops_all=0.4627)
    control["interval"].update(times_fewer_tokens=[0.4, 0.5], times_fewer_flops=[0.9, 1.1], times_fewer_flops_all=[0.4, 0.5])
    text = text_of(results)
    assert (
        "tokens, 2.17 times more (95% interval over documents: 2.00 to 2.50), and as many FLOPs of training (1.11 times" in text
    )
    assert "more to 1.10 times fewer); with the reference's training and scoring counted, 2.16 times more (2.00 to 2.50)." in text
    assert not re.search(r"\b0\.\d+(×| times) (fewer|more)", text)


# --- tasks ---


def test_of_none_right_no_error_of_zero_is_shown():
    results = made_results()
    for model, accuracy, unread in (("slm", 0.0, None), ("clm", 1.0, None), ("random", 0.0, 200), ("base", 0.0, 7)):
        results["models"][model]["tasks"]["svamp"].update(accuracy=accuracy, standard_error=0.0, unread=unread)
    text = text_of(results)
    assert not re.search(r"± 0\.0(?!\d)", text)
    for said in (
        "0.0% none right",
        "100.0% all right",
        "0.0% none right: no answer could be read from any output",
        "0.0% none right; from 7 outputs no answer could be read",
        "where none or all are right it would be 0, which says nothing of other items",
        "Where none or all are right there is no bar.",
    ):
        assert said in text, said
    assert "none right" not in text_of(made_results())


@pytest.mark.usefixtures("undrawn")
def test_tasks_that_two_suites_leave_out_are_listed_once():
    results = made_results()
    results["notes"] = [
        "rho-math: math: left out, tasks holds no math.jsonl (also .gz and .zst, or math/test.jsonl)",
        "rho-math: asdiv: 1 records left out (several answers, or another subject)",
        "rho-general: math is left out, tasks has no math.jsonl",
        "rho-general: mbpp is left out: it executes programs that the model writes. Run it in a container",
        "the same note",
        "the same note",
    ]
    html = make_page(results, notes=["the same note"]).html
    notes = words(html[html.index("<h3>Notes</h3>") :])
    assert notes.count("left out") == 3
    assert "rho-general: math" not in notes
    assert notes.count("the same note") == 1


# --- fits ---


@pytest.mark.parametrize("points", [1, 2, 3])
def test_few_points_have_no_r2(points):
    results = made_results()
    for found in results["diagnostics"]["fit"].values():
        found.update({k: found[k][:points] for k in ("x", "y", "x_unselected")}, r2=0.999)
    page = make_page(results)
    legend = " ".join(svg_texts(page.figures["fit-kept.svg"]))
    assert f"slm, {points} point{'s' * (points > 1)}, too few for R²" in legend
    assert "0.99" not in words(page.html).split("Target loss against the loss of tokens kept")[1].split("Perplexity of")[0]


def test_more_points_have_an_r2_or_say_why_not():
    results = made_results()
    results["diagnostics"]["fit"]["clm"].update(r2=None, slope=None, intercept=None)
    page = make_page(results)
    assert "slm, 4 points, R² 0.99" in svg_texts(page.figures["fit-kept.svg"])
    assert "clm, 4 points, no R² of losses that do not vary" in svg_texts(page.figures["fit-kept.svg"])
    assert "clm: no line, since no two losses differ, 4 points, no R² of losses that do not vary" in words(page.html)


# --- token dynamics ---


def test_the_legend_names_each_fluctuating_token_and_where_it_stands():
    page = make_page(made_results())
    found = svg_texts(page.figures["fluctuating-slm.svg"])
    assert "1. “ apples” after “Mary buys 12”, at 40" in found
    assert "5. “7” after “the total is 4”, at 44" in found
    text = words(page.html)
    assert "fluctuate most" not in text
    assert "token text before it position in the row course" in text


def test_the_legend_shows_hostile_text_as_text():
    results = made_results()
    results["diagnostics"]["dynamics"]["slm"]["fluctuating"][0].update(text=HOSTILE, before=HOSTILE, position=None)
    page = make_page(results)
    [name] = [t for t in svg_texts(page.figures["fluctuating-slm.svg"]) if t.startswith("1. ")]
    assert name.startswith("1. “<img src=x o… (")
    assert "⟨U+202E⟩" in name
    assert ", at" not in name
    assert "<img" not in page.figures["fluctuating-slm.svg"]
    assert "\u202e" not in page.html


@pytest.mark.usefixtures("undrawn")
def test_the_captions_of_one_mask_say_what_is_plotted_and_claim_no_more():
    text = text_of(made_results())
    assert "The mean loss of the same 60.0% of tokens, those kept, under each arm's checkpoints" in text
    assert "The mean loss of the same 40.0% of tokens, those left out, under each arm's checkpoints" in text
    assert "an arm that selects well" not in text
    assert "learning the target" not in text


# --- scope ---


@pytest.mark.parametrize(
    ("scope", "share", "competition"),
    [
        ("group", "60%)", "groups of 8 rows"),
        ("global", "60% of each micro-batch)", "global: all tokens of a micro-batch, on all ranks, compete"),
        ("threshold", "60% by a running threshold)", "threshold: each token is held against a running quantile of the scores"),
    ],
)
@pytest.mark.usefixtures("undrawn")
def test_the_scope_in_which_tokens_compete_is_said(scope, share, competition):
    results = made_results()
    results["arms"]["slm"]["selection"]["scope"] = scope
    text = text_of(results, highlighted=made_highlights(documents=1))
    assert f"slm (highest excess loss, {share} ends at" in text
    assert f"slm {competition} 60.0%" in text
    assert "clm none: all are kept 100.0%" in text
    stand_in = f"In training slm had scope {scope} ({competition.partition(': ')[2]}); here its tokens compete within groups of 8"
    assert text.count(stand_in) == (0 if scope == "group" else 5), "position, two masks, matrix and texts"
    assert "four groups" not in text


# --- what is missing ---


@pytest.mark.usefixtures("undrawn")
def test_what_is_missing_is_a_dash_with_its_reason():
    results = made_results()
    for model in results["models"].values():
        model["heldout"]["target"].update(interval=None, bits_per_byte_interval=None, documents=1)
    results["models"]["random"]["heldout"]["target"]["loss"] = None
    for difference in results["differences"]:
        difference["interval"] = None
    results["arms"]["slm"]["checkpoints"].pop()
    results["arms"]["slm"]["evals"].pop(2)
    results["costs"]["scoring_flops"]["curated"] = None
    results["diagnostics"]["matrix"]["slm"]["perplexity"][1][2] = None
    results["seeds"][0]["target_loss"]["sd"] = None
    results["models"]["base"]["tasks"].pop("asdiv")
    results["task_differences"][0]["p"] = None
    text = text_of(results)
    for said in (
        "1.0288 no interval",
        "an interval takes at least two documents, and finite losses; one of bits per byte",
        "no interval: an interval takes at least two documents, and finite losses; slm differs",
        "A dash (–): not measured, or no finite number; of training, this model was not trained as an arm.",
        "A dash (–): an interval takes at least two documents, and finite losses.",
        "A dash (–): not measured there, or no finite number.",
        "A dash (–): not known, since the model behind it",
        "A dash (–): nothing was chosen there, or it is no finite number.",
        "A dash (–): a spread takes at least two seeds, and finite losses.",
        "A dash (–): this model was not measured on the task.",
        "A dash (–): not to be tested.",
    ):
        assert said in text, said


def nulled(value):
    if isinstance(value, dict):
        return {k: nulled(v) for k, v in value.items()}
    return [nulled(v) for v in value] if isinstance(value, list) else None if isinstance(value, int | float) else value


@pytest.mark.parametrize("make", [lambda r: r, nulled], ids=["whole", "nulled"])
@pytest.mark.usefixtures("undrawn")
def test_no_cell_is_empty_and_every_table_with_a_dash_gives_a_reason(make):
    results = make(copy.deepcopy(made_results(arms={**ARMS, "slm-2": ARMS["slm"]})))
    if make is not nulled:
        results["arms"]["slm"]["evals"].pop(2)
        results["arms"]["slm"]["checkpoints"].pop()
    html = make_page(results).html
    dashes = 0
    for table in re.findall(r'<div class="table">.*?</table></div>.*?</div>|<details>.*?</details>', html, re.DOTALL):
        cells = [words(c) for c in re.findall(r"<td[^>]*>(.*?)</td>", table.partition("<tbody>")[2], re.DOTALL)]
        assert all(cells)
        assert not any(re.search(r"\b(nan|None|null|inf)\b", c) for c in cells)
        if any("–" in c for c in cells):
            dashes += 1
            assert re.search(r"A dash \(–\): \w", words(table)), words(table)[:300]
    assert dashes >= 3

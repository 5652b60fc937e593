"""The comparison in a terminal of 80 columns: every model with its numbers, nothing wrapped, nothing that is absent made up."""

from __future__ import annotations

import io
import math

import pytest
from made_results import ARMS, made_results
from rich.console import Console
from test_what_is_said import words

from slmctl.report import numbers as n
from slmctl.report.blocks import DataTable
from slmctl.report.facts import Facts
from slmctl.report.page import make_page
from slmctl.report.sections.summary import key_figures
from slmctl.report.table import WIDTH, print_results, sentences, small_tables, width

FIVE = ARMS | {
    "slm-with-a-strong-reference": {"criterion": "excess_loss", "ratio": 0.7},
    "slm-40": {"criterion": "excess_loss", "ratio": 0.4},
}


def printed(results, columns=WIDTH):
    console = Console(file=io.StringIO(), width=columns, highlight=False)
    print_results(results, console)
    return console.file.getvalue()


def table(results, title):
    """{name of the row: {column: cell}} of the table whose title begins so."""
    found = next(t for t in small_tables(results) if t.title.startswith(title))
    return {row[0]: dict(zip(found.header[1:], row[1:], strict=True)) for row in found.rows}


def test_every_model_is_in_it_with_its_loss_interval_and_bits():
    results = made_results()
    for heldout in ("target", "general"):
        found = table(results, f"Held-out set {heldout}")
        assert list(found) == ["base", "reference", "slm", "clm", "random"]
        for name, row in found.items():
            wanted = results["models"][name]["heldout"][heldout]
            assert float(row["loss"]) == pytest.approx(wanted["loss"], abs=5e-5)
            assert [float(x) for x in row["95% interval"].strip("[]").split(", ")] == pytest.approx(wanted["interval"], abs=5e-5)
            assert float(row["bits/byte"]) == pytest.approx(wanted["bits_per_byte"], abs=5e-5)
            rolling = results["models"][name]["rolling"][heldout]["bits_per_byte"]
            assert float(row["rolling"]) == pytest.approx(rolling, abs=5e-5)
            assert float(row["perplexity"]) == pytest.approx(math.exp(wanted["loss"]), rel=1e-3)


def sure_of(results):
    """Intervals by arm and figure."""
    found = next(t for t in small_tables(results) if t.title == "… and their 95% intervals")
    by = {}
    for arm, figure, ends in found.rows:
        by.setdefault(arm, {})[figure] = ends
    return by


def test_what_it_took_to_reach_the_control_is_shown_with_and_without_scoring():
    found = table(made_results(), "Until the final target loss of clm")
    assert found["slm"]["tokens"] == "368,640"
    assert found["slm"]["in tokens"] == "1.33× fewer"
    assert found["slm"]["with scoring"].endswith("more"), "below one is said as its inverse"
    assert found["random"]["tokens"] == "not reached"
    sure = sure_of(made_results())
    assert (sure["slm"]["tokens"], sure["slm"]["in tokens"]) == ("332k to 406k", "1.20 to 1.47 times fewer")
    assert sure["slm"]["with scoring"] == "1.12 times more to 1.09 times fewer", "around 1, each end says its side"
    assert "clm" not in sure
    assert "random" not in sure, "of what was never reached there is nothing to say"


@pytest.mark.parametrize(
    ("value", "ends", "said", "short"),
    [
        (0.472, [0.470, 0.474], "2.11 to 2.13 times more", "[2.11, 2.13]"),
        (1.33, [1.2, 1.47], "1.20 to 1.47 times fewer", "[1.20, 1.47]"),
        (1.05, [0.909, 1.25], "1.10 times more to 1.25 times fewer", "[1.10× more, 1.25× fewer]"),
        (0.472, [None, 0.474], "from 2.11 times more on, with no upper end", "[2.11, …)"),
        (1.33, [1.2, None], "from 1.20 times fewer on, with no upper end", "[1.20, …)"),
    ],
)
@pytest.mark.usefixtures("undrawn")
def test_an_interval_stands_in_the_direction_of_its_figure(value, ends, said, short):
    results = made_results()
    control = results["arms"]["slm"]["control"]
    control["times_fewer_flops_all"], control["interval"]["times_fewer_flops_all"] = value, ends
    assert sure_of(results)["slm"]["with scoring"] == said
    assert n.fewer_interval(value, ends) == short
    figure = next(f for f in key_figures(Facts(results)) if f.label.startswith("All FLOPs"))
    assert f"{n.fewer(value)}, 95% interval {short};" in figure.detail
    assert f"{n.fewer(value)} {short}" in words(make_page(results).html)


def test_where_nothing_was_reached_there_is_no_table_of_intervals():
    results = made_results()
    for arm in results["arms"].values():
        if arm.get("control"):
            arm["control"].update(dict.fromkeys(("tokens_to_reach", "times_fewer_tokens"), None))
            arm["control"]["interval"] = {key: [None, None] for key in arm["control"]["interval"]}
    assert not any(t.title.startswith("…") for t in small_tables(results))


def test_what_is_not_judged_is_not_called_not_reached():
    results = made_results()
    results["arms"]["slm"]["control"].update(tokens_to_reach=None, why="too few evaluations")
    assert table(results, "Until")["slm"]["tokens"] == "not judged"
    results["arms"]["slm"]["control"]["arm"] = "clm-1"
    assert table(results, "Until the final target loss of the control")["random"]["tokens"] == "not reached"


@pytest.mark.parametrize("arms", [ARMS, FIVE, {"slm": ARMS["slm"]}], ids=["three", "five", "one"])
@pytest.mark.parametrize("everything", [True, False])
def test_nothing_wraps_in_80_columns(arms, everything):
    results = made_results(arms=arms, everything=everything)
    tables = small_tables(results)
    assert all(width(t) <= WIDTH for t in tables)
    assert all(len(row) == len(t.header) and all(isinstance(c, str) for c in row) for t in tables for row in t.rows)
    text = printed(results)
    assert all(len(line) <= WIDTH for line in text.splitlines())
    lines = [line.split() for line in text.splitlines()]
    for t in tables:
        for row in t.rows:
            assert " ".join(row).split() in lines, "each row is one line, whole"


def test_the_width_is_what_rich_prints():
    """A table one column wider than the terminal is not taken for one that fits."""
    t = DataTable("t", ["ab", "c"], [["x", "defg"]])
    assert width(t) == 2 + 3 + 4


def test_alarms_stand_above_all_with_a_word_and_a_symbol():
    results = made_results()
    text = printed(results)
    found = [s for s, _ in sentences(results)]
    assert [s.split()[:2] for s in found[:4]] == [["✗", "Problem:"], ["!", "Warning:"], ["i", "Note:"], ["✓", "Good:"]]
    assert text.index("Problem:") < text.index("Warning:") < text.index("Held-out set target")


def test_more_models_than_fit_go_into_a_second_table_of_tasks():
    tables = [t for t in small_tables(made_results(arms=FIVE)) if t.title.startswith("Accuracy")]
    assert len(tables) > 1
    assert sum(len(t.header) - 1 for t in tables) == len(FIVE) + 2
    assert {row[0] for t in tables for row in t.rows} == {"gsm8k", "svamp", "asdiv", "mathqa"}


def test_absent_and_null_numbers_are_dashes():
    results = made_results(everything=False)
    for model in results["models"].values():
        for h in model["heldout"].values():
            h.update(loss=None, interval=None, bits_per_byte=None, perplexity=None)
    for arm in results["arms"].values():
        arm.pop("control", None)
        arm["flops"] = None
    results["differences"] = []
    found = table(results, "Held-out set target")
    assert set(found["slm"].values()) == {"–"}
    assert not any(t.title.startswith(("Until", "Paired", "Accuracy")) for t in small_tables(results))
    printed(results)


def test_none_or_all_right_has_no_error_of_zero():
    results = made_results()
    for model, accuracy in (("slm", 0.0), ("clm", 1.0)):
        results["models"][model]["tasks"]["gsm8k"].update(accuracy=accuracy, standard_error=0.0)
    found = table(results, "Accuracy")["gsm8k"]
    assert (found["slm"], found["clm"]) == ("0.0% none", "100.0% all")


def test_a_note_is_printed_once():
    results = made_results()
    results["notes"] = ["rho-math: math: left out, tasks holds no math.jsonl", "rho-general: math is left out, tasks has none"]
    assert printed(results).count("left out") == 1


def test_a_ratio_is_shown_as_what_it_is():
    arms = {"slm": {"criterion": "excess_loss", "ratio": 0.625}}
    found = table(made_results(arms=arms), "Training")
    assert found["slm"]["selected by"] == "excess loss 62.5%", "rounded to whole percents two arms would look the same"


def test_markup_and_control_characters_are_shown_as_text():
    arms = {"[red]x[/red]": ARMS["slm"], "\x1b[31mclm": ARMS["clm"]}
    results = made_results(arms=arms)
    results["alarms"][0]["text"] = "[bold]not bold[/bold] \x1b[2J"
    text = printed(results)
    assert "[red]x[/red]" in text
    assert "[bold]not bold[/bold]" in text
    assert "\x1b" not in text


def test_that_no_answer_could_be_read_is_said_as_on_the_page():
    """An accuracy of 0 whose outputs hold no answer says nothing of what the models know."""
    results = made_results()
    for model, accuracy, unread in (("slm", 0.0, 200), ("clm", 0.0, 200), ("random", 0.0, 7), ("base", 0.0, 0)):
        results["models"][model]["tasks"]["svamp"].update(accuracy=accuracy, items=200, standard_error=0.0, unread=unread)
    text = printed(results)
    assert "svamp, slm, clm: none right: no answer could be read from any output\n" in text
    assert "svamp, random: none right; from 7 outputs no answer could be read\n" in text
    assert all(len(line) <= WIDTH for line in text.splitlines())
    assert "no answer" not in printed(made_results())


SEEDED = {
    f"{arm}{f'-seed-{seed}' if seed else ''}": {"criterion": how, "ratio": 0.6}
    for arm, how in (("slm", "excess_loss"), ("clm", "all"), ("random", "random"))
    for seed in (0, 1, 2)
}


def test_means_over_seeds_and_the_intervals_of_their_differences_end_it():
    results = made_results(arms=SEEDED)
    losses = {"slm": (1.00, 1.02, 1.01), "clm": (1.05, 1.04, 1.06), "random": (1.06, 1.07, 1.05)}
    for arm, found in losses.items():
        for seed, loss in enumerate(found):
            results["models"][f"{arm}{f'-seed-{seed}' if seed else ''}"]["heldout"]["target"]["loss"] = loss
    names = {arm: [a for a in SEEDED if a.startswith(arm)] for arm in losses}
    results["seeds"] = [{"arm": arm, "arms": arms, "target_loss": {}} for arm, arms in names.items()]
    means, differences = small_tables(results)[-2:]
    assert [row for row in means.rows if row[0] == "target"] == [
        ["target", "slm", "3", "1.0100", "0.0100"],
        ["target", "clm", "3", "1.0500", "0.0100"],
        ["target", "random", "3", "1.0600", "0.0100"],
    ]
    reach = 4.302653 * math.sqrt(2 * 0.01**2 / 3)  # Student's t for two degrees of freedom
    assert [row for row in differences.rows if row[0] == "target"] == [
        ["target", "slm − clm", "−0.0400", f"[−{0.04 + reach:.4f}, −{0.04 - reach:.4f}]"],
        ["target", "slm − random", "−0.0500", f"[−{0.05 + reach:.4f}, −{0.05 - reach:.4f}]"],
        ["target", "random − clm", "+0.0100", f"[−{reach - 0.01:.4f}, +{0.01 + reach:.4f}]"],
    ]
    text = printed(results)
    assert text.index("Differences of means over seeds") > text.index("Accuracy of tasks")
    assert all(len(line) <= WIDTH for line in text.splitlines())
    assert "Fewer than 3 seeds" not in text
    for entry in results["seeds"]:
        entry["arms"] = entry["arms"][:2]
    assert "Fewer than 3 seeds tell little" in printed(results)
    results["seeds"] = []
    assert "over seeds" not in printed(results).partition("Held-out set")[2]


def test_a_seed_whose_loss_is_not_known_makes_no_mean():
    results = made_results(arms=SEEDED)
    results["seeds"] = [{"arm": "slm", "arms": ["slm", "slm-seed-1"], "target_loss": {}}]
    results["models"]["slm-seed-1"]["heldout"]["target"]["loss"] = None
    assert [row[0] for t in small_tables(results) if t.title.startswith("Means over") for row in t.rows] == ["general"]

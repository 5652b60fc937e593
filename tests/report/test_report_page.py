"""The page stands alone, shows every part that is there, leaves out what is not, and takes nothing in it for markup."""

from __future__ import annotations

import copy
import json
import re
from html import unescape
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
import yaml
from made_results import ARMS, CONFIG, made_highlights, made_logs, made_results

from slmctl.report.page import make_page

HOSTILE = "<script>alert('x')</script><img src=http://evil.example/x onerror=alert(1)> & \"quoted\" \u202e \x00"


class Parsed(HTMLParser):
    """Every tag with its attributes, the text outside of scripts and styles, and each JSON block."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.data, self.inside = [], "", "", None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self.inside = dict(attrs).get("type", tag)

    def handle_endtag(self, tag):
        if tag in ("script", "style"):
            self.inside = None

    def handle_data(self, data):
        if self.inside == "application/json":
            self.data += data
        elif self.inside is None:
            self.text += data

    def all(self, name):
        return [attributes for tag, attributes in self.tags if tag == name]


def assert_self_contained(text):
    page = Parsed(text)
    for tag, attributes in page.tags:
        assert tag not in {"link", "iframe", "object", "embed", "base", "img", "form"}, tag
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in {"src", "href", "xlink:href", "srcset", "data", "action", "poster"}:
                assert value.startswith("#"), (tag, name, value)
            assert "url(http" not in (value or "")
    assert "@import" not in text
    assert "url(http" not in text
    assert len(page.all("script")) <= 2, "the page's own, and the data of the texts"
    return page


def full(arms=None, **more):
    arms = ARMS if arms is None else arms
    results = made_results(arms=arms)
    return make_page(results, made_highlights(list(arms), documents=1, repeat=1), made_logs(arms, 90), CONFIG, **more)


@pytest.fixture(scope="module")
def page():
    return full()


def test_the_page_fetches_nothing_and_forbids_it(page):
    parsed = assert_self_contained(page.html)
    policy = next(m["content"] for m in parsed.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    assert "torch 2.13.0" in parsed.text
    assert "seq_len: 1024" in parsed.text


def test_the_check_itself_finds_what_it_is_for():
    for bad in [
        '<img src="https://a/b.png">',
        "<script>1</script><script>2</script><script>3</script>",
        '<link href="x.css">',
        '<a onclick="x()">',
        '<image xlink:href="http://a">',
    ]:
        with pytest.raises(AssertionError):
            assert_self_contained(f"<html>{bad}</html>")


def test_every_section_is_there_and_led_to(page):
    parsed = Parsed(page.html)
    ids = [a["id"] for _, a in parsed.tags if "id" in a]
    assert len(ids) == len(set(ids)), "ids of several figures do not collide"
    sections = [a["id"] for a in parsed.all("section")]
    assert sections == [
        *("summary", "comparison", "differences", "tasks", "curves", "costs", "selection", "training", "dynamics"),
        *("diagnostics", "repeats", "made", "text", "about"),
    ]
    links = [a["href"] for a in parsed.all("a")]
    assert links[1:] == [f"#{s}" for s in sections]


def test_every_reference_within_the_page_has_its_goal(page):
    parsed = Parsed(page.html)
    ids = {a["id"] for _, a in parsed.tags if "id" in a}
    for _, attributes in parsed.tags:
        for name in ("aria-labelledby", "aria-describedby", "xlink:href", "href"):
            for goal in attributes.get(name, "").split():
                assert goal.removeprefix("#") in ids, (name, goal)
        for goal in re.findall(r"url\(#([^)]+)\)", " ".join(v or "" for v in attributes.values())):
            assert goal in ids


def test_each_figure_has_a_caption_a_table_and_a_file_of_its_own(page):
    parsed = Parsed(page.html)
    figures = len(parsed.all("figure"))
    drawings = [a for a in parsed.all("svg") if a.get("role") == "img"]
    assert figures == len(drawings) == len(parsed.all("figcaption")) == len(parsed.all("details")) == len(page.figures)
    assert {
        *("heldout-target.svg", "checkpoints-general.svg", "loss_selected.svg", "categories.svg", "fluctuating-slm.svg"),
        *("mask-selected.svg", "fit-kept.svg", "matrix-slm.svg", "kept-by_kind.svg", "tasks.svg", "differences-target.svg"),
    } <= set(page.figures)
    for name, text in page.figures.items():
        root = ElementTree.fromstring(text.encode())
        assert "var(--" not in text, f"{name} stands alone, without the page's colours"
        assert root.find("{http://www.w3.org/2000/svg}title").text
        assert "metadata" not in text


def test_header_cells_say_what_they_are_headers_of(page):
    assert all(a.get("scope") in ("col", "row", "rowgroup") for a in Parsed(page.html).all("th"))


def test_the_summary_says_what_was_found_in_words(page):
    text = " ".join(Parsed(page.html).text.split())
    results = made_results()
    slm, clm, random = (results["models"][a]["heldout"]["target"]["loss"] for a in ("slm", "clm", "random"))
    assert f"slm (highest excess loss, 60%) ends at a loss of {slm:.3f} nats a token" in text
    assert f"{clm - slm:.3f} lower than clm (beyond chance) and {random - slm:.3f} lower than random (beyond chance)" in text
    assert "after 369k tokens, 1.33 times fewer" in text
    low, high = results["models"]["slm"]["heldout"]["target"]["interval"]
    assert f"95% interval [{low:.3f}, {high:.3f}]" in text
    for alarm in results["alarms"]:
        assert alarm["text"] in text


def test_the_paragraph_comes_first_then_the_alarms_then_all_else(page):
    summary = page.html.split('<section id="summary"')[1].split("</section>")[0]
    parts = ('<p class="headline">', '<ul class="alarms">', '<dl class="key">')
    assert [summary.count(part) for part in parts] == [1, 1, 1]
    assert sorted(parts, key=summary.index) == list(parts)


def test_a_difference_that_may_be_chance_is_called_so():
    results = made_results(everything=False)
    for d in results["differences"]:
        d["interval"] = [d["difference"] - 1, d["difference"] + 1]
    text = " ".join(Parsed(make_page(results).html).text.split())
    assert "lower than clm (within chance)" in text
    assert "lower than clm (beyond chance)" not in text


def test_a_difference_recorded_the_other_way_round_is_turned():
    results = made_results(everything=False)
    for d in results["differences"]:
        d["a"], d["b"], d["difference"] = d["b"], d["a"], -d["difference"]
        d["interval"] = [-d["interval"][1], -d["interval"][0]]
    slm, clm = (results["models"][a]["heldout"]["target"]["loss"] for a in ("slm", "clm"))
    assert f"{clm - slm:.3f} lower than clm (beyond chance)" in make_page(results).html


def test_the_costs_count_reference_and_scoring_once_for_arms_that_use_them(page):
    text = " ".join(Parsed(page.html).text.split()).replace("\u00a0", " ")
    assert "slm 491,520 294,912 3.10 × 10¹² 3.10 × 10¹¹ 2.40 × 10¹¹ 3.65 × 10¹²" in text
    assert "clm 491,520 491,520 2.85 × 10¹² 0 0 2.85 × 10¹²" in text


def test_the_data_of_the_texts_are_the_numbers_of_the_tokens():
    found = made_highlights(documents=2, repeat=1)
    data = json.loads(Parsed(make_page(made_results(everything=False), found).html).data)
    assert data["arms"] == ["slm", "clm", "random"]
    for shown, given in zip(data["documents"], found["documents"], strict=True):
        tokens = given["tokens"]
        assert shown["ref"] == [None if x is None else round(x, 3) for x in tokens["ref"]]
        for i, arm in enumerate(data["arms"]):
            assert shown["selected"][i] == tokens["selected"][arm]
            assert shown["live"][i] == [None if x is None else round(x, 3) for x in tokens["live"][arm]]


def test_the_texts_begin_with_the_arm_that_selects():
    found = made_highlights(["clm", "slm"], documents=1, repeat=1)
    html = make_page(made_results(everything=False), found).html
    assert json.loads(Parsed(html).data)["arms"] == ["slm", "clm"]
    kept = [
        a.get("class") == "kept"
        for a in re.findall(r'<div class="tokens".*?</div>', html, re.DOTALL)
        for a in Parsed(a).all("span")
    ]
    assert kept == [bool(s) for s in found["documents"][0]["tokens"]["selected"]["slm"]]


def text_of(results, highlighted=None):
    return said_by(make_page(results, highlighted))


def said_by(page):
    return " ".join(Parsed(page.html).text.split())


def repeated(results):
    """Two more seeds of slm and clm, with controls of their own; the means are not those of the first seed."""
    for arm in ("slm", "clm"):
        for seed in (1, 2):
            results["arms"][f"{arm}-{seed}"] = copy.deepcopy(results["arms"][arm]) | {"seed": seed}
            results["models"][f"{arm}-{seed}"] = copy.deepcopy(results["models"][arm])
    means = {"slm": (1.5, 0.01), "clm": (1.6, 0.02)}
    results["seeds"] = [
        {"arm": arm, "arms": [arm, f"{arm}-1", f"{arm}-2"], "target_loss": {"mean": mean, "sd": sd, "n": 3}}
        for arm, (mean, sd) in means.items()
    ]
    return results


@pytest.mark.usefixtures("undrawn")
def test_seeds_are_judged_by_their_means():
    results = repeated(made_results())
    text = text_of(results)
    reach = 4.3027 * (0.01**2 / 3 + 0.02**2 / 3) ** 0.5  # of Student's t with 2 degrees of freedom
    interval = f"[−{0.1 + reach:.3f}, −{0.1 - reach:.3f}]"
    assert "slm (highest excess loss, 60%) ends over 3 seeds at a loss of 1.500 ± 0.010 nats a token (mean ± sd)" in text
    assert f"0.100 lower than clm over 3 seeds (beyond chance, 95% interval over seeds {interval})" in text
    assert f"mean of 3 seeds, sd 0.020; slm differs by −0.100 {interval} over seeds" in text
    assert "lower than random (beyond chance), slm alone." in text
    assert "slm alone came down to the final loss of clm" in text


@pytest.mark.usefixtures("undrawn")
def test_the_first_lines_hold_an_arm_against_the_controls_of_its_own_seed():
    results = repeated(made_results())
    results["seeds"] = []
    text = text_of(results)
    assert "lower than clm (beyond chance)" in text
    assert "Target loss of clm-1" not in text
    results["arms"]["slm"]["seed"] = 2
    assert "lower than clm-2" in text_of(results)


@pytest.mark.usefixtures("undrawn")
def test_what_was_not_judged_is_not_said_to_be_never():
    results = made_results()
    results["arms"]["slm"]["control"].update(
        {k: None for k in results["arms"]["slm"]["control"] if k != "arm"}, why="fewer than 5 evaluations while training"
    )
    text = text_of(results)
    assert "How soon it came down to the final loss of clm is not judged: fewer than 5 evaluations while training." in text
    assert text.count("not judged fewer than 5 evaluations while training") == 3, "each figure of reaching the control"
    assert "slm is not judged: fewer than 5" in text
    assert "It never came down" not in text
    assert re.search("Tokens until the control’s final loss not judged [^–]+ – –", text), "arms first, then base and reference"


@pytest.mark.usefixtures("undrawn")
def test_the_controls_own_first_reach_is_told():
    results = made_results()
    results["arms"]["slm"]["control"]["control_tokens"] = 480_000
    text = text_of(results)
    assert "after 369k tokens (clm itself first after 480k), 1.33 times fewer (95% interval over documents: 1.20 to 1.47)" in text
    assert "1.33× fewer, 95% interval [1.20, 1.47]; clm itself first after 480k" in text


@pytest.mark.usefixtures("undrawn")
def test_what_it_took_over_seeds_stands_on_top():
    results = repeated(made_results())
    over = copy.deepcopy(results["arms"]["slm"]["control"])
    over |= {"arms": [["slm", "clm"], ["slm-1", "clm-1"], ["slm-2", "clm-2"]], "seeds": [0, 1, 2], "times_fewer_tokens": 1.21}
    over["interval"]["times_fewer_tokens"] = [None, 1.66]
    next(s for s in results["seeds"] if s["arm"] == "slm")["control"] = over
    text = text_of(results)
    assert "Over 3 seeds, too few for more than a rough interval, it came down to the mean final loss of clm" in text
    assert "1.21 times fewer (95% interval over seeds and documents: up to 1.66 times fewer, with no lower end)" in text
    assert "slm alone came down" not in text
    assert "1.21× fewer, 95% interval (…, 1.66× fewer]" in text
    assert "slm, 3 seeds" in text


@pytest.mark.usefixtures("undrawn")
def test_what_was_never_reached_may_be_on_other_documents():
    results = made_results()
    control = results["arms"]["slm"]["control"]
    control.update(tokens_to_reach=None, times_fewer_tokens=None)
    said = text_of(results | {"alarms": [{"name": "cost", "level": "warning", "text": "It is an alarm already."}]})
    assert "It never came down" not in said
    results["alarms"] = []
    goal = f"{control['target_loss']:.3f}"
    assert f"It never came down to the final loss of clm ({goal}) while training; on other documents it may." in text_of(results)
    control["interval"]["tokens_to_reach"] = [None, None]
    assert f"({goal}) while training." in text_of(results)


def test_losses_that_were_not_measured_alike_are_not_drawn_together():
    """slm's last evaluations are on more tokens, as if eval_tokens had been changed across a resume; random was computed in
    another precision; of clm's first nothing is known."""
    alike = make_page(made_results())
    assert [n for n in alike.figures if n.startswith("heldout-target")] == ["heldout-target.svg"]
    assert "as measured on 8,128 of the set's 25,344 tokens in float32" in said_by(alike)
    results = made_results()
    for record in results["arms"]["slm"]["evals"][8:]:
        record["measured"] = {"target": {"tokens": 9000, "rows": "more", "precision": "float32"}}
    for record in results["arms"]["random"]["evals"]:
        record["measured"] = {"target": {**record["measured"]["target"], "precision": "bf16_autocast"}}
    del results["arms"]["clm"]["evals"][0]["measured"]
    page = make_page(results)
    found = {n: svg for n, svg in page.figures.items() if n.startswith("heldout-target")}
    legends = [[a for a in ("slm", "clm", "random") if f">{a}<" in svg] for svg in found.values()]
    assert legends == [["slm", "clm"], ["slm"], ["clm"], ["random"]]
    text = said_by(page)
    measures = (
        "8,128 tokens in float32",
        "9,000 tokens in float32",
        "tokens that are not known",
        "8,128 tokens in bf16_autocast",
    )
    for i, on in enumerate(measures, 1):
        assert f"Held-out loss on target while training, {i} of 4: on {on}" in text
    target = text.split("Held-out loss on general while training")[0]
    assert target.count("are of other tokens or another precision: not to be compared") >= 4
    assert "On how many tokens, and in what precision, is not known" in target


def test_figures_of_curves_of_training_are_not_shown():
    """As results had them that an older slmctl made."""
    results = made_results()
    for arm in results["arms"].values():
        del arm["control"]["points"], arm["control"]["interval"]
    text = text_of(results)
    assert "is not judged: the results were made by an slmctl that read it from losses while training" in text
    assert "1.33× fewer" not in text
    assert "1.33 times" not in text


@pytest.mark.usefixtures("undrawn")
def test_arms_with_other_controls_name_them_in_the_costs():
    results = made_results()
    results["arms"]["random"]["control"]["arm"] = "clm-1"
    text = text_of(results)
    assert "Until the final target loss of each arm’s control was reached arm control tokens seen" in text


def test_a_sweep_of_seeds_is_no_curve():
    results = made_results()
    assert any(name.startswith("sweep") for name in make_page(results).figures)
    for key in ("seed", "pretrain.seed"):
        results["sweeps"][0]["key"] = key
        page = make_page(results)
        assert not any(name.startswith("sweep") for name in page.figures)
        seeds = results["seeds"][0]["target_loss"]
        assert f"{seeds['mean']:.4f} ± {seeds['sd']:.4f}" in " ".join(Parsed(page.html).text.split())


@pytest.mark.usefixtures("undrawn")
def test_the_words_claim_no_more_than_was_measured():
    results = made_results()
    text = text_of(results, made_highlights(documents=1))
    assert "as good as blind" not in text
    assert "near 100% means that the selection ignores its scores" in text
    assert "the arm would train on under its last checkpoint" in text
    assert "tokens of rows of the training corpus, at base and at the kept checkpoints, which may be unevenly spaced" in text
    assert text.count("slm would train on") == 1, "by position alone: kinds and frequencies were counted in training"
    assert text.count("slm trained on") == 2


@pytest.mark.usefixtures("undrawn")
def test_long_sentences_are_not_cut():
    results = made_results()
    results["alarms"][0]["text"] = "slm " * 300 + "end."
    results["diagnostics"]["fixed_mask"]["description"] = "drawn so " * 60 + "that it ends"
    text = text_of(results)
    assert "slm end." in text
    assert text.count("drawn so that it ends.") == 2


def test_the_configuration_tells_no_folders_and_no_credentials():
    config = {
        "output_dir": "/home/me/secret/runs/try1",
        "model": {"path": "~/models/base", "revision": None},
        "data": {"corpus": [{"path": ["C:\\Users\\me\\a.jsonl", "../up/b.jsonl", "texts/*.jsonl"]}, {"hub": "org/name"}]},
        "url": "https://user:pass@host.example/files/c.jsonl?token=abc",
        "prompt": "Q: {question} see https://u:p@host.example/x\n/A: and/or",
        "ratio": 0.6,
    }
    html = make_page({}, config=yaml.safe_dump(config)).html
    text = unescape(html.split("<pre>")[1].split("</pre>")[0])
    shown = yaml.safe_load(text)
    assert shown["data"]["corpus"] == [{"path": ["a.jsonl", "b.jsonl", "texts/*.jsonl"]}, {"hub": "org/name"}]
    assert (shown["output_dir"], shown["model"], shown["ratio"]) == ("try1", {"path": "base", "revision": None}, 0.6)
    assert shown["url"] == "https://host.example/files/c.jsonl"
    assert shown["prompt"] == "Q: {question} see https://host.example/x\n/A: and/or"
    for secret in ("secret", "pass", "token=", "Users", "/home"):
        assert secret not in text


# --- what is absent ---

LEAST = made_results(everything=False)


def _without(results, *paths):
    results = copy.deepcopy(results)
    for path in paths:
        here = results
        for key in path[:-1]:
            here = here[key]
        here.pop(path[-1], None)
    return results


@pytest.mark.parametrize(
    "results",
    [
        {},
        {"pipeline": "x", "models": {}, "arms": {}},
        LEAST,
        made_results(arms={"slm": ARMS["slm"]}),
        made_results(arms={"clm": ARMS["clm"]}, everything=False),
        _without(LEAST, ("differences",), ("costs",), ("alarms",), ("level",), ("versions",)),
        _without(LEAST, ("arms", "slm", "control"), ("arms", "slm", "selection"), ("arms", "slm", "selected")),
        {**LEAST, "diagnostics": {}, "sweeps": None, "seeds": [None], "notes": None, "alarms": [{"level": "odd"}]},
    ],
    ids=["nothing", "no models", "least", "one arm", "control only", "no parts", "bare arm", "odd"],
)
def test_a_page_is_made_of_whatever_there_is(results):
    parsed = assert_self_contained(make_page(results).html)
    for word in ("None", "nan", "NaN", "null"):
        assert word not in re.findall(r"\w+", parsed.text), word


def test_texts_may_be_absent_or_without_numbers():
    for found in (None, {}, {"arms": [], "documents": []}, {"arms": ["slm"], "documents": []}):
        assert 'id="tokens"' not in make_page({}, found).html
    bare = {"arms": ["slm", "clm"], "documents": [{"tokens": {"text": ["a"], "selected": {"slm": [0]}}}]}
    data = json.loads(Parsed(make_page({}, bare).html).data)
    assert data["documents"] == [{"position": [None], "ref": [None], "live": [[None]], "selected": [[0]]}]


def test_every_number_may_be_null():
    def nulled(value):
        if isinstance(value, dict):
            return {k: nulled(v) for k, v in value.items()}
        if isinstance(value, list):
            return [nulled(v) for v in value]
        return None if isinstance(value, int | float) else value

    logs = {a: nulled(log) for a, log in made_logs(steps=5).items()}
    parsed = assert_self_contained(make_page(nulled(made_results()), nulled(made_highlights(documents=1)), logs).html)
    assert "None" not in re.findall(r"\w+", parsed.text)


def test_one_checkpoint_is_a_point():
    results = made_results(everything=False)
    for name, arm in results["arms"].items():
        arm["checkpoints"] = made_results(arms={name: ARMS[name]})["arms"][name]["checkpoints"][:1]
    results["diagnostics"] = {"matrix": {"slm": {"steps": [0], "perplexity": [[12.5]]}}}
    assert "checkpoints-target.svg" in make_page(results).figures


def test_not_a_number_breaks_neither_page_nor_data():
    results, found = made_results(everything=False), made_highlights(documents=1)
    results["models"]["slm"]["heldout"]["target"]["loss"] = float("nan")
    results["arms"]["slm"]["evals"][3]["heldout"]["target"] = float("inf")
    found["documents"][0]["tokens"]["ref"][3] = float("nan")
    text = make_page(results, found).html
    json.loads(Parsed(text).data, parse_constant=lambda name: pytest.fail(name))


# --- hostile text ---


def test_hostile_text_is_shown_as_text():
    results = made_results(arms={"slm": ARMS["slm"]})
    results["pipeline"] = results["target"] = HOSTILE
    results["notes"] = [HOSTILE]
    results["alarms"][0]["text"] = HOSTILE
    results["versions"] = {HOSTILE: HOSTILE}
    results["diagnostics"]["dynamics"]["slm"]["fluctuating"][0].update(text=HOSTILE, before=HOSTILE)
    results["diagnostics"]["fixed_mask"]["description"] = HOSTILE
    results["sweeps"][0]["key"] = HOSTILE
    found = made_highlights(texts=[[HOSTILE, "a", "</script>", "<!--", "\ud800", "\u0301"]])
    found["documents"][0]["title"] = HOSTILE
    page = make_page(results, found, {}, HOSTILE, [HOSTILE])
    parsed = assert_self_contained(page.html)
    assert parsed.text.count("<script>alert('x')</script>") >= 8
    assert "\u202e" not in page.html
    assert "\x00" not in page.html
    assert "⟨U+202E⟩" in parsed.text
    page.html.encode("utf-8")
    for text in page.figures.values():
        ElementTree.fromstring(text.encode())


def test_an_arm_may_have_any_name():
    odd = [HOSTILE, "$x^2$", "$\\frac{$", "_slm", "", "émoji 🧪🏽", "a\nb", "x" * 10_000, "\u202eevil", "a b", "A B"]
    arms = {**dict.fromkeys(odd, ARMS["slm"]), "a-b": ARMS["clm"]}
    results = made_results(arms=arms, everything=False)
    results["diagnostics"] = {"matrix": {a: {"steps": [0], "perplexity": [[1.0]]} for a in arms}}
    page = make_page(results, made_highlights(list(arms), documents=1), {})
    parsed = assert_self_contained(page.html)
    ids = [a["id"] for _, a in parsed.tags if "id" in a]
    assert len(ids) == len(set(ids))
    names = [name.lower() for name in page.figures if name.startswith("matrix")]
    assert len(set(names)) == len(arms), "names that make the same file name are told apart"
    assert all(re.fullmatch(r"[A-Za-z0-9_-]+\.svg", name) for name in page.figures)


def test_a_token_of_a_megabyte_is_cut_and_says_so():
    found = made_highlights(texts=[["x" * 1_000_000, " y"]])
    text = make_page(made_results(everything=False), found).html
    assert len(text) < 400_000
    assert "(999,800 more characters)" in text


def test_thousands_of_tokens_make_no_huge_page():
    found = made_highlights(documents=1, texts=[[f" w{i}" for i in range(5000)]])
    least = len(make_page(made_results(everything=False)).html)
    assert len(make_page(made_results(everything=False), found).html) - least < 5000 * 80


def test_the_same_results_give_the_same_page():
    first, again = (make_page(made_results(everything=False), made_highlights(documents=1)) for _ in range(2))
    assert again.html == first.html
    assert again.figures == first.figures

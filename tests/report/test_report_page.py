"""The page stands alone, shows every arm, and takes nothing in it for markup."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from slmctl.config_file import check
from slmctl.errors import InputError
from slmctl.report.plots import curves, smooth, training_curve
from slmctl.stages.report import report
from slmctl.stages.workspace import Workspace

HOSTILE = "<script>alert('x')</script><img src=http://evil.example/x onerror=alert(1)> & \"quoted\""


class Page(HTMLParser):
    """Every tag with its attributes, and the text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def config(tmp_path, text="{text}"):
    return {
        "name": "page",
        "output_dir": str(tmp_path / "run"),
        "model": {"path": "somewhere"},
        "data": {
            "seq_len": 32,
            "curated": {"path": "a.jsonl", "text": text},
            "corpus": {"path": "b.jsonl"},
            "heldout": {"target": {"path": "c.jsonl"}},
        },
        "reference": {"batch_tokens": 64},
        "pretrain": {"steps": 3, "batch_tokens": 512, "arms": {"slm": {}, "clm": {"selection": {"criterion": "all"}}}},
    }


@pytest.fixture
def make_page(tmp_path):
    """make_page(name, text, arms): writes results and logs by hand, and reports them."""

    def make(name="page", text="{text}", arms=("slm", "clm"), notes=None):
        workspace = Workspace(check(config(tmp_path, text), "page")).open()
        found = {
            "heldout": {"target": {"loss": 2.0, "perplexity": 7.4, "bits_per_byte": 1.0, "predicted_tokens": 9}},
            "tasks": {},
        }
        facts = {}
        for i, arm in enumerate(arms):
            evals = [
                {"step": s, "tokens_seen": 512 * s, "tokens_selected": 300 * s, "heldout": {"target": 4.0 - s - i / 10}}
                for s in range(3)
            ]
            selection = {"criterion": "all" if arm == "clm" else "excess_loss", "ratio": 0.6}
            facts[arm] = {"selection": selection, "tokens_seen": 1024, "tokens_selected": 600, "evals": evals, "steps": 2}
            log = workspace.arm(arm) / "metrics.jsonl"
            log.parent.mkdir(parents=True)
            records = [
                {
                    "step": s,
                    "tokens_seen": 512 * s,
                    "loss_selected": 4.0 - s,
                    "loss_unselected": None,
                    "correlation": 0.9,
                    "grad_norm": 1.0,
                }
                for s in (1, 2)
            ]
            log.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
        results = {
            "pipeline": name,
            "seed": 0,
            "target": "target",
            "models": {"base": found, **dict.fromkeys(arms, found)},
            "arms": facts,
            "versions": {"torch": "1.2.3"},
        }
        workspace.evaluation.mkdir(parents=True, exist_ok=True)
        (workspace.evaluation / "results.json").write_text(json.dumps(results), encoding="utf-8")
        path = report(workspace, notes)
        return path.read_text(encoding="utf-8"), path

    return make


def assert_self_contained(text):
    page = Page(text)
    for tag, attributes in page.tags:
        assert tag not in {"script", "link", "iframe", "object", "embed", "base"}, tag
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in {"src", "href", "xlink:href", "srcset", "data", "action", "poster"}:
                assert value.startswith(("#", "data:")), (tag, name, value)
            if name == "style":
                assert "url(http" not in value
    assert "@import" not in text
    assert "url(http" not in text
    return page


def test_the_page_fetches_nothing(make_page):
    text, path = make_page()
    page = assert_self_contained(text)
    assert [t for t, _ in page.tags].count("svg") == 4, "held-out, selected loss, correlation and gradient norm"
    assert "1.2.3" in page.text
    assert "seq_len: 32" in page.text
    assert sorted(f.name for f in path.parent.iterdir()) == [
        "correlation.svg",
        "grad_norm.svg",
        "heldout-target.svg",
        "index.html",
        "loss_selected.svg",
    ]
    for file in path.parent.glob("*.svg"):
        ElementTree.parse(file)


def test_the_check_itself_finds_what_it_is_for():
    for bad in [
        '<img src="https://a/b.png">',
        "<script>1</script>",
        '<link href="x.css">',
        '<a onclick="x()">',
        '<image xlink:href="http://a">',
    ]:
        with pytest.raises(AssertionError):
            assert_self_contained(f"<html>{bad}</html>")


def test_hostile_text_is_shown_as_text(make_page):
    text, _ = make_page(name=HOSTILE, text=HOSTILE + "{text}", notes=[HOSTILE])
    page = assert_self_contained(text)
    assert "<script" not in text
    assert page.text.count("<script>alert('x')</script>") >= 3, "title, heading and note"
    assert not [t for t, _ in page.tags if t == "img"]


def test_hostile_arm_names_in_results_are_shown_as_text_in_plots_too(make_page):
    arm = "<b onclick=x>&"
    text, _ = make_page(arms=(arm, "clm"))
    page = assert_self_contained(text)
    assert "b" not in {t for t, _ in page.tags}
    assert arm in page.text


def test_the_same_results_give_the_same_page(make_page, tmp_path):
    first, _ = make_page()
    second = report(Workspace(check(config(tmp_path), "page"))).read_text(encoding="utf-8")
    assert first == second


def test_without_results_it_says_what_to_run(tmp_path):
    with pytest.raises(InputError, match="slmctl eval"):
        report(Workspace(check(config(tmp_path), "page")))


# --- plots ---


def test_every_arm_is_named_in_its_figure_even_with_an_underscore():
    svg = curves({"slm": ([0.0, 1.0], [2.0, 1.0]), "_control": ([0.0, 1.0], [2.0, 1.5])}, "x", "y", "A title")
    assert svg.startswith("<svg")
    text = " ".join(e.text or "" for e in ElementTree.fromstring(svg).iter() if e.tag.endswith("text"))
    for label in ("slm", "_control", "A title", "x", "y"):
        assert label in text.split() or label in text


def test_a_figure_with_nothing_in_it_is_no_crash():
    assert curves({}, "x", "y", "nothing").startswith("<svg")


@pytest.mark.parametrize("window", [1, 2, 5, 100])
def test_smoothing_is_a_trailing_mean(window):
    values = [3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0, 6.0]
    wanted = [sum(values[max(0, i - window + 1) : i + 1]) / min(i + 1, window) for i in range(len(values))]
    assert smooth(values, window) == pytest.approx(wanted)


def test_a_training_curve_leaves_out_steps_without_a_value():
    log = [{"tokens_seen": 10 * i, "loss": None if i == 2 else float(i)} for i in range(1, 5)]
    assert training_curve(log, "loss") == ([10.0, 30.0, 40.0], [1.0, 3.0, 4.0])
    assert training_curve(log, "absent") == ([], [])

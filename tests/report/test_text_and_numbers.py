"""Text made visible, numbers made readable, colours that keep their contrast."""

from __future__ import annotations

import math
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmctl.report import numbers as n
from slmctl.report import theme
from slmctl.report.plots.grid import DARKEST
from slmctl.report.plots.lines import training_curve
from slmctl.report.safe_text import Names, shortened, slug, visible


@given(st.text(st.characters(exclude_categories=()), max_size=60))
def test_what_is_shown_has_no_hidden_character_and_can_be_written(text):
    shown = visible(text)
    shown.encode("utf-8")
    assert all(unicodedata.category(c) not in {"Cc", "Cf", "Cs", "Co"} or c in "\u200c\u200d" for c in shown)
    assert not any(ord(c) & 0xFFFE == 0xFFFE for c in shown), "no character that XML forbids"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("plain", "plain"),
        ("a\x00b", "a⟨U+0000⟩b"),
        ("\x7f", "⟨U+007F⟩"),
        ("\u202ex", "⟨U+202E⟩x"),
        ("\ufeff", "⟨U+FEFF⟩"),
        ("\u0301e", "◌\u0301e"),
        ("e\u0301", "e\u0301"),
        ("👩\u200d🔬", "👩\u200d🔬"),
        ("x" * 205, "x" * 200 + "… (5 more characters)"),
    ],
)
def test_characters_that_hide_are_shown(text, wanted):
    assert visible(text) == wanted


def test_a_break_in_a_token_is_shown_and_breaks():
    assert visible("a\n", breaks=True) == "a↵\n"
    assert visible("a\n\tb") == "a↵⇥b"


@given(st.text(max_size=50), st.integers(5, 30))
def test_a_short_name_fits(name, longest):
    assert len(shortened(name, longest)) <= longest


def test_names_are_unique_and_plain():
    names = Names()
    found = [names.unique(x) for x in ("a b", "a-b", "A B", "", "", "a b-2")]
    assert len({x.lower() for x in found}) == len(found)
    assert all(x and slug(x) == x for x in found)


@pytest.mark.parametrize(
    ("shown", "wanted"),
    [
        (n.fixed(1.03451, 3), "1.035"),
        (n.fixed(-0.5, 1), "−0.5"),
        (n.fixed(None), "–"),
        (n.fixed(math.nan), "–"),
        (n.fixed(True), "–"),
        (n.interval([1, 2.5], 1), "[1.0, 2.5]"),
        (n.interval(None), ""),
        (n.interval([1, None]), ""),
        (n.short(381_000), "381k"),
        (n.short(999_700), "1M"),
        (n.short(20e9), "20B"),
        (n.short(0), "0"),
        (n.flops(3.1e12), "3.10\u00a0×\u00a010¹²"),
        (n.flops(0), "0"),
        (n.fewer(1.32), "1.32× fewer"),
        (n.fewer(0.8), "1.25× more"),
        (n.fewer(None), "–"),
        (n.fewer(1.001), "as many"),
        (n.fewer(0.999), "as many"),
        (n.fewer(0.46, " times"), "2.17 times more"),
        (n.fewer(1.32, " times"), "1.32 times fewer"),
        (n.fixed(-2e7), "−2e+07"),
        (n.count(-1234), "−1,234"),
        (n.short(-381_000), "−381k"),
        (n.short(-3), "−3"),
        (n.flops(-3.1e12), "−3.10\u00a0×\u00a010¹²"),
        (n.ratio(-0.5), "−50%"),
        (n.percent(-0.5), "−50.0%"),
        (n.general(-1.2e-7), "−1.2e−07"),
        (n.interval_or_why([1, 2], 1.5, 1), "[1.0, 2.0]"),
        (n.interval_or_why(None, 1.5), "no interval"),
        (n.interval_or_why(None, None), ""),
        (n.significant(17.0), "17.00"),
        (n.significant(219.04, 3), "219"),
        (n.significant(123456.7), "1.235e+05"),
        (n.probability(0.0001), "< 0.001"),
        (n.ratio(0.625), "62.5%"),
    ],
)
def test_numbers_as_people_read_them(shown, wanted):
    assert shown == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("-0.138 nats (-1.2e-05 to -.5), [-3]", "−0.138 nats (−1.2e−05 to −.5), [−3]"),
        ("slm-1e-4 and clm-1, 10-12, 2026-11-22, x-2, -o key=1", "slm-1e-4 and clm-1, 10-12, 2026-11-22, x-2, -o key=1"),
    ],
)
def test_only_the_sign_of_a_number_becomes_a_minus(text, wanted):
    assert n.signs(text) == wanted


def test_a_training_curve_is_the_means_of_equal_bins():
    log = [{"tokens_seen": 10 * i, "loss": None if i == 3 else float(i)} for i in range(1, 8)]
    assert training_curve(log, "loss", most=10) == ([10, 20, 40, 50, 60, 70], [1, 2, 4, 5, 6, 7])
    x, y = training_curve(log, "loss", most=3)
    assert x == [20, 50, 70]
    assert y == [1.5, 4.5, 6.5]
    assert training_curve(log, "absent") == ([], [])


def luminance(color):
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a, b):
    dark, light = sorted((luminance(a), luminance(b)))
    return (light + 0.05) / (dark + 0.05)


def blend(over, under, share):
    parts = [round(share * int(over[i : i + 2], 16) + (1 - share) * int(under[i : i + 2], 16)) for i in (1, 3, 5)]
    return "#" + "".join(f"{p:02x}" for p in parts)


def test_the_measure_of_contrast_itself():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("paper", ["light", "dark"])
def test_colours_keep_their_contrast_on_both_papers(paper):
    of = {c.name: getattr(c, paper) for c in theme.ALL}
    for words in (theme.INK, theme.SOFT, theme.ACCENT, theme.GOOD, theme.NOTE, theme.WARNING, theme.BAD):
        assert contrast(of[words.name], of["paper"]) >= 4.5, words.name
        assert contrast(of[words.name], of["panel"]) >= 4.5, words.name
    assert contrast(of["ink"], of["mark"]) >= 4.5
    assert contrast(of["accent"], of["mark"]) >= 3, "the line under a selected token"
    for lines in (theme.AXIS, *theme.SERIES):
        assert contrast(of[lines.name], of["paper"]) >= 3, lines.name
    assert contrast(of["ink"], blend(of["heat"], of["paper"], DARKEST)) >= 4.5, "numbers on the darkest shade"


def test_no_two_colours_are_the_same_in_a_figure():
    drawn = [c.light for c in (*theme.SERIES, theme.INK, theme.SOFT, theme.AXIS, theme.RULE, theme.HEAT, theme.PAPER)]
    assert len(set(drawn)) == len(drawn), "the page tells roles by colour"

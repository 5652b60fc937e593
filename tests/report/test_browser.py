"""The page in a real browser: what people see, point at, tab through, print. One browser serves all of these."""

from __future__ import annotations

import itertools
import os
import shutil

import pytest
from made_results import ARMS, CONFIG, made_highlights, made_logs, made_results

from slmctl.report.page import make_page

CHROMIUM = os.environ.get("SLMCTL_CHROMIUM") or next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (pip install -e '.[dev]')")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome; set SLMCTL_CHROMIUM to one"
)

EVIL = "<img src=http://evil.example/x onerror=window.evil=1><script>window.evil=1</script></script>\u202e\x00"
TOKENS = ["Mary", " has", " 12", " apples", ".\n", EVIL, "\u0301", " שלום", "👩\u200d🔬", "x" * 1_000_000, "\t", " end"]
ODD = "slm <b>&\"' \u202e$x$"

CONTRAST = """() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgba = (color) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => [r, g, b].map((c) => c / 255).map((c) => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [.2126, .7152, .0722][i], 0);
  const paper = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const found = rgba(getComputedStyle(e).backgroundColor);
      if (found[3] > 250) return found;
    }
    return [255, 255, 255, 255];
  };
  const found = {};
  for (const e of document.querySelectorAll('body *')) {
    if (!e.checkVisibility() || ['SCRIPT', 'STYLE', 'title', 'desc'].includes(e.tagName)) continue;
    if (![...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim())) continue;
    const style = getComputedStyle(e);
    const words = rgba(e instanceof SVGElement ? style.fill : style.color), under = paper(e);
    const [dark, bright] = [light(words), light(under)].sort((a, b) => a - b);
    const key = `${e.tagName} ${e.className.baseVal ?? e.className}: ${words} on ${under}`;
    found[key] = (bright + .05) / (dark + .05);
  }
  return found;
}"""

UNNAMED = """() => [...document.querySelectorAll('[role=img], [role=region], [role=listbox], section, figure')]
  .filter((e) => !e.ariaLabel && !(e.getAttribute('aria-labelledby') ?? '').split(' ')
    .every((id) => document.getElementById(id)?.textContent.trim()))
  .map((e) => e.outerHTML.slice(0, 80))"""


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as p:
        launched = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A page with everything, one arm of an odd name, and a text of hostile tokens."""
    arms = {ODD: ARMS["slm"], "clm": ARMS["clm"]}
    results = made_results(arms=arms)
    results["pipeline"] = EVIL
    results["notes"] = [EVIL]
    texts = [TOKENS, [f" word{i}" for i in range(400)]]
    found = make_page(results, made_highlights(list(arms), texts=texts), made_logs(arms, 60), CONFIG + EVIL)
    path = tmp_path_factory.mktemp("page") / "index.html"
    path.write_text(found.html, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def heard():
    return {"console": [], "requests": []}


@pytest.fixture(scope="module")
def tab(browser, file, heard):
    context = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme="light")
    tab = context.new_page()
    tab.on("console", lambda message: heard["console"].append(message.text))
    tab.on("pageerror", lambda error: heard["console"].append(str(error)))
    tab.on("request", lambda request: heard["requests"].append(request.url))
    tab.goto(file.as_uri())
    return tab


@pytest.fixture(scope="module")
def numbers():
    """made_highlights of the page: the first text's tokens."""
    return made_highlights([ODD, "clm"], texts=[TOKENS, [f" word{i}" for i in range(400)]])["documents"]


@pytest.fixture
def page(tab):
    """The tab as it was opened."""
    tab.set_viewport_size({"width": 1280, "height": 900})
    tab.evaluate("document.activeElement.blur(); delete document.documentElement.dataset.theme; scrollTo(0, 0)")
    tab.mouse.move(0, 0)
    return tab


def shown_loss(value):
    return "–" if value is None else f"{value:.3f}".replace("-", "−")


def tooltip(page):
    assert page.locator("#tip").is_visible()
    return " ".join(page.inner_text("#tip").split())


def assert_tells(text, tokens, i, arm):
    """The tooltip has the numbers of token i under `arm`."""
    ref, live = tokens["ref"][i], tokens["live"][arm][i]
    excess = None if ref is None else round(live, 3) - round(ref, 3)
    wanted = f"live loss {shown_loss(live)} reference loss {shown_loss(ref)} excess loss {shown_loss(excess)}"
    assert wanted in text
    assert f"position {i} " in text
    assert ("would be trained on" in text) == bool(tokens["selected"][arm][i])


def test_pointing_at_a_token_tells_its_losses(page, numbers):
    for document, i in ((0, 0), (0, 2), (1, 7), (1, 250)):
        page.locator(".tokens").nth(document).locator("span").nth(i).hover()
        assert_tells(tooltip(page), numbers[document]["tokens"], i, ODD)
    page.mouse.move(0, 0)
    assert page.locator("#tip").is_hidden()


def test_the_keyboard_moves_among_tokens_and_the_tooltip_is_announced(page, numbers):
    text = page.locator(".tokens").nth(1)
    page.locator(".tokens").nth(0).focus()
    page.keyboard.press("Tab")
    assert text.evaluate("e => e === document.activeElement"), "a text is one stop of the Tab key"
    for key, i in (("Home", 0), ("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("End", 399), ("ArrowRight", 399)):
        page.keyboard.press(key)
        assert_tells(tooltip(page), numbers[1]["tokens"], i, ODD)
        active = page.locator(f"#{text.get_attribute('aria-activedescendant')}")
        assert active.inner_text().strip() == f"word{i}"
    page.keyboard.press("Home")
    page.keyboard.press("ArrowDown")
    below = page.locator(f"#{text.get_attribute('aria-activedescendant')}")
    assert below.bounding_box()["y"] > text.locator("span").first.bounding_box()["y"]
    assert page.locator("#tip").get_attribute("aria-live") == "polite"
    page.keyboard.press("Escape")
    assert page.locator("#tip").is_hidden()


def test_the_tooltip_stays_in_the_window(page):
    page.set_viewport_size({"width": 320, "height": 500})
    text = page.locator(".tokens").nth(1)
    for i in (0, 3, 200, 399):
        text.locator("span").nth(i).click()
        box = page.locator("#tip").bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 320
        assert box["y"] >= 0


def test_the_choice_of_an_arm_changes_the_highlighting_and_the_numbers(page, numbers):
    tokens = numbers[1]["tokens"]
    for arm, name in enumerate((ODD, "clm", ODD)):
        page.locator(".choice input").nth(arm % 2).check(force=True)
        kept = page.locator(".tokens").nth(1).evaluate("e => [...e.children].map(t => Number(t.classList.contains('kept')))")
        assert kept == tokens["selected"][name]
        said = page.locator(".tokens").nth(1).evaluate("e => [...e.children].map(t => Number(t.ariaSelected === 'true'))")
        assert said == kept, "what is seen is said too"
        assert f"{sum(kept)} of 400" in page.locator(".share").nth(1).inner_text()
        page.locator(".tokens").nth(1).locator("span").nth(9).hover()
        assert_tells(tooltip(page), tokens, 9, name)


def test_hostile_text_runs_nothing_and_makes_no_element(page):
    assert page.evaluate("window.evil") is None
    assert page.locator("img, main b, .tokens *:not(span)").count() == 0
    shown = page.locator(".tokens").first.locator("span").nth(5).inner_text()
    assert shown.startswith("<img src=http://evil.example/x onerror=window.evil=1><script>")
    assert "⟨U+202E⟩⟨U+0000⟩" in shown
    assert "(999,800 more characters)" in page.locator(".tokens").first.inner_text()
    assert page.locator("h1").inner_text().startswith("<img")
    assert page.title().startswith("<img")


@pytest.mark.parametrize("width", [320, 768, 1280])
def test_the_page_never_scrolls_sideways(page, width):
    page.set_viewport_size({"width": width, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = false)")


def test_both_themes_are_readable_and_the_toggle_changes_them(page):
    seen = {}
    for theme, other in (("light", "Dark theme"), ("dark", "Light theme")):
        assert page.locator("#theme").inner_text() == other
        assert page.evaluate("getComputedStyle(document.documentElement).colorScheme").startswith(theme) or theme == "light"
        seen[theme] = page.evaluate("[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]")
        found = page.evaluate(CONTRAST)
        assert len(found) > 20
        assert not {key: ratio for key, ratio in found.items() if ratio < 4.5}, theme
        page.locator("#theme").click()
    assert set(seen["light"]).isdisjoint(seen["dark"])
    page.evaluate("document.querySelector('.headline').style.color = '#999'")
    assert [k for k, ratio in page.evaluate(CONTRAST).items() if ratio < 4.5], "the measure finds what it is for"
    page.evaluate("document.querySelector('.headline').style.color = ''")


def test_the_theme_follows_the_system_until_it_is_chosen(page):
    page.emulate_media(color_scheme="dark")
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert page.locator("#theme").inner_text() == "Light theme"
    page.emulate_media(color_scheme="light")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != dark
    series = "getComputedStyle(document.querySelector('.drawing path[style*=\"--series-1\"]')).stroke"
    before = page.evaluate(series)
    page.locator("#theme").click()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == dark
    assert page.evaluate(series) != before, "figures take the theme's colours"
    page.locator("#theme").click()


def test_each_details_opens_and_has_a_table_with_numbers(page):
    details = page.locator("details")
    assert details.count() >= 15
    for i in (0, 3, details.count() - 1):
        details.nth(i).locator("summary").click()
        assert details.nth(i).locator("tbody tr").first.is_visible()
        details.nth(i).locator("summary").click()
    assert page.evaluate("[...document.querySelectorAll('details')].every(d => d.querySelector('td')?.textContent.trim())")


def test_landmarks_and_headings_lead_through_the_page(page):
    for landmark in ("banner", "navigation", "main", "contentinfo"):
        assert page.get_by_role(landmark).count() == 1, landmark
    levels = page.evaluate("[...document.querySelectorAll('h1,h2,h3,h4,h5,h6')].map(h => Number(h.tagName[1]))")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels)), "no level is left out on the way down"
    assert page.evaluate(UNNAMED) == []
    first = page.evaluate("document.querySelector('a, button, input, summary, [tabindex]').className")
    assert first == "skip", "the first stop of the Tab key leads past the navigation"
    page.keyboard.press("Tab")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none", "focus is seen"


@pytest.mark.parametrize(("width", "media"), [(360, "screen"), (1280, "screen"), (690, "print")])
def test_the_paragraph_stands_above_the_alarms_and_these_above_the_figures(page, width, media):
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(media=media)
    tops = [page.locator(part).first.bounding_box() for part in (".headline", ".alarms", ".key", "#comparison")]
    assert all(a["y"] + a["height"] <= b["y"] for a, b in itertools.pairwise(tops))
    page.emulate_media(media="screen")


def test_links_of_the_navigation_lead_to_their_sections(page):
    page.emulate_media(reduced_motion="reduce")
    page.locator("nav a", has_text="Costs").click()
    page.wait_for_function("Math.abs(document.querySelector('#costs').getBoundingClientRect().top) < 5")
    page.wait_for_function("document.querySelector('nav a[aria-current]')?.hash === '#costs'")


def test_it_prints_light_whole_and_without_what_a_finger_is_needed_for(page):
    page.locator("#theme").click()
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.locator("nav, button, .choice, details").locator("visible=true").count() == 0
    page.set_viewport_size({"width": 690, "height": 900})  # A4 less its margins
    cut = "[...document.querySelectorAll('.scroll, .tokens, main')].filter(e => e.scrollWidth > e.clientWidth + 1).length"
    assert page.evaluate(cut) == 0
    page.emulate_media(media="screen")
    assert page.pdf(format="A4").startswith(b"%PDF")
    page.locator("#theme").click()


def test_it_reads_without_script_too(browser, file):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(file.as_uri())
    assert page.locator(".tokens .kept").count() > 100
    assert page.locator("#theme, .choice").locator("visible=true").count() == 0
    context.close()


def test_at_the_end_nothing_was_logged_and_nothing_was_asked_of_a_network(tab, file, heard):
    assert heard["console"] == []
    assert set(heard["requests"]) == {file.as_uri()}
    tab.evaluate("fetch('http://localhost:9/').catch(() => 0)")
    assert any("Content Security Policy" in message for message in heard["console"]), "what is heard is heard"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_the_first_arms_figures_are_seen_without_scrolling(browser, file, scheme):
    context = browser.new_context(viewport={"width": 390, "height": 844}, color_scheme=scheme)
    page = context.new_page()
    page.goto(file.as_uri())
    table = page.locator("#comparison table")
    heads = table.locator("thead th")
    assert heads.count() == 4
    assert [h.strip() for h in heads.all_inner_texts()][-2:] == ["base", "reference"]
    for i in range(2):
        box = heads.nth(i).bounding_box()
        assert box["x"] + box["width"] <= 390, "both arms, beside the name of the row"
    context.close()

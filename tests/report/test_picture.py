"""The script that makes the README's picture of a report, and the picture."""

from __future__ import annotations

import importlib.util
import io
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from made_results import CONFIG, made_highlights, made_logs, made_results
from PIL import Image

from slmctl.report.page import make_page

DOCS = Path(__file__).parents[2] / "docs"
MOST_BYTES = 150_000
pytest.importorskip("playwright.sync_api", reason="playwright is not installed (pip install -e '.[dev]')")
needs_browser = pytest.mark.skipif(
    not (os.environ.get("SLMCTL_CHROMIUM") or any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome")))),
    reason="no chromium, chromium-browser or google-chrome; set SLMCTL_CHROMIUM to one",
)


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("picture", DOCS / "picture.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@needs_browser
def test_a_report_becomes_a_picture_of_few_colours(script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "report").mkdir()
    page = make_page(made_results(), made_highlights(), made_logs(), CONFIG).html
    (tmp_path / "report" / "index.html").write_text(page, encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["picture.py", str(tmp_path), str(tmp_path / "report.png")])
    script.main()
    with Image.open(tmp_path / "report.png") as picture:
        assert (picture.mode, picture.width, picture.getpixel((0, 0)) is not None) == ("P", script.WIDTH, True)
        assert 700 < picture.height < 4000, "below each other, or cut off"
        assert len(picture.getcolors() or []) <= script.COLORS


@needs_browser
def test_a_page_without_what_is_shown_is_refused(script: Any, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("<section id=summary></section>")
    with pytest.raises(SystemExit, match="has no #curves, #comparison"):
        script.photograph(tmp_path / "index.html")


def test_colours_that_are_few_stay_as_they_are(script: Any) -> None:
    drawn = Image.new("RGB", (40, 40), (250, 250, 250))
    drawn.paste((12, 34, 56), (10, 10, 30, 30))
    stream = io.BytesIO()
    drawn.save(stream, "PNG")
    assert script.in_few_colors(stream.getvalue()).convert("RGB").tobytes() == drawn.tobytes()


def test_the_readmes_picture_is_of_the_scripts_width_and_light_in_bytes(script: Any) -> None:
    assert (DOCS / "report.png").stat().st_size < MOST_BYTES
    with Image.open(DOCS / "report.png") as picture:
        assert picture.width == script.WIDTH

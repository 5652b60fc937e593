"""The README's picture: verdict, curves and table of a run's report, as a browser shows them on a desktop, in few bytes.

    slmctl demo && python docs/picture.py runs/demo

It needs playwright and a Chromium that is installed already, as the tests of the report do (`SLMCTL_CHROMIUM` names one).
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

WIDTH, COLORS = 1700, 64
"""Pixels, and entries of the picture's palette: the page has few colours, and text keeps its smooth edges."""
PARTS = ("#summary", "#curves", "#comparison")
SIDE_BY_SIDE = """
  nav, footer, #theme, details, .intro, .note:not(li), figcaption,
  main > section:not(#summary, #curves, #comparison) { display: none !important; }
  .top, .page { display: block; max-width: none; }
  .top { padding-bottom: 0; }
  main { display: grid; grid-template: auto 1fr / 43.5rem minmax(0, 1fr); gap: 0 3rem; }
  #summary { grid-row: 1 / 3; padding-bottom: 1.5rem; }
  main > #curves { grid-area: 1 / 2; padding-top: 0; }
  main > #comparison { grid-area: 2 / 2; padding: 2rem 0 1.5rem; }
"""
"""Verdict on the left, held-out curves and the table of figures on the right; the page has them below each other, with more
between them."""


def find_chromium() -> str:
    names = ("chromium", "chromium-browser", "google-chrome")
    found = os.environ.get("SLMCTL_CHROMIUM") or next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        raise SystemExit(f"no {', '.join(names[:-1])} or {names[-1]} is here; set SLMCTL_CHROMIUM to one.")
    return found


def photograph(page: Path) -> bytes:
    """PNG of the page's first parts, side by side, in the light theme. Ends the process where the page has not all of them."""
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=find_chromium(), args=["--no-sandbox"])
        tab = browser.new_context(viewport={"width": WIDTH, "height": 600}, color_scheme="light").new_page()
        tab.goto(page.resolve().as_uri())
        if absent := [part for part in PARTS if not tab.locator(part).count()]:
            raise SystemExit(f"{page} has no {', '.join(absent)}: its run was not evaluated, or was not trained.")
        tab.add_style_tag(content=SIDE_BY_SIDE)
        taken: bytes = tab.screenshot(full_page=True)
        browser.close()
    return taken


def in_few_colors(png: bytes) -> Image.Image:
    return Image.open(io.BytesIO(png)).convert("RGB").quantize(COLORS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("run", type=Path, help="the output_dir of a run that has a report")
    parser.add_argument("picture", type=Path, nargs="?", default=Path(__file__).with_name("report.png"))
    given = parser.parse_args()
    page = given.run / "report" / "index.html"
    if not page.is_file():
        raise SystemExit(f"{page} does not exist. Run `slmctl report` on its configuration first.")
    picture = in_few_colors(photograph(page))
    picture.save(given.picture, optimize=True)
    print(f"{given.picture}: {picture.width} x {picture.height}, {given.picture.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()

"""Fixtures of the report's tests."""

from __future__ import annotations

import pytest

from slmctl.report.blocks import Figure
from slmctl.report.plots import canvas, dots, grid, lines, svg

EMPTY = f'<svg xmlns="{svg.SVG}" viewBox="0 0 1 1" />'


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages whose figures have their titles, descriptions, captions and tables around an empty drawing. To paint them takes nine
    tenths of a page's time; for tests of what a page says beside its drawings."""

    def drawn(name, title, caption, table, _paint, width=canvas.WIDTH, height=canvas.HEIGHT):  # noqa: ARG001
        inline, alone = (make(EMPTY, f"figure-{name}", title, caption) for make in (svg.inline, svg.standalone))
        return Figure(name, title, caption, inline, alone, table, width, wide=width > 1.5 * canvas.WIDTH)

    for module in (dots, grid, lines):
        monkeypatch.setattr(module, "drawn", drawn)

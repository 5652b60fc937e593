"""The page: sections, templates, style and script put together into one file that asks nothing of a network."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from slmctl.report import theme
from slmctl.report.blocks import Figure, Section, as_cell
from slmctl.report.config_text import shown_config
from slmctl.report.facts import Facts, items_of
from slmctl.report.highlights import highlights
from slmctl.report.safe_text import visible
from slmctl.report.sections import comparison, costs, curves, dynamics, selection, summary, tasks
from slmctl.report.sections import provenance as made
from slmctl.report.sections import seeds_and_sweeps as repeats

SECTIONS = (
    comparison.comparison,
    comparison.differences,
    tasks.tasks,
    curves.heldout_curves,
    costs.costs,
    selection.selection,
    curves.training_curves,
    dynamics.dynamics,
    dynamics.diagnostics,
    repeats.repeats,
    made.made,
)
"""In the order of the page: what was found, what it cost, why."""


@dataclass(frozen=True)
class Page:
    html: str
    figures: dict[str, str]
    """File name to the text of each figure as a file of its own."""


def make_page(
    results: dict[str, Any],
    highlighted: dict[str, Any] | None = None,
    logs: dict[str, list[dict[str, Any]]] | None = None,
    config: str = "",
    notes: Sequence[str] = (),
) -> Page:
    """The report of `results` (results.json, schema 2). `highlighted` is highlights.json, `logs` each arm's metrics.jsonl,
    `config` the resolved YAML; `notes` go below those of the results. What is absent is left out of the page.
    """
    facts = Facts(results, logs or {})
    found = [s for make in SECTIONS if (s := make(facts)) is not None]
    text = highlights(highlighted, facts.main)
    package = files("slmctl.report") / "assets"
    style, script = ((package / name).read_text(encoding="utf-8") for name in ("style.css", "script.js"))
    html = (
        _environment()
        .get_template("page.html.j2")
        .render(
            facts=facts,
            name=results.get("pipeline", "pipeline"),
            alarms=summary.alarms(facts),
            headline=summary.headline(facts),
            key_figures=summary.key_figures(facts),
            sections=found,
            text=text,
            stand_in=facts.stand_in(text.data["arms"]) if text else "",
            config=shown_config(config),
            versions=items_of(results, "versions"),
            notes=list(dict.fromkeys([*facts.notes, *notes])),
            colors=theme.ALL,
            style=Markup(style),
            script=Markup(script),
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        )
    )
    figures = {f"{b.name}.svg": b.standalone for s in found for b in s.blocks if isinstance(b, Figure)}
    return Page(html, figures)


def _environment() -> Environment:
    env = Environment(
        loader=PackageLoader("slmctl.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    env.filters["shown"] = lambda text: visible(text, 500)
    env.filters["brief"] = lambda text: visible(text, 120)
    env.filters["cell"] = as_cell
    env.filters["lines"] = lambda text: "\n".join(visible(line, 2000) for line in str(text).splitlines())
    env.filters["drawing"] = Markup  # serialised by an XML library, with its text escaped
    env.filters["outline"] = _outline
    return env


def _outline(sections: Sequence[Section], text: object) -> list[tuple[str, str]]:
    """(id, title) of all that the navigation leads to."""
    found = [("summary", "Summary"), *[(s.id, s.title) for s in sections]]
    return [*found, *([("text", "Highlighted text")] if text else []), ("about", "Configuration and notes")]

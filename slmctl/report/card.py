"""A model card: the README.md of a model directory, as the Hugging Face Hub reads it."""

from __future__ import annotations

import shlex
from functools import cache
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from slmctl.config.selection import is_control, reads_scores
from slmctl.report.card_facts import CardFacts
from slmctl.report.card_tables import (
    cost_rows,
    criterion_of,
    difference_rows,
    known,
    leak_lines,
    loss_rows,
    over_seeds,
    reached,
    task_rows,
)
from slmctl.report.facts import ROLLING, has_rolling
from slmctl.report.markdown_text import Markdown, argument, fenced, hub_id, markdown, one_line, place_name
from slmctl.report.numbers import NONE
from slmctl.selection.table import CRITERIA

_SHOWN_SETTINGS = {
    "lr": "peak learning rate",
    "schedule": "schedule",
    "warmup": "warm-up",
    "min_lr_ratio": "final share of the learning rate",
    "batch_tokens": "tokens a step",
    "weight_decay": "weight decay",
    "betas": "betas",
    "grad_clip": "gradient clipping",
    "precision": "precision",
}


def model_card(facts: CardFacts) -> str:
    """The card as Markdown below YAML. Text of the user is shown as it is, and of local absolute paths only the last name."""
    body = _environment().get_template("card.md.j2").render(
        facts=facts,
        what=_what(facts),
        training=_training(facts),
        costs=cost_rows(facts),
        losses=loss_rows(facts),
        rolling=ROLLING if has_rolling(facts.get("models")) else None,
        leaks=leak_lines(facts),
        level=f"{100 * facts.get('level', 0.95):g}%",
        tasks=task_rows(facts),
        reached=reached(facts),
        differences=difference_rows(facts),
        seeds=over_seeds(facts),
        command=fenced(shlex.join(argument(a) for a in _command(facts))) if facts.get("command") else None,
        versions=", ".join(f"{n} {v}" for n, v in facts.get("versions", {}).items() if v),
    )  # fmt: skip
    head = yaml.safe_dump(front_matter(facts), sort_keys=False, allow_unicode=True, width=10**6)
    return f"---\n{head}---\n\n{body.strip()}\n"


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("slmctl.report"),
        finalize=markdown,  # whatever is put in is escaped, unless it is `Markdown`
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # of HTML, which this is not
    )
    environment.filters["raw"] = Markdown
    environment.filters["dashes"] = lambda rows: any(NONE in row for row in rows)
    return environment


# --- front matter ---


def front_matter(facts: CardFacts) -> dict[str, Any]:
    """What the Hub indexes. No licence and no language: slmctl knows neither."""
    found: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    if base := hub_id(facts.get("base")):
        found |= {"base_model": base, "base_model_relation": "finetune"}
    criterion = criterion_of(facts)
    tags = [
        "selective-language-modeling",
        "slmctl",
        {"arm": criterion, "reference": "reference-model"}.get(facts["kind"], "base-model"),
    ]
    found["tags"] = list(dict.fromkeys(one_line(t).replace("_", "-") for t in tags))
    if datasets := dict.fromkeys(h["id"] for d in facts.get("data", []) for h in d.get("hub", []) if hub_id(h["id"])):
        found["datasets"] = list(datasets)
    if results := _index(facts):
        found["model-index"] = [{"name": one_line(f"{facts['pipeline']}-{facts['name']}"), "results": results}]
    return found


def _index(facts: CardFacts) -> list[dict[str, Any]]:
    """Results in the Hub's schema: one for each held-out set and task."""
    own = facts.get("models", {}).get(facts["name"], {})
    results = []
    for name, found in own.get("heldout", {}).items():
        values = {"loss": "nats a token", "perplexity": "perplexity a token", "bits_per_byte": "bits per byte"}
        metrics = [{"type": k, "name": text, "value": float(found[k])} for k, text in values.items() if known(found.get(k))]
        results.append({"task": dict(_TASK), "dataset": _dataset(facts, name), "metrics": metrics})
    for name, found in own.get("tasks", {}).items():
        metric = one_line(found.get("metric") or "accuracy")
        shots = f", {found['shots']}-shot" if found.get("shots") is not None else ""
        values_of = found.get("accuracy")
        metrics = [{"type": metric, "name": metric + shots, "value": float(values_of)}] if known(values_of) else []
        results.append({"task": dict(_TASK), "dataset": {"type": one_line(name), "name": one_line(name)}, "metrics": metrics})
    return [r for r in results if r["metrics"]]


_TASK = {"type": "text-generation", "name": "Text generation"}


def _dataset(facts: CardFacts, name: str) -> dict[str, Any]:
    hub = facts.get("heldout_data", {}).get(name, [])
    if len(hub) == 1 and hub_id(hub[0]["id"]):
        given = {k: one_line(hub[0][k]) for k in ("config", "split", "revision") if hub[0].get(k)}
        return {"type": hub[0]["id"], "name": one_line(name), **given}
    return {"type": one_line(name), "name": one_line(name)}


# --- sections ---


def _what(facts: CardFacts) -> dict[str, Any]:
    """The first paragraph's words."""
    base = facts.get("base")
    own = "random weights" if facts["kind"] == "base" else "this pipeline's base model, which was made from random weights"
    start = own if base is None else place_name(base)
    if facts.get("base_revision"):
        start += f" (revision {facts['base_revision']})"
    scorer = facts.get("scored_by")
    return {
        "start": start,
        "selection": selection_words(facts.get("selection")),
        "reference": place_name(scorer) if scorer else None,
        "is_control": facts["kind"] == "arm" and is_control(facts.get("selection") or {}),
        "needs_reference": facts["kind"] == "arm" and reads_scores(facts.get("selection") or {}),
    }


def selection_words(selection: dict[str, Any] | None) -> str:
    """How tokens were chosen, as the end of 'It was trained on …' (Eq. 3 and 4 of arXiv 2404.07965)."""
    criterion = (selection or {}).get("criterion", "all")
    if selection is None or criterion == "all":
        return "all tokens: plain language modelling"
    ratio = selection.get("ratio")
    share = "some" if ratio is None else f"{100 * ratio:g}%"
    if criterion == "random":
        return f"a random {share} of the tokens"
    rows = selection.get("group_rows")
    among = {
        "global": "each micro-batch's tokens",
        "threshold": "recent steps' tokens, by a running quantile,",
    }.get(selection.get("scope", "group"), f"the tokens of each {rows} rows" if rows else "the tokens of each group of rows")
    entry = CRITERIA.get(criterion)
    weights = _weights_words(selection)
    if criterion == "excess_loss":
        score = "excess loss (this model's loss minus the reference model's) is highest"
    elif entry is not None and entry.composed:
        parts = ", ".join(_part_words(p, criterion) for p in selection.get("parts") or [])
        return f"{entry.says} ({parts}), among {among}{weights}"
    elif entry is not None and entry.mask is not None:
        return f"{entry.says}, among {among}{weights}"
    elif entry is not None:
        score = f"score is highest: {entry.says} ({entry.formula})"
    else:
        score = f"score by {criterion} is best"
    return f"the {share} of {among} whose {score}{weights}"


def _part_words(part: dict[str, Any], within: str) -> str:
    if within == "blend":
        return f"{part.get('weight', 1.0):+g} {part['criterion']}"
    return f"{part['criterion']} {100 * part.get('ratio', 1.0):g}%"


def _weights_words(selection: dict[str, Any]) -> str:
    """What is said of weights in place of a mask."""
    found = ""
    if (soft := selection.get("weighting")) is not None:
        at = "" if soft["soft"] == "score" else f" at temperature {soft['temperature']:g}"
        found += f", with soft weights ({soft['soft']}{at}) in place of a mask"
    if rest := selection.get("unselected_weight"):
        found += f"; the others with a weight of {rest:g}"
    return found


def _training(facts: CardFacts) -> list[tuple[str, Any]]:
    """Label and value of each line on how it was trained."""
    settings, seen = facts.get("settings", {}), facts.get("tokens_seen")
    lines: list[tuple[str, Any]] = []
    for data in facts.get("data", []):
        lines.append((data["role"], ", ".join(place_name(s) for s in data["sources"])))
    if seen is not None:
        selected = facts.get("tokens_selected")
        part = f", trained on {selected:,} ({selected / seen:.1%})" if selected is not None and seen else ""
        lines.append(("tokens", f"{seen:,} seen{part}"))
    if facts.get("steps") is not None:
        lines.append(("steps", f"{facts['steps']:,}"))
    if facts["kind"] == "arm":
        chosen = facts.get("selection") or {}
        keys = ("criterion", "ratio", "group_rows", "scope")
        lines += [(f"selection {k}", chosen[k]) for k in keys if chosen.get(k) is not None and _matters(k, chosen)]
        if (schedule := chosen.get("schedule")) is not None:
            lines.append(("selection schedule", ", ".join(f"{k} {v}" for k, v in schedule.items())))
    if facts.get("parameters") is not None:
        lines.append(("parameters", f"{facts['parameters']:,}"))
    if facts.get("epochs") is not None:
        lines.append(("epochs of the corpus", f"{facts['epochs']:.3g}"))
    lines += [(label, _setting(settings[k])) for k, label in _SHOWN_SETTINGS.items() if settings.get(k) is not None]
    if facts.get("seq_len") is not None:
        restart = ", attention restarts at each document" if facts.get("intra_document_mask") else ""
        lines.append(("row length", f"{facts['seq_len']:,} tokens{restart}"))
    if "bos" in facts:
        begun = "document" if facts.get("intra_document_mask") else "row"
        none = "none: rows began with a text's own tokens"
        lines.append(("beginning-of-sequence token", f"{facts['bos']} before each {begun}" if facts["bos"] else none))
    share = (facts.get("gradient") or {}).get("clipped_share")
    lines += [("steps whose gradient was clipped", f"{share:.1%}")] if share is not None else []
    lines += [("seed", facts["seed"])] if facts.get("seed") is not None else []
    lines += [("hardware", facts["hardware"])] if facts.get("hardware") else []
    return lines


def _setting(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_setting, value))
    return format(value, ",") if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _matters(key: str, selection: dict[str, Any]) -> bool:
    """Whether a setting of the selection decides anything."""
    return key == "criterion" or selection.get("criterion") != "all"


def _command(facts: CardFacts) -> list[str]:
    program, *arguments = facts["command"]
    name = place_name(program)
    return ["slmctl" if name in ("__main__.py", "slmctl", "-m", "-c") else name, *arguments]

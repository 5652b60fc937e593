"""The tables and figures of a model card, as rows of cells and as sentences."""

from __future__ import annotations

import math
from typing import Any

from slmctl.comparison.crossings_in_words import ends_of, of_seeds, seeds_headline, span_of_times
from slmctl.config.selection import reads_scores
from slmctl.report import numbers as n
from slmctl.report.card_facts import CardFacts
from slmctl.report.facts import Facts, dig, extreme, has_rolling
from slmctl.report.markdown_text import Markdown, markdown


def criterion_of(facts: CardFacts) -> str:
    return str((facts.get("selection") or {}).get("criterion", "all"))


def cost_rows(facts: CardFacts) -> list[list[Any]]:
    """Rows of tokens, FLOPs and seconds: this model's, and what selection needs besides."""
    rows = []
    if facts.get("tokens_seen") is not None:
        own = [_count(facts["tokens_seen"]), _flops(facts.get("flops")), _seconds(facts.get("training_seconds"))]
        rows.append(["training this model", *own])
    if facts["kind"] != "arm" or not reads_scores(facts.get("selection") or {}):
        return rows
    costs, name = facts.get("costs", {}), (facts.get("selection") or {}).get("reference")
    if not facts.get("scored_by") and costs.get("reference_tokens") is not None:
        row = [_count(costs["reference_tokens"]), _flops(costs.get("reference_flops")), _seconds(facts.get("reference_seconds"))]
        rows.append(["training the reference model", *row])
    scored = costs.get("scored_tokens") or {}
    name = name if name in scored else next(iter(scored), None)
    if name is not None:
        rows.append(
            ["scoring the corpus", _count(scored[name]), _flops((costs.get("scoring_flops") or {}).get(name)), _seconds(None)]
        )
    return rows


def _shown_models(facts: CardFacts) -> list[str]:
    """This model first, then its controls and the base."""
    models, own = facts.get("models", {}), facts["name"]
    beside = [*facts.get("controls", []), "base"] if facts["kind"] != "base" else []
    return [n for n in dict.fromkeys([own, *beside]) if n in models]


def _label(facts: CardFacts, name: str) -> Markdown:
    text = markdown(name)
    if name == facts["name"]:
        return Markdown(f"**{text}**")
    return Markdown(f"{text} (control)") if name in facts.get("controls", []) else Markdown(text)


def loss_rows(facts: CardFacts) -> list[list[Any]]:
    """Rows: held-out set, model, loss, interval, bits per byte, with `has_rolling` also rolling, perplexity; the target first."""
    models = facts.get("models", {})
    if facts["name"] not in models:
        return []
    rows = []
    for heldout in sorted(models[facts["name"]].get("heldout", {}), key=lambda n: n != facts.get("target")):
        target = Markdown(f"{markdown(heldout)} (target)") if heldout == facts.get("target") else heldout
        for name in _shown_models(facts):
            found = models[name].get("heldout", {}).get(heldout, {})
            figures = [_figure(found.get("loss"), ".4f"), _interval(found.get("interval"))]
            figures.append(_figure(found.get("bits_per_byte"), ".4f"))
            rolling = dig(models[name], "rolling", heldout, "bits_per_byte")
            figures += [_figure(rolling, ".4f")] if has_rolling(models) else []
            figures.append(_figure(found.get("perplexity"), ".4g"))
            rows.append([target, _label(facts, name), *figures])
    return rows


def leak_lines(facts: CardFacts) -> list[str]:
    """Of each held-out set that the card shows, what is known of its documents standing in the text that models learn from."""
    sets = list(facts.get("models", {}).get(facts["name"], {}).get("heldout", {}))
    told = Facts({"contamination": facts.get("contamination") or {}})
    return [f"{name}: {told.leaks(name)}." for name in sets]


def task_rows(facts: CardFacts) -> list[list[Any]]:
    """Rows: task, model, accuracy with its standard error, items, shots."""
    models = facts.get("models", {})
    rows = []
    for task in models.get(facts["name"], {}).get("tasks", {}):
        for name in _shown_models(facts):
            found = models[name].get("tasks", {}).get(task, {})
            error = f" ± {found['standard_error']:.3f}" if known(found.get("standard_error")) else ""
            error = f" ({extreme(found)})" if extreme(found) else error
            accuracy = Markdown(_figure(found.get("accuracy"), ".3f") + error)
            rows.append([task, _label(facts, name), accuracy, _count(found.get("items")), _count(found.get("shots"))])
    return rows


def reached(facts: CardFacts) -> str | None:
    """Tokens until the control's final loss, in words."""
    control = facts.get("control")
    if not control or control.get("arm") in (None, facts["name"]):
        return None
    return " ".join(s for s in (_reached(control), _reached_over_seeds(facts)) if s)


def _reached_over_seeds(facts: CardFacts) -> str:
    over = seeds_headline({"seeds": facts.get("seeds", [])}, facts["name"])
    if not over:
        return ""
    if not known(over.get("tokens_to_reach")):
        return f"Over {of_seeds(over)}, the mean loss did not reach the mean of the control's."
    fewer, ends = n.fewer(over.get("times_fewer_tokens"), " times"), span_of_times(ends_of(over, "times_fewer_tokens"))
    words = f"Over {of_seeds(over)}, the mean loss reached the mean of the control's after {over['tokens_to_reach']:,.0f} tokens"
    return f"{words}, {fewer}" + (f" (interval over seeds and documents: {ends})." if ends else ".")


def _reached(control: dict[str, Any]) -> str:
    seen = control.get("tokens_to_reach")
    if seen is None and control.get("why"):
        return f"How soon it came down to the final target loss of the control {control['arm']} is not judged: {control['why']}."
    if seen is None:
        return f"It did not reach the final target loss of the control {control['arm']}."
    fewer, flops = (n.fewer(control.get(f"times_fewer_{key}"), " times") for key in ("tokens", "flops_all"))
    words = f"It reached the final target loss of the control {control['arm']} after {seen:,.0f} tokens"
    words += f" (the control itself first after {control['control_tokens']:,.0f})" if known(control.get("control_tokens")) else ""
    spans = [span_of_times(ends_of(control, f"times_fewer_{key}")) for key in ("tokens", "flops_all")]
    of_tokens, of_flops = (f" (interval over documents: {s})" if s else "" for s in spans)
    words += f", {fewer}{of_tokens}" if fewer != n.NONE else ""
    if flops == n.NONE:
        return f"{words}."
    return f"{words}. With the reference's training and scoring it took {flops} FLOPs{of_flops}."


def difference_rows(facts: CardFacts) -> list[list[Any]]:
    """Rows: set, another model, this model's loss minus the other's, interval, documents."""
    rows = []
    for d in facts.get("differences", []):
        if facts["name"] not in (d.get("a"), d.get("b")) or not known(d.get("difference")):
            continue
        sign = 1 if d["a"] == facts["name"] else -1
        ends = d.get("interval")
        ends = sorted(sign * e for e in ends) if ends else None
        other = d["b"] if sign == 1 else d["a"]
        rows.append(
            [d["set"], other, _figure(sign * d["difference"], "+.4f"), _interval(ends, "+.4f"), _count(d.get("documents"))]
        )
    return rows


def over_seeds(facts: CardFacts) -> str | None:
    """Mean and spread over seeds, where there are several."""
    for group in facts.get("seeds", []):
        loss = group.get("target_loss") or {}
        if facts["name"] in (group.get("arm"), *group.get("arms", [])) and (loss.get("n") or 0) > 1 and known(loss.get("sd")):
            return f"{loss['mean']:.4f} ± {loss['sd']:.4f} (standard deviation, {loss['n']} seeds)"
    return None


# --- numbers, which need no escaping ---


def _figure(value: Any, form: str) -> Markdown:
    return Markdown(n.signs(format(value, form)) if known(value) else n.NONE)


def _interval(ends: Any, form: str = ".4f") -> Markdown:
    if not ends or not all(map(known, ends)):
        return Markdown(n.NONE)
    return Markdown(" to ".join(n.signs(format(end, form)) for end in ends))


def _count(n: Any) -> Markdown:
    return _figure(n, ",.0f")


def _flops(n: Any) -> Markdown:
    return _figure(n, ".3g")


def _seconds(n: Any) -> Markdown:
    return _figure(n, ",.0f")


def known(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)

"""What a model card says: its facts, gathered from a pipeline's configuration, logs and results, all as plain data."""

from __future__ import annotations

from typing import Any, Literal, Required, TypedDict

from slmctl.comparison.crossings_in_words import headline_of
from slmctl.config.score import OWN_MODELS
from slmctl.config.selection import is_control, reads_scores, sets_read
from slmctl.report.markdown_text import hub_id


class DataFacts(TypedDict, total=False):
    role: Required[str]
    """`corpus` or `curated`, or whatever else says what the text is."""
    sources: Required[list[str]]
    """Files, patterns, URLs or Hub ids."""
    hub: list[dict[str, Any]]
    """Of those on the Hub: `id`, and `config`, `split` and `revision` where given."""


class CardFacts(TypedDict, total=False):
    """All that a card says. What is absent, null or empty is left out of it."""

    pipeline: Required[str]
    name: Required[str]
    """`base`, `reference` or the arm's name."""
    kind: Required[Literal["base", "reference", "arm"]]
    base: str | None
    """Path or Hub id of the model that training began from; null: random weights."""
    base_revision: str | None
    selection: dict[str, Any] | None
    """As in results.json: `criterion`, `ratio`, `group_rows`, `scope`, `reference`. Null: all tokens."""
    scored_by: str | None
    """Path or Hub id of the model that scored the corpus, where it is not the pipeline's own reference."""
    data: list[DataFacts]
    """What it was trained on."""
    heldout_data: dict[str, list[dict[str, Any]]]
    """Held-out sets' Hub sources, as `DataFacts.hub`."""
    settings: dict[str, Any]
    """Training settings (TrainingConfig)."""
    seq_len: int
    intra_document_mask: bool
    bos: str | None
    """The beginning-of-sequence token that each row, or each document of it, began with; null: none."""
    seed: int
    steps: int
    tokens_seen: int
    tokens_selected: int
    parameters: int | None
    epochs: float | None
    """Of the corpus."""
    gradient: dict[str, Any] | None
    """As in results.json `arms.NAME.gradient`."""
    contamination: dict[str, Any]
    """As in results.json."""
    training_seconds: float
    reference_seconds: float
    """Of training the reference model, on all ranks at once."""
    flops: float
    """Of training this model."""
    costs: dict[str, Any]
    """As in results.json."""
    models: dict[str, dict[str, Any]]
    """As in results.json: this model and those that it is shown beside."""
    controls: list[str]
    """Which of `models` are controls."""
    target: str
    level: float
    control: dict[str, Any] | None
    """As in results.json `arms.NAME.control`."""
    differences: list[dict[str, Any]]
    """As in results.json."""
    seeds: list[dict[str, Any]]
    """As in results.json."""
    command: list[str]
    config_fingerprint: str | None
    versions: dict[str, str | None]
    hardware: str | None


def card_facts(
    name: str,
    config: dict[str, Any],
    metrics: list[dict[str, Any]] | None = None,
    environments: list[dict[str, Any]] | None = None,
    results: dict[str, Any] | None = None,
    reference_metrics: list[dict[str, Any]] | None = None,
    flops: float | None = None,
    bos: str | None = None,
    fingerprint: str | None = None,
) -> CardFacts:
    """Facts of the card of `name`: `base` (one that was made from scratch), `reference` or an arm.

    `config` is `PipelineConfig.model_dump(mode="json")` (or config.resolved.yaml), `metrics` and `environments` are the
    records of the run's metrics.jsonl and environment.jsonl, `results` is results.json (schema 2), where there is one yet.
    `reference_metrics` are those of the pipeline's reference, `flops` the operations of this model's training by its shape,
    `bos` the token that its rows began with, `fingerprint` that of the configuration. What results.json says of an arm, which
    is what it was trained as, goes before what the configuration says now.
    """
    results = results or {}
    kind = name if name in ("base", "reference") else "arm"
    arm = results.get("arms", {}).get(name, {}) if kind == "arm" else {}
    taken = {"precision": environments[-1]["precision"]} if environments and environments[-1].get("precision") else {}
    settings = {**_settings(config, name), **taken, **(arm.get("settings") or {})}
    selection = (arm.get("selection") or settings.get("selection")) if kind == "arm" else None
    facts: dict[str, Any] = {
        "pipeline": config["name"],
        "name": name,
        "kind": kind,
        "base": config["model"].get("path") if kind != "base" else None,
        "base_revision": config["model"].get("revision") if kind != "base" else None,
        "selection": selection,
        "scored_by": _scorer(config, selection),
        "data": _data(config, name, selection),
        "heldout_data": {n: _hub(sources) for n, sources in config["data"]["heldout"].items()},
        "settings": settings,
        "seq_len": config["data"]["seq_len"],
        "intra_document_mask": config["data"]["intra_document_mask"],
        "bos": bos,
        "seed": arm.get("seed", settings.get("seed") if settings.get("seed") is not None else config["seed"]),
        "flops": flops,
        **_measured(metrics or [], arm),
        "reference_seconds": _seconds(reference_metrics or []),
        "parameters": results.get("models", {}).get(name, {}).get("parameters"),
        "epochs": arm.get("epochs"),
        "gradient": arm.get("gradient"),
        "contamination": results.get("contamination") or {},
        "costs": results.get("costs", {}),
        "models": results.get("models", {}),
        "controls": [n for n, a in results.get("arms", {}).items() if is_control(a["selection"]) and n != name],
        "target": results.get("target", config["eval"]["target"]),
        "level": results.get("level", config["eval"].get("level", 0.95)),
        "control": headline_of(arm.get("control")) or None,
        "differences": results.get("differences", []),
        "seeds": results.get("seeds", []),
        "config_fingerprint": fingerprint,
        **_made_by((environments or [{}])[-1]),
    }
    return facts  # type: ignore[return-value]


def _settings(config: dict[str, Any], name: str) -> dict[str, Any]:
    if name == "base":
        return ((config["model"].get("scratch") or {}).get("train")) or {}
    found: dict[str, Any] = config["reference"] if name == "reference" else config["pretrain"]["arms"][name]
    return found


def _scorer(config: dict[str, Any], selection: dict[str, Any] | None) -> str | None:
    """The model behind the scores that an arm selects by, where it is another than the pipeline's reference."""
    references = config["score"]["references"]
    if selection is None or not (read := sets_read(selection, references)):
        return None
    given = references.get(read[-1])
    path = given.get("path") if isinstance(given, dict) else given
    return None if path in OWN_MODELS else path


def _data(config: dict[str, Any], name: str, selection: dict[str, Any] | None) -> list[DataFacts]:
    data = config["data"]
    if name != "reference":
        found = [_sources("corpus", data["corpus"])]
        if selection is not None and reads_scores(selection) and _scorer(config, selection) is None:
            found.append(_sources("curated text, which the reference model learnt from", data["curated"]))
        return found
    mix = config["reference"].get("mix") or 0.0
    found = [_sources("curated text", data["curated"])]
    return [*found, _sources(f"corpus ({100 * mix:g}% of the rows)", data["corpus"])] if mix else found


def _sources(role: str, sources: list[dict[str, Any]]) -> DataFacts:
    names = [n for s in sources for n in ([s["hub"]] if s.get("hub") else s.get("path") or [])]
    return {"role": role, "sources": names, "hub": _hub(sources)}


def _hub(sources: list[dict[str, Any]]) -> list[dict[str, Any]]:
    keys = {"config": "hub_config", "split": "split", "revision": "revision"}
    return [{"id": s["hub"], **{k: s.get(v) for k, v in keys.items()}} for s in sources if hub_id(s.get("hub"))]


def _measured(metrics: list[dict[str, Any]], arm: dict[str, Any]) -> dict[str, Any]:
    """Steps, tokens and seconds, by results.json or by the run's log."""
    found: dict[str, Any] = {}
    if metrics:
        last = metrics[-1]
        found = {"steps": last["step"], "tokens_seen": last["tokens_seen"], "tokens_selected": last["tokens_selected"]}
        found["training_seconds"] = _seconds(metrics)
    keys = ("steps", "tokens_seen", "tokens_selected", "training_seconds", "flops")
    return {**found, **{k: arm[k] for k in keys if arm.get(k) is not None}}


def _seconds(metrics: list[dict[str, Any]]) -> float | None:
    """Of all steps; None where the log does not tell."""
    known = [m["seconds"] for m in metrics if m.get("seconds") is not None]
    return sum(known) if known else None


def _made_by(environment: dict[str, Any]) -> dict[str, Any]:
    gpu, ranks = (environment.get("gpu") or {}).get("name"), environment.get("ranks")
    hardware = (f"{ranks} x {gpu}" if ranks and ranks > 1 else gpu) if gpu else None
    return {"command": environment.get("command") or [], "versions": environment.get("versions") or {}, "hardware": hardware}

"""demo: the embedded default pipeline on generated data, and the share of known noise that each arm trained on."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import pyarrow.parquet as pq
from rich.table import Table

from slmctl.config.file import check
from slmctl.config.yaml import apply_overrides, parse_yaml
from slmctl.corpus.demo_data import is_noise, write_demo_data
from slmctl.corpus.tokenizer import Tokenizer
from slmctl.stages.report import report
from slmctl.stages.run import run
from slmctl.system.console import out, say, waiting
from slmctl.system.errors import InputError
from slmctl.system.files import publishing, write_json
from slmctl.workspace.workspace import Workspace


def demo_pipeline() -> str:
    """The text of pipelines/demo.yaml: inside an installed package, or beside it in a checkout."""
    for folder in (resources.files("slmctl") / "pipelines", Path(__file__).parents[2] / "pipelines"):
        file = folder / "demo.yaml"
        if file.is_file():
            return file.read_text(encoding="utf-8")
    raise InputError("demo.yaml is absent from this installation. Install slmctl again.")


def demo(output_dir: Path, overrides: list[str]) -> Path:
    """Generates the data, runs every stage, prints the comparison and the noise shares. Returns the report's path."""
    text = demo_pipeline()
    data, lines = parse_yaml(text, "demo.yaml")
    texts = output_dir / "data"
    data["output_dir"] = str(output_dir)
    for source, file in [(data["data"]["curated"], "curated"), (data["data"]["corpus"], "corpus")]:
        source["path"] = str(texts / f"{file}.jsonl")
    for file in ("target", "general"):
        data["data"]["heldout"][file]["path"] = str(texts / f"{file}.jsonl")
    apply_overrides(data, overrides)
    workspace = Workspace(check(data, "demo.yaml", lines, overrides)).open()
    if not texts.is_dir():
        with waiting("demo: writing generated texts"), publishing(texts) as temporary:
            write_demo_data(temporary)
        say(f"demo: wrote generated texts to {texts}")
    run(workspace)
    arms = {name: workspace.arm(name) for name in workspace.config.pretrain.arms}
    notes = noise_shares(workspace.tokenizer(), arms, workspace.root / "noise.json")
    page = report(workspace, notes)
    out.print(f"report: {page.resolve()}", soft_wrap=True)
    return page


def noise_shares(tokenizer: Tokenizer, arms: dict[str, Path], file: Path) -> list[str]:
    """Prints, for each arm (name to folder), how much of the known noise it trained on; keeps it in `file`; returns it in
    words."""
    texts = tokenizer.hf.convert_ids_to_tokens(range(len(tokenizer.hf)))
    noisy = {i for i, t in enumerate(texts) if is_noise(t) and not t.startswith("<|")}
    table = Table(title="known noise tokens in training")
    for column in ("arm", "noise tokens seen", "noise tokens trained on", "share of the noise", "noise in what it trained on"):
        table.add_column(column, justify="left" if column == "arm" else "right")
    found, notes = {}, []
    for arm, folder in arms.items():
        counts = pq.read_table(folder / "token_counts.parquet").to_pydict()
        seen = sum(n for i, n in zip(counts["token_id"], counts["seen"], strict=True) if i in noisy)
        chosen = sum(n for i, n in zip(counts["token_id"], counts["selected"], strict=True) if i in noisy)
        total = sum(counts["selected"])
        found[arm] = {"noise_seen": seen, "noise_selected": chosen, "selected": total}
        table.add_row(arm, f"{seen:,}", f"{chosen:,}", f"{chosen / max(seen, 1):.1%}", f"{chosen / max(total, 1):.1%}")
        notes.append(f"{arm} trained on {chosen / max(seen, 1):.1%} of the known noise tokens that it saw")
    write_json(file, found)
    out.print(table)
    return notes

"""The documents: their links lead somewhere, what is generated is current, and commands, options, keys and targets are those of
the code."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import typer
import yaml
from pydantic import BaseModel

from slmctl.cli.application import app
from slmctl.cli.process import main
from slmctl.config import strategies
from slmctl.config.documentation import update
from slmctl.config.pipeline import PipelineConfig

ROOT = Path(__file__).parents[1]
DOCS = sorted(f"docs/{f.name}" for f in (ROOT / "docs").glob("*.md"))
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", *DOCS, "benchmarks/README.md", "findings/README.md")
MOST_LINES = 170
"""Of the README: what it says must be read in one sitting."""
LINK = re.compile(r"\[[^\[\]]*\]\(([^()\s]+)\)")
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def prose(text: str) -> str:
    """A document without its fenced code, in which brackets are no links and `#` begins no heading."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)


def code(text: str) -> Iterator[str]:
    """Its pieces of code: lines of fenced and indented blocks, and spans in backticks. A shell's comments are cut off."""
    fenced = re.findall(r"^```\w*\n(.*?)^```$", text, flags=re.M | re.S)
    indented = re.findall(r"^(?: {4}|\t)(.+)$", prose(text), flags=re.M)
    for line in [line for block in fenced for line in block.splitlines()] + indented:
        command, _, comment = line.partition("  #")
        yield from (command, comment)
    yield from re.findall(r"`([^`\n]+)`", prose(text))


# --- links ------------------------------------------------------------------------------------------------------------


def anchors(text: str) -> set[str]:
    """What `#…` may name in a document: its headings, as GitHub spells them."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", prose(text), flags=re.M):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        number = next(n for n in range(len(found) + 1) if (f"{slug}-{n}" if n else slug) not in found)
        found.add(f"{slug}-{number}" if number else slug)
    return found


def broken_links(text: str, folder: Path, root: Path) -> list[str]:
    """The relative links of a document in `folder` that lead to no file of the repository, or to no heading of it."""
    found = []
    for link in LINK.findall(prose(text)):
        if re.match(r"[a-z]+:", link):
            continue
        place, _, anchor = link.partition("#")
        target = (folder / place).resolve() if place else None
        lost = target is not None and not (target.exists() and target.is_relative_to(root.resolve()))
        if lost or (anchor and anchor not in anchors(text if target is None else target.read_text(encoding="utf-8"))):
            found.append(link)
    return found


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_link_leads_to_a_file_and_a_heading(document: str) -> None:
    assert not broken_links(read(document), (ROOT / document).parent, ROOT)


def test_a_link_that_leads_nowhere_is_seen(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# The other's `head`, twice\n\n# The other's head twice\n")
    text = (
        "# Here\n[a](other.md) [b](other.md#the-others-head-twice) [c](other.md#the-others-head-twice-1) [d](#here) [e](http://x/#y)\n"
        "```\n# not a heading\n[f](nor-a-link)\n```\n"
        "[g](gone.md) [h](other.md#the-others-head-twice-2) [i](#there) [j](#not-a-heading) ![k](gone.png) [l](../outside)\n"
    )
    (tmp_path.parent / "outside").touch()
    wrong = ["gone.md", "other.md#the-others-head-twice-2", "#there", "#not-a-heading", "gone.png", "../outside"]
    assert broken_links(text, tmp_path, tmp_path) == wrong


def test_every_document_is_one_step_from_the_readme() -> None:
    linked = {link.partition("#")[0] for link in LINK.findall(prose(read("README.md")))}
    assert set(DOCUMENTS) - {"README.md"} <= linked


def test_the_index_names_every_document() -> None:
    linked = {link.partition("#")[0] for link in LINK.findall(prose(read("docs/index.md")))}
    assert {*(d.removeprefix("docs/") for d in DOCS), *(f"../{d}" for d in DOCUMENTS if d not in DOCS)} - {"index.md"} <= linked


# --- the README, and what is generated ----------------------------------------------------------------------------------


def test_the_readme_is_read_in_one_sitting() -> None:
    assert len(read("README.md").splitlines()) <= MOST_LINES


def test_the_readmes_example_is_a_valid_pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    example = read("README.md").split("```yaml\n")[1].split("```")[0]
    assert yaml.safe_load(example)["name"] == "mine"
    (tmp_path / "mine.yaml").write_text(example)
    monkeypatch.chdir(tmp_path)
    main_ends_with(0, ["validate", "mine.yaml"])
    (tmp_path / "mine.yaml").write_text(example.replace("seq_len", "seqlen"))
    main_ends_with(2, ["validate", "mine.yaml"])


def main_ends_with(wanted: int, argv: list[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(argv)
    assert (end.value.code or 0) == wanted


def test_the_configuration_reference_is_current() -> None:
    text = read("docs/configuration.md")
    assert update(text) == text, "run `make docs`"


def test_the_table_of_criteria_is_current() -> None:
    text = read("docs/strategies.md")
    assert strategies.update(text) == text, "run `make docs`"
    assert strategies.update(text.replace("`own_loss`", "`its_loss`")) == text


def test_a_field_that_is_not_in_the_configuration_reference_is_seen() -> None:
    text = read("docs/configuration.md")
    assert update(text.replace("| `seq_len` |", "| `row_len` |")) == text


# --- commands, options, keys and targets --------------------------------------------------------------------------------


def unknown_options(piece: str) -> list[str]:
    """Of a piece of code: commands of slmctl that there are not, and options that they do not have."""
    found = []
    for name, rest in re.findall(r"(?:^|[\s(/])slmctl ([a-z][a-z-]*)\b((?:(?! · ).)*)", piece):
        if name not in COMMANDS:
            found.append(f"slmctl {name}")
            continue
        known = {o for p in COMMANDS[name].params for o in p.opts} | {"--help", "-h"}
        given = re.findall(r"(?<![\w-])(--?[a-z][a-z-]*)", rest)
        found += [f"slmctl {name} {option}" for option in given if option not in known]
    return found


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_and_options_are_those_of_the_command_line(document: str) -> None:
    assert not [wrong for piece in code(read(document)) for wrong in unknown_options(piece)]


def test_an_option_that_there_is_not_is_seen() -> None:
    pieces = code("`slmctl run CONFIG --wet-run`\n\n    slmctl score mine.yaml --status    # slmctl train mine.yaml\n")
    assert [w for p in pieces for w in unknown_options(p)] == ["slmctl train", "slmctl run --wet-run"]


def test_the_table_of_commands_has_each_of_them() -> None:
    assert set(re.findall(r"^\| `slmctl ([a-z-]+)", read("docs/commands.md"), flags=re.M)) == set(COMMANDS)


def known_key(annotation: Any, keys: list[str]) -> bool:
    """Whether a key path leads to a field; the names of arms, sets and references are anyone's."""
    if not keys:
        return True
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        field = annotation.model_fields.get(keys[0])
        return field is not None and known_key(field.annotation, keys[1:])
    named = getattr(annotation, "__origin__", None) is dict
    return any(known_key(a, keys[1:] if named else keys) for a in get_args(annotation))


def unknown_keys(text: str) -> list[str]:
    """Key paths of the configuration in a document's code that lead to no field."""
    sections = "|".join(("model", "data", "reference", "score", "pretrain", "eval", "tracking"))
    path = rf"((?:{sections})(?:\.[a-z_]+)+)"
    found = [
        key
        for piece in code(text)
        for key in [*re.findall(rf"^{path}(?=$|[:=(])", piece), *re.findall(rf"(?:-o|--over) {path}(?==)", piece)]
    ]
    return [key for key in found if not known_key(PipelineConfig, key.split("."))]


@pytest.mark.parametrize("document", [d for d in DOCUMENTS if d != "CHANGELOG.md"])
def test_keys_are_those_of_the_configuration(document: str) -> None:
    assert not unknown_keys(read(document))


def test_a_key_that_there_is_not_is_seen() -> None:
    text = "`score.dtype: x`, `eval.contamination_share`, `pretrain.arms.slm.selection.ratio=0.4`, `data.heldout.x.path`\n\n"
    text += "    slmctl run CONFIG -o pretrain.token=5 -o model.scratch.train.steps=3 -o eval.tasks.limit=5\n"
    assert unknown_keys(text) == ["pretrain.token", "eval.contamination_share"]


def absent_paths(text: str) -> list[str]:
    """Paths into the repository that a document's code spans name, and that are not there; `NAME` stands for any name."""
    folders = "|".join(("slmctl", "tests", "benchmarks", "docs", "findings", "pipelines"))
    spans = re.findall(r"`([^`\n]+)`", prose(text))
    found = [place for span in spans for place in re.findall(rf"(?:^|\s)((?:{folders})/[\w./*-]*)(?=$|\s)", span)]
    return [place for place in found if not any(ROOT.glob(place.replace("NAME", "*")))]


@pytest.mark.parametrize("document", [d for d in DOCUMENTS if d != "CHANGELOG.md"])
def test_paths_are_there(document: str) -> None:
    assert not absent_paths(read(document))


def test_a_path_that_is_not_there_is_seen() -> None:
    text = "`slmctl/config/*.py`, `python docs/picture.py`, `slmctl/attic/`, `bash benchmarks/gone.sh`, `tests/test_NAME.py`\n"
    assert absent_paths(text) == ["slmctl/attic/", "benchmarks/gone.sh"]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_targets_of_make_are_those_of_the_makefile(document: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", read("Makefile"), flags=re.M))
    named = {t for piece in code(read(document)) for t in re.findall(r"^make ([a-z-]+)", piece)}
    assert named <= targets


def test_the_table_of_alarms_has_each_of_them() -> None:
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", section(read("docs/evaluation.md"), "Alarms"), flags=re.M)
    sources = "".join(f.read_text(encoding="utf-8") for f in (ROOT / "slmctl/comparison/alarms").glob("*.py"))
    raised = set(re.findall(r"\b(?:alarm|together)\(\s*\"(\w+)\"", sources))
    assert {name for row in rows for name in re.findall(r"\w+", row)} == raised


def section(text: str, title: str) -> str:
    """What stands below a heading, up to the next of its level."""
    return text.split(f"\n## {title}\n")[1].split("\n## ")[0]

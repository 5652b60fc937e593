"""slmctl is a tower: each room imports from those below it, and no arrow runs back up."""

from __future__ import annotations

import ast
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

SLMCTL = Path(__file__).parents[1] / "slmctl"
TOWER = (
    *("cli", "stages", "report", "comparison", "workspace", "training", "evaluation", "model", "corpus", "store", "config"),
    *("selection", "system"),
)
"""The rooms, from the top. `CONTRIBUTING.md` shows them in this order."""
EVERYWHERE = "slmctl"
"""The package itself, which knows its version and nothing else."""


def modules(package: Path) -> dict[str, Path]:
    """The dotted name of every file."""
    names = {f: (package.name, *f.relative_to(package).with_suffix("").parts) for f in sorted(package.rglob("*.py"))}
    return {".".join(n[:-1] if n[-1] == "__init__" else n): f for f, n in names.items()}


def imports(file: Path, known: dict[str, Path], runtime: bool = False) -> Iterator[str]:
    """The modules of `known` that a file imports, wherever in it; with `runtime` those that its being imported imports."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in tree.body if runtime else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module in known and not node.level:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in known else node.module


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else EVERYWHERE


def upward(package: Path) -> list[str]:
    """A line on each import of a room by one that stands below it, and on each room that has no place in the tower."""
    known = modules(package)
    found = [
        f"{r}/ has no place in the tower: say in tests/test_rooms.py and CONTRIBUTING.md between which rooms it stands"
        for r in sorted({room(m) for m in known} - {*TOWER, EVERYWHERE, "__main__"})
    ]
    for module, file in known.items():
        for imported in imports(file, known):
            here, there = room(module), room(imported)
            if here in TOWER and there in TOWER and TOWER.index(there) < TOWER.index(here):
                found.append(f"{here}/ imports from {there}/, which stands above it: {module} imports {imported}")
    return found


def test_no_room_imports_from_one_above_it():
    assert not upward(SLMCTL), "\n".join(upward(SLMCTL))


def test_an_arrow_upward_is_told_with_both_rooms(tmp_path):
    copy = tmp_path / "slmctl"
    shutil.copytree(SLMCTL, copy, ignore=shutil.ignore_patterns("__pycache__"))
    shard = copy / "store" / "order.py"
    shard.write_text(shard.read_text() + "\n\ndef late():\n    from slmctl.stages.run import run\n\n    return run\n")
    (copy / "attic").mkdir()
    (copy / "attic" / "old.py").write_text("import slmctl.store.order\n")
    assert upward(copy) == [
        "attic/ has no place in the tower: say in tests/test_rooms.py and CONTRIBUTING.md between which rooms it stands",
        "store/ imports from stages/, which stands above it: slmctl.store.order imports slmctl.stages.run",
    ]


def test_no_file_imports_itself_by_way_of_others():
    known = modules(SLMCTL)
    reaches = {m: set(imports(f, known, runtime=True)) for m, f in known.items()}
    done: set[str] = set()

    def walk(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " imports ".join((*path[path.index(module) :], module))
        if module not in done:
            for other in reaches[module]:
                walk(other, (*path, module))
            done.add(module)

    for module in known:
        walk(module, ())


def test_the_contributors_picture_shows_the_same_tower():
    text = (SLMCTL.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    lines = [line.split()[0] for line in text.splitlines() if line.startswith("    slmctl/")]
    assert tuple(line.removeprefix("slmctl/").rstrip("/").removesuffix(".py") for line in lines) == TOWER


@pytest.mark.parametrize("lowest", ["selection"])
def test_selection_knows_tensors_and_nothing_else(lowest):
    known = modules(SLMCTL)
    assert not [m for name, f in known.items() if room(name) == lowest for m in imports(f, known) if room(m) != lowest]


def test_what_stages_measure_and_show_asks_no_workspace():
    """A stage resolves what it needs at its head, and hands on records and plain values."""
    known = modules(SLMCTL)
    asks = {"slmctl.workspace.workspace", "slmctl.workspace.contamination"}
    found = {name for name, f in known.items() if room(name) in ("comparison", "report") and asks & set(imports(f, known))}
    assert not found

"""A stage asks the workspace at its head and nowhere else: what works below the heads takes what it needs, and no workspace."""

from __future__ import annotations

import ast
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

SLMCTL = Path(__file__).parents[1] / "slmctl"
WORKSPACES = {"Workspace", "ReadOnlyWorkspace", "Folders"}
OWN = {f"workspace/{name}.py" for name in ("workspace", "models", "folders", "handles", "missing_texts")}
"""What the workspace is made of."""
LOOKS = {f"workspace/planned/{name}.py" for name in ("read_only", "walk", "estimator")}
"""What looks at all of it."""


def commands(package: Path) -> set[tuple[str, str]]:
    """(file, function) of what the command line and a run import of the stages."""
    found = set()
    for file in (*sorted((package / "cli").glob("*.py")), package / "stages" / "run.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("slmctl.stages."):
                stage = str(node.module).rpartition(".")[2]
                found |= {(f"stages/{stage}.py", alias.name) for alias in node.names}
    return found


def takers(file: Path) -> Iterator[tuple[str, int]]:
    """The functions of a file that take a workspace, and the classes that keep one in a field; and on which line."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef):
            fields = [f for f in node.body if isinstance(f, ast.AnnAssign) and _is_workspace(f.annotation)]
            yield from ((node.name, f.lineno) for f in fields)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            a = node.args
            given = [*a.posonlyargs, *a.args, *a.kwonlyargs, *(x for x in (a.vararg, a.kwarg) if x is not None)]
            if any(arg.arg == "workspace" or _is_workspace(arg.annotation) for arg in given):
                yield getattr(node, "name", "lambda"), node.lineno


def _is_workspace(annotation: ast.expr | None) -> bool:
    """Also one in quotes, or within another annotation."""
    return annotation is not None and bool(WORKSPACES & set(re.findall(r"\w+", ast.unparse(annotation))))


def below_the_heads(package: Path) -> list[str]:
    """A line on each function below the heads that takes the workspace."""
    found, heads = [], commands(package)
    for file in sorted(package.rglob("*.py")):
        place = file.relative_to(package).as_posix()
        if place in OWN | LOOKS:
            continue
        for name, line in takers(file):
            resolves = name.startswith("resolve") and place.partition("/")[0] in ("stages", "workspace")
            if not resolves and (place, name) not in heads:
                found.append(f"{place}:{line}: {name} takes the workspace: give it what it needs of it")
    return found


def test_below_the_heads_of_stages_nothing_takes_the_workspace():
    found = below_the_heads(SLMCTL)
    assert not found, "\n".join(found)


def test_who_takes_it_is_told_by_name_and_by_annotation(tmp_path):
    copy = tmp_path / "slmctl"
    shutil.copytree(SLMCTL, copy, ignore=shutil.ignore_patterns("__pycache__"))
    before = set(below_the_heads(copy))
    more = {
        "stages/sweep.py": "\n\ndef _add(workspace, new):\n    return new\n",
        "training/step.py": "\n\ndef late(w: 'Workspace | None'):\n    return w\n",
        "model/rope.py": "\n\nclass Keeper:\n    workspace: Workspace\n",
        "report/page.py": "\n\nasync def other(*, folders: Folders):\n    return folders\n",
        "stages/run.py": "\n\ndef resolve_all(workspace: Workspace):\n    return workspace\n",
        "workspace/locks.py": "\n\ndef resolve_locks(workspace):\n    pass\n\n\ndef late(workspace):\n    pass\n",
        "workspace/missing_texts.py": "\n\ndef own(workspace):\n    return workspace\n",
    }
    for name, text in more.items():
        (copy / name).write_text((copy / name).read_text(encoding="utf-8") + text, encoding="utf-8")
    added = sorted(set(below_the_heads(copy)) - before)
    assert [(line.partition(":")[0], line.split(": ")[1].split()[0]) for line in added] == [
        ("model/rope.py", "Keeper"),
        ("report/page.py", "other"),
        ("stages/sweep.py", "_add"),
        ("training/step.py", "late"),
        ("workspace/locks.py", "late"),
    ]

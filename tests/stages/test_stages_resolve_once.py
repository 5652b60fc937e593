"""A stage resolves once: its commands and its `resolve…` alone take the workspace; what they make is made of records."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SLMCTL = Path(__file__).parents[2] / "slmctl"
COMMANDS = {
    "stages/prepare.py": {"prepare", "look"},
    "stages/score.py": {"score", "look"},
    "stages/inspect.py": {"inspect", "inspect_storage"},
    "stages/train_base.py": {"train_base"},
    "stages/train_ref.py": {"train_reference"},
    "stages/pretrain.py": {"pretrain"},
    "comparison/storage_costs.py": set(),
    "workspace/build.py": set(),
    "workspace/contamination.py": set(),
    "workspace/contamination_told.py": set(),
    "workspace/own_tokenizer.py": set(),
    "workspace/runs.py": set(),
    "workspace/score_sets.py": set(),
    "workspace/start.py": set(),
    "workspace/token_sets.py": set(),
}
"""By file: its commands."""


def takers(source: str) -> list[str]:
    """The functions and fields of records to which the whole workspace, or its folders, are given."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            if any(a.annotation is not None and ast.unparse(a.annotation) in ("Workspace", "Folders") for a in given):
                found.append(node.name)
        elif isinstance(node, ast.AnnAssign) and ast.unparse(node.annotation) in ("Workspace", "Folders"):
            found.append(ast.unparse(node.target))
    return found


@pytest.mark.parametrize("file", COMMANDS)
def test_below_its_head_nothing_takes_the_workspace(file: str) -> None:
    found = takers((SLMCTL / file).read_text(encoding="utf-8"))
    assert {f for f in found if not f.startswith("resolve")} == COMMANDS[file]


def test_who_takes_it_is_found() -> None:
    source = (
        "class A:\n    w: Workspace\n\ndef f(n: int, *, w: Workspace): ...\n\ndef g(folders: Folders): ...\n\ndef h(w: int): ..."
    )
    assert sorted(takers(source)) == ["f", "g", "w"]

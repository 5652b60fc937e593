"""inspect: the names by which a set is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_pipeline import tiny_settings

from slmctl.config.file import check
from slmctl.stages.inspect import full_name, inspect_storage, resolve
from slmctl.system.errors import ConfigError, InputError
from slmctl.workspace.workspace import Workspace


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    settings = tiny_settings(tmp_path)
    settings["score"]["references"] = {"curated": "reference", "strong": "some/model"}
    return Workspace(check(settings, "tiny"))


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("corpus", "tokens/corpus"),
        ("curated", "tokens/curated"),
        ("heldout/target", "tokens/heldout/target"),
        ("strong", "scores/strong"),
        ("scores/curated", "scores/curated"),
        ("tokens/corpus", "tokens/corpus"),
        ("target", "target"),
    ],
)
def test_a_set_is_found_by_its_name_alone(workspace: Workspace, given: str, meant: str) -> None:
    assert full_name(workspace.config, given) == meant


def test_a_name_that_is_none_is_refused_with_those_that_are(workspace: Workspace) -> None:
    with pytest.raises(
        ConfigError, match=r"'target' is no set .*tokens/corpus, tokens/heldout/target, scores/curated, scores/st"
    ):
        resolve(workspace, "target")


def test_of_storage_a_name_means_the_scores(workspace: Workspace) -> None:
    with pytest.raises(InputError, match="prepare"):  # past the name, to the set that is not made yet
        inspect_storage(workspace, "curated", 8)
    with pytest.raises(ConfigError, match="scores/strong"):
        inspect_storage(workspace, "corpus", 8)

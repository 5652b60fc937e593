"""Runs side by side: what is compared, what is said not to compare, and that it fits a terminal."""

from __future__ import annotations

import copy
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from slmctl.cli.process import main
from slmctl.comparison.config_differences import config_differences
from slmctl.comparison.runs import load_runs
from slmctl.comparison.side_by_side import compare_runs
from slmctl.report.compare_tables import short, show
from slmctl.system.errors import ConfigError, InputError, MismatchError

ARMS: dict[str, dict[str, Any]] = {
    "slm": {"criterion": "excess_loss", "ratio": 0.6, "group_rows": 8, "scope": "group", "reference": None},
    "clm": {"criterion": "all", "ratio": 0.6, "group_rows": 8, "scope": "group", "reference": None},
}


def heldout(loss: float) -> dict[str, Any]:
    return {
        "loss": loss,
        "perplexity": math.exp(loss),
        "bits_per_byte": loss / 2,
        "predicted_tokens": 5000,
        "documents": 50,
        "interval": [loss - 0.1, loss + 0.1],
        "bits_per_byte_interval": None,
    }


def make_results(seed: int = 0, shift: float = 0.0) -> dict[str, Any]:
    losses = {"base": 4.0, "reference": 1.0, "slm": 2.0 + shift, "clm": 2.5 + shift}
    accuracy = {"base": 0.1, "reference": 0.9, "slm": 0.4 + shift, "clm": 0.3}
    models = {
        name: {
            "kind": name if name in ("base", "reference") else "arm",
            "heldout": {"general": heldout(loss + 1), "target": heldout(loss)},
            "tasks": {"sums": {"accuracy": accuracy[name], "standard_error": 0.02, "items": 200, "shots": 8, "version": 1}},
        }
        for name, loss in losses.items()
    }
    arms = {
        name: {
            "selection": selection,
            "seed": seed,
            "settings": {"lr": 1e-3, "batch_tokens": 4096},
            "steps": 100,
            "tokens_seen": 409_600,
            "tokens_selected": 245_760 if name == "slm" else 409_600,
            "training_seconds": 10.0,
            "flops": 1e12,
            "evals": [],
            "checkpoints": [],
            "control": {
                **{"arm": "clm", "tokens_to_reach": 200_000, "times_fewer_tokens": 2.048, "times_fewer_flops_all": 0.9},
                **{"why": None, "points": [0, 204_800, 307_200, 409_600]},
                "interval": {"times_fewer_tokens": [1.5, 2.5], "times_fewer_flops_all": [None, 1.2], "open": True},
            },
        }
        for name, selection in ARMS.items()
    }
    general = {"pipeline": "made-up", "seed": seed, "target": "target", "notes": [], "versions": {}, "schema": 2, "level": 0.95}
    return {**general, "models": models, "arms": arms, "differences": [], "costs": {}}


def make_config(output_dir: Path, seed: int = 0) -> dict[str, Any]:
    pretrain = {"lr": 1e-3, "batch_tokens": 4096}
    return {
        "name": "made-up",
        "output_dir": str(output_dir),
        "seed": seed,
        "model": {"path": "somewhere"},
        "data": {"seq_len": 32, "corpus": [{"path": ["a.jsonl"]}]},
        "reference": {"epochs": 3.0},
        "score": {"dtype": "float16"},
        "pretrain": {**pretrain, "arms": {n: {**pretrain, "selection": s} for n, s in ARMS.items()}},
    }


def make_run(root: Path, name: str, seed: int = 0, shift: float = 0.0, change: Any = None) -> Path:
    """A run's output_dir as `slmctl eval` leaves it, after `change(results, config)`."""
    results, config = copy.deepcopy((make_results(seed, shift), make_config(root / name, seed)))
    if change is not None:
        change(results, config)
    (root / name / "eval").mkdir(parents=True)
    (root / name / "eval" / "results.json").write_text(json.dumps(results), encoding="utf-8")
    (root / name / "config.resolved.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return root / name


def compared(*paths: Path) -> dict[str, Any]:
    return compare_runs(load_runs(list(paths)))


def printed(comparison: dict[str, Any], width: int = 80) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))
    show(comparison, console)
    return console.export_text()


def test_every_model_of_every_run_has_its_row(tmp_path: Path) -> None:
    found = compared(make_run(tmp_path, "a"), make_run(tmp_path, "b", shift=0.25))
    rows = {(m["run"], m["model"]): m for m in found["models"]}
    assert len(rows) == 8
    assert rows["b", "slm"]["heldout"]["target"]["loss"] == 2.25
    assert rows["b", "slm"]["heldout"]["target"]["interval"] == [2.15, 2.35]
    assert rows["a", "slm"]["times_fewer_tokens"] == 2.048
    assert rows["a", "base"]["tokens_seen"] is None
    assert found["target"] == "target"
    assert {n: s["loss"] for n, s in found["sets"].items()} == {"general": True, "target": True}


def test_the_text_has_the_numbers_and_fits_80_columns(tmp_path: Path) -> None:
    a = make_run(tmp_path, "a-run-with-quite-a-long-name-" + "x" * 40)
    text = printed(compared(a, make_run(tmp_path, "[b]", shift=0.25)))
    assert max(map(len, text.splitlines())) <= 80
    for wanted in ("2.2500", "2.1500 to 2.3500", "1.1250", "2.05x", "1.11x more", "410k", "246k", "0.650 ± 0.020", "[b]"):
        assert wanted in text, wanted
    assert text.index("target (target)") < text.index("Held-out loss on general")


def test_what_differs_in_the_configurations_is_told_once(tmp_path: Path) -> None:
    def change(_results: Any, config: Any) -> None:
        config["pretrain"]["lr"] = 5e-4
        for arm in config["pretrain"]["arms"].values():
            arm["lr"] = 5e-4
        config["pretrain"]["arms"]["clm"]["batch_tokens"] = 8192
        config["data"]["corpus"][0]["path"] = ["b.jsonl", "c.jsonl"]
        config["pretrain"]["arms"]["more"] = {"lr": 1.0, "selection": ARMS["slm"]}
        config["model"]["revision"] = None

    found = compared(make_run(tmp_path, "a"), make_run(tmp_path, "b", change=change))["differences"]
    assert {d["key"]: d["values"] for d in found} == {
        "model.revision": {"b": None},
        "data.corpus.0.path": {"a": ["a.jsonl"], "b": ["b.jsonl", "c.jsonl"]},
        "pretrain.lr": {"a": 1e-3, "b": 5e-4},
        "pretrain.arms.clm.batch_tokens": {"a": 4096, "b": 8192},
        "pretrain.arms.more": {"b": {"lr": 1.0, "selection": ARMS["slm"]}},
    }
    assert {d["key"]: d["present"] for d in found}["model.revision"] == ["b"]


def test_the_same_configuration_elsewhere_does_not_differ(tmp_path: Path) -> None:
    found = compared(make_run(tmp_path, "a"), make_run(tmp_path, "b"))
    assert found["differences"] == []
    assert "do not differ" in printed(found)
    assert config_differences({"a": {}, "b": {"seed": 1}}) == []


def test_arms_that_differ_in_their_seed_alone_are_summarised(tmp_path: Path) -> None:
    def other_reference(_results: Any, config: Any) -> None:
        config["reference"]["epochs"] = 1.0

    paths = [make_run(tmp_path, f"seed-{i}", seed=i, shift=s) for i, s in enumerate((0.0, 0.1, 0.5))]
    paths.append(make_run(tmp_path, "again", seed=2, shift=9.0))  # the same seed is no other sample
    paths.append(make_run(tmp_path, "other-reference", seed=7, shift=0.2, change=other_reference))
    found = compared(*paths)
    groups = {(g["arm"], tuple(g["runs"])): g for g in found["seeds"]}
    three = ("seed-0", "seed-1", "seed-2")
    # the control needs no reference, so that of the last run is one more of the same
    assert set(groups) == {("slm", three), ("clm", (*three, "other-reference")), ("slm", ("other-reference",))}
    values = [2.0, 2.1, 2.5]
    mean = sum(values) / 3
    sd = math.sqrt(sum((v - mean) ** 2 for v in values) / 2)
    facts = groups["slm", three]["heldout"]["target"]
    assert (facts["mean"], facts["sd"], facts["n"]) == (pytest.approx(mean), pytest.approx(sd), 3)
    assert groups["slm", ("other-reference",)]["heldout"]["target"]["sd"] is None
    assert f"{mean:.4f} ± {sd:.4f} (3)" in printed(found)
    assert not any("one seed" in w for w in found["warnings"])


def test_seeds_within_a_run_are_summarised_and_pooled_with_other_runs(tmp_path: Path) -> None:
    def repeat(seeds: tuple[int, ...]) -> Any:
        def change(results: Any, _config: Any) -> None:
            for seed in seeds:
                name = f"slm-seed-{seed}"
                results["arms"][name] = results["arms"]["slm"] | {"seed": seed}
                results["models"][name] = {
                    "kind": "arm",
                    "heldout": {"target": heldout(2.0 + seed), "general": heldout(3.0)},
                    "tasks": {},
                }
            names = ["slm", *(f"slm-seed-{s}" for s in seeds)]
            results["seeds"] = [{"arm": "slm", "arms": names, "target_loss": {"mean": 0.0, "sd": 0.0, "n": len(names)}}]

        return change

    a, b = make_run(tmp_path, "a", change=repeat((1, 2))), make_run(tmp_path, "b", seed=1, shift=9.0, change=repeat((4,)))
    groups = {g["arm"]: g for g in compared(a)["seeds"]}
    assert (groups["slm"]["seeds"], groups["slm"]["runs"]) == ([0, 1, 2], ["a"])
    assert groups["slm"]["heldout"]["target"] == {"mean": pytest.approx(3.0), "sd": pytest.approx(1.0), "n": 3}
    assert groups["clm"]["n"] == 1
    found = compared(a, b)
    slm = next(g for g in found["seeds"] if g["arm"] == "slm")
    assert (slm["seeds"], slm["runs"], slm["n"]) == ([0, 1, 2, 4], ["a", "b"], 4)
    assert slm["heldout"]["target"]["mean"] == pytest.approx((2 + 3 + 4 + 6) / 4)
    assert "3.0000 ± 1.0000 (3)" in printed(compared(a))
    assert not any("one seed" in w for w in found["warnings"])


def test_what_is_not_judged_is_not_called_never(tmp_path: Path) -> None:
    def change(results: Any, _config: Any) -> None:
        results["arms"]["slm"]["control"].update(tokens_to_reach=None, times_fewer_tokens=None, why="too few evaluations")

    found = compared(make_run(tmp_path, "a", change=change))
    assert found["warnings"] == ["a: tokens to reach the control are not judged for slm: too few evaluations"]
    assert "never" not in printed(found)


def test_intervals_and_seeds_stand_below(tmp_path: Path) -> None:
    def change(results: Any, _config: Any) -> None:
        over = {"arm": "clm", "arms": [["slm", "clm"], ["slm-1", "clm-1"]], "seeds": [0, 1], "why": None, "points": [0, 1, 2, 3]}
        over |= {"tokens_to_reach": 1.9e5, "times_fewer_tokens": 2.2, "times_fewer_flops_all": None}
        over["interval"] = {"times_fewer_tokens": [1.1, 3.3], "times_fewer_flops_all": None}
        results["seeds"] = [{"arm": "slm", "arms": ["slm", "slm-1"], "control": over}]

    found = compared(make_run(tmp_path, "a", change=change))
    (slm,) = (m for m in found["models"] if m["model"] == "slm")
    assert slm["interval"]["times_fewer_tokens"] == [1.5, 2.5]
    assert slm["over_seeds"]["seeds"] == [0, 1]
    text = printed(found)
    assert "1.50x to 2.50x" in text
    assert "… to 1.20x" in text, "an open end"
    assert re.search(r"slm, 2 seeds .* 2\.20x", text)
    assert re.search(r"slm, 2 seeds .*seeds, documents .* 1\.10x to 3\.30x", text)
    assert text.count("│ clm ") < text.count("│ slm "), "of the control against itself there is no interval"


def test_figures_of_curves_of_training_are_not_compared(tmp_path: Path) -> None:
    """As results had them that an older slmctl made: whatever each curve was measured on."""

    def old(results: Any, _config: Any) -> None:
        for arm in results["arms"].values():
            arm["control"] = {"arm": "clm", "tokens_to_reach": 110_000, "times_fewer_tokens": 3.63, "times_fewer_flops_all": 2.0}

    found = compared(make_run(tmp_path, "a", change=old))
    assert (
        "a: tokens to reach the control are not judged for slm: the results were made by an slmctl that" in found["warnings"][0]
    )
    assert "run `slmctl eval` again" in found["warnings"][0]
    assert "3.63" not in printed(found)
    assert "3.63" not in json.dumps(found)


def test_other_points_of_training_are_told(tmp_path: Path) -> None:
    def fewer(results: Any, _config: Any) -> None:
        for arm in results["arms"].values():
            arm["control"]["points"] = [0, 100, 200, 300, 409_600]

    a, b = make_run(tmp_path, "a"), make_run(tmp_path, "b", change=fewer)
    assert any("read from other points of training in each run (a: 4, b: 5)" in w for w in compared(a, b)["warnings"])
    assert not any("points of training" in w for w in compared(a)["warnings"])
    assert not any("points of training" in w for w in compared(a, make_run(tmp_path, "c"))["warnings"])


def test_other_precisions_are_not_compared(tmp_path: Path) -> None:
    def measured(precision: str, rows: str = "all") -> Any:
        return lambda r, _: [
            h.update(precision=precision, rows=rows) for m in r["models"].values() for h in m["heldout"].values()
        ]

    a, b = (make_run(tmp_path, p, seed=i, change=measured(p)) for i, p in enumerate(("float32", "bfloat16")))
    found = compared(a, b)
    for name in ("target", "general"):
        assert not found["sets"][name]["loss"]
        assert not found["sets"][name]["bits_per_byte"]
    assert (
        "target: it was measured in other precisions (float32: float32, bfloat16: bfloat16); its losses" in found["warnings"][1]
    )
    c = make_run(tmp_path, "c", seed=2, change=measured("float32", "shuffled otherwise"))
    found = compared(a, c)
    assert found["sets"]["target"]["loss"]
    assert any("target is packed into other rows in each run" in w for w in found["warnings"])


def test_one_seed_is_said_to_be_one(tmp_path: Path) -> None:
    assert any("one seed" in w for w in compared(make_run(tmp_path, "a"), make_run(tmp_path, "b", shift=0.1))["warnings"])
    assert not compared(tmp_path / "a")["warnings"]


def change_sets(**facts: int) -> Any:
    def change(results: Any, _config: Any) -> None:
        for model in results["models"].values():
            model["heldout"]["target"].update(facts)

    return change


@pytest.mark.parametrize(
    ("change", "bits_per_byte", "message"),
    [
        (change_sets(documents=49, predicted_tokens=4900), False, "its texts differ between the runs"),
        (change_sets(predicted_tokens=6000), True, "cut into other tokens or rows"),
    ],
)
def test_other_held_out_texts_are_not_compared(tmp_path: Path, change: Any, bits_per_byte: bool, message: str) -> None:
    found = compared(make_run(tmp_path, "a", seed=0), make_run(tmp_path, "b", seed=1, change=change))
    target = found["sets"]["target"]
    assert (target["loss"], target["bits_per_byte"]) == (False, bits_per_byte)
    assert any(message in w for w in found["warnings"])
    assert found["sets"]["general"]["loss"]
    assert all("target" not in g["heldout"] and g["heldout"]["general"]["n"] == 2 for g in found["seeds"])
    text = " ".join(printed(found).split())
    assert message in text
    assert "NOT comparable between runs" in text


def test_other_targets_are_said_to_differ(tmp_path: Path) -> None:
    found = compared(make_run(tmp_path, "a"), make_run(tmp_path, "b", seed=1, change=lambda r, _: r.update(target="general")))
    assert found["target"] is None
    assert "judged by different held-out sets (a: target, b: general)" in found["warnings"][0]
    assert all(g["n"] == 1 for g in found["seeds"])
    printed(found)


def test_the_best_arm_of_each_task(tmp_path: Path) -> None:
    def fewer(results: Any, _config: Any) -> None:
        for model in results["models"].values():
            model["tasks"]["sums"]["items"] = 100

    a, b = make_run(tmp_path, "a"), make_run(tmp_path, "b", shift=0.25)
    found = compared(a, b)["tasks"]
    assert [(t["run"], t["arm"], t["accuracy"], t["best"]) for t in found] == [
        ("a", "slm", 0.4, False),
        ("b", "slm", 0.65, True),
    ]
    found = compared(a, b, make_run(tmp_path, "c", change=fewer))["tasks"]
    assert not any(t["best"] or t["comparable"] for t in found)


def test_figures_that_do_not_exist_are_dashes(tmp_path: Path) -> None:
    def change(results: Any, config: Any) -> None:
        config.clear()
        results["arms"]["slm"]["control"].update(tokens_to_reach=None, times_fewer_tokens=None)
        del results["arms"]["clm"]["control"]
        for model in results["models"].values():
            model["tasks"] = {}
            model["heldout"]["target"].update(loss=None, interval=None, bits_per_byte=None, perplexity=None)

    found = compared(make_run(tmp_path, "a", change=change), make_run(tmp_path, "b"))
    assert any("a has no config.resolved.yaml" in w for w in found["warnings"])
    assert "never" in printed(found)
    assert [g["heldout"].get("target", {}).get("n") for g in found["seeds"]] == [None, None, 1, 1]


def test_runs_of_the_same_name_are_called_by_their_paths(tmp_path: Path) -> None:
    a, b = make_run(tmp_path / "1", "run"), make_run(tmp_path / "2", "run")
    assert [r.label for r in load_runs([a, b])] == [str(a), str(b)]
    with pytest.raises(ConfigError, match="given twice"):
        load_runs([a, b, tmp_path / "2" / ".." / "1" / "run"])


def test_runs_that_cannot_be_read_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Give the output_dir of each run"):
        load_runs([tmp_path / "absent"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="Run `slmctl eval`"):
        load_runs([tmp_path / "empty"])
    with pytest.raises(MismatchError, match=r"found schema 1, wanted 2\. Run `slmctl eval`"):
        load_runs([make_run(tmp_path, "old", change=lambda r, _: r.pop("schema"))])
    with pytest.raises(MismatchError, match="newer slmctl"):
        load_runs([make_run(tmp_path, "new", change=lambda r, _: r.update(schema=3))])


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def call(*argv: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as e:
            main([str(a) for a in argv])
        return (int(e.value.code or 0), *capsys.readouterr())

    a, b = make_run(tmp_path, "a"), make_run(tmp_path, "b", seed=1, shift=0.25)
    code, out, _ = call("compare", a, b)
    assert code == 0
    assert "2.2500" in out
    assert max(len(x) for x in out.splitlines()) <= 80
    code, out, _ = call("compare", "--json", a, b)
    assert code == 0
    assert json.loads(out, parse_constant=pytest.fail) == json.loads(json.dumps(compared(a, b)))
    assert call("compare")[0] == 2
    code, _, err = call("compare", a, tmp_path)
    assert code == 1
    assert "slmctl eval" in err
    code, out, _ = call("compare", "--help")
    assert code == 0
    assert re.search(r"slmctl compare runs/mine runs/try", out)


@pytest.mark.parametrize(
    ("n", "text"),
    [(None, "-"), (0, "0"), (9_999, "9,999"), (12_345, "12.3k"), (999_999, "1,000k"), (15 * 10**9, "15.0B"), (10**16, "10,000T")],
)
def test_large_counts_are_short(n: int | None, text: str) -> None:
    assert short(n) == text


def with_content(content: str | None) -> Any:
    def change(results: dict[str, Any], _config: dict[str, Any]) -> None:
        if content is not None:
            results["sets"] = {name: {"content": content} for name in ("target", "general")}

    return change


@pytest.mark.parametrize(("contents", "known"), [(("a", "a"), True), (("a", "b"), False), (("a", None), False)])
def test_sets_that_are_only_taken_for_the_same_are_named(tmp_path, contents, known):
    paths = [make_run(tmp_path, f"run{i}", change=with_content(c)) for i, c in enumerate(contents)]
    found = compare_runs(load_runs(paths))
    assert {s["by_content"] for s in found["sets"].values()} == {known}
    assert all(s["loss"] for s in found["sets"].values()), "another order of the same texts is no reason not to compare"
    assert any("is taken from how many documents and tokens they have" in w for w in found["warnings"]) != known


def test_of_configurations_that_are_not_known_nothing_is_said(tmp_path):
    paths = [make_run(tmp_path, f"run{i}") for i in range(2)]
    texts = []
    for _ in range(2):
        console = Console(record=True, width=80)
        show(compare_runs(load_runs(paths)), console)
        texts.append(console.export_text())
        (paths[0] / "config.resolved.yaml").unlink(missing_ok=True)
    assert ["The configurations do not differ." in text for text in texts] == [True, False]


def test_what_auto_was_on_other_machines_is_told_and_is_no_seed(tmp_path: Path) -> None:
    def here(precision: str) -> Any:
        def change(results: dict[str, Any], config: dict[str, Any]) -> None:
            results["precisions"] = {"evaluation": "float32", "reference": precision, "scores": {"curated": precision}}
            for arm in results["arms"].values():
                arm["settings"]["precision"] = precision
            config["pretrain"]["precision"] = "auto"

        return change

    one = make_run(tmp_path, "laptop", change=here("float32"))
    other = make_run(tmp_path, "cluster", seed=1, change=here("bf16_autocast"))
    found = compared(one, other)
    told = [w for w in found["warnings"] if "precision" in w]
    assert [w.partition(" is in other precision (laptop: float32, cluster: bf16_autocast)")[0] for w in told] == [
        "the reference",
        "score set curated",
        "arm slm",
        "arm clm",
    ]
    assert all(g["n"] == 1 for g in found["seeds"]), "runs in different arithmetic are summed up as seeds"
    same = compared(one, make_run(tmp_path, "again", seed=1, change=here("float32")))
    assert not [w for w in same["warnings"] if "precision" in w]
    assert [g["n"] for g in same["seeds"]] == [2, 2]


def test_a_reference_in_another_precision_makes_other_slm_arms_but_no_other_controls(tmp_path: Path) -> None:
    def reference_in(precision: str) -> Any:
        return lambda results, _: results.update(precisions={"reference": precision, "scores": {"curated": "float32"}})

    runs = [make_run(tmp_path, p, seed=i, change=reference_in(p)) for i, p in enumerate(("float32", "bfloat16"))]
    assert {g["arm"]: g["n"] for g in compared(*runs)["seeds"]} == {"slm": 1, "clm": 2}

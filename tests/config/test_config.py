"""The configuration: every mistake at once, with its key path and line; overrides; arms; round trip."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from slmctl.config.file import check, dump_config, load_config
from slmctl.config.pipeline import PipelineConfig
from slmctl.config.training import rows_per_step, total_steps
from slmctl.config.yaml import apply_override, parse_yaml
from slmctl.system.errors import ConfigError

TEXT = """\
name: test
output_dir: out
seed: 3
model: {path: some/model}
data:
  seq_len: 64
  curated: {path: a.jsonl, text: "{question}"}
  corpus:
    - {path: ["b.jsonl", "c/*.jsonl.gz"]}
    - {hub: some/dataset, split: validation}
  heldout:
    target: {path: t.jsonl}
    general: {path: /abs/g.txt, txt_split: line}
reference: {lr: 5e-5, batch_tokens: 6400}
pretrain:
  tokens: 20_000_000
  batch_tokens: 51200
  lr: 1e-4
  selection: {ratio: 0.5}
  arms:
    slm: {selection: {group_rows: 4}}
    clm: {selection: {criterion: all}, lr: 2.0e-4}
    short: {epochs: 2}
    plain:
eval:
  tasks: [{name: gsm, path: gsm.jsonl}]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "p.yaml"
    path.write_text(TEXT)
    return path


def line_of(text: str, part: str) -> int:
    [at] = [n for n, line in enumerate(text.split("\n"), 1) if part in line]
    return at


def mistakes(tmp_path: Path, text: str, overrides: list[str] | None = None) -> list[str]:
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as e:
        load_config(path, overrides)
    assert e.value.exit_code == 2
    head, *lines = str(e.value).split("\n")
    assert head.startswith(f"{path}: {len(lines)} mistake") or not lines, str(e.value)
    return [line.strip() for line in lines] or [head]


# --- what is right ---


def test_values_and_defaults_are_read(file: Path) -> None:
    config = load_config(file)
    assert (config.name, config.seed, config.data.seq_len) == ("test", 3, 64)
    assert config.data.curated[0].path == ["a.jsonl"]
    assert [s.path or s.hub for s in config.data.corpus] == [["b.jsonl", "c/*.jsonl.gz"], "some/dataset"]
    assert (config.reference.epochs, config.reference.lr, config.reference.schedule) == (3.0, 5e-5, "cosine")
    assert config.score.references == {"curated": "reference"}
    assert config.pretrain.tokens == 20_000_000


def test_arms_inherit_pretrains_settings_and_lay_their_own_over_them(file: Path) -> None:
    arms = load_config(file).pretrain.arms
    got = {
        n: (a.tokens, a.epochs, a.lr, a.batch_tokens, a.selection.criterion, a.selection.ratio, a.selection.group_rows)
        for n, a in arms.items()
    }
    assert got == {
        "slm": (20_000_000, None, 1e-4, 51200, "excess_loss", 0.5, 4),
        "clm": (20_000_000, None, 2e-4, 51200, "all", 0.5, 8),
        "short": (None, 2.0, 1e-4, 51200, "excess_loss", 0.5, 8),
        "plain": (20_000_000, None, 1e-4, 51200, "excess_loss", 0.5, 8),
    }


def test_a_dumped_configuration_loads_equal(file: Path, tmp_path: Path) -> None:
    config = load_config(file)
    (tmp_path / "again.yaml").write_text(dump_config(config))
    again = load_config(tmp_path / "again.yaml")
    assert again == config
    assert dump_config(again) == dump_config(config)


@pytest.mark.parametrize("pipeline", sorted((Path(__file__).parents[2] / "pipelines").glob("*.yaml")), ids=lambda p: p.name)
def test_every_pipeline_is_valid_and_survives_a_round_trip(pipeline: Path, tmp_path: Path) -> None:
    config = load_config(pipeline)
    (tmp_path / "again.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "again.yaml") == config


@pytest.mark.parametrize("written", ["5e-5", "5E-5", "5.0e-5", "0.00005", "+5e-05", "5.e-5"])
def test_numbers_in_scientific_notation_are_numbers(file: Path, written: str) -> None:
    assert load_config(file, [f"pretrain.lr={written}"]).pretrain.arms["slm"].lr == 5e-5


@pytest.mark.parametrize("written", ["e5", "abc5e-5", "5e", "1.2.3", "v1e5", "deadbeef"])
def test_words_that_look_a_little_like_numbers_stay_words(written: str) -> None:
    assert parse_yaml(f"a: {written}", "x")[0] == {"a": written} == yaml.safe_load(f"a: {written}")


@pytest.mark.parametrize("key", ["eval.contamination", "pretrain.activation_checkpointing"])
def test_off_needs_no_quotes(file: Path, key: str) -> None:
    """YAML reads a bare off as false."""
    for written in ("off", "'off'", "false"):
        settings = load_config(file, [f"{key}={written}"])
        section, field = key.split(".")
        assert getattr(getattr(settings, section), field) == "off"
    with pytest.raises(ConfigError, match=key.split(".")[1]):
        load_config(file, [f"{key}=true"])


def test_data_root_goes_before_relative_paths_only(file: Path) -> None:
    config = load_config(file, ["data.root=/data/here"])
    assert config.data.curated[0].path == ["/data/here/a.jsonl"]
    assert config.data.corpus[0].path == ["/data/here/b.jsonl", "/data/here/c/*.jsonl.gz"]
    assert config.data.corpus[1].hub == "some/dataset"
    assert config.data.heldout["general"][0].path == ["/abs/g.txt"]
    assert config.eval.tasks[0].path == "/data/here/gsm.jsonl"
    assert load_config(file).data.curated[0].path == ["a.jsonl"]


def test_a_rooted_configuration_is_not_rooted_twice_when_loaded_again(file: Path, tmp_path: Path) -> None:
    config = load_config(file, ["data.root=relative/root"])
    (tmp_path / "again.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "again.yaml") == config
    assert config.data.curated[0].path == ["relative/root/a.jsonl"]


# --- overrides ---


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("seed=7", "seed", 7),
        ("data.intra_document_mask=true", "data.intra_document_mask", True),
        ("pretrain.arms.slm.selection.ratio=0.25", "pretrain.arms.slm.selection.ratio", 0.25),
        ("pretrain.arms.plain.lr=3e-4", "pretrain.arms.plain.lr", 3e-4),
        ("pretrain.lr=7e-4", "pretrain.arms.slm.lr", 7e-4),
        ("pretrain.lr=7e-4", "pretrain.arms.clm.lr", 2e-4),
        ("data.corpus.0.path=x.jsonl", "data.corpus.0.path", ["x.jsonl"]),
        ("data.corpus.0.path.1=x.jsonl", "data.corpus.0.path", ["b.jsonl", "x.jsonl"]),
        ("data.corpus={path: [x.jsonl, y.jsonl]}", "data.corpus.0.path", ["x.jsonl", "y.jsonl"]),
        ("eval.tasks=[]", "eval.tasks", []),
        ("score.dtype=float32", "score.dtype", "float32"),
        ('data.curated.text="{a}={b}"', "data.curated.0.text", "{a}={b}"),
    ],
)
def test_an_override_is_laid_over_the_file(file: Path, override: str, path: str, value: Any) -> None:
    here: Any = load_config(file, [override])
    for part in path.split("."):
        here = here[int(part)] if isinstance(here, list) else here[part] if isinstance(here, dict) else getattr(here, part)
    assert here == value


@pytest.mark.parametrize("key", ["steps", "epochs", "tokens"])
def test_a_budget_on_the_command_line_replaces_the_files(file: Path, key: str) -> None:
    arm = load_config(file, [f"pretrain.{key}=5"]).pretrain.arms["slm"]
    assert {k: getattr(arm, k) for k in ("steps", "epochs", "tokens")} == {**dict.fromkeys(("steps", "epochs", "tokens")), key: 5}
    short = load_config(file, [f"pretrain.{key}=5"]).pretrain.arms["short"]
    assert (short.epochs, short.steps, short.tokens) == (2.0, None, None), "an arm's own budget is its own"


def test_the_last_of_two_overrides_wins(file: Path) -> None:
    assert load_config(file, ["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize(
    "override",
    [
        "seed",
        "=3",
        "",
        "seed.x=1",
        "data.corpus.7.path=x",
        "data.corpus.path=x",
        "data.corpus.9=x",
        "seed=[1",
        "seed={a: 1, a: 2}",
        "data.curated.text={a} = {b}",
    ],
)
def test_an_override_that_cannot_be_laid_over_is_refused_with_its_text(file: Path, override: str) -> None:
    with pytest.raises(ConfigError) as e:
        load_config(file, [override])
    assert "\n" not in str(e.value) or repr(override) in str(e.value)


def test_an_override_is_validated_like_the_file(file: Path) -> None:
    with pytest.raises(ConfigError, match=r"pretrain\.arms\.slm\.selection\.ratio: .*less than or equal to 1 \(found 2"):
        load_config(file, ["pretrain.arms.slm.selection.ratio=2"])
    with pytest.raises(ConfigError, match=r"reference\.epocs: unknown key; did you mean 'epochs'"):
        load_config(file, ["reference.epocs=2"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=-1", "seed: "),
        ("reference.lr=fast", "reference.lr: "),
        ("data.heldout.general.txt_split=lines", "data.heldout.general.txt_split: "),
        ("data.corpus.0.pth=x", "data.corpus.0.pth: unknown key"),
        ("pretrain.arms.slm.selection={ratio: 2}", "pretrain.arms.slm.selection.ratio: "),
        ("zzz.b=1", "zzz: unknown key"),
        ("eval.target=nowhere", "eval.target: 'nowhere' is not a set"),
        ("eval.tasks=[{path: x.jsonl}]", "eval.tasks.0.name: is required but absent"),
    ],
)
def test_a_mistake_in_an_override_is_said_to_be_its_own_not_the_files(tmp_path: Path, override: str, message: str) -> None:
    [found] = mistakes(tmp_path, TEXT, [override])
    assert found.startswith(f"-o {override}: {message}")


def test_what_arms_have_from_an_override_of_pretrain_is_the_overrides(tmp_path: Path) -> None:
    own, shared = sorted(mistakes(tmp_path, TEXT, ["pretrain.batch_tokens=51201"]), key=lambda m: "arms clm" in m)
    assert own.startswith("-o pretrain.batch_tokens=51201: pretrain.arms.slm.batch_tokens: "), "whose groups are its own"
    assert shared.startswith("-o pretrain.batch_tokens=51201: pretrain.batch_tokens: ")
    own = TEXT.replace("lr: 2.0e-4", "batch_tokens: 65")
    [found] = mistakes(tmp_path, own, ["pretrain.batch_tokens=51200"])
    assert found.startswith(f"line {line_of(own, 'clm:')}: pretrain.arms.clm.batch_tokens: "), "which the file gives itself"


def test_a_mistake_of_a_part_names_its_line_and_the_override_within_it(tmp_path: Path) -> None:
    override = "pretrain.arms.clm.selection.scope=global"
    [found] = mistakes(tmp_path, TEXT, [override])
    assert found.startswith(f"line {line_of(TEXT, 'clm:')} and -o {override}: pretrain.arms.clm.selection: scope global is for")


def test_a_mistake_of_the_file_keeps_its_line_beside_overrides(tmp_path: Path) -> None:
    text = TEXT.replace("seed: 3", "seed: -1")
    assert mistakes(tmp_path, text, ["reference.lr=1e-4"])[0].startswith(f"line {line_of(text, 'seed:')}: seed: ")


def test_a_long_override_is_shortened(tmp_path: Path) -> None:
    [found] = mistakes(tmp_path, TEXT, [f"reference.schedule={'x' * 500}"])
    assert found.startswith("-o reference.schedule=xxx")
    assert found.split(": ")[0].endswith("x…")


def test_overrides_do_not_create_what_the_model_lacks(file: Path) -> None:
    data: dict[str, Any] = {"a": None}
    apply_override(data, "a.b.c=1")
    assert data == {"a": {"b": {"c": 1}}}
    with pytest.raises(ConfigError, match=r"a\.b: unknown key|a: unknown key"):
        load_config(file, ["a.b=1"])


# --- what is wrong ---


def test_every_mistake_is_listed_at_once_with_its_key_path_and_line(tmp_path: Path) -> None:
    text = (
        TEXT.replace("seed: 3", "seed: -1")
        .replace("seq_len: 64\n", "seq_len: 64\n  intra_doc_mask: true\n")
        .replace('text: "{question}"', 'txt: "{question}"')
        .replace("txt_split: line", "txt_split: lines")
        .replace("lr: 5e-5", "lr: fast")
        .replace("{group_rows: 4}", "{group_rows: 0, ratio: 1.5}")
        .replace("criterion: all", "criterion: excess_los")
        .replace("output_dir: out\n", "")
        .replace("name: gsm", "nam: gsm")
    )
    found = mistakes(tmp_path, text)
    wanted = {
        "output_dir": ("", "is required but absent"),
        "seed": ("seed:", "greater than or equal to 0 (found -1)"),
        "data.intra_doc_mask": ("intra_doc_mask", "unknown key; did you mean 'intra_document_mask'?"),
        "data.curated.txt": ("curated", "unknown key; did you mean 'text'?"),
        "data.heldout.general.txt_split": ("general:", "did you mean 'line'?"),
        "reference.lr": ("reference:", "found 'fast'"),
        "pretrain.arms.slm.selection.group_rows": ("slm:", "greater than 0 (found 0)"),
        "pretrain.arms.slm.selection.ratio": ("slm:", "less than or equal to 1 (found 1.5)"),
        "pretrain.arms.clm.selection.criterion": ("clm:", "did you mean 'excess_loss'?"),
        "eval.tasks.0.nam": ("nam: gsm", "unknown key; did you mean 'name'?"),
        "eval.tasks.0.name": ("nam: gsm", "is required but absent"),
    }
    for key, (part, message) in wanted.items():
        start = f"line {line_of(text, part)}: {key}: " if part else f"{key}: "
        assert [m for m in found if m.startswith(start) and message in m], f"{start}…{message} not among:\n" + "\n".join(found)
    assert len(found) == len(wanted), found


@pytest.mark.parametrize(
    ("where", "key", "near"),
    [
        ((), "otput_dir", "output_dir"),
        (("model",), "pth", "path"),
        (("data",), "seqlen", "seq_len"),
        (("data", "curated"), "txt_splt", "txt_split"),
        (("data", "corpus", 1), "splt", "split"),
        (("data", "heldout", "target"), "txt_splt", "txt_split"),
        (("data", "heldout", "many", 0), "txt_splt", "txt_split"),
        (("reference",), "mixx", "mix"),
        (("score",), "entropi", "entropy"),
        (("pretrain",), "weight_decy", "weight_decay"),
        (("pretrain", "selection"), "ration", "ratio"),
        (("pretrain", "arms", "slm"), "shedule", "schedule"),
        (("pretrain", "arms", "slm", "selection"), "grouprows", "group_rows"),
        (("eval", "tasks", 0), "shot", "shots"),
        (("tracking",), "wandb_projct", "wandb_project"),
    ],
)
def test_an_unknown_key_names_the_nearest_known_one(where: tuple[str | int, ...], key: str, near: str) -> None:
    data = yaml.safe_load(TEXT)
    data["data"]["heldout"]["many"] = [{"path": "x.txt"}]
    data["reference"]["lr"] = data["pretrain"]["lr"] = 1.0e-4
    here = data
    for part in where:
        here = here[part] if isinstance(here, list) else here.setdefault(part, {})
    here[key] = 1
    with pytest.raises(ConfigError) as e:
        check(data, "x")
    path = ".".join(map(str, (*where, key)))
    assert f"x: 1 mistake\n  {path}: unknown key; did you mean '{near}'?" == str(e.value)


def test_an_unknown_key_like_no_other_lists_the_known_ones(tmp_path: Path) -> None:
    [found] = mistakes(tmp_path, TEXT + "zzz: 1\n")
    assert found.startswith(f"line {len(TEXT.splitlines()) + 1}: zzz: unknown key; known here: accept_mismatch, data, device")


@pytest.mark.parametrize("ratio", ["0", "0.0", "-0.1", "1.5", ".nan", ".inf", "abc", "true"])
def test_a_ratio_out_of_range_or_no_number_is_refused(tmp_path: Path, ratio: str) -> None:
    text = TEXT.replace("{group_rows: 4}", f"{{group_rows: 4, ratio: {ratio}}}")
    [found] = mistakes(tmp_path, text)
    assert found.startswith(f"line {line_of(text, 'slm:')}: pretrain.arms.slm.selection.ratio: ")


@pytest.mark.parametrize("ratio", ["1", "1.0", "0.001"])
def test_a_ratio_at_the_edge_is_taken(file: Path, ratio: str) -> None:
    assert load_config(file, [f"pretrain.arms.slm.selection.ratio={ratio}"]).pretrain.arms["slm"].selection.ratio == float(ratio)


def test_pretrains_own_mistake_is_listed_once_not_for_every_arm(tmp_path: Path) -> None:
    text = TEXT.replace("lr: 1e-4", "lr: 0")
    [found] = mistakes(tmp_path, text)
    assert found.startswith(f"line {line_of(text, 'lr: 0')}: pretrain.lr: ")


@pytest.mark.parametrize(
    ("was", "now", "told"),
    [
        ("{ratio: 0.5}", "{ratio: 0.5, reference: x}", "pretrain.selection.reference: 'x' is not in score.references"),
        ("  lr: 1e-4", "  micro_batch: 4", "pretrain.micro_batch: 4 is less than group_rows 8"),
        ("  lr: 1e-4", "  precision: float32", "pretrain.precision: float32 does not work with flash_attention_2"),
        ("epochs: 2", "epochs: 2, batch_tokens: 51201", "pretrain.arms.short.batch_tokens: 51201 is not"),
    ],
)
def test_what_arms_have_from_pretrain_is_one_mistake(tmp_path: Path, was: str, now: str, told: str) -> None:
    text = TEXT.replace(was, now).replace("{path: some/model}", "{path: some/model, attn_implementation: flash_attention_2}")
    text = text if "precision" in now else text.replace("flash_attention_2", "sdpa")
    found = [m for m in mistakes(tmp_path, text) if now.split(": ")[-2].split()[-1] in m and "eval" not in m]
    [only] = found
    assert f"line {line_of(text, now)}: {told}" in only


def test_a_reference_that_is_no_model_is_one_mistake(tmp_path: Path) -> None:
    found = mistakes(tmp_path, TEXT + "score: {references: {a: 5, b: [x], c: {pathh: x}}}\n")
    assert [m.split(": ", 1)[1] for m in found] == [
        "score.references.a: want a model's path, or a mapping with `path` (found 5)",
        "score.references.b: want a model's path, or a mapping with `path` (found ['x'])",
        "score.references.c.path: is required but absent",
        "score.references.c.pathh: unknown key; did you mean 'path'?",
    ]


def test_every_mistaken_override_is_named(file: Path) -> None:
    with pytest.raises(ConfigError) as e:
        load_config(file, ["foo", "seed=4", "=3", "reference.lr=[", "seed.x=1", "pretrain.steps=1", "pretrain.tokens=2"])
    for part in ("-o 'foo': want", "-o '=3': want", "-o 'reference.lr=[': the value", "-o 'seed.x=1': ", "steps is given too"):
        assert part in str(e.value)
    assert "seed=4" not in str(e.value)


def test_a_budget_that_takes_the_place_of_one_in_another_unit_is_told_of(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file's 20 million tokens were silently dropped."""
    load_config(file, ["pretrain.steps=5", "reference.lr=1e-4"])
    assert capsys.readouterr().err == "note: -o pretrain.steps=5 takes the place of pretrain.tokens: 20000000 in the file\n"
    load_config(file, ["pretrain.tokens=5_000_000"])
    load_config(file, ["pretrain.steps="])
    monkeypatch.setenv("RANK", "1")
    load_config(file, ["pretrain.steps=5"])
    assert capsys.readouterr().err == ""


def test_a_key_given_twice_is_refused_with_its_line(tmp_path: Path) -> None:
    text = TEXT + "seed: 4\n"
    [found] = mistakes(tmp_path, text)
    assert f"line {len(text.splitlines())}: key 'seed' is given twice" in found


@pytest.mark.parametrize(
    ("written", "wanted", "start"),
    [
        ("batch_tokens: 51200", "batch_tokens: 51201", "pretrain.arms.slm.batch_tokens: 51201 is not a multiple of"),
        (
            "batch_tokens: 6400",
            "batch_tokens: 6500",
            "reference.batch_tokens: 6500 is not a multiple of seq_len x group_rows = 64",
        ),
    ],
)
def test_batch_tokens_must_be_whole_groups_and_the_nearest_is_named(
    tmp_path: Path, written: str, wanted: str, start: str
) -> None:
    found = mistakes(tmp_path, TEXT.replace(written, wanted))
    assert any(start in m for m in found), found
    assert all("the nearest is" in m for m in found)


def test_the_nearest_batch_is_a_multiple_by_the_arms_own_group(tmp_path: Path) -> None:
    found = mistakes(tmp_path, TEXT.replace("batch_tokens: 51200", "batch_tokens: 51456"))  # 201 x 256
    assert not [m for m in found if ".slm." in m], "201 groups of 4 rows are whole"
    [told] = [m for m in found if "multiple of seq_len x group_rows = 512; the nearest is 51" in m]
    assert "pretrain.batch_tokens: " in told
    assert told.endswith(" (arms clm, short, plain)")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("eval.target=tarjet", r"eval\.target: 'tarjet' is not a set of data\.heldout \(there are: general, target\)"),
        ("eval.heldout=[general]", r"eval\.heldout: must contain eval\.target"),
        ("eval.heldout=[target, x]", r"eval\.heldout: 'x' is not a set"),
        ("reference.keep_best_on=x", r"reference\.keep_best_on: 'x' is not a set"),
        ("pretrain.arms.slm.selection.reference=x", r"selection\.reference: 'x' is not in score\.references \(curated\)"),
        ("model.scratch={}", r"model: give exactly one of `path` and `scratch`"),
        ("data.curated={}", r"data\.curated: give exactly one of `path` and `hub`"),
        ("data.curated.hub=x", r"data\.curated: give exactly one of `path` and `hub`"),
        ("data.curated=[]", r"data\.curated: .*at least 1"),
        ("data.heldout={}", r"data\.heldout: .*at least 1"),
        ("pretrain.arms={}", r"pretrain\.arms: .*at least 1"),
        ("pretrain.arms={../x: {}}", r"pretrain\.arms.*becomes a folder's name"),
        ("name=a/b", r"name: .*becomes a folder's name"),
        ("name=..", r"name: .*becomes a folder's name"),
        ("name=7", r"name: .*string.*found 7"),
        ("pretrain.tokens=", r"pretrain\.arms\.slm: give exactly one of tokens, steps and epochs \(found none\)"),
        ("pretrain.arms.slm={steps: 1, epochs: 2}", r"pretrain\.arms\.slm: give exactly one .*found steps, epochs"),
        ("seed=1.5", r"seed: .*integer"),
        ("seed=18446744073709551616", r"seed: "),
        ("data.seq_len=1", r"data\.seq_len: .*greater than or equal to 2"),
        ("pretrain.betas=[0.9, 1.0]", r"pretrain\.betas\.1: .*less than 1"),
        ("device=tpu", r"device: 'tpu' is not one of 'auto', 'cpu' or 'cuda'"),
    ],
)
def test_each_mistake_has_its_own_message(file: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(file, [override])


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("data.heldout", [{"path": "a.txt"}, {"path": "b.txt"}]),
        ("data.heldout", {1: {"path": "a.txt"}, "target": {"path": "b.txt"}}),
        ("data.heldout", 5),
        ("data", 5),
        ("data", ["x"]),
        ("data.curated", None),
        ("data.corpus", "a.jsonl"),
        ("pretrain", None),
        ("pretrain", ["x"]),
        ("pretrain.arms", 5),
        ("pretrain.arms", ["slm", "clm"]),
        ("pretrain.arms", [{"slm": {}}]),
        ("pretrain.arms.slm", 5),
        ("pretrain.arms.slm.selection", "excess_loss"),
        ("eval", "x"),
        ("eval.heldout", "target"),
        ("eval.heldout", [["target"]]),
        ("eval.target", ["target"]),
        ("eval.tasks", {"name": "x"}),
        ("score.references", ["reference"]),
        ("score", 3),
        ("reference", True),
        ("model", "some/model"),
    ],
)
@pytest.mark.parametrize("seq_len", [64, 100])
def test_a_wrong_shape_anywhere_is_a_listed_mistake_not_a_crash(part: str, value: Any, seq_len: int) -> None:
    data: Any = copy.deepcopy(parse_yaml(TEXT, "x")[0])
    data["data"]["seq_len"] = seq_len
    *parents, last = part.split(".")
    here = data
    for p in parents:
        here = here.setdefault(p, {})
    here[last] = value
    with pytest.raises(ConfigError, match=rf"mistake(.|\n)*{part.split('.')[0]}.*: "):
        check(data, "x", {("data",): 5})


@pytest.mark.parametrize("text", ["", "just words", "- a\n- b\n", "3", "null"])
def test_a_document_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    assert "want a mapping of settings" in mistakes(tmp_path, text)[0]
    with pytest.raises(ConfigError, match="want a mapping"):
        load_config(tmp_path / "wrong.yaml", ["seed=1"])


@pytest.mark.parametrize(
    "text",
    ["a: [1", "a: b: c", "\ta: 1", "a: &x 1\nb: *y", "a: !!python/object:os.system x", "text: {{text}}", "? [a, b]\n: 1\n"],
)
def test_what_is_no_yaml_is_refused_with_the_files_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"wrong\.yaml"):
        load_config(path)


def test_a_missing_or_unreadable_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.yaml does not exist"):
        load_config(tmp_path / "absent.yaml")
    with pytest.raises(ConfigError, match="cannot read"):
        load_config(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9")
    with pytest.raises(ConfigError, match="cannot read"):
        load_config(tmp_path / "latin.yaml")


def test_the_given_data_is_not_written_to() -> None:
    data = parse_yaml(TEXT, "x")[0]
    before = copy.deepcopy(data)
    assert isinstance(check(data, "x"), PipelineConfig)
    assert data == before


# --- budgets ---


@pytest.mark.parametrize(
    ("budget", "steps"),
    [
        ("steps=7", 7),
        ("tokens=51200", 1),
        ("tokens=51201", 2),
        ("tokens=1", 1),
        ("epochs=1", 2),
        ("epochs=0.5", 1),
        ("epochs=0.001", 1),
    ],
)
def test_a_budget_is_rounded_up_to_whole_steps(file: Path, budget: str, steps: int) -> None:
    config = load_config(file, [f"pretrain.{budget}"])
    arm = config.pretrain.arms["slm"]
    assert rows_per_step(arm, 64) == 800
    assert total_steps(arm, 64, rows_per_epoch=801) == steps


def test_three_epochs_of_a_tenth_are_not_rounded_up_by_floating_point(file: Path) -> None:
    arm = load_config(file, ["pretrain.epochs=0.3"]).pretrain.arms["slm"]
    assert total_steps(arm, 64, rows_per_epoch=8000) == 3
    assert total_steps(arm, 64, rows_per_epoch=8001) == 4

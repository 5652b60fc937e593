"""init: a configuration for one's own texts, with a comment on every key that matters."""

from __future__ import annotations

import glob
import json
import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from slmctl.config.file import check
from slmctl.config.suggested_sizes import GROUP_ROWS, Sizes, sizes
from slmctl.config.yaml import parse_yaml
from slmctl.corpus.source_files import MEND
from slmctl.corpus.source_profile import BYTES_A_TOKEN, SourceProfile, profile_source
from slmctl.system.console import say
from slmctl.system.errors import ConfigError, InputError
from slmctl.system.files import publishing, read_json, why_no_folder

PLACEHOLDERS = {"curated": "curated.jsonl", "corpus": "corpus/*.jsonl.gz", "target": "target.jsonl"}
"""What stands for texts that are not given."""
ASSUMED = {"curated": 1_000_000, "corpus": 20_000_000}
"""Tokens of such texts."""
ROLES = {
    "curated": "a little of what you want the model to be good at: the reference learns from it",
    "corpus": "the large noisy text that the arms are trained on",
    "target": "more of what `curated` is of: the arms are judged by it",
    "general": "what should not get much worse",
}

_LINES = re.compile(r"\.jsonl(\.gz|\.zst)?$")
_UNPACK = {".gz": "gzip -dc", ".zst": "zstd -dc"}


@dataclass(frozen=True)
class Given:
    """Paths and patterns as they were given, and the base model, if there is one."""

    texts: dict[str, list[str]]
    """curated, corpus, target, general; what is absent was not given."""
    base_model: str | None = None


def init(file: Path, given: Given) -> None:
    """Looks at the texts and writes `file`. Raises `ConfigError` where that is there already, `InputError` where a text that is
    given cannot be read."""
    if os.path.lexists(file):
        raise ConfigError(f"{file} is there already, and is not overwritten. Give another name, or move it away.")
    if (why := why_no_folder(file.parent)) is not None:
        raise ConfigError(f"{file} cannot be written: {file.parent} {why}.")
    looked = _look(given)
    tokens = {name: sum(s.tokens for s in looked[name]) if looked.get(name) else n for name, n in ASSUMED.items()}
    found = sizes(tokens["curated"], tokens["corpus"], given.base_model is None, _context(given.base_model))
    name = re.sub(r"[^\w.-]+", "-", file.stem, flags=re.ASCII).strip("-.") or "mine"
    shown = shlex.quote(str(file)) if str(file).isprintable() else "FILE"
    text = configuration(name, looked, given.base_model, found, shown)
    data, lines = parse_yaml(text, str(file))
    check(data, str(file), lines)
    for role, sources in looked.items():
        for s in sources:
            files = f"{s.files} file{'s' * (s.files > 1)}"
            say(f"{role}: {s.path}: {files}, roughly {_short(s.tokens)} tokens; text: {s.text!r} ({s.why})")
    with publishing(file) as temporary:
        temporary.write_text(text, encoding="utf-8")
    missing = [role for role in PLACEHOLDERS if role not in looked]
    for role in missing:
        say(f"{role}: not given; {PLACEHOLDERS[role]} stands in its place: write the path of your own ({ROLES[role]})")
    if "target" in missing:
        say(_how_to_split(looked.get("curated")))


def _look(given: Given) -> dict[str, list[SourceProfile]]:
    """Raises `InputError` that names everything that cannot be read."""
    found: dict[str, list[SourceProfile]] = {}
    problems = []
    for role, paths in given.texts.items():
        for path in paths:
            try:
                found.setdefault(role, []).append(profile_source(path))
            except InputError as e:
                problems.append(f"{role}: {str(e).removesuffix(MEND).strip()}")
    if problems:
        raise InputError("\n".join(problems))
    return found


def _context(base_model: str | None) -> int | None:
    """The longest rows that a local base model takes; None where that is not known from here."""
    config = Path(base_model or "") / "config.json"
    if base_model is None or not config.is_file():
        return None
    found = read_json(config)
    longest = found.get("max_position_embeddings") if isinstance(found, dict) else None
    return longest if isinstance(longest, int) and longest > 0 else None


def _how_to_split(curated: list[SourceProfile] | None) -> str:
    path = curated[0].path if curated else PLACEHOLDERS["curated"]
    if len(curated or [path]) > 1 or glob.has_magic(path) or not (found := _LINES.search(path)):
        return (
            "A held-out set is needed, of documents that nothing is trained on. Move some of the curated ones, a tenth say, to a "
            "file of their own, which data.curated does not name, and name that as data.heldout.target."
        )
    rest, file = f"{path.removesuffix(found[0])}-train.jsonl", shlex.quote(path)
    lines = f"{_UNPACK[found[1]]} {file} | shuf" if found[1] else f"shuf {file}"
    return (
        "A held-out set is needed, of documents that nothing is trained on. Take some out of the curated ones, say a tenth\n"
        f"  {lines} | awk -v rest={shlex.quote(rest)} 'NR % 10 == 1 {{print > \"target.jsonl\"; next}} {{print > rest}}'\n"
        f"and name {rest} as data.curated and target.jsonl as data.heldout.target."
    )


# --- the text ---

MARK = "\0"
"""Stands between a line and its comment until both are put in columns."""
COLUMN = 38


def configuration(name: str, looked: dict[str, list[SourceProfile]], base_model: str | None, s: Sizes, file: str) -> str:
    """The YAML of a pipeline with its three arms, which calls itself `file` where it shows commands."""
    parts = [
        _head(name, file),
        _model(base_model, s),
        _texts(looked, s),
        _reference(base_model is None, s),
        _pretrain(base_model is None, s),
    ]
    lines = "\n".join([*parts, f"eval:\n  target: target{MARK}the held-out set that the arms are judged by\n"]).split("\n")
    return "\n".join(
        f"{line.partition(MARK)[0]:<{COLUMN - 2}}  # {line.partition(MARK)[2]}" if MARK in line else line for line in lines
    )


def _head(name: str, file: str) -> str:
    return f"""\
# Written by `slmctl init`. Check it: slmctl validate {file} --inputs
# Run it: slmctl run {file}; after a stop, run it again.
# A first try in minutes: slmctl run {file} -o pretrain.steps=20 -o output_dir=runs/{name}-try
# Every key that there is stands in slmctl's docs/configuration.md.

name: {_quoted(name)}{MARK}an output_dir belongs to one name
output_dir: {_quoted(f"runs/{name}")}{MARK}every file of the run lies here
seed: 0{MARK}packing, order, random selection, initialisation
"""


def _model(base_model: str | None, s: Sizes) -> str:
    if base_model is not None:
        return f"""\
model:{MARK}the base: reference and arms all start from it
  path: {_quoted(base_model)}{MARK}a folder or a Hub id
"""
    vocab_size, width, blocks, heads, feed_forward = s.model
    return f"""\
model:{MARK}the base: reference and arms all start from it
  # path: HuggingFaceTB/SmolLM2-135M{MARK}a base that knows its language selects better: a folder or a Hub id in place of
  {MARK}`scratch`; then lower pretrain.lr to 8.0e-5 and reference.lr to 5.0e-5
  scratch:{MARK}no base at hand: one is made, of a size that suits the corpus
    vocab_size: {vocab_size}{MARK}BPE, trained on curated and corpus text
    hidden_size: {width}{MARK}width
    num_hidden_layers: {blocks}{MARK}blocks
    num_attention_heads: {heads}{MARK}must divide hidden_size
    intermediate_size: {feed_forward}{MARK}feed-forward width
    train:{MARK}plain pretraining on the corpus, so that there is something to start from
      tokens: {s.base_tokens:_}{MARK}budget: tokens seen
      batch_tokens: {s.batch_tokens}{MARK}tokens of an optimizer step
      micro_batch: {s.micro_batch}{MARK}rows in one forward pass; accumulation follows
      lr: 2.0e-3{MARK}peak learning rate
"""


def _texts(looked: dict[str, list[SourceProfile]], s: Sizes) -> str:
    lines = [f"data:{MARK}texts and how they are packed", f"  seq_len: {s.seq_len}{MARK}tokens in a row"]
    lines += [*_set("curated", looked.get("curated"), "  "), *_set("corpus", looked.get("corpus"), "  ")]
    lines += [f"  heldout:{MARK}never trained on", *_set("target", looked.get("target"), "    ")]
    general = f"    # general: {{path: general.jsonl}}{MARK}{ROLES['general']}: a set of another kind"
    lines += _set("general", looked["general"], "    ") if "general" in looked else [general]
    return "\n".join(lines) + "\n"


def _set(role: str, sources: list[SourceProfile] | None, indent: str) -> list[str]:
    lines = [f"{indent}{role}:{MARK}{ROLES[role]}"]
    if sources is None:
        lines.append(f"{indent}  path: {_quoted(PLACEHOLDERS[role])}{MARK}CHANGE THIS: no such file was given")
        return [*lines, f'{indent}  text: "{{text}}"{MARK}template over the fields of a record']
    for s in sources:
        lead = f"{indent}  - " if len(sources) > 1 else f"{indent}  "
        rest = " " * len(lead)
        lines.append(f"{lead}path: {_quoted(s.path)}{MARK}roughly {_short(s.tokens)} tokens, at {BYTES_A_TOKEN:.0f} bytes each")
        lines.append(f"{rest}text: {_quoted(s.text)}{MARK}template over the fields of a record; guessed: {s.why}")
        if re.search(r"\.txt(\.gz|\.zst)?$", s.path):
            lines.append(f"{rest}txt_split: paragraph{MARK}what a document is: file, paragraph or line")
    return lines


def _reference(scratch: bool, s: Sizes) -> str:
    return f"""\
reference:{MARK}the base continued on the curated text: its losses say what is worth learning
  epochs: {s.reference_epochs}{MARK}budget: passes over the curated text, roughly {s.reference_steps} steps. After a few dozen a
  {MARK}reference knows the target no better than the arms come to, and its choice misleads them: a
  {MARK}small set wants small steps, and where those are too few, more passes than the paper's 3
  mix: {s.reference_mix}{MARK}share of corpus rows, so that it does not forget the corpus; more for a weak base
  batch_tokens: {s.reference_batch}{MARK}tokens of an optimizer step: small enough for some hundred steps
  lr: {"1.0e-3" if scratch else "5.0e-5"}{MARK}peak learning rate
"""


def _pretrain(scratch: bool, s: Sizes) -> str:
    passes = f"{s.passes:.2g} passes" if s.passes > 1.05 else "one pass" if s.passes > 0.95 else f"{s.passes:.0%} of a pass"
    compete = f"ratio: 0.6, group_rows: {GROUP_ROWS}"
    return f"""\
pretrain:{MARK}what all arms have in common
  tokens: {s.tokens:_}{MARK}budget of each arm, tokens seen: {s.steps} steps, roughly {passes} over the corpus
  batch_tokens: {s.batch_tokens}{MARK}tokens of an optimizer step, a multiple of seq_len x group_rows
  micro_batch: {s.micro_batch}{MARK}rows in one forward pass, in whole groups
  lr: {"1.0e-3" if scratch else "8.0e-5"}{MARK}peak learning rate
  eval_every: {s.eval_every}{MARK}steps between held-out evaluations
  eval_tokens: 65536{MARK}of each held-out set, while training
  save_every: {s.save_every}{MARK}steps between checkpoints
  keep_every: {s.save_every}{MARK}of these, {s.steps // s.save_every} stay, 12 bytes a parameter each: what it takes to
  {MARK}reach the control is read from them, and wants four at least
  keep_last: 1{MARK}newest ones kept besides
  log_every: {max(1, s.steps // 40)}{MARK}steps between printed lines
  arms:{MARK}each is the settings above with its own laid over them; keep all three
    slm: {{selection: {{criterion: excess_loss, {compete}}}}}{MARK}the 60% of highest excess loss
    clm: {{selection: {{criterion: all}}}}{MARK}control: plain language modelling
    random: {{selection: {{criterion: random, {compete}}}}}{MARK}control: as many tokens, chosen blindly
"""


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _short(tokens: int) -> str:
    for unit, size in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if tokens >= size:
            return f"{tokens / size:.3g}{unit}"
    return str(tokens)

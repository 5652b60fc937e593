"""What the documents say of raw figures, made from the raw files: `python benchmarks/figures.py` prints what is not so.

A `Claim` is a piece of a document (rows of a table, part of a sentence) as its raw file in `results/` has it. The tests look for
each piece in its document, and for figures beside the name of a raw file that no piece accounts for.
"""

from __future__ import annotations

import itertools
import json
import math
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
MODELS = ("base", "reference", "slm", "clm", "random")
README, BENCHMARKS = "README.md", "benchmarks/README.md"
CONFIGURATION, EVALUATION, HOW = (f"docs/{name}.md" for name in ("configuration", "evaluation", "how-it-works"))
Raw = Any


@dataclass(frozen=True)
class Claim:
    document: str
    raw: str
    """Name of the raw file, without `.json`."""
    words: Callable[[Raw], str]
    """What the document has to say, given the raw file."""

    @property
    def said(self) -> str:
        return plain(self.words(raw_file(self.raw)))

    def __str__(self) -> str:
        return f"{self.document}, {self.raw}, {self.words.__name__}"


CLAIMS: list[Claim] = []


def claim(document: str, raw: str) -> Callable[[Callable[[Raw], str]], Callable[[Raw], str]]:
    """Registers what a function says of a raw file as a part of a document."""

    def register(words: Callable[[Raw], str]) -> Callable[[Raw], str]:
        CLAIMS.append(Claim(document, raw, words))
        return words

    return register


@cache
def raw_file(name: str) -> Raw:
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))


def plain(text: str) -> str:
    """Text on one line, without what makes it bold."""
    return re.sub(r"\s+", " ", text.replace("**", "")).strip()


def rows(*rows_RC: list[Any]) -> str:
    """Rows of a Markdown table."""
    return "\n".join("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows_RC).replace("|  |", "| |")


# --- load -------------------------------------------------------------------------------------------------------------


@claim(README, "load")
def whole_demo_beside_loops(raw: Raw) -> str:
    now = raw["summary"]["now"]
    return f"takes {now['ratio']:.2f} times as long ({now['beside']:.0f} s in place of {now['alone']:.0f} s;"


def load_rows(raw: Raw, demo: str) -> list[list[Any]]:
    limit = f"more than {float(raw['settings']['limit']):.0f} s"
    return [
        [
            *(demo, variant, f"{of['alone']:.0f} s", f"{of['beside']:.0f} s" if of["beside"] else limit),
            f"{of['ratio']:.2f}" if of["ratio"] else "",
        ]
        for variant, of in raw["summary"].items()
    ]


@claim(BENCHMARKS, "load")
def whole_demo_table(raw: Raw) -> str:
    return rows(*load_rows(raw, "whole"))


@claim(BENCHMARKS, "load-short")
def short_demo_table(raw: Raw) -> str:
    return rows(*load_rows(raw, "short"))


@claim(BENCHMARKS, "load-short")
def spinning_alone_and_beside(raw: Raw) -> str:
    def times(where: str) -> str:
        before, now = (raw["runs"][v][where][0]["steps_per_second"]["pretrain/clm"] for v in ("before", "now"))
        return f"{before / now:.2f}"

    return (
        f"plain training takes {times('alone')} times as many steps a second, and the short demo loses some seconds "
        f"to measuring. Beside the loops it takes {times('beside')} times as many."
    )


# --- the store --------------------------------------------------------------------------------------------------------

SPEEDS = {
    "every byte re-read and hashed (`--verify` without looking at values)": (
        "slmctl: groups in file order",
        "every byte re-read and hashed",
    ),
    "ids, verified": ("slmctl: groups in file order", "ids, verified"),
    "ids and losses, verified and joined by position": (
        "slmctl: groups in file order",
        "ids and losses, verified and joined",
    ),
    "delivered as torch batches in an epoch's order": ("slmctl", "an epoch's order"),
    "numpy.memmap, delivered (uncompressed, nothing checked: the limit)": ("numpy.memmap", "an epoch's order"),
    "Hugging Face `datasets` over the same Parquet, delivered": ("datasets", "an epoch's order"),
    "mosaicml `streaming` in a DataLoader, as it documents": ("streaming, DataLoader", "an epoch's order"),
    "mosaicml `streaming`, rows by `dataset[i]`, stacked": ("streaming", "an epoch's order"),
}


def rate(million: float) -> str:
    return f"{million:,.0f}" if million >= 25 else f"{million:.1f}"


@claim(BENCHMARKS, "store")
def store_speeds(raw: Raw) -> str:
    found = {title: [raw[cores][who][how]["million_tokens_per_s"] for cores in CORES] for title, (who, how) in SPEEDS.items()}
    return rows(*([title, *map(rate, speeds)] for title, speeds in found.items()))


CORES = ("1 core", "2 cores")


@claim(BENCHMARKS, "store")
def store_times(raw: Raw) -> str:
    datasets, loader, bare = (
        [raw[c]["slmctl delivers, times"][f"{who}, an epoch's order"] for c in CORES]
        for who in ("datasets", "streaming, DataLoader", "streaming")
    )
    one = raw["1 core"]
    joined = one["slmctl: groups in file order"]["ids and losses, verified and joined"]["million_tokens_per_s"]
    streamed = one["streaming, DataLoader"]["an epoch's order"]["million_tokens_per_s"]
    return (
        f"So {datasets[0]:.0f} times `datasets` on one core, {datasets[1]:.0f} times on two. Of `streaming` as it is used: "
        f"read, verified and joined {joined / streamed:.1f} times; delivered {loader[0]:.1f} times on one core and "
        f"{loader[1]:.1f} times on two; of its bare `__getitem__` {bare[0]:.1f} and {bare[1]:.1f} times."
    )


@claim(BENCHMARKS, "store")
def store_bytes(raw: Raw) -> str:
    held = raw["bytes_per_token"]
    slmctl = [held["slmctl: losses"], held["slmctl: losses, compact"], held["slmctl"]]
    return rows(["slmctl", *(f"{v:.3f}" for v in slmctl)], ["streaming, memmap", "", "", f"{held['numpy.memmap']:.1f}"])


@claim(BENCHMARKS, "store")
def store_written(raw: Raw) -> str:
    ours, streaming, memmap = (raw["written"][w]["million_tokens_per_s"] for w in ("slmctl", "streaming", "numpy.memmap"))
    return f"{ours:.1f}M tokens a second (streaming {streaming:.0f}M, unchecked; memmap {memmap:,.0f}M)"


TEXTS = {"PEPs, V = 4,096; 32,000; 49,152": "peps", "GSM8K, the same": "gsm8k_train"}
TEXTS["algebra textbooks as XML, the same"] = "openstax_algebra_cnxml"


@claim(BENCHMARKS, "store-encoding")
def encoding_bytes(raw: Raw) -> str:
    def line(title: str, names: list[str]) -> list[str]:
        held = [raw["bytes_per_token"][name] for name in names]
        ids = [[h["float16"][side]["ids"] for h in held] for side in ("this", "other")]
        both = [[h[dtype]["this / other"]["ids and losses"] for h in held] for dtype in ("float16", "compact")]
        return [title, *("; ".join(f"{v:.3f}" for v in values) for values in (*ids, *both))]

    texts = (line(title, [f"{name}, {v}" for v in (4096, 32000, 49152)]) for title, name in TEXTS.items())
    return rows(line("made-up, frequencies of Zipf, V = 49,152", ["made-up"]), *texts)


# --- scoring, training, the head --------------------------------------------------------------------------------------


@claim(BENCHMARKS, "score")
def score_table(raw: Raw) -> str:
    def line(name: str) -> list[str]:
        found, memory = raw[name], raw[name]["memory"]
        shape = found["shape"]
        ratios = [found[w]["ratio_to_bare"] for w in ("losses", "losses and entropy")]
        held = [memory[k] for k in ("added_bytes", "one_chunk_bytes", "whole_logits_bytes")]
        title = f"V = {shape['vocab']:,}, d = {shape['width']}, {shape['layers']} layers"
        return [title, *(f"{r:.3f}" if r > 0.99 else f"{r:.2f}" for r in ratios), *(f"{b / 1e6:,.0f} MB" for b in held)]

    return rows(*map(line, ("V=32k", "V=49k", "V=150k")))


def _step_table(small: Raw, large: Raw) -> str:
    arms = {
        "clm: ours, all tokens": "clm",
        "slm: ours, excess loss, 60%": "slm",
        "random: ours, random 60% (no live losses)": "random",
        "naive masking of full logits, stored reference losses": "naive",
        "`Trainer` with a live reference, full logits": "trainer slm",
        "`Trainer`, plain": "trainer clm",
    }
    speeds = (
        [title, *(str(side["arms"][arm]["tokens_per_s"]) if arm in side["arms"] else "" for side in (small, large))]
        for title, arm in arms.items()
    )
    ratios = {
        "slm / clm (wanted 1.00; 1.05 at V = 150k)": "slm / clm",
        "slm / Trainer with live reference (wanted 1.35)": "slm / trainer slm",
        "clm / Trainer (wanted 1.0 on a CPU)": "clm / trainer clm",
    }
    return rows(*speeds, *([title, *(f"{side['ratios'][r]:.2f}" for side in (small, large))] for title, r in ratios.items()))


@claim(BENCHMARKS, "step-cpu")
def step_table(raw: Raw) -> str:
    return _step_table(raw["cpu-32k"], raw_file("step-cpu-150k")["cpu-150k"])


@claim(BENCHMARKS, "step-cpu-150k")
def step_table_150k(raw: Raw) -> str:
    return _step_table(raw_file("step-cpu")["cpu-32k"], raw["cpu-150k"])


@claim(BENCHMARKS, "step-memory")
def step_memory(raw: Raw) -> str:
    trunk, clm, slm, naive = (raw["peak_resident_bytes"][a] / 1e9 for a in ("trunk", "clm", "slm", "naive"))
    added = f"What ours adds, {max(clm, slm) - trunk:.1f} GB, is"
    return f"trunk alone {trunk:.2f} GB; clm {clm:.2f} GB and slm {slm:.2f} GB; naive {naive:.2f} GB. {added}"


@claim(BENCHMARKS, "head-cpu")
def head_table(raw: Raw) -> str:
    titles = {"full": "full logits, autograd", "torch linear_cross_entropy": "torch `linear_cross_entropy`"}
    titles["torch linear_cross_entropy, chunked"] = "torch `linear_cross_entropy`, chunked"

    def line(variant: str) -> list[str]:
        found = [shape["variants"][variant] for shape in raw["shapes"].values()]
        cells = [cell for f in found for cell in (f"{f['ms']:,.0f} ms", f"{f['peak_bytes'] / 1e6:,.0f} MB")]
        return [titles.get(variant, variant), *cells, f"{found[0]['error']:.0e}"]

    return rows(*map(line, raw["shapes"]["V=4k"]["variants"]))


PRECISIONS = ("float32", "bf16_autocast", "bfloat16")


@claim(BENCHMARKS, "precision")
def precision_table(raw: Raw) -> str:
    found = {(p["live"], p["reference"]): p for p in raw["selection"]["pairs"]}

    def cell(live: str, reference: str) -> str:
        pair = found[live, reference]
        return f"{pair['replaced']:.1%} ({pair['given_up']:.1%})" if pair["replaced"] else "0"

    return rows(*([f"live model in {live}", *(cell(live, r) for r in PRECISIONS)] for live in PRECISIONS))


@claim(BENCHMARKS, "precision")
def precision_storage(raw: Raw) -> str:
    figures = raw["selection"]["figures"]
    float16, compact = (figures[f"stored as {k}"]["replaced"] for k in ("float16", "compact"))
    return f"Storing float16 replaces {float16:.2%}, compact {compact:.2%}."


@claim(BENCHMARKS, "precision")
def precision_speed(raw: Raw) -> str:
    kinds = raw["speed"]["by_instruction_set"]

    def lines(how: str) -> list[list[Any]]:
        passes = ([r for r in kinds[k] if r["pass"] == how] for k in ("amx", "avx512_bf16", "avx512"))
        return [[found[0]["hidden_size"], how, *map(cell, found)] for found in zip(*passes, strict=True)]

    def cell(found: dict[str, Any]) -> str:
        return "{bf16_autocast:.2f} ({bfloat16:.2f})".format(**found["times_float32"])

    return rows(*lines("training"), lines("forward")[-1])


@claim(CONFIGURATION, "precision")
def precision_in_short(raw: Raw) -> str:
    figures = raw["selection"]["figures"]

    def share(what: str) -> str:
        return f"{figures[what]['replaced']:.1%}"

    return (
        f"of SmolLM2-135M's top {raw['selection']['ratio']:.0%} beside a near twin, storing float16 replaces "
        f"{figures['stored as float16']['replaced']:.2%}, scoring in `bf16_autocast` {share('reference in bf16_autocast')} "
        f"(`bfloat16` {share('reference in bfloat16')}), a live model in `bf16_autocast` {share('live model in bf16_autocast')}, "
        f"both {share('both in bf16_autocast')}, giving up {figures['both in bf16_autocast']['given_up']:.1%} of the gain"
    )


# --- intervals --------------------------------------------------------------------------------------------------------

LENGTHS = {"even, 20 to 400": "even, 20 to 400 tokens", "lognormal, sigma 1": "", "lognormal, sigma 1.5": "", "Pareto, 1.5": ""}
BY_LENGTH = "a loss that falls with length, as its power of "


def _span(found: list[float]) -> str:
    return f"{100 * min(found):.1f} to {100 * max(found):.1f}%"


def _coverage(raw: Raw, lengths: str | None, power: str | None, key: str = "coverage") -> str:
    """The least and the most, where losses do not depend on length, or fall as its power."""
    return _span(
        [
            row[key]
            for row in raw["rows"]
            if lengths in (None, row["lengths"])
            and (not row["losses"].startswith(BY_LENGTH) if power is None else row["losses"] == BY_LENGTH + power)
        ]
    )


@claim(BENCHMARKS, "intervals")
def intervals_table(raw: Raw) -> str:
    return rows(
        *(
            [
                *(title or name, _coverage(raw, name, None), _coverage(raw, name, None, "coverage_plain_bootstrap_t")),
                *(_coverage(raw, name, power) for power in ("-0.03", "-0.1")),
            ]
            for name, title in LENGTHS.items()
        )
    )


@claim(EVALUATION, "intervals")
def intervals_in_short(raw: Raw) -> str:
    return (
        f"Of 95% intervals {_coverage(raw, None, None)} held the truth with 12 to 300 made-up documents of four kinds of lengths "
        f"(the plain bootstrap-t: {_coverage(raw, None, None, 'coverage_plain_bootstrap_t')}), as long as a document's loss does "
        f"not depend on its length; where it falls as the length's power of -0.1, {_coverage(raw, None, '-0.1')} did"
    )


# --- prepare ----------------------------------------------------------------------------------------------------------


@claim(BENCHMARKS, "prepare-real")
def prepare_real(raw: Raw) -> str:
    low, high = min(raw["seconds"]), max(raw["seconds"])
    return f"{raw['text_mb_per_s']:.2f} MB a second over the whole command ({low:.0f} to {high:.0f} s"


@claim(BENCHMARKS, "prepare-real")
def prepare_ratio(raw: Raw) -> str:
    bare = [r["bytes"] / r["seconds"] / 1e6 for r in raw["bare_tokenizer"]]
    ours = raw["text_mb_per_s"]
    return (
        f"{raw['ratio_to_bare_tokenizer']:.2f} of the bare batch encoder, whose own rounds ranged from {min(bare):.1f} to "
        f"{max(bare):.1f} MB/s (so {ours / max(bare):.2f} to {ours / min(bare):.2f})"
    )


@claim(BENCHMARKS, "prepare-1gb")
def prepare_made_up(raw: Raw) -> str:
    return f"{raw['ratio_to_bare_tokenizer']:.2f} over 1 GB ({raw['text_mb_per_s']:.1f} of {raw['bare_text_mb_per_s']:.1f} MB/s)"


@claim(BENCHMARKS, "prepare-500mb")
def prepare_half(raw: Raw) -> str:
    return f"and {raw['ratio_to_bare_tokenizer']:.2f} over 0.5 GB"


def _memory(raw: Raw, size: str) -> str:
    return rows([size, f"{raw['tokens'] / 1e6:,.1f}M", f"{raw['peak_resident_bytes'] / 1e6:,.0f} MB"]).replace(".0M", "M")


@claim(BENCHMARKS, "prepare-100mb-words")
def prepare_memory_small(raw: Raw) -> str:
    return _memory(raw, "0.1 GB")


@claim(BENCHMARKS, "prepare-10gb-words")
def prepare_memory_large(raw: Raw) -> str:
    return rows(["10 GB", f"{raw['tokens'] / 1e6:,.0f}M", f"{raw['peak_resident_bytes'] / 1e6:,.0f} MB"])


@claim(HOW, "prepare-real")
def prepare_in_short(raw: Raw) -> str:
    share = f"about {raw['ratio_to_bare_tokenizer']:.1f} of the bare tokenizer"
    return f"{raw['text_mb_per_s']:.1f} MB of real text a second on two cores, {share}"


@claim(HOW, "prepare-real")
def prepared_in_short(raw: Raw) -> str:
    found = [r["shard_bytes_per_token"] for r in (raw, raw_file("prepare-100mb-words"))]
    return f"{min(found):.1f} to {max(found):.1f} bytes a token"


@claim(HOW, "store")
def scores_in_short(raw: Raw) -> str:
    return f"{raw['bytes_per_token']['slmctl: losses']:.1f} bytes a token"


# --- models, BOS ------------------------------------------------------------------------------------------------------


@claim(BENCHMARKS, "architectures")
def architectures(raw: Raw) -> str:
    titles = {"whole rows": "whole rows", "documents": "`intra_document_mask`, sdpa or eager"}
    titles["documents, varlen"] = "`intra_document_mask`, varlen"
    return rows(*([t, *(raw["counts"][k][v] for v in ("right", "refused", "WRONG"))] for k, t in titles.items()))


@claim(BENCHMARKS, "architectures")
def architecture_kinds(raw: Raw) -> str:
    return f"{len(raw['cases'])} tiny configurations of {_types(raw)} of"


@claim(HOW, "architectures")
def architecture_types(raw: Raw) -> str:
    return f"what that means for {_types(raw)} model types"


def _types(raw: Raw) -> int:
    return len({case["type"] for case in raw["cases"].values()})


def _contexts(raw: Raw) -> Iterator[tuple[str, list[float], list[float]]]:
    """Tokens before, and the losses by seed with a BOS and without."""
    for found in zip(*(run["loss_by_context"] for run in raw["runs"]), strict=True):
        first, last = found[0]["tokens_before"]
        yield str(first) if first == last else f"{first} to {last}", [f["always"] for f in found], [f["never"] for f in found]


def _seeds(values: list[float]) -> str:
    return ", ".join(f"{v:.3f}" for v in values)


@claim(BENCHMARKS, "bos")
def bos_table(raw: Raw) -> str:
    whole = [[run["loss"][how] for run in raw["runs"]] for how in ("always", "never")]
    lines = [*_contexts(raw), ("all", *whole)]
    return rows(*([t, _seeds(a), _seeds(n), _seeds([y - x for x, y in zip(a, n, strict=True)])] for t, a, n in lines))


@claim(HOW, "bos")
def bos_in_short(raw: Raw) -> str:
    first, second = ([n - a for a, n in zip(a, n, strict=True)] for _, a, n in list(_contexts(raw))[:2])
    number = {1: "one seed", 2: "two seeds", 3: "three seeds"}[len(raw["runs"])]
    return (
        f"leaving it out costs {min(first):.2f} to {max(first):.2f} nats on a row's first predicted token and "
        f"{min(second):.2f} to {max(second):.2f} on its second, over {number}"
    )


# --- the demo ---------------------------------------------------------------------------------------------------------


def _more(times_fewer: float) -> str:
    return f"{times_fewer:.2f}x fewer" if times_fewer > 1 else f"{1 / times_fewer:.2f}x more"


def _thousands(tokens: float) -> str:
    return f"{tokens / 1e3:.0f}k"


@claim(README, "demo")
def demo_table(raw: Raw) -> str:
    def losses(name: str) -> list[str]:
        return [f"{raw['models'][m]['heldout'][name]['loss']:.3f}" for m in MODELS]

    slm, clm, random = (raw["arms"][a]["control"] for a in ("slm", "clm", "random"))
    never = "not reached" if random["tokens_to_reach"] is None else _thousands(random["tokens_to_reach"])
    noise = [raw["noise"][a]["noise_selected"] / raw["noise"][a]["noise_seen"] for a in ("slm", "clm", "random")]
    reached = f"{_thousands(slm['tokens_to_reach'])} ({_more(slm['times_fewer_tokens'])})"
    return rows(
        ["target loss (word problems), nats a token", *losses("target")],
        ["general loss (stories)", *losses("general")],
        ["tokens seen until clm's final target loss", "", "", reached, _thousands(clm["tokens_to_reach"]), never],
        ["FLOPs until then, with reference and scoring", "", "", _more(slm["times_fewer_flops_all"]), "1x", never],
        ["known noise tokens trained on", "", "", *(f"{share:.1%}" for share in noise)],
    )


@claim(EVALUATION, "demo")
def demo_seeds(raw: Raw) -> str:
    slm, clm, random = (next(e for e in raw["seeds"] if e["arm"] == arm) for arm in ("slm", "clm", "random"))
    against = [_gap(slm, its) for its in (clm, random)]
    fewer, (low, high) = slm["control"]["times_fewer_tokens"], slm["control"]["interval"]["times_fewer_tokens"]
    general = [[raw["models"][a]["heldout"]["general"]["loss"] for a in e["arms"]] for e in (slm, clm, random)]
    means = [sum(losses) / len(losses) for losses in general]
    return (
        "Over three seeds of the arms' order (one base, one reference; `slmctl sweep`) slm's mean target loss is "
        f"{-against[0][0]:.3f} nats below clm's and {-against[1][0]:.3f} below random's (95% intervals ± {against[0][1]:.3f} "
        f"and ± {against[1][1]:.3f}); it comes down to clm's after {fewer:.2f} times fewer tokens ({low:.2f} to {high:.2f}), "
        f"and its mean general loss is {means[0] - means[1]:.3f} above clm's and {means[0] - means[2]:.3f} above random's."
    )


@claim(BENCHMARKS, "demo")
def demo_losses(raw: Raw) -> str:
    return rows(*([e["arm"], *(f"{raw['models'][a]['heldout']['target']['loss']:.4f}" for a in e["arms"])] for e in raw["seeds"]))


def _gap(mine: Raw, its: Raw) -> tuple[float, float]:
    """Difference of the means of three seeds each, and the reach of Welch's interval with two degrees of freedom."""
    a, b = mine["target_loss"], its["target_loss"]
    return a["mean"] - b["mean"], 4.302653 * math.sqrt((a["sd"] ** 2 + b["sd"] ** 2) / 3)


# --- math-scratch -----------------------------------------------------------------------------------------------------


def _losses(raw: Raw, name: str, models: tuple[str, ...]) -> list[str]:
    return [f"{raw['models'][m]['heldout'][name]['loss']:.2f}" for m in models]


@claim(EVALUATION, "math-scratch")
def scratch_table(raw: Raw) -> str:
    return rows(
        ["target loss (GSM8K test), nats a token", *_losses(raw, "target", MODELS)],
        ["general loss (held-out PEPs)", *_losses(raw, "general", MODELS)],
    )


@claim(BENCHMARKS, "math-scratch")
def scratch_bits(raw: Raw) -> str:
    titles = {"target": "target (GSM8K test)", "general": "general (held-out PEPs)"}
    bits = {n: [f"{raw['models'][m]['heldout'][n]['bits_per_byte']:.3f}" for m in MODELS] for n in titles}
    return rows(*([title, *bits[name]] for name, title in titles.items()))


@claim(EVALUATION, "math-scratch")
def scratch_size(raw: Raw) -> str:
    minutes = [arm["training_seconds"] / 60 for arm in raw["arms"].values()]
    seen = raw["arms"]["slm"]["tokens_seen"] / 1e6
    return f"{seen:.2f}M tokens an arm in {min(minutes):.0f} to {max(minutes):.0f} minutes"


@claim(EVALUATION, "math-scratch")
def scratch_curves(raw: Raw) -> str:
    goal = raw["arms"]["clm"]["evals"][-1]["heldout"]["target"]
    slm, clm, random = (_first_at(raw["arms"][arm]["evals"], goal) for arm in ("slm", "clm", "random"))
    assert slm is not None
    assert clm is not None
    return (
        f"slm came down to clm's final loss after {slm / 1e6:.2f}M tokens, clm itself after {clm / 1e6:.2f}M, "
        f"{clm / slm:.1f} times as many, and random {'never' if random is None else 'too'}"
    )


def _first_at(evals: list[dict[str, Any]], goal: float) -> float | None:
    """Tokens at which a curve first comes down to a loss, by straight lines between its points."""
    for before, after in itertools.pairwise(evals):
        high, low = before["heldout"]["target"], after["heldout"]["target"]
        if low <= goal:
            share: float = (high - goal) / (high - low)
            return before["tokens_seen"] + share * (after["tokens_seen"] - before["tokens_seen"])  # type: ignore[no-any-return]
    return None


@claim(EVALUATION, "math-scratch")
def scratch_reference(raw: Raw) -> str:
    trained, scored = raw["costs"]["reference_tokens"], raw["costs"]["scored_tokens"]["curated"]
    return f"The reference was trained on {trained / 1e6:.1f}M tokens and scored {scored / 1e6:.1f}M"


# --- what is not so ---------------------------------------------------------------------------------------------------


def document(name: str) -> str:
    return plain((ROOT / name).read_text(encoding="utf-8"))


def main() -> int:
    wrong = [c for c in CLAIMS if c.said not in document(c.document)]
    for c in wrong:
        print(f"{c} should say:\n{c.words(raw_file(c.raw))}\n")
    print(f"{len(CLAIMS) - len(wrong)} of {len(CLAIMS)} claims are as their raw files have them")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())

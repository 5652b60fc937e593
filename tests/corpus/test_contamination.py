"""Held-out documents in other text, against tuples, sets and `str` methods; and what must and must not be found."""

from __future__ import annotations

import random
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from slmctl.corpus import ngram_hashes as hashing
from slmctl.corpus.contamination import HeldOut, Watch, contamination, index_heldout
from slmctl.corpus.ngram_hashes import RUN, hash_texts, is_word_alone

CHARACTERS = (
    "aB1éÉ ß.-_\n\t'’“\u00a0\u00ad\u200b\u200d\ufeff\ufe0f"
    "\u0301\u0323\u0308ﬁ™½²Åｶﾞが漢字한글각\u1112\u1161\u11abกำที่हिन्दीİıΣςσǅ🦊𝔸٣"
)
"""Of everything that is not a plain letter: what is composed, expanded, dropped, alone, and what changes its case."""
texts_of = st.text(st.one_of(st.sampled_from(CHARACTERS), st.characters(exclude_categories=["Cs"])), max_size=40)
VOCABULARY = [f"{a}{b}" for a in "tree fox cloud river stone lamp".split() for b in ("", "s", "ed", "ing", "7")]


def plain_words(text: str) -> tuple[str, ...]:
    """Character by character."""
    found, word = [], ""
    normal = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    for char in normal:
        category = unicodedata.category(char)
        if (category == "Cf" and char != "\u200b") or "\ufe00" <= char <= "\ufe0f" or "\U000e0100" <= char <= "\U000e01ef":
            continue
        part = char.isalnum() or category[0] == "M"
        if word and (not part or is_word_alone(char)):
            found.append(word)
            word = ""
        if part and is_word_alone(char):
            found.append(char)
        elif part:
            word += char
    return tuple([*found, word] if word else found)


def plain_runs(text: str) -> list[tuple[str, ...]]:
    words = plain_words(text)
    return [words[i : i + RUN] for i in range(len(words) - RUN + 1)]


def prose(seed: int, n: int) -> list[str]:
    return random.Random(seed).choices(VOCABULARY, k=n)


def found_in(heldout: list[str], others: list[str], least: float = 0.5) -> tuple[list[int], list[int]]:
    """Documents there word for word, and by their share."""
    index = index_heldout({"target": heldout})
    watch = Watch(index)
    assert list(watch.passing(enumerate(others))) == list(enumerate(others))
    found = contamination(index, [watch.found], least)["target"]
    return found.exact.tolist(), found.overlapping.tolist()


# --- words ---


@given(st.lists(texts_of, max_size=6))
@settings(max_examples=150, deadline=None)
@example(["e\u0301x", "Éx", "ÉX"])
@example(["a\u200db", "ab"])
@example(["\u0301a", "b"])  # a mark at the beginning joins nothing of the text before it
@example(["각", "\u1100\u1161\u11a8"])
def test_words_are_those_of_plain_string_methods(texts: list[str]) -> None:
    hashed = hash_texts(texts)
    wanted = [plain_words(t) for t in texts]
    assert hashed.words_D.tolist() == [len(w) for w in wanted]
    for i, a in enumerate(wanted):
        for j, b in enumerate(wanted):
            assert (hashed.text_D[i] == hashed.text_D[j]) == (a == b), (texts[i], texts[j])
    alone = [hash_texts([t]).text_D[0] for t in texts]
    assert alone == hashed.text_D.tolist()  # whatever else is in the batch


def test_every_character_has_the_code_of_its_place_in_a_plain_word() -> None:
    """The blocks with most that is odd, each character within a word."""
    for first in (*range(0, 0x3400, 0x400), 0xA400, 0xAC00, 0xD400, *range(0xF800, 0x10400, 0x400), 0x1D400, 0x1F400, 0xE0000):
        chars = [chr(c) for c in range(first, first + 0x400) if not 0xD800 <= c < 0xE000]
        texts = [f"x{c}y" for c in chars]
        counts = [len(plain_words(t)) for t in texts]
        found = hash_texts(texts)
        assert found.words_D.tolist() == counts
        same = {t: plain_words(t) == ("xy",) for t in texts}
        assert (found.text_D == hash_texts(["xy"]).text_D[0]).tolist() == list(same.values())


@pytest.mark.parametrize("piece", [8, 64, 2**15])
def test_runs_are_those_of_tuples_and_leave_no_document(monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    monkeypatch.setattr(hashing, "_PIECE", piece)
    rng = random.Random(piece)
    texts = [" ".join(rng.choices(["a", "b", "cc", "日本", "émile"], k=rng.randint(0, 40))) for _ in range(60)]
    texts[7] = "x" * 500 + " " + texts[7]
    hashed = hash_texts(texts)
    by_run: dict[tuple[str, ...], set[int]] = {}
    for first, text in zip(hashed.first().tolist(), texts, strict=True):
        for i, run in enumerate(plain_runs(text)):
            by_run.setdefault(run, set()).add(int(hashed.run_W[first + i]))
    assert all(len(hashes) == 1 for hashes in by_run.values())
    assert len(set.union(*by_run.values())) == len(by_run) > 300
    whole = hashed.whole(np.arange(len(hashed.run_W)))
    assert len(whole) == sum(len(plain_runs(t)) for t in texts)


def test_words_of_a_large_vocabulary_do_not_collide() -> None:
    texts = [f"{i:x}" for i in range(10_000)] + [f"{i}z" for i in range(10_000)]
    assert len(set(hash_texts(texts).text_D.tolist())) == len({plain_words(t) for t in texts})


# --- matches ---


@given(st.integers(0, 10**6), st.floats(0.05, 1))
@settings(max_examples=40, deadline=None)
def test_matches_are_those_of_sets(seed: int, least: float) -> None:
    rng = random.Random(seed)
    pool = [" ".join(prose(rng.randrange(6), 60)[a : a + rng.randint(1, 50)]) for a in rng.choices(range(40), k=12)]
    heldout = rng.choices(pool, k=6)
    others = [" ".join(rng.choices(pool, k=rng.randint(1, 3))) for _ in range(4)]
    runs = {r for t in others for r in plain_runs(t)}
    wholes = {plain_words(t) for t in others}
    exact = [i for i, t in enumerate(heldout) if plain_words(t) in wholes]
    overlapping = []
    for i, text in enumerate(heldout):
        own = set(plain_runs(text))
        if i not in exact and own and len(own & runs) / len(own) >= least:
            overlapping.append(i)
    assert found_in(heldout, others, least) == (exact, overlapping)


def altered(words: list[str], keep: float) -> str:
    """The first part of the words, and others in the place of the rest."""
    n = round(len(words) * keep)
    return " ".join(words[:n] + [f"new{i}" for i in range(len(words) - n)])


TEXT = prose(1, 100)


@pytest.mark.parametrize(
    ("other", "exact", "overlapping"),
    [
        (" ".join(TEXT), [0], []),
        ("  " + ",\n".join(TEXT).upper() + "!", [0], []),
        ("“" + "—".join(TEXT) + "”", [0], []),
        (" ".join([*prose(5, 300), *TEXT, *prose(6, 300)]), [], [0]),
        ("before" + "\n\n" + " ".join(TEXT).title() + " after", [], [0]),
        (altered(TEXT, 0.66), [], [0]),  # 54 of 88 runs
        (altered(TEXT, 0.56), [], [0]),  # 44 of 88
        (altered(TEXT, 0.55), [], []),  # 43 of 88
        (altered(TEXT, 0.2), [], []),
        (" ".join(reversed(TEXT)), [], []),
        (" ".join(prose(9, 1000)), [], []),
        (" ".join(w for x in TEXT for w in (x, "and")), [], []),
    ],
)
def test_what_counts(other: str, exact: list[int], overlapping: list[int]) -> None:
    assert found_in([" ".join(TEXT), " ".join(prose(2, 80))], [other, " ".join(prose(3, 50))]) == (exact, overlapping)


def test_a_document_that_is_in_two_halves_in_two_others_is_found() -> None:
    text = " ".join(TEXT)
    assert found_in([text], [" ".join(TEXT[:50]) + " x", "y " + " ".join(TEXT[50:])]) == ([], [0])


def test_short_documents_are_found_whole_only() -> None:
    assert found_in(["Paris", "The answer is 7.", "", " - "], ["paris!", "so the answer is 7", "?", "the answer is 8"]) == (
        [0],
        [],
    )


def test_documents_next_to_each_other_make_no_run() -> None:
    assert found_in([" ".join(TEXT[:20])], [" ".join(TEXT[:10]), " ".join(TEXT[10:20])]) == ([], [])


def test_every_copy_of_a_held_out_document_counts() -> None:
    text = " ".join(TEXT)
    assert found_in([text, text, "other words", text.upper()], [text]) == ([0, 1, 3], [])


def test_text_without_spaces() -> None:
    text = (
        "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。何でも薄暗いじめじめした所でニャーニャー泣いていた。"
    )
    thai = "สวัสดีชาวโลกวันนี้อากาศดีมากเราจะไปเดินเล่นที่สวนสาธารณะ"
    assert found_in([text, thai], [f"前書き{text}後書き", f"ครับ{thai}ค่ะ"]) == ([], [0, 1])
    assert found_in([text], [text.replace("。", " ").replace("ニャー", "ﾆｬｰ")]) == ([0], [])
    assert found_in([text], ["春はあけぼの。やうやう白くなりゆく山ぎは、すこしあかりて、紫だちたる雲のほそくたなびきたる。"]) == (
        [],
        [],
    )


def test_composed_and_decomposed_spellings_are_one() -> None:
    text = "Émile naïvely déjà vu " * 5
    assert found_in([text], [unicodedata.normalize("NFD", text).upper()]) == ([0], [])


def test_it_is_the_same_whatever_the_slices_and_their_order() -> None:
    heldout = [" ".join(prose(s, 60)) for s in range(8)]
    others = [" ".join(prose(20 + i, 30)) + " " + " ".join(heldout[i].split()[: 8 * i]) for i in range(8)]
    index = index_heldout({"a": heldout[:3], "b": heldout[3:]})
    parts = []
    for i in range(0, 8, 2):
        watch = Watch(index)
        watch.look(list(enumerate(others))[i : i + 2])
        parts.append(watch.found)
    for order in (parts, parts[::-1], [*parts, *parts]):
        found = contamination(index, order, 0.5)
        assert {n: (f.documents, f.overlapping.tolist()) for n, f in found.items()} == {"a": (3, []), "b": (5, [2, 3, 4])}


def test_places_and_shares() -> None:
    index = index_heldout({"target": [" ".join(TEXT), " ".join(prose(2, 50))]})
    watch = Watch(index)
    watch.look([(4, "nothing"), (9, altered(TEXT, 0.8)), (11, " ".join(TEXT[:60]))])
    found = contamination(index, [{"runs": [], "texts": []}, watch.found], 0.5)["target"]
    assert found.where_D == [[1, 9], []]
    assert found.share_D.tolist() == [(80 - RUN + 1) / (100 - RUN + 1), 0]
    (one,) = found.examples(index.shown_D, 5)
    assert (one["document"], one["kind"], one["in"]) == (0, "overlap", [1, 9])
    assert " ".join(TEXT).startswith(one["begins"].removesuffix("…"))


def test_an_index_that_was_kept_is_the_same(tmp_path: Path) -> None:
    index = index_heldout({"a": ["日本語 " * 20, "x"], "b": [], "c": ["", " ".join(TEXT)]})
    index.save(tmp_path / "index.npz")
    kept = HeldOut.load(tmp_path / "index.npz")
    assert (kept.documents, kept.shown_D) == (index.documents, index.shown_D) == ({"a": 2, "b": 0, "c": 2}, kept.shown_D)
    watches = [Watch(i) for i in (index, kept)]
    for watch in watches:
        watch.look([(0, " ".join(TEXT)), (1, "日本語" * 20)])
    assert watches[0].found == watches[1].found != {"runs": [], "texts": []}


def test_nothing_held_out() -> None:
    assert found_in([], ["some text"]) == ([], [])

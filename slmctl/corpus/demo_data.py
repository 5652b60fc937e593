"""The demo's texts: a curated domain, a general one, and a corpus in which the noise is known.

All clean text is lower case; noise is capital letters, so a token is noise exactly when it holds a capital letter.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

NAMES = ["mia", "ben", "ana", "tom", "lea", "sam", "eva", "max", "ida", "leo", "zoe", "kai", "amy", "joe", "liz", "dan"]
THINGS = [
    "apples",
    "pears",
    "coins",
    "books",
    "pens",
    "cards",
    "shells",
    "stamps",
    "marbles",
    "eggs",
    "cups",
    "keys",
    "stones",
    "ropes",
    "lamps",
    "maps",
]
PLACES = [
    "the river",
    "the old mill",
    "a quiet harbour",
    "the north gate",
    "the market",
    "a stone bridge",
    "the valley",
    "the lighthouse",
]
WEATHER = ["rain", "fog", "snow", "bright sun", "a cold wind", "thunder", "light frost", "warm air"]
CREATURES = ["heron", "fox", "otter", "crow", "badger", "seal", "hare", "owl", "goat", "lynx", "swan", "mole"]
VERBS = ["crossed", "followed", "watched", "left", "reached", "circled", "guarded", "avoided"]
CAPITALS = "BCDFGHJKLMNPQRSTVWXZ"


def problem(rng: random.Random) -> str:
    """One word problem with its worked answer: the target domain."""
    a, b, k = rng.randint(2, 60), rng.randint(2, 40), rng.randint(2, 6)
    who, other, what = rng.choice(NAMES), rng.choice(NAMES), rng.choice(THINGS)
    kind = rng.randrange(4)
    if kind == 0:
        return f"{who} has {a} {what} and gets {b} more from {other}. how many {what} now? {a} + {b} = {a + b}. answer {a + b}."
    if kind == 1:
        return f"{who} has {a + b} {what} and gives {b} to {other}. how many are left? {a + b} - {b} = {a}. answer {a}."
    if kind == 2:
        return f"{who} fills {k} boxes with {a} {what} each. how many {what} in all? {k} * {a} = {k * a}. answer {k * a}."
    return f"{who} shares {k * a} {what} among {k} friends. how many does each get? {k * a} / {k} = {a}. answer {a}."


def story(rng: random.Random) -> str:
    """One sentence of the general domain."""
    a, b = rng.sample(CREATURES, 2)
    where, there = rng.sample(PLACES, 2)
    return f"in {rng.choice(WEATHER)} the {a} {rng.choice(VERBS)} {where} where the {b} waited near {there}."


def noise(rng: random.Random) -> str:
    """Random capital letters: no model can predict them."""
    return " ".join("".join(rng.choices(CAPITALS, k=rng.randint(3, 7))) for _ in range(rng.randint(6, 14)))


def corpus_document(rng: random.Random) -> str:
    """Clean sentences of both domains with noise between them."""
    makers = rng.choices([problem, story, noise], weights=[0.3, 0.4, 0.3], k=rng.randint(6, 14))
    return "\n".join(make(rng) for make in makers)


def write_demo_data(directory: Path, seed: int = 0, corpus_documents: int = 3200) -> None:
    """Writes curated, corpus, target and general as JSON Lines into `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    counts = {"curated": 1600, "corpus": corpus_documents, "target": 160, "general": 160}
    for name, n in counts.items():
        rng = random.Random(f"{seed}-{name}")
        with open(directory / f"{name}.jsonl", "w", encoding="utf-8") as f:
            for _ in range(n):
                if name == "corpus":
                    text = corpus_document(rng)
                else:
                    text = "\n".join((story if name == "general" else problem)(rng) for _ in range(5))
                f.write(json.dumps({"text": text}) + "\n")


def is_noise(token_text: str) -> bool:
    return any(c.isupper() and c.isascii() for c in token_text)

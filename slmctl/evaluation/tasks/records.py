"""Records of the mathematics tasks, as their public files lay them out, to items: question, options, target.

A reader takes a record and gives a `Record`, or None for one that the task leaves out (it has several answers). It raises
`KeyError`, `ValueError` or `TypeError` for what is no record of the task.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from slmctl.evaluation.tasks.answers import boxed
from slmctl.evaluation.tasks.choices import LETTERS
from slmctl.evaluation.tasks.numbers import numbers, values

ASK = "Which choice is right? Explain."
STEM = frozenset(
    "abstract_algebra astronomy college_biology college_chemistry college_computer_science college_mathematics college_physics "
    "computer_security conceptual_physics electrical_engineering elementary_mathematics high_school_biology "
    "high_school_chemistry high_school_computer_science high_school_mathematics high_school_physics high_school_statistics "
    "machine_learning".split()
)
"""The subjects of MMLU that count as STEM in the paper's evaluation."""


@dataclass(frozen=True)
class Record:
    question: str
    target: str
    choices: tuple[str, ...] = ()


Fields = Mapping[str, Any]


def gsm8k(r: Fields) -> Record:
    """`question`, `answer` (it ends in `#### N`)."""
    return Record(_text(r["question"]), _number(str(r["answer"]).rsplit("####", 1)[-1]))


def mathematics(r: Fields) -> Record:
    """`problem`, `solution` (its last box is the answer), and in some files `answer`."""
    boxes = boxed(str(r.get("solution") or ""))
    target = _text(r["answer"]) if r.get("answer") not in (None, "") else boxes[-1] if boxes else ""
    if not target:
        raise ValueError("neither an answer nor a box in its solution")
    return Record(_text(r["problem"]), target)


def svamp(r: Fields) -> Record:
    """`Body`, `Question`, `Answer`."""
    body = _text(r["Body"])
    return Record(f"{body}{'' if body.endswith(('.', '!', '?', ',')) else '.'} {_text(r['Question'])}", _number(r["Answer"]))


def asdiv(r: Fields) -> Record | None:
    """`body`, `question`, `answer`: a number with its unit, a ratio, a time, a name. Records of several answers are left out."""
    answer = _text(r["answer"])
    if ";" in answer:
        return None
    bare = re.sub(r"(?<=\S)\s+\([^()]*\)$", "", answer)
    return Record(f"{_text(r['body'])} {_text(r['question'])}", bare)


def mawps(r: Fields) -> Record:
    """`input`, `target`; of the Hub's set `question`, `result`."""
    if "input" in r:
        return Record(_text(r["input"]), _number(r["target"]))
    return Record(_text(r["question"]), _number(r["result"]))


def tabmwp(r: Fields) -> Record:
    """`question`, `table`, `table_title`, `choices`, `answer`."""
    title = _text(r.get("table_title") or "")
    choices = tuple(map(str, r.get("choices") or ()))
    heading = f'Table "{title}"' if title else "Table"
    options = f" Choose one of: {', '.join(choices)}." if choices else ""
    return Record(f"{heading}:\n{_text(r['table'])}\n{_text(r['question'])}{options}", _text(r["answer"]), choices)


def mathqa(r: Fields) -> Record:
    """`problem` (or `Problem`), `options` ("a ) 12 , b ) 16 , …"), `correct` (a letter)."""
    problem = _text(r["problem"] if "problem" in r else r["Problem"])
    choices = lettered(str(r["options"]), "abcde", r"\s*\)\s*")
    return multiple_choice(problem[:1].upper() + problem[1:], choices, _text(r["correct"]))


def mmlu_stem(r: Fields) -> Record | None:
    """`question`, `choices` (four), `answer` (a number from 0, or a letter); other subjects are left out."""
    subject = r.get("subject", r.get("type"))
    if subject is not None and subject not in STEM:
        return None
    answer = r["answer"]
    letter = LETTERS[answer] if type(answer) is int else LETTERS[int(answer)] if str(answer).isdigit() else str(answer)
    return multiple_choice(_text(r["question"]), tuple(_text(c) for c in r["choices"]), letter)


def sat_math(r: Fields) -> Record:
    """`question`, `options` ("A) … B) …", or with full stops), `Answer` (a letter); of the Hub's set
    `Question`, `Possible Answers`."""
    question = r["question"] if "question" in r else r["Question"]
    options = r["options"] if "options" in r else r["Possible Answers"]
    choices = lettered(str(options), "ABCD", r"[.)]\s*")
    return multiple_choice(_text(question), choices, _text(r["Answer"]))


def multiple_choice(question: str, choices: tuple[str, ...], letter: str) -> Record:
    letter = letter.strip(" ().").upper()
    if len(letter) != 1 or letter not in LETTERS[: len(choices)]:
        raise ValueError(f"{letter!r} names none of its {len(choices)} options")
    options = ", ".join(f"({name}) {text}" for name, text in zip(LETTERS, choices, strict=False))
    return Record(f"{question}\n{ASK}\n{options}", letter, choices)


def lettered(text: str, letters: str, mark: str) -> tuple[str, ...]:
    """The options of one text, each begun by its letter and `mark`, in order; a list in quotes and brackets too."""
    places: list[tuple[int, int]] = []
    for letter in letters:
        start = places[-1][1] if places else 0
        match = re.compile(rf"(?:^|(?<=[\s,\['\"])){letter}(?:{mark})(?:{letter}(?:{mark}))?").search(text, start)
        if not match:
            break
        places.append((match.start(), match.end()))
    if len(places) < 2:
        raise ValueError(f"no lettered options in {text[:80]!r}")
    ends = [start for start, _ in places[1:]] + [len(text)]
    return tuple(
        text[at:end].strip(" ,'\"[]" if text.startswith("[") else " ,") for (_, at), end in zip(places, ends, strict=True)
    )


def _text(value: Any) -> str:
    if value is None or isinstance(value, list | dict | bool) or (isinstance(value, float) and not math.isfinite(value)):
        raise TypeError(f"{value if isinstance(value, float) else type(value).__name__} where text is wanted")
    return str(value).strip()


def _number(value: Any) -> str:
    """A target that must be a number: 145.0 as 145."""
    found = numbers(f"{value:.10g}" if isinstance(value, float) else str(value))
    if len(found) != 1 or not values(found[0]):
        raise ValueError(f"{str(value)[:60]!r} is not one number")
    return found[0].removesuffix(".0")

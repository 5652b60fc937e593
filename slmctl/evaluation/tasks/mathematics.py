"""What the tasks of suite `rho-math` are: the nine mathematics tasks of the paper's Table 1, few-shot chain of thought.

What is as in the authors' public harness: the tasks, their records and sets, the number of worked examples, "Question …
Answer" for word problems and "Problem … Solution … Final Answer" for the others, greedy decoding. What is not: the worked
examples are our own, and judging is stricter (see docs of `answers`, `numbers`, `equivalence`, `choices`), so figures are
comparable between the arms of a pipeline, and only roughly with the paper's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from slmctl.evaluation.tasks import records
from slmctl.evaluation.tasks.choices import choice
from slmctl.evaluation.tasks.equivalence import Same, same_formula, same_text
from slmctl.evaluation.tasks.formulas import formula
from slmctl.evaluation.tasks.numbers import final_answer, same_number
from slmctl.evaluation.tasks.records import Record
from slmctl.evaluation.tasks.short_answers import short_answer
from slmctl.evaluation.tasks.short_equivalence import same_short

Reader = Callable[[str, tuple[str, ...]], str | None]
"""The answer that an output of a question with these options gives; None where it gives none."""


@dataclass(frozen=True)
class Form:
    """How a question and its worked answer are written, and where a generation ends."""

    question: str
    answer: str
    """Of a worked example, after the question: fields `solution` and `target`."""
    stop: tuple[str, ...] = ("\n\nQuestion:", "\n\nProblem:", "\nQuestion:", "\nProblem:")
    between: str = "\n\n"


WORDS = Form("Question: {}\nAnswer:", " {solution} The answer is {target}.")
PROBLEM = Form("Problem:\n{}\nSolution:", "\n{solution}\nFinal Answer: The final answer is ${target}$.")
CHOICE = Form("Problem:\n{}\nSolution:", "\n{solution}\nFinal Answer: The final answer is ({target}).")


@dataclass(frozen=True)
class Hub:
    """Where the Hub holds a task's set: every one of `parts`, (config, split), end to end."""

    path: str
    parts: tuple[tuple[str | None, str], ...] = ((None, "test"),)


@dataclass(frozen=True)
class Kind:
    """A task before its records are read."""

    record: Callable[[dict[str, Any]], Record | None]
    form: Form
    examples: str
    """Name of the file of worked examples."""
    shots: int
    read: Reader
    same: Same
    hub: Hub | None
    max_new_tokens: int = 512
    files: tuple[str, ...] = ()
    """Other names of its file."""
    version: str = "3"


_SUBJECTS = "algebra counting_and_probability geometry intermediate_algebra number_theory prealgebra precalculus".split()
_SVAMP = Hub("ChilleD/SVAMP", ((None, "train"), (None, "test")))
_MATH = Hub("EleutherAI/hendrycks_math", tuple((s, "test") for s in _SUBJECTS))
_SAT = Hub("mcaleste/sat_multiple_choice_math_may_23", ((None, "train"),))

TASKS: dict[str, Kind] = {
    "gsm8k": Kind(records.gsm8k, WORDS, "words", 8, final_answer, same_number, Hub("openai/gsm8k", (("main", "test"),))),
    "minerva_math": Kind(
        records.mathematics,
        PROBLEM,
        "math",
        4,
        formula,
        same_formula,
        Hub("HuggingFaceH4/MATH-500"),
        1024,
        ("math_oai", "math500"),
    ),
    "math": Kind(records.mathematics, PROBLEM, "math", 4, formula, same_formula, _MATH, 1024),
    "svamp": Kind(records.svamp, WORDS, "words", 8, final_answer, same_number, _SVAMP),
    "asdiv": Kind(records.asdiv, WORDS, "words", 8, short_answer, same_short, Hub("EleutherAI/asdiv", ((None, "validation"),))),
    "mawps": Kind(records.mawps, WORDS, "words", 8, final_answer, same_number, Hub("MU-NLPC/Calc-mawps")),
    "tabmwp": Kind(records.tabmwp, WORDS, "tables", 8, short_answer, same_short, None),
    "mathqa": Kind(records.mathqa, CHOICE, "mathqa", 4, choice, same_text, Hub("allenai/math_qa")),
    "mmlu_stem": Kind(records.mmlu_stem, CHOICE, "stem", 4, choice, same_text, Hub("cais/mmlu", (("all", "test"),))),
    "sat_math": Kind(records.sat_math, CHOICE, "sat", 4, choice, same_text, _SAT),
}
NINE = tuple(name for name in TASKS if name != "math")
"""The paper's MATH is `minerva_math`, 500 problems; `math` is the whole test set of 5,000."""

"""What is read from an output as its answer, and whether that is the target: hard cases, right and wrong."""

# ruff: noqa: E501

from __future__ import annotations

import sys

import pytest

import slmctl.evaluation.tasks.numbers as numbers_of_texts
from slmctl.evaluation.generation import final_number
from slmctl.evaluation.tasks.answers import LONGEST_OUTPUT, boxed, own_part
from slmctl.evaluation.tasks.choices import choice
from slmctl.evaluation.tasks.equivalence import same_formula
from slmctl.evaluation.tasks.mathematics import TASKS
from slmctl.evaluation.tasks.numbers import numbers, same_number, several, stated_number
from slmctl.evaluation.tasks.short_equivalence import same_short
from slmctl.evaluation.tasks.units import same_unit

R, W = True, False
OPTIONS = ("14", r"$\frac{1}{2}$", "2 cm", "24", "none of these")

WORD_PROBLEMS = [
    # output, found, target, verdict
    (" 3 + 4 = 7. The answer is 7.", "7", "7", R),
    (" 3 + 4 = 8. The answer is 8.", "8", "7", W),
    (" The answer is 7. She then bought 3 more pens.", "7", "7", R),
    (" The answer is 7.\n\nQuestion: Tom has 9 pens.\nAnswer: The answer is 9.", "7", "7", R),
    (" The answer is 7.\nQ: Tom has 9 pens. The answer is 9.", "7", "7", R),
    (" The answer is 7.\n\nTom has 9 pens. The answer is 9.", "7", "7", R),
    (" The answer is 5. Wait, I forgot two. The answer is 7.", "7", "7", R),
    (" The answer is 80 + 150 = 230 miles.", "230", "230", R),
    (" The answer is $1,234.50.", "1234.50", "1234.5", R),
    (" The answer is \\$18 per day.", "18", "18", R),
    (" The answer is $18$ dollars.", "18", "18", R),
    (" The answer is -5.", "-5", "-5", R),
    (" The answer is −5.", "-5", "-5", R),
    (" The answer is -5.", "-5", "5", W),
    (" The answer is -$5.", "-5", "-5", R),
    (" The answer is 10-3.", "10", "7", W),
    (" The answer is 50%.", "50%", "50", R),
    (" The answer is 50%.", "50%", "0.5", R),
    (" The answer is 0.5.", "0.5", "50", W),
    (" The answer is 50.", "50", "0.5", W),
    (" The answer is 1/2.", "1/2", "0.5", R),
    (" The answer is 1 1/2 cups.", "3/2", "1.5", R),
    (" The answer is $\\frac{3}{4}$.", "3/4", "0.75", R),
    (" The answer is 3/0.", None, "3", W),
    (" The answer is 9 500.", "9500", "9500", R),
    (" The answer is 3 100% of the time.", "3", "3", R),
    (" The answer is 2,500,000 people.", "2500000", "2500000", R),
    (" The answer is 3 x 10^4.", "30000", "30000", R),
    (" The answer is 2.5e3.", "2500", "2500", R),
    (" The answer is 33.333.", "33.333", "33.33", R),
    (" The answer is 33.3.", "33.3", "33.33", W),
    (" The answer is 17.6.", "17.6", "18", W),
    (" The answer is 18.0000000001.", "18.0000000001", "18", R),
    (" The answer is 1000001.", "1000001", "1000000", W),
    (" The answer is .75.", "0.75", "0.75", R),
    (" The answer is twelve.", "12", "12", R),
    (" The answer is twenty-five eggs.", "25", "25", R),
    (" The answer is 5 (2 red and 3 blue).", "5", "5", R),
    (" The answer is 5 bags of 100 grams.", "5", "5", R),
    (" **Answer:** 42", "42", "42", R),
    (" Answer: 42 apples", "42", "42", R),
    (" The final answer is: 42", "42", "42", R),
    (" The answer to the question is 42.", "42", "42", R),
    (" She has 4 left.\n#### 4", "4", "4", R),
    (" She has 4 left.\n#### 1,004\nThen 7", "1004", "1004", R),
    (" So we get \\boxed{42} apples, out of 50.", "42", "42", R),
    (" 2 + 2 = 4, so 4 - 1 = 3 are left", "3", "3", R),
    (" She has 4 apples and 5 pears", "5", "9", W),
    (" I do not know.", None, "3", W),
    ("", None, "3", W),
    (" The answer is", None, "3", W),
    (" There are 3. The answer is unknown.", "3", "3", R),
    (" The answer is not 5 but 6.", "6", "6", R),
    (" The answer is not 5, but rather 6.", "6", "5", W),
    (" The answer is not 5. It is 6.", "6", "6", R),
    (" The answer is not 5, it is 6.", "6", "6", R),
    (" The answer is not 5.", "5", "5", R),  # nothing is stated: the last number
    (" The answer is 20% of 50, so 10.", "10", "10", R),
    (" The answer is 1/2 of 50, which is 25.", "25", "25", R),
    (" The answer is 20\\% of 50.", "20%", "20", R),
    (" The answer is 50% of the students.", "50%", "50", R),
    (" The answer is between 3 and 4. So 4", "4", "4", R),
    (" The answer is between 3 and 4.", None, "3", W),
    (" There are 6 primes between 1 and 15", "6", "6", R),
    (" The answer is 5 or 6.", "5 or 6", "5", W),
    (" The answer is 5, 6 and 7.", "5, 6 and 7", "7", W),
    (" The answer is 0.5 or 50%.", "0.5", "0.5", R),
    (" The answer is 4:30.", "4:30", "4", W),
    (" She leaves at 4. The answer is 4:30.", "4:30", "4", W),
    (" She leaves at 14:30", "14:30", "30", W),
    (" The answer is 4:00 PM.", "4", "4", R),
    (" The answer is 2.50e1.", "25", "25", R),
    (" The answer is 1e-3.", "0.001", "0.001", R),
    (f" It is {'1' * 5000}/3", "1" * 5000, "3", W),  # Python reads no whole number of more than 4,300 digits
]

PROBLEMS = [
    (r"So $\boxed{7}$." + "\nFinal Answer: The final answer is $7$. I hope it is correct.", "7", "7", R),
    (
        r"Final Answer: The final answer is $(3,\frac{\pi}{2}).$ I hope",
        r"(3,\frac{\pi}{2})",
        r"\left( 3, \frac{\pi}{2} \right)",
        R,
    ),
    (
        "Final Answer: The final answer is $5$.\n\nProblem:\nFind 6.\nSolution:\n$\\boxed{6}$\nFinal Answer: The final answer is $6$.",
        "5",
        "5",
        R,
    ),
    ("Final Answer: The final answer is $5$.\n\nNow $\\boxed{6}$. The final answer is $6$.", "5", "5", R),
    (r"First \boxed{3}, then \boxed{4}.", "4", "4", R),
    (r"First \boxed{3}, then \boxed{4}.", "4", "3", W),
    (r"So \boxed{\frac{1}{\sqrt{2}}}.", r"\frac{1}{\sqrt{2}}", r"\frac{\sqrt{2}}{2}", R),
    (r"So \boxed{\text{even}}", r"\text{even}", "even", R),
    (r"So \boxed 5", "5", "5", R),
    (r"So \boxed{5", None, "6", W),
    (r"So \fbox{5}", "5", "5", R),
    (r"We get $x = 3$ and so $2x = 6$", "6", "6", R),
    ("We get 3 and then 6", "6", "6", R),
    (r"The final answer is $\boxed{12}$.", "12", "12", R),
    ("The final answer is 4 inches per second. I hope it is correct.", "4 inches per second", "4", R),
    ("The final answer is east.", "east", r"\text{east}", R),
    ('The final answer is "even".', "even", r"\text{even}", R),
    (r"The final answer is $\$32,\!348$.", r"\$32,\!348", "32348", R),
    (r"The final answer is $\\frac{3}{2}$.", r"\\frac{3}{2}", r"\frac{3}{2}", R),
    ("The final answer is $x=5$.", "x=5", "5", R),
    ("The final answer is $1$ and $2$.", "$1$ and $2$", "2, 1", R),
    ("The final answer is $1$ or $2$.", "$1$ or $2$", "1", W),
    ("The final answer is not $5$ but $6$.", "$6$", "6", R),
    ("The final answer is 5 hours.", "5 hours", r"5 \text{ minutes}", W),
    ("The final answer is 1 1.", "1 1", "11", W),
    ("nothing", None, "5", W),
]

MULTIPLE_CHOICE = [
    ("Final Answer: The final answer is (B).", "B", "B", R),
    ("The answer is B.", "B", "B", R),
    ("The answer is B", "B", "C", W),
    ("answer is b", "B", "B", R),
    ("the answer is b )", "B", "B", R),
    ("The answer is (b) because of this.", "B", "B", R),
    ("The answer is option (C).", "C", "C", R),
    ("The correct option is D.", "D", "D", R),
    ("The right choice is (D) 24.", "D", "D", R),
    ("Answer: **C**", "C", "C", R),
    (r"The answer is $\boxed{\text{(C)}}$.", "C", "C", R),
    (r"So \boxed{C}.", "C", "C", R),
    ("(A) is wrong, as 14 is odd. The answer is (D).", "D", "D", R),
    ("The answer is not (A). The answer is (C).", "C", "C", R),
    ("The answer is (A).\n\nProblem:\nNext one.\nSolution:\nThe answer is (B).", "A", "A", R),
    ("The answer is (A).\n\nAnother one. The answer is (B).", "A", "A", R),
    ("Option (B) is correct.", "B", "B", R),
    ("B is the right answer, not A.", "B", "B", R),
    ("The answer is 24.", "D", "D", R),
    ("The answer is 1/2.", "B", "B", R),
    ("The answer is a number that none can know.", None, "A", W),
    ("The answer is A number line.", None, "A", W),
    ("The answer is none of these.", "E", "E", R),
    ("The answer is 17.", None, "A", W),
    ("B. 24 because", "B", "B", R),
    ("(C)", "C", "C", R),
    ("We compare.\nHence it must be (E)", "E", "E", R),
    ("Either (A) or (B)", None, "A", W),
    ("The answer is F.", None, "A", W),
    ("The answer is (A) and (B).", None, "A", W),
    ("(A) and (B)", None, "A", W),
    ("(A) and (B) are both right.", None, "A", W),
    ("The answer is B or C.", None, "B", W),
    ("The answer is (A), (B).", None, "A", W),
    ("The answer is (A) or option (B).", None, "A", W),
    ("The answer is $A$ and $B$.", None, "A", W),
    (r"So \boxed{A, B}.", None, "A", W),
    ("The answer is (A). Wait, the answer is (A) and (B).", None, "A", W),
    ("The answer is (A), not (B).", "A", "A", R),
    ("The answer is (A) and not (B).", "A", "A", R),
    ("The answer is B and a half is left.", "B", "B", R),
    ("The answer is (A) since (B) and (C) are wrong.", "A", "A", R),
    ("The answer is (A). B, C and D are wrong.", "A", "A", R),
    ("The answer is not (A).", None, "A", W),
    ("The answer is not (A) but (B).", "B", "B", R),
    ("", None, "A", W),
]


@pytest.mark.parametrize(("output", "found", "target", "verdict"), WORD_PROBLEMS)
def test_the_number_of_a_word_problem(output, found, target, verdict):
    judge("gsm8k", output, found, target, verdict)


@pytest.mark.parametrize(("output", "found", "target", "verdict"), PROBLEMS)
def test_the_answer_of_a_competition_problem(output, found, target, verdict):
    if output == r"So \boxed{5":
        found = "5"  # cut off: the last number is what is left
    judge("minerva_math", output, found, target, verdict)


@pytest.mark.parametrize(("output", "found", "target", "verdict"), MULTIPLE_CHOICE)
def test_the_letter_of_a_choice(output, found, target, verdict):
    judge("mathqa", output, found, target, verdict, OPTIONS)


def judge(task, output, found, target, verdict, choices=()):
    kind = TASKS[task]
    assert kind.read(output, choices) == found
    assert (found is not None and kind.same(found, target)) is verdict


def test_letters_are_those_of_the_options():
    assert choice("The answer is (D).", ("1", "2", "3")) is None
    assert choice("The answer is (D).", ("1", "2", "3", "4")) == "D"
    assert choice("The answer is 7.", ("7", "7", "8")) is None
    turns = [rf"Turning by $\begin{{bmatrix}}{row}\end{{bmatrix}}$ or so" for row in (r"1 & 0\\\\ 0 & 1", r"0 & 1\\\\ 1 & 0")]
    assert choice(f"Final Answer: The final answer is ${turns[1]}$. I hope", tuple(turns)) == "B"
    assert choice("The answer is (A) and (B).", ("7", "9", "(A) and (B)", "none")) == "C"


@pytest.mark.parametrize(
    ("output", "target", "choices", "verdict"),
    [
        ("The answer is swimming.", "swimming", ("chess", "swimming"), R),
        ("The answer is the swimming club, with 15.", "swimming", ("chess", "swimming"), R),
        ("The answer is chess, not swimming.", "swimming", ("chess", "swimming"), W),
        ("The answer is 8:40 A.M.", "8:40 A.M.", ("8:10 A.M.", "8:40 A.M."), R),
        ("The answer is 8:40 am.", "8:40 A.M.", ("8:10 A.M.", "8:40 A.M."), R),
        ("The answer is 8:40.", "8:45", (), W),
        ("The answer is Mrs. Hilt.", "Mrs. Hilt", (), R),
        ("The answer is Mr. Hilt.", "Mrs. Hilt", (), W),
        ("The answer is 3:4.", "3:4", (), R),
        ("The answer is 3 to 4.", "3:4", (), R),
        ("The answer is 3:5.", "3:4", (), W),
        ("The answer is 13:4.", "3:4", (), W),
        ("The answer is $4.80.", "4.80", (), R),
        ("The answer is 1050 visitors.", "1,050", (), R),
        ("The answer is No.", "no", ("yes", "no"), R),
        ("The answer is nobody.", "no", (), W),
        ("The answer is no one knows.", "no", (), W),
        ("The answer is no, she has too little.", "no", (), R),
        ("The answer is no because it costs more.", "no", (), R),
        ("The answer is Tom and Ann.", "Tom", (), W),
        ("The answer is Tom, Ann and Bob.", "Tom", (), W),
        ("The answer is Tom or Ann.", "Tom", (), W),
        ("The answer is Tom as well as Ann.", "Tom", (), W),
        ("The answer is Tom, not Ann.", "Tom", (), R),
        ("The answer is Tom, who has 12.", "Tom", (), R),
        ("The answer is Tom (with 12).", "Tom", (), R),
        ("The answer is 4:30.", "4", (), W),
        ("The answer is 4:30 or 5:30.", "4:30", (), W),
        ("The answer is 4:30 in the afternoon.", "4:30", (), R),
        ("The answer is 5 hours.", "5 minutes", (), W),
        ("The answer is 2 hours 30 minutes.", "2 hours", (), W),
        ("The answer is 2 hours and 30 minutes.", "2 hours", (), W),
        ("The answer is 2 hours long.", "2 hours", (), R),
        ("The answer is between 3 and 4.", "3", (), W),
        ("The answer is 1.5.", "15", (), W),
        ("The answer is -1/3.", "-(1/3)", (), R),
        ("The answer is 1/3.", "-(1/3)", (), W),
        ("It is swimming.", "swimming", ("chess", "swimming"), R),
        ("She has 12 left", "12", (), R),
        ("", "12", (), W),
    ],
)
def test_answers_in_words(output, target, choices, verdict):
    kind = TASKS["tabmwp"]
    found = kind.read(output, choices)
    assert (found is not None and kind.same(found, target)) is verdict


SAME = [
    (r"\frac{1}{2}", r"\dfrac12"), (r"\frac{1}{2}", "0.5"), (r"\tfrac{1}{2}", "1/2"), ("0.5", ".5"), ("5", "5.0"),
    (r"-\frac{2}{3}", r"\frac{-2}{3}"), (r"-\frac{2}{3}", "-2/3"), (r"1\frac{3}{4}", r"\frac{7}{4}"), ("1 3/4", "7/4"),
    ("-1 1/2", "-3/2"), (r"4\sqrt{5}", r"\sqrt{80}"), (r"\sqrt2", r"\sqrt{2}"), (r"\sqrt[3]{8}", "2"), (r"\sqrt[3]{-8}", "-2"),
    ("1,234", "1234"), (r"10,\!000", "10000"), ("1{,}234", "1234"), (r"\$5", "5"), ("$5$", "5"), ("50\\%", "50"), ("50%", "0.5"),
    (r"60^\circ", "60"), (r"60^{\circ}", "60"), ("60°", "60"), ("60 degrees", "60"), (r"5\text{ cm}", "5"), ("5 cm", "5"),
    (r"864 \mbox{ inches}^2", "864"), ("12 square units", "12"), ("7.", "7"), (r"\text{Monday}", "monday"),
    (r"\left(1, 2\right)", "(1,2)"), ("(1,2)", r"(1, \frac{4}{2})"), ("[2,5)", r"\left[2,5\right)"), (r"\{1,2\}", r"\{2, 1\}"),
    ("1, 2", "2,1"), (r"1 \text{ and } 2", "1,2"), ("x=5", "5"), ("5", r"y = 5"), ("f(x) = 2x+1", "2x+1"), ("x = 1, x = 2", "1,2"),
    (r"3 \times 10^{5}", "300000"), ("3e5", "300000"), ("3 x 10^5", "300000"), (r"2\cdot 3", "6"), ("2x+3", "3+2x"),
    ("(x+1)^2", "x^2+2x+1"), (r"\frac{x}{7}+\frac{2}{7}", r"\frac{x+2}{7}"), ("y=2x+3", "2x-y+3=0"), ("3x=6y", "x=2y"),
    ("x>3", "3<x"), (r"x \ge 3", r"3 \leq x"), (r"(-\infty, 3]", r"(-\infty,3]"), (r"x \in [2,5)", "[2,5)"),
    (r"(-\infty,0)\cup(1,\infty)", r"(1,\infty) \cup (-\infty,0)"), (r"1 \pm \sqrt{2}", r"1-\sqrt2, 1+\sqrt2"), ("2+3i", "3i+2"),
    (r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt{3}}"), (r"\pi r^2", r"r^2\pi"), (r"\frac{\pi}{6}", r"\pi/6"), ("2^{10}", "1024"),
    ("5!", "120"), (r"\binom{5}{2}", "10"), (r"\log_2 8", "3"), (r"\sin^2 x + \cos^2 x", "1"), (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
    (r"\begin{pmatrix} 1/2 & 0 \\ 0 & 1 \end{pmatrix}", r"\begin{bmatrix} 0.5 & 0 \\ 0 & 1 \end{bmatrix}"), (r"\text{(C)}", "C"),
    ("p - q", "-q+p"), ("|x-1|", "|1-x|"), ("3 + 5 = 8", "8"), ("10_2", "10_2"), (r"\\frac{3}{2}", r"\frac{3}{2}"), ("−3", "-3"), ("x^2", "x²"),
    (r"\displaystyle\frac{3\sqrt{3}}{4}", r"\frac{3\sqrt{3}}{4}"), (".35625", r"\frac{57}{160}"), ("100,200", "200, 100"), ("even", r"\text{even}."),
    ("5 cm", "5 centimeters"), ("5 km/h", "5 kilometers per hour"), (r"864 \mbox{ inches}^2", "864 square inches"), ("12 square units", r"12 \text{ cm}^2"),
    ("3 apples", "3 red apples"), ("5 feet", "5 ft"), ("1 234", "1234"), (r"1\,234\,567", "1,234,567"), ("2 3/4", r"\frac{11}{4}"), (r"2\frac12", "2.5"),
]  # fmt: skip
DIFFERENT = [
    (r"\frac{1}{2}", r"\frac{1}{3}"), ("0.333", "1/3"), ("5", "-5"), ("(1,2)", "(2,1)"), ("[2,5)", "(2,5)"), ("[2,5)", "[2,5]"),
    (r"\{1,2\}", r"\{1,3\}"), ("1,2", "1,2,3"), ("1", "1,2"), ("1,1", "1,2"), (r"\sqrt{2}", "1.41"), ("3.14", r"\pi"), ("x=5", "6"),
    ("2x=5", "5"), ("2x+3", "2x+4"), ("(x+1)^2", "x^2+1"), ("y=2x+3", "y=2x-3"), ("x>3", "x<3"), ("x>3", r"x \ge 3"), ("x>3", "3"),
    ("no", "on"), ("Monday", "Tuesday"), ("", "5"), ("5", ""), ("10_2", "10_3"), ("10_2", "10"), (r"\infty", r"-\infty"), ("5", r"\infty"),
    ("1000001", "1000000"), ("2^{100}", "2^{100}+1"), ("2^{2^{2^{2^{2^{2^2}}}}}", "5"), ("9^{9^{9^9}}", "1"), ("(((((", "5"),
    ("(" * 150 + "1" + ")" * 150, "1"), ("1" * 5000, "2" * 5000), ("1/0", "2/0"), ("__import__('os')", "5"), (r"\frac{1}", "1"),
    (r"1\frac{3}{4}", r"\frac{3}{4}"), ("50%", "5"), ("A", "B"), ("0", ""), ("12", "1,2"), (r"x \in [2,5)", "(2,5)"), ("x^2", "x^3"),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix} 2 \\ 1 \end{pmatrix}"), (r"\log_2 8", r"\log_3 8"), ("300!!!!", "1"),
    ("11", "1 1"), ("1 1", "1"), ("2 3", "6"), ("1.5", "15"), (".5", "5"), ("9.500", "9500"), ("5 hours", "5 minutes"), ("5 cm", r"5 \text{ m}"), ("3 apples", "3 pears"),
    ("5 cm^2", "5 cm"), ("5 km/h", "5 km"), ("4:30", "4"), ("Tom and Ann", "Tom"), ("(A) and (B)", "A"), ("1 1", "(1, 1)"), ("12 345 678", "12345 678"),
]  # fmt: skip


@pytest.mark.parametrize(("a", "b"), SAME)
def test_the_same_answer_written_otherwise(a, b):
    assert same_formula(a, b)
    assert same_formula(b, a)


@pytest.mark.parametrize(("a", "b"), DIFFERENT)
def test_different_answers(a, b):
    assert not same_formula(a, b)
    assert not same_formula(b, a)


def test_braces_of_boxes_are_matched():
    assert boxed(r"\boxed{\frac{1}{2}} and \boxed{\{1, \frac{3}{4}\}}") == [r"\frac{1}{2}", r"\{1, \frac{3}{4}\}"]
    assert boxed(r"\boxed{1} \boxed{2") == ["1"]
    assert boxed(r"\boxed{}") == []


def test_numbers_are_read_in_order():
    assert numbers("from 3 to -4, 5-2, x-1, 1,000 and 1,00, 2.5%") == ["3", "-4", "5", "2", "1", "1000", "1", "00", "2.5%"]
    assert numbers("1 1/2, 3/4, 2 x 10^-3") == ["3/2", "3/4", "0.002"]
    assert numbers("at 4:30 or 14:00, 3:4:5, 1.50e3, 250e-2, 1e-2/3") == ["4:30", "14", "3:4:5", "1500", "2.5", "1/300"]


def test_tolerances_of_numbers():
    assert same_number("0.33333333", "1/3")
    assert not same_number("0.33333", "1/3")
    assert same_number("2.0", "2")
    assert not same_number("2.00001", "2")
    assert same_number("12.346", "12.35")
    assert not same_number("12.3", "12.35")
    assert same_short("34 rolls", "34")
    assert not same_short("34 rolls", "3")


def test_two_numbers_are_not_one():
    assert several("5 or 6")
    assert several("5, 6, and 7")
    assert several("$5 and $6")
    assert not several("1,234")
    assert not several("1/2 or 0.5")
    assert not several("2 and 1/2")
    assert not several("5 and a half")
    assert stated_number("either 5 or 6") is None


def test_units_contradict_each_other_or_not():
    assert same_unit("", "cm")
    assert same_unit("sq. cm", "cm^2")
    assert same_unit("metres per second", "m/s")
    assert same_unit("miles", "mi")
    assert not same_unit("minutes", "meters")
    assert not same_unit("dollars", "cents")
    assert not same_unit("g", "kg")


# --- outputs that go on and on ---

NASTY = {
    **{unit: unit * (100_000 // len(unit)) for unit in (
        "The answer is ", "The answer is x and ", "answer to ", "answer: (", "answer of ****", "The answer is 1% of 2 ", "between 3 and ",
        r"\boxed{", r"\boxed{a}", r"\boxed{1", "{", "(", "((1,", "$", r"$\text{", r"\frac{1", "1", "1,", "1,111", "1 ", "1e-999 ", "1/", "1:",
        "- (1/2", "=", "####", "\n", "\n ", "(A) and ", "option A", "The answer is B or C ", "not 5 but ", "twenty-", "Mr. ",
    )},
    "spaces after a question": "\nquestion" + " " * 100_000,
    "spaces after an answer": "answer" + " " * 100_000,
    "spaces after a choice": "The choice" + " " * 100_000 + "x",
    "boxes in boxes": r"\boxed{" * 13_000 + "}" * 13_000,
    "a long number": "The answer is " + "1" * 100_000,
    "a long list": "The answer is " + "1, " * 33_000,
}  # fmt: skip
OUTPUTS = [
    ("gsm8k", "5", ()),
    ("minerva_math", r"\frac{1}{2}", ()),
    ("tabmwp", "5 hours", ("a b", "c")),
    ("mathqa", "A", OPTIONS),
]


@pytest.mark.parametrize("output", NASTY.values(), ids=NASTY)
def test_judging_is_bounded_whatever_a_model_writes(output, monkeypatch):
    """Calls of functions, and characters in which numbers are searched, are counted; plain reading needs 16,000 of these."""
    searched, steps = [0], [0]
    original = numbers_of_texts.plain

    def counted(text):
        searched[0] += len(text)
        return original(text)

    def step(_frame, _event, _arg):
        steps[0] += 1

    monkeypatch.setattr(numbers_of_texts, "plain", counted)
    for task, target, choices in OUTPUTS:
        kind = TASKS[task]
        sys.setprofile(step)
        try:
            found = kind.read(output, choices)
            if found is not None:
                kind.same(found, target)
        finally:
            sys.setprofile(None)
        assert len(found or "") <= LONGEST_OUTPUT
    assert steps[0] < 120 * LONGEST_OUTPUT
    assert searched[0] < 30 * LONGEST_OUTPUT
    final_number(output)


def test_a_long_output_is_judged_by_its_beginning_and_its_end():
    assert len(own_part("a" * 100_000)) == LONGEST_OUTPUT
    assert own_part("a" * LONGEST_OUTPUT) == "a" * LONGEST_OUTPUT
    assert own_part("It is 7.\n" + "so " * 50_000 + "\nQuestion: Tom has 9") == own_part("It is 7.\n" + "so " * 50_000)
    going_on = "and then " * 11_000
    read = TASKS["gsm8k"].read
    assert read(f"The answer is 7. {going_on}", ()) == "7"
    assert read(f"{going_on} The answer is 7.", ()) == "7"
    assert read(f"{going_on} is 7 {going_on}\n\nQuestion: Tom has 9", ()) is None
    assert read("The answer is 7. " + "The answer is unknown. " * 4000, ()) == "7"
    assert TASKS["minerva_math"].read(f"{going_on} \\boxed{{7}} " + "\\boxed{" * 100, ()) == "7"

"""Verdicts on kinds of outputs that are easily misread, each kind with answers that are right and ones that are not."""

# ruff: noqa: E501

from __future__ import annotations

from decimal import Decimal

import pytest

from slmctl.evaluation.generation import final_number
from slmctl.evaluation.tasks.answers import formulas
from slmctl.evaluation.tasks.equivalence import same_formula
from slmctl.evaluation.tasks.mathematics import TASKS

FOUR = ("One", "Two", "Three", "Four")
TIMES = ("2 hours and 15 minutes", "2 hours", "1 hour and 45 minutes", "1 hour and 30 minutes")
COURSES = ("Choir evening course", "Chess evening course", "Pottery evening course", "Garden evening course")
CLUBS = ("chess", "swimming", "drama")

MONEY = [
    # output, right answer, a wrong one
    (" The answer is $80 + $48 = $128.", "128", "80"),
    (" The answer is $20-$5=$15.", "15", "20"),
    (" The answer is $20 - $5 = $15.", "15", "5"),
    (" The answer is $ 80 + $ 48 = $ 128.", "128", "80"),
    (" The answer is $0.42 + $0.24 = $0.66.", "0.66", "0.42"),
    (" The answer is $.42 + $.24 = $.66.", "0.66", "0.42"),
    (" The answer is $1,200 + $48.50 = $1,248.50.", "1248.5", "1200"),
    (" The answer is \\$80 + \\$48 = \\$128.", "128", "80"),
    (" The answer is $\\$80 + \\$48 = \\$128$.", "128", "80"),
    (" The answer is \\(80 + 48 = 128\\).", "128", "80"),
    (" The answer is $80 + 48 = 128$ dollars.", "128", "80"),
    (" The answer is €80 + €48 = €128.", "128", "80"),
    (" The answer is £20-£5=£15.", "15", "20"),
    (" The answer is ₹80 + ₹48 = ₹128.", "128", "80"),
    (" The answer is 80 dollars + 48 dollars = 128 dollars.", "128", "80"),
    (" The answer is 80$ + 48$ = 128$.", "128", "80"),
    (" The answer is $5 x 3 = $15.", "15", "5"),
    (" The answer is $5*3=$15.", "15", "5"),
    (" The answer is $10 + $20 + $30 = $60.", "60", "10"),
    (" The answer is $100 - $20 - $30 - $5 = $45.", "45", "100"),
    (" The answer is $128 = $80 + $48.", "128", "80"),
    (" The answer is $128, because $80 + $48 = $128.", "128", "80"),
    (" The answer is $18.\nHe has $20 left.", "18", "20"),
    (" The answer is $18. He has $20 left.", "18", "20"),
    (" The answer is $18 ($20 less $2).", "18", "20"),
    (" The answer is -$5.", "-5", "5"),
    (" The answer is $80 + $48, which is $128.", "128", "80"),
    (" So she pays $80 + $48 = $128", "128", "48"),
    (" The answer is $5$ dollars.", "5", "6"),
    (" The answer is $\\frac{1}{2}$ of $10.", "0.5", "10"),
    (" The answer is $(20-5) = $15.", "15", "20"),
    (" The answer is $(3+4)*2 = $14.", "14", "3"),
    (" The answer is $(20-5) = 15$.", "15", "20"),
    (" The answer is $5 more than $20, which is $25.", "25", "5"),
    (" The answer is $5 less than $20, so $15.", "15", "5"),
    (" The answer is $5 more than $20, which is 7 days' pay.", "5", "7"),
    (" The answer is $5 more than $20.", "5", "20"),
    (" The answer is 80 euros + 48 euros, i.e. 128 euros.", "128", "80"),
    (" The answer is €80 + €48, i.e., €128.", "128", "80"),
    (" The answer is £3.50 plus £2, i.e. £5.50.", "5.5", "3.5"),
    (" The answer is £3.50 + £2 = £5.50.", "5.5", "3.5"),
    (" The answer is 20, i.e. 4 more than 16.", "20", "4"),
    (" The answer is 30 minutes, i.e. half of 1 hour.", "30", "1"),
    (" The answer is Rs. 20 + Rs. 30 = Rs. 50.\nHe has Rs. 9 left.", "50", "20"),
    (" The answer is Rs.20 + Rs.30 = Rs.50.", "50", "0.5"),
    (" The answer is Rs. 50.\nHe has Rs. 9 left.", "50", "9"),
    (" The answer is 50 Rs. He spent 3 + 4 = 7.", "50", "7"),
]
WORKED = [
    (" The answer is 676 - 224, which is 452.", "452", "676"),
    (" The answer is 676-224, which is 452.", "452", "676"),
    (" The answer is 676 - 224 which equals 452.", "452", "676"),
    (" The answer is 676 - 224, or 452.", "452", "676"),
    (" The answer is 676 - 224, so 452.", "452", "224"),
    (" The answer is 676 - 224, leaving 452.", "452", "676"),
    (" The answer is 676 - 224 → 452.", "452", "676"),
    (" The answer is 676 + 224, for a total of 900.", "900", "676"),
    (" The answer is 676 minus 224, that is 452.", "452", "676"),
    (" The answer is 3 x 4, which gives 12 apples.", "12", "3"),
    (" The answer is 3 × 4 is 12.", "12", "3"),
    (" The answer is 10 dollars + 5 dollars, which makes 15 dollars.", "15", "10"),
    (" The answer is 5, which is 3 more than 2.", "5", "3"),
    (" The answer is 5, which is 10 - 5.", "5", "10"),
    (" The answer is 10-12 days, which is 2 weeks at most.", "10", "2"),
    (" The answer is 7 - 2, which is 4 less than 9.", "7", "4"),
    (" The answer is 12 = 3 * 4.", "12", "3"),
    (" The answer is 3 * 4 = 12.", "12", "3"),
    (" The answer (arabic numerals) is 7.\n\nThe pen cost $7 and $2 were left over.", "7", "2"),
    (" The answer (in dollars) is $7.\n\nNext 9", "7", "9"),
    (" The answer in dollars is 7.\n\nNext 9", "7", "9"),
    (" The answer, in cents, is 70.\n\nNext 9", "70", "9"),
    (" The answer here is 7.\n\nNext 9", "7", "9"),
    (" The answer is:\n\n7\n\nNext 9", "7", "9"),
    (" Answer:\n\n7 apples\n\nNext 9", "7", "9"),
    (" **Answer**\n7\n\nNext 9", "7", "9"),
    (" Answer:\nHe has 3 pens and buys 4, so 3 + 4 = 7.\n\nNext 9", "7", "3"),
]
HEADINGS = [
    ("#### Step 1: count the apples\n3 + 4 = 7\n\n#### Step 2: double\n7 * 2 = 14\n\nThe answer is 14.", "14", "1"),
    ("#### Step 1: count the apples\n3 + 4 = 7\n\n#### Step 2: double\n7 * 2 = 14", "14", "1"),
    ("#### Solution\nIn 3 days he reads 2 * 3 = 6 pages.\n#### Answer\n6", "6", "3"),
    ("#### Solution\nIn 3 days he reads 2 * 3 = 6 pages.\n\n#### Final Answer\n\n6 pages\n", "6", "3"),
    ("#### Part 2 of the working\nSo 9 - 1 = 8.\n#### 8", "8", "2"),
    ("##### 1. Cost\n5 * 4 = 20\nTherefore \\boxed{20}", "20", "1"),
    ("#### 1. Cost\n5 * 4 = 20\n#### 2. Total\n20 + 1 = 21\n#### 21", "21", "1"),
    ("#### 1) Cost\n5 * 4 = 20", "20", "1"),
    ("#### **Step 1:** count\n3 + 4 = 7", "7", "1"),
    ("#### Day 1\nHe reads 3.\n#### Day 2\nHe reads 4, so 3 + 4 = 7", "7", "1"),
    ("#### Case 2: 3 boys\nThere are 5 left", "5", "2"),
    ("#### Calculate the cost of 3 pens\n3 * 4 = 12", "12", "3"),
    ("#### Calculating the cost of 3 pens:\n3 * 4 = 12", "12", "3"),
    ("#### Find 10% of 50\n5\nThe answer is 5.", "5", "10"),
    ("### Step 1\n3 + 4 = 7\n#### 7", "7", "1"),
    ("#### The 3 boys\nThey have 12 in all. The answer is 12.", "12", "3"),
    ("##### 3 pens\nThe answer is 12.", "12", "3"),
    ("#### She has 42 dollars left\nThen 9", "42", "9"),
    ("#### Monday: 3\n#### Tuesday: 4\nIn all 7. The answer is 7.", "7", "3"),
    ("#### 42", "42", "4"),
    ("####42", "42", "4"),
    ("She has 4 left. #### 4", "4", "5"),
    ("#### $1,234.50\nThen 9", "1234.5", "9"),
    ("#### -5", "-5", "5"),
    ("#### 42 apples\nThen he has 9", "42", "9"),
    ("#### **42**\n9", "42", "9"),
    ("#### \\$42\n9", "42", "9"),
    ("#### Answer: 42\n9", "42", "9"),
    ("#### Final answer: 42\n9", "42", "9"),
    ("#### The answer is 42\n9", "42", "9"),
    ("#### Total: 42\n9", "42", "9"),
    ("#### Total = 3 * 4 = 12\n9", "12", "3"),
    ("#### x = 42\n9", "42", "9"),
    ("#### She has 42 left", "42", "4"),
    ("#### 18. I hope it is right.\n#### 18", "18", "1"),
    ("#### 12\n#### 13", "12", "13"),
    ("#### Now 42\n\nNext one is 9", "42", "9"),
    ("#### Now 3 pens\nThey cost 3 * 4 = 12", "12", "3"),
    ("#### Day 5\n\nWe counted 3.", "3", "5"),
]
COMPETITION = [
    # as stated, right targets, wrong targets
    ("f(3) = 7", ["7", "f(3)=7"], ["3", "f(2)=7", "8"]),
    ("f(-2) = 7", ["7"], ["-2", "2"]),
    ("f(x) = 7", ["7", "f(x)=7"], ["x", "g(x)=7"]),
    ("g(x) = 2x+1", ["2x+1", "g(x)=2x+1"], ["2x", "2x-1"]),
    ("f(f(2)) = 7", ["7"], ["2"]),
    ("f^{-1}(3) = 7", ["7"], ["3"]),
    ("f'(3) = 7", ["7"], ["3"]),
    (r"(f \circ g)(2) = 7", ["7"], ["2"]),
    ("(f+g)(2) = 7", ["7"], ["2"]),
    ("a+b = 7", ["7", "a+b=7"], ["a", "8", "2a=7"]),
    ("m+n = 7", ["7"], ["n"]),
    ("a + b + c = 12", ["12"], ["1"]),
    ("ab = 12", ["12"], ["1"]),
    ("a^2+b^2 = 25", ["25"], ["5"]),
    ("100a+10b+c = 352", ["352"], ["100"]),
    ("x+y = 7", ["7", "x+y=7", "y+x=7"], ["8", "x-y=7"]),
    ("xy = 12", ["12"], ["1"]),
    (r"\frac{a}{b} = \frac{2}{3}", [r"\frac{2}{3}"], [r"\frac{3}{2}"]),
    (r"P(A) = \frac12", [r"\frac{1}{2}", "0.5"], ["2", r"\frac{1}{3}"]),
    (r"\text{P}(A) = \frac12", [r"\frac{1}{2}"], ["2"]),
    (r"\Pr(A) = \frac12", [r"\frac{1}{2}"], ["2"]),
    (r"\mathbb{P}(A \cap B) = 0.25", [r"\frac{1}{4}"], ["0.5"]),
    (r"P(X = 3) = \frac18", [r"\frac{1}{8}"], ["3"]),
    (r"P(X \ge 3) = \frac18", [r"\frac{1}{8}"], ["3"]),
    (r"P(\text{red}) = \frac18", [r"\frac{1}{8}"], ["8"]),
    ("E[X] = 3", ["3"], ["4"]),
    ("(x,y) = (3,2)", ["(3,2)", r"\left( 3, 2 \right)"], ["(2,3)", "3", "2", "5"]),
    (r"\left(x, y\right) = \left(3, \frac12\right)", [r"\left( 3, \frac{1}{2} \right)"], [r"(\frac12, 3)"]),
    ("(a,b,c) = (1,2,3)", ["(1,2,3)"], ["(3,2,1)", "(1,2)"]),
    (r"(r,\theta) = (3, \frac{\pi}{2})", [r"(3,\frac{\pi}{2})"], ["(3,2)"]),
    ("x = 3, y = 2", ["(3,2)"], ["(2,3)", "3"]),
    (r"n(A \cup B) = 12", ["12"], ["1"]),
    ("|A| = 5", ["5"], ["A", "-5"]),
    ("|a-b| = 5", ["5"], ["-5"]),
    ("|z| = 5", ["5", "|z|=5"], ["-5", "z=5"]),
    ("|y| = 5", ["|y|=5"], ["5"]),
    ("a:b = 2:3", ["2:3", "a:b=2:3"], ["3:2", "2", "3"]),
    ("AB : BC = 2 : 3", ["2:3"], ["3:2"]),
    ("a:b:c = 1:2:3", ["1:2:3"], ["3:2:1", "1:2"]),
    ("f(1)+f(2) = 10", ["10", "f(1)+f(2)=10"], ["1", "f(1)"]),
    ("2f(1) - f(-2) = 10", ["10"], ["2"]),
    ("x(1)+x(2) = 3", ["3x=3"], ["3"]),
    (r"\sin 30^\circ = \frac12", [r"\frac{1}{2}", "0.5"], ["30", "2"]),
    ("10!", ["10!", "3628800"], ["10", "9!"]),
    ("(2+3)!", ["120", "5!"], ["5"]),
    ("n!", ["n!"], ["n"]),
    (r"\text{Yes!}", [r"\text{yes}"], ["no"]),
    (r"\angle ABC = 60^\circ", ["60", r"60^\circ"], ["30"]),
    (r"m\angle A = 60^\circ", ["60"], ["30"]),
    (r"\sin A = \frac35", [r"\frac{3}{5}"], [r"\frac{4}{5}"]),
    (r"\overline{AB} = 5", ["5"], ["6"]),
    ("AB = 5", ["5"], ["6"]),
    ("[ABC] = 12", ["12"], ["6"]),
    (r"\text{Area} = 12", ["12"], ["6"]),
    (r"\text{area of } \triangle ABC = 12", ["12"], ["6"]),
    ("a_{10} = 19", ["19"], ["10"]),
    ("a_{n+1} = 19", ["19"], ["1"]),
    ("S_{10} = 55", ["55"], ["10"]),
    (r"\gcd(12, 18) = 6", ["6"], ["12"]),
    (r"\sum_{k=1}^{10} k = 55", ["55"], ["10"]),
    (r"\lim_{x \to 0} f(x) = 3", ["3"], ["0"]),
    (r"\mathbf{A}^{-1} = \begin{pmatrix} 1 & 0 \\ 0 & 1 \end{pmatrix}", [r"\begin{pmatrix} 1 & 0 \\ 0 & 1 \end{pmatrix}"], [r"\begin{pmatrix} 0 & 1 \\ 1 & 0 \end{pmatrix}"]),
    (r"\begin{pmatrix} x \\ y \end{pmatrix} = \begin{pmatrix} 1 \\ 2 \end{pmatrix}", [r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"], [r"\begin{pmatrix} 2 \\ 1 \end{pmatrix}"]),
    ("n=34", ["34", "n = 34"], ["4"]),
    ("x = 3", ["3", "x=3"], ["4"]),
    ("3x+4y=5", ["3x+4y=5", "6x+8y=10", "4y = 5 - 3x"], ["5", "3x+4y=6", "3x-4y=5"]),
    ("x^2+y^2 = 9", ["x^2+y^2=9"], ["9", "3"]),
    ("x - y - z = 0", ["x-y-z=0"], ["0"]),
    ("2x = 10", ["2x=10"], ["10"]),
    ("2n = 10", ["n = 5"], ["10"]),
    ("x^2 = 49", ["x^2=49"], ["49"]),
    ("x(x+1) = 6", ["x(x+1)=6"], ["6"]),
    ("n(n+1) = 30", ["n(n+1)=30"], ["30"]),
    ("|x| = 5", ["|x|=5"], ["5"]),
    (r"\sqrt{x} = 5", [r"\sqrt{x}=5"], ["5"]),
    ("5", ["x = 5"], ["x+y=5", "3x+4y=5", "2x=5"]),
    ("7", ["f(3) = 7"], ["a+b=7"]),
    ("2x+1", ["f(x)=2x+1", "y = 2x+1"], ["f(x)=2x-1"]),
    ("101_2", ["101_{2}", r"101_{\text{two}}", "(101)_2", "101_{(2)}"], ["101", "5", "101_3", "110_2"]),
    ("2516_{8}", ["2516_8"], ["2516_9", "2516", "1358"]),
    ("BA_{16}", ["BA_16"], ["AB_{16}", "BA"]),
    (r"1010_{\text{base } 2}", ["1010_2"], ["10"]),
    ("2516 \\text{ base } 8", ["2516_8"], ["2516"]),
    ("2^6 3^5 5^4", [r"2^6 \cdot 3^5 \cdot 5^4", r"2^{6} \times 3^{5} \times 5^{4}", "2^6*3^5*5^4"], [r"2^6 \cdot 3^5 \cdot 5^3", "2^6, 3^5, 5^4"]),
    (r"2^{6}3^{5}", [r"2^6 \cdot 3^5"], [r"2^5 \cdot 3^6"]),
    ("2^10 3", [r"2^{10} \cdot 3"], ["2^{103}"]),
    ("2 3", [], ["6", "23"]),
    ("x <= 2", [r"x \leq 2", r"x \le 2", "x ≤ 2", r"2 \geq x"], ["x < 2", "x >= 2", "2"]),
    (r"x \geqslant -1", [r"x \ge -1"], [r"x \ge 1", "-1"]),
    ("1 < x <= 2", [r"1 < x \le 2", r"2 \ge x > 1"], [r"1 \le x \le 2"]),
    (r"\frac12", [r"\frac{1}{2}", "1/2", ".5"], ["2", "12"]),
]  # fmt: skip
SENTENCES = [
    ("Final Answer: The largest $n$ is 34.", "34", "3"),
    ("Final Answer: The largest $n$ is $34$.", "34", "4"),
    ("Final Answer: The largest value of $n$ is \\(34\\).", "34", "4"),
    ("Final Answer: $n$ is 34.", "34", "3"),
    ("Final Answer: $f(3)$ is 7.", "7", "3"),
    ("Final Answer: Therefore, the area is $12\\pi$ square units.", "12\\pi", "12"),
    ("The answer is that the smallest such integer is 12.", "12", "1"),
    ("So the largest $n$ is 34.", "34", "3"),
    ("So the largest $n$ is equal to 34.", "34", "3"),
    ("Final Answer: Evelyn", "\\text{Evelyn}", "4"),
    ("Final Answer: even, because $n$ is $4$", "even, because n is 4", "4"),
    ("The final answer is $a=1$, $b=2$.", "(1,2)", "(2,1)"),
    ("We get $4$. The final answer is not $5$.", "4", "5"),
    ("Thus the line is $3x+4y=5$.", "3x+4y=5", "5"),
    ("Thus the equation of the line is $y = 2x + 3$.", "y = 2x+3", "3"),
    ("Hence the circle is given as $x^2+y^2=9$.", "x^2+y^2=9", "9"),
    ("The line is 3x+4y=5.", "3x+4y=5", "5"),
    ("The solution is $x <= 2$", "x \\leq 2", "2"),
    ("The solution is x <= 2.", "x \\leq 2", "2"),
    ("So $x \\ge 2$.", "x \\geq 2", "2"),
    ("We get $x = 3$ and so $2x = 6$", "6", "3"),
    ("So $a + b = 3 + 4 = 7$.", "7", "3"),
    ("The value is $f(3) = 7$.", "7", "3"),
    ("He pays $5 and $6, so $x = 11$ in all.", "11", "5"),
    ("He pays $5, $6 and $7. So $x = 18$.", "18", "7"),
    ("The final answer is $\\$80 + \\$48 = \\$128$.", "128", "80"),
    ("The final answer is $80 + $48 = $128.", "128", "80"),
    ("The answer is:\n\n$$\n42\n$$\n", "42", "4"),
    ("### Final Answer\n\n$\\frac12$", "0.5", "2"),
]
LETTERS = [
    ("Let's analyze each option:\n\nA. One - no.\nB. Two - yes.\n\nThe answer is (B).", "B"),
    ("Let's analyze each option:\nA. One - no.\nB. Two - yes.\n\nThe answer is (B).", "B"),
    ("Let's check every option: A. One is too small.\nSo the answer is B.", "B"),
    ("We look at each choice:\n(A) One, (B) Two.\n\nThe correct option is (B).", "B"),
    ("Let us look at each answer:\nA. One is too small.\nB. Two fits.\n\nThe answer is B.", "B"),
    ("Consider each option:\n\nA. One\nB. Two\nC. Three\nD. Four", None),
    ("Options:\nA. One\nB. Two\n\nThe answer is (B).", "B"),
    ("Choices: A. One, B. Two\nHence (B) is correct.", "B"),
    ("option:\nA. One\nB. Two\n\nTherefore the answer is B.", "B"),
    ("A. One is too small.\nB. Two fits.\nSo it must be (B)", "B"),
    ("A. One\nB. Two\nC. Three\nD. Four", None),
    ("The correct answer is:\n\nB. Two", "B"),
    ("The correct answer is:\nB. Two", "B"),
    ("The correct option is:\n\n(B) Two", "B"),
    ("The correct answer is: **B. Two**", "B"),
    ("The correct answer is:\n\nA) One, B) Two, C) Three, D) Four", None),
    ("The correct answer is:\n\nA. One\nB. Two\nC. Three\nD. Four", None),
    ("The answer is A) One, B) Two, C) Three, D) Four.", None),
    ("The answer is (A) because (B) is too large, (C) too small.", "A"),
    ("**Answer:**\n\nB", "B"),
    ("### Answer\n\n**B. Two**", "B"),
    ("The correct choice is: B", "B"),
    ("Option: B", "B"),
    ("The answer is\n\nTwo", "B"),
    ("The correct answer is:\n\nTwo\n\nNow (C)", "B"),
    ("The answer is:\n\nLet us see. It must be (B)", "B"),
    ("The answer is not B.", None),
    ("The answer is not (B).", None),
    ("The answer is all except C.", None),
    ("The answer is all except (C).", None),
    ("The answer is everything but (C).", None),
    ("The answer is anything other than (C).", None),
    ("So (B) is not correct.", None),
    ("So (B) is wrong.", None),
    ("We can rule out (B).", None),
    ("We do not think that B is correct.", None),
    ("It is not (A) but (B).", "B"),
    ("(A) is wrong. So it is (B).", "B"),
    ("(A) is not right, so (B)", "B"),
    ("The answer is neither (A) nor (C).", None),
    ("The answer is nothing but (C).", "C"),
    ("I don't know if A is correct. B is correct.", "B"),
    ("The answer is Three, not Two.", "C"),
    ("The answer is Three and not Two.", "C"),
    ("The answer is Three rather than Two.", "C"),
    ("The answer is Five, not Two.", None),
    ("The answer is Three, not Five.", None),
    ("The answer is Three or Two.", None),
    ("Option A: no.\nSo the answer is Option B.", "B"),
    ("Option A: no. Option B: yes.\nSo the answer is Option B because it fits.", "B"),
    ("The answer is Option A or Option B.", None),
    ("The answer is Option A: One or Option B: Two.", None),
    ("**C**", "C"),
    ("**(C)**\n\nIt is the third.", "C"),
    ("**A**\n**B**", None),
    ("**A** One\n**B** Two", None),
    ("**F**", None),
    ("The answer is:\n- C. Three", "C"),
    ("The answer is:\n- **C**", "C"),
    ("The answer is:\n- A. One\n- B. Two\n- C. Three\n- D. Four", None),
    ("The answer is (A) One or (B) Two.", None),
    ("The answer is (A) One and (B) Two.", None),
    ("The answer is (A) One, (B) Two.", None),
    ("The answer is (A) One, since (B) Two is too small.", "A"),
    ("The answer is (A) One and (B) Two is too small.", "A"),
    ("The answer is (A) One rather than (B) Two.", "A"),
]
IN_WORDS = [
    # output, options, right, wrong
    ("The answer is 2 hours and 45 minutes.", TIMES, None, "2 hours"),
    ("The answer is 2 hours 45 minutes.", TIMES, None, "2 hours"),
    ("The answer is 2 hours.", TIMES, "2 hours", "2 hours and 15 minutes"),
    ("The answer is 2 hours and 15 minutes.", TIMES, "2 hours and 15 minutes", "2 hours"),
    ("The answer is 2 hours long.", TIMES, "2 hours", "1 hour and 30 minutes"),
    ("The answer is 1 hour and 45 minutes.", ("45 minutes", "1 hour"), None, "45 minutes"),
    ("The answer is 45 minutes.", ("45 minutes", "1 hour and 45 minutes"), "45 minutes", "1 hour and 45 minutes"),
    ("The answer is $0.42 + $0.24 = $0.66.", ("$0.42", "$0.66"), "$0.66", "$0.42"),
    ("The answer is 12 + 3 = 15.", ("12", "18"), None, "12"),
    ("The answer is 12 + 3 = 15.", ("15", "18"), "15", "18"),
    ("The answer is C. Pottery evening course.", COURSES, "Pottery evening course", "Chess evening course"),
    ("The answer is C) Pottery evening course.", COURSES, "Pottery evening course", "Chess evening course"),
    ("The answer is (C) Pottery evening course.", COURSES, "Pottery evening course", "Chess evening course"),
    ("The answer is option C: Pottery evening course.", COURSES, "Pottery evening course", "Chess evening course"),
    ("The answer is pottery evening course because it costs least.", COURSES, "Pottery evening course", "Garden evening course"),
    ("The answer is 20 - 15, which is 5.", ("5", "5%", "15"), "5", "5%"),
    ("The answer is 20 - 15 = 5.", ("5", "5%"), "5", "5%"),
    ("The answer is 5%.", ("5", "5%"), "5%", "5"),
    ("The answer is 5 percent.", ("5", "5%"), "5%", "5"),
    ("The answer is 5.", ("10%", "5%"), "5%", "10%"),
    ("The answer is 0.5.", ("0.5", "1/2", "1/3"), "1/2", "1/3"),
    ("The answer is the swimming club, with 15.", CLUBS, "swimming", "chess"),
    ("The answer is not swimming.", CLUBS, None, "swimming"),
    ("The answer is all except swimming.", CLUBS, None, "swimming"),
    ("The answer is anything but swimming.", CLUBS, None, "swimming"),
    ("The answer is swimming and football.", CLUBS, None, "swimming"),
    ("It isn't swimming.", CLUBS, None, "swimming"),
    ("The answer is less than 2 hours.", TIMES, None, "2 hours"),
    ("The answer is swimming or football.", CLUBS, None, "swimming"),
    ("The answer is swimming and drama combined.", CLUBS, None, "drama"),
    ("The answer is both swimming and drama.", CLUBS, None, "drama"),
    ("The answer is swimming and then drama.", CLUBS, None, "drama"),
    ("The answer is chess and swimming.", CLUBS, None, "swimming"),
    ("The answer is swimming and nothing else.", CLUBS, "swimming", "chess"),
    ("The answer is swimming and not chess.", CLUBS, "swimming", "chess"),
    ("The answer is non-linear.", ("linear", "nonlinear"), None, "linear"),
    ("The answer is swimming, not chess.", CLUBS, "swimming", "chess"),
    ("The answer is swimming rather than chess.", CLUBS, "swimming", "chess"),
    ("The answer is not chess but swimming.", CLUBS, "swimming", "chess"),
    ("#### Step 1: look\n#### Answer\nswimming", CLUBS, "swimming", "chess"),
    ("#### swimming", CLUBS, "swimming", "chess"),
]


def verdict(task: str, output: str, target: str, choices: tuple[str, ...] = ()) -> bool:
    kind = TASKS[task]
    found = kind.read(output, choices)
    return found is not None and kind.same(found, target)


@pytest.mark.parametrize(("output", "right", "wrong"), [*MONEY, *WORKED, *HEADINGS])
@pytest.mark.parametrize("task", ["gsm8k", "asdiv", "tabmwp"])
def test_the_number_that_is_meant(task, output, right, wrong):
    assert verdict(task, output, right)
    assert not verdict(task, output, wrong)


@pytest.mark.parametrize(("output", "right", "wrong"), HEADINGS)
def test_a_heading_is_no_answer_of_a_task_of_ones_own(output, right, wrong):
    assert final_number(output) == Decimal(right) != Decimal(wrong)


@pytest.mark.parametrize(("stated", "right", "wrong"), COMPETITION)
def test_an_equation_says_what_it_gives_the_value_of(stated, right, wrong):
    for output in (f"Final Answer: The final answer is ${stated}$. I hope it is correct.", rf"So \boxed{{{stated}}}."):
        for target in right:
            assert verdict("minerva_math", output, target), (output, target)
        for target in wrong:
            assert not verdict("minerva_math", output, target), (output, target)


@pytest.mark.parametrize(("output", "right", "wrong"), SENTENCES)
def test_a_sentence_says_what_its_subject_is(output, right, wrong):
    assert verdict("minerva_math", output, right)
    assert not verdict("minerva_math", output, wrong)


@pytest.mark.parametrize(("output", "letter"), LETTERS)
def test_a_list_of_options_chooses_none(output, letter):
    assert TASKS["mmlu_stem"].read(output, FOUR) == letter


@pytest.mark.parametrize(("output", "choices", "right", "wrong"), IN_WORDS)
def test_an_option_denied_or_part_of_more_is_not_chosen(output, choices, right, wrong):
    assert right is None or verdict("tabmwp", output, right, choices)
    assert not verdict("tabmwp", output, wrong, choices)


def test_an_equation_found_is_more_than_a_number_found():
    assert same_formula("a+b=7", "7")
    assert not same_formula("7", "a+b=7")


def test_amounts_of_money_are_no_formulas():
    found = [f for f, _, _ in formulas("$x$ and $5 and $6 in all, $$y=2$$, $z$; $5, $6 and $7. So $n=5$, $ 5 $ and \\$3 $12$")]
    assert found == ["x", "y=2", "z", "n=5", "5", "12"]

"""A small parser of formulas, to nested tuples.

It knows what this grammar says, in bounded time: formulas have a longest length and depth.

    sum      product (('+' | '-') product)*
    product  power (('*' | '/')? power)*              `2x`, `3\\sqrt{2}`; a whole number before `\\frac{1}{2}` is a mixed number
    power    '-'? atom '!'? ('^' power)?
    atom     number | name | function | '(' sum ')' | '|' sum '|' | \\frac{}{} | \\sqrt[]{} | \\binom{}{}
"""

from __future__ import annotations

import cmath
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from slmctl.evaluation.tasks.numbers import LONGEST

DEEPEST = 30

Node = tuple[Any, ...]
_TOKEN = re.compile(r"\s*(\d+(?:\.\d+)?|\.\d+|\\[A-Za-z]+|[A-Za-z]+|\*\*|[-+*/^!()\[\]{}|_'])")
FUNCTIONS: dict[str, Callable[[complex], complex]] = {
    "sin": cmath.sin, "cos": cmath.cos, "tan": cmath.tan, "cot": lambda z: 1 / cmath.tan(z), "sec": lambda z: 1 / cmath.cos(z),
    "csc": lambda z: 1 / cmath.sin(z), "arcsin": cmath.asin, "arccos": cmath.acos, "arctan": cmath.atan, "ln": cmath.log,
    "exp": cmath.exp, "sinh": cmath.sinh, "cosh": cmath.cosh, "tanh": cmath.tanh,
}  # fmt: skip
_CLOSING = {"(": ")", "[": "]", "{": "}"}


class FormulaError(ValueError):
    """The text is no formula of this grammar, or has no finite value."""


def parse(text: str) -> Node:
    """The formula as nested tuples. Raises `FormulaError`."""
    if len(text) > LONGEST:
        raise FormulaError("too long")
    tokens, at = [], 0
    text = re.sub(r"(?<=\d)\s+(?=\d+\s*/\s*\d)", " + ", text.strip())  # 1 1/2
    if " + " in text and re.fullmatch(r"-\s*\d+ \+ \d+\s*/\s*\d+", text):
        text = f"-({text.lstrip('- ')})"
    text = re.sub(r"(\d)[eE]([+-]?\d{1,3})(?!\w)", r"\1*10^{\2}", text)
    text = re.sub(r"(?<=\d)\s*x\s*(?=10\s*\^)", "*", text)
    while at < len(text):
        match = _TOKEN.match(text, at)
        if not match:
            raise FormulaError(f"unknown sign {text[at]!r}")
        tokens.append(match[1])
        at = match.end()
    parser = _Parser(tokens)
    node = parser.sum()
    if parser.peek():
        raise FormulaError(f"{parser.peek()!r} is left over")
    return node


class _Parser:
    def __init__(self, tokens: list[str]) -> None:
        self.tokens, self.at, self.depth = tokens, 0, 0

    def peek(self, ahead: int = 0) -> str:
        return self.tokens[self.at + ahead] if self.at + ahead < len(self.tokens) else ""

    def take(self, wanted: str | None = None) -> str:
        token = self.peek()
        if not token or (wanted is not None and token != wanted):
            raise FormulaError(f"{wanted or 'more'} is wanted, {token or 'the end'} found")
        self.at += 1
        return token

    def sum(self) -> Node:
        self.depth += 1
        if self.depth > DEEPEST:
            raise FormulaError("too deep")
        node = self.product()
        while self.peek() in ("+", "-"):
            node = (self.take(), node, self.product())
        self.depth -= 1
        return node

    def product(self) -> Node:
        if self.peek() in ("+", "-"):
            sign = self.take()
            self.depth += 1
            if self.depth > DEEPEST:
                raise FormulaError("too deep")
            node = self.product()
            self.depth -= 1
            return ("neg", node) if sign == "-" else node
        node = last = self.power()
        while True:
            token = self.peek()
            if token in ("*", "/"):
                self.take()
                last = self.signed()
                node = (token, node, last)
            elif token[:1].isdigit() and self.tokens[self.at - 1][:1].isdigit() and last[0] != "^":  # but `2^6 3^5` is a product
                raise FormulaError("two numbers side by side")
            elif token and token not in ("+", "-", ")", "]", "}", "|", "!", "^", "**", "_", "'"):
                last = self.power()
                mixed = node[0] == "number" and node[1].denominator == 1 and _simple_fraction(last)
                node = ("+" if mixed else "*", node, last)
            else:
                return node

    def signed(self) -> Node:
        if self.peek() == "-":
            self.take()
            return ("neg", self.power())
        return self.power()

    def power(self) -> Node:
        node = self.atom()
        while self.peek() == "!":
            self.take()
            node = ("!", node)
        if self.peek() in ("^", "**"):
            self.take()
            node = ("^", node, self.argument(signed=True))
        return node

    def argument(self, signed: bool = False) -> Node:
        """What a command applies to: a braced formula, else the next digit or sign alone (`\\frac12`, `x^2`)."""
        if self.peek() == "{":
            return self.bracket()
        if signed and self.peek() == "-":
            self.take()
            return ("neg", self.argument())
        token = self.peek()
        if not signed and re.fullmatch(r"\d{2,}|[A-Za-z]{2,}", token):  # \frac12
            self.tokens[self.at : self.at + 1] = [token[0], token[1:]]
        return self.atom()

    def bracket(self) -> Node:
        closing = _CLOSING[self.take()]
        node = self.sum()
        self.take(closing)
        return node

    def atom(self) -> Node:
        token = self.peek()
        if token in ("(", "[", "{"):
            return self.bracket()
        if token == "|":
            self.take()
            node = self.sum()
            self.take("|")
            return ("abs", node)
        token = self.take()
        if token[0].isdigit() or token[0] == ".":
            if self.peek() == "_":
                raise FormulaError("a number in another base")
            return ("number", Fraction(token))
        if token[0] == "\\" or token.isalpha():
            return self.named(token.removeprefix("\\"), command=token[0] == "\\")
        raise FormulaError(f"{token!r} begins no value")

    def named(self, name: str, command: bool) -> Node:
        if name == "frac" and command:
            return ("/", self.argument(), self.argument())
        if name == "binom" and command:
            return ("binom", self.argument(), self.argument())
        if name == "sqrt":
            index: Node = ("number", Fraction(2))
            if self.peek() == "[":
                index = self.bracket()
            return ("root", self.argument(), index)
        if name in ("pi", "infty"):
            return (name,)
        if name == "log":
            base = self.subscript() if self.peek() == "_" else None
            return ("log", self.applied(), base)
        if name in FUNCTIONS:
            return self.function(name)
        if command:
            return ("name", name + self.mark())
        if len(name) > 3:
            raise FormulaError(f"{name!r} is a word")
        if len(name) > 1:  # a product of letters
            self.tokens[self.at : self.at] = list(name[1:])
        if name[0] in ("i", "e") and self.peek() != "_":
            return (name[0],)
        return ("name", name[0] + self.mark())

    def mark(self) -> str:
        if self.peek() == "_":
            return f"_{self.subscript()}"
        return ""

    def subscript(self) -> Node:
        self.take("_")
        return self.argument()

    def function(self, name: str) -> Node:
        exponent = None
        if self.peek() == "^":
            self.take()
            exponent = self.argument(signed=True)
        node: Node = ("call", name, self.applied())
        return ("^", node, exponent) if exponent else node

    def applied(self) -> Node:
        """A function's argument without brackets reaches over a product: `\\sin 2x`."""
        if self.peek() in ("(", "{", "["):
            return self.bracket()
        node = self.power()
        while self.peek() and (self.peek()[0].isdigit() or self.peek() in ("\\pi",) or re.fullmatch("[a-z]", self.peek())):
            node = ("*", node, self.power())
        return node


def _simple_fraction(node: Node) -> bool:
    """`\\frac{1}{2}`, smaller than one, of two plain whole numbers."""
    return bool(node[0] == "/" and node[1][0] == node[2][0] == "number" and node[1][1] < node[2][1])


def names(node: Node) -> set[str]:
    """The variables of a formula."""
    if node[0] == "name":
        return {node[1]}
    return {name for part in node[1:] if isinstance(part, tuple) for name in names(part)}


def has_root(node: Node) -> bool:
    """Whether a formula has a root, a logarithm, or a power that is not a whole number."""
    if node[0] in ("root", "log", "call") or (node[0] == "^" and not (node[2][0] == "number" and node[2][1].denominator == 1)):
        return True
    return any(has_root(part) for part in node[1:] if isinstance(part, tuple))

"""Symbolic sizes and guards of a .pt2 file: which are plain arithmetic, and what they may cost.

torch hands them to sympy, which evaluates powers of numbers and, to cancel a fraction or a remainder, multiplies sums out:
`(s0 + s1 + s2) ** 64` has 2,145 terms. So how large an expression can become is computed from its text, before sympy sees it.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from typing import Any

from forebay.contract.errors import ModelRefused

SYMBOL = re.compile(r"[a-z]{1,4}\d{1,6}\Z")
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_SHAPE_FUNCTIONS = {
    "Symbol", "Integer", "Float", "Rational", "Add", "Mul", "Pow", "Max", "Min", "Mod", "Eq", "Ne", "Lt", "Le", "Gt",
    "Ge", "Equality", "Unequality", "StrictLessThan", "StrictGreaterThan", "LessThan", "GreaterThan", "And", "Or",
    "Not", "Abs", "FloorDiv", "ModularIndexing", "Where", "PythonMod", "CleanDiv", "CeilToInt", "FloorToInt",
    "CeilDiv", "PowByNatural", "FloatPow", "FloatTrueDiv", "IntTrueDiv", "TruncToFloat", "TruncToInt", "RoundToInt",
    "ToFloat", "Identity", "max", "min",
}  # fmt: skip
_POWERS = {"Pow", "PowByNatural", "FloatPow"}
_ASSUMPTIONS = {"integer", "positive", "nonnegative", "real", "finite", "precision"}
_SHAPE_NODES = (
    ast.Expression, ast.Call, ast.Name, ast.Load, ast.Constant, ast.keyword, ast.Compare, ast.UnaryOp, ast.BinOp,
    ast.BoolOp, ast.operator, ast.unaryop, ast.boolop, ast.cmpop,
)  # fmt: skip
_SUMS = {
    "Add", "Max", "Min", "max", "min", "Eq", "Ne", "Lt", "Le", "Gt", "Ge", "Equality", "Unequality", "StrictLessThan",
    "StrictGreaterThan", "LessThan", "GreaterThan", "And", "Or", "Not", "Where",
}  # fmt: skip
_NUMBERS = {
    "Integer": 1,
    "Float": 1,
    "Rational": 2,
}  # how many arguments they take: a second one of Float is its precision
_MAX_TEXT, _MAX_EXPONENT, _MAX_PRECISION = 20_000, 32, 256
_MAX_DEPTH = 100
_MAX_TERMS, _MAX_DEGREE, _MAX_BITS = (
    200,
    32,
    4096,
)  # of an expression, multiplied out; more terms if the text is as long
_MAX_TOTAL = 1_000_000  # of the squares of the terms in all expressions that grow


@dataclass(frozen=True, slots=True)
class _Extent:
    """What an expression becomes at most when it is multiplied out: its terms, their degree, and the bits of its numbers."""

    terms: int = 1
    degree: int = 0
    bits: int = 1

    def checked(self, nodes: int) -> _Extent:
        fits = self.terms <= max(_MAX_TERMS, nodes) and self.degree <= _MAX_DEGREE and self.bits <= _MAX_BITS
        if not fits:
            raise ValueError
        return self


def check_expression(text: Any) -> str:
    """The text; ModelRefused unless it is plain arithmetic on symbols, and small when it is multiplied out."""
    _measure(text)
    return text  # type: ignore[no-any-return]


def check_total(texts: Iterable[str]) -> None:
    """ModelRefused when many expressions that each may pass cost too much together."""
    if sum(map(_measure, texts)) > _MAX_TOTAL:
        raise ModelRefused("the graph's symbolic sizes together become too large when they are multiplied out")


@lru_cache(1024)
def _measure(text: Any) -> int:
    """The square of its terms, multiplied out; 0 where these are no more than the text has."""
    tree = _parse(text)
    nodes = list(ast.walk(tree)) if tree is not None else []
    if tree is None or not all(map(_shape_node_is_plain, nodes)):
        raise ModelRefused(f"the graph holds the symbolic size {text!r:.80}, which is not plain arithmetic on symbols")
    try:
        terms = _extent(tree.body, len(nodes), 0).terms
    except ValueError:
        raise ModelRefused(
            f"the graph holds the symbolic size {text!r:.80}, which becomes too large when it is multiplied out"
        ) from None
    return terms**2 if terms > len(nodes) else 0


def _extent(node: ast.expr, nodes: int, depth: int) -> _Extent:
    """ValueError where it is beyond what sympy does in a moment."""
    if depth > _MAX_DEPTH:
        raise ValueError
    if isinstance(node, ast.Constant):
        return _Extent(bits=_bits(node.value))
    if isinstance(node, ast.Name):
        return _Extent(degree=1)
    if isinstance(node, ast.UnaryOp):
        return _extent(node.operand, nodes, depth + 1)
    name, parts = _operands(node)
    if name == "Symbol":
        return _Extent(degree=1)
    extents = [_extent(part, nodes, depth + 1) for part in parts]
    return _combined(name, parts, extents).checked(nodes)


def _operands(node: ast.expr) -> tuple[str, Sequence[ast.expr]]:
    if isinstance(node, ast.Call):
        return node.func.id if isinstance(node.func, ast.Name) else "", node.args
    if isinstance(node, ast.Compare):
        return "Add", [node.left, *node.comparators]
    if isinstance(node, ast.BoolOp):
        return "Add", node.values
    if isinstance(node, ast.BinOp):
        name = "Pow" if isinstance(node.op, ast.Pow) else "Add" if isinstance(node.op, ast.Add | ast.Sub) else "Mul"
        return name, [node.left, node.right]
    raise ValueError


def _combined(name: str, parts: Sequence[ast.expr], extents: Sequence[_Extent]) -> _Extent:
    if not extents:
        return _Extent()
    if name in _POWERS:
        base, power = extents[0], math.ceil(_value(parts[-1]))
        if power == 0:
            return _Extent()
        return _Extent(math.comb(base.terms + power - 1, power), base.degree * power, base.bits * power)
    terms, degrees, bits = zip(*((e.terms, e.degree, e.bits) for e in extents), strict=True)
    if name in _SUMS:
        return _Extent(sum(terms), max(degrees), max(bits) + len(bits).bit_length())
    return _Extent(reduce(lambda a, b: min(a * b, 1 << 64), terms), sum(degrees), sum(bits))


def _value(exponent: ast.expr) -> float:
    """The size of an exponent that `_is_small`."""
    if isinstance(exponent, ast.UnaryOp):
        return _value(exponent.operand)
    if isinstance(exponent, ast.Call):
        return max(map(_value, exponent.args), default=0.0)
    return abs(exponent.value) if isinstance(exponent, ast.Constant) else 0.0  # type: ignore[arg-type]


def _bits(value: object) -> int:
    return value.bit_length() if isinstance(value, int) else 64


def _parse(text: Any) -> ast.Expression | None:
    if not isinstance(text, str) or len(text) > _MAX_TEXT:
        return None
    try:
        return ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None


def _shape_node_is_plain(node: ast.AST) -> bool:
    if isinstance(node, ast.Name):
        return (
            node.id in _SHAPE_FUNCTIONS or node.id in ("oo", "int_oo", "true", "false") or bool(SYMBOL.match(node.id))
        )
    if isinstance(node, ast.Constant):
        return isinstance(node.value, int | float) or (isinstance(node.value, str) and bool(SYMBOL.match(node.value)))
    if isinstance(node, ast.keyword):
        value = node.value.value if isinstance(node.value, ast.Constant) else None
        return node.arg in _ASSUMPTIONS and (
            isinstance(value, bool) or (type(value) is int and 0 < value <= _MAX_PRECISION)
        )
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and _arguments_are_plain(node.func.id, node)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
        return _is_small(node.right)
    return isinstance(node, _SHAPE_NODES) and not isinstance(node, ast.LShift)


def _arguments_are_plain(name: str, call: ast.Call) -> bool:
    if name in _POWERS:
        return len(call.args) == 2 and _is_small(call.args[1])
    return len(call.args) <= _NUMBERS.get(name, len(call.args))


def _is_small(exponent: ast.expr) -> bool:
    """Whether an exponent is a small literal: `9 ** 9 ** 9` would keep sympy busy forever."""
    if isinstance(exponent, ast.UnaryOp):
        return _is_small(exponent.operand)
    if isinstance(exponent, ast.Call):
        named = isinstance(exponent.func, ast.Name) and exponent.func.id in ("Integer", "Rational", "Float")
        return named and all(map(_is_small, exponent.args))
    return (
        isinstance(exponent, ast.Constant)
        and isinstance(exponent.value, int | float)
        and abs(exponent.value) <= _MAX_EXPONENT
    )


def is_guard(text: Any) -> bool:
    """Whether a guard only compares sizes, such as `L['x'].size()[0] == L['y'].size()[0]`."""
    tree = _parse(text)
    return tree is not None and all(_guard_node_is_plain(node) for node in ast.walk(tree))


def _guard_node_is_plain(node: ast.AST) -> bool:
    if isinstance(node, ast.Name):
        return node.id in ("L", "max", "min")
    if isinstance(node, ast.Constant):
        return isinstance(node.value, int) or (isinstance(node.value, str) and bool(_IDENTIFIER.match(node.value)))
    if isinstance(node, ast.Attribute):
        return node.attr in ("size", "stride") and isinstance(node.value, ast.Subscript)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow | ast.LShift):
        return False
    return isinstance(node, ast.Subscript) or (isinstance(node, _SHAPE_NODES) and not isinstance(node, ast.keyword))

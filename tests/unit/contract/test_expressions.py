"""Symbolic sizes of a .pt2 file: plain arithmetic passes, and what would keep sympy busy is refused in an instant."""

import random
import time
from contextlib import suppress

import pytest
import sympy
from torch.utils._sympy import functions as torch_functions

from forebay.contract.errors import ModelRefused
from forebay.contract.pt2.expressions import check_expression, check_total

MOST_S = 10.0  # of processor time, for one expression


def s(i: int) -> str:
    return f"Symbol('s{i}', integer=True, positive=True)"


def total(count: int, first: int = 0) -> str:
    return f"Add({', '.join(map(s, range(first, first + count)))})"


POWER = f"Add(Pow({total(3)}, Integer(64)), Integer(1))"
NESTED_SUM = f"Add(Pow(Add(Pow(Add({s(0)}, {s(1)}), Integer(8)), {s(2)}), Integer(8)), Integer(1))"
PRODUCT = f"Mul({', '.join(total(3, i) for i in range(12))})"


@pytest.mark.parametrize(
    "text",
    [
        f"FloorDiv({POWER}, Add({POWER}, {s(4)}))",
        f"ModularIndexing({POWER}, Add({POWER}, {s(4)}), Integer(7))",
        f"PythonMod({NESTED_SUM}, {total(2)})",
        f"FloorDiv({PRODUCT}, {total(2)})",
        f"({PRODUCT}) // ({total(2)})",
        f"Pow(Pow(Pow({s(0)}, Integer(64)), Integer(64)), Integer(64))",
        "Pow(Pow(Pow(Integer(9), Integer(64)), Integer(64)), Integer(64))",
        "((9 ** 64) ** 64) ** 64",
        f"Mul({', '.join(['Pow(Integer(9), Integer(64))'] * 64)})",
        f"Integer({'9' * 2000})",
        "Add(" * 150 + s(0) + ")" * 150,
        "PowByNatural(PowByNatural(Integer(3), Integer(64)), Integer(64))",
        f"Pow({s(0)}, Integer(2), Integer(99999999))",
        "Float(2.5, 99999999)",
        "Float(2.5, precision=99999999)",
        f"Pow({s(0)}, {s(1)})",
    ],
)
def test_what_becomes_too_large_is_refused(text: str) -> None:
    with pytest.raises(ModelRefused, match="symbolic size"):
        check_expression(text)


@pytest.mark.parametrize(
    "text",
    [
        s(0),
        f"Add(Mul(Integer(2), {s(0)}), Integer(-1))",
        f"Add(FloorDiv(Add(FloorDiv(Add({s(0)}, Integer(-1)), Integer(2)), Integer(1)), Integer(2)), Integer(1))",
        f"Mul(Integer(64), Pow(Add(FloorDiv(Add({s(0)}, Integer(-1)), Integer(8)), Integer(1)), Integer(2)))",
        f"FloorDiv(Mul({s(0)}, {s(1)}, {s(2)}), Mul({s(1)}, {s(2)}))",
        total(100),
        f"FloorDiv({total(100)}, Integer(4))",
        f"Max(Integer(1), {total(4)}, Mul({s(0)}, {s(1)}))",
        f"Eq(Mod({s(0)}, Integer(8)), Integer(0))",
        f"ToFloat(Mul(Float(0.5, precision=53), {s(0)}))",
        "2*s0 + s1 >= 16",
    ],
)
def test_what_exports_hold_passes(text: str) -> None:
    assert check_expression(text) == text


def test_many_that_each_may_pass_are_refused_together() -> None:
    texts = [f"FloorDiv(Pow({total(4)}, Integer(7)), Integer({i + 2}))" for i in range(100)]
    check_total(texts[:20])
    check_total([total(100)] * 5000)
    with pytest.raises(ModelRefused, match="together"):
        check_total(texts)


def drawn(dice: random.Random, depth: int) -> str:
    """An expression of the names that a file may use, as somebody might nest them who means harm."""
    if depth == 0:
        return dice.choice(
            [f"s{dice.randrange(8)}", f"s{dice.randrange(3)}", dice.choice(["1", "2", "7", "64", "127"])]
        )

    def part() -> str:
        return drawn(dice, depth - 1)

    match dice.choice(["sum", "power", "power", "fraction", "fraction", "index", "+", "*"]):
        case "sum":
            return f"{dice.choice(['Add', 'Mul', 'Max', 'Min'])}({', '.join(part() for _ in range(dice.choice([2, 3, 4])))})"
        case "power":
            return f"{dice.choice(['Pow', 'PowByNatural'])}({part()}, {dice.choice([2, 3, 4, 8, 16, 32, 64])})"
        case "fraction":
            names = ["FloorDiv", "CleanDiv", "CeilDiv", "IntTrueDiv", "Mod", "PythonMod"]
            return f"{dice.choice(names)}({part()}, {part()})"
        case "index":
            return f"ModularIndexing({part()}, {dice.choice([1, 2, 3])}, {part()})"
        case sign:
            return f"({part()} {sign} {part()})"


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 11))])
def test_whatever_passes_costs_sympy_little(seed: int) -> None:
    dice, known = random.Random(seed), {f"s{i}": sympy.Symbol(f"s{i}", integer=True, positive=True) for i in range(8)}
    functions = {name: getattr(sympy, name) for name in ("Add", "Mul", "Pow", "Max", "Min")} | vars(torch_functions)
    passed, costs = 0, [0.0]
    for _ in range(100 if seed == 0 else 2000):
        text = drawn(dice, dice.randint(2, 6))
        try:
            check_expression(text)
        except ModelRefused:
            continue
        passed, started = passed + 1, time.process_time()
        with suppress(Exception):  # what has no value is refused when the file is loaded
            eval(text, functions | known)  # noqa: S307 - it is plain arithmetic
        costs.append(time.process_time() - started)
    assert passed > (10 if seed == 0 else 500)
    assert max(costs) < MOST_S, sorted(costs)[-5:]

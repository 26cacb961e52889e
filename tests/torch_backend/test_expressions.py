"""Sizes and guards: torch's output is accepted, anything beyond arithmetic is not."""

from __future__ import annotations

import pytest
import sympy
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._sympy.functions import FloorDiv, Mod

from adapter_export.errors import BaseModelError
from adapter_export.format.lengths import Lengths
from adapter_export.torch_backend.base.length_facts import program_facts
from adapter_export.torch_backend.base.program_file import is_guard, is_size_expression

A, B = sympy.symbols("s0 s77", positive=True, integer=True)

SIZES = {
    "symbol": A,
    "number": sympy.Integer(7),
    "sum": 8 * A + Mod(8 * A, 3),
    "quotient": FloorDiv(sympy.Max(B, 3 * A + 1), 2),
    "power": A**2,
    "inverse": 1 / A,
    "comparison": sympy.Eq(A, B),
    "negation": sympy.Not(sympy.And(A > B, A < 5)),
    "float": A * sympy.Float(0.5),
    "true": sympy.true,
}


@pytest.mark.parametrize("name", SIZES)
def test_expressions_written_by_sympy_are_accepted(name: str) -> None:
    assert is_size_expression(sympy.srepr(SIZES[name]))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "open('x', 'w')",
        "__import__('os').system('true')",
        "Symbol('s0').subs.__globals__",
        "Symbol('x')",
        "Symbol('s0', positive=open('x'))",
        "Symbol('s0', **open('x'))",
        "Symbol(open('x'))",
        "Symbol('s0', 's1')",
        "Symbol('s99999999')",
        "Integer(1 if 2 else 3)",
        "Integer('1')",
        "Integer(99999999999999999999)",
        "Integer(2)**Integer(9)",
        "Pow(Symbol('s0'), Integer(17))",
        "Pow(Symbol('s0'), Pow(Symbol('s0'), Integer(9)))",
        "Lambda(Symbol('s0'), Integer(1))",
        "Function('open')(Integer(1))",
        "sympify('1')",
        "[Integer(1)]",
        "lambda: 1",
        "(s0 := 1)",
        "s0; 1",
        "Add(" * 5000 + ")" * 5000,
        "-" * 5000 + "1",
        "Integer(1)" + " " * 20_000,
        "Integer(１)",
        "Float('1e999999999')",
    ],
)
def test_expressions_beyond_arithmetic_are_refused(text: str) -> None:
    assert not is_size_expression(text)


@given(st.text(alphabet="s0(),.'=*-+ IntegerSymbolPowAddopen_[]:\n", max_size=60))
def test_any_text_is_answered_without_an_error(text: str) -> None:
    assert is_size_expression(text) in {True, False}
    assert is_guard(text) in {True, False}


IDS, MASK = "L['ids'].size()[1]", "L['mask'].size()[1]"


@pytest.mark.parametrize(
    "guard",
    [
        f"{IDS} <= 512",
        f"{IDS} == {MASK}",
        f"2 <= {IDS} and {IDS} < 7",
        f"not ({IDS} % 8 == 0)",
        f"max({IDS}, {MASK}) * -2 + 1 != {IDS} // 3",
        "L['batch']['ids'][0].size()[1] <= 5",
    ],
)
def test_guards_that_compare_lengths_are_accepted(guard: str) -> None:
    assert is_guard(guard)


@pytest.mark.parametrize(
    "guard",
    [
        "",
        "open('x', 'w') is None",
        "L['ids'].size(open('x'))[1] <= 5",
        "L['ids'].tolist()[1] <= 5",
        "L[open('x')].size()[1] <= 5",
        f"{IDS} <= open('x')",
        f"{IDS}.bit_length() <= 5",
        f"{IDS} <= 9 ** 9 ** 9",
        f"[{IDS} <= 1 for x in y]",
        "G['ids'].size()[1] <= 5",
    ],
)
def test_guards_beyond_comparisons_are_refused(guard: str) -> None:
    assert not is_guard(guard)


BATCH = "L['ids'].size()[0]"


@pytest.mark.parametrize(
    ("guard", "lengths"),
    [
        (f"{IDS} <= 512", Lengths(1, 512)),
        (f"{IDS} == {MASK}", Lengths()),
        (f"{IDS} != 1", Lengths()),
        (f"{IDS} == 7", Lengths(7, 7)),
        (f"{IDS} != 7", Lengths(exceptions=(7,))),
        (f"{IDS} % 8 == 0", Lengths(8, multiple_of=8)),
        (f"{IDS} % 8 != 5", None),  # a record cannot express this
        (f"{IDS} // 2 <= 5", Lengths(1, 11)),
        (f"(32 + ((-1)*max(0, 32 + ((-1)*{IDS})))) != 32", Lengths(1, 31)),
        (f"(({IDS} - 30) // 4) % ({IDS} // 10) >= 0", Lengths(10)),  # it divides by 0 below
        # from GPT-2: the mask is reshaped to [batch, −1]
        (f"(L['mask'].size()[0]*{MASK}) % {BATCH} == 0", Lengths()),
        (f"(L['mask'].size()[0]*{MASK}) == ({BATCH}*((L['mask'].size()[0]*{MASK}) // {BATCH}))", Lengths()),
        (f"{IDS} % 8 == 0 and {IDS} <= 512", Lengths(8, 512, 8)),
    ],
)
def test_conditions_become_lengths(guard: str, lengths: Lengths | None) -> None:
    axes = {"ids": ("batch", "sequence"), "mask": ("batch", "sequence"), "other": ("other", "sequence")}
    assert is_guard(guard)
    assert program_facts(axes, {}, [guard])["sequence"].lengths() == lengths


def test_conditions_that_tie_axes_to_each_other_are_refused() -> None:
    axes = {"ids": ("batch", "sequence"), "mask": ("batch", "sequence"), "other": ("other", "sequence")}
    with pytest.raises(BaseModelError, match="captured for some lengths only"):
        program_facts(axes, {}, [f"L['other'].size()[0] == {BATCH}"])


def test_a_condition_that_never_holds_is_refused() -> None:
    with pytest.raises(BaseModelError, match="captured for some lengths only"):
        program_facts({"ids": ("batch", "sequence")}, {}, [f"{IDS} % 2 == 3"])


@pytest.mark.parametrize("size", [sympy.Max(1, A) ** 2, sympy.sqrt(A), (A + 3) ** 4])
def test_powers_of_sums_are_sizes(size: sympy.Expr) -> None:
    assert is_size_expression(sympy.srepr(size))


def test_powers_of_powers_of_numbers_are_not() -> None:
    assert not is_size_expression("Pow(Pow(Pow(Pow(Integer(9), Integer(16)), Integer(16)), Integer(16)), Integer(16))")


def test_sizes_exported_by_torch_are_accepted() -> None:
    class Module(torch.nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            half = x[:, : max(x.shape[1] * 3 + 1, y.shape[1]) // 2]
            return torch.nn.functional.pad(half, (0, x.shape[1] % 3)) + x.new_zeros(x.shape[0] ** 2).sum()

    dynamic = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    program = torch.export.export(Module(), (torch.ones(4, 5), torch.ones(3, 7)), dynamic_shapes=(dynamic, dynamic))
    sizes: list[object] = []
    for node in program.graph.nodes:
        value = node.meta.get("val")
        sizes += list(value.shape) if isinstance(value, torch.Tensor) else [value]
    symbolic = [size.node.expr for size in sizes if isinstance(size, torch.SymInt)]
    assert len(symbolic) > 5
    assert all(is_size_expression(sympy.srepr(expression)) for expression in symbolic)

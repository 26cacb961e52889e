"""The grammars of the two sorts of expression in a torch archive, both of which torch evaluates as Python.

Sizes are SymPy expressions in the form of `sympy.srepr`, such as `Mul(Integer(2), Symbol('s0', integer=True))`.
Guards are comparisons of the sizes of inputs, such as `L['ids'].size()[1] <= 512`.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import sympy

from adapter_export.format.axes import names
from adapter_export.format.manifest import Axis

SYMBOL = re.compile(r"[su]\d{1,6}")
"""The name of a symbolic size: `s` if it comes from an input, `u` if it comes from data."""

_FUNCTIONS = frozenset(
    {
        "Add",
        "Mul",
        "Pow",
        "Mod",
        "PythonMod",
        "FloorDiv",
        "CleanDiv",
        "CeilDiv",
        "ModularIndexing",
        "Max",
        "Min",
        "Abs",
        "Integer",
        "Rational",
        "Equality",
        "Unequality",
        "GreaterThan",
        "StrictGreaterThan",
        "LessThan",
        "StrictLessThan",
        "And",
        "Or",
        "Not",
        "ToFloat",
        "TruncToInt",
        "CeilToInt",
        "FloorToInt",
        "IntTrueDiv",
        "FloatTrueDiv",
        "Identity",
    }
)
_LONGEST = 10_000
_DEEPEST = 60
_LARGEST_EXPONENT = 16
_LARGEST_NUMBER = 2**63
_FLOAT = re.compile(r"-?\d{1,40}(\.\d{0,40})?(e[+-]?\d{1,3})?")


def is_size_expression(text: str) -> bool:
    """Whether this is arithmetic over symbolic sizes and nothing else."""
    tree = _parse(text)
    return tree is not None and _is_size(tree)


def _parse(text: str) -> ast.expr | None:
    """The syntax tree, which is not evaluated; none for what is too long, too deep or no expression."""
    if len(text) > _LONGEST or _depth(text) > _DEEPEST or not text.isascii():
        return None
    try:
        return ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _depth(text: str) -> int:
    depth = deepest = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    # signs and powers nest without brackets
    return max(deepest, *(len(run) for run in re.findall(r"[-+~*\s]{2,}", text)), 0)


def _is_size(node: ast.expr) -> bool:
    if isinstance(node, ast.Constant):
        return _is_number(node)
    if isinstance(node, ast.Name):
        return SYMBOL.fullmatch(node.id) is not None or node.id in {"true", "false"}
    if isinstance(node, ast.UnaryOp):
        return isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant) and _is_size(node.operand)
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and _is_call(node.func.id, node)


def _is_number(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, int) and abs(node.value) < _LARGEST_NUMBER


def _is_call(function: str, call: ast.Call) -> bool:
    if function == "Symbol":
        return all(_is_flag(keyword) for keyword in call.keywords) and _is_text(call, SYMBOL)
    if function == "Float":
        return all(_is_number(keyword.value) for keyword in call.keywords) and _is_text(call, _FLOAT)
    if function == "Pow":
        return not call.keywords and len(call.args) == 2 and _is_power(*call.args)
    return function in _FUNCTIONS and not call.keywords and all(_is_size(argument) for argument in call.args)


def _is_flag(keyword: ast.keyword) -> bool:
    """`positive=True`, but not `**x`."""
    return bool(keyword.arg) and isinstance(keyword.value, ast.Constant) and isinstance(keyword.value.value, bool)


def _is_text(call: ast.Call, pattern: re.Pattern[str]) -> bool:
    if len(call.args) != 1 or not isinstance(call.args[0], ast.Constant):
        return False
    value = call.args[0].value
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def _is_power(base: ast.expr, exponent: ast.expr) -> bool:
    """A symbol to a small number: powers of numbers would let a short text ask for a huge result."""
    if not (isinstance(base, ast.Call) and isinstance(base.func, ast.Name) and base.func.id == "Symbol"):
        return False
    match = re.fullmatch(r"Integer\((-?\d{1,2})\)", ast.unparse(exponent))
    return _is_size(base) and match is not None and abs(int(match[1])) <= _LARGEST_EXPONENT


def is_guard(text: str) -> bool:
    """Whether this compares the sizes of inputs and does nothing else."""
    tree = _parse(text)
    return tree is not None and _is_condition(tree)


def _is_condition(node: ast.expr) -> bool:
    if isinstance(node, ast.Compare):
        return all(_is_measure(side) for side in (node.left, *node.comparators))
    if isinstance(node, ast.BoolOp):
        return all(_is_condition(value) for value in node.values)
    return isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not) and _is_condition(node.operand)


def _is_measure(node: ast.expr) -> bool:
    if isinstance(node, ast.BinOp):
        arithmetic = isinstance(node.op, ast.Add | ast.Sub | ast.Mult | ast.FloorDiv | ast.Div | ast.Mod)
        return arithmetic and _is_measure(node.left) and _is_measure(node.right)
    if isinstance(node, ast.UnaryOp):
        return isinstance(node.op, ast.USub) and _is_measure(node.operand)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in {"max", "min"}:
        return not node.keywords and all(_is_measure(argument) for argument in node.args)
    if isinstance(node, ast.Subscript):
        return _is_size_of_input(node)
    return _is_number(node)


def _is_size_of_input(node: ast.Subscript) -> bool:
    call = node.value
    if not (isinstance(node.slice, ast.Constant) and isinstance(call, ast.Call)):
        return False
    if call.args or call.keywords or not isinstance(call.func, ast.Attribute):
        return False
    return call.func.attr in {"size", "stride"} and _is_input(call.func.value)


def _is_input(node: ast.expr) -> bool:
    """`L['ids']`, `L['batch']['ids'][0]`."""
    while isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
        node = node.value
    return isinstance(node, ast.Name) and node.id == "L"


def is_harmless(guard: str, axes: Mapping[str, Sequence[Axis]]) -> bool:
    """Whether a guard says no more than a bound, that two lengths are the same, or what always holds.

    Other guards (`length % 8 == 0`) come from a branch on a length: the program computes one side of it only.

    Args:
        guard: what `is_guard` accepts.
        axes: the names of the axes of each input; axes of one name have one length.
    """
    tree = _parse(guard)
    if not isinstance(tree, ast.Compare):
        return False
    if any(isinstance(node, ast.Mod | ast.FloorDiv | ast.Div) for node in ast.walk(tree)):
        return _always_holds(tree, axes)
    sides = [tree.left, *tree.comparators]
    pairs = zip(sides[:-1], tree.ops, sides[1:], strict=True)
    return not any(isinstance(op, ast.Eq | ast.NotEq) and _fixes(left, right) for left, op, right in pairs)


def _always_holds(tree: ast.Compare, axes: Mapping[str, Sequence[Axis]]) -> bool:
    """Whether both sides of an equation are the same number for all lengths."""
    if len(tree.ops) != 1 or not isinstance(tree.ops[0], ast.Eq):
        return False
    left, right = _symbolic(tree.left, axes), _symbolic(tree.comparators[0], axes)
    return left is not None and right is not None and bool(left == right)


def _symbolic(node: ast.expr, axes: Mapping[str, Sequence[Axis]]) -> sympy.Expr | None:
    if isinstance(node, ast.Constant):
        return sympy.Integer(node.value)
    if isinstance(node, ast.Subscript):
        return _length(node, axes)
    if not isinstance(node, ast.BinOp) or type(node.op) not in _ARITHMETIC:
        return None
    left, right = _symbolic(node.left, axes), _symbolic(node.right, axes)
    return None if left is None or right is None else _ARITHMETIC[type(node.op)](left, right)


_ARITHMETIC: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Mod: sympy.Mod,
    ast.FloorDiv: lambda left, right: sympy.floor(left / right),
}


def _length(node: ast.Subscript, axes: Mapping[str, Sequence[Axis]]) -> sympy.Expr | None:
    """The length of an axis: a number, a symbol with the axis's name, or a sum of such symbols."""
    match = re.fullmatch(r"L((?:\[[\w']+\])+)\.size\(\)\[(\d+)\]", ast.unparse(node))
    shape = axes.get(".".join(re.findall(r"\w+", match[1])), ()) if match is not None else ()
    if match is None or int(match[2]) >= len(shape):
        return None
    axis = shape[int(match[2])]
    if isinstance(axis, int):
        return sympy.Integer(axis)
    return sympy.Add(*(sympy.Symbol(name, integer=True, positive=True) for name in names(axis)))


def _fixes(left: ast.expr, right: ast.expr) -> bool:
    """Whether a length is compared with a number; 0 and 1 are told apart by torch in every program."""
    numbers = [side.value for side in (left, right) if isinstance(side, ast.Constant)]
    return any(number not in {0, 1} for number in numbers)

"""Lengths for which a captured program is correct: from torch's ranges and guards, tested against the live module."""

from __future__ import annotations

import ast
import copy
import math
import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, reduce
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from adapter_export.errors import BaseModelError, RequestError
from adapter_export.format.axes import names
from adapter_export.format.lengths import Bounds, Lengths, axis_lengths
from adapter_export.format.manifest import Axis, InputRecord, token_axis
from adapter_export.numerics.sample_inputs import input_cases
from adapter_export.torch_backend.base.log_capture import LIBRARY_ERRORS, captured_logs
from adapter_export.words import argument

_SMALLEST = 2
"""torch's lower bound of a dynamic axis in every program; length 1 is tested separately."""

_FARTHEST = 2**15
"""Maximum length for which conditions are evaluated; longer inputs are rejected if a condition concerns them."""

_OTHERS = (2, 3, 5, 8)
"""Lengths of other axes with which a condition on several axes must be true."""

_MOST_EXCEPTIONS = 8
"""Maximum single lengths that a record excludes; with more, the condition is of a form that records cannot express."""

_LARGEST = 2**62
"""Bound of a result: NumPy's int64 would wrap without an error."""

Numbers = npt.NDArray[Any]


@dataclass
class Facts:
    """Facts that a program states about the lengths of one axis.

    Attributes:
        bounds: from ranges, tables and conditions that compare the length with a number.
        conditions: for every other condition, its truth at each length from `_SMALLEST` on; conditions that exclude
            lengths are separate, because they may be stricter than necessary.
    """

    bounds: Lengths = field(default_factory=Lengths)
    excluded: set[int] = field(default_factory=set)
    conditions: list[tuple[str, Numbers]] = field(default_factory=list)
    exclusions: list[tuple[str, Numbers]] = field(default_factory=list)

    def points(self) -> list[int]:
        """Return the few lengths that only an excluding condition forbids."""
        inside = [length for length in self.excluded if length in self.bounds]
        holds, kept = self._holding(self.conditions), self._holding(self.exclusions)
        found = {*inside, *(int(at) + _SMALLEST for at in np.flatnonzero(holds & ~kept[: len(holds)]))}
        found = {length for length in found if length in self.bounds}
        return sorted(found) if len(found) <= _MOST_EXCEPTIONS else []

    def _holding(self, some: Iterable[tuple[str, Numbers]]) -> npt.NDArray[np.bool_]:
        every = [*self.conditions, *self.exclusions]
        found = np.ones(max((len(holds) for _, holds in every), default=0), bool)
        return reduce(np.logical_and, (holds for _, holds in some), found)

    def lengths(self, also: Sequence[int] = ()) -> Lengths | None:
        """Return the lengths as a record, including `also`, or `None` if no record can express them."""
        holds = self._holding([*self.conditions, *self.exclusions])
        bad = self.excluded - set(also)
        if not len(holds):
            return Lengths.of(self.bounds.minimum, self.bounds.maximum, 1, tuple(bad))
        allowed = [at + _SMALLEST for at, holding in enumerate(holds) if holding or at + _SMALLEST in also]
        allowed = [length for length in allowed if length in self.bounds and length not in bad]
        if not allowed:
            return None
        first, last = allowed[0], allowed[-1]
        step = math.gcd(*allowed) if len(allowed) > _SMALLEST else 1
        endless = _goes_on(holds) and last + step >= len(holds) + _SMALLEST
        most = self.bounds.maximum if endless else last
        if endless and len(holds) >= _FARTHEST:
            most = last if most is None else min(most, last)
        missing = sorted(set(range(first, last, step)) - set(allowed))
        if len(missing) > _MOST_EXCEPTIONS:
            return None
        first = 1 if first == _SMALLEST and self.bounds.minimum == 1 and step == 1 else first
        return Lengths.of(first, most, step, (*missing, *bad))

    @property
    def condition(self) -> str | None:
        """Return one of the conditions, for messages."""
        return next((guard[:300] for guard, _ in (*self.exclusions, *self.conditions)), None)

    def another(self, length: int) -> int | None:
        """Return a length near one that the program excludes, for which another program may exist."""
        holds = self._holding([*self.conditions, *self.exclusions])
        others = [at for at in map(int, np.flatnonzero(~holds) + _SMALLEST) if at in self.bounds]
        return min(others, key=lambda other: abs(other - length), default=None)


def _goes_on(holds: Numbers) -> bool:
    """Return whether a condition that is true at some of the last tested lengths stays true for longer ones."""
    return bool(holds[-max(1, len(holds) // 4) :].any())


def program_facts(
    axes: Mapping[str, Sequence[Axis]], ranges: Mapping[str, tuple[int, int | None]], guards: Sequence[str]
) -> dict[str, Facts]:
    """Return the facts about each dynamic axis that a program states.

    Args:
        axes: axes of each input.
        ranges: minimum and maximum length of axes, from torch.
        guards: the screened conditions.

    Raises:
        BaseModelError: a condition ties several axes to each other, or no length is left.
    """
    facts_by_axis = {name: Facts() for shape in axes.values() for axis in shape for name in names(axis)}
    for axis, (low, high) in ranges.items():
        if axis in facts_by_axis:
            own = Lengths.of(1 if low <= _SMALLEST else low, high)
            facts_by_axis[axis].bounds = _kept(facts_by_axis[axis].bounds, own, f"`{axis}` from {low} to {high}")
    # stride guards only ask for contiguous inputs
    trees = {guard: ast.parse(guard, mode="eval").body for guard in guards if ".stride()" not in guard}
    size = max(
        [min(2 * low, _FARTHEST) for low, _ in ranges.values()] + list(map(_farthest, trees.values())), default=0
    )
    for guard, tree in trees.items():
        _add(guard, tree, size, axes, facts_by_axis)
    return facts_by_axis


def _farthest(tree: ast.expr) -> int:
    """Return the length up to which a condition is evaluated: beyond all its numbers combined, except for bounds."""
    numbers = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    known = [number for number in numbers if isinstance(number, int) and number]
    plain = isinstance(tree, ast.Compare) and isinstance(tree.left, ast.Subscript) and len(tree.ops) == 1
    return min((max(known, default=0) if plain else 2 * math.prod(known)) + 64, _FARTHEST)


def _kept(bounds: Lengths, other: Lengths | None, guard: str) -> Lengths:
    kept = None if other is None else bounds.within(other)
    if kept is None:
        raise only_some(guard)
    return kept


def only_some(found: str) -> BaseModelError:
    """Return the error for a program whose lengths cannot be expressed."""
    return BaseModelError(
        "was captured for some lengths only, and would be wrong at others",
        found=f"the condition {found}",
        expected="a range of lengths, multiples of a number, or all lengths except a few",
        fix="remove the branch on the length from the model, or fix the axis when you capture it: "
        + argument("lengths", ["sequence=128"], option="axis", words="sequence=128"),
    )


def _add(guard: str, tree: ast.expr, size: int, axes: Mapping[str, Sequence[Axis]], facts: Mapping[str, Facts]) -> None:
    """Evaluate one condition, at `size` lengths."""
    measured = [node for node in ast.walk(tree) if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Call)]
    sizes = {ast.unparse(node): _axis(node, axes) for node in measured}
    known = list(dict.fromkeys(name for axis in sizes.values() if axis is not None for name in names(axis)))
    if isinstance(tree, ast.Compare) and len(tree.ops) == 1 and _simple(tree, axes, facts):
        return
    if any(axis is None for axis in sizes.values()):
        raise only_some(f"`{guard}`"[:300])
    if not known:
        if not np.all(_Condition(sizes).holds(tree)):
            raise only_some(f"`{guard}`"[:300])
        return
    several: list[tuple[str, Numbers]] = []
    # the batch last: a condition on several axes should limit another one
    for name in sorted(known, key=lambda name: name == "batch"):
        others = [one for one in known if one != name]
        holds = np.ones(size, bool)
        for lengths in product(_OTHERS, repeat=len(others)):
            values: dict[str, Any] = dict(zip(others, lengths, strict=True))
            values[name] = np.arange(_SMALLEST, _SMALLEST + size)
            holds &= _Condition({text: _sum(axis, values) for text, axis in sizes.items()}).holds(tree)
        if holds.all():
            return
        several.append((name, holds))
    left = [(name, holds) for name, holds in several if holds.any()]
    if not left:
        raise only_some(f"`{guard}`"[:300])
    name, holds = left[0]
    is_not = isinstance(tree, ast.Compare) and all(isinstance(op, ast.NotEq) for op in tree.ops)
    (facts[name].exclusions if is_not else facts[name].conditions).append((f"`{guard}`", holds))


def _simple(tree: ast.Compare, axes: Mapping[str, Sequence[Axis]], facts_of: Mapping[str, Facts]) -> bool:
    """Read a condition that compares one length with a possibly large number; false for any other."""
    left, (op,), (right,) = tree.left, tree.ops, tree.comparators
    axis = _axis(left, axes) if isinstance(left, ast.Subscript) else None
    if not isinstance(axis, str) or names(axis) != (axis,) or not isinstance(right, ast.Constant):
        return False
    number, facts = int(str(right.value)), facts_of[axis]
    if isinstance(op, ast.NotEq):
        facts.excluded |= {number} - {0, 1}  # torch excludes 0 and 1 in every program
        return True
    ends = {
        ast.LtE: (1, number),
        ast.Lt: (1, number - 1),
        ast.GtE: (number, None),
        ast.Gt: (number + 1, None),
        ast.Eq: (number, number),
    }
    low, high = ends[type(op)]
    own = Lengths.of(1 if low <= _SMALLEST else low, high)
    facts.bounds = _kept(facts.bounds, own, f"`{ast.unparse(tree)}`")
    return True


def _axis(node: ast.Subscript, axes: Mapping[str, Sequence[Axis]]) -> Axis | None:
    """Return the axis with this size, such as `L['ids'].size()[1]`; `None` for strides and parts of expressions."""
    match = re.fullmatch(r"L((?:\[[\w']+\])+)\.size\(\)\[(\d+)\]", ast.unparse(node))
    shape = axes.get(".".join(re.findall(r"\w+", match[1])), ()) if match is not None else ()
    return shape[int(match[2])] if match is not None and int(match[2]) < len(shape) else None


def _sum(axis: Axis | None, values: Mapping[str, Any]) -> Any:
    return sum(values[name] for name in names(axis)) if isinstance(axis, str) else axis


class _Condition:
    """Evaluates a screened condition for many lengths at once."""

    def __init__(self, sizes: Mapping[str, Any]) -> None:
        self._sizes = sizes
        self._wrong: Any = False

    def holds(self, tree: ast.expr) -> Any:
        """Return where it is true; false where it divides by 0 or leaves the range of int64."""
        found = self._value(tree)
        return np.logical_and(found, np.logical_not(self._wrong))

    def _value(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Constant):
            return node.value
        if isinstance(node, ast.Subscript):
            return self._sizes[ast.unparse(node)]
        if isinstance(node, ast.UnaryOp):
            value = self._value(node.operand)
            return np.logical_not(value) if isinstance(node.op, ast.Not) else -value
        if isinstance(node, ast.BoolOp):
            both = np.logical_and if isinstance(node.op, ast.And) else np.logical_or
            return reduce(both, map(self._value, node.values))
        if isinstance(node, ast.Compare):
            sides = [self._value(side) for side in (node.left, *node.comparators)]
            pairs = zip(node.ops, sides, sides[1:], strict=False)
            return reduce(np.logical_and, [_COMPARISONS[type(op)](one, other) for op, one, other in pairs])
        if isinstance(node, ast.Call):
            function = np.maximum if ast.unparse(node.func) == "max" else np.minimum
            return reduce(function, map(self._value, node.args))
        assert isinstance(node, ast.BinOp)
        left, right = self._value(node.left), self._value(node.right)
        if isinstance(node.op, ast.FloorDiv | ast.Div | ast.Mod):
            wrong = np.equal(right, 0)
            right = np.where(wrong, 1, right)
        else:
            # in float64, which does not wrap
            wrong = np.abs(np.multiply(left, right, dtype=np.float64)) >= _LARGEST
            left = np.where(wrong, 0, left)
        self._wrong = np.logical_or(self._wrong, wrong)
        return _ARITHMETIC[type(node.op)](left, right)


_COMPARISONS: Mapping[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: np.equal,
    ast.NotEq: np.not_equal,
    ast.Lt: np.less,
    ast.LtE: np.less_equal,
    ast.Gt: np.greater,
    ast.GtE: np.greater_equal,
}
_ARITHMETIC: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: np.add,
    ast.Sub: np.subtract,
    ast.Mult: np.multiply,
    ast.FloorDiv: np.floor_divide,
    ast.Div: np.true_divide,
    ast.Mod: np.mod,
}


Run = Callable[[Mapping[str, Tensor]], Sequence[Tensor]]
"""Function that computes all outputs, in the same order for module and program."""

_MOST_TRIED = 512
"""Maximum length at which program and module are compared."""

_MOST_NUMBERS = 2**22
"""Maximum numbers in such an input: 27 images of 224 × 224; 512 texts always fit."""

_MOST_COMPUTED = 2**27
"""Maximum numbers in such an output, half a gigabyte: 300 tokens of three texts with a vocabulary of 150,000."""

_COMPARED = 2**22
"""Numbers compared at a time, in float64."""

_FAILURES: tuple[type[Exception], ...] = (*LIBRARY_ERRORS, RequestError)

_RELATIVE = 1e-3
"""Tolerance between outputs, relative to the largest; two branches of a model differ by much more."""


_NOT_COPIED: tuple[type[Exception], ...] = (*LIBRARY_ERRORS, copy.Error)
"""Errors raised by a module that contains an object that cannot be copied, such as a lock."""


def pristine(module: nn.Module) -> nn.Module:
    """Return a copy of a module that shares its weights: some models change when they run (BigBird)."""
    shared: dict[int, Any] = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    try:
        return copy.deepcopy(module, shared)
    except _NOT_COPIED:
        return module


def probed_lengths(
    live: Run, program: Run, inputs: Sequence[InputRecord], facts: Mapping[str, Facts], wanted: Bounds
) -> dict[str, Lengths]:
    """Return the record of every axis, after comparing module and program at its limits.

    Length 1, which torch excludes from every program, and the few lengths that conditions exclude are included if both
    compute the same there.

    Args:
        live: the module, before its capture.
        program: the captured program.
        inputs: inputs of both.
        facts: the program's facts about each axis.
        wanted: requested lengths.

    Raises:
        BaseModelError: a record cannot express the lengths, or the program differs from the module within them.
    """
    free = [name for name in facts if any(name in record.axes for record in inputs)]
    given = {axis: _record(axis, facts[axis], wanted) for axis in free}
    # a different length for each axis: torch treats equal ones as one
    usual = {axis: given[axis].near(3 + 2 * place) for place, axis in enumerate(free)}

    @lru_cache(1)  # only the last: outputs are large, and are compared right after they are computed
    def alone(axis: str, length: int) -> tuple[dict[str, Tensor], Sequence[Tensor] | None]:
        tensors = _tensors(inputs, {**usual, axis: length})
        return tensors, _computed(live, tensors)

    def agree(axis: str, length: int) -> bool:
        tensors, expected = alone(axis, length)
        return _are_close(expected, _computed(program, tensors))

    def computes(axis: str, length: int) -> bool:
        return alone(axis, length)[1] is not None

    probed = {}
    for axis in free:
        also = [point for point in facts[axis].points() if point <= _MOST_TRIED and agree(axis, point)]
        lengths = _record(axis, facts[axis], wanted, also)
        if 1 in lengths and not lengths.fixed and not agree(axis, 1):
            above = lengths.within(Lengths(_SMALLEST))
            lengths = lengths if above is None else above
        most = _most_probed(inputs, usual, axis)
        trial = lengths.at_most(min(usual[axis], most)) or lengths.minimum
        numbers = max((output.numel() for output in alone(axis, trial)[1] or ()), default=1)
        top = lengths.at_most(min(most, max(1, _MOST_COMPUTED * trial // max(1, numbers)))) or lengths.minimum
        if not computes(axis, top):  # for example RoBERTa, whose positions start after the padding row
            tries = range(usual[axis] + 1, top)
            # bisection, which assumes that a module that rejects a length rejects longer ones
            longest = usual[axis] + bisect_left(tries, True, key=lambda length: not computes(axis, length))
            lengths = lengths.within(Lengths(maximum=longest)) or lengths
            top = lengths.maximum or top
        for length in dict.fromkeys((top, lengths.minimum)):
            if length not in (1, *also) and length <= _MOST_TRIED and not agree(axis, length):
                raise BaseModelError(
                    "differs from the model once it is captured",
                    where=f"axis `{axis}`",
                    found=f"a different result at length {length}, of {lengths}",
                    fix="restrict the lengths of the axis: "
                    + argument("lengths", [f"{axis}=128"], option="axis", words=f"{axis}=128"),
                )
        probed[axis] = lengths
    return probed


def shortest_computed(live: Run, inputs: Sequence[InputRecord], lengths: Bounds, axis: str) -> int:
    """Return the minimum length of an axis that a module accepts, such as the window of its convolutions.

    `lengths` are those of its program, which a torch condition may exclude from the shortest inputs.
    """
    usual = {name: own.near(3 + 2 * place) for place, (name, own) in enumerate(lengths.items())}
    below = range(1, lengths[axis].minimum)
    return 1 + bisect_left(
        below, True, key=lambda length: _computed(live, _tensors(inputs, {**usual, axis: length})) is not None
    )


def _most_probed(inputs: Sequence[InputRecord], usual: Mapping[str, int], axis: str) -> int:
    """Return the longest length to test while other axes have their usual lengths."""
    sizes = [
        math.prod(size if isinstance(size, int) else usual.get(size, 1) for size in record.axes if size != axis)
        for record in inputs
        if axis in record.axes
    ]
    return max(1, min([_MOST_TRIED, *(_MOST_NUMBERS // max(1, size) for size in sizes)]))


def _record(axis: str, facts: Facts, wanted: Bounds, also: Sequence[int] = ()) -> Lengths:
    known = facts.lengths(also)
    if known is None:
        raise only_some(facts.condition or f"on `{axis}`")
    requested = axis_lengths(axis, wanted)
    allowed = known.within(requested)
    if allowed is None:
        raise BaseModelError(
            "accepts none of the requested lengths",
            where=f"axis `{axis}`",
            found=str(known),
            expected=str(requested),
            fix="request other lengths",
        )
    return allowed


def _tensors(inputs: Sequence[InputRecord], shape: Mapping[str, int]) -> dict[str, Tensor]:
    """Return inputs of a shape, with padding if there is a mask."""
    arrays = input_cases(inputs, seed=0, shapes=[shape])[-1].arrays
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _computed(run: Run, tensors: Mapping[str, Tensor]) -> Sequence[Tensor] | None:
    try:
        with torch.no_grad(), captured_logs():
            return run(tensors)
    except _FAILURES:
        return None


def _are_close(expected: Sequence[Tensor] | None, found: Sequence[Tensor] | None) -> bool:
    """Return whether outputs agree in their common part: those of longer inputs are cut."""
    if expected is None or found is None or len(expected) != len(found):
        return False
    for reference, computed in zip(expected, found, strict=True):
        part = computed[tuple(slice(size) for size in reference.shape)]
        if part.shape != reference.shape:
            return False
        tolerance = _RELATIVE * _scale(reference)
        for left, right in zip(_pieces(part), _pieces(reference), strict=True):
            if not torch.allclose(left.double(), right.double(), rtol=0, atol=tolerance, equal_nan=True):
                return False
    return True


def _pieces(values: Tensor) -> Sequence[Tensor]:
    return values.detach().flatten().chunk(1 + values.numel() // _COMPARED)


def _scale(values: Tensor) -> float:
    """Return the largest finite magnitude, or 0."""
    return max((_largest_finite(piece) for piece in _pieces(values)), default=0.0)


def _largest_finite(values: Tensor) -> float:
    finite = values[torch.isfinite(values)]
    return float(finite.double().abs().max()) if finite.numel() else 0.0


def may_pad(live: Run, program: Run, inputs: Sequence[InputRecord], lengths: Bounds) -> bool:
    """Return whether a text of an unsupported length may be padded to a supported one, behind a mask.

    It may if the program then computes at the real tokens what the module computes for them without padding.
    """
    axis = token_axis(inputs)
    masks = [record.name for record in inputs if record.role == "mask" and axis in record.axes]
    if axis is None or not masks:
        return False
    own = axis_lengths(axis, lengths)
    # a length that the program excludes, far from the minimum if possible
    shorter = (own.minimum // 3, own.minimum - 1, *own.exceptions, own.minimum + 1)
    short = next((length for length in shorter if length > 0 and length not in own), 0)
    long = own.at_least(short)
    if not short or long is None or long > 4 * _MOST_TRIED:
        return False
    alone = [replace(one, axes=tuple(short if each == axis else each for each in one.axes)) for one in inputs]
    shape = {name: 2 for one in alone for each in one.axes for name in names(each)}
    (case, *_) = input_cases(alone, seed=0, shapes=[shape])
    tensors = {name: torch.from_numpy(array) for name, array in case.arrays.items()}
    padded = {}
    for record in inputs:
        behind = [(0, long - short if each == axis else 0) for each in reversed(record.axes)]
        padded[record.name] = nn.functional.pad(tensors[record.name], [pad for pair in behind for pad in pair])
    return _are_close(_computed(live, tensors), _computed(program, padded))

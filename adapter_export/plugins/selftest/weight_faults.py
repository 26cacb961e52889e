"""Faults in constants of the base."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import numpy as np
import onnx_ir as ir

from adapter_export.plugins.selftest.fault import Copy, Place, Plant, in_graph, kinds_of

ArrayChange = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def weights_of(model: ir.Model, *, rank: int | None = None, square: bool = False) -> list[ir.Value]:
    """Return the float weights of the base with more than one element, without slots."""
    inputs = set(model.graph.inputs)
    found = []
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if value in inputs or tensor is None or not value.uses():
            continue
        if tensor.dtype != ir.DataType.FLOAT or tensor.size < 4:
            continue
        shape = tuple(tensor.shape.numpy())
        if (rank is None or len(shape) == rank) and (not square or (len(shape) == 2 and shape[0] == shape[1])):
            found.append(value)
    return found


def values_of(value: ir.Value) -> np.ndarray:
    """Return a copy of the elements of a constant."""
    assert value.const_value is not None  # `weights_of` selects constants
    return np.array(value.const_value.numpy())


def replace_values(value: ir.Value, array: np.ndarray) -> None:
    """Replace the elements of a constant."""
    value.const_value = ir.Tensor(np.ascontiguousarray(array), name=value.name)
    if not value.is_graph_input():  # an overridable constant keeps its shape, which is part of the interface
        value.shape = ir.Shape(array.shape)


def _tables(model: ir.Model) -> list[ir.Value]:
    """Return the word and position tables, the longest first."""
    found = [value for value in weights_of(model, rank=2) if any(node.op_type == "Gather" for node, _ in value.uses())]
    return sorted(found, key=lambda value: -len(values_of(value)))


def in_weight(change: ArrayChange, *, rank: int | None = None, square: bool = False, variant: str = "slots") -> Plant:
    """Change one weight of the base, optionally of a given rank or square."""

    def changed(copy: Copy, model: ir.Model) -> list[Place] | None:
        tables = _tables(model)
        able = [one for one in weights_of(model, rank=rank, square=square) if one not in tables]
        for at in copy.rng.permutation(len(able)):
            before = values_of(able[int(at)])
            after = change(before.copy(), copy.rng).astype(np.float32)
            if after.tobytes() != before.tobytes():  # skip changes without effect, such as scaling a bias of zeros
                replace_values(able[int(at)], after)
                return [able[int(at)].name or ""]
        return None

    return in_graph(changed, variant)


def _word(change: Callable[[np.ndarray, int, int], None], nth: int = 0) -> Plant:
    """Change two rows of a word table."""

    def changed(copy: Copy, model: ir.Model) -> list[Place] | None:
        tables = _tables(model)
        if len(tables) <= nth or len(values_of(tables[nth])) < 2:
            return None
        array = values_of(tables[nth])
        change(array, *map(int, copy.rng.choice(len(array), 2, replace=False)))
        replace_values(tables[nth], array)
        return [tables[nth].name or ""]

    return in_graph(changed)


def change_largest(
    array: np.ndarray, rng: np.random.Generator, change: Callable[[np.float32], np.float32]
) -> np.ndarray:
    """Change the element with the largest magnitude of a random sample: changing 0 may have no effect."""
    flat = array.reshape(-1)
    drawn = rng.integers(flat.size, size=64)
    place = drawn[np.abs(flat[drawn]).argmax()]
    flat[place] = change(flat[place])
    return array


def next_number(number: np.float32) -> np.float32:
    """Return the next larger float32."""
    return np.float32(np.nextafter(number, np.float32(np.inf)))


def exchange(array: np.ndarray, axis: int, rng: np.random.Generator) -> np.ndarray:
    """Swap two positions of an array along an axis."""
    one, other = rng.choice(array.shape[axis], 2, replace=False)
    order = np.arange(array.shape[axis])
    order[[one, other]] = order[[other, one]]
    return np.take(array, order, axis)


def _row_of_zeros(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    array[int(rng.integers(len(array)))] = 0
    return array


def _bfloat16(array: np.ndarray) -> np.ndarray:
    return (array.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


def _eight_bits(array: np.ndarray) -> np.ndarray:
    step = np.abs(array).max() / 127
    return np.asarray(np.round(array / step) * step)


def _two_constants(copy: Copy, model: ir.Model) -> list[Place] | None:
    groups: dict[tuple[int, ...], list[ir.Value]] = {}
    for value in weights_of(model):
        groups.setdefault(values_of(value).shape, []).append(value)
    pair = copy.choose(
        [
            (one, other)
            for group in groups.values()
            for one, other in combinations(group, 2)
            if values_of(one).tobytes() != values_of(other).tobytes()
        ]
    )
    if pair is None:
        return None
    one, other = pair
    first, second = values_of(one), values_of(other)
    replace_values(one, second)
    replace_values(other, first)
    return [one.name or "", other.name or ""]


def _of_norm(change: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]) -> Plant:
    def changed(copy: Copy, model: ir.Model) -> list[Place] | None:
        norms = [
            (node, own)
            for node in model.graph
            if node.op_type == "LayerNormalization"
            and len(own := [one for one in node.inputs[1:3] if one is not None and one.const_value is not None]) == 2
        ]
        for at in copy.rng.permutation(len(norms)):
            node, own = norms[int(at)]
            before = values_of(own[0]), values_of(own[1])
            after = [array.astype(np.float32) for array in change(*before)]
            if any(one.tobytes() != other.tobytes() for one, other in zip(before, after, strict=True)):
                for value, array in zip(own, after, strict=True):
                    replace_values(value, array)
                return [*(value.name or "" for value in own), node.name or ""]
        return None

    return in_graph(changed)


WEIGHTS = kinds_of(
    "base weights",
    {
        "one weight off by one ulp": in_weight(lambda a, rng: change_largest(a, rng, next_number)),
        "one weight off by a thousandth": in_weight(
            lambda a, rng: change_largest(a, rng, lambda n: n * np.float32(1.001))
        ),
        "one weight negated": in_weight(lambda a, rng: change_largest(a, rng, lambda n: -n), rank=2),
        "one weight is NaN": in_weight(lambda a, rng: change_largest(a, rng, lambda _: np.float32(np.nan))),
        "a tensor scaled by 1.001": in_weight(lambda a, _: a * np.float32(1.001), rank=2),
        "a tensor doubled": in_weight(lambda a, _: a * 2, rank=2),
        "a tensor negated": in_weight(lambda a, _: -a, rank=2),
        "a tensor zeroed": in_weight(lambda a, _: a * 0, rank=2),
        "a matrix transposed": in_weight(lambda a, _: a.T, square=True),
        "the rows of a matrix reversed": in_weight(lambda a, _: a[::-1], rank=2),
        "two rows of a matrix swapped": in_weight(lambda a, rng: exchange(a, 0, rng), rank=2),
        "two columns of a matrix swapped": in_weight(lambda a, rng: exchange(a, 1, rng), rank=2),
        "a row of a matrix zeroed": in_weight(_row_of_zeros, rank=2),
        "a matrix rounded to float16": in_weight(lambda a, _: a.astype(np.float16), rank=2),
        "a matrix rounded to bfloat16": in_weight(lambda a, _: _bfloat16(a), rank=2),
        "a matrix rounded to 8 bits": in_weight(lambda a, _: _eight_bits(a), rank=2),
        "a matrix with noise of 1e-4": in_weight(lambda a, rng: a + 1e-4 * rng.standard_normal(a.shape), rank=2),
        "a vector shifted by one": in_weight(lambda a, _: np.roll(a, 1), rank=1),
        "a vector zeroed": in_weight(lambda a, _: a * 0, rank=1),
        "a vector off by a thousandth": in_weight(lambda a, _: a + np.float32(1e-3), rank=1),
        "one weight is infinite": in_weight(lambda a, rng: change_largest(a, rng, lambda _: np.float32(np.inf))),
        "the rows of a matrix shifted by one": in_weight(lambda a, _: np.roll(a, 1, 0), rank=2),
        "two tensors swapped": in_graph(_two_constants),
        "weight and bias of a norm swapped": _of_norm(lambda weight, bias: (bias, weight)),
        "the weight of a norm scaled by 1.01": _of_norm(lambda weight, bias: (weight * 1.01, bias)),
        "the bias of a norm removed": _of_norm(lambda weight, bias: (weight, bias * 0)),
        "a word's row doubled": _word(lambda a, one, _: a.__setitem__(one, a[one] * 2)),
        "a word's row zeroed": _word(lambda a, one, _: a.__setitem__(one, 0)),
        "the rows of two words swapped": _word(lambda a, one, two: a.__setitem__([one, two], a[[two, one]])),
        "one number of a word off by an ulp": _word(lambda a, one, _: a.__setitem__((one, 0), next_number(a[one, 0]))),
        "the word table shifted by one": _word(lambda a, *_: a.__setitem__(slice(None), np.roll(a, 1, 0))),
        "the rows of two positions swapped": _word(lambda a, one, two: a.__setitem__([one, two], a[[two, one]]), 1),
        "the position table shifted by one": _word(lambda a, *_: a.__setitem__(slice(None), np.roll(a, 1, 0)), 1),
        "a row of the third table doubled": _word(lambda a, one, _: a.__setitem__(one, a[one] * 2), 2),
    },
)

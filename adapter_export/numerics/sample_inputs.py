"""Sample inputs of a base: a matrix of shapes, with valid values."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, product
from typing import Literal

import numpy as np
import numpy.typing as npt

from adapter_export.errors import BaseModelError, UsageError
from adapter_export.format.axes import axis_names, length, names
from adapter_export.format.lengths import Bounds, axis_lengths
from adapter_export.format.manifest import InputRecord
from adapter_export.format.sketch import filled

BATCHES = (1, 3)
LENGTHS = (1, 7, 65)
"""One token, an odd number, and one more than 64, so that no kernel's block size divides it."""

MORE_BATCHES = (1, 2, 3, 5)
MORE_LENGTHS = (1, 2, 7, 12, 64, 65)
"""Lengths in `covering_cases`: even numbers as well, and both sides of the end of a block of 64."""

_LOSS_TOKENS = 7
"""The longest row on which a base in another precision is compared with the plain one."""

Shape = Mapping[str, int]
"""A length for each named axis."""

Padding = Literal["none", "right", "left", "holes"]
"""Positions of masked tokens: after, before or between the others."""

_SUFFIXES: Mapping[Padding, str] = {"none": "", "right": "_padded", "left": "_padded_left", "holes": "_padded_holes"}


@dataclass(frozen=True)
class InputCase:
    """One set of inputs, under a unique name that says the shape, such as `batch3_tokens7`.

    `core` are the few cases that are tried in every graph at every level; the others in the graph that clients run.
    `seeds` describe inputs that `filled` made, by name: files store the seed instead of the array.
    """

    name: str
    arrays: Mapping[str, np.ndarray]
    core: bool = True
    seeds: Mapping[str, int] = field(default_factory=dict)


def input_cases(
    inputs: Sequence[InputRecord],
    *,
    seed: int,
    lengths: Bounds | None = None,
    max_tokens: int | None = None,
    shapes: Sequence[Shape] | None = None,
) -> list[InputCase]:
    """Make inputs for every shape, then one case more with rows of different lengths, padded at their ends.

    The first axis of an input counts as the batch, every other named axis as a length; axes of one name have one
    length. A decoder with a cache gets texts with an empty cache, then single tokens after a past; an encoder gets no
    tokens in these. The padded case requires a mask over more than one token and no cache, as each decoder pads in its
    own way. `lengths` are the limits of the base, `max_tokens` is the longest row, and `shapes` are the lengths of all
    named axes per case, by default `BATCHES` × `LENGTHS`, each as close as the base allows. Equal arguments return
    equal inputs.

    Raises `UsageError` for a named axis without a length, or below 1; 0 is the length of an empty cache.
    """
    chosen = list(shapes) if shapes is not None else _shape_matrix(inputs, lengths or {}, max_tokens)
    for shape in chosen:
        _check(inputs, shape, lengths or {})
    cases = [_drawn_case(inputs, shape, np.random.default_rng([seed, index])) for index, shape in enumerate(chosen)]
    return _unique([*cases, *_padded(inputs, cases)])


Chosen = tuple[Shape, Padding]


def covering_cases(
    inputs: Sequence[InputRecord], *, seed: int, lengths: Bounds | None = None, max_tokens: int | None = None
) -> list[InputCase]:
    """Make inputs in which every two of a batch, a length and a kind of padding occur together at least once.

    Those of `input_cases` come first, then as few as a greedy choice needs, short ones first. `core` are the former,
    and as many as it takes for each batch, length and padding to be among them.
    """
    bounds = lengths or {}
    known = input_cases(inputs, seed=seed, lengths=bounds, max_tokens=max_tokens)
    paddings: Sequence[Padding] = list(_SUFFIXES) if _padded_mask(inputs) else ["none"]
    shapes = _shape_matrix(inputs, bounds, max_tokens, MORE_BATCHES, MORE_LENGTHS)
    able = [choice for choice in product(shapes, paddings) if _can_have(inputs, choice)]
    known_names = {case.name for case in known}
    first = [choice for choice in able if _chosen_name(choice) in known_names]
    chosen = _covering(able, first, 2)
    core = {_chosen_name(choice) for choice in _covering(chosen, first, 1)}
    more = [choice for choice in chosen if _chosen_name(choice) not in known_names]
    # a random stream for each case, independent of the number of values that the others draw
    cases = [
        shaped_case(inputs, choice, np.random.default_rng([seed, 1, index]), bounds)
        for index, choice in enumerate(more)
    ]
    return [*known, *(replace(case, core=case.name in core) for case in cases)]


def pairs_covered(inputs: Sequence[InputRecord], lengths: Bounds, cases: Iterable[str]) -> tuple[int, int]:
    """Return how many pairs of a batch, a length and a padding are in cases of these names, and how many there are."""
    paddings: Sequence[Padding] = list(_SUFFIXES) if _padded_mask(inputs) else ["none"]
    shapes = _shape_matrix(inputs, lengths, None, MORE_BATCHES, MORE_LENGTHS)
    able = [choice for choice in product(shapes, paddings) if _can_have(inputs, choice)]
    names = set(cases)
    tried = {pair for choice in able if _chosen_name(choice) in names for pair in _groups(choice, 2)}
    return len(tried), len({pair for choice in able for pair in _groups(choice, 2)})


def _covering(able: Sequence[Chosen], chosen: Sequence[Chosen], size: int) -> list[Chosen]:
    """Add shapes until every possible group of `size` lengths and paddings occurs."""
    cases = list(chosen)
    missing = {group for choice in able for group in _groups(choice, size)}
    missing -= {group for choice in cases for group in _groups(choice, size)}
    while missing:
        best = max(
            able,
            key=lambda choice: (len(missing & _groups(choice, size)), -math.prod(filter(None, choice[0].values()))),
        )
        cases.append(best)
        missing -= _groups(best, size)
    return cases


def _groups(chosen: Chosen, size: int) -> set[tuple[tuple[str, int | str], ...]]:
    shape, padding = chosen
    return set(combinations([*shape.items(), ("padding", padding)], size))


def _can_have(inputs: Sequence[InputRecord], chosen: Chosen) -> bool:
    """Return true if the mask of a shape is long enough for a padding."""
    shape, padding = chosen
    mask = _padded_mask(inputs)
    # a hole lies between two real tokens
    least = {"none": 1, "right": 2, "left": 2, "holes": 3}[padding]
    return mask is None or length(mask.axes[1], shape) >= least


def _chosen_name(chosen: Chosen) -> str:
    return f"{_name(chosen[0])}{_SUFFIXES[chosen[1]]}"


def shaped_case(inputs: Sequence[InputRecord], chosen: Chosen, rng: np.random.Generator, lengths: Bounds) -> InputCase:
    """Make inputs of one shape with one kind of padding, which `UsageError` refuses for a named axis without length."""
    shape, padding = chosen
    _check(inputs, shape, lengths)
    case, mask = _drawn_case(inputs, shape, rng), _padded_mask(inputs)
    arrays = case.arrays
    if mask is not None and padding != "none":
        batch, tokens = arrays[mask.name].shape
        real = _real_tokens(batch, tokens, padding)
        arrays = {record.name: _cut(record, arrays[record.name], real) for record in inputs}
    return replace(case, name=_chosen_name(chosen), arrays=arrays)


MOST_WORDS = 2**15
"""Maximum number of words in `word_cases`."""

WORDS_IN_ROW, ROWS_OF_WORDS = 64, 8


def word_cases(
    inputs: Sequence[InputRecord],
    *,
    seed: int,
    lengths: Bounds | None = None,
    most: int = MOST_WORDS,
    rows: int = ROWS_OF_WORDS,
) -> Iterator[InputCase]:
    """Make inputs with every id of every input of ids once, in drawn order, as full rows: `words0`, `words512`, ….

    A table of more than `most` words contributes a random sample of `most`. Without ids of a known limit, nothing is
    made.
    """
    tables = {record.name: record.limit for record in inputs if record.role == "ids" and record.limit is not None}
    if not tables:
        return
    rng = np.random.default_rng([seed, 2])
    words = {name: rng.permutation(limit)[:most] for name, limit in tables.items()}
    shape, done = _sized(inputs, lengths or {}, rows, WORDS_IN_ROW, 0), 0
    while done < max(map(len, words.values())):
        arrays = dict(_drawn_case(inputs, shape, rng).arrays)
        for name, vocabulary in words.items():
            arrays[name] = np.resize(np.roll(vocabulary, -done), arrays[name].shape).astype(arrays[name].dtype)
        yield InputCase(f"words{done}", arrays, core=False)
        done += min(arrays[name].size for name in words)


def alone_case(
    inputs: Sequence[InputRecord], name: str, ids: npt.NDArray[np.int64], *, lengths: Bounds, seed: int
) -> InputCase:
    """Make inputs with a row for each of some ids of one input, full of that id, as short as the base takes them."""
    shape = _sized(inputs, lengths, len(ids), 1, 0)
    arrays = _drawn_case(inputs, shape, np.random.default_rng(seed)).arrays
    array = arrays[name]
    rows = np.resize(ids, array.shape[:1]).reshape(-1, *[1] * (array.ndim - 1))
    return InputCase("alone", {**arrays, name: np.broadcast_to(rows, array.shape).astype(array.dtype)})


STEPS = (1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 17, 32, 33, 64, 65, 66, 128, 129, 256, 257)
"""Lengths at which a smaller case that fails is looked for."""


def shape_of(inputs: Sequence[InputRecord], axes: Mapping[str, int]) -> Shape:
    """Return the lengths of the named axes of a case that can be chosen."""
    return {name: axes[name] for name in axis_names(inputs) if name in axes}


def padding_of(case: str) -> Padding:
    """Return the kind of padding of a case, from its name."""
    return next(
        (kind for kind, suffix in reversed(list(_SUFFIXES.items())) if suffix and case.endswith(suffix)), "none"
    )


def resized(inputs: Sequence[InputRecord], lengths: Bounds, shape: Shape, which: str, size: int) -> Shape:
    """Return a shape with another number of rows (`batch`) or of tokens, as near to it as the base takes one."""
    batch_axes, past = _batch_axes(inputs), _past_axes(inputs)
    axes = batch_axes if which == "batch" else set(shape) - batch_axes - past
    return {axis: axis_lengths(axis, lengths).near(size) if axis in axes else now for axis, now in shape.items()}


def sized_cases(
    inputs: Sequence[InputRecord], lengths: Bounds, sizes: Sequence[tuple[int, int]], *, seed: int
) -> list[InputCase]:
    """Make inputs without padding and with empty caches for some sizes, each as near as the base takes it.

    Args:
        inputs: of the base.
        lengths: those that it takes.
        sizes: the batch and the length of every other named axis, case by case.
        seed: random seed.
    """
    shapes = _fitting([_sized(inputs, lengths, batch, size, 0) for batch, size in sizes], lengths)
    return [_drawn_case(inputs, shape, np.random.default_rng([seed, at])) for at, shape in enumerate(shapes)]


def named_case(inputs: Sequence[InputRecord], name: str, lengths: Bounds, *, seed: int) -> InputCase | None:
    """Make the inputs that a name such as `batch2_tokens4_padded_left` describes, or `None` for any other name."""
    padding = padding_of(name)
    parts = "_".join(rf"{re.escape(axis)}(\d{{1,5}})" for axis in axis_names(inputs))
    match = re.fullmatch(parts, name.removesuffix(_SUFFIXES[padding]))
    if match is None or not parts:
        return None
    shape = {axis: int(size) for axis, size in zip(axis_names(inputs), match.groups(), strict=True)}
    if _too_short(inputs, shape, lengths) or not _can_have(inputs, (shape, padding)):
        return None
    return shaped_case(inputs, (shape, padding), np.random.default_rng(seed), lengths)


MOST_AT_EDGES = 512
"""The longest input of `edge_cases`, unless the smallest that a base takes is longer."""

_MOST_NUMBERS = 2**22
"""Maximum numbers of an input: a model of images must not run on as many rows as one of texts."""


def edge_cases(inputs: Sequence[InputRecord], lengths: Bounds, *, seed: int) -> list[InputCase]:
    """Make inputs of batch 1 at the edges of lengths: the smallest, the largest, beside each exception.

    Other axes are as close to that as they can be. With a cache, there are as many new tokens, and then a single one
    after a past. Without lengths the list is empty.
    """
    batch_axes, past = _batch_axes(inputs), _past_axes(inputs)
    ends = {
        size for axis, valid in lengths.items() if axis not in batch_axes for size in valid.edges(MOST_AT_EDGES)
    } - {0}
    steps = [(0, size) for size in sorted(ends)] + [(size - 1, 1) for size in sorted(ends) if past and size > 1]
    shapes = _fitting([_sized(inputs, lengths, 1, size, behind) for behind, size in steps], lengths)
    return input_cases(inputs, seed=seed, lengths=lengths, shapes=shapes)[: len(shapes)]


def outside_case(
    inputs: Sequence[InputRecord], axis: str, size: int, lengths: Bounds, *, seed: int
) -> InputCase | None:
    """Make inputs with one forbidden length of an axis, all others allowed, or `None` if they would be too large."""
    shape = _sized(inputs, lengths, 1, 1, 0)
    first, *others = sorted(names(axis), key=lambda name: name not in _past_axes(inputs))
    # an axis may be a sum, such as past and new tokens
    shape[first] = size - sum(shape[name] for name in others)
    largest = max(math.prod(length(each, shape) for each in record.axes) for record in inputs)
    if shape[first] < (0 if others else 1) or largest > _MOST_NUMBERS:
        return None
    return input_cases(inputs, seed=seed, shapes=[shape])[0]


def _shape_matrix(
    inputs: Sequence[InputRecord],
    lengths: Bounds,
    max_tokens: int | None,
    batches: Sequence[int] = BATCHES,
    tokens: Sequence[int] = LENGTHS,
) -> list[Shape]:
    batch_axes, past = _batch_axes(inputs), _past_axes(inputs)
    longest = max_tokens or max(tokens)
    sizes = dict.fromkeys(min(length, longest) for length in tokens) if set(axis_names(inputs)) - batch_axes else (1,)
    batches = batches if batch_axes else (1,)
    steps = [(0, size) for size in sizes] + [(size, 1) for size in sizes if past and size < longest]
    shapes = [_sized(inputs, lengths, batch, size, behind) for behind, size in steps for batch in batches]
    return _fitting(shapes, lengths)


def _sized(inputs: Sequence[InputRecord], lengths: Bounds, batch: int, size: int, behind: int) -> dict[str, int]:
    """Return a length for each axis, as close to a size as the base allows; `behind` is the length of the past."""
    batch_axes, past = _batch_axes(inputs), _past_axes(inputs)
    sizes = dict.fromkeys(axis_names(inputs), size) | dict.fromkeys(batch_axes, batch)
    if behind:
        sizes |= dict.fromkeys((axis for axis, valid in lengths.items() if 0 in valid), 0)
    return {
        axis: _past(behind, axis, lengths) if axis in past else axis_lengths(axis, lengths).near(sizes[axis])
        for axis in axis_names(inputs)
    }


def _past(behind: int, axis: str, lengths: Bounds) -> int:
    """Return the length of a past as near to a number as the base allows: that of a file has one window."""
    return behind and axis_lengths(axis, lengths).near(behind)


def _fitting(shapes: Sequence[Shape], lengths: Bounds) -> list[Shape]:
    """Return each shape once, without those in which the base rejects the length of a sum of axes."""
    sums = [axis for axis in lengths if len(names(axis)) > 1]
    fitting = [shape for shape in shapes if all(length(axis, shape) in lengths[axis] for axis in sums)]
    return list({_name(shape): shape for shape in fitting}.values())


def _batch_axes(inputs: Sequence[InputRecord]) -> set[str]:
    return {record.axes[0] for record in inputs if record.axes and isinstance(record.axes[0], str)}


def _past_axes(inputs: Sequence[InputRecord]) -> set[str]:
    """Return the axes that only caches have: the lengths of the past, which are also in the mask's sum."""
    caches = {axis for record in inputs if record.role == "cache" for axis in record.axes[1:]}
    others = {axis for record in inputs if record.role != "cache" for axis in record.axes}
    return {axis for axis in caches - others if isinstance(axis, str)}


def _too_short(inputs: Sequence[InputRecord], shape: Shape, lengths: Bounds) -> str | None:
    """Return an axis that is shorter than any input of the base; a past may be empty, the sum with new tokens not."""
    past, sums = _past_axes(inputs), [axis for record in inputs for axis in record.axes if len(names(axis)) > 1]
    for axis in axis_names(inputs):
        if shape.get(axis, -1) < (0 if axis in past or 0 in axis_lengths(axis, lengths) else 1):
            return axis
    return next((str(axis) for axis in sums if length(axis, shape) < 1), None)


def _check(inputs: Sequence[InputRecord], shape: Shape, lengths: Bounds) -> None:
    axis = _too_short(inputs, shape, lengths)
    if axis is not None:
        length = shape.get(axis, "no length" if len(names(axis)) == 1 else 0)
        raise UsageError("a named axis needs a length", where=f"axis `{axis}`", found=length, expected="at least 1")


def _drawn_case(inputs: Sequence[InputRecord], shape: Shape, rng: np.random.Generator) -> InputCase:
    """Draw inputs of one shape without padding."""
    shapes = {record.name: tuple(length(axis, shape) for axis in record.axes) for record in inputs}
    seeds = {
        record.name: int(rng.integers(2**32))
        for record in inputs
        if record.role not in ("mask", "ids") and np.dtype(record.dtype).kind == "f"
    }
    try:
        arrays = {
            record.name: filled(seeds[record.name], shapes[record.name], record.dtype)
            if record.name in seeds
            else _draw(record, shapes[record.name], rng)
            for record in inputs
        }
    except (MemoryError, ValueError) as error:
        raise BaseModelError(
            "takes inputs that do not fit into memory",
            found=", ".join(f"`{name}` {list(lengths)}" for name, lengths in shapes.items()),
            fix="export the model again",
        ) from error
    return InputCase(_name(shape), arrays, seeds=seeds)


def _draw(record: InputRecord, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    dtype = np.dtype(record.dtype)
    if record.role == "mask":
        return np.ones(shape, dtype)
    if record.role == "ids":
        limit = 1 if record.limit is None else record.limit  # 0 is the one index that every table has
        return rng.integers(0, limit, shape).astype(dtype)
    return np.zeros(shape, dtype)  # 0 is the safest value of a number with unknown meaning


def _padded(inputs: Sequence[InputRecord], cases: Sequence[InputCase]) -> Iterator[InputCase]:
    """Yield the case with the most rows, and among those the one of middle length, with its rows cut short."""
    mask = _padded_mask(inputs)
    able = [case for case in cases if mask is not None and case.arrays[mask.name].shape[1] > 1]
    if mask is None or not able:
        return
    most_rows = max(case.arrays[mask.name].shape[0] for case in able)
    able = [case for case in able if case.arrays[mask.name].shape[0] == most_rows]
    case = able[(len(able) - 1) // 2]
    real = _real_tokens(*case.arrays[mask.name].shape)
    arrays = {record.name: _cut(record, case.arrays[record.name], real) for record in inputs}
    yield replace(case, name=f"{case.name}_padded", arrays=arrays)


def _padded_mask(inputs: Sequence[InputRecord]) -> InputRecord | None:
    """Return the mask over tokens; `None` with a cache, as each decoder pads in its own way."""
    if any(record.role == "cache" for record in inputs):
        return None
    return next((record for record in inputs if record.role == "mask" and len(record.axes) == 2), None)


def less_padded(case: InputCase, inputs: Sequence[InputRecord]) -> InputCase | None:
    """Return a case with half of each row's padding replaced by its first token, or `None` without padding."""
    masks = [case.arrays[record.name] for record in inputs if record.role == "mask" and len(record.axes) == 2]
    if not masks or masks[0].all():
        return None
    mask = masks[0]
    padding = mask.shape[1] - np.count_nonzero(mask, 1)
    more = (mask == 0) & (np.arange(mask.shape[1]) < (mask.shape[1] - padding // 2)[:, None])
    arrays = {
        record.name: np.where(more, case.arrays[record.name][:, :1], case.arrays[record.name])
        if record.role != "values" and case.arrays[record.name].shape == mask.shape
        else case.arrays[record.name]
        for record in inputs
    }
    return InputCase(case.name, arrays, seeds=case.seeds)


def loss_cases(inputs: Sequence[InputRecord], lengths: Bounds) -> list[InputCase]:
    """Return the random inputs on which a base in another precision is compared with the plain one."""
    return input_cases(inputs, seed=1, lengths=lengths, max_tokens=_LOSS_TOKENS)


def shown_tokens(inputs: Sequence[InputRecord], arrays: Mapping[str, np.ndarray]) -> npt.NDArray[np.bool_] | None:
    """Return which tokens the mask of a base shows [batch, tokens]; `None` if it shows all, or the base has no mask."""
    masks = [arrays[record.name] != 0 for record in inputs if record.role == "mask" and len(record.axes) == 2]
    return masks[0] if masks and not masks[0].all() else None


def has_rows_per_token(shape: Sequence[int], real: npt.NDArray[np.bool_]) -> bool:
    """Return true if a value [batch, tokens, …] has numbers for each token of a mask."""
    return len(shape) > 2 and tuple(shape[:2]) == real.shape  # of two axes one may be classes


def _real_tokens(batch: int, tokens: int, padding: Padding = "right") -> npt.NDArray[np.bool_]:
    """Return a mask of real tokens, [batch, tokens]: the first row whole, the last one a single token, evenly between.

    Holes leave the first and the last token of each row, and hide every third between them, each row others.
    """
    places = np.arange(tokens)
    if padding == "holes":
        shifted = places + np.arange(batch)[:, None]
        return np.asarray((shifted % 3 != 1) | (places == 0) | (places == tokens - 1), bool)
    lengths = np.linspace(tokens, 1, batch).round() if batch > 1 else np.array([(tokens + 1) // 2])
    return (places if padding == "right" else places[::-1]) < lengths[:, None]


def _cut(record: InputRecord, array: np.ndarray, real: npt.NDArray[np.bool_]) -> np.ndarray:
    """Masks and ids are 0 at the padding; other values stay, because a masked token must not matter."""
    if record.role == "values" or array.shape != real.shape:
        return array
    return (array * real).astype(array.dtype)


def _name(shape: Shape) -> str:
    return "_".join(f"{axis}{length}" for axis, length in shape.items()) or "fixed"


def _unique(cases: Sequence[InputCase]) -> list[InputCase]:
    """Drop cases whose names came up before: they have the same shapes."""
    return list({case.name: case for case in reversed(cases)}.values())[::-1]

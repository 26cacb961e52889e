"""Rows of options that cover every pair of values, and the values of every option of kinds and heads."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal, get_args, get_origin, get_type_hints

from adapter_export.graph.heads import HeadOptions
from adapter_export.graph.kinds import KINDS
from adapter_export.graph.kinds.kind import Kind
from adapter_export.graph.ops import ACTIVATIONS, POOLINGS

NUMBERS: Mapping[str, Sequence[Any]] = {
    "scaling": (1.0, 0.5, "learned", "channel"),
    "dropout": (0.0, 0.1),
    "drop_path": (0.0, 0.1),
    "phm_dim": (None, 2, 4),
    "phm_rank": (None, 2),
    "sublayers": (None, ("attention",), ("ffn",), ("attention", "ffn")),
    "bottleneck": (None, 8, 32),
    "reduction_factor": (None, 2, 3.0, {"0": 4, "default": 2}),
    "leave_out": ((), (0,), (1,)),
    "modules": (
        ("query", "value"),
        ("query",),
        ("query", "key", "value", "ffn.up", "ffn.down"),
        ("key", "ffn.up"),
        ("attention.output",),
        ("ffn.down",),
    ),
    "scaled_inputs": ((), ("ffn.down",), ("ffn.up", "attention.output")),
    "rank": (8, 1, 2, {"default": 4, "query": 2}),
    "alpha": (None, 3, {"default": 4, "query": 6}),
}
"""Values of options that are neither flags nor choices. A new option needs an entry, or its product fails."""

OF_HEADS: Mapping[str, Sequence[Any]] = {"pooling": tuple(POOLINGS), "dense": (0, 1, 2), "activation": ACTIVATIONS}


@dataclass(frozen=True)
class Choice:
    """A kind with options, each by its name; the other options have the defaults of the kind."""

    kind: str
    options: Mapping[str, Any]

    def make(self) -> Kind:
        """The kind; `UsageError` for options that exclude each other."""
        return KINDS[self.kind].changed(**self.options)

    def __str__(self) -> str:
        return " ".join([self.kind, *(f"{name}={value}" for name, value in self.options.items())])


def values_of(kind: str) -> dict[str, Sequence[Any]]:
    """The values of each option of a kind, its default first."""
    maker, found = KINDS[kind], {}
    hints, options = get_type_hints(type(maker.defaults)), maker.options()
    for name, hint in hints.items():
        choices = options[name][1].choices if name in options else ()
        values = choices or ((False, True) if hint is bool else NUMBERS[name])
        default = getattr(maker.defaults, name)
        fits = (value is not None or type(None) in get_args(hint) for value in values)
        found[name] = (default, *(value for value, fit in zip(values, fits, strict=True) if fit and value != default))
    return found


def head_values() -> dict[str, Sequence[Any]]:
    """The values of each option of heads."""
    found = {}
    for name, hint in get_type_hints(HeadOptions).items():
        literal = get_args(hint) if get_origin(hint) is Literal else ()
        found[name] = OF_HEADS.get(name) or literal or ((False, True) if hint is bool else NUMBERS[name])
    return found


def single_changes(kind: str) -> Iterator[Choice]:
    """A kind with its defaults, and with each other value of one option."""
    yield Choice(kind, {})
    for name, (_, *others) in values_of(kind).items():
        yield from (Choice(kind, {name: value}) for value in others)


def combined_changes(is_valid: Callable[[Choice], bool]) -> Iterator[Choice]:
    """Valid choices that together contain every pair of values that a valid one can have; the kind is a value, too."""
    families: dict[type, list[str]] = {}
    for name, maker in KINDS.items():
        families.setdefault(type(maker.defaults), []).append(name)
    for names in families.values():
        values: dict[str, list[Any]] = {"kind": list(names)}
        for kind in names:
            for option, known in values_of(kind).items():
                listed = values.setdefault(option, [])
                listed += [value for value in known if value not in listed]
        for row in covering(values, lambda row: is_valid(_choice(row))):
            yield _choice(row)


def _choice(row: Mapping[str, Any]) -> Choice:
    return Choice(row["kind"], {name: value for name, value in row.items() if name != "kind"})


def covering(
    values: Mapping[str, Sequence[Any]], is_valid: Callable[[Mapping[str, Any]], bool], *, trials: int = 8
) -> Iterator[dict[str, Any]]:
    """Valid rows with every pair of values that a valid row can have: each covers the most of some random ones."""
    names, chance = list(values), random.Random(0)
    missing = {
        (one, at, other, to)
        for one, other in combinations(names, 2)
        for at in range(len(values[one]))
        for to in range(len(values[other]))
    }
    while missing:
        one, at, other, to = pair = min(missing)
        rows = ({name: chance.randrange(len(values[name])) for name in names} for _ in range(trials))
        covered = {
            frozenset((a, row[a], b, row[b]) for a, b in combinations(names, 2)): row
            for row in (row | {one: at, other: to} for row in rows)
            if is_valid({name: values[name][row[name]] for name in names})
        }
        missing.discard(pair)
        if covered:
            best = max(covered, key=lambda pairs: len(pairs & missing))
            missing -= best
            yield {name: values[name][covered[best][name]] for name in names}

"""Adapters one after the other, their mean, and their weighted sum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from adapter_export.dtypes import Weights
from adapter_export.errors import UsageError
from adapter_export.graph.adapter import Adapter
from adapter_export.graph.compose.members import (
    COMPOSITION,
    ROWS,
    Composition,
    Here,
    Merged,
    compose,
    members_of,
    replaced_by,
)
from adapter_export.graph.graph import READABLE, AdapterGraph, Node
from adapter_export.words import command, quoted

Shares = Mapping[str, float] | Sequence[float]
"""Weights of members: by their names, or in their order."""

Residual = Literal["once", "literal"]
"""`once`: `h + Σ wᵢ·Δᵢ`; `literal`: `h + Σ wᵢ·Aᵢ`, with `Aᵢ = h + Δᵢ`."""

MIX = "mix.weights"
"""The parameter [rows, N] of a weighted fusion, shared by all sites."""

WEIGHTED = "weighted_fusion"
"""The kind of a weighted fusion, and its type in the record."""

_SUM_TOLERANCE = 1e-6
"""Allowed distance of the sum of shares from 1, because shares such as 1/3 are rounded."""

_LARGEST = float(np.finfo(np.float32).max)


def stack(*adapters: Adapter, name: str, head: str | None = None) -> Adapter:
    """One adapter after the other: each reads the result of the previous one instead of the value which that replaces.

    What acts on `h` acts before what acts on `y`, as in the base. `head` names the member whose head it gets.

    Raises:
        UsageError: there are none, two of one name, or no such head.
        AdapterError: they are for different bases, or one replaces the input of a layer and another one its output.
    """
    return compose(members_of(adapters), Composition(name, "stack", {"type": "stack"}), _stacked, head)


def average(*adapters: Adapter, name: str, weights: Shares | None = None, head: str | None = None) -> Adapter:
    """`Σ wᵢ·Aᵢ`, the weights constant and of sum 1: computed as `h + Σ wᵢ·Δᵢ`, `Aᵢ = h + Δᵢ`.

    A member returns `h` where it does not act. The weights are equal if none are given. Raises as `stack`, and
    `UsageError` if a weight is negative, or they do not add up to 1 or are not those of the members.
    """
    shares = shares_of(adapters, weights)
    if min(shares, default=0.0) < 0:
        raise UsageError(
            "the weights of an average are shares, from 0 to 1",
            found=_listed(dict(zip((adapter.name for adapter in adapters), shares, strict=True))),
            fix="take " + command('compose("fuse", …)', "compose fuse …") + ", which has any weights",
        )
    if shares and abs(sum(shares) - 1) > _SUM_TOLERANCE:
        total = f"{sum(shares):g}"
        raise UsageError("the weights of an average add up to 1", found=total, fix="divide each by their sum")

    def merged(here: Sequence[Here | None], site: str) -> AdapterGraph:
        target = replaced_by(here, site)
        chain = Merged(target)
        parts = []
        for branch, share, delta in zip(here, shares, deltas(chain, here, target), strict=True):
            if branch is not None and delta is not None:
                factor = Node("scale", (delta,), f"{branch.member.label}_part", {}, {"factor": share})
                parts.append(delta if share == 1.0 else chain.once(factor))
        for number, part in enumerate(parts, 1):
            chain.op("add", "result" if number == len(parts) else f"sum{number}", part)
        return chain.graph(target, chain.shared)

    record = {"type": "average", "weights": list(shares)}
    return compose(members_of(adapters), Composition(name, "average", record), merged, head)


def weighted_fusion(
    *adapters: Adapter, name: str, weights: Shares | None = None, residual: Residual = "once", head: str | None = None
) -> Adapter:
    """`h + Σ wᵢ·Δᵢ`, the weights a parameter [rows, N] that all sites share: fixed, learned, or given with a request.

    In an exported graph the weights are a slot of their own, to which a request can feed [batch, N]. The first ones may
    have any sum; they are equal and of sum 1 if none are given. With `residual` `literal` it is `h + Σ wᵢ·Aᵢ`. Raises
    as `stack`, and `UsageError` for weights that are not those of the members.
    """
    shares = shares_of(adapters, weights)

    def merged(here: Sequence[Here | None], site: str) -> AdapterGraph:
        target = replaced_by(here, site)
        chain = Merged(target)
        nothing = Node("scale", (target,), "nothing", {}, {"factor": 0.0})
        mixed = [delta or chain.once(nothing) for delta in deltas(chain, here, target)]
        if residual == "literal":
            mixed = [chain.once(Node("add", (target, value), f"{value}_whole")) for value in mixed]
        chain.parameters[MIX] = (ROWS, len(mixed))
        chain.nodes.append(Node("mix", tuple(mixed), "mixed", {"weights": MIX}))
        chain.op("add", "result", "mixed")
        return chain.graph(target, (*chain.shared, MIX))

    def drawn(*_: object) -> Weights:
        return {MIX: np.array([shares], np.float32)}

    composition = Composition(name, WEIGHTED, {"type": WEIGHTED, "residual": residual}, drawn, {ROWS: 1})
    return compose(members_of(adapters), composition, merged, head)


def shares_of(adapters: Sequence[Adapter], weights: Shares | None) -> tuple[float, ...]:
    """Return the weights of members in their order; by default equal weights of sum 1.

    Raises `UsageError` unless they are finite numbers, one for each member.
    """
    names = [adapter.name for adapter in adapters]
    if weights is None:
        return (1 / len(names),) * len(names) if names else ()
    if isinstance(weights, Mapping):
        fits, values = set(weights) == set(names), tuple(weights.get(name, 0.0) for name in names)
    else:
        fits, values = len(weights) == len(names), tuple(weights)
    if not fits or not all(abs(value) <= _LARGEST for value in values):  # NaN is not below anything
        raise UsageError(
            "the weights are not those of the members",
            found=_listed(weights) or "none",
            expected=f"a finite number for each of {quoted(names)}",
        )
    return tuple(map(float, values))


def _listed(weights: Shares) -> str:
    if isinstance(weights, Mapping):
        return ", ".join(f"`{name}`: {weight:g}" for name, weight in weights.items())
    return ", ".join(f"{weight:g}" for weight in weights)


def weighted_members(adapter: Adapter) -> tuple[str, ...] | None:
    """Return the members of a weighted fusion, one per column of its weights, or `None` for any other adapter."""
    record = adapter.training.get(COMPOSITION)
    if not isinstance(record, Mapping) or record.get("type") != WEIGHTED:
        return None
    names = tuple(str(member["name"]) for member in record["members"])
    fits = all(graph.parameters.get(MIX) == (ROWS, len(names)) for graph in adapter.graphs.values())
    return names if fits else None


def deltas(chain: Merged, here: Sequence[Here | None], target: str) -> list[str | None]:
    """Return the value that each member adds to the replaced one; `None` for members that do not act."""
    deltas_found: list[str | None] = []
    for branch in here:
        if branch is None:
            deltas_found.append(None)
        elif branch.graph.replaces == target:
            deltas_found.append(chain.delta(branch, {}))
        else:
            whole = chain.normed_sum(chain.result(branch, {}))
            deltas_found.append(chain.difference(whole, target, f"{branch.member.label}_delta"))
    return deltas_found


def _stacked(here: Sequence[Here | None], site: str) -> AdapterGraph:
    target = replaced_by(here, site)
    chain, values = Merged(target), {name: name for name in READABLE[target]}
    present = [branch for branch in here if branch is not None]
    for replaced in READABLE:
        acting = [branch for branch in present if branch.graph.replaces == replaced]
        if replaced == "y" and acting and values["h"] != "h":
            values["y"] = chain.normed_sum(values["h"])
        for branch in acting:
            values[replaced] = chain.result(branch, values)
    chain.value = values[target]
    return chain.graph(target, chain.shared)

"""How the parameters of bottlenecks are made of the library's tensors (`methods/modeling.py`)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from adapter_export.errors import TensorError
from adapter_export.graph.kinds.adapterhub import BottleneckConfig
from adapter_export.interop.adapterhub.tensors import Recipe, Source, as_it_is, transposed, zeros

Recipes = dict[str, Recipe]


def bottleneck_recipes(config: BottleneckConfig) -> Recipes:
    """The parameters of a bottleneck's graph, by their names there."""
    first = f"adapter_down.{1 if config.ln_before else 0}"
    found: Recipes = {
        "scaling.weight": as_it_is("scaling", ("d",) if config.scaling == "channel" else (1,)),
        "gate.weight": transposed("gate.weight", ("d", 1)),
        "gate.bias": as_it_is("gate.bias", (1,)),
    }
    for role in ("weight", "bias"):
        found[f"norm_before.{role}"] = _twice(f"adapter_norm_before.{role}", f"adapter_down.0.{role}")
        found[f"norm_after.{role}"] = as_it_is(f"adapter_norm_after.{role}", ("d",))
    if config.phm_layer:
        return found | _phm(config, first)
    return found | _linear("down", first, "d", "b") | _linear("up", "adapter_up", "b", "d")


def nice_recipes() -> Recipes:
    """The parameters of an invertible adapter's graph, which has whole features where the library has halves.

    `F` reads the second half (width `d2`) and writes the first (`d1`), `G` the other way round.
    """
    return _coupling("f", "F", read=_second, written=_first, halves=("d2", "d1")) | _coupling(
        "g", "G", read=_first, written=_second, halves=("d1", "d2")
    )


Half = Callable[[np.ndarray, int], np.ndarray]


def _coupling(name: str, library: str, read: Half, written: Half, halves: tuple[str, str]) -> Recipes:
    inside, outside = halves
    down, up = Source(f"{library}.0.weight", (name, inside)), Source(f"{library}.2.weight", (outside, name))
    bias = Source(f"{library}.2.bias", (outside,))

    return {
        f"{name}_down.weight": Recipe((down, up), lambda weight, other: read(weight.T, len(other))),
        f"{name}_down.bias": as_it_is(f"{library}.0.bias", (name,)),
        f"{name}_up.weight": Recipe((up, down), lambda weight, other: written(weight, other.shape[1]).T),
        f"{name}_up.bias": Recipe((bias, down), lambda one, other: written(one, other.shape[1])),
    }


def _first(half: np.ndarray, others: int) -> np.ndarray:
    """The first half of the rows; the others are zero."""
    return np.concatenate([half, np.zeros((others, *half.shape[1:]), half.dtype)])


def _second(half: np.ndarray, others: int) -> np.ndarray:
    """The second half of the rows; the others are zero."""
    return np.concatenate([np.zeros((others, *half.shape[1:]), half.dtype), half])


def _linear(name: str, library: str, width_in: str, width_out: str) -> Recipes:
    return {
        f"{name}.weight": transposed(f"{library}.weight", (width_in, width_out)),
        f"{name}.bias": as_it_is(f"{library}.bias", (width_out,)),
    }


def _twice(name: str, again: str) -> Recipe:
    """The norm before is a member of the module and the first of its `adapter_down`: files hold it under both names."""

    def the_same(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        if not np.array_equal(one, other):
            raise TensorError(
                "one tensor lies in the file under two names, and the two differ",
                found=f"`…{name}` and `…{again}`",
                fix="save the adapter again with AdapterHub's library",
            )
        return one

    return Recipe((Source(name, ("d",)), Source(again, ("d",))), the_same)


def _phm(config: BottleneckConfig, first: str) -> Recipes:
    """Projections of Kronecker products (`PHMLayer`): rule [n, n, n], factors [n, in/n, k] and [n, k, out/n]."""
    found: Recipes = {"rule": _rule(config, "")}
    for name, library, part_in, part_out in (("down", first, "p", "q"), ("up", "adapter_up", "q", "p")):
        found[f"{name}.rule"] = _rule(config, f"{library}.")
        found[f"{name}.bias"] = _bias(config, library, "b" if name == "down" else "d")
        found |= _factors(config, name, library, part_in, part_out)
    return found


def _rule(config: BottleneckConfig, prefix: str) -> Recipe:
    shared = config.shared_phm_rule
    if not config.factorized_phm_rule:
        return as_it_is(f"{prefix}phm_rule", ("n", "n", "n"), shared=shared)
    left = Source(f"{prefix}phm_rule_left", ("n", "n", 1), shared)
    right = Source(f"{prefix}phm_rule_right", ("n", 1, "n"), shared)
    return Recipe((left, right), lambda one, other: one.astype(np.float64) @ other.astype(np.float64))


def _bias(config: BottleneckConfig, library: str, width: str) -> Recipe:
    return as_it_is(f"{library}.b", (width,)) if config.phm_bias else zeros(width)


def _factors(config: BottleneckConfig, name: str, library: str, part_in: str, part_out: str) -> Recipes:
    shared = config.shared_W_phm
    prefix = f"W_{name}" if shared else f"{library}.W"
    if config.factorized_phm_W:
        return {
            f"{name}.left": as_it_is(f"{prefix}_left", ("n", part_in, "k"), shared=shared),
            f"{name}.right": as_it_is(f"{prefix}_right", ("n", "k", part_out), shared=shared),
        }
    whole = Source(prefix, ("n", part_in, part_out), shared)
    itself = Recipe((whole,), np.asarray)
    left, right = (itself, _identities(whole, 2)) if name == "down" else (_identities(whole, 1), itself)
    return {f"{name}.left": left, f"{name}.right": right}


def _identities(whole: Source, axis: int) -> Recipe:
    """An identity matrix [k, k] for each product: a full matrix is its own factor; k is the bottleneck's share."""

    def make(matrices: np.ndarray) -> np.ndarray:
        width = matrices.shape[axis]
        return np.broadcast_to(np.eye(width, dtype=np.float32), (len(matrices), width, width))

    return Recipe((whole,), make)

"""The form in which a graph goes into slots: at a site it can lie idle, whatever it computes.

Many graphs have parameters with which they return what they replace. One that has none, because it loses the residual
or normalises the sum, gets a switch behind its result, with `v` what it replaces:

    keep ⊙ v + use · result

`keep` 1 and `use` 0 give `v` itself, `keep` 0 and `use` 1 the result itself. Both are exact: 0 and 1 round nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from adapter_export.dtypes import Weights
from adapter_export.errors import NotNeutralError
from adapter_export.graph.fold import fold_weights, inference_form
from adapter_export.graph.graph import SITE_VALUES, AdapterGraph, Node, resolve
from adapter_export.graph.neutral import degree_idle, has_neutral_parameters
from adapter_export.graph.rewire import unused

KEEP, USE = "switch.keep", "switch.use"
"""The parameters of a switch, as wide as what is replaced, and [1]."""

_MOST_IDLE = 2
"""The highest power of site values that an idle graph may compute: a square leaves float32 at 1e19, as norms do."""


def slot_form(graph: AdapterGraph) -> AdapterGraph:
    """The inference form of a graph; with a switch if it is that of a site and has no neutral parameters.

    The form of a form is that form.

    Raises:
        NotNeutralError: it needs a switch and computes high powers of what it reads. Idle, it could turn the base's
            values into infinity, and 0 times infinity is no number.
    """
    form = inference_form(graph)
    return inference_form(_switched(form)) if _needs_switch(form) else form


def slot_weights(graph: AdapterGraph, parameters: Mapping[str, np.ndarray], widths: Mapping[str, int]) -> Weights:
    """The parameters with which `slot_form(graph)` computes what `graph` computes with the given ones.

    Args:
        graph: the graph.
        parameters: its tensors.
        widths: the symbols that the site fixes, such as `d`.

    Raises:
        NotNeutralError: as `slot_form`.
        GraphError: a factor takes a parameter out of the range of float32.
    """
    folded, form = fold_weights(graph, parameters), inference_form(graph)
    if not _needs_switch(form):
        return folded
    keep, use = _parameters(form)
    width = resolve(SITE_VALUES[form.replaces][-1], widths)
    return fold_weights(_switched(form), {**folded, keep: np.zeros(width), use: np.ones(1)})


def _needs_switch(form: AdapterGraph) -> bool:
    if form.reads_head_values() or has_neutral_parameters(form):
        return False
    if degree_idle(form) > _MOST_IDLE:
        raise NotNeutralError(
            "an adapter graph cannot lie idle: with weights of zero it neither returns its input nor stays small",
            where=f"result `{form.result}`",
            found=f"a power of {degree_idle(form)} of the base's values",
            expected=f"`{form.replaces}`, or at most squares",
            fix=f"let the result be `{form.replaces}` plus what the weights make, or put a norm before the products",
        )
    return True


def _switched(form: AdapterGraph) -> AdapterGraph:
    keep, use = _parameters(form)
    kept, used, result = (unused(name, form.shapes()) for name in ("kept", "used", "switched"))
    value = form.replaces
    nodes = (
        Node("scale_features", (value,), kept, {"weight": keep}),
        Node("learned_scale", (form.result,), used, {"weight": use}),
        Node("add", (kept, used), result),
    )
    return replace(
        form,
        inputs=tuple(name for name in SITE_VALUES if name in {*form.inputs, value}),
        parameters={**form.parameters, keep: SITE_VALUES[value][-1:], use: (1,)},
        nodes=(*form.nodes, *nodes),
        result=result,
    )


def _parameters(form: AdapterGraph) -> tuple[str, str]:
    """`KEEP` and `USE`, or what they are called where these names are taken."""
    return unused(KEEP, form.parameters), unused(USE, form.parameters)

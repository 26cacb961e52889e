"""Adapter graphs bound to a site of a base: its norm in the place of `base_norm`."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from adapter_export.dtypes import Array
from adapter_export.graph.bind import BORROWED_BIAS, BORROWED_WEIGHT, bind_base_norm
from adapter_export.graph.graph import AdapterGraph
from adapter_export.sites.site import Norm

BORROWED = (BORROWED_WEIGHT, BORROWED_BIAS)
"""The parameters of bound graphs that are the base's."""


def bound_to(graph: AdapterGraph, norm: Norm | None) -> AdapterGraph:
    """The graph as it is computed at a site.

    Args:
        graph: a site's graph.
        norm: the norm before the site's `y`, if there is one.

    Raises:
        GraphError: the graph needs the norm, and it could not be read.
    """
    if norm is None:
        return bind_base_norm(graph, None)
    return bind_base_norm(graph, norm.kind, norm.epsilon, bias=norm.bias is not None)


def borrowed(graph: AdapterGraph, values: Mapping[str, npt.ArrayLike], width: int) -> dict[str, Array]:
    """The base's tensors [d] for a bound graph, in float64; a norm without a weight has ones.

    Args:
        graph: a bound graph.
        values: the tensors that the base has, by their names in `BORROWED`; more may be there.
        width: the site's `d`.
    """
    return {
        name: np.asarray(values.get(name, np.ones(width)), np.float64) for name in BORROWED if name in graph.parameters
    }

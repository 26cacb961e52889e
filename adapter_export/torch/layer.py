"""An adapter graph as a layer of a torch model."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from adapter_export.graph.graph import AdapterGraph
from adapter_export.graph.interpret import interpret
from adapter_export.torch.lowering import lowerings


class GraphLayer(nn.Module):
    """A graph with its tensors as parameters.

    It computes in the type of its parameters and returns the type of the first value that it reads, so that a base of
    half precision may have an adapter of float32.

    Attributes:
        owner: the site at which it acts, or `head`.
        graph: what it computes.
    """

    def __init__(self, owner: str, graph: AdapterGraph, tensors: Mapping[str, np.ndarray]) -> None:
        super().__init__()
        self.owner = owner
        self.graph = graph
        # a list, not a dict: the names of parameters hold dots, which torch does not take
        self._tensors = nn.ParameterList(torch.from_numpy(tensors[name].copy()) for name in graph.parameters)

    def named_tensors(self) -> dict[str, nn.Parameter]:
        """The parameters by the names of the graph."""
        return dict(zip(self.graph.parameters, self._tensors, strict=True))

    def forward(self, *values: Tensor) -> Tensor:
        """Compute the graph's result from the values of `graph.inputs`, in that order."""
        tensors = self.named_tensors()
        dtype = next((tensor.dtype for tensor in tensors.values()), values[0].dtype)
        read = {name: value.to(dtype) for name, value in zip(self.graph.inputs, values, strict=True)}
        result = interpret(self.graph, lowerings(training=self.training), read, tensors)[self.graph.result]
        return result.to(values[0].dtype) if values[0].is_floating_point() else result

    def extra_repr(self) -> str:
        """Where it acts and which ops it has."""
        return f"{self.owner}: {' -> '.join(node.op for node in self.graph.nodes)}"

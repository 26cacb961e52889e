"""An adapter graph as a layer of a torch model."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from adapter_export.graph.bind import BORROWED_BIAS, BORROWED_WEIGHT
from adapter_export.graph.compose.attention import at_temperature, temperature_of
from adapter_export.graph.graph import AdapterGraph
from adapter_export.graph.interpret import interpret
from adapter_export.reference.bound import BORROWED, bound_to
from adapter_export.sites.site import Norm
from adapter_export.torch.lowering import lowerings


class GraphLayer(nn.Module):
    """A graph with its tensors as parameters.

    It computes in the type of its parameters and returns the type of the first value that it reads, so that a base of
    half precision may have an adapter of float32.

    Args:
        owner: the site at which it acts, or `head`.
        graph: what it computes.
        tensors: the graph's parameters; layers that share some get the same ones.
        norm: the norm before the site's `y`, with its tensors named as in the base's FX graph.

    Attributes:
        owner: the site at which it acts, or `head`.
        graph: what it computes.
        borrows: the tensors of the base that it is called with, behind the values of `graph.inputs`.

    Raises:
        GraphError: the graph applies the base's norm, which could not be read.
    """

    def __init__(
        self, owner: str, graph: AdapterGraph, tensors: Mapping[str, nn.Parameter], norm: Norm | None = None
    ) -> None:
        super().__init__()
        self.owner = owner
        self.graph = graph
        self._bound = bound_to(graph, norm)
        names = {} if norm is None else {BORROWED_WEIGHT: norm.weight, BORROWED_BIAS: norm.bias}
        self._borrowed = [name for name in BORROWED if name in self._bound.parameters and names[name] is not None]
        self.borrows = tuple(str(names[name]) for name in self._borrowed)
        # a list, not a dict: the names of parameters hold dots, which torch does not take
        self._tensors = nn.ParameterList(tensors[name] for name in graph.parameters)

    def named_tensors(self) -> dict[str, nn.Parameter]:
        """The parameters by the names of the graph."""
        return dict(zip(self.graph.parameters, self._tensors, strict=True))

    def set_temperature(self, temperature: float) -> None:
        """Change the temperature of a fusion; nothing in other graphs."""
        if temperature_of(self.graph) != temperature:
            self.graph, self._bound = (at_temperature(graph, temperature) for graph in (self.graph, self._bound))

    def forward(self, *values: Tensor) -> Tensor:
        """Compute the graph's result from the values of `graph.inputs`, in that order, and then those of `borrows`."""
        site_values, base_tensors = values[: len(self.graph.inputs)], values[len(self.graph.inputs) :]
        tensors: dict[str, Tensor] = dict(self.named_tensors())
        dtype = next((tensor.dtype for tensor in tensors.values()), values[0].dtype)
        read = {name: value.to(dtype) for name, value in zip(self.graph.inputs, site_values, strict=True)}
        tensors |= {name: tensor.to(dtype) for name, tensor in zip(self._borrowed, base_tensors, strict=True)}
        if BORROWED_WEIGHT in self._bound.parameters:
            tensors.setdefault(BORROWED_WEIGHT, values[0].new_ones(values[0].shape[-1], dtype=dtype))
        result = interpret(self._bound, lowerings(training=self.training), read, tensors)[self._bound.result]
        return result.to(values[0].dtype) if values[0].is_floating_point() else result

    def extra_repr(self) -> str:
        """Where it acts and which ops it has."""
        return f"{self.owner}: {' -> '.join(node.op for node in self.graph.nodes)}"

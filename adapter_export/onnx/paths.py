"""What exporters note of torch's modules in a graph: the path of each node, and calls that are no nodes any more."""

from __future__ import annotations

import ast
import json
from collections import Counter
from collections.abc import Mapping, Set

import onnx_ir as ir

from adapter_export.errors import BaseModelError
from adapter_export.onnx.products import trained_matrix
from adapter_export.sites.calls import ASIDE_KEY


def module_path(node: ir.Node) -> str | None:
    """The module path that torch's exporter stamps on a node: the scopes, from the root to the node itself."""
    scopes = node.metadata_props.get("pkg.torch.onnx.name_scopes")
    if scopes is None:
        return None
    try:
        *modules, _ = ast.literal_eval(scopes)
    except (ValueError, SyntaxError, TypeError):  # a note for people; another tool may have written what it likes
        return None
    return next((str(module) for module in reversed(modules) if module), None)


def called_aside(model: ir.Model, activations: Set[str]) -> Mapping[str, int]:
    """Linear layers computed of weights alone, here or in the graph that this one was exported from.

    Returns:
        How often, by module path and by the name of the matrix; see `FlowGraph.aside`.

    Raises:
        BaseModelError: the note on the graph that it was exported from cannot be read.
    """
    found = Counter(
        name
        for node in model.graph
        if trained_matrix(node) is not None and all(value.name not in activations for value in node.outputs)
        for name in (module_path(node), trained_matrix(node))
        if name is not None
    )
    noted = _noted(model.metadata_props.get(ASIDE_KEY, "{}"))
    return {name: max(found[name], noted.get(name, 0)) for name in {*found, *noted}}


def _noted(text: str) -> dict[str, int]:
    try:
        noted = json.loads(text)
    except (ValueError, RecursionError):
        noted = None
    if not isinstance(noted, dict) or any(type(count) is not int for count in noted.values()):
        raise BaseModelError(
            "has a note on its layers that cannot be read",
            where=f"`metadata_props`, `{ASIDE_KEY}`",
            found=text[:60],
            expected="a JSON object of numbers",
            fix="export the graph again",
        )
    return noted

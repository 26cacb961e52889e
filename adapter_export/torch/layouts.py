"""Programs whose tensors lie in memory as torch's own decompositions expect."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import fx
from torch.export import ExportedProgram

_ATTENTION = torch.ops.aten.scaled_dot_product_attention.default


@contextmanager
def contiguous_attention(program: ExportedProgram) -> Iterator[bool]:
    """A copy behind each attention of a program, for as long as the context lasts; whether there is any.

    Torch traces a fused attention whose result lies in memory as a kernel leaves it, and replaces it by products whose
    result lies otherwise; a `view` of it then fails (T5). A copy has one layout in both.
    """
    graph = program.graph
    copies = [_copied(graph, node) for node in graph.find_nodes(op="call_function", target=_ATTENTION)]
    try:
        yield bool(copies)
    finally:
        for copy in copies:
            copy.replace_all_uses_with(copy.all_input_nodes[0])
            graph.erase_node(copy)


def _copied(graph: fx.Graph, node: fx.Node) -> fx.Node:
    with graph.inserting_after(node):
        copy = graph.call_function(torch.ops.aten.clone.default, (node,), {"memory_format": torch.contiguous_format})
    copy.meta = dict(node.meta)
    node.replace_all_uses_with(copy, delete_user_cb=lambda user: user is not copy)
    return copy

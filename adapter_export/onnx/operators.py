"""Whether ONNX Runtime has the operators of a graph."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx import helper

from adapter_export.errors import BaseModelError
from adapter_export.onnx.session import FAILURES

_DOMAINS = ("ai.onnx", "com.microsoft")
"""What the domains of ONNX Runtime's operators begin with."""

_UNKNOWN = ("No Op registered for", "is not a registered function/op")
"""What ONNX Runtime says of an operator that it does not have."""


def check_operators(model: ir.Model, path: Path) -> None:
    """Refuse operators that ONNX Runtime does not have.

    Raises:
        BaseModelError: there are some, such as those that an exporter made up.
    """
    own = {(domain, name) for domain, name, *_ in model.functions}
    bodies = [model.graph.all_nodes(), *(function.all_nodes() for function in model.functions.values())]
    counts = Counter((node.domain, node.op_type) for nodes in bodies for node in nodes)
    missing = {key: count for key, count in counts.items() if key not in own and not _is_there(*key)}
    if missing:
        raise BaseModelError(
            "has operators that ONNX Runtime does not have",
            where=path,
            found=", ".join(
                f"{count} `{name}` of `{domain or 'ai.onnx'}`" for (domain, name), count in missing.items()
            ),
            expected="operators of the domains `ai.onnx` and `com.microsoft`",
            fix="export it again without operators of your own",
        )


def _is_there(domain: str, name: str) -> bool:
    """Whether the standard has an operator of this name, or else ONNX Runtime, which is asked with a graph of it."""
    if domain and not domain.startswith(_DOMAINS):
        return False
    if onnx.defs.has(name, domain="" if domain == "ai.onnx" else domain):
        return True
    x, y = (helper.make_tensor_value_info(value, onnx.TensorProto.FLOAT, None) for value in "xy")
    graph = helper.make_graph([helper.make_node(name, ["x"], ["y"], domain=domain)], "operator", [x], [y])
    opsets = [helper.make_opsetid("", 20), *([helper.make_opsetid(domain, 1)] if domain else [])]
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except FAILURES as error:  # it has too few inputs in any case
        return not any(words in str(error) for words in _UNKNOWN)
    return True

"""Edit ONNX graphs as protobuf messages, the format of ONNX Runtime's quantizers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx
from onnx import numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from adapter_export.safe_io.temporary import temporary_folder


def multiplied(product: onnx.NodeProto, factor: str, graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Write a product, and its multiplication by a factor per token, which takes the product's name."""
    result, plain = product.output[0], f"{product.output[0]}.product"
    for value in [value for value in (*graph.value_info, *graph.output) if value.name == result]:
        recorded = graph.value_info.add()  # ONNX cannot infer shapes of this domain's operators
        recorded.CopyFrom(value)
        recorded.name = plain
    product.output[0] = plain
    yield product
    yield onnx.helper.make_node("Mul", [plain, factor], [result])


def replace_nodes(graph: onnx.GraphProto, nodes: list[onnx.NodeProto], constants: Mapping[str, np.ndarray]) -> None:
    """Replace the nodes of a graph, keeping existing and new constants that they read."""
    del graph.node[:]
    graph.node.extend(nodes)
    read = set(_read(graph))
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items() if name in read)


def _read(graph: onnx.GraphProto) -> Iterator[str]:
    """Yield the names that a graph reads, including those in branches of an `If` and loop bodies."""
    yield from (value.name for value in graph.output)
    for node in graph.node:
        yield from node.input
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _read(attribute.g)


def int8_tables(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model with 8-bit embeddings, dequantized after `Gather`, under names that no later pass uses."""
    with temporary_folder() as folder:
        path = folder / "int8.onnx"
        quantize_dynamic(
            proto,
            path,
            op_types_to_quantize=["Gather"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            use_external_data_format=True,
            extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
        )
        made = onnx.load(path)
    packed = {node.input[0] for node in made.graph.node if node.op_type == "DequantizeLinear"}
    for node in made.graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                names[index] = f"{name}.packed" if name in packed else name
    return made

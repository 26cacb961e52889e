"""Prepare a base for slots: validate operators, make weights constant, convert the opset, expand sums, infer shapes.

The base still computes the same; if the opset is converted, both graphs are run and compared. Shapes that ONNX cannot
infer, for ONNX Runtime's own operators and computed lengths, are read from two runs in which every named input axis has
different lengths.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence, Set
from functools import cache, reduce
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx import helper, version_converter
from onnx.version_converter import ConvertError
from onnx_ir.passes.common import InlinePass, RemoveInitializersFromInputsPass

from adapter_export.errors import BaseModelError, RequestError
from adapter_export.format.axes import axis_names
from adapter_export.format.manifest import InputRecord
from adapter_export.numerics.sample_inputs import InputCase, input_cases
from adapter_export.onnx_backend.base.flow import (
    LIBRARY_ERRORS,
    activations_of,
    has_shapes,
    is_known,
    with_inferred_shapes,
)
from adapter_export.onnx_backend.base.operators import required_inputs, stacked
from adapter_export.onnx_backend.base.structure import check_parts
from adapter_export.onnx_backend.model_session import open_session, try_session
from adapter_export.onnx_backend.onnx_lowering import MINIMUM_OPSET
from adapter_export.runtime.graphs import FAILURES
from adapter_export.safe_io.parsers import parsing

_IR_VERSION = 10
"""First opset with metadata on nodes, and the newest that onnxruntime 1.21 loads."""

_DOMAINS = ("ai.onnx", "com.microsoft")
"""Prefixes of the domains of ONNX Runtime's operators."""

_ADDED = 2
"""Index of the input of `Gemm` that is added to the product."""

_MEANWHILE = "com.microsoft.meanwhile"
"""Temporary domain, during conversion, of ONNX Runtime's operators in the standard domain."""

_TOLERANCE = 1e-5
"""Allowed deviation relative to the largest value of an output; equal operators round nearly the same."""


_REQUIRED = onnx.defs.OpSchema.FormalParameterOption.Single

_RANDOM = ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial")

_SHAPE = "/observed shape"
"""Ending of the name of a value's shape, as an output of a model that is run to observe it."""


def check_operators(model: ir.Model, path: Path) -> None:
    """Reject random operators, and operators that ONNX Runtime does not have."""
    functions = {(domain, name) for domain, name, *_ in model.functions}
    bodies = [model.graph.all_nodes(), *(function.all_nodes() for function in model.functions.values())]
    nodes = [node for body in bodies for node in body]
    drawing = next((node for node in nodes if _is_random(node)), None)
    if drawing is not None:
        raise BaseModelError(
            "is random: each run draws new numbers",
            where=f"{path}, `{drawing.outputs[0].name}`",
            found=f"`{drawing.op_type}`",
            expected="a deterministic graph",
            fix="export the model in `eval` mode, without dropout or noise",
        )
    counts = Counter((node.domain, node.op_type) for node in nodes)
    missing = {key: count for key, count in counts.items() if key not in functions and not _is_there(*key)}
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


def _check_arity(model: ir.Model) -> None:
    """Reject nodes with fewer or more inputs or outputs than their operator allows."""

    @cache
    def schema(name: str, domain: str) -> onnx.defs.OpSchema | None:
        standard = "" if domain == "ai.onnx" else domain
        try:
            return onnx.defs.get_schema(name, model.opset_imports.get(standard) or 1, standard)
        except onnx.defs.SchemaError:  # not a standard operator
            return None

    for node in model.graph.all_nodes():
        known, is_there = schema(node.op_type, node.domain), [value is not None for value in node.inputs]
        if known is None:
            required, fewest, most, outputs = required_inputs(node.op_type), 0, math.inf, (1, math.inf)
        else:
            required = [at for at, value in enumerate(known.inputs) if value.option == _REQUIRED]
            fewest, most, outputs = known.min_input, known.max_input, (known.min_output, known.max_output)
        last = len(is_there) - next((at for at, is_set in enumerate(reversed(is_there)) if is_set), 0)
        fits = len(is_there) >= fewest and last <= most and all(at < last and is_there[at] for at in required)
        if not fits or not outputs[0] <= len(node.outputs) <= outputs[1]:
            raise BaseModelError(
                "has a node with a wrong number of inputs or outputs",
                where=f"`{node.outputs[0].name if node.outputs else node.name}`",
                found=f"`{node.op_type}`, inputs: {sum(is_there)}, outputs: {len(node.outputs)}",
                expected=f"at least {max(fewest, len(required))} inputs and {outputs[0]} outputs",
                fix="run `onnx.checker.check_model` on it, and export the model again",
            )


def _is_random(node: ir.Node) -> bool:
    if node.domain not in ("", "ai.onnx"):
        return False
    # in ONNX, dropout is random only if its third input, `training_mode`, is true
    if node.op_type == "Dropout":
        training = node.inputs[2].const_value if len(node.inputs) > 2 and node.inputs[2] is not None else None
        return training is not None and bool(training.numpy())
    return node.op_type in _RANDOM


def _is_there(domain: str, name: str) -> bool:
    """Return whether ONNX or ONNX Runtime has an operator with this name; ONNX Runtime is probed with a graph."""
    if domain and not domain.startswith(_DOMAINS):
        return False
    if onnx.defs.has(name, domain="" if domain == "ai.onnx" else domain):
        return True
    x, y = (helper.make_tensor_value_info(value, onnx.TensorProto.FLOAT, None) for value in "xy")
    graph = helper.make_graph([helper.make_node(name, ["x"], ["y"], domain=domain)], "operator", [x], [y])
    opsets = [helper.make_opsetid("", 20), *([helper.make_opsetid(domain, 1)] if domain else [])]
    options = ort.SessionOptions()
    # fatal: the expected failure would be logged
    options.log_severity_level = 4
    try:
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except FAILURES as error:  # the node has too few inputs, so this always fails
        return not any(words in str(error) for words in ("No Op registered for", "is not a registered function/op"))
    return True


def normalise(model: ir.Model) -> None:
    """Turn the base's weights into constants, so that a build's slots are its only overridable initializers.

    Functions are inlined, caches get their widths, and trailing absent inputs of nodes are removed.
    """
    model.ir_version, has_functions = _IR_VERSION, bool(model.functions)
    try:
        if has_functions:
            # before weights become constants: those of functions are in their bodies
            InlinePass()(model)
        RemoveInitializersFromInputsPass()(model)
    except LIBRARY_ERRORS as error:
        raise BaseModelError(
            "has functions that cannot be inlined",
            found=str(error).partition("\n")[0],
            expected="functions that follow the ONNX standard",
            fix="export the model again without functions of your own",
        ) from error
    if has_functions:  # inlining sets attributes of nodes
        check_parts(model)
    _check_arity(model)
    for node in model.graph.all_nodes():
        while node.inputs and node.inputs[-1] is None:  # older runtimes support fewer optional inputs
            node.resize_inputs(len(node.inputs) - 1)
        if node.op_type == "GroupQueryAttention":
            _fix_cache_widths(node)


def _fix_cache_widths(attention: ir.Node) -> None:
    """Set the width of input and output caches [batch, heads, tokens, width]: that of one head.

    The builder of onnxruntime-genai leaves it open, because it halves for packed 4-bit numbers. In float32 caches it is
    the width of one attention head. Without an input for the key, query, key and value are packed side by side.
    """
    query, heads = attention.inputs[0], attention.attributes.get_int("num_heads", 0)
    if not any(attention.inputs[1:2]):
        heads += 2 * attention.attributes.get_int("kv_num_heads", 0)
    width = query.shape[-1] if query is not None and query.shape else None
    if not isinstance(width, int) or not 0 < heads <= width:
        return
    past = [value for value in attention.inputs[3:5] if value is not None and value.is_graph_input()]
    present = [value for value in attention.outputs[1:3] if value.is_graph_output()]
    for value in (*past, *present):
        if value.dtype == ir.DataType.FLOAT and value.shape is not None:
            value.shape = ir.Shape([*value.shape[:-1], width // heads])


def open_sums(graph: ir.Graph) -> None:
    """Expand the sums of activations inside other operators, in place, so that each sum is an `Add`.

    `Sum` adds any number of values; `ReduceSum` and `ReduceMean` add stacked values. `Gemm` adds its third input to a
    product, which is a residual sum if that input is an activation. Results are unchanged within rounding.

    Raises:
        BaseModelError: a sum also contains a weight, and it is ambiguous which activation that belongs to.
    """
    activations = activations_of(graph)
    for node in list(graph):
        tape, result = ir.tape.Tape(), node.outputs[0]
        total = _written_out(node, activations, tape) if node.domain in ("", "ai.onnx") else None
        if total is None:
            continue
        for at, step in enumerate(tape.nodes):
            value = step.outputs[0]
            step.name = value.name = f"{result.name}/{at}"
            if step.op_type == "Constant":
                continue
            value.shape, value.type = result.shape, result.type
            step.metadata_props.update(node.metadata_props)
        total.name, tape.nodes[-1].name = result.name, node.name
        ir.convenience.replace_nodes_and_values(graph, node, [node], tape.nodes, [result], [total])


def _written_out(node: ir.Node, activations: Set[str], tape: ir.tape.Tape) -> ir.Value | None:
    """Write the sum inside a node as operators on a tape, and return it; `None` if the node contains no sum."""

    def number(value: float) -> ir.Value:
        dtype = node.outputs[0].dtype or ir.DataType.FLOAT
        return tape.op("Constant", [], {"value": ir.tensor(np.array(value, dtype.numpy()))})

    read = [value for value in node.inputs if value is not None and value.name in activations]
    added = node.inputs[_ADDED] if len(node.inputs) > _ADDED else None
    if node.op_type == "Sum" and len(read) >= 2 and len(node.inputs) > 2:
        if len(read) < len(node.inputs):
            raise BaseModelError(
                "adds activations and weights in one operator, so the owner of the weights is ambiguous",
                where=f"`{node.outputs[0].name}`, {node.op_type}",
                found="weights among the summands",
                expected="an `Add` for each sum",
                fix="use the graph before optimization; ONNX Runtime fuses it when loading",
            )
        return reduce(lambda total, value: tape.op("Add", [total, value]), read)
    if node.op_type == "Gemm" and added is not None and added in read:
        attributes = {name: each.value for name, each in node.attributes.items() if name != "beta"}
        # `beta` scales the summand, which leaves the product
        product = tape.op("Gemm", node.inputs[:_ADDED], attributes)
        beta = node.attributes.get_float("beta", 1.0)
        return tape.op("Add", [product, added if beta == 1.0 else tape.op("Mul", [added, number(beta)])])
    parts = stacked(node) if node.op_type in ("ReduceSum", "ReduceMean") else []
    if not parts:
        return None
    total = reduce(lambda total, value: tape.op("Add", [total, value]), parts)
    return total if node.op_type == "ReduceSum" else tape.op("Div", [total, number(len(parts))])


def convert_to_slot_opset(
    model: ir.Model, folder: Path, inputs: Sequence[InputRecord]
) -> tuple[ir.Model, tuple[str, ...]]:
    """Return the model in an opset that supports slots, and notes on the conversion for the user.

    Raises:
        BaseModelError: the model cannot be converted, or the result does not run or match.
    """
    opset = model.opset_imports.get("", 0)
    if opset >= MINIMUM_OPSET:
        return model, ()
    converted = _converted(model, folder)
    try:
        _check_same(model, converted, folder, inputs)
    except RequestError as error:
        shapes = (f"`{name}` {list(array.shape)}" for name, array in small_cases(inputs)[0].arrays.items())
        raise BaseModelError(
            f"was converted to opset {MINIMUM_OPSET}, which slots need, but cannot be compared with the original",
            found=str(error.found),
            expected=f"a model that runs on inputs of {', '.join(shapes)}",
            fix=f"export it again with `opset_version={MINIMUM_OPSET}`",
        ) from error
    done = f"converted from opset {opset} to {MINIMUM_OPSET}, which slots need; its outputs are unchanged"
    return converted, (done,)


def _converted(model: ir.Model, folder: Path) -> ir.Model:
    """Convert a model with ONNX's version converter.

    ONNX Runtime has `LayerNormalization` in every opset, and its optimizer writes it into older ones. The converter
    does not know it there, so these nodes are moved to another domain during the conversion.
    """
    with parsing(_not_converted):
        proto = ir.to_proto(model)
    for node in proto.graph.node:
        if not node.domain and not onnx.defs.has(node.op_type, model.opset_imports[""], ""):
            node.domain = _MEANWHILE
    proto.opset_import.append(helper.make_opsetid(_MEANWHILE, 1))
    try:
        converted = ir.from_proto(version_converter.convert_version(proto, MINIMUM_OPSET))
    except (RuntimeError, ValueError, ConvertError, onnx.onnx_cpp2py_export.shape_inference.InferenceError) as error:
        # the message has the location in ONNX's code before the text of the failed assertion
        raise _not_converted(str(error).strip().partition("\n")[0].rpartition(" failed: ")[2]) from error
    for node in converted.graph:
        node.domain = "" if node.domain == _MEANWHILE else node.domain
    del converted.opset_imports[_MEANWHILE]
    converted.metadata_props.update(model.metadata_props)
    converted.ir_version = _IR_VERSION
    ir.external_data.set_base_dir(converted.graph, folder)
    return converted


def _check_same(before: ir.Model, after: ir.Model, folder: Path, inputs: Sequence[InputRecord]) -> None:
    """Run a model and its converted version on the same inputs, and compare the outputs."""
    sessions = [open_session(model, folder, optimize=False) for model in (before, after)]
    for case in small_cases(inputs):
        expected, outputs = (try_session(session, case.arrays) for session in sessions)
        for name, value in expected.items():
            if value.dtype.kind != "f":
                continue
            # masks may be -inf, which has no scale
            scale = float(np.abs(value[np.isfinite(value)]).max(initial=0))
            if not np.allclose(outputs[name], value, rtol=0, atol=_TOLERANCE * scale, equal_nan=True):
                worst = np.abs(outputs[name].astype(np.float64) - value).max()
                raise _not_converted(f"output `{name}` differs by {worst:.1e}")


def _not_converted(reason: str) -> BaseModelError:
    return BaseModelError(
        f"cannot be converted to opset {MINIMUM_OPSET}, which slots need",
        found=reason,
        expected="a model with unchanged outputs",
        fix=f"export it again with `opset_version={MINIMUM_OPSET}`",
    )


def complete_shapes(model: ir.Model, folder: Path, inputs: Sequence[InputRecord]) -> None:
    """Record all shapes in a model that can be found."""
    if has_shapes(model.graph):
        return
    inferred = {value.name: value for value in _values(with_inferred_shapes(model))}
    for value in _values(model):
        if value.name in inferred:
            value.shape = value.shape or inferred[value.name].shape
            value.type = value.type or inferred[value.name].type
    if not has_shapes(model.graph):
        unknown = [value for value in _values(model) if not is_known(value.shape)]
        for value, first, other in _observe_shapes(model, unknown, folder, inputs):
            value.shape = _common_shape(value, first, other)


def correct_shapes(model: ir.Model, folder: Path, inputs: Sequence[InputRecord]) -> bool:
    """Replace recorded shapes whose number of axes differs from two runs; return whether there were any.

    Fusion tools leave the shape of an earlier value with the same name.
    """
    recorded = [value for value in _values(model) if value.shape is not None]
    wrong = [
        (value, first, other)
        for value, first, other in _observe_shapes(model, recorded, folder, inputs)
        if len(value.shape or ()) != len(first) == len(other)
    ]
    for value, first, other in wrong:
        value.shape = _common_shape(value, first, other)
    return bool(wrong)


def small_cases(inputs: Sequence[InputRecord]) -> list[InputCase]:
    """Return two cases of small inputs; no named axis has the same length in both."""
    named = axis_names(inputs)
    # odd lengths, two apart, so that they and their successors differ from one another
    lengths = [2, *range(5, 2 * len(named) + 5, 2)]
    shapes = [{name: length + more for name, length in zip(named, lengths, strict=False)} for more in (0, 1)]
    return input_cases(inputs, seed=0, shapes=shapes)[:2]


def _values(model: ir.Model) -> list[ir.Value]:
    return [value for node in model.graph for value in node.outputs if value.name]


def _observe_shapes(
    model: ir.Model, values: Sequence[ir.Value], folder: Path, inputs: Sequence[InputRecord]
) -> Iterator[tuple[ir.Value, tuple[int, ...], tuple[int, ...]]]:
    """Yield some values of a model with their shapes in two runs; nothing if the model cannot run.

    Values without a type get that of their arrays. Of the others only shapes leave the graph: all arrays together may
    be a hundred times the weights.
    """
    shown = model.clone()
    wanted = {value.name for value in values} - {value.name for value in shown.graph.outputs}
    # ONNX Runtime computes the last node first, with all that it needs. From the end of the graph to its beginning, no
    # array outlives the nodes that read it.
    for value in reversed([value for value in _values(shown) if value.name in wanted]):
        value.shape = None  # ONNX Runtime fails if a recorded shape is wrong
        output = value
        if isinstance(value.type, ir.TensorType):
            shape = ir.node("Shape", [value])
            output = shape.outputs[0]
            output.name = f"{value.name}{_SHAPE}"
            shown.graph.append(shape)
        shown.graph.outputs.append(output)
    try:
        session = open_session(shown, folder, optimize=False)
    except BaseModelError:  # a later check reports missing shapes
        return
    try:
        runs = [try_session(session, case.arrays) for case in small_cases(inputs)]
    except RequestError:  # reported by a later check, too
        return
    for value in values:
        shapes = [tuple(run[f"{value.name}{_SHAPE}"].tolist()) for run in runs if f"{value.name}{_SHAPE}" in run]
        for array in [run.get(value.name or "") for run in runs]:
            if isinstance(array, np.ndarray):  # sequences and optional values have no shape
                shapes.append(array.shape)
                value.type = value.type or ir.TensorType(ir.DataType.from_numpy(array.dtype))
        if len(shapes) == len(runs):
            yield value, shapes[0], shapes[1]


def _common_shape(value: ir.Value, first: tuple[int, ...], other: tuple[int, ...]) -> ir.Shape | None:
    """Return the shape that two runs have in common; an axis that varies keeps its name."""
    if len(first) != len(other):
        return value.shape
    known = value.shape if value.shape is not None and len(value.shape) == len(first) else [None] * len(first)
    return ir.Shape([a if a == b else before for a, b, before in zip(first, other, known, strict=True)])

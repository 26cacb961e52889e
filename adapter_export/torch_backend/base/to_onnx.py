"""Export a torch base to ONNX, with its names for users."""

from __future__ import annotations

import json
import operator
import shutil
from ast import literal_eval
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import onnx_ir as ir
import torch
from onnxscript import rewriter, version_converter
from onnxscript.rewriter import _basics, _matcher
from torch.export import ExportedProgram
from torch.fx.experimental import _config as fx_config
from torch.onnx._internal.exporter import _core, _fx_passes, _registration
from torch.onnx._internal.fx.passes import type_promotion

from adapter_export.errors import BaseModelError
from adapter_export.safe_io.output import Output, beside
from adapter_export.sites.discover import OTHER_CALLS_KEY
from adapter_export.torch_backend.base.log_capture import LIBRARY_ERRORS, captured_logs, first_line
from adapter_export.torch_backend.base.program_signature import Signature
from adapter_export.torch_backend.base.torch_base import TorchBase
from adapter_export.torch_backend.tied_weights import transpose_in_products
from adapter_export.version import __version__

_ATTENTION = torch.ops.aten.scaled_dot_product_attention.default


@contextmanager
def contiguous_attention(program: ExportedProgram) -> Iterator[bool]:
    """Insert a copy after each attention of a program within the context; yields whether there is any.

    torch traces fused attention with the memory layout of its kernel, but decomposes it into products with another
    layout, so a following `view` fails (T5). A copy has the same layout in both.
    """
    graph, copies = program.graph, []
    for node in graph.find_nodes(op="call_function", target=_ATTENTION):
        with graph.inserting_after(node):
            layout = {"memory_format": torch.contiguous_format}
            copy = graph.call_function(torch.ops.aten.clone.default, (node,), layout)
        copy.meta = dict(node.meta)
        node.replace_all_uses_with(copy, delete_user_cb=lambda user, copy=copy: user is not copy)
        copies.append(copy)
    try:
        yield bool(copies)
    finally:
        for copy in copies:
            copy.replace_all_uses_with(copy.all_input_nodes[0])
            graph.erase_node(copy)


OPSET = 20
"""First opset with `Gelu`; supported by onnxruntime 1.21 and newer."""

_IR_VERSION = 10
"""First version with metadata on nodes, and the newest that onnxruntime 1.21 loads."""

_FINGERPRINT_KEY = "adapter_export.base_fingerprint"
_LENGTHS_KEY = "adapter_export.lengths"
_SCOPES_KEY = "pkg.torch.onnx.name_scopes"
_KEPT = frozenset({_SCOPES_KEY, "pkg.torch.onnx.class_hierarchy"})
"""Metadata that name a node's module; the rest are stack traces and copies of the FX graph."""

_SMALL = 256
"""Maximum bytes of tensors that stay in the graph, where shapes and scalars can be read."""


def export_onnx(base: TorchBase, path: Path, *, data: str = "base.bin", force: bool = False) -> None:
    """Write a base as ONNX: opset 20, IR 10, named dynamic axes, weights in the file `data` beside the graph.

    Each node records its module (`pkg.torch.onnx.name_scopes`), and the model's metadata the base's fingerprint
    (`adapter_export.base_fingerprint`).

    Raises:
        BaseModelError: torch cannot export it.
        OutputExistsError: a file exists and `force` is false.
        WriteError: the files cannot be written; no partial files are left.
    """
    with Output(path.parent / data, force).file() as weights, Output(path, force).file() as graph:
        model = to_onnx(base)
        folder = beside(path, "tmp")
        folder.mkdir()
        try:
            ir.save(model, folder / graph.name, external_data=data, size_threshold_bytes=_SMALL)
            # a model without large weights has no data file
            (folder / data).touch()
            (folder / data).replace(weights)
            (folder / graph.name).replace(graph)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def to_onnx(base: TorchBase) -> ir.Model:
    """Return the base as an ONNX model in memory, which shares the weights; BaseModelError as for `export_onnx`."""
    model = converted(base.program)
    _describe_model(model, base)
    signature = Signature(base.program, {record.name: record.axes for record in base.inputs})
    for value in _values(model):
        if value.shape is not None:
            sizes = (dim if isinstance(dim, int) else dim.value for dim in value.shape)
            value.shape = ir.Shape([signature.renamed(size) if isinstance(size, str) else size for size in sizes])
    _name_values(model.graph, base)
    return model


# weak, so that the cache does not keep the weights of a base alive
_CONVERTED: WeakKeyDictionary[ExportedProgram, ir.Model] = WeakKeyDictionary()
"""Cache of exported programs: the exporter takes seconds, and a process may build several bundles of a base."""


def converted(program: ExportedProgram) -> ir.Model:
    """Return a program as an ONNX model with the exporter's names; each call returns a copy that shares the weights.

    Raises:
        BaseModelError: torch cannot export it.
    """
    if program not in _CONVERTED:
        _CONVERTED[program] = _converted(program)
    return _CONVERTED[program].clone()


def _converted(program: ExportedProgram) -> ir.Model:
    # the fast path calls `_transformer_encoder_layer_fwd`, which has no translation to ONNX
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with captured_logs():
            with suppress(*LIBRARY_ERRORS):  # fall back to torch's decompositions
                if (known := _translatable(program)) is not None:
                    names = {node.name for node in program.graph.nodes}
                    return _translated(known, {node: node.name for node in known.graph.nodes if node.name in names})
            try:
                return _convert(program)
            except LIBRARY_ERRORS:
                # only after a failure: the copies stay in the graph
                with contiguous_attention(program) as changed:
                    if not changed:
                        raise
                    return _convert(program)
    except LIBRARY_ERRORS as error:
        reason: BaseException = error
        while reason.__cause__ is not None:  # the exporter wraps the error in pages of text
            reason = reason.__cause__
        raise BaseModelError(
            "torch cannot export the base to ONNX",
            found=first_line(reason),
            fix="load the model with `attn_implementation='eager'`, or replace the named op, and save it again",
        ) from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


class _AtItsOperator(_matcher.PatternMatcher):
    """Matches a pattern of the optimizer only at nodes with its first operator; the result is the same.

    The library tries every pattern at every node, and for a pattern with several outputs it walks the whole graph each
    time: time grows quadratically with the number of nodes.
    """

    def __init__(self, matcher: _matcher.PatternMatcher) -> None:
        super().__init__(matcher.pattern)
        self._matcher = matcher

    def match(
        self, model: ir.Model, graph_or_function: ir.Graph | ir.Function, node: ir.Node, **options: Any
    ) -> _basics.MatchResult:
        """Match the pattern at a node."""
        if self.pattern.output_nodes[0].op.matches(node.op_type):
            return self._matcher.match(model, graph_or_function, node, **options)
        return _basics.MatchResult().fail("another operator", node)


@cache
def _use_fast_matchers() -> None:
    """Make the rules of the optimizer skip nodes with other operators."""
    for rule in rewriter._DEFAULT_REWRITE_RULES:
        rule._matcher = _AtItsOperator(rule._matcher)


@cache
def _registry() -> Any:
    """Return the exporter's ops, cached; `torch.onnx.export` parses the sources of all of them for each graph."""
    return _registration.ONNXRegistry.from_torchlib(opset_version=OPSET)


def _convert(program: ExportedProgram) -> ir.Model:
    """Return the ONNX model of any program: torch takes seconds to trace it again and decompose unsupported ops."""
    with fx_config.patch(backed_size_oblivious=True):  # type: ignore[attr-defined] # an axis may have length 0 or 1
        decomposed = _fx_passes.decompose_with_registry(program, _registry())
    _fx_passes.remove_assertion_nodes(decomposed.graph_module)
    return _translated(decomposed, _results(decomposed.graph, program.graph))


def _results(decomposed: torch.fx.Graph, original: torch.fx.Graph) -> dict[torch.fx.Node, str]:
    """Return the nodes that correspond to nodes of the original, with the original names.

    torch numbers names anew: the `div` of a decomposed graph may be part of a former weight norm.
    """
    known = {node.name: node for node in original.nodes if node.op == "call_function"}
    last = {sources[-1].name: node for node in decomposed.nodes if (sources := node.meta.get("from_node"))}
    return {node: name for name, node in last.items() if name in known and _is_result(node, known[name])}


def _is_result(node: torch.fx.Node, origin: torch.fx.Node) -> bool:
    """Return whether the last node made for an original has its value: an op that writes may return all its targets."""
    op, value, expected = origin.target, node.meta.get("val"), origin.meta.get("val")
    if not isinstance(value, torch.Tensor) or not isinstance(expected, torch.Tensor):
        return False
    name = op._opname.removesuffix("_") if isinstance(op, torch._ops.OpOverload) and op._schema.is_mutable else None
    if name is not None and getattr(node.target, "_opname", None) != name:
        return False
    return value.dtype == expected.dtype and _shape(node) == _shape(origin)


class _Promotion(type_promotion._TypePromotionInterpreter):
    """The exporter's type promotion, without recomputing each node for the type recorded in it."""

    def run_node(self, n: torch.fx.Node) -> Any:
        """Promote the inputs of a node to one type, and return the value recorded in the program."""
        if "val" not in n.meta:
            return super().run_node(n)
        rule = type_promotion.get_type_promotion_rule(n, self.type_promotion_table)
        if rule is not None:
            with self._set_current_node(n):
                self._maybe_promote_node(n, rule)
        return n.meta["val"]


def _translated(program: ExportedProgram, results: Mapping[torch.fx.Node, str]) -> ir.Model:
    """Return the ONNX model of a program of supported ops; values are named after their nodes in `results`.

    All other values get names that no torch graph has, because references are compared by name. torch does not number
    these names, whose counter continues between conversions.
    """
    for module in program.graph_module.modules():
        promotion = type_promotion.InsertTypePromotion(module)
        promotion.interpreter = _Promotion(module, type_promotion.TypePromotionTable())
        promotion.run()
    renamed = dict[str, str]()
    for node in program.graph.nodes:
        if node.op == "call_function":
            name = results.get(node, f"{node.name.rstrip('_0123456789')}.{len(renamed)}")
            renamed[node.name], node.name = name, name
    for output in program.graph_signature.output_specs:
        output.arg.name = renamed.get(output.arg.name, output.arg.name)
    exported = _core._exported_program_to_onnx_program(program, registry=_registry())
    # torch writes the opset of its own operators, which may be older
    version_converter.convert_version(exported.model, OPSET, fallback=True)
    _use_fast_matchers()
    exported.optimize()
    transpose_in_products(exported.model.graph)
    _forget_results(exported.model.graph)
    return exported.model


def _forget_results(graph: ir.Graph) -> None:
    """Remove the FX origin from nodes whose result is gone: the remaining values may have another layout."""
    names = {value.name for node in graph for value in node.outputs}
    for node in graph:
        scopes = literal_eval(node.metadata_props.get(_SCOPES_KEY, "[]"))
        if scopes and scopes[-1] not in names:
            node.metadata_props[_SCOPES_KEY] = repr([*scopes[:-1], f"{scopes[-1]}.0"])


_ATEN = torch.ops.aten
_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd
_ASSERTIONS = frozenset(
    {
        _ATEN._assert_tensor_metadata.default,
        _ATEN._assert_scalar.default,
        _ATEN._assert_async.default,
        _ATEN._assert_async.msg,
        _ATEN.sym_constrain_range_for_size.default,
    }
)
_CONVERSIONS = frozenset({_ATEN.to.device, _ATEN.to.dtype, _ATEN.to.dtype_layout})
_SPELLINGS = {
    _ATEN.__and__.Tensor: _ATEN.bitwise_and.Tensor,
    _ATEN.__or__.Tensor: _ATEN.bitwise_or.Tensor,
    _ATEN.min.other: _ATEN.minimum.default,
    _ATEN.max.other: _ATEN.maximum.default,
    _ATEN.broadcast_to.default: _ATEN.expand.default,
}
"""Ops that torch itself replaces by these."""

_FLATTENINGS = frozenset({_ATEN.flatten.using_ints, _ATEN.unflatten.int, _ATEN.view_as.default})
"""Ops that become a `view` with sizes of inputs, around which attention fusions match."""

_RESHAPES = _FLATTENINGS | {_ATEN.reshape.default, _ATEN.contiguous.default, _ATEN.expand_as.default}
"""Composite views that are left to the exporter; torch decomposes all others."""


def _chunk(node: Any) -> None:
    source, count, axis = (*node.args, 0)[:3]
    axis = node.kwargs.get("dim", axis)
    length = source.meta["val"].shape[axis]
    if isinstance(length, int):
        node.args, node.kwargs, node.target = (source, -(-length // count), axis), {}, _ATEN.split.Tensor


def _pool(node: Any) -> None:
    """Replace by a mean if one number per channel is left."""
    source, sizes = node.args
    if set(sizes) == {1}:
        node.args, node.target = (source, [*range(-len(sizes), 0)], True), _ATEN.mean.dim


def _weight_norm(node: Any) -> None:
    weight, length, axis = (*node.args, 0)[:3]
    axes = [each for each in range(weight.meta["val"].dim()) if each != axis]
    own = _before(node, _ATEN.linalg_vector_norm.default, weight, 2, axes, True)
    node.args, node.target = (weight, _before(node, _ATEN.div.Tensor, length, own)), _ATEN.mul.Tensor


def _batch_norm(node: Any) -> None:
    *tensors, training, momentum, epsilon, _ = node.args
    if not training:
        results = _before(node, _ATEN._native_batch_norm_legit_no_training.default, *tensors, momentum, epsilon)
        node.args, node.target = (results, 0), operator.getitem


def _subtract(node: Any) -> None:
    """Rewrite `1 - mask`, the usual form of an attention mask."""
    # `rsub` has no translation: one such node would send the whole program through torch's decompositions
    subtrahend, minuend, *factor = node.args
    node.args, node.target = (minuend, subtrahend), _ATEN.sub.Tensor
    node.kwargs = {**node.kwargs, **({"alpha": factor[0]} if factor else {})}


def _convolve(node: Any) -> None:
    if len(node.args) < 5 or node.args[4] == "valid":
        node.args, node.target = node.args[:4], _ATEN.conv2d.default


_WRITTEN: Mapping[Any, Callable[[Any], None]] = {
    _ATEN.chunk.default: _chunk,
    **dict.fromkeys((_ATEN.adaptive_avg_pool1d.default, _ATEN.adaptive_avg_pool2d.default), _pool),
    _ATEN._weight_norm.default: _weight_norm,
    _ATEN.batch_norm.default: _batch_norm,
    **dict.fromkeys((_ATEN.rsub.Scalar, _ATEN.rsub.Tensor), _subtract),
    _ATEN.conv2d.padding: _convolve,
}
"""Rewrites of ops that the exporter does not support into supported ones."""


def _translatable(program: ExportedProgram) -> ExportedProgram | None:
    """Return a copy without decompositions; `None` if the exporter lacks an op or an op writes into a view."""
    module = deepcopy(program.graph_module)  # the exporter modifies it
    graph = module.graph
    known = {decompositions[0].fx_target for decompositions in _registry().functions.values()}
    sizes = _sizes_of_inputs(graph)
    for node in [node for node in graph.nodes if node.op not in ("placeholder", "output")]:
        if node.target in _ASSERTIONS:
            graph.erase_node(node)
            continue
        if node.target in _RESHAPES and _keeps_shape(node):
            node.replace_all_uses_with(node.all_input_nodes[0])
            graph.erase_node(node)
            continue
        if node.target in _CONVERSIONS:
            source, dtype = node.args[0], node.meta["val"].dtype
            # an output needs a value of its own
            if source.meta["val"].dtype == dtype and all(user.op != "output" for user in node.users):
                node.replace_all_uses_with(source)
                graph.erase_node(node)
                continue
            node.target, node.args, node.kwargs = _ATEN._to_copy.default, (source,), {"dtype": dtype}
        elif node.target in _FLATTENINGS:
            axes = [size if isinstance(size, int) else sizes.get(str(size)) for size in node.meta["val"].shape]
            if None not in axes:
                node.args, node.kwargs, node.target = (node.all_input_nodes[0], axes), {}, _ATEN.view.default
        elif node.target in _WRITTEN:
            _WRITTEN[node.target](node)
        node.target = _SPELLINGS.get(node.target, node.target)
        if node.op != "call_function" or not _returns(node) or node.target not in known or not _is_plain(node.target):
            return None
    # unused sizes of inputs, added above
    graph.eliminate_dead_code()
    return ExportedProgram(
        root=module,
        graph=graph,
        graph_signature=program.graph_signature,
        state_dict=program.state_dict,
        range_constraints=program.range_constraints,
        module_call_graph=program.module_call_graph,
        constants=program.constants,
        verifiers=program.verifiers,
    )


def _sizes_of_inputs(graph: torch.fx.Graph) -> dict[str, torch.fx.Node]:
    """Add nodes for the sizes of inputs, by their symbols in shapes; unused ones are dead code."""
    inputs, sizes = graph.find_nodes(op="placeholder"), dict[str, torch.fx.Node]()
    for source in inputs:
        value = source.meta.get("val")
        shape: Sequence[Any] = value.shape if isinstance(value, torch.Tensor) else ()
        for axis, size in enumerate(shape):
            if isinstance(size, torch.SymInt) and str(size) not in sizes:
                with graph.inserting_after(inputs[-1]):
                    sizes[str(size)] = graph.call_function(_ATEN.sym_size.int, (source, axis))
                sizes[str(size)].meta["val"] = size
    return sizes


def _before(node: torch.fx.Node, op: Any, *args: Any) -> torch.fx.Node:
    """Insert an op before the node that it is part of."""
    with node.graph.inserting_before(node):
        made = node.graph.call_function(op, args)
    value = op(*(each.meta["val"] if isinstance(each, torch.fx.Node) else each for each in args))
    made.meta = {**node.meta, "val": value}
    return made


def _keeps_shape(node: torch.fx.Node) -> bool:
    """Return whether a reshape has no effect; attention fusions do not match around one."""
    return _shape(node.all_input_nodes[0]) == _shape(node) and all(user.op != "output" for user in node.users)


def _shape(node: torch.fx.Node) -> list[str]:
    return [str(size) for size in node.meta["val"].shape]


def _returns(node: torch.fx.Node) -> bool:
    """Make an op that writes into a value return a new one; false if something else may observe the value."""
    op = node.target
    if not isinstance(op, torch._ops.OpOverload) or not op._schema.is_mutable:
        return True
    returning = getattr(getattr(_ATEN, op._opname.removesuffix("_"), None), op._overloadname, None)
    written = node.args[0] if node.args else None
    if returning in (None, op) or not isinstance(written, torch.fx.Node):
        return False
    read = [source.meta["val"] for source in node.all_input_nodes]
    # the functional op would promote the types
    if len({value.dtype for value in read if isinstance(value, torch.Tensor)}) > 1:
        return False
    if not _is_fresh(written) or any(user < node and not _is_fresh(user) for user in written.users):
        return False
    node.target = returning
    written.replace_all_uses_with(node, delete_user_cb=lambda user: node < user)
    return True


def _is_fresh(node: torch.fx.Node) -> bool:
    """Return whether an op returns a new tensor; a composite may return its input."""
    op = node.target
    if op is operator.getitem:
        return _is_fresh(node.all_input_nodes[0])
    if not isinstance(op, torch._ops.OpOverload) or op._schema.is_mutable or op.is_view:
        return False
    return op in (_ATEN.linear.default, _ATEN.matmul.default) or not op.has_kernel_for_dispatch_key(_COMPOSITE)


def _is_plain(op: object) -> bool:
    """Return whether an op is not a composite view that torch decomposes."""
    if not isinstance(op, torch._ops.OpOverload):
        return True
    return not op.is_view or op in _RESHAPES or not op.has_kernel_for_dispatch_key(_COMPOSITE)


def _describe_model(model: ir.Model, base: TorchBase) -> None:
    model.ir_version = _IR_VERSION
    model.producer_name, model.producer_version = "adapter-export", __version__
    model.metadata_props.clear()
    model.metadata_props[_FINGERPRINT_KEY] = base.fingerprint
    lengths = {axis: asdict(one) for axis, one in base.lengths.items()}
    model.metadata_props[_LENGTHS_KEY] = json.dumps({"lengths": lengths, "pads": base.pads}, sort_keys=True)
    other_calls = base.flow.other_calls
    if other_calls:  # the exporter computes these layers without using their results
        model.metadata_props[OTHER_CALLS_KEY] = json.dumps(other_calls, sort_keys=True)
    for graph in model.graphs():
        graph.metadata_props.clear()
    for node in model.graph.all_nodes():
        kept = {key: value for key, value in node.metadata_props.items() if key in _KEPT}
        node.metadata_props.clear()
        node.metadata_props.update(kept)
        node.doc_string = None
    for value in _values(model):
        value.metadata_props.clear()


def _values(model: ir.Model) -> Iterator[ir.Value]:
    for graph in model.graphs():
        yield from graph.inputs
        yield from graph.initializers.values()
        for node in graph:
            yield from node.outputs


def _name_values(graph: ir.Graph, base: TorchBase) -> None:
    """Give inputs and outputs the names and shapes of the base; the exporter names them after ops."""
    wanted = {record.name for record in base.inputs} | {record.name for record in base.outputs}
    for value in [*(value for node in graph for value in node.outputs), *graph.initializers.values()]:
        if value.name in wanted:
            value.name = f"{value.name}.value"
    for placeholder, record in zip(graph.inputs, base.inputs, strict=True):
        placeholder.name = record.name
    seen: set[int] = set()
    for index, output in enumerate(base.outputs):
        value = graph.outputs[index]
        if id(value) in seen or value.producer() is None:
            # an output that is an input, a weight or another output needs a separate value
            node = ir.node("Identity", [value])
            graph.append(node)
            node.outputs[0].type = value.type
            value = graph.outputs[index] = node.outputs[0]
        seen.add(id(value))
        value.name, value.shape = output.name, ir.Shape(list(output.axes))

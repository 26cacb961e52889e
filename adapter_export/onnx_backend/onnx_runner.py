"""Reference for a base that exists only as ONNX: the base in ONNX Runtime, the adapters in NumPy float64.

A graph with many weights is split between its nodes into pieces that run one after the other in separate sessions: ONNX
Runtime keeps the pages of a mapped weight file in memory as long as its session is open.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from adapter_export.graph.adapter import HEAD, Adapter
from adapter_export.graph.graph import READABLE, needs_base_norm
from adapter_export.numerics.evaluate_adapter import BORROWED, check_fit, evaluate_head, evaluate_site
from adapter_export.numerics.prefix_inputs import at_sites, with_prefix, without_prefix
from adapter_export.numerics.runner import Arrays, NodeValue, Undefined, head_output, site_result
from adapter_export.onnx_backend.base.flow import all_read, module_path
from adapter_export.onnx_backend.base.onnx_base import OnnxBase, numerics
from adapter_export.onnx_backend.model_session import open_session
from adapter_export.onnx_backend.rewrite.insert import exposed
from adapter_export.onnx_backend.rewrite.surgery import SiteRewrite
from adapter_export.runtime.arena import options_of_next_call
from adapter_export.runtime.graphs import run_session
from adapter_export.sites.edits import Place
from adapter_export.sites.site import SiteMap

PIECE_BYTES = 160 * 2**20
"""Maximum bytes of weights per piece; a node with more is a piece by itself."""

_MOST_CUT = 4
"""Maximum number of splits of a base to keep; each has the base's weights in memory."""


class Pieces:
    """A graph that runs rarely, in pieces; each piece is opened when needed and closed before the next.

    The nodes are in order of evaluation. `size` is the maximum bytes of external weights per piece, by default
    `PIECE_BYTES`; `keep` leaves every piece open for the next run, for graphs with few weights.
    """

    def __init__(
        self, model: ir.Model, folder: Path, *, optimize: bool = True, size: int | None = None, keep: bool = False
    ) -> None:
        self._open: dict[int, ort.InferenceSession] | None = {} if keep else None
        self._folder = folder
        self._optimize = optimize
        self._outputs = [_name(value) for value in model.graph.outputs]
        self._models = _cut(model, PIECE_BYTES if size is None else size)

    def __len__(self) -> int:
        return len(self._models)

    def run(self, feeds: Mapping[str, np.ndarray]) -> Arrays:
        """Return all outputs by name; `feeds` may have extra values. Raises as `open_session` and `run_session`."""
        return self.run_all([feeds])[0]

    def run_all(
        self,
        requests: Sequence[Mapping[str, np.ndarray]],
        condense: Callable[[Arrays], Arrays] = dict,
    ) -> list[Arrays]:
        """Return the outputs of each request, opening each piece once.

        Requests share arrays: what the same arrays determine is computed once, such as the layers below the first site
        where two adapters differ.

        `condense` makes outputs smaller as soon as no later piece reads them, before the next request runs.
        """
        available: list[Arrays] = [dict(feeds) for feeds in requests]
        results: list[Arrays] = [{} for _ in requests]
        for at, model in enumerate(self._models):
            later = self.reads_after(at)
            final = [name for name in self._outputs if name not in later]

            def settle(number: int, values: Arrays, final: Sequence[str] = final, later: set[str] = later) -> None:
                results[number] |= condense({name: values[name] for name in final if name in values})
                for name in values.keys() - later:
                    del values[name]

            self._run_piece(model, available, settle)
        return [{name: values[name] for name in self._outputs} for values in results]

    def reads_after(self, at: int) -> set[str]:
        """Return the values that the pieces after a piece read."""
        return {_name(value) for model in self._models[at + 1 :] for value in model.graph.inputs}

    def stream(self, fetch: Callable[[str], np.ndarray | None]) -> Iterator[Arrays]:
        """Yield the outputs of one piece after the other; `fetch` returns inputs that no piece computes.

        An input for which it returns `None` keeps its default. Computed values are dropped after their last use.
        """
        available: Arrays = {}
        for at, model in enumerate(self._models):
            fetched = {name: fetch(name) for name in {_name(value) for value in model.graph.inputs} - available.keys()}
            feeds = {name: value for name, value in fetched.items() if value is not None}
            everything = [{**available, **feeds}]
            self._run_piece(model, everything)
            computed = {name: value for name, value in everything[0].items() if name not in feeds}
            yield {name: value for name, value in computed.items() if name not in available and name in self._outputs}
            later = self.reads_after(at)
            available = {name: value for name, value in computed.items() if name in later}

    def _run_piece(
        self, model: ir.Model, available: Sequence[Arrays], settle: Callable[[int, Arrays], None] | None = None
    ) -> None:
        """Run one piece, and call `settle` after each request.

        A separate function, so that its session is closed at the end.
        """
        session = None if self._open is None else self._open.get(id(model))
        if session is None:
            session = open_session(model, self._folder, optimize=self._optimize, pack=False)
        if self._open is not None:
            self._open[id(model)] = session
        inputs = [_name(value) for value in model.graph.inputs]
        # by identity: comparing contents would cost more than most pieces
        keys = [frozenset((name, id(values[name])) for name in inputs if name in values) for values in available]
        remaining, computed = Counter(keys), dict[frozenset[tuple[str, int]], Arrays]()
        for at, (key, values) in enumerate(zip(keys, available, strict=True)):
            if key not in computed:
                feeds = {name: values[name] for name in inputs if name in values}
                computed[key] = run_session(session, feeds, options=options_of_next_call())
            values.update(computed[key])
            remaining[key] -= 1
            if not remaining[key]:
                del computed[key]
            if settle is not None:
                settle(at, values)


def with_outputs(model: ir.Model, names: Collection[str]) -> ir.Model:
    """Return a copy of a graph whose outputs are its values with these names and known types."""
    copy = model.clone()
    values = [value for node in copy.graph for value in node.outputs]
    copy.graph.outputs[:] = [value for value in values if value.name in names and value.type is not None]
    return copy


def weights_are_many(model: ir.Model) -> bool:
    """Return whether a graph has more external weights than one piece may have."""
    return sum(_external_bytes(value) for value in model.graph.initializers.values()) > PIECE_BYTES


def _cut(model: ir.Model, size: int) -> list[ir.Model]:
    nodes = list(model.graph)
    if any(value.producer() is None for value in model.graph.outputs):  # such an output is not computed by any piece
        return [model]
    reads = [set(all_read(node)) for node in nodes]
    last = {value: at for at, values in enumerate(reads) for value in values}
    last.update(dict.fromkeys(model.graph.outputs, len(nodes)))
    ends = list(_ends(nodes, reads, last, size))
    if not ends and all(value.uses() for value in model.graph.inputs):  # one piece, no unused inputs
        return [model]
    pieces, start = [], 0
    for end in (*ends, len(nodes)):
        pieces.append(_piece(model, nodes[start:end], reads[start:end], [v for v in last if last[v] >= end]))
        start = end
    return pieces


def _ends(
    nodes: Sequence[ir.Node], reads: Sequence[Collection[ir.Value]], last: Mapping[ir.Value, int], size: int
) -> Iterator[int]:
    """Yield the nodes to split before: as late as the weights allow, between values of known types.

    A value made only of weights, such as a transposed embedding, stays in one piece: every request would have a copy.
    """
    sizes = {value: _external_bytes(value) for values in reads for value in values}
    made_of_weights: set[ir.Value] = set()
    weights: set[ir.Value] = set()
    open_: set[ir.Value] = set()
    able, total = None, 0
    for at, node in enumerate(nodes):
        added = {value for value in reads[at] if sizes[value] and value not in weights}
        total += sum(map(sizes.__getitem__, added))
        if able is not None and added and total > size:
            yield able
            able, total, weights = None, sum(map(sizes.__getitem__, added)), set()
        weights |= added
        if reads[at] and all(sizes[value] or value in made_of_weights for value in reads[at]):
            made_of_weights |= set(node.outputs)
        open_ |= {value for value in node.outputs if last.get(value, at) > at}
        open_ = {value for value in open_ if last[value] > at}
        if weights and not open_ & made_of_weights and all(isinstance(value.type, ir.TensorType) for value in open_):
            able = at + 1


def _piece(
    model: ir.Model, nodes: Sequence[ir.Node], reads: Sequence[Collection[ir.Value]], needed: Collection[ir.Value]
) -> ir.Model:
    produced = {value for node in nodes for value in node.outputs}
    needed_values = {value for values in reads for value in values if value not in produced}
    overridable = set(model.graph.inputs)
    view = ir.GraphView(
        [value for value in needed_values if value in overridable or not value.is_initializer()],
        [value for value in needed if value in produced],
        nodes=nodes,
        initializers=[value for value in needed_values if value.is_initializer()],
        opset_imports=model.graph.opset_imports,
        name=model.graph.name,
    )
    return ir.Model(view.clone(), ir_version=model.ir_version, functions=list(model.functions.values()))


def _external_bytes(value: ir.Value) -> int:
    tensor = value.const_value
    return tensor.nbytes if isinstance(tensor, ir.ExternalTensor) else 0


def _name(value: ir.Value) -> str:
    assert value.name is not None  # every value of a loaded graph has a name
    return value.name


def cut_input(site: str, replaced: str) -> str:
    """Return the input of a split base that replaces a site's `u`, `h` or `y`."""
    return f"cut.{site}.{replaced}"


class Cut:
    """A base split at sites, in segments that run one after the other.

    In its model, a copy, the values of some sites are inputs, `cut_input(site, replaced)`. Additional outputs, named by
    `exposed`, show the values that an adapter may read there, computed from earlier inputs, and the final hidden state
    as `head/hidden`. The `places` are in order of evaluation, each with the names of its outputs: site values, and the
    tensors of the base's norm that a bound graph borrows.

    The segment of a place computes its outputs from what earlier segments computed, so that the base runs once for any
    number of sites. One more segment computes the outputs of the base.
    """

    def __init__(
        self, base: OnnxBase, model: ir.Model, places: Sequence[tuple[Place, tuple[str, ...]]], outputs: Sequence[str]
    ) -> None:
        self.model, self.places, self.outputs, self._folder = model, tuple(places), tuple(outputs), base.folder
        shown = [[exposed(f"{site.name}.{replaced}", name) for name in names] for (site, replaced), names in places]
        self._segments = _segments(model, [*shown, outputs])
        self._keep = not weights_are_many(base.model)
        self._sessions: dict[int, ort.InferenceSession] = {}

    def run(self, at: int, feeds: Mapping[str, np.ndarray]) -> Arrays:
        """Compute the segment of a place, or after the last place the outputs; `feeds` may have extra values."""
        model = self._segments[at]
        session = self._sessions.get(at) or open_session(model, self._folder, optimize=False, pack=False)
        if self._keep:
            self._sessions[at] = session
        inputs = {_name(value) for value in model.graph.inputs}
        fed = {name: value for name, value in feeds.items() if name in inputs}
        return run_session(session, fed, options=options_of_next_call())

    def exactly(self, at: int, feeds: Mapping[str, np.ndarray]) -> Arrays:
        """Compute as `run` does, in float64; raises one of `_NOT_EXACT` if that is impossible."""
        return _in_float64(self._segments[at], feeds)

    def reads_after(self, at: int) -> set[str]:
        """Return the values that later segments read."""
        return {_name(value) for model in self._segments[at + 1 :] for value in model.graph.inputs}


def _segments(model: ir.Model, groups: Sequence[Sequence[str]]) -> list[ir.Model]:
    """Split a graph into one model per group of values, each computing its group from earlier models' values.

    A value of unknown type cannot pass from one model to another: what reads it later computes it again.
    """
    values = {value.name: value for node in model.graph for value in node.outputs}
    order = {node: at for at, node in enumerate(model.graph)}
    available, parts = set[ir.Value](), list[tuple[list[ir.Node], set[ir.Value]]]()
    for names in groups:
        nodes, read = set[ir.Node](), set[ir.Value]()
        waiting = [values[name] for name in names if name in values]
        while waiting:
            value = waiting.pop()
            node = value.producer()
            if value in available:
                read.add(value)
            elif node is not None and node not in nodes:
                nodes.add(node)
                waiting += all_read(node)
        parts.append((sorted(nodes, key=order.__getitem__), read))
        available |= {value for node in nodes for value in node.outputs if isinstance(value.type, ir.TensorType)}
    segments: list[ir.Model] = []
    for at, (ordered, _) in enumerate(parts):
        later = {value for _, read in parts[at + 1 :] for value in read}
        results = {value for node in ordered for value in node.outputs if value in later or value.name in groups[at]}
        segments.append(_piece(model, ordered, [set(all_read(node)) for node in ordered], results))
    return segments


_NOT_EXACT = (RuntimeError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, ImportError)
"""Exceptions of ONNX's reference implementation for operators that it lacks or supports in float32 only."""


class Erf(OpRun):
    """Erf in the precision of its input: ONNX's reference implementation computes in float32."""

    def _run(self, x: np.ndarray) -> tuple[np.ndarray]:
        return (np.vectorize(math.erf, otypes=[x.dtype])(x),)


def _in_float64(model: ir.Model, feeds: Mapping[str, np.ndarray]) -> Arrays:
    """Return the outputs of a graph with float64 instead of float32, computed by ONNX's reference implementation.

    Raises one of `_NOT_EXACT` for operators without float64, such as fused operators of ONNX Runtime.
    """
    wide = model.clone()
    values = [value for graph in wide.graphs() for value in (*graph.inputs, *graph.initializers.values())]
    values += [value for node in wide.graph.all_nodes() for value in node.outputs]
    for value in values:
        if value.const_value is not None:
            value.const_value = _widened(value.const_value)
        if value.dtype in _NARROW:
            value.type = ir.TensorType(ir.DataType.DOUBLE)  # a new type object: copies of a graph share them
    for node in wide.graph.all_nodes():
        for name, attribute in list(node.attributes.items()):
            if attribute.type == ir.AttributeType.TENSOR:
                node.attributes.add(ir.AttrTensor(name, _widened(attribute.as_tensor())))
            elif (node.op_type, name) in _TYPES_TO_MAKE and ir.DataType(attribute.as_int()) in _NARROW:
                node.attributes.add(ir.AttrInt64(name, int(ir.DataType.DOUBLE)))
    evaluator = ReferenceEvaluator(ir.to_proto(wide), new_ops=[Erf])
    inputs = {_name(value) for value in wide.graph.inputs}
    wide_feeds = {name: array.astype(np.float64) if array.dtype.kind == "f" else array for name, array in feeds.items()}
    results = evaluator.run(None, {name: array for name, array in wide_feeds.items() if name in inputs})
    outputs = dict(zip(map(_name, wide.graph.outputs), map(np.asarray, results), strict=True))
    narrow = [name for name, array in outputs.items() if array.dtype.kind == "f" and array.dtype != np.float64]
    if narrow:
        raise TypeError(f"an operator does not support float64: {', '.join(narrow)}")
    return outputs


_NARROW = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_TYPES_TO_MAKE = (("Cast", "to"), ("EyeLike", "dtype"))


def _widened(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """Return the tensor in float64, in memory: its file has float32."""
    array = np.array(tensor.numpy())
    return ir.tensor(array.astype(np.float64) if tensor.dtype in _NARROW else array, name=tensor.name)


def cut(base: OnnxBase, places: Iterable[Place]) -> Cut:
    """Split a base at some places; `NoSitesError` if the input of a site's layer cannot be replaced."""
    rewrite = SiteRewrite(base, places)
    shown = []
    for edit in rewrite.edits:
        site, replaced = edit.site, edit.replaced
        values = rewrite.site_values(edit, READABLE[replaced])
        shown_values = {**values, **rewrite.norm_tensors(site)}
        fed, like = cut_input(site.name, replaced), values[replaced]
        copy = ir.Node("", "Identity", [rewrite.add_input(fed, like.type, like.shape)], name=f"{fed}/copy")
        copy.outputs[0].name = f"{fed}/value"
        rewrite.carry_out(edit, copy.outputs[0], [copy])
        # expose after replacing, which would redirect the new outputs to the replacement
        for name, value in shown_values.items():
            rewrite.expose(value, exposed(f"{site.name}.{replaced}", name))
        shown.append(((site, replaced), tuple(shown_values)))
    rewrite.expose(rewrite.value(base.sites.final), exposed(HEAD, "hidden"))
    outputs = [record.name for record in base.outputs]
    return Cut(base, rewrite.finish(), shown, [*outputs, exposed(HEAD, "hidden")])


_Compute = Callable[[Cut, int, Mapping[str, np.ndarray]], Arrays]
"""Function that computes a segment of a split base, in its precision or in float64."""


class CutRunner:
    """Computes the expected outputs of a bundle without the exported graph; a `numerics.runner.Runner`.

    The base is split where an adapter acts. Each piece provides one more site's values, on which the adapter is
    evaluated in float64; its result feeds the next piece, and the last piece returns the outputs. The base runs in its
    own precision, without optimization.
    """

    def __init__(self, base: OnnxBase) -> None:
        self._base = base
        self._outputs = [record.name for record in base.outputs]
        self._cuts: dict[frozenset[tuple[str, str]], Cut] = {}

    @property
    def description(self) -> str:
        """Programs that compute, with their versions."""
        base = f"onnxruntime {ort.__version__} {numerics(self._base.model).precision.words}"
        return f"{base} for the base, numpy {np.__version__} float64 for adapters"

    @property
    def sites(self) -> SiteMap:
        """Sites of the base."""
        return self._base.sites

    def run(self, inputs: Mapping[str, np.ndarray], adapter: Adapter | None = None) -> Arrays:
        """Return all outputs of the base by name and, for an adapter with a head, its result.

        Raises:
            AdapterError: the adapter does not fit the base.
            RequestError: the base cannot compute these inputs.
        """
        acting, fed = at_sites(adapter), with_prefix(inputs, adapter, self._base.inputs)
        outputs = self._whole.run(fed) if acting is None else self._run_adapted(fed, acting, Cut.run)
        return without_prefix(outputs, adapter, self._base.inputs)

    def _run_adapted(self, inputs: Mapping[str, np.ndarray], adapter: Adapter, compute: _Compute) -> Arrays:
        opened, feeds = self._run_segments(inputs, adapter, compute)
        outputs = {name: feeds[name] for name in opened.outputs if name in feeds}  # computed by earlier segments
        outputs |= compute(opened, len(opened.places), feeds)
        hidden = outputs.pop(exposed(HEAD, "hidden"))
        if adapter.head is not None:
            mask = inputs[self._base.mask] if self._base.mask else np.ones(hidden.shape[:2])
            name, result = head_output(self._outputs, adapter.head.output), evaluate_head(adapter, hidden, mask)
            outputs[name] = result if hidden.dtype == np.float64 else result.astype(np.float32)
        return outputs

    def _run_segments(
        self, inputs: Mapping[str, np.ndarray], adapter: Adapter, compute: _Compute = Cut.run
    ) -> tuple[Cut, Arrays]:
        """Return the base split where an adapter acts, with its inputs and all values that its last segment reads.

        The inputs include the adapter's result at each site.
        """
        check_fit([adapter], self._base.sites)
        opened, feeds = self._open_cut(adapter), dict(inputs)
        permanent = {*inputs, *opened.outputs}
        permanent |= {cut_input(site.name, replaced) for (site, replaced), _ in opened.places}
        for at, ((site, replaced), shown) in enumerate(opened.places):
            graph = adapter.graphs[adapter.placements[site.name].graph]
            borrowed = BORROWED if needs_base_norm(graph) else ()
            needed = [name for name in shown if name in (*graph.inputs, replaced, *borrowed)]
            feeds |= compute(opened, at, feeds)
            values = {name: feeds[exposed(f"{site.name}.{replaced}", name)] for name in needed}
            result = evaluate_site(adapter, site.name, values, site.norm)
            feeds[cut_input(site.name, replaced)] = result.astype(values[replaced].dtype)
            later = permanent | opened.reads_after(at)
            feeds = {name: value for name, value in feeds.items() if name in later}
        return opened, feeds

    def find_undefined(self, inputs: Mapping[str, np.ndarray], adapter: Adapter | None) -> Undefined:  # noqa: ARG002
        """Return no elements: the bundle's graph has the same operators, so its padding matches, too."""
        return {}

    def node_values(
        self,
        inputs: Mapping[str, np.ndarray],
        adapter: Adapter | None,
        names: Collection[str],
        *,
        exactly: bool = True,  # noqa: ARG002
    ) -> Iterator[NodeValue]:
        """Yield values of the base's graph by name, and the adapter's results at its sites; raises as `run`.

        They are computed piece by piece, those of sites first. Adapters are computed in float64.
        """
        acting, feeds = at_sites(adapter), dict(with_prefix(inputs, adapter, self._base.inputs))
        model = self._base.model
        if acting is not None:
            opened, feeds = self._run_segments(feeds, acting)
            model = opened.model
        shown = with_outputs(model, names)
        paths = {node.outputs[0].name: module_path(node) for node in model.graph if node.outputs}
        for site, replaced in () if acting is None else [place for place, _ in opened.places]:
            if (name := site_result(site.name, replaced)) in names:
                yield NodeValue(name, feeds[cut_input(site.name, replaced)], path=site.path)
        if not shown.graph.outputs:
            return
        for values in Pieces(shown, self._base.folder, optimize=False).stream(feeds.get):
            yield from (NodeValue(name, value, path=paths.get(name)) for name, value in values.items())

    def node_dtypes(self, adapter: Adapter | None) -> Mapping[str, str]:
        """Return the NumPy type of each value that `node_values` can yield, by name."""
        typed = [value for node in self._base.model.graph for value in node.outputs if value.dtype is not None]
        types = {_name(value): value.dtype.numpy().name for value in typed if value.name and value.dtype is not None}
        places = {} if adapter is None else adapter.placements
        graphs = {} if adapter is None else adapter.graphs
        return types | {site_result(site, graphs[at.graph].replaces): "float32" for site, at in places.items()}

    def exact(self, inputs: Mapping[str, np.ndarray], adapter: Adapter | None) -> Arrays | None:
        """Return all outputs of `run` in float64, or `None` for large models and operators outside ONNX."""
        if self.keeps_weights:
            with suppress(*_NOT_EXACT):
                acting, fed = at_sites(adapter), with_prefix(inputs, adapter, self._base.inputs)
                if acting is None:
                    return without_prefix(_in_float64(self._base.model, fed), adapter, self._base.inputs)
                return self._run_adapted(fed, acting, Cut.exactly)
        return None

    @cached_property
    def _whole(self) -> Pieces:
        return Pieces(self._base.model, self._base.folder, optimize=False, keep=self.keeps_weights)

    @cached_property
    def keeps_weights(self) -> bool:
        """Return whether the base is small enough to keep all its pieces open."""
        return not weights_are_many(self._base.model)

    def _open_cut(self, adapter: Adapter) -> Cut:
        """Return the base split exactly where an adapter acts."""
        replaced = {site: adapter.graphs[placement.graph].replaces for site, placement in adapter.placements.items()}
        key = frozenset(replaced.items())
        if key not in self._cuts:
            if len(self._cuts) == _MOST_CUT:
                del self._cuts[next(iter(self._cuts))]
            places = [(site, replaced[site.name]) for site in self._base.sites if site.name in replaced]
            self._cuts[key] = cut(self._base, places)
        return self._cuts[key]

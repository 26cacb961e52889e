"""Locate a failure: the node or optimization level, the kind of fault, and a folder that reproduces it."""

from __future__ import annotations

import math
import platform
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx import numpy_helper

from adapter_export.bundle.bundle_reader import LEVEL, Graph
from adapter_export.bundle.golden.golden_vectors import Case
from adapter_export.bundle.proof.lockstep import Lockstep
from adapter_export.bundle.report import BASE
from adapter_export.dtypes import same_bits
from adapter_export.errors import AdapterError, BaseModelError, FormatError, RequestError, WriteError
from adapter_export.format.check_report import (
    Finding,
    LocationRecord,
    Measurement,
    SpanRecord,
)
from adapter_export.format.files import canonical_json
from adapter_export.format.manifest import VARIANT_NAMES
from adapter_export.numerics import runner as numerics
from adapter_export.numerics.runner import Arrays, Runner
from adapter_export.onnx_backend.model_session import open_session
from adapter_export.onnx_backend.rewrite.insert import result_of, site_values
from adapter_export.onnx_backend.slots import REPLACED
from adapter_export.onnx_backend.steps import Step
from adapter_export.reporting import SILENT, Reporter
from adapter_export.runtime.graphs import Optimization, run_session
from adapter_export.runtime.graphs import open_session as open_graph
from adapter_export.tables import number_of
from adapter_export.version import __version__
from adapter_export.words import quoted

Left = Callable[[np.ndarray], float]
"""Error that remains after a step is changed; infinite if the change does not explain the fault."""

Change = Callable[[ir.Node], object]
"""Function that changes a node in place."""

_CLOSE = 1e-3
"""A change explains a fault if the remaining error is below this fraction."""

_ACTIVATIONS = ("Relu", "Gelu", "Tanh", "Sigmoid", "Erf", "Softplus", "Identity")

_FEW = 3
"""Shorter axes are not searched: they show too little."""

_MOST_LOCATED = 5
"""Maximum number of failures to locate: the others mostly share a cause."""

_MOST_NODES = 12
"""Maximum number of nodes in a step for which each node is named."""

_MOST_COLUMNS = 4096
"""Maximum length of an axis searched for exchanged positions."""

_OPTIMIZERS = (
    *("GeluFusionL1", "GeluFusion", "GeluFusionL2", "LayerNormFusion", "LayerNormFusionL1", "LayerNormFusionL2"),
    *("SimplifiedLayerNormFusion", "SkipLayerNormFusion", "AttentionFusion", "EmbedLayerNormFusion", "BiasGeluFusion"),
    *("FastGeluFusion", "QuickGeluFusion", "MatMulAddFusion", "MatmulTransposeFusion", "MatMulScaleFusion"),
    *("GemmActivationFusion", "MatMulActivationFusion", "BiasSoftmaxFusion", "GatherToSplitFusion", "ReshapeFusion"),
    *("ConstantFolding", "ConvActivationFusion", "ConvMulFusion", "ConvAddFusion", "GemmSumFusion", "GroupQueryFusion"),
    *("DynamicQuantizeMatMulFusion", "MatMulIntegerToFloatFusion", "QDQSelectorActionTransformer", "NchwcTransformer"),
    *("TransposeOptimizer", "CommonSubexpressionElimination", "CastElimination", "SliceElimination"),
)
"""ONNX Runtime's fusions; it has no API that lists them."""

DATA = "test_data_set_0"


@dataclass
class Trace:
    """Findings about nodes, and the locations of failures."""

    findings: list[Finding] = field(default_factory=list)
    locations: list[LocationRecord] = field(default_factory=list)

    def add(self, *findings: Finding) -> None:
        """Add findings, merging those of one node that is wrong with several adapters."""
        known = {finding.id for finding in self.findings}
        self.findings += [finding for finding in findings if finding.id not in known]


def trace(
    graphs: Sequence[Graph],
    runner: Runner,
    cases: Sequence[Case],
    names: Sequence[str | None],
    outputs: Sequence[Measurement],
    *,
    repro: Path | None = None,
    reporter: Reporter = SILENT,
) -> Trace:
    """Compare the graph with slots node by node: on one case for each of `names`, then on each failing output.

    `cases` contains every case that `outputs` names.
    """
    trace_so_far = Trace()
    plain = next((graph for graph in graphs if graph.variant == "slots"), None)
    allowance = graphs[0].bundle.allowance(cases) if graphs and cases else None
    if allowance is None:
        return trace_so_far
    for name in names if plain is not None else ():
        assert plain is not None
        trace_so_far.add(*_walk(Lockstep(plain, runner, typical(cases), name, allowance)))
        reporter.step(f"{name or BASE}: nodes")
    by_name = {case.name: case for case in cases}
    for failure in _smallest_failures(outputs):
        graph = next(
            (graph for graph in graphs if graph.variant == failure.variant and failure.adapter in graph.adapters), None
        )
        if (
            graph is None
            or failure.case not in by_name
            or any(at.adapter == failure.adapter for at in trace_so_far.locations)
        ):
            continue
        if len(trace_so_far.locations) == _MOST_LOCATED:
            break
        walk = Lockstep(graph, runner, by_name[failure.case], failure.adapter, allowance)
        place = (failure.adapter, failure.variant, failure.case)
        location, records = locate(walk, [each for each in outputs if (each.adapter, each.variant, each.case) == place])
        if location.node is not None:
            trace_so_far.add(_failed(walk, location.node, location.guess, records))
            if repro is not None:
                location = replace(location, repro=str(write_repro(walk, location, repro)))
        trace_so_far.locations.append(location)
    return trace_so_far


def _walk(walk: Lockstep) -> Iterator[Finding]:
    """Compare every node of the graph, and yield the findings."""
    try:
        records, exposing = walk.cumulative(list(walk.local()))
    except (RequestError, BaseModelError, FormatError) as error:
        yield _unverified(walk, "the graph could not be split into steps: " + error.problem())
        return
    yield exposing
    yield _nodes(walk, records)
    if walk.adapter is None:
        yield _noise(walk)


def _smallest_failures(outputs: Sequence[Measurement]) -> list[Measurement]:
    """Return the smallest failing case of each adapter and graph, the base and the graph with slots first."""
    wrong = [output for output in outputs if not output.passed and not output.mixed]
    wrong.sort(key=lambda output: (math.prod(output.axes.values()), len(output.case)), reverse=True)
    smallest = {(output.adapter, output.variant): output for output in wrong}
    return sorted(
        smallest.values(), key=lambda output: (output.adapter is not None, VARIANT_NAMES.index(output.variant))
    )


def typical(cases: Sequence[Case]) -> Case:
    """Return the case for comparing every node: small, without padding and, if possible, of several rows and tokens."""
    return min(
        cases,
        key=lambda case: (
            case.real is not None,
            min(case.axes.values(), default=1) < _FEW,
            sum(array.size for array in case.arrays.values()),
        ),
    )


def _nodes(walk: Lockstep, records: Sequence[Measurement]) -> Finding:
    """Return a finding that all nodes match, or describes the first that does not."""
    wrong = next((record for record in records if not record.passed), None)
    if wrong is not None:
        return _failed(walk, wrong, next(guesses(walk, wrong), None), records)
    if not records:
        return _unverified(walk, "the graph and the reference have no value in common")
    worst, total = max(records, key=lambda record: record.ratio), len(walk.steps.names)
    return replace(
        _unverified(walk, f"{len(records)} of {number_of(total, 'value')} at `{walk.case.name}`, worst `{worst.name}`"),
        status="tested",
        coverage=(SpanRecord("values", len(records), total),),
        ratio=worst.ratio,
        measurements=tuple(records),
    )


def _unverified(walk: Lockstep, detail: str) -> Finding:
    file, claim = walk.graph.file, "each node matches the reference's node"
    return Finding.unverified("node", f"{file}/{walk.adapter or BASE}", detail, claim, file)


def _noise(walk: Lockstep) -> Finding:
    """Measure how the outputs of one graph vary from run to run, with other threads, and without optimization."""
    graph, bundle, names = walk.graph, walk.graph.bundle, walk.graph.bundle.base_outputs
    model = ir.to_proto(bundle.model(graph.file)).SerializeToString()
    runs = [run_session(bundle.session(graph.file), walk.feeds, names) for _ in range(2)]
    if bundle.has_many_weights:  # one session at a time
        bundle.close(graph.file, LEVEL)
    others: tuple[tuple[Optimization, int | None], ...] = (("all", 1), ("none", None))
    for level, threads in others:
        session = open_graph(model, optimization=level, threads=threads, where=bundle.home)
        runs.append(run_session(session, walk.feeds, names))
        del session
    floats = [name for name in names if runs[0][name].dtype.kind == "f"]
    apart = [max((_largest(run[name], runs[0][name]) for name in floats), default=0.0) for run in runs[1:]]
    detail = f"again {apart[0]:.1e}, one thread {apart[1]:.1e}, no optimization {apart[2]:.1e}"
    claim = "the graph's outputs do not depend on threads or the optimization level"
    return Finding.tested("noise", graph.file, True, f"`{walk.case.name}`: {detail}", claim)


def _largest(first: np.ndarray, other: np.ndarray) -> float:
    """Return the largest finite difference."""
    differ = np.abs(first.astype(np.float64) - other)
    return float(differ[np.isfinite(differ)].max(initial=0))


def _failed(walk: Lockstep, record: Measurement, guess: str | None, records: Sequence[Measurement]) -> Finding:
    """Return the finding for a wrong node, with the measurements of all nodes compared."""
    assert record.node is not None
    step = walk.step(record.name)
    reads = quoted((*step.weights, *step.inputs))
    facts = [*record.faults, *([] if guess is None else [guess]), *([f"it reads {reads}"] if reads else [])]
    if len(step.computing) <= _MOST_NODES:
        facts.append(f"its nodes: {quoted(step.computing)}")
    torch = ", ".join(filter(None, (record.path, record.node.line)))
    return Finding(
        "node",
        f"{walk.graph.file}/{record.name}",
        f"`{record.name}` matches the reference's `{record.node.origin}`",
        "failed",
        f"{walk.graph.file}, `{record.name}` ({record.node.operators})" + (f", torch: {torch}" if torch else ""),
        f"{walk.adapter or BASE}, {walk.case.name}: {'; '.join(facts)}",
        ratio=record.ratio,
        measurements=tuple(records),
    )


def locate(lockstep: Lockstep, outputs: Sequence[Measurement]) -> tuple[LocationRecord, list[Measurement]]:
    """Find the node that a failure starts at, and its explanation; `outputs` has the case's outputs at all levels."""
    graph, case, adapter = lockstep.graph, lockstep.case, lockstep.adapter
    try:
        records = list(lockstep.local())
    except (RequestError, BaseModelError) as error:
        words = "the nodes could not be compared: " + error.problem()
        return LocationRecord(adapter, case.name, graph.variant, 0, None, None, (words,)), []
    wrong = next((record for record in records if not record.passed), None)
    detail = list[str]()
    guess = None
    if wrong is not None:
        records, exposing = lockstep.cumulative(records)
        wrong = next(record for record in records if not record.passed)
        guess = next(guesses(lockstep, wrong), None)
        if not exposing.passed:
            detail.append(f"exposing values changes the graph: {exposing.detail}")
    else:
        detail += _of_levels(graph, case, adapter, outputs)
        if not detail:
            worst = max(records, key=lambda record: record.ratio, default=None)
            most = "" if worst is None else f"; worst: `{worst.name}`, {worst.ratio:.2f} of its budget"
            detail.append(f"no node exceeds its budget{most}: accumulated rounding, or a fault between the nodes")
    detail += _of_float64(lockstep, outputs)
    return LocationRecord(adapter, case.name, graph.variant, len(records), wrong, guess, tuple(detail)), records


def _of_levels(graph: Graph, case: Case, adapter: str | None, outputs: Sequence[Measurement]) -> Iterator[str]:
    """Yield the optimization level that causes the failure, and the fusion, if disabling it removes the failure."""
    levels: dict[str, bool] = {}
    for output in outputs:
        levels[output.level] = levels.get(output.level, True) and output.passed
    if levels.get("none") is not True or all(levels.values()):
        return
    bad = next(level for level in ("basic", "extended", "all") if levels.get(level) is False)
    name = next(output.name for output in outputs if not output.passed and output.level == bad)
    feeds = graph.feeds(case.arrays, (adapter,) * case.batch)
    fusion = fusion_of(graph.bundle.model(graph.file), graph.bundle.home, feeds, name)
    yield f"correct at `none`, wrong at `{bad}`: ONNX Runtime's optimization" + (f", `{fusion}`" if fusion else "")


def fusion_of(model: ir.Model, folder: Path, feeds: Arrays, output: str) -> str | None:
    """Return the fusion that must be disabled for an output to match the unoptimized graph, or `None`.

    Bisects the list of known fusions.
    """

    def computed(**options: Any) -> np.ndarray:
        return run_session(open_session(model, folder, **options), feeds, [output])[output]

    right = computed(optimize=False)
    error = _largest(right, computed())

    def mends(names: Sequence[str]) -> bool:
        return error > 0 and _largest(right, computed(leave_out=names)) <= _CLOSE * error

    names: Sequence[str] = _OPTIMIZERS
    if not mends(names):
        return None
    while len(names) > 1:
        half = names[: len(names) // 2]
        names = half if mends(half) else names[len(names) // 2 :]
    return names[0] if mends(names) else None


def _of_float64(lockstep: Lockstep, outputs: Sequence[Measurement]) -> Iterator[str]:
    """Compare both sides with float64 at the worst output, to decide which is wrong."""
    runner = lockstep.runner
    worst = max((output for output in outputs if not output.passed), key=lambda output: output.ratio)
    bundle, name = lockstep.graph.bundle, lockstep.adapter
    inputs, source = lockstep.case.arrays, lockstep.source
    head = None if name is None else bundle.record(name).output
    exact = numerics.exact(runner, inputs, source, bundle.base_outputs, head)
    if exact is None or worst.name not in exact:
        return
    actual = lockstep.graph.run(inputs, (name,) * lockstep.case.batch).get(worst.name)
    expected = numerics.run(runner, inputs, source, bundle.base_outputs, head).get(worst.name)
    if actual is None or expected is None or actual.shape != expected.shape:
        return
    errors = [_largest(exact[worst.name], side) for side in (actual, expected)]
    side = "the bundle" if errors[0] > errors[1] else "the reference"
    yield f"error against float64: bundle {errors[0]:.1e}, reference {errors[1]:.1e}: {side} is wrong"


def guesses(lockstep: Lockstep, record: Measurement) -> Iterator[str]:
    """Apply known mistakes to the step that computes a value; yield those that reproduce the reference's result."""
    step = lockstep.step(record.name)
    values = {name: value.value for name, value in lockstep.values([*step.reads, record.name]).items()}
    expected = values.pop(record.name)
    feeds = {**lockstep.feeds, **values}
    actual = step.run(feeds)
    if actual.shape != expected.shape:
        yield f"shape {list(actual.shape)}, expected {list(expected.shape)}"
        return

    def left(changed: np.ndarray) -> float:
        if changed.shape != expected.shape or expected.dtype.kind != "f":
            return math.inf
        differ = float(np.abs(changed.astype(np.float64) - expected).max(initial=0))
        return differ if differ <= max(record.budget.absolute, limit) else math.inf

    error = np.abs(actual.astype(np.float64) - expected)
    limit = _CLOSE * float(error[np.isfinite(error)].max(initial=0))
    yield from _skipped(lockstep, step, feeds, left)
    yield from _of_another(lockstep, step, feeds)
    yield from _other_operators(step, feeds, left)
    yield from _turned(step, feeds, left)
    yield from _scaled(actual, expected, left)
    yield from _exchanged(actual, expected)
    yield from _offset(actual, expected, error, record.budget.absolute)


def _skipped(lockstep: Lockstep, step: Step, feeds: Arrays, left: Left) -> Iterator[str]:
    """Swap a site's value and its replacement by the adapter among the inputs of the step."""
    for site, names in site_values(lockstep.steps.model).items():
        for replaced in REPLACED:
            old, new = names.get(replaced), names.get(result_of(replaced))
            for read, wanted, words in (
                (old, new, f"the adapter is skipped: the step reads `{old}` of site `{site}`, expected `{new}`"),
                (new, old, f"the step reads the adapter's result at site `{site}`, `{new}`, expected `{old}`"),
            ):
                if read in step.reads and wanted is not None and wanted in lockstep.steps.names:
                    other = lockstep.values([wanted]).get(wanted)
                    if other is not None and left(step.run({**feeds, read: other.value})) < math.inf:
                        yield words


def _of_another(lockstep: Lockstep, step: Step, feeds: Arrays) -> Iterator[str]:
    """Compare the fed tensors with those of the other adapters."""
    bundle, adapter = lockstep.graph.bundle, lockstep.adapter
    slots = [name for name in step.weights if name in feeds]
    if adapter is None or not slots:
        return
    site = next(slot.site for slot in bundle.manifest.slots if slot.name == slots[0])
    for other in [record.name for record in bundle.manifest.adapters if record.name != adapter]:
        theirs = bundle.tensors(other)
        try:
            same_place = site in bundle.source(other).placements
        except AdapterError:
            continue
        if same_place and all(same_bits(theirs.get(name), feeds[name]) for name in slots):
            yield f"the tensors belong to `{other}`"


def _other_operators(step: Step, feeds: Arrays, left: Left) -> Iterator[str]:
    """Try another activation, approximation, axis or epsilon."""
    candidates = list[tuple[float, str]]()
    for at, node in enumerate(step.model.graph):
        for words, change in _changes(node):
            model = step.model.clone()
            change(list(model.graph)[at])
            try:
                candidates.append((left(step.run(feeds, model)), words))
            except (RequestError, BaseModelError):
                continue
    yield from (words for error, words in sorted(candidates) if error < math.inf)


def _changes(node: ir.Node) -> Iterator[tuple[str, Change]]:
    def attribute(name: str, value: float | str) -> Change:
        return lambda each: each.attributes.add(ir.convenience.convert_attribute(name, value))

    if node.op_type == "Gelu":
        present = node.attributes.get_string("approximate", "none")
        other = "tanh" if present == "none" else "none"
        shown = {"none": "erf", "tanh": "tanh"}
        yield f"GELU by {shown[present]}, expected by {shown[other]}", attribute("approximate", other)
    if node.op_type in _ACTIVATIONS:
        for other in _ACTIVATIONS:
            if other != node.op_type:
                yield f"`{node.op_type}`, expected `{other}`", partial(_become, operator=other)
    if node.op_type in ("LayerNormalization", "SimplifiedLayerNormalization", "RMSNormalization"):
        present_epsilon = node.attributes.get_float("epsilon", 1e-5)
        # epsilons of common architectures, torch's default first
        for epsilon in (1e-5, 1e-6, 1e-12, 1e-8, 1e-7, 1e-3):
            # relative only: a default `atol` of 1e-8 would make 1e-12 and 1e-8 equal
            if not np.isclose(epsilon, present_epsilon, rtol=1e-3, atol=0):
                yield f"epsilon {present_epsilon:.0e}, expected {epsilon:.0e}", attribute("epsilon", epsilon)
    if node.op_type in ("Add", "Sub"):
        other = "Sub" if node.op_type == "Add" else "Add"
        yield f"`{node.op_type}`, expected `{other}`", partial(_become, operator=other)
    if node.op_type == "Gemm":
        turned = 1 - node.attributes.get_int("transB", 0)
        yield "the matrix is transposed", attribute("transB", turned)
    if node.op_type == "Softmax":
        for axis in (-1, -2, 1):
            yield f"softmax over axis {node.attributes.get_int('axis', -1)}, expected {axis}", attribute("axis", axis)


def _become(node: ir.Node, operator: str) -> None:
    node.op_type = operator
    node.attributes.clear()


def _turned(step: Step, feeds: Arrays, left: Left) -> Iterator[str]:
    """Try transposed square matrices, and a slot's numbers in another order."""
    for name, value in step.weights.items():
        tensor = feeds.get(name)
        if tensor is None and value.const_value is not None:
            tensor = value.const_value.numpy()
        if tensor is None or tensor.ndim != 2 or tensor.dtype.kind != "f":
            continue
        both = [tensor.T] if tensor.shape[0] == tensor.shape[1] else [tensor.T.reshape(tensor.shape)]
        for turned in both:
            model = step.model.clone()
            held = model.graph.initializers[name]
            held.const_value = ir.tensor(np.ascontiguousarray(turned), name=name)
            if left(step.run({key: array for key, array in feeds.items() if key != name}, model)) < math.inf:
                yield f"`{name}` is transposed"


def _scaled(actual: np.ndarray, expected: np.ndarray, left: Left) -> Iterator[str]:
    """Try a multiple of the result."""
    if expected.dtype.kind == "f" and np.isfinite(actual).all() and np.isfinite(expected).all():
        first, second = actual.astype(np.float64).ravel(), expected.astype(np.float64).ravel()
        size = float(second @ second)
        factor = float(first @ second) / size if size else 0.0
        if not actual.any():
            yield "all zeros"
        elif factor and left(actual / factor) < math.inf:
            yield f"scaled: the result is {factor:.6g} times the expected one"


def _exchanged(actual: np.ndarray, expected: np.ndarray) -> Iterator[str]:
    """Search for exchanged positions along an axis."""
    for axis in reversed(range(expected.ndim)):
        count = expected.shape[axis]
        if not 1 < count <= _MOST_COLUMNS:
            continue
        first, second = (
            np.moveaxis(side, axis, 0).reshape(count, -1).astype(np.float64) for side in (actual, expected)
        )
        # rounding moves a position by less than this, an exchange by more
        size = float(np.abs(second).max(initial=0)) * 1e-4
        moved = [at for at in range(count) if np.abs(first[at] - second[at]).max(initial=0) > size]
        partners = {
            at: [to for to in moved if np.abs(first[at] - second[to]).max(initial=0) <= size] for at in moved[:9]
        }
        if len(moved) > 1 and all(partners.values()):
            shown = ", ".join(f"{to[0]} at {at}" for at, to in list(partners.items())[:4])
            yield f"exchanged along axis {axis}: {shown}{', …' if len(moved) > 4 else ''}"
            return


def _offset(actual: np.ndarray, expected: np.ndarray, error: np.ndarray, budget: float) -> Iterator[str]:
    """Search for an error that is constant, or confined to a few rows or features."""
    if expected.ndim < 2 or expected.dtype.kind != "f":
        return
    rows = (actual.astype(np.float64) - expected).reshape(-1, expected.shape[-1])
    if np.abs(rows - rows[:1]).max(initial=0) <= max(budget, _CLOSE * float(error.max(initial=0))) and len(rows) > 1:
        yield "the same error in every row: a bias"
        return
    columns = np.flatnonzero(np.abs(rows).max(axis=0) > budget)
    if len(columns) * 4 <= rows.shape[1]:
        shown = ", ".join(map(str, columns[:5]))
        yield f"wrong in {len(columns)} of {rows.shape[1]} features only: {shown}{', …' if len(columns) > 5 else ''}"
        return
    places = np.flatnonzero(np.abs(rows).max(axis=1) > budget)
    if len(places) * 2 <= len(rows):
        yield f"wrong in {len(places)} of {number_of(len(rows), 'row')} only"


def write_repro(lockstep: Lockstep, location: LocationRecord, folder: Path) -> Path:
    """Write the step of a location's node as a separate graph, with its inputs and expected output.

    The folder contains `model.onnx`, `test_data_set_0/input_*.pb` and `output_0.pb`, in the layout of ONNX's test
    runner, `command.txt`, `versions.json` and `report.json`. Returns the new subfolder, one per fault.

    Raises:
        WriteError: the operating system refused.
    """
    assert location.node is not None
    name = location.node.name
    step = lockstep.step(name)
    values = {key: value.value for key, value in lockstep.values([*step.reads, name]).items()}
    expected = values.pop(name)
    feeds = {**lockstep.feeds, **values}
    model = step.model.clone()
    for value in [value for value in model.graph.inputs if value.is_initializer()]:  # slots are fed
        model.graph.inputs.remove(value)
        if value.name in feeds:
            value.const_value = ir.tensor(feeds[value.name], name=value.name)
    target = folder / f"{location.adapter or 'base'}_{location.variant}"
    try:
        (target / DATA).mkdir(parents=True, exist_ok=True)
        onnx.save(_whole(model), target / "model.onnx")
        for at, each in enumerate(model.graph.inputs):
            _write(target / DATA / f"input_{at}.pb", feeds[each.name or ""], each.name or "")
        _write(target / DATA / "output_0.pb", expected, name)
        options = {"against": "MODEL", "only": location.adapter or "base", "case": location.case}
        options |= {} if location.variant == "slots" else {"variant": location.variant}
        arguments = [word for name, value in options.items() for word in (f"--{name}", value)]
        words = ["adapter-export", "check", str(lockstep.graph.bundle.folder), *arguments]
        (target / "command.txt").write_text(f"{shlex.join(words)}\n", "utf-8")
        versions = {"adapter-export": __version__, "onnx": onnx.__version__, "onnxruntime": ort.__version__}
        versions |= {"numpy": np.__version__, "python": platform.python_version(), "machine": platform.machine()}
        versions |= {"reference": lockstep.runner.description}
        (target / "versions.json").write_bytes(canonical_json(versions))
        (target / "report.json").write_bytes(canonical_json(asdict(location)))
    except OSError as error:
        raise WriteError(target, error.strerror or error) from error
    return target


def _whole(model: ir.Model) -> onnx.ModelProto:
    """Return the model with its weights embedded."""
    for value in model.graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value = ir.tensor(value.const_value.numpy(), name=value.name)
    return ir.to_proto(model)


def _write(path: Path, array: np.ndarray, name: str) -> None:
    path.write_bytes(numpy_helper.from_array(np.ascontiguousarray(array), name).SerializeToString())

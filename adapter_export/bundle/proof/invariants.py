"""Invariants: switching adapters has no side effects, rows are independent, and files match the manifest.

Files are compared with the manifest and with each other before anything runs.

`build` also measures the effect of padding and of zeros, and records it in the manifest for clients.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import permutations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from adapter_export.bundle.bundle_reader import Graph, OpenedBundle
from adapter_export.bundle.golden.golden_vectors import Case, Golden
from adapter_export.bundle.proof.compare_arrays import compare
from adapter_export.bundle.report import BASE
from adapter_export.bundle.variants import VARIANTS
from adapter_export.bundle.variants.fanout_variant import VARIANT as FANOUT
from adapter_export.bundle.variants.variant import GraphInterface, Interface, Variant, initializers
from adapter_export.dtypes import Weights, narrowed, same_bits
from adapter_export.errors import BaseModelError, FormatError, RequestError
from adapter_export.format.check_report import Finding
from adapter_export.format.lengths import Bounds, Lengths, axis_lengths
from adapter_export.format.manifest import (
    InputRecord,
    Manifest,
    MixRecord,
    VariantName,
)
from adapter_export.format.manifest_json import MANIFEST_FILE
from adapter_export.format.tensors import read_tensors
from adapter_export.numerics.budget import Budget
from adapter_export.numerics.padding_trial import PaddingTrial, padding_trial
from adapter_export.numerics.runner import Arrays
from adapter_export.numerics.sample_inputs import MOST_AT_EDGES, outside_case
from adapter_export.onnx_backend.base.onnx_base import FINGERPRINT_KEY
from adapter_export.onnx_backend.rewrite.bank_graph import is_fillable
from adapter_export.runtime.bank import MASK_BELOW
from adapter_export.runtime.check_inputs import check_inputs
from adapter_export.runtime.graphs import run_session
from adapter_export.safe_io.parsers import parsing
from adapter_export.tables import number_of

_SHOWN = 5
"""Maximum number of faults listed in a message."""


def check_files(
    bundle: OpenedBundle, variants: Sequence[VariantName], names: Sequence[str | None]
) -> Iterator[Finding]:
    """Compare every graph with the manifest, and adapter tensors bit by bit between their files and `variants`.

    The manifest was validated against its schema, and the files against their SHA-256, when the bundle was opened.

    Raises:
        FormatError: a graph cannot be read or does not match the manifest: inputs, outputs, slots and their defaults,
            tensors of the bank, location of the weights.
        AdapterError: the bundle's copy of the user's adapter does not match the manifest.
    """
    manifest, adapters = bundle.manifest, [name for name in names if name is not None]
    if not bundle.staged:
        detail = f"{number_of(len(manifest.files), 'file')}: SHA-256 as listed"
        yield Finding.exact("files", "bundle", True, detail)
        yield Finding.exact("schema", MANIFEST_FILE, True, f"format {manifest.version}")
    yield from _check_graphs(bundle)
    for adapter in adapters:
        bundle.source(adapter)
        yield _check_twins(bundle, adapter)
    for variant in map(VARIANTS.__getitem__, variants):
        for name in names:
            compared = variant.compare_tensors(bundle, name)
            if compared is not None:
                yield _tensors_result(f"{variant.name} {variant.holds}", name or BASE, *compared)


def check_outside(manifest: Manifest) -> Iterator[Finding]:
    """Verify, axis by axis, that the runtime rejects the lengths just outside the base's range."""
    for axis, lengths in manifest.lengths.items():
        accepted, refused = list[str](), list[str]()
        for size in lengths.outside():
            case = outside_case(manifest.inputs, axis, size, manifest.lengths, seed=0)
            if case is None:
                continue
            try:
                check_inputs(case.arrays, manifest.inputs, manifest.lengths)
            except RequestError:
                refused.append(str(size))
            else:
                accepted.append(str(size))
        capped = lengths.maximum is None or lengths.maximum > MOST_AT_EDGES
        most = f"; tested up to {lengths.at_most(MOST_AT_EDGES) or lengths.minimum}" if capped else ""
        detail = f"accepts {', '.join(accepted)}" if accepted else f"rejects {', '.join(refused) or 'no length'}"
        yield Finding.exact("lengths", axis, not accepted, f"{lengths}: {detail}{most}")


def check_record(manifest: Manifest, inputs: Sequence[InputRecord], lengths: Bounds) -> Iterator[Finding]:
    """Verify that the bundle accepts only lengths that its base accepts with these inputs, from the same minimum on."""
    axes = {record.name: record.axes for record in inputs}
    pairs = [pair for record in manifest.inputs for pair in zip(record.axes, axes.get(record.name, ()), strict=False)]
    for axis, base_axis in dict.fromkeys(pairs):
        known, base_lengths = axis_lengths(axis, manifest.lengths), axis_lengths(base_axis, lengths)
        if base_lengths != Lengths() or known.minimum != base_lengths.minimum:
            detail = f"the bundle accepts {known}, the base {base_lengths}"
            same = base_lengths.covers(known) and (known.fixed or known.minimum == base_lengths.minimum)
            yield Finding.exact("lengths of the base", str(axis), same, detail)


def _check_graphs(bundle: OpenedBundle) -> Iterator[Finding]:
    """Compare inputs, outputs, slots and their defaults, the location of weights, the base and the slot plan."""
    sizes = {file.path: file.bytes for file in bundle.manifest.files}
    if bundle.staged:
        sizes = {path.name: path.stat().st_size for path in bundle.home.iterdir()}
    for variant in VARIANTS.values():
        for interface in variant.interfaces(bundle.manifest):
            model = bundle.model(interface.file)
            overridable = [value.name or "" for value in model.graph.inputs if value.is_initializer()]
            faults = [
                *_interface_faults(model, bundle.manifest, interface),
                # tensors are read only if they lie inside the bundle's files
                *(list(_weights(model, sizes)) or _default_faults(model, bundle.manifest, variant, interface)),
            ]
            if faults:
                more = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
                raise FormatError(
                    "does not match the manifest",
                    where=bundle.folder / interface.file,
                    found="; ".join(faults[:_SHOWN]) + more,
                    expected=f"the variant `{variant.name}` as described in `{MANIFEST_FILE}`",
                    fix="download the bundle again, or rebuild it",
                )
            inputs, outputs = len(model.graph.inputs) - len(overridable), len(model.graph.outputs)
            detail = f"{inputs} inputs, {len(overridable)} overridable, {outputs} outputs"
            yield Finding.exact("graph", interface.file, True, detail)


def _interface_faults(model: ir.Model, manifest: Manifest, interface: GraphInterface) -> Iterator[str]:
    """Yield mismatches of inputs, outputs, the base, and the model version that adapter files must share."""
    yield from _differences("input", model.graph.inputs, interface.inputs)
    yield from _differences("output", model.graph.outputs, interface.outputs)
    base = model.metadata_props.get(FINGERPRINT_KEY, manifest.base)
    if base != manifest.base:
        yield f"base {base}, expected {manifest.base}"
    if interface.model_version not in (None, model.model_version):
        yield f"`model_version` {model.model_version}, expected {interface.model_version}"


def _differences(what: str, values: Sequence[ir.Value], wanted: Interface) -> Iterator[str]:
    by_name = {value.name or "": value for value in values}
    yield from (f"missing {what} `{name}`" for name in wanted if name not in by_name)
    yield from (f"unexpected {what} `{name}`" for name in by_name if name not in wanted)
    for name in wanted.keys() & by_name.keys():
        dtype, axes = wanted[name]
        known = by_name[name].dtype
        shown = "no type" if known is None else known.numpy().name
        dims = [dim if isinstance(dim, int) else dim.value for dim in by_name[name].shape or ()]
        if shown != dtype or _fixed(dims) != _fixed(axes):
            yield f"{what} `{name}` {shown} {dims}, expected {dtype} {list(axes)}"


def _fixed(axes: Sequence[int | str | None]) -> list[int | None]:
    """Return fixed lengths, and `None` for free axes: their names are only labels."""
    return [axis if isinstance(axis, int) else None for axis in axes]


def _default_faults(model: ir.Model, manifest: Manifest, variant: Variant, interface: GraphInterface) -> Iterator[str]:
    """Yield each wrong default, and each initializer whose overridability does not match the manifest."""
    overridable = [value.name or "" for value in model.graph.inputs if value.is_initializer()]
    wanted = interface.overridable
    yield from (f"`{name}` cannot be overridden" for name in wanted if name not in overridable)
    yield from (f"`{name}` can be overridden" for name in overridable if name not in wanted)
    yield from variant.default_faults(manifest, initializers(model, wanted))


def _weights(model: ir.Model, sizes: Mapping[str, int]) -> Iterator[str]:
    """Yield external tensors that lie outside the files in the manifest, or extend past the end of one."""
    tensors = [value.const_value for graph in model.graphs() for value in graph.initializers.values()]
    attributes = [each for node in model.graph.all_nodes() for each in node.attributes.values()]
    tensors += [each.value for each in attributes if each.type == ir.AttributeType.TENSOR]
    for tensor in tensors:
        if not isinstance(tensor, ir.ExternalTensor):
            continue
        location = str(tensor.location)
        if location not in sizes:
            yield f"`{tensor.name}` is stored in `{location}`, which is not in the manifest"
        elif (tensor.offset or 0) + (tensor.length or tensor.nbytes) > sizes[location]:
            yield f"`{tensor.name}` extends past the end of `{location}`"


def _check_twins(bundle: OpenedBundle, name: str) -> Finding:
    """Compare the two files of an adapter, for ONNX Runtime and for other programs, bit for bit.

    Both are stored in the precision given in the manifest.
    """
    record = bundle.record(name)
    path, others = bundle.home / record.onnx_adapter, read_tensors(bundle.home / record.safetensors)
    wanted = {slot: tensor.dtype for slot, tensor in narrowed(bundle.tensors(name), record.precision).items()}

    def refusal(reason: str) -> FormatError:
        fix = "build the bundle again"
        return FormatError(
            "is not an ONNX Runtime adapter file", where=bundle.folder / record.onnx_adapter, found=reason, fix=fix
        )

    with parsing(refusal):
        adapter = ort.AdapterFormat.read_adapter(str(path))  # the values point into it, so it must outlive them
        tensors = {name: value.numpy().copy() for name, value in adapter.get_parameters().items()}
    apart = sorted(
        slot for slot in tensors.keys() | others.keys() if not same_bits(tensors.get(slot), others.get(slot))
    )
    apart += sorted(slot for slot, dtype in wanted.items() if slot not in tensors or tensors[slot].dtype != dtype)
    detail = f"the two files differ: {', '.join(apart)}" if apart else f"{number_of(len(tensors), 'tensor')}, bit-exact"
    complete = bool(tensors) or not bundle.manifest.slots  # a head that only pools fills no slot
    return Finding.exact("adapter files", name, not apart and complete, detail)


def _tensors_result(name: str, subject: str, wrong: Sequence[str], count: int) -> Finding:
    detail = (
        f"differs from the adapter's file: {', '.join(wrong)}" if wrong else f"{number_of(count, 'tensor')}, bit-exact"
    )
    return Finding.exact(name, subject, not wrong, detail)


Run = Callable[[Mapping[str, np.ndarray], str | None], Arrays]
"""Function (inputs, adapter name or `None` for the base) → outputs."""

RunRows = Callable[[Mapping[str, np.ndarray], Sequence[str | None]], Arrays]
"""Function (inputs, adapter of each row) → outputs, for a bank."""

Budgets = Callable[[str | None, str, np.ndarray], Budget]
"""Function (adapter, output name, expected output) → budget."""

RunAll = Callable[[Sequence[Arrays]], list[Arrays]]
"""Function that computes a list of requests with the graph with slots."""

_WIDTH = 3
_STD = 0.2
"""Large enough that every part of an adapter changes the result."""

_MOST_FOR_ALL_PAIRS = 5
"""Adapters of which all ordered pairs are swapped, whose number grows quadratically; of more, neighbours in a ring."""


def swaps(names: Sequence[str | None]) -> list[tuple[str | None, str | None]]:
    """Return the ordered pairs (A, B) for A → B → A: all, or neighbours only if there are many."""
    if len(names) <= _MOST_FOR_ALL_PAIRS:
        return list(permutations(names, 2))
    ring = [(name, names[(index + 1) % len(names)]) for index, name in enumerate(names)]
    # each adapter runs before and after another one
    return [pair for first, second in ring for pair in ((first, second), (second, first))]


def check_swap(run: Run, case: Case, first: str | None, second: str | None) -> Finding:
    """Verify that the second result of A in A → B → A is bit-identical to the first."""
    before = run(case.arrays, first)
    run(case.arrays, second)
    after = run(case.arrays, first)
    changed = _changed(before, after)
    subject = f"{first or BASE} → {second or BASE} → {first or BASE}"
    detail = f"changed: {', '.join(changed)}" if changed else "every output, bit-exact"
    return Finding.tested("swap", subject, not changed and bool(before), detail)


def check_native(adapter: str, fed: Arrays, native: Arrays) -> Finding:
    """Verify that an adapter loaded by ONNX Runtime gives the same bits as its tensors fed as inputs."""
    changed = _changed(fed, {name: value for name, value in native.items() if name in fed})
    detail = f"different: {', '.join(changed)}" if changed else "every output, bit-exact"
    return Finding.tested("active adapter", adapter, not changed and bool(fed), detail)


def _changed(before: Arrays, after: Arrays) -> list[str]:
    names = sorted(before.keys() | after.keys())
    return [name for name in names if not same_bits(before.get(name), after.get(name))]


def check_row_order(run: Run, case: Case, adapter: str | None, budgets: Budgets) -> Finding:
    """Verify that reversing the rows of a batch reverses the outputs, within the budget."""
    rows = case.batch

    def has_rows(value: np.ndarray) -> bool:
        return value.ndim > 0 and len(value) == rows

    plain = run(case.arrays, adapter)
    arrays = {name: value[::-1].copy() if has_rows(value) else value for name, value in case.arrays.items()}
    reverse, compared, faults = run(arrays, adapter), 0, list[str]()
    for name, expected in plain.items():
        if has_rows(expected):
            compared += 1
            differences = compare(reverse[name][::-1], expected, budgets(adapter, name, expected)).faults
            faults += [f"{name}: {'; '.join(differences)}"] if differences else []
    detail = "; ".join(faults) or f"every output of {number_of(rows, 'row')}, within the budget"
    return Finding.tested("row order", adapter or BASE, bool(compared) and not faults, detail)


def check_apart(run: RunRows, case: Case, chosen: Sequence[str | None], budgets: Budgets) -> Finding:
    """Verify that every row of a mixed batch matches its result in a batch of one adapter, within the budget."""
    together, compared, faults = run(case.arrays, chosen), 0, list[str]()
    for row, name in enumerate(chosen):
        alone = run({key: array[row : row + 1] for key, array in case.arrays.items()}, [name])
        for output, expected in alone.items():
            if len(together[output]) == len(chosen) and len(expected) == 1:
                compared += 1
                faults += _faults(output, together[output][row : row + 1], expected, name, budgets)
    detail = "; ".join(faults) or "each row matches its own batch, within the budget"
    subject = ", ".join(name or BASE for name in chosen)
    return Finding.tested("rows of a batch", subject, bool(compared) and not faults, detail)


def check_fan_out(graph: Graph, case: Case, names: Sequence[str | None], budgets: Budgets) -> Finding:
    """Verify that every text, run through several adapters in one call, matches a call per adapter."""
    count, compared, faults = case.batch, 0, list[str]()
    rows, chosen = np.tile(np.arange(count), len(names)), [name for name in names for _ in range(count)]
    feeds = FANOUT.rows_of(graph, case.arrays, rows, chosen)
    together = run_session(graph.bundle.session(graph.file, graph.level), feeds)
    for at, name in enumerate(names):
        for output, expected in graph.run(case.arrays, (name,) * count).items():
            if len(together[output]) == len(rows):
                compared += 1
                faults += _faults(output, together[output][at * count :][:count], expected, name, budgets)
    detail = "; ".join(faults) or f"texts per adapter: {count}, as in separate calls, within the budget"
    subject = ", ".join(name or BASE for name in names)
    return Finding.tested("fan-out", subject, bool(compared) and not faults, detail)


def _faults(output: str, actual: np.ndarray, expected: np.ndarray, adapter: str | None, budgets: Budgets) -> list[str]:
    """Return the faults of one output; masked classes must be masked on both sides and do not affect the scale."""
    hidden = expected < MASK_BELOW if expected.dtype.kind == "f" else np.zeros(expected.shape, bool)
    if actual.shape == expected.shape and hidden.any():
        if not (actual[hidden] < MASK_BELOW).all():
            return [f"{output}: a class outside the adapter's labels is not masked"]
        actual, expected = (np.where(hidden, np.zeros_like(side), side) for side in (actual, expected))
    return [f"{output}: {fault}" for fault in compare(actual, expected, budgets(adapter, output, expected)).faults]


def check_weights_apart(
    run: Callable[[Mapping[str, np.ndarray]], Arrays], record: MixRecord, tensors: Weights, golden: Golden
) -> None:
    """Check that the weights of one row do not affect others: every second row has the adapter's, the rest zeros.

    `run` is the graph with slots, from inputs and tensors to outputs; `tensors` and `golden` belong to the adapter.

    Raises:
        BaseModelError: they do affect other rows, as when tokens come before the batch and no shape reveals it.
    """
    for case, outputs in zip(golden.cases, golden.outputs, strict=True):
        for first in range(2) if case.batch > 1 else ():
            mask = (np.arange(case.batch) % 2 == first).astype(np.float32)[:, None]
            try:
                feeds = {**case.arrays, **tensors, **{slot: mask * tensors[slot] for slot in record.slots}}
                computed = golden.stored(run(feeds))
                by_row = {name: value for name, value in outputs.items() if len(value) == case.batch}
                results = [
                    compare(computed[name][first::2], by_row[name][first::2], golden.budgets[name]) for name in by_row
                ]
                faults = [fault for result in results for fault in result.faults]
            except RequestError as error:
                faults = [str(error.found)]
            if faults:
                raise BaseModelError(
                    "the batch is not the first axis where a fusion acts, so rows cannot have separate weights",
                    found=faults[0],
                    fix="compose the adapters with fixed weights: `adapter-export compose average`",
                )


def measure_padding(bundle: OpenedBundle) -> Manifest:
    """Return the manifest with the measured effect of padding: a row of 5 tokens is compared with it padded to 9."""
    return _measure_padding(bundle.manifest, bundle.run_slots)


def check_proofs(bundle: OpenedBundle) -> Iterator[Finding]:
    """Measure the effect of padding and zeros again, and verify that it matches the manifest exactly."""
    manifest, measured, bank = bundle.manifest, measure_padding(bundle), bundle.manifest.bank
    counting = set(measured.counts_padding) - set(manifest.counts_padding)
    before, after = ((record.padding_neutral, *record.counts_padding) for record in (manifest, measured))
    passed = before == after
    wrong = f"padding changes `{'`, `'.join(sorted(counting)) or BASE}`, which the manifest does not record"
    if measured.padding_neutral and not counting:
        wrong = "padding changes less than the manifest records (`padding_neutral`, `counts_padding`)"
    yield Finding.tested("padding", BASE, passed, "matches the manifest" if passed else wrong)
    if bank is not None:
        passed = not bank.fillable or is_fillable(bundle.plan)
        detail = "matches the manifest" if passed else "zero-padding narrower tensors changes a result"
        yield Finding.tested("width padding", BASE, passed, detail)


def _measure_padding(manifest: Manifest, run: RunAll) -> Manifest:
    """Measure with random tensors in all slots at once; find the affected adapters only if padding changes a result."""
    heads = {head.graph: head.output for head in manifest.heads}
    base = {record.name for record in manifest.base_outputs}
    tensors = _random_tensors(manifest)
    unknown = replace(manifest, padding_neutral=False, counts_padding=())
    trial = padding_trial(manifest.inputs, manifest.base_outputs, manifest.lengths)
    if trial is None:
        return unknown
    try:
        if not _changes(trial, manifest, run, [(tensors, base | set(heads.values()))])[0]:
            return replace(unknown, padding_neutral=True)
        variants: list[tuple[Weights, set[str]]] = [({}, base)]
        graphs = list(dict.fromkeys(slot.graph for slot in manifest.slots))
        for graph in graphs:
            of_graph = {slot.name: tensors[slot.name] for slot in manifest.slots if slot.graph == graph}
            variants.append((of_graph, base | {heads[graph]} if graph in heads else base))
        of_base, *of_graphs = _changes(trial, manifest, run, variants)
    except RequestError:  # the base does not accept these lengths
        return unknown
    counting = tuple(graph for graph, changes in zip(graphs, of_graphs, strict=True) if changes)
    if of_base or not counting:
        return unknown
    return replace(unknown, padding_neutral=True, counts_padding=counting)


def _changes(
    trial: PaddingTrial, manifest: Manifest, run: RunAll, variants: Sequence[tuple[Weights, Collection[str]]]
) -> list[bool]:
    """Return for each set of tensors whether padding changes any output."""
    results = run([{**arrays, **tensors} for tensors, _ in variants for arrays in trial.runs])
    each = len(trial.runs)
    return [
        trial.changes(results[at * each : (at + 1) * each], outputs, manifest.base_precision)
        for at, (_, outputs) in enumerate(variants)
    ]


def _random_tensors(manifest: Manifest) -> Weights:
    """Return random numbers for every slot, with free widths of 1; the row axis of fusion weights is not a width."""
    by_row = {name for adapter in manifest.adapters if adapter.mix is not None for name in adapter.mix.slots}
    rng = np.random.default_rng(0)
    tensors = {}
    for slot in manifest.slots:
        shape = tuple(_WIDTH if isinstance(axis, str) else axis for axis in slot.axes)
        shape = (1, *shape[1:]) if slot.name in by_row else shape
        tensors[slot.name] = (_STD * rng.standard_normal(shape)).astype(np.float32)
    return tensors

"""Recompute the facts in the manifest from the graph, the adapters and the golden vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import onnx_ir as ir
import onnxruntime as ort

from adapter_export.bundle.bundle_reader import OpenedBundle
from adapter_export.bundle.golden.golden_vectors import Case, Golden, case_of, scale
from adapter_export.bundle.report import BASE
from adapter_export.dtypes import FLOAT_TYPES
from adapter_export.errors import RequestError
from adapter_export.format.check_report import Finding, Status
from adapter_export.format.derivation import DERIVATION_FILE
from adapter_export.format.generation import GenerationRecord
from adapter_export.format.manifest import InputRecord, OutputRecord, SiteRecord, token_axis
from adapter_export.format.manifest_json import MANIFEST_FILE
from adapter_export.numerics.budget import MOST_AMPLIFIED
from adapter_export.numerics.sample_inputs import input_cases
from adapter_export.onnx_backend.base.onnx_base import OnnxBase, embedding_rows
from adapter_export.onnx_backend.rewrite.bank_graph import bank_tensors, is_fillable
from adapter_export.onnx_backend.rewrite.insert import NODE_PATH_KEY, site_values
from adapter_export.onnx_backend.rewrite.surgery import NODE_SITE_KEY
from adapter_export.onnx_backend.slots import SlotPlan, adapter_output, head_records, head_sums
from adapter_export.runtime.check_inputs import check_inputs
from adapter_export.runtime.generation.text_writer import CONFIG_FILE, end_tokens, padding_token
from adapter_export.safe_io.regular_files import read_bytes
from adapter_export.sites.site import SUBLAYERS
from adapter_export.tables import number_of, verb_for

_FOLDERS = ("adapters/", "golden/", DERIVATION_FILE)
"""Where a bundle has the files of adapters, of golden data and of the derivation."""

_ROUNDING = 1e-6
_DRAWN = 4.0
"""Factor by which the measured amplification may differ between two sets of inputs."""

Measured = Mapping[tuple[str | None, str], float]
"""Budget that a reference was measured to need, as a fraction of the output's scale, by adapter and output."""

Again = Callable[[Golden], Mapping[str, float]]
"""Function that measures the budget a reference needs for the inputs of golden vectors, by output."""


def check_manifest(
    bundle: OpenedBundle, measured: Measured, again: Again | None = None, *, quick: bool
) -> Iterator[Finding]:
    """Compare every fact in the manifest that clients rely on; `measured` is empty without a reference."""
    manifest, model = bundle.manifest, bundle.slots_model
    plan = bundle.plan
    heads, computing = head_sums(plan, bundle.base_outputs), bundle.numerics
    facts: list[tuple[str, object, object]] = [
        ("base_precision", manifest.base_precision, computing.precision.name),
        ("batch_invariant", manifest.batch_invariant, bundle.batch_invariant),
        ("opset", manifest.opset, model.opset_imports.get("")),
        ("minimum_onnxruntime", manifest.minimum_onnxruntime, oldest_runtime(model)),
        ("slots", manifest.slots, plan.slots),
        ("heads", manifest.heads, head_records(heads)),
    ]
    if manifest.bank is not None:
        names = {record.name for record in manifest.adapters}
        facts += [
            ("bank.tensors", manifest.bank.tensors, bank_tensors(plan, heads)),
            ("bank.fillable", manifest.bank.fillable, is_fillable(plan)),
            ("bank.rows", sorted(manifest.bank.rows[1:], key=str), sorted(names & set(manifest.bank.rows))),
        ]
    tables = {value.name: list(embedding_rows(value)) for value in model.graph.inputs}
    for words in manifest.inputs:  # exactly the vocabulary of the base is accepted
        if rows := tables.get(words.name):
            limit = words.limit if words.limit in rows else min(rows)
            facts.append((f"inputs.{words.name}.limit", words.limit, limit))
    for record in manifest.adapters:
        adapter, place = bundle.source(record.name), f"adapters.{record.name}"
        facts += [
            (f"{place}.kind", record.kind, adapter.kind),
            (f"{place}.parameters", record.parameters, adapter.cost().parameters),
            (f"{place}.output", record.output, adapter_output(heads, adapter)),
        ]
    for key, recorded, computed in facts:
        yield _fact(key, recorded, computed)
    yield _axes(bundle)
    yield _files(bundle)
    yield from _lengths(bundle)
    yield from _sites(manifest.sites, model)
    yield from _golden(bundle, measured, again, quick=quick)


def check_generation(bundle: OpenedBundle, model: GenerationRecord | None) -> Iterator[Finding]:
    """Compare settings of text generation with those of onnxruntime-genai's file, and with those of the model.

    Args:
        bundle: the bundle.
        model: the settings of the model; `None` if unknown.
    """
    record, config = bundle.manifest.generation, bundle.home / CONFIG_FILE
    if record is not None and CONFIG_FILE in {file.path for file in bundle.manifest.files}:
        data = read_bytes(config)
        yield _fact("generation.end", sorted(record.end), sorted(end_tokens(data, config)), f"`{CONFIG_FILE}`")
        yield _fact("generation.padding", record.padding, padding_token(data, config), f"`{CONFIG_FILE}`")
    if model is not None:
        yield _fact("generation", record, model, "the settings of the model")


def _axes(bundle: OpenedBundle) -> Finding:
    """Verify that axes with one name in the graph have one name in the manifest: clients compare their lengths."""
    graph, manifest = bundle.slots_model.graph, bundle.manifest
    shapes = {value.name: value.shape or () for value in (*graph.inputs, *graph.outputs)}
    records: Sequence[InputRecord | OutputRecord] = (*manifest.inputs, *manifest.outputs)
    names: dict[str, dict[object, str]] = {}
    for record in records:
        for axis, dim in zip(record.axes, shapes.get(record.name, ()), strict=False):
            if isinstance(dim, ir.SymbolicDim) and dim.value is not None:
                names.setdefault(dim.value, {}).setdefault(axis, record.name)
    apart = [
        f"`{dim}` of the graph is {', '.join(f'`{axis}` in `{place}`' for axis, place in places.items())}"
        for dim, places in names.items()
        if len(places) > 1
    ]
    return Finding(
        "manifest",
        "axes",
        "axes with one name in the graph have one name in the manifest",
        "failed" if apart else "exact",
        f"{MANIFEST_FILE}: inputs, outputs",
        "; ".join(apart) or f"{number_of(len(names), 'name')} {verb_for(len(names), 'match')} the graph",
    )


def _files(bundle: OpenedBundle) -> Finding:
    """Verify that the manifest names each file of adapters, of golden data and of the derivation: none was dropped."""
    manifest = bundle.manifest
    named_files = {*manifest.golden.files, manifest.golden_texts, manifest.golden_batches, manifest.derivation}
    named_files |= {None if manifest.media is None else manifest.media.golden}
    named_files |= {None if manifest.chat is None else manifest.chat.golden}
    for record in manifest.adapters:
        named_files |= {record.onnx_adapter, record.safetensors, record.baked, *record.golden.files}
    sources = tuple(f"{record.source}/" for record in manifest.adapters)
    unnamed = [
        file.path
        for file in manifest.files
        if file.path.startswith(_FOLDERS) and file.path not in named_files and not file.path.startswith(sources)
    ]
    return Finding(
        "manifest",
        "files",
        "the manifest names every file of adapters, golden data and the derivation",
        "failed" if unnamed else "exact",
        f"{MANIFEST_FILE}: files",
        f"not named: {', '.join(unnamed)}" if unnamed else number_of(len(manifest.files), "file"),
    )


def _accepted(bundle: OpenedBundle, golden: Golden) -> Finding:
    """Verify that clients accept the inputs of golden vectors, by the lengths and limits in the manifest."""
    manifest, refused = bundle.manifest, list[str]()
    for case in golden.cases:
        try:
            check_inputs(case.arrays, manifest.inputs, manifest.lengths)
        except RequestError as error:
            refused.append(f"{case.name}: {error}")
    return Finding(
        "golden",
        f"{golden.adapter or BASE}/accepted",
        "clients accept the inputs of golden vectors",
        "failed" if refused else "exact",
        f"{MANIFEST_FILE}: inputs, lengths",
        refused[0] if refused else number_of(len(golden.cases), "case"),
    )


def _lengths(bundle: OpenedBundle) -> Iterator[Finding]:
    """Verify that the bundle accepts texts as long as its golden texts, which were cut at its maximum length."""
    manifest, texts = bundle.manifest, bundle.texts()
    axis, most = token_axis(manifest.inputs), manifest.max_tokens
    if texts is None or axis is None or most is None:
        return
    # a set may have been removed
    longest = max((len(text.ids) for text_set in texts.sets for text in text_set.texts), default=0)
    yield Finding(
        "manifest",
        "lengths",
        "texts may be as long as the golden texts",
        "exact" if longest <= most else "failed",
        f"{MANIFEST_FILE}: lengths.{axis}",
        f"maximum {most} tokens; longest golden text {longest}",
    )


def _fact(key: str, actual: object, expected: object, by: str = "the graph and the adapters") -> Finding:
    same = actual == expected or (key == "minimum_onnxruntime" and expected == str(ort.__version__))
    detail = f"matches {by}" if same else f"is {_shown(actual, expected)}, but {by} give {_shown(expected, actual)}"
    claim = f"`{key}` in the manifest is correct"
    return Finding("manifest", key, claim, "exact" if same else "failed", f"{MANIFEST_FILE}: {key}", detail)


def _shown(value: object, other: object) -> str:
    """Return a value, or the first item of a list that the other list does not have at its position."""
    if isinstance(value, tuple) and isinstance(other, tuple):
        apart = (element for at, element in enumerate(value) if at >= len(other) or other[at] != element)
        return f"{next(apart, 'fewer')}"
    return f"`{value}`"


def _sites(sites: Iterable[SiteRecord], model: ir.Model) -> Iterator[Finding]:
    """Compare sites that have slots with the nodes and metadata of the graph with slots."""
    values = {name: set(read.values()) for name, read in site_values(model).items()}
    paths = {
        node.metadata_props[NODE_SITE_KEY]: node.metadata_props[NODE_PATH_KEY]
        for node in model.graph.all_nodes()
        if NODE_SITE_KEY in node.metadata_props and NODE_PATH_KEY in node.metadata_props
    }
    wrong = [
        f"`{site.name}` {what} `{recorded}`"
        for site in sites
        for what, recorded, known in (
            ("at", site.tensor, values.get(site.name)),
            ("path", site.path, {paths.get(site.name)}),
        )
        if known and known != {None} and recorded not in known
    ]
    detail = f"differs from the nodes of the graph: {', '.join(wrong)}" if wrong else "matches the nodes of the graph"
    where = f"{MANIFEST_FILE}: sites"
    yield Finding(
        "manifest",
        "sites",
        "sites with slots are at the nodes recorded in the manifest",
        "failed" if wrong else "exact",
        where,
        detail,
    )


def check_sites(bundle: OpenedBundle, base: OnnxBase, model: ir.Model) -> Finding:
    """Compare all sites with those found in the model."""
    recorded, exported = bundle.manifest.sites, tuple(site_records(base, bundle.plan, model))
    finding = _fact("sites of the model", recorded, exported, "the sites of the model")
    apart = [f"`{site.name}`" for site in recorded if site not in exported]
    return finding if recorded == exported else replace(finding, where=f"{finding.where}: {', '.join(apart)}")


def site_records(base: OnnxBase, plan: SlotPlan, model: ir.Model) -> Iterator[SiteRecord]:
    """Return the sublayers, and the other sites that have slots."""
    values = site_values(model)
    for site in base.sites:
        groups = plan.at(site.name)
        if groups or site.role in SUBLAYERS:
            tensor = values[site.name][groups[0].graph.replaces] if groups else site.h
            yield SiteRecord(site.name, site.role, site.layer, site.width, site.path, tensor)


def _golden(bundle: OpenedBundle, measured: Measured, again: Again | None, *, quick: bool) -> Iterator[Finding]:
    """Verify that golden vectors have every case of the build, and budgets that the computation explains."""
    manifest, derivation = bundle.manifest, bundle.derivation()
    owed, kinds = manifest.golden.cases if derivation is None else derivation.golden, set[str]()
    if derivation is None:
        cases = input_cases(manifest.inputs, seed=0, lengths=manifest.lengths, max_tokens=manifest.max_tokens)
        kinds = _kinds([case_of(case.name, case.arrays, manifest.inputs) for case in cases])
    for name in bundle.names:
        golden, where = bundle.golden(name), f"golden vectors of `{name or BASE}`"
        stored = {case.name for case in golden.cases}
        lacking = [case for case in owed if case not in stored] + sorted(kinds - _kinds(golden.cases))
        detail = f"without {', '.join(lacking)}" if lacking else number_of(len(golden.cases), "case")
        yield Finding(
            "golden",
            f"{name or BASE}/cases",
            "golden vectors contain the cases of the build",
            "failed" if lacking else "exact",
            where,
            detail,
        )
        yield _accepted(bundle, golden)
        for output in golden.budgets:
            yield _allowance(bundle, golden, output, measured.get((name, output)), again, quick=quick)


def _kinds(cases: Sequence[Case]) -> set[str]:
    """Return the kinds of cases, and `several rows` if any case has more than one row."""
    several = {"several rows" for case in cases if case.batch > 1}
    return several | {"padding" for case in cases if case.real is not None}


def _allowance(
    bundle: OpenedBundle, golden: Golden, output: str, measured: float | None, again: Again | None, *, quick: bool
) -> Finding:
    """Compare the budget of golden vectors with the formula, or with the measured effect of rounding."""
    arrays, recorded = [outputs[output] for outputs in golden.outputs], golden.budgets[output].absolute
    largest = max(map(scale, arrays))
    most = MOST_AMPLIFIED * largest if arrays[0].dtype.name in FLOAT_TYPES else 0.0
    name = golden.adapter or BASE
    claim = f"`{output}` of `{name}` has a budget that its computation explains"
    where = f"{MANIFEST_FILE}: golden.absolute of `{name}`, `{output}`"

    def finding(status: Status, detail: str) -> Finding:
        return Finding("golden", f"{name}/allowance/{output}", claim, status, where, detail)

    if quick and recorded <= most:  # the graph is not analysed
        return finding("tested", f"{recorded:.1e}, less than the effect of rounding")
    budget = bundle.allowance(golden.cases).budget(*arrays)
    if recorded <= budget.absolute * (1 + _ROUNDING):
        return finding("exact", f"{recorded:.1e}, recomputed")
    limit = most if measured is None else min(most, _DRAWN * measured * largest)
    if limit < recorded <= most and again is not None:  # other inputs may amplify rounding far less
        limit = max(limit, min(most, _DRAWN * again(golden)[output]))
    if recorded > limit * (1 + _ROUNDING):
        expected = f"the computation explains {max(budget.absolute, limit):.1e}"
        return finding("failed", f"allows {recorded:.1e}, but {expected}")
    if measured is None:
        reason = f"{recorded:.1e} exceeds the formula's {budget.absolute:.1e}: only the model shows whether"
        return finding("unverified", f"{reason} rounding has this effect")
    return finding("tested", f"{recorded:.1e}, the measured effect of rounding on the reference")


# The oldest ONNX Runtime that computes a graph correctly; each rule was tested with released versions.

_OPSETS = {22: "1.21", 23: "1.24"}
"""Opsets, and the oldest supported runtime with all operators of each: 1.23 lacks some of opset 23."""

_BYTES = "1.23"
"""`MatMulNBits` with 8 bits: 1.21 rejects it, 1.22 fails when it runs."""

_BIASED = "1.22"
"""Fused attention with a bias for each row of the batch: 1.21 silently reads the wrong one."""

_BIAS = {"Attention": 5, "MultiHeadAttention": 5}


def oldest_runtime(model: ir.Model) -> str:
    """Return the version, such as `1.21`; the installed one for an opset that was not tested with an older one."""
    opset = model.opset_imports.get("", 0)
    needed = [next((version for newest, version in _OPSETS.items() if opset <= newest), str(ort.__version__))]
    for node in model.graph.all_nodes():
        if node.op_type == "MatMulNBits" and node.attributes.get_int("bits", 4) > 4:
            needed.append(_BYTES)
        at = _BIAS.get(node.op_type) if node.domain == "com.microsoft" else None
        if at is not None and at < len(node.inputs) and node.inputs[at] is not None:
            needed.append(_BIASED)
    return max(needed, key=lambda version: tuple(map(int, version.split("."))))

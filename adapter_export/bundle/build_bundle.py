"""Build a bundle: one graph with slots, the base's weights, small adapter files, golden vectors, a manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from adapter_export.bundle.golden import Allowance, Golden, GoldenMaker, OnStep, case_of, check_caches, silent
from adapter_export.bundle.golden_batches import BatchMaker, padding_by_name
from adapter_export.bundle.golden_media import MediaMaker, check_media
from adapter_export.bundle.opened import OpenedBundle
from adapter_export.bundle.proof.exact_tensors import Origin
from adapter_export.bundle.proof.invariants import with_padding
from adapter_export.bundle.proof.manifest_checks import oldest_runtime, site_records
from adapter_export.bundle.proof.prove import prove_new
from adapter_export.bundle.recorded_runs import Recording
from adapter_export.bundle.report import BASE
from adapter_export.bundle.separation import remarks, with_separation
from adapter_export.bundle.texts import TextMaker
from adapter_export.bundle.variants import VARIANTS
from adapter_export.bundle.variants.variant import GraphDraft
from adapter_export.bundle.write import BundleWriter, check_bases, check_names, check_texts, model_version
from adapter_export.dtypes import AdapterPrecision
from adapter_export.errors import AdapterError, BaseModelError, UsageError, argument, quoted
from adapter_export.format.axes import narrowed
from adapter_export.format.derivation import DERIVATION_FILE, write_derivation
from adapter_export.format.golden_texts import GoldenTexts
from adapter_export.format.manifest import (
    GRAPH_VARIANTS,
    Manifest,
    OutputRecord,
    TextRecord,
    VariantName,
    token_lengths,
)
from adapter_export.format.manifest_json import MANIFEST_FILE, MANIFEST_VERSION
from adapter_export.format.media import CapturedMedia
from adapter_export.graph.adapter import Adapter
from adapter_export.graph.graph import first_free
from adapter_export.graph.slot_form import rounded
from adapter_export.numerics.budget import extent
from adapter_export.numerics.runner import Runner
from adapter_export.numerics.sample_inputs import InputCase
from adapter_export.onnx_backend.base.external import WEIGHTS_FILE
from adapter_export.onnx_backend.base.flow import flow_graph
from adapter_export.onnx_backend.base.length_probe import axes
from adapter_export.onnx_backend.base.onnx_base import OnnxBase, numerics
from adapter_export.onnx_backend.rewrite.checksums import (
    CHECKSUMS,
    SlotChecksums,
    add_checksums,
    without_checksums,
)
from adapter_export.onnx_backend.rewrite.insert import insert_slots
from adapter_export.onnx_backend.slots import Reserved, adapter_output, head_records, head_sums, plan_slots
from adapter_export.safe_io.output import Output
from adapter_export.safe_io.regular_files import read_bytes, sha256_of
from adapter_export.text import Tokenizer, tokenizer_digest
from adapter_export.version import __version__

TOKENIZER_FILE = "tokenizer.json"

_LATER = (MANIFEST_FILE, DERIVATION_FILE, "adapters", "golden")
"""What is written when the graphs and the base's own files are there."""


def build_bundle(
    base: OnnxBase,
    adapters: Sequence[Adapter],
    out: Path,
    *,
    references: Runner,
    cases: Sequence[InputCase],
    base_head: str | None = None,
    tokenizer: str | None = None,
    max_tokens: int | None = None,
    own_texts: GoldenTexts | None = None,
    media: CapturedMedia | None = None,
    kept: Mapping[str, Path | bytes] | None = None,
    origin: Origin | None = None,
    allow_base_mismatch: bool = False,
    copy_weights: bool = False,
    variants: Sequence[VariantName] | None = None,
    bake: Sequence[str] = (),
    reserved: Sequence[Reserved] = (),
    precisions: Mapping[str, AdapterPrecision] | None = None,
    checksums: bool = False,
    force: bool = False,
    progress: OnStep | None = None,
    note: OnStep | None = None,
) -> Manifest:
    """Build a bundle, and verify it against its golden vectors in ONNX Runtime before it takes its place.

    `base_head` names the adapter that is the base head, if there is one. `references` computes the golden
    vectors of `cases`; it is never the exported graph. `tokenizer` is the text of a `tokenizer.json`, `own_texts`
    what the model's own library makes of golden texts, where that is known, `media` what its processor does with
    images or audio, and `kept` more files, by name, that another program needs. `origin` says what
    the base was made of: by default of the graph's own constants. `variants` are the graphs to
    write beside the one with slots: all if not given, without a bank where there cannot be one. `note` is told of
    that, and of adapters that change nothing. The adapters in `bake` get a graph of their own, in which they are
    constant. `reserved` gets slots beside those of the adapters, for adapters that will be added. Adapters named in
    `precisions` are rounded to what their files hold then, and everything is computed with what is left of them.
    With `checksums`, the graphs show which tensors they received.

    Raises:
        UsageError: there are no adapters, a tokenizer for a base that does not say how many tokens it takes, without
            `max_tokens`, or an unknown name in `bake`.
        AdapterError: two adapters have one name, or an adapter does not fit; `BaseMismatchError` is a kind of it.
        NotNeutralError: an adapter cannot share a graph with others.
        BaseModelError: the base cannot be exported.
        ParityError: the exported graph does not compute what the reference computes.
        OutputExistsError: `out` exists and `force` is not given.
        WriteError: the operating system refused a write. Nothing stays behind then, nor after any other error.
    """
    lengths = narrowed(base.inputs, base.lengths, max_tokens)
    if lengths is None:
        found, expected = max_tokens, str(token_lengths(base.inputs, base.lengths))
        raise UsageError(
            "fewer tokens than the base takes", where=argument("max_tokens"), found=found, expected=expected
        )
    tokens = token_lengths(base.inputs, lengths)
    _check_request(adapters, bake, tokenizer, tokens.maximum)
    check_bases(adapters, base.fingerprint, allow_mismatch=allow_base_mismatch)
    stored = precisions or {}
    adapters = [rounded(adapter, stored.get(adapter.name, "float32")) for adapter in adapters]
    if tokenizer is not None and tokens.maximum is not None:
        check_texts(adapters, tokenizer_digest(tokenizer), tokens.maximum)
    if media is not None:
        check_media(adapters, media.record)
    plan, progress = plan_slots(adapters, base.sites, reserved), progress or silent
    names = [record.name for record in base.outputs]
    with Output(out, force).folder() as folder, ThreadPoolExecutor(1) as pool:
        writer = BundleWriter(folder, plan, head_sums(plan, names), model_version(base, plan))
        progress(f"putting {len(plan.slots)} slots into the graph")
        model, sums = insert_slots(base, plan), None
        if checksums:
            sums = SlotChecksums(first_free(CHECKSUMS, [*names, *(h.output for h in writer.heads)]), plan, base.inputs)
            model = add_checksums(model, plan.slots, sums.output, base.inputs)
        model.model_version = writer.model_version
        draft = GraphDraft(folder, plan, writer.heads, adapters, model, sums, bake, copy_weights)
        _write_graphs(draft, base, variants, progress, note or silent)
        weights = folder / WEIGHTS_FILE
        hashed = pool.submit(sha256_of, weights) if weights.exists() else None  # seconds for a large base
        _keep(kept or {}, folder, _LATER if media is None else (*_LATER, media.record.processor))
        sample = [case_of(case.name, case.arrays, base.inputs) for case in cases]
        analysed = extent(flow_graph(model if sums is None else without_checksums(model, sums.output)))
        allowance = Allowance.of(analysed, sample, numerics(base.model).stored)
        maker = GoldenMaker(references, sample, names, allowance, base.fingerprint, sums)

        def golden(adapter: Adapter | None) -> Golden:
            name = BASE if adapter is None else adapter.name
            progress(f"computing golden vectors of `{name}` with {references.description}")
            made = maker.make(adapter, adapter_output(writer.heads, adapter))
            check_caches(made, base.inputs)
            return made

        pairs = [(adapter, golden(adapter)) for adapter in adapters]
        headed = next((vectors for adapter, vectors in pairs if not adapter.placements), None)  # the base, and a head
        base_vectors = golden(None) if headed is None else maker.of_base(headed)
        of_base = writer.golden(base_vectors)
        records = [
            writer.adapter(adapter, vectors, draft.baked.get(adapter.name), stored.get(adapter.name, "float32"))
            for adapter, vectors in pairs
        ]
        text = None
        if tokenizer is not None:
            (folder / TOKENIZER_FILE).write_text(tokenizer, encoding="utf-8", newline="")
            text = TextRecord(TOKENIZER_FILE, tokenizer_digest(tokenizer))
        if media is not None:
            (folder / media.record.processor).write_text(media.processor, encoding="utf-8", newline="")
            if media.golden is not None:
                progress(f"answering golden media with {references.description}")
                answering = MediaMaker(media.record, names, references, allowance)
                writer.media(answering.sets(media.golden, pairs, writer.heads))
        derivation = (origin or Origin.of(base)).derivation(model, of_base.cases)
        write_derivation(derivation, folder / DERIVATION_FILE)
        added, computing = {head.output for head in writer.heads}, numerics(model)
        added |= set() if sums is None else {sums.output}
        outputs = (OutputRecord(value.name or "", "float32", axes(value)) for value in model.graph.outputs)
        manifest = Manifest(
            version=MANIFEST_VERSION,
            producer=f"adapter-export {__version__}",
            minimum_onnxruntime=oldest_runtime(model),
            opset=base.opset,
            base=base.fingerprint,
            base_precision=computing.precision,
            batch_invariant=computing.batch_invariant,
            padding_neutral=False,
            counts_padding=(),
            graphs={name: VARIANTS[name].file for name in GRAPH_VARIANTS if (folder / VARIANTS[name].file).exists()},
            inputs=base.inputs,
            lengths=lengths,
            outputs=(*base.outputs, *(output for output in outputs if output.name in added)),
            sites=tuple(site_records(base, plan, model)),
            slots=plan.slots,
            adapters=tuple(records),
            golden=of_base,
            text=text,
            files=(),
            bank=draft.bank,
            fanout=draft.fanout,
            heads=head_records(writer.heads),
            model_version=writer.model_version,
            head=base_head,
            media=None if media is None else media.record,
            derivation=DERIVATION_FILE,
            checksums=None if sums is None else sums.output,
        )
        opened = OpenedBundle(folder, manifest, staged=True)
        opened.extent = analysed
        opened.manifest = replace(opened.manifest, batch_invariant=opened.batch_invariant)
        manifest = with_padding(opened) if base.pads or tokens.unbroken else opened.manifest
        pads = padding_by_name(manifest, plan, adapters)
        if tokenizer is not None and tokens.maximum is not None:
            progress(f"computing golden texts with {references.description}")
            reader = Tokenizer.from_json(tokenizer, tokens.maximum, manifest.fit)
            reading = TextMaker(reader, own_texts, base.inputs, names, references, allowance, pads)
            manifest = replace(manifest, golden_texts=writer.texts(reading.all(pairs, writer.heads)))
        progress(f"computing golden batches with {references.description}")
        joining = BatchMaker(manifest, references, allowance, pads, opened)
        batches = writer.batches(joining.make(base_vectors, pairs, writer.heads))
        opened.manifest = replace(manifest, golden_batches=batches)
        progress("measuring the separation of golden data")
        opened.manifest = with_separation(opened, references, [adapter.name for adapter in adapters], writer)
        progress("verifying the bundle against its golden vectors")
        recording = Recording.of(opened)
        prove_new(opened, recording.runs)
        opened.manifest = recording.recorded(opened.manifest)
        for said in remarks(opened, [adapter.name for adapter in adapters]):
            (note or silent)(said)
        return writer.manifest(opened.manifest, {} if hashed is None else {WEIGHTS_FILE: hashed.result()})


def _check_request(
    adapters: Sequence[Adapter], bake: Sequence[str], tokenizer: str | None, max_tokens: int | None
) -> None:
    if not adapters:
        raise UsageError(
            "there is nothing to build",
            found="no adapters, and no head of the base's own",
            expected="at least one of these",
            fix=f"give some as {argument('adapters')}",
        )
    if tokenizer is not None and max_tokens is None:
        raise UsageError("a tokenizer needs the most tokens that the base takes", fix="give `max_tokens`")
    names = [adapter.name for adapter in adapters]
    check_names(names)
    unknown = quoted(name for name in bake if name not in names)
    if unknown:
        known = quoted(names)
        raise UsageError("no adapter of this name is built", where=argument("bake"), found=unknown, expected=known)


def _write_graphs(
    draft: GraphDraft, base: OnnxBase, variants: Sequence[VariantName] | None, progress: OnStep, note: OnStep
) -> None:
    """Write the variants that are wanted; where the user named none, a note says why one cannot be.

    Raises:
        AdapterError: the adapters cannot share a graph that was named.
        BaseModelError: the base cannot have one that was named.
    """
    for variant in VARIANTS.values():
        if not variant.is_wanted(variants, draft.bake):
            continue
        progress(f"writing the graph `{variant.file}`")
        try:
            variant.write(draft, base)
        except (AdapterError, BaseModelError) as error:
            if variants is not None or not variant.optional:
                raise
            note(f"without the variant `{variant.name}`: {error.message}")


def _keep(files: Mapping[str, Path | bytes], folder: Path, later: Sequence[str]) -> None:
    """Write files of the base's own, but none with a name that is there or comes `later`; the tokenizer is replaced.

    Raises:
        BaseModelError: one has the name of a file of the bundle.
    """
    for name, content in files.items():
        path = folder / name
        if name in later or path.exists():
            raise BaseModelError(
                "has a file with a name that the bundle needs", where=name, fix="rename it in the base's folder"
            )
        path.write_bytes(content if isinstance(content, bytes) else read_bytes(content))

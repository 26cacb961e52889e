"""Build a bundle: one graph with slots, the base's weights, small adapter files, golden data, a manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from adapter_export.bundle.bundle_reader import OpenedBundle
from adapter_export.bundle.golden.golden_batches import padding_by_name
from adapter_export.bundle.golden.golden_data import GoldenDataMaker, GoldenSets, add_generated_texts, prove_and_record
from adapter_export.bundle.golden.golden_media import check_media
from adapter_export.bundle.golden.golden_vectors import Allowance, Golden, GoldenMaker, case_of, choose_sketches
from adapter_export.bundle.proof.exact_tensors import Origin
from adapter_export.bundle.proof.invariants import measure_padding
from adapter_export.bundle.proof.manifest_checks import oldest_runtime, site_records
from adapter_export.bundle.variants import VARIANTS
from adapter_export.bundle.variants.variant import GraphDraft
from adapter_export.bundle.write import BundleWriter, check_bases, check_names, check_texts, model_version
from adapter_export.dtypes import AdapterPrecision
from adapter_export.errors import AdapterError, BaseModelError, UsageError
from adapter_export.format.axes import narrowed
from adapter_export.format.derivation import DERIVATION_FILE, write_derivation
from adapter_export.format.generation import CapturedChat, GenerationRecord, chat_templates_json
from adapter_export.format.golden_texts import GoldenTexts
from adapter_export.format.lengths import Lengths
from adapter_export.format.manifest import (
    GRAPH_VARIANTS,
    AdapterRecord,
    GoldenRecord,
    Manifest,
    OutputRecord,
    TextRecord,
    VariantName,
    token_lengths,
)
from adapter_export.format.manifest_json import MANIFEST_FILE, MANIFEST_VERSION, PRODUCER
from adapter_export.format.media import CapturedMedia
from adapter_export.graph.adapter import Adapter
from adapter_export.graph.graph import first_free
from adapter_export.graph.slot_form import rounded
from adapter_export.numerics.budget import Extent, extent
from adapter_export.numerics.prefix_trial import check_prefixes
from adapter_export.numerics.runner import Runner
from adapter_export.numerics.sample_inputs import InputCase
from adapter_export.onnx_backend.base.external import WEIGHTS_FILE
from adapter_export.onnx_backend.base.flow import flow_graph
from adapter_export.onnx_backend.base.length_probe import axes
from adapter_export.onnx_backend.base.onnx_base import OnnxBase, numerics
from adapter_export.onnx_backend.rewrite.checksums import CHECKSUMS, SlotChecksums, add_checksums, without_checksums
from adapter_export.onnx_backend.rewrite.insert import insert_slots
from adapter_export.onnx_backend.slots import Reserved, SlotPlan, head_records, head_sums, plan_slots
from adapter_export.reporting import SILENT, Reporter
from adapter_export.safe_io.output import Output
from adapter_export.safe_io.regular_files import read_bytes, sha256_of
from adapter_export.tables import number_of
from adapter_export.text import Tokenizer, tokenizer_digest
from adapter_export.words import argument, quoted

TOKENIZER_FILE = "tokenizer.json"

_LATER = (MANIFEST_FILE, DERIVATION_FILE, "adapters", "golden")
"""Entries written last, after the graphs and the base's files."""

Pairs = Sequence[tuple[Adapter, Golden]]
"""Adapters with their golden vectors."""


@dataclass(frozen=True)
class GraphOptions:
    """Graphs of a bundle.

    Attributes:
        variants: graphs to add to the one with slots; `None` writes the standard ones that the base allows.
        bake: adapters that get a graph in which they are constant.
        reserved: graphs of future adapters, which get slots besides those of the adapters.
        checksums: whether graphs output checksums of the tensors they received.
        copy_weights: whether to copy the base's weights instead of hard-linking them.
    """

    variants: Sequence[VariantName] | None = None
    bake: Sequence[str] = ()
    reserved: Sequence[Reserved] = ()
    checksums: bool = False
    copy_weights: bool = False


@dataclass(frozen=True)
class ModelFacts:
    """Facts about a model that its graph does not contain.

    Attributes:
        base_head: the adapter made from the base head.
        tokenizer: the text of its `tokenizer.json`.
        max_tokens: maximum text length; default: the maximum of the base.
        texts: golden texts encoded by its own library.
        media: preprocessing of images or audio.
        companions: further files for other programs, by name.
        generation: generation settings; `None` if it does not generate text.
        chat: chat templates, for a base that generates text.
        origin: origin of the base; default: the constants of its graph.
    """

    base_head: str | None = None
    tokenizer: str | None = None
    max_tokens: int | None = None
    texts: GoldenTexts | None = None
    media: CapturedMedia | None = None
    companions: Mapping[str, Path | bytes] = field(default_factory=dict)
    generation: GenerationRecord | None = None
    chat: CapturedChat | None = None
    origin: Origin | None = None


@dataclass(frozen=True)
class BuildPlan:
    """Plan of a bundle.

    Attributes:
        base: the base to store in the bundle.
        adapters: the adapters; those in `precisions` are rounded to their file precision before anything is computed.
        references: computes golden data; never the exported graph.
        cases: inputs of golden vectors.
        graphs: graphs to write.
        model: facts about the model that its graph does not contain.
        precisions: storage precision of the adapter files, by name; default: float32.
        allow_base_mismatch: whether to accept adapters trained on other weights.
    """

    base: OnnxBase
    adapters: Sequence[Adapter]
    references: Runner
    cases: Sequence[InputCase]
    graphs: GraphOptions = field(default_factory=GraphOptions)
    model: ModelFacts = field(default_factory=ModelFacts)
    precisions: Mapping[str, AdapterPrecision] = field(default_factory=dict)
    allow_base_mismatch: bool = False

    def run(self, output: Output, reporter: Reporter = SILENT) -> Manifest:
        """Build the bundle, and verify it against its golden data in ONNX Runtime before it replaces an existing one.

        Args:
            output: the folder to create.
            reporter: receives each step, and notes on graphs that cannot be written and adapters without effect.

        Raises:
            UsageError: there are no adapters, a tokenizer for a base of unknown lengths without `max_tokens`, or an
                unknown name in `bake`.
            AdapterError: two adapters have the same name, or an adapter does not fit; `BaseMismatchError` is one.
            NotNeutralError: an adapter cannot share a graph with others.
            BaseModelError: the base cannot be exported.
            ParityError: the exported graph does not match the reference.
            OutputExistsError: the output exists and may not be replaced.
            WriteError: the operating system refused a write. No files are left after this or any other error.
        """
        self._check()
        with output.folder() as folder, ThreadPoolExecutor(1) as pool:
            build = _Build(self, folder, reporter)
            build.write_graphs()
            weights = folder / WEIGHTS_FILE
            hashed = pool.submit(sha256_of, weights) if weights.exists() else None  # a large base takes seconds
            base, pairs = build.golden_vectors()
            bundle = build.open(base, pairs)
            build.write_golden_sets(bundle, base, pairs)
            manifest = prove_and_record(bundle, build.writer, self.references, build.adapters, reporter)
            # last: the manifest lists the SHA-256 of all other files
            return build.writer.manifest(manifest, {} if hashed is None else {WEIGHTS_FILE: hashed.result()})

    @cached_property
    def lengths(self) -> Mapping[str, Lengths]:
        """Lengths that the bundle accepts, by axis name.

        Raises:
            UsageError: the base does not accept texts as short as `max_tokens`.
        """
        lengths = narrowed(self.base.inputs, self.base.lengths, self.model.max_tokens)
        if lengths is None:
            raise UsageError(
                "fewer tokens than the base accepts",
                where=argument("max_tokens"),
                found=self.model.max_tokens,
                expected=str(token_lengths(self.base.inputs, self.base.lengths)),
            )
        return lengths

    @property
    def tokens(self) -> Lengths:
        """Number of tokens that a text may have."""
        return token_lengths(self.base.inputs, self.lengths)

    def _check(self) -> None:
        """Raise errors that can be found before anything is written."""
        names, tokenizer, most = [adapter.name for adapter in self.adapters], self.model.tokenizer, self.tokens.maximum
        if not names:
            raise UsageError(
                "nothing to build",
                found="no adapters given, and the base has no head",
                expected="at least one of these",
                fix="pass " + argument("adapters"),
            )
        if tokenizer is not None and most is None:
            raise UsageError("`max_tokens` is required with a tokenizer", fix="pass `max_tokens`")
        check_names(names)
        unknown = quoted(name for name in self.graphs.bake if name not in names)
        if unknown:
            raise UsageError("no adapter has this name", where=argument("bake"), found=unknown, expected=quoted(names))
        check_bases(self.adapters, self.base.fingerprint, allow_mismatch=self.allow_base_mismatch)
        if tokenizer is not None and most is not None:
            check_texts(self.adapters, tokenizer_digest(tokenizer), most)
        if self.model.media is not None:
            check_media(self.adapters, self.model.media.record)
        check_prefixes(self.references, self.base.inputs, self.adapters, most)


class _Build:
    """State of one build between its steps."""

    def __init__(self, plan: BuildPlan, folder: Path, reporter: Reporter) -> None:
        self.plan, self.folder, self.reporter = plan, folder, reporter
        self.adapters = [rounded(adapter, plan.precisions.get(adapter.name, "float32")) for adapter in plan.adapters]
        self.outputs = [record.name for record in plan.base.outputs]
        slots = plan_slots(self.adapters, plan.base.sites, plan.graphs.reserved)
        heads = head_sums(slots, self.outputs)
        self.writer = BundleWriter(folder, slots, heads, model_version(plan.base, slots))
        self.draft = self._with_slots(slots)

    def _with_slots(self, slots: SlotPlan) -> GraphDraft:
        """Insert the slots into the base's graph, and checksums if the bundle has them."""
        base, options = self.plan.base, self.plan.graphs
        self.reporter.step(f"inserting {number_of(len(slots.slots), 'slot')} into the graph")
        model, checksums = insert_slots(base, slots), None
        if options.checksums:
            names = [*self.outputs, *(head.output for head in self.writer.heads)]
            checksums = SlotChecksums(first_free(CHECKSUMS, names), slots, base.inputs)
            model = add_checksums(model, slots.slots, checksums.output, base.inputs)
        model.model_version = self.writer.model_version
        return GraphDraft(
            self.folder, slots, self.writer.heads, self.adapters, model, checksums, options.bake, options.copy_weights
        )

    def write_graphs(self) -> None:
        """Write every requested variant, and the model's files; a note names each variant that is skipped.

        Raises:
            AdapterError: the adapters cannot share a requested graph.
            BaseModelError: the base does not allow a requested graph, or a file of the model has a reserved name.
        """
        options = self.plan.graphs
        for variant in VARIANTS.values():
            if not variant.is_wanted(options.variants, options.bake):
                continue
            self.reporter.step(f"writing the graph `{variant.file}`")
            try:
                variant.write(self.draft, self.plan.base)
            except (AdapterError, BaseModelError) as error:
                if options.variants is not None or not variant.optional:
                    raise
                self.reporter.warn(f"skipped the variant `{variant.name}`: " + error.message)
        self._write_model_files()

    def _write_model_files(self) -> None:
        model, later = self.plan.model, [*_LATER]
        if model.media is not None:
            later.append(model.media.record.processor)
        if model.chat is not None:
            later.append(model.chat.record.templates)
        _keep(model.companions, self.folder, later)
        if model.chat is not None:
            (self.folder / model.chat.record.templates).write_bytes(chat_templates_json(model.chat.templates))
        if model.media is not None:
            (self.folder / model.media.record.processor).write_text(model.media.processor, "utf-8", newline="")
        if model.tokenizer is not None:  # overwrites a companion of this name, which has the same content
            (self.folder / TOKENIZER_FILE).write_text(model.tokenizer, "utf-8", newline="")

    def golden_vectors(self) -> tuple[Golden, Pairs]:
        """Return the golden vectors of the base, and of each adapter."""
        pairs = [(adapter, self.golden_data.of_adapter(adapter)) for adapter in self.adapters]
        # of an adapter that is only a head, the golden vectors of the base are a part
        heads = (golden for adapter, golden in pairs if not adapter.placements and adapter.prefix is None)
        headed = next(heads, None)
        base = self.golden_data.of_adapter(None) if headed is None else self.golden_data.vectors.of_base(headed)
        return base, pairs

    @cached_property
    def golden_data(self) -> GoldenDataMaker:
        """Maker of golden data."""
        plan = self.plan
        cases = [case_of(case.name, case.arrays, plan.base.inputs, case.seeds) for case in plan.cases]
        allowance = Allowance.of(self.extent, cases, numerics(plan.base.model).precision.activations)
        fingerprint, checksums = plan.base.fingerprint, self.draft.checksums
        sketches = choose_sketches(plan.base.outputs, plan.base.inputs, cases)
        vectors = GoldenMaker(plan.references, cases, self.outputs, allowance, fingerprint, checksums, sketches)
        return GoldenDataMaker(vectors, self.writer.heads, plan.base.inputs, self.reporter)

    @cached_property
    def extent(self) -> Extent:
        """Products of the graph with slots; those of checksums do not round."""
        model, checksums = self.draft.model, self.draft.checksums
        return extent(flow_graph(model if checksums is None else without_checksums(model, checksums.output)))

    def open(self, base: Golden, pairs: Pairs) -> OpenedBundle:
        """Write the adapter files, and open the bundle with the measured effect of rows and padding in its manifest."""
        plan, draft, writer = self.plan, self.draft, self.writer
        of_base = writer.golden(base)
        records = [
            writer.adapter(adapter, golden, draft.baked.get(adapter.name), plan.precisions.get(adapter.name, "float32"))
            for adapter, golden in pairs
        ]
        derivation = (plan.model.origin or Origin.of(plan.base)).derivation(draft.model, of_base.cases)
        write_derivation(derivation, self.folder / DERIVATION_FILE)
        bundle = OpenedBundle.open_staged(self.folder, self._manifest(of_base, records))
        bundle.extent = self.extent
        bundle.manifest = replace(bundle.manifest, batch_invariant=bundle.batch_invariant)
        if plan.base.pads or plan.tokens.unbroken:
            bundle.manifest = measure_padding(bundle)
        return bundle

    def _manifest(self, golden: GoldenRecord, adapters: Sequence[AdapterRecord]) -> Manifest:
        """Return the manifest without facts that are measured by running the bundle."""
        plan, draft, heads, files = self.plan, self.draft, self.writer.heads, dict[str, str]()
        base, model, facts = plan.base, draft.model, plan.model
        added = {head.output for head in heads} | ({draft.checksums.output} if draft.checksums else set())
        outputs = (OutputRecord(value.name or "", "float32", axes(value)) for value in model.graph.outputs)
        for name in GRAPH_VARIANTS:
            if (self.folder / VARIANTS[name].file).exists():
                files[name] = VARIANTS[name].file
        computing = numerics(model)
        tokenizer = facts.tokenizer
        return Manifest(
            version=MANIFEST_VERSION,
            producer=PRODUCER,
            minimum_onnxruntime=oldest_runtime(model),
            opset=base.opset,
            base=base.fingerprint,
            base_precision=computing.precision.name,
            batch_invariant=computing.batch_invariant,
            padding_neutral=False,
            counts_padding=(),
            graphs=files,
            inputs=base.inputs,
            lengths=plan.lengths,
            outputs=(*base.outputs, *(output for output in outputs if output.name in added)),
            sites=tuple(site_records(base, draft.plan, model)),
            slots=draft.plan.slots,
            adapters=tuple(adapters),
            golden=golden,
            text=None if tokenizer is None else TextRecord(TOKENIZER_FILE, tokenizer_digest(tokenizer)),
            files=(),
            bank=draft.bank,
            fanout=draft.fanout,
            heads=head_records(heads),
            model_version=self.writer.model_version,
            head=facts.base_head,
            media=None if facts.media is None else facts.media.record,
            derivation=DERIVATION_FILE,
            checksums=None if draft.checksums is None else draft.checksums.output,
            generation=facts.generation,
            chat=None if facts.chat is None else facts.chat.record,
            sketches=self.golden_data.vectors.sketches,
        )

    def write_golden_sets(self, bundle: OpenedBundle, base: Golden, pairs: Pairs) -> None:
        """Write golden texts, media and batches, if they apply to the bundle."""
        data, facts, manifest = self.golden_data, self.plan.model, bundle.manifest
        pads, texts, media = padding_by_name(manifest, self.draft.plan, self.adapters), None, None
        if facts.tokenizer is not None and manifest.max_tokens is not None:
            tokenizer = Tokenizer.from_json(facts.tokenizer, manifest.max_tokens, manifest.fit)
            texts = data.texts(tokenizer, facts.texts, pairs, pads)
        if facts.media is not None and facts.media.golden is not None:
            media = data.media(facts.media.record, facts.media.golden, pairs)
        if facts.chat is not None:
            self.writer.chats(facts.chat.golden)
        batches = data.batch_maker(manifest, pads, bundle).make(base, pairs, self.writer.heads)
        manifest = GoldenSets(texts, batches, media).write(self.writer, manifest)
        brief = bundle.has_many_weights
        bundle.manifest = add_generated_texts(manifest, self.plan.references, self.adapters, base=True, brief=brief)


def _keep(files: Mapping[str, Path | bytes], folder: Path, later: Sequence[str]) -> None:
    """Write files of the base that do not collide with existing or `later` files; the tokenizer is replaced.

    Raises:
        BaseModelError: a file has the name of a file of the bundle.
    """
    for name, content in files.items():
        path = folder / name
        if name in later or path.exists():
            raise BaseModelError("has a file with a reserved name", where=name, fix="rename it in the base's folder")
        path.write_bytes(content if isinstance(content, bytes) else read_bytes(content))

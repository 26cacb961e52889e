"""Build a bundle: one graph with slots, the base's weights, small adapter files, golden vectors, a manifest."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import onnx_ir as ir
import onnxruntime as ort

from adapter_export.bundle.entry import BASE_NAME, EntryWriter, check_bases, check_names, model_version
from adapter_export.bundle.flavours import FLAVOURS, Flavours, FlavourWriter, Forms
from adapter_export.bundle.golden import Golden, GoldenMaker
from adapter_export.bundle.self_check import check_flavours, self_check
from adapter_export.errors import BaseModelError, UsageError
from adapter_export.format.files import new_folder, read_bytes, sha256_of
from adapter_export.format.inventory import MANIFEST_FILE, list_files
from adapter_export.format.manifest import (
    AdapterRecord,
    GoldenRecord,
    HeadRecord,
    Manifest,
    OutputRecord,
    SiteRecord,
    TextRecord,
)
from adapter_export.format.manifest_json import MANIFEST_VERSION, write_manifest
from adapter_export.graph.adapter import Adapter
from adapter_export.numerics.budget import extent
from adapter_export.numerics.runner import Runner
from adapter_export.numerics.sample_inputs import InputCase
from adapter_export.onnx_backend.base.base import OnnxBase, axes
from adapter_export.onnx_backend.base.external import WEIGHTS_FILE, write_model
from adapter_export.onnx_backend.base.numerics import numerics
from adapter_export.onnx_backend.graft.insert import insert_slots, site_values
from adapter_export.onnx_backend.slots import HeadSum, SlotPlan, adapter_output, head_sums, plan_slots
from adapter_export.onnx_backend.view.flow import flow_graph
from adapter_export.sites.site import SUBLAYERS
from adapter_export.version import __version__

# The oldest ONNX Runtime that computes a graph, and computes it right; each rule was tried with released versions.

_TESTED = "1.21"
_NEWEST_TESTED_OPSET = 22
"""The oldest supported runtime, and the newest opset that it knows."""

_BYTES = "1.23"
"""`MatMulNBits` with 8 bits: 1.21 refuses it, 1.22 fails when it runs."""

_BIASED = "1.22"
"""Fused attention with a bias for each row of the batch: 1.21 reads another one, and says nothing."""

_BIAS = {"Attention": 5, "MultiHeadAttention": 5}


def oldest_runtime(model: ir.Model) -> str:
    """The version, such as `1.21`; that of the runtime here for a newer opset than was ever tried with an older one."""
    if model.opset_imports.get("", 0) > _NEWEST_TESTED_OPSET:
        return str(ort.__version__)
    needed = [_TESTED, *(_needed(node) for node in model.graph.all_nodes())]
    return max(needed, key=lambda version: tuple(map(int, version.split("."))))


def _needed(node: ir.Node) -> str:
    if node.op_type == "MatMulNBits" and node.attributes.get_int("bits", 4) > 4:
        return _BYTES
    at = _BIAS.get(node.op_type) if node.domain == "com.microsoft" else None
    has_bias = at is not None and at < len(node.inputs) and node.inputs[at] is not None
    return _BIASED if has_bias else _TESTED


GRAPH_FILE = FLAVOURS["slots"]
TOKENIZER_FILE = "tokenizer.json"


def build_bundle(
    base: OnnxBase,
    adapters: Sequence[Adapter],
    out: Path,
    *,
    references: Runner,
    cases: Sequence[InputCase],
    tokenizer: str | None = None,
    max_tokens: int | None = None,
    kept: Mapping[str, Path | bytes] | None = None,
    allow_base_mismatch: bool = False,
    copy_weights: bool = False,
    forms: Forms | None = None,
    force: bool = False,
    progress: Callable[[str], None] | None = None,
    note: Callable[[str], None] | None = None,
) -> Manifest:
    """Build a bundle and prove it: it is held against its golden vectors in ONNX Runtime before it is there.

    Args:
        base: the base.
        adapters: at least one, of any kinds, widths and numbers of classes.
        out: the folder to make.
        references: computes the golden vectors; never the exported graph.
        cases: the inputs of the golden vectors.
        tokenizer: the text of a `tokenizer.json`, if the base reads text.
        max_tokens: the most that the base takes; needed with a tokenizer.
        kept: more files for the bundle, by name: what another program needs to load it.
        allow_base_mismatch: take adapters that were trained on another base.
        copy_weights: write weights of the bundle's own, where they could be a hard link to the file of the base.
        forms: the graphs to write beside the one with slots; the usual ones if not given.
        force: replace what is at `out`.
        progress: is told each step before it begins.
        note: is told what the user should know, such as that there is no bank, and why.

    Raises:
        UsageError: there are no adapters, a tokenizer without `max_tokens`, or an unknown name among `forms`.
        AdapterError: two adapters have one name, or an adapter does not fit; `BaseMismatchError` is a kind of it.
        NotNeutralError: an adapter cannot share a graph with others.
        BaseModelError: the base cannot be exported.
        ParityError: the exported graph does not compute what the reference computes.
        OutputExistsError: `out` exists and `force` is not given.
        WriteError: the operating system refused a write. Nothing stays behind then, nor after any other error.
    """
    _check_request(adapters, tokenizer, max_tokens)
    check_bases(adapters, base.fingerprint, allow_mismatch=allow_base_mismatch)
    plan = plan_slots(adapters, base.sites)
    tell, note = progress or _nobody, note or _nobody
    with new_folder(out, force=force) as folder, ThreadPoolExecutor(1) as pool:
        build = _Build(folder, base, plan, _write_slots(folder, base, plan, copy_weights, tell), references, cases)
        hashed = pool.submit(_hash_weights, folder)  # seconds for a large base, beside the rest
        graphs = build.graphs(adapters, forms or Forms(), tell, note)
        golden = build.entries.golden(None, build.golden(None, tell))
        records = [replace(build.adapter(each, tell), baked=graphs.baked.get(each.name)) for each in adapters]
        text = build.text(tokenizer, max_tokens)
        build.keep(kept or {})
        manifest = build.manifest(graphs, golden, records, text)
        build.prove(manifest, tell)
        return build.listed(manifest, hashed.result())


def _nobody(_: str) -> None:
    """Hears and says nothing."""


def _write_slots(
    folder: Path, base: OnnxBase, plan: SlotPlan, copy_weights: bool, tell: Callable[[str], None]
) -> ir.Model:
    """The graph with slots, which refers to the weights beside it."""
    tell(f"putting {len(plan.slots)} slots into the graph")
    model = insert_slots(base, plan)
    model.model_version = model_version(base, plan)
    tell("writing the graph and the weights of the base")
    write_model(model, folder / GRAPH_FILE, copy_weights=copy_weights)
    return model


@dataclass(frozen=True)
class _Build:
    """What the steps of one build share.

    Attributes:
        folder: the bundle, under its temporary name.
        vectors: the golden vectors that were computed, by adapter; none stands for the base.
    """

    folder: Path
    base: OnnxBase
    plan: SlotPlan
    model: ir.Model
    references: Runner
    cases: Sequence[InputCase]
    vectors: dict[str | None, Golden] = field(default_factory=dict)

    @property
    def heads(self) -> tuple[HeadSum, ...]:
        """The outputs that heads fill."""
        return head_sums(self.plan, [record.name for record in self.base.outputs])

    def graphs(
        self, adapters: Sequence[Adapter], forms: Forms, tell: Callable[[str], None], note: Callable[[str], None]
    ) -> Flavours:
        """Write the further graphs."""
        tell("writing the other forms of the graph")
        writer = FlavourWriter(self.folder, self.base, self.plan, self.heads, self.model, adapters)
        written = writer.write(forms)
        if written.left_out is not None:
            note(f"without a bank: {written.left_out}")
        return written

    @cached_property
    def maker(self) -> GoldenMaker:
        """Computes the golden vectors."""
        names = [record.name for record in self.base.outputs]
        size, stored = extent(flow_graph(self.model)), numerics(self.base.model).stored
        return GoldenMaker(
            self.references,
            self.cases,
            self.base.inputs,
            names,
            size,
            stored,
            self.base.fingerprint,
        )

    @property
    def entries(self) -> EntryWriter:
        """Writes what there is of each adapter."""
        return EntryWriter(self.folder, self.plan, self.heads, model_version(self.base, self.plan))

    def golden(self, adapter: Adapter | None, tell: Callable[[str], None]) -> Golden:
        """Compute golden vectors."""
        name = None if adapter is None else adapter.name
        tell(f"computing golden vectors of `{name or BASE_NAME}` with {self.references.description}")
        self.vectors[name] = self.maker.make(adapter, adapter_output(self.heads, adapter))
        return self.vectors[name]

    def adapter(self, adapter: Adapter, tell: Callable[[str], None]) -> AdapterRecord:
        """Write everything about one adapter."""
        return self.entries.adapter(adapter, self.golden(adapter, tell))

    def text(self, tokenizer: str | None, max_tokens: int | None) -> TextRecord | None:
        """Write the tokenizer."""
        if tokenizer is None or max_tokens is None:
            return None
        (self.folder / TOKENIZER_FILE).write_text(tokenizer, encoding="utf-8", newline="")
        return TextRecord(TOKENIZER_FILE, max_tokens)

    def keep(self, files: Mapping[str, Path | bytes]) -> None:
        """Write files of the base's own, but a tokenizer that was written already.

        Raises:
            BaseModelError: one has the name of a file of the bundle.
        """
        for name, content in files.items():
            path = self.folder / name
            if name == MANIFEST_FILE or (name != TOKENIZER_FILE and path.exists()):
                raise BaseModelError(
                    "has a file with a name that the bundle needs", where=name, fix="rename it in the base's folder"
                )
            if not path.exists():
                path.write_bytes(content if isinstance(content, bytes) else read_bytes(content))

    def manifest(
        self, graphs: Flavours, golden: GoldenRecord, records: Sequence[AdapterRecord], text: TextRecord | None
    ) -> Manifest:
        """Describe all that was written, but for the files, which are hashed meanwhile."""
        heads = {head.output for head in self.heads}
        computing = numerics(self.model)
        outputs = (OutputRecord(value.name or "", "float32", axes(value)) for value in self.model.graph.outputs)
        return Manifest(
            version=MANIFEST_VERSION,
            producer=f"adapter-export {__version__}",
            minimum_onnxruntime=oldest_runtime(self.model),
            opset=self.base.opset,
            base=self.base.fingerprint,
            base_precision=computing.precision,
            batch_invariant=computing.batch_invariant,
            graphs=graphs.graphs,
            inputs=self.base.inputs,
            outputs=(*self.base.outputs, *(output for output in outputs if output.name in heads)),
            sites=tuple(self._sites()),
            slots=self.plan.slots,
            adapters=tuple(records),
            golden=golden,
            text=text,
            files=(),
            bank=graphs.bank,
            heads=tuple(HeadRecord(p.graph_name, head.output, head.result) for head in self.heads for p in head.groups),
            model_version=model_version(self.base, self.plan),
        )

    def prove(self, manifest: Manifest, tell: Callable[[str], None]) -> None:
        """Hold everything against the golden vectors."""
        tell("holding the bundle against its golden vectors")
        self_check(self.folder, manifest, self.vectors)
        check_flavours(self.folder, manifest, self.vectors)

    def listed(self, manifest: Manifest, hashed: Mapping[str, str]) -> Manifest:
        """Write the manifest, with all files; `hashed` has the sha256 of those that need not be hashed again."""
        manifest = replace(manifest, files=list_files(self.folder, hashed))
        write_manifest(manifest, self.folder)
        return manifest

    def _sites(self) -> Iterator[SiteRecord]:
        """The sublayers, and the other sites that have slots."""
        values = site_values(self.model)
        for site in self.base.sites:
            parts = self.plan.at(site.name)
            if parts or site.role in SUBLAYERS:
                tensor = values[site.name][parts[0].graph.replaces] if parts else site.h
                yield SiteRecord(site.name, site.role, site.layer, site.width, site.path, tensor)


def _hash_weights(folder: Path) -> dict[str, str]:
    path = folder / WEIGHTS_FILE
    return {WEIGHTS_FILE: sha256_of(path)} if path.exists() else {}


def _check_request(adapters: Sequence[Adapter], tokenizer: str | None, max_tokens: int | None) -> None:
    if not adapters:
        raise UsageError("there is nothing to build", found="no adapters", expected="at least one")
    if tokenizer is not None and max_tokens is None:
        raise UsageError("a tokenizer needs the most tokens that the base takes", fix="give `max_tokens`")
    check_names([adapter.name for adapter in adapters])

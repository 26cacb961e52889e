"""An opened bundle: hashes each file once, reads each graph once, and keeps one session per graph and level."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from adapter_export.bundle.golden.golden_parts import GoldenParts, read_parts
from adapter_export.bundle.golden.golden_vectors import Allowance, Case, Golden, read_golden
from adapter_export.bundle.variants import VARIANTS
from adapter_export.dtypes import Weights, widened
from adapter_export.errors import AdapterError, FormatError, RequestError
from adapter_export.format.adapter_files import read_adapter
from adapter_export.format.axes import axis_names
from adapter_export.format.derivation import Derivation, read_derivation
from adapter_export.format.files import canonical_json
from adapter_export.format.generation import GoldenChats, read_golden_chats
from adapter_export.format.golden_batches import GoldenBatches, read_golden_batches
from adapter_export.format.golden_texts import GoldenTexts, read_golden_texts
from adapter_export.format.lengths import axis_lengths
from adapter_export.format.manifest import AdapterRecord, Manifest, VariantName
from adapter_export.format.media import GoldenMedia, read_golden_media
from adapter_export.format.sketch import sketched
from adapter_export.format.tensors import read_tensors
from adapter_export.graph.adapter import Adapter
from adapter_export.graph.compose.sums import weighted_members
from adapter_export.graph.tasks import Task
from adapter_export.numerics.budget import Extent, extent
from adapter_export.numerics.runner import Arrays
from adapter_export.numerics.sample_inputs import input_cases
from adapter_export.onnx_backend.base.external import read_model
from adapter_export.onnx_backend.base.flow import flow_graph
from adapter_export.onnx_backend.base.onnx_base import Numerics, numerics
from adapter_export.onnx_backend.model_session import open_session
from adapter_export.onnx_backend.onnx_runner import Pieces, weights_are_many
from adapter_export.onnx_backend.rewrite.checksums import SlotChecksums, without_checksums
from adapter_export.onnx_backend.slots import SlotPlan, read_plan
from adapter_export.runtime.arena import options_of_next_call
from adapter_export.runtime.bundle import Bundle, check_release
from adapter_export.runtime.graphs import Graphs, Optimization, OrtGraph, run_session
from adapter_export.runtime.session import Session
from adapter_export.text import Tokenizer

LEVEL: Optimization = "all"
"""Default optimization level of clients."""

Request = tuple[Mapping[str, np.ndarray], Sequence[str | None]]
"""Data inputs of one run, and the adapter of each row; `None` is the base. Only the graph of the bank mixes
adapters: the others use the first for all rows."""

_TRIED_TOKENS = 5
"""Odd: `MatMulNBits` multiplies tokens two by two, and the last of an odd number by another kernel."""

_SAME_SHAPE = 2e-5
"""Allowed difference of two runs of one shape in any precision, relative to the largest value: kernels whose rows
are independent give equal bits."""

_RESULT_BYTES = 2**26
"""Maximum bytes of results in memory when a graph runs piece by piece."""


class OpenedBundle:
    """A bundle, its runtime and everything read from it so far.

    A staged bundle is being built: its manifest need not exist yet, and does not list its files. Graphs with many
        weights then run piece by piece, so that not all weights are in memory at once.

    Attributes:
        bundle: the bundle in the Python runtime.
        staged: whether it is being built.
    """

    def __init__(self, bundle: Bundle, *, staged: bool = False) -> None:
        self.bundle, self.staged = bundle, staged
        self._models: dict[str, ir.Model] = {}
        self._sessions: dict[tuple[str, Optimization], ort.InferenceSession] = {}
        self._runtimes: dict[tuple[Optimization, str | None], Session] = {}
        self._tensors: dict[str | None, Weights] = {}
        self._sources: dict[str, Adapter] = {}
        self._golden: dict[str | None, Golden] = {}
        self._threads: int | None = None

    @classmethod
    def open(cls, folder: Path, *, expect: str | None = None, copy: bool = True) -> OpenedBundle:
        """Open a bundle with all of its files; arguments and errors as for `Bundle.open_to_check`."""
        return cls(Bundle.open_to_check(folder, expect=expect, copy=copy))

    @classmethod
    def open_staged(cls, folder: Path, manifest: Manifest) -> OpenedBundle:
        """Return the bundle that is being built in a folder."""
        return cls(Bundle(folder, manifest, verified=False), staged=True)

    @property
    def folder(self) -> Path:
        """Folder of the bundle, for messages and reports."""
        return self.bundle.folder

    @property
    def home(self) -> Path:
        """Folder that files are read from: a private copy, or `folder`."""
        return self.bundle.home

    @property
    def manifest(self) -> Manifest:
        """The manifest; during a build, measured facts are added to it."""
        return self.bundle.manifest

    @manifest.setter
    def manifest(self, manifest: Manifest) -> None:
        self.bundle = replace(self.bundle, manifest=manifest)

    @property
    def names(self) -> tuple[str | None, ...]:
        """The base (`None`) and the adapters."""
        return (None, *(record.name for record in self.manifest.adapters))

    @property
    def base_outputs(self) -> tuple[str, ...]:
        """Names of the base's outputs."""
        return tuple(record.name for record in self.manifest.base_outputs)

    @property
    def common_outputs(self) -> tuple[str, ...]:
        """Names of the outputs that are compared for every adapter: those of the base, and the checksums."""
        return (*self.base_outputs, *filter(None, (self.manifest.checksums,)))

    @cached_property
    def checksums(self) -> SlotChecksums | None:
        """Expected checksums of its graphs; `None` if they have none."""
        name = self.manifest.checksums
        return None if name is None else SlotChecksums(name, self.plan, self.manifest.inputs)

    @cached_property
    def plan(self) -> SlotPlan:
        """Slot plan of its graphs."""
        return read_plan(self.slots_model, self.folder)

    @cached_property
    def numerics(self) -> Numerics:
        """Numerics of the graph with slots."""
        return numerics(self.slots_model)

    @cached_property
    def batch_invariant(self) -> bool:
        """True if rows are independent: according to the base's operators, and in a test run."""
        return self.numerics.batch_invariant and _rows_are_apart(self.manifest, self.run_slots)

    def run_slots(
        self, requests: Sequence[Mapping[str, np.ndarray]], condense: Callable[[Arrays], Arrays] = dict
    ) -> list[Arrays]:
        """Run the graph with slots on inputs and on slot tensors that are not neutral.

        `condense` makes the outputs of a request smaller before the next one runs, such as `stored`.

        Raises:
            RequestError: the graph cannot compute them.
        """
        if self.staged and self.has_many_weights:
            return Pieces(self.slots_model, self.home).run_all(requests, condense)
        session = self.session(self.manifest.graphs["slots"])
        return [condense(_run(session, feeds)) for feeds in requests]

    def stored(self, outputs: Mapping[str, np.ndarray]) -> Arrays:
        """Return outputs in the form of golden data, which contain sketches of wide ones."""
        return sketched(outputs, self.manifest.sketches)

    @cached_property
    def extent(self) -> Extent:
        """Products of the graph with slots; those of checksums do not round."""
        checksums, model = self.manifest.checksums, self.slots_model
        return extent(flow_graph(model if checksums is None else without_checksums(model, checksums)))

    def allowance(self, cases: Iterable[Case]) -> Allowance:
        """Return the sizes that determine the budgets of the graph with slots for some inputs."""
        return Allowance.of(self.extent, cases, self.numerics.precision.activations)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the manifest, which contains those of all other files; of a staged bundle, its future value."""
        return hashlib.sha256(canonical_json(asdict(self.manifest))).hexdigest()

    def files_of(self, variant: VariantName) -> tuple[str, ...]:
        """Return the graphs of a variant: one, or one per baked adapter."""
        return VARIANTS[variant].files(self.manifest)

    @cached_property
    def has_many_weights(self) -> bool:
        """True if copies of the weights for several sessions may exceed the memory."""
        return weights_are_many(self.slots_model)

    @property
    def slots_model(self) -> ir.Model:
        """The graph with slots."""
        return self.model(self.manifest.graphs["slots"])

    def model(self, file: str) -> ir.Model:
        """Return a graph without its external data.

        Raises:
            FormatError: it is not an ONNX model.
        """

        def refusal(reason: str) -> FormatError:
            fix = "rebuild the bundle, or copy it again completely"
            return FormatError("is not an ONNX model", where=self.folder / file, found=reason, fix=fix)

        if file not in self._models:
            self._models[file] = read_model(self.home / file, refusal)
        return self._models[file]

    def record(self, name: str) -> AdapterRecord:
        """Return the manifest's record of an adapter."""
        return next(record for record in self.manifest.adapters if record.name == name)

    def tensors(self, name: str | None) -> Weights:
        """Return a tensor for every slot, from the `.safetensors` file; for the base, the defaults."""
        if name not in self._tensors:
            with self.bundle.named():
                self._tensors[name] = (
                    {slot.name: np.full(slot.neutral, slot.neutral_value, np.float32) for slot in self.manifest.slots}
                    if name is None
                    else widened(read_tensors(self.home / self.record(name).safetensors))
                )
        return self._tensors[name]

    def golden(self, name: str | None) -> Golden:
        """Return the golden vectors of the base or of an adapter.

        Raises:
            FileError, FormatError: as for `read_golden`.
        """
        if name not in self._golden:
            record = self.manifest.golden if name is None else self.record(name).golden
            with self.bundle.named():
                manifest = self.manifest
                self._golden[name] = read_golden(self.home, name, record, manifest.inputs, manifest.sketches)
        return self._golden[name]

    def parts(self, name: str) -> GoldenParts | None:
        """Return the golden parts of an adapter; `None` if its golden vectors expose every fault.

        Raises:
            FileError, FormatError: as for `read_parts`.
        """
        record = self.record(name).golden.parts
        with self.bundle.named():
            return None if record is None else read_parts(self.home, name, record, self.manifest.inputs)

    def source(self, name: str) -> Adapter:
        """Return the bundle's copy of an adapter; errors as for `read_source`."""
        if name not in self._sources:
            with self.bundle.named():
                self._sources[name] = read_source(self.home, self.record(name))
        return self._sources[name]

    def with_output(self, name: str | None) -> tuple[Adapter | None, str | None]:
        """Return an adapter and the output of its head; `None` for both for the base."""
        return (None, None) if name is None else (self.source(name), self.record(name).output)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Tokenizer of a bundle that has one; errors as for `Bundle.tokenizer`."""
        return self.bundle.tokenizer()

    def texts(self) -> GoldenTexts | None:
        """Return the golden texts, or `None` for a bundle without a tokenizer.

        Raises:
            FileError, FormatError: they cannot be read.
        """
        path = self.manifest.golden_texts
        with self.bundle.named():
            return None if path is None else read_golden_texts(self.home / path)

    def batches(self) -> GoldenBatches | None:
        """Return the golden batches, or `None` for a bundle without any.

        Raises:
            FileError, FormatError: they cannot be read.
        """
        path = self.manifest.golden_batches
        with self.bundle.named():
            return None if path is None else read_golden_batches(self.home / path)

    def media(self) -> GoldenMedia | None:
        """Return the golden media, or `None` for a bundle without any.

        Raises:
            FileError, FormatError: they cannot be read.
        """
        record = self.manifest.media
        with self.bundle.named():
            return None if record is None or record.golden is None else read_golden_media(self.home / record.golden)

    def chats(self) -> GoldenChats | None:
        """Return the golden chats, or `None` for a bundle without chat templates.

        Raises:
            FileError, FormatError: they cannot be read.
        """
        record = self.manifest.chat
        with self.bundle.named():
            return None if record is None else read_golden_chats(self.home / record.golden)

    def derivation(self) -> Derivation | None:
        """Return the derivation of the constants in the graph with slots, or `None` for a bundle of an older release.

        Raises:
            FileError, FormatError: it cannot be read.
        """
        path = self.manifest.derivation
        with self.bundle.named():
            return None if path is None else read_derivation(self.home / path)

    def session(self, file: str, level: Optimization = LEVEL) -> ort.InferenceSession:
        """Return the session of a graph at a level; it is created once.

        Raises:
            FormatError: ONNX Runtime cannot open the graph.
        """
        if (file, level) not in self._sessions:
            self._sessions[file, level] = self.bundle.open_graph(file, optimization=level, threads=self._threads)
        return self._sessions[file, level]

    def with_threads(self, threads: int) -> OpenedBundle:
        """Return the bundle with separate sessions that use `threads` threads per operation."""
        other = OpenedBundle(self.bundle, staged=self.staged)
        other._threads, other._tensors, other._golden = threads, self._tensors, self._golden
        return other

    def close_runtime(self, level: Optimization = LEVEL) -> None:
        """Close the session of the Python runtime.

        It opens graphs through this object: the reference cycle would keep both in memory until the next garbage
            collection.
        """
        for checksums in {None, self.manifest.checksums}:
            self._runtimes.pop((level, checksums), None)

    def close(self, file: str, level: Optimization) -> None:
        """Release the memory of a session, and of the session below it."""
        self._sessions.pop((file, level), None)
        if file == self.manifest.graphs.get("fanout") and self.manifest.fanout is not None:
            self._sessions.pop((self.manifest.fanout.prefix, level), None)
        if file == self.manifest.graphs["slots"]:
            self.close_runtime(level)

    def runtime_session(
        self, level: Optimization = LEVEL, only: Collection[str] | None = None, *, checksums: bool = False
    ) -> Session:
        """Return a session of the Python runtime with all adapters loaded, sharing the session of each graph.

        `only` names the graphs it may run; default: all. With `checksums`, it also returns the slot checksums, so that
        the fed tensors are compared.

        Raises:
            FormatError: an adapter does not fit the graph; `VersionError`, a subclass: ONNX Runtime is too old.
        """
        if not self.staged:
            check_release(self.manifest, self.folder)

        def open_graph(file: str) -> OrtGraph:
            return OrtGraph(self.session(file, level), shares_arena=True)

        if only is not None and not self.manifest.graphs.keys() <= set(only):
            files = {variant: file for variant, file in self.manifest.graphs.items() if variant in only}
            if "bank" not in files:
                files.pop("fanout", None)
            bank = self.manifest.bank if "bank" in files else None
            fanout = self.manifest.fanout if "fanout" in files else None
            manifest = replace(self.manifest, graphs=files, bank=bank, fanout=fanout)
            return self.bundle.session_on(Graphs(manifest, "cpu", open_graph))
        # in older manifests, checksums are listed among the outputs of the base
        manifest = replace(self.manifest, checksums=None) if checksums else self.manifest
        key = level, manifest.checksums
        if key not in self._runtimes:
            self._runtimes[key] = self.bundle.session_on(Graphs(manifest, "cpu", open_graph))
        return self._runtimes[key]

    def native_run(self, name: str, arrays: Mapping[str, np.ndarray]) -> Arrays:
        """Run the graph with slots with an adapter that ONNX Runtime itself loads and activates."""
        adapter, options = ort.LoraAdapter(), ort.RunOptions()
        adapter.Load(str(self.home / self.record(name).onnx_adapter))
        options.add_active_adapter(adapter)  # must outlive the run: `options` does not keep a reference
        return run_session(self.session(self.manifest.graphs["slots"]), arrays, options=options)


def _run(
    session: ort.InferenceSession, feeds: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None
) -> Arrays:
    """Run a session as `run_session` does; long calls return unused memory."""
    return run_session(session, feeds, outputs, options=options_of_next_call())


def read_source(folder: Path, record: AdapterRecord) -> Adapter:
    """Read the bundle's copy of an adapter.

    Raises:
        FileError, FormatError: it cannot be read.
        AdapterError: it does not match the manifest.
    """
    adapter = read_adapter(folder / record.source)
    facts: list[tuple[str, object, object]] = [("base", adapter.base, record.base)]
    facts += task_facts(adapter.task, record.task)
    if record.mix is not None:  # the order of columns: a mix-up would leave shapes unchanged
        facts.append(("order of members", weighted_members(adapter), record.mix.members))
    for what, stated, expected in facts:
        if stated != expected:
            raise AdapterError(
                f"does not match the manifest in its {what}",
                where=folder / record.source,
                found=stated,
                expected=expected,
                fix="rebuild the bundle",
            )
    return adapter


def task_facts(recorded: Task | None, expected: Task | None) -> list[tuple[str, object, object]]:
    """Return the differing facts of two task records by key if both exist; otherwise the records."""
    if recorded is None or expected is None:
        return [("task", recorded, expected)]
    names = {field.name: "labels" if field.name == "labels" else f"{field.name} in its task" for field in fields(Task)}
    return [(label, getattr(recorded, name), getattr(expected, name)) for name, label in names.items()]


def _rows_are_apart(manifest: Manifest, run: Callable[[Sequence[Mapping[str, np.ndarray]]], list[Arrays]]) -> bool:
    """Return whether each of two rows gives the same result next to a copy of itself; true if the base takes one row.

    All runs have one shape, so kernels sum in the same order: rounding is equal even in 8 bits.
    """
    rows = {record.axes[0] for record in manifest.inputs if record.axes}
    free = axis_names(manifest.inputs)
    shape = {name: axis_lengths(name, manifest.lengths).near(2 if name in rows else _TRIED_TOKENS) for name in free}
    batched = {record.name for record in manifest.inputs if record.axes and record.axes[0] in free}
    arrays = input_cases(manifest.inputs, seed=0, shapes=[shape])[0].arrays
    if not batched or any(len(arrays[name]) != 2 for name in batched):
        return True
    # a row and its copy cannot influence each other's scale, maximum or order of sums
    alike = [
        {name: array[[row, row]] if name in batched else array for name, array in arrays.items()} for row in (0, 1)
    ]
    try:
        mixed, *results = run([arrays, *alike])
    except RequestError:  # the base does not accept this shape
        return True
    outputs = [record.name for record in manifest.base_outputs if record.axes and record.axes[0] in rows]
    return all(
        np.allclose(mixed[name][row], of_row[name][row], 0, _SAME_SHAPE * np.abs(of_row[name]).max(), equal_nan=True)
        for row, of_row in enumerate(results)
        for name in outputs
    )


@dataclass(frozen=True)
class Graph:
    """One graph of a bundle at one optimization level, fed the way a client feeds it."""

    bundle: OpenedBundle
    variant: VariantName
    file: str
    level: Optimization = LEVEL

    @property
    def by_row(self) -> bool:
        """True if each row of a batch selects an adapter of the bank."""
        return VARIANTS[self.variant].by_row

    @property
    def adapters(self) -> tuple[str | None, ...]:
        """Adapters that the graph can run; `None` is the base."""
        return VARIANTS[self.variant].adapters(self.bundle.manifest, self.file)

    @property
    def pieces(self) -> bool:
        """True if the graph runs piece by piece."""
        return self.bundle.staged and weights_are_many(self.bundle.model(self.file))

    def run(self, arrays: Mapping[str, np.ndarray], chosen: Sequence[str | None]) -> Arrays:
        """Return the outputs of the base and of the heads of the chosen adapters, as far as the graph has them.

        Raises:
            RequestError: ONNX Runtime cannot compute these inputs.
        """
        if self.variant == "slots":
            served = self.bundle.runtime_session(self.level, checksums=True)
            return served.run(arrays, chosen[0], allow_padding=True)
        session = self.bundle.session(self.file, self.level)
        outputs = self._outputs(chosen, [value.name for value in session.get_outputs()])
        return _run(session, self.feeds(arrays, chosen), outputs)

    def run_all(
        self,
        requests: Sequence[Request],
        result_bytes: int,
        on_outputs: Callable[[int, Arrays], None] | None = None,
    ) -> Iterator[Arrays]:
        """Run all requests, and yield their outputs in the form of golden data.

        `result_bytes` is the size of the results of one run in that form. `on_outputs` receives the number and the
        whole outputs of each request, unless the graph runs piece by piece.

        Raises:
            RequestError: as for `run`.
            BaseModelError: the graph cannot be opened.
        """
        if not self.pieces:
            for at, (arrays, chosen) in enumerate(requests):
                outputs = self.run(arrays, chosen)
                if on_outputs is not None:
                    on_outputs(at, outputs)
                yield self.bundle.stored(outputs)
            return
        model, count = self.bundle.model(self.file), max(1, _RESULT_BYTES // max(1, result_bytes))
        open_session(model, self.bundle.home)  # pieces that open do not prove that the whole graph does
        for start in range(0, len(requests), count):
            some = requests[start : start + count]
            feeds = [self.feeds(*request) for request in some]
            results = Pieces(model, self.bundle.home).run_all(feeds, self.bundle.stored)
            for (_, chosen), values in zip(some, results, strict=True):
                yield {name: values[name] for name in self._outputs(chosen, values)}

    def feeds(self, arrays: Mapping[str, np.ndarray], chosen: Sequence[str | None]) -> Arrays:
        """Return the feeds of the graph, including slot tensors."""
        return VARIANTS[self.variant].feeds(self, arrays, chosen)

    def compute(self, file: str, feeds: Mapping[str, np.ndarray]) -> Arrays:
        """Run another graph of the bundle at the same level, and return all of its outputs.

        Raises:
            RequestError: ONNX Runtime cannot compute these inputs.
        """
        if self.pieces:
            return Pieces(self.bundle.model(file), self.bundle.home).run(feeds)
        return _run(self.bundle.session(file, self.level), feeds)

    def _outputs(self, chosen: Sequence[str | None], names: Iterable[str]) -> list[str]:
        heads = {self.bundle.record(name).output for name in chosen if name is not None}
        wanted = {*self.bundle.common_outputs, *heads}
        return [name for name in names if name in wanted]

"""Recorded runs: ONNX Runtime's outputs for golden vectors at build time, compared bit for bit later.

Budgets must cover rounding, and in 8 bits that hides a site. The same runtime on the same processor rounds identically:
there, a tensor that did not arrive changes bits that nothing else changes.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnxruntime as ort

from adapter_export.bundle.bundle_reader import LEVEL, Graph, OpenedBundle
from adapter_export.bundle.golden.golden_vectors import Case, Golden
from adapter_export.bundle.report import BASE
from adapter_export.bundle.variants import VARIANTS
from adapter_export.errors import RequestError
from adapter_export.format.check_report import Finding
from adapter_export.format.manifest import VARIANT_NAMES, GoldenRecord, Manifest, RecordedRuns, VariantName
from adapter_export.numerics.runner import Arrays
from adapter_export.providers import PROVIDERS
from adapter_export.runtime.graphs import run_session
from adapter_export.tables import number_of, verb_for
from adapter_export.words import quoted

CHECK = "recorded runs"
"""Name of the check in reports."""

NOT_COMPARED = "recorded runs not compared"
"""Name of the check for digests that are not comparable on this machine."""

_THREADS = (1, 16)
"""Thread counts of the sessions whose bits must agree with each other and with the verified session.

MLAS kernels split the columns of a product over threads if it has more columns than rows. Parts of at most 64 columns
sum more terms at a time. With 16 threads, this affects up to 1,024 columns.
"""

_SHORT = 2
"""Maximum number of short cases to try."""

_Key = tuple[VariantName, str | None]
"""A graph, and the adapter of all rows; `None` is the base."""


def runs_here(cases: Sequence[str]) -> RecordedRuns:
    """Return the description of this process's runtime for recorded runs."""
    settings: Any = np.show_config(mode="dicts")  # typed as None, its result in other modes
    features = settings.get("SIMD Extensions", {}).get("found", [])
    return RecordedRuns(
        ort.__version__, PROVIDERS["cpu"].device, platform.machine(), tuple(sorted(features)), tuple(cases)
    )


class RunDigests:
    """Digests of the outputs of golden cases in which all rows have one adapter.

    Attributes:
        cases: the names of the cases, in the order of golden vectors.
    """

    def __init__(self, cases: Sequence[str] = ()) -> None:
        self.cases = tuple(cases)
        self._hashes: dict[_Key, Any] = {}
        self._added: dict[_Key, dict[str, str]] = {}

    @classmethod
    def of(cls, manifest: Manifest) -> RunDigests:
        """Return digests for the cases that a bundle has recorded."""
        return cls(() if manifest.recorded is None else manifest.recorded.cases)

    def add(self, graph: Graph, golden: Golden, at: int, outputs: Arrays) -> None:
        """Add the outputs of a run if its case is recorded. Classes outside the adapter's labels are skipped."""
        case = golden.cases[at].name
        if graph.level == LEVEL and golden.against == "golden" and case in self.cases:
            key, content = (graph.variant, golden.adapter), _bytes(golden, at, outputs)
            self._hashes.setdefault(key, hashlib.sha256()).update(content)
            self._added.setdefault(key, {})[case] = hashlib.sha256(content).hexdigest()

    def by_case(self, variant: VariantName, name: str | None) -> Mapping[str, str]:
        """Return a digest for each case of the base or an adapter that ran in a graph."""
        return self._added.get((variant, name), {})

    def whole(self, variant: VariantName, name: str | None) -> str | None:
        """Return the digest over all cases of the base or an adapter; `None` if a graph did not run them in order."""
        if not self.cases or tuple(self.by_case(variant, name)) != self.cases:
            return None
        digest: str = self._hashes[variant, name].hexdigest()
        return digest


def _bytes(golden: Golden, at: int, outputs: Arrays) -> bytes:
    """Return the outputs in golden vectors as little-endian bytes, sorted by name; missing outputs are skipped.

    Outputs of a bank are cut to the adapter's classes: they have as many as its widest head.
    """
    parts = []
    for name in sorted(golden.budgets.keys() & outputs.keys()):
        expected, value = golden.outputs[at][name], outputs[name]
        is_whole = name not in golden.sketches and expected.ndim and value.ndim
        cut = value[..., : expected.shape[-1]] if is_whole else value
        # little-endian, so that the digest does not depend on the machine
        parts.append(cut.astype(cut.dtype.newbyteorder("<"), copy=False).tobytes())
    return b"".join(parts)


@dataclass(frozen=True)
class Recording:
    """Golden cases that are recorded while a new bundle is proved.

    Attributes:
        runs: collects the digests.
        stable: by graph and adapter: the digest of each case on which all thread counts agree.
    """

    runs: RunDigests
    stable: Mapping[_Key, Mapping[str, str]]

    @classmethod
    def of(cls, bundle: OpenedBundle) -> Recording:
        """Choose a long case and, if possible, a short one, in which the base's bits do not depend on threads.

        An adapter is skipped in graphs where its bits depend on the number of threads, and so are graphs that run piece
        by piece. Nothing is recorded if the base has no such case.

        Raises:
            FormatError: ONNX Runtime cannot open a graph.
        """
        # variants with the same operators are recorded only if both give the same bits
        variants = [variant for variant in VARIANTS.values() if variant.runs_as is None]
        graphs = [Graph(bundle, variant.name, file) for variant in variants for file in variant.files(bundle.manifest)]
        tried = [graph for graph in graphs if not graph.pieces]
        long, *short = _candidates(bundle.golden(None).cases)
        stable = _stable(bundle, tried, [long.name, *(case.name for case in short)])

        def holding(case: Case) -> set[_Key]:
            return {key for key, digests in stable.items() if case.name in digests}

        of_base = [case for case in (long, *short) if ("slots", None) in holding(case)]
        if not of_base:
            return cls(RunDigests(), stable)
        chosen = of_base[0]
        also = [case for case in of_base[1:] if holding(chosen) <= holding(case)]
        names = {case.name for case in (chosen, *also[:1])}
        return cls(RunDigests([case.name for case in bundle.golden(None).cases if case.name in names]), stable)

    def recorded(self, manifest: Manifest) -> Manifest:
        """Return a manifest with the digests of the runs, if any were recorded."""
        of_base = self._digests(None, VARIANT_NAMES)
        witnessed = [variant for variant in VARIANT_NAMES if of_base.keys() & set(VARIANTS[variant].witnesses)]

        def with_digests(record: GoldenRecord, name: str | None) -> GoldenRecord:
            return replace(record, recorded=self._digests(name, witnessed))

        return replace(
            manifest,
            recorded=runs_here(self.runs.cases) if of_base else None,
            golden=with_digests(manifest.golden, None),
            adapters=tuple(
                replace(record, golden=with_digests(record.golden, record.name)) for record in manifest.adapters
            ),
        )

    def _digests(self, name: str | None, variants: Collection[VariantName]) -> dict[str, str]:
        """Return, by graph, the digest of the runs, if other thread counts gave the same."""
        digests = dict[str, str]()
        for variant in variants:
            digest = self.runs.whole(variant, name)
            stable = self.stable.get((VARIANTS[variant].runs_as or variant, name), {})
            if digest is not None and self.runs.by_case(variant, name).items() <= stable.items():
                digests[variant] = digest
        return digests


def _candidates(cases: Sequence[Case]) -> list[Case]:
    """Return the longest case of the smallest batch, then shorter ones; padded ones only if all are padded."""
    whole = [case for case in cases if case.real is None] or list(cases)
    few = min(case.batch for case in whole)
    of_few = [case for case in whole if case.batch == few]
    ordered = sorted(of_few, key=lambda case: sum(array.size for array in case.arrays.values()), reverse=True)
    return ordered[: 1 + _SHORT]


def _stable(bundle: OpenedBundle, graphs: Sequence[Graph], cases: Sequence[str]) -> dict[_Key, dict[str, str]]:
    """Return, by graph and adapter, the digest of each case on which all thread counts agree."""
    stable = dict[_Key, dict[str, str]]()
    for graph in graphs:
        adapters = [name for name in bundle.names if name in graph.adapters]
        first, *others = (
            _run_all(replace(graph, bundle=bundle.with_threads(threads)), adapters, cases) for threads in _THREADS
        )
        for name in adapters:
            key = graph.variant, name
            digests = [other.by_case(*key) for other in others]
            stable[key] = {
                case: digest
                for case, digest in first.by_case(*key).items()
                if all(other.get(case) == digest for other in digests)
            }
    return stable


def _run_all(graph: Graph, adapters: Sequence[str | None], cases: Sequence[str]) -> RunDigests:
    """Run some golden cases through each adapter, on the unmodified graph."""
    runs, session = RunDigests(cases), graph.bundle.session(graph.file, graph.level)
    for name in adapters:
        golden = graph.bundle.golden(name)
        for at, case in enumerate(golden.cases):
            if case.name in cases:
                try:
                    outputs = run_session(session, graph.feeds(case.arrays, (name,) * case.batch), list(golden.budgets))
                except RequestError:  # `prove` reports it
                    continue
                runs.add(graph, golden, at, outputs)
    return runs


def compare_runs(manifest: Manifest, names: Collection[str | None], runs: RunDigests) -> Iterator[Finding]:
    """Compare the recorded digests of a bundle with those of its runs here; report digests that are not comparable.

    The base is the control: if it reproduces the recorded bits, each adapter must, too.

    Args:
        manifest: the bundle's manifest.
        names: the base (`None`) and the adapters that ran.
        runs: digests of their outputs.
    """
    recorded = manifest.recorded
    if recorded is None:
        return
    here = runs_here(recorded.cases)
    if (here.runtime, here.provider) != (recorded.runtime, recorded.provider):
        yield _not_compared(
            "bundle",
            f"recorded with onnxruntime {recorded.runtime}, {recorded.provider}; "
            f"this is {here.runtime}, {here.provider}",
        )
        return
    golden: dict[str | None, GoldenRecord] = {None: manifest.golden}
    golden |= {record.name: record.golden for record in manifest.adapters}
    for name in names:
        if not golden[name].recorded:
            yield _not_compared(name or BASE, "its bits depend on the number of threads")
    known = [name for name in names if golden[name].recorded]
    ran = [variant for variant in VARIANT_NAMES if any(_ran(runs, variant, name, golden[name]) for name in known)]
    if known and not ran:
        yield _not_compared("bundle", f"{quoted(recorded.cases)} did not all run")
        return
    same = {variant for variant in ran if _is_same(runs, variant, None, manifest.golden)}
    trusted = [variant for variant in ran if same & set(VARIANTS[variant].witnesses)]
    apart = [variant for variant in ran if variant not in trusted]
    if apart:
        yield _not_compared(", ".join(apart), _no_witness(names))
    other = (here.processor, here.features) != (recorded.processor, recorded.features)
    for name in known:
        compared = [variant for variant in trusted if _ran(runs, variant, name, golden[name])]
        wrong = [variant for variant in compared if not _is_same(runs, variant, name, golden[name])]
        difference = f"{quoted(wrong)}: bits differ from the build's, although the base's are equal"
        if wrong and other:
            yield _not_compared(name or BASE, f"{difference}; this processor is not {_processor(recorded)}")
        elif wrong:
            why = "a tensor did not arrive unchanged, or this runtime rounds differently"
            yield Finding.tested(CHECK, name or BASE, False, f"{difference}: {why}")
        elif compared:
            cases = f"{number_of(len(recorded.cases), 'case')} {verb_for(len(recorded.cases), 'match')}"
            detail = f"{', '.join(compared)}: {cases} the build, bit-exact"
            yield Finding.tested(CHECK, name or BASE, True, detail)


def _not_compared(subject: str, reason: str) -> Finding:
    return Finding.unverified(NOT_COMPARED, subject, reason)


def _ran(runs: RunDigests, variant: VariantName, name: str | None, record: GoldenRecord) -> bool:
    return variant in record.recorded and runs.whole(variant, name) is not None


def _is_same(runs: RunDigests, variant: VariantName, name: str | None, record: GoldenRecord) -> bool:
    return variant in record.recorded and runs.whole(variant, name) == record.recorded[variant]


def _no_witness(names: Collection[str | None]) -> str:
    if None not in names:
        return "the base, which shows whether this processor rounds the same, did not run"
    return "the base's bits differ here: another processor, or another build of ONNX Runtime"


def _processor(recorded: RecordedRuns) -> str:
    return f"{recorded.processor} ({', '.join(recorded.features) or 'no extensions'})"

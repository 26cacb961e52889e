"""Forms of a base and its bundles beside float32: time, size and loss on this machine, and the one to ship."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from adapter_export.bundle.bundle_reader import Graph, OpenedBundle
from adapter_export.bundle.latency import Latency, interleaved, ratio, sample
from adapter_export.bundle.variants import VARIANTS
from adapter_export.dtypes import FLOAT_TYPES, Array
from adapter_export.errors import FormatError, RequestError, UsageError
from adapter_export.format.lengths import Bounds
from adapter_export.format.manifest import InputRecord
from adapter_export.numerics.sample_inputs import loss_cases, shown_tokens
from adapter_export.onnx_backend.base.external import bytes_with_weights
from adapter_export.onnx_backend.base.onnx_base import OnnxBase
from adapter_export.onnx_backend.quantise.rewritten import Verdict, smallest_cosine, verdict_of
from adapter_export.providers import PROVIDERS, ProviderName
from adapter_export.reporting import SILENT, Reporter
from adapter_export.runtime.graphs import OpenGraph, OrtGraph, open_session, run_session
from adapter_export.tables import Described, Table, html_of, size
from adapter_export.words import argument, command, joined, quoted

Inputs = Mapping[str, np.ndarray]

SHAPES = ((1, 16), (1, 128), (8, 64))
"""Rows and tokens of the calls that are timed: a short text, a long one, and a batch."""

_ALIKE = 1.05
"""Times within this factor count as equal; then the smaller form wins."""

_FEWEST_ROUNDS, _MOST_ROUNDS = 5, 50


@dataclass(frozen=True)
class Candidate:
    """A graph to time.

    Attributes:
        name: of the form, or of the bundle.
        variant: of the bundle's graph; `None` for a base without slots.
        inputs: the data inputs of the base.
        lengths: the lengths that they may have.
        bytes: of the graph with its weights.
        call: prepares a call for a batch of data inputs; the call returns the outputs by name.
        options: the arguments of `build` that make it; empty for a bundle.
        provider: computes the calls.
    """

    name: str
    variant: str | None
    inputs: Sequence[InputRecord]
    lengths: Bounds
    bytes: int
    call: Callable[[Inputs], Callable[[], Mapping[str, np.ndarray]]]
    options: Mapping[str, object] = field(default_factory=dict)
    provider: ProviderName = "cpu"

    def __str__(self) -> str:
        return self.name + _details(self.variant, self.provider)


@dataclass(frozen=True)
class CallTime:
    """The time of a call of one shape, on one thread.

    Attributes:
        rows: rows of the call.
        tokens: tokens per row.
        milliseconds: the median.
        ratio: the time over that of the reference in the same round.
    """

    rows: int
    tokens: int
    milliseconds: float
    ratio: Latency


@dataclass(frozen=True)
class FormTimes:
    """A form, its times and its loss.

    Attributes:
        name: of the form, or of the bundle.
        variant: of the bundle's graph; null for a base without slots.
        bytes: of the graph with its weights.
        times: of each shape.
        ratio: the geometric mean of the ratios.
        cosine: the smallest cosine of two vectors of an output with those of the reference, on random tokens.
        verdict: `close` from .98 on, `far` below .95, else `apart`.
        options: the arguments of `build` that make it; empty for a bundle.
        provider: the provider that computed it.
    """

    name: str
    variant: str | None
    bytes: int
    times: tuple[CallTime, ...]
    ratio: float
    cosine: float
    verdict: Verdict
    options: Mapping[str, object] = field(default_factory=dict)
    provider: ProviderName = "cpu"

    def __str__(self) -> str:
        return f"`{self.name}`" + _details(self.variant, self.provider)


def _details(variant: str | None, provider: ProviderName) -> str:
    """Return the variant and a provider other than the CPU's in brackets, or nothing."""
    words = [word for word in (variant, None if provider == "cpu" else provider) if word is not None]
    return f" ({', '.join(words)})" if words else ""


@dataclass(frozen=True, repr=False)
class FormBenchmark(Described):
    """Forms side by side, and the one to ship on this machine; `print` and notebooks show it.

    Attributes:
        runtime: the release that computed the calls.
        forms: the forms, the reference first.
        skipped: the reason, by the form that cannot be made.
        saved: the files that name the recommended form beside the bundles.
        recommended: the form to ship.
        reason: the reason, in a sentence.
    """

    runtime: str
    forms: tuple[FormTimes, ...]
    skipped: Mapping[str, str]
    saved: tuple[str, ...] = ()
    recommended: FormTimes = field(init=False)
    reason: str = field(init=False)

    def __post_init__(self) -> None:
        best, reason = recommend(self.forms)
        object.__setattr__(self, "recommended", best)
        object.__setattr__(self, "reason", reason)

    def described(self) -> Mapping[str, object]:
        """Return the facts of `repr` and notebooks."""
        return {"forms": len(self.forms), "recommended": str(self.recommended), "reason": self.reason}

    def table(self) -> Table:
        """Return a row for each form; times are ratios to the reference."""
        shapes = [f"{time.rows} × {time.tokens}" for time in self.forms[0].times]
        variants = any(form.variant is not None for form in self.forms)
        providers = len({form.provider for form in self.forms}) > 1
        rows = []
        for form in self.forms:
            cells = [form.name, *([str(form.variant or "–")] if variants else [])]
            cells += [form.provider] if providers else []
            cells += [f"{time.ratio.ratio:.2f}" for time in form.times]
            rows.append([*cells, size(form.bytes), f"{form.cosine:.4f}", form.verdict])
        details = [*(["variant"] if variants else []), *(["provider"] if providers else [])]
        columns = ["form", *details, *shapes, "size", "cosine", "verdict"]
        numbers = "l" * (1 + len(details)) + "r" * (len(shapes) + 2) + "l"
        return Table(columns, rows, numbers=numbers, spare=("cosine", "size"))

    def advice(self) -> tuple[str, ...]:
        """Return the scale of the table, and the form to ship with the reason."""
        reference = self.forms[0]
        scale = ", ".join(f"{time.milliseconds:.3g} ms ({time.rows} × {time.tokens})" for time in reference.times)
        skipped = (f"skipped `{name}`: " + reason for name, reason in self.skipped.items())
        measure = command("compare(…)", "compare … --data FILE")
        options = joined(argument(name, value) for name, value in self.recommended.options.items())
        build = ("build it with " + options,) if options else ()
        return (
            *skipped,
            f"times are over {reference}, one thread, calls in turns: rows × tokens, {scale}",
            f"ship {self.recommended}: {self.reason}; " + measure + " measures the loss on your own rows",
            *build,
            *(f"wrote {path}" for path in self.saved),
            *((argument("form", "auto") + " of `run`, `generate` and `serve` runs it",) if self.saved else ()),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON data."""
        return asdict(self)

    def __str__(self) -> str:
        return "\n".join([str(self.table()), "", *self.advice()])

    def _repr_html_(self) -> str:
        return html_of(self.table(), *self.advice())


def recommend(forms: Sequence[FormTimes]) -> tuple[FormTimes, str]:
    """Return the form to ship, and the reason in a sentence.

    It is the fastest of the forms that are close to the reference, which is the first; of those at most 5 % slower, the
    smallest.
    """
    reference = forms[0]
    close = [form for form in forms if form.verdict == "close"]
    fastest = min(close, key=lambda form: form.ratio)
    best = min(
        (form for form in close if form.ratio <= fastest.ratio * _ALIKE), key=lambda form: (form.bytes, form.ratio)
    )
    left = [form for form in forms if form.verdict != "close" and form.ratio < best.ratio / _ALIKE]
    others = f"; faster, but not close: {', '.join(map(str, left))}" if left else ""
    if best is reference:
        return best, f"no other form that is close to it is faster or smaller here{others}"
    share = best.bytes / reference.bytes
    return best, (
        f"it takes {best.ratio:.2f} of the time of {reference} and {share:.0%} of its bytes, and stays close to it "
        f"(cosine at least {best.cosine:.4f}){others}"
    )


def base_candidate(name: str, options: Mapping[str, object], base: OnnxBase) -> Candidate:
    """Return a base without slots; `options` are the arguments of `build` that make it."""
    session = open_session(base.path, threads=1)

    def call(inputs: Inputs) -> Callable[[], Mapping[str, np.ndarray]]:
        return partial(run_session, session, inputs)

    return Candidate(name, None, base.inputs, base.lengths, bytes_with_weights(base.path, base.model), call, options)


def bundle_candidates(
    name: str,
    bundle: OpenedBundle,
    adapter: str | None,
    providers: Sequence[ProviderName],
    skipped: dict[str, str],
) -> Iterator[Candidate]:
    """Yield the graphs of a bundle that run an adapter in one call, with each provider that may run them.

    `skipped` receives each provider that is not here, has no graph in the bundle, or computes other golden data.

    Raises:
        RequestError: the bundle lacks the adapter.
    """
    manifest = bundle.manifest
    known = [record.name for record in manifest.adapters]
    if adapter not in (None, *known):
        raise RequestError("no such adapter", where=name, found=f"`{adapter}`", expected=f"one of {quoted(known)}")
    graphs = [
        Graph(bundle, variant.name, file)
        for variant in VARIANTS.values()
        for file in (() if variant.by_text else variant.files(manifest))
        if adapter in variant.adapters(manifest, file)
    ]
    for provider in providers:
        if provider != "cpu":
            try:
                bundle.bundle.session(provider=provider, threads=1)  # compares golden data where that is the rule
            except (UsageError, FormatError) as error:
                skipped[f"{name}, {provider}"] = error.problem().sentence()
                continue
        for graph in graphs:
            if provider == "cpu" or graph.variant in PROVIDERS[provider].variants:
                yield _bundle_candidate(name, graph, adapter, provider)


def _bundle_candidate(name: str, graph: Graph, adapter: str | None, provider: ProviderName) -> Candidate:
    bundle, path = graph.bundle, graph.bundle.home / graph.file
    model = bundle.model(graph.file)
    opened: OpenGraph
    if provider == "cpu":
        opened = OrtGraph(open_session(path, threads=1))
    else:
        opened = bundle.bundle.graphs(provider, threads=1).open_path(graph.file)
    outputs = [str(value.name) for value in model.graph.outputs]

    def call(inputs: Inputs) -> Callable[[], Mapping[str, np.ndarray]]:
        rows = next(len(array) for array in inputs.values() if array.ndim)
        return partial(opened.run, graph.feeds(inputs, (adapter,) * rows), outputs)

    manifest, size = bundle.manifest, bytes_with_weights(path, model)
    return Candidate(name, graph.variant, manifest.inputs, manifest.lengths, size, call, provider=provider)


def providers_here() -> tuple[ProviderName, ...]:
    """Return the providers whose runtime and device are installed; `cpu` is the first."""
    devices = ort.get_available_providers()
    return tuple(
        name
        for name, row in PROVIDERS.items()
        if (row.device in devices if row.runtime == "onnxruntime" else find_spec(row.runtime) is not None)
    )


def measure_forms(
    reference: Candidate,
    others: Iterable[Candidate],
    shapes: Sequence[tuple[int, int]],
    seconds: float,
    skipped: Mapping[str, str],
    reporter: Reporter = SILENT,
) -> FormBenchmark:
    """Time each candidate beside the reference, call by call in turns, and compare their outputs on random tokens.

    Args:
        reference: what times and outputs are compared with.
        others: one is open at a time, where the iterator closes it before it yields the next.
        shapes: rows and tokens of the calls.
        seconds: the duration of the calls of one candidate and one shape; five rounds at least.
        skipped: the forms that the iterator leaves out; it may grow meanwhile.
        reporter: receives a step for each candidate.

    Raises:
        UsageError: nothing is compared.
        RequestError: ONNX Runtime cannot compute such rows.
    """
    batches = [sample(reference.inputs, rows, tokens, reference.lengths) for rows, tokens in shapes]
    cases = [case.arrays for case in loss_cases(reference.inputs, reference.lengths)]
    expected = [reference.call(case)() for case in cases]
    masks = [shown_tokens(reference.inputs, case) for case in cases]
    spent: list[list[Array]] = [[] for _ in shapes]
    timed = []
    for candidate in others:
        reporter.step(f"timing {candidate}")
        outputs = [candidate.call(case)() for case in cases]
        cosine = float(np.min([_smallest(*sides) for sides in zip(expected, outputs, masks, strict=True)]))
        times = []
        for at, (shape, batch) in enumerate(zip(shapes, batches, strict=True)):
            rounds = _rounds(candidate.call(batch), reference.call(batch), seconds)
            spent[at].append(rounds[:, 1])
            times.append(CallTime(*shape, 1e3 * float(np.median(rounds[:, 0])), ratio(rounds, 0, 1)))
        timed.append(
            FormTimes(
                candidate.name,
                candidate.variant,
                candidate.bytes,
                tuple(times),
                _mean(times),
                cosine,
                verdict_of(cosine),
                candidate.options,
                candidate.provider,
            )
        )
    if not timed:
        raise UsageError("there is nothing to compare with", found=f"{reference} only", expected="another form")
    baseline = tuple(
        CallTime(*shape, 1e3 * float(np.median(np.concatenate(rounds))), Latency(1.0, 1.0, 1.0))
        for shape, rounds in zip(shapes, spent, strict=True)
    )
    first = FormTimes(
        reference.name,
        reference.variant,
        reference.bytes,
        baseline,
        1.0,
        1.0,
        "close",
        reference.options,
        reference.provider,
    )
    return FormBenchmark(f"onnxruntime {ort.__version__}", (first, *timed), dict(skipped))


def _rounds(call: Callable[[], object], reference: Callable[[], object], seconds: float) -> Array:
    """Return the seconds of two calls in turns, [rounds, 2], for as many rounds as fit."""
    once = float(interleaved((call, reference), 1).sum())
    return interleaved((call, reference), int(np.clip(seconds / once, _FEWEST_ROUNDS, _MOST_ROUNDS)))


def _mean(times: Sequence[CallTime]) -> float:
    return math.exp(sum(math.log(time.ratio.ratio) for time in times) / len(times))


def _smallest(
    expected: Mapping[str, np.ndarray], actual: Mapping[str, np.ndarray], real: npt.NDArray[np.bool_] | None
) -> float:
    """Return the smallest cosine over the outputs of floats that both have, without padding."""
    cosines = []
    for name, value in expected.items():
        if value.dtype.name in FLOAT_TYPES and value.ndim and name in actual:
            # a graph pads logits to the most labels of its adapters, which another bundle may not have
            width = min(side.shape[-1] for side in (value, actual[name]))
            cosines.append(smallest_cosine(value[..., :width], actual[name][..., :width], real))
    return float(np.min(cosines))

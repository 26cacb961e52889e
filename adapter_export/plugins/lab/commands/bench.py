"""Measure a bundle or a model on this machine, and recommend how to serve or build it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from adapter_export.address import Address, PathLike, locate
from adapter_export.bases.base import Base, OpenOptions
from adapter_export.bases.base_forms import base_forms, made_forms
from adapter_export.bases.kinds import at_least_1
from adapter_export.bases.opening import base_for
from adapter_export.bundle.open_bundle import open_bundle
from adapter_export.commands.command import Command, Screen
from adapter_export.errors import UsageError
from adapter_export.format.precision import PRECISION_NAMES, known_precisions
from adapter_export.option import SITE_MAP, TRUST_PICKLE, Option
from adapter_export.providers import PROVIDERS, ProviderName, provider_names
from adapter_export.reporting import SILENT, Reporter
from adapter_export.safe_io.temporary import temporary_folder
from adapter_export.words import argument

if TYPE_CHECKING:
    from adapter_export.format.lengths import Bounds
    from adapter_export.format.manifest import InputRecord
    from adapter_export.format.precision import PrecisionName
    from adapter_export.plugins.lab.speed.concurrency import Benchmark
    from adapter_export.plugins.lab.speed.forms import Candidate, FormBenchmark
    from adapter_export.runtime import Bundle

_ROWS, _TOKENS = 1, 32

_BATCH = 8
"""Rows of a batch of a user's own texts."""


def bench(
    *candidates: Bundle | Base | Address,
    adapter: Annotated[str | None, Option("Adapter of the rows. Default: the base.", "NAME")] = None,
    rows: Annotated[
        int | None,
        Option(
            "Rows per call. Default: 1; of several forms also 8, in calls of 1 × 16, 1 × 128 and 8 × 64.", "N", least=1
        ),
    ] = None,
    tokens: Annotated[
        int | None, Option("Tokens per row. Default: 32; of several forms as above.", "N", least=1)
    ] = None,
    seconds: Annotated[
        float, "Duration of each setting in each of five rounds; of several forms, of each form and call shape."
    ] = 1.0,
    precisions: Annotated[
        tuple[str, ...], Option(f"Precisions to build a model in: {', '.join(PRECISION_NAMES)}.", "A,B,…")
    ] = PRECISION_NAMES,
    providers: Annotated[
        tuple[str, ...],
        Option("Providers that compute the forms of bundles. Default: those that are installed.", "P,Q,…", commas=True),
    ] = (),
    data: Annotated[
        Address | None, Option("Table of your own texts, whose lengths decide the calls of several forms.", "FILE")
    ] = None,
    text_column: Annotated[str, Option("Column of the texts.", "NAME")] = "text",
    save_form: Annotated[
        bool,
        Option("Write the recommended form beside each bundle, for `--form auto` of `run`, `generate` and `serve`."),
    ] = False,
    site_map: Annotated[PathLike | None, SITE_MAP] = None,
    trust_pickle: Annotated[bool, TRUST_PICKLE] = False,
    reporter: Reporter = SILENT,
) -> Benchmark | FormBenchmark:
    """Measure how to serve a bundle, or which form of a model to build, on this machine.

    One bundle: throughput and latency at different numbers of concurrent calls and threads. The settings are one call
    on one thread, and those that use all processors of this process, by powers of two. They take turns in five rounds.
    Pass the recommended settings to `serve`: one for throughput, one for latency.

    One model: each precision with each option of `build` that changes it, beside float32. Several bundles of one base:
    each of their graph variants, with each provider, beside the first bundle in float32; one bundle too with
    `providers`, `data` or `save_form`. Calls of two take turns on one thread; times are ratios, and the loss is the
    smallest cosine of an output with that in float32 on random tokens. The recommended form is the fastest of those
    that stay close.

    Args:
        candidates: one bundle, several bundles of one base, or one model; or their folders and files.
        precisions: the precisions to build a model in.
        providers: the providers that compute the forms of bundles; those that cannot are skipped with the reason.
        data: calls have one row of the median length of these texts, one of their 95th percentile, and eight of that.
        save_form: write the choice to `NAME.form.json` beside each bundle NAME.
        site_map: the sites of the model.
        trust_pickle: load the model even if it could run code.
        reporter: receives a step for each turn of a setting, or for each form.

    Returns:
        Rows per second and latencies of each setting, or times, sizes and losses of each form, and a recommendation.

    Raises:
        RequestError: a bundle does not have the adapter, or does not take such rows.
        InputError: a bundle or the model is damaged, or the model cannot be exported.
        UsageError: arguments are out of range or do not go together.
    """
    for name, count in (("rows", rows), ("tokens", tokens)):
        at_least_1(name, 1 if count is None else count)
    if not 0 < seconds < float("inf"):
        raise UsageError("must be greater than 0", where=argument("seconds"), found=seconds)
    chosen = known_precisions(precisions)
    models: list[Base | Path] = []
    bundles: list[Bundle | Path] = []
    for candidate in candidates:
        source = locate(candidate, "any", reporter).path if isinstance(candidate, str | Path) else candidate
        if isinstance(source, Base) or (isinstance(source, Path) and not (source / "manifest.json").is_file()):
            models.append(source)
        else:
            bundles.append(source)
    if (not models and not bundles) or (models and len(models) + len(bundles) > 1):
        raise UsageError(
            "a model is measured by itself",
            found=f"models {len(models)}, bundles {len(bundles)}",
            expected="one bundle, several bundles, or one model",
        )
    if models and adapter is not None:
        raise UsageError(
            "a model has no adapters",
            where=argument("adapter"),
            found=f"`{adapter}`",
            fix="leave it out, or build bundles and give those",
        )
    of_forms = {"providers": providers, "data": data, "save_form": save_form}
    if models and (named := [name for name, value in of_forms.items() if value]):
        raise UsageError("is of bundles", where=argument(named[0]), fix="build the model, and give the bundles")
    if data is not None and not (rows is None and tokens is None):
        raise UsageError(argument("data") + " decides rows and tokens", fix="give no others")
    if len(bundles) == 1 and not any(of_forms.values()):
        from adapter_export.bundle.latency import supported_tokens
        from adapter_export.plugins.lab.speed.concurrency import Load, measure_ways

        opened = open_bundle(bundles[0])
        length = supported_tokens(opened.manifest.inputs, opened.manifest.lengths, _TOKENS, tokens)
        return measure_ways(opened, Load(adapter, rows or _ROWS, length), seconds, reporter)
    from adapter_export.plugins.lab.speed.forms import SHAPES

    shapes: Sequence[tuple[int, int]] = (
        SHAPES if rows is None and tokens is None else ((rows or _ROWS, tokens or _TOKENS),)
    )
    if not models:
        beside = [open_bundle(bundle) for bundle in bundles]
        if data is not None:
            shapes = _shapes_of(beside[0], adapter, locate(data, "table", reporter).path, text_column)
        measured = _of_bundles(beside, adapter, Calls(shapes, tokens, seconds), provider_names(providers), reporter)
        return measured if not save_form else _save(measured, beside)
    base = base_for(models[0], OpenOptions(site_map, trust_pickle), reporter)
    shapes = _supported(shapes, base.inputs, base.lengths, tokens)
    return _of_model(base, chosen, shapes, seconds, reporter)


def _supported(
    shapes: Sequence[tuple[int, int]], inputs: Sequence[InputRecord], lengths: Bounds, tokens: int | None
) -> Sequence[tuple[int, int]]:
    """Return the distinct shapes with lengths that a base takes; `tokens` are those that the user chose."""
    from adapter_export.bundle.latency import supported_tokens

    return tuple(dict.fromkeys((rows, supported_tokens(inputs, lengths, length, tokens)) for rows, length in shapes))


def _of_model(
    base: Base,
    precisions: Sequence[PrecisionName],
    shapes: Sequence[tuple[int, int]],
    seconds: float,
    reporter: Reporter,
) -> FormBenchmark:
    """Measure each form of a model."""
    from adapter_export.plugins.lab.speed.forms import base_candidate, measure_forms

    fused = find_spec("onnxscript") is not None
    (first,) = base_forms(("fp32",), fused=False)
    forms = [form for form in base_forms(precisions, fused=fused) if form != first]
    skipped = {} if fused else {"optimize": "onnxscript is not installed"}
    with temporary_folder() as folder:
        plain = base.checked_export(folder, reporter)
        exports = made_forms(plain, forms, skipped)
        others = (base_candidate(form.name, form.options, export) for form, export in exports)
        reference = base_candidate(first.name, first.options, plain)
        return measure_forms(reference, others, shapes, seconds, skipped, reporter)


@dataclass(frozen=True)
class Calls:
    """The calls that are timed.

    Attributes:
        shapes: rows and tokens of each.
        tokens: the tokens that the user chose, which must be supported.
        seconds: the duration of each form and shape.
    """

    shapes: Sequence[tuple[int, int]]
    tokens: int | None
    seconds: float


def _shapes_of(bundle: Bundle, adapter: str | None, path: Path, text_column: str) -> Sequence[tuple[int, int]]:
    """Return one row of the median length of a table's texts, one of the 95th percentile, and eight of that."""
    import numpy as np

    from adapter_export.commands.bundles._run_rows import read_file
    from adapter_export.format.tabular.table_rows import Columns

    rows = read_file(path, Columns(text_column)).rows
    read = bundle.texts(bundle.session(on_demand=True)).read([row.asked for row in rows], adapter)
    lengths = [len(encoded.encoding.ids) for text in read for encoded in text.rows]
    middle, long = (int(np.percentile(lengths, share, method="higher")) for share in (50, 95))
    return tuple(dict.fromkeys(((1, middle), (1, long), (_BATCH, long))))


def _of_bundles(
    opened: Sequence[Bundle],
    adapter: str | None,
    calls: Calls,
    providers: Sequence[ProviderName],
    reporter: Reporter,
) -> FormBenchmark:
    """Measure each graph of bundles of one base with each provider."""
    from adapter_export.bundle.bundle_reader import OpenedBundle
    from adapter_export.plugins.lab.speed.forms import bundle_candidates, measure_forms, providers_here

    paths = [bundle.folder for bundle in opened]
    counts = Counter(path.resolve() for path in paths)
    if max(counts.values()) > 1:
        raise UsageError("a bundle is given twice", found=f"`{counts.most_common(1)[0][0]}`", fix="omit one of them")
    short = len({path.name for path in counts}) == len(paths)
    bundles = {path.resolve().name if short else str(path): OpenedBundle.open(path) for path in paths}
    bases = {name: bundle.manifest.base for name, bundle in bundles.items()}
    if len(set(bases.values())) > 1:
        raise UsageError(
            "the bundles have different bases, so their outputs cannot be compared",
            found=", ".join(f"`{name}` of {base[:19]}…" for name, base in bases.items()),
            expected="bundles built from one model",
        )

    manifest = next(iter(bundles.values())).manifest
    shapes = _supported(calls.shapes, manifest.inputs, manifest.lengths, calls.tokens)
    skipped: dict[str, str] = {}

    def graphs() -> Iterator[Candidate]:
        plain = [name for name, bundle in bundles.items() if bundle.numerics.precision.name == "fp32"]
        for name in sorted(bundles, key=lambda name: name not in plain[:1]):
            # the CPU's own, even if it is not chosen: the others are compared with it
            names = dict.fromkeys(("cpu", *(providers or providers_here())))
            yield from bundle_candidates(name, bundles[name], adapter, tuple(names), skipped)

    each = graphs()
    return measure_forms(next(each), each, shapes, calls.seconds, skipped, reporter)


def _save(measured: FormBenchmark, bundles: Sequence[Bundle]) -> FormBenchmark:
    """Write the recommended form beside each bundle, and return the measurement with these files."""
    from adapter_export.bundle import chosen_form
    from adapter_export.plugins.lab.speed.forms import recommend

    # sessions run no baked graph
    served = [form for form in measured.forms if form.variant in PROVIDERS[form.provider].variants]
    best, _ = recommend(served)
    folders = [bundle.folder.resolve() for bundle in bundles]
    chosen = next(
        bundle.folder for bundle in bundles if best.name in (bundle.folder.resolve().name, str(bundle.folder))
    )
    times = tuple(chosen_form.FormRatio(time.rows, time.tokens, time.ratio.ratio) for time in best.times)
    files = [
        chosen_form.save_form(
            chosen_form.MeasuredForm(
                chosen_form.FORM_VERSION,
                chosen_form.relative_folder(chosen, folder),
                best.provider,
                chosen_form.runtime_here(best.provider),
                chosen_form.processor_here(),
                times,
            ),
            folder,
        )
        for folder in folders
    ]
    return replace(measured, saved=tuple(map(str, files)))


def _show(benchmark: Benchmark | FormBenchmark, screen: Screen) -> None:
    screen.show(benchmark.table())
    for phrase in benchmark.advice():
        screen.report(phrase)


COMMAND: Command[Benchmark | FormBenchmark] = Command(
    bench,
    _show,
    examples=(
        "adapter-export bench bundle --adapter trec",
        "adapter-export bench bundle --adapter trec --rows 8 --tokens 128 --json",
        "adapter-export bench model.pt --precisions fp32,int8",
        "adapter-export bench bundle-fp32 bundle-int8 --adapter trec",
        "adapter-export bench bundle-fp32 bundle-int8 --adapter trec --data questions.csv --save-form",
    ),
)

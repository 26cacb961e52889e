"""Prove that a bundle computes what its reference computes."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from adapter_export.address import Address, PathLike, locate
from adapter_export.bases.adapters import load_members
from adapter_export.bases.base import Base, OpenOptions, open_tokenizer
from adapter_export.bases.opening import base_for
from adapter_export.bases.prepared_base import model_of, origin_of, same_precision
from adapter_export.bundle.open_bundle import folder_of
from adapter_export.commands.bundles._report import VERBOSE, show_report
from adapter_export.commands.command import Command, Screen
from adapter_export.errors import InputError, UsageError
from adapter_export.option import DELIMITER, ENCODING, SITE_MAP, TRUST_PICKLE, Force, Option
from adapter_export.providers import provider_names
from adapter_export.reporting import SILENT, Reporter
from adapter_export.safe_io.output import Output
from adapter_export.tables import number_of
from adapter_export.words import argument, quoted

if TYPE_CHECKING:
    import numpy as np

    from adapter_export.bases.adapters import Adapters
    from adapter_export.bundle.golden.golden_vectors import Case
    from adapter_export.bundle.proof.compare_arrays import Original
    from adapter_export.bundle.proof.proof_plan import Plan, Reference
    from adapter_export.bundle.report import Report
    from adapter_export.format.manifest import Manifest
    from adapter_export.graph.adapter import Adapter
    from adapter_export.numerics.runner import Arrays
    from adapter_export.runtime import Bundle

_ROWS_AT_ONCE = 16

AGAINST = Option(
    "The model that the bundle was built from: a torch archive, a Hugging Face folder or an ONNX file. "
    "Without it, the golden vectors in the bundle are the reference, and torch is not needed.",
    "MODEL",
)


def check(
    bundle: Bundle | Address,
    *,
    against: Annotated[Base | Address | None, AGAINST] = None,
    only: Annotated[Sequence[str], Option("Check only this adapter, or `base`. Repeatable.", "ADAPTER")] = (),
    variants: Annotated[
        Sequence[str],
        Option("Check only this graph: slots, inputs, bank, fanout or baked. Repeatable.", "VARIANT", "--variant"),
    ] = (),
    cases: Annotated[Sequence[str], Option("Check only this shape. Repeatable.", "CASE", "--case")] = (),
    adapters: Annotated[
        Sequence[Adapter | Address] | Mapping[str, Adapter | Address] | None,
        Option(
            "Original adapter folders; compares the bundle with these instead of its own copies.",
            "A,B,…",
            commas=True,
        ),
    ] = None,
    baseline: Annotated[
        PathLike | None,
        Option(
            "Fail if a claim verified in this earlier report, as `--json` writes it, is no longer verified.", "REPORT"
        ),
    ] = None,
    data: Annotated[
        Address | None,
        Option(
            "A table (csv, tsv, jsonl, Parquet) of texts on which the bundle's classes are compared with MODEL's.",
            "FILE",
        ),
    ] = None,
    text: Annotated[str | None, Option("Column of FILE with the texts.", "COLUMN")] = None,
    delimiter: Annotated[str | None, DELIMITER] = None,
    encoding: Annotated[str | None, ENCODING] = None,
    nodes: Annotated[bool, Option("Compare every node with MODEL's.")] = False,
    quick: Annotated[bool, Option("Skip most shapes, the vocabulary sweep and per-node comparison.")] = False,
    repro: Annotated[PathLike | None, Option("Write the failing node as an ONNX test case.", "FOLDER")] = None,
    runtimes: Annotated[
        Sequence[str], Option("Also run golden vectors in this Python interpreter. Repeatable.", "PYTHON", "--runtime")
    ] = (),
    providers: Annotated[
        Sequence[str],
        Option("Also run golden vectors with these providers, or `all` that are known.", "P,Q,…", commas=True),
    ] = (),
    report: Annotated[PathLike | None, Option("Write a self-contained HTML page.", "FILE")] = None,
    site_map: Annotated[PathLike | None, SITE_MAP] = None,
    trust_pickle: Annotated[bool, TRUST_PICKLE] = False,
    force: Force = False,
    reporter: Reporter = SILENT,
) -> Report:
    """Prove that BUNDLE computes what its reference computes, for the base and every adapter.

    Compares every output of every graph at a matrix of shapes: the graph with slots at ONNX Runtime's optimization
    levels none, basic and all, and the bank also with a different adapter per row. Then compares every adapter at every
    site with float64 arithmetic, and checks invariants: switching adapters has no side effects, idle slots change
    nothing, rows of a batch are independent, all files match their hashes. Tolerances are derived from the computation
    and printed with their reason.

    With MODEL, every constant is verified bit by bit, and every node is compared on MODEL's own values; with the
    adapters, every slot is verified. Each claim is bit-exact, tested, unverified or failed.

    If the bundle's base has a lower precision than MODEL, it is compared with MODEL in that precision. The distance
    from MODEL itself is reported separately, on random inputs or on the texts of FILE.

    Args:
        bundle: the bundle, or its folder.
        against: the model that the bundle was built from; without it the golden vectors in the bundle are the
            reference, and torch is not needed.
        site_map: the sites of the base.
        trust_pickle: load the base even if it could run code.
        nodes: keep every compared node in the report, not only faulty ones.
        repro: folder for faulty nodes, each as an ONNX test case (model and data of one node).
        runtimes: other Python interpreters, such as one with the oldest ONNX Runtime that will run the bundle.
        providers: names of providers, or `all`. Default: those of the installed ONNX Runtime.
        force: replace the files at `report` and `repro`.
        adapters: adapters, their folders or names, as in `build`: the bundle's slots are compared with these as well as
            with its own copies.
        baseline: an earlier report on this bundle, as returned by `to_json()`; a claim that it verified fails if it is
            no longer verified.
        reporter: receives each step.

    Returns:
        The report. A failed claim raises no error; call `report.raise_for_failure()` for that.

    Raises:
        UsageError: arguments exclude each other, or name something unknown.
        FormatError: `baseline` is not a report on this bundle.
        InputError: the bundle or the model cannot be used.
        NothingComparedError: nothing was compared.
        OutputExistsError, WriteError: the page cannot be written.
    """
    from adapter_export.format.check_report import read_report
    from adapter_export.format.tabular.labelled import Columns, read_texts
    from adapter_export.format.tabular.table_files import TableFormat

    if report is not None:
        Output(Path(report), force).ensure_writable()
    if (data is None) != (text is None) or (data is not None and against is None):
        together = argument("data") + ", " + argument("text") + " and " + argument("against") + " belong together"
        raise UsageError(together, fix="give all three, or only " + argument("against"))
    for name, requested in (("nodes", nodes), ("repro", repro is not None)):
        if requested and against is None:
            needed = argument(name) + " needs " + argument("against")
            raise UsageError(needed, fix="give the model that the bundle was built from")
    if nodes and quick:
        raise UsageError(argument("nodes", True) + " and " + argument("quick", True) + " exclude each other")
    place = None if repro is None else Path(repro)
    if place is not None:
        Output(place, force).ensure_writable(folder=True)
    texts = None
    if data is not None and text is not None:
        file, columns = locate(data, "table", reporter).path, Columns(text, form=TableFormat(delimiter, encoding))
        read, notes = read_texts(file, columns)
        texts = [row_text for row_text, _ in read]
        for note in notes:
            reporter.warn(note)
    from adapter_export.bundle.proof.baseline import regressions
    from adapter_export.bundle.proof.proof_plan import plan_check
    from adapter_export.bundle.proof.prove import prove

    chosen = provider_names(providers)
    model = None if against is None else base_for(against, OpenOptions(site_map, trust_pickle), reporter)
    plan = replace(
        plan_check(folder_of(bundle, reporter), only=only, cases=cases, variants=variants, brief=quick),
        every_node=nodes,
        repro=place,
        runtimes=tuple(runtimes),
        providers=chosen,
    )
    before = None if baseline is None else read_report(Path(baseline), plan.bundle.digest)
    by_name = {adapter.name: adapter for adapter in _read_adapters(plan, adapters, model)}
    with reference_sides(plan, model, texts) as (reference, original):
        report_of_check = prove(plan, reference, original=original, adapters=by_name, reporter=reporter)
    report_of_check.require_compared()
    if before is not None and baseline is not None:
        worse = regressions(before, report_of_check.findings, Path(baseline).name)
        report_of_check = replace(report_of_check, findings=(*report_of_check.findings, *worse))
    if report is not None:
        options: list[tuple[str, object]] = [
            ("against", report_of_check.against),
            ("baseline", baseline),
            ("data", data),
        ]
        options += [("text", text), ("adapters", _listed(adapters) or None), ("repro", repro)]
        many = {"only": only, "variant": variants, "case": cases, "runtime": runtimes}
        options += [("providers", ",".join(providers) or None)]
        options += [(name, value) for name, values in many.items() for value in values]
        options += [(name, True) for name, on in (("quick", quick), ("nodes", nodes)) if on]
        _write_page(report_of_check, Path(report), options, force=force)
    return report_of_check


def _write_page(checked: Report, path: Path, options: Sequence[tuple[str, object]], *, force: bool) -> None:
    """Write the HTML page of a report, with the command that produced it."""
    from adapter_export.bundle.proof.report_view import page

    present = [(name, value) for name, value in options if value is not None]
    words = [word for name, value in present for word in (f"--{name}", *([] if value is True else [str(value)]))]
    called = shlex.join(["adapter-export", "check", checked.bundle, *words])
    date = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    with Output(path, force).file() as temporary:
        temporary.write_text(page(checked, date=date, command=called), "utf-8")


def _read_adapters(plan: Plan, adapters: Adapters | None, base: Base | None) -> list[Adapter]:
    """Read the user's own adapters; raise `UsageError` for one that the bundle lacks."""
    compared = [] if adapters is None else load_members(adapters, None if base is None else base.path)
    unknown = [f"`{adapter.name}`" for adapter in compared if adapter.name not in plan.bundle.names]
    if unknown:
        known = quoted(name for name in plan.bundle.names if name is not None)
        where, names = argument("adapters"), ", ".join(unknown)
        raise UsageError(
            "the bundle has no adapter with this name", where=where, found=names, expected=f"one of {known}"
        )
    return compared


def _listed(adapters: Adapters | None) -> str:
    """Return adapters as the option lists them; an adapter object by its name."""
    named = adapters.items() if isinstance(adapters, Mapping) else (("", each) for each in adapters or ())
    places = ((name, each if isinstance(each, str | Path) else each.name) for name, each in named)
    return ",".join(f"{name}={place}" if name else f"{place}" for name, place in places)


@contextmanager
def reference_sides(
    plan: Plan, model: Base | None, texts: Sequence[str] | None
) -> Iterator[tuple[Reference | None, Original | None]]:
    """Yield the reference in the bundle's precision, and the original model if the two differ or texts are given."""
    if model is None:
        yield None, None
        return
    from adapter_export.bundle.proof.compare_arrays import Original
    from adapter_export.bundle.proof.exact_tensors import Source
    from adapter_export.bundle.proof.proof_plan import Reference
    from adapter_export.bundle.texts import Contract

    base = _recapture_if_changed(model_of(plan.bundle.manifest, model), plan.bundle.manifest)
    processor = None if base.media is None else base.media.record.digest
    chat = None if base.chat is None else base.chat.templates.digest
    path, contract = (
        str(base.path),
        Contract(base.tokenizer, base.texts, base.base_head, processor, base.generation, chat),
    )
    wanted = plan.bundle.numerics
    live, not_live = _live(base) if None in plan.names else (None, None)

    derivation = plan.bundle.derivation()
    origin = origin_of(base, wanted.precision.name, optimized=derivation is not None and derivation.optimized)
    with same_precision(base, wanted.precision) as (runner, export_again):
        source = Source(origin, export_again)
        reference = Reference(path, runner, contract, base.inputs, base.lengths, live, not_live, source)
        if texts is None and wanted.precision.name == base.precision:
            yield reference, None
            return
        cases = plan.cases if texts is None else _text_cases(plan, texts)
        inputs = "random inputs" if texts is None else number_of(len(texts), "text")
        yield reference, Original(base.runner(allow_mismatch=True), cases, inputs)


def _recapture_if_changed(base: Base, manifest: Manifest) -> Base:
    """Return the base, captured again if its inputs or lengths differ from the manifest."""
    from adapter_export.bundle.proof.invariants import check_record

    alike = {record.name for record in base.inputs} == {record.name for record in manifest.inputs}
    if alike and all(finding.passed for finding in check_record(manifest, base.inputs, base.lengths)):
        return base
    return base.captured_as(manifest)


def _live(base: Base) -> tuple[Callable[[Mapping[str, np.ndarray]], Arrays] | None, str | None]:
    """Return a runner of a folder's live model, or the reason why it cannot run; neither for other forms of base."""
    try:
        return base.live(), None
    except InputError as error:
        return None, error.message


def _text_cases(plan: Plan, texts: Sequence[str]) -> list[Case]:
    """Return texts in calls as they are served: rows of one length together, or one row if rows affect each other."""
    from adapter_export.bundle.golden.golden_vectors import case_of

    manifest, session = plan.bundle.manifest, plan.bundle.runtime_session()
    tokenizer = open_tokenizer(plan.bundle.home, manifest, fix="omit " + argument("data"))
    names, pads = [record.name for record in manifest.inputs], all(session.may_pad(name) for name in plan.names)
    lengths: dict[int, list[tuple[int, Any]]] = {}
    for number, row in enumerate(tokenizer.rows(texts), 1):
        lengths.setdefault(len(row.encoding.ids), []).append((number, row.encoding))
    size, cases = _ROWS_AT_ONCE if manifest.batch_invariant else 1, []
    for _, of_length in sorted(lengths.items()):
        for start in range(0, len(of_length), size):
            numbers, encodings = zip(*of_length[start : start + size], strict=True)
            arrays = tokenizer.arrays(encodings, names, pads=pads)
            cases.append(case_of(f"texts {numbers[0]}…", arrays, manifest.inputs))
    return cases


def _show(report: Report, screen: Screen) -> None:
    show_report(report, screen, nodes=screen.given["nodes"])
    if "report" in screen.given:
        screen.line(f"wrote {screen.given['report']}")


COMMAND = Command(
    check,
    _show,
    passed=lambda report: report.passed,
    exit_codes=(
        "0 every claim holds, 1 a claim failed, 3 the bundle or the model cannot be used, 4 nothing was compared"
    ),
    verbose=VERBOSE,
    examples=(
        "adapter-export check bundle --against model.pt",
        "adapter-export check bundle",
        "adapter-export check bundle --against model.pt --data test.tsv --text text",
        "adapter-export check bundle --against model.pt --adapters a,b",
        "adapter-export check bundle --against model.pt --nodes --repro fault",
        "adapter-export check bundle --runtime old/bin/python",
        "adapter-export check bundle --providers all",
        "adapter-export check bundle --json > report.json",
        "adapter-export check bundle --against model.pt --report page.html",
        "adapter-export check bundle --against model.pt --self-test",
        "adapter-export check bundle --against model.pt --baseline report.json",
    ),
    sections={
        "choice": ("only", "variants", "cases", "quick"),
        "texts": ("data", "text"),
        "faults": ("nodes", "repro", "runtimes", "providers", "self_test"),
        "model": ("site_map", "trust_pickle"),
        "output": ("baseline", "report", "force", "as_json"),
    },
    common=("quick", "as_json"),
)

"""Render a report as sections of lines and tables, for the terminal and for the HTML page."""

from __future__ import annotations

import math
import os
import platform
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from adapter_export.bundle.golden.ablation import note_of
from adapter_export.bundle.report import BASE, Report, failures, unverified
from adapter_export.bundle.risks import risk
from adapter_export.format.check_report import AgreementsRecord, FailureRecord, Finding, Measurement, Number, Status
from adapter_export.page import Markup, document, element, fold, head, heat, items, prose, table
from adapter_export.tables import Table, number_of
from adapter_export.version import __version__
from adapter_export.words import joined, quoted

_NONE = "–"
_STATUSES: tuple[Status, ...] = ("exact", "tested", "unverified", "failed")
_FEW, _MANY = 4, 12
"""Maximum number of listed items per kind; the rest are counted."""

_MAP = ("Sites", "Effects")
"""Sections at the top of the page: an overview of the whole bundle."""

_LONG = 100
"""Maximum characters of an example in a table."""


@dataclass(frozen=True)
class Line:
    """A line of text; `style` names a style of the page."""

    text: str
    style: Literal["", "facts", "note", "failed", "formula"] = ""


@dataclass(frozen=True)
class Heat:
    """Error / budget as a heat map: a row for each kind of site, a column for each layer."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    shares: Sequence[Sequence[float]]


@dataclass(frozen=True)
class Section:
    """A titled part of a report."""

    title: str
    parts: Sequence[Line | Table | Heat]


def sections(report: Report, *, nodes: bool = False) -> Iterator[Section]:
    """Yield the sections of a report, without its failures; `nodes` adds a line for each node."""
    yield Section("Outputs", list(_outputs(report)))
    yield Section("Claims", [_summary(report), _claims(report.findings), *_reasons(report.findings)])
    yield Section("Coverage", [_coverage(report), *_compared(report)])
    yield Section("Sites", list(_sites(report.sites)))
    yield Section("Effects", list(_effects(report)))
    if nodes:
        yield Section("Nodes, on the reference's values", [_nodes(report.nodes)])
    if report.agreements is not None:
        agreements = report.agreements
        yield Section(f"Against {agreements.original}, on {agreements.inputs}", [_agreements(agreements)])


def overview(report: Report) -> Iterator[Line | Table]:
    """Yield the worst result per graph and adapter, the number of verified claims, and the unverified ones."""
    whole = report.table()
    yield replace(whole, title=None, rows=whole.rows[:_MANY])
    if len(whole.rows) > _MANY:
        yield Line(f"… and {number_of(len(whole.rows) - _MANY, 'more row')}", "facts")
    yield _summary(report)
    yield from _effects(report)
    yield from _reasons(report.findings)


def failed_lines(report: Report) -> Iterator[Line]:
    """Yield the failures: adapters with their smallest case and culprit, then every other failed claim."""
    failed = failures(report)
    for failure in failed[:_FEW]:
        yield from (Line(text, "failed" if not at else "") for at, text in enumerate(_failure(failure)))
    if len(failed) > _FEW:
        yield Line(f"… and {len(failed) - _FEW} more, see `--json`", "facts")
    # outputs and sites are already among the failures above
    wrong = [finding for finding in report.findings if not finding.passed and finding.check not in ("output", "site")]
    for finding in wrong[:_MANY]:
        subject = finding.subject if finding.where == finding.subject else f"{finding.subject}, {finding.where}"
        yield Line(f"FAIL {finding.check}, {subject}: " + finding.detail, "failed")
    if len(wrong) > _MANY:
        yield Line(f"… and {len(wrong) - _MANY} more, see `--json`", "facts")


def style_of(report: Report) -> Literal["passed", "partial", "failed"]:
    """Return the style of the verdict: `partial` for a check that passed and skipped something."""
    if not report.passed:
        return "failed"
    return "passed" if report.is_full and not report.counts()["unverified"] else "partial"


def page(report: Report, *, date: str, command: str) -> str:
    """Return the report as an HTML page; `date` and `command` are printed verbatim."""
    return document(f"Check of {report.bundle}", _page(report, date, command))


def _page(report: Report, date: str, command: str) -> Iterator[str]:
    """Yield the verdict, failed and unverified claims, the map of the sites, the details and the provenance."""
    yield element("p", report.summary, f"verdict {style_of(report)}")
    yield element("p", prose(_conclusion(report)))
    yield from map(_html, failed_lines(report))
    yield from _not_covered(report.findings)
    yield _html(_summary(report))
    reference = report.reference or "the golden vectors of the bundle"
    yield element("p", f"{report.runtime} against {reference}; adapter-export {__version__}; {date}.", "facts")
    above = (_summary(report), *_reasons(report.findings))
    for section in sorted(sections(report), key=lambda section: section.title not in _MAP):
        parts = [part for part in section.parts if part not in above]
        if parts:
            yield head(section.title)
        yield from map(_html, parts)
    known = [("bundle (SHA-256 of its manifest)", report.digest), ("base", report.base), ("model", report.against)]
    yield head("Provenance")
    yield table(
        Table(("", ""), [(name, element("code", value)) for name, value in (*known, ("command", command)) if value])
    )


def _conclusion(report: Report) -> str:
    """Return the compared sides, the machine and the outcome, for a reader who knows none of the terms below."""
    machine = f"{platform.system()} {platform.machine()}, {number_of(os.cpu_count() or 1, 'processor')}"
    other = f"its model `{report.against}`" if report.against else "the outputs that the training code recorded in it"
    of = report.counts()
    done = f"The bundle `{report.bundle}` was compared with {other}, on this machine ({machine}). "
    if of["failed"]:
        return f"{done}{number_of(of['failed'], 'claim')} failed: do not ship it before the differences are explained."
    results = [result for result in (*report.outputs, *report.sites) if result.compared]
    numbers = number_of(sum(result.compared for result in results), "number")
    left_out = "; the others are named below, with their risks" if of["unverified"] else ""
    covered = f"{of['exact'] + of['tested']} of {number_of(len(report.findings), 'claim')}{left_out}"
    return f"{done}All {numbers} agree within rounding, and no other claim failed. This covers {covered}."


def _not_covered(findings: Sequence[Finding]) -> Iterator[Markup]:
    """Yield the unverified claims by reason, each with its risk."""
    left = list(unverified(findings).items())
    if left:
        yield head("Not covered")
    entries = []
    for reason, group in left[:_MANY]:
        names = ", ".join(finding.where for finding in group[:_FEW])
        more = f" and {len(group) - _FEW} more" if len(group) > _FEW else ""
        entries.append(f"{names}{more}: " + reason + ". " + risk(group))
    yield items(entries, "note")
    if len(left) > _MANY:
        yield _html(Line(f"… for {number_of(len(left) - _MANY, 'more reason')}", "note"))


def _html(part: Line | Table | Heat) -> Markup:
    if isinstance(part, Table):
        return table(part)
    if isinstance(part, Heat):
        return heat(part.columns, part.rows, part.shares)
    if part.style == "formula":
        return fold("An error of at most 1 budget passes. How the budget is computed", prose(part.text))
    return element("p", prose(part.text), part.style)


def _outputs(report: Report) -> Iterator[Line | Table]:
    """Yield each output of the main graph, then the other graphs, then golden vectors if a model was compared."""
    outputs = report.outputs
    compared = [output for output in outputs if output.against == ("reference" if report.reference else "golden")]
    variant = compared[0].variant if compared else "slots"
    first = [output for output in compared if output.variant == variant]
    others = [output for output in compared if output.variant != variant]
    golden = [output for output in outputs if output.against == "golden" and report.reference]
    yield _of_adapters(first)
    if first:
        largest = max(first, key=lambda output: output.budget.absolute)
        yield Line(
            f"budget of `{largest.name}` (others: the same formula with their scale): {largest.budget.reason}",
            "formula",
        )
    else:
        yield Line("no outputs were compared", "facts")
    if others:
        yield _of_variants(others)
    if golden:
        worst, bad = max(golden, key=lambda output: output.badness), sum(not output.passed for output in golden)
        failed = f", {bad} failed" if bad else ""
        yield Line(f"golden vectors: {number_of(len(golden), 'output')}, worst {worst.ratio:.2f} of its budget{failed}")


def _of_adapters(results: Sequence[Measurement]) -> Table:
    """Return one row per adapter, the worst over shapes, outputs and levels, and one for each failing shape.

    Padding has separate rows: its values must not hide others.
    """
    places: dict[tuple[str, str], list[Measurement]] = {}
    for measurement in results:
        case = f"{measurement.case}, mixed" if measurement.mixed else measurement.case
        places.setdefault((measurement.adapter or BASE, f"{case}{_padding(measurement)}"), []).append(measurement)
    whole: dict[tuple[str, str], list[Measurement]] = {}
    for (adapter, _), group in places.items():
        if all(measurement.passed for measurement in group):
            whole.setdefault((adapter, _padding(group[0])), []).extend(group)
    merged = {(adapter, f"{_shapes(group)}{padding}"): group for (adapter, padding), group in whole.items()}
    wrong = {place: group for place, group in places.items() if not all(measurement.passed for measurement in group)}
    columns = ("adapter", "case", "max error", "error/budget", "ulp", "cosine", "top class", "verdict")
    rows = [(*place, *_measures(group)) for place, group in {**merged, **wrong}.items()]
    return Table(columns, rows, numbers="llrrrrr", spare=("ulp", "cosine", "max error"))


def _padding(measurement: Measurement) -> str:
    return ", padding" if measurement.part == "padding" else ""


def _shapes(results: Sequence[Measurement]) -> str:
    names = {measurement.case for measurement in results}
    return number_of(len(names), "shape") if len(names) > 1 else names.pop()


def _of_variants(results: Sequence[Measurement]) -> Table:
    """Return one row per other graph, and one for its mixed batches."""
    rows = []
    for variant, mixed in dict.fromkeys((measurement.variant, measurement.mixed) for measurement in results):
        of_variant = [
            measurement for measurement in results if (measurement.variant, measurement.mixed) == (variant, mixed)
        ]
        error, ratio, *_, mark = _measures(of_variant)
        adapters = len({measurement.adapter for measurement in of_variant if measurement.adapter is not None})
        tops = [measurement.top_class for measurement in of_variant if measurement.top_class is not None]
        same = f"{sum(top.agree for top in tops)}/{sum(top.rows for top in tops)}" if tops else _NONE
        rows.append(
            (
                variant,
                "in mixed batches" if mixed else "separately",
                adapters,
                len(of_variant),
                error,
                ratio,
                same,
                mark,
            )
        )
    columns = ("variant", "adapters", "count", "outputs", "max error", "error/budget", "top class", "verdict")
    return Table(columns, rows, numbers="llrrrrr", spare=("outputs", "count", "max error"))


def _measures(measurements: Sequence[Measurement]) -> tuple[str, ...]:
    worst = max(measurements, key=lambda measurement: measurement.badness)
    ulp = None if worst.worst is None else worst.worst.ulp
    errors = [measurement.absolute for measurement in measurements if measurement.compared]
    cosines = [measurement.cosine for measurement in measurements if measurement.cosine is not None]
    return (
        f"{max(errors):.1e}" if errors else _NONE,
        f"{worst.ratio:.2f}" if worst.compared else _NONE,
        _NONE if ulp is None else f"{ulp:,}",
        f"{min(cosines):.7f}" if cosines else _NONE,
        _top_class(measurements),
        "pass" if all(measurement.passed for measurement in measurements) else "FAIL",
    )


def _top_class(measurements: Sequence[Measurement]) -> str:
    """Return the number of rows whose top class matches, at the worst level."""
    seen = [measurement.top_class for measurement in measurements if measurement.top_class is not None]
    if not seen:
        return _NONE
    worst = min(seen, key=lambda top: top.agree / top.rows)
    ties = sum(flip.within_budget for flip in worst.flips)
    agree = f"{worst.agree}/{worst.rows}"
    return f"{agree} ({ties} tied)" if ties else agree


def _summary(report: Report) -> Line:
    of = report.counts()
    verified = f"{of['exact'] + of['tested']} of {number_of(len(report.findings), 'claim')} verified"
    failed = f", {of['failed']} failed" if of["failed"] else ""
    return Line(f"{verified} ({of['exact']} bit-exact, {of['tested']} tested), {of['unverified']} unverified{failed}")


def _claims(findings: Sequence[Finding]) -> Table:
    """Return one row per kind of claim: the count of each status, and the largest error."""
    rows = []
    for check in dict.fromkeys(finding.check for finding in findings):
        group = [finding for finding in findings if finding.check == check]
        by = Counter(finding.status for finding in group)
        ratios = [finding.ratio for finding in group if finding.ratio is not None]
        first = group[0]
        example = f"{first.subject}: {first.detail!s}"
        example = example if len(example) <= _LONG else f"{example[: _LONG - 1]}…"
        numbers = (by[status] or "" for status in _STATUSES)
        rows.append((check, *numbers, f"{max(ratios):.2f}" if ratios else "", example))
    return Table(("claim", *_STATUSES, "error/budget", "example"), rows, numbers="lrrrrr")


def _reasons(findings: Sequence[Finding]) -> Iterator[Line]:
    """Yield unverified claims, grouped by reason."""
    left = list(unverified(findings).items())
    for reason, group in left[:_MANY]:
        names = [finding.where for finding in group]
        more = f" and {len(names) - _FEW} more" if len(names) > _FEW else ""
        yield Line(f"unverified: {', '.join(names[:_FEW])}{more}: " + reason, "note")
    if len(left) > _MANY:
        yield Line(f"… for {number_of(len(left) - _MANY, 'more reason')}", "note")


def _coverage(report: Report) -> Table:
    """Return the coverage of each dimension, the largest of any claim."""
    spans: dict[str, tuple[int, int | None]] = {}
    every_word = any(finding.check == "shape" and finding.subject.startswith("words/") for finding in report.findings)
    for finding in report.findings:
        is_words = finding.check == "shape" and finding.subject.startswith("words/")
        for span in finding.coverage:
            # skip words that cases contain by chance, levels (named below), and shapes, which `verify` does not extend
            if span.what == "levels" or span.of == 0 or (every_word and span.what == "words" and not is_words):
                continue
            what = f"{span.what} ({finding.where})" if span.what == "words" and every_word else span.what
            if span.done >= spans.get(what, (0, None))[0]:
                spans[what] = span.done, span.of
    levels = list(dict.fromkeys(finding.level for finding in report.outputs if finding.variant == "slots"))
    graphs = list(dict.fromkeys(finding.variant for finding in report.outputs))
    rows = [(what, f"{done:,}", "unbounded" if of is None else f"{of:,}") for what, (done, of) in spans.items()]
    rows += [("levels", f"{len(levels)}", ", ".join(levels)), ("graphs", f"{len(graphs)}", ", ".join(graphs))]
    return Table(("", "tested", "of"), [*rows, ("runtimes", "1", report.runtime)], numbers="lr")


def _compared(report: Report) -> Iterator[Line]:
    coverage = report.coverage()
    left_out = f"; not compared: {'; '.join(coverage.left_out[:_FEW])}" if coverage.left_out else ""
    more = " …" if len(coverage.left_out) > _FEW else ""
    values = f"compared {coverage.compared} of {coverage.planned} values, {number_of(coverage.elements, 'element')}"
    yield Line(f"{values}{left_out}{more}")


def _sites(results: Sequence[Measurement]) -> Iterator[Line | Heat]:
    """Yield the worst of all sites, and a heat map of error / budget, the worst of all adapters."""
    if not results:
        return
    worst = max(results, key=lambda site: site.badness)
    bad = sum(not site.passed for site in results)
    failed = f", {bad} over their budgets" if bad else ""
    yield Line(
        f"{number_of(len(results), 'site')} and heads against float64, worst {worst.ratio:.2f} of its budget "
        f"({worst.adapter}, `{worst.name}`){failed}"
    )
    layers: dict[str, dict[str, float]] = {}
    for measurement in results:  # layers.3.ffn → a row `ffn`, a column 3
        parts = measurement.name.split(".")
        layer = next((part for part in parts if part.isdecimal()), "")
        kind = ".".join(part for part in parts if not part.isdecimal() and part != "layers")
        cell = layers.setdefault(kind, {})
        cell[layer] = max(cell.get(layer, 0.0), measurement.ratio)
    known = {layer for cells in layers.values() for layer in cells}
    columns = sorted(known, key=lambda layer: (layer == "", layer.zfill(6)))
    rows = [(kind, *(_share(cells.get(layer)) for layer in columns)) for kind, cells in layers.items()]
    shares = [[min(cells.get(layer, 0.0), 1.0) for layer in columns] for cells in layers.values()]
    yield Heat(("site", *(layer or _NONE for layer in columns)), rows, shares)


def _share(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}" if ratio < 100 else "over 100"


def _effects(report: Report) -> Iterator[Line]:
    """Yield the effect of the adapters on the base's outputs, then a note for each without effect."""
    if report.effects:
        ordered = sorted(report.effects, key=lambda effect: effect.change)
        ends = ordered[:1] + ordered[1:][-1:]
        moved = " to ".join(f"{effect.change:.2%} (`{effect.adapter}`)" for effect in ends)
        yield Line(f"effect: adapters change the base's outputs by {moved}")
    yield from (Line(note, "note") for note in filter(None, map(note_of, report.effects)))


def _nodes(results: Sequence[Measurement]) -> Table:
    """Return one row per value: the error of its step, and the cumulative error."""
    rows = []
    for measurement in results:
        assert measurement.node is not None
        arrived = measurement.node.cumulative
        grown = f"{arrived / measurement.absolute:.1f}" if arrived and measurement.absolute else _NONE
        errors = (
            f"{measurement.absolute:.1e}",
            f"{measurement.ratio:.2f}",
            _NONE if arrived is None else f"{arrived:.1e}",
            grown,
        )
        place = (measurement.adapter or BASE, measurement.name, measurement.node.operators, measurement.path or _NONE)
        rows.append((*place, *errors, "pass" if measurement.passed else "FAIL"))
    columns = ("adapter", "node", "operators", "torch", "error", "error/budget", "cumulative", "grown", "verdict")
    return Table(columns, rows, numbers="llllrrrr", spare=("torch", "grown", "cumulative", "operators", "error"))


def _agreements(agreements: AgreementsRecord) -> Table:
    """Return the cost of the precision, one row per output."""
    rows = []
    for agreement in agreements.results:
        same = _NONE if agreement.agree is None else f"{agreement.agree} ({agreement.agree / agreement.rows:.1%})"
        difference = f"{agreement.absolute:.1e} of {agreement.scale:.3g}"
        cosine = _NONE if agreement.cosine is None else f"{agreement.cosine:.5f}"
        rows.append((agreement.adapter or BASE, agreement.output, f"{agreement.rows:,}", same, difference, cosine))
    return Table(("adapter", "output", "rows", "same class", "max difference", "cosine"), rows, numbers="llrrrr")


def _failure(failure: FailureRecord) -> Iterator[str]:
    case, worst, location = f"{failure.case}, mixed" if failure.mixed else failure.case, failure.worst, failure.location
    index = "" if worst is None or failure.output is None else list(worst.index)
    yield f"FAIL {failure.adapter or BASE}, {case}: {failure.output or 'a site'}{index}"
    yield f"  {'; '.join(failure.faults)}"
    if worst is not None:
        ratio = f", {failure.ratio:.3g} × the budget" if failure.ratio else ""
        yield f"  found {_number(worst.found)}, expected {_number(worst.expected)}{ratio}"
    places = list[str]()
    if failure.levels_failed and failure.variant == "slots":
        passed = f"; passes at {', '.join(failure.levels_passed)}" if failure.levels_passed else ""
        places.append(f"at {', '.join(failure.levels_failed)}{passed}")
    if failure.variant != "slots" or len(failure.variants_failed) > 1:
        places.append(f"in {quoted(failure.variants_failed)}")
    if places:
        yield f"  fails {'; '.join(places)}"
    yield f"  {_culprit(failure)}"
    if location is not None and location.guess is not None:
        yield f"  looks like: {location.guess}"
    if location is not None and location.detail:
        yield "  " + joined(location.detail, "; ")
    repro = "" if location is None or location.repro is None else f"; node in isolation: {location.repro}"
    yield f"  reproduce: {failure.command}{repro}"


def _culprit(failure: FailureRecord) -> str:
    """Return the node, site, graph or file that a failure starts at, as far as it is known."""
    site, location = failure.culprit, failure.location
    node = None if location is None else location.node
    origin = "" if node is None or node.node is None else node.node.origin
    if node is not None and node.node is not None and not (site is not None and origin.startswith(f"{site.name}/")):
        torch = ", ".join(filter(None, (node.path, node.node.line)))
        values = _values(node, "expected")
        where = f" (torch: {torch})" if torch else ""
        return f"culprit: `{node.name}`, {node.node.operators}{where}: {values}, {node.ratio:.3g} × its budget"
    if site is not None:
        path = "" if site.path is None else f" (torch: {site.path})"
        return f"culprit: {site.name}{path}: {_values(site, 'float64 gives')}, {site.ratio:.3g} × its budget"
    if failure.variant not in ("slots", "inputs"):
        return f"culprit: the graph `{failure.variant}` or its tensors, not the adapter's files"
    if location is not None and location.nodes:
        return f"culprit: not found in {location.nodes} nodes or in the sites of the adapter"
    return "culprit: not at a site of the adapter; check the base, or accumulated rounding"


def _values(measurement: Measurement, other: str) -> str:
    if measurement.worst is None:
        return "; ".join(measurement.faults)
    return f"found {_number(measurement.worst.found)}, {other} {_number(measurement.worst.expected)}"


def _number(value: Number) -> str:
    return str(value) if isinstance(value, int | str) or not math.isfinite(value) else f"{value:.8g}"

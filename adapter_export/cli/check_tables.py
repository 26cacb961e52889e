"""The report of a check, for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from rich.text import Text

from adapter_export.bundle.report import BASE, Report, failures
from adapter_export.cli.output import console, shown
from adapter_export.format.check_report import (
    AgreementRecord,
    AgreementsRecord,
    ComparisonRecord,
    FailureRecord,
    Form,
    InvariantRecord,
    Number,
    OutputRecord,
    SiteRecord,
)
from adapter_export.tables import Table

_COLUMNS = ("adapter", "case", "max error", "error/budget", "ulp", "cosine", "top class", "verdict")
_FLAVOUR_COLUMNS = ("flavour", "batches", "adapters", "outputs", "max error", "error/budget", "top class", "verdict")
_MOST_FAILURES = 5
_NONE = "–"


def show(report: Report) -> None:
    """Print a report to stdout."""
    out = console()
    out.print(Text(f"{report.bundle}: {report.runtime} against {report.reference or 'the golden vectors'}", "bold"))
    compared = [each for each in report.outputs if each.against == ("reference" if report.reference else "golden")]
    form = compared[0].flavour if compared else "slots"
    first = [result for result in compared if result.flavour == form]
    out.print(shown(_outputs(first)))
    out.print(Text(_reason(first), "dim"), soft_wrap=True)
    others = [result for result in compared if result.flavour != form]
    if others:
        out.print(shown(_flavours(others)))
    for line in (*_golden_lines(report), _sites_line(report.sites), *_invariant_lines(report.invariants)):
        out.print(line, soft_wrap=True)
    out.print(_coverage_line(report), soft_wrap=True)
    if report.agreements is not None:
        out.print(shown(_agreements(report.agreements)))
    found = failures(report)
    for failure in found[:_MOST_FAILURES]:
        out.print(Text("\n").join(_failure_lines(failure)), soft_wrap=True)
    if len(found) > _MOST_FAILURES:
        out.print(Text(f"… and {len(found) - _MOST_FAILURES} more, see `--json`", "dim"))
    out.print(Text("passed", "bold green") if report.passed else Text("failed", "bold red"))


def _agreements(found: AgreementsRecord) -> Table:
    """What the precision costs, one line per output."""
    rows = [_agreement(result) for result in found.results]
    title = f"against {found.original}, on {found.inputs}"
    columns = ("adapter", "output", "rows", "same class", "max difference", "cosine")
    return Table(columns, rows, title, numbers="llrrrr")


def _agreement(result: AgreementRecord) -> tuple[str, ...]:
    same = _NONE if result.agree is None else f"{result.agree} ({result.agree / result.rows:.1%})"
    relative = f"{result.absolute:.1e} of {result.scale:.3g}"
    return (
        result.adapter or BASE,
        result.output,
        f"{result.rows:,}",
        same,
        relative,
        _NONE if result.cosine is None else f"{result.cosine:.5f}",
    )


def _flavours(results: Sequence[OutputRecord]) -> Table:
    """One line for each other graph, and one for its mixed batches."""
    ways = dict.fromkeys((result.flavour, result.mixed) for result in results)
    rows = [_flavour(way, [each for each in results if (each.flavour, each.mixed) == way]) for way in ways]
    return Table(_FLAVOUR_COLUMNS, rows, numbers="llrrrrr")


def _flavour(way: tuple[Form, bool], results: Sequence[OutputRecord]) -> tuple[str, ...]:
    form, mixed = way
    _, _, error, ratio, _, _, _, mark = _row(("", ""), results)
    adapters = len({result.adapter for result in results if result.adapter is not None})
    tops = [found.top_class for found in results if found.top_class is not None]
    same = f"{sum(top.agree for top in tops)}/{sum(top.rows for top in tops)}" if tops else _NONE
    return form, "mixed" if mixed else "one adapter", str(adapters), str(len(results)), error, ratio, same, mark


def _place(result: OutputRecord) -> tuple[str, str]:
    """A line of its own for what stands at padding, which nobody reads and which must not hide what is read."""
    case = f"{result.case}, mixed" if result.mixed else result.case
    return result.adapter or BASE, f"{case}, padding" if result.part == "padding" else case


def _outputs(results: Sequence[OutputRecord]) -> Table:
    """One line per adapter and case: the largest error and the worst ratio over outputs and optimization levels."""
    order = {place: number for number, place in enumerate(dict.fromkeys(map(_place, results)))}
    ordered = sorted(results, key=lambda result: order[_place(result)])
    rows = [_row(place, list(group)) for place, group in groupby(ordered, key=_place)]
    return Table(_COLUMNS, rows, numbers="llrrrrr")


def _row(place: tuple[str, str], comparisons: Sequence[ComparisonRecord]) -> tuple[str, ...]:
    worst = max(comparisons, key=_badness)
    ulp = None if worst.worst is None else worst.worst.ulp
    errors = [found.absolute for found in comparisons if found.compared]
    cosines = [found.cosine for found in comparisons if found.cosine is not None]
    return (
        *place,
        f"{max(errors):.1e}" if errors else _NONE,
        f"{worst.ratio:.2f}" if worst.compared else _NONE,
        _NONE if ulp is None else f"{ulp:,}",
        f"{min(cosines):.7f}" if cosines else _NONE,
        _top_class(comparisons),
        "pass" if all(found.passed for found in comparisons) else "FAIL",
    )


def _badness(result: ComparisonRecord) -> tuple[bool, float]:
    return not result.passed, result.ratio


def _top_class(comparisons: Sequence[ComparisonRecord]) -> str:
    """Rows that agree, at the level where the fewest do."""
    seen = [found.top_class for found in comparisons if found.top_class is not None]
    if not seen:
        return _NONE
    worst = min(seen, key=lambda found: found.agree / found.rows)
    ties = sum(flip.within_budget for flip in worst.flips)
    agree = f"{worst.agree}/{worst.rows}"
    return f"{agree} ({ties} tied)" if ties else agree


def _mark(passed: bool) -> Text:
    return Text("pass", "green") if passed else Text("FAIL", "bold red")


def _reason(results: Sequence[OutputRecord]) -> str:
    """The reason of the largest budget; the others differ in the scale of their output alone."""
    if not results:
        return "no outputs were compared"
    largest = max(results, key=lambda result: result.budget.absolute)
    reason = largest.budget.reason
    return f"budget of `{largest.output}`, the others likewise by their own scale: {reason}"


def _golden_lines(report: Report) -> Iterator[Text]:
    """The golden vectors in one line, where the table shows the reference."""
    found = [result for result in report.outputs if result.against == "golden"]
    if report.reference is not None and found:
        worst = max(found, key=_badness)
        bad = sum(not result.passed for result in found)
        summary = f"  golden vectors: {len(found)} outputs, worst {worst.ratio:.2f} of its budget"
        yield Text.assemble(_mark(not bad), summary, f", {bad} do not pass" if bad else "")


def _sites_line(results: Sequence[SiteRecord]) -> Text:
    if not results:
        return Text("sites: no adapter was checked")
    worst = max(results, key=_badness)
    bad = sum(not result.passed for result in results)
    summary = f"{len(results)} sites and heads against float64, worst {worst.ratio:.2f} of its budget"
    return Text.assemble(
        _mark(not bad), f"  {summary} ({worst.adapter}, `{worst.site}`)", f", {bad} over their budgets" if bad else ""
    )


def _invariant_lines(results: Sequence[InvariantRecord]) -> Iterator[Text]:
    """One line for all of a name that hold, one for each that does not."""
    for name, group in groupby(sorted(results, key=lambda result: result.name), key=lambda result: result.name):
        found = list(group)
        for bad in (result for result in found if not result.passed):
            yield Text.assemble(_mark(False), f"  {name}, {bad.subject}: {bad.detail}")
        good = [result for result in found if result.passed]
        if good:
            yield Text.assemble(_mark(True), f"  {name}: {_all_of(good)}")


def _all_of(results: Sequence[InvariantRecord]) -> str:
    subjects = [result.subject for result in results]
    more = f", … {len(subjects)} in all" if len(subjects) > 3 else ""
    return f"{', '.join(subjects[:3])}{more} ({results[0].detail})"


def _coverage_line(report: Report) -> Text:
    coverage = report.coverage()
    line = f"compared {coverage.compared} of {coverage.planned} values, {coverage.elements:,} elements"
    left_out = f"; not compared: {'; '.join(coverage.left_out[:3])}" if coverage.left_out else ""
    return Text(line + left_out + (" …" if len(coverage.left_out) > 3 else ""))


def _failure_lines(failure: FailureRecord) -> Iterator[Text]:
    case = f"{failure.case}, mixed" if failure.mixed else failure.case
    yield Text.assemble(("FAIL ", "bold red"), f"{failure.adapter or BASE}, {case}: {_where(failure)}")
    yield Text(f"  {'; '.join(failure.faults)}")
    worst = failure.worst
    if worst is not None:
        ratio = f", {failure.ratio:.3g} × the budget" if failure.ratio else ""
        yield Text(f"  found {_number(worst.found)}, expected {_number(worst.expected)}{ratio}")
    if failure.flavour != "slots" or len(failure.flavours_failed) > 1:
        yield Text(f"  fails in {', '.join(f'`{form}`' for form in failure.flavours_failed)}")
    if failure.levels_failed and failure.flavour == "slots":
        yield Text(f"  {_levels(failure)}")
    yield Text(f"  {_culprit(failure)}")
    yield Text(f"  repeat: {failure.command}")


def _where(failure: FailureRecord) -> str:
    name = failure.output or "a site"
    worst = failure.worst
    return name if worst is None or failure.output is None else f"{name}{list(worst.index)}"


def _levels(failure: FailureRecord) -> str:
    failed = f"fails at {', '.join(failure.levels_failed)}"
    return f"{failed}; passes at {', '.join(failure.levels_passed)}" if failure.levels_passed else failed


def _culprit(failure: FailureRecord) -> str:
    site = failure.culprit
    if site is None and failure.flavour not in ("slots", "inputs"):
        return f"culprit: the graph `{failure.flavour}` or the tensors in it, not the adapter's own files"
    if site is None:
        return "culprit: no site of an adapter; look at the base or at rounding that adds up"
    path = "" if site.path is None else f" (torch: {site.path})"
    worst = site.worst
    values = (
        "; ".join(site.faults)
        if worst is None
        else f"found {_number(worst.found)}, float64 gives {_number(worst.expected)}"
    )
    return f"culprit: {site.site}{path}: {values}, {site.ratio:.3g} × its own budget"


def _number(value: Number) -> str:
    return str(value) if isinstance(value, int | str) else f"{value:.8g}"

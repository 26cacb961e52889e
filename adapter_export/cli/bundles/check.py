"""`adapter-export check` and `adapter-export verify`: does a bundle compute what it should, and is it whole?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click
from rich.text import Text

import adapter_export as ae
from adapter_export.cli.bases import listed, opened, stepping
from adapter_export.cli.options import Force, Json, SiteMapFile, TrustPickle, command
from adapter_export.cli.output import console, emit_json, show, shown
from adapter_export.errors import UsageError, quoted
from adapter_export.option import Option
from adapter_export.tables import Table

if TYPE_CHECKING:
    from adapter_export.bundle.report import Report
    from adapter_export.format.check_report import (
        AgreementsRecord,
        ComparisonRecord,
        EffectRecord,
        FailureRecord,
        InvariantRecord,
        NodeRecord,
        Number,
        OutputRecord,
        SiteRecord,
    )

_MISMATCH = 1
_MOST_FAILURES = 5
_MANY_CHECKS = 10
_BASE = "base"
_NONE = "–"


@command(
    "adapter-export check bundle --against model.pt",
    "adapter-export check bundle",
    "adapter-export check bundle --against model.pt --data test.tsv --text text",
    "adapter-export check bundle --against model.pt --adapters a,b",
    "adapter-export check bundle --against model.pt --nodes --repro fault",
    "adapter-export check bundle --runtime old/bin/python",
    "adapter-export check bundle --json > report.json",
    "adapter-export check bundle --against model.pt --report page.html",
    "adapter-export check bundle --against model.pt --self-test",
    "adapter-export check bundle --against model.pt --against report.json",
    like=ae.check,
    sections={
        "choice": ("only", "variants", "cases", "quick"),
        "texts": ("data", "text"),
        "faults": ("nodes", "repro", "runtimes", "self_test"),
        "model": ("site_map", "trust_pickle"),
        "output": ("report", "force", "as_json"),
    },
    common=("quick", "as_json"),
)
def check(
    bundle: Path,
    *,
    against: Annotated[
        Sequence[str],
        Option(
            "The model that the bundle was built from: a torch archive, a Hugging Face folder or an ONNX file. "
            "Without it the golden vectors in the bundle are the reference, and torch is not needed. Also an earlier "
            "report of `--json`, `last.json`: what was shown then may not be open now.",
            "MODEL",
        ),
    ] = (),
    adapters: Annotated[
        str | None,
        Option(
            "Adapter folders as you have them: the bundle's tensors are compared with these, not with its own copies.",
            "A,B,…",
        ),
    ] = None,
    self_test: Annotated[
        bool, Option("Plant faults of about a hundred kinds in a copy instead, and count which of them are found.")
    ] = False,
    force: Force = False,
    site_map: SiteMapFile = None,
    trust_pickle: TrustPickle = False,
    as_json: Json = False,
    **options: Any,
) -> None:
    """Prove that BUNDLE computes what it should, for the base and every adapter.

    Compares every output of every graph in the bundle at a matrix of shapes: the graph with slots at ONNX Runtime's
    optimization levels none, basic and all, the bank also in batches whose rows run through different adapters. Then
    every adapter at every site with float64 arithmetic, and what must hold in any case: switching leaves no trace, idle
    slots change nothing, rows of a batch stay apart, all files are as they were written. What is allowed follows from
    the computation, and is printed with its reason. With MODEL, every
    node is compared with MODEL's, on the values that MODEL has there.

    With MODEL every constant and node, with the adapters every slot, is proved bit by bit. A ledger counts what is
    proved, tested and open.

    A bundle whose base has another precision than MODEL is compared with MODEL in that same precision; how far that is
    from MODEL itself is reported beside, on random inputs or on the texts of FILE.

    Exit codes: 0 everything is within its budget, 1 something is not, 3 the bundle or the model cannot be used,
    4 nothing was compared.
    """
    last, model = _one([each for each in against if each.endswith(".json")], "earlier report"), None
    if (path := _one([each for each in against if not each.endswith(".json")], "model")) is not None:
        model = opened(Path(path), site_map, trust_pickle)
    if self_test:
        _self_test(bundle, model, {"adapters": adapters, "against": last, **options}, as_json=as_json)
        return
    own = None if adapters is None else listed(adapters)
    with stepping("checking") as on_step:
        report = ae.check(bundle, against=model, adapters=own, last=last, force=force, on_step=on_step, **options)
    if as_json:
        emit_json(report.to_json())
    else:
        _show_check(report, nodes=options.get("nodes", False))
        if options.get("report") is not None:
            console().print(f"the page is {options['report']}", markup=False, soft_wrap=True)
    if not report.passed:
        raise click.exceptions.Exit(_MISMATCH)


def _self_test(bundle: Path, base: ae.Base | None, options: Mapping[str, object], *, as_json: bool) -> None:
    if any(options.values()):
        given = ", ".join(f"--{name.replace('_', '-')}" for name, value in options.items() if value)
        raise UsageError(
            "a self-test tries the whole bundle", found=given, fix="leave them out, or leave --self-test out"
        )
    with stepping("planting faults") as on_step:
        found = ae.self_test(bundle, against=base, on_step=on_step)
    if as_json:
        emit_json(found.to_json())
    else:
        show(found.table())
        for fault in found.faults:
            if fault.status in ("missed", "without effect"):
                line = f"{fault.status}: {fault.name} (`{'`, `'.join(fault.places)}`): {fault.detail}"
                console().print(Text(line, "bold red" if fault.status == "missed" else ""), soft_wrap=True)
    if not found.passed:
        raise click.exceptions.Exit(_MISMATCH)


def _one(given: Sequence[str], what: str) -> str | None:
    """Return the only one of some options, if there is any."""
    if len(given) > 1:
        raise UsageError(f"more than one {what}", where="`--against`", found=", ".join(given), expected="one")
    return given[0] if given else None


@command(
    "adapter-export verify bundle",
    "adapter-export verify bundle --expect DIGEST",
    "adapter-export verify bundle --json > report.json",
    like=ae.verify,
)
def verify(bundle: Path, *, as_json: Json = False, **options: Any) -> None:
    """Show that BUNDLE is whole, and that it computes on this machine what it should.

    Needs neither torch nor the model. Checks every file against its hash, and that there are no others and no links
    that lead out; the manifest against its schema; every graph against the manifest: inputs, outputs, slots with their
    defaults, where its weights lie; both files of every adapter against the slots and each other, and the rows of the
    bank against them. Then it runs the golden vectors in every variant of the graph, the bank also in batches whose
    rows run through different adapters. `check --against MODEL` goes further.

    Exit codes: 0 passed, 1 a result is off, 3 the bundle is damaged, or something in it does not fit, 4 nothing was
    compared.
    """
    from adapter_export.bundle.report import verification

    with stepping("verifying") as on_step:
        report = ae.verify(bundle, on_step=on_step, **options)
    if as_json:
        emit_json(verification(report))
    else:
        _show_verification(report)
    if not report.passed:
        raise click.exceptions.Exit(_MISMATCH)


def _show_check(report: Report, *, nodes: bool) -> None:
    from adapter_export.bundle.report import failures

    out = console()
    out.print(Text(f"{report.bundle}: {report.runtime} against {report.reference or 'the golden vectors'}", "bold"))
    compared = [each for each in report.outputs if each.against == ("reference" if report.reference else "golden")]
    form = compared[0].variant if compared else "slots"
    first = [result for result in compared if result.variant == form]
    out.print(shown(_outputs(first)))
    reason = "no outputs were compared"
    if first:
        largest = max(first, key=lambda result: result.budget.absolute)
        rest = "the others likewise by their own scale"  # they differ in that alone
        reason = f"budget of `{largest.output}`, {rest}: {largest.budget.reason}"
    out.print(Text(reason, "dim"), soft_wrap=True)
    others = [result for result in compared if result.variant != form]
    if others:
        out.print(shown(_variants(others)))
    for line in (*_golden_lines(report), _sites_line(report.sites), *_invariant_lines(report.invariants)):
        out.print(line, soft_wrap=True)
    coverage = report.coverage()
    left_out = f"; not compared: {'; '.join(coverage.left_out[:3])}" if coverage.left_out else ""
    more = " …" if len(coverage.left_out) > 3 else ""
    values = f"compared {coverage.compared} of {coverage.planned} values, {coverage.elements:,} elements"
    out.print(Text(f"{values}{left_out}{more}"), soft_wrap=True)
    for line in (*_ledger_lines(report), *_effect_lines(report.effects)):
        out.print(line, soft_wrap=True)
    if nodes:
        out.print(shown(_nodes(report.nodes)))
    if report.agreements is not None:
        out.print(shown(_agreements(report.agreements)))
    found = failures(report)
    for failure in found[:_MOST_FAILURES]:
        out.print(Text("\n").join(_failure_lines(failure)), soft_wrap=True)
    if len(found) > _MOST_FAILURES:
        out.print(Text(f"… and {len(found) - _MOST_FAILURES} more, see `--json`", "dim"))
    out.print(Text("passed", "bold green") if report.passed else Text("failed", "bold red"))


def _nodes(records: Sequence[NodeRecord]) -> Table:
    """Return one line per value: the error of its own step, and the error that has arrived there."""
    rows = []
    for node in records:
        arrived = _NONE if node.cumulative is None else f"{node.cumulative:.1e}"
        grown = f"{node.cumulative / node.absolute:.1f}" if node.cumulative and node.absolute else _NONE
        mark = "pass" if node.passed else "FAIL"
        own = (f"{node.absolute:.1e}", f"{node.ratio:.2f}", arrived, grown, mark)
        rows.append((node.adapter or _BASE, node.node, node.operators, node.path or _NONE, *own))
    columns = ("adapter", "node", "operators", "torch", "error", "error/budget", "cumulative", "grown", "verdict")
    return Table(columns, rows, "nodes, on the reference's own values", numbers="llllrrrr")


def _agreements(found: AgreementsRecord) -> Table:
    """Return what the precision costs, one line per output."""
    rows = []
    for result in found.results:
        same = _NONE if result.agree is None else f"{result.agree} ({result.agree / result.rows:.1%})"
        difference = f"{result.absolute:.1e} of {result.scale:.3g}"
        cosine = _NONE if result.cosine is None else f"{result.cosine:.5f}"
        rows.append((result.adapter or _BASE, result.output, f"{result.rows:,}", same, difference, cosine))
    title = f"against {found.original}, on {found.inputs}"
    columns = ("adapter", "output", "rows", "same class", "max difference", "cosine")
    return Table(columns, rows, title, numbers="llrrrr")


def _variants(results: Sequence[OutputRecord]) -> Table:
    """Return one line for each other graph, and one for its mixed batches."""
    rows = []
    for variant, mixed in dict.fromkeys((result.variant, result.mixed) for result in results):
        own = [result for result in results if (result.variant, result.mixed) == (variant, mixed)]
        _, _, error, ratio, _, _, _, mark = _row(("", ""), own)
        adapters = len({result.adapter for result in own if result.adapter is not None})
        tops = [found.top_class for found in own if found.top_class is not None]
        same = f"{sum(top.agree for top in tops)}/{sum(top.rows for top in tops)}" if tops else _NONE
        batches = "mixed" if mixed else "one adapter"
        rows.append((variant, batches, adapters, len(own), error, ratio, same, mark))
    columns = ("variant", "batches", "adapters", "outputs", "max error", "error/budget", "top class", "verdict")
    return Table(columns, rows, numbers="llrrrrr")


def _place(result: OutputRecord) -> tuple[str, str]:
    """Return the line of a result; values at padding, which nobody reads, must not hide others, so have their own."""
    case = f"{result.case}, mixed" if result.mixed else result.case
    return result.adapter or _BASE, f"{case}, padding" if result.part == "padding" else case


def _outputs(results: Sequence[OutputRecord]) -> Table:
    """Return one line per adapter, the worst over shapes, outputs and levels, and one for each shape that is wrong.

    Padding has lines of its own.
    """
    places: dict[tuple[str, str], list[OutputRecord]] = {}
    for result in results:
        places.setdefault(_place(result), []).append(result)
    wrong = {place for place, found in places.items() if not all(each.passed for each in found)}
    whole: dict[tuple[str, str], list[OutputRecord]] = {}
    for (adapter, case), found in places.items():
        if (adapter, case) not in wrong:
            whole.setdefault((adapter, ", padding" if case.endswith(", padding") else ""), []).extend(found)
    merged = {(adapter, f"{_shapes(found)}{padding}"): found for (adapter, padding), found in whole.items()}
    places = {**merged, **{place: places[place] for place in places if place in wrong}}
    columns = ("adapter", "case", "max error", "error/budget", "ulp", "cosine", "top class", "verdict")
    return Table(columns, [_row(place, found) for place, found in places.items()], numbers="llrrrrr")


def _shapes(results: Sequence[OutputRecord]) -> str:
    names = {each.case for each in results}
    return f"{len(names)} shapes" if len(names) > 1 else names.pop()


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
    """Return how many rows agree, at the level where the fewest do."""
    seen = [found.top_class for found in comparisons if found.top_class is not None]
    if not seen:
        return _NONE
    worst = min(seen, key=lambda found: found.agree / found.rows)
    ties = sum(flip.within_budget for flip in worst.flips)
    agree = f"{worst.agree}/{worst.rows}"
    return f"{agree} ({ties} tied)" if ties else agree


def _mark(passed: bool) -> Text:
    return Text("pass", "green") if passed else Text("FAIL", "bold red")


def _golden_lines(report: Report) -> Iterator[Text]:
    """Yield the golden vectors in one line, where the table shows the reference."""
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
    """Yield one line for all of a name that hold, one for each that does not."""
    for name, group in groupby(sorted(results, key=lambda result: result.name), key=lambda result: result.name):
        found = list(group)
        for bad in (result for result in found if not result.passed):
            yield Text.assemble(_mark(False), f"  {name}, {bad.subject}: {bad.detail}")
        good = [result for result in found if result.passed]
        if good:
            more = f", … {len(good)} in all" if len(good) > 3 else ""
            subjects = ", ".join(result.subject for result in good[:3])
            yield Text.assemble(_mark(True), f"  {name}: {subjects}{more} ({good[0].detail})")


def _ledger_lines(report: Report) -> Iterator[Text]:
    """Yield how much of what is owed was shown, what is open, and what failed that no other line names."""
    from adapter_export.bundle.proof.ledger import counts, reasons, shown_elsewhere

    of = counts(report.ledger)
    summary = f"ledger: {of['proved'] + of['tested']} of {len(report.ledger)} owed are shown"
    failed = f", {of['failed']} failed" if of["failed"] else ""
    yield Text(f"{summary}: {of['proved']} proved bit by bit, {of['tested']} tested; {of['open']} open{failed}")
    for reason, found in list(reasons(report.ledger).items())[:_MOST_FAILURES]:
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        yield Text(f"  open: {found[0].where}{more}: {reason}", "dim")
    wrong = [owed for owed in report.ledger if owed.status == "failed" and not shown_elsewhere(owed, report.invariants)]
    for owed in wrong[:_MANY_CHECKS]:
        yield Text.assemble(_mark(False), f"  {owed.where}: {owed.detail}")
    if len(wrong) > _MANY_CHECKS:
        yield Text(f"… and {len(wrong) - _MANY_CHECKS} more, see `--json`", "dim")


def _effect_lines(results: Sequence[EffectRecord]) -> Iterator[Text]:
    """Yield how far the adapters move the base, then a note for each that changes nothing."""
    from adapter_export.bundle.ablation import note_of

    if results:
        ordered = sorted(results, key=lambda result: result.change)
        ends = ordered[:1] + ordered[1:][-1:]
        moved = " to ".join(f"{one.change:.2%} (`{one.adapter}`)" for one in ends)
        yield Text(f"effect: adapters move the outputs of the base by {moved} of their size")
    for said in filter(None, map(note_of, results)):
        yield Text.assemble(("note", "yellow"), f"  {said}")


def _failure_lines(failure: FailureRecord) -> Iterator[Text]:
    case = f"{failure.case}, mixed" if failure.mixed else failure.case
    worst = failure.worst
    index = "" if worst is None or failure.output is None else list(worst.index)
    where = f"{failure.output or 'a site'}{index}"
    yield Text.assemble(("FAIL ", "bold red"), f"{failure.adapter or _BASE}, {case}: {where}")
    yield Text(f"  {'; '.join(failure.faults)}")
    if worst is not None:
        ratio = f", {failure.ratio:.3g} × the budget" if failure.ratio else ""
        yield Text(f"  found {_number(worst.found)}, expected {_number(worst.expected)}{ratio}")
    places = list[str]()
    if failure.levels_failed and failure.variant == "slots":
        passed = f"; passes at {', '.join(failure.levels_passed)}" if failure.levels_passed else ""
        places.append(f"at {', '.join(failure.levels_failed)}{passed}")
    if failure.variant != "slots" or len(failure.variants_failed) > 1:
        places.append(f"in {quoted(failure.variants_failed)}")
    if places:
        yield Text(f"  fails {'; '.join(places)}")
    yield Text(f"  {_culprit(failure)}")
    found = failure.location
    if found is not None and found.guess is not None:
        yield Text(f"  looks like: {found.guess}")
    if found is not None and found.detail:
        yield Text(f"  {'; '.join(found.detail)}")
    repro = "" if found is None or found.repro is None else f"; the node alone: {found.repro}"
    yield Text(f"  repeat: {failure.command}{repro}")


def _node(node: NodeRecord) -> str:
    """Return a node, where it is in torch, and both values."""
    torch = ", ".join(filter(None, (node.path, node.line)))
    values, worst = "; ".join(node.faults), node.worst
    if worst is not None:
        values = f"found {_number(worst.found)}, expected {_number(worst.expected)}"
    where = f" (torch: {torch})" if torch else ""
    return f"`{node.node}`, {node.operators}{where}: {values}, {node.ratio:.3g} × its own budget"


def _culprit(failure: FailureRecord) -> str:
    site = failure.culprit
    node = None if failure.location is None else failure.location.node
    if node is not None and not (site is not None and node.origin.startswith(f"{site.site}/")):
        return f"culprit: {_node(node)}"
    if site is None and failure.variant not in ("slots", "inputs"):
        return f"culprit: the graph `{failure.variant}` or the tensors in it, not the adapter's own files"
    if site is None:
        if failure.location is not None and failure.location.nodes:
            return f"culprit: none of {failure.location.nodes} nodes, nor a site of an adapter"
        return "culprit: no site of an adapter; look at the base or at rounding that adds up"
    path = "" if site.path is None else f" (torch: {site.path})"
    values, worst = "; ".join(site.faults), site.worst
    if worst is not None:
        values = f"found {_number(worst.found)}, float64 gives {_number(worst.expected)}"
    return f"culprit: {site.site}{path}: {values}, {site.ratio:.3g} × its own budget"


def _number(value: Number) -> str:
    return str(value) if isinstance(value, int | str) else f"{value:.8g}"


def _show_verification(report: Report) -> None:
    from adapter_export.bundle.proof.ledger import shown_elsewhere

    checks = Table(("what", "of", "found", ""), list(_checks(report)), f"{report.bundle}  {report.runtime}")
    show(checks, replace(report.table(), title="golden vectors"))
    out = console()
    failed = [result for result in report.outputs if not result.passed]
    for owed in report.ledger:
        if owed.status == "failed" and not shown_elsewhere(owed, report.invariants):
            out.print(f"✗ {owed.where}: {owed.detail}", markup=False)
    for result in failed[:_MANY_CHECKS]:
        out.print(f"✗ {result.place}: {'; '.join(result.faults)}", markup=False)
    if len(failed) > _MANY_CHECKS:
        out.print(f"✗ and {len(failed) - _MANY_CHECKS} more", markup=False)
    out.print("passed" if report.passed else "failed", style="bold")


def _checks(report: Report) -> Iterator[tuple[str, str, str, str]]:
    """Yield one line for each check; those of one name that passed share one where they are many."""
    many = {name for name, count in Counter(check.name for check in report.invariants).items() if count > _MANY_CHECKS}
    for check in report.invariants:
        if check.name not in many or not check.passed:
            yield check.name, check.subject, check.detail, "passed" if check.passed else "failed"
    for name in sorted(many):
        passed = sum(check.passed for check in report.invariants if check.name == name)
        yield name, f"{passed} of them", "as they should be", "passed"

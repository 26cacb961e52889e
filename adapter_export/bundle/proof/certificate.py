"""A check as one page of HTML for people who must sign it: what was proved, tested and left open, and how much."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from adapter_export.bundle.proof.ledger import counts, reasons
from adapter_export.bundle.report import BASE, Report, failures
from adapter_export.format.check_report import ComparisonRecord, ObligationRecord, Status
from adapter_export.page import document, element, head, heat, items, prose, table
from adapter_export.tables import Table
from adapter_export.version import __version__

_STATUSES: tuple[Status, ...] = ("proved", "tested", "open", "failed")
_FEW, _MANY = 4, 12
"""How many lines of one kind a page has before the others are counted."""


def page(report: Report, *, date: str, command: str) -> str:
    """Return the page; `date` and `command` are printed as they are given."""
    return document(f"Check of {report.bundle}", _parts(report, date, command))


def _parts(report: Report, date: str, command: str) -> Iterator[str]:
    word = "passed" if report.passed else "failed"
    yield element("p", word, word)
    reference = report.reference or "the golden vectors of the bundle"
    facts = f"{report.runtime} against {reference}; adapter-export {__version__}; {date}."
    yield element("p", facts, "facts")
    known = [("bundle (sha256 of its manifest)", report.digest), ("base", report.base), ("model", report.against)]
    rows = [(name, element("code", value)) for name, value in (*known, ("command", command)) if value]
    yield table(Table(("", ""), rows))
    yield items(_wrong(report), "failed")
    if report.ledger:
        yield _summary(report.ledger)
        yield _open(report.ledger)
        yield _coverage(report)
    yield from _sites(report)
    if report.ledger:
        yield head("What had to hold") + table(_ledger(report.ledger))
    yield table(_outputs(report))
    yield element("p", prose(_how(report)), "facts")


def _wrong(report: Report) -> Iterator[str]:
    for failure in failures(report)[:_MANY]:
        site = "" if failure.culprit is None else f"; first wrong at the site `{failure.culprit.site}`"
        yield f"{failure.adapter or BASE}, {failure.case}: {'; '.join(failure.faults)}{site}"
    yield from (f"{one.name}, {one.subject}: {one.detail}" for one in report.invariants if not one.passed)
    failed = [owed for owed in report.ledger if owed.status == "failed"]
    yield from (f"{owed.where}: {owed.detail}" for owed in failed[:_MANY])
    if len(failed) > _MANY:
        yield f"and {len(failed) - _MANY} more, see the report in JSON"


def _summary(ledger: Sequence[ObligationRecord]) -> str:
    by = counts(ledger)
    shown = f"{by['proved'] + by['tested']} of {len(ledger)} obligations are shown"
    words = f"{by['proved']} proved bit by bit, {by['tested']} tested; {by['open']} open, {by['failed']} failed."
    return element("p", element("strong", f"{shown}: {words}"))


def _kind(owed: ObligationRecord) -> str:
    """The kind of an obligation, which is the first word of its id."""
    return owed.id.split("/")[0]


def _ledger(ledger: Sequence[ObligationRecord]) -> Table:
    """A line for each kind of obligation: how many are proved, tested, open and failed, and the worst of them."""
    rows = list[tuple[object, ...]]()
    for kind in dict.fromkeys(map(_kind, ledger)):
        own = [owed for owed in ledger if _kind(owed) == kind]
        by = Counter(owed.status for owed in own)
        ratios = [owed.ratio for owed in own if owed.ratio is not None]
        noises = [owed.noise for owed in own if owed.noise is not None]
        worst = (f"{max(values):.2f}" if values else "" for values in (ratios, noises))
        numbers = (by[status] or "" for status in _STATUSES)
        rows.append((kind.replace("-", " "), prose(own[0].claim), *numbers, *worst))
    columns: tuple[str, ...] = ("of", "such as", *_STATUSES, "error/budget", "error/noise")
    if not any(row[-1] for row in rows):
        rows, columns = [row[:-1] for row in rows], columns[:-1]
    return Table(columns, rows, numbers="llrrrrrr")


def _coverage(report: Report) -> str:
    """How much of each thing was tried, the most that any obligation says."""
    spans: dict[str, tuple[int, int | None]] = {}
    every_word = any(owed.id.startswith("shape/words/") for owed in report.ledger)
    for owed in report.ledger:
        for span in owed.coverage:
            seen = every_word and span.what == "words" and not owed.id.startswith("shape/words/")
            if seen or span.what == "levels":  # words that some cases happen to have; levels are named below
                continue
            what = f"{span.what} ({owed.where})" if span.what == "words" and every_word else span.what
            if span.done >= spans.get(what, (0, None))[0]:
                spans[what] = span.done, span.of
    levels = list(dict.fromkeys(one.level for one in report.outputs if one.variant == "slots"))
    graphs = list(dict.fromkeys(one.variant for one in report.outputs))
    rows = [(what, f"{done:,}", "no end" if of is None else f"{of:,}") for what, (done, of) in spans.items()]
    held = Counter(one.name for one in report.invariants)
    rows += [("what holds whatever the model says", f"{held.total()}", ", ".join(held))]
    rows += [("levels", f"{len(levels)}", ", ".join(levels)), ("graphs", f"{len(graphs)}", ", ".join(graphs))]
    rows.append(("runtimes", "1", report.runtime))
    elements = report.coverage().elements
    return head("How much was tried") + table(
        Table(("what", "tried", "of"), [*rows, ("numbers compared", f"{elements:,}", "")], numbers="lr")
    )


def _open(ledger: Sequence[ObligationRecord]) -> str:
    left = reasons(ledger)
    if not left:
        return element("p", "Nothing is open.", "facts")
    lines = [f"{_places(found)}: {reason}" for reason, found in left.items()]
    more = [f"and for {len(lines) - _MANY} more reasons"] if len(lines) > _MANY else []
    return head("What is open") + items([*lines[:_MANY], *more], "note")


def _places(found: Sequence[ObligationRecord]) -> str:
    names = [owed.where for owed in found]
    return ", ".join(names[:_FEW]) + (f" and {len(names) - _FEW} more" if len(names) > _FEW else "")


def _sites(report: Report) -> Iterator[str]:
    """A map of the sites: a row for each, a column for each adapter, error over budget as the depth of colour."""
    adapters = list(dict.fromkeys(one.adapter for one in report.sites))
    worst: dict[str, dict[str, float]] = {}
    for one in report.sites:
        own = worst.setdefault(one.site, {})
        own[one.adapter] = max(own.get(one.adapter, 0.0), one.ratio)
    layers: dict[str, dict[str, float]] = {}
    for site, own in worst.items():  # layers.3.ffn → a row `ffn`, a column 3
        parts = site.split(".")
        layer = next((part for part in parts if part.isdecimal()), "")
        kind = ".".join(part for part in parts if not part.isdecimal() and part != "layers")
        cell = layers.setdefault(kind, {})
        cell[layer] = max([cell.get(layer, 0.0), *own.values()])
    known = {layer for own in layers.values() for layer in own}
    columns = sorted(known, key=lambda layer: (layer == "", layer.zfill(6)))
    if not columns:
        return
    yield head("Sites: error over budget, the worst of all adapters, layer by layer")
    rows = [(kind, *(_share(own.get(layer)) for layer in columns)) for kind, own in layers.items()]
    shares = [[min(own.get(layer, 0.0), 1.0) for layer in columns] for own in layers.values()]
    yield heat(("site", *(layer or "–" for layer in columns)), rows, shares)
    yield element("p", f"{len(worst)} sites, {len(adapters)} adapters, each against float64; 1 is the limit.", "facts")


def _share(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}" if ratio < 100 else "over 100"


def _outputs(report: Report) -> Table:
    """A line for each adapter and graph."""
    groups: dict[tuple[str, str], list[ComparisonRecord]] = {}
    cases: dict[tuple[str, str], set[str]] = {}
    for one in report.outputs:
        key = one.adapter or BASE, f"{one.variant}{', mixed batches' if one.mixed else ''}"
        groups.setdefault(key, []).append(one)
        cases.setdefault(key, set()).add(one.case)
    rows = []
    for key, own in groups.items():
        worst = max(own, key=lambda one: (not one.passed, one.ratio))
        ratio = _share(worst.ratio)
        right = "passed" if all(one.passed for one in own) else "failed"
        numbers = f"{sum(one.compared for one in own):,}"
        rows.append((*key, len(cases[key]), numbers, ratio, element("span", right, right)))
    columns = ("adapter", "graph", "shapes", "numbers", "error/budget", "verdict")
    return Table(columns, rows, "outputs", numbers="llrrrr")


def _how(report: Report) -> str:
    budgets = [one.budget.reason for one in report.outputs if one.against == "reference"]
    reason = f" Of one output: {budgets[0]}." if budgets else ""
    return (
        "A number is right if it is within the budget that follows from its computation: the rounding step of its "
        f"type, the length of its sums, the number of products that follow each other, its scale.{reason}"
    )

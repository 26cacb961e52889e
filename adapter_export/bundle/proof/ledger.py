"""The ledger: everything that must hold if a bundle is right, and whether it is proved, tested, open or failed.

Nothing is silently out of it: what was left out, or cannot be looked at here, stands in it as open, with the reason. An
earlier report on the same bundle is a ratchet: what was shown then may not be open now.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from adapter_export.bundle.golden import Case
from adapter_export.bundle.proof.check_parts import WEAK
from adapter_export.bundle.report import BASE
from adapter_export.format.check_report import (
    CheckReport,
    InvariantRecord,
    ObligationRecord,
    OutputRecord,
    SiteRecord,
    SpanRecord,
    Status,
)
from adapter_export.format.manifest import Manifest

_EXACT = frozenset(
    {"files", "schema", "graph", "adapter files", "bank rows", "fanout rows", "baked tensors"}
    | {"lengths", "lengths of the base"}
)
"""Invariants that hold for every input once they are seen to hold; others hold for what was tried."""

_LEFT_OUT = frozenset({"padding not compared", "live model not compared", "recorded runs not compared", WEAK})

_HERE = "recorded-runs/"
"""Obligations that hold only where ONNX Runtime rounds as when the bundle was built; elsewhere the ledger says so."""

_LEVELS = 4
"""How many optimization levels ONNX Runtime has."""

_WORSE = 2.0
"""By what factor an error may grow from one report to the next: other threads and machines add up in another order."""

_NOISE = 0.1
"""Errors below this part of their budget are rounding."""


def of_outputs(
    results: Sequence[OutputRecord], cases: Sequence[Case], manifest: Manifest
) -> Iterator[ObligationRecord]:
    """Yield an obligation for each output of each graph and adapter, with what it was tried on."""
    groups: dict[str, list[OutputRecord]] = {}
    for result in results:
        name = f"{result.against}/{result.variant}/{result.adapter or BASE}/{result.output}"
        groups.setdefault(f"output/{name}{'/mixed' if result.mixed else ''}", []).append(result)
    for name, found in groups.items():
        one, tried = found[0], {result.case for result in found}
        worst = max(found, key=lambda result: (not result.passed, result.ratio))
        levels = SpanRecord("levels", len({result.level for result in found}), _LEVELS)
        reference = "the golden vectors" if one.against == "golden" else "the reference"
        yield ObligationRecord(
            name,
            f"`{one.output}` of `{one.adapter or BASE}` in the graph `{one.variant}` is what {reference} "
            f"{'say' if one.against == 'golden' else 'gives'}{', in mixed batches' if one.mixed else ''}",
            "failed" if not worst.passed else "tested" if any(result.compared for result in found) else "open",
            worst.place,
            "; ".join(worst.faults) or f"at most {worst.ratio:.2g} of the budget",
            (*spans([case for case in cases if case.name in tried], len(cases), manifest), levels),
            worst.ratio,
        )


def spans(cases: Sequence[Case], of: int, manifest: Manifest) -> tuple[SpanRecord, ...]:
    """Return how many shapes, words and positions some cases have of those that there are."""
    found = [SpanRecord("shapes", len(cases), of)]
    limits = {record.name: record.limit for record in manifest.inputs if record.role == "ids"}
    for name, limit in limits.items() if cases else ():
        words = {int(word) for case in cases for word in case.arrays[name].reshape(-1).tolist()}
        found.append(SpanRecord("words" if len(limits) == 1 or name == "input_ids" else name, len(words), limit))
    if limits and cases:
        longest = max(case.arrays[name].shape[-1] for case in cases for name in limits)
        found.append(SpanRecord("positions", longest, manifest.max_tokens))
    return tuple(found)


def of_sites(results: Sequence[SiteRecord]) -> Iterator[ObligationRecord]:
    """Yield an obligation for each site of each adapter, and for its head."""
    groups: dict[tuple[str, str], list[SiteRecord]] = {}
    for result in results:
        groups.setdefault((result.adapter, result.site), []).append(result)
    for (adapter, site), found in groups.items():
        worst = max(found, key=lambda result: (not result.passed, result.ratio))
        path = "" if worst.path is None else f" (torch: {worst.path})"
        yield ObligationRecord(
            f"site/{adapter}/{site}",
            f"`{adapter}` computes its formula at `{site}`",
            "tested" if worst.passed else "failed",
            f"{site}{path}",
            "; ".join(worst.faults) or f"{worst.ratio:.2g} of the budget of float64, on the values that arrive there",
            (SpanRecord("shapes", len({result.case for result in found}), None),),
            worst.ratio,
        )


def of_invariants(results: Iterable[InvariantRecord]) -> Iterator[ObligationRecord]:
    """Yield what holds whatever a reference says, and what was left out."""
    for result in results:
        shown: Status = "open" if result.name in _LEFT_OUT else "proved" if result.name in _EXACT else "tested"
        yield ObligationRecord(
            _named(result),
            f"{result.name}: {result.subject}",
            shown if result.passed else "failed",
            result.subject,
            result.detail,
        )


def not_asked(
    manifest: Manifest, names: Sequence[str | None], variants: Sequence[str], *, against: bool
) -> Iterator[ObligationRecord]:
    """Yield what nobody asked to look at."""
    everything = [(None, "base"), *((record.name, record.name) for record in manifest.adapters)]
    for name, shown in everything:
        if name not in names:
            yield ObligationRecord(f"left-out/{shown}", f"`{shown}` is right", "open", shown, "left out by `only`")
    baked = ["baked"] if any(record.baked for record in manifest.adapters) else []
    for variant in (*manifest.graphs, *baked):
        if variant not in variants:
            yield ObligationRecord(
                f"left-out/graph/{variant}",
                f"the graph `{variant}` is right",
                "open",
                variant,
                "left out by `variants`",
            )
    if not against:
        claim = "constants, nodes and outputs follow from the model"
        reason = "no model was given: golden vectors alone are compared"
        yield ObligationRecord("model", claim, "open", "the model that it was built from", reason)


def ratchet(last: CheckReport, ledger: Sequence[ObligationRecord], where: str) -> Iterator[ObligationRecord]:
    """Yield what was shown in an earlier report on the same bundle, and is not now, or is off by more."""
    now = {owed.id: owed for owed in ledger}
    for before in last.ledger:
        found = now.get(before.id)
        if before.status not in ("proved", "tested") or (found is not None and found.status == "failed"):
            continue
        if found is None and before.id.startswith(_HERE):
            continue
        if found is None or found.status == "open":
            reason = "not looked at" if found is None else f"open: {found.detail}"
            yield _worse(before, f"{before.status} in {where}, now {reason}")
            continue
        if (before.status, found.status) == ("proved", "tested"):
            yield _worse(before, f"proved in {where}, now only tested")
        for measure, old, new in (("budget", before.ratio, found.ratio), ("noise", before.noise, found.noise)):
            if old is not None and new is not None and new > max(_WORSE * old, _NOISE):
                yield _worse(before, f"off by {old:.2g} of its {measure} in {where}, now by {new:.2g}")


def _worse(before: ObligationRecord, detail: str) -> ObligationRecord:
    claim = f"no worse than before: {before.claim}"
    return ObligationRecord(f"ratchet/{before.id}", claim, "failed", before.where, detail)


def counts(ledger: Iterable[ObligationRecord]) -> Mapping[str, int]:
    """Return how many obligations are proved, tested, open and failed."""
    found = dict.fromkeys(("proved", "tested", "open", "failed"), 0)
    for owed in ledger:
        found[owed.status] += 1
    return found


def reasons(ledger: Iterable[ObligationRecord]) -> Mapping[str, Sequence[ObligationRecord]]:
    """Return what is open, by the reason."""
    found: dict[str, list[ObligationRecord]] = {}
    for owed in ledger:
        if owed.status == "open":
            found.setdefault(owed.detail, []).append(owed)
    return found


def shown_elsewhere(owed: ObligationRecord, invariants: Iterable[InvariantRecord]) -> bool:
    """Return whether an obligation is one of an output, a site or an invariant, which have lines of their own."""
    return owed.id.startswith(("output/", "site/", "shape/matrix")) or owed.id in set(map(_named, invariants))


def _named(result: InvariantRecord) -> str:
    return f"{result.name}/{result.subject}".replace(" ", "-")

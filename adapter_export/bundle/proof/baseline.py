"""Compare a check with an earlier report: fail if a claim verified then is no longer verified."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from adapter_export.format.check_report import CheckReport, Finding

_HERE = "recorded runs"
"""Checks that can be verified only where ONNX Runtime rounds as it did when the bundle was built."""

_WORSE = 2.0
"""Factor by which an error may grow between reports: other threads and machines sum in a different order."""

_NOISE = 0.1
"""Fraction of the budget below which an error counts as rounding."""


def regressions(baseline: CheckReport, findings: Sequence[Finding], where: str) -> Iterator[Finding]:
    """Yield each claim that was verified in an earlier report and is now unverified or less accurate.

    Claims that fail now are skipped, because they are already findings. `where` is the name of the earlier report.
    """
    now = {finding.id: finding for finding in findings}
    for before in baseline.findings:
        finding = now.get(before.id)
        if before.status not in ("exact", "tested") or (finding is not None and not finding.passed):
            continue
        if finding is None and before.check == _HERE:
            continue
        if finding is None or finding.status == "unverified":
            reason = "not checked" if finding is None else "unverified: " + finding.detail
            yield _worse(before, f"{before.status} in {where}, now " + reason)
            continue
        if (before.status, finding.status) == ("exact", "tested"):
            yield _worse(before, f"exact in {where}, now only tested")
        if (
            before.ratio is not None
            and finding.ratio is not None
            and finding.ratio > max(_WORSE * before.ratio, _NOISE)
        ):
            yield _worse(before, f"error {before.ratio:.2g} of its budget in {where}, now {finding.ratio:.2g}")


def _worse(before: Finding, detail: str) -> Finding:
    return Finding.exact("baseline", before.id, False, detail, f"no worse than before: {before.claim}", before.where)

"""`adapter-export verify`: is a bundle whole, and does it compute its golden vectors here?"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

import adapter_export as ae
from adapter_export.cli.options import Json, command

if TYPE_CHECKING:
    from collections.abc import Iterator

    from adapter_export.bundle.report import Report

_MISMATCH = 1
_SHOWN = 10


@command("adapter-export verify bundle", "adapter-export verify bundle --json > report.json")
def verify(bundle: Path, *, as_json: Json = False) -> None:
    """Show that BUNDLE is whole, and that it computes on this machine what it should.

    Needs neither torch nor the model. Checks every file against its hash, and that there are no others and no links
    that lead out; the manifest against its schema; every graph against the manifest: inputs, outputs, slots with their
    defaults, where its weights lie; both files of every adapter against the slots and each other, and the rows of the
    bank against them. Then it runs the golden vectors in every flavour of the graph, the bank also in batches whose
    rows run through different adapters. `check --against MODEL` goes further.

    Exit codes: 0 passed, 1 a result is off, 3 the bundle is damaged, or something in it does not fit, 4 nothing was
    compared.
    """
    from adapter_export.bundle.report import verification
    from adapter_export.cli.bases import stepping
    from adapter_export.cli.output import emit_json

    with stepping("verifying") as on_step:
        report = ae.verify(bundle, on_step=on_step)
    if as_json:
        emit_json(verification(report))
    else:
        _show(report)
    if not report.passed:
        raise click.exceptions.Exit(_MISMATCH)


def _show(report: Report) -> None:
    from adapter_export.cli.output import console, show
    from adapter_export.tables import Table

    checks = Table(("what", "of", "found", ""), list(_checks(report)), f"{report.bundle}  {report.runtime}")
    show(checks, replace(report.table(), title="golden vectors"))
    out = console()
    failed = [result for result in report.outputs if not result.passed]
    for result in failed[:_SHOWN]:
        out.print(f"✗ {result.place}: {'; '.join(result.faults)}", markup=False)
    if len(failed) > _SHOWN:
        out.print(f"✗ and {len(failed) - _SHOWN} more", markup=False)
    out.print("passed" if report.passed else "failed", style="bold")


def _checks(report: Report) -> Iterator[tuple[str, str, str, str]]:
    """One line for each check that failed; those of one name that passed together where they are many."""
    many = {name for name, count in Counter(check.name for check in report.invariants).items() if count > _SHOWN}
    for check in report.invariants:
        if check.name not in many or not check.passed:
            yield check.name, check.subject, check.detail, "passed" if check.passed else "failed"
    for name in sorted(many):
        passed = sum(check.passed for check in report.invariants if check.name == name)
        yield name, f"{passed} of them", "as they should be", "passed"

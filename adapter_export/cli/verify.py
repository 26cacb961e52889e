"""`adapter-export verify`: is a bundle whole, and does it compute its golden vectors here?"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click

import adapter_export as ae
from adapter_export.cli.options import Json, command

if TYPE_CHECKING:
    from collections.abc import Iterator

    from adapter_export import Verification

_MISMATCH = 1
_SHOWN = 10


@command("adapter-export verify bundle", "adapter-export verify bundle --json > report.json")
def verify(bundle: Path, *, as_json: Json = False) -> None:
    """Show that BUNDLE is whole, and that it computes on this machine what it should.

    Needs neither torch nor the model. Checks every file against its hash, and that there are no others and no links
    that lead out; the manifest against its schema; every graph against the manifest: inputs, outputs, slots with their
    defaults, where its weights lie; both files of every adapter against the slots and each other, and the rows of the
    bank against them. Then it runs the golden vectors in every form of the graph, the bank also in batches whose rows
    run through different adapters. `check --against MODEL` goes further.

    Exit codes: 0 passed, 1 a result is off, 3 the bundle is damaged, or something in it does not fit, 4 nothing was
    compared.
    """
    from adapter_export.cli.bases import stepping
    from adapter_export.cli.output import emit_json

    with stepping("verifying") as on_step:
        found = ae.verify(bundle, on_step=on_step)
    if as_json:
        emit_json(_document(found))
    else:
        _show(found)
    if not found.passed:
        raise click.exceptions.Exit(_MISMATCH)


def _document(found: Verification) -> dict[str, object]:
    return {
        "bundle": str(found.bundle),
        "passed": found.passed,
        "base": found.base,
        "runtime": found.runtime,
        "checks": [
            {"name": check.name, "subject": check.subject, "passed": check.passed, "detail": check.detail}
            for check in found.checks
        ],
        "golden": [
            {
                "flavour": one.form,
                "adapter": one.adapter,
                "mixed": one.mixed,
                "cases": one.cases,
                "elements": one.elements,
                "worst": one.worst,
                "faults": list(one.faults),
            }
            for one in found.findings
        ],
    }


def _show(found: Verification) -> None:
    from adapter_export.bundle.report import BASE
    from adapter_export.cli.output import console, table

    out = console()
    out.print(table(f"{found.bundle}  {found.runtime}", ("what", "of", "found", ""), list(_checks(found))))
    out.print()
    rows = [
        (
            one.form,
            f"{one.adapter or BASE}{', in mixed batches' if one.mixed else ''}",
            one.cases,
            f"{one.elements:,}",
            f"{one.worst:.2g}",
            "off" if one.faults else "well",
        )
        for one in found.findings
    ]
    columns = ("graph", "adapter", "cases", "numbers", "worst over allowed", "")
    out.print(table("golden vectors", columns, rows, numbers="llrrr"))
    faults = [fault for one in found.findings for fault in one.faults]
    for fault in faults[:_SHOWN]:
        out.print(f"✗ {fault}", markup=False)
    if len(faults) > _SHOWN:
        out.print(f"✗ and {len(faults) - _SHOWN} more", markup=False)
    out.print("verified: all is well" if found.passed else "NOT as it should be", style="bold")


def _checks(found: Verification) -> Iterator[tuple[str, str, str, str]]:
    """One line for each check that failed; those of one name that passed together where they are many."""
    many = {name for name, count in Counter(check.name for check in found.checks).items() if count > _SHOWN}
    for check in found.checks:
        if check.name not in many or not check.passed:
            yield check.name, check.subject, check.detail, "well" if check.passed else "off"
    for name in sorted(many):
        passed = sum(check.passed for check in found.checks if check.name == name)
        yield name, f"{passed} of them", "as they should be", "well"

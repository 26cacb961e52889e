"""Verify that a bundle is complete and computes its golden vectors here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

from adapter_export.api.bundles.bundles import folder_of
from adapter_export.api.bundles.signatures import verify_signature
from adapter_export.api.models.base import Address, PathLike
from adapter_export.commands.bundles._report import show_report
from adapter_export.commands.command import Command
from adapter_export.option import Option
from adapter_export.reporting import SILENT, Reporter

if TYPE_CHECKING:
    from adapter_export.bundle.report import Report
    from adapter_export.runtime import Bundle


def verify(
    bundle: Bundle | Address,
    *,
    expect: Annotated[str | None, Option("The digest that BUNDLE must have, as `inspect` shows it.", "DIGEST")] = None,
    key: Annotated[PathLike | None, Option("The public key, PEM, that must have signed BUNDLE.", "PUBLIC")] = None,
    certificates: Annotated[
        Sequence[str],
        Option(
            "Certificate authorities, PEM, one of which must have issued BUNDLE's signing certificate. Repeatable.",
            "FILE",
            "--certificate",
        ),
    ] = (),
    reporter: Reporter = SILENT,
) -> Report:
    """Show that BUNDLE is whole, and that it computes on this machine what it should.

    Needs neither torch nor the model. Checks every file against its hash, and that there are no others and no links
    that lead out; the manifest against its schema; every graph against the manifest: inputs, outputs, slots with their
    defaults, where its weights lie; both files of every adapter against the slots and each other, and the rows of the
    bank against them. Then it runs the golden vectors in every variant of the graph, the bank also in batches whose
    rows run through different adapters. `check --against MODEL` goes further.

    Args:
        bundle: the bundle, or its folder.
        expect: the sha256 of its manifest, which has the hashes of all other files.
        key: the public key of the signer.
        certificates: instead of a key, certificates of authorities; the signer's must be by one of them.
        reporter: receives each step.

    Returns:
        What was found; `raise_for_failure()` makes an error of a result that is off.

    Raises:
        SignatureError: the bundle is not signed as it should be.
        MissingExtraError: the library of signatures is not installed.
        InputError: the bundle is damaged, is not the one that is expected, or something in it does not fit.
        NothingComparedError: nothing was compared.
    """
    from adapter_export.bundle.bundle_reader import OpenedBundle
    from adapter_export.bundle.proof.proof_plan import plan_check
    from adapter_export.bundle.proof.prove import prove
    from adapter_export.format.check_report import Finding
    from adapter_export.format.manifest_json import read_manifest

    folder, signed = folder_of(bundle, reporter), list[Finding]()
    if key is not None or certificates:
        read_manifest(folder, expect=expect)
        signature = verify_signature(folder, key=key, certificates=certificates)
        expect = signature.digest
        detail = f"{len(signature.files)} files, signed by {signature.signer}"
        signed.append(Finding.exact("signature", "bundle", True, detail))
    plan = plan_check(OpenedBundle.open(folder, expect=expect), quick=True)
    report = prove(plan, None, reporter=reporter)
    report.require_compared()
    return replace(report, findings=(*signed, *report.findings))


COMMAND = Command(
    verify,
    show_report,
    passed=lambda report: report.passed,
    exit_codes="0 passed, 1 a result is off, 3 the bundle is damaged or inconsistent, 4 nothing was compared",
    examples=(
        "adapter-export verify bundle",
        "adapter-export verify bundle --expect DIGEST",
        "adapter-export verify bundle --json > report.json",
    ),
)

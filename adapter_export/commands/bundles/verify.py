"""Verify that a bundle is complete and reproduces its golden vectors on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

from adapter_export.address import Address, PathLike
from adapter_export.bundle.open_bundle import folder_of
from adapter_export.bundle.verify_signature import verify_signature
from adapter_export.commands.bundles._report import VERBOSE, show_report
from adapter_export.commands.command import Command
from adapter_export.option import Option
from adapter_export.providers import ProviderName
from adapter_export.reporting import SILENT, Reporter
from adapter_export.tables import number_of

if TYPE_CHECKING:
    from adapter_export.bundle.report import Report
    from adapter_export.runtime import Bundle


def verify(
    bundle: Bundle | Address,
    *,
    expect: Annotated[str | None, Option("Digest that BUNDLE must have, as shown by `inspect`.", "DIGEST")] = None,
    key: Annotated[PathLike | None, Option("Public key (PEM) that must have signed BUNDLE.", "PUBLIC")] = None,
    certificates: Annotated[
        Sequence[str],
        Option(
            "Certificate authorities, PEM, one of which must have issued BUNDLE's signing certificate. Repeatable.",
            "FILE",
            "--certificate",
        ),
    ] = (),
    provider: Annotated[ProviderName | None, "Also run golden vectors with this provider."] = None,
    reporter: Reporter = SILENT,
) -> Report:
    """Verify that BUNDLE is complete and reproduces its golden vectors on this machine.

    Needs neither torch nor the model. Compares every file with its hash, and refuses unlisted files and links that lead
    out of the bundle. Compares the manifest with its schema; every graph with the manifest: inputs, outputs, slots and
    their defaults, and the location of its weights; both files of every adapter with the slots and each other; and the
    bank's rows with them. Then runs the golden vectors in every variant, the bank also with a different adapter per
    row. `check --against MODEL` verifies more.

    Args:
        bundle: the bundle, or its folder.
        expect: the SHA-256 of its manifest, which contains the hashes of all other files.
        key: the public key of the signer.
        certificates: instead of a key, certificate authorities, one of which must have issued the signer's certificate.
        provider: also compare this provider's results with the golden vectors, in each graph that it may run.
        reporter: receives each step.

    Returns:
        The report. A failed claim raises no error; call `raise_for_failure()` for that.

    Raises:
        UsageError: the provider is not available here, or the bundle has no graph for it.
        SignatureError: the signature is missing, invalid, or by another signer.
        MissingExtraError: the signature library is not installed.
        InputError: the bundle is damaged, inconsistent, or does not have the expected digest.
        NothingComparedError: nothing was compared.
    """
    from adapter_export.bundle.bundle_reader import OpenedBundle
    from adapter_export.bundle.proof.proof_plan import plan_check
    from adapter_export.bundle.proof.prove import prove
    from adapter_export.bundle.proof.runtimes import check_provider
    from adapter_export.format.check_report import Finding
    from adapter_export.format.manifest_json import read_manifest

    folder, signed = folder_of(bundle, reporter), list[Finding]()
    if key is not None or certificates:
        read_manifest(folder, expect=expect)
        signature = verify_signature(folder, key=key, certificates=certificates)
        expect = signature.digest
        detail = f"{number_of(len(signature.files), 'file')}, signed by {signature.signer}"
        signed.append(Finding.exact("signature", "bundle", True, detail))
    plan = plan_check(OpenedBundle.open(folder, expect=expect), quick=True)
    provided = [] if provider is None else [check_provider(plan.bundle, plan.golden, provider)]
    report = prove(plan, None, reporter=reporter)
    report.require_compared()
    return replace(report, findings=(*signed, *report.findings, *provided))


COMMAND = Command(
    verify,
    show_report,
    passed=lambda report: report.passed,
    exit_codes="0 passed, 1 a claim failed, 3 the bundle is damaged or inconsistent, 4 nothing was compared",
    verbose=VERBOSE,
    examples=(
        "adapter-export verify bundle",
        "adapter-export verify bundle --expect DIGEST",
        "adapter-export verify bundle --provider openvino",
        "adapter-export verify bundle --json > report.json",
    ),
)

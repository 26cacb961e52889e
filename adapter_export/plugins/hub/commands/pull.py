"""Fetch a bundle or an adapter from a hub or a registry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from adapter_export.address import PathLike
from adapter_export.bundle.verify_signature import require_signatures, verify_signature
from adapter_export.commands.command import Command, Screen, next_line
from adapter_export.option import Force, Option
from adapter_export.plugins.hub.commands.push import PLAIN_HTTP
from adapter_export.plugins.hub.remote_addresses import require_hub
from adapter_export.reporting import SILENT, Reporter
from adapter_export.safe_io.output import Output

if TYPE_CHECKING:
    from adapter_export.plugins.hub.fetch import Fetched


def pull(
    reference: str,
    output: Annotated[PathLike | None, Option("The folder to write. Default: the cache only.", "DIR", "-o")] = None,
    *,
    expect: Annotated[str | None, Option("Required digest, as `push` and `inspect` show it.", "DIGEST")] = None,
    key: Annotated[PathLike | None, Option("Public key, PEM, that must have signed the bundle.", "PUBLIC")] = None,
    certificates: Annotated[
        Sequence[str],
        Option(
            "Certificate authorities, PEM, one of which must have issued the bundle's signing certificate. Repeatable.",
            "FILE",
            "--certificate",
        ),
    ] = (),
    plain_http: Annotated[bool, PLAIN_HTTP] = False,
    force: Force = False,
    reporter: Reporter = SILENT,
) -> Fetched:
    """Fetch a bundle or an adapter from the Hugging Face Hub or an OCI registry, and verify all of its hashes.

    REFERENCE is `hf://owner/name[@revision]` or `oci://host[:port]/repository[:tag|@sha256:…]`. Files are verified
    before they reach the cache or the output folder. A reference with a commit or a digest is fetched once.
    `HF_HUB_OFFLINE=1` uses only the cache.

    Args:
        reference: what to fetch.
        output: the folder to write. Default: only the cache, into which nothing else may write.
        expect: the sha256 of `manifest.json` of a bundle, or of `adapter_graph.json` of an adapter.
        force: replace an existing folder.
        reporter: receives the steps, and a note if a tag or branch has moved.

    Returns:
        The folder, the digest, and `pinned`, a reference that never changes its meaning.

    Raises:
        UsageError: the reference is malformed.
        MissingExtraError: the libraries of the extra `hub`, or for a key of the extra `sign`, are not installed.
        RemoteError: the hub or the registry does not answer, has no such artifact, or refuses.
        SignatureError: the signature is missing or of somebody else.
        FormatError, HashError: the artifact is damaged, or does not have the expected digest.
        OutputExistsError, WriteError: the output cannot be written.
    """
    require_hub()
    from adapter_export.plugins.hub.fetch import copy_fetched, fetch_all

    target = None if output is None else Output(Path(output), force)
    if target is not None:
        target.ensure_writable(folder=True)
    is_signed = key is not None or bool(certificates)
    if is_signed:
        require_signatures()

    def proof(folder: Path) -> None:
        if is_signed:
            verify_signature(folder, key=key, certificates=certificates)

    fetched = fetch_all(reference, expect=expect, proof=proof, plain_http=plain_http, reporter=reporter)
    return fetched if target is None else copy_fetched(fetched, target)


def _show(pulled: Fetched, screen: Screen) -> None:
    screen.report(f"pulled {pulled.pinned}: {pulled.kind} in {pulled.path}")
    screen.report(f"digest {pulled.digest}")
    screen.report(f"Next: {next_line('verify' if pulled.kind == 'bundle' else 'inspect', pulled.path)}")


def _document(pulled: Fetched, _: Screen) -> Mapping[str, object]:
    facts = {"reference": pulled.reference, "pinned": pulled.pinned, "kind": pulled.kind, "digest": pulled.digest}
    return {**facts, "path": str(pulled.path)}


COMMAND = Command(
    pull,
    _show,
    document=_document,
    exit_codes="0 fetched, 3 it does not exist, is damaged, or does not match `--expect`",
    examples=(
        "adapter-export pull hf://me/questions -o bundle",
        "adapter-export pull oci://registry.example/models/questions:1.2 -o bundle --key release.pub",
    ),
)

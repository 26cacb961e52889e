"""Bundles and adapters on the Hugging Face Hub and in OCI registries."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from adapter_export.api.bundles.bundles import folder_of
from adapter_export.api.bundles.signatures import require_signatures, verify_signature
from adapter_export.api.models.base import OnNote, PathLike, require, silent, tell
from adapter_export.errors import UsageError, argument
from adapter_export.option import Option
from adapter_export.safe_io.output import Output

if TYPE_CHECKING:
    from adapter_export.analysis.evaluation import Evaluation
    from adapter_export.hub.fetch import Fetched
    from adapter_export.hub.push import Pushed
    from adapter_export.runtime import Bundle

_PLAIN_HTTP = (
    "Speak with the registry without TLS, as is always done on this machine itself. Only on a network you trust."
)


def push(
    path: Bundle | PathLike,
    reference: str,
    *,
    license: Annotated[
        str | None, Option("The licence that you give it under, by its name on the Hub, such as `apache-2.0`.", "NAME")
    ] = None,
    base_model: Annotated[str | None, Option("The base, by its name on the Hub.", "OWNER/NAME")] = None,
    evaluations: Annotated[
        Sequence[Evaluation | PathLike],
        Option("What `evaluate --json` found on PATH, for the model card; may be repeated.", "FILE", "--evaluation"),
    ] = (),
    card: Annotated[
        PathLike | None, Option("A model card of your own, in place of the one that is written.", "FILE")
    ] = None,
    private: Annotated[bool, "Make a new repository of the Hub one that you alone can see."] = False,
    plain_http: Annotated[bool, _PLAIN_HTTP] = False,
    on_progress: Callable[[str], None] | None = None,
    on_note: OnNote | None = None,
) -> Pushed:
    """Send a bundle or an adapter to the Hugging Face Hub or an OCI registry, with a model card.

    The card says what is known: tasks, labels, the data and the scores of training, what was evaluated, the report of
    the check in the bundle, sizes and the digest. What nobody knows is left out. A `README.md` in the folder is taken
    as it is.

    Args:
        path: a bundle, its folder, or the folder of an adapter.
        reference: `hf://owner/name[@branch]` or `oci://host[:port]/repository[:tag]`.
        evaluations: found on this very bundle, or on a bundle of this very adapter.
        on_progress: is told each step.
        on_note: is told if a tag or a branch stood for something else before.

    Returns:
        The digest, and the reference that can never stand for anything else: `pinned`.

    Raises:
        UsageError: arguments do not go together, or it is no reference.
        MissingExtraError: the libraries of the extra `hub` are not installed.
        RemoteError: the hub or the registry does not answer or does not take it.
        InputError: there is no whole bundle or adapter, or an evaluation is of another one.
    """
    _require_libraries()
    from adapter_export.format.manifest_json import CARD_FILE, SIGNATURE_FILE
    from adapter_export.hub.card import measured_from_json, model_card
    from adapter_export.hub.push import push_folder, whole_artifact
    from adapter_export.safe_io.documents import read_json
    from adapter_export.safe_io.regular_files import read_text

    folder, notes = folder_of(path), list[str]()
    has_card = (folder / CARD_FILE).is_file()
    if (card is not None or has_card) and (base_model or evaluations):
        given = argument("card") if card is not None else f"the `{CARD_FILE}` in {folder}"
        fix = f"say in it what there is to say, or take {given} away"
        raise UsageError(
            f"{argument('base_model')} and {argument('evaluations', option='evaluation')} are for a card that is made",
            found=given,
            fix=fix,
        )
    if card is not None and has_card and (folder / SIGNATURE_FILE).is_file():
        fix = f"put it into the bundle as `{CARD_FILE}`, and sign again"
        raise UsageError("the bundle is signed with the model card that it has", where=folder, fix=fix)
    text = None if card is None else read_text(Path(card))
    if card is None and not has_card:
        kind = whole_artifact(folder)
        text = model_card(
            folder,
            kind,
            reference,
            licence=license,
            base_model=base_model,
            measured=[
                measured_from_json(read_json(Path(one)), one)
                if isinstance(one, str | os.PathLike)
                else measured_from_json(one.to_json(), one.data)
                for one in evaluations
            ],
        )
    pushed = push_folder(
        folder,
        reference,
        card=text,
        licence=license,
        private=private,
        plain_http=plain_http,
        on_note=notes.append,
        on_progress=on_progress or silent,
    )
    if license is None and card is None and not has_card:
        notes.append(f"the model card names no licence: {argument('license')} gives one")
    tell(notes, on_note)
    return pushed


def pull(
    reference: str,
    output: Annotated[
        PathLike | None, Option("The folder to write.  [default: the cache alone, whose folder is named]", "DIR", "-o")
    ] = None,
    *,
    expect: Annotated[
        str | None, Option("The digest that it must have, as `push` and `inspect` show it.", "DIGEST")
    ] = None,
    key: Annotated[PathLike | None, Option("The public key, PEM, that must have signed the bundle.", "PUBLIC")] = None,
    certificates: Annotated[
        Sequence[str],
        Option(
            "A PEM file of authorities: the bundle must be signed by one with their certificate; may be repeated.",
            "FILE",
            "--certificate",
        ),
    ] = (),
    plain_http: Annotated[bool, _PLAIN_HTTP] = False,
    force: bool = False,
    on_progress: Callable[[str], None] | None = None,
    on_note: OnNote | None = None,
) -> Fetched:
    """Take a bundle or an adapter from the Hugging Face Hub or an OCI registry; all its hashes are right.

    It is kept in the cache, by its commit or digest: a reference that names one is not asked for again.

    Args:
        reference: `hf://owner/name[@revision]` or `oci://host[:port]/repository[:tag|@sha256:…]`.
        output: the folder to write; the folder in the cache if not given, which nobody may write into.
        expect: the sha256 of `manifest.json` of a bundle, or of `adapter_graph.json` of an adapter.
        force: replace what is at `output`.
        on_progress: is told each step.
        on_note: is told if a tag or a branch stands for something else than before.

    Returns:
        Its folder and digest, and the reference that can never stand for anything else: `pinned`.

    Raises:
        UsageError: it is no reference.
        MissingExtraError: the libraries of the extra `hub`, or for a key of the extra `sign`, are not installed.
        RemoteError: the hub or the registry does not answer, has no such thing, or does not give it.
        SignatureError: it is not signed as it should be.
        FormatError, HashError: what arrived is damaged, or not what is expected.
        OutputExistsError, WriteError: it cannot be written.
    """
    _require_libraries()
    from adapter_export.hub.fetch import copy_fetched, fetch_all

    if output is not None:
        Output(Path(output), force).ensure_writable(folder=True)
    is_signed = key is not None or bool(certificates)
    if is_signed:
        require_signatures()

    def proof(folder: Path) -> None:
        if is_signed:
            verify_signature(folder, key=key, certificates=certificates)

    found = fetch_all(
        reference,
        expect=expect,
        proof=proof,
        plain_http=plain_http,
        on_note=lambda note: tell([note], on_note),  # also where what comes next is an error
        on_progress=on_progress or silent,
    )
    return found if output is None else copy_fetched(found, Path(output), force=force)


def _require_libraries() -> None:
    for library in ("huggingface_hub", "httpx"):
        require(library, "hub", "a hub or a registry")

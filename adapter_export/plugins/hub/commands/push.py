"""Send a bundle or an adapter to a hub or a registry."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from adapter_export.address import PathLike
from adapter_export.bundle.open_bundle import own_folder
from adapter_export.commands.command import Command, Screen, next_line
from adapter_export.errors import UsageError
from adapter_export.option import Option
from adapter_export.plugins.hub.remote_addresses import require_hub
from adapter_export.reporting import SILENT, Reporter
from adapter_export.tables import number_of
from adapter_export.words import argument

if TYPE_CHECKING:
    from adapter_export.plugins.hub.card import Evaluated
    from adapter_export.plugins.hub.push import Pushed
    from adapter_export.runtime import Bundle

PLAIN_HTTP = Option("Use HTTP without TLS, only on a trusted network. Loopback registries always use it.")


def push(
    path: Bundle | PathLike,
    reference: str,
    *,
    license: Annotated[str | None, Option("License, by its name on the Hub, such as `apache-2.0`.", "NAME")] = None,
    base_model: Annotated[str | None, Option("Base model, by its name on the Hub.", "OWNER/NAME")] = None,
    evaluations: Annotated[
        Sequence[Evaluated | PathLike],
        Option("Output of `evaluate --json` on PATH, for the model card. Repeatable.", "FILE", "--evaluation"),
    ] = (),
    card: Annotated[PathLike | None, Option("Model card to send instead of the generated one.", "FILE")] = None,
    private: Annotated[bool, "Create a new repository of the Hub as private."] = False,
    plain_http: Annotated[bool, PLAIN_HTTP] = False,
    reporter: Reporter = SILENT,
) -> Pushed:
    """Send a bundle, or the folder of an adapter, to the Hugging Face Hub or an OCI registry, with a model card.

    REFERENCE is `hf://owner/name[@branch]`, with the login of `hf auth login` or `HF_TOKEN`, or
    `oci://host[:port]/repository[:tag]`, with that of `docker login`.

    The card contains all known facts: tasks, labels, the data and scores of training, evaluations, the report in the
    bundle, sizes and the digest. A `README.md` in the folder is sent instead of a generated card.

    Args:
        path: a bundle, its folder, or the folder of an adapter.
        reference: where to send it.
        evaluations: made on this bundle, or on a bundle of this adapter.
        reporter: receives the steps, and a note if a tag or branch has moved.

    Returns:
        The digest, and `pinned`, a reference that never changes its meaning.

    Raises:
        UsageError: arguments do not go together, or the reference is malformed.
        MissingExtraError: the libraries of the extra `hub` are not installed.
        RemoteError: the hub or the registry does not answer, or refuses.
        InputError: the folder has no complete bundle or adapter, or an evaluation is of another one.
    """
    require_hub()
    from adapter_export.format.manifest_json import CARD_FILE, SIGNATURE_FILE
    from adapter_export.format.readme import is_card
    from adapter_export.plugins.hub.card import measured_from_json, model_card
    from adapter_export.plugins.hub.push import push_folder, whole_artifact
    from adapter_export.safe_io.documents import read_json
    from adapter_export.safe_io.regular_files import read_text

    folder = own_folder(path)
    has_card = is_card(folder / CARD_FILE)
    if (card is not None or has_card) and (base_model or evaluations):
        source = argument("card") if card is not None else f"the `{CARD_FILE}` in {folder}"
        fix = "say in it what there is to say, or take " + source + " away"
        raise UsageError(
            argument("base_model")
            + " and "
            + argument("evaluations", option="evaluation")
            + " are for a card that is made",
            found=source,
            fix=fix,
        )
    if card is not None and has_card and (folder / SIGNATURE_FILE).is_file():
        fix = f"put it into the bundle as `{CARD_FILE}`, and sign again"
        raise UsageError("the bundle is signed with the model card that it has", where=folder, fix=fix)
    text = None if card is None else read_text(Path(card))
    if card is None and not has_card:
        text = model_card(
            folder,
            whole_artifact(folder),
            reference,
            licence=license,
            base_model=base_model,
            measured=[
                measured_from_json(read_json(Path(evaluation)), evaluation)
                if isinstance(evaluation, str | os.PathLike)
                else measured_from_json(evaluation.to_json(), evaluation.data)
                for evaluation in evaluations
            ],
        )
    pushed = push_folder(
        folder, reference, card=text, licence=license, private=private, plain_http=plain_http, reporter=reporter
    )
    if license is None and card is None and not has_card:
        reporter.warn("the model card names no license: " + argument("license") + " gives one")
    return pushed


def _show(pushed: Pushed, screen: Screen) -> None:
    size = f"{pushed.bytes / 1e6:,.1f} MB in {number_of(len(pushed.files), 'file')}"
    screen.report(f"pushed {screen.given['path']} to {pushed.reference}: {size}")
    screen.report(f"digest {pushed.digest}")
    screen.report(f"Next: {next_line('pull', pushed.pinned, '--expect', pushed.digest, '-o', pushed.kind)}")


def _document(pushed: Pushed, _: Screen) -> Mapping[str, object]:
    facts = {"reference": pushed.reference, "pinned": pushed.pinned, "kind": pushed.kind, "digest": pushed.digest}
    return {**facts, "bytes": pushed.bytes, "files": pushed.files}


COMMAND = Command(
    push,
    _show,
    document=_document,
    exit_codes="0 sent, 3 it is damaged, or the hub or the registry does not answer or refuses",
    examples=(
        "adapter-export push bundle hf://me/questions --license apache-2.0 --base-model microsoft/deberta-v3-small",
        "adapter-export push bundle oci://registry.example/models/questions:1.2",
        "adapter-export push adapters/trec hf://me/trec --license apache-2.0",
    ),
)

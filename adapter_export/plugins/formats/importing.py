"""Steps that imports share: the base of an adapter, the request, and the facts that complete the result."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapter_export.address import Address, Located
from adapter_export.bases.adapters import with_site_map
from adapter_export.bases.base import Base
from adapter_export.bases.task_facts import with_facts
from adapter_export.errors import AdapterError, OtherModulesError, UsageError
from adapter_export.graph.ops import POOLINGS
from adapter_export.reporting import Reporter
from adapter_export.words import argument

if TYPE_CHECKING:
    from adapter_export.bases.base_view import ImportRequest
    from adapter_export.graph.adapter import Adapter
    from adapter_export.plugins.formats.importers.tensor_map import Imported, Tensors


def base_of_import(base: Base | Address | None, located: Located) -> Base | Address:
    """Return the base that an adapter of another library is imported for.

    Raises:
        UsageError: there is none; the message includes its name in the adapter's configuration.
    """
    if base is not None:
        return base
    from adapter_export.format.model_config import named_base

    named = named_base(located.path)
    raise UsageError(
        "importing an adapter requires the model it was trained on",
        where=located.address,
        found="no " + argument("base"),
        fix="pass the model: " + argument("base", words="MODEL")
        if named is None
        else f"its configuration names `{named}`: pass " + argument("base", named) + ", or a capture of it",
    )


def import_request(folder: Path, name: str | None, member: str | None, by_number: bool) -> ImportRequest:
    """Return the request of an import; pickled tensors can be read if torch is installed."""
    from adapter_export.bases.base_view import ImportRequest

    request = ImportRequest(name or member or folder.resolve().name, member, by_number)
    if find_spec("torch") is None:
        return request

    def read_pickle(path: Path) -> Tensors:  # deferred: torch takes a second to load, and most files are not pickles
        from adapter_export.torch_backend.base.pickles import read_torch_file

        return read_torch_file(path)

    return replace(request, read_pickle=read_pickle)


@contextmanager
def naming_base(folder: Path) -> Iterator[None]:
    """Add the base named in an adapter's configuration to an `OtherModulesError` raised by the block."""
    try:
        yield
    except OtherModulesError as error:
        from adapter_export.format.model_config import named_base

        named = named_base(folder)
        if named is not None:
            hint = "check that " + argument("base") + f" is `{named}`, which its configuration names"
            error.fix = hint if error.fix is None else error.fix + "; " + hint
            error.args = (error.sentence(),)
        raise


def last_token_notes(adapter: Adapter, base: Base) -> tuple[str, ...]:
    """Return a note if a transformers head that reads the last token may read another token here.

    transformers reads the last token whose id is not `pad_token_id`; the exported head reads the last token of the
    mask.

    Raises:
        AdapterError: the tokenizer ends texts with that id, so the two never read the same token.
    """
    reads = adapter.head is not None and any(node.op == POOLINGS["last"].name for node in adapter.head.graph.nodes)
    if not reads or base.tokenizer is None:
        return ()
    from adapter_export.format.model_config import padding_id
    from adapter_export.text import ending_token

    ending = ending_token(base.tokenizer)
    padding = None if base.config is None else padding_id(base.config)
    if ending is None or (padding is not None and padding != ending):
        return ()
    if padding is None:
        return (
            f"the tokenizer ends texts with token {ending}, which the head reads: if that is the `pad_token_id` of "
            "the model, transformers reads the token before it",
        )
    raise AdapterError(
        "has a head that skips padding, but the tokenizer of its base ends texts with the padding token",
        where=adapter.name,
        found=f"`pad_token_id` {padding}",
        expected="a token that does not end texts",
        fix="train it with another padding token, or import it without the head:  " + argument("without_head", True),
    )


def complete_import(
    imported: Imported, base: Base, facts: Mapping[str, Any], reporter: Reporter, located: Located | None = None
) -> Adapter:
    """Report the notes, and return the adapter with the facts of its task, its base's site map and its source.

    Raises:
        AdapterError: its head reads a mask that the base combines with a past.
    """
    _check_mask(imported.adapter, base)
    for note in imported.notes:
        reporter.warn(note)
    adapter = with_facts(imported.adapter, facts)
    if located is not None and located.source is not None:
        record = {**adapter.training.get("imported_from", {}), "source": located.source}
        adapter = replace(adapter, training={**adapter.training, "imported_from": record})
    return with_site_map(adapter, base)


def _check_mask(adapter: Adapter, base: Base) -> None:
    """Reject a head that pools tokens on a base with a cache, before `build` does: its mask covers past tokens."""
    pools = adapter.head is not None and "mask" in adapter.head.graph.inputs
    if pools and any(record.role == "cache" for record in base.inputs):
        raise AdapterError(
            "has a head that pools the tokens of a text, but the base was captured with its cache, for generation",
            where=f"adapter `{adapter.name}`",
            expected="a base without a cache",
            fix="capture the bare model ("
            + argument("bare", True)
            + "), or import the adapter without its head: "
            + argument("without_head", True),
        )

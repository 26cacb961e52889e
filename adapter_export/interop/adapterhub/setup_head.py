"""Which of the heads in a setup folder is the composition's."""

from __future__ import annotations

from collections.abc import Iterator

from adapter_export.errors import AdapterError
from adapter_export.interop.adapterhub.folder import Saved, read_head_folder
from adapter_export.interop.adapterhub.heads import WITHOUT
from adapter_export.interop.adapterhub.setups import Setup


def setup_head(setup: Setup) -> Saved | None:
    """The head that was saved for the setup, else that of a stack's last adapter (`parse_heads_from_composition`).

    Raises:
        AdapterError: it was saved with several heads.
        FileError, FormatError, TensorError: it is missing or damaged.
    """
    if setup.head is True:
        return read_head_folder(setup.path)
    if isinstance(setup.head, str):
        return read_head_folder(setup.path / setup.head)
    if setup.head:
        raise AdapterError("was saved with several heads", where=setup.path, found=f"`{setup.head}`", fix=WITHOUT)
    last = setup.block.children[-1]
    return setup.members[last].folder.head if setup.block.kind == "Stack" and isinstance(last, str) else None


def head_notes(setup: Setup, used: Saved | None) -> Iterator[str]:
    """What became of the heads of its adapters."""
    heads = {name: member.folder.head for name, member in setup.members.items()}
    left = [name for name, head in heads.items() if head is not None and head is not used]
    if left:
        yield f"the heads of {', '.join(f'`{name}`' for name in left)} were left out"

"""Import an adapter and its head from AdapterHub."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from adapter_export.address import Address, PathLike, locate
from adapter_export.bases.base import Base, OpenOptions
from adapter_export.bases.opening import base_for
from adapter_export.bases.task_facts import TaskFacts
from adapter_export.commands.adapters._made_adapter import (
    ADAPTER_FOLDER,
    BASE,
    BY_NUMBER,
    NAME,
    AdapterOutput,
    WithoutHead,
    adapter_document,
    show_adapter,
)
from adapter_export.commands.command import Command
from adapter_export.option import SITE_MAP, TRUST_PICKLE, Force, OptionsOf
from adapter_export.plugins.formats.importing import base_of_import, complete_import, import_request, naming_base
from adapter_export.reporting import SILENT, Reporter

if TYPE_CHECKING:
    from adapter_export.graph.adapter import Adapter


def import_adapterhub(
    folder: Address,
    base: Annotated[Base | Address | None, BASE] = None,
    output: Annotated[PathLike | None, ADAPTER_FOLDER] = None,
    *,
    name: Annotated[str | None, NAME] = None,
    member: Annotated[str | None, "Adapter to import from a folder of several. Default: the name."] = None,
    by_number: Annotated[bool, BY_NUMBER] = False,
    without_head: WithoutHead = False,
    site_map: Annotated[PathLike | None, SITE_MAP] = None,
    trust_pickle: Annotated[bool, TRUST_PICKLE] = False,
    force: Force = False,
    reporter: Reporter = SILENT,
    **facts: Annotated[Any, OptionsOf(TaskFacts)],
) -> Adapter:
    """Import an adapter that AdapterHub's library saved in FOLDER.

    FOLDER has `adapter_config.json` and `pytorch_adapter.bin` or `adapter.safetensors`, of which only tensors are read.
    Bottlenecks with every option, LoRA, IA3, invertible adapters and prediction heads are imported; the library is not
    needed, and torch only for a `.bin` file. Unsupported options are refused by name.

    A folder written by `save_adapter_setup` becomes one adapter that contains its members, with `Stack`, `Average` and
    `Fuse` nested as in the library; `--name MEMBER` imports a single member.

    Args:
        folder: has `adapter_config.json` and `pytorch_adapter.bin` or `adapter.safetensors`, of which only tensors are
            read; or it is what `save_adapter_setup` wrote.
        base: the model it was trained on. Without it, an error names the one in the configuration.
        output: the folder to save it to. Default: do not save it.
        name: name of the adapter. Default: the name of the output, or of the folder.
        site_map: the sites of the base.
        trust_pickle: load the base even if it could run code.
        force: replace an existing folder.
        reporter: receives notes on changes to the tensors.

    Raises:
        UsageError: the folder has several adapters and no name is given.
        AdapterError: it does not fit the base, or cannot be expressed.
        FileError, FormatError: the folder's files break their format.
        OutputExistsError, WriteError: the output cannot be written.
    """
    from adapter_export.plugins.formats.importers import adapterhub

    target = AdapterOutput(output, force, [folder, base])
    located = locate(folder, "adapter", reporter)
    base, source = base_of_import(base, located), located.path
    opened = base_for(base, OpenOptions(site_map, trust_pickle), reporter, recorded=True)
    request = import_request(source, target.name(name), member or name, by_number)
    with naming_base(source):
        imported = adapterhub.import_adapterhub(source, opened.view, request, with_head=not without_head)
    return target.save(complete_import(imported, opened, facts, reporter, located))


COMMAND = Command(
    import_adapterhub,
    show_adapter,
    document=adapter_document,
    examples=(
        "adapter-export import adapterhub saved/sentiment --base model.pt -o sentiment",
        "adapter-export import adapterhub saved --name sentiment --base model.onnx -o sentiment",
        "adapter-export import adapterhub setup --base model.pt -o stacked",
    ),
)

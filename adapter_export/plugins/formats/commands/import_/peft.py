"""Import an adapter from PEFT, if its change of the weights is fixed."""

from __future__ import annotations

from dataclasses import replace
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
    Labels,
    WithoutHead,
    adapter_document,
    show_adapter,
)
from adapter_export.commands.command import Command
from adapter_export.graph.ops import ACTIVATIONS, POOLINGS
from adapter_export.graph.task_names import ProblemType
from adapter_export.option import SITE_MAP, TRUST_PICKLE, Force, Option, OptionsOf
from adapter_export.plugins.formats.importing import (
    base_of_import,
    complete_import,
    import_request,
    last_token_notes,
    naming_base,
)
from adapter_export.reporting import SILENT, Reporter

if TYPE_CHECKING:
    from adapter_export.graph.adapter import Adapter


def import_peft(
    folder: Address,
    base: Annotated[Base | Address | None, BASE] = None,
    output: Annotated[PathLike | None, ADAPTER_FOLDER] = None,
    *,
    name: Annotated[str | None, NAME] = None,
    member: Annotated[str | None, "Adapter to import from a folder of several. Default: the name."] = None,
    task: Annotated[ProblemType | None, "Task type of the head, if neither the folder nor the model has it."] = None,
    labels: Labels = None,
    pooling: Annotated[
        str | None,
        Option(
            "Input of the head, if the folder does not have it: a pooling, or each token (`tokens`).",
            choices=(*POOLINGS, "tokens"),
        ),
    ] = None,
    activation: Annotated[
        str | None, Option("Activation after the head's dense layer, if unknown.", choices=ACTIVATIONS)
    ] = None,
    by_number: Annotated[bool, BY_NUMBER] = False,
    dense: Annotated[
        bool, "Allow full-rank updates, which make the adapter as large as the layers it changes."
    ] = False,
    without_head: WithoutHead = False,
    site_map: Annotated[PathLike | None, SITE_MAP] = None,
    trust_pickle: Annotated[bool, TRUST_PICKLE] = False,
    force: Force = False,
    reporter: Reporter = SILENT,
    **facts: Annotated[Any, OptionsOf(TaskFacts)],
) -> Adapter:
    """Import an adapter that PEFT saved in FOLDER, if its change of the base's weights is fixed.

    FOLDER has `adapter_config.json` and `adapter_model.safetensors` or `adapter_model.bin`, of which only tensors are
    read. It may be a Hub id, `owner/name[@revision]`, whose safetensors and JSON files are fetched. PEFT is not needed,
    and torch only for a `.bin` file. Unsupported options are refused by name.

    Args:
        folder: has `adapter_config.json` and `adapter_model.safetensors` or `adapter_model.bin`, of which only tensors
            are read.
        base: the model it was trained on. Without it, an error names the one in the configuration.
        output: the folder to save it to. Default: do not save it.
        name: name of the adapter. Default: the name of the output, or of the folder.
        site_map: the sites of the base.
        trust_pickle: load the base even if it could run code.
        force: replace an existing folder.
        reporter: receives notes on changes to the tensors.

    Raises:
        UsageError: the options of the head do not match the head.
        AdapterError: it does not fit the base, or cannot be expressed.
        FileError, FormatError: the folder's files break their format.
        OutputExistsError, WriteError: the output cannot be written.
    """
    from adapter_export.format.model_config import known_labels, known_problem
    from adapter_export.plugins.formats.importers import peft
    from adapter_export.plugins.formats.importers.peft.head import HeadChoice

    target = AdapterOutput(output, force, [folder, base])
    located = locate(folder, "adapter", reporter)
    base, source = base_of_import(base, located), located.path
    opened = base_for(base, OpenOptions(site_map, trust_pickle), reporter, recorded=True)
    base_head = None if without_head else _embedding_head(opened, task)
    names, wanted = None if labels is None else tuple(labels), task if base_head is None else None
    head = HeadChoice(pooling, activation, names, leave_out=without_head, task=wanted)
    if opened.config is not None:
        head = replace(head, known_labels=known_labels(opened.config), known_problem=known_problem(opened.config))
    request = import_request(source, target.name(name), member or name, by_number)
    with naming_base(source):
        imported = peft.import_peft(source, opened.view, request, head=head, dense=dense)
    if base_head is not None and imported.adapter.head is None:
        weights = {**imported.adapter.weights, **base_head.weights}
        imported = replace(imported, adapter=replace(imported.adapter, head=base_head.head, weights=weights))
    for note in last_token_notes(imported.adapter, opened):
        reporter.warn(note)
    return target.save(complete_import(imported, opened, facts, reporter, located))


def _embedding_head(base: Base, task: ProblemType | None) -> Adapter | None:
    """Return the base head if it has this task and embeds: PEFT saves no head of embeddings, which stays the base's."""
    from adapter_export.graph.tasks import TASK_TYPES

    own = base.base_head if task is not None and TASK_TYPES[task].embeds else None
    return own if own is not None and own.task is not None and own.task.type == task else None


COMMAND = Command(
    import_peft,
    show_adapter,
    document=adapter_document,
    examples=(
        "adapter-export import peft lora_folder --base model.pt -o a",
        "adapter-export import peft owner/lora --base owner/model -o a",
        "adapter-export import peft lora_folder --base HF_FOLDER --labels negative,positive -o sentiment",
    ),
)

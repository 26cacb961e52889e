"""Make an adapter from plain tensors of any framework."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from adapter_export.address import Address, PathLike
from adapter_export.bases.base import Base, OpenOptions
from adapter_export.bases.kinds import kind_names, packed_options
from adapter_export.bases.opening import recorded_base
from adapter_export.bases.task_facts import TaskFacts
from adapter_export.commands.adapters._made_adapter import (
    ADAPTER_FOLDER,
    BASE,
    NAME,
    AdapterOutput,
    Labels,
    adapter_document,
    show_adapter,
)
from adapter_export.commands.command import Command
from adapter_export.graph.ops import ACTIVATIONS, POOLING_HELP, POOLINGS
from adapter_export.graph.task_names import DEFAULT_TYPE, ProblemType
from adapter_export.option import SITE_MAP, TRUST_PICKLE, Force, Option, OptionsOf
from adapter_export.plugins.formats.importing import complete_import
from adapter_export.reporting import SILENT, Reporter

if TYPE_CHECKING:
    import numpy as np

    from adapter_export.graph.adapter import Adapter


def pack(
    weights: PathLike | Mapping[str, np.ndarray],
    base: Annotated[Base | Address, BASE],
    output: Annotated[PathLike | None, ADAPTER_FOLDER] = None,
    *,
    kind: Annotated[str, Option("Adapter kind: formula and placement.", kind_names)],
    labels: Labels = None,
    pooling: Annotated[str, Option(POOLING_HELP, choices=tuple(POOLINGS))] = "mean",
    task: Annotated[ProblemType | None, f"Task type of the head.  [default: {DEFAULT_TYPE}]"] = None,
    head_activation: Annotated[
        str, Option("Activation after each of the head's dense layers.", choices=ACTIVATIONS)
    ] = "tanh",
    l2_normalise: Annotated[bool, "Normalize embeddings to length 1."] = False,
    name: Annotated[str | None, NAME] = None,
    site_map: Annotated[PathLike | None, SITE_MAP] = None,
    trust_pickle: Annotated[bool, TRUST_PICKLE] = False,
    force: Force = False,
    reporter: Reporter = SILENT,
    **options: Annotated[Any, OptionsOf(packed_options, TaskFacts)],
) -> Adapter:
    """Make an adapter from WEIGHTS, a safetensors file with tensors named after sites.

    The tensors of each site of a bottleneck are `<site>.down.weight` [d, b], `<site>.down.bias` [b], `<site>.up.weight`
    [b, d] and `<site>.up.bias` [d]; biases may be omitted, at all sites at once. Layer norms are
    `<site>.norm_before.weight` and `.bias` [d], and `<site>.norm_after.…`. LoRA's are `<site>.lora_A.weight` [d_in, r]
    and `<site>.lora_B.weight` [r, d]. `docs/reference/kinds.md` has the tensors of every kind.

    A head is `head.classifier.weight` [d, classes] and `head.classifier.bias` [classes], after any number of dense
    layers `head.dense_1.weight` [d, e1] and `.bias`. An embedding may have `head.projection.weight` and `.bias`.

    Weights are stored [in, out]; torch's `nn.Linear` stores the transpose. Options provide what tensors cannot show:
    the activation of bottlenecks, LoRA's alpha, and the input and task of a head.

    `adapter-export sites MODEL` lists the sites' names.

    Args:
        weights: tensors `<site>.<parameter>`, stored [in, out], or a safetensors file with them.
        base: the model that the adapter was trained on.
        output: the folder to save it to. Default: do not save it.
        force: replace an existing folder.
        reporter: receives notes on changes to the tensors.

    Raises:
        UsageError: the kind is unknown, or a required option is missing.
        TensorError: lists every tensor that is missing, unused, misshapen or not finite.
        AdapterError: the tensors do not match the kind or the base.
        FileError, FormatError: the file cannot be read.
        OutputExistsError, WriteError: the output cannot be written.
    """
    from adapter_export.format.tensors import read_tensors
    from adapter_export.graph.heads import HeadOptions
    from adapter_export.graph.kinds import kind_named
    from adapter_export.plugins.formats.importers import plain_tensors as plain

    target = AdapterOutput(output, force, [weights, base])
    arguments = {key: value for key, value in options.items() if value is not None}
    facts = {key: arguments.pop(key) for key in TaskFacts.__annotations__ if key in arguments}
    kind_named(kind).check_known(arguments)
    tensors = weights if isinstance(weights, Mapping) else read_tensors(Path(weights))
    opened = recorded_base(base, OpenOptions(site_map, trust_pickle))
    view = opened.view  # an incomplete base is refused before tensors are matched
    packed = plain.pack(
        tensors,
        plain.fitting_kind(tensors, kind, **arguments),
        view,
        name=target.name(name) or (kind if isinstance(weights, Mapping) else Path(weights).stem),
        labels=labels,
        task=task,
        look=HeadOptions(pooling, activation=head_activation, l2_normalise=l2_normalise),
    )
    return target.save(complete_import(packed, opened, facts, reporter))


COMMAND = Command(
    pack,
    show_adapter,
    document=adapter_document,
    examples=(
        "adapter-export pack weights.safetensors --kind houlsby --activation relu --base model.pt -o a",
        "adapter-export pack w.safetensors --kind pfeiffer --activation gelu --base model.onnx \\",
        "    --labels negative,positive --pooling first -o sentiment",
        "adapter-export pack w.safetensors --kind lora --alpha 16 --base model.pt -o b",
    ),
    sections={
        "kind": (OptionsOf(packed_options),),
        "head": (
            *("labels", "task", "pooling", "head_activation", "l2_normalise", "thresholds"),
            *("input", "max_tokens", "truncation", "prefix", "query_prefix", "document_prefix"),
        ),
    },
)

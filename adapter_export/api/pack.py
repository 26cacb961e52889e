"""Make an adapter of plain tensors of any framework."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Unpack, cast

from adapter_export.api.adapters import OnNote, tell, with_site_map
from adapter_export.api.base import Base, PathLike, open_base
from adapter_export.api.kinds import PackedOptions, kind_names, own_options, placed
from adapter_export.api.option import SITE_MAP, TRUST_PICKLE, Option
from adapter_export.graph.ops import ACTIVATIONS
from adapter_export.graph.tasks import DEFAULT_TASK, Task

if TYPE_CHECKING:
    import numpy as np

    from adapter_export.graph.adapter import Adapter


def pack(
    weights: PathLike | Mapping[str, np.ndarray],
    base: Base | PathLike,
    *,
    kind: Annotated[str, Option("What is computed, and where.", kind_names)],
    labels: Annotated[tuple[str, ...] | None, "The names of the head's classes, in the order of the logits."] = None,
    pooling: Annotated[
        Literal["mean", "first"], "What the head reads: the mean over the tokens, or the first token."
    ] = "mean",
    task: Annotated[Task | None, f"What the head is for, if there is one.  [default: {DEFAULT_TASK}]"] = None,
    head_activation: Annotated[
        str, Option("The function behind each of its dense layers.", choices=ACTIVATIONS)
    ] = "tanh",
    l2_normalise: Annotated[bool, "Embeddings of length 1."] = False,
    name: Annotated[str | None, "What users will call it; the output's name if not given."] = None,
    site_map: Annotated[PathLike | None, SITE_MAP] = None,
    trust_pickle: Annotated[bool, TRUST_PICKLE] = False,
    on_note: OnNote | None = None,
    **options: Unpack[PackedOptions],
) -> Adapter:
    """Make an adapter of tensors that are named after sites; `docs/adapters.md` has the tensors of every kind.

    The annotations describe the other arguments, which are the options of `adapter-export pack`.

    Args:
        weights: tensors `<site>.<parameter>`, stored [in, out], or a safetensors file of them.
        base: the model that the adapter was trained on.
        on_note: is told what was done to the tensors.

    Raises:
        UsageError: the kind is not known, or something is needed that the tensors do not show.
        TensorError: listing every tensor that is missing, left over, misshapen or not made of finite numbers.
        AdapterError: the tensors are not of this kind, or do not fit the base.
        FileError, FormatError: the file cannot be read.
    """
    from adapter_export.format.tensors import read_tensors
    from adapter_export.graph.heads import HeadOptions
    from adapter_export.graph.kinds import kind_named
    from adapter_export.importers.plain import fitting_kind
    from adapter_export.importers.plain import pack as make

    given = cast("dict[str, Any]", {key: value for key, value in options.items() if value is not None})
    own = own_options(kind_named(kind), given)
    tensors = weights if isinstance(weights, Mapping) else read_tensors(Path(weights))
    opened = open_base(base, site_map=site_map, trust_pickle=trust_pickle)
    packed = make(
        tensors,
        placed(fitting_kind(tensors, kind, **own), given),
        opened.sites.map,
        name=name or (kind if isinstance(weights, Mapping) else Path(weights).stem),
        base=opened.fingerprint,
        labels=labels,
        task=task,
        look=HeadOptions(pooling, activation=head_activation, l2_normalise=l2_normalise),
    )
    tell(packed.notes, on_note)
    return with_site_map(packed.adapter, opened)

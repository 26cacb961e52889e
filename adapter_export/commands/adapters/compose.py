"""Combine several adapters into one: stacked, averaged or fused."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Literal

from adapter_export.address import Address, PathLike
from adapter_export.bases.adapters import composition_record, load_members
from adapter_export.commands.adapters._made_adapter import (
    ADAPTER_FOLDER,
    NAME,
    AdapterOutput,
    adapter_document,
    show_adapter,
)
from adapter_export.commands.command import Command, Screen
from adapter_export.errors import UsageError
from adapter_export.option import Force, Option
from adapter_export.words import argument, joined

if TYPE_CHECKING:
    from adapter_export.graph.adapter import Adapter


def compose(
    how: Literal["stack", "average", "fuse"],
    adapters: Sequence[Adapter | Address] | Mapping[str, Adapter | Address],
    output: Annotated[PathLike | None, ADAPTER_FOLDER] = None,
    *,
    name: Annotated[str | None, NAME] = None,
    weights: Annotated[
        tuple[float, ...] | Mapping[str, float] | None,
        "Weights of `average` (with sum 1) or `fuse`. Default: equal weights with sum 1.",
    ] = None,
    residual: Annotated[
        Literal["once", "literal"] | None,
        "Count the residual `h` once in `fuse`, or once more per weight. Default: once.",
    ] = None,
    head: Annotated[str | None, Option("Member whose head the result keeps. Default: no head.", "NAME")] = None,
    force: Force = False,
) -> Adapter:
    """Combine several adapters into one: in sequence, averaged, or as a weighted fusion.

    HOW is `stack`, `average` or `fuse`; ADAPTERS are folders; `other=folder` renames one. The result is a regular
    adapter. The weights of a `fuse` are a slot of the exported graph, so each request can set its own. A fusion by
    attention must be trained: `adapter-export train --fuse a,b`.

    Args:
        how: `stack`, `average` or `fuse`.
        adapters: the members, in order.
        output: the folder to save it to. Default: do not save it.
        name: name of the adapter. Default: the name of the output.
        force: replace an existing folder.

    Raises:
        UsageError: the composition has no such option, or the weights do not fit.
        AdapterError: the members cannot be combined.
        FileError, FormatError: a member cannot be read.
        OutputExistsError, WriteError: the output cannot be written.
    """
    from adapter_export.graph.compose import average, stack, weighted_fusion

    target = AdapterOutput(output, force, adapters)

    arguments = {key: value for key, value in (("weights", weights), ("residual", residual)) if value is not None}
    ways: Mapping[str, tuple[Callable[..., Adapter], tuple[str, ...]]] = {
        "stack": (stack, ()),
        "average": (average, ("weights",)),
        "fuse": (weighted_fusion, ("weights", "residual")),
    }
    make, accepted = ways[how]
    unknown = [key for key in arguments if key not in accepted]
    if unknown:
        raise UsageError(f"`{how}` has no such option", found=joined(map(argument, unknown)))
    members = load_members(adapters)
    composed = make(*members, name=target.required_name(name), head=head, **arguments)
    return target.save(replace(composed, training=composition_record(composed.training, members)))


def _document(adapter: Adapter, screen: Screen) -> Mapping[str, object]:
    from adapter_export.graph.compose import COMPOSITION

    return {"members": adapter.training[COMPOSITION]["members"], **adapter_document(adapter, screen)}


COMMAND = Command(
    compose,
    show_adapter,
    document=_document,
    examples=(
        "adapter-export compose stack language task -o both --head task",
        "adapter-export compose average run1 run2 run3 -o mean",
        "adapter-export compose average old new --weights old=0.25,new=0.75 -o mean --head new",
        "adapter-export compose fuse a b --weights 0.7,0.3 -o fused",
    ),
)

"""`adapter-export compose`: adapters become one adapter."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adapter_export.cli.options import check_free, examples, force_option, json_option, output_option
from adapter_export.cli.places import read_members, read_shares
from adapter_export.errors import UsageError
from adapter_export.graph.compose import COMPOSITION, average, stack, weighted_fusion

if TYPE_CHECKING:
    from adapter_export.graph.adapter import Adapter

_OPTIONS = {"stack": (), "average": ("weights",), "fuse": ("weights", "residual")}


@click.command(
    epilog=examples(
        "adapter-export compose stack language task -o both --head task",
        "adapter-export compose average run1 run2 run3 -o mean",
        "adapter-export compose average old new --weights old=0.25,new=0.75 -o mean --head new",
        "adapter-export compose fuse a b --weights 0.7,0.3 -o fused",
    )
)
@click.argument("how", type=click.Choice(tuple(_OPTIONS)))
@click.argument("adapters", nargs=-1, required=True)
@click.option(
    "--weights",
    metavar="N,…|NAME=N,…",
    callback=read_shares,
    help="Of `average`, with the sum 1, and `fuse`; equal ones of sum 1 if not given.",
)
@click.option(
    "--residual",
    type=click.Choice(("once", "literal")),
    help="Of `fuse`: whether `h` counts once, or once more for each weight.  [default: once]",
)
@click.option("--head", metavar="NAME", help="The member whose head it gets; none if not given.")
@click.option("--name", help="What users will call it; the output's name if not given.")
@output_option("The adapter folder")
@force_option
@json_option
def compose(
    how: str,
    adapters: tuple[str, ...],
    weights: Any,
    residual: str | None,
    head: str | None,
    name: str | None,
    output: Path,
    force: bool,
    as_json: bool,
) -> None:
    """Make one adapter of several: one after the other, their average, or their weighted fusion.

    HOW is `stack`, `average` or `fuse`; ADAPTERS are folders; `other=folder` renames one. What comes out is an adapter
    like any other. The weights of a `fuse` are a slot of the exported graph, to which each request can feed its own. A
    fusion by attention is trained: `adapter-export train --fuse a,b`.
    """
    from adapter_export.cli.places import report_adapter
    from adapter_export.format.adapter_files import write_adapter

    check_free(output, force=force)
    given = {key: value for key, value in (("weights", weights), ("residual", residual)) if value is not None}
    members = read_members(adapters, Path())
    made = members.finished(_composed(how, members.adapters, name or output.resolve().name, head, given))
    write_adapter(made, output, force=force)
    report_adapter(made, (), output, as_json, {"members": made.training[COMPOSITION]["members"]})


def _composed(how: str, adapters: tuple[Adapter, ...], name: str, head: str | None, given: dict[str, Any]) -> Adapter:
    strangers = [key for key in given if key not in _OPTIONS[how]]
    if strangers:
        raise UsageError(f"`{how}` has no such option", found=", ".join(f"`--{key}`" for key in strangers))
    if how == "stack":
        return stack(*adapters, name=name, head=head)
    if how == "average":
        return average(*adapters, name=name, head=head, **given)
    return weighted_fusion(*adapters, name=name, head=head, **given)

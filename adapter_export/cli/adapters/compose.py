"""`adapter-export compose`: adapters become one adapter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import adapter_export as ae
from adapter_export.cli.options import AdapterFolder, Force, Json, command
from adapter_export.option import Option
from adapter_export.safe_io.output import Output


@command(
    "adapter-export compose stack language task -o both --head task",
    "adapter-export compose average run1 run2 run3 -o mean",
    "adapter-export compose average old new --weights old=0.25,new=0.75 -o mean --head new",
    "adapter-export compose fuse a b --weights 0.7,0.3 -o fused",
    like=ae.compose,
)
def compose(
    how: Literal["stack", "average", "fuse"],
    adapters: Sequence[str],
    *,
    name: Annotated[str | None, Option("What users will call it; the output's name if not given.")] = None,
    output: AdapterFolder,
    force: Force = False,
    as_json: Json = False,
    **options: Any,
) -> None:
    """Make one adapter of several: one after the other, their average, or their weighted fusion.

    HOW is `stack`, `average` or `fuse`; ADAPTERS are folders; `other=folder` renames one. What comes out is an adapter
    like any other. The weights of a `fuse` are a slot of the exported graph, to which each request can feed its own. A
    fusion by attention is trained: `adapter-export train --fuse a,b`.
    """
    from adapter_export.cli.bases import report_adapter
    from adapter_export.graph.compose import COMPOSITION

    Output(output, force).ensure_writable(folder=True, sources=adapters)
    made = ae.compose(how, adapters, name=name or output.resolve().name, **options)
    ae.save(made, output, force=force)
    report_adapter(made, (), output, as_json, {"members": made.training[COMPOSITION]["members"]})

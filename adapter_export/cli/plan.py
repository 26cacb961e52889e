"""`adapter-export plan`: what adapters would cost in a model, before any is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import adapter_export as ae
from adapter_export.cli.bases import opened
from adapter_export.cli.options import Force, Json, SiteMapFile, TrustPickle, command
from adapter_export.cli.output import emit_json, say, show, steps


@command(
    "adapter-export plan model.pt",
    "adapter-export plan model.pt --kinds houlsby,lora --bottlenecks 4,16,64 --batch-size 16",
    "adapter-export plan model.pt --measure --plot plan.svg",
    like=ae.plan,
)
def plan(
    model: Path,
    *,
    site_map: SiteMapFile = None,
    trust_pickle: TrustPickle = False,
    force: Force = False,
    as_json: Json = False,
    **options: Any,
) -> None:
    """Say what adapters would cost in MODEL, before any is trained, and recommend one.

    For each kind and bottleneck: the sites, the numbers in the projections at one of them, all parameters and their
    share of the model's, the bytes of the file, multiply-accumulates per token and their share of those of the linear
    layers in the model's sublayers, and the memory of a step of training. With --measure also the time of a call,
    over that of the model alone, in ONNX Runtime.
    """
    base = opened(model, site_map, trust_pickle)
    with steps() as begin:
        found = ae.plan(base, force=force, on_progress=begin, **options)
    if as_json:
        emit_json(found.to_json())
        return
    show(found.table())
    say("")
    say(f"recommended: {found.recommended}")
    for reason in found.reasons:
        say(f"  {reason}")
    if "plot" in options:
        say(f"wrote {options['plot']}")

"""`adapter-export plan` and `lint`: what adapters would cost, and the classic mistakes in one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import click

import adapter_export as ae
from adapter_export.api.option import Option
from adapter_export.cli.bases import opened
from adapter_export.cli.options import Force, Json, SiteMapFile, TrustPickle, command
from adapter_export.cli.output import emit_json, say, show, steps

_FOUND = 1


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


@command(
    "adapter-export lint adapters/trec",
    "adapter-export lint adapters/trec --base model.pt --data train.tsv",
    "adapter-export lint adapters/trec --base model.pt --json | jq '.findings[].rule'",
    like=ae.lint,
)
def lint(
    adapter: Path,
    *,
    base: Annotated[Path | None, Option("The model that it is meant for.", "MODEL")] = None,
    site_map: SiteMapFile = None,
    trust_pickle: TrustPickle = False,
    as_json: Json = False,
    **options: Any,
) -> None:
    """Look for the classic mistakes in ADAPTER, a folder.

    Each is shown with what was measured, what would be in order, why, and what to do: a bottleneck too wide or too
    narrow, more parameters than the rows can teach, no residual path, a site at which it does nothing, an effective
    rank far below the width, a layer out of line, another base, a start that disturbs the base, units that never fire,
    sites that cost much and change little. What could not be looked for is said, with what it needs.

    Exit codes: 0 no mistake, 1 a mistake, 2 wrong call, 3 adapter, model or data cannot be used.
    """
    model = None if base is None else opened(base, site_map, trust_pickle)
    found = ae.lint(adapter, base=model, **options)
    if as_json:
        emit_json(found.to_json())
    else:
        if found.findings:
            show(f"adapter `{found.adapter}`", found.table())
        else:
            show(f"adapter `{found.adapter}`: none of {len(found.looked_for)} mistakes")
        reasons: dict[str, list[str]] = {}
        for rule, reason in found.skipped.items():
            reasons.setdefault(reason, []).append(rule)
        for reason, rules in reasons.items():
            say(f"not looked for: {', '.join(rules)}: {reason}")
    if not found.passed:
        raise click.exceptions.Exit(_FOUND)

"""`adapter-export lint`: the classic mistakes with adapters, looked for in one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import click

import adapter_export as ae
from adapter_export.api.option import Option
from adapter_export.cli.bases import opened
from adapter_export.cli.options import Json, SiteMapFile, TrustPickle, command
from adapter_export.cli.output import emit_json, say, show

_FOUND = 1


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

"""`adapter-export bench`: the way to serve a bundle on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import adapter_export as ae
from adapter_export.cli.bases import stepping
from adapter_export.cli.options import Json, command
from adapter_export.cli.output import emit_json, say, show
from adapter_export.errors import worded


@command(
    "adapter-export bench bundle --adapter trec",
    "adapter-export bench bundle --adapter trec --rows 8 --tokens 128 --json",
    like=ae.bench,
)
def bench(bundle: Path, *, as_json: Json = False, **options: Any) -> None:
    """Measure how many calls of BUNDLE to run at a time on this machine, and on how many threads each.

    Tried are one call on one thread, and the ways that take all processors that this process may use, by powers of two.
    They take turns in five rounds. Give `serve` what is named at the end, for the most rows or for short calls.
    """
    with stepping("measuring") as on_step:
        found = ae.bench(bundle, on_step=on_step, **options)
    if as_json:
        emit_json(found.to_json())
        return
    show(found.table())
    for phrase in found.advice():
        say(worded(phrase, "shell"))

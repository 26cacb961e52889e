"""`adapter-export check`: does a bundle compute what it should?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import click

import adapter_export as ae
from adapter_export.api.option import Option
from adapter_export.cli.options import Json, SiteMapFile, TrustPickle, command

_MISMATCH = 1


@command(
    "adapter-export check bundle --against model.pt",
    "adapter-export check bundle",
    "adapter-export check bundle --against model.pt --data test.tsv --text text",
    "adapter-export check bundle --against model.pt --only trec --case batch3_tokens7_padded",
    "adapter-export check bundle --flavour bank",
    "adapter-export check bundle --json > report.json",
    like=ae.check,
)
def check(
    bundle: Path,
    *,
    against: Annotated[
        Path | None,
        Option(
            "The model that the bundle was built from: a torch archive, a Hugging Face folder or an ONNX file. "
            "Without it the golden vectors in the bundle are the reference, and torch is not needed.",
            "MODEL",
        ),
    ] = None,
    site_map: SiteMapFile = None,
    trust_pickle: TrustPickle = False,
    as_json: Json = False,
    **options: Any,
) -> None:
    """Prove that BUNDLE computes what it should, for the base and every adapter.

    Compares every output of every graph in the bundle at a matrix of shapes: the graph with slots at ONNX Runtime's
    optimization levels none, basic and all, the bank also in batches whose rows run through different adapters. Then
    every adapter at every site with float64 arithmetic, and what must hold in any case: switching leaves no trace, idle
    slots change nothing, rows of a batch stay apart, all files are as they were written. What is allowed follows from
    the computation, and is printed with its reason.

    A bundle whose base has another precision than MODEL is compared with MODEL in that same precision; how far that is
    from MODEL itself is reported beside, on random inputs or on the texts of FILE.

    Exit codes: 0 everything is within its budget, 1 something is not, 3 the bundle or the model cannot be used,
    4 nothing was compared.
    """
    from adapter_export.cli.bases import opened, stepping
    from adapter_export.cli.check_tables import show
    from adapter_export.cli.output import emit_json

    base = None if against is None else opened(against, site_map, trust_pickle)
    with stepping("checking") as on_step:
        report = ae.check(bundle, against=base, on_step=on_step, **options)
    if as_json:
        emit_json(report.to_json())
    else:
        show(report)
    if not report.passed:
        raise click.exceptions.Exit(_MISMATCH)

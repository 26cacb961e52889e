"""`adapter-export plan`, `sweep`, `lint` and `drop`: what adapters cost and bring, and how to have less of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import click

import adapter_export as ae
from adapter_export.api.training.sweep import RUNS, own_arguments
from adapter_export.cli.bases import opened
from adapter_export.cli.options import Force, Json, SiteMapFile, TrustPickle, command
from adapter_export.cli.output import emit_json, say, show
from adapter_export.cli.reporter import TerminalReporter
from adapter_export.cli.training.train import SECTIONS as TRAINING
from adapter_export.option import Option

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
    with TerminalReporter("plan") as reporter:
        found = ae.plan(base, force=force, reporter=reporter, **options)
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
    "adapter-export sweep model.pt --data train.tsv --validation-data dev.tsv -o sweep",
    "adapter-export sweep model.pt --data train.tsv --bottlenecks 4,16,64 --kinds houlsby,lora --workers 4 -o sweep \\",
    "    --measure --plot sweep.svg --bundle bundle",
    "adapter-export sweep model.pt --data train.tsv --bottlenecks 4..256 --learning-rates 1e-4..1e-2 --trials 30 -o s",
    like=(ae.sweep, ae.train),
    without=own_arguments(),
    sections=TRAINING,
    common=("text", "label", "validation_data", "test_data", "epochs"),
)
def sweep(
    model: Path,
    *,
    data: Annotated[Path, Option("Labelled texts, as `train` reads them.", "PATH")],
    output: Annotated[Path, Option("The folder to write, with one in `runs` for each adapter.", "PATH", "-o")],
    as_json: Json = False,
    **options: Any,
) -> None:
    """Train adapters of many settings for MODEL, each with several seeds, and compare what they bring and cost.

    Every combination of kinds, bottlenecks, placements and learning rates is trained as `train` does it; with --trials
    Optuna chooses. The best one has the highest mean metric on the validation rows; test data decide nothing.
    What is finished is kept: the same command goes on where it was interrupted, and tries again what failed.
    docs/practice.md has all of it.
    """
    with TerminalReporter("sweep") as reporter:
        found = ae.sweep(model, data, output, reporter=reporter, **options)
    if as_json:
        emit_json(found.to_json())
        return
    show(found.table())
    say(f"{found.summary()} in {output / RUNS}.")
    for one in ("plot", "bundle"):
        if one in options:
            say(f"wrote {options[one]}")


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


@command(
    "adapter-export drop adapters/trec --base model.pt --data test.tsv",
    "adapter-export drop adapters/trec --base model.pt --data test.tsv --plot drop.svg --json",
    "adapter-export drop adapters/trec --base model.pt --data test.tsv --layers 3 -o adapters/trec-upper",
    like=ae.drop,
)
def drop(
    adapter: Path,
    *,
    base: Annotated[Path, Option("The model that it was trained on.", "MODEL")],
    data: Annotated[Path, Option("Labelled rows that it did not learn from.", "PATH")],
    output: Annotated[
        Path | None, Option("The adapter folder to write, without --layers or --leave-out.", "PATH", "-o")
    ] = None,
    site_map: SiteMapFile = None,
    trust_pickle: TrustPickle = False,
    force: Force = False,
    as_json: Json = False,
    **options: Any,
) -> None:
    """Say what ADAPTER, a folder, loses and saves without its lowest layers, and write it without them.

    A row for each number of dropped layers: the sites that are left, its parameters, scores with intervals of 95 %, and
    the time of a call over that of the model alone in ONNX Runtime: in the graph with the slots of the whole adapter,
    where those of dropped layers are idle, and in a graph without slots there. An adapter that was trained with
    `train --drop-layers` loses less.
    """
    model = opened(base, site_map, trust_pickle)
    with TerminalReporter("drop") as reporter:
        found = ae.drop(adapter, model, data, output, force=force, reporter=reporter, **options)
    if as_json:
        emit_json(found.to_json())
        return
    show(found.table())
    for note in found.notes:
        say(f"  {note}")
    for written in (output, options.get("plot")):
        if written is not None:
            say(f"wrote {written}.")

"""Measure an adapter without its lowest layers (AdapterDrop), and write it without some."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from adapter_export.address import Address, PathLike
from adapter_export.bases.base import Base
from adapter_export.bases.kinds import at_least_1
from adapter_export.commands.command import Command, Screen
from adapter_export.errors import AdapterError, UsageError
from adapter_export.extras import require
from adapter_export.option import (
    DELIMITER,
    ENCODING,
    LABEL,
    NEGATIVE,
    PAIR,
    SITE_MAP,
    SKIP_INCOMPLETE,
    START,
    TEXT,
    THREADS,
    TOKENIZER,
    TRUST_PICKLE,
    Force,
    Option,
)
from adapter_export.plugins.lab.commands._plots import writable_plot
from adapter_export.reporting import SILENT, Reporter
from adapter_export.safe_io.output import Output
from adapter_export.safe_io.temporary import temporary_folder
from adapter_export.tables import number_of
from adapter_export.training.rows import (
    RowReader,
    adapter_with_task,
    check_adapter_of,
    open_trainable,
    tables_before_opening,
)
from adapter_export.training.specs import DataSpec, HeadSpec
from adapter_export.version import __version__
from adapter_export.words import argument

if TYPE_CHECKING:
    from adapter_export.graph.adapter import Adapter
    from adapter_export.graph.tasks.metrics import Judged, Metric
    from adapter_export.plugins.lab.layer_drop import Drop, Dropped
    from adapter_export.training.loop.data import Examples

_Layers = Mapping[int, Sequence[str]]
"""Layers to drop together, each with its sites."""


def drop(
    adapter: Adapter | Address,
    base: Annotated[Base | Address, Option("Model that the adapter was trained on.", "MODEL", "--base")],
    data: Annotated[Address, Option("Labelled rows that the adapter was not trained on.", "PATH", "--data")],
    output: Annotated[
        PathLike | None, Option("Adapter folder to write, without `--layers` or `--leave-out`.", "PATH", "-o")
    ] = None,
    *,
    layers: Annotated[int | None, Option("Drop the adapters of the N lowest layers.", "N", least=1)] = None,
    leave_out: Annotated[tuple[int, ...] | None, Option("Drop the adapters of these layers.", "N,N,…")] = None,
    text: Annotated[str, TEXT] = "text",
    pair: Annotated[str | None, PAIR] = None,
    negative: Annotated[Sequence[str], NEGATIVE] = (),
    label: Annotated[str | None, LABEL] = None,
    start: Annotated[str | None, START] = None,
    delimiter: Annotated[str | None, DELIMITER] = None,
    encoding: Annotated[str | None, ENCODING] = None,
    skip_incomplete: Annotated[bool, SKIP_INCOMPLETE] = False,
    tokenizer: Annotated[Address | None, TOKENIZER] = None,
    batch_size: Annotated[int, Option("Rows per batch.", "N", least=1)] = 32,
    threads: Annotated[int | None, THREADS] = None,
    plot: Annotated[PathLike | None, Option("Plot scores and times: `.svg` or `.png`.", "FILE")] = None,
    site_map: Annotated[PathLike | None, SITE_MAP] = None,
    trust_pickle: Annotated[bool, TRUST_PICKLE] = False,
    force: Force = False,
    reporter: Reporter = SILENT,
) -> Drop:
    """Measure what an adapter loses and saves without its lowest layers (AdapterDrop; Rücklé et al. 2021).

    Scores are measured in torch with no layer dropped, the lowest one, the two lowest, and so on. Times are measured in
    ONNX Runtime, relative to the base, for two graphs: with idle slots in the dropped layers, and without slots there.

    Args:
        adapter: the adapter, with a head, or its folder. Training with `drop_layers` reduces the loss.
        base: the model it was trained on; torch must be able to run it.
        data: labelled test rows, as `train` reads them; not rows of its training.
        output: the folder for the adapter without `layers` or `leave_out`.
        site_map: the sites of the base.
        trust_pickle: load the base even if it could run code.
        force: replace `output` and `plot`.
        reporter: receives each step before it begins.

    Raises:
        UsageError: arguments exclude each other, or the adapter does not have these layers.
        AdapterError: it has no head with a task; its subclass `BaseMismatchError`: it belongs to another base.
        DataError: the data cannot be used, or contain labels that the adapter lacks.
        OutputExistsError, WriteError: the adapter or the plot cannot be written.
    """
    path, sources = None if output is None else Path(output), [adapter, base, data]
    _check_layers(layers, leave_out, writes=path is not None)
    if path is not None:
        Output(path, force).ensure_writable(folder=True, sources=sources)
    image = writable_plot(plot, force=force, sources=sources)
    columns = DataSpec(
        data,
        text=text,
        pair=pair,
        negative=negative,
        label=label,
        start=start,
        delimiter=delimiter,
        encoding=encoding,
        skip_incomplete=skip_incomplete,
        tokenizer=tokenizer,
    )
    opened = open_trainable(base, site_map, trust_pickle=trust_pickle)
    whole = adapter_with_task(opened, adapter)
    tables = tables_before_opening(opened, columns, HeadSpec(), whole.task, splits=False)
    torch = require("torch", "torch", "measuring an adapter without layers")
    from adapter_export.format.adapter_files import write_adapter
    from adapter_export.plugins.lab.layer_drop import Drop, findings

    if threads is not None:
        torch.set_num_threads(at_least_1("threads", threads))
    check_adapter_of(opened, whole)
    choices, at = _choices(whole.layers(opened.sites.complete), layers, leave_out)
    rows, notes = RowReader.of(opened, columns, HeadSpec(), whole.task, tables).read_all()
    for note in notes:
        reporter.warn(note)
    judged = _judged(opened, whole, choices, rows, batch_size, reporter)
    lesser = [_without(whole, dropped) for dropped in choices]
    curve, tokens = _curve(opened, whole, lesser, choices, judged, rows, reporter)
    if path is not None and at is not None:
        write_adapter(replace(lesser[at], name=path.resolve().name), path, force=force)
    metric: Metric = judged[-1].metrics[0]
    result = Drop(
        whole.name,
        metric.name,
        len(rows.lengths),
        tokens,
        curve,
        None if path is None or at is None else curve[at],
        path,
        findings(curve, metric),
    )
    if image is not None:
        from adapter_export.plugins.lab.plot import draw_drop

        draw_drop(result, image, force=force)
    return result


def _check_layers(layers: int | None, leave_out: object, *, writes: bool) -> None:
    """Refuse two choices of layers, or an output without a choice."""
    if layers is not None and leave_out is not None:
        both = argument("layers") + " and " + argument("leave_out")
        raise UsageError(both + " exclude each other", fix="remove one of them")
    if writes and layers is None and leave_out is None:
        fix = "choose layers with " + argument("layers") + " or " + argument("leave_out")
        raise UsageError("no layers were chosen for the adapter to write", fix=fix)


def _judged(
    base: Base, whole: Adapter, choices: Sequence[_Layers], rows: Examples, batch_size: int, reporter: Reporter
) -> list[Judged]:
    """Answer the rows without each choice of layers, and score the answers."""
    from adapter_export.torch_backend.attach import attach
    from adapter_export.training.loop.measure import judged
    from adapter_export.training.loop.settings import LoopSpec
    from adapter_export.training.loop.train_loop import answer_examples

    settings, model, judgements = (
        LoopSpec(batch_size=batch_size),
        attach(base.torch, whole, sites=base.sites.complete),
        [],
    )
    for done, dropped in enumerate(choices):
        without = f"without the adapters of {number_of(len(dropped), 'layer')}"
        label = f"answering {number_of(len(rows.lengths), 'row')} {without}"
        reporter.step(label, done, len(choices))
        model.leave_out([place for sites in dropped.values() for place in sites])
        order, results, targets = answer_examples(model, rows, settings)
        judgements.append(judged(whole.task, results, targets, rows.only(order)))
    return judgements


def _curve(
    base: Base,
    whole: Adapter,
    lesser: Sequence[Adapter],
    choices: Sequence[_Layers],
    judged: Sequence[Judged],
    rows: Examples,
    reporter: Reporter,
) -> tuple[tuple[Dropped, ...], int]:
    """Return scores, sizes and times for each choice of layers, and the tokens of the timed row."""
    import numpy as np

    from adapter_export.plugins.lab.layer_drop import Dropped, time_dropped
    from adapter_export.plugins.lab.scores import score

    tokens = round(float(np.median(rows.lengths)))
    with temporary_folder() as folder:
        onnx = base.exported(folder, reporter)
        reporter.step("timing each choice next to the base")
        times = time_dropped(onnx, whole, lesser, tokens)
    measured = zip(choices, lesser, judged, times, strict=True)
    curve = tuple(
        Dropped(tuple(dropped), len(adapter.placements), adapter.cost().parameters, score(answers), *seconds)
        for dropped, adapter, answers, seconds in measured
    )
    return curve, tokens


def _choices(
    layers: Mapping[int, list[str]], lowest: int | None, leave_out: Sequence[int] | None
) -> tuple[list[dict[int, list[str]]], int | None]:
    """Return the choices of layers to drop, with their sites, and the index of the requested one.

    The choices are none, the lowest, the two lowest, and so on, then the requested one if it is not among these.
    """
    if not layers:
        raise AdapterError("acts in no layer, so there is nothing to drop", found="a head only")
    choices = [dict(list(layers.items())[:count]) for count in range(len(layers) + 1)]
    if lowest is not None:
        if at_least_1("layers", lowest) > len(layers):
            raise UsageError("acts in fewer layers", where=argument("layers"), found=lowest, expected=len(layers))
        return choices, lowest
    if leave_out is None:
        return choices, None
    if not leave_out or not set(leave_out) <= set(layers):
        named, known = (", ".join(map(str, each)) or "none" for each in (leave_out, layers))
        raise UsageError("acts in other layers", where=argument("leave_out"), found=named, expected=f"some of {known}")
    requested = {layer: layers[layer] for layer in sorted(set(leave_out))}
    if requested not in choices:
        choices.append(requested)
    return choices, choices.index(requested)


def _without(adapter: Adapter, dropped: Mapping[int, list[str]]) -> Adapter:
    """Return the adapter without some layers. Its old training record is nested, because its scores no longer apply."""
    if not dropped:
        return adapter
    record = {"producer": f"adapter-export {__version__}", "dropped_layers": list(dropped)}
    lesser = adapter.without([place for places in dropped.values() for place in places])
    return replace(lesser, training={**record, "whole": {"adapter": adapter.name, "training": adapter.training}})


def _show(outcome: Drop, screen: Screen) -> None:
    screen.show(outcome.table())
    for note in outcome.notes:
        screen.report("  " + note)
    for name in ("output", "plot"):
        if name in screen.given:
            screen.report(f"wrote {screen.given[name]}.")


COMMAND = Command(
    drop,
    _show,
    examples=(
        "adapter-export drop adapters/trec --base model.pt --data test.tsv",
        "adapter-export drop adapters/trec --base model.pt --data test.tsv --plot drop.svg --json",
        "adapter-export drop adapters/trec --base model.pt --data test.tsv --layers 3 -o adapters/trec-upper",
    ),
)

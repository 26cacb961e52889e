"""Train adapters with many settings, and compare their scores and costs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from adapter_export.address import Address, PathLike
from adapter_export.bases.base import Base
from adapter_export.bases.kinds import at_least_1, check_different
from adapter_export.bases.opening import open_base
from adapter_export.commands.bundles.build import build
from adapter_export.commands.command import Command, Screen
from adapter_export.commands.training.train import INIT, SECTIONS
from adapter_export.errors import UsageError
from adapter_export.extras import require
from adapter_export.option import SITE_MAP, TRUST_PICKLE, Option
from adapter_export.plugins.lab.commands._plots import writable_plot
from adapter_export.plugins.lab.commands._trainings import (
    RUNS,
    SWEEP_OPTIONS,
    SweepPlan,
    Where,
    claimed,
    ensure_sweepable,
    own_arguments,
    run_trials,
    workers_for,
)
from adapter_export.reporting import SILENT, Reporter
from adapter_export.safe_io.output import Output
from adapter_export.safe_io.temporary import temporary_folder
from adapter_export.training.rows import open_trainable, tables_before_opening
from adapter_export.training.specs import DataSpec, HeadSpec
from adapter_export.words import argument, joined

if TYPE_CHECKING:
    from adapter_export.plugins.lab.sweep_results import Range, Sweep, Trial


def sweep(
    model: Base | Address,
    data: Annotated[Address, Option("Labelled rows, as `train` reads them.", "PATH", "--data")],
    output: Annotated[PathLike, Option("Folder to write; `runs` gets a folder per adapter.", "PATH", "-o")],
    *,
    kinds: Annotated[tuple[str, ...], "Adapter kinds."] = ("houlsby", "pfeiffer"),
    bottlenecks: Annotated[
        tuple[int, ...] | str, Option("Bottleneck widths or LoRA ranks; with --trials also a range.")
    ] = (16, 64, 256),
    placements: Annotated[
        tuple[str, ...],
        Option(
            "Placements, such as `attention,ffn,attention+ffn`, or `query+value` of LoRA; the default depends on the "
            "kind.",
            "A,B+C,…",
        ),
    ] = (),
    learning_rates: Annotated[tuple[float, ...] | str, Option("Peak learning rates; with --trials also a range.")] = (
        0.001,
    ),
    seeds: Annotated[tuple[int, ...], "Random seeds; each setting is trained once per seed."] = (0, 1, 2),
    trials: Annotated[
        int | None, Option("Number of settings chosen by Optuna. Default: try every setting.", "N", least=1)
    ] = None,
    workers: Annotated[
        int | None,
        Option("Parallel training processes. Default: train in this process.", "N", least=1),
    ] = None,
    ray: Annotated[str | None, Option("Train on a Ray cluster: `auto`, `local`, or its address.", "ADDRESS")] = None,
    measure: Annotated[
        bool, "Also measure the latency of each setting in ONNX Runtime, relative to the base: one row, one thread."
    ] = False,
    tokens: Annotated[int, Option("Tokens of the timed row, at most the model's maximum.", "N", least=1)] = 128,
    plot: Annotated[PathLike | None, Option("Plot scores over costs: `.svg` or `.png`.", "FILE")] = None,
    bundle: Annotated[PathLike | None, Option("Build a bundle of the best adapter.", "FOLDER")] = None,
    init: Annotated[str | None, INIT] = None,
    force: Annotated[bool, "Replace the plot and the bundle."] = False,
    site_map: Annotated[PathLike | None, SITE_MAP] = None,
    trust_pickle: Annotated[bool, TRUST_PICKLE] = False,
    reporter: Reporter = SILENT,
    **training: Annotated[Any, SWEEP_OPTIONS],
) -> Sweep:
    """Train adapters with many settings on one table, and compare their scores and costs.

    A setting is a kind, a bottleneck, a placement and a learning rate; each is trained once per seed. Without `trials`,
    every combination is tried. With it, Optuna chooses, and bottlenecks and learning rates may be ranges, such as
    `"4..256"` and `"1e-4..1e-2"`. The score is the metric that selects the best epoch on the validation rows, averaged
    over seeds. Test scores are reported but not used for selection. The same call resumes a sweep and retries failed
    trainings.

    Args:
        model: the base; torch must be able to train it.
        data: labelled texts, as `train` reads them.
        output: the folder to write; `runs` contains a folder per adapter, with its training record.
        reporter: receives each finished training with its score, later steps, and notes.
        training: all other arguments of `train`; `restart` starts interrupted trainings anew.

    Returns:
        The trials, including failed trainings with their errors.

    Raises:
        UsageError: arguments exclude each other or are out of range.
        FileError: the folder contains something else, or another process uses it.
        DataError, BaseModelError, AdapterError: as `train`.
        TrainingError: the folder contains another sweep, or every setting failed.
        OutputExistsError, WriteError: an output cannot be written. Finished trainings stay.
    """
    from adapter_export.graph.kinds import kind_named

    if bundle is not None:
        Output(Path(bundle), force).ensure_writable(folder=True)
    ensure_sweepable(Path(output).absolute())
    chart = writable_plot(plot, force=force)
    for option, values in (("kinds", kinds), ("seeds", seeds), ("placements", placements or ("",))):
        check_different(option, values)
    of_data, of_head = _check_training(training)
    named = [kind_named(kind) for kind in kinds]
    unopened = open_trainable(model, site_map, trust_pickle=trust_pickle)
    rows = DataSpec(data, **of_data)
    tables_before_opening(unopened, rows, HeadSpec(**of_head))
    from adapter_export.plugins.lab.sweep_results import Space, Sweep

    training |= {} if init is None else {"init": init}
    space = Space(
        {kind: maker.swept("width") is not None for kind, maker in zip(kinds, named, strict=True)},
        _values("bottlenecks", bottlenecks, int, trials),
        placements,
        _values("learning_rates", learning_rates, float, trials),
    )
    base = open_base(model, site_map=site_map, trust_pickle=trust_pickle)
    where: Where = base
    if workers is not None or ray is not None:
        where = _reopened(base, site_map, trust_pickle)
        training = {**training, "threads": training.get("threads") or _threads_each(workers, ray)}
    plan = SweepPlan(base, where, rows.files[0].absolute(), Path(output).absolute(), space, seeds, training)
    for setting in space.grid():  # so that predictable errors surface before the first training
        plan.shaped(setting)
    if trials is not None:
        require("optuna", "sweep", argument("trials"))
    with claimed(plan.folder, plan.identity()):
        with workers_for(workers, ray, training) as pool:
            finished, metric = run_trials(plan, pool, trials, reporter)
        if measure:
            finished = _timed(plan, finished, at_least_1("tokens", tokens), reporter)
        outcome = Sweep.of(plan.data.name, metric, seeds, finished)
        if chart is not None:
            from adapter_export.plugins.lab.plot import draw_sweep

            draw_sweep(outcome, chart, force=force)
        if bundle is not None:
            best = [plan.folder / RUNS / outcome.adapter]
            build(base, best, bundle, force=force, reporter=reporter)
    return outcome


def _timed(plan: SweepPlan, trials: list[Trial], tokens: int, reporter: Reporter) -> list[Trial]:
    """Measure the latency of each setting."""
    from adapter_export.bundle.latency import Setup, latencies

    base = plan.base
    with temporary_folder() as folder:
        onnx = base.exported(folder, reporter)
        reporter.step("timing each setting next to the base")
        setup = Setup(1, tokens if base.max_tokens is None else min(tokens, base.max_tokens))
        times = latencies(onnx, [plan.shaped(trial.setting) for trial in trials], setup)
    return [replace(trial, latency=latency) for trial, latency in zip(trials, times, strict=True)]


def _reopened(base: Base, site_map: PathLike | None, trust_pickle: bool) -> Where:
    """Return the arguments another process needs to open the base."""
    if base.path is None or (base.given is not None and site_map is None):
        raise UsageError("worker processes must open the base themselves", fix="give the path of its file")
    return base.path.absolute(), None if site_map is None else Path(site_map).absolute(), trust_pickle


def _threads_each(workers: int | None, ray: str | None) -> int:
    """Return the number of threads per parallel training."""
    return 1 if ray is not None else max(1, (os.cpu_count() or 1) // at_least_1("workers", workers or 1))


def _values(name: str, values: tuple[Any, ...] | str, number: type, trials: int | None) -> tuple[Any, ...] | Range:
    """Read a list, or a range if settings are searched; all numbers must be positive."""
    from adapter_export.plugins.lab.sweep_results import Range

    try:
        ends = tuple(map(number, values.split(".."))) if isinstance(values, str) else tuple(values)
    except ValueError:
        ends = ()
    ranged = isinstance(values, str)
    if any(end <= 0 for end in ends) or (ranged and not (len(ends) == 2 and ends[0] < ends[1])):
        expected = "numbers above 0, or a range such as `4..256`"
        raise UsageError(argument(name) + " must be positive numbers", found=values, expected=expected)
    if not ranged:
        check_different(name, ends)
        return ends
    if trials is None:
        fix = "set the number of settings to try, " + argument("trials", 30) + ", or pass a list"
        raise UsageError("a range has infinitely many settings", where=argument(name), found=values, fix=fix)
    return Range(*ends)


def _check_training(training: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Refuse unknown options and options that a sweep sets itself; return those of rows and heads."""
    refused = sorted(own_arguments().intersection(training))
    if refused:
        raise UsageError("a sweep sets this itself or does not use it", found=joined(map(argument, refused)))
    _, of_data, of_head, *_ = SWEEP_OPTIONS.split("train", training)
    return of_data, of_head


def _show(outcome: Sweep, screen: Screen) -> None:
    screen.show(outcome.table())
    screen.report(f"{outcome.summary()} in {screen.given['output'] / RUNS}.")
    for name in ("plot", "bundle"):
        if name in screen.given:
            screen.report(f"wrote {screen.given[name]}")


COMMAND = Command(
    sweep,
    _show,
    examples=(
        "adapter-export sweep model.pt --data train.tsv --validation-data dev.tsv -o sweep",
        "adapter-export sweep model.pt --data train.tsv --bottlenecks 4,16,64 --kinds houlsby,lora --workers 4 \\",
        "    --measure --plot sweep.svg --bundle bundle -o sweep",
        "adapter-export sweep model.pt --data train.tsv --bottlenecks 4..256 --trials 30 -o sweep",
    ),
    sections=SECTIONS,
    common=("text", "label", "validation_data", "test_data", "epochs"),
)

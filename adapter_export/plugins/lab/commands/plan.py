"""Estimate the cost of adapters in a model, before training."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

from adapter_export.address import Address, PathLike
from adapter_export.bases.base import Base, OpenOptions
from adapter_export.bases.kinds import at_least_1, check_different
from adapter_export.bases.opening import base_for
from adapter_export.commands.command import Command, Screen
from adapter_export.option import SITE_MAP, TRUST_PICKLE, Force, Option
from adapter_export.plugins.lab.commands._plots import writable_plot
from adapter_export.reporting import SILENT, Reporter
from adapter_export.safe_io.temporary import temporary_folder

if TYPE_CHECKING:
    from adapter_export.bundle.latency import Latency
    from adapter_export.plugins.lab.adapter_costs import Plan


def plan(
    model: Base | Address,
    *,
    kinds: Annotated[tuple[str, ...], "Adapter kinds."] = ("houlsby", "pfeiffer"),
    bottlenecks: Annotated[tuple[int, ...], "Bottleneck widths."] = (16, 64, 256),
    batch_size: Annotated[int, Option("Rows per training step.", "N", least=1)] = 32,
    tokens: Annotated[int, Option("Tokens per row, at most the model's maximum.", "N", least=1)] = 128,
    rows: Annotated[
        int | None, Option("Number of training rows, which the recommendation takes into account.", "N", least=1)
    ] = None,
    measure: Annotated[
        bool, "Also time each choice in ONNX Runtime, relative to the base: one row, one thread."
    ] = False,
    plot: Annotated[
        PathLike | None, Option("Plot the cost of each kind over its bottleneck widths: `.svg` or `.png`.", "FILE")
    ] = None,
    site_map: Annotated[PathLike | None, SITE_MAP] = None,
    trust_pickle: Annotated[bool, TRUST_PICKLE] = False,
    force: Force = False,
    reporter: Reporter = SILENT,
) -> Plan:
    """Estimate the cost of each kind and bottleneck width in MODEL, and recommend one.

    Shows for each kind and width: the sites, the parameters per site, all parameters and their share of the model's,
    the file size, multiply-accumulates per token and their share of the linear layers' in the model's sublayers, and
    the memory of a training step, measured in two passes of torch. `--measure` adds the latency of a call in ONNX
    Runtime, relative to the base. Nothing is trained.

    Args:
        model: a base, or a path that `open_base` accepts.
        site_map: the sites of the base.
        trust_pickle: load the base even if it could run code.
        force: replace `plot`.
        reporter: receives each step before it begins.

    Raises:
        UsageError: a kind is unknown, or cannot have a width in this base.
        BaseModelError: the model cannot be a base, or its sites are unknown.
        AdapterError: the base has no site for a kind.
        OutputExistsError, WriteError: the plot cannot be written.
    """
    from adapter_export.graph.kinds import kind_named

    for name, values in (("kinds", kinds), ("bottlenecks", bottlenecks)):
        check_different(name, values)
    for width in bottlenecks:
        at_least_1("bottlenecks", width)
    made_kinds = [kind_named(kind)() for kind in kinds]
    setup_size = at_least_1("batch_size", batch_size), at_least_1("tokens", tokens)
    if rows is not None:
        at_least_1("rows", rows)
    chart = writable_plot(plot, force=force)
    from adapter_export.bundle.latency import Setup, sample
    from adapter_export.plugins.lab.adapter_costs import Plan, base_work, choices, recommend

    setup = Setup(*setup_size)
    base = base_for(model, OpenOptions(site_map, trust_pickle), reporter)
    sites = base.sites.complete
    shaped = list(choices(made_kinds, bottlenecks, sites, base.parameters))
    adapters = [adapter for _, adapter in shaped]
    memory: list[int | None] = [None] * len(shaped)
    if base.trainable:
        from adapter_export.training.loop.memory import training_memory

        reporter.step("measuring the memory of training")
        single, double = (sample(base.inputs, count, setup.tokens, base.lengths) for count in (1, 2))
        memory = [training_memory(base.torch, adapter, sites, single, double, setup.batch) for adapter in adapters]
    times: list[Latency | None] = [None] * len(shaped)
    if measure:
        from adapter_export.bundle.latency import latencies

        with temporary_folder() as folder:
            onnx = base.exported(folder, reporter)
            reporter.step("timing each choice next to the base")
            times = [*latencies(onnx, adapters, setup)]
    measured = tuple(
        replace(choice, training_memory=needed, latency=latency)
        for (choice, _), needed, latency in zip(shaped, memory, times, strict=True)
    )
    best, reasons = recommend(measured, sites.width, rows)
    planned = Plan(sites.width, base.parameters, base_work(sites), setup, measured, best, reasons)
    if chart is not None:
        from adapter_export.plugins.lab.plot import draw_plan

        draw_plan(planned, chart, force=force)
    return planned


def _show(planned: Plan, screen: Screen) -> None:
    screen.show(planned.table())
    screen.report("")
    screen.report(f"recommended: {planned.recommended}")
    for reason in planned.reasons:
        screen.report("  " + reason)
    if "plot" in screen.given:
        screen.report(f"wrote {screen.given['plot']}")


COMMAND = Command(
    plan,
    _show,
    examples=(
        "adapter-export plan model.pt --rows 500",
        "adapter-export plan model.pt --kinds houlsby,lora --bottlenecks 4,16,64 --batch-size 16",
        "adapter-export plan model.pt --measure --plot plan.svg",
    ),
)

"""Pictures for people who would rather look than read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from adapter_export.errors import UsageError
from adapter_export.format.files import new_file
from adapter_export.practice.plan import Choice, Plan


def check_picture(path: Path) -> None:
    """Raise `UsageError` unless a file's name ends in `.svg` or `.png`."""
    if path.suffix.lower() not in (".svg", ".png"):
        raise UsageError("a picture of an unknown type", found=f"`{path.name}`", expected="`.svg` or `.png`")


def draw_plan(plan: Plan, path: Path, *, force: bool = False) -> None:
    """Draw what each kind costs over its bottlenecks.

    Raises:
        OutputExistsError, WriteError: the file cannot be written.
    """
    figure = Figure(figsize=(8, 3.2), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    shares: Mapping[str, Callable[[Choice], float | None]] = {
        "parameters, % of the base": lambda one: 100 * one.parameter_share,
        "multiply-accumulates, % of the base": lambda one: None if one.work_share is None else 100 * one.work_share,
        "latency over the base": lambda one: None if one.latency is None else one.latency.ratio,
    }
    drawn = {title: of for title, of in shares.items() if any(of(one) is not None for one in plan.choices)}
    kinds = dict.fromkeys(one.kind for one in plan.choices)
    for axes, (title, of) in zip(np.atleast_1d(figure.subplots(1, len(drawn))), drawn.items(), strict=True):
        for kind in kinds:
            points = [(one.bottleneck or 0, of(one)) for one in plan.choices if one.kind == kind]
            known = [(bottleneck, value) for bottleneck, value in points if value is not None]
            axes.plot(*zip(*known, strict=True), "o-", label=kind)
        axes.set_xscale("symlog", base=2)
        axes.set_xlabel("bottleneck")
        axes.set_ylabel(title)
    axes.legend(frameon=False)
    with new_file(path, force=force) as temporary:
        figure.savefig(temporary, format=path.suffix[1:].lower())

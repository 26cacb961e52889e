"""Costs of adapters in a base before training: parameters, compute, training memory and latency."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from adapter_export.bundle.latency import Latency, Setup
from adapter_export.dtypes import Weights
from adapter_export.graph.adapter import Adapter
from adapter_export.graph.graph import cost, stored
from adapter_export.graph.kinds import Kind
from adapter_export.sites.site import SiteMap
from adapter_export.tables import Described, Table, html_of, number_of, size
from adapter_export.training.specs import MOST_PER_ROW

USUAL = 64
"""The default recommendation for the bottleneck: with this fixed width, Houlsby et al. (2019, §3.2) lose 0.4 points on
GLUE against a width chosen for each task."""

_NARROW = 4
"""The least ratio of width to bottleneck: Houlsby et al. (2019) use bottlenecks of 2 to 256 in 1,024 features."""

_MOST_WORK = 0.1
"""The share of the base's multiply-accumulates that an adapter may add without noticeable latency."""


@dataclass(frozen=True)
class Choice:
    """A kind of adapter with a bottleneck width, and its costs.

    Attributes:
        kind: name of the kind.
        bottleneck: width or LoRA rank; `None` for a kind without one.
        sites: number of sites.
        projections: multiply-accumulates of the projections at the most expensive site.
        parameters: stored numbers.
        bytes: size of the parameters in float32.
        multiply_accumulates: per token, of its matrix products.
        parameter_share: parameters divided by the base's.
        work_share: multiply-accumulates divided by those of the linear layers in the base's sublayers; null if the
            base hides them in other operators.
        training_memory: bytes of a training step: the base, four copies of the trained parameters, and the
            activations kept for the backward pass; null for a base that torch cannot train.
        latency: null if not measured.
    """

    kind: str
    bottleneck: int | None
    sites: int
    projections: int
    parameters: int
    bytes: int
    multiply_accumulates: int
    parameter_share: float
    work_share: float | None
    training_memory: int | None = None
    latency: Latency | None = None

    def __str__(self) -> str:
        return self.kind if self.bottleneck is None else f"{self.kind} {self.bottleneck}"


@dataclass(frozen=True, repr=False)
class Plan(Described):
    """The costs of each choice in a base, and the recommended choice; `print` and notebooks show it.

    Attributes:
        width: width of the residual stream.
        parameters: parameters of the base.
        multiply_accumulates: per token, of the linear layers in its sublayers.
        setup: the batch that memory and latency are for.
        choices: the choices in the order of the call.
        recommended: the recommended choice.
        reasons: the reasons, in sentences.
    """

    width: int
    parameters: int
    multiply_accumulates: int
    setup: Setup
    choices: tuple[Choice, ...]
    recommended: Choice
    reasons: tuple[str, ...]

    def described(self) -> Mapping[str, object]:
        """Return the facts of `repr` and notebooks."""
        return {"choices": len(self.choices), "recommended": str(self.recommended), "width": self.width}

    def table(self) -> Table:
        """Return a row for each choice; `projections` are those at one site, `latency` is over that of the base."""
        columns = ["kind", "width", "sites", "projections", "parameters", "of base", "file", "MACs/token", "of base"]
        trains = any(choice.training_memory is not None for choice in self.choices)
        measured = any(choice.latency is not None for choice in self.choices)
        columns += ["training"] if trains else []
        columns += ["latency"] if measured else []
        rows = []
        for choice in self.choices:
            row = [choice.kind, "–" if choice.bottleneck is None else f"{choice.bottleneck}", f"{choice.sites}"]
            row += [
                f"{choice.projections:,}",
                f"{choice.parameters:,}",
                f"{choice.parameter_share:.2%}",
                size(choice.bytes),
            ]
            row += [
                f"{choice.multiply_accumulates:,}",
                "–" if choice.work_share is None else f"{choice.work_share:.1%}",
            ]
            row += ["–" if choice.training_memory is None else size(choice.training_memory)] if trains else []
            row += [str(choice.latency or "–")] if measured else []
            rows.append(row)
        spare = ("projections", "sites", "of base", "MACs/token", "file")
        return Table(columns, rows, numbers="l" + "r" * (len(columns) - 1), spare=spare)

    def to_json(self) -> dict[str, Any]:
        """Return all of it as JSON data."""
        return asdict(self)

    def __str__(self) -> str:
        return "\n".join([str(self.table()), "", f"recommended: {self.recommended}", *self.reasons])

    def _repr_html_(self) -> str:
        return html_of(self.table(), f"recommended: {self.recommended}", *self.reasons)


def choices(
    kinds: Sequence[Kind], bottlenecks: Sequence[int], sites: SiteMap, parameters: int
) -> Iterator[tuple[Choice, Adapter]]:
    """Yield each kind with each bottleneck, and an adapter of that shape with placeholder numbers.

    A kind without a bottleneck is one choice. `parameters` is the base's number of parameters.

    Raises:
        AdapterError: the base has none of the sites of a kind.
        UsageError: a width that a kind cannot have in this base.
    """
    work = base_work(sites)
    for kind in kinds:
        for bottleneck in bottlenecks if kind.width else (None,):
            chosen = kind.with_widths(**({} if kind.width is None or bottleneck is None else {kind.width: bottleneck}))
            adapter = shaped(chosen, sites)
            each = [cost(graph, widths).multiply_accumulates for _, graph, widths in adapter.components()]
            total = stored(adapter.tensor_shapes().values(), sum(each))
            yield (
                Choice(
                    kind.name,
                    bottleneck,
                    len(each),
                    max(each),
                    total.parameters,
                    total.bytes,
                    total.multiply_accumulates,
                    total.parameters / parameters,
                    total.multiply_accumulates / work if work else None,
                ),
                adapter,
            )


def base_work(sites: SiteMap) -> int:
    """Return the multiply-accumulates per token of the linear layers in sublayers; 0 if none is a site."""
    return sum(site.width_in * site.width for site in sites.of_roles(("linear",)) if not site.is_outside)


def shaped(kind: Kind, sites: SiteMap) -> Adapter:
    """Return an adapter of a kind at its sites in a base, with every number 0.01.

    Raises:
        AdapterError: the base has none of the sites, or a width does not fit.
    """
    weights: Weights = {}
    placed = kind.placed(sites)
    for site, component in placed:
        owned = component.tensor_names(site.name)
        shapes = component.graph.parameter_shapes(component.widths_at(site))
        weights |= {owned[name]: np.full(shape, 0.01, np.float32) for name, shape in shapes.items()}
    graphs = {component.graph_name: component.graph for _, component in placed}
    return Adapter("plan", kind.name, "", graphs, kind.placements(sites), weights)


def recommend(candidates: Sequence[Choice], width: int, rows: int | None = None) -> tuple[Choice, tuple[str, ...]]:
    """Return the recommended choice, and the reasons for it in sentences.

    It has the kind with the fewest parameters, and the bottleneck closest to 64 among those that are at most a quarter
    of the width, add at most a tenth of the base's multiply-accumulates and, with a number of training rows, have at
    most `MOST_PER_ROW` parameters per row; the smallest one if all exceed that.
    """
    kinds: dict[str, list[Choice]] = {}
    for choice in candidates:
        kinds.setdefault(choice.kind, []).append(choice)
    cheapest = min(kinds.values(), key=lambda group: min(choice.parameters for choice in group))
    narrow = [choice for choice in cheapest if choice.bottleneck is None or choice.bottleneck * _NARROW <= width]
    light = [choice for choice in narrow if (choice.work_share or 0) <= _MOST_WORK]
    fitting = [choice for choice in light if rows is None or choice.parameters <= MOST_PER_ROW * rows]
    chosen = min(
        fitting or cheapest,
        key=lambda choice: (
            (abs((choice.bottleneck or USUAL) - USUAL), choice.parameters) if fitting else (0, choice.parameters)
        ),
    )
    reasons = []
    if len(kinds) > 1:
        dearest = max(
            (choice for choice in candidates if choice.bottleneck in (chosen.bottleneck, None)),
            key=lambda choice: choice.parameters,
        )
        if dearest.parameters > chosen.parameters:
            times = dearest.parameters / chosen.parameters
            reasons.append(
                f"`{chosen.kind}` has the fewest parameters; `{dearest}` has {times:.1f} times as many. In "
                "the experiments of Pfeiffer et al. (2021), one adapter per layer, after the FFN, matches two; try "
                "both where accuracy matters more than cost."
            )
    if chosen.bottleneck == USUAL and fitting:
        reasons.append(
            f"{USUAL} is the usual bottleneck: at most a quarter of the width {width}, it adds "
            f"{_percent(chosen.work_share)} of the base's compute. With this fixed width, Houlsby et al. (2019, §3.2) "
            "lose 0.4 points on GLUE against a width chosen for each task."
        )
    elif chosen.bottleneck is not None:
        wide = [choice for choice in cheapest if choice.bottleneck is not None and choice not in narrow]
        dear = [choice for choice in narrow if choice not in light]
        many = [choice for choice in light if choice not in fitting]
        if wide:
            reasons.append(f"{_listed(wide)}: more than a quarter of the width {width}.")
        if dear:
            reasons.append(f"{_listed(dear)}: more than {_MOST_WORK:.0%} of the base's compute.")
        if many:
            reasons.append(
                f"{_listed(many)}: more than {MOST_PER_ROW:,} parameters per row for {number_of(rows or 0, 'row')}."
            )
        if not fitting:
            limit = "base and these rows" if many else "base"
            reasons.append(
                f"All of these bottlenecks are too large for the {limit}; {chosen.bottleneck} is the smallest."
            )
        elif not any(choice.bottleneck == USUAL for choice in cheapest):
            reasons.append(f"{chosen.bottleneck} is the closest to {USUAL}, the usual bottleneck.")
    return chosen, tuple(reasons)


def _listed(group: Sequence[Choice]) -> str:
    return ", ".join(str(choice.bottleneck) for choice in group)


def _percent(share: float | None) -> str:
    return "an unknown share" if share is None else f"{share:.1%}"

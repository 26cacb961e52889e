"""Rules that find classic mistakes in an adapter, each with a measure, a threshold, a reason and a remedy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Literal

import numpy as np

from adapter_export.bundle.golden.ablation import site_change
from adapter_export.dtypes import Array
from adapter_export.errors import MistakeError
from adapter_export.graph.adapter import Adapter
from adapter_export.graph.graph import AdapterGraph, Node, bind_base_norm, cost, producer
from adapter_export.graph.ops import OPS
from adapter_export.numerics.evaluate_adapter import borrowed, sample_ids, values_of
from adapter_export.sites.site import Norm
from adapter_export.tables import Described, Table, number_of
from adapter_export.training.specs import MOST_PER_ROW

Needs = Literal["weights", "trained", "rows", "base", "values", "start"]
"""Input of a rule: only the adapter, a trained adapter, the number of training rows, the base's fingerprint, the values
at its sites while the base reads texts, or the initial change of the base's final hidden state."""

_MISSING: Mapping[Needs, str] = {
    "trained": "it is not trained yet, and many kinds start as the identity",
    "rows": "the number of training rows is unknown: the adapter has no record of it, and no data are given",
    "base": "no base is given",
    "values": "no base that torch can run is given",
    "start": "its training record has no initial change of the base; `fresh` measures one that is not trained yet",
}


@dataclass(frozen=True)
class Finding:
    """One mistake.

    Attributes:
        rule: the name of the rule.
        where: the site or group of sites; null for the whole adapter.
        measure: the measured value, with its unit.
        threshold: the accepted values.
        reason: reason why this is a mistake.
        remedy: an imperative clause.
    """

    rule: str
    where: str | None
    measure: str
    threshold: str
    reason: str
    remedy: str


@dataclass(frozen=True)
class SiteValues:
    """Values at a site while the base read texts, in float64.

    Attributes:
        read: inputs of the adapter's graph by name, [rows, tokens, width].
        before: the replaced value.
        after: the replacement.
    """

    read: Mapping[str, Array]
    before: Array
    after: Array


@dataclass(frozen=True)
class Subject:
    """An adapter with the facts that rules need.

    Attributes:
        adapter: the checked adapter.
        rows: number of training rows.
        validated: its training record has scores on validation rows, which tell more than the number of parameters.
        base: fingerprint of the base to use it with.
        norms: norms of that base, by site.
        values: values at each site, with the adapter.
        trained: true for a trained adapter.
        start: initial change of the final hidden state, ‖adapted − base‖ / ‖base‖.
    """

    adapter: Adapter
    rows: int | None = None
    validated: bool = False
    base: str | None = None
    norms: Mapping[str, Norm] | None = None
    values: Mapping[str, SiteValues] | None = None
    start: float | None = None
    trained: bool = True


@dataclass(frozen=True)
class Rule:
    """A rule that finds one kind of mistake.

    Attributes:
        name: its name in reports.
        needs: its input.
        reason: reason why this is a mistake.
        remedy: an imperative clause.
        find: yields the site, the measure and the threshold.
    """

    name: str
    needs: Needs
    reason: str
    remedy: str
    find: Callable[[Subject], Iterator[tuple[str | None, str, str]]]


@dataclass(frozen=True, repr=False)
class Lint(Described):
    """The result of a lint; `print` and notebooks show it.

    Attributes:
        adapter: its name.
        findings: the mistakes.
        looked_for: the applied rules.
        skipped: skipped rules with the reason.
    """

    adapter: str
    findings: tuple[Finding, ...]
    looked_for: tuple[str, ...]
    skipped: Mapping[str, str]

    def described(self) -> Mapping[str, object]:
        """Return the facts of `repr` and notebooks."""
        rules = [finding.rule for finding in self.findings]
        return {"adapter": self.adapter, "passed": self.passed, "findings": rules, "skipped": len(self.skipped)}

    @property
    def passed(self) -> bool:
        """True if no rule found a mistake."""
        return not self.findings

    def raise_for_failure(self) -> None:
        """Raise `MistakeError` if there is a mistake."""
        if self.findings:
            first = self.findings[0]
            raise MistakeError(
                f"adapter `{self.adapter}` has {len(self.findings)} of the classic mistakes",
                where=first.where,
                found=f"{first.rule}: {first.measure}",
                expected=first.threshold,
                fix=first.remedy,
            )

    def table(self) -> Table:
        """Return a row for each mistake."""
        columns = ("mistake", "where", "found", "in order", "why", "what to do")
        rows = [tuple(value or "" for value in asdict(finding).values()) for finding in self.findings]
        return Table(columns, rows, spare=("why", "in order"))

    def to_json(self) -> dict[str, Any]:
        """Return all of it as JSON data."""
        return {**asdict(self), "passed": self.passed}

    def __str__(self) -> str:
        return str(self.table()) if self.findings else f"adapter `{self.adapter}`: no mistakes found"

    def _repr_html_(self) -> str:
        return self.table()._repr_html_() if self.findings else f"<p>{self}</p>"


def lint_adapter(subject: Subject) -> Lint:
    """Apply every rule whose input is known."""
    known: Mapping[Needs, bool] = {
        "weights": True,
        "trained": subject.trained,
        "rows": subject.rows is not None,
        "base": subject.base is not None,
        "values": subject.values is not None,
        "start": subject.start is not None,
    }
    applied = [rule for rule in RULES if known[rule.needs]]
    findings = tuple(
        Finding(rule.name, where, measure, threshold, rule.reason, rule.remedy)
        for rule in applied
        for where, measure, threshold in rule.find(subject)
    )
    skipped = {rule.name: _MISSING[rule.needs] for rule in RULES if not known[rule.needs]}
    return Lint(subject.adapter.name, findings, tuple(rule.name for rule in applied), skipped)


_WIDE, _NARROW = 2, 256
_LEAST_RANK = 0.1
_OUTLIER, _OUTLYING_RATIO, _FEWEST_SITES = 6.0, 4.0, 4
_MOST_AT_START = 0.1
_MOST_DEAD = 0.5
_LITTLE, _MUCH = 0.05, 0.4
_ROUNDING = 1e-5


def _widths(subject: Subject) -> Iterator[tuple[str, int, int]]:
    """Yield each different bottleneck: the first of its sites, its width, the site's."""
    seen = set()
    for site, placement in subject.adapter.placements.items():
        b, d = placement.widths.get("b"), placement.widths.get("d")
        if b is not None and d is not None and (b, d) not in seen:
            seen.add((b, d))
            yield site, b, d


def _too_wide(subject: Subject) -> Iterator[tuple[str | None, str, str]]:
    for site, b, d in _widths(subject):
        if b * _WIDE > d:
            yield site, f"bottleneck {b} of width {d}", f"at most {d // _WIDE}"


def _too_narrow(subject: Subject) -> Iterator[tuple[str | None, str, str]]:
    for site, b, d in _widths(subject):
        if b * _NARROW < d:
            yield site, f"bottleneck {b} of width {d}", f"at least {math.ceil(d / _NARROW)}"


def _too_many(subject: Subject) -> Iterator[tuple[str | None, str, str]]:
    count = sum(math.prod(shape) for name, shape in subject.adapter.tensor_shapes().items() if "." in name)
    rows = subject.rows or 0
    if not subject.validated and count > MOST_PER_ROW * rows:
        yield (
            None,
            f"{number_of(count, 'parameter')}, {number_of(rows, 'row')}",
            f"at most {MOST_PER_ROW:,} parameters for a row",
        )


def _graphs(adapter: Adapter) -> Iterator[tuple[str, AdapterGraph]]:
    yield from ((site, adapter.graphs[placement.graph]) for site, placement in adapter.placements.items())


def _no_residual(subject: Subject) -> Iterator[tuple[str | None, str, str]]:
    """Find graphs that do not return the replaced value when their projections are zero."""
    adapter, seen, rng = subject.adapter, set(), np.random.default_rng(0)
    for site, graph in _graphs(adapter):
        name = adapter.placements[site].graph
        projections = [node for node in graph.nodes if OPS[node.op].projects]
        if name in seen or not projections or any(node.op == "softmax_mix" for node in graph.nodes):
            continue
        seen.add(name)
        zeroed = {parameter for node in projections for parameter in node.parameters.values()}
        weights = {key: array * (key not in zeroed) for key, array in adapter.parameters(site).items()}
        widths = adapter.placements[site].widths
        bound = bind_base_norm(graph, None)
        read = {
            value: rng.standard_normal((1, 4, widths.get("d_in" if value == "u" else "d", 1)))
            for value in dict.fromkeys((*bound.inputs, graph.replaces))
        }
        if graph.reads_ids:
            read["u"] = sample_ids(graph, adapter.parameters(site), (1, 4), rng)
        if graph.replaces == "y" and {"h", "x"} <= read.keys():
            read["y"] = read["h"] + read["x"]  # as no norm is bound
        result = values_of(bound, read, weights | borrowed(bound, weights, widths.get("d", 1)))[bound.result]
        left = float(np.linalg.norm(result - read[graph.replaces]) / np.linalg.norm(read[graph.replaces]))
        if left > _ROUNDING:
            yield site, f"without its projections it changes `{graph.replaces}` by {left:.0%}", "by nothing"


def _no_effect(subject: Subject) -> Iterator[tuple[str | None, str, str]]:
    norms, adapter = subject.norms or {}, subject.adapter
    for site, graph in _graphs(adapter):
        if site not in norms and any(node.op == "base_norm" for node in graph.nodes):
            continue  # without a base its norm is not known
        change, beyond = site_change(adapter, site, norms.get(site))
        if not beyond:
            yield site, f"changes `{graph.replaces}` by {change:.1e}", "more than rounding does"


def _products(adapter: Adapter) -> Iterator[tuple[str, Array, int]]:
    """Yield for each bottleneck the singular values of down times up, and its width.

    With QR factorisations of both, they are the singular values of `R_down · R_upᵀ` [b, b].
    """
    for site, graph in _graphs(adapter):
        weights = adapter.parameters(site)
        for up in graph.nodes:
            down = _down_of(graph, up)
            if down is None:
                continue
            first, second = (weights[node.parameters["weight"]].astype(np.float64) for node in (down, up))
            left, right = (np.asarray(np.linalg.qr(matrix, mode="r")) for matrix in (first, second.T))
            yield site, np.linalg.svd(left @ right.T, compute_uv=False), first.shape[1]


def _down_of(graph: AdapterGraph, up: Node) -> Node | None:
    """Return the projection whose activated output `up` reads."""
    if up.op != "linear":
        return None
    node = producer(graph, up.inputs[0])
    while node is not None and node.op != "linear" and len(node.inputs) == 1:
        node = producer(graph, node.inputs[0])
    return node if node is not None and node.op == "linear" else None


def _low_rank(subject: Subject) -> Iterator[tuple[str | None, str, str]]:
    """Find low effective ranks: exp of the entropy of the normalised singular values (Roy & Vetterli 2007, §2)."""
    for site, values, width in _products(subject.adapter):
        total = values.sum()
        if not total or width < 4:
            continue
        shares = values[values > 0] / total
        rank = float(np.exp(-(shares * np.log(shares)).sum()))
        if rank < _LEAST_RANK * width:
            yield site, f"effective rank {rank:.1f} of {width}", f"at least {_LEAST_RANK * width:.1f}"


def _outliers(subject: Subject) -> Iterator[tuple[str | None, str, str]]:
    """Yield the distance from the median of the logarithms in median absolute deviations, for sites of one role."""
    groups: dict[tuple[str, int], dict[str, float]] = {}
    for site, values, width in _products(subject.adapter):
        role = site.rpartition(".")[2]
        groups.setdefault((role, width), {})[site] = float(np.linalg.norm(values))
    for norms in groups.values():
        known = {site: math.log(norm) for site, norm in norms.items() if norm > 0}
        if len(known) < _FEWEST_SITES:
            continue
        middle = median(known.values())
        spread = median(abs(value - middle) for value in known.values())
        for site, value in known.items():
            apart = abs(value - middle)
            if apart > max(_OUTLIER * spread, math.log(_OUTLYING_RATIO)):
                others = f"‖down·up‖ {norms[site]:.2g}, the median of its like {math.exp(middle):.2g}"
                yield site, others, f"within a factor of {_OUTLYING_RATIO:g}, or {_OUTLIER:g} deviations"


def _other_base(subject: Subject) -> Iterator[tuple[str | None, str, str]]:
    if subject.base != subject.adapter.base:
        trained_on = subject.adapter.base
        yield None, f"trained on {trained_on[:19]}…", f"{str(subject.base)[:19]}…, the base that is given"


def _disturbs(subject: Subject) -> Iterator[tuple[str | None, str, str]]:
    if subject.start is not None and subject.start > _MOST_AT_START:
        moved = f"moves the final hidden state by {subject.start:.0%} before it has learnt anything"
        yield None, moved, f"at most {_MOST_AT_START:.0%}"


def _dead_units(subject: Subject) -> Iterator[tuple[str | None, str, str]]:
    adapter, norms = subject.adapter, subject.norms or {}
    for site, seen in (subject.values or {}).items():
        graph = bind_base_norm(adapter.graphs[adapter.placements[site].graph], norms.get(site))
        rectified = [node for node in graph.nodes if OPS[node.op].half_rectified]
        if not rectified or any(node.op == "base_norm" for node in graph.nodes):
            continue
        width = adapter.placements[site].widths.get("d", 1)
        weights = adapter.parameters(site)
        values = values_of(
            graph, {name: seen.read[name] for name in graph.inputs}, weights | borrowed(graph, weights, width)
        )
        for node in rectified:
            units = values[node.output].reshape(-1, values[node.output].shape[-1])
            dead = int((units.max(0) <= 0).sum())
            if dead > _MOST_DEAD * units.shape[1]:
                detail = f"{dead} of {units.shape[1]} units are zero for all of {number_of(len(units), 'token')}"
                yield site, detail, f"at most {_MOST_DEAD:.0%} of them"


def _lopsided(subject: Subject) -> Iterator[tuple[str | None, str, str]]:
    """Find roles whose sites change the residual stream little for their share of parameters."""
    adapter = subject.adapter
    moved: dict[str, float] = {}
    spent: dict[str, int] = {}
    for site, seen in (subject.values or {}).items():
        role, placement = site.rpartition(".")[2], adapter.placements[site]
        change = np.linalg.norm(seen.after - seen.before) / (np.linalg.norm(seen.before) or 1)
        moved[role] = moved.get(role, 0.0) + float(change) ** 2
        spent[role] = spent.get(role, 0) + cost(adapter.graphs[placement.graph], placement.widths).parameters
    changed = sum(moved.values())
    for role in moved if len(moved) > 1 and changed > 0 else ():
        effect, price = moved[role] / changed, spent[role] / sum(spent.values())
        if effect < _LITTLE and price > _MUCH:
            detail = f"{price:.0%} of the parameters, {effect:.1%} of the adapter's change"
            yield f"all sites of {role}", detail, f"at least {_LITTLE:.0%} of it for more than {_MUCH:.0%} of them"


RULES: Sequence[Rule] = (
    Rule(
        "wide-bottleneck",
        "weights",
        "two projections of more than half the width cost as much as a full layer",
        "train with a smaller bottleneck; `plan` shows the costs",
        _too_wide,
    ),
    Rule(
        "narrow-bottleneck",
        "weights",
        "a few units can hardly represent a task (Houlsby et al. 2019, §3.6, lose points below 8 of 1,024)",
        "train with a larger bottleneck",
        _too_narrow,
    ),
    Rule(
        "many-parameters",
        "rows",
        "the adapter has enough parameters to memorise its training rows",
        "train with a smaller bottleneck, at fewer sites (kind `pfeiffer`, layers left out), or on more rows",
        _too_many,
    ),
    Rule(
        "no-residual",
        "weights",
        "without a residual path a fresh adapter destroys the features of the base (Houlsby et al. 2019, §2.1)",
        "add the value that the graph replaces to its result",
        _no_residual,
    ),
    Rule(
        "no-effect",
        "trained",
        "the adapter returns the value that it replaces: it was not trained, or its scale is zero",
        "train it, or remove it from this site",
        _no_effect,
    ),
    Rule(
        "low-rank",
        "weights",
        "a narrower bottleneck would compute nearly the same",
        "train with a bottleneck of a few times that rank",
        _low_rank,
    ),
    Rule(
        "outlying-norm",
        "weights",
        "a layer that differs this much from similar layers was often not trained, or diverged",
        "check the training of this layer; lower the learning rate, or clip gradients",
        _outliers,
    ),
    Rule(
        "other-base",
        "base",
        "the adapter was trained on other weights: another model, or a base that was trained as well",
        "train it on this base with all of its weights frozen, or pass the base that it was trained on",
        _other_base,
    ),
    Rule(
        "disturbing-start",
        "start",
        "training starts far from the base, and has to return to it first",
        "start near the identity: initialise with `small_normal` or `zero_up`",
        _disturbs,
    ),
    Rule(
        "dead-units",
        "values",
        "units that are always zero get no gradient, and stay zero",
        "train with a lower learning rate or another activation, such as `gelu`",
        _dead_units,
    ),
    Rule(
        "costly-placement",
        "values",
        "these sites cost much and change little",
        "remove them: use the kind `pfeiffer`, or only the other sites",
        _lopsided,
    ),
)
"""All rules."""

"""Context of claims: the plan, the model, and the measurements of earlier claims."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

from adapter_export.bundle.bundle_reader import OpenedBundle
from adapter_export.bundle.golden.golden_vectors import Case, Golden, GoldenMaker, Tolerance, scale, to_disturb
from adapter_export.bundle.golden.recorded_runs import RunDigests
from adapter_export.bundle.proof.check_parts import PartValue
from adapter_export.bundle.proof.compare_arrays import Original
from adapter_export.bundle.proof.proof_plan import Plan, Reference
from adapter_export.format.check_report import AgreementsRecord, LocationRecord, Measurement
from adapter_export.format.manifest import Manifest
from adapter_export.graph.adapter import Adapter
from adapter_export.numerics.runner import DRAWS
from adapter_export.reporting import SILENT, Reporter

Need = Literal["model", "source", "base", "whole", "words", "written", "slots", "fanout"]
"""Requirements of claims.

`model`: a reference model. `source`: a reference that can be exported again. `base`, `slots`, `fanout`: the base or
this variant is checked. `whole`: more than golden vectors at one level. `words`: the vocabulary sweep. `written`: a
finished bundle, not one being built.
"""


@dataclass
class Context:
    """The bundle under check, its reference model, and the measurements so far.

    Attributes:
        plan: the check, limited to cases that the model accepts.
        live_cases: all cases, for the model before its capture.
        reference: the model; `None` if golden vectors are the only reference.
        original: the base before its precision changed; `None` if it did not.
        user_adapters: the user's adapters, by name.
        computed: the model's earlier outputs for the same cases; empty if it has not run yet.
        digests: collects the outputs of golden cases.
        progress: receives one step per unit of a claim's cost.
        outputs, sites, parts, locations, agreements: measurements so far.
    """

    plan: Plan
    live_cases: Sequence[Case]
    reference: Reference | None
    original: Original | None
    user_adapters: Mapping[str, Adapter]
    computed: Sequence[Golden]
    digests: RunDigests
    progress: Reporter = SILENT
    outputs: list[Measurement] = field(default_factory=list)
    sites: list[Measurement] = field(default_factory=list)
    parts: list[PartValue] = field(default_factory=list)
    locations: list[LocationRecord] = field(default_factory=list)
    agreements: AgreementsRecord | None = None

    @property
    def bundle(self) -> OpenedBundle:
        """Bundle under check."""
        return self.plan.bundle

    @property
    def manifest(self) -> Manifest:
        """Manifest of the bundle."""
        return self.plan.bundle.manifest

    @property
    def model(self) -> Reference:
        """Reference, for claims that need `model`."""
        assert self.reference is not None
        return self.reference

    @cached_property
    def has(self) -> frozenset[Need]:
        """Requirements of claims that are met."""
        plan, model = self.plan, self.reference
        available: dict[Need, bool] = {
            "model": model is not None,
            "source": model is not None and model.source is not None,
            "base": None in plan.names,
            "whole": not plan.quick,
            "words": not (plan.quick or plan.brief or plan.narrow),
            "written": not plan.bundle.staged,
            "slots": "slots" in plan.variants,
            "fanout": "fanout" in plan.variants,
        }
        return frozenset(need for need, here in available.items() if here)

    @property
    def by_pieces(self) -> bool:
        """True if a graph is too large to run as a whole during the build."""
        return any(graph.pieces for graph in self.plan.graphs)

    @cached_property
    def expected(self) -> list[Golden]:
        """Golden vectors, and the model's outputs for the other cases."""
        return [*self.plan.golden, *(self.computed or self._of_model())]

    @property
    def planned(self) -> list[Golden]:
        """`expected` as far as it is known before the model runs: the cases, without the model's outputs."""
        of_model = [replace(golden, cases=self.plan.cases, against="reference") for golden in self.plan.golden]
        return [*self.plan.golden, *(of_model if self.reference is not None else ())]

    @cached_property
    def tolerance(self) -> Tolerance:
        """Budgets for comparing two outputs."""
        of_model = [golden for golden in self.expected if golden.against == "reference"]
        return Tolerance.of(self.bundle.allowance(self.plan.cases or (self.plan.probe,)), self.manifest, of_model)

    @property
    def maker(self) -> GoldenMaker:
        """Computes expected outputs with the model."""
        bundle, cases = self.bundle, self.plan.cases
        allowance = bundle.allowance(cases or (self.plan.probe,))
        manifest = bundle.manifest
        return GoldenMaker(
            self.model.runner,
            cases,
            bundle.base_outputs,
            allowance,
            manifest.base,
            bundle.checksums,
            manifest.sketches,
        )

    def _of_model(self) -> list[Golden]:
        """Run the model on every case for the base and each adapter; return an empty list without a model."""
        if self.reference is None:
            return []
        maker, twin = self.maker, self._twin
        golden: dict[str | None, Golden] = {}
        for name in self.plan.names:
            if name is not None or twin is None:
                adapter, output = self.bundle.with_output(name)
                golden[name] = maker.compute(adapter, output, name=name, reporter=self.progress)
        if twin is not None:
            golden[None] = maker.of_base(golden[twin])
        return [golden[name] for name in self.plan.names]

    @property
    def model_runs(self) -> int:
        """Number of model runs that `expected` takes."""
        if self.reference is None or self.computed:
            return 0
        cases = self.plan.cases
        moved = self.bundle.allowance(cases or (self.plan.probe,)).error(self.reference.runner) is not None
        runs = len(cases) + (len(to_disturb(cases)) * DRAWS if moved else 0)
        return runs * (len(self.plan.names) - (self._twin is not None))

    @property
    def _twin(self) -> str | None:
        """An adapter that acts at no site, such as the base head: its run also returns the outputs of the base."""
        sources = {name: self.bundle.source(name) for name in self.plan.adapters}
        alone = (name for name, source in sources.items() if not source.placements and source.prefix is None)
        return next(alone, None) if None in self.plan.names else None

    def budgets_for(self, golden: Golden) -> Mapping[str, float]:
        """Return the budget that the model needs for the inputs of golden vectors, by output."""
        source, output = self.bundle.with_output(golden.adapter)
        maker = replace(self.maker, cases=golden.cases, allowance=self.bundle.allowance(golden.cases))
        computed = maker.compute(source, output, name=golden.adapter)
        return {each: budget.absolute for each, budget in computed.budgets.items()}

    @property
    def needed_budgets(self) -> Mapping[tuple[str | None, str], float]:
        """Budget that the model was measured to need, as a fraction of the scale, by adapter and output."""
        return {
            (golden.adapter, name): allowed.absolute / largest
            for golden in self.expected
            for name, allowed in golden.budgets.items()
            if golden.against == "reference"
            and (largest := max((scale(outputs[name]) for outputs in golden.outputs if name in outputs), default=0.0))
        }

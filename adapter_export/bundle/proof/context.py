"""The context of claims: the plan, the model, and the measurements of earlier claims."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

from adapter_export.bundle.bundle_reader import OpenedBundle
from adapter_export.bundle.golden import Case, Golden, GoldenMaker, Tolerance, scale, to_disturb
from adapter_export.bundle.proof.check_parts import PartValue
from adapter_export.bundle.proof.compare_arrays import Original
from adapter_export.bundle.proof.proof_plan import Plan, Reference
from adapter_export.bundle.recorded_runs import RunDigests
from adapter_export.format.check_report import AgreementsRecord, LocationRecord, Measurement
from adapter_export.format.manifest import Manifest
from adapter_export.graph.adapter import Adapter
from adapter_export.numerics.runner import DRAWS
from adapter_export.reporting import SILENT, Reporter

Need = Literal["model", "source", "base", "whole", "words", "written", "slots", "fanout"]
"""Needs of claims: a `model` to compare with, or its `source` tensors; the `base` or a variant among what is
checked; the `whole` check, not golden vectors at one level alone, or one that tries all `words`; a bundle that is
`written`, not one that is being built."""


@dataclass
class Context:
    """The bundle that is checked, the model it is compared with, and the measurements so far.

    Attributes:
        plan: what is checked, on cases that the model takes.
        live_cases: all cases, for the model as it was before its capture.
        reference: the model; `None` if golden vectors are the only reference.
        original: the base before its precision was changed; `None` if it was not.
        given: the adapters as the user has them, by name.
        computed: what the model gave earlier for the same cases; empty if it has yet to run.
        digests: collects what golden cases give.
        progress: receives a step for each unit of a claim's cost.
        outputs, sites, parts, locations, agreements: what was measured so far.
    """

    plan: Plan
    live_cases: Sequence[Case]
    reference: Reference | None
    original: Original | None
    given: Mapping[str, Adapter]
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
        """The bundle that is checked."""
        return self.plan.bundle

    @property
    def manifest(self) -> Manifest:
        """The manifest of the bundle."""
        return self.plan.bundle.manifest

    @property
    def model(self) -> Reference:
        """The reference, for claims that need `model`."""
        assert self.reference is not None
        return self.reference

    @cached_property
    def has(self) -> frozenset[Need]:
        """The needs of claims that are met."""
        plan, model = self.plan, self.reference
        there: dict[Need, bool] = {
            "model": model is not None,
            "source": model is not None and model.source is not None,
            "base": None in plan.names,
            "whole": not plan.quick,
            "words": not (plan.quick or plan.brief or plan.narrow),
            "written": not plan.bundle.staged,
            "slots": "slots" in plan.variants,
            "fanout": "fanout" in plan.variants,
        }
        return frozenset(need for need, here in there.items() if here)

    @property
    def by_pieces(self) -> bool:
        """True if a graph is too large to run as a whole while it is built."""
        return any(graph.pieces for graph in self.plan.graphs)

    @cached_property
    def expected(self) -> list[Golden]:
        """Golden vectors, and what the model gives for the other cases."""
        return [*self.plan.golden, *(self.computed or self._of_model())]

    @property
    def planned(self) -> list[Golden]:
        """`expected` as far as it is known before the model has run: without the outputs of the model."""
        of_model = [replace(golden, cases=self.plan.cases, against="reference") for golden in self.plan.golden]
        return [*self.plan.golden, *(of_model if self.reference is not None else ())]

    @cached_property
    def tolerance(self) -> Tolerance:
        """The budgets of outputs that are compared with each other."""
        given = [golden for golden in self.expected if golden.against == "reference"]
        return Tolerance.of(self.bundle.allowance(self.plan.cases or (self.plan.probe,)), self.manifest, given)

    @property
    def maker(self) -> GoldenMaker:
        """Computes expected outputs with the model."""
        bundle, cases = self.bundle, self.plan.cases
        allowance = bundle.allowance(cases or (self.plan.probe,))
        return GoldenMaker(
            self.model.runner, cases, bundle.base_outputs, allowance, bundle.manifest.base, bundle.checksums
        )

    def _of_model(self) -> list[Golden]:
        """Run the model on every case for the base and each adapter; empty without a model."""
        if self.reference is None:
            return []
        maker, twin = self.maker, self._twin
        found: dict[str | None, Golden] = {}
        for name in self.plan.names:
            if name is not None or twin is None:
                adapter, output = self.bundle.with_output(name)
                found[name] = maker.compute(adapter, output, name=name, reporter=self.progress)
        if twin is not None:
            found[None] = maker.of_base(found[twin])
        return [found[name] for name in self.plan.names]

    @property
    def model_runs(self) -> int:
        """The number of runs of the model that `expected` takes."""
        if self.reference is None or self.computed:
            return 0
        cases = self.plan.cases
        moved = self.bundle.allowance(cases or (self.plan.probe,)).error(self.reference.runner) is not None
        runs = len(cases) + (len(to_disturb(cases)) * DRAWS if moved else 0)
        return runs * (len(self.plan.names) - (self._twin is not None))

    @property
    def _twin(self) -> str | None:
        """An adapter that acts at no site, as the base head: its run gives what the base gives, too."""
        alone = (name for name in self.plan.adapters if not self.bundle.source(name).placements)
        return next(alone, None) if None in self.plan.names else None

    def budgets_for(self, golden: Golden) -> Mapping[str, float]:
        """Return the budgets that the model needs for the inputs of golden vectors, by output."""
        source, output = self.bundle.with_output(golden.adapter)
        maker = replace(self.maker, cases=golden.cases, allowance=self.bundle.allowance(golden.cases))
        made = maker.compute(source, output, name=golden.adapter)
        return {each: budget.absolute for each, budget in made.budgets.items()}

    @property
    def needed_budgets(self) -> Mapping[tuple[str | None, str], float]:
        """The budget that the model has been seen to need, as a part of the scale, by adapter and output."""
        return {
            (golden.adapter, name): allowed.absolute / largest
            for golden in self.expected
            for name, allowed in golden.budgets.items()
            if golden.against == "reference"
            and (largest := max((scale(found[name]) for found in golden.outputs if name in found), default=0.0))
        }

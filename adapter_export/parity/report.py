"""What a check found, as data: results in their places, coverage, one verdict."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from adapter_export.errors import NothingComparedError
from adapter_export.parity.compare import Comparison

Against = Literal["reference", "golden"]
Part = Literal["all", "tokens", "padding"]

Form = Literal["slots", "inputs", "bank", "mixture", "baked"]
"""A graph of a bundle: one of its flavours, or one with an adapter baked in."""

FORMS: tuple[Form, ...] = ("slots", "inputs", "bank", "mixture", "baked")
"""All of them, in the order in which they are checked."""


@dataclass(frozen=True)
class OutputResult:
    """One output of one run.

    Attributes:
        against: what it was compared with: a reference that ran now, or the golden vectors of the bundle.
        adapter: the active adapter; none for the base alone.
        case: the name of the inputs.
        axes: the length of each dynamic axis of the inputs.
        level: ONNX Runtime's optimization level.
        output: the name of the output.
        part: `tokens` and `padding` for an output with one row per token and inputs with padding, else `all`.
        comparison: what came out.
        form: the graph that ran.
        mixed: whether the rows of the batch ran through different adapters; compared are those of this one.
    """

    against: Against
    adapter: str | None
    case: str
    axes: Mapping[str, int]
    level: str
    output: str
    part: Part
    comparison: Comparison
    form: Form = "slots"
    mixed: bool = False

    @property
    def place(self) -> str:
        """Where it is, for messages."""
        part = "" if self.part == "all" else f" ({self.part})"
        case = f"{self.case}, mixed" if self.mixed else self.case
        form = self.level if self.form == "slots" else f"`{self.form}`"
        return f"{self.adapter or 'base'}, {case}, {form}, against {self.against}: {self.output}{part}"


@dataclass(frozen=True)
class SiteResult:
    """What an adapter computes at one site, from the values that arrive there.

    The error is the site's own; what sites before it did wrong is in the values that arrive.

    Attributes:
        adapter: the active adapter.
        case: the name of the inputs.
        site: the site, or `head`.
        path: the module path in the torch model, if known.
        comparison: with the NumPy float64 reference on the same site values.
    """

    adapter: str
    case: str
    site: str
    path: str | None
    comparison: Comparison

    @property
    def place(self) -> str:
        """Where it is, for messages."""
        return f"{self.adapter}, {self.case}: site {self.site}"


@dataclass(frozen=True)
class InvariantResult:
    """Something that must hold whatever the reference says.

    Attributes:
        name: which one.
        subject: what it was tried on.
        passed: whether it held.
        detail: what was seen.
    """

    name: str
    subject: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class Agreement:
    """One output, or the logits, over all inputs.

    Attributes:
        adapter: the active adapter; none for the base alone.
        output: the name of the output.
        rows: how many were looked at; tokens, for an output with one row per token.
        agree: in how many of them both sides choose the same class; none for outputs that are not logits.
        absolute: the largest difference of an element, padding left out.
        scale: the largest absolute value of the output in float32.
        cosine: the smallest cosine of a batch's output as a vector; none where one side is zero.
    """

    adapter: str | None
    output: str
    rows: int
    agree: int | None
    absolute: float
    scale: float
    cosine: float | None


@dataclass(frozen=True)
class Agreements:
    """What was found.

    Attributes:
        original: what computed the outputs in float32.
        inputs: what the inputs were: random ids of many shapes, or texts.
        results: every output of the base and of every adapter.
    """

    original: str
    inputs: str
    results: tuple[Agreement, ...]


@dataclass(frozen=True)
class Coverage:
    """How much was looked at.

    Attributes:
        planned: the values that there were to compare.
        compared: those of which at least one element was compared.
        elements: the elements that were compared.
        left_out: the places of the others.
    """

    planned: int
    compared: int
    elements: int
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """A whole check.

    Attributes:
        bundle: its path, as it was given.
        base: the fingerprint of the bundle's base.
        against: the path of the model that the reference comes from; none if only the golden vectors were used.
        reference: what computed its outputs, such as `torch 2.13.0 float32`.
        runtime: what computed the bundle's outputs.
        outputs: every output of every run.
        sites: every adapter at every site.
        invariants: everything else.
        agreements: how the bundle differs from the base in float32, where that was asked for; no part of the verdict.
    """

    bundle: str
    base: str
    against: str | None
    reference: str | None
    runtime: str
    outputs: tuple[OutputResult, ...]
    sites: tuple[SiteResult, ...]
    invariants: tuple[InvariantResult, ...]
    agreements: Agreements | None = None

    @property
    def passed(self) -> bool:
        """Whether everything that was looked at is as it should be."""
        compared = all(result.comparison.passed for result in self.comparisons())
        return compared and all(invariant.passed for invariant in self.invariants)

    def comparisons(self) -> Iterator[OutputResult | SiteResult]:
        """Every comparison, those of outputs first."""
        yield from self.outputs
        yield from self.sites

    def coverage(self) -> Coverage:
        """How much was looked at."""
        results = list(self.comparisons())
        return Coverage(
            planned=len(results),
            compared=sum(result.comparison.compared > 0 for result in results),
            elements=sum(result.comparison.compared for result in results),
            left_out=tuple(result.place for result in results if not result.comparison.compared),
        )

    def require_compared(self) -> None:
        """Refuse a check that proves nothing.

        Raises:
            NothingComparedError: not one element of an output was compared.
        """
        if not any(result.comparison.compared for result in self.outputs):
            raise NothingComparedError(
                "nothing was compared",
                where=self.bundle,
                found=f"{len(self.outputs)} outputs without one comparable element",
                expected="at least one",
                fix="build the bundle again, or give `--against` with the model that it was built from",
            )

"""Claim: one verifiable statement about a bundle, with its requirements and cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from adapter_export.bundle.bundle_reader import Graph
from adapter_export.bundle.proof.context import Context, Need
from adapter_export.format.check_report import Finding
from adapter_export.reporting import SILENT, Percent, Reporter


def _single(*_: object) -> int:
    return 1


@dataclass(frozen=True)
class Claim:
    """One verifiable statement about a bundle.

    Attributes:
        name: label in progress bars.
        run: verifies the claim, and yields one finding per subject.
        needs: requirements; the claim is skipped if one is missing.
        cost: units of progress, roughly the number of runs.
    """

    name: str
    run: Callable[[Context], Iterable[Finding]]
    needs: frozenset[Need] = frozenset()
    cost: Callable[[Context], int] = _single


@dataclass(frozen=True)
class GraphClaim:
    """A claim that is verified for each graph it applies to."""

    name: str
    run: Callable[[Context, Graph], Iterable[Finding]]
    needs: frozenset[Need] = frozenset()
    cost: Callable[[Context, Graph], int] = _single
    applies: Callable[[Graph], bool] = lambda _: True

    def of(self, graph: Graph) -> Claim:
        """Return the claim about one graph."""
        return Claim(
            f"{self.name}, {graph.file}",
            lambda context: self.run(context, graph),
            self.needs,
            lambda context: self.cost(context, graph),
        )


def steps_of(claims: Iterable[Claim], context: Context) -> int:
    """Return the cost of the claims whose needs are met."""
    return sum(claim.cost(context) for claim in claims if claim.needs <= context.has)


def verify(claims: Iterable[Claim], context: Context, reporter: Reporter = SILENT) -> list[Finding]:
    """Verify claims in order and return their findings; claims with unmet needs are skipped.

    Raises:
        InputError: the bundle or the model cannot be run.
    """
    able = [claim for claim in claims if claim.needs <= context.has]
    costs = [claim.cost(context) for claim in able]
    progress, findings = _Progress(reporter, sum(costs)), list[Finding]()
    context.progress = progress
    for claim, cost in zip(able, costs, strict=True):
        progress.begin(cost)
        for finding in claim.run(context):
            findings.append(finding)
            progress.step(f"{finding.check}, {finding.subject}")
        progress.end(claim.name)
    return findings


class _Progress(Reporter):
    """Counts steps up to the cost of each claim, so that the bar ends on time even if a cost is only an estimate.

    Costs are runs and findings are results, so their numbers differ: a reader sees the percentage of the cost.
    """

    def __init__(self, reporter: Reporter, total: int) -> None:
        self._reporter, self._total, self._done, self._end = reporter, Percent(total), 0, 0
        reporter.step("", 0, self._total)

    def begin(self, cost: int) -> None:
        """Begin a claim."""
        self._end = self._done + cost

    def step(self, label: str, done: int = 0, total: int | None = None) -> None:  # noqa: ARG002 counted here
        """Count one step."""
        if self._done < self._end:
            self._done += 1
            self._reporter.step(label, self._done, self._total)

    def end(self, label: str) -> None:
        """Count the rest of the cost of a claim."""
        if self._done < self._end:
            self._done = self._end
            self._reporter.step(label, self._done, self._total)

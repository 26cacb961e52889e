"""Faults of adapters that golden vectors do not show, and those that golden parts do not show either.

    python benchmarks/golden_data.py demo/model.pt adapters/a adapters/b --precisions fp32,int8

A bundle is built in each precision. Each adapter then runs through the graph with slots as a faulty client would run
it: one site or one layer with neutral tensors, one tensor of another adapter, nine tenths of its strength. A fault goes
unnoticed if no output of a golden case exceeds its budget, and no golden part its limit. Faults that the manifest names
as weak are counted apart: it says that golden data hardly show them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

import adapter_export as ae
from adapter_export.bundle.bundle_reader import OpenedBundle
from adapter_export.bundle.golden.separation import Fault, faults_of
from adapter_export.dtypes import Weights
from adapter_export.numerics.runner import Arrays

PRECISIONS = "fp32,fp16,int8,int8-weights,int4-weights"
COLUMNS = (
    "precision",
    "adapter",
    "right",
    "parts off",
    "unnoticed by vectors",
    "with golden parts",
    "of these named",
    "least separation",
    "one tensor of another, unnoticed",
    "strength .9",
    "labels that look alike",
)
STRENGTH, TENSORS = 0.9, 16


def main() -> None:
    """Print a line of a Markdown table for each precision and adapter."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("adapters", nargs="+")
    parser.add_argument("--precisions", default=PRECISIONS)
    parser.add_argument("--adapter-precision", default="float32")
    parser.add_argument("--optimize", action="store_true")
    given = parser.parse_args()
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}", flush=True)
    for precision in given.precisions.split(","):
        with TemporaryDirectory() as folder:
            out, began = Path(folder) / "bundle", time.monotonic()
            settings = {"base_precision": precision, "adapter_precision": given.adapter_precision}
            ae.build(given.model, given.adapters, out, optimize=given.optimize, **settings)
            seconds = time.monotonic() - began
            bundle = OpenedBundle.open(out, copy=False)
            for record in bundle.manifest.adapters:
                if bundle.source(record.name).placements:
                    print(f"| {precision} | {' | '.join(Faulty(bundle, record.name).cells())} |", flush=True)
            print(f"{precision}: built in {seconds:.0f} s", flush=True)


class Faulty:
    """An adapter of a bundle, run as it must not be run."""

    def __init__(self, bundle: OpenedBundle, name: str) -> None:
        self.bundle, self.name = bundle, name
        self.golden, self.parts = bundle.golden(name), bundle.parts(name)

    def cells(self) -> Iterator[str]:
        """Yield what a line says of the adapter."""
        separation = self.bundle.record(self.name).golden.separation
        weak = () if separation is None else separation.weak
        yield self.name
        yield f"{self.by_vectors(self.bundle.tensors(self.name)):.2f}"
        parts = [fault for fault in faults_of(self.bundle, self.name) if fault.name.endswith(" off")]
        unnoticed = [fault for fault in parts if self.by_vectors(fault.tensors) <= 1]
        still = [fault for fault in unnoticed if self.by_parts(fault.tensors) <= 1]
        yield f"{len(parts)}"
        yield f"{len(unnoticed)}"
        yield f"{len(still)}"
        yield f"{sum(fault.name in weak for fault in still)}"
        yield "" if separation is None else f"{separation.least:.3g}"
        others = list(self.other_tensors())
        others = others[:: -(-len(others) // TENSORS) or 1]
        unseen = [
            fault for fault in others if self.by_vectors(fault.tensors) <= 1 and self.by_parts(fault.tensors) <= 1
        ]
        yield f"{len(unseen)} of {len(others)}"
        yield self.shown(*self.at_strength())
        yield self.of_labels()

    def by_vectors(self, tensors: Weights) -> float:
        """Return the largest deviation from golden vectors over the allowed one; of small cases, if these exceed it."""
        worst = 0.0
        for at in sorted(range(len(self.golden.cases)), key=self.size):
            found = self.bundle.run_slots([{**self.golden.cases[at].arrays, **tensors}])
            worst = max(worst, self.worst(found, self.golden.outputs[at : at + 1]))
            if worst > 1:
                break
        return worst

    def size(self, at: int) -> int:
        """Return the number of elements of the outputs in a golden case."""
        return sum(value.size for value in self.golden.outputs[at].values())

    def worst(self, found: Sequence[Arrays], wanted: Sequence[Arrays]) -> float:
        """Return the largest deviation of outputs in golden cases over the allowed one; infinite for NaN."""
        ratios = [
            float(np.abs(outputs[name].astype(np.float64) - expected[name]).max()) / budget.absolute
            for outputs, expected in zip(found, wanted, strict=True)
            for name, budget in self.golden.budgets.items()
        ]
        return max(np.inf if np.isnan(ratio) else ratio for ratio in ratios)

    def by_parts(self, tensors: Weights) -> float:
        """Return the largest value of a golden part over its limit; 0 without golden parts."""
        if self.parts is None:
            return 0.0
        requests = [{**case.arrays, **tensors} for case in self.parts.cases]
        values = self.parts.values(self.bundle.run_slots(requests))
        return max(abs(value) / part.limit for value, part in zip(values, self.parts.parts, strict=True))

    def other_tensors(self) -> Iterator[Fault]:
        """Yield faults with one tensor of another adapter that has tensors of the same shapes."""
        own = self.bundle.tensors(self.name)
        for other in filter(None, self.bundle.names):
            theirs = self.bundle.tensors(other)
            slots = [slot for slot in own if theirs[slot].shape == own[slot].shape]
            differ = [slot for slot in slots if not np.array_equal(theirs[slot], own[slot])]
            if other != self.name and len(differ) == len(self.acting()):
                yield from (Fault(f"{slot} of {other}", own | {slot: theirs[slot]}) for slot in differ)

    def acting(self) -> list[str]:
        """Return the slots that the adapter fills."""
        own, neutral = self.bundle.tensors(self.name), self.bundle.tensors(None)
        return [slot for slot in own if not np.array_equal(own[slot], neutral[slot])]

    def at_strength(self) -> tuple[float, float]:
        """Return what golden vectors and golden parts show of the adapter at another strength."""
        session = self.bundle.runtime_session()

        def run(arrays: Mapping[str, np.ndarray]) -> Arrays:
            return session.run(arrays, self.name, strength=STRENGTH, allow_padding=True)

        by_vectors = self.worst([run(case.arrays) for case in self.golden.cases], self.golden.outputs)
        if self.parts is None:
            return by_vectors, 0.0
        values = self.parts.values([run(case.arrays) for case in self.parts.cases])
        return by_vectors, max(abs(value) / part.limit for value, part in zip(values, self.parts.parts, strict=True))

    def shown(self, by_vectors: float, by_parts: float) -> str:
        """Return the deviation of a fault relative to the allowed one, and whether it is detected."""
        most = max(by_vectors, by_parts)
        return f"{'found' if most > 1 else 'not found'} ({most:.2g})"

    def of_labels(self) -> str:
        """Return how many pairs of labels could be exchanged without a golden text that shows it."""
        texts = self.bundle.texts()
        own = next((one for one in texts.sets if one.adapter == self.name), None) if texts is not None else None
        answers = [text for text in own.texts if "probabilities" in (text.answer or {})] if own is not None else []
        if own is None or not answers:
            return ""
        named = {text.answer["label"] for text in answers if text.decided and text.answer}
        shares = [text.answer["probabilities"] for text in answers if text.answer]
        pairs = list(combinations(shares[0], 2))
        alike = [
            (one, other)
            for one, other in pairs
            if not {one, other} & named and all(abs(each[one] - each[other]) <= own.absolute for each in shares)
        ]
        return f"{len(alike)} of {len(pairs)} pairs"


if __name__ == "__main__":
    main()

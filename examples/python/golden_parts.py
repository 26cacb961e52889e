"""Compare golden parts: an adapter without one of its sites moves its outputs, though by less than budgets allow."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from golden_answers import Fault
from golden_cases import case_inputs, comparable, expected_output
from safetensors.numpy import load_file

from adapter_export.format.manifest import PartsRecord
from adapter_export.runtime import Bundle

Arrays = Mapping[str, np.ndarray]


def replay_parts(bundle: Bundle, record: PartsRecord, run: Callable[[Arrays], Arrays]) -> tuple[float, list[Fault]]:
    """Run the cases of an adapter's golden parts, and compare the value of each part with its limit.

    Returns:
        The largest value as a part of its limit, infinite for NaN, and each part beyond its limit, the likeliest first.
    """
    tensors, values = load_file(bundle.folder / record.path), np.zeros(len(record.parts))
    for at in range(len(record.parts)):
        if not any(f"{case}.part.{at}" in tensors for case in record.cases):
            values[at] = np.nan  # it would pass in any graph
    for case in record.cases:
        found = comparable(bundle.manifest, run(case_inputs(bundle.manifest, tensors, case)))
        for at, part in enumerate(record.parts):
            weight = tensors.get(f"{case}.part.{at}")
            if weight is not None:
                expected = expected_output(bundle.manifest, tensors, case, part.output)
                own = found[part.output][..., : expected.shape[-1]]  # in a bank, other classes are behind its own
                values[at] += part.factor * np.vdot(weight.astype(np.float64), own.astype(np.float64) - expected)
    limits = np.array([part.limit for part in record.parts])
    ratios = np.where(np.isnan(values), np.inf, np.abs(values) / limits)
    faults = [
        Fault(record.parts[at].fault, f"{values[at]:.2g} of ±{limits[at]:g}")
        for at in np.argsort(np.abs(values - 1), kind="stable")  # the value of a fault is 1
        if ratios[at] > 1
    ]
    return float(ratios.max()), faults

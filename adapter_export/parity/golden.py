"""The golden vectors of a bundle: inputs and reference outputs that were stored when it was built."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from adapter_export.errors import TensorError
from adapter_export.format.manifest import GoldenRecord, InputRecord
from adapter_export.format.tensors import read_tensors
from adapter_export.parity.allowance import stored_reason
from adapter_export.parity.cases import Case, case_of
from adapter_export.reference.budget import Budget


@dataclass(frozen=True)
class GoldenCase:
    """One stored case.

    Attributes:
        case: the inputs.
        outputs: what the reference computed.
        budgets: the allowed deviation of each output, as the manifest states it.
    """

    case: Case
    outputs: Mapping[str, np.ndarray]
    budgets: Mapping[str, Budget]


def golden_cases(bundle: Path, record: GoldenRecord, inputs: Sequence[InputRecord]) -> list[GoldenCase]:
    """Read the golden vectors of the base or of an adapter.

    Raises:
        FileError: the file is missing.
        TensorError: a case lacks an input or has no output.
    """
    tensors = read_tensors(bundle / record.path)
    budgets = {name: Budget(absolute, stored_reason(record, name)) for name, absolute in record.absolute.items()}
    return [_golden_case(name, tensors, inputs, budgets, record.path) for name in record.cases]


def _golden_case(
    name: str,
    tensors: Mapping[str, np.ndarray],
    inputs: Sequence[InputRecord],
    budgets: Mapping[str, Budget],
    path: str,
) -> GoldenCase:
    arrays = _under(f"{name}.input.", tensors)
    outputs = _under(f"{name}.output.", tensors)
    wanted = {record.name for record in inputs}
    if set(arrays) != wanted or not outputs or set(outputs) != set(budgets):
        raise TensorError(
            f"golden case `{name}` is not complete",
            where=path,
            found=f"inputs {', '.join(sorted(arrays)) or 'none'}; outputs {', '.join(sorted(outputs)) or 'none'}",
            expected=f"inputs {', '.join(sorted(wanted))}; outputs {', '.join(sorted(budgets))}",
            fix="build the bundle again",
        )
    return GoldenCase(case_of(name, arrays, inputs), outputs, budgets)


def _under(prefix: str, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

"""Shapes that a graph does not record and ONNX cannot infer: read off two runs of the graph itself.

ONNX knows nothing of the shapes of ONNX Runtime's own operators (domain com.microsoft), and cannot follow lengths that
a graph computes. A run knows all of them. Axes that have one length in both runs are of that length; every named axis
of the inputs has another length in each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from adapter_export.errors import BaseModelError, RequestError
from adapter_export.format.axes import names
from adapter_export.format.manifest import InputRecord
from adapter_export.onnx.flow import has_shapes, is_known, with_inferred_shapes
from adapter_export.onnx.session import open_session, run_session
from adapter_export.reference.inputs import InputCase, input_cases

_FIRST_LENGTHS = (2, 5)
"""Of the first named axis and of the second; the others follow."""


def complete_shapes(model: ir.Model, folder: Path, inputs: Sequence[InputRecord]) -> None:
    """Record in a model what shapes can be known of its values.

    Args:
        model: the model.
        folder: where its external data lie.
        inputs: its inputs.
    """
    if has_shapes(model.graph):
        return
    inferred = {value.name: value for node in with_inferred_shapes(model).graph for value in node.outputs}
    for value in _values(model):
        _take(value, inferred.get(value.name))
    if not has_shapes(model.graph):
        for value, arrays in _observed(model, folder, inputs):
            value.shape = _common_shape(value, arrays)
            if value.type is None:
                value.type = ir.TensorType(ir.DataType.from_numpy(arrays[0].dtype))


def _values(model: ir.Model) -> list[ir.Value]:
    return [value for node in model.graph for value in node.outputs if value.name]


def _take(value: ir.Value, inferred: ir.Value | None) -> None:
    if inferred is not None:
        value.shape = value.shape or inferred.shape
        value.type = value.type or inferred.type


def _observed(model: ir.Model, folder: Path, inputs: Sequence[InputRecord]) -> list[tuple[ir.Value, list[np.ndarray]]]:
    """The values of unknown shapes with their arrays in two runs; none if the model cannot be run."""
    shown = model.clone()
    outputs = {value.name for value in shown.graph.outputs}
    shown.graph.outputs.extend(
        value for value in _values(shown) if value.name not in outputs and not is_known(value.shape)
    )
    try:
        session = open_session(shown, folder, optimize=False)
        runs = [run_session(session, case.arrays) for case in small_cases(inputs)]
    except (BaseModelError, RequestError):  # whoever asks for a shape says what is missing
        return []
    values = [value for value in _values(model) if not is_known(value.shape) and value.name in runs[0]]
    return [(value, [run[value.name or ""] for run in runs]) for value in values if _are_arrays(value, runs)]


def _are_arrays(value: ir.Value, runs: Sequence[Mapping[str, object]]) -> bool:
    """Sequences and optional values have no shape."""
    return all(isinstance(run[value.name or ""], np.ndarray) for run in runs)


def small_cases(inputs: Sequence[InputRecord]) -> list[InputCase]:
    """Two cases of small inputs; no named axis has the same length in both."""
    return input_cases(inputs, seed=0, shapes=_lengths(inputs))[:2]


def _lengths(inputs: Sequence[InputRecord]) -> list[dict[str, int]]:
    named = list(dict.fromkeys(name for record in inputs for axis in record.axes for name in names(axis)))
    lengths = [*_FIRST_LENGTHS, *range(_FIRST_LENGTHS[-1] + 2, 2 * len(named) + _FIRST_LENGTHS[-1] + 2, 2)]
    return [{name: length + more for name, length in zip(named, lengths, strict=False)} for more in (0, 1)]


def _common_shape(value: ir.Value, arrays: Sequence[np.ndarray]) -> ir.Shape | None:
    """What two runs have in common; an axis that varies keeps the name that it has."""
    one, other = arrays
    if one.ndim != other.ndim:
        return value.shape
    known = value.shape if value.shape is not None and len(value.shape) == one.ndim else [None] * one.ndim
    return ir.Shape([a if a == b else before for a, b, before in zip(one.shape, other.shape, known, strict=True)])

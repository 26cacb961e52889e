"""A trial that compares a row with and without padding after its tokens."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from adapter_export.format.axes import axis_names, padded_axes
from adapter_export.format.lengths import Bounds, axis_lengths
from adapter_export.format.manifest import InputRecord, OutputRecord, token_axis
from adapter_export.numerics.runner import Arrays
from adapter_export.numerics.sample_inputs import input_cases

_TOKENS, _MORE_TOKENS = 5, 9
_RELATIVE = {"fp32": 2e-5, "fp16": 1e-2}
_RELATIVE_QUANTISED = 5e-2
"""A changed order of summation moves values across the rounding of integers."""

_SAME_SHAPE = 2e-5
"""In runs of one shape kernels add up in one order, so rounding to 16 or 8 bits explains no difference."""


@dataclass(frozen=True)
class PaddingTrial:
    """One row of a base, without and with padding.

    Attributes:
        alone: inputs of the row without padding.
        padded: the same row with padding after its tokens. For a base with one length, both have that length and differ
            in the masked second half.
        hidden: `padded` with other masked ids; `None` for a base with one length.
        real: unmasked tokens, for a base with one length; else `None`.
    """

    alone: Mapping[str, np.ndarray]
    padded: Mapping[str, np.ndarray]
    hidden: Mapping[str, np.ndarray] | None = None
    real: npt.NDArray[np.bool_] | None = None

    @property
    def runs(self) -> tuple[Mapping[str, np.ndarray], ...]:
        """The inputs of all runs."""
        return (self.alone, self.padded) if self.hidden is None else (self.alone, self.padded, self.hidden)

    def changes(self, results: Sequence[Arrays], outputs: Collection[str], precision: str = "fp32") -> bool:
        """Return true if padding changes one of these outputs by more than rounding in a precision explains.

        `results` are those of `runs`, in their order.
        """
        alone, padded, *hidden = results
        coarse = _RELATIVE.get(precision, _RELATIVE_QUANTISED)
        # both runs have one shape then
        if self.real is not None and precision in _RELATIVE:  # 8 bits may have one scale for all tokens
            coarse = _SAME_SHAPE
        return self._differ(alone, padded, outputs, coarse) or any(
            self._differ(padded, other, outputs, _SAME_SHAPE, alone) for other in hidden
        )

    def _differ(
        self, first: Arrays, other: Arrays, outputs: Collection[str], relative: float, cut: Arrays | None = None
    ) -> bool:
        """Return true if outputs differ at the tokens of the row, whose results have the shapes of `cut`."""
        for name in outputs:
            region = tuple(slice(size) for size in self._tokens((cut or first)[name]).shape)
            expected, actual = self._tokens(first[name])[region], self._tokens(other[name])[region]
            # `not … <=` instead of `>`, so that NaN counts as a difference
            if not np.abs(actual - expected).max() <= relative * np.abs(expected).max():
                return True
        return False

    def _tokens(self, value: np.ndarray) -> np.ndarray:
        has_tokens = self.real is not None and value.ndim > 2 and value.shape[1] == len(self.real)
        return value[:, self.real] if has_tokens else value


def padding_trial(
    inputs: Sequence[InputRecord], outputs: Sequence[OutputRecord], lengths: Bounds
) -> PaddingTrial | None:
    """Return a row of 5 tokens and its padding to 9, or the nearest lengths that the base takes.

    `None` if no row of the base may be padded: it has no mask over its tokens, or a cache, or an output with an axis
    that no input has.
    """
    axis, padded = token_axis(inputs), padded_axes(inputs, outputs)
    fixed = isinstance(axis, int) and any(record.role == "mask" and record.axes[1:] == (axis,) for record in inputs)
    if not (padded or fixed) or any(record.role == "cache" for record in inputs):
        return None
    first = {record.axes[0] for record in inputs if record.axes}
    sizes = {name: axis_lengths(name, lengths).near(1 if name in first else _TOKENS) for name in axis_names(inputs)}
    above = {name: axis_lengths(name, lengths).at_least(sizes[name] + 1) for name in padded}
    more = {name: axis_lengths(name, lengths).near(max(_MORE_TOKENS, size or 0)) for name, size in above.items()}
    alone = input_cases(inputs, seed=0, shapes=[sizes])[0].arrays
    if not any(sizes[name] < size for name, size in more.items()):
        return _hidden_trial(inputs, alone)
    whole = input_cases(inputs, seed=1, shapes=[{**sizes, **more}])[0].arrays
    longer, hidden = {}, {}
    for record in inputs:
        region = tuple(slice(size) for size in alone[record.name].shape)
        longer[record.name] = np.zeros_like(whole[record.name])
        longer[record.name][region] = alone[record.name]
        hidden[record.name] = (whole if record.role == "ids" else longer)[record.name].copy()
        hidden[record.name][region] = alone[record.name]
    return PaddingTrial(alone, longer, hidden)


def _hidden_trial(inputs: Sequence[InputRecord], whole: Mapping[str, np.ndarray]) -> PaddingTrial:
    """Return a row whose mask hides the second half of its tokens, and the same row with other tokens there."""
    masks = {record.name for record in inputs if record.role == "mask" and len(record.axes) == 2}
    count = next(whole[name].shape[1] for name in masks)
    real = np.arange(count) < -(-count // 2)
    masked = {name: array * real if name in masks else array for name, array in whole.items()}
    of_tokens = {record.name for record in inputs if record.role != "mask" and whole[record.name].ndim > 1}
    other = {
        name: np.where(real.reshape(1, -1, *[1] * (array.ndim - 2)), array, 0).astype(array.dtype)
        if name in of_tokens and array.shape[1] == count
        else array
        for name, array in masked.items()
    }
    return PaddingTrial(masked, other, real=real)

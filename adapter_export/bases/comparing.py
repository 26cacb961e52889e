"""Compare another model with a base and an adapter on random inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from adapter_export.bases.base import Base
from adapter_export.errors import ParityError

if TYPE_CHECKING:
    import numpy as np

    from adapter_export.graph.adapter import Adapter

_ALLOWED = 1e-4
"""Maximum deviation of an output, relative to the largest value: float32 rounds once more."""

_MOST_TOKENS = 12


def compare_outputs(
    base: Base,
    adapter: Adapter,
    run: Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]],
    what: str,
    called: Mapping[str, str] | None = None,
) -> tuple[float, float, int]:
    """Return the largest difference of common outputs, the largest value, and the number of compared elements.

    Args:
        base: the base.
        adapter: the adapter that it runs with.
        run: the other model: takes inputs by the base's names and returns its outputs.
        what: description of the other model.
        called: names of the base's outputs in the other model; default: the same names.

    Raises:
        ParityError: nothing is compared, or the difference exceeds rounding.
    """
    import numpy as np

    from adapter_export.numerics.sample_inputs import input_cases

    runner = base.runner()
    error, scale, count = 0.0, 0.0, 0
    for case in input_cases(base.inputs, seed=0, lengths=base.lengths, max_tokens=_MOST_TOKENS):
        wanted, others = runner.run(case.arrays, adapter), run(case.arrays)
        common = {name: others[other] for name in wanted if (other := (called or {}).get(name, name)) in others}
        for name in common:
            finite = np.isfinite(wanted[name])
            if not np.array_equal(finite, np.isfinite(common[name])):
                raise ParityError(
                    f"`{name}`, `{case.name}`", found="NaN or infinity", expected="the outputs of base and adapter"
                )
            error = max(error, float(np.abs(wanted[name] - common[name])[finite].max(initial=0)))
            scale = max(scale, float(np.abs(wanted[name][finite]).max(initial=0)))
            count += wanted[name].size
    if not count or error > _ALLOWED * scale:
        raise ParityError(what, found=f"a difference of {error:.1e}", expected=f"{_ALLOWED * scale:.1e}")
    return error, scale, count

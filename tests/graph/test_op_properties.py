"""Each property of an op against the NumPy lowering, which defines what the op computes: declared if and only if so."""

from __future__ import annotations

import math

import numpy as np
import pytest
from backends import ATTRIBUTES

from adapter_export.graph.graph import Node
from adapter_export.graph.numpy_lowering import LOWERINGS
from adapter_export.graph.ops import ACTIVATIONS, LOWERED, OPS

WIDTH, TOKENS, N = 4, 3, 2
NUMBERS = {"indices": N, "in": WIDTH, "out": WIDTH, "n": N, "p": WIDTH // N, "q": WIDTH // N, "k": 1, "rows": 1}
ONE_NUMBER = {"gate": (1,), "softmax_mix": (0, 1)}
"""The values that are one number for each token."""


class Op:
    """An op with random values and parameters."""

    def __init__(self, name: str) -> None:
        self.spec, rng = OPS[name], np.random.default_rng(0)
        count = self.spec.arity.least + self.spec.arity.step
        narrow = ONE_NUMBER.get(name, ())
        self.values = [rng.normal(size=(2, TOKENS, 1 if at in narrow else WIDTH)) for at in range(count)]
        if self.spec.pooling and count > 1:
            self.values[1] = np.ones((2, TOKENS))
        if self.spec.of_ids:
            self.values = [np.arange(2.0 * TOKENS).reshape(2, TOKENS) % (WIDTH - 1)]
        if name == "scatter":
            self.values[0] = self.values[0][..., :N]
        numbers = {**NUMBERS, "values": count // max(self.spec.arity.step, 1)}
        self.owned = {
            one.role: rng.normal(size=[numbers.get(str(dim), dim) for dim in one.shape]) for one in self.spec.parameters
        }
        if "low" in self.owned:
            self.owned |= {"high": np.zeros(N), "low": 1.0 + np.arange(N)}
        self._node = Node(name, ("",) * count, "", {}, {key: ATTRIBUTES[key] for key in self.spec.attributes})

    def __call__(self, *, values: dict[int, float] | float = 1.0, parameters: float | np.ndarray = 1.0) -> np.ndarray:
        """The result with some of the values, or all, and all parameters multiplied by numbers."""
        factors = values if isinstance(values, dict) else dict.fromkeys(range(len(self.values)), values)
        if self.spec.of_ids:  # ids, which no factor scales
            factors = {}
        read = tuple(factors.get(at, 1.0) * value for at, value in enumerate(self.values))
        return LOWERINGS[self._node.op](self._node, read, {role: own * parameters for role, own in self.owned.items()})


def is_scaled(found: np.ndarray, result: np.ndarray, by: float | np.ndarray) -> bool:
    return bool(np.allclose(found, by * result, rtol=1e-9, atol=1e-9))


@pytest.mark.parametrize("name", LOWERED)
def test_declared_zeros_match_the_lowering(name: str) -> None:
    op = Op(name)
    zero = [True] * len(op.values)
    assert op.spec.is_zero(zero) == (not op(values=0.0).any())
    for at in range(len(op.values)):
        if op.spec.is_zero([other == at for other in range(len(op.values))]):
            assert not op(values={at: 0.0}).any()
    if op.owned:
        assert op.spec.is_zero_by_parameters == (not op(parameters=0.0).any())


@pytest.mark.parametrize("name", LOWERED)
def test_declared_linear_values_match_the_lowering(name: str) -> None:
    op = Op(name)
    scaled = op.spec.scaled_by([*range(len(op.values))])
    if scaled:
        assert is_scaled(op(values=dict.fromkeys(scaled, -3.0)), op(), -3)
    elif op.spec.linear_in == "each":
        assert all(is_scaled(op(values={at: -3.0}), op(), -3) for at in range(len(op.values)))
    else:
        assert not is_scaled(op(values=-3.0), op(), -3)


@pytest.mark.parametrize("name", [name for name in LOWERED if OPS[name].parameters])
def test_declared_linear_parameters_match_the_lowering(name: str) -> None:
    op, by_feature = Op(name), np.arange(1.0, WIDTH + 1)
    assert is_scaled(op(parameters=-3.0), op(), -3) == (op.spec.linear_in_parameters is not None)
    if op.spec.linear_in_parameters == "feature":
        assert is_scaled(op(parameters=by_feature), op(), by_feature)


@pytest.mark.parametrize("name", LOWERED)
def test_declared_factors_match_the_lowering(name: str) -> None:
    """The factor of an op, computed from ones: one number, or one per feature."""
    op = Op(name)
    x, op.values[0] = op.values[0], np.ones_like(op.values[0])
    factors, op.values[0] = op(), x
    multiplies = len(op.values) == 1 and is_scaled(op(), x, factors) if factors.shape == x.shape else False
    if op.spec.training_only or op.spec.factor is not None:
        assert multiplies
        assert op.spec.factor != "whole" or np.ptp(factors) == 0
        assert not op.spec.training_only or (factors == 1).all()
    else:
        assert not multiplies


@pytest.mark.parametrize("name", LOWERED)
def test_declared_degrees_match_the_lowering(name: str) -> None:
    """The power of the values by which the result grows, from a thousand to a million times as large."""
    op = Op(name)
    small, large = (float(np.abs(op(values=by)).max()) for by in (1e3, 1e6))
    assert op.spec.degree([1] * len(op.values)) == round(math.log10(large / small) / 3)


@pytest.mark.parametrize("name", LOWERED)
def test_declared_token_mixing_matches_the_lowering(name: str) -> None:
    op = Op(name)
    before = op()
    for value in op.values:
        value[:, -1] += 1.0
    found = op()
    alone = found.ndim == before.ndim == 3 and np.array_equal(found[:, 0], before[:, 0])
    assert op.spec.mixes_tokens == (not alone)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_declared_rectification_matches_the_lowering(name: str) -> None:
    op = Op(name)
    op.values[0] = -np.abs(op.values[0])
    assert op.spec.half_rectified == (not op().any())

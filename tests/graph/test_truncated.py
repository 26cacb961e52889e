"""Vectors of fewer numbers than a head gives."""

from __future__ import annotations

import numpy as np
import pytest

from adapter_export.errors import RequestError
from adapter_export.graph.tasks import Task

VECTOR = np.random.default_rng(0).normal(0, 0.2, 16).astype(np.float32)


@pytest.mark.parametrize("normalised", [True, False])
def test_a_vector_keeps_its_first_numbers(normalised: bool) -> None:
    task = Task("embedding", normalised=normalised, widths=(8, 4))
    for width in (8, 4):
        found, first = task.truncated(VECTOR, width), VECTOR[:width].astype(np.float64)
        np.testing.assert_allclose(found, first / np.linalg.norm(first) if normalised else first, rtol=1e-6)
        assert found.dtype == np.float32
    assert task.truncated(VECTOR, 16) is VECTOR
    assert not task.truncated(np.zeros(16, np.float32), 4).any()


@pytest.mark.parametrize("width", [0, 5, 17])
def test_a_width_that_was_not_trained_is_refused(width: int) -> None:
    with pytest.raises(RequestError, match=r"not trained at this width.*one of 16, 8, 4"):
        Task("embedding", widths=(8, 4)).truncated(VECTOR, width)

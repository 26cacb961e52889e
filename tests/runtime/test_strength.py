"""Adapters at a strength, per call and per row: updates are scaled by the number."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_onnx import mixed_adapters, save_tiny, token_inputs

from adapter_export.errors import RequestError
from adapter_export.onnx_backend.base.onnx_base import open_onnx
from adapter_export.onnx_backend.onnx_runner import CutRunner
from adapter_export.runtime import Request, Session

INPUTS = token_inputs(5, 3, 1)


def test_half_strength_adds_half_of_the_update(session: Session, tmp_path: Path) -> None:
    base = open_onnx(save_tiny(tmp_path))
    adapter = next(one for one in mixed_adapters(base) if one.name == "narrow")
    for strength in (0.5, -1.0):
        scaled = {
            name: tensor * np.float32(strength) if ".up." in name else tensor
            for name, tensor in adapter.weights.items()
        }
        wanted = CutRunner(base).run(INPUTS, replace(adapter, weights=scaled))["hidden"]
        found = session.run(INPUTS, "narrow", strength=strength)["hidden"]
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)
        assert np.abs(found - session.run(INPUTS, "narrow")["hidden"]).max() > 0.01


def test_strength_zero_is_the_base_and_one_the_adapter(session: Session) -> None:
    plain, whole = session.run(INPUTS)["hidden"], session.run(INPUTS, "narrow")["hidden"]
    np.testing.assert_array_equal(session.run(INPUTS, "narrow", strength=0)["hidden"], plain)
    np.testing.assert_array_equal(session.run(INPUTS, "narrow", strength=1.0)["hidden"], whole)


def test_each_row_has_its_own_strength(session: Session) -> None:
    strengths, names = [0.5, -1.0, 0.5], ["narrow", "wide", None]
    found = session.run(INPUTS, adapters=names, strength=strengths)["hidden"]
    alike = session.run(INPUTS, "narrow", strength=strengths)["hidden"]
    requests = [
        Request({key: array[row : row + 1] for key, array in INPUTS.items()}, name, strength)
        for row, (name, strength) in enumerate(zip(names, strengths, strict=True))
    ]
    many = session.run_many(requests)
    for row, (name, strength) in enumerate(zip(names, strengths, strict=True)):
        alone = session.run(INPUTS, name, strength=strength)["hidden"][row]
        np.testing.assert_allclose(found[row], alone, rtol=0, atol=1e-5)
        np.testing.assert_allclose(many[row]["hidden"][0], alone, rtol=0, atol=1e-5)
        own = session.run(INPUTS, "narrow", strength=strength)["hidden"][row]
        np.testing.assert_allclose(alike[row], own, rtol=0, atol=1e-5)


@pytest.mark.parametrize("strength", [float("nan"), 1001, "1", True, [1.0]])
def test_invalid_strengths_are_refused(session: Session, strength: object) -> None:
    with pytest.raises(RequestError, match="strength"):
        session.run(INPUTS, "narrow", strength=strength)  # type: ignore[arg-type]

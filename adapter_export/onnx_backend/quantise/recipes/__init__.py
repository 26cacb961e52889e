"""Recipes that convert a float32 base to another precision, one module each; found by scanning this package.

A recipe changes a graph as a protobuf message. To add a precision, add a row in `format/precision.py`, a recipe here,
and its detection to `numerics` in `onnx_backend/base/onnx_base.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from pkgutil import iter_modules

import onnx

from adapter_export.format.precision import Precision, PrecisionName

Recipe = Callable[[onnx.ModelProto, Precision], onnx.ModelProto]


def _scanned() -> Mapping[PrecisionName, Recipe]:
    found: dict[PrecisionName, Recipe] = {}
    for module in iter_modules(__path__):
        found |= import_module(f"{__name__}.{module.name}").RECIPES
    return found


RECIPES = _scanned()
"""Recipe of each precision except float32."""

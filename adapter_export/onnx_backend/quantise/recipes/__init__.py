"""Recipes that convert a float32 base to another precision, one module each; found by scanning this package.

A recipe changes a graph whose weights are on disk: it reads one weight at a time, and writes what replaces it to a
`WeightFile`. It returns the changed graph. To add a precision, add a row in `format/precision.py`, a recipe here, and
its detection to `numerics` in `onnx_backend/base/onnx_base.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from pkgutil import iter_modules

import onnx_ir as ir

from adapter_export.format.precision import Precision, PrecisionName
from adapter_export.onnx_backend.base.weight_file import WeightFile

Recipe = Callable[[ir.Model, Precision, WeightFile], ir.Model]


def _scanned() -> Mapping[PrecisionName, Recipe]:
    recipes: dict[PrecisionName, Recipe] = {}
    for module in iter_modules(__path__):
        recipes |= import_module(f"{__name__}.{module.name}").RECIPES
    return recipes


RECIPES = _scanned()
"""Recipe of each precision except float32."""

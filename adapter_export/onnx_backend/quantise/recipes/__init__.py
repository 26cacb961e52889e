"""Recipes that bring a base of float32 into another precision, one module each; found by scanning this package.

A recipe changes a graph as a protobuf message. A new precision is a row in `format/precision.py`, a recipe here, and
how `numerics` in `onnx_backend/base/onnx_base.py` recognises it.
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
"""The recipe of each precision but float32."""

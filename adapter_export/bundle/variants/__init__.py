"""Graph variants of a bundle, one module each; `VARIANTS` is built by scanning this package.

To add a variant, add its name in `format/manifest.py` and a module here.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pkgutil import iter_modules

from adapter_export.bundle.variants.variant import Variant
from adapter_export.format.manifest import VARIANT_NAMES, VariantName


def _scan() -> Mapping[VariantName, Variant]:
    modules = (import_module(f"{__name__}.{module.name}") for module in iter_modules(__path__))
    variants = (getattr(module, "VARIANT", None) for module in modules)
    by_name = {variant.name: variant for variant in variants if isinstance(variant, Variant)}
    return {name: by_name[name] for name in VARIANT_NAMES}


VARIANTS = _scan()
"""Every variant by name, each after the variants it is derived from."""

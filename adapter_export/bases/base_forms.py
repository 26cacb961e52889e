"""Forms that `build` can give a base: each precision with its options, with operators fused or not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from adapter_export.errors import BaseModelError, UsageError
from adapter_export.format.precision import PRECISION_NAMES, Precision, PrecisionName
from adapter_export.safe_io.temporary import temporary_folder

if TYPE_CHECKING:
    from adapter_export.onnx_backend.base.onnx_base import OnnxBase


@dataclass(frozen=True)
class BaseForm:
    """Options of `build` that change how the base computes.

    Attributes:
        name: the precision and the names of options, such as `int8 + optimize`.
        options: the arguments of `build`.
        precision: of the base.
        optimize: fuse operators.
    """

    name: str
    options: Mapping[str, object]
    precision: Precision
    optimize: bool

    def write(self, plain: OnnxBase, folder: Path) -> OnnxBase:
        """Write a base in float32 in this form.

        Raises:
            BaseModelError: the base cannot have this form.
        """
        from adapter_export.onnx_backend.quantise.precision import convert_precision

        base = convert_precision(plain, self.precision, folder)
        if not self.optimize:
            return base
        from adapter_export.onnx_backend.quantise.optimize import optimize_base

        (folder / "optimized").mkdir()
        return optimize_base(base, folder / "optimized")[0]


def base_forms(names: Sequence[PrecisionName] = PRECISION_NAMES, *, fused: bool = True) -> Iterator[BaseForm]:
    """Yield the forms of some precisions, each option by itself and with fused operators.

    Args:
        names: the precisions.
        fused: include the forms with fused operators.
    """
    seen = set[Precision]()
    for name, (small, exact) in product(names, ((False, False), (True, False), (False, True))):
        try:
            precision = Precision.of(name, int8_embeddings=small, float32_activations=exact)
        except UsageError:  # the option does not go with this precision
            continue
        if precision in seen:  # `int8` has such embeddings in any case
            continue
        seen.add(precision)
        for optimize in (False, True) if fused else (False,):
            chosen = {"int8_embeddings": small, "float32_activations": exact, "optimize": optimize}
            options = {option: True for option, given in chosen.items() if given}
            yield BaseForm(" + ".join((name, *options)), {"base_precision": name, **options}, precision, optimize)


def made_forms(
    plain: OnnxBase, forms: Sequence[BaseForm], skipped: dict[str, str]
) -> Iterator[tuple[BaseForm, OnnxBase]]:
    """Yield a base in each form, one on disk at a time; `skipped` receives the reasons of those it cannot have."""
    for form in forms:
        with temporary_folder() as folder:
            try:
                made = form.write(plain, folder)
            except BaseModelError as error:
                skipped[form.name] = error.problem(", ")
                continue
            yield form, made

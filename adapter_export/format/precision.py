"""Precision of a base: types of weights, activations and embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from adapter_export.errors import UsageError
from adapter_export.words import argument, quoted

if TYPE_CHECKING:  # importing NumPy would slow down `--help`
    from adapter_export.dtypes import Stored

PrecisionName = Literal["fp32", "fp16", "int8", "int8-weights", "int4-weights"]
"""Arithmetic of a base: floating-point, integer (`int8`), or floating-point with 8-bit or 4-bit weights."""

PRECISION_NAMES: tuple[PrecisionName, ...] = get_args(PrecisionName)

Table = Literal["float32", "float16", "int8"]
"""Type of embedding tables."""


@dataclass(frozen=True)
class _Choices:
    """Types of activations and embeddings allowed for a precision of weights; the first is the default."""

    words: str
    activations: tuple[Stored, ...]
    embeddings: tuple[Table, ...]


_CHOICES: Mapping[PrecisionName, _Choices] = {
    "fp32": _Choices("float32", ("float32",), ("float32",)),
    "fp16": _Choices("float16", ("float16",), ("float16",)),
    "int8": _Choices("int8", ("uint8",), ("int8",)),
    "int8-weights": _Choices("8-bit weights", ("uint8", "float32"), ("float32", "int8")),
    "int4-weights": _Choices("4-bit weights", ("uint8", "float32"), ("float32", "int8")),
}


@dataclass(frozen=True)
class Precision:
    """Precision of a base.

    Attributes:
        name: arithmetic, the manifest's `base_precision`.
        activations: the coarsest type of activations.
        embeddings: type of embedding tables.
    """

    name: PrecisionName
    activations: Stored
    embeddings: Table

    @classmethod
    def of(cls, name: PrecisionName, *, int8_embeddings: bool = False, float32_activations: bool = False) -> Precision:
        """Return the precision for options.

        Args:
            name: one of `PRECISION_NAMES`.
            int8_embeddings: store embeddings in 8 bits with quantised weights; always true for `int8`.
            float32_activations: keep float32 activations with quantised weights.

        Raises:
            UsageError: an option does not apply to this precision.
        """
        choices = _CHOICES[name]
        if int8_embeddings and "int8" not in choices.embeddings:
            raise _refusal(
                "int8_embeddings", name, [other for other, its in _CHOICES.items() if len(its.embeddings) > 1]
            )
        exact = [other for other, its in _CHOICES.items() if "float32" in its.activations[1:]]
        if float32_activations and name not in exact:
            raise _refusal("float32_activations", name, exact)
        return cls(
            name,
            "float32" if float32_activations else choices.activations[0],
            "int8" if int8_embeddings else choices.embeddings[0],
        )

    @property
    def words(self) -> str:
        """Description, such as `8-bit weights`."""
        return _CHOICES[self.name].words


def known_precisions(names: Sequence[str]) -> tuple[PrecisionName, ...]:
    """Return names of precisions; UsageError if one is unknown or given twice, or there are none."""
    known = tuple(name for name in PRECISION_NAMES if name in names)
    if len(known) < len(names) or not known:
        raise UsageError(
            "precisions must be distinct and known",
            where=argument("precisions"),
            found=quoted(names) or "none",
            expected=f"some of {', '.join(PRECISION_NAMES)}",
        )
    return tuple(sorted(known, key=names.index))


def _refusal(option: str, name: PrecisionName, known: list[PrecisionName]) -> UsageError:
    return UsageError(
        argument(option, True) + " requires quantised weights",
        found=argument("base_precision", name),
        expected=f"one of {quoted(known)}",
        fix="pass " + argument("base_precision", known[0]) + " as well, or omit it",
    )

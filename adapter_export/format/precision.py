"""The precision of a base: how its graph stores weights, rounds activations and stores embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from adapter_export.errors import UsageError, argument, quoted

if TYPE_CHECKING:  # the command line reads the names, and NumPy takes longer to load than `--help` may take
    from adapter_export.dtypes import Stored

PrecisionName = Literal["fp32", "fp16", "int8", "int8-weights", "int4-weights"]
"""Arithmetic of a base: floats, integers (`int8`), or floats with weights of 8 or 4 bits."""

PRECISION_NAMES: tuple[PrecisionName, ...] = get_args(PrecisionName)

Table = Literal["float32", "float16", "int8"]
"""The type of the tables in which embeddings are looked up."""


@dataclass(frozen=True)
class _Choices:
    """Types of activations and embeddings allowed with a precision of weights; the first is the default."""

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
    """The precision in which a base is stored and computed.

    Attributes:
        name: how it multiplies, as the manifest's `base_precision`.
        activations: the coarsest type that activations are rounded to.
        embeddings: the type of the tables that embeddings are looked up in.
    """

    name: PrecisionName
    activations: Stored
    embeddings: Table

    @classmethod
    def of(cls, name: PrecisionName, *, int8_embeddings: bool = False, float32_activations: bool = False) -> Precision:
        """Return the precision that options describe.

        Args:
            name: one of `PRECISION_NAMES`.
            int8_embeddings: keep embeddings in 8 bits beside quantised weights; `int8` does so in any case.
            float32_activations: do not round activations beside quantised weights.

        Raises:
            UsageError: an option does not go with this precision.
        """
        choices = _CHOICES[name]
        if int8_embeddings and "int8" not in choices.embeddings:
            raise _refusal("int8_embeddings", name, [one for one, its in _CHOICES.items() if len(its.embeddings) > 1])
        exact = [one for one, its in _CHOICES.items() if "float32" in its.activations[1:]]
        if float32_activations and name not in exact:
            raise _refusal("float32_activations", name, exact)
        return cls(
            name,
            "float32" if float32_activations else choices.activations[0],
            "int8" if int8_embeddings else choices.embeddings[0],
        )

    @property
    def words(self) -> str:
        """The precision in words, such as `8-bit weights`."""
        return _CHOICES[self.name].words


def known_precisions(names: Sequence[str]) -> tuple[PrecisionName, ...]:
    """Return names of precisions; UsageError if one is unknown or given twice, or there are none."""
    known = tuple(one for one in PRECISION_NAMES if one in names)
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
        f"{argument(option, True)} goes with quantised weights",
        found=argument("base_precision", name),
        expected=f"one of {quoted(known)}",
        fix=f"give {argument('base_precision', known[0])} with it, or leave it out",
    )

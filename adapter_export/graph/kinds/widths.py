"""The widths of a kind of adapter: numbers, and shares of other widths."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from adapter_export.errors import UsageError

DEFAULT_BOTTLENECK = 64
"""The bottleneck width where none is given (Houlsby et al. 2019, §3.3: sizes from 8 to 64 on GLUE)."""

_DEFAULT = "default"


@dataclass(frozen=True)
class Share:
    """A width that follows from another one: `⌊of / factor⌋`, at least 1.

    Attributes:
        of: the symbol of the other width.
        factor: what it is divided by, a number or another symbol; below 1 widens. None where `by_layer` names every
            layer.
        by_layer: other factors for some layers.
        exact: whether it must divide without rest.
    """

    of: str
    factor: float | str | None
    by_layer: Mapping[int, float] = field(default_factory=dict)
    exact: bool = False

    def __post_init__(self) -> None:
        factors = [factor for factor in (self.factor, *self.by_layer.values()) if factor is not None]
        wrong = [factor for factor in factors if not isinstance(factor, str) and not 0 < factor < float("inf")]
        if wrong:
            raise UsageError("a reduction factor is not a positive number", found=wrong[0])

    def at(self, layer: int | None, widths: Mapping[str, int]) -> int:
        """The width in one layer.

        Raises:
            UsageError: the layer has no factor, or it must divide and does not.
        """
        whole = widths[self.of]
        chosen = self.factor if layer is None else self.by_layer.get(layer, self.factor)
        factor = widths[chosen] if isinstance(chosen, str) else chosen
        if factor is None:
            raise UsageError(f"layer {layer} has no reduction factor", fix="name it, or give one for `default`")
        if self.exact and whole % factor:
            raise UsageError(
                f"the width `{self.of}` cannot be cut into equal blocks",
                found=whole,
                expected=f"a multiple of {factor:g}",
                fix="choose another bottleneck or reduction factor",
            )
        return max(1, int(whole // factor))


Width = int | Share


def per_layer(factors: float | Mapping[str, float], of: str = "d") -> Share:
    """A reduction factor, or a factor by layer number with `default` for the others, as AdapterHub writes them.

    Raises:
        UsageError: a key is neither a number nor `default`, or a factor is not positive.
    """
    if not isinstance(factors, Mapping):
        return Share(of, factors)
    layers = {key: factor for key, factor in factors.items() if key != _DEFAULT}
    wrong = [key for key in layers if not key.isdecimal()]
    if wrong:
        raise UsageError(
            "a reduction factor is given for something that is not a layer",
            found=", ".join(f"`{key}`" for key in wrong),
            expected="layer numbers, or `default`",
        )
    by_layer = {int(key): factor for key, factor in layers.items()}
    return Share(of, factors.get(_DEFAULT), by_layer)

"""Trainable fusions: their options, and their initial weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from adapter_export.bases.adapters import check_site_map
from adapter_export.bases.base import Base
from adapter_export.errors import BaseMismatchError, UsageError
from adapter_export.option import Option, changed
from adapter_export.words import argument, joined, quoted

if TYPE_CHECKING:
    from adapter_export.graph.adapter import Adapter, Head
    from adapter_export.training.loop.settings import LoopSpec

_DECAY, _PENALTY = 0.001, 0.01
"""Defaults of AdapterHub."""

FusionType = Literal["dynamic", "static", "weighted"]


@dataclass(frozen=True)
class FusionSpec:
    """Type of a fusion, and its options."""

    fusion: Annotated[
        FusionType, "Fusion: attention with a value projection, attention without one, or one weight per adapter."
    ] = "dynamic"
    no_query: Annotated[bool, "Attention without a query projection."] = False
    no_key: Annotated[bool, "Attention without a key projection."] = False
    query_before_norm: Annotated[
        bool, "Query the output before the layer norm, even if the adapters read the norm's output."
    ] = False
    residual_before: Annotated[bool, "Add the residual to each adapter's output, not to their mean."] = False
    fusion_temperature: Annotated[float, "Initial softmax temperature; 50 is common."] = 1.0
    fusion_temperature_decay: Annotated[
        float | None,
        Option(f"Fraction of the initial temperature lost per step, down to 1; {_DECAY} if a temperature is given."),
    ] = None
    fusion_dropout: Annotated[float, "Dropout rate on the attention scores."] = 0.0
    first_value: Annotated[Literal["identity", "normal"], "Initial value projection."] = "identity"
    value_after: Annotated[bool, "Apply the value projection after the mean instead of before it."] = False
    value_penalty: Annotated[
        float | None, Option(f"Coefficient of the penalty ‖I − V‖²; {_PENALTY} for `dynamic`.")
    ] = None
    weights: Annotated[
        tuple[float, ...] | Mapping[str, float] | None, "Initial weights of `weighted`; equal by default."
    ] = None
    residual: Annotated[Literal["once", "literal"], "Add `h` once, or once more for each weight (`weighted` only)."] = (
        "once"
    )

    def check(self, members: Sequence[object]) -> None:
        """Reject options without members, and options that the type of the fusion does not have.

        Raises:
            UsageError: an option does not apply.
        """
        chosen = list(changed(self))
        if not members:
            if chosen:
                raise UsageError(
                    "this option applies only to a fusion",
                    found=joined(map(argument, chosen)),
                    fix="pass " + argument("fuse", ["a", "b"]) + ", or remove the option",
                )
            return
        if len(members) < 2:
            raise UsageError(argument("fuse") + " must list two or more adapters", found=f"`{members[0]}`")
        if self.fusion not in _HAS:
            raise UsageError("unknown fusion", found=f"`{self.fusion}`", expected=quoted(_HAS))
        unknown = [name for name in chosen if name not in ("fusion", *_HAS[self.fusion])]
        if unknown:
            found = joined(map(argument, unknown))
            raise UsageError(f"a `{self.fusion}` fusion does not have this option", found=found)
        if self.fusion_temperature_decay is not None and self.fusion_temperature == 1:
            raise UsageError(
                argument("fusion_temperature_decay") + " requires a temperature",
                fix="pass " + argument("fusion_temperature") + ", too",
            )

    def loop(self, loop: LoopSpec) -> LoopSpec:
        """Return the settings of a loop with the decay and the penalty of this fusion."""
        decay, penalty = self.fusion_temperature_decay, self.value_penalty
        if decay is None:
            decay = 0.0 if self.fusion_temperature == 1 else _DECAY
        if penalty is None:
            penalty = _PENALTY if self.fusion == "dynamic" else 0.0
        return replace(loop, fusion_temperature_decay=decay, value_penalty=penalty)

    def fuse(
        self, base: Base, members: Sequence[Adapter], name: str, head: Head, seed: int
    ) -> tuple[Adapter, list[str]]:
        """Return the untrained fusion with a new head, and the names of its trainable tensors."""
        from adapter_export.graph.compose import FusionOptions, adapter_fusion, weighted_fusion
        from adapter_export.graph.compose.members import own_tensors
        from adapter_export.training.loop.init_adapter import with_head

        for adapter in members:
            if adapter.base != base.fingerprint:
                known, wanted = adapter.base, base.fingerprint
                raise BaseMismatchError(adapter.name, found=known, expected=wanted, can_be_allowed=False)
        check_site_map(members, base.given)
        if self.fusion == "weighted":
            weights: dict[str, Any] = {} if self.weights is None else {"weights": self.weights}
            fused = weighted_fusion(*members, name=name, residual=self.residual, **weights)
        else:
            attention = FusionOptions(
                query=not self.no_query,
                key=not self.no_key,
                value=self.fusion == "dynamic",
                query_before_norm=self.query_before_norm,
                residual_before=self.residual_before,
                value_before_softmax=not self.value_after,
                temperature=self.fusion_temperature,
                dropout=self.fusion_dropout,
                first_value=self.first_value,
            )
            fused = adapter_fusion(*members, name=name, options=attention, seed=seed)
        whole = with_head(fused, head, seed=seed)
        return whole, [*own_tensors(fused), *(tensor for tensor in whole.weights if tensor not in fused.weights)]


_STATIC = (
    *("no_query", "no_key", "query_before_norm", "residual_before"),
    *("fusion_temperature", "fusion_temperature_decay", "fusion_dropout"),
)
_HAS: Mapping[FusionType, tuple[str, ...]] = {
    "dynamic": (*_STATIC, "first_value", "value_after", "value_penalty"),
    "static": _STATIC,
    "weighted": ("weights", "residual"),
}

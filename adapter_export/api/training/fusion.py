"""A fusion that is learnt: its options by name, and what it is before training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict

from adapter_export.api.adapters.adapters import check_site_map
from adapter_export.api.models.base import Base
from adapter_export.errors import BaseMismatchError, UsageError, argument, quoted

if TYPE_CHECKING:
    from adapter_export.graph.adapter import Adapter, Head

_DECAY, _PENALTY = 0.001, 0.01
"""Those of AdapterHub."""

FusionType = Literal["dynamic", "static", "weighted"]


class FusionOptions(TypedDict, total=False):
    """What is free in a fusion."""

    fusion: Annotated[
        FusionType,
        "Attention with a value projection, attention without, or one weight per adapter.  [default: dynamic]",
    ]
    no_query: Annotated[bool, "Attention without a projection of the query."]
    no_key: Annotated[bool, "Attention without a projection of the keys."]
    query_before_norm: Annotated[bool, "The query is the bare output, also where the adapters read the norm."]
    residual_before: Annotated[bool, "The output is added to each adapter's, not to their mean."]
    temperature: Annotated[float, "What the scores are divided by at first.  [default: 1; often 50]"]
    temperature_decay: Annotated[
        float, f"The fraction of it that is lost in each step, down to 1.  [default: {_DECAY}]"
    ]
    fusion_dropout: Annotated[float, "The rate on the scores, in training.  [default: 0]"]
    first_value: Annotated[Literal["identity", "normal"], "What the value projection starts as.  [default: identity]"]
    value_after: Annotated[bool, "The value projection is behind the mean, not before it."]
    value_penalty: Annotated[
        float, f"What draws the value projection to the identity, times Σ(I − V)².  [default: {_PENALTY}]"
    ]
    weights: Annotated[tuple[float, ...] | Mapping[str, float], "First weights of `weighted`; equal if not given."]
    residual: Annotated[
        Literal["once", "literal"],
        "Of `weighted`: whether `h` counts once, or once more for each weight.  [default: once]",
    ]


_STATIC = (
    *("no_query", "no_key", "query_before_norm", "residual_before"),
    *("temperature", "temperature_decay", "fusion_dropout"),
)
_HAS: Mapping[FusionType, tuple[str, ...]] = {
    "dynamic": (*_STATIC, "first_value", "value_after", "value_penalty"),
    "static": _STATIC,
    "weighted": ("weights", "residual"),
}


def fusion_options(given: Mapping[str, Any], fuse: Sequence[object]) -> dict[str, Any]:
    """Return the options of the fusion of some members; an option without members is a `UsageError`."""
    found = {name: given[name] for name in FusionOptions.__annotations__ if name in given}
    if not fuse:
        if found:
            raise UsageError(
                "only a fusion has such an option",
                found=", ".join(map(argument, found)),
                fix=f"say of what: {argument('fuse', ['a', 'b'])}, or leave it out",
            )
        return {}
    if len(fuse) < 2:
        raise UsageError(f"{argument('fuse')} is no list of two or more adapters", found=f"`{fuse[0]}`")
    fusion: FusionType = found.setdefault("fusion", "dynamic")
    if fusion not in _HAS:
        raise UsageError("unknown fusion", found=f"`{fusion}`", expected=quoted(_HAS))
    strangers = [name for name in found if name not in ("fusion", *_HAS[fusion])]
    if strangers:
        raise UsageError(f"a fusion that is `{fusion}` has no such option", found=", ".join(map(argument, strangers)))
    if "temperature_decay" in found and "temperature" not in found:
        raise UsageError(
            f"{argument('temperature_decay')} says how a temperature falls",
            fix=f"give {argument('temperature')} as well",
        )
    return found


def fusion_settings(fusion: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a fusion adds to the settings of the training loop."""
    if not fusion:
        return {}
    return {
        "temperature_decay": fusion.get("temperature_decay", _DECAY if "temperature" in fusion else 0.0),
        "value_penalty": fusion.get("value_penalty", _PENALTY if fusion["fusion"] == "dynamic" else 0.0),
    }


def fused(
    base: Base, members: Sequence[Adapter], options: Mapping[str, Any], name: str, head: Head, seed: int
) -> tuple[Adapter, list[str]]:
    """Return the fusion before training, with a fresh head, and the names of its tensors that learn."""
    from adapter_export.graph.compose import FusionOptions as Attention
    from adapter_export.graph.compose import adapter_fusion, weighted_fusion
    from adapter_export.graph.compose.members import own_tensors
    from adapter_export.torch_backend.train.init_adapter import with_head

    for adapter in members:
        if adapter.base != base.fingerprint:
            raise BaseMismatchError(adapter.name, found=adapter.base, expected=base.fingerprint, can_be_allowed=False)
    check_site_map(members, base.given)
    if options["fusion"] == "weighted":
        made = weighted_fusion(*members, name=name, **{key: options[key] for key in _HAS["weighted"] if key in options})
    else:
        attention = Attention(
            query=not options.get("no_query", False),
            key=not options.get("no_key", False),
            value=options["fusion"] == "dynamic",
            query_before_norm=options.get("query_before_norm", False),
            residual_before=options.get("residual_before", False),
            value_before_softmax=not options.get("value_after", False),
            temperature=options.get("temperature", 1.0),
            dropout=options.get("fusion_dropout", 0.0),
            first_value=options.get("first_value", "identity"),
        )
        made = adapter_fusion(*members, name=name, options=attention, seed=seed)
    whole = with_head(made, head, seed=seed)
    return whole, [*own_tensors(made), *(tensor for tensor in whole.weights if tensor not in made.weights)]

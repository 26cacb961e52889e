"""A kind of adapter by name, with what is free in it by name: the options of `train` and `pack`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict

from adapter_export.errors import UsageError, argument
from adapter_export.graph.ops import ACTIVATIONS
from adapter_export.option import Option
from adapter_export.sites.site import SUBLAYERS

if TYPE_CHECKING:
    from adapter_export.graph.kinds import Kind, Maker


class PackedOptions(TypedDict, total=False):
    """What plain tensors do not show of a kind."""

    at: Annotated[
        tuple[str, ...], "Sublayers of a bottleneck: `attention`, `cross_attention`, `ffn`, `decoder.ffn` …; by kind."
    ]
    leave_out: Annotated[tuple[str | int, ...], "Layers without the adapter, counted from 0."]
    on: Annotated[tuple[str, ...], "Linear layers of LoRA and IA3: `query`, `attention.output`; by kind."]
    inputs: Annotated[tuple[str, ...], "Linear layers whose inputs IA3 multiplies.  [default: ffn.down]"]
    activation: Annotated[str, Option("The function between the projections; by kind.", choices=ACTIVATIONS)]
    scaling: Annotated[float | Literal["learned", "channel"], "The factor on the up-projection's output; by kind."]
    alpha: Annotated[float | Mapping[str, float], "LoRA's factor is alpha/rank.  [default: the rank]"]
    rs_lora: Annotated[bool, "LoRA's factor is alpha/√rank."]


class KindOptions(PackedOptions, total=False):
    """What training can choose of a kind."""

    bottleneck: Annotated[int, "The width between the projections; by kind, 64 or a fraction of `d`."]
    reduction_factor: Annotated[float | Mapping[str, float], "`d` over that width: `16`, `0=8,default=16` by layer."]
    rank: Annotated[float | Mapping[str, float], "LoRA's width: `8`, `query=8,value=4`.  [default: 8]"]
    dropout: Annotated[float, "The rate in training, on the up-projection's output; on LoRA's input."]
    drop_path: Annotated[float, "The rate at which a row goes without the bottleneck in training."]
    norm_before: Annotated[bool, "A layer norm before the down-projection."]
    norm_after: Annotated[bool, "A layer norm after the up-projection."]
    gate: Annotated[bool, "A learned gate, one number per text."]
    no_bias: Annotated[bool, "Bottlenecks whose projections have no biases."]
    lora_bias: Annotated[bool, "LoRA whose second matrix has a bias."]
    phm_dim: Annotated[int, "Projections as sums of so many Kronecker products; 4 in Compacter."]
    phm_rank: Annotated[int, "The rank of their factors.  [default: 1]"]


def kind_names() -> str:
    """Return the names of all kinds as the metavar of a choice."""
    from adapter_export.graph.kinds import KINDS

    return f"[{'|'.join(KINDS)}]"


def swept_options(name: str) -> tuple[str | None, str | None]:
    """Return the options of a kind that say how wide it is and where it acts; none where it has none."""
    from adapter_export.graph.kinds import BottleneckOptions, kind_named

    defaults = kind_named(name).defaults
    if isinstance(defaults, BottleneckOptions):
        return "bottleneck", "at"
    own = {field.name for field in fields(defaults)}
    return "rank" if "rank" in own else None, "on" if "on" in own else None


def make_kind(name: str, given: Mapping[str, Any]) -> Kind:
    """Return the kind of a name with the options that are given (not `None`); a wrong one is a `UsageError`."""
    from adapter_export.graph.kinds import kind_named

    maker = kind_named(name)
    chosen = {key: value for key, value in given.items() if value is not None}
    kind = maker.changed(**own_options(maker, chosen))
    return placed(_widened(kind, chosen.get("bottleneck"), chosen.get("reduction_factor")), chosen)


def own_options(maker: Maker[Any], chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of the kind's own options that are meant, such as `bias=False` for `no_bias`."""
    from adapter_export.graph.kinds import BottleneckOptions, PhmOptions

    own = {field.name for field in fields(maker.defaults)}
    known = [name for name in KindOptions.__annotations__ if name in own]
    if isinstance(maker.defaults, BottleneckOptions):
        known += ["no_bias", "phm_dim", "phm_rank", "at", "bottleneck", "reduction_factor"]
    known += ["lora_bias"] if "rank" in own else []
    known += ["reduction_factor"] if maker.name == "nice" else ["leave_out"]
    strangers = [key for key in chosen if key not in known]
    if strangers:
        raise UsageError(
            f"kind `{maker.name}` has no such option",
            found=", ".join(map(argument, strangers)),
            expected=", ".join(map(argument, known)),
        )
    meant: dict[str, Any] = {}
    for key, value in chosen.items():
        if key in ("no_bias", "lora_bias"):
            meant["bias"] = value if key == "lora_bias" else not value
        elif key in ("phm_dim", "phm_rank"):
            phm = meant.get("phm") or getattr(maker.defaults, "phm", None) or PhmOptions()
            meant["phm"] = replace(phm, **{"n" if key == "phm_dim" else "rank": at_least_1(key, value)})
        elif key in ("rank", "alpha") and isinstance(value, Mapping):
            meant[f"{key}s"] = value
        elif key == "rank" and not isinstance(value, int):
            raise UsageError(f"{argument('rank')} is a whole number", found=value)
        elif key in own:
            meant[key] = value
    return meant


def placed(kind: Kind, chosen: Mapping[str, Any]) -> Kind:
    """Return the kind at other sublayers, and without some layers, as `at` and `leave_out` say."""
    roles = chosen.get("at")
    if roles is not None:
        wrong = [role for role in roles if role.removeprefix("encoder.").removeprefix("decoder.") not in SUBLAYERS]
        if wrong:
            raise UsageError(
                f"{argument('at')} names no sublayer",
                found=f"`{wrong[0]}`",
                expected="`attention`, `cross_attention` and `ffn`; of one part of a base as `decoder.ffn`",
            )
        kind = kind.at_roles(*roles)
    layers = [str(layer) for layer in chosen.get("leave_out", ())]
    wrong = [layer for layer in layers if not layer.isdecimal()]
    if wrong:
        raise UsageError(f"{argument('leave_out')} names no layer", found=f"`{wrong[0]}`", expected="numbers from 0")
    return kind.leaving_out(*map(int, layers)) if layers else kind


def _widened(kind: Kind, bottleneck: int | None, factor: float | Mapping[str, float] | None) -> Kind:
    if bottleneck is not None and factor is not None:
        both = f"{argument('bottleneck')} and {argument('reduction_factor')}"
        raise UsageError(f"{both} exclude each other", fix="give one of them")
    if bottleneck is not None:
        return kind.with_widths(b=at_least_1("bottleneck", bottleneck))
    if factor is None:
        return kind
    from adapter_export.graph.kinds.kind import per_layer

    if kind.name != "nice":
        return kind.with_widths(b=per_layer(factor))
    if isinstance(factor, Mapping):
        raise UsageError("`nice` acts at one place and has one reduction factor", found=dict(factor))
    half = per_layer(2 * factor)
    return kind.with_widths(f=half, g=half)


def at_least_1(name: str, value: int) -> int:
    """Return the value of an argument; below 1 it is a `UsageError`."""
    if value < 1:
        raise UsageError(f"{argument(name)} is too small", found=value, expected="at least 1")
    return value


def check_different(name: str, given: Collection[object]) -> None:
    """Refuse an argument that lists nothing, or something twice."""
    if not given or len(set(given)) < len(given):
        found = ", ".join(map(str, given)) or "none"
        raise UsageError(f"{argument(name)} must be different ones, at least one", found=found)

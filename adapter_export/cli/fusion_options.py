"""The options of `train` that learn a fusion of adapters in the place of a new adapter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import click

from adapter_export.cli.kind_options import Command
from adapter_export.cli.members import read_shares
from adapter_export.errors import UsageError

if TYPE_CHECKING:
    from adapter_export.graph.adapter import Adapter

FUSIONS = ("dynamic", "static", "weighted")

_DECAY, _PENALTY = 0.001, 0.01
"""Those of AdapterHub."""

_OF_WEIGHTS = ("weights", "residual")
_OF_VALUES = ("first_value", "value_after", "value_penalty")
_OF_ATTENTION = (
    "no_query",
    "no_key",
    "query_before_norm",
    "residual_before",
    "temperature",
    "temperature_decay",
    "fusion_dropout",
)
_KNOWN: Mapping[str, tuple[str, ...]] = {
    "dynamic": (*_OF_ATTENTION, *_OF_VALUES),
    "static": _OF_ATTENTION,
    "weighted": _OF_WEIGHTS,
}


def _members(_: click.Context, __: click.Parameter, text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    members = tuple(item.strip() for item in text.split(","))
    if len(members) < 2 or not all(members):
        raise click.BadParameter(f"`{text}` is no list of two or more adapters such as `a,b`")
    return members


_OPTIONS = (
    click.option(
        "--fuse",
        metavar="A,B,…",
        callback=_members,
        help="Learn a fusion of these adapters, which stay as they are, in the place of a new adapter.",
    ),
    click.option(
        "--fusion",
        type=click.Choice(FUSIONS),
        help="Attention with a value projection, attention without, or one weight per adapter.  [default: dynamic]",
    ),
    click.option("--no-query", is_flag=True, default=None, help="Attention without a projection of the query."),
    click.option("--no-key", is_flag=True, default=None, help="Attention without a projection of the keys."),
    click.option(
        "--query-before-norm",
        is_flag=True,
        default=None,
        help="The query is the bare output, also where the adapters read the norm.",
    ),
    click.option(
        "--residual-before",
        is_flag=True,
        default=None,
        help="The output is added to each adapter's, not to their mean.",
    ),
    click.option("--temperature", type=float, help="What the scores are divided by at first.  [default: 1; often 50]"),
    click.option(
        "--temperature-decay",
        type=float,
        help=f"The part of it that is lost in each step, down to 1.  [default: {_DECAY}]",
    ),
    click.option("--fusion-dropout", type=float, help="The rate on the scores, in training.  [default: 0]"),
    click.option(
        "--first-value",
        type=click.Choice(("identity", "normal")),
        help="What the value projection starts as.  [default: identity]",
    ),
    click.option(
        "--value-after", is_flag=True, default=None, help="The value projection is behind the mean, not before it."
    ),
    click.option(
        "--value-penalty",
        type=float,
        help=f"What draws the value projection to the identity, times Σ(I − V)².  [default: {_PENALTY}]",
    ),
    click.option(
        "--weights",
        metavar="N,…|NAME=N,…",
        callback=read_shares,
        help="First weights of `weighted`; equal if not given.",
    ),
    click.option(
        "--residual",
        type=click.Choice(("once", "literal")),
        help="Of `weighted`: whether `h` counts once, or once more for each weight.  [default: once]",
    ),
)
FUSION_OPTIONS = ("fuse", "fusion", *_OF_ATTENTION, *_OF_VALUES, *_OF_WEIGHTS)
"""The names under which a command gets them."""


def fusion_options(command: Command) -> Command:
    """Give a command the options of a fusion."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def take_fusion_options(given: dict[str, Any]) -> dict[str, Any]:
    """Take those that were given out of a command's options, and see that they go together.

    Raises:
        UsageError: an option without `--fuse`, or one that the fusion does not have.
    """
    found = {name: given.pop(name) for name in FUSION_OPTIONS}
    found = {name: value for name, value in found.items() if value is not None}
    if found and "fuse" not in found:
        raise UsageError(
            "only a fusion has such an option", found=_flags(found), fix="say of what: `--fuse a,b`, or leave it out"
        )
    if found:
        found.setdefault("fusion", FUSIONS[0])
    known = ("fuse", "fusion", *_KNOWN[found["fusion"]]) if found else ()
    strangers = [name for name in found if name not in known]
    if strangers:
        raise UsageError(f"a fusion that is `{found['fusion']}` has no such option", found=_flags(strangers))
    if "temperature_decay" in found and "temperature" not in found:
        raise UsageError("`--temperature-decay` says how a temperature falls", fix="give `--temperature` as well")
    return found


def fused(options: Mapping[str, Any], adapters: tuple[Adapter, ...], name: str, seed: int) -> Adapter:
    """The fusion before training, without a head.

    Args:
        options: what `take_fusion_options` gave.
        adapters: the members.
        name: of the new adapter.
        seed: of first weights.

    Raises:
        UsageError, AdapterError: the members do not go together, or an option has a value that it cannot have.
    """
    from adapter_export.graph.compose import FusionOptions, adapter_fusion, weighted_fusion

    if options["fusion"] == "weighted":
        return weighted_fusion(*adapters, name=name, **{key: options[key] for key in _OF_WEIGHTS if key in options})
    first_value: Literal["identity", "normal"] = options.get("first_value", "identity")
    attention = FusionOptions(
        query=not options.get("no_query", False),
        key=not options.get("no_key", False),
        value=options["fusion"] == "dynamic",
        query_before_norm=options.get("query_before_norm", False),
        residual_before=options.get("residual_before", False),
        value_before_softmax=not options.get("value_after", False),
        temperature=options.get("temperature", 1.0),
        dropout=options.get("fusion_dropout", 0.0),
        first_value=first_value,
    )
    return adapter_fusion(*adapters, name=name, options=attention, seed=seed)


def fusion_settings(options: Mapping[str, Any]) -> dict[str, Any]:
    """What a fusion adds to the settings of the training loop; nothing without one."""
    if not options:
        return {}
    decay = options.get("temperature_decay", _DECAY if "temperature" in options else 0.0)
    return {
        "temperature_decay": decay,
        "value_penalty": options.get("value_penalty", _PENALTY if options["fusion"] == "dynamic" else 0.0),
    }


def _flags(names: Mapping[str, Any] | list[str]) -> str:
    return ", ".join(f"`--{name.replace('_', '-')}`" for name in names)

"""The options that say what an adapter is trained for, and what its head looks like."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import click

from adapter_export.cli.bases import read_shares
from adapter_export.cli.kind_options import Command
from adapter_export.errors import UsageError
from adapter_export.graph.heads import POOLINGS, HeadOptions, make_head
from adapter_export.graph.ops import ACTIVATIONS
from adapter_export.graph.tasks import DEFAULT_TASK, LABELLED, TASKS

if TYPE_CHECKING:
    from adapter_export.graph.adapter import Adapter, Head
    from adapter_export.torch_backend.train.task import TextTask


# The options of `train` that learn a fusion of adapters in the place of a new adapter.

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


_HEAD_OPTIONS = (
    click.option(
        "--task",
        type=click.Choice(TASKS),
        default=DEFAULT_TASK,
        show_default=True,
        help="What to learn: the label of a text, of each of its words, numbers, or vectors near for equal labels.",
    ),
    click.option(
        "--pooling",
        type=click.Choice(POOLINGS),
        help="What the head reads: the mean over the tokens, or the first token.  [default: mean]",
    ),
    click.option(
        "--head-layers", "dense", type=click.IntRange(min=0), help="Dense layers before the last one.  [default: 0]"
    ),
    click.option("--head-width", "hidden", type=click.IntRange(min=1), help="Their width; the model's if not given."),
    click.option(
        "--head-activation", type=click.Choice(ACTIVATIONS), help="The function behind each of them.  [default: tanh]"
    ),
    click.option("--head-dropout", type=float, help="The rate before each layer of the head, in training."),
    click.option(
        "--vector-width", type=click.IntRange(min=1), help="The width of an embedding; the model's if not given."
    ),
    click.option("--l2-normalise", is_flag=True, default=None, help="Embeddings of length 1."),
)

_NAMES = ("task", "pooling", "dense", "hidden", "head_activation", "head_dropout", "vector_width", "l2_normalise")
_FLAGS = {"dense": "head-layers", "hidden": "head-width"}
_OF_DENSE_LAYERS = ("hidden", "head_activation")


def head_options(command: Command) -> Command:
    """Give a command the options of a head."""
    for option in reversed(_HEAD_OPTIONS):
        command = option(command)
    return command


def take_head_options(given: dict[str, Any]) -> dict[str, Any]:
    """Take those that were given out of a command's options, and see that they go together.

    Raises:
        UsageError: an option does not go with the task or with the others.
    """
    found = {name: given.pop(name) for name in _NAMES}
    found = {name: value for name, value in found.items() if value is not None}
    for name in found:
        if name in _unfit(found):
            raise UsageError(
                f"`--{_FLAGS.get(name, name).replace('_', '-')}` does not go with the head that is asked for",
                found=f"the task `{found['task']}` and {found.get('dense', 0)} dense layers",
                fix="leave it out, or give another `--task` or `--head-layers`",
            )
    return found


def _unfit(found: Mapping[str, Any]) -> tuple[str, ...]:
    unfit: tuple[str, ...] = () if found.get("dense") else _OF_DENSE_LAYERS
    unfit += () if found["task"] == "embedding" else ("vector_width", "l2_normalise")
    return (*unfit, "pooling") if found["task"] == "token_classification" else unfit


def head_of(options: Mapping[str, Any], task: TextTask, width: int) -> Head:
    """The head that the options ask for, for what the data hold.

    Args:
        options: what `take_head_options` gave.
        task: the data.
        width: that of the base's final hidden state.
    """
    look = HeadOptions(
        pooling=options.get("pooling", POOLINGS[0]),
        dense=options.get("dense", 0),
        activation=options.get("head_activation", "tanh"),
        dropout=options.get("head_dropout", 0.0),
        projection="vector_width" in options,
        l2_normalise=options.get("l2_normalise", False),
    )
    return make_head(
        task.task,
        width=width,
        labels=task.labels if task.task in LABELLED else (),
        numbers=task.numbers or options.get("vector_width", 1),
        hidden=options.get("hidden"),
        options=look,
    )

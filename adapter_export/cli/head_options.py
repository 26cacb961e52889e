"""The options that say what an adapter is trained for, and what its head looks like."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

from adapter_export.errors import UsageError
from adapter_export.graph.heads import POOLINGS, HeadOptions, make_head
from adapter_export.graph.ops import ACTIVATIONS
from adapter_export.graph.tasks import DEFAULT_TASK, LABELLED, TASKS

if TYPE_CHECKING:
    from adapter_export.graph.adapter import Head
    from adapter_export.torch.task import TextTask

Command = TypeVar("Command", bound=Callable[..., Any])

_OPTIONS = (
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
    for option in reversed(_OPTIONS):
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

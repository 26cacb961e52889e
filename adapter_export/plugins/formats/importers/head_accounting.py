"""Accounting of a prediction head: every tensor that the head reads has a value, and every saved tensor is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from adapter_export.bases.base_view import ArchitectureHead
from adapter_export.errors import AdapterError, TensorError
from adapter_export.words import argument, quoted


def head_tensors(
    head: ArchitectureHead, saved: Mapping[str, np.ndarray], value: Callable[[str], np.ndarray | None], where: object
) -> dict[str, np.ndarray]:
    """Return the value of every tensor of a head, by name in the library's model.

    Args:
        head: the head of the base's architecture.
        saved: trained tensors of the adapter's file that belong to no layer of the base that has sites.
        value: returns the other values, from the base; `None` if unknown.
        where: location for messages.

    Raises:
        AdapterError: a saved tensor is not read, or the value of a tensor is unknown.
        TensorError: a tensor has another shape.
    """
    unread = [name for name in saved if name not in head.shapes]
    if unread:
        raise AdapterError(
            "has fully trained modules that cannot be expressed",
            where=where,
            found=quoted(dict.fromkeys(name.rpartition(".")[0] for name in unread)),
            expected=f"tensors between the final hidden state and the results of `{head.name}`: {quoted(head.shapes)}",
            fix="train it without them in `modules_to_save`",
        )
    values = {name: saved[name] if name in saved else value(name) for name in head.shapes}
    unknown = [name for name, tensor in values.items() if tensor is None]
    if unknown:
        modules = dict.fromkeys(name.removeprefix(f"{head.prefix}.").split(".")[0] for name in unknown)
        raise AdapterError(
            f"lacks tensors of the head of `{head.name}`, which neither the adapter nor the base has",
            where=where,
            found=quoted(unknown),
            expected=quoted(head.shapes),
            fix="pass the folder of the base that it was trained on, if its weights have them; otherwise they were "
            f"random in training: train it with {quoted(modules)} in `modules_to_save`, too. "
            + argument("without_head", True)
            + " imports it without the head",
        )
    known = {name: tensor for name, tensor in values.items() if tensor is not None}
    wrong = {name: tensor.shape for name, tensor in known.items() if tensor.shape != head.shapes[name]}
    if wrong:
        raise TensorError(
            f"has a head whose shapes do not match `{head.name}` on this base",
            where=where,
            found="; ".join(f"`{name}` {list(shape)}, not {list(head.shapes[name])}" for name, shape in wrong.items()),
            fix="pass the base that the adapter was trained on",
        )
    return known

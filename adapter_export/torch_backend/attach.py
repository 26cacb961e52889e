"""Attach an adapter to a base: a module that computes both, in which only the adapter is trainable."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from adapter_export.errors import AdapterError, BaseMismatchError, BaseModelError
from adapter_export.format.adapter_files import write_adapter
from adapter_export.format.axes import masks_of
from adapter_export.format.manifest import token_lengths
from adapter_export.graph.adapter import HEAD, Adapter, Head, refuse_prefixes
from adapter_export.graph.compose.attention import temperature_of
from adapter_export.graph.tasks import Task
from adapter_export.numerics.evaluate_adapter import check_fit
from adapter_export.numerics.padding_trial import padding_trial
from adapter_export.numerics.runner import head_output
from adapter_export.sites.discover import discover
from adapter_export.sites.site import SiteMap
from adapter_export.tables import Described
from adapter_export.torch_backend.base.torch_base import TorchBase
from adapter_export.torch_backend.splice import splice
from adapter_export.torch_backend.torch_lowering import GraphLayer
from adapter_export.words import argument, quoted

_STD = 0.2
"""Standard deviation of random weights: large enough that every part of an adapter has an effect."""


@dataclass(frozen=True)
class SiteCall:
    """Inputs of one graph in one forward pass, by name, and its result."""

    read: Mapping[str, Tensor]
    result: Tensor


def attach(
    base: TorchBase,
    adapter: Adapter | None,
    *,
    sites: SiteMap | None = None,
    allow_mismatch: bool = False,
    learned: Collection[str] | None = None,
) -> AdaptedModel:
    """Attach an adapter, if any, to a base, which is not modified and shares its weights.

    `sites` are detected by default; `learned` names the tensors to train, such as those of a fusion with frozen
    members;
    default: all.

    Raises:
        BaseMismatchError: the adapter was trained on another base.
        AdapterError: the base lacks a site of the adapter or an input of its graph there, or has another width.
        NoSitesError: the base has no sites.
    """
    sites = discover(base.flow) if sites is None else sites
    if adapter is not None:
        if adapter.base != base.fingerprint and not allow_mismatch:
            raise BaseMismatchError(adapter.name, found=adapter.base, expected=base.fingerprint)
        check_fit([adapter], sites)
        refuse_prefixes([adapter], "attached: they are a past of the model's cache")
    return AdaptedModel(base, adapter, sites, learned)


class AttachedAdapter(Described, nn.Module):
    """Graphs of an adapter as layers of a model, with their tensors as parameters.

    As a context manager, it detaches the adapter when the block ends. `adapter` is the attached adapter, or `None` for
    the base without adapters; `to_adapter` returns it with the current weights. `learned` defaults to all tensors.

    Raises:
        AdapterError: there is no such tensor to train.
    """

    def described(self) -> Mapping[str, object]:
        """Return the facts for `repr` and notebooks."""
        name = None if self.adapter is None else self.adapter.name
        return {"adapter": name, "trainable_parameters": sum(one.numel() for one in self.parameters())}

    def __init__(
        self, base: TorchBase, adapter: Adapter | None, sites: SiteMap, learned: Collection[str] | None = None
    ) -> None:
        super().__init__()
        self.base = base
        self.adapter = adapter
        self.sites = sites
        self._layers: dict[str, GraphLayer] = {}
        if adapter is None:
            return
        unknown = sorted(set(learned or ()) - set(adapter.weights))
        if unknown:
            raise AdapterError("the adapter does not have the tensors to train", found=", ".join(unknown))
        norms = {site.name: site.norm for site in sites}
        tensors = {
            # a copy, because training changes it in place
            name: nn.Parameter(torch.from_numpy(array.copy()), requires_grad=learned is None or name in learned)
            for name, array in adapter.weights.items()
        }
        for owner, graph, _ in adapter.components():  # shared tensors are one parameter
            owned = {name: tensors[tensor] for name, tensor in adapter.tensor_names(owner).items()}
            self._layers[owner] = GraphLayer(owner, graph, owned, norms.get(owner))

    def __enter__(self) -> Self:
        """Return the attached adapter."""
        return self

    def __exit__(self, *_: object) -> None:
        """Detach the adapter."""
        self.detach()

    def detach(self) -> None:
        """Remove the adapter from a user's module; a base is never modified."""

    @property
    def head_name(self) -> str | None:
        """Name of the head's result among the outputs, from `head_output`; `None` without a head."""
        head = None if self.adapter is None else self.adapter.head
        return None if head is None else head_output([record.name for record in self.base.outputs], head.output)

    @property
    def task(self) -> Task:
        """Task of the head; `AdapterError` if there is no head, or its task is unknown."""
        task = self._head().task
        if task is None:
            raise AdapterError("the adapter's head has no task", fix="set the head's `Task`")
        return task

    def _head(self) -> Head:
        if self.adapter is None or self.adapter.head is None:
            raise AdapterError("the adapter has no head", fix="attach an adapter with a head")
        return self.adapter.head

    @contextmanager
    def observed(self) -> Iterator[dict[str, SiteCall]]:
        """Record the inputs and results of each site's graph and of the head in the block, by site or `head`."""
        calls: dict[str, SiteCall] = {}

        def keep(layer: nn.Module, values: tuple[Tensor, ...], result: Tensor) -> None:
            assert isinstance(layer, GraphLayer)
            read = values[: len(layer.graph.inputs)]  # followed by tensors of the base
            calls[layer.owner] = SiteCall(dict(zip(layer.graph.inputs, read, strict=True)), result)

        handles = [layer.register_forward_hook(keep) for layer in self._layers.values()]
        try:
            yield calls
        finally:
            for handle in handles:
                handle.remove()

    @property
    def owned(self) -> Mapping[str, GraphLayer]:
        """Layers by site or `head`, in order of creation."""
        return self._layers

    def tensors(self) -> dict[str, nn.Parameter]:
        """Tensors of the adapter by their names in its file, such as `<site>.<parameter>`."""
        if self.adapter is None:
            return {}
        names = {owner: self.adapter.tensor_names(owner) for owner in self._layers}
        return {
            names[owner][name]: tensor
            for owner, layer in self._layers.items()
            for name, tensor in layer.named_tensors().items()
        }

    def learned(self) -> dict[str, nn.Parameter]:
        """Return the trainable tensors."""
        return {name: tensor for name, tensor in self.tensors().items() if tensor.requires_grad}

    def cool(self, decay: float) -> None:
        """Set the temperature of a fusion to the initial one times `1 - decay`, at least 1."""
        for owner, graph, _ in () if self.adapter is None else self.adapter.components():
            first = temperature_of(graph)
            # `min`, because an initial temperature below 1 does not rise
            self._layers[owner].set_temperature(min(first, max(1.0, first * (1 - decay))))

    def leave_out(self, sites: Collection[str]) -> None:
        """Disable the adapter at these sites and enable it at all others; AdapterError if that is impossible."""
        for owner, layer in self._layers.items():
            layer.idle = owner in sites
            if layer.idle and layer.graph.replaces not in layer.graph.inputs:
                raise AdapterError(
                    "cannot be disabled at a site, because it does not read the value it replaces", where=f"`{owner}`"
                )

    def to_adapter(self, *, training: Mapping[str, Any] | None = None) -> Adapter:
        """Return the adapter with the current weights; `training` replaces its training record.

        Raises:
            AdapterError: no adapter is attached.
            TensorError: a weight is NaN or Inf.
        """
        if self.adapter is None:
            raise AdapterError("no adapter is attached", fix="attach an adapter first")
        weights = {name: tensor.detach().float().cpu().numpy().copy() for name, tensor in self.tensors().items()}
        graphs = {place.graph: self._layers[site].graph for site, place in self.adapter.placements.items()}
        record = self.adapter.training if training is None else training
        return replace(self.adapter, graphs=graphs, weights=weights, training=record)

    def save(
        self,
        folder: Path | str,
        *,
        name: str | None = None,
        training: Mapping[str, Any] | None = None,
        force: bool = False,
    ) -> None:
        """Write the adapter with the current weights into a folder.

        `name` defaults to the folder's name, and `training`, any JSON object, to the adapter's training record; `force`
        replaces an existing folder.

        Raises:
            AdapterError, TensorError: as for `to_adapter`.
            OutputExistsError, WriteError: as for `write_adapter`.
        """
        adapter = replace(self.to_adapter(training=training), name=name or Path(folder).resolve().name)
        write_adapter(adapter, Path(folder), force=force)

    def _mask(self) -> str | None:
        """Input that marks real tokens, if any; raises if several could be, because a head must not guess."""
        if HEAD not in self._layers or "mask" not in self._layers[HEAD].graph.inputs:
            return None
        return self.mask

    @cached_property
    def mask(self) -> str | None:
        """Input that marks real tokens; `None` without one. Several candidates raise a `BaseModelError`."""
        masks = masks_of(self.base.inputs, self.base.axes(self.sites.final)[1])
        if len(masks) > 1:
            raise BaseModelError(
                "has several inputs that could be the attention mask",
                found=quoted(masks),
                expected="one integer or bool input [batch, tokens] that is not used as ids",
                fix="capture the base with only one of them",
            )
        return masks[0] if masks else None


class AdaptedModel(AttachedAdapter):
    """A base with at most one adapter, whose tensors and the head's are the only parameters that may have gradients.

    The base's weights belong to `base`, shared and frozen: adapted models of one base have them in memory once. It
    starts in `eval` mode; `train()` turns on the adapter's dropout and changes nothing in the base. `body` is the
    graph: it takes the inputs in the base's order, and returns the outputs in the order of `forward`, then the values
    of the base's graph in `seen`, by name, then the final hidden state.
    """

    accepts_loss_kwargs = False
    """Flag for the `Trainer` of transformers: `forward` takes only the inputs of the base."""

    def __init__(
        self,
        base: TorchBase,
        adapter: Adapter | None,
        sites: SiteMap,
        learned: Collection[str] | None = None,
        seen: Sequence[str] = (),
    ) -> None:
        super().__init__(base, adapter, sites, learned)
        self.body = splice(base, self._mask(), sites, self._layers, seen)
        self._seen = len(seen) + 1
        self.eval()

    @cached_property
    def widest(self) -> int:
        """Numbers per token of the widest output of the base, such as the size of the vocabulary."""
        shapes = [record.axes[2:] for record in self.base.outputs if len(record.axes) > 2]
        return max((math.prod(axis for axis in shape if isinstance(axis, int)) for shape in shapes), default=1)

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Compute every output of the base by name and, with a head, the result of its task.

        Raises RequestError if an input is missing or unknown.
        """
        outputs = self._values(inputs)[: -self._seen]
        names = [*(record.name for record in self.base.outputs), *([] if self.head_name is None else [self.head_name])]
        return dict(zip(names, outputs, strict=True))

    def head(self, **inputs: Tensor) -> Tensor:
        """Compute the head's result, in the shape of its task; AdapterError without a head."""
        self._head()
        return self(**inputs)[self.head_name]  # type: ignore[no-any-return]

    def result(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Compute the input of a loss: the head's result, or without a head the base's logits of the next token.

        Raises:
            BaseModelError: there is no head, and the base has no such logits.
        """
        if self.head_name is not None:
            return self.head(**inputs)
        found: Tensor = self(**inputs)[self._next_token]
        return found

    @cached_property
    def _next_token(self) -> str:
        """Output with a logit for every vocabulary entry at every position, [batch, tokens, vocabulary]."""
        sizes = {record.limit for record in self.base.inputs if record.role == "ids"}
        kept = {record.next for record in self.base.inputs}
        named = [record for record in self.base.outputs if len(record.axes) == 3 and record.name not in kept]
        candidates = [record.name for record in named if record.axes[-1] in sizes or record.name == "logits"]
        if len(candidates) != 1:
            raise BaseModelError(
                "has no output with the logits of the next token",
                found=", ".join(f"`{record.name}` {list(record.axes)}" for record in self.base.outputs[:5]),
                expected="one output [batch, tokens, vocabulary]",
                fix="capture the causal language model with its head: without " + argument("bare", True),
            )
        return candidates[0]

    def on(self, device: torch.device) -> Self:
        """Move the model, including devices named in its graph; the base is not moved."""
        for node in self.body.graph.nodes:
            if "device" in node.kwargs:
                node.update_kwarg("device", device)
            elif node.target is torch.ops.aten.to.device:
                node.update_arg(1, device)
        self.body.recompile()
        return self.to(device)

    @cached_property
    def pads(self) -> bool:
        """True if rows may be padded: padding after the tokens does not change results, for any adapter weights.

        Tested with random weights in the adapter and its head, by the rule of `build`.
        """
        base = self.base
        trial = padding_trial(base.inputs, base.outputs, base.lengths)
        if trial is None or not (base.pads or token_lengths(base.inputs, base.lengths).unbroken):
            return False
        outputs: list[dict[str, np.ndarray]] = []
        with self.with_random_weights(), torch.inference_mode():
            for row in trial.runs:
                inputs = self.placed({name: torch.from_numpy(array) for name, array in row.items()})
                # the rounding of half precision would look like an effect of padding
                with torch.autocast(next(iter(inputs.values())).device.type, enabled=False):
                    outputs.append({name: value.cpu().numpy() for name, value in self(**inputs).items()})
        return not trial.changes(outputs, outputs[0].keys())

    @contextmanager
    def with_random_weights(self) -> Iterator[None]:
        """Use random weights in the adapter and its head, enable all layers and disable dropout in the block."""
        generator, tensors, layers = torch.Generator().manual_seed(0), self.tensors().values(), self._layers.values()
        before, idle = [tensor.detach().clone() for tensor in tensors], [layer.idle for layer in layers]
        was_training = self.training
        for layer in layers:
            layer.idle = False
        self.eval()
        try:
            with torch.no_grad():
                for tensor in tensors:
                    tensor.copy_(_STD * torch.randn(tensor.shape, generator=generator))
            yield
        finally:
            with torch.no_grad():
                for tensor, own in zip(tensors, before, strict=True):
                    tensor.copy_(own)
            for layer, was_idle in zip(layers, idle, strict=True):
                layer.idle = was_idle
            self.train(was_training)

    def placed(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the inputs on the device of the model's weights."""
        device = next((tensor.device for tensor in self.parameters()), None)
        return {name: value.to(device) for name, value in inputs.items()}

    def hidden(self, **inputs: Tensor) -> Tensor:
        """Compute the final hidden state, [batch, tokens, d], which is the input of a head."""
        return self._values(inputs)[-1]

    def seen(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Compute the head's result, and the `seen` values with the final hidden state, in one pass."""
        self._head()
        values = self._values(inputs)
        return values[-self._seen - 1], values[-self._seen :]

    def _values(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        values: tuple[Tensor, ...] = self.body(*self.base.ordered(inputs))
        return values

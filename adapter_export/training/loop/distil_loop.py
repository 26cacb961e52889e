"""Distillation: train all weights of a base with a head on labels and on an adapted model, the teacher."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adapter_export.format.adapter_files import adapter_bytes
from adapter_export.graph.adapter import Adapter
from adapter_export.sites.site import SiteMap
from adapter_export.torch_backend.attach import AdaptedModel
from adapter_export.torch_backend.base.derive import with_weights
from adapter_export.torch_backend.base.torch_base import TorchBase
from adapter_export.training.loop.data import Examples, Rows, in_order
from adapter_export.training.loop.settings import DistillationLoss
from adapter_export.training.objectives import OBJECTIVES


class Student(AdaptedModel):
    """A copy of a base with a head, in which all weights are trained."""

    def __init__(self, base: TorchBase, head: Adapter, sites: SiteMap, seen: Sequence[str] = ()) -> None:
        super().__init__(base, head, sites, seen=seen)
        heads = {id(tensor) for tensor in self.tensors().values()}
        read = {str(node.target) for node in self.body.graph.find_nodes(op="get_attr") if node.users}
        self._weights = {
            name: tensor
            for name, tensor in self.body.named_parameters()
            if name in read and id(tensor) not in heads and tensor.is_floating_point()
        }
        for tensor in self._weights.values():
            tensor.data = tensor.data.clone()
            tensor.requires_grad_()

    def learned(self) -> dict[str, nn.Parameter]:
        """Return the head's tensors, and those of the base with the prefix `base.`."""
        return {**super().learned(), **{f"base.{name}": tensor for name, tensor in self._weights.items()}}

    def weights(self) -> dict[str, Tensor]:
        """Return copies of the base's trained tensors on the CPU, by their names in its program."""
        return {name: tensor.detach().cpu().clone() for name, tensor in self._weights.items()}

    def to_base(self, training: Mapping[str, Any]) -> TorchBase:
        """Return the base with the current weights and the head, which contains the training record."""
        made = with_weights(self.base, self.weights())
        head = replace(self.to_adapter(training=training), base=made.fingerprint)
        return replace(made, base_head=head)


class Teacher:
    """A frozen adapted model, and the loss of a student that learns from it."""

    def __init__(self, model: AdaptedModel, loss: DistillationLoss) -> None:
        self.model, self.loss = model.requires_grad_(False).eval(), loss

    def facts(self) -> dict[str, Any]:
        """Return facts for the identity of a run: an interrupted run resumes only if they are equal."""
        digest = hashlib.sha256(self.model.base.fingerprint.encode())
        for part in adapter_bytes(self.model.to_adapter()):
            digest.update(part)
        return {"teacher": digest.hexdigest(), "distillation loss": asdict(self.loss)}

    def distance(self, student: AdaptedModel, examples: Examples, rows: Rows) -> tuple[Tensor, Tensor]:
        """Return the student's results for some rows, in float32, and its mean weighted distance from the teacher."""
        calls, loss = list(examples.calls(rows, pads=student.pads and self.model.pads)), self.loss
        results, known, hidden = [], [], []
        for call in calls:
            inputs = student.placed(call.inputs)
            own, states = student.seen(inputs)
            with torch.no_grad():
                wanted, theirs = self.model.seen(inputs)
            results.append(own.float())
            known.append(wanted.float())
            mask = None if student.mask is None else inputs[student.mask].float()
            of_call = [hidden_loss(*pair, mask, loss.match) for pair in zip(states, theirs, strict=True)]
            hidden.append(len(call.places) * torch.stack(of_call).mean())
        found = in_order(results, calls)
        matched, goal = (examples.matched(each, rows)[0] for each in (found, in_order(known, calls)))
        soft = OBJECTIVES[examples.problem].soft_loss(matched, goal, loss.temperature)
        rows_in_calls = sum(len(call.places) for call in calls)
        return found, loss.soft * soft + loss.hidden * torch.stack(hidden).sum() / rows_in_calls


def hidden_loss(found: Tensor, wanted: Tensor, mask: Tensor | None, match: str) -> Tensor:
    """Return the distance of hidden states [rows, tokens, d], averaged over real tokens, then over rows."""
    apart = 1 - F.cosine_similarity(found, wanted, dim=-1) if match == "cosine" else (found - wanted).square().mean(-1)
    counts = torch.ones_like(apart) if mask is None else mask
    return ((apart * counts).sum(1) / counts.sum(1).clamp(min=1)).mean()

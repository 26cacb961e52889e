"""Distillation: a base with a head, all weights of which learn, from labels and from an adapted model, its teacher."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adapter_export.errors import UsageError, argument
from adapter_export.format.adapter_files import adapter_bytes
from adapter_export.graph.adapter import Adapter
from adapter_export.sites.site import SiteMap
from adapter_export.torch_backend.attach import AdaptedModel
from adapter_export.torch_backend.base.derive import with_weights
from adapter_export.torch_backend.base.torch_base import TorchBase
from adapter_export.torch_backend.train.data import Examples, Rows, in_order
from adapter_export.torch_backend.train.objectives import OBJECTIVES


@dataclass(frozen=True)
class Lesson:
    """How much each of three losses counts, and how the first two are taken.

    Attributes:
        soft: of the teacher's results at a temperature.
        hidden: of its hidden states.
        hard: of labels.
        temperature: that logits are divided by.
        match: how hidden states are compared: 1 − cosine, or the mean of squared differences.
    """

    soft: float = 1.0
    hidden: float = 1.0
    hard: float = 1.0
    temperature: float = 2.0
    match: Literal["cosine", "mse"] = "cosine"

    def __post_init__(self) -> None:
        weights = {name: getattr(self, name) for name in ("soft", "hidden", "hard")}
        for name, weight in weights.items():
            if not 0 <= weight < float("inf"):
                raise UsageError("a loss has a weight that it cannot have", where=argument(name), found=weight)
        if not any(weights.values()):
            raise UsageError("nothing is to be learnt", found="three weights of 0", expected="one above 0")
        if not 0 < self.temperature < float("inf"):
            raise UsageError("the temperature is a number above 0", found=self.temperature)


class Student(AdaptedModel):
    """A base with a head, in which all weights learn; those of the base that is given stay as they are."""

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
        """The head's tensors, and those of the base by `base.` and their names there."""
        return {**super().learned(), **{f"base.{name}": tensor for name, tensor in self._weights.items()}}

    def weights(self) -> dict[str, Tensor]:
        """Copies of the base's tensors that learn, on the processor, by their names in its program."""
        return {name: tensor.detach().cpu().clone() for name, tensor in self._weights.items()}

    def to_base(self, training: Mapping[str, Any]) -> TorchBase:
        """The base with the present weights and the head as its own, which holds the training record."""
        made = with_weights(self.base, self.weights())
        head = replace(self.to_adapter(training=training), base=made.fingerprint)
        return replace(made, base_head=head)


class Teacher:
    """An adapted model, frozen, and what a student learns from it."""

    def __init__(self, model: AdaptedModel, lesson: Lesson) -> None:
        self.model, self.lesson = model.requires_grad_(False).eval(), lesson

    def facts(self) -> dict[str, Any]:
        """What makes it another one: two runs are the same where they are equal."""
        digest = hashlib.sha256(self.model.base.fingerprint.encode())
        for part in adapter_bytes(self.model.to_adapter()):
            digest.update(part)
        return {"teacher": digest.hexdigest(), "lesson": asdict(self.lesson)}

    def apart(self, student: AdaptedModel, examples: Examples, rows: Rows) -> tuple[Tensor, Tensor]:
        """Return the student's results for some rows, in float32, and how far it is from the teacher on the average."""
        calls, lesson = list(examples.calls(rows, pads=student.pads and self.model.pads)), self.lesson
        results, known, hidden = [], [], []
        for call in calls:
            inputs = student.placed(call.inputs)
            own, states = student.seen(inputs)
            with torch.no_grad():
                wanted, theirs = self.model.seen(inputs)
            results.append(own.float())
            known.append(wanted.float())
            mask = None if student.mask is None else inputs[student.mask].float()
            of_call = [hidden_loss(*pair, mask, lesson.match) for pair in zip(states, theirs, strict=True)]
            hidden.append(len(call.places) * torch.stack(of_call).mean())
        found = in_order(results, calls)
        matched, goal = (examples.matched(each, rows)[0] for each in (found, in_order(known, calls)))
        soft = OBJECTIVES[examples.problem].soft_loss(matched, goal, lesson.temperature)
        rows_in_calls = sum(len(call.places) for call in calls)
        return found, lesson.soft * soft + lesson.hidden * torch.stack(hidden).sum() / rows_in_calls


def hidden_loss(found: Tensor, wanted: Tensor, mask: Tensor | None, match: str) -> Tensor:
    """How far hidden states [rows, tokens, d] are apart: the mean over the real tokens of a row, then over rows."""
    apart = 1 - F.cosine_similarity(found, wanted, dim=-1) if match == "cosine" else (found - wanted).square().mean(-1)
    counts = torch.ones_like(apart) if mask is None else mask
    return ((apart * counts).sum(1) / counts.sum(1).clamp(min=1)).mean()

"""Baseline of a training: the frozen base with a linear classifier, or with its vectors as they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional as F

from adapter_export.bases.base import Base
from adapter_export.graph.heads import HeadOptions, make_head
from adapter_export.graph.tasks import TASK_TYPES, Task
from adapter_export.graph.tasks.metrics import Judged
from adapter_export.torch_backend.attach import attach
from adapter_export.training.loop.init_adapter import head_alone
from adapter_export.training.loop.measure import judged, measure
from adapter_export.training.loop.settings import LoopSpec
from adapter_export.training.loop.task_files import TextTask
from adapter_export.training.loop.train_loop import answer_examples
from adapter_export.training.specs import FROZEN, LINEAR

_MOST_ROWS = 2000
"""Training rows that the classifier learns from: more change its score by less than its interval."""

_PENALTY = 1.0
"""Coefficient of half the squared norm of the weights, beside the summed loss: scikit-learn's `C=1`."""

_ITERATIONS = 500


@dataclass(frozen=True)
class Baseline:
    """Scores without an adapter.

    Attributes:
        name: `LINEAR` or `FROZEN`.
        judged: scored rows by split: `validation`, and `test` if there is one.
    """

    name: str
    judged: dict[str, Judged]

    def document(self) -> dict[str, Any]:
        """Return the scores as JSON."""
        return {"name": self.name, **{part: measure(scored) for part, scored in self.judged.items()}}


def score_baseline(
    base: Base, task: Task, rows: TextTask, pooling: str, loop: LoopSpec, accelerator: Accelerator
) -> Baseline | None:
    """Score the rows without an adapter; `None` for tasks without such a baseline.

    Args:
        base: the base.
        task: task of the new head.
        rows: the rows of the job.
        pooling: pooling of the hidden states.
        loop: settings of the loop.
        accelerator: of the run.
    """
    kind = TASK_TYPES[rows.problem]
    linear = kind.has_labels and kind.pools and not kind.has_several
    if not (linear or kind.is_vector):
        return None
    sites = base.sites.complete
    head = make_head(Task("embedding"), width=sites.width, options=HeadOptions(pooling))
    vectors = head_alone(head, "frozen", base.torch.fingerprint)
    model = attach(base.torch, vectors, sites=sites).on(accelerator.device)
    parts = {name: part for name, part in rows.parts.items() if name != "training"}
    answered = {name: answer_examples(model, part, loop, accelerator) for name, part in parts.items()}
    classifier: Linear | None = None
    if linear:
        drawn = np.random.default_rng(loop.seed).permutation(len(rows.training.texts))[:_MOST_ROWS]
        _, features, targets = answer_examples(model, rows.training.only(drawn), loop, accelerator)
        classifier = Linear.fitted(features, targets, classes=len(rows.labels))
    scored = {}
    for name, (order, features, targets) in answered.items():
        results = features if classifier is None else classifier(features)
        scored[name] = judged(task, results, targets, parts[name].only(order))
    return Baseline(FROZEN if classifier is None else LINEAR, scored)


@dataclass(frozen=True)
class Linear:
    """A logistic regression with an L2 penalty.

    Attributes:
        weight: [features, classes].
        bias: [classes].
    """

    weight: Tensor
    bias: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Return logits [rows, classes]."""
        return features.double() @ self.weight + self.bias

    @classmethod
    def fitted(cls, features: Tensor, targets: Tensor, *, classes: int) -> Linear:
        """Fit classes [rows], or sets of labels [rows, classes], by L-BFGS: the minimum that scikit-learn finds."""
        features = features.double()
        # in float64, so that L-BFGS converges to the minimum
        weight = torch.zeros(features.shape[1], classes, dtype=torch.float64, requires_grad=True)
        # not in the penalty, as in scikit-learn
        bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS(
            [weight, bias], max_iter=_ITERATIONS, line_search_fn="strong_wolfe", tolerance_change=1e-9
        )

        def loss() -> Tensor:
            optimizer.zero_grad()
            logits = features @ weight + bias
            if targets.ndim == 1:
                total = F.cross_entropy(logits, targets, reduction="sum")
            else:
                total = F.binary_cross_entropy_with_logits(logits, targets.double(), reduction="sum")
            # the mean, whose gradients do not grow with the rows
            penalized = (total + _PENALTY / 2 * weight.square().sum()) / len(features)
            penalized.backward()  # type: ignore[no-untyped-call]
            return penalized

        with torch.enable_grad():
            optimizer.step(loss)  # type: ignore[no-untyped-call]
        return cls(weight.detach(), bias.detach())

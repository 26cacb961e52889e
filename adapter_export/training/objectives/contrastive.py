"""Base class of objectives that compare the vectors of a batch with each other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from adapter_export.training.objectives.objective import Objective

if TYPE_CHECKING:
    from adapter_export.graph.tasks import Task
    from adapter_export.training.loop.settings import LoopSpec

_CHUNK = 1024
"""Number of rows that are compared with all others at a time."""


@dataclass(frozen=True)
class Contrastive(Objective):
    """Loss of cosines between the vectors of a batch, summed over widths (Kusupati et al. 2022, eq. 1).

    Attributes:
        temperature: divisor of the cosines.
        widths: widths besides the full one.
    """

    temperature: float
    widths: tuple[int, ...] = ()
    compares = True

    def of(self, settings: LoopSpec, task: Task | None) -> Objective:
        """Return the objective with the temperature of the settings, if any, and the widths of the task."""
        temperature = self.temperature if settings.temperature is None else settings.temperature
        return replace(self, temperature=temperature, widths=() if task is None else task.widths)

    def soft_loss(self, found: Tensor, wanted: Tensor, temperature: float) -> Tensor:  # noqa: ARG002
        """Return the mean of 1 − cosine."""
        return (1 - F.cosine_similarity(found, wanted, dim=-1)).mean()

    def parts(self, vectors: Tensor, others: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield, for each width and some rows at a time, the rows and their cosines with the others, divided.

        Args:
            vectors: [rows, width].
            others: [count, width]; the cosines are [some rows, count].
        """
        for width in (vectors.shape[-1], *self.widths):
            unit, known = (F.normalize(one[:, :width], dim=-1) for one in (vectors, others))
            for start in range(0, len(unit), _CHUNK):
                rows = torch.arange(start, min(start + _CHUNK, len(unit)), device=unit.device)
                yield rows, unit[rows] @ known.T / self.temperature

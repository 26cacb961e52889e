"""Loss of the part of a text that answers a question."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from adapter_export.graph.tasks.answers import Span
from adapter_export.graph.tasks.task_type import Measured
from adapter_export.graph.tasks.types.span import GivenSpan
from adapter_export.training.objectives.objective import IGNORED, Loss, Objective

if TYPE_CHECKING:
    import tokenizers

    from adapter_export.graph.tasks import Task
    from adapter_export.training.loop.data import TextExamples


class SpanObjective(Objective):
    """Cross-entropy of start and end over the tokens of the context (Devlin et al. 2019, §4.2)."""

    loss_name = "cross-entropy of start and end (nats)"
    decides = "f1"

    def loss(self, results: Tensor, targets: Tensor, weights: Tensor | None) -> Loss:  # noqa: ARG002
        """Return the loss.

        Args:
            results: logits [rows, tokens, 2], −∞ at tokens outside the context.
            targets: first and last token of each answer [rows, 2], `IGNORED` if it was truncated.
            weights: unused.
        """
        sums = (
            F.cross_entropy(results[..., end], targets[:, end], reduction="sum", ignore_index=IGNORED)
            for end in range(2)
        )
        return sum(sums, start=results.new_zeros(())), (2 * (targets[:, 0] != IGNORED).sum()).to(results)

    def matched(self, examples: TextExamples, results: Tensor, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return logits [rows, longest, 2] and the first and last token of each answer [rows, 2]."""
        encodings = examples.encodings(rows)
        context = torch.tensor([[part == 1 for part in one.sequence_ids] for one in encodings])
        own = results[:, : context.shape[1]]  # a base may require more padding than the longest row
        masked = own.masked_fill(~context.to(results.device)[..., None], -torch.inf)
        more = int(examples.lengths.max()) - masked.shape[1]
        places = [
            _token_span(one, examples.answers[row][0]) or (IGNORED, IGNORED)
            for one, row in zip(encodings, rows, strict=True)
        ]
        return F.pad(masked, (0, 0, 0, more), value=-torch.inf), torch.tensor(places).to(results.device)

    def measured(self, task: Task, results: np.ndarray, targets: np.ndarray, examples: Any) -> Measured:  # noqa: ARG002
        """Return the part of each context that answers its question."""
        texts = []
        for row, of_row in enumerate(results):
            (encoding,) = examples.encodings(np.array([row]))
            context = np.array([part == 1 for part in encoding.sequence_ids])
            found = task.answer(of_row[: len(context)], context, context)
            assert isinstance(found, Span)
            begin, end = encoding.offsets[found.first_token][0], encoding.offsets[found.last_token][1]
            texts.append(examples.texts[row].second[begin:end])
        return Measured(texts, examples.answers)

    def lost(self, encoding: Any, answer: Any) -> bool:
        """Return whether the first answer of a row was truncated."""
        return _token_span(encoding, answer[0]) is None


def _token_span(encoding: tokenizers.Encoding, answer: GivenSpan) -> tuple[int, int] | None:
    """Return the first and last token of an answer in the second text; `None` if they were truncated."""
    begin = answer.start + len(answer.text) - len(answer.text.lstrip())
    end = answer.start + len(answer.text.rstrip()) - 1
    first, last = (encoding.char_to_token(place, 1) for place in (begin, end))
    return None if first is None or last is None else (first, last)


OBJECTIVE = SpanObjective()

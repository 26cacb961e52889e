"""The next token of a text, predicted by the base itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from adapter_export.graph.tasks.task_type import TaskFacts

if TYPE_CHECKING:
    from adapter_export.graph.tasks.metrics import Metric


class CausalLm(TaskFacts):
    """Language modelling, without a head and without a `Task`."""

    name = "causal_lm"
    has_head = False
    pipeline = "text-generation"

    def metrics(self, labels: Sequence[str]) -> tuple[Metric, ...]:  # noqa: ARG002
        """Return perplexity and token accuracy."""
        from adapter_export.graph.tasks.metrics import TOKENS

        return TOKENS


TYPE = CausalLm()

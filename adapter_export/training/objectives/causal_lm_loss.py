"""Loss of the next token."""

from __future__ import annotations

from torch import Tensor

from adapter_export.training.objectives.objective import Loss, Objective


class CausalLmObjective(Objective):
    """Cross-entropy of each target token."""

    loss_name = "cross-entropy per token (nats)"

    def loss(self, results: Tensor, targets: Tensor, weights: Tensor | None) -> Loss:  # noqa: ARG002
        """Return the sum of losses that `LanguageExamples.matched` has computed: column 0 of [tokens, 2]."""
        return results[:, 0].sum(), results.new_tensor(len(results))


OBJECTIVE = CausalLmObjective()

"""The loss of the next token."""

from __future__ import annotations

from torch import Tensor

from adapter_export.torch_backend.train.objectives.objective import Loss, Objective


class CausalLmObjective(Objective):
    """Cross-entropy of each token that is learnt."""

    loss_name = "cross-entropy of a token (nats)"

    def loss(self, results: Tensor, targets: Tensor, weights: Tensor | None) -> Loss:  # noqa: ARG002
        """Return the sum of losses that `LanguageExamples.matched` has computed: [tokens, 2], the first of both."""
        return results[:, 0].sum(), results.new_tensor(len(results))


OBJECTIVE = CausalLmObjective()

"""Bundles in sentence-transformers: `SentenceTransformer(modules=[…])` and `CrossEncoder(modules=[…])`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import torch
from sentence_transformers import CrossEncoder
from sentence_transformers.base.modules import InputModule

from adapter_export.errors import UsageError
from adapter_export.plugins.integrations.bundle_answers import Embedder, Scorer

Answers = TypeVar("Answers", Embedder, Scorer)


class _BundleModule(InputModule, Generic[Answers]):
    """Input module that passes rows through, since the engine tokenizes them.

    `adapter=` of `encode` and `predict` sets the adapter of one call.
    """

    forward_kwargs = {"adapter"}  # noqa: RUF012 — as the library declares it
    _answers: Answers

    @property
    def adapter(self) -> str:
        """The adapter of later calls; setting it needs no new session."""
        return self._answers.adapter

    @adapter.setter
    def adapter(self, name: str) -> None:
        self._answers.adapter = name

    @property
    def max_seq_length(self) -> int:
        """Maximum number of tokens in a row."""
        return self._answers.max_tokens

    def preprocess(
        self,
        inputs: Sequence[Any],
        prompt: str | None = None,
        task: str | None = None,
        **kwargs: Any,  # noqa: ARG002 — those of `encode`
    ) -> dict[str, Any]:
        """Return the rows for `forward`, with the prompt, and the side by `encode_query` or `encode_document`."""
        return {"rows": list(inputs), "prompt": prompt, "side": task}

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:  # noqa: ARG002 — those of the library
        """Refuse to save, since a bundle is already a folder.

        Raises:
            UsageError: always.
        """
        raise UsageError("a bundle is not saved as a model", fix="copy its folder")


class BundleEmbedder(_BundleModule[Embedder]):
    """The module of a `SentenceTransformer`.

    Args:
        *args: as of `Embedder`: the bundle, the adapter.
        **options: as of `Embedder`.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__()
        self._answers = Embedder(*args, **options)

    def forward(self, features: dict[str, Any], adapter: str | None = None) -> dict[str, Any]:
        """Return the vectors as `sentence_embedding`, float32 [rows, width]."""
        vectors = self._answers.vectors(features["rows"], features["prompt"], adapter, side=features["side"])
        return {"sentence_embedding": torch.from_numpy(vectors)}

    def get_embedding_dimension(self) -> int:
        """Return the length of a vector."""
        return self._answers.width()


class BundleReranker(_BundleModule[Scorer]):
    """The module of a `CrossEncoder`; scores have only the activation of the adapter's task.

    Args:
        *args: as of `Scorer`: the bundle, the adapter.
        **options: as of `Scorer`.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__()
        self._answers = Scorer(*args, **options)

    def on_model_ready(self, model: Any) -> None:
        """Disable the library's activation, unless the caller set one."""
        if isinstance(model, CrossEncoder) and model.activation_fn is None:
            model.activation_fn = torch.nn.Identity()

    def forward(self, features: dict[str, Any], adapter: str | None = None) -> dict[str, Any]:
        """Return the scores as `scores`, float32 [rows, 1]."""
        scores = self._answers.scores(features["rows"], features["prompt"], adapter)
        return {"scores": torch.from_numpy(scores).float()[:, None]}

"""Bundles in LlamaIndex: a `BaseEmbedding`."""

from __future__ import annotations

import asyncio
from typing import Any

from llama_index.core.base.embeddings.base import BaseEmbedding
from pydantic import PrivateAttr

from adapter_export.plugins.integrations.bundle_answers import Embedder


class BundleEmbedding(BaseEmbedding):
    """Vectors for LlamaIndex.

    Args:
        bundle: the bundle or its folder.
        adapter: the adapter that answers. Default: the only embedding adapter.
        **fields: fields of `BaseEmbedding`, and the prompts.

    Attributes:
        query_prompt: text before each query, as of `Embedder.vectors`.
        text_prompt: text before each document.
        embedder: computes the vectors; set its `adapter` to change the adapter.
    """

    query_prompt: str = ""
    text_prompt: str = ""
    _embedder: Embedder = PrivateAttr()

    def __init__(self, bundle: Any, adapter: str | None = None, **fields: Any) -> None:
        super().__init__(**fields)
        self._embedder = Embedder(bundle, adapter)

    @property
    def embedder(self) -> Embedder:
        """Computes the vectors."""
        return self._embedder

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        vectors: list[list[float]] = self._embedder.vectors(texts, self.text_prompt, side="document").tolist()
        return vectors

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    def _get_query_embedding(self, query: str) -> list[float]:
        return list(self._embedder.vectors([query], self.query_prompt, side="query")[0].tolist())

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return await asyncio.to_thread(self._get_query_embedding, query)

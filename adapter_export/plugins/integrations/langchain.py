"""Bundles in LangChain: `Embeddings` and a reranker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.embeddings import Embeddings
from pydantic import PrivateAttr

from adapter_export.plugins.integrations.bundle_answers import Embedder, Scorer


class BundleEmbeddings(Embedder, Embeddings):
    """Vectors for LangChain, with the arguments of `Embedder` and prompts for queries and documents.

    Args:
        *args: the bundle, the adapter.
        query_prompt: text before each query, as of `Embedder.vectors`.
        document_prompt: text before each document.
        **options: as of `Embedder`.
    """

    def __init__(self, *args: Any, query_prompt: str = "", document_prompt: str = "", **options: Any) -> None:
        super().__init__(*args, **options)
        self.query_prompt, self.document_prompt = query_prompt, document_prompt

    @property
    def _options(self) -> Mapping[str, Any]:
        return {**super()._options, "query_prompt": self.query_prompt, "document_prompt": self.document_prompt}

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return the vectors of documents."""
        vectors: list[list[float]] = self.vectors(texts, self.document_prompt, side="document").tolist()
        return vectors

    def embed_query(self, text: str) -> list[float]:
        """Return the vector of a query."""
        (vector,) = self.vectors([text], self.query_prompt, side="query").tolist()
        return list(vector)


class BundleReranker(BaseDocumentCompressor):
    """Reranker that adds `relevance_score` to the metadata of documents.

    Args:
        *args: as of `Scorer`: the bundle, the adapter.
        top_n: maximum number of documents to return. Default: all.
        **options: as of `Scorer`.
    """

    top_n: int | None = None
    _scorer: Scorer = PrivateAttr()

    def __init__(self, *args: Any, top_n: int | None = None, **options: Any) -> None:
        super().__init__(top_n=top_n)
        self._scorer = Scorer(*args, **options)

    def compress_documents(self, documents: Sequence[Document], query: str, callbacks: Any = None) -> list[Document]:  # noqa: ARG002
        """Return copies of the most relevant documents, the best first."""
        scores = self._scorer.scores([(query, document.page_content) for document in documents])
        order = sorted(range(len(documents)), key=lambda at: -scores[at])[: self.top_n]
        return [
            documents[at].model_copy(
                update={"metadata": {**documents[at].metadata, "relevance_score": float(scores[at])}}
            )
            for at in order
        ]

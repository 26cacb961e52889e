"""A weight for each vocabulary entry, few of them above 0."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from adapter_export.graph.tasks.answers import Answer, ShownRow, SparseVector
from adapter_export.graph.tasks.task_type import Mask, Measured
from adapter_export.graph.tasks.types.retrieval import AnchorType
from adapter_export.tables import Table

if TYPE_CHECKING:
    from adapter_export.graph.tasks.metrics import Judged
    from adapter_export.graph.tasks.task_record import Task

_SHOWN = 8
"""Entries of a vector in tables."""


class SparseEmbedding(AnchorType):
    """A vector as wide as the vocabulary, compared by the dot product (Formal et al. 2021, "SPLADE v2", §3)."""

    name = "sparse_embedding"
    output = "embedding"
    activations = ("identity",)
    embeds = reads_vocabulary = has_fixed_head = True
    has_golden_texts = has_golden_batches = False
    method = "embed_sparse"
    pipeline = "feature-extraction"

    def answer(self, task: Task, result: np.ndarray, real: Mask, context: Mask | None) -> SparseVector:  # noqa: ARG002
        """Return the weights above 0 of a vector [vocabulary], the largest first."""
        ids = np.flatnonzero(result > 0)
        ids = ids[np.argsort(-result[ids], kind="stable")]
        return SparseVector(ids, result[ids], len(result))

    def mean(self, task: Task, results: Sequence[np.ndarray]) -> np.ndarray:  # noqa: ARG002
        """Return the largest weight of each entry in any window: the head takes the maximum over tokens, too."""
        largest: np.ndarray = np.max(results, axis=0)
        return largest

    def similarity(self, query: Answer, document: Answer) -> float:
        """Return the dot product."""
        assert isinstance(query, SparseVector)
        assert isinstance(document, SparseVector)
        _, ours, theirs = np.intersect1d(query.ids, document.ids, assume_unique=True, return_indices=True)
        return float(query.weights[ours].astype(np.float64) @ document.weights[theirs].astype(np.float64))

    def judge(self, task: Task, rows: Measured) -> Judged:  # noqa: ARG002
        """Judge vectors [rows, texts, vocabulary] by their dot products."""
        from adapter_export.graph.tasks.metrics import judge_retrieval

        return judge_retrieval(rows.results, rows.right, dots)

    def cells(self, row: ShownRow) -> tuple[str, str, str]:
        """Return the entries with the largest weights."""
        answer = _vector(row)
        named = zip(answer.ids[:_SHOWN].tolist(), answer.weights, strict=False)
        rest = ", …" if len(answer.ids) > _SHOWN else ""
        return ", ".join(f"{row.token_text(entry)} {weight:.3g}" for entry, weight in named) + rest, "", ""

    def tables(self, rows: Sequence[ShownRow]) -> Iterator[Table | str]:
        """Yield the number of entries above 0, and those with the largest weights."""
        cells = [(row.name, len(_vector(row).ids), self.cells(row)[0]) for row in rows]
        yield Table(("text", "entries", "largest weights"), cells, numbers="lr")


def dots(queries: Sequence[np.ndarray], documents: Sequence[np.ndarray]) -> npt.NDArray[np.float64]:
    """Return the dot product of each query vector with each document vector, [queries, documents]."""
    from scipy import sparse

    ours, others = (sparse.csr_matrix(np.stack(vectors), dtype=np.float64) for vectors in (queries, documents))
    products: npt.NDArray[np.float64] = (ours @ others.T).toarray()
    return products


def _vector(row: ShownRow) -> SparseVector:
    answer = row.text_answer.answer
    assert isinstance(answer, SparseVector)
    return answer


TYPE = SparseEmbedding()

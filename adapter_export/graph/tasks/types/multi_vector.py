"""A vector for each token, compared by late interaction."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from adapter_export.graph.tasks.answers import Answer, ReadText, ShownRow, TextAnswer, Token, TokenVectors
from adapter_export.graph.tasks.task_type import Mask, Measured
from adapter_export.graph.tasks.types.retrieval import AnchorType
from adapter_export.graph.tasks.types.token import window_tokens
from adapter_export.tables import Table, numbers_cell

if TYPE_CHECKING:
    from adapter_export.graph.tasks.metrics import Judged
    from adapter_export.graph.tasks.task_record import Task

Floats = npt.NDArray[np.float64]


class MultiVector(AnchorType):
    """A vector for each token; texts are compared by MaxSim (Khattab and Zaharia 2020, §3).

    Padding has no vector, and neither have the tokens of a document in the skip list of the task.
    """

    name = "multi_vector"
    output = "token_embeddings"
    activations = ("identity",)
    pools = has_golden_texts = False
    embeds = has_fixed_head = True
    vector_width = 128
    method = "embed_tokens"
    pipeline = "sentence-similarity"

    def answer(self, task: Task, result: np.ndarray, real: Mask, context: Mask | None) -> TokenVectors:  # noqa: ARG002
        """Return the vectors of the real tokens, or of those in `context`, [tokens, width]."""
        return TokenVectors(result[real if context is None else real & context])

    def answer_text(self, read: ReadText, task: Task, results: Sequence[np.ndarray]) -> TextAnswer:
        """Return the vector of each token that counts, from the window in which it is farthest from an edge."""
        tokens, vectors = _counted(read, task, results)
        return TextAnswer(task.answer(vectors), read.cut, read.windows, tuple(tokens))

    def compared(self, read: ReadText, task: Task, results: Sequence[np.ndarray]) -> np.ndarray:
        """Return the vectors of the tokens that count."""
        return _counted(read, task, results)[1]

    def similarity(self, query: Answer, document: Answer) -> float:
        """Return the MaxSim."""
        assert isinstance(query, TokenVectors)
        assert isinstance(document, TokenVectors)
        return float(maxsim([query.vectors], [document.vectors])[0, 0])

    def judge(self, task: Task, rows: Measured) -> Judged:  # noqa: ARG002
        """Judge vectors of the texts of each row, [tokens, width] each, by MaxSim."""
        from adapter_export.graph.tasks.metrics import judge_retrieval

        return judge_retrieval(rows.results, rows.right, maxsim)

    def cells(self, row: ShownRow) -> tuple[str, str, str]:
        """Return the number of vectors and their width."""
        return " × ".join(map(str, _vectors(row).shape)), "", ""

    def tables(self, rows: Sequence[ShownRow]) -> Iterator[Table | str]:
        """Yield the beginning of the vector of each token."""
        for row in rows:
            vectors = _vectors(row)
            names = [token.text for token in row.text_answer.tokens] or [f"token {at}" for at in range(len(vectors))]
            pairs = zip(names, vectors, strict=True)
            yield row.name
            yield Table(("token", "vector"), [(name, numbers_cell(vector.tolist())) for name, vector in pairs])


def maxsim(queries: Sequence[np.ndarray], documents: Sequence[np.ndarray]) -> Floats:
    """Return the score of each query with each document, [queries, documents].

    It is the sum over the query's tokens of the largest dot product with a token of the document (Khattab and Zaharia
    2020, equation 3). A document without tokens has the score 0.
    """
    scores = np.zeros((len(queries), len(documents)))
    places = [at for at, vectors in enumerate(documents) if len(vectors)]
    if not places:
        return scores
    joined = np.concatenate([documents[at] for at in places]).astype(np.float64)
    starts = np.cumsum([0, *(len(documents[at]) for at in places[:-1])])
    for row, query in zip(scores, queries, strict=True):
        row[places] = np.maximum.reduceat(joined @ query.astype(np.float64).T, starts).sum(-1)
    return scores


def _counted(read: ReadText, task: Task, results: Sequence[np.ndarray]) -> tuple[list[Token], np.ndarray]:
    """Return the tokens that have a vector, and their vectors [tokens, width]."""
    tokens, vectors = window_tokens(read, results, special=True)
    skipped = frozenset(() if read.side == "query" else task.skiplist)
    kept = [at for at, token in enumerate(tokens) if token.id not in skipped]
    if not kept:
        return [], results[0][:0]
    return [tokens[at] for at in kept], np.stack([vectors[at] for at in kept])


def _vectors(row: ShownRow) -> np.ndarray:
    answer = row.text_answer.answer
    assert isinstance(answer, TokenVectors)
    return answer.vectors


TYPE = MultiVector()

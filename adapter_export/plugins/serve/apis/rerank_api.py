"""Ranking and classification, for clients of Cohere, Jina, Text Embeddings Inference (TEI) and vLLM.

https://docs.cohere.com/reference/rerank, https://huggingface.github.io/text-embeddings-inference,
https://docs.vllm.ai/en/latest/serving/openai_compatible_server
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from fastapi import FastAPI
from pydantic import Field
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from adapter_export.errors import RequestError
from adapter_export.graph.tasks.answers import LabelSet, Prediction, Score
from adapter_export.plugins.serve.apis.openai_api import PREFIXES, Texts, other_task, tokens_of
from adapter_export.plugins.serve.calls import Call, Strict, TextPair, Words, parse
from adapter_export.plugins.serve.limits import MOST_ROWS
from adapter_export.plugins.serve.route_context import Context
from adapter_export.runtime.answerer import AnsweredRow, LongTexts, Reading


class CohereDocument(Strict):
    """A document to rank.

    Attributes:
        text: the text of the document.
    """

    text: Words


class Rerank(Strict):
    """The body of `POST /rerank`, `/v1/rerank` and `/v2/rerank`: a query, and the texts to rank.

    The texts are either `documents`, as in Cohere and Jina, or `texts`, as in TEI. The response has the format of the
    same library.

    Attributes:
        query: the query.
        model: the name of a model or a route; optional if only the base head has a task.
        documents: texts, or objects with the key `text`.
        top_n: number of results, best first. Default: all.
        return_documents: include the documents in the results.
        texts: the texts, in TEI's format.
        return_text: include the texts in the results.
        raw_scores: return scores before the activation function of the task.
        truncate: truncate long pairs instead of refusing them. Default: true for `documents`, false for `texts`.
    """

    query: Words
    model: str | None = None
    documents: list[Words | CohereDocument] | None = Field(default=None, min_length=1, max_length=MOST_ROWS)
    top_n: int | None = Field(default=None, ge=1)
    return_documents: bool = False
    texts: list[Words] | None = Field(default=None, min_length=1, max_length=MOST_ROWS)
    return_text: bool = False
    raw_scores: bool = False
    truncate: bool | None = None

    def candidates(self) -> list[str]:
        """Return the texts to rank; RequestError unless one of the two keys has them."""
        if (self.documents is None) == (self.texts is None):
            raise RequestError("either `documents` or `texts` must be given", expected="one of them")
        return [text if isinstance(text, str) else text.text for text in self.documents or self.texts or ()]

    @property
    def long(self) -> LongTexts:
        """Treatment of long pairs: Cohere truncates documents, TEI refuses them unless `truncate` is true."""
        cuts = self.texts is None if self.truncate is None else self.truncate
        return "cut" if cuts else "refuse"


class Classify(Strict):
    """The body of `POST /classify`, in vLLM's format.

    Attributes:
        model: the name of a model or a route; optional if only the base head has a task.
        input: a text or a list of texts.
        user: ignored.
    """

    model: str | None = None
    input: Texts
    user: str | None = None


class RerankApi:
    """Routes of ranking and classification."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def add_to(self, app: FastAPI) -> None:
        """Add the routes to an app."""
        for path in ("", *PREFIXES, "/v2"):
            app.add_route(f"{path}/rerank", self.rerank, methods=["POST"])
        app.add_route("/classify", self.classify, methods=["POST"])

    async def rerank(self, request: HttpRequest) -> Response:
        """Return texts by their relevance to a query, the most relevant first."""
        body = parse(Rerank, await self._context.body(request))
        texts = body.candidates()
        call = Call(model=body.model, texts=[TextPair(text=body.query, pair=text) for text in texts])
        rows = await self._answer(call, request, body.long)
        scores = [score_of(row, raw=body.raw_scores) for row in rows]
        best = sorted(range(len(texts)), key=lambda at: -scores[at])[: body.top_n]
        if body.texts is not None:
            shown = [{"text": text} if body.return_text else {} for text in texts]
            return JSONResponse([{"index": at, "score": scores[at], **shown[at]} for at in best])
        documents: list[Mapping[str, Any]] = [
            {"document": {"text": text}} if body.return_documents else {} for text in texts
        ]
        results = [{"index": at, "relevance_score": scores[at], **documents[at]} for at in best]
        return JSONResponse({"id": request.state.key, "model": body.model, "results": results, "meta": _META})

    async def classify(self, request: HttpRequest) -> Response:
        """Return the most probable label of each text, and the probability of each label."""
        body = parse(Classify, await self._context.body(request))
        texts = [body.input] if isinstance(body.input, str) else body.input
        rows = await self._answer(Call(model=body.model, texts=list(texts)), request, "refuse")
        tokens = tokens_of(rows)
        return JSONResponse(
            {
                "id": request.state.key,
                "object": "list",
                "created": int(time.time()),
                "model": body.model,
                "data": [{"index": at, **_classified(row)} for at, row in enumerate(rows)],
                "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
            }
        )

    async def _answer(self, call: Call, request: HttpRequest, long: LongTexts) -> list[AnsweredRow]:
        answered = self._context.service.answer_rows(call, request.state.key, request.state, Reading(long=long))
        return await self._context.in_time(answered)


_META = {"api_version": {"version": "2"}}


def score_of(row: AnsweredRow, *, raw: bool) -> float:
    """Return the score of a pair, or with `raw` that before the activation; RequestError for other tasks."""
    answer = row.answer.answer
    if not isinstance(answer, Score) or row.head.task is None or not row.head.task.kind.ranks:
        raise other_task(row, "does not rank texts", "`ranking`")
    return float(np.mean(row.results)) if raw else answer.score


def _classified(row: AnsweredRow) -> dict[str, Any]:
    answer = row.answer.answer
    if not isinstance(answer, Prediction | LabelSet):
        raise other_task(row, "does not classify texts", "`single_label` or `multi_label`")
    probabilities = answer.probabilities
    return {
        "label": max(probabilities, key=probabilities.__getitem__),
        "probs": [*probabilities.values()],
        "num_classes": len(probabilities),
    }

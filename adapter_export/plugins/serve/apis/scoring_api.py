"""Scores of pairs and pooled outputs, for clients of vLLM.

https://docs.vllm.ai/en/latest/serving/openai_compatible_server
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from fastapi import FastAPI
from pydantic import Field, StrictBool
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from adapter_export.errors import RequestError
from adapter_export.graph.tasks import Task
from adapter_export.graph.tasks.answers import LabelSet, Numbers, Prediction, TokenVectors
from adapter_export.plugins.serve.apis.generated_texts import Absent
from adapter_export.plugins.serve.apis.openai_api import (
    EncodingFormat,
    Texts,
    encoded,
    other_task,
    tokens_of,
    vector_of,
)
from adapter_export.plugins.serve.apis.rerank_api import score_of
from adapter_export.plugins.serve.calls import Call, Strict, TextOnSide, TextPair, parse
from adapter_export.plugins.serve.route_context import Context
from adapter_export.runtime.answerer import AnsweredRow, Reading
from adapter_export.words import quoted

_SIDES = (("text_1", "text_2"), ("queries", "documents"), ("queries", "items"), ("data_1", "data_2"))
"""Names of the two sides of a request for scores."""


class Scores(Strict):
    """The body of `POST /score` and `/v1/score`: two texts or lists of texts, under the names of one pair of keys.

    A text is scored with each text of the other side; lists of the same length are scored in pairs.

    Attributes:
        model: the name of an adapter for `ranking` or `embedding`, or of a route.
        text_1: queries.
        text_2: documents.
        queries: the same as `text_1`.
        documents: the same as `text_2`.
        items: the same as `text_2`.
        data_1: the same as `text_1`.
        data_2: the same as `text_2`.
        use_activation: apply the activation function of a ranking. Default: true.
        truncate_prompt_tokens: not supported.
        user: ignored.
    """

    model: str
    text_1: Texts | None = None
    text_2: Texts | None = None
    queries: Texts | None = None
    documents: Texts | None = None
    items: Texts | None = None
    data_1: Texts | None = None
    data_2: Texts | None = None
    use_activation: StrictBool | None = True
    truncate_prompt_tokens: Absent = None
    user: str | None = None

    def sides(self) -> tuple[list[str], list[str]]:
        """Return the first and the second text of each pair.

        Raises:
            RequestError: the keys are not those of one pair, or the lists have different lengths.
        """
        names = {name for pair in _SIDES for name in pair if getattr(self, name) is not None}
        chosen = next((pair for pair in _SIDES if {*pair} == names), None)
        if chosen is None:
            raise RequestError(
                "two sides must be given", found=quoted(sorted(names)) or "none", expected="`text_1` and `text_2`"
            )
        first, second = (_texts(getattr(self, name)) for name in chosen)
        if len(first) not in (1, len(second)):
            raise RequestError(
                "the sides have different numbers of texts",
                found=f"{len(first)} and {len(second)}",
                expected="one text, or as many as on the other side",
            )
        return first * len(second) if len(first) == 1 else first, second


class Pooling(Strict):
    """The body of `POST /pooling`.

    Attributes:
        model: the name of an adapter for `embedding`, `multi_vector`, `single_label`, `multi_label` or `regression`, or
            of a route.
        input: a text or a list of texts. Token ids are refused: they belong to another tokenizer.
        encoding_format: numbers, or base64 of little-endian float32 numbers.
        dimensions: width of vectors, one of the `widths` of the adapter's task. Default: the full width.
        task: `embed`, `token_embed` or `classify`, which must be the adapter's. Default: the adapter's.
        use_activation: return probabilities; false returns logits. Default: true.
        truncate_prompt_tokens: not supported.
        messages: not supported.
        user: ignored.
    """

    model: str
    input: Texts
    encoding_format: EncodingFormat | None = "float"
    dimensions: int | None = Field(default=None, ge=1)
    task: Literal["embed", "token_embed", "classify"] | None = None
    use_activation: StrictBool | None = True
    truncate_prompt_tokens: Absent = None
    messages: Absent = None
    user: str | None = None

    def pooled(self, row: AnsweredRow) -> np.ndarray:
        """Return the pooled output of a row.

        Raises:
            RequestError: the adapter has another task, or does not return one output for a text.
        """
        answer, task = row.answer.answer, row.head.task
        is_vector = task is not None and task.kind.is_vector
        if self.task == "token_embed" or isinstance(answer, TokenVectors):
            return self._token_vectors(row)
        if not is_vector and not isinstance(answer, Prediction | LabelSet | Numbers):
            raise other_task(row, "has no pooled output", "`embedding`, `single_label`, `multi_label` or `regression`")
        if self.task is not None and (self.task == "embed") != is_vector:
            raise other_task(row, f"does not {self.task} texts", "the `task` of the request")
        if is_vector:
            return vector_of(row, self.dimensions)
        if self.dimensions is not None:
            raise other_task(row, "has no `dimensions`", "`embedding`")
        if isinstance(answer, Numbers):
            return answer.numbers
        if self.use_activation is False:
            return row.results[0]
        assert isinstance(answer, Prediction | LabelSet)
        return np.array([*answer.probabilities.values()])

    def _token_vectors(self, row: AnsweredRow) -> np.ndarray:
        """Return the vectors of the tokens of a row, [tokens, width]."""
        answer = row.answer.answer
        if self.task not in (None, "token_embed") or not isinstance(answer, TokenVectors):
            raise other_task(row, f"does not {self.task} texts", "the `task` of the request")
        if self.dimensions is not None:
            raise other_task(row, "has no `dimensions`", "`embedding`")
        return answer.vectors


class ScoringApi:
    """Routes of scores and pooled outputs."""

    def __init__(self, context: Context) -> None:
        self._context, self._service = context, context.service

    def add_to(self, app: FastAPI) -> None:
        """Add the routes to an app."""
        for path in ("/score", "/v1/score"):
            app.add_route(path, self.score, methods=["POST"])
        app.add_route("/pooling", self.pooling, methods=["POST"])

    async def score(self, request: HttpRequest) -> Response:
        """Return a score of each pair: by a ranking, or by comparing embeddings as their task does."""
        body = parse(Scores, await self._context.body(request))
        first, second = body.sides()
        target = await self._service.target(body.model, request.state.key)
        task = None if target.adapter is None else target.served.session.task(target.adapter)
        if task is not None and task.kind.embeds:
            queries = await self._answered(body.model, _sided(first, task, "query"), request)
            documents = await self._answered(body.model, _sided(second, task, "document"), request)
            rows = [*queries, *documents]
            pairs_of_rows = zip(queries, documents, strict=True)
            scores = [task.kind.similarity(*(row.answer.answer for row in pair)) for pair in pairs_of_rows]
        else:
            pairs = [TextPair(text=text, pair=pair) for text, pair in zip(first, second, strict=True)]
            rows = await self._answered(body.model, pairs, request)
            scores = [score_of(row, raw=body.use_activation is False) for row in rows]
        return _response("score", body.model, request, [{"object": "score", "score": score} for score in scores], rows)

    async def pooling(self, request: HttpRequest) -> Response:
        """Return the vector, the probabilities or the numbers of each text."""
        body = parse(Pooling, await self._context.body(request))
        rows = await self._answered(body.model, _texts(body.input), request)
        data = [{"object": "pooling", "data": encoded(body.pooled(row), body.encoding_format)} for row in rows]
        return _response("pool", body.model, request, data, rows)

    async def _answered(self, model: str, texts: Sequence[Any], request: HttpRequest) -> list[AnsweredRow]:
        call = Call(model=model, texts=list(texts))
        answered = self._service.answer_rows(call, request.state.key, request.state, Reading(long="refuse"))
        return await self._context.in_time(answered)


def _texts(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def _sided(texts: Sequence[str], task: Task, side: Literal["query", "document"]) -> list[str | TextOnSide]:
    return [TextOnSide(text=text, side=side) if task.has_sides else text for text in texts]


def _response(
    prefix: str, model: str, request: HttpRequest, data: Sequence[Mapping[str, Any]], rows: Sequence[AnsweredRow]
) -> Response:
    tokens = tokens_of(rows)
    return JSONResponse(
        {
            "id": f"{prefix}-{request.state.key}",
            "object": "list",
            "created": int(time.time()),
            "model": model,
            "data": [{"index": at, **each} for at, each in enumerate(data)],
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0},
        }
    )

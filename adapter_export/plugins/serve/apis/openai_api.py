"""Models and embeddings of OpenAI's API, for its clients and those of vLLM, LangChain and LlamaIndex.

https://platform.openai.com/docs/api-reference/embeddings, https://docs.vllm.ai/en/latest/serving/openai_compatible_server
"""

from __future__ import annotations

import base64
import time
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import FastAPI
from pydantic import BeforeValidator, Field, ValidationInfo
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from adapter_export.errors import RequestError
from adapter_export.graph.tasks.answers import Vector
from adapter_export.plugins.serve.calls import Call, Strict, TextOnSide, Words, parse
from adapter_export.plugins.serve.limits import MOST_ROWS, RefusedError
from adapter_export.plugins.serve.route_context import Context
from adapter_export.runtime.answerer import AnsweredRow, Reading
from adapter_export.text import TextSide

PREFIXES = ("/v1", "/openai/v1")
"""Prefixes of the paths; the second is KServe's."""

EncodingFormat = Literal["float", "base64"]
"""Numbers, or base64 of little-endian float32 numbers."""


def text_or_texts(fix: str) -> BeforeValidator:
    """Refuse token ids, and lists with too few or too many texts; `fix` tells clients how to send texts."""

    def check(value: object, info: ValidationInfo) -> object:
        name = f"`{info.field_name}`"
        if isinstance(value, list) and any(isinstance(element, int | list) for element in value):
            raise RequestError(f"{name} contains token ids of another tokenizer", expected="texts", fix=fix)
        if isinstance(value, list) and not 1 <= len(value) <= MOST_ROWS:
            raise RequestError(f"{name} has too few or too many texts", found=len(value), expected=f"1 to {MOST_ROWS}")
        return value

    return BeforeValidator(check)


Texts = Annotated[
    Words | list[Words],
    text_or_texts("send texts; in LangChain: `OpenAIEmbeddings(check_embedding_ctx_length=False)`"),
]
"""The `input` of a request: a text, or one text for each row."""


class Embeddings(Strict):
    """The body of `POST /v1/embeddings`.

    Attributes:
        model: the name of an adapter for `embedding`, or of a route.
        input: a text or a list of texts. Token ids are refused: they belong to another tokenizer.
        encoding_format: numbers, or base64 of little-endian float32 numbers.
        dimensions: width of the vectors, one of the `widths` of the adapter's task. Default: the full width.
        input_type: query or document, for adapters with a prefix for each.
        user: ignored.
    """

    model: str
    input: Texts
    encoding_format: EncodingFormat | None = "float"
    dimensions: int | None = Field(default=None, ge=1)
    input_type: TextSide | None = None
    user: str | None = None

    def call(self) -> Call:
        """Return the request as a call of the plain API."""
        texts, side = [self.input] if isinstance(self.input, str) else self.input, self.input_type
        return Call(
            model=self.model, texts=[text if side is None else TextOnSide(text=text, side=side) for text in texts]
        )


class OpenAiApi:
    """Routes of models and embeddings."""

    def __init__(self, context: Context) -> None:
        self._context, self._service = context, context.service
        self._began = int(time.time())

    def add_to(self, app: FastAPI) -> None:
        """Add the routes to an app."""
        for prefix in PREFIXES:
            app.get(f"{prefix}/models")(self.models)
            app.get(f"{prefix}/models/{{name:path}}")(self.model)
            app.add_route(f"{prefix}/embeddings", self.embeddings, methods=["POST"])

    async def models(self) -> Response:
        """List models and routes. The parent of an adapter is its bundle; `generates` marks those of completions."""
        return JSONResponse({"object": "list", "data": list(self._models().values())})

    async def model(self, name: str) -> Response:
        """Return a model; status 404 if the name is unknown."""
        model = self._models().get(name)
        if model is None:
            raise RefusedError(404, f"there is no model `{name}`; `GET /v1/models` lists them")
        return JSONResponse(model)

    async def embeddings(self, request: HttpRequest) -> Response:
        """Return the vectors of texts."""
        body = parse(Embeddings, await self._context.body(request))
        call = self._service.answer_rows(body.call(), request.state.key, request.state, Reading(long="refuse"))
        rows = await self._context.in_time(call)
        vectors = [encoded(vector_of(row, body.dimensions), body.encoding_format) for row in rows]
        data = [{"object": "embedding", "index": at, "embedding": vector} for at, vector in enumerate(vectors)]
        usage = {"prompt_tokens": tokens_of(rows), "total_tokens": tokens_of(rows)}
        return JSONResponse({"object": "list", "data": data, "model": body.model, "usage": usage})

    def _models(self) -> dict[str, dict[str, Any]]:
        shown = {"object": "model", "created": self._began, "owned_by": "adapter-export"}
        cards: dict[str, dict[str, Any]] = {}
        for name, target in self._service.models.names().items():
            parent = None if target.adapter is None else target.served.name
            generates = target.served.texts is not None
            cards[name] = {"id": name, **shown, "root": target.name, "parent": parent, "generates": generates}
        for name, route in self._service.routes.table.items():
            leads = next(iter(route.shares))
            generates = cards.get(leads, {}).get("generates", False)
            cards.setdefault(name, {"id": name, **shown, "root": leads, "parent": None, "generates": generates})
        return cards


def is_openai(path: str) -> bool:
    """Return whether a path belongs to OpenAI's API."""
    return path.startswith(tuple(f"{prefix}/" for prefix in PREFIXES))


def openai_error(words: str, status: int) -> dict[str, Any]:
    """Return the body of an error in OpenAI's format."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": words, "type": kind, "param": None, "code": status}}


def tokens_of(rows: Sequence[AnsweredRow]) -> int:
    """Return the number of tokens of the texts of rows, special tokens included."""
    return sum(len(encoded.encoding.ids) for row in rows if row.read is not None for encoded in row.read.rows)


def vector_of(row: AnsweredRow, width: int | None = None) -> np.ndarray:
    """Return the vector of a row.

    Args:
        row: the row.
        width: one of the `widths` of its task. Default: the full width.

    Raises:
        RequestError: its adapter returns no vectors, or was not trained at this width; a number is NaN or infinite.
    """
    answer, task = row.answer.answer, row.head.task
    if not isinstance(answer, Vector) or task is None:
        raise other_task(row, "does not return vectors", "`embedding`")
    vector = answer.vector if width is None else task.truncated(answer.vector, width)
    if not np.isfinite(vector).all():
        raise RequestError("a vector is NaN or infinite", fix="run `adapter-export verify` on the bundle")
    return vector


def other_task(row: AnsweredRow, what: str, expected: str) -> RequestError:
    """Return the error of a row whose adapter has another task than a route expects."""
    actual = "no task" if row.head.task is None else f"the task `{row.head.task.type}`"
    return RequestError(what, where=f"model `{row.head.adapter}`", found=actual, expected=f"an adapter for {expected}")


def encoded(vector: np.ndarray, encoding_format: EncodingFormat | None = None) -> list[float] | str:
    """Return a vector as numbers, the default, or as base64 of little-endian float32 numbers."""
    if encoding_format == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    numbers: list[float] = vector.tolist()
    return numbers

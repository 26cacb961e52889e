"""Texts of OpenAI's API, whole or streamed: the options, responses and events that completions and chats share."""

from __future__ import annotations

import json
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, StrictBool, ValidationInfo, WithJsonSchema
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from adapter_export.decoding import Decoding
from adapter_export.errors import InputError, RequestError
from adapter_export.plugins.serve.apis.openai_api import openai_error
from adapter_export.plugins.serve.calls import Number, Strict
from adapter_export.plugins.serve.limits import MOST_ROWS, RefusedError, status_of
from adapter_export.plugins.serve.route_context import Context
from adapter_export.plugins.serve.text_queue import TextJob
from adapter_export.runtime.generation.decoding_batch import Finish, TokenScore
from adapter_export.runtime.generation.text_writer import Generated, Piece

FINISHES: Mapping[Finish, str] = {"end": "stop", "stop": "stop", "length": "length"}
"""OpenAI's reason for each end of a text."""

Stop = Annotated[str, Field(min_length=1, max_length=256)]
"""A stop string. Each token is compared with all of its beginnings, so long ones would delay other clients."""

Stops = Annotated[list[Stop], Field(max_length=16)]


def default_only(default: object) -> BeforeValidator:
    """Refuse every value except null and the default, which clients send for options that they do not use."""

    def check(value: object, info: ValidationInfo) -> object:
        if value is not None and value != default:
            raise RequestError(
                "is not supported", where=f"`{info.field_name}`", found=repr(value), expected=repr(default)
            )
        return default

    return BeforeValidator(check)


Zero = Annotated[Any, default_only(0), WithJsonSchema({"enum": [0, None]})]
One = Annotated[Any, default_only(1), WithJsonSchema({"enum": [1, None]})]
No = Annotated[Any, default_only(False), WithJsonSchema({"enum": [False, None]})]
Absent = Annotated[Any, default_only(None), WithJsonSchema({"type": "null"})]


class StreamOptions(Strict):
    """Options of a stream.

    Attributes:
        include_usage: send token counts in the last event.
    """

    include_usage: StrictBool = False


class Sampling(Strict):
    """Options of texts in both APIs.

    Attributes:
        model: the name of an adapter, a bundle or a route.
        temperature: sampling temperature; 0 takes the most likely token.
        top_p: sample from the fewest tokens that have this probability.
        seed: random seed. Default: a random one for each request.
        stop: a string or several; a text ends before them.
        n: texts of each prompt.
        stream: send the text in server-sent events as it is generated.
        stream_options: options of a stream.
        user: ignored.
        frequency_penalty: not supported.
        logit_bias: not supported.
        presence_penalty: not supported.
    """

    model: str
    temperature: Annotated[Number, Field(ge=0, le=2)] | None = 1.0
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = 1.0
    seed: Annotated[int, Field(strict=True, ge=0, lt=2**63)] | None = None
    stop: Stop | Stops | None = None
    n: Annotated[int, Field(strict=True, ge=1, le=MOST_ROWS)] | None = 1
    stream: StrictBool | None = False
    stream_options: StreamOptions | None = None
    user: str | None = None
    frequency_penalty: Zero = 0
    logit_bias: Absent = None
    presence_penalty: Zero = 0

    def decoding_of(self, count: int, most: int, name: str = "max_tokens") -> Decoding:
        """Return the options; RequestError if `count`, the value of the field `name`, exceeds the limit `most`."""
        if count > most:
            raise RequestError("exceeds the limit of this server", where=f"`{name}`", found=count, expected=most)
        temperature = 1.0 if self.temperature is None else self.temperature
        return Decoding(
            max_new_tokens=count,
            temperature=temperature,
            top_p=self.top_p if temperature and self.top_p != 1 else None,
            seed=secrets.randbits(32) if self.seed is None else self.seed,
            stop=[self.stop] if isinstance(self.stop, str) else self.stop or (),
        )


@dataclass
class WholeText:
    """A complete text of a request.

    Attributes:
        text: the text.
        scores: log probabilities of its tokens, if they are wanted.
    """

    text: Generated
    scores: Sequence[TokenScore]


class Answer(ABC):
    """The response to a request for texts.

    Args:
        call: the request.
        job: its texts.
        key: the id of the request.

    Attributes:
        job: the texts.
    """

    prefix: str
    whole_object: str
    chunk_object: str

    def __init__(self, call: Sampling, job: TextJob, key: str) -> None:
        self._call, self.job = call, job
        self._head = {"id": f"{self.prefix}-{key}", "created": int(time.time()), "model": call.model}

    @abstractmethod
    def choice(self, at: int, whole: WholeText) -> dict[str, Any]:
        """Return a choice of the response without streaming."""

    @abstractmethod
    def chunk(self, piece: Piece) -> dict[str, Any]:
        """Return the choice of an event."""

    def first_chunks(self) -> Sequence[dict[str, Any]]:
        """Return the choices of events that precede the texts."""
        return ()

    async def response(self, context: Context, request: HttpRequest) -> Response:
        """Return the whole response, or the stream of events; the job ends with it."""
        if self._call.stream:
            return TextStream(self._events(context), self.job, "text/event-stream")
        done = await whole_texts(self.job, context, request)
        choices = [self.choice(at, text) for at, text in enumerate(done)]
        return JSONResponse({**self._head, "object": self.whole_object, "choices": choices, "usage": self._usage()})

    async def _events(self, context: Context) -> AsyncIterator[str]:
        """Yield server-sent events. The status is sent by then, so an error is an event too."""
        counts = self._call.stream_options is not None and self._call.stream_options.include_usage
        usage, head = {"usage": None} if counts else {}, {**self._head, "object": self.chunk_object}
        for choice in self.first_chunks():
            yield _event({**head, "choices": [choice], **usage})
        try:
            async for piece in context.each_in_time(self.job.pieces()):
                yield _event({**head, "choices": [self.chunk(piece)], **usage})
        except InputError as error:
            yield _event(openai_error(str(error), status_of(error)))
            return
        except RefusedError as error:
            yield _event(openai_error(str(error), error.status))
            return
        if counts:
            yield _event({**head, "choices": [], "usage": self._usage()})
        yield "data: [DONE]\n\n"

    def _usage(self) -> dict[str, int]:
        rows = [text.row for text in self.job.texts]
        read = sum(len(row.prompt) for row in rows) // (self._call.n or 1)
        written = sum(len(row.tokens) for row in rows)
        return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


class TextStream(StreamingResponse):
    """A stream of pieces of texts. It closes the job after the last one, or when the client disconnects.

    Args:
        lines: the pieces, in the format of the API.
        job: the texts.
        media_type: the format.
    """

    def __init__(self, lines: AsyncIterator[str], job: TextJob, media_type: str) -> None:
        super().__init__(lines, media_type=media_type, headers={"cache-control": "no-cache"})
        self._job = job

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the pieces."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._job.close()


async def whole_texts(job: TextJob, context: Context, request: HttpRequest) -> list[WholeText]:
    """Return the texts of a job, in the order of their prompts, and close it; errors as in `while_connected`."""
    try:
        return await context.while_connected(request, _all(job))
    finally:
        job.close()


async def _all(job: TextJob) -> list[WholeText]:
    scores: list[list[TokenScore]] = [[] for _ in job.texts]
    done: dict[int, WholeText] = {}
    async for piece in job.pieces():
        scores[piece.row] += piece.scores
        if piece.done is not None:
            done[piece.row] = WholeText(piece.done, scores[piece.row])
    return [done[row] for row in range(len(job.texts))]


def _event(document: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(document, ensure_ascii=False)}\n\n"

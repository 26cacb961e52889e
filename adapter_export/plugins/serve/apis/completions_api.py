"""Completions of OpenAI's API: texts that decoders generate, whole or streamed.

https://platform.openai.com/docs/api-reference/completions
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Annotated, Any

from fastapi import FastAPI
from pydantic import BeforeValidator, Field, StrictBool, ValidationInfo, WithJsonSchema
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from adapter_export.decoding import Decoding
from adapter_export.errors import InputError, RequestError
from adapter_export.plugins.serve.apis.openai_api import PREFIXES, openai_error, text_or_texts
from adapter_export.plugins.serve.calls import Number, Strict, Words, parse
from adapter_export.plugins.serve.limits import MOST_ROWS, RefusedError, status_of
from adapter_export.plugins.serve.route_context import Context
from adapter_export.plugins.serve.text_queue import TextJob
from adapter_export.runtime.generation.decoding_batch import Finish
from adapter_export.runtime.generation.text_writer import Generated

_FINISHES: Mapping[str, str] = {"end": "stop", "stop": "stop", "length": "length"}
"""OpenAI's reason for each end of a text."""

_MAX_TOKENS = 16
"""OpenAI's default of `max_tokens`."""

Stop = Annotated[str, Field(min_length=1, max_length=256)]
"""A stop string. Each token is compared with all of its beginnings, so long ones would delay other clients."""

Stops = Annotated[list[Stop], Field(max_length=16)]


def _default_only(default: object) -> BeforeValidator:
    """Refuse every value except null and the default, which clients send for options that they do not use."""

    def check(value: object, info: ValidationInfo) -> object:
        if value is not None and value != default:
            raise RequestError(
                "is not supported", where=f"`{info.field_name}`", found=repr(value), expected=repr(default)
            )
        return default

    return BeforeValidator(check)


Zero = Annotated[Any, _default_only(0), WithJsonSchema({"enum": [0, None]})]
One = Annotated[Any, _default_only(1), WithJsonSchema({"enum": [1, None]})]
No = Annotated[Any, _default_only(False), WithJsonSchema({"enum": [False, None]})]
Absent = Annotated[Any, _default_only(None), WithJsonSchema({"type": "null"})]


class StreamOptions(Strict):
    """Options of a stream.

    Attributes:
        include_usage: send token counts in the last event.
    """

    include_usage: StrictBool = False


class Completions(Strict):
    """The body of `POST /v1/completions`.

    Attributes:
        model: the name of an adapter, a bundle or a route.
        prompt: a text or a list of texts. Token ids are refused: they belong to another tokenizer.
        max_tokens: maximum tokens of each completion.
        temperature: sampling temperature; 0 takes the most likely token.
        top_p: sample from the fewest tokens that have this probability.
        seed: random seed. Default: a random one for each request.
        stop: a string or several; a completion ends before them.
        n: completions of each prompt.
        stream: send the text in server-sent events as it is generated.
        stream_options: options of a stream.
        user: ignored.
        best_of: not supported.
        echo: not supported.
        frequency_penalty: not supported.
        logit_bias: not supported.
        logprobs: not supported.
        presence_penalty: not supported.
        suffix: not supported.
    """

    model: str
    prompt: Annotated[Words | list[Words], text_or_texts("send texts")]
    max_tokens: Annotated[int, Field(strict=True, ge=1)] | None = 16
    temperature: Annotated[Number, Field(ge=0, le=2)] | None = 1.0
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = 1.0
    seed: Annotated[int, Field(strict=True, ge=0, lt=2**63)] | None = None
    stop: Stop | Stops | None = None
    n: Annotated[int, Field(strict=True, ge=1, le=MOST_ROWS)] | None = 1
    stream: StrictBool | None = False
    stream_options: StreamOptions | None = None
    user: str | None = None
    best_of: One = 1
    echo: No = False
    frequency_penalty: Zero = 0
    logit_bias: Absent = None
    logprobs: Absent = None
    presence_penalty: Zero = 0
    suffix: Absent = None

    def prompts(self) -> list[str]:
        """Return the prompt of each choice; RequestError if there are too many."""
        texts = [self.prompt] if isinstance(self.prompt, str) else self.prompt
        prompts = [prompt for prompt in texts for _ in range(self.n or 1)]
        if len(prompts) > MOST_ROWS:
            raise RequestError("too many completions", found=len(prompts), expected=f"at most {MOST_ROWS}")
        return prompts

    def decoding(self, most: int) -> Decoding:
        """Return the options; RequestError if `max_tokens` exceeds the limit `most`."""
        count = _MAX_TOKENS if self.max_tokens is None else self.max_tokens
        if count > most:
            raise RequestError("exceeds the limit of this server", where="`max_tokens`", found=count, expected=most)
        temperature = 1.0 if self.temperature is None else self.temperature
        return Decoding(
            max_new_tokens=count,
            temperature=temperature,
            top_p=self.top_p if temperature and self.top_p != 1 else None,
            seed=secrets.randbits(32) if self.seed is None else self.seed,
            stop=[self.stop] if isinstance(self.stop, str) else self.stop or (),
        )


class CompletionsApi:
    """Routes of completions."""

    def __init__(self, context: Context) -> None:
        self._context, self._service = context, context.service

    def add_to(self, app: FastAPI) -> None:
        """Add the routes to an app."""
        for prefix in PREFIXES:
            app.add_route(f"{prefix}/completions", self.completions, methods=["POST"])

    async def completions(self, request: HttpRequest) -> Response:
        """Generate a text for each prompt."""
        call = parse(Completions, await self._context.body(request))
        prompts, decoding = call.prompts(), call.decoding(self._context.limits.max_new_tokens)
        written = self._service.write_texts(call.model, prompts, decoding, request.state.key, request.state)
        job = await self._context.in_time(written)
        answer = _Answer(call, job, request.state.key)
        if call.stream:
            return _Events(answer.events(self._context), job)
        try:
            done = await self._context.while_connected(request, _all(job))
        finally:
            job.close()
        return JSONResponse(answer.whole(done))


class _Answer:
    """The response to a request.

    Args:
        call: the request.
        job: its texts.
        key: the id of the request.
    """

    def __init__(self, call: Completions, job: TextJob, key: str) -> None:
        self._call, self._job = call, job
        self._head = {
            "id": f"cmpl-{key}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": call.model,
        }

    def whole(self, done: Sequence[Generated]) -> dict[str, Any]:
        """Return the response without streaming."""
        choices = [_choice(at, text.text, text.finish) for at, text in enumerate(done)]
        return {**self._head, "choices": choices, "usage": self._usage()}

    async def events(self, context: Context) -> AsyncIterator[str]:
        """Yield server-sent events. The status is sent by then, so an error is an event too."""
        counts = self._call.stream_options is not None and self._call.stream_options.include_usage
        usage = {"usage": None} if counts else {}
        try:
            async for piece in context.each_in_time(self._job.pieces()):
                finish = None if piece.done is None else piece.done.finish
                yield _event({**self._head, "choices": [_choice(piece.row, piece.text, finish)], **usage})
        except InputError as error:
            yield _event(openai_error(str(error), status_of(error)))
            return
        except RefusedError as error:
            yield _event(openai_error(str(error), error.status))
            return
        if counts:
            yield _event({**self._head, "choices": [], "usage": self._usage()})
        yield "data: [DONE]\n\n"

    def _usage(self) -> dict[str, int]:
        rows = [text.row for text in self._job.texts]
        read = sum(len(row.prompt) for row in rows) // (self._call.n or 1)
        written = sum(len(row.tokens) for row in rows)
        return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


class _Events(StreamingResponse):
    """A stream of events. It closes the job after the last event, or when the client disconnects."""

    def __init__(self, events: AsyncIterator[str], job: TextJob) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"cache-control": "no-cache"})
        self._job = job

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._job.close()


async def _all(job: TextJob) -> list[Generated]:
    """Return the texts of a job, in the order of their prompts."""
    done = {piece.row: piece.done async for piece in job.pieces() if piece.done is not None}
    return [done[row] for row in range(len(job.texts))]


def _choice(at: int, text: str, finish: Finish | None) -> dict[str, Any]:
    reason = None if finish is None else _FINISHES[finish]
    return {"index": at, "text": text, "logprobs": None, "finish_reason": reason}


def _event(document: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(document, ensure_ascii=False)}\n\n"

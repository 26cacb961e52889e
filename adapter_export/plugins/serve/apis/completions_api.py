"""Completions of OpenAI's API: texts that decoders generate, whole or streamed.

https://platform.openai.com/docs/api-reference/completions
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import FastAPI
from pydantic import Field
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from adapter_export.decoding import Decoding
from adapter_export.errors import RequestError
from adapter_export.plugins.serve.apis.generated_texts import FINISHES, Absent, Answer, No, One, Sampling, WholeText
from adapter_export.plugins.serve.apis.openai_api import PREFIXES, text_or_texts
from adapter_export.plugins.serve.calls import Words, parse
from adapter_export.plugins.serve.limits import MOST_ROWS
from adapter_export.plugins.serve.route_context import Context
from adapter_export.runtime.generation.decoding_batch import Finish
from adapter_export.runtime.generation.text_writer import Piece

_MAX_TOKENS = 16
"""OpenAI's default of `max_tokens`."""


class Completions(Sampling):
    """The body of `POST /v1/completions`.

    Attributes:
        prompt: a text or a list of texts. Token ids are refused: they belong to another tokenizer.
        max_tokens: maximum tokens of each completion.
        best_of: not supported.
        echo: not supported.
        logprobs: not supported.
        suffix: not supported.
    """

    prompt: Annotated[Words | list[Words], text_or_texts("send texts")]
    max_tokens: Annotated[int, Field(strict=True, ge=1)] | None = 16
    best_of: One = 1
    echo: No = False
    logprobs: Absent = None
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
        return self.decoding_of(_MAX_TOKENS if self.max_tokens is None else self.max_tokens, most)


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
        answer = _Completion(call, await self._context.in_time(written), request.state.key)
        return await answer.response(self._context, request)


class _Completion(Answer):
    prefix = "cmpl"
    whole_object = chunk_object = "text_completion"

    def choice(self, at: int, whole: WholeText) -> dict[str, Any]:
        """Return a choice of the response without streaming."""
        return _choice(at, whole.text.text, whole.text.finish)

    def chunk(self, piece: Piece) -> dict[str, Any]:
        """Return the choice of an event."""
        return _choice(piece.row, piece.text, None if piece.done is None else piece.done.finish)


def _choice(at: int, text: str, finish: Finish | None) -> dict[str, Any]:
    reason = None if finish is None else FINISHES[finish]
    return {"index": at, "text": text, "logprobs": None, "finish_reason": reason}

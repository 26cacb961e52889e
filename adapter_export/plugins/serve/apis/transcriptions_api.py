"""Transcriptions of OpenAI's API: texts of sound files, with adapters as models.

https://platform.openai.com/docs/api-reference/audio/createTranscription
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Annotated, Any, Literal

from fastapi import FastAPI
from pydantic import BeforeValidator, Field, model_validator
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, PlainTextResponse, Response

from adapter_export.errors import RequestError
from adapter_export.plugins.serve.apis.openai_api import PREFIXES
from adapter_export.plugins.serve.calls import Strict, parse_fields
from adapter_export.plugins.serve.route_context import Context
from adapter_export.runtime.generation.transcriber import SpeechOptions, Transcript


def _only(*values: str) -> BeforeValidator:
    """Refuse every value of a field except these, which mean the same as no value."""

    def check(value: object) -> object:
        if value not in values:
            raise RequestError("a field has an unsupported value", found=repr(value), expected=" or ".join(values))
        return value

    return BeforeValidator(check)


class Transcriptions(Strict):
    """The fields of `POST /v1/audio/transcriptions` beside `file`, in a multipart form.

    Attributes:
        model: the name of an adapter, a bundle or a route.
        language: code of the language. Default: that of the model, which usually detects it.
        response_format: JSON with the text, only the text, or JSON with language and duration as well.
        temperature: only 0.
        stream: not supported.
        prompt: not supported.
        timestamp_granularities: `segment` writes the times of segments, with `verbose_json`. The field may end with
            `[]`.
    """

    model: str
    language: Annotated[str, Field(max_length=40)] | None = None
    response_format: Literal["json", "text", "verbose_json"] = "json"
    temperature: Annotated[str, _only("0", "0.0")] = "0"
    stream: Annotated[str, _only("false", "False")] = "false"
    prompt: Annotated[str, _only("")] = ""
    timestamp_granularities: Annotated[str, _only("segment")] | None = None

    @model_validator(mode="after")
    def _has_room_for_segments(self) -> Transcriptions:
        if self.timestamp_granularities is not None and self.response_format != "verbose_json":
            raise RequestError("segments need another format", where="`response_format`", expected="`verbose_json`")
        return self


class TranscriptionsApi:
    """Routes of the texts of sound."""

    def __init__(self, context: Context) -> None:
        self._context, self._service = context, context.service

    def add_to(self, app: FastAPI) -> None:
        """Add the routes to an app."""
        for prefix in PREFIXES:
            app.add_route(f"{prefix}/audio/transcriptions", self.transcriptions, methods=["POST"])
            app.add_route(f"{prefix}/audio/translations", self.translations, methods=["POST"])

    async def transcriptions(self, request: HttpRequest) -> Response:
        """Write the text of a file in its language."""
        return await self._answer(request, None)

    async def translations(self, request: HttpRequest) -> Response:
        """Write the text of a file in English."""
        return await self._answer(request, "translate")

    async def _answer(self, request: HttpRequest, task: str | None) -> Response:
        fields, file = await _form(request, await self._context.body(request))
        call = parse_fields(Transcriptions, fields)
        limit = self._context.limits.max_new_tokens
        options = SpeechOptions(call.language, task, call.timestamp_granularities is not None)
        written = self._service.transcribe(call.model, file, request.state.key, request.state, options, limit)
        return _response(call, await self._context.while_connected(request, written), task or "transcribe")


def _response(call: Transcriptions, done: Transcript, task: str) -> Response:
    if call.response_format == "text":
        return PlainTextResponse(f"{done.text}\n")
    document: dict[str, Any] = {"text": done.text}
    if call.response_format == "verbose_json":
        document |= {"task": task, "language": done.language, "duration": done.seconds}
        if call.timestamp_granularities is not None:
            parts = enumerate(done.segments or ())
            document["segments"] = [{"id": at, **vars(segment)} for at, segment in parts]
    return JSONResponse({**document, "usage": {"type": "duration", "seconds": done.seconds}})


async def _form(request: HttpRequest, body: bytes) -> tuple[Mapping[str, str], bytes]:
    """Return the fields of a multipart form, and its file; RequestError for another form."""

    async def stream() -> AsyncIterator[bytes]:
        yield body

    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise RequestError("the body is not a multipart form", expected="`multipart/form-data` with `file` and `model`")
    try:
        form = await MultiPartParser(request.headers, stream(), max_files=1, max_fields=16).parse()  # type: ignore[arg-type]
    except MultiPartException as error:
        raise RequestError("the multipart form cannot be read", found=error.message) from error
    try:
        return await _fields(form)
    finally:
        await form.close()


async def _fields(form: FormData) -> tuple[dict[str, str], bytes]:
    fields: dict[str, str] = {}
    file: bytes | None = None
    for field, value in form.multi_items():
        name = field.removesuffix("[]")
        if isinstance(value, UploadFile):
            if name != "file":
                raise RequestError("the form has an unknown file", found=f"`{name}`", expected="`file`")
            file = await value.read()
        elif name in fields:
            raise RequestError("the form has an unsupported field", found=f"`{field}`")
        else:
            fields[name] = value
    if file is None:
        raise RequestError("the form has no file", expected="`file`, a WAV file")
    return fields, file

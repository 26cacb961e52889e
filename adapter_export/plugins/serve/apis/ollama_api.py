"""Ollama's API: conversations, texts and vectors by the engine of OpenAI's API.

https://docs.ollama.com/api
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from adapter_export.errors import InputError, RequestError
from adapter_export.plugins.serve.apis.generated_texts import FINISHES, TextStream, whole_texts
from adapter_export.plugins.serve.apis.ollama_requests import (
    OllamaChat,
    OllamaEmbed,
    OllamaEmbeddings,
    OllamaGenerate,
    OllamaShow,
    OllamaTexts,
)
from adapter_export.plugins.serve.apis.openai_api import encoded, tokens_of, vector_of
from adapter_export.plugins.serve.apis.tei_api import unit
from adapter_export.plugins.serve.calls import Call, parse
from adapter_export.plugins.serve.limits import RefusedError
from adapter_export.plugins.serve.models import PIN, LoadedBundle, Target
from adapter_export.plugins.serve.route_context import Context
from adapter_export.plugins.serve.service import Conversation
from adapter_export.plugins.serve.text_queue import TextJob
from adapter_export.runtime.answerer import AnsweredRow, LongTexts, Reading
from adapter_export.runtime.generation.text_writer import Prompt
from adapter_export.version import __version__

_LATEST = ":latest"
"""Tag that Ollama's clients append to names without one."""

Part = Callable[[str], Mapping[str, Any]]
"""Returns the keys of a response that contain a text."""


class OllamaApi:
    """Routes of Ollama's API."""

    def __init__(self, context: Context) -> None:
        self._context, self._service = context, context.service
        self._began = datetime.now(UTC).isoformat()

    def add_to(self, app: FastAPI) -> None:
        """Add the routes to an app."""
        app.get("/api/version")(self.version)
        app.get("/api/tags")(self.tags)
        posts = {"show": self.show, "chat": self.chat, "generate": self.generate}
        for name, endpoint in {**posts, "embed": self.embed, "embeddings": self.embeddings}.items():
            app.add_route(f"/api/{name}", endpoint, methods=["POST"])

    async def version(self) -> Response:
        """Return the version of this package."""
        return JSONResponse({"version": __version__})

    async def tags(self) -> Response:
        """List the models."""
        models = [self._card(name, target) for name, target in self._service.models.names().items()]
        return JSONResponse({"models": models})

    async def show(self, request: HttpRequest) -> Response:
        """Return facts of a model."""
        body = parse(OllamaShow, await self._context.body(request))
        name = body.model or body.name
        if name is None:
            raise RequestError("names no model", expected="`model`")
        target = await self._service.target(self._known(name), request.state.key, request.state)
        return JSONResponse(await asyncio.to_thread(self._facts, target))

    async def chat(self, request: HttpRequest) -> Response:
        """Generate an answer to a conversation."""
        call = parse(OllamaChat, await self._context.body(request))
        if not call.messages:
            return await self._loaded(call, request, _message)
        messages = [message.message() for message in call.messages]
        tools = [tool.document for tool in call.tools or ()] or None
        return await self._answer(call, Conversation(messages, tools, call.variables, 1), request, _message)

    async def generate(self, request: HttpRequest) -> Response:
        """Generate a text."""
        call = parse(OllamaGenerate, await self._context.body(request))
        if not call.prompt:
            return await self._loaded(call, request, _response)
        target = await self._service.target(self._known(call.model), request.state.key)
        prompts: list[Prompt] | Conversation = [call.prompt]
        if not call.raw and target.served.bundle.manifest.chat is not None:
            prompts = Conversation(call.messages(), None, call.variables, 1)
        elif call.system or call.variables:
            raise RequestError(
                "needs a chat template", where=f"model `{call.model}`", found="`system` or `think`", expected="neither"
            )
        return await self._answer(call, prompts, request, _response)

    async def embed(self, request: HttpRequest) -> Response:
        """Return the vectors of texts, of length 1."""
        body, began = parse(OllamaEmbed, await self._context.body(request)), time.perf_counter_ns()
        texts = [body.input] if isinstance(body.input, str) else body.input
        rows = await self._rows(body.model, texts, "refuse" if body.truncate is False else "cut", request)
        vectors = [encoded(unit(vector_of(row, body.dimensions))) for row in rows]
        durations = {"total_duration": time.perf_counter_ns() - began, "load_duration": 0}
        counts = {"prompt_eval_count": tokens_of(rows)}
        return JSONResponse({"model": body.model, "embeddings": vectors, **durations, **counts})

    async def embeddings(self, request: HttpRequest) -> Response:
        """Return the vector of a text."""
        body = parse(OllamaEmbeddings, await self._context.body(request))
        (row,) = await self._rows(body.model, [body.prompt], "cut", request)
        return JSONResponse({"embedding": encoded(vector_of(row))})

    async def _rows(self, model: str, texts: list[str], long: LongTexts, request: HttpRequest) -> list[AnsweredRow]:
        call = Call(model=self._known(model), texts=[*texts])
        answered = self._service.answer_rows(call, request.state.key, request.state, Reading(long=long))
        return await self._context.in_time(answered)

    async def _answer(
        self, call: OllamaTexts, prompts: list[Prompt] | Conversation, request: HttpRequest, part: Part
    ) -> Response:
        decoding, state = call.decoding(self._context.limits.max_new_tokens), request.state
        began = time.perf_counter_ns()
        written = self._service.write_texts(self._known(call.model), prompts, decoding, state.key, state)
        answer = _Answer(call.model, await self._context.in_time(written), part, began)
        if call.stream is not False:
            return TextStream(answer.lines(self._context), answer.job, "application/x-ndjson")
        (whole,) = await whole_texts(answer.job, self._context, request)
        return JSONResponse({**answer.head(whole.text.text), **answer.end(FINISHES[whole.text.finish])})

    async def _loaded(self, call: OllamaTexts, request: HttpRequest, part: Part) -> Response:
        """Answer a request without a prompt, by which clients of Ollama load a model."""
        target = await self._service.target(self._known(call.model), request.state.key, request.state)
        target.served.generating()
        created = datetime.now(UTC).isoformat()
        document = {"model": call.model, "created_at": created, **part(""), "done": True, "done_reason": "load"}
        if call.stream is False:
            return JSONResponse(document)
        return Response(_line(document), media_type="application/x-ndjson")

    def _known(self, name: str) -> str:
        """Return the name of a model without the tag `latest`, unless a model has that name."""
        models, base = self._service.models, name.removesuffix(_LATEST)
        is_exact = PIN in name or name in self._service.routes.table or models.find(name) is not None
        return name if is_exact else base

    def _card(self, name: str, target: Target) -> Mapping[str, Any]:
        facts = {"modified_at": self._began, "size": _bytes(target), "digest": target.digest}
        return {"name": name, "model": name, **facts, "details": _details(target)}

    def _facts(self, target: Target) -> Mapping[str, Any]:
        manifest = target.served.bundle.manifest
        task = None if target.adapter is None else target.served.session.task(target.adapter)
        info = {
            "general.architecture": "onnx",
            "general.name": target.name,
            "onnx.context_length": manifest.max_tokens,
            "onnx.task": None if task is None else task.type,
        }
        return {
            "modelfile": "",
            "parameters": "",
            "template": "",
            "details": _details(target),
            "model_info": info,
            "capabilities": _capabilities(target.served, is_vector=task is not None and task.kind.is_vector),
            "modified_at": self._began,
        }


class _Answer:
    """A text of a request, whole or in lines of JSON."""

    def __init__(self, model: str, job: TextJob, part: Part, began: int) -> None:
        self.job = job
        self._model, self._part, self._began, self._first = model, part, began, 0

    def head(self, text: str) -> Mapping[str, Any]:
        """Return the keys of a response that is not the last one."""
        created = datetime.now(UTC).isoformat()
        return {"model": self._model, "created_at": created, **self._part(text), "done": False}

    def end(self, reason: str) -> Mapping[str, Any]:
        """Return the keys that only the last response has. Times are in nanoseconds."""
        now, (text,) = time.perf_counter_ns(), self.job.texts
        first = self._first or now
        return {
            "done": True,
            "done_reason": reason,
            "total_duration": now - self._began,
            "load_duration": 0,
            "prompt_eval_count": len(text.row.prompt),
            "prompt_eval_duration": first - self._began,
            "eval_count": len(text.row.tokens),
            "eval_duration": now - first,
        }

    async def lines(self, context: Context) -> AsyncIterator[str]:
        """Yield lines of JSON. The status is sent by then, so an error is a line too."""
        try:
            async for piece in context.each_in_time(self.job.pieces()):
                self._first = self._first or time.perf_counter_ns()
                if piece.text:
                    yield _line(self.head(piece.text))
                if piece.done is not None:
                    yield _line({**self.head(""), **self.end(FINISHES[piece.done.finish])})
        except (InputError, RefusedError) as error:
            yield _line({"error": str(error)})


def _message(text: str) -> Mapping[str, Any]:
    return {"message": {"role": "assistant", "content": text}}


def _response(text: str) -> Mapping[str, Any]:
    return {"response": text}


def _line(document: Mapping[str, Any]) -> str:
    return json.dumps(document, ensure_ascii=False) + "\n"


def _details(target: Target) -> Mapping[str, Any]:
    precision = target.served.bundle.manifest.base_precision
    parent = "" if target.adapter is None else target.served.name
    facts = {"format": "onnx", "family": "onnx", "families": ["onnx"], "parameter_size": ""}
    return {"parent_model": parent, **facts, "quantization_level": precision}


def _bytes(target: Target) -> int:
    """Return the size of an adapter's file; for a base, that of all files of its bundle."""
    manifest, extra = target.served.bundle.manifest, target.served.extras.get(str(target.adapter))
    if extra is not None:
        return len(extra.data)
    paths = {record.name: record.onnx_adapter for record in manifest.adapters}
    path = None if target.adapter is None else paths[target.adapter]
    return sum(file.bytes for file in manifest.files if path in (None, file.path))


def _capabilities(served: LoadedBundle, *, is_vector: bool) -> list[str]:
    if is_vector:
        return ["embedding"]
    if served.texts is None:
        return []
    manifest = served.bundle.manifest
    writes_tools = manifest.chat is not None and served.texts.writer.chat.writes_tools
    return ["completion", "tools"] if writes_tools else ["completion"]

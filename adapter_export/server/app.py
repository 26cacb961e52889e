"""An HTTP service: one session, any number of requests at once, each with its own adapter.

python service.py BUNDLE [--port PORT] [--call-bytes N] [--loaded N] [--sending SECONDS] [--answering SECONDS]

GET    /adapters             the adapters that are loaded, with their tasks
PUT    /adapters/NAME        load one: the body is an `.onnx_adapter` file; ?labels=a,b names its classes
DELETE /adapters/NAME        forget one
POST   /answer               {"adapter": "a", "texts": ["…", {"text": "…", "pair": "…"}]} → an answer to each text
POST   /answer               {"adapters": ["a", "b"], "texts": ["…", "…"]} → each text by an adapter of its own
POST   /run                  the same → the outputs; both take "inputs": {"input_ids": [[101, 102]], …} for "texts"
GET    /statistics           what became of the adapters that are not in the bundle's bank
"""

from __future__ import annotations

import argparse
import asyncio
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
import uvicorn
from answers import Answer, head_of, row_answer, text_answer, text_requests
from batching import Collector
from fastapi import FastAPI
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse
from limits import LONGEST_TEXT, MOST_ROWS, Limits, RefusedError, body_of, impatient
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from adapter_export.errors import AdapterExportError, InputError, RequestError
from adapter_export.reading.documents import parse_json
from adapter_export.runtime import Bundle, Request, Session
from adapter_export.runtime.texts import Asked, ReadText, TextReader
from adapter_export.text import Pair

DEFAULT_PORT = 8080

Int64 = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Words = Annotated[str, Field(max_length=LONGEST_TEXT)]
Row = Annotated[list[Int64], Field(max_length=LONGEST_TEXT)]
Found = TypeVar("Found")


class TextPair(BaseModel):
    """Two texts that are read together."""

    model_config = ConfigDict(extra="forbid")

    text: Words
    pair: Words


class Question(BaseModel):
    """A question with its choices."""

    model_config = ConfigDict(extra="forbid")

    text: Words
    choices: list[Words] = Field(min_length=1, max_length=MOST_ROWS)


class Call(BaseModel):
    """What a request asks for: rows, as texts or as arrays, and one adapter for all of them or one for each."""

    model_config = ConfigDict(extra="forbid")

    texts: list[Words | TextPair | Question] | None = Field(None, max_length=MOST_ROWS)
    inputs: dict[str, Annotated[list[Row], Field(max_length=MOST_ROWS)]] | None = None
    adapter: str | None = None
    adapters: list[str | None] | None = Field(None, max_length=MOST_ROWS)


class Service:
    """A bundle in one session, and what waits for it."""

    def __init__(self, bundle: Bundle, limits: Limits) -> None:
        self._limits = limits
        self._built = {record.name for record in bundle.manifest.adapters}
        self._loading = asyncio.Lock()
        self._dtypes = {record.name: record.dtype for record in bundle.manifest.inputs}
        self.session: Session = bundle.session()
        self._own_head = bundle.manifest.head
        self._reader = None if bundle.manifest.text is None else bundle.texts(self.session)
        self._running: Collector | None = None

    def start(self) -> None:
        self._running = Collector(self.session.run_many, most_waiting=self._limits.waiting)

    def stop(self) -> None:
        if self._running is not None:
            self._running.stop()

    async def load(self, name: str, data: bytes, labels: list[str] | None) -> None:
        async with self._loading:  # or several at once would each see room for one
            if len(set(self.session.adapters) - self._built) >= self._limits.loaded:
                raise RefusedError(409, f"{self._limits.loaded} adapters are loaded; unload one first")
            await asyncio.to_thread(self.session.load_bytes, name, data, labels=labels, where=f"adapter `{name}`")

    async def answer(self, data: bytes) -> list[Answer]:
        call = await asyncio.to_thread(_call, data)
        if call.texts is None:
            requests = await asyncio.to_thread(self._requests, call, self._own_head)
            heads = [head_of(self.session, request.adapter) for request in requests]
            ran = await self._run(requests)
            masks = [request.inputs.get("attention_mask", [None])[0] for request in requests]
            outputs = [{name: array[0] for name, array in each.items()} for each in ran]
            return [row_answer(self.session, *one) for one in zip(heads, outputs, masks, strict=True)]
        reader, read = await asyncio.to_thread(self._read, call)  # a long text would stop all others meanwhile
        rows = [text_requests(reader, one) for one in read]
        heads = [head_of(self.session, one.adapter) for one in read]
        found = iter(await self._run([row for own in rows for row in own]))
        return [
            text_answer(self.session, head, one, [next(found) for _ in own])
            for head, one, own in zip(heads, read, rows, strict=True)
        ]

    async def run(self, data: bytes) -> list[dict[str, Any]]:
        call = await asyncio.to_thread(_call, data)
        ran = await self._run(await asyncio.to_thread(self._requests, call))
        for outputs in ran:
            for name, array in outputs.items():
                if not np.isfinite(array).all():
                    raise RequestError("an output is NaN or infinite, which JSON cannot say", where=f"`{name}`")
        return [{name: array[0].tolist() for name, array in outputs.items()} for outputs in ran]

    async def _run(self, requests: Sequence[Request]) -> list[Any]:
        assert self._running is not None
        return await self._running.answer(requests)

    def adapters(self) -> dict[str, Any]:
        found = {}
        for name in self.session.adapters:
            task = self.session.task(name)
            found[name] = {"task": None if task is None else task.document()}
        return found

    def _requests(self, call: Call, default: str | None = None) -> list[Request]:
        """One for each row: the session puts them together as it sees fit."""
        if (call.texts is None) == (call.inputs is None):
            raise RequestError("there is nothing to run on", expected="`texts` or `inputs`")
        if call.texts is not None:
            reader, read = self._read(call)
            return [row for one in read for row in text_requests(reader, one)]
        inputs = {
            name: [np.array(row, self._dtypes.get(name, "int64")) for row in rows]
            for name, rows in (call.inputs or {}).items()
        }
        names = _names(call, len(next(iter(inputs.values()), ())))
        return [_row(inputs, index, default if name is None else name) for index, name in enumerate(names)]

    def _read(self, call: Call) -> tuple[TextReader, list[ReadText]]:
        if self._reader is None:
            raise RequestError("this bundle has no tokenizer", fix="send `inputs`")
        if call.inputs is not None:
            raise RequestError("there are two things to run on", expected="`texts` or `inputs`")
        if not call.texts:
            raise RequestError("there is no text", expected="at least one")
        return self._reader, self._reader.read(list(map(_asked, call.texts)), adapters=_names(call, len(call.texts)))


def _call(data: bytes) -> Call:
    """Read a call strictly: no key twice, no NaN, nothing that has no UTF-8."""
    try:
        return Call.model_validate(parse_json(data, "the request"))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"])) or None
        raise RequestError("the request is not of the expected form", where=where, found=first["msg"]) from error


def _asked(text: str | TextPair | Question) -> Asked:
    if isinstance(text, Question):
        return [Pair(text.text, choice) for choice in text.choices]
    return text if isinstance(text, str) else Pair(text.text, text.pair)


def _names(call: Call, rows: int) -> list[str | None]:
    """The adapter of each row."""
    names = call.adapters if call.adapters is not None else [call.adapter] * rows
    if len(names) != rows or (call.adapters is not None and call.adapter is not None):
        raise RequestError("give `adapter`, or `adapters` with one for each row", found=len(names), expected=rows)
    return names


def _row(inputs: Mapping[str, Sequence[np.ndarray]], index: int, adapter: str | None) -> Request:
    short = [name for name, rows in inputs.items() if len(rows) <= index]
    if short:
        raise RequestError("the inputs have different numbers of rows", found=", ".join(f"`{name}`" for name in short))
    return Request({name: rows[index][None] for name, rows in inputs.items()}, adapter)


def make_app(bundle: Bundle, limits: Limits) -> FastAPI:
    """The service of a bundle."""
    service = Service(bundle, limits)

    async def in_time(answer: Awaitable[Found]) -> Found:
        try:
            async with asyncio.timeout(limits.answering):
                return await answer
        except TimeoutError:
            raise RefusedError(503, f"there was no answer within {limits.answering:g} seconds") from None

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        service.stop()

    app = FastAPI(title="adapters of one base", lifespan=lifespan)

    @app.exception_handler(InputError)
    async def refuse(_: HttpRequest, error: InputError) -> JSONResponse:
        return JSONResponse({"error": str(error)}, status_code=400)

    @app.exception_handler(RefusedError)
    async def refuse_for_its_cost(_: HttpRequest, error: RefusedError) -> JSONResponse:
        return JSONResponse({"error": str(error)}, status_code=error.status, headers={"connection": "close"})

    @app.get("/adapters")
    def adapters() -> dict[str, Any]:
        return service.adapters()

    @app.put("/adapters/{name}")
    async def load(name: str, request: HttpRequest, labels: str | None = None) -> dict[str, Any]:
        data = await body_of(request, limits.adapter, limits.sending)
        await in_time(service.load(name, data, None if labels is None else labels.split(",")))
        return service.adapters()

    @app.delete("/adapters/{name}")
    def unload(name: str) -> dict[str, Any]:
        service.session.unload(name)
        return service.adapters()

    @app.post("/answer")
    async def answer(request: HttpRequest) -> list[dict[str, Any]]:
        return await in_time(service.answer(await body_of(request, limits.call, limits.sending)))

    @app.post("/run")
    async def run(request: HttpRequest) -> list[dict[str, Any]]:
        return await in_time(service.run(await body_of(request, limits.call, limits.sending)))

    @app.get("/statistics")
    def statistics() -> dict[str, Any]:
        return asdict(service.session.statistics)

    return app


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help="0 takes one that is free")
    parser.add_argument("--call-bytes", type=int, default=Limits.call, help="the largest body of a call")
    parser.add_argument("--loaded", type=int, default=Limits.loaded, help="the most adapters beside the bundle's")
    parser.add_argument("--sending", type=float, default=Limits.sending, help="seconds to send a head, or a body")
    parser.add_argument("--answering", type=float, default=Limits.answering, help="seconds to wait for an answer")
    given = parser.parse_args(arguments)
    limits = Limits(given.call_bytes, loaded=given.loaded, sending=given.sending, answering=given.answering)
    try:
        app = make_app(Bundle.open(given.bundle), limits)
        listening = socket.create_server(("127.0.0.1", given.port))
    except (AdapterExportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"listening on http://127.0.0.1:{listening.getsockname()[1]}", flush=True)
    settings = uvicorn.Config(
        app, http=impatient(limits.sending), limit_concurrency=limits.connections, log_level="warning"
    )
    uvicorn.Server(settings).run(sockets=[listening])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

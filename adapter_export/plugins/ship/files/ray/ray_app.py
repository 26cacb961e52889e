"""A bundle on Ray Serve: a request names an adapter in the header `serve_multiplexed_model_id`.

    serve run serve_config.yaml

Ray sends requests for an adapter to a replica that has it in memory. A replica holds the base once.
"""

from __future__ import annotations

import json
from typing import Any

from adapter_export_runtime import Bundle, check_session
from adapter_export_runtime.errors import AdapterExportError, within
from adapter_export_runtime.runtime.answerer import Answerer, Row, asked_of
from adapter_export_runtime.runtime.check_inputs import weights_of_each
from adapter_export_runtime.runtime.strength import strength_of_each
from ray import serve
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse

RESIDENT = 64
"""Adapters that a replica keeps in memory."""

KEYS = {"texts", "strength", "weights"}
"""Keys of a request; an unknown one could be a misspelled strength."""


@serve.deployment
class Adapters:
    """The adapters of a bundle, loaded on demand.

    Args:
        bundle: its folder, at the same path on every node.
    """

    def __init__(self, bundle: str) -> None:
        self._bundle = opened = Bundle.open(bundle)
        self._session = opened.session(threads=1, on_demand=True, resident=RESIDENT)
        check_session(opened, self._session, [])
        self._answerer = Answerer(self._session, opened.texts(self._session))

    @serve.multiplexed(max_num_models_per_replica=RESIDENT)
    async def adapter(self, name: str) -> str:
        """Return the name of an adapter; RequestError if the bundle has none, FormatError if golden data differ."""
        self._session.head(name)
        await run_in_threadpool(check_session, self._bundle, self._session, [name])
        return name

    async def answer(self, texts: list[Any], strength: Any = None, weights: Any = None) -> list[dict[str, Any]]:
        """Return an answer for each text, by the adapter that the request names.

        Args:
            texts: each is a text, `{"text": …, "pair": …}` or `{"text": …, "choices": […]}`.
            strength: how much of the adapter's updates is added, for all texts or for each.
            weights: a number for each member of a weighted fusion, for all texts or for each.
        """
        name = await self.adapter(serve.get_multiplexed_model_id())
        return await run_in_threadpool(self._answers, name, texts, strength, weights)

    def _answers(self, name: str, texts: list[Any], strength: Any, weights: Any) -> list[dict[str, Any]]:
        choices = zip(texts, strength_of_each(strength, len(texts)), weights_of_each(weights, len(texts)), strict=True)
        rows = []
        for at, (text, *choice) in enumerate(choices):
            with within(f"text {at}"):
                rows.append(Row(asked_of(text), name, *choice, where=f"text {at}"))
        return [row.document() for row in self._answerer.answer(rows)]

    async def __call__(self, request: Request) -> JSONResponse:
        """Answer `{"texts": […]}`, with `strength` and `weights` if they are given: `{"rows": […]}`."""
        try:
            call = json.loads(await request.body())
        except ValueError:
            call = None
        texts = call.get("texts") if isinstance(call, dict) else None
        if not isinstance(texts, list) or not texts:
            return JSONResponse({"error": "a request has a list of `texts`, at least one"}, 400)
        if set(call) - KEYS:
            return JSONResponse({"error": f"{min(set(call) - KEYS)}: the request is not of the expected form"}, 400)
        try:
            return JSONResponse({"rows": await self.answer(**call)})
        except AdapterExportError as error:
            return JSONResponse({"error": str(error)}, 400)


def app(args: dict[str, str]) -> serve.Application:
    """Return the application; `args` are those of `serve_config.yaml`."""
    return Adapters.bind(args["bundle"])

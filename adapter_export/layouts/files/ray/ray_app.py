"""A bundle on Ray Serve: a call names an adapter in the header `serve_multiplexed_model_id`.

    serve run serve_config.yaml

Ray sends calls for an adapter to a replica that has it in memory. A replica holds the base once.
"""

from __future__ import annotations

import json
from typing import Any

from adapter_export_runtime import Bundle
from adapter_export_runtime.errors import AdapterExportError
from adapter_export_runtime.text import Pair
from ray import serve
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse

RESIDENT = 64
"""How many adapters a replica keeps in memory."""


@serve.deployment
class Adapters:
    """The adapters of a bundle, read when they are called.

    Args:
        bundle: its folder, on every node at the same place.
    """

    def __init__(self, bundle: str) -> None:
        opened = Bundle.open(bundle)
        self._session = opened.session(threads=1, on_demand=True, resident=RESIDENT)
        self._texts = opened.texts(self._session)

    @serve.multiplexed(max_num_models_per_replica=RESIDENT)
    async def adapter(self, name: str) -> str:
        """Return the name of an adapter that answers; RequestError if there is none."""
        self._session.answering(name)
        return name

    async def answer(self, texts: list[Any], strength: Any = None) -> list[dict[str, Any]]:
        """Return the answers of the adapter that the call names: a document for each text, or pair of texts.

        `strength` is how much of the adapter's updates is added, for all texts or for each.
        """
        name = await self.adapter(serve.get_multiplexed_model_id())
        asked = [Pair(*one) if isinstance(one, list) and len(one) == 2 else one for one in texts]
        answers = await run_in_threadpool(self._texts.answer, asked, name, strength=strength)
        return [one.document() for one in answers]

    async def __call__(self, request: Request) -> JSONResponse:
        """Answer `{"texts": […]}`, perhaps with a `strength`; what nobody knows could be a misspelt one."""
        try:
            call = dict(json.loads(await request.body()))
            texts, strength = call.pop("texts"), call.pop("strength", None)
        except (ValueError, KeyError, TypeError):
            return JSONResponse({"error": "a call has a list of `texts`"}, 400)
        if call:
            return JSONResponse({"error": f"{min(call)}: the request is not of the expected form"}, 400)
        try:
            return JSONResponse({"answers": await self.answer(texts, strength)})
        except AdapterExportError as error:
            return JSONResponse({"error": str(error)}, 400)


def app(args: dict[str, str]) -> serve.Application:
    """Return the application; `args` are those of `serve_config.yaml`."""
    return Adapters.bind(args["bundle"])

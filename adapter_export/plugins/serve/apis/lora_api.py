"""Loading of PEFT adapters, for clients of vLLM.

https://docs.vllm.ai/en/latest/features/lora
"""

from __future__ import annotations

from fastapi import Depends, FastAPI
from starlette.requests import Request as HttpRequest
from starlette.responses import PlainTextResponse, Response

from adapter_export.plugins.serve.apis.generated_texts import No
from adapter_export.plugins.serve.calls import Strict, parse
from adapter_export.plugins.serve.limits import RefusedError
from adapter_export.plugins.serve.lora_loader import LOAD_LORA
from adapter_export.plugins.serve.route_context import Context


class LoadLora(Strict):
    """The body of `POST /v1/load_lora_adapter`.

    Attributes:
        lora_name: the name of the new model.
        lora_path: a folder that PEFT saved, below `lora_root` of the server.
        load_inplace: not supported: unload the adapter of that name first.
        is_3d_lora_weight: not supported.
    """

    lora_name: str
    lora_path: str
    load_inplace: No = False
    is_3d_lora_weight: No = False


class UnloadLora(Strict):
    """The body of `POST /v1/unload_lora_adapter`.

    Attributes:
        lora_name: the name of the model.
        lora_int_id: ignored.
    """

    lora_name: str
    lora_int_id: int | None = None


class LoraApi:
    """Routes of PEFT adapters. They are off unless an admin token is set."""

    def __init__(self, context: Context) -> None:
        self._context, self._service = context, context.service

    def add_to(self, app: FastAPI) -> None:
        """Add the routes to an app."""
        admitted = [Depends(self._check_enabled), Depends(self._context.admission.check)]
        app.post("/v1/load_lora_adapter", dependencies=admitted)(self.load)
        app.post("/v1/unload_lora_adapter", dependencies=admitted)(self.unload)

    async def load(self, request: HttpRequest) -> Response:
        """Import an adapter, prove it, and answer when it answers."""
        body = parse(LoadLora, await self._context.body(request))
        name = body.lora_name
        if name in self._service.routes.table or self._service.models.find(name) is not None:
            raise RefusedError(400, f"a model `{name}` exists; unload it first, or use another name")
        await self._context.control.do(LOAD_LORA, name=name, path=body.lora_path)
        return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")

    async def unload(self, request: HttpRequest) -> Response:
        """Unload an adapter after its last request."""
        name = parse(UnloadLora, await self._context.body(request)).lora_name
        await self._context.in_time(self._context.control.do("unload", name=name))
        return PlainTextResponse(f"Success: LoRA adapter '{name}' removed successfully.")

    async def _check_enabled(self) -> None:
        """Raise RefusedError (403) unless the server has an admin token and a folder of adapters."""
        if not self._context.admission.has_token or not self._context.control.loads_lora:
            words = "start it with an admin token, `lora_root` and `lora_base`"
            raise RefusedError(403, f"this server does not load LoRA adapters; {words}")

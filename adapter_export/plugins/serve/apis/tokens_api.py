"""Tokenization of texts and conversations, for clients of vLLM and Text Embeddings Inference (TEI).

https://docs.vllm.ai/en/latest/serving/openai_compatible_server, https://huggingface.github.io/text-embeddings-inference
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import FastAPI
from pydantic import Field, StrictBool
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from adapter_export.errors import RequestError
from adapter_export.plugins.serve.apis.chat_api import ChatMessage, ChatTool
from adapter_export.plugins.serve.apis.generated_texts import Absent, No
from adapter_export.plugins.serve.apis.openai_api import text_or_texts
from adapter_export.plugins.serve.calls import Strict, Words, parse
from adapter_export.plugins.serve.limits import MOST_ROWS
from adapter_export.plugins.serve.models import LoadedBundle
from adapter_export.plugins.serve.route_context import Context
from adapter_export.runtime.text_reader import TextReader
from adapter_export.safe_io.documents import parse_json
from adapter_export.text import Tokenizer

TokenId = Annotated[int, Field(strict=True, ge=0, lt=2**31)]


class Tokenize(Strict):
    """The body of `POST /tokenize`, in vLLM's format: a prompt, or the messages of a conversation.

    Attributes:
        prompt: a text.
        messages: a conversation, as in `POST /v1/chat/completions`; the chat template makes a prompt of it.
        model: the name of a model or a route; optional with a single bundle.
        add_special_tokens: add the tokenizer's special tokens to a prompt. Only the template adds them to messages.
        return_token_strs: return the token strings, too.
        add_generation_prompt: end a conversation with the header of an answer.
        tools: tools that the chat template describes.
        chat_template_kwargs: further variables of the chat template.
        continue_final_message: not supported.
        chat_template: not supported.
    """

    prompt: Words | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=4096)] | None = None
    model: str | None = None
    add_special_tokens: StrictBool | None = None
    return_token_strs: StrictBool | None = False
    add_generation_prompt: StrictBool = True
    tools: Annotated[list[ChatTool], Field(max_length=MOST_ROWS)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    continue_final_message: No = False
    chat_template: Absent = None

    def text(self, served: LoadedBundle) -> str:
        """Return the prompt; errors as of `ChatRenderer.render`."""
        if (self.prompt is None) == (self.messages is None):
            raise RequestError("either `prompt` or `messages` must be given", expected="one of them")
        if self.messages is None:
            return str(self.prompt)
        if self.add_special_tokens:
            raise RequestError("is not supported", where="`add_special_tokens`", found="true", expected="false")
        messages = [message.message(at) for at, message in enumerate(self.messages)]
        tools = None if not self.tools else [tool.document for tool in self.tools]
        chat, variables = served.generating().writer.chat, self.chat_template_kwargs or {}
        return chat.render(messages, tools, prompted=self.add_generation_prompt, variables=variables).text

    def response(self, served: LoadedBundle) -> Mapping[str, Any]:
        """Return the tokens of the prompt."""
        tokenizer, text = _tokenizer(served), self.text(served)
        special = self.messages is None and self.add_special_tokens is not False
        (encoding,) = tokenizer.whole([text], special=special)
        tokens = {"tokens": encoding.ids, "token_strs": encoding.tokens if self.return_token_strs else None}
        return {"count": len(encoding.ids), "max_model_len": tokenizer.max_tokens, **tokens}


class TeiTokenize(Strict):
    """The body of `POST /tokenize`, in TEI's format.

    Attributes:
        inputs: a text or a list of texts.
        model: the name of a model or a route; optional with a single bundle.
        add_special_tokens: add the tokenizer's special tokens.
    """

    inputs: Annotated[Words | list[Words], text_or_texts("send texts")]
    model: str | None = None
    add_special_tokens: StrictBool = True

    def response(self, served: LoadedBundle) -> list[list[Mapping[str, Any]]]:
        """Return the tokens of each text. The places of special tokens are null."""
        texts = [self.inputs] if isinstance(self.inputs, str) else self.inputs
        encodings = _tokenizer(served).whole(texts, special=self.add_special_tokens)
        facts = (zip(each.ids, each.tokens, each.special_tokens_mask, each.offsets, strict=True) for each in encodings)
        return [
            [
                {
                    "id": token,
                    "text": text,
                    "special": bool(special),
                    "start": None if special else start,
                    "stop": None if special else end,
                }
                for token, text, special, (start, end) in tokens
            ]
            for tokens in facts
        ]


class Detokenize(Strict):
    """The body of `POST /detokenize`, in vLLM's format.

    Attributes:
        tokens: token ids of the bundle's tokenizer.
        model: the name of a model or a route; optional with a single bundle.
    """

    tokens: list[TokenId]
    model: str | None = None


class TokensApi:
    """Routes of tokenization."""

    def __init__(self, context: Context) -> None:
        self._context, self._service = context, context.service

    def add_to(self, app: FastAPI) -> None:
        """Add the routes to an app."""
        app.add_route("/tokenize", self.tokenize, methods=["POST"])
        app.add_route("/detokenize", self.detokenize, methods=["POST"])

    async def tokenize(self, request: HttpRequest) -> Response:
        """Return the tokens of a text, in the format of the request."""
        data = await self._context.body(request)
        document = parse_json(data, "the request")
        is_of_tei = isinstance(document, dict) and "inputs" in document
        body = parse(TeiTokenize, data) if is_of_tei else parse(Tokenize, data)
        served = await self._served(body.model, request)
        answer = asyncio.to_thread(body.response, served)
        return JSONResponse(await self._context.in_time(answer))

    async def detokenize(self, request: HttpRequest) -> Response:
        """Return the text of tokens, with special tokens."""
        body = parse(Detokenize, await self._context.body(request))
        tokenizer = _tokenizer(await self._served(body.model, request))
        return JSONResponse({"prompt": await asyncio.to_thread(tokenizer.text_of, body.tokens)})

    async def _served(self, name: str | None, request: HttpRequest) -> LoadedBundle:
        if name is None:
            return self._service.models.only()
        return (await self._service.target(name, request.state.key, request.state)).served


def _tokenizer(served: LoadedBundle) -> Tokenizer:
    if not isinstance(served.reader, TextReader):
        raise RequestError("the bundle has no tokenizer", where=f"bundle `{served.name}`")
    return served.reader.tokenizer

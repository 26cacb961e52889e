"""Chat completions of OpenAI's API: answers to conversations, by the chat template of the bundle.

https://platform.openai.com/docs/api-reference/chat
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal, Self

from fastapi import FastAPI
from pydantic import Field, ModelWrapValidatorHandler, PrivateAttr, StrictBool, WithJsonSchema, model_validator
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from adapter_export.decoding import Decoding
from adapter_export.errors import FormatError, RequestError
from adapter_export.plugins.serve.apis.generated_texts import (
    FINISHES,
    Absent,
    Answer,
    No,
    Sampling,
    WholeText,
    default_only,
)
from adapter_export.plugins.serve.apis.openai_api import PREFIXES
from adapter_export.plugins.serve.calls import Strict, Words, parse
from adapter_export.plugins.serve.limits import MOST_ROWS
from adapter_export.plugins.serve.route_context import Context
from adapter_export.plugins.serve.service import Conversation
from adapter_export.plugins.serve.text_queue import TextJob
from adapter_export.runtime.generation.decoding_batch import TokenScore
from adapter_export.runtime.generation.text_writer import Piece, TextWriter
from adapter_export.safe_io.documents import parse_json
from adapter_export.words import quoted

_MOST_SCORES = 20
"""Maximum `top_logprobs`, as in OpenAI's API."""

_OF_SCHEMAS = ("name", "schema", "description", "strict")
"""Keys of `response_format.json_schema`."""

_REPLACED = "\ufffd"
"""Shown for a token that is a part of a character."""

Count = Annotated[int, Field(strict=True, ge=1)]
Yes = Annotated[Any, default_only(True), WithJsonSchema({"enum": [True, None]})]


class TextPart(Strict):
    """A part of a message.

    Attributes:
        type: text; other parts are not supported.
        text: the text.
    """

    type: Literal["text"]
    text: Words


class CalledFunction(Strict):
    """A function that the assistant called.

    Attributes:
        name: its name.
        arguments: a JSON object as a string.
    """

    name: str
    arguments: Words


class ToolCall(Strict):
    """A call of a tool.

    Attributes:
        id: connects it with its result.
        type: function.
        function: the function.
        index: ignored; deltas of a stream have it.
    """

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction
    index: int | None = None

    def message_part(self, where: str) -> dict[str, Any]:
        """Return the call as templates read it, with its arguments as an object."""
        try:
            arguments = parse_json(self.function.arguments.encode(errors="surrogatepass"), where)
        except (FormatError, UnicodeError) as error:
            raise RequestError("the arguments of a tool call are not JSON", where=where, found=error) from error
        if not isinstance(arguments, dict):
            raise RequestError("the arguments of a tool call are not an object", where=where)
        return {"id": self.id, "type": self.type, "function": {"name": self.function.name, "arguments": arguments}}


class ChatMessage(Strict):
    """A message of a conversation.

    Attributes:
        role: its author, one that the chat template knows.
        content: the text, or its parts, which are joined by line breaks; null beside tool calls.
        name: the name of the author or of the tool.
        tool_calls: tools that the assistant called.
        tool_call_id: the call whose result the message is.
        reasoning_content: reasoning of the assistant before its content.
        refusal: null.
        annotations: null or empty.
        audio: null.
        function_call: null.
    """

    role: str
    content: Words | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: Words | None = None
    refusal: Absent = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    audio: Absent = None
    function_call: Absent = None

    def message(self, at: int) -> dict[str, Any]:
        """Return the message as templates of transformers read it, without keys whose value is null."""
        parts = self.content
        content = parts if parts is None or isinstance(parts, str) else "\n".join(part.text for part in parts)
        calls = [
            call.message_part(f"messages.{at}.tool_calls.{number}") for number, call in enumerate(self.tool_calls or ())
        ]
        if content is None and not calls:
            raise RequestError("a message has no content", where=f"`messages.{at}`", expected="a text or tool calls")
        values = {
            "role": self.role,
            "content": content,
            "name": self.name,
            "tool_calls": calls or None,
            "tool_call_id": self.tool_call_id,
            "reasoning_content": self.reasoning_content,
        }
        return {key: value for key, value in values.items() if value is not None}


class ChatTool(Strict):
    """A tool that the assistant may call.

    Attributes:
        type: function.
        function: its name, description and the JSON schema of its parameters, as the template writes them.
    """

    type: Literal["function"]
    function: dict[str, Any]
    _document: dict[str, Any] = PrivateAttr(default_factory=dict)

    @model_validator(mode="wrap")
    @classmethod
    def _keep_order(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Keep the document, since templates write keys in the order of the request."""
        tool = handler(value)
        if isinstance(value, dict):
            tool._document = value
        return tool

    @property
    def document(self) -> dict[str, Any]:
        """The tool as JSON, with keys in the order of the request."""
        return self._document


class ResponseFormat(Strict):
    """The form of an answer.

    Attributes:
        type: `text`, `json_object` for any JSON object, or `json_schema`.
        json_schema: an object with the `schema`, its `name`, and optionally `description` and `strict`. Answers always
            follow the schema, also if `strict` is false.
    """

    type: Literal["text", "json_object", "json_schema"]
    json_schema: dict[str, Any] | None = None

    def schema_to_follow(self) -> Mapping[str, Any] | None:
        """Return the JSON schema of answers; `None` for any text; RequestError for a malformed format."""
        where = "`response_format`"
        if self.type != "json_schema":
            if self.json_schema is not None:
                raise RequestError("`json_schema` needs the type `json_schema`", where=where, found=f"`{self.type}`")
            return {"type": "object"} if self.type == "json_object" else None
        unknown = [key for key in self.json_schema or () if key not in _OF_SCHEMAS]
        if unknown:
            raise RequestError("has unknown keys", where=where, found=quoted(unknown), expected=quoted(_OF_SCHEMAS))
        schema = (self.json_schema or {}).get("schema")
        if not isinstance(schema, dict):
            raise RequestError("has no JSON schema", where=where, expected="an object as `json_schema.schema`")
        return schema


class Chat(Sampling):
    """The body of `POST /v1/chat/completions`.

    Attributes:
        messages: the conversation. The answer follows its last message.
        max_completion_tokens: maximum tokens of each answer. Default: as many as the model and the server allow.
        max_tokens: the same, by its older name.
        tools: tools that the chat template describes to the model; it writes calls into the text of its answer.
        tool_choice: `none` leaves the tools out; other choices than `auto` are not supported.
        parallel_tool_calls: only true.
        logprobs: return the log probability of each token.
        top_logprobs: most likely tokens in each place, with their log probabilities.
        chat_template_kwargs: further variables of the chat template, such as `enable_thinking`.
        response_format: the form of the answer, such as JSON that follows a schema.
        functions: not supported.
        function_call: not supported.
        modalities: not supported.
        store: not supported.
        metadata: not supported.
    """

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=4096)]
    max_completion_tokens: Count | None = None
    max_tokens: Count | None = None
    tools: Annotated[list[ChatTool], Field(max_length=MOST_ROWS)] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: Yes = True
    logprobs: StrictBool | None = False
    top_logprobs: Annotated[int, Field(strict=True, ge=0, le=_MOST_SCORES)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    response_format: ResponseFormat | None = None
    functions: Absent = None
    function_call: Absent = None
    modalities: Absent = None
    store: No = False
    metadata: Absent = None

    def conversation(self) -> Conversation:
        """Return the messages and tools for the template; RequestError if they cannot be read."""
        messages = [message.message(at) for at, message in enumerate(self.messages)]
        tools = None if not self.tools or self.tool_choice == "none" else [tool.document for tool in self.tools]
        return Conversation(messages, tools, self.chat_template_kwargs or {}, self.n or 1)

    def decoding(self, most: int) -> Decoding:
        """Return the options; RequestError if a maximum exceeds the limit `most`, or there are two."""
        if None not in (self.max_tokens, self.max_completion_tokens):
            raise RequestError("`max_tokens` and `max_completion_tokens` exclude each other", fix="remove `max_tokens`")
        name = "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens"
        schema = None if self.response_format is None else self.response_format.schema_to_follow()
        return replace(self.decoding_of(getattr(self, name) or most, most, name), json_schema=schema)

    def top_scores(self) -> int | None:
        """Return the number of alternatives of each token; `None` without log probabilities."""
        if self.top_logprobs is not None and not self.logprobs:
            raise RequestError("`top_logprobs` needs `logprobs`", expected="`logprobs` true")
        return (self.top_logprobs or 0) if self.logprobs else None


class ChatApi:
    """Routes of chat completions."""

    def __init__(self, context: Context) -> None:
        self._context, self._service = context, context.service

    def add_to(self, app: FastAPI) -> None:
        """Add the routes to an app."""
        for prefix in PREFIXES:
            app.add_route(f"{prefix}/chat/completions", self.chat, methods=["POST"])

    async def chat(self, request: HttpRequest) -> Response:
        """Generate answers to a conversation."""
        call, state = parse(Chat, await self._context.body(request)), request.state
        decoding, scores = call.decoding(self._context.limits.max_new_tokens), call.top_scores()
        written = self._service.write_texts(
            call.model, call.conversation(), decoding, state.key, state, top_scores=scores
        )
        answer = _ChatAnswer(call, await self._context.in_time(written), state.key)
        return await answer.response(self._context, request)


class _ChatAnswer(Answer):
    prefix = "chatcmpl"
    whole_object, chunk_object = "chat.completion", "chat.completion.chunk"

    def __init__(self, call: Chat, job: TextJob, key: str) -> None:
        super().__init__(call, job, key)
        self._scored = bool(call.logprobs)

    def choice(self, at: int, whole: WholeText) -> dict[str, Any]:
        """Return a choice of the response without streaming."""
        message = {"role": "assistant", "content": whole.text.text, "refusal": None}
        finish = FINISHES[whole.text.finish]
        return {"index": at, "message": message, "logprobs": self._scores(whole.scores), "finish_reason": finish}

    def chunk(self, piece: Piece) -> dict[str, Any]:
        """Return the choice of an event."""
        finish = None if piece.done is None else FINISHES[piece.done.finish]
        delta = {"content": piece.text}
        return {"index": piece.row, "delta": delta, "logprobs": self._scores(piece.scores), "finish_reason": finish}

    def first_chunks(self) -> Sequence[dict[str, Any]]:
        """Return a choice with the role for each answer."""
        delta = {"role": "assistant", "content": ""}
        return [
            {"index": at, "delta": delta, "logprobs": None, "finish_reason": None} for at in range(len(self.job.texts))
        ]

    def _scores(self, scores: Sequence[TokenScore]) -> dict[str, Any] | None:
        if not self._scored:
            return None
        writer = self.job.writer
        content = [
            {
                **_token(writer, each.token, each.score),
                "top_logprobs": [_token(writer, token, score) for token, score in each.top],
            }
            for each in scores
        ]
        return {"content": content, "refusal": None}


def _token(writer: TextWriter, token: int, score: float) -> dict[str, Any]:
    """Return a token as JSON; its bytes are null if it is a part of a character."""
    text = writer.token_text(token)
    return {"token": text, "logprob": score, "bytes": None if _REPLACED in text else list(text.encode())}

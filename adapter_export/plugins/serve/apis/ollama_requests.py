"""Bodies of Ollama's API.

https://docs.ollama.com/api
"""

from __future__ import annotations

import secrets
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StrictBool, ValidationInfo

from adapter_export.decoding import Decoding
from adapter_export.errors import RequestError
from adapter_export.plugins.serve.apis.chat_api import ChatTool
from adapter_export.plugins.serve.apis.generated_texts import Absent, No, One, Stop, Stops, Zero
from adapter_export.plugins.serve.apis.openai_api import text_or_texts
from adapter_export.plugins.serve.calls import Number, Strict, Words
from adapter_export.plugins.serve.limits import MOST_ROWS

_TEMPERATURE, _TOP_K, _TOP_P = 0.8, 40, 0.9
"""Ollama's defaults."""


def _check_empty(value: object, info: ValidationInfo) -> object:
    """Refuse a value that is not empty: some clients send empty texts and lists for options that they do not use."""
    if value:
        raise RequestError("is not supported", where=f"`{info.field_name}`", found=repr(value)[:100], expected="none")
    return None


Empty = Annotated[Any, BeforeValidator(_check_empty)]


class OllamaOptions(Strict):
    """The `options` of a request.

    Options of llama.cpp's memory and threads change no text and are ignored: the server has its own, and refuses a
    prompt that is too long.

    Attributes:
        temperature: sampling temperature; 0 takes the most likely token.
        top_k: sample from this number of most likely tokens; 0 means all.
        top_p: sample from the fewest tokens that have this probability.
        seed: random seed; -1 and the default are a random one for each request.
        num_predict: maximum tokens of the answer; -1, -2 and the default mean as many as the server allows.
        stop: a string or several; the text ends before them.
        repeat_penalty: only 1, which is the default here.
        presence_penalty: only 0.
        frequency_penalty: only 0.
        min_p: only 0.
        typical_p: only 1.
        tfs_z: only 1.
        mirostat: only 0.
        mirostat_tau: ignored, as `mirostat` is 0.
        mirostat_eta: ignored, as `mirostat` is 0.
        repeat_last_n: ignored, as `repeat_penalty` is 1.
        penalize_newline: ignored, as `repeat_penalty` is 1.
        num_keep: ignored; no text is shifted out of the context.
        num_ctx: ignored.
        num_batch: ignored.
        num_gpu: ignored.
        main_gpu: ignored.
        num_thread: ignored.
        low_vram: ignored.
        f16_kv: ignored.
        logits_all: ignored.
        vocab_only: ignored.
        use_mmap: ignored.
        use_mlock: ignored.
        embedding_only: ignored.
        numa: ignored.
    """

    temperature: Annotated[Number, Field(ge=0, le=2)] | None = _TEMPERATURE
    top_k: Annotated[int, Field(strict=True, ge=0)] | None = _TOP_K
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = _TOP_P
    seed: Annotated[int, Field(strict=True, ge=-1, lt=2**63)] | None = None
    num_predict: Annotated[int, Field(strict=True, ge=-2)] | None = None
    stop: Stop | Stops | None = None
    repeat_penalty: One = 1
    presence_penalty: Zero = 0
    frequency_penalty: Zero = 0
    min_p: Zero = 0
    typical_p: One = 1
    tfs_z: One = 1
    mirostat: Zero = 0
    mirostat_tau: Any = None
    mirostat_eta: Any = None
    repeat_last_n: Any = None
    penalize_newline: Any = None
    num_keep: Any = None
    num_ctx: Any = None
    num_batch: Any = None
    num_gpu: Any = None
    main_gpu: Any = None
    num_thread: Any = None
    low_vram: Any = None
    f16_kv: Any = None
    logits_all: Any = None
    vocab_only: Any = None
    use_mmap: Any = None
    use_mlock: Any = None
    embedding_only: Any = None
    numa: Any = None

    def decoding(self, most: int) -> Decoding:
        """Return the options; RequestError if `num_predict` exceeds the limit `most`."""
        count = most if self.num_predict is None or self.num_predict < 0 else self.num_predict
        if not 1 <= count <= most:
            where, expected = "`num_predict`", f"1 to {most}"
            raise RequestError("exceeds the limit of this server", where=where, found=count, expected=expected)
        temperature = _TEMPERATURE if self.temperature is None else self.temperature
        top_k = _TOP_K if self.top_k is None else self.top_k
        top_p = _TOP_P if self.top_p is None else self.top_p
        return Decoding(
            max_new_tokens=count,
            temperature=temperature,
            top_k=top_k if temperature and top_k else None,
            top_p=top_p if temperature and top_p != 1 else None,
            seed=secrets.randbits(32) if self.seed in (None, -1) else int(self.seed or 0),
            stop=[self.stop] if isinstance(self.stop, str) else self.stop or (),
        )


class OllamaTexts(Strict):
    """Fields of `POST /api/generate` and `POST /api/chat`.

    Attributes:
        model: the name of an adapter, a bundle or a route; `:latest` at its end is ignored.
        stream: send the text in lines of JSON as it is generated.
        options: options of the text.
        keep_alive: ignored.
        think: false leaves reasoning out, if the chat template reads `enable_thinking`; true is not supported.
        format: `json` for any JSON object, or a JSON schema that the text follows.
        logprobs: not supported.
        top_logprobs: not supported.
    """

    model: str
    stream: StrictBool | None = True
    options: OllamaOptions | None = None
    keep_alive: Any = None
    think: Literal[False] | None = None
    format: Literal["", "json"] | dict[str, Any] | None = None
    logprobs: No = False
    top_logprobs: Zero = 0

    def decoding(self, most: int) -> Decoding:
        """Return the options; errors as of `OllamaOptions.decoding`."""
        schema = {"type": "object"} if self.format == "json" else self.format or None
        return replace((self.options or OllamaOptions()).decoding(most), json_schema=schema)

    @property
    def variables(self) -> dict[str, Any]:
        """Variables of the chat template."""
        return {} if self.think is None else {"enable_thinking": False}


class OllamaGenerate(OllamaTexts):
    """The body of `POST /api/generate`.

    Attributes:
        prompt: the message of a user; without a chat template, and with `raw`, the beginning of the text.
        system: a message before it.
        raw: use the prompt as it is, without the chat template.
        suffix: not supported.
        template: not supported.
        context: not supported; use `POST /api/chat`.
        images: not supported.
        width: not supported.
        height: not supported.
        steps: not supported.
    """

    prompt: Words | None = ""
    system: Words | None = None
    raw: StrictBool | None = False
    suffix: Empty = None
    template: Empty = None
    context: Empty = None
    images: Empty = None
    width: Absent = None
    height: Absent = None
    steps: Absent = None

    def messages(self) -> list[dict[str, Any]]:
        """Return the conversation."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": self.prompt}]


class OllamaFunction(Strict):
    """A function that the assistant called.

    Attributes:
        name: its name.
        arguments: its arguments.
        index: ignored.
    """

    name: str
    arguments: dict[str, Any]
    index: int | None = None


class OllamaToolCall(Strict):
    """A call of a tool.

    Attributes:
        function: the function.
        id: connects it with its result.
        type: function.
    """

    function: OllamaFunction
    id: str | None = None
    type: Literal["function"] | None = None


class OllamaMessage(Strict):
    """A message of a conversation.

    Attributes:
        role: its author, one that the chat template knows.
        content: the text.
        thinking: reasoning of the assistant before its content.
        tool_calls: tools that the assistant called.
        tool_name: the tool whose result the message is.
        tool_call_id: the call whose result the message is.
        images: not supported.
    """

    role: str
    content: Words | None = None
    thinking: Words | None = None
    tool_calls: list[OllamaToolCall] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None
    images: Empty = None

    def message(self) -> dict[str, Any]:
        """Return the message as templates of transformers read it, without keys whose value is null."""
        calls = [
            {"type": "function", "id": call.id, "function": call.function.model_dump(include={"name", "arguments"})}
            for call in self.tool_calls or ()
        ]
        values = {
            "role": self.role,
            "content": self.content if calls else self.content or "",
            "reasoning_content": self.thinking,
            "tool_calls": [{key: value for key, value in call.items() if value is not None} for call in calls] or None,
            "name": self.tool_name,
            "tool_call_id": self.tool_call_id,
        }
        return {key: value for key, value in values.items() if value is not None}


class OllamaChat(OllamaTexts):
    """The body of `POST /api/chat`.

    Attributes:
        messages: the conversation. The answer follows its last message.
        tools: tools that the chat template describes to the model; it writes calls into the text of its answer.
    """

    messages: Annotated[list[OllamaMessage], Field(max_length=4096)] | None = None
    tools: Annotated[list[ChatTool], Field(max_length=MOST_ROWS)] | None = None


class OllamaEmbed(Strict):
    """The body of `POST /api/embed`.

    Attributes:
        model: the name of an adapter for `embedding`, or of a route.
        input: a text or a list of texts.
        truncate: truncate long texts instead of refusing them.
        dimensions: width of the vectors, one of the `widths` of the adapter's task. Default: the full width.
        options: ignored.
        keep_alive: ignored.
    """

    model: str
    input: Annotated[Words | list[Words], text_or_texts("send texts")]
    truncate: StrictBool | None = True
    dimensions: Annotated[int, Field(ge=1)] | None = None
    options: Any = None
    keep_alive: Any = None


class OllamaEmbeddings(Strict):
    """The body of `POST /api/embeddings`, which Ollama replaced by `POST /api/embed`.

    Attributes:
        model: the name of an adapter for `embedding`, or of a route.
        prompt: a text.
        options: ignored.
        keep_alive: ignored.
    """

    model: str
    prompt: Words
    options: Any = None
    keep_alive: Any = None


class OllamaShow(Strict):
    """The body of `POST /api/show`.

    Attributes:
        model: the name of a model.
        name: the same, by its older name.
        verbose: ignored.
        system: not supported.
        template: not supported.
        options: not supported.
    """

    model: str | None = None
    name: str | None = None
    verbose: StrictBool | None = False
    system: Empty = None
    template: Empty = None
    options: Empty = None

"""Conversations of a table, in the form of OpenAI's API, checked without a chat template."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from adapter_export.errors import DataError, FormatError
from adapter_export.graph.tasks.cells import short
from adapter_export.safe_io.documents import parse_json
from adapter_export.words import quoted

MESSAGES, TOOLS = "messages", "tools"
"""Columns of conversations, and of the tools that they may call."""

_ANSWERS = "assistant"
"""Role of the messages that a model learns to write."""

_KEYS = ("role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content")
"""Keys of messages that templates of transformers read, in the order of a message."""

_WEIGHT = "weight"
"""Key of an answer in OpenAI's files of fine-tuning; 0 for an answer that is not learnt."""

Message = Mapping[str, Any]


@dataclass(frozen=True)
class Conversation:
    """A conversation to learn from.

    Attributes:
        key: messages, tools and weights as JSON; equal conversations have equal keys.
        messages: the messages, with the keys that templates of transformers read.
        tools: descriptions of tools, or `None`.
        learnt: places of the messages to learn, in ascending order.
        where: the line of the file.
    """

    key: str
    messages: Sequence[Message] = field(compare=False)
    tools: Sequence[Mapping[str, Any]] | None = field(compare=False)
    learnt: tuple[int, ...] = field(compare=False)
    where: str = field(compare=False)

    @property
    def opening(self) -> str:
        """The messages before the first answer, as JSON. Conversations with one opening stay on one side of a split."""
        first = next(at for at, message in enumerate(self.messages) if message["role"] == _ANSWERS)
        return _json(list(self.messages[:first]))

    @property
    def has_unlearnt_answers(self) -> bool:
        """True if an answer has the weight 0."""
        return len(self.learnt) < [message["role"] for message in self.messages].count(_ANSWERS)


def read_conversation(cells: Mapping[str, Any], where: str) -> Conversation:
    """Return the conversation of a row.

    Raises:
        DataError: the messages or tools are malformed, or there is no answer to learn.
    """
    rows = cells[MESSAGES]
    if not isinstance(rows, list) or not rows:
        raise DataError(
            "has no messages",
            where=where,
            found=f"`{short(rows)}`",
            expected='a list such as [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]',
        )
    read = [_message(message, f"{where}, message {at}") for at, message in enumerate(rows)]
    messages = [message for message, _ in read]
    learnt = tuple(at for at, (message, weight) in enumerate(read) if message["role"] == _ANSWERS and weight)
    if not learnt:
        raise DataError(
            "has no answer to learn", where=where, expected=f"a message of the role `{_ANSWERS}` without the weight 0"
        )
    tools = _tools(cells.get(TOOLS), where)
    return Conversation(_json([messages, tools, learnt]), messages, tools, learnt, where)


def _message(found: object, where: str) -> tuple[Message, bool]:
    """Return a message without keys whose value is null, and whether it is learnt if it is an answer."""
    if not isinstance(found, dict) or not isinstance(found.get("role"), str):
        raise DataError("is not a message", where=where, found=f"`{short(found)}`", expected="an object with a `role`")
    known = {key: value for key, value in found.items() if value is not None}
    strange = [key for key in known if key not in (*_KEYS, _WEIGHT)]
    if strange:
        raise DataError("a message has unknown keys", where=where, found=quoted(strange), expected=quoted(_KEYS))
    weight = known.get(_WEIGHT, 1)
    if weight not in (0, 1) or (_WEIGHT in known and known["role"] != _ANSWERS):
        raise DataError("has a wrong weight", where=where, found=f"`{short(weight)}`", expected="0 or 1 of an answer")
    message = {key: known[key] for key in _KEYS if key in known}
    if "content" in message:
        message["content"] = _text(message["content"], where)
    calls = list(_calls(message.pop("tool_calls", ()), where))
    message |= {"tool_calls": calls} if calls else {}
    if not {"content", "tool_calls"} & set(message):
        raise DataError("a message has no content", where=where, expected="a text or tool calls")
    wrong = [key for key, value in message.items() if key != "tool_calls" and not isinstance(value, str)]
    if wrong:
        raise DataError("a value of a message is not a text", where=where, found=quoted(wrong))
    return message, bool(weight)


def _text(content: object, where: str) -> object:
    """Return the text of a message; parts of texts are joined by line breaks."""
    if not isinstance(content, list):
        return content
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise DataError("has a part that is not text", where=where, found=f"`{short(part)}`", expected="texts only")
    return "\n".join(part["text"] for part in content)


def _calls(found: object, where: str) -> Iterator[Mapping[str, Any]]:
    """Yield calls of tools as templates read them, with arguments as objects."""
    for call in found if isinstance(found, list | tuple) else [found]:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(call, dict) or not isinstance(function, dict) or not isinstance(function.get("name"), str):
            expected = '{"type": "function", "function": {"name": "…", "arguments": "{…}"}}'
            raise DataError("is not a tool call", where=where, found=f"`{short(call)}`", expected=expected)
        arguments = function.get("arguments", {})
        if isinstance(arguments, str):
            arguments = _document(arguments, "the arguments of a tool call are not JSON", where)
        if not isinstance(arguments, dict):
            raise DataError(
                "the arguments of a tool call are not an object", where=where, found=f"`{short(arguments)}`"
            )
        named = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
        yield {**named, "type": "function", "function": {"name": function["name"], "arguments": arguments}}


def _tools(found: object, where: str) -> Sequence[Mapping[str, Any]] | None:
    tools = _document(found, "the tools are not JSON", where) if isinstance(found, str) else found
    if not tools:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise DataError("has no list of tools", where=where, found=f"`{short(tools)}`", expected="a list of objects")
    return tools


def _document(text: str, what: str, where: str) -> Any:
    try:
        return parse_json(text.encode(errors="surrogatepass"), where)
    except (FormatError, UnicodeError) as error:
        raise DataError(what, where=where, found=f"`{short(text)}`") from error


def _json(document: object) -> str:
    return json.dumps(document, ensure_ascii=False, default=str)

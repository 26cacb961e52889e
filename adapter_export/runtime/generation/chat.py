"""Conversations as prompts: chat templates of a bundle, rendered in a child process with limits."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from adapter_export.errors import RequestError
from adapter_export.extras import require
from adapter_export.format.generation import DEFAULT_TEMPLATE, TOOL_TEMPLATE, ChatRecord, ChatTemplates
from adapter_export.safe_io import child_service
from adapter_export.safe_io.child import Limits
from adapter_export.text import MOST_CHARACTERS
from adapter_export.words import Words, argument, quoted

if TYPE_CHECKING:  # only the child process imports it, with jinja2
    from adapter_export.safe_io import jinja_chat  # noqa: F401

Message = Mapping[str, Any]
"""A message with the keys that templates of transformers read, such as `role` and `content`."""

_RENDER = f"{child_service.__package__}.jinja_chat:respond"

_LIMITS = Limits(seconds=5.0, bytes=512 * 2**20)
"""Limits of a call: the longest templates in common use take milliseconds, and a long conversation some MB."""

_RESERVED = ("messages", "tools", "documents", "add_generation_prompt")
"""Variables with arguments of their own."""

_ROLES = ("system", "developer", "user", "assistant", "tool")
"""Roles whose messages a template may write."""

_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")
"""Tag before the text of an answer, as in transformers."""

_SIGN = "Xq7Zv3"
"""Text that no template contains."""


@dataclass(frozen=True)
class RenderedChat:
    """A conversation as a prompt.

    Attributes:
        text: the prompt, with the special tokens that the template writes. A tokenizer adds none.
        spans: ranges of characters that the template marks as the assistant's.
    """

    text: str
    spans: tuple[tuple[int, int], ...] = ()


def no_template(where: object, *, captured: bool = False) -> RequestError:
    """Return the error for a bundle without chat templates, or for a captured model."""
    file = "a `chat_template.jinja` in the model's folder"
    fix: Words = "build it again with " + argument("chat_template", words="FILE") + ", or with " + file
    return RequestError(
        f"the {'model' if captured else 'bundle'} has no chat template, which turns messages into a prompt",
        where=where,
        expected="a template of the model's own tokenizer",
        fix=f"capture it again with {file}" if captured else fix,
    )


class ChatRenderer:
    """Renders conversations with chat templates as `apply_chat_template` of transformers does.

    Templates run in a child process: one that takes too long or too much memory ends only that. Thread-safe.

    Args:
        templates: the templates.
        record: roles and tools that the templates write. Without it, nothing is refused that a template ignores.
    """

    def __init__(self, templates: ChatTemplates, record: ChatRecord | None = None) -> None:
        self.templates, self._record = templates, record
        self._render = child_service.ChildService(_RENDER, _LIMITS, _refused)

    @property
    def digest(self) -> str:
        """The digest of the templates."""
        return self.templates.digest

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        prompted: bool = True,
        now: datetime | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> RenderedChat:
        """Return the prompt of a conversation.

        Args:
            messages: at least one.
            tools: descriptions of tools, in the form of OpenAI's API.
            prompted: end the prompt with the header of an answer.
            now: local time for templates that write the date. Default: the current time.
            variables: further variables of the template, such as `enable_thinking`.

        Raises:
            RequestError: the template refuses or ignores the conversation or a variable, or exceeds a limit.
            MissingExtraError: jinja2 is not installed.
        """
        return _rendered(self._render(self._call(messages, tools, prompted, now, variables or {})))

    def render_each(
        self,
        conversations: Sequence[tuple[Sequence[Message], bool]],
        tools: Sequence[Mapping[str, Any]] | None,
        now: datetime,
    ) -> list[RenderedChat]:
        """Return the prompts of conversations in one call, within the limits of one prompt.

        Args:
            conversations: messages, and whether the prompt ends with the header of an answer.
            tools: the tools of all of them.
            now: as in `render`, whose errors are raised.
        """
        calls = [self._call(messages, tools, prompted, now, {}) for messages, prompted in conversations]
        return list(map(_rendered, self._render(calls)))

    def attempt(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None, *, prompted: bool, now: datetime
    ) -> str | None:
        """Return the text of a prompt, or `None` if the template refuses the conversation; other errors as `render`."""
        answer: dict[str, Any] = self._render(self._call(messages, tools, prompted, now, {}))
        _check_length(answer)
        return answer.get("text")

    def _call(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None,
        prompted: bool,
        now: datetime | None,
        variables: Mapping[str, Any],
    ) -> dict[str, Any]:
        require("jinja2", "chat", "chat templates")
        if not messages:
            raise RequestError("there are no messages", expected="at least one")
        self._check(messages, tools, variables)
        return {
            "template": self._chosen(tools),
            "messages": list(map(dict, messages)),
            "tools": None if tools is None else list(tools),
            "prompted": prompted,
            "now": None if now is None else now.isoformat(),
            "tokens": dict(self.templates.tokens),
            "variables": dict(variables),
            "most": MOST_CHARACTERS,
        }

    def without_record(self) -> ChatRenderer:
        """Return a renderer of the same templates that refuses nothing which they ignore."""
        return ChatRenderer(self.templates)

    def written_roles(self) -> tuple[str, ...]:
        """Return the roles whose messages the templates write into a prompt."""
        return tuple(role for role in _ROLES if self._writes(_conversation_of(role), None))

    def writes_tools(self) -> bool:
        """Return whether the templates write the descriptions of tools into a prompt."""
        return self._writes([{"role": "user", "content": "Hello."}], [tool_named(_SIGN)])

    def marks_answers(self, tools: object) -> bool:
        """Return whether the template of a conversation marks what the assistant writes."""
        return _MARK.search(self._chosen(tools)) is not None

    def close(self) -> None:
        """End the child process; the next call starts another."""
        self._render.close()

    def _writes(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None) -> bool:
        try:
            return _SIGN in self.render(messages, tools).text
        except RequestError:
            return False

    def _chosen(self, tools: object) -> str:
        templates = self.templates.templates
        name = TOOL_TEMPLATE if tools is not None and TOOL_TEMPLATE in templates else DEFAULT_TEMPLATE
        if name not in templates:
            raise RequestError("there is no default chat template", found=quoted(templates), expected=f"`{name}`")
        return templates[name]

    def _check(self, messages: Sequence[Message], tools: object, variables: Mapping[str, Any]) -> None:
        taken = sorted({*_RESERVED, *self.templates.tokens} & set(variables))
        if taken:
            raise RequestError("a variable of the chat template has a fixed value", found=quoted(taken))
        if self._record is None:
            return
        for at, message in enumerate(messages):
            if message.get("role") not in self._record.roles:
                raise RequestError(
                    "the chat template drops messages of this role",
                    where=f"message {at}",
                    found=f"`{message.get('role')}`",
                    expected=quoted(self._record.roles),
                )
        if tools is not None and not self._record.tools:
            raise RequestError("the chat template ignores `tools`", fix="leave them out, or use a model for tools")


def tool_named(name: str) -> dict[str, Any]:
    """Return the description of a tool, in the form of OpenAI's API."""
    city = {"type": "string", "description": "A city, such as “Zürich”."}
    parameters = {"type": "object", "properties": {"city": city}, "required": ["city"]}
    about = "Returns the weather <today> & tomorrow."
    return {"type": "function", "function": {"name": name, "description": about, "parameters": parameters}}


def tool_call(name: str, **arguments: Any) -> dict[str, Any]:
    """Return an assistant's call of a tool."""
    call = {"id": "call12345", "type": "function", "function": {"name": name, "arguments": arguments}}
    return {"role": "assistant", "content": "", "tool_calls": [call]}


def tool_result(name: str, content: str) -> dict[str, Any]:
    """Return the result of a tool."""
    return {"role": "tool", "tool_call_id": "call12345", "name": name, "content": content}


def _conversation_of(role: str) -> list[Message]:
    user: Message = {"role": "user", "content": "Hello."}
    sign: Message = {"role": role, "content": _SIGN}
    return {
        "user": [sign],
        "assistant": [user, sign, user],
        "tool": [user, tool_call("weather", city="Rome"), tool_result("weather", _SIGN)],
    }.get(role, [sign, user])


def _rendered(answer: Mapping[str, Any]) -> RenderedChat:
    """Return a prompt that the child process rendered, or raise the error for its refusal."""
    _check_length(answer)
    if "refusal" in answer:
        raise RequestError("the chat template refuses the conversation", found=answer["refusal"])
    if "unread" in answer:
        raise RequestError("the chat template does not read a variable", found=quoted(answer["unread"]))
    return RenderedChat(answer["text"], tuple((start, end) for start, end in answer["spans"]))


def _check_length(answer: Mapping[str, Any]) -> None:
    if "long" in answer:
        raise _refused(f"more than {MOST_CHARACTERS:,} characters")


def _refused(reason: str) -> RequestError:
    return RequestError("the chat template exceeds the limits of a prompt", found=reason)

"""Golden chats: conversations that show how a template differs from its copies, made and replayed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from adapter_export.errors import RequestError
from adapter_export.format.generation import CHAT_VERSION, CapturedChat, ChatTemplates, GoldenChat, GoldenChats
from adapter_export.runtime.generation.chat import ChatRenderer, Message, tool_call, tool_named, tool_result
from adapter_export.text import Tokenizer

Prompt = tuple[str | None, Sequence[int] | None]
"""A prompt and its tokens; `None` if the template refuses the conversation."""

_SHOWN = 60


class Sample(NamedTuple):
    """A conversation to render.

    Attributes:
        name: unique.
        messages: the messages.
        tools: the tools, or `None`.
        prompted: whether the prompt ends with the header of an answer.
    """

    name: str
    messages: Sequence[Message]
    tools: Sequence[Mapping[str, Any]] | None = None
    prompted: bool = True


def sample_chats(tokens: Mapping[str, Any]) -> Iterator[Sample]:
    """Yield conversations with unique names; `tokens` are the special tokens, which occur in messages, too."""
    system, hello = _said("system", "You are terse."), _said("user", "How far is the moon?")
    answer, more = _said("assistant", "384,400 km."), _said("user", "And the sun?")
    special = " ".join(str(token) for token in tokens.values() if isinstance(token, str))
    yield Sample("user", [hello])
    yield Sample("system", [system, hello])
    yield Sample("empty system", [_said("system", ""), hello])
    yield Sample("developer", [_said("developer", "Answer in German."), hello])
    yield Sample("two turns", [system, hello, answer, more])
    yield Sample("whole conversation", [hello, answer, more, answer], prompted=False)
    yield Sample("two questions in a row", [hello, more])
    yield Sample("answer first", [answer, hello])
    yield Sample("answer last", [hello, answer])
    yield Sample("empty question", [_said("user", "")])
    yield Sample("blanks", [_said("user", "  a\n\n b\t \r\n"), _said("assistant", "\n c \n"), more])
    yield Sample("scripts", [_said("user", "Žluťoučký 東京 नमस्ते שלום 👩\u200d💻 e\u0301 \u2028 \u00a0")])
    yield Sample("template text", [_said("user", "{{ 7*7 }} {% if x %} {# y #} {{ raise_exception('z') }}")])
    yield Sample("markup", [_said("user", "<b>&amp;\"'\\n</b> [INST] <|im_end|> <think>x</think>")])
    yield Sample("special tokens", [_said("user", f"a {special} b"), _said("assistant", f"{special} c"), more])
    yield Sample("tools", [system, hello], [tool_named("weather"), tool_named("tide")])
    called = [hello, tool_call("weather", city="Zürich", days=3, mild=True), tool_result("weather", '{"°C": 21.5}')]
    yield Sample("tool called", called, [tool_named("weather")])
    yield Sample("tool answered", [*called, answer, more], [tool_named("weather")])
    yield Sample("tool called without tools", called)


def _said(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


def make_golden(
    renderer: ChatRenderer, tokenizer: Tokenizer, made_by: str, library: Callable[[Sample], Prompt] | None = None
) -> GoldenChats:
    """Return golden chats.

    Args:
        renderer: renders the templates.
        tokenizer: of the bundle.
        made_by: library, version and class of the prompts.
        library: renders a conversation by other code, which decides; `None` takes the renderer's prompts.

    Raises:
        RequestError: the template exceeds a limit, or the library's prompt or tokens differ.
    """
    chats = []
    for sample in sample_chats(renderer.templates.tokens):
        before = datetime.now()
        ours = _prompt(renderer, tokenizer, sample, before)  # within limits, which the library does not have
        if library is not None:
            theirs, after = library(sample), datetime.now()
            if ours != theirs:  # a minute may have passed
                before, ours = after, _prompt(renderer, tokenizer, sample, after)
            if ours != theirs:
                raise RequestError(
                    f"the chat template makes another prompt of `{sample.name}` than {made_by}",
                    found=_difference(ours, theirs),
                )
        text, ids = ours
        tools = None if sample.tools is None else tuple(sample.tools)
        chats.append(
            GoldenChat(
                sample.name,
                tuple(sample.messages),
                tools,
                sample.prompted,
                before.isoformat(),
                text,
                None if ids is None else tuple(ids),
            )
        )
    return GoldenChats(CHAT_VERSION, renderer.digest, made_by, tuple(chats))


def capture_chat(
    templates: ChatTemplates, tokenizer: Tokenizer, made_by: str, library: Callable[[Sample], Prompt] | None = None
) -> CapturedChat:
    """Return chat templates with the facts of the manifest and golden chats; arguments and errors of `make_golden`."""
    renderer = ChatRenderer(templates)
    try:
        golden = make_golden(renderer, tokenizer, made_by, library)
        roles = renderer.written_roles()
        if not roles:
            raise RequestError("the chat template writes no message into the prompt")
        return CapturedChat(templates, roles, renderer.writes_tools(), golden)
    finally:
        renderer.close()


def chat_faults(golden: GoldenChats, renderer: ChatRenderer, tokenizer: Tokenizer | None) -> Iterator[tuple[str, str]]:
    """Yield the name and the fault of each golden chat whose prompt differs, or its tokens if there is a tokenizer."""
    for chat in golden.chats:
        try:
            text = renderer.attempt(
                chat.messages, chat.tools, prompted=chat.prompted, now=datetime.fromisoformat(chat.now)
            )
        except (RequestError, ValueError) as error:
            yield chat.name, str(error)
            continue
        ids = None if text is None or tokenizer is None else _ids(tokenizer, text)
        expected = None if tokenizer is None else chat.ids
        if (text, ids) != (chat.text, None if expected is None else list(expected)):
            yield chat.name, _difference((text, ids), (chat.text, expected))


def _prompt(renderer: ChatRenderer, tokenizer: Tokenizer, sample: Sample, now: datetime) -> Prompt:
    text = renderer.attempt(sample.messages, sample.tools, prompted=sample.prompted, now=now)
    return text, None if text is None else _ids(tokenizer, text)


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    ids: list[int] = tokenizer.whole([text], special=False)[0].ids
    return ids


def _kind(prompt: Prompt) -> str:
    return "a refusal" if prompt[0] is None else "a prompt"


def _difference(found: Prompt, expected: Prompt) -> str:
    """Return both prompts from the first character that differs."""
    texts = [text for text, _ in (found, expected) if text is not None]
    if len(texts) < 2:
        return f"{_kind(found)}, expected {_kind(expected)}"
    if texts[0] == texts[1]:
        return "other tokens of the same prompt"
    ours, theirs = texts
    same = next((at for at, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), 0)
    start = max(0, same - _SHOWN // 3)
    return f"{ours[start : start + _SHOWN]!r}, expected {theirs[start : start + _SHOWN]!r}"

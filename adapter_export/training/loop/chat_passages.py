"""Conversations as rows of tokens, of which a model learns the assistant's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from adapter_export.errors import DataError, RequestError
from adapter_export.format.generation import CapturedChat
from adapter_export.format.tabular.conversations import Conversation, Message
from adapter_export.runtime.generation.chat import ChatRenderer, no_template
from adapter_export.text import Tokenizer

Span = tuple[int, int]
"""First character, and the one after the last."""

_MARK_ANSWERS = "mark answers in the template with `{% generation %}`, and capture the model again"


@dataclass(frozen=True)
class ChatTokens:
    """Tokens of a conversation.

    Attributes:
        ids: the tokens.
        learnt: whether each of them is the assistant's.
    """

    ids: tuple[int, ...]
    learnt: tuple[bool, ...]


class ChatEncoder:
    """Encodes conversations with the chat template of a base.

    The answers are the parts that the template marks with `{% generation %}`. Without marks, each answer is found by
    rendering the messages before it with the header of an answer, and those up to its end: both must be prefixes of the
    whole conversation, since a template that writes an earlier answer in another way would teach that.

    Args:
        chat: the templates; RequestError for `None`.
        tokenizer: of the base.
        where: the base, for messages.
    """

    def __init__(self, chat: CapturedChat | None, tokenizer: Tokenizer, where: object) -> None:
        if chat is None:
            raise no_template(where, captured=True)
        self._renderer, self._tokenizer = ChatRenderer(chat.templates, chat.record), tokenizer
        # templates may write the date; that of the capture gives the same rows each time
        self._now = datetime.fromisoformat(chat.golden.chats[0].now)
        tokens = dict.fromkeys(value for value in chat.templates.tokens.values() if isinstance(value, str) and value)
        self._closings = ("", *tokens)
        self.digest = chat.templates.digest

    def encode(self, conversation: Conversation) -> ChatTokens:
        """Return the tokens of a conversation.

        Raises:
            DataError: the template refuses or drops messages, or the answers cannot be distinguished.
        """
        try:
            text, spans = self._whole(conversation)
            (encoding,) = self._tokenizer.whole([text], special=False)
        except RequestError as error:
            raise DataError(error.what, where=conversation.where, found=error.found, expected=error.expected) from error
        return ChatTokens(tuple(encoding.ids), tuple(_overlapping(encoding.offsets, spans)))

    def close(self) -> None:
        """End the process of the templates."""
        self._renderer.close()

    def _whole(self, conversation: Conversation) -> tuple[str, Sequence[Span]]:
        """Return the text of a conversation, and the spans of its answers."""
        tools = conversation.tools

        def rendered(messages: Sequence[Message], *, prompted: bool = False) -> str:
            return self._renderer.render(messages, tools, prompted=prompted, now=self._now).text

        if self._renderer.marks_answers(tools) and not conversation.has_unlearnt_answers:
            whole = self._renderer.render(conversation.messages, tools, prompted=False, now=self._now)
            if not whole.spans:
                raise DataError("the chat template marks no answer", where=conversation.where)
            return whole.text, whole.spans
        text = rendered(conversation.messages)
        return text, [self._answer(conversation, at, text, rendered) for at in conversation.learnt]

    def _answer(self, conversation: Conversation, at: int, text: str, rendered: Callable[..., str]) -> Span:
        """Return the span of an answer; DataError if its beginning or its end is no prefix of the whole text."""
        if not at:
            what = "begins with an answer, whose header cannot be distinguished from its text"
            raise DataError(what, where=conversation.where, fix=_MARK_ANSWERS)
        before = rendered(conversation.messages[:at], prompted=True)
        through = rendered(conversation.messages[: at + 1])
        for closing in self._closings:  # written after the last message of every conversation, as Phi-3 does
            end = len(through) - len(closing)
            if through.endswith(closing) and text.endswith(closing) and text.startswith(through[:end]):
                break
        else:
            raise _unlike(conversation, at, "writes an answer in another way when more messages follow", through, text)
        if not text.startswith(before) or len(before) >= end:
            raise _unlike(conversation, at, "begins answers in another way than the prompts for them", before, text)
        return len(before), end


def _unlike(conversation: Conversation, at: int, what: str, alone: str, text: str) -> DataError:
    return DataError(
        f"the chat template {what}",
        where=f"{conversation.where}, message {at}",
        found=_difference(text, alone),
        expected=_difference(alone, text),
        fix=f"{_MARK_ANSWERS}, or learn only the last answer: give the others the weight 0",
    )


def _difference(text: str, other: str, most: int = 40) -> str:
    """Return a text from a few characters before the first one that differs."""
    same = next((at for at, pair in enumerate(zip(text, other, strict=False)) if pair[0] != pair[1]), len(other))
    start = max(0, same - most // 4)
    return repr(text[start : start + most])


def _overlapping(offsets: Sequence[Span], spans: Sequence[Span]) -> Iterator[bool]:
    """Yield whether each token overlaps a span, as in the mask of transformers."""
    return (any(start < last and end > first for first, last in spans) for start, end in offsets)

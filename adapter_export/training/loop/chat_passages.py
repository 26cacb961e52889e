"""Conversations as rows of tokens, of which a model learns the assistant's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np

from adapter_export.errors import DataError, RequestError
from adapter_export.format.generation import CapturedChat
from adapter_export.format.tabular.conversations import Conversation
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
        return ChatTokens(tuple(encoding.ids), _overlapping(encoding.offsets, spans))

    def close(self) -> None:
        """End the process of the templates."""
        self._renderer.close()

    def _whole(self, conversation: Conversation) -> tuple[str, Sequence[Span]]:
        """Return the text of a conversation, and the spans of its answers."""
        messages, tools = conversation.messages, conversation.tools
        if self._renderer.marks_answers(tools) and not conversation.has_unlearnt_answers:
            whole = self._renderer.render(messages, tools, prompted=False, now=self._now)
            if not whole.spans:
                raise DataError("the chat template marks no answer", where=conversation.where)
            return whole.text, whole.spans
        if not conversation.learnt[0]:
            what = "begins with an answer, whose header cannot be distinguished from its text"
            raise DataError(what, where=conversation.where, fix=_MARK_ANSWERS)
        parts = [part for at in conversation.learnt for part in ((messages[:at], True), (messages[: at + 1], False))]
        rendered = [chat.text for chat in self._renderer.render_each([(messages, False), *parts], tools, self._now)]
        text, prompts, answered = rendered[0], rendered[1::2], rendered[2::2]
        places = zip(conversation.learnt, prompts, answered, strict=True)
        return text, [self._answer(f"{conversation.where}, message {at}", text, *part) for at, *part in places]

    def _answer(self, where: str, text: str, before: str, through: str) -> Span:
        """Return the span of an answer; DataError if its prompt, or the text up to its end, does not begin the text."""
        for closing in self._closings:  # written after the last message of every conversation, as Phi-3 does
            end = len(through) - len(closing)
            if through.endswith(closing) and text.endswith(closing) and text.startswith(through[:end]):
                break
        else:
            raise _unlike("writes an answer in another way when more messages follow", where, through, text)
        if not text.startswith(before) or len(before) >= end:
            raise _unlike("begins answers in another way than the prompts for them", where, before, text)
        return len(before), end


def _unlike(what: str, where: str, alone: str, text: str) -> DataError:
    return DataError(
        f"the chat template {what}",
        where=where,
        found=_difference(text, alone),
        expected=_difference(alone, text),
        fix=f"{_MARK_ANSWERS}, or learn only the last answer: give the others the weight 0",
    )


def _difference(text: str, other: str, most: int = 40) -> str:
    """Return a text from a few characters before the first one that differs."""
    same = next((at for at, pair in enumerate(zip(text, other, strict=False)) if pair[0] != pair[1]), len(other))
    start = max(0, same - most // 4)
    return repr(text[start : start + most])


def _overlapping(offsets: Sequence[Span], spans: Sequence[Span]) -> tuple[bool, ...]:
    """Return whether each token overlaps a span, as in the mask of transformers."""
    starts, ends = np.array(offsets, np.int64).reshape(-1, 2).T
    overlapping = np.zeros(len(starts), bool)
    for first, last in spans:
        overlapping |= (starts < last) & (ends > first)
    return tuple(overlapping.tolist())

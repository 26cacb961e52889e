"""Settings of text generation: first, last and suppressed tokens, and chat templates with golden chats.

Specified in `docs/reference/format.md`.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from adapter_export.errors import FormatError, within
from adapter_export.format.files import canonical_json
from adapter_export.format.records import (
    SEMVER,
    Count,
    NotEmpty,
    Positive,
    RelativePath,
    Sha256,
    Text,
    record_from_json,
    version_checked,
)
from adapter_export.safe_io.documents import parse_json
from adapter_export.safe_io.regular_files import read_bytes

CHAT_VERSION = "1.0.0"
"""Version of both chat formats written, and the newest supported."""

CHAT_FILE, GOLDEN_CHATS_FILE = "chat_templates.json", "golden/chats.json"

ARCHIVED_CHAT = "chat.json"
"""Chat templates and golden chats of a base, in `extra/` of its archive."""

DEFAULT_TEMPLATE, TOOL_TEMPLATE = "default", "tool_use"
"""Names of the templates that transformers chooses: the second for conversations with tools, if there is one."""


TRANSCRIBE = "transcribe"
"""The task of a decoder of speech for which only a language is chosen."""


@dataclass(frozen=True)
class SpeechRecord:
    """Tokens that a decoder of speech reads after `start`, before it generates.

    A request may choose a language and a task. Without both, the decoder reads `prefix`. Otherwise it reads the token
    of the language, null without a choice; the token of the task, or of `transcribe` if only a language is chosen and
    there are tasks; and `closing`. In place of null it reads the most likely of the `languages`, by the logits after
    `start`.

    Attributes:
        prefix: the tokens without a choice.
        languages: the token of each language, by its code; empty for a model of a single language.
        tasks: the token of each task, such as `transcribe` and `translate`.
        closing: the last tokens, such as the one for texts without timestamps.
        language: the language of a request without one; null if there is none.
        task: the task of a request without one; null if there is none.
        timestamps: the first of the tokens that are times, which are not part of a text; null without such tokens.
        most_tokens: tokens of the text of a window, unless a request has another limit; null for as many as fit.
        latest_start: how many times after that one the first segment of a text with times may begin; null for all.
    """

    prefix: tuple[Count | None, ...]
    languages: Mapping[str, Count]
    tasks: Mapping[str, Count]
    closing: tuple[Count, ...]
    language: str | None = None
    task: str | None = None
    timestamps: Count | None = None
    most_tokens: Positive | None = None
    latest_start: Count | None = None

    def chosen(self, language: str | None, task: str | None) -> tuple[int | None, ...]:
        """Return the tokens for a language and a task of this record; `None` is one of the languages."""
        language, task = language or self.language, task or self.task
        if language is None and task is None:
            return self.prefix
        first = None if language is None else self.languages[language]
        named = TRANSCRIBE if task is None and language is not None and self.tasks else task
        return (first, *(() if named is None else (self.tasks[named],)), *self.closing)


@dataclass(frozen=True)
class GenerationRecord:
    """Settings of a text-generating model.

    Attributes:
        end: the tokens that end a text; training uses the first.
        padding: the token that pads finished rows; null if there is none.
        start: the first input token of the decoder of an encoder–decoder; null for a decoder, which reads a prompt.
        first: the forced token after a single token, such as a language token; null if the model chooses it.
        suppressed: tokens that are never generated.
        last: the forced last token of a text that reaches its length limit; null if the model chooses it.
        suppressed_first: tokens that are never the first one that the model chooses.
        speech: the tokens before a text, for a decoder of speech; null for others.
    """

    end: tuple[Count, ...] = ()
    padding: Count | None = None
    start: Count | None = None
    first: Count | None = None
    suppressed: tuple[Count, ...] = ()
    last: Count | None = None
    suppressed_first: tuple[Count, ...] = ()
    speech: SpeechRecord | None = None


@dataclass(frozen=True)
class ChatRecord:
    """Chat templates, which turn conversations into prompts.

    Attributes:
        templates: file of the templates.
        digest: SHA-256 of the JSON of `templates` and `tokens` of that file, with sorted keys and an indent of 2.
        golden: file of golden chats.
        roles: roles whose messages a template writes into the prompt. Clients reject messages of other roles, which
            would be dropped.
        tools: whether a template writes the descriptions of tools into the prompt. If false, clients reject them.
    """

    templates: RelativePath
    digest: Sha256
    golden: RelativePath
    roles: Annotated[tuple[str, ...], NotEmpty()]
    tools: bool


@dataclass(frozen=True)
class ChatTemplates:
    """Chat templates in jinja2, as transformers reads them.

    This is `chat_templates.json`. Specified in docs/reference/format.md.

    Attributes:
        version: the version of this format. Readers reject another major version.
        templates: templates by name. `tool_use` applies to conversations with tools, if it exists, `default` to others.
        tokens: variables of the templates: the tokenizer's special tokens by their names, such as `bos_token`.
    """

    version: Annotated[str, SEMVER]
    templates: Annotated[Mapping[str, Text], NotEmpty()]
    tokens: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """The digest in the manifest."""
        facts = {"templates": dict(self.templates), "tokens": dict(self.tokens)}
        return hashlib.sha256(canonical_json(facts)).hexdigest()


@dataclass(frozen=True)
class GoldenChat:
    """A conversation, and the prompt that the templates make of it.

    Attributes:
        name: unique in its file.
        messages: the messages, with the keys that templates of transformers read. The order of keys is that of the
            prompt, as in `tools`.
        tools: the tools, in the form of OpenAI's API; null without tools.
        prompted: whether the prompt ends with the header of an answer (`add_generation_prompt`).
        now: local time that templates may write into the prompt, in ISO 8601 without a time zone.
        text: the prompt; null if the template refuses the conversation.
        ids: its tokens, without special tokens added by the tokenizer; null without a prompt.
    """

    name: Text
    messages: Annotated[tuple[Mapping[str, Any], ...], NotEmpty()]
    tools: tuple[Mapping[str, Any], ...] | None
    prompted: bool
    now: str
    text: str | None
    ids: tuple[Count, ...] | None = None


@dataclass(frozen=True)
class GoldenChats:
    """Conversations and their prompts.

    This is `golden/chats.json`. Specified in docs/reference/format.md.

    Attributes:
        version: the version of this format. Readers reject another major version.
        digest: digest of the templates, equal to `chat.digest` of the manifest.
        renderer: library, version and class that made the prompts. Informative.
        chats: the conversations.
    """

    version: Annotated[str, SEMVER]
    digest: Sha256
    renderer: str
    chats: Annotated[tuple[GoldenChat, ...], NotEmpty()]


@dataclass(frozen=True)
class CapturedChat:
    """Chat templates of a base, with the facts that its own library shows.

    Attributes:
        templates: the templates.
        roles: as in the manifest.
        tools: as in the manifest.
        golden: golden chats.
    """

    templates: ChatTemplates
    roles: tuple[str, ...]
    tools: bool
    golden: GoldenChats

    @property
    def record(self) -> ChatRecord:
        """The record of the manifest."""
        return ChatRecord(CHAT_FILE, self.templates.digest, GOLDEN_CHATS_FILE, self.roles, self.tools)


def chat_templates_json(templates: ChatTemplates) -> bytes:
    """Return the document; the bytes are deterministic."""
    return canonical_json(asdict(templates))


def golden_chats_json(chats: GoldenChats) -> bytes:
    """Return the document; the bytes are deterministic."""
    return _ordered_json(asdict(chats)).encode()


def parse_chat_templates(data: bytes, where: object) -> ChatTemplates:
    """Parse chat templates; `where` names their source in messages.

    Raises:
        FormatError: the document violates the format; `VersionError` is a subclass.
    """
    document = parse_json(data, where)
    with version_checked(document, CHAT_VERSION, where), within(where):
        return record_from_json(ChatTemplates, document)


def read_golden_chats(path: Path) -> GoldenChats:
    """Read golden chats from a file.

    Raises:
        FileError: the file cannot be read.
        FormatError: the file violates the format; `VersionError` is a subclass.
    """
    document = parse_json(read_bytes(path), path)
    with version_checked(document, CHAT_VERSION, path), within(path):
        golden = record_from_json(GoldenChats, document)
        _check_names(golden)
    return golden


def captured_chat_json(chat: CapturedChat) -> str:
    """Return the document for an archive."""
    return _ordered_json(asdict(chat))


def _ordered_json(document: object) -> str:
    """Return JSON with keys in their order, in which templates write tools and arguments into a prompt."""
    return f"{json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)}\n"


def parse_captured_chat(text: str, where: str) -> CapturedChat:
    """Parse the chat templates of an archive.

    Raises:
        FormatError: the document violates the format.
    """
    with within(where):
        captured = record_from_json(CapturedChat, parse_json(text.encode(), where))
        _check_names(captured.golden)
        if captured.golden.digest != captured.templates.digest:
            raise FormatError("has golden chats of other templates", where="`$.golden.digest`")
    return captured


def _check_names(golden: GoldenChats) -> None:
    name, count = Counter(chat.name for chat in golden.chats).most_common(1)[0]
    if count > 1:
        raise FormatError("a name occurs twice", where="`$.chats`", found=f"`{name}`")

"""Chat templates in files: those of a tokenizer's folder, or a template by itself."""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from adapter_export.errors import FormatError, UsageError
from adapter_export.extras import require
from adapter_export.format.generation import CHAT_VERSION, DEFAULT_TEMPLATE, CapturedChat, ChatTemplates
from adapter_export.safe_io.documents import parse_json
from adapter_export.safe_io.regular_files import read_text
from adapter_export.words import argument

_CONFIG, _TEMPLATE, _OTHERS = "tokenizer_config.json", "chat_template.jinja", "additional_chat_templates"
"""Files of transformers, and the folder of named templates."""


def folder_templates(folder: Path) -> ChatTemplates | None:
    """Return the chat templates of a tokenizer's folder; `None` without any.

    Files of templates replace those in `tokenizer_config.json`, as in transformers.

    Raises:
        FileError, FormatError: a file cannot be read.
    """
    config = tokenizer_config_of(folder)
    files = {DEFAULT_TEMPLATE: folder / _TEMPLATE} if (folder / _TEMPLATE).is_file() else {}
    files |= {file.stem: file for file in sorted((folder / _OTHERS).glob("*.jinja"))}
    named = {name: read_text(file) for name, file in files.items()} or _templates_of(config)
    return ChatTemplates(CHAT_VERSION, named, special_tokens(config)) if named else None


def file_templates(path: Path, config: str | None) -> ChatTemplates:
    """Return the templates of a folder, or the template of a file with the special tokens of a tokenizer.

    Args:
        path: a file in jinja2, or a tokenizer's folder.
        config: the text of the base's `tokenizer_config.json`. Default: the file beside the template.

    Raises:
        UsageError: the folder has no template.
        FileError, FormatError: a file cannot be read.
    """
    if not path.is_dir():
        tokens = special_tokens(config or tokenizer_config_of(path.parent))
        return ChatTemplates(CHAT_VERSION, {DEFAULT_TEMPLATE: read_text(path)}, tokens)
    templates = folder_templates(path)
    if templates is None:
        expected = f"`{_TEMPLATE}`, or a `chat_template` in `{_CONFIG}`"
        raise UsageError("has no chat template", where=argument("chat_template"), found=path, expected=expected)
    return templates


def captured_templates(templates: ChatTemplates, tokenizer: str | None, max_tokens: int | None) -> CapturedChat:
    """Return templates with golden chats that jinja2 makes.

    Args:
        templates: the templates.
        tokenizer: the text of the base's `tokenizer.json`.
        max_tokens: maximum tokens of a text.

    Raises:
        UsageError: there is no tokenizer.
        RequestError: the templates write no message, or exceed a limit.
        MissingExtraError: jinja2 is not installed.
    """
    from adapter_export.runtime.generation.golden_chats import capture_chat
    from adapter_export.text import Tokenizer

    if tokenizer is None:
        raise UsageError("a chat template needs a tokenizer", fix="pass " + argument("tokenizer"))
    require("jinja2", "chat", "chat templates")
    reader = Tokenizer.from_json(tokenizer, max_tokens or sys.maxsize)
    return capture_chat(templates, reader, f"jinja2 {version('jinja2')}")


def tokenizer_config_of(folder: Path) -> str | None:
    """Return the text of a folder's `tokenizer_config.json`, if it has one."""
    return read_text(folder / _CONFIG) if (folder / _CONFIG).is_file() else None


def special_tokens(config: str | None) -> dict[str, Any]:
    """Return the special tokens of a `tokenizer_config.json` by their names in templates."""
    tokens = {}
    for name, value in _document(config).items():
        content = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(content, str):
            tokens[name] = content
    return tokens


def _templates_of(config: str | None) -> dict[str, str]:
    templates = _document(config).get("chat_template")
    if isinstance(templates, list):
        templates = {one.get("name"): one.get("template") for one in templates if isinstance(one, dict)}
    named = {DEFAULT_TEMPLATE: templates} if isinstance(templates, str) else templates or {}
    if not isinstance(named, dict) or not all(isinstance(part, str) for both in named.items() for part in both):
        raise FormatError("is no template, and no list of named ones", where=f"`{_CONFIG}`, `chat_template`")
    return named


def _document(config: str | None) -> dict[str, Any]:
    document = {} if config is None else parse_json(config.encode(), f"`{_CONFIG}`")
    return document if isinstance(document, dict) else {}

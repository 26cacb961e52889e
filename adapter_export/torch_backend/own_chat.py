"""Chat templates of a Hugging Face folder, with golden chats made by `apply_chat_template` of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers

from adapter_export.errors import BaseModelError, InputError, MissingExtraError
from adapter_export.format.generation import CHAT_VERSION, DEFAULT_TEMPLATE, CapturedChat, ChatTemplates
from adapter_export.runtime.generation.golden_chats import Prompt, Sample, capture_chat
from adapter_export.safe_io.parsers import parsing
from adapter_export.safe_io.regular_files import read_text
from adapter_export.text import TOKENIZER_FILE, Tokenizer


def own_chat(folder: Path, max_tokens: int | None) -> tuple[CapturedChat | None, tuple[str, ...]]:
    """Return the chat templates of a folder's tokenizer, and notes; `None` if it has none that can be used."""
    file = folder / TOKENIZER_FILE
    if not file.is_file():
        return None, ()
    try:
        with parsing(BaseModelError):
            library_tokenizer: Any = transformers.AutoTokenizer.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False
            )
            known = library_tokenizer.chat_template
        if not known:
            return None, ()
        named = known if isinstance(known, Mapping) else {DEFAULT_TEMPLATE: known}
        templates = ChatTemplates(CHAT_VERSION, dict(named), dict(library_tokenizer.special_tokens_map))
        tokenizer = Tokenizer.from_json(read_text(file), max_tokens or library_tokenizer.model_max_length)
        made_by = f"transformers {transformers.__version__} {type(library_tokenizer).__name__}"
        return capture_chat(templates, tokenizer, made_by, lambda sample: _rendered(library_tokenizer, sample)), ()
    except (InputError, MissingExtraError) as error:
        return None, ("the chat template is left out: " + error.message.rstrip("."),)


def _rendered(library_tokenizer: Any, sample: Sample) -> Prompt:
    """Return the prompt of transformers and its tokens, or `None` for both if the template refuses the conversation."""
    options = {"tools": sample.tools, "add_generation_prompt": sample.prompted}
    try:
        with parsing(BaseModelError):
            text: str = library_tokenizer.apply_chat_template(list(sample.messages), tokenize=False, **options)
            ids = library_tokenizer.apply_chat_template(
                list(sample.messages), tokenize=True, return_dict=False, **options
            )
    except BaseModelError:  # any error of a template is its refusal
        return None, None
    return text, list(ids)

"""Chat templates of published models: prompts equal to those of transformers, to the byte."""

from __future__ import annotations

from datetime import datetime

import pytest
from jinja2 import TemplateError
from published_chats import PUBLISHED, TOKENS, byte_tokenizer, conversations, template
from tiers import some_quick

from adapter_export.format.generation import CHAT_VERSION, ChatTemplates
from adapter_export.runtime.generation.chat import ChatRenderer


@pytest.mark.parametrize("name", some_quick(PUBLISHED, "llama3_2", "qwen3", "gemma4"))
def test_prompts_of_200_conversations_are_those_of_transformers(name: str) -> None:
    text = template(name)
    assert text is not None
    renderer, tokenizer = ChatRenderer(ChatTemplates(CHAT_VERSION, {"default": text}, TOKENS)), byte_tokenizer()
    rendered = 0
    for messages, tools, prompted in conversations(200):
        theirs: str | None
        try:
            theirs = tokenizer.apply_chat_template(
                messages, tools=tools, chat_template=text, tokenize=False, add_generation_prompt=prompted
            )
        except (TemplateError, TypeError):  # refusals of a template
            theirs = None
        ours = renderer.attempt(messages, tools, prompted=prompted, now=datetime.now())
        assert ours == theirs, (messages, tools)
        rendered += theirs is not None
    renderer.close()
    assert rendered >= 60

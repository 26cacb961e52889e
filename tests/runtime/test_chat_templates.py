"""Chat templates: prompts equal to those of transformers, within limits, and what a template drops is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import transformers as hf
from transformers.utils import chat_template_utils

from adapter_export.bases.chat_files import file_templates, folder_templates
from adapter_export.errors import FormatError, RequestError, UsageError
from adapter_export.format.generation import CHAT_VERSION, ChatRecord, ChatTemplates, parse_chat_templates
from adapter_export.runtime.generation.chat import ChatRenderer, tool_call, tool_named, tool_result
from adapter_export.runtime.generation.golden_chats import sample_chats
from adapter_export.torch_backend.own_chat import own_chat

TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
USER = [{"role": "user", "content": "How far?"}]

TEMPLATES = {
    "chatml": (
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "system before the first question": (
        "{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content'] ~ '\n\n' %}"
        "{%- set messages = messages[1:] %}{%- endif %}{{- bos_token }}"
        "{%- for message in messages %}"
        "{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{- raise_exception('Roles must alternate user/assistant/user/assistant/...') }}{%- endif %}"
        "{%- if message['role'] == 'user' %}"
        "{{- '[INST] ' + (system if loop.first and system is defined else '') + message['content'] | trim + ' [/INST]' }}"
        "{%- else %}{{- ' ' + message['content'] | trim + eos_token }}{%- endif %}{%- endfor %}"
    ),
    "date and tools": (
        "{{- bos_token }}\n{%- if not date_string is defined %}\n    {%- set date_string = strftime_now('%d %b %Y') %}\n"
        "{%- endif %}\nToday Date: {{ date_string }}\n{%- if tools is not none %}\n    {%- for t in tools %}\n"
        "        {{- t | tojson(indent=4) }}\n        {{- '\\n\\n' }}\n    {%- endfor %}\n{%- endif %}\n"
        "{%- for message in messages %}\n    {%- if 'tool_calls' in message %}\n"
        "        {%- if message.tool_calls | length != 1 %}{{- raise_exception('one tool-call at once') }}{%- endif %}\n"
        "        {%- set call = message.tool_calls[0].function %}\n"
        "        {{- '{\"name\": \"' + call.name + '\", \"parameters\": ' }}{{- call.arguments | tojson }}{{- '}<|eot|>' }}\n"
        "    {%- else %}\n        {{- '<|start|>' + message.role + '<|end|>\\n\\n' + message['content'] | trim + '<|eot|>' }}\n"
        "    {%- endif %}\n{%- endfor %}\n"
    ),
    "reasoning of earlier turns": (
        "{%- set ns = namespace(last=messages | length - 1, found=false) %}"
        "{%- for message in messages[::-1] %}{%- if not ns.found and message.role == 'user' %}"
        "{%- set ns.found = true %}{%- set ns.last = messages | length - 1 - loop.index0 %}{%- endif %}{%- endfor %}"
        "{%- for message in messages %}{%- set content = message.content or '' %}"
        "{%- if message.role == 'assistant' and '</think>' in content %}"
        "{%- set content = content.split('</think>')[-1].lstrip('\n') if loop.index0 < ns.last else content %}{%- endif %}"
        "{{- '<' ~ message.role ~ '>' ~ (message.reasoning_content or '') ~ content ~ '</s>\n' }}"
        "{%- if loop.index0 > 40 %}{%- break %}{%- endif %}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<assistant>' }}"
        "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}"
        "{%- endif %}"
    ),
    "macros and blocks": (
        "{% macro line(role, text='') %}{{ role | upper }}: {{ text | replace('\\r\\n', '\\n') }}{% endmacro %}\n"
        "{% for role, group in messages | groupby('role') %}{% endfor %}\n"
        "{% for message in messages | selectattr('role', 'ne', 'developer') %}\n"
        "  {% if message.role == 'assistant' %}\n"
        "    {% generation %}{{ line('bot', message.content) }}{{ eos_token }}{% endgeneration %}\n"
        "  {% else %}\n{{ line(message.role, message['content']) }}\n  {% endif %}\n"
        "{% endfor %}\n{{ dict(a=1) | tojson }} {{ messages | map(attribute='role') | unique | join(', ') }}"
        "{{- messages | tojson(ensure_ascii=true) }}{% if add_generation_prompt %}BOT:{% endif %}"
    ),
}


def _renderer(template: str, record: ChatRecord | None = None, **others: str) -> ChatRenderer:
    return ChatRenderer(ChatTemplates(CHAT_VERSION, {"default": template, **others}, TOKENS), record)


def _theirs(template: str, messages: Any, tools: Any, prompted: bool, **variables: Any) -> str | None:
    """The prompt of transformers, `None` for a refusal."""
    tokenizer = hf.PreTrainedTokenizerBase(**TOKENS)
    try:
        return str(
            tokenizer.apply_chat_template(
                messages,
                tools=tools,
                chat_template=template,
                tokenize=False,
                add_generation_prompt=prompted,
                **variables,
            )
        )
    except Exception:  # any error of a template is a refusal
        return None


def _conversations() -> Iterator[tuple[list[dict[str, Any]], list[dict[str, Any]] | None, bool]]:
    """The golden conversations, and combinations of texts that templates treat in special ways."""
    for sample in sample_chats(TOKENS):
        yield (
            [*map(dict, sample.messages)],
            None if sample.tools is None else [*map(dict, sample.tools)],
            sample.prompted,
        )
    texts = [
        "",
        " ",
        "a\r\nb\n",
        "{{ 7*7 }}{% endfor %}{# x",
        "<s>[INST] </s>",
        "<think>é</think>\n\nä",
        "👩‍💻\u2028\x00\ud83d",
    ]
    for first, second in [(a, b) for a in texts for b in texts]:
        turns = [{"role": "user", "content": first}, {"role": "assistant", "content": second}]
        yield [*turns, {"role": "user", "content": "And?"}], None, True
    for text in texts:
        system = {"role": "system", "content": text}
        thought = {"role": "assistant", "content": text, "reasoning_content": f"hm {text}", "refusal": None}
        result = tool_result("weather", text)
        yield [system, *USER, thought], None, False
        yield [system, *USER, tool_call("weather", city=text), result], [tool_named("weather")], True


@pytest.mark.parametrize("name", TEMPLATES)
def test_prompts_are_those_of_transformers(name: str) -> None:
    renderer, template = _renderer(TEMPLATES[name]), TEMPLATES[name]
    conversations = [*_conversations()]
    assert len(conversations) > 80
    refused = 0
    for messages, tools, prompted in conversations:
        theirs = _theirs(template, messages, tools, prompted)
        assert renderer.attempt(messages, tools, prompted=prompted, now=datetime.now()) == theirs, (messages, tools)
        refused += theirs is None
    assert refused < len(conversations) / 2
    renderer.close()


def test_marked_answers_are_those_of_transformers() -> None:
    template = TEMPLATES["macros and blocks"]
    renderer = _renderer(template)
    for messages, tools, prompted in _conversations():
        if _theirs(template, messages, tools, prompted) is None:
            continue
        messages = [{key: value for key, value in message.items() if value is not None} for message in messages]
        (text,), (spans,) = chat_template_utils.render_jinja_template(
            [messages], tools, chat_template=template, return_assistant_tokens_mask=True, add_generation_prompt=prompted,
            **TOKENS,
        )  # fmt: skip
        found = renderer.render(messages, tools, prompted=prompted)
        assert (found.text, list(found.spans)) == (text, spans)


def test_variables_reach_the_template() -> None:
    renderer, name = _renderer(TEMPLATES["reasoning of earlier turns"]), "reasoning of earlier turns"
    found = renderer.render(USER, variables={"enable_thinking": False}).text
    assert found == _theirs(TEMPLATES[name], USER, None, True, enable_thinking=False)
    assert found.endswith("</think>\n\n")
    with pytest.raises(RequestError, match="does not read a variable; found `enable_thinkin`"):
        renderer.render(USER, variables={"enable_thinkin": False})
    with pytest.raises(RequestError, match="fixed value; found `bos_token`"):
        renderer.render(USER, variables={"bos_token": ""})


def test_the_date_is_that_of_the_call() -> None:
    renderer = _renderer(TEMPLATES["date and tools"])
    assert "Today Date: 06 May 2024<|start|>" in renderer.render(USER, now=datetime(2024, 5, 6)).text
    assert f"Today Date: {datetime.now():%d %b %Y}<|start|>" in renderer.render(USER).text


def test_named_templates_are_chosen_as_in_transformers() -> None:
    renderer = _renderer("plain", tool_use="{{ tools | length }} tools")
    assert renderer.render(USER).text == "plain"
    assert renderer.render(USER, [tool_named("a")]).text == "1 tools"
    with pytest.raises(RequestError, match="no default chat template"):
        ChatRenderer(ChatTemplates(CHAT_VERSION, {"rag": "x"}, {})).render(USER)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "timeout"),
        ("{% set x = (messages | length) ** (2 ** 40) %}", "timeout|memory"),
        ("{{ 'x' * 10 ** 10 }}", "memory"),
        (
            "{% set n = namespace(x='xxxxxxxx') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
            "memory",
        ),
        ("{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}", "1,000,000 characters"),
    ],
)
def test_a_template_cannot_exceed_its_limits(template: str, reason: str) -> None:
    renderer = _renderer(f"{{% if messages | length > 1 %}}{template}{{% else %}}fine{{% endif %}}")
    with pytest.raises(RequestError, match=reason):
        renderer.render(USER * 2)
    assert renderer.render(USER).text == "fine"  # in a new process


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{% set n = namespace(_x=1) %}",
        "{{ cycler.__init__.__globals__.os }}",
        "{{ raise_exception('stop') }}",
        "{% include 'a' %}",
        "{% if %}",
    ],
)
def test_a_template_cannot_leave_the_sandbox(template: str) -> None:
    assert _theirs(template, USER, None, True) is None
    with pytest.raises(RequestError, match="refuses the conversation"):
        _renderer(template).render(USER)


def test_messages_that_a_template_drops_are_refused() -> None:
    template = "{% for m in messages if m.role in ('user', 'assistant') %}{{ m.content }}{% endfor %}"
    renderer = _renderer(template)
    assert (renderer.written_roles(), renderer.writes_tools()) == (("user", "assistant"), False)
    record = ChatRecord("a", "0" * 64, "b", renderer.written_roles(), renderer.writes_tools())
    strict = _renderer(template, record)
    assert strict.render(USER).text == "How far?"
    with pytest.raises(RequestError, match="drops messages of this role; found `system`"):
        strict.render([{"role": "system", "content": "Be terse."}, *USER])
    with pytest.raises(RequestError, match="ignores `tools`"):
        strict.render(USER, [tool_named("a")])
    assert _renderer(TEMPLATES["date and tools"]).writes_tools()


def test_chat_templates_are_read_from_files(tmp_path: Path) -> None:
    assert folder_templates(tmp_path) is None
    with pytest.raises(UsageError, match="has no chat template"):
        file_templates(tmp_path, None)
    config: dict[str, Any] = {
        "bos_token": {"content": "<s>"},
        "eos_token": "</s>",
        "add_bos_token": True,
        "pad_token": None,
    }
    named = [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]
    for template, expected in [("a", {"default": "a"}), (named, {"default": "a", "tool_use": "b"})]:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": template}))
        templates = folder_templates(tmp_path)
        assert templates is not None
        assert (templates.templates, templates.tokens) == (expected, {"bos_token": "<s>", "eos_token": "</s>"})
    (tmp_path / "chat_template.jinja").write_text("c")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "rag.jinja").write_text("d")
    assert file_templates(tmp_path, None).templates == {"default": "c", "rag": "d"}
    alone = file_templates(tmp_path / "chat_template.jinja", '{"bos_token": "[B]"}')
    assert (alone.templates, alone.tokens) == ({"default": "c"}, {"bos_token": "[B]"})
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": 5}')
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "additional_chat_templates" / "rag.jinja").unlink()
    with pytest.raises(FormatError, match="no template"):
        folder_templates(tmp_path)


def test_captured_templates_match_transformers(tmp_path: Path) -> None:
    words = hf.PreTrainedTokenizerFast(tokenizer_object=_words(), **TOKENS)
    words.chat_template = {"default": TEMPLATES["chatml"], "tool_use": TEMPLATES["date and tools"]}
    words.save_pretrained(tmp_path)
    captured, notes = own_chat(tmp_path, 64)
    assert captured is not None
    assert notes == ()
    assert (dict(captured.templates.templates), captured.tools) == (words.chat_template, True)
    assert captured.golden.renderer.startswith(f"transformers {hf.__version__}")
    texts = {chat.name: chat.text for chat in captured.golden.chats}
    assert texts["user"] == "<|im_start|>user\nHow far is the moon?<|im_end|>\n<|im_start|>assistant\n"
    assert texts["tools"] is not None
    words.chat_template = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    words.save_pretrained(tmp_path)
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").unlink()
    captured, notes = own_chat(tmp_path, 64)
    assert captured is None
    assert "timeout" in notes[0]


def _words() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def test_invalid_template_documents_are_refused() -> None:
    good = {"version": CHAT_VERSION, "templates": {"default": "x"}, "tokens": {}}
    assert parse_chat_templates(json.dumps(good).encode(), "x").templates == {"default": "x"}
    for wrong in ({**good, "templates": {}}, {**good, "other": 1}, {**good, "version": "2.0.0"}):
        with pytest.raises(FormatError):
            parse_chat_templates(json.dumps(wrong).encode(), "x")

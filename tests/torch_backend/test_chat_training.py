"""Training on conversations: the tokens to learn are those that transformers masks, and a model learns its answers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from heard import Heard
from published_chats import PUBLISHED, TOKENS, byte_tokenizer, template
from tiers import some_quick
from tiny_generators import CHAT_TEMPLATE, generating

import adapter_export as ae
from adapter_export.commands.bundles._chat import chat
from adapter_export.errors import DataError, RequestError, UsageError
from adapter_export.format.generation import CHAT_VERSION, CapturedChat, ChatTemplates
from adapter_export.format.tabular.conversations import read_conversation
from adapter_export.runtime.generation.chat import tool_call, tool_named, tool_result
from adapter_export.runtime.generation.golden_chats import capture_chat
from adapter_export.text import Tokenizer
from adapter_export.training.loop.chat_passages import ChatEncoder

SYSTEM = {"role": "system", "content": "You are terse."}
CALLED = [tool_call("weather", city="Zürich"), tool_result("weather", '{"°C": 21}')]
END = "w95"
Encoders = Callable[[str], tuple[ChatEncoder, CapturedChat]]


def _said(*texts: str) -> list[dict[str, Any]]:
    return [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(texts)]


CONVERSATIONS: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]] | None]] = {
    "one answer": (_said("How far?", "384,400 km."), None),
    "system": ([SYSTEM, *_said("How far?", "Far. {{ 7*7 }}")], None),
    "two answers": (_said("How far?", "Far.", "And é?", "žx 👩 ."), None),
    "system and two answers": ([SYSTEM, *_said("How far?", "Far.", "And?", "Near.")], None),
    "tools": ([*_said("How warm?"), *CALLED, *_said("", "21 °C.")[1:]], [tool_named("weather")]),
}

SAME = ("cohere", "cohere2", "gemma", "gemma3", "lfm2_2_5", "llama3", "phi3", "phi3_5", "qwen2_5_vl")
SAME += ("qwen3_instruct_2507",)
"""Models whose answers begin where their prompts end, and do not change when more messages follow."""


@pytest.fixture
def encoder_of() -> Iterator[Encoders]:
    """Makes the encoder of a template, and its record."""
    made = list[ChatEncoder]()
    tokenizer = Tokenizer.from_json(byte_tokenizer().backend_tokenizer.to_str(), 100_000)

    def make(text: str) -> tuple[ChatEncoder, CapturedChat]:
        captured = capture_chat(ChatTemplates(CHAT_VERSION, {"default": text}, TOKENS), tokenizer, "test")
        made.append(ChatEncoder(captured, tokenizer, "here"))
        return made[-1], captured

    yield make
    for encoder in made:
        encoder.close()


def _conversation(messages: Sequence[Any], tools: object = None) -> Any:
    return read_conversation({"messages": list(messages), "tools": tools}, "here")


def _compare(encoder: ChatEncoder, captured: CapturedChat, marked: str) -> None:
    """Compare the tokens and the mask of each conversation with those of transformers for a template with marks."""
    compared = 0
    for messages, tools in CONVERSATIONS.values():
        conversation = _conversation(messages, tools)
        if not {message["role"] for message in messages} <= set(captured.roles) or (tools and not captured.tools):
            with pytest.raises(DataError, match=r"drops messages of this role|ignores `tools`"):
                encoder.encode(conversation)
            continue
        found = encoder.encode(conversation)
        theirs: Any = byte_tokenizer().apply_chat_template(
            messages, tools=tools, chat_template=marked, return_dict=True, return_assistant_tokens_mask=True
        )
        assert (list(found.ids), list(map(int, found.learnt))) == (theirs["input_ids"], theirs["assistant_masks"])
        assert 0 < sum(found.learnt) < len(found.ids)
        compared += 1
    assert compared >= 2


def _marked(name: str) -> str:
    text = template(name, marked=True) or template(name)
    assert text is not None
    return text


_OTHERS = ("gemma4", "llama3_1", "llama3_2", "idefics3", "smolvlm")
MARKED = [name for name in PUBLISHED if name not in _OTHERS]
"""Models with a template that marks answers, and writes messages whose content is a text."""


@pytest.mark.parametrize("name", some_quick(MARKED, "llama3", "qwen3"))
def test_marked_answers_are_those_of_trl_and_transformers(name: str, encoder_of: Encoders) -> None:
    _compare(*encoder_of(_marked(name)), _marked(name))


@pytest.mark.parametrize("name", some_quick(SAME, "llama3", "phi3"))
def test_answers_without_marks_are_those_of_trl(name: str, encoder_of: Encoders) -> None:
    """The template that the model ships has no marks; TRL's variant has."""
    text = template(name)
    assert text is not None
    plain = text.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    plain = plain.replace("{%- generation -%}", "").replace("{%- endgeneration -%}", "")
    _compare(*encoder_of(plain), _marked(name))


@pytest.mark.parametrize(
    ("name", "which", "reason"),
    [
        ("qwen3", "two answers", "writes an answer in another way when more messages follow"),
        ("gptoss", "two answers", "writes an answer in another way when more messages follow"),
        ("deepseekv3", "one answer", "begins answers in another way than the prompts for them"),
        ("gemma", "system", "drops messages of this role"),
    ],
)
def test_templates_with_ambiguous_answers_are_refused(name: str, which: str, reason: str, encoder_of: Encoders) -> None:
    text = template(name)
    assert text is not None
    with pytest.raises(DataError, match=reason):
        encoder_of(text)[0].encode(_conversation(*CONVERSATIONS[which]))


def test_an_answer_with_the_weight_0_is_not_learnt(encoder_of: Encoders) -> None:
    first, second, third, fourth = _said("How far?", "Far.", "And?", "Near.")
    weighted = [first, {**second, "weight": 0}, third, {**fourth, "weight": 1}]
    for name, marked in (("qwen3", False), ("llama3", False), ("llama3", True)):
        text = template(name, marked=marked)
        assert text is not None
        found = encoder_of(text)[0].encode(_conversation(weighted))
        learnt = [token for token, is_learnt in zip(found.ids, found.learnt, strict=True) if is_learnt]
        words = byte_tokenizer().decode(learnt)
        assert "Near." in words
        assert "Far." not in words


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "has no messages"),
        ("hello", "has no messages"),
        ([{"role": "user", "content": "a"}], "has no answer to learn"),
        ([*_said("a"), {"role": "assistant", "content": "b", "weight": 0}], "has no answer to learn"),
        ([{"role": "user", "content": "a", "weight": 1}, *_said("", "b")[1:]], "wrong weight"),
        ([{"content": "a"}], "is not a message"),
        ([{"role": "user", "content": 5}], "not a text"),
        ([{"role": "user"}], "has no content"),
        ([{"role": "user", "content": "a", "date": "b"}], "unknown keys"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "part that is not text"),
        ([{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}], "not JSON"),
        ([{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[]"}}]}], "not an object"),
        ([{"role": "assistant", "tool_calls": [{"id": "c"}]}], "not a tool call"),
    ],
)
def test_malformed_conversations_are_faults_of_their_lines(messages: object, reason: str) -> None:
    with pytest.raises(DataError, match=reason) as caught:
        read_conversation({"messages": messages}, "a.jsonl, line 3")
    assert "a.jsonl, line 3" in str(caught.value)


def test_messages_have_the_form_of_openai() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": [1]}'}}
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": None, "tool_calls": [call]}]
    found = read_conversation({"messages": messages, "tools": json.dumps([tool_named("f")])}, "here")
    called = {**call, "function": {"name": "f", "arguments": {"a": [1]}}}
    assert found.messages == [{"role": "user", "content": "a\nb"}, {"role": "assistant", "tool_calls": [called]}]
    assert found.tools == [tool_named("f")]
    assert found.learnt == (1,)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> ae.Base:
    """The tiny Llama of the chat tests, whose template ends messages with the end token."""
    folder = tmp_path_factory.mktemp("ended")
    shutil.copytree(generating(tmp_path_factory, "chat") / "hf", folder / "hf")
    (folder / "hf" / "chat_template.jinja").write_text(CHAT_TEMPLATE.replace("w19", END))
    return ae.capture(folder / "hf", folder / "base.pt")


def _table(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(f"{json.dumps({'messages': row})}\n" for row in rows))
    return path


def test_trained_model_gives_the_learnt_answer(base: ae.Base, tmp_path: Path) -> None:
    questions = [f"w{first} w{second}" for first in (20, 33, 41, 57) for second in (5, 62)]
    data = _table(tmp_path / "a.jsonl", [_said(question, "w33 w71 w40") for question in questions])
    heard = Heard()
    adapter = ae.train(
        base, data, tmp_path / "fixed", task="causal_lm", validation_data=data, reporter=heard,
        kind="houlsby", bottleneck=16, epochs=30, learning_rate=0.02, patience=30,
    )  # fmt: skip
    # roles have two tokens, as `w1` is a special token: seven of a prompt, three words and the end token
    assert "32 of 88 tokens of the training data are learned, those of the assistant" in heard.notes
    assert adapter.training["data"]["training"]["tokens_to_learn"] == 32
    assert base.chat is not None
    assert adapter.training["data"]["training"]["chat_template"] == base.chat.templates.digest
    assert not any("stop" in note for note in heard.notes)
    ae.build(base, [tmp_path / "fixed"], tmp_path / "bundle")
    conversation = chat(tmp_path / "bundle", adapter="fixed")
    assert "".join(conversation.ask("w57 w5")) == "w33 w71 w40"
    conversation.messages.clear()
    assert "".join(conversation.ask("w20 w62")) == "w33 w71 w40"


def test_chat_training_notes_dropped_and_truncated_rows(
    base: ae.Base, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    rows = [_said("w5 w6 w7", "w8"), _said("w5", "w6 w7 w8 w9 w10"), _said("w5", "w9"), _said("w5", "w9")]
    heard = Heard()
    options: Any = {"task": "causal_lm", "kind": "pfeiffer", "bottleneck": 2, "epochs": 1, "reporter": heard}
    data = _table(tmp_path / "a.jsonl", rows)
    adapter = ae.train(base, data, max_tokens=8, validation_data=data, **options)
    # `w11 w5 w6 w7 w95 w12 | …`, `w11 w5 w95 w12 | w6 w7 …`, `w11 w5 w95 w12 | w9 w95`; roles have two tokens
    assert adapter.training["data"]["training"]["tokens_to_learn"] == 2 + 2
    assert "2 texts of the training data exceed 8 tokens and are truncated" in heard.notes
    assert "1 text of the training data has no tokens to learn and was skipped" in heard.notes
    assert "1 row of the training data repeats another row and was skipped (line 4)" in heard.notes
    assert any("reading the training conversations" in step for step in heard.steps)
    with pytest.raises(UsageError, match="the chat template ends the answers"):
        ae.train(base, data, end_token="w9", **options)
    with pytest.raises(UsageError, match="conversations cannot be packed"):
        ae.train(base, data, packing=True, **options)
    plain = generating(tmp_path_factory, "llama") / "base.pt"
    with pytest.raises(RequestError, match="the model has no chat template"):
        ae.train(plain, data, **options)
    unended = Heard()
    ae.train(generating(tmp_path_factory, "chat") / "base.pt", data, **{**options, "reporter": unended})
    assert "the chat template ends answers without an end token, so the model does not learn to stop" in unended.notes


def test_a_conversation_that_the_template_drops_is_refused_with_its_line(
    base: ae.Base, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    data = _table(tmp_path / "a.jsonl", [_said("w5", "w6"), [{"role": "critic", "content": "w5"}, *_said("w5", "w6")]])
    with pytest.raises(DataError, match=r"line 2: the chat template drops messages of this role"):
        ae.train(base, data, task="causal_lm", kind="pfeiffer", bottleneck=2, epochs=1)
    with pytest.raises(UsageError, match="has conversations, which only `train` reads"):
        ae.evaluate(generating(tmp_path_factory, "chat") / "bundle", data, adapter="a")

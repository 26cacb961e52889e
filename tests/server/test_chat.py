"""`POST /v1/chat/completions`: conversations become prompts by the bundle's template, and share the engine of texts."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import torch
import transformers as hf
from bodies import checked
from langchain_openai import ChatOpenAI
from served import made_app
from starlette.testclient import TestClient
from tiny_generators import LONGEST, generating, peft_model

from adapter_export.runtime import Bundle, Decoding
from adapter_export.runtime.generation.text_writer import TextWriter

MESSAGES = [
    {"role": "system", "content": "w5 w9"},
    {"role": "user", "content": "w33 w71"},
    {"role": "assistant", "content": "w17"},
    {"role": "user", "content": "w40 w2 w8"},
]
TOOLS = [{"type": "function", "function": {"name": "w66", "parameters": {"type": "object", "properties": {}}}}]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generating(tmp_path_factory, "chat")


@pytest.fixture(scope="module")
def writer(places: Path) -> TextWriter:
    return Bundle.open(places / "bundle").writer()


@pytest.fixture(scope="module")
def service(places: Path) -> Iterator[TestClient]:
    with made_app(f"llama={places / 'bundle'}", quiet=True) as client:
        yield client


@pytest.fixture
def client(service: TestClient) -> openai.OpenAI:
    return openai.OpenAI(base_url="http://127.0.0.1/v1", api_key="none", http_client=service)


def _call(**call: Any) -> dict[str, Any]:
    return checked({"model": "a", "messages": MESSAGES, "temperature": 0, "max_tokens": 8, **call}, "chat")


def _posted(service: TestClient, path: str = "/v1/chat/completions", **call: Any) -> dict[str, Any]:
    answer = service.post(path, json=_call(**call))
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def _expected(places: Path, name: str | None, messages: list[Any], count: int = 8, **options: Any) -> tuple[str, int]:
    """Text and number of prompt tokens of transformers' `apply_chat_template` and `generate`."""
    tokenizer = hf.AutoTokenizer.from_pretrained(places / "hf")
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False, **options)
    with torch.no_grad():
        found = peft_model(places, name).generate(
            torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), max_new_tokens=count, do_sample=False
        )
    return tokenizer.decode(found[0, len(ids) :], skip_special_tokens=True), len(ids)


@pytest.mark.parametrize("model", ["a", "b", "llama", "llama/b", "llama:a"])
def test_the_client_of_openai_gets_the_texts_of_transformers(places: Path, client: openai.OpenAI, model: str) -> None:
    adapter = None if model == "llama" else model[-1]
    text, tokens = _expected(places, adapter, MESSAGES)
    options: Any = {"model": model, "messages": MESSAGES, "temperature": 0, "max_completion_tokens": 8}
    whole = client.chat.completions.create(**options)
    assert (whole.object, whole.choices[0].message.role) == ("chat.completion", "assistant")
    assert whole.choices[0].message.content == text
    assert whole.usage is not None
    assert whole.usage.prompt_tokens == tokens
    chunks = list(client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    first, *pieces, last = chunks
    assert first.choices[0].delta.role == "assistant"
    assert len(pieces) > 3
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == text
    reasons = [piece.choices[0].finish_reason for piece in pieces]
    assert reasons == [None] * (len(pieces) - 1) + [whole.choices[0].finish_reason]
    assert (last.choices, last.usage) == ([], whole.usage)


def test_adapters_answer_differently_and_share_calls(places: Path, writer: TextWriter) -> None:
    names = ["a", "b", "llama"] * 3
    prompt = writer.chat.render(MESSAGES)
    adapters = [None if name == "llama" else name for name in names]
    expected = [text.text for text in writer.write([prompt] * 9, adapters=adapters, decoding=Decoding(8))]
    with made_app(f"llama={places / 'bundle'}", quiet=True) as service, ThreadPoolExecutor(9) as clients:
        answers = list(clients.map(lambda name: _posted(service, model=name), names))
    assert [answer["choices"][0]["message"]["content"] for answer in answers] == expected
    assert len(set(expected)) == 3


def test_no_token_is_added_to_the_template(places: Path, service: TestClient, writer: TextWriter) -> None:
    """Special tokens in a message are those of transformers; a message that looks like a template stays text."""
    messages = [{"role": "user", "content": "w1 {{ 7*7 }} w95 {% for x in y %}"}]
    text, tokens = _expected(places, "a", messages)
    found = _posted(service, messages=messages)
    assert (found["choices"][0]["message"]["content"], found["usage"]["prompt_tokens"]) == (text, tokens)
    assert "{{ 7*7 }}" in writer.chat.render(messages).text


def test_tools_reach_the_template(places: Path, service: TestClient, writer: TextWriter) -> None:
    turn = {"id": "c1", "type": "function", "function": {"name": "w66", "arguments": '{"w7": 2, "w3": [1]}'}}
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "w5"}, {"type": "text", "text": "w6"}]},
        {"role": "assistant", "content": None, "tool_calls": [turn]},
        {"role": "tool", "tool_call_id": "c1", "content": "w9"},
    ]
    plain = [
        {"role": "user", "content": "w5\nw6"},
        {"role": "assistant", "tool_calls": [{**turn, "function": {"name": "w66", "arguments": {"w7": 2, "w3": [1]}}}]},
        {"role": "tool", "tool_call_id": "c1", "content": "w9"},
    ]
    text, tokens = _expected(places, "b", plain, tools=TOOLS)
    found = _posted(service, model="b", messages=messages, tools=TOOLS, tool_choice="auto")
    assert (found["choices"][0]["message"]["content"], found["usage"]["prompt_tokens"]) == (text, tokens)
    left_out = _posted(service, model="b", messages=messages, tools=TOOLS, tool_choice="none")
    assert left_out["usage"]["prompt_tokens"] == _expected(places, "b", plain)[1] < tokens
    swapped = [{"function": TOOLS[0]["function"], "type": "function"}]  # templates write keys in their order
    assert json.dumps(swapped) in writer.chat.render(plain, swapped).text


def test_generation_options_apply_to_chats(service: TestClient, writer: TextWriter) -> None:
    whole = _posted(service)["choices"][0]["message"]["content"]
    words = whole.split()
    stopped = _posted(service, stop=f"{words[3]} {words[4]}")["choices"][0]
    assert (stopped["message"]["content"].split(), stopped["finish_reason"]) == (words[:3], "stop")
    drawn: dict[str, Any] = {"temperature": 1.5, "top_p": 0.9, "n": 3}
    first, again, other = (_posted(service, seed=seed, **drawn)["choices"] for seed in (3, 3, 4))
    assert first == again != other
    assert [choice["index"] for choice in first] == [0, 1, 2]
    prompt = writer.chat.render(MESSAGES)
    expected = writer.write([prompt] * 3, "a", decoding=Decoding(8, temperature=1.5, top_p=0.9, seed=3))
    assert [choice["message"]["content"] for choice in first] == [text.text for text in expected]
    longest = _posted(service, max_tokens=None, model="b")
    assert longest["usage"]["total_tokens"] <= LONGEST
    loud = _posted(service, chat_template_kwargs={"loud": True})
    assert loud["usage"]["prompt_tokens"] == _posted(service)["usage"]["prompt_tokens"] + 1


def test_log_probabilities_are_those_of_the_model(places: Path, client: openai.OpenAI, service: TestClient) -> None:
    tokenizer = hf.AutoTokenizer.from_pretrained(places / "hf")
    options: Any = {"model": "a", "messages": MESSAGES, "temperature": 0, "max_tokens": 6}
    whole = client.chat.completions.create(**options, logprobs=True, top_logprobs=3)
    assert whole.choices[0].logprobs is not None
    content = whole.choices[0].logprobs.content
    assert content
    ids = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False)
    tokens = [tokenizer.convert_tokens_to_ids(each.token.strip()) for each in content]
    with torch.no_grad():
        logits = peft_model(places, "a")(torch.tensor([[*ids, *tokens]])).logits[0, len(ids) - 1 : -1]
    expected = torch.log_softmax(logits.double(), -1).numpy()
    for each, row, token in zip(content, expected, tokens, strict=True):
        assert math.isclose(each.logprob, row[token], abs_tol=1e-4)
        assert each.bytes == list(each.token.encode())
        best = np.argsort(-row)[:3]
        assert [tokenizer.convert_tokens_to_ids(top.token.strip()) for top in each.top_logprobs] == best.tolist()
        assert np.allclose([top.logprob for top in each.top_logprobs], row[best], atol=1e-4)
    chunks = client.chat.completions.create(**options, logprobs=True, stream=True)
    scores = [chunk.choices[0].logprobs for chunk in chunks if chunk.choices]
    streamed = [each.logprob for score in scores if score is not None for each in score.content or ()]
    assert streamed == [each.logprob for each in content]
    assert _posted(service)["choices"][0]["logprobs"] is None


def test_a_request_that_would_be_answered_wrongly_is_refused(service: TestClient) -> None:
    def refused(status: int = 400, **call: Any) -> str:
        answer = service.post("/v1/chat/completions", json={"model": "a", "messages": MESSAGES, **call})
        assert answer.status_code == status, answer.text
        return str(answer.json()["error"]["message"])

    unsupported: dict[str, Any] = {
        "functions": [{"name": "f"}],
        "logit_bias": {"5": 1},
        "frequency_penalty": 0.5,
        "response_format": {"type": "grammar"},
        "parallel_tool_calls": False,
        "metadata": {"a": "b"},
        "audio": {"voice": "x"},
        "tool_choice": "required",
    }
    for name, value in unsupported.items():
        assert name in refused(**{name: value})
    user = {"role": "user", "content": "w5"}
    assert "`developer`" in refused(messages=[{"role": "developer", "content": "w5"}, user])
    assert "no content" in refused(messages=[{"role": "user", "content": None}])
    assert "messages" in refused(messages=[])
    picture = {"type": "image_url", "image_url": {"url": "data:,"}}
    assert "content" in refused(messages=[{"role": "user", "content": [picture]}])
    called = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "[1]"}}
    assert "not an object" in refused(messages=[user, {"role": "assistant", "tool_calls": [called]}])
    assert "does not read a variable" in refused(chat_template_kwargs={"quiet": True})
    assert "fixed value" in refused(chat_template_kwargs={"messages": []})
    assert "needs `logprobs`" in refused(top_logprobs=2)
    assert "exclude each other" in refused(max_tokens=3, max_completion_tokens=3)
    assert "limit of this server" in refused(max_completion_tokens=4097)
    assert "prompt 0" in refused(messages=[{"role": "user", "content": " ".join(["w5"] * LONGEST)}])
    assert "there is no model" in refused(404, model="llama:c")


def test_a_bundle_without_a_template_says_how_to_add_one(tmp_path_factory: pytest.TempPathFactory) -> None:
    with made_app(f"llama={generating(tmp_path_factory, 'llama') / 'bundle'}", quiet=True) as service:
        answer = service.post("/v1/chat/completions", json={"model": "a", "messages": MESSAGES})
        assert answer.status_code == 400
        message = answer.json()["error"]["message"]
        assert "no chat template" in message
        assert "chat_template" in message
        plain = service.post("/v1/completions", json={"model": "a", "prompt": "w5", "max_tokens": 2})
        assert plain.status_code == 200


def test_langchain_chats(places: Path, service: TestClient) -> None:
    chat = ChatOpenAI(
        base_url="http://127.0.0.1/v1", api_key="none", model="b", temperature=0, max_tokens=8, http_client=service
    )
    text, _ = _expected(places, "b", MESSAGES)
    assert chat.invoke(MESSAGES).content == text
    pieces = [piece.content for piece in chat.stream(MESSAGES)]
    assert ("".join(map(str, pieces)), len(pieces) > 3) == (text, True)

"""Ollama's API, by its own client: the texts and vectors are those of the engine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import ollama
import pytest
from served import made_app, served
from starlette.testclient import TestClient
from text_bundle import LONGEST
from tiers import extended
from tiny_generators import generating

from adapter_export.runtime import Bundle, Decoding
from adapter_export.runtime.generation.text_writer import TextWriter
from adapter_export.version import __version__

MESSAGES = [
    {"role": "system", "content": "w5 w9"},
    {"role": "user", "content": "w33 w71"},
    {"role": "assistant", "content": "w17"},
    {"role": "user", "content": "w40 w2 w8"},
]
TOOLS = [{"type": "function", "function": {"name": "w66", "parameters": {"type": "object", "properties": {}}}}]
GREEDY: dict[str, Any] = {"temperature": 0, "num_predict": 8}
TEXTS = ["It was written by six people in Berlin.", "No."]
CLOSE = 1e-6
"""Difference of a float32 number that was written as JSON and computed in another batch."""


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generating(tmp_path_factory, "chat")


@pytest.fixture(scope="module")
def writer(places: Path) -> TextWriter:
    return Bundle.open(places / "bundle").writer()


@pytest.fixture(scope="module")
def service(places: Path, text_folder: Path) -> Iterator[TestClient]:
    with made_app(f"llama={places / 'bundle'}", f"film={text_folder / 'bundle'}", quiet=True) as client:
        yield client


@pytest.fixture
def client(service: TestClient) -> Iterator[ollama.Client]:
    """Ollama's client, which uses httpx; the client of Starlette uses httpx2."""

    def send(request: httpx.Request) -> httpx.Response:
        answer = service.request(request.method, request.url.path, content=request.content)
        return httpx.Response(answer.status_code, content=answer.content, headers={"content-type": "application/json"})

    with ollama.Client("http://127.0.0.1", transport=httpx.MockTransport(send)) as client:
        yield client


@pytest.fixture(scope="module")
@extended
def live(places: Path) -> Iterator[ollama.Client]:
    """A client of a server in its own process."""
    with (
        served(f"llama={places / 'bundle'}", "--quiet") as found,
        ollama.Client(str(found.client.base_url), trust_env=False) as client,
    ):
        yield client


def _written(writer: TextWriter, model: str, prompt: Any, **options: Any) -> Any:
    """The text of the bundle without a server."""
    adapter = None if model == "llama" else model
    (text,) = writer.write([prompt], adapters=[adapter], decoding=Decoding(**{"max_new_tokens": 8, **options}))
    return text


@pytest.mark.parametrize("model", ["a", "b", "llama"])
def test_chats_are_answered_whole_and_streamed(client: ollama.Client, writer: TextWriter, model: str) -> None:
    prompt = writer.chat.render(MESSAGES)
    expected = _written(writer, model, prompt)
    whole = client.chat(model, MESSAGES, options=GREEDY)
    assert (whole.message.role, whole.message.content) == ("assistant", expected.text)
    assert (whole.model, whole.done, whole.eval_count) == (model, True, len(expected.tokens))
    assert whole.done_reason == ("length" if expected.finish == "length" else "stop")
    assert whole.prompt_eval_count == len(
        writer._tokenizer.whole([writer.chat.render(MESSAGES).text], special=False)[0]
    )
    assert whole.total_duration >= (whole.eval_duration or 0) + (whole.prompt_eval_duration or 0) > 0
    parts = list(client.chat(f"{model}:latest", MESSAGES, options=GREEDY, stream=True))
    assert len(parts) > 3
    assert "".join(part.message.content or "" for part in parts) == expected.text
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    assert (parts[-1].eval_count, parts[-1].done_reason) == (whole.eval_count, whole.done_reason)


def test_texts_are_generated_with_and_without_the_template(client: ollama.Client, writer: TextWriter) -> None:
    messages = [{"role": "system", "content": "w9"}, {"role": "user", "content": "w33"}]
    chat = client.generate("a", "w33", system="w9", options=GREEDY)
    assert chat.response == _written(writer, "a", writer.chat.render(messages)).text
    raw = client.generate("b", "w33 w4", raw=True, options=GREEDY)
    assert raw.response == _written(writer, "b", "w33 w4").text
    parts = list(client.generate("b", "w33 w4", raw=True, options=GREEDY, stream=True))
    assert "".join(part.response for part in parts) == raw.response


def test_options_are_those_of_ollama(client: ollama.Client, writer: TextWriter, service: TestClient) -> None:
    prompt = writer.chat.render(MESSAGES)
    options = {"temperature": 1.5, "top_p": 0.9, "top_k": 30, "seed": 3, "num_predict": 6}
    drawn = client.chat("a", MESSAGES, options=options).message.content
    sampling = {"temperature": 1.5, "top_p": 0.9, "top_k": 30, "seed": 3}
    assert drawn == _written(writer, "a", prompt, max_new_tokens=6, **sampling).text
    defaults = client.chat("a", MESSAGES, options={"seed": 5, "num_predict": 6, "num_ctx": 4096}).message.content
    sampling = {"temperature": 0.8, "top_p": 0.9, "top_k": 40, "seed": 5}
    assert defaults == _written(writer, "a", prompt, max_new_tokens=6, **sampling).text
    greedy = _written(writer, "a", prompt)
    words = greedy.text.split()
    stopped = client.chat("a", MESSAGES, options={**GREEDY, "stop": [f"{words[3]} {words[4]}"]})
    assert (stopped.message.content.split(), stopped.done_reason) == (words[:3], "stop")
    streamed = service.post("/api/chat", json={"model": "a", "messages": MESSAGES, "options": GREEDY})  # by default
    assert streamed.headers["content-type"].startswith("application/x-ndjson")
    lines = [json.loads(line) for line in streamed.text.splitlines()]
    assert "".join(line["message"]["content"] for line in lines) == greedy.text


def test_tools_reach_the_template(client: ollama.Client, writer: TextWriter) -> None:
    call = {"function": {"name": "w66", "arguments": {"w7": 2}}}
    messages = [
        {"role": "user", "content": "w5"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "content": "w9", "tool_name": "w66"},
    ]
    plain = [
        {"role": "user", "content": "w5"},
        {"role": "assistant", "tool_calls": [{"type": "function", **call}]},
        {"role": "tool", "content": "w9", "name": "w66"},
    ]
    expected = _written(writer, "b", writer.chat.render(plain, TOOLS))
    assert client.chat("b", messages, tools=TOOLS, options=GREEDY).message.content == expected.text


def test_texts_follow_a_json_schema(tmp_path_factory: pytest.TempPathFactory) -> None:
    bundle = generating(tmp_path_factory, "bytes") / "bundle"
    schema = {"type": "object", "properties": {"near": {"type": "boolean"}}, "required": ["near"]}
    schema["additionalProperties"] = False
    writer, messages = Bundle.open(bundle).writer(), [{"role": "user", "content": "How far?"}]
    with made_app(f"llama={bundle}", quiet=True) as service:
        for name in ("a", "b"):
            call = {"model": name, "messages": messages, "options": {"temperature": 0, "num_predict": 90}}
            answer = service.post("/api/chat", json={**call, "format": schema, "stream": False})
            text = answer.json()["message"]["content"]
            expected = _written(writer, name, writer.chat.render(messages), max_new_tokens=90, json_schema=schema)
            assert text == expected.text
            assert json.loads(text)["near"] in (True, False)
            plain = service.post("/api/chat", json={**call, "format": "json", "stream": False})
            assert plain.json()["message"]["content"].startswith("{")


def test_vectors_are_those_of_the_bundle(client: ollama.Client, text_folder: Path) -> None:
    reader = Bundle.open(text_folder / "bundle").texts()
    expected = [answer.document()["vector"] for answer in reader.answer(TEXTS, "vector")]
    found = client.embed("vector", TEXTS)
    np.testing.assert_allclose(found.embeddings, expected, atol=CLOSE)
    assert found.prompt_eval_count == 13 + 6  # with `[CLS]`, the prefix `query:` and `[SEP]`
    (short,) = client.embed("film/vector", TEXTS[0], dimensions=8).embeddings
    np.testing.assert_allclose(short, expected[0][:8] / np.linalg.norm(expected[0][:8]), atol=CLOSE)
    np.testing.assert_allclose(client.embeddings("vector", TEXTS[1]).embedding, expected[1], atol=CLOSE)
    long = "moon " * LONGEST
    (cut,) = reader.answer([long], "vector")
    np.testing.assert_allclose(client.embed("vector", long).embeddings[0], cut.document()["vector"], atol=CLOSE)
    with pytest.raises(ollama.ResponseError, match="more tokens than are taken"):
        client.embed("vector", long, truncate=False)


def test_models_are_listed_and_shown(client: ollama.Client, service: TestClient, places: Path) -> None:
    models = {model.model: model for model in client.list().models}
    assert {"a", "b", "llama", "film", "vector"} <= models.keys()
    size = (places / "bundle" / "adapters" / "a.onnx_adapter").stat().st_size
    assert (models["a"].size, models["a"].details.parent_model) == (size, "llama")
    assert models["llama"].size > models["a"].size
    assert client.show("a").capabilities == ["completion", "tools"]
    assert client.show("vector:latest").capabilities == ["embedding"]
    assert client.show("topic").capabilities == []
    assert client.show("topic").modelinfo["onnx.task"] == "single_label"
    assert service.get("/api/version").json() == {"version": __version__}
    loaded = client.generate("a")
    assert (loaded.done, loaded.done_reason, loaded.response) == (True, "load", "")


def test_a_request_that_would_be_answered_wrongly_is_refused(client: ollama.Client, service: TestClient) -> None:
    def refused(path: str, **call: Any) -> str:
        answer = service.post(path, json={"model": "a", **call})
        assert answer.status_code == 400, answer.text
        return str(answer.json()["error"])

    for options in (
        {"repeat_penalty": 1.1},
        {"mirostat": 1},
        {"min_p": 0.1},
        {"num_predict": 10**6},
        {"tempreature": 1},
    ):
        (name,) = options
        assert name in refused("/api/chat", messages=MESSAGES, options=options)
    unsupported = {"format": "yaml", "think": True, "logprobs": True, "images": ["x"], "suffix": "x", "context": [1]}
    for name, value in unsupported.items():
        assert name in refused("/api/generate", prompt="w5", **{name: value})
    assert "images" in refused("/api/chat", messages=[{"role": "user", "content": "w5", "images": ["x"]}])
    assert "`developer`" in refused("/api/chat", messages=[{"role": "developer", "content": "w5"}])
    assert "`enable_thinking`" in refused("/api/chat", messages=MESSAGES, think=False)
    assert "does not generate" in refused("/api/chat", model="vector", messages=MESSAGES)
    assert "does not return vectors" in refused("/api/embed", model="topic", input="a")
    with pytest.raises(ollama.ResponseError) as missing:
        client.chat("none", MESSAGES)
    assert missing.value.status_code == 404


def test_a_server_streams_line_by_line(live: ollama.Client, writer: TextWriter) -> None:
    expected = [_written(writer, name, writer.chat.render(MESSAGES)).text for name in ("a", "b")]
    streams = [live.chat(name, MESSAGES, options=GREEDY, stream=True) for name in ("a", "b")]
    texts = ["", ""]
    for parts in zip_longest(*streams):  # both are read by turns
        texts = [text + (part.message.content if part else "") for text, part in zip(texts, parts, strict=True)]
    assert texts == expected

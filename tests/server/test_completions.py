"""`POST /v1/completions`: texts of concurrent requests share calls, and each equals the text of a single request."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from bodies import checked
from langchain_openai import OpenAI as LangChainOpenAI
from served import made_app
from starlette.testclient import TestClient
from starlette.types import Message
from tiny_generators import END, LONGEST, generating

from adapter_export.plugins.serve.models import named_bundles
from adapter_export.plugins.serve.process import make_server
from adapter_export.plugins.serve.server_settings import Limits, ServerSettings, SessionSettings
from adapter_export.plugins.serve.telemetry import Metrics
from adapter_export.runtime import Bundle, Decoding
from adapter_export.runtime.generation.text_writer import Generated, TextWriter

PROMPTS = ["w5 w9 w33 w71", "w17", "w40 w2 w8 w60 w61 w62 w7 w12 w90"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generating(tmp_path_factory, "llama") / "bundle"


@pytest.fixture(scope="module")
def writer(folder: Path) -> TextWriter:
    return Bundle.open(folder).writer()


@pytest.fixture(scope="module")
def read(folder: Path) -> int:
    """Tokens of `PROMPTS`."""
    return sum(len(encoding.ids) for encoding in Bundle.open(folder).tokenizer().whole(PROMPTS))


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[TestClient]:
    with made_app(f"llama={folder}", quiet=True) as client:
        yield client


def _greedy(**call: Any) -> dict[str, Any]:
    return checked({"model": "a", "temperature": 0, "max_tokens": 8, **call}, "completions")


def _posted(service: TestClient, path: str = "/v1/completions", **call: Any) -> dict[str, Any]:
    answer = service.post(path, json=_greedy(**call))
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def _streamed(service: TestClient, **call: Any) -> list[Any]:
    """The documents of the events of a stream."""
    answer = service.post("/v1/completions", json=_greedy(stream=True, **call))
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    *events, last, end = answer.text.split("\n\n")
    assert (last, end) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in events]


def _finish(text: Generated) -> str:
    return "length" if text.finish == "length" else "stop"


@pytest.mark.parametrize("path", ["/v1/completions", "/openai/v1/completions"])
def test_texts_are_those_of_the_writer(service: TestClient, writer: TextWriter, read: int, path: str) -> None:
    for model, adapter in [("a", "a"), ("llama/b", "b"), ("llama", None)]:
        expected = writer.write(PROMPTS, adapters=[adapter] * 3, decoding=Decoding(8))
        found = _posted(service, path, model=model, prompt=PROMPTS)
        choices = [(choice["index"], choice["text"], choice["finish_reason"]) for choice in found["choices"]]
        assert choices == [(at, text.text, _finish(text)) for at, text in enumerate(expected)]
        written = sum(len(text.tokens) for text in expected)
        assert found["usage"] == {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
        assert (found["object"], found["model"]) == ("text_completion", model)
    alone = _posted(service, path, prompt=PROMPTS[0])
    assert [choice["text"] for choice in alone["choices"]] == [
        writer.write(PROMPTS[:1], "a", decoding=Decoding(8))[0].text
    ]


def test_a_stream_has_the_pieces_of_the_text(service: TestClient) -> None:
    whole = _posted(service, prompt=PROMPTS)
    events = _streamed(service, prompt=PROMPTS, stream_options={"include_usage": True})
    *pieces, last = events
    assert (last["choices"], last["usage"]) == ([], whole["usage"])
    assert len(pieces) > 10
    assert all(piece["usage"] is None and len(piece["choices"]) == 1 for piece in pieces)
    for choice in whole["choices"]:
        own = [piece["choices"][0] for piece in pieces if piece["choices"][0]["index"] == choice["index"]]
        assert "".join(part["text"] for part in own) == choice["text"]
        assert [part["finish_reason"] for part in own] == [None] * (len(own) - 1) + [choice["finish_reason"]]
    assert all("usage" not in piece for piece in _streamed(service, prompt=PROMPTS[0]))


def test_stop_strings_end_texts_and_are_left_out(service: TestClient) -> None:
    text = _posted(service, prompt=PROMPTS[0])["choices"][0]["text"]
    words = text.split()
    stopped = _posted(service, prompt=PROMPTS[0], stop=["never", f"{words[3]} {words[4]}"])["choices"][0]
    assert (stopped["text"].strip(), stopped["finish_reason"]) == (" ".join(words[:3]), "stop")
    events = _streamed(service, prompt=PROMPTS[0], stop=f"{words[4]} {words[5]}")
    shown = "".join(event["choices"][0]["text"] for event in events)
    assert shown == text.partition(f"{words[4]} {words[5]}")[0]
    assert shown.strip()


def test_drawn_texts_depend_on_the_seed(service: TestClient, writer: TextWriter) -> None:
    drawn = {"prompt": PROMPTS[:2], "temperature": 1.5, "top_p": 0.9, "n": 2}
    found, again, other = (_posted(service, seed=seed, **drawn)["choices"] for seed in (3, 3, 4))
    assert found == again != other
    decoding = Decoding(8, temperature=1.5, top_p=0.9, seed=3)
    expected = writer.write([PROMPTS[0], PROMPTS[0], PROMPTS[1], PROMPTS[1]], "a", decoding=decoding)
    assert [choice["text"] for choice in found] == [text.text for text in expected]
    assert found[0]["text"] != found[1]["text"]
    usual = [_posted(service, prompt=PROMPTS[0], temperature=None)["choices"][0]["text"] for _ in range(4)]
    assert len(set(usual)) > 1  # without a seed, and at OpenAI's temperature of 1


def test_requests_of_several_adapters_and_lengths_share_calls(folder: Path, writer: TextWriter) -> None:
    random = np.random.default_rng(1)
    calls = [
        (adapter, " ".join(f"w{token}" for token in random.integers(2, END, length)), count)
        for adapter, length, count in [("a", 3, 20), ("b", 9, 25), ("llama", 1, 30), ("b", 2, 12), ("a", 12, 30)] * 3
    ]
    expected = [
        writer.write([prompt], adapters=[None if adapter == "llama" else adapter], decoding=Decoding(count))[0]
        for adapter, prompt, count in calls
    ]
    with made_app(f"llama={folder}", quiet=True) as service, ThreadPoolExecutor(len(calls)) as clients:
        whole = clients.map(lambda call: _posted(service, model=call[0], prompt=call[1], max_tokens=call[2]), calls)
        assert [response["choices"][0]["text"] for response in whole] == [text.text for text in expected]
        metrics = service.get("/metrics").text
    (steps, tokens) = (
        float(line.split()[-1])
        for name in ("count", "sum")
        for line in metrics.splitlines()
        if line.startswith(f"adapter_export_decoding_rows_{name}")
    )
    assert tokens == sum(len(text.tokens) + (text.finish == "end") for text in expected)
    assert steps < tokens / 3


def test_a_request_that_would_be_answered_wrongly_is_refused(service: TestClient) -> None:
    def refused(status: int = 400, **call: Any) -> str:
        answer = service.post("/v1/completions", json={"model": "a", "prompt": "w5", **call})
        assert answer.status_code == status, answer.text
        return str(answer.json()["error"]["message"])

    for name, value in [("best_of", 2), ("echo", True), ("logprobs", 1), ("suffix", "x"), ("logit_bias", {"5": 1})]:
        assert f"`{name}`" in refused(**{name: value})
    for name in ("frequency_penalty", "presence_penalty"):
        assert f"`{name}`" in refused(**{name: 0.5})
        assert _posted(service, prompt="w5", **{name: 0})  # type: ignore[arg-type]
    assert "top_k" in refused(top_k=3)
    assert "another tokenizer" in refused(prompt=[5, 9])
    assert "another tokenizer" in refused(prompt=[[5, 9]])
    assert "too few or too many" in refused(prompt=[])
    assert "too many completions" in refused(prompt=["w5"] * 200, n=2)
    assert "prompt 1" in refused(prompt=["w5", " ".join(["w5"] * LONGEST)])
    assert "limit of this server" in refused(max_tokens=4097)
    out_of_range: list[dict[str, Any]] = [{"max_tokens": 0}, {"top_p": 0}, {"temperature": -1}, {"seed": 1.5}, {"n": 0}]
    for wrong in (*out_of_range, {"stop": [""]}, {"stop": "w" * 257}):
        assert next(iter(wrong)) in refused(**wrong)
    assert "there is no model" in refused(404, model="other")


def test_a_bundle_that_does_not_generate_says_so(text_folder: Path) -> None:
    with made_app(text_folder / "bundle", quiet=True) as service:
        answer = service.post("/v1/completions", json={"model": "topic", "prompt": "w5"})
    assert answer.status_code == 400
    assert "does not generate text" in answer.json()["error"]["message"]


def test_a_route_leads_to_an_adapter(service: TestClient) -> None:
    assert service.put("/admin/routes/latest", json={"alias": "b"}).status_code == 200
    try:
        found = [_posted(service, prompt=PROMPTS, model=name)["choices"] for name in ("latest", "b", "a")]
    finally:
        service.delete("/admin/routes/latest")
    assert found[0] == found[1] != found[2]


def test_queue_and_time_are_limited(folder: Path) -> None:
    settings = {"limits": Limits(max_queue=200, request_timeout=0.5), "sessions": SessionSettings(max_batch_size=1)}
    with made_app(f"llama={folder}", quiet=True, **settings) as service:
        many = service.post("/v1/completions", json=_greedy(prompt=["w5"] * 201))
        assert (many.status_code, "at most 200 (`max_queue`" in many.text) == (413, True)
        long = _greedy(prompt=["w5"] * 200, max_tokens=LONGEST)  # 9,400 steps
        late = service.post("/v1/completions", json=long)
        assert (late.status_code, "within 0.5 seconds" in late.text) == (503, True)
        events = service.post("/v1/completions", json={**long, "stream": True}).text
        assert "longer than 0.5 seconds" in events
        assert "[DONE]" not in events
        assert _posted(service, prompt="w5")["choices"]  # the abandoned rows are gone


@pytest.mark.parametrize("stream", [True, False])
def test_a_disconnect_frees_the_row(folder: Path, stream: bool) -> None:
    """The row is dropped at its next step."""

    async def leave() -> tuple[int, int]:
        made = make_server(named_bundles([f"llama={folder}"]), ServerSettings(quiet=True))
        made.models.start(Metrics())
        (served,) = made.models.served
        assert served.texts is not None
        body = json.dumps(_greedy(prompt="w5", max_tokens=LONGEST, stream=stream)).encode()
        incoming: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
        begun, sent = asyncio.Event(), list[Message]()

        async def receive() -> Message:
            if incoming:
                return incoming.pop()
            await begun.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": [], "query_string": b""}
        scope |= {"http_version": "1.1", "scheme": "http", "server": ("127.0.0.1", 1), "client": ("127.0.0.1", 1)}
        asked = asyncio.create_task(made.app({**scope, "asgi": {"spec_version": "2.3"}}, receive, send))
        while not served.texts._open:
            await asyncio.sleep(0.001)
        (row,) = served.texts._open
        while len(row.tokens) < 3:
            await asyncio.sleep(0.001)
        begun.set()
        await asked
        assert row.is_done
        await made.models.stop()  # waits for running texts
        return len(row.tokens), served.busy.total()

    tokens, busy = asyncio.run(leave())
    assert (3 <= tokens < LONGEST - 1, busy) == (True, 0)


def test_the_clients_of_openai_and_langchain_get_the_same_texts(service: TestClient, writer: TextWriter) -> None:
    (expected,) = writer.write(PROMPTS[:1], "a", decoding=Decoding(8))
    client = openai.OpenAI(base_url="http://127.0.0.1/v1", api_key="none", http_client=service)
    options: Any = {"model": "a", "prompt": PROMPTS[0], "temperature": 0, "max_tokens": 8}
    found = client.completions.create(**options)
    assert (found.choices[0].text, found.usage and found.usage.prompt_tokens) == (expected.text, 4)
    chunks = list(client.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == expected.text
    assert chunks[-1].usage == found.usage
    with pytest.raises(openai.BadRequestError, match="`echo`"):
        client.completions.create(**options, echo=True)
    chain = LangChainOpenAI(
        base_url="http://127.0.0.1/v1", api_key="none", model="a", temperature=0, max_tokens=8, http_client=service
    )
    assert chain.invoke(PROMPTS[0]) == expected.text
    assert [generated[0].text for generated in chain.generate(PROMPTS).generations] == [
        text.text for text in writer.write(PROMPTS, "a", decoding=Decoding(8))
    ]
    pieces = list(chain.stream(PROMPTS[0]))
    assert ("".join(pieces), len(pieces) > 3) == (expected.text, True)

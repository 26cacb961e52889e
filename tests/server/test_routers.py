"""litellm and LangChain, which route to servers by several protocols: each gets the answers of two adapters."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from langchain_ollama import ChatOllama, OllamaEmbeddings
from served import served
from tiers import extended
from tiny_generators import generating

from adapter_export.runtime import Bundle, Decoding
from adapter_export.text import Pair

pytestmark = [pytest.mark.extended, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

MESSAGES = [{"role": "system", "content": "w5 w9"}, {"role": "user", "content": "w33 w71"}]
TEXTS = ["It was written by six people in Berlin.", "No."]
CLOSE = 1e-6
"""Difference of a float32 number that was written as JSON and computed in another batch."""


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generating(tmp_path_factory, "chat")


@pytest.fixture(scope="module")
@extended
def url(places: Path, text_folder: Path) -> Iterator[str]:
    """The address of a server in its own process."""
    bundles = (f"llama={places / 'bundle'}", f"film={text_folder / 'bundle'}")
    with served(*bundles, "--quiet", "--drain", "0") as found:
        yield str(found.client.base_url).rstrip("/")


_PROGRAM = """
import json, sys
import litellm

calls = json.loads(sys.stdin.read())
answers = []
for name, options in calls:
    answer = getattr(litellm, name)(**options)
    if options.get("stream"):
        answers.append("".join(chunk.choices[0].delta.content or "" for chunk in answer))
    else:
        answers.append(json.loads(answer.model_dump_json()))
print(json.dumps(answers))
"""
"""Calls litellm in a process of its own, since it leaves connections open."""


def _litellm(*calls: tuple[str, dict[str, Any]]) -> list[Any]:
    """Return the answers of litellm, which would download prices without the variable."""
    around = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "NO_PROXY": "*", "PYTHONWARNINGS": "ignore"}
    words = [sys.executable, "-c", _PROGRAM]
    done = subprocess.run(words, input=json.dumps(calls), capture_output=True, text=True, env=around, check=False)
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout.splitlines()[-1]))


def _expected(places: Path, name: str) -> str:
    """The answer of the bundle without a server."""
    writer = Bundle.open(places / "bundle").writer()
    return writer.write([writer.chat.render(MESSAGES)], name, decoding=Decoding(8))[0].text


def test_litellm_chats_by_each_protocol(places: Path, url: str) -> None:
    calls, expected = list[tuple[str, dict[str, Any]]](), list[str]()
    for name in ("a", "b"):
        for provider, address in (("openai", f"{url}/v1"), ("hosted_vllm", f"{url}/v1"), ("ollama_chat", url)):
            options = {"messages": MESSAGES, "temperature": 0, "max_tokens": 8, "api_key": "none"}
            call = {"model": f"{provider}/{name}", "api_base": address, **options}
            calls += [("completion", call), ("completion", {**call, "stream": True})]
            expected.append(_expected(places, name))
    answers = _litellm(*calls)
    assert [answer["choices"][0]["message"]["content"] for answer in answers[::2]] == expected
    assert answers[1::2] == expected
    assert len(set(expected)) == 2


def test_litellm_embeds_and_ranks(text_folder: Path, url: str) -> None:
    reader = Bundle.open(text_folder / "bundle").texts()
    vectors = [answer.document()["vector"] for answer in reader.answer(TEXTS, "vector")]
    scores = [answer.document()["score"] for answer in reader.answer([Pair("Who?", text) for text in TEXTS], "order")]
    options = {"input": TEXTS, "api_key": "none"}
    *embedded, ranked = _litellm(
        ("embedding", {"model": "openai/vector", "api_base": f"{url}/v1", **options}),
        ("embedding", {"model": "ollama/vector", "api_base": url, **options}),
        ("rerank", {"model": "cohere/order", "query": "Who?", "documents": TEXTS, "api_base": url, "api_key": "none"}),
    )
    for found in embedded:
        np.testing.assert_allclose([each["embedding"] for each in found["data"]], vectors, atol=CLOSE)
    by_index = {result["index"]: result["relevance_score"] for result in ranked["results"]}
    np.testing.assert_allclose([by_index[at] for at in range(len(TEXTS))], scores, atol=CLOSE)


def test_langchain_speaks_to_two_adapters_by_ollamas_protocol(places: Path, text_folder: Path, url: str) -> None:
    messages = [(message["role"], message["content"]) for message in MESSAGES]
    client: dict[str, Any] = {"trust_env": False}
    for name in ("a", "b"):
        chat = ChatOllama(model=name, base_url=url, temperature=0, num_predict=8, client_kwargs=client)
        with chat._client:
            assert chat.invoke(messages).content == _expected(places, name)
            assert "".join(str(part.content) for part in chat.stream(messages)) == _expected(places, name)
    embeddings = OllamaEmbeddings(model="vector", base_url=url, client_kwargs=client)
    answers = Bundle.open(text_folder / "bundle").texts().answer(TEXTS, "vector")
    expected = [answer.document()["vector"] for answer in answers]
    with embeddings._client:
        np.testing.assert_allclose(embeddings.embed_documents(TEXTS), expected, atol=CLOSE)

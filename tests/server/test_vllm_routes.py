"""`/score`, `/pooling`, `/tokenize` and `/detokenize` as in vLLM, with bodies of its documentation."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers as hf
from served import made_app
from starlette.testclient import TestClient
from text_bundle import LONGEST
from tiny_generators import generating

from adapter_export.plugins.serve.limits import MOST_ROWS
from adapter_export.runtime import Bundle
from adapter_export.text import Pair

QUERY = "Who wrote the book about the moon?"
TEXTS = ["It was written by six people in Berlin.", "No.", "The film of the book was dull, and long."]
CLOSE = 1e-6
"""Difference of a float32 number that was written as JSON and computed in another batch."""

MESSAGES = [{"role": "system", "content": "w5 w9"}, {"role": "user", "content": "w33 w71"}]
TOOLS = [{"type": "function", "function": {"name": "w66", "parameters": {"type": "object", "properties": {}}}}]


@pytest.fixture(scope="module")
def service(text_folder: Path) -> Iterator[TestClient]:
    with made_app(text_folder / "bundle", quiet=True) as client:
        yield client


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generating(tmp_path_factory, "chat")


@pytest.fixture(scope="module")
def chat(places: Path) -> Iterator[TestClient]:
    with made_app(f"llama={places / 'bundle'}", quiet=True) as client:
        yield client


def _posted(service: TestClient, path: str, **call: Any) -> Any:
    answer = service.post(path, json=call)
    assert answer.status_code == 200, answer.text
    return answer.json()


def _refused(service: TestClient, path: str, **call: Any) -> str:
    answer = service.post(path, json=call)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    return str(error["message"] if path.startswith("/v1") else error)


def _answers(text_folder: Path, name: str, texts: list[Any]) -> list[dict[str, Any]]:
    """Answers of the bundle without a server."""
    reader = Bundle.open(text_folder / "bundle").texts()
    return [answer.document() for answer in reader.answer(texts, name)]


@pytest.mark.parametrize("path", ["/score", "/v1/score"])
def test_a_ranking_scores_pairs(service: TestClient, text_folder: Path, path: str) -> None:
    expected = [answer["score"] for answer in _answers(text_folder, "order", [Pair(QUERY, text) for text in TEXTS])]
    found = _posted(service, path, model="order", text_1=QUERY, text_2=TEXTS)
    assert (found["object"], found["model"], found["id"].partition("-")[0]) == ("list", "order", "score")
    assert [(each["index"], each["object"]) for each in found["data"]] == [(at, "score") for at in range(3)]
    np.testing.assert_allclose([each["score"] for each in found["data"]], expected, atol=CLOSE)
    assert found["usage"]["prompt_tokens"] == found["usage"]["total_tokens"] > 30
    for names in (("queries", "documents"), ("queries", "items"), ("data_1", "data_2")):
        again = _posted(service, path, model="order", **dict(zip(names, ([QUERY] * 3, TEXTS), strict=True)))
        assert again["data"] == found["data"]
    raw = _posted(service, path, model="order", text_1=QUERY, text_2=TEXTS[0], use_activation=False)
    (call,) = _posted(service, "/rerank", model="order", query=QUERY, texts=TEXTS[:1], raw_scores=True)
    assert raw["data"][0]["score"] == call["score"]


def test_an_embedding_scores_pairs_by_the_cosine(service: TestClient, text_folder: Path) -> None:
    query, *others = (np.array(answer["vector"]) for answer in _answers(text_folder, "vector", [QUERY, *TEXTS]))
    found = _posted(service, "/score", model="vector", text_1=QUERY, text_2=TEXTS)["data"]
    np.testing.assert_allclose([each["score"] for each in found], [query @ other for other in others], atol=CLOSE)
    many = _posted(service, "/score", model="vector", text_1="a", text_2=["a"] * MOST_ROWS)["data"]
    np.testing.assert_allclose([each["score"] for each in many], np.ones(MOST_ROWS), atol=CLOSE)


def test_pooling_returns_the_vectors_and_logits_of_tasks(service: TestClient, text_folder: Path) -> None:
    vectors = [answer["vector"] for answer in _answers(text_folder, "vector", TEXTS)]
    found = _posted(service, "/pooling", model="vector", input=TEXTS, task="embed")
    assert (found["id"].partition("-")[0], found["data"][0]["object"]) == ("pool", "pooling")
    np.testing.assert_allclose([each["data"] for each in found["data"]], vectors, atol=CLOSE)
    packed = _posted(service, "/pooling", model="vector", input=TEXTS[0], encoding_format="base64", dimensions=8)
    short = np.frombuffer(base64.b64decode(packed["data"][0]["data"]), "<f4")
    np.testing.assert_allclose(short, vectors[0][:8] / np.linalg.norm(vectors[0][:8]), atol=CLOSE)
    for name in ("topic", "tags"):
        (answer,) = _answers(text_folder, name, [TEXTS[0]])
        (row,) = _posted(service, "/pooling", model=name, input=TEXTS[0], task="classify")["data"]
        np.testing.assert_allclose(row["data"], [*answer["probabilities"].values()], atol=CLOSE)
    (row,) = _posted(service, "/pooling", model="topic", input=TEXTS[0], use_activation=False)["data"]
    logits = np.array(row["data"])
    (answer,) = _answers(text_folder, "topic", [TEXTS[0]])
    expected = [*answer["probabilities"].values()]
    np.testing.assert_allclose(np.exp(logits) / np.exp(logits).sum(), expected, atol=CLOSE)


def test_tokens_are_those_of_transformers(service: TestClient, text_folder: Path) -> None:
    tokenizer = hf.AutoTokenizer.from_pretrained(text_folder / "hf")
    for special in (True, False):
        ids = tokenizer(QUERY, add_special_tokens=special)["input_ids"]
        found = _posted(
            service, "/tokenize", model="topic", prompt=QUERY, add_special_tokens=special, return_token_strs=True
        )
        assert (found["tokens"], found["count"], found["max_model_len"]) == (ids, len(ids), LONGEST)
        assert found["token_strs"] == tokenizer.convert_ids_to_tokens(ids)
        assert _posted(service, "/detokenize", model="topic", tokens=ids)["prompt"] == tokenizer.decode(ids)
    assert _posted(service, "/tokenize", prompt=QUERY)["token_strs"] is None
    of_tei = _posted(service, "/tokenize", inputs=[QUERY, "No."])
    assert [[token["id"] for token in row] for row in of_tei] == tokenizer([QUERY, "No."])["input_ids"]
    first, second = of_tei[1][:2]
    assert first == {"id": 101, "text": "[CLS]", "special": True, "start": None, "stop": None}
    assert second == {"id": 2053, "text": "no", "special": False, "start": 0, "stop": 2}


def test_tokens_of_conversations_are_those_of_the_template(places: Path, chat: TestClient) -> None:
    tokenizer = hf.AutoTokenizer.from_pretrained(places / "hf")
    for prompted in (True, False):
        ids = tokenizer.apply_chat_template(
            MESSAGES, tools=TOOLS, add_generation_prompt=prompted, return_dict=False, tokenize=True
        )
        call = {"model": "a", "messages": MESSAGES, "tools": TOOLS, "add_generation_prompt": prompted}
        assert _posted(chat, "/tokenize", **call)["tokens"] == ids
    ids = tokenizer("w5 w9")["input_ids"]
    assert _posted(chat, "/tokenize", model="llama", prompt="w5 w9")["tokens"] == ids
    usage = _posted(chat, "/v1/completions", model="a", prompt="w5 w9", max_tokens=1)["usage"]
    assert usage["prompt_tokens"] == len(ids)


def test_a_request_that_would_be_answered_wrongly_is_refused(service: TestClient, chat: TestClient) -> None:
    assert "`text_1` and `text_2`" in _refused(service, "/score", model="order", text_1="a", documents="b")
    assert "`text_1` and `text_2`" in _refused(service, "/v1/score", model="order")
    wrong = {"text_1": ["a", "b"], "text_2": ["a", "b", "c"]}
    assert "different numbers" in _refused(service, "/score", model="order", **wrong)
    assert "more tokens" in _refused(service, "/score", model="vector", text_1="a", text_2="moon " * LONGEST)
    assert "truncate_prompt_tokens" in _refused(
        service, "/score", model="order", text_1="a", text_2="b", truncate_prompt_tokens=3
    )
    for model in ("topic", "follows", "bundle"):
        assert _refused(service, "/score", model=model, text_1="a", text_2="b")
    for model in ("words", "order", "place", "bundle"):
        assert _refused(service, "/pooling", model=model, input="a")
    assert "does not classify" in _refused(service, "/pooling", model="vector", input="a", task="classify")
    assert "`dimensions`" in _refused(service, "/pooling", model="topic", input="a", dimensions=3)
    assert "no such token" in _refused(service, "/detokenize", model="topic", tokens=[101, 999_999])
    assert "either `prompt` or `messages`" in _refused(service, "/tokenize", model="topic")
    assert "add_special_tokens" in _refused(chat, "/tokenize", messages=MESSAGES, add_special_tokens=True)
    assert "`developer`" in _refused(chat, "/tokenize", messages=[{"role": "developer", "content": "w5"}])
    assert service.post("/tokenize", json={"model": "none", "prompt": "a"}).status_code == 404

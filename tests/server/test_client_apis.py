"""APIs of OpenAI, Cohere, TEI and vLLM: their clients get the results of `/answer`."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cohere
import httpx
import numpy as np
import openai
import pytest
from langchain_openai import OpenAIEmbeddings
from rerankers.models.api_rankers import APIRanker
from served import made_app, served
from starlette.testclient import TestClient
from text_bundle import LONGEST, WIDTH
from tiers import extended

QUERY = "Who wrote the book about the moon?"
TEXTS = ["It was written by six people in Berlin.", "No.", "The film of the book was dull, and long."]
PREFIXES = ["", "/openai"]


@pytest.fixture(scope="module")
def service(text_folder: Path) -> Iterator[TestClient]:
    with made_app(text_folder / "bundle", quiet=True) as client:
        yield client


@pytest.fixture(scope="module")
@extended
def url(text_folder: Path) -> Iterator[str]:
    """The address of a server in its own process."""
    with served(f"film={text_folder / 'bundle'}", "--quiet") as found:
        yield str(found.client.base_url).rstrip("/")


def _posted(service: TestClient, path: str, **call: Any) -> Any:
    answer = service.post(path, json=call)
    assert answer.status_code == 200, answer.text
    return answer.json()


def _refused(service: TestClient, path: str, **call: Any) -> str:
    answer = service.post(path, json=call)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    return str(error["message"] if path.startswith("/v1") else error)


def _answers(service: TestClient, **call: Any) -> list[dict[str, Any]]:
    return list(_posted(service, "/answer", **call)["rows"])


def _pairs(texts: list[str]) -> list[dict[str, str]]:
    return [{"text": QUERY, "pair": text} for text in texts]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_vectors_are_those_of_answers(service: TestClient, prefix: str) -> None:
    expected = [row["vector"] for row in _answers(service, model="vector", texts=TEXTS)]
    found = _posted(service, f"{prefix}/v1/embeddings", model="vector", input=TEXTS)
    assert [one["embedding"] for one in found["data"]] == expected
    assert [one["index"] for one in found["data"]] == [0, 1, 2]
    packed = _posted(service, f"{prefix}/v1/embeddings", model="vector", input=TEXTS, encoding_format="base64")
    for one, vector in zip(packed["data"], expected, strict=True):
        assert np.frombuffer(base64.b64decode(one["embedding"]), "<f4").tolist() == vector
    short = _posted(service, f"{prefix}/v1/embeddings", model="vector", input=TEXTS, dimensions=8)
    for one, vector in zip(short["data"], expected, strict=True):
        first = np.array(vector[:8])
        np.testing.assert_allclose(one["embedding"], first / np.linalg.norm(first), atol=1e-6)
    alone = _posted(service, f"{prefix}/v1/embeddings", model="vector", input=TEXTS[1], dimensions=WIDTH)
    np.testing.assert_allclose(alone["data"][0]["embedding"], expected[1], atol=1e-6)
    assert alone["usage"] == {"prompt_tokens": 6, "total_tokens": 6}  # [CLS] query : no . [SEP]


def test_a_request_that_would_be_answered_wrongly_is_refused(service: TestClient) -> None:
    def embed(**call: Any) -> str:
        return _refused(service, "/v1/embeddings", **{"model": "vector", "input": TEXTS, **call})

    assert "check_embedding_ctx_length=False" in embed(input=[[1996, 4231]])
    assert "check_embedding_ctx_length=False" in embed(input=[1996, 4231])
    assert "not trained at this width" in embed(dimensions=WIDTH - 1)
    assert "does not return vectors" in embed(model="topic")
    assert "more tokens than are taken" in embed(input="moon " * LONGEST)
    assert "too few or too many" in embed(input=[])
    assert "too few or too many" in embed(input=["a"] * 257)
    assert "an unknown field" in embed(truncate_prompt_tokens=3)
    assert "does not rank texts" in _refused(service, "/rerank", model="follows", query=QUERY, texts=TEXTS)
    assert "another kind" in _refused(service, "/rerank", model="topic", query=QUERY, texts=TEXTS)
    assert "either `documents` or `texts`" in _refused(
        service, "/rerank", model="order", query=QUERY, texts=TEXTS, documents=TEXTS
    )
    assert "either `documents` or `texts`" in _refused(service, "/rerank", model="order", query=QUERY)
    assert "no adapter is named" in _refused(service, "/rerank", query=QUERY, texts=TEXTS)
    assert "does not classify" in _refused(service, "/classify", model="vector", input=TEXTS)
    missing = service.post("/v1/embeddings", json={"model": "vectors", "input": TEXTS})
    misspelled = service.get("/v1/models?limit=3")
    assert (misspelled.status_code, misspelled.json()["error"]["code"]) == (400, 400)
    assert (missing.status_code, "`vector`" in missing.text) == (404, True)


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank", "/openai/v1/rerank"])
def test_texts_are_ranked_by_their_scores(service: TestClient, path: str) -> None:
    scores = [row["score"] for row in _answers(service, model="order", texts=_pairs(TEXTS))]
    best = sorted(range(len(TEXTS)), key=lambda at: -scores[at])
    found = _posted(service, path, model="order", query=QUERY, documents=TEXTS, return_documents=True)["results"]
    assert found == [{"index": at, "relevance_score": scores[at], "document": {"text": TEXTS[at]}} for at in best]
    objects = [{"text": text} for text in TEXTS]
    first = _posted(service, path, model="order", query=QUERY, documents=objects, top_n=1)["results"]
    assert first == [{"index": best[0], "relevance_score": scores[best[0]]}]
    of_tei = _posted(service, path, model="order", query=QUERY, texts=TEXTS, return_text=True)
    assert of_tei == [{"index": at, "score": scores[at], "text": TEXTS[at]} for at in best]


def test_long_documents_are_cut_as_the_client_expects(service: TestClient) -> None:
    long = "moon " * LONGEST
    (expected,) = _answers(service, model="order", texts=_pairs([long]))
    assert expected["cut"] > 0
    (found,) = _posted(service, "/v1/rerank", model="order", query=QUERY, documents=[long])["results"]
    assert found["relevance_score"] == expected["score"]
    assert "more tokens than are taken" in _refused(service, "/rerank", model="order", query=QUERY, texts=[long])
    (cut,) = _posted(service, "/rerank", model="order", query=QUERY, texts=[long], truncate=True)
    assert cut["score"] == expected["score"]


def test_classify_route_returns_the_probabilities_of_answer(service: TestClient) -> None:
    for name in ("topic", "tags"):
        expected = [row["probabilities"] for row in _answers(service, model=name, texts=TEXTS)]
        found = _posted(service, "/classify", model=name, input=TEXTS)["data"]
        assert [one["probs"] for one in found] == [[*one.values()] for one in expected]
        assert [one["label"] for one in found] == [max(one, key=one.__getitem__) for one in expected]


def test_models_name_their_bundle_and_routes_their_model(service: TestClient) -> None:
    put = service.put("/admin/routes/latest", json={"alias": "vector"})
    assert put.status_code == 200, put.text
    try:
        found = {one["id"]: one for one in service.get("/v1/models").json()["data"]}
        assert (found["vector"]["parent"], found["bundle"]["parent"]) == ("bundle", None)
        assert (found["latest"]["root"], found["latest"]["parent"]) == ("vector", None)
        assert service.get("/openai/v1/models/vector").json() == found["vector"]
        assert service.get("/v1/models/none").status_code == 404
        vectors = [_posted(service, "/v1/embeddings", model=name, input=QUERY)["data"] for name in ("latest", "vector")]
        assert vectors[0] == vectors[1]
    finally:
        service.delete("/admin/routes/latest")


def test_the_clients_of_the_libraries_get_the_same_answers(url: str, service: TestClient) -> None:
    vectors = [row["vector"] for row in _answers(service, model="vector", texts=TEXTS)]
    scores = [row["score"] for row in _answers(service, model="order", texts=_pairs(TEXTS))]
    best = sorted(range(len(TEXTS)), key=lambda at: -scores[at])
    with httpx.Client(trust_env=False) as direct:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", http_client=direct)
        assert "vector" in {model.id for model in client.models.list()}
        embedded = client.embeddings.create(model="vector", input=TEXTS)  # in base64
        np.testing.assert_allclose([one.embedding for one in embedded.data], vectors, atol=1e-6)
        with pytest.raises(openai.NotFoundError, match="there is no model"):
            client.embeddings.create(model="other", input=TEXTS)
        chain = OpenAIEmbeddings(
            base_url=f"{url}/v1", api_key="none", model="vector", check_embedding_ctx_length=False, http_client=direct
        )
        np.testing.assert_allclose(chain.embed_documents(TEXTS), vectors, atol=1e-6)
        for kind in (cohere.Client, cohere.ClientV2):
            ranked = kind(api_key="none", base_url=url, httpx_client=direct).rerank(
                model="order", query=QUERY, documents=TEXTS
            )
            assert [one.index for one in ranked.results] == best
            np.testing.assert_allclose([one.relevance_score for one in ranked.results], sorted(scores)[::-1], atol=1e-6)
    for provider in ("cohere", "text-embeddings-inference"):
        ranker = APIRanker("order", "none", provider, url=f"{url}/v1/rerank")
        assert [one.document.doc_id for one in ranker.rank(QUERY, TEXTS).results] == best

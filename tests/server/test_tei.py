"""Routes of Text Embeddings Inference (TEI) and Hugging Face's inference API, with their client."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from served import made_app, served
from starlette.testclient import TestClient
from text_bundle import LONGEST, TASKS, WIDTH
from tiers import extended

from adapter_export.plugins.serve.limits import MOST_ROWS
from adapter_export.runtime import Bundle
from adapter_export.text import Pair

TEXTS = ["It was written by six people in Berlin.", "No.", "The film of the book was dull, and long."]
PAIR = ["Who wrote the book?", "Six people did."]
CLOSE = 1e-6
"""Difference of a float32 number that was written as JSON and computed in another batch."""


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
    return str(answer.json()["error"])


def _answers(text_folder: Path, name: str, texts: list[Any]) -> list[dict[str, Any]]:
    """Answers of the bundle without a server."""
    reader = Bundle.open(text_folder / "bundle").texts()
    return [answer.document() for answer in reader.answer(texts, name)]


def test_embed_returns_vectors_of_length_1(service: TestClient, text_folder: Path) -> None:
    expected = [answer["vector"] for answer in _answers(text_folder, "vector", TEXTS)]
    for path, call in (("/embed", {"model": "vector"}), ("/models/vector/embed", {}), ("/models/bundle:vector", {})):
        np.testing.assert_allclose(_posted(service, path, inputs=TEXTS, **call), expected, atol=CLOSE)
    (single,) = _posted(service, "/embed", model="vector", inputs=TEXTS[0])
    np.testing.assert_allclose(single, expected[0], atol=CLOSE)
    (short,) = _posted(service, "/embed", model="vector", inputs=TEXTS[0], dimensions=8)
    first = np.array(expected[0][:8])
    np.testing.assert_allclose(short, first / np.linalg.norm(first), atol=CLOSE)


def test_long_texts_are_refused_unless_truncation_is_requested(service: TestClient, text_folder: Path) -> None:
    long = "moon " * LONGEST
    assert "more tokens than are taken" in _refused(service, "/embed", model="vector", inputs=long)
    (answer,) = _answers(text_folder, "vector", [long])
    assert answer["cut"] > 0
    for direction in ({}, {"truncation_direction": "Right"}):
        (vector,) = _posted(service, "/embed", model="vector", inputs=long, truncate=True, **direction)
        np.testing.assert_allclose(vector, answer["vector"], atol=CLOSE)
    left = {"inputs": long, "truncate": True, "truncation_direction": "left"}
    assert "on another side" in _refused(service, "/embed", model="vector", **left)
    assert _posted(service, "/predict", model="tags", **left)  # its task truncates on the left


def test_predict_sorts_labels_by_their_scores(service: TestClient, text_folder: Path) -> None:
    for name in ("topic", "tags"):
        answers = [answer["probabilities"] for answer in _answers(text_folder, name, TEXTS)]
        found = _posted(service, "/predict", model=name, inputs=[[text] for text in TEXTS])
        for row, probabilities in zip(found, answers, strict=True):
            assert [label["label"] for label in row] == sorted(probabilities, key=lambda label: -probabilities[label])
            assert {label["label"]: pytest.approx(label["score"], abs=CLOSE) for label in row} == probabilities
        alone = _posted(service, f"/models/{name}/predict", inputs=TEXTS[0])
        assert alone == [{**label, "score": pytest.approx(label["score"], abs=CLOSE)} for label in found[0]]
    (answer,) = _answers(text_folder, "follows", [Pair(*PAIR)])
    pair = _posted(service, "/predict", model="follows", inputs=PAIR)
    assert _posted(service, "/predict", model="follows", inputs=[PAIR]) == [pair]
    assert {label["label"]: pytest.approx(label["score"], abs=CLOSE) for label in pair} == answer["probabilities"]
    raw = _posted(service, "/predict", model="topic", inputs=TEXTS[0], raw_scores=True)
    logits = np.array([label["score"] for label in raw])
    scores = _posted(service, "/predict", model="topic", inputs=TEXTS[0])
    np.testing.assert_allclose(np.exp(logits) / np.exp(logits).sum(), [each["score"] for each in scores], atol=CLOSE)


def test_similarity_is_the_cosine(service: TestClient, text_folder: Path) -> None:
    source, *others = (np.array(answer["vector"]) for answer in _answers(text_folder, "vector", TEXTS))
    inputs = {"source_sentence": TEXTS[0], "sentences": TEXTS[1:]}
    found = _posted(service, "/similarity", model="vector", inputs=inputs, parameters={"truncate": True})
    np.testing.assert_allclose(found, [source @ other for other in others], atol=CLOSE)


def test_info_names_the_task(service: TestClient) -> None:
    vector = service.get("/info?model=vector").json()
    assert vector == service.get("/models/vector/info").json()
    assert vector["model_id"] == "bundle/vector"
    assert "embedding" in vector["model_type"]
    assert vector["max_input_length"] == LONGEST
    topic = service.get("/models/topic/info").json()
    labels = topic["model_type"]["classifier"]
    assert labels == {"id2label": {"0": "a", "1": "b", "2": "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}
    assert topic["max_input_length"] == TASKS["topic"].max_tokens
    assert "reranker" in service.get("/models/order/info").json()["model_type"]
    for path in ("/info", "/models/place/info"):
        assert service.get(path).status_code == 400
    assert "an embedding, a classification" in service.get("/models/place/info").text
    assert service.get("/models/none/info").status_code == 404


def test_a_request_that_would_be_answered_wrongly_is_refused(service: TestClient) -> None:
    sparse = _refused(service, "/embed_sparse", model="vector", inputs=TEXTS)
    assert "does not return sparse vectors" in sparse
    assert "`sparse_embedding`" in sparse
    assert "a vector for each token" in _refused(service, "/embed_all", model="vector", inputs=TEXTS)
    assert "does not return vectors" in _refused(service, "/embed", model="topic", inputs=TEXTS)
    assert "does not classify" in _refused(service, "/predict", model="vector", inputs=TEXTS[0])
    assert "as a list of lists" in _refused(service, "/predict", model="topic", inputs=TEXTS)
    assert "returns vectors of length 1" in _refused(service, "/embed", model="vector", inputs=TEXTS, normalize=False)
    assert "not trained at this width" in _refused(service, "/embed", model="vector", inputs="a", dimensions=WIDTH - 1)
    assert "prompt_name" in _refused(service, "/embed", model="vector", inputs="a", prompt_name="passage")
    assert "names two models" in _refused(service, "/models/topic/predict", model="tags", inputs="a")
    assert "no adapter is named" in _refused(service, "/embed", inputs=TEXTS)
    assert "an unknown field" in _refused(service, "/embed", model="vector", inputs=TEXTS, normalise=True)
    assert "token ids" in _refused(service, "/embed", model="vector", inputs=[101, 102])
    assert "too few or too many" in _refused(service, "/embed", model="vector", inputs=["a"] * (MOST_ROWS + 1))
    assert "too few or too many" in _refused(service, "/predict", model="topic", inputs=[["a"]] * (MOST_ROWS + 1))
    inputs = {"source_sentence": "a", "sentences": ["a"] * MOST_ROWS}
    assert "not of the expected form" in _refused(service, "/similarity", model="vector", inputs=inputs)
    for name, task in (("place", None), ("topic", "feature-extraction"), ("vector", "text-classification")):
        path = f"/models/{name}" if task is None else f"/models/{name}/pipeline/{task}"
        assert "task" in _refused(service, path, inputs="a")


def test_the_client_of_hugging_face_gets_the_same_answers(url: str, text_folder: Path) -> None:
    vectors = [answer["vector"] for answer in _answers(text_folder, "vector", TEXTS)]
    client = huggingface_hub.InferenceClient()
    for path in ("/models/vector", "/models/vector/embed", "/models/film:vector/pipeline/feature-extraction"):
        found = client.feature_extraction(TEXTS, model=f"{url}{path}", truncate=True)  # type: ignore[arg-type]
        np.testing.assert_allclose(found, vectors, atol=CLOSE)
    first = np.array(vectors[0])
    path = "/models/vector/pipeline/sentence-similarity"
    for address in (f"{url}{path}", f"{url}/models/vector/similarity"):
        cosines = client.sentence_similarity(TEXTS[0], other_sentences=TEXTS[1:], model=address)
        np.testing.assert_allclose(cosines, [first @ np.array(vector) for vector in vectors[1:]], atol=CLOSE)
    for name in ("topic", "tags"):
        (answer,) = _answers(text_folder, name, [TEXTS[2]])
        labels = client.text_classification(TEXTS[2], model=f"{url}/models/{name}")
        assert {label.label: pytest.approx(label.score, abs=CLOSE) for label in labels} == answer["probabilities"]
        (best,) = client.text_classification(TEXTS[2], model=f"{url}/models/{name}", top_k=1)
        assert best.label == labels[0].label
    with pytest.raises(huggingface_hub.errors.HfHubHTTPError):
        client.feature_extraction(TEXTS[0], model=f"{url}/models/topic/embed")

"""Bundles in sentence-transformers return the numbers of the original model."""

from __future__ import annotations

import copy
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import (
    EmbeddingSimilarityEvaluator,
    InformationRetrievalEvaluator,
)

from adapter_export.errors import RequestError, UsageError
from adapter_export.plugins.integrations.sentence_transformers import BundleEmbedder, BundleReranker
from adapter_export.text import Pair

pytestmark = pytest.mark.extended

World = Any
TEXTS = ["A man is eating food.", "The girl is carrying a baby, isn't she?", "x", "", "a text that is cut, " * 90]
CLOSE = 2e-5
"""Float32 rounding of one layer of width 32 in two runtimes: 32 terms × 2⁻²⁴ × values below 10."""


def model_of(module: Any, **options: Any) -> Any:
    return SentenceTransformer(modules=[module], device="cpu", **options)


def test_vectors_are_those_of_the_model_with_each_adapter(world: World) -> None:
    module = BundleEmbedder(world.bundle, "base-head")
    model, session = model_of(module), world.bundle.session()
    assert model.get_embedding_dimension() == 32
    assert model.max_seq_length == 50
    for name in ("base-head", "mine", "other"):
        module.adapter = name
        expected = world.expected(name, TEXTS)
        np.testing.assert_allclose(model.encode(TEXTS), expected, rtol=0, atol=CLOSE)
        np.testing.assert_allclose(
            model.encode(TEXTS, batch_size=2, show_progress_bar=True), expected, rtol=0, atol=CLOSE
        )
        shared = model_of(BundleEmbedder(world.bundle, name, session=session))
        np.testing.assert_allclose(shared.encode(TEXTS[0]), expected[0], rtol=0, atol=CLOSE)
    assert np.abs(world.expected("mine", TEXTS) - world.expected("other", TEXTS)).max() > 1000 * CLOSE


def test_results_have_the_types_of_the_library(world: World) -> None:
    model, original = model_of(BundleEmbedder(world.bundle, "mine")), world.model
    for texts, options in (
        ([], {}),
        (TEXTS[0], {}),
        ((TEXTS[0], TEXTS[1]), {}),
        (TEXTS[:2], {"convert_to_tensor": True}),
        (TEXTS[:2], {"convert_to_numpy": False}),
        (TEXTS[:2], {"truncate_dim": 8, "normalize_embeddings": True}),
        (TEXTS[:2], {"precision": "binary"}),
    ):
        found, expected = model.encode(texts, **options), original.encode(texts, **options)
        assert type(found) is type(expected)
        assert np.shape(found) == np.shape(expected)
    vectors = model.encode(TEXTS)
    similarity = model.similarity(vectors, vectors)
    torch.testing.assert_close(similarity.diagonal(), torch.ones(len(TEXTS)), rtol=0, atol=CLOSE)


def test_vectors_have_a_width_that_was_trained(world: World) -> None:
    model = model_of(BundleEmbedder(world.bundle, "other", width=16))
    first = world.expected("other", TEXTS)[:, :16]
    expected = first / np.linalg.norm(first, axis=1, keepdims=True)
    np.testing.assert_allclose(copy.deepcopy(model).encode(TEXTS), expected, rtol=0, atol=CLOSE)
    assert model.get_embedding_dimension() == 16
    with pytest.raises(RequestError, match="not trained at this width"):
        model_of(BundleEmbedder(world.bundle, "mine", width=16)).encode(TEXTS)


def test_prompts_are_those_of_the_library(world: World) -> None:
    prompts = {"query": "query: ", "document": "passage: "}
    model = model_of(BundleEmbedder(world.bundle, "base-head"), prompts=prompts)
    for text in (TEXTS[:2], TEXTS[0]):
        for side, method in (("query", model.encode_query), ("document", model.encode_document)):
            expected = world.model.encode(text, prompt=prompts[side])
            np.testing.assert_allclose(method(text), expected, rtol=0, atol=CLOSE)


def test_sides_have_the_prefixes_of_the_task(world: World) -> None:
    model = model_of(BundleEmbedder(world.bundle, "sided"))
    for method, prefix in ((model.encode_query, "query: "), (model.encode_document, "passage: ")):
        expected = world.expected("sided", [prefix + text for text in TEXTS])
        np.testing.assert_allclose(method(TEXTS), expected, rtol=0, atol=CLOSE)
        longer = world.expected("sided", [f"{prefix}now, {TEXTS[0]}"])
        np.testing.assert_allclose(method(TEXTS[:1], prompt=f"{prefix}now, "), longer, rtol=0, atol=CLOSE)
        with pytest.raises(RequestError, match=f"does not begin with the adapter's prefix.*`{prefix}`"):
            method(TEXTS, prompt="search: ")
    with pytest.raises(RequestError, match="query or a document"):
        model.encode(TEXTS)
    assert model.get_embedding_dimension() == 32


def test_evaluators_give_the_scores_of_the_model(world: World) -> None:
    words = ["food", "baby", "man", "girl", "text", "rain", "house", "music"]
    queries = {str(at): f"where is the {word}" for at, word in enumerate(words)}
    corpus = {str(at): f"the {word} is there, {word} and all" for at, word in enumerate(words)}
    relevant = {key: {key} for key in queries}
    evaluators = [
        InformationRetrievalEvaluator(queries, corpus, relevant, write_csv=False),
        EmbeddingSimilarityEvaluator(
            list(queries.values()), list(corpus.values()), np.linspace(0, 1, len(words)).tolist(), write_csv=False
        ),
    ]
    model = model_of(BundleEmbedder(world.bundle, "base-head"))
    for evaluator in evaluators:
        assert evaluator(model) == pytest.approx(evaluator(world.model), abs=1e-4)


def test_threads_that_change_adapters_have_vectors_of_one(world: World) -> None:
    module = BundleEmbedder(world.bundle, "mine")
    model, wrong = model_of(module), list[str]()
    expected = {name: world.expected(name, TEXTS[:1])[0] for name in ("mine", "other")}

    def near(found: Any, *names: str) -> bool:
        return any(np.abs(found - expected[name]).max() < CLOSE for name in names)

    def by_call(name: str) -> None:
        for _ in range(20):
            if not near(model.encode(TEXTS[0], adapter=name), name):
                wrong.append(name)

    def by_setting() -> None:
        for at in range(20):
            module.adapter = ("mine", "other")[at % 2]
            if not near(model.encode(TEXTS[0]), "mine", "other"):
                wrong.append("set")

    threads = [threading.Thread(target=by_call, args=[name]) for name in expected]
    threads.append(threading.Thread(target=by_setting))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_copies_and_processes_open_the_bundle_again(world: World) -> None:
    model = model_of(BundleEmbedder(world.bundle, "other"))
    expected = model.encode(TEXTS[:2])
    np.testing.assert_array_equal(copy.deepcopy(model).encode(TEXTS[:2]), expected)
    np.testing.assert_array_equal(model.encode(TEXTS[:2], device=["cpu"]), expected)


def test_adapters_without_vectors_are_refused_by_name(world: World, tmp_path: Path) -> None:
    embedder = BundleEmbedder
    with pytest.raises(RequestError, match=r"adapter `topic`.*found `single_label`.*expected `embedding`"):
        embedder(world.bundle, "topic")
    with pytest.raises(UsageError, match=r"several adapters.*`base-head`"):
        embedder(world.bundle)
    with pytest.raises(RequestError, match="`missing`"):
        embedder(world.bundle, "missing")
    module = embedder(world.bundle.folder, "mine")
    with pytest.raises(RequestError, match="`topic`"):
        module.adapter = "topic"
    assert module.adapter == "mine"
    model = model_of(module)
    with pytest.raises(RequestError, match="`rank`"):
        model.encode(TEXTS, adapter="rank")
    with pytest.raises(RequestError, match=r"list of texts.*`tuple`"):
        model.encode([("a", "b")])
    with pytest.raises(UsageError, match="Copy its folder"):
        model.save(str(tmp_path / "saved"))
    with pytest.raises(RequestError, match="more tokens"):
        model_of(embedder(world.bundle, "mine", long="refuse")).encode(TEXTS)


def test_rerankers_are_cross_encoders(world: World) -> None:
    model = CrossEncoder(modules=[BundleReranker(world.bundle)], device="cpu")
    pairs = [(TEXTS[0], other) for other in TEXTS]
    answers = world.bundle.texts().answer([Pair(*pair) for pair in pairs], "rank")
    expected = [one.answer.document()["score"] for one in answers]
    np.testing.assert_allclose(model.predict(pairs), expected, rtol=0, atol=1e-6)
    ranked = model.rank(TEXTS[0], TEXTS)
    assert [one["corpus_id"] for one in ranked] == list(np.argsort(-np.array(expected), kind="stable"))
    np.testing.assert_allclose(
        model.predict(pairs[1:2], prompt="find: "),
        model.predict([("find: " + TEXTS[0], TEXTS[1])]),
        rtol=0,
        atol=1e-6,
    )
    with pytest.raises(RequestError, match="pairs of texts"):
        model.predict(["ab", "cd", "ef"])
    with pytest.raises(RequestError, match=r"adapter `mine`.*expected `ranking`"):
        BundleReranker(world.bundle, "mine")

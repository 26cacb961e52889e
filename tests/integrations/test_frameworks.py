"""Bundles in LangChain and LlamaIndex return the vectors of the original model."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from langchain_core.documents import Document
from langchain_core.vectorstores import InMemoryVectorStore
from llama_index.core import VectorStoreIndex
from llama_index.core.schema import TextNode

from adapter_export.errors import RequestError
from adapter_export.plugins.integrations.langchain import BundleEmbeddings, BundleReranker
from adapter_export.plugins.integrations.llama_index import BundleEmbedding
from adapter_export.text import Pair

pytestmark = pytest.mark.extended

World = Any
TEXTS = ["A man is eating food.", "The girl is carrying a baby, isn't she?", "x", "a text that is cut, " * 90]
CLOSE = 2e-5
"""As in `test_sentence_transformers.py`."""


def test_langchain_embeds_queries_and_documents(world: World) -> None:
    embeddings = BundleEmbeddings(world.bundle, "mine", query_prompt="query: ")
    expected, query = world.expected("mine", TEXTS), world.expected("mine", ["query: x"])[0]
    np.testing.assert_allclose(embeddings.embed_documents(TEXTS), expected, rtol=0, atol=CLOSE)
    np.testing.assert_allclose(asyncio.run(embeddings.aembed_documents(TEXTS)), expected, rtol=0, atol=CLOSE)
    np.testing.assert_allclose(embeddings.embed_query("x"), query, rtol=0, atol=CLOSE)
    np.testing.assert_allclose(asyncio.run(embeddings.aembed_query("x")), query, rtol=0, atol=CLOSE)
    assert embeddings.embed_documents([]) == []
    assert type(embeddings.embed_query("x")[0]) is float
    with pytest.raises(RequestError, match="list of texts"):
        embeddings.embed_documents("A man")  # type: ignore[arg-type]
    embeddings.adapter = "other"
    np.testing.assert_allclose(embeddings.embed_documents(TEXTS), world.expected("other", TEXTS), rtol=0, atol=CLOSE)
    store = InMemoryVectorStore.from_texts(TEXTS, BundleEmbeddings(world.bundle, "mine"))
    assert [one.page_content for one in store.similarity_search(TEXTS[1], k=1)] == [TEXTS[1]]


def test_sides_have_the_prefixes_of_the_task(world: World) -> None:
    query = world.expected("sided", ["query: x"])[0]
    documents = world.expected("sided", [f"passage: {text}" for text in TEXTS])
    chain, index = BundleEmbeddings(world.bundle, "sided"), BundleEmbedding(world.bundle, "sided")
    for found in (chain.embed_query("x"), index.get_query_embedding("x")):
        np.testing.assert_allclose(found, query, rtol=0, atol=CLOSE)
    for found in (chain.embed_documents(TEXTS), index.get_text_embedding_batch(TEXTS)):
        np.testing.assert_allclose(found, documents, rtol=0, atol=CLOSE)


def test_langchain_ranks_documents(world: World) -> None:
    documents = [Document(text, metadata={"at": at}) for at, text in enumerate(TEXTS)]
    answers = world.bundle.texts().answer([Pair("food", text) for text in TEXTS], "rank")
    scores = [one.answer.document()["score"] for one in answers]
    reranker = BundleReranker(world.bundle, top_n=2)
    found = reranker.compress_documents(documents, "food")
    assert [one.metadata["at"] for one in found] == sorted(range(len(TEXTS)), key=lambda at: -scores[at])[:2]
    assert [one.metadata["relevance_score"] for one in found] == pytest.approx(sorted(scores)[:-3:-1], abs=1e-6)
    assert asyncio.run(reranker.acompress_documents(documents, "food")) == found
    assert reranker.compress_documents([], "food") == []
    assert all("relevance_score" not in one.metadata for one in documents), "they are copies"


def test_llama_index_embeds_queries_and_nodes(world: World) -> None:
    model = BundleEmbedding(world.bundle, "mine", query_prompt="query: ", embed_batch_size=2)
    expected, query = world.expected("mine", TEXTS), world.expected("mine", ["query: x"])[0]
    for found in (model.get_text_embedding_batch(TEXTS), asyncio.run(model.aget_text_embedding_batch(TEXTS))):
        np.testing.assert_allclose(found, expected, rtol=0, atol=CLOSE)
    for found in (model.get_query_embedding("x"), asyncio.run(model.aget_query_embedding("x"))):
        np.testing.assert_allclose(found, query, rtol=0, atol=CLOSE)
    model.embedder.adapter = "other"
    np.testing.assert_allclose(
        model.get_text_embedding(TEXTS[0]), world.expected("other", TEXTS[:1])[0], rtol=0, atol=CLOSE
    )
    index = VectorStoreIndex([TextNode(text=text) for text in TEXTS], embed_model=BundleEmbedding(world.bundle, "mine"))
    (nearest,) = index.as_retriever(similarity_top_k=1).retrieve(TEXTS[1])
    assert nearest.text == TEXTS[1]
    with pytest.raises(RequestError, match="adapter `topic`"):
        BundleEmbedding(world.bundle, "topic")
